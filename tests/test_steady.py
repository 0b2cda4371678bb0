"A loss that is no number, from outside: in any fit, at every step of ULMFiT; what is saved of it, and what is left alone."
import json,pickle
import numpy as np,pandas as pd,pytest,torch
from fastai.text.all import *
from fastai.callback.tracker import SaveModelCallback
from safetensors.torch import load_file
from made_up import make_df
from test_callbacks import synthetic,text
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.callback.groups import is_fitting
from ulmfit_ext.callback.precision import CPUBfloat16
from ulmfit_ext.callback.resume import Resume
from ulmfit_ext.callback.steady import *
from ulmfit_ext.recipe import *
from ulmfit_ext.pipeline import ULMFiT

@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

class Spoil(Callback):
    "The loss of some batches is no number"
    order,run_valid = 5,True
    def __init__(self, *batches, train=True): self.batches,self.train = batches,train
    def before_fit(self): self.n,self.batch = 0,{}
    def after_loss(self):
        if not is_fitting(self.learn) or self.train!=self.training: return
        if self.n in self.batches:
            self.batch[self.n] = self.xb,self.yb
            self.learn.loss,self.learn.loss_grad = self.loss*math.nan,self.loss_grad*math.nan
        self.n += 1

def fit(learn, *cbs, n_epoch=2, lr=0.01):
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, lr, cbs=cbs)

@pytest.mark.parametrize('every', [None,1,4,100])
@pytest.mark.parametrize('at', [0,3,5,6,10])
def test_the_first_such_batch_is_named_and_saved(tmp_path, every, at):
    "Six batches an epoch: looked at one by one, or some together as on a GPU, and before the epoch ends"
    learn,spoil = synthetic(tmp_path),Spoil(*range(at, 12))
    with pytest.raises(NotFiniteError, match=f'The loss is nan in epoch {at//6}, training batch {at%6}, at a learning rate of 0.01. Try a lower'): fit(learn, spoil, StopOnNaN(every=every))
    x,y = spoil.batch[at]
    got = load_file(tmp_path/'not_finite.safetensors')
    assert torch.equal(got['x0'], x[0]) and torch.equal(got['y0'], y[0]) and len(got)==2
    about = json.loads((tmp_path/'not_finite.json').read_text())
    assert (about['epoch'], about['batch'], about['lr'], about['stage'])==(at//6, at%6, .01, 'training')

def test_weights_are_what_they_were_before_the_batch(tmp_path):
    learn,seen = synthetic(tmp_path),[]
    class Look(Callback):
        def before_batch(self): seen[:] = [p.detach().clone() for p in self.learn.model.parameters()]
    with pytest.raises(NotFiniteError): fit(learn, Spoil(3), StopOnNaN(), Look(), SaveModelCallback())
    for a,b in zip(seen, learn.model.parameters(), strict=True): assert torch.equal(a, b)
    assert not learn.cbs.filter(risinstance((StopOnNaN,Spoil)))
    fit(learn, StopOnNaN(), n_epoch=1)

def test_in_validation(tmp_path):
    with pytest.raises(NotFiniteError, match='in epoch 0, validation batch 2'): fit(synthetic(tmp_path), Spoil(2, train=False), StopOnNaN(every=9))

class Scaled(Callback):
    "What fastai's `MixedPrecision` does with a `GradScaler`, on a CPU"
    order = 10
    def before_fit(self): self.learn.scaler,self.skipped = torch.amp.GradScaler('cpu'),0
    def before_backward(self): self.learn.loss_grad = self.learn.scaler.scale(self.loss_grad)
    def before_step(self):
        self.stepped = False
        self.learn.scaler.step(self)
        self.learn.scaler.update()
        self.skipped += not self.stepped
        raise CancelStepException
    param_groups = property(lambda self: self.opt.param_groups)
    def step(self):
        self.stepped = True
        self.opt.step()
    def after_fit(self): self.learn.scaler = None

def test_steps_that_a_scaler_skips_do_not_end_a_fit(tmp_path):
    learn,scaled = synthetic(tmp_path),Scaled()
    fit(learn, scaled, Spoil(2, *range(5, 14)), StopOnNaN(), n_epoch=4)
    assert scaled.skipped==10 and len(learn.recorder.values)==4 and not list(tmp_path.glob('not_finite*'))
    with pytest.raises(NotFiniteError, match='epoch 2, training batch 0'): fit(synthetic(tmp_path, n=400), Scaled(), Spoil(*range(50, 99)), StopOnNaN(), n_epoch=4)

def test_others_are_left_alone(tmp_path):
    "A search for a rate runs until the loss explodes; a validation outside of a fit says what it finds"
    learn = synthetic(tmp_path, cbs=StopOnNaN())
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(end_lr=1e30, num_it=40, show_plot=False)
        learn.model[0].weight.data.fill_(math.nan)
        assert math.isnan(learn.validate()[0]) and learn.get_preds()[0].isnan().all()

def test_the_texts_are_saved(tmp_path):
    learn = text(tmp_path)
    spoil = Spoil(1)
    with pytest.raises(NotFiniteError, match='or 32 bits instead of 16'): fit(learn, spoil, StopOnNaN(tmp_path/'here'), CPUBfloat16())
    about,got = [f(tmp_path/'here'/f'not_finite.{o}') for f,o in ((lambda p: json.loads(p.read_text()), 'json'), (load_file, 'safetensors'))]
    ids,y = spoil.batch[1]
    assert torch.equal(got['x0'], ids[0].as_subclass(Tensor)) and torch.equal(got['y0'], y[0].as_subclass(Tensor))
    assert about['texts'][0]==' '.join(learn.dls.vocab[0][i] for i in ids[0][0]) and about['bits']==16
    assert not torch.is_autocast_enabled('cpu')

def test_data_that_are_no_numbers_are_to_blame(tmp_path):
    learn = synthetic(tmp_path)
    learn.dls.train.dataset[7][0][2] = math.inf
    with pytest.raises(NotFiniteError, match='The batch itself holds what is no number: x0'): fit(learn, StopOnNaN())

def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(NotFiniteError, match='The loss is nan in epoch 0.*could not be saved'): fit(synthetic(tmp_path), Spoil(0), StopOnNaN(tmp_path/'file'))

# in the stages of ULMFiT

def make(tmp_path):
    return ULMFiT.from_df(make_df(40), tmp_path, pretrained=None, config=dict(emb_sz=8, n_hid=12, n_layers=1), directions='fwd', bs=8, min_freq=1, seed=1, words=False)

def saved(path): return sorted(o.name for o in path.glob('not_finite*'))

@pytest.mark.parametrize('recipe', ['together','gradual'])
def test_a_classifier_stops_and_the_language_model_is_kept(tmp_path, capsys, recipe):
    one = make(tmp_path).fit_lm(1)
    with pytest.raises(UlmfitError, match='The loss is (nan|inf) in epoch 0.*Try a lower learning rate.*What was saved before is kept') as e: one.fit_classifier(3, lr_max=1e30, recipe=recipe)
    assert saved(tmp_path)==['not_finite.json','not_finite.safetensors'] and str(tmp_path/'not_finite.json') in str(e.value)
    assert ' good ' in str(json.loads((tmp_path/'not_finite.json').read_text())['texts'])
    capsys.readouterr()
    make(tmp_path).fit_lm(1).fit_classifier(1, lr_max=0.01)
    assert 'Language model on disk' in capsys.readouterr().out

def test_a_language_model_begins_again_at_a_lower_rate(tmp_path, capsys):
    "It stops where that is of no use, and learns where it is"
    with pytest.raises(NotFiniteError): make(tmp_path/'a').fit_lm(1, lr_max=1e30, clip=None)
    assert saved(tmp_path/'a') and not list((tmp_path/'a').glob('lm/*'))
    capsys.readouterr()
    class NaNAtHighRates(Callback):
        order = 5
        def after_loss(self):
            if self.training and self.opt.hypers[-1]['lr']>2e-3: self.learn.loss = self.learn.loss*math.nan
    one = make(tmp_path/'b').fit_lm(1, lr_max=0.004, cbs=NaNAtHighRates())
    assert 'too high: in epoch 0, training batch' in capsys.readouterr().out
    assert one.lms['fwd'].stage_two['lr_max']==pytest.approx(0.004/3) and not saved(tmp_path/'b')

def test_a_state_of_what_failed_is_not_in_the_way(tmp_path, monkeypatch):
    "The next try of a language model is another fit; after a kill it goes on"
    monkeypatch.setattr(Resume, 'interval', 1)
    class NaNAtHighRates(Callback):
        order,left = 5,iter(range(10**6)) # an iterator is no state: it does not come back
        def after_loss(self):
            if not self.training or self.epoch==0: return
            if next(self.left, None) is None: raise KeyboardInterrupt
            if self.opt.hypers[-1]['lr']>2e-3: self.learn.loss = self.learn.loss*math.nan
    def _fit(path): return make(tmp_path/path).fit_lm(3, lr_max=0.004, cbs=NaNAtHighRates()).lms['fwd']
    one,killed = _fit('a'),NaNAtHighRates()
    assert len(one.recorder.values)==3
    killed.left = iter(range(2))
    with pytest.raises(KeyboardInterrupt): make(tmp_path/'b').fit_lm(3, lr_max=0.004, cbs=killed)
    assert (tmp_path/'b'/'.unfinished'/'lm-fwd'/'fit-2.resume').exists()
    assert [o[:2] for o in _fit('b').recorder.values]==[o[:2] for o in one.recorder.values]

def test_a_state_of_a_trial_that_failed_is_not_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(Resume, 'interval', 1)
    u = make(tmp_path)
    u.dls.clas_bs = 4
    def _new(train, valid): return u._new_classifier('fwd', data=u.dls.with_split(train, valid))
    splits,spoil = trial_splits(u.dls.train_idx, u.dls.valid_idx, u.dls.y),iter([Spoil(2)])
    res = try_recipes(_new, splits, recipes, 1, cbs=lambda learn: next(spoil, None), folder=tmp_path/'trials')
    assert res.valid_loss.together==math.inf and math.isfinite(res.valid_loss.gradual)
    assert len(list((tmp_path/'trials').glob('*.json')))==2*len(splits) and not list(tmp_path.rglob('*.resume'))

def test_the_error_can_be_sent_to_another_process():
    error = NotFiniteError('what was wrong', math.inf, 'in epoch 0', ())
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.loss, again.where)==(str(error), math.inf, 'in epoch 0')
