"""What happens when a folder that somebody sends is not what it should be: it is changed in a random way and read, many thousand times.

    python tests/mutations.py --n 100000 --out mutations.json     # goes on where it was stopped
    python tests/mutations.py --seed 0 --only 4711                # one of them, with what happened

A mutation is a number: `seed` and `i` say which folder (a classifier, one of pieces of words, a language model, fastai's files, counted words, a finished piece of a training, the ids of a corpus),
which file, and what is done to it: bits flipped, bytes cut or inserted, values of JSON replaced, headers and tensors edited, files swapped, links, pipes and devices put in their place. Half of
them are accidents. In the other half somebody has made all hashes fit afterwards. What is read has to end in one of

- `refused`: an `UlmfitError` of one line of at most 900 characters, without control characters,
- `same`: the answers of the folder as it was,
- `another`: other answers, which is right only where hashes were made to fit: another legal value is another legal model,

and never in one of `not finite`, `raw error`, `hang` (5 seconds of work, or 40 of waiting), `memory` (more than 64 MB and 20 times the folder), `outside` (a file outside the folder opened, a process started) or `crash`."""
import argparse,contextlib,hashlib,io,json,os,pickle,random,resource,select,shutil,signal,stat,struct,sys,tempfile,time,traceback,warnings
from collections import Counter
from pathlib import Path

for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': os.environ.setdefault(k, '1')
warnings.simplefilter('ignore')
import numpy as np,pandas as pd,torch
from safetensors.torch import load as load_tensors,save as save_tensors
from ulmfit_ext.core import UlmfitError,sealed
from ulmfit_ext.checkpoint import find_piece,plain_settings,save_piece
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.lm import lm_learner,lm_perplexity
from ulmfit_ext.model import TextModel
from ulmfit_ext.recipe import read_trials
from ulmfit_ext.text.corpus import tokenize_corpus,train_subwords
from ulmfit_ext.text.tokens import TextProcessor
from ulmfit_ext.weights import load_lm,save_lm
from ulmfit_ext.words import BagOfWords

good,fine = ('refused','same'),('refused','same','another') # of accidents, and where hashes were made to fit
on_purpose = 'tensor_change','torch_change','pickle_change' # write a file that is whole and has no hash, which no accident does
seconds,waiting,megabytes = 5,40,64
texts = ['good film', 'a bad plot and a dull cast', '', 'the night '*20]

# Folders as they should be, and what is read from each

def make_df():
    words,rng = 'good fine bright bad dull poor the a film was very with plot and cast on night'.split(),np.random.default_rng(0)
    return pd.DataFrame([(' '.join(rng.choice(words, rng.integers(2, 20))), ('neg','pos')[i%2]) for i in range(40)], columns=['text','label'])

def subjects(tmp):
    "Name: folder, and a function that reads it and gives its answers as a list of tensors and whatever else"
    tiny,df = dict(emb_sz=8, n_hid=12, n_layers=2),make_df()
    dls  = ulmfit_dls(df, path=tmp, seed=0, bs=8, bptt=20, min_freq=1, cache=False)
    def _classifiers(dls): return [ulmfit_classifier(o, tiny, bptt=20) for o in (dls.clas_fwd,dls.clas_bwd)]
    fwd,bwd = _classifiers(dls)
    bag  = BagOfWords.fit(dls.tokens(dls.train_idx), [dls.y[i] for i in dls.train_idx], dls.classes)
    both = BidirEnsemble(fwd, bwd, bag).weigh(df).save(tmp/'both'/'model')
    lang = train_subwords(df, tmp/'p.model', 40, 'en')
    many = ulmfit_dls(df.assign(label=[['a','b'][:i%3] for i in range(len(df))]), path=tmp, seed=0, bs=8, bptt=20, min_freq=1, cache=False, lang=lang)
    one  = TextModel.from_learner(_classifiers(many)[0]).save(tmp/'pieces of words'/'model')
    lm   = tmp/'language model'/'model'
    for b in (False,True): save_lm(lm_learner(dls.lm(b), tiny), lm, half=b, losses=[1.5])
    fastai = tmp/'fastai'/'model'
    fastai.mkdir(parents=True)
    learn  = lm_learner(dls.lm_fwd, tiny)
    torch.save(dict(model=learn.model.state_dict(), opt={}), fastai/'lm.pth')
    (fastai/'lm.pkl').write_bytes(pickle.dumps(list(dls.vocab), 4))
    settings = plain_settings(lr=0.1)
    def _piece(folder):
        bag.save(folder)
        save_lm(learn, folder)
        (folder/'trials.csv').write_text('recipe,valid_loss\ntogether,0.5\n')
    piece  = save_piece(tmp/'piece'/'model', 'fwd', settings, _piece)
    corpus = tokenize_corpus(df.text.tolist(), path=tmp/'corpus'/'model', workers=1, progress=False)
    proc   = TextProcessor(dls.vocab)
    corpus.numericalize(proc)

    def read_both(path):
        ens = load_ulmfit(path)
        return [*ens._outputs(texts=texts)[0].values(), ens.get_preds(texts=texts)[0], ens.classes]
    def read_one(path):
        model = TextModel.load(path)
        out   = BidirEnsemble(model).get_preds(texts=texts)[0]
        return [out, model.labels(model.decisions(out)), model.classes]
    def read_lm(path):
        return [o for b in (False,True) for o in (lm_perplexity(path, texts, b), *load_lm(path, b)[:2])]
    def read_fastai(path): return [lm_perplexity(path, texts), *load_lm(path)[:2]]
    def read_piece(path):
        found = find_piece(path, 'fwd', settings)
        if found is None or read_trials(found/'trials.csv') is None: raise UlmfitError('made again')
        return [BagOfWords.load(found).logits(texts), *load_lm(found)[:2], read_trials(found/'trials.csv').to_csv()]
    def read_words(path): return [BagOfWords.load(path).logits(texts)]
    def read_ids(path): return [torch.from_numpy(tokenize_corpus(df.text.tolist(), path=path, workers=1, progress=False).numericalize(proc).astype(int))]
    words = tmp/'words'/'model'
    words.mkdir(parents=True)
    bag.save(words)
    return {'both':(both, read_both), 'pieces of words':(one, read_one), 'language model':(lm, read_lm), 'fastai':(fastai, read_fastai),
            'piece':(piece.parent, read_piece), 'words':(words, read_words), 'ids':(tmp/'corpus'/'model', read_ids)}

# Mutations: each takes a generator of random numbers and a file

def some_bytes(rng, n=16): return bytes(rng.randrange(256) for _ in range(rng.randint(1, n)))
def at(rng, data): return rng.randrange(len(data)) if data else 0
def flip(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1,1,1,2,8])):
        if data: data[at(rng, data)] ^= 1<<rng.randrange(8)
    return bytes(data)
def cut(rng, data): return data[:at(rng, data)]
def cut_out(rng, data):
    i = at(rng, data)
    return data[:i]+data[i+rng.randint(1, 64):]
def insert(rng, data):
    i = at(rng, data)
    return data[:i]+some_bytes(rng)+data[i:]
def repeat(rng, data):
    i = at(rng, data)
    return data[:i+rng.randint(1, 64)]+data[i:]
def append(rng, data): return data+some_bytes(rng)
def zero(rng, data):
    i,n = at(rng, data),rng.randint(1, 64)
    return data[:i]+b'\0'*len(data[i:i+n])+data[i+n:]
def empty(rng, data): return b''
byte_changes = [flip, flip, flip, cut, cut_out, insert, repeat, append, zero, empty]

def nested(n): return json.loads('['*n+']'*n)
def odd_value(rng, old, out):
    "Something else in the place of the JSON value `old`"
    if isinstance(old, (int,float)) and not isinstance(old, bool) and rng.random()<0.5:
        return rng.choice([old+1, old-1, -old, old*2, 2**31, 2**63, 10**6, 1e308, -1, 0, float('nan'), float('inf'), float(old), str(old), old*10**20])
    if isinstance(old, str) and rng.random()<0.6:
        return rng.choice([old+'x', old[:-1], old.upper(), '', 'x'*10_000, '\x1b[31mred\x1b[0m\x07', '../'+old, f'en:{out}/secret.model', f'en:{out}/pipe.model',
                           'en:/dev/zero.model', 'de', 'xx', 'xx:chars', 'zh:jieba', 'en.x', 'os', '\ud800', '\u202e', str(out), old*2])
    return rng.choice([None, True, False, 0, -1, 2**31, 10**6, 1e999, float('nan'), '', 'x', [], {}, [1], ['a','b'], {'a':1}, nested(rng.choice([3,50,400])), [0]*10_000,
                       {str(i):i for i in range(1000)}, 'x'*100_000, [old], {'x':old}])

def nodes(o, path=()):
    "The way to each value"
    if path: yield path
    items = o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ()
    for k,v in items: yield from nodes(v, (*path, k))

def json_change(rng, data, out):
    "One value of JSON replaced, removed, renamed or swapped"
    d = json.loads(data)
    if rng.random()<0.03: return json.dumps(odd_value(rng, d, out)).encode()
    if rng.random()<0.004: return rng.choice([b'['*100_000, b'{"a":'*50_000, b'[' + b'[],'*400_000 + b'0]', b'['+b'0,'*2_000_000+b'0]', b'9'*5000, b'NaN', b'\xff\xfe{}', b'"'+b'x'*2**24+b'"'])
    ways = list(nodes(d))
    if not ways: return json.dumps(odd_value(rng, d, out)).encode()
    depth = rng.randint(1, max(map(len, ways)))
    *way,key = rng.choice([o for o in ways if len(o)==depth])
    o = d
    for k in way: o = o[k]
    how = rng.choice(['replace','replace','replace','remove','rename','swap','again'])
    if how=='replace': o[key] = odd_value(rng, o[key], out)
    elif how=='remove': o.pop(key)
    elif isinstance(o, list):
        j = rng.randrange(len(o))
        if how=='swap': o[key],o[j] = o[j],o[key]
        else: o.insert(j, o[key])
    else:
        other = rng.choice(list(o))
        if how=='swap': o[key],o[other] = o[other],o[key]
        elif how=='rename': o[rng.choice([key+'x', key.upper(), '', '../'+key, '\x1b[2J'])] = o.pop(key)
        else: o[key+'2'] = o[key]
    return json.dumps(d).encode()

def header_change(rng, data, out):
    "The header of a safetensors file edited, its tensors left"
    n = struct.unpack('<Q', data[:8])[0]
    if rng.random()<0.1: return struct.pack('<Q', rng.choice([0, 1, n+1, n-1, 2**20+1, 2**40, 2**64-1]))+data[8:]
    head = json_change(rng, data[8:8+n], out) if rng.random()<0.5 else None
    if head is None:
        d = json.loads(data[8:8+n])
        t = d[rng.choice([k for k in d if k!='__metadata__'])]
        how = rng.choice(['shape','dtype','offsets','more'])
        if how=='shape': t['shape'] = rng.choice([t['shape'][::-1], [2**31]*2, [2**62,4], [0,2**40], [*t['shape'],1], [], [-1], t['shape']*2])
        elif how=='dtype': t['dtype'] = rng.choice(['F16','BF16','F64','I64','I32','U8','BOOL','F8_E4M3','F8_E5M2','C64','X'])
        elif how=='offsets': t['data_offsets'] = rng.choice([[0,2**40], [8,4], [0,0], [-4,0], t['data_offsets'][::-1], [0,4]])
        else: d |= {f'0.rnns.{i}.weight_hh_l0_raw': dict(dtype='F32', shape=[0,4], data_offsets=[0,0]) for i in range(rng.choice([3,3,3,5000]))}
        head = json.dumps(d).encode()
    return struct.pack('<Q', len(head))+head+data[8+n:]

def tensor_change(rng, data, out):
    "A valid safetensors file with other tensors"
    d = load_tensors(data)
    k = rng.choice(list(d))
    t = d[k]
    how = rng.choice(['value','value','value','shape','drop','rename','type','more','all'])
    if how=='value' and t.numel() and t.is_floating_point():
        value = rng.choice([float('nan'), float('inf'), -float('inf'), 3e38, -3e38, 1e30, -1., 0., 1e-45, 6e4])
        t.view(-1)[rng.randrange(t.numel())] = value
    elif how=='shape': d[k] = rng.choice([t.reshape(-1), t[None], t.T.contiguous() if t.dim()==2 else t[...,None], torch.zeros(0, 2**30), torch.zeros((*t.shape, 2))])
    elif how=='drop': d.pop(k)
    elif how=='rename': d[rng.choice([k+'x', '', k.upper(), '\x1b[2J', 'x'*1000, k.replace('0','1')])] = d.pop(k)
    elif how=='type': d[k] = t.to(rng.choice([torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]))
    elif how=='more': d |= {k.replace('.0.', f'.{i}.')+('' if '.0.' in k else str(i)): torch.zeros(t.shape) for i in range(2, rng.choice([3,200]))}
    elif t.is_floating_point():
        value = rng.choice([float('nan'), 3e38, -1e20, 0.])
        for o in d.values():
            if o.is_floating_point(): o.copy_(torch.full(o.shape, value))
    return save_tensors(d)

class Evil:
    def __init__(self, out): self.out = out
    def __reduce__(self): return (os.system, (f'touch {self.out}/owned',))

def pickle_change(rng, data, out):
    "A pickle of something else"
    if rng.random()<0.2: return rng.choice([b'\x80\x04r\xff\xff\xff\x7f.', b'\x80\x04]r\xff\xff\xff\x3f.', b'\x80\x05\x96'+b'\xff'*7+b'\x0f.', b'\x80\x04\x8e'+b'\xff'*7+b'\x0f.', b'\x80\x04\x8b\xff\xff\xff\x7f.', b'(' * 10_000,
                                            b'cos\nsystem\n(S"true"\ntR.', b'\x80\x04' + b']'*100_000 + b'.'])
    words = pickle.loads(data)
    o = rng.choice([None, 3, 'words', {'a':1}, words[:-1], words+['more'], words[::-1], [*words[:-1], 3], tuple(words), set(words), dict.fromkeys(words), nested(300), Evil(out), [Evil(out)], np.array(words), [words]*3])
    return pickle.dumps(o, rng.choice([0,2,4,5]))

def torch_change(rng, data, out):
    "What `torch.save` makes of something else"
    d = torch.load(io.BytesIO(data), weights_only=True)
    w = d['model']
    k = rng.choice(list(w))
    how = rng.choice(['other','other','tensor','tensor','flat','evil','opt'])
    if how=='other': d = rng.choice([None, 3, 'x', [1], {}, {'model':None}, {'model':[1]}, {'model':{}}, {1:2}, torch.zeros(3), {'model':{k:3}}, {'model':{3:w[k]}}, nested(200)])
    elif how=='tensor':
        t = w[k]
        w[k] = rng.choice([t.reshape(-1), t.half(), t.to(torch.int64), t.to(torch.complex64), torch.zeros(1).expand(2**20, 2**20), torch.zeros(1).expand(len(t), 2**33), torch.full_like(t, float('nan')),
                           torch.full_like(t, 3e38), torch.zeros(0), t.to_sparse(), t.to('meta'), torch.zeros(2, 2), 3, None, 'x', t.double()])
    elif how=='flat': d = w
    elif how=='evil': d['opt'] = rng.choice([Evil(out), torch.nn.Linear(2, 2), {'a':Evil(out)}])
    else: d['opt'] = rng.choice([np.float64(3), [1]*1000, {'x':torch.zeros(5)}, None])
    f = io.BytesIO()
    torch.save(d, f, _use_new_zipfile_serialization=rng.random()<0.8)
    return f.getvalue()

def file_change(rng, path, files, out):
    "Something else in the place of a file"
    how = rng.choice(['delete','swap','copy','link out','link to nothing','link in','loop','pipe','folder','device','zeros','sparse','link to pipe','link to folder'])
    other = rng.choice(files)
    if how=='swap':
        a,b = path.read_bytes(),other.read_bytes()
        path.write_bytes(b)
        other.write_bytes(a)
        return how
    data = path.read_bytes()
    path.unlink()
    if how=='copy': path.write_bytes(other.read_bytes() if other!=path else data)
    elif how=='link out':
        (out/'secret').write_bytes(data)
        path.symlink_to(rng.choice([out/'secret', '/etc/passwd', '/dev/zero', '/proc/self/mem']))
    elif how=='link to nothing': path.symlink_to('nothing')
    elif how=='link in':
        inner = path.with_name('inner')
        inner.write_bytes(data)
        path.symlink_to('inner')
    elif how=='loop': path.symlink_to(path.name)
    elif how=='pipe': os.mkfifo(path)
    elif how=='folder': path.mkdir()
    elif how=='device':
        try: os.mknod(path, stat.S_IFCHR|0o666, os.makedev(1, 5)) # /dev/zero
        except OSError: path.symlink_to('/dev/zero')
    elif how=='zeros': path.write_bytes(b'\0'*rng.choice([1, 100, 2**20]))
    elif how=='sparse':
        path.write_bytes(data)
        os.truncate(path, rng.choice([2**25, 2**33, 2**40]))
    elif how=='link to pipe': path.symlink_to(out/'pipe.model')
    elif how=='link to folder': path.symlink_to(out)
    return how

def make_fit(folder):
    "All hashes fit the files again, as far as these can be read"
    def _bytes(path): return path.read_bytes() if path.is_file() and path.stat().st_size<2**26 and not os.path.realpath(path).startswith('/proc') else b''
    def _json(path):
        try: o = json.loads(_bytes(path)) if not path.is_symlink() else None
        except (ValueError,RecursionError): o = None
        return o if isinstance(o, dict) else None
    def _hash(path): return hashlib.sha256(_bytes(path)).hexdigest()
    def _write(path, o):
        with contextlib.suppress(RecursionError,ValueError): path.write_text(json.dumps(sealed(o)))
    for p in [o for o in folder.rglob('*.safetensors') if stat.S_ISREG(o.lstat().st_mode) and o.stat().st_size<2**26]:
        with contextlib.suppress(Exception): p.write_bytes(save_tensors(load_tensors(p.read_bytes()))) # without the hash in its header
    for p in folder.rglob('words.json'):
        if (o := _json(p)) is not None: _write(p, o)
    for p in folder.rglob('config.json'):
        o = _json(p)
        if o is None: continue
        if isinstance(o.get('sha256'), dict):
            o['sha256'] = {k: _hash(p.with_name(k)) if Path(k).name==k and k else v for k,v in o['sha256'].items() if '\0' not in k}
        else:
            with contextlib.suppress(ValueError,RecursionError):
                o['vocab_sha256'] = hashlib.sha256(json.dumps(json.loads(_bytes(p.with_name('vocab.json')))).encode()).hexdigest()
        _write(p, o)
    for p in folder.rglob('settings.json'):
        o = _json(p)
        if o is None or not isinstance(o.get('files'), dict): continue
        o['files'] = {k: _hash(p.with_name(k)) if Path(k).name==k and k else v for k,v in o['files'].items() if '\0' not in k}
        p.write_text(json.dumps(o))

def mutate(rng, folder, out):
    "Change one thing in `folder`, and say what"
    files = sorted(o for o in folder.rglob('*') if o.is_file())
    path  = rng.choice(files)
    if rng.random()<0.15: return path.name,file_change(rng, path, files, out)
    kinds = {'.json':[json_change]*3, '.safetensors':[header_change,tensor_change], '.pkl':[pickle_change], '.pth':[torch_change]}
    change = rng.choice([rng.choice(byte_changes), *kinds.get(path.suffix, [])])
    data = path.read_bytes()
    path.write_bytes(change(rng, data) if change in byte_changes else change(rng, data, out))
    return path.name,change.__name__

# One mutation, in a process that is warm

class Hang(BaseException): pass
def _ring(*args): raise Hang

class Watch:
    "Notes every file that is opened, and every process or module of code that is started, while `on`"
    def __init__(self, allowed): self.on,self.seen,self.allowed = False,[],allowed
    def __call__(self, event, args):
        if not self.on: return
        if event=='open' and isinstance(args[0], (str,bytes)):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(self.allowed): self.seen.append(path)
        elif event in ('os.system','os.exec','os.fork','os.posix_spawn','subprocess.Popen','socket.connect','os.remove','os.rename') and not (
            event in ('os.remove','os.rename') and os.path.realpath(args[0]).startswith(self.allowed)): self.seen.append(event)

def peak():
    "The largest resident memory since `forget_peak`, in MB"
    with open('/proc/self/status') as f: return next(int(l.split()[1]) for l in f if l.startswith('VmHWM'))/1024
def forget_peak():
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')
def resident():
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*resource.getpagesize()/2**20

def equal(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, (list,tuple)): return isinstance(b, (list,tuple)) and len(a)==len(b) and all(map(equal, a, b))
    if isinstance(a, dict): return isinstance(b, dict) and a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    return type(a) is type(b) and a==b

def finite(o):
    if isinstance(o, torch.Tensor): return not o.is_floating_point() or bool(o.isfinite().all())
    if isinstance(o, (list,tuple)): return all(map(finite, o))
    if isinstance(o, dict): return all(map(finite, o.values()))
    return not isinstance(o, float) or np.isfinite(o)

def chain(e):
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__

def outcome(read, folder, want, watch):
    "What comes of reading `folder`, and a few words more"
    size = sum(o.lstat().st_blocks*512 for o in folder.rglob('*'))/2**20
    before = resident()
    if peak()-before>8: forget_peak() # which takes milliseconds
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, waiting)
    watch.seen,watch.on = [],True
    try:
        try: got = read(folder)
        finally:
            watch.on = False
            for o in (signal.ITIMER_PROF, signal.ITIMER_REAL): signal.setitimer(o, 0)
        res = ('same' if equal(got, want) else 'another' if finite(got) else 'not finite'),''
    except Hang: res = 'hang',''
    except UlmfitError as e:
        said = str(e)
        lines = said.isprintable() and len(said)<=900
        res = ('refused' if lines else 'raw error'),said
        if any(isinstance(o, MemoryError) or 'allocate memory' in str(o) or 'not enough memory' in str(o) for o in chain(e)): res = 'memory',said
    except Exception as e: res = 'raw error',''.join(traceback.format_exception(e))[-1500:]
    grown = peak()-before
    if grown>megabytes+20*size: res = 'memory',f'{grown:.0f} MB more for a folder of {size:.1f} MB: {res}'
    if watch.seen: res = 'outside',f'{watch.seen[:3]} {res}'
    return res

def run_one(i, seed, made, wants, tmp, watch):
    "Outcome of the mutation `i`: folder, whether hashes were made to fit, file, change, outcome, words"
    rng  = random.Random(f'{seed} {i}')
    name = rng.choice([*made, 'both', 'both', 'language model'])
    source,read = made[name]
    place,out = tmp/'now',tmp/'outside'
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out/'secret.model').write_text('secret')
    os.mkfifo(out/'pipe.model')
    shutil.copytree(source, place)
    torch.manual_seed(0)
    file,change = mutate(rng, place, out)
    fits = rng.random()<0.5 or change in on_purpose
    if fits: make_fit(place)
    res,said = outcome(read, place, wants[name], watch)
    if (out/'owned').exists(): res = 'outside'
    return name,fits,file,change,res,said

def child(pipe, first, last, seed, made, wants, tmp, watch):
    for o in (signal.SIGALRM, signal.SIGPROF): signal.signal(o, _ring)
    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize() + 2**31
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for path,read in made.values(): read(path) # the pages of libraries are not in a forked process's memory until they are read
    for i in range(first, last):
        try: res = run_one(i, seed, made, wants, tmp, watch)
        except Hang: res = '?',False,'?','?','hang',''
        except Exception as e: res = '?',False,'?','?','harness',''.join(traceback.format_exception(e))[-1500:]
        os.write(pipe, (json.dumps([i, *res])+'\n').encode())
    os._exit(0)

def forked(first, last, seed, made, wants, tmp, watch):
    "The outcomes from `first` to `last`, by a forked process; one that dies or stands still is followed by another"
    while first<last:
        r,w = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            os.close(r)
            try: child(w, first, last, seed, made, wants, tmp, watch)
            finally: os._exit(1)
        os.close(w)
        rest = b''
        while True:
            ready,_,_ = select.select([r], [], [], 3*waiting)
            got = os.read(r, 2**16) if ready else b''
            if not got: break
            *lines,rest = (rest+got).split(b'\n')
            for o in lines:
                i,*res = json.loads(o)
                first = i+1
                yield i,res
        os.close(r)
        if not ready: os.kill(pid, signal.SIGKILL)
        _,status = os.waitpid(pid, 0)
        if first<last:
            yield first,['?', False, '?', '?', 'crash' if ready else 'hang', f'status {status}']
            first += 1

class Campaign:
    "Folders to mutate, and what they answer as they are"
    def __init__(self, tmp, seed=0):
        self.tmp,self.seed = Path(tmp),seed
        with contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(0)
            self.made  = subjects(self.tmp)
            for lang in ('de','xx','xx:chars'): TextProcessor(['xxunk','xxpad'], lang).encode(['warm'])
            self.wants = {k: read(path) for k,(path,read) in self.made.items()}
        import sentencepiece,spacy
        code = {sys.prefix, sys.base_prefix, *[str(Path(o.__file__).parents[1]) for o in (torch,spacy)], str(Path(__file__).resolve().parents[1]), '/proc/', '/sys/', '/dev/null'}
        self.watch = Watch((str((self.tmp/'now').resolve()), *code, *map(os.path.realpath, code)))
    def run(self, first, last, batch=500):
        for i in range(first, last, batch): yield from forked(i, min(i+batch, last), self.seed, self.made, self.wants, self.tmp, self.watch)

def bad(name, fits, file, res):
    "Is this outcome a fault? fastai's pickle of the vocabulary has no hash, so that a changed letter in it is another word"
    return res not in (fine if fits or (name,file)==('fastai','lm.pkl') else good)

def summary(counts, failures, n, seed, took):
    "What is written"
    def _by(*ks):
        res = Counter()
        for key,k in counts.items():
            parts = json.loads(key)
            res[' / '.join(str(parts[j]) for j in ks)] += k
        return dict(sorted(res.items()))
    another = Counter()
    for key,k in counts.items():
        name,fits,file,change,res = json.loads(key)
        if res=='another': another[f'{name}: {file}: {change}'] += k
    return dict(n=n, seed=seed, minutes=round(took/60, 1), accidents={r: sum(k for o,k in counts.items() if json.loads(o)[1] is False and json.loads(o)[4]==r) for r in sorted({json.loads(o)[4] for o in counts})},
                made_to_fit={r: sum(k for o,k in counts.items() if json.loads(o)[1] is True and json.loads(o)[4]==r) for r in sorted({json.loads(o)[4] for o in counts})},
                by_folder=_by(0,4), by_change=_by(3,4), another=dict(another.most_common()), failures=failures, counts=counts)

def main(n, seed, out, only):
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) and 'TMPDIR' not in os.environ else None # faster than a disk
    with tempfile.TemporaryDirectory(dir=memory) as tmp:
        campaign = Campaign(tmp, seed)
        if only is not None:
            print(*next(campaign.run(only, only+1))[1], sep='\n')
            return 0
        was = json.loads(out.read_text()) if out and out.exists() else {}
        if was.get('seed')!=seed: was = {}
        first,counts,failures,took,began = was.get('n', 0),Counter(was.get('counts', {})),was.get('failures', []),60*was.get('minutes', 0),time.time()
        for i,(name,fits,file,change,res,said) in campaign.run(first, n):
            if not os.path.isdir(tmp): sys.exit(f'{tmp} was removed by somebody: start again')
            counts[json.dumps([name, fits, file, change, res])] += 1
            if bad(name, fits, file, res) and len(failures)<200: failures.append([i, name, fits, file, change, res, said])
            if bad(name, fits, file, res): print(f'{i}: {name}, {file}, {change}, made to fit: {fits}: {res} {said[-300:]}', flush=True)
            if out and (i%1000==999 or i==n-1):
                new = out.with_suffix('.tmp')
                new.write_text(json.dumps(summary(counts, failures, i+1, seed, took+time.time()-began), indent=1))
                new.replace(out)
            if i%5000==4999: print(f'{i+1:,} of {n:,}', flush=True)
        s = summary(counts, failures, n, seed, took+time.time()-began)
        print(json.dumps({k: s[k] for k in ('n','minutes','accidents','made_to_fit')}, indent=1))
        return int(bool(failures))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=2000, help='how many')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', type=Path, help='JSON to write; what it holds of the same seed is gone on from')
    p.add_argument('--only', type=int, help='one mutation, and what happened')
    sys.exit(main(**vars(p.parse_args())))
