"""What to label next, and which labels look wrong: `suggest` against random choice, and `check` with labels flipped on purpose.

    ULMFIT_DATA=folder python nbs/experiments/what_next/run.py prepare --set trec6 --to prepared
    python nbs/experiments/what_next/run.py suggest --set trec6 --strategy suggest --seed 0 --data prepared
    python nbs/experiments/what_next/run.py check --set trec6 --seed 0 --data prepared

`prepare` fine-tunes a language model on the training texts without their labels, once for each set, and stores it beside the texts as numbers, with 16 bits
a weight. All runs share it. `suggest` begins with 100 labels drawn at random, trains a classifier (forward, all layers at once, the epochs that so many labels
get by default, nothing held out), lets the strategy choose 100 more, and does so three times. `check` gives 5 % of the labels another class, and counts how many of the 50
that look wrong the most are among these. It does so for the language model, and for a classifier that was trained on the labels with the flips.

Each round, or check, is a line of a file. What is there already is not made again. Nothing is chosen on the test texts.
"""
import json, os, platform, time, warnings
from pathlib import Path
from typing import Annotated
import numpy as np, pandas as pd, torch, typer
from fastai.text.all import *
import ulmfit_ext
from ulmfit_ext.all import *
from ulmfit_ext.labelling import *
from ulmfit_ext.reader import Reader

app   = typer.Typer(pretty_exceptions_enable=False)
files = dict(trec6='trec6.jsonl.gz', imdb='imdb.jsonl.gz', germeval='germeval2018.jsonl.gz')
langs = dict(germeval='de')
Set   = Annotated[str, typer.Option(help='trec6, imdb or germeval')]
Data  = Annotated[Path, typer.Option(help='Where `prepare` wrote')]
Out   = Annotated[Path, typer.Option(help='File of results; lines are added')]
Device= Annotated[str, typer.Option(help='cpu or cuda')]

# ---- texts and language models

def read_set(name, n_train=4000, n_test=2000, most_words=200):
    "Training texts and test texts; of IMDb some, and the first words of each"
    df = pd.read_json(Path(os.environ['ULMFIT_DATA'])/files[name], lines=True)
    train,test = [df[df.split==o][['text','label']].reset_index(drop=True) for o in ('train','test')]
    if name!='imdb': return train,test
    train,test = [o.sample(n, random_state=0).reset_index(drop=True) for o,n in ((train,n_train),(test,n_test))]
    for o in (train,test): o['text'] = [' '.join(t.split()[:most_words]) for t in o.text]
    return train,test

@app.callback()
def _all(): warnings.simplefilter('ignore')

@app.command()
def prepare(
    set:Set,
    to:Annotated[Path, typer.Option(help='Folder to write')],
    minutes:Annotated[float, typer.Option(help='Time for the language model')]=5.,
    max_vocab:Annotated[int, typer.Option(help='Words at most')]=10_000,
):
    "Fine-tune the language model of a set, and store it with the texts as ids."
    train,test = read_set(set)
    lang,folder = langs.get(set, 'en'),to/set
    pretrained = 'de' if lang=='de' else 'small'
    dls = ulmfit_dls(pd.DataFrame(dict(text=train.text)), label_col=None, valid_pct=0.05, seed=0, min_freq=2, max_vocab=max_vocab, lang=lang,
                     path=to, cache=False)
    learn = finetune_lm(dls, pretrained, minutes=minutes, drop_mult=0.5)
    loss  = float(learn.validate()[0])
    save_lm(learn, folder, half=True, perplexity=math.exp(loss))
    docs = TextProcessor(dls.vocab, lang).encode([*train.text, *test.text], progress=False)
    np.savez_compressed(folder/'texts.npz', ids=np.concatenate(docs).astype(np.uint16), offs=np.cumsum([0, *map(len, docs)]),
                        labels=np.array([*train.label, *test.label]), n_train=len(train))
    print(json.dumps(dict(set=set, perplexity=math.exp(loss), words=len(dls.vocab), tokens=int(sum(map(len, docs))))))

# ---- what both experiments do

def read_prepared(folder):
    "Ids, labels, which are for training, classes and words of a set; and the folder of its language model, which is the same"
    file = np.load(folder/'texts.npz')
    docs = np.split(file['ids'].astype(np.int64), file['offs'][1:-1])
    return docs,file['labels'],int(file['n_train']),sorted({*file['labels'].tolist()}),json.loads((folder/'vocab.json').read_text()),folder

def train(docs, labels, classes, vocab, lm, seed, device):
    "A classifier of all these texts: forward, all layers at once, the usual epochs, nothing held out"
    set_seed(seed)
    reads = TextProcessor(vocab, 'en:chars') # the texts are ids already: no tokenizer is asked
    dls   = clas_dls(docs, list(labels), [list(range(len(docs))), []], reads, classes, bs=batch_size(len(docs)), device=torch.device(device))
    learn = ulmfit_classifier(dls, encoder=lm)
    with learn.no_bar(), learn.no_logging(): fit_recipe(learn, recipes['together'], epochs_for(len(docs)))
    return BidirEnsemble(learn)

def note(out, key, **found):
    row = dict(key, **found, versions=dict(ulmfit_ext=ulmfit_ext.__version__, torch=torch.__version__, numpy=np.__version__), machine=platform.machine())
    with open(out, 'a') as f: f.write(json.dumps(row)+'\n')
    print(json.dumps(row), flush=True)

def is_there(out, key):
    rows = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    return any(all(o.get(k)==v for k,v in key.items()) for o in rows)

# ---- what next

strategies = dict(random=lambda probs, features, n, seed: np.random.default_rng(seed).permutation(len(probs))[:n],
                  uncertain=lambda probs, features, n, seed: (lambda p: (p[:,-1]-p[:,-2]).argsort()[:n])(np.sort(probs, 1)),
                  suggest=lambda probs, features, n, seed: pick(probs, features, n, seed=seed))

@app.command()
def suggest(
    set:Set, strategy:Annotated[str, typer.Option(help=', '.join(strategies))], seed:Annotated[int, typer.Option()], data:Data,
    device:Device='cpu', out:Out=Path('results.jsonl'),
    n:Annotated[int, typer.Option(help='Labels to begin with, and to add in each round')]=100,
    rounds:Annotated[int, typer.Option(help='How many')]=3,
    most:Annotated[int, typer.Option(help='Texts at most, for a trial')]=0,
):
    "Test errors with 100 labels, and after each 100 that were added."
    key = dict(what='suggest', set=set, strategy=strategy, seed=seed, start=n)
    if is_there(out, dict(key, round=rounds)): return
    docs,labels,n_train,classes,vocab,lm = read_prepared(data/set)
    began,test = time.time(),np.arange(n_train, len(docs))
    pool = np.arange(n_train)
    if most: test,pool = test[:most],pool[:most]
    mine = list(np.random.default_rng(seed).permutation(pool)[:n]) # the same for all strategies
    for i in range(rounds+1):
        ens  = train([docs[j] for j in mine], labels[mine], classes, vocab, lm, seed, device)
        rest = np.setdiff1d(pool, mine)
        outs,features = read_texts(ens, [docs[j] for j in [*test, *rest]])
        probs = answer_of(ens, outs).numpy()
        wrong = np.array(classes)[probs[:len(test)].argmax(1)]!=labels[test]
        counts = {c: int((labels[mine]==c).sum()) for c in classes}
        if not is_there(out, dict(key, round=i)):
            note(out, key, round=i, labels=len(mine), error=round(float(wrong.mean()), 4), test=len(test), classes=counts, device=device,
                 seconds=round(time.time()-began, 1))
        if i==rounds: break
        mine += list(rest[strategies[strategy](probs[len(test):], features[len(test):], n, 100*seed+i)])

# ---- what looks wrong

def found(voices, targs, is_flipped):
    "How many of the 50 least likely labels were flipped, and how many of those that are listed"
    doubt,_,wrong = doubts(voices, targs)
    return dict(precision_at_50=float(is_flipped[np.argsort(-doubt, kind='stable')[:50]].mean()), listed=int(wrong.sum()),
                precision=float(is_flipped[wrong].mean()) if wrong.any() else None, recall=float(wrong[is_flipped].mean()))

@app.command()
def check(
    set:Set, seed:Annotated[int, typer.Option()], data:Data,
    device:Device='cpu', out:Out=Path('results.jsonl'),
    share:Annotated[float, typer.Option(help='Share of the labels that are flipped')]=0.05,
    most:Annotated[int, typer.Option(help='Texts at most, for a trial')]=0,
):
    "How many of the labels that look wrong were flipped."
    key = dict(what='check', set=set, seed=seed, share=share)
    if is_there(out, dict(key, encoder='classifier', voices='words, encoder')): return
    docs,labels,n_train,classes,vocab,lm = read_prepared(data/set)
    docs,began = docs[:min(n_train, most or n_train)],time.time()
    rng,y  = np.random.default_rng(seed),np.searchsorted(classes, labels[:len(docs)])
    rows   = rng.permutation(len(y))[:round(share*len(y))]
    flips  = np.isin(np.arange(len(y)), rows)
    y[rows]= (y[rows]+rng.integers(1, len(classes), len(rows)))%len(classes)
    targs  = np.eye(len(classes))[y]
    def _probs(out): return torch.from_numpy(out).softmax(1).numpy()
    words  = _probs(held_out_words([[vocab[j] for j in o] for o in docs], targs, Cs=(1,3,10)))
    wgts   = {k.removeprefix('0.'): t.to(device) for k,t in load_lm(lm)[0].items() if k.startswith('0.')}
    before = _probs(held_out_features(pooled(Reader(wgts), [torch.from_numpy(o) for o in docs]).cpu(), targs))
    ens    = train(docs, np.array(classes)[y], classes, vocab, lm, seed, device)
    outs,features = read_texts(ens, docs)
    after,own = _probs(held_out_features(features, targs)),answer_of(ens, outs).double().numpy()
    for encoder,probs in (('language model',before), ('classifier',after)):
        for names,voices in {'words': [words], 'encoder': [probs], 'model itself': [own], 'words, encoder': [words,probs]}.items():
            if encoder=='language model' and names=='model itself': continue
            note(out, key, encoder=encoder, voices=names, texts=len(y), flipped=len(rows), **found(voices, targs, flips), device=device,
                 seconds=round(time.time()-began, 1))

if __name__=='__main__': app()
