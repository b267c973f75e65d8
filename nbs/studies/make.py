"""The configurations of the studies in this folder.

    python nbs/studies/make.py search      writes search.toml: for each arm four settings, to be judged on validation images
    python nbs/studies/make.py headline    reads the finished search and writes headline.toml: for each arm the best of its four

The criterion, declared before anything was run: the mean over both data sets and seeds of clean AUC and of balanced accuracy
under PGD 4/255, half and half, on validation images (78 and 100 of them). Ties go to the setting that comes first."""
import sys
from itertools import product
from pathlib import Path

from tsynd.statistics import HEADLINE
from tsynd.study import StudyConfig, read_study, to_toml

HERE = Path(__file__).parent
BOTH = ['breastmnist', 'pneumoniamnist']

def grid(**values): return [dict(zip(values, v)) for v in product(*values.values())]

TRIALS = dict(
    baseline=grid(lr=[2e-3, 1e-3, 4e-3, 8e-3]), reconstruction=grid(weight=[1., .5, 2., 4.]),
    **{a: grid(weight=[1., 4.], radius=[.3, .6]) for a in ('random', 'entropy', 'mi', 'mi_default')},
    cross_entropy=grid(weight=[1., 4.], radius=[.1, .2]), pixel_mi=grid(weight=[1., 4.], radius=[.015, .03]),
    joint=grid(weight=[1., 4.], radius=[.15, .3]), mixup=grid(alpha=[.1, .2, .4, 1.]), trivialaugment=grid(p=[.25, .5, .75, 1.]),
    **{a: grid(weight=[1., 4.], eps=[4/255, 8/255]) for a in ('pgd', 'fgsm')},
    mi_fgsm=grid(weight=[1., 4.], attack_weight=[1., 4.]), mi_mixup=grid(weight=[1., 4.], alpha=[.2, .4]))

def label(arm, s): return ', '.join([arm, *(f'{k} {v:.3g}' for k,v in s.items())])

def search():
    arms = {label(a, s): dict(arm=a, **s) for a,ss in TRIALS.items() for s in ss}
    return StudyConfig('search', BOTH, [100], 2, arms, split='val', attack_n=100, eps=[4], pgd_steps=10, corruptions=[])

def scores():
    "Criterion for each trial of the finished search"
    study = read_study(HERE/'search')
    left = len(study.config.arms)*4 - (study.cells.status == 'done').sum()
    if left: sys.exit(f'{left} cells of the search are not done; run tsynd study nbs/studies/search.toml --out nbs/studies/search')
    r = study.results
    used = r[(r.condition == 'clean') & (r.measure == 'auc') | (r.condition == 'PGD 4/255') & (r.measure == 'balanced_accuracy')]
    return used.groupby('arm', sort=False).value.mean(), study.cells.groupby('arm').seconds.mean()

def headline():
    score,seconds = scores()
    best = {a: max(ss, key=lambda s: score[label(a, s)]) for a,ss in TRIALS.items()}
    arms = {a: dict(s) for a,s in best.items()}
    longer = seconds[label('mi', best['mi'])]/seconds[label('baseline', best['baseline'])]
    arms['baseline, longer'] = dict(arm='baseline', longer=round(float(longer), 2), **best['baseline'])
    family = [*HEADLINE, ('mi', 'baseline, longer', 'clean', 'auc')]                            # at one size: ten seeds bear no more
    return StudyConfig('headline', BOTH, [100, 50, 200], 10, arms, headline=[[*c, [100]] for c in family])


if __name__ == '__main__':
    what = dict(search=search, headline=headline)[sys.argv[1]]()
    (HERE/f'{what.name}.toml').write_text(to_toml(what))
