"""Peak memory and time of an update of diffusion, on whole images and on patches: memory.csv

    python memory.py

Each row is a process of its own: phantoms of one size in batches of eight; what the process holds at most in
three updates, less what it held before the first.
"""
import os, subprocess, sys, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

def peak(size, space, patch): # in this process
    import threading
    import psutil, torch
    from tsynd.data import phantom
    from tsynd.generation import LatentDiffusion, make_generator
    torch.set_num_threads(1)
    LatentDiffusion.looked_at = 8
    data = phantom(n_train=16, n_val=0, n_test=0, size=size)
    g = make_generator('diffusion', space=space, patch=patch or None, bs=8, updates=1, ae_steps=1)
    g.fit(data)                                                  # everything is imported and made
    process,held,over = psutil.Process(),[],threading.Event()
    def watch():
        while not over.wait(.005): held.append(process.memory_info().rss)
    before,watcher = process.memory_info().rss,threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    for k in range(3): g.step(k, torch.Generator().manual_seed(k))
    seconds = (time.process_time()-start)/3
    over.set(); watcher.join()
    weights = sum(p.numel() for p in g.net.parameters())
    print(f'{(max(held)-before)/1e6:.0f},{seconds:.2f},{weights}')

def main():
    if len(sys.argv) > 1: return peak(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    rows = ['size,space,patch,megabytes,seconds,weights']
    for size in (128,224):
        for space,patch in (('pixels',0), ('pixels',64), ('pixels',32), ('latents',0), ('latents',64)):
            command = [sys.executable, __file__, str(size), space, str(patch)]
            freed = os.environ | dict(MALLOC_MMAP_THRESHOLD_='65536')   # tensors go back when they are freed
            found = subprocess.run(command, capture_output=True, text=True, check=True, env=freed)
            rows.append(f'{size},{space},{patch or "–"},{found.stdout.split()[-1]}')
            (Path(__file__).parent/'memory.csv').write_text('\n'.join(rows)+'\n')

if __name__ == '__main__': main()
