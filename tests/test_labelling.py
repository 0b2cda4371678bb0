"What to label next, what looks wrong, rare classes, and why a label: from outside"
import json,random,warnings
from pathlib import Path
import numpy as np,pandas as pd,pytest,torch
from fastai.text.all import CrossEntropyLossFlat,ProgressCallback,defaults,set_seed
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner
from ulmfit_ext import export,labelling
from ulmfit_ext.cli import app
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.classifier import class_weights,ulmfit_classifier
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.explain import token_spans
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.labelling import check,doubts,label_free_lms,pick,suggest
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.words import BagOfWords,held_out_words

tiny = dict(emb_sz=8, n_hid=12, n_layers=2)
good,bad,rest = 'lovely bright funny warm'.split(),'dull flat awful grim'.split(),'the a film plot scene cast it was with and music'.split()

def reviews(n=80, seed=0):
    "Reviews whose label is in two of their words"
    rng = random.Random(seed)
    def _text(y): return ' '.join([*rng.choices(rest, k=rng.randint(3, 9)), *rng.sample((bad,good)[y], 2)])
    return pd.DataFrame([(_text(i%2), ['neg','pos'][i%2]) for i in range(n)], columns=['text','label'])

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    was,defaults.callbacks = defaults.callbacks,[o for o in defaults.callbacks if o is not ProgressCallback]
    path = tmp_path_factory.mktemp('labelling')/'u'
    yield ULMFiT.from_df(reviews(), path, None, config=tiny, min_freq=1, seed=1, bs=8).fit_lm(1).fit_classifier(2, recipe='together')
    defaults.callbacks = was

def fails(match): return pytest.raises(UlmfitError, match=match)

def test_a_run_explains_itself(trained):
    why = trained.explain('lovely and so bright')
    assert (why.table.columns[:3]==['token','start','end']).all() and len(trained.explain('lovely', how='deletion').table)

# ---- suggest

def test_texts_that_are_nearly_the_same_are_asked_once():
    rng = np.random.default_rng(0)
    h = np.concatenate([rng.normal(size=(1,20)) + rng.normal(size=(40,20))/50, rng.normal(size=(40,20))])
    p = np.full((80,2), .5) + rng.normal(size=80)[:,None]*[.01,-.01]   # the guess is now one and now the other
    for seed in range(5): assert (pick(p, h, 20, seed=seed)<40).sum()<=1

def test_what_the_model_is_sure_of_is_not_asked():
    rng = np.random.default_rng(0)
    p = np.array([[.999,.001]]*90+[[.6,.4]]*10)
    assert set(pick(p, rng.normal(size=(100,20)), 10))==set(range(90,100))
    assert len(pick(np.eye(2), rng.normal(size=(2,5)), 2))==0

def test_the_seed_chooses():
    rng = np.random.default_rng(0)
    p,h = rng.dirichlet([1]*3, 200),rng.normal(size=(200,9))
    assert pick(p, h, 9, seed=1).tolist()==pick(p, h, 9, seed=1).tolist()!=pick(p, h, 9, seed=2).tolist()

def test_rows_with_a_label_are_not_asked(trained):
    df = reviews(30, 3).set_index(np.arange(100, 130))
    df.loc[df.index[:20],'label'] = 'pos'
    df.loc[df.index[20:],'label'] = None
    df.loc[df.index[29],'text'] = df.text.iloc[0].upper()   # has a label in another row
    asked = suggest(trained, df, 50)
    assert set(asked.row)<=set(range(20,29)) and asked.label.isna().all()
    assert [df.text.iloc[i] for i in asked.row]==asked.text.tolist()
    again = suggest(trained.path, df, 50)   # the folder says the same, but for rounding
    assert again.row.tolist()==asked.row.tolist()

@pytest.mark.parametrize('args,match', [((['a'],0), 'n is 0'), ((pd.DataFrame(dict(t=['a'])),), "no column 'text'"), ((['',' '],), 'empty')])
def test_what_cannot_be_asked(trained, args, match):
    with fails(match): suggest(trained, *args)

# ---- check

def test_voices_have_not_learned_from_what_they_are_asked_about():
    "Each text has a word of its own, and labels are drawn: who had seen them would know them"
    rng = np.random.default_rng(0)
    targs = np.eye(2)[rng.integers(0, 2, 200)]
    said  = held_out_words([f'w{i} the' for i in range(200)], targs)
    assert abs((said.argmax(1)==targs.argmax(1)).mean()-.5)<.15

def test_all_voices_have_to_agree():
    targs = np.eye(2)[[0,0,0,1,1]]
    a = np.array([[.9,.1],[.9,.1],[.1,.9],[.1,.9],[.1,.9]])
    doubt,better,wrong = doubts([a,a], targs)
    assert wrong.tolist()==[False,False,True,False,False] and doubt.argmax()==2 and better[2].tolist()==[0,1]
    b = a.copy()
    b[2] = [.6,.4]
    assert not doubts([a,b], targs)[2].any()

def test_doubts_of_several_labels():
    targs = np.array([[1,0],[1,0],[0,1],[0,1],[1,1.]])
    p = np.array([[.9,.1],[.9,.1],[.1,.9],[.95,.9],[.9,.9]])   # the fourth lacks a label
    doubt,better,wrong = doubts([p], targs, multi=True)
    assert wrong.tolist()==[False]*3+[True,False] and better[3].tolist()==[True,True] and doubt.argmax()==3

def test_flipped_labels_are_found(trained):
    df = reviews(120, 5).set_index(np.arange(500, 620))
    flips = [7,40,81]
    for i in flips: df.iloc[i,1] = {'neg':'pos','pos':'neg'}[df.iloc[i,1]]
    df.iloc[3,1] = None
    found = check(trained, df)
    assert len(set(found.row[:3])&set(flips))>=2 and 3 not in set(found.row)   # the tiny encoder need not agree
    assert (found.suggested!=found.label).all() and found.doubt.is_monotonic_decreasing
    assert all('words: ' in o and 'encoder: ' in o for o in found.reason) and 'model: ' not in found.reason[0]
    assert 'model: ' in check(trained, df, unseen=True).reason[0]

def test_one_text_with_two_labels(trained):
    df = reviews(60, 6)
    df = pd.concat([df, df[:1], df[:1].assign(label='pos')], ignore_index=True)   # twice neg, once pos
    found = check(trained, df).set_index('row')
    assert 'row 0 has the same text and another label' in found.reason[61] and 0 not in found.index

def test_what_cannot_be_checked(trained):
    with fails('too few'): check(trained, reviews(6))
    with fails('no label in any row'): check(trained, reviews(20).assign(label=None))
    odd = reviews(40).assign(label=lambda d: ['odd', *d.label[1:]])
    assert 'no other text has this label' in check(trained, odd).set_index('row').reason[0]
    with fails("the label 'odd' is not a class of the model"): check(trained, odd, unseen=True)
    with fails('40 labelled texts have no label that occurs twice: is it the right label_col'): check(trained, odd.assign(label=[str(i) for i in range(40)]))
    with fails('pass a `BidirEnsemble`'): check(3, odd)

def test_the_encoder_has_seen_no_label(trained):
    lms = label_free_lms(trained.path, 'en')
    assert {k: o.parent for k,o in lms.items()}==dict(fwd=trained.path/'lm', bwd=trained.path/'lm')
    assert label_free_lms(trained.ensemble, 'en')==dict(fwd='small', bwd='small')
    assert label_free_lms(trained.ensemble, 'xx')=={}

def test_commands(trained, tmp_path):
    def _run(*args): return CliRunner().invoke(app, list(map(str, args)), prog_name='ulmfit')
    reviews(40, 7).assign(label='').to_csv(tmp_path/'more.csv', index=False)
    res = _run('suggest', trained.path, tmp_path/'more.csv', '--n', 3, '--out', tmp_path/'ask.csv')
    assert res.exit_code==0 and '3 texts to label' in res.stderr and pd.read_csv(tmp_path/'ask.csv').label.isna().all()
    df = reviews(60, 8)
    pd.concat([df, df[:1].assign(label='pos')]).to_csv(tmp_path/'some.csv', index=False)   # one text, two labels
    res = _run('check', trained.path, tmp_path/'some.csv')
    assert res.exit_code==0 and res.stdout.splitlines()[0]=='text,label,row,suggested,doubt,reason' and ',pos,60,' in res.stdout
    res = _run('check', trained.path, tmp_path/'some.csv', '--label', 'labels')
    assert res.exit_code==1 and '--label' in res.stderr.splitlines()[-1]

def test_a_check_reads_the_model_once(trained, tmp_path, monkeypatch):
    read = []
    for name,module in (('read_models',export),('load_lm',labelling)):
        def _counted(path, *args, _f=getattr(module, name)):
            read.append(Path(path).parent)
            return _f(path, *args)
        monkeypatch.setattr(module, name, _counted)
    reviews(60, 8).to_csv(tmp_path/'some.csv', index=False)
    res = CliRunner().invoke(app, ['check', str(trained.path), str(tmp_path/'some.csv')], prog_name='ulmfit')
    assert res.exit_code==0 and read==[trained.path, trained.path/'lm', trained.path/'lm']   # the model, and its language models

# ---- rare classes

def rare(n=64): return pd.concat([reviews(n)[lambda d: d.label=='neg'], reviews(n)[lambda d: d.label=='pos'][:4]], ignore_index=True)

def test_class_weights():
    df  = rare()
    dls = ulmfit_dls(df, valid_col=None, valid_pct=.25, seed=0, bs=8, min_freq=1, cache=False)
    n   = pd.Series([dls.y[i] for i in dls.train_idx]).value_counts()
    w   = class_weights(dls.clas_fwd)
    assert torch.allclose(w*torch.tensor([n['neg'],n['pos']]), torch.tensor(len(dls.train_idx)/2))
    multi = ulmfit_dls(df.assign(label=[['a'] if o=='neg' else ['a','b'] for o in df.label]), valid_pct=.25, seed=0, bs=8, min_freq=1, cache=False)
    w = class_weights(multi.clas_fwd)
    assert w[0]<1 and w[1]>3
    learn = ulmfit_classifier(multi.clas_fwd, tiny, balance=True)
    assert torch.equal(learn.loss_func.func.pos_weight, w)

def test_class_weights_survive_saving(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        u = ULMFiT.from_df(rare(), tmp_path/'u', None, config=tiny, directions='fwd', words=False, min_freq=1, seed=1, bs=8)
        u.fit_classifier(1, recipe='together', balance=True)
    w = u.learns['fwd'].loss_func.func.weight.tolist()
    ens = load_ulmfit(tmp_path/'u'/'model')
    assert ens.first.class_weights==w and w[1]>w[0]
    again = ens.first.to_learner(u.dls.clas_fwd)
    assert again.loss_func.func.weight.tolist()==w
    assert np.allclose(again.validate(), u.learns['fwd'].validate())
    file = tmp_path/'u'/'model'/'config.json'
    for odd in ([1.], [1.,-1.], 'ab', [1.,None]):
        said = {k: v for k,v in json.loads(file.read_text()).items() if k!='own_sha256'}
        file.write_text(json.dumps({**said, 'class_weights':odd}))
        with fails('damaged|class_weights'): load_ulmfit(file.parent)

def test_balance_is_another_training(tmp_path, capsys):
    u = ULMFiT.from_df(rare(), tmp_path/'u', None, config=tiny, directions='fwd', words=False, min_freq=1, seed=1, bs=8)
    for how,says in ((dict(balance=True),'Classifier, forward'), ({},'Classifier, forward'), (dict(balance=True),'Classifier on disk')):
        capsys.readouterr()
        u.fit_classifier(1, recipe='together', **how)
        assert says in capsys.readouterr().out

@pytest.mark.parametrize('multi', [False,True])
def test_counted_words_are_balanced(multi):
    "The outputs are those of scikit-learn with `class_weight='balanced'`, and more of the rare class is found"
    df  = rare(200)
    labels = df.label if not multi else [['seen','pos'] if o=='pos' else ['seen']*(i%2) for i,o in enumerate(df.label)]
    plain,even = [BagOfWords.fit(df.text, labels, multi=multi, balance=o, chars=False) for o in (False,True)]
    X   = even_features(even, df.text)
    ours= even.logits(df.text)
    for j,c in enumerate(even.classes if multi else ['pos']):
        theirs = LogisticRegression(C=even.choices['C'], max_iter=1000, class_weight='balanced').fit(X, [c in o if multi else o==c for o in labels])
        assert np.allclose(ours[:,j] if multi else ours[:,1]-ours[:,0], theirs.decision_function(X), atol=1e-3)
    new = reviews(100, 9)[lambda d: d.label=='pos']
    found = [sum('pos' in o if multi else o=='pos' for o in bag.predict(new.text)) for bag in (plain,even)]
    assert found[1]>found[0]

def even_features(bag, texts):
    "TF-IDF of the terms of `bag`, by scikit-learn"
    tfidf = TfidfVectorizer(ngram_range=(1,2), sublinear_tf=True, token_pattern=r'\w+|[^\w\s]', lowercase=bag.lowercase, vocabulary=list(bag.number))
    return tfidf.fit_transform(texts)

def test_balance_is_for_counted_words_too(tmp_path):
    "In `fit_classifier`, on disk, and in `refit`"
    u = ULMFiT.from_df(rare(), tmp_path/'u', None, config=tiny, directions='fwd', min_freq=1, seed=1, bs=8)
    bags = [u.fit_classifier(1, recipe='together', balance=o).bag for o in (False,True,False,True)]
    same = [torch.equal(bags[0].coef, o.coef) for o in bags]
    assert same==[True,False,True,False] and torch.equal(bags[1].coef, bags[3].coef)
    want = BagOfWords.fit(u.dls.tokens(u.dls.labelled), [u.dls.y[i] for i in u.dls.labelled], u.dls.classes, balance=True)
    assert torch.equal(u.refit().ensemble.words.coef, want.coef)

# ---- why

def test_what_counts_says_is_exact():
    "Counted words alone decide: contributions are their coefficients times their TF-IDF, and add up"
    df  = reviews(60)
    dls = ulmfit_dls(df, seed=0, bs=8, min_freq=1, cache=False)
    set_seed(0)
    learn = ulmfit_classifier(dls.clas_fwd, tiny)
    learn.model[1].layers[-1][-1].weight.data.zero_()   # it says the same of every text
    bag = BagOfWords.fit(dls.tokens(range(60)), df.label.tolist(), dls.classes)
    ens = BidirEnsemble(learn, words=bag)
    ens.mixture = type(ens.weigh().mixture)(dict(words=1., forward=0.), dict(words=1., forward=1., all=1.))
    why = ens.explain('the cast was lovely and so bright', 'pos')
    out = bag.logits([why.table.token.tolist()])[0]-bag.bias
    assert abs(why.table.contribution.sum()-(out[1]-out[0]).item())<1e-4
    assert {o for o,_ in why.strongest(2)}=={'lovely','bright'}
    against = ens.explain(why.text, 'neg').table.contribution
    assert np.allclose(against, -why.table.contribution)

def test_all_voices_are_explained(trained):
    text = 'The cast was lovely and bright, NOT dull!!!'
    why,deleted = [trained.ensemble.explain(text, 'pos', how) for how in ('gradients','deletion')]
    assert list(why.table)==['token','start','end','contribution'] and why.table.token.equals(deleted.table.token)
    assert np.corrcoef(why.table.contribution, deleted.table.contribution)[0,1]>.5
    loaded = load_ulmfit(trained.path/'model').explain(text, 'pos')
    assert np.allclose(loaded.table.contribution, why.table.contribution, atol=1e-4)
    assert text[slice(*map(int, why.table.set_index('token').loc['lovely',['start','end']]))]=='lovely'

def test_gradients_put_tokens_in_the_order_of_deletion():
    "Spearman's rank correlation of the two, the mean over new texts: of each direction alone, and of all voices together"
    dls = ulmfit_dls(reviews(), seed=0, bs=8, min_freq=1, cache=False, progress=False)
    set_seed(0)
    learns = [ulmfit_classifier(o, dict(emb_sz=16, n_hid=24, n_layers=2), .2) for o in (dls.clas_fwd,dls.clas_bwd)]
    for learn in learns:
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(10, .03)
    ens = BidirEnsemble(*learns, words=BagOfWords.fit(dls.tokens(dls.train_idx), [dls.y[i] for i in dls.train_idx], dls.classes))
    def _rank(ens, text): return spearmanr(*[ens.explain(text, 'pos', how).table.contribution for how in ('gradients','deletion')])[0]
    def _mean(ens): return np.mean([_rank(ens, o) for o in reviews(12, seed=7).text])
    assert all(_mean(BidirEnsemble(o))>.3 for o in learns) and _mean(ens)>.7

def test_it_is_shown_as_it_was_written(trained, tmp_path):
    why  = trained.ensemble.explain('a <b>lovely</b> film & "plot"')
    page = why._repr_html_()
    assert '&lt;' in page and '&amp;' in page and '<b>lovely' not in page and '<b><' not in page
    why.save(tmp_path/'why.html')
    assert page in (tmp_path/'why.html').read_text(encoding='utf-8')

def test_where_it_cannot_be_written(trained, tmp_path):
    why = trained.ensemble.explain('a lovely film')
    (tmp_path/'file').touch()
    for path,says in ((tmp_path/'file'/'why.html','cannot write'), (tmp_path,'is a folder')):
        with fails(says): why.save(path)

@pytest.mark.parametrize('text', ['', ' ', 'xyz', '👍🏽 ﬁlm', 'İstanbul İ', 'a'*300, '\n\n\t'])
def test_any_text_can_be_explained(trained, text):
    why = trained.ensemble.explain(text)
    assert (why.table.start<=why.table.end).all() and (why.table.end<=len(text)).all() and np.isfinite(why.table.contribution).all()
    assert why._repr_html_() and repr(why)

def test_several_labels_are_explained(tmp_path):
    df = reviews(60)
    df['label'] = [['film'] if i%3 else ['film',o] for i,o in enumerate(df.label)]
    u = ULMFiT.from_df(df, tmp_path/'u', None, config=tiny, directions='bwd', min_freq=1, seed=1, bs=8).fit_classifier(1, recipe='together')
    assert len(u.ensemble.explain('a lovely film', 'film').table)==4
    assert len(check(u, df, lm=None))>=0 and isinstance(suggest(u, ['a lovely plot','dull'], 2).guess[0], list)

@pytest.mark.parametrize('args,match', [((3,), 'one text'), (('a','no'), 'the classes are neg, pos'), (('a',None,'magic'), 'how is')])
def test_what_cannot_be_explained(trained, args, match):
    with fails(match): trained.ensemble.explain(*args)

def test_spans():
    assert token_spans("Don't  STOP", ['xxbos','xxmaj','do',"n't",'xxup','stop'])==[(0,0),(0,2),(0,2),(2,5),(7,11),(7,11)]
    assert token_spans('abc', ['zzz','abc'])==[(0,0),(0,3)]
