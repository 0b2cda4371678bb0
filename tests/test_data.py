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


# ---- files

def test_atomic_write_keeps_the_old_file(tmp_path):
    p = tmp_path/'new'/'x.bin'
    with atomic_write(p) as t: t.write_bytes(b'one')
    with pytest.raises(RuntimeError):
        with atomic_write(p) as t: t.write_bytes(b'two'); raise RuntimeError
    assert p.read_bytes()==b'one' and len(list(p.parent.iterdir()))==1

@pytest.mark.parametrize('gz', [False,True])
@pytest.mark.parametrize('kind', ['csv','tsv','jsonl','json','parquet'])
def test_read_table_kinds(tmp_path, kind, gz):
    df = pd.DataFrame({'text': ['NA', 'two\nlines, "q"', 'ü\u2028x'], 'label': [1,0,1]})
    b = {'csv': lambda: df.to_csv(index=False).encode(), 'tsv': lambda: df.to_csv(index=False, sep='\t').encode(),
         'jsonl': lambda: '\n'.join(json.dumps(r) for r in df.to_dict('records')).encode(), 'json': lambda: df.to_json(orient='records').encode(),
         'parquet': lambda: df.to_parquet()}[kind]()
    p = tmp_path/(f'x.{kind}' + '.gz'*gz)
    p.write_bytes(gzip.compress(b) if gz else b)
    got = read_table(p)
    assert got.text.tolist()==df.text.tolist() and got.label.tolist()==df.label.tolist()

def test_read_table_txt(tmp_path):
    (tmp_path/'x.txt').write_text('one\r\n\ntwo\n')
    assert read_table(tmp_path/'x.txt').text.tolist()==['one','two']

@pytest.mark.parametrize('name,content,match', [
    ('a.csv', b'', 'is empty'), ('a.csv', b' \n ', 'is empty'), ('a.csv', b'text,label\n', 'no rows'), ('a.xlsx', b'x', 'cannot tell'), ('a', b'x', 'cannot tell'),
    ('a.csv', 'text\nü'.encode('latin1'), 'not UTF-8'), ('a.csv', b'a,b\n1,2\n1,2,3\n', 'line 3'), ('a.jsonl', b'{"a":1}\n{"a":\n', 'line 2'),
    ('a.jsonl', b'[1]\n', 'line 1'), ('a.json', b'3', 'list of objects'), ('a.json', b'{"a": 1', 'cannot read'), ('a.json', b'{"a": 1}', 'cannot read'), ('a.json', b'['*100000, 'cannot read'),
    ('a.parquet', b'PAR1 no', 'cannot read'), ('a.csv.gz', b'not gzip', 'cannot read'), ('a.csv.gz', gzip.compress(b'text\na\n'*99)[:30], 'cannot read'), ('a.csv.gz', b'', 'cannot read|empty')])
def test_read_table_says_what_is_wrong(tmp_path, name, content, match):
    (tmp_path/name).write_bytes(content)
    with fails(match) as e: read_table(tmp_path/name)
    assert '\n' not in str(e.value) and name in str(e.value)

@pytest.mark.parametrize('lines', ['text,label\nI liked it, really,pos\nbad, very,neg\n', 'text,label\ngood film,pos,\nbad film,neg,\n'])
def test_rows_with_more_fields_than_the_header(tmp_path, lines):
    "pandas would take the first of them for the name of the row, and half a text would be lost"
    (tmp_path/'a.csv').write_text(lines)
    with fails('a.csv.*more fields than its header \\(text, label\\)'): read_table(tmp_path/'a.csv')
    with fails('more fields than its header'): list(TextStream(tmp_path/'a.csv'))

@pytest.mark.parametrize('cells,want', [(['007','7'], ['007','7']), (['1.50','2'], ['1.50','2']), (['true','false'], ['true','false']), (['True','False'], [True,False]), (['10','9'], [10,9]),
    (['0.5','-1e-07'], [.5,-1e-7]), (['12345678901234567',''], [12345678901234567,None]), (['1.5',''], [1.5,None]), (['nan','1.5'], ['nan','1.5']), (['inf','-inf'], ['inf','-inf']), (['1_0','2'], ['1_0','2']),
    (['123456789012345678901234567890','1'], ['123456789012345678901234567890','1']), (['NA','x'], ['NA','x'])])
def test_cells_are_as_they_are_written(tmp_path, cells, want):
    "Numbers only where all of a column would be written just so again; whole numbers stay whole beside a gap"
    (tmp_path/'a.csv').write_text('text,x\n' + ''.join(f't,{o}\n' for o in cells))
    got = read_table(tmp_path/'a.csv')
    assert [None if pd.isna(o) else o for o in got.x.tolist()]==want
    if None not in want or isinstance(want[0], int): assert read_table(tmp_path/'a.csv').to_csv(index=False)==(tmp_path/'a.csv').read_text()

def test_whole_numbers_beside_a_gap_in_json(tmp_path):
    rows = [dict(text='a', id=12345678901234567, x=1.5), dict(text='b', x=2.), dict(text='c', id=3)]
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    got = read_table(tmp_path/'a.jsonl')
    assert [None if pd.isna(o) else o for o in got.id.tolist()]==[12345678901234567,None,3] and got.x.dtype==float

def test_read_table_missing(tmp_path):
    with fails('no file'): read_table(tmp_path/'no.csv')
    with fails('no file'): read_table(tmp_path.parent/f'{tmp_path.name}.csv')


# ---- text

def fastai_tokens(t, lang='en'): return [o.replace(' ', '▁') for o in next(iter(SpacyTokenizer(lang)([compose(*defaults.text_proc_rules)(t)])))]

@pytest.mark.parametrize('t', ["Don't STOP!!! The U.K. isn't  far;\n\n it's 3.5km (or so).", 'http://a.org/b?c=1&amp;d=2 #fun :-) <br /> so so so much', 'a\tb\n  c \n\n\n d   ',
    "we'll e.g. see... I'M 10km/h at 5pm, \"quoted\" 'single' a/b\\c", '', '   ', '...', 'ÜBER Straße', '日本語 text', "'", ':)', 'a :) b', 'e.g', 'x' * 50 + '!', 'I.B.M. U S A', 'A', 'i AM'])
@pytest.mark.parametrize('lang', ['en','de','es','ru','xx','fr'])
def test_tokens_are_fastais(t, lang): assert TextProcessor(lang=lang).tokenize([t])[0]==fastai_tokens(t, lang)

def test_line_ends_of_windows():
    p = TextProcessor()
    assert p.tokenize(['one line\r\nnext\rlast'])==p.tokenize(['one line\nnext\nlast'])

def test_tokens_of_rules_with_spaces():
    for lang,t in (('es','los ee. uu. y'), ('ru','в т.ч. и др. вед. науч. сотр. он'), ('id', 'dr. iur. x')): assert TextProcessor(lang=lang).tokenize([t])[0]==fastai_tokens(t, lang)

def test_capitals_rule_is_linear():
    for t in ('AB Cd EF-g HI! J', 'ABCd', 'A', ' X1 ', 'IÉ', 'A\nB'): assert D.all_caps(t)==replace_all_caps(t)
    t0 = time.time(); D.all_caps('AB'*100_000+'a')
    assert time.time()-t0 < 1

def test_endless_punctuation_ends():
    t0 = time.time(); TextProcessor().tokenize(['().'*30_000])
    assert time.time()-t0 < 20

@pytest.mark.parametrize('mark', [*defaults.text_spec_tok, 'xxfake'])
def test_literal_marks_are_text(mark):
    for t in (f'a {mark} b', mark, mark.upper(), f'({mark})', f'x{mark}', mark.replace('k','\u212a')): 
        toks = TextProcessor().tokenize([t])[0]
        known = {'xxbos'} | ({'xxup','xxmaj','xxrep'} if t != t.lower() or t.startswith('xxx') else set())
        assert not set(toks[1:]) & ({*defaults.text_spec_tok, 'xxfake'} - known), toks

def test_unknown_mark_of_other_corpora(): assert TextProcessor().tokenize(['the <unk> word'])[0]==['xxbos','the','xxunk','word']

def test_odd_texts():
    tp = TextProcessor('xxunk xxpad xxbos 3 . 5'.split())
    got = tp.tokenize([None, float('nan'), pd.NA, 3, np.float64(3.5), b'caf\xc3\xa9', 'a\x00b\x07c', '\ud83d\ude00', 'x \ud83d y', True])
    assert got[0]==got[1]==got[2]==['xxbos'] and got[3]==['xxbos','3'] and got[4]==['xxbos','3.5'] and got[5]==['xxbos','café']
    assert got[6]==['xxbos','a','b','c'] and got[7]==['xxbos','😀'] and got[8]==['xxbos','x','\ufffd','y']
    for o in got: '\n'.join(o).encode()
    for bad in ([['a','list']], [{'a':1}]):
        with fails('join its parts'): tp.tokenize(bad)
    with fails('write .text.'): tp.encode('text')
    with fails('DataFrame'): tp.encode(pd.DataFrame({'text': ['a']}))
    assert tp.tokenize([])==[] and tp.encode([])==[]
    assert [o.tolist() for o in tp.encode(['quite unheard', ''])]==[[2,0,0],[2]]

@pytest.mark.parametrize('lang,match', [('qq','knows no language'), ('english','not a language code'), ('EN','not a language code'), ('en.stop_words','not a language code'), (None,'not a language code'), ('../x','not a'), ('', 'not a')])
def test_unknown_languages(lang, match):
    with fails(match) as e: TextProcessor(lang=lang)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('lang,module,package', [('ja','sudachipy','sudachipy'), ('th','pythainlp','pythainlp'), ('ko','natto','natto-py'), ('vi','pyvi','pyvi')])
def test_languages_that_need_a_package(lang, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    D._splitter_of.cache_clear()
    with fails(package) as e: TextProcessor(lang=lang)
    assert '\n' not in str(e.value)

def test_chinese():
    tp = TextProcessor(lang='zh')
    assert tp.tokenize(['我 喜欢 <unk> 好!!!!'])==[['xxbos','我','喜','欢','xxunk','好','xxrep','4','!']]
    v = tp.tokenize(['我 喜欢'])[0]
    tp = TextProcessor(['xxunk','xxpad']+v, 'zh')
    assert tp.decode(tp.encode(['我 喜欢'])[0])=='xxbos我喜欢'

def test_processor_as_json():
    tp = TextProcessor(['xxunk','xxpad','xxbos','é','\u2028','"'], 'de')
    d = json.loads(json.dumps(tp.to_dict()))
    tp2 = TextProcessor.from_dict(d)
    assert tp2.vocab==tp.vocab and tp2.lang=='de' and tp2.encode(['é ö'])[0].tolist()==tp.encode(['é ö'])[0].tolist()==[2,3,0]
    assert pickle.loads(pickle.dumps(tp)).encode(['é'])[0].tolist()==[2,3]
    for bad in ({}, [], None, {**d, 'format': 99}, {**d, 'vocab': 'abc'}, {**d, 'vocab': [1,2]}, {**d, 'lang': 'os.path'}, {**d, 'vocab': ['a','b']}):
        with pytest.raises(UlmfitError): TextProcessor.from_dict(bad)
    with pytest.warns(UserWarning, match='spacy==2.0.1'): TextProcessor.from_dict({**d, 'spacy': '2.0.1'})

def test_vocab_needs_padding_as_id_1():
    with fails('put them first'): TextProcessor(['a','b','c'])
    with fails('no vocabulary'): TextProcessor().encode(['a'])

def test_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(D._Splitter, 'max_size', 50)
    D._splitter_of.cache_clear()
    tp = TextProcessor()
    a = tp.tokenize([f'w{i} x' for i in range(200)])
    assert len(D._splitter('en')) <= 50 and a[199]==['xxbos','w199','x']


# ---- one pass, kept

def files(p): return sorted((p/'.ulmfit_cache').glob('*'))

def test_each_text_is_tokenized_once(tmp_path, monkeypatch):
    seen = []
    call = D._Splitter.__call__
    monkeypatch.setattr(D._Splitter, '__call__', lambda self,t: seen.append(t) or call(self, t))
    df = pd.concat([make_df(40)]*2, ignore_index=True)
    dls = ulmfit_dls(df, path=tmp_path, seed=0, unlabelled=df.text.tolist()+['one more'], min_freq=1, bs=4)
    for o in (dls.lm_fwd,dls.lm_bwd,dls.clas_fwd,dls.clas_bwd): [b for dl in o for b in dl]
    assert len(seen)==len(set(df.text))+1
    again = ulmfit_dls(df.sample(frac=1, random_state=0), path=tmp_path, unlabelled=['one more'], seed=5, min_freq=1)
    assert again.cache_hit and not dls.cache_hit and len(seen)==len(set(df.text))+1 and len(files(tmp_path))==1

def test_cache_key(tmp_path, monkeypatch):
    assert not tokenize_once(['a b','c'], path=tmp_path).cache_hit
    assert tokenize_once(['c','a b','c'], path=tmp_path).cache_hit
    assert not tokenize_once(['a','b c'], path=tmp_path).cache_hit
    assert not tokenize_once(['a b','c'], 'de', path=tmp_path).cache_hit
    monkeypatch.setattr(D, '_FORMAT', 99)
    assert not tokenize_once(['a b','c'], path=tmp_path).cache_hit
    import spacy
    monkeypatch.setattr(spacy, '__version__', '3.99.0')
    assert not tokenize_once(['a b','c'], path=tmp_path).cache_hit

def test_tokens_hold_any_text(tmp_path):
    texts = ['a\x00b', '\ud800', 'line\n\n\nend', ' ', None, 'ü ' * 3, '\u2028']
    a,b = (tokenize_once(texts, path=tmp_path) for _ in range(2))
    assert b.cache_hit and list(a)==list(b)==TextProcessor().tokenize(texts)
    with np.load(files(tmp_path)[0], allow_pickle=False) as d: assert set(d)=={'table','ids','offs'}

def test_no_texts(tmp_path): assert len(tokenize_once([], path=tmp_path))==0 and len(tokenize_once([], path=tmp_path))==0

def _npz(**k): b = io.BytesIO(); np.savez(b, **k); return b.getvalue()
@pytest.mark.parametrize('harm', [lambda b: b[:len(b)//2], lambda b: b[:-1], lambda b: b'', lambda b: b'garbage', lambda b: b[:200]+bytes([b[200]^255])+b[201:],
    lambda b: _npz(table=np.frombuffer(b'a', np.uint8), ids=np.array([0,9]), offs=np.array([0,1,2])), lambda b: _npz(ids=np.array([0])),
    lambda b: _npz(table=np.frombuffer(b'a', np.uint8), ids=np.array([0]), offs=np.array([0,1])),
    lambda b: _npz(table=np.array([{}], object), ids=np.array([0]), offs=np.array([0,1])), lambda b: _npz(table=np.frombuffer(b'\xff', np.uint8), ids=np.array([0,0]), offs=np.array([0,1,2])),
    lambda b: _npz(table=np.frombuffer(b'a', np.uint8), ids=np.array([0.5,0]), offs=np.array([0,1,2]))])
def test_broken_cache_is_rebuilt(tmp_path, harm):
    a = tokenize_once(['a b','c'], path=tmp_path)
    f, = files(tmp_path)
    f.write_bytes(harm(f.read_bytes()))
    with pytest.warns(UserWarning, match='broken'): b = tokenize_once(['a b','c'], path=tmp_path)
    assert not b.cache_hit and list(a)==list(b) and tokenize_once(['a b','c'], path=tmp_path).cache_hit

def test_unwritable_path(tmp_path, df):
    (tmp_path/'file').write_text('')
    with fails('cannot write to .*file.*cache=False'): ulmfit_dls(df, path=tmp_path/'file')
    assert not ulmfit_dls(df, path=tmp_path/'file', cache=False).cache_hit

def test_full_disk(tmp_path, monkeypatch):
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'savez', full)
    with pytest.warns(UserWarning, match='No space'): assert len(tokenize_once(['a'], path=tmp_path))==1
    assert files(tmp_path)==[]

def test_cache_false_touches_nothing(tmp_path, df):
    ulmfit_dls(df, path=tmp_path, cache=False, min_freq=1)
    assert list(tmp_path.iterdir())==[]


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

def test_split_is_stratified_seeded_and_leaves_the_generators_alone(tmp_path):
    df = pd.DataFrame({'text': [f'text {i}' for i in range(200)], 'label': ['a']*150+['b']*40+['c']*10})
    s1,s2,s3 = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state()
    d = ulmfit_dls(df, path=tmp_path, seed=3, min_freq=1)
    d.lm_fwd,d.lm_bwd,d.clas_fwd,d.clas_bwd
    assert random.getstate()==s1 and np.random.get_state()[1].tolist()==s2 and torch.equal(torch.get_rng_state(), s3)
    assert df.label.iloc[d.valid_idx].value_counts().to_dict()=={'a':30,'b':8,'c':2}
    assert set(d.train_idx)|set(d.valid_idx)==set(range(200)) and not set(d.train_idx)&set(d.valid_idx)
    assert (ulmfit_dls(df, path=tmp_path, seed=3, min_freq=1).valid_idx==d.valid_idx).all()
    assert not np.array_equal(ulmfit_dls(df, path=tmp_path, seed=4, min_freq=1).valid_idx, d.valid_idx)
    assert not np.array_equal(*(ulmfit_dls(df, path=tmp_path, min_freq=1).valid_idx for _ in range(2)))

@pytest.mark.parametrize('pct', [0,1,-.1,1.5,0.])
def test_split_needs_two_sides(df, tmp_path, pct):
    with fails('valid_pct'): ulmfit_dls(df, path=tmp_path, valid_pct=pct)

def test_tiny_tables(tmp_path):
    with pytest.warns(UserWarning, match='one row'): d = ulmfit_dls(pd.DataFrame({'text': ['a a a','b','a b'], 'label': [0,1,0]}), path=tmp_path, min_freq=1)
    assert len(d.valid_idx)==1 and d.valid_idx[0] in (0,2) and d.classes==['0','1']
    for o in (d.lm_fwd,d.clas_fwd): assert len([b for dl in o for b in dl]) >= 2
    with fails('two'): ulmfit_dls(pd.DataFrame({'text': ['a']}), label_col=None, path=tmp_path)

def test_valid_col(df, tmp_path):
    want = np.arange(len(df))%3==0
    for flags in (want, want.astype(int), want.astype(str), want.astype(float), np.where(want, 'yes', 'no')):
        d = ulmfit_dls(df.assign(v=flags), path=tmp_path, valid_col='v', min_freq=1)
        assert (d.valid_idx==np.flatnonzero(want)).all()
    with fails("no column 'is_vald'.*'is_valid'"): ulmfit_dls(df.assign(is_valid=want), path=tmp_path, valid_col='is_vald')
    with fails('in every labelled row'): ulmfit_dls(df.assign(v=False), path=tmp_path, valid_col='v')
    with fails('in every labelled row'): ulmfit_dls(df.assign(v=True), path=tmp_path, valid_col='v')
    with fails("'test' in row 1"): ulmfit_dls(df.assign(v=['true','test']*30), path=tmp_path, valid_col='v')
    with fails("'' in row 0"): ulmfit_dls(df.assign(v=[None]+[True,False]*29+[True]), path=tmp_path, valid_col='v')

def test_class_only_in_validation(df, tmp_path):
    df.loc[5,'label'] = 'rare'
    with pytest.warns(UserWarning, match='no training row .rare'): d = ulmfit_dls(df.assign(v=df.index<20), path=tmp_path, valid_col='v', min_freq=1)
    assert d.classes==['neg','pos','rare'] and d.clas_fwd.c==3 and len([b for b in d.clas_fwd.valid])==1

def test_class_with_one_row(df, tmp_path):
    df.loc[5,'label'] = 'rare'
    for seed in range(5):
        with pytest.warns(UserWarning, match='one row only .rare'): d = ulmfit_dls(df, path=tmp_path, seed=seed, valid_pct=.5, min_freq=1)
        assert 5 in d.train_idx

def test_labels_become_strings(tmp_path):
    for labels,classes in (([10,2]*6, ['2','10']), ([1.,0.]*6, ['0','1']), ([True,False]*6, ['False','True']), (['b','a']*6, ['a','b']), ([' b','b ']*5+['a']*2, ['a','b']),
                           (['\ud800x\x00','y']*6, ['y','\ufffdx ']), (pd.Categorical(['u','v']*6, categories=['v','u','never']), ['u','v'])):
        d = ulmfit_dls(pd.DataFrame({'text': [f'text {i}' for i in range(12)], 'label': pd.Series(labels, dtype=object) if isinstance(labels, list) else labels}), path=tmp_path, min_freq=1, seed=0)
        assert d.classes==classes and class_vocab(d.clas_fwd)==classes and json.loads(json.dumps(d.classes))==classes

def test_missing_labels_join_the_unlabelled(df, tmp_path):
    for none in (None, float('nan'), '', ' '):
        part = df.copy(); part['label'] = part.label.astype(object); part.loc[[3,8],'label'] = none
        with pytest.warns(UserWarning, match='2 of 60 rows have no label .rows 3, 8'): d = ulmfit_dls(part, path=tmp_path, min_freq=1, seed=0)
        assert d.n_unlabelled==2 and len(d.clas_fwd.train_ds)+len(d.clas_fwd.valid_ds)==58 and len(d.lm_fwd.train_ds)+len(d.lm_fwd.valid_ds)==60

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

@pytest.mark.parametrize('change,kw,match', [
    (lambda d: d.rename(columns={'text':'Text'}), {}, "no column 'text'.*'Text'"), (lambda d: d.drop(columns='label'), {}, "no column 'label'"),
    (lambda d: d.iloc[:0], {}, 'no rows'), (lambda d: d.assign(text=' '), {}, 'every text'), (lambda d: d.assign(text=None), {}, 'every text'),
    (lambda d: d.assign(label='same'), {}, "only the class 'same'"), (lambda d: d.assign(label=None), {}, 'no label in any row'),
    (lambda d: d.assign(label=range(len(d))), {}, 'no label occurs twice'), (lambda d: pd.concat([d,d.text], axis=1), {}, '2 columns are called'),
    (lambda d: d, dict(text_col=['text']), 'no column'), (lambda d: d.assign(text=[['a','b']]*60), {}, 'join its parts'), (lambda d: [1,2], {}, 'DataFrame or the path'),
    (lambda d: d, dict(lang='qq'), 'knows no language'), (lambda d: 'nowhere.csv', {}, 'no file'), (lambda d: d.assign(label=[[]]*60), {}, 'no classes')])
def test_bad_input_is_named(df, tmp_path, change, kw, match):
    with fails(match) as e: ulmfit_dls(change(df), path=tmp_path, **kw)
    assert '\n' not in str(e.value)

def test_missing_texts_are_empty(df, tmp_path):
    df.loc[[2,4,50],'text'] = None
    with pytest.warns(UserWarning, match='3 of 60 texts.*rows 2, 4, 50') as w: d = ulmfit_dls(df, path=tmp_path, min_freq=1, seed=0)
    assert len(w)==1
    for o in (d.lm_fwd,d.clas_bwd): [b for dl in o for b in dl]

def test_numbers_as_texts(tmp_path):
    d = ulmfit_dls(pd.DataFrame({'text': [12,3.5,'x','y']*5, 'label': list('ab')*10}), path=tmp_path, min_freq=1)
    assert {'12','3.5'} <= set(d.vocab)

def test_odd_columns_and_index(df, tmp_path):
    df.columns = [0, ('a',1)]
    d = ulmfit_dls(df.set_index(pd.Index(['x']*60)), text_col=0, label_col=('a',1), path=tmp_path, min_freq=1)
    assert d.classes==['neg','pos']
    with fails("no column 'text'.*0"): ulmfit_dls(df, path=tmp_path)

def test_broken_characters(df, tmp_path, capsys):
    df['text'] = df.text.astype(object)
    df.loc[0,'text'],df.loc[1,'text'] = 'good \ud800 \x00 text','\udfff'*5
    d = ulmfit_dls(df, path=tmp_path, min_freq=1, seed=0, bs=60)
    assert ulmfit_dls(df, path=tmp_path, min_freq=1, seed=0).cache_hit
    d.clas_fwd.show_batch(max_n=60); print(d.vocab, d); '\n'.join(d.vocab).encode()
    c = text_classifier_learner(d.clas_fwd, AWD_LSTM, config=clas_cfg, pretrained=False, path=tmp_path)
    with c.no_bar(): c.predict('\ud800')

def test_surrogates_in_json(tmp_path):
    (tmp_path/'a.jsonl').write_text('\n'.join(json.dumps({'text': t, 'label': l}) for t,l in [('a \ud800','x'),('b \udc00','y')]*4))
    assert 'a' in ulmfit_dls(tmp_path/'a.jsonl', path=tmp_path, min_freq=1).vocab

def test_frame_is_left_alone(df, tmp_path):
    old = df.copy(deep=True)
    d = ulmfit_dls(df, path=tmp_path, min_freq=1); d.lm_fwd,d.clas_fwd
    pd.testing.assert_frame_equal(df, old)

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

def test_dtype_of_large_vocabularies():
    tp = TextProcessor(defaults.text_spec_tok + [f'w{i}' for i in range(70_000)])
    assert tp.encode(['w69898'])[0].tolist()==[2,9+69898]
    t = Tokens(['xxbos','w69898'], np.array([0,1]), np.array([0,2]))
    assert t.numericalize(tp)[-1]==9+69898 and t.numericalize(tp).dtype==np.uint32 and t.numericalize(proc).dtype==np.uint16

def test_equally_frequent_words_are_in_alphabetical_order(tmp_path):
    df = pd.DataFrame({'text': ['zebra yak apple', 'mole apple zebra yak mole']*2, 'label': ['a','b']*2})
    v = [ulmfit_dls(o, path=tmp_path, min_freq=1, valid_pct=.5, seed=0).vocab for o in (df, df[::-1])]
    assert v[0]==v[1] and v[0][9:13]==['apple','mole','yak','zebra']

def test_tokens_take_16_bits_where_that_is_enough(tmp_path):
    few,many = (Tokens([f'w{i}' for i in range(n)], np.arange(n, dtype=np.int32), np.array([0,n])) for n in (2**16,2**16+1))
    for t,dtype in ((few,np.uint16),(many,np.int32)):
        t.save(tmp_path/'t.npz')
        with np.load(tmp_path/'t.npz') as d: assert d['ids'].dtype==dtype
        u = Tokens.load(tmp_path/'t.npz')
        assert u.ids.dtype==np.int32 and (u.ids==t.ids).all() and u.table==t.table

def test_tokens_kept_by_an_earlier_version_are_read(tmp_path):
    "which had 32 bits a token"
    a = tokenize_once(['a b','c'], path=tmp_path)
    f, = files(tmp_path)
    with np.load(f) as d: old = dict(d) | {'ids': d['ids'].astype(np.int32)}
    np.savez(f, **old)
    b = tokenize_once(['a b','c'], path=tmp_path)
    assert b.cache_hit and list(a)==list(b)

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

def test_characters_are_tokens_of_any_language():
    "No spaCy pipeline, no marks, nothing lost but runs of white space"
    for lang,t in (('th:chars','ผมชอบ หนัง\n\nเรื่องนี้'), ('xx:chars','Ĝis  revido!!!! XXPAD'), ('ja:chars','この映画が好き')):
        p = TextProcessor(lang=lang)
        toks, = p.tokenize([t])
        test_eq(toks[0], 'xxbos')
        assert all(len(o)==1 for o in toks[1:])
        vocab = ['xxunk','xxpad'] + sorted(set(toks))
        back = TextProcessor.from_dict(json.loads(json.dumps(TextProcessor(vocab, lang).to_dict())))
        test_eq(back.decode(back.encode([t])[0][1:]), re.sub('XX', 'XX ', re.sub(r'\s+', ' ', t)))

def test_marks_are_made_where_they_mean_something():
    def toks(lang, t): return TextProcessor(lang=lang).tokenize([t])[0][1:]
    test_eq(toks('de', 'DAS Haus'), ['xxup','das','xxmaj','haus'])
    test_eq(toks('zh', '看NBA!!!! 好 好 好 好'), ['看','n','b','a','xxrep','4','!'] + ['好']*4)
    test_eq(toks('hi', 'NBA देखो'), ['nba','देखो'])

@pytest.mark.parametrize('lang,says', [('en:jieba','not a language code'), ('th:words','xx:chars'), ('EN','not a language code'), ('qq','knows no language'), (None,'not a language code')])
def test_a_language_that_is_not_known(lang, says):
    with pytest.raises(UlmfitError, match=says): TextProcessor(lang=lang)

def test_a_language_that_needs_a_package_says_which():
    for lang,name in (('th','pythainlp'), ('zh:jieba','jieba')):
        if importlib.util.find_spec(name): continue
        with pytest.raises(UlmfitError, match=f"{name}.*:chars'"): TextProcessor(lang=lang)

def test_a_model_of_pieces_that_is_made_anew(tmp_path):
    "A processor keeps the pieces that it was made with, whatever becomes of the file"
    pytest.importorskip('sentencepiece')
    texts = ['the old house on the hill was sold to a young teacher', 'a loud orchestra played in the old hall']*30
    lang  = D.train_subwords(texts, tmp_path/'p.model', 60)
    old   = TextProcessor(lang=lang)
    was   = old.tokenize(texts[:2])
    assert D.train_subwords([o[::-1] for o in texts], tmp_path/'p.model', 60)==lang
    new = TextProcessor(lang=lang)
    assert new.tokenize(texts[:2])!=was and old.tokenize(texts[:2])==was
    (tmp_path/'p.model').unlink() # a processor has what it needs
    for o in (old,new): assert TextProcessor.from_dict(json.loads(json.dumps(o.to_dict()))).tokenize(texts)==o.tokenize(texts)==pickle.loads(pickle.dumps(o)).tokenize(texts)

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

def test_a_split_that_leaves_one_row(tmp_path):
    df = make_df()
    df['valid'] = [i>0 for i in range(len(df))]
    with fails('leaves one labelled row'): ulmfit_dls(df, path=tmp_path, valid_col='valid')
    with fails('bptt is 0'): ulmfit_dls(df, path=tmp_path, bptt=0)
