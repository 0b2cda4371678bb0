"Put two language models that `ulmfit pretrain` made into the package, with a card, hashes and a text to check them by."
import argparse,hashlib,json,shutil
from pathlib import Path
from ulmfit_ext.weights import lm_folder
from ulmfit_ext.lm import lm_perplexity

sample = '''The river rises in the hills north of the town and flows south for about ninety kilometres before it reaches the sea. In the nineteenth century it was the main road for timber, and a small port grew up at its mouth. The railway came in 1871, and most of the trade moved inland. Today the old warehouses hold a museum, two schools and the public library.

She was born in a village near the border, the third of five children. After studying law she worked as a teacher, and in 1934 she published her first novel, which was received well by critics but sold poorly. Her later books were translated into more than twenty languages, and several of them were made into films.

The team won the match by three goals to one and finished second in the league. It was the best result in the history of the club, but the manager left at the end of the season, and many of the players were sold.
'''

readme = '''# Small English language models

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

def card_of(folder, side):
    "What `config.json` says of one direction, its settings among the facts; the time it took is one of these"
    card = json.loads((Path(folder)/'config.json').read_text(encoding='utf-8'))['directions'][side]
    return {**card.pop('settings', {}), **card}

def with_earlier(card, side):
    "`card`, with what the run that it began with had read added to it"
    if not card.get('pretrained'): return card
    first = card_of(card['pretrained'], side)
    total = {k: round(first[k]+card[k], 2) for k in ('tokens','minutes','epochs')}
    began_with = {k: first[k] for k in ('lr_max','minutes','tokens','perplexity')}
    return {**card, **total, 'began_with': began_with, 'history': first['history']+card['history'],
            'best_part': len(first['history'])+card['best_part'],
            'tokens_per_second': round(total['tokens']/total['minutes']/60)}

def copy_weights(runs, out):
    "Put the files of both directions into `out`, and return what `config.json` shall say"
    vocabs = {(path/'vocab.json').read_text(encoding='utf-8') for path in runs.values()}
    assert len(vocabs)==1, 'the directions have different vocabularies'
    (out/'vocab.json').write_text(vocabs.pop(), encoding='utf-8')
    for (side,path),name in zip(runs.items(), ('fwd','bwd')): shutil.copyfile(path/f'{name}.safetensors', out/f'{name}.safetensors')
    config = json.loads((runs['forward']/'config.json').read_text(encoding='utf-8'))
    config['directions'] = {side: with_earlier(card_of(path, side), side) for side,path in runs.items()}
    return config

def row_of(side, card):
    "A direction's row in the table of the README"
    facts = (f"{card['perplexity']:.1f}", f"{card['perplexity_per_word']:.1f}", f"{card['unknown']:.1%}", f"{card['tokens']/1e6:.1f} million",
             f"{card['epochs']:.2f}", f"{card['minutes']:.0f}", f"{card['sample_perplexity']:.1f}")
    return f"| {' | '.join((side, *facts))} |"

def main(fwd, bwd, data, commit, hardware, commands):
    out,runs = lm_folder('small'),dict(forward=Path(fwd), backward=Path(bwd))
    out.mkdir(parents=True, exist_ok=True)
    config = copy_weights(runs, out)
    def write_config(): (out/'config.json').write_text(json.dumps(config, indent=1), encoding='utf-8')
    (out/'sample.txt').write_text(sample, encoding='utf-8')
    write_config() # `lm_perplexity` reads it
    for side,card in config['directions'].items():
        card['sample_perplexity'] = round(lm_perplexity('small', sample.split('\n\n'), side=='backward'), 2)
    write_config()
    rows = '\n'.join(row_of(*o) for o in config['directions'].items())
    first = config['directions']['forward']
    made = '```sh\n' + '\n'.join(commands) + f"\n```\n\nSeed {first['seed']}: of the split, of the order of the articles, and of the dropout."
    text = readme.format(**config['sizes'], data=data, made=made, commit=commit, hardware=hardware, rows=rows, valid_pct=first['valid_pct'])
    (out/'README.md').write_text(text, encoding='utf-8')
    names = sorted(o.name for o in out.iterdir() if o.name!='SHA256SUMS')
    (out/'SHA256SUMS').write_text(''.join(f'{hashlib.sha256((out/o).read_bytes()).hexdigest()}  {o}\n' for o in names))
    print(rows)

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('fwd'); p.add_argument('bwd')
    p.add_argument('--data', required=True, help='what was read, in a sentence without its full stop')
    p.add_argument('--commit', required=True); p.add_argument('--hardware', required=True)
    p.add_argument('--commands', nargs='+', required=True)
    main(**vars(p.parse_args()))
