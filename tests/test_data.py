"Data: the four loaders of a table, what goes into which, and their batches"
import json,sys
import numpy as np,pandas as pd,pytest,torch
from fastai.text.all import (AWD_LSTM,ClassificationInterpretation,LMDataLoader,TextDataLoaders,accuracy,awd_lstm_clas_config,awd_lstm_lm_config,
    defaults,language_model_learner,load_learner,text_classifier_learner)
from made_up import make_df,make_texts,words
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.text.loaders import LMLoader,clas_dls,lm_dls,text_setup
from ulmfit_ext.text.tokens import TextProcessor

small = dict(emb_sz=8, n_hid=10, n_layers=2)
lm_cfg,clas_cfg = {**awd_lstm_lm_config, **small},{**awd_lstm_clas_config, **small}
pytestmark = pytest.mark.usefixtures('strict_warnings')

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
    assert d.vocab==v==text_setup(d.lm_bwd).vocab==text_setup(d.clas_fwd).vocab
    with fails('put them first'): ulmfit_dls(df, path=tmp_path, vocab=['cat','dog'])

def test_tokens_also_of_words_that_the_vocabulary_does_not_hold(df, tmp_path):
    "Of each row, in any order, also after a split and with guesses"
    v = defaults.text_spec_tok + ['cat','dog']
    d = ulmfit_dls(df, path=tmp_path, vocab=v, unlabelled=['a zebra or a cat', ''])
    texts = [*df.text, 'a zebra or a cat', '']
    want  = d.processor.tokenize(texts)
    rows  = [len(df), 3, 0, len(df)+1]
    for o in (d, d.with_split([0,1], [2]), d.with_guesses([len(df)], [d.classes[0]])):
        assert o.tokens(rows)==[want[i] for i in rows]
        assert o.unknown(rows)==[[w for w in want[i] if w not in v] for i in rows]

def test_all_rare_words(tmp_path):
    df = pd.DataFrame({'text': ['one two','three four','five six','seven eight'], 'label': list('abab')})
    with pytest.warns(UserWarning, match='min_freq'): d = ulmfit_dls(df, path=tmp_path, valid_pct=.5, bs=2)
    for o in (d.lm_fwd,d.clas_bwd): [b for b in o.train]

def test_one_vocab_one_split(dls):
    loaders = dls.lm_fwd,dls.lm_bwd,dls.clas_fwd,dls.clas_bwd
    assert all(text_setup(o).vocab==dls.vocab for o in loaders)
    assert [text_setup(o).backwards for o in loaders]==[False,True,False,True]
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
    assert d.classes is None and len(d.lm_fwd.valid_ds)==12 and text_setup(d.lm_fwd).classes is None
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
    assert len(text_setup(d.clas_fwd).encode([df.text[0]])[0]) > 190_000
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

def whole_row(dl):
    "All tokens that a loader of one stream reads, in order"
    assert dl.bs==1
    xs,ys = zip(*dl)
    return torch.cat(xs, 1)[0].tolist() + [int(ys[-1][0,-1])]

def test_backward_documents_are_reversed_one_by_one():
    ids,offs = corpus(5)
    f,b = (lm_dls(ids, offs, 4, proc, o, bs=1, bptt=7, device='cpu').valid for o in (False,True))
    docs = [ids[a:b].tolist() for a,b in zip(offs[1:-1],offs[2:])]
    assert whole_row(f)==sum(docs, []) and whole_row(b)==sum([o[::-1] for o in docs], [])

@pytest.mark.parametrize('backwards', [False,True])
def test_reshuffled_each_epoch_whole_documents(backwards):
    "Every token is read once an epoch, document by document, in an order that is another one each time; streams are parts of that row"
    ids,offs = corpus()
    one,four = (lm_dls(ids, offs, 10, proc, backwards, bs=bs, bptt=9, device='cpu').train for bs in (1,4))
    rows = [whole_row(one) for _ in range(2)]
    assert rows[0]!=rows[1]
    docs = sorted(ids[a:b].tolist()[::-1 if backwards else 1] for a,b in zip(offs[:50],offs[1:51]))
    rest = rows[0]
    while rest:
        d = next(d for d in sorted(docs, key=len, reverse=True) if rest[:len(d)]==d)
        docs.remove(d)
        rest = rest[len(d):]
    assert docs==[]
    for seed in (5,6,[5,6]):
        one.order = four.order = seed
        row = torch.tensor(whole_row(one)[:4*four.bl]).view(4, four.bl)
        for _ in range(2): assert torch.equal(torch.cat([x for x,_ in four], 1), row)

@pytest.mark.parametrize('n', [1,3,7])
def test_parts_of_an_epoch_are_all_of_it(n):
    dl = lm_dls(*corpus(), 10, proc, bs=4, bptt=9, device='cpu').train
    dl.order = 1
    whole = [torch.cat(o, 1) for o in zip(*dl)]
    parts = []
    for i in range(n):
        dl.part = i,n
        parts += list(dl)
        assert len(parts)>0 and len(dl)==dl.n_batches
    for a,b in zip(whole, zip(*parts)): assert torch.equal(a, torch.cat(b, 1))
    dl.part = 0,1
    assert torch.equal(torch.cat([x for x,_ in dl], 1), whole[0])

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

def test_less_work_than_fastai():
    "A fifth of the calls of functions at most"
    ids,offs = corpus(300, longest=300)
    dl = lm_dls(ids, offs, 150, proc, bs=32, bptt=70, device='cpu').valid
    def calls(o):
        n = 0
        def count(frame, event, arg):
            nonlocal n
            n += event in ('call','c_call')
        sys.setprofile(count)
        try: list(o)
        finally: sys.setprofile(None)
        return n
    assert calls(dl)*5 < calls(LMDataLoader(dl.dataset, bs=32, seq_len=70))

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
    with fails('with_labels'): dls.lm_fwd.test_dl(df, with_labels=True)

def test_every_text_in_every_epoch(tmp_path):
    for n,bs in ((50,64),(100,64),(129,64),(7,3)):
        df = pd.DataFrame({'text': [f'w{i}' for i in range(n)]*2, 'label': list(('ab'*n)[:n])*2, 'v': [False]*n+[True]*n})
        dl = ulmfit_dls(df, valid_col='v', path=tmp_path, min_freq=1, bs=bs).clas_fwd.train
        b = [x for x,_ in dl]
        assert sum(map(len, b)) >= n-1 and len({tuple(r) for x in b for r in x.tolist()}) >= n-1 and all(2 <= len(x) <= bs for x in b)
        assert len(dl)==len(b)

def test_encoded_texts_are_those_of_test_dl(dls, df):
    texts = df.text.tolist()[:6]+['', None, 'wholly unheard-of words', 'xxpad', 5]
    for o in (dls.lm_fwd,dls.lm_bwd,dls.clas_fwd,dls.clas_bwd):
        ds,enc = o.test_dl(texts).dataset,text_setup(o).encode(texts)
        assert len(ds)==len(enc)==len(texts) and all(e.dtype==torch.int64 and type(e)==torch.Tensor and e.tolist()==ids_of(ds,i) for i,e in enumerate(enc))
        if isinstance(o.valid, LMDataLoader): continue
        rows = [r[r!=1].tolist() for x in o.test_dl(texts) for r in x[0]]
        assert sorted(rows)==sorted(e.tolist() for e in enc)

@pytest.mark.parametrize('backwards', [False,True])
def test_plain_fastai_dataloaders(df, backwards):
    old = TextDataLoaders.from_df(df, text_col='text', label_col='label', backwards=backwards, bs=4, num_workers=0, seed=0)
    lm  = TextDataLoaders.from_df(df, text_col='text', is_lm=True, backwards=backwards, bs=4, num_workers=0)
    c,l = text_setup(old),text_setup(lm)
    assert c.classes==['neg','pos'] and l.classes is None and c.vocab==list(old.vocab[0]) and l.vocab==list(lm.vocab)
    assert (c.multi,l.multi)==(False,False) and c.backwards==l.backwards==backwards
    assert (c.direction,c.side)==(('backward','bwd') if backwards else ('forward','fwd'))
    texts = df.text.tolist()[:5]
    for o in (old,lm):
        ds,setup = o.test_dl(texts).dataset,text_setup(o)
        enc = setup.encode(texts)
        assert [e.tolist() for e in enc]==[(ds[i][0] if isinstance(ds[i], tuple) else ds[i]).tolist() for i in range(5)] and all(type(e)==torch.Tensor for e in enc)
        assert [e.tolist()[::-1 if backwards else 1] for e in enc]==[e.tolist() for e in setup.processor.encode(texts)]
        assert setup.processor.decode(setup.processor.encode(texts)[0])==' '.join(setup.vocab[i] for i in setup.processor.encode(texts)[0])
    assert c.encode([])==[]

@pytest.mark.parametrize('multi', [False,True])
@pytest.mark.parametrize('backwards', [False,True])
def test_classifier_dls_without_texts(backwards, multi, tmp_path):
    o = clas_dls([], [], ([],[]), proc, ['a','b','c'], multi, backwards, bs=5, bptt=7, path=tmp_path)
    setup = text_setup(o)
    assert len(o.train_ds)==len(o.valid_ds)==0 and o.c==3 and setup.classes==['a','b','c'] and setup.vocab==proc.vocab and o.bs==o.valid.bs==5
    assert setup.backwards==backwards and setup.multi==multi
    assert ('BCE' if multi else 'CrossEntropy') in repr(o.loss_func) and o.path==tmp_path
    c = text_classifier_learner(o, AWD_LSTM, seq_len=7, config=clas_cfg, pretrained=False)
    with c.no_bar():
        assert c.predict('w1 w2')[2].shape==(3,) and c.get_preds(dl=o.test_dl(['w1','w2 w3']*9))[0].shape==(18,3)
        c.export('e.pkl'); assert load_learner(tmp_path/'e.pkl').predict('w3')[2].shape==(3,)
    assert [e.tolist() for e in setup.encode(['w1 w2'])]==[ids_of(o.test_dl(['w1 w2']).dataset, 0)]
    table = pd.DataFrame({'text': ['w1 w2','w3'], 'label': ['b',['c','a'] if multi else 'c']})
    assert [y.tolist() for _,y in o.test_dl(table, with_labels=True).dataset]==([[0,1,0],[1,0,1]] if multi else [1,2])

@pytest.mark.parametrize('backwards', [False,True])
def test_language_model_dls_without_texts(backwards, tmp_path):
    o = lm_dls(np.zeros(0, np.uint16), np.array([0]), 0, proc, backwards, bs=5, bptt=7, path=tmp_path)
    setup = text_setup(o)
    assert len(o.train_ds)==len(o.valid_ds)==0 and setup.vocab==proc.vocab and setup.classes is None and setup.backwards==backwards
    assert len(o.train)==len(list(o.train))==len(o.valid)==0
    l = language_model_learner(o, AWD_LSTM, config=lm_cfg, pretrained=False)
    with l.no_bar():
        assert l.predict('w1 w2', 2).startswith('w1 w2') or backwards
        l.export('e.pkl'); load_learner(tmp_path/'e.pkl').predict('w1', 1, no_bar=True)
    assert o.test_dl(['w1 w2 w3']*30).one_batch()[0].shape==(5,7)

def test_a_loader_of_one_test_text_is_made_of_nothing_else(dls):
    "No batch of ours is read for it, and a validation set without a token to predict has none"
    seen = []
    for o in (dls.lm_fwd,dls.clas_fwd):
        for dl in o.loaders: dl.do_item = lambda *args: seen.append(args)
        o.test_dl(['a cat'])
    assert seen==[]
    dl = lm_dls(np.array([2,3,4], np.uint16), np.array([0,2,3]), 1, proc, bs=2, device='cpu').test_dl(['w1 w2'])
    assert [x.tolist() for x,_ in dl]!=[]

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

@pytest.mark.parametrize('module,names', [
    ('data', 'UlmfitError TextProcessor read_table tokenize_once LMLoader Corpus TextStream held_out tokenize_corpus train_subwords'),
    ('lm', 'bfloat16 CorpusParts finetune_lm load_lm match_vocab pretrain_lm save_lm TimeBudget')])
def test_names_are_where_they_once_were(module, names):
    "They moved to rooms of their own, and can still be imported from here"
    import importlib
    assert not set(names.split()) - set(dir(importlib.import_module(f'ulmfit_ext.{module}')))
