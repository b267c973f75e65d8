"""On a GPU: engine, draws, predictions, perturbations, corruptions and maps are those of the processor,
up to rounding; all else runs, and leaves alone what it should.

Left out where there is none, so run it once where there is: pytest -n 0 tests/test_gpu.py"""
import json, subprocess, sys

import numpy as np, pytest, torch
from states import same, state

from tsynd.experiments import ARMS, callbacks
from tsynd.robustness import attack_suite, masking_check
from tsynd.models import train_autoencoder
from tsynd.targeting import BF16, TSynD
from tsynd.models import make_classifier, mc_logits, predict, train_classifier
from tsynd.robustness import corruption_table
from tsynd.core import seeded
from tsynd.data import phantom
from tsynd.robustness import cam, faithfulness, METHODS, minimise_class
from tsynd.robustness import perturb, pgd, robustness_table
from tsynd.experiments import run_study, StudyConfig
from tsynd.targeting import LatentBank, OBJECTIVES, Synthesizer

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(),
                                 reason='there is no CUDA device on this machine'),
              pytest.mark.xdist_group('gpu')]
MULTI = 'multi-label, binary-class'
tasks = pytest.mark.parametrize('task', ['binary-class', MULTI])


@pytest.fixture(scope='module', autouse=True)
def exact():
    "Convolutions in float32 and not in TF32, so that devices can be compared"
    before,torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32,False
    yield
    torch.backends.cudnn.allow_tf32 = before

def on(device, *o): return [v.to(device) for v in o]

@pytest.fixture(scope='module')
def made():
    "Phantoms, a briefly trained autoencoder and, for each task, classifier and labels, all on the processor"
    data = phantom(64, seed=1)
    x,y = data.test.batch(slice(24))
    with seeded(2):
        nets = {'binary-class': train_classifier(data, epochs=8, seed=0).model.eval(),
                MULTI: make_classifier('small_resnet', 1, 3).eval()}
    several = torch.stack([y, 1-y, torch.ones_like(y)], 1).float()
    return data, train_autoencoder(data, steps=40, seed=0), nets, x, {'binary-class': y, MULTI: several}


@tasks
@pytest.mark.parametrize('objective', OBJECTIVES)
def test_the_same_images(made, task, objective):
    _,ae,nets,x,ys = made
    syns = {}
    for dev in ('cpu', 'cuda'):
        a,m,x_,y_ = on(dev, ae, nets[task], x, ys[task])
        engine = Synthesizer(a, objective, T=4, steps=2, jitter=.1, gate=.6, task=task)
        bank = LatentBank()
        for seed in (1, 2): s = engine(m, x_, y_, seed, index=torch.arange(len(x)), judge=m, bank=bank)
        syns[dev] = engine.measure(m, s, seed=3)
        ae.cpu(); nets[task].cpu()
    a,b = syns['cpu'],syns['cuda']
    assert b.x.is_cuda and (a.x-b.x.cpu()).abs().mean() < 2e-4    # one image in a hundred takes another turn
    t,u = a.table(),b.table()
    assert np.allclose(t.drop(columns='gate'), u.drop(columns='gate'), atol=2e-3)
    assert (t.gate-u.gate).abs().mean() < .05

def test_draws_and_predictions(made):
    _,_,nets,x,_ = made
    net = nets['binary-class']
    here,draws = predict(net, x),mc_logits(net, x, 8, seed=5)
    net.cuda()
    try: there,far = predict(net, x.cuda()),mc_logits(net, x.cuda(), 8, seed=5).cpu()
    finally: net.cpu()
    assert not there.is_cuda and torch.allclose(here, there, atol=1e-3)
    assert torch.allclose(draws, far, atol=1e-3)

@tasks
def test_perturbed_and_attacked(made, task):
    _,_,nets,x,ys = made
    net = nets[task]
    res = {}
    for dev in ('cpu', 'cuda'):
        m,x_,y_ = on(dev, net, x, ys[task])
        res[dev] = (perturb(x_, 1., 3), pgd(m, x_, y_, 4/255, 5, seed=1, task=task),
                    robustness_table(m, x_, y_, task, [2/255], steps=3, attack_n=16))
        net.cpu()
    (p,_,t),(q,b,u) = res['cpu'],res['cuda']
    assert torch.allclose(p, q.cpu(), atol=1e-4) and (b.cpu()-x).abs().max() <= 4/255+1e-6
    assert list(t) == list(u) and abs(t['clean']['accuracy']-u['clean']['accuracy']) < .05

def test_the_attack_suite(made):
    _,_,nets,x,ys = made
    net,x,y = on('cuda', nets['binary-class'], x, ys['binary-class'])
    try:
        kept,before = {},state(net)
        rows = attack_suite(net, x, y, 'binary-class', 2/255, seed=0, keep=kept)
        found = masking_check(net, x, y, 'binary-class', 2/255, images=kept, seed=0)
        assert same(state(net), before)
    finally: net.cpu()
    assert len(rows) > 5 and isinstance(found['masked'], bool)
    assert all(0 <= r['accuracy'] <= 1 for r in rows)

def test_corruptions(made):
    _,_,nets,x,ys = made
    res = {}
    for dev in ('cpu', 'cuda'):
        res[dev] = corruption_table(*on(dev, nets['binary-class'], x, ys['binary-class']), 'binary-class',
                                    'pneumoniamnist', n=16, seed=0)
        nets['binary-class'].cpu()
    assert [r['corruption'] for r in res['cpu']] == [r['corruption'] for r in res['cuda']]
    assert np.mean([abs(a['accuracy']-b['accuracy']) for a,b in zip(res['cpu'], res['cuda'])]) < .02

def test_explanations(made):
    _,ae,nets,x,ys = made
    net,x = nets['binary-class'],x[:4]
    maps = {k: cam(net, x, method=k) for k in METHODS}
    net.cuda()
    try:
        for k,m in maps.items(): assert (cam(net, x.cuda(), method=k).cpu()-m).abs().mean() < .02, k
        on_gpu = faithfulness(net, x.cuda(), ys['binary-class'][:4], maps['gradcam'])
        on_cpu = faithfulness(net.cpu(), x, ys['binary-class'][:4], maps['gradcam'])
        assert (on_gpu-on_cpu).abs().max() < .05
        net.cuda()
        for a in (None, ae.cuda()):
            start,end = minimise_class(net, x.cuda(), ys['binary-class'][:4], ae=a)
            assert start.is_cuda and not torch.equal(start, end)
    finally: net.cpu(); ae.cpu()

@pytest.mark.parametrize('name', ARMS)
def test_every_arm_trains(made, name):
    data,ae,*_ = made
    quick = dict(generator_updates=2) if 'generator_updates' in ARMS[name].settings else {}
    cbs = callbacks(name, ae, 0, **quick)
    for c in cbs:
        if isinstance(c, TSynD): c.gate = c.engine.gate = 0.
    try: learn = train_classifier(data, epochs=2, seed=0, cbs=[BF16(), *cbs], device='cuda')
    finally: ae.cpu()
    assert all(p.is_cuda and p.isfinite().all() for p in learn.model.parameters())

def test_a_budget_is_kept_and_provenance_comes_home(made):
    data,ae,*_ = made
    cb = TSynD(ae, budget=2., gate=.5)
    try: train_classifier(data, epochs=30, seed=0, cbs=[cb], device='cuda')
    finally: ae.cpu()
    assert cb.cost['rate'] > 0 and not cb.last_epoch.x.is_cuda and len(cb.provenance)

def test_off_leaves_training_bit_identical(made):
    data,ae,*_ = made
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        nets = [train_classifier(data, epochs=3, seed=0, cbs=cbs, device='cuda').model
                for cbs in ([], [TSynD(ae, weight=0.)])]
    finally: torch.use_deterministic_algorithms(False); ae.cpu()
    assert all(torch.equal(a, b) for a,b in zip(*(n.state_dict().values() for n in nets)))

def test_a_study(tmp_path):
    c = StudyConfig(name='gpu', datasets=['phantom'], n=[40], seeds=1,
                    arms={'baseline': {}, 'mi': dict(gate=0.)}, updates=6, ae_steps=6, attack_n=10,
                    pgd_steps=2, eps=[2], corruptions=['speckle_noise'], test_n=30, device='cuda')
    study = run_study(c, tmp_path/'s', jobs=1, progress=False)
    assert study.cells.status.eq('done').all(), study.cells.reason.tolist()
    assert study.cells.weights.nunique() == study.cells.order.nunique() == 1

def test_the_command(tmp_path):
    done = subprocess.run([sys.executable, '-c', 'from tsynd.cli import main; main()', 'run', '--quick',
                           '--bf16', '--device', 'cuda', '--out', tmp_path/'r'],
                          capture_output=True, text=True)
    assert not done.returncode, done.stderr[-500:]
    assert (json.loads((tmp_path/'r'/'metrics.json').read_text())['config']['device'] == 'cuda'
            and (tmp_path/'r'/'report.html').exists())
