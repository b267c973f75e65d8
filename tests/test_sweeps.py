"""Studies of generators: what is known comes out, cells are paired, slips are named, the page says it."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from processes import Here
from refused import refused
from tsynd.core import InputError
from tsynd.data import load_data, phantom, phantom_settings, subset
from tsynd.experiments import (
    along_axis, cell_kind, cells_checksum, check_config, estimate, gaps, line_of, memory_range, over_seeds,
    run_study, slopes, StudyConfig, to_toml)
from tsynd.reports import sweep_numbers, sweep_table, write_study

pytestmark = pytest.mark.xdist_group('sweeps')  # one worker makes the studies

WHAT = 'rarest=.02,n_train=60,n_val=60,n_test=40,size=12'
SETS = [f'phantom:findings=3,combinations={k},{WHAT}' for k in (4,8)]
TINY = StudyConfig('tiny', SETS, ['full'], 2, cell='generator', sweep='combinations', updates=8, ae_steps=5,
                  size=12, arms=dict(real={}, duplicates={}, copycat={},
                                     diffusion=dict(updates=3, width=8)))
@pytest.fixture(scope='module')
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sweep')/'s'
    run_study(replace(TINY, seeds=1), folder, jobs=1, progress=False, executor=Here())
    return run_study(TINY, folder, jobs=1, progress=False, executor=Here())           # grows by a seed


def test_every_cell_is_run_and_paired(study):
    assert (study.cells.status == 'done').all(), study.cells.reason.dropna().tolist()
    for k in ('subset','weights','held'):
        assert (study.cells.groupby(['dataset','seed'])[k].nunique() == 1).all()

def test_copies_are_convicted_and_the_rest_is_measured(study):
    t = study.results.query("condition == 'memory'")
    memory = t.pivot_table(index='arm', columns='measure', values='value')
    assert memory.copied['copycat'] == 1 and memory.nearer['copycat'] == 1
    r = study.results
    assert {*r[r.arm == 'diffusion'].measure} >= {'auc','nearer','onset','copied'}
    assert {*r[r.arm == 'duplicates'].condition} == {'with real'}

def test_places_on_the_axis(study):
    assert set(along_axis(study)['at']) == {4., 8.}
    assert set(gaps(study).line) == {SETS[0].replace(',combinations=4', '')}
    beside = gaps(study, 'with real', 'auc', 'duplicates', ['real'])
    assert len(beside) == 8                                           # two arms, places, seeds

def test_the_page_has_a_row_for_each_place(study):
    s = sweep_numbers(study)
    assert len(sweep_table(s)) == 4 and s.memory_words() == []
    page = write_study(study.folder).read_text()
    assert all(w in page for w in s.slope_words()) and '>nan' not in page

@pytest.mark.parametrize('change,field', [
    (dict(datasets=['phantom']), 'datasets'), (dict(datasets=['phantom:size=13,combinations=4']), 'size'),
    (dict(datasets=['phantom:findings=9,combinations=4']), 'findings'), (dict(arms=dict(copycat={})), 'arms'),
    (dict(keep=['models']), 'keep'),
    (dict(cell='classifier'), 'sweep'), (dict(arms=dict(real=dict(width=3))), 'arm real'),
    (dict(arms=dict(real={}, x={})), 'generator'),
    (dict(arms=dict(real={}, diffusion=dict(ratio=0))), 'ratio'), (dict(protocol='medmnist'), 'protocol'),
    (dict(headline=[['copycat','real','PGD 4/255','auc']]), 'headline')])
def test_slips_are_named(change, field):
    with refused(field): check_config(replace(TINY, **change))

def test_no_hours_are_forecast():
    with refused('cell'): estimate(TINY)

def test_a_sweep_over_the_ratio_draws_one_line(study, tmp_path):
    c = replace(TINY, datasets=SETS[:1], seeds=1, sweep='ratio',
                arms=dict(real={}, half=dict(arm='copycat', ratio=.5), twice=dict(arm='copycat', ratio=2.)))
    t = gaps(run_study(c, tmp_path/'r', jobs=1, progress=False, executor=Here()))
    assert t[['line','generator']].drop_duplicates().to_numpy().tolist() == [[SETS[0],'copycat']]
    assert sorted(t['at']) == [.5, 2.]


# Statistics, where the answer is known

def line(seeds, at, mean, noise=0., seed=0):
    g = np.random.default_rng(seed)
    rows = [('set','g', float(a), s, mean(a)+g.normal(0, noise)) for s in range(seeds) for a in at]
    return pd.DataFrame(rows, columns=['line','generator','at','seed','value'])

def test_a_straight_line_has_its_slope():
    s = slopes(line(3, (2,8,64), lambda a: 1-.1*np.log2(a)))
    assert np.allclose(s[['slope','lo','hi']], -.1) and s.seeds[0] == 3

def test_seeds_without_all_places_have_no_slope():
    t = line(3, (2,4), np.log2)
    assert slopes(t.drop(index=0)).seeds[0] == 2

def test_one_seed_has_no_interval():
    one = line(1, (2,4), np.log2)
    assert over_seeds(one).lo.isna().all() and slopes(one).lo.isna().all() and slopes(one).slope[0] == 1

def test_memory_ends_where_it_ends():
    r = memory_range(line(5, (40,100,200,400), lambda a: .2*(a <= 100), .001)).iloc[0]
    assert (r.seen, r.possible, r.most) == (100, 100, 400)
    none = memory_range(line(5, (40,100), lambda a: -.1, .001)).iloc[0]
    assert np.isnan(none.seen) and np.isnan(none.possible)


# What cells are named by

def test_settings_follow_the_name():
    assert load_data('phantom:findings=2,combinations=4,rarest=.05,size=16').shape == (1, 16, 16)
    assert load_data('phantom:n_train=30').md5 == phantom(n_train=30).md5
    assert phantom_settings('phantom:prevalence=.2') == dict(prevalence=.2)

@pytest.mark.parametrize('name', [f'phantom:{k}' for k in ('findigs=6', 'findings=six', 'findings', '=3')])
def test_wrong_settings_are_refused(name):
    with refused('data set'): load_data(name)

def test_equal_subsets_are_nested_and_equal():
    data = phantom(n_train=200)
    small,large = (subset(data, n, 3, equal=True).train for n in (20,80))
    assert small.y.bincount().tolist() == [10,10] and large.y.bincount().tolist() == [40,40]
    assert {*small.index.tolist()} < {*large.index.tolist()}
    with refused('equal'): subset(phantom(findings=2), 20, equal=True)
    with refused('subset'): subset(data, 199, equal=True)

def test_a_study_survives_its_file():
    assert 'sweep = "combinations"' in to_toml(TINY)

def test_paths_are_no_phantoms():
    with pytest.raises(InputError, match='unknown'): load_data('phantoms')

def test_a_seed_counts_once():
    t = line(3, (2,4), np.log2, .1)
    assert over_seeds(pd.concat([t, t])).seeds.eq(3).all()

def test_an_unfinished_sweep_has_a_page(study, tmp_path):
    few = replace(TINY, seeds=1, arms=dict(real={}, copycat=dict(ratio=.1), duplicates={}))
    def stop(task, cell):
        if cell.arm != 'real': raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_study(few, tmp_path/'s', jobs=1, progress=False, executor=Here(stop))
    page = write_study(tmp_path/'s').read_text()
    assert 'No generator can be compared with real images yet' in page

def test_other_numbers_of_images_are_other_lines():
    c = replace(TINY, n=[20,'full'])
    assert line_of(c, SETS[0], 20, 'copycat') != line_of(c, SETS[0], 'full', 'copycat')
    two = dict(real={}, a=dict(arm='diffusion', width=8), b=dict(arm='diffusion'))
    c = replace(TINY, sweep='ratio', arms=two)
    assert line_of(c, SETS[0], 'full', 'a') != line_of(c, SETS[0], 'full', 'b')

def test_cells_know_the_code_of_generator_and_audit():
    assert {'tsynd.audit.generator_cells', 'tsynd.generation.diffusion'} <= {*cell_kind(TINY).modules}
    assert cells_checksum(TINY) != cells_checksum(replace(TINY, cell='classifier', sweep=None))
