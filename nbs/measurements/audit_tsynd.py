"""What does the audit say of TSynD's own images?

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/audit_tsynd.py [seeds]

BreastMNIST and PneumoniaMNIST: their published parts put together, cleared of near-duplicates and drawn
anew with every seed, 300 images to train on and 300 that nothing ever sees. `tsynd run` on these, with
images synthesised in every batch instead of every third, so that the last epoch has enough of them; those
that the label gate kept are audited, and beside them their *sources*, the real training images they were
made from, and the *reconstructions*, which the autoencoder makes of the sources without any target. Writes
the verdicts to audit_tsynd.csv as they come; the same command goes on. Seed 0 also leaves its images in the
folder audit_tsynd, for a page of its own."""
import os, sys, time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch

from audit_errors import pool
from tsynd.audit import audit
from tsynd.data import ImageData, save_npz, Split
from tsynd.experiments import arm_stage, autoencoder_stage, resolve, RunConfig, synthesis

OUT = Path(__file__).with_suffix('.csv')
SIDE = 300      # images to train on, and as many that are held out

def drawn(name, seed):
    d,x,y = pool(name)
    i = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:2*SIDE]
    train,test = (Split(x[k], y[k], k) for k in i.split(SIDE))
    return ImageData(name, d.task.name, d.classes, train, train.select(slice(40)), test)

def made(data, seed): # {what: Split} of the last epoch of a run
    c = resolve(RunConfig(dataset=data.name, seed=seed, every=1), data)
    ae = autoencoder_stage(c, data).model
    s = arm_stage(c, data, 'tsynd', [synthesis(c, ae)]).synthetic
    k = s.pick(s.gate > 0)
    def split(x): return Split((x.clamp(0, 1)*255).round().byte(), k.y, torch.arange(len(k)))
    return dict(targeted=split(k.x), reconstructions=split(k.reconstruction), sources=split(k.source))

def keep(name, data, sets):
    folder = OUT.with_suffix('')
    folder.mkdir(exist_ok=True)
    save_npz(folder/f'{name}.npz', data)
    for what,s in sets.items(): save_npz(folder/f'{name}_{what}.npz', replace(data, train=s))

def main(seeds=5):
    torch.set_num_threads(1)
    done = set() if not OUT.exists() else set(
        pd.read_csv(OUT, usecols=['dataset','seed']).itertuples(index=False, name=None))
    for seed in range(int(seeds)):
        for name in ('breastmnist','pneumoniamnist'):
            if (name, seed) in done: continue
            start,data,rows = time.time(),drawn(name, seed),[]
            sets = made(data, seed)
            for what,s in sets.items():
                found = audit(s, data.train, data.test, data.classes, seed=seed)
                rows += [dict(dataset=name, seed=seed, images=what, n=len(s), question=k, verdict=v.verdict,
                              value=v.value, reference=v.reference, sentence=v.sentence)
                         for k,v in found.verdicts.items()]
                if seed == 0: keep(name, data, sets)
            table = pd.DataFrame(rows)
            table.to_csv(OUT, mode='a', header=not OUT.exists(), index=False, float_format='%.5g')
            print(name, seed, f'{time.time()-start:.0f} s', flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
