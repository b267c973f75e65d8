"""Encoders and distances of the audit, against theory and other libraries."""
import math
from dataclasses import replace

import numpy as np
import pytest, torch
from hypothesis import given, strategies as st
from sklearn.neighbors import NearestNeighbors

from refused import refused
from tsynd.audit import (Encoder, FLIPS, FLIPS_AND_SHIFTS, make_encoders, moved, near_duplicates, nearest,
                         nearest_image, nearest_move, Pixels, RandomFilters, timm_encoder)
from tsynd.core import InputError
from tsynd.data import clear_phantom, find_duplicates, Split

def _middle(s): return replace(s, x=s.x[:,:,4:24,4:24].contiguous())   # 20 pixels, which takes half as long

_whole = clear_phantom(n_train=80, n_val=60, n_test=80)
DATA = replace(_whole, train=_middle(_whole.train), val=_middle(_whole.val), test=_middle(_whole.test))


def draw(n, d, seed=0): return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    "A cache folder for encoders that are trained"
    folder = tmp_path_factory.mktemp('cache')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('TSYND_CACHE', str(folder))
        yield folder/'encoders'

@pytest.fixture(scope='module')
def trained(cache): return make_encoders(DATA.val, steps=60)

@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs): raise RuntimeError('this trains again')
    for name in ('train_autoencoder', 'train_classifier'):
        monkeypatch.setattr(f'tsynd.audit.encoders.{name}', refuse)


@given(st.integers(1, 40), st.integers(4, 40), st.integers(1, 9), st.integers(1, 4),
       st.sampled_from([1e-3, 1, 1e4]), st.sampled_from([0, 30.]),
       st.sampled_from([torch.float32, torch.float64]))
def test_distances_are_those_of_others(n, m, d, k, scale, away, dtype):
    a, b = ((draw(i, d, i)*scale+away).to(dtype) for i in (n, m))
    got, where = nearest(a, b, k)
    theirs = NearestNeighbors(n_neighbors=k, algorithm='brute').fit(b.double().numpy())
    assert np.allclose(got, theirs.kneighbors(a.double().numpy())[0], rtol=1e-6, atol=1e-9)
    own = (a.double()[:,None]-b.double()[where]).norm(dim=2)
    assert torch.allclose(own, got) and (got.diff(dim=1) >= 0).all()
    every = torch.cdist(a.double(), b.double(), compute_mode='donot_use_mm_for_euclid_dist')
    assert torch.allclose(got, every.sort(1).values[:,:k], rtol=1e-6, atol=1e-9)


def test_equal_rows_are_exactly_nothing_apart():
    b = draw(500, 200)*3+1000
    distance, where = nearest(b[::7], b)
    assert distance.eq(0).all() and torch.equal(where[:,0], torch.arange(0, 500, 7))
    close = torch.cat([b[:1].double()*(1+1e-12), b[:1].double()])      # one that is nearly equal, and first
    assert nearest(b[:1].double(), close)[1].item() == 1


def test_a_row_does_not_find_itself():
    a = draw(50, 3)
    distance, where = nearest(a, a, k=2, same=True)
    full = torch.cdist(a.double(), a.double()).fill_diagonal_(math.inf)
    assert torch.allclose(distance, full.sort(1).values[:,:2]) and (where != torch.arange(50)[:,None]).all()
    twins = torch.cat([a, a])
    distance, where = nearest(twins, twins, same=True)
    assert distance.eq(0).all() and torch.equal(where[:,0], torch.arange(100).roll(50))


def test_neither_order_nor_blocks_matter(monkeypatch):
    a, b, order = draw(70, 5), draw(90, 5, 1), torch.randperm(90, generator=torch.Generator().manual_seed(2))
    distance, where = nearest(a, b, 3)
    again, moved_to = nearest(a.flip(0), b[order], 3)
    assert torch.allclose(again.flip(0), distance, rtol=1e-12) and torch.equal(order[moved_to].flip(0), where)
    alone = nearest(b, b, 3, same=True)
    monkeypatch.setattr('tsynd.audit.distances._ENTRIES', 90*8)
    for got, whole in ((nearest(a, b, 3), (distance, where)), (nearest(b, b, 3, same=True), alone)):
        assert torch.allclose(got[0], whole[0], rtol=1e-12) and torch.equal(got[1], whole[1])


def test_features_that_make_no_sense_are_refused():
    a = draw(5, 3)
    with refused('features', 'columns'): nearest(a, draw(5, 4))
    with refused('features', 'expected a tensor'): nearest(a.long(), a)
    gap = torch.where(torch.arange(5)[:,None] == 2, torch.nan, a)
    with refused('other features', '1 rows'): nearest(a, gap)
    with refused('other features', 'at least 6', found=5): nearest(a, a, 6)
    with refused('other features', 'at least 6', found=5): nearest(a, a, 5, same=True)
    with refused('same'): nearest(a, a[:4], same=True)
    with refused('k'): nearest(a, a, 0)
    with refused('moves'): nearest_move(DATA.val.x, DATA.val.x, Pixels(), moves=())
    assert nearest(a[:0], a)[0].shape == (0, 1)


@given(st.sampled_from(FLIPS_AND_SHIFTS), st.integers(5, 9), st.integers(5, 9))
def test_a_move_flips_and_then_shifts(move, h, w):
    x = torch.randint(0, 256, (2, 3, h, w), generator=torch.Generator().manual_seed(h)).byte()
    up, mirror, down, right = move
    flipped = x.flip([i for i, f in ((2, up), (3, mirror)) if f])
    got = moved(x, move)
    inside = lambda t: t[:,:,2:-2,2:-2]
    assert torch.equal(inside(got), inside(flipped.roll((down, right), (2, 3))))
    padded = torch.nn.functional.pad(flipped.float(), (2,)*4, mode='replicate').byte()
    assert torch.equal(got, padded[:,:,2-down:2-down+h,2-right:2-right+w])


def test_moved_copies_are_found(trained):
    x = DATA.train.x[:8]
    for e in trained:
        for m in FLIPS:
            distance, where, which = nearest_move(moved(x, m), DATA.train.x, e, FLIPS)
            assert distance.max() < 1e-3*math.sqrt(e(x).shape[1]), e
            assert torch.equal(where, torch.arange(8)) and {FLIPS[k] for k in which} == {m}
    pixels = trained[0]
    for m in ((False,False,2,-1), (True,True,-1,-2)):
        distance, where = nearest_image(moved(x, m), DATA.train.x, pixels)
        assert torch.equal(where, torch.arange(8))
        assert distance.mean() < .5*nearest(pixels(moved(x, m)), pixels(DATA.train.x))[0].mean()
    others = nearest_image(DATA.test.x[:8], DATA.train.x, pixels, FLIPS)[0]
    assert (others <= nearest(pixels(DATA.test.x[:8]), pixels(DATA.train.x))[0][:,0]).all()


def test_random_filters_notice_a_shift_less_than_pixels_do():
    pixels, random = make_encoders(DATA.val, quick=True)
    x = DATA.train.x
    def nearer(e): # is a copy that was shifted still nearer than any other image?
        return ((e(moved(x, (False,False,2,-1)))-e(x)).norm(dim=1)
                < nearest(e(x), e(x), same=True)[0][:,0]).double().mean()
    assert nearer(random) > nearer(pixels)+.2


def test_random_filters_are_the_same_everywhere():
    w = [RandomFilters(3, seed=5).w2_1, RandomFilters(3, seed=5).w2_1, RandomFilters(3, seed=6).w2_1]
    assert torch.equal(w[0], w[1]) and not torch.equal(w[0], w[2])
    g = torch.Generator().manual_seed(0)
    bits = 2*torch.rand(24, 1, 3, 3, generator=g)-1
    assert torch.allclose(bits[0,0,0], torch.tensor([-.0074868, .5364436, -.8230451]), atol=1e-6)
    assert torch.allclose(RandomFilters().w1_0, torch.nn.functional.normalize(bits.flatten(1)).view_as(bits))
    a, b = (make_encoders(DATA.val, quick=True, seed=3)[1](DATA.test.x) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float32


def test_features_are_standardised_and_blocks_do_not_matter(trained, monkeypatch):
    for e in trained:
        f = e(DATA.val.x)
        assert f.mean(0).abs().max() < 1e-3 and f.std(0, correction=0).max() < 1+1e-3, e
        assert f.std(0, correction=0).median() > .5, e
        if 'pixels' in e.name: assert (torch.pdist(f).square().mean()/f.shape[1]).item() == pytest.approx(
            2*60/59*f.var(0, correction=0).mean().item(), rel=1e-3)
        one_by_one = torch.cat([e(DATA.test.x[k:k+1]) for k in range(6)])
        assert torch.allclose(one_by_one, e(DATA.test.x)[:6], atol=1e-3), e
        assert e(DATA.test.x[:0]).shape == (0, f.shape[1]) and not e.network.training
    flat = torch.full((4, 1, 12, 12), 7).byte()
    for e in make_encoders(flat, quick=True): assert e(flat).abs().max() < 1e-4


def test_a_second_audit_does_not_train(trained, cache, no_training):
    for a, b in zip(trained, make_encoders(DATA.val, steps=60)):
        assert torch.equal(a(DATA.test.x), b(DATA.test.x))
    assert sorted(f.suffix for f in cache.iterdir()) == sorted(2*['.json', '.lock', '.safetensors'])
    other = replace(DATA.val, x=DATA.val.x.clone())
    other.x[3,0,5,5] ^= 1
    for changed in (dict(real=other), dict(real=DATA.val, seed=1), dict(real=DATA.val, steps=61)):
        with pytest.raises(RuntimeError, match='trains again'): make_encoders(**dict(steps=60) | changed)
    relabelled = replace(DATA.val, y=1-DATA.val.y)
    relabelled.y[0] = DATA.val.y[0]
    with pytest.raises(RuntimeError, match='trains again'): make_encoders(relabelled, steps=60)


def test_a_damaged_file_is_made_again(cache, trained, monkeypatch):
    real = DATA.val.x[:20]
    first = make_encoders(real, steps=1)[2](real)
    newest = max(cache.glob('*.safetensors'), key=lambda f: f.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-50])
    assert torch.equal(make_encoders(real, steps=1)[2](real), first)


def test_a_classifier_knows_the_labels_better_than_pixels_do(trained):
    def share(e):
        where = nearest(e(DATA.test.x), e(DATA.test.x), same=True)[1][:,0]
        return (DATA.test.y[where] == DATA.test.y).double().mean()
    assert share(trained[3]) > share(trained[0])+.1


def test_a_classifier_that_saw_the_hold_out_images_is_no_judge_of_copies(trained):
    "New real images seem nearer to the training images; an encoder that nothing trained stays near one half"
    def nearer(e):
        new, train, held = (e(x) for x in (DATA.test.x, DATA.train.x[:60], DATA.val.x))
        return (nearest(new, train)[0] < nearest(new, held)[0]).double().mean()
    assert nearer(trained[3]) > .6 > nearer(trained[0])


def test_labels_are_optional(trained, cache):
    names = [e.name for e in trained]
    assert names == ['pixels', 'random', 'autoencoder (hold-out)', 'classifier (hold-out)']
    assert [e.trained_on for e in trained] == ['nothing', 'nothing', 'hold-out', 'hold-out']
    small = DATA.val.select(slice(12))
    for s in (small.x, replace(small, y=None), replace(small, y=torch.zeros(12).long())):
        assert len(make_encoders(s, steps=1, trained_on='training')) == 3
    two = torch.tensor([[0., 1., 1.]]*6 + [[1., 1., 0.]]*6)
    made = make_encoders(replace(small, y=two), steps=1, trained_on='training')
    assert made[3].name == 'classifier (training)' and made[3](small.x).shape == (12, 96)
    apart = replace(small, y=small.y*5+2)               # class numbers with gaps
    assert len(make_encoders(apart, steps=1)) == 4


def test_large_and_odd_images_fit(cache):
    x = torch.randint(0, 256, (6, 3, 90, 50), generator=torch.Generator().manual_seed(0)).byte()
    made = make_encoders(x, steps=1)
    assert [e(x[:2]).shape[1] for e in made] == [3*196, 288, 4*8*5]
    odd = make_encoders(x[...,:3,:4], quick=True)
    assert all(e(x[:1,:,:3,:4]).isfinite().all() for e in odd)
    with refused('images', 'one size'): made[0](x[:,:1])


def test_images_go_through_in_blocks():
    seen = []
    class Means(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.mean((2,3))
    x = torch.randint(0, 256, (1000, 1, 32, 64), generator=torch.Generator().manual_seed(0)).byte()
    for side, most in ((1, 128), (128, 16)):
        seen.clear()
        e = Encoder('means', Means(), x, side=side)
        assert max(seen) == most and sum(seen) == 1000
        means = x.double().mean((2,3))/255
        assert torch.allclose(e(x).double(), (means-means.mean(0))/means.std(0, correction=0), atol=1e-3)


def test_images_that_make_no_sense_are_refused():
    with refused('real images', 'at least 2', found=1): make_encoders(DATA.val.x[:1])
    with refused('real images', 'uint8'): make_encoders(DATA.val.x/255)
    with refused('real images'): make_encoders(Split(DATA.val.x[:0], None, torch.zeros(0).long()))
    with refused('trained_on'): make_encoders(DATA.val, trained_on='test')
    with refused('trained_on'): Encoder('mine', Pixels(), DATA.val.x, 'test')
    with refused('seed'): make_encoders(DATA.val, seed=-1)
    with pytest.raises(InputError): timm_encoder('small_net', DATA.val.x)


def test_near_duplicates_are_those_of_the_data_chapter():
    data = clear_phantom(n_train=40, n_val=10, n_test=20)
    brighter = (data.train.x[5:7].float()*.7+40).byte()
    test = replace(data.test, x=torch.cat([data.train.x[3:4], brighter, data.test.x[3:]]))
    there = find_duplicates(replace(data, test=test))
    here = near_duplicates(data.train.x, test.x)
    between = there[(there.part == 'train') & (there.other_part == 'test')]
    pairs = [{*zip(t.image, t.other_image)} for t in (between, here)]
    assert pairs == 2*[{(3,0), (5,1), (6,2)}]
    assert here.likeness.to_numpy() == pytest.approx(between.likeness.to_numpy(), abs=1e-5)
    assert here['equal'].tolist() == [True, False, False]


def test_near_duplicates_inside_one_set():
    x = torch.cat([DATA.train.x[:10], DATA.train.x[2:3], DATA.train.x[2:3]])
    found = near_duplicates(x)
    assert found['equal'].all() and {*found.image, *found.other_image} == {2, 10, 11}
    assert len(found) == 2 and (found.image < found.other_image).all()
    flat = torch.arange(3).byte()[:,None,None,None].expand(3, 1, 12, 12)
    assert len(near_duplicates(flat)) == 0              # three shades of grey have no edges
    twice = near_duplicates(torch.cat([flat, flat[1:2]]))
    assert twice[['image','other_image']].to_numpy().tolist() == [[1,3]]
    assert len(near_duplicates(x[:1])) == len(near_duplicates(x[:0], x)) == 0
    with refused('images'): near_duplicates(x, x[...,:12])
