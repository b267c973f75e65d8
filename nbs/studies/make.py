"""The configurations of the studies in this folder, in the order in which they are made and run.

    python nbs/studies/make.py NAME

rate             writes rate.toml: four learning rates for the baseline; the best is used in all arms
search           reads the finished rate and writes search.toml: four settings for each arm that a declared
                 question names
headline         reads the finished search and writes headline.toml
official         writes official.toml: the protocol of MedMNIST's authors, all training images, the package
                 as it is shipped
official_xrays   writes official_xrays.toml: the same on PneumoniaMNIST, for a GPU
full             reads headline.toml and writes full.toml: the arms of the attack suite on all training images
search_more      reads the finished rate and writes search_more.toml: four settings for each of five more arms
more             reads the finished search_more and adds those arms to headline.toml
wide             adds adversarial training in a box of 8/255 to headline.toml
far              adds random steps that go as far as those of MI to headline.toml
wide_mi          adds MI together with a single-step attack in a box of 8/255 to headline.toml
far_pixels       adds random steps that go as far as those of MI in the decoded image to headline.toml
search_targeted  reads the finished rate and writes search_targeted.toml: four settings of mi_pgd
targeted         reads the finished search_targeted and adds mi_pgd to headline.toml
precision        reads headline.toml and writes precision.toml: MI again, in float32
same             reads headline.toml and writes same.toml: MI at 100 images in float32
half             reads headline.toml and writes half.toml: mi_pgd and two controls that spend as many steps
search_pool      writes search_pool.toml: four settings for each of six arms that learn from a pool
pool             reads the finished search_pool and writes pool.toml: 50 and 100 labels, the rest without

Each is run by `tsynd study nbs/studies/X.toml --out nbs/studies/X`. Rate and search look at validation
images (78 and 100 of them) of seeds that the headline does not use. All arms have the same number of
trials, on the same two seeds of both data sets.

The criterion, declared before anything was run: skill on clean images, 2 AUC - 1, plus skill under PGD
2/255, 2 balanced accuracy - 1 but at least 0, averaged over data sets and seeds. A classifier that has
learned nothing has no skill in either. Ties go to the setting that comes first.

Not searched: two controls, as random steps have the settings of MI, so that they are comparable at the
same distance, and reconstruction has MI's weight; mi_default, the package as it is shipped; and "baseline,
longer", which trains as long as MI and its autoencoder take.

The declared questions are asked at 100 images, where the search was; 50 and 200 are description. Between
search and headline two things changed for speed: autoencoders train in bfloat16 (the same PSNR to .01 dB),
and attacks climb a ladder of radii.

The headline was run twice, from the same file. The first run, kept in uneven/, cut an epoch into batches
of 32, so that 100 images ended with a batch of four; that showed when the baseline's AUC at 100 images
lay below that at 50. Since then an epoch is dealt evenly over its batches (100 images are four of 25),
and headline/ holds the second run, with the same seeds, arms, settings and questions. Rate and search
were not repeated: what they chose was chosen with the batch of four. To run uneven/ again, take the
package as it was at commit 6c4ec8d.

The two arms of wide were added when ten seeds of the second run had been seen, to ask whether it
is its larger steps that make MI climbed in the pixels so hard to attack. They have the settings
that the search chose for a box of 4/255, no declared question names them, and they are measured
like all others, at up to 8/255.

The arm of far was added when all results at 100 images were known. "random" copies the distances of
MI in the network that it trains itself, and there MI goes little more than half as far as in a
training of its own (.54 on the breast images, .62 on the X-rays, by the cells on record). 1.75 lies
between the factors that make up for it.

The arm of wide_mi came last. With a box of 4/255, MI and the single-step attack together had missed
PGD training by more than the 3 points that were the aim. Is it the box? Its other settings are those
that the search chose for 4/255.

Cells of 50 and 200 images were made on two machines, and the processor of the second multiplies no
bfloat16, so it trained in float32; each cell says which. precision asks what that changes: MI once more in
float32, with the seeds, subsets, initial weights and batches of cells that were trained in bfloat16. Its
three seeds were declared before it was run.

The arm of far_pixels came after that, when a reader had noticed that "random, as far" goes as far in the
latents, but its images move little more than half as far (breast) to two thirds as far (X-rays) in the
pixels, where attacks act. 2.8 lies between the factors that would make up for it if pixels moved in
proportion (3.2 and 2.5, by the cells on record). Ten seeds, in float32.

same was added when a reader had objected that MI in bfloat16 is compared there with random steps in
float32, where MI seems to gain a point on perturbed X-rays. It is MI in float32, with the ten seeds of
far_pixels, the X-rays first. Declared before it was run: is MI ahead of those random steps on the X-rays,
in AUC on perturbed and in balanced accuracy on corrupted ones?

mi_pgd is what single images suggested when TSynD with a single-step attack had missed its aim, to be
within 3 points of PGD training at 4/255. During single-step training (nbs/measurements/where.py, seeds of
the search) most of what seven steps find beyond one is found in the third of the images with the highest
MI: three quarters on the X-rays, three fifths on the breast images. So several steps there, one elsewhere.
It has as many trials as the others, on validation images, with the criterion above; the weight of the
attacked images is that of PGD training. Declared before any of its cells was run: at 100 images, on both
sets, is it within 3 points of pgd in balanced accuracy under PGD 4/255, not clearly behind in AUC on clean
and balanced accuracy on corrupted images, and cheaper, autoencoder included where it needs one?

half was added when all of that was known: is it MI that helps mi_pgd, or only how many steps it takes? All
of it in float32, on one machine: mi_pgd again, the same steps on a half drawn by lot (random_pgd), and PGD
training with four steps everywhere, which is what mi_pgd takes on average. Declared before it was run: on
each set, does mi_pgd differ from either of them in balanced accuracy under PGD 4/255? Seeds are run whole,
in their order, until the machine's time is over, and not until something is found.

search_pool and pool ask another question: a hundred labels, and all other training images without theirs.
Learning rate, updates, network and attacks are those of the headline. Declared before a cell was run: at 50
and at 100 labels, on both sets, twelve seeds, is targeted_consistency ahead of mean_teacher, of
random_consistency, of reconstruction_consistency, of vat and of the baseline, and pool_ae of mi, in AUC on
clean images, in AUC on perturbed ones and in balanced accuracy under PGD 2/255? The criterion of its search
is the sum of three skills: 2 AUC - 1, clean and perturbed, and 2 balanced accuracy - 1, but at least 0, under
PGD 2/255, on validation images of seeds 100 and 101, as many as there are labels. random_consistency and
reconstruction_consistency have the settings of targeted_consistency, and mi those of pool_ae. What is
measured is the classifier as it is at the end of a training, not its moving average. All of it in float32,
with autoencoders of the package's defaults. Added after the search, before a cell of pool was run:
contrastive takes the better of its settings with 150 updates of the pool, since 600 bring .03 of skill for
three times the time, more than eight core-hours allow; and contrastive_vat is the two together that did best
alone, with the settings of both.

The five arms of search_more were added when ten seeds of the others had been seen. No declared question
names them, they are description; their trials, criterion and seeds are those of the others, and were
declared before any of their cells was run."""
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from tsynd.core import AutoencoderSettings
from tsynd.experiments import (
    Cell, cell_data, HEADLINE, read_config, read_study, StudyConfig, to_toml, train_cell, UNWRITTEN)
from tsynd.reports import PROTOCOL

HERE = Path(__file__).parent
BOTH = ['breastmnist', 'pneumoniamnist']

def grid(**values): return [dict(zip(values, v)) for v in product(*values.values())]

TRIALS = dict(
    **{a: grid(weight=[1., 4.], radius=[.3, .6]) for a in ('mi', 'entropy')},
    cross_entropy=grid(weight=[1., 4.], radius=[.2, .3]), pixel_mi=grid(weight=[1., 4.], radius=[.03, .06]),
    pgd=grid(weight=[1., 4.], steps=[3, 7]), mi_fgsm=grid(weight=[1., 4.], attack_weight=[1., 4.]))

MORE = dict(mixup=grid(alpha=[.1, .2, .4, .8]), trivialaugment=grid(p=[.25, .5, .75, 1.]),
            fgsm=grid(weight=[1., 2., 4., 8.]), joint=grid(weight=[1., 4.], radius=[.15, .3]),
            mi_mixup=grid(weight=[1., 4.], radius=[.3, .6]))

TARGETED = dict(mi_pgd=grid(weight=[0., 1.], part=[1/3, 1/2]))

POOL = dict(
    pool_ae=TRIALS['mi'], mean_teacher=grid(weight=[3., 10.], relation=[0., .3]),
    fixmatch=grid(weight=[.3, 1.], threshold=[.8, .95]),
    contrastive=grid(pool_updates=[150, 600], temperature=[.2, .5]),
    targeted_consistency=grid(weight=[3., 10.], radius=[.3, .6]),
    vat=grid(weight=[1., 4.], radius=[.03, .06]))

SHORT = dict(pool_updates=150, temperature=.2)   # the better of two

DEFAULT_AE = dict(ae_steps=AutoencoderSettings.steps, ae_bs=AutoencoderSettings.bs)

def label(arm, s): return ', '.join([arm, *(f'{k} {v:.3g}' for k,v in s.items())])

def trials(name, arms, seeds, **kw):
    return StudyConfig(
        name, BOTH, [100], seeds, {label(a, s): dict(arm=a, **s) for a,ss in arms.items() for s in ss},
        first_seed=100, split='val', attack_n=100, eps=[2], pgd_steps=10, corruptions=[], **UNWRITTEN, **kw)

def finished(name):
    study = read_study(HERE/name)
    left = (len(study.config.arms)*len(BOTH)*study.config.seeds - (study.cells.status == 'done').sum()
            if len(study.cells) else 'all')
    if left:
        sys.exit(f'{left} cells of {name} are not done; '
                 f'run tsynd study nbs/studies/{name}.toml --out nbs/studies/{name}')
    return study

def skill(study, *more):
    "The criterion for each trial of a finished study; `more`: other conditions whose AUC counts"
    r = study.results.pivot_table(index=['arm','dataset','seed'], columns=['condition','measure'],
                                  values='value')
    s = 2*r['clean','auc']-1 + (2*r['PGD 2/255','balanced_accuracy']-1).clip(lower=0)
    for k in more: s = s + 2*r[k,'auc']-1
    return s.groupby('arm').mean()

RATES = dict(baseline=grid(lr=[2e-3, 1e-3, 4e-3, 8e-3]))

def best(study, trials, *more):
    s = skill(study, *more)
    return {a: max(ss, key=lambda v: s[label(a, v)]) for a,ss in trials.items()}

def rate(): return trials('rate', RATES, 3)

def search(name='search', arms=TRIALS):
    return trials(name, arms, 2, lr=best(finished('rate'), RATES)['baseline']['lr'])

def search_more(): return search('search_more', MORE)

def search_targeted(): return search('search_targeted', TARGETED)

def more(name='search_more', arms=MORE):
    c = read_config(HERE/'headline.toml')
    return replace(c, arms=c.arms | best(finished(name), arms))

def targeted(): return more('search_targeted', TARGETED)

def wide(*arms):
    c = read_config(HERE/'headline.toml')
    return replace(c, arms=c.arms | {f'{a}, 8/255': dict(c.arms[a], arm=a, eps=8/255)
                                     for a in arms or ('pgd', 'fgsm')})

def wide_mi(): return wide('mi_fgsm')

def far(label='random, as far', times=1.75):
    c = read_config(HERE/'headline.toml')
    return replace(c, arms=c.arms | {label: dict(c.arms['random'], arm='random', times=times)})

def far_pixels(): return far('random, as far in pixels', 2.8)

def baseline_seconds(c):
    "What one training without synthesis takes on this machine"
    c,cell = replace(c, arms=dict(baseline={})),Cell(BOTH[0], 100, c.first_seed, 'baseline')
    return train_cell(c, cell, cell_data(c, cell)[0], None)[1]['seconds']

def headline():
    study = finished('search')
    arms = dict(baseline={}, **best(study, TRIALS))
    arms |= dict(random=arms['mi'], reconstruction=dict(weight=arms['mi']['weight']), mi_default={})
    mi = label('mi', arms['mi'])
    cost = study.cells.groupby('arm')[['seconds','seconds_autoencoder']].median().loc[mi].sum()
    # to be run on the machine that ran the search
    times = float(cost/baseline_seconds(study.config))
    arms['baseline, longer'] = dict(arm='baseline', longer=round(times, 1))
    family = [*HEADLINE, ('mi', 'baseline, longer', 'clean', 'auc')]
    return StudyConfig('headline', BOTH, [100, 50, 200], 12, arms, headline=[[*c, 100] for c in family],
                       lr=study.config.lr, **UNWRITTEN)

def official():
    "No search, so MI has the package's defaults; attacks are a glance at 100 images, not a measurement"
    return StudyConfig('official', BOTH[:1], ['full'], 5, dict(baseline={}, mi_default={}), **PROTOCOL,
                       headline=[['mi_default','baseline','clean','auc']], attack_n=100, eps=[4],
                       corruptions=[], **UNWRITTEN)

def official_xrays():
    "The same protocol, five seeds, on a data set that is too large for it on a processor"
    return replace(official(), name='official_xrays', datasets=BOTH[1:], device='cuda')

def precision():
    "What float32 instead of bfloat16 changes, for the arm that all is about"
    c = read_config(HERE/'headline.toml')
    return replace(c, name='precision', n=[50, 200], seeds=3, headline=[], arms=dict(mi=c.arms['mi']),
                   bf16=False)

def same():
    "MI in the precision of the random steps that go as far in pixels"
    return replace(precision(), name='same', n=[100], seeds=10)

def half():
    "Is it MI? Several steps where it is highest, on a half drawn by lot, and as many in all everywhere"
    c = read_config(HERE/'headline.toml')
    arms = dict(mi_pgd=c.arms['mi_pgd'], random_pgd=dict(part=c.arms['mi_pgd']['part']),
                **{'pgd, 4 steps': dict(c.arms['pgd'], arm='pgd', steps=4)})
    return replace(same(), name='half', seeds=12, eps=[4], arms=arms,
                   headline=[['mi_pgd', a, 'PGD 4/255', 'balanced_accuracy', 100] for a in list(arms)[1:]])

def search_pool():
    c = trials('search_pool', POOL, 2, lr=best(finished('rate'), RATES)['baseline']['lr'])
    return replace(c, pool=True, bf16=False, **DEFAULT_AE)

def pool():
    "What a pool brings: the declared questions, at 50 and at 100 labels"
    found = best(finished('search_pool'), POOL, 'perturbed')
    found['contrastive'] = SHORT
    targeted = found['targeted_consistency']
    arms = dict(baseline={}, mi=found['pool_ae'], **found, random_consistency=targeted,
                reconstruction_consistency=dict(weight=targeted['weight']),
                contrastive_vat=found['contrastive'] | found['vat'])
    pairs = [('targeted_consistency', a) for a in ('mean_teacher','random_consistency',
             'reconstruction_consistency','vat','baseline')] + [('pool_ae','mi')]
    asked = ('clean','auc'), ('perturbed','auc'), ('PGD 2/255','balanced_accuracy')
    return StudyConfig('pool', BOTH, [100, 50], 12, arms, headline=[[*p, *q] for p in pairs for q in asked],
                       lr=read_config(HERE/'search_pool.toml').lr, pool=True, bf16=False, eps=[2],
                       corruptions=[], **DEFAULT_AE)

def full():
    """All training images of both sets, three times as many updates (six epochs of PneumoniaMNIST),
    the settings of 100 images; no questions, no search"""
    c = read_config(HERE/'headline.toml')
    return replace(c, name='full', n=['full'], seeds=5, updates=900, headline=[],
                   arms={a: c.arms[a] for a in ('baseline','mi_default','mi','pgd','mi_fgsm')})


if __name__ == '__main__':
    torch.set_num_threads(1)
    makers = [rate, search, headline, official, official_xrays, full, search_more, more, wide, far, wide_mi,
              far_pixels, search_targeted, targeted, precision, same, half, search_pool, pool]
    what = {f.__name__: f for f in makers}[sys.argv[1]]()
    (HERE/f'{what.name}.toml').write_text(to_toml(what))
