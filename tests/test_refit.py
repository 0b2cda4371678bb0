"""Self-training: which guesses are learned from, when they are left out, and what `refit` and the command make of them"""
import pytest,torch,numpy as np,pandas as pd
from ulmfit_ext.all import *
from ulmfit_ext.refit import *
from ulmfit_ext.text.tables import sample_table
from ulmfit_ext.cli import app
from typer.testing import CliRunner

tiny = dict(emb_sz=16, n_hid=24, n_layers=2)
how  = dict(n_epoch=2, recipe='together')
rows = sample_table(120, classes=['Parameters','Raises'])

@pytest.fixture
def make(tmp_path):
    def _make(n=60, unlabelled=rows.text[60:], name='run', **kwargs):
        more = {} if unlabelled is None else dict(unlabelled=list(unlabelled))
        return ULMFiT.from_df(rows[:n], tmp_path/name, None, **{**dict(directions='fwd', config=tiny, min_freq=1, progress=False), **more, **kwargs})
    return _make

def test_the_surest_of_each_class():
    probs = torch.tensor([[.9,.1],[.8,.2],[.7,.3],[.95,.05],[.4,.6],[.45,.55]])
    assert surest(probs, 0.5).tolist()==[0,3,4]
    assert surest(probs, 0.01).tolist()==[3,4] # one of each at least
    assert surest(probs, 1).tolist()==list(range(6))

def test_guesses_are_for_texts_without_a_label(make):
    u = make(unlabelled=[*rows.text[60:], *rows.text[:60]]).fit(dict(n_epoch=0), how, refit=False) # all labelled texts once more
    found,labels = guess_labels(u.ensemble, u.dls, share=1.)
    assert sorted(found)==[*range(60, 120)] and set(labels)<={'Parameters','Raises'}
    few,_ = guess_labels(u.ensemble, u.dls, share=0.5, most=10)
    assert 0<len(few)<=10

def test_classifiers_and_refit_learn_from_them(make, monkeypatch):
    u = make().fit(dict(n_epoch=0), how, refit=False)
    before,n = u.ensemble,len(u.dls.train_idx)
    monkeypatch.setattr('ulmfit_ext.refit.is_worse', lambda *args: False)
    u.self_train(share=0.5)
    n_guesses = len(u.guesses[0])
    assert u.ensemble is not before and len(u.ensemble.fwd.dls.train_ds)==n+n_guesses
    assert len(u.ensemble.fwd.dls.valid_ds)==60-n and len(u.validate())==3
    held = u.validate()
    u.refit()
    assert len(u.ensemble.fwd.dls.train_ds)==60+n_guesses and u.validate().equals(held)
    assert ULMFiT.load(u.path).predict(rows.text[100])[0] in ('Parameters','Raises')
    with pytest.raises(UlmfitError, match='before `refit'): u.self_train()

def test_what_is_worse_is_left_out(make, monkeypatch, capsys):
    "Guesses that are wrong on purpose: words learn them by heart"
    u = make().fit(dict(n_epoch=0), how, refit=False)
    before = u.ensemble
    truth  = dict(zip(range(60, 120), rows.label[60:]))
    def _wrong(ens, dls, *args): return np.arange(60, 120),[{'Raises':'Parameters', 'Parameters':'Raises'}[truth[i]] for i in range(60, 120)]
    monkeypatch.setattr('ulmfit_ext.refit.guess_labels', _wrong)
    u.self_train()
    assert u.ensemble is before and u.guesses is None and 'it is left out' in capsys.readouterr().out

def test_the_same_lines_read_from_disk(make, capsys):
    def _run(): return make().fit(dict(n_epoch=0), how, refit=True, self_train=True)
    a = _run()
    capsys.readouterr()
    b = _run()
    out = capsys.readouterr().out
    assert 'Classifier of labels and guesses on disk' in out and 'Classifier of all labels on disk' in out
    texts = rows.text[60:70].tolist()
    assert torch.equal(a.ensemble.get_preds(texts=texts)[0], b.ensemble.get_preds(texts=texts)[0])

def test_other_guesses_are_trained_anew(make, monkeypatch, capsys):
    u = make().fit(dict(n_epoch=0), how, refit=False)
    u.self_train(share=0.25)
    capsys.readouterr()
    make().fit(dict(n_epoch=0), how, refit=False).self_train(share=1.)
    assert 'Classifier of labels and guesses on disk' not in capsys.readouterr().out

def test_more_labels_later(make, capsys):
    "The same line with a longer table: its language models are kept, and texts without a label are guessed again"
    make().fit(dict(n_epoch=1), how, refit=False, self_train=True)
    u = make(75, go_on='auto')
    assert 'Going on' in capsys.readouterr().out
    u.fit(dict(n_epoch=1), how, refit=False, self_train=True)
    assert 'after self-training' in capsys.readouterr().out and u.dls.n_unlabelled==60

@pytest.mark.parametrize('kwargs,message', [
    (dict(unlabelled=None), 'there are none: give some as `unlabelled`'),
    (dict(unlabelled=rows.text[:60]), 'other than those with a label'),
    (dict(label_delim=';'), 'for one label a text'),
])
def test_at_the_door(make, kwargs, message):
    u = make(**kwargs)
    with pytest.raises(UlmfitError, match=message): u.fit(dict(n_epoch=0), how, self_train=True)
    assert not u.learns and not (u.path/'classifier').exists()

def test_nothing_held_out(make):
    dls = make().dls
    with pytest.raises(UlmfitError, match='held-out texts, and there are none'): check_guessing(dls.with_split(dls.labelled, []))

def test_before_the_classifier(make):
    with pytest.raises(UlmfitError, match='call `fit_classifier'): make().self_train()

@pytest.mark.parametrize('kwargs', [dict(share=0), dict(share=1.5), dict(share='half'), dict(most=0), dict(most=10.5), dict(most=None)])
def test_numbers(make, kwargs):
    u = make().fit(dict(n_epoch=0), how, refit=False)
    with pytest.raises(UlmfitError, match=next(iter(kwargs))): u.self_train(**kwargs)

def test_no_time(make, capsys):
    u = make(minutes=0.001)
    u.fit(dict(n_epoch=0), how, refit=False, self_train=True)
    assert 'There is no time for self-training' in capsys.readouterr().out and u.guesses is None

def test_no_time_for_the_held_out_texts(make, capsys):
    "It is said, with what to do; and not where they are not to be learned from, or have been"
    said = 'There is no time to learn from the 12 held-out texts in the end: give more minutes, or call `refit()`'
    u = make(minutes=0.001).fit(dict(n_epoch=0), how)
    assert said in capsys.readouterr().out and u.held_out is None
    assert u.refit().held_out is not None
    make(minutes=0.001).fit(dict(n_epoch=0), how, refit=False)
    make(minutes=5).fit(dict(n_epoch=0), how)
    assert 'There is no time' not in capsys.readouterr().out

def test_command(tmp_path):
    labelled,more,out = [str(tmp_path/o) for o in ('labelled.csv','more.csv','out')]
    rows[:60].to_csv(labelled, index=False)
    rows[60:][['text']].to_csv(more, index=False)
    line = ['train', labelled, '--out', out, '--size', 'tiny', '--directions', 'fwd', '--lm-epochs', '0', '--epochs', '1', '--recipe', 'together',
            '--min-freq', '1', '--self-train']
    res = CliRunner().invoke(app, [*line, '--unlabelled', more])
    assert res.exit_code==0 and 'after self-training' in res.output, res.output
    res = CliRunner().invoke(app, [*line[:2], '--out', str(tmp_path/'other'), *line[4:]])
    assert res.exit_code and 'there are none' in res.output

def test_estimator():
    clf = UlmfitClassifier(pretrained=None, config=tiny, directions='fwd', lm_epochs=0, epochs=1, recipe='together', min_freq=1, self_train=True)
    clf.fit(rows.text[:60].tolist(), rows.label[:60].tolist(), unlabelled=rows.text[60:].tolist())
    assert len(clf.predict(rows.text[60:65].tolist()))==5
