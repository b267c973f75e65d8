"""The house: which part may know which, and what a module may be."""
import ast, importlib, pkgutil, re, subprocess, sys
from collections import Counter, defaultdict
from pathlib import Path

from fastcore.nbio import read_nb

import tsynd

ROOT = Path(__file__).resolve().parents[1]
# each imports only those before it
PARTS = ['core', 'data', 'models', 'targeting', 'robustness', 'deployment', 'generation',
         'pool', 'experiments', 'audit', 'reports']
SOURCES = {f.relative_to(ROOT/'tsynd').with_suffix('').as_posix().replace('/', '.'): f
           for f in sorted((ROOT/'tsynd').rglob('*.py')) if f.stem[0] != '_'}
TREES = {name: ast.parse(f.read_text(encoding='utf-8')) for name, f in SOURCES.items()}


def exports(notebook):
    "The module that a notebook makes, or None"
    found = [m[1] for c in read_nb(notebook).cells if (m := re.match(r'#\|\s*default_exp\s+(\S+)', c.source))]
    return found[0] if found else None

def chapters(part): return sorted((ROOT/'nbs'/part).glob('[0-9][0-9]_*.ipynb'))

def reading_order():
    return [m for p in PARTS for f in chapters(p) if (m := exports(f))] + ['manual', 'arguments', 'cli']

def public(tree):
    "What `__all__` of a generated module holds"
    return next(ast.literal_eval(n.value)
                for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')

def own_imports(name):
    "(module, name) of all that a module imports from this package, at its top or in a function"
    for n in ast.walk(TREES[name]):
        if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').split('.')[0] == 'tsynd'):
            up = name.split('.')[:-n.level] if n.level else []
            module = '.'.join([*up, *(n.module or '').split('.')]).removeprefix('tsynd').strip('.')
            yield from ((module, a.name) for a in n.names)


def test_every_part_has_a_page_and_every_module_a_chapter():
    assert [p for p in PARTS if exports(ROOT/'nbs'/p/'index.ipynb') != f'{p}.__init__'] == []
    assert sorted(reading_order()) == sorted(SOURCES)


def test_the_page_of_a_part_names_its_chapters():
    for p in PARTS:
        text = '\n'.join(c.source for c in read_nb(ROOT/'nbs'/p/'index.ipynb').cells
                         if c.cell_type == 'markdown')
        assert [f.name for f in chapters(p) if f']({f.name})' not in text] == [], p


def test_imports_go_one_way():
    "A part imports parts above it, a module what stands before it in the book"
    order = {m: i for i, m in enumerate(reading_order())} | {p: -1 for p in ('', *PARTS)}
    late = [f'{m} imports {other}' for m in TREES for other, _ in own_imports(m)
            if other in order and order[other] >= order[m]]
    assert late == []
    whole = [f'{m} imports {other or "tsynd"}' for m in TREES if m != 'cli' for other, _ in own_imports(m)
             if other in ('', *PARTS)]
    assert whole == [], 'modules import modules; a whole part is for users'


def test_nothing_private_crosses_modules():
    assert [f'{m}: {other}.{n}' for m in TREES for other, n in own_imports(m)
            if n[0] == '_' and n != '__version__'] == []


def test_a_module_is_small_enough_for_one_job():
    lines = {m: len(f.read_text(encoding='utf-8').splitlines()) for m, f in SOURCES.items()}
    assert {m: n for m, n in lines.items() if n > 350} == {}
    assert [m for m, t in TREES.items() if not (ast.get_docstring(t) or '').strip()
            or '\n' in ast.get_docstring(t).strip()] == [], 'its job, in one line'


def test_a_public_name_means_one_thing():
    where = defaultdict(list)
    for m, t in TREES.items():
        for n in public(t): where[n].append(m)
    assert {n: ms for n, ms in where.items() if len(ms) > 1} == {}


def test_a_part_gives_all_that_its_modules_have():
    "and no module has the name of something in its part, which it would hide"
    for p in PARTS:
        part = importlib.import_module(f'tsynd.{p}')
        there = [n for m, t in TREES.items() if m.startswith(f'{p}.') for n in public(t)]
        assert Counter(part.__all__) == Counter(there), p
        assert {m.name for m in pkgutil.iter_modules(part.__path__)} & set(there) == set()
        assert [n for n in there if getattr(part, n) is None] == []


def test_a_refusal_names_its_field():
    "Every `InputError` has one, and a field that is a word stands in the message"
    calls = [(m, n) for m, t in TREES.items() for n in ast.walk(t) if isinstance(n, ast.Call)
             and isinstance(n.func, ast.Name) and n.func.id == 'InputError']
    assert len(calls) > 100
    assert [f'{m}, line {n.lineno}' for m, n in calls if not 2 <= len(n.args) <= 3 or n.keywords] == []
    assert [f'{m}: {n.args[1].value}' for m, n in calls if isinstance(n.args[1], ast.Constant)
            and n.args[1].value not in ast.unparse(n.args[0])] == []


def test_the_front_door_is_light():
    "`import tsynd` loads nothing, and gives what most programs need"
    say = 'import sys, tsynd; print(*{"torch", "numpy", "fastai", "pandas"} & set(sys.modules))'
    out = subprocess.run([sys.executable, '-c', say], cwd=ROOT, capture_output=True, text=True)
    assert (out.returncode, out.stdout.strip()) == (0, ''), out.stderr
    assert {'TSynD', 'load_data', 'train_autoencoder', 'make_classifier'} <= set(tsynd.__all__)
    assert [n for n in tsynd.__all__ if getattr(tsynd, n) is None] == []


def test_lines_of_notebooks_are_short():
    "110 characters; only directives, such as the words of a picture, have to stand on one line"
    long = [f'{f.relative_to(ROOT)} {c.id}: {line}' for f in sorted((ROOT/'nbs').rglob('*.ipynb'))
            if '.ipynb_' not in str(f) for c in read_nb(f).cells if c.cell_type == 'code'
            for line in c.source.splitlines() if len(line) > 110 and not line.startswith('#|')]
    assert long == []
