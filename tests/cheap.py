"""Runs of the command that take less time in tests."""
import warnings
from contextlib import contextmanager

import pytest

from tsynd.models import autoencoder_learner
from tsynd.reports import Plot


@contextmanager
def cheap():
    "One radius of attack, small batches for the autoencoder, coarse figures: the same code, less to do"
    png = Plot.png
    with pytest.MonkeyPatch.context() as m, warnings.catch_warnings():
        m.setattr('tsynd.experiments.experiment.EPS', (4/255,))
        m.setattr('tsynd.models.autoencoder.autoencoder_learner',
                  lambda data, ae, steps, bs, *args, **kwargs:
                      autoencoder_learner(data, ae, steps, 8, *args, **kwargs))
        m.setattr(Plot, 'png', lambda self, dpi=100: png(self, 40))
        yield
