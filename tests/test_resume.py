"A fit that was killed goes on, whatever it trains; one run in a folder; what was left half-written"
import json,os,random,subprocess,sys
from pathlib import Path
import numpy as np,pandas as pd,pytest,torch
from fastai.tabular.all import *
from fastai.vision.all import *
from fastai.callback.training import GradientAccumulation,GradientClip
from made_up import make_df
from ulmfit_ext.callback.resume import Resume
from ulmfit_ext.callback.steady import KeepBest
from ulmfit_ext.core import *
from ulmfit_ext.runs import *
from ulmfit_ext.checkpoint import *
from ulmfit_ext.pipeline import ULMFiT

root = Path(__file__).resolve().parent.parent

@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(defaults, 'callbacks', [o for o in defaults.callbacks if o is not ProgressCallback])

class Killed(BaseException): pass
class Kill(Callback):
    "Die after so many batches"
    order = Resume.order+1
    def __init__(self, n): self.left = iter(range(n-1))
    def after_batch(self):
        if self.training and next(self.left, None) is None: raise Killed

def tabular(path, **kwargs):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=rng.normal(size=300), b=rng.choice(list('xyz'), 300), y=rng.choice(['p','q'], 300)))
    dls = TabularDataLoaders.from_df(df, path, [Categorify, Normalize], ['b'], ['a'], 'y', bs=16, valid_idx=list(range(60)), seed=0)
    return tabular_learner(dls, layers=[20,10], metrics=accuracy, config=tabular_config(ps=0.2), **kwargs)

class Jitter(RandTransform):
    "Adds to an image what was drawn for it, with the generators of all kinds"
    def before_call(self, b, split_idx): self.by = random.random()+np.random.rand()+torch.rand(1).item()
    def encodes(self, x:TensorImage): return x+self.by

def vision(path, workers=0):
    for i in range(40):
        (path/'images').mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (12,12,3), dtype=np.uint8)).save(path/'images'/f'{"ab"[i%2]}_{i}.png')
    dls = ImageDataLoaders.from_name_re(path, get_image_files(path/'images'), r'([ab])_', bs=4, num_workers=workers, seed=0,
                                        item_tfms=[ToTensor, Jitter(p=0.5)], batch_tfms=Flip())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), Flatten(), nn.Dropout(0.3), nn.Linear(4, 2))
    return Learner(dls, model, path=path, metrics=accuracy)

def run(make, path, fit, kills=()):
    "The learner at the end of a fit that is killed after each of `kills` batches"
    for n in (*kills, 10**9):
        set_seed(1)
        learn = make(path)
        with learn.no_logging():
            try: fit(learn, [Resume(every=3), Kill(n)] if kills else [])
            except Killed: pass
    return learn

def same(a, b):
    for (k,x),y in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True): assert torch.equal(x, y), k
    assert [float(o) for o in a.recorder.losses]==[float(o) for o in b.recorder.losses] and a.recorder.values==b.recorder.values

fits = dict(
    one_cycle = lambda learn, cbs: learn.fit_one_cycle(3, 0.01, cbs=cbs),
    best      = lambda learn, cbs: learn.fit_flat_cos(3, 0.01, cbs=[KeepBest(), GradientAccumulation(20), GradientClip(0.5), *cbs]),
    lookahead = lambda learn, cbs: learn.fit(3, 0.01, cbs=cbs),
    restarts  = lambda learn, cbs: learn.fit_sgdr(2, 1, 0.01, cbs=cbs))

@pytest.mark.parametrize('name', fits)
def test_tabular(tmp_path, name):
    make = partial(tabular, opt_func=ranger) if name=='lookahead' else tabular
    same(run(make, tmp_path, fits[name]), run(make, tmp_path, fits[name], kills=(5,17,4)))
    assert not list(tmp_path.rglob('*.resume'))

@pytest.mark.parametrize('workers', [0,2])
def test_augmented_images(tmp_path, workers):
    "Random numbers are drawn for each image, here or in other processes"
    make = partial(vision, workers=workers)
    same(run(make, tmp_path, fits['one_cycle']), run(make, tmp_path, fits['one_cycle'], kills=(5,7)))

class Scaled(Callback):
    "What `MixedPrecision` does with a `GradScaler`, on a CPU"
    order = MixedPrecision.order
    def before_fit(self): self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=4., growth_interval=5)
    def before_backward(self): self.learn.loss_grad = self.learn.scaler.scale(self.loss_grad)
    def before_step(self):
        self.scales.append(self.learn.scaler.get_scale())
        for p in self.model.parameters(): p.grad /= self.scales[-1]
    def after_step(self):
        self.learn.scaler._found_inf_per_device = lambda opt: {torch.device('cpu'): tensor(0.)}
        self.learn.scaler._per_optimizer_states[0]['found_inf_per_device'] = {torch.device('cpu'): tensor([0.])}
        self.learn.scaler.update()

def test_the_scale_of_gradients(tmp_path):
    "It is doubled every five steps; a scaler that begins anew would be behind"
    scales = []
    class Noted(Scaled): pass
    Noted.scales = scales
    whole = run(tabular, tmp_path, lambda learn, cbs: learn.fit(2, 0.01, cbs=[Noted(), *cbs]))
    want = whole.scaler.get_scale()
    scales.clear()
    cut = run(tabular, tmp_path, lambda learn, cbs: learn.fit(2, 0.01, cbs=[Noted(), *cbs]), kills=(13,))
    same(whole, cut)
    assert cut.scaler.get_scale()==want>4

def test_done_batches_are_not_read_again(tmp_path):
    "What the loader holds costs nothing to skip"
    read = []
    class Noting(list):
        def __getitem__(self, i):
            read.append(i)
            return list.__getitem__(self, i)
    def make(path):
        items = Noting((torch.randn(3, generator=torch.Generator().manual_seed(i)), torch.zeros(1)) for i in range(64))
        dls = DataLoaders(DataLoader(items, bs=2, shuffle=True), DataLoader(items, bs=2))
        return Learner(dls, nn.Linear(3, 1), nn.MSELoss(), path=path)
    run_once = fits['one_cycle']
    learn = make(tmp_path)
    with pytest.raises(Killed), learn.no_logging(): run_once(learn, [Resume(every=30), Kill(31)])
    learn = make(tmp_path)
    class First(Callback):
        def after_train(self): raise Killed
    read.clear()
    with pytest.raises(Killed), learn.no_logging(), pytest.warns(UserWarning, match='First is new'): run_once(learn, [Resume(), First()])
    assert len([i for i in read])<20, 'two batches of two are left, and a sample for the hash of the data'

def test_a_damaged_state_is_put_aside_and_named(tmp_path):
    "Cut anywhere, or with one bit another: one line, and the fit begins anew"
    whole = run(tabular, tmp_path, fits['one_cycle'])
    with pytest.raises(Killed): fits['one_cycle'](tabular(tmp_path), [Resume(every=3), Kill(20)])
    file,rng = tmp_path/'models'/'resume.resume',np.random.default_rng(0)
    data = file.read_bytes()
    def damaged():
        for n in rng.integers(0, len(data), 8): yield data[:n]
        for n in rng.integers(0, len(data), 8): yield data[:n] + bytes([data[n]^1]) + data[n+1:]
        yield b''
    for i,o in enumerate(damaged()):
        file.write_bytes(o)
        set_seed(1)
        learn = tabular(tmp_path)
        def stop(learn, cbs): learn.fit_one_cycle(3, 0.01, cbs=[*cbs, Kill(1)])
        with pytest.warns(UserWarning, match='is damaged') as said, learn.no_logging():
            if i: pytest.raises(Killed, stop, learn, [Resume()])
            else: fits['one_cycle'](learn, [Resume()])
        assert len(said)==1 and '\n' not in str(said[0].message) and (tmp_path/'models'/'resume.resume.damaged').exists()
        if not i: same(whole, learn)

changes = {
    'n_epoch was 3 and is 4':   lambda learn, cbs: learn.fit_one_cycle(4, 0.01, cbs=cbs),
    'the schedule of lr':       lambda learn, cbs: learn.fit_one_cycle(3, 0.02, cbs=cbs),
    'the schedule of lr is missing': lambda learn, cbs: learn.fit(3, 0.01, cbs=cbs),
    'wd was 0.01 and is 0.3':   lambda learn, cbs: learn.fit_one_cycle(3, 0.01, wd=0.3, cbs=cbs)}

@pytest.mark.parametrize('says', changes)
def test_another_fit_is_refused(tmp_path, says):
    with pytest.raises(Killed): fits['one_cycle'](tabular(tmp_path), [Resume(every=3), Kill(20)])
    with pytest.raises(UlmfitError, match=says): changes[says](tabular(tmp_path), [Resume()])

def test_another_learner_is_refused(tmp_path):
    with pytest.raises(Killed): fits['one_cycle'](tabular(tmp_path), [Resume(every=3), Kill(20)])
    def smaller(learn): learn.dls.train.bs = 8
    def other_data(learn): learn.dls.train.dataset.items.iloc[0,0] += 1
    def other_loss(learn): learn.loss_func = LabelSmoothingCrossEntropyFlat()
    def other_opt(learn): learn.opt_func = SGD
    def frozen(learn): learn.create_opt(); next(learn.model.parameters()).requires_grad_(False)
    for change,says in ((smaller,'bs was 16 and is 8'), (other_data,'the training data are not the same'), (other_loss,'the loss function'),
                        (other_opt,'the optimizer'), (frozen,'the frozen parameters')):
        learn = tabular(tmp_path)
        change(learn)
        with pytest.raises(UlmfitError, match=says): fits['one_cycle'](learn, [Resume()])
    assert (tmp_path/'models'/'resume.resume').exists(), 'what was refused is kept'

@pytest.mark.parametrize('every', [0, -3, 'often', '5', '0 minutes', True, 2.5, 'nan minutes'])
def test_no_interval(every):
    with pytest.raises(UlmfitError, match='such as .5 minutes'): Resume(every=every)

# A run

_other = '''
import sys
from ulmfit_ext.runs import run_lock
with run_lock(sys.argv[1]):
    print('mine', flush=True)
    sys.stdin.read()
'''

@pytest.fixture
def other_run(tmp_path):
    "Another process that runs in `tmp_path/'u'`"
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))}
    with subprocess.Popen([sys.executable, '-c', _other, tmp_path/'u'], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline()=='mine\n'
        yield p
        p.kill()

def ulmfit(path):
    return ULMFiT.from_df(make_df(40), path/'u', None, 'fwd', dict(emb_sz=6, n_hid=8, n_layers=2), bptt=10, bs=8, min_freq=1, words=False)

def test_one_run_in_a_folder(tmp_path, other_run):
    "A second one stops before it writes anything, until the first is dead; who only reads may"
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UlmfitError, match='another run is at work in'): ulmfit(tmp_path)
    assert sorted(tmp_path.rglob('*'))==before
    other_run.kill()
    other_run.wait()
    u = ulmfit(tmp_path).fit_classifier(1, recipe='together')
    with run_lock(tmp_path/'u'): assert ULMFiT.load(tmp_path/'u').predict('good')[0] in ('pos','neg')

@pytest.mark.parametrize('old', [False,True])
def test_what_was_left_is_swept(tmp_path, old):
    "But not what a living process writes, nor what only looks like it"
    (tmp_path/'u'/'lm').mkdir(parents=True)
    dead,alive = 2**22+1,os.getppid()
    gone = [f'.tokens-{dead}-0a1b2c3d.npz', f'lm/.fwd-{dead}-0a1b2c3d', f'.classifier_fwd-{dead}-0a1b2c3d.png', f'.model-{dead}-0a1b2c3d']
    kept = ['.env', '.notes-2024-draft', f'.tokens-{alive}-0a1b2c3d.npz', 'tokens-1-0a1b2c3d.npz']
    for name in gone+kept:
        path = tmp_path/'u'/name
        if path.suffix: path.write_bytes(b'half')
        else:
            path.mkdir()
            (path/'half').touch()
    if old:
        os.utime(tmp_path/'u'/kept[2], (1e9,1e9))
        gone.append(kept.pop(2)) # after a day another process may have that number
    with run_lock(tmp_path/'u'): pass
    assert not [o for o in gone if (tmp_path/'u'/o).exists()] and all((tmp_path/'u'/o).exists() for o in kept)

@pytest.mark.parametrize('name', ['model','model-2.v1.0'])
def test_a_model_that_was_moved_aside_comes_back(tmp_path, name, monkeypatch):
    "Killed between two renamings, a run leaves the old model under another name"
    monkeypatch.setattr(os, 'getpid', lambda: 2**22+1)
    aside = temporary_name(tmp_path/name)
    aside = aside.with_name(f'{aside.name}.old')
    monkeypatch.undo()
    aside.mkdir()
    (aside/'config.json').write_text('old')
    sweep(tmp_path)
    assert (tmp_path/name/'config.json').read_text()=='old' and not aside.exists()

def test_a_curve_that_was_lost_is_there_again(tmp_path):
    u = ulmfit(tmp_path).fit_lm(1).fit_classifier(1, recipe='together')
    for name in ('lm_fwd.png','classifier_fwd.png'):
        was = (u.path/name).read_bytes()
        (u.path/name).unlink()
        ulmfit(tmp_path).fit_lm(1).fit_classifier(1, recipe='together')
        assert (u.path/name).read_bytes()==was

def test_changed_settings_of_a_run_are_named(tmp_path, monkeypatch, capsys):
    "A run that was killed begins anew with other settings, says so, and leaves nothing of the old"
    monkeypatch.setattr(Resume, 'interval', '1 batch')
    with pytest.raises(Killed): ulmfit(tmp_path).fit_lm(2, cbs=Kill(3))
    assert list((tmp_path/'u'/'.unfinished').rglob('*.resume'))
    ulmfit(tmp_path).fit_lm(2, lr_max=0.02)
    out = capsys.readouterr().out
    assert 'Begun with other settings, so begun anew: lr_max was 0.004 and is 0.02' in out and 'Going on' not in out
    assert not (tmp_path/'u'/'.unfinished').exists()

def test_synced_before_it_has_its_name(tmp_path, monkeypatch):
    "A file is on the disk before it is renamed, and its folder afterwards"
    calls = []
    fsync,replace = os.fsync,os.replace
    monkeypatch.setattr(os, 'fsync', lambda fd: (calls.append(os.readlink(f'/proc/self/fd/{fd}')), fsync(fd)))
    monkeypatch.setattr(os, 'replace', lambda a, b: (calls.append('renamed'), replace(a, b)))
    with atomic_write(tmp_path/'a') as tmp: tmp.write_text('x')
    assert calls==[str(tmp), 'renamed', str(tmp_path)]

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')
def test_real_kills(tmp_path):
    "A few of the kills of `tests/kills.py`: a classifier that is unfrozen gradually, with recomputation"
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')])), 'PYTHONWARNINGS': 'ignore'}
    cmd = [sys.executable, root/'tests'/'kills.py', '--kills', '2', '--only', 'classifier', '--seed', '3', '--out', tmp_path/'kills.json']
    res = subprocess.run(cmd, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert res.returncode==0, res.stdout+res.stderr
    rows = json.loads((tmp_path/'kills.json').read_text())['rows']
    assert len(rows)==2 and all(r['kills']>=2 and r['identical']==r['runs'] for r in rows.values())
