"""What each arm promises: the distance of the random twin, the box of the attack,
and that training without it is untouched."""
import copy, math
from types import SimpleNamespace

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.transforms import Normalize
from fasttransform import Pipeline
from refused import refused
from states import Change, same, state

from tsynd.experiments import ARMS, callbacks, extra_images, PixelSpace, TrivialAugment
from tsynd.models import train_autoencoder
from tsynd.models import classifier_learner, make_classifier, mc_logits, train_classifier
from tsynd.core import MultiLabel, seeded, SingleLabel
from tsynd.data import phantom, with_pool
from tsynd.robustness import adversarial, AdversarialTraining
from tsynd.targeting import Synthesizer
from tsynd.targeting import mutual_information

ONE, SEVERAL = SingleLabel(), MultiLabel()


@pytest.fixture(scope='module')
def data(): return with_pool(phantom(n_train=24, n_val=8, n_test=8), phantom(16, 8, 8, seed=1).train)

@pytest.fixture(scope='module')
def ae(data): return train_autoencoder(data, steps=20)

@pytest.fixture(scope='module')
def model(data): return train_classifier(data, epochs=4).model

def quick(name): return {k: 2 for k in ('generator_updates','pool_updates') if k in ARMS[name].settings}

class Linear(torch.nn.Module):
    "Log-odds that are linear in the pixels, so that the strongest attack is known"
    def __init__(self, w): super().__init__(); self.w = torch.nn.Parameter(w)
    def forward(self, x):
        s = (x*self.w).sum((1,2,3))
        return torch.stack([-s/2, s/2], 1)


def test_every_arm_says_what_it_is():
    for name, a in ARMS.items():
        assert a.name == name and a.sentence and a.source and len(a.sentence) < 100
        assert all(v is not None for v in a.settings.values())

@pytest.mark.parametrize('name', ARMS)
def test_every_arm_trains(name, data, ae):
    settings = quick(name) | (dict(gate=0.) if 'gate' in ARMS[name].settings else {})
    losses = train_classifier(data, epochs=1, bs=8,
                              cbs=callbacks(name, ae, seed=1, **settings)).recorder.losses
    assert len(losses) == 3 and all(math.isfinite(l) for l in losses)

@pytest.mark.parametrize('name, settings', [
    *((a, dict(weight=0.)) for a in ARMS
      if 'weight' in ARMS[a].settings and a not in ('mi_fgsm','mi_mixup','mi_pgd','contrastive_vat')),
    ('trivialaugment', dict(p=0.)), ('mi_fgsm', dict(weight=0., attack_weight=0.)),
    ('mi_pgd', dict(weight=0., attack_weight=0.))],
    ids=lambda v: v if isinstance(v, str) else '')
def test_an_arm_without_weight_is_the_baseline(name, settings, data, ae):
    "To the last bit: nothing an arm does touches the random stream or the buffers of the classifier"
    def weights(cbs):
        learn = train_classifier(data, epochs=1, bs=8, cbs=cbs)
        return torch.cat([v.flatten().double() for v in learn.model.state_dict().values()])
    assert torch.equal(weights(callbacks(name, ae, **quick(name) | settings)), weights([]))

@pytest.mark.parametrize('name, setting, value', [
    ('mixup', 'alpha', 'a'), ('mixup', 'alpha', -1), ('random', 'times', 0), ('mi', 'radius', -1),
    ('mi', 'gate', 2.), ('pgd', 'eps', 2.), ('pgd', 'steps', 0), ('joint', 'eps', 4),
    ('joint', 'pixel_steps', 0), ('fgsm', 'weight', -1.), ('mi_pgd', 'part', 1.5), ('mi_pgd', 'steps', 0),
    ('trivialaugment', 'p', 1.5)])
def test_impossible_settings_are_named(name, setting, value, ae):
    with refused(setting, found=value): callbacks(name, ae, **{setting: value})

def test_unknown_settings_and_arms_are_named(ae):
    with refused('wieght', 'weight', 'radius', found=1): callbacks('mi', ae, wieght=1)
    for name in ('nothing', ['mi']):
        with refused('arm', 'baseline', found=name): callbacks(name, ae)


# Synthesis

def test_the_random_twin_moves_as_far_in_another_direction(data, ae):
    "Seen from inside a training: what MI made of each batch, and what the arm trains on instead"
    made = []
    class Both(Callback):
        order,run_valid = -4,False
        def before_fit(self):
            engine, copy_of = self.learn.tsynd.engine, type(self.learn.tsynd.engine).at_distance
            def spy(syn, seed=0):
                made.append((syn, copy_of(engine, syn, seed))); return made[-1][1]
            engine.at_distance = spy
        def before_batch(self):
            if self.learn.tsynd.syn is not None: assert self.learn.tsynd.syn is made[-1][1]
    train_classifier(data, epochs=3, cbs=[*callbacks('random', ae, radius=.4, gate=0.), Both()])
    assert len(made) >= 2
    for mi, twin in made:
        a, b = (mi.z-mi.z0).flatten(1), (twin.z-twin.z0).flatten(1)
        assert torch.allclose(a.norm(dim=1), b.norm(dim=1), rtol=1e-4)
        assert torch.cosine_similarity(a, b).abs().max() < .4
        assert torch.equal(twin.source, mi.source) and (twin.x-mi.x).abs().max() > .01
    # not all of them are on the radius
    assert min(mi.distance_latent.min() for mi, _ in made) < .39

def test_pixel_space_climbs_in_pixels(data, model):
    x, y = data.train.batch(slice(0, 12))
    s = Synthesizer(PixelSpace(), steps=4, radius=.03)
    out = s.measure(model, s(model, x, y))
    assert torch.allclose(out.x, out.z.clamp(0, 1)) and torch.equal(out.reconstruction, x)
    rms = (out.z-x).pow(2).mean((1,2,3)).sqrt()
    assert (rms <= .03+1e-6).all() and rms.max() > .001
    assert (out.trace[-1] >= out.trace[0]-1e-7).all() and out.mi_after.mean() > out.mi_before.mean()

def test_joint_stays_in_the_box_around_the_original_plus_the_displacement(data, ae):
    cb, = callbacks('joint', ae, gate=0., eps=3/255)
    train_classifier(data, epochs=2, cbs=cb)
    s = cb.syn
    with torch.no_grad(): base = (s.source + ae.decode(s.z)-ae.decode(s.z0)).clamp(0, 1)
    d = (s.x-base).abs()
    assert d.max() <= 3/255+1e-5 and d.mean() > 1/255 and 0 <= s.x.min() and s.x.max() <= 1


# Attacks in training

@pytest.mark.parametrize('steps', [1, 3, 10])
def test_on_a_linear_model_the_attack_reaches_the_worst_corner(steps):
    with seeded(0): w, x, y = torch.randn(1, 6, 6), .3+.4*torch.rand(16, 1, 6, 6), torch.arange(16) % 2
    got, eps = adversarial(Linear(w), x, y, 4/255, steps), 4/255
    sign = torch.where(y == 1, -1., 1.).view(-1, 1, 1, 1)
    want = x + eps*sign*w.sign()
    assert (got-x).abs().max() <= eps+1e-7
    if steps > 1: assert torch.allclose(got, want, atol=1e-6)
    # 1.25 eps from anywhere in the box: most pixels end in the corner, none on the wrong side
    else:
        assert ((got-x)*sign*w.sign()).min() >= .25*eps-1e-6 and ((got-want).abs() < 1e-6).float().mean() > .5

def test_the_attack_depends_on_its_seed_and_leaves_the_model_alone(data, model):
    x, y = data.train.batch(slice(0, 8))
    model.train(); before = {k: v.clone() for k, v in model.state_dict().items()}
    a, b, c = (adversarial(model, x, y, seed=s) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()

def test_attack_on_several_labels_raises_the_loss():
    with seeded(0):
        net = make_classifier('small_resnet', 1, 3).eval()
        x, y = torch.rand(8, 1, 28, 28), torch.randint(2, (8, 3)).float()
    loss = lambda x: torch.nn.functional.binary_cross_entropy_with_logits(net(x), y)
    assert loss(adversarial(net, x, y, 8/255, 3, task='multi-label, binary-class')) > loss(x)

def test_the_weighted_loss_is_added_to_that_of_the_batch(data):
    "With neither dropout nor batch norm in the way, the sum can be computed again"
    seen = []
    class Sum(Callback):
        order,run_valid = 5,False
        def after_loss(self):
            cb = self.learn.adversarial_training
            with torch.no_grad(): extra = cb.base_loss(self.learn.model(cb.attacked), cb.labels)
            seen.append((self.learn.loss_grad.item(), self.learn.loss.item() + 2*extra.item()))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2))
    train_classifier(data, net, epochs=2, bs=8, cbs=[AdversarialTraining(weight=2.), Sum()])
    assert len(seen) == 6 and all(abs(a-b) < 1e-5 for a,b in seen)

@pytest.mark.parametrize('part, task', [(1/3, ONE), (.5, SEVERAL), (1., ONE), (.01, ONE)])
def test_several_steps_go_where_mi_is_highest(model, part, task):
    with seeded(3):
        x = torch.rand(12, 1, 28, 28)
        y = torch.randint(2, (12, 2)).float() if task.several else torch.randint(2, (12,))
    cb, = callbacks('mi_pgd', weight=0., part=part, steps=4)
    cb.learn = SimpleNamespace(model=model)
    before = state(model)
    a = cb.attack(x, y, 5)
    assert same(state(model), before)
    n = math.ceil(part*12)
    far = mutual_information(mc_logits(model, x, cb.T, 5), task).argsort(descending=True)[:n].sort().values
    near = torch.tensor([i for i in range(12) if i not in far.tolist()], dtype=torch.long)
    for i,steps in ((far, 4), (near, 1)):
        if len(i): assert torch.equal(a[i], adversarial(model, x[i], y[i], cb.eps, steps, 5, task))
    assert len(near) == 12-n
    assert (n == 12 or not torch.equal(a[near], adversarial(model, x[near], y[near], cb.eps, 4, 5, task)))

@pytest.mark.parametrize('part, task', [(1/3, ONE), (.5, SEVERAL)])
def test_its_control_spends_as_many_steps_by_lot(model, part, task):
    "Which images are drawn depends on the seed alone, and all are drawn in time"
    with seeded(3):
        x = torch.rand(12, 1, 28, 28)
        y = torch.randint(2, (12, 2)).float() if task.several else torch.randint(2, (12,))
    cb, = callbacks('random_pgd', part=part, steps=4)
    cb.learn = SimpleNamespace(model=model)
    draws = [cb.signal(x, y, s).topk(math.ceil(part*12)).indices.sort().values for s in range(40)]
    assert {i for d in draws for i in d.tolist()} == set(range(12))
    assert torch.equal(cb.signal(x, y, 5), cb.signal(1-x, 1-y, 5))
    far,a = draws[5],cb.attack(x, y, 5)
    near = torch.tensor([i for i in range(12) if i not in far.tolist()])
    for i,steps in ((far, 4), (near, 1)):
        assert torch.equal(a[i], adversarial(model, x[i], y[i], cb.eps, steps, 5, task))

def test_without_synthesis_the_targeted_attack_needs_no_autoencoder(data):
    losses = train_classifier(data, epochs=1, bs=8, cbs=callbacks('mi_pgd', None, weight=0.)).recorder.losses
    assert all(math.isfinite(l) for l in losses)

def test_harder_training_makes_a_harder_classifier(data):
    "On images it was trained on, attacked: adversarial training leaves more right"
    x, y = data.train.batch(slice(None))
    def right(cbs):
        m = train_classifier(data, epochs=25, cbs=cbs).model
        with torch.no_grad(): return (m(adversarial(m, x, y, 4/255, 10)).argmax(1) == y).float().mean()
    assert right(callbacks('pgd', weight=4.)) > right([]) + .1


# Augmentation

def test_trivialaugment_changes_the_share_it_says(data):
    seen = []
    class Look(Callback):
        order = 0
        def before_batch(self):
            if not self.training: return
            i = self.learn.dl.batch_index(self.learn.iter)
            where = {int(k): n for n, k in enumerate(data.train.index.tolist())}
            real = data.train.x[[where[int(k)] for k in i]].float()/255
            seen.extend(((self.learn.xb[0]-real).abs().amax((1,2,3)) > 1e-6).tolist())
    for p in (0., .5, 1.):
        seen.clear()
        train_classifier(data, epochs=10, cbs=[TrivialAugment(p), Look()])
        share = sum(seen)/len(seen)
        assert share == 0 if p == 0 else .55*p < share <= p+.1            # identity is among the operations

def test_shifts_are_a_part_of_the_side():
    "torchvision's go up to 32 pixels, which would push an image of 28 out of its frame"
    from tsynd.pool.augmentation import _trivial
    for k in ('TranslateX','TranslateY'):
        assert _trivial()._AUGMENTATION_SPACE[k][0](31, 28, 28).max() == 4
        assert _trivial()._AUGMENTATION_SPACE[k][0](31, 224, 224).max() == 32

def test_augmented_images_are_images_and_repeatable(data):
    a, b = (extra_images('trivialaugment', None, make_classifier('small_resnet', 1, 2), data, range(8))
            for _ in range(2))
    assert torch.equal(a, b) and 0 <= a.min() and a.max() <= 1 and a.shape == (8, 1, 28, 28)

@pytest.mark.parametrize('name', ['mi_default','mixup','mi_mixup'])
def test_extra_images_are_one_for_each_and_the_same_again(name, data, ae, model):
    before = torch.get_rng_state()
    a, b = (extra_images(name, ae, model, data, range(8)) for _ in range(2))
    assert len(a) == 8 and torch.equal(a, b) and torch.equal(torch.get_rng_state(), before)

def test_attacks_in_training_take_class_numbers_of_any_whole_type_but_no_column(data):
    def losses(d):
        cbs = [Change(lambda y: y.to(d)), AdversarialTraining(steps=1)]
        return train_classifier(data, epochs=1, bs=8, cbs=cbs).recorder.losses
    a, b = losses(torch.uint8), losses(torch.int64)
    assert torch.equal(torch.stack(list(a)), torch.stack(list(b)))
    with refused('targets', found=(8, 1)):
        train_classifier(data, epochs=1, bs=8,
                         cbs=[Change(lambda y: y[:,None]), AdversarialTraining(steps=1)])


@pytest.mark.parametrize('name', ['baseline','reconstruction','random','mi','pixel_mi','joint','pgd'])
def test_extra_images_are_those_of_the_named_sources(name, data, ae, model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = data.train.batch(slice(2, 8))[0]
    out = extra_images(name, ae, model, data, range(2, 8))
    assert out.shape == x.shape and 0 <= out.min() and out.max() <= 1
    nearest = torch.cdist(out.flatten(1), x.flatten(1)).argmin(1)
    # after 20 updates the decoder is coarse
    least = .5 if name in ('reconstruction','random','mi') else 1
    assert (nearest == torch.arange(6)).float().mean() >= least
    assert torch.equal(out, x) == (name == 'baseline')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# What was found by looking

class Scale(Callback):
    order = -6
    def before_batch(self): self.learn.xb = (4*self.x-2,)

@pytest.mark.parametrize('name', ['pgd','fgsm','trivialaugment','joint'])
def test_normalised_batches_are_refused(name, data, ae):
    "These work on images in [0, 1]; only TSynD itself undoes fastai's Normalize"
    def go(field, *cbs, tfms=None):
        learn = classifier_learner(data, make_classifier('small_resnet', 1, 2),
                                   cbs=[*callbacks(name, ae), *cbs])
        if tfms: learn.dls.train.after_batch = Pipeline([tfms])
        for cb in learn.cbs: cb.warmup = 0
        with refused(field, '[0, 1]', 'Normalize'), learn.no_bar(), learn.no_logging():
            learn.fit(1)
    go('images', Scale())
    if name == 'joint': go('batches', tfms=Normalize.from_stats([.3], [.25], cuda=False))

@pytest.mark.parametrize('name, settings', [('random', {}), ('random', dict(times=1.7)), ('joint', {})])
def test_what_is_noted_is_what_was_trained_on(name, settings, data, ae):
    "The images that the ascent found are replaced after the look at them"
    cb, = callbacks(name, ae, gate=0., **settings)
    cb.warmup,cb.measure_every = 0,1
    class Far(Callback):
        order = 90
        def before_fit(self): self.seen = []
        def after_batch(self):
            if not self.training: return
            with torch.no_grad(): rec = cb.engine.ae.decode(cb.syn.z0)
            self.seen.append((cb.syn.x-rec).pow(2).mean((1,2,3)).sqrt().mean().item())
    learn = train_classifier(data, epochs=1, bs=16, cbs=[cb, Far()])
    assert len(learn.far.seen) > 1
    assert np.allclose([h['distance_pixel'] for h in cb.history], learn.far.seen, rtol=1e-3)

@pytest.mark.parametrize('name', ['random', 'joint'])
def test_what_is_kept_is_what_was_trained_on(name, data, ae):
    "And keeping it changes nothing"
    nets,seen = [],[]
    class See(Callback):
        order = 90
        def after_batch(self):
            if self.training and self.learn.epoch == 2: seen.append(self.learn.tsynd.syn.x)
    for keep in (0, 1000):
        cb, = callbacks(name, ae, gate=0.)
        cb.warmup,cb.keep = 0,keep
        seen.clear()
        nets.append(train_classifier(data, epochs=3, bs=16, cbs=[cb, See()]).model.state_dict())
    assert all(torch.equal(a, b) for a,b in zip(*(n.values() for n in nets)))
    assert torch.equal(cb.last_epoch.x, torch.cat(seen)) and len(cb.provenance) == len(data.train)
    assert cb.provenance.distance_pixel.tolist() == pytest.approx(
        (cb.last_epoch.x-cb.last_epoch.reconstruction).pow(2).mean((1,2,3)).sqrt().tolist())

@pytest.mark.parametrize('training', [True, False])
def test_looking_at_an_arm_leaves_the_classifier_alone(training, data, ae, model):
    net = copy.deepcopy(model).train(training)
    extra_images('mi', ae, net, data, range(4))
    assert all(m.training == training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())
