"""What a training costs with each way to attack, as ratios in one process.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/price.py [repeats]

The arms of the headline study with their settings, 60 updates on 100 images of BreastMNIST, one thread, in
turn; processor time, and so that of the machine it is run on. The autoencoder is trained beforehand and
not counted. Writes price.csv beside it, a row per repeat, each divided by the baseline of the same repeat."""
import os, sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch

from tsynd.experiments import precision
from tsynd.experiments import Cell, cell_autoencoder, cell_data, read_config, train_cell

HERE = Path(__file__).parent
ARMS = 'baseline','fgsm','mi','mi_fgsm','mi_pgd','pgd'

def main(repeats=3):
    torch.set_num_threads(1)
    c = replace(read_config(HERE.parent/'studies'/'headline.toml'), updates=60)
    cells = {a: Cell('breastmnist', 100, 100, a) for a in ARMS}
    data,_ = cell_data(c, cells['baseline'])
    ae,_ = cell_autoencoder(replace(c, ae_steps=100), cells['mi'], data)
    # what is only slow the first time
    train_cell(replace(c, updates=8), cells['mi'], data, ae)
    rows = [{a: train_cell(c, cell, data, ae)[1]['seconds'] for a,cell in cells.items()}
            for _ in range(int(repeats))]
    t = pd.DataFrame(rows)
    t.div(t.baseline, axis=0).round(3).assign(precision=precision(c)).to_csv(HERE/'price.csv', index=False)


if __name__ == '__main__': main(*sys.argv[1:])
