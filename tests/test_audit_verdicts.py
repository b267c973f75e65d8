"""From measures to verdicts: what must hold for every table, and for images whose truth is known."""
import math
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st

from refused import refused
from tsynd.audit import (
    all_verdicts, audit, class_rows, clearer_than_training_p, components, CONVICTING, ENOUGH, FAILS, HOLDS,
    label_agreement, LEVEL, make_encoders, measure_all, needed, of_measures, of_privacy, of_utility,
    planted_ps, planted_sets, QUESTIONS, rounded_up, RULES, three_way, UNKNOWN)
from tsynd.data import phantom, Split
from tsynd.generation import labels_like, make_generator, sample

SIZE = 20
SHARE = st.integers(0, 1000).map(lambda v: v/1000)
POSITIVE = st.integers(10, 1000).map(lambda v: v/1000)


def split(x, y=None): return Split(x, y, torch.arange(len(x)))

def join(*parts): return split(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))

def data(seed, n=60): return phantom(n, 2*n, n, SIZE, seed, holes=False)

def made(name, d, n=60, seed=1):
    return sample(make_generator(name).fit(d), labels_like(d.train.y, n), seed=seed)

def words(found): return {k: v.verdict for k,v in found.items()}

def holds_level(p, level=LEVEL): # may a test that keeps its level have given these p-values?
    return np.mean(np.array(p) <= level) <= level + 3.5*(level*(1-level)/len(p))**.5


# Labels

def features(n, C, apart, seed, d=6):
    "n images of each class, around the corners of a simplex"
    y = torch.arange(n*C) % C
    x = torch.randn(n*C, d, generator=torch.Generator().manual_seed(seed))
    return x + apart*torch.nn.functional.one_hot(y, d), y

def three_in_ten_wrong(y, C):
    y = y.clone()
    for c in range(C):
        rows = (torch.arange(len(y)) % C == c).nonzero()[:,0]
        y[rows[:3*len(rows)//10]] = (c+1) % C
    return y

@pytest.mark.parametrize('C', [2, 3])
def test_a_model_disagrees_with_wrong_labels_as_often_as_they_are_wrong(C):
    (x,y),(s,t) = features(40, C, 20, 0),features(40, C, 20, 1)
    right,wrong = label_agreement(x, y, s, t),label_agreement(x, y, s, three_in_ten_wrong(t, C))
    assert {*wrong} == {'whole', *range(C)}
    for k,o in wrong.items(): assert math.isclose(o.value, .7) and o.reference == 1 and o.p < 1e-3, k
    assert all(o.value == o.reference == 1 and o.p >= .5 for o in right.values())

def test_class_numbers_are_names():
    (x,y),(s,t) = features(40, 3, 20, 0),features(40, 3, 20, 1)
    t,other = three_in_ten_wrong(t, 3),torch.tensor([2, 0, 1])
    t[t == 2] = torch.where(torch.arange(int((t == 2).sum())) < 10, 0, 2)  # so that the classes differ
    a,b = label_agreement(x, y, s, t),label_agreement(x, other[y], s, other[t])
    assert len({a[c].value for c in range(3)}) > 1
    assert a['whole'] == b['whole'] and all(a[c] == b[int(other[c])] for c in range(3))

def test_right_labels_are_convicted_no_more_often_than_said():
    p = [label_agreement(*features(15, 2, 1.5, s), *features(15, 2, 1.5, 1000+s), seed=s)['whole'].p
         for s in range(40)]
    assert holds_level(p) and np.mean(p) > .35

def test_several_labels_of_an_image_are_judged_each():
    def drawn(seed):
        y = torch.randint(2, (120, 3), generator=torch.Generator().manual_seed(seed)).float()
        y[:60,2] = 1-y[60:,2]
        noise = torch.randn(120, 6, generator=torch.Generator().manual_seed(seed+1))
        return noise + 20*torch.cat([y, y], 1), y
    (x,y),(s,t) = drawn(0),drawn(5)
    wrong = t.clone()
    for c in range(3):
        for v in (0, 1):
            rows = (t[:,c] == v).nonzero()[:,0]
            wrong[rows[:3*len(rows)//10],c] = 1-v
    assert [*label_agreement(x, y, s, t)] == ['whole'] and label_agreement(x, y, s, t)['whole'].value == 1
    assert abs(label_agreement(x, y, s, wrong)['whole'].value-.7) < .02
    one = label_agreement(x, y[:,:1], s, t[:,:1])['whole']
    assert one.value == one.reference == 1

def test_classes_with_too_few_images_are_left_out():
    (x,y),(s,t) = features(20, 3, 20, 0),features(20, 3, 20, 1)
    few = torch.cat([(t < 2).nonzero()[:,0], (t == 2).nonzero()[:4,0]])
    assert {*label_agreement(x, y, s[few], t[few])} == {'whole', 0, 1}
    five = torch.cat([few, (t == 2).nonzero()[4:5,0]])
    assert {*label_agreement(x, y, s[five], t[five])} == {'whole', 0, 1, 2}
    nothing = label_agreement(x, y, s, t+3)
    assert [*nothing] == ['whole'] and math.isnan(nothing['whole'].value)
    with refused('synthetic_labels'): label_agreement(x, y, s, torch.eye(3)[t])


# Rules

def table(rows, **more):
    t = pd.DataFrame([dict(value=v, low=v-a, high=v+b, p=p, reference=r, n=n) for v,a,b,p,r,n in rows])
    return t.assign(encoder=[f'encoder {i}' for i in range(len(t))], **more)

rows = st.lists(st.tuples(SHARE, POSITIVE, POSITIVE, SHARE, SHARE, st.integers(20, 5000)),
                min_size=1, max_size=4)

@given(rows, SHARE, st.sampled_from([1, -1]))
def test_the_three_answers(rows, bound, worse):
    t = table(rows)
    word,row = three_way(t, bound, worse)
    inside = (t.high <= bound) if worse > 0 else (t.low >= bound)
    beyond = (t.value > bound) if worse > 0 else (t.value < bound)
    assert (word == HOLDS) == inside.all()          # whatever p says
    if word == FAILS: assert row.p <= LEVEL and (beyond & (t.p <= LEVEL)).any() and beyond[row.name]
    if not inside.all() and (beyond & (t.p <= LEVEL/len(t))).any(): assert word == FAILS
    assert any((row == t.loc[i]).all() for i in t.index)

@given(rows, SHARE)
def test_more_and_less_are_mirror_images(rows, bound):
    mirrored = [(-v, b, a, p, -r, n) for v,a,b,p,r,n in rows]
    a,b = three_way(table(rows), bound, 1),three_way(table(mirrored), -bound, -1)
    assert a[0] == b[0] and a[1].encoder == b[1].encoder

@given(rows, SHARE, st.floats(1, 3))
def test_a_surer_measure_does_not_stop_holding(rows, bound, by):
    wider = [(v, by*a, by*b, p, r, n) for v,a,b,p,r,n in rows]
    if three_way(table(wider), bound, 1)[0] == HOLDS: assert three_way(table(rows), bound, 1)[0] == HOLDS

@given(st.floats(0, 1e9), st.floats(1, 10))
def test_numbers_that_are_easy_to_remember(n, by):
    r = rounded_up(n)
    assert n*(1-1e-5)-1e-5 <= r <= 1.1*n+1 and r <= rounded_up(by*n)
    assert len(str(r).rstrip('0')) <= 2
    assert rounded_up(r) == r

@given(rows, SHARE, st.floats(1, 3))
def test_it_takes_more_images_than_there_are_and_more_if_less_is_sure(rows, bound, by):
    row,wide = (table([(v, f*a, f*b, p, r, n) for v,a,b,p,r,n in rows[:1]]).loc[0] for f in (1, by))
    few,many = needed(row, bound),needed(wide, bound)
    if few is None: assert row.value in (bound, row.reference)
    else: assert row.n < few <= many

def measures(question, rows, measure=None, group='whole'):
    return table(rows, question=question, group=group, measure=measure or RULES[question].figure)

@given(rows, st.sampled_from(['fidelity', 'diversity']))
def test_what_cannot_be_said_comes_with_a_number_of_images(rows, question):
    v = of_measures(measures(question, rows), question)
    used = [r for r in rows if math.isclose(r[0], v.value)]
    low,high = v.interval
    assert low <= v.value <= high and used
    assert (v.needed_n is None) or v.verdict == UNKNOWN and v.needed_n > min(r[-1] for r in used)
    beyond = v.value > .6 if question == 'fidelity' else v.value < .8
    if v.verdict == FAILS: assert beyond
    if v.verdict == HOLDS: assert not beyond
    other = measures('labels', rows)
    assert of_measures(pd.concat([measures(question, rows), other]), question) == v

@pytest.mark.parametrize('question', ['fidelity', 'diversity', 'labels'])
def test_nothing_measured_is_nothing_said(question):
    for t in (measures('copies', [(.5, .1, .1, .5, .5, 50)], 'x'), measures(question, [(math.nan,)*5+(9,)])):
        v = of_measures(t, question)
        assert v.verdict == UNKNOWN and v.sentence and v.value is v.interval is v.needed_n is None

def test_a_class_that_repeats_itself_convicts():
    good,bad = (1., .1, .1, .5, 1., 100),(.4, .05, .05, 1e-6, 1., 50)
    t = pd.concat([measures('diversity', [good]), measures('diversity', [bad], group='rare')],
                  ignore_index=True)
    v = of_measures(t, 'diversity')
    assert v.verdict == FAILS and v.value == .4 and 'rare' in v.sentence
    assert of_measures(t[:1], 'diversity').verdict == HOLDS
    more = pd.concat([t[:1], measures('diversity', [(3., .1, .1, 1e-6, 1., 50)], group='rare')],
                     ignore_index=True)
    assert of_measures(more, 'diversity').verdict == HOLDS         # more variety than in real images

def test_labels_are_judged_where_real_labels_can_be_read():
    blind,sees = (.5, .05, .05, 1e-6, .55, 200),(.97, .02, .02, .3, .98, 200)
    both = measures('labels', [blind, sees])
    assert of_measures(both, 'labels').verdict == HOLDS
    assert of_measures(both[:1], 'labels').verdict == UNKNOWN       # guessing gives 50
    wrong = measures('labels', [(.7, .05, .05, 1e-6, .98, 200)])
    assert of_measures(wrong, 'labels').verdict == FAILS
    unsure = of_measures(measures('labels', [(.9, .1, .1, .04, .95, 60)]), 'labels')
    assert unsure.verdict == UNKNOWN and unsure.needed_n > 60


# Memory

def tests_of_memory(copies=.5, membership=.5, control=.5, encoders=('pixels', 'random'), n=100):
    ps = {'clearly nearer': copies, 'membership': membership, 'membership without the set': control,
          'nearer': 1e-9}                       # which convicts nobody
    return pd.DataFrame([dict(encoder=e, test=k, value=.6, reference=.5, low=.5, high=.7, p=p, n=n)
                         for e in encoders for k,p in ps.items()])

SEEN = dict(copies=1e-6, membership=1e-6)
PS = st.floats(1e-12, 1)

def test_without_held_out_images_nothing_is_said_of_memory():
    found = of_privacy(None, 500, None)
    assert {*found} == {*CONVICTING} and words(found) == dict.fromkeys(CONVICTING, UNKNOWN)
    assert all('--test' in v.sentence for v in found.values())

@given(PS, PS, PS, st.integers(1, ENOUGH-1), PS)
def test_of_few_images_nothing_is_said_of_memory(a, b, c, n, planted):
    found = of_privacy(tests_of_memory(a, b, c, n=n), n, dict(copies=planted, membership=planted))
    assert words(found) == dict.fromkeys(CONVICTING, UNKNOWN)
    assert all(v.needed_n == ENOUGH for v in found.values())

@given(PS, PS, PS, PS, st.integers(ENOUGH, 5000))
def test_memory(a, b, control, planted, n):
    found = of_privacy(tests_of_memory(a, b, control), n, dict(copies=planted, membership=planted))
    corrected,family = np.sort([a, a, b, b]),4
    for key,p in dict(copies=a, membership=b).items():
        v = found[key]
        if p*family <= LEVEL: assert v.verdict == FAILS             # also where sets differ
        if p > LEVEL: assert v.verdict != FAILS
        if corrected[0]*family > LEVEL: assert v.verdict != FAILS
        if v.verdict == HOLDS: assert control*2 > LEVEL and planted*family <= LEVEL
        if v.verdict == UNKNOWN: assert control*2 <= LEVEL or planted*family > LEVEL
        if v.needed_n is not None: assert v.needed_n > n and v.verdict == UNKNOWN and control*2 > LEVEL

def test_who_cannot_see_a_leak_clears_nobody():
    quiet = tests_of_memory()
    assert words(of_privacy(quiet, 100, SEEN)) == dict.fromkeys(CONVICTING, HOLDS)
    found = of_privacy(quiet, 100, SEEN | dict(copies=.03))
    assert words(found) == dict(copies=UNKNOWN, membership=HOLDS)
    assert 100 < found['copies'].needed_n < of_privacy(quiet, 100, SEEN | dict(copies=.2))['copies'].needed_n
    assert of_privacy(quiet, 100, SEEN | dict(copies=.9))['copies'].needed_n is None    # nobody knows

def near(a, b, same=False, k=2):
    distance = torch.cdist(a, b)
    if same: distance.fill_diagonal_(torch.inf)
    return distance.topk(k, largest=False)

def clearer(seed, n=60, d=4, copies=0):
    g = torch.Generator().manual_seed(seed)
    training,holdout,fresh = torch.randn(3, n, d, generator=g)
    holdout[:,0] += 3                                           # it lies apart
    synthetic = torch.cat([training[:copies], fresh[copies:]])
    return clearer_than_training_p(near(synthetic, training), near(synthetic, holdout),
                                   near(training, training, True), near(training, holdout))

def test_images_like_training_ones_belong_to_them_no_more_clearly_than_those_do():
    p = [clearer(s, d=12) for s in range(300)]
    assert np.mean(np.array(p) <= LEVEL) < 2.5*LEVEL and .4 < np.mean(p) < .6  # votes for one image are alike
    assert max(clearer(s, copies=30) for s in range(20)) < 1e-3


# Utility

def differences(d, half, image=math.nan, other=None):
    row = dict(comparison='synthetic - real', difference=d, low=d-half, high=d+half, image_low=d-image,
               image_high=d+image, p=.5, p_not_worse=.5, p_equal=.5, n=5)
    more = [] if other is None else [row | dict(comparison='real + 1 - real twice', difference=other,
                                                low=other-.01, high=other+.01)]
    return pd.DataFrame([row, *more])

@pytest.mark.parametrize('d, half, image, word', [
    (-.01, .01, math.nan, HOLDS), (.05, .01, .02, HOLDS), (-.1, .02, .05, FAILS),
    (-.1, .02, math.nan, FAILS), (-.01, .05, .01, UNKNOWN), (-.01, .01, .05, UNKNOWN),
    (-.05, .01, .04, UNKNOWN), (-.03, .01, .01, UNKNOWN)])
def test_useful(d, half, image, word):
    v = of_utility(differences(d, half, image))
    widest = np.nanmax([half, image])
    assert v.verdict == word and v.value == d and np.allclose(v.interval, (d-widest, d+widest))
    if word != UNKNOWN or d == -.03: assert v.needed_n is None
    else: assert v.needed_n > 5

def test_usefulness_needs_classifiers_of_synthetic_images_alone():
    assert of_utility(None).verdict == UNKNOWN
    t = differences(-.01, .01, other=.02)
    assert of_utility(t).verdict == HOLDS and '+2.0' in of_utility(t).sentence
    v = of_utility(t[1:])                                       # a class was lacking
    assert v.verdict == UNKNOWN and v.value is None


# Audits

NOISE = torch.Generator().manual_seed(5)
def noisy(x, sd=2): return (x+sd*torch.randn(x.shape, generator=NOISE)).round().clamp(0, 255).byte()

@pytest.fixture(scope='module')
def planted():
    "Real and test images with doubles; synthetic images of which three are copies, one of them flipped"
    d = data(3)
    real = join(d.train, d.train.select(slice(0, 1)), split(noisy(d.train.x[1:2]), d.train.y[1:2]))
    test = join(d.test.select(slice(0, 57)), d.train.select(slice(2, 3)),
                split(noisy(d.train.x[3:4]), d.train.y[3:4]), d.test.select(slice(0, 1)))
    synthetic = d.val.select(slice(0, 62))
    x = synthetic.x.clone()
    x[10],x[20],x[30] = d.train.x[5],d.train.x[6].flip(-1),d.train.x[7].flip(-2)
    return audit(split(x, synthetic.y), real, test, d.classes, quick=True, names=dict(real='a'))

def test_doubles_are_found_and_left_out(planted):
    pairs = {(r.where, r.image, r.other_image): r.equal for r in planted.duplicates.itertuples()}
    inside,between,others = 'inside the real images','between test and real images','inside the test images'
    assert pairs[inside,0,60] and not pairs[inside,1,61] and pairs[others,0,59]
    assert pairs[between,57,2] and not pairs[between,58,3]
    assert planted.facts['images'] == dict(synthetic=62, real=62, test=60)
    assert len(planted.real) == 62 and len(planted.test) == 60 and len(planted.notes) == 2
    real = 62-len({j for k,_,j in pairs if k == inside})
    test = 60-len({i for k,i,_ in pairs if k == between} | {j for k,_,j in pairs if k == others})
    n = planted.measures.set_index('measure').n
    assert {*n['told apart'][:1]} == {real} and {*n['membership']} == {2*min(real, test)} and test < real < 62

def test_copies_are_paired_with_their_originals(planted):
    t = planted.nearest.set_index('image')
    assert sorted(t.index) == list(range(62)) and t.distance.is_monotonic_increasing
    for image,training in {10: 5, 20: 6, 30: 7}.items():
        assert t.distance[image] == 0 and t.training[image] == training and t['copy'][image]
    assert (t.distance[:3] == 0).all() and (t.test_distance[:3] > 0).all()
    assert t['copy'].sum() < 20 and (t['copy'] <= (t.distance <= t.threshold)).all()

def test_an_audit_says_all_it_promises(planted):
    assert [*planted.verdicts] == [*QUESTIONS] and planted.names == dict(real='a')
    assert {v.verdict for v in planted.verdicts.values()} <= {HOLDS, FAILS, UNKNOWN}
    assert {*planted.measures.question} == {'fidelity', 'diversity', 'copies', 'membership', 'labels'}
    assert {*planted.measures.group} == {'whole', *planted.classes}
    assert {*planted.map.kind} == {'real', 'held-out', 'synthetic'} and len(planted.map) <= 3*60
    assert np.isfinite(planted.map[['x', 'y']]).all(None)
    for v in planted.verdicts.values():
        if v.needed_n is not None: assert v.verdict == UNKNOWN
        if v.interval: assert v.interval[0] <= v.interval[1]

def test_the_same_seed_gives_the_same_tables(planted):
    again = audit(planted.synthetic, planted.real, planted.test, planted.classes, quick=True)
    for k in ('measures', 'nearest', 'duplicates', 'map'):
        pd.testing.assert_frame_equal(getattr(again, k), getattr(planted, k))
    assert again.verdicts == planted.verdicts

@pytest.mark.parametrize('seed', [0, 1])    # of twenty, one may be convicted
def test_new_real_images_are_convicted_of_nothing(seed):
    d = data(seed)
    found = audit(made('fresh', d), d.train, d.test, d.classes, quick=True, seed=seed)
    assert FAILS not in words(found.verdicts).values()

def test_who_copies_is_convicted_of_both():
    d = data(7)
    measured,_,tests = measure_all(make_encoders(d.test, quick=True), d.train, made('half_copies', d), d.test)
    found = words(all_verdicts(measured, tests, 60, SEEN))
    assert found['copies'] == found['membership'] == FAILS

def test_who_repeats_is_convicted():
    d = data(7)
    measured,_,tests = measure_all(make_encoders(d.test, quick=True), d.train, made('collapsed', d))
    found = words(all_verdicts(measured, tests))
    assert found['diversity'] == FAILS and found['copies'] == UNKNOWN

def test_a_leak_is_seen_where_there_is_one():
    "In pixels; a tenth of copies among 200 images, not among 40"
    d = data(7, 200)
    pixels,fresh = make_encoders(d.test, quick=True)[0],made('fresh', d, 200)
    assert max(planted_ps(fresh, d.train, d.test, [pixels]).values()) < .01
    few = [s.select(slice(0, 40)) for s in (fresh, d.train, d.test)]
    assert planted_ps(*few, [pixels])['copies'] > .01

def test_a_planted_leak_is_what_it_is_called():
    y = torch.tensor([0]*21 + [1]*10 + [2]*2)
    x = torch.arange(len(y), dtype=torch.uint8)[:,None,None,None].repeat(1, 1, 4, 4)*7
    x[:,0,0,0] = torch.tensor([0, 100, 200])[y].byte()              # the class
    real,synthetic = split(x, y),split(torch.full((40, 1, 4, 4), 255, dtype=torch.uint8))
    sets = planted_sets(synthetic, real)
    assert all(s.shape == synthetic.x.shape and s.dtype == torch.uint8 for s in sets.values())
    same = (sets['copies'].flatten(1)[:,None] == x.flatten(1)).all(2).any(1)
    assert same.sum() == 4 and (sets['copies'][~same] == 255).all()
    means = sets['membership']
    of_class = (x[:,None].float()+x[None].float())/2
    pair = (of_class.round().byte().flatten(2)[:,:,None] == means.flatten(1)).all(-1)
    i,j,_ = (pair & (y[:,None] == y)[:,:,None] & ~torch.eye(len(y)).bool()[:,:,None]).nonzero().T
    assert pair.any(0).any(0).all() and {*y[i].tolist()} == {0, 1, 2}
    assert (pair & (y[:,None] == y)[:,:,None]).any(0).any(0).all()  # of two of one class
    assert {*planted_sets(split(synthetic.x), split(x))} == {*CONVICTING}


# Other sets

def picture(n, C, seed, ch=1, size=12):
    "Blocks of noise, and a bright spot that says the class"
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    x = 90 + 25*torch.randn(n, ch, size//2, size//2, generator=g)
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for c in range(C): x[y == c,:,4*c:4*c+3,:6] += 100
    return split(x.clamp(0, 255).byte(), y)

def test_three_classes_in_colour():
    sets = [picture(66, 3, s, ch=3) for s in range(2)]
    found = audit(*sets, classes=['a', 'b', 'c'], quick=True)
    assert {*found.measures.group} == {'whole', 'a', 'b', 'c'} and found.verdicts['labels'].value == 1
    assert FAILS not in words(found.verdicts).values()

def test_without_labels_and_without_held_out_images_the_rest_is_said():
    real,synthetic = (picture(40, 2, s) for s in range(2))
    found = audit(split(synthetic.x), real, None, ['a', 'b'], quick=True)
    said = words(found.verdicts)
    assert [said[k] for k in ('utility', 'copies', 'membership', 'labels')] == [UNKNOWN]*4
    assert {*found.measures.question} == {'fidelity', 'diversity'} and {*found.measures.group} == {'whole'}
    assert len(found.notes) == 2 and {*found.map.kind} == {'real', 'synthetic'}
    assert found.nearest.test_distance.isna().all() and found.nearest.test.eq(-1).all()
    assert found.nearest['copy'].eq(found.nearest.distance <= found.nearest.threshold).all()

def test_several_labels_and_a_rare_class():
    sets = [picture(60, 2, s) for s in range(3)]
    several = [split(s.x, torch.stack([s.y, torch.arange(60) % 3 == 0], 1).float()) for s in sets]
    found = audit(*several[:2], classes=['a', 'b'], quick=True)
    assert {*found.measures.group} == {'whole', 'a', 'b'} and found.verdicts['labels'].value > .6
    assert {*planted_sets(*several[:2])} == {*CONVICTING}
    rare = [s.select(torch.cat([(s.y == 0).nonzero()[:,0], (s.y == 1).nonzero()[:5,0]])) for s in sets]
    found = audit(*rare[:2], classes=['a', 'b'], quick=True)
    labels = found.measures[found.measures.question == 'labels']
    assert {*labels.group} == {'whole', 'a', 'b'}
    assert {*found.measures.group[found.measures.measure == 'told apart']} == {'whole', 'a'}

def test_classes_and_rows_by_class():
    s,few = picture(60, 2, 0),picture(30, 2, 1)
    rows = class_rows(s, few, 2)
    assert not rows and not class_rows(split(s.x), s, 2)
    both = class_rows(s, picture(60, 3, 1), 3)
    assert [*both] == [0, 1] and all((s.y[i] == c).all() for c,(i,_) in both.items())

def test_components_keep_what_varies_most():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))*torch.tensor([1., 5, .1, 3, .01])
    a,b = components(x, x[:50], k=2)
    assert torch.allclose(a[:50], b) and a.mean(0).abs().max() < 1e-5 and a.shape == (200, 2)
    assert torch.allclose(a.var(0), x[:,[1,3]].var(0).double(), rtol=.05)

def test_sets_that_cannot_be_audited():
    real = picture(40, 2, 0)
    with refused('synthetic images', '20', found=5): audit(real.select(slice(5)), real, quick=True)
    with refused('real images'): audit(picture(40, 2, 1), picture(40, 2, 0, size=16), quick=True)
    with refused('test images', 'duplicate'): audit(picture(40, 2, 1), real, real, ['a', 'b'], quick=True)
    with refused('utility'): audit(picture(40, 2, 1), real, None, ['a', 'b'], quick=True, trained={})
    bare = replace(real, y=None)
    with refused('utility'): audit(bare, real, picture(40, 2, 2), ['a', 'b'], quick=True, trained={})
