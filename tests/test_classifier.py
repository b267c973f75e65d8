"""Exact Monte-Carlo dropout in models of many kinds, models left as they were,
and metrics that others agree with."""
import json, warnings

import medmnist, numpy as np, pytest, sklearn.metrics as skm
import timm, torch, torch.nn.functional as F, torchvision
from fastai.learner import load_learner
from hypothesis import given, strategies as st
from layouts import write_npz
from refused import refused
from medmnist import Evaluator
from states import same, state
from torch import nn

from tsynd.models import Autoencoder
from tsynd.models import save_model
from tsynd.core import metrics, probabilities
from tsynd.models import (
    check_dropout, Classifier, classifier_learner, dropout_layers, frozen, load_classifier,
    make_classifier, mc_logits, MCDropout, predict, train_classifier)
from tsynd.core import seeded
from tsynd.data import load_medmnist, phantom

MULTI = 'multi-label, binary-class'


def tiny(p=.5, C=2, ch=1, seed=0):
    "A trunk with BatchNorm and a dropout head"
    with seeded(seed):
        return Classifier(nn.Sequential(nn.Conv2d(ch, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(),
                                        nn.AdaptiveAvgPool2d(3), nn.Flatten()), 54, C, p)

def images(n=5, ch=1, size=12, seed=0):
    return torch.rand(n, ch, size, size, generator=torch.Generator().manual_seed(seed))

def mixed(model):
    "Modes and flags that a careless restore would get wrong"
    model.train()
    for i,m in enumerate(model.modules()): m.training = i%3 != 1
    for i,p in enumerate(model.parameters()): p.requires_grad_(i%2 == 0)
    return model

class Twice(nn.Module):
    "One dropout module, used twice in a forward, and some of its weights as well"
    def __init__(self):
        super().__init__()
        self.drop,self.a,self.b,self.c = nn.Dropout(.4),nn.Linear(144, 20),nn.Linear(20, 20),nn.Linear(20, 3)
    def forward(self, x):
        x = self.drop(self.a(x.flatten(1)).relu())
        return self.c(self.drop(self.b(x).relu()) + self.b(x))

class Skip(nn.Module):
    "What was not dropped is added to what was"
    def __init__(self):
        super().__init__(); self.a,self.drop,self.b = nn.Linear(144, 20),nn.Dropout(.4),nn.Linear(20, 3)
    def forward(self, x): x = self.a(x.flatten(1)); return self.b(x + self.drop(x.relu()))

class Sequence(nn.Module):
    "Channels along a sequence, dropped as a whole"
    def __init__(self):
        super().__init__(); self.a,self.drop,self.b = nn.Conv1d(12, 8, 3),nn.Dropout1d(.3),nn.Linear(80, 3)
    def forward(self, x): return self.b(self.drop(self.a(x[:,0])).tanh().flatten(1))

class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.drop,self.b = nn.Conv3d(1, 6, (1,3,3)),nn.Dropout3d(.3),nn.Linear(600, 3)
    def forward(self, x): return self.b(self.drop(self.a(x[:,:,None])).tanh().flatten(1))

class MyDropout(nn.Dropout):
    "As users write them"

def planes(drop):
    return nn.Sequential(nn.Conv2d(1, 8, 3), drop, nn.ReLU(), nn.Conv2d(8, 4, 3), drop.__class__(.2),
                         nn.Flatten(), nn.Linear(256, 3))

MODELS = {  # make a model, channels and size of its images
    'tiny': (lambda: tiny(C=3), 1, 12),
    'in a Sequential': (lambda: nn.Sequential(nn.Identity(), nn.Sequential(tiny(C=3), nn.Tanh()),
                                              nn.Linear(3, 3)), 1, 12),
    'vgg': (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
                                  nn.Flatten(), nn.Linear(200, 32), nn.ReLU(True),
                                  nn.Dropout(.5), nn.Linear(32, 32), nn.ReLU(True), nn.Dropout(.3),
                                  nn.Linear(32, 3)), 1, 12),
    'in place': (lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.Dropout(.5, inplace=True),
                                       nn.ReLU(True), nn.Linear(32, 3)), 1, 12),
    'dropout on the images': (lambda: nn.Sequential(nn.Dropout(.2), tiny(C=3)), 1, 12),
    'Dropout1d': (Sequence, 1, 12),
    'Dropout2d': (lambda: planes(nn.Dropout2d(.4)), 1, 12),
    'Dropout3d': (Volume, 1, 12),
    'Dropout on maps': (lambda: planes(nn.Dropout(.4)), 1, 12),
    'a subclass': (lambda: planes(MyDropout(.4)), 1, 12),
    'shared': (Twice, 1, 12),
    'mobilenet_v3_small': (lambda: torchvision.models.mobilenet_v3_small(num_classes=4), 3, 32),
    'efficientnet_b0': (lambda: torchvision.models.efficientnet_b0(num_classes=4), 3, 32),
    'timm regnetx_002': (lambda: timm.create_model('regnetx_002', num_classes=4, in_chans=1,
                                                   drop_rate=.3), 1, 32),
    'timm convnext_atto': (lambda: timm.create_model('convnext_atto', num_classes=4, in_chans=1,
                                                     drop_rate=.3), 1, 32),
    'timm vit_tiny': (lambda: timm.create_model('vit_tiny_patch16_224', num_classes=4, in_chans=1,
                                                img_size=32, patch_size=8, depth=3, drop_rate=.2,
                                                pos_drop_rate=.1, proj_drop_rate=.1), 1, 32),
    'tsynd timm': (lambda: make_classifier('timm:mobilenetv3_small_050', 1, 4), 1, 32),
    'tsynd resnet18': (lambda: make_classifier('resnet18', 1, 4), 1, 12)}

def model_and_images(name, n=3):
    make, ch, size = MODELS[name]
    with seeded(0):
        model = make().eval()
        # as after some training: nothing is zero or one
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 1.5)
    return model, images(n, ch, size)

models = pytest.mark.parametrize('name', MODELS)
close = lambda a,b: torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


# Monte-Carlo dropout

def by_hand(model, x, masks, t):
    "One draw, by a plain forward in which each dropout layer multiplies by the `t`-th of its masks"
    calls = {}
    def hook(name):
        def f(m, inp, out):
            k = calls[name] = calls.get(name, -1)+1
            return inp[0]*masks[name,k][t]
        return f
    hooks = [m.register_forward_hook(hook(n)) for n,m in dropout_layers(model)]
    try:
        with torch.no_grad(): return model(x)
    finally:
        for h in hooks: h.remove()

@models
def test_each_draw_is_a_plain_forward_with_its_masks(name):
    model, x = model_and_images(name)
    with warnings.catch_warnings(), torch.no_grad():
        # no falling back to full passes
        warnings.simplefilter('error')
        with MCDropout(model, 4, seed=3) as mc: out = mc(x)
    assert not mc.full and out.shape == (4, 3, out.shape[2]) and len(mc.masks) >= len(dropout_layers(model))
    for t in range(4): close(out[t], by_hand(model, x, mc.masks, t))
    assert out.std(0).max() > 1e-5                                              # the draws differ

@models
def test_sharing_the_trunk_is_exact_and_so_is_its_gradient(name):
    model, x = model_and_images(name)
    def run(full):
        xg = x.clone().requires_grad_()
        with MCDropout(model, 4, seed=3, full=full) as mc: out = mc(xg)
        return (out.detach(),
                torch.autograd.grad((out*torch.arange(out.numel()).view_as(out)).sum()/out.numel(), xg)[0])
    (a,ga),(b,gb) = run(None), run(True)
    close(a, b); torch.testing.assert_close(ga, gb, atol=1e-4*gb.abs().max().item(), rtol=1e-3)
    assert ga.abs().sum() > 0 and all(p.grad is None for p in model.parameters())

@models
def test_batch_mates_do_not_matter(name):
    model, x = model_and_images(name, 4)
    with torch.no_grad():
        together = mc_logits(model, x, T=3, seed=1)
        for i in range(4): close(mc_logits(model, x[i:i+1], T=3, seed=1), together[:,i:i+1])

def test_one_draw_one_image_one_class():
    x = images(1)
    assert mc_logits(tiny(C=1), x, T=1).shape == (1,1,1)
    close(mc_logits(tiny(), x, T=1, seed=4), mc_logits(tiny(), images(5), T=1, seed=4)[:,:1])

@pytest.mark.parametrize('kind', ['flat','maps','planes','a subclass'])
@pytest.mark.parametrize('p', [.1, .5, .9])
def test_masks_keep_one_minus_p_and_scale_what_they_keep(kind, p):
    layer = dict(planes=nn.Dropout2d).get(kind, MyDropout if kind == 'a subclass' else nn.Dropout)(p)
    net = nn.Sequential(nn.Flatten() if kind == 'flat' else nn.Identity(), layer, nn.Flatten())
    x, T = torch.ones(2, 4, 5, 5), 1500
    with MCDropout(net, T) as mc: out = mc(x).unflatten(2, (4,5,5))
    assert torch.equal(out[:,0], out[:,1])                                      # shared across the batch
    kept = out[:,0] > 0
    torch.testing.assert_close(out[:,0][kept], torch.full((int(kept.sum()),), 1/(1-p)))
    per_plane = kept.float().mean((2,3))
    if kind == 'planes': assert ((per_plane == 0) | (per_plane == 1)).all()     # all of a channel or nothing
    independent = per_plane if kind == 'planes' else kept.float().flatten(1)
    se = (p*(1-p)/T)**.5
    # for every unit, over the draws
    assert ((independent.mean(0)-(1-p)).abs() < 5*se).all()
    corr = torch.corrcoef(independent.T)-torch.eye(independent.shape[1])
    # units are dropped independently
    assert corr.abs().max() < 5*T**-.5
    lag = ((independent[1:]-1+p)*(independent[:-1]-1+p)).mean()
    assert abs(lag) < 5*p*(1-p)/independent[1:].numel()**.5                     # and so are the draws

@pytest.mark.parametrize('layer,x,shape', [(nn.Dropout, (2,7), (7,)), (nn.Dropout, (2,5,6,7), (5,6,7)),
                                           (nn.Dropout1d, (2,5,7), (5,1)),
                                           (nn.Dropout2d, (2,5,6,7), (5,1,1)),
                                           (nn.Dropout3d, (2,5,6,7,8), (5,1,1,1)),
                                           (MyDropout, (2,5,7), (5,7))])
def test_masks_have_the_shape_of_what_is_dropped_together(layer, x, shape):
    with MCDropout(nn.Sequential(layer(.5), nn.Flatten()), 3) as mc: mc(torch.ones(x))
    assert [tuple(m.shape) for m in mc.masks.values()] == [(3,1,*shape)]

def test_the_mean_over_draws_has_the_moments_of_training_dropout():
    model, x = tiny(), images(2)
    with seeded(0), torch.no_grad():
        mc = mc_logits(model.eval(), x, T=4000)
        model.drop.train()
        plain = torch.stack([model(x) for _ in range(4000)])
    se = plain.std(0)/4000**.5
    assert ((mc.mean(0)-plain.mean(0)).abs() < 5*2**.5*se).all()
    torch.testing.assert_close(mc.std(0), plain.std(0), rtol=.1, atol=0)

def test_each_use_of_a_shared_layer_has_masks_of_its_own():
    with MCDropout(Twice(), 8) as mc: mc(images())
    assert sorted(mc.masks) == [('drop',0), ('drop',1)] and not torch.equal(*mc.masks.values())

def test_masks_stay_for_a_context_and_follow_the_seed():
    model, x = tiny(), images()
    with torch.no_grad():
        with MCDropout(model, 4, seed=1) as mc: a,b,c = mc(x), mc(images(seed=1)), mc(x)
        assert torch.equal(a, c) and not torch.equal(a, b)
        close(mc_logits(model, x, 4, seed=1), a)
        assert not torch.equal(mc_logits(model, x, 4, seed=2), a)
        with seeded(123): close(mc_logits(model, x, 4, seed=1), a)              # the global stream has no say

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    model, x = tiny().to(dtype), images().to(dtype)
    out = mc_logits(model, x, 4)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), mc_logits(tiny(), images(), 4),
                               atol=.05 if dtype == torch.bfloat16 else 1e-5, rtol=0)

def test_idle_layers_are_left_alone():
    model = nn.Sequential(nn.Dropout(0.), tiny())
    with MCDropout(model, 4) as mc: out = mc(images())
    assert list(mc.masks) == [('1.drop',0)]
    close(out, mc_logits(tiny(), images(), 4))


# Models that cannot share a pass

def test_a_skip_around_dropout_falls_back_once_and_says_so():
    with seeded(0): model = Skip().eval()
    x = images(3)
    with pytest.warns(UserWarning, match='each of the 4 draws runs it all') as caught, torch.no_grad():
        with MCDropout(model, 4, seed=3) as mc: out = mc(x)
        again = mc_logits(model, x, 4, seed=3)
    assert len(caught) == 1 and torch.equal(out, again)
    for t in range(4): close(out[t], by_hand(model, x, mc.masks, t))

def test_a_skip_and_a_single_image_need_no_falling_back():
    with seeded(0): model = Skip().eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('error')
        one = mc_logits(model, images(3)[:1], 4, seed=3)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        close(one, mc_logits(model, images(3), 4, seed=3)[:,:1])

class SequenceFirst(nn.Module):
    "A transformer that takes (positions, images, features)"
    def __init__(self):
        super().__init__()
        self.f,self.out = nn.TransformerEncoderLayer(12, 2, 24, dropout=.3),nn.Linear(12, 3)
    def forward(self, x): return self.out(self.f(x[:,0].permute(1, 0, 2)).mean(0))

# 12 positions: T divides them or not, as does T·n
@pytest.mark.parametrize('n,T', [(5,4), (5,5), (3,2), (1,4), (2,3)])
def test_dropout_on_a_sequence_that_comes_first_is_refused(n, T):
    with refused('dropout', f'(12, {n*T}, ', f' {n*T}, as its first dimension'):
        mc_logits(SequenceFirst(), images(n), T)

def test_windows_of_an_image_are_no_sequence():
    with seeded(0):
        model = timm.create_model('swin_tiny_patch4_window7_224', in_chans=1, num_classes=3, img_size=56,
                                  proj_drop_rate=.2, depths=(1,1), embed_dim=24, num_heads=(2,2)).eval()
    x = images(2, size=56)
    with pytest.warns(UserWarning, match='each of the 4 draws'), MCDropout(model, 4, seed=3) as mc:
        out = mc(x)
    for t in range(4): close(out[t], by_hand(model, x, mc.masks, t))

def test_wrong_images_do_not_mark_the_model():
    "A failure that a full pass has as well is the caller's, and the next call is as fast as ever"
    model = tiny()
    before = dict(vars(model))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with refused('images', 'channels'): mc_logits(model, images(2, ch=3), 4)
        with MCDropout(model, 4) as mc: mc(images(2))
    assert not mc.full and vars(model).keys() == before.keys()

@pytest.mark.parametrize('out', [lambda x: x.sum(1), lambda x: x[:,None], lambda x: x[:1]],
                         ids=['1d', '3d', 'fewer rows'])
def test_a_model_that_returns_something_else_is_an_error(out):
    class Odd(nn.Module):
        def __init__(self): super().__init__(); self.f = tiny()
        def forward(self, x): return out(self.f(x))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with refused('classifier', 'expected'): mc_logits(Odd(), images(), 4)

@pytest.mark.parametrize('make,found', [(lambda: tiny(p=1.), 1.),
                                        (lambda: tiny(p=0.), '1 dropout layers, all with p = 0'),
                                        (lambda: nn.Linear(2, 2), 'no dropout layer')],
                         ids=['p=1','p=0','none'])
def test_models_without_useful_dropout_are_refused(make, found):
    model = make()
    for f in (check_dropout, MCDropout, lambda m: mc_logits(m, images())):
        with refused('dropout', found=found): f(model)

@pytest.mark.parametrize('T', [0, -1, float('nan'), 2.5, '4'])
def test_impossible_numbers_of_draws_are_refused(T):
    with refused('T', found=T): mc_logits(tiny(), images(), T=T)


# Left as it was

@models
def test_mc_logits_leaves_no_trace(name):
    model, x = model_and_images(name)
    mixed(model)
    before = state(model)
    mc_logits(model, x, 3)
    predict(model, x)
    assert same(state(model), before)

class Broken(nn.Module):
    "Fails after the dropout layer, when told to"
    def __init__(self): super().__init__(); self.f,self.fail,self.bn = tiny(),None,nn.BatchNorm1d(2)
    def forward(self, x):
        x = self.f(x)
        if self.fail: raise self.fail
        return self.bn(x)

@pytest.mark.parametrize('error', [KeyError('k'), RuntimeError('r'), KeyboardInterrupt()],
                         ids=lambda e: type(e).__name__)
def test_exceptions_leave_no_trace(error):
    model = mixed(Broken())
    before = state(model)
    model.fail = error
    for f in (lambda: mc_logits(model, images(), 3), lambda: predict(model, images())):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with pytest.raises(type(error)): f()
        assert same(state(model), before)

def test_frozen_is_frozen_inside():
    model, other = mixed(tiny()), mixed(tiny(seed=1))
    before = state(model, other)
    with frozen(model, other):
        for m in (model, other):
            assert not any(k.training for k in m.modules())
            assert not any(p.requires_grad for p in m.parameters())
        assert not model(images()).requires_grad
        torch.rand(3)
        model.trunk[1].running_mean.add_(1)                                     # what a visitor should not do
        model.trunk[1].num_batches_tracked.add_(1)
    assert same(state(model, other), before)

@pytest.mark.parametrize('fail', ['inner','outer',None])
def test_frozen_nests_also_when_broken_off(fail):
    model = mixed(tiny())
    before = state(model)
    try:
        with frozen(model):
            within = state(model)
            try:
                with frozen(model, model):
                    model.train(); torch.rand(2)
                    model.trunk[1].running_var.mul_(2)
                    if fail == 'inner': raise KeyError
            except KeyError: pass
            assert same(state(model), within) and not model.out.weight.requires_grad and not model.training
            torch.rand(2)
            if fail == 'outer': raise KeyError
    except KeyError: pass
    assert same(state(model), before)

def test_mc_dropout_nests():
    a, b = mixed(tiny()), mixed(tiny(seed=1))
    before = state(a, b)
    with MCDropout(a, 3, 1) as outer:
        first = outer(images())
        with MCDropout(b, 3, 1) as inner: inner(images())
        assert torch.equal(outer(images()), first)
        predict(b, images())
    assert same(state(a, b), before)

def test_training_goes_on_as_if_nobody_had_looked():
    def train(look):
        with seeded(1):
            model, opt = tiny().train(), None
            opt = torch.optim.SGD(model.parameters(), .1, momentum=.9)
            for i in range(4):
                x, y = images(8, seed=i), torch.arange(8)%2
                if look: mc_logits(model, x, 4, seed=i); predict(model, x)
                F.cross_entropy(model(x), y).backward(); opt.step(); opt.zero_grad()
            return state(model)
    assert same(train(False), train(True))


# Predictions and metrics

@given(n=st.integers(1, 9), bs=st.integers(1, 10), byte=st.booleans())
def test_predictions_do_not_depend_on_the_batch_size(n, bs, byte):
    model = tiny().train()
    x = (images(n)*255).byte()
    got = predict(model, x if byte else x.float()/255, bs=bs)
    with torch.no_grad(): want = tiny().eval()(x.float()/255)
    close(got, want)
    assert got.shape == (n,2) and not got.requires_grad and model.training

def test_half_precision_predictions_come_back_in_single():
    assert predict(tiny().bfloat16(), images().bfloat16()).dtype == torch.float32

def test_predictions_of_a_model_without_weights():
    assert torch.equal(predict(nn.Flatten(), images()), images().flatten(1))

def test_probabilities_of_classes_and_labels():
    x = torch.tensor([[0., 1000.], [-1000., 0.]])
    assert probabilities(x).tolist() == [[0,1],[0,1]] and probabilities(x, MULTI).tolist() == [[.5,1],[0,.5]]

def made_scores(y, C, task, seed=0, skill=1.):
    rng = np.random.default_rng(seed)
    hot = y if task == MULTI else np.eye(C)[y.reshape(-1)]
    logits = torch.from_numpy(rng.normal(0, 1, hot.shape) + skill*hot - (skill/2 if task == MULTI else 0))
    return probabilities(logits, task).numpy()

def scikit(y, p, task):
    if task == MULTI:
        return dict(accuracy=(y == (p > .5)).mean(), auc=skm.roc_auc_score(y, p, average='macro'),
                    balanced_accuracy=np.mean([skm.recall_score(a, b > .5, average='macro')
                                               for a,b in zip(y.T, p.T)]))
    auc = (skm.roc_auc_score(y, p[:,1]) if p.shape[1] == 2 else
           skm.roc_auc_score(y, p, multi_class='ovr', average='macro'))
    return dict(accuracy=skm.accuracy_score(y, p.argmax(1)), auc=auc,
                balanced_accuracy=skm.balanced_accuracy_score(y, p.argmax(1)))

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', ['breastmnist','octmnist','retinamnist','chestmnist'])
def test_metrics_agree_with_the_evaluator_and_scikit_learn(tmp_path, name, seed):
    write_npz(tmp_path, name, n=(30,30,67), seed=seed)
    with pytest.warns(UserWarning, match='MD5'): data = load_medmnist(name, tmp_path, download=False)
    y = data.test.y.numpy()
    p = made_scores(y.astype(int), data.n_classes, data.task.name, seed)
    got = metrics(data.test.y, torch.from_numpy(p), data.task)
    theirs = Evaluator(name, 'test', root=str(tmp_path)).evaluate(p)
    assert got['auc'] == pytest.approx(theirs.AUC, abs=1e-12)
    assert got['accuracy'] == pytest.approx(theirs.ACC, abs=1e-12)
    assert got == pytest.approx(scikit(y, p, data.task.name), abs=1e-9) and .5 < got['auc'] < 1

def test_there_are_four_tasks_and_each_is_tested():
    tested = ('breastmnist','octmnist','retinamnist','chestmnist')
    assert {medmnist.INFO[n]['task'] for n in tested} == {v['task'] for v in medmnist.INFO.values()}

@pytest.mark.parametrize('name', ['breastmnist','pneumoniamnist'])
def test_metrics_agree_on_the_official_test_split(medmnist_root, name):
    data = load_medmnist(name, medmnist_root)
    p = made_scores(data.test.y.numpy(), 2, data.task, skill=1.5)
    theirs = Evaluator(name, 'test', root=str(medmnist_root)).evaluate(p)
    got = metrics(data.test.y, p, data.task)
    assert (got['auc'], got['accuracy']) == pytest.approx((theirs.AUC, theirs.ACC), abs=1e-12)
    assert got == pytest.approx(scikit(data.test.y.numpy(), p, data.task), abs=1e-9)

@pytest.mark.parametrize('y,task,want', [([1], 'binary-class', 1.), ([0], 'binary-class', 0.),
                                         ([1], 'multi-class', 1.), ([0], 'ordinal-regression', 0.),
                                         ([[0,1]], MULTI, 1.), ([[1,1]], MULTI, .5)])
def test_metrics_of_a_single_image(y, task, want):
    assert metrics(y, [[.3,.7]], task) == dict(accuracy=want, auc=None, balanced_accuracy=want)

def test_an_absent_class_has_no_auc():
    p = np.eye(3)[[0,1,1,2]]*.8+.1
    assert metrics([0,1,1,1], p, 'multi-class') == dict(
        accuracy=.75, auc=None, balanced_accuracy=pytest.approx((1+2/3)/2))
    assert metrics(np.array([[1,0],[1,1]]), np.array([[.9,.2],[.8,.7]]), MULTI)['auc'] is None
    assert metrics([1,1], np.array([[.1,.9],[.6,.4]]), 'binary-class') == dict(
        accuracy=.5, auc=None, balanced_accuracy=.5)

def test_probabilities_that_are_not_finite_are_refused():
    with refused('probabilities', found=1):
        metrics([0,1], np.array([[.5,.5],[np.nan,1]]), 'binary-class')


# Models and training

@pytest.mark.parametrize('name', ['small_resnet','resnet18','timm:regnetx_002'])
@pytest.mark.parametrize('ch,size', [(1,28), (3,64)])
def test_models_take_grey_and_colour_of_every_size(name, ch, size):
    model = make_classifier(name, ch, 5, p=.3).eval()
    assert model(images(2, ch, size)).shape == (2,5) and [m.p for _,m in dropout_layers(model)] == [.3]

def test_normalisation_is_inside():
    seen = []
    model = Classifier(nn.Flatten(), 4, 2)
    model.trunk.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    model(torch.tensor([0, .25, .5, 1]).view(1,1,2,2))
    assert seen[0].flatten().tolist() == [-1, -.5, 0, 1]

@pytest.mark.parametrize('args,field', [(dict(model='resnet'), 'model'), (dict(p=-.1), 'dropout'),
                                        (dict(model='timm:no_such'), 'model'), (dict(p=.96), 'dropout'),
                                        (dict(p=float('nan')), 'dropout')], ids=str)
def test_impossible_models_are_refused(args, field):
    found, = args.values()
    with refused(field, found=found): make_classifier(**args)

@pytest.mark.parametrize('name', ['small_resnet','timm:regnetx_002'])
def test_what_is_saved_comes_back(tmp_path, name):
    model = make_classifier(name, 3, 4, p=.25).train()
    model(images(4, 3, 32))
    save_model(tmp_path/'c', model, auc=.9)
    again = load_classifier(tmp_path/'c')
    assert not again.training and again.drop.p == .25 and again.config == model.config
    assert same(dict(again.state_dict()), dict(model.state_dict()))

@pytest.mark.parametrize('change,field', [(dict(model='resnet'), 'model'), (dict(n_classes=5), 'out.weight'),
                                          (dict(colour=1), 'the file'), (dict(p=2), 'dropout')], ids=str)
def test_bad_files_get_one_sentence(tmp_path, change, field):
    save_model(tmp_path/'c', make_classifier('small_resnet', 1, 4))
    facts = json.loads((tmp_path/'c.json').read_text())
    facts['config'] |= change
    (tmp_path/'c.json').write_text(json.dumps(facts))
    path = tmp_path/'c'
    with refused(path if field == 'the file' else field, str(path)): load_classifier(path)

def test_an_autoencoder_is_no_classifier(tmp_path):
    save_model(tmp_path/'ae', Autoencoder(width=4))
    with refused(tmp_path/'ae', 'Classifier', found='Autoencoder'): load_classifier(tmp_path/'ae')

@pytest.fixture(scope='module')
def data(): return phantom(32, 12, 12, size=12)

def test_the_seed_is_all_that_matters(data):
    def weights(seed, noise):
        with seeded(noise): return dict(train_classifier(data, epochs=1, seed=seed, bs=8).model.state_dict())
    a,b,c = weights(0, 1), weights(0, 2), weights(1, 1)
    assert same(a, b) and not same(a, c)

def test_training_leaves_the_global_stream_alone_and_the_model_in_eval_mode(data):
    with seeded(5): a = torch.rand(2)
    with seeded(5):
        learn = train_classifier(data, tiny(), epochs=1)
        assert torch.equal(torch.rand(2), a)
    assert not any(m.training for m in learn.model.modules())

def test_training_learns(tmp_path):
    write_npz(tmp_path, 'octmnist', n=(60,20,60))
    with pytest.warns(UserWarning, match='MD5'): data = load_medmnist('octmnist', tmp_path, download=False)
    aucs = [metrics(data.test.y, probabilities(predict(m, data.test.x)), data.task)['auc']
            for m in (make_classifier(n_classes=4), train_classifier(data, epochs=16, lr=1e-2, bs=20).model)]
    assert aucs[0] < .7 and aucs[1] > .8

def test_several_labels_are_trained_with_their_own_loss(tmp_path):
    write_npz(tmp_path, 'chestmnist', n=(40,20,20))
    with pytest.warns(UserWarning, match='MD5'): data = load_medmnist('chestmnist', tmp_path, download=False)
    model = tiny(C=14).eval()
    learn = classifier_learner(data, model, bs=10)
    x,y = learn.dls.one_batch()
    want = F.binary_cross_entropy_with_logits(model(x), y).item()
    assert learn.loss_func(model(x), y).item() == pytest.approx(want, abs=1e-6)
    losses = [F.binary_cross_entropy_with_logits(predict(m, data.train.x), data.train.y).item()
              for m in (tiny(C=14), train_classifier(data, tiny(C=14), epochs=6, lr=2e-2, bs=10).model)]
    assert losses[1] < losses[0]-.05

def test_the_bar_counts_and_closes(data, bars):
    train_classifier(data, tiny(), epochs=2, bs=8, progress=True)
    assert [(b.n, b.total, b.closed) for b in bars] == [(8,8,True)]

def test_a_loss_that_is_no_longer_finite_stops_it_in_one_sentence(data, bars):
    model = tiny()
    for p in model.parameters(): p.data.fill_(float('inf'))
    with refused('loss', 'epoch 0', found=float('nan')):
        train_classifier(data, model, epochs=3, bs=8, progress=True)
    assert [b.closed for b in bars] == [True]

def test_any_other_exception_closes_the_bar_too(data, bars):
    model = Broken()
    model.fail = KeyError('k')
    with pytest.raises(KeyError): train_classifier(data, model, epochs=1, bs=8, progress=True)
    assert [b.closed for b in bars] == [True]

@pytest.mark.parametrize('kwargs,field', [(dict(epochs=0), 'epochs'), (dict(epochs=1.5), 'epochs'),
                                          (dict(bs=0), 'bs'), (dict(p=2), 'dropout'),
                                          (dict(model='x'), 'model')], ids=str)
def test_impossible_trainings_are_refused(data, kwargs, field):
    found, = kwargs.values()
    with refused(field, found=found): train_classifier(data, **kwargs)

def test_the_learner_is_a_whole_fastai_learner(data):
    learn = train_classifier(data, tiny(), epochs=1)
    with learn.no_bar(), learn.no_logging():
        preds,y = learn.get_preds()
        close(preds, probabilities(predict(learn.model, data.val.x)))
        assert torch.equal(y, data.val.y)
        preds,y = learn.get_preds(ds_idx=0)
        assert torch.equal(y, data.train.y)
        close(preds, probabilities(predict(learn.model, data.train.x)))
        want = F.cross_entropy(predict(learn.model, data.val.x), data.val.y).item()
        assert learn.validate()[0] == pytest.approx(want, abs=1e-5)
        assert learn.lr_find(num_it=8, show_plot=False).valley > 0


def test_an_exported_learner_predicts_the_same_and_carries_no_image(tmp_path):
    data = phantom(n_train=24, n_val=8, n_test=8)
    learn = train_classifier(data, epochs=1)
    learn.export(tmp_path/'learner.pkl')
    loaded = load_learner(tmp_path/'learner.pkl')
    x = data.test.batch(slice(None))[0]
    assert torch.equal(loaded.model(x), learn.model(x)) and len(learn.dls.train.dataset) == 24
    assert all(len(dl.dataset) == 0 for dl in loaded.dls.loaders)
