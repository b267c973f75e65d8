"""Is it MI at all? Where the dropout sits,
and what the mutual information then says that the entropy does not.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/is_it_mi.py [seeds]

Small ResNets, about 300 updates each, with 100 labelled images of BreastMNIST and PneumoniaMNIST and 200
of the phantom, whose holes are left out of training; 'phantom, filled' is the control, trained with images
of the holes. One row per data set, seed, placement and T in is_it_mi.csv beside it. What is there already
is left out, so it can be stopped and started again."""
import math, os, sys, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from tsynd.targeting import BF16
from tsynd.core import metrics, probabilities
from tsynd.models import frozen, MCDropout, predict, small_resnet, train_classifier
from tsynd.core import seeded
from tsynd.data import in_hole, load_data, phantom, phantom_labels, render_phantom, subset
from tsynd.targeting import uncertainty

FAR = {'phantom': 'breastmnist', 'phantom, filled': 'breastmnist', 'pneumoniamnist': 'breastmnist',
       'breastmnist': 'pneumoniamnist'}
PLACEMENTS = ('head', 'ensemble', 'last block', 'blocks', 'injected', 'mlp')
DRAWS,UPDATES,HELD_OUT,PAIRS,MEMBERS,N_FAR = 64,300,250,300,4,150
OUT = Path(__file__).with_suffix('.csv')


def insert(clf, after):
    "Put modules behind the trunk's stages, by their number: 3, 4 and 5 are the residual blocks"
    clf.trunk = nn.Sequential(*[m for i,stage in enumerate(clf.trunk)
                                for m in (stage, *([after[i]] if i in after else []))])
    return clf


def build(placement, ch, n_classes):
    # dropout .5 before the last layer
    clf = small_resnet(ch, n_classes)
    if placement == 'last block': insert(clf, {4: nn.Dropout2d(.2)})
    if placement == 'blocks': insert(clf, {3: nn.Dropout2d(.1), 4: nn.Dropout2d(.1)})
    if placement == 'mlp':
        clf.drop = nn.Sequential(nn.Dropout(.5), nn.Linear(96, 96), nn.ReLU(), nn.Dropout(.5))
    return clf


def train(data, placement, seed):
    with seeded(seed): model = build(placement, data.shape[0], data.n_classes)
    return train_classifier(data, model, epochs=round(UPDATES/math.ceil(len(data.train)/32)), seed=seed,
                            cbs=[BF16()]).model


def draws(models, x, T=DRAWS):
    "logits_T_B_C and the masks' owner: T dropout draws of one network, or a plain pass of each of several"
    if len(models) > 1: return torch.stack([predict(m, x) for m in models])
    with torch.no_grad(), MCDropout(models[0], T, seed=1) as mc:
        return torch.cat([mc(b) for b in x.split(16)], 1)


def cost(models, plain, x):
    "Time of T = 8 draws (or of all networks) over that of one plain pass, the quickest of 9"
    def quickest(f):
        times = []
        for _ in range(9):
            start = time.perf_counter(); f(); times.append(time.perf_counter()-start)
        return min(times[1:])
    def eight():
        with torch.no_grad(), MCDropout(models[0], 8) as mc: mc(x)
    def once():
        with torch.no_grad(), frozen(plain): plain(x)
    return quickest(eight if len(models)==1 else lambda: draws(models, x))/quickest(once)


def hole_pairs(seed, n=PAIRS):
    "n fresh renders from the holes; for each, one from outside, same label, nearest by the label's rule"
    g = torch.Generator().manual_seed(90001+seed)
    f = torch.rand(60*n, 8, generator=g)
    score = .6*f[:,1] + .4*f[:,3] + 10*phantom_labels(f)
    hole,free = in_hole(f).nonzero()[:n,0],~in_hole(f)
    partner = []
    for i in hole:
        partner.append((score-score[i]).abs().masked_fill(~free, 99).argmin().item())
        free[partner[-1]] = False
    f = torch.cat([f[hole], f[partner]])
    assert (phantom_labels(f[:n]) == phantom_labels(f[n:])).all()
    x = (render_phantom(f, seed=90002+seed)*255).round()/255
    return x, phantom_labels(f), in_hole(f[:n], 'inside')


def residual(a, b):
    "What is left of the ranks of a after a line in the ranks of b"
    a,b = rankdata(a),rankdata(b); a,b = a-a.mean(),b-b.mean()
    return a - b*(a@b)/(b@b)


def auroc(positive, score):
    return roc_auc_score(positive, score) if 0 < positive.sum() < len(positive) else float('nan')


def scores(u, positive, name):
    mi,h = u.epistemic.numpy(),u.total.numpy()
    rest = dict(mi=mi, entropy=h, ratio=mi/h, residual=residual(mi, h))
    return {f'{name} {k}': auroc(positive, v) for k,v in rest.items()}


def look(logits, far, norm, margin, wrong, hole=None):
    "All numbers of one stack of draws"
    u = uncertainty(logits); mi,h = u.epistemic.numpy(),u.total.numpy()
    rho = lambda a,b: spearmanr(a, b).statistic
    res = {'mean mi': mi.mean(), 'mean entropy': h.mean(), 'rho entropy': rho(mi, h),
           'rho norm': rho(mi, norm), 'rho margin': rho(mi, margin),
           'rho norm | entropy': rho(residual(mi, h), residual(norm, h)), **scores(u, wrong, 'error')}
    both = uncertainty(torch.cat([logits, far], 1))
    res |= scores(both, (torch.arange(logits.shape[1]+N_FAR) >= logits.shape[1]).numpy(), 'far')
    if hole is None: return res
    v,inside = uncertainty(hole[0]),hole[1]
    for name,keep in (('hole', torch.ones(PAIRS, dtype=bool)), ('inside', inside), ('edge', ~inside)):
        both = torch.cat([keep, keep])
        positive = torch.arange(2*PAIRS)[both] < PAIRS
        res |= scores(type(v)(*[t[both] for t in v]), positive.numpy(), name)
    return res


def measure(data, far, seed, models, plain):
    "Rows of one placement, one per T; the numbers of T < 64 are means over the 64/T groups of draws"
    x,y = data.test.batch(slice(None))
    logits = sum(predict(m, x) for m in (models if len(models) > 1 else [plain]))/len(models)
    fixed = {'clean auc': metrics(y, probabilities(logits), data.task)['auc'],
             'cost': cost(models, plain, x[:32])}
    xh = x[:HELD_OUT]
    features = lambda x: predict(plain.trunk, (x-.5)/.5)
    margin = (logits[:,1]-logits[:,0]).abs()[:HELD_OUT].numpy()
    wrong = (logits.argmax(1) != y)[:HELD_OUT].numpy()
    norm,held,strange,hole = features(xh).norm(dim=1).numpy(),draws(models, xh),draws(models, far),None
    if data.name == 'phantom':
        xp,yp,inside = hole_pairs(seed)
        bad = (predict(plain, xp).argmax(1) != yp).float()
        near = torch.cdist(features(xp), features(data.train.batch(slice(None))[0])).min(1).values
        fixed |= {'hole distance': auroc((torch.arange(len(xp)) < PAIRS).numpy(), near.numpy()),
                  'wrong in hole': bad[:PAIRS].mean().item(), 'wrong outside': bad[PAIRS:].mean().item()}
        hole = draws(models, xp)
    for T in (2, 4, 8, 16, 32, 64):
        if T > len(held): break
        cut = lambda i: (None if hole is None else (hole[i:i+T], inside))
        groups = [look(held[i:i+T], strange[i:i+T], norm, margin, wrong, cut(i))
                  for i in range(0, len(held), T)]
        yield dict(T=T, **pd.DataFrame(groups).mean(), **fixed)


def main(seeds=3):
    done = (set() if not OUT.exists() else
            set(pd.read_csv(OUT)[['dataset','seed','placement']].itertuples(index=False, name=None)))
    for seed in range(seeds):
        for name in FAR:
            todo = [p for p in PLACEMENTS[:4 if name.endswith('filled') else None]
                    if (name, seed, p) not in done]
            if not todo: continue
            data = (phantom(seed=seed, holes=name == 'phantom') if name.startswith('phantom') else
                    subset(load_data(name), 100, seed=seed))
            far = load_data(FAR[name]).test.batch(slice(N_FAR))[0]
            head = train(data, 'head', seed) if {'head','injected','ensemble'} & set(todo) else None
            for p in todo:
                start = time.perf_counter()
                # the same network, a second dropout only while measuring
                if p == 'injected':
                    with seeded(0):
                        model = insert(build('head', data.shape[0], data.n_classes), {4: nn.Identity()})
                    model.load_state_dict(dict(zip(model.state_dict(), head.state_dict().values())))
                    model.to(memory_format=torch.channels_last); model.trunk[5] = nn.Dropout2d(.2)
                else: model = head if p in ('head','ensemble') else train(data, p, seed)
                models = [model]
                if p == 'ensemble': models += [train(data, 'head', 1000*i+seed) for i in range(1, MEMBERS)]
                table = pd.DataFrame([dict(dataset=name, seed=seed, placement=p, **r)
                                      for r in measure(data, far, seed, models, model)])
                # one header for all data sets: the hole's columns stay empty where there is no hole
                if OUT.exists(): table = table.reindex(columns=pd.read_csv(OUT, nrows=0).columns)
                table.round(4).to_csv(OUT, mode='a', header=not OUT.exists(), index=False)
                print(name, seed, p, f'{time.perf_counter()-start:.0f} s',
                      table.iloc[-1, 3:].round(3).to_dict(), flush=True)


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
