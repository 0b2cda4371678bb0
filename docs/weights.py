"Put two language models that `ulmfit pretrain` made into the package, with a card, hashes and a text to check them by."
import argparse,hashlib,json,shutil
from pathlib import Path
from ulmfit_ext.lm import lm_perplexity
from ulmfit_ext.weights import lm_folder

sample = '''The river rises in the hills north of the town and flows south for about ninety kilometres before it reaches the sea. In the nineteenth century it was the main road for timber, and a small port grew up at its mouth. The railway came in 1871, and most of the trade moved inland. Today the old warehouses hold a museum, two schools and the public library.

She was born in a village near the border, the third of five children. After studying law she worked as a teacher, and in 1934 she published her first novel, which was received well by critics but sold poorly. Her later books were translated into more than twenty languages, and several of them were made into films.

The team won the match by three goals to one and finished second in the league. It was the best result in the history of the club, but the manager left at the end of the season, and many of the players were sold.
'''

card = '''# Small English language models

A forward and a backward AWD-LSTM language model for `ulmfit_ext`: `pretrained='small'`. Embedding {emb_sz}, hidden {n_hid}, {n_layers} layers, a vocabulary of 20,000 words and the
tokenizer's marks; weights in 16 bits, under fastai's names.

## Data

{data}. The text is licensed under CC BY-SA 3.0; it was written by the authors of the English Wikipedia. No text is contained in these files, only what was learned from it.

## How it was made

{made}

Code: commit {commit} of this repository. Hardware: {hardware}. Every other setting is in `config.json`, which the command wrote.

## What it knows

| | perplexity a token | perplexity a word | words unknown | tokens seen | epochs | minutes | on `sample.txt` |
|---|---|---|---|---|---|---|---|
{rows}

Perplexity is on articles held out ({valid_pct:.0%} of them, the same for both directions). A token may be a mark such as `xxmaj`, which is easy to foretell; a word may not. `sample.txt` was written to check the files by.

## What it does not know

It has read encyclopedia articles of one year, and nothing of the manner in which people write elsewhere: go on with your own text (stage two) before you classify. It has learned
what Wikipedia takes for granted, prejudice included. It is no source of facts.
'''

def with_earlier(d, side):
    "What `config.json` says of a run, added to what that of the run it began with says"
    if not d.get('pretrained'): return d
    first = json.loads((Path(d['pretrained'])/'config.json').read_text())['directions'][side]
    total = {k: round(first[k]+d[k], 2) for k in ('tokens','minutes','epochs')}
    n = len(first['history'])
    began = {k: first[k] for k in ('lr_max','minutes','tokens','perplexity')}
    speed = round(total['tokens']/total['minutes']/60)
    return {**d, **total, 'history': first['history']+d['history'], 'best_part': n+d['best_part'],
            'tokens_per_second': speed, 'began_with': began}

def table_row(name, d):
    "The row of the card's table for one direction, `d` being what `config.json` says of it"
    cells = [name, f"{d['perplexity']:.1f}", f"{d['perplexity_per_word']:.1f}", f"{d['unknown']:.1%}",
             f"{d['tokens']/1e6:.1f} million", f"{d['epochs']:.2f}", f"{d['minutes']:.0f}", f"{d['sample_perplexity']:.1f}"]
    return f"| {' | '.join(cells)} |"

def main(fwd, bwd, data, commit, hardware, commands):
    out,runs = lm_folder('small'),dict(forward=Path(fwd), backward=Path(bwd))
    out.mkdir(parents=True, exist_ok=True)
    cfgs = {k: json.loads((p/'config.json').read_text()) for k,p in runs.items()}
    vocabs = {(p/'vocab.json').read_text() for p in runs.values()}
    assert len(vocabs)==1, 'the directions have different vocabularies'
    for (k,p),o in zip(runs.items(), ('fwd','bwd')): shutil.copyfile(p/f'{o}.safetensors', out/f'{o}.safetensors')
    (out/'vocab.json').write_text(vocabs.pop())
    (out/'sample.txt').write_text(sample, encoding='utf-8')
    cfg = {**cfgs['forward'], 'directions': {k: with_earlier(cfgs[k]['directions'][k], k) for k in runs}}
    (out/'config.json').write_text(json.dumps(cfg, indent=1))
    for k,d in cfg['directions'].items():
        d['sample_perplexity'] = round(lm_perplexity('small', sample.split('\n\n'), k=='backward'), 2)
    (out/'config.json').write_text(json.dumps(cfg, indent=1))
    rows = [table_row(k, d) for k,d in cfg['directions'].items()]
    d = cfg['directions']['forward']
    seed = f"Seed {d['seed']}: of the split, of the order of the articles, and of the dropout."
    made = '```sh\n' + '\n'.join(commands) + f'\n```\n\n{seed}'
    text = card.format(**cfg['sizes'], data=data, made=made, commit=commit, hardware=hardware,
                       rows='\n'.join(rows), valid_pct=d['valid_pct'])
    (out/'README.md').write_text(text, encoding='utf-8')
    names = sorted(o.name for o in out.iterdir() if o.name!='SHA256SUMS')
    (out/'SHA256SUMS').write_text(''.join(f'{hashlib.sha256((out/o).read_bytes()).hexdigest()}  {o}\n' for o in names))
    print('\n'.join(rows))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('fwd'); p.add_argument('bwd')
    p.add_argument('--data', required=True, help='what was read, in a sentence without its full stop')
    p.add_argument('--commit', required=True); p.add_argument('--hardware', required=True)
    p.add_argument('--commands', nargs='+', required=True)
    main(**vars(p.parse_args()))
