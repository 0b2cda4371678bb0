"Our callbacks in any company: combinations in which any two settings meet. All of them: `python tests/company.py`"
import itertools
import pytest
import company

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('company')
    dls = company.make_dls(path)
    return dls,company.reference(dls, path)

def test_any_two_settings_meet():
    want = {frozenset([(a,x),(b,y)]) for a,b in itertools.combinations(company.factors, 2) for x in company.factors[a] for y in company.factors[b]}
    assert {frozenset(o) for c in company.pairwise() for o in itertools.combinations(c.items(), 2)}==want

@pytest.mark.parametrize('combination', company.pairwise(), ids=company.name)
def test_in_company(combination, data, tmp_path): assert company.check(combination, data[0], tmp_path, data[1])>=8
