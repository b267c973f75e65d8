"""Unfinished work: killed at every step on the disk, and gone on with; whose it is, and what it is not."""
import os, shutil
from pathlib import Path

import pytest
from refused import refused

from tsynd.core import begun, beside, check_finished, InputError, resumable

ABOUT = dict(epochs=2, code='a')


def add_up(goal, about=ABOUT, anew=False, second=lambda: .2):
    "Two stages, the first with a file, and their sum; says which were made"
    made = []
    def first(): made.append('first'); return .1
    def save(value, folder): (folder/'value.txt').write_text(str(value)); return dict(kept=True)
    def load(kept, folder): assert kept == dict(kept=True); return float((folder/'value.txt').read_text())
    def last(): made.append('second'); return second()
    def write(folder):
        (folder/'deep').mkdir(); (folder/'deep'/'parts.txt').write_text(f'{a} {b}')
        (folder/'sum.txt').write_text(str(a+b))
    with resumable(goal, anew) as work:
        work.begin(about, about)
        a, b = work.stage('first', first, save, load), work.stage('second stage', last)
        work.finish(write)
    return made

def tree(folder): return {p.relative_to(folder).as_posix() for p in folder.rglob('*')}

def complete(goal):
    files = {f'{goal.name}/{f}' for f in ('sum.txt', 'deep', 'deep/parts.txt')}
    return (tree(goal.parent) == {goal.name, *files} and (goal/'sum.txt').read_text() == str(.1+.2)
            and (goal/'deep'/'parts.txt').read_text() == '0.1 0.2')

STEPS = ((os, 'replace'), (os, 'rename'), (os, 'mkdir'), (os, 'rmdir'), (os, 'unlink'), (Path, 'write_text'))

class Kill(BaseException): "Nobody catches it, and nothing is cleaned up"

def killed(goal, step):
    "Is work that is killed at its n-th step on the disk, in the middle of a text, killed at all?"
    n = 0
    def counted(name, f):
        def g(*args, **kwargs):
            nonlocal n
            n += 1
            if n < step: return f(*args, **kwargs)
            if name == 'write_text': f(args[0], args[1][:len(args[1])//2])
            raise Kill
        return g
    with pytest.MonkeyPatch.context() as m:
        m.setattr('tsynd.core.unfinished.Unfinished._leave', lambda *_: None)
        for where, name in STEPS: m.setattr(where, name, counted(name, getattr(where, name)))
        try: add_up(goal)
        except Kill: return True
    return False

@pytest.mark.parametrize('there', [False, True], ids=['new', 'empty'])
def test_work_goes_on_wherever_it_was_killed(tmp_path, there):
    again, left = set(), set()
    for step in range(1, 100):
        goal = tmp_path/f'{step}'/'run'
        goal.mkdir(parents=True) if there else goal.parent.mkdir()
        if not killed(goal, step): break
        record = begun(beside(goal))
        finished = list(record.finished) if record else []
        left.add(tuple(finished))
        if (goal/'sum.txt').exists() and not finished:  # killed while the stages were removed
            with refused(goal, 'exists and is not an empty folder'): add_up(goal)
        else:
            made = add_up(goal)
            again.add(tuple(made))
            assert made == [k for k in ('first', 'second') if not any(f.startswith(k) for f in finished)]
        assert complete(goal), (step, tree(goal.parent))
    assert step > 20 and left == {(), ('first',), ('first', 'second stage')}
    assert again == {('first', 'second'), ('second',), ()}

def interrupt(): raise KeyboardInterrupt

@pytest.fixture
def half(tmp_path):
    "A goal whose first stage is finished"
    with pytest.raises(KeyboardInterrupt, match='run.unfinished: first; the same command goes on'):
        add_up(tmp_path/'run', second=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ['run.unfinished']
    return tmp_path/'run'

@pytest.mark.parametrize('about, field', [(dict(ABOUT, epochs=3), 'epochs'), (dict(ABOUT, code='b'), 'code'),
                                          (dict(ABOUT, threads=2), 'threads')], ids=str)
def test_other_work_is_refused_or_begun_anew_if_asked_for(half, about, field):
    before = tree(half.parent)
    with refused(field, 'run.unfinished', '--out', '--anew', found=about[field]): add_up(half, about)
    assert tree(half.parent) == before
    assert add_up(half, about, anew=True) == ['first', 'second'] and complete(half)

def test_where_nothing_is_finished_anything_may_begin(tmp_path):
    goal = tmp_path/'run'
    assert killed(goal, 8) and begun(beside(goal)).finished == {}
    assert add_up(goal, dict(ABOUT, epochs=3)) == ['first', 'second'] and complete(goal)

def test_a_second_process_is_refused_and_harms_nothing(half):
    with resumable(half):
        before = tree(half.parent)
        with refused(beside(half), 'another process'): add_up(half)
        with refused(beside(half), 'another process'): add_up(half, anew=True)
        assert tree(half.parent) == before
    assert add_up(half) == ['second'] and complete(half)

HARM = [lambda f: (f/'value.txt').write_text('0.3'), lambda f: (f/'value.txt').unlink(), shutil.rmtree,
        lambda f: (f/'kept.json').write_text('{'), lambda f: (f/'more').touch()]

@pytest.mark.parametrize('harm', HARM)
def test_a_stage_whose_files_have_changed_is_made_again(half, harm):
    harm(beside(half)/'first')
    assert add_up(half) == ['first', 'second'] and complete(half)

@pytest.mark.parametrize('text', ['', '{', 'null', '[]', '{"begun": 3}', '['*10**5, '{"begun": 1e999}',
                                  '{"begun": "", "asked": {}, "about": {}, "finished": {"first": 1}}'],
                         ids=lambda t: t[:20])
def test_a_record_that_is_none_is_refused_and_kept(half, text):
    (beside(half)/'run.json').write_text(text)
    before = tree(half.parent)
    for anew in (False, True):
        with refused(beside(half), 'remove it', '--out'): add_up(half, anew=anew)
    assert tree(half.parent) == before

def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path/'run.unfinished').mkdir(); (tmp_path/'run.unfinished'/'novel.txt').write_text('chapter 1')
    (tmp_path/'link.unfinished').symlink_to('run.unfinished')
    (tmp_path/'file.unfinished').write_text('x')
    before = tree(tmp_path)
    for name in ('run', 'link'):
        with refused(tmp_path/f'{name}.unfinished', 'remove it'): add_up(tmp_path/name, anew=True)
    with refused(tmp_path/'file', 'cannot be written'): add_up(tmp_path/'file')
    assert tree(tmp_path) == before

def test_links_inside_are_not_written_through(half):
    outside = half.parent.parent/f'{half.parent.name} outside'
    outside.mkdir(); (outside/'mine.txt').write_text('mine')
    for name in ('second stage', 'result'): (beside(half)/name).symlink_to(outside)
    (beside(half)/'.run.json.part').symlink_to(outside/'mine.txt')
    assert add_up(half) == ['second'] and complete(half)
    assert tree(outside) == {'mine.txt'} and (outside/'mine.txt').read_text() == 'mine'

def test_wrong_settings_leave_nothing_and_other_errors_what_is_finished(half):
    def full(): raise OSError(28, 'No space left on device')
    def told():
        try: full()
        except OSError: raise InputError('the disk is full', 'disk') from None
    def wrong(): raise InputError('loss is nan', 'loss')
    with pytest.raises(OSError) as caught: add_up(half, second=full)
    assert 'run.unfinished: first; the same command goes on' in caught.value.__notes__[0]
    with refused('disk', 'the disk is full', 'run.unfinished: first; the same command goes on'):
        add_up(half, second=told)
    assert begun(beside(half)).finished.keys() == {'first'}
    with refused('loss'): add_up(half, second=wrong)
    assert tree(half.parent) == set()

def test_unfinished_work_is_not_read_as_finished(half, tmp_path):
    for folder in (half, beside(half)):
        with refused(beside(half), 'unfinished', 'finished: first', 'goes on'): check_finished(folder)
    add_up(half)
    check_finished(half); check_finished(tmp_path/'nowhere'); check_finished('x'*300)

def test_work_whose_results_were_moved_away_in_the_end_is_written_again(half):
    with pytest.MonkeyPatch.context() as m:
        m.setattr('tsynd.core.unfinished.Unfinished._remove', lambda self: interrupt())
        with pytest.raises(KeyboardInterrupt): add_up(half)
    half.rename(half.parent.with_name(f'{half.parent.name} elsewhere'))
    assert add_up(half) == [] and complete(half)
