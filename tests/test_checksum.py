"""The checksum of code changes where a result may change, and nowhere else."""
import shutil
from pathlib import Path

import pytest

from tsynd.data import phantom
from tsynd.models import code_checksum, train_autoencoder, train_classifier, train_once

ROOT = Path(__file__).resolve().parents[1]
CELL = 'tsynd.experiments.cell'


@pytest.fixture
def looked_at(tmp_path):
    "The checksum of a module of a tree of files; a text for a file replaces it"
    def now(module, **files):
        for name, text in files.items():
            file = (tmp_path/'tsynd').joinpath(*name.split('__')).with_suffix('.py')
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding='utf-8')
        code_checksum.cache_clear()
        return code_checksum(module, tmp_path)
    yield now
    code_checksum.cache_clear()


def test_words_of_a_report_are_no_reason_to_compute_again_and_the_code_of_a_network_is(tmp_path, looked_at):
    shutil.copytree(ROOT/'tsynd', tmp_path/'tsynd', ignore=shutil.ignore_patterns('__pycache__'))
    before = looked_at(CELL)
    page, networks = ((tmp_path/'tsynd'/f).read_text(encoding='utf-8')
                      for f in ('reports/words.py', 'models/classifier.py'))
    page = page.replace('the', 'a') + '\nAT_THE_END = 1\n'
    told = networks.replace('A small residual network', 'Small').replace('# image channels', '# channels')
    assert told.count('# channels')
    assert looked_at(CELL, reports__words=page, models__classifier=f'# a word\n\n{told}') == before
    assert networks.count('24, 48, 2') == 1
    assert looked_at(CELL, models__classifier=networks.replace('24, 48, 2', '24, 48, 1')) != before


TREE = dict(a__one='from ..b.two import f\nfrom tsynd.b import three\n\ndef g(x): return f(x)\n',
            b__two='def f(x):\n    import tsynd.b.four as h\n    return h.k(x)\n',
            b__three='from .five import *\n', b__four='def k(x): return x+1\n', b__five='K = 1\n',
            b__six='from tsynd.a.one import g\n', b____init__='from tsynd.b import six\n')

def test_all_kinds_of_imports_are_followed_and_packages_are_not(looked_at):
    first = looked_at('tsynd.a.one', **TREE)
    for name in ('a__one', 'b__two', 'b__three', 'b__four', 'b__five'):
        assert looked_at('tsynd.a.one', **{name: TREE[name] + 'L = 2\n'}) != first, name
        assert looked_at('tsynd.a.one', **{name: TREE[name]}) == first, name
    for name in ('b__six', 'b____init__'):
        assert looked_at('tsynd.a.one', **{name: TREE[name] + 'L = 2\n'}) == first, name

@pytest.mark.parametrize('change, same', [
    ('"Of one"\n{}', True), ('# of one\n\n\n{}', True), ('{}    # and no more', True),
    ('class C:\n    "Empty"\n{}', False), ('{}\nM = "a text"', False)])
def test_docstrings_and_comments_are_no_code(looked_at, change, same):
    first = looked_at('tsynd.b.two', **TREE)
    assert (looked_at('tsynd.b.two', b__two=change.format(TREE['b__two'])) == first) == same

def test_a_docstring_may_come_and_go(looked_at):
    texts = ['class C: pass\n', 'class C:\n    "Nothing"\n', 'class C:\n    """No\n    thing"""\n']
    assert len({looked_at('tsynd.b.seven', b__seven=t) for t in texts}) == 1
    texts = ['async def f(): return 1\n', 'async def f():\n    "One"\n    return 1\n']
    assert len({looked_at('tsynd.b.seven', b__seven=t) for t in texts}) == 1

def test_code_from_elsewhere_may_call_anything(looked_at):
    for module in ('__main__', 'my_arms', 'tsynd.b'):
        first = looked_at(module, **TREE)
        assert looked_at(module, b__six=TREE['b__six'] + 'L = 2\n') != first

def test_without_files_to_read_there_is_a_checksum_all_the_same(looked_at, tmp_path):
    found = looked_at(CELL)
    assert len(found) == 8 and looked_at(CELL, experiments__cell='def broken(:\n') == found
    assert looked_at(CELL, experiments__cell='x = 1\n') != found
    assert code_checksum(root=tmp_path) == code_checksum(CELL, tmp_path)

def test_each_training_function_has_its_own(tmp_path, monkeypatch):
    "and a network is found again by it"
    asked, data = [], phantom(8, 4, 4, size=12)
    monkeypatch.setenv('TSYND_SHARED', str(tmp_path))
    monkeypatch.setattr('tsynd.models.shared.code_checksum', lambda m: asked.append(m) or m)
    train_once(train_classifier, data, epochs=1); train_once(train_autoencoder, data, steps=1)
    assert asked == ['tsynd.models.classifier', 'tsynd.models.autoencoder']
    assert len([*tmp_path.glob('*.pt')]) == 2
