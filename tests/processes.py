"""Other processes: copies of this one, which has loaded all it takes. A new one needs seconds for that."""
import multiprocessing, time


def process(f, *args):
    "Call `f` in a copy of this process"
    p = multiprocessing.get_context('fork').Process(target=f, args=args)
    p.start()
    return p

def wait_for(condition, seconds=120):
    end = time.monotonic()+seconds
    while not condition() and time.monotonic() < end: time.sleep(.02)
    assert condition()


class Forked:
    "Takes the place of `subprocess.Popen([python, …, '-c', code])`"
    def __init__(self, command, env=None): self.process = process(exec, command[-1])
    def poll(self): return self.process.exitcode
    returncode = property(poll)
    def wait(self, timeout=None): self.process.join(timeout)
    def terminate(self): self.process.terminate()
    def kill(self): self.process.kill()
