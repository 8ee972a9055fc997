"""The three maps every instrument speaks of. Any model that has them fits; nothing needs to be inherited.

    embed    tokens -> h_0
    step     h_k -> h_{k+1}, from one decoded state to the next (operation between loops included)
    readout  h_k -> logits

Instruments take the maps themselves as plain callables of tensors; this protocol only names them. The loop over k
stands here once, in `unroll`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from loopsight.checks import require_shape_kept


@runtime_checkable
class LoopedModel(Protocol):
    """A looped model, seen from outside. States are (..., d): every leading index is a token of its own."""

    def embed(self, tokens: Tensor, /) -> Tensor:
        """Token ids (batch, time) to h_0 (batch, time, d)."""

    def step(self, h: Tensor, /) -> Tensor:
        """One loop, h_k to h_{k+1}, same shape."""

    def readout(self, h: Tensor, /) -> Tensor:
        """State to logits (..., vocab), as after the last loop."""


@dataclass(frozen=True, kw_only=True)
class LoopedMaps:
    """The three maps of one model, given by hand or found by an adapter, and what is known beside them.

    A loop that needs more than the state (an injected embedding, a mask, positions) closes over it, so maps made for
    one batch hold for that batch.

    Attributes:
        embed: the batch, as the user has it, to h_0 (..., d).
        step: h_k to h_{k+1}, same shape; operation between loops included, so the audited state is the decoded one.
        readout: h_k to logits (..., vocab), as after the last loop.
        num_loops: K, as trained.
        module: owner of the parameters: dtype, device, float64 and parameter symmetries come from it; None if unknown.
        sublayers: the residual steps that make up the loop, between-loop operation left out; empty if unknown.
        name: for reports.
    """

    embed: Callable[[Any], Tensor]
    step: Callable[[Tensor], Tensor]
    readout: Callable[[Tensor], Tensor]
    num_loops: int
    module: nn.Module | None = None
    sublayers: Sequence[Callable[[Tensor], Tensor]] = ()
    name: str = "looped model"


def unroll(step: Callable[[Tensor], Tensor], h: Tensor, num_loops: int) -> tuple[Tensor, ...]:
    """The states (h_0, ..., h_K), h_0 = h, h_{k+1} = step(h_k): K + 1 tensors of the shape of `h`.

    Args:
        step: one loop, differentiable in whatever mode the caller needs; no gradient is cut here.
        h: states (..., d), where the unrolling starts (it need not be the embedding).
        num_loops: K, from 0 up.

    Raises:
        ValueError: a negative number of loops, or a step that returns no tensor or changes the shape of the state.
    """
    if num_loops < 0:
        raise ValueError(f"num_loops must not be negative, got {num_loops}.")
    states = [h]
    for _ in range(num_loops):
        states.append(step(states[-1]))
        require_shape_kept(states[-1], h, "step")
    return tuple(states)
