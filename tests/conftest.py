"""What all tests share: one thread per process, the real data, and hypothesis without a clock."""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')  # read when torch is first imported

import random, shutil, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest, torch
from hypothesis import settings

torch.set_num_threads(1)
# half of the usual examples; the same ones on every machine that checks, new ones where one develops
settings.register_profile('tsynd', deadline=None, max_examples=50, derandomize=os.environ.get('CI') == 'true')
settings.load_profile('tsynd')


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    "What a test draws, such as the weights of a network, does not depend on the tests before it"
    random.seed(0); np.random.seed(0); torch.manual_seed(0)


@pytest.fixture(scope='session')
def medmnist_root():
    "Folder of the real MedMNIST files; a test that uses it is marked `realdata`"
    named = os.environ.get('MEDMNIST_ROOT')
    root = Path(named or '~/.medmnist').expanduser().resolve()
    missing = [f for f in ('breastmnist.npz', 'pneumoniamnist.npz') if not (root/f).is_file()]
    if not missing: return root
    if named: pytest.fail(f'MEDMNIST_ROOT={named} has no {" and no ".join(missing)}: '
                          'put the files there, or unset it to leave out the tests on real data',
                          pytrace=False)
    pytest.skip('real data absent: set MEDMNIST_ROOT to a folder with breastmnist.npz and pneumoniamnist.npz')


@pytest.fixture(scope='session')
def distributions(tmp_path_factory):
    "A source distribution of what git knows, and the wheel that is built from it"
    tmp, root = tmp_path_factory.mktemp('distributions'), Path(__file__).parents[1]
    known = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True, check=True)
    files = [f for f in known.stdout.split('\0') if f and (root/f).is_file()]
    for f in files:
        (tmp/'tree'/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/f, tmp/'tree'/f)
    # setuptools would warn of it
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    build = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'dist', tmp/'tree']
    built = subprocess.run(build, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return SimpleNamespace(folder=tmp/'dist', files=files, printed=built.stdout+built.stderr)


BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')

@pytest.fixture(scope='session')
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path: pytest.skip(f'no browser here: none of {", ".join(BROWSERS)}')
    playwright = pytest.importorskip('playwright.sync_api').sync_playwright().start()
    quiet = ['--no-sandbox', '--disable-gpu',
             *(f'--disable-{what}' for what in ('background-networking', 'component-update', 'sync'))]
    running = playwright.chromium.launch(executable_path=path, args=quiet)
    yield running
    running.close()
    playwright.stop()


def pytest_collection_modifyitems(items):
    "Mark every test on real data, and say so in the junit report, where .ci/run looks for skipped ones"
    for item in items:
        if 'medmnist_root' in getattr(item, 'fixturenames', ()): item.add_marker('realdata')
        if item.get_closest_marker('realdata'): item.user_properties.append(('realdata', True))


@pytest.fixture
def bars(monkeypatch):
    "Every progress bar that is made"
    made = []
    class Bar(SimpleNamespace):
        def __init__(self, **kwargs): super().__init__(n=0, closed=False, **kwargs); made.append(self)
        def update(self, n=1): self.n += n
        def close(self): self.closed = True
    monkeypatch.setattr('tsynd.models.fitting.tqdm', Bar)
    return made
