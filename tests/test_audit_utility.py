"""Utility against known truth: equal images, equal rows; equal updates; what is kept is not done again."""
from dataclasses import replace
from multiprocessing import get_context

import numpy as np, pytest, torch

from refused import refused
from tsynd.audit import utility, UTILITY_ARMS, utility_arms, utility_differences
from tsynd.core import ClassifierSettings
from tsynd.data import phantom, Split
from tsynd.experiments import equivalence, image_bootstrap, non_inferiority, sign_flip, t_interval
from tsynd.generation import labels_like, make_generator, sample

CLASSES = ['small', 'large']
FAST = ClassifierSettings(updates=3, bs=8, lr=.01)

def large(s): return replace(s, y=(s.factors[:, 0] > .5).long())

@pytest.fixture(scope='module')
def data():
    d = phantom(n_train=40, n_val=120, n_test=60, size=12, holes=False, seed=5)
    return replace(d, **{k: large(getattr(d, k)) for k in ('train', 'val', 'test')})

def few(s, n): return s.select(slice(0, n))

def table(data, synthetic, real=None, n=16, settings=FAST, seeds=2, **how):
    return utility(few(data.train, n) if real is None else real, synthetic, data.test, CLASSES, data.task,
                   settings=settings, seeds=seeds, **how)

def made(data, name, n): return sample(make_generator(name).fit(data), labels_like(data.train.y, n), seed=1)

def same(a, b): # tables, their probabilities too
    assert a.equals(b) and a.attrs.keys() == b.attrs.keys()
    p, q = (t.attrs['probabilities'] for t in (a, b))
    return p.keys() == q.keys() and all(np.array_equal(p[k], q[k]) for k in p)

def measures(t, arm): return t[t.arm == arm].drop(columns=['arm', 'ratio']).reset_index(drop=True)

@pytest.fixture(scope='module')
def everything(data):
    "The synthetic images are the real ones; there are others"
    return table(data, few(data.train, 16), more=few(data.val, 20), ratios=(.25, 1, 3))


# The arms

def test_equal_images_give_equal_rows(everything):
    "Real images as synthetic ones: no gap at all, and no more than duplicates"
    assert measures(everything, 'synthetic').equals(measures(everything, 'real'))
    assert measures(everything, 'real + 1').equals(measures(everything, 'real twice'))
    assert not measures(everything, 'real + 0.25').equals(measures(everything, 'real'))

def test_every_arm_gets_the_same_updates_from_as_many_images_as_it_says(everything):
    n = dict(zip(everything.arm, everything.n_images))
    assert n == {'real': 16, 'synthetic': 16, 'real + 0.25': 20, 'real + 1': 32, 'real twice': 32,
                 'twice as many real': 32, 'other real': 16}
    assert everything.updates.eq(3).all()
    assert [*everything.ratio[::2]][2:4] == [.25, 1] and everything.ratio[0] == 0
    left_out = everything.attrs['left_out']
    assert list(left_out) == ['real + 3'] and '48' in left_out['real + 3']

def test_trainings_of_a_seed_begin_with_the_same_weights(everything):
    assert everything.groupby('seed').weights.nunique().eq(1).all() and everything.weights.nunique() == 2

def test_epochs_are_those_of_the_real_images(data):
    t = table(data, few(data.val, 9), settings=replace(FAST, epochs=2), n=20, rows=['real', 'synthetic'])
    assert t.updates.eq(6).all() and [*t.n_images] == [20, 20, 9, 9]     # 2*ceil(20/8), also of fewer images

def test_the_table_of_arms_is_the_default():
    assert list(UTILITY_ARMS) == ['real', 'synthetic', 'real + 0.25', 'real + 1', 'real + 3', 'real + 10',
                                  'real twice', 'twice as many real', 'other real']
    assert utility_arms([2])['real + 2'].synthetic == 2

def test_what_the_test_labels_are_changes_no_training(data):
    "They are measured by, and by nothing else"
    other = replace(data, test=replace(data.test, y=1-data.test.y))
    a, b = (table(d, few(data.val, 16), rows=['real']) for d in (data, other))
    assert np.array_equal(a.attrs['probabilities']['real'], b.attrs['probabilities']['real'])
    assert np.allclose(a.auc, 1-b.auc)

def test_a_set_that_lacks_a_class_can_only_be_added(data):
    t = table(data, few(data.val.select(data.val.y == 1), 16), ratios=[1])
    assert [*t.arm.unique()] == ['real', 'real + 1', 'real twice']
    assert "'small'" in t.attrs['left_out']['synthetic']

def test_wrong_labels_are_worse_than_fresh_images(data):
    settings = ClassifierSettings(updates=20, bs=16, lr=.01, dropout=.2)
    def score(name, rows):
        t = table(data, made(data, name, 40), n=40, settings=settings, rows=rows)
        return t.groupby('arm').auc.mean()
    fresh, wrong = score('fresh', ['real', 'synthetic']), score('wrong_labels', ['synthetic'])
    assert fresh.min() > .8 and abs(fresh.synthetic-fresh.real) < .12
    assert wrong.synthetic < fresh.synthetic-.1

def test_several_labels(data):
    def both(s): return replace(s, y=(s.factors[:, :2] > .5).float())
    d = phantom(n_train=24, n_val=24, n_test=20, size=12, holes=False)
    sets = [both(s) for s in (d.train, d.val, d.test)]
    t = utility(*sets, ['large', 'spiculated'], 'multi-label, binary-class', seeds=2, settings=FAST,
                rows=['real', 'synthetic'])
    assert t.auc.between(0, 1).all() and t.attrs['probabilities']['real'].shape == (2, 20, 2)
    assert utility_differences(t, both(d.test).y, replicates=100).notna().all(axis=None)

def test_robustness_is_the_table_of_elsewhere(data):
    data = replace(data, test=few(data.test, 20))
    t = table(data, few(data.val, 16), rows=['real'], robustness=True)
    assert {'perturbed_auc', 'perturbed_accuracy', 'PGD_1/255_balanced_accuracy'} <= {*t.columns}
    plain = table(data, few(data.val, 16), rows=['real'])
    assert plain.equals(t[plain.columns]) and t['PGD_1/255_accuracy'].le(t.accuracy).all()


# Kept, and in other processes

class Stopped(Exception): pass

def test_what_was_stopped_goes_on_and_gives_the_same(data, tmp_path):
    how = dict(synthetic=few(data.val, 16), rows=['real', 'synthetic'])
    def stop(done, total):
        if done == 2: raise Stopped
    with pytest.raises(Stopped): table(data, keep=tmp_path, progress=stop, **how)
    first = {p: p.read_bytes() for p in tmp_path.iterdir()}
    calls = []
    t = table(data, keep=tmp_path, progress=lambda *n: calls.append(n), **how)
    assert len(first) == 2 and calls == [(2, 4), (3, 4), (4, 4)]
    assert same(t, table(data, **how)) and all(p.read_bytes() == b for p, b in first.items())
    next(iter(first)).write_bytes(b'half of it')
    calls.clear()
    assert same(t, table(data, keep=tmp_path, progress=lambda *n: calls.append(n), **how)) and len(calls) == 2

def test_a_folder_knows_what_it_is_about(data, tmp_path):
    "Other synthetic images, other settings: only what is still true is not done again"
    def trained(split, **how):
        calls = []
        t = table(data, few(split, 16), keep=tmp_path, progress=lambda *n: calls.append(n),
                  rows=['real', 'synthetic'], **how)
        return t, 4-(calls[0][0] if len(calls) < 4 else 0)
    a, b, c = trained(data.val), trained(data.train), trained(data.val, settings=replace(FAST, lr=.02))
    assert (a[1], b[1], c[1]) == (4, 2, 4)
    assert measures(a[0], 'real').equals(measures(b[0], 'real'))
    assert not measures(b[0], 'real').equals(measures(c[0], 'real'))

def test_two_processes_give_the_same_numbers(data, tmp_path, monkeypatch):
    "Copies of this one, which need not import everything"
    monkeypatch.setattr('tsynd.audit.utilities.get_context', lambda method: get_context('fork'))
    how = dict(synthetic=few(data.val, 16), rows=['real'])
    threads = torch.get_num_threads()
    assert same(table(data, jobs=2, keep=tmp_path, **how), table(data, **how))
    assert torch.get_num_threads() == threads and len([*tmp_path.iterdir()]) == 2


# Differences

def test_differences_are_those_of_the_statistics(everything, data):
    d = utility_differences(everything, data.test.y, margin=.05, replicates=200).set_index('comparison')
    assert list(d.index) == ['synthetic - real', 'real + 0.25 - real', 'real + 1 - real',
                             'real + 0.25 - real twice', 'real + 1 - real twice', 'real twice - real',
                             'twice as many real - real', 'other real - real']
    for exactly in ('synthetic - real', 'real + 1 - real twice'):
        r = d.loc[exactly]
        assert r.difference == r.low == r.high == r.image_low == r.image_high == r.p_equal == 0 and r.p == 1
    r, p = d.loc['twice as many real - real'], everything.attrs['probabilities']
    v = measures(everything, 'twice as many real').auc-measures(everything, 'real').auc
    assert np.allclose([r.low, r.high], t_interval(v)) and r.difference == v.mean() and r.n == 2
    assert (r.p, r.p_not_worse, r.p_equal) == (sign_flip(v), non_inferiority(v, .05), equivalence(v, .05))
    image = image_bootstrap(p['twice as many real'], p['real'], data.test.y, replicates=200)
    assert np.allclose([r.difference, r.image_low, r.image_high], image, atol=1e-6)

def test_seeds_can_be_left_out_and_other_measures_have_no_images(everything, data):
    one = everything[everything.seed == 1]
    with refused('seeds', found=1): utility_differences(one, data.test.y)
    d = utility_differences(everything.assign(other=everything.auc), data.test.y, measure='other')
    assert d.image_low.isna().all() and d.low.notna().all()
    plain = everything.copy(); plain.attrs = {}
    assert utility_differences(plain, data.test.y).image_low.isna().all()


# What is refused

@pytest.mark.parametrize('change, field', [
    (dict(synthetic=lambda s: replace(s, y=None)), 'synthetic'),
    (dict(test=lambda s: replace(s, y=None)), 'test'),
    (dict(test=lambda s: s.select(slice(0))), 'test'),
    (dict(synthetic=lambda s: s.select(slice(0))), 'synthetic'),
    (dict(real=lambda s: s.select(s.y == 0)), 'real'),          # synthetic has a class that real has not
    (dict(synthetic=lambda s: replace(s, y=s.y+1)), 'synthetic: labels'),
    (dict(synthetic=lambda s: replace(s, x=s.x[..., :8])), 'synthetic'),
    (dict(test=lambda s: replace(s, x=s.x.expand(-1, 3, -1, -1))), 'test'),
    (dict(synthetic=lambda s: replace(s, x=s.x/255)), 'synthetic')])
def test_sets_are_checked(data, change, field):
    sets = dict(real=data.train, synthetic=data.val, test=data.test)
    sets |= {k: f(sets[k]) for k, f in change.items()}
    with refused(field): utility(**sets, classes=CLASSES, task=data.task, settings=FAST)

@pytest.mark.parametrize('field, value', [('seeds', 1), ('jobs', 0), ('task', 'guess'), ('device', 'abacus')])
def test_settings_are_checked(data, field, value):
    how = dict(task=data.task, settings=FAST) | {field: value}
    with refused(field, found=value): utility(data.train, data.val, data.test, CLASSES, **how)

def test_arms_and_measures_are_known(data, everything):
    for field, how in (('rows', dict(rows=['unreal'])), ('ratios', dict(ratios=[0])),
                       ('lr', dict(settings=replace(FAST, lr=-1.))), ('rows', dict(rows=['other real']))):
        with refused(field): table(data, few(data.val, 16), **how)
    with refused('measure'): utility_differences(everything, data.test.y, measure='beauty')
    with refused('margin'): utility_differences(everything, data.test.y, margin=0)
    with refused('measure', 'accuracy'): utility_differences(everything.assign(auc=np.nan), data.test.y)

def test_a_test_set_without_a_class_has_no_auc_and_still_an_accuracy(data):
    test = data.test.select(data.test.y == 1)
    t = utility(few(data.train, 16), few(data.val, 16), test, CLASSES, data.task, seeds=2, settings=FAST,
                rows=['real', 'synthetic'])
    assert t.auc.isna().all() and utility_differences(t, test.y, measure='accuracy').image_low.notna().all()

def test_images_that_are_left_are_not_changed(data):
    x, y = data.val.x.clone(), data.val.y.clone()
    table(data, data.val, rows=['synthetic'])
    assert torch.equal(data.val.x, x) and torch.equal(data.val.y, y) and isinstance(data.val, Split)
