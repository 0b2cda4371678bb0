"""What goes in comes out, row by row, or a named error: properties of reading, writing, predicting and splitting, over texts, labels, lengths and orders that
Hypothesis makes up. `ROWS_EXAMPLES=5000 pytest tests/test_rows.py` tries so many of each, others each time; `ROWS_JSON=file` keeps how many there were."""
import collections,csv,functools,gzip,io,json,os,platform,tempfile,warnings
from pathlib import Path
import numpy as np,pandas as pd,pytest
hypothesis = pytest.importorskip('hypothesis')
from hypothesis import HealthCheck,example,given,settings,strategies as st
from made_up import make_df
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.core import UlmfitError,as_text
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.scores import label_targets
from ulmfit_ext.text.labels import label_name,read_labels,visible
from ulmfit_ext.text.files import TableFile
from ulmfit_ext.text.tables import read_table
from ulmfit_ext.text.write import check_delim,write_table

hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir())/'hypothesis')
many,tried = int(os.environ.get('ROWS_EXAMPLES', 0)),collections.Counter()

def prop(n, **kwargs):
    "A property, tried on `n` examples that are always the same, or on as many as `ROWS_EXAMPLES` says"
    def _of(f):
        @functools.wraps(f)
        def _counted(*args, **kw):
            tried[f.__name__] += 1
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                return f(*args, **kw)
        how = settings(max_examples=many or n, derandomize=not many, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        return how(given(**kwargs)(_counted))
    return _of

@pytest.fixture(scope='module', autouse=True)
def report():
    yield
    if out := os.environ.get('ROWS_JSON'):
        said = dict(command=f'ROWS_EXAMPLES={many} pytest tests/test_rows.py', examples=dict(sorted(tried.items())), total=sum(tried.values()), hypothesis=hypothesis.__version__,
                    pandas=pd.__version__, python=platform.python_version())
        Path(out).write_text(json.dumps(said, indent=1)+'\n')

# what Hypothesis makes up

odd_parts = ['"', '""', ',', '\t', ';', '\n', '\r', '\r\n', '\0', '\ufeff', '\u2028', '\x85', '\x1a', '\u200b', '\xa0', 'e\u0301', '\U0001f600', 'NA', 'null', 'None', 'nan', 'True', '01', '1', '1.0',
             '2020-01-01', '#', "'", '=1+1', '\\', '$x^2$', ' ', 'good', 'a']
def texts(surrogates=False):
    letters = st.characters() if surrogates else st.characters(exclude_categories=['Cs'])
    return st.one_of(st.lists(st.sampled_from(odd_parts), max_size=6).map(''.join), st.text(letters, max_size=30))
names   = st.sampled_from(['text','label','id','a b','Label','1','é','pred_label','confidence'])
numbers = st.one_of(st.integers(-3, 3), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
cells   = st.one_of(texts(True), numbers, st.none())
kinds   = st.sampled_from(['csv','tsv','jsonl','json','parquet'])

@st.composite
def frames(draw, column=None, least=1):
    "A table: names, and rows of cells; a column holds one kind of cell or several"
    columns,n = draw(st.lists(names, min_size=1, max_size=4, unique=True)),draw(st.integers(least, 6))
    kinds = [texts(), texts(True), st.integers(-2**40, 2**40), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), cells] if column is None else [column]
    return pd.DataFrame({c: pd.Series([draw(o) for _ in range(n)], dtype=object) for c in columns for o in [draw(st.sampled_from(kinds))]})

def or_named(f):
    "What `f` gives, or None where it is an `UlmfitError`, in one line"
    try: return f()
    except UlmfitError as e:
        assert '\n' not in str(e) and len(str(e))<2000, e
        return None

no_nul = platform.python_version_tuple()[1]=='10'  # its csv module neither reads nor writes one
def as_written(t): return t.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') if isinstance(t, str) else t
def is_gap(o): return o is None or o is pd.NA or o!=o
def rows_of(df): return [[None if is_gap(o) else o for o in row] for row in df.astype(object).values.tolist()]


# files that others wrote

def bytes_of(df, kind, data):
    "The table as a file, written by what is no part of the library"
    if kind=='parquet':
        f = io.BytesIO()
        df.to_parquet(f, index=False)
        return f.getvalue()
    hypothesis.assume(not (no_nul and kind in ('csv','tsv') and '\0' in ''.join(map(str, df.values.flat))))
    records = [dict(zip(df.columns, row)) for row in df.values.tolist()]
    escaped = data.draw(st.booleans())
    if kind=='jsonl': return '\n'.join(json.dumps(o, ensure_ascii=escaped) for o in records).encode()
    if kind=='json':  return json.dumps(records if data.draw(st.booleans()) else df.to_dict('list'), ensure_ascii=escaped).encode()
    f = io.StringIO(newline='')
    quoting = data.draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
    csv.writer(f, delimiter=',' if kind=='csv' else '\t', quoting=quoting, lineterminator=data.draw(st.sampled_from(['\r\n']+['\n']*(quoting==csv.QUOTE_ALL)))).writerows([df.columns, *df.values.tolist()])
    return (data.draw(st.sampled_from(['', '\ufeff']))+f.getvalue()).encode()

@prop(150, df=frames(texts()), kind=kinds, gz=st.booleans(), data=st.data())
def test_files_come_in_as_they_are(df, kind, gz, data):
    "Each text of each row, from every kind of file"
    raw = bytes_of(df, kind, data)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)/(f'x.{kind}'+'.gz'*gz)
        path.write_bytes(gzip.compress(raw) if gz else raw)
        got = or_named(lambda: read_table(path))
        parts = or_named(lambda: list(TableFile(path).parts(most=2, columns=list(df.columns))))
    if got is None: # nothing but an empty file may be refused, and on Python 3.10 a NUL in a CSV
        assert raw.isspace() or b'\0' in raw and kind in ('csv','tsv') and platform.python_version_tuple()[1]=='10'
        return
    empty = '' if kind in ('json','jsonl','parquet') else None # an empty cell of a CSV is missing
    assert list(got.columns)==list(df.columns)
    assert rows_of(got)==[[o or empty for o in row] for row in df.values.tolist()]
    assert [row for o in parts for row in rows_of(o)]==rows_of(got), 'and the same in parts'

@prop(60, rows=st.lists(cells, min_size=1, max_size=6), kind=st.sampled_from(['jsonl','json']))
def test_numbers_of_json_stay_what_they_are(rows, kind):
    "Type and digits, whatever else the column holds"
    records = [dict(text='a', x=o) for o in rows]
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/f'x.{kind}').write_text(json.dumps(records) if kind=='json' else '\n'.join(map(json.dumps, records)))
        got = or_named(lambda: read_table(Path(d)/f'x.{kind}'))
    if got is None: assert any(isinstance(o, int) and abs(o)>10**4000 for o in rows)
    else: assert [(type(o),o) for o, in rows_of(got[['x']])]==[(type(o),o) for o in rows]

@prop(150, raw=st.one_of(texts().map(lambda t: ('text,label\n'+t).encode()), texts().map(str.encode), st.binary(max_size=40), st.lists(st.sampled_from(odd_parts+['text','a,b']), max_size=12).map(lambda o: ''.join(o).encode())),
      kind=st.sampled_from(['csv','tsv','jsonl','json','txt','parquet','csv.gz']))
def test_any_bytes_are_a_table_or_a_named_error(raw, kind):
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/f'x.{kind}').write_bytes(raw)
        got = or_named(lambda: read_table(Path(d)/f'x.{kind}'))
        how = or_named(lambda: TableFile(Path(d)/f'x.{kind}'))
    if got is None or kind not in ('csv','tsv','txt'): return
    t = raw.decode(how.encoding).removeprefix('\ufeff')
    if kind=='txt': assert len(got)==t.removesuffix('\n').count('\n')+1
    else: # no row is lost, but blank lines where there are several columns
        rows = [o for o in csv.reader(io.StringIO(t, newline=''), delimiter=how.sep, strict=True)]
        rows = rows[next(i for i,o in enumerate(rows) if ''.join(o).strip())+1:]
        assert len(got)==sum(got.shape[1]==1 or len(o)>1 or bool(''.join(o).strip()) for o in rows)


# and out

@prop(150, df=frames(), fmt=st.sampled_from(['.csv','.tsv','.jsonl','.parquet']), gz=st.booleans())
def test_tables_come_back_as_they_were_written(df, fmt, gz):
    gz = gz and fmt!='.parquet'
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)/(f'x{fmt}'+'.gz'*gz)
        write_table(df, path, fmt, gz)
        got = or_named(lambda: read_table(path))
    if got is None: # a table of one column without a word in it, or on Python 3.10 a NUL
        assert platform.python_version_tuple()[1]=='10'
        return
    assert list(got.columns)==list(df.columns) and len(got)==len(df)
    for c in df:
        want = [None if o is None else as_written(o) for o in df[c]]
        have = [o for o, in rows_of(got[[c]])]
        if fmt=='.jsonl': assert [(type(o),o) for o in have]==[(type(o),o) for o in want]
        elif fmt=='.parquet': assert have==want or have==[None if o is None else str(o) for o in want]
        else: assert have==[None if o in (None,'') else str(o).replace('\0', '\ufffd' if no_nul else '\0') for o in want]

odd_cells = st.recursive(st.one_of(cells, st.binary(max_size=4), st.dates(), st.datetimes(), st.decimals(allow_nan=False), st.just(float('nan')), st.just(pd.NA), st.just(pd.NaT)),
                         lambda o: st.one_of(st.lists(o, max_size=3), st.dictionaries(texts(True), o, max_size=2), st.lists(o, max_size=2).map(tuple), st.lists(st.integers(-9, 9), max_size=2).map(np.array)), max_leaves=5)

@prop(80, column=st.lists(odd_cells, min_size=1, max_size=4), fmt=st.sampled_from(['.csv','.jsonl','.parquet']))
def test_any_cell_can_be_written(column, fmt):
    "Whatever the columns hold that only go through: no error after the work, and no row more or less"
    df = pd.DataFrame(dict(text='a', x=pd.Series(column, dtype=object)))
    with tempfile.TemporaryDirectory() as d:
        write_table(df, Path(d)/f'x{fmt}', fmt)
        assert read_table(Path(d)/f'x{fmt}').text.tolist()==['a']*len(df)

@prop(80, rows=st.lists(st.lists(texts().map(lambda t: t.replace('\r', ' ').replace('\0', ' ' if no_nul else '\0')), unique=True, max_size=4), min_size=1, max_size=5), delim=st.sampled_from([',',';','|',' / ','\t']))
def test_several_labels_come_back(rows, delim):
    "None of them too; where they could not be told apart, that is said before the work"
    col = pd.Series(rows, dtype=object)
    labels,classes,missing = read_labels(col)
    assert not missing.any()
    with tempfile.TemporaryDirectory() as d:
        path = Path(d)/'x.csv'
        try: check_delim(path, classes, delim)
        except UlmfitError: return
        write_table(pd.DataFrame(dict(text='a', label=labels)), path, label_delim=delim)
        assert read_labels(read_table(path).label, delim)[0]==labels


# labels

labels  = st.one_of(texts(True), st.sampled_from(['pos','pos ','01','1','1.0',1,True,'True',1.5,'nan',float('nan'),None,'','caf\xe9','cafe\u0301']), numbers)

def is_label(o): return not is_gap(o) and bool(o.strip() if isinstance(o, str) else True)

@prop(60, column=st.lists(st.sampled_from(range(5)), min_size=4, max_size=16), pool=st.lists(labels, min_size=5, max_size=5), pct=st.floats(.05, .95), seed=st.integers(0, 99), listed=st.booleans())
@example(column=[0,1,0,1,2], pool=['01','1','1.0','x','y'], pct=.2, seed=0, listed=False)
@example(column=[0,1,2,2], pool=['True',1,True,'',''], pct=.5, seed=0, listed=False) # True equals 1
def test_each_label_is_a_class_and_each_row_is_on_one_side(column, pool, pct, seed, listed):
    "Distinct labels are distinct classes, which name them again; or it is said that two look the same"
    given = [pool[i] for i in column]
    df = pd.DataFrame(dict(text=[f'text number {i}' for i in range(len(given))], label=pd.Series([[o] for o in given] if listed else given, dtype=object)))
    def _dls(): return ulmfit_dls(df, path=tempfile.gettempdir(), cache=False, min_freq=1, valid_pct=pct, seed=seed)
    d = or_named(_dls)
    there = [o for o in given if is_label(o)]
    if d is None:
        looks = collections.defaultdict(set)
        for o in there: looks[visible(label_name(o))].add((isinstance(o, str), o))
        counts = collections.Counter(map(label_name, there))
        assert any(len(o)>1 for o in looks.values()) or len(counts)<2 or len(there)<2 or not listed and max(counts.values())==1
        return
    values = d.cols['label_values'] or d.classes
    assert len(d.classes)==len({(isinstance(o, str),label_name(o)) for o in there})
    for o,y in zip(given, d.y):
        have = y if listed else [] if y is None else [y]
        assert have==([label_name(o)] if is_label(o) else [])
        if have and not isinstance(o, str): assert values[d.classes.index(have[0])]==o
    labelled = list(range(len(given))) if listed else [i for i,o in enumerate(given) if is_label(o)]
    assert sorted([*d.train_idx,*d.valid_idx])==labelled and len(d.valid_idx) and len(d.train_idx)
    col = df.label.iloc[labelled]
    targs = label_targets(col, d.classes, listed)
    assert [[d.classes[j] for j in np.flatnonzero(row)] for row in np.asarray(targs)]==[d.y[i] for i in labelled] if listed else [d.classes[j] for j in targs]==[d.y[i] for i in labelled]


# answers

@pytest.fixture(scope='module')
def ens(tmp_path_factory):
    dls  = ulmfit_dls(make_df(20), path=tmp_path_factory.mktemp('rows'), seed=0, min_freq=1, bs=8, bptt=20)
    tiny = dict(emb_sz=8, n_hid=12, n_layers=2)
    return BidirEnsemble(*[ulmfit_classifier(o, tiny) for o in (dls.clas_fwd,dls.clas_bwd)])

answer_texts = st.one_of(texts(True), st.none(), st.lists(st.sampled_from(['good','cat','the','.']), max_size=90).map(' '.join))

@prop(40, rows=st.lists(answer_texts, min_size=1, max_size=8), more=st.lists(names, max_size=4, unique=True), index=st.sampled_from(['range','names','same','gaps']), seed=st.integers(0, 99))
def test_answers_stand_beside_their_texts(ens, rows, more, index, seed):
    "In their order and with their index, whatever the order, the other rows and the other columns"
    n   = len(rows)
    idx = dict(range=range(n), names=[f'r{i}' for i in range(n)], same=['x']*n, gaps=[3*i-5 for i in range(n)])[index]
    df  = pd.DataFrame({**{c: list(range(n)) for c in more}, 'text': pd.Series(rows, dtype=object)})[[*dict.fromkeys([*more,'text'])]].set_axis(idx)
    was = df.copy(deep=True)
    res = or_named(lambda: ens.predict_df(df, progress=False))
    pd.testing.assert_frame_equal(df, was)
    if res is None: return
    assert list(res.columns[:df.shape[1]])==list(df.columns) and not res.columns.has_duplicates and list(res.index)==list(df.index)
    pd.testing.assert_frame_equal(res[list(df.columns)], df)
    order = np.random.default_rng(seed).permutation(n)
    new   = [c for c in res if c not in df.columns]
    again = ens.predict_df(df.iloc[order], progress=False)
    assert np.allclose(again[new[2:]].to_numpy(float), res[new[2:]].iloc[order].to_numpy(float), atol=1e-5)
    alone = ens.predict_df([as_text(rows[order[0]])], progress=False)
    assert np.allclose(alone.iloc[0,-2:].to_numpy(float), res[new[-2:]].iloc[order[0]].to_numpy(float), atol=1e-5)
