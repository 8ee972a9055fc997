"""Norms at further loops from one state, and when a low-precision residual stream stops moving or overflows.

Far out, step(h) = gain h + b with b a function of the direction (`loopsight.growth`), so the direction turns the slower
the larger the state is: the scale is a clock. The forecast follows the directions in strides of many loops, each a
fixed share of |h| / |b|, so that 8 K loops cost about log K evaluations of the step; none is at the state's own scale.

    bounds after n loops:  gain^n s + S (min a - r)  to  gain^n s + S (max |b| + r),    S = 1 + gain + ... + gain^(n-1)

with a = <u, b>; min and max over the directions passed, for every token; r = 2 `regime_number` |b| allows for what b
still changes with the scale. They are bounds for that model of the step, not for any step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loopsight.auditing.report import Forecast, Growth, LowPrecision
from loopsight.growth import AsymptoticStep, asymptotic_step, regime_number
from loopsight.precision import predicted_freeze

StateMap = Callable[[Tensor], Tensor]

IN_REGIME = 0.5  # largest regime number at which a forecast is made
STRIDE = 0.25  # of |h| / |b|
MOST_STRIDES = 24
CARRIED = 0.95  # gain from which on the state keeps growing
FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.no_grad()
def growth(step: StateMap, first: Tensor, last: Tensor, num_loops: int, observed: dict[int, float]) -> Growth:
    """Everything about the norm that a state tells.

    Args:
        step: in exact arithmetic.
        first, last: h_1 and h_K, float64; K is forecast from the first, more loops from the last.
        observed: mean norms over the same tokens, by number of loops.
    """
    far = asymptotic_step(step, last)
    number = _regime(step, last)
    forecasts = [Forecast(loops=num_loops, **_norms(step, first, [num_loops - 1])[0], observed=observed[num_loops])]
    ahead = [num_loops, 3 * num_loops, 7 * num_loops]
    for n, norms in zip(ahead, _norms(step, last, ahead), strict=True):
        forecasts.append(Forecast(loops=num_loops + n, **norms, observed=observed.get(num_loops + n)))
    return Growth(
        regime_number=number.median().item(),
        gain=far.gain.median().item(),
        radial_increment=far.radial_increment(last).median().item(),
        displacement=far.displacement.norm(dim=-1).median().item(),
        forecasts=tuple(forecasts),
        low_precision=tuple(_low_precision(name, dtype, far, last) for name, dtype in FORMATS.items()),
    )


@dataclass(frozen=True, kw_only=True)
class _Position:
    """Where a forecast stands: n loops ahead, state predicted, extremes of a and |b| on the way, for every token."""

    n: int
    h: Tensor
    least: Tensor
    most: Tensor


def _norms(step: StateMap, h: Tensor, ahead: Sequence[int]) -> list[dict[str, float | None]]:
    """Mean predicted norm and its bounds after each number of loops, ascending; None outside the regime."""
    number = _regime(step, h)
    if not number.median() <= IN_REGIME:
        return [{"predicted": None, "low": None, "high": None} for _ in ahead]
    start, result = h.norm(dim=-1), []
    zero = torch.zeros_like(start)
    here = _Position(n=0, h=h, least=torch.full_like(start, torch.inf), most=zero)
    gain = asymptotic_step(step, h).gain
    for target in ahead:
        here = _advance(step, here, target, shortest=math.ceil(ahead[-1] / MOST_STRIDES))
        total, power = _sum_of_powers(gain, here.n), gain.abs() ** here.n
        slack = 2.0 * number * here.most
        low = power * start + total * (here.least - slack if here.n else zero)
        high = power * start + total * (here.most + slack)
        result.append(
            {
                "predicted": here.h.norm(dim=-1).mean().item(),
                "low": low.clamp(min=0.0).mean().item(),
                "high": high.mean().item(),
            }
        )
    return result


def _advance(step: StateMap, here: _Position, target: int, shortest: int) -> _Position:
    while here.n < target:
        far = asymptotic_step(step, here.h)
        size = far.displacement.norm(dim=-1)
        ratio = (here.h.norm(dim=-1) / size).nan_to_num(posinf=target).median().item()
        loops = min(max(int(STRIDE * ratio), shortest, 1), target - here.n)
        total, power = _sum_of_powers(far.gain, loops), far.gain**loops
        here = _Position(
            n=here.n + loops,
            h=power[..., None] * here.h + total[..., None] * far.displacement,
            least=torch.minimum(here.least, far.radial_increment(here.h)),
            most=torch.maximum(here.most, size),
        )
    return here


def _sum_of_powers(gain: Tensor, n: int) -> Tensor:
    return torch.where((gain - 1.0).abs() < 1e-6, float(n), (1.0 - gain**n) / (1.0 - gain))


def _regime(step: StateMap, h: Tensor) -> Tensor:
    """NaN, where a step adds nothing at all, counts as 0: nothing is exactly what it will go on adding."""
    return regime_number(step, h).nan_to_num(nan=0.0, posinf=math.inf)


def _low_precision(name: str, dtype: torch.dtype, far: AsymptoticStep, h: Tensor) -> LowPrecision:
    """At the present displacement; a stream whose scale is not carried reaches neither by growing."""
    largest = torch.finfo(dtype).max
    if (h.abs() > largest).any():
        return LowPrecision(dtype=name, loops_until_stagnation=0.0, loops_until_overflow=0.0)
    if not far.gain.median() >= CARRIED:
        return LowPrecision(dtype=name, loops_until_stagnation=math.inf, loops_until_overflow=math.inf)
    freeze = predicted_freeze(h, far.displacement, dtype)
    overflows = torch.isinf(freeze.level)
    stagnation = torch.where(overflows, torch.inf, freeze.loops).median().item()
    way = (largest - h * far.displacement.sign()) / far.displacement.abs()
    overflow = way[overflows].min().item() if overflows.any() else math.inf
    return LowPrecision(dtype=name, loops_until_stagnation=stagnation, loops_until_overflow=overflow)
