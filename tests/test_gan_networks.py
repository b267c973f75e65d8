"""The networks and losses of conditional GANs, against what theory says of them."""
import math

import pytest, torch, torch.nn.functional as F
from refused import refused

from tsynd.core import seeded
from tsynd.generation import (
    diff_augment, GANDiscriminator, GANGenerator, gradient_penalty, hinge_d, hinge_g, label_loss,
    minibatch_deviation, pixel_norm, wasserstein_d, wasserstein_g)

close = torch.testing.assert_close
everywhere = pytest.mark.parametrize('shape', [(4, 7, 7), (1, 12, 12), (2, 9, 5), (3, 16, 16)], ids=str)

def gen(seed=0): return torch.Generator().manual_seed(seed)
def normal(*shape, seed=0): return torch.randn(*shape, generator=gen(seed))
def several(n, seed=0): return torch.randint(2, (n, 3), generator=gen(seed)).float()

def made(kind, shape, seed=0, width=4, **how):
    with seeded(seed): return kind(shape, 3, width=width, **how)


# Shapes

@everywhere
@pytest.mark.parametrize('how', [{}, dict(conditioning='input', growing=True)], ids=str)
def test_a_generator_makes_what_was_asked_for(shape, how):
    G = made(GANGenerator, shape, noise=8, **how)
    z, y = normal(5, 8), several(5)
    x = G(z, y)
    assert x.shape == (5, *shape) and x.dtype == torch.float32
    close(G(z[:1], y[:1]), x[:1])                               # an image does not depend on its neighbours
    x.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in G.named_parameters() if 'to_image.' not in n)
    again = GANGenerator(**G.config)
    again.load_state_dict(G.state_dict())
    close(again(z, y), x)

@everywhere
@pytest.mark.parametrize('how', [{}, dict(head='classifier', spectral=False, growing=True)], ids=str)
@pytest.mark.parametrize('n', [1, 3, 6])
def test_a_discriminator_judges_any_number_of_images(shape, how, n):
    D = made(GANDiscriminator, shape, **how)
    x = normal(n, *shape).requires_grad_()
    scores, told = D(x, several(n))
    assert scores.shape == (n,) and (told is None if not how else told.shape == (n, 3))
    scores.sum().backward()
    assert x.grad.isfinite().all() and (x.grad.flatten(1).abs().sum(1) > 0).all()

@pytest.mark.parametrize('side, first, levels', [
    (7, 7, 1), (8, 4, 2), (16, 4, 3), (28, 7, 3), (32, 4, 4), (64, 4, 5), (128, 4, 6), (224, 7, 6)])
def test_levels_begin_at_the_smallest_grid(side, first, levels):
    G, D = made(GANGenerator, (1, side, side), width=8), made(GANDiscriminator, (1, side, side), width=8)
    with torch.no_grad(): x = G(normal(1, 64), several(1))
    assert x.shape == (1, 1, side, side) and D(x, several(1))[0].isfinite().all()
    assert G.grids == D.grids and G.grids[0] == (first, first)
    assert len(G.grids) == G.n_levels == D.n_levels == levels and G.level == levels-1

def test_networks_have_the_size_that_two_cores_can_train():
    size = lambda kind, shape: sum(p.numel() for p in kind(shape, 2).parameters())
    assert all(2.5e5 < size(kind, (4, 7, 7)) < 4e5 for kind in (GANGenerator, GANDiscriminator))
    assert all(5e5 < size(kind, (1, 28, 28)) < 7.5e5 for kind in (GANGenerator, GANDiscriminator))

def test_what_a_network_cannot_be_is_refused():
    shape = (1, 8, 8)
    with refused('conditioning', 'norm', 'input', found='y'): made(GANGenerator, shape, conditioning='y')
    with refused('head', 'projection', 'classifier', found='both'): made(GANDiscriminator, shape, head='both')
    with refused('width', found=0): made(GANGenerator, shape, width=0)
    with refused('noise', found=-1): made(GANGenerator, shape, noise=-1)


# Norms

def test_pixel_norm_leaves_directions():
    x = normal(2, 16, 3, 3)*torch.tensor([.01, 1, 100])
    close(pixel_norm(x).square().mean(1).sqrt(), torch.ones(2, 3, 3), atol=1e-3, rtol=0)
    close(F.cosine_similarity(x, pixel_norm(x)), torch.ones(2, 3, 3))
    assert pixel_norm(torch.zeros(1, 4, 2, 2)).eq(0).all()

def test_the_conditional_norm_tells_every_layer_the_labels():
    "Even where the first layer is deaf; the plain norm then says nothing of labels"
    for conditioning, told in (('norm', True), ('input', False)):
        G = made(GANGenerator, (1, 8, 8), conditioning=conditioning)
        with torch.no_grad(): G.start.weight[:, -3:] = 0
        z, y = normal(4, 64), several(4)
        assert torch.equal(G(z, y), G(z, 1-y)) != told

@pytest.mark.parametrize('head', ['projection', 'classifier'])
def test_spectral_norm_holds_while_the_network_learns(head):
    D = made(GANDiscriminator, (1, 8, 8), head=head)
    plain = made(GANDiscriminator, (1, 8, 8), head=head, spectral=False)
    for net in (D, plain):
        weights = [p for n, p in net.named_parameters() if head == 'projection' or not n.startswith('labels')]
        for _ in range(20):
            down = torch.autograd.grad(net(normal(4, 1, 8, 8), several(4))[0].mean(), weights)
            with torch.no_grad():
                for p, d in zip(weights, down): p -= .003*d.sign()
        with torch.no_grad():                               # each pass improves the estimate, too
            for _ in range(20): net(normal(4, 1, 8, 8), several(4))
    steepest = lambda net: max(torch.linalg.matrix_norm(m.weight.detach().flatten(1), 2).item()
                               for n, m in net.named_modules()
                               if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
                               and not (n == 'labels' and head == 'classifier'))
    assert .98 < steepest(D) < 1.02 and steepest(plain) > 1.5

def test_minibatch_deviation_grows_with_variety():
    x = normal(8, 3, 4, 4)
    assert minibatch_deviation(x[:1].expand(8, -1, -1, -1)).eq(0).all()
    for n in (1, 2, 3, 4, 5, 6, 7, 9):
        assert minibatch_deviation(normal(n, 3, 4, 4)).shape == (n,)
    assert minibatch_deviation(x[:1]).eq(0)
    little, much = (minibatch_deviation(x[:1]+s*x) for s in (.1, .2))
    close(much, 2*little, rtol=1e-3, atol=1e-5)
    mixed = minibatch_deviation(torch.cat([x[:1].expand(4, -1, -1, -1), x[4:]]))
    assert mixed[:4].eq(0).all() and (mixed[4:] == mixed[4]).all() and mixed[4] > .5
    close(mixed[4], x[4:].var(0, correction=0).sqrt().mean(), rtol=1e-3, atol=1e-4)
    same = torch.ones(4, 3, 4, 4, requires_grad=True)
    minibatch_deviation(same).sum().backward()
    assert same.grad.isfinite().all()


# Heads and growth

def test_the_projection_is_linear_in_the_labels():
    D = made(GANDiscriminator, (4, 7, 7)).eval()
    x, a, b = normal(4, 4, 7, 7), several(4), several(4, 1)
    score = lambda y: D(x, y)[0]
    zero = score(torch.zeros(4, 3))
    f = D.features(D.together(torch.cat([h := D._enter(x, 0), minibatch_deviation(h)[:, None, None, None]
                                         .expand(-1, 1, 7, 7)], 1)))
    close(zero, D.score(f)[:, 0])
    close(score(2*a-b)-zero, 2*(score(a)-zero)-(score(b)-zero))
    assert (score(a)-score(b))[(a != b).any(1)].abs().min() > 1e-5

def test_a_classifier_scores_without_labels():
    D = made(GANDiscriminator, (4, 7, 7), head='classifier').eval()
    x = normal(4, 4, 7, 7)
    for one, other in zip(D(x, several(4)), D(x, several(4, 1))): close(one, other)

def test_a_level_fades_in():
    G = made(GANGenerator, (1, 16, 16), growing=True)
    z, y = normal(3, 64), several(3)
    def at(level): G.level = level; return G(z, y)
    images = [at(k) for k in range(3)]
    for k, x in enumerate(images):
        side = 2**(2-k)
        close(x, F.interpolate(x[..., ::side, ::side], scale_factor=side))
        assert k == 0 or not torch.equal(x[..., ::2*side, ::2*side], x[..., side::2*side, side::2*side])
    for k in range(2):
        close(at(k+.5), (images[k]+images[k+1])/2)
        close(at(k+.25), .75*images[k]+.25*images[k+1])
    close(at(99.), images[2])

def test_a_discriminator_that_has_not_grown_sees_no_details():
    D = made(GANDiscriminator, (1, 16, 16), growing=True).eval()
    x, y = normal(4, 1, 16, 16), several(4)
    coarse = lambda side: F.interpolate(F.avg_pool2d(x, side), scale_factor=side)
    def at(level, x=x): D.level = level; return D(x, y)[0]
    for k in range(2):
        close(at(k), at(k, coarse(2**(2-k))))
        close(at(k+1e-5), at(k), atol=1e-4, rtol=0)
        close(at(k+1-1e-5), at(k+1), atol=1e-4, rtol=0)
        assert (at(k+.5)-at(k+.5, coarse(2**(2-k)))).abs().max() > 1e-4


# Losses

def test_losses_at_known_values():
    real, fake = torch.tensor([2., .5, -1.]), torch.tensor([-3., 0., 1.])
    close(hinge_d(real, fake), torch.tensor((0+.5+2)/3+(0+1+2)/3))
    close(wasserstein_d(real, fake), torch.tensor(-2/3-.5))
    assert hinge_g(fake) == wasserstein_g(fake) == torch.tensor(2/3)
    assert hinge_d(torch.ones(4), -torch.ones(4)) == 0

@pytest.mark.parametrize('c', [0., .5, 1., 3.])
def test_the_gradient_penalty_of_a_linear_critic(c):
    slope = normal(2, 5, 5)
    slope *= c/slope.norm()
    linear = lambda x, labels: ((slope*x).sum((1, 2, 3)), None)
    found = gradient_penalty(linear, normal(6, 2, 5, 5), normal(6, 2, 5, 5, seed=1), None, gen())
    close(found, torch.tensor((c-1)**2), atol=1e-5, rtol=1e-4)

def test_the_gradient_penalty_looks_between_real_and_made_images():
    "Of x²/2 the gradient is x: with real images 0 and made ones 1 the mean of (t-1)² is 1/3"
    square = lambda x, labels: (x.square().sum((1, 2, 3))/2, None)
    found = gradient_penalty(square, torch.zeros(4000, 1, 1, 1), torch.ones(4000, 1, 1, 1), None, gen())
    assert abs(found-1/3) < .02

def test_the_gradient_penalty_teaches():
    D = made(GANDiscriminator, (1, 8, 8), spectral=False)
    before = torch.get_rng_state()
    gradient_penalty(D, normal(4, 1, 8, 8), normal(4, 1, 8, 8, seed=1), several(4), gen()).backward()
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0
               for n, p in D.named_parameters() if n.endswith('weight'))

def test_several_labels_do_not_compete():
    truth = several(8)
    logits = normal(8, 3).requires_grad_()
    ones = [label_loss(logits[:, k:k+1], truth[:, k:k+1], True) for k in range(3)]
    close(label_loss(logits, truth, True), sum(ones))
    sure = 30*(2*truth-1)
    close(label_loss(sure, truth, True), torch.tensor(0.), atol=1e-6, rtol=0)
    many = truth.sum(1)                                     # a softmax leaves k·log k at the very least
    least = (many*many.clamp(min=1).log()).mean()
    close(label_loss(sure, truth, False), least)
    assert least > .3
    lost = torch.autograd.grad(label_loss(logits, torch.zeros(8, 3), True), logits)[0]
    assert (lost > 0).all()                                 # that nothing was found is a lesson, too

def test_one_label_is_a_choice_among_classes():
    y = torch.tensor([0, 2, 1, 1])
    logits = normal(4, 3)
    close(label_loss(logits, F.one_hot(y, 3).float(), False), F.nll_loss(logits.log_softmax(1), y))
    close(label_loss(torch.zeros(4, 3), F.one_hot(y, 3).float(), False), torch.tensor(math.log(3)))


# DiffAugment

@pytest.mark.parametrize('side, limit', [(7, 1), (8, 1), (16, 2), (28, 4)])
def test_a_point_moves_by_whole_cells(side, limit):
    x = torch.zeros(900, 2, side, side)
    x[:, :, 4, 4] = torch.tensor([1., 2.])
    moved = diff_augment(x, gen(), cutout=0)
    at = moved[:, 0].nonzero()
    assert len(at) == 900 and moved[:, 0].max() == 1 and torch.equal(moved[:, 1], 2*moved[:, 0])
    steps = at[:, 1:]-4
    for d in steps.T: assert sorted(set(d.tolist())) == list(range(-limit, limit+1))
    assert len({tuple(s) for s in steps.tolist()}) == (2*limit+1)**2

def test_nothing_wraps_around():
    x = torch.zeros(200, 1, 8, 8)
    x[..., 0, :] = 1                                            # the uppermost row
    moved = diff_augment(x, gen(), cutout=0)
    assert moved[:, 0, 2:].eq(0).all() and moved.flatten(1).sum(1).min() == 0

@pytest.mark.parametrize('side, cut', [(7, 3), (8, 4), (28, 14)])
def test_a_square_is_cut_out(side, cut):
    gone = diff_augment(torch.ones(400, 2, side, side), gen(), shift=0) == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    for n in (gone[:, 0].any(1).sum(1), gone[:, 0].any(2).sum(1)):
        assert n.max() == cut and n.min() == -(-cut//2)         # over an edge half of it is left
    area = gone[:, 0].any(1).sum(1)*gone[:, 0].any(2).sum(1)
    assert torch.equal(gone[:, 0].flatten(1).sum(1), area)
    assert gone[:, 0].any(0).all()

def test_real_and_made_images_are_treated_alike():
    a, b = normal(16, 3, 12, 10), normal(16, 3, 12, 10, seed=1)
    before = torch.get_rng_state()
    close(diff_augment(a, gen(5))+diff_augment(b, gen(5)), diff_augment(a+b, gen(5)))
    assert torch.equal(diff_augment(a, gen(5)), diff_augment(a, gen(5)))
    assert not torch.equal(diff_augment(a, gen(5)), diff_augment(a, gen(6)))
    assert torch.equal(before, torch.get_rng_state())

def test_gradients_go_back_to_where_a_pixel_was():
    x = normal(16, 1, 8, 8).requires_grad_()
    out = diff_augment(x, gen())
    weights = normal(16, 1, 8, 8, seed=1)
    (weights*out).sum().backward()
    close((x.grad*x).sum(), (weights*out).sum())                # it is linear
    assert set(diff_augment(torch.ones(16, 1, 8, 8), gen()).unique().tolist()) == {0, 1}
    assert 0 < (x.grad == 0).float().mean() < .6
