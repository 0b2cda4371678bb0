"`to_onnx` and `load_onnx`: the answers of PyTorch without it, alone and among others, and what is wrong with a folder is named"
import builtins,json,os,shutil,subprocess,sys
from pathlib import Path
import numpy as np,pytest,torch
from ulmfit_ext.core import *
from ulmfit_ext.text.tokens import *
from ulmfit_ext.words import *
from ulmfit_ext.mixture import *
from ulmfit_ext.layers import *
from ulmfit_ext.model import *
from ulmfit_ext.predict import *
from ulmfit_ext.ensemble import *
from ulmfit_ext.export import *
from ulmfit_ext.runtime import *
from made_up import make_texts

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
root = Path(__file__).resolve().parent.parent
texts = [*make_texts(40), '', 'x', ' '.join(make_texts(40, seed=1))]
config = dict(config=dict(emb_sz=12, n_hid=20, n_layers=3, output_p=0.4, pad_token=1), lin_ftrs=[50,7], ps=[0.1,0.], bptt=70, max_len=None)

def make_model(classes, backwards=False, seed=0, config=config, spread=0.8, **kwargs):
    "A model with made-up weights, large enough that its answers differ from text to text"
    processor = TextProcessor([*special_tokens, *sorted({o for t in TextProcessor().tokenize(texts) for o in t}-set(special_tokens))])
    module,rng = build_module(len(processor.vocab), len(classes), config),torch.Generator().manual_seed(seed)
    for name,o in module.state_dict().items():
        if o.is_floating_point(): o.uniform_(0.05, 0.2, generator=rng) if 'var' in name else o.uniform_(-spread, spread, generator=rng)
    return TextModel(processor, module, classes, config, backwards=backwards, **kwargs)

def make_ensemble(multi=False, mixture=True, **kwargs):
    "Both directions and counted words"
    classes = ['a','b','c']
    labels  = [classes[i%3] for i in range(40)]
    fwd,bwd = [make_model(classes, back, seed, multi=multi, **kwargs) for seed,back in enumerate((False,True))]
    bag  = BagOfWords.fit(fwd.processor.tokenize(texts[:40]), [[o] for o in labels] if multi else labels, classes, multi)
    voices = ['words','forward','backward']
    mixed  = Mixture(dict(zip(voices, (0.5,0.3,0.2))), dict(zip([*voices,'all'], (0.7,1.5,2.,0.9)))) if mixture else None
    return BidirEnsemble(fwd, bwd, words=bag, mixture=mixed)

def probs_of(ens): return ens.get_preds(texts=texts, progress=False)[0].numpy()

@pytest.mark.parametrize('multi', [False,True])
@pytest.mark.parametrize('mixture', [False,True])
def test_the_answers_of_all_voices(tmp_path, multi, mixture):
    ens = make_ensemble(multi, mixture, thresh=[0.3,0.5,0.6] if multi else None)
    exact,model = probs_of(ens),load_onnx(ens.to_onnx(tmp_path/'m'), threads=1)
    assert np.ptp(exact, axis=0).max()>0.05, 'the answers differ too little to test with'
    assert np.abs(model(texts)-exact).max()<1e-5
    assert np.abs(np.concatenate([model([o]) for o in texts])-exact).max()<1e-5
    assert model.labels(model(texts))==ens.first.labels(ens.first.decisions(torch.tensor(exact)))
    assert model.predict(texts[0])[0]==ens.predict(texts[0])[0]
    assert (model.classes,model.multi)==(ens.classes,multi)

@pytest.mark.parametrize('backwards', [False,True])
def test_one_direction(tmp_path, backwards):
    own = make_model(['a','b'], backwards)
    model = load_onnx(own.to_onnx(tmp_path/'m'), threads=1)
    assert np.abs(model(texts)-Predictor(own)(texts, progress=False).numpy()).max()<1e-5
    assert list(model.directions)==[own.direction] and model([]).shape==(0,2)

@pytest.mark.parametrize('n_layers', [1,2])
def test_other_sizes_and_a_head_without_hidden_layers(tmp_path, n_layers):
    sizes = {**config, 'config': {**config['config'], 'n_layers':n_layers}, 'lin_ftrs':[], 'ps':[]}
    own = make_model(['a','b'], config=sizes)
    assert np.abs(load_onnx(own.to_onnx(tmp_path/'m'))(texts)-Predictor(own)(texts, progress=False).numpy()).max()<1e-5

def test_labels_come_back_as_they_were(tmp_path):
    own = make_model(['1','5'], label_values=[1,5])
    model = load_onnx(own.to_onnx(tmp_path/'m'))
    assert set(model.labels(model(texts)))<={1,5} and isinstance(model.predict('good')[0], int)

def test_in_8_bits_company_does_not_matter(tmp_path):
    "and the answers are near the exact ones; weights take less than half of the room"
    own = make_model(['a','b','c'], config={**config, 'config': {**config['config'], 'emb_sz':32, 'n_hid':96}}, spread=0.15)
    exact,paths = Predictor(own)(texts, progress=False).numpy(),[own.to_onnx(tmp_path/str(o), int8=o) for o in (False,True)]
    model = load_onnx(paths[1])
    found = model(texts)
    assert 0<np.abs(found-exact).max()<0.02
    assert (found==np.concatenate([model([o]) for o in texts])).all() and (found[::-1]==model(texts[::-1])).all()
    big,small = [(o/'fwd.onnx').stat().st_size for o in paths]
    assert small<big/2

def test_integers_never_overflow_16_bits(tmp_path):
    "Two products of an input of 8 bits and a weight, as processors without VNNI add them"
    import onnx
    from onnx import numpy_helper
    graph = onnx.load(make_model(['a','b']).to_onnx(tmp_path/'m', int8=True)/'fwd.onnx').graph
    found = [o for o in map(numpy_helper.to_array, graph.initializer) if o.dtype==np.int8 and o.ndim==3]
    assert len(found)==6 and max(2*255*np.abs(o.astype(int)).max() for o in found)<2**15

def test_neither_torch_nor_fastai_is_imported(tmp_path):
    path = make_ensemble().to_onnx(tmp_path/'m')
    code = '''
import sys
for name in 'torch','fastai','pandas','sklearn','scipy','matplotlib','onnx','safetensors': sys.modules[name] = None
from ulmfit_ext.runtime import load_onnx
print(load_onnx(sys.argv[1]).predict('the cat is good')[0])
'''
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, path], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH':str(root)})
    assert res.stdout.strip()==load_onnx(path).predict('the cat is good')[0], res.stderr

def without(monkeypatch, name):
    "Let `import name` fail"
    real = builtins.__import__
    def _import(o, *args, **kwargs):
        if o.split('.')[0]==name: raise ImportError(o)
        return real(o, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', _import)

def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    own = make_model(['a','b'])
    path = own.to_onnx(tmp_path/'m')
    with monkeypatch.context() as m:
        without(m, 'onnxruntime')
        with pytest.raises(UlmfitError, match='pip install onnxruntime'): load_onnx(path)
    without(monkeypatch, 'onnx')
    with pytest.raises(UlmfitError, match='pip install onnx'): own.to_onnx(tmp_path/'other')
    assert not (tmp_path/'other').exists()

def test_folders_of_either_kind_are_told_apart(tmp_path):
    own = make_model(['a','b'])
    saved,graph = own.save(tmp_path/'saved'),own.to_onnx(tmp_path/'graph')
    with pytest.raises(UlmfitError, match='read it with `load_ulmfit`'): load_onnx(saved)
    with pytest.raises(UlmfitError, match='read it with `load_onnx`'): load_ulmfit(graph)
    with pytest.raises(UlmfitError, match='not replaced|no part of'): own.to_onnx(saved)
    with pytest.raises(UlmfitError, match='not replaced|no part of'): own.save(graph)
    assert own.to_onnx(graph)==graph and load_onnx(graph)

def change_config(path, **new):
    said = json.loads((path/'config.json').read_text())
    (path/'config.json').write_text(json.dumps(sealed({k:v for k,v in {**said, **new}.items() if k!='own_sha256'})))

@pytest.mark.parametrize('name', ['config.json','vocab.json','fwd.onnx','bwd.onnx','words.json','words.npz'])
def test_each_damaged_file_is_named(tmp_path, name):
    path = make_ensemble().to_onnx(tmp_path/'m')
    data = (path/name).read_bytes()
    for damaged in (data[:-1], data[:len(data)//2], b''):
        (path/name).write_bytes(damaged)
        with pytest.raises(UlmfitError, match=name): load_onnx(path)
    (path/name).unlink()
    with pytest.raises(UlmfitError, match=name): load_onnx(path)

def test_what_was_written_on_purpose_is_refused_too(tmp_path):
    path = make_model(['a','b']).to_onnx(tmp_path/'m')
    for new in (dict(classes=['a','b','c']), dict(classes=[[1]]), dict(models={}), dict(models=dict(up={})), dict(processor={}), dict(format=9)):
        folder = shutil.copytree(path, tmp_path/'changed', dirs_exist_ok=True)
        change_config(folder, **new)
        with pytest.raises(UlmfitError): load_onnx(folder)
    folder = shutil.copytree(path, tmp_path/'changed', dirs_exist_ok=True)
    (folder/'fwd.onnx').write_bytes(b'no graph')
    change_config(folder, sha256={**json.loads((folder/'config.json').read_text())['sha256'], 'fwd.onnx':file_sha256(folder/'fwd.onnx')})
    with pytest.raises(UlmfitError, match='cannot be read by ONNX Runtime'): load_onnx(folder)

def test_what_is_no_list_of_texts_is_said(tmp_path):
    model = load_onnx(make_model(['a','b']).to_onnx(tmp_path/'m'))
    with pytest.raises(UlmfitError, match='write \\[text\\]'): model('one text')
    with pytest.raises(UlmfitError, match='predict takes one text'): model.predict(['a','list'])

_forked = """
import os,signal,sys,time
import numpy as np
from ulmfit_ext.session import GraphSession
docs = [np.arange(n)%30 for n in (3,30,60)]
used,other = [GraphSession(sys.argv[1], threads=4) for _ in range(2)]
want = used.logits(docs)
if not (pid := os.fork()):
    same = (used.logits(docs)==want).all()
    del other
    os._exit(0 if same else 1) # as multiprocessing ends; ONNX Runtime itself can hang in what sys.exit tears down
for _ in range(300):
    if (done := os.waitpid(pid, os.WNOHANG))[0]: sys.exit(os.waitstatus_to_exitcode(done[1]))
    time.sleep(0.1)
os.kill(pid, signal.SIGKILL)
sys.exit('it waits for ever')
"""

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks processes')
def test_a_fork_with_several_threads(tmp_path):
    "It reads, and drops a session that it has inherited"
    folder = make_model(['a','b']).to_onnx(tmp_path/'m')
    res = subprocess.run([sys.executable, '-c', _forked, str(folder/'fwd.onnx')], capture_output=True, text=True)
    assert res.returncode==0, res.stderr
