"""Run all tests in this environment, and note in a JSON file what came of them

    python tests/versions.py lowest nbs/experiments/reliability/versions.json

`lowest` is a name for the environment; an entry of that name is replaced. With files of `pytest --junitxml` after it nothing is run: they are added up,
and `files` says which test files that is.
"""
import json,platform,re,subprocess,sys,tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree
from lowest import requirements

def outcomes(files):
    "How many tests passed, failed and were skipped, which failed, and why how many were skipped, from files of `pytest --junitxml`"
    res = dict(passed=0, failed=0, skipped=0, failures=[], reasons={})
    cases = [o for f in files for o in ElementTree.parse(f).iter('testcase')]
    res['files'] = sorted({o.get('classname').split('.')[-1] for o in cases})
    for case in cases:
        skipped = case.find('skipped')
        if skipped is not None:
            res['skipped'] += 1
            res['reasons'][skipped.get('message')] = res['reasons'].get(skipped.get('message'), 0)+1
        elif case.find('failure') is not None or case.find('error') is not None:
            res['failed'] += 1
            res['failures'].append(f"{case.get('classname')}::{case.get('name')}")
        else: res['passed'] += 1
    return res

def environment():
    "Python, the system, and the versions of what `settings.ini` requires"
    names = sorted({re.split('[=<>;]', o)[0] for o in requirements()})
    installed = {}
    for o in names:
        try: installed[o] = version(o)
        except ModuleNotFoundError: pass # Sphinx 9 needs Python 3.11
    return dict(python=platform.python_version(), system=platform.system(), versions=installed)

def main(name, out, *files):
    command = [sys.executable, '-m', 'pytest', '-q']
    with tempfile.TemporaryDirectory() as tmp:
        if not files:
            files = [Path(tmp)/'junit.xml']
            subprocess.run([*command, f'--junitxml={files[0]}'])
        res = {**environment(), 'command':' '.join(['python', *command[1:]]), **outcomes(files)}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    out.write_text(json.dumps({**known, name:res}, indent=1)+'\n', encoding='utf-8')
    print(f"{name}: {res['passed']} passed, {res['failed']} failed, {res['skipped']} skipped")

if __name__=='__main__': main(*sys.argv[1:])
