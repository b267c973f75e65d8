"""The table of claims: every number that the pages of the evidence give,
made from the files of the studies.

    python nbs/evidence/claims.py [--check]

writes claims.csv and losses.csv beside it; --check writes nothing and says what is no longer so.

A row of claims.csv is one number: its id, its value, the ends of its 95 % interval where it has one, its
unit, the seeds behind it, what was compared (data set, number of labelled images, arm, reference,
condition, measure), and the file that it comes from. Pages name ids and no numbers. An id reads

    mi-baseline/breast/100/pgd4             arm less reference / data set / labelled images / measure
    mi/breast/100/pgd4                      mean of one arm
    half:mi_pgd-random_pgd/breast/100/pgd4  the same, from another study than `headline`

and the word after the last slash is a key of `LOOKS`: on clean images without a prefix; in balanced
accuracy under attack and where no measure is named. Differences are paired within seeds, in points;
intervals are Student's, over the seeds. A declared question has its p-value by sign flips, the same after
Holm's correction, its verdict, and the interval over other test images, too.

losses.csv has everything that was measured, but for single severities, and is clearly worse or better than
the baseline, for the arms mi, mi_default and mi_fgsm: its interval leaves out 0, without any correction.

Nothing is trained here, and no data set is read; it takes about half a minute."""
import argparse
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from tsynd.experiments import ARMS
from tsynd.experiments import class_profile, contrast, headline, stored_predictions, tidy
from tsynd.experiments import read_study
from tsynd.reports import costs, departures, findings, OFFICIAL, verdicts

HERE = Path(__file__).parent
STUDIES,MEASUREMENTS = HERE.parent/'studies', HERE.parent/'measurements'
SETS = dict(breastmnist='breast', pneumoniamnist='pneumonia')
LOOKS = {m.removesuffix('_accuracy'): ('clean', m)
         for m in ('auc','accuracy','balanced_accuracy','nll','ece')}
ENDS = {'_auc': 'auc', '_accuracy': 'accuracy', '': 'balanced_accuracy'}
LOOKS |= {c + end: (c, m) for c in ('perturbed','corrupted') for end,m in ENDS.items()}
LOOKS |= {f'pgd{e}': (f'PGD {e}/255', 'balanced_accuracy') for e in (1, 2, 4, 8)}
SIZES = ('50','100','200')
AT_SIZES = ('auc','accuracy','balanced','perturbed_auc','corrupted','pgd2','pgd4','pgd8')
SHOWN = (*AT_SIZES, 'perturbed', 'corrupted_auc')   # in tables
WIDE,BIG,SEEN = ('pgd, 8/255','fgsm, 8/255'), 'mi_fgsm, 8/255', 'random, as far in pixels'
SIMPLER = ('baseline, longer','reconstruction','random','random, as far',SEEN,
           'entropy','cross_entropy','pixel_mi')
PAIRS = [*(('mi', r) for r in SIMPLER), *((a, r) for a in ('mi_fgsm','mi_pgd') for r in ('pgd','fgsm')),
         *((w, r) for w in WIDE for r in (w[:-7], 'pixel_mi')),
         *((BIG, r) for r in ('mi_fgsm','pgd',*WIDE)), ('mi_pgd','fgsm, 8/255'), ('mi_pgd','mi_fgsm'),
         *((a, 'mi') for a in ('pgd','fgsm','trivialaugment','mi_mixup')), ('joint','fgsm')]
FEW = ('random','mi_default','mi','trivialaugment','fgsm','baseline, longer','cross_entropy','mixup')
CURVES = ('baseline','random','mi','trivialaugment','fgsm','pgd','mi_fgsm','pixel_mi')
COLUMNS = ['id','value','lo','hi','unit','seeds','dataset','n','arm','reference','condition','measure',
           'p','p_holm','verdict','image_lo','image_hi','source']
NUMBERS = ['value','lo','hi','image_lo','image_hi','p','p_holm']


# One row

def slug(arm):
    "An arm's name as it stands in an id: `pgd, 8/255` is pgd_8"
    return re.sub(r'\W+', '_', arm.replace('/255', ''))

def interval(d):
    "Mean of `d`, one number per seed, and the ends of its 95 % interval"
    d = np.asarray(d, float)
    if len(d) < 2: return d.mean(), np.nan, np.nan
    half = student.ppf(.975, len(d)-1)*d.std(ddof=1)/len(d)**.5
    return d.mean(), d.mean()-half, d.mean()+half

def row(id, value, source, unit='', lo=np.nan, hi=np.nan, **more):
    return dict(id=id, value=value, lo=lo, hi=hi, unit=unit, source=source, **more)

class Wide:
    "A study's results with a column per seed, and its rows of claims"
    def __init__(self, results, name='headline', source=None):
        self.table = results.pivot(index=['dataset','n','condition','measure','arm'],
                                   columns='seed', values='value')
        self.name,self.source = name,source or f'studies/{name}'
        self.arms = {k: set(g.arm) for k,g in results.groupby(['dataset','n'])}

    def _id(self, what, d, n, look):
        return ('' if self.name == 'headline' else f'{self.name}:') + f'{what}/{SETS[d]}/{n}/{look}'

    def seeds(self, arm, d, n, look): return self.table.loc[(d, str(n), *LOOKS[look], arm)].dropna()

    def gap(self, arm, reference, d, n, look):
        return (self.seeds(arm, d, n, look)-self.seeds(reference, d, n, look)).dropna()

    def less(self, arm, reference, d, n, look):
        "The claim of one paired difference"
        v = self.gap(arm, reference, d, n, look)
        unit,times = ('nats', 1) if look == 'nll' else ('points', 100)
        mean,lo,hi = interval(v*times)
        what = dict(zip(('condition','measure'), LOOKS[look]))
        return row(self._id(f'{slug(arm)}-{slug(reference)}', d, n, look), mean, self.source, unit, lo, hi,
                   seeds=len(v), dataset=d, n=n, arm=arm, reference=reference, **what)

    def mean(self, arm, d, n, look):
        "The claim of one mean"
        v,(unit,times) = self.seeds(arm, d, n, look), ('nats', 1) if look == 'nll' else ('percent', 100)
        return row(self._id(slug(arm), d, n, look), v.mean()*times, self.source, unit, seeds=len(v),
                   dataset=d, n=n, arm=arm, **dict(zip(('condition','measure'), LOOKS[look])))

    def all(self, pairs, ns, looks):
        "The claims of all pairs that are there, on both sets"
        return [self.less(a, r, d, n, k) for (d,n),have in self.arms.items() if n in ns
                for a,r in pairs if {a,r} <= have for k in looks]


# The studies

def main_study(f):
    "Differences, means and declared questions of the headline study"
    w = Wide(f.results)
    pairs = [*((a, 'baseline') for a in f.arms if a != 'baseline'), *PAIRS]
    rows = w.all(pairs[:len(f.arms)-1], ['100'], LOOKS) + w.all(PAIRS, ['100'], SHOWN)
    rows += w.all([*((a, 'baseline') for a in FEW), *PAIRS], ['50','200'], AT_SIZES)
    rows += [w.mean(a, d, '100', k) for d in f.datasets for a in CURVES
             for k in ('auc','balanced','pgd1','pgd2','pgd4','pgd8')]
    rows += [w.mean(a, d, '100', k) for d in f.datasets for a in f.arms for k in ('nll','ece')]
    rows += [w.mean('baseline', d, n, 'auc') for d in f.datasets for n in ('50','200')]
    return rows + severities(f) + families(f)

def severities(f):
    "Balanced accuracy at each severity of corruption"
    t = f.means[(f.means.n == '100') & f.means.condition.str.startswith('severity')]
    t = t[(t.measure == 'balanced_accuracy') & t.arm.isin(CURVES)]
    return [row(f"{arm}/{SETS[d]}/100/{c.replace(' ', '')}", 100*mean, 'studies/headline', 'percent', seeds=k,
                dataset=d, n='100', arm=arm, condition=c, measure='balanced_accuracy')
            for arm,d,c,mean,k in t[['arm','dataset','condition','mean','seeds']].itertuples(index=False)]

def families(f, arms=('mi','trivialaugment','fgsm','pgd','pixel_mi')):
    "Balanced accuracy, family by family of corruption, and MI's plain accuracy"
    d = f.diffs[(f.diffs.n == '100') & f.diffs.condition.str.startswith('corrupted ')]
    plain = (d.measure == 'accuracy') & (d.arm == 'mi')
    d = d[d.arm.isin(arms) & ((d.measure == 'balanced_accuracy') | plain)]
    def one(q):
        look = q.condition.removeprefix('corrupted ') + '_accuracy'*(q.measure == 'accuracy')
        return row(f'{q.arm}-baseline/{SETS[q.dataset]}/100/{look}', 100*q.difference, 'studies/headline',
                   'points', 100*q.lo, 100*q.hi, seeds=q.seeds, dataset=q.dataset, n='100', arm=q.arm,
                   reference='baseline', condition=q.condition, measure=q.measure)
    return [one(q) for q in d.itertuples()]

def declared(rows, head):
    "Adds p-values, verdicts and intervals over images to the rows of declared questions"
    by = {(r['arm'], r.get('reference'), r['condition'], r['measure'], r['dataset'], str(r['n'])): r
          for r in rows if r.get('reference')}
    for q,verdict in zip(head.itertuples(), verdicts(head)):
        by[q.arm, q.reference, q.condition, q.measure, q.dataset, q.n].update(
            p=q.p, p_holm=q.p_holm, verdict=verdict, image_lo=100*q.image_lo, image_hi=100*q.image_hi)
    return rows

def first_run(f):
    "The first run, and what each arm gained by even batches"
    study = read_study(STUDIES/'uneven')
    r = tidy(study.results)
    w,asked = Wide(r, 'uneven'), [tuple(q[:4]) for q in study.config.headline]
    rows = declared([w.less(a, b, d, '100', k) for a,b,*what in asked for d in SETS
                     for k in LOOKS if LOOKS[k] == tuple(what)], headline(r, study.config.headline))
    rows += ([w.less('mi', 'baseline', d, '100', 'corrupted') for d in SETS]
             + [w.mean('baseline', d, n, 'auc') for d in SETS for n in SIZES])
    both = Wide(pd.concat([f.results, r.assign(arm=r.arm + ', first run')]), 'runs', 'studies/uneven')
    there = [(a, f'{a}, first run') for a in f.arms if a in set(r.arm)]
    return rows + both.all(there, ['100'], ('auc','corrupted','pgd4'))

def other_studies(f):
    "Precision, the controls of mi_pgd, and all images"
    half = Wide(tidy(read_study(STUDIES/'half').results), 'half')
    rows = half.all([('mi_pgd','random_pgd'), ('mi_pgd','pgd, 4 steps')], ['100'],
                    ('auc','balanced','perturbed_auc','perturbed','corrupted_auc','corrupted','pgd4'))
    same = Wide(pd.concat([f.results, tidy(read_study(STUDIES/'same').results).assign(arm='mi, float32')]),
                'same')
    rows += same.all([('mi, float32', SEEN), ('mi, float32', 'mi')], ['100'],
                     ('auc','balanced','perturbed_auc','perturbed','corrupted_auc','corrupted','pgd4'))
    p = Wide(pd.concat([f.results, tidy(read_study(STUDIES/'precision').results).assign(arm='mi, float32')]),
             'precision')
    for d in SETS:
        for k in (k for k in SHOWN if k != 'pgd2'):
            # a seed's two sizes are not independent
            v = sum(p.gap('mi, float32', 'mi', d, n, k) for n in ('50','200'))*50
            rows.append(row(f'precision:{SETS[d]}/{k}', *interval(v)[:1], 'studies/precision', 'points',
                            *interval(v)[1:], seeds=len(v), dataset=d, n='50, 200', arm='mi, float32',
                            reference='mi'))
    full = Wide(tidy(read_study(STUDIES/'full').results), 'full')
    rows += [full.mean('baseline', d, 'full', k) for d in SETS
             for k in ('auc','accuracy','balanced','perturbed_auc','corrupted','pgd4')]
    rows += [full.mean('mi_default', 'pneumoniamnist', 'full', 'pgd4')]
    for d in SETS:
        for a in sorted(full.arms[d, 'full']-{'baseline'}):
            for k in ('auc','accuracy','balanced','perturbed_auc','corrupted','pgd4'):
                rows += [row(f'full:{a}-baseline/{SETS[d]}/{k}/seed{s}', 100*v, full.source, 'points',
                             seeds=1, dataset=d, n='full', arm=a, reference='baseline')
                         for s,v in full.gap(a, 'baseline', d, 'full', k).items()]
    return rows

def published(name, d):
    "A study of MedMNIST's protocol, beside the published means"
    full = findings(read_study(STUDIES/name))
    assert not departures(full)
    w,rows = Wide(full.results, name), []
    for k in ('auc','accuracy','balanced','pgd4','nll','ece'):
        rows += [w.less('mi_default', 'baseline', d, 'full', k), w.mean('baseline', d, 'full', k),
                 w.mean('mi_default', d, 'full', k)]
        if k not in ('auc','accuracy','balanced'): continue
        q = contrast(full.results, 'mi_default', 'baseline', *LOOKS[k], d, 'full',
                     stored_predictions(full.study.cells, full.study.predictions))
        v = w.gap('mi_default', 'baseline', d, 'full', k)
        rows[-3].update(image_lo=100*q['image_lo'], image_hi=100*q['image_hi'], p=q['p'])
        rows.append(row(f'{name}:higher/{k}', (v > 0).sum(), w.source, 'seeds', seeds=len(v), dataset=d))
        if k == 'accuracy':
            images = {'breastmnist': 156, 'pneumoniamnist': 624}[d]
            rows += [row(f'{name}:images/{e}', round(images*getattr(v, e)()), w.source, 'images')
                     for e in ('min','max')]
    for k,theirs in zip(('auc','accuracy'), OFFICIAL[d]):
        rows += [row(f'published/{SETS[d]}/{k}', 100*theirs, 'MedMNIST v2', 'percent', dataset=d)]
        mean,lo,hi = interval(100*(w.seeds('baseline', d, 'full', k)-theirs))
        rows += [row(f'{name}:baseline-published/{k}', mean, w.source, 'points', lo, hi, seeds=5, dataset=d)]
    return rows

def letter():
    "The published protocol to the letter: first weights, measured epoch"
    t,rows = pd.read_csv(STUDIES/'official.csv').query('dropout == 0').sort_values('seed'), []
    for d,init,seeds in [('breastmnist','torchvision',5), ('breastmnist','pytorch',5),
                         ('breastmnist','pytorch',20), ('pneumoniamnist','pytorch',5)]:
        for when in ('chosen','last'):
            own = t[(t.dataset == d) & (t.init == init) & (t.measured == when) & (t.seed < seeds)]
            for k,theirs in zip(('auc','accuracy'), OFFICIAL[d]):
                id,(mean,lo,hi) = f'letter:{SETS[d]}/{init}_{seeds}/{when}/{k}', interval(100*(own[k]-theirs))
                rows += [row(id, 100*own[k].mean(), 'studies/official.csv', 'percent', seeds=len(own),
                             dataset=d),
                         row(f'{id}-published', mean, 'studies/official.csv', 'points', lo, hi,
                             seeds=len(own), dataset=d)]
    return rows


# What trainings are and cost

def trainings(f):
    "What each arm did in training at 100 images, and its seconds beside the baseline's"
    c,rows = f.study.cells, []
    done = c[(c.status == 'done') & (c.n.astype(str) == '100')]
    facts = dict(updates='steps', synthetic='synthetic', latents='distance_latent', pixels='distance_pixel',
                 gate='gate')
    # not on record, or not the same
    unknown = {('latents','pixel_mi'), ('pixels','random'), ('pixels','joint')}
    for arm in f.arms:
        own = done[done.arm == arm]
        values = dict(seconds=own.seconds[own.precision.isna()].mean(),
                      **{k: own[v].mean() for k,v in facts.items() if (k, arm) not in unknown})
        values |= {f'seeds_{SETS[d]}': (own.dataset == d).sum() for d in SETS}
        rows += [row(f'training/{slug(arm)}/{k}', v, 'studies/headline', k, n='100', arm=arm)
                 for k,v in values.items() if pd.notna(v)]
    for q in costs(replace(f, means=f.means[f.means.n == '100'])).itertuples():
        if pd.notna(q.relative):
            rows.append(row(f'price/{slug(q.arm)}/{SETS[q.dataset]}', q.relative, 'studies/headline',
                            'baseline = 1', dataset=q.dataset, arm=q.arm))
    plain = done[done.arm == 'baseline'].groupby('dataset')[['seconds','seconds_autoencoder']].mean()
    rows += [row(f'price/autoencoder/{SETS[d]}', plain.seconds_autoencoder[d]/plain.seconds[d],
                 'studies/headline', 'baseline = 1', dataset=d) for d in SETS]
    first = done[done.seed < 10].groupby(['arm','dataset']).distance_pixel.mean()
    rows += [row(f'way/{slug(a)}/{SETS[d]}', first[a, d]/first['mi', d], 'studies/headline', 'of MI',
                 dataset=d, arm=a) for a in ('random, as far', SEEN) for d in SETS]
    short = pd.read_csv(MEASUREMENTS/'price.csv').drop(columns='precision').median()
    took = read_study(STUDIES/'half').cells.pivot(index=['dataset','seed'], columns='arm', values='seconds')
    rows += [row('half:price/pgd_4_steps', (took['pgd, 4 steps']/took.mi_pgd).median(), 'studies/half',
                 'mi_pgd = 1')]
    return rows + [row(f'short_price/{a}', v, 'measurements/price.csv', 'baseline = 1', arm=a)
                   for a,v in short.items()]

def search():
    "Skill of every trial on validation images, and whether it was chosen"
    make = runpy.run_path(str(STUDIES/'make.py'))
    rows = []
    studies = dict(search=make['TRIALS'], search_more=make['MORE'], search_targeted=make['TARGETED'])
    for name,arms in studies.items():
        study = read_study(STUDIES/name)
        skill = make['skill'](study)
        auc = study.results.query("condition == 'clean' and measure == 'auc'").groupby('arm').value.mean()
        for arm,trials in arms.items():
            labels = [make['label'](arm, s) for s in trials]
            said = {max(labels, key=lambda k: auc[k]): 'best by AUC',
                    max(labels, key=lambda k: skill[k]): 'chosen'}
            for k in labels:
                rows.append(row(f'search/{k}', skill[k], f'studies/{name}', 'skill', seeds=2, arm=arm,
                                verdict=said.get(k, '')))
    return rows

def describe(f):
    "What each arm is, with the settings that the search chose: the text of the table of arms"
    arms = {a: dict(s) for a,s in f.study.config.arms.items()}
    return [row(f'arm/{slug(a)}', np.nan, 'studies/headline.toml', ARMS[s.pop('arm', a)].sentence, arm=a,
                condition=', '.join(f'{k} {v:.3g}' for k,v in s.items())) for a,s in arms.items()]


# Attacks, classes, single images, the hole

def suites():
    "The suite of attacks on single networks, and the rank of each among all of its arm"
    rows = []
    for name in ('suite','suite_again'):
        t = pd.read_csv(STUDIES/f'{name}.csv')
        rows += [row(f'{name}/{slug(q.arm)}/{SETS[q.dataset]}/{q.attack}', 100*q.balanced_accuracy,
                     f'studies/{name}.csv', 'percent', seeds=1, dataset=q.dataset, arm=q.arm,
                     verdict=q.verdict) for q in t[t.norm != 'L2'].itertuples()]
        seen = {r['id']: r['value'] for r in rows if r['id'].startswith(f'{name}/')}
        rows += [row(i.replace('/PGD', '/below'), v-seen[i.replace('/PGD', '/worst case')],
                     f'studies/{name}.csv', 'points', seeds=1) for i,v in seen.items() if i.endswith('/PGD')]
    return rows

def ranks(f):
    rows,w = [], Wide(f.results)
    for arm in ('baseline','mi','pgd','mi_fgsm','fgsm','fgsm, 8/255','pixel_mi'):
        for d in SETS:
            v = w.seeds(arm, d, '100', 'pgd4')
            rows.append(row(f'suite/{slug(arm)}/{SETS[d]}/rank', (v > v[0]).sum()+1, 'studies/headline',
                            f'of {len(v)}', dataset=d, arm=arm))
    return rows

def classes(f):
    "Recall of each class, thresholds, and networks that put nearly all images into one class"
    rows,c,wide = [], f.study.cells, Wide(f.results)
    done = c[(c.status == 'done') & (c.n.astype(str) == '100')]
    for d,name in SETS.items():
        here = done[done.dataset == d]
        found = {a: {s: f.study.predictions[i]
                     for s,i in here[here.arm == a].set_index('seed').id.items()} for a in f.arms}
        recall = {a: pd.DataFrame({s: class_profile(np.clip(p, 0, 1)[None], y).recall
                                   for s,(y,p) in own.items()}).T for a,own in found.items()}
        for a,own in found.items():
            p = class_profile(np.stack([np.clip(p, 0, 1) for _,p in own.values()]),
                              next(iter(own.values()))[0]).loc[1]
            rows += [row(f'{slug(a)}/{name}/100/{k}', 100*v, 'studies/headline', 'percent', seeds=len(own),
                         dataset=d, n='100', arm=a)
                     for k,v in dict(threshold=p.threshold, called=p.called).items()]
            for k in (0, 1):
                mean,lo,hi = interval(100*(recall[a][k]-recall['baseline'][k]).dropna())
                rows += [row(f'{slug(a)}-baseline/{name}/100/recall{k}', mean, 'studies/headline', 'points',
                             lo, hi, seeds=len(own), dataset=d, n='100', arm=a,
                             reference='baseline')]*(a != 'baseline')
            low = wide.seeds(a, d, '100', 'balanced') < .57
            rows.append(row(f'{slug(a)}/{name}/100/one_class', low.sum(), 'studies/headline', 'networks',
                            seeds=len(own), dataset=d, n='100', arm=a))
        rows += [row(f'baseline/{name}/100/recall{k}', 100*recall['baseline'][k].mean(), 'studies/headline',
                     'percent', dataset=d, n='100', arm='baseline') for k in (0, 1)]
        rows.append(row(f'share/{name}', 100*p.share, 'studies/headline', 'percent', dataset=d))
    return rows

def single_images():
    "Where several steps find more loss than one, by thirds of a batch"
    t = pd.read_csv(MEASUREMENTS/'where.csv')
    return [row(f"where/{q['by'].replace(' ', '_')}/{SETS[q['dataset']]}/{q['third']}",
                100*q['share of more'], 'measurements/where.csv', 'percent', dataset=q['dataset'])
            for _,q in t.iterrows()]

def hole():
    "The phantom with a hole: where images went, and the accuracy in it"
    arms,reach,rows = pd.read_csv(MEASUREMENTS/'hole.csv'), pd.read_csv(MEASUREMENTS/'hole_reach.csv'), []
    reach = reach[reach.radius == reach.radius.min()]
    for (h,a),own in reach.groupby(['hole','mover']):
        rows += [row(f'hole/{h}/{a}/{k}', own[v].mean(), 'measurements/hole_reach.csv', 'share',
                     seeds=own.seed.nunique(), arm=a)
                 for k,v in dict(before='share_before', after='share').items()]
    inside = arms.pivot(index=['hole','seed'], columns='arm', values='in accuracy')
    for h in ('edge','inside'):
        for a in inside:
            mean,lo,hi = interval(100*(inside.loc[h][a]-inside.loc[h].baseline))
            rows += [row(f'hole/{h}/{a}/accuracy', inside.loc[h][a].mean(), 'measurements/hole.csv', 'share',
                         seeds=5, arm=a)]
            rows += [row(f'hole/{h}/{a}-baseline', mean, 'measurements/hole.csv', 'points', lo, hi, seeds=5,
                         arm=a, reference='baseline')]*(a != 'baseline')
    return rows

def losses(f):
    "What is clearly worse or better than the baseline, of three arms, but for single severities; and counts"
    d = f.diffs[f.diffs.arm.isin(['mi','mi_default','mi_fgsm'])]
    d = d[~d.condition.str.startswith('severity') & (d.condition != 'PGD 0/255')]
    sign,times = np.where(d.measure.isin(['ece','nll']), -1, 1), np.where(d.measure == 'nll', 1, 100)
    d = d.assign(clearly=np.select([sign*np.where(sign > 0, d.hi, d.lo) < 0,
                                    sign*np.where(sign > 0, d.lo, d.hi) > 0], ['worse','better'], ''),
                 unit=np.where(times == 1, 'nats', 'points'),
                 **{k: (d[k]*times).round(5) for k in ('difference','lo','hi')})
    rows = [row(f'losses/{n}/{k}', (g.clearly == k).sum() if k else len(g), 'losses.csv',
                'of what was measured', n=n) for n,g in d.groupby('n') for k in ('worse','better','')]
    kept = d[d.clearly != ''].sort_values(['clearly','arm','dataset','condition','measure','n'],
                                          ascending=[False]+[True]*5)
    columns = ['clearly','arm','dataset','n','condition','measure','difference','lo','hi','unit','seeds']
    return rows, kept[columns]


def make(images=True # with the bootstrap of the headline's test images, a third of the time?
        ):
    "Both tables as they should lie beside this file: claims, losses"
    study = read_study(STUDIES/'headline')
    # without predictions it leaves the questions alone
    f = replace(findings(replace(study, predictions={})), study=study)
    kept = stored_predictions(study.cells, study.predictions) if images else None
    head = headline(f.results, study.config.headline, kept)
    count,lost = losses(f)
    rows = [*declared(main_study(f), head), *first_run(f), *other_studies(f),
            *published('official', 'breastmnist'), *published('official_xrays', 'pneumoniamnist'), *letter(),
            *trainings(f), *search(), *describe(f), *suites(), *ranks(f), *classes(f), *single_images(),
            *hole(), *count]
    claims = pd.DataFrame(rows).reindex(columns=COLUMNS)
    twice = claims.id[claims.id.duplicated()]
    if len(twice): raise SystemExit(f'two claims have the id {twice.iloc[0]}')
    claims[NUMBERS] = claims[NUMBERS].astype(float)
    claims.seeds = claims.seeds.astype('Int64')
    return claims, lost.reset_index(drop=True)

def changed(claims, file=HERE/'claims.csv', numbers=NUMBERS, atol=2e-3):
    "Ids whose `numbers` in `file` are not those of `claims`, to the rounding of another machine"
    old,new = pd.read_csv(file).set_index('id'), claims.set_index('id')
    ids = [*old.index.symmetric_difference(new.index)]
    both = old.index.intersection(new.index)
    was,now = (t.loc[both, numbers].astype(float) for t in (old, new))
    near = np.isclose(was, now, atol=atol, rtol=1e-4, equal_nan=True).all(axis=1)
    turned = old.verdict[both].fillna('') != new.verdict[both].fillna('')
    return ids + [*both[~near | turned.to_numpy()]]

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true',
                        help='write nothing; exit with 1 if a number is no longer what the studies give')
    claims,lost = make() if (args := parser.parse_args()) else None
    if args.check:
        ids = changed(claims)
        print(f'{len(claims)} claims, {len(ids)} changed', *ids[:20], sep='\n'); sys.exit(bool(ids))
    claims.to_csv(HERE/'claims.csv', index=False, float_format='%.5g')
    lost.to_csv(HERE/'losses.csv', index=False)
    print(f'{len(claims)} claims, {len(lost)} rows of losses and gains')


if __name__ == '__main__': main()
