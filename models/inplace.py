"""Products that spare memory: a tensor that leaves the cache costs as much to write anew as to compute."""

import torch
from torch import Tensor


def times_(a: Tensor, b: Tensor) -> Tensor:
    """a * b in the memory of `a`, which nobody else may need.

    Under `torch.func` in memory of its own: there `b` may have a batch dimension, hidden by `vmap`, that `a` has not.
    """
    return a * b if torch._C._are_functorch_transforms_active() else a.mul_(b)
