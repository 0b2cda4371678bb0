"""The three stages on several processes and on one with the batch as many times as large, and how far apart they end.

    python tests/ranks.py                # runs both and prints what is compared; --out FILE.json keeps it
    python tests/ranks.py --seeds 3      # and trains on the sample texts with dropout, some seeds on one process and on two
    python tests/ranks.py --gpu          # both on one GPU

    torchrun --standalone --nproc-per-node 2 tests/ranks.py --part FOLDER --rows 8      # what each process runs
"""
import argparse,json,math,os,subprocess,sys,tempfile,time,warnings
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root/'tests'),str(root)]
size = dict(emb_sz=8, n_hid=12, n_layers=2)

def run(folder, n, timeout=300, script=__file__, args=(), env={}):
    "Run `script` on `n` processes, as `torchrun` does; what it printed, and how it ended"
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(n)] if n>1 else []
    cmd = [sys.executable, *launch, str(script), *args]
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONWARNINGS':'ignore', 'CUDA_VISIBLE_DEVICES':'', **env}
    for k in ('RANK','WORLD_SIZE'): env.pop(k, None)
    return subprocess.run(cmd, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)

def part(folder, rows):
    "What one process does; its results are written to `folder`"
    import numpy as np, pandas as pd, torch
    from fastai.text.all import Callback,F1Score,ProgressCallback,accuracy,defaults,rank_distrib,set_seed
    from made_up import make_df
    from ulmfit_ext.all import ULMFiT,finetune_lm,get_model,lm_learner,n_ranks,pretrain_lm,ulmfit_classifier,ulmfit_dls
    warnings.simplefilter('ignore')
    defaults.callbacks = [o for o in defaults.callbacks if o is not ProgressCallback]
    rank,found,began = rank_distrib(),{},time.time()
    def keep(name, learn, **more):
        "Note the losses of a fit and the weights it ended with"
        torch.save(get_model(learn.model).state_dict(), folder/f'{name}-{rank}.pt')
        found[name] = dict(values=[list(map(float, o)) for o in learn.recorder.values])
        found[name].update(more)
    df  = make_df(120, longest=40)
    dls = ulmfit_dls(df, path=folder, seed=0, bs=rows, bptt=10, min_freq=1, valid_pct=0.2, progress=False)

    for name,drop in ('lm',0.), ('lm, dropout',0.5):
        set_seed(0)
        lm = finetune_lm(dls.with_split(dls.train_idx, dls.valid_idx), config=size, n_epoch=2, lr_max=0.003, drop_mult=drop)
        keep(name, lm)
    set_seed(0)
    keep('pretraining', pretrain_lm(list(df.text), folder/'lm', size, n_epoch=1, part=800, lr_max=0.01, drop_mult=0., bs=rows, bptt=10,
                                    workers=0, valid_pct=0.1))
    for name,drop,reg in ('classifier',0.,0.), ('classifier, dropout',0.5,1.):
        set_seed(0)
        here  = dls.with_split(dls.train_idx, dls.valid_idx)
        encoder = lm_learner(here.lm_fwd, size)
        learn = ulmfit_classifier(here.clas_fwd, encoder=encoder, drop_mult=drop, ps=[drop/5], bptt=10, alpha=2*reg, beta=reg,
                                  metrics=[accuracy, F1Score(average='macro')])
        if not drop: learn.model.double() # batch norm makes much of what differs by rounding
        frozen = sum(not p.requires_grad for p in learn.model.parameters())
        with learn.no_logging(): learn.fit_gradual(4, 0.02)
        steps,rates = len(learn.recorder.losses),[float(o) for o in learn.recorder.lrs]
        values = [list(map(float, o)) for o in learn.recorder.values]
        last = list(map(float, learn.validate()))
        probs,targs = learn.get_preds()
        right = [here.classes.index(here.y[i]) for i in here.valid_idx]
        keep(name, learn, values=values, steps=steps, rates=rates, frozen=frozen, validate=last, probs=probs.tolist(), in_order=targs.tolist()==right)
    with learn.no_logging():
        with learn.distrib_ctx(): learn.fit(1, 1e-3) # fastai's way
    keep('distrib_ctx', learn)

    class NaN(Callback):
        order,seen = -1,0
        def after_loss(self):
            if rank: self.learn.loss = self.learn.loss*math.nan
        def after_batch(self): self.seen += math.isnan(self.learn.loss)
    with learn.no_logging(): learn.fit(1, 0., cbs=(nan := NaN()))
    found['losses that are no number'] = nan.seen
    keep("fastai's DDP", fit_with_ddp(rank, n_ranks()))
    ulmfit = ULMFiT.from_df(df, folder/'ulmfit', pretrained=None, config=size, bs=rows, bptt=10, seed=0, min_freq=1, directions='bwd')
    ulmfit.fit(dict(n_epoch=1), dict(n_epoch=2, recipe='gradual'), refit=False)
    keep('ULMFiT, language model', ulmfit.lms['bwd'])
    keep('ULMFiT, classifier', ulmfit.learns['bwd'])
    if not rank: found['accuracy'] = float(ulmfit.validate().accuracy['all'])
    found.update(n_ranks=n_ranks(), seconds=time.time()-began)
    (folder/f'found-{rank}.json').write_text(json.dumps(found))

def part_of_sample(folder, rows, seed):
    "Language model and classifier of the sample texts, with dropout; the lowest losses on the validation set"
    from ulmfit_ext.all import finetune_lm,rank_distrib,sample_table,set_seed,ulmfit_classifier,ulmfit_dls,defaults,ProgressCallback
    warnings.simplefilter('ignore')
    defaults.callbacks = [o for o in defaults.callbacks if o is not ProgressCallback]
    dls = ulmfit_dls(sample_table(), path=folder, seed=0, bs=rows, bptt=70)
    set_seed(seed)
    lm = finetune_lm(dls, config=dict(emb_sz=64, n_hid=128, n_layers=2), n_epoch=4, lr_max=0.01, drop_mult=0.5)
    learn = ulmfit_classifier(dls.clas_fwd, encoder=lm, drop_mult=0.5)
    with learn.no_logging(): learn.fit_gradual(6, 0.02)
    best = dict(lm=min(float(o[1]) for o in lm.recorder.values), classifier=min(float(o[1]) for o in learn.recorder.values))
    if not rank_distrib(): (folder/'found.json').write_text(json.dumps(best))

def compare_sample(folder, seeds, n=2, rows=16):
    "The losses with dropout of some seeds, on one process and on `n`"
    found = {}
    for k in (1,n):
        for seed in range(seeds):
            here = folder/f'sample-{k}-{seed}'
            here.mkdir()
            res = run(folder, k, 3600, args=['--part', str(here), '--rows', str(rows//k), '--seed', str(seed)])
            if res.returncode: raise RuntimeError(res.stderr[-6000:])
            for name,loss in json.loads((here/'found.json').read_text()).items():
                found.setdefault(name, {}).setdefault(f'{k} process{"es"*(k>1)}', []).append(round(loss, 4))
    return found

def fit_with_ddp(rank, n):
    "Gradual unfreezing of a learner that is not ours, wrapped as fastai's `DistributedTrainer` does; each process has its own data"
    from fastai.text.all import Callback,DataLoaders,F,L,Learner,nn,params,set_seed
    from torch.nn.parallel import DistributedDataParallel
    import torch, ulmfit_ext.all
    class Wrap(Callback):
        order = 11
        def before_fit(self): self.learn.model = DistributedDataParallel(self.model)
        def after_fit(self):  self.learn.model = self.model.module
    set_seed(0)
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    items = [(torch.randn(4), torch.randn(4)) for _ in range(64)][rank::n]
    learn = Learner(DataLoaders.from_dsets(items, items, bs=8, num_workers=0), model, loss_func=F.mse_loss, splitter=lambda m: L(*m).map(params))
    learn.freeze()
    with learn.no_logging(): learn.fit_gradual(3, 0.01, cbs=Wrap() if n>1 else None)
    return learn

def apart(a, b):
    "The largest difference of two sets of weights"
    import torch
    one,two = [torch.load(o, weights_only=True) for o in (a,b)]
    assert one.keys()==two.keys()
    return max(float((one[k].double()-two[k].double()).abs().max()) for k in one if one[k].is_floating_point())

def compare(folder, n=2, rows=16, timeout=600, env={}):
    "Train on one process and on `n`; for each stage how far apart the ranks and the two runs are"
    runs = {}
    for k in (1,n):
        (folder/str(k)).mkdir()
        res = run(folder, k, timeout, args=['--part', str(folder/str(k)), '--rows', str(rows//k)], env=env)
        if res.returncode: raise RuntimeError(f'{k} processes ended with {res.returncode}:\n{res.stdout[-3000:]}\n{res.stderr[-6000:]}')
        runs[k] = [json.loads((folder/str(k)/f'found-{r}.json').read_text()) for r in range(k)],res.stdout
    (one,),several = runs[1][0],runs[n][0]
    table = {}
    for name,found in one.items():
        if not isinstance(found, dict): continue
        there = several[0][name]
        paths = [folder/str(n)/f'{name}-{r}.pt' for r in range(n)]
        row = dict(ranks_apart=max(apart(paths[0], p) for p in paths[1:]),
                   weights_apart=apart(folder/'1'/f'{name}-0.pt', paths[0]), valid_loss=[found['values'][-1][1],there['values'][-1][1]],
                   losses_apart=max(abs(a-b) for o,p in zip(found['values'],there['values']) for a,b in zip(o[:2],p[:2]))) # of training and validation
        table[name] = row
    return table,one,several,runs[n][1]

def write(found, file):
    if file is None: return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1)+'\n')

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', type=Path, help='run one part, and write what it finds to this folder')
    parser.add_argument('--rows', type=int, default=16, help='rows in a batch of one process')
    parser.add_argument('--seed', type=int, help='with --part: train on the sample texts')
    parser.add_argument('--seeds', type=int, default=0, help='how many seeds to train on the sample texts')
    parser.add_argument('--gpu', action='store_true', help='all processes on the first GPU')
    parser.add_argument('--out', type=Path, help='JSON file for what is found')
    args = parser.parse_args()
    if args.part:
        if args.seed is None: part(args.part, args.rows)
        else: part_of_sample(args.part, args.rows, args.seed)
        sys.exit()
    with tempfile.TemporaryDirectory() as tmp:
        table,*_ = compare(Path(tmp), env=dict(CUDA_VISIBLE_DEVICES='0') if args.gpu else {})
        for name,o in table.items():
            print(f"{name:20} ranks {o['ranks_apart']:.1e}  weights {o['weights_apart']:.1e}  losses {o['losses_apart']:.1e}  "
                  f"valid {o['valid_loss'][0]:.4f} {o['valid_loss'][1]:.4f}", flush=True)
        found = dict(stages=table)
        write(found, args.out)
        if args.seeds: found['with dropout'] = compare_sample(Path(tmp), args.seeds)
    for name,o in found.get('with dropout', {}).items(): print(f'sample texts, {name}: {o}')
    write(found, args.out)
