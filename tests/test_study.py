"""A study that is stopped anywhere goes on and ends with the same table;
what it compares is paired; slips are named."""
import hashlib, json, lzma, os, signal, time
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import pytest, torch
from hypothesis import example, given, strategies as st
from sklearn.metrics import log_loss

from processes import process, wait_for
from refused import refused
from tsynd.experiments import Busy, train_cell, Witness
from tsynd.experiments.forecast import _steps
from tsynd.experiments.study import _take, _worker
from tsynd.experiments.study_configuration import _measured
from tsynd.experiments import ARMS
from tsynd.models import make_classifier, train_classifier
from tsynd.data import phantom
from tsynd.experiments import precision
from tsynd.core import SingleLabel
from tsynd.experiments import (
    append, Cell, cell_data, cells, corrupted, cpu_time, estimate, fit_steps, make_arm, read_config,
    read_study, records, run_study, StudyConfig, to_toml, work)
from tsynd.experiments.study import _todo

pytestmark = pytest.mark.xdist_group('study')  # one worker makes the study, for all tests that need it

TINY = StudyConfig(name='tiny', datasets=['phantom'], n=[20, 40], seeds=2,
                   arms={'baseline': {}, 'far': dict(arm='mi', radius=.6, gate=0.),
                         'long': dict(arm='baseline', longer=2.)},
                   updates=4, ae_steps=4, attack_n=10, pgd_steps=2, eps=[2], corruptions=['speckle_noise'],
                   test_n=30)
PART = replace(TINY, n=[20], seeds=1)  # three of its twelve cells, for what is run over and over


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    return run_study(TINY, tmp_path_factory.mktemp('study')/'s', jobs=2, progress=False)

@pytest.fixture(scope='module')
def part(study): return study.results.query('n == 20 and seed == 0').reset_index(drop=True)

def here(c, folder):
    "A study that this process runs or goes on with, which has loaded all it takes"
    folder.mkdir(exist_ok=True); (folder/'study.toml').write_text(to_toml(c))
    work(folder, run=str(time.monotonic_ns()))
    return read_study(folder)

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
    with refused(field, found=value): work(tmp_path)

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
    assert (t.synthetic > 0).equals(t.arm == 'far')
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

@pytest.mark.parametrize('moment', ['training the autoencoder','after some cells'])
def test_kill_9_loses_at_most_the_cell_in_flight(part, tmp_path, moment):
    folder = tmp_path/'s'
    folder.mkdir(); (folder/'study.toml').write_text(to_toml(PART))
    w = process(work, folder)
    wait_for(lambda: list(folder.glob('autoencoders/*.lock')) if moment.startswith('training')
             else len(records(folder)) >= 2)
    w.kill(); w.join()
    survived = {r['id']: r for r in records(folder).values()}
    resumed = here(PART, folder)
    assert resumed.results.equals(part)
    assert {r['id']: r for r in records(folder).values() if r['id'] in survived} == survived
    lines = (folder/'cells.jsonl').read_bytes().splitlines()
    # nothing was done twice
    assert len(lines) == len(cells(PART))

def test_a_killed_study_can_be_started_again_at_once(part, tmp_path):
    "While the worker of the killed one still holds its cell"
    folder = tmp_path/'s'
    parent = process(run_study, PART, folder, None, 1, False)
    wait_for(lambda: len(records(folder)) >= 1)
    parent.kill(); parent.join()
    again = here(PART, folder)
    assert again.results.equals(part)
    assert len((folder/'cells.jsonl').read_bytes().splitlines()) == len(cells(PART))     # no cell twice
    assert not list((folder/'locks').glob('*.tries'))

def test_a_cell_that_kills_its_process_is_given_up(tmp_path):
    one_cell(tmp_path, b'.....')
    work(tmp_path)
    assert (read_study(tmp_path).cells.reason.tolist() == ['its process was killed five times']
            and not list((tmp_path/'locks').glob('*.tries')))

def one_cell(folder, tries=b''):
    "A study of one cell, and the note of its attempts"
    c = replace(TINY, n=[20], seeds=1, arms=dict(baseline={}))
    (folder/'locks').mkdir(parents=True); (folder/'study.toml').write_text(to_toml(c))
    note = folder/'locks'/f'{hashlib.md5(cells(c)[0].id.encode()).hexdigest()}.tries'
    if tries: note.write_bytes(tries)
    return c, note

@pytest.mark.parametrize('error', [KeyboardInterrupt, Busy])
def test_an_attempt_that_is_stopped_does_not_count(tmp_path, monkeypatch, error):
    c, note = one_cell(tmp_path, b'..')
    def stopped(*args): assert note.read_bytes() == b'...'; raise error
    monkeypatch.setattr('tsynd.experiments.study.run_cell', stopped)
    with pytest.raises(KeyboardInterrupt) if error is KeyboardInterrupt else nullcontext():
        assert not _take(c, cells(c)[0], tmp_path, None, 'run', None, set())
    assert note.read_bytes() == b'..'

@pytest.mark.parametrize('end, left', [(signal.SIGTERM, b''), (signal.SIGKILL, b'.')],
                         ids=['stopped','killed'])
def test_a_worker_takes_its_note_back_when_it_is_stopped(tmp_path, monkeypatch, capfd, end, left):
    _, note = one_cell(tmp_path)
    monkeypatch.setattr('tsynd.experiments.study.run_cell', lambda *args: time.sleep(300))
    w = process(_worker, str(tmp_path))
    wait_for(lambda: note.exists() and note.read_bytes() == b'.')
    # Ctrl-C is for `run_study`
    os.kill(w.pid, signal.SIGINT); time.sleep(.2)
    assert w.is_alive() and note.read_bytes() == b'.'
    os.kill(w.pid, end); w.join(60)
    assert w.exitcode == (143 if end == signal.SIGTERM else -9) and capfd.readouterr().err == ''
    assert note.read_bytes() == left

def test_two_runs_on_one_folder_do_not_try_a_failing_cell_for_ever(tmp_path, monkeypatch):
    _, note = one_cell(tmp_path)
    tried, add = [], append
    def fails(c, cell, *args):
        tried.append(cell.id); assert len(tried) < 4
        return dict(id=cell.id, **asdict(cell), status='failed', reason='always')
    def both(folder, record): add(folder, record); add(folder, dict(record, run='the other'))
    monkeypatch.setattr('tsynd.experiments.study.run_cell', fails)
    monkeypatch.setattr('tsynd.experiments.study.append', both)
    for run in 'ab': work(tmp_path, run=run)
    assert len(tried) == 2 and not note.exists()                                         # once in each run

def test_all_arms_are_paired(tmp_path):
    c = replace(TINY, n=[20], seeds=1, updates=2, corruptions=[], attack_n=4, arms={a: {} for a in ARMS})
    s = here(c, tmp_path/'s')
    assert (s.cells.status == 'done').all(), s.cells.reason.tolist()
    assert len(s.cells) == len(ARMS)
    assert (s.cells[['subset','weights','order','steps','images_seen']].nunique() == 1).all()
    assert s.cells.images_seen.tolist()[0] == s.cells.steps.tolist()[0]*20 and s.cells.code.nunique() == 1

@given(cut=st.integers(0, 200))
def test_a_torn_line_is_cut_off(tmp_path_factory, cut):
    d = tmp_path_factory.mktemp('torn')
    for i in 'abc': append(d, dict(id=i, text='x'*20))
    whole = (d/'cells.jsonl').read_bytes()
    (d/'cells.jsonl').write_bytes(whole[:len(whole)-min(cut, len(whole))])
    left = list(records(d))
    append(d, dict(id='z'))
    assert left == ['a','b','c'][:len(left)] and list(records(d)) == [*left, 'z']
    assert whole.startswith((d/'cells.jsonl').read_bytes().rsplit(b'{"id": "z"', 1)[0])

def test_a_group_has_one_autoencoder(study):
    made = sorted(p.name for p in (study.folder/'autoencoders').iterdir() if p.is_dir())
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
    (tmp_path/'cells.jsonl').unlink(); (tmp_path/'cells.jsonl.xz').write_bytes(b'no')
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

@pytest.mark.parametrize('line', [b'{"id": "a", "sta', b'', b'\xff', b'3', b'[]', b'{}', b'{"id": []}'])
def test_a_broken_line_is_named(tmp_path, line):
    (tmp_path/'study.toml').write_text(to_toml(TINY))
    (tmp_path/'cells.jsonl').write_bytes(b'{"id": "a"}\n' + line + b'\n{"id": "b"}\n')
    with refused(tmp_path/'cells.jsonl', 'line 2', found=line.decode(errors='replace')): read_study(tmp_path)

@pytest.mark.parametrize('key', ['status', 'dataset', 'n', 'arm', 'seed', 'measures', 'y', 'p', 'shape'])
def test_a_record_that_lacks_something_is_named(study, tmp_path, key):
    r = json.loads((study.folder/'cells.jsonl').read_bytes().splitlines()[0])
    (tmp_path/'study.toml').write_text(to_toml(TINY))
    (tmp_path/'cells.jsonl').write_text(json.dumps({k: v for k,v in r.items() if k != key})+'\n')
    # nobody falls over it while others work
    assert len(_todo(TINY, tmp_path, run='x')) == 11
    with refused(tmp_path/'cells.jsonl', r['id'], found=[key]): read_study(tmp_path)

def test_an_unfinished_study_can_be_read(study, tmp_path):
    (tmp_path/'study.toml').write_text(to_toml(TINY))
    empty = read_study(tmp_path)
    assert len(empty.cells) == 0 and len(empty.results) == 0
    (tmp_path/'cells.jsonl').write_bytes(
        b''.join((study.folder/'cells.jsonl').read_bytes().splitlines(True)[:5]))
    assert len(read_study(tmp_path).cells) == 5 and len(_todo(TINY, tmp_path)) == 7

def test_a_worker_with_nothing_to_do_ends(study): assert work(study.folder) is None

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
