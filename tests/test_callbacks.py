"The paper's callbacks from outside: on text, vision and tabular learners, and together with fastai's own."
import pickle,subprocess,sys,warnings
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import *
from fastai.callback.training import GradientAccumulation,GradientClip
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import SaveModelCallback,EarlyStoppingCallback,ReduceLROnPlateau
from fastai.tabular.all import TabularDataLoaders,tabular_learner,Categorify,Normalize
from ulmfit_ext.callback.groups import *
from ulmfit_ext.callback.schedule import *
from ulmfit_ext.callback.unfreeze import *
from ulmfit_ext.callback.bpt3c import *
from ulmfit_ext.callback.precision import *

def synthetic(path='.', n=96, valid=40, **kwargs):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g)
    items = list(zip(x, (x[:,0]*x[:,1]>0).long()))
    dls = DataLoaders(DataLoader(items, bs=16, num_workers=0), DataLoader(items[:valid], bs=16, num_workers=0), path=path)
    model = nn.Sequential(nn.Linear(4,8), nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8,8)), nn.Linear(8,2))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), splitter=lambda m: L(m[0],m[1],m[2]).map(params), path=path, **kwargs)

def text(path='.', **kwargs):
    rng = np.random.default_rng(0)
    df = pd.DataFrame([(' '.join(f'w{j}' for j in rng.integers(0, 30, int(rng.integers(1,60)))), 'ab'[i%2]) for i in range(48)], columns=['text','label'])
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', bs=8, seq_len=10, seed=0, num_workers=0, tok_tfm=BaseTokenizer(), path=path)
    return text_classifier_learner(dls, AWD_LSTM, seq_len=10, config=dict(emb_sz=8, n_hid=12, n_layers=3), pretrained=False, path=path, **kwargs)

def vision(path='.', **kwargs):
    g = torch.Generator().manual_seed(0)
    items = [(torch.randn(1,8,8,generator=g)+(i%2), tensor(i%2)) for i in range(64)]
    dls = DataLoaders(*[DataLoader(items, bs=16, num_workers=0)]*2, path=path)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1,4,3), nn.BatchNorm2d(4), nn.ReLU()), nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(4,2)))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), splitter=lambda m: L(m[0],m[1]).map(params), path=path, **kwargs)

def tabular(path='.', **kwargs):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=rng.choice(list('xyz'), 80), b=rng.normal(size=80)))
    df['y'] = np.where((df.a=='x')^(df.b>0), 'yes', 'no')
    dls = TabularDataLoaders.from_df(df, procs=[Categorify, Normalize], cat_names=['a'], cont_names=['b'], y_names='y', bs=16, valid_idx=list(range(20)), path=path)
    return tabular_learner(dls, layers=[8], splitter=lambda m: L(nn.ModuleList([m.embeds, m.bn_cont]), m.layers).map(params), path=path, **kwargs)

kinds = dict(synthetic=synthetic, text=text, vision=vision, tabular=tabular)

@pytest.fixture(params=list(kinds))
def learn(request, tmp_path):
    learn = kinds[request.param](path=tmp_path)
    with learn.no_bar(), learn.no_logging(): yield learn

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

# each alone, on any learner

def test_stlr(learn):
    learn.fit_stlr(3, 0.01)
    T = 3*len(learn.dls.train)
    np.testing.assert_allclose(learn.recorder.hps['lr'], [0.01*slanted_triangular(t,T) for t in range(T)])

@pytest.mark.parametrize('fit', ['fit', 'fit_one_cycle', 'fit_flat_cos', 'fit_stlr'])
def test_discriminative_under_any_scheduler(learn, fit):
    getattr(learn, fit)(2, 0.01, cbs=[DiscriminativeLR(3.), GroupRecorder()] if fit!='fit_stlr' else DiscriminativeLR(3.))
    lrs = np.array([o[0] for o in learn.recorder.groups])
    np.testing.assert_allclose(lrs[:,1:], lrs[:,:-1]*3)

@pytest.mark.parametrize('cb,plan', [(GradualUnfreezing, unfreezing_stages), (ChainThaw, chain_thaw_stages)])
def test_unfreezing(learn, cb, plan):
    learn.create_opt()
    n = len(learn.opt.hypers)
    learn.fit(n+2, 0.01, cbs=[cb(), GroupRecorder()])
    free,k = np.array([o[1] for o in learn.recorder.groups]),len(learn.dls.train)
    for s in plan(n, n+2):
        for e in range(s.start, s.stop): assert set(np.flatnonzero(free[e*k])) == set(s.groups)

def test_show_groups(learn):
    df = learn.show_groups()
    assert list(df.columns)==['group','layers','parameters','trainable','lr']
    assert df.parameters.sum()==sum(p.numel() for p in learn.model.parameters())

# a frozen parameter does not move

def drift(learn, freeze):
    "How far the first group moves while frozen, after it was trained"
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.1)
        before = [p.detach().clone() for p in learn.opt.param_lists[0]]
        freeze(learn)
        learn.fit(1, 0.1, wd=0.1, cbs=[])
    return max((a-b).abs().max().item() for a,b in zip(before, learn.opt.param_lists[0]))

def test_frozen_does_not_move(tmp_path):
    assert drift(synthetic(tmp_path), lambda l: l.freeze_to(1)) > 1e-4          # plain fastai: weight decay moves it
    assert drift(synthetic(tmp_path), lambda l: train_groups(l.opt, [1,2])) == 0

def test_frozen_by_hand_does_not_move(tmp_path):
    learn = synthetic(tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.1)
        learn.freeze_to(1)
        before = [p.detach().clone() for p in learn.opt.param_lists[0]]
        learn.fit_stlr(1, 0.1, wd=0.1)
    for a,b in zip(before, learn.opt.param_lists[0], strict=True): assert torch.equal(a, b)

def test_frozen_does_not_move_torch_optimizer(tmp_path):
    opt = partial(OptimWrapper, opt=torch.optim.AdamW)
    assert drift(synthetic(tmp_path, opt_func=opt), lambda l: train_groups(l.opt, [1,2])) == 0

def test_moments_survive_unfreezing(tmp_path):
    learn = synthetic(tmp_path)
    class Steps(Callback):
        seen = []
        def before_train(self): self.seen.append(self.opt.state[self.learn.model[2].weight].get('step', 0))
    with learn.no_bar(), learn.no_logging(): learn.fit_gradual(4, 0.01, cbs=Steps())
    assert Steps.seen == [6*i for i in range(4)]                               # fastai's freeze_to would set it back to 0

# together with fastai's own callbacks, in any order

others = dict(accumulate=lambda: GradientAccumulation(32), clip=lambda: GradientClip(0.1), save=lambda: SaveModelCallback(),
              stop=lambda: EarlyStoppingCallback(patience=99), amp=lambda: MixedPrecision('bf16'))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('other', list(others))
@pytest.mark.parametrize('kind', ['synthetic', 'text'])
def test_compose(kind, other, first, tmp_path):
    learn = kinds[kind](tmp_path)
    ours = [STLR(), GradualUnfreezing(), DiscriminativeLR(), GroupRecorder()] + ([BPT3C(10)] if kind=='text' else [])
    cbs = L(ours if first else ours[::-1])
    cbs = L(others[other]()) + cbs if first else cbs + L(others[other]())
    learn.create_opt()
    n = len(learn.opt.hypers)
    with learn.no_bar(), learn.no_logging(): learn.fit(n+1, 0.01, cbs=cbs)
    k = len(learn.dls.train)
    want = [0.01*slanted_triangular(t, (s.stop-s.start)*k) for s in unfreezing_stages(n, n+1) for t in range((s.stop-s.start)*k)]
    np.testing.assert_allclose(learn.recorder.hps['lr'], want)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())

@pytest.mark.parametrize('tracker', [SaveModelCallback, partial(EarlyStoppingCallback, patience=9), partial(ReduceLROnPlateau, patience=9)])
def test_resume_with_trackers(tracker, tmp_path):
    learn = synthetic(tmp_path)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(IndexError): learn.fit(4, start_epoch=2, cbs=tracker())
        learn.fit_stlr(4, 0.01, start_epoch=2, cbs=tracker())
        learn.fit_gradual(4, 0.01, start_epoch=2, cbs=tracker())
    assert len(learn.recorder.values)==2

def test_resume_equals_whole(tmp_path):
    "Stop after two epochs of five and go on: the same rates, stages and weights as in one go"
    def run(*spans):
        set_seed(0)
        learn = synthetic(tmp_path)
        for start,stop in spans:
            class Stop(Callback):
                def after_epoch(self):
                    if self.epoch+1==stop: raise CancelFitException
            with learn.no_bar(), learn.no_logging(): learn.fit_gradual(5, 0.01, start_epoch=start, cbs=Stop())
        return weights(learn)
    for a,b in zip(run((0,5)), run((0,2),(2,5))): assert torch.equal(a,b)

def test_lr_find_is_left_alone(tmp_path):
    learn = text(tmp_path, cbs=[STLR(), GradualUnfreezing(), BPT3C(10)])
    before = weights(learn)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=8, show_plot=False)
    assert all(torch.equal(a,b) for a,b in zip(before, weights(learn)))
    np.testing.assert_allclose(learn.recorder.lrs[:3], [SchedExp(1e-7,10)(i/8) for i in range(3)])

def test_validate_changes_nothing(tmp_path):
    learn = text(tmp_path, cbs=[STLR(), GradualUnfreezing(), DiscriminativeLR(), BPT3C(10)])
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 0.01)
        before = learn.show_groups()
        learn.validate(); learn.get_preds()
    pd.testing.assert_frame_equal(before, learn.show_groups())

def test_nested_validate(tmp_path):
    class Nosy(Callback):
        def after_epoch(self):
            if is_fitting(self.learn): self.learn.validate()
    learn = synthetic(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_gradual(4, 0.01, cbs=Nosy())
    k = len(learn.dls.train)
    want = [0.01*slanted_triangular(t, (s.stop-s.start)*k) for s in unfreezing_stages(3,4) for t in range((s.stop-s.start)*k)]
    np.testing.assert_allclose(learn.recorder.hps['lr'], want)

def test_export(tmp_path):
    learn = text(tmp_path, cbs=[STLR(), GradualUnfreezing(), DiscriminativeLR(), BPT3C(10)])
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.01)
    learn.export()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = load_learner(tmp_path/'export.pkl')
    with again.no_bar(), learn.no_bar():
        assert torch.equal(again.predict('w1 w2 w3')[2], learn.predict('w1 w2 w3')[2])
    again.remove_cb(BPT3C)
    assert type(again.model[0]).__name__=='SentenceEncoder'

@pytest.mark.parametrize('cb', [STLR(0.2, 8), DiscriminativeLR(2.), GradualUnfreezing(2), ChainThaw(), BPT3C(30, 90, True)])
def test_pickles(cb):
    again = pickle.loads(pickle.dumps(cb))
    assert {k:v for k,v in vars(again).items() if k!='_state'}==vars(cb)

class Terms(Callback):
    "Notes what was added to the loss of the last batch, and the means for AR and TAR that the encoder gave"
    order,run_valid = 99,False
    def before_fit(self): self.hook = self.learn.model[0].register_forward_hook(lambda module, args, out: setattr(self, 'given', out[1:]))
    def after_loss(self):
        ar,tar = self.given
        self.extra,self.want,self.reg = (self.loss_grad-self.loss).item(),(2*ar+tar).item(),(self.rnn.out,self.rnn.raw_out)
    def after_fit(self): self.hook.remove()

def test_bpt3c_regularizes(tmp_path):
    "AR and TAR reach the loss that is differentiated, and only that one"
    learn,terms = text(tmp_path, alpha=2., beta=1.),Terms()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01, cbs=[BPT3C(10), terms])
    assert terms.extra==pytest.approx(terms.want, rel=1e-3) and terms.want>0
    assert terms.reg==(None,None)                                              # where fastai has outputs there are no numbers
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01)                # without BPT3C the regulariser is at work again
    assert type(learn.model[0]).__name__=='SentenceEncoder'

def test_bpt3c_twice(tmp_path):
    learn,terms = text(tmp_path, alpha=2., beta=1., cbs=BPT3C(10)),Terms()
    enc = learn.model[0]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01, cbs=[BPT3C(7), terms])
    assert learn.model[0] is enc and enc.bptt==10
    assert terms.extra==pytest.approx(terms.want, rel=1e-3) and terms.want>0   # regularised once, not twice

def test_plot_groups_needs_a_record(tmp_path):
    learn = synthetic(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    with pytest.raises(ValueError, match='GroupRecorder'): learn.recorder.plot_groups()

def test_plot_groups_hides_no_group(tmp_path):
    "Groups with one rate are drawn as dashes in turn, so that each is seen at each step; others as solid lines"
    learn = synthetic(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(5, 0.01, cbs=[ChainThaw(), STLR(), GroupRecorder()])
    ax,_ = learn.recorder.plot_groups()
    curves = [o for o in ax.lines if len(o.get_xdata())]
    n,free = len(learn.recorder.groups),np.array([o[1] for o in learn.recorder.groups])
    drawn = np.array([~np.isnan(o.get_ydata()) for o in curves])
    colors = np.array([o.get_color() for o in curves])
    dashed = np.array([o.is_dashed() for o in curves])
    for step in range(n):
        here = drawn[:,step] & (dashed if free[step].sum()>1 else ~dashed)
        assert len(np.unique(colors[here], axis=0))==free[step].sum()

def test_resume_with_a_progress_bar(tmp_path, capsys):
    synthetic(tmp_path).fit_gradual(4, 0.01, start_epoch=2)
    assert len(capsys.readouterr().out)>0

class Boom(Callback):
    run_valid = False
    def before_batch(self): raise RuntimeError('boom')

def test_after_an_interrupted_lr_find(tmp_path):
    learn = synthetic(tmp_path, cbs=[STLR(), GradualUnfreezing()])
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(RuntimeError), learn.added_cbs(Boom()): learn.lr_find(show_plot=False)
        learn.fit(4, 0.01, cbs=GroupRecorder())
    assert not learn.recorder.groups[0][1][0] and min(learn.recorder.hps['lr'])<0.01

def test_after_an_interrupted_bpt3c(tmp_path):
    learn = text(tmp_path, alpha=2., beta=1.)
    class Boom2(Callback):
        run_valid = False
        def after_batch(self): raise RuntimeError('boom')
    class Look(Callback):
        order,run_valid,extra = 99,False,0.
        def after_loss(self): self.extra += (self.loss_grad-self.loss).item()
    look = Look()
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(RuntimeError): learn.fit(1, 0.01, cbs=[BPT3C(7), Boom2()])
        learn.fit(1, 0.01, cbs=look)
    assert look.extra>0

@pytest.mark.parametrize('first', [0,1])
def test_two_bpt3c_removed_in_any_order(tmp_path, first):
    learn = text(tmp_path)
    own,cbs = list(learn.model),[BPT3C(5), BPT3C(6)]
    learn.add_cbs(cbs)
    for i in (first, 1-first):
        learn.remove_cb(cbs[i])
        if i==first: assert learn.model[0].bptt==(6,5)[i]
    assert learn.model[0] is own[0] and learn.model[1] is own[1]

@pytest.mark.parametrize('first', [0,1])
def test_two_bpt3c_follow_a_copy(tmp_path, first):
    "Of the model that they read: it is given back whole, each module in the mode it was in"
    learn,cbs = text(tmp_path),[BPT3C(5), BPT3C(6)]
    learn.add_cbs(cbs)
    with torch.no_grad(): learn.model.reset()
    learn.model = other = deepcopy(learn.model).train()
    other[0].module.rnns[0].eval()
    with learn.no_bar(): learn.validate()
    other.train()
    other[0].module.rnns[0].eval()
    for i in (first, 1-first): learn.remove_cb(cbs[i])
    assert [type(o) for o in other]==[SentenceEncoder, PoolingLinearClassifier] and other[0].training
    assert not other[0].module.rnns[0].training and other[0].module.rnns[1].training
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01)

def test_bpt3c_leaves_a_learner_that_has_another_model(tmp_path):
    "With two, too: nothing of ours is in that model, so nothing is given back"
    learn = text(tmp_path, cbs=[BPT3C(5), BPT3C(6)])
    learn.model = other = nn.Linear(2, 2)
    learn.remove_cbs([BPT3C, BPT3C])
    assert learn.model is other and not learn._grab_cbs(BPT3C)

def test_bpt3c_after_a_batch_that_was_cancelled(tmp_path):
    "The means of a batch are not kept, so the learner can be copied and saved"
    class Stop(Callback):
        order = 50
        def after_pred(self): raise CancelBatchException
    learn = text(tmp_path, alpha=2., beta=1., cbs=BPT3C(10))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01, cbs=Stop())
    assert learn._grab_cbs(BPT3C)[0].means is None
    learn.export()

def test_bpt3c_refuses_to_cross_and_recompute():
    with pytest.raises(ValueError, match='keeps all activations'): BPT3C(cross=True, checkpoint=True)

def test_without_a_recorder(tmp_path):
    learn = synthetic(tmp_path)
    learn.remove_cbs([Recorder, ProgressCallback])
    learn.fit_gradual(3, 0.01)

def test_frozen_does_not_move_under_lookahead(tmp_path):
    learn = synthetic(tmp_path, opt_func=ranger, wd=0.1)
    seen = []
    class Look(Callback):
        def after_train(self): seen.append(self.learn.model[0].weight.detach().clone())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
        learn.fit(4, 0.01, cbs=[ChainThaw(), Look()])
    assert torch.equal(seen[1], seen[2])                                       # stages: last; first; middle; all

def test_a_callback_that_is_refused_leaves_none_behind(tmp_path):
    "What was asked for together with it is not in the next fit"
    learn = synthetic(tmp_path)
    had = learn.cbs.map(type)
    for fit in (learn.fit_stlr, learn.fit_gradual):
        with learn.no_bar(), learn.no_logging(), pytest.raises(TypeError, match='BPT3C needs a text classifier'): fit(3, cbs=BPT3C())
        assert learn.cbs.map(type)==had
    was = weights(learn)
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.1)
    assert all((a!=b).any() for a,b in zip(was, weights(learn)))

class LastTerms(Callback):
    "Notes what AR and TAR added to the loss of the last batch"
    order = 1000
    def after_loss(self):
        if self.training: self.got = (self.learn.loss_grad-self.learn.loss).item()

@pytest.mark.parametrize('copied', [False,True])
def test_bpt3c_follows_the_model(tmp_path, copied):
    "A learner that is given another model reads, regularizes and keeps that one"
    learn,terms = text(tmp_path, cbs=BPT3C(10)),LastTerms()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        with torch.no_grad(): learn.model.reset()
        other = deepcopy(learn.model) if copied else text(tmp_path).model
        learn.fit(1, 1e-1)
        learn.model = other
        want = [p.detach().clone() for p in other.parameters()]
        learn.fit(1, 0., cbs=terms, reset_opt=True)
        whole,single = [learn.get_preds(dl=learn.dls.valid.new(bs=bs))[0] for bs in (8,1)]
    assert terms.got>0 and torch.allclose(whole, single, atol=1e-6) and type(learn.model[0]).__name__=='ChunkedEncoder'
    learn.remove_cb(BPT3C)
    assert learn.model is other and type(other[0]) is SentenceEncoder and type(other[1]) is PoolingLinearClassifier
    for a,b in zip(want, learn.model.parameters(), strict=True): assert torch.equal(a, b)
    with learn.no_bar(): learn.validate()

def test_bpt3c_refuses_a_head_that_pools_otherwise(tmp_path):
    class MeanHead(PoolingLinearClassifier):
        def forward(self, inp): return super().forward(inp)
    learn = text(tmp_path)
    learn.model[1].__class__ = MeanHead
    with pytest.raises(TypeError, match='SentenceEncoder, MeanHead'): learn.add_cb(BPT3C())
    assert type(learn.model[0]) is SentenceEncoder

def test_bpt3c_refuses_layers_that_are_no_lstms(tmp_path):
    learn = text(tmp_path)
    learn.model[0].module.rnns[1] = nn.GRU(8, 8, batch_first=True)
    with pytest.raises(TypeError, match='layers are of another kind, .*rnn.GRU'): learn.add_cb(BPT3C())
    assert type(learn.model[0]) is SentenceEncoder

def test_bpt3c_regularizes_an_encoder_without_dropout(tmp_path):
    "As fastai: whether the encoder is in training mode does not matter, only whether the learner is"
    class Still(Callback):
        def before_train(self): self.learn.model[0].eval()
    res = []
    for cbs in ([], [BPT3C(10)]):
        learn,terms = text(tmp_path, drop_mult=0.),LastTerms()
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0., cbs=[Still(), terms, *cbs])
        res.append(terms.got)
    assert res[1]>0 and 0.3<res[0]/res[1]<3

def test_groups_that_share_a_parameter(tmp_path):
    "Gradual unfreezing agrees with `freeze_to`; a group alone trains all that it has"
    learn = synthetic(tmp_path)
    learn.model[1][2] = nn.Linear(8, 8)
    learn.model[2] = nn.Linear(8, 8)
    learn.model[2].weight = learn.model[1][2].weight
    learn.create_opt()
    def _trained(): return {n for n,p in learn.model.named_parameters(remove_duplicate=False) if p.requires_grad}
    for g in range(3):
        train_groups(learn.opt, range(g, 3))
        got = _trained()
        learn.freeze_to(g)
        assert got==_trained()
    for groups,want in (((1,), {'1.2.weight','1.2.bias','2.weight'}), ((2,), {'2.bias'}), ((0,), {'0.weight','0.bias'})):
        train_groups(learn.opt, groups)
        assert _trained()=={'1.0.weight','1.0.bias', *want} # fastai always trains batch norm

def test_a_callback_that_has_a_stage_of_its_own(tmp_path):
    class Warm(Callback): stage = 'warm'
    learn = synthetic(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_stlr(1, cbs=Warm())
    assert len(learn.recorder.hps['lr'])==len(learn.dls.train)

# what callbacks take and give back

class Borrows(GivesBack):
    "Doubles the batch size while a learner has it"
    def __init__(self, refuse=None): self.refuse,self.events = refuse,[]
    def take(self):
        self.events.append('take')
        if self.refuse is not None: raise self.refuse
        self.dls.train.bs *= 2
    def give_back(self):
        self.events.append('give back')
        self.dls.train.bs //= 2

def test_take_and_give_back(tmp_path):
    "In pairs, also after an error; what was refused is not given back, and not kept"
    learn,cb = synthetic(tmp_path),Borrows()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=cb)
        with pytest.raises(RuntimeError): learn.fit(1, cbs=[cb, Boom()])
    assert cb.events==['take','give back']*2 and learn.dls.train.bs==16
    for ex in (TypeError('no'), KeyboardInterrupt()):
        refused = Borrows(ex)
        with pytest.raises(type(ex)): learn.add_cb(refused)
        assert refused.events==['take'] and refused.learn is None and refused not in learn.cbs

def test_is_first(tmp_path):
    learn,cbs = synthetic(tmp_path),[Borrows(),Borrows()]
    class Other(Borrows): pass
    learn.add_cbs([Other(), *cbs])
    assert [cb.is_first for cb in cbs]==[True,False]
    learn.remove_cb(cbs[0])
    assert cbs[1].is_first

# a budget of time

@pytest.fixture
def clock(monkeypatch):
    "A clock that moves on only when it is told to"
    now = SimpleNamespace(t=1000.)
    monkeypatch.setattr(TimeBudget, 'now', staticmethod(lambda: now.t))
    return now

class Limited(DataLoader):
    "Reads at most `max_batches` batches an epoch"
    max_batches = None
    def __iter__(self):
        for i,b in enumerate(super().__iter__()):
            if self.max_batches is not None and i>=self.max_batches: return
            yield b

class Tick(Callback):
    "Each batch of training takes six seconds"
    run_valid = False
    def __init__(self, now): self.now = now
    def before_batch(self): self.now.t += 6.

def limited(path, max_batches=None):
    learn = synthetic(path)
    learn.dls.train.__class__ = Limited
    learn.dls.train.max_batches = max_batches
    return learn

@pytest.mark.parametrize('max_batches', [None, 4])
def test_time_budget(tmp_path, clock, max_batches):
    "A minute of ten steps: a triangle over the time, the last epoch cut and validated, and the loader's limit given back"
    learn = limited(tmp_path, max_batches)
    with learn.no_bar(), learn.no_logging(): learn.fit(1000, 0.1, cbs=[TimeBudget(1.), Tick(clock)])
    np.testing.assert_allclose(learn.recorder.hps['lr'], [0.1*slanted_triangular(i, 10) for i in range(1, 11)], rtol=1e-3)
    assert len(learn.recorder.values)==(2 if max_batches is None else 3) and learn.dls.train.max_batches==max_batches
    assert all(len(o)==2 for o in learn.recorder.values)

def test_time_budget_of_any_loader(tmp_path, clock):
    "One that cannot end an epoch early finishes it"
    learn = synthetic(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1000, 0.1, cbs=[TimeBudget(1.), Tick(clock)])
    assert len(learn.recorder.losses)==12 and len(learn.recorder.values)==2

def test_time_budget_goes_on(tmp_path, clock):
    "After 30 of 60 seconds; a validation in between does not start the clock anew"
    class Nosy(Callback):
        def after_epoch(self):
            if is_fitting(self.learn): self.learn.validate()
    learn = limited(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1000, 0.1, cbs=[TimeBudget(1., elapsed=30.), Tick(clock), Nosy()])
    assert len(learn.recorder.hps['lr'])==5

def test_time_budget_of_few_epochs(tmp_path, clock):
    "The triangle ends with the epochs where the time is not up by then"
    learn = limited(tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.1, cbs=[TimeBudget(60.), Tick(clock)])
    n = len(learn.recorder.losses)
    np.testing.assert_allclose(learn.recorder.hps['lr'][1:], [0.1*slanted_triangular(i/n*1000, 1000) for i in range(1, n)], rtol=2e-3)

def test_time_budget_interrupted(tmp_path, clock):
    "The loader is left whole, and lr_find is left alone"
    class Stop(Callback):
        def before_validate(self): raise KeyboardInterrupt
    learn = limited(tmp_path)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(5, cbs=[TimeBudget(.1), Tick(clock), Stop()])
        assert learn.dls.train.max_batches is None
        learn.add_cb(TimeBudget(1.))
        learn.lr_find(num_it=5, show_plot=False)

# precision

def test_importing_mends_nothing():
    code = ("from fastai.text.models.awdlstm import WeightDropout; was = WeightDropout.forward,WeightDropout._setweights; import ulmfit_ext.all; "
            "from ulmfit_ext.callback.precision import mend_weight_dropout; assert was==(WeightDropout.forward,WeightDropout._setweights); "
            "mend_weight_dropout(); now = WeightDropout.forward; assert now is not was[0]; mend_weight_dropout(); assert WeightDropout.forward is now")
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)

@pytest.mark.parametrize('kwargs,state', [(dict(batch_first=True), True), (dict(), True), (dict(num_layers=2, batch_first=True), True), (dict(bidirectional=True, batch_first=True), True),
                                          (dict(bias=False, batch_first=True), True), (dict(batch_first=True), False)])
def test_a_weight_dropout_of_ones_own_is_left_alone(kwargs, state, monkeypatch):
    "What is no layer of an AWD-LSTM runs as in fastai, under autocast too"
    import ulmfit_ext.callback.precision as module
    mend_weight_dropout()
    monkeypatch.setattr(module, '_lstm_mkldnn', lambda rnn, x, hc: ('ours', rnn))
    monkeypatch.setattr(module, 'can_bfloat16', lambda: True)
    rnn = nn.LSTM(5, 5, **kwargs)
    drop,x = WeightDropout(rnn, 0.1),torch.randn(3, 4, 5)
    n = kwargs.get('num_layers', 1)*(1+kwargs.get('bidirectional', False))
    hc = [torch.zeros(n, 3 if kwargs.get('batch_first') else 4, 5)]*2 if state else None
    monkeypatch.setattr(rnn, 'forward', lambda *args: ('its own', rnn))
    with torch.autocast('cpu', torch.bfloat16): got = drop(x, hc)[0]
    assert got==('ours' if kwargs==dict(batch_first=True) and state else 'its own')

class OnGPU(Tensor):
    "A tensor that says it is on a GPU"
    data = property(lambda self: SimpleNamespace(device=torch.device('cuda')))

@pytest.mark.parametrize('kwargs', [dict(batch_first=True), dict(), dict(num_layers=2), dict(bidirectional=True)])
def test_no_lstm_runs_under_autocast_on_a_gpu(kwargs, monkeypatch):
    "A layer of an AWD-LSTM computes in bfloat16 by itself, any other in 32 bits"
    mend_weight_dropout()
    drop,x = WeightDropout(nn.LSTM(5, 5, **kwargs), 0.),torch.randn(3, 4, 5)
    hc = [torch.zeros_like(o) for o in drop(x)[1]]
    def run(x):
        drop.zero_grad()
        out,(h,c) = drop(x, hc)
        (out.sum()*1e-7).backward()
        return [out, h, c, *[p.grad for p in drop.parameters()]]
    exact = run(x)
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda kind: kind=='cuda')
    monkeypatch.setattr(torch, 'get_autocast_dtype', lambda kind: torch.bfloat16)
    got,is_layer = run(x.as_subclass(OnGPU)),kwargs==dict(batch_first=True)
    assert {o.dtype for o in got[:3]}=={torch.bfloat16 if is_layer else torch.float32}
    for a,b in zip(exact, got):
        off = (a-b).norm()/a.norm()
        assert 0<off<.02 if is_layer else off==0

def test_weights_in_one_piece():
    "Next to each other in memory, and each gets its gradient"
    ws = [torch.randn(n, requires_grad=True) for n in (3,5)]
    a,b = in_one_piece(ws, torch.float64)
    assert a.dtype==torch.float64 and b.data_ptr()==a.data_ptr()+3*8
    (a.sum()+2*b.sum()).backward()
    assert ws[0].grad.tolist()==[1]*3 and ws[1].grad.tolist()==[2]*5

def test_weight_dropout_reads_packed_sequences():
    mend_weight_dropout()
    drop = WeightDropout(nn.LSTM(5, 5, batch_first=True), 0.1)
    rows = nn.utils.rnn.pack_padded_sequence(torch.randn(3, 4, 5), [4,2,1], batch_first=True)
    assert drop(rows, [torch.zeros(1, 3, 5)]*2)[0].data.shape==(7,5)

def test_no_dropout_trains(tmp_path):
    "drop_mult=0: training, evaluation, training"
    mend_weight_dropout()
    learn = text(tmp_path, drop_mult=0.)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.01)
    assert len(learn.recorder.values)==2

def test_cpu_bfloat16_brings_the_repair(monkeypatch, tmp_path):
    import ulmfit_ext.callback.precision as module
    called = []
    monkeypatch.setattr(module, 'mend_weight_dropout', lambda: called.append(True))
    synthetic(tmp_path, cbs=CPUBfloat16())
    assert called==[True]

class Two(nn.Module):
    "Two outputs"
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 2)
    def forward(self, x): return self.l(x),self.l(x)
def two_losses(o, y): return F.cross_entropy(o[0], y) + F.cross_entropy(o[1], y)

def pair_learner(**kwargs):
    items = [(torch.randn(4), torch.tensor(0)) for _ in range(16)]
    return Learner(DataLoaders(*[DataLoader(items, bs=8)]*2), Two(), loss_func=two_losses, **kwargs)

def test_cpu_bfloat16_of_several_outputs():
    learn = pair_learner(cbs=CPUBfloat16())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(float(learn.recorder.losses[-1]))

@pytest.mark.parametrize('n', [1, 2])
def test_an_error_ends_cpu_bfloat16(n):
    "What comes after a fit that ended while it computed in 16 bits is computed in 32 again; with two callbacks as well"
    def stop(*args): raise KeyboardInterrupt
    learn = pair_learner()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[CPUBfloat16() for _ in range(n)])
        assert not torch.is_autocast_enabled('cpu')
        hook = learn.model.l.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[CPUBfloat16() for _ in range(n)])
        assert not torch.is_autocast_enabled('cpu')
        hook.remove()
        learn.fit(1)
