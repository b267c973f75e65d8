"""Copies and membership against theory: levels that hold, leaks that are seen, and what is blind to them."""
import itertools

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy import special, stats
from sklearn.metrics import roc_auc_score

from refused import refused
from tsynd.audit import (authenticity, clearly_nearer, copying_z, equal_sizes, margins, membership_attack,
                         near_copies, nearer_to_training, nearest_of_both, Outcome, swap_p)

votes = st.lists(st.integers(0, 9), min_size=1, max_size=8)

def near(a, b, same=False, k=2):
    distance = torch.cdist(a, b)
    if same: distance.fill_diagonal_(torch.inf)
    return distance.topk(k, largest=False)

def drawn(n, m, d, seed):
    return torch.randn(2*n+m, d, generator=torch.Generator().manual_seed(seed)).split([n, n, m])

def holds(p, level=.05): # may a test that keeps its level have given these p-values?
    return np.mean(np.array(p) <= level) <= level + 3.5*(level*(1-level)/len(p))**.5

def nearer(training, holdout, synthetic):
    return nearer_to_training(near(synthetic, training), near(synthetic, holdout), len(training))

def clear(training, holdout, synthetic):
    return clearly_nearer(near(synthetic, training), near(synthetic, holdout), len(training))

def copied(training, holdout, synthetic, share=.05):
    real = torch.cat([training, holdout])
    return near_copies(near(synthetic, training), near(synthetic, holdout), len(training),
                       near(real, real, True)[0], share)

def attacked(training, holdout, synthetic, k=16, permutations=39, seed=0):
    real = torch.cat([training, holdout])
    between = near(real, real, True, k)
    to_synthetic = near(real, synthetic)[0][:, 0].split(len(training))
    return membership_attack(*to_synthetic, between, permutations, seed)


# Changing places

@given(votes, st.randoms(use_true_random=False))
def test_changing_places_is_counted_exactly(a, random):
    b = random.choices(range(10), k=len(a))
    d = np.array(a)-b
    sums = [np.dot(signs, d) for signs in itertools.product((1, -1), repeat=len(d))]
    assert np.isclose(swap_p(a, b), np.mean(np.array(sums) >= d.sum()), atol=1e-12)

@given(votes)
def test_what_says_nothing_changes_nothing(a):
    "A pair that agrees, the unit of the votes, the order of the pairs"
    zero = [0]*len(a)
    p = swap_p(a, zero)
    assert p == swap_p([7, *a], [7, *zero]) == swap_p([3*v for v in a], zero) == swap_p(a[::-1], zero)

def test_many_images_of_one_are_no_proof_and_many_of_many_are():
    assert swap_p([10**5, 0], [0, 0]) == .5
    assert np.isclose(swap_p(np.full(1000, 100), np.zeros(1000)), .5**1000)

@pytest.mark.parametrize('n, m, d', [(20, 20, 1), (20, 200, 4), (25, 150, 64)])
def test_the_level_holds_and_the_binomial_test_does_not_hold_it(n, m, d):
    every = [drawn(n, m, d, s) for s in range(200)]
    found = [(nearer(*sets), clear(*sets), copied(*sets)[0]) for sets in every]
    for one in zip(*found): assert holds([o.p for o in one]) and holds([o.p for o in one], .2)
    binomial = [stats.binom.sf(np.ceil(o.value*m)-1, m, .5) for o, *_ in found]
    assert m == n or np.mean(np.array(binomial) <= .05) > .12
    for one in list(zip(*found))[:2]:
        shares = np.array([o.value for o in one])
        assert abs(shares.mean()-.5) < 4*shares.std()/len(shares)**.5
        assert np.mean([o.low <= .5 <= o.high for o in one]) > .91

def test_junk_is_not_memory():
    "Synthetic images of another kind keep the level as well"
    p = [nearer(t, h, 3*s+1).p for t, h, s in (drawn(25, 100, 3, s) for s in range(350))]
    assert holds(p)

def test_the_interval_holds_the_share_of_a_generator_that_remembers():
    found = []
    for s in range(150):
        t, h, new = drawn(30, 90, 4, s)
        copies = t[torch.randint(30, (90,), generator=torch.Generator().manual_seed(s))]
        found.append(nearer(t, h, torch.where(torch.arange(90)[:, None] % 2 == 0, copies, new)))
    truth = np.mean([o.value for o in found])
    assert .72 < truth < .78 and np.mean([o.low <= truth <= o.high for o in found]) > .9

def test_whole_patients_change_places():
    "Ten images of each patient: given their patients the level holds, given the images it does not"
    def p(s, by_patient):
        t, h, new = drawn(10, 100, 8, s)
        g = torch.Generator().manual_seed(s)
        t, h = (v.repeat_interleave(10, 0) + .1*torch.randn(100, 8, generator=g) for v in (t, h))
        (d, i), (e, j) = near(new, t), near(new, h)
        return (nearer_to_training((d, i//10), (e, j//10), 10) if by_patient
                else nearer_to_training((d, i), (e, j), 100)).p
    assert holds([p(s, True) for s in range(200)])
    assert np.mean([p(s, False) <= .05 for s in range(200)]) > .12

def test_ties_are_halves():
    "The same image in both sets: nothing can be said"
    t, _, s = drawn(30, 40, 3, 0)
    assert (o := nearer(t, t, s)).value == .5 and o.p == 1
    outcome, flagged = copied(t, t + 1e-9, t)
    assert outcome.value == outcome.reference and len(flagged) == 0

def test_the_sizes_become_equal():
    a, b = equal_sizes(40, 25, seed=3)
    assert len(set(a.tolist())) == 25 and a.max() < 40 and b.tolist() == list(range(25))
    again, other = (equal_sizes(40, 25, seed=k)[0] for k in (3, 4))
    assert torch.equal(a, again) and not torch.equal(a, other)


# Clearly nearer

def test_a_margin_is_by_the_two_nearest_of_both_sets():
    t, h, s = drawn(20, 40, 3, 0)
    first, second = torch.cdist(s, torch.cat([t, h])).sort(1).values[:, :2].T
    assert torch.allclose(margins(near(s, t), near(s, h)), (1-first/second).double(), atol=1e-5)

@pytest.mark.parametrize('d', [2, 8, 64])
def test_a_few_copies_are_clearly_nearer(d):
    "Ten of a hundred, which a count of votes does not see, also among junk"
    few, votes_ = [], []
    for s in range(20):
        t, h, new = drawn(100, 100, d, s)
        new[:10] = t[:10]
        few.append(clear(t, h, new).p); votes_.append(nearer(t, h, new).p)
        assert clear(t, h, torch.cat([t[:10], new[10:]+9])).p < .01
    assert np.mean(np.array(few) <= .05) >= .8 and np.mean(np.array(votes_) <= .05) < .5

def test_means_of_two_and_copies_of_doubles_have_no_margin():
    t, h, new = drawn(40, 40, 64, 0)
    assert margins(near((t+t.flip(0))/2, t), near((t+t.flip(0))/2, h)).max() < .01
    t[1::2] = t[::2] + .1*new[::2]
    copies = t + .1*new.flip(0)
    d, i = near(copies, t, k=3)
    by_patient = margins((d, i//2), near(copies, h))
    assert margins((d, i), near(copies, h)).max() < .5 < .8 < by_patient.min()
    assert copied(t, h, copies, .5)[0].p < .01

def test_moves_are_put_together():
    t, _, s = drawn(15, 30, 3, 0)
    moved = [s, -s, s.flip(1), s+.3]
    found = near(s, t)
    for v in moved[1:]: found = nearest_of_both(found, near(v, t))
    distance, index = torch.stack([torch.cdist(v, t) for v in moved]).min(0).values.topk(2, largest=False)
    assert torch.equal(found[0], distance) and torch.equal(found[1], index)


# Near copies

def test_the_planted_copies_are_flagged_first():
    t, h, s = drawn(100, 100, 8, 1)
    s[30:40] = t[5:15]
    outcome, flagged = copied(t, h, s)
    assert sorted(flagged[:10].tolist()) == list(range(30, 40)) and outcome.p < .01
    assert outcome.value >= .1 > outcome.reference and outcome.low < outcome.value < outcome.high

@pytest.mark.parametrize('share', [.05, .2])
def test_as_many_new_images_are_flagged_as_stated(share):
    n, m = 50, 50
    rates = np.array([(o.value, o.reference, len(f)/m)
                      for o, f in (copied(*drawn(n, m, 3, s), share) for s in range(200))])
    expected = int(share*(2*n+1))/(2*n+1)/2
    assert (abs(rates.mean(0)-expected) < 4.5*rates.std(0)/200**.5 + .001).all()


# C_T

distances = st.lists(st.integers(0, 20), min_size=10, max_size=25)

@given(distances, distances)
def test_ct_is_mann_and_whitney(a, b):
    o = copying_z(torch.tensor(a), torch.tensor(b))
    if len({*a, *b}) == 1: assert o.value == 0; return
    want = stats.mannwhitneyu(a, b, alternative='less', method='asymptotic', use_continuity=False).pvalue
    assert np.isclose(o.p, want, atol=1e-9)

def test_ct_is_standard_normal_in_cells_and_whole():
    g = np.random.default_rng(0)
    def z(cells):
        s, h = g.exponential(size=60), g.exponential(size=45)
        return copying_z(s, h, *([np.arange(60) % 3, np.arange(45) % 3] if cells else [])).value
    for cells in (False, True):
        assert stats.kstest([z(cells) for _ in range(500)], 'norm').pvalue > .001

def test_ct_is_blind_to_half_copies_and_half_junk():
    "which the other tests are not"
    t, h, s = drawn(100, 100, 5, 2)
    s = torch.cat([t[:50], s[:50]+9])
    assert abs(copying_z(near(s, t)[0], near(h, t)[0]).value) < 1e-9
    assert copied(t, h, s)[0].p < 1e-6 and attacked(t, h, s).p < 1e-3

def test_ct_leaves_out_small_cells():
    s, h = np.linspace(1, 2, 40), np.linspace(1.5, 3, 30)
    cells, theirs = np.r_[np.zeros(35, int), np.ones(5, int)], np.zeros(30, int)
    assert copying_z(s, h, cells, theirs).value == copying_z(s[:35], h).value
    with refused('cells'): copying_z(s, h, np.arange(40), theirs)
    with refused('holdout_cells'): copying_z(s, h, cells, theirs[:7])


# Authenticity

def on_a_ring(a, b, same=False): # without a border
    gap = (a[:, None]-b[None]).abs()
    distance = torch.minimum(gap, 1-gap).norm(dim=-1)
    if same: distance.fill_diagonal_(torch.inf)
    return distance.min(1)

@pytest.mark.parametrize('d, rounded', [(1, .3333), (2, .3785), (3, .4074), (5, None)])
def test_authenticity_has_no_universal_half(d, rounded):
    g = torch.Generator().manual_seed(d)
    more = 1 - special.betainc((d+1)/2, .5, .75)    # of a ball, outside another at the distance of its radius
    theory = more/(1+more)
    if rounded: assert abs(theory-rounded) < 1e-4
    found = []
    for _ in range(12):
        t, h, s = torch.rand(3, 400, d, generator=g)
        found.append(authenticity(on_a_ring(s, t), on_a_ring(h, t), on_a_ring(t, t, True)[0]))
    error = (theory*(1-theory)/9600)**.5
    assert abs(np.mean([(o.value, o.reference) for o in found])-theory) < 4*error + .005

def test_authenticity_keeps_its_level_and_sees_copies():
    def p(s, copies=False):
        t, h, new = drawn(40, 60, 8, s)
        return authenticity(near(t[:20] if copies else new, t), near(h, t), near(t, t, True)[0])
    found = [p(s) for s in range(200)]
    assert holds([o.p for o in found]) and abs(np.mean([o.value for o in found])-.59) < .02
    assert p(0, True).value == 0 and p(0, True).p < 1e-3


# Membership

def test_the_attack_is_an_auc_with_its_permutation_test():
    t, h, s = drawn(15, 30, 3, 4)
    o = attacked(t, h, s).attack
    real = torch.cat([t, h])
    score = near(real, s)[0][:, 0]/near(real, real, True)[0][:, 0]
    assert np.isclose(o.value, roc_auc_score(np.arange(30) < 15, -score))
    g = np.random.default_rng(0)
    ranks = stats.rankdata(-score)
    sums = np.array([ranks[g.permutation(30) < 15].sum() for _ in range(4000)])
    assert abs(np.mean(sums >= ranks[:15].sum()) - o.p) < 4*.5/4000**.5

def test_the_interval_of_an_auc_is_as_wide_as_it_varies():
    found = []
    for s in range(200):
        t, h, new = drawn(30, 60, 8, s)
        found.append(attacked(t, h, torch.cat([t]*2) + .7*new, permutations=1).attack)
    values = np.array([o.value for o in found])
    assert .65 < values.mean() < .95
    assert np.isclose(np.mean([o.high-o.low for o in found])/3.92, values.std(), rtol=.2)
    assert np.mean([o.low <= values.mean() <= o.high for o in found]) > .9

def test_attack_and_control_keep_their_level():
    found = [attacked(*drawn(20, 40, 6, s)) for s in range(200)]
    assert holds([o.attack.p for o in found]) and holds([o.control.p for o in found])
    assert holds([o.control.p for o in found], .2) and holds([o.p for o in found])
    for kind in ('attack', 'control'):
        values = np.array([getattr(o, kind).value for o in found])
        expected = np.mean([getattr(o, kind).reference for o in found])
        assert abs(values.mean()-expected) < 4*values.std()/200**.5 and abs(expected-.5) < .03

def test_the_control_explains_a_difference_of_the_real_sets_and_not_a_leak():
    def made(s, leak):
        t, h, new = drawn(120, 600, 6, s)
        return attacked(t, h + torch.tensor([1.2]+[0]*5), torch.cat([t, new])[:600] if leak else new)
    honest, leaking = ([made(s, leak) for s in range(20)] for leak in (False, True))
    assert np.mean([o.attack.p <= .05 for o in honest]) > .5            # one would have been fooled
    assert np.mean([o.p <= .05 for o in honest]) <= .15
    assert all(o.p <= .05 and not o.explained for o in leaking)
    assert sum(o.explained for o in honest) > 10 and 'explains' in str(next(o for o in honest if o.explained))

def test_a_double_of_a_real_image_that_was_copied_says_nothing_and_breaks_nothing():
    t, h, s = drawn(20, 30, 3, 0)
    t[1] = t[0]; s[0] = t[0]
    o = attacked(t, h, s)
    assert all(np.isfinite(v.value) and np.isfinite(v.p) for v in (o.attack, o.control, o.excess))

@given(st.integers(0, 50))
@settings(max_examples=10)
def test_a_seed_gives_one_answer(seed):
    sets = drawn(12, 12, 2, seed)
    assert attacked(*sets, seed=seed) == attacked(*sets, seed=seed)
    assert isinstance(attacked(*sets).excess, Outcome)


# What is refused

@pytest.mark.parametrize('training, n, field', [
    ((torch.ones(12), torch.zeros(12)), 10, 'training'), ((torch.ones(12), torch.arange(12)), 10, 'training'),
    ((torch.ones(12), torch.arange(10)), 10, 'training'),
    ((-torch.ones(12), torch.arange(12)), 12, 'training'),
    ((torch.full((12,), torch.nan), torch.arange(12)), 12, 'training'),
    ((torch.ones(9), torch.arange(9)), 12, 'training'), ((torch.ones(11), torch.arange(11)), 12, 'holdout'),
    ((torch.ones(12), torch.arange(12)), 9, 'n')])
def test_distances_are_checked(training, n, field):
    "indices that are not whole, out of range, too few; distances that are none; images that differ"
    with refused(field): nearer_to_training(training, (torch.ones(12), torch.arange(12) % 9), n)

def test_columns_of_neighbours_are_taken_as_they_come():
    t, h, s = drawn(20, 30, 3, 0)
    columns = [near(s, v, k=5) for v in (t, h)]
    first = [(d[:, 0], i[:, 0]) for d, i in columns]
    assert nearer_to_training(*columns, 20) == nearer_to_training(*first, 20) == nearer(t, h, s)
    assert clearly_nearer(*columns, 20) == clear(t, h, s)
    with refused('training'): clearly_nearer(*first, 20)

@pytest.mark.parametrize('share', [0, .6, True])
def test_a_share_has_its_range(share):
    with refused('share', found=share): copied(*drawn(20, 20, 2, 0), share)

@pytest.mark.parametrize('change, field', [
    (dict(training=torch.ones(9)), 'training'), (dict(holdout=torch.ones(13)), 'real'),
    (dict(real=(torch.ones(24, 4), torch.arange(24)[:, None].repeat(1, 4))), 'real'),
    (dict(permutations=0), 'permutations'), (dict(seed=-1), 'seed')])
def test_an_attack_checks_what_it_is_given(change, field):
    given_ = dict(training=torch.ones(12), holdout=torch.ones(12),
                  real=(torch.ones(24, 4), (torch.arange(24)[:, None] + torch.arange(1, 5)) % 24))
    membership_attack(**given_, permutations=3)
    with refused(field): membership_attack(**given_ | dict(permutations=3) | change)
