"""Do fastai's own notebook tests run the same once our library is imported?

    git clone --branch 2.8.12 https://github.com/fastai/fastai
    python tests/fastai_notebooks.py fastai

Runs the notebooks 12 to 18 and 30 to 38 of a checkout of fastai, cell by cell and also after a cell that fails: as they are, and after
`from ulmfit_ext.all import *`. A cell differs if it fails in one of the two only, fails in another way, or prints something else; random
numbers are the same, and bars, times and addresses are not compared. Our import brings all that `from fastai.text.all import *` brings,
progress bars by default among it, and some notebooks notice. So a notebook in which a cell differs is run once more after that import of
fastai alone: cells that do the same then count as `fastai_itself`. A cell that needs the network, a GPU or a package that is not there
fails in all. The counts go to `nbs/experiments/reliability/fastai.json`.

With `--made-up` the data sets that the notebooks download are small ones of our own, so that what needs them runs without the network."""
import argparse,json,os,platform,re,shutil,subprocess,sys,tempfile
from pathlib import Path

root  = Path(__file__).resolve().parent.parent
names = re.compile(r'(1[2-8]|3[0-8])[a-z]?_.*\.ipynb')
never = re.compile(r'^#\s*\|\s*(eval:\s*false|slow|cuda|multicuda|cpp|notest)\b|nbdev_export', re.M) # as in fastai's own settings
first = dict(plain='', fastai='from fastai.text.all import *', ours='from ulmfit_ext.all import *') # what is run before a notebook
seconds = 60 # for a cell

# one notebook, in a process of its own

def text_of(outputs):
    "What a cell printed and returned, without what changes from run to run"
    parts = [o.get('text') or o.get('data', {}).get('text/plain') or '' for o in outputs if o.get('output_type')!='error']
    text = ''.join(''.join(o) for o in parts)
    text = re.sub(r'[^\n]*\r', '', text) # a bar is drawn again and again
    for varies in (r'0x[0-9a-f]+', r'\d\d:\d\d(:\d\d)?', r'/tmp\S*', r'[\d.]+ (µs|us|ms|ns|s)\b', r'time:.*'):
        text = re.sub(varies, '…', text)
    return text.strip()

def run_cells(notebook, before, out):
    "Run `notebook` after the code `before`; the file `out` gets a list: how each cell ended, what it printed, the message of its error"
    import random,signal
    import numpy as np,torch
    from fastcore.nbio import read_nb
    from execnb.shell import CaptureShell
    def _stop(*args): raise TimeoutError(f'more than {seconds} seconds')
    signal.signal(signal.SIGALRM, _stop)
    shell,res = CaptureShell(mpl_format=None),[]
    cells = [o.source for o in read_nb(notebook).cells if o.cell_type=='code' and o.source.strip() and not never.search(o.source)]
    for source in [before] + cells:
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        signal.alarm(seconds)
        try: outputs,error = shell.run(source),shell.exc
        except BaseException as e: outputs,error = [],e
        signal.alarm(0)
        if not res and error: raise error
        res.append(['ok' if error is None else type(error).__name__, text_of(outputs), '' if error is None else str(error)[:300]])
    Path(out).write_text(json.dumps(res[1:]))
    os._exit(0) # whatever threads the notebook has left

# stand-ins for what is downloaded

def make_up(home):
    "Data sets as fastai has them, in its folder `home`: texts from the documentation of libraries, images of noise"
    import numpy as np
    from PIL import Image
    from ulmfit_ext.text.tables import sample_table
    data,texts,rng = Path(home)/'data',sample_table().text.tolist(),np.random.default_rng(0)
    def _write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    def _draw(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (28,28), dtype=np.uint8)).save(path)
    import pandas as pd
    table = pd.DataFrame(dict(label=['negative','positive']*100, text=texts[:200], is_valid=[i%5==0 for i in range(200)]))
    _write(data/'imdb_sample'/'texts.csv', table.to_csv(index=False))
    for i,text in enumerate(texts):
        _write(data/'imdb'/(('train/pos','train/neg','test/pos','test/neg','unsup')[i%5])/f'{i}.txt', text)
    for name,some in (('train',texts[:100]), ('test',texts[100:150])):
        _write(data/'wikitext-2'/f'{name}.csv', pd.DataFrame(some).to_csv(index=False, header=False))
    for i in range(80): _draw(data/'mnist_tiny'/('train','valid')[i%4==0]/'37'[i%2]/f'{i}.png')
    for i in range(80): _draw(data/'oxford-iiit-pet'/'images'/f'{("Abyssinian","beagle")[i%2]}_{i}.jpg')

# all of them

def outcomes(checkout, notebook, before):
    "What `run_cells` finds in a copy of the notebooks; None where the process died"
    with tempfile.TemporaryDirectory() as d:
        shutil.copytree(checkout/'nbs', Path(d)/'nbs')
        return _outcomes(notebook, before, Path(d)/'nbs', Path(d)/'out.json')

def _outcomes(notebook, before, work, out):
    env = {**os.environ, 'MPLBACKEND':'agg', 'PYTHONWARNINGS':'ignore', 'TQDM_DISABLE':'1'}
    command = [sys.executable, str(Path(__file__).resolve()), str(notebook), '--cells', str(out), '--before', before]
    try: done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired: return None
    if not out.exists(): print(done.stderr[-2000:])
    return json.loads(out.read_text()) if out.exists() else None

kinds = ('equal','fail_in_all','fastai_itself','differ')

def same(a, b): return a[0]==b[0] and (a[0]!='ok' or a[1]==b[1])

def compare(plain, ours, fastai):
    "Counts of the cells of one notebook, and the cells that differ"
    counts,differ = dict(cells=len(plain), **dict.fromkeys(kinds, 0)),[]
    for i,(a,b,c) in enumerate(zip(plain, ours, fastai, strict=True)):
        kind = ('equal' if a[0]=='ok' else 'fail_in_all') if same(a, b) else 'fastai_itself' if same(b, c) else 'differ'
        counts[kind] += 1
        if kind=='differ': differ.append(dict(cell=i, **{k: [part[:400] for part in o] for k,o in dict(plain=a, fastai=c, ours=b).items()}))
    return counts,differ

def run(checkout, notebook):
    "All that is known of one notebook in the end"
    runs = {k: outcomes(checkout, notebook, first[k]) for k in ('plain','ours')}
    if None in runs.values(): return dict(died=[k for k,o in runs.items() if o is None])
    equal = all(map(same, runs['plain'], runs['ours']))
    runs['fastai'] = runs['plain'] if equal else outcomes(checkout, notebook, first['fastai'])
    if runs['fastai'] is None: return dict(died=['fastai'])
    counts,differ = compare(**runs)
    why = {f'{kind}: {message.splitlines()[0][:100] if message else ""}' for kind,_,message in runs['plain'] if kind!='ok'}
    return dict(counts=counts, differ=differ, why_some_fail_in_all=sorted(why))

def versions(checkout):
    import fastai,torch,ulmfit_ext
    read = re.search(r'__version__ = "(.*?)"', (checkout/'fastai'/'__init__.py').read_text())
    return dict(notebooks=read and read[1], fastai=fastai.__version__, torch=torch.__version__, ulmfit_ext=ulmfit_ext.__version__,
                python=platform.python_version())

def main(checkout, out, log, only, made_up, note):
    done = json.loads(log.read_text()) if log.exists() else {}
    for path in sorted(o for o in (checkout/'nbs').glob('*.ipynb') if names.fullmatch(o.name) and only in o.name):
        if path.name not in done:
            done[path.name] = run(checkout, path.name)
            log.write_text(json.dumps(done, indent=1))
        res = done[path.name]
        told = '  '.join(f'{k} {v:<4}' for k,v in res['counts'].items()) if 'counts' in res else f'died: {res["died"]}'
        print(f'{path.name:<32}{told}', flush=True)
        for o in res.get('differ', []): print('   ', o)
    total = {k: sum(o['counts'][k] for o in done.values() if 'counts' in o) for k in ('cells',*kinds)}
    print(f'{"all":<32}' + '  '.join(f'{k} {v:<4}' for k,v in total.items()))
    if only: return
    out.parent.mkdir(parents=True, exist_ok=True)
    command = 'python tests/fastai_notebooks.py CHECKOUT' + ' --made-up'*made_up
    out.write_text(json.dumps(dict(command=command, note=note, versions=versions(checkout), total=total, notebooks=done), indent=1)+'\n')

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkout', type=Path, help='folder of a checkout of fastai, at the version that is installed')
    parser.add_argument('--out', type=Path, default=root/'nbs'/'experiments'/'reliability'/'fastai.json', help='where the counts go')
    log = Path(tempfile.gettempdir())/'ulmfit_ext-fastai.json'
    parser.add_argument('--log', type=Path, default=log, help='what was run; notebooks in it are left out')
    parser.add_argument('--made-up', action='store_true', help='small data sets of our own in place of those that are downloaded')
    parser.add_argument('--only', default='', help='notebooks with this in their name')
    parser.add_argument('--note', default='', help='what to know of the checkout, for the file of counts')
    parser.add_argument('--cells', help=argparse.SUPPRESS)
    parser.add_argument('--before', default='', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cells: run_cells(args.checkout, args.before, args.cells)
    else:
        with tempfile.TemporaryDirectory() as home:
            if args.made_up:
                make_up(home)
                os.environ['FASTAI_HOME'] = home
            main(args.checkout, args.out, args.log, args.only, args.made_up, args.note)
