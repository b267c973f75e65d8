"""Autoencoders and weights of other people in the place of ours."""
import math, pickle, sys
from dataclasses import replace
from types import SimpleNamespace

import pytest, timm, torch, torch.nn.functional as F
from refused import refused
from safetensors.torch import save_file
from torch import nn

from tsynd.cli import main
from tsynd.core import InputError, seeded
from tsynd.data import phantom, to_float
from tsynd.deployment import load_bundle, make_bundle, save_bundle
from tsynd.experiments import RunConfig, train
from tsynd.models import (
    adapt_autoencoder, AdaptedAutoencoder, Autoencoder, autoencoder_builder, autoencoder_learner,
    AUTOENCODERS, Classifier, encode_all, load_autoencoder, load_classifier, make_classifier, predict,
    save_model, small_resnet, train_autoencoder, train_classifier)
from tsynd.targeting import synthesize

MODEL = 'timm:resnet10t'


class Exact(nn.Module):
    "Without loss: four pixels become four channels, each of its own scale and offset"
    def __init__(self, ch=1, spread=1.):
        super().__init__()
        with seeded(0): q = torch.linalg.qr(torch.randn(4*ch, 4*ch))[0]
        self.register_buffer('q', q*spread**torch.linspace(-1, 1, 4*ch)[:,None])
        self.register_buffer('back', torch.linalg.inv(self.q))
        self.bias = nn.Parameter(torch.zeros(()))
    def latents(self, x): return torch.einsum('zc,bchw->bzhw', self.q, F.pixel_unshuffle(x, 2)) + 3
    def images(self, z): return F.pixel_shuffle(torch.einsum('cz,bzhw->bchw', self.back, z-3), 2) + self.bias
    def encode(self, x): self.seen = x; return self.latents(x)
    def decode(self, z): return self.images(z)

class Dist(SimpleNamespace):
    def mode(self): return self.mean
    def sample(self): return self.mean + torch.randn_like(self.mean)

class LikeDiffusers(Exact):
    @property
    def config(self): return dict(in_channels=3, spread=2., _name_or_path='/somewhere', _class_name='KL')
    def __init__(self, in_channels=3, spread=2.): super().__init__(in_channels, spread)
    def encode(self, x): return SimpleNamespace(latent_dist=Dist(mean=super().encode(x)))
    def decode(self, z): return SimpleNamespace(sample=self.images(z))

class LikeMonai(Exact):
    def encode(self, x): z = super().encode(x); return z, torch.ones_like(z)

class Flat(Exact):
    def encode(self, x): return super().encode(x).flatten(1)
    def decode(self, z): return self.images(z.view(-1, 4, 6, 6))

class Normal(Exact):
    def encode(self, x): return torch.distributions.Normal(super().encode(x), 1.)

KINDS = {'like-diffusers': (LikeDiffusers, -1.), 'like-monai': (LikeMonai, 0.), 'flat': (Flat, 0.),
         'normal': (Normal, -1.), 'exact': (Exact, 0.)}

@pytest.fixture(autouse=True)
def builders(monkeypatch):
    for name, (kind, lo) in KINDS.items():
        monkeypatch.setitem(AUTOENCODERS, name, None)
        autoencoder_builder(name, lo=lo)(kind)

@pytest.fixture(scope='module')
def data(): return phantom(24, 12, 12, size=12)

def adapted(name, data, **kwargs): return adapt_autoencoder(KINDS[name][0](), data, name, **kwargs)


# The interface

@pytest.mark.parametrize('name', KINDS)
def test_a_network_without_loss_gives_the_image_back_from_latents_of_unit_scale(name, data):
    ae,x = adapted(name, data), to_float(data.train.x)
    z = encode_all(ae, data.train.x)
    torch.testing.assert_close(ae.decode(z), x, atol=1e-4, rtol=0)
    torch.testing.assert_close(z.mean((0,2,3)), torch.zeros(z.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std((0,2,3), correction=0), torch.ones(z.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(ae.sigma, (z-z.mean(0)).pow(2).mean().sqrt())
    assert ae.latent_shape(data.shape) == z.shape[1:] and ae.compression(data.shape) == z[0].numel()/144
    seen,lo = ae.network.seen, KINDS[name][1]
    assert seen.shape[1] == (3 if name == 'like-diffusers' else 1)
    torch.testing.assert_close(seen[:,:1].amin(), x.min()*(1-lo)+lo)

def test_the_scale_of_the_network_changes_no_targeted_image(data):
    "so the radius means the same, whatever the latents are"
    x,y = to_float(data.train.x[:4]), data.train.y[:4]
    with seeded(0): model = small_resnet().eval()
    coders = [adapt_autoencoder(Exact(spread=s), data, 'exact', dict(spread=s)) for s in (1., 10.)]
    found = [synthesize(ae, model, x, y, T=4, steps=2) for ae in coders]
    torch.testing.assert_close(found[0].x, found[1].x, atol=2e-3, rtol=0)
    moved = found[1].distance_latent
    assert (found[0].x-x).abs().max() > .02 and .1 < moved.min() and moved.max() <= .3001

def test_a_channel_that_says_nothing_is_not_blown_up(data):
    class Dead(Exact):
        def encode(self, x): z = super().encode(x); return torch.cat([z, 1e-12*z[:,:1]], 1)
        def decode(self, z): return super().decode(z[:,:4])
    autoencoder_builder('exact')(Dead)
    ae = adapt_autoencoder(Dead(), data, 'exact')
    assert encode_all(ae, data.train.x)[:,4].abs().max() < 1e-4 and ae.std.min() == ae.std.max()/1000

def test_its_training_lets_gradients_through_where_pixels_are_beyond_the_range(data):
    ae = adapted('exact', data)
    with torch.no_grad(): ae.network.bias.fill_(-3.)
    x = to_float(data.train.x[:4])
    assert ae(x).max() == 0                               # as images are
    out = ae.train()(x)
    assert out.max() < 0
    out.mean().backward()
    torch.testing.assert_close(ae.network.bias.grad, torch.tensor(1.))
    with seeded(0): noise = (ae(x)-ae(x)).std()
    assert noise > 0

def test_it_trains_like_ours_and_is_measured_again(data):
    ae = adapted('exact', data)
    with torch.no_grad(): ae.network.bias.fill_(.2)
    ae.std.fill_(7)
    learn = autoencoder_learner(data, ae, steps=1)
    with learn.no_bar(): before = learn.validate()[0]
    again = train_autoencoder(data, steps=60, lr=.02, bs=8, ae=ae)
    with learn.no_bar(): after = learn.validate()[0]
    assert again is ae and not ae.training and .01 < before and after < before/4
    z = encode_all(ae, data.train.x)
    torch.testing.assert_close(z.std((0,2,3), correction=0), torch.ones(4), atol=1e-3, rtol=0)


# What is refused

class Sampled(Exact):
    def encode(self, x): z = super().encode(x); return z + torch.randn_like(z)
class Tokens(Exact):
    def encode(self, x): return super().encode(x).flatten(2)
class Smaller(Exact):
    def decode(self, z): return super().decode(z)[...,1:]
class Words(Exact):
    def encode(self, x): return 'latents'
class Constant(Exact):
    def encode(self, x): return 0*super().encode(x)
class Diverged(Exact):
    def encode(self, x): return math.nan*super().encode(x)

@pytest.mark.parametrize('kind,said', [
    (Sampled, 'random'), (Tokens, '(1, 4, 36)'), (Smaller, '(1, 12, 11)'), (Words, 'type str'),
    (Constant, 'is 0'), (Diverged, 'is nan'), (nn.Identity, "no attribute 'encode'")],
    ids=lambda k: getattr(k, '__name__', ''))
def test_a_network_that_is_no_autoencoder_is_refused(kind, said, data):
    autoencoder_builder('exact')(kind)
    with refused('autoencoder', said): adapt_autoencoder(kind(), data, 'exact')

def test_what_does_not_fit_each_other_is_refused(data):
    with refused('builder', 'like-monai'): adapt_autoencoder(Exact(), data, 'no such')
    with refused('config', "'q'", '(12, 12)'): adapt_autoencoder(Exact(), data, 'exact', dict(ch=3))
    with refused('config', 'colour'): adapt_autoencoder(Exact(), data, 'exact', dict(colour=3))
    for bad in (dict(ch=torch.ones(1)), dict(spread=math.nan), 3):
        with refused('config', 'JSON'): adapt_autoencoder(Exact(), data, 'exact', bad)
    with refused('hi'): adapted('exact', data, lo=1., hi=0.)
    rgb = replace(data, **{k: replace(getattr(data, k), x=getattr(data, k).x.repeat(1, 3, 1, 1))
                           for k in ('train','val','test')})
    with refused('images', '3 channels'): adapted('exact', rgb, channels=1)
    with refused('autoencoder', 'encode'): adapted('exact', data, channels=2)
    with refused('images', '(B, 1, H, W)'): adapted('exact', data).encode(torch.rand(2, 3, 12, 12))


# Saved and loaded

@pytest.mark.parametrize('name', ['like-diffusers', 'flat'])
def test_a_bundle_comes_back_with_it(name, data, tmp_path):
    with seeded(0): ae,clf = adapted(name, data), make_classifier()
    made = make_bundle(clf.eval().to(memory_format=torch.channels_last), ae, data)
    again = load_bundle(save_bundle(made, tmp_path/'b'))
    assert isinstance(again.autoencoder, AdaptedAutoencoder) and again.autoencoder.config == ae.config
    text = (tmp_path/'b'/'autoencoder.json').read_text()
    assert '_name_or_path' not in text and '/somewhere' not in text
    one,two = made.measure(data.test.x), again.measure(data.test.x)
    assert all(torch.equal(one[k], two[k]) for k in one)
    del AUTOENCODERS[name]
    with refused('builder', name, 'autoencoder_builder'): load_bundle(tmp_path/'b')

def test_both_kinds_are_loaded_for_the_images_they_take(data, tmp_path):
    save_model(tmp_path/'ours', Autoencoder(width=4)); save_model(tmp_path/'flat', adapted('flat', data))
    save_model(tmp_path/'maps', adapted('exact', data)); save_model(tmp_path/'other', make_classifier())
    assert type(load_autoencoder(tmp_path/'ours', data.shape)) is Autoencoder
    assert load_autoencoder(tmp_path/'maps', (1,16,20)).latent_shape((1,16,20)) == (4,8,10)
    with refused('autoencoder', '(2, 256)'): load_autoencoder(tmp_path/'flat', (1,16,16))
    with refused('autoencoder', '(2, 1, 13, 13)'): load_autoencoder(tmp_path/'maps', (1,13,13))
    for k in ('ours','maps'):
        with refused(tmp_path/k, '1-channel'): load_autoencoder(tmp_path/k, (3,12,12))
    with refused(tmp_path/'other', 'AdaptedAutoencoder'): load_autoencoder(tmp_path/'other')

def test_a_changed_configuration_is_refused(data, tmp_path):
    path = tmp_path/'ae.json'
    save_model(tmp_path/'ae', adapted('exact', data))
    text = path.read_text()
    for old,new in (('"lo": 0.0', '"lo": 2.0'), ('"builder": "exact"', '"builder": 3'),
                    ('"channels": 1', '"channels": 100000000'), ('12,\n', '"a",\n'),
                    ('"noise"', '"made": 3, "noise"'), ('"latents": [\n   4', '"latents": [\n   5'),
                    ('"network": {}', '"network": {"ch": 2}')):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError) as caught: load_autoencoder(tmp_path/'ae', data.shape)
        assert isinstance(caught.value, InputError) and '\n' not in str(caught.value), (old, caught.value)

def test_diffusers_and_monai_are_asked_when_such_a_file_is_read(data, tmp_path, monkeypatch, capsys):
    given = []
    def made(**kw): given.append(kw); return LikeDiffusers(kw['in_channels'])
    library = SimpleNamespace(AutoencoderKL=SimpleNamespace(from_config=lambda kw: made(**kw)))
    monkeypatch.setitem(sys.modules, 'diffusers', library)
    for name in ('monai', 'monai.networks', 'monai.networks.nets'):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(AutoencoderKL=LikeMonai))
    save_model(tmp_path/'diffusers', adapt_autoencoder(LikeDiffusers(), data, 'diffusers'))
    save_model(tmp_path/'monai', adapt_autoencoder(LikeMonai(), data, 'monai', dict(ch=1)))
    x = to_float(data.train.x)
    for name in ('diffusers','monai'):
        ae = load_autoencoder(tmp_path/name, data.shape)
        torch.testing.assert_close(ae.decode(ae.encode(x)), x, atol=1e-4, rtol=0)
    assert given and all(kw == dict(in_channels=3, spread=2.) for kw in given)
    for name in ('diffusers','monai','monai.networks','monai.networks.nets'):
        monkeypatch.setitem(sys.modules, name, None)       # as if it were not installed
    for name in ('diffusers','monai'):
        with refused('builder', f'pip install {name}'): load_autoencoder(tmp_path/name)
    asked = ['train', 'phantom', '--size', '12', '--quick', '--autoencoder', str(tmp_path/'monai')]
    assert main([*asked, '--out', str(tmp_path/'out')]) == 2 and not (tmp_path/'out').exists()
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and 'pip install monai' in error[0]


# Pretrained weights

@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    "A network of timm for colour images, and its weights in three files"
    folder = tmp_path_factory.mktemp('weights')
    with seeded(5): net = timm.create_model('resnet10t', num_classes=7).eval()
    with seeded(6):
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(); m.running_var.uniform_(.5, 2)
    weights = {f'module.{k}': v for k,v in net.state_dict().items()}
    save_file(net.state_dict(), folder/'a.safetensors')
    torch.save(net.state_dict(), folder/'b.pth')
    torch.save(dict(state_dict=weights, epoch=3), folder/'c.pth')
    return SimpleNamespace(net=net, folder=folder)

@pytest.mark.parametrize('file', ['a.safetensors', 'b.pth', 'c.pth'])
def test_weights_of_a_file_see_pixels_as_they_expect_them(file, theirs):
    net = make_classifier(MODEL, ch=3, n_classes=2, pretrained=theirs.folder/file).eval()
    x = torch.rand(2, 3, 32, 32)
    mean,std = (torch.tensor(theirs.net.pretrained_cfg[k]).view(-1, 1, 1) for k in ('mean','std'))
    features = theirs.net.forward_head(theirs.net.forward_features((x-mean)/std), pre_logits=True)
    torch.testing.assert_close(net(x), net.out(features))
    assert set(net.state_dict()) == set(make_classifier(MODEL, ch=3).state_dict())

def test_a_saved_classifier_needs_no_weights_file(theirs, tmp_path):
    "and one without pretrained weights is what it was"
    x = torch.rand(3, 1, 32, 32)
    net = make_classifier(MODEL, pretrained=theirs.folder/'a.safetensors').eval()
    first = theirs.net.state_dict()['conv1.0.weight']
    torch.testing.assert_close(net.trunk.state_dict()['conv1.0.weight'], first.sum(1, keepdim=True))
    assert net.config['mean'] == pytest.approx([.449]) and net.config['std'] == pytest.approx([.226])
    save_model(tmp_path/'m', net)
    again = load_classifier(tmp_path/'m')
    torch.testing.assert_close(predict(again, x), predict(net, x))
    assert again.config == net.config
    plain = make_classifier()
    assert plain.config.keys() == {'model','ch','n_classes','p'} and plain.mean == plain.std == .5

def test_equal_seeds_give_equal_heads_whatever_the_weights_are(theirs):
    heads = []
    for file in ('a.safetensors','c.pth'):
        with seeded(3): heads.append(make_classifier(MODEL, pretrained=theirs.folder/file).out.weight)
    assert torch.equal(*heads)

class Trap:
    def __reduce__(self): return exec, ("raise SystemExit('the file was run')",)

def test_wrong_weights_are_refused(theirs, tmp_path, data):
    some = {k: v for k,v in theirs.net.state_dict().items() if not k.startswith('layer4')}
    torch.save(some, tmp_path/'some.pth')
    torch.save(dict(model=Trap()), tmp_path/'trap.pth')
    (tmp_path/'trap.pkl').write_bytes(pickle.dumps(Trap()))
    (tmp_path/'text.safetensors').write_text('no weights')
    torch.save([1, 2], tmp_path/'list.pth'); torch.save({}, tmp_path/'empty.pth')
    with seeded(0): torch.save(timm.create_model('resnet18').state_dict(), tmp_path/'other.pth')
    for file in ('trap.pth','trap.pkl','text.safetensors','list.pth','empty.pth','none.pth'):
        with refused('pretrained', file): make_classifier(MODEL, pretrained=tmp_path/file)
    with refused('pretrained', 'other.pth', 'fit'): make_classifier(MODEL, pretrained=tmp_path/'other.pth')
    with refused('pretrained', 'layer4'): make_classifier(MODEL, pretrained=tmp_path/'some.pth')
    for model in ('small_resnet','resnet18'):
        with refused('pretrained', model): make_classifier(model, pretrained='timm')
    with refused('pretrained'): train_classifier(data, small_resnet(), pretrained='timm')

@pytest.mark.parametrize('field,given', [
    ('mean', dict(mean=[.5]*3, std=[.5])), ('mean', dict(mean=.5, std=.5)), ('mean', dict(std=[.5])),
    ('std', dict(mean=[.5])), ('std', dict(mean=[.5], std=[0.])), ('std', dict(mean=[.5], std=[math.nan]))])
def test_wrong_statistics_are_refused(field, given):
    with refused(field): make_classifier(**given)

def test_weights_of_timm_without_a_network_are_refused(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    with refused('pretrained', MODEL, 'network'): make_classifier(MODEL, pretrained='timm')
    assert capfd.readouterr().err == ''

def test_a_training_begins_with_them_and_with_an_adapted_autoencoder(theirs, data, tmp_path, capsys):
    save_model(tmp_path/'ae', adapted('like-monai', data))
    file = tmp_path/'w.pth'
    torch.save(theirs.net.state_dict(), file)
    c = RunConfig(size=12, quick=True, subset=16, model=MODEL, lr=1e-6, pretrained=str(file),
                  autoencoder=str(tmp_path/'ae'))
    made = train(c, tmp_path/'out', progress=False)
    file.unlink()
    again = load_bundle(tmp_path/'out'/'bundle')
    assert torch.equal(predict(again.classifier, data.test.x), predict(made.classifier, data.test.x))
    began,ended = (m.state_dict()['layer1.0.conv1.weight'] for m in (theirs.net, again.classifier.trunk))
    torch.testing.assert_close(ended, began, atol=1e-4, rtol=0)
    assert isinstance(again.autoencoder, AdaptedAutoencoder) and isinstance(again.classifier, Classifier)
    asked = ['train', '--size', '12', '--quick', '--model', MODEL, '--pretrained', str(file)]
    assert main([*asked, '--out', str(tmp_path/'two')]) == 2 and not (tmp_path/'two').exists()
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and 'pretrained' in error[0] and 'w.pth' in error[0]
