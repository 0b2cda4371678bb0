"The command `ulmfit`, from outside: whole sessions, bad input, Ctrl-C"
import errno,gc,gzip,html,importlib.util,io,json,os,random,re,shutil,signal,subprocess,sys,warnings
from pathlib import Path
from types import SimpleNamespace
import matplotlib.pyplot as plt,pandas as pd,pytest
from typer.testing import CliRunner
import ulmfit_ext.lm as lm,ulmfit_ext.voices as voices,ulmfit_ext.weights as weights,ulmfit_ext.words as words
from fastcore.docments import docments
from ulmfit_ext import cli
from ulmfit_ext.cli import app
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.words import BagOfWords,learning_curve
from ulmfit_ext.text.tables import read_table

root = Path(__file__).resolve().parent.parent
commands = 'train predict evaluate suggest check pretrain serve demo'.split()
whole = 'train {} --size tiny --lm-epochs 1 --epochs 1 --bs 16 --min-freq 1'
small = whole+' --no-refit'

def reviews(n=60, seed=0):
    "Reviews whose label depends on a few of their words"
    rng = random.Random(seed)
    good,bad,rest = 'lovely bright funny warm'.split(),'dull flat awful grim'.split(),'the a film plot scene cast it was with and music'.split()
    def text(y): return ' '.join(rng.choice((good if y else bad) if rng.random()<.3 else rest) for _ in range(rng.randint(5, 15)))
    return pd.DataFrame([(text(i%2), ['neg','pos'][i%2]) for i in range(n)], columns=['text','label'])

def csv(path, df):
    df.to_csv(path, index=False)
    return path

def jsonl(path, rows):
    path.write_text('\n'.join(json.dumps(o) for o in rows))
    return path

def run(line, *args, code=0):
    "Run a command in this process. `{}` in `line` stand for `args`, which may hold spaces"
    args = iter(args)
    res = CliRunner(env=dict(COLUMNS='120', TERM='dumb')).invoke(app, [o.format(next(args)) if '{}' in o else o for o in line.split()], prog_name='ulmfit')
    assert res.exit_code==code, res.output
    return res

def fails(line, *args, says):
    "The command says in one line on stderr, without a traceback, what is wrong"
    err = run(line, *args, code=1).stderr
    assert 'Traceback' not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith('ulmfit: ') and says in last, err
    return last

@pytest.fixture(scope='module', autouse=True)
def little_models():
    "`--size tiny` for tests: models that take milliseconds"
    old,lm.lm_sizes['tiny'] = lm.lm_sizes['tiny'],dict(emb_sz=8, n_hid=10, n_layers=2)
    yield
    lm.lm_sizes['tiny'] = old

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a table and what `train` made of it"
    d = tmp_path_factory.mktemp('cli')
    csv(d/'reviews.csv', reviews())
    csv(d/'more.csv', reviews(20, 1))
    run(whole+' --out {} --test {} --baseline', d/'reviews.csv', d/'out', d/'more.csv')
    return d

@pytest.fixture(scope='module')
def model(home): return home/'out'/'model'

def answers(res): return pd.read_csv(io.StringIO(res.stdout))

# Nothing that is there is lost

@pytest.mark.parametrize('line', ['predict {model} {file} --out {file}', 'suggest {model} {file} --label none --out {file}', 'check {model} {file} --out {file}'])
def test_the_table_that_is_read_stays(home, model, tmp_path, line):
    file = csv(tmp_path/'more.csv', reviews(20, 1))
    was  = file.read_bytes()
    assert 'would be lost' in run(line.format(model=model, file=file), code=1).stderr
    assert file.read_bytes()==was

def test_what_was_filled_in_stays(home, model, tmp_path):
    file,ask = csv(tmp_path/'more.csv', reviews(20, 1)[['text']]),tmp_path/'ask.csv'
    line = f'suggest {model} {file} --n 3 --out {ask}'
    run(line)
    run(line) # nobody has filled in anything
    csv(ask, pd.read_csv(ask).assign(label='pos'))
    assert '3 labels that somebody filled in' in run(line, code=1).stderr

@pytest.mark.parametrize('option', ['--plot x.txt','--report x.pdf'])
def test_evaluate_writes_pictures_and_pages(home, model, option):
    assert 'has to end in' in run(f"evaluate {model} {home/'more.csv'} {option}", code=1).stderr

# Help and start

@pytest.mark.parametrize('name', commands)
def test_help(name):
    "Each command says what it does, explains every option and gives an example"
    out = run(f'{name} --help').output
    assert '\x1b' not in out and f'ulmfit {name} ' in out.split('Example')[1]
    words = re.sub(r'[\s│]+', ' ', out)
    for param,doc in docments(getattr(cli, name)).items():
        if param!='return': assert re.sub(r'\s+', ' ', doc)[:20] in words, param

def test_quick_start():
    "Nothing heavy is imported before a command runs, and help is there within a second"
    code = "import sys,ulmfit_ext.cli; print([o for o in ('torch','fastai','spacy','pandas','sklearn','matplotlib') if o in sys.modules])"
    res = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert res.stdout.strip()=='[]', res.stderr

def test_version(): assert re.fullmatch(r'ulmfit \d+\.\d+\.\d+\n', run('--version').stdout)

def test_no_command_shows_help(): assert 'Commands' in CliRunner().invoke(app, []).output

@pytest.mark.parametrize('line', ['nonsense', 'train', 'predict m', 'predict m f.csv --sentence hi', 'train f --epochs 0', 'train f --directions up', 'train f --size huge',
                                  'train f --pretrained x --size tiny', 'train f --valid-pct 3', 'pretrain c', 'pretrain c --out o --both --backwards', 'train f --nonsense'])
def test_usage(line):
    "What is wrong with the line itself: exit code 2, before anything is imported or read"
    assert 'Usage' in run(line, code=2).stderr

# A session

def test_train_without_words(home, tmp_path):
    "Words can be switched off; a model without them is told from one with them by its rows"
    out = run(small+' --no-words --directions fwd --lm-epochs 0 --out {}', home/'reviews.csv', tmp_path/'o').stdout
    assert 'Counting' not in out and not (tmp_path/'o'/'model'/'words.json').exists()
    assert 'words' not in run('evaluate {} {}', tmp_path/'o', home/'reviews.csv').stdout
    assert re.search(r'counting words alone.*\nwords .*\nforward .*\nbackward .*\nboth .*\nall .*\n', run('evaluate {} {}', home/'out', home/'reviews.csv').stdout, re.S)

def test_train(home):
    "`train` leaves a model, plots and a line to type next; what it prints fits a log file"
    assert {'confusion.png','lm_fwd.png','lm_bwd.png','classifier_fwd.png','classifier_bwd.png','model'} <= {o.name for o in (home/'out').iterdir()}
    assert (home/'out'/'confusion.png').read_bytes().startswith(b'\x89PNG')
    res = run(whole+' --out {}', home/'reviews.csv', home/'out')
    assert res.stdout.count('on disk')==6, 'the same line again reads what is there'
    assert '\r' not in res.stdout and '█' not in res.stdout and '\x1b' not in res.output and 'deprecated' not in res.output
    assert re.search(r'\nValidation, 12 texts, before all labels were learned from: right in [^\n]*\n[^\n]*\n\nVoices\n +loss +right, % +F1\nwords .*\nforward .*\nbackward .*\nboth .*\nall .*\n', res.stdout)
    assert f"the report is {home/'out'/'report.html'}" in res.stdout and (home/'out'/'report.html').read_text(encoding='utf-8').count('<img')==2
    assert 'Counting words: accuracy' in res.stdout and 'ounting words alone' in res.stdout
    assert res.stdout.splitlines()[-1]==f"ulmfit predict {home/'out'/'model'} FILE --text text"

def test_test_table_and_baseline(home):
    out = run(small+' --out {} --test {} --baseline', home/'reviews.csv', home/'out', home/'more.csv').stdout
    assert 'Test, 20 texts' in out and len(re.findall('^TF-IDF', out, flags=re.M))==2

def points(page): return re.findall('Counting words is right (.*?)"', page)

def test_what_more_labels_would_bring(home, tmp_path, monkeypatch):
    "A picture in the report, and the sentence that training prints; the curve is made once, while words are counted"
    made = []
    def _curve(*args, **kwargs):
        made.append(len(args[0]))
        return learning_curve(*args, **kwargs)
    for o in (words,voices): monkeypatch.setattr(o, 'learning_curve', _curve)
    out  = run(small+' --out {} --curve', home/'reviews.csv', home/'out').stdout
    assert not made # the words of `home` are counted
    page = (home/'out'/'report.html').read_text(encoding='utf-8')
    assert page.count('<img')==3 and 'What more labels would bring' in page and 'alt="Learning curve. Counting words is right with 24 labels in ' in page
    bag = BagOfWords.load(home/'out'/'words'/'words-1')
    assert bag.choices['doubling'] and bag.choices['doubling'] in html.unescape(page)
    run(small+' --out {} --curve --no-words --directions fwd --lm-epochs 0', home/'reviews.csv', tmp_path/'without')
    assert made==[48] and points(page)==points((tmp_path/'without'/'report.html').read_text(encoding='utf-8'))
    many = csv(tmp_path/'many.csv', pd.concat([reviews(60, i) for i in range(110)]))
    res  = run(small+' --out {} --curve', many, tmp_path/'out', code=2)
    assert 'up to 5,000' in res.stderr and not (tmp_path/'out'/'lm').exists()

def test_letters_that_no_font_has(capsys):
    "One note, not one a letter"
    from ulmfit_ext.terminal import manners
    with manners('', False):
        for o in (35531,27714): warnings.warn_explicit(f'Glyph {o} missing from font(s) DejaVu Sans.', UserWarning, 'core.py', o, 'ulmfit_ext.core')
    assert capsys.readouterr().err=='ulmfit: note: no font here has some letters of the labels: in the pictures they are boxes\n'

def test_labels_are_looked_at_before_anything_is_measured(tmp_path):
    "The pretrained model is chosen by what this machine can do in the time, which takes a while to find out"
    file = csv(tmp_path/'one.csv', reviews().assign(label='pos'))
    res  = run('train {} --out {}', file, tmp_path/'out', code=1)
    assert "only the class 'pos'" in res.stderr and 'Starting' not in res.stdout

def test_one_direction(home):
    out = run(small+' --out {} --directions bwd --lm-epochs 0', home/'reviews.csv', home/'bwd').stdout
    assert 'backward' in out and 'forward' not in out.lower() and 'Language model' not in out
    assert len(answers(run('predict {} {}', home/'bwd', home/'more.csv')))==20

def test_same_seed_same_model(home, tmp_path):
    "Two runs in folders of their own give the same model"
    a,b = [run(small+' --out {}', home/'reviews.csv', tmp_path/o).stdout.split('The model')[0] for o in 'ab']
    assert re.sub(r'\d\d:\d\d', '', a)==re.sub(r'\d\d:\d\d', '', b)

def test_predict(home, model):
    "Stdout is a CSV and nothing else: the table, labels, confidence, probabilities"
    res = answers(run('predict {} {}', model, home/'more.csv'))
    assert list(res.columns)==['text','label','pred_label','confidence','neg','pos'] and res.text.tolist()==reviews(20, 1).text.tolist()
    assert ((res.neg+res.pos-1).abs()<1e-4).all() and res.pred_label.isin(['neg','pos']).all()
    assert answers(run('predict {} {}', home/'out', home/'more.csv')).equals(res), 'the folder that `train` was given will do'
    assert list(answers(run('predict {} {} --text-only', model, home/'more.csv')).columns)==['text','label','confidence','neg','pos']
    assert (answers(run('predict {} {} --quantize', model, home/'more.csv')).pos-res.pos).abs().max()<0.1

def test_sentences(model):
    res = answers(run('predict {} --sentence {} -s {}', model, 'A lovely film', 'Dull, "flat"'))
    assert res.text.tolist()==['A lovely film', 'Dull, "flat"']

@pytest.mark.parametrize('name', ['a.csv','a.tsv','a.jsonl','a.csv.gz','a.jsonl.gz','a.parquet'])
def test_formats(home, model, tmp_path, name):
    "Answers in each format read back as they were, and can be predicted from again"
    from ulmfit_ext.text.tables import read_table
    if name.endswith('parquet'): pytest.importorskip('pyarrow')
    run('predict {} {} --out {}', model, home/'more.csv', tmp_path/name)
    want = answers(run('predict {} {}', model, home/'more.csv'))
    res  = read_table(tmp_path/name)
    assert list(res.columns)==list(want.columns) and res.pred_label.tolist()==want.pred_label.tolist() and (res.pos.astype(float)-want.pos).abs().max()<1e-5
    assert [o.name for o in tmp_path.iterdir()]==[name], 'nothing else is left beside it'

def test_a_folder_of_texts(home, model, tmp_path):
    "A row for each file, whatever its encoding, with the name of the file"
    inbox = tmp_path/'inbox'
    (inbox/'b').mkdir(parents=True)
    (inbox/'a.txt').write_text('a lovely film\nbright and warm')
    (inbox/'b'/'ä.txt').write_bytes('a dull pläce, awful and grim, über all the naïve scenes'.encode('latin-1'))
    (inbox/'.hidden.txt').write_text('no')
    (inbox/'notes.md').write_text('no')
    got = answers(run('predict {} {}', model, inbox))
    assert got.file.tolist()==['a.txt','b/ä.txt'] and got.text.tolist()==['a lovely film\nbright and warm','a dull pläce, awful and grim, über all the naïve scenes']
    assert got.label.tolist()==list(load_ulmfit(model).predict_df(got.text.tolist(), progress=False).label)
    asked = answers(run('suggest {} {}', model, inbox))
    assert sorted(asked.file)==['a.txt','b/ä.txt']
    for line in ('predict {} {} --text body', 'suggest {} {} --text body'): fails(line, model, inbox, says="a folder of .txt files, which are read as the columns 'file' and 'text': leave --text out")
    fails('train {}', inbox, says="no column 'label': '")
    fails('train {}', inbox, says="for --label '...' give a table that has such a column")
    (tmp_path/'empty').mkdir()
    for line in ('predict {} {}', 'suggest {} {}'): fails(line, model, tmp_path/'empty', says='is a folder without a .txt file')
    fails('predict {} {} --encoding utf-8', model, inbox, says="is not UTF-8 throughout")

@pytest.mark.parametrize('name', ['predict','suggest','check'])
def test_model_and_table_the_other_way_round(home, model, name):
    for o in (home/'out', model): fails(name+' {} {}', home/'more.csv', o, says='is the folder of a model, where a table is wanted: the model comes first, then the table')

def test_check_that_finds_nothing(model, tmp_path):
    file = csv(tmp_path/'sure.csv', pd.DataFrame([(f'a {o} film', ['neg','pos'][o=='lovely']) for o in ('lovely','awful') for _ in range(20)], columns=['text','label']))
    res  = run('check {} {}', model, file)
    assert len(res.stdout.splitlines())==1 and '0 labels look wrong' in res.stderr

def test_evaluate(home, model, tmp_path):
    res = run('evaluate {} {} --plot {}', model, home/'more.csv', tmp_path/'cm.png')
    assert res.stdout.lstrip().startswith(f"20 texts of {home/'more.csv'}") and (tmp_path/'cm.png').stat().st_size>1000
    acc = (answers(run('predict {} {}', model, home/'more.csv')).pred_label==reviews(20, 1).label).mean()
    assert float(re.search(r'^all +\S+ +(\S+)', res.stdout, flags=re.M)[1])==pytest.approx(100*acc, abs=.05)
    assert run('evaluate {} {} --report {}', model, home/'more.csv', tmp_path/'r.html').stdout==res.stdout
    page = (tmp_path/'r.html').read_text(encoding='utf-8')
    assert '<script' not in page and f'20 texts of {home/"more.csv"}' in page and {o.name for o in tmp_path.iterdir()}=={'cm.png','r.html'}
    fails('evaluate {} {} --report {}', model, home/'more.csv', tmp_path, says='is a folder: give the name of a file')

def test_several_labels(tmp_path):
    "Labels joined by --label-delim go in and come out. The model knows it; alone it says that a text has none of them"
    df = reviews(60).assign(label=[['sea','hill','sea;hill',';',''][i%5] for i in range(60)])
    f = csv(tmp_path/'topics.csv', df)
    run(small+' --out {} --label-delim ;', f, tmp_path/'out')
    run('predict {} {} --out {}', tmp_path/'out', f, tmp_path/'a.csv')
    res = pd.read_csv(tmp_path/'a.csv', keep_default_na=False)
    assert set(res.pred_label) <= {';','sea','hill','hill;sea'} and len(res)==60
    out = run('evaluate {} {}', tmp_path/'out', f).stdout
    assert 'both' in out and '48 texts of' in out and out==run('evaluate {} {} --label-delim ;', tmp_path/'out', f).stdout
    assert '60 texts of' in run('evaluate {} {} --label pred_label', tmp_path/'out', tmp_path/'a.csv').stdout, 'answers are labels again'
    for line in ('predict {} {} --label-delim |', 'evaluate {} {} --label-delim ,'): fails(line, tmp_path/'out', f, says="the model was trained with ';' between labels: leave --label-delim out")

def test_classes_that_hold_what_stands_between_labels(tmp_path):
    "Found out before the work, and lists have no such trouble"
    rows = [dict(text=t, label=[['a,b'],['c'],['a,b','c']][i%3]) for i,t in enumerate(reviews().text)]
    f = jsonl(tmp_path/'t.jsonl', rows)
    run(small+' --out {}', f, tmp_path/'out')
    fails('predict {} {}', tmp_path/'out', f, says="the class 'a,b' cannot be told from others with ',' between them")
    run('predict {} {} --label-delim ;', tmp_path/'out', f)
    run('predict {} {} --out {}', tmp_path/'out', f, tmp_path/'a.jsonl')

def test_labels_that_are_numbers(tmp_path):
    df = reviews(40)
    f = csv(tmp_path/'stars.csv', df.assign(label=df.label.map(dict(neg=1, pos=5))))
    run(small+' --out {}', f, tmp_path/'out')
    assert 'both' in run('evaluate {} {}', tmp_path/'out', f).stdout
    assert list(answers(run('predict {} {} --text-only', tmp_path/'out', f)).columns)[-2:]==['1','5']

def test_pretrain(home, tmp_path):
    "`pretrain` makes a folder that `train` starts from, one direction at a time or both"
    corpus = tmp_path/'corpus.txt'
    corpus.write_text('\n\n'.join(reviews(80, 2).text))
    line = 'pretrain {} --out {} --size tiny --bs 4 --bptt 10'
    one = run(line, corpus, tmp_path/'lm').stdout
    assert 'Perplexity' in one and 'It writes' in one and one.splitlines()[-1].endswith('--directions fwd')
    fails(small.replace('--size tiny ', '')+' --out {} --pretrained {}', home/'reviews.csv', tmp_path/'out', tmp_path/'lm', says='no backward language model')
    two = run(line+' --backwards', corpus, tmp_path/'lm').stdout
    assert '--directions' not in two and {'fwd.png','bwd.png','fwd.safetensors','bwd.safetensors'} <= {o.name for o in (tmp_path/'lm').iterdir()}
    out = run(small.replace('--size tiny ', '')+' --out {} --pretrained {}', home/'reviews.csv', tmp_path/'out', tmp_path/'lm').stdout
    assert 'of the tokens' in out and 'Validation' in out
    assert (lambda o: 'Forward' in o and 'Backward' in o)(run(line+' --both', corpus, tmp_path/'both').stdout)
    assert 'goes without' in run(line+' --pretrained small', corpus, tmp_path/'more', code=2).stderr
    assert '100.0% of the tokens' in run(line.replace('--size tiny ', '')+' --pretrained {}', corpus, tmp_path/'more', tmp_path/'lm').stdout
    assert weights.load_lm(tmp_path/'more')[2]==weights.load_lm(tmp_path/'lm')[2], 'the sizes are those of what it began with'

def test_pretrain_in_parts(tmp_path):
    "In parts, in 16 bits, with tokens a second in each line; done once, it is not done again"
    corpus = tmp_path/'corpus.txt'
    corpus.write_text('\n\n'.join(reviews(400, 2).text))
    line = 'pretrain {} --out {} --size tiny --bs 4 --bptt 10 --part 0.01 --valid-pct 0.1 --schedule stlr --drop-mult 0 --bf16 --half --workers 1 --lang xx:chars'
    out  = run(line, corpus, tmp_path/'lm').stdout
    rows = re.findall(r'^\d+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +\d\d:\d\d', out, re.M)
    assert len(rows)==2 and 'tokens/s' in out, out
    assert re.search(r'Perplexity [\d.]+ a token and [\d.]+ a word on documents held out, where 0.0% of the words are unknown', out)
    assert 'already' in run(line, corpus, tmp_path/'lm').stdout
    wgts,vocab,_ = weights.load_lm(tmp_path/'lm')
    assert '▁' in vocab and len(vocab)<60
    fails(line.replace('xx:chars', 'qq:chars:x'), corpus, tmp_path/'lm2', says='not a language code')

def test_pieces_of_words(home, tmp_path):
    "A language model of pieces of words brings its tokenizer along, into a classifier that is saved and read again"
    pytest.importorskip('sentencepiece')
    corpus = tmp_path/'corpus.txt'
    corpus.write_text('\n\n'.join(reviews(200, 2).text))
    out = run('pretrain {} --out {} --size tiny --bs 4 --bptt 10 --both --subwords 60', corpus, tmp_path/'lm').stdout
    assert '0.0% of the words are unknown' in out
    next((tmp_path/'lm').glob('subwords-60-*.model')).rename(tmp_path/'elsewhere')
    run('train {} --out {} --pretrained {} --lm-epochs 1 --epochs 1 --bs 16', home/'reviews.csv', tmp_path/'out', tmp_path/'lm')
    assert weights.lm_processor(tmp_path/'lm').tokenize(['the filmy']) != [['xxbos','the','filmy']]
    assert 'both' in run('evaluate {} {}', tmp_path/'out', home/'reviews.csv').stdout
    out = run('pretrain {} --out {} --size tiny --bs 4 --bptt 10 --subwords 50', corpus, tmp_path/'a folder').stdout
    assert 'saved' in out and ['subwords-50']==[o.name[:11] for o in (tmp_path/'a folder').glob('*.model')], 'other pieces are another file, also in a folder with a space in its name'
    corpus.write_text('\n\n'.join('абвг деёж зикл мноп '*3 for _ in range(200)))
    run('pretrain {} --out {} --size tiny --bs 4 --bptt 10 --subwords 50', corpus, tmp_path/'b')
    other = tmp_path/'b'/'corpus.txt'
    other.write_text('\n\n'.join(reviews(200, 3).text))
    run('pretrain {} --out {} --size tiny --bs 4 --bptt 10 --subwords 50 --vocab 60 --backwards', other, tmp_path/'c')
    assert len({o.read_bytes() for p in 'bc' for o in (tmp_path/p).glob('*.model')})==2

def test_english_starts_from_weights_that_there_is_time_for(home, tmp_path):
    line = 'train {} --out {} --lm-epochs 1 --epochs 1 --bs 16 --directions fwd --no-refit'
    out = run(line.replace('--lm-epochs 1', '--lm-epochs 100')+' --minutes 0.02', home/'reviews.csv', tmp_path/'a').stdout
    assert 'Starting from small: base would need about' in out and 'vocabulary of small' in out
    assert 'vocabulary of small' in run(line+' --bf16 --pretrained small', home/'reviews.csv', tmp_path/'a').stdout
    assert 'vocabulary of' not in run(line+' --pretrained none', home/'reviews.csv', tmp_path/'b').stdout
    out = run(line+' --lang fr --min-freq 1', home/'reviews.csv', tmp_path/'c').stdout
    assert 'vocabulary of' not in out and 'no weights for fr are installed. `ulmfit pretrain` makes them' in out
    assert 'goes without' in run(line+' --pretrained small --size tiny', home/'reviews.csv', tmp_path/'d', code=2).stderr

def test_unlabelled_and_minutes(home, tmp_path):
    more = tmp_path/'more.txt'
    more.write_text('\n'.join(reviews(30, 3).text))
    out = run(small+' --out {} --unlabelled {} --minutes 0.02', home/'reviews.csv', tmp_path/'a', more).stdout
    assert '30 unlabelled' in out and re.search(r'^[\d.]+ of 0.02 minutes were used$', out, re.M)
    (tmp_path/'folder').mkdir()
    (tmp_path/'folder'/'one.txt').write_text(more.read_text())
    assert '1 unlabelled' in run(small+' --out {} --unlabelled {}', home/'reviews.csv', tmp_path/'b', tmp_path/'folder').stdout

def test_unlabelled_is_read_as_said(home, tmp_path):
    "By options of its own, which are named where it is misread; those of the tables do not hold for it"
    line = small+' --out {} --no-words --unlabelled {} '
    reviews(30, 3).to_csv(tmp_path/'more.csv', sep=';', index=False, encoding='utf-16')
    res = run(line+'--sep , --encoding utf-8', home/'reviews.csv', tmp_path/'a', tmp_path/'more.csv')
    assert '30 unlabelled' in res.stdout and "or pass --unlabelled-encoding …), separator ';' (or pass --unlabelled-sep …)" in res.stderr
    def _texts(name, sep=None, encoding=None):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            return cli._unlabelled(SimpleNamespace(text='text', unlabelled=tmp_path/name, unlabelled_sep=sep, unlabelled_encoding=encoding))
    assert _texts('more.csv', ';', 'utf-16')==reviews(30, 3).text.tolist()
    (tmp_path/'bad.csv').write_text('text\none, two\nthree, four\n')
    fails(line, home/'reviews.csv', tmp_path/'b', tmp_path/'bad.csv', says='or pass --unlabelled-sep ')
    assert _texts('bad.csv', '|')==['one, two','three, four']
    (tmp_path/'folder').mkdir()
    for i in range(3): (tmp_path/'folder'/f'{i}.txt').write_text(f'text {i}', encoding='utf-16')
    assert _texts('folder', encoding='utf-16')==['text 0','text 1','text 2']

def test_a_run_is_told_in_plain_lines(home, tmp_path):
    "An estimate at the start of each stage, the losses of each epoch, and how long it took"
    out = run(small.replace('--lm-epochs 1', '--lm-epochs 12')+' --out {}', home/'reviews.csv', tmp_path/'a').stdout
    assert out.count('less than a minute left')>=4 and re.search(r'It took \d+\.\d minutes\. Next:', out)
    assert re.search(r'^epoch +train_loss +valid_loss +accuracy +time\n0 ', out.replace('less than a minute left\n', ''), re.M), out

def test_demo(monkeypatch, tmp_path):
    "`demo` hands its options on"
    import ulmfit_ext.demo as demo
    got = {}
    monkeypatch.setattr(demo, 'run_demo', lambda **kwargs: got.update(kwargs), raising=False)
    run('demo --labels 7 --minutes 0.5 --path {} --out {}', tmp_path, tmp_path/'o')
    assert got==dict(labels=7, minutes=.5, path=tmp_path, out=tmp_path/'o')

# Bad input

def test_missing_column(home, model, tmp_path):
    assert "--text 'text'" in fails('train {} --text texts --out {}', home/'reviews.csv', tmp_path, says="no column 'texts'")
    assert '--label' in fails('train {} --label kind --out {}', home/'reviews.csv', tmp_path, says="no column 'kind'")
    assert '--valid' in fails('train {} --valid held --out {}', home/'reviews.csv', tmp_path, says="no column 'held'")
    fails('predict {} {} --text body', model, home/'more.csv', says="no column 'body'")
    fails('evaluate {} {} --label kind', model, home/'more.csv', says="no column 'kind'")
    fails('evaluate {} {} --text body', model, home/'more.csv', says="no column 'body'")

def test_missing_file(home, model, tmp_path):
    for line in ('train {} --out o', 'predict '+str(model)+' {}', 'evaluate '+str(model)+' {}', 'pretrain {} --out '+str(tmp_path/'lm')):
        fails(line, tmp_path/'nothing.csv', says='nothing.csv')
    fails('predict {} {}', tmp_path/'nothing', home/'more.csv', says='nothing')
    fails(small+' --out {} --test {}', home/'reviews.csv', tmp_path/'o', tmp_path/'no.csv', says='no.csv')
    fails('train {} --out {} --pretrained {}', home/'reviews.csv', tmp_path/'o', tmp_path/'no', says='not a language model')

@pytest.mark.parametrize('content,says', [(b'', 'empty'), (b'\n\n', 'empty'), (b'text,label\n', 'no rows'), (b'\xff\xfe\x00text', 'UTF-8'), (b'text,label\n"open,a\n', 'text')])
def test_empty_or_broken_file(tmp_path, model, content, says):
    f = tmp_path/'bad.csv'
    f.write_bytes(content)
    if b'open' not in content: fails('predict {} {}', model, f, says=says)
    fails('train {} --out {}', f, tmp_path/'o', says=says if b'open' not in content else '')

def test_broken_gz(tmp_path, model):
    f = tmp_path/'bad.csv.gz'
    f.write_bytes(gzip.compress(b'text,label\n'*1000)[:-20])
    fails('predict {} {}', model, f, says='bad.csv.gz')

def test_all_empty_texts(tmp_path, model):
    "Nothing to learn from, but something to predict"
    f = jsonl(tmp_path/'e.jsonl', [dict(text=o, label=l) for o in ('', ' ', None) for l in ('a','b')])
    fails('train {} --out {}', f, tmp_path/'o', says='empty')
    assert answers(run('predict {} {}', model, f)).confidence.between(.5, 1).all()

def test_texts_that_are_none_or_numbers(tmp_path, model):
    odd = [None, float('nan'), 3, 4.5, True, '']
    f = jsonl(tmp_path/'n.jsonl', [dict(text=o, label=l) for o in [*odd, *reviews(20).text] for l in ('a','b')])
    res = run(small+' --out {}', f, tmp_path/'o')
    assert 'note' in res.stderr and 'missing' in res.stderr
    assert len(answers(run('predict {} {}', model, f)))==52
    f = csv(tmp_path/'n.csv', pd.DataFrame(dict(text=[1.5,None,3], label=['neg','pos','neg'])))
    assert len(answers(run('predict {} {}', model, f)))==3 and 'both' in run('evaluate {} {}', model, f).stdout

def test_classes(tmp_path):
    df = reviews(30)
    assert '--label' in fails('train {} --out {}', csv(tmp_path/'one.csv', df.assign(label='pos')), tmp_path/'o', says='only the class')
    fails('train {} --out {}', csv(tmp_path/'none.csv', df.assign(label=None)), tmp_path/'o', says='no label')
    fails('train {} --out {}', csv(tmp_path/'each.csv', df.assign(label=[f'c{i}' for i in range(30)])), tmp_path/'o', says='no label occurs twice')
    res = run(small+' --out {}', csv(tmp_path/'rare.csv', df.assign(label=['rare', *df.label[1:]])), tmp_path/'rare')
    assert 'ulmfit: note: a class has one row only (rare)' in res.stderr and '3 classes' in res.stdout
    res = run(small+' --out {}', csv(tmp_path/'some.csv', df.assign(label=[None, None, *df.label[2:]])), tmp_path/'some')
    assert '2 of 30 rows have no label' in res.stderr and '2 unlabelled' in res.stdout

def test_labels_missing_or_unknown_when_scoring(tmp_path, model, home):
    df = reviews(20)
    out = run('evaluate {} {}', model, csv(tmp_path/'some.csv', df.assign(label=[None, *df.label[1:]])))
    assert '19 texts' in out.stdout and '1 of 20 rows have no label' in out.stderr
    other = csv(tmp_path/'other.csv', df.assign(label='meh'))
    fails('evaluate {} {}', model, other, says="'meh'")
    fails(small+' --out {} --test {}', home/'reviews.csv', tmp_path/'o', other, says="'meh'")
    assert not (tmp_path/'o'/'lm').exists(), 'it is said before the training'

def test_long_document(tmp_path, model, is_linear):
    "60,000 tokens, among short texts"
    rng = random.Random(0)
    def _predict(n):
        f = csv(tmp_path/'long.csv', pd.DataFrame(dict(text=['a lovely film', ' '.join(rng.choice(['film','plot','dull','the']) for _ in range(n)), 'dull'])))
        assert len(answers(run('predict {} {}', model, f)))==3
    assert is_linear(_predict, 15_000)

def test_strange_text(tmp_path, model, home):
    "Unknown words, control characters, halves of surrogate pairs, marks of the tokenizer: each is a text with an answer"
    odd = ['zyx wvu qqq', '\x00\x01\x1b[31m\x7f', 'half \ud83d of a pair \udc00', 'whole \ud83d\ude00', 'xxbos xxpad xxunk xxmaj', '<unk>', '\u202e\u200b\ufeff', 'ß'*3000, '"', "'\n\r\n"]
    f = jsonl(tmp_path/'odd.jsonl', [dict(text=o) for o in odd])
    res = answers(run('predict {} {}', model, f))
    assert len(res)==len(odd) and res.confidence.between(.5, 1).all()
    for name in ('o.csv','o.jsonl') + (('o.parquet',) if importlib.util.find_spec('pyarrow') else ()):
        run('predict {} {} --out {}', model, f, tmp_path/name)
        (tmp_path/name).read_bytes().decode('utf-8', 'strict' if name!='o.parquet' else 'replace')
    train = jsonl(tmp_path/'train.jsonl', [dict(text=o, label=l) for o in [*odd, *reviews(10).text] for l in ('a','b')])
    run(small+' --out {}', train, tmp_path/'out')
    assert len(answers(run('predict {} {}', tmp_path/'out', f)))==len(odd)

def test_path_that_cannot_be_written(home, model, tmp_path):
    "Below a regular file, which stops root too. It is found out before the work, and nothing is lost"
    f = tmp_path/'file'
    f.write_text('keep me')
    fails(small+' --out {}', home/'reviews.csv', f/'out', says=str(f))
    fails('predict {} {} --out {}', model, home/'more.csv', f/'a.csv', says=str(f))
    fails('evaluate {} {} --plot {}', model, home/'more.csv', f/'a.png', says=str(f))
    fails('pretrain {} --out {}', home/'reviews.csv', f/'lm', says=str(f))
    assert f.read_text()=='keep me'

def test_a_disk_that_is_read_only_or_full(home, model, tmp_path, monkeypatch):
    "One line with the path; what was there stays, and nothing is raised afterwards"
    import ulmfit_ext.text.write as write
    raised = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda o: raised.append(o))
    old = tmp_path/'a.csv'
    old.write_text('old')
    def _full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(write, 'write_table', _full)
        fails('predict {} {} --out {}', model, home/'more.csv', old, says=f'cannot write {old} (No space left on device)')
    with monkeypatch.context() as m:
        m.setattr(plt.Figure, 'savefig', _full)
        fails('evaluate {} {} --plot {}', model, home/'more.csv', tmp_path/'a.png', says=f"cannot write {tmp_path/'a.png'} (No space left on device)")
    def _read_only(self, *args, **kwargs): raise OSError(errno.EROFS, 'Read-only file system', str(self))
    with monkeypatch.context() as m:
        for o in ('touch','unlink'): m.setattr(Path, o, _read_only)
        fails('predict {} {} --out {}', model, home/'more.csv', old, says=f'cannot write {old} (Read-only file system)')
        gc.collect()
    assert not raised and old.read_text()=='old'

def test_parquet_without_pyarrow(home, tmp_path, monkeypatch):
    "Found out before the model is read, which is not there"
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    fails('predict {} {} --out {}', tmp_path/'no', home/'more.csv', tmp_path/'a.parquet', says='needs the package pyarrow')

def test_columns_that_are_taken(home, model, tmp_path):
    "Answers can be answered once more, and then it is said before the work"
    run('predict {} {} --out {}', model, home/'more.csv', tmp_path/'a.csv')
    fails('predict {} {} --out {}', model, tmp_path/'a.csv', tmp_path/'b.csv', says="has columns 'label' and 'pred_label' already")
    assert not (tmp_path/'b.csv').exists()
    (tmp_path/'c.csv').write_text('text,text\na,b\n')
    fails('predict {} {}', model, tmp_path/'c.csv', says="2 columns are called 'text'")

def test_as_many_answers_as_lines(model, tmp_path):
    (tmp_path/'a.csv').write_text('text\ngood\n\nbad\n')
    (tmp_path/'a.txt').write_text('good\n\nbad\n')
    for o in ('a.csv','a.txt'): assert len(answers(run('predict {} {}', model, tmp_path/o)))==3

def test_a_place_that_is_taken_is_named_before_training(home, tmp_path):
    (tmp_path/'out'/'model').mkdir(parents=True)
    (tmp_path/'out'/'model'/'mine.txt').write_text('keep')
    fails(small+' --out {}', home/'reviews.csv', tmp_path/'out', says='holds mine.txt')
    assert not (tmp_path/'out'/'lm').exists()

def test_out_is_replaced_only_when_complete(home, model, tmp_path):
    out = tmp_path/'a.csv'
    out.write_text('old')
    fails('predict {} {} --text body --out {}', model, home/'more.csv', out, says='body')
    assert out.read_text()=='old'
    fails('predict {} {} --out {}', model, home/'more.csv', tmp_path/'a.doc', says='.csv')
    assert [o.name for o in tmp_path.iterdir()]==['a.csv']
    run('predict {} {} --out {}', model, home/'more.csv', out)
    assert out.read_text().startswith('text,label')

def test_broken_cache(home, tmp_path):
    "Tokens that cannot be read are made again"
    run(whole+' --out {} --epochs 1', home/'reviews.csv', tmp_path)
    cache, = (tmp_path/'.ulmfit_cache').glob('*.npz')
    for bad in (b'', b'nonsense', cache.read_bytes()[:500]):
        cache.write_bytes(bad)
        res = run(whole+' --out {}', home/'reviews.csv', tmp_path)
        assert 'note' in res.stderr and 'tokenizing again' in res.stderr and res.stdout.count('on disk')==6

@pytest.mark.parametrize('name', ['fwd.safetensors', 'bwd.safetensors', 'config.json', 'vocab.json'])
@pytest.mark.parametrize('how', ['missing', 'empty', 'cut', 'other'])
def test_broken_model(home, model, tmp_path, name, how):
    "A model of which any part is missing or damaged is refused, by name"
    bad = tmp_path/'model'
    shutil.copytree(model, bad)
    if how=='missing': (bad/name).unlink()
    else: (bad/name).write_bytes(dict(empty=b'', cut=(bad/name).read_bytes()[:100], other=b'{"a": 1}')[how])
    last = fails('predict {} {}', bad, home/'more.csv', says=str(bad))
    assert '--debug' not in last, 'an error that was foreseen'

@pytest.mark.parametrize('line', ['predict {} {}', 'evaluate {} {}', 'suggest {} {}', 'check {} {}', 'serve {}'])
def test_a_folder_for_onnx(home, model, tmp_path, line):
    "No command reads it; what is said is for the shell"
    pytest.importorskip('onnx')
    said = fails(line, load_ulmfit(model).to_onnx(tmp_path/'graphs'), home/'more.csv', says='Give the folder of the model that it was made from')
    assert 'read it with' not in said

def test_a_folder_that_is_no_model(home, tmp_path):
    assert fails('predict {} {}', tmp_path, home/'more.csv', says='is not a model').endswith('Give the folder that ulmfit train made')
    assert 'DataFrame' not in fails('train {}', csv(tmp_path/'a.doc', reviews()), says='name it .csv')

def test_broken_pieces(home, tmp_path):
    "A finished piece that cannot be read is trained again, with a note; the others are read"
    run(whole+' --out {}', home/'reviews.csv', tmp_path)
    for pattern in ('classifier/fwd-*/fwd.safetensors', 'lm/fwd-*/fwd.safetensors', 'lm/fwd-*/vocab.json'):
        f, = tmp_path.glob(pattern)
        f.write_bytes(f.read_bytes()[:50])
        res = run(whole+' --out {}', home/'reviews.csv', tmp_path)
        assert 'trained again' in res.stderr and res.stdout.count('on disk')==5

def test_other_settings_cost_nothing(home, tmp_path):
    "Trying other settings and coming back trains nothing again"
    for n in (1, 2): run(whole.replace('--epochs 1', f'--epochs {n}')+' --out {}', home/'reviews.csv', tmp_path)
    assert run(whole+' --out {}', home/'reviews.csv', tmp_path).stdout.count('on disk')==6

# Errors nobody foresaw, and Ctrl-C

def test_unforeseen_errors(monkeypatch, home, model):
    "One line that names it; the traceback with --debug, or with ULMFIT_DEBUG"
    import ulmfit_ext.export as export
    def broken(*args, **kwargs): raise ZeroDivisionError('by nothing')
    monkeypatch.setattr(export, 'load_ulmfit', broken)
    assert fails('predict {} {}', model, home/'more.csv', says='ZeroDivisionError: by nothing').endswith('(--debug shows where)')
    assert 'Traceback' in run('predict {} {} --debug', model, home/'more.csv', code=1).stderr
    monkeypatch.setenv('ULMFIT_DEBUG', '1')
    assert 'Traceback' in run('predict {} {}', model, home/'more.csv', code=1).stderr

def test_stopped_while_predicting(monkeypatch, home, model, tmp_path):
    import ulmfit_ext.export as export
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(export, 'load_ulmfit', stop)
    (tmp_path/'a.csv').write_text('old')
    assert 'Stopped' in run('predict {} {} --out {}', model, home/'more.csv', tmp_path/'a.csv', code=130).stderr
    assert [o.read_text() for o in tmp_path.iterdir()]==['old']

@pytest.mark.skipif(os.name!='posix', reason='Windows sends Ctrl-C in another way')
def test_ctrl_c(tmp_path):
    "Stopped in the middle of the second language model; the same line keeps the first and goes on to the end"
    f,out = csv(tmp_path/'reviews.csv', reviews(200)),tmp_path/'out'
    line = [sys.executable, '-c', 'from ulmfit_ext.cli import main; main()', *small.format(f).split(), '--lm-epochs', '12', '--out', str(out)]
    env = {**os.environ, 'PYTHONPATH':os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))}
    p = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    seen = []
    for l in p.stdout:   # until an epoch of the second is done
        seen.append(l)
        if any('backward' in o for o in seen) and re.match(r'[1-9]\d* ', l): break
    p.send_signal(signal.SIGINT)
    rest,err = p.communicate(timeout=60)
    assert p.returncode==130 and 'Traceback' not in err, err
    assert err.strip().splitlines()[-1]==f'Stopped. What was finished is kept in {out}: the same line goes on from there'
    assert not list(out.rglob('.*-????????*')), 'no half-written file is left'
    res = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert res.returncode==0, res.stderr
    assert res.stdout.count('on disk')==1 and 'Language model on disk, forward' in res.stdout and (out/'model'/'config.json').exists()

# Tables as they are

def test_a_test_table_is_looked_at_before_training(home, tmp_path):
    "Its columns, and whether there is a label"
    df = reviews(20, 1)
    line = small+' --out {} --test {}'
    for bad,says in ((df.rename(columns=dict(text='body')), "no column 'text'"), (df.rename(columns=dict(label='y')), "no column 'label'"), (df.assign(label=''), 'has no label in any row')):
        fails(line, home/'reviews.csv', tmp_path/'out', csv(tmp_path/'bad.csv', bad), says=says)
    assert not (tmp_path/'out').exists()

def test_cells_that_were_read_are_written_as_they_were(home, model, tmp_path):
    "In the columns that go through"
    rows = ['text,id,price', 'a lovely film,007,1.10', 'dull,00123,2', 'flat,12345678901234567890123,']
    (tmp_path/'a.csv').write_text('\n'.join(rows)+'\n')
    out = run('predict {} {}', model, tmp_path/'a.csv').stdout.splitlines()
    assert [o.rsplit(',', 4)[0] for o in out]==rows
    jsonl(tmp_path/'a.jsonl', [dict(text='a', id=123456789012345678901234567890, x=0.123456789012345), dict(text='b', x=1e-12)])
    run('predict {} {} --out {}', model, tmp_path/'a.jsonl', tmp_path/'b.jsonl')
    got = [json.loads(o) for o in (tmp_path/'b.jsonl').read_text().splitlines()]
    assert [o['x'] for o in got]==[0.123456789012345,1e-12] and int(float(got[0]['id']))>10**29
    run('predict {} {} --out {}', model, tmp_path/'a.jsonl', tmp_path/'b.parquet')
    assert pd.read_parquet(tmp_path/'b.parquet').id[0]=='123456789012345678901234567890'

def test_a_return_in_a_text(home, model, tmp_path):
    (tmp_path/'a.csv').write_bytes(b'text,label\n"one\rtwo",pos\nthree,neg\n')
    run('predict {} {} --out {}', model, tmp_path/'a.csv', tmp_path/'b.csv')
    got = read_table(tmp_path/'b.csv')
    assert got.text.tolist()==['one\rtwo','three']

def test_labels_of_the_baseline_are_those_of_the_model(home, tmp_path):
    "Blanks around them are nobody's label"
    df = reviews()
    df.loc[::2, 'label'] += '  '
    out = run(small+' --out {} --test {} --baseline', csv(tmp_path/'a.csv', df), tmp_path/'out', csv(tmp_path/'b.csv', df.iloc[:20].assign(label=[' ', *df.label[1:20]]))).stdout
    want = run(small+' --out {} --test {} --baseline', home/'reviews.csv', tmp_path/'out2', csv(tmp_path/'c.csv', reviews().iloc[1:20])).stdout
    rows = [[o for o in x.splitlines() if o.startswith('TF-IDF')] for x in (out,want)]
    assert len(rows[0])==2 and rows[0]==rows[1] and '1 of 20 rows have no label' in out
    many = jsonl(tmp_path/'m.jsonl', [dict(text=t, label=['a'] if i%2 else ['a','b']) for i,t in enumerate(reviews().text)])
    assert 'one label a text' in run(small+' --out {} --baseline', many, tmp_path/'m', code=2).stderr
