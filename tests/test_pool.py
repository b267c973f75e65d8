"""Images without labels: nothing looks at their labels, and what each method does with them is known."""
import pickle
from dataclasses import replace

import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.transforms import Normalize
from fasttransform import Pipeline
from refused import refused

from tsynd.cli import main
from tsynd.data import phantom, Split, subset, to_float, training_images, with_pool
from tsynd.experiments import about_run, ARMS, callbacks, check_config, prepare_data, RunConfig, StudyConfig
from tsynd.models import classifier_learner, make_classifier, train_autoencoder, train_classifier
from tsynd.pool import Contrastive, FixMatch, MeanTeacher, PoolTraining, VirtualAdversarial, weak

ON_POOL = [name for name,a in ARMS.items() if a.pool]


@pytest.fixture(scope='module')
def data(): return subset(phantom(n_train=60, n_val=16, n_test=16, size=12, holes=False), 16, pool=True)

@pytest.fixture(scope='module')
def ae(data): return train_autoencoder(data, steps=20)

def quick(name):
    settings = ARMS[name].settings
    return {k: v for k,v in dict(pool_updates=2, gate=0., threshold=.5).items() if k in settings}

def weights(data, cbs): # after a short training
    learn = train_classifier(data, epochs=2, bs=8, seed=1, cbs=cbs)
    return torch.cat([v.flatten().double() for v in learn.model.state_dict().values()])


# The labels of the pool

@pytest.mark.parametrize('name', ON_POOL)
def test_labels_of_the_pool_are_not_looked_at(name, data, ae):
    "Shuffled ones give equal numbers, to the last bit, also where the pool is given with them"
    pool, shuffled = data.unlabelled, torch.randint(2, (len(data.unlabelled),))
    found = []
    for y in (None, shuffled):
        labelled = Split(pool.x, y, pool.index)
        d = replace(data, unlabelled=labelled)
        cbs = callbacks(name, train_autoencoder(d, steps=5), seed=1, **quick(name))
        for cb in cbs: cb.pool = labelled
        found.append(weights(d, cbs))
    assert torch.equal(*found)

def test_a_pool_is_what_the_subset_leaves(data):
    assert len(data.train) == 16 and len(data.unlabelled) == 44 and data.unlabelled.y is None
    assert {*data.train.index.tolist()} | {*data.unlabelled.index.tolist()} == {*range(60)}
    assert len(training_images(data)) == 60

def test_images_of_another_size_are_no_pool(data):
    with refused('phantom, unlabelled: images', '(1, 16, 16)'):
        replace(data, unlabelled=phantom(4, 2, 2, size=16).train)
    with refused('pool'): weights(data, [MeanTeacher(pool=torch.zeros(4, 1, 8, 8))])
    with refused('pool', 'no pool'): weights(replace(data, unlabelled=None), [MeanTeacher()])
    with refused('pool', '(1, 8, 8)'): weights(data, [Contrastive(pool=torch.zeros(4, 1, 8, 8))])
    with refused('images'): weights(data, [MeanTeacher(pool=torch.full((4, 1, 12, 12), 7.))])

@pytest.mark.parametrize('pool', [data, torch.zeros(1, 1, 12, 12), np.zeros((4, 1, 12, 12), np.uint8)],
                         ids=['a data set', 'one image', 'an array'])
def test_what_is_no_pool_is_told_in_a_sentence(data, pool):
    with refused('pool', 'at least two'): weights(data, [FixMatch(pool=data if callable(pool) else pool)])

def test_a_pool_of_floats_is_that_of_bytes(data):
    floats = to_float(data.unlabelled.x).double()
    assert torch.equal(*(weights(data, [MeanTeacher(pool=p)]) for p in (data.unlabelled.x, floats)))

def test_impossible_settings_are_named():
    for field, make in dict(threshold=FixMatch, relation=MeanTeacher, temperature=Contrastive,
                            pool_updates=Contrastive, radius=VirtualAdversarial, ramp=MeanTeacher).items():
        with refused(field, found=-1): make(**{field: -1})
    with refused('pool', 'no image of it'): MeanTeacher().lessons()


# Several labels, and learners of one's own

@pytest.mark.parametrize('name', ON_POOL)
def test_several_labels_per_image(name):
    d = subset(phantom(findings=3, combinations=4, n_train=60, n_val=8, n_test=8, size=12), 24, pool=True)
    cbs = callbacks(name, train_autoencoder(d, steps=5), seed=1, **quick(name))
    learn = train_classifier(d, epochs=1, bs=8, cbs=cbs)
    assert torch.isfinite(torch.stack(learn.recorder.losses)).all()
    for cb in cbs:
        if isinstance(cb, PoolTraining) and cb.notes.visits.any():
            assert [c for c in cb.lessons() if c.startswith('last_')] == ['last_0', 'last_1', 'last_2']

def test_of_several_labels_the_chance_is_that_of_being_there():
    d = subset(phantom(findings=3, combinations=4, n_train=40, n_val=8, n_test=8, size=12), 24, pool=True)
    teacher = MeanTeacher(weight=1., ramp=0., decay=0.)
    learn = train_classifier(d, epochs=1, bs=8, lr=1e-6, cbs=[teacher])
    last = teacher.drawn
    x = weak(to_float(d.unlabelled.x[last]), teacher.seed*1000003 + 7919*(int(learn.train_iter)-1) + 17 + 2)
    p = learn.model.eval()(x).sigmoid()
    table = teacher.lessons().set_index('pool_index').loc[last.tolist(), ['last_0', 'last_1', 'last_2']]
    found = torch.from_numpy(table.to_numpy())
    assert (found-p).abs().max() < .2*(found-(1-p)).abs().max()         # and not that of being absent

def test_a_normalised_learner_sees_the_pool_normalised(data):
    seen = []
    net = make_classifier('small_resnet', 1, 2)
    teacher = MeanTeacher(pool=data.unlabelled.x, weight=1., ramp=0.)
    learn = classifier_learner(data, net, bs=8, cbs=[teacher])
    learn.dls.train.after_batch = Pipeline([Normalize.from_stats([.3], [.2], cuda=False)])
    net.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.train_iter -= 1                               # as it was in the last step
    x = weak(to_float(data.unlabelled.x[teacher.drawn]), teacher._step_seed()+1)
    assert any(s.shape == x.shape and torch.allclose(s, (x-.3)/.2, atol=1e-5) for s in seen)

@pytest.mark.parametrize('name', ON_POOL)
def test_what_is_exported_holds_no_image(name, data, ae):
    cbs = [cb for cb in callbacks(name, ae, seed=1, **quick(name)) if isinstance(cb, PoolTraining)]
    weights(data, cbs)
    for cb in cbs:
        cb.learn = None
        left = vars(pickle.loads(pickle.dumps(cb)))
        assert all(left.get(k) is None for k in ('pool', 'images', 'unlabelled', 'made', 'teacher', 'notes'))

def test_every_image_has_its_turn(data):
    "No image comes again before all others were there"
    teacher, seen = MeanTeacher(), []
    weights(data, [teacher, Note(lambda: seen.extend(teacher.drawn.tolist()))])
    N = len(data.unlabelled)
    assert len(seen) == 32 and len({*seen[:N]}) == len(seen[:N])
    assert teacher.lessons().visits.max() == 1

def test_lessons_add_up(data):
    "Each draw is one visit; the last opinion of an image is a probability"
    teacher = MeanTeacher(weight=3.)
    weights(data, [teacher])
    table = teacher.lessons()
    # with an odd number of images a batch holds the last of one turn and the first of the next
    odd = MeanTeacher(weight=3., ramp=0., pool=data.unlabelled.x[:11])
    weights(data, [odd])
    assert odd.lessons().visits.sum() == odd.n_images > 11
    assert table.visits.sum() == teacher.n_images and (table.pull >= 0).all()
    assert torch.allclose(torch.tensor(table[['last_0','last_1']].sum(1).to_numpy()), torch.ones(len(table)))


# What each method does

class Note(Callback):
    order, run_valid = 10, False
    def __init__(self, look): self.look = look
    def after_loss(self): self.look()

@pytest.mark.parametrize('name', ['fixmatch', 'vat', 'contrastive', 'targeted_consistency',
                                  'random_consistency', 'reconstruction_consistency'])
def test_batch_norm_takes_no_note_of_made_images(name, data, ae):
    "After one step, from the same weights, the running statistics are those of the labelled batch alone"
    def statistics(cbs):
        few = subset(data, 8, pool=False)
        net = train_classifier(few, epochs=1, bs=8, seed=1, p=.5, cbs=cbs).model
        return [b.clone() for k,b in net.named_buffers() if 'running' in k or 'tracked' in k]
    cbs = callbacks(name, ae, seed=1, **quick(name))
    for cb in cbs: cb.ramp, cb.pool_updates = 0., 1
    made, plain = statistics(cbs), statistics([])
    first = 0 if name != 'contrastive' else None        # whose weights differ by then
    if first is None: assert torch.equal(made[2], plain[2])
    else: assert all(torch.allclose(a, b, atol=1e-6) for a,b in zip(made, plain))

def test_pretraining_is_done_once_and_leaves_no_gradient(data):
    cb, norms = Contrastive(pool_updates=3, seed=1), []
    class Look(Callback):
        order = 90
        def before_batch(self):
            norms.append(sum(p.grad.norm().item() for p in self.model.parameters() if p.grad is not None))
    learn = classifier_learner(data, make_classifier('small_resnet', 1, 2), bs=8, cbs=[cb, Look()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        losses = cb.losses
        learn.fit(1)
    assert norms[0] == 0 and cb.losses is losses
    assert torch.equal(weights(data, [Contrastive(weight=0.)]), weights(data, []))

class Linear(torch.nn.Module):
    "The logarithm of the odds is linear in the pixels, so that the direction of the fastest change is known"
    def __init__(self, w): super().__init__(); self.w,self.out = torch.nn.Parameter(w),torch.nn.Linear(1, 2)
    def forward(self, x):
        s = (x*self.w).sum((1,2,3))
        return torch.stack([-s/2, s/2], 1) + 0*self.out(s[:,None])

def test_the_virtual_adversarial_step_is_along_the_fastest_change(data):
    w = torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(1))
    virtual = VirtualAdversarial(radius=.01, ramp=0., weight=1e-9)
    train_classifier(data, Linear(w), epochs=1, bs=8, lr=1e-6, cbs=[virtual])
    virtual.learn.model.w.data = w.clone(); virtual.learn.model.train()
    x = .4 + .2*torch.rand(6, 1, 12, 12)                # far from black and white
    step = (virtual._step(x)-x).flatten(1)
    assert torch.cosine_similarity(step, w.flatten()[None]).abs().min() > .999
    assert torch.allclose(step.square().mean(1).sqrt(), torch.full((6,), .01), atol=1e-6)

def test_a_step_of_a_targeted_image_stays_in_its_ball(data, ae):
    for name in ('targeted_consistency','random_consistency'):
        cb, = callbacks(name, ae, radius=.2)
        weights(data, [cb])
        step = (cb.made.z-cb.made.z0).flatten(1).square().mean(1).sqrt()/ae.sigma
        assert 0 < step.max() <= .2+1e-4 and torch.allclose(step, cb.made.distance_latent, atol=1e-5), name
    cb, = callbacks('reconstruction_consistency', ae)
    weights(data, [cb])
    assert cb.made.distance_latent.max() == 0

def test_unsure_guesses_teach_nothing(data):
    "With a threshold that nobody reaches the weights are those without the loss (dropout off: it draws)"
    unsure, plain = FixMatch(weight=5., threshold=1.), FixMatch(weight=0.)
    found = [[*train_classifier(data, epochs=2, bs=8, seed=1, p=0., cbs=[cb]).model.parameters()]
             for cb in (unsure, plain)]
    assert sum(unsure.sure) == 0 and all(torch.equal(a, b) for a,b in zip(*found))


# Runs and studies

def test_arms_on_a_pool_need_one():
    c = StudyConfig('s', ['phantom'], [20], 1, dict(mean_teacher={}))
    with refused('arm mean_teacher', 'pool = true'): check_config(c)
    with refused('pool', 'full'): check_config(replace(c, n=['full'], pool=True))
    assert check_config(replace(c, pool=True)).pool

def test_a_run_is_another_one_with_another_pool():
    c = RunConfig(subset=20)
    plain, pooled = (prepare_data(replace(c, pool=p)) for p in (False, True))
    assert plain.unlabelled is None and len(pooled.unlabelled) == len(phantom().train)-20
    other = with_pool(pooled, phantom(4, 2, 2, seed=9).train)
    sums = [about_run(c, d)['checksum of the images'] for d in (plain, pooled, other)]
    assert len({*sums}) == 3

def test_a_pool_without_a_subset_is_told_in_a_sentence(capsys, tmp_path):
    assert main(['run', 'phantom', '--pool', '--out', str(tmp_path/'run')]) == 2
    said = capsys.readouterr().err
    assert 'no subset is given' in said and 'Traceback' not in said and not (tmp_path/'run').exists()
    with refused('pool'): prepare_data(RunConfig(pool=True))
