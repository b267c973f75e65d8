"Generators: every one of them keeps what the protocol promises; damaged files are refused"
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from refused import refused
from tsynd.core import InputError
from tsynd.data import ImageData, phantom, Split, subset
from tsynd.generation import (
    generator, generators, interpolate, labels_like, Learned, load_generator, make_generator,
    nearest_training, sample, save_generator, targeted_sample)


@pytest.fixture(scope='module')
def data(): return phantom(n_train=40, n_val=60, n_test=8, size=12, holes=False, seed=1)

def fitted(name, data):
    settings = dict(steps=3) if name == 'class_gaussian' else {}
    if not generators()[name].control: settings = FEW
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


# Generators that learn in steps

FEW = dict(updates=4, width=8, ae_steps=4, bs=8)
LEARNED = {'diffusion': dict(steps=3), 'cpd_gan': {}, 'prog_gan': dict(space='pixels')}

def learned(name, data, seed=2, **more):
    return make_generator(name, **FEW, **LEARNED[name], **more).fit(data, seed)

class Stopped(Exception): pass

def stopping(done, total):
    if done == 3: raise Stopped

@pytest.mark.parametrize('name', LEARNED)
def test_a_training_that_was_stopped_ends_the_same(name, data, tmp_path):
    whole = learned(name, data)
    g = make_generator(name, **FEW, **LEARNED[name])
    with pytest.raises(Stopped): g.fit(data, 2, tmp_path, stopping)
    seen = []
    again = make_generator(name, **FEW, **LEARNED[name]).fit(data, 2, tmp_path, lambda k, n: seen.append(k))
    assert len(seen) == 1                                               # of four updates: what was left
    assert again.history == whole.history
    y = data.train.y[:6]
    assert torch.equal(sample(again, y, 1).x, sample(whole, y, 1).x)

@pytest.mark.parametrize('name', ['diffusion', 'cpd_gan'])
def test_large_images_are_seen_a_few_at_a_time(name, monkeypatch):
    "Neither a look at many images nor a draw holds them all in the network"
    monkeypatch.setattr(Learned, 'looked_at', 70)
    big,sizes = phantom(n_train=8, n_val=0, n_test=4, size=64),[]
    quick = dict(steps=1, guidance=1.) if name == 'diffusion' else {}
    g = make_generator(name, space='pixels', width=8, bs=2, updates=1, **quick).fit(big, 0)
    g.average.model.register_forward_pre_hook(lambda net, given: sizes.append(len(given[0])))
    g.look(); sample(g, torch.arange(70)%2)
    assert sum(sizes) >= 70 > 64 == max(sizes)

def test_another_question_does_not_go_on(data, tmp_path):
    learned('cpd_gan', data).fit(data, 2, tmp_path)
    seen = []
    make_generator('cpd_gan', **FEW).fit(data, 3, tmp_path, lambda k, n: seen.append(k))    # another seed
    assert len(seen) == 4
    (tmp_path/'learning.pt').write_bytes(b'PK')                                             # damaged
    make_generator('cpd_gan', **FEW).fit(data, 3, tmp_path)

@pytest.mark.parametrize('name', LEARNED)
def test_several_labels_and_colour(name, tmp_path):
    "Images of two labels each, in colour: labels reach the images, and the generator is loaded as it was"
    g = torch.Generator().manual_seed(0)
    def split(n):
        y = torch.randint(2, (n,2), generator=g).float()
        x = torch.randint(80, 120, (n,3,16,16), generator=g)
        x[:,0] += (80*y[:,0,None,None]).long()
        return Split(x.to(torch.uint8), y, torch.arange(n))
    d = ImageData('colours', 'multi-label, binary-class', ['red','none'], split(30), split(12), split(2))
    made = learned(name, d)
    y = torch.tensor([[0.,1.],[1.,1.],[0.,0.]])
    s = sample(made, y, 1)
    assert s.x.shape == (3,3,16,16) and torch.equal(s.y, y)
    again = load_generator(save_generator(made, tmp_path/'g'))
    assert torch.equal(sample(again, y, 1).x, s.x) and again.history == made.history
    assert interpolate(again, y[:2], 4).shape == (4,3,16,16)

def test_the_snapshot_is_the_best_look(data):
    g = learned('diffusion', data)
    kept = [r for r in g.history if r['kept']]
    assert len(kept) == 1 and kept[0]['validation'] == min(r['validation'] for r in g.history)

def test_a_deterministic_velocity_is_removed_exactly(data):
    "If all images are one, its velocity is known: from any noise the solver arrives at that image"
    g = learned('diffusion', data, seed=0)
    z = torch.randn(1, *g.space.shape, generator=torch.Generator().manual_seed(1))
    def exact(x, t, labels):
        a = g.noise.alphas_cumprod[t[0].long()].sqrt(); s = (1-a*a).sqrt()
        return a*(x-a*z)/s - s*z                                        # a·noise less s·image
    g.average.model.forward = exact
    g.s.steps = 20
    end = g.denoise(g.noises(3, torch.Generator().manual_seed(2)), torch.zeros(3, 2))
    assert (end-z).abs().max() < .02

def test_guidance_goes_on_from_hidden_to_shown_labels(data):
    g = learned('diffusion', data, guidance=3.)
    x,t = torch.randn(2, *g.space.shape),torch.tensor(500)
    def net(x, t, labels): return x*0 + labels[:,:1,None,None] - 2*labels[:,-1:,None,None]
    g.average.model.forward = net
    v = g.velocity(x, t, torch.tensor([[1.,0.],[0.,1.]]))
    assert torch.allclose(v[0], torch.tensor(-2+3*3.)) and torch.allclose(v[1], torch.tensor(-2+3*2.))

def test_classes_are_drawn_equally_often(data):
    few = subset(data, 10)
    few.train.y = torch.tensor([0]*9 + [1])
    g = make_generator('cpd_gan', **FEW)
    g.fit(few)
    g.s.bs = 2000
    share = g.batch(torch.Generator().manual_seed(0))[1].mean(0)
    assert (share-.5).abs().max() < .05

def test_steered_images_are_less_certain_than_their_twins(data):
    "Mutual information rises on the way; a random way of the same kind does not raise it as much"
    g = learned('diffusion', data)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(.5), nn.Linear(144, 2))
    y = torch.arange(40) % 2
    up = targeted_sample(g, model, y, seed=1, radius=1., gate=0.).table
    aside = targeted_sample(g, model, y, seed=1, radius=1., gate=0., objective='random').table
    same = targeted_sample(g, model, y, seed=1, gate=0., objective='reconstruction')
    assert up.mi_after.mean() > max(aside.mi_after.mean(), up.mi_before.mean())
    assert (same.table.distance_latent == 0).all()
    assert up.mi_before.tolist() == pytest.approx(same.table.mi_before.tolist(), abs=1e-5)

def test_two_generators_take_turns(data):
    g = make_generator('two_generators', **FEW).fit(data)
    assert g.two[0].space.ae is g.two[1].space.ae
    s = sample(g, data.train.y[:5], 1)
    assert s.table.by.tolist() == ['diffusion','cpd_gan','diffusion','cpd_gan','diffusion']

def test_what_a_learning_generator_cannot_do_is_refused(data):
    with refused('updates', found=0): make_generator('diffusion', updates=0)
    with refused('guidance'): make_generator('diffusion', guidance=-1.)
    with refused('width', 'multiple of 8', found=12): make_generator('cpd_gan', width=12)
    with refused('loss'): make_generator('cpd_gan', loss='mse')
    with refused('generator'): make_generator('diffusion', colour=3)
    with refused('generator', 'comes with'): generator('diffusion', 'Another')(lambda: None)
    with refused('generator', 'copycat'): interpolate(make_generator('copycat').fit(data), data.train.y[:2])
    with refused('generator'): targeted_sample(make_generator('copycat'), None, data.train.y)
