"""Put language models that `pretrain_lm` made where they are shipped, and write what belongs beside them.

`config.json` holds every fact: a card for each direction, and `about` what both share. `README.md`, which a person reads, is made from it; `SHA256SUMS` has the hashes
of all files. With FOLDER alone these are written anew, after a change of `config.json`."""
import argparse,hashlib,json,shutil
from pathlib import Path

samples = dict(en='''The river rises in the hills north of the town and flows south for about ninety kilometres before it reaches the sea. In the nineteenth century it was the main road for timber, and a small port grew up at its mouth. The railway came in 1871, and most of the trade moved inland. Today the old warehouses hold a museum, two schools and the public library.

She was born in a village near the border, the third of five children. After studying law she worked as a teacher, and in 1934 she published her first novel, which was received well by critics but sold poorly. Her later books were translated into more than twenty languages, and several of them were made into films.

The team won the match by three goals to one and finished second in the league. It was the best result in the history of the club, but the manager left at the end of the season, and many of the players were sold.
''', de='''Der Fluss entspringt in den Hügeln nördlich der Stadt und fließt etwa neunzig Kilometer nach Süden, bevor er in das Meer mündet. Im 19. Jahrhundert war er der wichtigste Weg für das Holz, und an seiner Mündung entstand ein kleiner Hafen. Im Jahr 1871 wurde die Eisenbahn eröffnet, und ein großer Teil des Handels zog in das Landesinnere. Heute befinden sich in den alten Gebäuden ein Museum, zwei Schulen und die Bibliothek der Stadt.

Sie wurde als drittes von fünf Kindern in einem Dorf in der Nähe der Grenze geboren. Nach dem Studium der Rechtswissenschaft arbeitete sie als Lehrerin, und 1934 veröffentlichte sie ihren ersten Roman, der von der Kritik gelobt wurde, sich aber schlecht verkaufte. Ihre späteren Bücher wurden in mehr als zwanzig Sprachen übersetzt, und einige von ihnen wurden verfilmt.

Die Mannschaft gewann das Spiel mit drei zu einem Tor und belegte den zweiten Platz in der Liga. Es war das beste Ergebnis in der Geschichte des Vereins, aber der Trainer verließ ihn am Ende der Saison, und viele Spieler wurden verkauft.
''')

template = '''# {title}

A forward and a backward AWD-LSTM language model for `ulmfit_ext`: `pretrained='{name}'`. Embedding {emb_sz}, hidden {n_hid}, {n_layers} layers, a vocabulary of {words} words and the
tokenizer's marks; weights in 16 bits, under fastai's names.

## Data

{data}. The text is licensed under {licence}; it was written by {authors}. No text is contained in these files, only what was learned from it.

## How it was made

{made}

Seed {seed}: of the split, of the order of the articles, and of the dropout.

Code: {code}. Hardware: {hardware}. Every other setting is in `config.json`.
{patched}
## What it knows

| | perplexity a token | perplexity a word | words unknown | tokens seen | epochs | minutes | on `sample.txt` |
|---|---|---|---|---|---|---|---|
{rows}

Perplexity is on articles held out ({valid_pct:.0%} of them, the same for both directions). {unread}A token may be a mark such as `xxmaj`, which is easy to foretell; a word may not. `sample.txt` was written to check the files by.

## What it does not know

It has read encyclopedia articles, and nothing of the manner in which people write elsewhere: go on with your own text (stage two) before you classify. It has learned
what Wikipedia takes for granted, prejudice included. It is no source of facts.
'''

def row_of(side, card):
    "A direction's row in the table of the README"
    facts = (f"{card['perplexity']:.2f}", f"{card['perplexity_per_word']:.2f}", f"{card['unknown']:.1%}", f"{card['tokens']/1e6:.1f} million",
             f"{card['epochs']:.2f}", f"{card['minutes']:.3g}", f"{card['sample_perplexity']:.2f}")
    return f"| {' | '.join((side, *facts))} |"

def readme(config):
    "The text of `README.md`, from what `config.json` says"
    about,cards = config['about'],config['directions']
    settings = cards['forward']['settings']
    made = '```{}\n{}\n```'.format(about['made_in'], '\n'.join(about['made']))
    patched = f"\nPatched from outside while training: {'; '.join(about['patched'])}. None of it changes what is computed, but for rounding.\n" if about['patched'] else ''
    return template.format(**{**about, **config['sizes']}|dict(made=made, patched=patched, seed=settings['seed'], valid_pct=settings['valid_pct'],
                           words=f"{about['words']:,}", unread=about['unread'] and about['unread']+'. ', rows='\n'.join(row_of(*o) for o in cards.items())))

def with_earlier(card, side):
    "`card`, with what the run that it began with had read added to it"
    if not card.get('pretrained'): return card
    first = json.loads((Path(card['pretrained'])/'config.json').read_text(encoding='utf-8'))['directions'][side]
    total = {k: round(first[k]+card[k], 2) for k in ('tokens','minutes','epochs')}
    began_with = {k: {**first['settings'], **first}[k] for k in ('lr_max','minutes','tokens','perplexity')}
    return {**card, **total, 'began_with': began_with, 'history': first['history']+card['history'],
            'best_part': len(first['history'])+card['best_part'],
            'tokens_per_second': round(total['tokens']/total['minutes']/60)}

def copy_weights(runs, out):
    "Put the files of both directions into `out`, and return what `config.json` shall say"
    vocabs = {(path/'vocab.json').read_text(encoding='utf-8') for path in runs.values()}
    assert len(vocabs)==1, 'the directions have different vocabularies'
    (out/'vocab.json').write_text(vocabs.pop(), encoding='utf-8')
    for (side,path),name in zip(runs.items(), ('fwd','bwd')): shutil.copyfile(path/f'{name}.safetensors', out/f'{name}.safetensors')
    configs = {side: json.loads((path/'config.json').read_text(encoding='utf-8')) for side,path in runs.items()}
    return {**configs['forward'], 'directions': {side: with_earlier(c['directions'][side], side) for side,c in configs.items()}}

def write(path, config): path.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding='utf-8')

def main(folder, fwd, bwd, about):
    from ulmfit_ext.lm import lm_perplexity
    file = folder/'config.json'
    folder.mkdir(parents=True, exist_ok=True)
    config = copy_weights(dict(forward=fwd, backward=bwd), folder) if fwd else json.loads(file.read_text(encoding='utf-8'))
    if about: config['about'] = json.loads(about.read_text(encoding='utf-8'))
    write(file, config) # `lm_perplexity` reads it
    sample = samples[config['processor']['lang']]
    (folder/'sample.txt').write_text(sample, encoding='utf-8')
    for side,card in config['directions'].items():
        card['sample_perplexity'] = round(lm_perplexity(folder, sample.split('\n\n'), side=='backward'), 2)
        print(row_of(side, card))
    write(file, config)
    (folder/'README.md').write_text(readme(config), encoding='utf-8')
    names = sorted(o.name for o in folder.iterdir() if o.is_file() and o.suffix!='.py' and o.name!='SHA256SUMS')
    (folder/'SHA256SUMS').write_text(''.join(f'{hashlib.sha256((folder/o).read_bytes()).hexdigest()}  {o}\n' for o in names))

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('folder', type=Path, help='where they are shipped, such as ulmfit_ext/weights/base')
    p.add_argument('--fwd', type=Path, help='folder that holds the forward model')
    p.add_argument('--bwd', type=Path, help='folder that holds the backward one; may be the same')
    p.add_argument('--about', type=Path, help='JSON of what both directions share: `about` in config.json of those that are there is an example')
    main(**vars(p.parse_args()))
