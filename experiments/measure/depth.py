"""What a loop buys and what it costs: cross-entropy after 1..2K loops against tokens a second, measured."""

import time

import numpy as np
import pandas as pd
import torch

from experiments.device import autocast
from experiments.measure.context import Context
from experiments.measure.loops import measure as measure_loops

TIMED_WINDOWS = 4
ROUNDS = 15


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """`depth`: k, cross_entropy (nats/token), perplexity, tokens_per_second (median), low, high (10 and 90 %).

    One timed call runs k loops on a few windows and makes the logits after the last, as for scoring a text. Depths are
    timed in turn, round after round, each round in an order of its own, so that what else the machine does falls on
    all alike; the spread is over rounds. Speeds are this machine's, with the threads that torch has.
    """
    table = measure_loops(context)["loops"][["k", "cross_entropy", "perplexity"]].copy()
    rates = throughput(context, table["k"].tolist())
    table["tokens_per_second"] = np.median(rates, axis=0)
    table["low"], table["high"] = np.quantile(rates, [0.1, 0.9], axis=0)
    return {"depth": table}


@torch.no_grad()
def throughput(context: Context, depths: list[int]) -> np.ndarray:
    """Tokens a second, (rounds, depths)."""
    inputs = context.windows[:TIMED_WINDOWS, :-1]
    rates = np.empty((ROUNDS, len(depths)))
    for depth in (depths[0], depths[-1]):  # the first calls set up memory and threads
        _seconds(context, inputs, depth)
    order = np.random.default_rng(0)
    for rates_of_round in rates:
        for i in order.permutation(len(depths)):
            rates_of_round[i] = inputs.numel() / _seconds(context, inputs, depths[i])
    return rates


def _seconds(context: Context, inputs: torch.Tensor, depth: int) -> float:
    start = time.perf_counter()
    with autocast(inputs.device):
        context.model.readout(context.model(inputs, depth)[-1])
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)
    return time.perf_counter() - start
