"""The protocol of MedMNIST's authors, nearer to the letter: what the study "official" left out of it.

    MEDMNIST_ROOT=path/to/medmnist python nbs/studies/official.py [dropout ...]

The study trains in bfloat16 with dropout, and measures the network of the last epoch. Here its baseline is trained in float32, with
the dropout named (0 if none is), from the same initial weights and in the same order, and measured on the test images twice: after
the last epoch, and after the one with the highest AUC on the validation images, which is the one that the authors publish. Writes
official.csv beside it, two rows per training, and leaves out what is there already; several processes share the work.

Declared before anything was run: without dropout, after the chosen epoch, are the means of five seeds within a point and a half of
the published .901 (AUC) and .863 (accuracy)? With dropout in float32 it is description: it tells precision and
dropout apart. (When four seeds were done, we noticed that one thing still differs: the first weights of our trunk are torchvision's,
theirs are PyTorch's default.)"""
import os, sys
from itertools import product
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch
from fastai.callback.core import Callback
from filelock import FileLock, Timeout

from tsynd.classifier import metrics, predict, probabilities, train_classifier
from tsynd.study import Witness, cell_data, cells, fit_steps, read_study

HERE = Path(__file__).parent
OUT = HERE/'official.csv'

class BestEpoch(Callback):
    "Measures a network on `test` whenever its AUC on `valid` is higher than ever"
    def __init__(self, valid, test): self.splits,self.auc = (valid, test),-1
    def measure(self, split):
        x,y = self.splits[split].batch(slice(None))
        return metrics(y, probabilities(predict(self.model, x)), 'binary-class')
    def after_epoch(self):
        auc = self.measure(0)['auc']
        if auc > self.auc: self.auc,self.best = auc,dict(self.measure(1), epoch=self.epoch+1)
    def after_fit(self): self.last = dict(self.measure(1), epoch=self.epoch+1)

def trained(c, cell, dropout):
    "Two rows: after the epoch chosen on validation images, and after the last"
    data,test = cell_data(c, cell)
    cb,witness = BestEpoch(data.val, test),Witness()
    train_classifier(data, c.model, c.epochs, c.lr, cell.seed, dropout, cbs=[cb, witness], fit=fit_steps, bs=c.bs, even=False, balanced=c.balanced)
    return [dict(dropout=dropout, seed=cell.seed, weights=witness.checksum, measured=k, epoch=r['epoch'],
                 **{m: round(r[m], 4) for m in ('auc','accuracy','balanced_accuracy')}) for k,r in (('chosen', cb.best), ('last', cb.last))]

def done(cell, dropout):
    if not OUT.exists(): return False
    t = pd.read_csv(OUT)
    return (t.dropout.eq(dropout) & t.seed.eq(cell.seed)).any()

def main(*dropouts):
    torch.set_num_threads(1)
    c = read_study(HERE/'official').config
    for p,cell in product(map(float, dropouts or [0]), [o for o in cells(c) if o.arm == 'baseline']):
        try:
            with FileLock(HERE/f'.official-{p}-{cell.seed}.lock', timeout=0):
                if done(cell, p): continue
                rows = pd.DataFrame(trained(c, cell, p))
                with FileLock(HERE/'.official.lock'): rows.to_csv(OUT, mode='a', header=not OUT.exists(), index=False)
        except Timeout: continue   # another process trains it


if __name__ == '__main__': main(*sys.argv[1:])
