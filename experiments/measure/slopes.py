"""Slopes on logarithmic axes."""

from collections.abc import Sequence

import numpy as np


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the least-squares line log y = p log x + const; NaN for fewer than two points or a y that is not positive.

    Args:
        x: positive, not all alike.
        y: as many.
    """
    if len(x) < 2 or not min(y) > 0.0:
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
