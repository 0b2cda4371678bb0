"Model folders: the same probabilities after loading, no code in them, never half of one"
from copy import deepcopy
import hashlib,json,os,pickle,shutil,subprocess,sys
from pathlib import Path
from unittest.mock import patch
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import AWD_LSTM,BCEWithLogitsLossFlat,LabelSmoothingCrossEntropyFlat,LinBnDrop,text_classifier_learner
from torch import nn
from safetensors import safe_open
from safetensors.torch import load_file,load_model
import ulmfit_ext.folder as X
from ulmfit_ext.callback.bpt3c import BPT3C
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.core import UlmfitError,sealed
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit,save_ulmfit
from ulmfit_ext.lm import lm_learner
from ulmfit_ext.model import TextModel
from ulmfit_ext.predict import Predictor
from ulmfit_ext.text.loaders import clas_dls
from ulmfit_ext.text.tokens import TextProcessor
from ulmfit_ext.weights import save_lm
from ulmfit_ext.words import BagOfWords

tiny  = dict(emb_sz=8, n_hid=12, n_layers=2)
words = 'good fine bright bad dull poor the a film was very with plot and cast on night'.split()
texts = ['good film', 'a bad plot and a dull cast', '', 'unknown words here', 'the night '*90]

def make_df(n=40, seed=0, classes=('neg','pos')):
    rng = np.random.default_rng(seed)
    return pd.DataFrame([(' '.join(rng.choice(words, rng.integers(2, 40))), classes[i%2]) for i in range(n)], columns=['text','label'])

def make(path, df=None, epochs=1, drop_mult=.3, **kwargs):
    dls = ulmfit_dls(make_df() if df is None else df, path=path, seed=0, bs=8, bptt=20, min_freq=1, **kwargs)
    learns = [ulmfit_classifier(o, tiny, drop_mult, bptt=20) for o in (dls.clas_fwd, dls.clas_bwd)]
    for learn in learns:
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 0.02)
    return BidirEnsemble(*learns)

@pytest.fixture(scope='module')
def ens(tmp_path_factory): return make(tmp_path_factory.mktemp('data'))
@pytest.fixture(scope='module')
def saved(ens, tmp_path_factory): return ens.save(tmp_path_factory.mktemp('saved')/'model')
@pytest.fixture
def model(saved, tmp_path): return shutil.copytree(saved, tmp_path/'model')

env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path(X.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])}
def raises(match): return pytest.raises(UlmfitError, match=match)
def same(a, b): return torch.equal(a.get_preds(texts=texts)[0], b.get_preds(texts=texts)[0])
def tree(path): return {str(o.relative_to(path)): o.read_bytes() for o in path.rglob('*') if o.is_file()}
def rehash(path):
    "Make the hashes in config.json fit the files, as one who changes a model on purpose would"
    cfg = json.loads((path/'config.json').read_text())
    cfg['sha256'] = {k: hashlib.sha256((path/k).read_bytes()).hexdigest() for k in cfg['sha256']}
    (path/'config.json').write_text(json.dumps(sealed(cfg)))

# there and back

def test_probabilities_are_exactly_the_same(ens, saved):
    loaded = load_ulmfit(saved)
    assert same(loaded, ens) and loaded.classes==ens.classes and loaded.multi==ens.multi
    for way,learn in ens.learners.items(): assert set(loaded.models[way].module.state_dict())==set(learn.model.state_dict())
    assert loaded.predict(texts[0])[0]==ens.predict(texts[0])[0]
    pd.testing.assert_frame_equal(loaded.predict_df(texts), ens.predict_df(texts))
    pd.testing.assert_frame_equal(loaded.validate(df=make_df(20, 3)), ens.validate(df=make_df(20, 3)))

def test_a_copy_for_many_texts_is_not_pickled(saved, monkeypatch):
    monkeypatch.setattr('ulmfit_ext.predict._much', 5)
    loaded = load_ulmfit(saved)
    want   = loaded.get_preds(texts=texts)[0]
    again  = pickle.loads(pickle.dumps(loaded))
    assert loaded.predictor('forward').session is not None and again.predictor('forward').session is None
    assert torch.equal(again.get_preds(texts=texts)[0], want)

def test_again_and_again(ens, saved, tmp_path):
    again = load_ulmfit(saved).save(tmp_path/'again')
    assert tree(again)==tree(saved)

def test_in_another_process(ens, saved):
    code = (f"from ulmfit_ext.export import load_ulmfit; import torch,json,sys; "
            f"print(json.dumps(load_ulmfit({str(saved)!r}).get_preds(texts=json.loads(sys.argv[1]))[0].tolist()))")
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, json.dumps(texts)], capture_output=True, text=True, cwd=saved.parent, env=env)
    assert res.returncode==0, res.stderr
    assert torch.equal(torch.tensor(json.loads(res.stdout.splitlines()[-1])), ens.get_preds(texts=texts)[0])

def test_several_labels(tmp_path):
    df  = make_df().assign(label=['a;b','b','','a']*10)
    ens = make(tmp_path/'data', df, label_delim=';')
    ens.fwd.loss_func = deepcopy(ens.fwd.loss_func)   # fastai shares one among all learners
    ens.fwd.loss_func.thresh = .3
    loaded = load_ulmfit(save_ulmfit(ens, tmp_path/'m'))
    assert same(loaded, ens) and loaded.multi and isinstance(loaded.fwd.to_learner().loss_func, BCEWithLogitsLossFlat)
    for t in texts: assert loaded.predict(t)[0]==ens.predict(t)[0]
    pd.testing.assert_frame_equal(loaded.validate(df=df, label_delim=';'), ens.validate(df=df))

@pytest.mark.parametrize('i', [0,1])
def test_one_direction(ens, tmp_path, i):
    one  = BidirEnsemble([ens.fwd,ens.bwd][i])
    path = one.save(tmp_path/'m')
    assert {o.name for o in path.iterdir()}=={'config.json','vocab.json',['fwd','bwd'][i]+'.safetensors'}
    assert same(load_ulmfit(path), one) and list(load_ulmfit(path).learners)==[['forward','backward'][i]]

@pytest.mark.parametrize('kwargs', [dict(drop_mult=0.), dict(lin_ftrs=[7,5,3], ps=[.1,0.,.2]), dict(bptt=7, max_len=30), dict(config={**tiny, 'n_layers':3, 'embed_p':.11}), dict(config={**tiny, 'n_layers':1}),
                                    dict(loss_func=LabelSmoothingCrossEntropyFlat())])
def test_all_settings_come_back(ens, tmp_path, kwargs):
    one    = BidirEnsemble(ulmfit_classifier(ens.fwd.dls, **{'config':tiny, 'bptt':20, **kwargs}))
    loaded = load_ulmfit(one.save(tmp_path/'m'))
    again  = loaded.fwd.to_learner()
    assert same(loaded, one) and same(BidirEnsemble(again), one) and TextModel.from_learner(again).config==TextModel.from_learner(one.fwd).config
    assert [(type(m), m.p) for m in again.model.modules() if hasattr(m, 'p')]==[(type(m), m.p) for m in one.fwd.model.modules() if hasattr(m, 'p')]

@pytest.mark.parametrize('block', [lambda: LinBnDrop(24, 2, bn=False), lambda: LinBnDrop(24, 2, act=nn.GELU()), lambda: nn.Linear(24, 2)])
def test_a_head_that_could_not_be_built_again(ens, tmp_path, block):
    "would answer otherwise once it is loaded, or not be loaded"
    one = ulmfit_classifier(ens.fwd.dls, tiny, bptt=20)
    one.model[1].layers = nn.Sequential(block())
    assert Predictor(one)(texts).shape==(len(texts), 2)
    with raises('head of this model is not'): BidirEnsemble(one).save(tmp_path/'m')

def test_the_encoder_of_a_language_model_of_one_layer(ens, tmp_path):
    "Its LSTM has the size of the embeddings; `n_hid`, which it has no use for, may be anything"
    dls,one = ulmfit_dls(make_df(), path=tmp_path, seed=0, bs=8, bptt=20, min_freq=1),{**tiny, 'n_layers':1}
    save_lm(lm_learner(dls.lm_fwd, one), tmp_path/'lm')
    clas = ulmfit_classifier(dls.clas_fwd, one, encoder=tmp_path/'lm')
    assert same(load_ulmfit(BidirEnsemble(clas).save(tmp_path/'m')), BidirEnsemble(clas))
    with raises('config says emb_sz=9'): ulmfit_classifier(dls.clas_fwd, {**one, 'emb_sz':9}, encoder=tmp_path/'lm')

odd = ['a\nb', 'u\u2028v', 'q"\\,', '😀', '\ud800', ' ', '\x00', 'é', '\x85']
def test_odd_tokens_and_classes(tmp_path):
    proc    = TextProcessor(['xxunk','xxpad','xxbos'] + odd + words)
    classes = ['line\nbreak', 'sep\u2028', '\ud800', '7', ' ']
    dls = clas_dls([np.arange(2, 20)]*6, [classes[i%5] for i in range(6)], [[0,1,2,3],[4,5]], proc, classes)
    one    = BidirEnsemble(ulmfit_classifier(dls, tiny))
    loaded = load_ulmfit(one.save(tmp_path/'m'))
    assert loaded.fwd.processor.vocab==proc.vocab and loaded.classes==classes and same(loaded, one)

def test_int8(ens, saved):
    small = load_ulmfit(saved, quantize=True)
    a,b = small.get_preds(texts=texts)[0],ens.get_preds(texts=texts)[0]
    assert 0<(a-b).abs().max()<.02 and one_device(small)=='cpu'

def one_device(ens): return next(ens.fwd.module.parameters()).device.type

def test_device(saved):
    assert one_device(load_ulmfit(saved, device='cpu'))=='cpu'
    with raises('device='): load_ulmfit(saved, device='abacus')

def test_train_on(ens, saved, tmp_path):
    loaded = load_ulmfit(saved)
    dls = ulmfit_dls(make_df(40, 5), path=tmp_path, vocab=loaded.fwd.processor.vocab, seed=0, bs=8)
    more = BidirEnsemble(loaded.fwd.to_learner(dls.clas_fwd), loaded.bwd.to_learner(dls.clas_bwd))
    assert same(more, ens)
    for learn in more.learners.values():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .02)
    assert not same(more, ens) and len(more.validate())==3 and same(loaded, ens)

def test_nothing_to_validate(ens, saved):
    loaded = load_ulmfit(saved)
    for o in (loaded, BidirEnsemble(ens.fwd, loaded.bwd), BidirEnsemble(loaded.fwd.to_learner(), loaded.bwd.to_learner())):
        assert same(o, ens)
        for f in ('validate','get_preds','show_results'):
            with raises('no data'): getattr(o, f)()

# fastai's names, no code

def test_plain_fastai_reads_the_weights(ens, saved):
    dls   = ens.fwd.dls
    plain = text_classifier_learner(dls, AWD_LSTM, config=tiny, pretrained=False)
    with safe_open(saved/'fwd.safetensors', 'pt') as f: keys = set(f.keys())
    assert set(plain.model.state_dict())-keys=={'0.module.encoder_dp.emb.weight'} and keys<set(plain.model.state_dict())
    load_model(plain.model, saved/'fwd.safetensors')   # safetensors knows of the tied weights
    plain.model.eval(); plain.add_cb(BPT3C(20))
    assert torch.equal(Predictor(plain)(texts), Predictor(ens.fwd)(texts))

def test_no_pickle_is_read(saved):
    def never(*args, **kwargs): raise AssertionError('unpickled')
    with patch('pickle.load', never), patch('pickle.loads', never), patch('pickle.Unpickler', never), patch('torch.load', never): load_ulmfit(saved)

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (open, (str(self.path), 'w'))

def test_a_pickle_in_disguise_is_not_run(model, tmp_path):
    for name in ('fwd.safetensors', 'vocab.json'):
        d = shutil.copytree(model, tmp_path/name.replace('.','-'))
        (d/name).write_bytes(pickle.dumps(Evil(tmp_path/'owned')))
        rehash(d)
        with pytest.raises(UlmfitError): load_ulmfit(d)
        torch.save({'a': Evil(tmp_path/'owned')}, d/name); rehash(d)
        with pytest.raises(UlmfitError): load_ulmfit(d)
    assert not (tmp_path/'owned').exists()

# never half a model

def test_a_model_is_replaced(ens, model, tmp_path):
    one = BidirEnsemble(ens.fwd)
    assert one.save(model)==model.resolve() and {o.name for o in model.iterdir()}=={'config.json','vocab.json','fwd.safetensors'}
    ens.save(model); assert same(load_ulmfit(model), ens)
    (tmp_path/'empty').mkdir(); ens.save(tmp_path/'empty')
    ens.save(tmp_path/'new'/'deep'/'model')
    assert {o.name for o in tmp_path.iterdir()}=={'model','empty','new'}

@pytest.mark.parametrize('err', [OSError(28, 'No space left on device'), KeyboardInterrupt(), RuntimeError('bug')])
@pytest.mark.parametrize('where', ['save_weights', '_sha256', 'rename'])
def test_a_save_that_fails_changes_nothing(ens, model, tmp_path, err, where):
    def fail(*args, **kwargs): raise err
    real,calls = type(model).rename,[]
    def second(self, to):
        calls.append(to)
        if len(calls)==2: raise err
        return real(self, to)
    before = tree(tmp_path)
    how = patch.object(type(model), 'rename', second) if where=='rename' else patch.object(X, where, fail)
    with how, pytest.raises(UlmfitError if isinstance(err, OSError) else type(err)): ens.save(model)
    assert tree(tmp_path)==before
    if where!='rename':
        with patch.object(X, where, fail), pytest.raises(BaseException): ens.save(tmp_path/'other')
        assert tree(tmp_path)==before and not (tmp_path/'other').exists()

def test_killed_while_saving(saved, tmp_path):
    model = shutil.copytree(saved, tmp_path/'model')
    code = ("import os,sys; import ulmfit_ext.folder as X; from ulmfit_ext.export import load_ulmfit; e = load_ulmfit(sys.argv[1])\n"
            "def die(p): os.kill(os.getpid(), 9)\n"
            "X._sha256 = die; e.save(sys.argv[1])")
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(model)], capture_output=True, env=env).returncode in (-9,9) # as POSIX and Windows say it
    assert tree(model)==tree(saved)

def test_other_folders_are_left_alone(ens, model, tmp_path):
    (tmp_path/'notes').mkdir(); (tmp_path/'notes'/'diary.txt').write_text('dear')
    (tmp_path/'file').write_text('x')
    (model/'README.md').write_text('mine')
    lm = tmp_path/'lm'; lm.mkdir(); (lm/'config.json').write_text('{"kind": "ulmfit_ext language model", "format": 1}'); (lm/'fwd.safetensors').write_text('x')
    before = tree(tmp_path)
    for where,what in [('notes','diary.txt'), ('model','README.md'), ('lm','language model'), ('file','is a file'), ('file/x','cannot be written')]:
        with raises(what): ens.save(tmp_path/where)
    assert tree(tmp_path)==before

def test_a_link_is_followed(ens, tmp_path):
    (tmp_path/'real').mkdir(); (tmp_path/'link').symlink_to(tmp_path/'real')
    ens.save(tmp_path/'link')
    assert (tmp_path/'link').is_symlink() and same(load_ulmfit(tmp_path/'real'), ens)

@pytest.mark.skipif(os.name!='posix' or os.geteuid()==0, reason='needs a user that may not write everywhere')
def test_no_permission(ens, tmp_path):
    tmp_path.chmod(0o500)
    with raises('cannot be written'): ens.save(tmp_path/'m')

def test_folders_can_be_read_by_others(saved):
    mask = os.umask(0); os.umask(mask)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~mask
    for o in saved.iterdir(): assert o.stat().st_mode & 0o444 == 0o444 & ~mask

# what is said when something is wrong

def edit(**new):
    def _f(d):
        cfg = json.loads((d/'config.json').read_text())
        for k,v in new.items():
            if v is None: cfg.pop(k)
            else: cfg[k] = v
        (d/'config.json').write_text(json.dumps(cfg))
    return _f
def cut(name, n=50): return lambda d: (d/name).write_bytes((d/name).read_bytes()[:-n])
def write(name, text): return lambda d: (d/name).write_text(text)
def drop(name): return lambda d: (d/name).unlink()
def then(*fs): return lambda d: [f(d) for f in fs]
def model_entry(side, **new):
    def _f(d):
        cfg = json.loads((d/'config.json').read_text())
        cfg['models'][side].update(new)
        (d/'config.json').write_text(json.dumps(cfg))
    return _f

@pytest.mark.parametrize('change,says', [
    (drop('config.json'), 'not a model'), (write('config.json', '{"kind"'), 'cannot be read'), (write('config.json', '[]'), 'not a classifier'),
    (write('config.json', '\x00\xff'), 'cannot be read'), (write('config.json', '['*100_000), 'cannot be read'), (write('config.json', '{}'), 'not a classifier'),
    (edit(kind='ulmfit_ext language model'), 'language model'), (edit(format=99), 'upgrade'), (edit(format='x'), 'upgrade'), (edit(format=None), 'upgrade'),
    (drop('fwd.safetensors'), 'fwd.safetensors is missing'), (drop('vocab.json'), 'vocab.json is missing'),
    (cut('fwd.safetensors'), 'fwd.safetensors is not the file'), (cut('vocab.json'), 'vocab.json is not the file'), (write('bwd.safetensors', ''), 'not the file'),
    (then(cut('fwd.safetensors'), rehash), 'cannot be read'), (then(cut('vocab.json'), rehash), 'damaged'), (then(write('vocab.json', '["a"]'), rehash), 'vocabulary'),
    (then(write('vocab.json', '["xxunk","xxpad"]'), rehash), 'do not fit'), (then(write('vocab.json', '{"a":1}'), rehash), 'vocab'),
    *[(edit(**{k:None}), 'damaged') for k in ('classes','multi','models','sha256','processor','thresh')],
    (edit(classes=['a','b','c']), 'do not fit'), (edit(classes=5), 'damaged'), (edit(models={}), 'damaged'), (edit(models={'sideways':{}}), 'damaged'), (edit(models=3), 'damaged'),
    (edit(sha256={'../x':'0'}), 'damaged'), (edit(sha256={}), 'damaged'), (edit(sha256=[]), 'damaged'), (edit(processor={'lang':'en'}), 'TextProcessor'),
    (model_entry('fwd', config={}), 'do not fit|damaged'), (model_entry('fwd', config=dict(emb_sz='x')), 'damaged'), (model_entry('fwd', bptt=0), 'damaged'),
    (model_entry('bwd', lin_ftrs=[9]), 'do not fit'), (model_entry('bwd', ps=[]), 'damaged'),
])
def test_damage_is_named(model, change, says):
    change(model)
    with raises(says) as e: load_ulmfit(model)
    assert '\n' not in str(e.value) and len(str(e.value))<600

def test_no_folder(tmp_path, model):
    with raises('no folder'): load_ulmfit(tmp_path/'nowhere')
    with raises('is a file'): load_ulmfit(model/'config.json')
    with raises('not a model'): load_ulmfit(tmp_path)

def test_what_cannot_be_saved(ens, tmp_path):
    from fastai.text.all import TextDataLoaders
    plain = text_classifier_learner(TextDataLoaders.from_df(make_df(), text_col='text', label_col='label', num_workers=0), AWD_LSTM, config=tiny, pretrained=False)
    with raises('no `TextProcessor`'): BidirEnsemble(plain).save(tmp_path/'m')
    plain.dls.processor = TextProcessor(list(plain.dls.vocab[0]))
    one = BidirEnsemble(plain)
    assert same(load_ulmfit(one.save(tmp_path/'m')), one)
    head = text_classifier_learner(ens.fwd.dls, AWD_LSTM, config=tiny, pretrained=False)
    head.model[1].layers.append(torch.nn.Linear(2, 2))
    with raises('head'): BidirEnsemble(head).save(tmp_path/'n')

@pytest.mark.parametrize('thresh', [np.float32(.3), torch.tensor([.3,.6])])
def test_thresholds_of_other_types(tmp_path, thresh):
    df = make_df()
    ens = make(tmp_path, df.assign(label=[[o] for o in df.label]))
    ens.fwd.loss_func = deepcopy(ens.fwd.loss_func)
    ens.fwd.loss_func.thresh = thresh
    new = load_ulmfit(ens.save(tmp_path/'m'))
    assert torch.equal(torch.as_tensor(new.fwd.to_learner().loss_func.thresh), torch.as_tensor(thresh)) and same(ens, new)
    assert list(new.predict_df(texts[:2]).label)==list(ens.predict_df(texts[:2]).label)

def test_a_loss_that_is_not_saved_whole(ens, tmp_path, recwarn):
    ens.save(tmp_path/'a')
    assert not [o for o in recwarn if 'Of the loss' in str(o.message)]
    was = ens.fwd.loss_func
    try:
        ens.fwd.loss_func = LabelSmoothingCrossEntropyFlat()
        with pytest.warns(UserWarning, match='LabelSmoothingCrossEntropyFlat, only the kind is saved'): ens.save(tmp_path/'b')
    finally: ens.fwd.loss_func = was

# counted words

@pytest.fixture(scope='module')
def three(ens):
    ds,vocab = ens.fwd.dls.train_ds,ens.first.processor.vocab
    bag = BagOfWords.fit([[vocab[i] for i in o[0]] for o in ds], [ens.classes[o[1]] for o in ds], ens.classes)
    return BidirEnsemble(ens.fwd, ens.bwd, bag).weigh(make_df(100, seed=5))

def test_words_go_along(three, ens, tmp_path):
    path = three.save(tmp_path/'m')
    assert {o.name for o in path.iterdir()}=={'config.json','vocab.json','fwd.safetensors','bwd.safetensors','words.json','words.safetensors'}
    new,config = load_ulmfit(path),json.loads((path/'config.json').read_text())
    assert same(new, three) and new.mixture==three.mixture and config['format']==3 and {'words.json','words.safetensors'}<set(config['sha256'])
    assert same(load_ulmfit(new.save(tmp_path/'again')), three)
    new.mixture = None
    assert same(load_ulmfit(new.save(tmp_path/'again')), new)
    ens.save(path)
    assert load_ulmfit(path).words is None and not (path/'words.json').exists() and json.loads((path/'config.json').read_text())['format']==1

def test_a_version_without_ngrams_is_told(three, tmp_path, monkeypatch):
    "It would count words and pairs alone, and answer otherwise"
    path = BidirEnsemble(three.fwd, three.bwd, words=BagOfWords.fit([['good','film'],['bad','film']], three.classes)).save(tmp_path/'m')
    monkeypatch.setattr('ulmfit_ext.folder._format', 2)
    with pytest.raises(UlmfitError, match='is a model of format 3, and this version .* upgrade'): load_ulmfit(path)

def mix(**new):
    def _f(d):
        cfg = json.loads((d/'config.json').read_text())
        cfg['mixture'].update(new)
        (d/'config.json').write_text(json.dumps(sealed(cfg)))
    return _f

def unsaid(d):
    "As if the words had never been there, but for the format"
    cfg = json.loads((d/'config.json').read_text())
    for o in ('words.json','words.safetensors'): cfg['sha256'].pop(o)
    (d/'config.json').write_text(json.dumps(cfg))

@pytest.mark.parametrize('change,says', [
    (drop('words.json'), 'words.json is missing'), (cut('words.json'), 'words.json is not the file'), (cut('words.safetensors'), 'words.safetensors is not the file'),
    (then(cut('words.json'), rehash), 'words.json cannot be read'), (then(cut('words.safetensors'), rehash), 'words.safetensors cannot be read'), (then(write('words.json', '{}'), rehash), 'words.json is damaged'),
    (unsaid, 'does not say what the model consists of'), (edit(mixture=3), 'damaged'), (edit(mixture={}), 'damaged'), (mix(weights='x'), 'damaged'), (mix(weights=dict(words='x')), 'damaged'), (mix(weights={}), 'weigh')])
def test_damage_of_words_is_named(three, tmp_path, change, says):
    path = three.save(tmp_path/'m')
    change(path)
    with raises(says): load_ulmfit(path)
