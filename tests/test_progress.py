"The plan of a run: what it says, what it shows, and whether the time is kept. The clock is made up"
import io,re,sys,time
from contextlib import nullcontext
from types import SimpleNamespace
import numpy as np,pandas as pd,pytest
from fastai.text.all import *
from fastai.test_utils import synth_learner
from made_up import make_df
import ulmfit_ext.pipeline as pipeline,ulmfit_ext.progress as progress
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.progress import CountWork,Job,Plan

size = dict(emb_sz=8, n_hid=12, n_layers=2)

@pytest.fixture
def clock(monkeypatch):
    "A clock on which a training batch takes a second, a validation batch a third, and nothing else takes time. The library guesses wrong"
    res,one_batch = SimpleNamespace(now=0., seconds=lambda x: 1.),Learner.one_batch
    def _one_batch(self, i, b):
        res.now += res.seconds(b[0]) * (1 if self.training else 1/3)
        one_batch(self, i, b)
    monkeypatch.setattr(time, 'time', lambda: res.now)
    monkeypatch.setattr(Learner, 'one_batch', _one_batch)
    monkeypatch.setattr(pipeline, 'training_speed', lambda: 3e6) # it is about 2,500,000 in language models, 500,000 in classifiers
    return res

@pytest.fixture
def make(tmp_path):
    df = make_df(120, longest=20)
    def _f(name='u', **kwargs):
        return ULMFiT.from_df(df, tmp_path/name, **{**dict(pretrained=None, config=size, bs=8, min_freq=1, seed=1, words=False), **kwargs})
    return _f

def epochs(u): return {k: len(o[s].recorder.values) for k,o in (('lm',u.lms), ('classifier',u.learns)) for s in u.sides}

# The time is kept

def test_a_run_takes_the_minutes_it_was_given(make, clock, capsys):
    whole = make('whole').fit(classifier=dict(recipe='together')).plan.spent/60
    for share in (.25,.6):
        minutes = round(whole*share, 1)
        u = make(f'{share}', minutes=minutes).fit(classifier=dict(recipe='together'))
        assert .8*minutes < u.plan.spent/60 < 1.2*minutes, (minutes, u.plan.spent/60)
        out = capsys.readouterr().out
        assert f'of {minutes:g} minutes were used' in out and ('There is time for' in out or share>.25), out

def test_with_enough_time_nothing_is_cut(make, clock, capsys):
    want,u = [make(name, minutes=o).fit(classifier=dict(n_epoch=3)) for name,o in (('a',None), ('b',10_000))]
    assert epochs(u)==epochs(want) and u.plan.spent==pytest.approx(want.plan.spent, rel=.1) # a few steps were timed
    out = capsys.readouterr().out
    assert out.count('Trying 2 recipes')==2 and 'There is time' not in out

def test_trials_that_do_not_fit_are_left_out(make, clock, capsys):
    u = make(minutes=3).fit()
    out = capsys.readouterr().out
    assert 'Recipe: together, as there is no time for trials' in out and 'Trying' not in out
    clock.now += 1e6
    again = make(minutes=3).fit() # there is more time now, as all is on disk
    out = capsys.readouterr().out
    assert out.count('on disk')==4 and 'no time for trials' in out and again.plan.spent<60
    make(minutes=4).fit_lm()
    assert 'on disk' not in capsys.readouterr().out, 'of other minutes'

def test_directions_are_trained_alike(make, clock):
    "Also gradually, and then all layers are reached"
    for recipe in ('together','gradual'):
        u = make(recipe, minutes=4).fit(classifier=dict(recipe=recipe))
        a,b = [len(o.recorder.values) for o in u.learns.values()]
        assert min(a,b)>=.6*max(a,b) and min(a,b)>=(4 if recipe=='gradual' else 1)
        assert len(u.lms['fwd'].recorder.losses)==pytest.approx(len(u.lms['bwd'].recorder.losses), rel=.3)

def test_minutes_given_by_hand_are_those_of_each_direction(make, clock):
    u = make(minutes=100).fit_lm(minutes=.4)
    assert [len(o.recorder.losses) for o in u.lms.values()]==pytest.approx([24,24], abs=3)

def test_hardly_any_time(make, clock):
    "A few steps of each are trained all the same"
    u = make(minutes=.01).fit()
    assert all(o.recorder.losses for o in [*u.lms.values(), *u.learns.values()])

def test_no_language_model_leaves_the_time_to_the_classifier(make, clock):
    u = make(minutes=10).fit(dict(n_epoch=0), dict(n_epoch=10, recipe='together'))
    assert not u.lms and [len(o.recorder.values) for o in u.learns.values()]==[10,10]

def test_time_between_two_calls_does_not_count(make, clock):
    u = make(minutes=100).fit_lm(1)
    spent = u.plan.spent
    clock.now += 3600
    assert u.plan.spent==spent>0 and u.fit_classifier(1, recipe='together').plan.spent<2*spent+60

def test_minutes_that_cannot_be(make):
    with pytest.raises(UlmfitError, match='minutes is 0'): make(minutes=0)

# It is told

def test_estimates_in_a_file(make, clock, capsys):
    "After ten steps, and when a fit begins; the first is nearly right where the time goes by the tokens"
    clock.seconds = lambda x: x.numel()/100
    u = make().fit(classifier=dict(n_epoch=3))
    out = capsys.readouterr().out
    said = re.findall(r'^about (\d+) minutes left: (.*)$', out, re.M)
    steps = [l for l in out.splitlines() if l.startswith('about')]
    assert float(said[0][0])==pytest.approx(u.plan.spent/60, rel=.3), out
    assert re.fullmatch(r'language models \d+, trials \d+, classifiers <?\d+', said[0][1])
    assert len(steps) in (5,6), steps # ten steps, backward, trials, classifiers, those of all labels
    assert '\r' not in out and '\x1b' not in out

def test_losses_are_plain_lines(make, clock, capsys):
    make(directions='fwd').fit_lm(4)
    out = capsys.readouterr().out
    assert re.search(r'^epoch +train_loss +valid_loss +accuracy +perplexity +time\n0( +\d+\.\d{4}){4} +\d\d:\d\d\n(less .*\n)?1 ', out, re.M), out

class Terminal(io.StringIO):
    def isatty(self): return True

def test_one_bar_in_a_terminal(make, clock, monkeypatch):
    "It moves on from the first step to the last, tells the estimate, and is gone in the end; what is printed stays whole"
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '120')
    monkeypatch.setattr(sys, 'stdout', screen := Terminal())
    u = make().fit(dict(n_epoch=4), dict(n_epoch=3))
    out = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', screen.getvalue())
    assert 'measuring the speed' in out and re.search(r'━ about \d+ minutes? left: language models <?\d+, trials <?\d+, classifiers <?\d+', out)
    assert '\nLanguage model, backward' in out.replace('\r','\n') and '\x1b[?25h' in screen.getvalue(), 'the cursor is back'
    assert sys.stdout is screen and u.plan.bar is None

def test_one_bar_in_a_notebook(clock, monkeypatch):
    import IPython.display
    shown = []
    class Handle:
        def update(self, html): shown.append(html.data)
    monkeypatch.setattr(IPython.display, 'display', lambda html, display_id: Handle())
    monkeypatch.setattr(progress, 'IN_NOTEBOOK', True)
    plan = Plan()
    job = plan.add('a', 'lines', 160, [1]*3)
    with plan.running():
        learn = synth_learner(cbs=CountWork(plan, job))
        with learn.no_logging(): learn.fit(3)
    assert len(shown)>20 and all('<progress' in o for o in shown[:-1]) and shown[-1]==''
    assert 'less than a minute left' in shown[-2]

def test_the_bar_is_gone_after_an_error(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', screen := Terminal())
    plan = Plan()
    with pytest.raises(KeyboardInterrupt):
        with plan.running(), plan.running(): raise KeyboardInterrupt
    assert plan.bar is None and plan.began is None and sys.stdout is screen

@pytest.mark.parametrize('error', [None, KeyboardInterrupt])
def test_a_learner_has_its_bars_back(capsys, error):
    "Also after a fit that an error ended"
    class Stop(Callback):
        def after_batch(self):
            if error: raise error
    plan = Plan()
    learn = synth_learner(cbs=ProgressCallback())
    with pytest.raises(error) if error else nullcontext(), learn.added_cbs([CountWork(plan, plan.add('a', 'lines', 160, [1])), Stop()]): learn.fit(1)
    assert learn.progress.run and learn.logger is print and not learn.cbs.filter(risinstance(CountWork))

def test_what_is_no_fit_is_not_counted():
    plan = Plan()
    learn = synth_learner(cbs=CountWork(plan, plan.add('a', 'lines', 160, [1])))
    with learn.no_bar(): learn.validate()
    assert plan.measured=={}

# What it reckons with

def test_the_plan_holds_what_will_be_trained(make):
    u = make(directions='fwd')
    u.dls.clas_bs = len(u.dls.train_idx)-2 # makes two batches of half of the texts
    plan = partial(u.plan.add_classifiers, u.dls, size, u.sides)
    plan(n_epoch=4)
    u.plan.add_lms(u.dls, size, u.sides, 3)
    kinds = [o.kind for o in u.plan.jobs.values()]
    assert kinds==['trials']*6+['classifiers','language models'] and len(u.plan.jobs['classifier fwd'].costs)==4
    n_tokens = np.diff(u.dls.offs)[u.dls.train_idx].sum()
    read = sum(xb.numel() for xb,_ in u.dls.clas_fwd.train)
    assert u.plan.jobs['lm fwd'].tokens==n_tokens and u.plan.jobs['classifier fwd'].tokens==read>n_tokens, 'with padding'
    for more in (dict(recipe='gradual'), dict(lr_max=.1)):
        plan(**more)
        costs = u.plan.jobs['classifier fwd'].costs
        assert 'trial 0' not in u.plan.jobs and costs[0]<costs[-1]
