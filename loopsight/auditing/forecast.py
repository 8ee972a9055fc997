"""Norms at further loops from one state, and when a low-precision residual stream stops moving or overflows.

Far out, step(h) = gain h + b with b a function of the direction (`loopsight.growth`), so the direction turns the slower
the larger the state is: the scale is a clock. The forecast follows the directions in strides of many loops, each a
fixed share of |h| / |b|, so that 8 K loops cost about log K evaluations of the step; none is at the state's own scale.

    bounds after n loops:  gain^n s + S (min a - r)  to  gain^n s + S (max |b| + r),    S = 1 + gain + ... + gain^(n-1)

with a = <u, b>; min and max over the directions passed, for every token; r = 2 `regime_number` |b| allows for what b
still changes with the scale. They are bounds for that model of the step, not for any step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loopsight.auditing.report import Forecast, Growth, LowPrecision
from loopsight.growth import LARGE, AsymptoticStep, asymptotic_step, regime_number
from loopsight.precision import predicted_freeze, significand_bits
from loopsight.responses import StateMap

IN_REGIME = 0.5  # largest regime number at which a forecast is made
STRIDE = 0.25  # of |h| / |b|
MOST_STRIDES = 24
STILL = 1e-9  # of |h|: a displacement that is no more than rounding
KEPT = 1e-6  # gains nearer to 1, or to 0, are that
SETTLED = 0.1  # of where a damped stream would settle: stopping no farther from it is having settled
NEGLIGIBLE = 0.05  # of half a spacing: a factor that adds no more, beside a b that adds half of one
FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.no_grad()
def growth(
    step: StateMap, first: Tensor, last: Tensor, far: AsymptoticStep, num_loops: int, observed: dict[int, float]
) -> Growth:
    """Everything about the norm that a state tells.

    Args:
        step: in exact arithmetic.
        first, last: h_1 and h_K, float64; K is forecast from the first, more loops from the last.
        far: the step far out in the direction of the last.
        observed: mean norms over the same tokens, by number of loops.
    """
    start, end = _Start.measured(step, first, asymptotic_step(step, first)), _Start.measured(step, last, far)
    forecasts = [Forecast(loops=num_loops, **_norms(step, start, [num_loops - 1])[0], observed=observed[num_loops])]
    ahead = [num_loops, 3 * num_loops, 7 * num_loops]
    for n, norms in zip(ahead, _norms(step, end, ahead), strict=True):
        forecasts.append(Forecast(loops=num_loops + n, **norms, observed=observed.get(num_loops + n)))
    limit = has_limit(far, last)
    return Growth(
        regime_number=end.regime.median().item(),
        gain=end.far.gain.median().item(),
        radial_increment=end.far.radial_increment(last).median().item() if limit else math.nan,
        displacement=end.far.displacement.norm(dim=-1).median().item() if limit else math.nan,
        forecasts=tuple(forecasts),
        low_precision=tuple(_low_precision(name, dtype, end) for name, dtype in FORMATS.items()),
    )


def has_limit(far: AsymptoticStep, h: Tensor) -> bool:
    """Whether what the step adds far out depends on the direction only, at most tokens; rounding counts as nothing."""
    return bool(torch.where(_still(far, h), 0.0, far.drift).median() <= IN_REGIME)


def _still(far: AsymptoticStep, h: Tensor) -> Tensor:
    return far.displacement.norm(dim=-1) <= STILL * h.norm(dim=-1)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Where a forecast starts: the state, the step far out in its direction, and the regime number of every token."""

    h: Tensor
    far: AsymptoticStep
    regime: Tensor

    @classmethod
    def measured(cls, step: StateMap, h: Tensor, far: AsymptoticStep) -> "_Start":
        regime = regime_number(step, h, far=far)
        # Where a step adds nothing, or rounding, nothing is exactly what it will go on adding.
        regime = torch.where(_still(far, h), 0.0, regime)
        # Far out the step itself may be no number, or turn the state round; then there is no regime to be in.
        in_regime = far.gain.isfinite() & (far.gain > -KEPT)
        return cls(h=h, far=far, regime=torch.where(in_regime, regime, math.inf))


@dataclass(frozen=True, kw_only=True)
class _Position:
    """n loops ahead: the state predicted, b in its direction, extremes of a and |b| on the way, for every token."""

    n: int
    h: Tensor
    displacement: Tensor
    least: Tensor
    most: Tensor


def _norms(step: StateMap, start: _Start, ahead: Sequence[int]) -> list[dict[str, float | None]]:
    """Mean predicted norm and its bounds after each number of loops, ascending; None outside the regime."""
    if not start.regime.median() <= IN_REGIME:
        return [{"predicted": None, "low": None, "high": None} for _ in ahead]
    size, gain, b = start.h.norm(dim=-1), start.far.gain, start.far.displacement
    here = _Position(n=0, h=start.h, displacement=b, least=start.far.radial_increment(start.h), most=b.norm(dim=-1))
    result: list[dict[str, float | None]] = []
    for target in ahead:
        while here.n < target:
            here = _strided(step, here, gain, target, shortest=math.ceil(ahead[-1] / MOST_STRIDES))
        total, power = _sum_of_powers(gain, here.n), gain.abs() ** here.n
        slack = 2.0 * start.regime * here.most
        low = (power * size + total * (here.least - slack)).clamp(min=0.0)
        high = power * size + total * (here.most + slack)
        names = ("predicted", "low", "high")
        values = (x.mean().item() for x in (here.h.norm(dim=-1), low, high))
        result.append(dict(zip(names, values, strict=True)))
    return result


def _strided(step: StateMap, here: _Position, gain: Tensor, target: int, shortest: int) -> _Position:
    """As many loops with the same b as turn the state by a fixed share, then b anew; the gain stays what it was."""
    size = here.displacement.norm(dim=-1)
    ratio = (here.h.norm(dim=-1) / size).nan_to_num(nan=1.0, posinf=target).median().item()
    loops = min(max(int(STRIDE * ratio), shortest, 1), target - here.n)
    total, power = _sum_of_powers(gain, loops), gain**loops
    h = power[..., None] * here.h + total[..., None] * here.displacement
    b = step(LARGE * h) - gain[..., None] * LARGE * h
    return _Position(
        n=here.n + loops,
        h=h,
        displacement=b,
        least=torch.minimum(here.least, (b * h).sum(-1) / h.norm(dim=-1)),
        most=torch.maximum(here.most, b.norm(dim=-1)),
    )


def _sum_of_powers(gain: Tensor, n: int) -> Tensor:
    return torch.where((gain - 1.0).abs() < KEPT, float(n), (1.0 - gain**n) / (1.0 - gain))


def _low_precision(name: str, dtype: torch.dtype, start: _Start) -> LowPrecision:
    """At the present displacement b. A damped stream settles at b / (1 - gain), and may not get as far as the format's
    largest number. It moves by less and less, so that it stops short of there by half a spacing / (1 - gain); where
    that is little it has settled before it stagnates, where it is much nobody has worked out when it stops. So it is
    with a stream that grows by a factor: one that adds half a spacing to every number is never held, one that adds
    little beside b stops where b alone would."""
    h, far, half_spacing = start.h, start.far, 2.0 ** -significand_bits(dtype)  # relative, at the start of a binade
    largest, gain = torch.finfo(dtype).max, far.gain.median().item()
    if (h.abs() > largest).any():
        return LowPrecision(dtype=name, loops_until_stagnation=0.0, loops_until_overflow=0.0)
    # Outside the regime, and where a step turns the state round, b does not say where it leads.
    if not start.regime.median() <= IN_REGIME:
        return LowPrecision(dtype=name, loops_until_stagnation=math.nan, loops_until_overflow=math.nan)
    b, freeze = far.displacement, predicted_freeze(h, far.displacement, dtype)
    overflows = torch.isinf(freeze.level)
    if gain > 1.0 + KEPT:
        if gain > 1.0 + half_spacing:
            overflow = _loops_growing(largest, h, b, gain)
            return LowPrecision(dtype=name, loops_until_stagnation=math.inf, loops_until_overflow=overflow)
        if gain > 1.0 + NEGLIGIBLE * half_spacing:
            return LowPrecision(dtype=name, loops_until_stagnation=math.nan, loops_until_overflow=math.nan)
    if gain >= 1.0 - KEPT:
        stagnation = torch.where(overflows, torch.inf, freeze.loops).median().item()
    else:
        short = half_spacing / 2.0 / (1.0 - gain)
        stagnation = math.inf if short <= SETTLED else math.nan
    overflow = torch.where(overflows, _loops_to(largest, h, b, gain), torch.inf).min().item()
    return LowPrecision(dtype=name, loops_until_stagnation=stagnation, loops_until_overflow=overflow)


def _loops_growing(level: float, h: Tensor, b: Tensor, gain: float) -> float:
    """Loops x <- gain x + b until the first coordinate is at the level: x + b / (gain - 1) grows by the factor."""
    fixed = b / (gain - 1.0)
    start = h + fixed
    end = torch.where(start > 0, level, -level) + fixed
    return (torch.log(end / start) / math.log(gain)).nan_to_num(nan=math.inf).min().item()


def _loops_to(level: float, h: Tensor, b: Tensor, gain: float) -> Tensor:
    """Loops x <- gain x + |b| until x = level, x starting from each coordinate along its b; infinite if never."""
    start, size = h * b.sign(), b.abs()
    if gain >= 1.0 - KEPT:
        return (level - start) / size
    limit = size / (1.0 - gain)
    loops = torch.log((limit - level) / (limit - start)) / math.log(max(gain, KEPT))
    return torch.where(limit > level, loops, torch.inf)
