"The documentation before Sphinx reads it: entries, options, formulas, figures, the order of its pages"
import importlib,re,runpy
from pathlib import Path
import pytest
from typer.main import get_command
from ulmfit_ext import _modidx
from ulmfit_ext.terminal import app

root = Path(__file__).resolve().parent.parent
build = runpy.run_path(str(root/'docs'/'build.py'))
api = build['api']

@pytest.fixture(scope='module')
def pages(): return [build['Page'](p, 'ulmfit_ext') for p in build['nbglob'](root/'nbs', as_path=True).sorted()]

def public_names():
    "Module and name of what nbdev has noted of each module: exported functions and classes, methods of both class bodies and patches"
    for mod,syms in _modidx.d['syms'].items():
        exported = set(importlib.import_module(mod).__all__)
        for sym in syms:
            first,*rest = sym.removeprefix(mod+'.').split('.')
            if not any(o.startswith('_') for o in (first,*rest)) and (rest or first in exported): yield mod,'.'.join([first,*rest])

def test_every_public_name_has_an_entry(pages):
    "Functions, classes and all their methods: the number of those without an entry is 0"
    targets = {t for p in pages for t in p.targets}
    missing = [f'{mod}.{name}' for mod,name in public_names() if f"{mod.removeprefix('ulmfit_ext.')}-{name}".lower() not in targets]
    assert missing==[]

def entry_of(pages, page, name):
    cells = next(p for p in pages if p.name==page).nb.cells
    return next(c.source for c in cells if c.cell_type=='markdown' and f'({page}-{name})='.lower() in c.source)

def test_entries_tell_each_parameter(pages):
    "`ULMFiT.from_df` is called with these parameters; each has a row"
    text = entry_of(pages, 'pipeline', 'ULMFiT.from_df')
    for name in ('df','path','pretrained','minutes','text_col','label_delim'): assert f'\n| `{name}` |' in text
    assert "| `path` | `str = 'ulmfit'` | Folder" in text and 'ULMFiT.from_df(df, path=' in text
    assert '`Answering.predict`' in entry_of(pages, 'pipeline', 'ULMFiT').replace('[','').replace(']','')

@pytest.mark.parametrize('name', [o.callback.__name__ for o in app.registered_commands])
def test_options_are_in_tables(pages, name):
    "Every name of every option that Typer reads is in the tables of its command"
    rows = [l for l in entry_of(pages, 'cli', name).splitlines() if l.startswith('| `')]
    for p in get_command(app).commands[name].params:
        for opt in (*p.opts, *p.secondary_opts) if p.param_type_name=='option' else ():
            assert any(re.search(f'`{opt}[` ]', l) for l in rows), opt

def test_options_keep_their_dashes():
    assert api.as_code("FILE and --test, such as ';' or spaCy's") == "FILE and `--test`, such as `';'` or spaCy's"

def test_links_are_not_nested():
    "Where the text of a link is a name, or holds names, that nbdev makes links too, the outer link stays"
    one = build['one_link']
    assert one('| [[`suggest`](/cli.html#suggest)](38.ipynb): texts |') == '| [`suggest`](38.ipynb): texts |'
    assert one('[from [`a`](/a.html#a) to [`b`](/b.html#b)](x.ipynb), [`c`](/c.html#c)') == '[from `a` to `b`](x.ipynb), [`c`](/c.html#c)'

def test_figures_have_alt_text(pages):
    "Each figure has it, of its cell or of the text above, and leads to a target on its page"
    assert build['plain']('Above.\n\nThe `loss` of [a model](x.ipynb):') == 'The loss of a model'
    assert [(p.name,o.target) for p in pages for o in p.figures if len(o.alt)<20] == []
    page = next(p for p in pages if p.name=='callback.schedule')
    texts = [c.source for c in page.nb.cells if c.cell_type=='markdown']
    assert len(page.figures)==4 and all(o.png and f'({o.target[1:]})=' in texts for o in page.figures)

def test_formulas_need_no_script():
    "A formula becomes MathML, display or in a line"
    class Writer: body = []
    class Node:
        def astext(self): return r'\frac{a}{b}'
    conf = runpy.run_path(str(root/'docs'/'conf.py'))
    write,_ = conf['formula']('block')
    with pytest.raises(conf['SkipNode']): write(Writer, Node())
    assert Writer.body[0].startswith('<div class="math"><math') and 'display="block"' in Writer.body[0] and '<mfrac>' in Writer.body[0]

def test_what_a_page_asks_for():
    "A script, a style or a font of another place is found; a link that a reader may follow is not"
    ask = build['asks_outside']
    assert ask('<script defer src="https://cdn.example/mathjax.js"></script><a href="https://example.org">x</a>') == ['https://cdn.example/mathjax.js']
    assert ask('<link rel="stylesheet" href="//fonts.example/a.css"><img src="_images/a.png">') == ['//fonts.example/a.css']
    assert ask('@font-face { src: url("https://fonts.example/a.woff2") } @import "http://a.example/b.css"; b { background: url(data:image/png;base64,x) }') \
        == ['https://fonts.example/a.woff2','http://a.example/b.css']

def test_order_of_the_sidebar(pages):
    "Tutorials, then the method, then the modules, then experiments; each page once"
    text = build['toctree'](pages)
    at = [text.index(f'\n{o}\n') for o in ('/tutorials/trec6', '/00_ulmfit', '/40_pipeline', '/11_text.tables', '/experiments/few_labels', 'All figures </gallery>')]
    assert at==sorted(at)
    assert text.count('\n/')+1==len(pages)

def test_source_is_in_one_fold(pages):
    "No two folds of source stand directly below each other"
    folds = lambda p: ['hide-input' in c.metadata.get('tags', []) for c in p.nb.cells]
    assert [p.name for p in pages if any(a and b for a,b in zip(folds(p), folds(p)[1:]))] == []
