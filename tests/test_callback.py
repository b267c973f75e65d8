"""The callback in trainings of many kinds: off means off,
each image where and when it should be, validation untouched."""
import copy, math, pickle, random, threading, warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np, pytest, timm, torch, torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import (
    BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat)
from fastai.optimizer import SGD, Adam
from hypothesis import assume, given, settings, strategies as st
from layouts import write_npz
from refused import refused
from states import Change
from torch import nn

from tsynd.targeting import ascend, cat
from tsynd.models import Autoencoder, train_autoencoder
from tsynd.targeting import BF16, Clock, MovingAverage, TSynD
from tsynd.models import Classifier, classifier_learner, train_classifier
from tsynd.core import InputError, seeded
from tsynd.data import image_dls, load_medmnist, phantom
from tsynd.targeting import Synthesizer


@pytest.fixture(scope='module')
def data(): return phantom(40, 16, 16, size=12)

@pytest.fixture(scope='module')
def ae(data): return train_autoencoder(data, steps=20, width=4)

@pytest.fixture(scope='module')
def several(tmp_path_factory):
    folder = write_npz(tmp_path_factory.mktemp('several'), 'chestmnist', n=(40,20,20)).parent
    with pytest.warns(UserWarning, match='MD5'): return load_medmnist('chestmnist', folder, download=False)

@pytest.fixture(scope='module')
def several_ae(several): return train_autoencoder(several, steps=20, width=4)

@pytest.fixture
def calls(monkeypatch):
    "Every synthesis: was the learner training, and how many images"
    seen, call = [], Synthesizer.__call__
    def spy(self, model, x, y, **kwargs):
        seen.append(SimpleNamespace(training=model.training, n=len(x), x=x.clone(), **kwargs))
        return call(self, model, x, y, **kwargs)
    monkeypatch.setattr(Synthesizer, '__call__', spy)
    return seen

def tiny(C=2, ch=1, p=.5, seed=0):
    with seeded(seed):
        return Classifier(nn.Sequential(nn.Conv2d(ch, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(),
                                        nn.AdaptiveAvgPool2d(3), nn.Flatten()), 54, C, p)

def tsynd(ae, objective='mi', **kwargs):
    "Cheap, and in every batch from all of it, unless there is a budget"
    always = {} if kwargs.get('budget') else dict(share=1., every=1)
    return TSynD(ae, objective, **dict(dict(T=3, steps=1, warmup=0, gate=0., warm=False, **always), **kwargs))

def quiet(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return f(*args, **kwargs)

def fit(data, cbs, epochs=2, bs=8, model=None, lr=1e-2, opt=Adam, **kwargs):
    loss = BCEWithLogitsLossFlat() if data.task.several else CrossEntropyLossFlat()
    learn = Learner(image_dls(data, bs=bs, **kwargs), tiny(data.n_classes) if model is None else model,
                    loss_func=loss, opt_func=opt, cbs=cbs)
    quiet(learn, learn.fit, epochs, lr)
    return learn

def everything(learn):
    "Weights, buffers, optimiser state, losses and all random streams"
    opt = [(sorted(s), [torch.as_tensor(s[k]).clone() for k in sorted(s)])
           for s in learn.opt.state_dict()['state']]
    return [{k: v.clone() for k,v in learn.model.state_dict().items()}, [n for n,_ in opt],
            [v for _,vs in opt for v in vs], [m.training for m in learn.model.modules()],
            torch.stack(learn.recorder.losses), learn.recorder.values, torch.get_rng_state(),
            np.random.get_state()[1].tolist(), random.getstate()]

def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) or hasattr(a, '__len__') and not isinstance(a, str):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# Off means off

COMPANY = {'alone': list, 'MixUp': lambda: [MixUp()], 'CutMix': lambda: [CutMix()],
           'accumulation': lambda: [GradientAccumulation(24)],
           'all': lambda: [MixUp(), GradientAccumulation(16), GradientClip(.1)]}
OPTIMISERS = {'Adam': Adam, 'momentum': partial(SGD, mom=.9)}

@pytest.mark.parametrize('opt', OPTIMISERS)
@pytest.mark.parametrize('company', COMPANY)
@pytest.mark.parametrize('kind', ['classes','labels'])
def test_at_weight_zero_nothing_changes(data, ae, several, several_ae, kind, company, opt, calls):
    d,a = (data,ae) if kind == 'classes' else (several,several_ae)
    def run(*cbs):
        with seeded(4): return everything(fit(d, [*cbs, *COMPANY[company]()], opt=OPTIMISERS[opt]))
    without, zero = run(), run(tsynd(a, weight=0.))
    judged, one = run(tsynd(a, weight=0., gate=.5)), run(tsynd(a, weight=1.))
    assert same(without, zero) and same(without, judged) and not same(without[0], one[0])
    assert len(calls) == 3*2*5 and len(without[2]) > 0                          # it did synthesise

@pytest.mark.parametrize('kwargs', [dict(objective='entropy', share=.3), dict(objective='random', every=2),
                                    dict(objective='reconstruction', warmup=.4),
                                    dict(objective='cross_entropy', measure_every=1, keep=5), dict(keep=0),
                                    dict(gate=.5, warm=True, jitter=.3), dict(bf16=True),
                                    dict(gate=.5, radius=3., share=.3), dict(gate=.5, budget=2.)], ids=str)
def test_at_weight_zero_nothing_changes_with_any_option(data, ae, kwargs):
    def run(*cbs):
        with seeded(4): return everything(fit(data, cbs))
    assert same(run(), run(tsynd(ae, weight=0., **kwargs)))

def test_two_arms_see_the_same_images_in_the_same_order(data, ae):
    class Watch(Callback):
        order = -9
        def before_fit(self): self.seen = []
        def before_batch(self):
            if self.training: self.seen.append(self.dl.batch_index(self.iter).tolist())
    def run(seed, *cbs):
        learn = train_classifier(data, tiny(), epochs=3, bs=7, seed=seed, cbs=[*cbs, Watch()])
        return learn.watch.seen
    plain = run(3)
    assert (plain == run(3, tsynd(ae)) == run(3, tsynd(ae, 'random', share=.5), MixUp())
            == run(3, GradientAccumulation(14)))
    assert plain != run(4) and len(plain) == 18 and plain[:6] != plain[6:12]


class Pairs:
    "A data set of fastai's kind, no tensor of ours in it"
    def __init__(self, split): self.split = split
    def __len__(self): return len(self.split)
    def __getitem__(self, i): return self.split.x[i]/255, int(self.split.y[i])

class Dealt(DataLoader):
    "Batches in an order of its own, which nobody can know"
    def create_batches(self, samps): return super().create_batches(list(samps)[::-1])

@pytest.mark.parametrize('kwargs,known', [
    (dict(shuffle=True), True), (dict(shuffle=True, drop_last=True), True), (dict(), True),
    (dict(shuffle=True, num_workers=2), True), (dict(get_idxs=lambda: [3,1,4,1,5,9,2,6,5,35]*4), True),
    (dict(cls=Dealt, shuffle=True), False)], ids=[
        'shuffled','rest dropped','in order','workers','an order of its own','dealt otherwise'])
def test_in_loaders_of_fastai_an_image_names_its_source(data, ae, kwargs, known):
    make = lambda cls=DataLoader, **kw: cls(Pairs(data.train), bs=9, **kw)
    held = DataLoader(Pairs(data.val), bs=16)
    class Banked(Callback):
        def after_epoch(self): self.rows = set(self.learn.tsynd.bank.rows)
    learn = Learner(DataLoaders(make(**kwargs), held, device='cpu'), tiny(), loss_func=CrossEntropyLossFlat(),
                    cbs=[tsynd(ae, warm=True, share=.6), Banked()])
    quiet(learn, learn.fit, 2, 1e-2)
    s,rows = learn.tsynd.last_epoch, learn.banked.rows
    if known:
        assert torch.equal(s.source, data.train.x[s.index]/255) and torch.equal(s.y, data.train.y[s.index])
        assert set(s.index.tolist()) <= rows
    else: assert s.index is None and not rows
    assert 'create_batches' not in vars(learn.dls.train)


# What is added

@pytest.mark.parametrize('weight', [.5, 2.])
@pytest.mark.parametrize('n_acc', [None, 16])
@pytest.mark.parametrize('kind', ['classes','labels'])
def test_a_step_follows_the_sum_of_both_gradients(data, ae, several, several_ae, kind, n_acc, weight):
    "One update by SGD, and the same update by hand"
    d,a = (data,ae) if kind == 'classes' else (several,several_ae)
    class Last(Callback):
        order = 90
        def after_loss(self):
            if not hasattr(self.learn, 'batches'): self.learn.batches = []
            self.learn.batches.append((self.x.clone(), self.y.clone(), self.learn.tsynd.syn))
        def after_step(self): raise CancelFitException()
    with seeded(8):
        learn = fit(d, [tsynd(a, weight=weight), Last(), *([GradientAccumulation(n_acc)] if n_acc else [])],
                    epochs=1, lr=.1, opt=SGD)
    assert len(learn.batches) == (n_acc or 8)//8
    by_hand = tiny(d.n_classes).train()
    loss = F.binary_cross_entropy_with_logits if d.task.several else F.cross_entropy
    with seeded(8):
        # takes from the random stream what the other did
        image_dls(d, bs=8).train.__iter__().__next__()
        for x,y,syn in learn.batches:
            assert torch.equal(syn.source, x) and torch.equal(syn.y, y)
            total = loss(by_hand(x), y) + weight*loss(by_hand(syn.x), y)
            (total/len(learn.batches)).backward()
    for (n,p),q in zip(by_hand.named_parameters(), learn.model.parameters()):
        torch.testing.assert_close(p.detach()-.1*p.grad, q.detach(), atol=1e-6, rtol=1e-4, msg=n)

def test_the_reported_training_loss_is_that_of_the_real_images(data, ae):
    class Real(Callback):
        order = 99
        def after_loss(self):
            if self.training:
                assert torch.equal(self.learn.loss, F.cross_entropy(self.pred, self.y))
                assert self.learn.loss_grad > self.learn.loss
    fit(data, [tsynd(ae), Real()])

def test_every_batch_has_masks_of_its_own(data, ae, calls):
    for seed in (0, 1): fit(data, tsynd(ae, seed=seed), epochs=2)
    seeds = [c.seed for c in calls]
    assert len(set(seeds)) == 20

def test_synthetic_images_name_their_sources(data, ae):
    learn = fit(data, tsynd(ae, share=.6))
    s = learn.tsynd.images
    assert torch.equal((s.source*255).round().byte(), data.train.x[s.index])
    assert torch.equal(s.y, data.train.y[s.index])
    assert learn.tsynd.provenance.source_index.tolist() == s.index.tolist() and len(s) == 5*5
    assert np.isfinite(learn.tsynd.provenance.to_numpy()).all()


# When, and how many

def test_counts_are_those_of_the_options(data, ae):
    @settings(max_examples=25)
    @given(epochs=st.integers(1, 4), bs=st.integers(5, 50), every=st.integers(1, 7), share=st.floats(.01, 1),
           warmup=st.sampled_from([0, .11, .26, .51, .99, 1]))
    def check(epochs, bs, every, share, warmup):
        cb = tsynd(ae, 'reconstruction', every=every, share=share, warmup=warmup, weight=0., keep=10**6)
        t = fit(data, cb, epochs=epochs, bs=bs).tsynd
        sizes = [len(y) for _,y in image_dls(data, bs=bs).train]*epochs
        at = [i for i in range(len(sizes)) if i/len(sizes) >= warmup and i%every == 0]
        assert t.count == len(at)
        assert t.n_images == sum(max(min(2, sizes[i]), math.ceil(share*sizes[i])) for i in at)
        # where the last epoch made none, the last batch that did
        last = [i for i in at if i >= len(sizes)*(epochs-1)//epochs] or at[-1:]
        if last: assert len(t.images) == sum(max(min(2, sizes[i]), math.ceil(share*sizes[i])) for i in last)
        else: pytest.raises(InputError, lambda: t.images)
    check()

@pytest.mark.parametrize('warmup,first', [(0, 0), (.25, 5), (.5, 10), (.55, 11), (1, None)])
def test_warm_up_is_a_share_of_the_training(data, ae, calls, warmup, first):
    learn = fit(data, tsynd(ae, warmup=warmup, measure_every=1), epochs=4)
    steps = [h['step'] for h in learn.tsynd.history]
    assert steps == ([] if first is None else list(range(first, 20))) and len(calls) == len(steps)

@pytest.mark.parametrize('keep', [0, 5, 16, 23, 10**6])
def test_no_more_images_are_kept_than_asked_for(data, ae, keep):
    learn = fit(data, tsynd(ae, keep=keep))
    if keep: assert len(learn.tsynd.images) == min(keep, 40)
    else:
        with refused('keep'): learn.tsynd.images

def test_history_is_as_dense_as_asked_for(data, ae):
    h = fit(data, tsynd(ae, measure_every=4, keep=0), epochs=4).tsynd.history
    assert [i['step'] for i in h] == [0,4,8,12,16] and [i['epoch'] for i in h] == [0,0,1,2,3]
    assert all(0 <= i[k] for i in h for k in ('mi_before','mi_after','distance_latent'))
    assert all(i['distance_latent'] <= .3+1e-5 for i in h)

def test_only_the_last_epoch_is_kept(data, ae):
    learn = fit(data, tsynd(ae), epochs=3)
    assert sorted(learn.tsynd.images.index.tolist()) == sorted(learn.dls.train.epoch_idxs.tolist())


# Validation and the rest of fastai

def test_validation_is_never_touched(data, ae, calls):
    class Watch(Callback):
        def before_fit(self): self.n = 0
        def after_loss(self):
            if not self.training:
                assert torch.equal(self.learn.loss, F.cross_entropy(self.pred, self.y))
                assert torch.equal(self.learn.loss, self.learn.loss_grad)
                self.n += 1
    learn = fit(data, [tsynd(ae, weight=3.), Watch()])
    assert learn.watch.n == 4 and len(calls) == 10 and all(c.training for c in calls)
    sources = {tuple(x.flatten().tolist()) for c in calls for x in c.x}
    assert not sources & {tuple((x.flatten()/255.).tolist()) for x in data.val.x}
    quiet(learn, learn.validate)
    assert len(calls) == 10

def test_predictions_after_training(data, ae, calls):
    learn = fit(data, tsynd(ae))
    n = len(calls)
    preds,y = quiet(learn, learn.get_preds)
    with torch.no_grad(): want = learn.model.eval()(data.val.batch(slice(None))[0]).softmax(-1)
    torch.testing.assert_close(preds, want)
    assert torch.equal(y, data.val.y) and len(calls) == n
    assert quiet(learn, learn.get_preds, ds_idx=0)[0].shape == (40,2) and len(calls) == n
    assert quiet(learn, learn.get_preds, with_input=True)[0].shape == data.val.x.shape

def test_the_learning_rate_finder(data, ae, calls, tmp_path):
    learn = Learner(image_dls(data, bs=8), tiny(), loss_func=CrossEntropyLossFlat(), cbs=tsynd(ae),
                    path=tmp_path)
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    assert quiet(learn, learn.lr_find, num_it=8, show_plot=False).valley > 0
    assert same(before, dict(learn.model.state_dict())) and len(calls) > 3
    quiet(learn, learn.fit, 1)
    assert learn.tsynd.count == 5

def test_the_learning_rate_finder_goes_as_far_as_it_likes(data, ae, tmp_path):
    "It ends where the loss explodes, on purpose"
    learn = classifier_learner(data, tiny(), bs=8, cbs=tsynd(ae))
    learn.path = tmp_path
    assert quiet(learn, learn.lr_find, end_lr=1e30, num_it=40, show_plot=False).valley > 0

def test_fitting_twice_starts_anew(data, ae):
    with seeded(1): learn = fit(data, [tsynd(ae, warmup=.5), MixUp()])
    first = learn.tsynd.images
    with seeded(2): quiet(learn, learn.fit, 4, 1e-2)
    t = learn.tsynd
    assert (t.count, t.n_images, len(t.images)) == (10, 80, 40) and not torch.equal(t.images.x, first.x)
    assert t.base_loss is learn.loss_func
    assert [h['step'] for h in t.history] == sorted(h['step'] for h in t.history)

def test_a_fit_that_broke_off_can_be_started_again(data, ae):
    class Stop(Callback):
        on = True
        def after_batch(self):
            if self.on and self.training and self.iter == 2: raise KeyError('k')
    learn = Learner(image_dls(data, bs=8), tiny(), loss_func=CrossEntropyLossFlat(), cbs=[tsynd(ae), Stop()])
    with pytest.raises(KeyError): quiet(learn, learn.fit, 1)
    assert not any(m._forward_hooks for m in learn.model.modules())
    assert all(p.requires_grad for p in learn.model.parameters())
    learn.stop.on = False
    quiet(learn, learn.fit, 1)
    assert learn.tsynd.count == 5

@pytest.mark.parametrize('kind', ['timm','torch'])
def test_a_model_of_ones_own(data, ae, kind):
    with seeded(0):
        model = (timm.create_model('regnetx_002', in_chans=1, num_classes=2, drop_rate=.3)
                 if kind == 'timm' else
                 nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(.3), nn.ReLU(), nn.Flatten(),
                               nn.Linear(400, 8), nn.Dropout(.5), nn.Linear(8, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn = fit(data, tsynd(ae), model=model, epochs=1, bs=20)
    assert learn.tsynd.count == 2 and learn.tsynd.provenance.distance_latent.mean() > .01

def test_loaders_that_name_no_sources(data, ae):
    items = [data.train[i] for i in range(40)]
    dls = DataLoaders(Dealt(items, bs=8, shuffle=True, num_workers=0),
                      DataLoader(items[:16], bs=8, num_workers=0), device=torch.device('cpu'))
    learn = Learner(dls, tiny(), loss_func=CrossEntropyLossFlat(), cbs=tsynd(ae))
    quiet(learn, learn.fit, 2)
    assert (learn.tsynd.images.index is None
            and learn.tsynd.provenance.source_index.tolist() == [-1]*40)
    # measured at 0, and in all of the last epoch
    assert len(learn.tsynd.history) == 6

def test_colour(ae, tmp_path):
    folder = write_npz(tmp_path, 'bloodmnist', n=(40,20,20)).parent
    with pytest.warns(UserWarning, match='MD5'): d = load_medmnist('bloodmnist', folder, download=False)
    learn = fit(d, tsynd(train_autoencoder(d, steps=10, width=4)), model=tiny(8, 3))
    assert learn.tsynd.images.x.shape == (40,3,28,28)
    with refused('images', '(B, 1, H, W)', found=(8, 3, 28, 28)): fit(d, tsynd(ae), model=tiny(8, 3))

def test_several_labels_are_told_by_their_targets(several, several_ae):
    t = fit(several, tsynd(several_ae)).tsynd
    assert t.engine.task.several and t.images.y.shape == (40,14) and (t.provenance.mi_after >= 0).all()

def fit_floats(data, ae, make, loss, C=2):
    "The targets made from the class numbers"
    x,y = data.train.batch(slice(None))
    dls = DataLoaders(DataLoader(list(zip(x, make(y))), bs=8, num_workers=0),
                      DataLoader(list(zip(x[:8], make(y[:8]))), bs=8, num_workers=0),
                      device=torch.device('cpu'))
    learn = Learner(dls, tiny(C), loss_func=loss, cbs=tsynd(ae, keep=0))
    quiet(learn, learn.fit, 1)
    return learn

def one_hot(y): return F.one_hot(y, 2).float()

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), CrossEntropyLossFlat(), F.cross_entropy,
                                  partial(F.cross_entropy, label_smoothing=.1), LabelSmoothingCrossEntropy(),
                                  LabelSmoothingCrossEntropyFlat(), FocalLossFlat()],
                         ids=lambda l: getattr(l, '__name__', type(l).__name__))
@pytest.mark.parametrize('make', [one_hot, lambda y: .8*one_hot(y)+.1], ids=['one-hot','smoothed'])
def test_rows_of_one_class_are_not_taken_for_several_labels(data, ae, loss, make):
    with refused('targets', '(8,)', 'BCEWithLogitsLossFlat', found=(8, 2)): fit_floats(data, ae, make, loss)

@pytest.mark.parametrize(
    'loss', [nn.BCEWithLogitsLoss(), BCEWithLogitsLossFlat(), F.binary_cross_entropy_with_logits],
    ids=lambda l: getattr(l, '__name__', type(l).__name__))
def test_several_labels_with_their_losses(data, ae, loss):
    t = fit_floats(data, ae, one_hot, loss).tsynd
    assert t.engine.task.several and t.count == 5

def test_numbers_to_be_predicted_are_no_labels(data, ae):
    with refused('labels', 'zeros and ones'):
        fit_floats(data, ae, lambda y: y[:,None]*.5+.2, nn.MSELoss(), C=1)

def test_the_mode_of_the_autoencoder_does_not_matter(data, ae):
    def run(train):
        a = Autoencoder(**ae.config); a.load_state_dict(ae.state_dict()); a.train(train)
        before = {k: v.clone() for k,v in a.state_dict().items()}
        with seeded(4): learn = fit(data, tsynd(a))
        assert same(before, dict(a.state_dict()))
        return dict(learn.model.state_dict())
    assert same(run(True), run(False))

def test_the_tools_to_look_at_it(data, ae):
    import matplotlib; matplotlib.use('Agg')
    learn = fit(data, tsynd(ae, measure_every=2), epochs=2)
    axs = np.ravel(learn.tsynd.show(5))
    titles = [a.get_title() for a in axs[:15]]
    assert titles[:5] == ['source']*5 and all(t.startswith('MI ') for t in titles[5:])
    gains = [float(b[3:])-float(a[3:]) for a,b in zip(titles[5:10], titles[10:])]
    assert all(a <= b+.0021 for a,b in zip(gains, gains[1:]))
    ax = learn.tsynd.plot_mi()
    assert [l.get_ydata().tolist() for l in ax.lines] == [[h[k] for h in learn.tsynd.history]
                                                          for k in ('mi_before','mi_after')]


# Bad input and failures

@pytest.mark.parametrize('option,value', [
    ('weight', -1), ('weight', math.inf), ('share', 1.1), ('share', -.1), ('every', 0), ('every', 1.5),
    ('warmup', -.1), ('warmup', 1.1), ('measure_every', 0), ('keep', -1), ('T', 1), ('steps', 0),
    ('radius', 0), ('step', 0), ('objective', 'mii')])
def test_impossible_options_are_refused_at_once(ae, option, value):
    with refused(option, found=value): TSynD(ae, **{option: value})

def test_batches_of_another_kind_are_refused(data, ae):
    class Pair(Callback):
        order = -9
        def before_batch(self): self.learn.xb = (self.x, self.x)
    with refused('batches', found=(2, 1)): fit(data, [Pair(), tsynd(ae)])

class Steps(Callback):
    "Counts the weight updates"
    def before_fit(self): self.n = 0
    def after_step(self): self.n += 1

@pytest.mark.parametrize('what', ['images', 'batches', 'targets'])
def test_what_cannot_work_is_said_at_the_first_batch(data, ae, what):
    class Wrong(Callback):
        order = -9
        def before_batch(self):
            if what == 'images': self.learn.xb = (4*self.x-2,)
            elif what == 'batches': self.learn.xb = (self.x, self.x)
            else: self.learn.yb = (F.one_hot(self.y, 2).float(),)
    steps = Steps()
    with refused(what): fit(data, [Wrong(), steps, tsynd(ae, warmup=.9, every=7)])
    assert steps.n == 0

@pytest.mark.parametrize('where', ['first','later'])
def test_looking_before_there_is_anything(data, ae, where):
    t = tsynd(ae) if where == 'first' else fit(data, tsynd(ae, warmup=1)).tsynd
    for f in (lambda: t.images, lambda: t.provenance, t.show, t.plot_mi):
        with refused('warm-up'): f()

def test_why_there_is_nothing_to_look_at(data, ae):
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.train_iter == 3: raise KeyboardInterrupt
    t = tsynd(ae)
    with pytest.raises(KeyboardInterrupt): fit(data, [t, Stop()])
    for v in (t, pickle.loads(pickle.dumps(fit(data, tsynd(ae)).tsynd))):
        with refused('training'): v.images

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32])
def test_targets_of_any_whole_type(data, ae, dtype):
    def losses(as_type):
        with seeded(4):
            cbs = [Change(lambda y: y.to(as_type)), tsynd(ae, 'cross_entropy', gate=.5)]
            return fit(data, cbs).recorder.losses
    assert same(losses(dtype), losses(torch.int64))

@pytest.mark.parametrize('change, C, field, said', [(lambda y: y[:,None], 2, 'labels', '(8, 1)'),
                                                    (lambda y: y, 1, 'classifier', 'at least 2'),
                                                    (lambda y: y+1, 2, 'labels', '0 to 1')],
                         ids=['a column','one output','from one'])
def test_targets_that_do_not_fit_are_refused_at_the_first_batch(data, ae, change, C, field, said):
    seen = []
    class Begun(Callback):
        def before_batch(self): seen.append(self.train_iter)
    with refused(field, said):
        fit(data, [Change(change), Begun(), tsynd(ae, warmup=.9)], model=tiny(C))
    assert len(seen) == 1

def test_images_that_are_mixed_afterwards_leave_the_sources_alone(data, ae):
    t = fit(data, [tsynd(ae, keep=0), CutMix(1.)]).tsynd
    assert torch.equal(t.last_syn.source, data.train.batch(t.last_syn.index)[0])

class Explode(Callback):
    "Puts NaN into the weights in the third batch"
    order = -9
    def before_batch(self):
        if self.training and self.iter == 2:
            with torch.no_grad(): self.model.out.weight.fill_(math.nan)

@pytest.mark.parametrize('with_tsynd', [True, False])
def test_a_loss_that_is_no_longer_finite_stops_it(data, ae, with_tsynd):
    with refused('classifier' if with_tsynd else 'loss'):
        train_classifier(data, tiny(), epochs=1, bs=8, cbs=[Explode(), *([tsynd(ae)] if with_tsynd else [])])

def test_a_synthetic_loss_that_is_not_finite_stops_it_too(data, ae):
    with refused('loss', 'epoch 0', found=math.nan):
        train_classifier(data, tiny(), epochs=1, bs=8, cbs=[SynNaN(), tsynd(ae)])

class SynNaN(Callback):
    "Spoils the synthetic images only"
    order = -4
    def before_batch(self):
        if self.training: self.learn.tsynd.syn.x.fill_(math.nan)

@pytest.mark.parametrize('error', [KeyError('k'), InputError('what', 'what')], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('place', ['training','synthesis'])
def test_exceptions_close_the_bar_and_release_the_model(data, ae, monkeypatch, error, place):
    bars = []
    class Bar(SimpleNamespace):
        def __init__(self, **kwargs): super().__init__(closed=False, **kwargs); bars.append(self)
        def update(self, n=1): pass
        def close(self): self.closed = True
    monkeypatch.setattr('tsynd.models.fitting.tqdm', Bar)
    model, count = tiny(), [0]
    def fail(m, inp):
        count[0] += m.training == (place == 'training')
        if count[0] == 3: raise error
    model.trunk.register_forward_pre_hook(fail)
    with pytest.raises(type(error)), seeded(3):
        train_classifier(data, model, epochs=2, bs=8, progress=True, cbs=tsynd(ae))
    assert [b.closed for b in bars] == [True]
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert model.training and all(m.training for m in model.modules())


# The moving average of the classifier

def averages(states, decay):
    "By hand, in float64, of weights after each step, the first being the start"
    mine = {k: v.double() for k,v in states[0].items()}
    for n,theirs in enumerate(states[1:], 1):
        d = min(decay, n/(n+9))
        mine = {k: d*v + (1-d)*theirs[k].double() if theirs[k].is_floating_point() else theirs[k].double()
                for k,v in mine.items()}
    return mine

def copied(model): return {k: v.detach().clone() for k,v in model.state_dict().items()}

@pytest.mark.parametrize('decay', [0., .5, .99])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_moving_average_is_one(decay, dtype):
    with seeded(0):
        model = tiny().to(dtype); model.register_buffer('count', torch.zeros(2).int())
        avg, states = MovingAverage(model, decay), [copied(model)]
        for n in range(30):
            for v in model.state_dict().values():
                v.copy_(torch.randn_like(v) if v.is_floating_point() else v+n)
            states.append(copied(model)); avg.update(model)
    want = averages(states, decay)
    for k,v in avg.model.state_dict().items():
        torch.testing.assert_close(v.double(), want[k], rtol=1e-5 if dtype == torch.float32 else 1e-12,
                                   atol=1e-6 if dtype == torch.float32 else 1e-12, msg=k)
    assert same(copied(model), states[-1]) and not any(p.requires_grad for p in avg.parameters())
    assert not any(m.training for m in avg.modules())

def test_a_moving_average_shares_nothing_with_its_model(data):
    model = tiny()
    model.trunk[0].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError('hook')))
    model.register_forward_pre_hook(lambda *_: None)
    model.out.weight.grad = torch.ones_like(model.out.weight)
    avg, before = MovingAverage(model), copied(model)
    with torch.no_grad():
        for v in model.state_dict().values(): v.add_(1)
    assert same(copied(avg.model), before) and all(p.grad is None or p is not q and not p.requires_grad
                                                   for p,q in zip(avg.parameters(), model.parameters()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in avg.modules())
    assert len(model.trunk[0]._forward_hooks) == 1
    assert avg(data.val.batch(slice(3))[0]).shape == (3,2) and model.training

class Locked(nn.Module):
    "Cannot be copied"
    def __init__(self): super().__init__(); self.f,self.lock = tiny(),threading.Lock()
    def forward(self, x): return self.f(x)

def test_a_model_that_cannot_be_copied_is_refused_unless_there_is_no_gate(data, ae):
    with refused('classifier', 'gate=0'): fit(data, tsynd(ae, gate=.5), model=Locked())
    assert fit(data, tsynd(ae, gate=0.), model=Locked()).tsynd.count == 10

class Weights(Callback):
    "All weights and buffers, at the start and after each optimiser step"
    order = 50
    def before_fit(self): self.states = [copied(self.model)]
    def after_step(self): self.states.append(copied(self.model))

@pytest.mark.parametrize('n_acc,steps', [(None, 10), (16, 5), (40, 2)])
@pytest.mark.parametrize('share', [1., .2])
def test_the_judge_follows_every_optimiser_step(data, ae, n_acc, steps, share):
    learn = fit(data, [tsynd(ae, gate=.5, share=share), Weights(),
                       *([GradientAccumulation(n_acc)] if n_acc else [])])
    judge, want = learn.tsynd.judge, averages(learn.weights.states, .99)
    assert judge.n == steps == len(learn.weights.states)-1
    for k,v in judge.model.state_dict().items():
        torch.testing.assert_close(v.double(), want[k], rtol=1e-4, atol=1e-6, msg=k)
    quiet(learn, learn.validate)
    assert judge.n == steps

def test_no_gate_no_judge(data, ae, calls):
    assert fit(data, tsynd(ae, gate=0.)).tsynd.judge is None and all(c.judge is None for c in calls)
    t = fit(data, tsynd(ae, gate=.5)).tsynd
    assert all(c.judge is t.judge for c in calls[10:])
    assert fit(data, tsynd(ae, gate=.5)).tsynd.judge is not t.judge


# The gate in training

@pytest.fixture
def gates(monkeypatch):
    "A function that lets the gate say, image by image, what it is told"
    call = Synthesizer.__call__
    def say(*gate):
        def gated(self, model, x, y, **kwargs):
            return replace(call(self, model, x, y, **kwargs), gate=torch.tensor(gate*len(x))[:len(x)])
        monkeypatch.setattr(Synthesizer, '__call__', gated)
    return say

class Rows(Callback):
    "What went through the model in training mode, batch by batch"
    order = 90
    def before_fit(self):
        self.batches,self.now = [],[]
        self.hook = self.model.register_forward_pre_hook(
            lambda m, inp: self.now.append(inp[0].detach().clone()) if m.training else None)
    def after_loss(self):
        if self.training: self.batches.append((self.now, self.x.clone(), self.learn.tsynd.syn))
        self.now = []
    def after_fit(self): self.hook.remove()

@pytest.mark.parametrize('gate', [(0.,1.,.5,0.,.25), (1.,), (1.,0.,0.,0.)], ids=str)
def test_dropped_images_never_reach_the_model(data, ae, gates, gate):
    gates(*gate)
    learn = fit(data, [tsynd(ae), Rows()])
    for rows,x,syn in learn.rows.batches:
        assert len(rows) == 2 and torch.equal(rows[0], x) and torch.equal(rows[1], syn.x[syn.gate > 0])
        assert len(rows[1]) == sum(gate[i%len(gate)] > 0 for i in range(8))

@pytest.mark.parametrize('kind', ['classes','labels'])
def test_a_step_follows_the_kept_images_and_their_labels(data, ae, several, several_ae, kind, gates):
    d,a = (data,ae) if kind == 'classes' else (several,several_ae)
    keep = [1,2,4,6,7]
    gates(0.,1.,.5,0.,.25)
    class Last(Callback):
        order = 90
        def after_loss(self): self.learn.batch = self.x.clone(), self.y.clone(), self.learn.tsynd.syn
        def after_step(self): raise CancelFitException()
    with seeded(8): learn = fit(d, [tsynd(a, weight=.7), Last()], epochs=1, lr=.1, opt=SGD)
    by_hand = tiny(d.n_classes).train()
    loss = F.binary_cross_entropy_with_logits if d.task.several else F.cross_entropy
    with seeded(8):
        image_dls(d, bs=8).train.__iter__().__next__()
        x,y,syn = learn.batch
        (loss(by_hand(x), y) + .7*loss(by_hand(syn.x[keep]), y[keep])).backward()
    for (n,p),q in zip(by_hand.named_parameters(), learn.model.parameters()):
        torch.testing.assert_close(p.detach()-.1*p.grad, q.detach(), atol=1e-6, rtol=1e-4, msg=n)

@pytest.mark.parametrize('gate', [(0.,), (1., *[0.]*7)], ids=['none','one of eight'])
def test_where_none_is_kept_the_step_is_the_plain_one(data, ae, gates, gate):
    "Nor where a single one is, which batch norm could not train on"
    def run(*cbs):
        with seeded(4): return everything(fit(data, cbs))
    plain = run()
    gates(*gate)
    assert same(plain, run(tsynd(ae)))

@pytest.mark.parametrize('bs', [1, 8])
def test_a_small_share_is_two_images_where_there_are_two(data, ae, bs):
    "Batch norm cannot train on one"
    model = nn.Sequential(nn.Flatten(), nn.Dropout(.5), nn.Linear(144, 2))
    learn = fit(data, [tsynd(ae, share=.1), Rows()], model=model, bs=bs)
    assert all(len(rows) == 2 and len(rows[1]) == min(2, bs) for rows,_,_ in learn.rows.batches)

def test_images_are_those_trained_on_and_provenance_is_of_all(data, ae, gates):
    gates(0.,1.,.5,0.,.25)
    t = fit(data, [tsynd(ae), Rows()])
    t,batches = t.tsynd, t.rows.batches[5:]
    assert torch.equal(t.images.x, torch.cat([rows[1] for rows,_,_ in batches]))
    assert (t.images.gate > 0).all() and len(t.images) == 25
    p = t.provenance
    assert p.gate.tolist() == [0.,1.,.5,0.,.25,0.,1.,.5]*5
    assert p.source_index[p.gate > 0].tolist() == t.images.index.tolist()
    assert np.isfinite(p.to_numpy()).all()

@pytest.mark.parametrize('kind', ['classes','labels'])
def test_at_rest_the_judge_is_the_classifier_and_what_it_keeps_passes(data, ae, several, several_ae, kind):
    "With a learning rate of 0"
    d,a = (data,ae) if kind == 'classes' else (several,several_ae)
    with seeded(0):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(12), nn.Flatten(), nn.Linear(144, 16), nn.Tanh(),
                              nn.Dropout(.5), nn.Linear(16, d.n_classes)).eval()
    # near its boundaries
    with torch.no_grad(): model[-1].bias -= model(a(d.train.batch(slice(None))[0])).mean(0)
    t = fit(d, tsynd(a, gate=.5, radius=2., step=1.), model=model, lr=0.).tsynd
    s = cat(t.kept)
    assert same(copied(t.judge.model), copied(model)) and len(s) == 40
    assert set(s.gate.tolist()) <= {0.,.25,.5,.75,1.} and (s.gate > 0).any() and (s.gate < 1).any()
    torch.testing.assert_close(s.x, a.decode(s.z).detach(), rtol=1e-4, atol=1e-4)
    with torch.no_grad(): after, before = model.eval()(s.x), model(s.reconstruction)
    if kind == 'classes': ok = after.argmax(1) == s.y
    else: ok = (((after > 0) == (s.y == 1)) | ((before > 0) != (s.y == 1))).all(1)
    # one alone is dropped: batch norm cannot train on it
    ok &= (ok.view(-1, 8).sum(1) > 1).repeat_interleave(8)
    assert torch.equal(ok, s.gate > 0)

def test_a_cancelled_fit_leaves_the_images_of_its_last_batch(data, ae):
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.iter == 2: raise CancelFitException()
    t = fit(data, [tsynd(ae, gate=.5), Stop()], epochs=3).tsynd
    assert len(t.provenance) == 8 and t.count == 3 and np.isfinite(t.provenance.to_numpy()).all()


# In bfloat16

class Inside(Callback):
    "In what the layers of the model compute, and the loss; where, in training or in validation"
    order = 50
    def before_fit(self):
        self.seen, self.losses = set(), set()
        note = lambda m, inp, out: self.seen.add((self.training, out.dtype))
        self.hooks = [m.register_forward_hook(note) for m in (self.model.trunk[0], self.model.out)]
    def after_loss(self): self.losses |= {self.learn.loss.dtype, self.learn.loss_grad.dtype, self.pred.dtype}
    def after_backward(self):
        assert {p.grad.dtype for p in self.model.parameters()} == {torch.float32}
        assert not torch.is_autocast_enabled('cpu')
    def after_fit(self):
        for h in self.hooks: h.remove()

def hooks(model): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in model.modules())

@pytest.mark.parametrize('company', [
    lambda ae: [], lambda ae: [tsynd(ae, gate=.5)],
    lambda ae: [tsynd(ae), MixUp(), GradientAccumulation(16), GradientClip(.1)]], ids=['alone','TSynD','all'])
def test_bfloat16_is_inside_the_model_and_nowhere_else(data, ae, company):
    learn = fit(data, [BF16(), Inside(), *company(ae)])
    assert learn.inside.seen == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert learn.inside.losses == {torch.float32}
    assert {v.dtype for v in learn.model.state_dict().values()} <= {torch.float32, torch.int64}
    assert hooks(learn.model) == 0
    assert not torch.is_autocast_enabled('cpu')
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    quiet(learn, learn.fit, 1, 1e-2)
    assert hooks(learn.model) == 0

def test_without_it_there_is_none(data):
    assert {t for _,t in fit(data, Inside()).inside.seen} == {torch.float32}

class Moves(Callback):
    "The model as it trains, after each step, on the same images: moves, and is the one its weights say"
    order = 60
    def before_fit(self): self.last, self.n, self.x0 = None, 0, self.dls.valid.dataset.batch(slice(8))[0]
    def after_step(self):
        with torch.no_grad():
            by_hand = partial(type(self.model).forward, self.model)
            modes = [(m, m.training) for m in self.model.modules()]
            self.model.eval()
            out, want = self.model(self.x0), by_hand(self.x0)
            for m,t in modes: m.training = t
        torch.testing.assert_close(out, want, rtol=.03, atol=.03)
        assert not torch.equal(out, want) and (self.last is None or (out-self.last).abs().max() > 1e-3)
        self.last, self.n = out, self.n+1

@pytest.mark.parametrize('with_tsynd', [True, False])
def test_in_bfloat16_every_step_trains_what_the_next_one_runs(data, ae, with_tsynd):
    "An autocast that stays open keeps a copy of the weights, and the model stands still"
    learn = fit(data, [BF16(), Moves(), Weights(), *([tsynd(ae)] if with_tsynd else [])], lr=.3, opt=SGD)
    a = learn.weights.states
    assert learn.moves.n == 10
    assert all(not torch.equal(u['out.weight'], v['out.weight'])
               and not torch.equal(u['trunk.0.weight'], v['trunk.0.weight']) for u,v in zip(a, a[1:]))

def test_a_training_in_bfloat16_is_nearly_the_same(data):
    def run(*cbs):
        with seeded(4): return torch.stack(fit(data, cbs, opt=SGD).recorder.losses)
    full, half = run(), run(BF16())
    torch.testing.assert_close(half, full, rtol=.02, atol=.02); assert not torch.equal(half, full)

def test_at_weight_zero_nothing_changes_in_bfloat16_either(data, ae):
    def run(*cbs):
        with seeded(4): return everything(fit(data, [BF16(), *cbs]))
    assert same(run(), run(tsynd(ae, weight=0., gate=.5)))

@pytest.mark.parametrize('place', ['training','synthesis'])
def test_an_error_leaves_no_autocast_open(data, ae, place):
    model, count = tiny(), [0]
    def fail(m, inp):
        count[0] += m.training == (place == 'training')
        if count[0] == 3: raise KeyError('k')
    model.trunk.register_forward_pre_hook(fail)
    with pytest.raises(KeyError): fit(data, [BF16(), tsynd(ae, gate=.5)], model=model)
    assert not torch.is_autocast_enabled('cpu') and model.out.weight.dtype == torch.float32

@pytest.mark.parametrize('given,company,want', [(None, True, True), (None, False, False), (True, False, True),
                                                (False, True, False)])
def test_synthesis_is_in_bfloat16_if_training_is_unless_it_is_said(data, ae, given, company, want):
    seen = set()
    hook = ae.dec[0].register_forward_hook(lambda m, inp, out: seen.add(out.dtype))
    try: t = fit(data, [tsynd(ae, bf16=given, gate=.5), *([BF16()] if company else [])]).tsynd
    finally: hook.remove()
    assert seen == {torch.bfloat16 if want else torch.float32} and t.engine.bf16 == want
    assert t.images.x.dtype == t.images.z.dtype == t.images.mi_after.dtype == torch.float32


# The budget

class Batches:
    """A clock with a time of its own: `plain` and `average` in every batch, `extra` and `look` for synthesis
    from half a batch; the first of each kind is slow"""
    def __init__(self, budget, plain, extra, average=0., look=0., slow=5.):
        self.clock,self.t,self.n,self.cost = Clock(budget),0.,0,(plain, extra, average, look)
        self.clock.now,self.kinds,self.slow = (lambda: self.t),set(),slow
    def batch(self):
        plain,extra,average,look = self.cost
        go = self.clock.start()
        first = self.slow if go not in self.kinds else 1
        self.kinds.add(go)
        self.t += plain*first
        if go:
            self.t += extra*first*self.clock.share/.5
            # one before the images are replaced, one after
            for _ in range(2):
                with self.clock.aside('look'): self.t += look*self.clock.share/.5/2
        with self.clock.aside('average'): self.t += average*first
        self.clock.stop(16*go)
        return go
    def run(self, n=300):
        "Number of batches with synthesis, and the ratio to plain training, after the measurement"
        while self.clock.rate is None: self.batch()
        t0 = self.t
        went = sum(self.batch() for _ in range(n))
        return went, (self.t-t0)/(n*self.cost[0])

costs = st.floats(1e-3, 1), st.floats(.05, 30), st.floats(0, .2), st.floats(0, 3)

@given(st.floats(1.02, 4), *costs)
def test_a_budget_is_kept_to_within_one_synthesis(budget, plain, extra, average, look):
    b = Batches(budget, plain, plain*extra, plain*average, plain*look)
    rate = (budget-1-average)/(extra+look)
    assume(abs(rate-1) > 1e-6 and abs(rate) > 1e-6)
    went, ratio = b.run(300)
    cost, slack = b.clock.cost, 300*1e-9
    # the average alone is too dear
    if rate < 0: assert went == 0 == b.clock.rate and ratio == pytest.approx(1+average) and ratio > budget
    elif rate < 1:
        assert (b.clock.share == .5 and abs(went-300*rate) <= 1+slack
                and abs(ratio-budget) <= (extra+look)/300*(1+slack)+slack)
    else:
        assert went == 300 and b.clock.rate == 1 and b.clock.share == pytest.approx(min(1, .5*rate))
        assert ratio == pytest.approx(min(budget, 1+average+2*(extra+look)))
    assert (cost['rate'] == b.clock.rate and cost['share'] == b.clock.share
            and cost['plain_ms'] == pytest.approx(1e3*plain)
            and cost['extra_ms'] == pytest.approx(1e3*plain*(extra+look)))
    assert (cost['images_per_second'] == pytest.approx(16/(plain*(extra+look)))
            and cost['ratio'] == pytest.approx(ratio, abs=(extra+look)/300*1.01 if 0 < rate < 1 else 1e-6))

def test_synthesis_is_spread_evenly():
    b = Batches(1.5, 1., 2.)
    while b.clock.rate is None: b.batch()
    assert [i for i in range(41) if b.batch()] == list(range(3, 41, 4))

def test_one_slow_batch_does_not_spoil_the_measurement():
    b = Batches(1.5, 1., 2., .1)
    for k in range(16):
        b.cost = (40. if k == 4 else 1., 90. if k == 12 else 2., 3. if k == 9 else .1, 0.)
        b.batch()
    assert b.clock.rate == pytest.approx(.2)

@pytest.mark.parametrize('budget', [1, 1., .9, 0, -1, math.nan, math.inf, True, '1.3'])
def test_impossible_budgets_are_refused(ae, budget):
    with refused('budget', found=budget): TSynD(ae, budget=budget)

@pytest.mark.parametrize('kwargs', [dict(share=.3), dict(every=2), dict(share=.25, every=4)], ids=str)
def test_a_budget_and_what_it_chooses_do_not_go_together(ae, kwargs):
    with refused('budget', 'share', 'every', found=1.3): TSynD(ae, budget=1.3, **kwargs)

@pytest.fixture
def own_time(monkeypatch):
    "In trainings too: a batch takes 1 s, a synthesis 2 s for each image, an update of the average .1 s"
    t, call, update = [0.], Synthesizer.__call__, MovingAverage.update
    monkeypatch.setattr(Clock, 'now', lambda self: t[0])
    def synthesis(self, model, x, y, **kwargs): t[0] += 2*len(x); return call(self, model, x, y, **kwargs)
    def average(self, model): t[0] += .1; return update(self, model)
    monkeypatch.setattr(Synthesizer, '__call__', synthesis)
    monkeypatch.setattr(MovingAverage, 'update', average)
    class Second(Callback):
        def after_pred(self): t[0] += self.training
    return t, Second

@pytest.mark.parametrize('gate', [.5, 0.])
@pytest.mark.parametrize('warmup', [0, .39])
def test_a_training_keeps_to_its_budget(data, ae, calls, own_time, gate, warmup):
    "Synthesis from two images of four, so 4 s"
    t, Second = own_time
    class Times(Callback):
        order, run_valid = -20, False
        def before_fit(self): self.t = []
        def before_batch(self): self.t.append((t[0], len(calls)))
    learn = fit(data, [tsynd(ae, 'reconstruction', budget=1.8, gate=gate, warmup=warmup, keep=0,
                             measure_every=10**6), Second(), Times()], epochs=16, bs=4)
    ts, cost = learn.times.t, learn.tsynd.cost
    plain = max(8, math.ceil(160*warmup))
    first = next(i for i,(_,n) in enumerate(ts) if n)-1
    assert len(ts) == 160 and first == plain and all(c.n == 2 for c in calls)
    assert learn.tsynd.n_images == 2*len(calls)
    assert (cost['rate'] == pytest.approx((.8-.1*(gate > 0))/4) and cost['ratio'] == pytest.approx(1.8)
            and cost['images_per_second'] == pytest.approx(.5))
    start = first+8
    (t0,n0),rest = ts[start],160-start
    assert abs(len(calls)-n0-rest*cost['rate']) <= 1 and abs((t[0]-t0)-1.8*rest) <= 4

def test_a_large_budget_raises_the_share_first_to_all(data, ae, calls, own_time):
    learn = fit(data, [tsynd(ae, 'reconstruction', budget=50., keep=0, measure_every=10**6), own_time[1]()],
                epochs=3, bs=4)
    assert [c.n for c in calls] == [2]*8+[4]*14 and learn.tsynd.cost['share'] == 1 == learn.tsynd.cost['rate']
    assert learn.tsynd.cost['ratio'] == pytest.approx(1+8)

def test_the_cost_is_known_once_it_is_measured(data, ae):
    with refused('budget'): tsynd(ae, budget=1.3).cost
    # none asked for; 15 batches, one too few
    for t in (fit(data, tsynd(ae)).tsynd, fit(data, tsynd(ae, budget=1.3), epochs=3).tsynd):
        with refused('budget', found=t.budget): t.cost
    learn = fit(data, tsynd(ae, budget=1.3), epochs=4)
    assert learn.tsynd.cost['rate'] >= 0 and learn.tsynd.cost['plain_ms'] > 0
    quiet(learn, learn.fit, 1)
    with refused('budget'): learn.tsynd.cost                             # each fit measures anew


# The guard of the single step

@pytest.fixture
def looks(monkeypatch):
    "A function that lets the looks say whether MI rose; for ever the last word"
    measure = Synthesizer.measure
    def say(*rose):
        words = list(rose)
        def told(self, model, syn, **kwargs):
            s, up = measure(self, model, syn, **kwargs), words.pop(0) if len(words) > 1 else words[0]
            return replace(s, mi_after=s.mi_before+(.01 if up else -.01))
        monkeypatch.setattr(Synthesizer, 'measure', told)
    return say

@pytest.mark.parametrize('every', [1, 2])
@pytest.mark.parametrize('seed', range(3))
def test_a_single_step_is_halved_where_mi_falls_and_grows_back(data, ae, looks, seed, every):
    words = (np.random.default_rng(seed).random(30) < .5).tolist()
    looks(*words)
    h = fit(data, tsynd(ae, step=.8, measure_every=every, keep=0), epochs=4, lr=0.).tsynd.history
    want, length = [], .8
    for up in words[:20//every]:
        want.append(length)
        length = min(.8, 2*length) if up else length/2
    assert [i['step_length'] for i in h] == want and min(want) < .8
    assert [i['rose'] for i in h] == [float(w) for w in words[:len(h)]]
    # it is the step that is made
    assert [i['distance_latent'] for i in h] == pytest.approx([.3*w for w in want], rel=1e-3)

def test_the_guard_starts_anew_with_each_fit(data, ae, looks):
    looks(False)
    learn = fit(data, tsynd(ae, measure_every=1, keep=0, step=.5))
    assert learn.tsynd.engine.step == .5**11
    quiet(learn, learn.fit, 1)
    assert [h['step_length'] for h in learn.tsynd.history] == [.5**k for k in range(1, 6)]

def test_what_is_kept_has_no_say(data, ae, looks):
    def run(keep):
        with seeded(4):
            return everything(fit(data, tsynd(ae, keep=keep, measure_every=3, step=1., radius=2.), epochs=3))
    looks(False)
    assert same(run(0), run(1000)) and same(run(0), run(12))

@pytest.mark.parametrize('keep', [0, 1000])
def test_the_guard_goes_by_the_first_32_images(data, ae, monkeypatch, keep):
    "In the last epoch all 40 are measured as well"
    measure = Synthesizer.measure
    def told(self, model, syn, **kwargs):
        s = measure(self, model, syn, **kwargs); return replace(s, mi_after=s.mi_before+(len(syn)-36))
    monkeypatch.setattr(Synthesizer, 'measure', told)
    t = fit(data, tsynd(ae, keep=keep, measure_every=3, step=.8), epochs=7, bs=40).tsynd
    assert t.engine.step == .8/2**3 and [h['step_length'] for h in t.history] == [.8, .4, .2]
    assert [h['rose'] for h in t.history] == [0, 0, float(keep > 0)]

def test_several_steps_need_no_guard(data, ae, looks):
    looks(False)
    t = fit(data, tsynd(ae, steps=2, measure_every=1, step=.5)).tsynd
    assert t.engine.step == .5 and {h['step_length'] for h in t.history} == {.5}


# Warm starts

@pytest.fixture
def begun(monkeypatch):
    "For each ascent: did it start at the source, image by image?"
    seen, f = [], ascend
    def noted(U, z0, r, steps, step, start):
        seen.append((start == z0).flatten(1).all(1).tolist())
        return f(U, z0, r, steps, step, start)
    monkeypatch.setattr('tsynd.targeting.synthesis.ascend', noted)
    return seen

def test_warm_starts_from_the_second_epoch_on(data, ae, begun):
    for warm in (True, False):
        begun.clear()
        with seeded(3): learn = fit(data, tsynd(ae, warm=warm), epochs=3, balanced=False)
        assert begun[:5] == [[True]*8]*5 and begun[5:] == [[not warm]*8]*10 and learn.tsynd.bank.encoded == 40
    bank = learn.tsynd.bank
    quiet(learn, learn.fit, 1)
    assert begun[15:] == [[True]*8]*5 and learn.tsynd.bank is not bank

def test_without_a_source_index_warm_is_cold(data, ae, begun):
    items = [data.train[i] for i in range(40)]
    def run(warm):
        with seeded(2), warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            dls = DataLoaders(Dealt(items, bs=8, num_workers=0), DataLoader(items[:16], bs=8, num_workers=0),
                              device=torch.device('cpu'))
            learn = Learner(dls, tiny(), loss_func=CrossEntropyLossFlat(), cbs=tsynd(ae, warm=warm, gate=.5))
            quiet(learn, learn.fit, 2)
        return learn.tsynd.images, copied(learn.model)
    (a,p),(b,q) = run(True), run(False)
    assert torch.equal(a.x, b.x) and same(p, q) and begun == [[True]*8]*20


# What a broken fit or a strict gate leaves

@pytest.mark.parametrize('error', [KeyError('k'), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('place', ['forward','batch'])
def test_bfloat16_after_a_fit_that_broke_off(data, error, place):
    class Stop(Callback):
        def after_batch(self):
            if place == 'batch': raise error
    def fail(m, inp):
        if place == 'forward': raise error
    model = tiny()
    hook = model.trunk.register_forward_pre_hook(fail)
    with pytest.raises(type(error)): fit(data, [BF16(), Stop()], model=model)
    hook.remove()
    assert not torch.is_autocast_enabled('cpu')
    fit(data, [BF16(), Moves(), Weights()], model=model, lr=.3, opt=SGD)
    assert not torch.is_autocast_enabled('cpu') and 'forward' not in vars(model)

class Doubled(nn.Module):
    "Its `forward` is one that it was given, and not its class's"
    def __init__(self):
        super().__init__()
        self.body = tiny()
        self.forward = self.twice
    def twice(self, x): return 2*self.body(x)

@pytest.mark.parametrize('wrap', [Doubled, lambda: torch.compile(tiny(), backend='eager')],
                         ids=['given','compiled'])
def test_a_model_with_a_forward_of_its_own_keeps_it(data, ae, wrap):
    model,x = wrap(),data.val.batch(slice(4))[0]
    forward = vars(model)['forward']
    avg = MovingAverage(model.eval())
    assert torch.equal(avg(x), model(x))
    with torch.no_grad():
        for p in avg.parameters(): p.zero_()
    assert not avg(x).any() and model(x).any()                                # the copy's own weights
    t = fit(data, [BF16(), tsynd(ae, gate=.5)], epochs=1, model=model).tsynd
    assert vars(model)['forward'] == forward and t.count == 5

@pytest.mark.parametrize('again', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=['copied','pickled'])
def test_a_model_that_a_broken_fit_left_in_bfloat16_can_be_copied(data, again):
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt()
    model = tiny()
    with pytest.raises(KeyboardInterrupt): fit(data, [BF16(), Stop()], model=model)
    model.eval(); twin,x = again(model),data.val.batch(slice(4))[0]
    assert torch.equal(twin(x), model(x)) and not torch.equal(type(model).forward(model, x), model(x))
    with torch.no_grad(): twin.out.weight.zero_(); twin.out.bias.fill_(3)
    assert (twin(x) == 3).all() and not (model(x) == 3).any()

def test_a_gate_that_drops_all_says_so(data, ae, gates):
    gates(0.)
    t = fit(data, tsynd(ae)).tsynd
    for f in (lambda: t.images, t.show):
        with refused('gate', 'all 40'): f()
    assert len(t.provenance) == 40

def test_one_image_alone_is_dropped(data, ae, gates):
    gates(1., *[0.]*7)
    t = fit(data, [tsynd(ae), Rows()])
    assert all(len(rows) == 1 for rows,_,_ in t.rows.batches) and (t.tsynd.provenance.gate == 0).all()

def test_the_average_of_a_model_whose_weights_come_from_hooks():
    with seeded(0):
        model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Dropout(.5), nn.Linear(4, 2))
        x, average = torch.randn(5, 4), MovingAverage(model, decay=0.)
        with torch.no_grad():
            for p in model.parameters(): p.add_(torch.randn_like(p))
        for _ in range(300): model.train(); model(x)
        model.eval(); average.update(model)
        torch.testing.assert_close(average(x), model(x))

def test_a_pickled_callback_carries_no_image(data, ae):
    tsynd_ = fit(data, tsynd(ae, gate=.5, warm=True)).tsynd
    n, again = len(tsynd_.images), pickle.loads(pickle.dumps(tsynd_))
    assert n and len(tsynd_.images) == n and again.gate == .5 and again.history == tsynd_.history
    assert (again.kept, again.syn, again.last_syn, again.judge, again.bank.rows) == ([], None, None, None, {})

def test_a_budget_that_the_average_alone_uses_up_says_so(data, ae, own_time):
    with pytest.warns(UserWarning, match='nothing will be synthesised'):
        learn = fit(data, [tsynd(ae, 'reconstruction', budget=1.05, gate=.5), own_time[1]()], epochs=8)
    assert learn.tsynd.cost['rate'] == 0


def test_a_last_epoch_without_synthesis_leaves_the_last_images_there_are(data, ae):
    "One batch to an epoch, and every third synthesises: neither of the last two does"
    t = fit(data, tsynd(ae, every=3, share=1.), epochs=6, bs=len(data.train)).tsynd
    assert t.count == 2 and len(t.last_epoch) == len(t.last_syn) and t.last_epoch.mi_after is not None
    assert t.provenance.mi_after.notna().all()
