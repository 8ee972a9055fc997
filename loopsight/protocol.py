"""The three maps every instrument speaks of. Any model that has them fits; nothing needs to be inherited.

    embed    tokens -> h_0
    step     h_k -> h_{k+1}, from one decoded state to the next (operation between loops included)
    readout  h_k -> logits

Instruments take the maps themselves as plain callables of tensors; this protocol only names them.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class LoopedModel(Protocol):
    """A looped model, seen from outside. States are (..., d): every leading index is a token of its own."""

    def embed(self, tokens: Tensor, /) -> Tensor:
        """Token ids (batch, time) to h_0 (batch, time, d)."""

    def step(self, h: Tensor, /) -> Tensor:
        """One loop, h_k to h_{k+1}, same shape."""

    def readout(self, h: Tensor, /) -> Tensor:
        """State to logits (..., vocab), as after the last loop."""
