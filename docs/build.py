"Build the documentation from the notebooks, every warning an error: `python docs/build.py`"
import ast,inspect,re,sys
from base64 import b64decode
from collections import namedtuple
from configparser import ConfigParser
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from shutil import copytree,ignore_patterns,rmtree
from textwrap import shorten

from fastcore.nbio import mk_cell,write_nb
from nbdev.config import nbpath2html
from nbdev.doclinks import NbdevLookup,nbglob
from nbdev.process import NBProcessor
from nbdev.processors import add_links,add_show_docs,clean_magics,filter_stream_,hide_,hide_line,rm_header_dash,strip_ansi
from sphinx.cmd.build import main as sphinx_build

docs = Path(__file__).resolve().parent
root = docs.parent
sys.path.insert(0, str(docs))
import api
nbs,src,site = root/'nbs',root/'_proc',root/'_docs'/'html'
procs = [add_show_docs, strip_ansi, hide_line, filter_stream_, rm_header_dash, clean_magics, hide_, add_links]

# From the markdown that nbdev and Quarto read to that of MyST

def not_code(f, md):
    "Apply `f` to what of `md` is not fenced code"
    return ''.join(o if o.startswith('```') else f(o) for o in re.split(r'(^```.*?^```)', md, flags=re.M|re.S))

def _div(m):
    "An opening `::: {...}`: a callout becomes an admonition (its title an attribute or a heading), any other div a plain one"
    fence,attrs,heading = m.groups()
    kind,title = re.search(r'callout-(\w+)', attrs),re.search(r'title="(.*?)"', attrs)
    title = title[1] if title else heading
    if not kind: return f'{fence}{{container}}' + (f'\n\n{heading}' if heading else '')
    return f'{fence}{{admonition}} {title}\n:class: {kind[1]}' if title else f'{fence}{{{kind[1]}}}'

def myst(md):
    "Callouts, and attributes of headings and links, as MyST has them"
    md = re.sub(r'^(:{3,}) *(\{\W.*\}|[\w-]+) *$(?:\n+#+ (.+)$)?', _div, md, flags=re.M)   # ::: {.callout-note}
    md = re.sub(r'^(#+ .*?) *\{#([\w.-]+).*\} *$', r'(\2)=\n\1', md, flags=re.M)          # ## Title {#id}
    md = re.sub(r'^(#+ .*?) *\{[.-].*\} *$', r'\1', md, flags=re.M)                       # ## Title {.unnumbered}
    return re.sub(r'(\]\([^)\s]*\))\{[^}]*\}', r'\1', md)                                # [text](url){target="_blank"}

def one_link(md):
    "A name that nbdev made a link, inside of a link, without its own"
    name = r'\[(`[^`]+`)\]\([^)]*\)'
    return re.sub(rf'\[(?:[^\[\]]|{name})*\]\(', lambda m: '[' + re.sub(name, r'\1', m[0][1:]), md)

def plain(md):
    "The last paragraph of `md` without marks and links: what a figure below it shows, where its cell does not say"
    text = re.sub(r'!?\[(.*?)\]\([^)]*\)', r'\1', md.strip().split('\n\n')[-1])
    return shorten(re.sub(r'[`*#|<>$\[\]\\]', '', text), 300, placeholder=' …').rstrip(':')

# From cells to a page

def one_fold(cells):
    "`cells` with folded source that follows folded source in one fold"
    res = []
    for c in cells:
        folded = [o for o in (*res[-1:], c) if 'hide-input' in o.metadata.get('tags', [])]
        if len(folded)==2: res[-1].source += f'\n\n{c.source}'
        else: res.append(c)
    return res

def dots_an_inch(png):
    "The resolution that a PNG says it was drawn at, in its chunk pHYs; 200 where it does not"
    at = png.find(b'pHYs')
    return 200 if at<0 else round(int.from_bytes(png[at+4:at+8], 'big')*0.0254)

Figure = namedtuple('Figure', 'file alt target png')   # file in the gallery, what it shows, where it is drawn; `png`: its bytes, or None where the file is there

class Page:
    "The page of the notebook at `path`: text as it is, what `show_doc` says as text, exported source folded after it"
    def __init__(self, path, lib):
        self.path,self.rel = path,path.relative_to(nbs)
        self.name,self.targets,self.figures = nbpath2html(self.rel).with_suffix('').as_posix(),[],[]
        proc = NBProcessor(path, procs)
        mod = next((c.directives_['default_exp'] for c in proc.nb.cells if 'default_exp' in c.directives_), None)
        self.ns = dict(vars(import_module(f'{lib}.{mod}'))) if mod else {}
        proc.process()
        self.nb,self.nb.metadata = proc.nb,dict(language_info=dict(name='python', pygments_lexer='ipython3'))
        self.nb.cells = one_fold(c for c in self._cells(proc.nb.cells, f'{lib}.{mod}' if mod else '') if c.source.strip())

    def _cells(self, cells, mod):
        shown,source,above = [],[],''   # documentation and source of the exported cell before; the text before
        for c in [*cells, mk_cell('')]:
            if getattr(c, 'has_sd', False):   # nbdev adds them last first, and methods of private classes too
                if not c.source.startswith('show_doc(_'): shown.insert(0, self.doc(c))
                continue
            yield from shown + source
            shown,source,d = [],[],c.directives_
            if c.cell_type=='raw' or d.get('include')=='false': continue
            elif c.cell_type=='markdown':
                above,c.source = c.source,not_code(myst, c.source)
                self.pictures(c)
                if mod and c.source.startswith('# '): c.source,mod = re.sub(r'\A# .+(\n+(>.*\n?)+)?', lambda m: f'{m[0].rstrip()}\n\n`{mod}`\n', c.source),''
                yield c
            elif c.source.startswith('show_doc('): yield self.doc(c)
            elif d.keys() & {'export','exports','exporti'}:
                if 'exporti' not in d: shown = self.made(c)
                source = [self.code(c, 'hide-input')] if self.defines(c) else []
            else:
                self.code(c)
                yield from self.drawn(c, above)
                yield c

    def pictures(self, c):
        "Note the pictures that a text shows"
        for alt,file in re.findall(r'!\[(.*?)\]\(([^):]+)\)', c.source):
            self.figures.append(Figure(f'/{(self.rel.parent/file).as_posix()}', alt, f'/{self.rel.as_posix()}', None))

    def drawn(self, c, above):
        "Note the figures that cell `c` draws, with `fig-alt` or the text `above` as alt text; where there are any, a target to put before it"
        outputs = [o for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
        if not outputs: return
        alt,target = c.directives_.get('fig-alt') or plain(above),f'figure-{self.name}-{c.id}'.lower().replace('/', '-')
        for i,o in enumerate(outputs):
            png = b64decode(''.join(o['data']['image/png']))
            width = int.from_bytes(png[16:20], 'big')*96/dots_an_inch(png)   # its points are points here, too
            o['metadata'] = {'image/png': dict(width=round(width))}
            self.figures.append(Figure(f'/gallery/{target}-{i}.png', alt, f'#{target}', png))
        c.metadata['mystnb'] = dict(image=dict(alt=alt))
        yield mk_cell(f'({target})=', 'markdown')

    def target(self, name):
        "Note that `name` has an entry on this page; the line that makes it a target of links, the first time"
        target = f'{self.name}-{name}'.lower()
        if target in self.targets: return ''
        self.targets.append(target)
        return f'({target})=\n'

    def doc(self, c):
        "An entry for what the cell `c` shows: a heading that links lead to, how it is called, its parameters, its methods"
        sym,name = eval(c.source, dict(self.ns, show_doc=lambda sym, name=None, **kwargs: (sym,name)))
        name = name or ast.unparse(ast.parse(c.source, mode='eval').body.args[0])
        heading = name.replace('__', r'\_\_')
        blocks = [f'{self.target(name)}### {heading}']
        if sym in api.commands: blocks += api.command_entry(api.commands[sym])
        else: blocks += api.entry(sym, name)
        if inspect.isclass(sym):
            blocks += api.inherited(sym)
            for nm,(head,*rest) in api.members(sym, name): blocks += [self.target(nm)+head, *rest]
        return mk_cell(NbdevLookup().linkify('\n\n'.join(blocks)), 'markdown')

    def made(self, c):
        "Entries for the classes that the exported cell `c` makes by assignment, such as named tuples"
        names = [t.id for o in c.parsed_() or [] if isinstance(o, ast.Assign) for t in o.targets if isinstance(t, ast.Name)]
        return [self.doc(mk_cell(f'show_doc({o})')) for o in names if o[0]!='_' and inspect.isclass(self.ns.get(o))]

    def defines(self, c): return any(not type(o).__name__.startswith('Import') for o in c.parsed_() or [])

    def code(self, c, *tags):
        "A code cell; what its directives ask for becomes tags"
        tags = [*tags, *(t for d,t in dict(echo='remove-input', output='remove-output').items() if c.directives_.get(d)=='false')]
        c.metadata = dict(tags=tags) if tags else {}
        return c

    def link(self, pages):
        "Links to the page of a name, which nbdev writes as `/page.html#name`, as links to its target, or its page where it has none"
        def _link(m):
            page = pages.get(m[1])
            if page is None: return m[0]
            target = f'{m[1]}-{m[2]}'
            return f'](#{target})' if target in page.targets else f'](/{page.rel.as_posix()})'
        def _links(md): return not_code(lambda o: re.sub(r'\]\(/([\w./-]+)\.html#([\w.-]+)\)', _link, one_link(o)), md)
        for c in self.nb.cells:
            if c.cell_type=='markdown': c.source = _links(c.source)
            for o in c.get('outputs', []):
                if 'text/markdown' in o.get('data', {}): o['data']['text/markdown'] = _links(''.join(o['data']['text/markdown']))

# The sidebar: a section, and the pages in the order of the patterns that their names match
sections = {
    'Start':                    ['index'],
    'Tutorials':                ['tutorials/ten_lines', 'tutorials/own_csv', 'tutorials/your_language', 'tutorials/*'],
    'The method':               ['00_*', '0[1-4]_*'],
    'API: the whole run':       ['40_*', '42_*', '43_*', '39_*', '41_demo', '41_terminal'],
    'API: using a model':       ['29_*', '3*'],
    'API: in other programs':   ['41_*'],
    'API: texts and data':      ['1*'],
    'API: the three stages':    ['2*'],
    'API: more callbacks':      ['0[5-9]_*'],
    'Experiments':              ['experiments/*'],
    'More':                     ['*']}
order = [(k,pat) for k,pats in sections.items() for pat in pats]

def place_of(page): return next(i for i,(_,pat) in enumerate(order) if fnmatch(page.rel.with_suffix('').as_posix(), pat))

def toctree(pages):
    "The sidebar: the overview, then every page under its section, then all figures"
    tree = {k:[] for k in sections}
    for p in sorted(pages, key=place_of):
        name = p.rel.with_suffix('').as_posix()
        tree[order[place_of(p)][0]].append('Overview <self>' if name=='index' else f'/{name}')
    tree['More'].append('All figures </gallery>')
    parts = ['\n'.join(['```{toctree}', f':caption: {k}', ':hidden:', '', *v, '```']) for k,v in tree.items() if v]
    return '\n\n'.join(parts)

# The search box: a word that people type, and the pages that shall come first
search_words = {
    'train': 'tutorials/ten_lines 40_pipeline 42_cli', 'predict': '40_pipeline 42_cli 32_predict', 'command': '42_cli', 'shell': '42_cli',
    'csv': 'tutorials/own_csv 42_cli 11_text.files', 'excel': '11_text.files', 'table': '11_text.tables', 'labels': '11_text.labels 38_labelling experiments/few_labels',
    'german': 'tutorials/your_language 20_weights', 'language': 'tutorials/your_language 20_weights 22_lm', 'weights': '20_weights', 'install': 'index',
    'gpu': 'index experiments/performance', 'cpu': 'index experiments/performance', 'mail': 'index', 'wrong': '38_labelling',
    'memory': '34_label_file experiments/performance', 'minutes': '40_pipeline 39_progress',
    'confidence': '35_report 32_labelled', 'accuracy': '35_report experiments/few_labels', 'report': '35_report', 'explain': '37_explain',
    'resume': '09_callback.resume 40_pipeline', 'kill': '09_callback.resume', 'save': '34_export 40_pipeline', 'load': '34_export 40_pipeline',
    'export': '34_export 37_runtime', 'onnx': '37_runtime 31_graph', 'serve': '41_integrations.serve 42_cli', 'learner': 'tutorials/any_learner', 'callback': 'tutorials/own_callback tutorials/any_learner', 'fastai': 'tutorials/from_stock'}

def add_words(pages):
    "Put the words of the search box below the titles of their pages, as entries of the index"
    by_name,words = {p.rel.with_suffix('').as_posix(): p for p in pages},{}
    for word,names in search_words.items():
        for name in names.split(): words.setdefault(by_name[name].name, []).append(f'! {word}')
    for p in pages:
        if p.name in words: p.nb.cells.insert(1, mk_cell('```{index} ' + ', '.join(words[p.name]) + '\n```', 'markdown'))

def gallery(pages):
    "The page of all figures in the order of the sidebar, each a link to where it is drawn; writes the pictures"
    (src/'gallery').mkdir()
    parts,seen = ['---\nnosearch: true\n---', '# All figures\n\nEach leads to the cell that draws it.'],set()
    for p in sorted(pages, key=place_of):
        figures = [f for f in p.figures if f.file not in seen]
        if not figures: continue
        title = next(l for c in p.nb.cells for l in c.source.splitlines() if l.startswith('# '))
        parts += [f'#{title}', ':::{container} gallery']
        for f in figures:
            if f.png: (src/f.file[1:]).write_bytes(f.png)
            parts.append(f'[![{f.alt}]({f.file})]({f.target})\n{f.alt}')
        parts.append(':::')
        seen |= {f.file for f in figures}
    return '\n\n'.join(parts)

def make_pages():
    "Write all pages, and the pictures that lie beside the notebooks, to the folder that Sphinx reads"
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    pages = [Page(f, cfg['DEFAULT']['lib_path']) for f in nbglob(nbs, as_path=True).sorted()]
    add_words(pages)
    next(p for p in pages if p.name=='index').nb.cells.append(mk_cell(toctree(pages), 'markdown'))
    for o in src,site.parent: rmtree(o, ignore_errors=True)
    copytree(nbs, src, ignore=ignore_patterns('*.ipynb', '*.md', '.*', 'models'))
    (src/'gallery.md').write_text(gallery(pages), encoding='utf-8')
    for p in pages:
        p.link({p.name:p for p in pages})
        write_nb(p.nb, src/p.rel)

def asks_outside(text):
    "Where a page or a style sheet asks for a script, a style, a font or a picture that lies elsewhere"
    tags = re.findall(r'<(?:script|img|iframe|link)\b[^>]*>', text)
    urls = [u for t in tags if 'rel="canonical"' not in t for u in re.findall(r'(?:src|href)="([^"]*)"', t)]
    urls += re.findall(r'(?:url\(|@import\s*)["\']?([^"\')\s;]+)', text)
    return [u for u in urls if re.match(r'(?:\w+:)?//', u)]

def main():
    make_pages()
    rc = sphinx_build(['-W', '--keep-going', '-q', '-E', '-b', 'html', '-c', str(docs), str(src), str(site)])
    files = [p for p in site.rglob('*') if p.suffix in ('.html','.css')]
    outside = {f'{p.relative_to(site)} asks for {u}' for p in files for u in asks_outside(p.read_text(encoding='utf-8'))}
    raise SystemExit('\n'.join(sorted(outside)) or rc)

if __name__=='__main__': main()
