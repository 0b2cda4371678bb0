"Predictor and BidirEnsemble from outside"
import json,pickle,random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, sklearn.metrics as skm, torch
from fastai.text.all import (AWD_LSTM,CrossEntropyLossFlat,F1Score,F1ScoreMulti,FocalLossFlat,LabelSmoothingCrossEntropyFlat,
    LinBnDrop,Perplexity,ProgressCallback,RocAucBinary,SigmoidRange,TextDataLoaders,ValueMetric,accuracy,accuracy_multi,defaults,language_model_learner,text_classifier_learner)
from torch import nn
from ulmfit_ext.callback.bpt3c import BPT3C
from ulmfit_ext.core import UlmfitError,save_figure
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import Answers,BidirEnsemble,label_targets,mean_logits
import ulmfit_ext.explain # `BidirEnsemble.explain`
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.mixture import Mixture,equal_mixture
from ulmfit_ext.model import TextModel
from ulmfit_ext.predict import Predictor
from ulmfit_ext.reader import Reader
from ulmfit_ext.report import Report,save_confusion
from ulmfit_ext.words import BagOfWords

tiny  = dict(emb_sz=8, n_hid=12, n_layers=2)
words = 'good fine bright bad dull poor the a film was very with plot and cast on night'.split()

def make_df(n=60, seed=0, classes=('neg','pos')):
    "Texts of very different lengths; the label is mostly in the words"
    rng = random.Random(seed)
    def _text(y): return ' '.join(words[3*y+rng.randrange(3)] if rng.random()<.3 else rng.choice(words[6:]) for _ in range(rng.choice([2,7,40,150])))
    return pd.DataFrame([(_text(i%2), classes[i%2]) for i in range(n)], columns=['text','label'])

def plain_dls(df=None, backwards=False, seed=1, **kwargs):
    df = make_df() if df is None else df
    return TextDataLoaders.from_df(df, text_col='text', label_col='label', seed=seed, backwards=backwards, bs=8, num_workers=0, **kwargs)

def learner(dls, bpt3c=True, metrics=accuracy, **kwargs):
    return text_classifier_learner(dls, AWD_LSTM, config=tiny, pretrained=False, metrics=metrics, cbs=BPT3C(20) if bpt3c else None, **kwargs)

def pair(dls, **kwargs): return BidirEnsemble(learner(dls.clas_fwd, **kwargs), learner(dls.clas_bwd, **kwargs))

def fit(ens, n=1, lr=0.03):
    "Train each direction"
    for learn in ens.learners.values():
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, lr)
    return ens

def make_dls(path, df=None, **kwargs): return ulmfit_dls(make_df() if df is None else df, path=path, seed=0, bs=8, bptt=20, min_freq=1, **kwargs)
def make_topics(n=60):
    rng,rows = random.Random(0),[]
    for _ in range(n):
        on = [o for o in ('film','plot','cast') if rng.random()<.5]
        rows.append((' '.join(on + rng.choices(words[:6], k=rng.randint(1,20))), ';'.join(on)))
    return pd.DataFrame(rows, columns=['text','label'])

@pytest.fixture(scope='module')
def dls(tmp_path_factory): return make_dls(tmp_path_factory.mktemp('single'))
@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])
@pytest.fixture(scope='module')
def ens(dls): return fit(pair(dls), 2)
@pytest.fixture(scope='module')
def multi(tmp_path_factory):
    dls = make_dls(tmp_path_factory.mktemp('multi'), make_topics(), label_delim=';')
    return fit(pair(dls, metrics=[accuracy_multi, F1ScoreMulti()]), 2)
@pytest.fixture
def fresh(dls, tmp_path): return pair(dls, path=tmp_path)

def raises(match): return pytest.raises(UlmfitError, match=match)
def close(a, b, atol=1e-5): np.testing.assert_allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), atol=atol)
def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]
def moved(before, learn): return [not torch.equal(a, b) for a,b in zip(before, learn.model.parameters())]

# Predictor

@pytest.mark.parametrize('plain', [False,True])
def test_a_text_alone_and_among_others(ens, plain):
    learn = learner(plain_dls(), bpt3c=False) if plain else ens.fwd
    texts = make_df(40, seed=5).text.tolist()
    probs = Predictor(learn)(texts)
    close(probs, torch.cat([Predictor(learn)([t]) for t in texts]))
    random.Random(0).shuffle(texts)
    close(Predictor(learn, max_tokens=30)(texts, progress=False).sort(0)[0], probs.sort(0)[0])
    assert bool(learn._grab_cbs(BPT3C)) != plain

def test_eight_bits_follow_batch_norm(fresh):
    "What batch norm has seen changes without a step of the optimizer"
    ens = BidirEnsemble(*fresh.learners.values(), quantize=True)
    was = ens.get_preds(texts=['the cast'])[0]
    for m in fresh.fwd.model.modules():
        if isinstance(m, nn.BatchNorm1d): m.running_mean += torch.linspace(-3, 3, len(m.running_mean))
    assert not torch.equal(ens.get_preds(texts=['the cast'])[0], was)

def test_predictor_agrees_with_get_preds(ens):
    for l in (ens.fwd,ens.bwd):
        ids = [l.dls.valid_ds[i][0] for i in range(len(l.dls.valid_ds))]
        close(Predictor(l).from_ids(ids).softmax(1), l.get_preds()[0])

@pytest.mark.parametrize('wrong', [10**6,-1])
def test_ids_of_another_vocabulary(ens, wrong):
    "The id, the text and the size of the vocabulary are named, whatever reads"
    n,ids = len(ens.first.processor.vocab),[torch.tensor([2,3]),torch.tensor([2,wrong,3])]
    said  = f'text 1 .counted from 0. has the id {wrong}, and the vocabulary has {n} words'
    with pytest.raises(UlmfitError, match=said): Predictor(ens.fwd).from_ids(ids)
    dl = [SimpleNamespace(dataset=[(o,) for o in docs]) for docs in (ids, [o.flip(0) for o in ids])]
    for quantize in (False,True):
        with pytest.raises(UlmfitError, match=said): BidirEnsemble(ens.fwd, ens.bwd, words=ens.words, quantize=quantize).get_preds(dl=dl)

def test_predictor_leaves_the_learner_alone(ens):
    learn = ens.fwd
    learn.model.train(); learn.model[1].eval()
    modes,before,enc,cbs = [m.training for m in learn.model.modules()],weights(learn),learn.model[0],list(learn.cbs)
    for q in (False,True): Predictor(learn, quantize=q)(['good film', ''])
    assert [m.training for m in learn.model.modules()]==modes and learn.model[0] is enc and list(learn.cbs)==cbs
    assert not any(moved(before, learn)) and all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    learn.fit(1, 1e-4)

def test_many_texts_are_read_by_a_copy(fresh, monkeypatch):
    "of the present weights, if they are finite and of 32 bits; the answers are those of the model itself"
    monkeypatch.setattr('ulmfit_ext.predict._much', 50)
    texts,pred = make_df(40, seed=5).text.tolist(),Predictor(fit(fresh, 1, 0.01).fwd)
    def _same(): close(pred(texts), torch.cat([pred([t]) for t in texts]))
    _same()
    first = pred.session
    pred(texts)
    assert first is not None and pred.session is first and Predictor(fresh.fwd, max_tokens=64)(texts).shape==(40,2)
    fit(fresh, 1, 0.05)
    _same()
    assert pred.session is not first
    fresh.fwd.model.double()
    _same()
    fresh.fwd.model.float()
    fresh.fwd.model[0].module.rnns[0].weight_hh_l0_raw.data[0,0] = float('nan')
    assert pred(texts).isnan().any() and pred.session is None

def test_single_texts_are_read_by_a_copy_once_there_were_many(ens, monkeypatch):
    monkeypatch.setattr('ulmfit_ext.predict._much', 50)
    texts,pred = make_df(40, seed=5).text.tolist(),Predictor(ens.fwd)
    want,found,copied = Predictor(ens.fwd, max_tokens=64)(texts),[],[]
    for o in texts:
        found.append(pred([o]))
        copied.append(pred.session is not None)
    close(torch.cat(found), want)
    assert not copied[0] and copied[-1] and sorted(copied)==copied

@pytest.mark.parametrize('name,head', [('as fastai makes it', lambda h: h), ('y_range', lambda h: h.append(SigmoidRange(0, 5))), ('plain', lambda h: nn.Sequential(nn.Linear(24, 2))),
                                       ('bias', lambda h: nn.Sequential(LinBnDrop(24, 5, bn=False, act=nn.ReLU()), LinBnDrop(5, 2, bn=False))),
                                       ('two blocks of one ReLU', lambda h: nn.Sequential(h[0], nn.Sequential(nn.Linear(50, 4), h[0][-1]), nn.Linear(4, 2))),
                                       ('GELU', lambda h: nn.Sequential(nn.Linear(24, 5), nn.GELU(), nn.Linear(5, 2))),
                                       ('batch norm without weights', lambda h: nn.Sequential(nn.BatchNorm1d(24, affine=False), nn.Linear(24, 2)))])
def test_many_texts_and_any_head(fresh, monkeypatch, name, head):
    "A head that no graph holds is read by PyTorch, as with few texts"
    learn = fresh.fwd
    learn.model[1].layers = head(learn.model[1].layers)
    want  = Predictor(learn, max_tokens=1536)
    texts = make_df(40, seed=5).text.tolist()
    ids   = [*want.model.encode(texts), torch.zeros(0, dtype=torch.long)]
    monkeypatch.setattr('ulmfit_ext.predict._much', 50)
    pred = Predictor(learn)
    close(pred.from_ids(ids), want.from_ids(ids))
    assert (pred.session is None)==(name in ('y_range','GELU','batch norm without weights'))
    if pred.session: assert (Predictor(learn, quantize=True).from_ids(ids)-want.from_ids(ids)).abs().max()<.05

def test_weights_in_other_places_are_other_weights(fresh, monkeypatch):
    "The same numbers, for another class"
    monkeypatch.setattr('ulmfit_ext.predict._much', 50)
    texts,pred = make_df(40, seed=5).text.tolist(),Predictor(fresh.fwd)
    was = pred(texts)
    with torch.no_grad(): last = fresh.fwd.model[1].layers[-1][-1].weight; last.copy_(last.flip(0))
    close(pred(texts), was.flip(1))

@pytest.mark.parametrize('bad', ['one text', b'bytes', 3, None, pd.DataFrame(dict(text=['a']))])
def test_not_a_list_of_texts(ens, bad):
    with raises('expected a list of texts'): Predictor(ens.fwd)(bad)

def test_odd_texts(ens):
    texts = ['', '   ', '\n', 'x'*3000, 'good '*2000, '\u2028', '😀'*50, None, 5, 'a\x00b', '\ud800']
    p = ens.get_preds(texts=texts)[0]
    assert p.shape==(len(texts), 2) and torch.isfinite(p).all()
    assert ens.get_preds(texts=[])[0].shape==(0,2) and ens.get_preds(texts=iter(['good']))[0].shape==(1,2)

def test_int8_is_close_and_a_snapshot(fresh):
    texts = make_df(40, seed=5).text.tolist()
    fit(fresh, 1, 0.01)
    p32,int8 = Predictor(fresh.fwd),Predictor(fresh.fwd, quantize=True)
    a,b = p32(texts),int8(texts)
    assert not torch.equal(a, b) and (a-b).abs().max()<.02
    fit(fresh, 1, 0.05)
    assert torch.equal(int8(texts), b) and not torch.equal(p32(texts), a)

def test_int8_copies_keep_their_answers_in_any_company(fresh):
    texts = make_df(40, seed=5).text.tolist()
    int8 = Predictor(fit(fresh, 1, 0.01).fwd, quantize=True)
    assert torch.equal(int8(texts), torch.cat([int8([o]) for o in texts])) and torch.equal(int8(texts).flip(0), int8(texts[::-1]))
    again = pickle.loads(pickle.dumps(int8.session))
    ids = [o.numpy() for o in map(torch.as_tensor, int8.model.encode(texts))]
    assert (again.logits(ids)==int8.session.logits(ids)).all()

@pytest.mark.parametrize('name,says', [('encoder.weight', 'embedding'), ('rnns.1.weight_hh_l0_raw', 'layer 2'), ('rnns.1.module.bias_ih_l0', 'layer 2')])
def test_int8_of_weights_that_are_not_finite(fresh, name, says):
    fresh.fwd.model[0].module.state_dict()[name].view(-1)[0] = float('nan')
    with raises(f'{says}.*not finite'): Predictor(fresh.fwd, quantize=True)

def test_int8_copies_are_made_by_several_threads(fresh):
    with ThreadPoolExecutor(4) as ex: made = list(ex.map(lambda _: Predictor(fresh.fwd, quantize=True), range(12)))
    texts = ['good film', 'a dull plot']
    assert all(torch.equal(o(texts), made[0](texts)) for o in made)

@pytest.mark.parametrize('dtype', [torch.half, torch.double])
def test_int8_of_other_types(fresh, dtype):
    texts = make_df(10, seed=5).text.tolist()
    want = Predictor(fresh.fwd)(texts)
    fresh.fwd.model.to(dtype)
    assert (Predictor(fresh.fwd, quantize=True)(texts)-want).abs().max()<.02

def test_no_text_classifier():
    dls = TextDataLoaders.from_df(make_df(), text_col='text', is_lm=True, bs=4, seq_len=5, valid_pct=.2)
    lm = language_model_learner(dls, AWD_LSTM, config=None, pretrained=False)
    for f in (Predictor, BidirEnsemble):
        with raises('text classifier'): f(lm)
    with raises('made of learners'): BidirEnsemble(lm.model)

@pytest.mark.parametrize('most', [1, 40, 1536])
def test_reads_by_tokens_not_by_rows(ens, most, monkeypatch):
    seen,read = [],Reader.read
    monkeypatch.setattr(Reader, 'read', lambda self, x, *args: (seen.append(x.shape), read(self, x, *args))[1])
    lens = np.random.default_rng(0).integers(0, 300, 200)
    ids  = [torch.randint(2, len(ens.fwd.dls.vocab[0]), (int(n),)) for n in lens]
    Predictor(ens.fwd, max_tokens=most).from_ids(ids, False)
    assert all(rows==1 or steps*rows<=most for steps,rows in seen)
    if most==40: assert sum(s*r for s,r in seen) < 1.1*lens.sum() # hardly any padding

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), LabelSmoothingCrossEntropyFlat(), FocalLossFlat(), CrossEntropyLossFlat(weight=torch.tensor([1.,3.]))])
def test_other_losses(dls, loss):
    ens = pair(dls, loss_func=loss)
    p = ens.get_preds()[0]
    close(p, (ens.fwd.get_preds(act=lambda o: o.softmax(1))[0]+ens.bwd.get_preds(act=lambda o: o.softmax(1))[0])/2)
    assert np.isfinite(ens.validate().values).all() and ens.predict('good')[0] in ('neg','pos')

# what must agree

def test_pairs_that_do_not_fit(dls, tmp_path):
    f,b = learner(dls.clas_fwd),learner(dls.clas_bwd)
    with raises('Both learners read forward'): BidirEnsemble(f, learner(dls.clas_fwd))
    with raises('Both learners read backward'): BidirEnsemble(b, learner(dls.clas_bwd))
    with raises('swapped'): BidirEnsemble(b, f)
    more = make_dls(tmp_path, make_df(70, seed=3).assign(text=lambda d: d.text+' extra'))
    with raises(r'different vocabularies: .*number'): BidirEnsemble(f, learner(more.clas_bwd))
    other = ulmfit_dls(make_df(classes=('neg','zzz')), path=tmp_path, seed=0, vocab=dls.vocab)
    with raises("different classes: .*'pos' forward, 'zzz' backward"): BidirEnsemble(f, learner(other.clas_bwd))
    topics = ulmfit_dls(make_df(), path=tmp_path, seed=0, vocab=dls.vocab, label_delim=';')
    with raises('several labels'): BidirEnsemble(f, learner(topics.clas_bwd))

@pytest.mark.parametrize('plain', [False,True])
def test_splits_that_do_not_fit(dls, tmp_path, plain):
    df = make_df().drop_duplicates('text').reset_index(drop=True)
    def side(df, backwards, vocab, **kwargs):
        if plain: return learner(plain_dls(df, backwards, text_vocab=vocab, **kwargs), bpt3c=False)
        d = ulmfit_dls(df, path=tmp_path, vocab=dls.vocab, **{'seed':1, **kwargs})
        return learner(d.clas_bwd if backwards else d.clas_fwd)
    f = side(df, False, None)
    v = list(f.dls.vocab[0])
    BidirEnsemble(f, side(df, True, v))
    with raises('different splits'): BidirEnsemble(f, side(df, True, v, seed=2))
    with raises('different splits: (training|validation) sets? of'): BidirEnsemble(f, side(df, True, v, valid_pct=.5))
    valid = np.arange(len(df))<10                                              # one text of the validation set exchanged for one of the training set
    a,b = df.assign(v=valid),df.assign(v=np.where(np.arange(len(df))==9, False, np.where(np.arange(len(df))==10, True, valid)))
    with raises('number'): BidirEnsemble(side(a, False, v, valid_col='v'), side(b, True, v, valid_col='v'))
    swap = df.copy(); swap.loc[[3,4],'label'] = df.label[[4,3]].values         # same texts, other labels
    with raises('different splits'): BidirEnsemble(f, side(swap, True, v))

def test_tables_that_differ_in_other_columns():
    df = make_df(30)
    BidirEnsemble(learner(plain_dls(df)), learner(plain_dls(df.assign(note=range(30)), True)))

# predictions

@pytest.mark.parametrize('ds_idx', [0,1])
def test_order_of_the_set(ens, ds_idx):
    probs,targs = ens.get_preds(ds_idx)
    ds = ens.fwd.dls[ds_idx].dataset
    texts = [ens.fwd.dls.processor.decode(o[0]) for o in ds]
    assert targs.tolist()==[int(o[1]) for o in ds] and len(set(map(len, texts)))>5
    alone = [torch.stack([Predictor(l).from_ids([l.dls[ds_idx].dataset[i][0]]).softmax(1)[0] for i in range(len(ds))]) for l in (ens.fwd,ens.bwd)]
    close(probs, (alone[0]+alone[1])/2)

def test_order_of_texts_and_of_loaders(ens):
    df = make_df(30, seed=9)
    probs = ens.get_preds(texts=df.text)[0]
    close(probs, torch.stack([ens.predict(t)[2] for t in df.text]))
    p,t = ens.get_preds(dl=[l.dls.test_dl(df, with_labels=True) for l in (ens.fwd,ens.bwd)])
    close(p, probs)
    assert [ens.classes[i] for i in t]==df.label.tolist()
    p,t = ens.get_preds(dl=dict(backward=ens.bwd.dls.test_dl(df.text), forward=ens.fwd.dls.test_dl(df.text)))
    close(p, probs); assert t is None
    with raises("dl has the key 'left'"): ens.get_preds(dl=dict(left=1, right=2))
    with raises('dl holds 1'): ens.get_preds(dl=ens.fwd.dls.test_dl(df.text))
    with raises('different targets'): ens.get_preds(dl=[ens.fwd.dls.test_dl(df, with_labels=True), ens.bwd.dls.test_dl(df[::-1], with_labels=True)])
    with raises('ds_idx is 5'): ens.get_preds(5)

def test_plain_fastai_learners():
    ens = fit(BidirEnsemble(learner(plain_dls(), bpt3c=False), learner(plain_dls(backwards=True), bpt3c=False)), 1, 0.02)
    probs,targs = ens.get_preds()
    assert targs.tolist()==[int(o[1]) for o in ens.fwd.dls.valid_ds]
    close(ens.validate().loc['both','accuracy'], (probs.argmax(1)==targs).float().mean())
    close(ens.predict_df(make_df(9, seed=4))[['neg','pos']], [ens.predict(t)[2].tolist() for t in make_df(9, seed=4).text])
    shown = ens.show_results(3)
    assert shown.shape==(3,5) and shown.text[0].startswith(' '.join(ens.fwd.dls.valid_ds.items.text.iloc[0])[:20])
    assert not ens.fwd._grab_cbs(BPT3C)

def test_predict_answers_as_a_learner_does(ens, multi):
    for e in (ens,multi):
        one = BidirEnsemble(e.fwd)
        for text in make_df(5, seed=2).text:
            a,b = one.predict(text),e.fwd.predict(text)
            assert list(a[0])==list(b[0]) and torch.equal(a[1], b[1]) and a[1].dtype==b[1].dtype
            close(a[2], b[2])
    with raises('takes no at_least'): ens.predict('good', at_least=.9)
    with raises('expected a list of texts and got a int'): ens.predict(3)

def test_predictions_from_threads(ens):
    texts = make_df(24, seed=3).text.tolist()
    want = [ens.predict(t)[2] for t in texts]
    with ThreadPoolExecutor(4) as ex: close(torch.stack(list(ex.map(lambda t: ens.predict(t)[2], texts))), torch.stack(want))

def test_predict_df_keeps_the_table(ens):
    df = pd.DataFrame(dict(text=['good film','bad plot','dull'], n=[1,2,3]), index=['b','a','b'])
    df0 = df.copy()
    res = ens.predict_df(df)
    pd.testing.assert_frame_equal(df, df0)
    pd.testing.assert_frame_equal(res[['text','n']], df)
    assert list(res.columns)==['text','n','label','confidence','neg','pos']
    close(res[['neg','pos']], ens.get_preds(texts=df.text)[0])
    close(res.confidence, res[['neg','pos']].max(axis=1))
    assert (res.label==res[['neg','pos']].idxmax(axis=1)).all()
    close(ens.predict_df(df.rename(columns=dict(text='body')), text_col='body')[['neg','pos']], res[['neg','pos']])
    for o in (df.text, df.text.tolist(), tuple(df.text), df.text.values): close(ens.predict_df(o)[['neg','pos']], res[['neg','pos']])
    assert list(ens.predict_df(df.text).index)==['b','a','b']

def test_predict_takes_what_people_have(ens):
    "A string; a list, a column, a table, a generator, a Dataset-like table: the same answers, beside the texts"
    texts = make_df(5, seed=4).text.tolist()
    want  = [ens.predict(t) for t in texts]
    for many in (texts, tuple(texts), np.array(texts), pd.Series(texts), pd.DataFrame(dict(text=texts)), (t for t in texts), iter(texts)):
        res = ens.predict(many)
        assert res.label.tolist()==[o[0] for o in want] and res.text.tolist()==texts
        close(res[['neg','pos']], torch.stack([o[2] for o in want]))
    assert list(ens.predict(pd.Series(texts, index=list('abcde'))).index)==list('abcde')
    assert ens.predict(pd.DataFrame(dict(body=texts)), text_col='body').label.tolist()==[o[0] for o in want]
    datasets = pytest.importorskip('datasets')
    assert ens.predict(datasets.Dataset.from_dict(dict(text=texts))).label.tolist()==[o[0] for o in want]

def test_below_a_threshold_the_label_is_empty(ens):
    df = make_df(30, seed=4)
    all_ = ens.predict_df(df)
    p = float(all_.confidence.median())
    res = ens.predict_df(df, at_least=p)
    assert res.pred_label.isna().tolist()==(all_.confidence<p).tolist() and 0<res.pred_label.isna().sum()<30
    pd.testing.assert_frame_equal(res.drop(columns='pred_label'), all_.drop(columns='pred_label'))
    assert ens.predict_df(df, at_least=0).equals(all_) and ens.predict_df(df, at_least=1).pred_label.isna().all()
    for wrong in (90, -.1, '0.9'):
        with raises('at_least is .*between 0 and 1'): ens.predict_df(df, at_least=wrong)

def test_notes(ens):
    "Of texts that say nothing to the model; a column, or a warning with the rows"
    known = ' '.join([o for o in ens.first.processor.vocab if o.isalpha() and not o.startswith('xx')][:2])
    texts = [known, '', None, 'qwrty plugh xyzzy', ' \n', f'{known} qwrty']
    res = ens.predict_df(texts, notes=True)
    assert [o if isinstance(o, str) else None for o in res.note]==[None,'empty','empty','mostly unknown words','empty',None] and list(res)[-1]=='note'
    with pytest.warns(UserWarning) as told: res = ens.predict_df(texts)
    said = [str(o.message) for o in told]
    assert 'note' not in res and any('3 of 6 texts are empty (rows 1, 2, 4,' in o for o in said) and any('1 of 6 texts are mostly of words' in o and '(rows 3,' in o for o in said)

def test_predict_df_names(ens):
    df = pd.DataFrame(dict(text=['good'], label=['pos'], pos=[1]))
    assert list(ens.predict_df(df).columns)==['text','label','pos','pred_label','confidence','neg','p_pos'] and ens.predict_df(df).label[0]=='pos'
    with raises('rename'): ens.predict_df(df.assign(pred_label=1))
    with raises('no column'): ens.predict_df(df, text_col='body')
    with raises('got one'): ens.predict_df('good')
    assert len(ens.predict_df([]))==0 and len(ens.predict_df(df[:0]))==0

def test_names_are_looked_at_before_the_work(ens, monkeypatch):
    monkeypatch.setattr(BidirEnsemble, 'get_preds', None)
    df = pd.DataFrame(dict(text=['good'], label=['pos']))
    for columns in (['pred_label'], ['confidence','pred_confidence'], ['pos','p_pos']):
        with raises(f"has columns '.*{columns[-1]}' already: rename or drop"): ens.predict_df(df.assign(**dict.fromkeys(columns, 1)))

def some_labels(*values): return pd.Series([values[i%len(values)] for i in range(40)], dtype=object)

@pytest.mark.parametrize('labels', [some_labels(3, 10).astype(int), some_labels(True, False).astype(bool), some_labels(1.5, 2.).astype(float), some_labels(3, 10, None).astype('Int64'),
    some_labels(True, False, None).astype('boolean'), some_labels(3, 10).astype(int).astype('category'), some_labels('3', '10'), some_labels('b', 'a').astype('category'), some_labels(True, False, None),
    some_labels(1, 'one'), some_labels(2**70, 1), some_labels(3., 10., None).astype(float), some_labels(3, 10).astype('int8'), some_labels(.1, .2).astype('float32')], ids=lambda o: f'{o.dtype}-{o[0]}-{o[1]}')
def test_answers_are_labels_of_the_callers_type(tmp_path, labels):
    "Before a model is saved and after, and what they are compared with says the same as `validate`"
    df  = make_df(40).assign(label=labels.values)
    ens = BidirEnsemble(learner(make_dls(tmp_path, df).clas_fwd))
    there = df[~labels.isna().values]
    right = ens.validate(df=there).accuracy.iloc[-1]
    for e in (ens, load_ulmfit(ens.save(tmp_path/'m'))):
        res = e.predict_df(there)
        close((res.pred_label==res.label).astype(float).mean(), right)
        one = e.predict(there.text.iloc[0])[0]
        assert one==res.pred_label.iloc[0] and type(one) in {type(o) for o in some_labels(*there.label.tolist())}
        assert all(isinstance(o, str) for o in e.classes)
        close(e.validate(df=there.assign(label=[str(o) for o in there.label])).accuracy.iloc[-1], right) # as a file has them
    assert set(ens.show_results().target) <= {str(o) for o in there.label.tolist()}

def test_several_labels_of_the_callers_type(tmp_path):
    df  = make_df(40).assign(label=[[[1,2],[2],[],[1]][i%4] for i in range(40)])
    ens = BidirEnsemble(learner(make_dls(tmp_path, df).clas_fwd))
    for e in (ens, load_ulmfit(ens.save(tmp_path/'m'))):
        assert {o for row in e.predict_df(df).pred_label for o in row} <= {1,2} and all(type(o) is int for o in e.predict('good')[0])
    assert len(ens.show_results())==8

def test_a_number_that_python_writes_otherwise(tmp_path):
    "A `float32` of 0.1 is the class 0.1, and 0.10000000149 to Python: the label is the class's name, and can be read again"
    df  = make_df(40).assign(label=some_labels(np.float32(.1), np.float32(.5)).values)
    ens = BidirEnsemble(learner(make_dls(tmp_path, df).clas_fwd))
    for e in (ens, load_ulmfit(ens.save(tmp_path/'m'))): assert e.classes==['0.1','0.5'] and e.first.label_values==['0.1',.5]

def test_folders_of_earlier_versions(ens, tmp_path):
    "Say nothing of labels, and a wrong word about them is damage"
    config = json.loads((ens.save(tmp_path/'m')/'config.json').read_text())
    assert not {'label_values','label_delim'} & set(config) and load_ulmfit(tmp_path/'m').predict('good')[0] in ens.classes
    for wrong in (dict(label_values=[1,2]), dict(label_values=['pos','neg']), dict(label_values=3), dict(label_delim=3)):
        (tmp_path/'m'/'config.json').write_text(json.dumps({**config, **wrong}))
        with raises('config.json'): load_ulmfit(tmp_path/'m')

def test_what_stands_between_labels_is_remembered(multi, tmp_path):
    t = make_topics(20)
    for e in (multi, load_ulmfit(multi.save(tmp_path/'m'))):
        assert e.delim()==e.delim(';')==';'
        close(e.validate(df=t).accuracy_multi, e.validate(df=t, label_delim=';').accuracy_multi)
        with raises("label_delim is ',', and the model was trained with ';'"): e.validate(df=t, label_delim=',')

def test_labels_that_look_like_a_class(ens):
    "The classes are settled, so they are taken for it, and that is said"
    df = make_df(20, seed=4)
    want = ens.validate(df=df)
    for change in (lambda o: o+'\xa0', lambda o: '\ufeff'+o):
        with pytest.warns(UserWarning, match='written otherwise than the classes they look like'): got = ens.validate(df=df.assign(label=df.label.map(change)))
        pd.testing.assert_frame_equal(got, want)
    with pytest.warns(UserWarning, match="'2.0' and '2'"): assert label_targets(['2.0','1'], ['1','2']).tolist()==[1,0]
    with raises("the label '01' is not"): label_targets(['01'], ['1','2'])

def test_classes_named_like_columns(tmp_path):
    ens = BidirEnsemble(learner(make_dls(tmp_path, make_df(classes=('label','text'))).clas_fwd))
    assert list(ens.predict_df(['good']).columns)==['text','label','confidence','p_label','p_text']

# scores

def test_scores_are_scikit_learns(ens):
    for l in (ens.fwd,ens.bwd): l.metrics = [accuracy, F1Score(), RocAucBinary(), Perplexity(), ValueMetric(lambda: 3., 'three')]
    res = ens.validate()
    assert list(res.index)==['forward','backward','both']
    outs = dict(forward=ens.fwd.get_preds()[0], backward=ens.bwd.get_preds()[0], both=ens.get_preds()[0])
    t = ens.get_preds()[1].numpy()
    for k,p in outs.items():
        p = p.double()/p.double().sum(1, keepdim=True)
        ll = skm.log_loss(t, p)
        close(res.loc[k].tolist(), [ll, skm.accuracy_score(t, p.argmax(1)), skm.f1_score(t, p.argmax(1)), skm.roc_auc_score(t, p[:,1]), np.exp(ll), np.nan], 1e-4)
    for l in (ens.fwd,ens.bwd): l.metrics = [accuracy]
    close(ens.validate().loc['forward'], ens.fwd.validate(), 1e-4)

def test_scores_with_several_labels(multi):
    res = multi.validate()
    p,t = multi.get_preds()
    bce = -(t*p.log()+(1-t)*(1-p).log()).mean()
    close(res.loc['both'].tolist(), [bce, ((p>.5)==t.bool()).float().mean(), skm.f1_score(t, p>.5, average='macro', zero_division=0)], 1e-4)
    df = multi.predict_df(['film plot', 'good'])
    assert df.label.tolist()==[[c for c in multi.classes if df[c][i]>.5] for i in range(2)]
    close(df.confidence, np.maximum(df[multi.classes], 1-df[multi.classes]).min(axis=1))
    with raises('several'): multi.confusion_matrix()

def test_scores_of_a_table(ens, multi):
    df = make_df(40, seed=8)
    res = ens.validate(df=df)
    close(res.loc['both','accuracy'], (ens.predict_df(df).pred_label==df.label).mean())
    pd.testing.assert_frame_equal(res, ens.validate(df))
    pd.testing.assert_frame_equal(res, ens.validate(df=df.rename(columns=dict(text='a', label='b')), text_col='a', label_col='b'))
    close(ens.validate(dl=[l.dls.test_dl(df, with_labels=True) for l in (ens.fwd,ens.bwd)]), res)
    t = make_topics(20)
    lists = t.assign(label=[[p for p in o.split(';') if p] for o in t.label])
    pd.testing.assert_frame_equal(multi.validate(df=t, label_delim=';'), multi.validate(df=lists))
    with raises("the label 'meh' is not"): ens.validate(df=df.assign(label='meh'))
    with raises('have no label'): ens.validate(df=df.assign(label=None))
    with raises('nothing to score'): ens.validate(df=df[:0])

def test_label_targets():
    assert label_targets(['b','a'], ['a','b']).tolist()==[1,0]
    assert label_targets(np.array([2,1]), ['1','2']).tolist()==[1,0]
    assert label_targets([2.,1.], [1,2]).tolist()==[1,0]
    assert label_targets([True,False], ['False','True']).tolist()==[1,0]
    assert label_targets([['a','b'],[],('b',)], ['a','b'], True).tolist()==[[1,1],[0,0],[0,1]]

def test_labels_are_read_as_in_training(ens, multi, tmp_path):
    df,t = make_df(20, seed=4),make_topics(20)
    want = ens.validate(df=df)
    pd.testing.assert_frame_equal(ens.validate(df=df.assign(label=' '+df.label+' ')), want)
    with raises('2 of 20 texts have no label, the first is number 3'): ens.validate(df=df.assign(label=[' ' if i in (3,5) else o for i,o in enumerate(df.label)]))
    arrays = t.assign(label=[np.array([p for p in o.split(';') if p], dtype=object) for o in t.label])
    pd.testing.assert_frame_equal(multi.validate(df=arrays), multi.validate(df=t)) # what stands between labels is known from the training
    with raises('Pass label_delim'): label_targets(['a,b'], ['a','b'], True)
    df.to_csv(tmp_path/'t.csv', index=False)
    for o in (dict(df=tmp_path/'t.csv'), dict(ds_idx=str(tmp_path/'t.csv'))): pd.testing.assert_frame_equal(ens.validate(**o), want)
    with raises('pass a DataFrame'): ens.validate(df={'text': ['a']})

def test_answers_are_looked_at_many_times(ens, monkeypatch):
    df = make_df(20, seed=4)
    want,said = [ens.validate(df=df),ens.confusion_matrix(df)],ens.answers(df)
    monkeypatch.setattr(BidirEnsemble, '_outputs', None)
    pd.testing.assert_frame_equal(ens.validate(said), want[0])
    pd.testing.assert_frame_equal(ens.confusion_matrix(said), want[1])
    assert ens.plot_confusion_matrix(said).get_xlabel()=='predicted'

def test_eight_bits_follow_the_weights(dls):
    "A learner that was trained further by itself is quantized anew"
    fwd  = learner(dls.clas_fwd)
    both = BidirEnsemble(fwd, quantize=True)
    was  = both.get_preds(texts=['good film'])[0]
    assert both.predictor('forward') is both.predictor('forward')
    with fwd.no_logging(): fwd.fit(2, 0.05)
    now = both.get_preds(texts=['good film'])[0]
    assert (now-was).abs().max()>1e-3
    close(now, Predictor(fwd, quantize=True)(['good film']))

def test_mean_logits_where_floats_round():
    z = torch.tensor([[60.,-60.]])
    for multi in (False,True):
        m = mean_logits([z,z], multi)
        assert torch.isfinite(m).all()
        close(m.sigmoid() if multi else m.softmax(1), [[1,0]])
    close(mean_logits([z,-z]).softmax(1), [[.5,.5]]); close(mean_logits([z,-z], True).sigmoid(), [[.5,.5]])

def test_confusion(ens):
    df = make_df(40, seed=8)
    pred = ens.predict_df(df).pred_label
    cm = ens.confusion_matrix(df)
    assert (cm.values==skm.confusion_matrix(df.label, pred, labels=ens.classes)).all() and list(cm.columns)==ens.classes
    assert ens.most_confused(df)==sorted(ens.most_confused(df), key=lambda o: -o[2]) and sum(o[2] for o in ens.most_confused(df))==(pred!=df.label).sum()
    for norm in (False,True): assert ens.plot_confusion_matrix(df, normalize=norm).get_xlabel()=='predicted'

def test_class_names_are_no_markup(tmp_path):
    names = ['$a_b^','$\\frac$','x_{1','b\n$y$']
    df  = make_df(40).assign(label=[names[i%4] for i in range(40)])
    ens = BidirEnsemble(learner(make_dls(tmp_path, df).clas_fwd))
    ax  = ens.plot_confusion_matrix(df)
    save_figure(ax, tmp_path/'a.png')
    assert [o.get_text() for o in ax.get_xticklabels()]==[' '.join(o.split()) for o in ens.classes]

@pytest.mark.parametrize('n', [30,31,100,101,1500])
def test_many_classes(ens, n, tmp_path):
    "The picture stays as large as it is and has no numbers, and the pairs most often confused are told beside it"
    many  = BidirEnsemble(ens.fwd)
    many.first.classes = [f'c{i}' for i in range(n)]
    out   = torch.eye(n)[torch.arange(n).roll(1)] # all but the last two are taken for the class before
    targs = torch.arange(n)
    out[-2:] = torch.eye(n)[-2:]
    said  = Answers(dict(forward=out), targs)
    ax    = many.plot_confusion_matrix(said)
    assert (len(ax.texts)==n*n)==(n<=30) and (len(ax.get_xticklabels())==n)==(n<=100) and max(ax.figure.get_size_inches())<20
    pairs = many.most_confused(said)
    assert len(pairs)==n-2 and ('c1','c0',1) in pairs and ('c0',f'c{n-1}',1) in pairs
    found = Report(many, said, '')
    save_confusion(found, tmp_path/'a.png')
    assert (tmp_path/'a.png').stat().st_size<3e6 and (f'Most often confused, of {n:,} classes' in str(found))==(n>10)

def test_show_results(ens, multi):
    for e in (ens,multi):
        res = e.show_results(4, seed=0)
        assert list(res.columns)==['text','target','forward','backward','both'] and len(res)==4
        assert e.show_results(1000).shape[0]==len(e.fwd.dls.valid_ds)
    res,probs = ens.show_results(4),ens.get_preds()[0][:4]
    assert [o.split()[0] for o in res.both]==[ens.classes[i] for i in probs.argmax(1)]

def test_one_direction(ens):
    for l,way in ((ens.fwd,'forward'), (ens.bwd,'backward')):
        one = BidirEnsemble(l)
        assert list(one.validate().index)==[way] and list(one.show_results(2).columns)==['text','target',way]
        close(one.get_preds()[0], l.get_preds()[0])
        close(one.get_preds(dl=l.dls.test_dl(['good']))[0], Predictor(l)(['good']))

def test_predictor_after_another_model(dls, tmp_path):
    "The learner may be given a plain fastai model: that one predicts"
    learn,other = learner(dls.clas_fwd, path=tmp_path),learner(dls.clas_fwd, bpt3c=False, path=tmp_path)
    texts = make_df(10, seed=5).text.tolist()
    with torch.no_grad(): other.model[1].layers[-1][-1].weight.mul_(9)
    want = Predictor(other)(texts)
    learn.model = other.model
    close(Predictor(learn)(texts), want)

def test_predictor_in_32_bits(ens):
    "What an interrupted fit under `autocast` left on does not reach it"
    texts = make_df(10, seed=5).text.tolist()
    want = Predictor(ens.fwd)(texts)
    with torch.autocast('cpu', torch.bfloat16): got = Predictor(ens.fwd)(texts)
    assert torch.equal(got, want)

def test_predictor_of_a_number(dls, tmp_path):
    "One output is no class: it stays what the model says"
    learn = learner(dls.clas_fwd, path=tmp_path, n_out=1, loss_func=nn.MSELoss(), metrics=None)
    texts = make_df(10, seed=5).text.tolist()
    close(Predictor(learn)(texts), Predictor(learn).logits(texts))

def test_loaders_of_the_other_direction(ens, dls):
    "The same texts, but each model would read them from the wrong end"
    fwd,bwd = dls.clas_fwd.valid,dls.clas_bwd.valid
    close(ens.get_preds(dl=(fwd,bwd))[0], ens.get_preds()[0])
    with raises('the other way'): ens.get_preds(dl=(bwd,fwd))

# a third voice

def bag_of(ens, reverse=False):
    "Words counted in the training texts of an ensemble"
    ds,vocab = ens.fwd.dls.train_ds,ens.fwd.dls.processor.vocab
    labels = ens.first.labels([o[1] for o in ds])
    return BagOfWords.fit([[vocab[i] for i in o[0]][::-1 if reverse else 1] for o in ds], labels, ens.classes, ens.multi)

def test_a_third_voice(ens):
    bag = bag_of(ens)
    three,df = BidirEnsemble(ens.fwd, ens.bwd, bag),make_df(30, seed=9)
    outs,targs = three.answers(df)
    assert list(outs)==['words','forward','backward']
    proc = ens.fwd.dls.processor
    close(outs['words'], bag.logits(proc.tokenize(df.text)))
    close(three.get_preds(texts=df.text)[0], sum(o.softmax(1) for o in outs.values())/3)
    res = three.validate(df)
    assert list(res.index)==['words','forward','backward','both','all']
    pd.testing.assert_frame_equal(res.drop(['words','all']), ens.validate(df))
    close(res.loc['all','accuracy'], (three.predict_df(df).pred_label==df.label).mean())
    close(three.confusion_matrix(df).values.trace()/30, res.loc['all','accuracy'])
    assert list(three.show_results(2).columns)==['text','target','words','forward','backward','both','all'] and 'words' in repr(three)
    label,_,probs = three.predict(df.text[0])
    close(probs, three.get_preds(texts=[df.text[0]])[0][0]); assert label==three.classes[probs.argmax()]

def test_counted_words_read_what_the_vocabulary_does_not_hold(ens):
    "A new word of a known stem has character n-grams that speak"
    vocab = ens.fwd.dls.vocab[0]
    texts = [f'the film was {o}' for o in ('wonderful','dreadful')]*6
    bag   = BagOfWords.fit([o.split() for o in texts], ['pos','neg']*6, ens.classes, chars=True)
    three = BidirEnsemble(ens.fwd, ens.bwd, words=bag)
    new   = ['wonderfully','dreadfully']
    assert not set(new) & set(vocab)
    pos = three.voices(new)['words'][:,three.classes.index('pos')]
    assert pos[0]>.6 and pos[1]<.4
    assert three.explain('so wonderfully', 'pos').table.set_index('token').contribution['wonderfully']>.1

@pytest.mark.parametrize('side', ['fwd','bwd'])
def test_a_set_and_its_texts_give_the_same(dls, ens, side):
    "Words are counted from the beginning of a text, whichever way a model reads"
    one = BidirEnsemble(getattr(ens, side), words=bag_of(ens))
    assert list(one.validate().index)[0::2]==['words','all']
    texts = make_df().text.iloc[dls.valid_idx]
    close(one.get_preds()[0], one.get_preds(texts=texts)[0])
    close(one.answers().outs['words'], BidirEnsemble(ens.fwd, ens.bwd, one.words).answers().outs['words'])

def test_voices_are_weighed(ens):
    three,df = BidirEnsemble(ens.fwd, ens.bwd, bag_of(ens)),make_df(200, seed=4)
    before = three.validate(df).loss['all']
    assert three.weigh(df) is three and set(three.mixture.weights)=={'words','forward','backward'}
    assert three.validate(df).loss['all']<before
    only = BidirEnsemble(ens.fwd, ens.bwd, three.words, mixture=Mixture(dict(words=1., forward=0., backward=0.), dict(words=2., forward=1., backward=1., all=1.)))
    close(only.get_preds(texts=df.text)[0], (only.answers(df).outs['words']/2).softmax(1))
    two = BidirEnsemble(ens.fwd, ens.bwd)
    assert two.weigh(df).mixture is None and list(two.validate(df).index)==['forward','backward','both']

def test_a_third_voice_of_several_labels(multi):
    three,df = BidirEnsemble(multi.fwd, multi.bwd, bag_of(multi)).weigh(),make_topics(40)
    res = three.validate(df, label_delim=';')
    assert list(res.index)==['words','forward','backward','both','all'] and np.isfinite(res.values).all() and res.loc['words','accuracy_multi']>.9

def test_words_that_do_not_fit(ens, multi):
    with raises('fit the words'): BidirEnsemble(ens.fwd, ens.bwd, bag_of(multi))
    with raises('weigh'): BidirEnsemble(ens.fwd, ens.bwd, bag_of(ens), mixture=Mixture(dict(forward=.5, backward=.5), {}))
    bag,all_three = bag_of(ens),equal_mixture(['words','forward','backward'])
    with raises('the voices are words, forward: make it anew'): BidirEnsemble(ens.fwd, words=bag, mixture=all_three)
    with raises('make it anew'): BidirEnsemble(ens.fwd, ens.bwd, bag, mixture=all_three._replace(temperatures=dict(words=1.)))
