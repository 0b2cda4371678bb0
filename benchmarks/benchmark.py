"""What a step, a prediction and a data set cost here and in plain fastai, measured in turn in one run.

    python benchmarks/benchmark.py --out results.json     # everything at the paper's size, which takes long
    python benchmarks/benchmark.py classifier lm          # some rows
    python benchmarks/benchmark.py --quick                # everything, tiny: a check that it works

That something is fast says little. That it is so many times as fast as what one would have used instead,
on the same machine in the same minutes, says what one wants to know. So each promise about time and
memory is measured as a ratio to plain fastai; less is better. The notebook
`nbs/experiments/performance.ipynb` draws what was found.

**In turn.** Clocks of processors, and what else a machine does, change over minutes. So all processes of
a row stay alive and take a step each, one after the other: fastai, ours, ours with another setting;
fastai, ours, ... A ratio is that of two steps of one round: what slows the machine down slows both. Who
waits, waits for its standard input and uses no processor time. What one process does, and how time and
memory are measured, is told in `sides.py`.

What to keep in mind:

- A shared machine is noisy. Measuring in turn takes out what is slow to change, not a burst in one step:
  look at `min` and `max`, and repeat.
- What was freed goes back to the system before a measured step, which then pays for fetching it again.
  Who needs more, pays a little more.
- Resident size is what a step needs from the system. Memory that stays resident after the short step and
  is used again is not in it.
- Left out are the optimizer, the reading of batches, starting up, and what fastai's worker processes
  need.
- The weights are random. That changes no time here, as all that is computed is dense.
- The share of the machine's peak counts what must be computed. A recomputed step does more, and its
  share says less about how busy the machine is.

The texts are IMDb's reviews where the environment variable `ULMFIT_DATA` names a folder with
`imdb.jsonl.gz` (rows with `text` and `label`). Where it does not, they are made up, with lengths and
frequencies of words such as those. The same folder may hold `trec6.jsonl.gz` (`text`, `label`, `split`),
without which the row `int8` is left out.
"""
import itertools, json, math, os, platform, re, subprocess, sys, tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated
import numpy as np, pandas as pd, torch, typer

here = Path(__file__).resolve().parent
for folder in (here, here.parent): # `sides`, and the package of this checkout
    if str(folder) not in sys.path: sys.path.insert(0, str(folder))
from sides import Scale, quick_scale

# A process

class Child:
    "A Python process that serves sides (`sides.serve`); ends with the `with` block"
    def __enter__(self):
        path = os.pathsep.join(filter(None, [str(here.parent), os.environ.get('PYTHONPATH')]))
        env  = {**os.environ, 'PYTHONWARNINGS':'ignore', 'PYTHONPATH':path}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.proc = subprocess.Popen([sys.executable, str(here/'sides.py')], env=env, text=True, **pipes)
        return self

    def __exit__(self, *args):
        self.proc.stdin.close()
        if args[0]: self.proc.kill()
        self.proc.wait()
        self.proc.stdout.close()

    def ask(self,
        name:str, # What the side is called from now on
        make:str=None, # Which side to make; None: take a step of it
        **kwargs
    ): # What a step measured; when a side is made, which modules of this library the child has imported
        "Have the child do something. Raises `RuntimeError` where it fails or ends"
        try:
            print(json.dumps([name, make, kwargs]), file=self.proc.stdin, flush=True)
            line = self.proc.stdout.readline()
        except BrokenPipeError: line = ''
        if not line:
            raise RuntimeError(f'The process that measured {name} ended with code {self.proc.wait()}; '
                               '-9 mostly means that memory was short')
        res = json.loads(line)
        if 'error' in res:
            print(res['traceback'], file=sys.stderr)
            raise RuntimeError(f"{name} failed with {res['error']}")
        return res

# Taking turns

def say(res):
    "What a step measured, in one line"
    parts = []
    if 'seconds' in res: parts.append(f"{res['seconds']:.3g} s")
    if 'bytes'   in res: parts.append(f"{res['bytes']/2**20:+,.0f} MB")
    if 'gflops'  in res: parts.append(f"{res['gflops']:.0f} GFLOP/s")
    return ', '.join(parts or [f'{k} {v:.3g}' for k,v in res.items()])

# spaCy imports what is an entry point of its own with every pipeline; none of these changes fastai
by_spacy = {'ulmfit_ext', *[f'ulmfit_ext.{o}' for o in ('core','folder','integrations','integrations.spacy')]}

class Bench:
    """Runs the sides of each row in turn, each in a child; what they measured is in `runs` and `facts`.

    Each measurement has the `row`, `what` is measured, the `case` (fastai or one of ours), the `round` and
    the numbers. A quick run has only two children, one for fastai and one for ours, since starting one takes
    longer than all of its steps."""
    def __init__(self,
        scale:Scale, # How large
        repeats:int, # Rounds
    ):
        self.scale,self.repeats = scale,repeats
        self.runs,self.facts,self.stack,self.kids = [],[],ExitStack(),{}

    def __enter__(self): return self
    def __exit__(self, *args): self.stack.__exit__(*args)

    def child(self, case):
        "The child for `case`: its own or, in a quick run, that of all cases of its kind"
        key = case if self.scale.name!='quick' else case=='fastai'
        if key not in self.kids: self.kids[key] = self.stack.enter_context(Child())
        return self.kids[key]

    def compare(self,
        row:str, # Name of the row
        side:str, # Name of the side
        cases:dict, # Arguments of the side for each case; `side` among them names another one
        steps:dict, # Arguments of a step for each thing to measure
        rounds=None, # Numbers of the rounds; default: as many as everywhere
    ):
        "Measure each of `steps` for each of `cases` in turn, once a round"
        for case,kw in cases.items():
            kw = {'side':side, **kw}
            has = self.child(case).ask(f'{row} {case}', kw.pop('side'), scale=asdict(self.scale), **kw)
            has = set(has)-by_spacy
            if case=='fastai' and has:
                raise RuntimeError(f'{row}: plain fastai is measured in a process that has imported {sorted(has)}')
        rounds = range(self.repeats) if rounds is None else rounds
        for r,(what,kw),case in itertools.product(rounds, steps.items(), cases):
            res = self.child(case).ask(f'{row} {case}', **kw)
            self.runs.append(dict(row=row, what=what, case=case, round=r, **res))
            print(f'{row}: {what}, {case}, round {r+1}: {say(res)}', flush=True)
        if self.scale.name!='quick': self.close()

    def close(self):
        "End all children"
        self.stack.close()
        self.kids = {}

    def fact(self, row, what, value, limit=None):
        "Write down a number that is not a ratio to fastai; `limit`: what it should not exceed"
        if self.scale.name=='quick': limit = None
        self.facts.append(dict(row=row, what=what, value=value, limit=limit))
        at_most = '' if limit is None else f', at most {limit:g}'
        print(f'{row}: {what}: {value:.3g}{at_most}', flush=True)

    def median(self, what, case, key):
        "The median of the measurements `key`"
        return float(np.median([o[key] for o in self.runs if o['what']==what and o['case']==case]))

# The rows

rows = {}
def row(f):
    "Register `f` by its name as a row of the benchmark"
    rows[f.__name__.removesuffix('_row')] = f
    return f

modes = {'fastai': {}, **{f'checkpoint={o!r}': dict(ours=dict(checkpoint=o)) for o in (False, True, 'auto')},
         'across borders': dict(ours=dict(checkpoint=False, cross=True))}
plain_or_kept = {k:modes[k] for k in ('fastai', 'checkpoint=False')}
best_product = {'products': dict(side='products')}

def by_length(lengths): return {f'{o:,} tokens': dict(n_tok=o) for o in lengths}

@row
def classifier_row(b):
    "Classifier: a step on long documents"
    b.compare('classifier', 'classifier', {**modes, **best_product}, by_length([b.scale.n_tok]))

@row
def length_row(b):
    "Classifier: memory and time by the length of the documents"
    lens = b.scale.lengths
    b.compare('length', 'classifier', {'checkpoint=True': modes['checkpoint=True']}, by_length(lens))
    b.compare('length', 'classifier', plain_or_kept, by_length(b.scale.graph_lengths))
    short,long = [b.median(f'{o:,} tokens', 'checkpoint=True', 'bytes') for o in (lens[0], lens[-1])]
    b.fact('length', f'memory at {lens[-1]:,} tokens, times that at {lens[0]:,}', long/max(short, 1), 1.2)

@row
def stages_row(b):
    "Classifier: a step in each stage of gradual unfreezing"
    n = b.scale.n_layers
    freeze_to = {'head': -1, **{f'+ LSTM {i}': i-n-2 for i in range(n, 0, -1)}, 'all': 0}
    steps = {k: dict(n_tok=b.scale.stage_tok, freeze_to=v) for k,v in freeze_to.items()}
    b.compare('stages', 'classifier', plain_or_kept, steps)

@row
def lm_row(b):
    "Language model: a step with a large vocabulary"
    b.compare('lm', 'lm', {'fastai': {}, 'LinearCrossEntropy': dict(ours={}), **best_product}, {'step': {}})

@row
def agreement_row(b):
    "Are loss and gradient those of fastai?"
    for kind in ('lm','classifier'):
        b.compare('agreement', 'agreement', {'ours': dict(ours={}, kind=kind)}, {kind: {}}, [0])
        for k in ('loss','gradient'):
            b.fact('agreement', f'{kind}: relative difference of the {k}', b.median(kind, 'ours', k), 1e-6)

def data_file(name):
    "A file of the folder in `ULMFIT_DATA`, None where there is none"
    file = Path(os.environ.get('ULMFIT_DATA', ''))/name
    return file if 'ULMFIT_DATA' in os.environ and file.exists() else None

def made_up_reviews(n, seed):
    "Texts without meaning, with lengths and frequencies of words such as those of reviews"
    rng = np.random.default_rng(seed)
    syllables = [a+b for a in 'bdfgklmnprstvz' for b in 'aeiou']
    words = np.array([''.join(rng.choice(syllables, int(k))) for k in rng.integers(1, 5, 20000)])
    def sentence():
        picked = words[rng.zipf(1.3, int(rng.integers(5, 25))) % len(words)]
        return ' '.join(picked).capitalize() + '. '
    lens  = rng.lognormal(math.log(230)-.18, .6, n)
    texts = [''.join(sentence() for _ in range(math.ceil(k/15))) for k in lens]
    return pd.DataFrame(dict(text=texts, label=[['neg','pos'][i%2] for i in range(n)]))

def reviews(
    n:int, # How many
    seed:int=0, # Which
) -> pd.DataFrame: # Columns `text` and `label`
    "IMDb's reviews where they are to be had, made-up texts of such lengths elsewhere"
    file = data_file('imdb.jsonl.gz')
    if file is None: return made_up_reviews(n, seed)
    df = pd.read_json(file, lines=True).sample(n, random_state=seed)
    return df[['text','label']].reset_index(drop=True)

@contextmanager
def review_folder(n):
    "A folder with `n` reviews for both sides to read"
    with tempfile.TemporaryDirectory() as folder:
        reviews(n).to_json(Path(folder)/'texts.json')
        yield folder

@row
def predict_row(b):
    "Prediction on the CPU: many texts, and one of 20 tokens"
    n = min(b.repeats, 3)
    with review_folder((n+1)*b.scale.n_texts) as folder:
        ours = {k: dict(ours=dict(quantize=k=='int8'), folder=folder) for k in ('fp32','int8')}
        steps = {'many texts': dict(kind='many'), 'one text': dict(kind='one')}
        b.compare('predict', 'predict', {'fastai': dict(folder=folder), **ours}, steps, range(n))
    one = [o for o in b.runs if o['what']=='one text']
    def probs(case): return np.array([o['probs'] for o in one if o['case']==case])
    diff = float(abs(probs('fastai')-probs('fp32')).max())
    b.fact('predict', 'one text: greatest difference of the probability', diff, 1e-4)

@row
def data_row(b):
    "Data: four loaders from raw text; in new processes each time, as ours would remember the words"
    for r in range(b.repeats):
        with review_folder(b.scale.data_texts) as folder:
            cases = {'fastai': None, 'first run': dict(cached=False), 'from the cache': dict(cached=True)}
            cases = {k: dict(ours=v, folder=folder) for k,v in cases.items()}
            b.compare('data', 'data', cases, {'four loaders': {}}, [r])

@row
def corpus_row(b):
    "Data: resident memory while a large corpus is read from disk"
    with tempfile.TemporaryDirectory() as folder:
        b.compare('corpus', 'corpus', {'ours': dict(folder=folder)}, {'an epoch': {}}, [0])
    n_tok,size = [b.median('an epoch', 'ours', k) for k in ('tokens','bytes')]
    b.fact('corpus', f'MB while {n_tok/1e6:.0f} million tokens are read', size/2**20, 300)

@row
def int8_row(b):
    "Does rounding to 8 bits change answers?"
    file = data_file('trec6.jsonl.gz')
    if file is None:
        print('int8: left out: there is no trec6.jsonl.gz in a folder that ULMFIT_DATA names', flush=True)
        return
    b.compare('int8', 'rounding', {'ours': dict(file=str(file))}, {'TREC-6': {}}, [0])
    fp32,int8 = [b.median('TREC-6', 'ours', o) for o in ('fp32','int8')]
    b.fact('int8', 'accuracy on TREC-6 in 32 bits, %', 100*fp32)
    change = round(100*abs(int8-fp32), 4) # two of 500 questions are 0.4, whatever a float says
    b.fact('int8', 'change of it in 8 bits, points', change, 0.4)

@row
def gpu_row(b):
    "Classifier, language model and stages on a GPU, in 32 bits and with autocast"
    if not torch.cuda.is_available():
        print('gpu: left out, since there is no CUDA device here', flush=True)
        return
    s = b.scale
    freeze_to = [*range(-1, -s.n_layers-2, -1), 0]
    for precision in ('fp32','fp16','bf16'):
        def on_gpu(cases): return {k: {**v, 'device':'cuda', 'precision':precision} for k,v in cases.items()}
        lms    = {'fastai': {}, 'LinearCrossEntropy': dict(ours={}), **best_product}
        stages = {f'freeze_to({o}), {precision}': dict(n_tok=s.stage_tok, freeze_to=o) for o in freeze_to}
        long   = {f'classifier, {precision}': dict(n_tok=s.n_tok)}
        b.compare('gpu', 'classifier', on_gpu({**modes, **best_product}), long)
        b.compare('gpu', 'lm', on_gpu(lms), {f'lm, {precision}': {}})
        b.compare('gpu', 'classifier', on_gpu(plain_or_kept), stages)

# A run

def machine() -> dict:
    "What is measured on"
    import fastai
    info = Path('/proc/cpuinfo')
    name = re.search(r'model name\s*:\s*(.*)', info.read_text()) if info.exists() else None
    return dict(processor=name[1] if name else platform.processor(), cores=os.cpu_count(),
                threads=torch.get_num_threads(), system=platform.system(), python=platform.python_version(),
                gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else 'none',
                torch=torch.__version__, fastai=fastai.__version__)

def run(
    names=None, # Rows to measure, names in `rows`; None: all
    quick:bool=False, # Tiny sizes, to see that it works?
    repeats:int=3, # Rounds
    out=None, # JSON file to save to after each row; rows in it that are not measured stay as they are
    scale:Scale=None, # Other sizes
) -> dict: # For each row `machine`, `scale`, `began`, `runs` and `facts`
    """Measure rows of the benchmark. Raises `UlmfitError` for a row that is not known.

    A run that is stopped keeps what it has in `out`, and a single row can be measured again."""
    from ulmfit_ext.core import UlmfitError, atomic_write
    names,scale = list(names or rows),scale or (quick_scale if quick else Scale())
    if unknown := [o for o in names if o not in rows]:
        raise UlmfitError(f"no row is called {unknown[0]!r}: there are {', '.join(rows)}")
    res = load_results(out) if out and Path(out).exists() else {}
    with Bench(scale, repeats) as b:
        for name in names:
            began,b.runs,b.facts = datetime.now().isoformat(timespec='minutes'),[],[]
            rows[name](b)
            res[name] = dict(machine=machine(), scale=asdict(scale), began=began, runs=b.runs, facts=b.facts)
            if out:
                with atomic_write(out) as tmp: tmp.write_text(json.dumps(res, indent=1))
    return res

def load_results(
    file, # What `run` saved
) -> dict:
    "Results of an earlier run"
    return json.loads(Path(file).read_text())

# Tables

# The promises, as ratios: "1/3" reads: at least three times as fast
limits = {
    ('classifier', '2,880 tokens', 'checkpoint=False', 'seconds'): .60,
    ('classifier', '2,880 tokens', 'checkpoint=True', 'seconds'): .85,
    ('classifier', '2,880 tokens', 'checkpoint=True', 'MB'): .12,
    ('lm', 'step', 'LinearCrossEntropy', 'seconds'): 1.,
    ('lm', 'step', 'LinearCrossEntropy', 'MB'): .3,
    ('predict', 'many texts', 'fp32', 'seconds'): 1/1.2,
    ('predict', 'many texts', 'int8', 'seconds'): 1/2.5,
    ('predict', 'one text', 'fp32', 'seconds'): 1/2,
    ('predict', 'one text', 'int8', 'seconds'): 1/5,
    ('data', 'four loaders', 'first run', 'seconds'): 1/3,
    ('data', 'four loaders', 'from the cache', 'seconds'): 1/20}

def measurements(
    res:dict, # What `run` gives
) -> pd.DataFrame: # One row for each measurement
    "All measurements of `res`"
    runs = [o for r in res.values() for o in r['runs']]
    usual = ['row','what','case','round','seconds','bytes','gflop','gflops']
    cols  = dict.fromkeys([*usual, *(k for o in runs for k in o)])
    return pd.DataFrame(runs, columns=list(cols)).assign(MB=lambda d: d.bytes/2**20)

def with_kept(t, values):
    "The table `t` and whether each of `values` keeps to its limit"
    kept = ['' if pd.isna(l) else 'yes' if v<=l else 'no' for v,l in zip(values, t.limit)]
    return t.assign(limit=t.limit.astype(float), kept=kept)

def ratios(
    res:dict, # What `run` gives
) -> pd.DataFrame: # By row, what, case and measure
    "Ours to fastai's, of each round: `min`, `median`, `max`; the medians `ours` and `fastai`; `limit`, `kept`"
    keys = ['row','what','round','measure']
    df = measurements(res).melt([*keys[:3],'case'], ['seconds','MB'], 'measure', ignore_index=False)
    df = df.dropna(subset='value').sort_index(kind='stable')
    df = df[df.case!='fastai'].merge(df[df.case=='fastai'], on=keys, suffixes=('','_fastai'))
    df['ratio'] = df.value/df.value_fastai
    by = df.groupby(['row','what','case','measure'], sort=False)
    t  = by.ratio.agg(['min','median','max']).assign(ours=by.value.median(), fastai=by.value_fastai.median())
    t['limit'] = [limits.get(k) if res[k[0]]['scale']['name']=='paper' else None for k in t.index]
    return with_kept(t, t['median'])

def facts(
    res:dict, # What `run` gives
) -> pd.DataFrame: # By row and what: `value`, `limit`, `kept`
    "What is no ratio to fastai"
    found = [o for r in res.values() for o in r['facts']]
    t = pd.DataFrame(found, columns=['row','what','value','limit']).set_index(['row','what'])
    return with_kept(t, t.value)

def roofline(
    res:dict, # What `run` gives
) -> pd.DataFrame: # By row, what and case: `gflops`, `peak`, and `fraction`, their ratio
    "How near steps come to what the machine can do: operations needed a second, and those of the best product"
    df = measurements(res)
    peak = df.groupby(['row','what']).gflops.max().rename('peak')
    df = df[df.gflop.notna()].assign(rate=lambda d: d.gflop/d.seconds)
    t = df.groupby(['row','what','case'], sort=False).rate.median().to_frame('gflops').join(peak).dropna()
    return t.assign(fraction=t.gflops/t.peak)

# The command

def main(
    names:Annotated[list[str], typer.Argument(metavar='[ROW]...', help=f"{', '.join(rows)}; none: all")]=None,
    quick:Annotated[bool, typer.Option('--quick', help='Tiny sizes, to see that it works')]=False,
    repeats:Annotated[int, typer.Option(min=1, help='Rounds')]=3,
    n_texts:Annotated[int, typer.Option(min=2, help='Texts to predict in a batch')]=None,
    out:Annotated[Path, typer.Option('--out', '-o', metavar='FILE', help='JSON file to save to')]=None,
):
    "Time and memory against plain fastai. OMP_NUM_THREADS sets the threads, ULMFIT_DATA a folder of data."
    from ulmfit_ext.terminal import manners
    with manners(f'Rows that were finished are in {out}' if out else 'Nothing was saved'):
        scale = quick_scale if quick else Scale()
        if n_texts: scale = replace(scale, n_texts=n_texts)
        res = run(names, repeats=repeats, out=out, scale=scale)
        for table in (ratios, facts, roofline):
            df = table(res)
            if not len(df): continue
            print(f"\n{table.__doc__}\n{df.to_string(float_format='{:.3g}'.format, na_rep='')}", flush=True)

if __name__=='__main__': typer.run(main)
