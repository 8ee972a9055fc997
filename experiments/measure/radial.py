"""How much of a loss's gradient points along the state: of the loop's own readout, and of the whole training loss.

The first is what Lemma 1 is about. The second goes through all later loops and the penalty, so it need not be zero
where the first is: a later loop sees a state's scale by how much its update then turns the direction.
"""

import math

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.measure.context import Context
from experiments.measure.total_loss import own_loss, total_loss
from loopsight.radial import degree, epsilon_leak, radial_gradient_fraction
from models import LoopedLM
from models.norms import rms_normalise
from models.readouts import NormedReadout

COLUMNS = ["k", "immediate", "total", "random_direction", "epsilon_leak_predicted", "epsilon_leak_seen"]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Table `radial`: k = 1..K, means over the tokens that have a gradient at all; see `rows`."""
    return {"radial": pd.DataFrame(_rows(context), columns=COLUMNS)}


def _rows(context: Context) -> list[dict[str, int | float]]:
    """One row a loop.

    immediate, total: |<g, h_k>| / (|g| |h_k|), g the gradient of loop k's own cross-entropy, and of the whole training
        loss, both in float64. The penalty of a variant that has one is in the second only.
    random_direction: sqrt(2 / (pi d)), what a gradient that knows nothing of the state gives.
    epsilon_leak_*: rho with Dy(h)[h] = rho y for the readout's normalisation y, before its gain and bias; 1 for a raw
        readout, which has none.
    """
    model, num_loops = context.exact, context.trained_loops
    targets, supervision = context.exact_windows[:, 1:], context.config.supervision
    rows: list[dict[str, int | float]] = []
    for k in range(1, num_loops + 1):
        h = context.exact_states[k]
        own, whole = own_loss(model, targets, k, num_loops), total_loss(model, targets, supervision, k, num_loops)
        predicted, seen = _leaks(model, h, is_last=k == num_loops)
        rows.append(
            {
                "k": k,
                "immediate": radial_gradient_fraction(own, h).nanmean().item(),
                "total": radial_gradient_fraction(whole, h).nanmean().item(),
                "random_direction": math.sqrt(2.0 / (math.pi * h.shape[-1])),
                "epsilon_leak_predicted": predicted,
                "epsilon_leak_seen": seen,
            }
        )
    return rows


def _leaks(model: LoopedLM, h: Float[Tensor, "windows time d"], *, is_last: bool) -> tuple[float, float]:
    """rho of the readout's normalisation, from its epsilon and from its values; means over tokens (and groups)."""
    readout = model.readout_features
    if not isinstance(readout, NormedReadout) or readout.degree(is_last=is_last) == 1:
        return 1.0, degree(lambda x: readout(x, is_last=is_last), h, centred=False).by_jvp.mean().item()
    norm = readout.norm
    groups = h.unflatten(-1, (norm.num_groups, -1))
    predicted = epsilon_leak(groups, norm.eps, centred=norm.centred)
    centre = groups.mean(-1, keepdim=True) if norm.centred else torch.zeros(())
    seen = degree(lambda x: rms_normalise(x, norm.eps), groups - centre, centred=False).by_jvp
    return predicted.mean().item(), seen.mean().item()
