"""Means with their 95 % intervals: Student's over seeds, the bootstrap's over windows."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit  # scipy.stats is slow to import

RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its two-sided 95 % interval; the interval is None with fewer than two values."""

    mean: float
    low: float | None
    high: float | None

    def text(self, digits: int) -> str:
        mean = f"{self.mean:.{digits}g}"
        return mean if self.low is None else f"{mean} [{self.low:.{digits}g}, {self.high:.{digits}g}]"


def t_quantile(freedom: int | float) -> float:
    """Half the width of a two-sided 95 % interval, in standard errors."""
    return float(stdtrit(freedom, 0.975))


def t_interval(values: list[float]) -> Interval:
    """Mean and 95 % interval under normality, values independent (seeds)."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Interval(mean=mean, low=None, high=None)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = t_quantile(n - 1) * spread
    return Interval(mean=mean, low=mean - half, high=mean + half)


def geometric_interval(values: list[float]) -> Interval:
    """Geometric mean and 95 % interval of positive values: the t-interval of their logarithms."""
    log = t_interval([math.log(value) for value in values])
    if log.low is None or log.high is None:
        return Interval(mean=math.exp(log.mean), low=None, high=None)
    return Interval(mean=math.exp(log.mean), low=math.exp(log.low), high=math.exp(log.high))


def bootstrap_interval(values: Float[np.ndarray, " n"], seed: int = 0) -> Interval:
    """Mean and 95 % percentile interval of resampled means (Efron 1979).

    It is paired when the values are differences within a window, which is resampled whole. A window is the unit,
    since the tokens of one are not independent; neighbouring windows of one file may still be alike.

    Args:
        values: one for each window.
        seed: of the resampling, so that a table is the same whenever it is made.
    """
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return Interval(mean=mean, low=None, high=None)
    chosen = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    low, high = np.quantile(values[chosen].mean(1), [0.025, 0.975])
    return Interval(mean=mean, low=float(low), high=float(high))
