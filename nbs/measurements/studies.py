"""What a study costs besides its trainings, and what a kill costs it.

    python nbs/measurements/studies.py [times|kills] [kills]

times   seconds to add a record to a file with 10 and with 10,000 of them; to list and read a study of 5,000
        declared cells, with records as large as those of the headline; and to go on with it until the last
        cell is handed out, where all others are finished (studies_times.csv)
kills   a small study in two processes, whose driver or one of whose workers is killed (SIGKILL) at an instant
        drawn from the time that it takes; then the same command again. A row per kill: after how many
        seconds, the cells finished before, the ones of them that were lost, those recorded twice, and whether
        the table is the one of a study that nobody killed (studies_kills.csv)"""
import json, multiprocessing, os, random, sys, threading, time
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd
import psutil
from tqdm import tqdm

from tsynd.experiments import append, cells, read_records, read_study, run_study, StudyConfig, to_toml

HERE = Path(__file__).parent
SMALL = StudyConfig(name='small', datasets=['phantom'], n=[20], seeds=3,
                    arms=dict(baseline={}, mixup={}, mi={}), updates=20, ae_steps=20, attack_n=20,
                    pgd_steps=2, eps=[2], corruptions=[], test_n=60)

def seconds(f, *args):
    start = time.perf_counter()
    f(*args)
    return time.perf_counter()-start

def times():
    real = read_study(HERE.parent/'studies'/'headline')
    found = next(r for r in read_records(real.folder)[0].values() if r['dataset'] == 'pneumoniamnist')
    many = StudyConfig(name='many', datasets=['phantom'], n=[20], seeds=2500,
                       arms=dict(baseline={}, mixup={}))
    def record(x): return found | dict(id=x.id, dataset=x.dataset, n=x.n, seed=x.seed, arm=x.arm)
    rows = []
    with TemporaryDirectory() as d:
        folder = Path(d)
        for n in (10, 10_000):
            lines = (json.dumps(found)+'\n')*n
            (folder/'cells.jsonl').write_text(lines)
            took = [seconds(append, folder, found) for _ in range(20)]
            rows.append(dict(what=f'add a record to {n}', seconds=sorted(took)[10]))
        everything = cells(many)
        (folder/'study.toml').write_text(to_toml(many))
        (folder/'cells.jsonl').write_text(''.join(json.dumps(record(x))+'\n' for x in everything[:-1]))
        read_records(folder)                                                     # its schema is made once
        rows.append(dict(what='list 5,000 cells', seconds=seconds(cells, many)))
        rows.append(dict(what='read and check 5,000 records', seconds=seconds(read_records, folder)))
        begun = time.perf_counter()
        class Nobody:
            def submit(self, *args):
                took = time.perf_counter()-begun
                rows.append(dict(what='go on with the last of 5,000 cells', seconds=took))
                f = Future()
                f.set_result(dict(reason='that is all'))
                return f
        run_study(many, folder, executor=Nobody(), progress=False)
    t = pd.DataFrame(rows).round(4)
    t.to_csv(HERE/'studies_times.csv', index=False)
    print(t.to_string(index=False))

def start(folder):
    p = multiprocessing.get_context('fork').Process(target=run_study, args=(SMALL, folder, None, 2, False))
    p.start()
    return p

def workers(driver): # processes of the executor, not those that look after semaphores
    return [c for c in psutil.Process(driver).children() if any('popen_loky' in a for a in c.cmdline())]

def kill(folder, which, after):
    "Kill the driver or a worker after so many seconds: the finished cells, or None if all was over"
    p = start(folder)
    p.join(after)
    if p.exitcode is not None: return None
    if which == 'driver': p.kill(); p.join()
    else:
        found = workers(p.pid)
        if found: random.choice(found).kill()
        p.join()
    return read_records(folder)[0] if which == 'driver' else {}

def kills(many=16):
    tqdm.set_lock(threading.RLock()); tqdm.monitor_interval = 0
    rows = []
    with TemporaryDirectory() as d:
        whole,draw = run_study(SMALL, Path(d)/'whole', jobs=2, progress=False),random.Random(0)
        takes = seconds(run_study, SMALL, Path(d)/'again', None, 2, False)
        assert read_study(Path(d)/'again').results.equals(whole.results)
        while len(rows) < int(many):
            folder,which = Path(d)/str(time.time_ns()),('driver','worker')[len(rows) % 2]
            after = draw.uniform(0, takes)
            folder.mkdir(); (folder/'study.toml').write_text(to_toml(SMALL))
            before = kill(folder, which, after)
            if before is None: continue
            s = run_study(SMALL, folder, jobs=2, progress=False)
            lines = (folder/'cells.jsonl').read_bytes().count(b'\n')
            lost = [k for k,r in before.items() if r != read_records(folder)[0].get(k)]
            rows.append(dict(killed=which, after=round(after, 1), finished=len(before), lost=len(lost),
                             twice=lines-len(s.cells), same=s.results.equals(whole.results)))
            print(rows[-1], flush=True)
            pd.DataFrame(rows).assign(takes=round(takes, 1)).to_csv(HERE/'studies_kills.csv', index=False)


if __name__ == '__main__':
    what = dict(times=times, kills=kills)
    for name in sys.argv[1:2] or what: what[name](*sys.argv[2:])
