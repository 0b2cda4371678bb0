"A corpus of any size: read as a stream, tokenized by blocks, walked on disk"
import gzip,io,itertools,json,math,multiprocessing,os,re,signal,subprocess,sys,time,tracemalloc,warnings
from contextlib import nullcontext
from pathlib import Path
import numpy as np,pandas as pd,pytest,torch
from fastai.text.all import AWD_LSTM,awd_lstm_lm_config,defaults,language_model_learner,load_learner,make_vocab
from made_up import make_texts,words
import ulmfit_ext.text.corpus as C
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.runs import sweep
from ulmfit_ext.text.corpus import TextStream,held_out,tokenize_corpus,train_subwords
from ulmfit_ext.text.loaders import lm_dls
from ulmfit_ext.text.tables import read_table
from ulmfit_ext.text.tokens import TextProcessor,Tokens,tokenize_once

root = Path(__file__).resolve().parent.parent
odd   = ['NA', 'two\nlines, "q"', 'ü\u2028x', 'a\tb', '1.50', '007', '  x ', 'null']

pytestmark = pytest.mark.usefixtures('strict_warnings')

def fails(match): return pytest.raises(UlmfitError, match=match)
def build(texts, path, workers=1, block_size=500, **kwargs):
    "Tokenize in blocks so small that there are many"
    return tokenize_corpus(texts, path=path, workers=workers, block_size=block_size, progress=False, **kwargs)

def cache(path): return path/'.ulmfit_cache'/'corpus'
def shards(path):
    "When each shard was written"
    return {o.name: o.stat().st_mtime_ns for o in cache(path).glob('*.npz') if o.name[0]!='.'}
def made(path, before):
    "How many shards were written since there were those `before`"
    return len(shards(path).items()-before.items())

def as_bytes(texts, kind):
    df = pd.DataFrame({'n': range(len(texts)), 'text': texts})
    b = io.BytesIO()
    if kind=='parquet': df.to_parquet(b, row_group_size=max(1, len(df)//16))
    return {'csv': lambda: df.to_csv(index=False).encode(), 'tsv': lambda: df.to_csv(index=False, sep='\t').encode(), 'txt': lambda: '\n\n'.join(texts).encode(),
            'jsonl': lambda: '\n'.join(json.dumps(r) for r in df.to_dict('records')).encode(), 'json': lambda: df.to_json(orient='records').encode(),
            'parquet': b.getvalue}[kind]()

def write(path, texts):
    name = path.name.removesuffix('.gz')
    b = as_bytes(texts, name.rpartition('.')[2])
    path.write_bytes(gzip.compress(b) if path.name!=name else b)
    return path


# ---- documents

@pytest.mark.parametrize('gz', ['','.gz'])
@pytest.mark.parametrize('kind', ['csv','tsv','jsonl','json','parquet','txt'])
def test_formats(tmp_path, kind, gz):
    "Each gives the documents as they were written, without those that hold no word"
    if kind=='parquet': pytest.importorskip('pyarrow')
    texts = [o for o in odd if kind!='txt' or not o.isspace()]
    f = write(tmp_path/f'x.{kind}{gz}', ['', *texts[:3], ' \n ' if kind!='txt' else ' ', *texts[3:]])
    for o in (f, str(f)): assert list(TextStream(o))==texts
    assert list(TextStream(f, max_docs=3))==texts[:3]
    s = TextStream(f)
    assert list(s)==list(s), 'it can be read again'

def test_in_memory():
    for o in (odd, tuple(odd), (t for t in odd), pd.Series(odd), np.array(odd, object), pd.DataFrame({'text': odd})): assert list(TextStream(o))==odd
    assert list(TextStream(pd.DataFrame({'body': odd}), 'body'))==odd
    assert list(TextStream([None, float('nan'), 3, b'x', '', 'y']))==['3','x','y']

@pytest.mark.parametrize('seed', range(5))
def test_paragraphs_of_a_text_file(tmp_path, seed):
    "Documents are what lies between blank lines, as a regular expression over the whole file would find them"
    rng = np.random.default_rng(seed)
    for start in ('', '\na', ' \na', '\n\na'):
        text = start+''.join(rng.choice(['a', 'b c', '\n', '\n', ' ', '\t', '\n\n', '\u3000'], 300))
        (tmp_path/'x.txt').write_text(text)
        assert list(TextStream(tmp_path/'x.txt'))==[o for o in re.split(r'\n\s*\n', text) if o.strip()]

def test_line_ends_and_marks_of_other_systems(tmp_path):
    (tmp_path/'x.txt').write_bytes(b'\xef\xbb\xbfone\r\nline\r\n\r\ntwo \xff')
    with pytest.warns(UserWarning, match='not UTF-8'): assert list(TextStream(tmp_path/'x.txt'))==['one\nline','two \ufffd']
    (tmp_path/'x.jsonl').write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
    assert list(TextStream(tmp_path/'x.jsonl'))==['one','two']

def test_tables_of_other_kinds_are_read(tmp_path):
    "As by `read_table`: what separates their fields, and how they are encoded, is found out and said"
    (tmp_path/'a.csv').write_bytes('text;n\ncafé;1\nnaïve;2\n'.encode('latin-1'))
    with pytest.warns(UserWarning, match="Latin-1.*separator ';'"): assert list(TextStream(tmp_path/'a.csv'))==['café','naïve']
    (tmp_path/'a.ndjson').write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(TextStream(tmp_path/'a.ndjson'))==['one','two']

@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-be', 'utf-16-le'])
@pytest.mark.parametrize('name', ['x.txt', 'x.txt.gz'])
def test_utf_16_is_named(tmp_path, name, encoding):
    data = ('\ufeff' if encoding.endswith('be') else '').encode(encoding) + 'one text'.encode(encoding)
    (tmp_path/name).write_bytes(gzip.compress(data) if name.endswith('gz') else data)
    for corpus in (tmp_path/name, tmp_path):
        with pytest.raises(UlmfitError, match=f'{name}.*looks like UTF-16: save it as UTF-8'): list(TextStream(corpus))
    with pytest.warns(UserWarning, match='UTF-16'): assert read_table(tmp_path/name).text[0].endswith('one text')

def test_a_text_file_without_blank_lines_is_cut(tmp_path):
    "A document of a text file has 16 million characters, or a line more"
    n,text = 2**24,'\n'.join([' '.join(words*20)]*20_000)
    (tmp_path/'x.txt').write_text(text)
    assert len(text)>2*n
    for o in (tmp_path/'x.txt', tmp_path):
        with pytest.warns(UserWarning, match='without a blank line') if o.is_file() else nullcontext(): docs = list(TextStream(o))
        assert ''.join(docs)==text and max(map(len, docs)) < n+5000 and len(docs)==math.ceil(len(text)/n)

def test_folder(tmp_path):
    "A document a .txt file; the rows of the tables only where there is no .txt"
    write(tmp_path/'t.jsonl', ['three','four'])
    write(tmp_path/'u.csv.gz', ['five'])
    assert list(TextStream(tmp_path))==['three','four','five']
    (tmp_path/'sub').mkdir()
    (tmp_path/'sub'/'b.TXT').write_text('two\n\nparagraphs\n')
    (tmp_path/'a.txt.gz').write_bytes(gzip.compress(b'one'))
    (tmp_path/'.hidden.txt').write_text('no'); (tmp_path/'.git').mkdir(); (tmp_path/'.git'/'x.txt').write_text('no'); (tmp_path/'x.bin').write_bytes(b'\0')
    with pytest.warns(UserWarning, match='2 tables there are not read .t.jsonl, u.csv.gz'): assert list(TextStream(tmp_path))==['one','two\n\nparagraphs\n']

def test_rows_of_json_without_the_column(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"id": 1}\n{"text": null}\n{"text": "x"}\n{"text": 5}\n')
    assert list(TextStream(tmp_path/'a.jsonl'))==['x','5']

@pytest.mark.parametrize('kind', ['csv','jsonl','txt','csv.gz','jsonl.gz','txt.gz'])
def test_files_are_read_as_streams(tmp_path, kind):
    "The first document is there before most of the file has been read, and the share read is known"
    f = write(tmp_path/f'x.{kind}', [' '.join(o) for o in np.random.default_rng(0).integers(0, 10**6, (20_000, 20)).astype(str)])
    s = TextStream(f)
    it = iter(s)
    next(it)
    assert f.stat().st_size > 1_000_000 and s.pct < .3
    pcts = [s.pct for _ in it]
    assert pcts==sorted(pcts) and pcts[-1]>.9

def test_parquet_is_read_by_row_groups(tmp_path):
    pa = pytest.importorskip('pyarrow')
    f = write(tmp_path/'x.parquet', [' '.join(o) for o in np.random.default_rng(0).integers(0, 10**6, (40_000, 30)).astype(str)])
    start = pa.total_allocated_bytes()
    tracemalloc.start()
    peak = max(pa.total_allocated_bytes()-start for _ in TextStream(f)) + tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f.stat().st_size > 3_000_000 and peak < 3_000_000 < sum(map(len, TextStream(f)))

@pytest.mark.parametrize('name,content,match', [
    ('a.csv', b'', "no text"), ('a.csv', b'text,label\n', 'has no text in it'), ('a.csv', b'body\nx\n', "no column 'text'.*body"), ('a.csv', b'text\ncaf\xc3\xa9\nna\xefve\n', 'UTF-8, but for a byte in line 3'),
    ('a.csv', b'text,b\n1,2\n1,2,3\n', 'line 3'), ('a.jsonl', b'{"text":1}\n{"a":\n', 'a.jsonl.*line 2 is not JSON'), ('a.jsonl', b'{"text":"x"}\n[1]\n', 'line 2 is not a JSON object'),
    ('a.jsonl', b'{"body":"x"}\n', "no column 'text'.*body"), ('a.jsonl', b'{"body":"x"}\n'*2000+b'not JSON', "no column 'text'"), ('a.jsonl', b'', 'no text'), ('a.jsonl', b'{"text":"caf\xc3\xa9 \xff"}', 'UTF-8, but for a byte in line 1'),
    ('a.jsonl', b'{"text":["x"]}', 'join its parts'), ('a.json', b'[{"body":1}]', "no column 'text'"), ('a.parquet', b'PAR1 no', 'cannot read'), ('a.parquet', as_bytes, "no column 'text'"), ('a.parquet.gz', b'x', 'cannot read'),
    ('a.txt', b' \n\n ', 'no text'), ('a.txt.gz', b'not gzip', 'cannot read'), ('a.txt.gz', gzip.compress(b'text\n\na\n'*999, mtime=0)[:-9], 'cannot read.*whole'), ('a.jsonl.gz', gzip.compress(b'{"text":"x"}\n'*99, mtime=0)[:-9], 'cannot read.*whole'),
    ('a.csv.gz', gzip.compress(b'text\na\n'*99, mtime=0)[:-9], 'cannot read.*whole'), ('a.xls', b'x', 'cannot tell'), ('a.xlsx', b'x', 'cannot read'), ('a', b'x', 'cannot tell')])
def test_what_is_wrong_is_named(tmp_path, name, content, match):
    if name.startswith('a.parquet'): pytest.importorskip('pyarrow')
    if callable(content):
        b = io.BytesIO(); pd.DataFrame({'body': ['x']}).to_parquet(b); content = b.getvalue()
    (tmp_path/name).write_bytes(content)
    with fails(match) as e: list(TextStream(tmp_path/name))
    assert '\n' not in str(e.value) and (name in str(e.value) or 'column' in str(e.value) or 'join' in str(e.value))

def test_which_file_of_many_is_wrong(tmp_path):
    write(tmp_path/'a.jsonl', ['one'])
    (tmp_path/'b.jsonl').write_text('{"body":"x"}')
    with fails("b.jsonl': .*no column 'text'"): list(TextStream(tmp_path))

def test_bytes_that_are_no_utf8(tmp_path):
    (tmp_path/'x.txt').write_bytes('Grüße aus Köln'.encode('latin1'))
    with pytest.warns(UserWarning, match='x.txt.*not UTF-8'): assert list(TextStream(tmp_path/'x.txt'))==['Gr\ufffd\ufffde aus K\ufffdln']

def test_no_corpus(tmp_path):
    with fails('no corpus at'): TextStream(tmp_path/'none')
    with fails('int'): TextStream(3)
    for o in ([], ['',' '], tmp_path):
        with fails('no text in it'): list(TextStream(o))
    with fails("no column 'body'"): list(TextStream(pd.DataFrame({'text': ['a']}), 'body'))

def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path/'x.parquet').write_bytes(b'PAR1')
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with fails('pip install pyarrow'): list(TextStream(tmp_path/'x.parquet'))


# ---- tokens

@pytest.mark.parametrize('workers', [1,2,3])
def test_same_tokens_vocabulary_and_ids_as_in_memory(tmp_path, workers):
    "in the order of the texts, whichever process is done first"
    texts = ['zz zz yy yy']+make_texts(200)+odd+['x '*2000]+make_texts(20, 1)+['aa aa bb bb']
    c,t = build(texts, tmp_path, workers),tokenize_once(texts, cache=False)
    assert len(c.files) > 5 and len(c)==len(texts) and (c.offs==t.offs).all() and c.counts()==t.counts()
    tp = TextProcessor(make_vocab(c.counts(), 2))
    assert tp.vocab==make_vocab(t.counts(), 2)
    ids = c.numericalize(tp)
    assert isinstance(ids, np.memmap) and ids.dtype==np.uint16 and (ids==t.numericalize(tp)).all()
    assert multiprocessing.active_children()==[]

def test_workers_get_the_same_shards(tmp_path):
    texts = make_texts(200)
    for n in (1,2): build(texts, tmp_path/str(n), n)
    assert shards(tmp_path/'1').keys()==shards(tmp_path/'2').keys()

@pytest.mark.parametrize('kind', ['txt','csv.gz','jsonl','parquet'])
def test_where_the_texts_are_does_not_matter(tmp_path, kind):
    texts = make_texts(80)
    a = build(texts, tmp_path)
    before = shards(tmp_path)
    b = build(write(tmp_path/f'x.{kind}', texts), tmp_path)
    assert b.cache_hit and not a.cache_hit and shards(tmp_path)==before and a.files==b.files and (a.offs==b.offs).all() and a.counts()==b.counts()

@pytest.mark.parametrize('workers', [1,2])
def test_goes_on_from_where_it_was_stopped(tmp_path, workers):
    texts = make_texts(200)
    total = len(build(texts, tmp_path/'whole').files)
    def stopped():
        yield from texts[:150]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): build(stopped(), tmp_path, workers)
    assert multiprocessing.active_children()==[]
    before = shards(tmp_path)
    assert 4 <= len(before) < total
    c = build(texts, tmp_path, workers)
    assert not c.cache_hit and made(tmp_path, before)==total-len(before) and c.counts()==tokenize_once(texts, cache=False).counts()
    before = shards(tmp_path)
    assert build(texts, tmp_path).cache_hit and shards(tmp_path)==before

def test_changed_text_is_tokenized_again(tmp_path):
    "even in a file of the same size and age; of what follows unchanged text, nothing else is"
    texts = make_texts(200)
    f = write(tmp_path/'x.txt', texts)
    build(f, tmp_path)
    age,before = f.stat().st_mtime_ns,shards(tmp_path)
    texts[-1] = texts[-1].swapcase()
    write(f, texts)
    os.utime(f, ns=(age,age))
    c = build(f, tmp_path)
    assert made(tmp_path, before)==1 and c.counts()==tokenize_once(texts, cache=False).counts()
    before = shards(tmp_path)
    build(texts+['more']*3, tmp_path)
    assert 1 <= made(tmp_path, before) <= 2

def test_language_and_version_are_in_the_name(tmp_path, monkeypatch):
    import spacy
    texts = make_texts(20)
    build(texts, tmp_path)
    assert not build(texts, tmp_path, lang='de').cache_hit and build(texts, tmp_path).cache_hit
    monkeypatch.setattr(spacy, '__version__', '3.99.0')
    assert not build(texts, tmp_path).cache_hit

@pytest.mark.parametrize('harm', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'garbage'])
def test_broken_shard(tmp_path, harm):
    texts = make_texts(60)
    a = build(texts, tmp_path)
    before = shards(tmp_path)
    a.files[1].write_bytes(harm(a.files[1].read_bytes()))
    with pytest.warns(UserWarning, match='broken.*tokenizing again'): b = build(texts, tmp_path)
    assert made(tmp_path, before)==1 and a.counts()==b.counts() and build(texts, tmp_path).cache_hit

def test_ids_are_made_once_for_a_vocabulary(tmp_path):
    texts = make_texts(60)
    c  = build(texts, tmp_path)
    tp = TextProcessor(make_vocab(c.counts(), 1))
    a  = c.numericalize(tp)
    for o in c.files: o.rename(o.with_suffix('.away'))
    assert c.numericalize(tp).filename==a.filename
    with fails('can no longer be read'): c.numericalize(TextProcessor(tp.vocab[:20]))
    for o in c.files: o.with_suffix('.away').rename(o)
    other = c.numericalize(TextProcessor(tp.vocab[:20]))
    assert other.filename!=a.filename and other.max()<20
    good,file = Path(a.filename).read_bytes(),Path(a.filename)
    for bad in (good[:-5], b'', b'garbage'):
        file.unlink(); file.write_bytes(bad)
        with pytest.warns(UserWarning, match='is broken.*making it again'): assert (c.numericalize(tp)==a).all()
        assert file.read_bytes()==good

def test_large_vocabulary(tmp_path):
    tp = TextProcessor(defaults.text_spec_tok + [f'w{i}' for i in range(70_000)])
    ids = build(['w5 w69898 unheard'], tmp_path).numericalize(tp)
    assert ids.dtype==np.uint32 and ids.tolist()==[2, 9+5, 9+69898, 0]

def test_unwritable_folder(tmp_path):
    (tmp_path/'file').write_text('')
    with fails('cannot write to') as e: build(['a'], tmp_path/'file')
    assert 'cache=False' not in str(e.value)

@pytest.mark.parametrize('what', ['shard','ids'])
def test_full_disk(tmp_path, monkeypatch, what):
    texts,tp = make_texts(60),TextProcessor(['xxunk','xxpad','the'])
    def full(*a, **k): raise OSError(28, 'No space left on device')
    if what=='ids': c = build(texts, tmp_path)
    monkeypatch.setattr(np, 'savez', full)
    monkeypatch.setattr(np.lib.format, 'write_array_header_1_0', full)
    with fails('No space left.*make room'): build(texts, tmp_path) if what=='shard' else c.numericalize(tp)
    assert {o.name for o in cache(tmp_path).iterdir()}==shards(tmp_path).keys()

def test_progress(tmp_path, monkeypatch):
    import fastprogress.fastprogress
    seen = []
    class Bar:
        def __init__(self, *args, **kwargs): pass
        def update(self, n): seen.append(n)
    monkeypatch.setattr(fastprogress.fastprogress, 'progress_bar', Bar)
    def show(corpus, **kwargs): tokenize_corpus(corpus, path=tmp_path, workers=1, block_size=500, **kwargs)
    show(write(tmp_path/'x.txt', make_texts(20_000)), max_docs=200)
    assert seen[0]==0 and seen[-1]==100 and seen==sorted(seen) and len(seen)>10
    n = len(seen)
    show(tmp_path/'x.txt', max_docs=200)
    show(['a text'])
    assert len(seen)==n
    for f in sorted(cache(tmp_path).glob('*.npz'), key=lambda o: o.stat().st_mtime)[4:]: f.unlink()
    show(tmp_path/'x.txt', max_docs=200)
    assert len(seen)>n+5, 'also where the first blocks are there already'


# ---- processes

forked = pytest.mark.skipif(sys.platform!='linux', reason='looks into /proc, and needs forked processes')

@forked
def test_few_texts_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fork', None)
    assert len(build(make_texts(100), tmp_path, 4, block_size=2**21))==100

@forked
def test_nothing_to_tokenize_starts_no_process(tmp_path, monkeypatch):
    texts = make_texts(100)
    build(texts, tmp_path)
    monkeypatch.setattr(os, 'fork', None)
    assert build(texts, tmp_path, 2).cache_hit

@forked
@pytest.mark.parametrize('when', [60,199])
def test_a_process_that_dies(tmp_path, when):
    "Its work is done by this one, with a warning"
    texts = make_texts(200)
    def killing():
        for i,t in enumerate(texts):
            if i==when:
                kids = multiprocessing.active_children()
                assert len(kids)==2
                kids[0].kill()
                kids[0].join()
            yield t
    with pytest.warns(UserWarning, match='has died') as w: c = build(killing(), tmp_path, 2)
    once = tokenize_once(texts, cache=False)
    assert len(w)==1 and c.counts()==once.counts() and (c.offs==once.offs).all()
    assert multiprocessing.active_children()==[]

def fails_elsewhere(texts, *args):
    if multiprocessing.parent_process(): raise ZeroDivisionError('by nothing')
    return _tokenize(texts, *args)
_tokenize = C.tokenize_unique

@forked
def test_an_error_in_a_process_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(C, 'tokenize_unique', fails_elsewhere)
    with pytest.raises(ZeroDivisionError): build(make_texts(200), tmp_path, 2)
    assert multiprocessing.active_children()==[]

@forked
def test_texts_are_read_a_little_ahead(tmp_path, monkeypatch):
    "Of `n` processes, `2*n` blocks and the one at hand are in memory at most, however slow this one is to save them"
    read,saved,ahead = 0,0,[]
    def texts():
        nonlocal read
        for read in range(1, 101): yield 'a text of its own '*30 + str(read) # a block each
    save = Tokens.save
    def slow(self, *args):
        nonlocal saved
        time.sleep(.01)
        ahead.append(read-saved)
        saved += 1
        return save(self, *args)
    monkeypatch.setattr(Tokens, 'save', slow)
    build(texts(), tmp_path, 2)
    assert saved==100 and 3 <= max(ahead) <= 2*2+1

_child = '''
import sys,time
from ulmfit_ext.text.corpus import tokenize_corpus
def texts():
    for i in range(4000):
        time.sleep(.002)
        yield f'text number {i} of them all'
if __name__=='__main__':
    print('begun', flush=True)
    print(tokenize_corpus(texts(), path=sys.argv[1], workers=2, progress=False, block_size=500))
'''

@forked
@pytest.mark.parametrize('sig', [9,signal.SIGINT]) # 9: SIGKILL, a name that Windows lacks
def test_stopped_from_outside(tmp_path, sig):
    "No process stays behind; what was finished is kept, what was not is never read and swept away, and the next run goes on"
    (tmp_path/'run.py').write_text(_child)
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))}
    p = subprocess.Popen([sys.executable, 'run.py', str(tmp_path)], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    p.stdout.readline()
    deadline = time.time()+60
    while not (cache(tmp_path).exists() and len(shards(tmp_path))>3) and time.time()<deadline: time.sleep(.05)
    kids = [int(o) for t in Path(f'/proc/{p.pid}/task').iterdir() for o in (t/'children').read_text().split()]
    assert len(kids)==2
    for k in kids: os.kill(k, signal.SIGINT)
    time.sleep(.3)
    assert p.poll() is None, 'Ctrl-C is for the parent'
    os.killpg(p.pid, sig) if sig==signal.SIGINT else p.kill()   # Ctrl-C reaches the whole group, a kill one process
    err = p.communicate(timeout=30)[1]
    while any(Path(f'/proc/{k}').exists() and '(zombie)' not in Path(f'/proc/{k}/status').read_text() for k in kids) and time.time()<deadline: time.sleep(.05)
    assert time.time()<deadline, 'processes stay behind'
    if sig==signal.SIGINT:
        assert err.count('Traceback')==1 and err.strip().endswith('KeyboardInterrupt')
    else: # it had no time to clean up, or had it
        (cache(tmp_path)/f'.tokens-{p.pid}-0a1b2c3d.npz').write_bytes(b'half')
        sweep(tmp_path)
    assert {o.name for o in cache(tmp_path).iterdir()}==shards(tmp_path).keys(), 'a half-written file'
    before,texts = shards(tmp_path),[f'text number {i} of them all' for i in range(4000)]
    c = build(texts, tmp_path)    # a warning of a broken shard would be an error
    assert 3 < len(before) < len(c.files) and made(tmp_path, before)==len(c.files)-len(before)
    assert c.counts()==tokenize_once(texts, cache=False).counts()


# ---- loaders on disk

def corpus(n=60, seed=0, longest=40):
    rng = np.random.default_rng(seed)
    offs = np.concatenate([[0], rng.integers(0, longest, n).cumsum()])
    return rng.integers(2, 60, offs[-1]).astype(np.uint16),offs
proc = TextProcessor(defaults.text_spec_tok + [f'w{i}' for i in range(51)])

def on_disk(ids, path):
    file = path/f'ids{len(list(path.iterdir()))}.npy'
    np.save(file, ids)
    return np.load(file, mmap_mode='r')

@pytest.mark.parametrize('bs,bptt', [(1,5),(4,7),(16,70),(3,1000)])
@pytest.mark.parametrize('backwards', [False,True])
def test_same_batches_from_disk(tmp_path, bs, bptt, backwards):
    "as from memory, shuffled and not, also from a part of a file"
    ids,offs = corpus()
    mapped = on_disk(ids, tmp_path)
    part   = on_disk(np.concatenate([ids[:9], ids]), tmp_path)[9:]
    import random
    got = []
    for o in (ids,mapped,part):
        random.seed(3)
        dls = lm_dls(o, offs, 10, proc, backwards, bs=bs, bptt=bptt, device='cpu')
        got.append([b for dl in (dls.train,dls.train,dls.valid) for b in dl])
    assert len(got[0])>2
    for o in got[1:]: assert len(o)==len(got[0]) and all(torch.equal(x,y) for a,b in zip(got[0],o) for x,y in zip(a,b))

def test_not_read_through_the_map(tmp_path, monkeypatch):
    dl = lm_dls(on_disk(corpus()[0], tmp_path), corpus()[1], 10, proc, bs=4, bptt=9, device='cpu').train
    monkeypatch.setattr(np.memmap, '__getitem__', None)
    assert len(list(dl))==len(dl)>1

def test_learner_on_disk(tmp_path):
    "It trains, predicts and exports; the export holds none of the text"
    ids,offs = corpus(2000)
    dls = lm_dls(on_disk(ids, tmp_path), offs, 10, proc, bs=8, bptt=10, max_batches=3, path=tmp_path)
    l = language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, 'emb_sz': 8, 'n_hid': 10, 'n_layers': 2}, pretrained=False)
    with l.no_bar(), l.no_logging(): l.fit(1)
    dls.show_batch(max_n=2)
    l.export('lm.pkl')
    assert (tmp_path/'lm.pkl').stat().st_size < 60_000 < ids.nbytes
    with l.no_bar(): assert load_learner(tmp_path/'lm.pkl').predict('w1', 2, no_bar=True).startswith('w1')
    assert [len(dls.train_ds),len(dls.valid_ds)]==[1990,10] and dls.train_ds[5][0].tolist()==ids[offs[5]:offs[6]].tolist()

_walk = '''
import mmap,sys,warnings
warnings.simplefilter('ignore')
import numpy as np
from pathlib import Path
from ulmfit_ext.text.loaders import lm_dls
from ulmfit_ext.text.tokens import TextProcessor
def mb(): return int(Path('/proc/self/statm').read_text().split()[1])*mmap.PAGESIZE/1e6
file,n = sys.argv[1],int(sys.argv[2])
part = np.arange(1_000_000, dtype=np.uint32)
with open(file, 'wb') as f:
    np.lib.format.write_array_header_1_0(f, dict(descr='<u4', fortran_order=False, shape=(n,)))
    for _ in range(n//len(part)): part.tofile(f)
tp = TextProcessor(['xxunk','xxpad','a'])
start = peak = mb()
dl = lm_dls(np.load(file, mmap_mode='r'), np.arange(0, n+1, 250), 10, tp, device='cpu').train
n_tok = total = 0
for i,(x,y) in enumerate(dl):
    n_tok += x.numel(); total += int(x.sum())
    if i%10==0: peak = max(peak, mb())
print(n_tok, total, round(peak-start))
'''

@pytest.mark.skipif(sys.platform!='linux', reason='looks into /proc')
@pytest.mark.parametrize('millions', [20, pytest.param(100, marks=pytest.mark.skipif(not os.environ.get('ULMFIT_SLOW'), reason='set ULMFIT_SLOW=1'))])
def test_memory_stays_small(tmp_path, millions):
    "An epoch over 100 million tokens of 32 bits (a file of 400 MB) grows the process by less than 300 MB; over 20 million by less than 60"
    res = subprocess.run([sys.executable, '-c', _walk, str(tmp_path/'ids.npy'), str(millions*10**6)], cwd=root, capture_output=True, text=True, timeout=300)
    n_tok,total,growth = map(int, res.stdout.split())
    (tmp_path/'ids.npy').unlink()
    assert n_tok > .999*millions*1e6 and total > 0 and growth < 3*millions, res

_build = '''
import sys
from pathlib import Path
from ulmfit_ext.text.corpus import tokenize_corpus
from ulmfit_ext.text.tokens import TextProcessor
def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])/1000
text = ' '.join(f'w{i%997}' for i in range(2000))
def build(n):
    c = tokenize_corpus((f'{n} {i} {text}' for i in range(n)), path=sys.argv[1], workers=1, progress=False)
    c.numericalize(TextProcessor(['xxunk','xxpad']))
    return c
build(500)
start = peak()
c = build(2500)
print(len(c), c.offs[-1], round(peak()-start))
'''

@pytest.mark.skipif(sys.platform!='linux', reason='looks into /proc')
def test_building_streams(tmp_path):
    "A corpus of 25 MB of text needs no more memory than one of 5 MB"
    res = subprocess.run([sys.executable, '-c', _build, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=300)
    n,toks,growth = map(int, res.stdout.split())
    assert n==2500 and toks > 5_000_000 and growth < 8, res


# ---- batches of other lengths

def lengths(n): return [o for o in ([3,11]*n)[:2*(n//14)]] + [n%14]*(n%14>0)

@pytest.mark.parametrize('backwards', [False,True])
@pytest.mark.parametrize('disk', [False,True])
def test_variable_lengths(tmp_path, backwards, disk):
    "Batches of the lengths asked for, one after the other, without losing a token"
    ids,offs = corpus()
    dl = lm_dls(on_disk(ids, tmp_path) if disk else ids, offs, 10, proc, backwards, bs=4, bptt=9, device='cpu').train
    dl.order = 0
    even = [torch.cat(o, 1) for o in zip(*dl)]
    assert even[0].shape==(4,dl.bl)
    dl.var_len = lengths
    assert len(dl)==len(lengths(dl.bl)) and dl.n_batches==len(dl)
    for _ in range(2):
        bs = list(dl)
        assert [x.shape for x,_ in bs]==[(4,n) for n in lengths(dl.bl)]
        for a,b in zip(even, zip(*bs)): assert torch.equal(a, torch.cat(b, 1))
    dl.var_len = None
    assert [x.shape[1] for x,_ in dl][:-1]==[9]*(len(dl)-1)

def test_lengths_are_asked_for_once_an_epoch():
    "What the loader says of its length is true of the epoch that follows, also where the lengths are drawn anew"
    dl,rng = lm_dls(*corpus(200), 10, proc, bs=4, bptt=9, device='cpu').train,np.random.default_rng(0)
    calls = []
    def draw(n):
        calls.append(n)
        cuts = np.sort(rng.choice(np.arange(1, n), rng.integers(20, 60), replace=False))
        return np.diff([0, *cuts, n]).tolist()
    dl.var_len = draw
    sizes = []
    for k in range(4):
        n = len(dl)
        assert len(dl)==n==len(list(dl)) and len(calls)==k+1
        sizes.append(n)
    assert len(set(sizes))>1

def test_variable_lengths_and_max_batches():
    dl = lm_dls(*corpus(), 10, proc, bs=4, bptt=9, max_batches=3, device='cpu').train
    dl.var_len = lengths
    assert len(dl)==3 and [x.shape[1] for x,_ in dl]==[3,11,3]
    assert dl.new().var_len is None, 'what a callback set stays with the loader that it set it on'

@pytest.mark.parametrize('bad', [lambda n: [n+1], lambda n: [n-1], lambda n: [0,n], lambda n: [-1,n+1], lambda n: []])
def test_lengths_that_lose_tokens_are_refused(bad):
    dl = lm_dls(*corpus(), 10, proc, bs=4, bptt=9, device='cpu').train
    dl.var_len = bad
    with fails('var_len'): len(dl)

def test_variable_lengths_in_training(tmp_path):
    dls = lm_dls(*corpus(300), 10, proc, bs=8, bptt=10, path=tmp_path)
    l = language_model_learner(dls, AWD_LSTM, config={**awd_lstm_lm_config, 'emb_sz': 8, 'n_hid': 10, 'n_layers': 2}, pretrained=False)
    dls.train.var_len = lengths
    with l.no_bar(), l.no_logging(): l.fit(2)
    assert len(l.recorder.losses)==2*len(lengths(dls.train.bl))


# ---- held-out documents

def test_held_out_is_a_function_of_seed_and_number():
    a,b = held_out(1000, .1, 3),held_out(5000, .1, 3)
    assert (b[b<1000]==a).all() and 60 < len(a) < 140 and not np.array_equal(a, held_out(1000, .1, 4))
    assert set(held_out(1000, .05, 3)) <= set(a)
    for n,pct in itertools.product((2,3,10), (1e-9,.5,1-1e-9)): assert 0 < len(held_out(n, pct)) < n
    for pct in (0,1,-1,2):
        with fails('valid_pct'): held_out(10, pct)


# ---- pieces of words

def test_the_same_text_gives_the_same_pieces(tmp_path):
    "also the same file: the tokens made with it are found again"
    pytest.importorskip('sentencepiece')
    texts = make_texts(200)
    for name in ('a','b'): train_subwords(texts, tmp_path/name/'p.model', 60)
    assert (tmp_path/'a'/'p.model').read_bytes()==(tmp_path/'b'/'p.model').read_bytes()
    with fails('ends in .model'): train_subwords(texts, tmp_path/'p.txt')
    with fails('another number'): train_subwords(texts, tmp_path/'p.model', 5)
    assert not (tmp_path/'p.model').exists()
