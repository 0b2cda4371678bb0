"How `BPT3C` goes backward: in any mode, with any engine, the same gradient; what is frozen or out of reach costs nothing"
import itertools,warnings
import pytest,torch
from fastai.text.all import *
from ulmfit_ext.callback.bpt3c import *
from ulmfit_ext.callback.bpt3c import _Dropped
from ulmfit_ext.callback.lstm import *

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
lens = [50,33,32,20,7,1]

def batch(device='cpu'):
    g = torch.Generator().manual_seed(0)
    return torch.stack([F.pad(torch.randint(2, 40, (n,), generator=g), (50-n,0), value=1) for n in lens]).to(device)

def classifier(drop_mult=1., dtype=torch.double, device='cpu', **kwargs):
    torch.manual_seed(0)
    model = get_text_classifier(AWD_LSTM, 40, 2, config=dict(emb_sz=6, n_hid=9, n_layers=3), drop_mult=drop_mult).to(device, dtype)
    model[0],model[1] = ChunkedEncoder(model[0].module, **{**dict(bptt=8, checkpoint=False), **kwargs}),PooledClassifier(model[1].layers)
    return model.train()

def gradients(model, seed=1, retain=False, amp=None, no_max=False):
    torch.manual_seed(seed)
    model.zero_grad()
    x = batch(one_param(model).device)
    with torch.autocast(x.device.type, dtype=amp, enabled=amp is not None):
        pooled,ar,tar = model[0](x)
        if no_max: pooled = torch.cat(pooled.chunk(3, 1)[::2], 1) # which output is the highest is not smooth
        loss = (pooled*torch.linspace(-1, 1, pooled.numel(), device=x.device).view(pooled.shape)).sum() + 2*ar + tar
    loss.backward(retain_graph=retain)
    return loss,[None if p.grad is None else p.grad.clone() for p in model[0].parameters()]

def same(a, b, tol=1e-11):
    for x,y in zip(a, b):
        assert (x is None)==(y is None)
        if x is not None: assert torch.allclose(x, y, rtol=tol, atol=tol), (x-y).abs().max()

@pytest.fixture
def torch_layers(monkeypatch):
    "The engine that a GPU gets, on this machine"
    def _f(): monkeypatch.setattr(_Dropped, '_layer', staticmethod(lambda ws, bs: TorchLSTM(ws, torch.is_grad_enabled() and any(w.requires_grad for w in ws), ws[0].dtype)))
    return _f

@pytest.mark.parametrize('max_len,cross', list(itertools.product([None,1,20,33], [False,True])))
def test_every_mode_has_the_same_gradient(max_len, cross, torch_layers):
    res = []
    for engine in ('steps','torch'):
        if engine=='torch': torch_layers()
        for ckpt,rows in itertools.product([False,True], [1,48]):
            model = classifier(checkpoint=ckpt, max_len=max_len, cross=cross)
            model[0].rows = rows
            res.append(gradients(model))
    for loss,grads in res[1:]:
        assert torch.allclose(loss, res[0][0], rtol=1e-11)
        same(grads, res[0][1])

def test_crossing_borders_is_one_long_chunk():
    a,b = [gradients(classifier(drop_mult=0., **o))[1] for o in (dict(bptt=8, cross=True), dict(bptt=1000))]
    same(a, b)
    with pytest.raises(AssertionError): same(gradients(classifier(drop_mult=0., bptt=8))[1], b)

def test_backward_twice():
    model = classifier()
    loss,once = gradients(model, retain=True)
    model.zero_grad()
    loss.backward()
    same([p.grad for p in model[0].parameters()], once)

def test_two_batches_before_one_backward():
    model = classifier(drop_mult=0.)
    x = batch()
    a,b = model[0](x[:3])[0],model[0](x[3:])[0]
    (a.sum()+b.sum()).backward()
    got = [p.grad.clone() for p in model[0].parameters() if p.grad is not None]
    model.zero_grad()
    model[0](x)[0].sum().backward()
    same(got, [p.grad for p in model[0].parameters() if p.grad is not None])

class Tapes:
    "Notes every tape that is made, and whether it is still there"
    def __init__(self, monkeypatch):
        self.made,self.live,make = [],0,StepLSTM.tape
        self.most = 0
        import weakref
        def _tape(layer, steps, rows):
            res = make(layer, steps, rows)
            self.made.append((layer.w_ih.shape[1], steps, rows))
            self.live += 1
            self.most = max(self.most, self.live)
            weakref.finalize(res[1], lambda: setattr(self, 'live', self.live-1))
            return res
        monkeypatch.setattr(StepLSTM, 'tape', _tape)

@pytest.mark.parametrize('ckpt', [False,True])
def test_memory_is_that_of_a_group(ckpt, monkeypatch):
    tapes,model = Tapes(monkeypatch),classifier(checkpoint=ckpt, bptt=2)
    model[0].rows = 12
    gradients(model)
    assert all(rows<=12 for _,_,rows in tapes.made)
    assert tapes.most==3 if ckpt else tapes.most>9 # one for each layer, or all of them

@pytest.mark.parametrize('frozen', range(4))
def test_frozen_layers_leave_no_tape(frozen, monkeypatch):
    full = gradients(classifier())[1]
    tapes,model = Tapes(monkeypatch),classifier()
    awd,grads = model[0].module,None
    for m in [awd.encoder, *awd.rnns][:frozen]:
        for p in m.parameters(): p.requires_grad_(False)
    got = gradients(model)[1]
    n_in = [6,9,9]
    assert {n for n,_,_ in tapes.made}==set(n_in[max(frozen-1, 0):]) and len({(n,s) for n,s,_ in tapes.made})>0
    assert len(tapes.made)%(3-max(frozen-1, 0))==0
    for p,a,b in zip(model[0].parameters(), got, full):
        assert (a is None)==(not p.requires_grad or b is None)
        if a is not None: same([a], [b])

def test_all_frozen_builds_nothing(monkeypatch):
    tapes,model = Tapes(monkeypatch),classifier()
    for p in model[0].parameters(): p.requires_grad_(False)
    pooled,ar,tar = model[0](batch())
    assert not pooled.requires_grad and not tapes.made

def test_only_the_embedding(monkeypatch):
    "As in chain-thaw: the gradient passes layers that do not train"
    full,model = gradients(classifier())[1],classifier()
    for p in model[0].module.rnns.parameters(): p.requires_grad_(False)
    same(gradients(model)[1][:1], full[:1])

def test_out_of_reach_leaves_no_tape(monkeypatch):
    tapes,model = Tapes(monkeypatch),classifier(max_len=10)
    gradients(model)
    assert sum(s*r for n,s,r in tapes.made if n==6) < 8*6*2+1 # two chunks of at most six rows, of 143 tokens in all

def test_auto_decides_by_length_and_budget():
    enc = classifier(checkpoint='auto')[0]
    assert not enc.recomputes(tensor([1000]*8))
    enc.memory_budget = 1000*8*8*(6*24+24) # ids of 1,000 tokens, 8 texts, 8 bytes, six numbers a unit and one an input
    assert not enc.recomputes(tensor([1000]*8)) and enc.recomputes(tensor([1001]*8))

def test_bf16_autocast():
    a,b = [gradients(classifier(dtype=torch.float32, drop_mult=0.), amp=o, no_max=True)[1] for o in (None, torch.bfloat16)]
    for x,y in zip(a, b):
        if x is not None and x.abs().max()>0: assert y.dtype==torch.float32 and 0 < (x-y).norm()/x.norm() < .1

@pytest.mark.parametrize('most,steps', [(16,4), (5,None), (None,None), (7,50)])
def test_pool_each_in_any_order_and_reads_at_most_max_tokens(most, steps, monkeypatch):
    enc,seen,read = classifier(dtype=torch.float32)[0].eval(),[],_Dropped.read
    monkeypatch.setattr(_Dropped, 'read', lambda self, x, *args: (seen.append(x.numel()), read(self, x, *args))[1])
    docs = [o[o!=1] for o in batch()]
    want = torch.cat([enc(d[None])[0] for d in docs]).detach()
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 77):
        got = torch.empty(6, 18)
        seen.clear()
        for i,o in enc.train(order[0]==5).pool_each([docs[j] for j in order], most, steps): got[i] = o # no dropout in training mode either
        assert torch.allclose(got, want[list(order)], atol=1e-6)
        assert most is None or max(seen)<=most
    assert not list(enc.pool_each([]))

def test_nothing_is_kept_after_backward():
    "Whoever keeps the prediction does not keep gradients and layouts of matrices"
    model = classifier(dtype=torch.float32)
    pooled,ar,tar = model[0](batch())
    (pooled.sum()+ar).backward()
    for o in pooled.grad_fn.next_functions[0][0].reading.drop.layers: assert o.grad is None and not {'by_hh','by_hh_T'} & set(vars(o))

def test_half_model():
    model = classifier(dtype=torch.bfloat16)
    model(batch())[0].float().sum().backward()
    assert torch.isfinite(model[0].module.encoder.weight.grad).all()

def test_subclass_of_tensor():
    "fastai's loaders give `TensorText`: nothing inside sees it"
    model = classifier()
    out = model[0](TensorText(batch()))[0]
    assert type(out) is Tensor

def test_no_documents():
    model = classifier().eval()
    assert model[0](batch()[:0])[0].shape==(0,18)

@cuda
@pytest.mark.parametrize('amp', [None,torch.float16,torch.bfloat16])
@pytest.mark.parametrize('ckpt,cross', list(itertools.product([False,True], [False,True])))
def test_gpu_agrees_with_cpu(amp, ckpt, cross):
    kw = dict(dtype=torch.float32, drop_mult=0., checkpoint=ckpt, cross=cross)
    cpu,gpu = [gradients(classifier(device=o, **kw), amp=a, no_max=True)[1] for o,a in (('cpu',None), ('cuda',amp))]
    for a,b in zip(cpu, gpu):
        if a is not None and a.abs().max()>0: assert (a-b.cpu()).norm()/a.norm() < (1e-4 if amp is None else .1)

@cuda
def test_gpu_weights_are_contiguous():
    with warnings.catch_warnings():
        warnings.simplefilter('error') # cuDNN warns where it has to copy the weights together
        gradients(classifier(dtype=torch.float32, device='cuda'))
        gradients(classifier(dtype=torch.float32, device='cuda'), amp=torch.float16)

@cuda
@pytest.mark.parametrize('amp', [AMPMode.FP16,AMPMode.BF16])
def test_gpu_mixed_precision_fits(amp, tmp_path):
    "A classifier and a language model, as a user would fit them"
    from ulmfit_ext.callback.loss import LinearCrossEntropy
    rng = np.random.default_rng(0)
    df  = pd.DataFrame([(' '.join(rng.choice([f'w{j}' for j in range(10*k, 10*k+20)], 60)), 'ab'[k]) for k in (0,1)*40], columns=['text','label'])
    cfg = dict(emb_sz=16, n_hid=24, n_layers=2)
    clas = TextDataLoaders.from_df(df, tok_tfm=BaseTokenizer(), text_col='text', label_col='label', bs=16, seq_len=20, path=tmp_path, device='cuda')
    lm   = TextDataLoaders.from_df(df, tok_tfm=BaseTokenizer(), text_col='text', is_lm=True, bs=16, seq_len=20, path=tmp_path, device='cuda')
    for learn in (text_classifier_learner(clas, AWD_LSTM, config=cfg, pretrained=False, cbs=BPT3C(20)),
                  language_model_learner(lm, AWD_LSTM, config=cfg, pretrained=False, cbs=LinearCrossEntropy())):
        learn.add_cb(MixedPrecision(amp))
        with learn.no_bar(), learn.no_logging(): learn.fit(4, 0.01)
        first,last = learn.recorder.losses[0],learn.recorder.losses[-1]
        assert torch.isfinite(last) and last<first

@pytest.mark.parametrize('often', [1, 7, 50])
def test_remembered_words_change_nothing(often, monkeypatch):
    enc,rng = classifier(dtype=torch.float32)[0].eval(),np.random.default_rng(0)
    docs,got = [torch.from_numpy(2+rng.zipf(1.5, 20*i)%38) for i in range(1, 9)],[]
    for n in (often, 10**6):
        monkeypatch.setattr(_Dropped, 'often', n)
        drop = _Dropped(enc.module, 8, training=False)
        drop.remember(torch.cat(docs))
        assert (drop.known is not None)==(n==often)
        got.append(torch.empty(8, 18))
        for i,o in enc.pool_each(docs, 64, 8): got[-1][i] = o
    assert torch.allclose(*got, atol=1e-6)
