"How `BPT3C` goes backward: in any mode the same gradient; what is frozen or out of reach costs nothing"
import itertools,weakref
from copy import deepcopy
import pytest,torch
from fastai.text.all import *
from ulmfit_ext.callback.bpt3c import *

lens = [50,33,32,20,7,1]
both = pytest.mark.parametrize('ckpt', [False,True])

def batch(device='cpu', times=1):
    "Documents of `lens` tokens, `times` as many"
    g = torch.Generator().manual_seed(0)
    docs = [torch.randint(2, 40, (n*times,), generator=g) for n in lens]
    return torch.stack([F.pad(o, (50*times-len(o),0), value=1) for o in docs]).to(device)

def classifier(drop_mult=1., dtype=torch.double, device='cpu', **kwargs):
    torch.manual_seed(0)
    model = get_text_classifier(AWD_LSTM, 40, 2, config=dict(emb_sz=6, n_hid=9, n_layers=3), drop_mult=drop_mult).to(device, dtype)
    model[0],model[1] = ChunkedEncoder(model[0].module, **{**dict(bptt=8, checkpoint=False), **kwargs}),PooledClassifier(model[1].layers)
    return model.train()

def gradients(model, seed=1, retain=False, amp=None, no_max=False, times=1):
    torch.manual_seed(seed)
    model.zero_grad()
    x = batch(one_param(model).device, times)
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

@pytest.mark.parametrize('max_len', [None,1,20,33])
def test_every_mode_has_the_same_gradient(max_len):
    loss,grads = gradients(classifier(max_len=max_len))
    for rows in (1,10,24,1000):
        model = classifier(checkpoint=True, max_len=max_len)
        model[0].rows = rows
        again,got = gradients(model)
        assert torch.allclose(again, loss, rtol=1e-11)
        same(got, grads)

@pytest.mark.parametrize('max_len', [None,1,20,33])
def test_crossing_borders_is_one_long_chunk(max_len):
    modes = dict(bptt=8, cross=True),dict(bptt=1000),dict(bptt=8, cross=True, checkpoint='auto')
    a,b,c = [gradients(classifier(drop_mult=0., max_len=max_len, **o))[1] for o in modes]
    same(a, b)
    same(c, b)
    if max_len==1: return # there is no border to cross
    with pytest.raises(AssertionError): same(gradients(classifier(drop_mult=0., max_len=max_len, bptt=8))[1], b)

@both
def test_backward_twice(ckpt):
    model = classifier(checkpoint=ckpt)
    loss,once = gradients(model, retain=True)
    model.zero_grad()
    loss.backward()
    same([p.grad for p in model[0].parameters()], once)

@both
def test_two_batches_before_one_backward(ckpt):
    model = classifier(drop_mult=0., checkpoint=ckpt)
    x = batch()
    a,b = model[0](x[:3])[0],model[0](x[3:])[0]
    (a.sum()+b.sum()).backward()
    got = [p.grad.clone() for p in model[0].parameters() if p.grad is not None]
    model.zero_grad()
    model[0](x)[0].sum().backward()
    same(got, [p.grad for p in model[0].parameters() if p.grad is not None])

@both
def test_dropout_is_drawn_once_a_document(ckpt):
    "As many random numbers for ten times as many chunks, and none in the backward pass"
    model,left = classifier(checkpoint=ckpt),[]
    for times in (1,10):
        torch.manual_seed(1)
        out = model[0](batch(times=times))[0]
        left.append(torch.rand(3))
        torch.manual_seed(1)
        out.sum().backward()
        left.append(torch.rand(3))
    torch.manual_seed(1)
    assert torch.equal(left[0], left[2]) and not torch.equal(left[0], left[1])
    assert torch.equal(left[1], left[3]) and torch.equal(left[1], torch.rand(3))

class Held:
    "Bytes that autograd holds for the backward pass, of what is neither parameter nor held already"
    def __init__(self, model):
        self.params,self.held,self.most,self.now = {p.data_ptr() for p in model.parameters()},weakref.WeakValueDictionary(),0,0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda o: o.tensor)

    def pack(self, t):
        class Box: pass # the same for all tensors that share memory
        at = t.untyped_storage().data_ptr()
        box = self.held.get(at)
        if box is None and at not in self.params:
            box,n = Box(),t.untyped_storage().nbytes()
            self.held[at],box.storage = box,t.untyped_storage()
            self.now += n
            self.most = max(self.most, self.now)
            weakref.finalize(box, lambda: setattr(self, 'now', self.now-n))
        return SimpleNamespace(tensor=t, box=box)

def held(times=1, **kwargs):
    model = classifier(**kwargs)
    model[0].rows = 12
    res = Held(model)
    with res.hooks: loss,_ = gradients(model, times=times)
    assert res.now==0 # whoever keeps the loss does not keep what was needed for the gradient
    return res.most

def test_memory_is_that_of_a_group():
    "Recomputed, whatever the documents' length; kept, in proportion to it"
    again,kept = [[held(times=o, checkpoint=c, bptt=2) for o in (1,4)] for c in (True,False)]
    assert again[1]<1.02*again[0] and again[0]<.5*kept[0] and kept[1]>3*kept[0]

@pytest.fixture
def graphs(monkeypatch):
    "Input size, steps and rows of each call of PyTorch's LSTM that leaves a graph"
    seen,lstm = [],torch.lstm
    def _lstm(x, *args):
        res = lstm(x, *args)
        if res[0].requires_grad: seen.append((x.shape[2], *x.shape[:2]))
        return res
    monkeypatch.setattr(torch, 'lstm', _lstm)
    return seen

@both
@pytest.mark.parametrize('frozen', range(4))
def test_frozen_layers_leave_no_graph(frozen, ckpt, graphs):
    full = gradients(classifier())[1]
    graphs.clear()
    model = classifier(checkpoint=ckpt)
    awd = model[0].module
    for m in [awd.encoder, *awd.rnns][:frozen]:
        for p in m.parameters(): p.requires_grad_(False)
    got = gradients(model)[1]
    trained = 3-max(frozen-1, 0)
    assert {n for n,_,_ in graphs}==set([6,9,9][-trained:]) and len(graphs)%trained==0
    assert sum(s*r for n,s,r in graphs)<=trained*7*6*8 # each chunk once: seven of at most six rows
    for p,a,b in zip(model[0].parameters(), got, full):
        assert (a is None)==(not p.requires_grad or b is None)
        if a is not None: same([a], [b])

@both
def test_all_frozen_builds_nothing(ckpt, graphs):
    model = classifier(checkpoint=ckpt)
    for p in model[0].parameters(): p.requires_grad_(False)
    pooled,ar,tar = model[0](batch())
    assert not pooled.requires_grad and not graphs and ar is None and tar is None

@both
def test_only_the_embedding(ckpt):
    "As in chain-thaw: the gradient passes layers that do not train"
    full,model = gradients(classifier())[1],classifier(checkpoint=ckpt)
    for p in model[0].module.rnns.parameters(): p.requires_grad_(False)
    same(gradients(model)[1][:1], full[:1])

@both
def test_out_of_reach_leaves_no_graph(ckpt, graphs):
    gradients(classifier(max_len=10, checkpoint=ckpt))
    assert graphs and sum(s*r for n,s,r in graphs if n==6) <= 8*(6+4) # a chunk of eight steps and six rows, one of four rows, of 143 tokens in all

@pytest.mark.parametrize('rows,times', [(24,1), (10,3), (4,5)])
def test_chunks_are_read_again_side_by_side(rows, times, graphs):
    "Of 6, 4, 4, 3, 2, 1 and 1 rows; the last one has two steps, and padding"
    model = classifier(checkpoint=True)
    model[0].rows = rows
    gradients(model)
    assert len(graphs)==3*times and sum(r for n,s,r in graphs if n==6)==21

@both
def test_the_gradient_of_all_embeddings_is_made_once(ckpt, monkeypatch):
    "It is as large as they are: not a new one for every chunk"
    seen,embedding = [],F.embedding
    def _embedding(*args):
        res = embedding(*args)
        if res.requires_grad: seen.append(res)
        return res
    monkeypatch.setattr(F, 'embedding', _embedding)
    gradients(classifier(checkpoint=ckpt), times=3)
    assert len(seen)==(0 if ckpt else 1)

def test_auto_decides_by_length_and_budget():
    enc = classifier(checkpoint='auto')[0]
    assert not enc.recomputes(tensor([1000]*8))
    enc.memory_budget = next(n for n in itertools.count(10**6, 10**4) if setattr(enc, 'memory_budget', n) or not enc.recomputes(tensor([1000]*8)))
    assert enc.recomputes(tensor([1010]*8)) and enc.recomputes(tensor([8080])) and not enc.recomputes(tensor([8000]))

@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='other kernels keep something else')
def test_auto_knows_what_is_kept():
    "Half and twice what autograd holds, on both sides of the decision"
    model = get_text_classifier(AWD_LSTM, 40, 2, config=dict(emb_sz=60, n_hid=90, n_layers=3))
    enc,x = ChunkedEncoder(model[0].module, 10, checkpoint=False).train(),batch(times=20)
    seen = Held(enc)
    with seen.hooks: enc(x)[0].sum().backward()
    enc.checkpoint = 'auto'
    for times,want in ((.5,True), (2,False)):
        enc.memory_budget = times*seen.most
        assert enc.recomputes((x!=1).sum(1)) is want

@both
def test_bf16_autocast(ckpt):
    modes = (None,False),(torch.bfloat16,ckpt)
    a,b = [gradients(classifier(dtype=torch.float32, drop_mult=0., checkpoint=c), amp=o, no_max=True)[1] for o,c in modes]
    for x,y in zip(a, b):
        if x is not None and x.abs().max()>0: assert y.dtype==torch.float32 and 0 < (x-y).norm()/x.norm() < .1

@both
def test_half_model(ckpt):
    model = classifier(dtype=torch.bfloat16, checkpoint=ckpt)
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

def test_nan_is_not_lost():
    pool,out = RunningPool(tensor([6]), 2),torch.zeros(3, 1, 2)
    out[1,0,0] = math.nan
    pool.add(out, tensor([3]), tensor([0]))
    pool.add(torch.ones(3, 1, 2), tensor([3]), tensor([3]))
    assert pool.concat().isnan().tolist()==[[False,False,True,False,True,False]]

@both
def test_a_model_can_be_copied_while_a_batch_is_under_way(ckpt):
    "The module itself holds nothing of a batch"
    model = classifier(drop_mult=0., checkpoint=ckpt)
    with torch.no_grad(): model.reset() # fastai's `WeightDropout` holds weights that cannot be copied
    loss,copy = model[0](batch())[0].sum(),deepcopy(model)
    loss.backward()
    copy[0](batch())[0].sum().backward()
    same(*[[p.grad for p in o[0].parameters()] for o in (model,copy)])
