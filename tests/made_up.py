"Texts for tests of data"
import numpy as np,pandas as pd

words = 'the a cat dog bird sat ran flew on under mat tree red green big small and then it was very good bad'.split()

def make_texts(n=60, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(words, rng.integers(3, longest))).capitalize()+'.' for _ in range(n)]

def make_df(n=60, seed=0, longest=30):
    texts = make_texts(n, seed, longest)
    return pd.DataFrame({'text': texts, 'label': ['pos' if ' good' in t else 'neg' for t in texts]})
