"The page in a browser: type, see, upload, download. Needs Chromium and the package playwright; without them it is skipped"
import os,shutil,threading
from pathlib import Path
import pandas as pd,pytest
pytest.importorskip('fastapi')
pytest.importorskip('playwright')
from playwright.sync_api import expect,sync_playwright
from test_serve import ens,evil,running,saved,texts
from ulmfit_ext.integrations import serve

browser_path = shutil.which('chromium') or shutil.which('google-chrome')
if not browser_path: pytest.skip('there is no Chromium', allow_module_level=True)
pictures = os.environ.get('SERVE_PICTURES')   # a folder for what the browser shows

@pytest.fixture(scope='module')
def url(ens):
    with running(serve.make_app(ens, 'pets', serve.Limits(chars=2000, mb=1, explained=1000))) as res: yield res

@pytest.fixture(scope='module')
def chromium():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path, args=['--no-sandbox'])
        yield browser
        browser.close()

@pytest.fixture(params=[1366,390], ids=['wide','narrow'])
def page(request, chromium, url, monkeypatch):
    "The page, of which nothing may go wrong: no error in its scripts, nothing asked for elsewhere, nothing wider than the window"
    monkeypatch.setattr(serve, '_explanation', _explanation)
    page,errors,asked = chromium.new_page(viewport=dict(width=request.param, height=844)),[],[]
    page.on('pageerror', lambda e: errors.append(str(e)))
    page.on('console', lambda o: errors.append(o.text) if o.type=='error' and not o.text.startswith('Failed to load') else None)
    page.on('dialog', lambda o: errors.append(o.message) or o.dismiss())
    page.on('request', lambda o: asked.append(o.url))
    page.set_default_timeout(60_000)
    page.goto(url)
    yield page
    if pictures: page.screenshot(path=Path(pictures)/f'{request.node.name}.png', full_page=True)
    assert errors==[] and all(o.startswith((url,'data:','blob:')) for o in asked)
    assert page.evaluate('document.documentElement.scrollWidth')<=request.param
    page.close()

def _explanation(ens, text, label):
    "Every second word speaks for the class, the others against it"
    rows,at = [],0
    for i,o in enumerate(text.split(' ')):
        rows.append((at, at+len(o), 1-2*(i%2)))
        at += len(o)+1
    return pd.DataFrame(rows, columns=['start','end','contribution'])

def shown(page, selector): return page.wait_for_selector(f'{selector}:not([hidden])').inner_text()
def rows(page): return page.locator('.row:not(.head)')

def test_type_and_see(ens, page):
    "The label, a bar for each class and voice, the colours of words, the time; and nothing of the class is read as HTML"
    text = 'A good 😀 cat sat <b>here</b>'
    page.type('#text', text)
    shown(page, '#why')
    said = ens.voices([text])
    assert page.inner_text('#label')==str(ens.predict(text)[0]) and ' s' in page.inner_text('#time')
    assert page.locator('.row.head .quiet').all_inner_texts()==['together','words','forward','backward']
    names = rows(page).locator('.name').all_inner_texts()
    assert sorted(names)==sorted(ens.classes) and evil in names and page.locator('main img').count()==0
    for voice,i in (('all',0),('words',1),('forward',2),('backward',3)):
        p = said[voice][0][ens.classes.index(names[0])].item()
        cell = rows(page).first.locator('.cell').nth(i)
        assert cell.inner_text().strip()==f'{100*p:.1f} %'
        widths = [o.bounding_box()['width'] for o in (cell.locator('.bar > span'), cell.locator('.bar'))]
        assert abs(widths[0]/widths[1]-p)<.02
    assert page.inner_text('#tokens')==text and page.locator('#tokens b').count()==0
    assert page.locator('#tokens .for').all_inner_texts()==['A','😀','sat'] and page.locator('#tokens .against').all_inner_texts()==['good','cat','<b>here</b>']
    rows(page).nth(1).locator('button').click()
    expect(page.locator('#why-title')).to_contain_text(names[1], timeout=60_000)

def test_what_was_typed_last_is_shown(ens, page):
    for text in texts[-5:]: page.fill('#text', text)
    shown(page, '#why')
    assert page.inner_text('#tokens')==texts[-1] and page.inner_text('#label')==str(ens.predict(texts[-1])[0])
    page.fill('#text', ' ')
    page.wait_for_selector('#answer', state='hidden')

def test_too_long(page):
    page.fill('#text', 'cat '*300)
    assert '1,000 characters' in shown(page, '#long') and page.locator('#why').is_hidden()
    page.fill('#text', 'cat '*501)
    assert '2000 characters' in shown(page, '#text-error') and page.inner_text('#count')=='2,004 of 2,000 characters'
    page.fill('#text', 'cat')
    shown(page, '#why')
    assert page.locator('#text-error').is_hidden()

def test_upload_and_download(ens, page, tmp_path):
    "The wrong column is told, the right one chosen from those that are there, and the file comes back labelled"
    df = pd.DataFrame(dict(id=range(len(texts)), review=texts))
    df.to_csv(tmp_path/'my pets.csv', index=False)
    page.set_input_files('#file', tmp_path/'my pets.csv')
    page.click('#send')
    assert "no column 'text'" in shown(page, '#file-error')
    assert page.locator('#columns button').all_inner_texts()==['id','review']
    page.click('#columns button >> text=review')
    assert f'{len(df)} rows' in shown(page, '#result') and page.locator('#file-error').is_hidden()
    with page.expect_download() as download: page.click('#download')
    assert download.value.suggested_filename=='my pets-labelled.csv'
    download.value.save_as(tmp_path/'back.csv')
    back = pd.read_csv(tmp_path/'back.csv', keep_default_na=False)
    assert back.review.tolist()==texts and back.label.tolist()==ens.predict_df(texts, progress=False).label.tolist()

def test_how_a_file_was_read_is_shown(page, tmp_path):
    (tmp_path/'katzen.csv').write_bytes('id;text\n1;eine süße Katze\n2;größer als die Straße\n'.encode('latin-1'))
    page.set_input_files('#file', tmp_path/'katzen.csv')
    page.click('#send')
    assert "katzen.csv was read as Latin-1, separator ';'" in shown(page, '#result')

def test_files_that_are_wrong(page, tmp_path):
    (tmp_path/'big.csv').write_text('text\n'+'a cat\n'*200_000)
    page.set_input_files('#file', tmp_path/'big.csv')
    page.click('#send')
    assert '1 MB are allowed' in shown(page, '#file-error')
    (tmp_path/'odd.csv').write_text('text,b\nx,y,z\n')
    page.set_input_files('#file', tmp_path/'odd.csv')
    page.click('#send')
    expect(page.locator('#file-error')).to_contain_text('line 2', timeout=60_000)

def test_stop(page, tmp_path, monkeypatch):
    "A file can be stopped on its way, and another sent after it"
    release,real = threading.Event(),serve._labelled
    def _labelled(*args):
        parts = real(*args)
        yield next(parts)
        release.wait(60)
    monkeypatch.setattr(serve, '_labelled', _labelled)
    (tmp_path/'a.csv').write_text('text\na cat\n')
    page.set_input_files('#file', tmp_path/'a.csv')
    page.click('#send')
    expect(page.locator('#rows')).to_contain_text('1 of 1', timeout=60_000)
    page.click('#stop')
    assert shown(page, '#file-error')=='Stopped.'
    release.set()
    monkeypatch.setattr(serve, '_labelled', real)
    page.click('#send')
    assert '1 row,' in shown(page, '#result')

def test_the_server_has_gone(page):
    "That is said, and no more"
    page.route('**/api/**', lambda o: o.abort())
    page.fill('#text', 'a cat')
    assert 'still running' in shown(page, '#text-error')

def test_docs(page, url):
    page.goto(url+'/docs')
    assert 'POST /api/predict' in page.wait_for_selector('#paths h2 >> nth=1').inner_text() and f"curl '{url}/api/file" in page.inner_text('#paths')
