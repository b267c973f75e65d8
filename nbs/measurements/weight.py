"""What does the weight of the synthetic loss do where labels are many?
All 546 of BreastMNIST, validation images, in bfloat16.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/weight.py [seeds]

Appends to weight.csv beside it and leaves out what is there already."""
import os, sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd

from tsynd.models import train_autoencoder
from tsynd.targeting import BF16, TSynD
from tsynd.models import train_classifier
from tsynd.data import load_data
from tsynd.robustness import robustness_table

ARMS = {'baseline': None, **{f'weight {w}': dict(weight=float(w), every=2) for w in (4, 2, 1)},
        'weight 2, gate .5': dict(weight=2., gate=.5, every=2),
        'weight 1, all images': dict(share=1., every=1)}
OUT = Path(__file__).with_suffix('.csv')


def main(seeds=2):
    done = (set() if not OUT.exists() else
            set(pd.read_csv(OUT)[['seed','arm']].itertuples(index=False, name=None)))
    data = load_data('breastmnist')
    for seed in range(int(seeds)):
        todo = [a for a in ARMS if (seed, a) not in done]
        autoencoder = train_autoencoder(data, steps=400, bs=64, seed=seed) if todo else None
        for arm in todo:
            cbs = [] if ARMS[arm] is None else [TSynD(autoencoder, seed=seed, **ARMS[arm])]
            learn = train_classifier(data, epochs=18, seed=seed, cbs=[BF16(), *cbs])
            table = robustness_table(learn.model, *data.val.batch(slice(None)), data.task, eps=(2/255, 4/255),
                                     seed=seed)
            row = dict(seed=seed, arm=arm,
                       **{f'{k} {m}': round(v[m], 3) for k,v in table.items()
                          for m in ('auc', 'balanced_accuracy')})
            pd.DataFrame([row]).to_csv(OUT, mode='a', header=not OUT.exists(), index=False)
            print(row, flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
