"""Maps, their sign, and what they are worth: known evidence, known regions,
every task and size, and a model that is left as it was."""
import math
from contextlib import nullcontext

import numpy as np, pytest, timm, torch, torchvision
import torch.nn.functional as F
from refused import refused
from states import same, state
from torch import nn

from tsynd.robustness import SignedEigenGradCAM, without
from tsynd.models import Autoencoder
from tsynd.models import make_classifier, predict, train_classifier
from tsynd.core import as_task, seeded
from tsynd.data import clear_phantom, FACTORS, load_data, subset
from tsynd.robustness import (
    cam, faithfulness, heat_inside, METHODS, minimise_class, phantom_region, show_cams, spatial_layers,
    target_layer)

ONE, MULTI = 'multi-class', 'multi-label, binary-class'


def images(n=4, ch=1, size=28, seed=0):
    return torch.rand(n, ch, size, size, generator=torch.Generator().manual_seed(seed))

def net(ch=1, C=3, name='small_resnet', seed=0):
    with seeded(seed): return make_classifier(name, ch, C).eval()

def dots(seed=0, ch=1, C=3, kernel=1):
    "A network whose score is a sum over positions, and to which a black position adds nothing"
    with seeded(seed):
        return nn.Sequential(nn.Conv2d(ch, 8, kernel, padding=kernel//2, bias=False), nn.ReLU(),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, C))

def spot(seed=0, ch=1, size=28, side=5):
    "A black image with one bright square, and where it is"
    g = torch.Generator().manual_seed(seed)
    i,j = (int(torch.randint(1, size-side-1, (1,), generator=g)) for _ in range(2))
    x = torch.zeros(1, ch, size, size)
    x[...,i:i+side,j:j+side] = .2 + .8*torch.rand(1, ch, 1, 1, generator=g)
    return x, x[:,0] > 0

def rise(model, x, task='multi-class'):
    "How much each class gains over a black image, in log-odds"
    C = predict(model, x).shape[1]
    score = lambda x: torch.stack([as_task(task).class_score(predict(model, x), torch.tensor([c]))[0]
                                   for c in range(C)])
    return score(x)-score(0*x)


# The sign

@pytest.mark.parametrize('ch,size,C,task', [(1,28,2,ONE), (3,28,5,ONE), (1,64,3,MULTI), (3,64,2,MULTI),
                                            (1,28,1,MULTI)])
def test_map_is_hot_exactly_where_the_evidence_is(ch, size, C, task):
    for seed in range(25):
        model,(x,where) = dots(seed, ch, C), spot(seed, ch, size)
        gain = rise(model, x, task)
        for c in range(C):
            if abs(gain[c]) < 1e-4: continue
            hot = cam(model, x, c, task=task) > .5
            assert torch.equal(hot, where if gain[c] > 0 else ~where), (seed, c)

def test_raw_map_is_inverted_for_some_weights():
    wrong = 0
    for seed in range(40):
        model,(x,where) = dots(seed, C=2), spot(seed)
        wrong += int(not torch.equal(cam(model, x, int(rise(model, x).argmax()), 'raw') > .5, where))
    assert 2 <= wrong < 40

@pytest.mark.parametrize('flip', [1,-1])
def test_sign_does_not_depend_on_that_of_the_library(flip, monkeypatch):
    model,x,svd = net(), images(), np.linalg.svd
    expected,raw = cam(model, x, 1), cam(model, x, 1, 'raw')
    monkeypatch.setattr(np.linalg, 'svd', lambda *a, **k: (lambda u,s,v: (flip*u, s, flip*v))(*svd(*a, **k)))
    for one in (1, np.int64(1), torch.tensor(1)): assert torch.equal(cam(model, x, one), expected)
    assert torch.equal(cam(model, x, 1, 'raw'), raw) == (flip == 1)

def test_sign_is_that_of_the_sum_of_the_direction():
    "The covariance with the evidence is the squared singular value times the sum of the singular vector"
    g = np.random.default_rng(0)
    for _ in range(30):
        acts,grads = (g.normal(size=(1,6,5,4)).astype('float32') for _ in range(2))
        m = (grads*acts)[0].reshape(6, -1).T
        m = m-m.mean(0)
        v = np.linalg.svd(m)[2][0]
        ours = SignedEigenGradCAM(net(), []).get_cam_image(None, None, None, acts, grads)[0]
        assert np.allclose(ours.ravel(), m @ v*np.sign(v.sum()), atol=1e-4)

def test_order_of_channels_does_not_matter():
    model,x = dots(3, kernel=3), images()
    other,order = dots(4, kernel=3), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    other.load_state_dict({'0.weight': model[0].weight[order], '4.weight': model[4].weight[:,order],
                           '4.bias': model[4].bias})
    for c in range(3): assert torch.allclose(cam(model, x, c), cam(other, x, c), atol=1e-3)

def test_maps_are_those_of_the_library():
    "The raw map without sign, and GradCAM written out by hand"
    model,x = dots(1, C=2, kernel=3), images()
    acts = model[:2](x).detach()
    w = (model[4].weight[1]-model[4].weight[0]).detach()/(28*28)
    for m,a in zip(cam(model, x, 1, 'gradcam'), acts):
        by_hand = (w[:,None,None]*a).sum(0).clamp(min=0)
        by_hand = by_hand-by_hand.min()
        assert torch.allclose(m, by_hand/by_hand.max(), atol=1e-3)
    raw,ours = cam(model, x, 1, 'raw'), cam(model, x, 1)
    for r,o in zip(raw, ours): assert torch.allclose(r, o, atol=1e-3) or (r*o).max() < 1e-3

def test_what_is_added_to_all_logits_changes_nothing():
    class Lifted(nn.Module):
        def __init__(self, inner): super().__init__(); self.inner = inner
        def forward(self, x): return self.inner(x) + 30*x[...,:9,:9].mean((1,2,3))[:,None]
    class Shared(nn.Module):
        "Adds the mean of the layer's own activations to all logits"
        def __init__(self, inner): super().__init__(); self.inner = inner
        def forward(self, x):
            a = self.inner[:2](x)
            return self.inner[2:](a) + a[:,0].mean((1,2))[:,None]*5
    model,x = dots(2, kernel=3), images()
    for wrap in (Lifted, Shared):
        for method in METHODS:
            assert torch.allclose(cam(wrap(model), x, 1, method, model[1]), cam(model, x, 1, method),
                                  atol=2e-3)


# Layers

@pytest.mark.parametrize('name,ch,size,layer,side', [
    ('small_resnet',1,28,'trunk.5',7), ('small_resnet',3,64,'trunk.5',16), ('resnet18',1,28,'trunk.layer3',7),
    ('resnet18',3,64,'trunk.layer4',8), ('timm:resnet10t',1,28,'trunk.layer1',7)])
def test_default_layer(name, ch, size, layer, side):
    model,x = net(ch, 2, name), images(2, ch, size)
    assert target_layer(model, x) == layer and spatial_layers(model, x)[layer][1:] == (side, side)

def of_timm(name): return lambda num_classes: timm.create_model(name, num_classes=num_classes)

@pytest.mark.parametrize('make,layer', [
    (torchvision.models.resnet50, 'layer2'), (torchvision.models.mobilenet_v3_small, 'features.3'),
    (torchvision.models.squeezenet1_1, None),
    (torchvision.models.densenet121, 'features.transition2.conv'), (torchvision.models.vgg11, 'features.14'),
    (of_timm('regnetx_002'), 's2'), (of_timm('convnext_atto'), None), (of_timm('efficientnet_b0'), None)])
def test_convolutional_networks_of_others(make, layer):
    with seeded(0): model = make(num_classes=3)
    x,before = images(2, 3, 64), state(model)
    found = target_layer(model, x)
    assert min(spatial_layers(model, x)[found][1:]) >= 7 and layer in (None, found)
    for method in METHODS:
        m = cam(model, x, 2, method)
        assert m.shape == (2, 64, 64) and torch.isfinite(m).all() and m.min() >= 0 and m.max() <= 1
    assert same(state(model), before)

def test_layer_by_name_and_by_module():
    model,x = net(), images()
    a,b = cam(model, x, 1, layer='trunk.4'), cam(model, x, 1, layer=model.trunk[4])
    assert torch.equal(a, b) and not torch.equal(a, cam(model, x, 1))

def test_small_maps_are_taken_if_there_are_no_larger_ones():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 9), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(4, 2))
    assert target_layer(model, images()) == '2' and cam(model, images(), 0).shape == (4,28,28)

class Twice(nn.Module):
    "One layer visited twice, one whose output is not used, one whose output is overwritten"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.idle = (nn.Conv2d(i, 4, 1) for i in (1, 4, 4))
        self.out = nn.Linear(4, 2)
    def forward(self, x):
        a = self.b(F.relu_(self.a(x)))
        self.idle(a)
        return self.out(self.b(a).mean((2,3)))

def test_layers_that_cannot_be_used_are_passed_over():
    with seeded(0): model = Twice()
    assert list(spatial_layers(model, images())) == ['a']
    for layer in ('b', 'idle', 'out', 'nowhere', nn.ReLU()):
        with refused('layer', ': a'):
            cam(model, images(), 0, layer=layer)

def test_activations_are_copied_before_they_are_overwritten():
    with seeded(0): conv,out = nn.Conv2d(1, 6, 3), nn.Linear(6, 2)
    def build(inplace):
        return nn.Sequential(conv, nn.Hardtanh(-.1, .1, inplace=inplace), nn.AdaptiveAvgPool2d(1),
                             nn.Flatten(), out)
    for method in METHODS:
        assert torch.equal(cam(build(True), images(), 1, method, '0'),
                           cam(build(False), images(), 1, method, '0'))

def test_no_layer():
    class Detached(nn.Module):
        def __init__(self): super().__init__(); self.inner = dots()
        def forward(self, x): return self.inner(x).detach()
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), Detached()):
        with refused('model'): cam(model, images(), 0)


# Every task, size and colour

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('ch,size,C,task', [(1,28,2,ONE), (3,28,7,ONE), (1,64,14,MULTI), (3,64,2,ONE)])
def test_range_shape_and_determinism(method, ch, size, C, task):
    model,x = net(ch, C), images(5, ch, size)
    y = torch.arange(5)%C
    m = cam(model, x, y, method, task=task)
    assert m.shape == (5,size,size) and m.dtype == torch.float32 and m.min() >= 0 and m.max() <= 1
    assert torch.equal(m, cam(model, x, y, method, task=task))
    assert torch.allclose(m, cam(model, x, y, method, task=task, bs=2), atol=1e-3)
    assert torch.allclose(m[2:3], cam(model, x[2:3], int(y[2]), method, task=task), atol=1e-3)

def test_default_class_is_the_predicted_one():
    model,x = dots(5, kernel=3), images()
    assert torch.equal(cam(model, x), cam(model, x, predict(model, x).argmax(1)))
    assert not torch.equal(cam(model, x, 0), cam(model, x, 1))

def test_labels_of_a_model_with_several_are_explained_one_by_one():
    "A label that another layer decides has a map of its own"
    with seeded(0): model = dots(0, C=2, ch=2)
    with torch.no_grad():
        model[0].weight.zero_(); model[0].weight[:4,0] = 1; model[0].weight[4:,1] = 1
        model[4].weight.zero_(); model[4].weight[0,:4] = 1; model[4].weight[1,4:] = 1
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), *model)
    with torch.no_grad(): model[0].weight.copy_(torch.tensor([[1.,0,0],[0,1,0]])[...,None,None])
    x = torch.zeros(1, 3, 28, 28); x[:,0,3:7,3:7] = 1; x[:,1,20:25,20:25] = 1
    for c in (0,1): assert torch.equal(cam(model, x, c, task=MULTI) > .5, x[:,c] > .5)

def test_dropout_is_off():
    model,x = net(), images()
    off = cam(model, x, 1), faithfulness(model, x, 1, cam(model, x, 1)), minimise_class(model, x, 1)[1]
    model.train()
    on = cam(model, x, 1), faithfulness(model, x, 1, cam(model, x, 1)), minimise_class(model, x, 1)[1]
    assert all(map(torch.equal, off, on))

@pytest.mark.parametrize('context', [nullcontext, torch.no_grad, torch.inference_mode])
def test_works_in_any_context(context):
    model,x = net(), images()
    with context(): inside = cam(model, x, 1), minimise_class(model, x, 1)[1]
    assert torch.equal(inside[0], cam(model, x, 1)) and torch.equal(inside[1], minimise_class(model, x, 1)[1])

def test_bfloat16_network():
    full = cam(net(), images(), 1, layer='trunk.4')
    with torch.autocast('cpu', torch.bfloat16): half = cam(net(), images(), 1, layer='trunk.4')
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(half.flatten(1), full.flatten(1)).min() > .9


# It leaves nothing behind

class Fails(nn.Module):
    "Works for `n` passes and then raises"
    def __init__(self, inner, n, error=RuntimeError):
        super().__init__(); self.inner,self.n,self.error = inner,n,error
    def forward(self, x):
        self.n -= 1
        if self.n < 0: raise self.error('lost the device')
        return self.inner(x)

def mixed():
    "A model in the middle of a training: modes, flags and gradients of all kinds"
    model = net(seed=1)
    model.train(); model.trunk[4].eval(); model.trunk[0].requires_grad_(False)
    F.cross_entropy(model(images()), torch.tensor([0,1,2,0])).backward()
    model.out.bias.requires_grad_(False)
    return model

@pytest.mark.parametrize('method', METHODS)
def test_model_is_left_as_it_was(method):
    model = mixed()
    before,grads = state(model), [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    cam(model, images(), 1, method)
    assert same(state(model), before) and same([p.grad for p in model.parameters()], grads)

@pytest.mark.parametrize('error', [RuntimeError, IndexError, KeyboardInterrupt])
@pytest.mark.parametrize('visit', [lambda m,x: cam(m, x, 1), lambda m,x: cam(m, x, 1, 'gradcam'),
                                   lambda m,x: minimise_class(m, x, 1),
                                   lambda m,x: faithfulness(m, x, 1, x[:,0])])
@pytest.mark.parametrize('n', [0,1,2])
def test_model_is_left_as_it_was_after_an_exception(visit, n, error):
    model = mixed()
    before,grads = state(model), [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    failing = Fails(model, n, error)
    try: visit(failing, images())
    except error as e: assert 'lost the device' in str(e)
    else: assert failing.n >= 0
    assert same(state(model), before) and same([p.grad for p in model.parameters()], grads)

def test_faithfulness_and_minimisation_leave_no_trace():
    model,ae = mixed(), Autoencoder(width=8).train()
    before,grads = state(model, ae), [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    faithfulness(model, images(), 1, images()[:,0]); minimise_class(model, images(), 1)
    minimise_class(model, images(), 1, ae=ae)
    assert same(state(model, ae), before) and same([p.grad for p in model.parameters()], grads)


# Regions of the phantom

@pytest.mark.parametrize('size', [28,64])
def test_lesion_is_where_the_formula_has_it(size):
    # round, and in full shadow
    f = torch.rand(40, 8, generator=torch.Generator().manual_seed(0)); f[:,1] = 0; f[:,3] = 1
    u = (torch.arange(size)+.5)/size*2-1
    dx,dy = u[None,None]-(f[:,5,None,None]-.5)*.7, u[None,:,None]-(f[:,6,None,None]-.5)*.5
    inside = (dx**2+dy**2).sqrt() < (.22+.26*f[:,0,None,None])*(1+.25*torch.cos(2*torch.atan2(dy, dx)))
    found = phantom_region(f, size=size)
    overlap = (found & inside).sum((1,2))/(found | inside).sum((1,2))
    assert found.shape == (40,size,size) and overlap.min() > .8

def test_shadow_lies_behind_the_lesion():
    f = torch.rand(40, 8, generator=torch.Generator().manual_seed(1))
    row = torch.arange(28.)[None,:,None]
    centre = lambda m: (row*m).sum((1,2))/m.sum((1,2))
    before = f.clone()
    assert (centre(phantom_region(f, 'shadow').float()) > centre(phantom_region(f).float())+2).all()
    assert torch.equal(f, before)
    # the ends of a phase are one image
    for factor in ('lesion','phase'):
        with refused('factor', *(k for k in FACTORS if k != 'phase'), found=factor): phantom_region(f, factor)

def test_heat_inside():
    region = torch.zeros(3, 10, 10, dtype=torch.bool); region[:,2:4,2:7] = True
    maps = torch.stack([torch.ones(10, 10), region[1].float(), torch.zeros(10, 10)])
    assert torch.allclose(heat_inside(maps, region)[:2], torch.tensor([.1, 1.]))
    assert heat_inside(maps, region)[2].isnan()

lesions = pytest.mark.xdist_group('lesions')  # one worker trains the network, for all tests that need it

@pytest.fixture(scope='module')
def trained():
    "A network that has learned to tell the lesions, malignant ones, and where these are"
    data = clear_phantom(n_test=80)
    model = train_classifier(data, epochs=20).model
    x,y = data.test.batch(range(80))
    assert (predict(model, x).argmax(1) == y).float().mean() > .9
    seen = (y == 1) & (predict(model, x).argmax(1) == 1)
    return model, x[seen], phantom_region(data.test.factors[seen])

@lesions
@pytest.mark.parametrize('layer', ['trunk.5','trunk.4','trunk.3','trunk.2'])
def test_heat_goes_to_the_lesion(trained, layer):
    model,x,region = trained
    area = region.float().mean((1,2))
    share = heat_inside(cam(model, x, 1, layer=layer), region)
    assert share.mean() > 2*area.mean() and (share > area).float().mean() > .9

@lesions
def test_faithful_on_a_trained_network(trained):
    model,x = trained[0],trained[1][:10]
    maps = cam(model, x, 1)
    ours = faithfulness(model, x, 1, maps).mean()
    noise = torch.rand(10, 28, 28, generator=torch.Generator().manual_seed(0))
    assert ours > faithfulness(model, x, 1, noise).mean()+.05
    assert ours > faithfulness(model, x, 1, -maps).mean()+.1


# Faithfulness

class Box(nn.Module):
    "Logits that depend on the mean of a box and on nothing else"
    def __init__(self, C=2): super().__init__(); self.gain,self.C = nn.Parameter(torch.tensor(20.)),C
    def forward(self, x):
        s = self.gain*(x[:,:,4:10,16:22].mean((1,2,3))-.5)
        return torch.stack([x.new_zeros(len(x))]*(self.C-1)+[s], 1)

def box(ch=1, n=4):
    x = .3*images(n, ch); x[...,4:10,16:22] = .9
    m = torch.zeros(n, 28, 28); m[:,4:10,16:22] = 1
    return x, m

@pytest.mark.parametrize('ch,C,task', [(1,2,ONE), (3,4,ONE), (1,3,MULTI)])
def test_the_true_ranking_is_best_and_the_inverted_one_worst(ch, C, task):
    x,m = box(ch)
    def score(m): return faithfulness(Box(C), x, C-1, m, task=task).mean()
    graded = m + .1*images(4, seed=1)[:,0]
    assert abs(score(-graded)+score(graded)) < 1e-5
    assert score(graded) > .8 and score(m) > .8 and abs(score(images(4, seed=2)[:, 0])) < .3
    assert score(m.roll(14, 1)) < .3

def test_only_the_order_of_a_map_counts():
    x,m = box()
    m = m + images(4, seed=1)[:,0]
    assert torch.equal(faithfulness(Box(), x, 1, m), faithfulness(Box(), x, 1, m.exp()*7-3))

def test_a_flat_map_is_worth_nothing():
    x,m = box(n=30)
    assert abs(faithfulness(Box(), x, 1, torch.ones_like(m)).mean()) < .1

def test_faithfulness_of_first_images_does_not_depend_on_the_rest():
    x,m = box()
    before = torch.get_rng_state()
    full = faithfulness(net(C=2), x, torch.tensor([0,1,1,0]), m)
    assert torch.allclose(faithfulness(net(C=2), x[:2], torch.tensor([0,1]), m[:2]), full[:2], atol=1e-6)
    assert not torch.equal(faithfulness(net(C=2), x, torch.tensor([0,1,1,0]), m, seed=1), full)
    assert torch.equal(torch.get_rng_state(), before) and full.abs().max() <= 1

@pytest.mark.parametrize('ch', [1,3])
def test_removed_pixels_are_means_of_their_neighbours(ch):
    x,none = images(1, ch)[0], torch.zeros(ch, 28, 28)
    gone = torch.randperm(784, generator=torch.Generator().manual_seed(0))[:500]
    y,mask = without(x, gone, none), torch.zeros(784, dtype=torch.bool)
    mask[gone] = True; mask = mask.view(28, 28)
    kernel = torch.tensor([[1,2,1],[2,0,2],[1,2,1.]])[None,None]/12
    mean = F.conv2d(y[:,None], kernel)[:,0]
    assert torch.equal(y[:,~mask], x[:,~mask])
    assert torch.allclose(y[:,1:-1,1:-1][:,mask[1:-1,1:-1]], mean[:,mask[1:-1,1:-1]], atol=1e-4)

def test_exact_numbers_of_pixels_are_removed(monkeypatch):
    seen,library = [],without
    monkeypatch.setattr(
        'tsynd.robustness.explanation.without',
        lambda x, gone, grain: (seen.append(len(set(gone.tolist()))), library(x, gone, grain))[1])
    x,m = box(n=1)
    faithfulness(Box(), x, 1, m, shares=(.001,.25,.5))
    assert seen == [1,1,196,196,392,392]


# The change that takes a class away

@pytest.mark.parametrize('C,task', [(2,ONE), (5,ONE), (3,MULTI), (1,MULTI)])
@pytest.mark.parametrize('ch', [1,3])
def test_minimised_class_of_a_linear_network(C, task, ch):
    "One label or two classes: the steepest way is straight; else it goes down at least, in ball and range"
    with seeded(0): model = nn.Sequential(nn.Flatten(), nn.Linear(ch*784, C))
    x,c = .2+.6*images(4, ch), C-1
    start,end = minimise_class(model, x, c, eps=.01, task=task)
    moved = (end-start).flatten(1)
    score = lambda x: as_task(task).class_score(predict(model, x), torch.full((4,), c))
    assert torch.equal(start, x) and (moved.pow(2).mean(1).sqrt() <= .01+1e-6).all()
    assert (score(end) < score(start)).all()
    if task == MULTI or C == 2:
        w = model[1].weight.detach()
        straight = -w[c] if task == MULTI else w[0]-w[1]
        assert torch.allclose(moved, (.01*(ch*784)**.5*straight/straight.norm()).expand_as(moved), atol=1e-5)

def test_minimised_class_stays_an_image_and_falls_with_eps():
    model,x = net(C=3), images(6)
    x[:,:,:14] = 0; x[:,:,:5] = 1
    p = []
    for eps in (.001,.005,.02,.1):
        start,end = minimise_class(model, x, 2, eps)
        assert end.min() >= 0 and end.max() <= 1
        assert ((end-start).pow(2).mean((1,2,3)).sqrt() <= eps+1e-6).all()
        p.append(predict(model, end).softmax(1)[:,2].mean().item())
    assert p == sorted(p, reverse=True) and p[-1] < predict(model, x).softmax(1)[:,2].mean()

def test_only_the_asked_label_is_fought():
    with seeded(0): model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        for k in range(3): model[1].weight[k, k*200:k*200+100] = 1
    start,end = minimise_class(model, .3+.4*images(), 1, task=MULTI)
    before,after = predict(model, start), predict(model, end)
    assert (after[:,1] < before[:,1]-.1).all() and torch.allclose(after[:,[0,2]], before[:,[0,2]], atol=1e-4)

def test_latent_search_stays_in_its_ball():
    with seeded(0): ae = Autoencoder(width=8).eval()
    model,x = net(C=3), images()
    start,end = minimise_class(model, x, 0, eps=.3, ae=ae)
    with torch.no_grad():
        z0 = ae.encode(x)
        assert torch.allclose(start, ae.decode(z0), atol=1e-6)
    p = [predict(model, o).softmax(1)[:,0] for o in (start, end)]
    assert (p[1] <= p[0]).all() and p[1].mean() < p[0].mean() and end.shape == x.shape
    far = [(minimise_class(model, x, 0, eps=e, ae=ae)[1]-start).pow(2).mean() for e in (.01,.1,1.)]
    assert far == sorted(far)


# What is refused

@pytest.mark.parametrize('kwargs,field,said', [
    (dict(method='eigencam'), 'method', 'eigengradcam, raw, gradcam, segeigencam'),
    (dict(bs=0), 'bs', 'at least 1'), (dict(x=images()*2-1), 'images', '[0, 1]'),
    (dict(x=images()/0), 'images', str(images().numel())),
    (dict(x=(images()*255).byte()), 'images', 'torch.uint8'), (dict(x=images()[0]), 'images', '1×28×28'),
    (dict(y=3), 'y', '0 to 2'), (dict(y=-1), 'y', '-1 to -1'),
    (dict(y=torch.zeros(3).long()), 'y', '(3,)'), (dict(y=torch.ones(4, 3)), 'y', '(4, 3)'),
    (dict(y='malignant'), 'y', "'malignant'"), (dict(y=1.), 'y', '1.0'), (dict(y=True), 'y', 'True'),
    (dict(model=nn.Sequential(net(), nn.Linear(3, 1))), 'classifier', 'at least 2'),
    (dict(model=nn.Sequential(net(), nn.Unflatten(1, (3,1)))), 'classifier', '(4, 3, 1)'),
    (dict(model=nn.Sequential(net(), nn.Threshold(1e9, math.nan))), 'model', '4 of 4')])
def test_bad_input_to_cam(kwargs, field, said):
    with refused(field, said): cam(**dict(model=net(), x=images()) | kwargs)

def test_bad_input_to_the_rest():
    model,x = net(), images()
    for bad in (0, -.1, math.nan):
        with refused('eps', found=bad): minimise_class(model, x, 1, bad)
    with refused('steps', found=1): minimise_class(model, x, 1, steps=1)
    with refused('maps', found=(4, 7, 7)):
        faithfulness(model, x, 1, torch.rand(4, 7, 7))
    for bad in ((0,), (1.,)):
        with refused('share', found=bad[0]): faithfulness(model, x, 1, x[:,0], shares=bad)
    with refused('maps'): faithfulness(model, x, 1, x[:,0]*math.nan)


# Pictures, and real data

@pytest.mark.parametrize('ch', [1,3])
def test_picture(ch):
    import matplotlib.pyplot as plt
    x,m = images(3, ch), images(3)[:,0]
    axs = show_cams(x, {'one': m, 'two': m}, ['a','b','c'], region=m > .5)
    assert axs.shape == (3,3) and [a.get_title() for a in axs[0]] == ['a','b','c']
    assert [a.get_ylabel() for a in axs[:,0]] == ['','one','two']
    plt.close('all')

def test_on_breast_images(medmnist_root):
    data = subset(load_data('breastmnist', medmnist_root), 100)
    model = train_classifier(data, epochs=10).model
    x,y = data.test.batch(torch.arange(24))
    maps = cam(model, x, y)
    assert (maps.amax((1,2)) > .99).all()
    assert faithfulness(model, x, y, maps).mean() > faithfulness(model, x, y, -maps).mean()
    start,end = minimise_class(model, x, y)
    p = [predict(model, o).softmax(1).gather(1, y[:,None]) for o in (start, end)]
    assert (p[1] <= p[0]+1e-6).all() and p[1].mean() < .8*p[0].mean()
