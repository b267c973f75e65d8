"""Perturbations and attacks: dials, boxes, closed forms, several labels, and a model left as it was."""
import math
from contextlib import nullcontext

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from refused import refused
from tsynd.core import metrics, streams
from tsynd.robustness import KINDS, loss_and_gradient, RANGES
from tsynd.robustness import keep_worse
from tsynd.models import predict, small_resnet
from tsynd.data import load_data, strata, stratified_order
from tsynd.robustness import attack_loss, blur, fgsm, noise, perturb, pgd, robustness_table, warp

MULTI = 'multi-label, binary-class'
tasks = pytest.mark.parametrize('task', ['multi-class', MULTI])


def images(n=6, ch=1, size=12, seed=0, dtype=torch.float32):
    return torch.rand(n, ch, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def labels(n=6, C=2, seed=0): return torch.randint(C, (n,), generator=torch.Generator().manual_seed(seed))

def several(n=6, C=3, seed=0): return labels(n*C, 2, seed).view(n, C).float()

def linear(C=2, ch=1, size=12, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(ch*size*size, C))

def curved(C=2, ch=1, seed=0):
    "A small smooth network with everything that has a state: dropout, BatchNorm"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(ch, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.AdaptiveAvgPool2d(4),
                             nn.Flatten(), nn.Dropout(.5), nn.Linear(128, C))

def loss(model, x, y, task='multi-class'): return attack_loss(predict(model, x), y, task)


# Perturbations

@pytest.mark.parametrize('kinds', [*[(k,) for k in KINDS], KINDS])
@pytest.mark.parametrize('ch,size', [(1,28), (3,30), (1,64)])
def test_first_images_do_not_depend_on_the_rest(kinds, ch, size):
    x = images(9, ch, size)
    full = perturb(x, seed=3, kinds=kinds)
    assert full.shape == x.shape and full.min() >= 0 and full.max() <= 1
    for k in (1,2,7): assert torch.equal(perturb(x[:k], seed=3, kinds=kinds), full[:k])
    assert torch.equal(perturb(x, seed=3, kinds=kinds, bs=4), full)
    assert not torch.equal(perturb(x, seed=4, kinds=kinds), full)

@pytest.mark.parametrize('kinds', [*KINDS, KINDS])
def test_strength_is_a_dial(kinds):
    x = images(20, size=28)
    x = blur(x, .05)
    assert torch.equal(perturb(x, 0, kinds=kinds), x)
    moved = [(perturb(x, s, kinds=kinds)-x).pow(2).mean().sqrt() for s in (1e-4,.2,.5,1,1.5,2)]
    assert moved == sorted(moved) and moved[0] < 1e-3

def test_each_image_has_its_own_parameters():
    x = images(1, size=28).expand(5, -1, -1, -1)
    for kind in KINDS:
        p = perturb(x, kinds=kind)
        assert all((p[i]-p[j]).abs().max() > 1e-3 for i in range(5) for j in range(i))

def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    perturb(images()); pgd(linear(), images(), labels(), .1, restarts=2)
    assert torch.equal(torch.get_rng_state(), before)

def test_same_anatomy_at_every_size():
    x = blur(images(8, size=32), .08)
    large = F.interpolate(x, scale_factor=4, mode='bilinear')
    kinds = ('geometric','blur','intensity')
    small, shrunk = perturb(x, kinds=kinds), F.avg_pool2d(perturb(large, kinds=kinds), 4)
    assert (small-shrunk).abs().mean() < .15*(small-x).abs().mean()

def test_blur_agrees_with_torchvision():
    x = images(2, 3, 40)
    ours = blur(x, torch.tensor([1.5/40, 3/40]))
    for i,sigma in enumerate((1.5,3.)):
        # away from the border, which each treats in its own way
        theirs = gaussian_blur(x[i:i+1], 31, sigma)[...,16:-16,16:-16]
        assert torch.allclose(ours[i:i+1,:,16:-16,16:-16], theirs, atol=1e-4)

def test_warp_turns_a_rectangle_without_shearing_it():
    x = torch.zeros(1,1,24,48); x[...,12,18:30] = 1                         # a horizontal bar, 12 pixels long
    upright = warp(x, rotation=90)[0,0]
    assert upright[:,23:25].sum() > .95*x.sum() and abs((upright.sum(1) > .5).sum() - 12) <= 1

def test_warp_shifts_and_magnifies_by_its_number():
    x = images(2, size=20)
    assert torch.allclose(warp(x, shift_y=3/20)[:,:,3:], x[:,:,:-3], atol=1e-4)
    back = warp(warp(blur(x, .1), scale=.1), scale=-.1)[...,4:-4,4:-4]
    assert (back - blur(x, .1)[...,4:-4,4:-4]).abs().max() < .02

def test_noise_has_its_standard_deviation():
    x = torch.full((2,1,100,100), .5)
    for sd,n in zip((.02,.1), noise(x, torch.tensor([.02,.1]), streams([1,2]))):
        assert abs((n-.5).std()-sd) < .03*sd

def test_ranges_bound_the_parameters():
    x = images(4, size=28)
    none = dict.fromkeys(RANGES, 0.)
    assert torch.allclose(perturb(x, ranges=none), x, atol=1e-4)
    assert torch.allclose(perturb(x, ranges=none | dict(brightness=.3)),
                          perturb(x, 3, ranges=none | dict(brightness=.1)), atol=1e-5)
    assert (perturb(x, ranges=none | dict(brightness=.1))-x).abs().max() < .1+1e-4

@pytest.mark.parametrize('kwargs,field,said', [
    (dict(strength=-1), 'strength', ''), (dict(strength=math.nan), 'strength', ''),
    (dict(kinds=('motion',)), 'kind of perturbation', 'motion'),
    (dict(kinds='blurr'), 'kind of perturbation', 'blurr'), (dict(ranges=dict(angle=3)), 'range', 'angle'),
    (dict(ranges=dict(noise=-.1)), 'range noise', '-0.1'), (dict(bs=0), 'bs', 'at least 1'),
    (dict(bs=2.5), 'bs', '2.5'), (dict(x=images()*2-1), 'images', '[0, 1]'),
    (dict(x=images()[0]), 'images', '1×12×12'), (dict(x=images()[:0]), 'images', 'at least one'),
    (dict(x=(images()*255).byte()), 'images', 'torch.uint8'), (dict(x=images()/0), 'images', 'NaN')])
def test_bad_input_to_perturb(kwargs, field, said):
    with refused(field, said, found=... if said else kwargs[field]): perturb(**dict(x=images()) | kwargs)


# What an attack climbs

@pytest.mark.parametrize('C', [2,3,7])
def test_log_odds_are_cross_entropy_in_disguise(C):
    logits, y = 5*torch.randn(40, C, generator=torch.Generator().manual_seed(C)), labels(40, C)
    assert torch.allclose(F.softplus(attack_loss(logits, y)), F.cross_entropy(logits, y, reduction='none'),
                          atol=1e-5)
    l64 = logits[:4].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda l: attack_loss(l, y[:4]), l64)
    ours, usual = (torch.autograd.grad(f(l64).sum(), l64)[0] for f in (
        lambda l: attack_loss(l, y[:4]), lambda l: F.cross_entropy(l, y[:4], reduction='none')))
    assert torch.equal(ours.sign(), usual.sign())

def test_several_labels_sum_their_cross_entropies():
    logits, y = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), several(40, 5)
    assert torch.allclose(attack_loss(logits, y, MULTI),
                          F.binary_cross_entropy_with_logits(logits, y, reduction='none').sum(1), atol=1e-5)
    assert torch.autograd.gradcheck(lambda l: attack_loss(l, y[:4].double(), MULTI),
                                    logits[:4].double().requires_grad_())

@tasks
def test_image_gradient_against_finite_differences(task):
    model, x = curved(3).double().eval(), images(2, size=8, dtype=torch.float64)
    y = several(2).double() if task == MULTI else labels(2, 3)
    g = loss_and_gradient(model, x, y, task)[2]
    for i in torch.randint(x[0].numel(), (10,), generator=torch.Generator().manual_seed(1)):
        d = torch.zeros_like(x).flatten(1); d[:,i] = 1e-6
        d = d.view_as(x)
        slope = (attack_loss(model(x+d), y, task) - attack_loss(model(x-d), y, task))/2e-6
        assert torch.allclose(g.flatten(1)[:,i], slope, rtol=1e-5, atol=1e-8)

@pytest.mark.parametrize('factor', [1e-6, 1, 1e6])
def test_scaled_logits_hide_nothing(factor):
    "Cross-entropy of a scaled network rounds to 0 and has no gradient; the attack must not notice"
    class Scaled(nn.Module):
        def __init__(self): super().__init__(); self.net = linear(seed=3)
        def forward(self, x): return factor*self.net(x)
    x = images(20)
    y = predict(linear(seed=3), x).argmax(1)
    assert (predict(Scaled(), pgd(Scaled(), x, y, .2)).argmax(1) != y).all()


# The box

@settings(max_examples=25)
@given(eps=st.floats(0, 1), seed=st.integers(0, 5), C=st.sampled_from([2,4]),
       task=st.sampled_from(['multi-class',MULTI]))
def test_attacks_stay_in_the_box_and_in_range(eps, seed, C, task):
    model, x = curved(C, seed=seed), images(seed=seed).round(decimals=1)
    y = several(6, C) if task == MULTI else labels(6, C)
    for adv in (fgsm(model, x, y, eps, task), pgd(model, x, y, eps, steps=3, restarts=2, task=task)):
        assert (adv-x).abs().max() <= eps+1e-6 and adv.min() >= 0 and adv.max() <= 1 and adv.shape == x.shape

@pytest.mark.parametrize('attack', [fgsm, pgd])
def test_no_radius_no_change(attack):
    x = images()
    assert torch.equal(attack(curved(), x, labels(), 0), x)
    assert torch.equal(attack(curved(3), x, several(), 0., task=MULTI), x)

@pytest.mark.parametrize('eps', [1/255, .1, .7, 1])
def test_closed_form_on_a_linear_model(eps):
    model, x, y = linear(), images(30), labels(30)
    w = model[1].weight.detach()
    best = (x + eps*((w[1]-w[0])*(1-2*y[:,None])).sign().view_as(x)).clamp(0, 1)
    assert torch.equal(fgsm(model, x, y, eps), best)
    assert torch.allclose(loss(model, pgd(model, x, y, eps), y), loss(model, best, y), atol=1e-5)
    # nothing in the box is worse
    other = torch.rand(200, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    inside = (x[:1] + eps*(2*other-1).sign()).clamp(0, 1)
    assert (loss(model, inside, y[:1].expand(200)) <= loss(model, best[:1], y[:1])+1e-5).all()

def test_closed_form_for_several_labels():
    "A linear model whose labels look at separate pixels: each pixel moves against its own label"
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3, bias=False))
    w = torch.zeros(3, 144); w[0,:48], w[1,48:96], w[2,96:] = 1, -1, .5
    model[1].weight.data = w
    x, y = images(10), several(10)
    best = (x + .1*((1-2*y)@w).sign().view_as(x)).clamp(0, 1)
    assert torch.equal(fgsm(model, x, y, .1, task=MULTI), best)
    assert torch.allclose(loss(model, pgd(model, x, y, .1, task=MULTI), y, MULTI),
                          loss(model, best, y, MULTI), atol=1e-5)

@tasks
def test_more_never_helps_the_defender(task):
    model, x = curved(3), images(30)
    y = several(30) if task == MULTI else labels(30, 3)
    mean = lambda **kw: loss(model, pgd(model, x, y, **dict(eps=.05, task=task) | kw), y, task).mean()
    by_eps = [mean(eps=e) for e in (0,.01,.02,.05,.1,.2)]
    assert by_eps == sorted(by_eps)
    if task == MULTI: assert mean(restarts=3, steps=2) >= mean(steps=2)
    else:
        fooled = [predict(model, pgd(model, x, y, .02, steps=2, restarts=r)).argmax(1) != y for r in (1,4)]
        assert (fooled[1] | ~fooled[0]).all()
    assert mean(random_start=False) >= loss(model, fgsm(model, x, y, .05, task), y, task).mean() - 1e-3

def test_a_wrong_prediction_is_worse_than_a_larger_loss():
    "Three classes: the log-odds can be larger where the prediction is still right"
    image = lambda v: torch.full((1,1,1,1), v)
    wrong = image(.1), torch.tensor([.1]), torch.tensor([True])
    right = image(.2), torch.tensor([.5]), torch.tensor([False])
    assert keep_worse(wrong, right)[0] == .1 and keep_worse(right, wrong)[0] == .1
    assert torch.tensor([[1., .9, .9]]).argmax() == 0
    assert attack_loss(torch.tensor([[1., .9, .9]]), torch.tensor([0])) > 0

def test_attack_of_an_image_does_not_depend_on_the_batch():
    model, x, y = curved(), images(11), labels(11)
    full = pgd(model, x, y, .05, restarts=2)
    for part in (pgd(model, x[:4], y[:4], .05, restarts=2), pgd(model, x, y, .05, restarts=2, bs=4)[:4]):
        assert (part-full[:4]).abs().max() < 1e-5
    assert torch.equal(pgd(model, x, y, .05, restarts=2), full)
    assert not torch.equal(pgd(model, x, y, .05, restarts=2, seed=1), full)

def test_float64_stays_float64():
    x = images(dtype=torch.float64)
    assert pgd(curved().double(), x, labels(), .1, steps=2).dtype == perturb(x).dtype == torch.float64


# The model is left as it was

class Restless(nn.Module):
    "Draws random numbers, counts its calls in a buffer, and raises at one of them"
    def __init__(self, fail=None):
        super().__init__()
        self.net, self.fail = curved(), fail
        self.register_buffer('calls', torch.zeros(()))
    def forward(self, x):
        self.calls += 1
        if self.fail is not None and self.calls > self.fail: raise RuntimeError('lost the device')
        return self.net(x) + 0*torch.rand(())

def snapshot(model):
    return ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()],
            [torch.get_rng_state(), *[v.clone() for v in model.state_dict().values()],
             *[torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]])

def many_steps(*args): return pgd(*args, steps=3, restarts=2)

@pytest.mark.parametrize('attack,fail', [(fgsm,None), (fgsm,0), (many_steps,None), (many_steps,0),
                                         (many_steps,3)])
@pytest.mark.parametrize('context', [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(attack, fail, context):
    model, x, y = Restless(fail=None), images(), labels()
    F.cross_entropy(model(x), y).backward()
    model.calls.zero_(); model.fail = fail
    model.train(); model.net[1].eval()
    model.net[0].weight.requires_grad_(False); model.net[6].bias.grad = None
    before = snapshot(model)
    with context(), nullcontext() if fail is None else pytest.raises(RuntimeError, match='lost the device'):
        attack(model, x, y, .1)
    after = snapshot(model)
    assert before[:2] == after[:2] and all(torch.equal(a, b) for a,b in zip(before[2], after[2]))
    assert torch.equal(x, images()) and not x.requires_grad

def test_dropout_is_off():
    "With dropout on, two attacks with the same seed would differ"
    model = curved().train()
    assert torch.equal(*[pgd(model, images(), labels(), .1) for _ in range(2)])


# What cannot be attacked

@pytest.mark.parametrize('kwargs,field,said', [
    (dict(eps=-.1), 'eps', ''), (dict(eps=math.nan), 'eps', ''), (dict(eps=4), 'eps', ''),
    (dict(steps=0), 'steps', ''), (dict(steps=2.5), 'steps', ''), (dict(restarts=0), 'restarts', ''),
    (dict(bs=0), 'bs', ''), (dict(step_size=0), 'step_size', ''), (dict(step_size=math.inf), 'step_size', ''),
    (dict(x=images()*3), 'images', '[0, 1]'), (dict(y=labels(5)), 'labels', '(5,)'),
    (dict(y=labels().float()), 'labels', 'torch.float32'), (dict(y=labels()[:,None]), 'labels', '(6, 1)'),
    (dict(y=several()), 'labels', "task='multi-label, binary-class'"),
    (dict(task=MULTI), 'labels', 'float zeros and ones'), (dict(task=MULTI, y=several()/2), 'labels', '0.5'),
    (dict(task=MULTI, y=several().long()), 'labels', 'torch.int64'),
    (dict(task=MULTI, y=several()), 'labels', 'of shape (6, 2)'), (dict(y=labels()+5), 'labels', '0 to 1'),
    (dict(y=labels()-1), 'labels', 'from -1 to'), (dict(model=linear(1)), 'classifier', 'at least 2'),
    (dict(model=nn.Sequential(linear(), nn.Threshold(1e9, math.nan))), 'model', '6 of 6'),
    (dict(model=nn.Sequential(linear(), nn.Threshold(1e9, math.inf))), 'model', '6 of 6')])
def test_bad_input_to_pgd(kwargs, field, said):
    with refused(field, said, found=... if said else kwargs[field]):
        pgd(**dict(model=linear(), x=images(), y=labels(), eps=.1) | kwargs)

@pytest.mark.parametrize('attack', [fgsm, pgd])
def test_a_model_without_a_gradient_is_refused(attack):
    class Cut(nn.Module):
        def __init__(self): super().__init__(); self.net = linear()
        def forward(self, x): return self.net(x.detach())
    with refused('model'):
        attack(Cut(), images(), labels(), .1)
    with refused('eps', found=-1): attack(linear(), images(), labels(), -1)


# The table

@pytest.mark.parametrize('task,C', [
    ('binary-class',2), ('multi-class',5), ('ordinal-regression',4), (MULTI,3)])
@pytest.mark.parametrize('ch,size', [(1,28), (3,28), (3,64)])
def test_table_for_every_task_and_shape(task, C, ch, size):
    x = images(16, ch, size)
    y = several(16, C) if task == MULTI else torch.arange(16)%C
    table = robustness_table(small_resnet(ch, C), x, y, task, eps=(2/255,), steps=2)
    assert list(table) == ['clean','perturbed','PGD 2/255']
    for row in table.values():
        assert row['n'] == 16 and 0 <= row['accuracy'] <= 1 and 0 <= row['balanced_accuracy'] <= 1
    assert table['PGD 2/255']['accuracy'] <= table['clean']['accuracy'] or task == MULTI

def test_table_on_a_stratified_subset():
    x, y, calls = images(40), torch.tensor([0]*32 + [1]*8), []
    kw = dict(eps=(0.,.1), attack_n=10, steps=3, restarts=2, strengths=(.5,1.), seed=3)
    table = robustness_table(curved(), x, y, 'binary-class',
                             progress=lambda done, total: calls.append((done,total)), **kw)
    assert list(table) == ['clean','perturbed ×0.5','perturbed','PGD 0/255','PGD 25.5/255']
    assert [r['n'] for r in table.values()] == [40,40,40,10,10]
    assert calls[-1][0] == calls[-1][1] and all(a[0] < b[0] for a,b in zip(calls, calls[1:]))
    i = stratified_order(y, 3)[:10]
    assert y[i].sum() == 2 and strata(y[i]).unique().tolist() == [0,1]
    assert abs(table['PGD 0/255']['accuracy']
               - (predict(curved(), x[i]).argmax(1) == y[i]).float().mean()) < 1e-6
    assert robustness_table(curved(), x, y, 'binary-class', **kw) == table

def test_table_shows_the_time_left(capsys):
    robustness_table(linear(), images(), labels(), 'binary-class', eps=(.1,), steps=1, progress=True)
    assert 'robustness: 100%' in capsys.readouterr().err

def test_ladder_counts_what_a_linear_model_must_lose():
    model, x, eps = linear(), .2+.6*images(60), (.01,.005,.02)
    w, b = model[1].weight[1]-model[1].weight[0], model[1].bias[1]-model[1].bias[0]
    margin = x.flatten(1)@w + b
    y = (margin > 0).long()
    table = robustness_table(model, x, y, 'binary-class', eps=eps, steps=5, strengths=(), bs=16, ladder=True)
    # a box moves the margin by ε‖w‖₁
    want = [(margin.detach().abs() > e*w.abs().sum()).float().mean().item() for e in sorted(eps)]
    assert [table[f'PGD {255*e:.3g}/255']['accuracy'] for e in sorted(eps)] == pytest.approx(want)
    assert want[0] > want[1] > want[2]

def test_first_rung_is_the_attack_and_no_rung_is_higher():
    model, x, y = curved(), images(50, seed=2), labels(50)
    kw = dict(steps=4, seed=5, strengths=())
    ladder = robustness_table(model, x, y, 'binary-class', eps=(.1,.2,.4), ladder=True, **kw)
    alone = robustness_table(model, x, y, 'binary-class', eps=(.1,), **kw)
    for k in ('accuracy','balanced_accuracy'):
        assert ladder['PGD 25.5/255'][k] == pytest.approx(alone['PGD 25.5/255'][k])
    a = [r['accuracy'] for r in ladder.values()]
    assert a == sorted(a, reverse=True) and a[0] > a[-1]
    assert list(ladder) == ['clean','PGD 25.5/255','PGD 51/255','PGD 102/255']
    nothing = robustness_table(model, x, y, 'binary-class', eps=(0.,), ladder=True, **kw)['PGD 0/255']
    assert nothing['accuracy'] == pytest.approx(ladder['clean']['accuracy'])

def test_ladder_goes_on_when_nothing_is_left():
    model, x = linear(), images(20)
    y = predict(model, x).argmax(1)
    a = [r['accuracy'] for r in robustness_table(model, x, y, 'binary-class', eps=(.5,.6,.7), steps=5,
                                                 strengths=(), ladder=True).values()]
    assert a == [1, 0, 0, 0]

@pytest.mark.parametrize('kwargs,field,found', [
    (dict(ladder=True, restarts=2), 'ladder', True), (dict(attack_n=.5), 'attack_n', .5),
    (dict(attack_n=0), 'attack_n', 0), (dict(eps=(.1,-1)), 'eps', -1),
    (dict(strengths=(-1.,)), 'strength', -1), (dict(steps=0), 'steps', 0)])
def test_bad_input_to_the_table_is_found_before_any_work(kwargs, field, found):
    # raises something else as soon as it is called
    model = Restless(fail=0)
    with refused(field, found=found):
        robustness_table(model, images(), labels(), 'binary-class', **kwargs)

@pytest.mark.parametrize('task, ladder', [('multi-class', False), ('multi-class', True), (MULTI, False)])
@pytest.mark.parametrize('attack_n', [None, 25])
def test_what_is_kept_is_what_was_measured(task, ladder, attack_n):
    x, keep = images(40, seed=4), {}
    y = several(40) if task == MULTI else predict(curved(3), x).argmax(1)        # right until it is attacked
    kw = dict(eps=(0.,.03,.1,.2), steps=2, strengths=(1.,2.), attack_n=attack_n, ladder=ladder, bs=16, seed=2)
    table = robustness_table(curved(3), x, y, task, keep=keep, **kw)
    assert table == robustness_table(curved(3), x, y, task, **kw) and list(keep) == list(table)
    for condition, (i, p) in keep.items():
        assert i.dtype == 'int64' and p.dtype == 'float32' and p.shape == (len(i), 3)
        again = metrics(y[i], p, task) | dict(n=len(i))
        assert {k: again[k] for k in table[condition]} == table[condition]
        whole = attack_n is None or condition in ('clean', 'perturbed', 'perturbed ×2')
        assert i.tolist() == (list(range(40)) if whole else stratified_order(y, 2)[:25].tolist())
    i, p = keep['PGD 0/255']
    assert torch.equal(torch.from_numpy(p), predict(curved(3), x[i], bs=16).softmax(1)) or task == MULTI
    if ladder: assert 1 == table['PGD 0/255']['accuracy'] > table['PGD 7.65/255']['accuracy'] > 0

def test_a_lost_image_keeps_the_place_where_it_fell():
    "A linear model: who stands ends in a corner of the box; who falls is beyond the border, and stays"
    model, x, eps, keep = linear(seed=1), .2+.6*images(40), (.005,.01,.02), {}
    w, b = model[1].weight[1]-model[1].weight[0], model[1].bias[1]-model[1].bias[0]
    margin = (x.flatten(1)@w + b).detach()
    y = (margin > 0).long()
    table = robustness_table(model, x, y, 'binary-class', eps=eps, steps=5, ladder=True, keep=keep)
    p = torch.tensor([keep[k][1].tolist() for k in list(table)[2:]])[:,range(40),y]      # of the true class
    corner = torch.stack([(margin.abs() - e*w.detach().abs().sum()).sigmoid() for e in eps])
    lost = p < .5
    assert torch.equal(lost, corner < .5) and 0 < lost[0].sum() < lost[1].sum() < lost[2].sum() < 40
    assert torch.allclose(p[~lost], corner[~lost], atol=1e-5) and (p[lost] >= corner[lost]-1e-5).all()
    assert torch.equal(p[1:][lost[:-1]], p[:-1][lost[:-1]])                  # it is not attacked again

def test_no_ladder_for_several_labels():
    with refused('ladder', 'several labels'):
        robustness_table(linear(3), images(), several(), MULTI, ladder=True)

def test_real_images(medmnist_root):
    data = load_data('breastmnist', medmnist_root)
    x, y = data.test.batch(range(40))
    assert (perturb(x)-x).abs().mean() < .15
    model = linear(size=28)
    table = robustness_table(model, x, y, data.task, eps=(1/255,8/255))
    assert table['PGD 8/255']['accuracy'] <= table['PGD 1/255']['accuracy'] <= table['clean']['accuracy']
