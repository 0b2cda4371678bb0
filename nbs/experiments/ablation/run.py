"""What each part of the method is worth on TREC-6: the rows of the paper's tables 4 to 7, and both directions.

    ULMFIT_DATA=folder python nbs/experiments/ablation/run.py --seeds 3 --work folder

Each run is a line of `results.jsonl` beside this file, with its settings and the versions of what computed it. A run that is there already is not made
again, so the same command goes on where it was stopped. `ablation.ipynb` draws what was found.

A tenth of the training questions is held out, the same for all rows and seeds, and errors are measured on it, as in the paper. A seed draws other
random numbers of the classifier; a language model is trained once, and all seeds and rows that need it share it. The test questions choose nothing:
the rows in `main_rows` read them once, at the end.
"""
import json, os, platform, time, warnings
from pathlib import Path
from typing import Annotated
import fastai, numpy as np, pandas as pd, torch, typer
from fastai.text.all import *
import ulmfit_ext
from ulmfit_ext.all import *
from ulmfit_ext.recipe import recipes,fit_recipe
from ulmfit_ext.callback.precision import has_bfloat16

here = Path(__file__).resolve().parent
lm_lr,clas_lr = 0.004,0.01 # the paper's: constant, or the peak
lm_epoch = 4 # of each language model

class Cosine(STLR):
    "Half a cosine from the peak down to zero over each stage, in place of the triangle"
    def multiplier(self):
        stage = self.learn.gradual_unfreezing.stage(self.epoch)
        done  = (self.epoch-stage.start)*self.n_iter + self.iter
        return (1 + math.cos(math.pi*done/((stage.stop-stage.start)*self.n_iter)))/2

# Language models: what they begin with, and how they are fine-tuned
lms = {'none':            None, # the weights as they are
       'full':            dict(cbs=[]),
       'full+discr':      dict(cbs=[DiscriminativeLR]),
       'full+discr+stlr': dict(cbs=[DiscriminativeLR, STLR]),
       'from nothing':    dict(cbs=[STLR], pretrained=None)}

# Classifiers: which layers are trained, and callbacks of the fit; rates are constant where none of them says otherwise
discr,stlr,freez = DiscriminativeLR,STLR,GradualUnfreezing
classifiers = {'full': [], 'full+discr': [discr], 'last': [], 'chain-thaw': [ChainThaw], 'freez': [freez], 'freez+discr': [freez, discr],
               'freez+stlr': [freez, stlr], 'freez+cos': [freez, Cosine], 'freez+discr+stlr': [freez, discr, stlr], 'together': None}

best = 'full+discr+stlr','freez+discr+stlr'
# Rows: the paper's table, the language model, the classifier
rows = {'LM none':             (6, 'none', best[1]),
        'from scratch':        (7, None, 'full'),
        'full method':         (7, *best),
        **{o: (7, best[0], o) for o in classifiers if o!=best[1]},
        'LM full+discr':       (6, 'full+discr', best[1]),
        'without pretraining': (4, 'from nothing', best[1]),
        'LM full':             (6, 'full', best[1]),
        'backward':            ('directions', *best)}
main_rows = 'full method','backward','both','without pretraining','together' # their test errors are read, too

def read_data(work):
    "Loaders of all models, whose vocabulary is the words of the training questions, and the test questions"
    df = pd.read_json(Path(os.environ['ULMFIT_DATA'])/'trec6.jsonl.gz', lines=True)
    train,test = [df[df.split==o][['text','label']].reset_index(drop=True) for o in ('train','test')]
    return ulmfit_dls(train, valid_pct=0.1, seed=0, clas_bs=64, min_freq=1, path=work, progress=False),test

def fit(learn, n_epoch, lr, cbs):
    "Fit, and keep the weights of the epoch with the lowest validation loss"
    cbs = [o() if isinstance(o, type) else o for o in cbs]
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, lr, cbs=[*cbs, KeepBest(), *half()])

def is_half(): return torch.cuda.is_available() or has_bfloat16()
def half():    return [bfloat16()] if is_half() else []

def language_model(dls, name, backwards, work):
    "The folder of a language model, which is trained if it is not there; None for a classifier that begins from nothing"
    if name is None: return None
    how = lms[name]
    if how is None: return 'base'
    side,folder = 'bwd' if backwards else 'fwd',work/f"lm-{name.replace(' ', '-')}"
    if (folder/f'{side}.safetensors').exists(): return folder
    set_seed(0)
    data,pretrained = dls.lm(backwards),how.get('pretrained', 'base')
    learn = lm_learner(data, load_lm('base')[2], 0.5, pretrained, verbose=False)
    began = time.time()
    fit(learn, lm_epoch, lm_lr, [*how['cbs'], GradientClip(0.25), LinearCrossEntropy])
    losses = [float(o[1]) for o in learn.recorder.values]
    save_lm(learn, folder, losses=losses, epochs=lm_epoch, minutes=round((time.time()-began)/60, 2))
    print(name, side, [round(o, 3) for o in losses], f'{(time.time()-began)/60:.1f} min', flush=True)
    return folder

def lm_facts(folder, backwards):
    "Perplexity of the validation questions for a language model trained here, its epochs and minutes"
    if not isinstance(folder, Path): return {}
    card = json.loads((folder/'config.json').read_text())['directions']['backward' if backwards else 'forward']
    return dict(lm_perplexity=round(float(np.exp(min(card['losses']))), 2), lm_epochs=card['epochs'], lm_minutes=card['minutes'])

def classifier(dls, row, backwards, seed, n_epoch, work):
    "A trained classifier, and the validation loss and error of each epoch"
    _,lm,method = rows[row]
    encoder = language_model(dls, lm, backwards, work)
    set_seed(seed)
    data = dls.clas(backwards)
    for dl in data.loaders: dl.rng = random.Random(seed)
    learn = ulmfit_classifier(data, load_lm('base')[2], 0.5, encoder)
    if method in ('full','full+discr'): learn.unfreeze()
    if method=='together':
        with learn.no_bar(), learn.no_logging(): fit_recipe(learn, recipes[method], n_epoch, cbs=half())
    else: fit(learn, n_epoch, clas_lr, classifiers[method])
    return learn,[dict(loss=round(float(o[1]), 4), error=round(1-float(o[2]), 4)) for o in learn.recorder.values],lm_facts(encoder, backwards)

def answers(learn, test):
    "Probabilities and labels (as numbers) of the validation questions, and of the test questions where there are any"
    ens = BidirEnsemble(learn)
    probs,y = ens.get_preds()
    said = dict(valid=to_np(probs), y_valid=to_np(y))
    if test is None: return said
    probs,_ = ens.get_preds(texts=test.text.tolist(), progress=False)
    return dict(said, test=to_np(probs), y_test=np.array([ens.classes.index(o) for o in test.label]))

def errors(said, is_main):
    "Which validation questions the answers `said` get wrong, and the error; the test error of a main row"
    wrong = np.flatnonzero(said['valid'].argmax(1)!=said['y_valid'])
    res = dict(error=round(len(wrong)/len(said['y_valid']), 4), wrong=wrong.tolist(), valid=len(said['y_valid']))
    if is_main: res.update(test_error=round(float((said['test'].argmax(1)!=said['y_test']).mean()), 4), test=len(said['y_test']))
    return res

def both(row, seed, n_epoch, work):
    "The mean of the probabilities of the two directions"
    a,b = [dict(np.load(work/f'{o}-{n_epoch}-{seed}.npz')) for o in ('full method','backward')]
    return {**a, **{k: (a[k]+b[k])/2 for k in ('valid','test')}}

def main(
    seeds:Annotated[int, typer.Option(help='How many')]=1,
    epochs:Annotated[int, typer.Option(help='Of each classifier; 6 let chain-thaw reach its last stage')]=6,
    only:Annotated[list[str], typer.Option(help='Rows; if not given, all')]=[],
    work:Annotated[Path, typer.Option(help='Folder for what is trained')]=Path('ablation-work'),
    out:Annotated[Path, typer.Option(help='File of results')]=here/'results.jsonl',
):
    warnings.simplefilter('ignore')
    work.mkdir(parents=True, exist_ok=True)
    dls,test = read_data(work)
    print(dls, len(dls.lm_fwd.train), flush=True)
    made = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    for seed in range(seeds):
        for row in only or [*rows,'both']:
            key = dict(row=row, seed=seed, epochs=epochs, pretrained='base')
            if any(all(o.get(k)==v for k,v in key.items()) for o in made): continue
            began,facts = time.time(),{}
            if row=='both': table,lm,method,said = 'directions',*best,both(row, seed, epochs, work)
            else:
                table,lm,method = rows[row]
                language_model(dls, lm, row=='backward', work) # not part of the time that is noted
                began = time.time()
                learn,history,facts = classifier(dls, row, row=='backward', seed, epochs, work)
                facts.update(history=history)
                said = answers(learn, test if row in main_rows else None)
                if row in main_rows: np.savez_compressed(work/f'{row}-{epochs}-{seed}.npz', **said)
            res = dict(key, table=table, lm=lm, method=method, **errors(said, row in main_rows), **facts, train=len(dls.train_idx),
                       minutes=round((time.time()-began)/60, 2), lm_lr=lm_lr, clas_lr=clas_lr, bs=64, bf16=is_half(), gpu=torch.cuda.is_available(), threads=torch.get_num_threads(),
                       versions=dict(ulmfit_ext=ulmfit_ext.__version__, torch=torch.__version__, fastai=fastai.__version__), machine=platform.machine())
            with open(out, 'a') as f: f.write(json.dumps(res)+'\n')
            print({k:v for k,v in res.items() if k in ('row','seed','error','test_error','minutes','lm_perplexity')}, flush=True)

if __name__=='__main__': typer.run(main)
