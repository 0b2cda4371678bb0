"Texts for tests of data"
import numpy as np

words = 'the a cat dog bird sat ran flew on under mat tree red green big small and then it was very good bad'.split()

def make_texts(n=60, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(words, rng.integers(3, longest))).capitalize()+'.' for _ in range(n)]
