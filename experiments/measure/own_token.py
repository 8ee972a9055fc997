"""What becomes of the token that went in: how much of its embedding is left in the state, and how likely it is called.

A tied head multiplies the state by that embedding. A readout that normalises gives it a small logit where the state has
grown across it, a raw one only where it was taken back.
"""

import pandas as pd
import torch
from torch import Tensor

from experiments.measure.context import Context
from experiments.measure.forward import decode

WINDOWS = 16


@torch.no_grad()
def measure(context: Context) -> dict[str, pd.DataFrame]:
    """`own_token`, a row a loop k = 1..K: embedding_left (sum over tokens of <h_k, e> over that of <h_0, e>, e the
    token's row of the embedding), norm_ratio (sum of |h_k| over that of |h_0|), own_log_probability (mean, nats, that
    the next token is the one that went in)."""
    model, inputs = context.model, context.windows[:WINDOWS, :-1]
    embedding = model.token_embedding(inputs).double()
    first, *later = model(inputs, context.trained_loops)
    rows = []
    for k, h in enumerate(later, 1):
        own = decode(model, h, inputs, is_last=k == context.trained_loops).cross_entropy
        left, ratio = _total(h, embedding) / _total(first, embedding), h.norm(dim=-1).sum() / first.norm(dim=-1).sum()
        rows.append([k, left.item(), ratio.item(), -own.mean().item()])
    return {"own_token": pd.DataFrame(rows, columns=["k", "embedding_left", "norm_ratio", "own_log_probability"])}


def _total(h: Tensor, embedding: Tensor) -> Tensor:
    """Sum over tokens of their inner products, in float64."""
    return (h.double() * embedding).sum()
