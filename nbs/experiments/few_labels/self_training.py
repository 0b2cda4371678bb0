"""Self-training: does a classifier gain from texts without labels whose labels it guesses itself?

    ULMFIT_DATA=folder python nbs/experiments/few_labels/self_training.py trec6 --labels 100 --seed 0 --lm few-labels/trec6-5452-base

A teacher is trained on all labels, as `refit` trains: all layers at once, both directions, and counted words. It labels the rest of the training set.
Students learn from the labels and from those guesses that the teacher is surest of, the same share of each class that it guesses. Teacher and students are
measured on all texts that had no label, and never on the test set. Each is a line of `self_training.jsonl`. `--lm` names the language models that `run.py` made.
"""
import json, os, sys, time, warnings
from pathlib import Path
from typing import Annotated
sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import *

def with_guesses(dls, rows, labels):
    "The same texts, where `rows` have these labels, and all labelled rows are trained on"
    res = dls.with_split(np.r_[dls.labelled, rows], dls.valid_idx[:0])
    res.y = list(dls.y) + [None]*(len(dls.offs)-1-len(dls.y))
    for i,label in zip(rows, labels): res.y[i] = label
    res.labelled = np.sort(np.r_[dls.labelled, rows])
    return res

def voices(data, lm, seed, rows):
    "Outputs before softmax for the texts in `rows`, by voice, each trained on the labelled rows of `data`"
    labels = [data.y[i] for i in data.labelled]
    outs   = dict(words=BagOfWords.fit(data.tokens(data.labelled), labels, list(data.classes)).logits(data.tokens(rows)))
    texts  = [torch.from_numpy(data.ids[data.offs[i]:data.offs[i+1]].astype(np.int64)) for i in rows]
    for way in ('forward','backward'):
        learn = ulmfit_classifier(data.clas(way=='backward'), encoder=lm)
        set_seed(seed)
        with learn.no_bar(), learn.no_logging(): fit_recipe(learn, recipes['together'], cbs=bfloat16() if has_bfloat16() else None)
        outs[way] = Predictor(learn).from_ids([o.flip(0) if way=='backward' else o for o in texts], False)
    return {k: o.float() for k,o in outs.items()}

def surest(probs, share):
    "Numbers of the texts of the surest guesses, `share` of those of each class"
    sure,guess = probs.max(1)
    found = [(guess==c).nonzero().squeeze(1) for c in range(probs.shape[1])]
    return torch.cat([o[sure[o].topk(math.ceil(share*len(o))).indices] for o in found]).numpy()

def main(
    name:Annotated[str, typer.Argument(help='trec6, imdb or germeval')],
    labels:Annotated[int, typer.Option(help='How many')]=100,
    seed:Annotated[int, typer.Option(help='Draws the labels, and the random numbers of training')]=0,
    lm:Annotated[Path, typer.Option(help='Folder of the language models of stage two')]=...,
    share:Annotated[list[float], typer.Option(help='Of the guesses that a student learns from')]=[0.1,0.25],
    work:Annotated[Path, typer.Option(help='Folder for what is trained')]=Path('self-training'),
    out:Annotated[Path, typer.Option(help='File of results')]=here/'self_training.jsonl',
):
    warnings.simplefilter('ignore')
    train,_ = read_set(name)
    known   = draw(train, labels, seed)
    rest    = train[~train.text.isin(known.text)]
    ulmfit  = ULMFiT.from_df(known, work/f'{name}-{labels}-{seed}', lm, lang=langs.get(name, 'en'), seed=seed, unlabelled=rest.text.tolist())
    dls,rows = ulmfit.dls,np.arange(len(known), len(known)+len(rest))
    truth   = torch.tensor([list(dls.classes).index(o) for o in rest.label])
    def _note(data, learned, **more):
        began  = time.time()
        outs   = voices(data, lm, seed, rows)
        errors = {k: round(float((o.argmax(1)!=truth).float().mean()), 4) for k,o in together(outs).items()}
        row = dict(set=name, labels=len(known), seed=seed, learned=learned, **more, texts=len(rest), errors=errors, seconds=round(time.time()-began),
                   versions=dict(ulmfit_ext=ulmfit_ext.__version__, torch=torch.__version__, fastai=fastai.__version__))
        with open(out, 'a') as f: f.write(json.dumps(row)+'\n')
        print(json.dumps(row), flush=True)
        return together(outs)['all'].softmax(1)
    probs = _note(dls.with_split(dls.labelled, dls.valid_idx[:0]), 'labels')
    for o in share:
        sure  = surest(probs, o)
        guess = probs[sure].argmax(1)
        _note(with_guesses(dls, rows[sure], [dls.classes[i] for i in guess]), 'labels and guesses', guesses=len(sure),
              guesses_right=round(float((guess==truth[sure]).float().mean()), 3))

if __name__=='__main__': typer.run(main)
