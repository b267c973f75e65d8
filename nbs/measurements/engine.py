"""How cheap may the synthesis be? Variants of the engine against the unlimited setting,
100 labelled images, in bfloat16.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/engine.py search|final [seeds] [part of an arm ...]

`search` tries many variants and looks at validation images only (78 and 100 of them); `final` compares
what was chosen with the unlimited setting on the test images. Appends to engine_search.csv or
engine_final.csv beside it and leaves out what is there already, so it can be stopped and started again."""
import os, sys, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
from fastai.callback.core import Callback

from tsynd.models import train_autoencoder
from tsynd.targeting import BF16, TSynD
from tsynd.models import train_classifier
from tsynd.data import load_data, subset
from tsynd.robustness import robustness_table

full = dict(share=1., every=1)
one = dict(full, steps=1, T=8, warm=False)
four = dict(full, steps=4, T=16, warm=False)
SEARCH = {'baseline': None,
          'K=4, no gate': dict(four, gate=0.), 'K=4': four, 'K=4, radius .6': dict(four, radius=.6),
          'K=1': one, 'K=1, step 1': dict(one, step=1.),
          'K=1, step 1, jitter .5': dict(one, step=1., jitter=.5),
          'K=1, warm': dict(one, warm=True), 'K=1, warm, step .15': dict(one, warm=True, step=.15),
          'K=1, warm, step .6': dict(one, warm=True, step=.6),
          'K=1, warm, radius .6': dict(one, warm=True, radius=.6),
          'K=4, share 1/4': dict(four, share=.25), 'K=1, warm, share 1/4': dict(one, warm=True, share=.25),
          'K=1, warm, every 4th': dict(one, warm=True, every=4),
          'K=1, warm, share 1/8': dict(one, warm=True, share=.125),
          'K=1, warm, share 1/4, weight 2': dict(one, warm=True, share=.25, weight=2.),
          'K=1, warm, share 1/2 of every 2nd': dict(every=2),
          'K=1, warm, share 1/2 of every 4th': dict(every=4),
          'K=1, warm, share 1/2 of every 2nd, radius .6': dict(every=2, radius=.6),
          'K=1, warm, share 1/2 of every 2nd, radius 1': dict(every=2, radius=1.),
          'K=1, warm, share 1/2 of every 2nd, radius .6, weight 3': dict(every=2, radius=.6, weight=3.),
          'K=1, warm, share 1/2 of every 2nd, weight 3': dict(every=2, weight=3.),
          'K=1, warm, share 1/2 of every 2nd, weight 6': dict(every=2, weight=6.),
          'K=1, warm, share 1/2 of every 4th, weight 6': dict(every=4, weight=6.),
          'K=1, warm, share 1/2 of every 4th, radius .6, weight 6': dict(every=4, radius=.6, weight=6.),
          'K=1, warm, share 1/2 of every 2nd, radius .45, weight 4': dict(every=2, radius=.45, weight=4.),
          'K=1, warm, share 1/4, radius .6': dict(one, warm=True, share=.25, radius=.6)}
SEARCH = {a: s if s is None else {**dict(gate=.5), **s} for a,s in SEARCH.items()}
FINAL = {'baseline': None, 'unlimited': dict(four, gate=.5), 'default': {},
         'default, weight 4': dict(weight=4.), 'budget 1.3': dict(budget=1.3),
         'budget 1.3, weight 6': dict(budget=1.3, weight=6.), 'default, naive': dict(naive=True)}
FOLDER = Path(__file__).parent


class Naive(Callback):
    "Every draw through the whole network"
    def before_fit(self): self.learn.model._mc_full = True

def measure(data, autoencoder, seed, settings, split):
    settings,naive = settings and dict(settings),settings and settings.get('naive')
    if naive: settings.pop('naive')
    cb = None if settings is None else TSynD(autoencoder, seed=seed, **settings)
    start = time.perf_counter()
    learn = train_classifier(data, epochs=75, seed=seed,
                             cbs=[BF16(), *([Naive()] if naive else []), *([cb] if cb else [])])
    seconds = time.perf_counter()-start
    table = robustness_table(learn.model, *getattr(data, split).batch(slice(None)), data.task,
                             eps=(2/255, 4/255), attack_n=300, seed=seed)
    scores = {f'{k} {m}': round(v[m], 4) for k,v in table.items()
              for m in ('auc', 'accuracy', 'balanced_accuracy')}
    keys = ['rose','gate','distance_latent','mi_before','mi_after','step_length']
    seen = {} if cb is None else pd.DataFrame(cb.history)[keys].iloc[1:].mean().round(4).to_dict()
    rho = dict(rho=round(cb.n_images/int(learn.train_iter)/32, 4)) if cb else {}
    return dict(scores, seconds=round(seconds, 1), synthetic=cb.n_images if cb else 0, **rho, **seen)


def main(which='search', seeds=1, *only):
    out,arms = FOLDER/f'engine_{which}.csv',dict(search=SEARCH, final=FINAL)[which]
    done = (set() if not out.exists() else
            set(pd.read_csv(out)[['dataset','seed','arm']].itertuples(index=False, name=None)))
    for seed in range(int(seeds)):
        for name in ('breastmnist', 'pneumoniamnist'):
            todo = [a for a in arms if (name, seed, a) not in done
                    and (not only or any(o in a for o in only))]
            if not todo: continue
            data = subset(load_data(name), 100, seed=seed)
            autoencoder = train_autoencoder(data, steps=400, bs=64, seed=seed)
            for arm in todo:
                row = dict(dataset=name, seed=seed, arm=arm,
                           **measure(data, autoencoder, seed, arms[arm],
                                     dict(search='val', final='test')[which]))
                cols = pd.read_csv(out, nrows=0).columns if out.exists() else COLUMNS
                pd.DataFrame([row]).reindex(columns=cols).to_csv(
                    out, mode='a', header=not out.exists(), index=False)
                print(row, flush=True)


COLUMNS = ['dataset','seed','arm',
           *[f'{c} {m}' for c in ('clean','perturbed','PGD 2/255','PGD 4/255')
             for m in ('auc','accuracy','balanced_accuracy')],
           'seconds','synthetic','rho','rose','gate','distance_latent','mi_before','mi_after','step_length']

if __name__ == '__main__': main(*sys.argv[1:])
