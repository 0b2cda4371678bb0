"Files in, files of answers out, a part at a time: whatever the kinds, stopped and killed, through pipes; what is wrong is said before the work"
import gzip,io,json,os,random,signal,subprocess,sys
from pathlib import Path
import numpy as np,pandas as pd,pytest
from typer.testing import CliRunner
from made_up import make_df
import ulmfit_ext.label_file as lf
from ulmfit_ext import cli
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.text.files import TableFile
from ulmfit_ext.text.tables import read_table

root = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A folder with a tiny model"
    d = tmp_path_factory.mktemp('label_file')
    dls = ulmfit_dls(make_df(40), path=d, seed=0, min_freq=1, bs=8, bptt=20, cache=False)
    return BidirEnsemble(*[ulmfit_classifier(o, dict(emb_sz=8, n_hid=12, n_layers=2)) for o in (dls.clas_fwd,dls.clas_bwd)]).save(d/'model')

@pytest.fixture(scope='module')
def ens(model): return load_ulmfit(model)

@pytest.fixture(autouse=True)
def little_parts(monkeypatch): monkeypatch.setattr(lf, '_most', 8)

def texts(n=30): return make_df(n, seed=5)[['text']].assign(id=[f'{i:03}' for i in range(n)])

def write(df, path, **kwargs):
    kind = path.name.split('.')[1]
    dict(csv=lambda: df.to_csv(path, index=False, **kwargs), tsv=lambda: df.to_csv(path, index=False, sep='\t'), txt=lambda: path.write_text('\n'.join(df.text)), parquet=lambda: df.to_parquet(path),
         jsonl=lambda: df.to_json(path, orient='records', lines=True), ndjson=lambda: df.to_json(path, orient='records', lines=True), json=lambda: df.to_json(path, orient='records'), xlsx=lambda: df.to_excel(path, index=False))[kind]()
    return path

def run(*args, code=0, input=None):
    res = CliRunner(env=dict(COLUMNS='120', TERM='dumb')).invoke(cli.app, [str(o) for o in args], prog_name='ulmfit', input=input)
    assert res.exit_code==code, res.output
    return res

def counting(monkeypatch, stop=None, how=None):
    "Note how many texts the model is asked of; at the `stop`-th time do `how`"
    asked,real = [],BidirEnsemble.predict_df
    def _predict_df(self, df, *args, **kwargs):
        asked.append(len(df))
        if len(asked)==stop: how()
        return real(self, df, *args, **kwargs)
    monkeypatch.setattr(BidirEnsemble, 'predict_df', _predict_df)
    return asked

def interrupt(): raise KeyboardInterrupt

def left(folder): return sorted(o.name for o in folder.iterdir())


# ---- kinds of files

@pytest.mark.parametrize('source', ['a.csv','a.csv.gz','a.tsv','a.jsonl','a.ndjson','a.json','a.parquet','a.txt','a.xlsx'])
@pytest.mark.parametrize('target', ['b.csv','b.tsv.gz','b.jsonl','b.parquet'])
def test_every_kind_to_every_kind(ens, tmp_path, source, target):
    "In parts it is what `predict_df` says of all at once"
    if 'xlsx' in source: pytest.importorskip('openpyxl')
    df = texts()
    path = write(df, tmp_path/source)
    assert ens.label_file(path, tmp_path/target)==30
    got  = read_table(tmp_path/target)
    want = ens.predict_df(read_table(path), progress=False)
    assert list(got.columns)==list(want.columns) and got.label.tolist()==want.label.tolist()
    assert [list(map(str, o)) for o in got[list(read_table(path))].values]==[list(map(str, o)) for o in read_table(path).values]
    assert np.allclose(got[ens.classes].astype(float), want[ens.classes], atol=1e-5)
    assert left(tmp_path)==sorted([source,target])

def test_as_it_comes_from_excel(model, tmp_path):
    "Found out and said in a line; or as the user says"
    df = texts(20).assign(text=lambda d: d.text+' déçu; vraiment')
    write(df, tmp_path/'a.csv', sep=';', encoding='latin-1')
    res = run('predict', model, tmp_path/'a.csv', '--out', tmp_path/'b.csv')
    assert f"ulmfit: note: '{tmp_path/'a.csv'}' is read as Latin-1 (or pass --encoding …), separator ';' (or pass --sep …)" in res.stderr
    assert read_table(tmp_path/'b.csv').text.tolist()==df.text.tolist()
    res = run('predict', model, tmp_path/'a.csv', '--sep', ';', '--encoding', 'cp1252', '--out', tmp_path/'c.csv')
    assert 'is read as' not in res.stderr and (tmp_path/'c.csv').read_bytes()==(tmp_path/'b.csv').read_bytes()
    assert 'which is none' in run('predict', model, tmp_path/'a.csv', '--encoding', 'klingon', code=1).stderr
    assert 'pass the one character' in run('predict', model, tmp_path/'a.csv', '--sep', ';;', code=1).stderr
    for line in ('train','evaluate'): assert '--encoding' in run(line, '--help').output

def test_columns_that_begin_late(ens, tmp_path):
    "In the 20th line of JSON; all rows have it"
    (tmp_path/'a.jsonl').write_text(''.join(json.dumps(dict(text='good cat', **({'x': i} if i>20 else {})))+'\n' for i in range(30)))
    ens.label_file(tmp_path/'a.jsonl', tmp_path/'b.csv')
    got = read_table(tmp_path/'b.csv')
    assert list(got)[:2]==['text','x'] and got.x.fillna('').tolist()==['']*21+[str(i) for i in range(21, 30)]

def test_a_column_of_several_types(ens, tmp_path):
    "Whole numbers in one part, words in the next"
    (tmp_path/'a.jsonl').write_text(''.join(json.dumps(dict(text='good cat', x=i if i<9 else 'many', y=2**60+i if i<9 else None if i<17 else .5))+'\n' for i in range(20)))
    ens.label_file(tmp_path/'a.jsonl', tmp_path/'b.parquet')
    got = read_table(tmp_path/'b.parquet')
    assert got.x.tolist()==[*map(str, range(9)), *['many']*11] and got.y[8]==str(2**60+8) and got.y[19]=='0.5'


# ---- pipes

def test_standard_input_and_output(model, tmp_path):
    "CSV, another separator, lines of JSON, gzip'd: found out by the beginning; --to says what comes out"
    df = texts(20)
    want = pd.read_csv(io.StringIO(run('predict', model, write(df, tmp_path/'a.csv')).stdout), dtype=dict(id=str))
    lines = df.to_json(orient='records', lines=True)
    for sent in (df.to_csv(index=False), df.to_csv(index=False, sep=';'), lines, gzip.compress(lines.encode())):
        got = pd.read_csv(io.StringIO(run('predict', model, '-', input=sent).stdout), dtype=dict(id=str))
        pd.testing.assert_frame_equal(got, want)
    out = [json.loads(o) for o in run('predict', model, '-', '--to', 'jsonl', '--out', '-', input=lines).stdout.splitlines()]
    assert [o['label'] for o in out]==want.label.tolist() and out[3]['id']=='003'
    assert run('predict', model, '-', '--to', 'tsv', input=lines).stdout.splitlines()[0].split('\t')==list(want)
    plain = run('predict', model, '-', '--kind', 'txt', input='\n'.join(df.text)).stdout
    assert pd.read_csv(io.StringIO(plain)).text.tolist()==df.text.tolist()
    assert 'labelled, in' in run('predict', model, '-', '--out', tmp_path/'b.csv', input=lines).stderr and len(read_table(tmp_path/'b.csv'))==20

def test_what_is_wrong_with_standard_input(model):
    assert "no column 'text': the columns are body" in run('predict', model, '-', input='body\na\n', code=1).stderr
    assert "'standard input' is empty" in run('predict', model, '-', input='', code=1).stderr
    assert 'needs one for each text' in run('predict', model, '-', input='text\n', code=1).stderr
    res = run('predict', model, '-', input='text,x\n'+'good cat,1\n'*20+'good, really,1\n', code=1)
    assert 'line 22 has more fields' in res.stderr and len(res.stdout.splitlines())==17, 'what came before is answered'


# ---- before the work

@pytest.mark.parametrize('content,says', [('text,x\n'+'good cat,1\n'*40+'good, really,1\n', 'line 42 has more fields'), ('text,x\n'+'good cat,1\n'*40+'"never closed,1\n', 'begins in line 42'),
    ('text\n', 'no rows'), ('body\ngood cat\n', "no column 'text'"), ('text,label,pred_label\n'+'good cat,a,b\n'*20, "has columns 'label' and 'pred_label' already"), ('text,text\na,b\n', "2 columns are called 'text'")])
def test_a_broken_file_is_found_out_before_the_work(ens, tmp_path, monkeypatch, content, says):
    asked = counting(monkeypatch)
    (tmp_path/'a.csv').write_text(content)
    (tmp_path/'b.csv').write_text('old')
    with pytest.raises(UlmfitError, match=says): ens.label_file(tmp_path/'a.csv', tmp_path/'b.csv')
    assert asked==[] and left(tmp_path)==['a.csv','b.csv'] and (tmp_path/'b.csv').read_text()=='old'

def test_other_things_that_are_found_out_before_the_work(ens, tmp_path, monkeypatch):
    asked = counting(monkeypatch)
    a = tmp_path/'a.jsonl'
    a.write_text(''.join(json.dumps(dict(text='good' if i<40 else ['good','cat']))+'\n' for i in range(50)))
    with pytest.raises(UlmfitError, match='rows 0 to 50: a text is a list'): ens.label_file(a, tmp_path/'b.csv')
    a.write_text('{"text": "good"}\n'*40+'{"text": \n')
    with pytest.raises(UlmfitError, match='line 41 is not JSON'): ens.label_file(a, tmp_path/'b.csv')
    write(texts(), tmp_path/'c.csv')
    for kwargs,says in ((dict(at_least=90), 'between 0 and 1'), (dict(text_col='body'), "no column 'body'"), (dict(encoding='x'), 'which is none')):
        with pytest.raises(UlmfitError, match=says): ens.label_file(tmp_path/'c.csv', tmp_path/'b.csv', **kwargs)
    for out,says in (('b.doc', 'an ending that is not known'), ('c.csv/b.csv', 'cannot write'), ('', 'is a folder')):
        with pytest.raises(UlmfitError, match=says): ens.label_file(tmp_path/'c.csv', tmp_path/out)
    assert asked==[] and left(tmp_path)==['a.jsonl','c.csv']


# ---- stopped, and going on

@pytest.mark.parametrize('target', ['b.csv','b.tsv','b.jsonl','b.csv.gz','b.parquet'])
def test_the_same_line_goes_on_after_ctrl_c(model, tmp_path, monkeypatch, target):
    "What is there stays until the new one is complete, which is the same as without a stop; nothing is labelled twice"
    a = write(texts(), tmp_path/'a.csv')
    run('predict', model, a, '--out', tmp_path/('want_'+target))
    (tmp_path/target).write_text('old')
    with monkeypatch.context() as m:
        asked = counting(m, 3, interrupt)
        res = run('predict', model, a, '--out', tmp_path/target, code=130)
        assert res.stderr.splitlines()[-1]==f"Stopped. 16 texts are labelled, in {tmp_path/target}.part: the same line goes on from there"
    assert (tmp_path/target).read_text()=='old' and left(tmp_path)==['a.csv', target, target+'.part', 'want_'+target]
    with monkeypatch.context() as m:
        asked = counting(m)
        res = run('predict', model, a, '--out', tmp_path/target)
    assert asked==[8,6] and '16 texts were labelled before: this run goes on there' in res.stderr and '30 texts labelled' in res.stderr
    assert (tmp_path/target).read_bytes()==(tmp_path/('want_'+target)).read_bytes() and left(tmp_path)==['a.csv', target, 'want_'+target]

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('where', ['asked','written','counted'])
def test_a_kill_costs_a_part(ens, tmp_path, monkeypatch, where):
    "SIGKILL while the model reads, after the rows are written and before they are counted, and after that"
    a = write(texts(), tmp_path/'a.csv')
    ens.label_file(a, tmp_path/'want.csv')
    pid = os.fork()
    if not pid:
        def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
        if where=='asked': counting(monkeypatch, 3, die)
        else:
            import ulmfit_ext.text.kept as kept
            real,n = kept.atomic_write,[]
            def _dies(path):
                if path.name=='done.json': n.append(path)
                if len(n)==(2 if where=='written' else 3): die()
                return real(path)
            kept.atomic_write = _dies
        ens.label_file(a, tmp_path/'b.csv')
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1])==signal.SIGKILL
    asked = counting(monkeypatch)
    with pytest.warns(UserWarning, match='texts were labelled before'): ens.label_file(a, tmp_path/'b.csv')
    assert asked==dict(asked=[8,6], written=[8,8,6], counted=[8,6])[where]
    assert (tmp_path/'b.csv').read_bytes()==(tmp_path/'want.csv').read_bytes() and left(tmp_path)==['a.csv','b.csv','want.csv']

def test_another_question_begins_anew(model, ens, tmp_path, monkeypatch):
    "Another threshold, another file, another model: what was kept is not mixed in"
    a = write(texts(), tmp_path/'a.csv')
    def stopped():
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            counting(m, 3, interrupt)
            ens.label_file(a, tmp_path/'b.csv')
    stopped()
    with pytest.warns(UserWarning, match='16 rows of a run that was stopped, with another options'): ens.label_file(a, tmp_path/'b.csv', at_least=.9)
    stopped()
    write(texts(31), a)
    with pytest.warns(UserWarning, match='with another file'): ens.label_file(a, tmp_path/'b.csv')
    assert len(read_table(tmp_path/'b.csv'))==31
    stopped()
    other = BidirEnsemble(ens.models['forward'])
    assert other.fingerprint()!=ens.fingerprint()==load_ulmfit(model).fingerprint()
    with pytest.warns(UserWarning, match='with another model'): other.label_file(a, tmp_path/'b.csv')
    assert left(tmp_path)==['a.csv','b.csv']

def test_two_runs_into_one_file(ens, tmp_path, monkeypatch):
    a = write(texts(), tmp_path/'a.csv')
    code = ("import sys; from ulmfit_ext.text.kept import kept_table; from pathlib import Path\n"
            "with kept_table(Path(sys.argv[1]), {}): print('in', flush=True); sys.stdin.read()")
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, tmp_path/'b.csv'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH':str(root)})
    p.stdout.readline()
    with pytest.raises(UlmfitError, match='another run is at work'): ens.label_file(a, tmp_path/'b.csv')
    p.communicate()
    ens.label_file(a, tmp_path/'b.csv')


# ---- thresholds and notes

def test_at_least(model, tmp_path):
    a = write(texts(), tmp_path/'a.csv')
    all_ = pd.read_csv(io.StringIO(run('predict', model, a).stdout))
    p = round(float(all_.confidence.median()), 5)
    got = pd.read_csv(io.StringIO(run('predict', model, a, '--at-least', p).stdout))
    assert got.label.isna().tolist()==(all_.confidence<p).tolist() and 0<got.label.isna().sum()<30
    assert got.drop(columns='label').equals(all_.drop(columns='label'))
    run('predict', model, a, '--at-least', '90', code=2)

def test_notes(model, tmp_path):
    "Rows that say nothing to the model, counted over all parts and over a stop; or a column"
    df = texts(30)
    df.loc[[3,20],'text'],df.loc[[25],'text'] = '','qwrty plugh xyzzy'
    a = write(df, tmp_path/'a.csv')
    err = run('predict', model, a).stderr
    assert 'note: 2 of 30 texts are empty (rows 3, 20, counted from 0)' in err and '1 of 30 texts are mostly of words that the model does not know (rows 25,' in err
    with pytest.MonkeyPatch.context() as m:
        m.setattr(lf, '_most', 8)
        counting(m, 3, interrupt)
        run('predict', model, a, '--out', tmp_path/'b.csv', code=130)
    assert '2 of 30 texts are empty (rows 3, 20' in run('predict', model, a, '--out', tmp_path/'b.csv').stderr
    got = pd.read_csv(io.StringIO(run('predict', model, a, '--notes').stdout))
    assert list(got)[-1]=='note' and got.note.dropna().to_dict()=={3: 'empty', 20: 'empty', 25: 'mostly unknown words'}

def test_the_meter(ens, tmp_path):
    "On a terminal: how many, how fast, how long; then it is wiped away"
    a = write(texts(), tmp_path/'a.csv')
    said = io.StringIO()
    lf.FileLabeller(a, tmp_path/'b.csv').run(ens, meter=said)
    lines = said.getvalue().split('\r\x1b[K')
    assert len(lines)==6 and lines[1].startswith('8 of 30 texts, ') and ' a second, ' in lines[1] and lines[1].endswith(' left') and lines[-1]==''
