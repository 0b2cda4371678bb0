"""The lowest versions that `settings.ini` allows, one a line, as constraints for pip.

    python tests/lowest.py > lowest.txt
    pip install -e '.[dev]' -c lowest.txt
"""
import re
from configparser import ConfigParser
from pathlib import Path

def requirements():
    "What `settings.ini` asks for: the library's requirements, and those of its extras"
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    return [o for k,v in cfg['DEFAULT'].items() if k.endswith('requirements') for o in v.split()]

def lowest(
        requirement:str, # One of `requirements`
    ) -> str:            # The same, held to its lowest version
    "`'torch>=2.10'` becomes `'torch==2.10'`, `'sphinx>=9,<10;…'` becomes `'sphinx==9;…'`; without a lowest version it raises"
    found = re.fullmatch(r'([\w-]+)[>=]=([\d.]+)[^;]*(;.*)?', requirement)
    if not found: raise ValueError(f'settings.ini gives no lowest version: {requirement}')
    return f"{found[1]}=={found[2]}{found[3] or ''}"

if __name__=='__main__': print(*dict.fromkeys(map(lowest, requirements())), sep='\n')
