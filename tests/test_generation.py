"Generators: every one of them keeps what the protocol promises; damaged files are refused"
import json

import pytest
import torch
from safetensors.torch import save_file

from refused import refused
from tsynd.core import InputError
from tsynd.data import phantom, subset
from tsynd.generation import (
    generators, labels_like, load_generator, make_generator, nearest_training, sample, save_generator)


@pytest.fixture(scope='module')
def data(): return phantom(n_train=40, n_val=60, n_test=8, size=12, holes=False, seed=1)

def fitted(name, data):
    settings = dict(steps=3) if name == 'class_gaussian' else {}
    return make_generator(name, **settings).fit(data, seed=2)

@pytest.mark.parametrize('name', sorted(generators()))
def test_a_generator_keeps_the_protocol(name, data, tmp_path):
    g,y = fitted(name, data),labels_like(data.train.y, 20, seed=3)
    s = sample(g, y, seed=4)
    assert s.x.dtype == torch.uint8 and s.x.shape == (20, *data.shape) and torch.equal(s.y, y)
    assert (s.table.generator == name).all() and (s.table.seed == 4).all()
    assert torch.equal(sample(g, y, seed=4).x, s.x)                     # equal seeds, equal images
    assert not torch.equal(sample(g, y, seed=5).x, s.x)
    again = load_generator(save_generator(g, tmp_path/name))
    assert torch.equal(sample(again, y, seed=4).x, s.x)

def test_the_truth_stands_in_the_table(data):
    "What a control says of an image is so: its source, and whether it is a copy of it"
    s = sample(fitted('half_copies', data), data.train.y, seed=0)
    copied = (s.table.origin == 'copy').to_numpy()
    near = nearest_training(s.x, data.train)
    assert copied.sum() == 20 and (near.distance[copied] == 0).all() and (near.distance[~copied] > 0).all()
    few = sample(fitted('few_copies', data), data.train.y, seed=0)
    assert (few.table.origin == 'copy').sum() == 4

@pytest.mark.parametrize('n', [2, 7, 40, 100])
def test_labels_keep_their_proportions(data, n):
    y = labels_like(data.train.y, n, seed=0)
    share = data.train.y.float().mean()
    assert len(y) == n and abs(y.float().mean()-share) <= 1/n + .02

def test_what_cannot_be_done_is_refused(data):
    with refused('generator', 'copycat'): make_generator('magic')
    with refused('noise'): make_generator('jitter', noise=2)
    with refused('move', 'flipped'): make_generator('moved_copies', move='eaten')
    with refused('generator', 'fit'): sample(make_generator('copycat'), data.train.y)
    with refused('labels', found=(0,)): sample(fitted('copycat', data), data.train.y[:0])
    with refused('labels'): sample(fitted('fresh', data), torch.zeros(61).long())
    with refused('labels', found=0): labels_like(data.train.y[:0], 3)

@pytest.mark.parametrize('spoil', ['json', 'weights', 'name', 'cut'])
def test_a_spoilt_generator_is_refused(data, tmp_path, spoil):
    folder = save_generator(fitted('copycat', subset(data, 10)), tmp_path/'g')
    facts,weights = folder/'generator.json',folder/'generator.safetensors'
    if spoil == 'json': facts.write_text('{')
    if spoil == 'name': facts.write_text(json.dumps(json.loads(facts.read_text()) | dict(name='magic')))
    if spoil == 'weights': save_file(dict(a=torch.zeros(1)), weights)
    if spoil == 'cut': weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match='generator'): load_generator(folder)
