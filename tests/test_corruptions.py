"""Corruptions: formulas against PIL and theory, dials, sizes, a table computed by hand,
and quotients without a denominator."""
import io, math

import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn

from refused import refused
from tsynd.robustness import (
    brightness, CORRUPTIONS, impulse_noise, jpeg, motion_blur, pixelate, shot_noise, show_corruptions)
from tsynd.models import predict, small_resnet
from tsynd.robustness import corrupt, corruption_summary, corruption_table, families, LEVELS
from tsynd.data import FACTORS, load_data, medmnist_info, render_phantom, stratified_order
from tsynd.core import image_seeds, metrics, streams
from tsynd.robustness import blur

ALL = [(d,k) for d,levels in LEVELS.items() for k in levels]
RANDOM = {'gaussian_noise','speckle_noise','impulse_noise','shot_noise','motion_blur'}
MULTI = 'multi-label, binary-class'
every = pytest.mark.parametrize('dataset,name', ALL)


def images(n=6, ch=1, size=28, seed=0):
    return torch.rand(n, ch, size, size, generator=torch.Generator().manual_seed(seed))

def lesions(n, size, seed=0):
    f = torch.rand(n, len(FACTORS), generator=torch.Generator().manual_seed(seed))
    return render_phantom(f, size, seed)

def flat(v, n=4, ch=1, size=100): return torch.full((n,ch,size,size), v)

def rms(a, b): return (a-b).pow(2).mean().sqrt().item()

def only(name): return next(d for d,k in ALL if k == name)


# The lists

def test_families_are_the_published_ones():
    light = {'brightness_up','brightness_down','contrast_up','contrast_down','gamma_corr_up',
             'gamma_corr_down'}
    xray = {'pixelate','jpeg_compression','gaussian_noise','speckle_noise','impulse_noise','shot_noise',
            'gaussian_blur'} | light
    breast = {'pixelate','jpeg_compression','speckle_noise','motion_blur','brightness_up','brightness_down',
              'contrast_down'}
    assert {d: set(v) for d,v in LEVELS.items()} == dict(breastmnist=breast, chestmnist=xray,
                                                         pneumoniamnist=xray)
    assert all(len(levels) == 5 for v in LEVELS.values() for levels in v.values())
    assert set(CORRUPTIONS) == breast | xray

def test_every_set_has_a_list():
    for d in ('phantom', *medmnist_info()): assert families(d) is LEVELS.get(d, LEVELS['breastmnist'])


# A dial, for every family of every list

@every
@pytest.mark.parametrize('size', [28,64,224])
def test_monotone_in_severity_and_identity_at_zero(dataset, name, size):
    x = lesions(12 if size < 200 else 4, size)
    assert torch.equal(corrupt(x, name, 0, dataset), x)
    moved = [rms(corrupt(x, name, s, dataset), x) for s in range(6)]
    assert all(b > 1.01*a for a,b in zip(moved, moved[1:])), moved
    assert moved[1] > .002

@every
@pytest.mark.parametrize('ch', [1,3])
def test_an_image_depends_on_the_seed_and_its_place_only(dataset, name, ch):
    x = images(9, ch, 30)
    before = torch.get_rng_state()
    full = corrupt(x, name, 3, dataset, seed=5)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(x, images(9, ch, 30))
    assert full.shape == x.shape and full.dtype == x.dtype and full.min() >= 0 and full.max() <= 1
    for k in (1,2,7): assert torch.equal(corrupt(x[:k], name, 3, dataset, seed=5), full[:k])
    assert torch.equal(corrupt(x, name, 3, dataset, seed=5, bs=4), full)
    other = torch.cat([images(8, ch, 30, seed=1), x[8:]])                        # other images beside it
    assert torch.equal(corrupt(other, name, 3, dataset, seed=5)[8], full[8])
    again = corrupt(x, name, 3, dataset, seed=6)
    assert torch.equal(again, full) == (name not in RANDOM)

@pytest.mark.parametrize('name', sorted(RANDOM))
def test_each_image_is_corrupted_in_its_own_way(name):
    x = images(1, size=28).expand(4, -1, -1, -1)
    c = corrupt(x, name, 5, only(name))
    assert all((c[i]-c[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))

@pytest.mark.parametrize('name', sorted(RANDOM))
def test_severities_share_what_is_drawn(name):
    "Two severities differ less than two draws of the same severity"
    x, d = lesions(6, 28), only(name)
    a, b, c = corrupt(x, name, 4, d), corrupt(x, name, 5, d), corrupt(x, name, 5, d, seed=1)
    # counts have no scale to share
    if name != 'shot_noise': assert rms(a, b) < rms(b, c)

@every
def test_extremes_and_layouts(dataset, name):
    ends = torch.stack([torch.zeros(1,28,28), torch.ones(1,28,28), torch.eye(28)[None]])
    for s in (1,5):
        c = corrupt(ends, name, s, dataset)
        assert torch.isfinite(c).all() and c.min() >= 0 and c.max() <= 1
    x = images(4, 3, 28)
    last = corrupt(x.contiguous(memory_format=torch.channels_last), name, 4, dataset)
    assert (last - corrupt(x, name, 4, dataset)).abs().max() < 1e-5
    assert corrupt(x.double(), name, 4, dataset).dtype == torch.float64
    assert corrupt(x[:,:,:,:20], name, 4, dataset).shape == (4,3,28,20)


# Noise

def noisy(f, v, level): return f(flat(v), level, streams(image_seeds(4, 3)))

@pytest.mark.parametrize('v', [.2,.5])
@pytest.mark.parametrize('f,level,sd', [
    ('gaussian_noise', .05, lambda v: .05), ('speckle_noise', .2, lambda v: .2*v),
    ('speckle_noise', .45, lambda v: .45*v), ('shot_noise', 300, lambda v: (v/300)**.5),
    ('shot_noise', 5, lambda v: (v/5)**.5)])
def test_noise_has_its_mean_and_standard_deviation(f, level, sd, v):
    n = noisy(CORRUPTIONS[f], v, level)
    assert abs(n.std()-sd(v)) < .02*sd(v) and abs(n.mean()-v) < .02*sd(v)
    assert not torch.equal(n[0], n[1])

@pytest.mark.parametrize('dataset,name',
                         [(d,k) for d,k in ALL if k in ('gaussian_noise','speckle_noise','shot_noise')])
def test_the_levels_of_noise_reach_the_image(dataset, name):
    v = .3
    for s,level in enumerate(LEVELS[dataset][name], 1):
        sd = dict(gaussian_noise=level, speckle_noise=level*v, shot_noise=(v/level)**.5)[name]
        # beyond, [0, 1] cuts it off
        if sd > .09: continue
        assert abs((corrupt(flat(v), name, s, dataset)-v).std() - sd) < .02*sd

def test_shot_noise_counts_whole_photons():
    n = noisy(shot_noise, .37, 25)*25
    assert (n-n.round()).abs().max() < 1e-4 and len(n.round().unique()) > 10

@pytest.mark.parametrize('share', [.005,.02,.17])
def test_impulses_are_black_and_white_in_equal_parts(share):
    n = noisy(impulse_noise, .4, share)
    assert set(n.unique().tolist()) == {0., torch.tensor(.4).item(), 1.}
    assert abs((n != flat(.4)).float().mean()-share) < 4*(share/n.numel())**.5
    assert abs((n == 1).float().mean()-share/2) < 4*(share/2/n.numel())**.5
    few = noisy(impulse_noise, .4, share/2) != flat(.4)
    # a higher share hits the same pixels, and more
    assert ((n != flat(.4)) | ~few).all()

def test_channels_have_noise_of_their_own():
    for name in ('gaussian_noise','speckle_noise','impulse_noise','shot_noise'):
        c = corrupt(flat(.5, 1, 3), name, 5, 'chestmnist')[0]-.5
        assert torch.corrcoef(c.flatten(1)).fill_diagonal_(0).abs().max() < .05


# Light, against PIL

def pil(x, f):
    "f on every image as PIL sees it"
    pictures = [f(Image.fromarray((im[0]*255).round().byte().numpy())) for im in x]
    return torch.stack([torch.from_numpy(np.array(p)) for p in pictures])[:,None]/255

@every
def test_light_agrees_with_pil(dataset, name):
    known = {'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast}
    enhance = known.get(name.rsplit('_', 1)[0])
    if not enhance: return
    x = (lesions(4, 64)*255).round()/255
    for s,v in enumerate(LEVELS[dataset][name], 1):
        # PIL rounds the mean, and cuts
        theirs = pil(x, lambda im: enhance(im).enhance(v))
        assert (corrupt(x, name, s, dataset) - theirs).abs().max() < 1.6/255

def test_light_does_exactly_what_it_says():
    # far from 0 and 1: nothing is cut
    x = .2 + .1*images()
    m = x.mean((1,2,3), keepdim=True)
    def same(a, b): assert torch.allclose(a, b, atol=1e-6)
    for d in LEVELS:
        for s in range(1,6):
            v = {k: levels[s-1] for k,levels in LEVELS[d].items()}
            same(corrupt(x, 'brightness_up', s, d), x*v['brightness_up'])
            same(corrupt(x, 'brightness_down', s, d), x*v['brightness_down'])
            same(corrupt(x, 'contrast_down', s, d), m + v['contrast_down']*(x-m))
            if d == 'breastmnist': continue
            same(corrupt(x, 'contrast_up', s, d), m + v['contrast_up']*(x-m))
            same(corrupt(x, 'gamma_corr_up', s, d), x**v['gamma_corr_up'])
            same(corrupt(x, 'gamma_corr_down', s, d), x**v['gamma_corr_down'])

def test_light_has_a_direction():
    x = lesions(8, 28)
    for s in (1,5):
        def mean(k): return corrupt(x, k, s, 'chestmnist').mean()
        assert mean('brightness_down') < x.mean() < mean('brightness_up')
        assert mean('gamma_corr_up') < x.mean() < mean('gamma_corr_down')
        assert (corrupt(x, 'contrast_down', s, 'chestmnist').std() < x.std()
                < corrupt(x, 'contrast_up', s, 'chestmnist').std())

def test_bright_values_are_cut():
    assert torch.equal(brightness(images(), 2) == 1, images() >= .5)


# Blocks and blurs

@pytest.mark.parametrize('size,blocks', [(28,7), (64,16), (224,28), (28,28)])
def test_whole_blocks_agree_with_pooling(size, blocks):
    x, k = images(3, 2, size), size//blocks
    assert torch.allclose(pixelate(x, blocks), F.interpolate(F.avg_pool2d(x, k), scale_factor=k), atol=1e-6)

@pytest.mark.parametrize('blocks', [20,17,13,10,7])
def test_pixelation_keeps_constants_means_and_sizes(blocks):
    x = images(3, 1, 28)
    assert torch.allclose(pixelate(flat(.3, 2, 1, 28), blocks), flat(.3, 2, 1, 28), atol=1e-6)
    assert torch.allclose(pixelate(x, blocks).mean((1,2,3)), x.mean((1,2,3)), atol=1e-6)
    assert torch.allclose(F.avg_pool2d(pixelate(F.interpolate(x, scale_factor=8), blocks), 8),
                          pixelate(x, blocks), atol=1e-5)
    # 8 blocks along each side, 4 by 8 pixels
    wide = pixelate(images(1, 1, 64)[:,:,:32], 8)[0,0]
    assert torch.allclose(wide[:4,:8], wide[0,0].expand(4, 8), atol=1e-6)
    assert (wide[3,7]-wide[4,7]).abs() > 1e-4

@pytest.mark.parametrize('dataset,name', [('chestmnist','gaussian_blur'), ('breastmnist','motion_blur'),
                                          ('breastmnist','pixelate')])
def test_blurs_keep_constants_and_lose_detail(dataset, name):
    sharp, means = lesions(6, 64), []
    for s in range(1,6):
        assert torch.allclose(corrupt(flat(.3, 2, 1, 28), name, s, dataset), flat(.3, 2, 1, 28), atol=1e-5)
        c = corrupt(sharp, name, s, dataset)
        assert abs(c.mean()-sharp.mean()) < .004
        assert c.max() <= sharp.max()+1e-5 and c.min() >= sharp.min()-1e-5
        means.append((c[...,1:]-c[...,:-1]).abs().mean())
    assert all(a > b for a,b in zip(means, means[1:]))
    assert means[0] < (sharp[...,1:]-sharp[...,:-1]).abs().mean()

def test_gaussian_blur_has_its_width_in_shares_of_the_side():
    for size in (28,64,224):
        dot = torch.zeros(1,1,size+1,size+1); dot[...,size//2,size//2] = 1
        for s,share in enumerate(LEVELS['chestmnist']['gaussian_blur'], 1):
            # a narrower one is hardly sampled
            if share*size < .8: continue
            row = corrupt(dot, 'gaussian_blur', s, 'chestmnist')[0,0].sum(0)
            d2 = ((torch.arange(size+1)-size//2.)**2 * row).sum()
            assert abs(d2**.5 - share*(size+1)) < .03*share*size

@pytest.mark.parametrize('size', [29,113,225])
@pytest.mark.parametrize('angle', [-45.,0.,30.])
def test_a_moved_point_leaves_a_tail(size, angle):
    dot = torch.zeros(1,1,size,size); dot[...,size//2,size//2] = 1
    tail = motion_blur(dot, .3, .15, torch.tensor([angle]))[0,0]
    at = torch.arange(size)-size//2.
    u = torch.linspace(0, .3, 2000); w = torch.exp(-u**2/(2*.15**2)); w = w/w.sum()
    mx, my, mean = (tail.sum(0)*at).sum()/size, (tail.sum(1)*at).sum()/size, (u*w).sum()
    assert abs(tail.sum()-1) < 1e-4
    assert (abs(mx-mean*math.cos(math.radians(angle))) < .003
            and abs(my-mean*math.sin(math.radians(angle))) < .003)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along = (tail*(at[None]*c + at[:,None]*s)**2).sum()/size**2
    assert abs(along - (u*u*w).sum()) < .03*(u*u*w).sum() + .5/size**2
    across = (tail*(at[:,None]*c - at[None]*s)**2).sum()
    # pixels²: no wider than interpolation makes it
    assert across < .5

def test_motion_is_within_45_degrees_of_the_horizontal():
    dot = torch.zeros(200,1,57,57); dot[...,28,28] = 1
    c = corrupt(dot, 'motion_blur', 5, 'breastmnist')
    at = torch.arange(57)-28.
    mx, my = (c.sum((1,2))*at).sum(1), (c.sum((1,3))*at).sum(1)
    angle = torch.atan2(my, mx).rad2deg()
    assert angle.abs().max() < 46 and abs(angle.std()-90/12**.5) < 3 and abs(angle.mean()) < 6

def test_tail_is_as_long_as_published():
    for (length,sd),(radius,sigma) in zip(LEVELS['breastmnist']['motion_blur'],
                                          ((5,5),(9,7),(9,10),(13,10),(17,12))):
        assert math.isclose(224*length, 2*radius) and math.isclose(224*sd, sigma)

@every
def test_same_anatomy_at_every_size(dataset, name):
    if name.endswith(('noise','compression')): return                              # properties of the pixel
    largest = blur(images(6, size=224), .025)
    largest = (.5 + 3*(largest-.5)).clamp(0, 1)
    for k in (2,8):
        large, x = F.avg_pool2d(largest, 8//k), F.avg_pool2d(largest, 8)
        for s in (3,5):
            small, shrunk = corrupt(x, name, s, dataset), F.avg_pool2d(corrupt(large, name, s, dataset), k)
            share = dict(pixelate=.15, motion_blur=.25).get(name, .03)
            assert rms(small, shrunk) < share*rms(small, x), (k, s)


# JPEG

def test_jpeg_error_falls_with_quality():
    x = lesions(6, 64)
    lost = [rms(jpeg(x, q), x) for q in (100,90,70,50,30,15,10,7,3)]
    assert lost == sorted(lost) and lost[0] < 1/255 and lost[-1] > .03

@pytest.mark.parametrize('ch,mode', [(1,'L'), (3,'RGB')])
def test_jpeg_is_close_to_pils(ch, mode):
    x = (blur(images(3, ch, 64), .05)*255).round()/255
    for q in (50,10):
        for im,ours in zip(x, jpeg(x, q)):
            f = io.BytesIO()
            Image.fromarray((im*255).round().byte().permute(1,2,0).squeeze(-1).numpy(), mode).save(
                f, 'JPEG', quality=q)
            theirs = torch.from_numpy(np.array(Image.open(f))).view(64, 64, ch).permute(2,0,1)/255
            assert (ours-theirs).abs().mean() < 2/255


# What is refused

@pytest.mark.parametrize('kwargs,field', [
    (dict(name='motion'), 'corruption'), (dict(name=None), 'corruption'),
    (dict(name=['pixelate']), 'corruption'), (dict(name='gaussian_noise'), 'corruption'),
    (dict(dataset='breast'), 'data set'), (dict(severity=6), 'severity'), (dict(severity=-1), 'severity'),
    (dict(severity=1.5), 'severity'), (dict(severity=True), 'severity'), (dict(bs=0), 'bs'),
    (dict(bs=2.5), 'bs')])
def test_bad_settings_of_corrupt(kwargs, field):
    found, = kwargs.values()
    with refused(field, found=found):
        corrupt(**dict(x=images(), name='pixelate', severity=3, dataset='breastmnist') | kwargs)

@pytest.mark.parametrize('x,found', [
    (images()[0], (1, 28, 28)), (images()[:0], (0, 1, 28, 28)), ((images()*255).byte(), torch.uint8),
    (images()/0, images().numel()), (images(ch=2), 2)], ids=['one','none','bytes','inf','two channels'])
def test_bad_images_are_not_corrupted(x, found):
    with refused('images', found=found): corrupt(x, 'pixelate', 3, 'breastmnist')
    with refused('images', '[0, 1]'): corrupt(images()*2-1, 'pixelate', 3, 'breastmnist')


# The table

class Bright(nn.Module):
    "Class 1 if the mean is above .5"
    def __init__(self):
        super().__init__()
        self.border, self.calls = nn.Parameter(torch.tensor(.5)), 0
    def forward(self, x):
        self.calls += 1
        d = 50*(x.mean((1,2,3))-self.border)
        return torch.stack([-d, d], 1)

def test_table_by_hand():
    x = torch.tensor([.3,.26,.3,.6])[:,None,None,None].expand(4,1,28,28)
    y = torch.tensor([0,0,0,1])
    rows = corruption_table(Bright(), x, y, 'binary-class', 'breastmnist',
                            names=('brightness_up','brightness_down'))
    assert [(r['corruption'], r['severity']) for r in rows] == [
        ('clean',0), *(('brightness_up',s) for s in range(1,6)), *(('brightness_down',s) for s in range(1,6))]
    # ×1.8: .54 .468 .54; ×2: .6 .52 .6, all above; darker: .33 and below
    want = [0] + [0,0,0,1/3,.5] + [.5]*5
    assert [r['balanced_error'] for r in rows] == pytest.approx(want)
    assert [r['accuracy'] for r in rows] == pytest.approx([1] + [1,1,1,.5,.25] + [.75]*5)
    assert all(r['auc'] == 1 and r['n'] == 4 for r in rows)
    assert set(rows[0]) == {'corruption','severity','balanced_error','accuracy','auc','n'}

def test_table_is_what_corrupt_and_the_model_say():
    model, x, y = small_resnet().train(), lesions(30, 28), torch.arange(30)%2
    rows = corruption_table(model, x, y, 'binary-class', 'pneumoniamnist', ['shot_noise','gaussian_blur'],
                            (2,4), seed=7, bs=8)
    for r in rows:
        c = x if r['corruption'] == 'clean' else corrupt(x, r['corruption'], r['severity'], 'pneumoniamnist',
                                                         seed=7)
        p = predict(model, c).softmax(1)
        assert r['balanced_error'] == pytest.approx(1-balanced_accuracy_score(y, p.argmax(1)))
        assert r['auc'] == pytest.approx(roc_auc_score(y, p[:,1]))
    assert len(rows) == 5 and model.training
    assert corruption_table(model, x, y, 'binary-class', 'pneumoniamnist', ['shot_noise','gaussian_blur'],
                            (2,4), seed=7) == rows
    assert rows[:2] == corruption_table(model, x, y, 'binary-class', 'pneumoniamnist', 'shot_noise',
                                        (2,), seed=7)

def test_table_on_a_stratified_subset_counts_its_images():
    x, y, calls = images(40), torch.tensor([0]*32 + [1]*8), []
    model = Bright()
    rows = corruption_table(model, x, y, 'binary-class', n=10, seed=3,
                            progress=lambda done, total: calls.append((done,total)))
    i = stratified_order(y, 3)[:10]
    assert rows == corruption_table(Bright(), x[i], y[i], 'binary-class', seed=3)
    assert len(rows) == 36 and model.calls == 36 and {r['n'] for r in rows} == {10}
    assert calls == [(10*k, 360) for k in range(1,37)]

@pytest.mark.parametrize('task,C', [('binary-class',2), (MULTI,3)])
@pytest.mark.parametrize('n', [None, 12])
def test_what_is_kept_is_what_was_measured(task, C, n):
    x, keep = images(20), {}
    y = (torch.arange(20*C).view(20, C)%(C+1) > 0).float() if task == MULTI else torch.arange(20)%C
    kw = dict(names=['pixelate','speckle_noise'], severities=(1,), n=n, seed=2)
    model = small_resnet(1, C)
    rows = corruption_table(model, x, y, task, keep=keep, **kw)
    assert rows == corruption_table(model, x, y, task, **kw)
    assert list(keep) == [f"corrupted {r['corruption']} {r['severity']}" for r in rows[1:]]
    for r, (i, p) in zip(rows[1:], keep.values()):
        m = metrics(y[i], p, task) | dict(n=len(i))
        m['balanced_error'] = 1-m.pop('balanced_accuracy')
        assert {k: r[k] for k in m} == m
        assert i.tolist() == (list(range(20)) if n is None else stratified_order(y, 2)[:12].tolist())
        assert i.dtype == 'int64' and p.dtype == 'float32' and p.shape == (n or 20, C)

@pytest.mark.parametrize('task,C', [
    ('binary-class',2), ('multi-class',5), ('ordinal-regression',4), (MULTI,3)])
@pytest.mark.parametrize('ch,size', [(1,28), (3,64)])
def test_table_for_every_task(task, C, ch, size):
    x = images(16, ch, size)
    y = (torch.arange(16*C).view(16, C)%(C+1) > 0).float() if task == MULTI else torch.arange(16)%C
    rows = corruption_table(small_resnet(ch, C), x, y, task, names=['pixelate','speckle_noise'],
                            severities=(1,5))
    assert len(rows) == 5 and all(0 <= r['balanced_error'] <= 1 and 0 <= r['auc'] <= 1 for r in rows)

@pytest.mark.parametrize('kwargs,field,said', [
    (dict(names=['blurr']), 'corruption', 'blurr'),
    (dict(names='gaussian_blur'), 'corruption', 'gaussian_blur'),
    (dict(severities=(0,1)), 'severity', 'at least 1'), (dict(n=0), 'n', ''), (dict(n=.5), 'n', ''),
    (dict(bs=0), 'bs', ''), (dict(dataset='phantoms'), 'data set', 'phantoms'),
    (dict(x=images()*3), 'images', '[0, 1]'), (dict(y=torch.zeros(5, dtype=torch.int64)), 'labels', '(5,)'),
    (dict(task=MULTI), 'labels', 'float zeros and ones')])
def test_bad_input_to_the_table_is_found_before_any_work(kwargs, field, said):
    model = Bright()
    with refused(field, said, found=... if said else kwargs[field]):
        corruption_table(**dict(model=model, x=images(), y=torch.arange(6)%2, task='binary-class') | kwargs)
    assert model.calls == 0

def test_labels_the_model_does_not_know():
    with refused('labels', '0 to 1'):
        corruption_table(Bright(), images(), torch.arange(6)%3, 'multi-class')


# The summary

def rows(clean, n=9, auc=.8, **errors):
    return [dict(corruption='clean', severity=0, balanced_error=clean, accuracy=1-clean, auc=auc, n=n),
            *(dict(corruption=k, severity=s, balanced_error=e, accuracy=1-e, auc=auc-e/2, n=n)
              for k,v in errors.items() for s,e in enumerate(v, 1))]

def test_summary_by_hand():
    ours = rows(.1, pixelate=[.1,.2,.3], motion_blur=[.2,.2,.5])
    ref = rows(.2, pixelate=[.3,.3,.6], motion_blur=[.2,.3,.4])
    s = {r['corruption']: r for r in corruption_summary(ours, ref)}
    assert list(s) == ['pixelate','motion_blur','mean']
    want = dict(pixelate=dict(balanced_error=.2, auc=.7, rise=.1, relative=2, be=.6/1.2, rbe=.3/.6),
                motion_blur=dict(balanced_error=.3, auc=.65, rise=.2, relative=3, be=.9/.9, rbe=.6/.3),
                mean=dict(balanced_error=.25, auc=.675, rise=.15, relative=2.5, be=.75, rbe=1.25))
    for k,row in want.items(): assert {c: s[k][c] for c in row} == pytest.approx(row), k
    assert ('be' not in corruption_summary(ours)[0]
            and corruption_summary(ours)[0]['rise'] == pytest.approx(.1))
    itself = corruption_summary(ref, ref)[-1]
    assert itself['be'] == pytest.approx(1) and itself['rbe'] == pytest.approx(1)

def test_no_quotient_without_a_denominator():
    perfect = corruption_summary(rows(0, a=[.2,.2], b=[0,0]))
    assert [r['relative'] for r in perfect] == [None]*3
    assert [r['rise'] for r in perfect] == pytest.approx([.2, 0, .1])
    ours, ref = rows(.1, a=[.3,.3], b=[.2,.2]), rows(.2, a=[.3,.5], b=[.2,.19])
    # b: the reference gains
    assert [r['rbe'] for r in corruption_summary(ours, ref)] == pytest.approx([1, None, 1])
    assert [r['rbe'] for r in corruption_summary(rows(.1, b=[.2]), rows(.2, b=[.1]))] == [None, None]
    assert [r['be'] for r in corruption_summary(ours, rows(0, a=[.3,.3], b=[0,.01]))] == pytest.approx(
        [1, None, None])
    near = rows(.2, a=[.205,.205], b=[.3,.3])
    assert corruption_summary(ours, near)[0]['rbe'] is None
    assert corruption_summary(ours, near, least=.001)[0]['rbe'] == pytest.approx(40)

def test_an_auc_that_is_missing_stays_missing():
    r = rows(.1, a=[.3,.3], b=[.2,.2]); r[1]['auc'] = None
    assert [o['auc'] for o in corruption_summary(r)] == [None, pytest.approx(.7), None]

@pytest.mark.parametrize('args,field,found', [
    (([],), 'rows', []), ((rows(.1),), 'rows', ['clean']), ((rows(.1, a=[.2])[1:],), 'rows', ['a']),
    ((rows(.1, a=[.2])*2,), 'rows', None), ((rows(.1, a=[.2], b=[.2,.3]),), 'rows', None),
    ((rows(.1, a=[.2]), rows(.1, b=[.2])), 'reference rows', None),
    ((rows(.1, a=[.2]), rows(.1, n=8, a=[.2])), 'reference rows', None),
    ((rows(.1, a=[.2]), []), 'reference rows', []), ((rows(.1, a=[.2]), None, 0), 'least', 0)])
def test_bad_input_to_the_summary(args, field, found):
    with refused(field, found=found): corruption_summary(*args)

def test_pictures():
    axs = show_corruptions(images(), 'pneumoniamnist', ['jpeg_compression','shot_noise'], (0,3))
    assert axs.shape == (2,2)
    shown = [[torch.as_tensor(a.images[0].get_array()) for a in row] for row in axs]
    assert torch.equal(shown[0][0], images()[0,0])
    assert torch.equal(shown[1][1], corrupt(images(), 'shot_noise', 3, 'pneumoniamnist')[0,0])
    assert axs[1,0].texts[0].get_text() == 'shot noise' and axs[0,1].get_title() == '3'
    with refused('corruption', found='motion_blur'):
        show_corruptions(images(), 'pneumoniamnist', ['motion_blur'])

@pytest.mark.parametrize('dataset', ['breastmnist','pneumoniamnist'])
def test_real_images(dataset, medmnist_root):
    data = load_data(dataset, medmnist_root)
    x, y = data.test.batch(range(60))
    for name in families(dataset):
        moved = [rms(corrupt(x, name, s, dataset), x) for s in range(6)]
        assert all(a < b for a,b in zip(moved, moved[1:])) and moved[-1] < .45, (name, moved)
    found = corruption_summary(corruption_table(Bright(), x, y, data.task, dataset))
    assert len(found) == len(families(dataset))+1 and all(0 <= r['balanced_error'] <= 1 for r in found)
