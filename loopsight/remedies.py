"""Remedies for a scale that the loss cannot see, each a line: on maps for an audit, on modules for training.

    penalty             loss = loss + norm_penalty(states, 0.01)
    between loops       h = rms_normalised(h) at the entrance of every loop; where the block returns the whole next
                        state, model.block = BetweenNorm(model.block); with_between_norm(maps)
    damping             h = 0.9 * h there; model.block = Damped(model.block, 0.9) likewise; with_damping(maps, 0.9)
    raw readout         logits = raw_readout(readout, h, reference)   or   with_raw_readout(maps, reference)
    final-only norm     final_only_readouts(readout, num_loops, reference), one readout a loop

`loopsight.audit` of the result says whether it helped. All of them need training to be of use; a between-loop norm
or damping changes what a trained model computes. At the first entrance a between-loop norm sets the size of
h_0: norms of blind models with N(0, 1) embeddings ended the larger the larger h_0 was, from small ones they did not
(results/remedies, results/multipliers). At the entrance of every loop but the first it kept norms of both small models
that it was tried on down, at a higher loss in one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loopsight.protocol import LoopedMaps

Readout = Callable[[Tensor], Tensor]


def norm_penalty(states: Sequence[Tensor], weight: float) -> Float[Tensor, ""]:
    """weight * mean over loops and tokens of the state's mean square; add it to the loss.

    Args:
        states: h_1, ..., h_K, each (..., d), in a sequence or stacked.
        weight: 0.01 from the start of training at unit scale; for a trained model see the audit's `setting`.

    Raises:
        ValueError: no states, or a weight that is negative or not finite.

    Source: arXiv 2606.24898; theory/ P7.
    """
    if not len(states):
        raise ValueError("norm_penalty needs at least one state, got none.")
    _require_weight(weight)
    return weight * torch.stack([_mean_square(h).mean() for h in states]).mean()


def token_penalty(weight: float) -> Callable[[Tensor], Tensor]:
    """h (..., d) -> weight mean square (...): the penalty as `audit(..., penalty=...)` takes it.

    Raises:
        ValueError: a weight that is negative or not finite.
    """
    _require_weight(weight)
    return lambda h: weight * _mean_square(h).squeeze(-1)


def rms_normalised(h: Float[Tensor, "*batch d"], target: float = 1.0) -> Float[Tensor, "*batch d"]:
    """target h / rms(h), without epsilon; a zero state, which has no direction, stays zero with zero gradient."""
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    largest = wide.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    unit = wide / torch.where(zero, 1.0, largest)  # squares of the state itself may overflow, or vanish
    rms = torch.where(zero, 1.0, unit.square().mean(-1, keepdim=True)).sqrt()
    return torch.where(zero, 0.0, target * unit / rms).to(h.dtype)


def with_between_norm(maps: LoopedMaps, target: float = 1.0) -> LoopedMaps:
    """step(h) becomes step(target h / rms(h)): the scale is removed at the entrance of every loop. Theory P8.

    Raises:
        ValueError: a target that is not positive.
    """
    _require_rms(target, "target")
    return dataclasses.replace(maps, step=lambda h: maps.step(rms_normalised(h, target)))


def with_damping(maps: LoopedMaps, factor: float) -> LoopedMaps:
    """step(h) becomes step(factor h): the scale is contracted by `factor` a loop. Theory P8.

    Raises:
        ValueError: a factor outside (0, 1).
    """
    _require_factor(factor)
    return dataclasses.replace(maps, step=lambda h: maps.step(factor * h))


def raw_readout(readout: Readout, h: Float[Tensor, "*batch d"], reference: float) -> Float[Tensor, "*batch vocab"]:
    """rms(h) / reference times the logits: of a scale-free readout this makes one of degree 1.

    Behind an RMSNorm without bias it is the raw readout W Gamma h / reference itself, and it needs no access to the
    normalisation. `reference` is the rms at which the logits stay as they were. It pins the scale where the data leave
    something to be calibrated: on tokens that can be fitted wholly, logits and norm grow on (theory/ P6).

    Raises:
        ValueError: a reference that is not positive.
    """
    _require_rms(reference, "reference")
    return readout(h) * (_rms(h) / reference)


def with_raw_readout(maps: LoopedMaps, reference: float) -> LoopedMaps:
    """The readout made to see the scale. Theory P6.

    Raises:
        ValueError: a reference that is not positive.
    """
    _require_rms(reference, "reference")
    return dataclasses.replace(maps, readout=lambda h: raw_readout(maps.readout, h, reference))


def final_only_readouts(readout: Readout, num_loops: int, reference: float) -> tuple[Readout, ...]:
    """Readouts for loops 1..K of a per-loop loss: all see the scale but the last, which is `readout` itself.

    Raises:
        ValueError: fewer than 2 loops, at which nothing would see the scale, or a reference that is not positive.
    """
    _require_rms(reference, "reference")
    if num_loops < 2:
        raise ValueError(f"with {num_loops} loops the only readout is the last, which stays blind; use raw_readout.")
    return (*[lambda h: raw_readout(readout, h, reference)] * (num_loops - 1), readout)


class BetweenNorm(nn.Module):
    """A shared block with its first argument normalised: `model.block = BetweenNorm(model.block)`.

    Args:
        block: called once a loop, state first, and returns the next state. Where the residual is added outside of it
            this removes nothing: normalise the state there instead.
        target: rms of the state that the block gets.

    Raises:
        ValueError: a target that is not positive.
    """

    def __init__(self, block: nn.Module, target: float = 1.0) -> None:
        _require_rms(target, "target")
        super().__init__()
        self.block, self.target = block, target

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.block(rms_normalised(h, self.target), *args, **kwargs)


class Damped(nn.Module):
    """A shared block with its first argument damped: `model.block = Damped(model.block, 0.9)`.

    Args:
        block: as in `BetweenNorm`.
        factor: strictly between 0 and 1.

    Raises:
        ValueError: another factor.
    """

    def __init__(self, block: nn.Module, factor: float) -> None:
        _require_factor(factor)
        super().__init__()
        self.block, self.factor = block, factor

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.block(self.factor * h, *args, **kwargs)


def _rms(h: Tensor) -> Tensor:
    return _mean_square(h).sqrt().to(h.dtype)


def _mean_square(h: Tensor) -> Tensor:
    """In at least float32: squares overflow float16 from 256 on."""
    return h.to(torch.promote_types(h.dtype, torch.float32)).square().mean(-1, keepdim=True)


def _require_factor(factor: float) -> None:
    if not 0.0 < factor < 1.0:
        raise ValueError(f"the damping factor must lie strictly between 0 and 1, got {factor}.")


def _require_weight(weight: float) -> None:
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"the penalty's weight must be finite and at least 0, got {weight}.")


def _require_rms(rms: float, name: str) -> None:
    if not 0.0 < rms < float("inf"):
        raise ValueError(f"the {name} rms must be positive and finite, got {rms}.")
