"""What a training step costs on a GPU, here and in plain fastai, in one run of about a minute.

    python benchmarks/gpu.py                     # the table
    python benchmarks/gpu.py --profile           # what one step of BPT3C in bfloat16 spends its time on
    python benchmarks/gpu.py --rows lm           # only the rows whose name holds this
    python benchmarks/gpu.py --quick             # tiny, also without a GPU: does it work?

It needs PyTorch, fastai and `ulmfit_ext/callback`; no data, no tokenizer. Words and weights are random, which
changes no time here: all that is computed is dense.

Each row is a batch and a precision, each case in it a way to take a step: fastai's, then ours. A step goes
from the moment a batch is on the device until the gradients are there, in a real `fit` with all callbacks, and
is waited for (`synchronize`). The optimizer's step is the same for both and is left out. `ms` is the median of
some steps after two that are not counted, `ratio` is that to fastai, less is better. `MB` is the most that
PyTorch allocated during these steps, on top of what there was before.

fastai's side runs with its own `WeightDropout`, ours with the one that `bfloat16` mends. So in bfloat16
fastai's LSTM computes in float16, without a loss scale; see `nbs/07_callback.precision.ipynb`.
"""
import sys, time
from contextlib import contextmanager
from pathlib import Path
here = Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here.parent)] # `sides`, and the package of this checkout
from fastai.text.all import *
from fastcore.script import call_parse
from sides import Scale,classifier_learner,language_learner,quick_scale,streams

# Batches, on the device

def documents(s, lens, device):
    "Random documents of `lens` tokens, padded as fastai does, and their classes"
    pad,longest = partial(pad_chunk, pad_idx=1, pad_first=True, seq_len=s.bptt),max(lens)
    docs = [pad(TensorText(torch.randint(2, s.vocab, (n,))), pad_len=longest) for n in lens]
    return TensorText(torch.stack([o.as_subclass(Tensor) for o in docs])).to(device),TensorCategory(torch.arange(len(lens))%2).to(device)

def reviews(n, longest):
    "Lengths such as those of reviews, the longest first: from a twelfth of `longest` on"
    return [int(o) for o in np.linspace(longest, longest//12, n)]

# Steps

class Meter(Callback):
    "Time from before a batch until its gradients are there; the batch ends there"
    order = -100
    def __init__(self, wait): self.wait,self.seconds = wait,[]
    def before_batch(self):
        self.wait()
        self.began = time.perf_counter()
    def after_backward(self):
        self.wait()
        self.seconds.append(time.perf_counter()-self.began)
        self.model.zero_grad(set_to_none=True)
        raise CancelBatchException
    def before_validate(self): raise CancelValidException

@contextmanager
def own_weight_dropout():
    "A context that ends with fastai's own `WeightDropout`"
    own = WeightDropout._setweights,WeightDropout.forward
    try: yield
    finally: WeightDropout._setweights,WeightDropout.forward = own

def take_steps(learn, batch, n, device):
    "Milliseconds of a step, and MB that were needed on top"
    cuda = torch.device(device).type=='cuda'
    meter = Meter(torch.cuda.synchronize if cuda else noop)
    dl = DataLoader([batch]*(n+2), bs=None)
    learn.dls = DataLoaders(dl, dl, device=torch.device(device))
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=meter)
    most = torch.cuda.max_memory_allocated()-base if cuda else math.nan
    return 1000*float(np.median(meter.seconds[2:])),most/2**20

def make(kind, s, ours, precision, device):
    "A learner of a side: fastai's where `ours` is None, else with `BPT3C` or `LinearCrossEntropy`"
    from ulmfit_ext.callback.precision import bfloat16,mend_weight_dropout
    if ours is not None: mend_weight_dropout()
    learn = (classifier_learner if kind=='classifier' else language_learner)(s, ours, device)
    if precision=='bf16': learn.add_cb(MixedPrecision(AMPMode.BF16) if ours is None else bfloat16(device))
    return learn

def rows(s, quick):
    "Name, kind, lengths of the documents or number of streams, precisions, and the cases beside fastai's"
    longs,few,many = ([200]*4,reviews(6, 120),reviews(12, 120)) if quick else ([2800]*32,reviews(64, 600),reviews(256, 600))
    kept_and_not = {'BPT3C, kept': dict(checkpoint=False), 'BPT3C, recomputed': dict(checkpoint=True)}
    both = 'fp32','bf16'
    yield f'{len(longs)} documents of {longs[0]}', 'classifier', longs, both, kept_and_not
    for o in (few,many): yield f'{len(o)} reviews', 'classifier', o, both, {'BPT3C': {}}
    for o in ([8,16] if quick else [64,256]): yield f'lm of {o} streams', 'lm', o, both, {'LinearCrossEntropy': {}}

def table(s, quick, n, device, only):
    "Measure all rows"
    print(f"{'':24} {'':5} {'':20} {'ms':>8} {'ratio':>6} {'MB':>8} {'ratio':>6}")
    for name,kind,size,precisions,cases in rows(s, quick):
        if only not in name: continue
        batch = documents(s, size, device) if kind=='classifier' else to_device(streams(s, size), device)
        for precision in precisions:
            base = None
            for case,ours in {'fastai': None, **cases}.items():
                with own_weight_dropout(): ms,mb = take_steps(make(kind, s, ours, precision, device), batch, n, device)
                base = base or (ms,mb)
                print(f"{name:24} {precision:5} {case:20} {ms:8.1f} {ms/base[0]:6.2f} {mb:8.0f} {mb/base[1]:6.2f}", flush=True)

# What a step spends its time on

def profiled(s, quick, device):
    "Print the operations of one step of `BPT3C` in bfloat16 that take most time, on the device and on the CPU"
    from torch.profiler import profile,ProfilerActivity as A
    lens,cuda = reviews(*((6,120) if quick else (64,600))),torch.device(device).type=='cuda'
    batch = documents(s, lens, device)
    with own_weight_dropout():
        learn = make('classifier', s, {}, 'bf16', device)
        take_steps(learn, batch, 2, device)
        learn.dls = DataLoaders(*[DataLoader([batch], bs=None)]*2, device=torch.device(device))
        with profile(activities=[A.CPU]+[A.CUDA]*cuda) as prof, learn.no_bar(), learn.no_logging():
            learn.fit(1, cbs=Meter(torch.cuda.synchronize if cuda else noop))
    ops = prof.key_averages()
    for by in ['self_device_time_total']*cuda + ['self_cpu_time_total']:
        print(f'\n{len(lens)} reviews in bfloat16, by {by}')
        print(ops.table(sort_by=by, row_limit=15, max_name_column_width=60))
    waits = {o.key: o.count for o in ops if any(k in o.key for k in ('Synchronize','_local_scalar_dense','cudaMemcpy','nonzero'))}
    print('\nCalls that may wait for the GPU:', waits, '\nKernels launched:', sum(o.count for o in ops if 'LaunchKernel' in o.key))

@call_parse
def main(
    quick:bool=False, # Tiny, on whatever there is: does it work?
    profile:bool=False, # Show what one step spends its time on, instead of the table?
    steps:int=5, # Steps that are measured
    rows:str='', # Only rows whose name holds this
    device:str=None, # None: a GPU; with `quick` the CPU where there is none
    seed:int=0, # Of words, weights and dropout
):
    "Print what steps cost on a GPU, beside plain fastai"
    warnings.simplefilter('ignore')
    device = device or ('cuda' if torch.cuda.is_available() or not quick else 'cpu')
    if device=='cuda': print(torch.cuda.get_device_name(), 'torch', torch.__version__, flush=True)
    set_seed(seed)
    s = quick_scale if quick else Scale(lm_vocab=30000)
    if profile: profiled(s, quick, device)
    else: table(s, quick, steps, device, rows)
