"""When a residual stream held in a low-precision format stops moving: the state outgrows the spacing of its numbers.

A format with a p-bit significand (bfloat16 8, float16 11, hidden bit included) has numbers 2^(e - p + 1) apart in
[2^e, 2^(e + 1)). Adding b to a coordinate there does nothing once |b| is below half of that; where it is exactly half,
the sum is rounded to the even multiple. (Autocast keeps the stream in float32; this is about streams stored in the
format itself.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loopsight.checks import require_shape_kept, require_states

Step = Callable[[Tensor], Tensor]


def significand_bits(dtype: torch.dtype) -> int:
    """p, hidden bit included: bfloat16 8, float16 11, float32 24, float64 53.

    Raises:
        ValueError: dtype is no floating-point format.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point format, got {dtype}.")
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def widest(x: Tensor) -> Tensor:
    """The tensor in the widest floating dtype its device has: float64, on Apple's GPUs float32."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """Where adding a constant b to every coordinate ends.

    Attributes:
        level: (..., d) |h_i| at which it stops, at least 2^p |b_i| and below 2^(p + 1) |b_i|; beyond that, where it
            stands or one spacing from there; infinite where the format overflows first (float16 from |b_i| > 16 on),
            at once if b_i itself does not fit it.
        loops: (..., d) loops until then, or until it overflows, to within one or two where b does not oppose the state.
            A state that is a small multiple of b takes between 2^p and 1.5 x 2^p, whatever the size of b.
    """

    level: Float[Tensor, "*batch d"]
    loops: Float[Tensor, "*batch d"]


def predicted_freeze(h: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch d"], dtype: torch.dtype) -> Freeze:
    """2^(p + ceil(log2 |b_i|)), the first binade whose half spacing is not below |b_i|, and the way there.

    The way is walked binade by binade, since the step that is really taken is b rounded to the binade's spacing, in the
    last one up to twice b. A state beyond that level stays where it is, unless |b_i| is exactly half a spacing there
    and the state an odd multiple of the spacing: then it is rounded to the next even one, and stays there (from 258 in
    bfloat16, + 1 leads to 260). That may be the level itself, from where b against the state leads back.

    Args:
        h: states (..., d) to start from.
        b: what every loop adds, (..., d), finite, taken as constant; a coordinate with b_i = 0 does not move.
        dtype: the format of the residual stream.

    Raises:
        ValueError: h or b is not a finite float tensor (h nonzero), their shapes differ, or dtype is no float format.

    Source: this project; theory/ P17.
    """
    p = significand_bits(dtype)
    require_states(h)
    if b.shape != h.shape or not b.is_floating_point() or not torch.isfinite(b).all():
        raise ValueError(f"b must be a finite float tensor of the shape of h, {tuple(h.shape)}, got {tuple(b.shape)}.")
    start, added = h.to(dtype), b.to(dtype)
    fits = torch.isfinite(added)
    level = _freezing_level(torch.where((added != 0) & fits, added.double().abs(), 1.0), p)
    tied = fits & (start + added != start) & (start.double().abs() > level)
    start = torch.where(tied, start + added, start)
    still = start + added == start
    size = torch.where(still | ~fits, 1.0, added.double().abs())
    position = start.double() * added.double().sign()  # along b: it falls towards zero where b opposes the state
    loops = torch.zeros_like(position)
    exponent = size.log2().floor()
    approach = ((2.0**exponent - position) / size).ceil().clamp(min=0.0)
    position, loops = position + approach * size, loops + approach
    for _ in range(p + 1):
        spacing = 2.0 ** (exponent - p + 1)
        taken = spacing * (size / spacing).round()  # half to even, as the format's own addition
        n = ((2.0 ** (exponent + 1) - position) / taken).ceil().clamp(min=0.0)
        n = torch.where((taken > 0) & (2.0**exponent <= torch.finfo(dtype).max), n, 0.0)
        position, loops, exponent = position + n * taken, loops + n, exponent + 1
    # The last binade's step is one spacing, so its end is met exactly.
    level = torch.where((level > torch.finfo(dtype).max) | ~fits, torch.inf, level)
    loops = torch.where(fits, torch.where(still, 0.0, loops) + tied, 1.0)
    return Freeze(level=torch.where(still, start.double().abs(), level), loops=loops)


def _freezing_level(size: Float[Tensor, "*batch"], p: int) -> Float[Tensor, "*batch"]:
    """2^(p + ceil(log2 size)), for updates of that size, positive."""
    return 2.0 ** (p + size.log2().ceil())


@dataclass(frozen=True, kw_only=True)
class LowPrecisionRun:
    """What a recurrence did with its residual stream held in a low-precision format, for every token.

    Attributes:
        states: (..., d) the last state, in the format.
        moved: (...,) loops, counted from 1, after which a token's state last changed; 0: it never did.
        stopped: (...,) it did not move in the last loop of the run. False: it did, or it has overflowed.
    """

    states: Float[Tensor, "*batch d"]
    moved: Int[Tensor, "*batch"]
    stopped: Bool[Tensor, "*batch"]


def low_precision_run(
    sublayers: Sequence[Step], h: Float[Tensor, "*batch d"], dtype: torch.dtype, max_loops: int
) -> LowPrecisionRun:
    """Loop with h <- h + b, b and the sum rounded to `dtype`; b = sublayer(h) - h is computed in the dtype of `h`.

    So only the residual addition is in low precision. Once no token has moved in a loop, none ever will; the run ends
    there, or with the first overflow.

    Args:
        sublayers: the residual steps of one loop, in order; `[step]` where a loop is not taken apart.
        h: states to start from, (..., d), in the dtype of the weights (float64 or float32).
        dtype: the format of the residual stream.
        max_loops: the run ends here if not before.

    Raises:
        ValueError: h is not a finite nonzero float tensor, no sublayer or no loop is asked for, dtype is no float
            format, or a sublayer changes the shape.

    Source: this project; theory/ P17.
    """
    significand_bits(dtype)
    require_states(h)
    if not sublayers or max_loops < 1:
        raise ValueError(f"expected at least 1 sublayer and 1 loop, got {len(sublayers)} and {max_loops}.")
    stream = h.to(dtype)
    moved = torch.zeros(h.shape[:-1], dtype=torch.int64, device=h.device)
    moving = torch.ones_like(moved, dtype=torch.bool)
    for loop in range(1, max_loops + 1):
        before = stream
        for sublayer in sublayers:
            stream = stream + _branch(sublayer, stream.to(h.dtype)).to(dtype)
        moving = (stream != before).any(-1)
        moved[moving] = loop
        if not moving.any() or not torch.isfinite(stream).all():
            break
    return LowPrecisionRun(states=stream, moved=moved, stopped=~moving & torch.isfinite(stream).all(-1))


def _branch(sublayer: Step, h: Tensor) -> Tensor:
    out = sublayer(h)
    require_shape_kept(out, h, "a sublayer")
    return out - h
