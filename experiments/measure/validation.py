"""One pass over the held-out tokens: cross-entropy and norm after every loop, and what rescaling the state changes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.measure.forward import held_out_pass, rescaled_cross_entropy
from models import LoopedLM

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


def validate(model: LoopedLM, windows: Int[Tensor, "windows time"], *, num_loops: int, batch_size: int) -> Validation:
    """Evaluate a model, which should be in evaluation mode, on windows of context + 1 ids."""
    found = held_out_pass(model, windows, num_loops=num_loops, last_loop=num_loops, batch_size=batch_size)
    rescaled = rescaled_cross_entropy(model, found.final_states, windows[:, 1:], RESCALINGS, batch_size=batch_size)
    return Validation(
        tokens=windows[:, 1:].numel(),
        cross_entropy=found.mean_cross_entropy(),
        l2_norm=norm_statistics(found.l2_norm.flatten(1)),
        rescaled_cross_entropy={str(factor): value for factor, value in zip(RESCALINGS, rescaled, strict=True)},
    )


def norm_statistics(norms: Float[Tensor, "loops tokens"]) -> dict[str, list[float]]:
    """Mean, median, 99th percentile and maximum over tokens, each for every loop."""
    statistics = {"mean": norms.mean(1).tolist()}
    for name, quantile in NORM_QUANTILES.items():
        statistics[name] = np.quantile(norms.numpy(), quantile, axis=1).tolist()
    return statistics
