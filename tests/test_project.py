"""The parts of the project that say the same thing in two places still agree,
and the notebooks are fit to be read."""
import ast, importlib.metadata, importlib.util, json, os, re, shutil, subprocess, sys, tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest, yaml
from fastcore.nbio import read_nb
from nbdev.config import get_config, read_version
from nbdev.test import nb_test_cells

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
NOTEBOOKS = sorted(f for f in (ROOT/'nbs').rglob('*.ipynb')
                   if not any(p[0] in '._' for p in f.relative_to(ROOT).parts))
CHAPTERS = [f for f in NOTEBOOKS
            if f.parent.name not in ('tutorials', 'evidence') and re.match(r'\d\d_', f.name)]
TEXTS = [f for pattern in ('*.md', '*.ini', '*.toml', '*.cff', '.gitignore', '.ci/**/*', '.github/**/*',
                           'nbs/pages/*', 'tsynd/**/*.py', 'tests/*.py')
         for f in sorted(ROOT.glob(pattern)) if f.is_file() and '__pycache__' not in f.parts]
MACHINE = re.compile(r'(?<![\w./+])(?:/(?:root|home|Users|work|tmp|mnt|opt|private)/|[A-Z]:\\\\?Users)')
DEFINITION = re.compile(r'^(?:@|def |class |async def )', re.M)

notebooks = pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda f: f.relative_to(ROOT/'nbs').as_posix())
remakes = pytest.mark.xdist_group('remade')  # one worker makes the copy, for all tests that need it


def code(nb): return [c for c in read_nb(nb).cells if c.cell_type == 'code' and c.source.strip()]

def where(nb, cell): return f'{nb.parent.name}/{nb.name} cell {cell.id}: {cell.source[:60]!r}'


@pytest.fixture(scope='module')
def readme():
    "The script that makes the README"
    spec = importlib.util.spec_from_file_location('readme', ROOT/'.ci'/'readme.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def remade(tmp_path_factory):
    "A copy of the notebooks, exported and cleaned once more"
    copy = tmp_path_factory.mktemp('remade')
    shutil.copytree(ROOT/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('.*', '_*'))
    (copy/'tsynd').mkdir()
    for f in ('pyproject.toml', 'tsynd/__init__.py'): shutil.copy(ROOT/f, copy/f)
    for tool in ('nbdev-export', 'nbdev-clean'):
        subprocess.run([SCRIPTS/tool], cwd=copy, check=True, capture_output=True)
    return copy


@pytest.mark.xdist_group('here')
def test_a_group_of_tests_stays_on_one_worker(request):
    "Where it does not, nothing fails, but each worker makes what the tests of a group share"
    if not hasattr(request.config, 'workerinput'): pytest.skip('one process: run pytest -n 2')
    assert request.node.nodeid.endswith('@here')


# What is stated twice

def test_settings_and_pyproject_agree():
    ini = ConfigParser()
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    ini, toml = ini['DEFAULT'], tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
    project, nbdev = toml['project'], toml['tool']['nbdev']
    licences = {'apache2': 'Apache-2.0'}
    stated = dict(
        name=ini['name'], description=ini['description'], keywords=ini['keywords'].split(),
        authors=[dict(name=ini['author'], email=ini['author_email'])], license=licences[ini['license']],
        python=f">={ini['min_python']}", requirements=ini['requirements'].split(),
        dev=ini['dev_requirements'].split(), dicom=ini['dicom_requirements'].split(),
        cluster=ini['cluster_requirements'].split(), generate=ini['generate_requirements'].split(),
        scripts=dict(s.split('=') for s in ini['console_scripts'].split()), repository=ini['git_url'],
        paths={k: ini[k] for k in ('nbs_path', 'lib_path', 'doc_path', 'branch')},
        packages=[f"{ini['lib_path']}*"], index={ini['lib_path']: f"{ini['lib_path']}._modidx:d"},
        version=f"{ini['lib_path']}.__version__")
    extras = project['optional-dependencies']
    repeated = dict(
        name=project['name'], description=project['description'], keywords=project['keywords'],
        authors=project['authors'], license=project['license'],
        python=project['requires-python'], requirements=project['dependencies'],
        dev=extras['dev'], dicom=extras['dicom'], cluster=extras['cluster'], generate=extras['generate'],
        scripts=project['scripts'], repository=project['urls']['Repository'],
        paths={k: nbdev[k] for k in ('nbs_path', 'lib_path', 'doc_path', 'branch')},
        packages=toml['tool']['setuptools']['packages']['find']['include'],
        index=project['entry-points']['nbdev'],
        version=toml['tool']['setuptools']['dynamic']['version']['attr'])
    assert stated == repeated
    assert ini['lib_name'] == ini['name']
    assert ini['version'] == read_version(ROOT/ini['lib_path'])
    assert 'Apache License' in (ROOT/'LICENSE').read_text(encoding='utf-8')
    citation = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert (citation['version'], citation['license'], citation['repository-code']) == (
        ini['version'], project['license'], ini['git_url'])


@remakes
def test_modules_are_what_the_notebooks_export(remade):
    def made(root):
        return {f.relative_to(root).as_posix(): f.read_bytes()
                for p in ('tsynd/**/*.py', 'nbs/llms.txt') for f in root.glob(p)}
    here, again = made(ROOT), made(remade)
    assert sorted(here) == sorted(again), 'a module without a notebook, or a notebook that was not exported'
    assert [f for f in here if here[f] != again[f]] == [], 'run nbdev-export'


@remakes
def test_notebooks_are_clean(remade):
    assert NOTEBOOKS
    assert [f.name for f in NOTEBOOKS
            if f.read_bytes() != (remade/f.relative_to(ROOT)).read_bytes()] == [], 'run nbdev-clean'


def test_readme_is_what_the_index_makes(readme):
    made = readme.readme()
    differ = [f for f, content in made.items() if not (ROOT/f).is_file() or (ROOT/f).read_bytes() != content]
    assert differ + readme.stale(made) == [], 'run python .ci/readme.py'


def test_readme_can_be_followed():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    blocks = re.findall(r'^```bash\n(.*?)^```$', text, re.M | re.S)
    tests = [b for b in blocks if 'nbdev-test' in b]
    runs = [b for b in blocks if 'tsynd run' in b and 'pip install' in b]
    assert len(tests) == 1 and runs
    printed = subprocess.run(['bash', ROOT/'.ci'/'run', '-n'], capture_output=True, text=True,
                             check=True).stdout
    assert printed.strip() == tests[0].strip()
    assert not re.search(r'^\s*#\s*\|', text, re.M), 'an nbdev directive'
    links = re.findall(r'\]\(<?([^)\s>]+)|(?:src|href)=["\']([^"\']+)',
                       re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S))
    local = [a or b for a, b in links if not re.match(r'[a-z]+:|#', a or b)]
    assert [f for f in local if not (ROOT/f.split('#')[0]).exists()] == []


# Notebooks one can read from top to bottom

@pytest.mark.parametrize('nb', CHAPTERS, ids=lambda f: f.stem)
def test_no_cell_of_a_chapter_is_skipped(nb):
    "nbdev itself says which cells it would run"
    run = {c.id for c in nb_test_cells(nb, skip_flags=get_config(ROOT).tst_flags.split())}
    assert [where(nb, c) for c in code(nb) if c.id not in run] == []
    assert not (ROOT/'nbs'/'.notest').exists()


def shows(source):
    "Whether a cell surely displays something: a printed line, or a last expression that is not a call"
    source = re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M)
    body = ast.parse(source).body
    if not body or source.startswith('%%'): return False
    last = body[-1].value if isinstance(body[-1], ast.Expr) else None
    printed = any(isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)
                  and getattr(s.value.func, 'id', '') in ('print', 'display') for s in body)
    quiet = (last is None or isinstance(last, ast.Call) or source.rstrip().endswith(';')
             or getattr(last, 'value', 0) in (None, ...))
    return printed or not quiet


@notebooks
def test_outputs_are_saved(nb):
    cells = code(nb)
    # the page of a part only passes on what its chapters have
    if nb.name != 'index.ipynb': assert any(c.outputs for c in cells), 'run nbdev-test --save'
    assert [where(nb, c) for c in cells
            if shows(c.source) and not c.outputs] == [], 'run nbdev-test --save, then nbdev-clean'
    assert [where(nb, c) for c in cells for o in c.outputs if o.output_type == 'error'] == []


def test_pictures_have_one_font_size():
    "That of the package's style, in the figures of reports too"
    from matplotlib import rc_params_from_file, rcParams
    from tsynd.reports import figure_style
    book = rc_params_from_file(ROOT/'tsynd'/'core'/'tsynd.mplstyle', use_default_template=False)
    with figure_style():
        for k in ('font.size', 'axes.titlesize', 'legend.fontsize'):
            assert rcParams[k] == book[k] == book['font.size']
    own = re.compile(
        r'fontsize=(?!TYPE_SIZE\b)|labelsize=|set_fontsize|(?:font|title|label)[._]?size\W+[\d.]')
    assert [where(f, c) for f in NOTEBOOKS for c in code(f)
            if own.search(c.source) and 'def figure_style' not in c.source] == []


@notebooks
def test_definitions_are_short(nb):
    lines = {where(nb, c): len([l for l in c.source.splitlines() if l.strip()])
             for c in code(nb) if DEFINITION.search(c.source)}
    assert {w: n for w, n in lines.items() if n > 30} == {}


@notebooks
def test_imports_are_explicit(nb):
    star = re.compile(r'^\s*from\s+\S+\s+import\s+\*', re.M)
    assert [where(nb, c) for c in code(nb) if star.search(c.source)] == []


def test_notebooks_are_small():
    sizes = {f: f.stat().st_size for f in NOTEBOOKS}
    assert {f: n for f, n in sizes.items() if n >= 1.2e6} == {}
    assert sum(sizes.values()) < 65e3*len(sizes), 'run python .ci/pictures.py'


def strings(x):
    "All the text in a notebook's JSON, pictures apart"
    if isinstance(x, str): yield x
    elif isinstance(x, list): yield from (s for o in x for s in strings(o))
    elif isinstance(x, dict):
        yield from (s for k, o in x.items() if not re.match(r'image/(?!svg)', k) for s in strings(o))


@pytest.mark.parametrize('file', NOTEBOOKS + TEXTS, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_no_path_of_a_machine(file):
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.ipynb': text = '\n'.join(strings(json.loads(text)))
    assert [text[max(m.start() - 30, 0):m.end() + 30] for m in MACHINE.finditer(text)] == []


# Modules

def imported(tree, top_only=False):
    "Names of the modules that a syntax tree imports; of this package as `.name`"
    for n in tree.body if top_only else ast.walk(tree):
        if isinstance(n, ast.Import): yield from (re.sub(r'^tsynd\.', '.', a.name) for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            name = '.' * n.level + (n.module or '')
            if name in ('.', 'tsynd'): yield from ('.' + a.name for a in n.names)
            else: yield re.sub(r'^tsynd\.', '.', name)


def modules():
    return {f.stem: ast.parse(f.read_text(encoding='utf-8')) for f in ROOT.glob('tsynd/**/*.py')
            if f.stem[0] != '_'}


def test_what_modules_import_is_required():
    "At a module's top stand only the standard library and what `pip install tsynd` brings; nbdev nowhere"
    project = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']
    def plain(name): return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', name)[0]).lower()
    required = {plain(r) for r in project['dependencies']}
    brought = importlib.metadata.packages_distributions()
    def allowed(top):
        return top in sys.stdlib_module_names or required & {plain(d) for d in brought.get(top, ())}
    tops = {(m, n.split('.')[0]) for m, tree in modules().items() for n in imported(tree, top_only=True)
            if n[0] != '.'}
    assert [f'{m} imports {top}' for m, top in sorted(tops) if not allowed(top)] == []
    assert [m for m, tree in modules().items() for n in imported(tree) if n.split('.')[0] == 'nbdev'] == []


def test_command_line_starts_without_torch():
    "`tsynd --help` should answer at once"
    say = 'import sys, tsynd.cli; print(*{"torch", "fastai", "matplotlib", "sklearn"} & set(sys.modules))'
    out = subprocess.run([sys.executable, '-c', say], cwd=ROOT, capture_output=True, text=True)
    assert (out.returncode, out.stdout.strip()) == (0, ''), out.stderr


@pytest.mark.xdist_group('wheel')
def test_distributions_are_clean(distributions):
    "What would be uploaded is built without a warning and passes the index's own check, README included"
    assert re.findall(r'.*warn.*', distributions.printed, re.I) == []
    files = sorted(str(f) for f in distributions.folder.iterdir())
    assert [f.rsplit('.', 1)[1] for f in files] == ['whl', 'gz']
    checked = subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *files],
                             capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# Workflows

@pytest.mark.parametrize('file', sorted(ROOT.glob('.github/workflows/*.y*ml')), ids=lambda f: f.name)
def test_workflow_is_valid_and_calls_what_exists(file):
    flow = yaml.safe_load(file.read_text(encoding='utf-8'))
    assert flow['jobs'] and (True in flow or 'on' in flow)  # YAML 1.1 reads the key `on` as true
    path = os.pathsep.join([str(SCRIPTS), os.environ['PATH']])
    lines = [l for job in flow['jobs'].values() for s in job['steps']
             for l in s.get('run', '').splitlines() if l.strip()]
    words = [part.split()[0] for l in lines for part in re.split(r'&&|\|\||;|(?<!\|)\|(?!\|)', l)
             if part.strip()]
    assert [w for w in words if not (shutil.which(w, path=path) or os.access(ROOT/w, os.X_OK))] == []
    scripts = [m[1] for l in lines for m in re.finditer(r'\bpython ([\w./-]+\.py)\b', l)]
    assert [s for s in scripts if not (ROOT/s).is_file()] == []
    assert all(re.fullmatch(r'[\w-]+/[\w-]+@v\d+', s['uses']) for job in flow['jobs'].values()
               for s in job['steps'] if 'uses' in s)
    assert all(n in flow['jobs'] for job in flow['jobs'].values() for n in [job.get('needs')] if n)
    assert all('timeout-minutes' in job and ('run' in s) != ('uses' in s) for job in flow['jobs'].values()
               for s in job['steps'])


def test_every_part_is_in_the_readme():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert [p for p in sorted({f.parent.name for f in CHAPTERS})
            if f'](nbs/{p}/index.ipynb)' not in text] == []


def test_site_is_published_by_the_command_that_is_tested():
    flow = yaml.safe_load((ROOT/'.github'/'workflows'/'docs.yml').read_text(encoding='utf-8'))
    command = 'sphinx-build -W --keep-going nbs _docs'
    assert command in [s.get('run') for s in flow['jobs']['build']['steps']]
    for file in ('.github/CONTRIBUTING.md', 'tests/test_site.py'):
        assert command in (ROOT/file).read_text(encoding='utf-8')


def test_workflows_run_all_tests_on_the_oldest_python_too():
    jobs = yaml.safe_load((ROOT/'.github'/'workflows'/'ci.yml').read_text(encoding='utf-8'))['jobs']
    versions = jobs['tests']['strategy']['matrix']['python']
    assert all(isinstance(v, str) for v in versions) and versions[0] == get_config(ROOT).min_python
    run = [s['run'] for job in jobs.values() for s in job['steps'] if 'run' in s]
    assert any(r.startswith('nbdev-test') for r in run) and 'pytest tests/test_site.py' in run
    assert 'ruff check' in run
    assert 'pytest -n 2 --ignore=tests/test_site.py' in run     # the rest, whatever it is


def test_lint():
    done = subprocess.run([SCRIPTS/'ruff', 'check', '--output-format', 'concise'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
