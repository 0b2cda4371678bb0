"Which versions of Python and of packages are meant to do, and that nothing only one system has is taken for granted"
import ast,os,re,subprocess,sys
from pathlib import Path
import pytest,yaml
from lowest import lowest,read_settings,requirements

root = Path(__file__).resolve().parent.parent
modules = sorted((root/'ulmfit_ext').rglob('*.py'))
pythons = read_settings()['tested_pythons'].split()

# Versions

def test_every_requirement_has_a_lowest_version():
    "and the constraints that an environment of lowest versions is made with hold it"
    assert {re.split('[=<>;]', o)[0]: o.split(';')[0] for o in map(lowest, requirements())}.keys() >= {'fastai','torch','numpy','pytest'}
    assert lowest('fastai>=2.8.12,<2.9')=='fastai==2.8.12' and lowest('nbdev==3.3.26')=='nbdev==3.3.26'
    assert lowest('sphinx>=9,<10;python_version>="3.11"')=='sphinx==9;python_version>="3.11"'
    for o in ('numpy', 'numpy<3'):
        with pytest.raises(ValueError, match='no lowest version: numpy'): lowest(o)

def test_the_package_says_so(monkeypatch):
    "What an archive says of Python and of requirements is what `settings.ini` says"
    said = {}
    monkeypatch.setattr('setuptools.setup', lambda **kwargs: said.update(kwargs))
    exec(compile((root/'setup.py').read_text(encoding='utf-8'), root/'setup.py', 'exec'), {'__file__':str(root/'setup.py')})
    assert said['python_requires']=='>='+pythons[0]=='>='+read_settings()['min_python']
    assert said['classifiers']==[f'Programming Language :: Python :: {o}' for o in pythons]
    assert sorted({*said['install_requires'], *sum(said['extras_require'].values(), [])})==sorted(set(requirements()))

def test_the_workflow_runs_them_all():
    "Every Python on three systems, and the lowest versions on the lowest Python"
    steps = yaml.safe_load((root/'.github'/'workflows'/'test.yml').read_text(encoding='utf-8'))['jobs']['test']
    matrix = steps['strategy']['matrix']
    assert matrix['python']==pythons and [o.split('-')[0] for o in matrix['os']]==['ubuntu','macos','windows']
    assert [(o['python'], o['options']) for o in matrix['include']]==[(pythons[0], '-c lowest.txt')]
    assert sum('lowest.py > lowest.txt' in o.get('run', '') for o in steps['steps'])==1

# Systems

posix_only = {f'{mod}.{o}' for mod,names in dict(
    os="""chown fchown lchown chroot copy_file_range fdatasync fork forkpty fstatvfs statvfs getegid geteuid getgid getgroups getloadavg
          getpgid getpgrp getpriority getuid killpg lockf memfd_create mkfifo mknod nice openpty pidfd_open pipe2 posix_fadvise
          posix_fallocate pread preadv pwrite pwritev readv writev register_at_fork sched_getaffinity sched_setaffinity sched_yield
          sendfile setpgid setpriority setsid sync sysconf ttyname uname wait wait3 wait4 waitid WNOHANG WIFSIGNALED
          O_CLOEXEC O_DIRECTORY O_DSYNC O_NOFOLLOW O_NONBLOCK O_SYNC""",
    signal="""SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2
              alarm getitimer pause pthread_kill pthread_sigmask setitimer sigwait""").items() for o in names.split()}
posix_only |= {'fcntl','grp','pty','pwd','resource','syslog','termios'}

def names_used(tree):
    "Each `module.name` that is read, and each module that is imported, with its line"
    for o in ast.walk(tree):
        if isinstance(o, ast.Attribute) and isinstance(o.value, ast.Name): yield f'{o.value.id}.{o.attr}',o.lineno
        if isinstance(o, ast.Import): yield from ((a.name, o.lineno) for a in o.names)
        if isinstance(o, ast.ImportFrom) and o.level==0:
            yield from ((n, o.lineno) for a in o.names for n in (o.module, f'{o.module}.{a.name}'))

def taken_for_granted(code):
    "Lines of `code` that use what Windows does not have, without asking for it on the line or the one before"
    lines = code.splitlines()
    asks  = re.compile(r'hasattr|getattr|sys\.platform|os\.name')
    return [lines[i-1].strip() for name,i in names_used(ast.parse(code))
            if name in posix_only and not any(asks.search(l) for l in lines[max(0, i-2):i])]

def test_what_not_every_system_has_is_asked_for():
    assert taken_for_granted('import os\nx = os.pread(f, 1, 2)')==['x = os.pread(f, 1, 2)']
    assert taken_for_granted('import fcntl\nfrom os import fork')==['import fcntl', 'from os import fork']
    assert taken_for_granted("n = os.cpu_count()\nif hasattr(os, 'fork'):\n    os.fork()")==[]
    assert {p.name: found for p in modules if (found := taken_for_granted(p.read_text(encoding='utf-8')))}=={}

def unknown_encoding(code):
    "Lines of `code` that read or write text in the encoding of the machine"
    for o in ast.walk(ast.parse(code)):
        if not isinstance(o, ast.Call): continue
        name = getattr(o.func, 'attr', getattr(o.func, 'id', ''))
        mode = [a.value for a in [*o.args, *(k.value for k in o.keywords if k.arg=='mode')] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        text = name in ('read_text','write_text') or name=='open' and not any('b' in m for m in mode if re.fullmatch(r'[rwaxbt+]+', m))
        if text and not any(k.arg=='encoding' for k in o.keywords): yield ast.unparse(o)

def test_text_is_utf8_on_every_system():
    assert [*unknown_encoding("open(f); f.open('w'); f.read_text(); open(f, 'rb'); open(f, encoding='utf-8')")]==['open(f)', "f.open('w')", 'f.read_text()']
    assert {p.name: found for p in modules if (found := [*unknown_encoding(p.read_text(encoding='utf-8'))])}=={}

_elsewhere = '''
import os,sys
from pathlib import Path
import fastai.text.all,matplotlib.pyplot,multiprocessing.popen_spawn_posix,multiprocessing.resource_tracker,sklearn.linear_model,spacy.lang.en # which look at the system
from test_versions import posix_only
for o in posix_only:
    if o.startswith('os.') and o!='os.WNOHANG': vars(os).pop(o[3:], None)  # Python's processes need that one here, and signals
    if '.' not in o: sys.modules[o] = None
sys.platform = 'darwin'
from typer.testing import CliRunner
from ulmfit_ext.cli import app
from ulmfit_ext.text.corpus import tokenize_corpus
def run(*args):
    res = CliRunner().invoke(app, [str(o) for o in args], catch_exceptions=False)
    assert res.exit_code==0, res.output
    return res.stdout
texts = [f'the {w} film, number {i}' for i in range(30) for w in ('good','bad')]
assert len(tokenize_corpus(texts, path='.', workers=2, progress=False, block_size=300))==60 # two processes
Path('films.csv').write_text('text,label\\n'+'\\n'.join(f'"{t}",{t.split()[1]}' for t in texts), encoding='utf-8')
run(*'train films.csv --out new --size tiny --directions fwd --lm-epochs 1 --epochs 1 --bs 8 --min-freq 1'.split())
print(len(run(*'predict new/model films.csv'.split()).splitlines()))
'''

def test_runs_without_what_only_some_systems_have(tmp_path):
    "Two processes that tokenize, training and answers, in an interpreter that has lost those functions and calls itself macOS"
    path = os.pathsep.join([str(root), str(root/'tests')])
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', _elsewhere], cwd=tmp_path, env={**os.environ, 'PYTHONPATH':path},
                         capture_output=True, text=True, timeout=300)
    assert res.stdout.split()[-1:]==['61'], res.stdout+res.stderr
