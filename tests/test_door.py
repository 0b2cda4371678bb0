"What is wrong with an argument is said where it is passed: an `UlmfitError` that names it, before anything is tokenized or trained."
import contextlib
import numpy as np, pytest
from fastai.text.all import *
from ulmfit_ext.core import *
from ulmfit_ext.text.tables import *
from ulmfit_ext.data import *
from ulmfit_ext.weights import *
from ulmfit_ext.lm import *
from ulmfit_ext.classifier import *
from ulmfit_ext.model import *
from ulmfit_ext.predict import *
from ulmfit_ext.export import *
from ulmfit_ext.pipeline import *

tiny = dict(emb_sz=8, n_hid=8, n_layers=1)

@pytest.fixture(scope='module')
def path(tmp_path_factory): return tmp_path_factory.mktemp('door')
@pytest.fixture(scope='module')
def table(): return sample_table(60)
@pytest.fixture(scope='module')
def dls(table, path): return ulmfit_dls(table, path=path, seed=0, bs=8, min_freq=1)
@pytest.fixture(scope='module')
def learn(dls): return ulmfit_classifier(dls.clas_fwd, tiny)
@pytest.fixture(scope='module')
def u(dls, path):
    u = ULMFiT(dls, path, config=tiny, directions='fwd', seed=0)
    with contextlib.redirect_stdout(None): return u.fit_classifier(1)

def refuses(says): return pytest.raises(UlmfitError, match=says)

@pytest.mark.parametrize('name,wrong', [('seed','x'), ('seed',-1), ('seed',1.5), ('bs','8'), ('bs',0), ('bptt',0), ('bptt',1.5), ('clas_bs',1), ('min_freq','3'),
    ('max_vocab','x'), ('valid_pct','0.2'), ('valid_pct',None), ('valid_pct',math.nan), ('path',None), ('unlabelled',3), ('vocab',3)])
def test_data(table, path, name, wrong):
    with refuses(name.replace('vocab', '.*vocab')): ulmfit_dls(table, **{'path':path, name:wrong})

@pytest.mark.parametrize('name,wrong', [('n_epoch','3'), ('n_epoch',0), ('n_epoch',1.5), ('lr_max','x'), ('lr_max',-1), ('lr_max',math.nan), ('factor',0), ('wd','x'), ('wd',-1)])
@pytest.mark.parametrize('fit', ['fit_lm','fit_classifier'])
def test_training(u, fit, name, wrong):
    with refuses(f'{name} is'): getattr(u, fit)(**{'n_epoch':1, name:wrong})

@pytest.mark.parametrize('name,wrong', [('drop_mult','x'), ('minutes','x'), ('minutes',math.nan), ('clip',-1)])
def test_language_models(u, path, name, wrong):
    with refuses(f'{name} is'): u.fit_lm(1, **{name:wrong})
    with refuses(f'{name} is'): pretrain_lm('nowhere', path/'lm', **{name:wrong})

@pytest.mark.parametrize('name,wrong,says', [('config','nope','paper, small, tiny'), ('config',3,'called 3'), ('config',dict(nope=3),'config has nope'), ('config',dict(n_hid='8'),'n_hid is'),
    ('bptt','x','bptt is'), ('max_len',0,'max_len is'), ('drop_mult',-1,'drop_mult is'), ('encoder',3,'pretrained is 3')])
def test_classifier(dls, name, wrong, says):
    with refuses(says): ulmfit_classifier(dls.clas_fwd, **{name:wrong})
    if name=='config':
        with refuses(says): ULMFiT(dls, dls.path, config=wrong)

def test_a_classifier_of_a_named_size(dls): assert awd_of(ulmfit_classifier(dls.clas_fwd, 'tiny')).n_hid==lm_sizes['tiny']['n_hid']
def awd_of(learn): return learn.model[0].module

def test_numpys_numbers(u):
    with contextlib.redirect_stdout(None): u.fit_classifier(np.int64(1), lr_max=np.float32(0.01), factor=np.float64(2.6))
    settings = json.loads((u.path/'classifier'/'fwd-2'/'settings.json').read_text())
    assert settings['objects']==[] and settings['lr_max']==float(np.float32(0.01))

@pytest.mark.parametrize('wrong', [1, None, 'x'])
def test_data_loaders(u, dls, wrong):
    with refuses('dl holds a'): u.validate(dl=[wrong])
    with refuses('The data are a'): ulmfit_classifier(wrong)
    with refuses('The data are a'): ulmfit_classifier(dls.clas_fwd.train)

def test_which_set(u):
    for wrong in (None, 3, -1):
        with refuses('ds_idx is'): u.validate(wrong)

@pytest.mark.parametrize('f', [ULMFiT.load, load_ulmfit, TextModel.load, load_lm])
def test_paths(f):
    with refuses('None'): f(None)

def test_texts(u):
    for wrong in (3, None, Path('texts.csv')):
        with refuses('expected a list of texts and got a'): u.predict_df(wrong)

def test_a_learner_without_data(u):
    learn = TextModel.load(u.folder).to_learner()
    for f in (learn.lr_find, partial(learn.fit, 1), partial(learn.fit_gradual, 1)):
        with refuses('no texts to train on'), learn.no_bar(): f()

def test_what_is_no_language_model(learn, path):
    with refuses('begins with a ChunkedEncoder and not'): save_lm(learn, path/'lm')
    with refuses('fit the learner first'): loss_curve(learn)
