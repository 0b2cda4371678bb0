"What is said of answers: intervals, calibration, when to keep silent, as text and as a page"
from html.parser import HTMLParser
import matplotlib.pyplot as plt,numpy as np,pytest,sklearn.metrics as skm,torch
from fastai.text.all import AWD_LSTM,ProgressCallback,defaults,text_classifier_learner
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import Answers,BidirEnsemble
from ulmfit_ext.measures import abstention,paired_chance
from ulmfit_ext.mixture import equal_mixture,fit_mixture
from ulmfit_ext.report import Report,report,report_page,save_confusion
from made_up import make_df

@pytest.fixture(scope='module')
def fwd(tmp_path_factory):
    "A little learner that nothing has trained"
    dls = ulmfit_dls(make_df(40), path=tmp_path_factory.mktemp('report'), seed=0, bs=8, bptt=20, min_freq=1)
    cbs,defaults.callbacks = defaults.callbacks,[o for o in defaults.callbacks if o is not ProgressCallback]
    yield text_classifier_learner(dls.clas_fwd, AWD_LSTM, config=dict(emb_sz=8, n_hid=12, n_layers=2), pretrained=False)
    defaults.callbacks = cbs

def ensemble(fwd, classes, multi=False):
    "An ensemble with these classes, of which only the answers matter"
    res = BidirEnsemble(fwd)
    res.first.__class__ = type('Plain', (type(res.first),), dict(thresh=None))   # no learner says it
    res.first.classes,res.first.multi,res.first.learn = list(classes),multi,None
    return res

def made(n=200, k=3, sure=1., seed=0):
    "Outputs of three voices for `n` texts of `k` classes, and targets"
    g = torch.Generator().manual_seed(seed)
    targs = torch.randint(k, (n,), generator=g)
    hint  = sure*torch.eye(k)[targs]
    return Answers({o: hint+torch.randn(n, k, generator=g) for o in ('words','forward','backward')}, targs)

class Page(HTMLParser):
    "What a browser would see: tags, their attributes, and text"
    def __init__(self, page):
        super().__init__()
        self.tags,self.text,self.open = [],'',[]
        self.feed(page)
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta','img','wbr'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, data): self.text += data
    def of(self, tag): return [a for t,a in self.tags if t==tag]

def test_numbers_are_scikit_learns(fwd):
    ens,said = ensemble(fwd, 'abc'),made()
    ens.mixture = equal_mixture(said.outs)
    r = Report(ens, said, '200 texts')
    preds = r.probs['all'].argmax(1)
    for name,want in zip(('precision','recall','F1','texts'), skm.precision_recall_fscore_support(said.targs, preds)):
        np.testing.assert_allclose(r.classes[name].astype(float), want)
    for o in ('precision','recall','F1'): assert ((r.classes[f'{o}_low']<r.classes[o]) & (r.classes[o]<=r.classes[f'{o}_high'])).all()
    assert list(r.voices.index)==['words','forward','backward','both','all']
    assert r.voices.right['all']==pytest.approx(skm.accuracy_score(said.targs, preds)) and r.voices.accuracy.equals(r.voices.right.rename('accuracy'))
    assert r.confused.texts.sum()==(preds!=said.targs.numpy()).sum()

def test_what_is_right_at_a_confidence():
    table = abstention([.95,.92,.6,.5], [True,False,True,False], [0,.9,.96])
    assert table.texts.tolist()==[4,2,0] and table.answered.tolist()==[1,.5,0] and table.right.iloc[:2].tolist()==[.5,.5] and np.isnan(table.right[.96])

@pytest.mark.parametrize('sure,says', [(1., 'as sure as it should be'), (3., 'too sure of itself'), (.3, 'not sure enough')])
def test_it_says_whether_it_is_too_sure(fwd, sure, says):
    "Targets drawn from the probabilities that are then sharpened, or made flat"
    g    = torch.Generator().manual_seed(0)
    out  = 2*torch.randn(500, 3, generator=g)
    said = Answers(dict(forward=out*sure), torch.multinomial(out.softmax(1), 1, generator=g)[:,0])
    assert says in Report(ensemble(fwd, 'abc'), said, '').judgement

def test_rivals(fwd):
    "What is no better than a simple rival is not called better"
    ens,said = ensemble(fwd, ['yes','no']),made(k=2)
    all_one  = said._replace(targs=torch.zeros(200, dtype=torch.long))
    assert 'no clear gain over always saying yes (100.0 %)' in Report(ens, all_one, '').judgement
    better = said._replace(outs=dict(words=torch.randn(200, 2, generator=torch.Generator().manual_seed(1)), forward=4*torch.eye(2)[said.targs]))
    assert 'better than counting words alone' in Report(ens, better, '').judgement
    same = said._replace(outs=dict(words=said.outs['words'], forward=said.outs['words']))
    assert 'no clear difference from counting words alone' in Report(ens, same, '').judgement
    assert paired_chance([True]*3, [True]*3)==1

def test_temperature(fwd):
    "Before and after, where there is a mixture; where there is none, once"
    ens,said = ensemble(fwd, 'abc'),made()
    said = said._replace(outs={k: 4*o for k,o in said.outs.items()})
    assert list(Report(ens, said, '').bins)==['after']
    ens.mixture = fit_mixture(*said)
    r = Report(ens, said, '', chosen=True)
    error = {k: (b.answers*(b.confidence-b.right).abs()).sum()/b.answers.sum() for k,b in r.bins.items()}
    assert error['after']<error['before'] and 'flatters' in str(r) and 'before and after the temperature' in str(r)

@pytest.mark.parametrize('k', [2,12,30,31,80])
def test_many_classes(fwd, k, tmp_path):
    "What is printed stays short, whatever the number of classes; the page has all of them"
    ens,said = ensemble(fwd, [f'class {i}' for i in range(k)]),made(3*k+20, k)
    r = Report(ens, said, f"{3*k+20} texts")
    lines = str(r).splitlines()
    assert lines[0].startswith(f"{3*k+20} texts: right in ") and lines[0].endswith('.') and len(lines)<55 and max(map(len, lines[2:]))<100
    page = Page(report_page([r]))
    assert page.open==[] and all(page.text.count(f'class {i}')>=1 for i in range(k))
    assert (r.matrix is not None)==(k<=30)==any(a.get('class')=='matrix' for a in page.of('table')) and len(page.of('img'))==2+(k>30)
    before = plt.get_fignums()
    save_confusion(r, tmp_path/'a.png')
    assert (tmp_path/'a.png').read_bytes().startswith(b'\x89PNG') and plt.get_fignums()==before

def matrix_lines(r):
    "What is printed of the matrix"
    lines = str(r).splitlines()
    at = next(i for i,o in enumerate(lines) if o.startswith('Confusion matrix'))
    return lines[at+1:lines.index('', at)]

def test_the_matrix_is_printed(fwd):
    "Few classes: all counts; names that would be too wide, or look alike, have numbers; many: the pairs"
    said = Answers(dict(forward=9*torch.eye(3)[[0]*1200+[1,2,1,2]]), torch.tensor([0]*1200+[1,1,2,2]))
    assert matrix_lines(Report(ensemble(fwd, ['news','opinion','ad']), said, ''))==[
        '          news opinion ad',
        'news     1,200       -  -',
        'opinion      -       1  1',
        'ad           -       1  1']
    alike = [f'a name that begins like others, {i}, and ends like them' for i in range(3)]
    assert matrix_lines(Report(ensemble(fwd, alike), said, ''))[0].split()==['1','2','3']
    long = matrix_lines(Report(ensemble(fwd, [f'{i} and a name of some length' for i in range(10)]), made(3000, 10), ''))
    assert len(long)==11 and max(map(len, long))<=100 and long[0].split()==[str(i) for i in range(1, 11)] and long[10].startswith('10 9 and')
    many = str(Report(ensemble(fwd, list('abcdefghijk')), made(300, 11), ''))
    assert 'Confusion matrix' not in many and many.split('of 11 classes\n')[1].split('\n\n')[0].count('\n')==10

def test_page_needs_nothing_and_runs_nothing(fwd):
    "No script, nothing from elsewhere, pictures inside and in words; names and texts are shown as they are"
    evil  = ['<script>alert(1)</script>','"onload="x','$a_b^','\u202eabc']
    texts = ['<img src=http://a.b/c onerror=alert(1)>']*200
    page  = Page(report_page([Report(ensemble(fwd, evil), made(k=4), '<b>', texts)], '</title><script>'))
    assert page.of('script')==[] and page.of('b')==[] and page.of('link')==[] and page.open==[]
    assert all(a['src'].startswith('data:image/png;base64,') and len(a['alt'])>30 and a.keys()=={'width','alt','src'} for a in page.of('img'))
    assert '<script>alert(1)</script>' in page.text and texts[0] in page.text and '\u202e' not in page.text
    assert "default-src 'none'" in str(page.of('meta')) and 'width=device-width' in str(page.of('meta')) and page.of('html')==[{'lang':'en'}]

def test_several_labels(fwd):
    "Each class a yes or no; a text is right where all are"
    g = torch.Generator().manual_seed(0)
    targs = (torch.rand(150, 4, generator=g)<.4).float()
    outs  = {o: 3*(2*targs-1)+4*torch.randn(150, 4, generator=g) for o in ('words','forward')}
    ens   = ensemble(fwd, 'abcd', multi=True)
    r     = Report(ens, Answers(outs, targs), '150 texts', texts=[f'text {i}' for i in range(150)])
    probs = r.probs['all']
    whole = ((probs>.5)==targs.bool().numpy()).all(1)
    assert r.right.tolist()==whole.tolist() and r.abstention.right[0.]==pytest.approx(whole.mean())
    for name,want in zip(('precision','recall','F1','texts'), skm.precision_recall_fscore_support(targs, probs>.5)):
        np.testing.assert_allclose(r.classes[name].astype(float), want)
    assert r.bins['after'].answers.sum()==600 and r.matrix is None and r.confused is None and len(r.mistakes)==10
    assert str(r).startswith('150 texts: all labels right in ') and 'onfused' not in str(r)
    page = Page(report_page([r]))
    assert page.open==[] and 'Which for which' not in page.text and page.text.count('text ')>=10

def test_one_call(fwd, tmp_path):
    "From texts, a table, a file; rows without a label are left out; what is wrong is said before anything is written"
    ens = BidirEnsemble(fwd)
    ens.first.classes,ens.first.multi,ens.first.learn = ['neg','pos'],False,fwd
    df  = make_df(30, seed=3)
    r   = report(ens, df, tmp_path/'r.html')
    want = ens.predict_df(df)
    assert r.voices.right['forward']==pytest.approx((want.pred_label==df.label).mean()) and r.title=='30 texts'
    assert np.allclose(r.sure, want.confidence) and df.text[int(np.flatnonzero(~r.right)[0])] in r.mistakes.text.tolist()[:10] + df.text.tolist()
    assert '30 texts' in (tmp_path/'r.html').read_text(encoding='utf-8')
    df.assign(label=[None, *df.label[1:]]).to_csv(tmp_path/'a.csv', index=False)
    assert report(ens, tmp_path/'a.csv').n==29
    private = report(ens, df, show_texts=False)
    assert private.mistakes is None and not any(t[:40] in report_page([private]) for t in df.text)
    assert report(ens).n==8
    with pytest.raises(UlmfitError, match="no column 'body'"): report(ens, df, tmp_path/'never.html', text_col='body')
    with pytest.raises(UlmfitError, match='is a folder'): report(ens, df, tmp_path)
    with pytest.raises(UlmfitError, match=r'1 of 2 texts \(forward\) are no numbers'): Report(ens, Answers(dict(forward=torch.tensor([[1.,2.],[np.nan,0.]])), torch.tensor([0,1])), '')
    with pytest.raises(UlmfitError, match='the table has no label in any row'): report(ens, df.assign(label=None))
    assert not (tmp_path/'never.html').exists()

def test_few_texts(fwd):
    "One text, all right, all wrong, a class that nobody has: a report all the same"
    ens = ensemble(fwd, 'abc')
    for out,targs in ((torch.eye(3)[:1], [0]), (9*torch.eye(3), [0,1,2]), (9*torch.eye(3), [1,2,0]), (torch.zeros(2,3), [2,2])):
        r = Report(ens, Answers(dict(forward=out), torch.tensor(targs)), 'Few', texts=list('xyz'))
        assert 'right in' in str(r) and 'nan' not in str(r).lower() and Page(report_page([r])).open==[]

def test_thresholds_of_the_model(fwd):
    "A label is there where the model says so, at its threshold and not at a half"
    ens  = ensemble(fwd, 'ab', multi=True)
    out  = torch.tensor([[-1.,-3.],[-1.,3.],[-3.,-3.]])   # sigmoids of 0.27, 0.05 and 0.95
    said = Answers(dict(forward=out), torch.tensor([[1.,0.],[1.,1.],[0.,0.]]))
    ens.first.thresh = 0.2
    found = Report(ens, said, 'texts')
    assert found.right.all() and found.voices.accuracy['forward']==1
    ens.first.thresh = None
    assert not Report(ens, said, 'texts').right[0]
