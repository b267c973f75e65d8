"Statistics against theory, brute force, and other people's implementations."
import itertools, time

import numpy as np, pandas as pd, pytest
from hypothesis import given, strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from tsynd.core import metrics
from tsynd.core import InputError
from tsynd.experiments import (
    auc, averages, class_profile, COLUMNS, differences, HEADLINE, headline, holm, image_bootstrap,
    IMAGE_MEASURES, in_order, pairs, questions, score, sign_flip, smallest_p, stored_predictions,
    t_interval, tidy)

finite = st.floats(-1, 1, allow_nan=False).map(lambda v: round(v, 6))
samples = st.lists(finite, min_size=2, max_size=9)


def table(values, dataset='d', n=50, condition='clean', measure='auc'):
    "Results of {arm: [value of seed 0, 1, …]}; None leaves the row out"
    return pd.DataFrame([(dataset, n, a, s, condition, measure, v) for a, vs in values.items() for s, v in enumerate(vs) if v is not None], columns=COLUMNS)

def results(*tables): return tidy(pd.concat(tables))


# The table

def test_tidy_brings_one_form():
    r = tidy(table(dict(b=[.5, .6], a=[.1, .2])).assign(value=['.5', ' ', None, '.2'], seed=['1', '0', '0', '1']))
    assert r.arm.tolist() == ['a', 'a', 'b', 'b'] and r.seed.tolist() == [0, 1, 0, 1]
    assert r.value[[1, 3]].tolist() == [.2, .5] and r.value[[0, 2]].isna().all() and (r.n == '50').all()

@pytest.mark.parametrize('change, said', [
    (lambda r: r.drop(columns='seed'), 'no column seed'), (lambda r: r.assign(value='high'), "value = 'high', expected a number"),
    (lambda r: r.assign(value=np.inf), 'value = inf'), (lambda r: r.assign(seed=.5), 'seed = 0.5, expected a whole number'),
    (lambda r: r.assign(seed=''), "seed = ''"), (lambda r: r.assign(n='half'), "n = 'half', expected a number of images or full"),
    (lambda r: r.assign(n=0), "n = '0'"), (lambda r: pd.concat([r, r]), 'd · 50 · a · 0 · clean · auc twice')])
def test_bad_tables_are_refused(change, said):
    with pytest.raises(InputError) as e: tidy(change(table(dict(a=[.5, .6]))))
    assert said in str(e.value) and '\n' not in str(e.value)

def test_sizes_are_ordered_as_numbers():
    assert in_order(['full', 200, '50', '1000', 50]) == ['50', '200', '1000', 'full']
    r = results(*(table(dict(a=[.5, .6], baseline=[.4, .3]), n=n) for n in ('full', 1000, 50, 20000)))
    for t in (r, averages(r), differences(r)): assert t.n.drop_duplicates().tolist() == ['50', '1000', '20000', 'full']


# Pairs

def test_pairs_ignore_the_order_of_rows():
    g = np.random.default_rng(0)
    r = results(*(table({a: g.random(8) for a in ('a', 'b', 'c')}, n=n) for n in (50, 100)))
    one = pairs(r, 'a', 'b', 'clean', 'auc', 'd', (50, 100))
    for s in range(5):
        again = pairs(r.sample(frac=1, random_state=s), 'a', 'b', 'clean', 'auc', 'd', ('100', 50))
        assert again.index.tolist() == list(range(8)) and np.allclose(again, one, atol=1e-15)
        pd.testing.assert_frame_equal(differences(tidy(r.sample(frac=1, random_state=s)), 'b'), differences(r, 'b'))
    wide = r.pivot(index='seed', columns=['arm', 'n'], values='value')
    assert np.allclose(one.difference, (wide['a']-wide['b']).mean(axis=1))

def test_the_seed_is_what_pairs():
    r = table(dict(a=[.1, .2, .3], b=[.1, .2, .3]))
    r.loc[r.arm == 'b', 'seed'] = [2, 0, 1]
    assert np.allclose(pairs(tidy(r), 'a', 'b', 'clean', 'auc', 'd', 50).difference, [-.1, -.1, .2])

def test_seeds_that_one_arm_lacks_are_left_out_and_counted():
    r = results(table(dict(a=[.5, .6, .7, .8], b=[.4, None, np.nan, .6])), table(dict(a=[.5, .6, .7, None], b=[.5]*4), n=100))
    d = pairs(r, 'a', 'b', 'clean', 'auc', 'd', 50)
    assert d.index.tolist() == [0, 3] and d.attrs['unpaired'] == [1, 2] and np.allclose(d.difference, [.1, .2])
    d = pairs(r, 'a', 'b', 'clean', 'auc', 'd', [50, 100])
    assert d.index.tolist() == [0] and d.attrs['unpaired'] == [1, 2, 3] and np.allclose(d.difference, .05)
    assert headline(r, [('a', 'b', 'clean', 'auc', 50)])[['seeds', 'unpaired']].values.tolist() == [[2, 2]]

@pytest.mark.parametrize('how, said', [(dict(arm='x'), "arm 'x' is not in the results"), (dict(reference='x'), "arm 'x' is"), (dict(dataset='x'), "dataset 'x' is not in the results of 50 · clean · auc, expected one of d"),
    (dict(n=70), "n '70' is not in the results of d"), (dict(condition='x'), "condition 'x' is"), (dict(measure='x'), "measure 'x' is"),
    (dict(reference='late'), 'a and late have no seed in common on d · 50 · clean · auc')])
def test_what_is_not_there_is_named(how, said):
    r = results(table(dict(a=[.5, .6, .7], b=[.5, .5, .5], late=[None, None, None, .5])))
    with pytest.raises(InputError, match=said): pairs(r, **dict(dict(arm='a', reference='b', condition='clean', measure='auc', dataset='d', n=50), **how))


# Over the seeds

@given(samples, st.floats(.5, .99))
def test_t_interval_is_that_of_scipy(d, level):
    se = stats.sem(d)
    want = stats.t.interval(level, len(d)-1, np.mean(d), se) if se > 0 else (d[0], d[0])
    assert np.allclose(t_interval(d, level), want, atol=1e-9)

@pytest.mark.parametrize('k', [3, 5, 10])
@pytest.mark.parametrize('level', [.8, .95])
def test_t_interval_covers_as_often_as_it_says(k, level):
    draws = np.random.default_rng(k).normal(.3, 2, (5000, k))
    covered = np.mean([lo <= .3 <= hi for lo, hi in (t_interval(d, level) for d in draws)])
    assert abs(covered-level) < 4*(level*(1-level)/5000)**.5

@pytest.mark.parametrize('test', [t_interval, sign_flip])
@pytest.mark.parametrize('d', [[], [.1], [.1, np.nan], [[.1, .2]]])
def test_no_spread_no_inference(test, d):
    with pytest.raises(InputError): test(d)

@given(samples)
def test_sign_flip_is_the_share_of_all_sign_patterns(d):
    sums = [abs(sum(s*v for s, v in zip(signs, d))) for signs in itertools.product((1, -1), repeat=len(d))]
    assert sign_flip(d) == np.mean(np.array(sums) >= abs(sum(d)) - 1e-9*sum(map(abs, d)))

@given(samples)
def test_sign_flip_knows_no_unit_and_no_direction(d):
    d = np.array(d)
    assert sign_flip(d) == sign_flip(-d) == sign_flip(d[::-1]) == sign_flip(d*1e3)

@pytest.mark.parametrize('d, p', [([1, 1, 1, 1], 2/16), ([3, 1, 1, -1], 8/16), ([0, 0], 1), ([0, 5], 1), ([.3, -.1, -.2], 1), ([1, 2, 3, 4, 5, 6, 7, 8, 9, -1], 6/1024)])
def test_sign_flip_by_hand(d, p): assert sign_flip(d) == p

def test_five_seeds_can_never_be_significant():
    assert sign_flip([1e3]*5) == smallest_p(5) == .0625 and sign_flip([1e3]*6) == smallest_p(6) < .05

def test_many_seeds_are_drawn():
    d = np.random.default_rng(0).normal(.25, 1, 20)
    exact = sign_flip(d)
    assert exact*2**19 == round(exact*2**19)
    more = np.append(d, 0.)                                # a zero changes no sum
    assert abs(sign_flip(more)-exact) < 5*(exact*(1-exact)/1e5)**.5 and sign_flip(more) == sign_flip(more)
    assert sign_flip(np.ones(40)) == smallest_p(40) > 0


# Holm

def test_holm_by_hand():
    assert np.allclose(holm([.01, .04, .03, .005]), [.03, .06, .06, .02])   # the example of statsmodels' and R's documentation
    assert holm([]).tolist() == [] and holm([.3]).tolist() == [.3] and holm([.5, .5, .5]).tolist() == [1, 1, 1]

@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p):
    "A hypothesis is rejected if every set of hypotheses that holds it is rejected by Bonferroni"
    m, got = range(len(p)), holm(p)
    want = [max(min(1, len(s)*min(p[i] for i in s)) for r in m for s in itertools.combinations(m, r+1) if k in s) for k in m]
    assert np.allclose(got, want)

@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_keeps_order_and_place(p, random):
    got, order = holm(p), list(range(len(p)))
    random.shuffle(order)
    assert (got >= p).all() and (got <= 1).all() and (got <= np.minimum(1, np.array(p)*len(p)) + 1e-12).all()
    assert (np.diff(got[np.argsort(p, kind='stable')]) >= 0).all()
    assert holm([p[i] for i in order]).tolist() == got[order].tolist()

@pytest.mark.parametrize('p', [[-.1], [1.1], [np.nan], [[.1]]])
def test_holm_wants_probabilities(p):
    with pytest.raises(InputError): holm(p)

def test_family_wise_error():
    "With no effect anywhere, even one false yes is rare"
    draws = np.random.default_rng(0).normal(0, 1, (1000, 3, 8))
    assert np.mean([min(holm([sign_flip(d) for d in s])) <= .05 for s in draws]) < .05 + 3*(.05*.95/1000)**.5


# The family

def test_default_family_asks_what_can_be_asked():
    arms = sorted({a for c in HEADLINE for a in c[:2]})
    cells = [table({a: [.5, .6] for a in arms}, d, n, c, m) for d in 'de' for n in (50, 100, 'full') for c in ('clean', 'corrupted', 'PGD 4/255') for m in ('auc', 'balanced_accuracy')]
    q = questions(results(*cells))
    assert len(q) == 2*len(HEADLINE) <= .05/smallest_p(10) and {x[5] for x in q} == {('50', '100')}
    no_pgd = [t for t in cells if t.condition[0] != 'PGD 4/255']
    assert len(questions(results(*no_pgd))) == 2*(len(HEADLINE)-2)
    assert {x[5] for x in questions(results(*(t for t in cells if t.n[0] == 'full')))} == {('full',)}
    assert questions(results(*cells), [['mi', 'pgd', 'clean', 'auc', 'full', ['e']], ['mi', 'pgd', 'clean', 'auc', [100, 50]]]) == [
        ('mi', 'pgd', 'clean', 'auc', 'e', ('full',)), *(('mi', 'pgd', 'clean', 'auc', d, ('50', '100')) for d in 'de')]

@pytest.mark.parametrize('family, said', [(['mi'], 'expected \\[arm, reference'), ([['mi', 'b', 'clean']], 'expected'), ([['a']*4], 'compares an arm with itself'), ([['a', 'b', 1, 'auc']], 'expected'),
    ([['a', 'b', 'clean', 'auc']]*2, 'is there twice'), ([['a', 'b', 'clean', 'auc', 50, 'd'], ['a', 'b', 'clean', 'auc']], 'is there twice'), (None, 'declare some under headline')])
def test_bad_families_are_refused(family, said):
    with pytest.raises(InputError, match=said): questions(results(table(dict(a=[.5, .6], b=[.1, .2]))), family)

def test_headline_is_made_of_its_parts():
    g = np.random.default_rng(2)
    r = results(*(table({a: g.normal(.7, .1, 8) for a in 'abc'}, n=n) for n in (50, 100)))
    t = headline(r, [('a', 'b', 'clean', 'auc'), ('a', 'c', 'clean', 'auc'), ('b', 'c', 'clean', 'auc', 100)], level=.9)
    d = [pairs(r, x, y, 'clean', 'auc', 'd', n).difference for x, y, n in (('a', 'b', (50, 100)), ('a', 'c', (50, 100)), ('b', 'c', 100))]
    assert t.n.tolist() == ['50, 100']*2 + ['100'] and np.allclose(t.difference, [v.mean() for v in d]) and np.allclose(t.sd, [v.std() for v in d])
    assert np.allclose(t[['lo', 'hi']], [t_interval(v, .9) for v in d]) and t.p.tolist() == [sign_flip(v) for v in d]
    assert t.p_holm.tolist() == holm(t.p).tolist() and t.possible.tolist() == [3/128]*3
    assert np.allclose(t.arm_mean-t.reference_mean, t.difference) and t.image_lo.isna().all()


def test_what_was_possible_is_holm_of_the_least_p():
    g = np.random.default_rng(0)
    many = {a: 10*i + g.random(10) for i, a in enumerate('abc')}
    r = results(table(many | dict(late=[*(100 + g.random(9)), None])))
    t = headline(r, [[x, y, 'clean', 'auc'] for x, y in itertools.combinations(['a', 'b', 'c', 'late'], 2)])
    assert t.seeds.tolist() == [10, 10, 9, 10, 9, 9] and (t.p_holm == t.possible).all()   # effects as clear as can be reach it
    assert t.possible.tolist() == [6/512]*2 + [3/256] + [6/512] + [3/256]*2
    g = headline(results(table(dict(a=g.random(10), b=g.random(10)))), [['a', 'b', 'clean', 'auc']])
    assert (g.possible <= g.p_holm).all() and g.possible[0] == 1/512


# Over the images

@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
def test_auc_is_that_of_scikit_learn(rows):
    s, y, w = (np.array(c) for c in zip(*rows))
    w2 = np.stack([np.ones_like(w), w], 1)
    got = auc(s/5, y, w2.astype(float))
    for v, weights in zip(got, w2.T):
        if len(set(y[weights > 0])) == 2: assert np.isclose(v, roc_auc_score(y, s, sample_weight=weights))
        else: assert np.isnan(v)

def networks(n=200, seeds=3, C=2, clear=1., seed=0):
    g = np.random.default_rng(seed)
    y = np.arange(n) % C
    z = clear*np.eye(C)[y] + g.normal(0, 1, (n, C)) + g.normal(0, .5, (seeds, n, C))
    return np.exp(z)/np.exp(z).sum(-1, keepdims=True), y

@pytest.mark.parametrize('C', [2, 3, 5])
def test_score_is_the_mean_of_the_projects_metrics(C):
    p, y = networks(C=C)
    own = pd.DataFrame([metrics(y, q, 'multi-class' if C > 2 else 'binary-class') for q in p]).mean()
    for m in IMAGE_MEASURES: assert np.isclose(score(p, y, m)[0], own[m])

def test_score_of_several_labels():
    g = np.random.default_rng(0)
    y = g.integers(0, 2, (100, 4)).astype(float)
    p = np.clip(.3*y + .7*g.random((3, 100, 4)), 0, 1)
    own = pd.DataFrame([metrics(y, q, 'multi-label, binary-class') for q in p]).mean()
    for m in IMAGE_MEASURES: assert np.isclose(score(p, y, m)[0], own[m])
    w = g.integers(0, 3, 100)
    rep = np.repeat(np.arange(100), w)
    for m in IMAGE_MEASURES: assert np.isclose(score(p, y, m, w[:, None].astype(float))[0], score(p[:, rep], y[rep], m)[0])

@pytest.mark.parametrize('measure', IMAGE_MEASURES)
@pytest.mark.parametrize('C', [2, 4])
def test_weights_are_repetitions(measure, C):
    p, y = networks(C=C)
    w = np.random.default_rng(1).multinomial(200, np.full(200, 1/200), 3).T.astype(float)
    for v, column in zip(score(p, y, measure, w), w.T.astype(int)):
        i = np.repeat(np.arange(200), column)
        assert np.isclose(v, score(p[:, i], y[i], measure)[0])

def half(interval): return (interval[2]-interval[1])/2/1.96

def test_bootstrap_against_the_standard_error_of_a_proportion():
    p, y = networks(n=400, seeds=1)
    never = np.eye(2)[1-y][None]
    share, lo, hi = image_bootstrap(p, never, y, 'accuracy', replicates=4000)
    assert share == (p[0].argmax(1) == y).mean()
    assert abs(half((share, lo, hi))/(share*(1-share)/400)**.5 - 1) < .06 and abs((lo+hi)/2-share) < .01
    other, _ = networks(n=400, seeds=1, seed=5)                    # two networks: a mean of -1, 0 and 1
    d = (other[0].argmax(1) == y)*1. - (p[0].argmax(1) == y)
    assert abs(half(image_bootstrap(other, p, y, 'accuracy', replicates=4000))/(d.std()/20) - 1) < .06

def delong(p, y):
    "Placement values of each network on both sides, and from them the variance of an AUC (DeLong et al. 1988)"
    pos, neg = p[:, y == 1, 1], p[:, y == 0, 1]
    k = (pos[:, :, None] > neg[:, None]) + .5*(pos[:, :, None] == neg[:, None])
    return k.mean(2), k.mean(1)

def test_bootstrap_against_delong():
    (a, y), (b, _) = networks(n=300, clear=1.4), networks(n=300, clear=.9)   # the same images, so the two are correlated
    (a1, a0), (b1, b0) = delong(a, y), delong(b, y)
    v1, v0 = (a1-b1).mean(0), (a0-b0).mean(0)
    got = image_bootstrap(a, b, y, 'auc', replicates=4000)
    assert np.isclose(got[0], v1.mean())
    assert abs(half(got)/(v1.var(ddof=1)/len(v1) + v0.var(ddof=1)/len(v0))**.5 - 1) < .08

def test_bootstrap_is_paired_seeded_and_signed():
    (a, y), (b, _) = networks(), networks(clear=1.5, seed=3)
    assert image_bootstrap(a, a, y) == (0, 0, 0)
    assert image_bootstrap(a, b, y) == image_bootstrap(a, b, y) != image_bootstrap(a, b, y, seed=1)
    d, lo, hi = image_bootstrap(a, b, y)
    assert np.allclose(image_bootstrap(b, a, y), (-d, -hi, -lo)) and lo < d < hi
    assert half(image_bootstrap(a, b, y, level=.5)) < half((d, lo, hi))
    order = np.random.default_rng(0).permutation(3)
    assert np.allclose(image_bootstrap(a[order], b, y), (d, lo, hi))

def test_bootstrap_in_pieces_is_the_bootstrap(monkeypatch):
    from tsynd import statistics
    whole = np.concatenate(list(statistics._drawings(50, 400, 3)), 1)
    pieces = list(statistics._drawings(50, 400, 3, most=1000))
    assert len(pieces) == 20 and np.array_equal(np.concatenate(pieces, 1), whole) and (whole.sum(0) == 50).all()

def test_bootstrap_is_fast():
    a, y = networks(624, 10)
    start = time.process_time()
    image_bootstrap(a, a**2/(a**2).sum(-1, keepdims=True), y)
    assert time.process_time()-start < 10

def test_rare_class_is_refused():
    p, _ = networks(100)
    with pytest.raises(InputError, match='too few test images'): image_bootstrap(p, p, np.r_[1, np.zeros(99, int)])

@pytest.mark.parametrize('how, said', [(dict(p_arm='logits'), 'are they logits'), (dict(p_reference='fewer'), 'the same seeds and images'), (dict(y=np.zeros(7)), 'as there are 7 labels'),
                                       (dict(measure='nll'), "'nll' cannot be bootstrapped"), (dict(replicates=5), 'replicates is 5'), (dict(level=1.5), 'level is 1.5'), (dict(p_arm='nan'), 'not all between')])
def test_bootstrap_refuses(how, said):
    p, y = networks()
    special = dict(logits=p*3, fewer=p[:2], nan=np.where(p > .9, np.nan, p))
    kw = {k: special.get(v, v) if isinstance(v, str) else v for k, v in how.items()}
    with pytest.raises(InputError, match=said): image_bootstrap(**dict(dict(p_arm=p, p_reference=p, y=y), **kw))


def study():
    "Cells and predictions whose probabilities tell which cell they are of"
    rows = [dict(id=f'{n}-{a}-{s}', dataset='d', n=n, arm=a, seed=s) for n in (50, 'full') for a in 'ab' for s in range(3)]
    return pd.DataFrame(rows), {r['id']: (np.arange(6) % 2, np.full((6, 2), i/100)) for i, r in enumerate(rows)}

def test_stored_predictions_are_those_of_the_cells():
    cells, kept = study()
    find = stored_predictions(cells.sample(frac=1, random_state=0), kept)
    a, b, y = find('d', 50, 'a', 'b', [2, 0])
    assert a[:, 0, 0].tolist() == [.02, .0] and b[:, 0, 0].tolist() == [.05, .03] and y.tolist() == [0, 1]*3
    assert find('d', ('50', 'full'), 'a', 'b', np.array([1]))[0][:, 0, 0].tolist() == [.01, .07]
    with pytest.raises(InputError, match='no predictions of d · 50 · c · 0'): find('d', 50, 'c', 'b', [0])
    kept['full-b-1'] = (np.arange(6) // 3, kept['full-b-1'][1])
    with pytest.raises(InputError, match='different test labels'): find('d', 'full', 'a', 'b', [1])

def test_headline_asks_for_images_only_where_they_were_kept():
    asked = []
    p, y = networks()
    def find(*what): asked.append(what); return p, p, y
    r = results(*(table(dict(a=[.5, .6, .7], b=[.5, .5, None]), condition=c, measure=m) for c in ('clean', 'PGD 4/255') for m in ('auc', 'ece')))
    t = headline(r, [('a', 'b', c, m) for c in ('clean', 'PGD 4/255') for m in ('auc', 'ece')], find)
    assert len(asked) == 1 and asked[0][:4] == ('d', ('50',), 'a', 'b') and list(asked[0][4]) == [0, 1]
    assert t.image_lo.notna().tolist() == [True, False, False, False]


# Description

def test_differences_are_those_of_the_pairs():
    g = np.random.default_rng(0)
    r = results(*(table({a: g.random(5) if a != 'c' else [.5, None, np.nan, .2, .1] for a in ('baseline', 'a', 'c')}, n=n, measure=m) for n in (50, 'full') for m in ('auc', 'ece')))
    t = differences(r)
    assert len(t) == 8 and set(t.arm) == {'a', 'c'} and t.seeds[t.arm == 'c'].eq(3).all()
    for x in t.itertuples():
        d = pairs(r, x.arm, 'baseline', x.condition, x.measure, x.dataset, x.n).difference
        assert np.isclose(x.difference, d.mean()) and np.isclose(x.sd, d.std()) and np.allclose((x.lo, x.hi), t_interval(d))
        good = 1 if x.measure == 'auc' else -1
        assert x.worse == (good*d < 0).sum() and x.loses == (good*d.mean() < 0)

def test_cost_is_neither_better_nor_worse():
    t = differences(results(table(dict(baseline=[1, 2], a=[3, 4]), measure='seconds'), table(dict(baseline=[4, 5], a=[3, 4]), measure='images_seen')))
    assert not t.loses.any() and (t.worse == 0).all()

def test_an_equal_arm_does_not_lose():
    t = differences(results(table(dict(baseline=[.5, .5], a=[.5, .5]))))
    assert not t.loses.any() and t.loc[0, ['lo', 'hi']].tolist() == [0, 0]

def test_differences_need_their_baseline():
    with pytest.raises(InputError, match="arm 'baseline' is not in the results"): differences(results(table(dict(a=[1], b=[1]))))
    with pytest.raises(InputError, match='no arm has a seed in common'): differences(results(table(dict(baseline=[1], b=[None, 1]))))

def test_averages():
    t = averages(results(table(dict(a=[.1, .3, np.nan], b=[.2])))).set_index('arm')
    assert np.allclose(t.loc['a', ['mean', 'sd', 'seeds']].astype(float), [.2, .02**.5, 2]) and np.isnan(t.sd['b'])

def test_class_profile():
    p = np.array([[.9, .1], [.6, .4], [.2, .8], [.7, .3], [.4, .6]])
    y = np.array([0, 0, 1, 1, 1])
    t = class_profile(np.stack([p, p[:, ::-1]]), y, ['benign', 'malignant'])
    assert t.share.tolist() == [.4, .6] and np.allclose(t.called, [(.6+.4)/2, (.4+.6)/2]) and np.allclose(t.recall, [.5, .5])
    one = class_profile(p[None], y)
    assert np.allclose(one.recall, [1, 2/3]) and np.allclose(one.called, [.6, .4])
    at = one.threshold[1]
    assert (p[:, 1] > at).mean() == .6 and at < .5          # calls too few, so its threshold should be lower
    several = class_profile(p[None], np.array([[1, 0]]*4 + [[1, 1]]))
    assert np.allclose(several.share, [1, .2]) and np.allclose(several.called, [.6, .4]) and np.allclose(several.recall, [.6, 1])
