"""Bad input, refused in one sentence, in one place."""

import torch
from torch import Tensor


def require_states(h: Tensor, name: str = "h") -> None:
    """Check that `h` is a state tensor: floating point, (..., d), finite, and no token's state zero.

    Raises:
        ValueError: saying which of these fails.
    """
    if not h.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor of states (..., d), got dtype {h.dtype}.")
    if h.ndim < 1 or h.numel() == 0:
        raise ValueError(f"{name} must be a non-empty tensor of states (..., d), got shape {tuple(h.shape)}.")
    if not torch.isfinite(h).all():
        raise ValueError(f"{name} holds NaN or infinite entries; pass states of a model that has not diverged.")
    if (h.detach().abs().amax(-1) == 0).any():
        raise ValueError(f"{name} holds a zero state, which has no direction; every token's state must be nonzero.")
