"""What the loss notices of the last state's scale: cross-entropy against the factor that multiplies it."""

import pandas as pd

from experiments.measure.context import Context
from experiments.measure.forward import rescaled_cross_entropy

FACTORS = tuple(10.0 ** (exponent / 5) for exponent in range(-5, 6))  # 0.1, 0.16, 0.25, ... 10


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """`scale_sensitivity`: factor, cross_entropy (nats/token), change (against factor 1).

    A readout of degree 0 leaves only epsilon's leak; a raw one's cross-entropy is convex in the factor (theory P6).
    """
    states, targets = context.held_out.final_states, context.windows[:, 1:]
    values = rescaled_cross_entropy(context.model, states, targets, FACTORS)
    table = pd.DataFrame({"factor": FACTORS, "cross_entropy": values})
    table["change"] = table["cross_entropy"] - values[FACTORS.index(1.0)]
    return {"scale_sensitivity": table}
