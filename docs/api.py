"What the documentation says of a name: how it is called, what it is for, a table of its parameters, or of the options of a command"
import ast,inspect,re
from enum import EnumMeta
from functools import cached_property
from pathlib import Path
from textwrap import dedent,fill

from fastai.callback.core import event
from nbdev.showdoc import show_doc
from typer.models import ArgumentInfo
from ulmfit_ext import cli   # registers the commands
from ulmfit_ext.terminal import app

commands = {o.callback.__wrapped__: o for o in app.registered_commands}   # by function
events = {o for o in vars(event) if not o.startswith('_')}

def as_code(text):
    "`text` with options and quoted words as code, so that no dash and no quote changes"
    text = re.sub(r"(?<![\w`'-])(--[a-z][\w-]*|'[^'\s`]+'(?!\w))", r'`\1`', text)
    return literal(text)

def literal(text):
    "`text` where a star outside of code is a star, as in shape (texts, 3*emb_sz), and no emphasis"
    return re.sub(r'`[^`]*`|(?<=\w)\*(?=\w)', lambda m: r'\*' if m[0]=='*' else m[0], text)

def table(rows, *titles):
    "`rows` as a table of markdown"
    def _row(cells): return '| ' + ' | '.join(' '.join(o.replace('|', r'\|').split()) for o in cells) + ' |'
    return '\n'.join(['{.parameters}', _row(titles), _row(['---']*len(titles)), *map(_row, rows)])

# Functions and classes

def type_name(o):
    "An annotation, without the modules of its types"
    if o in (inspect.Parameter.empty, type(None)): return ''
    return re.sub(r'\b\w+\.(?=\w)', '', inspect.formatannotation(o).strip("'"))

def value(o):
    "A default as one would type it"
    text = getattr(o, '__name__', None) or repr(o)
    return text if len(text)<=60 else f'{type(o).__name__}(...)'

def parameters(sym, res):
    "The parameters that `show_doc` found; of a class without fastai's events, and without what comes back"
    return {k:v for k,v in res.dm.dm.items() if not (inspect.isclass(sym) and (k in events or k=='return'))}

def call(name, params):
    "How it is called: names and defaults"
    parts,star = [],False
    for k,v in params.items():
        if k=='return': continue
        if v.kind==inspect.Parameter.VAR_POSITIONAL: star = True
        if v.kind==inspect.Parameter.KEYWORD_ONLY and not star: parts.append('*'); star = True
        mark = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}.get(v.kind, '')
        default = '' if v.default is inspect.Parameter.empty else f'={value(v.default)}'
        parts.append(mark + k + default.replace(' ', '\xa0'))   # a line is not broken within a default
    returns = type_name(params['return'].anno) if 'return' in params else ''
    return f"{name}({', '.join(parts)})" + (f' -> {returns}' if returns else '')

def parameter_table(params):
    "A row for each parameter that has a comment, and for what comes back; one for those without. Empty where none has a comment"
    rows,bare = [],[]
    for k,v in params.items():
        parts = [type_name(v.anno)] + [value(v.default)]*(v.default is not inspect.Parameter.empty)
        typ = ' = '.join(filter(None, parts))
        if not v.docment: bare += [f'`{k}`']*(k!='return')
        else: rows.append(['*returns*' if k=='return' else f'`{k}`', f'`{typ}`' if typ else '', as_code(v.docment)])
    if not rows: return ''
    if bare: rows.append(['*others*', '', ', '.join(bare)])
    return table(rows, 'parameter', 'type and default', 'what it is')

def sentences(res):
    "The docstring, its first line in italics; none where it is inherited, as PyTorch's of `forward`"
    if not res.docs or res.docs.startswith(f'{res.nm}('): return ''   # a named tuple's own words are its call
    if inspect.isfunction(res.sym) and not res.sym.__doc__: return ''
    return re.sub(r'^(\s*)(.+)', r'\1*\2*', literal(res.docs), count=1)

def code(line):
    "A call as a block of code, in lines that fit"
    lines = fill(line, 88, subsequent_indent='    ', break_long_words=False, break_on_hyphens=False)
    return '```python\n' + lines.replace('\xa0', ' ') + '\n```'

def signature(sym, name):
    "`name` with the parameters of `sym`, and those parameters"
    if isinstance(sym, (property,cached_property)): return name,{}
    if hasattr(sym, '_fields'): return f"{name}({', '.join(sym._fields)})",{}   # a named tuple
    params = parameters(sym, show_doc(sym))
    return call(name, params),params

def entry(sym, name):
    "How `sym` is called, what it does, and its parameters: blocks of markdown"
    line,params = signature(sym, name)
    blocks = [code('class '*inspect.isclass(sym) + line), sentences(show_doc(sym)), parameter_table(params)]
    return [o for o in blocks if o]

def public_methods(cls):
    "The public methods and properties that `cls` does not inherit, patches among them, by name"
    kinds = classmethod,staticmethod,property,cached_property
    found = {k:v for k,v in vars(cls).items() if k[0]!='_' and (isinstance(v, kinds) or inspect.isfunction(v) or inspect.ismethod(v))}
    return {k: getattr(cls, k) if isinstance(v, (classmethod,staticmethod)) else v for k,v in found.items()}

def own_methods(cls):
    "The names of the public methods that the body of `cls` defines, where others are patches"
    try: body = ast.parse(dedent(inspect.getsource(cls))).body[0].body
    except (OSError,TypeError): return []
    return list(dict.fromkeys(o.name for o in body if isinstance(o, (ast.FunctionDef,ast.AsyncFunctionDef)) and o.name[0]!='_'))

def members(cls, name):
    "For each method that the body of `cls` defines its name and blocks of markdown: in a line, unless its parameters have comments"
    methods = public_methods(cls)
    for k in own_methods(cls):
        nm,o = f'{name}.{k}',methods.get(k)
        if o is None: yield nm,[f'`{nm}`']; continue   # one of several of this name, which fastcore chooses from by type
        line,params = signature(o, nm)
        if parameter_table(params): yield nm,entry(o, nm)
        else: yield nm,[' '.join([f'`{line}`', sentences(show_doc(o))]).replace('\xa0', ' ').strip()]

def inherited(cls):
    "What `cls` has from other classes of this library, as names that become links"
    bases = {o: public_methods(o) for o in cls.__mro__[1:] if o.__module__.startswith('ulmfit_ext')}
    def _names(name, found): return ', '.join(f'`{name}.{k}`' for k in found)
    return [f'From `{o.__name__}`: {_names(o.__name__, found)}' if o.__name__[0]!='_' else f'Also: {_names(cls.__name__, found)}'
            for o,found in bases.items() if found]

# Commands

def option_row(p):
    "The parameter `p` of a command as one types it, its default, and what it is"
    typ,info = p.annotation.__origin__,p.annotation.__metadata__[0]
    choices = '|'.join(o.value for o in typ) if isinstance(typ, EnumMeta) else None
    shown = info.metavar or choices or {int:'N', float:'X', bool:''}.get(typ, 'PATH' if typ is Path else 'TEXT')
    default = '' if p.default in (p.empty, None, False, []) else f'`{p.default}`'
    if isinstance(info, ArgumentInfo): return [f'`{shown}`', default, as_code(info.help)]
    names = [n for o in (info.default, *info.param_decls) for n in o.split('/')]   # Typer keeps the first of an option's names as its default
    shown = f' `{shown}`' if shown else ''
    return [', '.join(f'`{n}`{shown if n.startswith("--") else ""}' for n in names), default, as_code(info.help)]

def command_entry(o):
    "How the command `o` is called, what it does, and its options in tables: blocks of markdown"
    groups = {}
    for p in inspect.signature(o.callback).parameters.values():
        info = p.annotation.__metadata__[0]
        title = 'Argument' if isinstance(info, ArgumentInfo) else info.rich_help_panel or 'Other'
        groups.setdefault(title, []).append(option_row(p))
    examples = o.epilog.split('\n\n')[1:]
    first = '```sh\n' + '\n'.join(examples) + '\n```'
    return [first, sentences(show_doc(o.callback.__wrapped__)), *map(option_table, groups, groups.values())]

def option_table(title, rows):
    "The options of a group; a column of defaults where any has one"
    if any(o[1] for o in rows): return table(rows, title, 'default', 'what it is')
    return table([[name,text] for name,_,text in rows], title, 'what it is')
