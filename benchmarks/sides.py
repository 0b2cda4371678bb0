"""What one process of the benchmark does: it prepares a side, plain fastai's or ours, and takes steps of
it.

`benchmark.py` starts such processes and tells them what to do, in lines of JSON (see `serve`).

**Each side has a process of its own.** In one process both would share an allocator: memory that one
gives back is there for the other to use, and a peak belongs to both. The library also mends a few things
in fastai when it is imported. So the process that measures fastai imports nothing of ours, and
`benchmark.py` checks that.

**Memory** is what a step adds: the highest resident size during the step, less that before it. Before
each step there is a short one; then unused memory of Python and the C library goes back to the system.
Linux tells the peak, and can be told to forget it. Elsewhere there is only the highest size since a
process began, so there the first step of a process counts. On a GPU it is PyTorch's own account.

**A training step** is measured where it happens, in a real `fit` with all callbacks: from the moment a
batch is there until the gradients are. The optimizer's step, which is the same for both, is left out.
What must be computed is 6 floating-point operations for each weight and token: a multiplication and an
addition forward, and twice that for the gradients of inputs and weights. What is computed again to save
memory does not count, nor does dropout.
"""
import ctypes, gc, sys, tempfile, traceback
from dataclasses import dataclass
from fastai.text.all import *
from fastai.text.core import defaults

# How large

@dataclass
class Scale:
    "The sizes of all that is measured; by default the paper's model, on data such as IMDb's"
    name:str = 'paper'         # At the paper's size limits are looked at; 'quick' shares processes
    emb_sz:int = 400           # Size of an embedding
    n_hid:int = 1152           # Units of an LSTM
    n_layers:int = 3           # LSTMs
    bptt:int = 72              # Tokens of a document that are read at a time
    bs:int = 8                 # Classifier: documents in a step
    n_tok:int = 2880           # Classifier: tokens in each
    vocab:int = 30000          # Classifier: words
    stage_tok:int = 720        # Tokens of a document for the stages of gradual unfreezing
    lengths:tuple = (1440, 2880, 5760, 11520) # Tokens of a document for memory by length, recomputed
    graph_lengths:tuple = (720, 1440, 2880)   # The same with the whole graph
    lm_bs:int = 64             # Language model: streams
    lm_bptt:int = 70           # Language model: tokens of each
    lm_vocab:int = 60000       # Language model: words
    n_texts:int = 2000         # Prediction: texts in a batch
    calls:int = 20             # Prediction: calls with one text
    data_texts:int = 5000      # Data: texts to make four loaders of
    corpus:int = 100_000_000   # Data: tokens of a corpus on disk
    trec_epochs:int = 8        # Epochs on TREC-6 before rounding to 8 bits
    products:tuple = (1024, 2048, 4096) # Sizes of the matrix products that show what the machine can do

    @property
    def sizes(self): return dict(emb_sz=self.emb_sz, n_hid=self.n_hid, n_layers=self.n_layers)

quick_scale = Scale(
    'quick', emb_sz=32, n_hid=64, n_layers=2, bptt=24, bs=8, n_tok=288, vocab=2000, stage_tok=288,
    lengths=(144, 288, 576), graph_lengths=(96, 144, 288), lm_bs=16, lm_bptt=35, lm_vocab=4000,
    n_texts=60, calls=3, data_texts=150, corpus=200_000, trec_epochs=1, products=(256,))

def lstm_weights(s:Scale) -> int:
    "Weights of the LSTMs, biases left out"
    dims = [s.emb_sz] + [s.n_hid]*(s.n_layers-1) + [s.emb_sz]
    return sum(4*o*(i+o) for i,o in zip(dims, dims[1:]))

# Time and memory

clear_refs = Path('/proc/self/clear_refs')

def proc_status(key):
    "A size in bytes from `/proc/self/status`"
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024

def max_resident():
    "The highest resident size since the process began, in bytes"
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform=='darwin' else 1024)

def trim():
    "Give what is not used back to the system, where the C library can do that"
    gc.collect()
    try: ctypes.CDLL('libc.so.6').malloc_trim(0)
    except (OSError, AttributeError): pass

class Gauge:
    "Time and additional memory between `start` and `stop`"
    def __init__(self,
        device='cpu', # Whose memory to look at
    ):
        self.cuda,self.proc = torch.device(device).type=='cuda',os.access(clear_refs, os.W_OK)
        self.base = None

    def start(self):
        trim()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated()
        elif self.proc:
            clear_refs.write_text('5') # forget the peak
            self.base = proc_status('VmRSS')
        elif self.base is None: self.base = max_resident()
        self.began = time.perf_counter()

    def stop(self) -> dict: # `seconds`, and `bytes` that were needed on top
        if self.cuda: torch.cuda.synchronize()
        seconds = time.perf_counter()-self.began
        if self.cuda:   peak = torch.cuda.max_memory_allocated()
        elif self.proc: peak = proc_status('VmHWM')
        else:           peak = max_resident()
        return dict(seconds=seconds, bytes=max(0, peak-self.base))

class StepMeter(Callback):
    "Measure forward, loss and backward of a batch, and end it there"
    order = -100
    def __init__(self, gauge): self.gauge = gauge
    def before_batch(self): self.gauge.start()
    def after_backward(self):
        self.res = {**self.gauge.stop(), 'loss': self.loss_grad.item()}
        raise CancelBatchException
    def before_validate(self): raise CancelValidException

def measured_step(
    learn:Learner, # Any learner
    batch, # A batch, on any device
    keep_grads:bool=False, # Leave the gradients where they are?
) -> dict: # `seconds`, `bytes` and `loss`
    "Measure one step of `learn` on `batch`"
    dl,meter = DataLoader([batch], bs=None),StepMeter(Gauge(learn.dls.device))
    learn.dls = DataLoaders(dl, dl, device=learn.dls.device)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=meter)
    if not keep_grads: learn.model.zero_grad(set_to_none=True)
    return meter.res

# The sides. Each is a function that prepares something and gives back a function to be called for each
# measurement. It is fastai's where `ours` is None; otherwise `ours` holds the arguments of what replaces it.

sides = {}
def side(f):
    "Register `f` by its name, so that a child process can be asked for it"
    sides[f.__name__] = f
    return f

def on_device(learn, device, precision):
    "`learn` on `device`, under autocast if `precision` is fp16 or bf16"
    learn.model.to(device)
    return learn if precision=='fp32' else getattr(learn, f'to_{precision}')()

def make_learner(cls, model, device, precision):
    "A learner of the class `cls` without data"
    dl = DataLoader([0], bs=None)
    learn = cls(DataLoaders(dl, dl, device=torch.device(device)), model, loss_func=CrossEntropyLossFlat())
    return on_device(learn, device, precision)

def classifier_learner(s, ours, device='cpu', precision='fp32', drop_mult=0.5):
    "A classifier with half of fastai's dropouts; `TextLearner` brings AR and TAR with it (2 and 1)"
    ps = [0.1 if drop_mult else 0.] # fastai's dropout in the head, which `drop_mult` does not scale
    model = get_text_classifier(AWD_LSTM, s.vocab, 2, seq_len=s.bptt, config=s.sizes, drop_mult=drop_mult,
                                max_len=None, ps=ps)
    learn = make_learner(partial(TextLearner, splitter=awd_lstm_clas_split), model, device, precision)
    if ours is not None:
        from ulmfit_ext.callback.bpt3c import BPT3C
        learn.add_cb(BPT3C(s.bptt, **ours))
    return learn

def documents(s, n_tok):
    "A batch of random documents, (bs, n_tok), and their classes, (bs,)"
    return torch.randint(2, s.vocab, (s.bs, n_tok)),torch.arange(s.bs)%2

@side
def classifier(scale, ours=None, device='cpu', precision='fp32'):
    "A step of a classifier; `ours`: arguments of `BPT3C`"
    learn = classifier_learner(scale, ours, device, precision)
    def step(n_tok, freeze_to=0):
        learn.freeze_to(freeze_to)
        for n in (2*scale.bptt, n_tok): res = measured_step(learn, documents(scale, n))
        if freeze_to: return res
        return {**res, 'gflop': 6*lstm_weights(scale)*scale.bs*n_tok/1e9}
    return step

def language_learner(s, ours, device='cpu', precision='fp32', drop_mult=1.):
    "A language model with fastai's dropouts"
    model = get_language_model(AWD_LSTM, s.lm_vocab, {**awd_lstm_lm_config, **s.sizes}, drop_mult)
    learn = make_learner(partial(LMLearner, splitter=awd_lstm_lm_split), model, device, precision)
    if ours is not None:
        from ulmfit_ext.callback.loss import LinearCrossEntropy
        learn.add_cb(LinearCrossEntropy(**ours))
    return learn

def streams(s, bs=None):
    "A batch of a language model: input and target, both (bs, bptt)"
    x = torch.randint(2, s.lm_vocab, (bs or s.lm_bs, s.lm_bptt+1))
    return x[:,:-1].contiguous(),x[:,1:].contiguous()

@side
def lm(scale, ours=None, device='cpu', precision='fp32'):
    "A step of a language model; `ours`: arguments of `LinearCrossEntropy`"
    learn = language_learner(scale, ours, device, precision)
    def step():
        for bs in (2, scale.lm_bs): res = measured_step(learn, streams(scale, bs))
        weights = lstm_weights(scale) + scale.lm_vocab*scale.emb_sz
        return {**res, 'gflop': 6*weights*scale.lm_bs*scale.lm_bptt/1e9}
    return step

def relative(a, b):
    "How far the tensor `a` is from `b`, relative to the size of `b`"
    return ((a-b).norm()/b.norm()).item()

@side
def agreement(scale, ours=None, kind='lm'):
    """How far loss and gradient are from fastai's, relative to their size: a fast step must be the same step.

    Without dropout, AR and TAR included: of the language model in 32 bits, of the classifier in 64 (there
    fastai still computes AR and TAR in 32)."""
    from ulmfit_ext.callback.precision import mend_weight_dropout
    mend_weight_dropout() # fastai's own cannot do without dropout
    if kind=='lm': make,batch = language_learner,streams(scale)
    else:          make,batch = classifier_learner,documents(scale, 4*scale.bptt)
    learns = [make(scale, o, drop_mult=0.) for o in (None,ours)]
    learns[1].model.load_state_dict(learns[0].model.state_dict())
    if kind=='classifier':
        for o in learns: o.model.double()
    def step():
        plain,new = [measured_step(o, batch, keep_grads=True)['loss'] for o in learns]
        grads = [{n:p.grad for n,p in o.model.named_parameters() if p.grad is not None} for o in learns]
        if set(grads[0])!=set(grads[1]): raise ValueError('gradients of different parameters')
        g_plain,g_new = [torch.cat([g[n].flatten() for n in grads[0]]) for g in grads]
        return dict(loss=abs(new-plain)/plain, gradient=relative(g_new, g_plain))
    return step

# Prediction starts from raw text. fastai's side makes a learner as its documentation does, with spaCy's
# tokenizer, and writes down its weights and vocabulary for ours to use. Each round has texts that neither
# side has seen before, since both remember words.

def fastai_predictor(s, folder):
    "fastai's `get_preds` and `predict`, of a learner whose weights are left in `folder`"
    df  = pd.read_json(folder/'texts.json')[:s.n_texts]
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', seed=0, path=folder)
    learn = text_classifier_learner(dls, AWD_LSTM, seq_len=s.bptt, config=s.sizes, pretrained=False,
                                    max_len=None)
    torch.save(learn.model.state_dict(), folder/'model.pth')
    (folder/'vocab.json').write_text(json.dumps(list(dls.vocab[0])))
    def many(texts): return learn.get_preds(dl=learn.dls.test_dl(texts))[0]
    def one(text):   return learn.predict(text)[2][None]
    learn.remove_cb(ProgressCallback)
    return many,one

def our_predictor(s, folder, **kwargs):
    "The same of `Predictor`, with the weights that `fastai_predictor` left; `kwargs` are its arguments"
    from ulmfit_ext.classifier import ulmfit_classifier
    from ulmfit_ext.data import ulmfit_dls
    from ulmfit_ext.predict import Predictor
    vocab = json.loads((folder/'vocab.json').read_text())
    few = pd.read_json(folder/'texts.json')[:s.n_texts].groupby('label').head(4)
    dls = ulmfit_dls(few, vocab=vocab, seed=0, bptt=s.bptt, cache=False, progress=False)
    learn = ulmfit_classifier(dls.clas_fwd, s.sizes, bptt=s.bptt)
    learn.model.load_state_dict(torch.load(folder/'model.pth'))
    many = partial(Predictor(learn, **kwargs), progress=False)
    return many,lambda text: many([text])

@side
def predict(scale, ours=None, folder=''):
    "Raw texts to probabilities, many at a time or one, of 18 words; `ours`: arguments of `Predictor`"
    folder = Path(folder)
    many,one = fastai_predictor(scale, folder) if ours is None else our_predictor(scale, folder, **ours)
    texts = pd.read_json(folder/'texts.json').text.tolist()[scale.n_texts:]
    short = [' '.join(o.split()[:18]) for o in texts]
    rounds = dict(many=iter(chunked(texts, scale.n_texts)), one=iter(chunked(short, scale.calls)))
    one(short[-1])
    def step(kind):
        texts = next(rounds[kind])
        began = time.perf_counter()
        probs = many(texts) if kind=='many' else [one(o)[0] for o in texts]
        seconds = time.perf_counter()-began
        if kind=='many': return dict(seconds=seconds)
        return dict(seconds=seconds/len(texts), probs=[o[0].item() for o in probs])
    return step

@side
def data(scale, ours=None, folder=''):
    """Raw texts to four `DataLoaders`: language model and classifier, forward and backward.

    `ours`: is it a run that finds the tokens of an earlier one? fastai's classifiers reuse the vocabulary of
    its language model, as they must."""
    df = pd.read_json(Path(folder)/'texts.json')
    kw = dict(text_col='text', label_col='label', seed=0)
    def fastais():
        make = TextDataLoaders.from_df
        lms  = [make(df, text_col='text', is_lm=True, seed=0, backwards=b) for b in (False,True)]
        return lms + [make(df, backwards=b, text_vocab=lms[0].vocab, **kw) for b in (False,True)]
    def four(path):
        from ulmfit_ext.data import ulmfit_dls
        dls = ulmfit_dls(df, path=path, progress=False, **kw)
        return dls.lm_fwd,dls.lm_bwd,dls.clas_fwd,dls.clas_bwd
    if ours is not None: four(folder)
    def step():
        with tempfile.TemporaryDirectory() as fresh:
            began = time.perf_counter()
            if ours is None: fastais()
            else: four(folder if ours['cached'] else fresh)
            return dict(seconds=time.perf_counter()-began)
    return step

@side
def corpus(scale, ours=None, folder=''):
    "An epoch of a language model's batches from ids on disk, mapped into memory, in random order"
    from ulmfit_ext.text.tokens import TextProcessor
    from ulmfit_ext.text.loaders import lm_dls
    file,rng,n = Path(folder)/'ids',np.random.default_rng(0),scale.corpus//1000
    with open(file, 'wb') as f:
        for _ in range(n): rng.integers(2, scale.vocab, 1000, dtype=np.uint32).tofile(f)
    processor = TextProcessor(defaults.text_spec_tok + [f'w{i}' for i in range(scale.vocab)])
    def step():
        gauge = Gauge()
        gauge.start()
        ids,offs = np.memmap(file, np.uint32, 'r'),np.arange(n+1)*1000
        dls = lm_dls(ids, offs, 1, processor, bs=scale.lm_bs, bptt=scale.lm_bptt, device='cpu')
        seen = sum(x.numel() for x,_ in dls.train)
        return {**gauge.stop(), 'tokens': seen}
    return step

@side
def rounding(scale, ours=None, file=''):
    "Accuracy on the test questions of TREC-6 in 32 and in 8 bits: rounding must not cost answers"
    from ulmfit_ext.classifier import ulmfit_classifier
    from ulmfit_ext.data import ulmfit_dls
    from ulmfit_ext.predict import Predictor
    from ulmfit_ext.weights import load_lm
    df = pd.read_json(file, lines=True)
    train,test = df[df.split=='train'],df[df.split=='test']
    known = load_lm('small')[1]
    dls = ulmfit_dls(train, seed=0, cache=False, progress=False, valid_pct=0.1, bs=32, known=known)
    set_seed(0)
    learn = ulmfit_classifier(dls.clas_fwd, encoder='small', bptt=scale.bptt)
    with learn.no_bar(), learn.no_logging(): learn.fit_gradual(scale.trec_epochs, 0.01)
    def accuracy(quantize):
        y = tensor([dls.classes.index(o) for o in test.label])
        probs = Predictor(learn, quantize=quantize)(test.text, progress=False)
        return (probs.argmax(1)==y).double().mean().item()
    return lambda: dict(fp32=accuracy(False), int8=accuracy(True))

@side
def products(scale, ours=None, device='cpu', precision='fp32'):
    "What the machine can do at best: the fastest of some products of square matrices, in GFLOP/s"
    dtype = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)[precision]
    pairs = [torch.randn(2, n, n, device=device, dtype=dtype) for n in scale.products]
    def step(**_): # what the other sides of the row are asked for is nothing to it
        best = 0.
        for a,b in pairs*3:
            began = time.perf_counter()
            (a@b)[0,0].item() # waits for a GPU
            best = max(best, 2*len(a)**3/(time.perf_counter()-began)/1e9)
        return dict(gflops=best)
    return step

# The process

def serve():
    """Make sides and take steps as asked on standard input, until it ends.

    A line is `[name, side to make or null, arguments]`. Answers go to standard output, all else that is
    printed to standard error."""
    answers,sys.stdout,steps = sys.stdout,sys.stderr,{}
    for line in sys.stdin:
        name,make,kw = json.loads(line)
        try:
            if make:
                steps[name] = sides[make](Scale(**kw.pop('scale')), **kw)
                res = [o for o in sys.modules if o.startswith('ulmfit_ext')]
                gc.freeze() # what is there stays, and need not be looked through before each step
            else: res = steps[name](**kw)
        except Exception as e: res = dict(error=f'{type(e).__name__}: {e}', traceback=traceback.format_exc())
        print(json.dumps(res), file=answers, flush=True)

if __name__=='__main__': serve()
