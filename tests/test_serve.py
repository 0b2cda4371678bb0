"The page that answers: the same as `predict_df`, limits, who may ask, several at a time"
import io,os,re,signal,socket,subprocess,sys,threading
from concurrent.futures import ThreadPoolExecutor,as_completed
from contextlib import contextmanager
from pathlib import Path
import numpy as np,pandas as pd,pytest
from made_up import make_df,make_ensemble,make_texts
from typer.testing import CliRunner
from ulmfit_ext.cli import app
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.integrations import serve
pytest.importorskip('fastapi')
import httpx,uvicorn
from fastapi.testclient import TestClient

root  = Path(__file__).parents[1]
texts = ['A good cat', 'Unknown wörds 😀', 'line\nbreak, and "quotes"', '', *make_texts(20, seed=1, longest=60)]
evil  = '<img src=x onerror="alert(1)">'

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A model with three voices, of whose classes one is a piece of HTML"
    tmp,df = tmp_path_factory.mktemp('saved'),make_df(longest=20)
    return make_ensemble(tmp, df.replace('neg', evil)).save(tmp/'pets'/'model')
@pytest.fixture(scope='module')
def ens(saved): return load_ulmfit(saved)
@pytest.fixture(scope='module')
def multi(tmp_path_factory):
    tmp,df = tmp_path_factory.mktemp('multi'),make_df()
    df['label'] = [';'.join(o for o in ('cat','dog','bird') if o in t) or ';' for t in df.text]
    return load_ulmfit(make_ensemble(tmp, df, label_delim=';').save(tmp/'model'))

def client(ens, hosts=None, **limits):
    return TestClient(serve.make_app(ens, 'pets', serve.Limits(**limits), hosts), base_url='http://127.0.0.1')
@pytest.fixture(scope='module')
def web(ens): return client(ens)

@contextmanager
def running(app):
    "The address of a real server in a thread"
    server = uvicorn.Server(uvicorn.Config(app, log_level='error'))
    with serve._listening('127.0.0.1', 0) as sock:
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]))
        thread.start()
        yield f'http://127.0.0.1:{sock.getsockname()[1]}'
        server.should_exit = True
        thread.join()

@pytest.fixture
def url(ens):
    with running(serve.make_app(ens, 'pets')) as res: yield res

def close(a, b): np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=2e-6)
def says(response, status, *words):
    "The answer is a problem, told in a sentence or two"
    said = response.json()['detail']
    assert response.status_code==status and isinstance(said, str) and '\n' not in said, response.text
    assert all(o in said for o in words), said
    return said
def send(web, data, **params): return web.post('/api/file', params=params, content=data.encode() if isinstance(data, str) else data)
def table(response):
    assert response.status_code==200, response.text
    return pd.read_csv(io.StringIO(response.text), keep_default_na=False)

# The same answers

def test_answers_are_those_of_predict_df(ens, web):
    said,df = web.post('/api/predict', json=dict(texts=texts)).json(),ens.predict_df(texts, progress=False)
    assert [o['label'] for o in said['answers']]==df.label.tolist() and said['seconds']>0
    close([o['confidence'] for o in said['answers']], df.confidence)
    close([[o['probabilities'][c] for c in ens.classes] for o in said['answers']], df[ens.classes])

def test_voices(ens, web):
    "Each voice and all together, which are the ensemble's answer and come last"
    for text in texts:
        said = web.post('/api/voices', json=dict(text=text)).json()
        assert list(said['voices'])==['words','forward','backward','both','all'] and said['label']==ens.predict(text)[0]
        close(list(said['voices']['all'].values()), ens.predict(text)[2])
        close(list(said['voices']['forward'].values()), ens.predictor('forward')([text], progress=False)[0])

def test_one_direction_has_one_voice(ens):
    said = client(BidirEnsemble(ens.models['backward'])).post('/api/voices', json=dict(text='a cat')).json()
    assert list(said['voices'])==['backward']

def test_several_labels(multi):
    web = client(multi)
    df  = multi.predict_df(texts, progress=False)
    assert [o['label'] for o in web.post('/api/predict', json=dict(texts=texts)).json()['answers']]==df.label.tolist()
    assert web.post('/api/voices', json=dict(text=texts[0])).json()['label']==df.label[0]
    back = table(send(web, pd.DataFrame(dict(text=texts)).to_csv(index=False)))
    assert [[p for p in o.split(';') if p] for o in back.label]==df.label.tolist()

def test_labels_that_are_numbers(tmp_path):
    "They are numbers in the answer, and strings where they name something"
    df  = make_df().replace(dict(neg=0, pos=1))
    web = client(load_ulmfit(make_ensemble(tmp_path, df.astype(dict(label=int))).save(tmp_path/'model')))
    said = web.post('/api/predict', json=dict(texts=['a cat'])).json()['answers'][0]
    assert said['label'] in (0,1) and type(said['label']) is int and set(said['probabilities'])=={'0','1'}
    assert web.get('/api/model').json()['classes']==['0','1']
    assert web.post('/api/explain', json=dict(text='a cat', label='1')).json()['label']=='1'

def test_model(web):
    said = web.get('/api/model').json()
    assert said['name']=='pets' and said['classes']==[evil,'pos'] and said['limits']['chars']==50_000

# Why

def found(text, *rows): return serve._pieces(text, pd.DataFrame(rows, columns=['start','end','contribution']))

def test_explanations(web, monkeypatch):
    "The text comes back in pieces, whole; for the class that is asked for"
    asked = []
    def _explanation(ens, text, label):
        asked.append(label)
        return pd.DataFrame([(0,1,-.5), (2,6,.25)], columns=['start','end','contribution'])
    monkeypatch.setattr(serve, '_explanation', _explanation)
    said = web.post('/api/explain', json=dict(text='😀 good', label='pos')).json()
    assert said['pieces']==[dict(text='😀', contribution=-.5), dict(text=' ', contribution=0), dict(text='good', contribution=.25)]
    likeliest = web.post('/api/explain', json=dict(text='😀 good')).json()['label']
    assert asked==['pos', likeliest] and likeliest==max(web.post('/api/voices', json=dict(text='😀 good')).json()['voices']['all'].items(), key=lambda o: o[1])[0]
    says(web.post('/api/explain', json=dict(text='a', label='nothing')), 422, "no class 'nothing'", 'pos')
    says(web.post('/api/explain', json=dict(text='a'*5001)), 422, 'text', '5000')

def test_pieces_are_the_text():
    "Whatever places a tokenizer gives"
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = ''.join(rng.choice(list('ab 😀\n'), rng.integers(0, 12)))
        rows = [(*sorted(rng.integers(-2, 15, 2).tolist()), float(rng.normal())) for _ in range(rng.integers(0, 6))]
        assert ''.join(o['text'] for o in found(text, *rows))==text
    assert found('ab', (0,1,1.), (0,1,2.), (1,1,9.))==[dict(text='a', contribution=3.), dict(text='b', contribution=0.)]

# Files

def test_a_file_comes_back_labelled(ens, web):
    "Each row as it was, with what `predict_df` says beside it, in whichever format it came"
    df = pd.DataFrame(dict(id=range(len(texts)), review=texts, label=['mine']*len(texts)))
    wanted = ens.predict_df(df, text_col='review', progress=False)
    for name,data in {'a.csv': df.to_csv(index=False), 'b.TSV': df.to_csv(index=False, sep='\t'),
                      'c.jsonl': df.to_json(orient='records', lines=True), 'd.json': df.to_json(orient='records')}.items():
        response = send(web, data, name=name, text='review')
        back = table(response)
        assert back.columns.tolist()==wanted.columns.tolist() and response.headers['x-rows']==str(len(df))
        assert back[['id','review','label','pred_label']].equals(wanted[['id','review','label','pred_label']])
        close(back[ens.classes], wanted[ens.classes])
    for kind in ('xlsx','parquet'):
        made = io.BytesIO()
        df.to_excel(made, index=False) if kind=='xlsx' else df.to_parquet(made, index=False)
        back = table(send(web, made.getvalue(), name=f'e.{kind}', text='review'))
        assert back.columns.tolist()==wanted.columns.tolist()
        assert back[back.review!=''].pred_label.tolist()==wanted[wanted.review!=''].pred_label.tolist()
    assert response.headers['content-type']=='text/csv; charset=utf-8' and 'labelled.csv' in response.headers['content-disposition']

def test_a_file_of_many_parts(ens, web, monkeypatch):
    "One header, all rows, in their order"
    monkeypatch.setattr(serve._parts, '__defaults__', (50, 3))
    df = pd.DataFrame({'text': texts, 'a "b"\n,': ['x\r\ny']*len(texts)})
    back = table(send(web, df.to_csv(index=False)))
    assert back.text.tolist()==texts and back.columns.tolist()==ens.predict_df(df, progress=False).columns.tolist()
    close(back[ens.classes], ens.predict_df(df, progress=False)[ens.classes])

def test_how_a_file_is_read_is_said_to_who_sent_it(ens, web, recwarn):
    "In the answer, and not in the server's terminal with a path and options that this server has not"
    data = 'id;text\n1;ein süßer Hund, größer als die Straße\n2;çà et là, très bien\n'
    response = send(web, data.encode('latin-1'), name='Anna & Bo.csv')
    assert response.headers['x-read-as']=="Latin-1, separator ';'" and table(response).text[0].startswith('ein süßer Hund,')
    assert not [o for o in recwarn if 'is read as' in str(o.message)]
    assert 'x-read-as' not in send(web, 'text\na cat\n').headers
    says(send(web, 'text\n', name='none.csv'), 422, "'none.csv' has a header and no rows")

def test_a_column_alone_needs_no_name(web):
    assert table(send(web, 'review\na cat\n')).review.tolist()==['a cat']
    assert table(send(web, 'a cat\na dog\n', name='pets.txt')).text.tolist()==['a cat','a dog']

@pytest.mark.parametrize('data,name,words', [
    ('a,b\nx,y\n', 'a.csv', ["no column 'text'", 'a, b']), ('text,b\nx,y,z\n', 'mine.csv', ["'mine.csv'",'line 2']),
    ('', 'a.csv', ['empty']), ('text\n', 'a.csv', ['no rows']), (b'PK\3\4', 'a.xlsx', ["'a.xlsx'",'xlsx']), (b'PAR1', 'a.parquet', ["'a.parquet'"]), (b'x', 'a.docx', ['not of a kind','csv','xlsx']),
    (b'\x1f\x8b', 'a.csv.gz', ['without .gz']), ('{"text": 1', 'a.json', ["'a.json'"]),
    ('text,b\nx,y\n' + 'a'*101+',y\n', 'a.csv', ['Row 1','101','100','--max-chars']), ('text,text\na,b\n', 'a.csv', ['2 columns']),
    ('text,pos,p_pos\na,b,c\n', 'a.csv', ['p_pos'])])
def test_files_that_are_wrong(ens, data, name, words): says(send(client(ens, chars=100), data, name=name), 422, *words)

@pytest.mark.parametrize('kind', ['xlsx','parquet'])
def test_a_small_file_that_holds_much(ens, kind):
    "What is compressed is asked how much it holds before it is read"
    made,df = io.BytesIO(),pd.DataFrame(dict(text=[f'{i:>30000}' for i in range(400)]))
    df.to_excel(made, index=False) if kind=='xlsx' else df.to_parquet(made, index=False, compression='zstd', use_dictionary=False)
    assert len(made.getvalue())<1e6
    says(send(client(ens, mb=1), made.getvalue(), name=f'a.{kind}'), 422, f"'a.{kind}' holds 12 MB when it is unpacked, and 10 are allowed")

def test_columns_to_choose_from(web): assert send(web, 'a,b\nx,y\n').json()['columns']==['a','b']

# How much

def test_limits(ens):
    web = client(ens, chars=10, texts=2, mb=1)
    assert web.post('/api/predict', json=dict(texts=['a'*10]*2)).status_code==200
    says(web.post('/api/predict', json=dict(texts=['a', 'secret'*2])), 422, 'texts[1]', '10')
    says(web.post('/api/predict', json=dict(texts=['a']*3)), 422, 'texts', '2')
    says(web.post('/api/voices', json=dict(text='a'*11)), 422, 'text', '10')
    says(send(web, b'a'*1_000_001), 413, '1 MB', '--max-mb')
    says(web.post('/api/file', content=iter([b'a'*600_000]*2)), 413, '1 MB')                    # its length is not told
    says(web.post('/api/predict', content=iter([b' '*600_000]*2), headers={'content-type': 'application/json'}), 413, '1 MB')

@pytest.mark.parametrize('body', ['{"texts', '{}', '{"texts": []}', '{"texts": "secret"}', '{"texts": [3]}', r'{"texts": ["secret\ud800"]}', '[]', 'null'])
def test_requests_that_are_wrong(web, body):
    "A sentence, without what was sent"
    assert 'secret' not in says(web.post('/api/predict', content=body, headers={'content-type': 'application/json'}), 422)

def test_odd_texts(web):
    odd = ['\0', '\r', '\u202e', 'a'*3000, ' ', '=1+1', '</script>']
    assert len(web.post('/api/predict', json=dict(texts=odd)).json()['answers'])==len(odd)

# Who

def test_nothing_from_elsewhere(web):
    "The pages load only what stands beside them, run no script within them, and the browser is told to see to that"
    for path in ('/','/docs','/page.js','/docs.js','/page.css'):
        page = web.get(path)
        assert page.status_code==200 and not re.search(r'https?:|//[a-z]|@import|innerHTML|insertAdjacent|document\.write|eval\(', re.sub(r'^ *//.*|(?<= )// .*', '', page.text, flags=re.M)), path
        assert "default-src 'none'" in page.headers['content-security-policy'] and page.headers['x-content-type-options']=='nosniff'
        assert not re.search(r'<script(?! src="\w+\.js")|<style|\son\w+=|style=', page.text), path
    assert web.get('/redoc').status_code==404 and 'swagger' not in web.get('/docs').text

def test_it_describes_itself(web):
    said = web.get('/openapi.json').json()
    assert set(said['paths'])=={'/api/model','/api/predict','/api/voices','/api/explain','/api/file'}
    for methods in said['paths'].values():
        for op in methods.values(): assert op['description']
    assert said['components']['schemas']['Texts']['properties']['texts']['maxItems']==1000

def test_who_may_ask(ens):
    web = client(ens, hosts=['127.0.0.1','localhost','::1'])
    for host in ('127.0.0.1:8000','localhost','LOCALHOST:1','[::1]:8000'): assert web.get('/', headers=dict(host=host)).status_code==200
    for host in ('evil.example','127.0.0.1.evil.example:8000',''): says(web.get('/', headers=dict(host=host)), 421, '127.0.0.1')
    says(web.post('/api/file', content=b'', headers={'sec-fetch-site': 'cross-site'}), 403)
    assert 'access-control-allow-origin' not in web.get('/api/model', headers=dict(origin='http://evil.example')).headers

# Several at a time

def test_threads(ens, url):
    "Eight ask at once, and each gets the answer that it gets alone"
    wanted = ens.get_preds(texts=texts, progress=False)[0].numpy()
    with ThreadPoolExecutor(8) as pool, httpx.Client(timeout=60) as http:
        def _ask(text): return list(http.post(url+'/api/voices', json=dict(text=text)).json()['voices']['all'].values())
        close(list(pool.map(_ask, texts*2)), np.tile(wanted, (2,1)))

def test_work_does_not_block_the_page(url, monkeypatch):
    "While two texts are read for as long as it takes, the page and its description answer; while a file is, texts do too"
    release,real = threading.Event(),serve._answers
    monkeypatch.setattr(serve, '_answers', lambda *args: release.wait(60) and real(*args))
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(httpx.post, url+'/api/predict', json=dict(texts=['a']), timeout=60) for _ in range(2)]
        assert [httpx.get(url+o).status_code for o in ('/','/api/model','/openapi.json')]==[200]*3
        assert not any(o.done() for o in slow)
        release.set()
        assert [o.result().status_code for o in slow]==[200]*2

def test_a_file_does_not_block_texts(url, monkeypatch):
    release,real = threading.Event(),serve._labelled
    def _labelled(*args):
        parts = real(*args)
        yield next(parts)
        release.wait(60)
        yield from parts
    monkeypatch.setattr(serve, '_labelled', _labelled)
    with httpx.stream('POST', url+'/api/file', content=b'text\na cat\na dog\n', timeout=60) as response:
        rows = response.iter_lines()
        assert next(rows).startswith('text,label') and next(rows).startswith('a cat')
        assert httpx.post(url+'/api/voices', json=dict(text='a cat'), timeout=60).status_code==200
        release.set()
        assert len(list(rows))==1

def test_too_many_wait(ens, monkeypatch):
    "Two are computed, one waits, and whoever comes fourth is sent away at once"
    release = threading.Event()
    monkeypatch.setattr(serve, '_answers', lambda *args: release.wait(60) and [])
    with client(ens, waiting=1) as web, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(web.post, '/api/predict', json=dict(texts=['a'])) for _ in range(4)]
        first = next(as_completed(asked)).result()
        release.set()
        says(first, 503, 'wait')
        assert first.headers['retry-after'] and sorted(o.result().status_code for o in asked)==[200,200,200,503]

# The command

def fails(*args):
    res = CliRunner(env=dict(COLUMNS='120', TERM='dumb')).invoke(app, ['serve', *map(str, args)], prog_name='ulmfit')
    assert res.exit_code==1 and 'Traceback' not in res.stderr, res.output
    return res.stderr.strip().splitlines()[-1]

def test_not_installed(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    with pytest.raises(UlmfitError, match='uvicorn is not installed'): serve.check_serve()
    assert fails(saved)=="ulmfit: the page needs fastapi and uvicorn, and uvicorn is not installed: pip install 'ulmfit_ext[serve]'"

def test_without_the_extra_the_module_is_there():
    "Only what makes a page needs FastAPI"
    code = "import sys; sys.modules.update(fastapi=None, uvicorn=None, starlette=None); import ulmfit_ext.integrations.serve"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=root, capture_output=True, text=True)
    assert res.returncode==0, res.stderr

def test_port_in_use(saved, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        assert 'Give another port' in fails(saved, '--port', taken.getsockname()[1])
    assert 'cannot listen on no such host' in fails(saved, '--host', 'no such host')
    assert 'no model' in fails(tmp_path, '--port', 0) or 'not' in fails(tmp_path, '--port', 0)

@pytest.mark.skipif(os.name=='nt', reason='Windows has no SIGINT between processes')
def test_a_session(saved):
    "It says where it is, is called by the folder of the run, answers there, and ends with Ctrl-C"
    run = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', 'from ulmfit_ext.cli import main; main()', 'serve', str(saved), '--port', '0'],
                           cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)) # a shell's background jobs ignore it
    try:
        url = re.match(r'http://127\.0\.0\.1:\d+', run.stdout.readline())[0]
        assert httpx.get(url+'/api/model').json()['name']=='pets'
        assert httpx.post(url+'/api/voices', json=dict(text='a cat'), timeout=60).status_code==200
        run.send_signal(signal.SIGINT)
        out,err = run.communicate(timeout=60)
        assert run.returncode==130 and 'Stopped. The page is closed' in err and 'Traceback' not in err
    finally: run.kill()
