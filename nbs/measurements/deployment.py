"""Does what a bundle promises hold? Calibration, referral, other images, conformal coverage.

    MEDMNIST_ROOT=path/to/medmnist python nbs/measurements/deployment.py

On BreastMNIST and PneumoniaMNIST, five seeds: an autoencoder of 300 updates and a classifier of 300
updates, trained with TSynD as `tsynd run` does it; a bundle of both; measured on the test images of both
sets. On phantoms without holes, twenty seeds: a classifier of 100 updates, and the coverage of its conformal
sets. Writes deployment.csv beside it, a row per training as it comes; the same command goes on."""
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from tsynd.data import load_data, phantom
from tsynd.deployment import (
    calibrated, calibration_measures, conformal_quantile, conformal_sets, conformity_scores, fit_temperature,
    make_bundle, MEASURED, risk_coverage, true_scores)
from tsynd.experiments import prepare_data, resolve, RunConfig, synthesis, train_arm
from tsynd.models import predict, train_autoencoder

OUT = Path(__file__).with_suffix('.csv')
SETS = 'breastmnist','pneumoniamnist'
COVERAGE = .9

def trained(data, seed, autoencoder=True, updates=300):
    "A bundle"
    c = RunConfig(dataset=data.name, seed=seed, updates=updates)
    data = prepare_data(c, data=data)
    ae = train_autoencoder(data, c.ae_steps, bs=c.ae_bs, seed=seed) if autoencoder else None
    learn,*_ = train_arm(resolve(c, data), data, [synthesis(c, ae)] if ae else [])
    return make_bundle(learn.model, ae, data, 'tsynd' if ae else 'baseline', coverage=COVERAGE)

def rest_error(uncertainty, wrong, share=.1):
    "The error when the most uncertain share is referred"
    keep = uncertainty.argsort()[:len(wrong)-int(share*len(wrong))]
    return wrong[keep].mean().item()

def own(bundle, m, y):
    "Measures on test images of the same set"
    T,task = bundle.facts['temperature'],bundle.task
    probs = dict(before=task.probabilities(m['logits']), after=calibrated(m['logits'], T, task))
    wrong = task.wrong_share(m['logits'], y).double()
    scores = conformity_scores(probs['after'], task)
    inside = conformal_sets(scores, bundle.rule()[0])
    row = {f'{k}_{when}': v for when,p in probs.items() for k,v in calibration_measures(y, p, task).items()}
    row |= dict(temperature=T, error=wrong.mean().item(),
                coverage=true_scores(inside, y).double().mean().item(),
                set_size=inside.double().sum((1,2)).mean().item())
    for name in ('uncertainty','mutual_information'):
        row[f'error_rest_{name}'] = rest_error(m[name], wrong)
        row[f'area_{name}'] = risk_coverage(m[name], wrong)[2]
    return row

def crossed(bundle, x, y):
    "NLL and coverage in each half of the validation images, by temperature and quantile of the other half"
    logits,task = predict(bundle.classifier, x).double(),bundle.task
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    halves,found = order.chunk(2),[]
    for a,b in (halves, halves[::-1]):
        T = fit_temperature(logits[a], y[a], task)
        scores = true_scores(conformity_scores(calibrated(logits, T, task), task), y)
        found.append(dict(
            nll_val_before=calibration_measures(y[b], task.probabilities(logits[b]), task)['nll'],
            nll_val_after=calibration_measures(y[b], calibrated(logits[b], T, task), task)['nll'],
            coverage_val=(scores[b] <= conformal_quantile(scores[a,0], COVERAGE)).double().mean().item()))
    return pd.DataFrame(found).mean().to_dict()

def free(bundle, data, m):
    "The temperature of lowest NLL on the validation images, also where it is below 1"
    T = fit_temperature(predict(bundle.classifier, data.val.x).double(), data.val.y, data.task)
    nll = calibration_measures(data.test.y, calibrated(m['logits'], T, data.task), data.task)['nll']
    return dict(temperature_free=T, nll_free=nll)

def strangers(bundle, m, other):
    "How well images of another set are told from the set's own"
    limits = bundle.rule()[1]
    label = [0]*len(m['distance']) + [1]*len(other['distance'])
    both = {k: torch.cat([m[k], other[k]]) for k in MEASURED}
    row = {f'auroc_{k}': roc_auc_score(label, both[k]) for k in MEASURED}
    row['auroc_unlike'] = roc_auc_score(label, limits.unlike(both))
    for who,found in dict(own=m, other=other).items():
        over = limits.exceeded(found)
        row[f'referred_{who}'] = torch.stack(list(over.values())).any(0).double().mean().item()
        row[f'unlike_{who}'] = (limits.unlike(found) > 1).double().mean().item()
    return row

def row(dataset, seed):
    if dataset == 'phantom':
        data = phantom(n_val=200, seed=seed, holes=False)
        bundle = trained(data, seed, autoencoder=False, updates=100)
        m = bundle.measure(data.test.x)
        return own(bundle, m, data.test.y) | free(bundle, data, m) | dict(n=len(data.test))
    data,other = (load_data(d) for d in (dataset, SETS[1-SETS.index(dataset)]))
    bundle = trained(data, seed)
    m = bundle.measure(data.test.x)
    others = strangers(bundle, m, bundle.measure(other.test.x))
    within = crossed(bundle, data.val.x, data.val.y) | free(bundle, data, m)
    return own(bundle, m, data.test.y) | within | others | dict(n=len(data.test))

def main():
    torch.set_num_threads(1)
    todo = [(d, s) for s in range(5) for d in SETS] + [('phantom', s) for s in range(20)]
    rows = pd.read_csv(OUT).to_dict('records') if OUT.exists() else []
    done = {(r['dataset'], r['seed']) for r in rows}
    for dataset,seed in todo:
        if (dataset, seed) in done: continue
        rows.append(dict(dataset=dataset, seed=seed, **row(dataset, seed)))
        pd.DataFrame(rows).round(5).to_csv(OUT, index=False)
        print(rows[-1], flush=True)


if __name__ == '__main__': main()
