"""One loop's increment, loop by loop to 64: does it depend on the direction only, and does the direction settle?

Pythagoras and the angle's size are exact for any map whatever (theory/ P9), so they test nothing. What can fail is
that b stays the same when the state is rescaled (`regime_number`), that the second-order term of several sublayers is
the one predicted, and that successive steps of the direction agree.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.measure.context import Context
from loopsight import regime_number
from loopsight.increments import increment, second_order_step
from models import LoopedLM

COLUMNS = [
    "k",
    "regime_number",
    "radial_increment",
    "perpendicular_part",
    "angular_step",
    "angular_step_times_norm",
    "heading_cosine",
    "pythagoras_residual",
    "second_order_seen",
    "second_order_predicted",
]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Table `increments`: k = 0..63, the step from h_k to h_{k+1}; see `increments`."""
    return {"increments": increments(context.exact, context.exact_states)}


@torch.no_grad()
def increments(model: LoopedLM, states: Sequence[Tensor]) -> pd.DataFrame:
    """One row a step, means over tokens, float64; angles in radians, norms Euclidean.

    regime_number: |b(2 h) - b(h)| / |b(h)|, 0 where b depends on the direction only, 1 for a linear step.
    radial_increment, perpendicular_part, angular_step: <u, b>, |b - <u, b> u|, angle between h_k and h_{k+1}.
    angular_step_times_norm: angle times |h_k|; tends to the perpendicular part as the state grows.
    heading_cosine: cosine between u_{k+1} - u_k and u_k - u_{k-1}: 1 the direction keeps its heading, 0 it wanders.
    pythagoras_residual: largest over tokens of ||h_{k+1}| - hypot(s + a, beta)| / |h_{k+1}|: rounding, for any map.
    second_order_*: |h_{k+1}| - |x| - <u, bbar>, seen, and beta^2 / 2|x| + <u, c> predicted from x's direction alone;
        x is the state that enters the stack, behind the operation between loops.

    Args:
        model: float64.
        states: h_0, h_1, ..., each (windows, time, d).
    """
    rows, heading = [], None
    for k, (h, h_next) in enumerate(zip(states[:-1], states[1:], strict=True)):
        step = increment(h, h_next)
        turned = _directions(h_next) - _directions(h)
        seen, predicted = _second_order(model, h, h_next)
        residual = (h_next.norm(dim=-1) - step.next_l2_norm).abs() / h_next.norm(dim=-1)
        rows.append(
            {
                "k": k,
                "regime_number": regime_number(model.step, h).mean().item(),
                "radial_increment": step.radial_part.mean().item(),
                "perpendicular_part": step.perpendicular_part.mean().item(),
                "angular_step": step.angle.mean().item(),
                "angular_step_times_norm": (step.angle * step.l2_norm).mean().item(),
                "heading_cosine": float("nan") if heading is None else _cosine(turned, heading).mean().item(),
                "pythagoras_residual": residual.max().item(),
                "second_order_seen": seen,
                "second_order_predicted": predicted,
            }
        )
        heading = turned
    return pd.DataFrame(rows, columns=COLUMNS)


def _second_order(model: LoopedLM, h: Tensor, h_next: Tensor) -> tuple[float, float]:
    x = model.between(h)
    far = second_order_step(list(model.sublayers), x)
    first = far.first_order_increment(x)
    seen = h_next.norm(dim=-1) - x.norm(dim=-1) - first
    return seen.mean().item(), (far.radial_increment(x) - first).mean().item()


def _directions(h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    return h / h.norm(dim=-1, keepdim=True)


def _cosine(x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
