"""Tasks: what holds for every kind of labels, and a third kind that goes through the whole package."""
import math, pickle
from dataclasses import replace

import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from refused import refused
from tsynd.core import as_task, MultiLabel, SingleLabel, task_of, TASKS
from tsynd.data import ImageData, load_npz, phantom, save_npz
from tsynd.models import predict, train_autoencoder, train_classifier
from tsynd.robustness import ATTACKS, Predictor, robustness_table
from tsynd.targeting import TSynD, uncertainty

ONE, SEVERAL = SingleLabel(), MultiLabel()
kinds = pytest.mark.parametrize('task', [ONE, SEVERAL], ids=repr)


class Ordinal(SingleLabel):
    "C grades in order, from C-1 logits of being above each but the last"
    name, fewest = 'ordinal-regression', 1
    def n_outputs(self, C): return C-1
    def scores(self, logits):
        above = F.logsigmoid(logits).cummin(-1).values
        ends = torch.cat([torch.zeros_like(above[...,:1]), above, torch.full_like(above[...,:1], -math.inf)],
                         -1).exp()
        return (ends[...,:-1]-ends[...,1:]).clamp(min=1e-6).log()
    def loss(self): return lambda logits, y: F.cross_entropy(self.scores(logits), y)
    def mean_logits(self, logits_T_B_C): return MultiLabel.mean_logits(self, logits_T_B_C)


def drawn(task, n=6, C=3, seed=0):
    "Logits and labels"
    g = torch.Generator().manual_seed(seed)
    logits, y = 3*torch.randn(n, C, generator=g), torch.randint(C, (n,), generator=g)
    return logits, torch.randint(2, (n, C), generator=g).float() if task.several else y

def test_a_name_gives_its_task():
    for name in TASKS: assert as_task(name).name == name and as_task(name) is as_task(as_task(name))
    assert {n for n in TASKS if as_task(n).several} == {'multi-label, binary-class'}
    assert as_task('binary-class') == as_task('ordinal-regression') == ONE != SEVERAL and Ordinal() != ONE
    for task in (*TASKS.values(), Ordinal()):
        assert pickle.loads(pickle.dumps(task)) == task and hash(task) == hash(type(task)())
    for bad in ('multi-label', 'binary', '', None, True, 1, ['multi-class']):
        with refused('task', *TASKS, found=bad): as_task(bad)

@kinds
@given(seed=st.integers(0, 10**6), C=st.integers(2, 6))
def test_one_kind_agrees_with_itself(task, seed, C):
    "Losses, probabilities and decisions are of one and the same prediction"
    logits, y = drawn(task, C=C, seed=seed)
    p = task.probabilities(logits.double())   # 1-p of a p near 1 has few digits in single precision
    right = (p.gather(1, y[:,None]) if not task.several else torch.where(y > 0, p, 1-p)).float()
    p = p.float()
    torch.testing.assert_close(task.probabilities(logits), p, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(task.label_probabilities(logits, y), right, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(task.of_labels(task.log_probabilities(logits), y).exp(), right, atol=1e-6,
                               rtol=1e-4)
    torch.testing.assert_close(task.loss()(logits, y), -right.log().mean(), atol=1e-4, rtol=1e-4)
    if not task.several:
        torch.testing.assert_close(task.attack_loss(logits, y).sigmoid(), 1-right[:,0], atol=1e-5, rtol=1e-4)
    else: torch.testing.assert_close(task.attack_loss(logits, y), -right.log().sum(1), atol=1e-3, rtol=1e-4)
    assert torch.equal(task.lost(logits, y), (task.wrong_share(logits, y) == 1) & (not task.several))
    assert 1-task.wrong_share(logits, y).mean().item() == pytest.approx(
        task.metrics(y, p)['accuracy'], abs=1e-6)

@kinds
def test_labels_survive_a_file(task, tmp_path):
    y = drawn(task, 40)[1]
    y[:3] = torch.eye(3) if task.several else torch.arange(3)
    part = replace(phantom(n_train=40, n_val=8, n_test=8).train, y=y)
    data = ImageData('made', task.name, ['a','b','c'], part, part, part)
    save_npz(tmp_path/'made.npz', data)
    back = load_npz(tmp_path/'made.npz', dict(task=task.name, label=dict(enumerate('abc')), n_channels=1),
                    'made')
    assert torch.equal(back.train.y, y) and back.train.y.dtype == y.dtype and back.task == task == task_of(y)

@pytest.fixture(scope='module')
def grades():
    "Phantoms whose grade is a factor in three steps"
    def graded(s): return replace(s, y=(s.factors[:,3]*3).long().clamp(max=2))
    d = phantom(n_train=60, n_val=20, n_test=20)
    return ImageData('grades', Ordinal(), ['none','some','much'], graded(d.train), graded(d.val),
                     graded(d.test))

def test_a_third_kind_goes_through_the_package(grades):
    "Loader, training with and without synthesis, uncertainty, every attack, the table"
    ae = train_autoencoder(grades, 10)
    cb = TSynD(ae, every=1, warmup=0.)
    cb.task = Ordinal()
    model = train_classifier(grades, epochs=1, bs=20, cbs=cb).model.eval()
    assert cb.count and cb.engine.task == Ordinal() and (cb.last_epoch.table().mi_after >= -1e-6).all()
    x, y = grades.test.batch(slice(None))
    assert predict(model, x).shape == (20, 2)
    assert grades.task.probabilities(predict(model, x)).shape == (20, 3)
    table = robustness_table(model, x, y, grades.task, eps=(4/255,), steps=2, ladder=True)
    assert table['PGD 4/255']['accuracy'] <= table['clean']['accuracy']
    mean = Predictor(model, 4, task=grades.task)
    for name, attack in ATTACKS.items():
        adv = attack(mean, x, y, .02, steps=3, task=grades.task)
        wrong = [grades.task.wrong_share(predict(mean, v), y) for v in (x, adv)]
        assert (wrong[1] >= wrong[0]).all(), name

def test_grades_that_are_known_by_hand():
    "P(y ≥ 1) = .8 and P(y ≥ 2) = .3 leave .2, .5 and .3; the mean of draws is that of the probabilities"
    logits = torch.tensor([[.8,.3]]).logit()
    torch.testing.assert_close(Ordinal().probabilities(logits), torch.tensor([[.2,.5,.3]]))
    draws = torch.tensor([[[.8,.3]], [[.4,.1]]]).logit()
    torch.testing.assert_close(Ordinal().probabilities(Ordinal().mean_logits(draws)),
                               torch.tensor([[.4,.4,.2]]))
    h = lambda p: -(np.array(p)*np.log(p)).sum()
    u = uncertainty(draws, Ordinal())
    assert u.epistemic.item() == pytest.approx(h([.4,.4,.2]) - (h([.2,.5,.3])+h([.6,.3,.1]))/2, abs=1e-5)
