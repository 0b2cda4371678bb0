"`ULMFiT` from outside: the same settings give the same model, others another; what is wrong is said before anything is trained"
import json,warnings
import numpy as np,pandas as pd,pytest,torch
from fastai.text.all import *
from fastai.callback.training import GradientClip
from made_up import make_texts
from ulmfit_ext.data import UlmfitError
from ulmfit_ext.pipeline import ULMFiT
from ulmfit_ext.recipe import recipes

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

def test_a_seed_of_numpy(make, capsys):
    make(seed=1).fit_lm(1)
    make(seed=np.int64(1)).fit_lm(1)
    assert capsys.readouterr().out.count('on disk')==1

def test_a_damaged_model_is_not_replaced(make):
    u = make().fit_classifier(1)
    (u.folder/'config.json').unlink()
    with fails('is not replaced.*delete it, or give another path'): u.fit_classifier(1)

@pytest.mark.parametrize('a,b', [(dict(n_epoch=np.int64(1)), dict(n_epoch=np.int64(2))), (dict(wd=.01), dict(wd=.1)), (dict(), dict(bf16=True))])
def test_other_settings_of_the_language_model(make, a, b, capsys):
    u = make()
    u.fit_lm(**{'n_epoch':1, **a})
    u.fit_lm(**{'n_epoch':1, **b})
    assert 'on disk' not in capsys.readouterr().out
    make().fit_lm(**{'n_epoch':1, **a})
    make().fit_lm(**{'n_epoch':1, **b})
    assert capsys.readouterr().out.count('on disk')==2

@pytest.mark.parametrize('a,b', [(dict(lr_max=slice(1e-5,1e-3)), dict(lr_max=slice(1e-2,1e-1))), (dict(lr_max=np.array([1e-5]*5)), dict(lr_max=np.array([1e-2]*5))),
                                 (dict(config=dict(weight_p=0.)), dict(config=dict(weight_p=.4)))])
def test_other_settings_of_the_classifier(make, a, b, capsys):
    u = make(config={**size, 'n_layers':3})
    u.fit_classifier(1, **a)
    one = u.ensemble.get_preds()[0]
    u.fit_classifier(1, **b)
    assert 'on disk' not in capsys.readouterr().out and not torch.equal(one, u.ensemble.get_preds()[0])
    u.fit_classifier(1, **a)
    assert 'on disk' in capsys.readouterr().out and torch.equal(one, u.ensemble.get_preds()[0])

def loss_of(pos_weight): return lambda out,targ: F.cross_entropy(out, targ, weight=tensor([1., pos_weight]))

def loss_with(default):
    def loss(out, targ, pos_weight=default): return F.cross_entropy(out, targ, weight=tensor([1., pos_weight]))
    return loss

class Scaled(Callback):
    "A callback that keeps its argument to itself"
    def __init__(self, scale): self._scale = scale
    def after_loss(self): self.learn.loss_grad = self.learn.loss_grad*self._scale

@pytest.mark.parametrize('make_arg', [lambda x: dict(loss_func=loss_of(x)), lambda x: dict(loss_func=loss_with(x)), lambda x: dict(cbs=Scaled(x)), lambda x: dict(cbs=[GradientClip(x/1000)]),
                                      lambda x: dict(opt_func=partial(SGD, mom=x/100)), lambda x: dict(loss_func=CrossEntropyLossFlat(weight=tensor([1., x])))],
                         ids=['closure','default','private','clip','partial','weights'])
def test_objects_are_never_taken_for_the_same(make, make_arg, capsys):
    "Closures over different values, functions with different defaults, callbacks that hide their arguments: each is trained, and is what it is alone"
    u,got = make(),[]
    for x in (1., 50., 1.):
        u.fit_classifier(1, 0.1, **make_arg(x))
        got.append(numbers(u.learns['fwd']))
    name, = make_arg(1.)
    out = capsys.readouterr().out
    assert 'on disk' not in out and out.count(f'trained again each time, because `{name}` was given')==3
    assert torch.equal(got[0], got[2]) and not torch.equal(got[0], got[1])
    u.fit_classifier(1, 0.1)
    assert 'on disk' not in capsys.readouterr().out, 'nor for a training without one'
    assert len(list((u.path/'classifier').iterdir()))==2, 'and the disk does not fill up'

def test_objects_for_a_language_model(make, capsys):
    u,got = make(),[]
    for x in (1., 50., 1.):
        u.fit_lm(1, cbs=Scaled(x), clip=None, opt_func=partial(SGD, mom=0.))
        got.append(numbers(u.lms['fwd']))
    assert capsys.readouterr().out.count('because `cbs` and `opt_func` were given')==3
    assert torch.equal(got[0], got[2]) and not torch.equal(got[0], got[1])
    u.fit_classifier(1)
    make().fit_lm(1, cbs=Scaled(1.), clip=None, opt_func=partial(SGD, mom=0.)).fit_classifier(1)
    assert 'Classifier on disk' in capsys.readouterr().out, 'a classifier of the same encoder is the same'

def test_no_callbacks_are_no_objects(make, capsys):
    for cbs in (None, [], L()): make().fit_lm(1, cbs=cbs).fit_classifier(1, cbs=cbs)
    assert capsys.readouterr().out.count('on disk')==4

def test_settings_can_be_read(make):
    u = make()
    u.fit_lm(np.int64(1), 0.01).fit_classifier(1, slice(1e-4,1e-2))
    lm,clas = [json.loads((u.path/o/'fwd-1'/'settings.json').read_text()) for o in ('lm','classifier')]
    assert (lm['n_epoch'],lm['lr_max'],lm['objects'],lm['sizes'])==(1, 0.01, [], {**size}) and clas['lr_max'][1:3]==[1e-4,1e-2]

def test_what_is_only_shown_or_measured_is_no_setting(make, capsys):
    make().fit_lm(1).fit_classifier(1)
    make().fit_lm(1, verbose=False, metrics=[accuracy]).fit_classifier(1, checkpoint=True, metrics=[error_rate, accuracy])
    assert capsys.readouterr().out.count('on disk')==2

def test_another_default_is_another_piece(make, capsys, monkeypatch):
    "As in a later version: of a signature, of the optimizer, of fastai's dropouts"
    import ulmfit_ext.pipeline as module
    u = make()
    u.fit_lm(1).fit_classifier(1)
    changes = [(Learner.fit_stlr, '__defaults__', (None, 0.2, *Learner.fit_stlr.__defaults__[2:])), (module, 'awd_adam', dict(mom=0.8, sqr_mom=0.99)),
               (module, 'awd_lstm_lm_config', {**awd_lstm_lm_config, 'weight_p':0.3})]
    for change in changes:
        with monkeypatch.context() as m:
            m.setattr(*change)
            make().fit_lm(1)
    with monkeypatch.context() as m:
        m.setattr(Learner.fit_gradual, '__defaults__', (*Learner.fit_gradual.__defaults__[:-5], 16, *Learner.fit_gradual.__defaults__[-4:]))
        u.fit_classifier(1)
    assert 'on disk' not in capsys.readouterr().out

def test_what_came_of_a_language_model_can_be_read_and_is_not_compared(make, capsys):
    "The rate in the end, the epochs and the losses, beside what was asked for"
    u = make()
    u.fit_lm(2, 3., clip=None)
    assert 'is too high' in capsys.readouterr().out
    note = json.loads((u.path/'lm'/'fwd-1'/'settings.json').read_text())
    found = u.lms['fwd'].stage_two
    assert note['lr_max']==3.>note['result']['lr_max'] and note['result']==found and found['epochs']<=2
    make().fit_lm(2, 3., clip=None)
    assert 'on disk' in capsys.readouterr().out

@pytest.mark.parametrize('spoil', [lambda f: f.write_text('{'), lambda f: f.unlink(), lambda f: f.write_text('[1]')], ids=['damaged','missing','other'])
def test_a_piece_whose_settings_cannot_be_read_is_not_used(make, spoil, capsys):
    u = make()
    u.fit_lm(1)
    spoil(u.path/'lm'/'fwd-1'/'settings.json')
    make().fit_lm(1)
    assert 'on disk' not in capsys.readouterr().out
    make().fit_lm(1)
    assert 'on disk' in capsys.readouterr().out
    make().fit_classifier(1)

def test_a_piece_that_is_damaged_is_trained_again_and_is_what_it_was(make, capsys):
    u = make()
    u.fit_lm(1).fit_classifier(1)
    for kind in ('lm','classifier'):
        file = u.path/kind/'fwd-1'/'fwd.safetensors'
        file.write_bytes(file.read_bytes()[:100])
        again = make()
        with pytest.warns(UserWarning, match='trained again'): again.fit_lm(1).fit_classifier(1)
        for o in ('lms','learns'): assert torch.equal(numbers(getattr(again, o)['fwd']), numbers(getattr(u, o)['fwd']))
        assert not list(u.path.glob(f'{kind}/fwd-2'))

def test_other_data_or_weights_are_another_piece(make, df, tmp_path, capsys):
    "Another text, another label, another encoder that lies under the same name"
    df = df.assign(is_valid=df.index%4==0)
    others = [df, df.assign(text=df.text.str.replace('cat','dog')), df.assign(label=df.label.map(dict(pos='neg', neg='pos'))), df.assign(is_valid=df.index%4==1)]
    for o in others: ULMFiT.from_df(o, tmp_path/'u', None, 'fwd', size, bs=8, min_freq=1, seed=1, valid_col='is_valid').fit_lm(1).fit_classifier(1)
    assert 'on disk' not in capsys.readouterr().out
    make().fit_lm(1).fit_classifier(1)
    u = make()
    u.fit_lm(1)
    u.lms['fwd'].model[0].encoder.weight.data.add_(1)
    capsys.readouterr()
    u.fit_classifier(1)
    assert 'on disk' not in capsys.readouterr().out, 'its encoder was changed since'

def test_a_language_model_that_is_not_used(make):
    make().fit_lm(1)
    with pytest.warns(UserWarning, match='fwd-1 holds a fine-tuned language model, and it is not used'): make().fit_classifier(1)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*is not used')
        make(seed=2).fit_classifier(1) # that one is of another start

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
    for name in ('HOME','USERPROFILE'): monkeypatch.setenv(name, str(tmp_path)) # of POSIX, of Windows
    u = make()
    u = ULMFiT.from_df(df, '~/v', None, 'fwd', size, bs=8, min_freq=1)
    assert u.path==tmp_path/'v' and (u.path/'.ulmfit_cache').exists()
    u.fit_classifier(1)
    assert ULMFiT.load('~/v').predict('a text')[0] in ('pos','neg')

def test_signatures_are_true():
    "What is advertised is what is used, and the main argument can be seen"
    import inspect
    for f in (ULMFiT.fit_classifier, ULMFiT.fit_lm):
        params = inspect.signature(f).parameters
        assert not {'moms','splitter','lr'} & set(params) and params['opt_func'].default is None
    assert list(inspect.signature(ULMFiT.predict_df).parameters)[1]=='texts'

def test_recipe_is_tried_once_and_said(make, tmp_path, capsys):
    u = make().fit_classifier(1)
    said = capsys.readouterr().out
    assert 'Trying 2 recipes on 3 splits' in said and 'the first is taken' in said
    trials = pd.read_csv(tmp_path/'u'/'recipe'/'fwd-1'/'trials.csv', index_col='recipe')
    assert set(trials.index)=={'together','gradual'} and trials.valid_loss.is_monotonic_increasing
    settings = json.loads((tmp_path/'u'/'classifier'/'fwd-1'/'settings.json').read_text())
    assert settings['gradual']==(trials.index[0]=='gradual')
    make().fit_classifier(1)
    said = capsys.readouterr().out
    assert 'Trying' not in said and 'Classifier on disk, forward' in said
    (tmp_path/'u'/'recipe'/'fwd-1'/'trials.csv').write_text('')
    make().fit_classifier(1)
    assert 'Trying 2 recipes' in capsys.readouterr().out, 'a damaged table is made again'
    make().fit_classifier(1, 0.02) # a rate of the paper's recipe means that recipe
    assert 'Recipe' not in capsys.readouterr().out
    assert json.loads((tmp_path/'u'/'classifier'/'fwd-2'/'settings.json').read_text())['gradual']
    with fails("recipe is 'best'.*together, gradual"): make().fit_classifier(1, recipe='best')

def test_batches_follow_from_the_number_of_labels(make):
    assert make(bs=None).dls.clas_bs==16
    assert make().dls.clas_bs==8

# the third voice

@pytest.fixture
def spell(tmp_path):
    "Labels that single words tell, on enough texts to weigh voices with"
    texts = make_texts(150, 3)
    df = pd.DataFrame(dict(text=texts, label=['pos' if ' good' in t else 'neg' for t in texts]))
    def _f(**kwargs): return ULMFiT.from_df(df, tmp_path/'u', **{**dict(pretrained=None, config=size, bs=8, min_freq=1, seed=1), **kwargs})
    return _f

def test_words_are_counted_first_and_weighed_last(spell, capsys):
    u = spell().fit_classifier(1)
    out = capsys.readouterr().out
    assert out.index('Counting words: accuracy ')<out.index('Classifier, forward') and 'on 30 validation texts' in out
    res = u.validate()
    assert list(res.index)==['words','forward','backward','both','all'] and res.accuracy['words']>.8
    said = next(o for o in out.splitlines() if o.startswith('Weights of the voices, by 30 validation texts: '))
    assert 'counting words is right in ' in out.splitlines()[-1] and out.count(' right in ')==out.count('counting words is right in ')==1, 'who won is for the report'
    weights = u.ensemble.mixture.weights
    assert all(f'{k} {w:.2f}' in said for k,w in weights.items()) and weights['words']>=max(weights.values())-1e-6, 'the classifiers have hardly learned'
    assert u.bag.predict([['xxbos','good']])==['pos']

def test_a_whole_run_begins_with_words(spell, capsys):
    "Before it reads for hours; once, and anew where the classes are to weigh alike"
    u = spell().fit(dict(n_epoch=1), dict(n_epoch=1, recipe='together'), refit=False)
    out = capsys.readouterr().out
    assert out.count('Counting words: accuracy')==1 and out.index('Counting words: accuracy')<out.index('Language model, forward')
    u.fit_classifier(1, recipe='together')
    assert 'Counting words: accuracy' not in capsys.readouterr().out
    u.fit_classifier(1, recipe='together', balance=True)
    assert capsys.readouterr().out.count('Counting words: accuracy')==1 and len(list((u.path/'words').iterdir()))==2

@pytest.mark.parametrize('lm,classifier,says', [
    (dict(lr_max=-1),{},'lr_max is -1'), (dict(patient=1),{},"fit_lm has no argument 'patient': did you mean 'patience'"),
    ({},dict(n_epoch=0),'n_epoch is 0'), ({},dict(epochs=1),"fit_classifier has no argument 'epochs': did you mean 'n_epoch'"),
    ({},dict(wd=-1),'wd is -1'), (dict(n_epoch=0, lr=1),{},"fit_lm has no argument 'lr'"),
    ({},dict(recipe='both'),"recipe is 'both': 'auto' or one of"), ({},dict(recipe=recipes['together']),"recipe is Recipe.* one of")])
def test_a_slip_in_a_later_stage_is_told_before_the_first(make, lm, classifier, says):
    u = make()
    with pytest.raises(UlmfitError, match=says): u.fit(lm, classifier)
    assert not {'words','lm','classifier'} & {p.name for p in u.path.iterdir()}
    with pytest.raises(UlmfitError, match=says): u.fit_classifier(**classifier) if classifier else u.fit_lm(**{**lm, 'n_epoch':1})
    assert not u.coming
    with pytest.raises(UlmfitError, match='the arguments of fit_lm are 3: pass a dict'): u.fit(3)

def test_words_are_weighed_by_what_they_say_in_use(make, df):
    "Validation texts are read with the words that the vocabulary does not hold, as new texts are"
    u = make(max_vocab=16).fit_classifier(1, recipe='together')
    rows = u.dls.valid_idx
    assert sum(map(len, u.dls.unknown(rows)))>5
    said = u.answers().outs['words']
    assert torch.allclose(said, u.bag.logits(u.dls.processor.tokenize(df.text.iloc[rows])), atol=1e-5)
    assert torch.allclose(said, u.ensemble.answers(df=df.iloc[rows]).outs['words'], atol=1e-5)
    assert torch.equal(u.refit().answers().outs['words'], said)

def test_words_come_back(spell, capsys):
    u = spell().fit_classifier(1)
    loaded = ULMFiT.load(u.path)
    assert loaded.words and torch.equal(loaded.predict('a good cat')[2], u.predict('a good cat')[2]) and loaded.ensemble.mixture==u.ensemble.mixture
    again = spell().fit_classifier(1)
    assert len(list((u.path/'words').iterdir()))==1 and torch.equal(again.predict('a good cat')[2], u.predict('a good cat')[2])

def test_words_on_disk_are_read(spell, monkeypatch):
    u = spell()
    bag = u.count_words()
    monkeypatch.setattr('ulmfit_ext.words.BagOfWords.fit', None)
    assert torch.equal(spell().count_words().coef, bag.coef)
    monkeypatch.undo()
    (u.path/'words'/'words-1'/'words.json').write_text('{')
    with pytest.warns(UserWarning, match='words.json is damaged.*trained again'): again = spell().count_words()
    assert torch.equal(again.coef, bag.coef)

def test_without_words(spell, capsys):
    u = spell(words=False).fit_classifier(1)
    assert 'Counting' not in capsys.readouterr().out and list(u.validate().index)==['forward','backward','both'] and u.count_words() is None
    assert not ULMFiT.load(u.path).words and not (u.path/'words').exists()

def test_words_learn_from_the_training_texts_only(spell):
    u = spell()
    seen = set(u.count_words().number)
    train,valid = [{t for doc in u.dls.tokens(rows) for t in doc} for rows in (u.dls.train_idx,u.dls.valid_idx)]
    assert train<=seen and not {f'{a} {b}' for doc in u.dls.tokens(u.dls.valid_idx) for a,b in zip(doc, doc[1:])}<=seen and valid

def test_words_of_several_labels(tmp_path, capsys):
    texts = make_texts(100, 5)
    df = pd.DataFrame(dict(text=texts, label=[[o for o in ('cat','dog','tree') if f' {o}' in t.lower()] for t in texts]))
    u = ULMFiT.from_df(df, tmp_path/'m', None, config=size, directions='bwd', bs=8, min_freq=1, seed=1).fit_classifier(1)
    assert list(u.validate().index)==['words','backward','all'] and 'Weights of the voices, by 20 validation texts: ' in capsys.readouterr().out
    assert ULMFiT.load(u.path).bag.multi and isinstance(u.predict('a cat')[0], list)

def test_words_without_labels(df, tmp_path):
    u = ULMFiT.from_df(df, tmp_path/'l', None, config=size, bs=8, min_freq=1, label_col=None)
    assert u.count_words() is None

def test_weights_are_chosen_by_the_epochs_that_are_trained(df, tmp_path, monkeypatch):
    "Those that are settled, else those that will be chosen"
    import ulmfit_ext.pipeline as module
    asked = []
    def _choose(lang, tokens, n, minutes, speed, memo, epochs): asked.append((n, minutes, epochs))
    monkeypatch.setattr(module, 'choose_lm', _choose)
    for kwargs in (dict(), dict(epochs=(0,None), minutes=5., directions='fwd'), dict(epochs=(None,3))):
        ULMFiT.from_df(df, tmp_path/'u', **{**dict(bs=8, min_freq=1, seed=1, words=False), **kwargs})
    assert asked==[(2,None,(10,20)), (1,5.,(0,20)), (2,None,(10,3))]

# all labels in the end

def test_refit_learns_from_all_labels(spell, capsys):
    u = spell().fit_classifier(2)
    scores,voices = u.validate(),u.ensemble.mixture
    few = u.predict('a good cat')[2]
    u.refit()
    out = capsys.readouterr().out
    assert 'Classifier of all labels, forward' in out and 'Classifier of all labels, backward' in out
    assert not torch.equal(u.predict('a good cat')[2], few)
    assert len(u.learns['fwd'].dls.train_ds)==len(u.dls.labelled)==150 and not len(u.learns['fwd'].dls.valid_ds)
    pd.testing.assert_frame_equal(u.validate(), scores, check_exact=True) # of texts they had not seen then
    assert u.ensemble.mixture==voices and len(list((u.path/'words').iterdir()))==2
    with fails('no data.*after `ULMFiT.refit`'): u.ensemble.validate()
    assert all(u.answers(*a, **k) is u.held_out for a,k in [((), {}), ((np.int64(1),), {}), ((), dict(df=None, dl=None))])
    assert torch.equal(ULMFiT.load(u.path).predict('a good cat')[2], u.predict('a good cat')[2]), 'this is what is saved'
    assert u.refit() is u and 'Classifier' not in capsys.readouterr().out, 'once'

def test_after_refit_words_are_measured_on_texts_they_have_not_seen(spell, capsys):
    u = spell().fit_classifier(1, recipe='together')
    scores = u.validate()
    few = capsys.readouterr().out.splitlines()[0]
    p = u.refit().predict('a good cat')[2]
    capsys.readouterr()
    u.count_words()
    assert few==capsys.readouterr().out.strip()
    assert torch.equal(u.predict('a good cat')[2], p)
    pd.testing.assert_frame_equal(u.fit_classifier(1, recipe='together').validate(), scores, check_exact=True)
    assert torch.equal(u.refit().predict('a good cat')[2], p)

def test_refit_comes_back(spell, capsys):
    u = spell().fit(dict(n_epoch=0), dict(n_epoch=1, recipe='together'))
    capsys.readouterr()
    again = spell().fit(dict(n_epoch=0), dict(n_epoch=1, recipe='together'))
    assert capsys.readouterr().out.count('on disk')==4
    assert torch.equal(again.predict('a good cat')[2], u.predict('a good cat')[2])
    pd.testing.assert_frame_equal(again.validate(), u.validate(), check_exact=True)
    kept = spell().fit(dict(n_epoch=0), dict(n_epoch=1, recipe='together'), refit=False)
    assert len(kept.learns['fwd'].dls.valid_ds)==30 and not torch.equal(kept.predict('a good cat')[2], u.predict('a good cat')[2])

def test_texts_set_aside_by_a_column_are_not_learned_from(df, tmp_path):
    held = df.assign(held=[i%5==0 for i in range(len(df))])
    def _fit(name, **kwargs): return ULMFiT.from_df(held, tmp_path/name, None, 'fwd', size, bs=8, min_freq=1, seed=1, valid_col='held').fit(
        dict(n_epoch=0), dict(n_epoch=1, recipe='together'), **kwargs)
    assert len(_fit('a').learns['fwd'].dls.valid_ds)==held.held.sum()
    assert not len(_fit('b', refit=True).learns['fwd'].dls.valid_ds), 'but when it is said'

def test_refit_needs_a_classifier(make):
    with fails('call `fit_classifier'): make().refit()
    u = make()
    u.dls = u.dls.with_split(u.dls.labelled, u.dls.valid_idx[:0])
    u.fit_classifier(1, recipe='together')
    before = numbers(u.learns['fwd'])
    assert torch.equal(numbers(u.refit().learns['fwd']), before), 'there is nothing more to learn from'
