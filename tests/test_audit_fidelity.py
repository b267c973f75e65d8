"""Fidelity and diversity of features: what theory gives, what brute force gives, and what chance gives."""
import math

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from refused import refused
from scipy.linalg import sqrtm
from scipy.stats import norm

from tsynd.audit import (
    density_coverage, expected_coverage, frechet_bias, frechet_distance, kernel_distance,
    two_sample_classifier, variation_ratio, vendi_ratio, vendi_score, WHOLE)


def points(seed, n, d, spread=1., shift=0.):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return spread*x + shift

def pairs(times, n, m, d, **other):
    "Two samples, so many times; the second may be of another distribution"
    return [(points(2*s, n, d), points(2*s+1, m, d, **other)) for s in range(times)]

def near(values, expected, errors=4): # is the mean what it must be?
    values = np.asarray(values)
    return abs(values.mean()-expected) < errors*values.std(ddof=1)/len(values)**.5

seeds = st.integers(0, 10**5)


# Kernel distance

def by_hand(x, y):
    k = lambda a,b: ((a*b).sum()/len(a) + 1)**3
    within = lambda v: np.mean([k(a, b) for i,a in enumerate(v) for j,b in enumerate(v) if i != j])
    return float(within(x) + within(y) - 2*np.mean([k(a, b) for a in x for b in y]))

@given(seeds, st.integers(10, 13), st.integers(10, 13), st.integers(1, 4))
@settings(max_examples=4)
def test_kernel_distance_is_what_its_formula_says(seed, n, m, d):
    x,y = points(seed, n, d),points(seed+1, m, d, 2., .3)
    o = kernel_distance(x, y, permutations=9)
    assert o.value == pytest.approx(by_hand(x, y), rel=1e-9, abs=1e-9) and o.n == min(n, m)
    assert kernel_distance(y, x, permutations=0).value == pytest.approx(o.value)     # neither is first
    turn = torch.linalg.qr(points(seed+2, d, d)).Q
    assert kernel_distance(x@turn, y@turn, permutations=0).value == pytest.approx(o.value)

def test_the_interval_is_that_of_the_jackknife():
    x,y = points(0, 11, 2),points(1, 14, 2, 1.5)
    without = lambda v,i: v[torch.arange(len(v)) != i]
    left = [[by_hand(without(x, i), y) for i in range(11)], [by_hand(x, without(y, i)) for i in range(14)]]
    spread = sum((len(v)-1)**2/len(v)*np.var(v, ddof=1) for v in left)**.5
    o = kernel_distance(x, y, permutations=0)
    assert (o.high-o.value, o.value-o.low) == pytest.approx((1.96*spread,)*2)

def mean_similarity(a, b, d): # E k of Gaussians with such means, by three moments of x·y/d
    m,v,c = 1+a*b, (a*a+b*b+1)/d, 6*a*b/d**2
    return m**3 + 3*m*v + c

@pytest.mark.parametrize('d', [1, 16])
def test_kernel_distance_of_shifted_gaussians(d):
    truth = mean_similarity(0, 0, d) + mean_similarity(1, 1, d) - 2*mean_similarity(0, 1, d)
    if d == 1: assert truth == 22
    found = [kernel_distance(x, y, permutations=0).value for x,y in pairs(60, 150, 100, d, shift=1)]
    assert near(found, truth)

def test_by_chance_the_kernel_distance_is_0_and_half_are_negative():
    found = [kernel_distance(x, y, permutations=49) for x,y in pairs(200, 30, 40, 8)]
    value,p = np.array([o.value for o in found]),np.array([o.p for o in found])
    assert near(value, 0) and .4 < (value < 0).mean() < .7
    for level in (.1, .5): assert (p <= level).mean() == pytest.approx(level, abs=4*(level*(1-level)/200)**.5)
    assert np.mean([o.low <= 0 <= o.high for o in found]) > .93         # never too narrow

def test_the_kernel_distance_finds_a_difference_and_its_interval_holds_it():
    found = [kernel_distance(x, y, permutations=99) for x,y in pairs(100, 60, 80, 8, shift=.4)]
    truth = np.mean([kernel_distance(x, y, permutations=0).value for x,y in pairs(40, 300, 300, 8, shift=.4)])
    assert np.mean([o.p <= .05 for o in found]) > .9
    assert np.mean([o.low <= truth <= o.high for o in found]) == pytest.approx(.95, abs=.08)

def test_another_real_set_is_the_reference():
    x,y,x2 = points(0, 40, 4),points(1, 40, 4, shift=1),points(2, 50, 4)
    assert kernel_distance(x, y, x2, 0).reference == kernel_distance(x, x2, permutations=0).value
    assert kernel_distance(x, y, permutations=0).reference == 0


# Fréchet distance

@given(seeds, st.integers(10, 40), st.integers(1, 20))
@settings(max_examples=15)
def test_frechet_distance_is_that_of_roots_of_matrices_of_any_rank(seed, n, d):
    x,y,x2 = points(seed, n, d),points(seed+1, n, d, 1.7, .2),points(seed+2, n, d)
    def direct(a, b):
        s,t = np.atleast_2d(np.cov(a.T)),np.atleast_2d(np.cov(b.T))
        value,side = np.linalg.eigh(s)
        root = side*np.sqrt(np.maximum(value, 0))@side.T
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root@t@root), 0)).sum()
        return float((a.mean(0)-b.mean(0)).square().sum()) + np.trace(s) + np.trace(t) - 2*cross
    o = frechet_distance(x, y, x2, 0)
    assert (o.value, o.reference) == pytest.approx((direct(x, y), direct(x, x2)), rel=1e-5, abs=1e-5)
    if n > 2*d:
        cov = lambda a: np.atleast_2d(np.cov(a.T))
        rest = (x.mean(0)-y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum() - o.value
        assert 2*np.trace(sqrtm(cov(x)@cov(y)).real) == pytest.approx(float(rest))
    assert frechet_distance(3*x, 3*y, 3*x2, 0).value == pytest.approx(9*o.value)     # a squared length
    assert frechet_distance(x, x, x2, 0).value == pytest.approx(0, abs=1e-9)

@pytest.mark.parametrize('n,m,d', [(250, 250, 64), (320, 160, 8)])
def test_frechet_distance_by_chance(n, m, d):
    found = [frechet_distance(x, y, y, 0).value for x,y in pairs(12 if d == 64 else 80, n, m, d)]
    assert np.mean(found) == pytest.approx(frechet_bias(n, m, d), rel=.06)
    assert frechet_bias(250, 250, 64) == pytest.approx(8.83, abs=.005)

def test_frechet_distance_of_known_gaussians():
    x,y = points(0, 20_000, 5),points(1, 20_000, 5, 2., .5)
    assert frechet_distance(x, y, y, 0).value == pytest.approx(5*.25 + 5*(2-1)**2, rel=.02)

def test_reference_and_value_are_of_as_many_images():
    "so both are too large alike, and p is right"
    for real2 in (25, None):
        p = []
        for s in range(50):
            x,y = points(3*s, 60, 6),points(3*s+1, 40, 6)
            o = frechet_distance(x, y, real2 and points(3*s+2, real2, 6), 19, seed=s)
            assert o.n == (real2 or 30)
            p.append(o.p)
        assert np.mean(np.array(p) <= .2) == pytest.approx(.2, abs=4*(.16/50)**.5)
    assert frechet_distance(x, points(5, 40, 6, 2.), permutations=49).p == .02


# Density and coverage

def balls_by_hand(x, y, k):
    radius = torch.cdist(x, x).sort(1).values[:,k]
    inside = torch.cdist(x, y) < radius[:,None]
    return inside.sum().item()/(k*len(y)), inside.any(1).double().mean().item()

@given(seeds, st.integers(12, 40), st.integers(12, 40), st.integers(1, 8), st.integers(1, 10))
@settings(max_examples=15)
def test_density_and_coverage_are_counts(seed, n, m, k, d):
    x,y = points(seed, n, d),points(seed+1, m, d, 1.5)
    found = [o.value for o in density_coverage(x, y, k, 9)]
    assert found == pytest.approx(balls_by_hand(x, y, k))
    assert [o.value for o in density_coverage(1e3*x+50, 1e3*y+50, k, 0)] == pytest.approx(found)

@pytest.mark.parametrize('n,m,k,coverage', [(200, 200, 5, .970), (300, 150, 5, .871), (80, 160, 2, None)])
def test_density_and_coverage_of_fresh_images(n, m, k, coverage):
    if coverage: assert expected_coverage(n, m, k) == pytest.approx(coverage, abs=6e-4)
    found = [density_coverage(x, y, k, 0) for x,y in pairs(60, n, m, 6)]
    assert near([d.value for d,_ in found], 1)
    assert near([c.value for _,c in found], expected_coverage(n, m, k))
    assert {(d.reference, c.reference) for d,c in found} == {(1., expected_coverage(n, m, k))}
    for o in zip(*found): assert np.mean([v.low <= v.reference <= v.high for v in o]) > .88

def test_copies_are_perfect():
    for d in (2, 30):
        x = points(0, 100, d)
        assert [o.value for o in density_coverage(x, x.flip(0))] == [1, 1]

def test_what_is_far_away_has_neither():
    d,c = density_coverage(points(0, 60, 3), points(1, 60, 3, shift=50))
    assert (d.value, c.value, d.low, c.low) == (0, 0, 0, 0) and d.p < .01 and 0 < c.high < .2

def test_density_and_coverage_by_chance():
    found = [density_coverage(x, y, 3, 29) for x,y in pairs(120, 40, 25, 4)]
    for k in (0, 1):
        p = np.array([o[k].p for o in found])
        assert (p <= .2).mean() < .2 + 4*(.16/120)**.5 and (p > .5).any()
    assert (np.array([o[0].p for o in found]) <= .2).mean() > .08       # coverage has few values

def test_who_keeps_to_the_middle_and_who_collapses():
    x,fresh = points(0, 150, 8),points(1, 150, 8)
    density,_ = density_coverage(x, .5*fresh)
    assert density.low > 1.2 and density.p < .01
    _,coverage = density_coverage(x, fresh[:3].repeat(50, 1) + .01*points(2, 150, 8))
    assert coverage.high < .3 and coverage.p < .01


# A classifier

@pytest.mark.parametrize('delta,d', [(1., 4), (2., 16)])
def test_accuracy_for_gaussians_so_far_apart(delta, d):
    truth,shift = norm.cdf(delta/2),delta/d**.5
    found = [two_sample_classifier(x, y, 20) for x,y in pairs(12, 400, 300, d, shift=shift)]
    assert np.mean([o.value for o in found]) == pytest.approx(truth, abs=.015)
    assert np.mean([o.low <= truth <= o.high for o in found]) > .7 and {o.n for o in found} == {300}

@pytest.mark.parametrize('n,d', [(30, 4), (20, 40)])
def test_by_chance_the_accuracy_is_a_half(n, d):
    found = [two_sample_classifier(x, y, 29) for x,y in pairs(40, n, n, d)]
    assert near([o.value for o in found], .5)
    assert np.mean([o.p <= .2 for o in found]) < .2 + 4*(.16/40)**.5
    assert np.mean([o.low <= .5 <= o.high for o in found]) > .85

def test_what_lies_far_apart_is_told_apart():
    o = two_sample_classifier(points(0, 50, 3), points(1, 80, 3, shift=9), 99)
    assert o.value == 1 and o.p == .01 and o.low > .9


# Diversity

@given(seeds, st.integers(2, 12), st.integers(1, 12))
@settings(max_examples=15)
def test_the_vendi_score_counts_images(seed, m, d):
    x = points(seed, m, d)
    unit = x/x.norm(dim=1, keepdim=True)
    for kernel,k in (('cosine', unit@unit.T), ('rbf', torch.exp(-torch.cdist(x, x)**2/8))):
        p = np.linalg.eigvalsh(k.numpy()/m).clip(1e-300)
        score = vendi_score(x, kernel, 2.)
        assert score == pytest.approx(math.exp(-(p*np.log(p)).sum()), rel=1e-6) and 1-1e-9 < score < m+1e-9
        assert vendi_score(x.repeat(3, 1), kernel, 2.) == pytest.approx(score)       # nothing new
        assert vendi_score(x[:1].repeat(m, 1), kernel) == pytest.approx(1)
    assert vendi_score(torch.eye(m)) == pytest.approx(m)
    assert vendi_score(1e4*torch.arange(m)[:,None]+x, 'rbf') == pytest.approx(m)

@pytest.mark.parametrize('kernel', ['rbf', 'cosine'])
def test_the_vendi_ratio_is_1_for_fresh_images_and_small_for_a_collapse(kernel):
    found = [vendi_ratio(x, y, kernel=kernel, draws=20)[WHOLE] for x,y in pairs(30, 50, 70, 10)]
    assert near(np.log([o.value for o in found]), 0)
    assert np.mean([o.low <= 1 <= o.high for o in found]) > .8 and np.mean([o.p <= .1 for o in found]) < .25
    x,y = points(0, 100, 10),points(1, 2, 10).repeat(50, 1)
    assert vendi_ratio(x, y, kernel=kernel)[WHOLE].high < .5

def test_a_class_that_has_collapsed_is_found_and_the_others_are_not_blamed():
    x,y,labels = points(0, 180, 6),points(1, 180, 6),torch.arange(180) % 3
    y[labels == 1] = points(2, 1, 6) + .1*points(3, 60, 6)
    for measure in (vendi_ratio, variation_ratio):
        found = measure(x, y, labels, labels)
        assert {*found} == {WHOLE, 0, 1, 2} and found[1].high < .7
        assert found[0].high > .9 and found[2].high > .9 and found[1].n == 60
        hot = torch.nn.functional.one_hot(labels).float()
        assert measure(x, y, hot, hot) == found                          # several labels, one each
        assert measure(x, y) == {WHOLE: found[WHOLE]}

def test_a_class_with_too_few_images_says_nothing():
    x,y = points(0, 60, 4),points(1, 60, 4)
    found = vendi_ratio(x, y, torch.zeros(60).long(), (torch.arange(60) < 5).long())
    assert math.isnan(found[1].value) and found[1].n == 0 and found[0].value > 0

@given(st.floats(.2, 5))
@settings(max_examples=5)
def test_the_variation_ratio_is_that_of_the_spreads(by):
    x = points(0, 400, 6)
    found = variation_ratio(x, by*points(1, 400, 6) - 7)[WHOLE]
    assert found.value == pytest.approx(by, rel=.06) and found.low < found.value < found.high
    assert variation_ratio(x, by*x + 3)[WHOLE].value == pytest.approx(by, rel=.02)


# What all of them promise

ALL = [kernel_distance, frechet_distance, density_coverage, two_sample_classifier, vendi_ratio,
       variation_ratio]

@pytest.mark.parametrize('measure', ALL)
def test_a_seed_decides_and_no_global_one(measure):
    x,y = points(0, 70, 5).float(),points(1, 50, 5).float()
    first = measure(x, y, seed=3)
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    assert str(measure(x, y, seed=3)) == str(first) and torch.equal(state, torch.random.get_rng_state())

@pytest.mark.parametrize('measure', ALL)
def test_sets_that_cannot_be_compared_are_refused(measure):
    x = points(0, 30, 4)
    with refused('synthetic', '5 features', found=5): measure(x, points(0, 30, 5))
    with refused('synthetic', 'at least', found=3): measure(x, x[:3])
    with refused('real', 'at least', found=0): measure(x[:0], x)
    with refused('real', '(N,d)'): measure(torch.zeros(30, 1, 8, 8), x)
    with refused('synthetic', 'finite'): measure(x, torch.full((30, 4), torch.nan))
    with refused('seed'): measure(x, x, seed=-1)

def test_settings_out_of_range_are_refused():
    x = points(0, 30, 4)
    with refused('k'): density_coverage(x, x, 0)
    with refused('real', 'at least 41'): density_coverage(x, x, 40)
    with refused('permutations'): kernel_distance(x, x, permutations=-1)
    with refused('kernel', 'rbf'): vendi_ratio(x, x, kernel='linear')
    with refused('x', '0'): vendi_score(torch.zeros(12, 4))
    with refused('real'): vendi_ratio(torch.ones(30, 4), x)
    with refused('synthetic_labels'): vendi_ratio(x, x, torch.zeros(30), torch.zeros(29))

def test_large_sets_are_drawn_down():
    x,y = points(0, 200, 4),points(1, 50_000, 4)
    assert kernel_distance(x, y, permutations=9, most=300).n == 200
    assert density_coverage(x, y, permutations=9, most=300)[1].reference == expected_coverage(200, 300)
    assert two_sample_classifier(x, y, 20).n == 200 and vendi_ratio(x, y)[WHOLE].n == 200


# Oracles, where they are installed

def test_density_and_coverage_are_those_of_prdc():
    prdc = pytest.importorskip('prdc')
    x,y = points(0, 150, 20),points(1, 120, 20, 1.2)
    theirs = prdc.compute_prdc(x.numpy(), y.numpy(), nearest_k=5)
    ours = [o.value for o in density_coverage(x, y, 5, 0)]
    assert ours == pytest.approx([theirs['density'], theirs['coverage']])

def test_distances_are_those_of_torch_fidelity():
    kid = pytest.importorskip('torch_fidelity.metric_kid')
    fid = pytest.importorskip('torch_fidelity.metric_fid')
    x,y = points(0, 150, 20),points(1, 150, 20, 1.2)
    assert kernel_distance(x, y, permutations=0).value == pytest.approx(kid.kernel_mmd(x.numpy(), y.numpy()))
    stats = [fid.fid_features_to_statistics(v) for v in (x, y)]
    assert frechet_distance(x, y, y, 0).value == pytest.approx(
        fid.fid_statistics_to_metric(*stats, False)[fid.KEY_METRIC_FID], rel=1e-6)
