"The project as a whole: its notebooks run and are clean, and what is made from them is up to date"
import ast,builtins,json,os,re,runpy,subprocess,sys
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path
from shutil import copy2
from types import SimpleNamespace
import one_notebook,pytest
from nbdev.config import get_config

root = Path(__file__).resolve().parent.parent
made = {'.git','text','_proc','_docs','build','dist','models','.ulmfit_cache','.pytest_cache','.ipynb_checkpoints','__pycache__'}

def project_files():
    "What belongs to the project: the files git knows or would add; without git, all but what is made along the way"
    try:
        res = subprocess.run(['git','ls-files','-z','--cached','--others','--exclude-standard'], cwd=root, capture_output=True, check=True)
        fs = [Path(o) for o in res.stdout.decode().split('\0') if o]
    except (OSError,subprocess.CalledProcessError):
        fs = [p.relative_to(root) for p in root.rglob('*')]
        fs = [p for p in fs if not any(o in made or o.endswith('.egg-info') or o.startswith('.venv') for o in p.parts)]
    return sorted({p for p in fs if (root/p).is_file()})

files = project_files()
nbs = [p for p in files if p.parts[0]=='nbs' and p.suffix=='.ipynb']
to_run = [p for p in nbs if p.parent/'.notest' not in files]

def copy_project(dest):
    "A copy of the project in `dest`, for what writes"
    for p in files:
        (dest/p).parent.mkdir(parents=True, exist_ok=True)
        copy2(root/p, dest/p)
    return dest

def python(code, *args, cwd, timeout=600):
    "Run `code` in a process of its own that imports the package from `cwd`"
    env = {**os.environ, **one_notebook.environment(cwd)}
    env.pop('IN_TEST', None)   # while it is set nbdev exports nothing
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=timeout)

def contents(path):
    "The bytes of each file under `path`"
    return {p.relative_to(path).as_posix():p.read_bytes() for p in path.rglob('*') if p.is_file() and '__pycache__' not in p.parts}

def kept(path):
    "The bytes of each file of the project under `path`, as in `contents`"
    return {p.relative_to(path).as_posix():(root/p).read_bytes() for p in files if p.parts[0]==path}

def different(a, b): return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))

# The notebooks run

@pytest.fixture(scope='session')
def runs(request, tmp_path_factory):
    "All notebooks that were asked for, begun in a copy of the project, one for each core at a time that no other tests run on"
    asked = [o.callspec.params['nb'] for o in request.session.items if o.name.startswith('test_notebook[')]
    copy,logs,flags = copy_project(tmp_path_factory.mktemp('notebooks')),tmp_path_factory.mktemp('logs'),get_config(root).tst_flags
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    cores //= int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
    before = contents(copy/'nbs')
    with ThreadPoolExecutor(min(max(cores, 1), 8)) as pool:
        failures = {nb: pool.submit(one_notebook.failure, copy/nb, flags, copy, logs/'_'.join(nb.parts)) for nb in asked}
        yield SimpleNamespace(copy=copy, before=before, failures=failures)
        pool.shutdown(cancel_futures=True)

@pytest.mark.parametrize('nb', to_run, ids=[p.relative_to('nbs').with_suffix('').as_posix() for p in to_run])
def test_notebook(nb, runs):
    "The notebook runs from top to bottom; cells marked `slow`, `notest` or `eval: false` are left out"
    if said := runs.failures[nb].result(): pytest.fail(f'{nb} fails: {said}', pytrace=False)

def test_notebooks_leave_nothing_behind(runs):
    "Notebooks write to temporary folders, not beside themselves"
    for o in runs.failures.values(): o.result()
    assert different(contents(runs.copy/'nbs'), runs.before) == []

# What is made from them is up to date

def test_export(tmp_path):
    "Every module is what `nbdev-export` makes of its notebook, and there is none without a notebook"
    copy = copy_project(tmp_path/'project')
    for p in (copy/'ulmfit_ext').rglob('*.py'):
        if p != copy/'ulmfit_ext'/'__init__.py': p.unlink()   # it holds the version
    res = python('from nbdev.doclinks import nbdev_export; nbdev_export()', cwd=copy)
    assert res.returncode==0, res.stderr
    assert different(contents(copy/'ulmfit_ext'), contents(root/'ulmfit_ext')) == [], 'run `nbdev-export`, and remove modules that have no notebook'
    assert different(contents(copy/'nbs'), kept('nbs')) == [], 'run `nbdev-export`'

def test_clean(tmp_path):
    "Notebooks hold no metadata or counts that change from run to run"
    copy = copy_project(tmp_path/'project')
    res = python('from nbdev.clean import nbdev_clean; nbdev_clean()', cwd=copy)
    assert res.returncode==0, res.stderr
    assert different(contents(copy/'nbs'), kept('nbs')) == [], 'run `nbdev-clean`'

def test_readme():
    "`README.md` is what `docs/readme.py` makes of `nbs/index.ipynb`"
    readme = runpy.run_path(str(root/'docs'/'readme.py'))['readme']
    assert (root/'README.md').read_text(encoding='utf-8') == readme(), 'run `python docs/readme.py`'

def undefined_names(code, known=()):
    "Names that `code` uses and neither its imports, nor itself, nor `known` define"
    names = dict.fromkeys(known)
    exec('\n'.join(re.findall('^(?:from|import) .*', code, re.M)), names)
    used = [o for o in ast.walk(ast.parse(code)) if isinstance(o, ast.Name)]
    defined = {o.id for o in used if isinstance(o.ctx, ast.Store)} | set(names) | set(dir(builtins))
    return {o.id for o in used} - defined

def test_readme_imports_what_it_uses():
    "Each Python example, typed as it is, knows its names; `learn` is the reader's"
    examples = re.findall('```python\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S)
    assert examples and {code: found for code in examples if (found := undefined_names(code, ['learn']))} == {}

def test_one_import_is_enough(tmp_path):
    "Each cell of 43_all that begins with `from ulmfit_ext.all import *` runs alone"
    cells = json.loads((root/'nbs'/'43_all.ipynb').read_text(encoding='utf-8'))['cells']
    codes = [''.join(c['source']) for c in cells if c['cell_type']=='code']
    codes = [o for o in codes if o.startswith('from ulmfit_ext.all import *')]
    assert codes
    for code in codes:
        res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, 'PYTHONPATH':str(root)})
        assert res.returncode==0, f'{code}\n{res.stderr}'

def test_version():
    "`settings.ini`, the package and the citation agree on the version"
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    version = cfg['DEFAULT']['version']
    assert re.search(r'^__version__ = "(.*)"', (root/'ulmfit_ext'/'__init__.py').read_text(), flags=re.M)[1] == version
    assert re.search(r'^version: (.*)$', (root/'CITATION.cff').read_text(), flags=re.M)[1] == version

def test_ci_runs_the_readme():
    "The command that the README gives for the tests is the one that CI runs"
    cmd = re.search(r'^pip install -e .*pytest$', (root/'README.md').read_text(encoding='utf-8'), flags=re.M)[0]
    assert cmd in (root/'.ci'/'run').read_text()

# The house rules: CONTRIBUTING.md tells them

max_cell,max_module,max_line,long_line = 45,465,140,110 # lines of an exported cell and of a module, characters of a line
max_words = 35 # of a sentence; most have fewer than 25
longer_modules = set() # what may be longer than `max_module`, such as 'cli.py': none so far

def no(wrong):
    "Fail with every item of `wrong`, one a line"
    if wrong: pytest.fail('\n'.join(wrong), pytrace=False)

modules = {}   # path of a module under `ulmfit_ext`, without its suffix and with dots: its file
for p in files:
    if p.parts[0]=='ulmfit_ext' and p.suffix=='.py' and p.name not in ('__init__.py','_modidx.py'):
        modules['.'.join(p.relative_to('ulmfit_ext').with_suffix('').parts)] = p

def our_imports(mod):
    "What the module `mod` imports of ours: for each import the module and the name, anywhere in the file"
    package = ['ulmfit_ext', *mod.split('.')][:-1]
    for o in ast.walk(ast.parse((root/modules[mod]).read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import): found = [(a.name, None) for a in o.names]
        elif isinstance(o, ast.ImportFrom):
            base = package[:len(package)-o.level+1] if o.level else []
            path = '.'.join([*base, *filter(None, [o.module])])
            found = [(path, a.name) for a in o.names]
        else: continue
        for path,name in found:
            if path=='ulmfit_ext' and name in modules: path,name = f'ulmfit_ext.{name}',None   # from . import core
            if path.startswith('ulmfit_ext.'): yield path.removeprefix('ulmfit_ext.'),name

def test_no_private_name_is_imported():
    "What begins with an underscore stays in its module"
    no([f'{m} imports {name} from {o}' for m in modules for o,name in our_imports(m) if name and name.startswith('_')])

def notebook_order():
    "The modules in the order of their notebooks, `core` before all others"
    order = ['core']
    for p in nbs:
        text = (root/p).read_text(encoding='utf-8')
        if found := re.search(r'#\| ?default_exp ([\w.]+)', text): order.append(found[1])
    return list(dict.fromkeys(order))

def test_imports_go_one_way():
    "A module imports only modules whose notebooks come before its own"
    order = notebook_order()
    assert set(order) == set(modules)
    place = {m:i for i,m in enumerate(order)}
    no([f'{m} imports {o}, which comes later' for m in modules for o,_ in our_imports(m) if place.get(o, -1)>=place[m]])

def test_the_papers_callbacks_stand_alone():
    "The four callbacks of the paper import fastai, and of ours nothing but each other"
    four = ['callback.groups', 'callback.schedule', 'callback.unfreeze', 'callback.bpt3c']
    no([f'{m} imports {o}' for m in four for o,_ in our_imports(m) if o not in four])

def lines_of(p): return (root/p).read_text(encoding='utf-8').splitlines()

def test_lines_are_short():
    "No line is above the limit, and of a file at most one in ten is long"
    wrong = []
    for p in [*modules.values(), *(p for p in files if p.parts[0]=='benchmarks' and p.suffix=='.py')]:
        sizes = [len(l) for l in lines_of(p)]
        long  = sum(n>long_line for n in sizes)
        wrong += [f'{p}:{i}: {n} characters' for i,n in enumerate(sizes, 1) if n>max_line]
        if long>len(sizes)/10: wrong.append(f'{p}: {long} of {len(sizes)} lines above {long_line} characters')
    no(wrong)

def test_modules_are_short():
    "A module can be read in a sitting"
    n = {p.relative_to('ulmfit_ext').as_posix(): len(lines_of(p)) for p in modules.values()}
    no([f'{p}: {k} lines' for p,k in n.items() if k>max_module and p not in longer_modules])

def test_exported_cells_are_short():
    "A cell that goes to the module is one thing, under a sentence of its own"
    wrong = []
    for p in nbs:
        for c in json.loads((root/p).read_text(encoding='utf-8'))['cells']:
            lines = ''.join(c['source']).splitlines()
            exported = c['cell_type']=='code' and any(re.match(r'#\| ?export[si]?\s*$', l) for l in lines)
            n = sum(not l.startswith('#|') for l in lines)
            if exported and n>max_cell: wrong.append(f"{p} cell {c['id']}: {n} lines, begins with {lines[1][:60]!r}")
    no(wrong)

def sentences(md):
    "The sentences of a text in markdown, without code, formulas, tables, headings and where links lead"
    md = re.sub(r'^```.*?^```|\$\$.*?\$\$', '', md, flags=re.M|re.S)
    md = re.sub(r'^(\||#| {4}).*', '', md, flags=re.M)
    md = re.sub(r'!?\[(.*?)\]\([^)]*\)', r'\1', md)
    for part in re.split(r'\n\s*\n|^\s*(?:[-*>]|\d+\.) ', md, flags=re.M): yield from filter(None, re.split(r'(?<=[.!?:;])\s+', part.strip()))

def test_sentences_are_short():
    "The notebooks can be read aloud"
    assert list(sentences('# A b\n\nOne [two](x.ipynb). Three:\n\n- four; five\n\n```\nsix\n```')) == ['One two.','Three:','four;','five']
    wrong = []
    for p in nbs:
        for c in json.loads((root/p).read_text(encoding='utf-8'))['cells']:
            if c['cell_type']!='markdown': continue
            long = [o for o in sentences(''.join(c['source'])) if len(o.split())>max_words]
            wrong += [f"{p} cell {c['id']}: {len(o.split())} words: {' '.join(o.split())[:80]}" for o in long]
    no(wrong)

# Nothing of the machine it was made on is left in it

machine_path = re.compile('/(work|root|tmp)/')

def texts(p):
    "Name and text of each part of file `p`: itself or, for a notebook, each cell and each output that is text"
    if p.suffix!='.ipynb':
        yield str(p),(root/p).read_bytes().decode('utf-8', 'replace')
        return
    for c in json.loads((root/p).read_text(encoding='utf-8'))['cells']:
        where = f"{p} cell {c['id']}"
        yield where,''.join(c['source'])
        for o in c.get('outputs', []):
            data = {k:v for k,v in o.get('data', {}).items() if k.startswith('text/') or 'svg' in k or 'json' in k}
            for v in [o.get('text', ''), o.get('traceback', ''), *data.values()]:
                yield f'{where} output',''.join(v) if isinstance(v, (str,list)) else json.dumps(v)

def test_no_machine_paths():
    "No file, no cell and no output names a folder of the machine it was made on"
    assert [f'{where}: {line.strip()[:120]}' for p in files for where,text in texts(p) for line in text.splitlines() if machine_path.search(line)] == []

def test_no_errors_in_outputs():
    "Notebooks were saved after a run without errors"
    outputs = [(p, c['id'], o) for p in nbs for c in json.loads((root/p).read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])]
    assert [f'{p} cell {i}' for p,i,o in outputs if o['output_type']=='error'] == []
    assert [where for p in nbs for where,text in texts(p) if where.endswith('output') and ('Traceback (most' in text or 'site-packages' in text)] == []
