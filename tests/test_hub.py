"Pushing a model to a hub and fetching it again, against a server on loopback; what its card says"
import json,re,shutil,subprocess,sys,os
from pathlib import Path
import numpy as np,pandas as pd,pytest,torch
from sklearn.metrics import accuracy_score
from fake_hub import fake_hub
from made_up import make_df,make_texts
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.core import UlmfitError,load_json,sealed
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.integrations import hub as hub_module
from ulmfit_ext.integrations.hub import HubModel,from_pretrained,model_card,push_to_hub
from ulmfit_ext.measures import calibration_error,chance_error
from ulmfit_ext.note import score_note
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.report import report,scores
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

def at(monkeypatch, address):
    "What HF_ENDPOINT does before huggingface_hub is imported"
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', address+'/{repo_id}/resolve/{revision}/{filename}')

@pytest.fixture
def hub(monkeypatch):
    pytest.importorskip('huggingface_hub')
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True) # which is another protocol
    with fake_hub() as res:
        at(monkeypatch, res.address)
        yield res
def push(hub, model, **kwargs): return push_to_hub(model, 'anna/mails', token='hf_x', **kwargs)
def fetch(hub, cache, **kwargs): return from_pretrained('anna/mails', cache_dir=cache, **kwargs)

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
    (lambda o: o.update({'config.json': b'[]'}), 'anna/mails is not a classifier'),
    (lambda o: o.update({'config.json': b'\xff{'}), 'cannot be read'),
    (lambda o: o.update({'config.json': b'{"self": 1, "model": 2, "device": "x", "n": ' + 5000*b'9' + b'}'}), 'cannot be read|is not the file'),
    (lambda o: o.clear() or o.update({'x': b'x'}), 'anna/mails is not a model|could not be fetched')])
def test_damage_is_named(hub, ens, tmp_path, change, says):
    push(hub, ens)
    change(hub.repos['anna/mails'])
    with raises(says): fetch(hub, tmp_path)

def test_the_mixins_methods(hub, ens, saved, tmp_path):
    "A model as huggingface_hub knows them: on disk, with a card, on the hub, and back"
    HubModel(ens).save_pretrained(tmp_path/'model')
    with raises('README.md, which .* would be lost'): HubModel(ens).save_pretrained(tmp_path/'model') # and the first stays as it is
    assert 'counted words' in (tmp_path/'model'/'README.md').read_text()
    assert same(HubModel.from_pretrained(tmp_path/'model').model, ens) and same(load_ulmfit(tmp_path/'model'), ens)
    HubModel(ens, '# Mails').push_to_hub('anna/mails', token='hf_x')
    assert hub.repos['anna/mails']['README.md']==b'# Mails'
    assert same(HubModel.from_pretrained('anna/mails', cache_dir=tmp_path).model, ens)
    HubModel(ens).push_to_hub('anna/letters', token='hf_x')
    assert b"from_pretrained('anna/letters')" in hub.repos['anna/letters']['README.md']

def test_what_is_not_ours_stays(ens, tmp_path):
    "The mixin itself would remove its `config.json`"
    (tmp_path/'config.json').write_text('{"theirs": 1}')
    with raises('.'): HubModel(ens).save_pretrained(tmp_path)
    assert (tmp_path/'config.json').read_text()=='{"theirs": 1}' and len(list(tmp_path.iterdir()))==1

def test_what_goes_wrong_is_said(hub, ens, tmp_path, monkeypatch):
    with raises('no name for a hub'): push_to_hub(ens, 'a name/of/many')
    with raises('no name for a hub'): from_pretrained('a name')
    with raises('could not be fetched.*404|could not be fetched.*not found'): fetch(hub, tmp_path)
    with raises('There is no folder'): push(hub, tmp_path/'nowhere')
    at(monkeypatch, 'http://127.0.0.1:9') # where nobody answers
    with raises('could not be put on the hub'): push(hub, ens)
    with raises('could not be fetched'): fetch(hub, tmp_path)

def test_without_the_package(saved):
    code = ("import sys; sys.modules['huggingface_hub'] = None\n"
            "from ulmfit_ext.integrations.hub import *; from ulmfit_ext.core import UlmfitError\n"
            "from_pretrained(sys.argv[1])\n"
            "for f in from_pretrained,HubModel.from_pretrained,HubModel(from_pretrained(sys.argv[1]), '').push_to_hub:\n"
            "    try: f('anna/mails')\n"
            "    except UlmfitError as e: print(e)\n"
            "assert 'fastai' not in sys.modules\n"
            "model_card(sys.argv[1])")
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(saved)], capture_output=True, text=True,
                         env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')])})
    assert res.returncode==0, res.stderr
    assert res.stdout.count("pip install 'ulmfit_ext[hub]'")==3

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
    assert '| before the temperatures |' in card and '| as it answers |' in card and "from_pretrained('anna/mails')" in card

def test_of_a_training(tmp_path):
    df  = make_df(80)
    fit = ULMFiT.from_df(df, tmp_path, pretrained=None, config=dict(emb_sz=8, n_hid=12, n_layers=2), bptt=20, min_freq=1,
                         unlabelled=make_texts(9, seed=3))
    fit.fit(lm=dict(n_epoch=1), classifier=dict(n_epoch=1))
    card = model_card(fit)
    n = len(fit.dls.train_idx),len(fit.dls.valid_idx)
    assert f'{n[0]} texts for training, {n[1]} texts held out' in card and '- Language model: learned from the texts alone\n' in card
    assert '9, read by the language models' in card and 'trained once more on all labelled texts' in card and 'Seed: 42' in card
    counts = [list(map(int, o)) for o in re.findall(r'^\| (?:neg|pos) \| (\d+) \| (\d+) \|$', card, re.M)]
    assert np.sum(counts, 0).tolist()==list(n) and np.sum(counts, 1).tolist()==df.label.value_counts().sort_index().tolist()
    assert re.search(r'\| all \| [\d.]+ \| [\d.]+ \|', card) and '| before the temperatures |' in card and '- Trained: 20' in card
    for again in (ULMFiT.load(tmp_path), tmp_path, str(tmp_path/'model'), load_ulmfit(tmp_path/'model')): assert model_card(again)==card
    copy = load_ulmfit(ULMFiT.load(tmp_path).save(tmp_path/'copy'))
    assert model_card(copy)==card
    with_test = model_card(tmp_path, test=make_df(50, seed=9))
    assert f'on {n[1]} texts held out' in with_test.lower() and 'on 50 test texts' in with_test
    copy.weigh(make_df(50, seed=9))
    assert 'No scores were noted' in model_card(copy) and f'{n[0]} texts for training' in model_card(copy), 'it answers otherwise now'

def test_a_folder_of_an_earlier_version_has_no_note(saved, ens, tmp_path):
    "And one with a note has no other files, and is sealed as ever"
    assert 'note' not in load_json(saved/'config.json')
    answers = ens.answers(df=make_df(50, seed=9))
    other = load_ulmfit(saved)
    other.note = dict(sets={'training': (7, [3,4])}, facts={'Seed': '42'}, scored={'texts | <b>': score_note(ens, answers)})
    path = other.save(tmp_path/'model')
    assert {o.name for o in path.iterdir()}=={o.name for o in saved.iterdir()}
    card,config = model_card(path),load_json(path/'config.json')
    assert '| neg | 3 |' in card and '- Seed: 42' in card and f"{scores(ens, answers).accuracy['all']:.4f}" in card
    config['note']['sets']['training'][0] = 8
    (path/'config.json').write_text(json.dumps(config))
    with raises('its hash says that it is not what was saved'): model_card(path)
    (path/'config.json').write_text(json.dumps(sealed({**config, 'note': {'sets': 7}})))
    with raises('What the model notes of its training is damaged'): model_card(path)
    assert same(load_ulmfit(path), ens)

def test_a_run_is_saved_where_it_cannot_be_scored(tmp_path):
    "A metric that goes wrong costs the scores in the note, and not the model"
    u = make(tmp_path, make_df(40), pretrained=None).fit(dict(n_epoch=0), clas, refit=False)
    def broken(pred, targ): raise ZeroDivisionError('a metric')
    u.learns['bwd'].metrics = [broken]
    with pytest.warns(UserWarning, match='The scores are not noted with the model'): u.save()
    assert 'No scores were noted' in model_card(tmp_path)

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

# how the language model was made

size = dict(emb_sz=8, n_hid=12, n_layers=2)
clas = dict(n_epoch=1, recipe='gradual')
def make(path, df, **kwargs):
    return ULMFiT.from_df(df, path, **{**dict(config=size, directions='bwd', bptt=20, min_freq=1, words=False), **kwargs})
def language_model(u): return re.search('^- Language model: (.*)$', model_card(u), re.M)[1]

@pytest.fixture(scope='module')
def source(tmp_path_factory):
    "A language model to begin with"
    u = make(tmp_path_factory.mktemp('source'), make_df(40), pretrained=None).fit_lm(n_epoch=1)
    return shutil.copytree(next((u.path/'lm').glob('bwd-*')), u.path/'letters')

def test_the_language_model_was_fine_tuned_in_an_earlier_run(source, tmp_path):
    df = make_df(80)
    u  = make(tmp_path/'u', df[:60], pretrained=str(source)).fit(dict(n_epoch=1), clas, refit=False)
    assert language_model(u)=='fine-tuned from `letters`'
    v = u.add(df[60:], classifier=clas, refit=False)
    assert language_model(v)=='fine-tuned from `letters`, in an earlier run, and kept'
    again = ULMFiT.load(v.path).add(make_df(9, seed=7), classifier=clas, refit=False)
    assert language_model(again)=='fine-tuned from `letters`, in an earlier run, and kept'

def test_what_auto_was_is_said_after_more_labels(source, tmp_path, monkeypatch):
    "The run notes 'auto'; which language model that was stands in the folder of the fine-tuned one"
    df = make_df(80)
    monkeypatch.setattr('ulmfit_ext.pipeline.choose_lm', lambda *args, **kwargs: str(source))
    u = make(tmp_path/'u', df[:60], pretrained='auto', config='small').fit(dict(n_epoch=1), clas, refit=False)
    v = u.add(df[60:], classifier=clas, refit=False)
    assert v.before.asked['pretrained']=='auto' and language_model(v)=='fine-tuned from `letters`, in an earlier run, and kept'

def test_the_language_model_learned_from_the_texts_alone(tmp_path):
    df = make_df(80)
    u  = make(tmp_path/'u', df[:60], pretrained=None).fit(dict(n_epoch=1), clas, refit=False)
    assert language_model(u)=='learned from the texts alone'
    v = u.add(df[60:], classifier=clas, refit=False)
    assert language_model(v)=='learned from the texts alone, in an earlier run, and kept'

def test_the_language_model_was_left_as_it_is(source, tmp_path):
    def _fit(name, start): return make(tmp_path/name, make_df(60), pretrained=start, unlabelled=make_texts(9, seed=3)).fit(dict(n_epoch=0), clas, refit=False)
    u = _fit('u', str(source))
    assert language_model(u)=='`letters`, left as it is: not fine-tuned on these texts'
    assert '9, not read by the language models' in model_card(u)
    assert language_model(_fit('v', None))=='none: training began with random weights'

def test_weights_of_the_classes(tmp_path, saved):
    df  = make_df(60)
    dls = ulmfit_dls(df[(df.label=='pos') | (df.index<20)], path=tmp_path, seed=0, bs=8, bptt=20, min_freq=1)
    ens = BidirEnsemble(ulmfit_classifier(dls.clas_fwd, size, .3, bptt=20, balance=True))
    neg,pos = ens.first.class_weights
    line = f'- Weights of the classes in the loss: neg {neg:.3g}, pos {pos:.3g}\n'
    assert neg>pos and line in model_card(ens) and line in model_card(ens.save(tmp_path/'model'))
    assert 'Weights of the classes' not in model_card(saved)

# rows without a label

def test_rows_without_a_label_are_left_out(saved, capsys):
    train,test = make_df(60, seed=8),make_df(50, seed=9)
    def _more(df): return pd.concat([df, pd.DataFrame(dict(text=['a good cat','a bad dog'], label=[None,'']))], ignore_index=True)
    card = model_card(saved, train=_more(train), test=_more(test))
    assert card==model_card(saved, train=train, test=test) and '60 texts for training, 50 texts for testing' in card
    assert capsys.readouterr().out.splitlines()==['2 of 62 rows have no label and are left out','2 of 52 rows have no label and are left out']
    with raises('no label in any row'): model_card(saved, test=test.assign(label=None))

def test_rows_of_several_labels_without_one(tmp_path):
    df  = make_df(60)
    df['label'] = [';'.join(['cat']*(' cat' in t)+['dog']*(' dog' in t)) or None for t in df.text]
    dls = ulmfit_dls(df, path=tmp_path, seed=0, bs=8, bptt=20, min_freq=1, label_delim=';')
    one = BidirEnsemble(ulmfit_classifier(dls.clas_fwd, size, .3, bptt=20))
    n   = df.label.notna().sum()
    assert n<60 and f'{n} texts for training, {n} texts for testing' in model_card(one, train=df, test=df)

# calibration: the numbers of the report

def rows_of(card, head):
    "Cells of the table of a card that begins with the cell `head`"
    lines = card[card.index(f'| {head} |'):].split('\n\n')[0].splitlines()
    return [[o.strip() for o in line.strip('|').split('|')] for line in lines[2:]]

def test_calibration_is_that_of_the_report(saved):
    test = make_df(50, seed=9)
    card,bins = model_card(saved, test=test),report(saved, test).bins
    wanted = [[name, f'{calibration_error(bins[k]):.4f}', f'{chance_error(bins[k]):.4f}']
              for name,k in (('before the temperatures','before'),('as it answers','after'))]
    assert rows_of(card, 'probabilities')==wanted and wanted[0][1]!=wanted[1][1]
    last = bins['after']
    assert rows_of(card, 'answers')==[[f'{o.answers}', f'{o.confidence:.2f}', f'{o.right:.2f}'] for o in last.itertuples()]

def test_calibration_without_temperatures(ens):
    test = make_df(50, seed=9)
    one  = BidirEnsemble(ens.fwd)
    assert [o[:2] for o in rows_of(model_card(one, test=test), 'probabilities')]==[['as it answers', f"{calibration_error(report(one, test).bins['after']):.4f}"]]

def test_there_is_one_of_each():
    "Calibration is of `measures`, and what is behind a model is of `labelling`: this module has no other"
    assert hub_module.calibration_error is calibration_error
    assert not {'calibration_error','calibration_table'} & set(hub_module.__all__)
    for f in (model_card,push_to_hub):
        with raises('model is a int: pass a `BidirEnsemble`'): f(7, 'anna/mails')
