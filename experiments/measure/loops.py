"""Cross-entropy, perplexity and norms of the state after every loop, also beyond the trained number (1..2K)."""

import pandas as pd
import torch

from experiments.measure.context import Context
from experiments.measure.validation import norm_statistics


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """`loops`: k, cross_entropy (nats/token), perplexity, l2_norm_{mean, median, p99, max} (Euclidean, over tokens).

    Loops beyond K are decoded as the last one is.
    """
    found = context.held_out
    cross_entropy = torch.tensor(found.mean_cross_entropy(), dtype=torch.float64)
    norms = norm_statistics(found.l2_norm.flatten(1))
    columns = {
        "k": range(1, len(cross_entropy) + 1),
        "cross_entropy": cross_entropy.tolist(),
        "perplexity": cross_entropy.exp().tolist(),
    }
    return {"loops": pd.DataFrame(columns | {f"l2_norm_{name}": values for name, values in norms.items()})}
