"Intervals and tests against theory, brute force, and other people's implementations."
import itertools, time

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from refused import refused
from tsynd.core import metrics
from tsynd.data import stratified_order
from tsynd.experiments import (
    auc, class_profile, holm, image_bootstrap, IMAGE_MEASURES, score, sign_flip, smallest_p, t_interval)

finite = st.floats(-1, 1, allow_nan=False).map(lambda v: round(v, 6))
samples = st.lists(finite, min_size=2, max_size=9)


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
@pytest.mark.parametrize('d, field, found', [([], 'seeds', 0), ([.1], 'seeds', 1),
                                             ([.1, np.nan], 'differences', (2,)),
                                             ([[.1, .2]], 'differences', (1, 2))])
def test_no_spread_no_inference(test, d, field, found):
    with refused(field, found=found): test(d)

@given(samples)
def test_sign_flip_is_the_share_of_all_sign_patterns(d):
    sums = [abs(sum(s*v for s, v in zip(signs, d))) for signs in itertools.product((1, -1), repeat=len(d))]
    assert sign_flip(d) == np.mean(np.array(sums) >= abs(sum(d)) - 1e-9*sum(map(abs, d)))

@given(samples)
def test_sign_flip_knows_no_unit_and_no_direction(d):
    d = np.array(d)
    assert sign_flip(d) == sign_flip(-d) == sign_flip(d[::-1]) == sign_flip(d*1e3)

@pytest.mark.parametrize('d, p', [([1, 1, 1, 1], 2/16), ([3, 1, 1, -1], 8/16), ([0, 0], 1), ([0, 5], 1),
                                  ([.3, -.1, -.2], 1), ([1, 2, 3, 4, 5, 6, 7, 8, 9, -1], 6/1024)])
def test_sign_flip_by_hand(d, p): assert sign_flip(d) == p

def test_five_seeds_can_never_be_significant():
    assert sign_flip([1e3]*5) == smallest_p(5) == .0625 and sign_flip([1e3]*6) == smallest_p(6) < .05

def test_many_seeds_are_drawn():
    d = np.random.default_rng(0).normal(.25, 1, 16)
    exact = sign_flip(d)
    assert exact*2**15 == round(exact*2**15)
    more = np.append(d, 0.)                                # a zero changes no sum
    assert abs(sign_flip(more)-exact) < 5*(2*exact/1e5)**.5                # twice the smaller tail
    assert sign_flip(more) == sign_flip(more)
    assert smallest_p(16) == 2**-15 > smallest_p(17) == smallest_p(40) == sign_flip(np.ones(40)) > 0


# Holm

def test_holm_by_hand():
    assert np.allclose(holm([.01, .04, .03, .005]), [.03, .06, .06, .02])   # as R's p.adjust says
    assert holm([]).tolist() == [] and holm([.3]).tolist() == [.3]
    assert holm([.5, .5, .5]).tolist() == [1, 1, 1]

@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p):
    "A hypothesis is rejected if every set of hypotheses that holds it is rejected by Bonferroni"
    m, got = range(len(p)), holm(p)
    sets = [s for r in m for s in itertools.combinations(m, r+1)]
    bonferroni = {s: min(1, len(s)*min(p[i] for i in s)) for s in sets}
    assert np.allclose(got, [max(bonferroni[s] for s in sets if k in s) for k in m])

@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_keeps_order_and_place(p, random):
    got, order = holm(p), list(range(len(p)))
    random.shuffle(order)
    assert (got >= p).all() and (got <= 1).all() and (got <= np.minimum(1, np.array(p)*len(p)) + 1e-12).all()
    assert (np.diff(got[np.argsort(p, kind='stable')]) >= 0).all()
    assert holm([p[i] for i in order]).tolist() == got[order].tolist()

@pytest.mark.parametrize('p', [[-.1], [1.1], [np.nan], [[.1]]])
def test_holm_wants_probabilities(p):
    with refused('p-values', found=p): holm(p)

def test_family_wise_error():
    "With no effect anywhere, even one false yes is rare"
    draws = np.random.default_rng(0).normal(0, 1, (400, 3, 7))
    assert np.mean([min(holm([sign_flip(d) for d in s])) <= .05 for s in draws]) < .05 + 3*(.05*.95/400)**.5


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

@pytest.mark.parametrize('C', [2, 3])
def test_many_networks_are_scored_as_few_are(C):
    p, y = networks(seeds=40, C=C, n=60)
    p = p.round(1)                                                                # with ties
    w = np.random.default_rng(1).multinomial(60, np.full(60, 1/60), 50).T.astype(float)
    w[y == 0, 0] = 0
    few = np.mean([score(p[i:i+4], y, 'auc', w) for i in range(0, 40, 4)], axis=0)
    assert np.isnan(few[0]) and np.allclose(score(p, y, 'auc', w), few, equal_nan=True)

def test_score_of_several_labels():
    g = np.random.default_rng(0)
    y = g.integers(0, 2, (100, 4)).astype(float)
    p = np.clip(.3*y + .7*g.random((3, 100, 4)), 0, 1)
    own = pd.DataFrame([metrics(y, q, 'multi-label, binary-class') for q in p]).mean()
    for m in IMAGE_MEASURES: assert np.isclose(score(p, y, m)[0], own[m])
    w = g.integers(0, 3, 100)
    rep = np.repeat(np.arange(100), w)
    for m in IMAGE_MEASURES:
        assert np.isclose(score(p, y, m, w[:, None].astype(float))[0], score(p[:, rep], y[rep], m)[0])

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
    "Placement values of each network on both sides; they give the variance of an AUC (DeLong et al. 1988)"
    pos, neg = p[:, y == 1, 1], p[:, y == 0, 1]
    k = (pos[:, :, None] > neg[:, None]) + .5*(pos[:, :, None] == neg[:, None])
    return k.mean(2), k.mean(1)

def test_bootstrap_against_delong():
    (a, y), (b, _) = networks(n=300, clear=1.4), networks(n=300, clear=.9)   # the same images: correlated
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

def taken(p, images): return np.take_along_axis(p, images[..., None], 1)

def subsets(y, n, seeds):
    return np.stack([stratified_order(torch.tensor(y), s)[:n].numpy() for s in range(seeds)])

@pytest.mark.parametrize('measure', IMAGE_MEASURES)
@pytest.mark.parametrize('C', [2, 3])
def test_all_images_in_any_order_are_all_images(measure, C):
    (a, y), (b, _) = networks(C=C), networks(C=C, clear=1.5, seed=3)
    whole, given = image_bootstrap(a, b, y, measure, 300), np.tile(np.arange(200), (3, 1))
    assert image_bootstrap(a, b, y, measure, 300, images=given) == whole
    other = np.random.default_rng(0).permuted(given, axis=1)
    a, b = taken(a, other), taken(b, other)
    assert np.allclose(image_bootstrap(a, b, y, measure, 300, images=other), whole)

@pytest.mark.parametrize('measure', IMAGE_MEASURES)
def test_a_part_of_the_images_weighs_what_it_weighs_in_the_whole(measure):
    "Images that no seed was measured on count for nothing, the others in every seed that has them"
    (a, y), (b, _) = networks(), networks(clear=1.5, seed=3)
    images = subsets(y, 50, 3)
    kw = dict(measure=measure, replicates=100, images=images)
    got = image_bootstrap(taken(a, images), taken(b, images), y, **kw)
    each = [[metrics(y[i], p[i], 'binary-class')[measure] for p, i in zip(q, images)] for q in (a, b)]
    assert np.isclose(got[0], np.subtract(*np.mean(each, axis=1)))
    labels = np.where(np.isin(np.arange(200), images), y, 1-y)
    assert got == image_bootstrap(taken(a, images), taken(b, images), labels, **kw)

def test_it_covers_where_each_seed_has_its_own_images():
    "Images are hard for all networks of an arm: drawn for each seed apart, 85 in 100 would cover"
    below, above = (stats.norm.cdf(np.array([c/1.25**.5, 2*c/2.5**.5])) for c in (.8, 1.1))
    g, covered = np.random.default_rng(1), []
    for _ in range(160):
        y = (g.random(120) < .5).astype(int)
        images, hard = subsets(y, 60, 4), g.normal(0, 1, (2, 1, 120))
        z = np.array([.8, 1.1])[:, None, None]*(2*y-1) + hard + g.normal(0, .5, (2, 4, 120))
        b, a = (taken(p, images) for p in 1/(1+np.exp(np.stack([z, -z], -1))))
        found = [image_bootstrap(a, b, y, m, 150, images=images) for m in ('balanced_accuracy', 'auc')]
        covered.append([lo <= d <= hi for d, (_, lo, hi) in zip(above-below, found)])
    assert (abs(np.mean(covered, axis=0)-.95) < 3*(.95*.05/160)**.5).all()

@pytest.mark.parametrize('images', [
    [[0, 1]]*2, [[0, 0]]*3, [[0, 200]]*3, [[-1, 0]]*3, [[0., 1.]]*3, [0, 1, 2]])
def test_positions_are_checked(images):
    p, y = networks()
    with refused('images' if np.shape(images) != (2, 2) else 'probabilities', found=...):
        image_bootstrap(p[:, :2], p[:, :2], y, images=images)

def test_bootstrap_in_pieces_is_the_bootstrap(monkeypatch):
    from tsynd.experiments import statistics
    whole = np.concatenate(list(statistics._drawings(50, 400, 3)), 1)
    pieces = list(statistics._drawings(50, 400, 3, most=1000))
    assert len(pieces) == 20 and (whole.sum(0) == 50).all()
    assert np.array_equal(np.concatenate(pieces, 1), whole)

def test_bootstrap_is_fast():
    a, y = networks(624, 10)
    start = time.process_time()
    image_bootstrap(a, a**2/(a**2).sum(-1, keepdims=True), y)
    assert time.process_time()-start < 10

def test_rare_class_is_refused():
    p, _ = networks(100)
    y = np.r_[1, np.zeros(99, int)]
    with refused('measure', found='auc'): image_bootstrap(p, p, y)

@pytest.mark.parametrize('how, field, said', [
    (dict(p_arm='logits'), 'probabilities', '0 and 1'), (dict(p_reference='fewer'), 'probabilities', '(2, '),
    (dict(y=np.zeros(7)), 'probabilities', ', 7, '), (dict(measure='nll'), 'measure', 'auc'),
    (dict(replicates=5), 'replicates', ''), (dict(level=1.5), 'level', ''),
    (dict(p_arm='nan'), 'probabilities', '0 and 1')])
def test_bootstrap_refuses(how, field, said):
    p, y = networks()
    special = dict(logits=p*3, fewer=p[:2], nan=np.where(p > .9, np.nan, p))
    kw = {k: special.get(v, v) if isinstance(v, str) else v for k, v in how.items()}
    with refused(field, said, found=... if said else how[field]):
        image_bootstrap(**(dict(p_arm=p, p_reference=p, y=y) | kw))

def test_class_profile():
    p = np.array([[.9, .1], [.6, .4], [.2, .8], [.7, .3], [.4, .6]])
    y = np.array([0, 0, 1, 1, 1])
    t = class_profile(np.stack([p, p[:, ::-1]]), y, ['benign', 'malignant'])
    assert t.share.tolist() == [.4, .6] and np.allclose(t[['called', 'recall']], .5)
    one = class_profile(p[None], y)
    assert np.allclose(one.recall, [1, 2/3]) and np.allclose(one.called, [.6, .4])
    at = one.threshold[1]
    assert (p[:, 1] > at).mean() == .6 and at < .5          # calls too few, so its threshold should be lower
    several = class_profile(p[None], np.array([[1, 0]]*4 + [[1, 1]]))
    assert np.allclose(several.share, [1, .2]) and np.allclose(several.called, [.6, .4])
    assert np.allclose(several.recall, [.6, 1])
