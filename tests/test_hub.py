"Pushing a model to a hub and fetching it again, against a server on loopback; what its card says"
import json,re,shutil,subprocess,sys,os
from pathlib import Path
import numpy as np,pandas as pd,pytest,torch
from sklearn.metrics import accuracy_score
from fake_hub import fake_hub
from made_up import make_df,make_texts
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.integrations.hub import calibration_error,calibration_table,from_pretrained,model_card,push_to_hub
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.words import BagOfWords

root  = Path(__file__).parents[1]
texts = ['', 'A good cat', *make_texts(10, seed=1)]
def raises(match): return pytest.raises(UlmfitError, match=match)
def same(a, b): return torch.equal(a.get_preds(texts=texts)[0], b.get_preds(texts=texts)[0])

@pytest.fixture(scope='module')
def ens(tmp_path_factory):
    dls = ulmfit_dls(make_df(), path=tmp_path_factory.mktemp('data'), seed=0, bs=8, bptt=20, min_freq=1)
    learns = [ulmfit_classifier(o, dict(emb_sz=8, n_hid=12, n_layers=2), .3, bptt=20) for o in (dls.clas_fwd,dls.clas_bwd)]
    for learn in learns:
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.02)
    bag = BagOfWords.fit(dls.tokens(dls.train_idx), [dls.y[i] for i in dls.train_idx], dls.classes)
    return BidirEnsemble(*learns, words=bag).weigh(make_df(80, seed=5))
@pytest.fixture(scope='module')
def saved(ens, tmp_path_factory): return ens.save(tmp_path_factory.mktemp('saved')/'model')

@pytest.fixture
def hub(monkeypatch):
    pytest.importorskip('huggingface_hub')
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True) # which is another protocol
    with fake_hub() as res: yield res
def push(hub, model, **kwargs): return push_to_hub(model, 'anna/mails', token='hf_x', endpoint=hub.address, **kwargs)
def fetch(hub, cache, **kwargs): return from_pretrained('anna/mails', endpoint=hub.address, cache_dir=cache, **kwargs)

# there and back

def test_there_and_back(hub, ens, tmp_path):
    url  = push(hub, ens, private=True)
    repo = hub.repos['anna/mails']
    assert set(repo)>={'config.json','vocab.json','fwd.safetensors','bwd.safetensors','words.json','words.safetensors','README.md'}
    assert url.startswith(hub.address) and hub.private is True
    got = fetch(hub, tmp_path)
    assert same(got, ens) and got.mixture==ens.mixture and got.classes==ens.classes

def test_a_folder_is_pushed_as_it_is(hub, saved):
    push(hub, saved)
    assert {k: hub.repos['anna/mails'][k] for k in ('config.json','fwd.safetensors')}=={k: (saved/k).read_bytes() for k in ('config.json','fwd.safetensors')}
    assert {o.name for o in saved.iterdir()}=={'config.json','vocab.json','fwd.safetensors','bwd.safetensors','words.json','words.safetensors'}

def test_a_folder_on_this_disk(saved, ens): assert same(from_pretrained(saved), ens)

def test_without_a_network(hub, ens, tmp_path):
    push(hub, ens)
    fetch(hub, tmp_path)
    hub.asked.clear()
    assert same(fetch(hub, tmp_path, local_files_only=True), ens) and hub.asked==[]
    hub.repos.clear() # and where the hub knows it no more
    with raises('could not be fetched'): fetch(hub, tmp_path/'other', local_files_only=True)

def test_a_new_model_takes_the_place_of_the_old(hub, ens, tmp_path):
    push(hub, ens)
    one = BidirEnsemble(ens.fwd)
    push(hub, one, card='')
    assert {o for o in hub.repos['anna/mails'] if not o.startswith('.')}=={'config.json','vocab.json','fwd.safetensors','README.md'}
    assert same(fetch(hub, tmp_path), one) and b'counted words' in hub.repos['anna/mails']['README.md'], 'the card stays where none is given'

# somebody else's repository

def test_only_a_models_files_are_fetched(hub, ens, tmp_path):
    push(hub, ens)
    hub.repos['anna/mails'].update({'setup.py': b'1/0', 'sub/fwd.safetensors': b'x', 'model.pkl': b'x'})
    hub.asked.clear()
    assert same(fetch(hub, tmp_path), ens)
    assert not any(o in path for _,path in hub.asked for o in ('setup.py','sub/','model.pkl','README'))

@pytest.mark.parametrize('change,says', [
    (lambda o: o.update({'vocab.json': b'[]'}), 'anna/mails/vocab.json is not the file that was saved'),
    (lambda o: o.pop('bwd.safetensors'), 'anna/mails is not complete: bwd.safetensors is missing'),
    (lambda o: o.pop('config.json'), 'anna/mails is not a model'),
    (lambda o: o.update({'config.json': b'['*10_000}), 'cannot be read'),
    (lambda o: o.clear() or o.update({'x': b'x'}), 'anna/mails is not a model|could not be fetched')])
def test_damage_is_named(hub, ens, tmp_path, change, says):
    push(hub, ens)
    change(hub.repos['anna/mails'])
    with raises(says): fetch(hub, tmp_path)

def test_what_goes_wrong_is_said(hub, ens, tmp_path):
    with raises('no name for a hub'): push_to_hub(ens, 'a name/of/many')
    with raises('no name for a hub'): from_pretrained('a name')
    with raises('could not be fetched.*404|could not be fetched.*not found'): fetch(hub, tmp_path)
    dead = 'http://127.0.0.1:9'
    with raises('could not be put on the hub'): push_to_hub(ens, 'anna/mails', token='hf_x', endpoint=dead)
    with raises('could not be fetched'): from_pretrained('anna/mails', endpoint=dead, cache_dir=tmp_path)
    with raises('There is no folder'): push(hub, tmp_path/'nowhere')

def test_without_the_package(saved):
    code = ("import sys; sys.modules['huggingface_hub'] = None\n"
            "from ulmfit_ext.integrations.hub import *; from ulmfit_ext.core import UlmfitError\n"
            "model_card(sys.argv[1]); from_pretrained(sys.argv[1])\n"
            "try: from_pretrained('anna/mails')\n"
            "except UlmfitError as e: print(e)\n"
            "assert 'fastai' not in sys.modules")
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(saved)], capture_output=True, text=True,
                         env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')])})
    assert res.returncode==0, res.stderr
    assert "pip install 'ulmfit_ext[hub]'" in res.stdout

# the card

def head_of(card):
    "What a hub reads of a card, with a YAML reader where there is one"
    text = card.split('---\n')[1]
    try: import yaml
    except ImportError: return {k: json.loads(v) for k,v in (o.split(': ', 1) for o in text.splitlines())}
    return yaml.safe_load(text)

def test_what_a_folder_knows(saved):
    card = model_card(saved)
    head = head_of(card)
    assert head['language']==['en'] and head['pipeline_tag']=='text-classification' and 'license' not in head and 'model-index' not in head
    for o in ('not noted', 'No scores', 'not measured', 'none was given', 'forward, backward, counted words'): assert o in card

def test_with_tables(saved, ens, tmp_path):
    train,test = make_df(60, seed=8),make_df(50, seed=9)
    test.to_csv(tmp_path/'test.csv', index=False)
    card = model_card(saved, 'anna/mails', train=train, test=tmp_path/'test.csv', licence='cc-by-4.0', languages=['en','de'], about='Mails of | 2026.')
    right = accuracy_score(test.label, ens.predict_df(test.text).label)
    head  = head_of(card)
    assert head['license']=='cc-by-4.0' and head['language']==['en','de']
    assert head['model-index'][0]['results'][0]['metrics'][0]==dict(type='accuracy', value=pytest.approx(right, abs=1e-4))
    for c in ('neg','pos'): assert f'| {c} | {(train.label==c).sum()} | {(test.label==c).sum()} |' in card
    assert re.search(rf'\| all \| [\d.]+ \| {right:.4f} \|', card) and 'Mails of | 2026.' in card and 'on 50 test texts' in card
    assert 'with weights and temperatures' in card and "from_pretrained('anna/mails')" in card

def test_of_a_training(tmp_path):
    df  = make_df(80)
    fit = ULMFiT.from_df(df, tmp_path, pretrained=None, config=dict(emb_sz=8, n_hid=12, n_layers=2), bptt=20, min_freq=1,
                         unlabelled=make_texts(9, seed=3))
    fit.fit(lm=dict(n_epoch=1), classifier=dict(n_epoch=1))
    card = model_card(fit)
    n = len(fit.dls.train_idx),len(fit.dls.valid_idx)
    assert f'{n[0]} texts for training, {n[1]} texts held out' in card and 'fine-tuned from `nothing`' in card
    assert '9, read by the language models' in card and 'trained once more on all labelled texts' in card and 'Seed: 42' in card
    counts = [list(map(int, o)) for o in re.findall(r'^\| (?:neg|pos) \| (\d+) \| (\d+) \|$', card, re.M)]
    assert np.sum(counts, 0).tolist()==list(n) and np.sum(counts, 1).tolist()==df.label.value_counts().sort_index().tolist()
    again = model_card(ULMFiT.load(tmp_path))
    assert 'not noted' in again

def test_odd_class_names(tmp_path):
    df = make_df(60)
    df['label'] = df.label.map(dict(pos='a|b', neg='<b>\nx'))
    dls = ulmfit_dls(df, path=tmp_path, seed=0, bs=8, bptt=20, min_freq=1)
    one = BidirEnsemble(ulmfit_classifier(dls.clas_fwd, dict(emb_sz=8, n_hid=12, n_layers=1), .3, bptt=20))
    card = model_card(one, train=df)
    assert r'| a\|b |' in card and '| &lt;b&gt; x |' in card

def test_several_labels(tmp_path):
    df  = make_df(60)
    df['label'] = [['cat']*(' cat' in t)+['dog']*(' dog' in t) for t in df.text]
    dls = ulmfit_dls(df, path=tmp_path, seed=0, bs=8, bptt=20, min_freq=1)
    one = BidirEnsemble(ulmfit_classifier(dls.clas_fwd, dict(emb_sz=8, n_hid=12, n_layers=1), .3, bptt=20))
    card = model_card(one, train=df, test=df)
    assert f"| cat | {df.label.map(lambda o: 'cat' in o).sum()} |" in card and 'any of 2 classes' in card

# calibration

def test_calibration_is_counted():
    "Ten answers at 0.8, six of them right: the error is 0.2; and an answer of certainty has a bin"
    p = torch.tensor([[.8,.2]]*10+[[1.,0.]])
    targs = torch.tensor([0]*6+[1]*4+[0])
    table = calibration_table(p.clamp(min=1e-30).log(), targs)
    assert table.answers.tolist()==[10,1] and table.right.tolist()==[.6,1.] and table.confidence.tolist()==pytest.approx([.8,1.])
    assert calibration_error(table)==pytest.approx(.2*10/11)

def test_calibration_of_several_labels():
    logits = torch.tensor([[.9,.1],[.9,.1]]).logit()
    table  = calibration_table(logits, torch.tensor([[1.,0.],[0.,0.]]), multi=True)
    assert table.answers.tolist()==[2,2] and table.right.tolist()==[0.,.5] and calibration_error(table)==pytest.approx((.1+.4)/2)
