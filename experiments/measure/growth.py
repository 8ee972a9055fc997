"""Growth over loops beyond the trained ones: predicted from the checkpoint, and run."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.measure.context import Context
from experiments.measure.predictors import Predictor, predictors
from experiments.measure.slopes import log_log_slope
from experiments.measure.statistics import t_interval
from loopsight.growth import AsymptoticSlope, asymptotic_slope, asymptotic_step
from loopsight.increments import loop_growth
from models import LoopedLM

FIRST_FITTED, FIRST_LATE = 5, 33  # exponents are fitted to loops 5..64 and 33..64
TOLERANCE = 1e-3  # of the limiting direction: its slope is then good to about as much
FIRST_TRIAL, LAST_TRIAL = 60, 150  # iterations towards it
WINDOWS = 2  # of the exact windows, for predictions: each evaluates the step as often as the run does, or more
SETTLING = 0.2  # largest misalignment after the first trial that is worth the last: many models have no limit

GROWTH = ["k", "l2_norm_trained", "l2_norm_seen", "method", "l2_norm_predicted", "low", "high"]
EXPONENT = ["quantity", "estimate", "low", "high"]


@torch.no_grad()
def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Tables `growth` and `growth_exponent`; see the functions of these names."""
    model, states, num_loops = context.exact, context.exact_states, context.trained_loops
    few = [h[:WINDOWS] for h in states]
    limit = limiting_direction(model, few[num_loops])
    return {
        "growth": growth(predictors(model, limit), few, num_loops),
        "growth_exponent": growth_exponent(model, limit, states, num_loops),
    }


def limiting_direction(model: LoopedLM, h: Float[Tensor, "windows time d"]) -> AsymptoticSlope:
    """Where the direction of `h` tends; given up early where it is not settling, as with most raw readouts."""

    def search(max_iterations: int) -> AsymptoticSlope:
        return asymptotic_slope(model.step, h, inertia=1.0, tolerance=TOLERANCE, max_iterations=max_iterations)

    limit = search(FIRST_TRIAL)
    settling = limit.misalignment.mean() < SETTLING and not limit.converged.all()
    return search(LAST_TRIAL) if settling else limit


def growth(methods: Mapping[str, Predictor], states: Sequence[Tensor], num_loops: int) -> pd.DataFrame:
    """A row for each loop k = K+1..64 and method: mean |h_k| over tokens, predicted from h_K, and as run.

    l2_norm_trained: mean |h_K| over the same tokens, what "no growth" would predict.

    low, high: the prediction -+ (k - K) e, e the method's largest error a loop when it predicts |h_K| from h_1, ...,
    h_{K-1}: what a user can know without running further loops. A hindcast, not a guarantee; NaN for K = 1.

    Args:
        methods: by name.
        states: h_0, ..., h_64.
        num_loops: K.
    """
    seen = [h.norm(dim=-1).mean().item() for h in states]
    rows = []
    for name, predict in methods.items():
        ahead = _means(predict, states[num_loops], len(states) - 1 - num_loops)
        errors = [
            abs(_means(predict, states[start], num_loops - start)[-1] - seen[num_loops]) / (num_loops - start)
            for start in range(1, num_loops)
        ]
        error = max(errors) if errors else float("nan")
        for k, predicted in enumerate(ahead, num_loops + 1):
            band = (k - num_loops) * error
            rows.append([k, seen[num_loops], seen[k], name, predicted, predicted - band, predicted + band])
    return pd.DataFrame(rows, columns=GROWTH)


def growth_exponent(model: LoopedLM, limit: AsymptoticSlope, states: Sequence[Tensor], num_loops: int) -> pd.DataFrame:
    """How the norm grows from loop K on; estimates are means over windows, with Student's 95 % interval over them.

    exponent, exponent_late: log-log slope of a window's mean |h_k| against k, k = 5..64 and 33..64: 1 ballistic, 0.5
        diffusive; where h_K is long already, it comes near either only late.
    coherent_share: part of |h_64|^2 - |h_K|^2 made by what is written along the state, sum 2 s a: 1 ballistic, 0
        diffusive; NaN where the norm has not grown.
    carry: radial gain of a loop far out, at h_K: 1 the scale is carried, 0 removed.
    slope_predicted: Euclidean norm that the next loop adds, from h_K's direction.
    slope_seen: (|h_64| - |h_K|) / (64 - K).
    slope_asymptotic: increment at the direction to which the recurrence tends, NaN unless it converges at every token.
    direction_converged: share of tokens whose direction converges, a plain count.

    Args:
        model: float64.
        limit: from the first windows' h_K.
        states: h_0, ..., h_64.
        num_loops: K.
    """
    far, last = asymptotic_step(model.step, states[num_loops]), len(states) - 1
    norms = torch.stack([h.norm(dim=-1) for h in states])
    written = loop_growth(states[num_loops:])
    coherent, grown = written.coherent[-1].mean(-1), (written.coherent + written.incoherent)[-1].mean(-1)
    lost = (far.gain - 1.0) * norms[num_loops]
    by_window: dict[str, Tensor] = {
        "exponent": _exponents(norms.mean(-1), FIRST_FITTED),
        "exponent_late": _exponents(norms.mean(-1), FIRST_LATE),
        "coherent_share": torch.where(grown > 0, coherent / grown, torch.nan),
        "carry": far.gain.mean(-1),
        "slope_predicted": (lost + far.radial_increment(states[num_loops])).mean(-1),
        "slope_seen": ((norms[last] - norms[num_loops]) / (last - num_loops)).mean(-1),
        "slope_asymptotic": torch.where(limit.converged, limit.slope, torch.nan).mean(-1),
    }
    rows: list[list[str | float]] = []
    for quantity, values in by_window.items():
        interval = t_interval(values.tolist())
        low, high = (math.nan if bound is None else bound for bound in (interval.low, interval.high))
        rows.append([quantity, interval.mean, low, high])
    rows.append(["direction_converged", limit.converged.double().mean().item(), math.nan, math.nan])
    return pd.DataFrame(rows, columns=EXPONENT)


def _exponents(norms: Float[Tensor, "states windows"], first: int) -> Float[Tensor, " windows"]:
    loops = [float(k) for k in range(first, len(norms))]
    return torch.tensor([log_log_slope(loops, window) for window in norms[first:].T.tolist()], dtype=norms.dtype)


def _means(predict: Predictor, h: Tensor, loops: int) -> list[float]:
    return [norms.mean().item() for norms in islice(predict(h), loops)]
