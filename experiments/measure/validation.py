"""One pass over the held-out tokens: cross-entropy and norm after every loop, and what rescaling the state changes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.training.trainer import autocast
from models import LoopedLM, chunked_cross_entropy

VALIDATION_WINDOWS = 128
RESCALINGS = (0.5, 2.0)
NORM_QUANTILES = {"median": 0.5, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Results over `tokens` held-out tokens; index k - 1 of a list is loop k.

    Attributes:
        tokens: tokens predicted.
        cross_entropy: nats a token after loops 1..K.
        l2_norm: Euclidean norm of the state over tokens: `mean`, `median`, `p99`, `max`, each for loops 1..K.
        rescaled_cross_entropy: nats a token after loop K when its state is multiplied by each factor, as text keys.
    """

    tokens: int
    cross_entropy: list[float]
    l2_norm: dict[str, list[float]]
    rescaled_cross_entropy: dict[str, float]


def held_out_windows(tokens: np.ndarray, context: int, num_windows: int) -> Int[Tensor, "windows time"]:
    """Up to `num_windows` disjoint windows of context + 1 ids, spread evenly over the held-out tokens."""
    available = (len(tokens) - 1) // context
    chosen = np.unique(np.linspace(0, available - 1, min(num_windows, available)).round().astype(int))
    return torch.from_numpy(
        np.stack([tokens[i * context : i * context + context + 1] for i in chosen]).astype(np.int64)
    )


@torch.no_grad()
def validate(model: LoopedLM, windows: Int[Tensor, "windows time"], *, num_loops: int, batch_size: int) -> Validation:
    """Evaluate a model, which should be in evaluation mode, on windows of context + 1 ids."""
    sums, norms, rescaled = torch.zeros(num_loops), [], torch.zeros(len(RESCALINGS))
    for batch in windows.split(batch_size):
        batch = batch.to(model.head_weight.device)
        inputs, targets = batch[:, :-1], batch[:, 1:]
        with autocast(inputs.device):
            states = model(inputs, num_loops)[1:]
            for k, h in enumerate(states):
                sums[k] += _summed_cross_entropy(model, h, targets, is_last=k == num_loops - 1)
            for i, factor in enumerate(RESCALINGS):
                rescaled[i] += _summed_cross_entropy(model, factor * states[-1], targets, is_last=True)
        norms.append(torch.stack([h.float().norm(dim=-1).flatten() for h in states]).cpu())
    count = windows[:, 1:].numel()
    return Validation(
        tokens=count,
        cross_entropy=(sums / count).tolist(),
        l2_norm=_norm_statistics(torch.cat(norms, dim=1)),
        rescaled_cross_entropy={
            str(factor): (total / count).item() for factor, total in zip(RESCALINGS, rescaled, strict=True)
        },
    )


def _summed_cross_entropy(model: LoopedLM, h: Tensor, targets: Tensor, *, is_last: bool) -> Tensor:
    features = model.readout_features(h, is_last=is_last).flatten(0, 1)
    weights = features.new_ones(len(features))
    return chunked_cross_entropy(features, model.head_weight, targets.flatten(), weights)[0].cpu()


def _norm_statistics(norms: Float[Tensor, "loops tokens"]) -> dict[str, list[float]]:
    statistics = {"mean": norms.mean(1).tolist()}
    for name, quantile in NORM_QUANTILES.items():
        statistics[name] = np.quantile(norms.numpy(), quantile, axis=1).tolist()
    return statistics
