"The small English weights that come with the package, and other people's."
import hashlib,json,math,pickle,re
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

folder = lm_folder('small')
sides  = pytest.mark.parametrize('backwards', [False, True], ids=['fwd','bwd'])

def card(): return json.loads((folder/'config.json').read_text(encoding='utf-8'))

@pytest.fixture
def quiet(monkeypatch): monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

def test_files_are_those_that_were_trained():
    sums = dict(reversed(l.split('  ')) for l in (folder/'SHA256SUMS').read_text().splitlines())
    assert {'fwd.safetensors','bwd.safetensors','vocab.json','config.json','sample.txt'} <= set(sums)
    for name,h in sums.items(): assert hashlib.sha256((folder/name).read_bytes()).hexdigest()==h, name

def test_files_are_small():
    for o in ('fwd','bwd'): assert (folder/f'{o}.safetensors').stat().st_size <= 13e6
    assert sum(o.stat().st_size for o in folder.iterdir()) < 27e6

@sides
def test_perplexity_is_the_one_stated(backwards):
    "On a text that was written for it, and is in no corpus"
    texts = (folder/'sample.txt').read_text(encoding='utf-8').split('\n\n')
    stated = card()['directions']['backward' if backwards else 'forward']['sample_perplexity']
    assert abs(lm_perplexity('small', texts, backwards)/stated - 1) < 0.01
    assert stated < 200, 'it has learned English'
    assert lm_perplexity('small', texts, not backwards) < 200 and lm_perplexity('small', [' '.join(reversed(o.split())) for o in texts], backwards) > 3*stated, 'and its order'

@sides
def test_card(backwards):
    c = card()
    d = c['directions']['backward' if backwards else 'forward']
    assert c['sizes']==dict(emb_sz=128, n_hid=512, n_layers=3) and c['processor']['lang']=='en'
    assert d["tokens"]>=20e6 and 0<d['unknown']<0.1 and d['perplexity']<d['perplexity_per_word']
    test_close(math.log(d['perplexity']), min(o[1] for o in d['history']), eps=1e-3)
    text = (folder/'README.md').read_text(encoding='utf-8')
    for o in ('## Data', 'CC BY-SA', '## How it was made', 'ulmfit pretrain', 'Seed 42', '## What it knows', f"{d['perplexity']:.1f}", f"{d['tokens']/1e6:.1f} million"): assert o in text, o

@sides
def test_they_are_fastais_weights(backwards):
    "In 16 bits, under the names and in the shapes of fastai's own language model"
    wgts,vocab,sizes = load_lm('small', backwards)
    raw = load_file(folder/f"{'bwd' if backwards else 'fwd'}.safetensors")
    assert {o.dtype for o in raw.values()}=={torch.float16}
    plain = get_language_model(AWD_LSTM, len(vocab), {**awd_lstm_lm_config, **sizes})
    missing,unknown = plain.load_state_dict(wgts, strict=False)
    assert not unknown and all('decoder.weight' in o or 'emb.weight' in o for o in missing), 'only what is tied is stored once'
    assert vocab[:2]==['xxunk','xxpad'] and len(set(vocab))>=20000

def df(n=40):
    rng = np.random.default_rng(0)
    kinds = dict(sport=['the team won the match', 'a player scored a late goal', 'the league season ended'], food=['the bread was baked slowly', 'a soup of fresh fish', 'the cook added salt'])
    rows = [(rng.choice(kinds[k]), k) for k in list(kinds)*(n//2)]
    return pd.DataFrame(rows, columns=['text','label'])

def test_they_are_what_an_english_classifier_starts_from(tmp_path, quiet, capsys):
    u = ULMFiT.from_df(df(), tmp_path/'a', bs=8, directions='fwd')
    assert u.pretrained=='small'
    vocab = load_lm('small')[1]
    assert set(vocab)-{'xxfake'} <= set(u.dls.vocab), 'words that the texts lack are known all the same'
    u.fit_lm(1)
    assert re.search(r'100\.0% of the tokens .* of small', capsys.readouterr().out)
    lm = lm_learner(u.dls.lm_fwd, pretrained='small', verbose=False)
    i = u.dls.vocab.index('orchestra')
    assert torch.equal(lm.model[0].encoder.weight[i], load_lm('small')[0]['0.encoder.weight'][vocab.index('orchestra')])
    few = ULMFiT.from_df(df(), tmp_path/'b', bs=8, min_freq=1, all_words=False)
    assert 'orchestra' not in few.dls.vocab and len(few.dls.vocab)<100
    for kw in (dict(lang='de'), dict(config='tiny'), dict(pretrained=None)): assert ULMFiT.from_df(df(), tmp_path/'c', min_freq=1, **kw).pretrained is None

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
