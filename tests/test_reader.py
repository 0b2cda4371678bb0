"Reading many texts: the same as fastai's encoder on each alone, whatever is read beside it"
import os,subprocess,sys
import numpy as np,pytest,torch
from fastai.text.all import AWD_LSTM
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.reader import Reader

def encoder(n_words=40, emb_sz=8, n_hid=12, n_layers=3, std=.4):
    torch.manual_seed(0)
    res = AWD_LSTM(n_words, emb_sz, n_hid, n_layers).eval()
    for p in res.parameters(): p.data = torch.randn_like(p)*std
    return res

def docs_of(*lens, n_words=40, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(2, n_words, n)) for n in lens]

def alone(awd, doc):
    "`[last, max, mean]` of fastai's encoder on one text"
    awd.reset()
    with torch.no_grad(): out = awd(doc[None])[0]
    return torch.cat([out[-1], out.max(0).values, out.mean(0)])

def pooled(reader, docs, **kwargs):
    "What `pool` gives, in the order of `docs`, each once"
    parts = list(reader.pool(docs, **kwargs))
    at = torch.cat([i for i,_ in parts])
    assert sorted(at.tolist())==list(range(len(docs)))
    return torch.cat([o for _,o in parts])[at.argsort()]

def close(a, b, atol=1e-6): torch.testing.assert_close(a, b, atol=atol, rtol=0)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('n_layers', [1,2,3])
def test_as_fastai_reads_each_alone(dtype, n_layers):
    awd,docs = encoder(n_layers=n_layers).to(dtype),docs_of(*range(1, 60), 200, 3, 71, 70)
    close(pooled(Reader(awd.state_dict()), docs), torch.stack([alone(awd, o) for o in docs]))

@pytest.mark.parametrize('kwargs', [dict(max_tokens=1), dict(max_tokens=7), dict(max_tokens=100, steps=3), dict(steps=1), dict(steps=500), dict(max_tokens=10**6)])
def test_how_much_is_read_at_a_time_does_not_matter(kwargs):
    reader,docs = Reader(encoder().state_dict()),docs_of(*np.random.default_rng(1).integers(1, 90, 40))
    close(pooled(reader, docs, **kwargs), pooled(reader, docs))

def test_no_texts_and_texts_without_tokens():
    reader = Reader(encoder().state_dict())
    assert list(reader.pool([]))==[]
    assert not pooled(reader, docs_of(0, 0)).any()
    got = pooled(reader, docs_of(0, 5, 0, 9))
    assert not got[[0,2]].any() and got[[1,3]].any(1).all()

def test_much_text():
    "Where there is much, what frequent words contribute is remembered: the others count as well"
    awd,docs = encoder(6000),docs_of(*[400]*90, n_words=6000)
    reader = Reader(awd.state_dict())
    close(pooled(reader, docs), torch.cat([pooled(reader, docs[i:i+30]) for i in range(0, 90, 30)]))
    close(pooled(reader, docs)[:3], torch.stack([alone(awd, o) for o in docs[:3]]))

def test_rows_are_hardly_ever_idle(monkeypatch):
    read,seen = Reader.read,[]
    monkeypatch.setattr(Reader, 'read', lambda self, x, *args: (seen.append(x.shape), read(self, x, *args))[1])
    docs = docs_of(*np.random.default_rng(0).integers(1, 300, 200))
    pooled(Reader(encoder().state_dict()), docs, max_tokens=160)
    assert all(steps*rows<=160 for steps,rows in seen) and sum(s*r for s,r in seen) < 1.1*sum(map(len, docs))

def test_a_nan_is_not_lost():
    awd = encoder()
    awd.encoder.weight.data[7] = float('nan')
    got = pooled(Reader(awd.state_dict()), [torch.tensor([3,7,4]), torch.tensor([3,4,5])])
    assert got[0].isnan().all() and got[1].isfinite().all()

def test_weights_are_read_and_left_alone():
    awd = encoder()
    before = {k: v.clone() for k,v in awd.state_dict().items()}
    out = pooled(Reader(awd.state_dict()), docs_of(9, 20))
    assert not out.requires_grad and all(torch.equal(v, before[k]) for k,v in awd.state_dict().items())

_forked = """
import os,signal,time,torch
from ulmfit_ext.reader import check_ids
torch.set_num_threads(2)
docs = [torch.arange(100)]*1000
torch.zeros(10**6).add(1) # PyTorch's threads are there
check_ids(docs, 100)
if not (pid := os.fork()):
    check_ids(docs, 100)
    os._exit(0)
for _ in range(100):
    if os.waitpid(pid, os.WNOHANG)[0]: break
    time.sleep(0.1)
else:
    os.kill(pid, signal.SIGKILL)
    raise SystemExit('it waits for ever')
"""

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks processes')
def test_ids_are_checked_in_a_forked_process():
    "As in a server that loads a model, and forks its workers then"
    res = subprocess.run([sys.executable, '-c', _forked], capture_output=True, text=True)
    assert res.returncode==0, res.stderr
