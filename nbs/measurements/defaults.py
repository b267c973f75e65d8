"""What radius and objective rest on: one setting changed at a time,
100 labelled images, measured on validation images only.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/defaults.py [seeds]

Appends to defaults.csv beside it and leaves out what is there already, so it can be stopped and started
again."""
import os, sys, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd

from tsynd.models import train_autoencoder
from tsynd.targeting import TSynD
from tsynd.models import train_classifier
from tsynd.data import load_data, subset
from tsynd.robustness import robustness_table

BASE = dict(steps=4, T=16, share=1., every=1, warm=False, gate=0.)
ARMS = {'baseline': None, 'K=4, T=16, all images, no gate': {},
        'objective=reconstruction': dict(objective='reconstruction'),
        'objective=random': dict(objective='random'),
        'objective=entropy': dict(objective='entropy'),
        'objective=cross_entropy, radius=0.2': dict(objective='cross_entropy', radius=.2),
        'radius=0.15': dict(radius=.15), 'radius=0.6': dict(radius=.6), 'steps=2': dict(steps=2),
        'steps=8, step=0.25': dict(steps=8, step=.25),
        'weight=0.5': dict(weight=.5), 'weight=2': dict(weight=2.)}
OUT = Path(__file__).with_suffix('.csv')


def measure(data, autoencoder, seed, settings):
    cbs = ([] if settings is None else
           [TSynD(autoencoder, seed=seed, keep=1, measure_every=10**9, **(BASE | settings))])
    start = time.perf_counter()
    learn = train_classifier(data, epochs=75, seed=seed, cbs=cbs)
    seconds = time.perf_counter()-start
    table = robustness_table(learn.model, *data.val.batch(slice(None)), data.task, eps=(2/255, 4/255),
                             seed=seed)
    scores = {f'{k} {m}': round(v[m], 4) for k,v in table.items() for m in ('auc', 'balanced_accuracy')}
    return dict(scores, seconds=round(seconds, 1))


def main(seeds=1):
    done = (set() if not OUT.exists() else
            set(pd.read_csv(OUT)[['dataset','seed','arm']].itertuples(index=False, name=None)))
    for seed in range(seeds):
        for name in ('breastmnist', 'pneumoniamnist'):
            todo = [a for a in ARMS if (name, seed, a) not in done]
            if not todo: continue
            data = subset(load_data(name), 100, seed=seed)
            autoencoder = train_autoencoder(data, steps=400, bs=64, seed=seed)
            for arm in todo:
                row = dict(dataset=name, seed=seed, arm=arm, **measure(data, autoencoder, seed, ARMS[arm]))
                pd.DataFrame([row]).to_csv(OUT, mode='a', header=not OUT.exists(), index=False)
                print(row, flush=True)


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
