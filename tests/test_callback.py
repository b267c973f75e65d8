"""The callback in trainings of many kinds: off means off, each image where and when it should be, validation untouched."""
import math, random, warnings
from functools import partial
from types import SimpleNamespace

import numpy as np, pytest, timm, torch, torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.optimizer import SGD, Adam
from hypothesis import given, settings, strategies as st
from layouts import write_npz
from torch import nn

from tsynd import autoencoder as A
from tsynd.autoencoder import Autoencoder, train_autoencoder
from tsynd.callback import TSynD
from tsynd.classifier import Classifier, classifier_learner, train_classifier
from tsynd.data import InputError, image_dls, load_medmnist, phantom, seeded
from tsynd.synthesis import Synthesizer


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
        return Classifier(nn.Sequential(nn.Conv2d(ch, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()), 54, C, p)

def tsynd(ae, objective='mi', **kwargs): return TSynD(ae, objective, **dict(dict(T=3, steps=1, warmup=0, gate=False), **kwargs))

def quiet(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return f(*args, **kwargs)

def fit(data, cbs, epochs=2, bs=8, model=None, lr=1e-2, opt=Adam, **kwargs):
    loss = BCEWithLogitsLossFlat() if data.multilabel else CrossEntropyLossFlat()
    learn = Learner(image_dls(data, bs=bs, **kwargs), model or tiny(data.n_classes), loss_func=loss, opt_func=opt, cbs=cbs)
    quiet(learn, learn.fit, epochs, lr)
    return learn

def everything(learn):
    "Weights, buffers, optimiser state, losses and all random streams"
    opt = [(sorted(s), [torch.as_tensor(s[k]).clone() for k in sorted(s)]) for s in learn.opt.state_dict()['state']]
    return [{k: v.clone() for k,v in learn.model.state_dict().items()}, [n for n,_ in opt], [v for _,vs in opt for v in vs], [m.training for m in learn.model.modules()],
            torch.stack(learn.recorder.losses), learn.recorder.values, torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]

def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) or hasattr(a, '__len__') and not isinstance(a, str): return len(a) == len(b) and all(map(same, a, b))
    return a == b


# Off means off

COMPANY = {'alone': lambda: [], 'MixUp': lambda: [MixUp()], 'CutMix': lambda: [CutMix()], 'accumulation': lambda: [GradientAccumulation(24)],
           'all': lambda: [MixUp(), GradientAccumulation(16), GradientClip(.1)]}
OPTIMISERS = {'Adam': Adam, 'momentum': partial(SGD, mom=.9)}

@pytest.mark.parametrize('opt', OPTIMISERS)
@pytest.mark.parametrize('company', COMPANY)
@pytest.mark.parametrize('kind', ['classes','labels'])
def test_at_weight_zero_nothing_changes(data, ae, several, several_ae, kind, company, opt, calls):
    d,a = (data,ae) if kind == 'classes' else (several,several_ae)
    def run(*cbs):
        with seeded(4): return everything(fit(d, [*cbs, *COMPANY[company]()], opt=OPTIMISERS[opt]))
    without, zero, one = run(), run(tsynd(a, weight=0.)), run(tsynd(a, weight=1.))
    assert same(without, zero) and not same(without[0], one[0])
    assert len(calls) == 2*2*5 and len(without[2]) > 0                          # it did synthesise

@pytest.mark.parametrize('kwargs', [dict(objective='entropy', share=.3), dict(objective='random', every=2), dict(objective='reconstruction', warmup=.4),
                                    dict(objective='cross_entropy', measure_every=1, keep=5), dict(keep=0)], ids=str)
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
    assert plain == run(3, tsynd(ae)) == run(3, tsynd(ae, 'random', share=.5), MixUp()) == run(3, GradientAccumulation(14))
    assert plain != run(4) and len(plain) == 18 and plain[:6] != plain[6:12]


# What is added

@pytest.mark.parametrize('weight', [.5, 2.])
@pytest.mark.parametrize('n_acc', [None, 16])
@pytest.mark.parametrize('kind', ['classes','labels'])
def test_a_step_follows_the_sum_of_both_gradients(data, ae, several, several_ae, kind, n_acc, weight):
    "One update by SGD, and the same update by hand"
    d,a = (data,ae) if kind == 'classes' else (several,several_ae)
    class Last(Callback):
        order = 90
        def after_loss(self): self.learn.batches = getattr(self.learn, 'batches', []) + [(self.x.clone(), self.y.clone(), self.learn.tsynd.syn)]
        def after_step(self): raise CancelFitException()
    with seeded(8): learn = fit(d, [tsynd(a, weight=weight), Last(), *([GradientAccumulation(n_acc)] if n_acc else [])], epochs=1, lr=.1, opt=SGD)
    assert len(learn.batches) == (n_acc or 8)//8
    by_hand = tiny(d.n_classes).train()
    loss = F.binary_cross_entropy_with_logits if d.multilabel else F.cross_entropy
    with seeded(8):
        image_dls(d, bs=8).train.__iter__().__next__()                          # takes from the random stream what the other did
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
            if self.training: assert torch.equal(self.learn.loss, F.cross_entropy(self.pred, self.y)) and self.learn.loss_grad > self.learn.loss
    fit(data, [tsynd(ae), Real()])

def test_every_batch_has_masks_of_its_own(data, ae, calls):
    for seed in (0, 1): fit(data, tsynd(ae, seed=seed), epochs=2)
    seeds = [c.seed for c in calls]
    assert len(set(seeds)) == 20

def test_synthetic_images_name_their_sources(data, ae):
    learn = fit(data, tsynd(ae, share=.6))
    s = learn.tsynd.images
    assert torch.equal((s.source*255).round().byte(), data.train.x[s.index]) and torch.equal(s.y, data.train.y[s.index])
    assert learn.tsynd.provenance.source_index.tolist() == s.index.tolist() and len(s) == 5*5
    assert np.isfinite(learn.tsynd.provenance.to_numpy()).all()


# When, and how many

def test_counts_are_those_of_the_options(data, ae):
    @settings(max_examples=25)
    @given(epochs=st.integers(1, 4), bs=st.integers(5, 50), every=st.integers(1, 7), share=st.floats(.01, 1), warmup=st.sampled_from([0, .11, .26, .51, .99, 1]))
    def check(epochs, bs, every, share, warmup):
        t = fit(data, tsynd(ae, 'reconstruction', every=every, share=share, warmup=warmup, weight=0., keep=10**6), epochs=epochs, bs=bs).tsynd
        sizes = [min(bs, 40-i) for i in range(0, 40, bs)]*epochs
        at = [i for i in range(len(sizes)) if i/len(sizes) >= warmup and i%every == 0]
        assert t.count == len(at) and t.n_images == sum(math.ceil(share*sizes[i]) for i in at)
        last = [i for i in at if i >= len(sizes)*(epochs-1)//epochs]
        if last: assert len(t.images) == sum(math.ceil(share*sizes[i]) for i in last)
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
        with pytest.raises(InputError, match='no synthetic images'): learn.tsynd.images

def test_history_is_as_dense_as_asked_for(data, ae):
    h = fit(data, tsynd(ae, measure_every=4, keep=0), epochs=4).tsynd.history
    assert [i['step'] for i in h] == [0,4,8,12,16] and [i['epoch'] for i in h] == [0,0,1,2,3]
    assert all(0 <= i[k] for i in h for k in ('mi_before','mi_after','distance_latent')) and all(i['distance_latent'] <= .3+1e-5 for i in h)

def test_only_the_last_epoch_is_kept(data, ae):
    learn = fit(data, tsynd(ae), epochs=3)
    assert sorted(learn.tsynd.images.index.tolist()) == sorted(learn.dls.train.epoch_idxs.tolist())


# Validation and the rest of fastai

def test_validation_is_never_touched(data, ae, calls):
    class Watch(Callback):
        def before_fit(self): self.n = 0
        def after_loss(self):
            if not self.training:
                assert torch.equal(self.learn.loss, F.cross_entropy(self.pred, self.y)) and torch.equal(self.learn.loss, self.learn.loss_grad)
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
    learn = Learner(image_dls(data, bs=8), tiny(), loss_func=CrossEntropyLossFlat(), cbs=tsynd(ae), path=tmp_path)
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
    assert t.base_loss is learn.loss_func and [h['step'] for h in t.history] == sorted(h['step'] for h in t.history)

def test_a_fit_that_broke_off_can_be_started_again(data, ae):
    class Stop(Callback):
        on = True
        def after_batch(self):
            if self.on and self.training and self.iter == 2: raise KeyError('k')
    learn = Learner(image_dls(data, bs=8), tiny(), loss_func=CrossEntropyLossFlat(), cbs=[tsynd(ae), Stop()])
    with pytest.raises(KeyError): quiet(learn, learn.fit, 1)
    assert not any(m._forward_hooks for m in learn.model.modules()) and all(p.requires_grad for p in learn.model.parameters())
    learn.stop.on = False
    quiet(learn, learn.fit, 1)
    assert learn.tsynd.count == 5

@pytest.mark.parametrize('kind', ['timm','torch'])
def test_a_model_of_ones_own(data, ae, kind):
    with seeded(0):
        model = timm.create_model('regnetx_002', in_chans=1, num_classes=2, drop_rate=.3) if kind == 'timm' else \
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(.3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 8), nn.Dropout(.5), nn.Linear(8, 2))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn = fit(data, tsynd(ae), model=model, epochs=1, bs=20)
    assert learn.tsynd.count == 2 and learn.tsynd.provenance.distance_latent.mean() > .01

def test_loaders_that_name_no_sources(data, ae):
    items = [data.train[i] for i in range(40)]
    dls = DataLoaders(DataLoader(items, bs=8, shuffle=True, num_workers=0), DataLoader(items[:16], bs=8, num_workers=0), device=torch.device('cpu'))
    learn = Learner(dls, tiny(), loss_func=CrossEntropyLossFlat(), cbs=tsynd(ae))
    quiet(learn, learn.fit, 2)
    assert learn.tsynd.images.index is None and learn.tsynd.provenance.source_index.tolist() == list(range(40))
    assert len(learn.tsynd.history) == 6                                       # measured at 0, and in all of the last epoch

def test_colour(ae, tmp_path):
    folder = write_npz(tmp_path, 'bloodmnist', n=(40,20,20)).parent
    with pytest.warns(UserWarning, match='MD5'): d = load_medmnist('bloodmnist', folder, download=False)
    learn = fit(d, tsynd(train_autoencoder(d, steps=10, width=4)), model=tiny(8, 3))
    assert learn.tsynd.images.x.shape == (40,3,28,28)
    with pytest.raises(InputError, match=r'\(8, 3, 28, 28\), but the autoencoder expects \(B, 1'): fit(d, tsynd(ae), model=tiny(8, 3))

def test_several_labels_are_told_by_their_targets(several, several_ae):
    t = fit(several, tsynd(several_ae)).tsynd
    assert t.engine.multilabel and t.images.y.shape == (40,14) and (t.provenance.mi_after >= 0).all()

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
    assert [l.get_ydata().tolist() for l in ax.lines] == [[h[k] for h in learn.tsynd.history] for k in ('mi_before','mi_after')]


# Bad input and failures

@pytest.mark.parametrize('kwargs,word', [
    (dict(weight=-1), 'weight is -1'), (dict(weight=math.inf), 'weight is inf'), (dict(share=1.1), 'share is 1.1'), (dict(share=-.1), 'share is -0.1'),
    (dict(every=0), 'every is 0'), (dict(every=1.5), 'every is 1.5'), (dict(warmup=-.1), 'warmup is -0.1'), (dict(warmup=1.1), 'warmup is 1.1'),
    (dict(measure_every=0), 'measure_every is 0'), (dict(keep=-1), 'keep is -1'), (dict(T=1), 'T is 1'), (dict(steps=0), 'steps is 0'),
    (dict(radius=0), 'radius is 0'), (dict(step=0), 'step is 0'), (dict(objective='mii'), "objective is 'mii'")], ids=str)
def test_impossible_options_are_refused_at_once(ae, kwargs, word):
    with pytest.raises(InputError) as e: TSynD(ae, **kwargs)
    assert word in str(e.value) and '\n' not in str(e.value)

def test_batches_of_another_kind_are_refused(data, ae):
    class Pair(Callback):
        order = -9
        def before_batch(self): self.learn.xb = (self.x, self.x)
    with pytest.raises(InputError, match='2 inputs and 1 targets, but TSynD needs'): fit(data, [Pair(), tsynd(ae)])

@pytest.mark.parametrize('where', ['first','later'])
def test_looking_before_there_is_anything(data, ae, where):
    t = tsynd(ae) if where == 'first' else fit(data, tsynd(ae, warmup=1)).tsynd
    for f in (lambda: t.images, lambda: t.provenance, t.show, t.plot_mi):
        with pytest.raises(InputError, match='no synthetic images'): f()

class Explode(Callback):
    "Puts NaN into the weights in the third batch"
    order = -9
    def before_batch(self):
        if self.training and self.iter == 2:
            with torch.no_grad(): self.model.out.weight.fill_(math.nan)

@pytest.mark.parametrize('with_tsynd', [True, False])
def test_a_loss_that_is_no_longer_finite_stops_it(data, ae, with_tsynd):
    with pytest.raises(InputError, match='mi of the classifier is not finite' if with_tsynd else 'loss .*is nan in epoch 0'):
        train_classifier(data, tiny(), epochs=1, bs=8, cbs=[Explode(), *([tsynd(ae)] if with_tsynd else [])])

def test_a_synthetic_loss_that_is_not_finite_stops_it_too(data, ae):
    with pytest.raises(InputError, match='loss .*is nan in epoch 0'):
        train_classifier(data, tiny(), epochs=1, bs=8, cbs=[SynNaN(), tsynd(ae)])

class SynNaN(Callback):
    "Spoils the synthetic images only"
    order = -4
    def before_batch(self):
        if self.training: self.learn.tsynd.syn.x.fill_(math.nan)

@pytest.mark.parametrize('error', [KeyError('k'), InputError('what')], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize('place', ['training','synthesis'])
def test_exceptions_close_the_bar_and_release_the_model(data, ae, monkeypatch, error, place):
    bars = []
    class Bar(SimpleNamespace):
        def __init__(self, **kwargs): super().__init__(closed=False, **kwargs); bars.append(self)
        def update(self, n=1): pass
        def close(self): self.closed = True
    monkeypatch.setattr(A, 'tqdm', Bar)
    model, count = tiny(), [0]
    def fail(m, inp):
        count[0] += m.training == (place == 'training')
        if count[0] == 3: raise error
    model.trunk.register_forward_pre_hook(fail)
    with pytest.raises(type(error)), seeded(3): train_classifier(data, model, epochs=2, bs=8, progress=True, cbs=tsynd(ae))
    assert [b.closed for b in bars] == [True]
    assert not any(m._forward_hooks for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert model.training and all(m.training for m in model.modules())
