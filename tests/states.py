"What a visitor could leave behind in a model, how to compare it, and targets that a loader could give"
import torch
from fastai.callback.core import Callback

def state(*models):
    "All that a visitor could leave behind in a model"
    return [([(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
              for n,m in model.named_modules()],
             {n: (p.requires_grad, p.grad) for n,p in model.named_parameters()},
             {n: v.clone() for n,v in model.state_dict().items()})
            for model in models] + [torch.get_rng_state()]

def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Change(Callback):
    "Targets as other loaders give them"
    order = -8
    def __init__(self, f): self.f = f
    def before_batch(self): self.learn.yb = (self.f(self.y.as_subclass(torch.Tensor)),)
