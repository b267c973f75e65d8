"""What a kill costs: a small run, killed at twenty random instants, and gone on with.

    python nbs/measurements/kills.py [kills]

The run is killed (SIGKILL) in a copy of this process, at an instant drawn from the time that it takes, and
the same command is given again. Writes kills.csv beside it, a row per kill: after how many seconds, in which
stage, the seconds of work that were lost, and whether the finished run is the same, bit for bit, as one that
was never killed; all files are compared, but for the seconds in metrics.json and on the page."""
import hashlib, json, multiprocessing, os, random, sys, threading, time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from tsynd.cli import main as tsynd
from tsynd.core import begun, beside
from tsynd.reports import read_run

HERE = Path(__file__).parent
COMMAND = ('run phantom --quick --size 12 --subset 16 --ae-steps 60 --epochs 30 --bs 8 --attack-n 32 '
           '--warmup 0 --every 1 --out').split()
STAGES = 'autoencoder','baseline','tsynd','evaluation of baseline','evaluation of tsynd','writing'

def run(out):
    with open(os.devnull, 'w') as none, redirect_stdout(none), redirect_stderr(none):
        return tsynd([*COMMAND, str(out)])

def start(out):
    p = multiprocessing.get_context('fork').Process(target=lambda: sys.exit(run(out)))
    p.start()
    return p

def contents(folder):
    "All that a run has left, but for the seconds"
    found = {}
    for f in sorted(p for p in Path(folder).rglob('*') if p.is_file()):
        if f.name == 'report.html': value = 'there'
        elif f.name == 'metrics.json': value = json.dumps(dict(json.loads(f.read_text()), timing=None))
        elif f.suffix == '.npz':
            value = [(k, str(a.dtype), a.shape, a.tobytes()) for k,a in np.load(f).items()]
        else: value = f.read_bytes()
        found[f.relative_to(folder).as_posix()] = hashlib.sha256(repr(value).encode()).hexdigest()
    return found

def kill(out, seconds):
    "Kill a run after so many seconds: the stage it was in and the seconds lost, or None if it had ended"
    t0,p = time.time(),start(out)
    p.join(seconds)
    p.kill(); p.join()
    if p.exitcode == 0: return None
    record = begun(beside(out))
    done = list(record.finished) if record else []
    saved = (beside(out)/'run.json').stat().st_mtime if done else t0
    return STAGES[len(done)],max(0., t0+seconds-saved)

def same_again(out, whole):
    "Is the run the same, once the command has been given again?"
    again = start(out)
    again.join()
    return again.exitcode == 0 and not beside(out).exists() and contents(out) == whole

def main(kills=20):
    torch.set_num_threads(1)
    # copies of a process would share its lock, and a killed one would keep it
    tqdm.set_lock(threading.RLock()); tqdm.monitor_interval = 0
    draw,rows = random.Random(0),[]
    with TemporaryDirectory() as d:
        run(Path(d)/'whole')            # in this process, which then has loaded all it takes
        whole,t0 = contents(Path(d)/'whole'),time.time()
        assert len(read_run(Path(d)/'whole').rows) > 0 and same_again(Path(d)/'same', whole)
        takes = time.time()-t0
        while len(rows) < int(kills):
            out,seconds = Path(d)/str(time.time_ns()),draw.uniform(0, takes)
            if killed := kill(out, seconds):
                rows.append(dict(killed_after=round(seconds, 2), stage=killed[0], lost=round(killed[1], 2),
                                 same=same_again(out, whole)))
                print(rows[-1])
    t = pd.DataFrame(rows).sort_values('killed_after')
    t.assign(run_takes=round(takes, 2)).to_csv(HERE/'kills.csv', index=False)
    print(t.to_string(index=False))


if __name__ == '__main__': main(*sys.argv[1:])
