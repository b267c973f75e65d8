"""Do intervals over readers and images cover, is equivalence declared falsely, is power as predicted?

    python readers.py           # writes readers.csv

500 simulated studies a row, by readers whose abilities are known. At an accuracy of .6 calling them as
good as guessers, within ten points, is wrong.
"""
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr

from tsynd.audit import (
    against_chance, as_chance, crossed, reader_power, Simulated, simulated_levels, simulated_truth)

STUDIES,MARGIN = 500,.1
PLAIN,VARIED = dict(), dict(reader_sd=.3, criterion_sd=.3, image_sd=.4)
MEASURES = 'accuracy', "d′", 'AUC'

def of_accuracy(accuracy, spread): # `Simulated` with this accuracy on average
    if accuracy == .5: return Simulated(0., 0., **spread)
    f = lambda d: simulated_truth(Simulated(d, 0., **spread))['accuracy']-accuracy
    return Simulated(brentq(f, 0, 5), 0., **spread)

def spreads(about, draws=2000): # in accuracy: of readers, and of images
    g,sd = np.random.default_rng(1),(1+about.image_sd**2)**.5
    d = about.d+about.reader_sd*g.normal(size=draws)
    line = about.criterion+about.criterion_sd*g.normal(size=draws)
    right = (ndtr((d/2-line)/sd)+ndtr((d/2+line)/sd))/2
    b = about.image_sd*g.normal(size=(draws,1))
    image = ndtr(d[:300]/2-line[:300]+b).mean(1)
    return right.std(), image.std()

def row(kind, accuracy, spread, readers, images):
    about = of_accuracy(accuracy, spread)
    truth,covered,other,same = simulated_truth(about),dict.fromkeys(MEASURES, 0),0,0
    for k in range(STUDIES):
        levels,synthetic = simulated_levels(about, readers, images, seed=k)
        for m in MEASURES:
            c = crossed(levels, synthetic, m)
            lo,hi = c.interval()
            covered[m] += lo <= truth[m] <= hi
            if m != 'accuracy': continue
            other += against_chance(c) <= .05
            same += as_chance(c, MARGIN) <= .05
    reader_sd,image_sd = spreads(about)
    said = reader_power(readers, images, accuracy, MARGIN, min(.5, reader_sd), min(.5, image_sd))
    share = lambda n: round(n/STUDIES, 3)
    return {'readers are': kind, 'accuracy': accuracy, 'readers': readers, 'images': images,
            **{f'covered, {m}': share(v) for m,v in covered.items()},
            'other than chance': share(other), 'predicted': round(said['other than chance'], 3),
            'as chance': share(same), 'predicted ': round(said['as chance'], 3)}

def main():
    rows = []
    for kind,spread in (('alike', PLAIN), ('unlike', VARIED)):
        for accuracy in (.5, .6, .75, .95):
            for readers,images in ((1, 200), (3, 100), (8, 100)):
                if kind == 'unlike' and readers == 1: continue      # of one reader, other readers are unknown
                rows.append(row(kind, accuracy, spread, readers, images))
                pd.DataFrame(rows).to_csv(Path(__file__).with_suffix('.csv'), index=False)
    print(pd.DataFrame(rows).to_string())

if __name__ == '__main__': main()
