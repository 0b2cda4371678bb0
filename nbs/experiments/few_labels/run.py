"""Test errors with few labels: the voices of `ULMFiT`, fastai's stock recipe and TF-IDF, on the same labels.

    ULMFIT_DATA=folder python nbs/experiments/few_labels/run.py trec6 --labels 100 --labels 500 --seeds 3
    ULMFIT_DATA=folder python nbs/experiments/few_labels/run.py imdb  --labels 200 --unlabelled 3000
    ULMFIT_DATA=folder python nbs/experiments/few_labels/run.py imdb  --labels 200 --unlabelled 75000 --minutes 3 --recipe together     # on a GPU

Each run is a line of `results.jsonl` beside this file, with its settings and the versions of what computed it. A run that is there already is not made
again, so the same command goes on where it was stopped. `few_labels.ipynb` draws what was found.

Stage two reads the training texts without their labels, once for each set and direction; all numbers of labels and all seeds share it. A seed draws
other labels and other random numbers. Nothing is chosen on the test texts: they are read once, at the end.
"""
import json, os, platform, time, warnings
from pathlib import Path
from typing import Annotated
import fastai, numpy as np, pandas as pd, torch, typer
from fastai.text.all import *
import ulmfit_ext
from ulmfit_ext.all import *
from ulmfit_ext.report import tfidf_baseline
from ulmfit_ext.callback.precision import has_bfloat16

here  = Path(__file__).resolve().parent
files = dict(trec6='trec6.jsonl.gz', imdb='imdb.jsonl.gz', germeval='germeval2018.jsonl.gz')
langs = dict(germeval='de')

def read_set(name):
    "Training texts and test texts (2,000 of IMDb's)"
    df = pd.read_json(data()/files[name], lines=True)
    train,test = [df[df.split==o][['text','label']].reset_index(drop=True) for o in ('train','test')]
    if len(test)>4000: test = test.sample(2000, random_state=0).reset_index(drop=True)
    if name=='imdb': train = train.sample(frac=1, random_state=0).reset_index(drop=True)
    return train,test

def data(): return Path(os.environ['ULMFIT_DATA'])

def texts_for_stage_two(name, train, n):
    "The training texts, or `n` texts: more than these are from IMDb's 50,000 reviews without a label"
    texts = train.text.tolist()
    if n>len(texts) and name=='imdb': texts += pd.read_json(data()/'imdb_unsup.jsonl.gz', lines=True).text.tolist()
    return texts[:n or None]

def draw(train, n, seed):
    "`n` labelled rows, or all: as many of each class as there are in all"
    if n>=len(train): return train
    share = train.groupby('label', group_keys=False)
    rows  = share.sample(frac=n/len(train), random_state=seed)
    rare  = share.sample(n=2, random_state=seed) # two of each class at least
    return pd.concat([rows, rare[~rare.label.isin(rows.label)]]).sample(frac=1, random_state=seed).reset_index(drop=True)

def stage_two(name, texts, pretrained, lang, work, bf16, minutes, sides=('fwd','bwd'), alone=False):
    "A folder with the language models of `sides`, fine-tuned on `texts`; `alone`: they have read nothing before, and are of the same size"
    folder = work/f"{name}-{len(texts)}-{pretrained}{'-alone'*alone}"
    for side in sides:
        if (folder/f'{side}.safetensors').exists(): continue
        begin = dict(pretrained=None, config=load_lm(pretrained)[2]) if alone else dict(pretrained=pretrained)
        ulmfit = ULMFiT.from_df(pd.DataFrame(dict(text=texts)), work/f'{folder.name}-{side}-lm', label_col=None, valid_pct=0.05,
                                lang=lang, directions=side, **begin)
        ulmfit.fit_lm(bf16=bf16, minutes=minutes)
        learn = ulmfit.lms[side]
        save_lm(learn, folder, half=True, ulmfit_perplexity=float(np.exp(learn.validate()[0])))
    return folder

def answers(ulmfit, test):
    "Share of the test texts that each voice gets wrong, and all together"
    return {k: round(1-float(v), 4) for k,v in ulmfit.validate(test).accuracy.items()}

def stock_error(ulmfit, lm, test, side):
    "fastai's recipe (its course's): batches of 64, four fits by hand at falling rates, from the same language model"
    learn = text_classifier_learner(getattr(ulmfit.dls, f'clas_{side}'), AWD_LSTM, drop_mult=0.5, metrics=accuracy, pretrained=False,
                                    config={**awd_lstm_clas_config, **load_lm(lm)[2]})
    theirs = ulmfit_classifier(getattr(ulmfit.dls, f'clas_{side}'), encoder=lm)
    learn.model[0].module.load_state_dict(theirs.model[0].module.state_dict())
    learn.freeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 2e-2)
        for n,lr in ((-2, 1e-2), (-3, 5e-3)):
            learn.freeze_to(n)
            learn.fit_one_cycle(1, slice(lr/2.6**4, lr))
        learn.unfreeze()
        learn.fit_one_cycle(2, slice(1e-3/2.6**4, 1e-3))
        dl = learn.dls.test_dl(test.text.tolist())
        preds = learn.get_preds(dl=dl)[0].argmax(1)
    return round(float((np.array(learn.dls.vocab[1])[preds.numpy()]!=test.label.to_numpy()).mean()), 4)

def words_error(labelled, test, rest=None):
    "The third voice alone: words, pairs and, where they are better, character n-grams; `rest`: texts without a label"
    bag = BagOfWords.fit(labelled.text, labelled.label, unlabelled=rest)
    return round(float((np.array(bag.predict(test.text))!=test.label.to_numpy()).mean()), 4)

def one_run(method, name, labelled, rest, test, lm, pretrained, lang, seed, work, bf16, recipe):
    path = work/f"run-{name}-{len(labelled)}-{seed}-{method.removesuffix(', all labels')}"
    kwargs = dict(lang=lang, seed=seed, directions='both')
    if method.startswith('semi-supervised') or method=='without stage one':
        ulmfit = ULMFiT.from_df(labelled, path, lm, **kwargs).fit_classifier(bf16=bf16, recipe=recipe)
        return answers(ulmfit.refit() if method.endswith('all labels') else ulmfit, test)
    if method in ('all voices, texts without a label, all labels','self-training, all labels'):
        ulmfit = ULMFiT.from_df(labelled, path, lm, unlabelled=rest, **kwargs).fit_classifier(bf16=bf16, recipe=recipe)
        return answers((ulmfit.self_train() if method.startswith('self-training') else ulmfit).refit(), test)
    if method=='paper':
        return answers(ULMFiT.from_df(labelled, path, lm, bs=64, **kwargs).fit_classifier(8, 0.01, bf16=bf16), test)
    if method=='supervised':
        return answers(ULMFiT.from_df(labelled, path, pretrained, **kwargs).fit_lm(bf16=bf16).fit_classifier(bf16=bf16, recipe=recipe), test)
    if method=='from nothing':
        ulmfit = ULMFiT.from_df(labelled, path, None, config=load_lm(pretrained)[2], **kwargs)
        return answers(ulmfit.fit_classifier(bf16=bf16, recipe=recipe), test)
    if method=='stock':
        ulmfit = ULMFiT.from_df(labelled, path, lm, bs=64, **kwargs)
        return {way: stock_error(ulmfit, lm, test, side) for way,side in (('forward','fwd'),)}
    if method=='TF-IDF': return {'TF-IDF': round(tfidf_baseline(labelled.text, labelled.label, test.text, test.label)[0], 4)}
    if method=='counted words': return {method: words_error(labelled, test)}
    if method=='counted words and texts without a label': return {method: words_error(labelled, test, rest)}

def main(
    name:Annotated[str, typer.Argument(help='trec6, imdb or germeval')],
    labels:Annotated[list[int], typer.Option(help='Numbers of labels')]=[100],
    seeds:Annotated[int, typer.Option(help='How many')]=3,
    only_seed:Annotated[list[int], typer.Option(help='These and no others, so that several can be run side by side')]=[],
    methods:Annotated[list[str], typer.Option(help='TF-IDF, counted words, "counted words and texts without a label", semi-supervised, "semi-supervised, all labels", "all voices, texts without a label, all labels", "self-training, all labels", supervised, paper, stock, without stage one, from nothing')]=['TF-IDF','semi-supervised','semi-supervised, all labels'],
    pretrained:Annotated[str, typer.Option(help='Weights to start from; if not given, base, or de for German')]='',
    unlabelled:Annotated[int, typer.Option(help='IMDb: so many reviews for stage two; 0: those of the training set')]=0,
    recipe:Annotated[str, typer.Option(help='auto: chosen in trials; together or gradual saves their time')]='auto',
    only_lm:Annotated[str, typer.Option(help='fwd or bwd: train this language model of stage two and stop, so that both can be trained side by side')]='',
    minutes:Annotated[float, typer.Option(help='Of stage two, for each direction; 0: as long as it takes')]=0.,
    work:Annotated[Path, typer.Option(help='Folder for what is trained')]=Path('few-labels'),
    out:Annotated[Path, typer.Option(help='File of results')]=here/'results.jsonl',
):
    warnings.simplefilter('ignore')
    lang,bf16 = langs.get(name, 'en'),has_bfloat16() or torch.cuda.is_available()
    pretrained = pretrained or ('de' if lang=='de' else 'base')
    train,test = read_set(name)
    texts = texts_for_stage_two(name, train, unlabelled)
    if only_lm:
        stage_two(name, texts, pretrained, lang, work, bf16, minutes or None, [only_lm], 'without stage one' in methods)
        return
    made  = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    for seed in only_seed or range(seeds):
        for n in labels:
            labelled = draw(train, n, seed)
            for method in methods:
                key = dict(set=name, labels=n, seed=seed, method=method, pretrained=pretrained, texts=len(texts))
                if any(all(o.get(k)==v for k,v in key.items()) for o in made): continue
                lm = None
                if not method.startswith('counted words') and method not in ('TF-IDF','supervised','from nothing'):
                    lm = stage_two(name, texts, pretrained, lang, work, bf16, minutes or None, alone=method=='without stage one')
                began  = time.time()
                rest   = train.text[~train.text.isin(labelled.text)].tolist()
                errors = one_run(method, name, labelled, rest, test, lm, pretrained, lang, seed, work, bf16, recipe)
                row = dict(key, recipe=recipe, errors=errors, test=len(test), minutes=round((time.time()-began)/60, 2), bf16=bf16, threads=torch.get_num_threads(), gpu=torch.cuda.is_available(),
                           versions=dict(ulmfit_ext=ulmfit_ext.__version__, torch=torch.__version__, fastai=fastai.__version__), machine=platform.machine())
                with open(out, 'a') as f: f.write(json.dumps(row)+'\n')
                print(json.dumps(row), flush=True)

if __name__=='__main__': typer.run(main)
