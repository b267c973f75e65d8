"""Shapes, noise, sigma, seeds, saved files, and trainings that go wrong."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from hypothesis import given, settings, strategies as st
from layouts import write_npz
from refused import refused

from tsynd.data import ImageDL
from tsynd.models import TrainingBar
from tsynd.models import (
    Autoencoder, autoencoder_learner, encode_all, load_autoencoder, quality, save_model, train_autoencoder)
from tsynd.core import seeded
from tsynd.data import load_medmnist, phantom, subset


def tiny(seed=0, **kwargs):
    with seeded(seed): return Autoencoder(**dict(dict(width=4), **kwargs))

def images(n=3, ch=1, H=12, W=12, seed=0):
    return torch.rand(n, ch, H, W, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(scope='module')
def data(): return phantom(24, 12, 12, size=12)

@pytest.fixture(scope='module')
def colour(tmp_path_factory):
    path = write_npz(tmp_path_factory.mktemp('colour'), 'bloodmnist', n=(24,12,12))
    with pytest.warns(UserWarning, match='MD5'):
        return load_medmnist('bloodmnist', path.parent, download=False)


# Shapes

@settings(max_examples=25)
@given(st.sampled_from([1,3]), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_every_size_divisible_by_four(ch, h, w, Z):
    ae, x = tiny(ch=ch, latent_channels=Z).eval(), images(2, ch, 4*h, 4*w)
    with torch.no_grad(): z, out = ae.encode(x), ae(x)
    assert tuple(z.shape[1:]) == ae.latent_shape(x.shape[1:]) == (Z,h,w) and out.shape == x.shape
    assert 0 <= out.min() and out.max() <= 1
    assert ae.compression(x.shape[1:]) == Z/16 == z[0].numel()/x[0,0].numel()

@given(st.sampled_from([1,3]), st.integers(1, 30), st.integers(1, 30))
def test_every_other_size_is_refused(ch, H, W):
    if H%4 == 0 and W%4 == 0: H += 1
    with refused('images', f'(B, {ch}, H, W)', found=(2, ch, H, W)): tiny(ch=ch).encode(images(2, ch, H, W))

@pytest.mark.parametrize('shape', [(2,3,12,12), (1,12,12), (12,12), (2,2,12,12)])
def test_other_channels_and_single_images_are_refused(shape):
    with refused('images', found=shape): tiny().encode(torch.zeros(shape))

def test_the_bottleneck_is_real_by_default(): assert Autoencoder().compression((1,28,28)) <= .25

def test_a_latent_is_a_place():
    "A change in one corner of the image leaves the latents of the other corner as they were"
    ae, x = tiny().eval(), images(1, 1, 64, 64)
    y = x.clone(); y[...,:4,:4] = 1-y[...,:4,:4]
    with torch.no_grad(): d = (ae.encode(x)-ae.encode(y)).abs().sum(1)[0]
    assert d[0,0] > 0 and d[8:,8:].max() == 0


def test_latents_have_one_unit_in_every_channel():
    with torch.no_grad(): z = tiny(latent_channels=3).train().encode(images(40))
    torch.testing.assert_close(z.mean((0,2,3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var((0,2,3), correction=0), torch.ones(3), atol=1e-3, rtol=0)


# Noise and sigma

def test_noise_only_in_training():
    ae, x = tiny(noise=.5), images(8)
    ae.train()
    assert not torch.equal(ae(x), ae(x))
    ae.eval()
    assert torch.equal(ae(x), ae(x)) and torch.equal(ae(x), ae.decode(ae.encode(x)))
    quiet = tiny(noise=0.).train()
    assert torch.equal(quiet(x), quiet(x))

@pytest.mark.parametrize('noise', [.05, .5])
def test_noise_has_the_stated_size(noise, monkeypatch):
    ae, x, seen = tiny(noise=noise).train(), images(200), []
    monkeypatch.setattr(ae, 'decode', lambda z: seen.append(z) or z)
    with seeded(0), torch.no_grad(): ae(x)
    with torch.no_grad(): d = seen[0]-ae.encode(x)
    assert d.std().item() == pytest.approx(noise, rel=.05) and abs(d.mean().item()) < .05*noise*5

def test_sigma_is_the_rms_of_the_training_latents_about_their_mean(data):
    ae = train_autoencoder(data, steps=20, width=4)
    z = encode_all(ae, data.train.x).double()
    assert ae.sigma.item() == pytest.approx(((z-z.mean(0))**2).mean().sqrt().item(), rel=1e-5)
    assert not ae.training and 'sigma' in ae.state_dict()
    ae.measure_sigma(data.test.x)
    z = encode_all(ae, data.test.x).double()
    assert ae.sigma.item() == pytest.approx(((z-z.mean(0))**2).mean().sqrt().item(), rel=1e-5)

def test_encode_all_takes_bytes_and_floats_in_parts(data):
    ae = tiny().eval()
    z = encode_all(ae, data.train.x)
    assert not z.requires_grad and z.shape == (24, *ae.latent_shape((1,12,12)))
    torch.testing.assert_close(encode_all(ae, data.train.x.float()/255, bs=7), z)
    torch.testing.assert_close(ae.encode(data.train.batch(slice(None))[0]), z)


# Training

@pytest.mark.parametrize('kind', ['grey','colour'])
def test_training_improves_what_it_has_not_seen(kind, data, colour):
    d = data if kind == 'grey' else colour
    untrained, trained = tiny(ch=d.shape[0], width=8).eval(), train_autoencoder(d, steps=60, width=8)
    before, after = quality(untrained, d.test.x), quality(trained, d.test.x)
    assert (after['psnr'] > before['psnr']+3 and after['ssim'] > before['ssim']
            and after['latents_per_pixel'] == .25)

def test_quality_agrees_with_the_definition(colour):
    ae = tiny(ch=3).eval()
    x = colour.test.x
    with torch.no_grad(): mse = (ae(x.float()/255)-x.float()/255).pow(2).mean((1,2,3))
    assert quality(ae, x)['psnr'] == pytest.approx((-10*mse.log10()).mean().item(), abs=1e-3)
    perfect = SimpleNamespace(sigma=torch.ones(()), encode=lambda x: x, decode=lambda z: z,
                              compression=lambda s: 1.)
    with np.errstate(divide='ignore'): assert quality(perfect, x)['ssim'] == pytest.approx(1)

def test_ssim_of_flat_images_is_the_closed_form():
    a, b, C1 = 51/255, .6, .01**2
    flat = SimpleNamespace(sigma=torch.ones(()), encode=lambda x: x, decode=lambda z: torch.full_like(z, b),
                           compression=lambda s: 1.)
    x = torch.full((2,1,12,12), 51, dtype=torch.uint8)
    assert quality(flat, x)['ssim'] == pytest.approx((2*a*b+C1)/(a*a+b*b+C1), abs=1e-4)
    assert quality(flat, x)['psnr'] == pytest.approx(-20*np.log10(b-a), abs=1e-3)

def test_the_order_of_the_images_follows_the_seed(data, monkeypatch):
    seeds, DL = [], ImageDL
    monkeypatch.setattr(
        'tsynd.models.autoencoder.ImageDL',
        lambda *args, seed, **kwargs: seeds.append(seed) or DL(*args, seed=seed, **kwargs))
    train_autoencoder(data, steps=10, width=4, seed=3)
    assert set(seeds) == {3}

def test_the_seed_is_all_that_matters(data):
    def weights(seed, noise):
        with seeded(noise): return train_autoencoder(data, steps=20, seed=seed, width=4).state_dict()
    a,b,c = weights(0, 1), weights(0, 2), weights(1, 1)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a['enc.0.0.weight'], c['enc.0.0.weight'])

def test_training_leaves_the_global_stream_alone(data):
    with seeded(5): a = torch.rand(2)
    with seeded(5):
        train_autoencoder(data, steps=10, width=4)
        assert torch.equal(torch.rand(2), a)

@pytest.mark.parametrize('steps', [10, 25, 60])
def test_as_many_updates_as_asked_for(data, bars, steps):
    train_autoencoder(data, steps=steps, width=4, progress=True)
    bar, = bars
    assert bar.n == bar.total and bar.closed and steps-10 < bar.n <= steps

def test_only_training_images_are_learnt_from(data):
    other = phantom(24, 12, 12, size=12, seed=9)
    a,b = (train_autoencoder(d, steps=10, width=4).state_dict()
           for d in (data, replace(data, val=other.val, test=other.test)))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_labels_are_not_learnt_from(data):
    relabelled = replace(data, train=replace(data.train, y=1-data.train.y))
    a,b = (train_autoencoder(d, steps=10, width=4).state_dict() for d in (data, relabelled))
    assert all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('bs', [1, 7])
def test_batches_are_as_large_as_asked_for(data, bs):
    class Sizes(Callback):
        run_valid, seen = False, set()
        def before_batch(self): self.seen.add(len(self.x))
    train_autoencoder(data, steps=10, width=4, bs=bs, cbs=Sizes())
    assert Sizes.seen == {bs}

@pytest.mark.parametrize('kwargs,field', [(dict(steps=0), 'steps'), (dict(bs=0), 'bs'),
                                          (dict(steps=-3), 'steps'), (dict(bs=2.5), 'bs')],
                         ids=str)
def test_impossible_trainings_are_refused(data, kwargs, field):
    found, = kwargs.values()
    with refused(field, found=found): train_autoencoder(data, **kwargs)

def test_no_training_image_is_refused(data):
    with refused('training images', 'at least one'):
        train_autoencoder(replace(data, train=data.train.select(slice(0))), steps=1)

def test_images_that_do_not_fit_are_refused_before_training(data):
    odd = replace(data, **{s: replace(part, x=part.x[:,:,:10])
                           for s,part in dict(train=data.train, val=data.val, test=data.test).items()})
    with refused('images', '10×12', 'multiples of 4'): train_autoencoder(odd, steps=10, width=4)

def test_a_loss_that_is_no_longer_finite_stops_it(data, bars):
    class Diverged(Callback):
        def after_pred(self): self.learn.pred = self.learn.pred*float('nan')
    with refused('loss', 'learning rate', found=float('nan')):
        train_autoencoder(data, steps=40, width=4, progress=True, cbs=Diverged())
    assert [b.closed for b in bars] == [True]

def test_cancelling_closes_the_bar(data, bars):
    class Stop(Callback):
        def after_batch(self): raise CancelFitException()
    learn = autoencoder_learner(data, tiny(), 20, cbs=[TrainingBar(), Stop()])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert [b.closed for b in bars] == [True]


# Files

@pytest.mark.parametrize('kwargs', [dict(), dict(ch=3, latent_channels=2, width=8, noise=.2)], ids=str)
@pytest.mark.parametrize('name', ['ae', 'run_v1.2', 'a.b.c'])
def test_what_is_saved_comes_back(tmp_path, kwargs, name):
    ae = tiny(**kwargs).train()
    # moves BatchNorm's statistics
    ae.sigma.fill_(.7); ae(images(4, ae.config['ch']))
    save_model(tmp_path/name, ae, psnr=31.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f'{name}.json', f'{name}.safetensors']
    assert json.loads((tmp_path/f'{name}.json').read_text())['psnr'] == 31.5
    for file in (name, f'{name}.json', f'{name}.safetensors'):
        again = load_autoencoder(tmp_path/file, shape=(ae.config['ch'],28,28))
        assert not again.training and again.config == ae.config
        assert all(torch.equal(a, b)
                   for a,b in zip(ae.state_dict().values(), again.state_dict().values(), strict=True))

def spoil_json(change):
    def spoil(p):
        f = p.with_suffix('.json')
        f.write_text(change(json.loads(f.read_text())))
    return spoil

def truncate(p): p.write_bytes(p.read_bytes()[:-9])

SPOIL = {
    'no json': lambda p: p.with_suffix('.json').unlink(),
    'no weights': lambda p: p.with_suffix('.safetensors').unlink(),
    'truncated weights': lambda p: truncate(p.with_suffix('.safetensors')),
    'empty weights': lambda p: p.with_suffix('.safetensors').write_bytes(b''),
    'truncated json': lambda p: p.with_suffix('.json').write_text('{"kind": '),
    'a list': spoil_json(lambda f: '[1]'),
    'no config': spoil_json(lambda f: json.dumps({'kind': 'Autoencoder'})),
    'no kind': spoil_json(lambda f: json.dumps({'config': f['config']})),
    'another kind': spoil_json(lambda f: json.dumps(f | {'kind': 'Classifier'})),
    'an unknown option': spoil_json(lambda f: json.dumps(f | {'config': f['config'] | {'colour': 1}})),
    'another config': spoil_json(lambda f: json.dumps(f | {'config': f['config'] | {'latent_channels': 3}})),
}

@pytest.mark.parametrize('case', SPOIL)
def test_bad_files_get_one_sentence(tmp_path, case):
    save_model(tmp_path/'ae', tiny())
    SPOIL[case](tmp_path/'ae')
    json_file = ('no json', 'truncated json', 'a list')
    weights = ('no weights', 'truncated weights', 'empty weights')
    inner = {'no config': 'config', 'no kind': 'kind', 'another config': 'enc.4.weight'}
    file = 'ae.json' if case in json_file else 'ae.safetensors' if case in weights else 'ae'
    with refused(inner.get(case, tmp_path/file), 'ae'): load_autoencoder(tmp_path/'ae')

def test_another_number_of_channels_is_refused(tmp_path):
    save_model(tmp_path/'ae', tiny(ch=3))
    with refused(tmp_path/'ae', found=3): load_autoencoder(tmp_path/'ae', shape=(1,28,28))

def test_the_real_data_is_compressed_and_comes_back(medmnist_root):
    data = subset(load_medmnist('pneumoniamnist', medmnist_root), 100)
    q = quality(train_autoencoder(data, steps=120, width=16), data.test.x)
    assert q['psnr'] > 22 and q['ssim'] > .75 and q['latents_per_pixel'] == .25
