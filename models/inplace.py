"""Products that spare memory: a tensor that leaves the cache costs as much to write anew as to compute."""

import torch
from torch import Tensor


def times_(a: Tensor, b: Tensor) -> Tensor:
    """a * b in the memory of `a`, which nobody else may need, where the product has its dtype.

    Under `torch.func` in memory of its own: there `b` may have a batch dimension, hidden by `vmap`, that `a` has not.
    """
    fits = torch.result_type(a, b) == a.dtype and not torch._C._are_functorch_transforms_active()
    return a.mul_(b) if fits else a * b
