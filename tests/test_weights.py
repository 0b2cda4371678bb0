"The weights that come with the package, those of other packages, and which are taken."
import hashlib,json,math,pickle,re,runpy,shutil,sys
from importlib.metadata import entry_points
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import *
from safetensors.torch import load_file
from ulmfit_ext.core import *
from ulmfit_ext.text.tables import *
from ulmfit_ext.text.tokens import *
from ulmfit_ext.text.corpus import *
from ulmfit_ext.text.loaders import *
from ulmfit_ext.data import *
from ulmfit_ext.callback.precision import *
from ulmfit_ext.weights import *
from ulmfit_ext.checkpoint import *
from ulmfit_ext.lm import *
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.classifier import ulmfit_classifier

root  = Path(__file__).resolve().parent.parent
sides = pytest.mark.parametrize('backwards', [False, True], ids=['fwd','bwd'])

def german():
    "The German weights: installed, or in the checkout; None where there are none, as in the source archive"
    if 'de' in installed_lms(): return lm_folder('de')
    return first(o for o in [root/'weights'/'de'/'ulmfit_ext_de'] if o.exists())

folders = {'small': lm_folder('small'), 'base': lm_folder('base'), **({'de': german()} if german() else {})}
each    = pytest.mark.parametrize('name', folders)

def card(name): return json.loads((folders[name]/'config.json').read_text(encoding='utf-8'))

@pytest.fixture
def quiet(monkeypatch): monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

@each
def test_files_are_those_that_were_trained(name):
    folder = folders[name]
    sums = dict(reversed(l.split('  ')) for l in (folder/'SHA256SUMS').read_text().splitlines())
    assert set(sums)=={'README.md','fwd.safetensors','bwd.safetensors','vocab.json','config.json','sample.txt'}
    for file,h in sums.items(): assert hashlib.sha256((folder/file).read_bytes()).hexdigest()==h, file

@pytest.mark.parametrize('name,side', [('base',33.3), ('small',12.7), ('de',15.3)])
def test_files_are_small(name, side):
    if name not in folders: pytest.skip('no German weights here')
    for o in ('fwd','bwd'): assert (folders[name]/f'{o}.safetensors').stat().st_size <= side*1e6
    assert sum(o.stat().st_size for o in folders[name].iterdir() if o.is_file()) < 2*side*1e6 + 1e6

@each
@sides
def test_perplexity_is_the_one_stated(name, backwards):
    "On a text that was written for it, and is in no corpus: no other direction and no other order of the words comes near"
    texts  = (folders[name]/'sample.txt').read_text(encoding='utf-8').split('\n\n')
    stated = card(name)['directions']['backward' if backwards else 'forward']['sample_perplexity']
    assert stated < dict(base=40, small=65, de=36)[name], 'it has learned the language'
    assert abs(lm_perplexity(folders[name], texts, backwards)/stated - 1) < 0.01

@each
@sides
def test_mistaken_files_are_far_off(name, backwards, tmp_path):
    "What the last test would say of swapped directions, or of words in another order: the limits above are tight enough"
    texts  = (folders[name]/'sample.txt').read_text(encoding='utf-8').split('\n\n')
    stated = card(name)['directions']['backward' if backwards else 'forward']['sample_perplexity']
    side,other = ('bwd','fwd') if backwards else ('fwd','bwd')
    for o in ('config.json','vocab.json'): shutil.copyfile(folders[name]/o, tmp_path/o)
    shutil.copyfile(folders[name]/f'{other}.safetensors', tmp_path/f'{side}.safetensors')
    assert lm_perplexity(tmp_path, texts, backwards) > 3*stated
    shutil.copyfile(folders[name]/f'{side}.safetensors', tmp_path/f'{side}.safetensors')
    words = json.loads((tmp_path/'vocab.json').read_text(encoding='utf-8'))
    (tmp_path/'vocab.json').write_text(json.dumps(words[:9] + words[10:] + words[9:10])) # one word is moved to the end, and all after it up by a row
    assert lm_perplexity(tmp_path, texts, backwards) > 3*stated

@each
@sides
def test_card(name, backwards):
    c = card(name)
    d,about = c['directions']['backward' if backwards else 'forward'],c['about']
    assert c['processor']['lang']==about['language']==dict(de='de').get(name, 'en')
    assert d['tokens']>=20e6 and 0<d['unknown']<0.12 and d['perplexity']<d['perplexity_per_word'] and d['bits']==16
    test_close(math.log(d['perplexity']), min(o[1] for o in d['history']), eps=1e-3)
    assert 'CC BY-SA' in about['licence'] and d['settings']['seed']==42 and d['settings']['sizes']==c['sizes']
    if name!='small': assert 'H200' in about['hardware'] and '2.11' in about['code'] and len(about['patched'])==5
    text = (folders[name]/'README.md').read_text(encoding='utf-8')
    for o in (f"pretrained='{name}'", f"{d['perplexity']:.2f}", f"{d['tokens']/1e6:.1f} million", about['hardware'], *about['patched'], *about['made']): assert o in text, o

def test_a_card_that_a_person_can_read_is_the_other_one():
    "`README.md` is made from `config.json`"
    readme = runpy.run_path(str(root/'docs'/'weights.py'))['readme']
    for name,folder in folders.items(): assert (folder/'README.md').read_text(encoding='utf-8')==readme(card(name)), f'run `python docs/weights.py {folder}`'

@each
@sides
def test_they_are_fastais_weights(name, backwards):
    "In 16 bits, under the names and in the shapes of fastai's own language model"
    wgts,vocab,sizes = load_lm(folders[name], backwards)
    raw = load_file(folders[name]/f"{'bwd' if backwards else 'fwd'}.safetensors")
    assert {o.dtype for o in raw.values()}=={torch.float16}
    plain = get_language_model(AWD_LSTM, len(vocab), {**awd_lstm_lm_config, **sizes})
    missing,unknown = plain.load_state_dict(wgts, strict=False)
    assert not unknown and all('decoder.weight' in o or 'emb.weight' in o for o in missing), 'only what is tied is stored once'
    assert vocab[:2]==['xxunk','xxpad'] and len(set(vocab))>=20000 and sizes==card(name)['sizes']

def df(n=40):
    rng = np.random.default_rng(0)
    kinds = dict(sport=['the team won the match', 'a player scored a late goal', 'the league season ended'], food=['the bread was baked slowly', 'a soup of fresh fish', 'the cook added salt'])
    rows = [(rng.choice(kinds[k]), k) for k in list(kinds)*(n//2)]
    return pd.DataFrame(rows, columns=['text','label'])

def test_they_are_what_an_english_classifier_starts_from(tmp_path, quiet, capsys, monkeypatch):
    u = ULMFiT.from_df(df(), tmp_path/'a', bs=8, directions='fwd', minutes=1e-6)
    assert u.pretrained=='small'
    monkeypatch.setattr('ulmfit_ext.weights.training_speed', lambda: 1e15)
    assert ULMFiT.from_df(df(), tmp_path/'base', bs=8, directions='fwd').pretrained=='base'
    vocab = load_lm('small')[1]
    u = ULMFiT.from_df(df(), tmp_path/'a', 'small', bs=8, directions='fwd') # with time to train
    assert set(vocab)-{'xxfake'} <= set(u.dls.vocab), 'words that the texts lack are known all the same'
    u.fit_lm(1)
    assert re.search(r'100\.0% of the tokens .* of small', capsys.readouterr().out)
    lm = lm_learner(u.dls.lm_fwd, pretrained='small', verbose=False)
    i = u.dls.vocab.index('orchestra')
    assert torch.equal(lm.model[0].encoder.weight[i], load_lm('small')[0]['0.encoder.weight'][vocab.index('orchestra')])
    few = ULMFiT.from_df(df(), tmp_path/'b', 'small', bs=8, min_freq=1, all_words=False)
    assert 'orchestra' not in few.dls.vocab and len(few.dls.vocab)<100
    for kw in (dict(lang='fr'), dict(config='tiny'), dict(pretrained=None)): assert ULMFiT.from_df(df(), tmp_path/'c', min_freq=1, **kw).pretrained is None

def fastais(folder, name, vocab=tuple('xxunk xxpad xxbos the team won a soup'.split())):
    "What `learn.save` and `save_pickle` leave of a language model in fastai"
    model = get_language_model(AWD_LSTM, len(vocab), {**awd_lstm_lm_config, **dict(emb_sz=8, n_hid=12, n_layers=2)})
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder/f'{name}.pth')
    (folder/f'{name}.pkl').write_bytes(pickle.dumps(list(vocab)))
    return model

def test_fastais_files_by_path(tmp_path, quiet):
    "A file, a folder of one, a folder of two directions; what is missing is named"
    model = fastais(tmp_path/'one', 'lm')
    for path in (tmp_path/'one', tmp_path/'one'/'lm.pth', str(tmp_path/'one'/'lm.pth')):
        wgts,vocab,sizes = load_lm(path)
        assert torch.equal(wgts['0.encoder.weight'], model[0].encoder.weight) and vocab[3]=='the' and sizes==dict(emb_sz=8, n_hid=12, n_layers=2)
    two = [fastais(tmp_path/'two', o) for o in ('wiki_fwd','wiki_bwd')]
    for b in (False, True): assert torch.equal(load_lm(tmp_path/'two', b)[0]['0.encoder.weight'], two[b][0].encoder.weight)
    u = ULMFiT.from_df(df(), tmp_path/'u', pretrained=tmp_path/'two', bs=8).fit_classifier(1)
    assert u.learns['fwd'].model[0].module.rnns[0].module.hidden_size==12
    with pytest.raises(UlmfitError, match="one direction.*directions='fwd'"): ULMFiT.from_df(df(), tmp_path/'v', pretrained=tmp_path/'one'/'lm.pth')
    assert ULMFiT.from_df(df(), tmp_path/'v', pretrained=tmp_path/'one'/'lm.pth', directions='bwd', bs=8).sides==('bwd',)
    fastais(tmp_path/'one', 'other')
    with pytest.raises(UlmfitError, match='2 files of weights'): load_lm(tmp_path/'one')
    (tmp_path/'one'/'lm.pkl').unlink(); (tmp_path/'one'/'other.pkl').unlink()
    with pytest.raises(UlmfitError, match='no vocabulary beside'): load_lm(tmp_path/'one'/'lm.pth')
    assert lm_perplexity(tmp_path/'two', ['the team won']) > 1

def test_a_tar_file_is_not_unpacked(tmp_path, monkeypatch):
    "PyTorch reads weights of old from a tar file, by way of a temporary folder; zeros are an empty one"
    (tmp_path/'a.pth').write_bytes(bytes(2000))
    (tmp_path/'a.pkl').write_bytes(pickle.dumps(['xxunk','xxpad']))
    monkeypatch.setattr(tempfile, 'mkdtemp', None)
    with pytest.raises(UlmfitError, match='a.pth and .* cannot be read safely.*it is a tar file'): load_fastai_lm(tmp_path/'a.pth', tmp_path/'a.pkl')

def test_fastais_files_with_an_optimizer(tmp_path, dls_of_fastai):
    "`Learner.save` keeps the optimizer's state, unless told otherwise"
    learn = dls_of_fastai
    learn.fit_one_cycle(1, slice(1e-4,1e-3)) # after this the optimizer's state holds NumPy's numbers, too
    (tmp_path/'lm.pkl').write_bytes(pickle.dumps(list(learn.dls.vocab)))
    learn.save(tmp_path/'lm')
    assert torch.equal(load_lm(tmp_path/'lm.pth')[0]['0.encoder.weight'], learn.model[0].encoder.weight)

@pytest.fixture
def dls_of_fastai(tmp_path, quiet):
    dls = TextDataLoaders.from_df(df(), text_col='text', is_lm=True, path=tmp_path, bs=4, seq_len=5)
    return language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, **dict(emb_sz=8, n_hid=12, n_layers=2)}, pretrained=False)

def test_whose_vocabulary_it_is(tmp_path):
    "Told by the name, or asked for"
    words = 'xxunk xxpad xxbos the team won a'.split()
    for o in ('fwd','bwd'):
        fastais(tmp_path, f'wiki_{o}', (*words, o))
        (tmp_path/f'wiki_{o}.pkl').rename(tmp_path/f'wiki_{o}_itos.pkl')
    for path in (tmp_path, tmp_path/'wiki_fwd.pth'): test_eq(load_lm(path)[1][-1], 'fwd')
    for path in (tmp_path, tmp_path/'wiki_bwd.pth'): test_eq(load_lm(path, True)[1][-1], 'bwd')
    (tmp_path/'another_fwd.pkl').write_bytes((tmp_path/'wiki_fwd_itos.pkl').read_bytes())
    with pytest.raises(UlmfitError, match='Which of another_fwd.pkl, wiki_fwd_itos.pkl .* Name it wiki_fwd.pkl'): load_lm(tmp_path)
    was = fingerprint(tmp_path, True)
    (tmp_path/'wiki_bwd_itos.pkl').write_bytes(pickle.dumps([*words, 'other']))
    assert fingerprint(tmp_path, True)!=was, 'another vocabulary is another model'

# Packages of weights

class Installed:
    "Packages as pip leaves them in a folder on Python's path: modules, and metadata with an entry point"
    def __init__(self, folder): self.folder = folder
    def add(self, name, value, module, code='', files=None):
        path = self.folder/module
        path.mkdir(parents=True)
        (path/'__init__.py').write_text(code)
        for o in Path(files).iterdir() if files else []: shutil.copyfile(o, path/o.name)
        info = self.folder/f'{module}-1.0.dist-info'
        info.mkdir()
        (info/'METADATA').write_text(f'Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n')
        (info/'entry_points.txt').write_text(f'[ulmfit_ext.weights]\n{name} = {value}\n')
        return path

@pytest.fixture
def installed(tmp_path, monkeypatch):
    "Nothing but what a test adds is installed, so that the German package may be there or not"
    monkeypatch.setattr('ulmfit_ext.weights.entry_points', lambda group: [o for o in entry_points(group=group) if o.value.startswith('weights_of_')])
    monkeypatch.syspath_prepend(tmp_path/'site')
    before = set(sys.modules)
    yield Installed(tmp_path/'site')
    for o in set(sys.modules)-before:
        if o.startswith('weights_of_'): del sys.modules[o]

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "The folder of a language model of both directions that has learned nothing"
    path = tmp_path_factory.mktemp('tiny')
    dls  = ulmfit_dls(df(), path=path, bs=4, bptt=5, min_freq=1, seed=0, cache=False, lang='de')
    for b in (False, True): save_lm(lm_learner(dls.lm(b), dict(emb_sz=8, n_hid=12, n_layers=2)), path/'lm', half=True)
    return path/'lm'

def fails(match): return pytest.raises(UlmfitError, match=match)

def test_a_package_registers_weights(installed, tiny, tmp_path, quiet, capsys):
    "By the name of a language: found by name, and taken for that language"
    path = installed.add('de', 'weights_of_de', 'weights_of_de', files=tiny)
    assert lm_folder('de')==path and load_lm('de', True)[2]==dict(emb_sz=8, n_hid=12, n_layers=2)
    assert fingerprint('de')==fingerprint(tiny)
    u = ULMFiT.from_df(df(), tmp_path/'u', lang='de', bs=8, min_freq=1)
    assert u.pretrained=='de' and 'Starting from de, which is installed' in capsys.readouterr().out
    assert ULMFiT.from_df(df(), tmp_path/'v', 'de', bs=8, min_freq=1).dls.lang=='de', 'and they say what language they read'

def test_a_function_registers_weights(installed, tiny):
    "It takes the direction, as those in `named_lms` do"
    code = f"def folder(backwards): return {str(tiny.parent)!r} + ('/nowhere' if backwards else '/lm')"
    installed.add('nl', 'weights_of_nl:folder', 'weights_of_nl', code)
    assert lm_folder('nl')==tiny and lm_folder('nl', True).name=='nowhere'

def test_what_comes_first(installed, tiny, tmp_path, monkeypatch):
    "Our own names, then a language model in a folder of that name, then what is installed; a folder of something else is passed over"
    for o in ('small','de'): installed.add(o, f'weights_of_{o}', f'weights_of_{o}', files=tiny)
    assert lm_folder('small').parent.name=='weights'
    monkeypatch.chdir(tmp_path)
    (tmp_path/'de').mkdir()
    assert lm_folder('de').name=='weights_of_de'
    shutil.copytree(tiny, tmp_path/'de', dirs_exist_ok=True)
    assert lm_folder('de')==Path('de')

def test_a_broken_package_is_named(installed):
    installed.add('pl', 'weights_of_pl', 'weights_of_pl', 'import nothing_of_that_name')
    with fails("brings the weights 'pl' is broken.*nothing_of_that_name.*install it anew"): load_lm('pl')

def test_weights_that_are_not_installed(installed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with fails(r'German is a package of its own: `pip install ./weights/de`'): load_lm('de')
    installed.add('nl', 'weights_of_nl', 'weights_of_nl')
    with fails('germn is not a language model: there is no such folder, and the names are base, de, nl, small, wt103'): load_lm('germn')
    with fails('no vocab.json'): load_lm(tmp_path)
    assert ULMFiT.from_df(df(), tmp_path/'u', lang='de', min_freq=1).pretrained is None
    assert 'Starting from nothing: no weights for de are installed. German is' in capsys.readouterr().out

@pytest.mark.skipif(not (root/'weights').exists(), reason='not in the source archive')
def test_the_german_package_is_complete(tmp_path):
    "Its metadata name the module that holds the files, and take all of them along"
    tomllib = pytest.importorskip('tomllib')
    project = tomllib.loads((root/'weights'/'de'/'pyproject.toml').read_text(encoding='utf-8'))
    assert project['project']['entry-points']['ulmfit_ext.weights']=={'de':'ulmfit_ext_de'}
    patterns = project['tool']['setuptools']['package-data']['ulmfit_ext_de']
    for o in (root/'weights'/'de'/'ulmfit_ext_de').iterdir():
        if o.is_file() and o.suffix!='.py': assert any(o.match(p) for p in patterns), o

# Which are taken

def test_which_to_take_is_a_matter_of_time(capsys):
    "With a speed made up: what is asked for decides, not the machine"
    tokens = 100_000,50_000 # ten and eight epochs of them, in two directions, where nothing else is said
    once = training_minutes('base', (10**9,0), 1, 1e11, (1,3))
    test_close(once, 10**9*99.6e6/1e11/60, eps=once/10)
    minutes = {name: training_minutes(name, tokens, 2, 1e11) for name in ('base','small')}
    test_close(minutes['base'], 2*(10*100_000*99.6e6 + 8*50_000*53.5e6)/1e11/60, eps=1)
    assert 2 < minutes['base']/minutes['small'] < 4
    test_close(training_minutes('base', tokens, 1, 1e11), minutes['base']/2, eps=1e-6)
    classifiers = training_minutes('base', tokens, 2, 1e11, (0,8))
    test_close(training_minutes('base', tokens, 2, 1e11, (3,8)), classifiers + .3*(minutes['base']-classifiers), eps=1e-6)
    for more,want in ((dict(), 'base'), (dict(minutes=30), 'small'), (dict(minutes=30, epochs=(0,8)), 'base'), (dict(n_directions=1, minutes=30), 'base'), (dict(minutes=600), 'base')):
        assert choose_lm(None, tokens, speed=1e11, **more)==want, more
        assert f'Starting from {want}: ' in capsys.readouterr().out
    assert choose_lm('en', [20*o for o in tokens], speed=1e11)=='small'
    assert re.fullmatch(r'Starting from small: base would need about \d+ min of training on this machine, and 60 are allowed; name base .*\n', capsys.readouterr().out)
    assert choose_lm('en', [20*o for o in tokens], speed=1e13)=='base'

def test_the_choice_is_kept(tmp_path, capsys, monkeypatch):
    "What was begun from one language model goes on from it, though the machine be slow today; another question gets a new answer"
    speeds = []
    def _speed():
        speeds.append(0)
        return 1e15 if len(speeds)==1 else 1.
    monkeypatch.setattr('ulmfit_ext.weights.training_speed', _speed)
    def _make(n=40, **kwargs): return ULMFiT.from_df(df(n), tmp_path/'u', bs=8, directions='fwd', **kwargs).pretrained
    assert [_make(), _make(), len(speeds)]==['base', 'base', 1]
    assert [_make(60), len(speeds)]==['small', 2]
    assert [_make(60, minutes=2), len(speeds)]==['small', 3]
    for damaged in ('', '[]', '{"asked"'):
        (tmp_path/'u'/'pretrained.json').write_text(damaged)
        assert _make(60, minutes=2)=='small', damaged
    with fails('minutes is -1'): _make(minutes=-1)

def test_how_much_there_is_to_read(tmp_path):
    "Texts without labels are read by the language models only; the estimate is near what is counted"
    table = sample_table()
    lm,clas = epoch_tokens(table)
    assert lm==clas and abs(lm/len(ulmfit_dls(table, path=tmp_path, seed=0).ids) - 1) < 0.1
    half = table.assign(label=table.label.where(np.arange(len(table))%2==0))
    assert epoch_tokens(half)[0]==lm and 0.4*lm < epoch_tokens(half)[1] < 0.6*lm
    test_close(epoch_tokens(half, unlabelled=['x'*436]*3)[0] - lm, 3*(436/4.4+2))
    assert epoch_tokens(table, label_col=None)[1]==0
    gaps = table.assign(text=table.text.where(np.arange(len(table))%2==0))
    assert 0 < epoch_tokens(gaps)[0] < 0.6*lm, 'a text may be missing'
    gone = (o for o in ['one more text to read']*30) # read once, and not lost on the way
    u = ULMFiT.from_df(df(), tmp_path/'u', unlabelled=gone, bs=8, directions='fwd', minutes=1e-6)
    assert u.dls.n_unlabelled==30

def test_speed_is_measured_without_a_trace():
    torch.manual_seed(1)
    want = torch.rand(1)
    torch.manual_seed(1)
    assert training_speed() > 1e6 and torch.rand(1)==want
