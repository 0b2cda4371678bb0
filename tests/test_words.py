"Counted words, and how several voices are mixed, from outside"
import json,os,subprocess,sys
from pathlib import Path
import numpy as np,pandas as pd,pytest,torch
from torch.nn import functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline,make_union
from made_up import make_texts
from ulmfit_ext.core import UlmfitError
from ulmfit_ext.counts import char_ngrams,words_of
from ulmfit_ext.mixture import equal_mixture,fit_mixture,mean_logits,together
from ulmfit_ext.scores import verdict
from ulmfit_ext.text.tables import read_table,sample_table
from ulmfit_ext.words import BagOfWords,learning_curve,next_doubling

def raises(match): return pytest.raises(UlmfitError, match=match)
def tfidf(**kwargs): return TfidfVectorizer(ngram_range=(1,2), sublinear_tf=True, token_pattern=r'\w+|[^\w\s]', **kwargs)
def ngrams(lowercase): return TfidfVectorizer(analyzer=lambda text: [o for w in words_of(text, lowercase) for o in char_ngrams(w)], sublinear_tf=True)
def close(a, b): np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)

scripts = ['İstanbul’da ǅ ǆ', 'Straße STRASSE ß', 'naïve cafe\u0301 café', '日本語 の テキスト。', 'ไทย ภาษา', 'हिन्दी में', 'א ב ג', '😀 👩‍👩‍👧 !!', 'ﬁ ½ ② Ⅷ', 'a\u00a0b\u2028c\td',
           '\ud800 x', 'x_y-z 3.14 #tag @you', '', '   ', 'a', 'A a A', '\x00 \x85', '-- — …', 'İ' * 3, 'ΑΣ ας']

@pytest.fixture(scope='module')
def sample(): return sample_table()

# the same as scikit-learn's

@pytest.mark.parametrize('classes', [['Raises','Summary'], None])
def test_equal_to_sklearn(sample, classes):
    "Choices and probabilities are those of a grid search, for two classes and for six"
    df = sample_table(300, classes)
    bag = BagOfWords.fit(df.text, df.label, chars=False)
    grid = dict(tfidfvectorizer__lowercase=[True,False], logisticregression__C=[0.3, 1, 3, 10, 30])
    search = GridSearchCV(make_pipeline(tfidf(), LogisticRegression(max_iter=1000)), grid, cv=5).fit(df.text, df.label)
    scored = dict(zip([(o['logisticregression__C'],o['tfidfvectorizer__lowercase']) for o in search.cv_results_['params']], search.cv_results_['mean_test_score']))
    assert abs(scored[bag.choices['C'],bag.lowercase]-search.best_score_)<.006 and abs(bag.choices['cv_accuracy']-search.best_score_)<.006 # warm starts end a little apart
    theirs = make_pipeline(tfidf(lowercase=bag.lowercase), LogisticRegression(C=bag.choices['C'], max_iter=1000)).fit(df.text, df.label)
    more = [*sample.text[-50:], *scripts]
    close(bag.logits(more).softmax(1), theirs.predict_proba(more))
    assert bag.predict(more)==list(theirs.predict(more)) and bag.classes==list(theirs.classes_)

def test_equal_to_sklearn_with_character_ngrams(sample):
    "The two kinds of terms are two vectorizers put beside each other, each of length one"
    bag = BagOfWords.fit(sample.text[:300], sample.label[:300])
    terms = make_union(tfidf(lowercase=bag.lowercase), ngrams(bag.lowercase))
    theirs = make_pipeline(terms, LogisticRegression(C=bag.choices['C'], max_iter=1000)).fit(sample.text[:300], sample.label[:300])
    more = [*sample.text[300:], *scripts]
    close(bag.logits(more).softmax(1), theirs.predict_proba(more))
    assert bag.chars.sum()==len(terms.transformer_list[1][1].vocabulary_)

def test_character_ngrams_help_with_words_that_are_new():
    texts,labels = ['boring boredom tedious']*6 + ['enjoyed joyful delight']*6,['bad']*6 + ['good']*6
    assert BagOfWords.fit(texts, labels).predict(['bored', 'enjoyable', 'tediously'])==['bad','good','bad']
    assert (BagOfWords.fit(texts, labels, chars=False).logits(['bored', 'enjoyable'])==BagOfWords.fit(texts, labels, chars=False).bias).all()

def test_so_many_words_and_as_many_ngrams(sample):
    bag = BagOfWords.fit(sample.text[:100], sample.label[:100], max_terms=70)
    assert (bag.chars.sum(),(~bag.chars).sum())==(70,70)
    assert not any(o.startswith(' ') for o in bag.telling(bag.classes[0], 100))

@pytest.mark.parametrize('lowercase', [True,False])
def test_equal_on_every_script(lowercase):
    "Case, combining marks, spaces of all kinds, halves of surrogate pairs"
    texts,labels = scripts*2,[i%3 for i in range(2*len(scripts))]
    theirs = make_pipeline(tfidf(lowercase=lowercase), LogisticRegression(C=3., max_iter=1000)).fit(texts, labels)
    v,m = theirs[0],theirs[1]
    bag = BagOfWords(list(v.get_feature_names_out()), v.idf_, m.coef_.T, m.intercept_, [0,1,2], lowercase=lowercase)
    new = [a+' '+b for a in scripts for b in scripts[::-1]]
    close(bag.logits(new).softmax(1), theirs.predict_proba(new))

def test_equal_where_terms_are_left_out(sample):
    df  = sample[:300]
    bag = BagOfWords.fit(df.text, df.label, max_terms=500, chars=False)
    assert len(bag.number)==500
    df_of = tfidf(lowercase=bag.lowercase).fit(df.text)
    n_docs = dict(zip(df_of.get_feature_names_out(), (df_of.transform(df.text)>0).sum(0).A1))
    assert min(n_docs[o] for o in bag.number) >= max(n for o,n in n_docs.items() if o not in bag.number), 'those of the most texts are kept'
    theirs = make_pipeline(tfidf(lowercase=bag.lowercase, vocabulary=list(bag.number)), LogisticRegression(C=bag.choices['C'], max_iter=1000)).fit(df.text, df.label)
    close(bag.logits(sample.text[300:]).softmax(1), theirs.predict_proba(sample.text[300:]))

def make_topics(n=80):
    rng = np.random.default_rng(0)
    on = rng.random((n,3))<.5
    return [' '.join([t for t,o in zip(('film','plot','cast'), row) if o]+list(rng.choice('a the of to in'.split(), 5))) for row in on],[[c for c,o in zip('xyz', row) if o] for row in on]

def test_several_labels():
    texts,labels = make_topics()
    bag  = BagOfWords.fit(texts, labels, multi=True, chars=False)
    ones = [[int(c in o) for c in 'xyz'] for o in labels]
    theirs = make_pipeline(tfidf(lowercase=bag.lowercase), OneVsRestClassifier(LogisticRegression(C=bag.choices['C'], max_iter=1000))).fit(texts, np.array(ones))
    close(bag.logits(texts).sigmoid(), theirs.predict_proba(texts))
    assert bag.predict(texts)==labels and bag.choices['cv_accuracy']>.9

def test_several_labels_of_which_one_is_always_and_one_never():
    texts,labels = make_topics()
    bag = BagOfWords.fit(texts, [[*o,'always'] for o in labels], ['always','never','x','y','z'], multi=True)
    assert bag.predict(texts)==[['always',*o] for o in labels] and torch.isfinite(bag.logits(['',*scripts])).all()

def test_tokens_are_taken_as_they_are():
    "Marks of a tokenizer are terms; nothing is cut or made small"
    docs = [['xxmaj','good','isn\'t'], ['Bad','😀'], ['xxmaj','good'], ['Bad',' ']]*3
    bag  = BagOfWords.fit(docs, [1,0,1,0]*3)
    assert {'xxmaj good', 'good isn\'t', 'Bad', 'Bad 😀'} <= set(bag.number) and not bag.lowercase and bag.predict(docs)==[1,0,1,0]*3

# few texts

@pytest.mark.parametrize('labels', ['ab', 'aab', 'aabbb', 'aaaa', 'aaaab'*3, 'abcdefg'])
def test_few_texts(labels):
    "One text of a class, or one class only, is enough"
    texts = [f'text {o} {o}{o}' for o in labels]
    bag = BagOfWords.fit(texts, list(labels), list('abcdefgh'))
    assert bag.predict(texts)==list(labels) and torch.isfinite(bag.logits(['', 'other', *texts])).all()
    assert bag.logits(texts).softmax(1)[:,7].max()<1e-3, 'the class without a text'

@pytest.mark.parametrize('texts', [[''], ['','  '], [' ']*12])
def test_texts_without_words(texts):
    bag = BagOfWords.fit(texts, [i%2 for i in range(len(texts))])
    assert bag.logits(['a','']).shape==(2,len(bag.classes)) and bag.logits([]).shape==(0,len(bag.classes))

def test_no_texts():
    with raises('no texts'): BagOfWords.fit([], [])

def test_the_seed_of_others_is_left_alone(sample):
    torch.manual_seed(0); np.random.seed(0)
    a,b = torch.rand(1),np.random.rand()
    torch.manual_seed(0); np.random.seed(0)
    BagOfWords.fit(sample.text[:60], sample.label[:60]); fit_mixture(*voices(50))
    assert torch.rand(1)==a and np.random.rand()==b

# on disk

def test_round_trip(sample, tmp_path):
    bag = BagOfWords.fit([*sample.text[:200],*scripts], [*sample.label[:200],*['Notes']*len(scripts)])
    bag.save(tmp_path)
    new = BagOfWords.load(tmp_path)
    assert torch.equal(new.logits(sample.text), bag.logits(sample.text)) and torch.equal(new.logits(scripts), bag.logits(scripts))
    assert (new.classes,new.multi,new.lowercase,new.choices)==(bag.classes,bag.multi,bag.lowercase,bag.choices)
    assert {o.name for o in tmp_path.iterdir()}=={'words.json','words.safetensors'}

def cut(name): return lambda d: (d/name).write_bytes((d/name).read_bytes()[:-30])
def edit(**new): return lambda d: (d/'words.json').write_text(json.dumps({**json.loads((d/'words.json').read_text()), **new}))

@pytest.mark.parametrize('change,says', [
    (cut('words.json'), 'words.json cannot be read'), (cut('words.safetensors'), 'words.safetensors cannot be read'), (lambda d: (d/'words.json').unlink(), 'words.json cannot be read'),
    (lambda d: (d/'words.safetensors').unlink(), 'no weights at .*words.safetensors'), (edit(terms=None), 'words.json is damaged'), (edit(terms=['a']), 'do not belong together'),
    (edit(classes=['a']), 'do not belong together'), (lambda d: (d/'words.json').write_text('[]'), 'words.json is damaged')])
def test_damage_is_named(tmp_path, change, says):
    BagOfWords.fit(['good','bad']*6, ['a','b']*6).save(tmp_path)
    change(tmp_path)
    with raises(says): BagOfWords.load(tmp_path)

def test_no_sklearn_at_prediction(sample, tmp_path):
    BagOfWords.fit(sample.text[:60], sample.label[:60]).save(tmp_path)
    code = ("import sys; from ulmfit_ext.words import BagOfWords; BagOfWords.load(sys.argv[1]).predict(['a text'])\n"
            "print([o for o in ('sklearn','scipy','fastai','pandas','spacy') if o in sys.modules])")
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')])}
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path)], capture_output=True, text=True, env=env).stdout.strip()=='[]'

# weights and temperatures

def voices(n, seed=0, k=4, **strengths):
    "Outputs of voices that are right to different degrees, and the targets"
    g = torch.Generator().manual_seed(seed)
    targs = torch.randint(k, (n,), generator=g)
    return {name: s*F.one_hot(targs, k) + torch.randn(n, k, generator=g) for name,s in (strengths or dict(words=2, forward=2, backward=2)).items()},targs

def loss(outs, mixture, targs): return F.cross_entropy(together(outs, mixture)['all'], targs).item()

def test_noise_counts_little():
    outs,targs = voices(300, words=0, forward=2, backward=2)
    m = fit_mixture(outs, targs)
    assert m.weights['words']<.2 and abs(sum(m.weights.values())-1)<1e-6
    new,t = voices(3000, 1, words=0, forward=2, backward=2)
    assert loss(new, m, t) < loss(new, None, t)-.1

@pytest.mark.parametrize('n', [0, 1, 10, 19])
def test_few_texts_are_not_trusted(n):
    outs,targs = voices(n, words=0, forward=3, backward=3)
    assert fit_mixture(outs, targs)==equal_mixture(outs)

def test_weights_are_pulled_towards_equal_ones():
    "The fewer texts, the stronger; twenty do not silence a voice"
    def spread(n): return np.mean([np.std(list(fit_mixture(*voices(n, seed, words=0, forward=2, backward=2)).weights.values())) for seed in range(3)])
    assert spread(25)<spread(1000)
    assert all(min(fit_mixture(*voices(20, seed, words=0, forward=2, backward=2)).weights.values())>.02 for seed in range(5))

def test_temperatures_mend_a_voice_that_is_too_sure():
    outs,targs = voices(300)
    outs['words'] = 10*outs['words']
    m = fit_mixture(outs, targs)
    assert m.temperatures['words']>4*m.temperatures['forward']
    new,t = voices(3000, 1)
    new['words'] = 10*new['words']
    assert loss(new, m, t) < loss(new, None, t)-.1

def test_a_mean_of_sure_voices_is_sure_too():
    "Voices that are each as sure as they should be, and err in different places: so the temperature of the mean, whatever their weights"
    for n in (25, 300):
        outs,targs = voices(n, words=1, forward=2, backward=2)
        m = fit_mixture(outs, targs)
        new,t = voices(3000, 1, words=1, forward=2, backward=2)
        assert m.temperatures['all']<.9 and loss(new, m, t) < loss(new, m._replace(temperatures={**m.temperatures, 'all': 1.}), t)-.05

@pytest.mark.parametrize('n', [20, 60, 200])
def test_never_much_worse_than_equal_weights(n):
    for seed in range(4):
        outs,targs = voices(n, seed, words=1.5, forward=2, backward=1.)
        new,t = voices(2000, 100+seed, words=1.5, forward=2, backward=1.)
        assert loss(new, fit_mixture(outs, targs), t) < loss(new, None, t)+.02

def test_mixture_of_several_labels():
    g = torch.Generator().manual_seed(0)
    targs = (torch.rand(300, 5, generator=g)<.3).float()
    outs = {k: s*(2*targs-1) + torch.randn(300, 5, generator=g) for k,s in dict(words=0., forward=1.5, backward=1.5).items()}
    m = fit_mixture(outs, targs, True)
    assert m.weights['words']<.1
    a,b = [F.binary_cross_entropy_with_logits(together(outs, o, True)['all'], targs) for o in (m,None)]
    assert a<b

def test_outputs_without_end():
    "A voice that is certain and wrong costs no more than its weight"
    z = torch.tensor([[1e4,-1e4]])
    assert torch.isfinite(mean_logits([z,-z], False, [.9,.1], [1,1])).all()
    outs = dict(words=1e4*F.one_hot(torch.arange(40)%2).float(), forward=torch.zeros(40,2))
    m = fit_mixture(outs, torch.arange(40)%2)
    assert np.isfinite([*m.weights.values(), *m.temperatures.values()]).all()

def test_verdict():
    assert verdict(dict(words=.79, forward=.8, backward=.82, both=.85, all=.871)).startswith('All three together are right in 87.1 %')
    assert verdict(pd.Series(dict(words=.9, forward=.8, all=.85)))=='Counting words alone is right in 90.0 %, both together in 85.0 %, reading forward in 80.0 %.'
    assert verdict(dict(forward=.8))=='' and 'words' not in verdict(dict(forward=.8, backward=.7, both=.8))

# on real text

@pytest.mark.skipif('ULMFIT_DATA' not in os.environ, reason='needs a folder with trec6.jsonl.gz')
def test_trec6():
    "500 labels: tokens of the library's tokenizer do no worse than the raw text"
    from ulmfit_ext.text.tokens import TextProcessor
    df = read_table(Path(os.environ['ULMFIT_DATA'])/'trec6.jsonl.gz')
    train,test = df[df.split=='train'].sample(500, random_state=0),df[df.split=='test']
    tp = TextProcessor()
    raw,tokens = [np.mean(np.array(BagOfWords.fit(a, train.label).predict(b))!=test.label) for a,b in
                  ((train.text,test.text), (tp.tokenize(train.text, False),tp.tokenize(test.text, False)))]
    assert .2<raw<.27 and tokens<raw+.02

def test_more_labels_help_or_do_not():
    rng = np.random.default_rng(0)
    labels = list(rng.integers(0, 2, 160))
    vocab  = np.array([''.join(rng.choice([*'abcdefghijklmnop'], 8)) for _ in range(300)]).reshape(2, 150)
    texts  = [' '.join(vocab[y, rng.integers(0, 150, 2)]) for y in labels] # rare words: each label tells of some more
    curve  = learning_curve(texts, labels)
    assert list(curve)==[.25,.5,1.] and curve[.25]<curve[1.]
    assert next_doubling({.5:.7,1.:.75}, 3000).startswith('Twice as many labels may bring about 4 points: ') # the error falls by a sixth, and so once more
    assert next_doubling({.5:.8,1.:.95}, 3000).startswith('Twice as many labels may bring about 4 points: '), 'no more than there is'
    assert next_doubling({.5:1.,1.:1.}, 3000).startswith('More labels may bring little')
    assert next_doubling({.5:.9,1.:1.}, 20).startswith('20 labels are too few to tell')
    assert '75.0%' in next_doubling({.5:.7,1.:.75}, 3000)
    assert next_doubling({.5:.7,1.:.701}, 3000).startswith('More labels may bring little') and next_doubling({1.:.7}, 3000)==''
    for half in (.51,.55): assert next_doubling({.5:half,1.:.53}, 160).startswith('160 labels are too few to tell')
    assert learning_curve(texts[:15], labels[:15])=={} and learning_curve(['a']*5001, [0]*5001)=={}

# Texts without a label

def related_words(n, seed=0):
    "Texts of two topics, each word of one topic; which words go together is seen without labels"
    rng = np.random.default_rng(seed)
    topics = [[f'{name}{i}' for i in range(200)] for name in ('sea','sky')]
    y = rng.integers(0, 2, n)
    return [list(rng.choice(topics[i], 6)) for i in y],[('sea','sky')[i] for i in y]

def test_texts_without_a_label_relate_words():
    texts,labels = related_words(1012)
    train,rest,tests = texts[:12],texts[12:812],texts[812:]
    def _wrong(bag): return sum(a!=b for a,b in zip(bag.predict(tests), labels[812:]))
    alone = BagOfWords.fit(train, labels[:12], chars=False)
    more  = BagOfWords.fit(train, labels[:12], chars=False, unlabelled=rest)
    assert more.choices['directions']>0 and 'directions' not in alone.choices
    assert _wrong(alone)>20 and _wrong(more)<4
    assert len(more.number)>2*len(alone.number) # terms that no text with a label holds

def test_directions_are_folded_into_coefficients(tmp_path):
    from ulmfit_ext.words import _count,_fold_in,_keep,_latent,_tfidf,_with_directions
    texts,labels = related_words(300)
    terms,chars,counts = _count(texts, False, False)
    keep,idf,directions = _latent(counts, chars, 100, _keep(counts[:100], 100_000, chars), 100_000)
    X    = _tfidf(counts[:,keep], idf, chars[keep])
    coef = np.random.default_rng(0).normal(size=(X.shape[1]+directions.shape[1], 2))
    np.testing.assert_allclose(_with_directions(X, directions)@coef, X@_fold_in(coef, directions), atol=1e-9)
    lengths = np.sqrt(np.square(X[100:]@directions).sum(1).mean())
    assert abs(lengths-2)<1e-9
    bag = BagOfWords.fit(texts[:100], labels[:100], unlabelled=texts[100:])
    bag.save(tmp_path)
    assert torch.equal(BagOfWords.load(tmp_path).logits(texts), bag.logits(texts))

@pytest.mark.parametrize('rest', [[], ['one'], [''], None])
def test_too_few_texts_without_a_label_change_nothing(rest):
    texts,labels = related_words(40)
    alone,more = [BagOfWords.fit(texts, labels, unlabelled=o) for o in (None,rest)]
    assert torch.equal(alone.coef, more.coef)

def test_empty_texts_without_a_label():
    texts,labels = related_words(20)
    bag = BagOfWords.fit(texts, labels, unlabelled=[['']]*50+[[]]*50)
    assert bag.logits(texts).isfinite().all()

@pytest.mark.parametrize('wrong', ['a text', b'bytes', 5, pd.DataFrame(dict(text=['a']))])
def test_no_list_of_texts_at_the_door(wrong):
    with pytest.raises(UlmfitError, match='^expected a list of texts and got'): BagOfWords.fit(wrong, ['x','y'])
    with pytest.raises(UlmfitError, match='unlabelled: expected a list of texts and got'): BagOfWords.fit(['a','b'], ['x','y'], unlabelled=wrong)

def test_one_long_text_without_a_label_costs_no_other():
    from ulmfit_ext.words import _some
    texts = [['a']*10]*20 + [['b']*1000]
    assert len(_some(texts, 500))==20

@pytest.mark.parametrize('dense', [True,False])
def test_row_space_is_the_same_regression(dense):
    from scipy.sparse import csr_matrix
    from ulmfit_ext.logistic import _row_space
    X = np.random.default_rng(0).normal(size=(30,200))
    X = np.concatenate([X, X[:5], np.zeros((1,200))]) # five texts twice, and an empty one
    F,back = _row_space(X if dense else csr_matrix(X))
    assert F.shape==(36,30)
    np.testing.assert_allclose(F@F.T, X@X.T, atol=1e-8)
    w = np.random.default_rng(1).normal(size=(30,2))
    np.testing.assert_allclose(X@back(w), F@w, atol=1e-8)

def test_empty_texts_have_a_bias():
    from scipy.sparse import csr_matrix
    from ulmfit_ext.logistic import regressions
    (coef,bias), = regressions(csr_matrix((6,300)), np.eye(2)[[0]*4+[1]*2], np.ones(6), [1])
    assert bias[0]>bias[1] and not coef.any()
