"`UlmfitClassifier` as scikit-learn, and what builds on it, uses a classifier"
import copy,pickle,random,warnings
import joblib,numpy as np,pandas as pd,pytest,torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV,cross_val_predict,cross_val_score
from sklearn.pipeline import Pipeline,make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted
from made_up import make_df
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.integrations.hub import model_card
from ulmfit_ext.integrations.sklearn import UlmfitClassifier
from ulmfit_ext.labelling import check,suggest
from ulmfit_ext.report import report

size = dict(emb_sz=8, n_hid=12, n_layers=2)

def same(a, b): return np.allclose(a, b, atol=1e-6) # ONNX Runtime and PyTorch differ in the last bits

def tiny(**kwargs):
    return UlmfitClassifier(**{**dict(pretrained=None, config=size, directions='fwd', lm_epochs=0, epochs=1, recipe='together', refit=False, min_freq=1), **kwargs})

@pytest.fixture(scope='module')
def df(): return make_df(60)

@pytest.fixture(scope='module')
def fitted(df): return tiny().fit(df.text, df.label)

def fails(match): return pytest.raises(UlmfitError, match=match)

def test_answers(fitted, df):
    probs = fitted.predict_proba(df.text)
    assert fitted.classes_.tolist()==['neg','pos'] and probs.shape==(60,2) and np.allclose(probs.sum(1), 1, atol=1e-12)
    assert (fitted.predict(df.text)==fitted.classes_[probs.argmax(1)]).all() and fitted.score(df.text, df.label)>.7
    assert (fitted.ensemble_.predict_df(df.text).label.to_numpy()==fitted.predict(df.text)).all()

def test_what_takes_a_model_takes_the_estimator(fitted, df, tmp_path):
    "A report, what to label next, what looks wrong and a card are those of its ensemble"
    more,ens = make_df(40, seed=5),fitted.ensemble
    assert str(report(fitted, more))==str(report(ens, more)) and report(fitted, more).n==40
    assert suggest(fitted, more.text, 3).equals(suggest(ens, more.text, 3))
    assert check(fitted, df, lm=None).equals(check(ens, df, lm=None))
    assert model_card(fitted)==model_card(ens)
    for f in (report, suggest, check, model_card):
        with pytest.raises(NotFittedError): f(tiny(), df)
    with fails('texts as texts=|no data'): report(fitted) # it keeps none to validate with

def test_texts_as_they_come(fitted, df):
    want = fitted.predict_proba(df.text)
    for X in (df.text.tolist(), df.text.to_numpy(), df.text.to_numpy(str), df[['text']], df[['text']].to_numpy(), tuple(df.text)):
        assert same(fitted.predict_proba(X), want)

def test_silent_and_leaves_random_numbers_alone(df, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for o in (random.seed, np.random.seed, torch.manual_seed): o(3)
    want = random.random(),np.random.rand(),torch.rand(1)
    for o in (random.seed, np.random.seed, torch.manual_seed): o(3)
    tiny().fit(df.text, df.label)
    assert (random.random(),np.random.rand(),torch.rand(1))==want
    said = capsys.readouterr()
    assert not said.out+said.err and not list(tmp_path.iterdir())
    tiny(verbose=True).fit(df.text, df.label)
    assert 'Classifier, forward' in capsys.readouterr().out

def test_the_same_seed_is_the_same_model(fitted, df):
    assert same(clone(fitted).fit(df.text, df.label).predict_proba(df.text), fitted.predict_proba(df.text))
    assert not same(clone(fitted).set_params(seed=1).fit(df.text, df.label).predict_proba(df.text), fitted.predict_proba(df.text))

@pytest.mark.parametrize('write', [lambda o, f: pickle.loads(pickle.dumps(o)), lambda o, f: copy.deepcopy(o), lambda o, f: (joblib.dump(o, f), joblib.load(f))[1],
                                   lambda o, f: UlmfitClassifier.load(o.save(f))], ids=['pickle','deepcopy','joblib','folder'])
def test_comes_back(fitted, df, tmp_path, write):
    again = write(fitted, tmp_path/'model')
    assert same(again.predict_proba(df.text), fitted.predict_proba(df.text)) and again.classes_.tolist()==fitted.classes_.tolist()

def test_a_pickle_is_the_model_folder(fitted, tmp_path):
    held = fitted.__getstate__()['ensemble_']
    path = fitted.save(tmp_path/'model')
    assert set(held)=={o.name for o in path.iterdir()}=={'config.json','vocab.json','fwd.safetensors','words.json','words.safetensors'}
    assert all(isinstance(o, bytes) for o in held.values()) and load_ulmfit(path).classes==['neg','pos']
    held['fwd.safetensors'] = held['fwd.safetensors'][:-4] + b'0000'
    with fails('its hash differs'): UlmfitClassifier().__setstate__({**fitted.__getstate__(), 'ensemble_':held})
    assert pickle.loads(pickle.dumps(tiny(seed=5))).seed==5, 'also before `fit`'

@pytest.mark.parametrize('labels', [[0,1], [True,False], [10,9], [1.,2.], ['b','a'], [-1,1]])
def test_labels_come_back_in_the_order_of_numpy(df, labels, tmp_path):
    y = np.array([labels[o=='pos'] for o in df.label])
    clf = tiny().fit(df.text, y)
    assert clf.classes_.tolist()==sorted(labels) and clf.classes_.dtype==y.dtype and clf.predict(df.text).dtype==y.dtype
    assert clf.score(df.text, y)>.7
    assert UlmfitClassifier.load(clf.save(tmp_path/'m')).classes_.tolist()==sorted(labels)

def test_classes_in_an_order_of_their_own(df):
    "Strings that look like numbers are sorted as strings here, and by value in the model"
    y = np.where(df.label=='pos', '10', '9')
    clf = tiny().fit(df.text, y)
    assert clf.classes_.tolist()==['10','9'] and clf.ensemble_.classes==['9','10'] and clf.score(df.text, y)>.7

def test_rare_classes(df):
    rare = pd.concat([df[df.label=='neg'], df[df.label=='pos'][:4]])
    weights = tiny(balance=True).fit(rare.text, rare.label).ensemble_.first.class_weights
    assert weights[1]>3*weights[0] and tiny().fit(rare.text, rare.label).ensemble_.first.class_weights is None

def test_a_folder_keeps_what_was_trained(df, tmp_path, capsys):
    clf = tiny(path=tmp_path/'run', verbose=True, lm_epochs=1)
    a = clf.fit(df.text, df.label).predict_proba(df.text)
    capsys.readouterr()
    assert same(clone(clf).fit(df.text, df.label).predict_proba(df.text), a)
    assert capsys.readouterr().out.count('on disk')==2 and load_ulmfit(tmp_path/'run'/'model').classes==['neg','pos']

def test_unlabelled_texts_are_read(df, capsys):
    tiny(verbose=True, lm_epochs=1).fit(df.text, df.label, unlabelled=make_df(30, 9).text)
    less = capsys.readouterr().out
    tiny(verbose=True, lm_epochs=1).fit(df.text, df.label)
    assert 'Language model, forward' in less and less!=capsys.readouterr().out

@pytest.mark.parametrize('X,y,says', [
    ('one text', ['a'], 'expected a list of texts'), (pd.DataFrame(dict(a=['x'], b=['y'])), ['a'], r'shape \(1, 2\)'), (['x','y'], None, 'requires y'),
    (['x','y','z'], ['a',None,'b'], 'no label in 1 places .the first is 1'), (['x','y','z'], ['a','','b'], 'no label in 1'), (['x','y'], np.array(['a',1], object), 'several types'),
    (['x','y'], [0,0], 'one class .0.'), ([['x'],['y']], [0,1], 'a text is a list'), (7, [0], 'expected a list of texts')])
def test_what_is_wrong_is_said(X, y, says):
    with fails(says): tiny().fit(X, y)

def test_what_scikit_learn_says():
    with pytest.raises(ValueError, match='inconsistent numbers of samples'): tiny().fit(['x','y'], ['a','b','a'])
    with pytest.raises(ValueError, match=r'Unknown label type: y holds 0.5, .* y\.astype\(str\)'): tiny().fit(['x','y'], [1.,.5])
    for ask in (tiny().predict, tiny().predict_proba):
        with pytest.raises(NotFittedError): ask(['x'])
    with pytest.raises(NotFittedError): tiny().save('x')

# what builds on it

def test_cross_validation(df):
    assert cross_val_score(tiny(), df.text, df.label, cv=3).mean()>.6
    assert cross_val_predict(tiny(), df.text.tolist(), df.label.tolist(), cv=3, method='predict_proba').shape==(60,2)

def test_grid_search(df):
    search = GridSearchCV(tiny(), dict(words=[True,False]), cv=2, scoring='roc_auc').fit(df.text, df.label)
    assert search.best_params_=={'words':True} and search.best_estimator_.ensemble_.words is not None

@pytest.mark.parametrize('ensemble', [True,False])
def test_calibration(df, ensemble):
    clf = CalibratedClassifierCV(tiny(), cv=2, ensemble=ensemble).fit(df.text, df.label)
    assert clf.predict_proba(df.text).shape==(60,2) and clf.score(df.text, df.label)>.6

def test_pipeline(df):
    texts = FunctionTransformer(lambda X: X.str.replace('good', 'fine'))
    pipe = make_pipeline(texts, tiny()).fit(df.text, df.label)
    assert pipe.score(df.text, df.label)>.7 and pipe.classes_.tolist()==['neg','pos']
    of_column = make_pipeline(make_column_transformer(('passthrough', ['text'])), tiny()).fit(df, df.label)
    assert same(of_column.predict_proba(df), tiny().fit(df.text, df.label).predict_proba(df.text))

def test_cleanlab(df):
    pytest.importorskip('cleanlab')
    from cleanlab.classification import CleanLearning
    from cleanlab.filter import find_label_issues
    y = (df.label=='pos').to_numpy().astype(int)
    wrong = np.random.default_rng(0).choice(60, 4, replace=False)
    y[wrong] = 1-y[wrong]
    probs = cross_val_predict(tiny(), df.text, y, cv=3, method='predict_proba')
    found = find_label_issues(y, probs, return_indices_ranked_by='self_confidence')
    assert len(found) and set(found)<=set(range(60))
    table = CleanLearning(tiny(), cv_n_folds=3).find_label_issues(df.text.to_numpy(), y)
    assert len(table)==60 and table.is_label_issue.any()

def test_lime(fitted):
    lime = pytest.importorskip('lime.lime_text')
    explainer = lime.LimeTextExplainer(class_names=fitted.classes_, random_state=0)
    said = explainer.explain_instance('the cat sat on the very good mat', fitted.predict_proba, num_features=8, num_samples=200).as_list()
    assert said[0][0]=='good' and said[0][1]>0


# scikit-learn's own checks, on texts made of numbers

suits = """check_estimator_cloneable check_estimator_tags_renamed check_valid_tag_types check_estimator_repr check_no_attributes_set_in_init
check_do_not_raise_errors_in_init_or_set_params check_mixin_order check_parameters_default_constructible check_get_params_invariance check_set_params
check_estimators_unfitted check_classifiers_one_label check_classifiers_regression_target check_supervised_y_no_nan check_requires_y_none check_fit2d_1sample
check_estimators_overwrite_params check_dont_overwrite_parameters check_estimators_fit_returns_self check_pipeline_consistency check_estimators_pickle
check_supervised_y_2d check_methods_subset_invariance check_dict_unchanged check_fit_idempotent check_fit_check_is_fitted""".split()

class OfNumbers(UlmfitClassifier):
    "A row of numbers is a text: a word for each column and the size of its number"
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array,tags.input_tags.one_d_array,tags.input_tags.string = True,False,False
        return tags
    def as_texts(self, X, **kwargs):
        from sklearn.utils.validation import validate_data
        return [' '.join(f"c{j}n{round(float(o))}".replace('-','m') for j,o in enumerate(row)) for row in validate_data(self, X, **kwargs)]
    def fit(self, X, y): return super().fit(self.as_texts(X), y)
    def predict_proba(self, X):
        check_is_fitted(self)
        return super().predict_proba(self.as_texts(X, reset=False))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', suits)
def test_checks_of_scikit_learn(name):
    pytest.importorskip('sklearn', '1.6')
    import sklearn.utils.estimator_checks as checks
    if not hasattr(checks, name): pytest.skip('this version has no such check')
    getattr(checks, name)('OfNumbers', OfNumbers(**tiny().get_params()))
