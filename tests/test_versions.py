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
    "Calls in `code` that read or write text in the encoding of the machine"
    for o in ast.walk(ast.parse(code)):
        if not isinstance(o, ast.Call): continue
        source = ast.unparse(o)
        opens  = re.match(r'(?!os\.)(.*\.)?open\(', source) and not re.search(r"""(, |\(|mode=)'[rwax+]*b|devnull|^(gzip|tarfile|zipfile)\.""", source)
        if (opens or re.match(r'.*\.(read|write)_text\(', ast.unparse(o.func)+'(')) and not any(k.arg=='encoding' for k in o.keywords): yield source

def test_text_is_utf8_on_every_system():
    wrong = ['open(f)', "open(f, 'w')", "f.open('a')", 'f.read_text()', "(a / 'b').write_text(t)"]
    right = ["open(f, 'rb')", "f.open('wb')", "open(f, encoding='utf-8')", 'os.open(f, os.O_RDWR)', "f.write_text(t, encoding='utf-8')", 'gzip.open(f)']
    assert [*unknown_encoding('; '.join(right+wrong))]==wrong
    assert {p.name: found for p in modules if (found := [*unknown_encoding(p.read_text(encoding='utf-8'))])}=={}

_elsewhere = '''
import os,sys
from pathlib import Path
import fastai.text.all,filelock,matplotlib.pyplot,multiprocessing.popen_spawn_posix,multiprocessing.resource_tracker,sklearn.linear_model,spacy.lang.en # which look at the system
import numpy as np
from test_versions import posix_only
for o in posix_only:
    if o.startswith('os.') and o[3:].islower() and o!='os.sendfile': vars(os).pop(o[3:], None)  # Python's copies need that one here, locks the constants
    if '.' not in o: sys.modules[o] = None
sys.platform = 'darwin'
proc = Path('/proc/self')
def in_use():
    "Files that are open or mapped into memory"
    yield from (l.split(None, 5)[5].strip() for l in (proc/'maps').read_text(encoding='utf-8').splitlines() if '/' in l)
    yield from (os.readlink(o) for o in (proc/'fd').iterdir() if o.is_symlink())
def like_windows(event, args):
    if event not in ('os.rename','os.remove'): return
    paths = [os.path.realpath(o) for o in args[:2] if isinstance(o, (str,os.PathLike))]
    held  = [o for o in in_use() for p in paths if o==p or o.startswith(p+os.sep)]
    if held: raise PermissionError(13, 'in use, which Windows does not allow', held[0])
if proc.exists(): sys.addaudithook(like_windows)

from typer.testing import CliRunner
from ulmfit_ext.cli import app
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.text.corpus import tokenize_corpus
from ulmfit_ext.text.tokens import TextProcessor
def run(*args):
    res = CliRunner().invoke(app, [str(o) for o in args], catch_exceptions=False)
    assert res.exit_code==0, res.output
texts = [f'the {w} film, number {i}' for i in range(30) for w in ('good','bad')]
corpus = tokenize_corpus(texts, path='.', workers=2, progress=False, block_size=300) # two processes
processor = TextProcessor(fastai.text.all.make_vocab(corpus.counts(), 1))
file = corpus.numericalize(processor).filename
np.save(file, np.zeros(3, np.uint16))                   # a map of the wrong size, which is made again
assert len(corpus.numericalize(processor))==corpus.offs[-1]
Path('films.csv').write_text('text,label\\n'+'\\n'.join(f'"{t}",{t.split()[1]}' for t in texts), encoding='utf-8')
run(*'train films.csv --out new --size tiny --directions fwd --lm-epochs 1 --epochs 1 --bs 8 --min-freq 1'.split())
load_ulmfit('new/model').save('new/model')              # in its own place
for _ in range(2): run(*'predict new/model films.csv --out answers.csv'.split())
print(len(Path('answers.csv').read_text(encoding='utf-8').splitlines()))
'''

def test_runs_as_on_other_systems(tmp_path):
    "Two processes that tokenize, training, saving and answers, where what only some systems have is gone, and no file can be moved or removed while it is in use"
    path = os.pathsep.join([str(root), str(root/'tests')])
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', _elsewhere], cwd=tmp_path, env={**os.environ, 'PYTHONPATH':path},
                         capture_output=True, text=True, timeout=900)
    assert res.stdout.split()[-1:]==['61'], res.stdout+res.stderr
