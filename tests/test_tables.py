"Tables: files, columns, labels and the split, and what is said where they are wrong"
import gzip,importlib,io,json,random
from contextlib import nullcontext
import numpy as np,pandas as pd,pytest,torch
from fastcore.foundation import L
from made_up import make_df
from ulmfit_ext.core import UlmfitError,atomic_write
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.text.corpus import TextStream
from ulmfit_ext.text.loaders import text_setup
from ulmfit_ext.text.encoding import find_encoding
from ulmfit_ext.text.labels import label_slips,read_labels
from ulmfit_ext.text.files import TableFile
from ulmfit_ext.text.tables import column_labels,read_table,unlabelled_texts
from ulmfit_ext.text.write import write_table

pytestmark = pytest.mark.usefixtures('strict_warnings')

@pytest.fixture
def df(): return make_df()

def fails(match): return pytest.raises(UlmfitError, match=match)


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
    want = df.label.astype(str) if kind in ('csv','tsv') else df.label # these have no types
    assert got.text.tolist()==df.text.tolist() and got.label.tolist()==want.tolist()

def test_read_table_txt(tmp_path):
    "A row for each line, blank ones too; as texts without labels these are left out"
    (tmp_path/'x.txt').write_text('one\r\n\ntwo\n')
    assert read_table(tmp_path/'x.txt').text.tolist()==['one','','two'] and unlabelled_texts(tmp_path/'x.txt', 'text')==['one','two']

@pytest.mark.parametrize('name,content,match', [
    ('a.csv', b'', 'is empty'), ('a.csv', b' \n ', 'is empty'), ('a.csv', b'text,label\n', 'no rows'), ('a.xls', b'x', 'cannot tell'), ('a.xlsx', b'x', 'cannot read'), ('a', b'x', 'cannot tell'),
    ('a.csv', b'text\ncaf\xc3\xa9\nna\xefve\n', 'UTF-8, but for a byte in line 3'), ('a.csv', b'a,b\n1,2\n1,2,3\n', 'line 3'), ('a.jsonl', b'{"a":1}\n{"a":\n', 'line 2'),
    ('a.jsonl', b'[1]\n', 'line 1'), ('a.json', b'3', 'list of objects'), ('a.json', b'{"a": 1', 'cannot read'), ('a.json', b'{"a": 1}', 'cannot read'), ('a.json', b'['*100000, 'cannot read'),
    ('a.parquet', b'PAR1 no', 'cannot read'), ('a.csv.gz', b'not gzip', 'cannot read'), ('a.csv.gz', gzip.compress(b'text\na\n'*99, mtime=0)[:30], 'cannot read'), ('a.csv.gz', b'', 'cannot read|empty')])
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

@pytest.mark.parametrize('cells', [['007','7'], ['1.50','2'], ['True','False'], ['10','9'], ['12345678901234567',''], ['1','1.0'], ['nan','1.5'], ['NA','null'], ['2020-01-01','None']])
@pytest.mark.parametrize('more', ['3','x'])
def test_cells_are_the_text_that_stands_there(tmp_path, cells, more):
    "Whatever else the column holds, and all the way through a table of answers"
    (tmp_path/'a.csv').write_text('text,x\n' + ''.join(f't,{o}\n' for o in [*cells, more]))
    got = read_table(tmp_path/'a.csv')
    assert ['' if pd.isna(o) else o for o in got.x.tolist()]==[*cells, more] and got.to_csv(index=False)==(tmp_path/'a.csv').read_text()
    df = pd.concat([got]*2).assign(text=[f'text {i}' for i in range(6)]) if '' not in cells else None
    if df is not None: assert ulmfit_dls(df, label_col='x', path=tmp_path, min_freq=1, valid_pct=.5).y==[*cells, more]*2

@pytest.mark.parametrize('name,content,says', [
    ('a.csv', 'text,label\na,x\n"never closed,y\nb,x\n', 'begins in line 3'), ('a.csv', 'text,label\n"Great" film,x\n', 'begins in line 2'),
    ('a.csv', 'text,label\n"two\nlines",x\n"b "c" d",x\n', 'begins in line 4'), ('a.tsv', 'text\tlabel\n"a\tx\nb "c"\ty\n', 'begins in line 2'),
    ('a.csv', 'text,text\na,b\n', "2 columns are called 'text'"), ('a.jsonl', '{"text": "a", "text": "b"}\n', "line 1 .*'text' stands twice"),
    ('a.json', '[{"text": "a", "y": {"b": 1, "b": 2}}]', "'b' stands twice"), ('a.json', '[["a","b"]]', 'list of objects')])
def test_rows_and_columns_that_would_be_lost(tmp_path, name, content, says):
    (tmp_path/name).write_text(content)
    with fails(f'{name}.*{says}'): read_table(tmp_path/name)

def test_rows_that_a_quote_swallowed(tmp_path):
    "It was forgotten in line 2, and another closes by chance. Texts with line breaks and commas are left in peace"
    rows = [('text','label'), ('"one','pos'), ('two','neg'), ('a screen of 5"','pos'), ('three','neg'), ('four','pos')]
    for order in (1,-1):
        (tmp_path/'a.csv').write_text(''.join(','.join(o[::order])+'\n' for o in rows))
        with pytest.warns(UserWarning, match='1 rows hold lines that look like rows.*lines 2'): read_table(tmp_path/'a.csv')
    (tmp_path/'b.csv').write_text('text,label\n"Dear all,\nwell, it was good,\nyours",pos\n"a,b\nc,d",neg\n')
    assert len(read_table(tmp_path/'b.csv'))==2

def test_rows_with_fewer_fields_than_the_header(tmp_path):
    (tmp_path/'a.csv').write_text('text,label\na line\nbreak,pos\nb,neg\n')
    with pytest.warns(UserWarning, match='fewer fields than the header: 1 .lines 2.'): got = read_table(tmp_path/'a.csv')
    assert len(got)==3 and got.label.isna().tolist()==[True,False,False]

def test_blank_lines(tmp_path):
    "In a file of one column each is a row with an empty text"
    (tmp_path/'a.csv').write_text('text\none\n\nthree\n')
    (tmp_path/'b.csv').write_text('text,label\none,x\n\nthree,y\n')
    assert read_table(tmp_path/'a.csv').text.fillna('').tolist()==['one','','three'] and len(read_table(tmp_path/'b.csv'))==2

def test_long_cells(tmp_path):
    (tmp_path/'a.csv').write_text(f'text,label\n{"x"*200_000},a\n')
    assert len(read_table(tmp_path/'a.csv').text[0])==200_000

def test_numbers_of_other_kinds_keep_their_digits(tmp_path):
    "pandas makes floats of whole numbers beside a float or a gap"
    (tmp_path/'a.jsonl').write_text('{"text": "a", "id": 9007199254740993}\n{"text": "b", "id": 0.5}\n')
    assert read_table(tmp_path/'a.jsonl').id.tolist()==[9007199254740993,.5]
    pd.DataFrame(dict(text=['a','b'], id=pd.array([9007199254740993,None], 'Int64'))).to_parquet(tmp_path/'b.parquet')
    assert read_table(tmp_path/'b.parquet').id[0]==9007199254740993
    pd.DataFrame(dict(text=['a','b']), index=pd.Index([7,8], name='id')).to_parquet(tmp_path/'c.parquet')
    assert read_table(tmp_path/'c.parquet').id.tolist()==[7,8]

def test_whole_numbers_beside_a_gap_in_json(tmp_path):
    rows = [dict(text='a', id=12345678901234567, x=1.5), dict(text='b', x=2.), dict(text='c', id=3)]
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    got = read_table(tmp_path/'a.jsonl')
    assert [None if pd.isna(o) else o for o in got.id.tolist()]==[12345678901234567,None,3] and got.x.dtype==float

def test_read_table_missing(tmp_path):
    for name in ('no.csv','no','no.xls'):
        with fails('no file'): read_table(tmp_path/name)
    with fails('no file'): read_table(tmp_path.parent/f'{tmp_path.name}.csv')

def test_surrogates_in_json(tmp_path):
    (tmp_path/'a.jsonl').write_text('\n'.join(json.dumps({'text': t, 'label': l}) for t,l in [('a \ud800','x'),('b \udc00','y')]*4))
    assert 'a' in ulmfit_dls(tmp_path/'a.jsonl', path=tmp_path, min_freq=1).vocab


# ---- files as they come

rows = [('Größer, „naïve“ – 5 €','pos'), ('two\nlines; "quoted"\tand a tab','neg'), ('café','pos')]

def as_csv(sep): return pd.DataFrame(rows, columns=['text','label']).to_csv(index=False, sep=sep)

@pytest.mark.parametrize('encoding,name', [('utf-8',''), ('utf-8-sig',''), ('cp1252','Windows-1252'), ('utf-16','UTF-16'), ('utf-16-le','UTF-16'), ('utf-16-be','UTF-16')])
@pytest.mark.parametrize('sep', [',',';','\t','|'])
@pytest.mark.parametrize('file', ['a.csv','a.tsv','a.csv.gz'])
def test_encodings_and_separators_are_found_out_and_said(tmp_path, encoding, name, sep, file):
    b = as_csv(sep).encode(encoding)
    (tmp_path/file).write_bytes(gzip.compress(b) if file.endswith('gz') else b)
    is_usual = sep==('\t' if file=='a.tsv' else ',')
    said = [*([name] if name else []), *([] if is_usual else [f"separator {'tab' if sep==chr(9) else repr(sep)}"])]
    with pytest.warns(UserWarning) if said else nullcontext() as told: got = read_table(tmp_path/file)
    assert got.values.tolist()==[list(o) for o in rows]
    if said: assert all(o in str(told[0].message) for o in ['is read as', *said]) and len(told)==1
    assert read_table(tmp_path/file, sep=sep, encoding=encoding).equals(got), 'nothing is said where the user has said it'

def test_latin_1_is_called_that(tmp_path):
    (tmp_path/'a.csv').write_bytes('text;label\nça va?;a\n'.encode('latin-1'))
    with pytest.warns(UserWarning, match="is read as Latin-1 .or pass encoding=….*separator ';' .or pass sep=…."): assert read_table(tmp_path/'a.csv').text[0]=='ça va?'

@pytest.mark.parametrize('lang,encodings', [(o, ('cp1250','iso8859_2')) for o in 'hu ro hr sl sk cs pl'.split()] +
                         [(o, ('cp1252','latin-1')) for o in 'is fr de es pt et it da sv nb fi ca nl'.split()] + [('tr', ('cp1254',))])
def test_each_language_is_read_in_its_encoding(lang, encodings):
    "The words of a language alone tell, also where Latin-1 has a letter for every byte, as for Hungarian"
    words = sorted(importlib.import_module(f'spacy.lang.{lang}.stop_words').STOP_WORDS)
    for encoding in encodings:
        b = ' '.join(words).replace('ș', 'ş').replace('ț', 'ţ').encode(encoding, 'ignore') # how Romanian was written then
        assert b.decode(find_encoding(io.BytesIO(b)))==b.decode(encoding)

def test_what_the_user_says_goes(tmp_path):
    (tmp_path/'a.csv').write_bytes('text;label\nĄ;a\n'.encode('cp1250'))
    assert read_table(tmp_path/'a.csv', ';', 'cp1250').text[0]=='Ą'
    assert list(read_table(tmp_path/'a.csv', ',', 'cp1250').columns)==['text;label']
    with fails("a.csv' is not UTF-8 throughout: say with encoding="): read_table(tmp_path/'a.csv', ';', 'utf-8')
    with fails("encoding is 'klingon'"): read_table(tmp_path/'a.csv', encoding='klingon')
    with fails("sep is ';;'"): read_table(tmp_path/'a.csv', sep=';;')

def test_a_comma_in_texts_is_no_reason_to_leave_it(tmp_path):
    "Nor is a semicolon in a header, where commas fit all rows"
    (tmp_path/'a.csv').write_text('text,label;note\na;b,x\nc;d,y\n')
    assert read_table(tmp_path/'a.csv').text.tolist()==['a;b','c;d']
    (tmp_path/'b.csv').write_text('text\nGood; really\n')
    assert read_table(tmp_path/'b.csv').text.tolist()==['Good; really']

@pytest.mark.parametrize('sep', ['\t',';','|'])
@pytest.mark.parametrize('index', [True,False])
def test_one_column_of_texts_with_commas(tmp_path, sep, index):
    "Written with another separator, so that commas have no quotes; in one column, no separator stands anywhere"
    texts = ['Hello, I want, please, my money back','Thanks','Well, no','It came, late', 'Two\nlines, here', 'a "quote", too']
    pd.DataFrame(dict(text=texts)).to_csv(tmp_path/'a.csv', sep=sep, encoding='utf-16', index=index)
    with pytest.warns(UserWarning, match='read as UTF-16.*' + ('separator' if index else 'one column .or pass sep=…')):
        got = read_table(tmp_path/'a.csv')
    assert got.text.tolist()==texts and got.shape[1]==1+index

def test_a_header_that_lacks_a_name_is_no_single_column(tmp_path):
    (tmp_path/'a.csv').write_text('text\ngood, really,pos\nbad,neg\n')
    with fails('line 2 has more fields.*or pass sep= '): read_table(tmp_path/'a.csv')
    (tmp_path/'b.csv').write_text('text\nnever\n\nseldom\n')
    assert len(read_table(tmp_path/'b.csv'))==3

@pytest.mark.parametrize('encoding', ['latin-1','utf-16'])
@pytest.mark.parametrize('file', ['a.txt','a.jsonl','a.json'])
def test_encodings_of_other_kinds(tmp_path, encoding, file):
    row = dict(text='café', label='a')
    (tmp_path/file).write_bytes({'a.txt': 'café\n', 'a.jsonl': json.dumps(row, ensure_ascii=False)+'\n', 'a.json': json.dumps([row], ensure_ascii=False)}[file].encode(encoding))
    with pytest.warns(UserWarning, match='Latin-1|UTF-16'): assert read_table(tmp_path/file).text.tolist()==['café']

def test_lines_of_json_under_any_name(tmp_path):
    lines = ''.join(json.dumps(dict(text=t, n=i))+'\n' for i,t in enumerate('abc'))
    for o in ('a.ndjson','a.ndjson.gz','a.jsonl'): (tmp_path/o).write_bytes(gzip.compress(lines.encode()) if o.endswith('gz') else lines.encode())
    assert all(read_table(tmp_path/o).n.tolist()==[0,1,2] for o in ('a.ndjson','a.ndjson.gz','a.jsonl'))
    (tmp_path/'a.json').write_text(lines)
    with pytest.warns(UserWarning, match='a JSON object a line'): assert read_table(tmp_path/'a.json').n.tolist()==[0,1,2]
    (tmp_path/'b.json').write_text('{"text": ["a","b"]}\n')
    assert len(read_table(tmp_path/'b.json'))==2

def test_excel(tmp_path):
    pytest.importorskip('openpyxl')
    df = pd.DataFrame(dict(text=['naïve','b',None], n=[1,2,3], x=[.5,None,2], when=pd.to_datetime(['2020-01-01']*3), yes=[True,False,True]))
    df.to_excel(tmp_path/'a.xlsx', index=False)
    got = read_table(tmp_path/'a.xlsx')
    assert got.text.tolist()[:2]==['naïve','b'] and pd.isna(got.text[2]) and got.n.tolist()==[1,2,3] and got.yes.tolist()==[True,False,True] and got.when[0].year==2020

@pytest.mark.parametrize('kind', ['csv','tsv','txt','json','jsonl','xlsx','parquet'])
def test_parts_are_the_table(tmp_path, kind):
    "Whatever the parts and the rows that are left out"
    if kind=='xlsx': pytest.importorskip('openpyxl')
    df = make_df(25)[['text','label'][:1 if kind=='txt' else 2]]
    path = tmp_path/f'a.{kind}'
    dict(csv=lambda: df.to_csv(path, index=False), tsv=lambda: df.to_csv(path, index=False, sep='\t'), txt=lambda: path.write_text('\n'.join(df.text)), json=lambda: df.to_json(path, orient='records'),
         jsonl=lambda: df.to_json(path, orient='records', lines=True), xlsx=lambda: df.to_excel(path, index=False), parquet=lambda: df.to_parquet(path))[kind]()
    table,whole = TableFile(path),read_table(path)
    assert whole.values.tolist()==df.values.tolist()
    for most,skip in ((4,0),(4,8),(25,0),(7,3),(100,25)):
        parts = list(table.parts(most=most, skip=skip))
        assert all(len(o)<=most for o in parts) and [row for o in parts for row in o.values.tolist()]==df[skip:].values.tolist()

def test_datasets(tmp_path):
    "Names of classes where the Dataset has them, rows without one unlabelled; a stream too; one split of several"
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(dict(text=datasets.Value('string'), label=datasets.ClassLabel(names=['neg','pos'])))
    data = datasets.Dataset.from_dict(dict(text=make_df().text.tolist()+['?'], label=[i%2 for i in range(60)]+[-1]), features=features)
    for o in (data, data.to_iterable_dataset()):
        with pytest.warns(UserWarning, match='1 of 61 rows have no label'), pytest.warns(UserWarning, match='classes that the Dataset says they are: neg, pos'):
            d = ulmfit_dls(o, path=tmp_path, min_freq=1, seed=0)
        assert d.classes==['neg','pos'] and d.n_unlabelled==1 and d.y[1]=='pos'
    with fails('pass one of them, such as data'): ulmfit_dls(datasets.DatasetDict(train=data), path=tmp_path)


# ---- columns

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

def test_frame_is_left_alone(df, tmp_path):
    old = df.copy(deep=True)
    d = ulmfit_dls(df, path=tmp_path, min_freq=1); d.lm_fwd,d.clas_fwd
    pd.testing.assert_frame_equal(df, old)


def test_a_file_without_a_header(tmp_path):
    (tmp_path/'a.csv').write_text('Where is my refund? It has been two weeks,billing\nThe app crashes,technical\n')
    with fails('The first row is read as names, and looks like a text: put a row with the names above it'): ulmfit_dls(tmp_path/'a.csv', path=tmp_path)

def test_a_column_of_numbers_is_hardly_text(tmp_path, df):
    with pytest.warns(UserWarning, match="60 of 60 texts in column 'text' have no letter: is that the right column?"):
        ulmfit_dls(df.assign(text=[i%7 for i in range(60)], label=df.index%7), path=tmp_path)
    ulmfit_dls(df.assign(text=[*df.text[:31], *['?'*i for i in range(1, 30)]]), path=tmp_path, min_freq=1)

# ---- labels

def test_labels_become_strings(tmp_path):
    for labels,classes in (([10,2]*6, ['2','10']), ([1.,0.]*6, ['0','1']), ([True,False]*6, ['False','True']), (['b','a']*6, ['a','b']), ([' b','a ']*6, [' b','a ']), (['10','9','9.5']*4, ['9','9.5','10']),
                           (['\ud800x\x00','y']*6, ['y','\ufffdx ']), (pd.Categorical(['u','v']*6, categories=['v','u','never']), ['u','v'])):
        d = ulmfit_dls(pd.DataFrame({'text': [f'text {i}' for i in range(12)], 'label': pd.Series(labels, dtype=object) if isinstance(labels, list) else labels}), path=tmp_path, min_freq=1, seed=0)
        assert d.classes==classes and text_setup(d.clas_fwd).classes==classes and json.loads(json.dumps(d.classes))==classes

@pytest.mark.parametrize('a,b', [('pos','pos '), (' pos','pos'), ('pos','pos\xa0'), ('a b','a\xa0b'), ('caf\xe9','cafe\u0301'), ('pos','po\u200bs'), ('pos','\ufeffpos'), ('pos','pos\ufe0f'),
    ('a\x07','a\x08'), (1,'1'), (True,'True')])
def test_labels_that_look_the_same(df, tmp_path, a, b):
    "Neither two classes, nor silently one"
    df = df.assign(label=pd.Series([a,'other']*29+[b]*2, dtype=object))
    with fails('label.*look the same and are not') as e: ulmfit_dls(df, path=tmp_path, min_freq=1)
    assert ascii(a) in str(e.value) and ascii(b) in str(e.value) and 'row 0' in str(e.value) and 'row 58' in str(e.value)
    with fails('look the same'): ulmfit_dls(df.assign(label=[[o] for o in df.label]), path=tmp_path, min_freq=1)

def test_none_of_the_labels(tmp_path):
    "An empty cell of a file says nothing; the delimiter alone says that there is none, and so do answers"
    (tmp_path/'a.csv').write_text('text,label\n' + 'a,x;y\nb,x\nc,;\nd,\n'*3)
    with pytest.warns(UserWarning, match='3 of 12 rows have no label'): d = ulmfit_dls(tmp_path/'a.csv', label_delim=';', path=tmp_path, min_freq=1)
    assert d.y[:4]==[['x','y'],['x'],[],None] and 2 in {*d.train_idx,*d.valid_idx} and 3 not in {*d.train_idx,*d.valid_idx}
    write_table(pd.DataFrame(dict(text='abc', label=d.y[:3])), tmp_path/'b.csv', label_delim=';')
    assert read_labels(read_table(tmp_path/'b.csv').label, ';')[0]==d.y[:3]

def test_missing_labels_join_the_unlabelled(df, tmp_path):
    for none in (None, float('nan'), '', ' '):
        part = df.copy(); part['label'] = part.label.astype(object); part.loc[[3,8],'label'] = none
        with pytest.warns(UserWarning, match='2 of 60 rows have no label .rows 3, 8'): d = ulmfit_dls(part, path=tmp_path, min_freq=1, seed=0)
        assert d.n_unlabelled==2 and len(d.clas_fwd.train_ds)+len(d.clas_fwd.valid_ds)==58 and len(d.lm_fwd.train_ds)+len(d.lm_fwd.valid_ds)==60

@pytest.mark.parametrize('kind', [list, tuple, set, frozenset, np.array, pd.Series, L])
def test_any_kind_of_list_is_several_labels(kind):
    col = pd.Series([kind([2,1]), kind([2]), None], dtype=object)
    assert read_labels(col)[:2]==([['1','2'],['2'],None], ['1','2'])

@pytest.mark.parametrize('cell', [{'a':1}, torch.tensor(3), torch.tensor([3,4])])
def test_what_is_no_label(cell):
    with fails('join its parts'): read_labels(pd.Series([cell,'a'], dtype=object))


@pytest.mark.parametrize('counts,slips', [
    (dict(positive=480, negative=300, postive=2), {'postive': 'positive'}), (dict(positive=19, negative=21, postive=1), {'postive': 'positive'}),
    (dict(positive=200, Positive=180, negative=1), {'Positive': 'positive'}), ({'café crème': 90, 'Cafe creme': 1, 'tea': 20}, {'Cafe creme': 'café crème'}),
    ({'very good': 50, 'very-good': 30, 'rather bad': 50, 'rahter bad': 1}, {'very-good': 'very good', 'rahter bad': 'rather bad'}), (dict(a=200, A=1, b=10), {'A': 'a'})])
def test_a_slip_of_the_pen_is_said(counts, slips):
    assert label_slips(counts)==slips
    with pytest.warns(UserWarning, match='looks like') as told: column_labels(pd.DataFrame(dict(x=[o for o,n in counts.items() for _ in range(n)])), 'x', None)
    told = [str(o.message) for o in told]
    assert len(told)==1 and all(f'{o!r} (' in told[0] and f'looks like {p!r}' in told[0] for o,p in slips.items())

@pytest.mark.parametrize('labels', ['1 2', '10 1.0', 'A1 A2', 'A1 a2', 'pos neg', 'yes no', 'ham spam', 'Iran Iraq', 'active inactive', 'male female', 'north south', 'typeA typeB typeC',
                                    'Type_A Type_B', 'C C++', 'NNP NNPS', 'user-104 user-105', '高い 安い', 'かき かぎ', 'positive negative', 'grade_I grade_II'])
@pytest.mark.parametrize('n', [2,200])
def test_a_code_is_no_slip(labels, n):
    assert label_slips(dict(zip(labels.split(), (480,n,1))))=={} # rare, or as frequent as the other

def test_slips_among_thousands_of_classes():
    rng = random.Random(0)
    res = {''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=12)): 1+99*(i%2) for i in range(3000)}
    assert label_slips({**res, 'television set': 500, 'televsion set': 1})=={'televsion set': 'television set'}
    assert label_slips({''.join(rng.choices('acgt', k=8)): 1+99*(i%2) for i in range(3000)})=={}, 'all alike: these are codes'

def test_several_labels_can_slip():
    with pytest.warns(UserWarning, match="'refnud' .1 text. looks like 'refund' .30."):
        column_labels(pd.DataFrame(dict(x=['refund; late']*30+['late;refnud'])), 'x', ';')

def test_a_text_with_two_labels_is_said(tmp_path, df):
    "Where the rows are; not of empty texts, and not of rows without a label"
    other = df.assign(label=df.label.map(dict(pos='neg', neg='pos')))
    with pytest.warns(UserWarning, match='a row has the text of another one, with another label .rows 4 and 60, counted'): ulmfit_dls(pd.concat([df, other[4:5]]), path=tmp_path, min_freq=1)
    with pytest.warns(UserWarning, match='5 rows have .* .rows 0 and 60, 1 and 61, 2 and 62, …'): ulmfit_dls(pd.concat([df, other[:5]]), path=tmp_path, min_freq=1)
    with pytest.warns(UserWarning, match='1 of 61 rows have no label'): ulmfit_dls(pd.concat([df, other[:1].assign(label=None)]), path=tmp_path, min_freq=1)
    ulmfit_dls(pd.concat([df, df[:5], df[:1].assign(text=''), other[:1].assign(text='')]), path=tmp_path, min_freq=1)

# ---- split

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

def test_a_split_that_leaves_one_row(tmp_path):
    df = make_df()
    df['valid'] = [i>0 for i in range(len(df))]
    with fails('leaves one labelled row'): ulmfit_dls(df, path=tmp_path, valid_col='valid')
    with fails('bptt is 0'): ulmfit_dls(df, path=tmp_path, bptt=0)
