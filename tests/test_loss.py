"LinearCrossEntropy and VariableBPTT from outside: the same numbers as fastai, without the logits; every token once."
import pickle
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import *
from fastai.callback.training import GradientAccumulation,GradientClip
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.tracker import SaveModelCallback,EarlyStoppingCallback
from fastai.test_utils import synth_learner
from torch.profiler import profile,ProfilerActivity
from ulmfit_ext.callback.schedule import *
from ulmfit_ext.callback.unfreeze import *
from ulmfit_ext.callback.loss import *
from ulmfit_ext.callback.bptt import *
from ulmfit_ext.callback.precision import mend_weight_dropout
from ulmfit_ext.callback import loss as module
from ulmfit_ext.core import *
from ulmfit_ext.text.tables import *
from ulmfit_ext.text.tokens import *
from ulmfit_ext.text.corpus import *
from ulmfit_ext.text.loaders import *
from ulmfit_ext.data import *

warnings.filterwarnings('ignore', category=FutureWarning)

size = {**awd_lstm_lm_config, **dict(emb_sz=8, n_hid=8, n_layers=2)}

def texts(n=48, n_words=300, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(text=[' '.join(f'w{i}' for i in rng.zipf(1.3, 80) % n_words) for _ in range(n)]))

def fastai_dls(bs=8, seq_len=20, path='.'):
    set_seed(0)
    return TextDataLoaders.from_df(texts(), text_col='text', is_lm=True, bs=bs, seq_len=seq_len, seed=0, num_workers=0, tok_tfm=BaseTokenizer(), path=path,
                                   text_vocab=[*defaults.text_spec_tok, *[f'w{i}' for i in range(300)]])

def lm(path='.', dls=None, config={}, **kwargs):
    dls = dls or fastai_dls(path=path)
    set_seed(0)
    return language_model_learner(dls, AWD_LSTM, config={**size, **config}, pretrained=False, path=path, **kwargs)

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

class Stop(Callback):
    "Notes loss and gradients of the first batch, and ends the fit"
    order = 100
    def before_step(self):
        self.got = self.learn.loss.detach().clone(),[None if p.grad is None else p.grad.clone() for p in self.learn.model.parameters()]
        raise CancelFitException

def first_step(learn, cbs=(), dtype=torch.float, loss_func=None):
    if loss_func is not None: learn.loss_func = loss_func
    learn.model.to(dtype)
    set_seed(1)
    stop = Stop()
    with learn.no_logging(), learn.removed_cbs(learn._grab_cbs(Recorder)): learn.fit(1, 1e-2, cbs=[stop, *cbs])
    return stop.got

def by_hand(pred, targ): return F.cross_entropy(pred.flatten(0, 1), targ.flatten())
def gap(a, b): return ((a-b).norm()/b.norm()).item()

def same_step(make, eps, dtype=torch.float, loss_func=None, cbs=(), block=900, grad_eps=None):
    plain = by_hand if dtype==torch.double else loss_func # fastai's own rounds to 32 bits
    (a,ga),(b,gb) = first_step(make(), cbs, dtype, plain),first_step(make(), [*cbs, LinearCrossEntropy(block)], dtype, loss_func)
    assert gap(b, a)<=eps
    for i,j in zip(gb, ga):
        assert (i is None)==(j is None)
        if j is not None and j.norm()>0: assert gap(i, j)<=(grad_eps or eps)

# the same numbers

@pytest.mark.parametrize('dtype,eps', [(torch.float,1e-6), (torch.double,1e-10)])
@pytest.mark.parametrize('config', [{}, dict(tie_weights=False), dict(out_bias=False)], ids=['tied','untied','no bias'])
def test_loss_and_gradient(dtype, eps, config): same_step(lambda: lm(config=config), eps, dtype)

@pytest.mark.parametrize('block', [1, 320, 10**9])
def test_any_block(block): same_step(lm, 1e-6, block=block)

n_vocab = 300+len(defaults.text_spec_tok)
torch.manual_seed(3)
class_weight = torch.rand(n_vocab)

class Penalised:
    "A loss function of one's own"
    def __call__(self, pred, targ): return F.cross_entropy(pred.flatten(0, 1), targ.flatten()) + 1e-3*pred.logsumexp(-1).pow(2).mean()

class Product(torch.autograd.Function):
    "One that PyTorch's dispatch does not see"
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.pow(2).mean()
    @staticmethod
    def backward(ctx, g): return g*2*ctx.saved_tensors[0]/ctx.saved_tensors[0].numel()

kinds = [CrossEntropyLossFlat(weight=class_weight), CrossEntropyLossFlat(ignore_index=n_vocab-300), CrossEntropyLossFlat(reduction='sum'),
         CrossEntropyLossFlat(label_smoothing=0.1), CrossEntropyLossFlat(weight=class_weight, label_smoothing=0.2, ignore_index=11)]

@pytest.mark.parametrize('f', kinds)
def test_kinds_of_cross_entropy(f): same_step(lm, 1e-6, loss_func=f)

@pytest.mark.parametrize('f', kinds)
def test_validation_of_kinds(f):
    learn = lm(metrics=[accuracy, Perplexity()])
    learn.loss_func = f
    want = learn.validate()
    with learn.added_cbs(LinearCrossEntropy(3*20*n_vocab)): np.testing.assert_allclose(learn.validate(), want, rtol=1e-5)

@pytest.mark.parametrize('f', [LabelSmoothingCrossEntropyFlat(), FocalLossFlat(), Penalised(), lambda p,t: Product.apply(p)],
                         ids=['label smoothing','focal','own','autograd function'])
def test_other_losses_get_logits(f):
    with pytest.warns(UserWarning, match='nothing to do'): same_step(lm, 0., loss_func=f)

def test_frozen():
    def make():
        learn = lm()
        learn.freeze()
        return learn
    same_step(make, 1e-6)

def test_tied_weights_get_both_gradients():
    "That of a word's embedding and that of its row in the output layer, as they are where the two are not tied"
    tied,untied = lm(),lm(config=dict(tie_weights=False))
    untied.model.load_state_dict(tied.model.state_dict())
    (_,g),(_,h) = [first_step(o, [LinearCrossEntropy(900)]) for o in (tied,untied)]
    g,h = [{n:v for (n,_),v in zip(o.model.named_parameters(), gs)} for o,gs in ((tied,g),(untied,h))]
    assert gap(g['0.encoder.weight'], h['0.encoder.weight']+h['1.decoder.weight'])<1e-6
    assert h['0.encoder.weight'].norm()>0 and h['1.decoder.weight'].norm()>0

def test_whole_training():
    def fit(*cbs):
        learn = lm(metrics=[accuracy, Perplexity()], opt_func=SGD)
        set_seed(0)
        with learn.no_logging(): learn.fit_one_cycle(2, 1., cbs=cbs)
        return learn
    a,b = fit(),fit(LinearCrossEntropy(900))
    np.testing.assert_allclose(b.recorder.losses, a.recorder.losses, rtol=1e-5)
    np.testing.assert_allclose(b.recorder.values, a.recorder.values, rtol=1e-4)
    assert list(a.model.state_dict())==list(b.model.state_dict())

# no logits

def pieces(f, n):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof: f()
    return sum(o.self_cpu_memory_usage>=4*n for o in prof.events())

def test_no_logits_are_made():
    dls = fastai_dls(bs=16)
    n = 16*20*n_vocab
    def count(cbs, train_metrics=False):
        learn = lm(dls=dls, metrics=[accuracy, Perplexity(), error_rate], cbs=cbs)
        learn.recorder.train_metrics = train_metrics
        with learn.no_logging(): return pieces(lambda: learn.fit(1), n),pieces(learn.validate, n)
    assert min(count([])) >= len(dls.valid)
    assert count([LinearCrossEntropy(n//16)]) == (0,0)
    assert count([LinearCrossEntropy(n//16)], True) == (0,0)

def test_validation_makes_each_block_once(monkeypatch):
    "Accuracy costs no second product; blocks are of whole texts, here of three"
    learn = lm(metrics=[accuracy, Perplexity()], cbs=LinearCrossEntropy(3*20*n_vocab))
    rows = []
    linear = F.linear
    def counted(h, w, *args):
        if len(w)==n_vocab: rows.append(h.shape[:2].numel())
        return linear(h, w, *args)
    monkeypatch.setattr(F, 'linear', counted)
    with learn.no_logging(): learn.validate()
    assert sum(rows)==sum(y.numel() for _,y in learn.dls.valid) and max(rows)==3*20

# metrics

def own_metric(inp, targ): return (inp.softmax(-1).gather(-1, targ[...,None])).mean()
def of_functions(inp, targ): return torch.stack([F.log_softmax(inp, 2).mean(), (inp-inp.mean()).abs().max(), torch.topk(inp, 2)[0].mean(), inp[:,0].sum()]).sum()
def by_block(inp, targ): return F.cross_entropy(inp.view(-1, inp.shape[-1]), targ.view(-1))

@pytest.mark.parametrize('train_metrics', [False, True])
@pytest.mark.parametrize('more', [[], [own_metric, of_functions, by_block, F1Score(average='macro'), CohenKappa()]], ids=['by texts','all logits'])
def test_metrics(train_metrics, more):
    def fit(*cbs):
        learn = lm(metrics=[accuracy, error_rate, Perplexity(), partial(top_k_accuracy, k=3), *more], opt_func=SGD)
        learn.recorder.train_metrics = train_metrics
        set_seed(0)
        with learn.no_logging(): learn.fit(2, 2., cbs=cbs)
        return learn.recorder.values
    np.testing.assert_allclose(fit(LinearCrossEntropy(900)), fit(), rtol=1e-3, atol=1e-5)

# predictions

def test_predictions_are_tensors():
    learn = lm()
    want = learn.get_preds(reorder=False, with_loss=True, with_input=True)
    learn.add_cb(LinearCrossEntropy(900))
    got = learn.get_preds(reorder=False, with_loss=True, with_input=True)
    assert [type(o) for o in got]==[type(o) for o in want]
    for a,b in zip(got, want): assert torch.equal(a, b)

def test_predict_and_show(capsys):
    learn,words = lm(),[]
    for cbs in ([], [LinearCrossEntropy(900)]):
        with learn.added_cbs(cbs), learn.no_bar():
            set_seed(0)
            words.append(learn.predict('w1 w2', n_words=5))
            learn.show_results(max_n=2)
            learn.summary()
    assert words[0]==words[1]

def test_model_by_itself_is_fastais():
    learn = lm(cbs=LinearCrossEntropy())
    x,y = learn.dls.one_batch()
    for _ in range(2):
        assert isinstance(learn.model.eval()(x)[0], Tensor)
        assert 'forward' not in vars(learn.model[1].decoder)
        learn.validate()

def test_validate_keeps_out_of_gradients():
    learn = lm(cbs=LinearCrossEntropy(900))
    learn.validate()
    assert all(p.grad is None for p in learn.model.parameters())
    assert learn.pred is None and type(learn.loss_func) is CrossEntropyLossFlat

# with others

class OnCpu(MixedPrecision):
    "Mixed precision as on a GPU, in bfloat16 on the CPU"
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', torch.bfloat16)

def test_mixed_precision():
    mend_weight_dropout() # fastai's own LSTM cannot on processors without AVX-512
    same_step(lm, 1e-6, cbs=[OnCpu(AMPMode.BF16)], grad_eps=0.02)
    learn = lm(cbs=[OnCpu(AMPMode.BF16), LinearCrossEntropy(900)], metrics=[accuracy, Perplexity(), own_metric]) # these come when autocast is over
    learn.recorder.train_metrics = True
    with learn.no_logging():
        learn.fit(1, 1e-2)
        got = learn.validate()
        learn.remove_cb(LinearCrossEntropy)
        np.testing.assert_allclose(got, learn.validate(), rtol=1e-4)

def parts(n_texts=5, n_tok=4, n_words=50, dtype=torch.float):
    torch.manual_seed(0)
    layer = [torch.randn(*o, requires_grad=True) for o in ((n_texts,n_tok,8), (n_words,8), (n_words,))]
    layer[0] = layer[0].detach().to(dtype).requires_grad_()
    return layer,torch.randint(0, n_words, (n_texts,n_tok))

@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('dtype', [torch.float, torch.bfloat16])
def test_precision_is_that_of_autocast(dtype, grad):
    "Also where what comes before the output layer was left in 32 bits"
    layer,targ = parts(dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16), torch.set_grad_enabled(grad):
        want = F.cross_entropy(F.linear(*layer).float().flatten(0, 1), targ.flatten())
        got  = linear_cross_entropy(*layer, targ, nn.CrossEntropyLoss(), block=400)
    assert got.dtype==torch.float and gap(got, want)<1e-6

@pytest.mark.parametrize('dtype,scale', [(torch.bfloat16,1.), (torch.float16,1.), (torch.float16,2.**16)])
def test_gradients_in_16_bits_are_near_those_of_32(dtype, scale):
    "A loss scale may be given, or not: small gradients are kept"
    layer,targ = parts(64, 70, 1000)
    exact = F.cross_entropy(F.linear(*layer).flatten(0, 1), targ.flatten())
    with torch.autocast('cpu', dtype): half = linear_cross_entropy(*layer, targ, nn.CrossEntropyLoss(), block=300_000)
    for a,b in zip(torch.autograd.grad(half*scale, layer), torch.autograd.grad(exact, layer), strict=True):
        assert gap(a/scale, b)<0.01

@pytest.mark.parametrize('grad', [True, False])
def test_wrong_targets_are_pytorchs_to_refuse(grad):
    layer,targ = parts()
    with torch.set_grad_enabled(grad):
        with pytest.raises((IndexError,RuntimeError)): linear_cross_entropy(*layer, targ+50, nn.CrossEntropyLoss())

def test_a_wrong_reduction_is_pytorchs_to_refuse():
    learn = lm(cbs=LinearCrossEntropy())
    learn.loss_func = CrossEntropyLossFlat(reduction='max')
    with pytest.warns(UserWarning, match='nothing to do'), pytest.raises(ValueError, match='not a valid value for reduction'): learn.fit(1)

@pytest.mark.parametrize('grad', [True, False])
def test_nothing_but_ignored_targets(grad):
    "As PyTorch: there is no mean of nothing"
    layer,targ = parts()
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction='sum')):
        with torch.set_grad_enabled(grad): got = linear_cross_entropy(*layer, torch.full_like(targ, -100), loss)
        want = loss(F.linear(*layer).flatten(0, 1), torch.full_like(targ, -100).flatten())
        assert torch.equal(got.detach(), want.detach()) or (got.isnan() and want.isnan())

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('others', [[GradientAccumulation(24)], [GradientClip(0.1)], [MixedPrecision()], [MixedPrecision(AMPMode.BF16), GradientAccumulation(16), GradientClip()],
    [SaveModelCallback(), EarlyStoppingCallback(patience=3)], [STLR()], [GradualUnfreezing()]], ids=lambda o: '+'.join(type(c).__name__ for c in o))
def test_with_others(tmp_path, others, last):
    losses = []
    for ours in ([], [LinearCrossEntropy(900)]):
        learn = lm(tmp_path, metrics=accuracy, opt_func=SGD)
        set_seed(0)
        cbs = deepcopy(others)
        with learn.no_logging(): learn.fit(2, 1., cbs=cbs+ours if last else ours+cbs)
        losses.append(learn.recorder.losses)
        assert 'forward' not in vars(learn.model[1].decoder)
    np.testing.assert_allclose(*losses, rtol=1e-5)

def test_lr_find(tmp_path):
    learn = lm(tmp_path, cbs=LinearCrossEntropy(900))
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(): learn.lr_find(num_it=10, show_plot=False)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert len(learn.recorder.losses)==10

def test_two_at_once():
    learn = lm(cbs=LinearCrossEntropy(900))
    with learn.no_logging(): learn.fit(1, cbs=LinearCrossEntropy(500))
    assert 'forward' not in vars(learn.model[1].decoder) and len(learn._grab_cbs(LinearCrossEntropy))==1
    learn.validate()
    assert learn.pred is None

def test_of_two_the_first_works():
    "Also where the first is taken away"
    learn,cbs = lm(),[LinearCrossEntropy(900),LinearCrossEntropy(500)]
    learn.add_cbs(cbs)
    with learn.no_logging():
        learn.fit(1)
        assert [cb.is_first for cb in cbs]==[True,False]
        learn.remove_cb(cbs[0])
        learn.fit(1)
        assert cbs[1].is_first and learn.validate() is not None and learn.pred is None
        learn.remove_cb(cbs[1])
        learn.fit(1)
        assert learn.validate() is not None and learn.pred.shape[-1]==n_vocab

# there and back

def test_saved(tmp_path):
    cb = LinearCrossEntropy(900)
    learn = lm(tmp_path, cbs=cb)
    with learn.no_logging(): learn.fit(1)
    want = learn.validate()
    np.testing.assert_allclose(pickle.loads(pickle.dumps(learn)).validate(), want)
    x,_ = learn.dls.one_batch()
    logits = learn.model.eval()(x)[0]
    learn.export('m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    again.model.reset(); learn.model.reset()
    assert torch.equal(again.model.eval()(x)[0], learn.model.eval()(x)[0])
    assert deepcopy(LinearCrossEntropy(7)).block==7
    learn.save('w'); learn.load('w')

class Interrupt(Callback):
    def __init__(self, event, ex): self.event,self.ex = event,ex
    def __call__(self, event):
        if event==self.event and self.training and self.iter==1: raise self.ex()

@pytest.mark.parametrize('ex', [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize('event', ['before_batch','after_pred','after_loss','before_step','after_batch'])
def test_interrupted(event, ex):
    learn = lm()
    dec = learn.model[1].decoder
    with pytest.raises(ex), learn.no_logging(): learn.fit(1, cbs=[LinearCrossEntropy(900), Interrupt(event, ex)])
    assert 'forward' not in vars(dec) and not learn._grab_cbs(LinearCrossEntropy)
    assert 'forward' not in vars(learn.model) and type(learn.loss_func) is CrossEntropyLossFlat

class StopsInside:
    "A forward hook that ends the fit"
    def __call__(self, *args): raise KeyboardInterrupt

@pytest.mark.parametrize('part', [0, 1])
def test_interrupted_inside_the_model(part, tmp_path):
    "The model is fastai's at once, though the callback stays with the learner"
    learn = lm(tmp_path, cbs=LinearCrossEntropy(900))
    learn.no_logging().__enter__()
    x,_ = learn.dls.one_batch()
    for _ in range(2):
        hook = learn.model[part].register_forward_hook(StopsInside())
        with pytest.raises(KeyboardInterrupt): learn.fit(1)
        hook.remove()
        assert learn.model(x)[0].shape[-1]==n_vocab and 'forward' not in vars(learn.model)
        learn.export('m.pkl')
        assert load_learner(tmp_path/'m.pkl').model.eval()(x)[0].shape[-1]==n_vocab
        assert learn.get_preds(reorder=False)[0].shape[-1]==n_vocab
        learn.fit(1)
    learn.remove_cb(LinearCrossEntropy)
    assert 'forward' not in vars(learn.model[1].decoder)

@pytest.mark.parametrize('event', ['before_batch','after_pred','after_loss','after_batch'])
def test_interrupted_by_a_later_callback(event):
    "The model and the loss function are fastai's at once, though the callback stays with the learner"
    class Stop(Callback):
        order = 100
        def __call__(self, name):
            if name==event: raise KeyboardInterrupt
    learn = lm(cbs=LinearCrossEntropy(900))
    loss_func,(x,_) = learn.loss_func,learn.dls.one_batch()
    for f in (lambda: learn.fit(1, cbs=Stop()), lambda: learn.validate(cbs=Stop())):
        with pytest.raises(KeyboardInterrupt), learn.no_logging(): f()
        assert not any('forward' in vars(o) for o in learn.model.modules()) and learn.loss_func is loss_func
        assert learn.model(x)[0].shape[-1]==n_vocab

def test_interrupted_inside_the_loss(monkeypatch):
    "The loss function is the learner's own at once"
    learn = lm(cbs=LinearCrossEntropy(900))
    loss_func = learn.loss_func
    def stop(*args, **kwargs): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt), learn.no_logging():
        m.setattr(module, 'linear_cross_entropy', stop)
        learn.fit(1)
    assert learn.loss_func is loss_func
    learn.loss_func = CrossEntropyLossFlat(label_smoothing=0.1)
    with learn.no_logging(): learn.fit(1)
    assert learn.loss_func is not loss_func, 'what was set since then is not undone'

@pytest.mark.parametrize('ex,event', [(CancelBatchException,'before_batch'), (CancelBatchException,'after_pred'), (CancelFitException,'after_pred')])
def test_cancelled(ex, event):
    learn = lm(cbs=LinearCrossEntropy(900))
    with learn.no_logging(): learn.fit(1, cbs=Interrupt(event, ex))
    assert 'forward' not in vars(learn.model[1].decoder)

class SkipOdd(Callback):
    "Cancels every other batch of a validation"
    def __init__(self, event, order): self.event,self.order = event,order
    def __call__(self, event):
        if event==self.event and not self.training and self.iter%2: raise CancelBatchException

class NoteAll(Callback):
    "Loss and accuracy of each batch"
    def before_fit(self): self.got = []
    def after_batch(self): self.got.append((self.loss.item(), accuracy(self.pred, *self.yb).item()))

@pytest.mark.parametrize('event', ['before_batch','after_pred'])
@pytest.mark.parametrize('order', [-1, 100])
def test_validation_batches_that_are_cancelled(event, order):
    "They are not measured; the others are"
    note = NoteAll()
    with lm().no_logging(): lm().validate(cbs=note)
    learn = lm(metrics=accuracy, cbs=[LinearCrossEntropy(900), SkipOdd(event, order)])
    got = learn.validate()
    if event=='after_pred': np.testing.assert_allclose(got[1], np.mean(note.got[::2], 0)[1], rtol=1e-5)
    assert math.isfinite(got[0]) and 0<=got[1]<=1
    learn.remove_cb(SkipOdd)
    np.testing.assert_allclose(learn.validate(), np.mean(note.got, 0), rtol=1e-5) # what comes next is measured whole

@pytest.mark.parametrize('event', ['before_batch','after_pred','after_loss'])
def test_validation_that_is_interrupted(event):
    "The next one is measured whole, be it with all logits or without"
    class Stop(Callback):
        order = 100
        def __call__(self, name):
            if name==event and self.iter==1: raise KeyboardInterrupt
    class Looks(Callback):
        def after_pred(self): pass
    want,learn = lm(metrics=[accuracy, Perplexity()]).validate(),lm(metrics=[accuracy, Perplexity()], cbs=LinearCrossEntropy(900))
    for cbs in ([], [Looks()]):
        with pytest.raises(KeyboardInterrupt): learn.validate(cbs=Stop())
        np.testing.assert_allclose(learn.validate(cbs=cbs), want, rtol=1e-5)

def test_not_a_language_model():
    with pytest.raises(TypeError, match='needs a language model.*Sequential of Linear|needs a language model.*RegModel'): synth_learner(cbs=LinearCrossEntropy())
    class Own(nn.Linear):
        def forward(self, x): return super().forward(x)*2
    learn = lm()
    learn.model[1].decoder = Own(8, n_vocab)
    with pytest.raises(TypeError, match='LinearDecoder'): learn.add_cb(LinearCrossEntropy())
    assert not learn._grab_cbs(LinearCrossEntropy)
    with pytest.raises(ValueError, match='at least one logit'): LinearCrossEntropy(0)

# batches of varying length

@pytest.fixture
def dls(tmp_path): return ulmfit_dls(texts(24, 30), label_col=None, path=tmp_path, seed=0, bs=4, bptt=20, min_freq=1).lm_fwd

class Watch(Callback):
    order = Recorder.order
    def before_fit(self): self.x,self.y,self.steps,self.valid,self.n = [],[],[],[],[]
    def before_train(self): self.n.append(len(self.dls.train))
    def before_batch(self):
        if self.training:
            self.x.append(self.xb[0])
            self.y.append(self.yb[0])
        else: self.valid.append(self.xb[0].shape[1])
    def before_step(self): self.steps.append([h['lr'] for h in self.opt.hypers])

def varied(dls, n_epoch=2, cbs=(), fit='fit', lr=0.1, **kwargs):
    learn = lm(dls=dls, opt_func=SGD)
    set_seed(0)
    with learn.no_logging(): getattr(learn, fit)(n_epoch, lr, cbs=[VariableBPTT(std=3), Watch(), *cbs][::kwargs.pop('step', 1)], **kwargs)
    return learn

class Seen(Callback):
    "Keeps what `Watch` saw after the fit"
    order = 200
    def after_fit(self): self.learn.saw = self.watch

def test_lengths():
    lens = np.array(bptt_lengths(3_000_000))
    assert lens.sum()==3_000_000
    short = lens<52
    assert abs(short.mean()-0.05)<0.005
    assert abs(lens[~short].mean()-69.5)<0.2 and abs(lens[short].mean()-34.5)<0.7 and abs(lens[~short].std()-5)<0.1
    for n in range(60):
        lens = bptt_lengths(n, bptt=10, std=4, seed=n)
        assert sum(lens)==n and min(lens, default=5)>=min(5, n)

@pytest.mark.parametrize('step', [1,-1])
def test_every_token_once_in_order(dls, step):
    learn = varied(dls, cbs=[Seen()], step=step)
    w,n = learn.saw,learn.saw.n
    assert len(w.n)==2 and sum(n)==len(w.x) and len({o.shape[1] for o in w.x})>3
    for xs,ys in ((w.x[:n[0]],w.y[:n[0]]), (w.x[n[0]:],w.y[n[0]:])):
        x,y = torch.cat(xs, 1),torch.cat(ys, 1)
        assert x.shape==(4, dls.train.bl)
        assert torch.equal(x[:,1:], y[:,:-1])             # each batch goes on where the one before it ended
        assert torch.equal(x[1:,0], y[:-1,-1])            # and each stream where the one above it ended
    assert set(w.valid[:len(dls.valid)-1])=={20}
    assert dls.train.var_len is None and len(dls.train)==math.ceil(dls.train.bl/20)

@pytest.mark.parametrize('fit', ['fit','fit_one_cycle','fit_flat_cos','fit_stlr'])
def test_rates(dls, fit):
    learn = varied(dls, 3, [Seen()], fit)
    scale = [o.shape[1]/20 for o in learn.saw.x]
    np.testing.assert_allclose([o[-1] for o in learn.saw.steps], np.array(learn.recorder.lrs)*scale, rtol=1e-6)
    assert len(learn.recorder.lrs)==sum(learn.saw.n)

def test_a_rate_for_each_group(dls):
    learn = varied(dls, 1, [Seen()], lr=slice(0.01, 0.1))
    scale = np.array([o.shape[1]/20 for o in learn.saw.x])
    np.testing.assert_allclose(learn.saw.steps, scale[:,None]*np.array([h['lr'] for h in learn.opt.hypers]), rtol=1e-6)

def test_of_two_that_vary_the_first_works(dls):
    "Rates are scaled once"
    learn = varied(dls, 1, [Seen(), VariableBPTT(std=1, seed=1)])
    scale = [o.shape[1]/20 for o in learn.saw.x]
    np.testing.assert_allclose([o[-1] for o in learn.saw.steps], 0.1*np.array(scale), rtol=1e-6)
    assert [o.shape[1] for o in learn.saw.x]==bptt_lengths(dls.train.bl, 20, std=3, seed=[0,0]) and dls.train.var_len is None

def test_accumulated(dls):
    "A step of several batches is scaled by their mean length"
    learn = varied(dls, 1, [Seen(), GradientAccumulation(12)])
    lens = [o.shape[1] for o in learn.saw.x]
    want = [np.mean(lens[i:i+3])/20*0.1 for i in range(0, len(lens)//3*3, 3)]
    np.testing.assert_allclose([o[-1] for o in learn.saw.steps], want, rtol=1e-6)
    np.testing.assert_allclose(learn.recorder.lrs, 0.1, rtol=1e-6)

def test_skipped_steps_leave_the_rate(dls):
    class Skip(Callback):
        order = 300
        def before_step(self):
            if self.iter%2: raise CancelStepException
            if self.iter%3==0: raise CancelBatchException
    learn = varied(dls, 1, [Skip()])
    np.testing.assert_allclose([h['lr'] for h in learn.opt.hypers], 0.1)
    np.testing.assert_allclose(learn.recorder.lrs, 0.1, rtol=1e-6)

def test_same_batches_when_resumed(dls):
    def run(start):
        learn = varied(dls, 3, [Seen()], 'fit_stlr', start_epoch=start)
        return [o.shape[1] for o in learn.saw.x],learn.saw.n
    (a,n),(b,m) = run(0),run(2)
    assert a[sum(n[:2]):]==b and n[2:]==m
    assert a[:n[0]]!=a[n[0]:sum(n[:2])]

def test_stays_out_of_evaluation(dls):
    learn = lm(dls=dls, cbs=VariableBPTT())
    seen = []
    class See(Callback):
        def before_batch(self): seen.append(self.xb[0].shape[1])
    with learn.no_logging(), learn.no_bar():
        learn.validate(0, cbs=See()); learn.get_preds(ds_idx=0, reorder=False, cbs=See())
        assert seen==2*([20]*(dls.train.bl//20) + [dls.train.bl%20]*(dls.train.bl%20>0))
        seen.clear()
        with learn.added_cbs(See()): learn.lr_find(num_it=5, show_plot=False)
        assert seen[:5]==[20]*5
    assert dls.train.var_len is None

@pytest.mark.parametrize('ex', [KeyboardInterrupt, CancelFitException, CancelTrainException, CancelEpochException])
def test_interrupted_bptt(dls, ex):
    learn = lm(dls=dls)
    with learn.no_logging():
        try: learn.fit(2, cbs=[VariableBPTT(), Interrupt('after_batch', ex)])
        except KeyboardInterrupt: pass
    assert dls.train.var_len is None

def test_loader_that_cannot():
    learn = lm(cbs=VariableBPTT())
    learn.validate()
    with pytest.raises(TypeError, match='LMDataLoader'): learn.fit(1)
    for bad in (dict(p=1.5), dict(std=-1), dict(min_len=0)):
        with pytest.raises(ValueError): VariableBPTT(**bad)

def test_both_with_pickle(dls, tmp_path):
    learn = lm(tmp_path, dls, metrics=[accuracy, Perplexity()], cbs=[VariableBPTT(), LinearCrossEntropy(900)])
    with learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    again = pickle.loads(pickle.dumps(learn))
    np.testing.assert_allclose(again.validate(), learn.validate())
    learn.export('m.pkl')
    load_learner(tmp_path/'m.pkl')

@pytest.mark.parametrize('change', [lambda o: o.div_(4.), lambda o: o.select(-1, 5).fill_(-1e4), lambda o: o.__setitem__((...,0), -1e4), lambda o: o.__imul__(2.)])
def test_a_prediction_that_is_written_into(change):
    "Loss, metrics and gradient are those of what was written, as of a tensor"
    class Change(Callback):
        order = 10 # when what the RNN returned is the prediction alone
        def after_pred(self):
            self.learn.pred.std() # somebody looked before
            change(self.learn.pred)
    (a,ga),(b,gb) = [first_step(lm(), [Change(), *cbs]) for cbs in ([], [LinearCrossEntropy(900)])]
    (c,_) = first_step(lm(), [LinearCrossEntropy(900)])
    assert gap(b, a)<1e-6 and gap(c, a)>1e-4
    for i,j in zip(gb, ga):
        if j is not None and j.norm()>0: assert gap(i, j)<1e-5
    got = []
    for cbs in ([], [LinearCrossEntropy(900)]):
        learn = lm(metrics=accuracy, cbs=[Change(), *cbs])
        with learn.no_bar(): got.append(learn.validate())
    np.testing.assert_allclose(got[1], got[0], rtol=1e-5)

def test_a_callback_that_looks_at_predictions():
    "One that has an `after_pred` gets tensors, in every event; they stay what they were when the weights move on"
    class Keep(Callback):
        run_train = False
        def before_fit(self): self.kept = []
        def after_pred(self): pass
        def after_batch(self):
            if self.iter<2: self.kept.append(self.learn.to_detach(self.pred))
    res = []
    for cbs in ([], [LinearCrossEntropy(900)]):
        learn,keep = lm(),Keep()
        set_seed(1)
        with learn.no_logging(): learn.fit(2, 5e-2, cbs=[keep, *cbs])
        res.append(keep.kept)
    assert len(res[0])==4
    for a,b in zip(*res, strict=True): assert gap(b, a)<1e-4
    assert gap(res[0][0], res[0][2])>1e-2

def test_without_a_recorder():
    learn = lm(cbs=LinearCrossEntropy(900), metrics=accuracy)
    learn.remove_cbs([Recorder, ProgressCallback])
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(1)
    learn.validate()
    assert any((a!=b).any() for a,b in zip(before, learn.model.parameters()))

def test_a_validation_that_another_callback_cancels():
    class Cancel(Callback):
        order = -100
        def before_validate(self): raise CancelValidException
    learn = lm(cbs=[LinearCrossEntropy(900), Cancel()])
    with learn.no_logging(): learn.fit(1, 1e-2)
    assert len(learn.recorder.losses)==len(learn.dls.train)

# the loss on a GPU

class Elsewhere(LossOnGPU):
    "As on a GPU; notes what is shown"
    order = LossOnGPU.order
    def before_train(self):
        self.give_back()
        self.begin()
        self.seen = []
    def after_batch(self):
        super().after_batch()
        self.seen.append(self.learn.smooth_loss)

def test_losses_are_the_same_there():
    "Smoothed by the same formula; what is shown is read twice a second, the rest once an epoch"
    def fit(*cbs):
        learn = lm()
        with learn.no_logging(): learn.fit(2, 0.01, cbs=[*cbs, LinearCrossEntropy(900)])
        return learn
    cb = Elsewhere()
    a,b = fit(),fit(cb)
    assert torch.equal(torch.stack(a.recorder.losses), torch.stack(b.recorder.losses)) and a.recorder.values==b.recorder.values
    assert 'accumulate' not in vars(b.recorder.smooth_loss) and torch.equal(a.recorder.smooth_loss.value, b.recorder.smooth_loss.value)
    assert len(set(map(id, cb.seen)))<len(cb.seen) and cb.seen[0] is cb.seen[1]

def test_losses_are_there_after_an_error():
    learn = lm()
    with pytest.raises(KeyboardInterrupt), learn.no_logging(): learn.fit(1, cbs=[Elsewhere(), Interrupt('after_step', KeyboardInterrupt)])
    assert 'accumulate' not in vars(learn.recorder.smooth_loss)

def test_on_a_cpu_the_recorder_smooths():
    learn = lm()
    class Look(Callback):
        def after_batch(self): assert 'accumulate' not in vars(self.recorder.smooth_loss)
    with learn.no_logging(): learn.fit(1, cbs=[LossOnGPU(), Look()])

def test_blocks_by_free_memory(monkeypatch):
    "A quarter of the free memory at 16 bytes a logit, within limits; 2**24 elsewhere"
    gpu = SimpleNamespace(type='cuda')
    for name,value in dict(memory_reserved=3*2**30, memory_allocated=2*2**30).items(): monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for free,want in ((2**30,2**25), (0,2**24), (100*2**30,2**28)):
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (free,None))
        assert module._block_for(gpu)==want
    assert module._block_for(torch.device('cpu'))==2**24
