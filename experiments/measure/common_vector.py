"""How much of the last loop's state was one vector common to all tokens during training, and what the loss said to it.

From the weights kept along training, on held-out tokens.
"""

import copy
from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from experiments.measure.attribution import read_snapshots
from experiments.measure.context import Context
from experiments.measure.total_loss import own_loss
from loopsight.attribution import Parameters
from loopsight.common_vector import common_derivative, common_fraction
from models import LoopedLM

WINDOWS = 16
COMMON = ["step", "l2_norm", "common_fraction", "common_derivative"]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Table `common`; empty for a run that kept no weights along training.

    Raises:
        RunError: a snapshot is damaged or of another configuration.
    """
    kept = read_snapshots(context.folder, context.model)
    return {"common": common(context.model, kept, context.windows[:WINDOWS])}


def common(model: LoopedLM, kept: Mapping[int, Parameters], windows: Int[Tensor, "windows length"]) -> pd.DataFrame:
    """At each snapshot, of h_K over all tokens: mean Euclidean norm, `common_fraction`, and `common_derivative` of the
    last readout's cross-entropy (nats a token).

    Args:
        model: whose weights are replaced in a copy.
        kept: weights by step.
        windows: of inputs and one target more.
    """
    model, num_loops, rows = copy.deepcopy(model), model.config.num_loops, []
    loss = own_loss(model, windows[:, 1:], num_loops, num_loops)
    for step, weights in kept.items():
        model.load_state_dict(weights)
        with torch.no_grad():
            last = model(windows[:, :-1], num_loops)[-1]
        leaf = last.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        found = (last.norm(dim=-1).mean(), common_fraction(last), common_derivative(gradient, last))
        rows.append([step, *(value.item() for value in found)])
    return pd.DataFrame(rows, columns=COMMON)
