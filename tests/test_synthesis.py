"""The ascent on real held-out images, its gradient against finite differences, its radius, its labels,
and what it leaves behind."""
import copy, math, warnings
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np, pytest, torch, torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from refused import refused
from states import same, state
from torch import nn

from tsynd.models import frozen
from tsynd.targeting import ascend, LatentBank, norms, PROVENANCE_COLUMNS
from tsynd.targeting.ascent import _value_and_grad
from tsynd.targeting.bank import _fingerprint
from tsynd.models import Autoencoder, train_autoencoder
from tsynd.models import Classifier, mc_logits, MCDropout, train_classifier
from tsynd.core import MultiLabel, seeded, SingleLabel
from tsynd.data import check_pixels, load_medmnist, phantom, subset
from tsynd.targeting import (
    cat, cross_entropy, objective, OBJECTIVES, project, synthesize, Synthesizer, Synthetic, TSynD)
from tsynd.targeting import entropy, mutual_information

ONE, SEVERAL = SingleLabel(), MultiLabel()
TASKS = {'grey': (1,2,ONE), 'colour': (3,4,ONE), 'labels': (1,3,SEVERAL), 'colour labels': (3,5,SEVERAL)}
tasks = pytest.mark.parametrize('task', TASKS)
objectives = pytest.mark.parametrize('objective', OBJECTIVES)


class Smooth(nn.Module):
    "A small classifier without kinks, with BatchNorm and two dropout layers"
    def __init__(self, ch=1, C=2, size=12):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(ch, 6, 3, 2), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(),
                               nn.Dropout(.3), nn.Linear(6*((size-1)//2)**2, 16), nn.Tanh(),
                               nn.Dropout(.5), nn.Linear(16, C))
        self.fail = None
    def forward(self, x):
        x = self.f((x-.5)*4)
        if self.fail: raise self.fail
        return x

def made(task='grey', n=4, size=12, seed=0, dtype=torch.float32):
    "Autoencoder, classifier, images, labels; no training, but nothing is trivial"
    ch,C,kind = TASKS[task]
    with seeded(seed):
        ae, model = Autoencoder(ch=ch, width=8).eval(), Smooth(ch, C, size).eval()
        ae.sigma.fill_(.8); ae.unit.running_mean.normal_(0, .05); ae.unit.running_var.uniform_(.005, .02)
        for p in ae.dec[-2].parameters(): p.data *= 6
        x = torch.rand(n, ch, size, size)
        y = (torch.rand(n, C) < .4).float() if kind.several else torch.randint(C, (n,))
    return ae.to(dtype), model.to(dtype), x.to(dtype), y.to(dtype) if kind.several else y

def mixed(model):
    for i,m in enumerate(model.modules()): m.training = i%3 != 1
    for i,p in enumerate(model.parameters()): p.requires_grad_(i%2 == 0)
    return model

def moved(syn, ae):
    "RMS displacement per latent in units of sigma"
    return (syn.z-syn.z0).flatten(1).pow(2).mean(1).sqrt()/ae.sigma


# Real images

@pytest.fixture(scope='module',
                params=[pytest.param(n, marks=pytest.mark.xdist_group(n))
                        for n in ('breastmnist','pneumoniamnist')])
def real(request, medmnist_root):
    "An autoencoder and a classifier, briefly trained on 100 real images, and held-out ones"
    data = subset(load_medmnist(request.param, medmnist_root), 100)
    ae = train_autoencoder(data, steps=100, bs=64, width=16)
    model = train_classifier(data, epochs=14).model
    x,y = data.test.batch(torch.arange(0, len(data.test), max(1, len(data.test)//64))[:64])
    return ae, model, x, y

def test_mi_rises_on_held_out_images_more_than_at_random(real):
    ae, model, x, y = real
    engine = Synthesizer(ae)
    syn = engine.measure(model, engine(model, x, y), T=64, seed=5)
    twins = [engine.measure(model, engine.at_distance(syn, seed), T=64, seed=5) for seed in range(3)]
    gain = syn.mi_after-syn.mi_before
    assert (gain > 0).float().mean() >= .9 and syn.mi_after.mean() > 1.5*syn.mi_before.mean()
    for twin in twins:
        torch.testing.assert_close(moved(twin, ae), moved(syn, ae), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(twin.mi_before, syn.mi_before)
        assert (syn.mi_after > twin.mi_after).float().mean() >= .9
        assert gain.mean() > 3*(twin.mi_after-twin.mi_before).mean()
    assert (moved(syn, ae) <= .3+1e-5).all() and moved(syn, ae).mean() > .1

def test_every_objective_climbs_what_it_names_on_held_out_images(real):
    ae, model, x, y = real
    values = {}
    for o in OBJECTIVES:
        syn = Synthesizer(ae, o)(model, x, y)
        assert (moved(syn, ae) <= .3+1e-5).all() and 0 <= syn.x.min() and syn.x.max() <= 1
        logits = mc_logits(model, syn.x, 64, seed=99).detach()
        values[o] = dict(mi=mutual_information(logits).mean().item(), entropy=entropy(logits).mean().item(),
                         cross_entropy=cross_entropy(logits, y).mean().item())
    for o in ('mi','entropy','cross_entropy'):
        rival = max(v[o] for k,v in values.items() if k in ('random','reconstruction'))
        assert values[o][o] > rival+.01
    assert max(values, key=lambda o: values[o]['cross_entropy']) == 'cross_entropy'

def test_a_gradient_on_real_images_is_the_finite_difference(real):
    "From the latent through decoder, classifier and masks to MI, in float64"
    ae, model, x, y = real
    ae, model = (copy.deepcopy(m).double() for m in (ae, model))
    with MCDropout(model, 8, 3) as mc:
        z0 = ae.encode(x[:4].double()).detach()
        U = lambda z: mutual_information(mc(ae.decode(z)))
        u,g = _value_and_grad(U, z0, True)
        d = g/norms(g)
        with torch.no_grad(): slope = (U(z0+1e-6*d)-U(z0-1e-6*d))/2e-6
    torch.testing.assert_close(slope, norms(g).flatten(), rtol=1e-3, atol=1e-9)

def test_longer_radius_more_mi_and_nothing_left_behind(real):
    ae, model, x, y = real
    before = state(ae, model)
    gains = []
    for radius in (.05, .15, .45):
        syn = synthesize(ae, model, x, y, radius=radius)
        assert (moved(syn, ae) <= radius*(1+1e-4)).all()
        gains.append((syn.mi_after-syn.mi_before).mean().item())
    assert 0 < gains[0] < gains[1] < gains[2] and same(state(ae, model), before)


# The gradient

def objective_of(o, ae, mc, y, kind, prepare=lambda x: x):
    return lambda z: OBJECTIVES[o](mc(prepare(ae.decode(z))), y, kind)

@tasks
@pytest.mark.parametrize('o', ['mi','entropy','cross_entropy'])
def test_gradients_of_the_whole_chain(task, o):
    ae, model, x, y = made(task, n=2, size=8, dtype=torch.float64)
    kind = TASKS[task][2]
    with MCDropout(model, 3, 1) as mc, torch.no_grad(): z = ae.encode(x)
    with frozen(ae), MCDropout(model, 3, 1) as mc:
        U = objective_of(o, ae, mc, y, kind, lambda x: (x-.2)/.7)
        assert torch.autograd.gradcheck(U, z.requires_grad_())

@tasks
@pytest.mark.parametrize('o', ['mi','entropy','cross_entropy'])
def test_the_first_step_goes_along_the_finite_difference_gradient(task, o):
    ae, model, x, y = made(task, n=3, dtype=torch.float64)
    kind = TASKS[task][2]
    syn = Synthesizer(ae, o, T=4, steps=1, radius=1e-3, step=.5, task=kind)(model, x, y, seed=7)
    g = torch.zeros_like(syn.z0)
    with frozen(ae), MCDropout(model, 4, 7) as mc, torch.no_grad():
        U = objective_of(o, ae, mc, y, kind)
        for i in range(g[0].numel()):
            e = torch.zeros_like(g[0]).flatten(); e[i] = 1e-5
            g.flatten(1)[:,i] = (U(syn.z0+e.view_as(g[0]))-U(syn.z0-e.view_as(g[0])))/2e-5
    step = syn.z-syn.z0
    cos = F.cosine_similarity(step.flatten(1), g.flatten(1))
    assert (cos > 1-1e-6).all()
    torch.testing.assert_close(moved(syn, ae), torch.full((3,), 5e-4, dtype=torch.float64))


# The ascent

@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(1e-3, 10), st.floats(.01, 3),
       st.sampled_from([1, 30]))
def test_ascent_never_goes_down_or_out(seed, K, r, step, wild):
    g = torch.Generator().manual_seed(seed)
    a, z0 = torch.randn(2, 5, 6, generator=g, dtype=torch.float64)
    U = lambda z: torch.sin(wild*(z*a)).sum(1) - .1*(z**2).sum(1)
    z, trace = ascend(U, z0, r, K, step)
    assert not z.requires_grad and not trace.requires_grad and ((z-z0).norm(dim=1) <= r*(1+1e-9)).all()
    torch.testing.assert_close(trace[0], U(z0))
    # a single step is not looked at
    if K == 1: assert trace.shape == (1, 5)
    else:
        assert trace.shape == (K+1, 5) and (U(z) >= U(z0)).all()
        torch.testing.assert_close(trace.amax(0), U(z))

@given(st.integers(0, 10**6), st.floats(1e-3, 10))
def test_projection_is_the_nearest_point(seed, r):
    g = torch.Generator().manual_seed(seed)
    z,z0 = 3*torch.randn(2, 4, 2, 3, generator=g, dtype=torch.float64)
    p = project(z, z0, r)
    d, dp = (z-z0).flatten(1).norm(dim=1), (p-z0).flatten(1).norm(dim=1)
    torch.testing.assert_close(dp, d.clamp(max=r))
    torch.testing.assert_close((p-z).flatten(1).norm(dim=1), (d-r).clamp(min=0), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(project(p, z0, r), p)
    assert torch.equal(project(z0, z0, r), z0)

def test_a_linear_function_is_climbed_to_the_rim_and_no_further():
    a = torch.tensor([[3.,4.]])
    z,_ = ascend(lambda z: (z*a).sum(1), torch.zeros(1, 2), 2., 8, .3)
    torch.testing.assert_close(z, torch.tensor([[1.2,1.6]]))

def test_steps_are_halved_for_the_image_that_overshot_only():
    "One image at the top already, one far from it"
    centre = torch.tensor([[0.,0.],[9.,0.]])
    seen = []
    U = lambda z: (seen.append(z.detach().clone()), -((z-centre)**2).sum(1))[1]
    ascend(U, torch.tensor([[.1,0.],[0.,0.]]), 10., 3, .1)
    first, second = torch.stack(seen)[:,0], torch.stack(seen)[:,1]
    lengths = [round((z-torch.tensor([.1,0.])).norm().item(), 5) for z in first[1:]]
    assert lengths[:3] == [1., .5, .25] and second[:,0].tolist() == pytest.approx([0,1,2,3])

def test_a_flat_function_moves_nothing():
    z0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    z,_ = ascend(lambda z: (z*0).sum(1), z0, 1., 4)
    assert torch.equal(z, z0)


# Every objective

@tasks
@objectives
def test_radius_labels_and_range(objective, task):
    ae, model, x, y = made(task)
    kind = TASKS[task][2]
    for radius in (.01, .3, 2.):
        syn = synthesize(ae, model, x, y, seed=3, objective=objective, T=4, steps=3, radius=radius, step=.8,
                         task=kind, index=torch.tensor([7,5,9,0]))
        assert (moved(syn, ae) <= radius*(1+1e-4)).all() and 0 <= syn.x.min() and syn.x.max() <= 1
        assert syn.x.shape == x.shape
        torch.testing.assert_close(syn.distance_latent, moved(syn, ae), rtol=1e-4, atol=1e-6)
        assert torch.equal(syn.y, y) and torch.equal(syn.source, x)
        assert syn.table().source_index.tolist() == [7,5,9,0]
        with torch.no_grad():
            torch.testing.assert_close(syn.z0, ae.encode(x))
            torch.testing.assert_close(syn.x, ae.decode(syn.z))
        if objective == 'random':
            torch.testing.assert_close(moved(syn, ae), torch.full((4,), radius), rtol=1e-4, atol=0)
        elif objective == 'reconstruction':
            assert torch.equal(syn.z, syn.z0) and torch.equal(syn.x, syn.reconstruction)
            assert torch.equal(syn.mi_before, syn.mi_after)
        else: assert (moved(syn, ae) > 0).all() and syn.trace.shape == (4,4)

@tasks
@pytest.mark.parametrize('o', ['mi','entropy','cross_entropy'])
def test_the_result_is_the_best_point_seen_under_the_masks_of_the_ascent(task, o):
    ae, model, x, y = made(task)
    kind = TASKS[task][2]
    syn = Synthesizer(ae, o, T=4, task=kind)(model, x, y, seed=3)
    with torch.no_grad(), MCDropout(model, 4, 3) as mc: u = OBJECTIVES[o](mc(syn.x), y, kind)
    torch.testing.assert_close(u, syn.trace.amax(0), rtol=1e-3, atol=1e-5)
    assert (syn.trace.amax(0) > syn.trace[0]).all()

@objectives
def test_the_seed_is_all_that_matters(objective):
    ae, model, x, y = made()
    def run(seed, noise):
        with seeded(noise): return Synthesizer(ae, objective, T=4)(model, x, y, seed=seed)
    a,b,c = run(1, 5), run(1, 6), run(2, 5)
    assert torch.equal(a.x, b.x) and torch.equal(a.x, c.x) == (objective == 'reconstruction')

def test_batch_mates_do_not_matter():
    ae, model, x, y = made(dtype=torch.float64)
    engine = Synthesizer(ae, T=4)
    together = engine(model, x, y)
    for i in range(4):
        torch.testing.assert_close(engine(model, x[i:i+1], y[i:i+1]).z, together.z[i:i+1], rtol=1e-6,
                                   atol=1e-8)

def test_mi_of_several_labels_counts_every_label():
    "With one label that is a coin for the draws and others that are settled, and the other way round"
    ae, model, x, y = made('labels')
    syn = synthesize(ae, model, x, y, T=8, task=SEVERAL, radius=1.)
    logits = mc_logits(model, syn.x, 32, 2**31+1).detach()
    p = logits.sigmoid()
    h = lambda p: -(p*p.log()+(1-p)*(1-p).log())
    torch.testing.assert_close(syn.mi_after, (h(p.mean(0))-h(p).mean(0)).sum(-1), rtol=1e-3, atol=1e-5)
    given_y = torch.where(y.bool(), p.mean(0), 1-p.mean(0))
    torch.testing.assert_close(syn.p_after, given_y.log().mean(-1).exp(), rtol=1e-4, atol=1e-6)

@given(st.integers(0, 10**6))
def test_cross_entropy_is_that_of_the_mean_prediction(seed):
    g = torch.Generator().manual_seed(seed)
    x, y = 3*torch.randn(5, 4, 3, generator=g, dtype=torch.float64), torch.randint(3, (4,), generator=g)
    Y = torch.randint(2, (4,3), generator=g).double()
    torch.testing.assert_close(cross_entropy(x, y), -x.softmax(-1).mean(0)[torch.arange(4), y].log())
    torch.testing.assert_close(cross_entropy(x, Y, SEVERAL),
                               F.binary_cross_entropy(x.sigmoid().mean(0), Y, reduction='none').sum(-1))
    assert torch.isfinite(cross_entropy((x*1e4).half().clamp(-6e4, 6e4), y)).all()

def test_prepare_is_what_the_classifier_sees_everywhere():
    ae, model, x, y = made()
    class Inside(nn.Module):
        def __init__(self): super().__init__(); self.f = model
        def forward(self, x): return self.f((x-.2)/.7)
    a = synthesize(ae, model, x, y, T=4, prepare=lambda x: (x-.2)/.7)
    b = synthesize(ae, Inside().eval(), x, y, T=4)
    c = synthesize(ae, model, x, y, T=4)
    for f in ('z','x','mi_source','mi_before','mi_after','p_before','p_after'):
        assert torch.equal(getattr(a, f), getattr(b, f)) and not torch.equal(getattr(a, f), getattr(c, f))


# Provenance

def test_before_and_after_are_measured_under_fresh_draws(monkeypatch):
    made_mcs = []
    class Spy(MCDropout):
        def __init__(self, *args, **kwargs): super().__init__(*args, **kwargs); made_mcs.append(self)
    monkeypatch.setattr('tsynd.targeting.synthesis.MCDropout', Spy)
    ae, model, x, y = made()
    syn = synthesize(ae, model, x, y, T=16, seed=0)
    ascent, fresh = ([{tuple(m.flatten().tolist()) for m in mc.masks['f.7',0]} for mc in made_mcs])
    # of 2**16 masks, two may agree by chance
    assert made_mcs[1].T >= 32 and len(ascent) == 16 and len(ascent & fresh) <= 2
    assert made_mcs[0].gen.initial_seed() != made_mcs[1].gen.initial_seed()
    engine = Synthesizer(ae, T=16)
    a,b = (engine.measure(model, syn, seed=s) for s in (1,2))
    assert torch.equal(a.mi_after, syn.mi_after) and not torch.equal(a.mi_after, b.mi_after)

def test_the_columns_say_what_they_mean():
    ae, model, x, y = made('colour')
    engine = Synthesizer(ae, T=4)
    syn = engine.measure(model, engine(model, x, y), T=500, seed=9)
    with torch.no_grad(): rec = ae.decode(ae.encode(x))
    torch.testing.assert_close(syn.reconstruction, rec)
    torch.testing.assert_close(syn.distance_pixel, (syn.x-rec).flatten(1).pow(2).mean(1).sqrt())
    # other draws, the same within their error
    for name, im in dict(source=x, before=rec, after=syn.x).items():
        logits = mc_logits(model, im, 500, seed=123).detach()
        torch.testing.assert_close(getattr(syn, f'mi_{name}'), mutual_information(logits), rtol=.35,
                                   atol=.003)
        if name != 'source':
            torch.testing.assert_close(getattr(syn, f'p_{name}'),
                                       logits.softmax(-1).mean(0).gather(1, y[:,None])[:,0], rtol=.1,
                                       atol=.02)
    t = syn.table()
    assert list(t.columns) == ['source_index', *PROVENANCE_COLUMNS] and len(t) == 4
    assert np.isfinite(t.to_numpy()).all()

def test_a_table_before_measuring_has_what_is_known():
    ae, model, x, y = made()
    assert list(Synthesizer(ae, T=4)(model, x, y).table().columns) == [
        'source_index', 'gate', 'distance_latent']

def test_joined_batches_are_the_batches():
    ae, model, x, y = made(n=6)
    parts = [synthesize(ae, model, x[i], y[i], T=4, seed=s, index=torch.arange(6)[i])
             for s,i in enumerate((slice(0,4), slice(4,6)))]
    joined = cat(parts)
    assert len(joined) == 6 and joined.table().source_index.tolist() == list(range(6))
    for f in fields(Synthetic):
        if f.name != 'trace':
            assert torch.equal(getattr(joined, f.name),
                               torch.cat([getattr(p, f.name) for p in parts])), f.name
    assert joined.trace.shape == (5,6) and torch.equal(joined.trace[:,4:], parts[1].trace)
    assert cat([parts[0], replace(parts[1], index=None)]).index is None

def test_twins_go_exactly_as_far_in_other_directions():
    ae, model, x, y = made(dtype=torch.float64)
    engine = Synthesizer(ae, T=4)
    syn = engine(model, x, y)
    a,b,c = (engine.at_distance(syn, seed) for seed in (0,0,1))
    torch.testing.assert_close(moved(a, ae), moved(syn, ae))
    assert torch.equal(a.x, b.x) and not torch.equal(a.x, c.x)
    cos = F.cosine_similarity((a.z-a.z0).flatten(1), (syn.z-syn.z0).flatten(1))
    assert cos.abs().max() < .75 and torch.equal(a.y, syn.y)
    with torch.no_grad(): torch.testing.assert_close(a.x, ae.decode(a.z))


# Left as it was

@objectives
@tasks
def test_nothing_is_left_behind(objective, task):
    ae, model, x, y = made(task)
    mixed(ae); mixed(model)
    before, xs = state(ae, model), x.clone()
    engine = Synthesizer(ae, objective, T=4, task=TASKS[task][2])
    syn = engine.measure(model, engine(model, x, y))
    engine.at_distance(syn)
    assert same(state(ae, model), before) and torch.equal(x, xs)
    for f in fields(Synthetic):
        if (v := getattr(syn, f.name)) is not None: assert not v.requires_grad, f.name

@pytest.mark.parametrize('error', [KeyError('k'), RuntimeError('r'), KeyboardInterrupt()],
                         ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('place', ['ascent','later step','measure','decoder'])
def test_exceptions_leave_nothing_behind(error, place, monkeypatch):
    ae, model, x, y = made()
    engine = Synthesizer(ae, T=4)
    syn = engine(model, x, y)
    mixed(ae); mixed(model)
    before, count = state(ae, model), [0]
    def fail(*_):
        count[0] += 1
        if count[0] > dict(zip(('later step','decoder'), (2,2))).get(place, 0): raise error
    handle = (ae.dec if place == 'decoder' else model.f).register_forward_pre_hook(fail)
    with pytest.raises(type(error)), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        engine.measure(model, syn) if place == 'measure' else engine(model, x, y)
    assert count[0] > 0
    handle.remove()
    assert same(state(ae, model), before)
    assert torch.equal(engine(model, x, y).x, syn.x)                            # and it works again, as ever

def test_the_ascent_inside_a_training_step_leaves_its_gradients_alone():
    ae, model, x, y = made()
    model.train()
    F.cross_entropy(model(x), y).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    synthesize(ae, model, x, y, T=4)
    assert all(torch.equal(a, p.grad) for a,p in zip(grads, model.parameters())) and model.f[1].training

def test_synthesis_works_where_gradients_are_off():
    ae, model, x, y = made()
    with torch.no_grad(): a = synthesize(ae, model, x, y, T=4)
    assert torch.equal(a.x, synthesize(ae, model, x, y, T=4).x) and (moved(a, ae) > 0).all()


# Bad input

@pytest.mark.parametrize('name,value', [
    ('T', 1), ('T', 2.5), ('steps', 0), ('steps', 1.5), ('radius', 0), ('radius', -.1), ('radius', math.nan),
    ('radius', math.inf), ('step', 0), ('step', -1), ('jitter', -.1), ('jitter', 1.1), ('jitter', math.nan),
    ('gate', -.1), ('gate', 1.1), ('gate', math.nan)])
def test_impossible_settings_are_refused(name, value):
    with refused(name, found=value): Synthesizer(made()[0], **{name: value})

def test_what_cannot_be_asked_for_is_refused():
    with refused('objective', *OBJECTIVES, found='mutual'): Synthesizer(made()[0], 'mutual')
    with refused('T', found=0): Synthesizer(made()[0], 'entropy', T=0)

@pytest.mark.parametrize('o', ['entropy','cross_entropy','random','reconstruction'])
def test_one_draw_is_enough_for_all_but_mi(o):
    ae, model, x, y = made()
    assert len(Synthesizer(ae, o, T=1)(model, x, y)) == 4

@pytest.mark.parametrize('change,said', [
    (lambda x: x*2, 'to 1.99'), (lambda x: x-.5, 'from -0.49'), (lambda x: x*255, '[0, 1]'),
    (lambda x: x+math.nan, '576 pixels'),
    (lambda x: x.where(x != x[0,0,0,0], torch.tensor(math.inf)), '1 pixels'),
    (lambda x: x[:,:,:10], '(B, 1, H, W)'), (lambda x: x.repeat(1,3,1,1), '(4, 3, 12, 12)'),
    (lambda x: x[0], '(B, 1, H, W)')], ids=[
        'twice','shifted','bytes','NaN','inf','10×12','colour','one image'])
def test_bad_images_are_refused(change, said):
    ae, model, x, y = made()
    for o in OBJECTIVES:
        with refused('images', said): synthesize(ae, model, change(x), y, objective=o)

def test_rounding_beyond_the_range_is_forgiven():
    assert check_pixels(torch.tensor([-5e-5, .3, 1+5e-5])).tolist() == torch.tensor([0, .3, 1]).tolist()
    same = torch.tensor([0., .3, 1.])
    assert check_pixels(same) is same
    for wrong in ([-5e-4, 1.], [0, 1+5e-4]):
        with refused('images'): check_pixels(torch.tensor(wrong))

@pytest.mark.parametrize('model', [Classifier(nn.Flatten(), 144, 2, p=0.),
                                   nn.Sequential(nn.Flatten(), nn.Linear(144, 2))])
def test_a_classifier_without_dropout_is_refused(model):
    ae, _, x, y = made()
    with refused('dropout'): synthesize(ae, model, x, y)

@pytest.mark.parametrize('y,kind', [
    (torch.tensor([0,1,2,0]), ONE), (torch.tensor([0,1,-1,0]), ONE), (torch.zeros(4, 2), ONE),
    (torch.zeros(3).long(), ONE), (torch.zeros(4), SEVERAL), (torch.zeros(4, 3), SEVERAL),
    (torch.tensor([0,1,1,0]), SEVERAL)], ids=[
        'class 2 of 2','class -1','rows for classes','too few','numbers for rows','3 labels of 2',
        'classes for rows'])
@pytest.mark.parametrize('o', ['mi','cross_entropy'])
def test_labels_that_do_not_fit_are_refused(y, kind, o):
    ae, model, x, _ = made()
    # of fewer labels than images, either may be at fault
    with refused('labels' if len(y) == len(x) else 'classifier', 'label'):
        synthesize(ae, model, x, y, objective=o, T=4, task=kind)

def test_objectives_are_what_they_are_called():
    logits = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)); y = torch.tensor([0,1,2,0])
    for name,f in (('mi',mutual_information), ('entropy',entropy)):
        torch.testing.assert_close(OBJECTIVES[name](logits, y, ONE), f(logits))

@pytest.fixture
def own():
    "Objectives of one's own, gone after the test"
    before = dict(OBJECTIVES)
    yield objective
    OBJECTIVES.clear(); OBJECTIVES.update(before)

@pytest.mark.parametrize('task', ['grey','labels'])
def test_an_objective_of_ones_own_is_climbed_as_ours(own, task):
    "The same function under another name makes the same images, and trains the same network"
    @own('mine')
    def mine(logits_T_B_C, y, kind): return entropy(logits_T_B_C, kind)
    ae, model, x, y = made(task)
    kind = TASKS[task][2]
    one, two = (synthesize(ae, model, x, y, objective=o, T=4, task=kind) for o in ('entropy','mine'))
    assert torch.equal(one.x, two.x) and (one.trace[-1] > one.trace[0]).all()
    if kind.several: return
    data = phantom(16, 8, 8, size=12)
    nets = [train_classifier(data, epochs=1, bs=8, cbs=TSynD(ae, objective=o, gate=0., every=1))
            for o in ('entropy','mine','mi')]
    a, b, c = (dict(net.model.state_dict()) for net in nets)
    assert same(a, b) and not same(a, c) and nets[1].tsynd.n_images > 0

@pytest.mark.parametrize('f, words', [
    (lambda logits, y, task: logits.sum(), '()'), (lambda logits, y, task: logits.sum(-1), '(4, 4)'),
    (lambda logits, y, task: [1.]*4, 'list'),
    (lambda logits, y, task: logits.sum(0).argmax(-1).float(), 'gradient')],
    ids=['batch','draws','list','order'])
def test_an_objective_that_cannot_be_climbed_is_refused(own, f, words):
    assert own('mine')(f) is f
    with refused('objective', 'mine', words): synthesize(*made(), objective='mine', T=4)
    for name in (3, 'a\nb'):
        with refused('name'): own(name)

def test_twins_copy_each_distance():
    ae, model, x, y = made(dtype=torch.float64)
    engine = Synthesizer(ae, T=4); syn = engine(model, x, y)
    k = torch.linspace(.1, 1, len(x), dtype=torch.float64).view(-1,1,1,1)
    syn = replace(syn, z=syn.z0+k*(syn.z-syn.z0))
    torch.testing.assert_close(moved(engine.at_distance(syn), ae), moved(syn, ae))


# A single step

def with_start(start):
    "A bank that knows one batch: encodes as ever, starts where it is told"
    return SimpleNamespace(recall=lambda ae, x, index: (ae.encode(x), start), store=lambda index, z: None)

def in_ball(z0, r, seed, far=1.):
    "Points in balls of radius `r` about `z0`, up to `far` of the way out"
    d = torch.randn(z0.shape, generator=torch.Generator().manual_seed(seed)).to(z0)
    return z0 + far*r*torch.linspace(0, 1, len(z0)).to(z0).view(-1,1,1,1)*d/norms(d)

@given(st.integers(0, 10**6), st.floats(1e-2, 10), st.floats(.01, 3), st.floats(0, 1))
def test_one_step_is_the_projected_normalised_gradient_step(seed, r, step, far):
    "On a paraboloid, whose gradient at z is 2A(top-z)"
    rng = np.random.default_rng(seed)
    z0,top,d = rng.normal(size=(3,5,6)); A = rng.uniform(.1, 2, 6)
    start = z0 + far*r*d/np.linalg.norm(d, axis=1, keepdims=True)
    g = 2*A*(top-start)
    move = start + step*r*g/np.linalg.norm(g, axis=1, keepdims=True) - z0
    want = z0 + move*np.minimum(1, r/np.linalg.norm(move, axis=1, keepdims=True))
    U = lambda z: -(torch.tensor(A)*(z-torch.tensor(top))**2).sum(1)
    z,trace = ascend(U, torch.tensor(z0), r, 1, step, torch.tensor(start))
    torch.testing.assert_close(z, torch.tensor(want))
    torch.testing.assert_close(trace, U(torch.tensor(start))[None])

@tasks
@pytest.mark.parametrize('o', ['mi','entropy','cross_entropy'])
@pytest.mark.parametrize('step', [.3, 1.5])
def test_one_step_of_the_engine_is_that_step(task, o, step):
    ae, model, x, y = made(task, dtype=torch.float64)
    kind, engine = TASKS[task][2], Synthesizer(ae, o, T=4, steps=1, step=step, task=TASKS[task][2])
    with torch.no_grad(): z0 = ae.encode(x)
    r = .3*.8*math.sqrt(z0[0].numel())
    start = in_ball(z0, r, 5)
    syn = engine(model, x, y, seed=7, index=torch.arange(4), bank=with_start(start))
    z = start.clone().requires_grad_()
    with frozen(ae), MCDropout(model, 4, 7) as mc: u = OBJECTIVES[o](mc(ae.decode(z)), y, kind)
    g = torch.autograd.grad(u.sum(), z)[0].flatten(1)
    move = start.flatten(1) + step*r*g/g.pow(2).sum(1, keepdim=True).sqrt() - z0.flatten(1)
    want = z0.flatten(1) + move*(r/move.pow(2).sum(1, keepdim=True).sqrt()).clamp(max=1)
    torch.testing.assert_close(syn.z.flatten(1), want)
    torch.testing.assert_close(syn.trace, u.detach()[None])
    far = moved(syn, ae)
    assert (far <= .3+1e-9).all() and ((far < .29).any() if step < 1 else (far > .29).any())

def test_several_steps_go_on_from_the_start_and_end_no_lower():
    ae, model, x, y = made(dtype=torch.float64)
    engine = Synthesizer(ae, T=4, steps=3)
    with torch.no_grad(): z0 = ae.encode(x); start = in_ball(z0, engine.length(z0), 1, far=.9)
    syn = engine(model, x, y, index=torch.arange(4), bank=with_start(start))
    with torch.no_grad(), MCDropout(model, 4, 0) as mc:
        torch.testing.assert_close(syn.trace[0], mutual_information(mc(ae.decode(start))))
    assert (syn.trace.amax(0) >= syn.trace[0]).all() and (moved(syn, ae) <= .3+1e-9).all()

@pytest.fixture
def starts(monkeypatch):
    "Where each ascent started, with its centres and radius"
    seen, f = [], ascend
    def watched(U, z0, r, steps, step, start):
        seen.append((start, z0, r))
        return f(U, z0, r, steps, step, start)
    monkeypatch.setattr('tsynd.targeting.synthesis.ascend', watched)
    return seen

@pytest.mark.parametrize('jitter', [0., .2, 1.])
@pytest.mark.parametrize('far', [0., 1.])
def test_jitter_is_a_short_random_step_inside_the_ball(jitter, far, starts):
    "From the source exactly as long as asked for, from elsewhere no longer, since the ball is convex"
    ae, model, x, y = made(dtype=torch.float64)
    engine = Synthesizer(ae, T=4, steps=1, jitter=jitter)
    with torch.no_grad(): z0 = ae.encode(x); before = in_ball(z0, engine.length(z0), 3, far=far)
    run = lambda seed: engine(model, x, y, seed=seed, index=torch.arange(4), bank=with_start(before))
    a,b,_ = run(1), run(1), run(2)
    for start,z0,r in starts:
        step = norms(start-before).flatten()/r
        assert (step <= jitter+1e-9).all() and (norms(start-z0) <= r*(1+1e-9)).all()
        if far == 0: torch.testing.assert_close(step, torch.full_like(step, jitter))
    assert torch.equal(a.z, b.z) and torch.equal(starts[0][0], starts[1][0])
    assert torch.equal(starts[0][0], starts[2][0]) == (jitter == 0) and (moved(a, ae) <= .3+1e-9).all()


# The label gate

class Grid(nn.Module):
    "An autoencoder whose latents are the pixels, so that images are straight lines along straight paths"
    def __init__(self): super().__init__(); self.register_buffer('sigma', torch.tensor(1.))
    def encode(self, x): return F.pixel_unshuffle(x, 4)
    def decode(self, z): return F.pixel_shuffle(z, 4)
    def latent_shape(self, shape): return shape[0]*16, shape[1]//4, shape[2]//4

class Above(nn.Module):
    "Class 1, or label 1, where the mean pixel is above a threshold; one threshold per label"
    def __init__(self, *cuts):
        super().__init__(); self.register_buffer('cuts', torch.tensor(cuts, dtype=torch.float64))
        self.looked = []
    def forward(self, x):
        self.looked.append(x.detach().clone())
        over = 1e4*(x.mean((1,2,3)).double()[:,None] - self.cuts)
        return torch.cat([-over, over], 1) if over.shape[1] == 1 else over

class Always(nn.Module):
    "Accepts everything, or nothing, whatever it sees"
    def __init__(self, y, yes, kind): super().__init__(); self.y,self.yes,self.kind,self.calls = y,yes,kind,0
    def forward(self, x):
        self.calls += 1
        y = self.y[:len(x)]
        if not self.kind.several: return 50.*F.one_hot(y if self.yes else y+1, int(self.y.max())+2)
        # right at the reconstruction, wrong ever after
        return 50*(2*y-1)*(1 if self.yes or self.calls == 1 else -1)

def paths(n=12, seed=0, radius=.05):
    ae, g = Grid(), torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=g, dtype=torch.float64)*.6+.2
    return Synthesizer(ae, 'random', radius=radius, gate=.5), x, (x.mean((1,2,3)) > .5).long()

@settings(max_examples=60)
@given(st.integers(0, 1000), st.floats(.4, .6), st.floats(.02, .3))
def test_an_image_is_kept_as_far_out_as_the_judge_lets_it(seed, cut, radius):
    engine, x, _ = paths(8, seed, radius)
    y, model = torch.arange(8)%2, Smooth(size=8).eval()
    free = engine(model, x, y, seed=seed)
    m0,m1 = (i.mean((1,2,3)) for i in (engine.ae.decode(free.z0), free.x))
    want = torch.zeros(8, dtype=torch.float64)
    for t in (.25,.5,.75,1.):
        m = m0+t*(m1-m0)
        assume((m-cut).abs().min() > 1e-6)
        want[(m > cut) == (y == 1)] = t                                        # the larger ones come later
    syn, judge = engine(model, x, y, seed=seed, judge=Above(cut)), Above(cut)
    assert torch.equal(syn.gate, want)
    assert torch.equal(judge(syn.x).argmax(1) == y, want > 0)                  # on the images themselves
    t = torch.where(want > 0, want, 1.).view(-1,1,1,1)
    torch.testing.assert_close(syn.z, free.z0+t*(free.z-free.z0))
    torch.testing.assert_close(syn.x, engine.ae.decode(syn.z))
    torch.testing.assert_close(syn.distance_latent, radius*t.flatten())

def test_all_shares_of_the_path_occur():
    "A judge that stands in the way of each image at another place"
    engine, x, _ = paths(40, 0, .3)
    y, gates = torch.ones(40).long(), []
    for cut in torch.linspace(.45, .55, 9).tolist():
        gates += engine(Smooth(size=8).eval(), x, y, judge=Above(cut)).gate.tolist()
    assert set(gates) == {0., .25, .5, .75, 1.}

@tasks
@objectives
def test_a_judge_that_accepts_everything_changes_no_image(objective, task):
    ae, model, x, y = made(task)
    kind, engine = TASKS[task][2], Synthesizer(ae, objective, T=4, task=TASKS[task][2], gate=.5)
    free, syn = engine(model, x, y), engine(model, x, y, judge=Always(y, True, kind))
    assert torch.equal(syn.x, free.x) and torch.equal(syn.trace, free.trace)
    assert torch.equal(syn.gate, torch.ones(4)) and torch.equal(free.gate, torch.ones(4))
    assert torch.equal(syn.z, free.z)

@tasks
def test_a_judge_that_accepts_nothing_drops_all_and_moves_none(task):
    ae, model, x, y = made(task)
    kind, engine = TASKS[task][2], Synthesizer(ae, T=4, task=TASKS[task][2], gate=.5)
    # for a judge that does not know whom it sees
    if kind.several: y = y[:1].expand_as(y).clone()
    else: y = torch.zeros_like(y)
    free, judge = engine(model, x, y), Always(y, False, kind)
    syn = engine(model, x, y, judge=judge)
    assert torch.equal(syn.x, free.x) and torch.equal(syn.gate, torch.zeros(4))
    assert judge.calls == 3+kind.several
    assert torch.equal(syn.z, free.z)
    assert syn.table().gate.tolist() == [0]*4

@pytest.mark.parametrize('task', ['grey','colour'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_what_the_gate_keeps_is_on_the_path_and_passes(task, dtype):
    "A true autoencoder, and another classifier as judge"
    kept = []
    for seed in range(3):
        ae, model, x, y = made(task, n=16, seed=seed, dtype=dtype)
        judge = made(task, n=16, seed=seed+50, dtype=dtype)[1]
        engine = Synthesizer(ae, T=4, radius=2., gate=.5)
        with torch.no_grad():
            free, rec = engine(model, x, y), ae.decode(ae.encode(x))
            # so that paths cross its boundary
            judge.f[-1].bias -= (judge(free.x)+judge(rec)).mean(0)/2
            for p in judge.f[-1].parameters(): p.mul_(1e4)                        # and it is sure of itself
            y = judge(rec).argmax(1)
        syn = engine(model, x, y, judge=judge)
        t = torch.where(syn.gate > 0, syn.gate, 1.).view(-1,1,1,1)
        torch.testing.assert_close(syn.z, free.z0+t*(free.z-free.z0), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(syn.x, ae.decode(syn.z), rtol=1e-5, atol=1e-5)
            assert torch.equal(judge(syn.x).argmax(1) == y, syn.gate > 0)
            assert torch.equal(judge(free.x).argmax(1) == y, syn.gate == 1)
        torch.testing.assert_close(syn.distance_latent, free.distance_latent*t.flatten(), rtol=1e-4,
                                   atol=1e-5)
        kept += syn.gate.tolist()
    assert set(kept) <= {0., .25, .5, .75, 1.} and any(0 < g < 1 for g in kept)

@given(st.integers(0, 1000), st.lists(st.floats(.42, .58), min_size=3, max_size=3), st.floats(.05, .3))
@settings(max_examples=40)
def test_of_several_labels_those_that_the_judge_gets_right_stay_right(seed, cuts, radius):
    engine, x, _ = paths(8, seed, radius)
    engine.task = SEVERAL
    y = torch.rand(8, 3, generator=torch.Generator().manual_seed(seed)).round().double()
    free = engine(Smooth(C=3, size=8).eval(), x, y, seed=seed)
    m0,m1,c = x.mean((1,2,3))[:,None], free.x.mean((1,2,3))[:,None], torch.tensor(cuts, dtype=torch.float64)
    right = lambda m: (m > c) == (y == 1)
    want = torch.zeros(8, dtype=torch.float64)
    for t in (.25,.5,.75,1.):
        m = m0+t*(m1-m0)
        assume((m-c).abs().min() > 1e-6 and (m0-c).abs().min() > 1e-6)
        want[(right(m) | ~right(m0)).all(1)] = t
    assert torch.equal(engine(Smooth(C=3, size=8).eval(), x, y, seed=seed, judge=Above(*cuts)).gate, want)

def test_labels_that_the_judge_never_got_right_do_not_count():
    engine, x, _ = paths()
    engine.task = SEVERAL
    y = torch.tensor([[0.,1.]]).double().repeat(12, 1)
    # says yes and no to all
    assert (engine(Smooth(size=8).eval(), x, y, judge=Above(-1., 2.)).gate == 1).all()
    assert (engine(Smooth(size=8).eval(), x, y, judge=Above(2., 2.)).gate == 1).all()

def test_the_judge_sees_what_the_classifier_sees():
    engine, x, y = paths()
    judge = Above(.5)
    engine.prepare = lambda x: 2*x+3
    syn = engine(Smooth(size=8).eval(), x, y, judge=judge)
    torch.testing.assert_close(
        judge.looked[0],
        2*engine.ae.decode(syn.z0+(syn.z-syn.z0)/torch.where(syn.gate > 0, syn.gate, 1.).view(-1,1,1,1))+3)

@pytest.mark.parametrize('error', [None, KeyError('k'), RuntimeError('r'), KeyboardInterrupt()],
                         ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('task', ['grey','labels'])
def test_the_judge_is_left_as_it_was(error, task):
    ae, model, x, y = made(task)
    judge = mixed(made(task, seed=9)[1])
    mixed(ae); mixed(model)
    before, engine = state(ae, model, judge), Synthesizer(ae, T=4, task=TASKS[task][2], gate=.5)
    judge.fail = error
    if error is None: engine(model, x, y, judge=judge)
    else:
        with pytest.raises(type(error)): engine(model, x, y, judge=judge)
    assert same(state(ae, model, judge), before)
    judge.fail = None
    assert len(engine(model, x, y, judge=judge)) == 4

def test_a_judge_that_drops_and_normalises_in_training_does_neither_here():
    ae, model, x, y = made()
    judge = made(seed=9)[1]
    runs = [Synthesizer(ae, T=4, radius=1., gate=.5)(model, x, y, judge=judge.train(mode))
            for mode in (True, False)]
    assert torch.equal(runs[0].gate, runs[1].gate) and torch.equal(runs[0].x, runs[1].x)


# The bank

def encoded(ae, x):
    with torch.no_grad(): return ae.encode(x)

def calls_of(ae, monkeypatch):
    "How many images were encoded, call by call"
    seen, f = [], ae.encode
    monkeypatch.setattr(ae, 'encode', lambda x: (seen.append(len(x)), f(x))[1])
    return seen

@pytest.mark.parametrize('warm', [True, False])
def test_each_image_is_encoded_once(warm, monkeypatch):
    ae, model, x, y = made(n=6)
    z, seen, bank = encoded(ae, x), calls_of(ae, monkeypatch), LatentBank(warm)
    engine = Synthesizer(ae, T=3, steps=1, gate=.5)
    for epoch in range(4):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(epoch))
        for i in order.split(4):
            syn = engine(model, x[i], y[i], index=10*i, bank=bank)
            torch.testing.assert_close(syn.z0, z[i], rtol=1e-5, atol=1e-6)
    assert seen == [4,2] and bank.encoded == 6

@given(st.lists(st.lists(st.integers(-3, 10**9), min_size=1, max_size=5, unique=True), min_size=1,
                max_size=6))
@settings(max_examples=40)
def test_indices_come_in_any_order(batches):
    g = torch.Generator().manual_seed(0)
    ae, bank = Grid(), LatentBank()
    images = {i: torch.rand(1, 8, 8, generator=g) for b in batches for i in b}
    for b in batches:
        x = torch.stack([images[i] for i in b])
        z0,start = bank.recall(ae, x, torch.tensor(b))
        assert torch.equal(z0, ae.encode(x))
        bank.store(torch.tensor(b), z0+1)
    assert bank.encoded == len(images)
    every = torch.tensor(list(images))
    x = torch.stack(list(images.values()))
    assert torch.equal(bank.recall(ae, x, every)[1], ae.encode(x)+1)

def test_a_bank_makes_room_a_few_times_only():
    ae,bank,places,x = Grid(),LatentBank(),set(),torch.rand(256,1,8,8, dtype=torch.float64)
    for i in range(256):
        z0,_ = bank.recall(ae, x[i:i+1], torch.tensor([i]))
        bank.store(torch.tensor([i]), z0+1)
        places.add(len(bank.z))
    assert len(bank.rows) == bank.encoded == 256 and len(places) <= 9
    assert torch.equal(bank.recall(ae, x, torch.arange(256))[1], ae.encode(x)+1)

def test_twice_the_same_image_in_a_batch():
    ae, model, x, y = made()
    i, bank = torch.tensor([2,0,2,2]), LatentBank()
    for _ in range(2):
        syn = Synthesizer(ae, T=3, steps=1, gate=.5)(model, x[i], y[i], index=i, bank=bank)
        torch.testing.assert_close(syn.z0, encoded(ae, x[i]), rtol=1e-5, atol=1e-6)
        assert torch.isfinite(syn.z).all() and (moved(syn, ae) <= .3+1e-5).all() and len(bank.rows) == 2

@pytest.mark.parametrize('warm', [True, False])
def test_a_warm_start_is_where_the_last_ascent_ended(warm, starts):
    ae, model, x, y = made()
    bank, engine = LatentBank(warm), Synthesizer(ae, T=3, steps=1, step=.4, gate=.5)
    syns = [engine(model, x, y, seed=k, index=torch.arange(4), bank=bank) for k in range(4)]
    for (start,z0,r),last in zip(starts, [None, *syns]):
        assert torch.equal(start, z0 if last is None or not warm else last.z)
    assert (moved(syns[-1], ae) <= .3+1e-5).all()

def test_a_moved_back_image_starts_where_it_was_left_and_a_dropped_one_at_its_source(starts):
    i, y, gates, x = torch.arange(40), torch.ones(40).long(), [], paths(40)[1]
    with seeded(0): model = Smooth(size=8).double().eval()
    engine = Synthesizer(Grid(), T=3, steps=1, step=1., radius=.3, gate=.5)
    for cut in torch.linspace(.45, .55, 9).tolist():
        bank = LatentBank()
        syn = engine(model, x, y, index=i, bank=bank, judge=Above(cut))
        engine(model, x, y, index=i, bank=bank)
        assert torch.equal(starts[-1][0], torch.where(syn.gate.view(-1,1,1,1) > 0, syn.z, syn.z0))
        gates += syn.gate.tolist()
    assert set(gates) == {0., .25, .5, .75, 1.}

def test_a_changed_image_is_new(starts):
    ae, model, x, y = made()
    bank, engine, i = LatentBank(), Synthesizer(ae, T=3, steps=1, gate=.5), torch.arange(4)
    first = engine(model, x, y, index=i, bank=bank)
    other = x.clone(); other[1] = other[1].flip(-1); other[3] = 1-other[3]
    syn = engine(model, other, y, index=i, bank=bank)
    start = starts[-1][0]
    torch.testing.assert_close(syn.z0, encoded(ae, other), rtol=1e-5, atol=1e-6)
    assert bank.encoded == 6 and torch.equal(start[[1,3]], syn.z0[[1,3]])
    assert torch.equal(start[[0,2]], first.z[[0,2]])
    back = engine(model, x, y, index=i, bank=bank)
    torch.testing.assert_close(back.z0, encoded(ae, x), rtol=1e-5, atol=1e-6)
    assert bank.encoded == 8

CHANGES = {'flip': lambda x: x.flip(-1), 'shift': lambda x: x.roll(1, -1), 'brighter': lambda x: x+1/255,
           'darker': lambda x: x-1/255, 'turned': lambda x: x.rot90(1, (2,3))}

@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('shape', [(1,28,28), (3,28,28)])
def test_a_bank_finds_small_changes_by_fingerprint(change, shape):
    g = torch.Generator().manual_seed(0)
    # smooth, in whole grey values
    x = torch.rand(50, shape[0], shape[1]+4, shape[2]+4, generator=g)
    x = (F.avg_pool2d(x, 5, 1)*253).round()/255+1/255
    bank, other = LatentBank(), CHANGES[change](x)
    for images,n in ((x, 50), (x+1e-6, 50), (other, 100), (other, 100)):
        bank.recall(Grid(), images, torch.arange(50))
        assert bank.encoded == n

def test_a_fingerprint_does_not_depend_on_batch_mates_or_strides():
    x = torch.rand(9, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    together = _fingerprint(x)
    for other in (torch.cat([_fingerprint(x[i:i+1]) for i in range(9)]),
                  _fingerprint(x.contiguous(memory_format=torch.channels_last)),
                  _fingerprint(x.double()).float(), _fingerprint((x-.48)/.23*.23+.48)):
        torch.testing.assert_close(other, together, rtol=0, atol=1e-6)

def test_a_bank_changes_nothing_but_the_start():
    ae, model, x, y = made()
    for kwargs in (dict(warm=True), dict(warm=False)):
        bank = LatentBank(**kwargs)
        for _ in range(1 if kwargs['warm'] else 3):
            syn = Synthesizer(ae, T=3, gate=.5)(model, x, y, index=torch.arange(4), bank=bank)
            assert torch.equal(syn.z, Synthesizer(ae, T=3, gate=.5)(model, x, y).z)


# Precision

def dtypes(*modules):
    "What the convolutions and linear layers inside compute in"
    seen = {m: set() for m in modules}
    for top in modules:
        for m in top.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)):
                m.register_forward_hook(lambda _,inp,out,top=top: seen[top].add(out.dtype))
    return seen

@tasks
@pytest.mark.parametrize('o', ['mi','entropy','cross_entropy'])
def test_bfloat16_is_inside_and_float32_outside(task, o):
    ae, model, x, y = made(task)
    judge = made(task, seed=9)[1]
    full = synthesize(ae, model, x, y, objective=o, T=4, steps=1, task=TASKS[task][2])
    seen = dtypes(ae.dec, ae.enc, model, judge)
    engine = Synthesizer(ae, o, T=4, steps=1, task=TASKS[task][2], bf16=True, gate=.5)
    half = engine.measure(model, engine(model, x, y), seed=1)
    engine(model, x, y, judge=judge)
    assert set.union(*seen.values()) == {torch.bfloat16} and all(seen.values())
    for f in fields(Synthetic):
        if f.name != 'y' and (v := getattr(half, f.name)) is not None: assert v.dtype == torch.float32, f.name
    assert {p.dtype for m in (ae, model, judge) for p in m.parameters()} == {torch.float32}
    torch.testing.assert_close(half.x, full.x, rtol=0, atol=.1)
    torch.testing.assert_close(half.z0, full.z0, rtol=.05, atol=.05)
    assert (half.x-full.x).abs().mean() < .02 and not torch.equal(half.x, full.x)
    torch.testing.assert_close(half.mi_before, full.mi_before, rtol=.1, atol=5e-3)

@pytest.mark.parametrize('outer', [False, True])
@pytest.mark.parametrize('error', [None, KeyError('k'), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_autocast_is_afterwards_as_before(error, outer):
    ae, model, x, y = made()
    judge, engine = made(seed=9)[1], Synthesizer(ae, T=4, bf16=True, gate=.5)
    with torch.autocast('cpu', torch.bfloat16, enabled=outer):
        for m in (model, judge):
            m.fail = error
            if error is None: engine.measure(model, engine(model, x, y, judge=judge))
            else:
                with pytest.raises(type(error)): engine(model, x, y, judge=judge)
            assert torch.is_autocast_enabled('cpu') == outer
            m.fail = None
    assert not torch.is_autocast_enabled('cpu')

@tasks
def test_all_of_it_in_float64(task):
    ae, model, x, y = made(task, dtype=torch.float64)
    judge, bank = made(task, seed=9, dtype=torch.float64)[1], LatentBank()
    engine = Synthesizer(ae, T=4, steps=1, jitter=.2, task=TASKS[task][2], gate=.5)
    for _ in range(2):
        syn = engine.measure(model, engine(model, x, y, index=torch.arange(4), judge=judge, bank=bank))
    assert {getattr(syn, f.name).dtype for f in fields(Synthetic) if f.name not in ('y','index')} == {
        torch.float64}


# Picking

@pytest.mark.parametrize('i', [[4,0], torch.tensor([4,0]), np.array([4,0]), range(1, 4),
                               [True,False,False,False,True,False], torch.tensor([1,0,0,1,0,1]) > 0,
                               torch.zeros(6).bool()],
                         ids=['list','tensor','array','range','list of bool','mask','empty mask'])
def test_picked_images_bring_all_they_have(i):
    ae, model, x, y = made(n=6)
    s = synthesize(ae, model, x, y, T=4, index=torch.arange(6)*7)
    p, where = s.pick(i), np.arange(6)[np.asarray(i)]
    assert len(p) == len(where) and p.table().source_index.tolist() == (7*where).tolist()
    for f in fields(Synthetic):
        v = getattr(s, f.name)
        assert torch.equal(getattr(p, f.name), v[:,where] if f.name == 'trace' else v[where]), f.name
    assert Synthesizer(ae, T=4, gate=.5)(model, x, y).pick(i).mi_after is None

def test_the_same_image_twice_in_a_batch_augmented_differently():
    ae, model, x, y = made()
    x,y,i = torch.cat([x, x[:1].flip(-1)]), torch.cat([y, y[:1]]), torch.tensor([0,1,2,3,0])
    syn = Synthesizer(ae, T=3, steps=1, gate=.5)(model, x, y, index=i, bank=LatentBank())
    torch.testing.assert_close(syn.z0, encoded(ae, x), rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('steps', [1, 2])
def test_a_remembered_start_outside_the_ball_is_not_used(steps):
    "Be it of a wider ball, or of another image of the same source"
    ae, model, x, y = made()
    i,bank,narrow = torch.arange(4), LatentBank(), Synthesizer(ae, T=3, steps=steps, radius=.1, gate=.5)
    far = Synthesizer(ae, T=3, steps=2, radius=2., step=1., gate=.5)(model, x, y, index=i, bank=bank)
    assert (far.distance_latent > .5).all()
    syn = narrow(model, x, y, index=i, bank=bank)
    assert (syn.distance_latent <= .1*(1+1e-4)).all() and torch.equal(syn.z, narrow(model, x, y).z)

def test_a_bank_needs_to_know_which_image_it_is():
    ae, model, x, y = made()
    with refused('index'):
        Synthesizer(ae, T=3)(model, x, y, bank=LatentBank())
    assert Synthesizer(ae, T=3)(model, x, y, index=[7,5,3,1]).table().source_index.tolist() == [7,5,3,1]

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.bool])
def test_class_numbers_of_any_whole_type(dtype):
    ae, model, x, y = made()
    a,b = (synthesize(ae, model, x, v, objective='cross_entropy', T=3) for v in (y.to(dtype), y))
    assert torch.equal(a.x, b.x) and torch.equal(a.p_after, b.p_after)

@pytest.mark.parametrize('size', [12, 64, 224])
@pytest.mark.parametrize('ch', [1, 3])
@pytest.mark.parametrize('change', CHANGES)
def test_fingerprints_at_other_sizes(change, size, ch):
    g = torch.Generator().manual_seed(0)
    x = (F.avg_pool2d(torch.rand(20, ch, size+4, size+4, generator=g), 5, 1)*253).round()/255+1/255
    assert ((_fingerprint(x)-_fingerprint(CHANGES[change](x))).abs() > 1e-4).any(1).all()

def test_picking_nothing():
    ae, model, x, y = made()
    for i in ([], range(0)): assert len(Synthesizer(ae, T=4, gate=.5)(model, x, y).pick(i)) == 0

@pytest.mark.parametrize('values', [[0.,.5,1.], [-1.,0.,1.], [0.,1.,2.]], ids=str)
def test_several_labels_are_zeros_and_ones(values):
    with refused('labels', 'zeros and ones', f'from {min(values)} to {max(values)}'):
        SEVERAL.check(torch.zeros(3, 1), torch.tensor(values)[:,None])
    SEVERAL.check(torch.zeros(3, 1), torch.tensor([[0.],[1.],[1.]]))
