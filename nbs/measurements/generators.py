"""Generators compared: `search` chooses settings, `final` judges them; both go on where they were stopped

    python generators.py search [ROOT] [--part 0/2]
    python generators.py final [ROOT] [--part 0/2]

ROOT: the folder of MedMNIST's npz files. With --part several processes share the work.
"""
import csv, fcntl, os, sys, time
from dataclasses import replace
from pathlib import Path

import torch

from tsynd.audit.utilities import Trainer
from tsynd.core.defaults import ClassifierSettings
from tsynd.data import load_data, phantom, subset
from tsynd.generation import labels_like, make_generator, sample
from tsynd.models import train_autoencoder

HERE = Path(__file__).parent

def whole(name, root): # all images of a set
    if name == 'phantom': return phantom(n_train=2000, n_val=500, n_test=1000)
    return load_data(name, root)

def trained(data, synthetic, test, counts, seed): # measures of a classifier
    sets = dict(real=data.train, synthetic=synthetic, test=test)
    return Trainer(sets, list(data.classes), data.task, ClassifierSettings(), False, 'cpu')(counts, seed)[0]

class Rows:
    "A CSV file that several processes add to, and that says what is done"
    def __init__(self, path, keys):
        self.path,self.keys = path,keys
    def done(self):
        if not self.path.exists(): return set()
        with open(self.path) as f: return {tuple(r[k] for k in self.keys) for r in csv.DictReader(f)}
    def add(self, row):
        with open(self.path, 'a+') as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            f.seek(0, os.SEEK_END)
            w = csv.DictWriter(f, list(row))
            if not f.tell(): w.writeheader()
            w.writerow({k: round(v, 5) if isinstance(v, float) else v for k,v in row.items()})

def mine(items, part): # those of this process
    k,n = part
    return [v for i,v in enumerate(items) if i % n == k]

# --- the search: four trials for each generator, on validation images, with images and seeds that `final` does not use

TRIALS = {'diffusion': [{}, dict(guidance=2.), dict(width=48), dict(passes=68.)],
          'cpd_gan': [{}, dict(lr=6e-4), dict(width=48), dict(passes=54.)],
          'prog_gan': [{}, dict(lr=6e-4), dict(width=48), dict(passes=54.)]}
GUIDANCE = 'guidance'
SEARCH_SEED,SEARCH_N = 100,1000

def trial(name, kind, settings, root):
    data = subset(whole(name, root), SEARCH_N, SEARCH_SEED)
    start = time.process_time()
    ae = train_autoencoder(data, 600, seed=SEARCH_SEED)
    g = make_generator(kind, ae=ae, **settings).fit(data, SEARCH_SEED)
    fitted = time.process_time()-start
    made = sample(g, labels_like(data.train.y, SEARCH_N, 0), SEARCH_SEED)
    found = [trained(data, made, data.val, dict(synthetic=SEARCH_N), SEARCH_SEED+k) for k in range(3)]
    mean = {k: sum(r[k] for r in found)/3 for k in ('auc','balanced_accuracy')}
    last = g.history[-1]
    kept = next(r for r in g.history if r['kept'])
    return dict(set=name, generator=kind, settings=repr(settings), **mean, updates=g.updates,
                kept=int(kept['updates']), onset=kept['onset'], onset_end=last['onset'], validation=kept['validation'],
                seconds=fitted)

def search(root, part):
    rows = Rows(HERE/'generators_search.csv', ['set','generator','settings'])
    todo = [(s, k, t) for s in ('pneumoniamnist','phantom') for k,ts in TRIALS.items() for t in ts]
    for s,k,t in mine(todo, part):
        if (s, k, repr(t)) not in rows.done(): rows.add(trial(s, k, t, root))

def main():
    torch.set_num_threads(1)
    args = sys.argv[1:]
    part = (0, 1)
    if '--part' in args:
        at = args.index('--part')
        part = tuple(map(int, args[at+1].split('/')))
        del args[at:at+2]
    dict(search=search)[args[0]](args[1] if args[1:] else None, part)

if __name__ == '__main__': main()
