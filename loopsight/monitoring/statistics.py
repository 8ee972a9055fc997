"""What one sample of a forward pass says of its states: norms, increments, radial gradients, distance to stagnation.

Every leading index of a state is a token. Sums are in float64 whatever the dtype of the states (float32 on a device
without float64), in pieces, so that no float64 copy of a whole state is ever held.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.increments import increment
from loopsight.precision import predicted_freeze, widest
from loopsight.radial import fraction_along

PIECE = 4096  # tokens converted to float64 at a time
FREEZE_TOKENS = 256  # evenly spaced tokens that the distance to stagnation is estimated from
STAGNATING = (torch.bfloat16, torch.float16)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def radial_fraction(gradient: Float[Tensor, "*batch d"], h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """|<g, h>| / (|g| |h|) of every token, from a gradient in hand; NaN where it is zero or not finite.

    The same number as `loopsight.radial.radial_gradient_fraction` gives for a loss whose gradient at `h` is `gradient`.

    Args:
        gradient, h: (..., d), any floating dtype; the sums are exact to float64, the gradient is not (see
            `noise_floor`).
    """
    pieces = zip(gradient.reshape(-1, h.shape[-1]).split(PIECE), h.reshape(-1, h.shape[-1]).split(PIECE), strict=True)
    return torch.cat([fraction_along(widest(g), widest(x)) for g, x in pieces]).view(h.shape[:-1])


def isotropic_fraction(d: int) -> float:
    """sqrt(2 / (pi d)), the radial fraction of a random gradient."""
    return math.sqrt(2.0 / (math.pi * d))


def noise_floor(dtype: torch.dtype, d: int) -> float:
    """eps / (2 sqrt 3) sqrt(2 / (pi d)): the radial fraction that one rounding leaves of a gradient that has none.

    Rounding moves each coordinate by up to eps / 2 of itself, evenly, so by a random vector of eps / (2 sqrt 3) of the
    gradient's length at most. A backward pass rounds many times: the floor of a real one is higher, 1 to 10 times this.

    Args:
        dtype: the coarsest in which the gradient was computed.
        d: width of the state.
    """
    return torch.finfo(dtype).eps / (2.0 * math.sqrt(3.0)) * isotropic_fraction(d)


@dataclass(frozen=True, kw_only=True)
class StateStatistics:
    """Of one state h_k. Means and maxima are over its usable tokens: finite, nonzero; None where there is none.

    Attributes:
        tokens: how many the state has.
        unusable_tokens: of these, how many are zero or hold NaN or infinity.
        nonfinite_tokens: how many hold NaN or infinity.
        mean_l2_norm, max_l2_norm: Euclidean.
        max_abs: largest coordinate, which is what overflows.
    """

    tokens: int
    unusable_tokens: int
    nonfinite_tokens: int
    mean_l2_norm: float | None
    max_l2_norm: float | None
    max_abs: float | None


def state_statistics(h: Float[Tensor, "*batch d"]) -> StateStatistics:
    """Norms of every token of a state of any floating dtype."""
    flat = h.reshape(-1, h.shape[-1])
    l2_norm = torch.cat([widest(piece).norm(dim=-1) for piece in flat.split(PIECE)])
    finite = torch.isfinite(flat).all(-1)
    usable = _usable(flat)
    some = bool(usable.any())
    return StateStatistics(
        tokens=len(flat),
        unusable_tokens=int((~usable).sum()),
        nonfinite_tokens=int((~finite).sum()),
        mean_l2_norm=l2_norm[usable].mean().item() if some else None,
        max_l2_norm=l2_norm[usable].max().item() if some else None,
        max_abs=flat[usable].abs().max().item() if some else None,
    )


@dataclass(frozen=True, kw_only=True)
class StepStatistics:
    """Of one loop, h_{k-1} to h_k: means over tokens usable at both ends.

    Attributes:
        relative_radial_increment: a / |h_{k-1}|, a = <h_{k-1} / |h_{k-1}|, h_k - h_{k-1}>.
        drive: (|h_k| - |h_{k-1}|) / |h_{k-1}|.
    """

    relative_radial_increment: float
    drive: float


def step_statistics(before: Tensor, after: Tensor) -> StepStatistics | None:
    """The two, from `loopsight.increments.increment`; None where no token is usable or shapes differ."""
    pair = _usable_pair(before, after)
    if pair is None:
        return None
    steps = [increment(widest(x), widest(y)) for x, y in zip(*(t.split(PIECE) for t in pair), strict=True)]
    radial = torch.cat([step.radial_part / step.l2_norm for step in steps])
    drive = torch.cat([step.next_l2_norm / step.l2_norm - 1.0 for step in steps])
    return StepStatistics(relative_radial_increment=radial.mean().item(), drive=drive.mean().item())


@dataclass(frozen=True, kw_only=True)
class Stagnation:
    """How far the coordinates of a residual stream are from no longer moving in a format (`predicted_freeze`).

    Attributes:
        frozen: share of coordinates that the last loop's update would not move at all.
        median_loops: further loops until half of the coordinates have stopped, the update taken as constant.
    """

    frozen: float
    median_loops: float


def stagnation(before: Tensor, after: Tensor, dtype: torch.dtype) -> Stagnation | None:
    """Of the last loop's update after - before, added again and again to `after` in `dtype`.

    Estimated on at most 256 evenly spaced tokens; None where none is usable, or the state does not fit the format.
    """
    pair = _usable_pair(before, after)
    if pair is None:
        return None
    stride = -(-len(pair[0]) // FREEZE_TOKENS)
    h, h_next = (x[::stride].cpu().double() for x in pair)
    if h_next.abs().max() > torch.finfo(dtype).max:
        return None
    loops = predicted_freeze(h_next, h_next - h, dtype).loops
    return Stagnation(frozen=(loops == 0).double().mean().item(), median_loops=loops.median().item())


def mean_fraction(fractions: Tensor | None) -> float | None:
    """Mean over the tokens that have a gradient; None where none has (no gradient is not blindness)."""
    if fractions is None or bool(fractions.isnan().all()):
        return None
    return fractions.nanmean().item()


def _usable(flat: Tensor) -> Tensor:
    return torch.isfinite(flat).all(-1) & (flat != 0).any(-1)


def _usable_pair(before: Tensor, after: Tensor) -> Sequence[Tensor] | None:
    if before.shape != after.shape:
        return None
    pair = [x.reshape(-1, x.shape[-1]) for x in (before, after)]
    usable = _usable(pair[0]) & _usable(pair[1])
    return [x[usable] for x in pair] if bool(usable.any()) else None
