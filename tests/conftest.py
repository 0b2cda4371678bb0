"One thread a process, set before torch is imported: several run at once, and the threads of one would wait for the others'"
import os

for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': os.environ.setdefault(k, '1')
