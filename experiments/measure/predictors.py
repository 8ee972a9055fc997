"""Predictors of a state's norm over further loops (theory/ P10), from one state and what the step does far out.

None of them sees the step at the states that it predicts: displacements are measured at a large multiple of a state,
so that agreement with the norms run says that the recurrence depends on direction only.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.growth import AsymptoticSlope, asymptotic_step
from loopsight.increments import second_order_step
from models import LoopedLM

Norms = Iterator[Float[Tensor, "windows time"]]
Predictor = Callable[[Float[Tensor, "windows time d"]], Norms]
"""A state h_k to |h_{k+1}|, |h_{k+2}|, ... predicted, without end."""


def predictors(model: LoopedLM, limit: AsymptoticSlope) -> Mapping[str, Predictor]:
    """By name; `gain` g is 1 where the scale is carried, b is far from the start state.

    direction_flow: h <- g h + b(h), b measured anew at every direction: log-time flow, one loop a step.
    ballistic, diffusive: |h + n b|, the same vector written in every loop, and sqrt(s^2 + n |b|^2), a fresh one.
    power_law: the increment goes from <u, b> to the limit's slope as (s / s_0)^p, p the limit's exponent.
    constant_increment: s <- g s + <u, b>.
    second_order: s <- s + <u, b> + kappa / s, kappa from the sublayers' interaction.
    direction_flow_second_order: direction_flow with the sublayers' interaction at every direction.
    asymptotic_slope: s <- g s + slope of the limiting direction.

    Args:
        model: float64.
        limit: of the direction; where it has not converged, power_law and asymptotic_slope predict NaN, power_law also
            where its slope is not positive.
    """
    methods: dict[str, Predictor] = {
        "direction_flow": lambda h: _direction_flow(model, h),
        "ballistic": lambda h: _ballistic(model, h),
        "diffusive": lambda h: _diffusive(model, h),
        "power_law": lambda h: _power_law(model, limit, h),
        "constant_increment": lambda h: _constant_increment(model, h),
        "second_order": lambda h: _second_order(model, h),
        "direction_flow_second_order": lambda h: _direction_flow_second_order(model, h),
        "asymptotic_slope": lambda h: _asymptotic_slope(model, limit, h),
    }
    if model.config.between.kind != "none":  # their expansions are about a state that enters the stack as it is
        for name in ("power_law", "second_order", "direction_flow_second_order"):
            del methods[name]
    return methods


def _direction_flow(model: LoopedLM, h: Tensor) -> Norms:
    while True:
        h = asymptotic_step(model.step, h).next_state(h)
        yield h.norm(dim=-1)


def _direction_flow_second_order(model: LoopedLM, h: Tensor) -> Norms:
    while True:
        far = second_order_step(list(model.sublayers), h)
        h = h + far.displacement + far.correction
        yield h.norm(dim=-1)


def _ballistic(model: LoopedLM, h: Tensor) -> Norms:
    far = asymptotic_step(model.step, h)
    while True:
        h = far.next_state(h)
        yield h.norm(dim=-1)


def _diffusive(model: LoopedLM, h: Tensor) -> Norms:
    far = asymptotic_step(model.step, h)
    square, written = h.square().sum(-1), far.displacement.square().sum(-1)
    while True:
        square = far.gain.square() * square + written
        yield square.sqrt()


def _constant_increment(model: LoopedLM, h: Tensor) -> Norms:
    far = asymptotic_step(model.step, h)
    yield from _increments(h.norm(dim=-1), far.gain, far.radial_increment(h))


def _asymptotic_slope(model: LoopedLM, limit: AsymptoticSlope, h: Tensor) -> Norms:
    gain = asymptotic_step(model.step, h).gain
    yield from _increments(h.norm(dim=-1), gain, torch.where(limit.converged, limit.slope, torch.nan))


def _increments(s: Tensor, gain: Tensor, increment: Tensor) -> Norms:
    while True:
        s = gain * s + increment
        yield s


def _second_order(model: LoopedLM, h: Tensor) -> Norms:
    far, s = second_order_step(list(model.sublayers), h), h.norm(dim=-1)
    first = far.first_order_increment(h)
    kappa = (far.radial_increment(h) - first) * s
    while True:
        s = s + first + kappa / s
        yield s


def _power_law(model: LoopedLM, limit: AsymptoticSlope, h: Tensor) -> Norms:
    start = s = h.norm(dim=-1)
    slope = torch.where(limit.converged & (limit.slope > 0), limit.slope, torch.nan)
    away = asymptotic_step(model.step, h).radial_increment(h) - slope
    exponent = limit.exponent.nan_to_num(0.0)  # of a direction that has arrived already: nothing is left to decay
    while True:
        s = s + slope + away * (s / start) ** exponent
        yield s
