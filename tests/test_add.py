"More labels: a folder goes on from the run that is there"
import json,warnings
import numpy as np,pandas as pd,pytest,torch
from fastai.text.all import *
from made_up import make_df
from ulmfit_ext.core import UlmfitError,sealed
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.earlier import earlier_run,joined_tables
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.text.tables import read_table

size = dict(emb_sz=8, n_hid=12, n_layers=2)
lm,clas = dict(n_epoch=1),dict(n_epoch=1)

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

all_rows = make_df(90)

@pytest.fixture
def make(tmp_path):
    def _f(df=all_rows[:60], **kwargs):
        return ULMFiT.from_df(df, tmp_path/'u', **{**dict(pretrained=None, config=size, directions='fwd', bs=8, min_freq=1, seed=1), **kwargs})
    return _f

def fails(match): return pytest.raises(UlmfitError, match=match)
def probs(u): return u.predict('a good cat')[2]
def held_out(u, df): return set(df.text.iloc[u.dls.valid_idx])
def pieces(u, kind): return sorted(o.name for o in (u.path/kind).glob('fwd-*'))

def test_add_keeps_the_language_models_and_learns_all_rows(make, capsys):
    u = make().fit(lm, clas, refit=False)
    before = probs(u)
    capsys.readouterr()
    v = ULMFiT.load(u.path).add(all_rows[60:], classifier=clas)
    out = capsys.readouterr().out
    assert 'Going on: the language models of the earlier run, which have read 60 of 90 texts, are kept' in out
    assert 'Language model' not in out and 'Trying' not in out and ', as before' in out and 'Classifier of all labels' in out
    assert pieces(v, 'lm')==['fwd-1'] and pieces(v, 'classifier')==['fwd-1','fwd-2']
    assert len(v.dls.labelled)==90 and len(v.learns['fwd'].dls.train_ds)==90
    assert not torch.equal(probs(v), before) and torch.equal(probs(ULMFiT.load(u.path)), probs(v))

def test_what_was_held_out_is_held_out_again(make):
    u = make().fit(lm, clas, refit=False)
    v = u.add(all_rows[60:], classifier=clas, refit=False)
    rows = earlier_run(u.path).rows
    old,new = held_out(u, all_rows[:60]),set(rows.text[rows.held_out])
    assert old<new and 1<=len(new-old)<=15

def test_a_run_that_goes_on_is_found_again(make, capsys):
    "The same table once more, in a new session: nothing is trained, and the answers are the same bits"
    make().fit(lm, clas)
    a = make(all_rows, go_on='auto').fit(lm, clas)
    assert 'Going on' in capsys.readouterr().out
    b = make(all_rows, go_on='auto').fit(lm, clas)
    out = capsys.readouterr().out
    assert out.count('on disk')==2 and 'epoch' not in out and torch.equal(probs(a), probs(b))
    assert pieces(a, 'lm')==['fwd-1']

def test_the_same_table_is_the_same_run(make, capsys):
    a = make().fit(lm, clas)
    capsys.readouterr()
    b = make(go_on='auto').fit(lm, clas)
    out = capsys.readouterr().out
    assert 'Going on' not in out and out.count('on disk')==3 and torch.equal(probs(a), probs(b))

def test_from_nothing_unless_it_is_said(make, capsys):
    make().fit(lm, clas)
    u = make(all_rows)
    u.fit_lm(**lm)
    assert 'Going on' not in capsys.readouterr().out and pieces(u, 'lm')==['fwd-1','fwd-2']

@pytest.mark.parametrize('other,says', [(dict(seed=2), ''), (dict(config={**size, 'n_hid':10}), ''), (dict(directions='bwd'), ''), (dict(), 'Beginning anew: .* have read 60 of 150 texts')],
                         ids=['seed','size','direction','more than half is new'])
def test_other_language_models_are_trained(make, other, says, capsys):
    make().fit(lm, clas, refit=False)
    df = all_rows if other else pd.concat([all_rows[:60], make_df(90, seed=5)], ignore_index=True)
    capsys.readouterr()
    u = make(df, go_on='auto', **other)
    out = capsys.readouterr().out
    assert u.before is None and 'Going on' not in out and re.search(says, out)

def test_texts_that_were_read_without_labels(make, capsys):
    "As after `suggest`: the language models have read them, so they are no new texts"
    make(unlabelled=all_rows.text[60:]).fit(lm, clas, refit=False)
    capsys.readouterr()
    v = make(unlabelled=all_rows.text[60:]).add(all_rows[60:], classifier=clas, refit=False)
    assert 'read 90 of 90 texts' in capsys.readouterr().out and len(v.dls.labelled)==90 and v.dls.n_unlabelled==0

def test_a_text_gets_its_new_label(make):
    u = make(config=size).fit(dict(n_epoch=0), clas, refit=False)
    text,was = all_rows.text[0],all_rows.label[0]
    new = pd.DataFrame(dict(text=[text,'A new cat.'], label=['pos' if was=='neg' else 'neg', 'maybe']))
    v = u.add(new, classifier=clas, refit=False)
    rows = earlier_run(u.path).rows
    assert len(rows)==61 and rows.label[rows.text==text].tolist()==[new.label[0]] and v.ensemble.classes==['maybe','neg','pos']
    assert v.add(new.assign(label=was)[:1], classifier=clas, refit=False).ensemble.classes==['maybe','neg','pos']

@pytest.mark.parametrize('labels', [[0,1], [True,False], [.5,1.5], [['a'],['a','b']]])
def test_labels_of_any_kind(make, labels):
    df = all_rows.assign(label=[labels[o=='pos'] for o in all_rows.label])
    u = make(df[:60], words=False).fit(dict(n_epoch=0), clas, refit=False)
    v = u.add(df[60:], classifier=clas, refit=False)
    assert v.ensemble.classes==u.ensemble.classes and type(v.predict('a cat')[0])==type(u.predict('a cat')[0])

@pytest.mark.parametrize('file_first', [True,False], ids=['CSV first','CSV last'])
@pytest.mark.parametrize('labels', [[0,1,2], [True,False,True], [.5,1.5,2.5]], ids=['whole','boolean','float'])
def test_a_file_and_a_table_mix(make, tmp_path, labels, file_first):
    "A file has strings where a table has numbers; they are the labels that were there, and a new class is of their kind"
    df = all_rows.assign(label=[labels[o=='pos'] for o in all_rows.label])
    df.loc[89,'label'] = labels[2]
    lots = [df[:60],df[60:]]
    lots[not file_first].to_csv(tmp_path/'lot.csv', index=False)
    lots[not file_first] = tmp_path/'lot.csv'
    u = make(lots[0], words=False).fit(dict(n_epoch=0), clas, refit=False)
    v = u.add(lots[1], classifier=clas, refit=False)
    assert v.ensemble.classes==sorted({*map(str, labels)})
    found = {type(o) for o in earlier_run(u.path).rows.label}
    assert found==({str} if file_first else {type(o) for o in labels})
    assert type(v.predict('a cat')[0])==type(u.predict('a cat')[0])

@pytest.mark.parametrize('file_first', [True,False], ids=['CSV first','CSV last'])
def test_a_file_and_a_table_mix_with_several_labels(make, tmp_path, file_first):
    df = all_rows.assign(label=[[1,2] if o=='pos' else [1] for o in all_rows.label])
    lots = [df[:60],df[60:]]
    lot = lots[not file_first]
    lot.assign(label=[';'.join(map(str, o)) for o in lot.label]).to_csv(tmp_path/'lot.csv', index=False)
    lots[not file_first] = tmp_path/'lot.csv'
    u = make(lots[0], words=False, label_delim=';').fit(dict(n_epoch=0), clas, refit=False)
    v = u.add(lots[1], classifier=clas, refit=False)
    assert v.ensemble.classes==['1','2'] and len(v.dls.labelled)==90

def settings(u, name): return json.loads((u.path/'classifier'/name/'settings.json').read_text())

def test_what_the_classifier_was_given_holds(make, capsys):
    how = dict(n_epoch=1, balance=True, max_len=20, recipe='together')
    u = make().fit(lm, dict(how, cbs=Callback()), refit=False)
    assert earlier_run(u.path).classifier==how, 'without the callback'
    make(all_rows, go_on='auto')
    assert earlier_run(u.path).classifier==how, 'where the run that goes on is killed before it has trained'
    capsys.readouterr()
    v = ULMFiT.load(u.path).add(all_rows[60:], refit=False)
    out = capsys.readouterr().out
    assert "Classifier: recipe='together', n_epoch=1, balance=True, max_len=20, as before" in out and 'Trying' not in out
    was,now = settings(u, 'fwd-1'),settings(v, 'fwd-2')
    assert {k for k in was if was[k]!=now[k]}<={'data_sha256','pretrained_sha256','encoder_sha256','files','objects','clas_bs'}
    assert (now['n_epoch'],now['balance'],now['max_len'])==(1,True,20)
    v.add(make_df(5, seed=7), classifier=dict(balance=False, max_len=None), refit=False)
    assert "Classifier: recipe='together', n_epoch=1, as before" in capsys.readouterr().out
    assert not settings(v, 'fwd-3')['balance'] and earlier_run(u.path).classifier==dict(recipe='together', n_epoch=1)

def test_a_run_that_an_earlier_version_noted(make, capsys):
    u = make().fit(dict(n_epoch=0), dict(clas, balance=True), refit=False)
    facts = json.loads((u.path/'run.json').read_text())
    (u.path/'run.json').write_text(json.dumps(sealed({k: o for k,o in facts.items() if k not in ('classifier','own_sha256')})))
    assert earlier_run(u.path).classifier=={}
    v = ULMFiT.load(u.path).add(all_rows[60:], classifier=clas, refit=False)
    assert len(v.dls.labelled)==90 and 'Classifier: ' not in capsys.readouterr().out

def test_columns_of_ones_own(make):
    df = all_rows.rename(columns=dict(text='review', label='stars')).assign(more=1, test=[i%5==0 for i in range(90)])
    u = make(df[:60], text_col='review', label_col='stars', valid_col='test').fit(dict(n_epoch=0), clas)
    v = u.add(df[60:].drop(columns='test'), classifier=clas)
    assert held_out(v, pd.DataFrame(dict(text=earlier_run(u.path).rows.text)))==set(df.review[:60][df.test[:60]]), 'rows of a table without that column are learned from'
    assert len(v.learns['fwd'].dls.valid_ds)==12, 'and what was set aside is not'
    with fails("no column 'review'"): v.add(all_rows[60:])

def test_the_recipe_is_tried_again_when_labels_have_doubled(make, capsys):
    u = make(all_rows[:40]).fit(lm, clas, refit=False)
    capsys.readouterr()
    u.add(all_rows[40:], classifier=clas, refit=False)
    assert 'Trying 2 recipes' in capsys.readouterr().out

def test_language_models_that_read_on(make, capsys):
    u = make().fit(lm, clas, refit=False)
    v = make(all_rows, go_on='auto')
    was = u.lms['fwd'].model[0].encoder.weight
    v.fit_lm(1, lr_max=1e-9)
    assert torch.allclose(v.lms['fwd'].model[0].encoder.weight[v.dls.vocab.index('cat')], was[u.dls.vocab.index('cat')], atol=1e-4)
    v.fit_classifier(1)
    assert pieces(v, 'lm')==['fwd-1','fwd-2'] and earlier_run(u.path).lms==dict(fwd='fwd-2')

def test_a_model_alone_cannot_go_on(make, tmp_path):
    u = make().fit(dict(n_epoch=0), clas, refit=False)
    path = u.save(tmp_path/'elsewhere'/'model')
    with fails('does not say what the model was trained on'): ULMFiT.load(path).add(all_rows[60:])
    assert torch.equal(probs(ULMFiT.load(u.path/'model')), probs(u))

def test_what_is_damaged_is_not_gone_on_from(make, capsys):
    u = make().fit(lm, clas, refit=False)
    for name in ('rows.jsonl','run.json','read.npy'):
        was = (u.path/name).read_bytes()
        (u.path/name).write_bytes(was[:-9])
        assert earlier_run(u.path) is None
        (u.path/name).write_bytes(was)
    shutil.rmtree(u.path/'lm')
    capsys.readouterr()
    u.add(all_rows[60:], classifier=clas, refit=False)
    out = capsys.readouterr().out
    assert 'there are no fine-tuned language models' in out and ', as before' in out and 'Language model' not in out

def test_files_one_under_the_other(tmp_path, monkeypatch):
    "A later file has the last word, labels are as in the first, and what is wrong names the file and the row"
    monkeypatch.chdir(tmp_path) # so that their names are short
    def _file(name, **cols):
        o = Path(name)
        pd.DataFrame(cols).to_json(o, orient='records', lines=True) if name.endswith('l') else pd.DataFrame(cols).to_csv(o, index=False)
        return o
    a = _file('a.jsonl', text=['good','bad','fine','so so'], label=[1,0,1,None])
    b = _file('b.csv', text=['so so','bad','new'], label=['0','1',None], row=[7,8,9])
    both = joined_tables([a, b])
    assert both.text.tolist()==['good','fine','so so','bad','new'] and both.label.tolist()[:4]==[1,1,0,1] and both.label.isna().tolist()==[False]*4+[True]
    assert both.index.tolist()==[(str(a),0),(str(a),2),(str(b),0),(str(b),1),(str(b),2)]
    assert joined_tables([b]).equals(read_table(b)) and len(joined_tables([a, a]))==5 # all but the labelled ones of the first
    with pytest.warns(UserWarning, match=rf'1 of 5 rows have no label \(rows 2 of {b}, counted'): ulmfit_dls(both, seed=0, min_freq=1, cache=False)
    odd = _file('odd.csv', text=['x','y'], label=['spam','spam\xa0'], held=['yes','perhaps'])
    with fails(rf"\(row 0 of {odd}\) and 'spam.xa0' \(row 1 of"): ulmfit_dls(joined_tables([a, odd]), cache=False)
    with fails(f"'{b}': no column 'held'"): joined_tables([odd, b], valid_col='held')
    held = _file('held.csv', text=['p','q','r'], label=['a','b','a'], held=['yes','no','no'])
    with fails("'perhaps' in row 1 of odd.csv"): ulmfit_dls(joined_tables([held, odd], valid_col='held').replace({'label': {'spam\xa0':'spam'}}), valid_col='held', cache=False)
    with fails('no file'): joined_tables([a, 'none.csv'])

def test_more_labels_in_a_shell(tmp_path, monkeypatch):
    "Train, ask what to label, fill it in, train with both files: language models stay, the new labels are learned"
    import ulmfit_ext.lm as module
    from typer.testing import CliRunner
    from ulmfit_ext.cli import app
    monkeypatch.setitem(module.lm_sizes, 'tiny', size)
    def _run(line):
        res = CliRunner().invoke(app, [o.format(d=tmp_path) for o in line.split()])
        assert res.exit_code==0, res.output
        return res.stdout
    all_rows[:60].to_csv(tmp_path/'mails.csv', index=False)
    all_rows[['text']][60:].to_csv(tmp_path/'more.csv', index=False)
    options = ' --out {d}/mails --size tiny --directions fwd --lm-epochs 1 --epochs 1 --recipe together --bs 8 --min-freq 1'
    _run('train {d}/mails.csv'+options)
    _run('suggest {d}/mails {d}/more.csv --n 9 --out {d}/ask.csv')
    asked = read_table(tmp_path/'ask.csv')
    assert len(asked)==9
    asked.assign(label=[*asked.guess[:7], None, None]).to_csv(tmp_path/'ask.csv', index=False) # two are left for another day
    out = _run('train {d}/mails.csv {d}/ask.csv'+options)
    assert 'Going on: the language models of the earlier run' in out and 'have read 60 of 69 texts' in out and 'Language model' not in out
    rows = earlier_run(tmp_path/'mails').rows
    assert len(rows)==67 and dict(zip(rows.text, rows.label)).items()>=dict(zip(asked.text[:7], asked.guess[:7])).items()
    assert 'Trained on mails.csv, ask.csv' in (tmp_path/'mails'/'report.html').read_text(encoding='utf-8')

def test_the_same_line_with_more_rows(tmp_path, monkeypatch):
    import ulmfit_ext.lm as module
    from typer.testing import CliRunner
    from ulmfit_ext.cli import app
    monkeypatch.setitem(module.lm_sizes, 'tiny', size)
    file = tmp_path/'reviews.csv'
    def _train(df, *more):
        df.to_csv(file, index=False)
        line = f'train {file} --out {tmp_path/"out"} --size tiny --directions fwd --lm-epochs 1 --epochs 1 --recipe together --bs 8 --min-freq 1 --no-refit'
        res = CliRunner().invoke(app, [*line.split(), *more])
        assert res.exit_code==0, res.output
        return res.stdout
    _train(all_rows[:60])
    out = _train(all_rows)
    assert 'Going on' in out and 'Language model' not in out and 'Classifier, forward' in out
    assert 'Classifier on disk' in _train(all_rows)
    out = _train(all_rows, '--no-go-on')
    assert 'Going on' not in out and 'Language model, forward' in out
