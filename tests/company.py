"""Every combination of our callbacks with schedules and callbacks of fastai, on a tiny text classifier.

    python tests/company.py                 # all of them; what is in the log already is left out
    python tests/company.py --pairwise      # few, in which any two settings meet; these are in `pytest` too

Each runs `lr_find`, a fit, `get_preds`, `export` and `load_learner`. What is checked is told in `check`. The log has a line a combination;
the counts are written to
`nbs/experiments/reliability/company.json` now and then."""
import argparse,io,json,platform,random,tempfile,time,warnings
from contextlib import redirect_stdout
from pathlib import Path
import numpy as np,pandas as pd,torch,fastai
from fastai.text.all import *
from itertools import combinations,product # fastai has another `product`
from fastai.callback.training import GradientAccumulation,GradientClip
from fastai.callback.tracker import EarlyStoppingCallback,SaveModelCallback
import ulmfit_ext
from ulmfit_ext.callback.groups import *
from ulmfit_ext.callback.schedule import *
from ulmfit_ext.callback.unfreeze import *
from ulmfit_ext.callback.bpt3c import *
from ulmfit_ext.callback.precision import *
from ulmfit_ext.callback.steady import *

root,n_epoch,lr_max = Path(__file__).resolve().parent.parent,5,0.02

factors = dict(
    schedule = ['stlr','one_cycle','flat'],
    rates    = ['discriminative',None],
    groups   = ['gradual','chain',None],
    chunks   = ['bpt3c',None],
    bits     = [32,16],
    step     = ['accumulate','clip',None],
    tracker  = ['save','stop',None],
    where    = ['fit','learner']) # who is given the callbacks: the fit, or the learner before `lr_find`

def _is_second(combination): return sum(factors[k].index(o) for k,o in combination.items())%2
every = sorted([dict(zip(factors, o)) for o in product(*factors.values())], key=_is_second) # first each once, in one of the two places

def pairwise():
    "Combinations in which any two settings of two factors meet, each the one with the most pairs that have not met yet"
    def _pairs(combination): return set(combinations(combination.items(), 2))
    left,res = set().union(*map(_pairs, every)),[]
    while left:
        res.append(max(every, key=lambda o: len(_pairs(o) & left)))
        left -= _pairs(res[-1])
    return res

def name(combination): return ' '.join(str(o) for o in combination.values())

# what is run

def make_dls(path):
    "Loaders of 16 texts for training, in four batches, and 8 for validation"
    rng = np.random.default_rng(0)
    def _text(label): return ' '.join(f'w{i}' for i in rng.integers(10*label, 20+10*label, int(rng.integers(1, 60))))
    df = pd.DataFrame(dict(text=[_text(i%2) for i in range(24)], label=['ab'[i%2] for i in range(24)], valid=[i>=16 for i in range(24)]))
    return TextDataLoaders.from_df(df, path, text_col='text', label_col='label', valid_col='valid', bs=4, seq_len=10, seed=0,
                                   num_workers=0, tok_tfm=BaseTokenizer())

def make_learner(dls, path):
    "A classifier of three layer groups"
    set_seed(0)
    config = dict(emb_sz=8, n_hid=12, n_layers=1)
    return text_classifier_learner(dls, AWD_LSTM, seq_len=10, config=config, pretrained=False, path=path)

class Watch(Callback):
    "Notes the rate of each group, and whether it is trained, at every step; and which groups an epoch moved"
    order,run_valid = 99,False
    def __init__(self): self.lrs,self.free,self.moved = [],[],[]
    def weights(self):
        "Of each group, without what is always trained"
        always = self.opt.state
        return [[p.detach().clone() for p in ps if not always[p].get('force_train', False)] for ps in self.opt.param_lists]
    def before_train(self): self.was = self.weights()
    def after_loss(self):
        self.lrs.append([o['lr'] for o in self.opt.hypers])
        self.free.append([any(p.requires_grad for p in ps) for ps in self.opt.param_lists])
    def after_train(self):
        self.moved.append([not all(map(torch.equal, a, b)) for a,b in zip(self.was, self.weights())])

def make_callbacks(c):
    "The callbacks of a combination, in an order of its own"
    made = dict(discriminative=DiscriminativeLR, gradual=GradualUnfreezing, chain=ChainThaw, bpt3c=lambda: BPT3C(10),
                accumulate=lambda: GradientAccumulation(8), clip=lambda: GradientClip(0.1),
                save=SaveModelCallback, stop=lambda: EarlyStoppingCallback(min_delta=0.02, patience=1))
    cbs = [made[c[k]]() for k in ('rates','groups','chunks','step','tracker') if c[k]] + [StopOnNaN()] + [CPUBfloat16()]*(c['bits']==16)
    if c['schedule']=='stlr' and c['where']=='learner': cbs.append(STLR())
    random.Random(name(c)).shuffle(cbs)
    return cbs

def fit(learn, c, cbs):
    if c['schedule']=='one_cycle':                         learn.fit_one_cycle(n_epoch, lr_max, cbs=cbs)
    elif c['schedule']=='stlr' and c['where']=='fit':      learn.fit_stlr(n_epoch, lr_max, cbs=cbs)
    else:                                                  learn.fit(n_epoch, lr_max, cbs=cbs)

# what it should be

def expected(c, n_groups, k):
    "From the pure functions: each group's rate at every step, shape (steps, groups), and the groups that each epoch of `k` steps trains"
    plan = dict(gradual=unfreezing_stages, chain=chain_thaw_stages).get(c['groups'])
    stages = plan(n_groups, n_epoch) if plan else [Stage(0, n_epoch, tuple(range(n_groups)))]
    T = n_epoch*k
    lengths = [(s.stop-s.start)*k for s in stages]
    if c['schedule']=='stlr':        last = [lr_max*slanted_triangular(t, n) for n in lengths for t in range(n)]
    elif c['schedule']=='one_cycle': last = [combined_cos(.25, lr_max/25, lr_max, lr_max/1e5)(t/T) for t in range(T)]
    else:                            last = [lr_max]*T
    factor = 2.6 if c['rates'] else 1.
    return np.array([discriminative_lrs(lr, n_groups, factor) for lr in last]),[s.groups for s in stages for _ in range(s.start, s.stop)]

def traces(learn):
    "All in a learner that a callback could leave behind"
    modules = {n: (type(m).__name__, m.training, sorted(vars(m)), *[len(o) for k,o in sorted(vars(m).items()) if k.endswith('_hooks')])
               for n,m in learn.model.named_modules()}
    hooks = [n for n,p in learn.model.named_parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]
    loaders = [(type(dl).__name__, sorted(vars(dl))) for dl in learn.dls.loaders]
    patched = [f'{type(o).__name__}.{k}' for o in (learn, learn.recorder, learn.recorder.smooth_loss, learn.loss_func, *learn.dls.loaders)
               for k in vars(o) if callable(getattr(type(o), k, None))]
    return dict(callbacks=[type(o).__name__ for o in learn.cbs], running=[o.run for o in learn.cbs], names=sorted(vars(learn)),
                modules=modules, hooks=hooks, loaders=loaders, patched=patched, loss=type(learn.loss_func).__name__,
                autocast=torch.is_autocast_enabled('cpu'), grad=torch.is_grad_enabled())

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]
def same(a, b): return len(a)==len(b) and all(map(torch.equal, a, b))
def trainable(learn): return [p.requires_grad for p in learn.model.parameters()]

def reference(dls, path):
    "The traces of a learner that fastai alone has used"
    learn = make_learner(dls, path)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=8, show_plot=False)
        learn.fit(1)
        learn.get_preds()
    return traces(learn)

# the check

def check_search(learn):
    "`lr_find` tries the rates it always tries, and changes no weight"
    was,free = weights(learn),trainable(learn)
    learn.lr_find(num_it=8, show_plot=False)
    np.testing.assert_allclose(learn.recorder.lrs, [SchedExp(1e-7, 10)(i/8) for i in range(len(learn.recorder.lrs))])
    assert len(learn.recorder.lrs)>=3, 'lr_find ended early'
    assert same(was, weights(learn)), 'lr_find changed weights'
    assert free==trainable(learn), 'lr_find froze or freed something'

def check_fit(c, learn, watch):
    "Rates and frozen groups are those of the pure functions at every step, up to where the fit was ended"
    k,n_groups = len(learn.dls.train),len(learn.opt.hypers)
    lrs,groups = expected(c, n_groups, k)
    n,epochs = len(watch.lrs),len(watch.moved)
    assert n==epochs*k and (epochs==n_epoch or c['tracker']=='stop' and epochs>1), f'{n} steps in {epochs} epochs'
    np.testing.assert_allclose(watch.lrs, lrs[:n], rtol=1e-6)
    for e in range(epochs):
        want = [g in groups[e] for g in range(n_groups)]
        for free in watch.free[e*k:(e+1)*k]: # batch norm in a frozen group is always trained: here only the head has some
            head = groups[e] and (n_groups-1 in groups[e])
            assert free[:-1]==want[:-1] and (free[-1] or not head), f'epoch {e}: {free} trained, {want} expected'
        assert watch.moved[e]==want, f'epoch {e}: {watch.moved[e]} moved, {want} expected'
    assert all(torch.isfinite(p).all() for p in learn.model.parameters()), 'weights are no numbers'
    return n

def check_predictions(c, learn, texts, path):
    "They are probabilities, with `BPT3C` those of each text alone, and the same after `export` and `load_learner`"
    was = weights(learn)
    probs = learn.get_preds()[0]
    assert probs.shape==(8, 2) and torch.allclose(probs.sum(1), torch.ones(8), atol=1e-3), 'no probabilities'
    if learn.cbs.filter(risinstance(BPT3C)) and c['bits']==32:
        assert torch.allclose(learn.get_preds(dl=learn.dls.valid.new(bs=1))[0], probs, atol=1e-6), 'predictions depend on the batch'
    learn.export(path/'export.pkl')
    again = load_learner(path/'export.pkl')
    with again.no_bar(), again.no_logging():
        a,b = [o.get_preds(dl=o.dls.test_dl(texts))[0] for o in (learn,again)]
    assert torch.equal(a, b), 'predicts otherwise once loaded'
    assert same(was, weights(learn)), 'predicting changed weights'

def check(c, dls, path, clean):
    "Run the combination `c`; an assertion fails where something is not as it should be. Returns the number of steps"
    learn,cbs,watch = make_learner(dls, path),make_callbacks(c),Watch()
    with learn.no_bar(), learn.no_logging(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if c['where']=='learner': learn.add_cbs(cbs)
        check_search(learn)
        fit(learn, c, [watch] + cbs*(c['where']=='fit'))
        n = check_fit(c, learn, watch)
        free = trainable(learn)
        check_predictions(c, learn, ['w1 w2 w3', 'w25', 'w30 w31 '*30], path)
        if c['where']=='learner': learn.remove_cbs(cbs)
        learn.get_preds()
    assert free==trainable(learn), 'predicting froze or freed something'
    left = {k: (o, clean[k]) for k,o in traces(learn).items() if o!=clean[k]}
    assert not left, f'left behind: {left}'
    return n

# the command

def versions(): return {**{o.__name__: o.__version__ for o in (ulmfit_ext,fastai,torch)}, 'python':platform.python_version()}

def try_one(c, *args):
    "What there is to note of one combination"
    began,error,n = time.time(),None,0
    try: n = check(c, *args)
    except Exception as e:
        error = f'{type(e).__name__}: {e}'[:2000]
        print(f'{name(c)}: {error}', flush=True)
    return dict(name=name(c), steps=n, error=error, seconds=round(time.time()-began, 2), versions=versions())

def write_counts(done, out):
    "Tell what was found, and write it to the file `out`, if there is one"
    failed = {o['name']: o['error'] for o in done if o['error']}
    counts = dict(combinations=len(every), run=len(done), held=len(done)-len(failed), steps=sum(o['steps'] for o in done), failed=failed,
                  pairwise=len(pairwise()), seconds=round(sum(o['seconds'] for o in done)))
    print(f'{counts["held"]} of {len(done)} combinations hold, of {len(every)} there are; {counts["steps"]:,} steps compared', flush=True)
    if out is None: return len(failed)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(dict(command='python tests/company.py', versions=versions(), factors=factors, **counts), indent=1)+'\n')
    return len(failed)

def main(combinations, log, out):
    lines,known = [json.loads(o) for o in log.read_text().splitlines()] if log.exists() else [],{name(c) for c in every}
    done = {o['name']: o for o in lines if o['versions']==versions() and not o['error'] and o['name'] in known}
    with tempfile.TemporaryDirectory() as d:
        dls = make_dls(d)
        clean = reference(dls, d)
        for i,c in enumerate(combinations):
            if name(c) in done: continue
            done[name(c)] = try_one(c, dls, Path(d), clean)
            with log.open('a') as f: f.write(json.dumps(done[name(c)])+'\n')
            if i%100==99: write_counts(done.values(), out)
    return write_counts(done.values(), out)

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairwise', action='store_true', help='only the few in which any two settings meet')
    log = Path(tempfile.gettempdir())/'ulmfit_ext-company.jsonl'
    parser.add_argument('--log', type=Path, default=log, help='a line for each combination that was run')
    parser.add_argument('--out', type=Path, default=root/'nbs'/'experiments'/'reliability'/'company.json', help='where the counts go')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    raise SystemExit(main(*((pairwise(), args.log, None) if args.pairwise else (every, args.log, args.out)))>0)
