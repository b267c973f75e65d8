"""What do the audit's measures cost, beside those of torch-fidelity and prdc?
The parts they share, in one run, on one thread, n = m = 1000 and d = 64; the least of some repetitions,
as other work on the machine only adds to it.

    pip install torch-fidelity prdc
    python nbs/measurements/audit_speed.py

Writes audit_speed.csv beside it: seconds of ours, of theirs, their ratio, and both values, which
have to agree. Ours without p, as theirs have none, and once more with it."""
import contextlib, io, os, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd, torch
from prdc import compute_prdc
from torch_fidelity import metric_fid as fid, metric_kid as kid

from tsynd.audit import (
    density_coverage, frechet_distance, kernel_distance, two_sample_classifier, vendi_ratio)

OUT,N,D,TIMES = Path(__file__).with_suffix('.csv'),1000,64,9


def timed(f):
    "Value and seconds"
    f()
    taken = []
    for _ in range(TIMES):
        t = time.perf_counter(); value = f(); taken.append(time.perf_counter()-t)
    return value, min(taken)

def theirs_frechet(x, *others): # from x to each
    first = fid.fid_features_to_statistics(x)
    stats = [fid.fid_features_to_statistics(v) for v in others]
    return [fid.fid_statistics_to_metric(first, s, False)[fid.KEY_METRIC_FID] for s in stats][0]

def theirs_balls(x, y):
    with contextlib.redirect_stdout(io.StringIO()): return compute_prdc(x, y, nearest_k=5)['density']

def main():
    torch.set_num_threads(1)
    x,y,z = torch.randn(3, N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 1.1*y
    X,Y = x.numpy(),y.numpy()
    shared = {
        'kernel distance': (lambda p: kernel_distance(x, y, permutations=p).value,
                            lambda: kid.kernel_mmd(X, Y), 999),
        'Fréchet distance, and its reference': (lambda p: frechet_distance(x, y, z, p).value,
                                                lambda: theirs_frechet(x, y, z), 99),
        'density and coverage': (lambda p: density_coverage(x, y, permutations=p)[0].value,
                                 lambda: theirs_balls(X, Y), 999)}
    rows = []
    for name,(ours,theirs,permutations) in shared.items():
        (value,mine),(other,their) = timed(lambda: ours(0)),timed(theirs)
        with_p = timed(lambda: ours(permutations))[1]
        rows.append([name, value, other, mine, their, mine/their, with_p])
    for name,f in {'classifier': lambda: two_sample_classifier(x, y).value,
                   'Vendi ratio': lambda: vendi_ratio(x, y)['whole'].value}.items():
        value,taken = timed(f)
        rows.append([name, value, None, None, None, None, taken])
    names = ['measure', 'ours', 'theirs', 'seconds', 'seconds_theirs', 'ratio', 'seconds_with_p']
    t = pd.DataFrame(rows, columns=names)
    t.to_csv(OUT, index=False, float_format='%.5g')
    print(t.to_string())

if __name__ == '__main__': main()
