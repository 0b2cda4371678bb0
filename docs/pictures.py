"""Make `nbs/images/serve.png` and `nbs/images/report.png`: what Chromium shows of the page of `ulmfit serve`, and of a report

    python docs/pictures.py serve RUN                    # RUN: a folder for the run, which goes on from what is there
    ULMFIT_DATA=… python docs/pictures.py report RUN

The page is that of a model for six sections of documentation, trained on half of the sample in a minute or two. The report is of a run that learned from 800 questions of
TREC-6, and from the others without their labels, forward only; the folder ULMFIT_DATA holds `trec6.jsonl.gz` (`text`, `label`, `split`), and the run takes some minutes.
Needs Chromium and the package playwright; `serve` needs fastapi and uvicorn, too."""
import argparse,os,re,shutil,subprocess,sys
from contextlib import contextmanager
from pathlib import Path
import pandas as pd

root   = Path(__file__).resolve().parent.parent
images = root/'nbs'/'images'
names  = dict(ABBR='abbreviation', DESC='description', NUM='number', HUM='person', LOC='place', ENTY='thing')
text   = 'Returns the sum of the values. If the array has no rows, a ValueError is raised.'
ulmfit = [sys.executable, '-c', 'from ulmfit_ext.cli import main; main()']

def train(out, *options, **tables):
    "Write `tables` beside the folder `out`, and train there from the one called labelled; what is there already is kept"
    out.parent.mkdir(parents=True, exist_ok=True)
    for name,table in tables.items(): table.to_csv(out.parent/f'{name}.csv', index=False)
    subprocess.run([*ulmfit, 'train', 'labelled.csv', *options, '--pretrained', 'small', '--out', out.name], check=True, cwd=out.parent)
    return out

def train_sections(run):
    "A model that tells sections of documentation apart"
    df = pd.read_csv(root/'ulmfit_ext'/'text'/'sample.csv')[['text','label']].sample(frac=1, random_state=42)
    return train(run/'sections', '--lm-epochs', '0', '--epochs', '4', '--recipe', 'together', '--no-refit', labelled=df[:len(df)//2], new=df[len(df)//2:])

def train_questions(run, n=800):
    "A model that tells apart what questions ask for"
    df = pd.read_json(Path(os.environ['ULMFIT_DATA'])/'trec6.jsonl.gz', lines=True)
    df['label'] = df.label.map(names)
    learn,test = [df.loc[df.split==o, ['text','label']] for o in ('train','test')]
    return train(run/'questions', '--unlabelled', 'others.csv', '--test', 'test.csv', '--directions', 'fwd',
                 labelled=learn[:n], others=learn[n:][['text']], test=test)

# The parts of the report that the picture shows, in two columns: a heading stands for what follows it up to the next, at most so many elements
columns = [[('h2',4), ('Voices',2), ('Classes',2)], [('If it answers only where it is sure',2), ('Which for which',2)]]

two_columns = '''columns => {
    const main = document.querySelector('main'), all = [...main.children].filter(o => o.tagName != 'H1')
    const from = name => name=='h2' ? 0 : all.findIndex(o => o.textContent == name)
    const parts = columns.map(col => col.map(([name, n]) => all.slice(from(name), from(name)+n)))
    main.replaceChildren(...parts.map(col => {
        const div = document.createElement('div')
        col.forEach(part => div.append(...part.filter(o => !(o.tagName=='H3' && part[0].tagName=='H2'))))
        div.firstElementChild.style.marginTop = 0
        return div
    }))
    main.style.cssText = 'display: grid; grid-template-columns: 1fr auto; gap: 2rem; padding: 1rem; border: 1px solid #ccc'
    document.body.style.maxWidth = 'none'
}'''

@contextmanager
def served(model):
    "The address of the page of `model`, served as `ulmfit serve` does"
    server = subprocess.Popen([*ulmfit, 'serve', str(model), '--port', '0'], stdout=subprocess.PIPE, text=True)
    try: yield re.search(r'http://\S+', server.stdout.readline())[0]
    finally:
        server.terminate()
        server.wait()

def shoot_report(browser, run):
    "A picture of parts of the report of a run"
    out  = train_questions(run)
    page = browser.new_page(viewport=dict(width=1080, height=800), device_scale_factor=2)
    page.goto((out/'report.html').resolve().as_uri())
    page.evaluate(two_columns, columns)
    page.locator('main').screenshot(path=images/'report.png')

def shoot_serve(browser, run):
    "A picture of the page: a text with its answer and its reasons, and a file that was labelled"
    out  = train_sections(run)
    page = browser.new_page(viewport=dict(width=900, height=800), device_scale_factor=1.5)
    with served(out/'model') as url:
        page.goto(url)
        page.fill('#text', text)
        page.wait_for_selector('#why:not([hidden])', timeout=300_000)
        page.set_input_files('#file', run/'new.csv')
        page.click('#send')
        page.wait_for_selector('#result:not([hidden])', timeout=300_000)
        page.screenshot(path=images/'serve.png', full_page=True)

def main():
    from playwright.sync_api import sync_playwright
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('picture', choices=('serve','report'))
    parser.add_argument('run', type=Path, help='folder for the run')
    args = parser.parse_args()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which('chromium') or shutil.which('google-chrome'), args=['--no-sandbox'])
        dict(serve=shoot_serve, report=shoot_report)[args.picture](browser, args.run)
        browser.close()

if __name__=='__main__': main()
