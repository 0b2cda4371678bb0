"What is computed on a GPU. It needs torch, fastai and pytest, and a GPU: `pytest tests/test_gpu.py`"
import itertools,warnings
import pytest,torch
from fastai.text.all import *
from fastai.callback.training import GradientClip
from ulmfit_ext.callback.bpt3c import *
from ulmfit_ext.callback.loss import *
from ulmfit_ext.callback.precision import *
from ulmfit_ext.callback.steady import *
from ulmfit_ext.text.loaders import *
from test_bpt3c import classifier,gradients

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')]

@pytest.fixture(autouse=True)
def full_precision():
    "Products of numbers of 32 bits in 32 bits: in TF32, cuDNN's default, they have 10 binary digits"
    kinds = torch.backends.cudnn,torch.backends.cuda.matmul
    was = [o.allow_tf32 for o in kinds]
    for o in kinds: o.allow_tf32 = False
    yield
    for o,on in zip(kinds, was): o.allow_tf32 = on

@pytest.fixture
def mended(monkeypatch):
    "`WeightDropout` is fastai's own again after the test"
    for o in ('forward','_setweights'): monkeypatch.setattr(WeightDropout, o, getattr(WeightDropout, o))
    mend_weight_dropout()

@pytest.mark.parametrize('amp', [None,torch.float16,torch.bfloat16])
@pytest.mark.parametrize('ckpt,cross', [(False,False), (True,False), (False,True)])
def test_agrees_with_cpu(amp, ckpt, cross):
    kw = dict(dtype=torch.float32, drop_mult=0., checkpoint=ckpt, cross=cross)
    cpu,gpu = [gradients(classifier(device=o, **kw), amp=a, no_max=True)[1] for o,a in (('cpu',None), ('cuda',amp))]
    for a,b in zip(cpu, gpu):
        if a is not None and a.abs().max()>0: assert (a-b.cpu()).norm()/a.norm() < (1e-4 if amp is None else .1)

def test_weights_are_contiguous(mended):
    drop,x,hc = WeightDropout(nn.LSTM(9, 9, batch_first=True), .5).cuda(),torch.randn(3, 4, 9).cuda(),[torch.zeros(1, 3, 9).cuda()]*2
    with warnings.catch_warnings():
        warnings.simplefilter('error') # cuDNN warns where it has to copy the weights together
        for ckpt,amp in itertools.product([False,True], [None,torch.float16]):
            gradients(classifier(dtype=torch.float32, device='cuda', checkpoint=ckpt), amp=amp)
        for amp in (None,torch.float16,torch.bfloat16):
            with torch.autocast('cuda', amp, enabled=amp is not None): drop(x, hc)[0].sum().backward()

@pytest.mark.parametrize('amp', [AMPMode.FP16,AMPMode.BF16])
def test_mixed_precision_fits(amp, tmp_path, mended):
    "A classifier and a language model, as a user would fit them"
    rng = np.random.default_rng(0)
    df  = pd.DataFrame([(' '.join(rng.choice([f'w{j}' for j in range(10*k, 10*k+20)], 60)), 'ab'[k]) for k in (0,1)*40], columns=['text','label'])
    cfg = dict(emb_sz=16, n_hid=24, n_layers=2)
    kw  = dict(tok_tfm=BaseTokenizer(), text_col='text', bs=16, seq_len=20, path=tmp_path, device='cuda', num_workers=0)
    clas,lm = TextDataLoaders.from_df(df, label_col='label', **kw),TextDataLoaders.from_df(df, is_lm=True, **kw)
    for learn in (text_classifier_learner(clas, AWD_LSTM, config={**awd_lstm_clas_config, **cfg}, pretrained=False, cbs=BPT3C(20)),
                  language_model_learner(lm, AWD_LSTM, config={**awd_lstm_lm_config, **cfg}, pretrained=False, cbs=LinearCrossEntropy())):
        learn.add_cb(MixedPrecision(amp) if amp==AMPMode.FP16 else bfloat16('cuda'))
        with learn.no_bar(), learn.no_logging(): learn.fit(4, 0.01)
        first,last = learn.recorder.losses[0],learn.recorder.losses[-1]
        assert torch.isfinite(last) and last<first

def errors(make, run, scale):
    "Relative errors of the gradients of a module in bfloat16, where those of its output are about `scale`, against 64 bits"
    res = []
    for dtype in (torch.float32,torch.float64):
        torch.manual_seed(0)
        m = make().cuda().to(dtype)
        with torch.autocast('cuda', torch.bfloat16, enabled=dtype==torch.float32): out = run(m, dtype)
        g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()*scale
        out.backward(g.cuda().to(out.dtype))
        res.append({n: p.grad.double() for n,p in m.named_parameters() if p.grad is not None})
    return {n: ((a-b).norm()/b.norm()).item() for (n,a),b in zip(res[0].items(), res[1].values())}

@pytest.mark.parametrize('scale', [3e-5,3e-6,3e-7])
def test_small_gradients_survive_bfloat16(scale, mended):
    "autocast would run cuDNN's LSTM in float16, in which these are 7 % wrong, half wrong, and nothing"
    def make(): return AWD_LSTM(1000, 256, 768, 3, hidden_p=0., input_p=0., embed_p=0., weight_p=0.).train()
    def run(m, dtype):
        m.reset()
        return m(torch.randint(2, 1000, (64,70), generator=torch.Generator().manual_seed(0)).cuda())
    got = errors(make, run, scale)
    assert len(got)==13 and max(got.values())<.02, got

lstm = partial(nn.LSTM, 12, 16)
@pytest.mark.parametrize('rnn', [lstm, partial(lstm, batch_first=True), partial(lstm, batch_first=True, bias=False), partial(lstm, bidirectional=True, batch_first=True),
                                 partial(lstm, proj_size=8, batch_first=True), partial(nn.GRU, 12, 16), partial(nn.RNN, 12, 16)])
@pytest.mark.parametrize('how', ['state','no state','packed'])
def test_any_recurrent_module_survives_bfloat16(rnn, how, mended):
    def run(m, dtype):
        x = torch.randn(6, 5, 12, generator=torch.Generator().manual_seed(0)).cuda().to(dtype)
        if how=='packed': return m(nn.utils.rnn.pack_padded_sequence(x, [5]*6 if m.module.batch_first else [6]*5, m.module.batch_first))[0].data
        if how=='no state': return m(x)[0]
        hc = m(x)[1] # its shapes depend on the module
        hc = tuple(torch.zeros_like(o) for o in hc) if isinstance(hc, tuple) else torch.zeros_like(hc)
        return m(x, hc)[0]
    got = errors(lambda: WeightDropout(rnn(), 0.), run, 3e-7)
    assert len(got)>=2 and max(got.values())<.02, got

def test_state_of_another_type(mended):
    "What was read under autocast goes on without, and the other way round"
    drop,x = WeightDropout(lstm(batch_first=True), 0.).cuda(),torch.randn(3, 4, 12).cuda()
    with torch.autocast('cuda', torch.bfloat16): out,hc = drop(x, [torch.zeros(1, 3, 16).cuda()]*2)
    assert out.dtype==hc[0].dtype==torch.bfloat16
    out,hc = drop(x, hc)
    assert out.dtype==hc[0].dtype==torch.float32
    with torch.autocast('cuda', torch.bfloat16): assert drop(x, hc)[0].dtype==torch.bfloat16

def stream_dls():
    "Streams of made-up ids, without a tokenizer"
    ids,offs = np.random.default_rng(0).integers(2, 50, 3000).astype(np.uint16),np.arange(0, 3001, 100)
    processor = SimpleNamespace(vocab=[f'w{i}' for i in range(50)], tokenizer=SimpleNamespace(sep=' '))
    return lm_dls(ids, offs, 3, processor, bs=8, bptt=20, device='cuda')

class NeverWait(Callback):
    "From the third batch of an epoch on, whatever waits for the GPU is an error"
    order = 100
    def after_batch(self):
        if self.training and self.iter==1:
            self.loss_on_gpu.read_at = math.inf # what is shown is read now and then
            torch.cuda.set_sync_debug_mode('error')
        if self.iter==self.n_iter-2: self.stop()
    def stop(self): torch.cuda.set_sync_debug_mode('default')

@pytest.mark.parametrize('bf16', [False,True])
def test_no_batch_of_a_language_model_waits(bf16, mended):
    learn = language_model_learner(stream_dls(), AWD_LSTM, config={**awd_lstm_lm_config, **dict(emb_sz=16, n_hid=24, n_layers=2)}, pretrained=False)
    cbs,never = [LinearCrossEntropy(), LossOnGPU(), GradientClip(.25), StopOnNaN(every=99)] + ([bfloat16('cuda')] if bf16 else []),NeverWait()
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.01, cbs=[*cbs, never])
    finally: never.stop()
    losses = learn.recorder.losses
    assert len(losses)==2*len(learn.dls.train) and all(o.device.type=='cpu' for o in losses) and losses[-1]<losses[0]

def test_batches_are_those_of_the_cpu():
    dl = stream_dls().valid
    gpu = [o.cpu() for b in dl for o in b]
    dl.device = torch.device('cpu')
    assert all(torch.equal(a, b) for a,b in zip(gpu, [o for b in dl for o in b])) and len(gpu)==2*len(dl)

def test_as_many_chunks_side_by_side_as_fill_the_gpu():
    "So reading again takes less time than what it saves: 'auto' does so wherever there is more than one chunk"
    enc = classifier(device='cuda', checkpoint='auto')[0]
    assert enc.recomputes(tensor([9,1])) and not enc.recomputes(tensor([8,1]))
    enc.bptt = 70
    assert enc.most_rows()>400
