"Metadata lives in `settings.ini`; this file hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg,lib = parser['DEFAULT'],parser['DEFAULT']['lib_path']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], license=cfg['license'], python_requires=f">={cfg['min_python']}",
    classifiers=[f'Programming Language :: Python :: {o}' for o in cfg['tested_pythons'].split()],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[lib, f'{lib}.*']), include_package_data=True, zip_safe=False,
    install_requires=cfg['requirements'].split(), extras_require={o: cfg[f'{o}_requirements'].split() for o in ('dev','subwords','onnx','runtime')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
