"The project as a whole: its notebooks run and are clean, and what is made from them is up to date"
import ast,builtins,json,os,re,runpy,subprocess,sys
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path
from shutil import copy2
from types import SimpleNamespace
import pytest
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
    path = os.pathsep.join(filter(None, [str(cwd), os.environ.get('PYTHONPATH')]))
    env = {**os.environ, 'PYTHONPATH':path, 'PYTHONWARNINGS':'ignore', 'PYTHONDONTWRITEBYTECODE':'1'}
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

run_nb = '''
import sys
from nbdev.test import test_nb
flags,root,fn = sys.argv[1:]
sys.exit(not test_nb(fn, skip_flags=flags.split(), basepath=root)[0])
'''

@pytest.fixture(scope='session')
def runs(request, tmp_path_factory):
    "All notebooks that were asked for, begun in a copy of the project, one for each core at a time"
    asked = [o.callspec.params['nb'] for o in request.session.items if o.name.startswith('test_notebook[')]
    copy,flags = copy_project(tmp_path_factory.mktemp('notebooks')),get_config(root).tst_flags
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    before = contents(copy/'nbs')
    with ThreadPoolExecutor(min(cores, 8)) as pool:
        yield SimpleNamespace(copy=copy, before=before, res={nb:pool.submit(python, run_nb, flags, copy, copy/nb, cwd=copy) for nb in asked})
        pool.shutdown(cancel_futures=True)

@pytest.mark.parametrize('nb', to_run, ids=[p.relative_to('nbs').with_suffix('').as_posix() for p in to_run])
def test_notebook(nb, runs):
    "The notebook runs from top to bottom; cells marked `slow`, `notest` or `eval: false` are left out"
    res = runs.res[nb].result()
    if res.returncode: pytest.fail(f'{nb} fails:\n{res.stdout[-2000:]}\n{res.stderr[-6000:]}', pytrace=False)

def test_notebooks_leave_nothing_behind(runs):
    "Notebooks write to temporary folders, not beside themselves"
    for o in runs.res.values(): o.result()
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

def test_readme_imports_what_it_uses():
    "Each Python example, typed as it is, knows its names; `learn` is the reader's"
    for code in re.findall('```python\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S):
        known = dict(learn=None)
        exec('\n'.join(re.findall('^(?:from|import) .*', code, re.M)), known)
        names = [o for o in ast.walk(ast.parse(code)) if isinstance(o, ast.Name)]
        known |= {o.id: None for o in names if isinstance(o.ctx, ast.Store)}
        assert not {o.id for o in names} - set(known) - set(dir(builtins)), code

def test_version():
    "`settings.ini` and the package agree on the version"
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    assert re.search(r'^__version__ = "(.*)"', (root/'ulmfit_ext'/'__init__.py').read_text(), flags=re.M)[1] == cfg['DEFAULT']['version']

def test_ci_runs_the_readme():
    "The command that the README gives for the tests is the one that CI runs"
    cmd = re.search(r'^pip install -e .*pytest$', (root/'README.md').read_text(encoding='utf-8'), flags=re.M)[0]
    assert cmd in (root/'.ci'/'run').read_text()

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
