"""Entropies against a float64 reference, on logits of every dtype and up to ±1e4, with their gradients."""
import math

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from refused import refused
from tsynd.core import MultiLabel, SingleLabel
from tsynd.targeting import entropy, expected_entropy, mutual_information, uncertainty

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PARTS = (entropy, expected_entropy, mutual_information)
shapes = st.tuples(st.integers(2, 12), st.integers(1, 3), st.integers(1, 8))
ONE, SEVERAL = SingleLabel(), MultiLabel()
tasks = pytest.mark.parametrize('task', [ONE, SEVERAL], ids=['classes','labels'])


def drawn(shape, scale, seed): return np.random.default_rng(seed).normal(0, 1, shape)*scale

@st.composite
def logits(draw):
    "Logits (T,B,C): normal at a random scale, or with every value up to ±1e4 that hypothesis can think of"
    shape = draw(shapes)
    x = draw(st.one_of(
        st.builds(drawn, st.just(shape), st.sampled_from([1e-3, .1, 1, 5, 30, 3000]), st.integers(0, 10**6)),
        hnp.arrays(np.float64, shape, elements=st.floats(-1e4, 1e4)),
        hnp.arrays(np.float64, shape, elements=st.sampled_from([-1e4, -88, 0, 1e-4, 17, 104, 1e4]))))
    return torch.from_numpy(x.clip(-1e4, 1e4)).to(draw(st.sampled_from(DTYPES)))

def plogp(p): return np.where(p > 0, p*np.log(np.where(p > 0, p, 1)), 0)

def reference(logits_T_B_C, task):
    "Total, aleatoric and epistemic in float64, from probabilities, as the textbook has them"
    x = logits_T_B_C.detach().double().numpy()
    if task.several:
        p = 1/(1+np.exp(-x.clip(-700, 700)))
        p = np.stack([p, 1/(1+np.exp(x.clip(-700, 700)))], -1)
    else:
        e = np.exp(x - x.max(-1, keepdims=True))
        p = (e/e.sum(-1, keepdims=True))[:,:,None]
    total, aleatoric = -plogp(p.mean(0)).sum((-1,-2)), -plogp(p).sum((-1,-2)).mean(0)
    return total, aleatoric, total-aleatoric


@tasks
@settings(max_examples=300)
@given(x=logits())
def test_bounds_hold_and_the_parts_add_up(task, x):
    T,B,C = x.shape
    u = uncertainty(x, task)
    top = C*math.log(2) if task.several else math.log(C)
    most = C*math.log(min(2, T)) if task.several else min(math.log(C), math.log(T))
    for part in u: assert part.shape == (B,) and part.dtype == torch.promote_types(x.dtype, torch.float32)
    assert (u.epistemic >= -1e-5).all() and (u.epistemic <= most+1e-5).all()
    assert ((u.total >= -1e-5).all() and (u.total <= top+1e-5).all() and (u.aleatoric >= -1e-5).all()
            and (u.aleatoric <= top+1e-5).all())
    torch.testing.assert_close(u.total, u.aleatoric+u.epistemic, atol=1e-5, rtol=1e-5)

@tasks
@settings(max_examples=300)
@given(x=logits())
def test_values_are_the_textbook_ones(task, x):
    for name,got,want in zip(('total','aleatoric','epistemic'), uncertainty(x, task), reference(x, task)):
        np.testing.assert_allclose(got.double().numpy(), want, atol=1e-5, rtol=1e-5, err_msg=name)

@tasks
@pytest.mark.parametrize('f', PARTS)
@settings(max_examples=150)
@given(x=logits())
def test_gradients_are_finite(f, task, x):
    x.requires_grad_()
    g, = torch.autograd.grad(f(x, task).sum(), x)
    assert torch.isfinite(g).all() and g.dtype == x.dtype and g.shape == x.shape

@tasks
@pytest.mark.parametrize('f', PARTS)
def test_gradients_are_finite_where_probabilities_vanish(f, task):
    "Probabilities below the smallest float32 and draws that contradict each other"
    for dtype in DTYPES:
        x = torch.tensor([[[1e4,-1e4,0]], [[-1e4,1e4,0]], [[0,0,-1e4]]], dtype=dtype, requires_grad=True)
        u = f(x, task)
        g, = torch.autograd.grad(u.sum(), x)
        assert torch.isfinite(u).all() and torch.isfinite(g).all()

@tasks
@settings(max_examples=50)
@given(shape=st.tuples(st.integers(2, 5), st.just(2), st.integers(2, 4)), seed=st.integers(0, 10**6),
       scale=st.sampled_from([.1, 1., 4.]))
def test_gradients_are_those_of_float64_differences(task, shape, seed, scale):
    x = torch.from_numpy(drawn(shape, scale, seed)).requires_grad_()
    for f in PARTS: assert torch.autograd.gradcheck(lambda x: f(x, task), x)

@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16), ids=str)
def test_arithmetic_is_float32_from_the_start(dtype):
    "In half precision, probabilities near one would round to one, and their entropy to zero"
    x = torch.tensor([[[9.,0.]], [[8.,0.]]], dtype=dtype)
    for f in PARTS:
        assert torch.equal(f(x), f(x.float())) and torch.equal(f(x, SEVERAL), f(x.float(), SEVERAL))
        assert f(x).item() > 0
    np.testing.assert_allclose(expected_entropy(x).numpy(), reference(x, ONE)[1], rtol=1e-5)

def test_small_disagreement_is_not_rounded_away():
    "MI as a mean KL keeps its sign where the difference of two entropies would be noise"
    x = torch.zeros(2, 1, 2); x[0,0,0] = 2e-3
    assert mutual_information(x).item() == pytest.approx(reference(x.double(), ONE)[2].item(), rel=.1)
    # p = .5 ± .00025, MI ≈ 2δ²
    assert mutual_information(x).item() == pytest.approx((2e-3)**2/32, rel=.1)

@settings(max_examples=50)
@given(x=logits(), seed=st.integers(0, 100))
def test_what_does_not_matter(x, seed):
    "The order of draws and classes, a constant on a draw's logits, draws twice, a class that gets nothing"
    x, g = x.double()/100, torch.Generator().manual_seed(seed)
    T,B,C = x.shape
    same = lambda a,b: torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    for f in PARTS:
        for m in (ONE, SEVERAL):
            same(f(x[torch.randperm(T, generator=g)][...,torch.randperm(C, generator=g)], m), f(x, m))
            same(f(torch.cat([x, x]), m), f(x, m))
            same(torch.cat([f(x[:,i:i+1], m) for i in range(B)]), f(x, m))
        same(f(x+torch.randn(T, B, 1, generator=g, dtype=x.dtype)), f(x))
        same(f(torch.cat([x, torch.full_like(x[...,:1], -1e4)], -1)), f(x))
        same(f(x, SEVERAL), sum(f(x[...,i:i+1], SEVERAL) for i in range(C)))

@given(T=st.integers(1, 9), C=st.integers(1, 9))
def test_extremes_are_reached(T, C):
    "T draws, each sure of another of C classes, or of the same one, or of none"
    sure = 1e4*torch.eye(C)[torch.arange(T)%C][:,None]
    counts = np.bincount(np.arange(T)%C)/T
    assert entropy(sure).item() == pytest.approx(-plogp(counts).sum(), abs=1e-5)
    assert expected_entropy(sure).item() == pytest.approx(0, abs=1e-6)
    flat = torch.zeros(T, 1, C)
    assert expected_entropy(flat).item() == pytest.approx(math.log(C), abs=1e-5)
    assert expected_entropy(flat, SEVERAL).item() == pytest.approx(C*math.log(2), abs=1e-5)
    if T > 1: assert mutual_information(sure).item() == pytest.approx(-plogp(counts).sum(), abs=1e-5)
    if T > 1: assert mutual_information(flat).item() == mutual_information(flat, SEVERAL).item() == 0

def test_one_draw_has_entropies_but_no_information():
    x = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(entropy(x), expected_entropy(x))
    for m in (ONE, SEVERAL):
        for f in (mutual_information, uncertainty):
            with refused('T', found=1): f(x, m)

@pytest.mark.parametrize('f', PARTS)
@pytest.mark.parametrize('x,found', [(torch.zeros(2, 3), (2, 3)), (torch.zeros(2, 3, 4, 5), (2, 3, 4, 5)),
                                     (torch.zeros(2, 3, 4).long(), torch.int64)], ids=['2d', '4d', 'int'])
def test_other_shapes_and_types_are_refused(f, x, found):
    with refused('logits', found=found): f(x)
