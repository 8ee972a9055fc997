"""Trends: which of the two models, its 95 % interval, and when it reaches a limit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loopsight.monitoring.trend import MAXIMUM_POINTS, Reach, Trend, fit_trend


def test_pure_growth_of_either_kind_is_recognised_and_continued_to_the_limit():
    x = [0.0, 50.0, 100.0, 150.0]
    exponential = fit_trend(x, [2.0 * 1.01**a for a in x])
    linear = fit_trend(x, [2.0 + 3.0 * a for a in x])
    assert (exponential.model, linear.model) == ("exponential", "linear")
    assert exponential.rate == pytest.approx(math.log(1.01)) and linear.rate == pytest.approx(3.0)
    reach = exponential.until(65504.0)
    assert 2.0 * 1.01 ** (150 + reach.expected) == pytest.approx(65504.0)
    assert reach.earliest == pytest.approx(reach.latest, rel=1e-6)
    assert 2.0 + 3.0 * (150 + linear.until(65504.0).expected) == pytest.approx(65504.0)
    assert linear.until(1.0).expected == 0.0


def test_the_two_models_disagree_where_it_matters_so_the_better_one_is_named():
    x = [1.0, 2.0, 3.0, 4.0]
    linear = fit_trend(x, [100.0, 200.0, 300.0, 400.0])
    assert linear.model == "linear" and linear.until(3.4e38).expected > 1e35
    exponential = fit_trend(x, [50.0, 100.0, 200.0, 400.0])
    assert exponential.model == "exponential" and 100 < exponential.until(3.4e38).expected < 200


def test_a_small_difference_between_the_models_decides_and_that_of_rounding_does_not():
    x = [0.0, 1.0, 2.0, 3.0]
    assert fit_trend(x, [100.0, 100.1, 100.2, 100.3]).model == "linear"
    assert fit_trend(x, [100.0 * 1.001**a for a in x]).model == "exponential"
    assert {fit_trend(x[:3], [n / 10] * 3).model for n in range(1, 100)} == {"exponential"}


def noisy(model: str, points: int) -> tuple[list[float], list[float]]:
    """Unevenly spaced points of growth of the given kind, with 2 % noise."""
    generator = np.random.default_rng(points)
    x = np.cumsum(generator.uniform(20.0, 60.0, points))
    y = 3.0 + 5.0 * x if model == "linear" else 0.1 * np.exp(0.05 * x)
    return x.tolist(), (y * np.exp(0.02 * generator.standard_normal(points))).tolist()


@pytest.mark.parametrize("model", ["exponential", "linear"])
@pytest.mark.parametrize("points", range(3, MAXIMUM_POINTS + 1))
def test_a_fit_and_its_interval_are_those_of_a_textbook_regression(points, model):
    x, y = noisy(model, points)
    trend = fit_trend(x, y)
    values = np.log(y) if model == "exponential" else np.array(y)
    expected = stats.linregress(x, values)
    half = stats.t.ppf(0.975, points - 2) * expected.stderr
    assert (trend.model, trend.rate) == (model, pytest.approx(expected.slope))
    assert trend.high - trend.rate == pytest.approx(half, rel=5e-4)  # the quantiles are tabled to three decimals
    assert trend.rate - trend.low == pytest.approx(half, rel=5e-4)
    fitted = expected.intercept + expected.slope * np.array(x)
    fitted = np.exp(fitted) if model == "exponential" else fitted
    assert trend.last == pytest.approx(fitted[-1])
    assert trend.relative_error == pytest.approx(np.sqrt(np.mean(np.log(y / fitted) ** 2)))


def test_the_earliest_reach_is_at_the_highest_rate_and_the_latest_at_the_lowest():
    linear = Trend(model="linear", rate=2.0, low=1.0, high=4.0, last=10.0, relative_error=0.0)
    assert linear.until(50.0) == Reach(model="linear", expected=20.0, earliest=10.0, latest=40.0)
    assert linear.until(9.0) == Reach(model="linear", expected=0.0, earliest=0.0, latest=0.0)
    reach = replace(linear, model="exponential").until(80.0)
    assert reach.model == "exponential"
    assert (2.0 * reach.expected, 4.0 * reach.earliest, reach.latest) == pytest.approx((math.log(8.0),) * 3)


def test_what_does_not_grow_reaches_nothing():
    x = [0.0, 1.0, 2.0, 3.0, 4.0]
    for y in ([5.0] * 5, [5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 3.0, 1.0, 3.0, 1.2]):
        assert fit_trend(x, y).until(1e5) is None
    barely = Trend(model="linear", rate=1.0, low=1e-300, high=2.0, last=1.0, relative_error=0.0)
    assert barely.until(2.0) is not None
    assert barely.until(1e10) is None  # at its latest beyond any float
    assert replace(barely, low=0.0).until(2.0) is None


@given(st.integers(0, 2**32 - 1))
def test_the_interval_covers_the_true_rate_of_a_noisy_growth_and_a_narrower_one_does_not(seed):
    generator = torch.Generator().manual_seed(seed)
    x = [float(a) for a in range(6)]
    covered, narrow = 0, 0
    for _ in range(200):
        noise = 0.05 * torch.randn(6, generator=generator, dtype=torch.float64)
        trend = fit_trend(x, [math.exp(0.5 * a + e) for a, e in zip(x, noise.tolist(), strict=True)])
        if trend.model == "exponential":
            covered += trend.low <= 0.5 <= trend.high
            narrow += abs(trend.rate - 0.5) <= (trend.high - trend.low) / 8
        else:
            covered += 1
            narrow += 1
    assert covered >= 175 and narrow <= 130


def test_too_few_points_have_no_trend_and_bad_ones_are_refused():
    assert fit_trend([0.0, 1.0], [1.0, 2.0]) is None
    with pytest.raises(ValueError, match="increasing x"):
        fit_trend([0.0, 0.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="at most 12"):
        fit_trend([float(a) for a in range(13)], [1.0] * 13)
    with pytest.raises(ValueError, match="positive and finite"):
        fit_trend([0.0, 1.0, 2.0], [1.0, 0.0, 3.0])
