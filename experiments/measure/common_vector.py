"""How much of the last loop's state was one vector common to all tokens during training, and what its loss, and the
first loop's of its own state, said to that.

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
COMMON = ["step", "l2_norm", "common_fraction", "common_derivative", "first_common_derivative"]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Table `common`; empty for a run that kept no weights along training.

    Raises:
        RunError: a snapshot is damaged or of another configuration.
    """
    kept = read_snapshots(context.folder, context.model)
    return {"common": common(context.model, kept, context.windows[:WINDOWS])}


def common(model: LoopedLM, kept: Mapping[int, Parameters], windows: Int[Tensor, "windows length"]) -> pd.DataFrame:
    """At each snapshot, of h_K over all tokens: mean Euclidean norm, `common_fraction`, and `common_derivative` of the
    last readout's cross-entropy (nats a token); and that derivative of the first readout's, of h_1.

    Args:
        model: whose weights are replaced in a copy.
        kept: weights by step.
        windows: of inputs and one target more.
    """
    model, num_loops, rows = copy.deepcopy(model), model.config.num_loops, []
    for step, weights in kept.items():
        model.load_state_dict(weights)
        with torch.no_grad():
            states = model(windows[:, :-1], num_loops)
        last, asked = states[-1], []
        for loop in (num_loops, 1):
            leaf = states[loop].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(own_loss(model, windows[:, 1:], loop, num_loops)(leaf), leaf)
            asked.append(common_derivative(gradient, states[loop]))
        found = (last.norm(dim=-1).mean(), common_fraction(last), *asked)
        rows.append([step, *(value.item() for value in found)])
    return pd.DataFrame(rows, columns=COMMON)
