"""The whole suite of attacks, and the check for masked gradients, on networks of the headline study.

    MEDMNIST_ROOT=path/to/medmnist python nbs/studies/suite.py [seeds] [arm ...]
    MEDMNIST_ROOT=path/to/medmnist python nbs/studies/suite.py --again SEED [arm ...]

Trains the study's cells at 100 images once more, with the same seed and so to the same network (its AUC
must be the one on record, to three digits, or the script stops), and attacks 200 test images at 4/255.
Writes suite.csv beside it, one row per network and attack, and leaves out what is there already.

`--again` trains the cells of one seed anew, on a GPU, and writes suite_again.csv. Same seed, subset, first
weights and batches, but another device, and so not the networks on record: other draws from the same
distribution. Several processes share the work."""
import os, sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from tsynd.robustness import attack_suite, masking_check
from tsynd.core import metrics, probabilities
from tsynd.models import predict
from tsynd.data import stratified_order
from tsynd.experiments import Cell, cell_autoencoder, cell_data, read_records, read_study, train_cell

HERE = Path(__file__).parent
ARMS = ['baseline', 'mi', 'pgd', 'mi_fgsm', 'fgsm', 'fgsm, 8/255', 'pixel_mi']
FOUR = ['baseline', 'mi', 'pgd', 'mi_fgsm']
N,EPS,IMAGES = 100,4/255,200

def trained(c, cell, recorded):
    "The network of a cell, its data, and the images it is tested on"
    data,held = cell_data(c, cell)
    model = train_cell(c, cell, data, cell_autoencoder(c, cell, data)[0])[0].model
    x,y = (t.to(c.device) for t in held.batch(slice(None)))
    now = metrics(y.cpu(), probabilities(predict(model, x)), data.task)['auc']
    if recorded and abs(now-recorded['measures']['clean']['auc']) > 5e-4:
        sys.exit(f"{cell.id} has an AUC of {now:.4f}, but "
                 f"{recorded['measures']['clean']['auc']:.4f} on record; "
                 "run on the machine and with the versions of the study")
    i = stratified_order(y.cpu(), 0)[:IMAGES]
    return model, data, x[i], y[i]

def attacked(c, cell, recorded=None):
    model,data,x,y = trained(c, cell, recorded)
    images = {}
    rows = attack_suite(model, x, y, data.task, EPS, seed=cell.seed, keep=images)
    check = masking_check(model, x, y, data.task, EPS, images=images, seed=cell.seed)
    keep = ('attack','norm','eps','steps','n','accuracy','balanced_accuracy')
    return [dict(dataset=cell.dataset, seed=cell.seed, arm=cell.arm, **{k: r[k] for k in keep},
                 masked=check['masked'], verdict=check['verdict']) for r in rows]

def done(out):
    return (set() if not out.exists() else
            set(pd.read_csv(out)[['dataset','seed','arm']].itertuples(index=False, name=None)))

def write(out, rows):
    with FileLock(f'{out}.lock'):
        pd.DataFrame(rows).to_csv(out, mode='a', header=not out.exists(), index=False)

def main(seeds=1, *arms):
    out,study = HERE/'suite.csv',read_study(HERE/'headline')
    c,found = study.config,read_records(study.folder)[0]
    todo = [Cell(d, N, s, a) for s in range(int(seeds)) for d in c.datasets for a in arms or ARMS
            if (d, s, a) not in done(out)]
    for cell in tqdm(todo, desc='attack suite', unit='network'):
        write(out, attacked(c, cell, found[cell.id]))

def again(seed, *arms):
    out,folder = HERE/'suite_again.csv',HERE/'suite_again'
    c = replace(read_study(HERE/'headline').config, device='cuda')
    folder.mkdir(exist_ok=True)
    for cell in [Cell(d, N, int(seed), a) for d in c.datasets for a in arms or FOUR]:
        try:
            with FileLock(folder/f'.{cell.id}.lock', timeout=0):
                if (cell.dataset, cell.seed, cell.arm) not in done(out): write(out, attacked(c, cell))
        except Timeout: continue   # another process is at it


if __name__ == '__main__':
    torch.set_num_threads(1)
    again(*sys.argv[2:]) if sys.argv[1:2] == ['--again'] else main(*sys.argv[1:])
