"""Constraints for pip, one a line: the lowest versions that `settings.ini` allows

    python tests/lowest.py > lowest.txt
    pip install -e '.[dev]' -c lowest.txt      # on Python 3.10
"""
import re
from configparser import ConfigParser
from pathlib import Path

def read_settings():
    "What `settings.ini` says"
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

def requirements():
    "What the library and its extras require"
    return [o for k,v in read_settings().items() if k.endswith('requirements') for o in v.split()]

def lowest(
        requirement:str, # One of `requirements`
    ) -> str:            # The same, held to its lowest version
    "`'torch>=2.10'` becomes `'torch==2.10'`, `'sphinx>=9,<10;…'` becomes `'sphinx==9;…'`; without a lowest version it raises"
    found = re.fullmatch(r'([\w-]+)[>=]=([\d.]+)[^;]*(;.*)?', requirement)
    if not found: raise ValueError(f'settings.ini gives no lowest version: {requirement}')
    return f"{found[1]}=={found[2]}{found[3] or ''}"

if __name__=='__main__': print(*dict.fromkeys(map(lowest, requirements())), sep='\n')
