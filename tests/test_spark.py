"Tables of Spark's, with two workers on this machine, and datasets of Ray's: what comes back is what one machine says, row by row"
import os,shutil,sys
import numpy as np,pandas as pd,pytest
import ulmfit_ext.integrations.spark as S
from made_up import make_df,make_ensemble,make_texts
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.export import load_ulmfit,pack_ulmfit

def raises(match): return pytest.raises(UlmfitError, match=match)

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('saved')
    return make_ensemble(tmp, make_df()).save(tmp/'model')

@pytest.fixture(scope='module')
def spark():
    pytest.importorskip('pyspark')
    if not shutil.which('java') and not os.environ.get('JAVA_HOME'): pytest.skip('Spark needs Java')
    from pyspark.sql import SparkSession
    package = os.path.dirname(os.path.dirname(os.path.dirname(S.__file__)))
    os.environ.update(PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP='127.0.0.1', PYTHONPATH=os.pathsep.join([package, os.environ.get('PYTHONPATH', '')]))
    session = SparkSession.builder.master('local[2]').config('spark.ui.enabled', False).getOrCreate()
    session.sparkContext.setLogLevel('ERROR')
    yield session
    session.stop()

def table():
    texts = ['', None, 'Unknown wörds 😀', *make_texts(37, seed=1, longest=120)]
    return pd.DataFrame(dict(id=range(len(texts)), text=pd.Series(texts, dtype=object), when=pd.Timestamp('2026-01-01'), label='?'))

def rows(df): return df.toPandas().sort_values('id').reset_index(drop=True)

def test_row_by_row(spark, saved):
    "Five parts on two workers; a missing text is an empty one, and a column `label` stays beside `pred_label`"
    df  = table()
    out = S.predict_spark(spark.createDataFrame(df).repartition(5), str(saved))
    got,one = rows(out),load_ulmfit(saved).predict_df(df)
    assert list(got.columns)==list(one.columns)==['id','text','when','label','pred_label','confidence','neg','pos']==out.columns
    for o in ('id','when','label','pred_label'): assert got[o].tolist()==one[o].tolist()
    assert [o if isinstance(o, str) else None for o in got.text]==df.text.tolist()
    assert np.allclose(got[['confidence','neg','pos']], one[['confidence','neg','pos']], atol=1e-6)
    assert S.predict_spark(spark.createDataFrame(df), saved, quantize=True).filter('id=5').toPandas().shape==(1,8)

def test_labels_are_of_the_type_they_were(spark, tmp_path):
    df  = make_df()
    for name,label,kind in (('stars', df.label.map(dict(pos=5, neg=1)), 'bigint'), ('flags', df.label=='pos', 'boolean'), ('many', df.label.map(lambda o: [o]), 'array<string>')):
        ens = make_ensemble(tmp_path/name, df.assign(label=label))
        out = S.predict_spark(spark.createDataFrame(df[['text']][:8]), ens)
        assert dict(out.dtypes)['label']==kind
        assert [list(o) if name=='many' else o for o in out.toPandas().label]==ens.predict_df(df[:8][['text']]).label.tolist()

def test_what_is_wrong_is_said(spark, saved, tmp_path):
    df = spark.createDataFrame(table()[['id','text']])
    with raises('no column .review.*id, text'): S.predict_spark(df, saved, 'review')
    with raises('There is no folder'): S.predict_spark(df, tmp_path/'nowhere')
    with raises('several columns .id'): S.predict_spark(df.select('id','id','text'), saved)

def test_no_table_of_sparks(saved):
    with raises("DataFrame of Spark's is wanted"): S.predict_spark(table(), saved)

def test_a_process_loads_a_model_once(saved, monkeypatch):
    loads,real = [],S.unpack_ulmfit
    monkeypatch.setattr(S, 'unpack_ulmfit', lambda *args, **kwargs: loads.append(1) or real(*args, **kwargs))
    data = pack_ulmfit(load_ulmfit(saved))
    for _ in range(3): first = S._load_once('a', data, False)
    assert len(loads)==1
    S._load_once('a', data, True), S._load_once('b', data, False)
    assert len(loads)==3 and len(S._loaded)==2, 'and keeps the last two'

def test_batches_of_ray(saved):
    df = table()
    answers = S.PredictBatch(saved)
    got,one = pd.concat([answers(df[:13]), answers(df[13:])]),load_ulmfit(saved).predict_df(df)
    assert got.pred_label.tolist()==one.pred_label.tolist() and np.allclose(got[['neg','pos']], one[['neg','pos']], atol=1e-6)
    with raises('no folder'): S.PredictBatch('nowhere')

def test_on_ray(saved):
    ray = pytest.importorskip('ray')
    import ray.data
    df = table().drop(columns='when')
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    try:
        out = ray.data.from_pandas(df).repartition(5).map_batches(S.PredictBatch, fn_constructor_args=(str(saved),), batch_format='pandas', batch_size=10, concurrency=2).to_pandas()
    finally: ray.shutdown()
    got,one = out.sort_values('id').reset_index(drop=True),load_ulmfit(saved).predict_df(df)
    assert got.id.tolist()==one.id.tolist() and got.pred_label.tolist()==one.pred_label.tolist()
    assert np.allclose(got[['neg','pos']].astype(float), one[['neg','pos']], atol=1e-6)
