"Texts for tests of data"
import numpy as np,pandas as pd

words = 'the a cat dog bird sat ran flew on under mat tree red green big small and then it was very good bad'.split()

def make_texts(n=60, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(words, rng.integers(3, longest))).capitalize()+'.' for _ in range(n)]

def make_df(n=60, seed=0, longest=30):
    texts = make_texts(n, seed, longest)
    return pd.DataFrame({'text': texts, 'label': ['pos' if ' good' in t else 'neg' for t in texts]})

def make_ensemble(path, df, **kwargs):
    "Both directions and counted words, trained for an epoch on `df`; `kwargs` are those of `ulmfit_dls`"
    from ulmfit_ext.classifier import ulmfit_classifier
    from ulmfit_ext.data import ulmfit_dls
    from ulmfit_ext.ensemble import BidirEnsemble
    from ulmfit_ext.words import BagOfWords
    dls = ulmfit_dls(df, path=path, seed=0, bs=8, bptt=20, min_freq=1, **kwargs)
    learns = [ulmfit_classifier(o, dict(emb_sz=8, n_hid=12, n_layers=2), .3, bptt=20) for o in (dls.clas_fwd,dls.clas_bwd)]
    for learn in learns:
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.02)
    bag = BagOfWords.fit(dls.tokens(dls.train_idx), [dls.y[i] for i in dls.train_idx], dls.classes, dls.multi)
    return BidirEnsemble(*learns, words=bag)
