"Language models from outside: weights that move between plain fastai and here, and those that fastai downloads."
import http.server,json,math,pickle,tarfile,threading,time,types
from contextlib import nullcontext
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import *
from fastai.text.models.core import _model_meta
from safetensors.torch import load_file
from ulmfit_ext.callback.groups import is_fitting
from ulmfit_ext.callback.schedule import SkipTo,TimeBudget
from ulmfit_ext.core import *
from ulmfit_ext.text.tables import *
from ulmfit_ext.text.tokens import *
from ulmfit_ext.text.corpus import *
from ulmfit_ext.text.loaders import *
from ulmfit_ext.data import *
from ulmfit_ext.callback.precision import *
from ulmfit_ext.weights import *
from ulmfit_ext.checkpoint import *
from ulmfit_ext.callback.resume import *
from ulmfit_ext.callback.steady import *
from ulmfit_ext.lm import *
from ulmfit_ext.classifier import *

size = dict(emb_sz=8, n_hid=12, n_layers=2)

def table(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(text=[' '.join(rng.choice(['the','cat','dog','sat','ran','on','a','mat','big','red'], int(rng.integers(3,20)))) for _ in range(n)],
                             label=[['x','y'][i%2] for i in range(n)]))

@pytest.fixture
def dls(tmp_path): return ulmfit_dls(table(), path=tmp_path, seed=0, bs=8, bptt=10, min_freq=1)

@pytest.fixture
def quiet(monkeypatch): monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

def fastai_files(folder, name, dls, vocab=None):
    "A language model as fastai publishes it: an archive with a .pth and a .pkl"
    vocab = vocab or list(dls.vocab)
    model = get_language_model(AWD_LSTM, len(vocab), {**awd_lstm_lm_config, **size})
    (folder/name).mkdir(parents=True)
    torch.save(model.state_dict(), folder/name/'lstm.pth')
    (folder/name/'vocab.pkl').write_bytes(pickle.dumps(vocab))
    with tarfile.open(folder/f'{name}.tgz', 'w:gz') as t: t.add(folder/name, arcname=name)
    return model

@pytest.fixture
def server(tmp_path):
    "A file server on loopback"
    folder = tmp_path/'served'
    folder.mkdir()
    handler = type('H', (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *a: None))
    srv = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=folder))
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    yield folder,f'http://127.0.0.1:{srv.server_port}'
    srv.shutdown()

@pytest.fixture
def home(tmp_path, monkeypatch):
    "fastai's folder for downloads, empty"
    from fastai.data.external import fastai_cfg
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    fastai_cfg.cache_clear()
    yield tmp_path/'home'
    fastai_cfg.cache_clear()

@pytest.mark.parametrize('backwards', [False, True])
def test_wt103_through_fastai_urls(dls, server, home, monkeypatch, backwards):
    folder,url = server
    old = list(dls.vocab)[:-4] + ['elsewhere', 'unknown']                 # another vocabulary than the target's
    name = 'wt103-bwd' if backwards else 'wt103-fwd'
    fastai_files(folder, name, dls, old)
    meta = {**_model_meta[AWD_LSTM], 'url_bwd' if backwards else 'url': f'{url}/{name}.tgz'}
    monkeypatch.setitem(_model_meta, AWD_LSTM, meta)
    d = dls.lm(backwards)
    theirs = language_model_learner(d, AWD_LSTM, config={**awd_lstm_lm_config, **size}, backwards=backwards, pretrained=True)
    ours   = lm_learner(d, pretrained='wt103')
    for (k,a),b in zip(theirs.model.state_dict().items(), ours.model.state_dict().values()):
        if k in ('0.encoder.weight', '0.encoder_dp.emb.weight', '1.decoder.weight', '1.decoder.bias'): torch.testing.assert_close(a, b)  # means of new words
        else: assert torch.equal(a, b), k
    clas = ulmfit_classifier(dls.clas(backwards), encoder='wt103')
    assert torch.equal(clas.model.state_dict()['0.module.rnns.0.weight_hh_l0_raw'], ours.model.state_dict()['0.rnns.0.weight_hh_l0_raw'])

def test_wt103_out_of_reach(dls, home, monkeypatch):
    monkeypatch.setitem(_model_meta, AWD_LSTM, {**_model_meta[AWD_LSTM], 'url': 'http://127.0.0.1:9/none.tgz'})
    with pytest.raises(UlmfitError, match='could not be downloaded'): lm_learner(dls.lm_fwd, pretrained='wt103')

def test_vocabulary_that_would_run_code(tmp_path, dls):
    fastai_files(tmp_path, 'm', dls)
    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path/'ran',)
    (tmp_path/'m'/'vocab.pkl').write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UlmfitError, match='cannot be read safely'): load_fastai_lm(tmp_path/'m'/'lstm.pth', tmp_path/'m'/'vocab.pkl')
    assert not (tmp_path/'ran').exists()

def test_state_dict_is_fastais(dls):
    ours = ulmfit_classifier(dls.clas_fwd, size)
    theirs = text_classifier_learner(dls.clas_fwd, AWD_LSTM, config=size, pretrained=False)
    a,b = ours.model.state_dict(),theirs.model.state_dict()
    assert {k:v.shape for k,v in a.items()}=={k:v.shape for k,v in b.items()}
    theirs.model.load_state_dict(a)
    ours.model.load_state_dict(b)

def test_encoder_moves_to_plain_fastai(dls, tmp_path, quiet):
    lm = lm_learner(dls.lm_fwd, size)
    lm.save_encoder('enc')
    theirs = text_classifier_learner(dls.clas_fwd, AWD_LSTM, config=size, pretrained=False, path=lm.path)
    theirs.load_encoder('enc')
    assert torch.equal(theirs.model[0].module.encoder.weight, lm.model[0].encoder.weight)

@pytest.mark.parametrize('kind', ['lm','clas'])
def test_no_dropout(dls, quiet, kind):
    learn = lm_learner(dls.lm_fwd, size, drop_mult=0.) if kind=='lm' else ulmfit_classifier(dls.clas_fwd, size, drop_mult=0.)
    keys = list(learn.model.state_dict())
    learn.fit(2, 1e-3)
    assert list(learn.model.state_dict())==keys
    learn.validate()

def test_both_directions_share_a_folder(tmp_path, quiet):
    texts = table(80).text.tolist()
    for bw in (False, True): pretrain_lm(texts, tmp_path/'lm', size, backwards=bw, n_epoch=1, bs=8, bptt=10, valid_pct=0.1)
    assert {'fwd.safetensors','bwd.safetensors','vocab.json','config.json'} <= {o.name for o in (tmp_path/'lm').iterdir()}
    with pytest.raises(UlmfitError, match='another vocabulary or size'): pretrain_lm(texts[:50], tmp_path/'lm', {**size, 'n_hid':10}, bs=8, bptt=10, valid_pct=0.1)

def test_saved_weights_are_the_same(dls, tmp_path):
    lm = lm_learner(dls.lm_fwd, size)
    save_lm(lm, tmp_path/'lm')
    again = lm_learner(dls.lm_fwd, pretrained=tmp_path/'lm')
    for a,b in zip(lm.model.state_dict().values(), again.model.state_dict().values()): assert torch.equal(a,b)
    (tmp_path/'lm'/'config.json').write_text('{')
    with pytest.raises(UlmfitError, match='cannot be read'): lm_learner(dls.lm_fwd, pretrained=tmp_path/'lm')

def test_corpora(tmp_path):
    (tmp_path/'d').mkdir()
    (tmp_path/'d'/'a.txt').write_text('one'); (tmp_path/'d'/'b.txt').write_text('two')
    (tmp_path/'all.txt').write_text('one\nline\n\ntwo\n\n\n')
    (tmp_path/'t.jsonl').write_text('{"text": "one"}\n{"text": "two"}\n')
    def n_docs(o, **kwargs):
        dls = corpus_dls(o, tmp_path/'lm', bs=2, bptt=2, **kwargs)
        return len(dls.train_ds)+len(dls.valid_ds)
    assert n_docs(tmp_path/'d')==n_docs(tmp_path/'all.txt')==n_docs(tmp_path/'t.jsonl')==n_docs(['one','two'])==n_docs(pd.DataFrame(dict(text=['one','two'])))==2
    for bad,match in [('nowhere', 'no corpus'), ('t.jsonl', 'no column')]:
        with pytest.raises(UlmfitError, match=match): n_docs(tmp_path/bad, text_col='words')
    (tmp_path/'empty.txt').write_text(' \n')
    with pytest.raises(UlmfitError, match='no text'): n_docs(tmp_path/'empty.txt')
    with pytest.raises(UlmfitError, match='one document only'): n_docs(tmp_path/'t.jsonl', max_docs=1)

def test_both_directions_of_a_corpus_come_from_one_pass(tmp_path):
    "The same tokens, vocabulary and held-out documents; the text is tokenized once and its ids are a file"
    texts,kw = table(80).text.tolist(),dict(bs=4, bptt=10, valid_pct=.1, min_freq=1)
    f = corpus_dls(texts, tmp_path, **kw)
    assert not tokenize_corpus(texts+['more'], path=tmp_path/'other').cache_hit and tokenize_corpus(texts, path=tmp_path).cache_hit
    files = {o: o.stat().st_mtime_ns for o in tmp_path.rglob('*.np?')}
    b = corpus_dls(texts, tmp_path, **kw, backwards=True)
    assert {o: o.stat().st_mtime_ns for o in tmp_path.rglob('*.np?')}==files
    assert isinstance(f.train.ids, np.memmap) and f.train.ids.filename==b.train.ids.filename and list(f.vocab)==list(b.vocab)
    for split in ('train_ds','valid_ds'):
        x,y = getattr(f, split),getattr(b, split)
        assert len(x)==len(y)>1 and all(x[i][0].tolist()==y[i][0].tolist()[::-1] for i in range(len(x)))

def test_held_out_documents_stay_where_a_corpus_grows(tmp_path):
    texts = table(80).text.tolist()
    a,b = (set(np.asarray(corpus_dls(o, tmp_path, valid_pct=.2, min_freq=1).valid.docs).tolist()) for o in (texts, texts+['more']*40))
    assert a==b-set(range(80, 120)) and b-a

def test_budget(dls, quiet, monkeypatch):
    "Half of the time, half of the way: the rate follows a clock, and the last epoch is cut short and validated"
    now = [0.]
    monkeypatch.setattr(TimeBudget, 'now', staticmethod(lambda: now[0]))
    class Tick(Callback):
        order,run_valid = 1,False
        def before_batch(self): now[0] += 6.
    learn = lm_learner(dls.lm_fwd, size)
    n = len(learn.dls.train)
    learn.fit(1000, 0.1, cbs=[TimeBudget(2.05), Tick()])
    lrs = learn.recorder.hps['lr']
    assert len(lrs)==21 and len(learn.recorder.values)==math.ceil(21/n)
    assert np.argmax(lrs)==1 and lrs[-1]==pytest.approx(0.1/32, rel=0.2) and len(learn.dls.train)==n

class Kill(Callback):
    "Stop a training as Ctrl-C does, at batch `i` of epoch `at`"
    def __init__(self, at, i=2): store_attr()
    def before_batch(self):
        if self.training and self.epoch==self.at and self.iter==self.i: raise KeyboardInterrupt

@contextmanager
def no_training():
    "A context in which a training that begins is stopped, and that is expected"
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        def fit(*args, **kwargs): raise KeyboardInterrupt
        m.setattr(Learner, 'fit', fit)
        yield

kw = dict(config=size, bs=8, bptt=10, valid_pct=0.1, lr_max=0.02, n_epoch=2, part=500, drop_mult=0.5)

@pytest.mark.parametrize('more', [dict(), dict(schedule='stlr', backwards=True), dict(bf16=True)], ids=['one_cycle','stlr','bf16'])
def test_pretraining_goes_on_where_it_was_stopped(tmp_path, quiet, capsys, monkeypatch, more):
    "Stopped twice, in the middle of a part, it ends in the weights, the losses and the card of one that was not"
    monkeypatch.setattr(Resume, 'interval', '1 batch')
    texts = table(200).text.tolist()
    whole = pretrain_lm(texts, tmp_path/'whole', **kw, **more)
    n = len(whole.recorder.values)
    assert n>=6, 'there are parts to be stopped in'
    for at in (1, 4):
        with pytest.raises(KeyboardInterrupt): pretrain_lm(texts, tmp_path/'cut', **kw, **more, cbs=Kill(at))
    capsys.readouterr()
    with pytest.warns(UserWarning, match='the callback Kill is missing'): cut = pretrain_lm(texts, tmp_path/'cut', **kw, **more)
    assert 'epoch 4, after batch 2 of' in capsys.readouterr().out
    test_eq([o[:4] for o in cut.recorder.values], [o[:4] for o in whole.recorder.values])
    test_eq(len(cut.recorder.losses), len(whole.recorder.losses))
    test_close(cut.recorder.lrs, whole.recorder.lrs, eps=1e-12)
    for (k,a),b in zip(whole.model.state_dict().items(), cut.model.state_dict().values()): assert torch.equal(a, b), k
    a,b = [json.loads((tmp_path/o/'config.json').read_text())['directions'][text_setup(whole.dls).direction] for o in ('whole','cut')]
    for k in ('perplexity','perplexity_per_word','unknown','tokens','history','best_part','epochs','settings'): test_eq(a[k], b[k])
    assert not list(tmp_path.rglob('*.resume')) and not list(tmp_path.rglob('.unfinished')), 'what was finished leaves no state'

def test_pretraining_keeps_the_best_weights(tmp_path, quiet):
    "A rate that spoils everything at the end does not spoil what is saved"
    class Spoil(Callback):
        order = 1000
        def after_batch(self):
            if self.training and self.epoch==3: self.learn.model[0].encoder.weight.data.normal_(std=5)
    lm = pretrain_lm(table(200).text.tolist(), tmp_path/'lm', **{**kw, 'part':400}, cbs=Spoil())
    losses = [o[1] for o in lm.recorder.values]
    card = json.loads((tmp_path/'lm'/'config.json').read_text())['directions']['forward']
    best = int(np.argmin(losses))
    assert best!=len(losses)-1 or losses[3]>losses[2], 'the test did spoil something'
    test_eq(card['best_part'], best+1)
    test_close(lm.validate()[0], min(losses), eps=1e-4)
    test_close(math.log(card['perplexity']), min(losses), eps=1e-2)

def test_pretraining_knows_its_settings_before_it_reads(tmp_path):
    "A corpus may take hours"
    with pytest.raises(TypeError, match="pretrain_lm.*'epochs'"): pretrain_lm(table().text.tolist(), tmp_path/'lm', size, epochs=1)
    assert not (tmp_path/'lm').exists()

def test_pretraining_that_is_done_is_not_done_again(tmp_path, quiet, capsys):
    texts = table(200).text.tolist()
    a = pretrain_lm(texts, tmp_path/'lm', **kw)
    capsys.readouterr()
    b = pretrain_lm(texts, tmp_path/'lm', **kw)
    assert 'already' in capsys.readouterr().out
    for p,q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)
    with no_training(): pretrain_lm(texts, tmp_path/'lm', **{**kw, 'seed':1})    # other settings are another training
    with pytest.raises(UlmfitError, match="'one_cycle' or 'stlr'"): pretrain_lm(texts, tmp_path/'lm', **kw, schedule='cosine')

@pytest.mark.parametrize('where,want', [('cpu',2_000_000), ('cuda',50_000_000)])
def test_parts_are_longer_on_a_gpu(tmp_path, quiet, monkeypatch, where, want):
    "Where two million tokens take two seconds"
    import ulmfit_ext.lm as module
    monkeypatch.setattr(module, 'one_param', lambda model: SimpleNamespace(device=SimpleNamespace(type=where)))
    pretrain_lm(table(200).text.tolist(), tmp_path/'lm', **{**kw, 'part':None, 'n_epoch':1})
    card = json.loads((tmp_path/'lm'/'config.json').read_text())['directions']['forward']
    assert card['settings']['part']==want and len(card['history'])==1

def test_pretraining_begins_from_other_weights(tmp_path, quiet, capsys):
    "Also where the vocabulary is another: what was known is known at the first step"
    texts,gentle = table(200).text.tolist(),{**kw, 'n_epoch':1, 'lr_max':1e-8}
    began = pretrain_lm(texts, tmp_path/'began', **{**kw, 'n_epoch':6})
    rest  = pretrain_lm(texts, tmp_path/'rest', **gentle, pretrained=tmp_path/'began')
    test_close(rest.validate()[0], began.validate()[0], eps=1e-3)
    other = pretrain_lm(table(200, seed=1).text.tolist(), tmp_path/'other', **gentle, pretrained=tmp_path/'began', max_vocab=30)
    none  = pretrain_lm(table(200, seed=1).text.tolist(), tmp_path/'none', **gentle, max_vocab=30)
    assert other.validate()[0] < none.validate()[0]-0.3
    card = json.loads((tmp_path/'rest'/'config.json').read_text())['directions']['forward']
    test_eq(card['pretrained'], str(tmp_path/'began'))
    with no_training(): pretrain_lm(texts, tmp_path/'rest', **gentle) # from scratch is another training
    with pytest.raises(UlmfitError, match='no backward'): pretrain_lm(texts, tmp_path/'no', **gentle, pretrained=tmp_path/'began', backwards=True)

def test_a_damaged_state_is_no_end(tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(Resume, 'interval', '1 batch')
    texts = table(200).text.tolist()
    with pytest.raises(KeyboardInterrupt): pretrain_lm(texts, tmp_path/'lm', **kw, cbs=Kill(2))
    state, = tmp_path.rglob('*.resume')
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.warns(UserWarning, match='is damaged.*anew'): lm = pretrain_lm(texts, tmp_path/'lm', **kw)
    assert len(lm.recorder.values)>=6

def test_time_that_was_used_is_not_given_again(tmp_path, quiet, monkeypatch):
    "With `minutes`, a run that goes on has the rest of the time"
    clock = [1000.]
    class Tick(Callback):
        def after_batch(self): clock[0] += 1.
    monkeypatch.setattr(Resume, 'interval', '1 batch')
    monkeypatch.setattr(TimeBudget, 'now', staticmethod(lambda: clock[0]))
    for module in ('checkpoint','callback.resume'): monkeypatch.setattr(f'ulmfit_ext.{module}.time', types.SimpleNamespace(time=lambda: clock[0]))
    texts,settings = table(200).text.tolist(),{**kw, 'minutes':1.}
    with pytest.raises(KeyboardInterrupt): pretrain_lm(texts, tmp_path/'cut', **settings, cbs=[Tick(), Kill(3)])
    was = clock[0]
    lm = pretrain_lm(texts, tmp_path/'cut', **settings, cbs=Tick())
    assert len(lm.recorder.lrs)<70 and clock[0]-was<70, 'about 60 seconds of one batch each, validation included'
    card = json.loads((tmp_path/'cut'/'config.json').read_text())['directions']['forward']
    assert 1<=card['minutes']<=1.3

def test_perplexity_per_word(tmp_path):
    "Marks cost, but are no words; what is unknown is one"
    texts = ['The cat sat'] * 10
    dls = corpus_dls(texts, tmp_path, bs=2, bptt=3, valid_pct=0.3)                    # xxbos xxmaj the cat sat
    ppl,unknown = word_perplexity(math.log(2), dls)
    test_close(ppl, 2**(5/3), eps=1e-6)
    test_eq(unknown, 0)
    dls = corpus_dls(texts, tmp_path/'b', max_vocab=10, bs=2, bptt=3, valid_pct=0.3)  # nine marks and one word
    assert word_perplexity(math.log(2), dls)[1]>0.5

def test_words_where_there_are_no_spaces(tmp_path):
    "Characters of a language with spaces make words; of one without, each stands for itself"
    def per_word(text, lang):
        dls = corpus_dls([text]*10, tmp_path/lang.replace(':','-'), lang, bs=2, bptt=3, valid_pct=0.3)
        return word_perplexity(math.log(2), dls)[0]
    test_close(per_word('ab cd', 'xx:chars'), 2**(6/2), eps=1e-6)        # xxbos a b ▁ c d
    test_close(per_word('東京は大きい 町', 'ja:chars'), 2**(9/8), eps=1e-6)
    test_eq(per_word('東京は大きい'*200, 'xx:chars'), math.inf)            # said to have spaces: one word of 1,200 characters

@pytest.mark.parametrize('more,match', [(dict(pretrained='nosuch'), 'nosuch is not a language model'), (dict(config='huge'), 'paper, small, tiny'), (dict(valid_pct=0), 'valid_pct is 0'),
                                        (dict(n_epoch=0), 'n_epoch is 0'), (dict(minutes=0), 'minutes is 0')])
def test_what_is_wrong_is_said_before_the_corpus_is_read(tmp_path, monkeypatch, more, match):
    def read(*args): raise AssertionError('the corpus was read')
    monkeypatch.setattr('ulmfit_ext.lm.corpus_dls', read)
    with pytest.raises(UlmfitError, match=match): pretrain_lm(['a']*9, tmp_path, **{**kw, **more})

def test_the_language_is_that_of_the_pretrained_model(tmp_path, quiet):
    texts = table(100).text.tolist()
    pretrain_lm(texts, tmp_path/'a', **{**kw, 'n_epoch':1}, lang='xx:chars')
    pretrain_lm(texts, tmp_path/'b', **{**kw, 'n_epoch':1}, pretrained=tmp_path/'a')
    test_eq(lm_processor(tmp_path/'b').lang, 'xx:chars')

def test_what_an_encoder_cannot_be(dls, tmp_path):
    lm = lm_learner(dls.lm_fwd, size)
    with pytest.raises(UlmfitError, match='n_hid=99 and the encoder has 12'): ulmfit_classifier(dls.clas_fwd, dict(n_hid=99), encoder=lm)
    assert list(ulmfit_classifier(dls.clas_fwd, encoder=lm, metrics=[]).metrics)==[]
    with pytest.raises(UlmfitError, match='clas_bs is 1: pass at least 2'): ulmfit_dls(table(), path=tmp_path, bs=1)

def test_a_loss_that_is_no_number(tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(Resume, 'interval', '1 batch')
    class Spoil(Callback):
        def __init__(self, at): store_attr()
        def before_train(self):
            if self.epoch==self.at: self.learn.model[0].encoder.weight.data.fill_(math.nan)
    texts = table(200).text.tolist()
    with pytest.raises(UlmfitError, match='loss is nan in epoch 0, training batch 0.* a lower.*is kept'): pretrain_lm(texts, tmp_path/'lm', **kw, cbs=Spoil(0))
    assert len(json.loads((tmp_path/'lm'/'not_finite.json').read_text())['texts'])==kw['bs']
    with pytest.raises(UlmfitError, match='in epoch 2, training batch 0.*is kept'): pretrain_lm(texts, tmp_path/'lm', **kw, cbs=Spoil(2))
    with pytest.warns(UserWarning, match='Spoil is missing'): lm = pretrain_lm(texts, tmp_path/'lm', **kw)
    assert math.isfinite(lm.validate()[0]), 'what was written before does for going on'

def test_another_order_or_other_weights_are_another_training(tmp_path, quiet):
    "But to store what is finished in 16 bits needs none"
    texts = table(200).text.tolist()
    pretrain_lm(texts, tmp_path/'lm', **kw)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Learner, 'fit', None)
        pretrain_lm(texts, tmp_path/'lm', **kw, half=True)
    assert {o.dtype for o in load_file(tmp_path/'lm'/'fwd.safetensors').values()}=={torch.float16}
    for o in (dict(corpus=texts[::-1]), dict(wd=0.3), dict(config={**size, 'weight_p':0.1})):
        with no_training(): pretrain_lm(**{**kw, 'corpus':texts, 'path':tmp_path/'lm', **o})
    for seed in (1, 2):
        pretrain_lm(texts, tmp_path/'first', **{**kw, 'seed':seed})
        with nullcontext() if seed==1 else no_training(): pretrain_lm(texts, tmp_path/'next', **kw, pretrained=tmp_path/'first')

def test_directions_that_end_together(tmp_path, quiet, monkeypatch):
    "The card of a direction that was saved while this one was being written is kept"
    import ulmfit_ext.weights as M
    texts = table(100).text.tolist()
    a,b = [pretrain_lm(texts, tmp_path/str(o), **{**kw, 'n_epoch':1}, backwards=o) for o in (False,True)]
    save_lm(a, tmp_path/'two', about='first')
    write = M.save_weights
    def meanwhile(*args):
        monkeypatch.setattr(M, 'save_weights', write)
        save_lm(b, tmp_path/'two', about='second')
        write(*args)
    monkeypatch.setattr(M, 'save_weights', meanwhile)
    save_lm(a, tmp_path/'two', about='third')
    test_eq(json.loads((tmp_path/'two'/'config.json').read_text())['directions'], dict(backward=dict(about='second'), forward=dict(about='third')))

def test_bfloat16_trains_as_32_bits_do(tmp_path, quiet):
    "The losses of a training in mixed precision stay near those of one in 32 bits, and the weights stay in 32 bits"
    texts = table(300).text.tolist()
    a,b = [pretrain_lm(texts, tmp_path/str(o), **kw, bf16=o) for o in (False,True)]
    assert abs(a.recorder.values[-1][1]-b.recorder.values[-1][1]) < 0.05
    assert {p.dtype for p in b.model.parameters()}=={torch.float32}
    assert torch.equal(a.model[0].encoder.weight, b.model[0].encoder.weight) != can_bfloat16(), 'something is computed otherwise exactly where the processor can'

def test_an_error_ends_mixed_precision(dls, quiet):
    "What comes after a fit that was interrupted while it computed in 16 bits is computed in 32 again"
    class Stop(nn.Module):
        def forward(self, *args): raise KeyboardInterrupt
    learn = lm_learner(dls.lm_fwd, size)
    for fit in (lambda: learn.fit(1, cbs=CPUBfloat16()), lambda: learn.fit_one_cycle(1, cbs=CPUBfloat16())):
        learn.model[1].decoder = Stop()
        with pytest.raises(KeyboardInterrupt): fit()
        assert not torch.is_autocast_enabled('cpu')

def test_mixed_precision_of_several_outputs(quiet):
    items = [(torch.randn(4), torch.tensor(0)) for _ in range(16)]
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(4, 2)
        def forward(self, x): return self.l(x),self.l(x)
    learn = Learner(DataLoaders(*[DataLoader(items, bs=8)]*2), Two(), loss_func=lambda o,y: F.cross_entropy(o[0], y)+F.cross_entropy(o[1], y), cbs=CPUBfloat16())
    with learn.no_logging(): learn.fit(1)
    assert math.isfinite(learn.recorder.losses[-1])

def test_a_budget_that_was_interrupted_leaves_the_loader_whole(dls, quiet):
    class Stop(Callback):
        def before_batch(self): time.sleep(0.8)
        def before_validate(self): raise KeyboardInterrupt
    n = len(dls.lm_fwd.train)
    learn = lm_learner(dls.lm_fwd, size)
    with learn.no_logging(), pytest.raises(KeyboardInterrupt): learn.fit(5, cbs=[TimeBudget(0.01), Stop()])
    assert len(dls.lm_fwd.train)==n>1
    learn.add_cb(TimeBudget(1.))
    learn.lr_find(num_it=5, show_plot=False)

def test_the_best_weights_are_those_of_the_validation_loss(dls, quiet, tmp_path):
    "Also where other numbers come before it"
    learn,parts,best = lm_learner(dls.lm_fwd, size, metrics=accuracy),CorpusParts(),KeepBest()
    learn.recorder.train_metrics = True
    with learn.no_logging(): learn.fit(3, 1e-2, cbs=[parts, best])
    losses = [o[list(learn.recorder.metric_names[1:]).index('valid_loss')] for o in learn.recorder.values]
    test_eq([round(o, 4) for o in losses], [valid for _,valid in parts.history])
    test_eq(best.best_loss, min(losses))

@pytest.mark.parametrize('kw,says', [(dict(minutes=0), 'minutes is 0'), (dict(minutes=-1.), 'minutes is -1'), (dict(n_epoch=0), 'n_epoch is 0')])
def test_no_time_is_no_training(dls, kw, says):
    with pytest.raises(UlmfitError, match=says): finetune_lm(dls.lm_fwd, config=size, **kw)

def test_settings_are_compared_as_json_and_objects_never(tmp_path):
    "Another setting, another piece; the same setting made anew, the same piece; an object is not compared, whatever it is"
    from fastai.callback.training import GradientClip
    n = 1
    plain = [lambda: 1, lambda: 2, lambda: np.float32(.5), lambda: '1', lambda: True, lambda: None, lambda: slice(1e-5, 1e-3), lambda: slice(1e-2, 1e-1), lambda: [1e-5, 1e-3], lambda: np.array([1,2]),
             lambda: Path('a'), lambda: Path('b'), lambda: dict(n_hid=8), lambda: dict(n_hid=np.int64(9)), lambda: L(3,4)]
    plain.remove(plain[4]) # JSON's true equals 1 in Python
    for i,o in enumerate(plain):
        assert find_piece(tmp_path, 'fwd', plain_settings(a=o())) is None
        save_piece(tmp_path, 'fwd', plain_settings(a=o()), lambda folder: (folder/'is').write_text(str(i)))
    for i,o in enumerate(plain): assert (find_piece(tmp_path, 'fwd', plain_settings(a=o()))/'is').read_text()==str(i)
    assert find_piece(tmp_path, 'fwd', plain_settings(a=np.int64(1)))==find_piece(tmp_path, 'fwd', plain_settings(a=1)), 'a number is a number'
    assert find_piece(tmp_path, 'bwd', plain_settings(a=1)) is None
    def closed_over(x): return lambda o: o+x
    for o in (lambda x: x, closed_over(1), partial(Adam, mom=.7), Adam, GradientClip(1.), CrossEntropyLossFlat(), {1,2}, tensor([1.]), [GradientClip(1.)], dict(f=noop)):
        settings = plain_settings(a=o, b=1)
        assert settings==dict(b=1, objects=['a']) and 'because `a` was given' in why_again(settings)
        where = {save_piece(tmp_path, 'fwd', settings) for _ in range(2)}
        assert len(where)==1 and find_piece(tmp_path, 'fwd', settings) is None
    assert not list(tmp_path.glob('.*')), 'nothing half-written is left'

def test_a_piece_that_could_not_be_written_leaves_nothing(tmp_path):
    settings = plain_settings(a=1)
    save_piece(tmp_path, 'fwd', settings, lambda folder: (folder/'is').write_text('old'))
    def stop(folder):
        (folder/'is').write_text('new')
        raise KeyboardInterrupt
    for s in (settings, plain_settings(a=2)):
        with pytest.raises(KeyboardInterrupt): save_piece(tmp_path, 'fwd', s, stop)
    assert [o.name for o in tmp_path.iterdir()]==['fwd-1'] and (tmp_path/'fwd-1'/'is').read_text()=='old'

def test_pretraining_with_objects(tmp_path, quiet, capsys, monkeypatch):
    "With callbacks a run that was stopped goes on, and one that is finished is trained again; with another object it begins anew"
    from fastai.callback.training import GradientClip
    monkeypatch.setattr(Resume, 'interval', '1 batch')
    texts = table(200).text.tolist()
    with pytest.raises(KeyboardInterrupt): pretrain_lm(texts, tmp_path/'lm', **kw, cbs=Kill(2))
    with pytest.warns(UserWarning, match='Kill.at was 2 and is 99'): pretrain_lm(texts, tmp_path/'lm', **kw, cbs=Kill(99))
    out = capsys.readouterr().out
    assert 'epoch 2, after batch 2 of' in out and 'trained again each time, because `cbs` was given' in out
    with no_training(): pretrain_lm(texts, tmp_path/'lm', **kw, cbs=Kill(99))
    with no_training(): pretrain_lm(texts, tmp_path/'lm', **kw) # nor is it one without callbacks
    with no_training(): pretrain_lm(texts, tmp_path/'lm', **kw, cbs=GradientClip(5.))
    def slow(mom): return lambda params, lr, **kwargs: SGD(params, lr, mom=mom)
    with pytest.raises(KeyboardInterrupt): pretrain_lm(texts, tmp_path/'lm', **kw, opt_func=slow(0.), cbs=Kill(2))
    capsys.readouterr()
    with no_training(): pretrain_lm(texts, tmp_path/'lm', **kw, opt_func=slow(.9))
    out = capsys.readouterr().out
    assert 'because `opt_func` was given' in out and 'Going on' not in out

def test_gradients_are_clipped(dls, quiet, tmp_path):
    "A high rate may end in a model that knows words' frequencies only, or forgets what it knew"
    from fastai.callback.training import GradientClip
    class Note(Callback):
        def before_fit(self): self.got = [o.max_norm for o in self.learn._grab_cbs(GradientClip)]
    save_lm(lm_learner(dls.lm_fwd, size), tmp_path/'lm')
    for kw,want in ((dict(), [.25]), (dict(clip=None), []), (dict(cbs=GradientClip(3.)), [3.]), (dict(cbs=[GradientClip]), [1.]), (dict(clip=1.), [1.]), (dict(pretrained=tmp_path/'lm'), [.25]), (dict(pretrained=tmp_path/'lm', clip=0), [])):
        note = Note()
        finetune_lm(dls.lm_fwd, config=size, n_epoch=1, **{**kw, 'cbs': [note]+L(kw.get('cbs'))})
        assert note.got==want

def test_an_encoder_from_a_folder_of_the_same_vocabulary(dls, quiet, tmp_path):
    lm = lm_learner(dls.lm_fwd, size)
    save_lm(lm, tmp_path/'lm')
    clas = ulmfit_classifier(dls.clas_fwd, encoder=tmp_path/'lm')
    for (k,a),b in zip(lm.model[0].state_dict().items(), clas.model[0].module.state_dict().values(), strict=True): assert torch.equal(a, b), k

def test_parts_stay_out_of_a_validation_in_between(tmp_path, quiet):
    "A callback that validates after each part changes nothing: all parts are read, and the best weights are kept"
    class Nosy(Callback):
        def after_epoch(self):
            if is_fitting(self.learn):
                for i in (0,1,0): self.learn.validate(i)
    texts = table(200).text.tolist()
    plain,nosy = [pretrain_lm(texts, tmp_path/o, **kw, cbs=cb) for o,cb in (('plain',None), ('nosy',Nosy()))]
    for (k,a),b in zip(plain.model.state_dict().items(), nosy.model.state_dict().values(), strict=True): assert torch.equal(a, b), k
    a,b = [json.loads((tmp_path/o/'config.json').read_text())['directions']['forward'] for o in ('plain','nosy')]
    for k in ('perplexity','tokens','best_part','epochs'): test_eq(a[k], b[k])
    test_eq(*[[valid for _,valid in o['history']] for o in (a,b)]) # fastai begins anew with its running mean of the training loss

def test_parts_alone(dls, quiet, tmp_path):
    "A plain fit that was interrupted leaves the loader whole, and one that goes on has counted everything"
    def fit(*cbs):
        set_seed(1)
        learn,parts = lm_learner(dls.lm_fwd, size, path=tmp_path),CorpusParts(n_parts=2)
        dls.lm_fwd.train.rng.seed(1)
        learn.fit(3, 1e-3, cbs=[parts, Resume(every=1), *cbs])
        return parts
    whole = fit()
    with pytest.raises(KeyboardInterrupt): fit(Kill(1, 1))
    train = dls.lm_fwd.train
    test_eq((train.part, train.order), ((0,1), None))
    with pytest.warns(UserWarning, match='Kill is missing'): went_on = fit()
    test_eq((went_on.tokens, went_on.history), (whole.tokens, whole.history))
    test_eq(len(whole.history), 3)

def test_an_epoch_that_was_cancelled_is_not_counted(dls, quiet, tmp_path):
    class Cancel(Callback):
        def before_batch(self):
            if self.training and self.epoch==1: raise CancelEpochException
    parts = CorpusParts()
    lm_learner(dls.lm_fwd, size).fit(2, 1e-3, cbs=[parts, Cancel()])
    test_eq(len(parts.history), 1)

def test_a_run_that_ended_before_it_was_saved_leaves_the_loader_whole(tmp_path, quiet, monkeypatch):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    texts = table(200).text.tolist()
    with monkeypatch.context() as m:
        m.setattr('ulmfit_ext.lm.save_lm', stop)
        with pytest.raises(KeyboardInterrupt): pretrain_lm(texts, tmp_path/'lm', **kw)
    test_eq(pretrain_lm(texts, tmp_path/'lm', **kw).dls.train.part, (0,1))

def test_a_budget_gives_back_the_limit_that_it_found(dls, quiet, monkeypatch):
    now = [1000.]
    monkeypatch.setattr(TimeBudget, 'now', staticmethod(lambda: now[0]))
    class Tick(Callback):
        run_valid = False
        def before_batch(self): now[0] += 6.
    learn = lm_learner(dls.lm_fwd, size)
    learn.dls.train.max_batches = 3
    learn.fit(1000, 0.1, cbs=[TimeBudget(1.), Tick()])
    test_eq(learn.dls.train.max_batches, 3)

# Stage two

def chains(path, n_next=2, n=150):
    "Texts that have an order to learn, as those of `table` have not: after each word comes one of `n_next`"
    rng,words = np.random.default_rng(0),'the a cat dog bird sat ran on under mat tree red'.split()
    follow = {w: rng.choice(words, n_next) for w in words}
    def text():
        res = [rng.choice(words)]
        for _ in range(rng.integers(5, 20)): res.append(rng.choice(follow[res[-1]]))
        return ' '.join(res)
    return ulmfit_dls(pd.DataFrame(dict(text=[text() for _ in range(n)], label=['x','y']*(n//2))), path=path, seed=0, bs=8, bptt=10, min_freq=1)

@pytest.fixture
def grammar(tmp_path): return chains(tmp_path/'grammar')

def valid_losses(learn): return [o[1] for o in learn.recorder.values]
def same_weights(a, b): return all(torch.equal(x, y) for x,y in zip(a.model.parameters(), b.model.parameters(), strict=True))

def test_epochs_and_streams_follow_from_the_text(tmp_path, quiet):
    ns = [0, 1, 1000, 50_000, 100_000, 400_000, 10**6, 10**7, 10**9]
    epochs,streams = [lm_epochs(n) for n in ns],[lm_streams(n) for n in ns]
    assert epochs==sorted(epochs, reverse=True) and (epochs[0],epochs[-1])==(10, 1) and lm_epochs(400_000)==6
    assert streams==sorted(streams) and (streams[0],streams[-1])==(8, 64)
    df = table(400)
    given,few,many = [ulmfit_dls(df, path=tmp_path, seed=0, bptt=bptt, bs=bs) for bptt,bs in ((70,64), (70,None), (2,None))]
    n = given.lm_fwd.train.bl*given.lm_fwd.train.bs
    assert (given.bs,given.clas_bs)==(64, 64) and (few.bs,few.clas_bs)==(8, 64) and lm_streams(n, 2)-2<=many.bs<=lm_streams(n, 2)+2 and many.bs>8
    assert few.lm_fwd.train.bs==8 and few.clas_fwd.valid.bs==64

def test_no_number_of_epochs(grammar, quiet, monkeypatch):
    "Those that the text is worth; fewer where they are given, or the time is up"
    monkeypatch.setattr('ulmfit_ext.lm.lm_epochs', lambda n: 3 if 1000<n<5000 else 0)
    kw = dict(config=size, lr_max=.02)
    assert [len(finetune_lm(grammar, **kw, **o).recorder.values) for o in (dict(), dict(n_epoch=2), dict(minutes=5.), dict(minutes=5., n_epoch=1))]==[3, 2, 3, 1]
    rates = finetune_lm(grammar, **kw, minutes=60.).recorder.hps['lr']
    assert max(rates)>.019 and rates[-1]<.002, 'the triangle follows the epochs where the time is not up'

def test_it_stops_when_the_validation_loss_does(grammar, quiet):
    "A model that is too large for its text; the weights are those of the best epoch, whichever that is"
    kw = dict(config=dict(emb_sz=64, n_hid=128, n_layers=2), n_epoch=40, lr_max=.02, drop_mult=0.)
    set_seed(0)
    learn = finetune_lm(grammar, **kw)
    losses,found = valid_losses(learn),learn.stage_two
    assert len(losses)==found['epochs']==found['best_epoch']+3<40 and losses[-1]>min(losses)+1e-3
    assert losses[found['best_epoch']-1]==min(losses)==found['valid_loss'] and abs(learn.validate()[0]-min(losses))<1e-4
    set_seed(0)
    assert len(finetune_lm(grammar, **{**kw, 'n_epoch':len(losses)+3}, patience=None).recorder.values)==len(losses)+3

@pytest.mark.parametrize('lr', [30., slice(3.,30.)])
def test_a_rate_that_is_too_high(grammar, quiet, tmp_path, capsys, lr):
    "It is lowered, and what comes of it is what the lower rate would have given"
    set_seed(0)
    save_lm(finetune_lm(grammar, config=size, lr_max=.05, drop_mult=.1), tmp_path/'lm')
    def _tune(lr, **kw):
        set_seed(3)
        for dl in grammar.lm_fwd.loaders: dl.rng = random.Random(3)
        return finetune_lm(grammar, tmp_path/'lm', n_epoch=2, lr_max=lr, clip=None, drop_mult=.3, verbose=False, **kw)
    capsys.readouterr()
    tuned = _tune(lr)
    lines = [o for o in capsys.readouterr().out.splitlines() if 'too high' in o]
    found = tuned.stage_two
    assert lines and all('Beginning again at' in o for o in lines) and found['valid_loss']<found['loss_before']
    assert abs(tuned.validate()[0]-found['valid_loss'])<1e-4
    assert same_weights(tuned, _tune(found['lr_max'])), 'the same random numbers, weights and optimizer'

def test_learning_by_heart_is_no_collapse(tmp_path, quiet, capsys):
    "The validation loss may come to more than that of the words' frequencies: the best weights are kept, and the rate is left"
    dls = chains(tmp_path, 5, 80)
    set_seed(0)
    learn = finetune_lm(dls, config=dict(emb_sz=64, n_hid=128, n_layers=2), n_epoch=40, lr_max=.02, drop_mult=0., patience=None)
    assert valid_losses(learn)[-1]>frequency_loss(dls.lm_fwd)>min(valid_losses(learn))==learn.stage_two['valid_loss']
    assert 'too high' not in capsys.readouterr().out

def test_what_begins_from_nothing_may_come_from_above(grammar, quiet, capsys):
    "Its loss is above that of the words' frequencies for a while, and falls: that is no collapse"
    set_seed(0)
    learn = finetune_lm(grammar, config=size, n_epoch=3, lr_max=.005)
    assert learn.stage_two['best_epoch']==3 and valid_losses(learn)[0]>frequency_loss(grammar.lm_fwd) and 'too high' not in capsys.readouterr().out

def test_a_loss_of_frequencies(grammar):
    "What it is for a text that is read as fastai reads it, and as we do"
    d = grammar.lm_fwd
    counts = [np.bincount(np.concatenate([to_np(o[0]) for o in ds]), minlength=len(grammar.vocab)) for ds in (d.train_ds,d.valid_ds)]
    p = (counts[0]+1)/(counts[0]+1).sum()
    assert abs(frequency_loss(d) - -(counts[1]*np.log(p)).sum()/counts[1].sum())<1e-9

def test_where_all_rates_are_too_high(grammar, quiet, tmp_path):
    "A model keeps the weights that it began with"
    class Bad(Callback):
        "Makes each step go up"
        def before_step(self):
            for p in self.learn.model.parameters(): p.grad = -p.grad if p.grad is not None else None
    set_seed(0)
    old = finetune_lm(grammar, config=size, lr_max=.05, drop_mult=.1)
    save_lm(old, tmp_path/'lm')
    with pytest.warns(UserWarning, match='the last of 6 tries: the best weights are kept, those it began with'):
        learn = finetune_lm(grammar, tmp_path/'lm', n_epoch=2, lr_max=100., cbs=Bad(), verbose=False)
    assert same_weights(learn, old) and learn.stage_two['best_epoch']==0
