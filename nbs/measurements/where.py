"""Where do several steps of an attack find more than a single one?
Image by image, during single-step adversarial training.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/where.py

Trains the arm fgsm of the headline study at 100 images on the two seeds of its search, and looks at every
tenth batch after the first fifth of the training: for each image its MI, the entropy and the loss of the
clean image, the loss after one step and after seven. Writes where.csv beside it: for each data set and
each of these four, the share of the additional loss (and of the images that only seven steps turn wrong)
that falls to the third of each batch with the lowest, middle and highest value."""
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback

from tsynd.robustness import adversarial
from tsynd.models import fit_one_cycle
from tsynd.models import frozen, mc_logits, train_classifier
from tsynd.experiments import Cell, cell_data, make_arm, read_config
from tsynd.targeting import uncertainty

HERE = Path(__file__).parent
BY = 'MI','entropy','loss','loss after one step'

class Look(Callback):
    order,run_valid = -3,False
    def __init__(self): self.rows = []
    def before_batch(self):
        if self.learn.train_iter % 10 or self.learn.pct_train < .2: return
        m,x,y = self.learn.model, self.xb[0].as_subclass(torch.Tensor), self.yb[0].as_subclass(torch.Tensor)
        attacked = [x,*(adversarial(m, x, y, 4/255, k, seed=7) for k in (1, 7))]
        with torch.no_grad():
            u = uncertainty(mc_logits(m, x, 32, seed=1))
            with frozen(m): logits = [m(a) for a in attacked]
        loss = [F.cross_entropy(l, y, reduction='none') for l in logits]
        wrong = [l.argmax(1) != y for l in logits]
        self.rows.append(pd.DataFrame({'step': int(self.learn.train_iter), 'MI': u.epistemic,
                                       'entropy': u.total, 'loss': loss[0], 'loss after one step': loss[1],
                                       'more': loss[2]-loss[1],
                                       'only then wrong': (wrong[2] & ~wrong[1]).float()}))

def looks(c, dataset, seed):
    data,_ = cell_data(c, Cell(dataset, 100, seed, 'fgsm'))
    (arm,),lr,_ = make_arm(c, 'fgsm', seed=seed)
    look = Look()
    train_classifier(data, c.model, c.updates//4, lr, seed, c.dropout, cbs=[arm, look], fit=fit_one_cycle,
                     bs=c.bs, balanced=c.balanced)
    return pd.concat(look.rows).assign(seed=seed)

def shares(t, dataset):
    for by in BY:
        third = (3*t.groupby(['seed','step'])[by].rank(pct=True, method='first')).sub(1e-9).astype(int)
        for k,name in enumerate(('low', 'middle', 'high')):
            yield dict(dataset=dataset, by=by, third=name, images=int((third == k).sum()),
                       **{f'share of {v}': t[v][third == k].sum()/t[v].sum()
                          for v in ('more', 'only then wrong')})

def main():
    torch.set_num_threads(1)
    c = read_config(HERE.parent/'studies'/'headline.toml')
    rows = [r for d in c.datasets
            for r in shares(pd.concat([looks(c, d, s) for s in (100, 101)], ignore_index=True), d)]
    pd.DataFrame(rows).round(4).to_csv(HERE/'where.csv', index=False)


if __name__ == '__main__': main()
