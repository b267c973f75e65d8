"""Other processes: copies of this one, which has loaded all it takes. A new one needs seconds for that."""
import multiprocessing, time
from concurrent.futures import ThreadPoolExecutor


def process(f, *args):
    "Call `f` in a copy of this process"
    p = multiprocessing.get_context('fork').Process(target=f, args=args)
    p.start()
    return p

def wait_for(condition, seconds=120):
    end = time.monotonic()+seconds
    while not condition() and time.monotonic() < end: time.sleep(.02)
    assert condition()


class Here(ThreadPoolExecutor):
    "Runs tasks in this process, which has loaded all it takes, and calls `before` with each"
    def __init__(self, before=lambda task, cell: None): super().__init__(1); self.before = before
    def submit(self, task, a, cell, *rest): return super().submit(self.call, task, a, cell, *rest)
    def call(self, task, a, cell, *rest): self.before(task, cell); return task(a, cell, *rest)
