"""A disk that is full, at every place where something is written.

    python tests/full_disk.py train pretrain predict save     # each job, with the disk full from its 1st file on, from its 2nd, …
    python tests/full_disk.py --every 5 train                 # every fifth
    python tests/full_disk.py --tmpfs train                   # a real file system of memory, larger from run to run (Linux; needs the right to mount, or `unshare -rm`)
    python tests/full_disk.py --memory                        # how much 50,000 texts of new words leave in memory

A run with a full disk has to end in an error that names a file in its folder, or go on without what could not be written. It leaves no temporary file, and nothing half-written.
Then there is room again: the same call goes on, and what it makes is what an undisturbed run makes, to the bit. Each run is a process forked from this one. What is counted are files opened
for writing and folders made; from the n-th on each ends in `OSError: [Errno 28]`, which does not name the file."""
import argparse,contextlib,errno,io,json,os,shutil,subprocess,sys,tempfile,traceback,warnings
from pathlib import Path

for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': os.environ.setdefault(k, '1')
os.environ.setdefault('MPLBACKEND', 'Agg')
warnings.simplefilter('ignore')
import torch
from safetensors.torch import load_file
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.lm import pretrain_lm
from ulmfit_ext.pipeline import ULMFiT
from made_up import make_df,make_texts

tiny = dict(emb_sz=8, n_hid=12, n_layers=2)

# Jobs: each works in a folder and returns what it has made

def train(folder):
    u = ULMFiT.from_df(make_df(), folder/'u', None, 'fwd', tiny, seed=1, bs=8, min_freq=1)
    u.fit_lm(1).fit_classifier(1, recipe='together')
    return load_ulmfit(folder/'u'/'model').get_preds(texts=make_texts(5))[0].tolist()

def pretrain(folder):
    pretrain_lm(make_texts(60), folder/'lm', tiny, bs=4, bptt=10, workers=1, part=200)
    return {k: v.tolist() for k,v in load_file(folder/'lm'/'fwd.safetensors').items()}

def predict(folder):
    from ulmfit_ext.text.write import table_writer
    with table_writer(folder/'answers.csv') as write: write(model().predict_df(make_texts(5)))
    return (folder/'answers.csv').read_text()

def save(folder):
    path = model().save(folder/'model')
    return load_ulmfit(path).get_preds(texts=make_texts(5))[0].tolist()

made = {}
def model():
    if not made:
        with tempfile.TemporaryDirectory() as tmp:
            train(Path(tmp))
            made['model'] = load_ulmfit(Path(tmp)/'u'/'model')
    return made['model']

jobs = dict(train=train, pretrain=pretrain, predict=predict, save=save)

# The disk

class FullDisk:
    "From the `n`-th time on nothing can be written to `folder`"
    def __init__(self, folder, n): self.folder,self.n,self.seen = str(folder.resolve()),n,0
    def __call__(self, event, args):
        if event=='open': path,writes = args[0],args[2] & (os.O_WRONLY|os.O_RDWR|os.O_CREAT)
        elif event=='os.mkdir': path,writes = args[0],True
        else: return
        if not writes or not isinstance(path, (str,bytes)) or not os.path.realpath(os.fsdecode(path)).startswith(self.folder): return
        if event=='os.mkdir' and os.path.isdir(path): return # as `exist_ok` asks
        self.seen += 1
        if self.seen>=self.n: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def in_a_fork(f, *args):
    "What `f` returns in a forked process, or the error: its class, its message and its traceback"
    r,w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): res = dict(made=f(*args))
        except BaseException as e: res = dict(error=type(e).__name__, said=str(e), ours=isinstance(e, (UlmfitError,OSError)), trace=traceback.format_exc()[-3000:])
        with os.fdopen(w, 'w') as out: json.dump(res, out)
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f: said = f.read()
    os.waitpid(pid, 0)
    return json.loads(said) if said else dict(error='died', said='', ours=False, trace='')

def with_full_disk(job, folder, n):
    disk = FullDisk(folder, n)
    sys.addaudithook(disk)
    return [jobs[job](folder), disk.seen]

def leftovers(folder):
    "Temporary files, and files that are not whole"
    res = [str(o) for o in folder.rglob('.*') if o.name not in ('.ulmfit_cache','.checkpoints')]
    for o in folder.rglob('*.json'):
        try: json.loads(o.read_text())
        except ValueError: res.append(str(o))
    for o in folder.rglob('*.safetensors'):
        try: load_file(o)
        except Exception: res.append(str(o))
    return res

def faults_of(job, res, folder, want):
    "What is wrong after a run that ended in `res` on a full disk, once there is room again"
    faults = []
    if 'error' in res and not (res['ours'] and str(folder) in res['said']): faults.append(f"{res['error']}: {res['said']}\n{res['trace']}")
    if left := leftovers(folder): faults.append(f'left behind: {left}')
    again = in_a_fork(jobs[job], folder)
    if again.get('made')!=want: faults.append(f"what was made afterwards is something else: {str(again)[:2000]}")
    return faults

def campaign(job, every=1, most=10_000):
    "Run `job` with the disk full from the n-th write on, for every n. Gives rows of n, how it ended, faults"
    with tempfile.TemporaryDirectory() as tmp:
        if job in ('predict','save'): model()
        want,n,rows = in_a_fork(jobs[job], Path(tmp)/'want').get('made'),1,[]
        while n<most:
            folder = Path(tmp)/f'{n}'
            folder.mkdir()
            res = in_a_fork(with_full_disk, job, folder, n)
            if 'made' in res and res['made'][1]<n: break
            end = f"{res['error']}: {res['said']}" if 'error' in res else 'went on without'
            rows.append((n, end.replace(str(folder), '…'), faults_of(job, res, folder, want)))
            print(f'{job} {n}: {rows[-1][1][:150]}', *rows[-1][2], sep='\n   FAULT ', flush=True)
            shutil.rmtree(folder)
            n += every
        return rows

def tmpfs_campaign(job, every=1):
    "The same in a file system of 4 KB, 8 KB, …; it grows when the run has ended, and then the run goes on"
    place,rows = Path(tempfile.mkdtemp()),[]
    with tempfile.TemporaryDirectory() as tmp:
        if job in ('predict','save'): model()
        want,size = in_a_fork(jobs[job], Path(tmp)/'want').get('made'),2**12
        while True:
            subprocess.run(['mount','-t','tmpfs','-o',f'size={size}','tmpfs',place], check=True)
            try:
                res = in_a_fork(jobs[job], place/'x')
                subprocess.run(['mount','-o','remount,size=64m',place], check=True)
                end = f"{res['error']}: {res['said']}" if 'error' in res else 'went on without, or had room'
                rows.append((size, end, faults_of(job, res, place/'x', want)))
                print(f'{job} {size>>10} KB: {rows[-1][1][:150]}', *rows[-1][2], sep='\n   FAULT ', flush=True)
                if 'made' in res: break
            finally: subprocess.run(['umount', place])
            size += 2**12*every
    place.rmdir()
    return rows

def memory(n=50_000):
    "Megabytes that are left of `n` texts of new words"
    sys.path.insert(0, str(Path(__file__).parent))
    from test_load import code,env
    with tempfile.TemporaryDirectory() as tmp:
        train(Path(tmp))
        res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(Path(tmp)/'u'/'model'), str(Path(__file__).parent), str(n)], capture_output=True, text=True, env=env)
    return float(res.stdout.split()[-1])

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('jobs', nargs='*', help=f'some of {", ".join(jobs)}; none: all')
    p.add_argument('--every', type=int, default=1)
    p.add_argument('--tmpfs', action='store_true')
    p.add_argument('--memory', action='store_true')
    a = p.parse_args()
    if unknown := set(a.jobs)-set(jobs): p.error(f'there is no job {unknown.pop()!r}')
    if a.memory:
        print(f'{memory():.1f} MB after 50,000 texts')
        sys.exit()
    rows = [o for job in a.jobs or jobs for o in (tmpfs_campaign(job, a.every) if a.tmpfs else campaign(job, a.every))]
    bad  = sum(bool(o[2]) for o in rows)
    print(f'{len(rows)} places where the disk was full, {bad} faults')
    sys.exit(bool(bad))
