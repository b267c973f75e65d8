"Small files with the layout of every 2D MedMNIST set, for the sets that are not at hand"
from pathlib import Path

import numpy as np
from medmnist import INFO

NAMES = [k for k in INFO if not k.endswith('3d')]
SIZES = (28, 64)


def make_labels(n, C, multilabel, rng):
    "Every class at least once; of every label at least one yes and one no"
    if not multilabel: return rng.permutation(np.arange(n)%C)[:,None].astype(np.uint8)
    y = rng.random((n, C)) < .25
    for c in range(C): y[rng.choice(n, 2, replace=False), c] = 1, 0
    return y.astype(np.uint8)

def make_images(y, size, ch, rng):
    "Blurred noise, with one bright spot per class, in a place of its own"
    C = y.shape[1] if y.shape[1] > 1 else int(y.max())+1
    hot = y if y.shape[1] > 1 else np.eye(C)[y[:,0]]
    u = (np.arange(size)+.5)/size
    angle = 2*np.pi*np.arange(C)/C
    spot = np.exp(-((u[None,:,None]-.5-.3*np.sin(angle)[:,None,None])**2
                    + (u[None,None]-.5-.3*np.cos(angle)[:,None,None])**2)/.01)
    coarse = rng.normal(0, .1, (len(y), 7, 7)).repeat(-(-size//7), 1).repeat(-(-size//7), 2)[:,:size,:size]
    x = .35 + coarse + .4*np.tensordot(hot, spot, 1) + rng.normal(0, .03, (len(y), size, size))
    if ch == 3: x = x[...,None]*np.array([1, .8, .9])
    return (x.clip(0, 1)*255).round().astype(np.uint8)

def make_arrays(name, size=28, n=(40,24,24), seed=0):
    "The six arrays of a MedMNIST file, by name, with `n` training, validation and test images"
    info, rng, res = INFO[name], np.random.default_rng(seed), {}
    for part,k in zip(('train','val','test'), n):
        y = make_labels(k, len(info['label']), info['task'].startswith('multi-label'), rng)
        res |= {f'{part}_images': make_images(y, size, info['n_channels'], rng), f'{part}_labels': y}
    return res

def write_npz(folder, name, size=28, n=(40,24,24), seed=0):
    "Write a small file of the layout of `name`, loadable with a warning about its MD5; returns its path"
    path = Path(folder)/f"{name}{'' if size==28 else f'_{size}'}.npz"
    np.savez_compressed(path, **make_arrays(name, size, n, seed))
    return path
