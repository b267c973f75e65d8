"""Networks as other people write them: what they return, what is random in them, how they were trained."""
import copy, math, os, pickle, stat

import pytest, timm, torch, torch.nn.functional as F
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorImage
from refused import refused
from states import same, state
from torch import nn
from torch.utils.checkpoint import checkpoint

from tsynd.core import seeded
from tsynd.data import image_dls, phantom, to_float
from tsynd.models import (
    as_network, Autoencoder, check_dropout, encode_all, load_classifier, make_classifier, mc_logits,
    MCDropout, Normalised, predict, read_model, rebuild, save_model, train_classifier)
from tsynd.robustness import (
    ATTACKS, attack_suite, cam, corruption_table, fgsm, masking_check, minimise_class, pgd, Predictor,
    robustness_table, spatial_layers, target_layer)
from tsynd.targeting import synthesize, TSynD

ONE = 'multi-class'


def images(n=6, ch=1, h=12, w=12, seed=0):
    return torch.rand(n, ch, h, w, generator=torch.Generator().manual_seed(seed))

def chain(*layers, n=144, width=16):
    with seeded(0): return nn.Sequential(nn.Flatten(), nn.Linear(n, width), *layers, nn.Linear(width, 2))

def proper(): return chain(nn.ReLU(), nn.Dropout(.5))

@pytest.fixture(scope='module')
def data(): return phantom(24, 12, 12, size=12)

@pytest.fixture(scope='module')
def ae():
    with seeded(0): return Autoencoder(width=4).eval()

ONE_PASS = {  # all that ask a network
    'predict': lambda m, x, y, ae: predict(m, x), 'mc_logits': lambda m, x, y, ae: mc_logits(m, x, 2),
    'Predictor': lambda m, x, y, ae: Predictor(m)(x), 'mean': lambda m, x, y, ae: Predictor(m, T=2)(x),
    'fgsm': lambda m, x, y, ae: fgsm(m, x, y, .1), 'pgd': lambda m, x, y, ae: pgd(m, x, y, .1, 1),
    'Square': lambda m, x, y, ae: ATTACKS['Square'](m, x, y, .1, steps=2),
    'table': lambda m, x, y, ae: robustness_table(m, x, y, ONE, eps=(), strengths=()),
    'synthesize': lambda m, x, y, ae: synthesize(ae, m, x, y, T=2, steps=1),
    'cam': lambda m, x, y, ae: cam(m, x), 'minimise_class': lambda m, x, y, ae: minimise_class(m, x, steps=2)}
everywhere = pytest.mark.parametrize('ask', ONE_PASS.values(), ids=ONE_PASS)


# Random in eval mode

class Always(nn.Dropout):
    def forward(self, x): return F.dropout(x, self.p, training=True)

class Maps(nn.Dropout2d):
    def forward(self, x): return F.dropout2d(x, self.p, True)

class Deaf(nn.Dropout):
    "Ignores `eval`, but not our own switch"
    def train(self, mode=True): return super().train(True)

class Noise(nn.Module):
    def forward(self, x): return x + .1*torch.randn_like(x)

class Function(nn.Module):
    def __init__(self, on=None): super().__init__(); self.on = on
    def forward(self, x): return F.dropout(x, .5, training=self.training if self.on is None else self.on)

class Harmless(nn.Module):
    "Draws random numbers and does not use them"
    def forward(self, x): torch.rand(3); return x

@pytest.mark.parametrize('layer', [Always(.5), Maps(.5)], ids=['Always','Maps'])
def test_a_dropout_layer_that_cannot_be_switched_off_is_refused_by_name(layer):
    model = chain(layer) if isinstance(layer, Always) else nn.Sequential(layer, proper())
    for f in (check_dropout, MCDropout, lambda m: mc_logits(m, images())):
        with refused('dropout', type(layer).__name__): f(model)
    with refused('classifier', type(layer).__name__): predict(model, images())

@everywhere
@pytest.mark.parametrize('layer', [Always(.5), Function(True), Noise()], ids=['subclass','function','noise'])
def test_randomness_beside_proper_dropout_is_found_and_named(ask, layer, ae):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(layer), proper())
    before = state(model)
    with pytest.raises(ValueError) as caught:
        ask(model, images(), torch.zeros(6).long(), ae)
    assert f'1.0 ({type(layer).__name__})' in str(caught.value)
    assert caught.value.field in ('classifier','dropout')
    assert same(state(model), before)

def test_what_is_not_random_in_eval_mode_is_left_alone():
    "and what is off has the expectation and the spread of nn.Dropout"
    x = images()
    assert torch.equal(predict(nn.Sequential(Harmless(), proper()), x), predict(proper(), x))
    deaf = chain(nn.ReLU(), Deaf(.5)); deaf.eval()
    assert torch.equal(predict(deaf, x), predict(proper(), x))
    assert torch.equal(mc_logits(deaf, x, 4), mc_logits(proper(), x, 4))

def test_dropout_called_as_a_function_is_told_with_who_calls_it():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(Function(), nn.Linear(144, 2)))
    with refused('dropout', 'layer 1.0 (Function)', found='no dropout layer'): check_dropout(model)
    with refused('dropout', 'the network (ResNet)'):
        check_dropout(timm.create_model('resnet10t', num_classes=2, drop_rate=.3))
    with pytest.raises(ValueError) as caught: check_dropout(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)))
    assert 'function' not in str(caught.value)


# What a network returns

class Gives(nn.Module):
    def __init__(self, what): super().__init__(); self.inner,self.what = proper(),what
    def forward(self, x): return self.what(self.inner(x))

class Output:
    def __init__(self, logits): self.loss,self.logits = None,logits

@pytest.mark.parametrize('what', [lambda l: dict(logits=l, hidden=l[:1]), Output], ids=['dict','object'])
def test_logits_are_taken_where_they_are_called_so(what):
    x,y,model = images(), torch.zeros(6).long(), proper()
    for f in (predict, lambda m, x: mc_logits(m, x, 3), lambda m, x: pgd(m, x, y, .1, 2),
              lambda m, x: Predictor(m)(x), lambda m, x: minimise_class(m, x, steps=2)[1]):
        assert torch.equal(f(Gives(what), x), f(model, x))

@everywhere
@pytest.mark.parametrize('what,said', [(lambda l: (l, l), 'a tuple of a tensor'), (lambda l: [l], 'a list'),
                                       (lambda l: dict(scores=l), 'scores'), (lambda l: None, 'NoneType')],
                         ids=['tuple','list','dict','None'])
def test_anything_else_is_refused(ask, what, said, ae):
    with refused('classifier', said): ask(Gives(what), images(), torch.zeros(6).long(), ae)

def fit(data, model, cb=None, loss=None, dls=None):
    loss = loss or CrossEntropyLossFlat()
    learn = Learner(dls or image_dls(data, bs=12), model, loss_func=loss, cbs=cb)
    with seeded(0), learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn

def hot(ae, **kwargs): return TSynD(ae, **dict(T=2, share=1., every=1, warmup=0, steps=1) | kwargs)

@pytest.mark.parametrize('model', [Gives(lambda l: (l, l)), nn.Sequential(Noise(), proper())],
                         ids=['tuple','noise'])
def test_tsynd_refuses_before_anything_is_trained(model, data, ae):
    before = {k: v.clone() for k,v in model.state_dict().items()}
    loss = lambda p, y: F.cross_entropy(p if isinstance(p, torch.Tensor) else p[0], y)
    with refused('classifier'): fit(data, model, hot(ae, warmup=.9), loss)
    assert same(dict(model.state_dict()), before)


# Checkpointing and lazy layers

class Checkpointed(nn.Module):
    def __init__(self, how):
        super().__init__()
        with seeded(0):
            self.a = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Dropout2d(.3), nn.Flatten())
            self.b = nn.Sequential(nn.Dropout(.5), nn.Linear(100, 2))
        self.how = how
    def forward(self, x):
        return self.b(self.a(x) if self.how is None else checkpoint(self.a, x, use_reentrant=self.how))

@pytest.mark.parametrize('how', [True, False])
def test_checkpointing_changes_no_number(how, data, ae):
    x,y = images(), torch.arange(6) % 2
    def gradient(model):
        z = x.clone().requires_grad_()
        with MCDropout(model, 4) as mc: return torch.autograd.grad(mc(z).pow(2).sum(), z)[0]
    one,two = Checkpointed(None), Checkpointed(how)
    assert torch.equal(gradient(one), gradient(two))
    assert torch.equal(pgd(one, x, y, .1, 2), pgd(two, x, y, .1, 2))
    assert torch.equal(synthesize(ae, one, x, y, T=2, steps=1).x, synthesize(ae, two, x, y, T=2, steps=1).x)
    fit(data, two, hot(ae))
    runs = []
    two.a.register_forward_pre_hook(lambda *_: runs.append(1))
    two.train()(x.requires_grad_()).sum().backward()
    assert len(runs) == 2, 'outside, it still saves memory'

@pytest.mark.parametrize('kwargs', [dict(), dict(gate=0.)], ids=['with a judge','without'])
def test_lazy_layers_get_their_weights(kwargs, data, ae):
    def lazy():
        return nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.LazyBatchNorm2d(), nn.Flatten(), nn.Dropout(.5),
                             nn.LazyLinear(2))
    for f in (lambda m: predict(m, images()), lambda m: mc_logits(m, images()), lambda m: cam(m, images())):
        with refused('classifier', "'0'"): f(lazy())
    learn = fit(data, lazy(), hot(ae, **kwargs))
    assert predict(learn.model, images()).shape == (6,2) and len(learn.tsynd.last_epoch)


# Pixels and sizes

@everywhere
@pytest.mark.parametrize('change', [lambda x: x*255, lambda x: x*4-2, lambda x: x*math.nan, lambda x: x[0]],
                         ids=['0 to 255','normalised','NaN','one image'])
def test_floats_that_are_no_images_are_refused(ask, change, ae):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), proper())
    with refused('images'): ask(model, change(images()), torch.zeros(6).long(), ae)

@everywhere
def test_rounding_is_forgiven(ask, ae):
    x = images(); x[:,:,0] = -3e-8; x[:,:,1] = 1+1e-6
    ask(nn.Sequential(nn.Conv2d(1, 1, 1), proper()), x, torch.zeros(6).long(), ae)

def test_bytes_are_images_and_whole_numbers_are_not(ae):
    b = (images()*255).byte()
    assert torch.equal(predict(proper(), b), predict(proper(), b/255))
    assert torch.equal(mc_logits(proper(), b, 2), mc_logits(proper(), b/255, 2))
    assert torch.equal(encode_all(ae, b), encode_all(ae, b/255))
    for wrong in (b.float(), b.long(), b > 9):
        for f in (to_float, lambda x: encode_all(ae, x), lambda x: predict(proper(), x)):
            with refused('images', '255'): f(wrong)

@everywhere
def test_a_classifier_of_ours_knows_its_images(ask, ae):
    with seeded(0): model = make_classifier(size=(12, 12))
    y = torch.zeros(6).long()
    ask(model, images(), y, ae)
    with refused('images'): ask(model, images(h=16, w=16), y, ae)
    with refused('images'): ask(model, images(ch=3), y, ae)

def test_the_size_is_that_of_the_training_and_is_saved(data, tmp_path):
    model = train_classifier(data, epochs=1).model
    save_model(tmp_path/'m', model)
    for m in (model, load_classifier(tmp_path/'m')):
        assert predict(m, data.test.x).shape == (12,2)
        with refused('images', '(1, 12, 12)', found=(1, 16, 16)): predict(m, images(h=16, w=16))
    # one that was not trained takes any
    assert predict(make_classifier(), images(h=16, w=20)).shape == (6,2)

def of_timm(name, **kwargs): return timm.create_model(name, num_classes=2, **kwargs).eval()

def vit(**kwargs):
    with seeded(0): return of_timm('vit_tiny_patch16_224', patch_size=4, **kwargs)

@pytest.mark.parametrize('make', [lambda: chain(nn.Dropout()),
                                  lambda: nn.Sequential(nn.BatchNorm2d(1), proper()),
                                  lambda: vit(img_size=12, depth=1, in_chans=1, drop_rate=.5)],
                         ids=['Linear','BatchNorm','ViT'])
def test_other_networks_refuse_in_one_sentence(make):
    for f in (predict, lambda m, x: mc_logits(m, x, 2)):
        f(make(), images())
        with refused('images', '(3, 16, 16)'): f(make(), images(ch=3, h=16, w=16))


# Normalised images

MEAN,STD = [.4,.5,.6],[.2,.25,.3]

def normalised_dls(split, ch):
    items = [(TensorImage(to_float(x[None].repeat(1, ch, 1, 1))[0]), int(y)) for x,y in zip(split.x, split.y)]
    norm = [Normalize.from_stats(MEAN[:ch], STD[:ch], cuda=False)]
    return DataLoaders(*[TfmdDL(items, bs=12, shuffle=s, after_batch=norm) for s in (True, False)])

class ByHand(nn.Module):
    def __init__(self, model, ch):
        super().__init__()
        self.model,self.m,self.s = model,*(torch.tensor(v[:ch]).view(-1, 1, 1) for v in (MEAN, STD))
    def forward(self, x): return self.model((x-self.m)/self.s)

def test_a_learner_and_its_network_are_measured_behind_their_normalisation(data, ch=3):
    with seeded(1):
        net = nn.Sequential(nn.Conv2d(ch, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(.5), nn.Linear(400, 2))
        coder = Autoencoder(ch=ch, width=4).eval()
    learn = fit(data, net, hot(coder, gate=0.), dls=normalised_dls(data.train, ch))
    x,y,hand = images(ch=ch), torch.arange(6) % 2, ByHand(net, ch)
    # the network alone, as it comes back from a file
    again = pickle.loads(pickle.dumps(net))
    plain = Learner(learn.dls, copy.deepcopy(net), loss_func=CrossEntropyLossFlat())
    # as if trained without the callback
    vars(plain.model).pop('_normalisation')
    one = {k: 1 for k in ATTACKS}
    ask = ONE_PASS | {
        'AUC': lambda m, x, y, _: attack_suite(m, x, y, ONE, names=('PGD',), steps=dict(PGD=1))[-1]['auc'],
        'masked': lambda m, x, y, _: masking_check(m, x, y, ONE, steps=one)['findings'],
        'corrupted': lambda m, x, y, _: corruption_table(m, x, y, ONE, names=('pixelate',), severities=(1,))}
    for name,f in ask.items():
        want = f(hand, x, y, coder)
        for m in (learn, again, plain):
            found = f(m, x, y, coder)
            if name == 'synthesize': want,found = (o.x if hasattr(o, 'x') else o for o in (want, found))
            if isinstance(found, torch.Tensor): torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
            elif isinstance(found, tuple): torch.testing.assert_close(found[1], want[1], atol=1e-4, rtol=1e-4)
            else: assert found == want, name

def test_what_fastai_validates_is_what_is_measured(data, ae):
    learn = fit(data, proper(), hot(ae, gate=0.), dls=normalised_dls(data.train, 1))
    with learn.no_bar(): theirs = learn.get_preds(ds_idx=1, act=nn.Identity(), inner=True)[0]
    torch.testing.assert_close(predict(learn.model, data.train.x), theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(predict(learn, data.train.x), theirs, atol=1e-4, rtol=1e-4)

def test_the_last_training_counts(data, ae):
    model = proper()
    fit(data, model, hot(ae, gate=0.), dls=normalised_dls(data.train, 1))
    assert isinstance(as_network(model), Normalised)
    fit(data, model, hot(ae, gate=0.))
    assert as_network(model) is model


# Saved weights

class Tied(nn.Module):
    "One weight under two names, and a view of another"
    def __init__(self):
        super().__init__(); self.config = {}
        self.a,self.b,self.out = nn.Linear(144, 144),nn.Linear(144, 144),nn.Linear(144, 2)
        self.b.weight = self.a.weight
        self.register_buffer('part', self.a.bias.data[:3])
    def forward(self, x): return self.out(self.b(self.a(x.flatten(1)).relu()))

def test_weights_that_are_shared_come_back(tmp_path):
    with seeded(0): model = Tied()
    save_model(tmp_path/'m', model)
    again = rebuild(tmp_path/'m', Tied, *read_model(tmp_path/'m', 'Tied'))
    assert same(dict(again.state_dict()), dict(model.state_dict())) and again.b.weight is again.a.weight
    assert torch.equal(predict(again, images()), predict(model, images()))

@pytest.mark.skipif(os.name != 'posix', reason='permissions of POSIX')
@pytest.mark.parametrize('umask', [0o022, 0o027, 0o077])
def test_files_have_the_permissions_of_all_others(tmp_path, umask):
    old = os.umask(umask)
    try: save_model(tmp_path/'m', make_classifier()); (tmp_path/'other').touch()
    finally: os.umask(old)
    assert {stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()} == {0o666 & ~umask}


# Which axes are places

class Last(nn.Module):
    "Scores are a sum over positions; the layer's channels come last, or first, or positions in a row"
    def __init__(self, layout, C=12, prefix=0):
        super().__init__(); self.layout,self.prefix,self.map = layout,prefix,nn.Identity()
        with seeded(0): self.lift,self.out = nn.Conv2d(1, C, 1, bias=False),nn.Linear(C, 3)
    def forward(self, x):
        a = self.lift(x).relu()
        if self.layout == 'first': return self.out(self.map(a).mean((2,3)))
        if self.layout == 'last': return self.out(self.map(a.permute(0,2,3,1)).mean((1,2)))
        if self.layout == 'turned': return self.out(self.map(a.mT).mean((2,3)))
        tokens = torch.cat([a.new_zeros(len(a), self.prefix, a.shape[1]), a.flatten(2).mT], 1)
        return self.out(self.map(tokens)[:,self.prefix:].mean(1))

@pytest.mark.parametrize('layout,prefix', [('first',0), ('last',0), ('tokens',0), ('tokens',1), ('tokens',5)])
# with 12 channels all three axes of the first are as long
@pytest.mark.parametrize('h,w', [(12,12), (12,20), (24,12)])
def test_a_map_is_hot_exactly_where_the_evidence_is_in_every_layout(layout, prefix, h, w):
    model,x = Last(layout, prefix=prefix), torch.zeros(1, 1, h, w)
    x[...,2:5,6:10] = 1
    assert spatial_layers(model, x)['map'] == (12, h, w)
    gain = (predict(model, x)-predict(model, 0*x)).argmax().item()
    assert torch.equal(cam(model, x, gain, layer='map') > .5, x[:,0] > .5)

def test_axes_that_are_no_places_are_no_map():
    cut = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4,6,6)), nn.Conv2d(4, 4, 1), nn.Flatten(),
                        nn.Linear(144, 3))
    assert list(spatial_layers(cut, images())) == []
    assert list(spatial_layers(Last('turned'), images())) == ['lift']
    with refused('layer', 'lift'): cam(Last('turned'), images(), 0, layer='map')
    with refused('model'): cam(proper(), images(), 0)

@pytest.mark.parametrize('make,size,layer,shape', [
    (lambda: vit(img_size=32, depth=2), (32,32), 'blocks.1.norm1', (192,8,8)),
    (lambda: vit(img_size=(32,48), depth=2, class_token=False, global_pool='avg'), (32,48), None, (192,8,12)),
    (lambda: of_timm('swin_tiny_patch4_window7_224', img_size=32, window_size=4, depths=(2,2),
                     num_heads=(3,6)), (32,32), 'layers.0', (96,8,8)),
    (lambda: of_timm('mambaout_femto', depths=(1,1,1,1)), (64,96), 'stages.1', (96,8,12))],
    ids=['class token','patches only','windows','gated'])
def test_transformers_and_channels_last(make, size, layer, shape):
    with seeded(0): model = make()
    x = images(2, 3, *size)
    found = target_layer(model, x)
    assert layer in (None, found) and spatial_layers(model, x)[found] == shape
    maps = cam(model, x, 1)
    assert maps.shape == (2, *size) and torch.isfinite(maps).all() and maps.max() > 0
