"Write `README.md` from `nbs/index.ipynb`: `python docs/readme.py`"
import re
from html.parser import HTMLParser
from pathlib import Path
from fastcore.nbio import read_nb

root = Path(__file__).resolve().parent.parent

class _Rows(HTMLParser):
    "The rows of an HTML table, as lists of text"
    def __init__(self): super().__init__(); self.rows,self.text = [],None
    def handle_starttag(self, tag, attrs):
        if tag=='tr': self.rows.append([])
        elif tag in ('td','th'): self.text = ''
    def handle_data(self, data):
        if self.text is not None: self.text += data
    def handle_endtag(self, tag):
        if tag in ('td','th'): self.rows[-1].append(' '.join(self.text.split()).replace('|', r'\|')); self.text = None

def md_table(html):
    "The table in `html` as markdown, empty where there is none"
    parser = _Rows()
    parser.feed(html)
    rows = [r for r in parser.rows if r]
    if not rows: return ''
    rows.insert(1, ['---']*len(rows[0]))
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in rows)

def md_output(o):
    "One output of a code cell as markdown, empty for a picture or a progress bar"
    data = o.get('data', {})
    if 'text/markdown' in data: return data['text/markdown'].strip()
    if 'text/html'     in data: return md_table(data['text/html'])
    text = o['text'] if o.get('name')=='stdout' else '' if 'image/png' in data else data.get('text/plain', '')
    return f'```text\n{text.rstrip()}\n```' if text.strip() else ''

def md_links(src):
    "`src` with links relative to the notebook's folder made relative to the project's, fenced code left as it is"
    parts = re.split(r'(^```.*?^```)', src, flags=re.M|re.S)
    return ''.join(p if p.startswith('```') else re.sub(r'\]\((?![a-z]+:|[#/])', '](nbs/', p) for p in parts)

def md_cell(c):
    "One cell as a list of markdown blocks"
    d = c.directives
    if c.cell_type=='markdown': return [md_links(c.source.strip())]
    if c.cell_type!='code' or 'hide' in d or d.get('include')=='false': return []
    c.remove_directives()
    src = f'```python\n{c.source.strip()}\n```' if c.source.strip() and d.get('echo')!='false' else ''
    return [src] + [md_output(o) for o in c.outputs if d.get('output')!='false']

def readme(nb=root/'nbs'/'index.ipynb'):
    "The text of `README.md`"
    return '\n\n'.join(b for c in read_nb(nb).cells for b in md_cell(c) if b) + '\n'

if __name__=='__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
