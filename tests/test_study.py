"""A study that is stopped anywhere goes on and ends with the same table;
what it compares is paired; slips are named."""
import json, lzma, os, time
from dataclasses import asdict, replace

import numpy as np
import pytest, torch
from hypothesis import example, given, strategies as st
from sklearn.metrics import log_loss

from processes import Here, process, wait_for
from refused import refused
from tsynd.experiments import train_cell, Witness
from tsynd.experiments.forecast import _steps
from tsynd.experiments.study_configuration import _measured
from tsynd.deployment import load_bundle
from tsynd.experiments import ARMS, arm, kept_folder, Processes, run_cell, TRIES
from tsynd.models import make_classifier, NETWORKS, train_classifier
from tsynd.data import phantom
from tsynd.experiments import precision
from tsynd.core import SingleLabel
from tsynd.experiments import (
    append, Cell, cell_data, cells, corrupted, cpu_time, estimate, fit_steps, make_arm, read_config,
    read_records, read_study, run_study, StudyConfig, to_toml)

pytestmark = pytest.mark.xdist_group('study')  # one worker makes the study, for all tests that need it

TINY = StudyConfig(name='tiny', datasets=['phantom'], n=[20, 40], seeds=2,
                   arms={'baseline': {}, 'far': dict(arm='mi', radius=.6, gate=0.),
                         'long': dict(arm='baseline', longer=2.)},
                   updates=4, ae_steps=4, attack_n=10, pgd_steps=2, eps=[2], corruptions=['speckle_noise'],
                   test_n=30)
PART = replace(TINY, n=[20], seeds=1)  # three of its twelve cells, for what is run over and over


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "In two processes of their own"
    return run_study(TINY, tmp_path_factory.mktemp('study')/'s', jobs=2, progress=False)

@pytest.fixture(scope='module')
def part(study): return study.results.query('n == 20 and seed == 0').reset_index(drop=True)

def here(c, folder, before=lambda task, cell: None):
    "A study that this process runs or goes on with"
    return run_study(c, folder, jobs=1, progress=False, executor=Here(before))

def records(folder): return read_records(folder)[0]

def toml(tmp_path, text):
    f = tmp_path/'my.toml'
    f.write_text(text)
    return f

GOOD = 'datasets = ["phantom"]\nn = [20]\nseeds = 2\n[arms.baseline]\n[arms.mi]\nradius = 0.5\n'


# Configuration

def test_a_configuration_survives_its_file(tmp_path):
    c = replace(TINY, epochs=3, headline=[['a "quoted", label', 'baseline', 'clean', 'auc']],
                arms={'a "quoted", label': dict(arm='mi', weight=2.5), 'baseline': {}})
    assert asdict(read_config(toml(tmp_path, to_toml(c)))) == asdict(c)
    assert read_config(toml(tmp_path, GOOD)).name == 'my'

def test_what_can_be_asked_is_what_is_measured(study):
    found = study.results.groupby('condition').measure.agg(set).to_dict()
    del found['PGD 0/255']
    assert found == {k: set(v) for k,v in _measured(TINY, 'phantom').items()}

ARM = '[arms.baseline]\n[arms.mi]\nradius = 0.5'

@pytest.mark.parametrize('old, new, field, found', [
    ('seeds = 2', '', 'seeds', None), ('seeds', 'sedes', 'sedes', 2), ('seeds = 2', 'seeds = 0', 'seeds', 0),
    ('[20]', '[1]', 'n', 1), ('[20]', '["all"]', 'n', 'all'), ('[20]', '20', 'n', 20),
    ('[20]', '[]', 'n', []), ('radius', 'raduis', 'raduis', .5), ('arms.mi', 'arms.mu', 'arm', 'mu'),
    ('0.5', '-1.0', 'radius', -1.), ('radius = 0.5', 'lr = 0.0', 'lr of arm mi', 0.),
    ('radius = 0.5', 'longer = 0', 'longer of arm mi', 0),
    ('["phantom"]', '["phantom", "phantom"]', 'datasets', ['phantom']*2),
    ('["phantom"]', '[]', 'datasets', []),
    (ARM, 'arms = 3', 'arms', 3), (ARM, '[arms]\nmi = 1', 'arm mi', 1), (ARM, '[arms]', 'arms', {}),
    *(('seeds = 2', f'seeds = 2\n{line}', field, found) for line, field, found in (
        ('split = "train"', 'split', 'train'), ('split = ["val"]', 'split', ['val']), ('lr = 0.0', 'lr', 0.),
        ('protocol = "mine"', 'protocol', 'mine'), ('name = 5', 'name', 5), ('size = "28"', 'size', '28'),
        ('size = 0', 'size', 0), ('model = 3', 'model', 3), ('device = 3', 'device', 3),
        ('bf16 = "no"', 'bf16', 'no'), ('balanced = 1', 'balanced', 1), ('bs = true', 'bs', True),
        ('dropout = "a"', 'dropout', 'a'), ('dropout = 2.0', 'dropout', 2.), ('eps = [300]', 'eps', 300),
        ('eps = ["a"]', 'eps', 'a'), ('corruptions = ["rain"]', 'corruption', 'rain'),
        ('corruptions = 3', 'corruptions', 3), ('corruptions = [["a"]]', 'corruptions', ['a']),
        ('headline = [1]', 'headline', 1),
        ('headline = [[["mi"], "baseline"]]', 'headline', [['mi'], 'baseline']),
        ('headline = [["mi", "mu", "clean", "auc"]]', 'headline', 'mu'))),
    *(('seeds = 2', f'seeds = 2\nheadline = [["mi", "baseline", {q}]]', 'headline', found) for q, found in (
        ('"clean", "balanced_acc"', 'balanced_acc'), ('"PGD 3/255", "accuracy"', 'PGD 3/255'),
        ('"cleen", "auc"', 'cleen'), ('"PGD 2/255", "auc"', 'auc'), ('"corrupted", "nll"', 'nll'),
        ('"corrupted rain", "auc"', 'corrupted rain'), ('"clean", "auc", 777', '777'),
        ('"clean", "auc", [20], "nosuch"', 'nosuch')))], ids=lambda v: str(v)[:20])
def test_slips_in_a_configuration_are_named(tmp_path, old, new, field, found):
    with refused(field, found=found): read_config(toml(tmp_path, GOOD.replace(old, new)))

def test_a_file_of_another_kind_is_named(tmp_path):
    path = toml(tmp_path, GOOD.replace('seeds = 2', 'seeds = two'))
    with refused(path): read_config(path)

def test_a_missing_configuration(tmp_path):
    with refused(tmp_path/'nowhere.toml'): read_config(tmp_path/'nowhere.toml')

@given(text=st.text(st.characters(exclude_categories=['Cs','Cc','Zl','Zp']), max_size=99))
@example(text='\U0001f9e0 \xad \u3000 "\\/\'#=[]')
def test_any_label_survives_its_file(tmp_path_factory, text):
    c = replace(TINY, arms={text: dict(arm='baseline'), text+'2': dict(arm='baseline')},
                headline=[[text, text+'2', 'clean', 'auc']])
    assert asdict(read_config(toml(tmp_path_factory.mktemp('toml'), to_toml(c)))) == asdict(c)

@pytest.mark.parametrize('field, value', [('device', 'cuda:99'), ('device', 'tpu'), ('model', 'foo')])
def test_what_this_machine_lacks_matters_only_where_cells_are_run(tmp_path, field, value):
    c = replace(TINY, **{field: value})
    for start in (lambda: run_study(c, tmp_path/'new', progress=False), lambda: estimate(c)):
        with refused(field, 'cpu' if field == 'device' else 'resnet18', found=value): start()
    assert not (tmp_path/'new').exists()
    (tmp_path/'study.toml').write_text(to_toml(c))
    assert read_study(tmp_path).config == c

def test_the_processor_has_several_names(monkeypatch):
    monkeypatch.setattr(time, 'process_time', lambda: 'of the processor')
    assert cpu_time(replace(TINY, device='cpu:0')) == cpu_time(TINY) == 'of the processor'
    assert cpu_time(replace(TINY, device='cuda')) != 'of the processor'

def test_lr_and_length_belong_to_the_training():
    c = replace(TINY, arms=dict(a=dict(arm='baseline', lr=.1, longer=3.), mi={}))
    assert make_arm(c, 'a') == ([], .1, 3.) and make_arm(c, 'mi')[1:] == (c.lr, 1)


# Cells

def test_sizes_as_named_then_whole_seeds_and_groups_together():
    todo = cells(replace(TINY, datasets=['phantom','breastmnist'], n=[40,20]))
    assert len(todo) == len(set(c.id for c in todo)) == 2*2*2*3
    assert [(-c.n, c.seed) for c in todo] == sorted((-c.n, c.seed) for c in todo)
    assert all(len({c.group for c in todo[i:i+3]}) == 1 for i in range(0, len(todo), 3))

def test_data_of_a_cell(medmnist_root):
    c = StudyConfig('x', ['breastmnist'], [50, 'full'], 1, dict(baseline={}), test_n=40)
    small, held = cell_data(c, Cell('breastmnist', 50, 3, 'baseline'), medmnist_root)
    assert (len(small.train), len(small.val), len(held)) == (50, 50, 40) and set(held.y.tolist()) == {0, 1}
    assert len(cell_data(c, Cell('breastmnist', 'full', 3, 'baseline'), medmnist_root)[0].train) == 546
    cell = Cell('breastmnist', 50, 3, 'baseline')
    val = cell_data(replace(c, split='val', test_n=None), cell, medmnist_root)[1]
    assert torch.equal(val.x, small.val.x)

def test_arms_of_a_group_are_paired_and_groups_are_not(study):
    t = study.cells
    assert len(t) == 12 and (t.status == 'done').all()
    same = t[t.arm != 'long'].groupby(['n','seed'])
    for k in ('subset','weights','order'): assert (same[k].nunique() == 1).all()
    assert (t.groupby(['n','seed']).weights.nunique() == 1).all()
    # a seed draws the weights, whatever the subset
    assert t.subset.nunique() == 4 and t.groupby('n').weights.nunique().eq(2).all()
    assert (t[t.arm == 'long'].steps.values == 2*t[t.arm == 'baseline'].steps.values).all()
    assert (t.synthetic > 0).equals(t.arm == 'far') and t.synthetic.isna().equals(t.arm != 'far')
    assert (t.precision == precision(TINY)).all()

def test_what_is_measured(study):
    r = study.results
    assert set(r.condition) == {'clean','perturbed','PGD 0/255','PGD 2/255','corrupted',
                                'corrupted speckle_noise', *(f'severity {s}' for s in range(1, 6))}
    assert set(r[r.condition == 'clean'].measure) == {'accuracy','auc','balanced_accuracy','ece','nll'}
    assert not r.duplicated(['dataset','n','arm','seed','condition','measure']).any()
    assert r.value.between(0, 10).all()
    for i, (y, p) in study.predictions.items():
        assert p.shape == (30, 2) and abs(p.sum(1)-1).max() < 2e-3
        k = study.cells.set_index('id').loc[i]
        clean = r[(r.condition == 'clean') & (r.measure == 'accuracy')]
        acc = clean[(clean.n == k.n) & (clean.seed == k.seed) & (clean.arm == k.arm)].value.item()
        assert abs((p.argmax(1) == y).mean()-acc) < 1e-6


# Killed at any moment

def lines(folder): return (folder/'cells.jsonl').read_bytes().splitlines()

@pytest.mark.parametrize('moment', ['training the autoencoder', 'in a cell', 'after some cells'])
def test_kill_9_of_the_driver_loses_at_most_the_cells_in_flight(part, tmp_path, moment):
    "and the same command goes on, to the same table"
    folder = tmp_path/'s'
    def slow(task, cell):
        if moment.startswith('in a') == (task is run_cell) and not moment.startswith('after'): time.sleep(60)
    driver = process(here, PART, folder, slow)
    wait_for({'training the autoencoder': (folder/'holder.json').exists,
              'in a cell': lambda: list(folder.glob('autoencoders/*/*.json')),
              'after some cells': lambda: folder.exists() and len(records(folder)) >= 2}[moment])
    driver.kill(); driver.join()
    survived = records(folder)
    resumed = here(PART, folder)
    assert resumed.results.equals(part)
    assert {k: r for k,r in records(folder).items() if k in survived} == survived
    assert len(lines(folder)) == len(cells(PART))                                       # no cell twice

def test_workers_end_with_their_driver_and_are_replaced_when_they_die(tmp_path):
    note = tmp_path/'workers'
    def driver():
        pool = Processes(1)
        wait_for(lambda: pool.submit(os.getpid).result())
        with pytest.raises(Exception, match='terminated'): pool.submit(os.abort).result()
        note.write_text(f'{pool.submit(os.getpid).result()}\n')
        time.sleep(60)
    d = process(driver)
    wait_for(lambda: note.exists() and note.read_text().endswith('\n'))
    worker = int(note.read_text())
    os.kill(worker, 0)
    d.kill(); d.join()
    def gone():
        try: os.kill(worker, 0)
        except ProcessLookupError: return True
    wait_for(gone, 10)

LOST = RuntimeError('its memory was full')

def dies(times, what=LOST):
    "A task whose worker is lost so many times, of the first cell"
    lost = []
    def before(task, cell):
        if task is run_cell and cell.arm == 'baseline' and len(lost) < times: lost.append(cell); raise what
    return lost, before

@pytest.mark.parametrize('times', [1, TRIES-1])
def test_a_cell_whose_worker_dies_is_tried_again(part, tmp_path, times):
    lost, before = dies(times)
    assert here(PART, tmp_path/'s', before).results.equals(part) and len(lost) == times

def test_after_five_times_it_has_failed_and_the_others_go_on(part, tmp_path):
    lost, before = dies(99)
    s = here(PART, tmp_path/'s', before)
    assert len(lost) == TRIES == 5 and s.cells.status.tolist() == ['failed', 'done', 'done']
    assert 'lost 5 times' in s.cells.reason[0] and 'RuntimeError: its memory was full' in s.cells.reason[0]
    assert here(PART, tmp_path/'s').results.equals(part)                                # tried again

def test_an_autoencoder_that_cannot_be_had_fails_its_group_only(tmp_path):
    def before(task, cell):
        if task is not run_cell and cell.seed == 0: raise RuntimeError('always')
    s = here(replace(PART, seeds=2), tmp_path/'s', before)
    assert s.cells.status.tolist() == ['failed']*3 + ['done']*3 and 'always' in s.cells.reason[0]

def test_an_executor_that_takes_no_more_is_named(tmp_path):
    executor = Here()
    executor.shutdown()
    with refused('executor'): run_study(PART, tmp_path/'s', executor=executor, progress=False)
    lost, before = dies(99, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt): here(PART, tmp_path/'t', before)
    assert len(lost) == 1 and not (tmp_path/'t'/'holder.json').exists()

def test_jobs_of_another_kind_are_waited_for_and_taken_back(part, tmp_path):
    "With `result` and `cancel`, as submitit's, and no futures"
    class Job:
        def __init__(self, *args): self.args = args; made.append(self)
        def result(self):
            if broken: raise KeyboardInterrupt
            return self.args[0](*self.args[1:])
        def cancel(self): self.cancelled = True
    class Queue: submit = Job
    made, broken = [], False
    assert run_study(PART, tmp_path/'s', executor=Queue(), progress=False).results.equals(part)
    made, broken = [], True
    c = replace(PART, seeds=3)
    with pytest.raises(KeyboardInterrupt): run_study(c, tmp_path/'t', executor=Queue(), progress=False)
    assert len(made) == 3 and sum(hasattr(j, 'cancelled') for j in made) >= 1

def test_a_second_driver_is_told_who_has_the_folder(tmp_path):
    folder = tmp_path/'s'
    first = process(here, PART, folder, lambda task, cell: time.sleep(60))
    wait_for((folder/'holder.json').exists)
    with refused(folder, f'process {first.pid} on'): here(PART, folder)
    first.kill(); first.join()
    assert len(here(replace(PART, arms=dict(baseline={})), tmp_path/'t').cells) == 1     # another is free
    (folder/'holder.json').write_text('{"process": []}')   # of the one that was killed, and damaged
    assert len(here(PART, folder).cells) == 3

def test_all_arms_are_paired(tmp_path):
    few = 'generator_updates','pool_updates'
    quick = {a: {k: 2 for k in x.settings if k in few} for a,x in ARMS.items()}
    c = replace(TINY, n=[20], pool=True, seeds=1, updates=2, corruptions=[], attack_n=4, arms=quick)
    s = here(c, tmp_path/'s')
    assert (s.cells.status == 'done').all(), s.cells.reason.tolist()
    assert len(s.cells) == len(ARMS)
    assert (s.cells[['subset','weights','order','steps','images_seen']].nunique() == 1).all()
    assert s.cells.images_seen.tolist()[0] == s.cells.steps.tolist()[0]*20 and s.cells.code.nunique() == 1

def failed(arm, **kw):
    return dict(id=f'phantom-20-0-{arm}', dataset='phantom', n=20, seed=0, arm=arm, status='failed', **kw)

@given(cut=st.integers(0, 500))
def test_a_torn_line_is_cut_off(tmp_path_factory, cut):
    d = tmp_path_factory.mktemp('torn')
    for i in 'abc': append(d, failed(i, reason='x'*20))
    whole = (d/'cells.jsonl').read_bytes()
    (d/'cells.jsonl').write_bytes(whole[:len(whole)-min(cut, len(whole))])
    left = [r['arm'] for r in records(d).values()]
    append(d, failed('z'))
    assert left == ['a','b','c'][:len(left)] and [r['arm'] for r in records(d).values()] == [*left, 'z']
    assert whole.startswith((d/'cells.jsonl').read_bytes().rsplit(b'{"id": "phantom-20-0-z"', 1)[0])

def test_a_line_longer_than_what_is_looked_at_is_kept(tmp_path):
    for i in 'ab': append(tmp_path, failed(i, versions=dict.fromkeys(map(str, range(20_000)), 'x')))
    with open(tmp_path/'cells.jsonl', 'ab') as f: f.write(b'{"id": "' + b'x'*200_000)
    append(tmp_path, failed('c'))
    assert [r['arm'] for r in records(tmp_path).values()] == ['a','b','c']

def test_a_group_has_one_autoencoder(study):
    made = sorted(p.name for p in (study.folder/'autoencoders').iterdir())
    assert made == ['phantom-20-0','phantom-20-1','phantom-40-0','phantom-40-1']


# What goes wrong

def test_a_failing_cell_is_recorded_and_tried_again(tmp_path):
    c = replace(TINY, n=[20, 100000], seeds=1, arms=dict(baseline={}))
    s = here(c, tmp_path/'s')
    assert s.cells.status.tolist() == ['done', 'failed'] and 'subset is 100000' in s.cells.reason[1]
    assert set(s.results.n) == {20}
    lines = (tmp_path/'s'/'cells.jsonl').read_text().count('\n')
    assert here(c, tmp_path/'s').cells.status.tolist() == ['done','failed']
    # the failed one, once more
    assert (tmp_path/'s'/'cells.jsonl').read_text().count('\n') == lines+1

def test_another_study_is_not_mixed_in(study):
    with refused('updates', '7', '--out', found=4):
        run_study(replace(TINY, updates=7), study.folder, progress=False)

@pytest.mark.parametrize('change', [dict(seeds=1), dict(n=[20]), dict(datasets=['breastmnist']),
                                    dict(arms=dict(TINY.arms, far=dict(arm='mi'))),
                                    dict(headline=[['far','baseline','clean','auc']])], ids=str)
def test_a_study_only_grows(study, change):
    before = (study.folder/'study.toml').read_bytes()
    field, = change
    with refused(field, '--out', found=asdict(TINY)[field]):
        run_study(replace(TINY, **change), study.folder, progress=False)
    assert (study.folder/'study.toml').read_bytes() == before

def test_what_has_grown_is_what_was_planned_whole(part, tmp_path):
    "The table depends neither on what was asked first nor on the number of processes"
    here(replace(PART, arms=dict(long=PART.arms['long'])), tmp_path/'s')
    first = records(tmp_path/'s')
    s = here(PART, tmp_path/'s')
    assert (s.results.equals(part)
            and records(tmp_path/'s')['phantom-20-0-long'] == first['phantom-20-0-long']
            and len(first) == 1)

def test_packed_cells_are_read_and_unpacked_to_go_on(study, tmp_path):
    lines = (study.folder/'cells.jsonl').read_bytes().splitlines(True)
    (tmp_path/'study.toml').write_text(to_toml(TINY))
    (tmp_path/'cells.jsonl.xz').write_bytes(lzma.compress(b''.join(lines[:5])))
    assert list(records(tmp_path)) == [json.loads(l)['id'] for l in lines[:5]]
    assert not (tmp_path/'cells.jsonl').exists()
    append(tmp_path, json.loads(lines[5]))
    assert ((tmp_path/'cells.jsonl').read_bytes() == b''.join(lines[:6])
            and len(read_study(tmp_path).cells) == 6)
    (tmp_path/'cells.jsonl').unlink()
    for broken in (b'no', lzma.compress(b'x'*10**5)[:50]):
        (tmp_path/'cells.jsonl.xz').write_bytes(broken)
        with refused(tmp_path/'cells.jsonl.xz'): read_study(tmp_path)

def test_what_unfolds_to_gigabytes_is_refused(tmp_path, monkeypatch):
    (tmp_path/'study.toml').write_text(to_toml(TINY))
    (tmp_path/'cells.jsonl.xz').write_bytes(lzma.compress(b'x'*10**6))
    monkeypatch.setattr('tsynd.experiments.record._MOST', 10**5)
    with refused(tmp_path/'cells.jsonl.xz'): read_study(tmp_path)

def test_a_folder_with_something_else(tmp_path):
    (tmp_path/'letter.txt').write_text('dear')
    with refused(tmp_path, '--out'): run_study(TINY, tmp_path, progress=False)
    assert [f.name for f in tmp_path.iterdir()] == ['letter.txt']
    with refused(tmp_path/'study.toml'): read_study(tmp_path)

@pytest.mark.parametrize('out', ['file', 'file/x', '/dev/null/x', 'x'*300])
def test_a_folder_that_cannot_be_made(tmp_path, out):
    (tmp_path/'file').touch()
    with refused(tmp_path/out, '--out'): run_study(TINY, tmp_path/out, progress=False)
    with refused(tmp_path/out/'study.toml'): read_study(tmp_path/out)

BROKEN = {'half': b'{"id": "a", "sta', 'empty': b'', 'bytes': b'\xff', 'number': b'3', 'list': b'[]',
          'nothing': b'{}', 'deep': b'['*10**5,
          'no seconds': json.dumps(failed('a', seconds=float('nan'))).encode(),
          'less than none': json.dumps(failed('a', seconds=-1.)).encode(),
          'other id': json.dumps(failed('a') | dict(id='phantom-20-0-b')).encode(),
          'other seed': json.dumps(failed('a') | dict(seed=1)).encode(),
          'text': json.dumps(failed('a') | dict(seed='0')).encode(),
          'nan': json.dumps(failed('a', seconds=float('nan')) | dict(n=float('nan'))).encode()}

@pytest.mark.parametrize('line', BROKEN)
def test_a_broken_line_is_named_and_left_out(study, tmp_path, line):
    good = (study.folder/'cells.jsonl').read_bytes().splitlines(True)
    (tmp_path/'study.toml').write_text(to_toml(TINY))
    (tmp_path/'cells.jsonl').write_bytes(good[0] + BROKEN[line] + b'\n' + good[1])
    s = read_study(tmp_path)
    assert len(s.cells) == 2 and len(s.faults) == 1 and 'cells.jsonl, line 2,' in s.faults[0]

@pytest.mark.parametrize('key', ['status', 'dataset', 'n', 'arm', 'seed', 'measures', 'y', 'p', 'shape'])
def test_a_record_that_lacks_something_is_named_and_run_again(study, tmp_path, key):
    r = json.loads(lines(study.folder)[0])
    (tmp_path/'study.toml').write_text(to_toml(PART))
    (tmp_path/'cells.jsonl').write_text(json.dumps({k: v for k,v in r.items() if k != key})+'\n')
    s = read_study(tmp_path)
    assert not len(s.cells) and key in s.faults[0]

def test_an_unfinished_study_can_be_read(study, tmp_path):
    (tmp_path/'study.toml').write_text(to_toml(TINY))
    empty = read_study(tmp_path)
    assert len(empty.cells) == 0 and len(empty.results) == 0
    (tmp_path/'cells.jsonl').write_bytes(b''.join(l+b'\n' for l in lines(study.folder)[:5]))
    assert len(read_study(tmp_path).cells) == 5

def test_a_study_with_nothing_to_do_ends(study):
    assert here(TINY, study.folder, before=lambda *_: pytest.fail('a task')).results.equals(study.results)


# Nothing is mixed

def test_images_that_have_changed_are_noticed(tmp_path):
    def images(path, shift):
        g, arrays = np.random.default_rng(0), {}
        for p in ('train','val','test'):
            arrays |= {f'{p}_images': g.integers(0, 200, (16, 12, 12)).astype(np.uint8)+shift,
                       f'{p}_labels': np.arange(16)[:,None] % 2}
        np.savez(path, **arrays)
    c = replace(PART, datasets=[str(tmp_path/'mine.npz')], size=12, n=[8], arms=dict(baseline={}),
                test_n=None, attack_n=4)
    images(tmp_path/'mine.npz', np.uint8(0))
    before = here(c, tmp_path/'s').cells
    assert before.status.tolist() == ['done']
    images(tmp_path/'mine.npz', np.uint8(1))
    with refused('mine', 'put them back', '--out'): here(replace(c, seeds=2), tmp_path/'s')
    images(tmp_path/'mine.npz', np.uint8(0))
    after = here(replace(c, seeds=2), tmp_path/'s').cells
    assert after.data.nunique() == after.held.nunique() == 1 and len(after) == 2

@pytest.mark.parametrize('name', ['../x', '/x', 'a/b', '..', '.', 'a\\b'])
def test_a_name_does_not_lead_out_of_its_folder(tmp_path, name):
    with refused('name', found=name): read_config(toml(tmp_path, f"name = '{name}'\n{GOOD}"))

@pytest.mark.parametrize('name', ['autoencoders', 'kept', 'lock', 'study.toml', 'holder.json'])
def test_nothing_is_written_through_a_link(part, tmp_path, name):
    c, folder, outside = replace(PART, keep=['predictions'], seeds=1), tmp_path/'s', tmp_path/'outside'
    folder.mkdir(); outside.mkdir()
    mine = outside/'mine' if '.' in name or name == 'lock' else outside
    (folder/'study.toml').write_text(to_toml(c))
    if mine != outside: mine.write_text(to_toml(c))
    (folder/name).unlink(missing_ok=True)
    (folder/name).symlink_to(mine)
    before = {p: p.read_text() for p in outside.iterdir()}
    if '.' in name: assert here(c, folder).results.equals(part) and not (folder/name).is_symlink()
    else:
        with refused(folder/name, 'symbolic link'): here(c, folder)
    assert {p: p.read_text() for p in outside.iterdir()} == before

@pytest.mark.parametrize('name', ['study.toml', 'cells.jsonl', 'holder.json', 'lock'])
def test_a_folder_where_a_file_should_be(tmp_path, name):
    if name != 'study.toml': (tmp_path/'study.toml').write_text(to_toml(PART))
    (tmp_path/name).mkdir()
    with refused(tmp_path/name): here(PART, tmp_path)

def test_threads_are_a_setting(tmp_path):
    seen = []
    c = replace(PART, arms=dict(baseline={}), threads=2, updates=1, ae_steps=1, attack_n=4, eps=[],
                corruptions=[])
    before = torch.get_num_threads()
    class Look(Here):
        def call(self, task, a, cell, *rest):
            import tsynd.experiments.worker as w
            with w._alone(a): seen.append(torch.get_num_threads())
            return task(a, cell, *rest)
    s = run_study(c, tmp_path/'s', progress=False, executor=Look())
    assert set(seen) == {2} and torch.get_num_threads() == before and s.cells.threads.tolist() == [2]
    with refused('threads', found=2): here(replace(c, threads=1), tmp_path/'s')


# Code of one's own

MINE = """
from tsynd.experiments import arm, callbacks

@arm('mine', 'Every second epoch', 'a test')
def mine(ae, seed, *, weight=1., words='x'): return callbacks('mi', ae, seed, gate=0.)
"""

def test_own_arms_run_in_other_processes(tmp_path, monkeypatch):
    "those of a file, and those that this process has registered"
    monkeypatch.delitem(ARMS, 'mine', raising=False)
    @arm('ours', 'Nothing', 'this process')
    def ours(ae, seed): return []
    (tmp_path/'my_arms.py').write_text(MINE)
    text = to_toml(replace(PART, arms=dict(ours={}, mine={}), imports=['my_arms.py']))
    c = read_config(toml(tmp_path, text))
    assert c.imports == [str(tmp_path/'my_arms.py')]
    s = run_study(c, tmp_path/'s', jobs=1, progress=False)
    assert s.cells.status.tolist() == ['done']*2 and s.cells.synthetic[1] > 0
    assert s.cells.about.tolist() == [dict(sentence='Nothing', source='this process'),
                                      dict(sentence='Every second epoch', source='a test')]
    assert s.cells['my_arms.py'].nunique() == s.cells['arm ours'].nunique() == 1
    del ARMS['mine'], ARMS['ours']
    assert len(read_study(tmp_path/'s').cells) == 2                                     # without them
    with refused('arm', found='ours'): run_study(replace(c, imports=[]), tmp_path/'t')

NETWORK = """
from torch import nn
from tsynd.models import network

@network('mine')
def mine(ch, n_classes, p):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(p), nn.Linear(16*ch, n_classes))
"""

def test_own_networks_and_bundles_are_trained(tmp_path, monkeypatch):
    monkeypatch.delitem(NETWORKS, 'mine', raising=False)
    (tmp_path/'nets.py').write_text(NETWORK)
    c = replace(PART, arms=dict(baseline={}), model='mine', imports=['nets.py'], keep=['models'],
                corruptions=[])
    first = here(read_config(toml(tmp_path, to_toml(c))), tmp_path/'s')
    assert first.cells.status.tolist() == ['done'] and 'nets.py' in first.cells
    start = kept_folder(first.folder, first.cells.id[0])/'bundle'
    second = here(replace(c, model=str(start), imports=[], keep=[]), tmp_path/'t')
    assert second.cells.status.tolist() == ['done'] and len(second.cells.model[0]) == 8
    assert second.cells.weights[0] != first.cells.weights[0]
    del NETWORKS['mine']
    with refused('model'): run_study(replace(c, imports=[]), tmp_path/'u')

def test_an_arm_that_goes_wrong_fails_its_own_cells(tmp_path, monkeypatch):
    "one that ends its process, too; and no arm is made before there is an autoencoder"
    for name in ('exits', 'uses'): monkeypatch.delitem(ARMS, name, raising=False)
    @arm('exits', 'Leaves', 'a test')
    def exits(ae, seed): raise SystemExit(4)
    @arm('uses', 'Looks at the autoencoder', 'a test')
    def uses(ae, seed): next(ae.parameters()); return []
    try: s = here(replace(PART, arms=dict(exits={}, uses={})), tmp_path/'s')
    finally: del ARMS['exits'], ARMS['uses']
    assert s.cells.status.tolist() == ['failed', 'done'] and s.cells.reason[0] == 'SystemExit: 4'
    with refused('arm', found='mi'):
        @arm('mi', 'Another', 'a test')
        def mi(ae, seed): return []
    assert not ARMS['mi'].own

@pytest.mark.parametrize('name, text', [('my.py', None), ('my.py', 'import'), ('my.py', '1/0'),
                                        ('my.py', '\0'), ('no.such.module', None), ('', None), ('..', None)])
def test_imports_that_cannot_be_run_are_named(tmp_path, name, text):
    if text: (tmp_path/name).write_text(text)
    with refused('imports'): read_config(toml(tmp_path, f'imports = ["{name}"]\n{GOOD}'))


# Kept on request

def test_what_is_kept_gives_the_measures_again(tmp_path):
    label = 'an "arm", ../of one/ name'
    c = replace(PART, arms={label: dict(arm='baseline')}, keep=['models','predictions'], attack_n=30)
    s = here(c, tmp_path/'s')
    i, = s.cells.id
    kept, r = s.kept(i), s.results
    for k,(positions, y, p) in kept.items():
        found = r[(r.condition == k) & (r.measure == 'accuracy')].value
        if len(found): assert abs((p.argmax(1) == y).mean()-found.item()) < 1e-6, k
    assert {'clean', 'perturbed', 'PGD 2/255', 'corrupted speckle_noise 3'} <= {*kept}
    bundle = load_bundle(kept_folder(s.folder, i)/'bundle')
    assert kept_folder(s.folder, i).parent == s.folder/'kept' and bundle.facts['arm'] == label
    path = kept_folder(s.folder, i)/'predictions.safetensors'
    for broken in (b'', path.read_bytes()[:100], path.read_bytes().replace(b'/positions', b'/positiong')):
        path.write_bytes(broken)
        with refused(path): s.kept(i)
    assert s.kept('phantom-20-0-other') is None

def test_jobs_are_checked(tmp_path):
    with refused('jobs', found=0): run_study(TINY, tmp_path/'s', jobs=0)


# Measures

def test_calibration_against_sklearn_and_by_hand():
    g = np.random.default_rng(0)
    p = g.dirichlet(np.ones(3), 500); y = g.integers(0, 3, 500)
    assert abs(SingleLabel().calibration(y, p)['nll'] - log_loss(y, p, labels=range(3))) < 1e-9
    p = np.array([[.9, .1]]*10); y = np.array([0]*7+[1]*3)
    assert abs(SingleLabel().calibration(y, p)['ece']-.2) < 1e-12
    drawn = np.array([g.choice(2, p=[.7, .3]) for _ in range(20000)])
    assert SingleLabel().calibration(drawn, np.tile([.7, .3], (20000, 1)))['ece'] < .01

def test_corrupted_means_by_hand():
    rows = [dict(corruption='clean', severity=0, balanced_error=.5, accuracy=.5, auc=.5)]
    rows += [dict(corruption=k, severity=s, balanced_error=e*s, accuracy=1-e*s, auc=.9)
             for k, e in (('a', .1), ('b', .05)) for s in (1, 2)]
    got = corrupted(rows)
    assert set(got) == {'corrupted','corrupted a','corrupted b','severity 1','severity 2'}
    assert (abs(got['corrupted a']['balanced_accuracy']-.85) < 1e-12
            and abs(got['severity 2']['balanced_accuracy']-.85) < 1e-12)
    assert abs(got['corrupted']['accuracy']-.8875) < 1e-12

def test_an_estimate_has_every_arm():
    e = estimate(TINY, updates=2, images=4)
    assert e[['dataset','n','arm']].values.tolist() == [['phantom', n, a] for a in TINY.arms for n in TINY.n]
    assert (e[['training','measuring','autoencoder']] > 0).all().all()

def test_an_estimate_counts_whole_epochs_and_trains_a_few_updates(monkeypatch):
    "120 images are four batches of at most 32, more than the two updates asked for"
    seen,train = [],train_cell
    def witness(c, cell, data, ae):
        model,facts = train(c, cell, data, ae); seen.append((facts['steps'], len(data.train)))
        return model,facts
    monkeypatch.setattr('tsynd.experiments.forecast.train_cell', witness)
    c = replace(TINY, n=['full'], updates=2, arms=dict(baseline={}))
    whole = train(c, cells(c)[0], cell_data(c, cells(c)[0])[0], None)[1]['steps']
    assert whole > 2 and _steps(c, 'phantom', 'full', None) == whole
    estimate(c, updates=2, images=4)
    assert seen == [(2, 64)]

def test_an_estimate_that_fails_leaves_the_threads_alone(monkeypatch):
    "and its autoencoder is trained where the study would train it"
    seen = []
    def fails(*args, device=None, **kw): seen.append(device); raise RuntimeError('enough')
    monkeypatch.setattr('tsynd.experiments.forecast.train_autoencoder', fails)
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match='enough'): estimate(replace(TINY, device='cpu:0'))
        assert torch.get_num_threads() == 2 and seen == [torch.device('cpu:0')]
    finally: torch.set_num_threads(1)

def test_an_arm_that_trains_longer_is_estimated_longer(monkeypatch):
    # seconds per update, and of measuring
    monkeypatch.setattr('tsynd.experiments.forecast._probe', lambda *args: (.5, 3.))
    e = estimate(TINY).query('n == 20').set_index('arm')
    assert e.training.to_dict() == {'baseline': .5*4, 'far': .5*4, 'long': .5*8} and (e.measuring == 3).all()


def test_medmnist_protocol(tmp_path):
    "Adam without weight decay at three learning rates, on centred pixels, with the same weights for all arms"
    c = replace(TINY, n=[20], seeds=1, arms=dict(baseline={}, mi=dict(gate=0.)), protocol='medmnist',
                epochs=4, balanced=False)
    s = here(c, tmp_path/'s')
    assert ((s.cells.status == 'done').all() and s.cells.weights.nunique() == 1
            and s.cells.order.nunique() == 1)
    seen = []
    net = make_classifier('small_resnet', 1, 2).eval()
    first = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    x = torch.rand(3, 1, 28, 28)
    net(x)
    # centred once, not twice
    assert torch.allclose(seen[0], (x-.5)/.5, atol=1e-6)
    learn = train_classifier(phantom(n_train=32, n_val=8, n_test=8), epochs=8, lr=1e-3, fit=fit_steps)
    lrs = [float(v) for v in learn.recorder.lrs]
    assert len(lrs) == 8 and all(abs(v/w-1) < 1e-6 for v, w in zip(lrs, [1e-3]*4 + [1e-4]*2 + [1e-5]*2))
    assert all(h['wd'] == 0 and h['sqr_mom'] == .999 and h['eps'] == 1e-8 for h in learn.opt.hypers)

def test_the_medmnist_protocol_cuts_an_epoch_as_its_authors_do(monkeypatch):
    "Full batches and a rest; ours are even"
    c = replace(TINY, n=[20], bs=8, epochs=2, arms=dict(baseline={}))
    sizes,data = [],phantom(n_train=20, n_val=8, n_test=8)
    monkeypatch.setattr(Witness, 'before_batch', lambda self: sizes.append(len(self.y)), raising=False)
    for protocol in ('medmnist', 'tsynd'):
        train_cell(replace(c, protocol=protocol), Cell('phantom', 20, 0, 'baseline'), data, None)
    assert sizes == [8,8,4]*2 + [6,7,7]*2
