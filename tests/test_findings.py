"""The phantom with several findings: labels, combinations and their shares, masks"""
import numpy as np
import pytest
import torch
from refused import refused

from tsynd.core import metrics
from tsynd.data import FINDINGS, finding_combinations, finding_labels, finding_masks, phantom, phantom_masks
from tsynd.data import render_findings
from tsynd.models import predict, train_classifier


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('findings,combinations,prevalence,rarest', [
    (6, 8, .25, .02), (6, 20, .25, .01), (4, 10, [.1,.2,.3,.5], .005), (3, 8, .5, 0.), (1, 2, .3, 0.)])
def test_shares_are_what_was_asked(findings, combinations, prevalence, rarest, seed):
    C, shares = finding_combinations(findings, combinations, prevalence, rarest, seed)
    assert C.shape == (combinations, findings) and len(np.unique(C, axis=0)) == combinations
    assert np.isclose(shares.sum(), 1) and np.allclose(shares@C, prevalence, atol=1e-3)
    if rarest: assert np.isclose(shares.min(), rarest)

def test_shares_are_the_most_even_ones():
    "Any other way to share what is above the least share, with the same prevalences, has less entropy"
    C, shares = finding_combinations(5, 14, .3, .01)
    A = np.vstack([C.T, np.ones(len(C))])[:,1:]                     # the rarest keeps its share
    free = np.linalg.svd(A)[2][np.linalg.matrix_rank(A):]           # ways that change no prevalence
    above = shares[1:]-.01
    def entropy(p): return -(p*np.log(p)).sum()
    for way in free:
        for step in (1e-3, -1e-3): assert entropy(above+step*way) < entropy(above)

@pytest.mark.parametrize('name,given,found', [
    ('combinations', dict(combinations=4), 4),                      # six findings in too few combinations
    ('combinations', dict(findings=2, combinations=5), 5),          # there are four
    ('combinations', dict(findings=0, combinations=5), 5),
    ('prevalence', dict(prevalence=[.1,.2]), [.1,.2]), ('prevalence', dict(prevalence=0), 0),
    ('findings', dict(findings=7, combinations=None), 7), ('rarest', dict(rarest=1.5), 1.5)])
def test_what_cannot_be_is_refused(name, given, found):
    with refused(name, found=found): phantom(20, 5, 5, **dict(findings=6, combinations=12) | given)

@pytest.mark.parametrize('combinations', [None, 9])
def test_a_set_has_what_was_asked_for(combinations):
    data = phantom(1000, 200, 200, findings=5, combinations=combinations, rarest=.02)
    assert data.task.several and list(data.classes) == list(FINDINGS[:5])
    for part in (data.train, data.val, data.test):
        of, counts = part.y.unique(dim=0, return_counts=True)
        if combinations: assert len(of) == 9 and counts.min() == round(.02*len(part))
        assert (part.y.mean(0)-.25).abs().max() < (.01 if combinations else .1)
        assert torch.equal(phantom_masks(part).flatten(2).any(2), part.y > 0)
    assert phantom(1000, 200, 200, findings=5, combinations=combinations, rarest=.02).md5 == data.md5

def test_a_finding_changes_the_image_where_its_mask_is():
    f = torch.full((6,21), .5); f[:,:6] = .9*torch.eye(6)
    plain = f.clone(); plain[:,:6] = 0
    assert torch.equal(finding_labels(f), torch.eye(6))
    change = (render_findings(f, 64)-render_findings(plain, 64))[:,0]
    masks = finding_masks(f, 64)[torch.arange(6), torch.arange(6)]
    for d,m in zip(change, masks): assert d[m].mean() > .1 > 5*d[~m].mean()

def test_a_baseline_finds_most_and_not_all():
    data = phantom(findings=6)
    model = train_classifier(data, epochs=25, seed=0).model
    found = metrics(data.test.y, predict(model, data.test.x).sigmoid(), data.task)['auc']
    assert .75 < found < .95
