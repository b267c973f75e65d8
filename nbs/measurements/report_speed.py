"""Seconds that the report of a study of 50 arms takes, by number of declared contrasts: two data sets,
three sizes, ten seeds, invented numbers. `python nbs/measurements/report_speed.py` prints a table.
"""
import tempfile, time
from pathlib import Path

from tsynd.reports import demo, study_report


def many(n):
    "`n` arms, those of the demo and variants of them"
    for i in range(n-len(demo.DEMO_ARMS)):
        auc, robust, seconds = list(demo.DEMO_ARMS.values())[i % 5]
        demo.DEMO_ARMS[f'variant {i}'] = (auc+.001*(i//5), robust, seconds+.1*(i//5))
    return {a: {} if a[:7] != 'variant' else dict(arm='mi') for a in demo.DEMO_ARMS}

def measure(contrasts, folder):
    family = [[a, 'baseline', 'clean', 'auc'] for a in list(ARMS)[1:contrasts+1]]
    demo.demo_study(folder, n=(50, 100, 200), arms=ARMS, headline=family)
    start = time.perf_counter(), time.process_time()
    page = study_report(folder)
    return contrasts, time.perf_counter()-start[0], time.process_time()-start[1], page.stat().st_size/1e6

if __name__ == '__main__':
    ARMS = many(50)
    print('contrasts per data set  seconds  seconds of the processor  MB')
    with tempfile.TemporaryDirectory() as tmp:
        for k in (5, 49): print('{:22} {:8.1f} {:25.1f} {:3.1f}'.format(*measure(k, Path(tmp)/str(k))))
