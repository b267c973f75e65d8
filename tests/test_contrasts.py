"The questions of a study: its table, its pairs, its declared family, and the description of the rest."
import itertools

import numpy as np, pandas as pd, pytest

from refused import refused
from tsynd.core import metrics
from tsynd.experiments import corrupted, image_bootstrap, IMAGE_MEASURES
from tsynd.experiments import (
    averages, differences, HEADLINE, headline, in_order, pairs, questions, RESULT_COLUMNS,
    stored_predictions, tidy)
from tsynd.experiments import holm, read_study, sign_flip, smallest_p, t_interval
from tsynd.reports import contrasts_html, demo_study, findings


def table(values, dataset='d', n=50, condition='clean', measure='auc'):
    "Results of {arm: [value of seed 0, 1, …]}; None leaves the row out"
    rows = [(dataset, n, a, s, condition, measure, v) for a, vs in values.items() for s, v in enumerate(vs)]
    return pd.DataFrame([r for r in rows if r[-1] is not None], columns=RESULT_COLUMNS)

def results(*tables): return tidy(pd.concat(tables))


# The table

def test_tidy_brings_one_form():
    texts = dict(value=['.5', ' ', None, '.2'], seed=['1', '0', '0', '1'])
    r = tidy(table(dict(b=[.5, .6], a=[.1, .2])).assign(**texts))
    assert r.arm.tolist() == ['a', 'a', 'b', 'b'] and r.seed.tolist() == [0, 1, 0, 1]
    assert r.value[[1, 3]].tolist() == [.2, .5] and r.value[[0, 2]].isna().all() and (r.n == '50').all()

@pytest.mark.parametrize('change, field, found', [
    (lambda r: r.drop(columns='seed'), 'seed', None), (lambda r: r.assign(value='high'), 'value', 'high'),
    (lambda r: r.assign(value=np.inf), 'value', np.inf), (lambda r: r.assign(seed=.5), 'seed', .5),
    (lambda r: r.assign(seed=''), 'seed', ''), (lambda r: r.assign(n='half'), 'n', 'half'),
    (lambda r: r.assign(n=0), 'n', '0'),
    (lambda r: pd.concat([r, r]), 'results', 'd · 50 · a · 0 · clean · auc')])
def test_bad_tables_are_refused(change, field, found):
    with refused(field, found=found): tidy(change(table(dict(a=[.5, .6]))))

def test_sizes_are_ordered_as_numbers():
    assert in_order(['full', 200, '50', '1000', 50]) == ['50', '200', '1000', 'full']
    r = results(*(table(dict(a=[.5, .6], baseline=[.4, .3]), n=n) for n in ('full', 1000, 50, 20000)))
    for t in (r, averages(r), differences(r)):
        assert t.n.drop_duplicates().tolist() == ['50', '1000', '20000', 'full']


# Pairs

def test_pairs_ignore_the_order_of_rows():
    g = np.random.default_rng(0)
    r = results(*(table({a: g.random(8) for a in ('a', 'b', 'c')}, n=n) for n in (50, 100)))
    one = pairs(r, 'a', 'b', 'clean', 'auc', 'd', (50, 100))
    for s in range(5):
        again = pairs(r.sample(frac=1, random_state=s), 'a', 'b', 'clean', 'auc', 'd', ('100', 50))
        assert again.index.tolist() == list(range(8)) and np.allclose(again, one, atol=1e-15)
        again = differences(tidy(r.sample(frac=1, random_state=s)), 'b')
        pd.testing.assert_frame_equal(again, differences(r, 'b'))
    wide = r.pivot(index='seed', columns=['arm', 'n'], values='value')
    assert np.allclose(one.difference, (wide['a']-wide['b']).mean(axis=1))

def test_the_seed_is_what_pairs():
    r = table(dict(a=[.1, .2, .3], b=[.1, .2, .3]))
    r.loc[r.arm == 'b', 'seed'] = [2, 0, 1]
    assert np.allclose(pairs(tidy(r), 'a', 'b', 'clean', 'auc', 'd', 50).difference, [-.1, -.1, .2])

def test_seeds_that_one_arm_lacks_are_left_out_and_counted():
    r = results(table(dict(a=[.5, .6, .7, .8], b=[.4, None, np.nan, .6])),
                table(dict(a=[.5, .6, .7, None], b=[.5]*4), n=100))
    d = pairs(r, 'a', 'b', 'clean', 'auc', 'd', 50)
    assert d.index.tolist() == [0, 3] and d.attrs['unpaired'] == [1, 2]
    assert np.allclose(d.difference, [.1, .2])
    d = pairs(r, 'a', 'b', 'clean', 'auc', 'd', [50, 100])
    assert d.index.tolist() == [0] and d.attrs['unpaired'] == [1, 2, 3] and np.allclose(d.difference, .05)
    assert headline(r, [('a', 'b', 'clean', 'auc', 50)])[['seeds', 'unpaired']].values.tolist() == [[2, 2]]

@pytest.mark.parametrize('how, field, there', [
    (dict(arm='x'), 'arm', 'a, b'), (dict(reference='x'), 'arm', 'a, b'),
    (dict(dataset='x'), 'dataset', '50 · clean · auc'), (dict(n=70), 'n', '50'),
    (dict(condition='x'), 'condition', 'clean'), (dict(measure='x'), 'measure', 'auc'),
    (dict(reference='late'), 'seeds', 'd · 50 · clean · auc')])
def test_what_is_not_there_is_named(how, field, there):
    r = results(table(dict(a=[.5, .6, .7], b=[.5, .5, .5], late=[None, None, None, .5])))
    good = dict(arm='a', reference='b', condition='clean', measure='auc', dataset='d', n=50)
    found, = how.values()
    with refused(field, there, found=None if field == 'seeds' else found): pairs(r, **(good | how))


# The family

def test_default_family_asks_what_can_be_asked():
    arms = sorted({a for c in HEADLINE for a in c[:2]})
    conditions, measures = ('clean', 'corrupted', 'PGD 4/255'), ('auc', 'balanced_accuracy')
    keys = itertools.product('de', (50, 100, 'full'), conditions, measures)
    cells = [table({a: [.5, .6] for a in arms}, *k) for k in keys]
    q = questions(results(*cells))
    assert len(q) == 2*len(HEADLINE) <= .05/smallest_p(10) and {x[5] for x in q} == {('50', '100')}
    no_pgd = [t for t in cells if t.condition[0] != 'PGD 4/255']
    assert len(questions(results(*no_pgd))) == 2*(len(HEADLINE)-2)
    assert {x[5] for x in questions(results(*(t for t in cells if t.n[0] == 'full')))} == {('full',)}
    what = 'mi', 'pgd', 'clean', 'auc'
    assert questions(results(*cells), [[*what, 'full', ['e']], [*what, [100, 50]]]) == [
        (*what, 'e', ('full',)), *((*what, d, ('50', '100')) for d in 'de')]

TWICE = 'a', 'b', 'clean', 'auc', 'd', ('50',)

@pytest.mark.parametrize('family, found', [
    (['mi'], 'mi'), ([['mi', 'b', 'clean']], ['mi', 'b', 'clean']),
    ([['a', 'b', 1, 'auc']], ['a', 'b', 1, 'auc']), ([['a']*4], ['a']*4),
    ([['a', 'b', 'clean', 'auc']]*2, TWICE),
    ([['a', 'b', 'clean', 'auc', 50, 'd'], ['a', 'b', 'clean', 'auc']], TWICE), (None, None)])
def test_bad_families_are_refused(family, found):
    r = results(table(dict(a=[.5, .6], b=[.1, .2])))
    with refused('headline', found=found): questions(r, family)

def test_headline_is_made_of_its_parts():
    g = np.random.default_rng(2)
    r = results(*(table({a: g.normal(.7, .1, 8) for a in 'abc'}, n=n) for n in (50, 100)))
    clean = 'clean', 'auc'
    t = headline(r, [('a', 'b', *clean), ('a', 'c', *clean), ('b', 'c', *clean, 100)], level=.9)
    asked = ('a', 'b', (50, 100)), ('a', 'c', (50, 100)), ('b', 'c', 100)
    d = [pairs(r, x, y, *clean, 'd', n).difference for x, y, n in asked]
    assert t.n.tolist() == ['50, 100']*2 + ['100']
    assert np.allclose(t.difference, [v.mean() for v in d]) and np.allclose(t.sd, [v.std() for v in d])
    assert np.allclose(t[['lo', 'hi']], [t_interval(v, .9) for v in d])
    assert t.p.tolist() == [sign_flip(v) for v in d]
    assert t.p_holm.tolist() == holm(t.p).tolist() and t.possible.tolist() == [3/128]*3
    assert np.allclose(t.arm_mean-t.reference_mean, t.difference) and t.image_lo.isna().all()


def test_what_was_possible_is_holm_of_the_least_p():
    g = np.random.default_rng(0)
    many = {a: 10*i + g.random(10) for i, a in enumerate('abc')}
    r = results(table(many | dict(late=[*(100 + g.random(9)), None])))
    t = headline(r, [[x, y, 'clean', 'auc'] for x, y in itertools.combinations(['a', 'b', 'c', 'late'], 2)])
    assert t.seeds.tolist() == [10, 10, 9, 10, 9, 9]
    assert (t.p_holm == t.possible).all()                            # effects as clear as can be reach it
    assert t.possible.tolist() == [6/512]*2 + [3/256] + [6/512] + [3/256]*2
    g = headline(results(table(dict(a=g.random(10), b=g.random(10)))), [['a', 'b', 'clean', 'auc']])
    assert (g.possible <= g.p_holm).all() and g.possible[0] == 1/512


# Stored predictions

def study():
    "Cells and predictions whose probabilities tell which cell they are of"
    keys = itertools.product((50, 'full'), 'ab', range(3))
    cells = pd.DataFrame([dict(id=f'{n}-{a}-{s}', dataset='d', n=n, arm=a, seed=s) for n, a, s in keys])
    return cells, {k: (np.arange(6) % 2, np.full((6, 2), i/100)) for i, k in enumerate(cells.id)}

def test_stored_predictions_are_those_of_the_cells():
    cells, kept = study()
    find = stored_predictions(cells.sample(frac=1, random_state=0), kept)
    a, b, y, images = find('d', 50, 'a', 'b', [2, 0])
    assert images is None and find('d', 50, 'a', 'b', [2, 0], 'perturbed') is None
    assert a[:, 0, 0].tolist() == [.02, .0] and b[:, 0, 0].tolist() == [.05, .03] and y.tolist() == [0, 1]*3
    assert find('d', ('50', 'full'), 'a', 'b', np.array([1]))[0][:, 0, 0].tolist() == [.01, .07]
    with refused('predictions', found=('d', '50', 'c', 0)): find('d', 50, 'c', 'b', [0])
    kept['full-b-1'] = (np.arange(6) // 3, kept['full-b-1'][1])
    with refused('test labels'): find('d', 'full', 'a', 'b', [1])

def test_headline_asks_for_images_where_they_can_be_drawn_anew():
    asked = []
    y = np.arange(200) % 2
    p = np.stack([1-y, y], 1)[None]*.6 + .2
    def find(*what): asked.append(what); return (p, p, y, None) if what[5] == 'clean' else None
    kinds = list(itertools.product(('clean', 'PGD 4/255'), ('auc', 'ece')))
    r = results(*(table(dict(a=[.5, .6, .7], b=[.5, .5, None]), condition=c, measure=m) for c, m in kinds))
    t = headline(r, [('a', 'b', *k) for k in kinds], find)
    assert [w[5] for w in asked] == ['clean', 'PGD 4/255'] and list(asked[0][4]) == [0, 1]
    assert all(w[:4] == ('d', ('50',), 'a', 'b') for w in asked)
    assert t.image_lo.notna().tolist() == [True, False, False, False]

SINGLE = ['perturbed', 'PGD 4/255', *(f'corrupted {f} {s}' for f in ('blur', 'shot_noise') for s in (1, 12))]
MEANS = ['corrupted', 'corrupted blur', 'corrupted shot_noise', 'severity 1', 'severity 12']

def changed_images(y, n=20, seed=0):
    "Cells, and what was kept of them: perturbed all images, else some, others for each seed"
    g, kept = np.random.default_rng(seed), {}
    cells, _ = study()
    for c in cells.itertuples():
        order = np.random.default_rng(c.seed).permutation(len(y))[:n]
        images = {k: np.arange(len(y)) if k == 'perturbed' else order for k in SINGLE}
        p = {k: g.beta(2+y[i]*(c.arm == 'a'), 2, len(i)) for k, i in images.items()}
        kept[c.id] = {k: (i, y[i], np.stack([1-p[k], p[k]], 1).astype('float32')) for k, i in images.items()}
    return cells, {i: (y, np.full((len(y), 2), .5)) for i in cells.id}, kept

def measured(kept):
    "The measures of a cell by condition, as a study writes them"
    found = {k: metrics(y, p, 'binary-class') for k, (_, y, p) in kept.items()}
    rows = [dict(m, corruption=k.split()[1], severity=k.split()[2], balanced_error=1-m['balanced_accuracy'])
            for k, m in found.items() if k in SINGLE[2:]]
    return {k: found[k] for k in SINGLE[:2]} | corrupted([{}, *rows])

def test_the_interval_over_images_is_that_of_the_measure_in_the_table():
    cells, clean, kept = changed_images(np.arange(40) % 2)
    r = tidy(pd.DataFrame([('d', c.n, c.arm, c.seed, k, m, v) for c in cells.itertuples()
                           for k, d in measured(kept[c.id]).items() for m, v in d.items()],
                          columns=RESULT_COLUMNS))
    find = stored_predictions(cells, clean, kept.get)
    family = [('a', 'b', k, m, (50, 'full')) for k in SINGLE[:2]+MEANS for m in IMAGE_MEASURES]
    t = headline(r, family, find)
    assert (t.image_lo <= t.difference).all() and (t.difference <= t.image_hi).all()
    for x in t.itertuples():
        *p, images = find('d', (50, 'full'), 'a', 'b', [0, 1, 2], x.condition)
        got = image_bootstrap(*p, x.measure, replicates=100, images=images)
        assert np.isclose(got[0], x.difference)

def without(condition): return lambda kept: {k: v for k, v in kept.items() if k != condition}

def attacked(change): return lambda kept: kept | {'PGD 4/255': tuple(map(change, kept['PGD 4/255']))}

@pytest.mark.parametrize('change, condition, there', [
    (lambda k: None, 'perturbed', False), (lambda k: {}, 'perturbed', False),
    (without('perturbed'), 'perturbed', False), (without('perturbed'), 'corrupted', True),
    (without('corrupted blur 1'), 'corrupted', False), (without('corrupted blur 1'), 'severity 1', False),
    (without('corrupted blur 1'), 'severity 12', True),
    (without('corrupted blur 1'), 'corrupted shot_noise', True),
    (attacked(lambda v: v[::-1]), 'PGD 4/255', False), (attacked(lambda v: v[:9]), 'PGD 4/255', False),
    (lambda k: k, 'perturbed ×2', False), (lambda k: k, 'PGD 4/255', True)])
def test_no_interval_unless_every_cell_has_kept_the_same(change, condition, there):
    cells, clean, kept = changed_images(np.arange(40) % 2)
    kept['50-b-1'] = change(kept['50-b-1'])
    assert bool(stored_predictions(cells, clean, kept.get)('d', 50, 'a', 'b', [0, 1, 2], condition)) == there

def test_labels_that_are_not_those_of_the_clean_images():
    cells, clean, kept = changed_images(np.arange(40) % 2)
    i, y, p = kept['50-b-1']['PGD 4/255']
    kept['50-b-1']['PGD 4/255'] = i, 1-y, p
    find = stored_predictions(cells, clean, kept.get)
    assert find('d', 50, 'a', 'b', [0, 1, 2], 'corrupted')
    with refused('test labels'): find('d', 50, 'a', 'b', [0, 1, 2], 'PGD 4/255')

def test_a_rare_class_costs_the_interval_over_images_and_nothing_else():
    cells, clean, kept = changed_images((np.arange(40) == 7).astype(int), n=40)
    r = results(*(table(dict(a=[.5, .6, .7], b=[.5, .5, .4]), condition='corrupted', measure=m)
                  for m in ('accuracy', 'balanced_accuracy')))
    family = [('a', 'b', 'corrupted', m) for m in ('accuracy', 'balanced_accuracy')]
    t = headline(r, family, stored_predictions(cells, clean, kept.get))
    assert t.image_lo.notna().tolist() == [True, False] and t.lo.notna().all()

@pytest.mark.parametrize('held, config, there', [
    (None, {}, True), (None, dict(test_n=40), False), (None, dict(split='val'), False),
    ('', dict(test_n=40), False), ('same', dict(split='val'), True), ('other', {}, False),
    ('partly', {}, True), ('partly', dict(test_n=40), False)])
def test_the_report_has_both_intervals_where_all_seeds_had_the_same_images(tmp_path, held, config, there):
    conditions = 'clean', 'PGD 4/255', 'corrupted'
    family = [['mi', 'baseline', k, 'balanced_accuracy'] for k in conditions]
    s = read_study(demo_study(tmp_path/'s', 3, (50,), ('baseline', 'mi'), headline=family, **config))
    if held is not None:
        values = dict(other=s.cells.seed.map(str), partly=np.where(s.cells.seed == 1, None, 'x'))
        s.cells['held'] = values.get(held, held)
    g = np.random.default_rng(0)
    def kept(id): # of 60 images that differ between seeds
        i = np.random.default_rng(int(id.split('-')[2])).permutation(156)[:60]
        return {k: (i, s.predictions[id][0][i], g.dirichlet((1, 1), len(i)).astype('float32'))
                for k in ('PGD 4/255', 'corrupted blur 1', 'corrupted blur 2')}
    s.kept = kept
    f = findings(s)
    assert len(f.head) == 6 and f.head[['image_lo', 'image_hi']].notna().all(axis=None) == there
    assert f.head.image_lo.isna().all() != there
    assert contrasts_html(f).count('class="im"') == 6*there


# Description

def test_differences_are_those_of_the_pairs():
    g = np.random.default_rng(0)
    def values(): return dict(baseline=g.random(5), a=g.random(5), c=[.5, None, np.nan, .2, .1])
    r = results(*(table(values(), n=n, measure=m) for n in (50, 'full') for m in ('auc', 'ece')))
    t = differences(r)
    assert len(t) == 8 and set(t.arm) == {'a', 'c'} and t.seeds[t.arm == 'c'].eq(3).all()
    for x in t.itertuples():
        d = pairs(r, x.arm, 'baseline', x.condition, x.measure, x.dataset, x.n).difference
        assert np.isclose(x.difference, d.mean()) and np.isclose(x.sd, d.std())
        assert np.allclose((x.lo, x.hi), t_interval(d))
        good = 1 if x.measure == 'auc' else -1
        assert x.worse == (good*d < 0).sum() and x.loses == (good*d.mean() < 0)

def test_cost_is_neither_better_nor_worse():
    t = differences(results(table(dict(baseline=[1, 2], a=[3, 4]), measure='seconds'),
                            table(dict(baseline=[4, 5], a=[3, 4]), measure='images_seen')))
    assert not t.loses.any() and (t.worse == 0).all()

def test_an_equal_arm_does_not_lose():
    t = differences(results(table(dict(baseline=[.5, .5], a=[.5, .5]))))
    assert not t.loses.any() and t.loc[0, ['lo', 'hi']].tolist() == [0, 0]

def test_differences_need_their_baseline():
    without, apart = results(table(dict(a=[1], b=[1]))), results(table(dict(baseline=[1], b=[None, 1])))
    with refused('arm', found='baseline'): differences(without)
    with refused('seeds', 'baseline'): differences(apart)

def test_averages():
    t = averages(results(table(dict(a=[.1, .3, np.nan], b=[.2])))).set_index('arm')
    assert np.allclose(t.loc['a', ['mean', 'sd', 'seeds']].astype(float), [.2, .02**.5, 2])
    assert np.isnan(t.sd['b'])
