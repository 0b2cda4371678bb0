"TextModel: there and back between fastai, memory and a folder; no fastai where there was none"
import json,os,subprocess,sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest,torch
from fastai.text.all import AWD_LSTM,Learner,RegressionBlock,TextDataLoaders,language_model_learner,text_classifier_learner
from torch import nn
import ulmfit_ext
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit
from ulmfit_ext.lm import lm_learner
from ulmfit_ext.model import TextModel,evaluating
from ulmfit_ext.predict import Predictor
from ulmfit_ext.text.tables import sample_table
from ulmfit_ext.words import BagOfWords

tiny  = dict(emb_sz=8, n_hid=12, n_layers=2)
table = sample_table(80, classes=['Parameters','Notes'])
texts = ['', *sample_table(20, classes=['Returns','Warns']).text]

def make_dls(path, df=table, **kwargs): return ulmfit_dls(df, path=path, seed=0, bs=16, bptt=20, **kwargs)
def raises(match): return pytest.raises(UlmfitError, match=match)
def same(a, b): return torch.equal(Predictor(a)(texts), Predictor(b)(texts))
def fit(learn, lr=.05):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, lr)
    return learn

@pytest.fixture(scope='module')
def dls(tmp_path_factory): return make_dls(tmp_path_factory.mktemp('data'))
@pytest.fixture(params=['clas_fwd','clas_bwd'])
def learn(request, dls): return fit(ulmfit_classifier(getattr(dls, request.param), tiny, bptt=20))
@pytest.fixture
def model(learn): return TextModel.from_learner(learn)

# there and back

def test_it_says_what_the_learner_says(learn, model):
    ids = [o[0] for o in learn.dls.valid_ds]
    with learn.no_bar(): probs = learn.get_preds()[0]
    torch.testing.assert_close(Predictor(model).from_ids(ids).softmax(1), torch.as_tensor(probs), atol=1e-5, rtol=0)
    assert same(model, learn) and model.direction==('backward' if learn.dls.backwards else 'forward')
    assert model.classes==list(learn.dls.vocab[1]) and model.processor.vocab==list(learn.dls.vocab[0]) and not model.multi

def test_it_follows_the_training(learn, model):
    was = Predictor(model)(texts)
    fit(learn, .3)
    assert not torch.equal(Predictor(model)(texts), was) and same(model, learn)

def test_a_folder_and_back(model, tmp_path):
    loaded = TextModel.load(model.save(tmp_path/'m'))
    assert same(loaded, model) and (loaded.direction,loaded.classes,loaded.config,loaded.learn)==(model.direction,model.classes,model.config,None)
    assert {k: v.shape for k,v in loaded.module.state_dict().items()}=={k: v.shape for k,v in model.module.state_dict().items()}
    again = TextModel.load(loaded.save(tmp_path/'again'))
    assert same(again, model) and (tmp_path/'again'/'config.json').read_bytes()==(tmp_path/'m'/'config.json').read_bytes()

def test_a_learner_and_back(learn, model, dls, tmp_path):
    assert model.to_learner() is learn
    loaded = TextModel.load(model.save(tmp_path/'m'))
    back = loaded.to_learner()
    assert isinstance(back, Learner) and same(back, model) and not len(back.dls.train_ds)
    assert back.predict('the sum of all')[0]==learn.predict('the sum of all')[0]
    more = loaded.to_learner(learn.dls)
    assert same(more, model) and len(more.validate())==2
    fit(more)
    assert not same(more, model) and same(loaded, model)

def test_data_of_another_kind(dls, tmp_path):
    loaded = TextModel.load(TextModel.from_learner(ulmfit_classifier(dls.clas_fwd, tiny)).save(tmp_path/'m'))
    with raises('direction'): loaded.to_learner(dls.clas_bwd)
    with raises('vocabulary'): loaded.to_learner(make_dls(tmp_path, min_freq=9).clas_fwd)
    with raises('classes'): loaded.to_learner(make_dls(tmp_path, table.assign(label=table.label.str.lower()), vocab=dls.vocab).clas_fwd)
    with raises('kind of labels'): loaded.to_learner(make_dls(tmp_path, vocab=dls.vocab, label_delim=';').clas_fwd)

def test_data_of_another_task(dls, tmp_path):
    "What is wrong is said before anything is trained"
    loaded = TextModel.load(TextModel.from_learner(ulmfit_classifier(dls.clas_fwd, tiny)).save(tmp_path/'m'))
    for make in (loaded.to_learner, ulmfit_classifier, lm_learner):
        with raises(r'UlmfitDls.*`\.clas_fwd`'): make(dls)
    with raises("language model's data.*clas_fwd"): ulmfit_classifier(dls.lm_fwd, tiny)
    with raises("classifier's data.*lm_fwd"): lm_learner(dls.clas_fwd, tiny)
    with raises('this learner is a classifier'): ulmfit_classifier(dls.clas_fwd, encoder=ulmfit_classifier(dls.clas_fwd, tiny))
    with raises('no texts to train on.*to_learner'): fit(loaded.to_learner())

def test_no_classes(tmp_path):
    dls = TextDataLoaders.from_df(table.assign(label=range(len(table))), y_block=RegressionBlock(), bs=16, path=tmp_path)
    model = TextModel.from_learner(text_classifier_learner(dls, AWD_LSTM, config=tiny, pretrained=False, n_out=1))
    assert Predictor(model)(texts).shape==(len(texts),1)
    with raises('no classes.*Learner.export'): model.save(tmp_path/'m')

def test_folders_of_one_direction_and_of_two(dls, tmp_path):
    learns = [ulmfit_classifier(o, tiny) for o in (dls.clas_fwd,dls.clas_bwd)]
    both = BidirEnsemble(*learns)
    with raises('two directions.*load_ulmfit'): TextModel.load(both.save(tmp_path/'both'))
    for learn in learns: TextModel.from_learner(learn).save(tmp_path/f'{learn.dls.backwards}')
    parts = [TextModel.load(tmp_path/o) for o in ('False','True')]
    assert torch.equal(BidirEnsemble(*parts).get_preds(texts=texts)[0], both.get_preds(texts=texts)[0])
    assert torch.equal(load_ulmfit(tmp_path/'True').get_preds(texts=texts)[0], Predictor(learns[1])(texts))
    with raises('swapped'): BidirEnsemble(*parts[::-1])

def test_the_format_stays(model, tmp_path):
    "What earlier versions wrote, and read"
    path   = model.save(tmp_path/'m')
    config = json.loads((path/'config.json').read_text())
    assert list(config)==['kind','format','ulmfit_ext','classes','multi','loss','thresh','processor','models','sha256','own_sha256']
    assert (config['kind'],config['format'],config['thresh'])==('ulmfit_ext classifier', 1, None) and config['loss']=='CrossEntropyLossFlat'
    assert config['models']=={model.side: dict(
        config=dict(emb_sz=8, n_hid=12, n_layers=2, pad_token=1, hidden_p=.15, input_p=.2, embed_p=.025, weight_p=.25, output_p=.2),
        lin_ftrs=[50], ps=[.1], bptt=20, max_len=None)}
    assert set(config['sha256'])=={'vocab.json', f'{model.side}.safetensors'}

# what is no text classifier

def test_other_models(dls):
    lm = language_model_learner(dls.lm_fwd, AWD_LSTM, config=None, pretrained=False)
    with raises('text classifier'): TextModel.from_learner(lm)
    learn = ulmfit_classifier(dls.clas_fwd, tiny)
    model = TextModel.from_learner(learn)
    learn.model = nn.Linear(2, 2)
    with raises('text classifier'): Predictor(model)(texts)
    with raises('learners or `TextModel`s'): Predictor(learn.model)

def test_an_encoder_or_head_that_reads_in_another_way(dls):
    for i in (0,1):
        learn = text_classifier_learner(dls.clas_fwd, AWD_LSTM, config=tiny, pretrained=False)
        part  = learn.model[i]
        class Other(type(part)):
            def forward(self, o): return super().forward(o)
        part.__class__ = Other
        with raises('text classifier'): Predictor(learn)

def test_a_head_with_more_layers(dls, tmp_path):
    "It predicts, but there is no way to describe it"
    learn = text_classifier_learner(dls.clas_fwd, AWD_LSTM, config=tiny, pretrained=False)
    one   = Predictor(learn)(texts)
    learn.model[1].layers.append(nn.Linear(2, 2, bias=False))
    learn.model[1].layers[-1].weight.data = torch.eye(2).flip(0)
    torch.testing.assert_close(Predictor(learn)(texts), one.flip(1))
    with raises('head'): TextModel.from_learner(learn).save(tmp_path/'m')

def test_modes_are_given_back():
    m = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)))
    m[1].eval()
    with evaluating(m): assert [o.training for o in m.modules()]==[False]*4
    assert [o.training for o in m.modules()]==[True, True, False, False]

def test_answers_from_threads(model, tmp_path):
    loaded = TextModel.load(model.save(tmp_path/'m'))
    for o in (loaded, model):
        want = [Predictor(o)([t]) for t in texts]
        with ThreadPoolExecutor(4) as ex: got = list(ex.map(lambda t: Predictor(o)([t]), texts))
        assert all(torch.equal(a, b) for a,b in zip(got, want))

# without fastai

code = """
import sys, json
from ulmfit_ext.export import load_ulmfit
ens = load_ulmfit(sys.argv[1])
probs = ens.predict('the sum of all')[2].tolist()
early = [o for o in ('fastai','fastcore','pandas','sklearn','matplotlib','fastprogress','torch._dynamo') if o in sys.modules]
import pandas as pd
from ulmfit_ext.text.tables import sample_table
df = sample_table(20, classes=['Parameters','Notes'])
ens.predict_df(df), ens.validate(df=df), ens.confusion_matrix(df), ens.most_confused(df)
load_ulmfit(sys.argv[1], quantize=True).predict('the sum of all')
print(json.dumps([probs, early, [o for o in ('fastai','fastcore','sklearn') if o in sys.modules]]))
"""

def test_no_fastai(dls, tmp_path):
    docs = [[dls.vocab[i] for i in o[0]] for o in dls.clas_fwd.train_ds]
    bag  = BagOfWords.fit(docs, [dls.classes[o[1]] for o in dls.clas_fwd.train_ds], dls.classes)
    ens  = BidirEnsemble(*[ulmfit_classifier(o, tiny) for o in (dls.clas_fwd,dls.clas_bwd)], words=bag)
    path = ens.save(tmp_path/'m')
    env  = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path(ulmfit_ext.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])}
    res  = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(path)], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert res.returncode==0, res.stderr
    probs,early,late = json.loads(res.stdout.splitlines()[-1])
    assert torch.equal(torch.tensor(probs), ens.predict('the sum of all')[2]) and early==late==[]
