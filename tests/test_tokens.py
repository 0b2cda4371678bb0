"Tokens: rules, tokenizers, the processor, and what is kept of them"
import importlib.util,io,json,pickle,re,subprocess,sys
import numpy as np,pandas as pd,pytest
from fastai.text.all import SpacyTokenizer,compose,defaults,replace_all_caps
from fastcore.test import test_eq
from made_up import make_df
import ulmfit_ext.text.tokens as T
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.text.corpus import train_subwords
from ulmfit_ext.text.tables import sample_table
from ulmfit_ext.text.tokens import Characters,Pieces,TextProcessor,Tokens,Words,as_tokenizer,rules_of,special_tokens,tokenize_once

pytestmark = pytest.mark.usefixtures('strict_warnings')

@pytest.fixture
def df(): return make_df()

def fails(match): return pytest.raises(UlmfitError, match=match)


# ---- rules

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

def test_capitals_rule_is_linear(is_linear):
    for t in ('AB Cd EF-g HI! J', 'ABCd', 'A', ' X1 ', 'IÉ', 'A\nB'): assert T.mark_all_caps(t)==replace_all_caps(t)
    assert is_linear(lambda n: T.mark_all_caps('AB'*n+'a'), 2000)

def test_endless_punctuation_ends(is_linear):
    assert is_linear(lambda n: TextProcessor().tokenize(['1'+'().'*n]), 500)

@pytest.mark.parametrize('mark', [*defaults.text_spec_tok, 'xxfake'])
def test_literal_marks_are_text(mark):
    for t in (f'a {mark} b', mark, mark.upper(), f'({mark})', f'x{mark}', mark.replace('k','\u212a')): 
        toks = TextProcessor().tokenize([t])[0]
        known = {'xxbos'} | ({'xxup','xxmaj','xxrep'} if t != t.lower() or t.startswith('xxx') else set())
        assert not set(toks[1:]) & ({*defaults.text_spec_tok, 'xxfake'} - known), toks

def test_unknown_mark_of_other_corpora(): assert TextProcessor().tokenize(['the <unk> word'])[0]==['xxbos','the','xxunk','word']

def test_marks_are_made_where_they_mean_something():
    def toks(lang, t): return TextProcessor(lang=lang).tokenize([t])[0][1:]
    test_eq(toks('de', 'DAS Haus'), ['xxup','das','xxmaj','haus'])
    test_eq(toks('zh', '看NBA!!!! 好 好 好 好'), ['看','n','b','a','xxrep','4','!'] + ['好']*4)
    test_eq(toks('hi', 'NBA देखो'), ['nba','देखो'])
def rules_cases():
    "Real text, and what the rules are about, at the borders where they could go wrong"
    odd = ['', ' ', 'A', 'A ', ' AB', 'AB\n', 'a  b', 'so so so', 'so so so.', 'so so so-so so so', 'a\nso so so\nso', 'NO NO NO NO', 'x x', 'x x xy',
           '!!!', 'aaab', 'a!!!!b', '...', '....', '# a/b\\c', 'U.S.', 'iPhone', 'MacBook', 'É é', 'ÀB', 'A1', '1A', "O'Neil", 'I am', '\xa0A\xa0B', 'A\u2028B',
           '&amp; &lt; #39; quot; nbsp; #146; #36;', '&amp;lt;', '3 @.@ 5 @-@ x', 'a\\nb', 'say \\"x\\"', '<br />', 'the <unk> one', ' <unk>', 'İ ß ǅ']
    return odd + sample_table().text.tolist()

def test_rules_are_fastais():
    "in every language whose script has capitals, but where a text holds a mark literally"
    rules,theirs = rules_of('en'),compose(*defaults.text_proc_rules)
    for t in rules_cases(): assert rules(t)==theirs(t), t
    assert special_tokens==defaults.text_spec_tok

def test_nothing_of_fastai_is_imported():
    "A process that tokenizes with a saved processor starts without fastai"
    code = """import sys,json
from ulmfit_ext.text.tokens import TextProcessor
assert not {'spacy','torch','pandas'} & {*sys.modules}
tp = TextProcessor.from_dict(json.loads(sys.argv[1]))
assert [o.tolist() for o in tp.encode(['The film', None])]==[[2,3,4,0],[2]] and tp.decode([2,3,4])=='xxbos xxmaj the'
import ulmfit_ext.text.tables
assert len(ulmfit_ext.text.tables.sample_table())==600
print(sorted({'fastai','fastcore','fastprogress'} & {*sys.modules}))"""
    saved = json.dumps(TextProcessor('xxunk xxpad xxbos xxmaj the'.split()).to_dict())
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, saved], capture_output=True, text=True)
    assert res.stdout.strip()=='[]', res


# ---- tokenizers

@pytest.mark.parametrize('lang,match', [('qq','knows no language'), ('english','not a language code'), ('EN','not a language code'), ('en.stop_words','not a language code'), (None,'not a language code'), ('../x','not a'), ('', 'not a')])
def test_unknown_languages(lang, match):
    with fails(match) as e: TextProcessor(lang=lang)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('lang,says', [('en:jieba','not a language code'), ('th:words','xx:chars'), ('EN','not a language code'), ('qq','knows no language'), (None,'not a language code')])
def test_a_language_that_is_not_known(lang, says):
    with pytest.raises(UlmfitError, match=says): TextProcessor(lang=lang)

@pytest.mark.parametrize('lang,module,package', [('ja','sudachipy','sudachipy'), ('th','pythainlp','pythainlp'), ('ko','natto','natto-py'), ('vi','pyvi','pyvi')])
def test_languages_that_need_a_package(lang, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with fails(package) as e: Words(lang)
    assert '\n' not in str(e.value)

def test_a_language_that_needs_a_package_says_which():
    for lang,name in (('th','pythainlp'), ('zh:jieba','jieba')):
        if importlib.util.find_spec(name): continue
        with pytest.raises(UlmfitError, match=f"{name}.*:chars'"): TextProcessor(lang=lang)

def test_chinese():
    tp = TextProcessor(lang='zh')
    assert tp.tokenize(['我 喜欢 <unk> 好!!!!'])==[['xxbos','我','喜','欢','xxunk','好','xxrep','4','!']]
    v = tp.tokenize(['我 喜欢'])[0]
    tp = TextProcessor(['xxunk','xxpad']+v, 'zh')
    assert tp.decode(tp.encode(['我 喜欢'])[0])=='xxbos我喜欢'

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

def test_a_model_of_pieces_that_is_made_anew(tmp_path):
    "A processor keeps the pieces that it was made with, whatever becomes of the file"
    pytest.importorskip('sentencepiece')
    texts = ['the old house on the hill was sold to a young teacher', 'a loud orchestra played in the old hall']*30
    lang  = train_subwords(texts, tmp_path/'p.model', 60)
    old   = TextProcessor(lang=lang)
    was   = old.tokenize(texts[:2])
    assert train_subwords([o[::-1] for o in texts], tmp_path/'p.model', 60)==lang
    new = TextProcessor(lang=lang)
    assert new.tokenize(texts[:2])!=was and old.tokenize(texts[:2])==was
    (tmp_path/'p.model').unlink() # a processor has what it needs
    for o in (old,new): assert TextProcessor.from_dict(json.loads(json.dumps(o.to_dict()))).tokenize(texts)==o.tokenize(texts)==pickle.loads(pickle.dumps(o)).tokenize(texts)

def test_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(Words, 'max_seen', 50)
    words = Words('en')
    a = TextProcessor(lang=words).tokenize([f'w{i} x' for i in range(200)])
    assert 0 < len(words.seen) <= 50 and a[199]==['xxbos','w199','x']


# ---- the processor

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

def test_dtype_of_large_vocabularies():
    tp = TextProcessor(special_tokens + [f'w{i}' for i in range(70_000)])
    assert tp.encode(['w69898'])[0].tolist()==[2,9+69898]
    t = Tokens(['xxbos','w69898'], np.array([0,1]), np.array([0,2]))
    assert t.numericalize(tp)[-1]==9+69898 and t.numericalize(tp).dtype==np.uint32 and t.numericalize(TextProcessor(special_tokens)).dtype==np.uint16


# ---- one pass, kept

def files(p): return sorted((p/'.ulmfit_cache').glob('*'))

def test_each_text_is_tokenized_once(tmp_path, monkeypatch):
    seen = []
    call = Words.__call__
    monkeypatch.setattr(Words, '__call__', lambda self,t: seen.append(t) or call(self, t))
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
    monkeypatch.setattr(T, '_FORMAT', 99)
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
