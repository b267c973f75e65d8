"""How often are the verdicts wrong, where the answer is known?

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/audit_errors.py [seeds]

Every control of `tsynd.generation`, as many images as there are training and hold-out images: 50, 200 and
500 phantoms a side, and 200 of BreastMNIST and PneumoniaMNIST, whose published parts are put together,
cleared of near-duplicates and drawn anew with every seed. Pixels, random filters and an autoencoder trained
on the hold-out images, once a seed. Writes the p of every test of privacy to audit_errors.csv beside it, as
they come, from which the chapter makes verdicts; and for some controls the verdicts on looks, variety and
labels to audit_answers.csv. The same command goes on."""
import os, sys, time
from functools import cache, partial
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch

from tsynd.audit import (
    label_agreement, make_encoders, near_duplicates, of_measures, privacy_tests, same_proportions,
    two_sample_classifier, vendi_ratio, WHOLE)
from tsynd.data import ImageData, load_data, phantom, Split
from tsynd.generation import generators, make_generator, sample

OUT = Path(__file__).with_suffix('.csv')
ANSWERS = OUT.with_name('audit_answers.csv')
SIZES = [('phantom',50), ('phantom',200), ('breastmnist',200), ('pneumoniamnist',200), ('phantom',500)]
NOISES = .02, .05, .2       # of `jitter`, besides its own .1

JUDGED = 'fresh','jitter','collapsed','wrong_labels','half_junk_half_copies' # on looks and labels

def asked(n): # (label, name, settings) of controls that are a matter of privacy
    innocent = 'collapsed','wrong_labels'
    controls = [(k, k, {}) for k,e in generators().items() if e.control and k not in innocent]
    if n > 200: return controls
    return controls + [(f'jitter {s}', 'jitter', dict(noise=s)) for s in NOISES] + [
        (f'moved_copies {m}', 'moved_copies', dict(move=m)) for m in ('flipped','shifted')]

@cache
def pool(name):
    "All images of a set, without near-duplicates"
    d = load_data(name)
    x,y = (torch.cat([getattr(s, k) for s in (d.train, d.val, d.test)]) for k in ('x','y'))
    twice = torch.tensor(sorted({*near_duplicates(x).other_image}), dtype=torch.long)
    keep = torch.ones(len(x), dtype=torch.bool); keep[twice] = False
    print(f'{name}: {len(twice)} of {len(x)} images left out as near-duplicates', flush=True)
    return d, x[keep], y[keep]

def drawn(name, n, seed):
    "Training, unseen (val) and hold-out (test) images, n of each, exchangeable"
    if name == 'phantom': return phantom(n_train=n, n_val=n, n_test=n, holes=False, seed=seed)
    d,x,y = pool(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:3*n].split(n)
    return ImageData(name, d.task.name, d.classes, *(Split(x[i], y[i], i) for i in order))

def finished(out): # (dataset, n, seed, control) that are in a table
    if not out.exists(): return set()
    return {*pd.read_csv(out, usecols=['dataset','n','seed','control']).itertuples(index=False, name=None)}

def append(out, rows, **where):
    table = pd.DataFrame(rows).assign(**where)
    table = table[[*where, *table.columns.difference(where, sort=False)]]
    table.to_csv(out, mode='a', header=not out.exists(), index=False, float_format='%.4g')

def controlled(data, seed, kind, **settings):
    return sample(make_generator(kind, **settings).fit(data, seed), data.val.y, seed)

def deciding(e, real, s, seed): # what decides about looks, variety and labels, in one encoder
    R,S = e(real.x),e(s.x)
    found = {('fidelity','told apart',WHOLE): two_sample_classifier(R, S, permutations=499, seed=seed)}
    variety = vendi_ratio(R, S, real.y, s.y, seed=seed, draws=30)
    found |= {('diversity','Vendi ratio',c): o for c,o in variety.items()}
    found |= {('labels','agreement',c): o for c,o in label_agreement(R, real.y, S, s.y, seed).items()}
    return [dict(question=q, measure=m, group=c, encoder=e.name, **vars(o)) for (q,m,c),o in found.items()]

def answers(encoders, data, s, seed): # verdicts on them
    s = same_proportions(data.train, s, seed)
    table = pd.DataFrame([r for e in encoders for r in deciding(e, data.train, s, seed)])
    found = {k: of_measures(table, k) for k in ('fidelity','diversity','labels')}
    return [dict(question=k, verdict=v.verdict, value=v.value) for k,v in found.items()]

def main(seeds=20, private=1): # private: 0 leaves the tests of privacy out
    torch.set_num_threads(1)
    done,judged = finished(OUT),finished(ANSWERS)
    for seed in range(int(seeds)):
        for name,n in SIZES:
            todo = [a for a in asked(n) if int(private) and (name, n, seed, a[0]) not in done]
            more = [k for k in JUDGED if (name, n, seed, k) not in judged]
            if not todo and not more: continue
            start,data = time.time(),drawn(name, n, seed)
            encoders = make_encoders(data.test.x, quick=not todo, seed=seed)    # no labels, so no classifier
            images = partial(controlled, data, seed)
            for label,kind,settings in todo:
                x = images(kind, **settings).x
                tests,_ = privacy_tests(x, data.train.x, data.test.x, encoders, seed)
                p = tests.pivot(index='encoder', columns='test', values='p').reset_index()
                append(OUT, p, dataset=name, n=n, seed=seed, control=label)
            for kind in more:
                append(ANSWERS, answers(encoders[:2], data, images(kind), seed), dataset=name, n=n, seed=seed,
                       control=kind)
            print(name, n, seed, f'{time.time()-start:.0f} s', flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
