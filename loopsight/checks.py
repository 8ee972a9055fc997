"""Bad input, refused in one sentence, in one place."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor


def require_states(h: object, name: str = "h") -> None:
    """Check that `h` is a state tensor: floating point, (..., d), finite, and no token's state zero.

    Raises:
        ValueError: saying which of these fails.
    """
    if not isinstance(h, Tensor) or not h.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor of states (..., d), got {_kind(h)}.")
    if h.ndim < 1 or h.numel() == 0:
        raise ValueError(f"{name} must be a non-empty tensor of states (..., d), got shape {tuple(h.shape)}.")
    if not torch.isfinite(h).all():
        raise ValueError(f"{name} holds NaN or infinite entries; pass states of a model that has not diverged.")
    if (h.detach().abs().amax(-1) == 0).any():
        raise ValueError(f"{name} holds a zero state, which has no direction; every token's state must be nonzero.")


def require_floating_tensor(x: object, what: str) -> None:
    """Check that a callable returned, or a dictionary holds, a floating-point tensor.

    Raises:
        ValueError: naming `what`.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"{what} must be a floating-point tensor, got {_kind(x)}.")


def is_whole(x: object) -> bool:
    """Whether it is an integer, of Python or of NumPy."""
    return isinstance(x, Integral)


def _kind(x: object) -> str:
    return f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__


def require_parameters(parameters: Mapping[str, Tensor]) -> None:
    """Check that a dictionary of parameters holds finite floating-point tensors.

    Raises:
        ValueError: naming the tensor.
    """
    for name, tensor in parameters.items():
        require_floating_tensor(tensor, f"'{name}'")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"'{name}' holds NaN or infinite entries.")


def require_shape_kept(after: Any, h: Tensor, what: str) -> None:
    """Check that what came out of a step is a floating-point tensor of the shape of the state that went in.

    Raises:
        ValueError: naming `what`, the callable.
    """
    require_floating_tensor(after, f"what {what} returns")
    if after.shape != h.shape:
        raise ValueError(f"{what} must keep the shape of the state, {tuple(h.shape)}, got {tuple(after.shape)}.")
