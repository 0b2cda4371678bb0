"One thread a process, set before torch is imported: several run at once, and the threads of one would wait for the others'"
import gc,os,time,warnings

for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': os.environ.setdefault(k, '1')

import pytest

def pytest_pycollect_makeitem(collector, name, obj):
    "fastcore's `test_eq` and its like, which `from fastai... import *` brings, are no tests"
    if name.startswith('test') and str(getattr(obj, '__module__', '')).startswith(('fastcore','fastai')): return []

def pytest_collection_finish():
    "What was imported stays: to look through it for garbage took a quarter of the time of tests that train"
    gc.freeze()

@pytest.fixture
def strict_warnings():
    "A warning of ours that a test does not expect is an error"
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.filterwarnings('ignore', module='(torch|plum|fastai|spacy).*')
        yield

@pytest.fixture
def is_linear():
    "Does `f(4*n)` take about four times the processor time of `f(n)`, and not sixteen times, as where each part is compared with each?"
    def _seconds(f, n):
        began = time.process_time()
        f(n)
        return time.process_time()-began
    def _is_linear(f, n):
        f(n//4) # what is read or imported once
        few,many = _seconds(f, n),_seconds(f, 4*n)
        return many < 10*few + 0.1
    return _is_linear
