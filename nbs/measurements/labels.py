"""Are the labels of synthetic images true?
Judged by a classifier that took no part, with and without the label gate.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/labels.py [seeds]

The judge never saw the 100 (phantom: 200) images that are trained on. On real data it has learned
from all others of the training and validation splits; on the phantom from 4000 fresh renders over the
whole range of its factors. It has seen each image as it is and as the autoencoder draws it. Its own
error is that on the real sources and on their reconstructions. Appends to labels.csv beside it and
leaves out what is there already."""
import os, sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd, torch
from fastai.callback.core import Callback

from tsynd.models import encode_all, train_autoencoder
from tsynd.targeting import BF16, TSynD
from tsynd.models import predict, train_classifier
from tsynd.data import load_data, phantom, Split, subset

OUT = Path(__file__).with_suffix('.csv')
SETTINGS = [(r, g) for g in (0., .8, .5) for r in (.3, .6)]   # radius, gate; seed 0 has more of them


def redraw(ae, x):
    "Images as the autoencoder draws them, uint8"
    with torch.no_grad():
        return torch.cat([(255*ae.decode(z)).round().byte() for z in encode_all(ae, x).split(256)])

def independent_judge(ae, name, data, seed):
    if name == 'phantom': others = phantom(n_train=4000, seed=1000+seed, holes=False).train
    else:
        full = load_data(name)
        rest = full.train.select([i for i in range(len(full.train))
                                  if i not in set(data.train.index.tolist())])
        others = Split(torch.cat([rest.x, full.val.x]), torch.cat([rest.y, full.val.y]),
                       torch.arange(len(rest)+len(full.val)))
    x = torch.cat([others.x, redraw(ae, others.x)])
    both = Split(x, others.y.repeat(2), torch.arange(len(x)))
    epochs = max(4, 1500*32//len(x))
    return train_classifier(replace(data, train=both), epochs=epochs, seed=100+seed, cbs=BF16()).model

def wrong(judge, x, y): return (predict(judge, x).argmax(1) != y).float()

class Look(Callback):
    "What the judge says of the synthetic images of every tenth batch in the second half of training"
    order = -4
    def __init__(self, judge): self.judge,self.rows = judge,[]
    def before_batch(self):
        s = self.learn.tsynd.syn
        if not self.training or s is None or self.learn.pct_train < .5 or self.learn.train_iter % 10: return
        s = self.learn.tsynd.engine.measure(self.learn.model, s, seed=int(self.learn.train_iter)+1)
        kept = s.gate > 0
        part = lambda v: torch.where(kept, v, torch.nan)
        self.rows += pd.DataFrame(dict(
            kept=kept.float(), moved_back=((s.gate < 1) & kept).float(),
            wrong=part(wrong(self.judge, s.x, s.y)), distance=part(s.distance_latent),
            gain=part(s.mi_after-s.mi_before))).to_dict('records')


def main(seeds=3):
    done = (set() if not OUT.exists() else
            set(pd.read_csv(OUT)[['dataset','seed','radius','gate']].itertuples(index=False, name=None)))
    for seed in range(int(seeds)):
        for name in ('phantom', 'breastmnist', 'pneumoniamnist'):
            todo = [(r, g) for r,g in SETTINGS if (name, seed, r, g) not in done]
            if not todo: continue
            data = phantom(seed=seed) if name == 'phantom' else subset(load_data(name), 100, seed=seed)
            ae = train_autoencoder(data, steps=400, bs=64, seed=seed)
            judge = independent_judge(ae, name, data, seed)
            x, y = data.train.x, data.train.y
            own = dict(judge_error_source=wrong(judge, x, y).mean().item(),
                       judge_error_reconstruction=wrong(judge, redraw(ae, x), y).mean().item())
            for radius,gate in todo:
                look = Look(judge)
                train_classifier(data, epochs=75 if len(data.train) <= 100 else 43, seed=seed,
                                 cbs=[BF16(), TSynD(ae, share=1., every=1, radius=radius, gate=gate,
                                                    seed=seed, keep=0), look])
                row = dict(dataset=name, seed=seed, radius=radius, gate=gate, images=len(look.rows),
                           **pd.DataFrame(look.rows).mean().to_dict(), **own)
                pd.DataFrame([row]).round(4).to_csv(OUT, mode='a', header=not OUT.exists(), index=False)
                print(row, flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
