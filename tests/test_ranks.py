"Several processes from outside: two that train one model end where one does with the batch twice as large."
import json,re,os,signal,subprocess,sys
from pathlib import Path
import pytest, torch
import ranks
from made_up import make_df,make_texts

limit = 400 # seconds: on a machine that does much else, two processes wait for each other at every step

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "The three stages on one process and on two"
    return ranks.compare(tmp_path_factory.mktemp('ranks'), timeout=limit)

def test_weights_are_the_same_on_all_ranks(runs):
    table,*_ = runs
    assert len(table)==9
    assert {name: row['ranks_apart'] for name,row in table.items()} == dict.fromkeys(table, 0.)

@pytest.mark.parametrize('stage', ['lm', 'pretraining', 'classifier'])
def test_as_one_process_with_the_double_batch(runs, stage):
    "Without dropout the weights and all losses and metrics are those of one process, up to rounding"
    row = runs[0][stage]
    assert row['weights_apart']<1e-5 and row['losses_apart']<1e-5

@pytest.mark.parametrize('stage', ['lm, dropout', 'classifier, dropout'])
def test_with_dropout(runs, stage):
    "With dropout, of which the texts of one rank have the same as those of the other, the weights differ and the losses are alike"
    row = runs[0][stage]
    one,two = row['valid_loss']
    assert row['weights_apart']>1e-4 and abs(one-two)<0.05

def test_steps_and_rates(runs):
    "There are as many steps as on one process, with the same rates: schedules know how many there are"
    _,one,several,_ = runs
    for found in several:
        assert found['n_ranks']==2
        assert found['classifier']['steps']==one['classifier']['steps']>0
        assert found['classifier']['rates']==one['classifier']['rates']
    assert several[0]['classifier']['frozen']>0 # at first

def test_predictions_and_metrics(runs):
    "`validate` and `get_preds` give every row once, in the order of the set, on every rank"
    _,one,several,_ = runs
    for found in several:
        a,b = [torch.tensor(o['classifier']['probs']) for o in (one,found)]
        assert found['classifier']['in_order']
        torch.testing.assert_close(a, b)
        assert found['classifier']['validate']==pytest.approx(one['classifier']['validate'], abs=1e-6)

def test_a_loss_that_is_no_number(runs):
    "What is no number on one rank is none on any, so that all end alike"
    _,one,several,_ = runs
    assert several[0]['losses that are no number']==several[1]['losses that are no number']>0==one['losses that are no number']

def test_only_the_first_prints_and_writes(runs, tmp_path):
    _,one,several,printed = runs
    for line in 'Language model, backward', 'Classifier, backward', 'Counting words', 'Perplexity': assert printed.count(line)==1
    assert several[0]['accuracy']>0 # of the model that rank 0 validates by itself, and the other has gone

dies = '''
import os,signal,sys
sys.path[:0] = [sys.argv[1],sys.argv[2]]
from fastai.text.all import Callback,rank_distrib
from made_up import make_texts
from ulmfit_ext.all import Resume,pretrain_lm
how = sys.argv[3]
Resume.interval = '2 batches'
class Dies(Callback):
    def after_batch(self):
        if not (self.training and rank_distrib()==1 and self.epoch==2): return
        if how=='killed': os.kill(os.getpid(), 9) # SIGKILL, a name that Windows lacks
        raise RuntimeError('no room on this rank')
pretrain_lm(make_texts(150), 'lm', dict(emb_sz=8, n_hid=12, n_layers=2), n_epoch=1, part=500, bs=4, bptt=10, workers=0, valid_pct=0.1,
            cbs=None if how=='lives' else Dies())
'''

@pytest.mark.parametrize('how,cause', [('raises', 'no room on this rank'), ('killed', 'Signal 9')])
def test_a_rank_that_dies_ends_the_run(tmp_path, how, cause):
    "The run ends with the cause; one process goes on from what was saved, and finishes"
    (tmp_path/'dies.py').write_text(dies)
    args = [str(ranks.root/'tests'), str(ranks.root)]
    res = ranks.run(tmp_path, 2, limit, tmp_path/'dies.py', [*args, how])
    assert res.returncode and cause in res.stderr
    assert not (tmp_path/'lm'/'fwd.safetensors').exists()
    if how=='raises': return
    res = ranks.run(tmp_path, 1, limit, tmp_path/'dies.py', [*args, 'lives'])
    assert res.returncode==0, res.stderr[-3000:]
    assert re.search(r'Going on from fit.resume: epoch [12], after batch \d+', res.stdout) and 'Perplexity' in res.stdout

def test_command(tmp_path):
    "`ulmfit pretrain` and `train` on two processes say everything once; a mistake is told once, and ends both"
    (tmp_path/'corpus.txt').write_text('\n\n'.join(make_texts(80)))
    (tmp_path/'ulmfit.py').write_text(f"import sys\nsys.path.insert(0, {str(ranks.root)!r})\nfrom ulmfit_ext.cli import main\nmain()\n")
    how = '--out lm --size tiny --bs 2 --bptt 10 --epochs 1 --workers 1 --valid-pct 0.1'.split()
    res = ranks.run(tmp_path, 2, limit, tmp_path/'ulmfit.py', ['pretrain', 'corpus.txt', *how])
    assert res.returncode==0, res.stderr[-3000:]
    for line in 'Forward language model', 'Perplexity', 'It writes:', 'Next:': assert res.stdout.count(line)==1
    make_df(60).to_csv(tmp_path/'reviews.csv', index=False)
    how = '--out m --size tiny --directions fwd --lm-epochs 1 --epochs 1 --recipe together'.split()
    res = ranks.run(tmp_path, 2, limit, tmp_path/'ulmfit.py', ['train', 'reviews.csv', *how])
    assert res.returncode==0, res.stderr[-3000:]
    for line in 'Language model, forward', 'Classifier of all labels, forward', 'Next:': assert res.stdout.count(line)==1
    res = ranks.run(tmp_path, 2, limit, tmp_path/'ulmfit.py', ['train', 'missing.csv'])
    assert res.returncode and res.stderr.count('missing.csv')==1
