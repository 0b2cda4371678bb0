"Data: what goes in, what comes out, and what is said when it cannot"
import gzip,importlib.util,io,json,os,pickle,random,re,subprocess,sys,time,warnings
from pathlib import Path
import numpy as np,pandas as pd,pytest,torch
from fastai.text.all import (AWD_LSTM,Callback,ClassificationInterpretation,DataBlock,LMDataLoader,Learner,RandomSplitter,TextBlock,TextDataLoaders,
    SpacyTokenizer,Tokenizer,accuracy,awd_lstm_clas_config,awd_lstm_lm_config,compose,defaults,language_model_learner,load_learner,
    replace_all_caps,text_classifier_learner)
from fastcore.test import test_eq
from made_up import make_texts,words
import ulmfit_ext.data as D
from ulmfit_ext.data import (LMLoader,TextProcessor,TextStream,Tokens,UlmfitError,atomic_write,class_vocab,clas_dls,empty_clas_dls,empty_lm_dls,encode_texts,
    is_backwards,lm_dls,read_table,text_vocab,tokenize_once,ulmfit_dls)

small = dict(emb_sz=8, n_hid=10, n_layers=2)
lm_cfg,clas_cfg = {**awd_lstm_lm_config, **small},{**awd_lstm_clas_config, **small}
pytestmark = pytest.mark.usefixtures('strict_warnings')

def make_df(n=60, seed=0, longest=30):
    texts = make_texts(n, seed, longest)
    return pd.DataFrame({'text': texts, 'label': ['pos' if ' good' in t else 'neg' for t in texts]})

@pytest.fixture
def df(): return make_df()
@pytest.fixture
def dls(df, tmp_path): return ulmfit_dls(df, path=tmp_path, seed=1, bs=8, bptt=10, min_freq=1)

def fails(match): return pytest.raises(UlmfitError, match=match)
def ids_of(ds, i): return ds[i][0].tolist()


# ---- vocabulary, split, labels

def test_vocab_counts_all_text(df, tmp_path):
    d = ulmfit_dls(df, path=tmp_path, unlabelled=['zebra or zebra or a zebra', 'giraffe or giraffe'])
    assert 'zebra' in d.vocab and 'giraffe' not in d.vocab and d.vocab[:9]==defaults.text_spec_tok and len(d.vocab)%8==0
    old = TextDataLoaders.from_df(pd.concat([df[['text']], pd.DataFrame({'text': ['zebra or zebra or a zebra','giraffe or giraffe']})]), text_col='text', is_lm=True, bs=2, seq_len=5, num_workers=0)
    assert sorted(old.vocab) == sorted(d.vocab)

def test_vocab_given(df, tmp_path):
    v = defaults.text_spec_tok + ['cat','dog']
    d = ulmfit_dls(df, path=tmp_path, vocab=v)
    assert d.vocab==v==text_vocab(d.lm_bwd)==text_vocab(d.clas_fwd)
    with fails('put them first'): ulmfit_dls(df, path=tmp_path, vocab=['cat','dog'])

def test_all_rare_words(tmp_path):
    df = pd.DataFrame({'text': ['one two','three four','five six','seven eight'], 'label': list('abab')})
    with pytest.warns(UserWarning, match='min_freq'): d = ulmfit_dls(df, path=tmp_path, valid_pct=.5, bs=2)
    for o in (d.lm_fwd,d.clas_bwd): [b for b in o.train]

def test_one_vocab_one_split(dls):
    loaders = dls.lm_fwd,dls.lm_bwd,dls.clas_fwd,dls.clas_bwd
    assert all(text_vocab(o)==dls.vocab for o in loaders)
    assert [is_backwards(o) for o in loaders]==[False,True,False,True]
    for split in ('train_ds','valid_ds'):
        f,b = (getattr(o, split) for o in (dls.clas_fwd,dls.clas_bwd))
        assert len(f)==len(b)
        for i in range(len(f)): assert ids_of(f,i)==ids_of(b,i)[::-1] and f[i][1]==b[i][1]
    lm = dls.lm_fwd
    assert [ids_of(lm.valid_ds,i) for i in range(len(lm.valid_ds))]==[ids_of(dls.clas_fwd.valid_ds,i) for i in range(len(lm.valid_ds))]
    assert sorted(ids_of(lm.train_ds,i) for i in range(len(lm.train_ds)))==sorted(ids_of(dls.clas_fwd.train_ds,i) for i in range(len(lm.train_ds)))

def test_rows_keep_their_texts_and_labels(df, tmp_path):
    df.index = [7]*len(df)
    d = ulmfit_dls(df, path=tmp_path, seed=0, min_freq=1)
    for idx,ds in ((d.train_idx,d.clas_fwd.train_ds),(d.valid_idx,d.clas_fwd.valid_ds)):
        want = d.processor.encode(df.text.iloc[idx])
        for i,(w,l) in enumerate(zip(want, df.label.iloc[idx])): assert ids_of(ds,i)==w.tolist() and d.classes[ds[i][1]]==l

def test_unlabelled_is_read_by_the_lm_only(df, tmp_path):
    extra = ['Something else entirely']*5
    for o in (extra, pd.Series(extra), pd.DataFrame({'text': extra}), pd.DataFrame({'body': extra})):
        d = ulmfit_dls(df, path=tmp_path, unlabelled=o, seed=0, min_freq=1)
        assert d.n_unlabelled==5 and len(d.lm_fwd.train_ds)==len(d.train_idx)+5 and len(d.lm_fwd.valid_ds)==len(d.valid_idx) and len(d.clas_fwd.train_ds)==len(d.train_idx)
    pd.DataFrame({'text': extra}).to_csv(tmp_path/'u.csv')
    assert ulmfit_dls(df, path=tmp_path, unlabelled=tmp_path/'u.csv', min_freq=1).n_unlabelled==5
    with fails("no column 'text'"): ulmfit_dls(df, path=tmp_path, unlabelled=pd.DataFrame({'a': extra, 'b': extra}))

def test_multi_label(tmp_path):
    texts,labels = [f'text {w}' for w in words[:20]],['a;b','b','','c;a;c']*5
    as_lists = [list(filter(None, o.split(';'))) for o in labels]
    for lab,kw in ((labels, dict(label_delim=';')), (as_lists, {}), ([np.array(o) for o in as_lists], {}), ([set(o) for o in as_lists], {})):
        df = pd.DataFrame({'text': texts, 'label': pd.Series(lab, dtype=object)})
        d = ulmfit_dls(df, path=tmp_path, seed=0, min_freq=1, bs=4, **kw)
        assert d.multi and d.classes==['a','b','c'] and d.clas_bwd.c==3 and 'BCE' in repr(d.clas_fwd.loss_func)
        for i,row in enumerate(d.train_idx): assert d.clas_fwd.train_ds[i][1].tolist()==[float(c in as_lists[row]) for c in 'abc']
    c = text_classifier_learner(d.clas_fwd, AWD_LSTM, config=clas_cfg, pretrained=False, path=tmp_path)
    with c.no_bar(), c.no_logging(): c.fit(1); assert c.predict('text')[2].shape==(3,)
    t = d.clas_fwd.test_dl(df.iloc[:5], with_labels=True)
    assert [o[1].tolist() for o in t.dataset]==[[float(c in as_lists[i]) for c in 'abc'] for i in range(5)]

def test_language_model_only(df, tmp_path):
    d = ulmfit_dls(df[['text']], label_col=None, path=tmp_path, seed=0, min_freq=1)
    assert d.classes is None and len(d.lm_fwd.valid_ds)==12 and class_vocab(d.lm_fwd) is None
    with fails('no labels'): d.clas_fwd


# ---- input that is wrong

def test_broken_characters(df, tmp_path, capsys):
    df['text'] = df.text.astype(object)
    df.loc[0,'text'],df.loc[1,'text'] = 'good \ud800 \x00 text','\udfff'*5
    d = ulmfit_dls(df, path=tmp_path, min_freq=1, seed=0, bs=60)
    assert ulmfit_dls(df, path=tmp_path, min_freq=1, seed=0).cache_hit
    d.clas_fwd.show_batch(max_n=60); print(d.vocab, d); '\n'.join(d.vocab).encode()
    c = text_classifier_learner(d.clas_fwd, AWD_LSTM, config=clas_cfg, pretrained=False, path=tmp_path)
    with c.no_bar(): c.predict('\ud800')

def test_very_long_text(df, tmp_path):
    df.loc[0,'text'] = ' '.join(np.random.default_rng(0).choice(words, 200_000))
    d = ulmfit_dls(df, path=tmp_path, min_freq=1, seed=0, bs=4)
    assert max(len(o) for o in d.clas_fwd.train_ds.items+d.clas_fwd.valid_ds.items) > 190_000
    assert len(encode_texts(d.clas_fwd, [df.text[0]])[0]) > 190_000
    b = d.lm_fwd.one_batch()
    assert b[0].shape==(4,70)


# ---- language model loaders

def corpus(n=60, seed=0, longest=40):
    rng = np.random.default_rng(seed)
    offs = np.concatenate([[0], rng.integers(1, longest, n).cumsum()])
    return rng.integers(2, 60, offs[-1]).astype(np.uint16),offs
proc = TextProcessor(defaults.text_spec_tok + [f'w{i}' for i in range(51)])

@pytest.mark.parametrize('bs,bptt', [(1,5),(4,7),(8,1),(16,70),(3,1000)])
@pytest.mark.parametrize('backwards', [False,True])
def test_same_batches_as_fastai(bs, bptt, backwards):
    ids,offs = corpus()
    dls = lm_dls(ids, offs, 25, proc, backwards, bs=bs, bptt=bptt, device='cpu')
    ours,theirs = dls.valid,LMDataLoader(dls.valid_ds, bs=bs, seq_len=bptt)
    assert len(ours)==len(theirs) and ours.n==theirs.n
    n = 0
    for a,b in zip(ours,theirs):
        assert type(a)==type(b) and [type(o) for o in a]==[type(o) for o in b] and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]); n += 1
    assert n==len(ours)
    for i in (0, ours.n-1): assert all(torch.equal(a, b) for a,b in zip(ours.create_item(i), theirs.create_item(i)))
    whole = LMLoader(dls.valid_ds, bs=bs, seq_len=bptt)
    assert all(torch.equal(a[0], b[0]) for a,b in zip(ours,whole)) and len(whole)==len(ours)

def test_backward_documents_are_reversed_one_by_one():
    ids,offs = corpus(5)
    f,b = (lm_dls(ids, offs, 4, proc, o, bs=1, bptt=10**6, device='cpu').valid for o in (False,True))
    docs = [ids[a:b].tolist() for a,b in zip(offs[1:-1],offs[2:])]
    row = np.arange(sum(map(len, docs)))
    assert f.take(row).tolist()==sum(docs, []) and b.take(row).tolist()==sum([o[::-1] for o in docs], [])

def test_reshuffled_each_epoch_whole_documents():
    ids,offs = corpus()
    dl = lm_dls(ids, offs, 10, proc, bs=4, bptt=9, device='cpu').train
    streams = []
    for _ in range(2): streams.append([torch.cat([b[0] for b in dl], 1), dl.take(np.arange(offs[50]))])
    assert not np.array_equal(streams[0][1], streams[1][1])
    docs = sorted(ids[a:b].tolist() for a,b in zip(offs[:50],offs[1:51]))
    rest,got = streams[0][1].tolist(),[]
    while rest:
        d = next(d for d in sorted(docs, key=len, reverse=True) if rest[:len(d)]==d); docs.remove(d); rest = rest[len(d):]
    assert docs==[]
    x,s = streams[1]
    bl = (len(s)-1)//4
    assert torch.equal(x, torch.from_numpy(s[:4*bl].reshape(4,bl).astype(np.int64)))

def test_state_carries_over_between_batches():
    ids,offs = corpus()
    bs = [b for b in lm_dls(ids, offs, 10, proc, bs=4, bptt=9, device='cpu').train]
    for (x,y),(x2,_) in zip(bs, bs[1:]): assert torch.equal(x[:,1:], y[:,:-1]) and torch.equal(y[:,-1], x2[:,0])

def test_max_batches():
    ids,offs = corpus()
    dls = lm_dls(ids, offs, 10, proc, bs=4, bptt=9, max_batches=3)
    assert len(dls.train)==3==len(list(dls.train)) and len(dls.valid)==dls.valid.n_batches
    dls.train.max_batches = None
    assert len(dls.train)==dls.train.n_batches==len(list(dls.train))
    dls.train.max_batches = 10**6
    assert len(dls.train)==dls.train.n_batches==len(list(dls.train))
    dls.train.max_batches = 2
    assert len(dls.train.new())==2==len(list(dls.train.new()))

def test_small_corpora():
    for n in (1,2,3):
        ids,offs = np.full(n, 5, np.uint16),np.array([0,n])
        dl = lm_dls(ids, offs, 0, proc, bs=64, bptt=70, device='cpu').train
        assert len(dl)==len(list(dl))==(n>1)
        if n>1: assert sum(b[0].numel() for b in dl)==n-1
    d = lm_dls(*corpus(8), [1,3], proc, bs=2, bptt=5)
    assert len(d.train_ds)==6 and len(d.valid_ds)==2

def test_equally_frequent_words_are_in_alphabetical_order(tmp_path):
    df = pd.DataFrame({'text': ['zebra yak apple', 'mole apple zebra yak mole']*2, 'label': ['a','b']*2})
    v = [ulmfit_dls(o, path=tmp_path, min_freq=1, valid_pct=.5, seed=0).vocab for o in (df, df[::-1])]
    assert v[0]==v[1] and v[0][9:13]==['apple','mole','yak','zebra']

def test_faster_than_fastai():
    ids,offs = corpus(300, longest=300)
    dl = lm_dls(ids, offs, 150, proc, bs=32, bptt=70, device='cpu').valid
    old = LMDataLoader(dl.dataset, bs=32, seq_len=70)
    def clock(o): t0 = time.perf_counter(); list(o); return time.perf_counter()-t0
    assert min(clock(dl) for _ in range(3))*5 < min(clock(old) for _ in range(3))


def test_validation_without_a_token_to_predict(df, tmp_path):
    df.loc[:9,'text'] = ''
    d = ulmfit_dls(df.assign(v=df.index<1), valid_col='v', path=tmp_path, min_freq=1, bs=4)
    l = language_model_learner(d.lm_fwd, AWD_LSTM, config=lm_cfg, pretrained=False, path=tmp_path)
    with l.no_bar(), l.no_logging(): l.fit(1)
    with fails('none is left'): lm_dls(*corpus(5), 5, proc)


# ---- in plain fastai

def test_language_model_learner(dls, tmp_path):
    for o in (dls.lm_fwd,dls.lm_bwd):
        l = language_model_learner(o, AWD_LSTM, config=lm_cfg, pretrained=False, path=tmp_path)
        with l.no_bar(), l.no_logging():
            l.fit(1); l.validate()
            out = l.predict('The cat', 3)
        assert isinstance(out, str) and {'the','cat'} <= set(out.lower().split())   # the backward model gives them in its own order
        o.show_batch(max_n=2)
        l.export('lm.pkl')
        with l.no_bar(): assert isinstance(load_learner(tmp_path/'lm.pkl').predict('The cat', 2, no_bar=True), str)
    assert dls.lm_fwd.test_dl(['The cat']).items[0].tolist()==dls.processor.encode(['The cat'])[0].tolist()
    assert dls.lm_bwd.test_dl(['The cat']).items[0].tolist()==dls.processor.encode(['The cat'])[0].tolist()[::-1]
    x,y = dls.lm_bwd.test_dl(['The cat sat. '*20]*9).one_batch()
    assert x.shape[0]==8

def test_text_classifier_learner(dls, df, tmp_path):
    for o in (dls.clas_fwd,dls.clas_bwd):
        c = text_classifier_learner(o, AWD_LSTM, seq_len=10, config=clas_cfg, pretrained=False, metrics=accuracy, path=tmp_path)
        with c.no_bar(), c.no_logging():
            c.fit(1, 1e-2)
            texts = df.text.tolist()[:20]
            p,_ = c.get_preds(dl=o.test_dl(texts))
            p1  = torch.stack([c.get_preds(dl=o.test_dl([t]))[0][0] for t in texts[:3]])
            lab,i,pr = c.predict(texts[0])
            assert p.shape==(20,2) and pr.shape==(2,) and lab in dls.classes
            _,t = c.get_preds(dl=o.test_dl(df.iloc[:20], with_labels=True))
            assert [dls.classes[j] for j in t]==df.label.tolist()[:20]
            p2,_ = c.get_preds(dl=o.test_dl(df.iloc[:20])); assert torch.allclose(p, p2)
            _,ty = c.get_preds(); assert [dls.classes[j] for j in ty]==df.label.iloc[dls.valid_idx].tolist()
            ClassificationInterpretation.from_learner(c).confusion_matrix()
            c.export('x.pkl')
            c2 = load_learner(tmp_path/'x.pkl')
            assert torch.allclose(c2.predict(texts[0])[2], pr) and c2.dls.backwards==o.backwards and c2.dls.processor.vocab==dls.vocab
            assert (tmp_path/'x.pkl').stat().st_size < 200_000
        o.show_batch(max_n=2); assert o.c==2 and 'CrossEntropy' in repr(o.loss_func)

def test_test_dl_takes(dls, df):
    o = dls.clas_fwd
    want = [x.tolist() for x in dls.processor.encode(df.text[:4])]
    for items in (df.text.tolist()[:4], df.text[:4], df.text[:4].to_numpy(), df.iloc[:4], dls.processor.encode(df.text[:4]), [torch.tensor(x) for x in want], tuple(df.text[:4])):
        assert [ids_of(o.test_dl(items).dataset, i) for i in range(4)]==want
    assert [ids_of(dls.clas_bwd.test_dl(df.text[:4]).dataset, i) for i in range(4)]==[x[::-1] for x in want]
    assert ids_of(o.test_dl([None, 7]).dataset, 0)==[2]
    assert len(o.test_dl(['a']*9, bs=4))==3
    with fails('write .text.'): o.test_dl('a text')
    with fails("no column 'text'"): o.test_dl(pd.DataFrame({'Text': ['a']}))
    with fails('does not know: other'): o.test_dl(pd.DataFrame({'text': ['a'], 'label': ['other']}), with_labels=True)
    with fails('1 rows have no label'): o.test_dl(pd.DataFrame({'text': ['a','b'], 'label': ['pos',None]}), with_labels=True)
    with fails('with_labels'): o.test_dl(['a'], with_labels=True)

def test_every_text_in_every_epoch(tmp_path):
    for n,bs in ((50,64),(100,64),(129,64),(7,3)):
        df = pd.DataFrame({'text': [f'w{i}' for i in range(n)]*2, 'label': ['a','b']*n, 'v': [False]*n+[True]*n})
        dl = ulmfit_dls(df, valid_col='v', path=tmp_path, min_freq=1, bs=bs).clas_fwd.train
        b = [x for x,_ in dl]
        assert sum(map(len, b)) >= n-1 and len({tuple(r) for x in b for r in x.tolist()}) >= n-1 and all(2 <= len(x) <= bs for x in b)
        assert len(dl)==len(b)

def test_encode_texts_is_test_dl(dls, df):
    texts = df.text.tolist()[:6]+['', None, 'wholly unheard-of words', 'xxpad', 5]
    for o in (dls.lm_fwd,dls.lm_bwd,dls.clas_fwd,dls.clas_bwd):
        ds,enc = o.test_dl(texts).dataset,encode_texts(o, texts)
        assert len(ds)==len(enc)==len(texts) and all(e.dtype==torch.int64 and type(e)==torch.Tensor and e.tolist()==ids_of(ds,i) for i,e in enumerate(enc))
        rows = [r[r!=1].tolist() for x in o.test_dl(texts) for r in x[0]] if o.__class__ and not isinstance(o.valid, LMDataLoader) else None
        if rows: assert sorted(rows)==sorted(e.tolist() for e in enc)

@pytest.mark.parametrize('backwards', [False,True])
def test_plain_fastai_dataloaders(df, backwards):
    old = TextDataLoaders.from_df(df, text_col='text', label_col='label', backwards=backwards, bs=4, num_workers=0, seed=0)
    lm  = TextDataLoaders.from_df(df, text_col='text', is_lm=True, backwards=backwards, bs=4, num_workers=0)
    assert class_vocab(old)==['neg','pos'] and class_vocab(lm) is None and text_vocab(old)==list(old.vocab[0]) and text_vocab(lm)==list(lm.vocab)
    assert is_backwards(old)==is_backwards(lm)==backwards
    texts = df.text.tolist()[:5]
    for o in (old,lm):
        ds = o.test_dl(texts).dataset
        enc = encode_texts(o, texts)
        assert [e.tolist() for e in enc]==[(ds[i][0] if isinstance(ds[i], tuple) else ds[i]).tolist() for i in range(5)] and all(type(e)==torch.Tensor for e in enc)
    assert encode_texts(old, [])==[]

@pytest.mark.parametrize('multi', [False,True])
@pytest.mark.parametrize('backwards', [False,True])
def test_empty_classifier_dls(backwards, multi, tmp_path):
    o = empty_clas_dls(proc, ['a','b','c'], backwards, multi, bs=5, bptt=7, path=tmp_path)
    assert len(o.train_ds)==len(o.valid_ds)==0 and o.c==3 and class_vocab(o)==['a','b','c'] and text_vocab(o)==proc.vocab and is_backwards(o)==backwards and o.bs==o.valid.bs==5
    assert ('BCE' if multi else 'CrossEntropy') in repr(o.loss_func) and o.path==tmp_path
    c = text_classifier_learner(o, AWD_LSTM, seq_len=7, config=clas_cfg, pretrained=False)
    with c.no_bar():
        assert c.predict('w1 w2')[2].shape==(3,) and c.get_preds(dl=o.test_dl(['w1','w2 w3']*9))[0].shape==(18,3)
        c.export('e.pkl'); assert load_learner(tmp_path/'e.pkl').predict('w3')[2].shape==(3,)
    assert [e.tolist() for e in encode_texts(o, ['w1 w2'])]==[ids_of(o.test_dl(['w1 w2']).dataset, 0)]

@pytest.mark.parametrize('backwards', [False,True])
def test_empty_language_model_dls(backwards, tmp_path):
    o = empty_lm_dls(proc, backwards, bs=5, bptt=7, path=tmp_path)
    assert len(o.train_ds)==len(o.valid_ds)==0 and text_vocab(o)==proc.vocab and class_vocab(o) is None and is_backwards(o)==backwards and len(o.train)==0
    l = language_model_learner(o, AWD_LSTM, config=lm_cfg, pretrained=False)
    with l.no_bar(): assert l.predict('w1 w2', 2).startswith('w1 w2') or backwards
    assert o.test_dl(['w1 w2 w3']*30).one_batch()[0].shape==(5,7)

def test_interpretation(tmp_path):
    "fastai looks up items of ours, with their labels"
    from ulmfit_ext.classifier import ulmfit_classifier
    d = ulmfit_dls(make_df(), path=tmp_path, seed=0, bs=8, min_freq=1).clas_fwd
    learn = ulmfit_classifier(d, dict(emb_sz=8, n_hid=12, n_layers=2))
    with learn.no_bar():
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_top_losses(2)
        inputs,_,targs,*_ = interp[[0,1]]
        assert targs.tolist()==[int(d.valid_ds[i][1]) for i in (0,1)]
        np.testing.assert_allclose(learn.validate(dl=d.test_dl(d.valid.items, with_labels=True)), learn.validate(), rtol=1e-5)
    with fails('DataFrame that has the label column'): d.test_dl(['a text'], with_labels=True)

