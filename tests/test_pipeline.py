"`ULMFiT` from outside: the same settings give the same model, others another; what is wrong is said before anything is trained"
import numpy as np,pandas as pd,pytest,torch
from fastai.text.all import *
from fastai.callback.training import GradientClip
from made_up import make_texts
from ulmfit_ext.data import UlmfitError
from ulmfit_ext.pipeline import ULMFiT

size = dict(emb_sz=8, n_hid=12, n_layers=2)

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

@pytest.fixture(scope='module')
def df():
    texts = make_texts(60)
    return pd.DataFrame(dict(text=texts, label=['pos' if ' good' in t else 'neg' for t in texts]))

@pytest.fixture
def make(df, tmp_path):
    def _f(name='u', **kwargs): return ULMFiT.from_df(df, tmp_path/name, **{**dict(pretrained=None, config=size, directions='fwd', bs=8, min_freq=1, seed=1), **kwargs})
    return _f

def numbers(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def fails(match): return pytest.raises(UlmfitError, match=match)

def test_what_was_done_before_does_not_matter(make):
    "The same seed gives the same model: alone, after another fit, and after a look at the data"
    want = make('a')
    want.fit_lm(2).fit_classifier(2)
    after,looked = make('b'),make('c')
    after.fit_lm(1).fit_classifier(1).fit_lm(2).fit_classifier(2)
    looked.dls.lm_fwd.one_batch(), looked.dls.clas_fwd.one_batch(), looked.dls.clas_fwd.one_batch()
    looked.fit_lm(2).fit_classifier(2)
    for o in (after,looked):
        for kind in ('lms','learns'): assert torch.equal(numbers(getattr(o, kind)['fwd']), numbers(getattr(want, kind)['fwd']))

@pytest.mark.parametrize('a,b', [(dict(n_epoch=np.int64(1)), dict(n_epoch=np.int64(2))), (dict(cbs=GradientClip(.01)), dict(cbs=GradientClip(5.)))])
def test_other_settings_of_the_language_model(make, a, b, capsys):
    u = make()
    u.fit_lm(**{'n_epoch':1, **a})
    u.fit_lm(**{'n_epoch':1, **b})
    assert 'on disk' not in capsys.readouterr().out
    make().fit_lm(**{'n_epoch':1, **a})
    assert 'on disk' in capsys.readouterr().out

@pytest.mark.parametrize('a,b', [(dict(lr_max=slice(1e-5,1e-3)), dict(lr_max=slice(1e-2,1e-1))),
                                 (dict(loss_func=CrossEntropyLossFlat(weight=tensor([1.,50.]))), dict(loss_func=CrossEntropyLossFlat(weight=tensor([50.,1.]))))])
def test_other_settings_of_the_classifier(make, a, b, capsys):
    u = make()
    u.fit_classifier(1, **a)
    one = u.ensemble.get_preds()[0]
    u.fit_classifier(1, **b)
    assert 'on disk' not in capsys.readouterr().out and not torch.equal(one, u.ensemble.get_preds()[0])
    u.fit_classifier(1, **a)
    assert 'on disk' in capsys.readouterr().out and torch.equal(one, u.ensemble.get_preds()[0])

@pytest.mark.parametrize('kwargs,says', [(dict(directions='forward'), 'directions'), (dict(config='big'), 'big'), (dict(bptt=0), 'bptt is 0')])
def test_what_is_wrong_is_said_before_tokenizing(make, kwargs, says, tmp_path):
    with fails(says): make(**kwargs)
    assert not list(tmp_path.rglob('*.npz'))

def test_no_time_is_no_language_model(make):
    u = make()
    with fails('minutes is 0'): u.fit_lm(minutes=0)
    assert not u.lms and not (u.path/'lm').exists()

def test_a_folder_that_cannot_be_replaced_is_found_before_training(make, capsys):
    u = make()
    (u.path/'model').mkdir()
    (u.path/'model'/'.DS_Store').touch() # that is no reason
    u.fit_classifier(1)
    (u.path/'model'/'notes.txt').touch()
    with fails('notes.txt'): u.fit_classifier(2)
    assert len(list((u.path/'classifier').iterdir()))==1

def test_a_model_is_saved_to_where_it_was_read_from(make):
    u = make()
    u.fit_classifier(1)
    for path in (u.path/'model', u.path):
        ULMFiT.load(path).save()
        assert not (u.path/'model'/'model').exists()
    u.fit_classifier(2)

def test_home(make, df, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    u = make()
    u = ULMFiT.from_df(df, '~/v', None, 'fwd', size, bs=8, min_freq=1)
    assert u.path==tmp_path/'v' and (u.path/'.ulmfit_cache').exists()
    u.fit_classifier(1)
    assert ULMFiT.load('~/v').predict('a text')[0] in ('pos','neg')
