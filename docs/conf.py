"Sphinx settings; `python docs/build.py` makes the pages that Sphinx reads"
from configparser import ConfigParser
from pathlib import Path
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(Path(__file__).resolve().parent.parent/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

project,author,release = cfg['lib_name'],cfg['author'],cfg['version']
copyright = author
html_title = f'{project} {release}'
html_theme = 'furo'
html_static_path,html_css_files = ['_static'],['wide.css']
html_copy_source = html_show_sourcelink = False  # the source is folded below each entry
html_math_renderer = 'mathml'
extensions = ['myst_nb']

nb_execution_mode = 'off'  # the notebooks hold their outputs
nb_merge_streams = True
nb_render_markdown_format = 'myst'  # outputs may hold tables
nb_code_prompt_show = nb_code_prompt_hide = 'Source'
myst_enable_extensions = ['attrs_inline', 'attrs_block', 'colon_fence', 'dollarmath', 'amsmath', 'deflist']
myst_heading_anchors = 3
suppress_warnings = ['myst.header']  # the heading of a function is one level deep wherever it stands

def formula(display):
    "Writes a formula as MathML, which browsers draw without a script and without a network"
    def _write(writer, node):
        writer.body.append(f'<{tag} class="math">{convert(node.astext(), display=display)}</{tag}>')
        raise SkipNode
    tag = 'div' if display=='block' else 'span'
    return _write,None

def setup(app): app.add_html_math_renderer('mathml', formula('inline'), formula('block'))
