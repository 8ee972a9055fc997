"""How a state's Euclidean norm will grow over further loops, from the state's direction alone.

A recurrence whose branches all normalise their input obeys step(c h) = gain c h + b(h / |h|) + O(1/c): far out, the
displacement b no longer depends on the scale. Both numbers are measured by evaluating the step at a large multiple
of the state, never at the state itself, so that predicting the next norm from them is a test and not a tautology
(s' - s = <u, step(h) - h> + O(1/s) holds for any map, linear ones too).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.checks import require_states

Step = Callable[[Tensor], Tensor]

LARGE = 1e6  # factor at which O(1/c) is far below a measurement's error and float64 still has 10 digits of b


@dataclass(frozen=True, kw_only=True)
class AsymptoticStep:
    """step(c h) = gain c h + displacement + O(1/c) as c grows, for every token.

    Attributes:
        gain: (...,) radial gain: 1 the scale is carried, 0 it is removed, between: damped.
        displacement: (..., d) b, the part of the step that depends on the direction only.
    """

    gain: Float[Tensor, "*batch"]
    displacement: Float[Tensor, "*batch d"]

    def radial_increment(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """a = <h / |h|, b>, the Euclidean norm gained by a loop."""
        return (self.displacement * h).sum(-1) / h.norm(dim=-1)

    def next_state(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The predicted step(h) = gain h + b."""
        return self.gain[..., None] * h + self.displacement


def asymptotic_step(step: Step, h: Float[Tensor, "*batch d"]) -> AsymptoticStep:
    """Measure gain and displacement at the direction of every token's state, all tokens scaled together.

    Args:
        step: state tensor to state tensor of the same shape, float64 weights (see `LARGE`).
        h: states (..., d), float64.

    Raises:
        ValueError: h is not a finite nonzero float64 tensor, or step changes its shape.

    Source: this project; theory/ P4 (activity), P9 (b), P10 (d).
    """
    require_states(h)
    if h.dtype != torch.float64:
        raise ValueError(f"h must be float64, got {h.dtype}: convert states and weights, or b drowns in rounding.")
    near, far = step(LARGE * h), step(2 * LARGE * h)
    if near.shape != h.shape:
        raise ValueError(f"step must keep the shape of the state, {tuple(h.shape)}, got {tuple(near.shape)}.")
    gain = ((far - near) * h).sum(-1) / (LARGE * h.square().sum(-1))
    return AsymptoticStep(gain=gain, displacement=near - gain[..., None] * LARGE * h)


def regime_number(step: Step, h: Float[Tensor, "*batch d"], factor: float = 2.0) -> Float[Tensor, "*batch"]:
    """|b(factor h) - b(h)| / |b(h)|, b(h) = step(h) - gain h: how far b is from depending on the direction only.

    Near 0 the large-norm regime holds and growth can be predicted; near or above 1 it does not. A linear map
    h + M h gives `factor` - 1. `gain` is the asymptotic one, so that a recurrence that removes or damps the scale
    is judged by what it adds.

    Args:
        step: state tensor to state tensor, float64 weights.
        h: states (..., d), float64.
        factor: common factor of all tokens' states, positive and not 1.

    Returns:
        Shape (...); NaN or rounding noise where the step adds nothing at all.

    Raises:
        ValueError: as `asymptotic_step`, or an impossible factor.

    Source: this project; theory/ P9 (a).
    """
    if factor <= 0.0 or factor == 1.0:
        raise ValueError(f"factor must be positive and not 1, got {factor}.")
    gain = asymptotic_step(step, h).gain[..., None]
    here = step(h) - gain * h
    there = step(factor * h) - gain * factor * h
    return (there - here).norm(dim=-1) / here.norm(dim=-1)
