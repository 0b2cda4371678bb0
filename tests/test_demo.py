import gc,subprocess,sys
import numpy as np, pandas as pd, pytest
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.demo import package_path,docstrings,passages,demo_split,demo_classes
from ulmfit_ext.report import tfidf_baseline

TEMPLATE = '''
def f{i}(a):
    """
    Return thing number {w} of the many things.

    Parameters
    ----------
    a : int, optional
        The size of the {w} thing that is wanted.

    Returns
    -------
    list
        A list of all things with {w} in the name.

    Raises
    ------
    ValueError
        If the {w} thing is not to be had.

    Notes
    -----
    Some authors hold that {w} things are rare.

    Examples
    --------
    We look for the {w} thing in the list:

    >>> f{i}(3) # what a nice line of code
    [1, 2, 3]
    """
'''

def word(i): return 'w' + ''.join('abcdefghij'[int(c)] for c in str(i))

@pytest.fixture
def source(tmp_path):
    "Twelve modules with five functions each, and what should be passed over"
    root = tmp_path/'pkg'; (root/'sub').mkdir(parents=True); (root/'tests').mkdir()
    for m in range(12):
        (root/('sub' if m%2 else '.')/f'm{m}.py').write_text('\n'.join(TEMPLATE.format(i=i, w=word(i)) for i in range(m*5, m*5+5)))
    (root/'sub'/'__init__.py').write_text('raise SystemExit("This file must never be run by anyone.")')
    (root/'broken.py').write_text('"""A docstring that nobody can reach."""\ndef f(:')
    (root/'latin.py').write_bytes(b'"""A docstring in an encoding not declared: caf\xe9."""')
    (root/'null.py').write_bytes(b'"""A docstring with a null byte in it."""\0')
    (root/'test_x.py').write_text('"""The docstring of a test, not to be read."""')
    (root/'tests'/'x.py').write_text('"""Another docstring of a test, not to be read."""')
    return root

def test_source_is_read_in_order_and_never_run(source):
    docs = docstrings(path=source, progress=False)
    assert len(docs)==60 and list(docs.columns)==['package', 'module', 'name', 'text']
    assert docs.module.nunique()==12 and 'pkg.sub.m1' in set(docs.module)
    pd.testing.assert_frame_equal(docs, docstrings(path=str(source), progress=False))

def test_packages_are_not_imported():
    assert package_path("__main__") is None
    code = ("import sys; from ulmfit_ext.demo import *; import ulmfit_ext.demo as d; before = set(sys.modules)\n"
            "df = docstrings(['networkx', 'no_such_package'], progress=False)\n"
            "assert set(df.package)=={'networkx'} and len(df)>500, len(df)\n"
            "assert not [o for o in set(sys.modules)-before if o.startswith('networkx')]")
    subprocess.run([sys.executable, '-c', code], check=True)

def test_warnings_of_other_peoples_source_are_kept_quiet(tmp_path, recwarn):
    (tmp_path/'a.py').write_text('"""An invalid escape: \\d, which newer versions of Python warn about."""')
    assert len(docstrings(path=tmp_path, progress=False))==1
    assert not recwarn.list

def test_garbage_collection_is_left_as_it_was(source, tmp_path):
    docstrings(path=source, progress=False); assert gc.isenabled()
    with pytest.raises(UlmfitError, match='No file or folder'): docstrings(path=tmp_path/'none')
    (tmp_path/'empty').mkdir()
    with pytest.raises(UlmfitError, match='No docstrings'): docstrings(path=tmp_path/'empty', progress=False)
    with pytest.raises(UlmfitError, match='no_such_package'): docstrings(['no_such_package'], progress=False)
    assert gc.isenabled()

def test_passages_have_labels_and_no_give_aways(source):
    ps = passages(docstrings(path=source, progress=False))
    assert ps.label.value_counts().to_dict()==dict.fromkeys(demo_classes, 60)
    assert not ps.text.str.contains(r'>>>|---|ValueError|optional|nice line|:$|1, 2, 3').any()
    assert not ps.text.str.contains('|'.join(['Parameters', 'Returns', 'Raises', 'Notes', 'Examples'])).any()
    assert (ps.text.str.split().str.len()>=5).all()

def test_repeats_are_kept_once_and_lose_a_contested_label():
    doc = 'Do a thing.\n\nReturns\n-------\nint\n    {}\n\nNotes\n-----\n{}'
    docs = pd.DataFrame(dict(package='p', module=['p.a', 'p.b', 'p.c'], name='f', text=[
        doc.format('The number of all these things.', 'All of this is only a note.'),
        doc.format('the NUMBER of all these things', 'The length of the whole list.'),
        doc.format('The length of the whole list.', 'This is said nowhere else here.')]))
    ps = passages(docs).set_index('text')
    assert list(ps.index)==['The number of all these things.', 'All of this is only a note.', 'The length of the whole list.', 'This is said nowhere else here.']
    assert ps.loc['The number of all these things.', 'label']=='Returns'
    assert pd.isna(ps.loc['The length of the whole list.', 'label'])

def test_text_without_sections_has_no_label():
    docs = pd.DataFrame(dict(package='p', module='p.a', name='f', text=['Compute a thing for the user.\n\nArgs:\n    x: the thing that is computed here']))
    ps = passages(docs)
    assert ps.label.isna().all() and not ps.text.str.contains('Args').any()
    assert len(passages(docs.iloc[:0]))==0

def test_split_keeps_modules_apart(source):
    ps = passages(docstrings(path=source, progress=False))
    for seed in range(3):
        labelled,test,unlabelled = demo_split(ps, labels=20, n_test=10, n_valid=5, seed=seed)
        train,valid = labelled[~labelled.is_valid], labelled[labelled.is_valid]
        for df,n in ((train,20), (valid,5), (test,10)): assert df.label.value_counts().to_dict()==dict.fromkeys(demo_classes, n)
        sides = [set(o.module) for o in (train, valid, test)]
        assert not (sides[0]&sides[1] or sides[0]&sides[2] or sides[1]&sides[2])
        seen = set(unlabelled) | set(labelled.text)
        assert not seen & set(ps[ps.module.isin(sides[2])].text)
        assert len(seen)==len(unlabelled)+len(labelled)==(~ps.module.isin(sides[2])).sum()

def test_split_without_validation_and_with_too_little(source):
    ps = passages(docstrings(path=source, progress=False))
    labelled,_,_ = demo_split(ps, labels=20, n_test=10, n_valid=0)
    assert len(labelled)==120 and not labelled.is_valid.any()
    for kw in (dict(labels=100), dict(labels=20, n_test=55), dict(labels=55, n_test=5, n_valid=5), dict(labels=0, n_test=100)):
        with pytest.raises(UlmfitError, match='Too few passages.*Raises 60'): demo_split(ps, **kw)
    with pytest.raises(UlmfitError, match='Too few passages'): demo_split(ps.iloc[:0])

def test_baseline_learns_what_there_is_to_learn(source):
    ps = passages(docstrings(path=source, progress=False))
    labelled,test,_ = demo_split(ps, labels=20, n_test=10, n_valid=5)
    train = labelled[~labelled.is_valid]
    err,preds = tfidf_baseline(train.text, train.label, test.text, test.label)
    assert err==0 and len(preds)==60
    err,preds = tfidf_baseline(list(train.text), list(train.label), list(test.text), ['Notes']*60)
    assert err==np.mean(preds!='Notes')
