"The benchmark, quick: that every row is measured and both sides agree, not how fast they are"
import json,os,subprocess,sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, typer
from typer.testing import CliRunner
from ulmfit_ext.core import UlmfitError

folder_of_scripts = Path(__file__).resolve().parent.parent/'benchmarks'
sys.path.insert(0, str(folder_of_scripts))
from benchmark import Bench,facts,limits,load_results,main,measurements,ratios,reviews,roofline,rows,run
from sides import Gauge,Scale,lstm_weights,quick_scale

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Where the results go, and questions such as those of TREC-6"
    folder,rng = tmp_path_factory.mktemp('benchmark'),np.random.default_rng(0)
    ask = dict(LOC=['where','city','river'], NUM=['when','many','year'], HUM=['who','author','king'])
    df  = pd.DataFrame([(' '.join(rng.choice(ask[o], 3)), o, 'train' if i<150 else 'test') for i in range(180) for o in [list(ask)[i%3]]], columns=['text','label','split'])
    df.to_json(folder/'trec6.jsonl.gz', orient='records', lines=True)
    return folder

@pytest.fixture(scope='module')
def res(folder):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('ULMFIT_DATA', str(folder))
        return run(quick=True, repeats=2, out=folder/'results.json')

def test_all_rows_are_there(res, folder):
    assert list(res)==list(rows)
    assert load_results(folder/'results.json')==json.loads(json.dumps(res))
    assert all(r['machine']['fastai'] and r['scale']['name']=='quick' for r in res.values())
    assert {k for k,r in res.items() if not r['runs']} == (set() if torch.cuda.is_available() else {'gpu'})

def test_ratios(res):
    t = ratios(res)
    assert {'classifier','length','stages','lm','predict','data'} <= set(t.index.get_level_values('row'))
    assert {'checkpoint=False','checkpoint=True',"checkpoint='auto'",'across borders'} == set(t.loc['classifier'].index.get_level_values('case'))
    assert len(t.loc['stages'].index.get_level_values('what').unique())==quick_scale.n_layers+2
    num = t[['min','median','max','ours','fastai']]
    assert np.isfinite(num).all().all() and (num>0).all().all()
    assert (t['min']<=t['median']).all() and (t['median']<=t['max']).all()
    assert t.index.is_unique and not t.kept.any()   # what is promised is promised at the paper's size
    for row in 'classifier','length','stages','lm': assert set(t.loc[row].index.get_level_values('measure'))=={'seconds','MB'}

def test_each_ratio_is_of_one_round(res):
    t,df = ratios(res),measurements(res)
    for row,what,case in (('lm','step','LinearCrossEntropy'), ('data','four loaders','first run')):
        d = df[(df.row==row)&(df.what==what)].set_index(['case','round']).seconds
        by_round = d[case]/d['fastai']
        assert sorted(d['fastai'].index)==[0,1]
        assert np.allclose(t.loc[(row,what,case,'seconds'), ['min','max']].astype(float), [by_round.min(), by_round.max()])

def test_a_ratio_is_the_median_of_the_rounds():
    "Three rounds, of which one was disturbed on both sides"
    rounds = [(4,2), (4,1), (8,4)]
    runs = [dict(row='lm', what='step', case=c, round=i, seconds=s, bytes=2**20)
            for i,both in enumerate(rounds) for c,s in zip(('fastai','ours'), both)]
    t = ratios(dict(lm=dict(runs=runs, facts=[], scale=dict(name='quick'))))
    assert t.loc[('lm','step','ours','seconds'), ['min','median','max','ours','fastai']].tolist()==[.25, .5, .5, 2, 4]

def test_every_limit_is_of_something_measured(res):
    words = lambda what: 'tokens' if what.endswith(' tokens') else what
    have = {(r,words(w),c,m) for r,w,c,m in ratios(res).index}
    assert {(r,words(w),c,m) for r,w,c,m in limits} <= have
    assert all(w==f'{Scale().n_tok:,} tokens' for _,w,_,_ in limits if w.endswith(' tokens'))

def test_limits_are_compared_at_the_papers_size():
    runs = [dict(row='lm', what='step', case=c, round=0, seconds=s, bytes=b) for c,s,b in (('fastai',2.,10*2**20), ('LinearCrossEntropy',3.,2**20))]
    t = ratios(dict(lm=dict(runs=runs, facts=[], scale=dict(name='paper')))).droplevel(['row','what','case'])
    assert t.kept.to_dict()=={'seconds':'no', 'MB':'yes'} and t['median'].tolist()==[1.5, .1]
    f = facts(dict(lm=dict(facts=[dict(row='lm', what=w, value=v, limit=l) for w,v,l in (('a',1.,2.), ('b',3.,2.), ('c',1.,None))])))
    assert f.kept.tolist()==['yes','no','']

def test_both_sides_do_the_same(res):
    f = facts(res).value
    for kind in 'lm','classifier':
        for k in 'loss','gradient': assert f['agreement', f'{kind}: relative difference of the {k}'] < 1e-6
    assert f['agreement', 'lm: relative difference of the gradient'] > 0   # two computations, not one looked at twice
    assert f['predict', 'one text: greatest difference of the probability'] < 1e-4
    assert f['int8', 'accuracy on TREC-6 in 32 bits, %'] > 0 and np.isfinite(f).all()
    df = measurements(res)
    probs = df[(df.row=='predict')&(df.what=='one text')].groupby('case').probs.sum() # of lists
    assert len(set(probs['fp32']))==2*quick_scale.calls                     # each round reads other texts
    assert np.allclose(probs['int8'], probs['fp32'], atol=.05) and probs['int8']!=probs['fp32']
    assert df[df.row=='corpus'].tokens.iloc[0] > .9*quick_scale.corpus

def test_memory_is_measured(res):
    "fastai keeps all activations: at least the outputs of each layer and gate, and more for longer documents"
    if not os.access('/proc/self/clear_refs', os.W_OK): pytest.skip('memory is measured roughly without /proc')
    mb = measurements(res).groupby(['row','case','what']).MB.median()['length','fastai']
    s  = quick_scale
    least = [4*4*(s.n_hid+s.emb_sz)*s.bs*n/2**20 for n in s.graph_lengths]
    got   = [mb[f'{n:,} tokens'] for n in s.graph_lengths]
    assert all(g>l for g,l in zip(got, least)) and got[-1] > 1.5*got[0]

def test_gauge():
    gauge = Gauge()
    if not gauge.proc: pytest.skip('memory is measured roughly without /proc')
    gauge.start()
    x = torch.ones(64, 2**18) # 64 MB
    del x
    assert 60 < gauge.stop()['bytes']/2**20 < 80

def test_lstm_weights():
    layers = [torch.nn.LSTM(400, 1152), torch.nn.LSTM(1152, 1152), torch.nn.LSTM(1152, 400)]
    assert lstm_weights(Scale())==sum(p.numel() for o in layers for n,p in o.named_parameters() if 'weight' in n)

def test_made_up_reviews_are_as_long_as_reviews(monkeypatch):
    monkeypatch.delenv('ULMFIT_DATA', raising=False)
    df = reviews(200)
    n = df.text.str.split().str.len()
    assert 180 < n.mean() < 280 and n.min() < 100 and n.max() > 400
    assert df.label.value_counts().to_dict()==dict(neg=100, pos=100)

def test_roofline(res):
    r,s = roofline(res),quick_scale
    lstm = 4*s.n_hid*(s.emb_sz+s.n_hid) + 4*s.emb_sz*(s.n_hid+s.emb_sz)
    df = measurements(res)
    assert df[(df.row=='classifier')&(df.case=='fastai')].gflop.iloc[0]==pytest.approx(6*lstm*s.bs*s.n_tok/1e9)
    assert df[df.row=='lm'].gflop.dropna().iloc[0]==pytest.approx(6*(lstm+s.lm_vocab*s.emb_sz)*s.lm_bs*s.lm_bptt/1e9)
    assert {'classifier','lm'}<=set(r.index.get_level_values('row')) and 'products' not in r.index.get_level_values('case')
    assert (r.fraction>0).all() and np.isfinite(r.fraction).all()

def test_a_row_again_keeps_the_others(res, folder, monkeypatch, capsys):
    monkeypatch.delenv('ULMFIT_DATA', raising=False)
    again = run(['int8'], quick=True, out=folder/'results.json')
    assert 'left out' in capsys.readouterr().out and again['int8']['runs']==[]
    assert load_results(folder/'results.json')['lm']==json.loads(json.dumps(res['lm']))

def test_children():
    "fastai is measured without us; what goes wrong in a child is told here, and the child goes on"
    with Bench(quick_scale, 1) as b:
        with pytest.raises(RuntimeError, match='has imported.*ulmfit_ext.callback.bpt3c'): b.compare('x', 'classifier', {'fastai': dict(ours={})}, {})
        kid = b.child('fastai')
        with pytest.raises(RuntimeError, match='x ours failed with TypeError'): kid.ask('x ours', 'classifier', scale=vars(quick_scale), nonsense=1)
        assert kid.ask('peak', 'products', scale=vars(quick_scale)) and kid.ask('peak')['gflops']>0
        kid.proc.kill()
        with pytest.raises(RuntimeError, match='ended with code -9'): kid.ask('peak')
    assert kid.proc.returncode==-9

def test_command(tmp_path):
    app = typer.Typer()
    app.command()(main)
    out = CliRunner().invoke(app, ['speed'])
    assert out.exit_code==1 and 'no row is called' in out.output and 'classifier' in out.output
    with pytest.raises(UlmfitError, match='no row'): run(['speed'])

def test_run_as_the_documentation_says(tmp_path):
    "The script finds the package and its other half wherever it is called from"
    cmd = [sys.executable, '-W', 'ignore', folder_of_scripts/'benchmark.py', 'corpus', '--quick', '--out', 'res.json']
    out = subprocess.run(cmd, cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode==0, out.stderr
    assert load_results(tmp_path/'res.json')['corpus']['runs'] and 'million tokens are read' in out.stdout

@pytest.mark.parametrize('more,says', [([], ['fastai','BPT3C, kept','BPT3C, recomputed','LinearCrossEntropy']), (['--profile'], ['Self CPU','Calls that may wait'])])
def test_the_gpu_script_works_without_a_gpu_and_without_the_rest_of_the_library(more, says):
    code = (f"import sys,runpy; sys.modules.update(dict.fromkeys('spacy safetensors typer pyarrow'.split())); "
            f"sys.argv = ['gpu.py', '--quick', '--steps', '1', '--device', 'cpu', *{more}]; runpy.run_path({str(folder_of_scripts/'gpu.py')!r}, run_name='__main__')")
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, capture_output=True, text=True).stdout
    assert all(o in out for o in says)
