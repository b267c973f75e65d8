"""Generators compared: `search` chooses settings, the others judge; all go on after a stop

    python generators.py search|labels|final|pixels|onset|hole [ROOT] [--part 0/2]

ROOT: the folder of MedMNIST's npz files. With --part several processes share the work. They write, beside
this file: generators_search.csv, a row per trial; generators_labels.csv, of a second search for diffusion;
generators_real.csv, a row per classifier trained on real images only; generators.csv, a row per synthetic
set, with the classifiers that were trained on it; generators_onset.csv, copies over the number of images;
generators_hole.csv, where images lie that were drawn from noise.

Everything that a seed draws is drawn anew with the next: images of a subset, autoencoder, generator,
classifiers. Arms of one seed share them, so they are compared in pairs.
"""
import fcntl, os, runpy, sys, time
from functools import cached_property
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch

from tsynd.audit.diversity import vendi_ratio
from tsynd.audit.encoders import make_encoders
from tsynd.audit.privacy import privacy_tests, privacy_verdicts
from tsynd.audit.utilities import Trainer
from tsynd.core import metrics
from tsynd.core.defaults import ClassifierSettings
from tsynd.data import load_data, phantom, Split, subset
from tsynd.experiments.cell import Witness
from tsynd.generation import labels_like, make_generator, sample, targeted_sample
from tsynd.models import predict, train_autoencoder

HERE = Path(__file__).parent
SETS = 'pneumoniamnist','breastmnist','phantom'
AE_STEPS,MOST = 600,1000        # of the autoencoder; synthetic images at most

def whole(name, root): # all images of a set
    if name == 'phantom': return phantom(n_train=2000, n_val=500, n_test=1000)
    return load_data(name, root)

def done(file, *keys): # what is there
    if not (HERE/file).exists(): return set()
    t = pd.read_csv(HERE/file, dtype=str)
    return set(t[list(keys)].itertuples(index=False, name=None))

def add(file, *rows):
    with open(HERE/file, 'a') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        pd.DataFrame(rows).round(5).to_csv(f, header=not f.tell(), index=False)

def mine(items, part): return [v for i,v in enumerate(items) if i % part[1] == part[0]]

def kept(g): return next(r for r in g.history if r['kept'])


# The search: four trials for each generator, judged on validation images, with a subset that `final` has not.
# One set, since ten hours of a core have to do for all of it. At 1,000 images the first and the last trial of
# a GAN are one training; those of cpd_gan had other random numbers, and differ by .004 of AUC. Less counts as
# equal, and the cheaper one is chosen.

TRIALS = {'diffusion': [{}, dict(guidance=2.), dict(width=48), dict(updates=1062)],
          'cpd_gan': [{}, dict(lr=6e-4), dict(width=48), dict(passes=54.)],
          'prog_gan': [{}, dict(lr=6e-4), dict(width=48), dict(passes=54.)]}
# the defaults before the search
BEGAN = {'diffusion': dict(lr=1e-3, guidance=1., updates=800), 'cpd_gan': {}, 'prog_gan': dict(lr=2e-4)}
SEARCH_SEED,SEARCH_N = 100,1000

def measures(data, synthetic, test, counts, seed): # of a classifier
    sets = dict(real=data.train, synthetic=synthetic, test=test)
    row = Trainer(sets, list(data.classes), data.task, ClassifierSettings(), False, 'cpu')(counts, seed)[0]
    return {k: row[k] for k in ('auc','balanced_accuracy')}

def trial(name, kind, settings, root):
    data,start = subset(whole(name, root), SEARCH_N, SEARCH_SEED),time.process_time()
    ae = train_autoencoder(data, AE_STEPS, seed=SEARCH_SEED)
    g = make_generator(kind, ae=ae, **BEGAN[kind] | settings).fit(data, SEARCH_SEED)
    seconds = time.process_time()-start
    made = sample(g, labels_like(data.train.y, SEARCH_N, 0), SEARCH_SEED)
    found = [measures(data, made, data.val, dict(synthetic=SEARCH_N), SEARCH_SEED+k) for k in range(3)]
    return dict(set=name, generator=kind, settings=repr(settings), **pd.DataFrame(found).mean(),
                updates=g.updates, kept=int(kept(g)['updates']), onset=kept(g)['onset'],
                onset_end=g.history[-1]['onset'], validation=kept(g)['validation'], seconds=seconds)

def search(root, part):
    todo = [(SETS[0], k, t) for k,ts in TRIALS.items() for t in ts]
    for s,k,t in mine(todo, part):
        if (s, k, repr(t)) not in done('generators_search.csv', 'set', 'generator', 'settings'):
            add('generators_search.csv', trial(s, k, t, root))


# The second search: on the other two sets diffusion did not know the labels. Does a classifier of real images
# agree with them, and what is learned from the images? One training for all guidances

AGAIN = [('breastmnist', dict(updates=800, lr=1e-3), (1.,2.)), ('breastmnist', dict(updates=800), (1.,2.)),
         ('phantom', dict(updates=1062, lr=1e-3), (1.,2.)), ('phantom', dict(updates=1062), (1.,2.)),
         ('phantom', dict(updates=2125), (2.,)), ('phantom', dict(updates=2125, lr=6e-3), (2.,))]

def labels(root, part):
    for name,settings,strengths in mine(AGAIN, part):
        if (name, repr(settings)) in done('generators_labels.csv', 'set', 'settings'): continue
        p = Pair(name, 'full', SEARCH_SEED, root)
        g = make_generator('diffusion', ae=p.ae, **settings).fit(p.data, SEARCH_SEED)
        for w in strengths:
            g.s.guidance = w
            s = sample(g, labels_like(p.data.train.y, p.m, 0), SEARCH_SEED)
            agrees = metrics(s.y, predict(p.model, s.x).softmax(1), p.data.task)['auc']
            found = [measures(p.data, s, p.data.val, dict(synthetic=p.m), k) for k in range(2)]
            add('generators_labels.csv', dict(
                set=name, settings=repr(settings), guidance=w, updates=g.updates,
                validation=kept(g)['validation'], labels=agrees, **pd.DataFrame(found).mean()))


# The final study; the searches chose what is now the default

SEEDS = 3       # ten hours of a core do not allow more

class Pair:
    "What all arms of a set, a number of images and a seed share"
    def __init__(self, name, n, seed, root):
        self.name,self.n,self.seed = name,n,seed
        everything = whole(name, root)
        self.data = everything if n == 'full' else subset(everything, int(n), seed)
        self.m = min(MOST, len(self.data.train))
        others = torch.ones(len(everything.train), dtype=torch.bool)
        others[self.data.train.index] = False
        self.holdout = everything.val if n == 'full' else everything.train.select(others.nonzero()[:,0])
        self.made = {}

    @cached_property
    def ae(self): return train_autoencoder(self.data, AE_STEPS, seed=self.seed)
    @cached_property
    def trainer(self):
        d = self.data
        return Trainer(dict(real=d.train, test=d.test), list(d.classes), d.task, ClassifierSettings(), False,
                       'cpu')
    @cached_property
    def model(self): # trained on the real images
        train = self.trainer.images(dict(real=len(self.data.train)), self.seed)
        return self.trainer.learner(train, self.seed, Witness()).model.eval()
    @cached_property
    def encoders(self): return make_encoders(self.holdout.x, True, self.seed)
    @property
    def labels(self): return labels_like(self.data.train.y, self.m, self.seed)
    @property
    def key(self): return dict(set=self.name, n=self.n, seed=self.seed)

    def classifier(self, made, /, **counts):
        return measures(self.data, made, self.data.test, counts, self.seed)

def real_rows(p): # classifiers without a generator
    R,ae = p.data.train,p.ae
    n = len(R)
    with torch.no_grad(): x = torch.cat([ae.decode(ae.encode(b.float()/255)) for b in R.x.split(256)])
    again = Split((255*x).round().to(torch.uint8), R.y, R.index)
    for arm,s,counts in (('real', R, dict(real=n)), ('duplicates', R, dict(real=n+p.m)),
                         ('reconstructed', again, dict(synthetic=n))):
        yield dict(p.key, arm=arm, **p.classifier(s, **counts))

def made_by(p, arm, **settings): # a synthetic set, and facts about it
    start = time.process_time()
    if arm == 'two_generators':
        a,b = (p.made[k] for k in ('diffusion','cpd_gan'))
        turn = (torch.arange(len(a)) % 2 == 0).view(-1,1,1,1)
        return Split(torch.where(turn, a.x, b.x), a.y, a.index), {}
    if arm.startswith('targeted'):
        objective = arm.removeprefix('targeted_')
        s = targeted_sample(p.made['generator'], p.model, p.labels, p.seed, objective=objective, radius=.3)
        t = s.table
        facts = dict(sampling=time.process_time()-start, gate=(t.gate > 0).mean(),
                     mi_before=t.mi_before.mean(), mi_after=t.mi_after.mean())
        return s, facts
    g = make_generator(arm, ae=None if settings.get('space') == 'pixels' else p.ae, **settings)
    g.fit(p.data, p.seed)
    facts = dict(updates=g.updates, kept=int(kept(g)['updates']), onset=kept(g)['onset'],
                 onset_end=g.history[-1]['onset'], fitting=time.process_time()-start)
    start = time.process_time()
    s = sample(g, p.labels, p.seed)
    if arm == 'diffusion': p.made['generator'] = g
    return s, facts | dict(sampling=time.process_time()-start)

def judged(p, s): # privacy and variety
    tests = privacy_tests(s.x, p.data.train.x, p.holdout.x, p.encoders, p.seed)[0]
    verdicts = privacy_verdicts(tests, min(len(p.data.train), len(p.holdout)))
    of = lambda e, k, c: tests[(tests.encoder == e) & (tests.test == k)][c].iloc[0]
    e = p.encoders[-1]
    vendi = vendi_ratio(e(p.data.train.x), e(s.x), p.data.train.y, s.y)
    return dict({f'nearer_{e.name}': of(e.name, 'nearer', 'value') for e in p.encoders},
                member=of(e.name, 'membership', 'value'), copies_verdict=verdicts['copies'],
                membership_verdict=verdicts['membership'],
                **{f'vendi_{c}': v.value for c,v in vendi.items() if c != 'whole'})

COLUMNS = ['set','n','seed','arm','space','auc','balanced_accuracy','with_auc','with_balanced_accuracy',
           'nearer_pixels','nearer_random','member','copies_verdict','membership_verdict','vendi_0','vendi_1',
           'updates','kept','onset','onset_end','fitting','sampling','gate','mi_before','mi_after']

def set_row(p, arm, **settings):
    s,facts = made_by(p, arm, **settings)
    p.made[arm] = s
    alone = p.classifier(s, synthetic=p.m)
    both = p.classifier(s, real=len(p.data.train), synthetic=p.m)
    row = dict(p.key, arm=arm, space=settings.get('space', 'latents'), **alone,
               **{f'with_{k}': v for k,v in both.items()}, **judged(p, s), **facts)
    return pd.Series(row).reindex(COLUMNS).to_dict()

def pairs(): # there and back, so that two processes have as much to do
    once = [(s, n) for n in ('full','200') for s in SETS]
    return [(*pair, k) for k in range(SEEDS) for pair in once[::1-2*(k%2)]]

MADE = 'diffusion','cpd_gan','prog_gan','two_generators','targeted_mi'

def final(root, part):
    for s,n,k in mine(pairs(), part):
        key,p = (s, n, str(k)),Pair(s, n, k, root)
        if (*key, 'reconstructed') not in done('generators_real.csv', 'set', 'n', 'seed', 'arm'):
            add('generators_real.csv', *real_rows(p))
        there = done('generators.csv', 'set', 'n', 'seed', 'arm', 'space')
        missing = [a for a in MADE if (*key, a, 'latents') not in there]
        again = missing and missing != [*MADE]                    # begun: what the others need is made again
        for arm in MADE:
            if arm not in missing and not (again and arm in ('diffusion','cpd_gan')): continue
            if arm in missing: add('generators.csv', set_row(p, arm))
            else: p.made[arm] = made_by(p, arm)[0]

def pixels(root, part): # an hour of a core each in the second paper's way, so fewer seeds
    todo = [('pneumoniamnist', 'full', k, a) for k in range(3) for a in ('cpd_gan','prog_gan')]
    todo += [('phantom', 'full', 0, a) for a in ('cpd_gan','prog_gan')]
    for s,n,k,arm in mine(todo, part):
        if (s, n, str(k), arm, 'pixels') not in done('generators.csv', 'set', 'n', 'seed', 'arm', 'space'):
            add('generators.csv', set_row(Pair(s, n, k, root), arm, space='pixels', updates=1000))


# The onset of overfitting over the number of images; `final` has 200 and all

def onset(root, part):
    todo = [(n, k, a) for k in range(2) for n in (50,100,500,1000) for a in ('diffusion','cpd_gan')]
    for n,k,arm in mine(todo, part):
        if (str(n), str(k), arm) in done('generators_onset.csv', 'n', 'seed', 'arm'): continue
        p = Pair('pneumoniamnist', n, k, root)
        s,facts = made_by(p, arm)
        add('generators_onset.csv', dict(p.key, arm=arm, **facts, **judged(p, s)))


# The hole: phantoms with a region left out, and where images from noise lie, by the judge of hole.py

def hole(root, part):
    h = runpy.run_path(str(HERE/'hole.py'))
    for seed in mine(range(SEEDS), part):
        there = done('generators_hole.csv', 'seed', 'hole', 'mover', 'radius')
        if (str(seed), 'edge', 'mi', '1.0') in there: continue
        for name,region in h['HOLES'].items():
            data = phantom(n_train=2000, n_val=500, n_test=10, seed=seed, holes={name: region})
            p = Pair.__new__(Pair)
            p.name,p.n,p.seed,p.data = name,'2000',seed,data
            judge = h['train_judge']([p.ae], seed)
            g = make_generator('diffusion', ae=p.ae).fit(data, seed)
            labels = labels_like(data.train.y, 400, seed)
            for mover,radius in (('reconstruction',.3), ('random',.3), ('random',1.), ('mi',.3), ('mi',1.)):
                s = targeted_sample(g, p.model, labels, seed, objective=mover, radius=radius)
                f = h['judged'](judge, s.x.float()/255)
                found = h['inside'](f, name)
                add('generators_hole.csv', dict(
                    seed=seed, hole=name, mover=mover, radius=radius, share=found.float().mean().item(),
                    distance=h['distance'](f, name).mean().item(), gate=(s.table.gate > 0).mean(),
                    true_label=(h['phantom_labels'](f) == s.y)[found].float().mean().item()))

def main():
    torch.set_num_threads(1)
    args,part = sys.argv[1:],(0, 1)
    if '--part' in args:
        at = args.index('--part')
        part = tuple(map(int, args[at+1].split('/')))
        del args[at:at+2]
    commands = dict(search=search, labels=labels, final=final, pixels=pixels, onset=onset, hole=hole)
    commands[args[0]](args[1] if args[1:] else None, part)

if __name__ == '__main__': main()
