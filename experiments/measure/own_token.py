"""What becomes of the token that went in, along a training: how much of its embedding is left in the last loop's state.

A tied head multiplies the state by that embedding. Behind a readout that normalises its logit falls where the state
grows across it, behind any where the embedding is taken back. Means over tokens are taken off, but for one column: a
vector common to all tokens has an inner product with their embeddings, too, and is no part of any of them.
"""

import copy

import pandas as pd
import torch
from torch import Tensor

from experiments.measure.attribution import read_snapshots
from experiments.measure.context import Context
from loopsight.common_vector import common_vector

WINDOWS = 16
OWN_TOKEN = ["step", "embedding_left", "centred_left", "norm_ratio", "own_logit"]


@torch.no_grad()
def measure(context: Context) -> dict[str, pd.DataFrame]:
    """`own_token`, a row a step whose weights were kept, or the last alone: embedding_left (sum over held-out tokens of
    <h_K, e> over that of <h_0, e>, e the token's row of the embedding), centred_left (the same of what differs between
    tokens), norm_ratio (sum of |h_K| over that of |h_0|), own_logit (mean <f, w>, f what differs between tokens of the
    features that the head gets, w its row for the token that went in).

    Raises:
        RunError: a snapshot is damaged or of another configuration.
    """
    model, inputs = copy.deepcopy(context.model), context.windows[:WINDOWS, :-1]
    kept = read_snapshots(context.folder, context.model) or {context.config.training.steps: context.model.state_dict()}
    rows = []
    for step, weights in kept.items():
        model.load_state_dict(weights)
        e, states = model.token_embedding(inputs), model(inputs, context.trained_loops)
        first, last = states[0], states[-1]
        features = model.readout_features(last, is_last=True)
        found = (
            _total(last, e) / _total(first, e),
            _total(_centred(last), _centred(e)) / _total(_centred(first), _centred(e)),
            last.norm(dim=-1).sum() / first.norm(dim=-1).sum(),
            _total(_centred(features), model.head_weight[inputs]) / inputs.numel(),
        )
        rows.append([step, *(value.item() for value in found)])
    return {"own_token": pd.DataFrame(rows, columns=OWN_TOKEN)}


def _total(a: Tensor, b: Tensor) -> Tensor:
    """Sum over tokens of their inner products."""
    return (a.double() * b.double()).sum()


def _centred(a: Tensor) -> Tensor:
    return a - common_vector(a)
