"""Growth fitted to a few points, and when it would reach a limit: two models, the better one first.

    exponential  log y = c + rate x    each unit of x multiplies
    linear           y = c + rate x    each unit of x adds (pre-norm loops, far out)

The two agree on the points and disagree by many powers of ten on when 3e38 is reached, so the model is always named.
The interval is that of the fit, departures from the model taken as independent noise; it does not say that the model
will hold. Growth that slows down reaches the limit later than either says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Model = Literal["exponential", "linear"]

# Student's t, 97.5 %, by degrees of freedom from 1: two more points than that.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
MINIMUM_POINTS = 3
MAXIMUM_POINTS = len(T_QUANTILES) + 2


@dataclass(frozen=True, kw_only=True)
class Reach:
    """When a limit is reached, in units of x after the last point; 0: it has been.

    Attributes:
        model: which trend was followed.
        expected: at the fitted rate.
        earliest, latest: at the two ends of the rate's 95 % interval.
    """

    model: Model
    expected: float
    earliest: float
    latest: float


@dataclass(frozen=True, kw_only=True)
class Trend:
    """One model fitted by least squares.

    Attributes:
        model: which.
        rate: growth per unit of x, of log y or of y; `low` to `high` is its 95 % interval.
        low, high: see there.
        last: fitted y at the last point.
        relative_error: root mean square of log(y / fitted y), by which the two models are compared.
    """

    model: Model
    rate: float
    low: float
    high: float
    last: float
    relative_error: float

    @property
    def growing(self) -> bool:
        """The whole interval of the rate is positive."""
        return self.low > 0.0

    def until(self, limit: float) -> Reach | None:
        """When `limit` is reached; None where the trend is not growing, or the answer is beyond any float."""
        if not self.growing:
            return None
        way = math.log(limit / self.last) if self.model == "exponential" else limit - self.last
        expected, earliest, latest = (max(0.0, way / rate) for rate in (self.rate, self.high, self.low))
        if not math.isfinite(latest):
            return None
        return Reach(model=self.model, expected=expected, earliest=earliest, latest=latest)


def fit_trend(x: Sequence[float], y: Sequence[float]) -> Trend | None:
    """The model that fits better (the exponential one if they fit alike); None for fewer than 3 points.

    Args:
        x: increasing, 12 at most.
        y: positive and finite.

    Raises:
        ValueError: x and y differ in length or are no such numbers.
    """
    if len(x) != len(y) or len(x) > MAXIMUM_POINTS or any(b <= a for a, b in zip(x[:-1], x[1:], strict=True)):
        raise ValueError(f"expected at most {MAXIMUM_POINTS} increasing x and as many y, got {len(x)} and {len(y)}.")
    if not all(0.0 < value < math.inf for value in y):
        raise ValueError(f"y must be positive and finite, got {list(y)}.")
    if len(x) < MINIMUM_POINTS:
        return None
    # A tie of rounding errors, as for two perfect fits of a constant, is a tie.
    return min((_exponential(x, y), _linear(x, y)), key=lambda trend: round(trend.relative_error, 12))


def _exponential(x: Sequence[float], y: Sequence[float]) -> Trend:
    logs = [math.log(value) for value in y]
    rate, low, high, fitted = _least_squares(x, logs)
    error = _root_mean_square([a - b for a, b in zip(logs, fitted, strict=True)])
    return Trend(
        model="exponential", rate=rate, low=low, high=high, last=math.exp(fitted[-1]), relative_error=error
    )  # fmt: skip


def _linear(x: Sequence[float], y: Sequence[float]) -> Trend:
    rate, low, high, fitted = _least_squares(x, y)
    if min(fitted) > 0.0:
        error = _root_mean_square([math.log(a / b) for a, b in zip(y, fitted, strict=True)])
    else:
        error = math.inf
    return Trend(model="linear", rate=rate, low=low, high=high, last=fitted[-1], relative_error=error)


def _least_squares(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float, list[float]]:
    """Slope, its 95 % interval, and the fitted values."""
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    fitted = [mean_y + slope * (a - mean_x) for a in x]
    residual = sum((a - b) ** 2 for a, b in zip(y, fitted, strict=True))
    half = T_QUANTILES[n - 3] * math.sqrt(residual / (n - 2) / spread)
    return slope, slope - half, slope + half, fitted


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
