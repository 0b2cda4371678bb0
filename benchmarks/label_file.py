"""How much memory it takes to label a file that is larger than memory may be, and what a kill costs.

    python benchmarks/label_file.py                            # a CSV of 1 GB, 100,000 of its rows labelled
    python benchmarks/label_file.py --gb 0.1 --rows 10000      # less of both
    python benchmarks/label_file.py --model FOLDER --out label_file.json

The file repeats the passages of the sample. It is read once from its beginning to its end, as `ulmfit predict` does before
the work, and then labelled in parts by a small model. That has random weights, unless a folder is given: what is measured does
not depend on what it has learned. Resident size, with all of PyTorch, is noted before, after the look at the file, and after
1, 10 and 100 thousand rows. Then the process is killed, and another goes on where it was. Linux only."""
import argparse,json,os,signal,subprocess,sys,tempfile,time,warnings
from pathlib import Path

for k in 'OMP_NUM_THREADS','MKL_NUM_THREADS': os.environ.setdefault(k, '1')
warnings.simplefilter('ignore')

sizes = dict(emb_sz=32, n_hid=48, n_layers=2)

def resident():
    "Resident size of this process in MB"
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages*os.sysconf('SC_PAGE_SIZE')/2**20

def make_file(path, n_bytes):
    "A CSV file of passages, over and over, until it has `n_bytes`; the number of its rows"
    from ulmfit_ext.text.tables import sample_table
    df = sample_table()[['text','source']]
    block,n = df.to_csv(index=False, header=False).encode(),0
    with open(path, 'wb') as f:
        f.write(b'text,source\n')
        while f.tell()<n_bytes:
            f.write(block)
            n += len(df)
    return n

def make_model(folder):
    from ulmfit_ext.classifier import ulmfit_classifier
    from ulmfit_ext.data import ulmfit_dls
    from ulmfit_ext.ensemble import BidirEnsemble
    from ulmfit_ext.text.tables import sample_table
    dls = ulmfit_dls(sample_table(), seed=0, bs=16, cache=False)
    return BidirEnsemble(*[ulmfit_classifier(o, sizes) for o in (dls.clas_fwd,dls.clas_bwd)]).save(folder)

def label(model, file, out, rows):
    "Label `rows` of the file, noting the size after 1, 10, 100 thousand, and then be killed"
    import ulmfit_ext.label_file as lf
    from ulmfit_ext.export import load_ulmfit
    ens = load_ulmfit(model)
    ens.predict_df(['a text'])
    def says(**kwargs): print(json.dumps(kwargs), flush=True)
    says(at='model loaded', mb=resident())
    look,add,began = lf.FileLabeller._look,lf.KeptTable.add,time.time()
    def _look(self, ens):
        res = look(self, ens)
        says(at='file looked at', mb=resident(), seconds=time.time()-began, total=res[1])
        return res
    marks = [o for o in (1000,10_000,100_000,1_000_000) if o<=rows]
    def _add(self, df, *args, **kwargs):
        before = self.rows
        add(self, df, *args, **kwargs)
        for o in marks:
            if before<o<=self.rows: says(at=f'{o:,} rows', mb=resident(), seconds=time.time()-began)
        if self.rows>=rows: os.kill(os.getpid(), signal.SIGKILL)
    lf.FileLabeller._look,lf.KeptTable.add = _look,_add
    ens.label_file(file, out)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--gb', type=float, default=1.)
    p.add_argument('--rows', type=int, default=100_000)
    p.add_argument('--model', type=Path)
    p.add_argument('--folder', type=Path, help='where the file is made; a temporary folder if not given')
    p.add_argument('--out', type=Path, help='JSON file for what was measured')
    p.add_argument('--label', nargs=4, help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.label: return label(*o.label[:3], int(o.label[3]))
    with tempfile.TemporaryDirectory(dir=o.folder) as tmp:
        tmp = Path(tmp)
        n = make_file(tmp/'texts.csv', o.gb*1e9)
        print(f"{(tmp/'texts.csv').stat().st_size/1e9:.2f} GB, {n:,} rows")
        model,res = o.model or make_model(tmp/'model'),[]
        for rows in (o.rows, o.rows+1):   # the second goes on where the first was killed
            line = [sys.executable, __file__, '--label', str(model), str(tmp/'texts.csv'), str(tmp/'answers.csv'), str(rows)]
            with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
                for l in process.stdout:
                    said = json.loads(l)
                    res.append(dict(run='first' if rows==o.rows else 'after the kill', **said))
                    print(f"{said['at']:<16} {said['mb']:7.1f} MB" + (f"  {said['seconds']:7.1f} s" if 'seconds' in said else ''))
            kept = json.loads((tmp/'answers.csv.part'/'done.json').read_text())
            print(f"killed; {kept['rows']:,} rows are kept, {kept['size']/1e6:.1f} MB")
        if o.out: o.out.write_text(json.dumps(dict(gb=o.gb, total=n, measured=res), indent=1)+'\n')

if __name__=='__main__': main()
