"""How a state's Euclidean norm will grow over further loops, from the state's direction alone.

A recurrence whose branches all normalise their input obeys step(c h) = gain c h + b(h / |h|) + O(1/c): far out, the
displacement b no longer depends on the scale. Both numbers are measured by evaluating the step at a large multiple
of the state, never at the state itself, so that predicting the next norm from them is a test and not a tautology
(|step(h)|^2 = (s + a)^2 + beta^2, a and beta the parts of step(h) - h along and across h, holds for any map, linear
ones too).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loopsight.checks import require_shape_kept, require_states
from loopsight.derivatives import require_double_states

Step = Callable[[Tensor], Tensor]

SLIGHT = 1e-3  # a drift that may be that of a small b beside a large state, and matters little
LARGE = 1e6  # factor at which O(1/c) is far below a measurement's error and float64 still has 10 digits of b


@dataclass(frozen=True, kw_only=True)
class AsymptoticStep:
    """step(c h) = gain c h + displacement + O(1/c) as c grows, for every token.

    Attributes:
        gain: (...,) radial gain: 1 the scale is carried, 0 it is removed, between: damped.
        displacement: (..., d) b, the part of the step that depends on the direction only.
        drift: (...,) |b(2 c h) - b(c h)| / |b(c h)| at the c where b was measured: 0 to rounding where the step has
            that form. About 1 where its linear part is no multiple of the identity along h (a decay for every channel,
            a linear injection): then `displacement` is that part times c, and nothing can be predicted with it.
    """

    gain: Float[Tensor, "*batch"]
    displacement: Float[Tensor, "*batch d"]
    drift: Float[Tensor, "*batch"]

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

    Source: this project; theory/ P4 (activity), P9, P10.
    """
    require_double_states(h)
    near, far = step(LARGE * h), step(2 * LARGE * h)
    require_shape_kept(near, h, "step")
    gain = ((far - near) * h).sum(-1) / (LARGE * h.square().sum(-1))
    carried = gain[..., None] * LARGE * h
    displacement = near - carried
    drift = (far - carried - near).norm(dim=-1) / displacement.norm(dim=-1)
    return AsymptoticStep(gain=gain, displacement=displacement, drift=drift)


def regime_number(
    step: Step, h: Float[Tensor, "*batch d"], factor: float = 2.0, *, far: AsymptoticStep | None = None
) -> Float[Tensor, "*batch"]:
    """|b(factor h) - b(h)| / |b(h)|, b(h) = step(h) - gain h: how far b is from depending on the direction only.

    Near 0 the large-norm regime holds and growth can be predicted; near or above 1 it does not. `gain` is the
    asymptotic one, so that a recurrence that removes or damps the scale is judged by what it adds. Never less than an
    `AsymptoticStep.drift` beyond rounding: where b has no limit far out there is no regime, however small the state's
    own number is (h + M h gives `factor` - 1, or 1 if that is more).

    Args:
        step: state tensor to state tensor, float64 weights.
        h: states (..., d), float64.
        factor: common factor of all tokens' states, positive and not 1.
        far: `asymptotic_step(step, h)`; measured when not given.

    Returns:
        Shape (...); NaN or rounding noise where the step adds nothing at all.

    Raises:
        ValueError: as `asymptotic_step`, or an impossible factor.

    Source: this project; theory/ P9.
    """
    if not 0.0 < factor < math.inf or factor == 1.0:
        raise ValueError(f"factor must be positive, finite and not 1, got {factor}.")
    far = asymptotic_step(step, h) if far is None else far
    gain = far.gain[..., None]
    here = step(h) - gain * h
    there = step(factor * h) - gain * factor * h
    drift = torch.where(far.drift > SLIGHT, far.drift, 0.0)
    return torch.maximum((there - here).norm(dim=-1) / here.norm(dim=-1), drift)


@dataclass(frozen=True, kw_only=True)
class AsymptoticSlope:
    """Where power iteration on the direction ended, for every token, and whether it ended anywhere.

    Attributes:
        slope: (...,) a = <u, b(u)> at the last direction: the Euclidean norm gained by a loop, in the end, where the
            scale is carried; a / (1 - gain) is the norm reached where it is damped. Negative: the state shrinks until
            the large-norm regime ends, and nothing is predicted.
        direction: (..., d) the last direction u.
        misalignment: (...,) sin of the angle between u and b(u): 0 at a direction that the recurrence keeps.
        converged: (...,) it fell to the tolerance. Where not, the slope is that of a direction on its way.
        exponent: (...,) p in |u_k - u| ~ k^p, k counting loops far out, from how fast the iteration converged (the
            leading eigenvalue taken as real); NaN where it did not, or the slope is not positive. It is that of b
            alone, a loop of one sublayer. Several push the direction aside by O(1/s), and are then no faster than 1/k:
            their power is max(p, -1), and |u_k - u| ~ log k / k where p is -1.
        iterations: of the direction, each of two evaluations of the step.
    """

    slope: Float[Tensor, "*batch"]
    direction: Float[Tensor, "*batch d"]
    misalignment: Float[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]
    exponent: Float[Tensor, "*batch"]
    iterations: int


def asymptotic_slope(
    step: Step,
    h: Float[Tensor, "*batch d"],
    *,
    inertia: float = 2.0,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> AsymptoticSlope:
    """Iterate u <- normalised(inertia |b| u + b), b = b(u) far out, until b(u) = a u; then the slope is a.

    This is the recurrence with its scale held at `inertia` |b|, so it reaches in few iterations what the recurrence,
    whose direction moves by |b| / s a loop, approaches like a power of the number of loops: do not expect the slope
    within a few dozen loops. A direction need not converge, in the recurrence either (a rotating b), and the result
    says so. Without inertia (0) it is plain power iteration, which seeks the largest |slope| and so can flip for ever
    between a direction and its opposite that the recurrence leaves alone.

    Args:
        step: state tensor to state tensor, float64 weights, evaluated at a large multiple of the direction.
        h: states (..., d) to start from, float64; only their directions matter.
        inertia: at least 0; above 1 the iterate can never vanish.
        tolerance: of the misalignment. `asymptotic_step` measures b to about 1e-10 of |u| = 1.
        max_iterations: gives up after so many.

    Raises:
        ValueError: as `asymptotic_step`, or an impossible inertia, tolerance or number of iterations.

    Source: this project; theory/ P10.
    """
    if not (inertia >= 0.0 and tolerance > 0.0 and max_iterations >= 1):
        raise ValueError(
            "expected inertia >= 0, tolerance > 0 and max_iterations >= 1, "
            f"got {inertia}, {tolerance} and {max_iterations}."
        )
    require_states(h)
    u = h / h.norm(dim=-1, keepdim=True)
    slope, misalignment = _alignment(u, b := asymptotic_step(step, u).displacement)
    contraction, iterations = torch.full_like(slope, torch.nan), 0
    converged = misalignment <= tolerance
    while not converged.all() and iterations < max_iterations:
        moved = inertia * b.norm(dim=-1, keepdim=True) * u + b
        moved = moved / moved.norm(dim=-1, keepdim=True)
        u = torch.where(torch.isfinite(moved), moved, u)  # where nothing is added the direction stays
        before = misalignment
        slope, misalignment = _alignment(u, b := asymptotic_step(step, u).displacement)
        # A token that has converged goes on to the floor of rounding, where the ratio means nothing.
        contraction = torch.where(converged, contraction, misalignment / before)
        converged, iterations = misalignment <= tolerance, iterations + 1
    return AsymptoticSlope(
        slope=slope,
        direction=u,
        misalignment=misalignment,
        converged=converged,
        exponent=torch.where(converged & (slope > 0), (contraction - 1.0) * (1.0 + inertia), torch.nan),
        iterations=iterations,
    )


def _alignment(u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """<u, b> and |b - <u, b> u| / |b|."""
    a = (u * b).sum(-1)
    return a, (b - a[..., None] * u).norm(dim=-1) / b.norm(dim=-1)
