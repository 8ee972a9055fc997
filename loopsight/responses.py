"""How the logits of one loop or several answer to a small relative change of the state.

A direction v moves a token's state by |h| v times a small number; loops that have no weight are not read.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loopsight.checks import require_shape_kept
from loopsight.derivatives import differentiable_kernels, require_double_states, require_double_value
from loopsight.protocol import unroll

StateMap = Callable[[Tensor], Tensor]


def tangent_of(read: StateMap, h: Tensor, delta: Tensor) -> Tensor:
    """A jvp without its check, for a callable that another direction has confirmed."""
    with differentiable_kernels():
        return torch.func.jvp(read, (h.detach().clone(),), (delta,))[1].detach()


def logits_of_loops(step: StateMap, readout: StateMap, weights: Sequence[float]) -> StateMap:
    """States to the logits of all loops that have a weight, (loops, ..., vocab)."""

    def read(h: Tensor) -> Tensor:
        states = unroll(step, h, len(weights) - 1)
        logits = [readout(state) for state, weight in zip(states, weights, strict=True) if weight > 0.0]
        for z in logits:
            require_double_value(z)
        return torch.stack(logits)

    return read


def shape_keeping(step: StateMap, what: str = "step") -> StateMap:
    """The step, refusing anything but a tensor of the state's shape."""

    def run(h: Tensor) -> Tensor:
        after = step(h)
        require_shape_kept(after, h, what)
        return after

    return run


def relative_change(h: Tensor, direction: Tensor) -> Tensor:
    """|h| v, v the unit vector along `direction`."""
    require_double_states(h)
    require_double_states(direction, "direction")
    if direction.shape != h.shape:
        raise ValueError(f"direction must have the shape of h, {tuple(h.shape)}, got {tuple(direction.shape)}.")
    unit = direction / direction.norm(dim=-1, keepdim=True)
    return (h.norm(dim=-1, keepdim=True) * unit).detach()


def positive(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(weight for weight in weights if weight > 0.0)


def require_weights(weights: Sequence[float]) -> None:
    if not positive(weights) or not all(0.0 <= weight < float("inf") for weight in weights):
        raise ValueError(f"weights must be finite, not negative and not all zero, got {tuple(weights)}.")


def require_logits(logits: Tensor, h: Tensor) -> None:
    if logits.shape[1:-1] != h.shape[:-1] or logits.shape[-1] < 2:
        expected, got = (*h.shape[:-1], "vocab >= 2"), tuple(logits.shape[1:])
        raise ValueError(f"the readout must give logits of shape {expected}, got {got}.")
