"""Run a notebook in a process of its own. Processes are forked from one that has imported what nearly all notebooks import,
which would take most of their time; elsewhere than on Linux, where forks are not safe or not there, each begins anew"""
import faulthandler,gc,multiprocessing,os,sys,warnings

ctx = multiprocessing.get_context('forkserver' if sys.platform=='linux' else 'spawn')
if sys.platform=='linux': ctx.set_forkserver_preload(['fastai.text.all', 'nbdev.test'])

def environment(folder):
    "What a process is told that is to import the package from `folder`"
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get('PYTHONPATH')]))
    return dict(PYTHONPATH=path, PYTHONWARNINGS='ignore', PYTHONDONTWRITEBYTECODE='1')

def run(nb, flags, copy, log):
    "Run notebook `nb` with the package in `copy`, except cells with `flags`; what it prints goes to file `log`, and a file beside it says that it passed"
    gc.freeze() # what was imported stays
    multiprocessing.set_start_method(None, force=True) # as it is where a user runs it
    warnings.simplefilter('ignore')
    os.environ |= environment(copy)
    os.environ.pop('IN_TEST', None)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    with open(log, 'w') as f:
        for o in 1,2: os.dup2(f.fileno(), o)
    faulthandler.enable()
    from nbdev.test import test_nb
    if not test_nb(nb, skip_flags=flags.split(), basepath=copy)[0]: sys.exit(1)
    log.with_suffix('.passed').touch()

def failure(nb, flags, copy, log, timeout=600):
    "How the notebook fails, with the end of what it printed; '' where it runs from top to bottom"
    p = ctx.Process(target=run, args=(nb, flags, copy, log))
    p.start()
    p.join(timeout)
    if log.with_suffix('.passed').exists(): return '' # an exit code of 0 would say less: a cell may call `os._exit`
    end = f'exit code {p.exitcode}'
    if p.is_alive():
        end = f'it took longer than {timeout} s'
        p.kill()
    return f"{end}\n{log.read_text()[-8000:] if log.exists() else ''}"
