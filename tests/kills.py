"""Kill trainings at random moments, start them again, and compare what they end in with a training that nothing stopped.

    python tests/kills.py                             # 100 kills of each stage and direction; about half an hour
    python tests/kills.py --kills 5 --only lm         # some of it
    python tests/kills.py --out nbs/experiments/reliability/kills.json

A warm parent imports the library once. Each process that trains is a fork of it, with one thread and with random numbers of its own, which must not matter.
It is sent SIGKILL at a moment that is drawn evenly over the time that the training computes, up to five times in a row; then one process finishes. A state is written
every three batches, so that many kills fall into the writing of it. Where `--out` is there already, it goes on from there.
"""
import argparse,contextlib,hashlib,io,json,os,platform,random,signal,sys,tempfile,time,warnings
for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': os.environ[k] = '1'
os.environ['MPLBACKEND'] = 'Agg'
from functools import cache
from pathlib import Path
import fastai,numpy as np,pandas as pd,torch
from ulmfit_ext.all import *
import ulmfit_ext

every = '3 batches'
size  = dict(emb_sz=12, n_hid=16, n_layers=2)
words = 'the a cat dog bird sat ran flew on under mat tree red green big small and then it was very good bad'.split()

def table(n=60, seed=0):
    "Made-up texts; the label is whether they are good"
    rng = np.random.default_rng(seed)
    texts = [' '.join(rng.choice(words, rng.integers(10, 40))) for _ in range(n)]
    return pd.DataFrame(dict(text=texts, label=['yes' if ' good' in o else 'no' for o in texts]))

# The trainings. Each writes to a folder

def pretrain(folder, side, base):
    pretrain_lm(table(150).text.tolist(), folder, size, backwards=side=='bwd', n_epoch=1, part=1200, bs=8, bptt=10, valid_pct=0.1, workers=1)

def _ulmfit(folder, side, base, **kwargs):
    return ULMFiT.from_df(table(), folder, pretrained=base, directions=side, bs=8, bptt=10, min_freq=1, **kwargs)

def lm(folder, side, base):
    "At a rate that is too high, so that it begins again at a lower one"
    _ulmfit(folder, side, base, words=False).fit_lm(3, lr_max=2.)

def classifier(folder, side, base):
    "Gradual unfreezing, with activations that are computed again"
    _ulmfit(folder, side, base, words=False).fit_classifier(5, recipe='gradual', checkpoint=True)

def train(folder, side, base):
    "What `ulmfit train` does: both stages, trials of recipes, counted words"
    _ulmfit(folder, side, base).fit(dict(n_epoch=1), dict(n_epoch=2))

stages = dict(pretrain=pretrain, lm=lm, classifier=classifier, train=train)
combinations = [(stage,side) for stage in stages for side in ('fwd','bwd')]

# Processes

def count_batches(file):
    "Note every batch that is trained on, so that a kill cannot lose it"
    fd,one_batch = os.open(file, os.O_CREAT|os.O_APPEND|os.O_WRONLY),Learner.one_batch
    def _counted(self, i, b):
        if self.training and not self.lock.locked(): os.write(fd, b'.')
        return one_batch(self, i, b)
    Learner.one_batch = _counted

def start(stage, side, folder, base):
    "The id of a process that trains"
    if pid := os.fork(): return pid
    try:
        log = os.open(folder.with_suffix('.log'), os.O_CREAT|os.O_APPEND|os.O_WRONLY)
        for fd in (1,2): os.dup2(log, fd)
        for seed in (random.seed,np.random.seed,torch.manual_seed): seed(int.from_bytes(os.urandom(4), 'big'))
        count_batches(folder.with_suffix('.batches'))
        warnings.simplefilter('ignore')
        stages[stage](folder, side, base)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

def finish(pid):
    "The exit code of a process, and for how long it computed"
    _,status,usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status),usage.ru_utime+usage.ru_stime

def computed(pid, began):
    "For how long a process has computed, in seconds: on a busy machine less than the time that has passed, which says it elsewhere than on Linux"
    try: return int(Path(f'/proc/{pid}/schedstat').read_text().split()[0])/1e9
    except OSError: return time.time()-began

def kill_after(pid, seconds):
    "Kill the process after it has computed for so long. Was it killed, before it was at its end?"
    began = time.time()
    while computed(pid, began)<seconds:
        if os.waitpid(pid, os.WNOHANG)[0]: return False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return finish(pid)[0]==-signal.SIGKILL

# What they end in

def made(folder):
    "Hashes of all weights, and of what was found on the way, without times"
    res = {}
    for o in sorted(folder.rglob('*')):
        name = str(o.relative_to(folder))
        if o.suffix=='.safetensors': res[name] = hashlib.sha256(o.read_bytes()).hexdigest()
        elif o.suffix=='.png': res[name] = 'there'
        elif o.name=='settings.json': res[name] = o.read_text()
        elif o.name=='config.json':
            directions = json.loads(o.read_text()).get('directions', {})
            res[name] = {k: {n: v for n,v in d.items() if n not in ('minutes','tokens_per_second')} for k,d in directions.items()}
    return res

def left_over(folder): return [str(o.relative_to(folder)) for o in folder.rglob('.*') if o.name not in ('.lock','.ulmfit_cache')]

def n_batches(folder): return folder.with_suffix('.batches').stat().st_size

@cache
def whole(stage, side, home, base):
    "A training that nothing stops: what it makes, for how long it computes, how many batches it has"
    folder = home/f'whole-{stage}-{side}'
    code,seconds = finish(start(stage, side, folder, base))
    if code: raise SystemExit(folder.with_suffix('.log').read_text())
    return made(folder),seconds,n_batches(folder)

def killed(stage, side, home, base, seconds, rng):
    "A training that is killed up to five times: how often, what it makes, what is left over, how many batches it took"
    folder,n = home/f'{stage}-{side}-{rng.getrandbits(32):08x}',0
    for _ in range(rng.randint(1, 5)):
        if not kill_after(start(stage, side, folder, base), rng.uniform(0, seconds)): break
        n += 1
    if finish(start(stage, side, folder, base))[0]: raise SystemExit(folder.with_suffix('.log').read_text())
    return n,made(folder),left_over(folder),n_batches(folder)

def campaign(stage, side, home, base, wanted, row, rng, save):
    "Kill until there were `wanted` kills; `row` is what there was before, and is added to"
    if row['kills']>=wanted: return
    want,seconds,batches = whole(stage, side, home, base)
    row.update(batches=batches)
    while row['kills']<wanted:
        n,got,left,done = killed(stage, side, home, base, seconds, rng)
        row['kills'] += n
        row['runs'] += 1
        row['identical'] += got==want
        row['left_over'] += bool(left)
        row['batches_again'] += done-batches
        if got!=want or left: print(f'{stage} {side}: differs in {[k for k in want.keys() | got.keys() if want.get(k)!=got.get(k)]}, left over: {left}', flush=True)
        save()
    print(f"{stage} {side}: {row['kills']} kills in {row['runs']} runs, {row['identical']} of them identical; "
          f"{row['batches_again']/max(row['kills'], 1):.1f} of {batches} batches again after a kill", flush=True)

def versions():
    return dict(python=platform.python_version(), torch=torch.__version__, fastai=fastai.__version__, ulmfit_ext=ulmfit_ext.__version__,
                numpy=np.__version__, system=f'{platform.system()} {platform.machine()}')

def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--kills', type=int, default=100, help='of each stage and direction')
    ap.add_argument('--only', help='stages, with commas between them')
    ap.add_argument('--seed', type=int, default=None, help='of the moments; not given: others each time')
    ap.add_argument('--out', type=Path, help='JSON file of the numbers')
    o = ap.parse_args()
    torch.set_num_threads(1)
    defaults.callbacks = [cb for cb in defaults.callbacks if cb is not ProgressCallback]
    Resume.interval = every
    rng,said = random.Random(o.seed),{}
    if o.out and o.out.exists(): said = json.loads(o.out.read_text())['rows']
    def save():
        if o.out: o.out.write_text(json.dumps(dict(versions=versions(), every=every, rows=said), indent=1)+'\n')
    with tempfile.TemporaryDirectory() as tmp:
        home,base = Path(tmp),Path(tmp)/'base'
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for side in ('fwd','bwd'): pretrain(base, side, None) # which also brings in what is imported late
        for wanted in sorted({min(n, o.kills) for n in (10, 30, o.kills)}): # some of everything first
            for stage,side in combinations:
                if o.only and stage not in o.only.split(','): continue
                row = said.setdefault(f'{stage} {side}', dict(kills=0, runs=0, identical=0, left_over=0, batches_again=0))
                campaign(stage, side, home, base, wanted, row, rng, save)
    sys.exit(not all(r['identical']==r['runs'] and not r['left_over'] for r in said.values()))

if __name__=='__main__': main()
