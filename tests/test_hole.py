"""What measures the hole: distances by hand, known factors in and out, ways that end where geometry says."""
import importlib.util, math
from pathlib import Path

import pandas as pd, pytest, torch

from tsynd.models import Autoencoder
from tsynd.data import FACTORS, phantom, phantom_labels, to_float
from tsynd.targeting import Synthesizer, Synthetic

HERE = Path(__file__).resolve().parents[1]/'nbs'/'measurements'
SEEN = 5


@pytest.fixture
def hole(monkeypatch):
    "The script, with two holes of our own: a slab, and a corner"
    spec = importlib.util.spec_from_file_location('hole', HERE/'hole.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'REGIONS',
                        {'slab': {'spiculation': (.2,.6)},
                         'corner': {'spiculation': (0.,.4), 'shadow': (.5,1.)}})
    return module

def factors(*rows):
    "Factors with spiculation and shadow as given, everything else .5"
    f = torch.full((len(rows), 8), .5)
    f[:,1],f[:,3] = torch.tensor([a for a,_ in rows]),torch.tensor([b for _,b in rows])
    return f

class Oracle(torch.nn.Module):
    "A judge that is always right: its images are the factors themselves"
    def __init__(self): super().__init__(); self.device = torch.nn.Parameter(torch.zeros(()))
    def forward(self, x): return x[:,0,0,:SEEN]

class Plain(torch.nn.Module):
    "An autoencoder whose latents are the images"
    def __init__(self): super().__init__(); self.register_buffer('sigma', torch.tensor(.5))
    def encode(self, x): return x
    def decode(self, z): return z


# Geometry

def test_distances_by_hand(hole):
    f = factors((.1,.5), (.4,.5), (.9,0), (.4,.2), (.7,.1), (0,1), (.4,.5))
    assert torch.allclose(hole.distance(f, 'slab'), torch.tensor([.1,0,.3,0,.1,.2,0]), atol=1e-6)
    assert torch.allclose(hole.distance(f, 'corner'), torch.tensor([0,0,math.hypot(.5,.5),.3,.5,0,0]),
                          atol=1e-6)
    # what a judge reads is enough
    assert torch.equal(hole.distance(f[:,:SEEN], 'corner'), hole.distance(f, 'corner'))

@pytest.mark.parametrize('name', ['slab', 'corner'])
def test_inside_and_only_there_the_distance_is_nothing(hole, name):
    f = torch.rand(2000, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hole.distance(f, name) == 0, hole.inside(f, name))
    assert 0 < hole.inside(f, name).float().mean() < 1

def test_the_nearest_point_is_as_deep_inside_as_asked(hole):
    f = factors((.9,.1), (.1,.9), (.3,.8), (.39,.51))
    near = hole.nearest(f, 'corner', 0)
    assert torch.allclose(near, factors((.4,.5), (.1,.9), (.3,.8), (.39,.51)))
    assert torch.allclose((near-f).norm(dim=1), hole.distance(f, 'corner'), atol=1e-6)
    # .04 and .05 from its two borders; 0 and 1 are no borders
    deep = hole.nearest(f, 'corner', .1)
    assert torch.allclose(deep, factors((.36,.55), (.1,.9), (.3,.8), (.36,.55)), atol=1e-6)
    others = [i for i,k in enumerate(FACTORS) if k not in ('spiculation','shadow')]
    assert torch.equal(deep[:,others], f[:,others]) and hole.inside(deep, 'corner').all()
    # and the sources are what they were
    assert torch.equal(f, factors((.9,.1), (.1,.9), (.3,.8), (.39,.51)))

def test_towards_stops_at_the_radius_and_at_the_target(hole):
    z0,target = torch.zeros(3,1,1,2),torch.tensor([[3.,4.],[.3,.4],[0,0]]).view(3,1,1,2)
    z = hole.towards(z0, target, 1.)
    assert torch.allclose(z.flatten(1), torch.tensor([[.6,.8],[.3,.4],[0,0]]), atol=1e-6)


# Images of a region

@pytest.mark.parametrize('want', [True, False])
def test_drawn_factors_lie_where_they_should(hole, want):
    f = hole.draw(300, 3, 'corner', want)
    assert len(f) == 300 and (hole.inside(f, 'corner') == want).all()
    assert torch.equal(f, hole.draw(300, 3, 'corner', want))
    assert not torch.equal(f, hole.draw(300, 4, 'corner', want))

def test_the_two_holes_leave_training_and_keep_the_rule():
    for seed in range(3):
        for holes in ({'slab': {'spiculation': (.2,.75)}},
                      {'edge': {'spiculation': (0.,.35), 'shadow': (.55,1.)}}):
            s = phantom(40, 10, 10, seed=seed, size=12, holes=holes).train
            region, = holes.values()
            v = {k: s.factors[:,FACTORS.index(k)] for k in region}
            there = torch.stack([(v[k] >= lo) & (v[k] <= hi) for k,(lo,hi) in region.items()]).all(0)
            assert not there.any() and torch.equal(s.y, phantom_labels(s.factors))

def test_the_oracle_has_as_many_images_a_quarter_of_them_from_the_hole(hole):
    data = phantom(40, 10, 10, holes={'corner': hole.REGIONS['corner']})
    full = hole.with_hole_images(data, 'corner', 0).train
    there = hole.inside(full.factors, 'corner')
    assert len(full) == 40 and there.tolist() == [False]*30 + [True]*10
    assert torch.equal(full.x[:30], data.train.x[:30]) and torch.equal(full.y, phantom_labels(full.factors))

def test_a_target_is_the_same_lesion_in_the_same_speckle(hole):
    data = phantom(20, 10, 10, seed=2, holes={'corner': hole.REGIONS['corner']})
    assert torch.equal(hole.render(data.train.factors, 3*2), data.train.x)


# Where synthetic images lie, by a judge that knows the factors

def synthetic(before, after):
    z0,z = (f.view(-1,1,1,8) for f in (before, after))
    return Synthetic(z, phantom_labels(before), z0, z0, z, torch.zeros(1, len(z)), index=torch.arange(len(z)),
                     distance_latent=(z-z0).flatten(1).norm(dim=1)/(.5*8**.5))

def test_share_distance_and_direction_with_known_factors(hole):
    before = factors((.8,.75), (.8,.75), (.2,.25), (.2,.75))
    after = factors((.35,.75), (.9,.75), (.2,.25), (.3,.9))
    target = factors((.4,.75), (.4,.75), (.2,.5), (.2,.75)).view(-1,1,1,8)
    t = hole.place(Oracle(), Plain(), synthetic(before, after), target, 'corner')
    assert t.share_before.tolist() == [0,0,0,1] and t.share.tolist() == [1,0,0,1]
    assert torch.allclose(torch.tensor(t.distance_before.to_numpy()), torch.tensor([.4,.4,.25,0]), atol=1e-6)
    assert torch.allclose(torch.tensor(t.distance_after.to_numpy()), torch.tensor([0,.5,.25,0]), atol=1e-6)
    unit = hole.RADIUS*.5*8**.5
    assert t.radii_before.tolist() == pytest.approx([.4/unit, .4/unit, .25/unit, 0], abs=1e-5)
    assert t.radii_after.tolist()[:2] == pytest.approx([.05/unit, .5/unit], abs=1e-5)
    # one towards, one away, one still
    assert t.cosine.tolist()[:2] == pytest.approx([1,-1], abs=1e-5) and math.isnan(t.cosine[2])
    # (.8,.75) is malignant and (.35,.75) is .21+.30 = .51, malignant as well;
    # (.2,.75) is benign, and (.3,.9) is malignant with .18+.36 = .54
    assert t.true_label.dropna().tolist() == [1,0]
    assert set(hole.PLACED) <= set(t.columns)

def test_aimed_images_go_straight_and_no_farther_than_the_radius(hole):
    ae = Autoencoder(width=8).eval()
    x = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): z0,target = ae.encode(x),ae.encode(1-x)
    syn = Synthetic(x, torch.zeros(6).long(), x, z0, z0, torch.zeros(1, 6), distance_latent=torch.zeros(6))
    engine = Synthesizer(ae, 'reconstruction', radius=.3)
    out = hole.aim(engine, syn, target)
    assert (out.distance_latent <= .3+1e-5).all()
    assert (torch.cosine_similarity((out.z-z0).flatten(1), (target-z0).flatten(1)) > .999).all()
    with torch.no_grad(): assert torch.allclose(out.x, ae.decode(out.z))
    # a target within reach is reached
    assert torch.allclose(hole.aim(engine, syn, z0+1e-3).z, z0+1e-3, atol=1e-6)


# The judge

def test_errors_of_a_judge_that_is_always_right_are_nothing_and_of_one_that_guesses_are_not(
        hole, monkeypatch):
    monkeypatch.setattr(hole, 'render', lambda f, seed: f.view(-1,1,1,8))
    monkeypatch.setattr(hole, 'redraw', lambda ae, x: x)
    right = pd.DataFrame(hole.judge_rows(Oracle(), None, 'corner', 0)).set_index(['where','images'])
    assert right.filter(regex='error|bias').abs().to_numpy().max() < 1e-6
    assert right.judged_inside['in the hole'].tolist() == [1,1]
    assert right.judged_inside['outside'].tolist() == [0,0]
    class Middle(Oracle):
        def forward(self, x): return torch.full((len(x), SEEN), .5)
    guess = pd.DataFrame(hole.judge_rows(Middle(), None, 'corner', 0)).set_index(['where','images'])
    # mean of |u-1/2|
    assert (guess.judged_inside == 0).all() and (guess['error size'] - .25).abs().max() < .02
    # .5 less the hole's mean of .2
    assert guess['bias spiculation']['in the hole'].min() > .25

def test_a_judge_learns_to_read_factors(hole):
    "Short training: better than always saying the middle, on renders it has not seen"
    judge = hole.train_judge([Autoencoder(width=8).eval()], 0, n=400, steps=80, bs=32)
    f = hole.draw(200, 99)
    found = hole.judged(judge, to_float(hole.render(f, 1)))
    assert found.shape == (200, SEEN) and 0 <= found.min() and found.max() <= 1
    # size and shadow are the easy ones
    assert (found-f[:,:SEEN]).abs().mean(0)[[0,3]].max() < .22


def test_the_second_judge_finds_factors_by_fitting_the_renderer(hole):
    "Speckled lesions; the start is wrong in spiculation and shadow by a fifth: most of the way is found"
    f = hole.draw(40, 98)*.6+.2; f[:,4] = .1
    start = f.clone(); start[:,[1,3]] += .2
    found,left = hole.fitted(to_float(hole.render(f, 2)), start)
    assert (found-f)[:,[1,3]].abs().mean(0).max() < .08 and left.max() < .06
    assert ((found[:,[0,1,2,3,5,6,7]] >= 0) & (found[:,[0,1,2,3,5,6,7]] <= 1)).all()


# The files

def test_rows_are_appended_in_the_columns_there_are(hole, tmp_path, monkeypatch):
    monkeypatch.setattr(hole, 'HERE', tmp_path)
    assert hole.finished('a.csv', 'seed', 'arm') == set()
    hole.append('a.csv', [dict(seed=0, arm='mi', x=1/3)])
    hole.append('a.csv', [dict(arm='random', seed=1)])
    assert hole.finished('a.csv', 'seed', 'arm') == {(0,'mi'), (1,'random')}
    assert list(pd.read_csv(tmp_path/'a.csv').columns) == ['seed','arm','x']
    assert pd.read_csv(tmp_path/'a.csv').x[0] == .3333
