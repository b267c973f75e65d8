"""Files that version 0.1 has written: models, a run and studies. Kept as they were, they still load."""
import json, shutil
from pathlib import Path

import pytest, torch

from tsynd.data import phantom
from tsynd.experiments import read_study
from tsynd.models import load_autoencoder, make_classifier
from tsynd.reports import write_report

ROOT = Path(__file__).resolve().parents[1]
OLD = Path(__file__).parent/'version_0_1'
FACTS = json.loads((OLD/'facts.json').read_text())


def test_an_autoencoder_computes_what_it_did():
    ae = load_autoencoder(OLD/'autoencoder', (1, 28, 28))
    x = phantom(n_train=24, n_val=12, n_test=40).test.batch(slice(0, 2))[0]
    with torch.no_grad(): z, y = ae.encode(x), ae(x)
    assert z.mean().item() == pytest.approx(FACTS['z_mean'], abs=1e-6)
    assert y.mean().item() == pytest.approx(FACTS['y_mean'], abs=1e-6)


def test_the_weights_of_a_classifier_have_their_names():
    model = make_classifier(**FACTS['classifier_json']['config'])
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == FACTS['classifier']


def test_a_run_is_reported(tmp_path):
    shutil.copytree(OLD/'run', tmp_path/'run')
    assert 'Balanced accuracy' in write_report(tmp_path/'run').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', sorted(f.parent.name for f in ROOT.glob('nbs/studies/*/study.toml')))
def test_a_study_is_read(name):
    study = read_study(ROOT/'nbs'/'studies'/name)
    assert (study.cells.status == 'done').any() and study.results.value.notna().any()
