"Under load: threads, forked processes, much that is new, folders that are not what they should be, a disk that is full"
import json,math,os,shutil,signal,subprocess,sys,threading,time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np,pytest,torch
from safetensors.torch import load_file,save_file
import ulmfit_ext
from ulmfit_ext.checkpoint import find_piece,plain_settings,save_piece
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.core import no_forks,UlmfitError,atomic_write,read_weights,sealed
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.lm import lm_learner
from ulmfit_ext.model import TextModel
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.predict import Predictor
from ulmfit_ext.text.corpus import tokenize_corpus
from ulmfit_ext.text.tokens import TextProcessor,Words,as_tokenizer
from ulmfit_ext.weights import load_lm,save_lm
from ulmfit_ext.words import BagOfWords
from made_up import make_df,make_texts

tiny  = dict(emb_sz=8, n_hid=12, n_layers=2)
forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')

@pytest.fixture(scope='module')
def ens(tmp_path_factory):
    dls = ulmfit_dls(make_df(), path=tmp_path_factory.mktemp('data'), seed=0, bs=8, bptt=20, min_freq=1, cache=False)
    bag = BagOfWords.fit(dls.tokens(dls.train_idx), [dls.y[i] for i in dls.train_idx], dls.classes)
    return BidirEnsemble(*[ulmfit_classifier(o, tiny, bptt=20) for o in (dls.clas_fwd,dls.clas_bwd)], words=bag)
@pytest.fixture(scope='module')
def saved(ens, tmp_path_factory): return ens.save(tmp_path_factory.mktemp('saved')/'model')

# Threads

@pytest.mark.parametrize('quantize', [False,True])
def test_eight_threads_say_what_one_says(saved, quantize):
    "Each with texts of its own, some with words that nobody has seen"
    loaded = load_ulmfit(saved, quantize=quantize)
    texts  = [[*make_texts(3, i), f'never seen w{i}x, {i}'] for i in range(40)]
    want   = [loaded.get_preds(texts=o)[0] for o in texts]
    as_tokenizer('en').seen.clear()
    with ThreadPoolExecutor(8) as pool: got = list(pool.map(lambda o: loaded.get_preds(texts=o)[0], texts*3))
    assert all(torch.allclose(a, b, rtol=0, atol=0 if quantize else 1e-6) for a,b in zip(got, want*3)) # two engines differ in the last bits

# Forked processes

def in_a_fork(f, wait=60):
    "Exit code of a forked process that calls `f`; None where it hangs"
    pid = os.fork()
    if not pid:
        try: os._exit(0 if f() else 1)
        finally: os._exit(2)
    for _ in range(10*wait):
        done,status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

@forks
def test_a_fork_waits_for_imports():
    "A child that was forked in the middle of one would wait for ever where it imports the same"
    began,ended = threading.Event(),threading.Event()
    def _import():
        with no_forks:
            began.set()
            time.sleep(0.3)
            ended.set()
    thread = threading.Thread(target=_import)
    thread.start()
    began.wait()
    assert in_a_fork(ended.is_set)==0
    thread.join()

@forks
@pytest.mark.parametrize('kind', ['loaded','quantized','learner'])
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*:DeprecationWarning')
def test_a_fork_while_another_thread_predicts(ens, saved, kind):
    "The child answers, wherever the thread was that it has not got"
    model = dict(loaded=lambda: load_ulmfit(saved), quantized=lambda: load_ulmfit(saved, quantize=True), learner=lambda: ens)[kind]()
    texts,stop = make_texts(20),threading.Event()
    want = model.get_preds(texts=texts, progress=False)[0]
    def _busy():
        while not stop.is_set(): model.get_preds(texts=[*texts, os.urandom(8).hex()], progress=False)
    def _same():
        new = model.get_preds(texts=['new'+os.urandom(4).hex()], progress=False)[0]
        now = model.get_preds(texts=texts, progress=False)[0] # by ONNX Runtime once there were 10,000 tokens
        return new.isfinite().all() and torch.allclose(now, want, atol=1e-6)
    thread = threading.Thread(target=_busy)
    thread.start()
    try: codes = [in_a_fork(_same) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert codes==[0]*5

@forks
def test_no_lock_is_inherited(ens):
    "Each lock of ours, held by a thread at the moment of the fork"
    tok = as_tokenizer('en')
    for lock in (tok.lock, ens.fwd.lock):
        with lock:
            def _free(): return not any(o.locked() for o in (tok.lock, ens.fwd.lock)) and tok(f'fork {os.getpid()}')[0]=='xxbos'
            assert in_a_fork(_free)==0
        assert not lock.locked()

# Memory

def resident():
    "Megabytes"
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20

code = """
import gc,random,sys
sys.path.insert(0, sys.argv[2])
from test_load import resident
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.lm import lm_learner
from ulmfit_ext.model import TextModel
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.predict import Predictor
from ulmfit_ext.text.corpus import tokenize_corpus
from ulmfit_ext.text.tokens import as_tokenizer
ens,rng = load_ulmfit(sys.argv[1]),random.Random(0)
def new(): return ' '.join(''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randint(4, 12))) for _ in range(8))
def ask(n, step=100):
    for _ in range(0, n, step): ens.get_preds(texts=[new() for _ in range(step)], progress=False)
ask(2000) # more than 10,000 tokens, so that ONNX Runtime has its copy
before = resident()
ask(int(sys.argv[3]))
gc.collect()
print(resident()-before)
"""
env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path(ulmfit_ext.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])}

@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs /proc')
def test_new_words_do_not_fill_the_memory(saved):
    "6,000 texts of eight words that nobody has seen; that of 50,000 is measured by `tests/full_disk.py --memory`"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(saved), str(Path(__file__).parent), '6000'], capture_output=True, text=True, env=env)
    assert res.returncode==0, res.stderr
    assert float(res.stdout.split()[-1]) < 20

def test_frequent_words_are_remembered(monkeypatch):
    "However many others there are between them"
    monkeypatch.setattr(Words, 'max_seen', 50)
    words,asked = Words('en'),[]
    real = words._ask
    words._ask = lambda t: asked.append(t) or real(t)
    TextProcessor(lang=words).tokenize([f'the w{i}' for i in range(500)])
    assert asked.count('the')==1 and len(words.seen)+len(words.before)<=100
    strings = len(words.spacy.vocab.strings)
    TextProcessor(lang=words).tokenize([f'v{i}' for i in range(500)])
    assert len(words.spacy.vocab.strings)==strings, 'spaCy forgets them too'

# Disks

def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch, recwarn):
    "The error names the file that was to be written; that its temporary one cannot be removed is no second error"
    def _read_only(*args, **kwargs): raise OSError(30, 'Read-only file system')
    monkeypatch.setattr(Path, 'unlink', _read_only)
    with pytest.raises(OSError, match='No space left on device.*x.txt') as e:
        with atomic_write(tmp_path/'x.txt'): raise OSError(28, 'No space left on device')
    assert e.value.errno==28 and e.value.__context__ is None

@forks
@pytest.mark.parametrize('n', [2,5])
def test_a_full_disk_changes_nothing(tmp_path, ens, saved, n):
    "A save on a disk that is full from the second, or the fifth, write on. `tests/full_disk.py` tries every place of every job"
    import full_disk
    path = shutil.copytree(saved, tmp_path/'model')
    def _save(folder): return str(ens.save(folder/'model'))
    full_disk.jobs['save again'] = _save
    res = full_disk.in_a_fork(full_disk.with_full_disk, 'save again', tmp_path, n)
    assert res['error']=='UlmfitError' and f'written to {path} (No space left' in res['said']
    assert [o.name for o in tmp_path.iterdir()]==['model'] and torch.allclose(load_ulmfit(path).get_preds(texts=['a cat'])[0], ens.get_preds(texts=['a cat'])[0], atol=1e-6)

# Folders

def flip(file, i=None):
    "One bit of a file"
    data = bytearray(file.read_bytes())
    data[len(data)*2//3 if i is None else i] ^= 1
    file.write_bytes(data)

@pytest.fixture
def lm(ens, tmp_path):
    dls = ulmfit_dls(make_df(), path=tmp_path, seed=0, bs=8, bptt=20, min_freq=1, cache=False)
    for o in (dls.lm_fwd,dls.lm_bwd): save_lm(lm_learner(o, tiny), tmp_path/'lm')
    return tmp_path/'lm'

@pytest.mark.parametrize('name', ['config.json','vocab.json','fwd.safetensors'])
def test_a_changed_bit_of_a_language_model(lm, name):
    load_lm(lm)
    flip(lm/name)
    with pytest.raises(UlmfitError, match=f'{name}.* hash differs|not what was saved|cannot be read'): load_lm(lm)

def test_a_hash_under_another_name(lm):
    "A changed bit in the name would leave the weights without a hash"
    data = (lm/'fwd.safetensors').read_bytes()
    flip(lm/'fwd.safetensors', data.index(b'"sha256"')+3)
    with pytest.raises(UlmfitError, match='and no hash'): load_lm(lm)

def test_directions_that_changed_places(lm):
    (lm/'fwd.safetensors').rename(lm/'x')
    (lm/'bwd.safetensors').rename(lm/'fwd.safetensors')
    with pytest.raises(UlmfitError, match='it says that it is bwd, and not fwd'): load_lm(lm)

def test_a_language_model_of_an_earlier_version(lm):
    "It has no hash, and loads"
    cfg = json.loads((lm/'config.json').read_text())
    cfg = {k: v for k,v in cfg.items() if 'sha256' not in k}
    (lm/'config.json').write_text(json.dumps(cfg))
    was = {k: t.clone() for k,t in load_file(lm/'fwd.safetensors').items()} # older safetensors map the file, which is written anew
    save_file(was, lm/'fwd.safetensors')
    assert torch.equal(load_lm(lm)[0]['0.encoder.weight'], was['0.encoder.weight'])
    (lm/'config.json').write_text(json.dumps({**cfg, 'own_sha25':'?'}))
    with pytest.raises(UlmfitError, match='own_sha25, and no hash'): load_lm(lm)

def test_a_classifier_of_an_earlier_version(saved, tmp_path):
    path = shutil.copytree(saved, tmp_path/'m')
    cfg  = json.loads((path/'config.json').read_text())
    cfg.pop('own_sha256')
    (path/'config.json').write_text(json.dumps(cfg))
    assert load_ulmfit(path).classes==load_ulmfit(saved).classes
    (path/'config.json').write_text(json.dumps({**cfg, 'classes':cfg['classes'][::-1], 'own_sha256':'0'}))
    with pytest.raises(UlmfitError, match='not what was saved'): TextModel.load(path) if len(cfg['models'])==1 else load_ulmfit(path)

@pytest.mark.parametrize('name', ['words.json','words.safetensors','trials.csv'])
def test_a_changed_bit_of_a_piece(ens, tmp_path, name):
    settings = plain_settings(lr=0.1)
    def _write(folder):
        ens.words.save(folder)
        (folder/'trials.csv').write_text('recipe,valid_loss\ntogether,0.5\n')
    path = save_piece(tmp_path, 'fwd', settings, _write)
    assert find_piece(tmp_path, 'fwd', settings)==path
    flip(path/name)
    with pytest.warns(UserWarning, match=f'{name} is damaged.*trained again'): assert find_piece(tmp_path, 'fwd', settings) is None
    assert save_piece(tmp_path, 'fwd', settings, _write)==path==find_piece(tmp_path, 'fwd', settings)

def test_a_changed_bit_of_ids(tmp_path):
    corpus,proc = tokenize_corpus(make_texts(50), path=tmp_path, workers=1, progress=False),TextProcessor(['xxunk','xxpad','the','a','cat'])
    want = np.array(corpus.numericalize(proc))
    file, = tmp_path.rglob('ids-*.npy')
    flip(file)
    with pytest.warns(UserWarning, match='hash differs.*making it again'): got = corpus.numericalize(proc)
    assert (got==want).all() and (corpus.numericalize(proc)==want).all()

@pytest.mark.parametrize('lang', ['en:/dev/zero.model','en:pipe.model','../en','en\x1b[2J',['en'],3,None])
def test_a_language_is_no_file(saved, tmp_path, lang):
    path = shutil.copytree(saved, tmp_path/'m')
    cfg  = json.loads((path/'config.json').read_text())
    cfg['processor']['lang'] = lang
    (path/'config.json').write_text(json.dumps(sealed(cfg)))
    with pytest.raises(UlmfitError, match='no code of a language') as e: load_ulmfit(path)
    assert str(e.value).isprintable()

@pytest.mark.parametrize('name', ['config.json','vocab.json','fwd.safetensors','words.json'])
@pytest.mark.parametrize('kind', ['pipe','link'])
def test_what_is_no_file_of_the_folder(saved, tmp_path, name, kind):
    path = shutil.copytree(saved, tmp_path/'m')
    (path/name).rename(tmp_path/'elsewhere')
    if kind=='pipe': os.mkfifo(path/name)
    else: (path/name).symlink_to(tmp_path/'elsewhere')
    with pytest.raises(UlmfitError, match='no plain file' if kind=='pipe' else 'outside of its folder'): load_ulmfit(path)

def test_a_model_in_a_folder_that_leads_elsewhere(saved, tmp_path):
    (tmp_path/'model').symlink_to(saved)
    with pytest.raises(UlmfitError, match='link out of its folder'): ULMFiT.load(tmp_path)

@pytest.mark.parametrize('size', [dict(n_layers=2**31), dict(n_layers=10**6), dict(emb_sz=2**40), dict(n_hid=10**9), dict(n_layers=2.)])
def test_sizes_that_the_weights_have_not(saved, tmp_path, size):
    "Said before anything is built: to build it would take all memory"
    path = shutil.copytree(saved, tmp_path/'m')
    cfg  = json.loads((path/'config.json').read_text())
    cfg['models']['fwd']['config'].update(size)
    (path/'config.json').write_text(json.dumps(sealed(cfg)))
    with pytest.raises(UlmfitError, match='do not fit the model|damaged'): load_ulmfit(path)

def test_weights_of_voices_are_shares(saved, tmp_path):
    "Of 1e308 the answers would be no numbers"
    path = shutil.copytree(saved, tmp_path/'m')
    cfg  = json.loads((path/'config.json').read_text())
    cfg['mixture'] = dict(weights=dict(words=1e308, forward=0.2, backward=0.1), temperatures=dict(words=1., forward=1., backward=1., all=1.))
    (path/'config.json').write_text(json.dumps(sealed(cfg)))
    with pytest.raises(UlmfitError, match='damaged'): load_ulmfit(path)

def test_numbers_that_are_none(ens, saved, tmp_path):
    wgts = load_file(saved/'fwd.safetensors')
    for value,match in ((math.nan, 'not finite'), (math.inf, 'not finite')):
        wgts['1.layers.1.2.weight'].view(-1)[0] = value
        save_file(wgts, tmp_path/'w.safetensors')
        with pytest.raises(UlmfitError, match=match): read_weights(tmp_path/'w.safetensors')
    model = TextModel.load(TextModel.from_learner(ens.fwd).save(tmp_path/'m'))
    next(o for k,o in model.module.state_dict().items() if k.endswith('1.2.weight')).fill_(3e38)
    with pytest.raises(UlmfitError, match='is no number'): Predictor(model)(['a cat', 'the dog ran'])

@forks
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs /proc')
def test_mutations(tmp_path):
    "2,000 of those that `tests/mutations.py` makes: an error of one line, or the same answers"
    pytest.importorskip('sentencepiece')
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; from mutations import main; sys.exit(main(2000, 0, Path({str(tmp_path)!r})/'m.json', None))"
    res  = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env=env)
    assert res.returncode==0, res.stdout[-3000:]+res.stderr[-3000:]
    said = json.loads((tmp_path/'m.json').read_text())
    assert said['n']==2000 and said['failures']==[]
    assert said['accidents']['refused']>500 and said['made_to_fit']['same']>100 and 'harness' not in {**said['accidents'], **said['made_to_fit']}
