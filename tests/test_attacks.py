"""Attacks: closed forms, balls, what is kept, which predictor, and a check that finds hidden gradients."""
import math
from types import SimpleNamespace

import numpy as np
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from refused import refused
from tsynd.robustness import keep_worse, loss_and_gradient
from tsynd.robustness.attack_kinds import _look_back, _with_square
from tsynd.robustness.masking import _findings
from tsynd.robustness import (
    attack_suite, ATTACKS, checkpoints, margin, masking_check, Predictor, predictor_name, project_l2,
    relative_margin, square_side, worst_case)
from tsynd.models import MCDropout, predict, small_resnet, train_classifier
from tsynd.core import as_task, seeded
from tsynd.data import phantom
from tsynd.robustness import attack_loss

MULTI = 'multi-label, binary-class'
tasks = pytest.mark.parametrize('task', ['multi-class', MULTI])
LINF = [n for n,a in ATTACKS.items() if a.norm == 'Linf']


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

def split(C=3, n=40, dtype=torch.float32):
    "Images, a curved network that is undecided about them on average, and its answers"
    model, x = curved(C, seed=1).to(dtype), images(n, dtype=dtype)
    with torch.no_grad(): model[6].bias -= predict(model, x).mean(0)
    return model, x, right(model, x)

def right(model, x, task='multi-class'):
    "Labels that the model gets all right"
    logits = predict(model, x)
    return (logits > 0).float() if task == MULTI else logits.argmax(1)

def odds(model, x, y): return attack_loss(predict(model, x), y)

def wrong(model, x, y, task='multi-class'): return as_task(task).wrong_share(predict(model, x), y)

class Wrapped(nn.Module):
    "A network with something before or behind it"
    def __init__(self, net, before=None, behind=None):
        super().__init__(); self.net,self.before,self.behind = net,before,behind
    def forward(self, x):
        out = self.net(self.before(x) if self.before else x)
        return self.behind(out) if self.behind else out

def rounded(net): return Wrapped(net, before=lambda x: (x*15).round()/15)


# The predictor

@tasks
def test_mean_logits_are_those_of_the_mean(task):
    draws = 5*torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = (lambda l: l.sigmoid()) if task == MULTI else (lambda l: l.softmax(-1))
    assert torch.allclose(p(as_task(task).mean_logits(draws)), p(draws).mean(0))
    assert torch.isfinite(as_task(task).mean_logits(draws.float()*100)).all()

@tasks
def test_gradient_of_the_mean_is_the_mean_of_the_gradients(task):
    "The masks are taken from the classifier's own draws, the rest is computed by hand, one draw at a time"
    model, x, T = curved(3).double().eval(), images(4, dtype=torch.float64).requires_grad_(), 5
    y = several(4).double() if task == MULTI else labels(4, 3)
    p = torch.sigmoid if task == MULTI else lambda l: l.softmax(-1)
    with MCDropout(model, T, seed=3) as mc:
        mc(x.detach())
        (mask,) = mc.masks.values()
    def draw(t): return p(model[6](model[:5](x)*mask[t]))
    mean = torch.stack([draw(t) for t in range(T)]).mean(0).detach().requires_grad_()
    logit = mean.logit() if task == MULTI else mean.log()
    v = torch.autograd.grad(attack_loss(logit, y, task).sum(), mean)[0]
    by_hand = torch.stack([torch.autograd.grad((draw(t)*v).sum(), x)[0] for t in range(T)]).mean(0)
    g = loss_and_gradient(Predictor(model, T, 3, task), x, y, task)[2]
    assert torch.allclose(g, by_hand, rtol=1e-6, atol=1e-12) and g.abs().max() > 0

def test_predictor_is_a_function_of_the_image_in_any_mode():
    model, x = curved().train(), images()
    for T in (0, 4):
        p = Predictor(model, T)
        assert torch.equal(p(x), p(x)) and model.training
        assert torch.allclose(p(x).detach(), predict(p, x), atol=1e-6)
    assert torch.equal(predict(Predictor(model), x), predict(model, x))
    assert not torch.allclose(predict(Predictor(model, 4), x), predict(Predictor(model, 4, seed=1), x))
    assert [predictor_name(m) for m in (model, Predictor(model), Predictor(model, 4))] == [
        'dropout off', 'dropout off', 'mean of 4 draws']

def test_an_attack_on_the_mean_fools_the_mean():
    model, x, y = split()
    mean, off = Predictor(model, 8), Predictor(model)
    adv = {n: ATTACKS['APGD-CE'](m, x, y, .004, stop=False) for n,m in dict(mean=mean, off=off).items()}
    assert (odds(mean, adv['mean'], y) >= odds(mean, adv['off'], y)-1e-4).all()
    assert (odds(off, adv['off'], y) >= odds(off, adv['mean'], y)-1e-4).all()
    assert not torch.equal(adv['mean'], adv['off'])

@pytest.mark.parametrize('name', ATTACKS)
@tasks
def test_every_attack_works_on_every_predictor(name, task):
    model, x = curved(3), images()
    y = several() if task == MULTI else labels(6, 3)
    for T in (0, 3):
        p = Predictor(model, T, task=task)
        adv = ATTACKS[name](p, x, y, .1, steps=5, task=task)
        assert adv.shape == x.shape and (wrong(p, adv, y, task) >= wrong(p, x, y, task)).all()


# What is climbed

@pytest.mark.parametrize('C', [2,3,4,9])
def test_margin_is_positive_where_wrong(C):
    logits = 3*torch.randn(60, C, generator=torch.Generator().manual_seed(C), dtype=torch.float64)
    y = labels(60, C)
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)
    assert torch.equal(relative_margin(logits, y) > 0, logits.argmax(1) != y)
    assert torch.allclose(relative_margin(1e3*logits-7, y), relative_margin(logits, y)*(1e3 if C == 2 else 1))
    assert torch.isfinite(relative_margin(torch.zeros(3, C), labels(3, C))).all()
    for f in (margin, relative_margin):
        assert torch.autograd.gradcheck(lambda l: f(l, y[:4]), logits[:4].requires_grad_())

def test_margin_of_two_classes_is_the_log_odds():
    logits, y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), labels(20)
    for f in (margin, relative_margin): assert torch.allclose(f(logits, y), attack_loss(logits, y), atol=1e-6)

def test_difference_of_logits_ratio_by_hand():
    logits = torch.tensor([[5.,3.,1.,0.]])
    assert relative_margin(logits, torch.tensor([0])).item() == pytest.approx((3-5)/(5-1))
    assert relative_margin(logits, torch.tensor([2])).item() == pytest.approx((5-1)/(5-1))

@pytest.mark.parametrize('C', [1,2,5])
def test_margin_of_several_labels(C):
    logits, y = torch.randn(40, C, generator=torch.Generator().manual_seed(0)), several(40, C)
    m = margin(logits, y, MULTI)
    assert torch.allclose(margin(100*logits, y, MULTI), m, atol=1e-5) and (m.abs() <= C).all()
    assert torch.isfinite(margin(logits*0, y, MULTI)).all()
    # the label near the border pulls hardest
    near = torch.tensor([[.1,3.,-3.]], requires_grad=True)
    g = torch.autograd.grad(margin(near, torch.tensor([[1.,1.,1.]]), MULTI).sum(), near)[0]
    assert g.argmin() == 0 and (g < 0).all()

def test_share_of_wrong_decisions():
    assert as_task(MULTI).wrong_share(torch.tensor([[1.,-1.,2.,3.]]),
                                      torch.tensor([[1.,1.,0.,1.]])).item() == .5
    assert as_task('multi-class').wrong_share(torch.tensor([[1.,2.],[2.,1.]]),
                                              torch.tensor([0,0])).tolist() == [1,0]

def test_more_wrong_decisions_are_worse_than_a_larger_loss():
    def image(v): return torch.full((1,1,1,1), v)
    a = image(.1), torch.tensor([9.]), torch.tensor([.5])
    b = image(.2), torch.tensor([1.]), torch.tensor([1.])
    assert keep_worse(a, b)[0] == keep_worse(b, a)[0] == image(.2)
    c = image(.3), torch.tensor([2.]), torch.tensor([1.])
    assert keep_worse(b, c)[0] == keep_worse(c, b)[0] == image(.3)


# Closed forms

@pytest.mark.parametrize('eps', [1/255, .05, .4])
def test_gradient_attacks_find_the_worst_image_of_a_linear_model(eps):
    model, x = linear(), images(30)
    y = labels(30)
    w = model[1].weight.detach()
    best = (x + eps*((w[1]-w[0])*(1-2*y[:,None])).sign().view_as(x)).clamp(0, 1)
    for name in ('FGSM','PGD','APGD-CE','APGD-margin'):
        assert torch.allclose(odds(model, ATTACKS[name](model, x, y, eps, stop=False), y),
                              odds(model, best, y), atol=1e-5), name

def test_square_nearly_finds_it():
    model, x, y = linear(), images(20), labels(20)
    w = model[1].weight.detach()
    best = (x + .05*((w[1]-w[0])*(1-2*y[:,None])).sign().view_as(x)).clamp(0, 1)
    def share(q):
        part = odds(model, ATTACKS['Square'](model, x, y, .05, steps=q, stop=False), y) - odds(model, x, y)
        return (part/(odds(model, best, y) - odds(model, x, y))).mean().item()
    assert share(2000) > .9 > share(200) > share(20)

def test_closed_form_for_several_labels():
    "Labels that look at separate pixels: each pixel moves against its own label, whatever the loss"
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3, bias=False))
    w = torch.zeros(3, 144); w[0,:48], w[1,48:96], w[2,96:] = 1, -1, .5
    model[1].weight.data = w
    x, y = images(10), several(10)
    best = (x + .1*((1-2*y)@w).sign().view_as(x)).clamp(0, 1)
    for name in ('FGSM','PGD','APGD-CE','APGD-margin'):
        adv = ATTACKS[name](model, x, y, .1, task=MULTI, stop=False)
        assert torch.equal(wrong(model, adv, y, MULTI), wrong(model, best, y, MULTI)), name
        if name != 'APGD-margin':
            assert torch.allclose(attack_loss(predict(model, adv), y, MULTI),
                                  attack_loss(predict(model, best), y, MULTI), atol=1e-4)

@pytest.mark.parametrize('eps', [.1, 1., 5.])
@pytest.mark.parametrize('ch', [1, 3])
def test_worst_image_in_the_l2_ball(eps, ch):
    "x + λw clipped, with λ such that the length is eps; λ is found by bisection on the length"
    model, x, y = linear(ch=ch).double(), images(12, ch, dtype=torch.float64), labels(12)
    w = model[1].weight.detach()
    d = ((w[1]-w[0])*(1-2*y[:,None])).view_as(x)
    low = torch.zeros(12, 1, 1, 1, dtype=torch.float64)
    high = torch.full((12, 1, 1, 1), 1e5, dtype=torch.float64)
    for _ in range(100):
        mid = (low+high)/2
        short = ((x+mid*d).clamp(0, 1)-x).flatten(1).norm(dim=1) <= eps
        short = short[:,None,None,None]
        low, high = torch.where(short, mid, low), torch.where(short, high, mid)
    best = (x+low*d).clamp(0, 1)
    adv = ATTACKS['PGD-L2'](model, x, y, eps, stop=False)
    rise = (odds(model, adv, y)-odds(model, x, y))/(odds(model, best, y)-odds(model, x, y))
    assert (rise <= 1+1e-6).all() and (rise > .998).all()

def test_projection_is_the_nearest_point():
    x, z = images(8), images(8, seed=1)*3-1
    p = project_l2(x, z, 1.5)
    assert p.min() >= 0 and p.max() <= 1 and ((p-x).flatten(1).norm(dim=1) <= 1.5+1e-5).all()
    noise = torch.randn(320, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    others = project_l2(x.repeat(40,1,1,1), p.repeat(40,1,1,1) + .1*noise, 1.5)
    near, far = (p-z).flatten(1).norm(dim=1), (others-z.repeat(40,1,1,1)).flatten(1).norm(dim=1)
    assert (near.repeat(40) <= far+1e-4).all()
    assert torch.equal(project_l2(x, x, 0.), x) and torch.allclose(project_l2(x, p, 1.5), p, atol=1e-6)


# The balls

@settings(max_examples=15)
@given(eps=st.floats(0, 1), seed=st.integers(0, 5), C=st.sampled_from([2,4]),
       task=st.sampled_from(['multi-class',MULTI]), name=st.sampled_from(list(ATTACKS)))
def test_attacks_stay_in_ball_and_range(eps, seed, C, task, name):
    model, x = curved(C, seed=seed), images(seed=seed).round(decimals=1)
    y = several(6, C) if task == MULTI else labels(6, C)
    adv = ATTACKS[name](model, x, y, eps, steps=4, restarts=2, seed=seed, task=task, stop=False)
    d = (adv-x).flatten(1)
    assert adv.min() >= 0 and adv.max() <= 1
    assert (d.abs().max() if name in LINF else d.norm(dim=1).max()) <= eps+1e-5

@pytest.mark.parametrize('name', ATTACKS)
def test_what_is_wrong_already_stays_as_it_is(name):
    model, x = curved(), images(20)
    y = right(model, x); y[::2] = 1-y[::2]
    adv = ATTACKS[name](model, x, y, .1, steps=3)
    assert torch.equal(adv[::2], x[::2]) and torch.equal(ATTACKS[name](model, x, y, 0), x)
    assert (wrong(model, adv, y) >= wrong(model, x, y)).all()

@pytest.mark.parametrize('name', ATTACKS)
def test_stopping_changes_no_decision(name):
    model, x, y = split(dtype=torch.float64)
    eps = .02 if name in LINF else .12
    stopped, on = (ATTACKS[name](model, x, y, eps, steps=20, stop=s) for s in (True, False))
    assert torch.equal(wrong(model, stopped, y), wrong(model, on, y)) and 0 < wrong(model, on, y).mean() < 1
    if ATTACKS[name].objective is attack_loss:
        assert (odds(model, on, y) >= odds(model, stopped, y)-1e-9).all()

@pytest.mark.parametrize('name', ['APGD-CE','APGD-margin','Square'])
def test_finished_images_cost_nothing(name):
    (model, x, y), seen = split(2, 20), []
    y[1:] = 1-y[1:]
    ATTACKS[name](model, x, y, 1e-6, steps=10, tick=seen.append)
    assert seen[0] == 20 and set(seen[1:]) == {1}

@tasks
@pytest.mark.parametrize('name', ATTACKS)
def test_an_image_is_attacked_as_if_it_were_alone(name, task):
    model, x = curved(3).double(), images(7, dtype=torch.float64)
    y = several(7).double() if task == MULTI else right(model, x)
    # out from the start; the others keep their streams
    if task != MULTI: y[1] = (y[1]+1) % 3
    kw = dict(steps=8, task=task, restarts=2)
    full = ATTACKS[name](model, x, y, .02, **kw)
    for other in (ATTACKS[name](model, x, y, .02, bs=3, **kw),
                  torch.cat([ATTACKS[name](model, x[:2], y[:2], .02, **kw), full[2:]])):
        assert (other-full).abs().max() < 1e-9
    assert torch.equal(ATTACKS[name](model, x, y, .02, **kw), full)
    if name in ('PGD','APGD-CE','Square'):
        assert not torch.equal(ATTACKS[name](model, x, y, .02, seed=1, **kw), full)

@pytest.mark.parametrize('name', ['PGD','APGD-CE','APGD-margin','Square','PGD-L2'])
def test_more_never_helps_the_defender(name):
    (model, x, y), unit = split(), 1 if name in LINF else 6
    def left(eps=.02, **kw):
        return 1-wrong(model, ATTACKS[name](model, x, y, eps*unit, **kw), y).mean().item()
    by_steps = [left(steps=k) for k in (1,4,16,64)]
    assert by_steps[-1] <= by_steps[0] and all(b <= a+.026 for a,b in zip(by_steps, by_steps[1:]))
    by_eps = [left(e, steps=20) for e in (0,.005,.01,.02,.04)]
    assert by_eps == sorted(by_eps, reverse=True) and by_eps[0] == 1
    once, thrice = (wrong(model, ATTACKS[name](model, x, y, .02*unit, steps=3, restarts=r), y) for r in (1,3))
    assert (thrice >= once).all()

def test_apgd_needs_no_step_length():
    "On a curved model it climbs at least as high as PGD with its usual steps, with as many passes"
    model, x, y = split()
    ours, plain = (odds(model, ATTACKS[n](model, x, y, .1, steps=50, stop=False), y).mean()
                   for n in ('APGD-CE','PGD'))
    assert ours >= plain-1e-3

def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22,41,57,70,80,87,93,99] and checkpoints(1) == [1]
    for n in (2,10,33,1000):
        assert (checkpoints(n) == sorted(set(checkpoints(n))) and 1 <= checkpoints(n)[0]
                and checkpoints(n)[-1] <= n)

def test_apgd_halves_steps_that_bring_nothing():
    "A parabola along one pixel: a step that is too long jumps across the top for ever"
    class Parabola(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(()))
        def forward(self, x): return torch.stack([(x.flatten(1)[:,0]-.537)**2*self.w, x.flatten(1)[:,0]*0], 1)
    x, y = torch.full((1,1,1,1), .5), torch.tensor([0])
    adv = ATTACKS['APGD-CE'](Parabola(), x, y, .2, steps=100)
    assert abs(adv.item()-.537) < 2e-3 < abs(ATTACKS['FGSM'](Parabola(), x, y, .2).item()-.537)

def test_apgd_goes_on_from_the_best():
    "Two images: the loss of the first rose in three steps of four, that of the second in one"
    def image(*v): return torch.tensor(v).view(2,1,1,1)
    s = SimpleNamespace(z=image(.1,.2), old=image(.3,.4), g=image(1.,1.), step=image(.8,.8),
                        top_z=image(.5,.6), top_g=image(2.,2.),
                        loss=torch.tensor([1.,1.]), top_loss=torch.tensor([3.,3.]),
                        rises=torch.tensor([3.,1.]), then=torch.tensor([0.,0.]),
                        cut=torch.tensor([False,False]))
    _look_back(s, 4)
    def seen(): return [v.flatten().tolist() for v in (s.step, s.z, s.old, s.g, s.loss)]
    assert seen() == [v.flatten().tolist() for v in (image(.8,.4), image(.1,.6), image(.3,.6), image(1.,2.),
                                                     torch.tensor([1.,3.]))]
    assert s.cut.tolist() == [False,True] and s.rises.tolist() == [0,0] and s.then.tolist() == [3,3]
    s.rises = torch.tensor([4.,4.])
    # nothing better since: halved, unless it just was
    _look_back(s, 4)
    assert s.cut.tolist() == [True,False] and s.step.flatten().tolist() == image(.4,.4).flatten().tolist()

def test_squares_shrink_to_pixels_and_lie_inside():
    sides = [square_side(q, 5000, (28,28)) for q in range(1, 5000)]
    assert sides == sorted(sides, reverse=True) and sides[0] == 25 and sides[-1] == 1
    assert square_side(1, 100, (10,40)) <= 10
    area = {q: square_side(q, 10000, (2048,2048))**2/2048**2
            for q in (1,11,51,201,501,1001,2001,4001,6001,8001)}
    # the schedule of the paper
    assert all(abs(a/(.8/2**k)-1) < .02 for k,a in enumerate(area.values()))

def test_a_square_changes_exactly_a_square():
    x = images(5, 3, 9)
    g = torch.Generator().manual_seed(0)
    s = SimpleNamespace(z=x, lo=x-.1, hi=x+.1, at=torch.rand(5, 1, 2, generator=g),
                        up=torch.rand(5, 1, 3, generator=g) > .5)
    new = _with_square(s, 0, 4)
    changed = new != x
    assert (changed.flatten(2).sum(2) == 16).all() and torch.equal(changed[:,0], changed[:,2])
    for c in changed[:,0]:
        assert c.any(0).sum() == c.any(1).sum() == 4 and (c.any(0).nonzero().diff(dim=0) == 1).all()
    s.z = new
    # nothing to change: turned round
    again = _with_square(s, 0, 4)
    assert torch.allclose((again-x)[changed], -(new-x)[changed], atol=1e-6)

def test_square_uses_no_gradient():
    class Detached(nn.Module):
        def __init__(self): super().__init__(); self.net = linear()
        def forward(self, x):
            assert not torch.is_grad_enabled()
            return self.net(x.detach())
    x = images()
    y = right(linear(), x)
    adv = ATTACKS['Square'](Detached(), x, y, .3, steps=100)
    assert torch.equal(adv, ATTACKS['Square'](linear(), x, y, .3, steps=100))
    assert wrong(linear(), adv, y).any()
    for name in set(ATTACKS)-{'Square'}: assert not ATTACKS[name].black_box
    with refused('model', 'Square'):
        ATTACKS['APGD-CE'](Wrapped(linear(), behind=torch.detach), x, y, .1)


# Worst case and suite

@pytest.mark.parametrize('task,C', [
    ('binary-class',2), ('multi-class',5), ('ordinal-regression',4), (MULTI,3)])
@pytest.mark.parametrize('ch', [1, 3])
def test_worst_case_is_the_worst_for_each_image(task, C, ch):
    model, x = small_resnet(ch, C), images(12, ch)
    y = several(12, C) if task == MULTI else torch.arange(12)%C
    keep, calls = {}, []
    rows = attack_suite(model, x, y, task, .05, steps=dict.fromkeys(ATTACKS, 6), keep=keep,
                        progress=lambda a, b: calls.append((a,b)))
    assert [r['attack'] for r in rows] == ['clean', *ATTACKS, 'worst case'] and list(keep) == list(ATTACKS)
    assert calls[-1][0] == calls[-1][1] and all(a[0] < b[0] for a,b in zip(calls, calls[1:]))
    worst = worst_case(model, [x, *(keep[n] for n in LINF)], y, task)
    for n in LINF: assert (wrong(model, worst, y, task) >= wrong(model, keep[n], y, task)).all()
    by = {r['attack']: r for r in rows}
    want = 1-wrong(model, worst, y, task).mean().item()
    assert by['worst case']['accuracy'] == pytest.approx(want, abs=1e-6)
    assert by['worst case']['accuracy'] <= min(by[n]['accuracy'] for n in LINF)
    assert by['clean']['accuracy'] >= max(r['accuracy'] for r in rows)
    for r in rows:
        assert r['n'] == 12 and r['predictor'] == r['attacked'] == 'dropout off' and r['seconds'] >= 0

def test_worst_case_can_be_worse_than_every_attack():
    model, x = linear(), images(20)
    y = right(model, x)
    adv = ATTACKS['PGD'](model, x, y, .2)
    first, second = (torch.where((torch.arange(20)%2 == k)[:,None,None,None], adv, x) for k in (0,1))
    assert torch.equal(worst_case(model, [first, second], y), adv)
    assert wrong(model, adv, y).mean() > .8 > .6 > max(wrong(model, v, y).mean() for v in (first, second))

def test_suite_says_who_was_attacked_and_who_judged():
    model, x, y = curved(seed=1), images(10), labels(10)
    kw = dict(names=('PGD',), steps=dict(PGD=3))
    rows = attack_suite(Predictor(model, 4), x, y, 'binary-class', .02, judge=Predictor(model), **kw)
    assert {(r['attacked'], r['predictor']) for r in rows} == {('mean of 4 draws', 'dropout off')}
    assert rows[0]['accuracy'] == pytest.approx(1-wrong(model, x, y).mean().item(), abs=1e-6)
    upside_down = attack_suite(model, x, right(model, x), 'binary-class', .02,
                               judge=Wrapped(model, behind=torch.neg), **kw)
    assert upside_down[0]['accuracy'] == 0
    mean = attack_suite(Predictor(model, 4), x, y, 'binary-class', .02, **kw)
    assert mean[0]['accuracy'] == pytest.approx(1-wrong(Predictor(model, 4), x, y).mean().item(), abs=1e-6)

def test_suite_twice_is_the_same_and_radii_are_said():
    model, x, y = curved(), images(8), labels(8)
    a, b = ([{k: v for k,v in r.items() if k != 'seconds'}
             for r in attack_suite(model, x, y, 'binary-class', .02, steps=dict.fromkeys(ATTACKS, 4))]
            for _ in range(2))
    assert a == b
    eps = {r['attack']: r['eps'] for r in a}
    assert eps['PGD-L2'] == pytest.approx(.02*12/2) and eps['PGD'] == eps['worst case'] == .02
    only = attack_suite(model, x, y, 'binary-class', .02, eps_l2=.3, names='PGD-L2', steps={'PGD-L2': 2})
    assert [(r['attack'], r['eps']) for r in only] == [('clean', 0), ('PGD-L2', .3)]

def test_the_model_is_left_as_it_was():
    model, x, y = curved().train(), images(), labels()
    model[0].weight.requires_grad_(False)
    before, rng = {k: v.clone() for k,v in model.state_dict().items()}, torch.get_rng_state()
    attack_suite(Predictor(model, 3), x, y, 'binary-class', .02, steps=dict.fromkeys(ATTACKS, 3))
    masking_check(model, x, y, 'binary-class', .02, steps=dict.fromkeys(ATTACKS, 3))
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(m.training for m in model.modules()) and not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    assert all(p.grad is None for p in model.parameters()) and torch.equal(x, images())


# Masking

@pytest.fixture(scope='module')
def trained():
    "A small network, images of the phantom, and their classes"
    data = phantom()
    model = train_classifier(data, epochs=12, lr=4e-3).model
    x, y = data.test.batch(range(100))
    right = predict(model, x).argmax(1) == y
    # it has learned, and not one class only
    assert right.float().mean() > .65 and (y[right] == 0).sum() > 20 < (y[right] == 1).sum()
    i = right.nonzero()[:24,0]
    return model, x[i], y[i]

FEW = {'Square': 100, 'APGD-CE': 10, 'APGD-margin': 5}

def red(found): return {f['finding'] for f in found['findings'] if f['red']}

def test_plain_network_is_green(trained):
    found = masking_check(*trained, 'binary-class', 2/255, steps=FEW)
    assert not found['masked'] and found['verdict'] == 'no sign of gradient masking' and red(found) == set()
    assert (len(found['findings']) == 5 and found['predictor'] == 'dropout off'
            and found['n'] == len(trained[1]))

def test_large_logits_are_no_mask_for_us(trained):
    model, x, y = trained
    steep = Wrapped(model, behind=lambda l: 1e4*l)
    assert not masking_check(steep, x, y, 'binary-class', 2/255, steps=FEW)['masked']

def test_mean_of_draws_is_green(trained):
    model, x, y = trained
    mean = Predictor(model, 8)
    found = masking_check(mean, x, right(mean, x), 'binary-class', 2/255, steps=FEW)
    assert not found['masked'] and found['predictor'] == 'mean of 8 draws'

def test_rounded_input_is_red(trained):
    model, x, y = trained
    net = rounded(model)
    found = masking_check(net, x, right(net, x), 'binary-class', 6/255, steps=FEW)
    assert found['masked'] and {'black box stronger', 'zero gradient'} <= red(found)
    assert 'not to be trusted' in found['verdict']

def test_rippled_input_is_red(trained):
    model, x, y = trained
    net = Wrapped(model, before=lambda x: x + torch.sin(4000*x)/255)
    found = masking_check(net, x, right(net, x), 'binary-class', 4/255, steps=FEW)
    assert found['masked'] and 'zero gradient' not in red(found)
    assert red(found) & {'black box stronger', 'large ε harmless'}

def test_rounded_input_with_several_labels_is_red():
    x, net = images(30), linear(3)
    y = right(rounded(net), x, MULTI)
    steps = {'Square': 100, 'APGD-CE': 10, 'APGD-margin': 10}
    assert red(masking_check(rounded(net), x, y, MULTI, .03, steps=steps)) >= {
        'black box stronger', 'zero gradient'}
    assert not masking_check(net, x, right(net, x, MULTI), MULTI, .03, steps=steps)['masked']

@pytest.mark.parametrize('left,name', [
    (dict(all=.5), 'black box stronger'), (dict(FGSM=.5), 'one step stronger'),
    ({'PGD 10': .5}, 'more steps weaker'), (dict(large=.6), 'large ε harmless'),
    (dict(zero=.2), 'zero gradient')])
def test_each_sign_by_itself(left, name):
    plain = {'FGSM': .7, 'PGD 10': .65, 'PGD 40': .6, 'gradient': .6, 'all': .6, 'large': 0., 'zero': 0.}
    plain |= left
    found = _findings(plain, plain.pop('zero'), .02, .05)
    assert [f['finding'] for f in found if f['red']] == [name]
    assert all(f['value'] <= f['limit']+1e-6 or f['red'] for f in found)

def test_kept_images_are_used_and_must_belong(trained):
    model, x, y = trained[0], trained[1][:8], trained[2][:8]
    keep, first, second = {}, [], []
    attack_suite(model, x, y, 'binary-class', 1/255, steps=FEW, keep=keep)
    a = masking_check(model, x, y, 'binary-class', 1/255, steps=FEW, images=keep,
                      progress=lambda d, t: first.append(t))
    b = masking_check(model, x, y, 'binary-class', 1/255, steps=FEW, progress=lambda d,t: second.append(t))
    assert a == b and first[-1] < second[-1]
    with refused('images'):
        masking_check(model, x, y, 'binary-class', .5/255, images=keep)
    with refused('images'):
        masking_check(model, x[:5], y[:5], 'binary-class', 1/255, images=keep)


def test_the_margin_starts_nowhere_where_the_cross_entropy_did():
    x, y, starts = images()*.5+.25, labels(), {}
    for name in ('APGD-CE','APGD-margin'):
        seen = starts[name] = []
        ATTACKS[name](Wrapped(linear(), before=lambda x: (seen.append(x.detach().clone()), x)[1]), x, y, .1,
                      steps=1, restarts=3, stop=False)
    # neither the images nor corners of the box
    inside = {n: [a for a in v if a.shape == x.shape and .01 < (a-x).abs().mean() < .08]
              for n, v in starts.items()}
    assert all(len(v) >= 3 for v in inside.values())
    assert not any(torch.allclose(a, b, atol=1e-6) for a in inside['APGD-CE'] for b in inside['APGD-margin'])

def test_fgsm_has_one_step_whatever_is_asked():
    rows = attack_suite(linear(), images(), labels(), 'binary-class', .1, names=('FGSM','PGD'),
                        steps=dict(FGSM=10, PGD=2))
    assert [(r['attack'], r['steps']) for r in rows] == [('clean', 0), ('FGSM', 1), ('PGD', 2),
                                                         ('worst case', 3)]


# Against another library

@pytest.fixture(scope='module')
def art_classifier():
    evasion = pytest.importorskip('art.attacks.evasion',
                                  reason='adversarial-robustness-toolbox is not installed')
    from art.estimators.classification import PyTorchClassifier
    def make(model, x, C):
        model.eval()
        return PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), C, clip_values=(0, 1),
                                 device_type='cpu')
    return evasion, make

def against_art(art_classifier, model, x, y, C, eps, name, **kwargs):
    "Accuracy under our attack and under the library's"
    evasion, make = art_classifier
    kind = {'FGSM': 'FastGradientMethod', 'PGD': 'ProjectedGradientDescentPyTorch',
            'PGD-L2': 'ProjectedGradientDescentPyTorch', 'Square': 'SquareAttack'}
    np.random.seed(0); torch.manual_seed(0)
    theirs = getattr(evasion, kind.get(name, 'AutoProjectedGradientDescent'))(
        make(model, x, C), eps=eps, **({} if name == 'FGSM' else dict(verbose=False)), **kwargs)
    x_theirs = torch.from_numpy(theirs.generate(x.numpy(), y.numpy()))
    return [1-wrong(model, v, y).mean().item()
            for v in (ATTACKS[name](model, x, y, eps, steps=kwargs.get('max_iter')), x_theirs)]

THEIRS = {'PGD': dict(max_iter=20, eps_step=2.5/255/20, num_random_init=1),
          'PGD-L2': dict(norm=2, max_iter=20, eps_step=2.5*.2/20),
          'APGD-CE': dict(max_iter=30, eps_step=2/255, nb_random_init=1, batch_size=200,
                          loss_type='cross_entropy'),
          'Square': dict(max_iter=100, p_init=.8, batch_size=200)}

@pytest.mark.parametrize('name', THEIRS)
def test_other_library_on_the_phantom(trained, art_classifier, name):
    "Within two points of accuracy; Square, which there paints one square into all images, may be weaker"
    model, (x, y) = trained[0], phantom().test.batch(range(40 if name == 'Square' else 60))
    eps = {'PGD-L2': .05, 'Square': 4/255}.get(name, 1/255)
    ours, theirs = against_art(art_classifier, model, x, y, 2, eps, name, **THEIRS[name])
    assert ours <= theirs + .02 and (name == 'Square' or theirs <= ours + .02), (ours, theirs)

@pytest.fixture(scope='module')
def three():
    "A small network that tells three sizes of lesion apart, and images it was not trained on"
    data = phantom()
    (x,y),(x_test,y_test) = ((s.batch(slice(200))[0], (3*s.factors[:200,0]).long().clamp(max=2))
                             for s in (data.train, data.test))
    with seeded(0):
        model = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(),
                              nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 3))
        opt = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150): opt.zero_grad(); nn.functional.cross_entropy(model(x), y).backward(); opt.step()
    assert (predict(model, x_test).argmax(1) == y_test).float().mean() > .6
    assert set(predict(model, x_test).argmax(1).tolist()) == {0,1,2}
    return model, x_test[:100], y_test[:100]

THREE = {'FGSM': {}, 'APGD-CE': THEIRS['APGD-CE'],
         'APGD-margin': dict(THEIRS['APGD-CE'], loss_type='difference_logits_ratio')}

@pytest.mark.parametrize('name', THREE)
def test_other_library_with_three_classes(three, art_classifier, name):
    eps, before = 2/255, 1-wrong(*three).mean().item()
    ours, theirs = against_art(art_classifier, *three, 3, eps, name, **THREE[name])
    assert abs(ours-theirs) <= .02+1e-6 and .05 < ours < before-.1, (ours, theirs, before)

def test_other_library_needs_three_classes_for_its_margin(trained, art_classifier):
    "Why there is a margin of our own"
    model, x, y = trained
    kwargs = dict(max_iter=5, eps_step=2/255, nb_random_init=1, loss_type='difference_logits_ratio')
    with pytest.raises(IndexError):
        against_art(art_classifier, model, x, y, 2, 1/255, 'APGD-margin', **kwargs)


# What cannot be attacked

@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('kwargs,field,said', [
    (dict(eps=-.1), 'eps', ''), (dict(eps=math.nan), 'eps', ''), (dict(eps=100), 'eps', ''),
    (dict(steps=0), 'steps', ''), (dict(steps=2.5), 'steps', ''), (dict(restarts=0), 'restarts', ''),
    (dict(bs=0), 'bs', ''), (dict(x=images()*3), 'images', '[0, 1]'), (dict(y=labels(5)), 'labels', '(5,)'),
    (dict(y=several()), 'labels', "task='multi-label, binary-class'"), (dict(task=MULTI), 'labels', '(6,)'),
    (dict(task=MULTI, y=several()), 'labels', '(6, 2)'), (dict(y=labels()+5), 'labels', '0 to 1'),
    (dict(model=Wrapped(linear(), behind=lambda l: l*math.nan)), 'model', '6 of 6'),
    (dict(model=Predictor(curved(), 2, task=MULTI)), 'task', 'multi-label, binary-class')])
def test_bad_input_to_an_attack(name, kwargs, field, said):
    with refused(field, said, found=... if said else kwargs[field]):
        ATTACKS[name](**dict(model=linear(), x=images(), y=labels(), eps=.1) | kwargs)

@pytest.mark.parametrize('kwargs,field,found', [
    (dict(names=('PGD','DeepFool')), 'attack', 'DeepFool'),
    (dict(steps=dict(pgd=3)), 'steps of attack', 'pgd'), (dict(steps=dict(PGD=0)), 'steps of PGD', 0),
    (dict(eps=4), 'eps', 4), (dict(eps_l2=-1), 'eps_l2', -1), (dict(y=several()), 'labels', ...)])
def test_bad_input_to_the_suite_is_found_before_any_work(kwargs, field, found):
    class Never(nn.Module):
        def forward(self, x): raise RuntimeError('the model was called')
    with refused(field, found=found):
        attack_suite(**dict(model=Never(), x=images(), y=labels(), task='binary-class') | kwargs)

@pytest.mark.parametrize('kwargs,field,found', [
    (dict(eps=0), 'eps', 0), (dict(large=.01, eps=.1), 'large', .01), (dict(tol=2), 'tol', 2),
    (dict(steps=dict(X=1)), 'steps of attack', 'X'),
    (dict(images=dict(X=images())), 'images of attack', 'X')])
def test_bad_input_to_the_check(kwargs, field, found):
    with refused(field, found=found):
        masking_check(**dict(model=linear(), x=images(), y=labels(), task='binary-class') | kwargs)

def test_bad_predictors():
    with refused('dropout'): Predictor(linear(), T=4)
    with refused('T', found=-1): Predictor(curved(), T=-1)
    with refused('images'): worst_case(linear(), [], labels())
