"""Which images should BatchNorm's running statistics come from, when some are decoded?

100 images of BreastMNIST and PneumoniaMNIST, five seeds, all validation images, three ways:
all:  what passes through in training mode, decoded images too
each: real images only, at each step
end:  as `all`, then anew from real images, drawn as in training, once at the end
and, so that it is seen whether decoded images are the reason, `end` after a training without any.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/batchnorm.py [seeds]

Appends to batchnorm.csv beside it and leaves out what is there already."""
import copy, os, sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch

from tsynd.data import load_data, subset
from tsynd.models import predict, renew_batch_norm, train_autoencoder, train_classifier
from tsynd.robustness import perturb, robustness_table
from tsynd.targeting import TSynD

OUT = Path(__file__).with_suffix('.csv')
ATTACKS = 'PGD 1/255','PGD 2/255'
SETS,WEIGHTS = ('breastmnist','pneumoniamnist'),(1., 4.)


def norms(model): return [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]

class Each(TSynD):
    "Decoded images leave the running statistics alone"
    def after_loss(self):
        before = [m.momentum for m in norms(self.learn.model)]
        for m in norms(self.learn.model): m.momentum = 0.
        super().after_loss()
        for m,old in zip(norms(self.learn.model), before): m.momentum = old

def renewed(learn, seed):
    "A copy of the model, its statistics taken anew from real images"
    model = copy.deepcopy(learn.model).train()
    renew_batch_norm(model, learn.dls.train, seed)
    return model.eval()

def measures(model, data, seed):
    x,y = data.val.batch(slice(None))
    found = {}
    for name,images in dict(clean=x, perturbed=perturb(x, 1., seed)).items():
        p = data.task.probabilities(predict(model, images))
        values = data.task.metrics(y, p) | data.task.calibration(y, p)
        found |= {f'{name} {k}': v for k,v in values.items()}
    table = robustness_table(model, x, y, data.task, strengths=(), eps=(1/255, 2/255), attack_n=200,
                             seed=seed)
    attacked = {f'{k} balanced_accuracy': v['balanced_accuracy'] for k,v in table.items() if k in ATTACKS}
    return found | attacked

def row(name, seed, arm, weight, model, data):
    r = dict(dataset=name, seed=seed, arm=arm, weight=weight, **measures(model, data, seed))
    r = {k: round(v, 4) if isinstance(v, float) else v for k,v in r.items()}
    pd.DataFrame([r]).to_csv(OUT, mode='a', header=not OUT.exists(), index=False)
    print(r, flush=True)

CALLBACKS = dict(all=TSynD, each=Each)

def main(seeds=5):
    done = set() if not OUT.exists() else set(
        pd.read_csv(OUT)[['dataset','seed','arm','weight']].itertuples(index=False, name=None))
    for seed in range(int(seeds)):
        for name in SETS:
            todo = [('baseline', 0.), ('end', 0.), *((a, w) for w in WEIGHTS for a in ('all','each'))]
            todo = [t for t in todo if (name, seed, *t) not in done]
            if not todo: continue
            data = load_data(name)
            few = subset(data, 100, seed)
            autoencoder = train_autoencoder(few, seed=seed)
            for arm,weight in todo:
                make = CALLBACKS.get(arm)
                cbs = make and make(autoencoder, seed=seed, weight=weight, renew=False)
                learn = train_classifier(few, epochs=75, seed=seed, cbs=cbs or [])
                if arm == 'all': row(name, seed, 'end', weight, renewed(learn, seed), data)
                row(name, seed, arm, weight, renewed(learn, seed) if arm == 'end' else learn.model, data)


if __name__ == '__main__': main(*sys.argv[1:])
