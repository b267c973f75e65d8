"""What does synthesis cost, in plain training steps?
Ratios within one run, in bfloat16, one thread, on random images.

    python nbs/measurements/speed.py [part of a setting's name ...]

Appends to speed.csv beside it and leaves out settings that are there already. On the CPU it counts
processor time, so that other work on the machine does not show; on a GPU, which it uses as well
where there is one, elapsed time."""
import gc, os, subprocess, sys, time
from pathlib import Path
from statistics import mean, median

os.environ.setdefault('OMP_NUM_THREADS', '1')
import pandas as pd, torch, torch.nn.functional as F
from fastai.callback.core import Callback

from tsynd.models import Autoencoder
from tsynd.targeting import BF16, MovingAverage, TSynD
from tsynd.models import classifier_learner, frozen, make_classifier, MCDropout
from tsynd.core import seeded
from tsynd.data import phantom
from tsynd.targeting import LatentBank, Synthesizer
from tsynd.targeting import mutual_information

OUT = Path(__file__).with_suffix('.csv')
SETTINGS = [('resnet18', 28, 128), *[('small_resnet', s, b) for s,b in ((28, 128), (28, 32), (64, 32))],
            ('resnet18', 28, 32), ('resnet18', 64, 32)]
full = dict(share=1., every=1)
LEARNERS = {'plain': None, 'all, K=4, T=16': dict(full, steps=4, T=16, warm=False), 'all': full,
            'default': {}, 'budget 1.3': dict(budget=1.3)}


found = Synthesizer._found
def as_in_earnest(self, judge, x, y):
    "The untaught judge would drop all: 1 of 5 passes at first and 3 of 5 later, about as in labels.csv"
    found(self, judge, x, y)
    self.first = not getattr(self, "first", False) or len(x) == self.n
    if self.first: self.n = len(x)
    return (torch.arange(len(x), device=x.device) % 5 < (1 if self.first else 3))[:,None]

Synthesizer._found = as_in_earnest


def clock(device):
    if device.type == 'cpu': return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()

def parts(model, size, B, device):
    "One training step, and everything that synthesis is made of, as functions without arguments"
    with seeded(0):
        net = make_classifier(model).to(device, memory_format=torch.channels_last).train()
        ae = Autoencoder().to(device, memory_format=torch.channels_last).eval()
        x,y = torch.rand(B, 1, size, size, device=device), torch.randint(2, (B,), device=device)
        z = torch.randn(B, 4, size//4, size//4, device=device)
    judge,opt,index = MovingAverage(net),torch.optim.Adam(net.parameters(), 1e-3),torch.arange(B)
    cast = lambda: torch.autocast(device.type, torch.bfloat16)
    def plain():
        with cast(): out = net(x)
        F.cross_entropy(out.float(), y).backward(); opt.step(); opt.zero_grad()
    def naive(T, K, freeze=False): # T passes through everything, nothing shared, nothing cached
        with frozen(ae, *([net] if freeze else [])), cast():
            v = ae.encode(x).detach()
            for k in range(K):
                v = v.detach().requires_grad_()
                with MCDropout(net, T, full=True) as mc:
                    if not freeze: net.requires_grad_(True)
                    mutual_information(mc(ae.decode(v))).sum().backward()
                v = v + .1*v.grad/v.grad.flatten(1).norm(dim=1).view(-1,1,1,1).clamp(min=1e-9)
        opt.zero_grad()
        return ae.decode(v.detach())
    def ours(T, K, gate=False, bank=None):
        Synthesizer(ae, T=T, steps=K, bf16=True)(net, x, y, index=index, judge=judge if gate else None,
                                                 bank=bank)
    def floor(): # decoder and classifier, forwards and backwards to their input, once
        with frozen(ae, net), cast():
            v = z.clone().requires_grad_()
            torch.autograd.grad(net(ae.decode(v)).float().sum(), v)
    bank = LatentBank()
    return {'plain': plain, 'floor': floor, 'naive T=8 K=1': lambda: naive(8, 1),
            'naive, frozen T=8 K=1': lambda: naive(8, 1, True),
            **{f'ascent T={T} K=1': lambda T=T: ours(T, 1) for T in (2, 8, 16, 64)},
            **{f'ascent T=8 K={K}': lambda K=K: ours(8, K) for K in (2, 4, 8)},
            'with bank T=8 K=1': lambda: ours(8, 1, bank=bank),
            'with bank and gate T=8 K=1': lambda: ours(8, 1, True, bank),
            'moving average': lambda: judge.update(net)}


class Stopwatch(Callback):
    "Time of each training batch"
    order,run_valid = -100,False
    def before_fit(self): self.times,self.device = [],next(self.learn.model.parameters()).device
    def before_batch(self): self.t = clock(self.device)

class Lap(Callback):
    order,run_valid = 100,False
    def after_batch(self):
        self.learn.stopwatch.times.append(clock(self.learn.stopwatch.device)-self.learn.stopwatch.t)

def learner(model, size, B, device, settings, batches, skip):
    "Mean time of a batch in a real `Learner` after the first `skip`, and the callback"
    data = phantom(n_train=B*4, n_val=8, n_test=8, size=size)
    with seeded(0):
        cb = (None if settings is None else
              TSynD(Autoencoder().to(memory_format=torch.channels_last), warmup=0, keep=0, **settings))
        net = make_classifier(model).to(memory_format=torch.channels_last)
        learn = classifier_learner(data, net, bs=B, device=device,
                                   cbs=[BF16(), Stopwatch(), Lap(), *([cb] if cb else [])])
        with learn.no_bar(), learn.no_logging(): learn.fit(batches//4, 1e-3)
    return mean(learn.stopwatch.times[skip:]), cb


def memory(model, size, B, name):
    "Peak resident memory of training above that before it, in MB, in a process of its own"
    code = f"""import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import gc, torch, speed
read = lambda k: next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith(k))
before = read('VmRSS')
speed.learner({model!r}, {size}, {B}, torch.device('cpu'), speed.LEARNERS[{name!r}],
              {28 if name.startswith('budget') else 12}, 0)
print(read('VmHWM')-before)"""
    argv = [sys.executable, '-W', 'ignore', '-c', code]
    out = subprocess.run(argv, capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def measure(model, size, B, device, repeats):
    rows,fs = [],parts(model, size, B, device)
    times = {k: [] for k in fs}
    for r in range(repeats+1):
        for k,f in fs.items():
            start = clock(device); f(); times[k].append(clock(device)-start)
        gc.collect()
    ms = {k: 1e3*median(v[1:]) for k,v in times.items()}
    rows += [dict(kind='part', what=k, ms=v, ratio=v/ms['plain'], images_per_second=1e3*B/v)
             for k,v in ms.items()]
    trained = {k: [] for k in LEARNERS}
    # in turn, so that a slow minute of the machine meets them all
    for r in range(3):
        for name,settings in LEARNERS.items():
            length = (56, 16) if name.startswith('budget') else (28, 4) if name == 'default' else (12, 4)
            trained[name].append(learner(model, size, B, device, settings, *length))
    t = {k: median(s for s,_ in v) for k,v in trained.items()}
    for name,v in trained.items():
        cb = v[-1][1]
        made = 0 if cb is None else B*(cb.share/cb.every if cb.clock is None else
                                       mean(c.clock.share*c.clock.rate for _,c in v))
        rows.append(dict(kind='training', what=name, ms=1e3*t[name], ratio=t[name]/t['plain'],
                         images_per_second=made/(t[name]-t['plain']) if made else None))
    if device.type == 'cpu':
        mb = {name: memory(model, size, B, name) for name in ('plain', 'all', 'default', 'budget 1.3')}
        rows += [dict(kind='memory', what=k, ms=v, ratio=v/mb['plain']) for k,v in mb.items()]
    return rows


def main(*only):
    for device in ('cpu', *(['cuda'] if torch.cuda.is_available() else [])):
        for model,size,B in SETTINGS:
            setting = f'{device} {model} {size}px batch {B}'
            if only and not any(o in setting for o in only): continue
            if OUT.exists() and setting in set(pd.read_csv(OUT).setting): continue
            rows = measure(model, size, B, torch.device(device), 3 if model == 'resnet18' else 7)
            pd.DataFrame([dict(setting=setting, **r) for r in rows]).round(4).to_csv(
                OUT, mode='a', header=not OUT.exists(), index=False)
            print(pd.DataFrame(rows).round(2).to_string(), flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
