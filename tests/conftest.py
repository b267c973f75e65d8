"""What all tests share: one thread per process, the real data, and hypothesis without a clock."""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')  # read when torch is first imported

from pathlib import Path
from types import SimpleNamespace

import pytest, torch
from hypothesis import settings

torch.set_num_threads(1)
# half of the usual examples; the same ones on every machine that checks, new ones where one develops
settings.register_profile('tsynd', deadline=None, max_examples=50, derandomize=os.environ.get('CI') == 'true')
settings.load_profile('tsynd')


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
