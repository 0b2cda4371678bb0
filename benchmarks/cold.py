"""What a model costs that only answers

    python benchmarks/cold.py MODEL             # with PyTorch
    env/bin/python benchmarks/cold.py FOLDER    # without

FOLDER is what `to_onnx` wrote, and `env` an environment of `pip install onnxruntime spacy numpy`, with this package on PYTHONPATH."""
import os,re,subprocess,sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError,distribution
from pathlib import Path
from packaging.requirements import Requirement

ask = '''
import sys,time
began = time.time()
from ulmfit_ext.{module} import {load}
{load}(sys.argv[1]).predict('If the input is not a square matrix.')
print(time.process_time(), time.time()-began)
print(*[o for o in ('torch','fastai','pandas') if o in sys.modules])
'''

def needed(names):
    "Bytes of the files of each distribution that `names` require, here, themselves among them"
    todo,sizes = [Requirement(o) for o in names],{}
    while todo:
        req = todo.pop()
        name = re.sub('[-_.]+', '-', req.name).lower()
        if name in sizes or req.marker and not req.marker.evaluate({'extra': ''}): continue
        try: dist = distribution(req.name)
        except PackageNotFoundError: continue
        files = {str(o.locate()) for o in dist.files or []}
        sizes[name] = sum(os.path.getsize(o) for o in files if os.path.exists(o))
        todo += [Requirement(o) for o in dist.requires or []]
    return sizes

def required(onnx):
    "What has to be installed"
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']['runtime_requirements' if onnx else 'requirements'].split()

def cold(path, onnx, n=3):
    "The least processor time and time by the clock, of `n`, that loading and one prediction take in a new process; what was imported"
    module,load = ('runtime','load_onnx') if onnx else ('export','load_ulmfit')
    code,cmd = ask.format(module=module, load=load),[sys.executable, '-W', 'ignore', '-c']
    runs = []
    for _ in range(n):
        out = subprocess.run([*cmd, code, path], check=True, capture_output=True, text=True).stdout
        times,modules = out.split('\n')[-3:-1]
        runs.append([*map(float, times.split())])
    return min(o[0] for o in runs),min(o[1] for o in runs),modules

if __name__=='__main__':
    path = Path(sys.argv[1])
    onnx = any(path.glob('*.onnx'))
    sizes = needed(required(onnx))
    cpu,wall,modules = cold(path, onnx)
    print(f"{'load_onnx' if onnx else 'load_ulmfit'}: {len(sizes)} packages, {sum(sizes.values())/1e6:,.0f} MB; "
          f"load and first prediction {cpu:.2f} s of processor time, {wall:.2f} s by the clock; "
          f"imported: {modules or 'neither torch, nor fastai, nor pandas'}")
