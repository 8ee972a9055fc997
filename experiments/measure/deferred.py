"""What later loops show of a state's scale: deferred visibility, its law of decay, and where the loss is placed.

The radial direction is inserted at loop k and read after the loops behind it. A readout that is blind to the scale sees
it in this way only: as 1 / s^2 in the variance of logits (1 / s in the gradient) where the scale is carried.
"""

from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.measure.context import Context
from experiments.measure.slopes import log_log_slope
from experiments.measure.total_loss import own_loss, total_loss
from loopsight import asymptotic_step
from loopsight.derivatives import directional_derivative
from loopsight.growth import LARGE
from loopsight.observability import deferred_visibility
from loopsight.radial import radial_derivative
from models import LoopedLM, Supervision

FACTORS = (1.0, 10.0, 100.0, 1e3, 1e4)
FITTED_POINTS = 3  # the farthest: a state can itself be smaller than what a loop adds, and the law is asymptotic
FLOOR = 1e-26  # of a relative visibility in float64, with room: below it there is rounding
WINDOWS = 1  # of the exact windows: every loop and probe costs a forward mode of all factors through all later loops
PROBES = 2
PLACEMENTS = (Supervision(placement="terminal"), Supervision(placement="per_loop"))

DEFERRED = ["k", "factor", "visibility", "immediate_visibility", "theory_exponent", "fitted_exponent"]
COEFFICIENT_LAW = ["placement", "coefficient_predicted", "coefficient_seen"]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Tables `deferred` and `coefficient_law`; see the functions of these names."""
    model, num_loops = context.exact, context.trained_loops
    few = [h[:WINDOWS] for h in context.exact_states[:num_loops]]
    targets = context.exact_windows[:WINDOWS, 1:]
    return {
        "deferred": deferred(model, few, context.config.supervision),
        "coefficient_law": coefficient_law(model, few[0], targets, num_loops),
    }


def deferred(model: LoopedLM, states: Sequence[Tensor], supervision: Supervision) -> pd.DataFrame:
    """A row for each k = 0..K-1 and factor: how well the scale of factor x h_k is seen later, and at once.

    visibility: variance over the vocabulary (uniform) of what a relative change of all tokens' scales does to the
        logits of loops k+1..K, weighted as in training, relative to that of isotropic directions: 0 blind, 1 as visible
        as any; NaN where no later loop has a weight.
    immediate_visibility: the same for the readout of h_k itself (of k = 0 none is trained).
    fitted_exponent: log-log slope of `visibility` against the factor, over the farthest three above rounding.
    theory_exponent: 0 where a raw readout is among the later ones, -2 where all are scale-free, and -4, the square of
        the epsilon leak, where a normalisation between loops removes the scale.

    Args:
        model: float64.
        states: h_0, ..., h_{K-1}.
        supervision: weights of loops 1..K. A penalty is no part of what logits show.
    """
    rows = []
    weights = supervision.loop_weights(len(states))
    for k, h in enumerate(states):
        later = weights[k:]
        theory = _theory_exponent(model, later)
        scaled = torch.stack([factor * h for factor in FACTORS])
        seen = _visibility(model, scaled, [0.0, *later])
        own = _visibility(model, scaled, [1.0, 0.0])
        usable = [(x, y) for x, y in zip(FACTORS, seen, strict=True) if y > FLOOR][-FITTED_POINTS:]
        fitted = log_log_slope([x for x, _ in usable], [y for _, y in usable])
        rows += [[k, *pair, theory, fitted] for pair in zip(FACTORS, seen, own, strict=True)]
    return pd.DataFrame(rows, columns=DEFERRED)


def coefficient_law(
    model: LoopedLM, h: Float[Tensor, "windows time d"], targets: Int[Tensor, "windows time"], num_loops: int
) -> pd.DataFrame:
    """-c dL/dlog c / <dCE(h), b(h)> of L(c h), c far out, for a terminal and an evenly weighted per-loop loss.

    L is read after loops 1..K from the embedding on, CE by the last readout. The law (theory/ P5) says
    sum_k k w_k: K and (K + 1) / 2. It asks for scale-free readouts and nothing between loops; where one of these is
    lacking nothing is predicted (NaN).

    Args:
        model: float64.
        h: h_0.
        targets: next tokens.
        num_loops: K.
    """
    with torch.no_grad():
        b = asymptotic_step(model.step, h).displacement
    unit = (h.norm() / b.norm()).item()  # the finite differences that confirm a derivative ask for a size like h's
    slope = directional_derivative(own_loss(model, targets, num_loops, num_loops), h, unit * b)[1].item() / unit
    rows = []
    for supervision in PLACEMENTS:
        weights = supervision.loop_weights(num_loops)
        predicted = sum(k * weight for k, weight in enumerate(weights, 1))
        applies = model.config.between.kind == "none" and not _reads_scale(model, weights)
        change = radial_derivative(total_loss(model, targets, supervision, 0, num_loops), LARGE * h).item()
        rows.append([supervision.placement, predicted if applies else float("nan"), -LARGE * change / slope])
    return pd.DataFrame(rows, columns=COEFFICIENT_LAW)


def _visibility(
    model: LoopedLM, scaled: Float[Tensor, "factors windows time d"], weights: Sequence[float]
) -> list[float]:
    """Of each state's own direction, a number a factor, weights w_0, ..., w_n of the loops from it on, the last one of
    which is loop K. All factors go through the loops at once, as so many windows."""
    if not any(weights):
        return [float("nan")] * len(scaled)
    h = scaled.flatten(0, 1)
    before, last = [*weights[:-1], 0.0], [*[0.0] * (len(weights) - 1), weights[-1]]
    radial, isotropic = h.new_zeros(len(scaled)), h.new_zeros(len(scaled))
    for part, is_last in ((before, False), (last, True)):
        if not any(part):
            continue
        found = deferred_visibility(
            model.step,
            partial(model.readout, is_last=is_last),
            h,
            h,
            part,
            generator=torch.Generator(h.device).manual_seed(0),
            probes=PROBES,
        )
        radial += found.uniform.view(len(scaled), -1).sum(1)
        isotropic += found.isotropic_uniform.view(len(scaled), -1).sum(1)
    return (radial / isotropic).tolist()


def _reads_scale(model: LoopedLM, weights: Sequence[float]) -> bool:
    """Whether a readout with a weight is not scale-free; the last weight is loop K's."""
    last = len(weights) - 1
    degrees = (model.readout_features.degree(is_last=n == last) for n, weight in enumerate(weights) if weight != 0.0)
    return any(degree != 0 for degree in degrees)


def _theory_exponent(model: LoopedLM, later: Sequence[float]) -> float:
    if not any(later):
        return float("nan")
    if model.config.between.kind == "rmsnorm":
        return -4.0
    return 0.0 if _reads_scale(model, later) else -2.0
