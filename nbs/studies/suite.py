"""The whole suite of attacks, and the check for masked gradients, on seven arms of the headline study.

    MEDMNIST_ROOT=path/to/medmnist python nbs/studies/suite.py [seeds] [arm ...]

Trains the study's cells at 100 images once more, with the same seed and so to the same network (its AUC must be the one on
record, to three digits, or the script stops), and attacks 200 test images at 4/255. Writes suite.csv beside it, one row per
network and attack, and leaves out what is there already."""
import os, sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch
from tqdm.auto import tqdm

from tsynd.attacks import attack_suite, masking_check
from tsynd.classifier import metrics, predict, probabilities
from tsynd.data import stratified_order
from tsynd.study import Cell, cell_data, group_autoencoder, read_study, records, train_cell

HERE = Path(__file__).parent
ARMS = ['baseline', 'mi', 'pgd', 'mi_fgsm', 'fgsm', 'fgsm, 8/255', 'pixel_mi']
N,EPS,IMAGES = 100,4/255,200

def trained(study, cell):
    "The network of a cell, its data, and the images it is tested on"
    c = study.config
    data,held = cell_data(c, cell)
    model,_ = train_cell(c, cell, data, group_autoencoder(c, cell, data, study.folder)[0])
    x,y = held.batch(slice(None))
    now,then = metrics(y, probabilities(predict(model, x)), data.task)['auc'],records(study.folder)[cell.id]['measures']['clean']['auc']
    if abs(now-then) > 5e-4: sys.exit(f'{cell.id} has an AUC of {now:.4f}, but {then:.4f} on record; run on the machine and with the versions of the study')
    i = stratified_order(y, 0)[:IMAGES]
    return model, data, x[i], y[i]

def attacked(study, cell):
    model,data,x,y = trained(study, cell)
    images = {}
    rows = attack_suite(model, x, y, data.task, EPS, seed=cell.seed, keep=images)
    check = masking_check(model, x, y, data.task, EPS, images=images, seed=cell.seed)
    keep = ('attack','norm','eps','steps','n','accuracy','balanced_accuracy')
    return [dict(dataset=cell.dataset, seed=cell.seed, arm=cell.arm, **{k: r[k] for k in keep}, masked=check['masked'], verdict=check['verdict']) for r in rows]

def main(seeds=1, *arms):
    torch.set_num_threads(1)
    out,study = HERE/'suite.csv',read_study(HERE/'headline')
    done = set() if not out.exists() else set(pd.read_csv(out)[['dataset','seed','arm']].itertuples(index=False, name=None))
    todo = [Cell(d, N, s, a) for s in range(int(seeds)) for d in study.config.datasets for a in arms or ARMS if (d, s, a) not in done]
    for cell in tqdm(todo, desc='attack suite', unit='network'):
        pd.DataFrame(attacked(study, cell)).to_csv(out, mode='a', header=not out.exists(), index=False)


if __name__ == '__main__': main(*sys.argv[1:])
