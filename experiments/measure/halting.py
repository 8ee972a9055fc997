"""Loops used when every token leaves as soon as a rule lets it: thresholds set on one half, judged on the other."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from experiments.measure.context import Context
from experiments.measure.forward import HeldOut
from experiments.measure.statistics import bootstrap_interval

TOLERANCE = 0.01  # perplexity lost against all K loops
CANDIDATES = 400


@dataclass(frozen=True, kw_only=True, eq=False)
class Exits:
    """What a policy sees and what leaving costs; index k - 1 of the first dimension is loop k, the last is K.

    Attributes:
        confidence: a token leaves after the first loop whose confidence is at least the threshold, else after K.
        cross_entropy: nats when it leaves there.
    """

    confidence: Float[Tensor, "loops windows time"]
    cross_entropy: Float[Tensor, "loops windows time"]

    def half(self, which: int) -> "Exits":
        """Every other window, from the first (0) or the second (1) on: both halves are spread over the text."""
        return Exits(confidence=self.confidence[:, which::2], cross_entropy=self.cross_entropy[:, which::2])


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Of one threshold, window by window: loops used, and nats a token lost against all K loops."""

    loops: Float[np.ndarray, " windows"]
    lost: Float[np.ndarray, " windows"]

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity over that of all K loops."""
        return math.exp(self.lost.mean())


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """`halting`: policy, threshold, loops_calibration, perplexity_ratio_calibration, average_loops, perplexity_ratio,
    low, high, met, ratio_low, ratio_high.

    The threshold is the one with fewest loops among those whose perplexity ratio is at most 1.01 on the calibration
    half; the columns after it are of the other half. 95 % bootstrap intervals over its windows, the threshold fixed:
    `low`, `high` of average_loops, `ratio_low`, `ratio_high` of perplexity_ratio. `met`: the other half kept the
    tolerance; it may fail by the halves' difference alone, which the interval tells. Policies leave when
        margin        the two largest logits are at least the threshold apart (nats);
        entropy       the entropy of the prediction is at most the threshold (nats);
        state_change  |h_k - h_{k-1}| / |h_k| is at most the threshold.
    A threshold that is infinite lets every token leave after loop 1, or none before K.
    """
    return {"halting": pd.DataFrame([_row(name, exits) for name, exits in policies(context).items()])}


def policies(context: Context) -> dict[str, Exits]:
    """The rules, over the trained loops; each is turned so that more confidence is larger."""
    found: HeldOut = context.held_out
    trained = slice(0, context.trained_loops)
    confidences = {"margin": found.margin, "entropy": -found.entropy, "state_change": -found.state_change}
    return {
        name: Exits(confidence=confidence[trained], cross_entropy=found.cross_entropy[trained])
        for name, confidence in confidences.items()
    }


def calibrate(exits: Exits) -> float:
    """The threshold with fewest loops among those within the tolerance, of which never leaving (+inf) is one."""
    levels = np.linspace(0.0, 1.0, CANDIDATES)
    values = np.quantile(exits.confidence[:-1].numpy(), levels).tolist() if len(exits.confidence) > 1 else []
    allowed = {}
    for threshold in (-math.inf, *values, math.inf):
        outcome = apply(exits, threshold)
        if outcome.perplexity_ratio <= 1.0 + TOLERANCE:
            allowed[threshold] = outcome.loops.mean()
    return min(allowed, key=lambda threshold: (allowed[threshold], threshold))


def apply(exits: Exits, threshold: float) -> Outcome:
    """What leaving at a threshold uses and costs."""
    leaves: Bool[Tensor, "loops windows time"] = exits.confidence >= threshold
    leaves = torch.cat([leaves[:-1], torch.ones_like(leaves[-1:])])
    first = leaves.to(torch.uint8).argmax(0)
    lost = exits.cross_entropy.gather(0, first[None])[0].double() - exits.cross_entropy[-1].double()
    return Outcome(loops=1.0 + first.double().mean(1).numpy(), lost=lost.mean(1).numpy())


def _row(policy: str, exits: Exits) -> dict[str, object]:
    calibration, test = exits.half(0), exits.half(1)
    threshold = calibrate(calibration)
    seen, found = apply(calibration, threshold), apply(test, threshold)
    interval, lost = bootstrap_interval(found.loops), bootstrap_interval(found.lost)
    return {
        "policy": policy,
        "threshold": threshold if policy == "margin" else -threshold,
        "loops_calibration": seen.loops.mean(),
        "perplexity_ratio_calibration": seen.perplexity_ratio,
        "average_loops": interval.mean,
        "perplexity_ratio": found.perplexity_ratio,
        "low": interval.low,
        "high": interval.high,
        "met": found.perplexity_ratio <= 1.0 + TOLERANCE,
        "ratio_low": None if lost.low is None else math.exp(lost.low),
        "ratio_high": None if lost.high is None else math.exp(lost.high),
    }
