"The component of spaCy: the probabilities of the folder, by name, in batches, in processes, on disk and as bytes"
import os,shutil,subprocess,sys
from pathlib import Path
import numpy as np,pytest,spacy,torch
from spacy.training import Example
import ulmfit_ext.integrations.spacy
from made_up import make_df,make_texts
from ulmfit_ext.classifier import ulmfit_classifier
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.data import ulmfit_dls
from ulmfit_ext.ensemble import BidirEnsemble
from ulmfit_ext.export import load_ulmfit,pack_ulmfit,unpack_ulmfit

root  = Path(__file__).parents[1]
texts = ['', 'A good cat', 'Unknown wörds 😀', *make_texts(37, seed=1, longest=120)]

def make(path, df):
    dls = ulmfit_dls(df, path=path, seed=0, bs=8, bptt=20, min_freq=1)
    learns = [ulmfit_classifier(o, dict(emb_sz=8, n_hid=12, n_layers=2), .3, bptt=20) for o in (dls.clas_fwd,dls.clas_bwd)]
    for learn in learns:
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.02)
    return BidirEnsemble(*learns)

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('saved')
    return make(tmp, make_df()).save(tmp/'model')

def pipeline(path, **config):
    nlp = spacy.blank('en')
    nlp.add_pipe('ulmfit', config={'model': str(path), **config})
    return nlp

def cats(nlp, **kwargs): return [o.cats for o in nlp.pipe(texts, **kwargs)]
def same(a, b): return len(a)==len(b) and all(x.keys()==y.keys() and np.allclose(list(x.values()), list(y.values()), atol=1e-6) for x,y in zip(a, b))
def raises(match): return pytest.raises(UlmfitError, match=match)

def test_probabilities_are_those_of_the_folder(saved):
    ens,nlp = load_ulmfit(saved),pipeline(saved)
    wanted  = [dict(zip(ens.classes, o)) for o in ens.get_preds(texts=texts)[0].tolist()]
    assert same(cats(nlp), wanted) and same(cats(nlp, batch_size=3), wanted) and same([nlp(o).cats for o in texts], wanted)
    assert nlp.get_pipe('ulmfit').labels==('neg','pos')==tuple(nlp.meta['labels']['ulmfit'])
    assert [(doc.text,o) for doc,o in nlp.pipe([(o,i) for i,o in enumerate(texts)], as_tuples=True)]==[(o,i) for i,o in enumerate(texts)]

def test_batches_are_read_at_once(saved, monkeypatch):
    nlp,sizes = pipeline(saved),[]
    ens  = nlp.get_pipe('ulmfit').ensemble
    real = ens.get_preds
    monkeypatch.setattr(ens, 'get_preds', lambda texts, **kwargs: sizes.append(len(texts)) or real(texts=texts, **kwargs))
    assert len(list(nlp.pipe(iter(texts), batch_size=16)))==40 and sizes==[16,16,8]

def test_the_folder_of_a_run(saved, tmp_path):
    "As the commands take it: the folder that has the model as its `model`; and the pipeline takes that along"
    shutil.copytree(saved, tmp_path/'run'/'model')
    nlp,wanted = pipeline(tmp_path/'run'),cats(pipeline(saved))
    assert cats(nlp)==wanted
    nlp.to_disk(tmp_path/'nlp')
    shutil.rmtree(tmp_path/'run')
    assert cats(spacy.load(tmp_path/'nlp'))==wanted
    assert cats(spacy.blank('en').from_config(nlp.config, meta=nlp.meta).from_bytes(nlp.to_bytes()))==wanted

def test_other_answers_stay(saved):
    nlp = pipeline(saved)
    doc = nlp.make_doc('A good cat')
    doc.cats['other'] = .5
    assert set(nlp(doc).cats)=={'other','neg','pos'}

def run(code, *args, path=(), **env):
    path = os.pathsep.join([*map(str, path), str(root), os.environ.get('PYTHONPATH', '')])
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *map(str, args)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'PYTHONPATH':path, **env})

def test_the_entry_point(saved, tmp_path):
    "With the metadata of this package spaCy finds the component, and nobody imports it or fastai"
    subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(tmp_path)], cwd=root, check=True, capture_output=True)
    code = ("import spacy,sys; nlp = spacy.blank('en'); nlp.add_pipe('ulmfit', config={'model': sys.argv[1]}); print(sorted(nlp('good').cats)); "
            "assert 'fastai' not in sys.modules")
    res  = run(code, saved, path=[tmp_path])
    assert res.returncode==0, res.stderr
    assert "['neg', 'pos']" in res.stdout

two = '''
import spacy,sys,torch,multiprocessing as mp,ulmfit_ext.integrations.spacy
def main(path, way):
    mp.set_start_method(way)
    nlp = spacy.blank('en')
    nlp.add_pipe('ulmfit', config={'model': path})
    texts = ['good cat', 'a bad dog', '', 'the tree']*3
    one = [o.cats for o in nlp.pipe(texts)]   # PyTorch has started its threads by now
    (torch.randn(500, 500)@torch.randn(500, 500)).sum()
    two = [o.cats for o in nlp.pipe(texts, n_process=2, batch_size=3)]
    assert len(two)==12 and all(abs(a[k]-b[k])<1e-6 for a,b in zip(one, two) for k in ('neg','pos')), (one,two)
'''
@pytest.mark.parametrize('way', ['fork','spawn'])
def test_two_processes(saved, tmp_path, way):
    "They answer as one does, however they are started and although PyTorch has threads of its own"
    if way=='fork' and not hasattr(os, 'fork'): pytest.skip('this system does not fork')
    (tmp_path/'script.py').write_text(two)
    res = run('import script,sys\nif __name__=="__main__": script.main(*sys.argv[1:])', saved, way, path=[tmp_path], OMP_NUM_THREADS='2', OMP_WAIT_POLICY='passive')
    assert res.returncode==0, res.stderr

def test_on_disk_and_as_bytes(saved, tmp_path):
    model  = shutil.copytree(saved, tmp_path/'model')
    nlp    = pipeline(model)
    wanted = cats(nlp)
    nlp.to_disk(tmp_path/'nlp')
    shutil.rmtree(model)
    loaded = spacy.load(tmp_path/'nlp')
    assert cats(loaded)==wanted and {o.name for o in (tmp_path/'nlp'/'ulmfit').iterdir()}=={o.name for o in saved.iterdir()}
    loaded.to_disk(tmp_path/'nlp')   # over itself
    loaded.to_disk(tmp_path/'again')
    assert cats(spacy.load(tmp_path/'again'))==wanted
    assert cats(spacy.blank('en').from_config(nlp.config, meta=nlp.meta).from_bytes(nlp.to_bytes()))==wanted

def test_another_model_at_the_old_path_is_not_read(saved, tmp_path):
    model = shutil.copytree(saved, tmp_path/'model')
    nlp   = pipeline(model)
    nlp.to_disk(tmp_path/'nlp')
    (model/'config.json').write_text('{}')
    assert cats(spacy.load(tmp_path/'nlp'))==cats(nlp)

def test_damage_inside_is_named(saved, tmp_path):
    pipeline(saved).to_disk(tmp_path/'nlp')
    (tmp_path/'nlp'/'ulmfit'/'vocab.json').write_text('[]')
    with raises('vocab.json is not the file that was saved'): spacy.load(tmp_path/'nlp')

def test_two_models_in_one_pipeline(saved, tmp_path):
    df  = make_df(seed=3)
    other = make(tmp_path, df.assign(label=df.label.map(dict(pos='yes', neg='no')))).save(tmp_path/'other')
    nlp = pipeline(saved)
    nlp.add_pipe('ulmfit', name='second', config={'model': str(other)})
    nlp.to_disk(tmp_path/'nlp')
    shutil.rmtree(other)
    loaded = spacy.load(tmp_path/'nlp')
    assert set(loaded('good').cats)=={'neg','pos','no','yes'} and cats(loaded)==cats(nlp)

def test_quantize(saved):
    a,b = cats(pipeline(saved)),cats(pipeline(saved, quantize=True))
    assert 0 < max(abs(x['pos']-y['pos']) for x,y in zip(a, b)) < .02

def test_scores(saved):
    "spaCy's scores are those of counting by hand"
    nlp,df = pipeline(saved),make_df(50, seed=4)
    examples = [Example.from_dict(nlp.make_doc(t), {'cats': {o: float(o==l) for o in ('neg','pos')}}) for t,l in zip(df.text, df.label)]
    preds  = load_ulmfit(saved).predict_df(df.text).label.to_numpy()
    scores = nlp.evaluate(examples)
    for k in ('neg','pos'):
        hits = ((preds==k) & (df.label==k)).sum()
        assert scores['cats_f_per_type'][k]['r']==pytest.approx(hits/(df.label==k).sum())
        assert scores['cats_f_per_type'][k]['p']==pytest.approx(hits/max(1, (preds==k).sum()))
    assert scores['cats_score']==scores['cats_macro_f']

def test_several_labels(tmp_path):
    df   = make_df()
    path = make(tmp_path, df.assign(label=[['cat']*(' cat' in t)+['dog']*(' dog' in t) for t in df.text])).save(tmp_path/'m')
    nlp  = pipeline(path)
    assert all(0<o[k]<1 for o in cats(nlp) for k in ('cat','dog'))
    examples = [Example.from_dict(nlp.make_doc(t), {'cats': dict(cat=float(' cat' in t), dog=float(' dog' in t))}) for t in df.text]
    assert nlp.evaluate(examples)['cats_score_desc']=='macro AUC'

def test_what_is_wrong_is_said(saved, tmp_path):
    with raises('There is no folder'): pipeline(tmp_path/'nowhere')
    with raises('not a model'): pipeline(tmp_path)
    nlp = spacy.blank('en')
    nlp.add_pipe('ulmfit')
    with raises("'ulmfit' has no model"): nlp('A text')
    with raises("'ulmfit' has no model"): nlp.to_disk(tmp_path/'nlp')

def test_errors_go_to_the_handler(saved, monkeypatch):
    nlp,seen = pipeline(saved),[]
    ens = nlp.get_pipe('ulmfit').ensemble
    nlp.set_error_handler(lambda name, proc, docs, e: seen.append((name, len(docs), str(e))))
    monkeypatch.setattr(ens, 'get_preds', lambda **kwargs: 1/0)
    assert list(nlp.pipe(texts, batch_size=32))==[] and seen==[('ulmfit', 32, 'division by zero'), ('ulmfit', 8, 'division by zero')]

# a model folder as bytes

def test_bytes_of_a_model(saved):
    ens  = load_ulmfit(saved)
    data = pack_ulmfit(ens)
    assert torch.allclose(unpack_ulmfit(data).get_preds(texts=texts)[0], ens.get_preds(texts=texts)[0], atol=1e-6)

def zipped(**files):
    import io,zipfile
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as z:
        for k,v in files.items(): z.writestr(k.replace('_up_', '../'), v)
    return data.getvalue()

@pytest.mark.parametrize('data', [b'', b'no archive', zipped(_up_x='x'), zipped(**{f'f{i}': 'x' for i in range(20)})])
def test_bytes_that_are_no_model(data):
    with raises('bytes are no model'): unpack_ulmfit(data)

def test_bytes_that_were_cut_or_changed(saved):
    data = pack_ulmfit(load_ulmfit(saved))
    with raises('bytes are no model'): unpack_ulmfit(data[:-30])
    at = data.index(b'"ulmfit_ext classifier"')
    with raises('bytes are no model'): unpack_ulmfit(data[:at]+b'X'+data[at+1:])

def test_its_module_needs_no_torch():
    "Some versions of spaCy import it with every pipeline, as it is an entry point; where there is no PyTorch they have to go on"
    code = "import sys; sys.modules['torch'] = None; import ulmfit_ext.integrations.spacy as m; print(m.make_ulmfit.__name__, 'fastai' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.split()==['make_ulmfit','False']
