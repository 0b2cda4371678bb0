"One thread a process, set before torch is imported: several run at once, and threads of one would wait for the other's"
import os
from pathlib import Path
import pytest

for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': os.environ.setdefault(k, '1')

@pytest.fixture(scope='session')
def root():
    "The project's folder"
    return Path(__file__).resolve().parent.parent
