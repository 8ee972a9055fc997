"""Intervals against known answers."""

import numpy as np
import pytest
from scipy import stats

from experiments.measure.statistics import RESAMPLES, bootstrap_interval, geometric_interval, t_interval


def test_t_interval_is_scipys():
    values = [1.0, 2.0, 4.0]
    interval = t_interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval():
    assert (t_interval([3.0]).low, geometric_interval([3.0]).high) == (None, None)
    assert geometric_interval([3.0]).mean == pytest.approx(3.0)
    assert (bootstrap_interval(np.array([3.0])).mean, bootstrap_interval(np.array([3.0])).low) == (3.0, None)


def test_coverage_is_95_percent():
    generator = np.random.default_rng(0)
    samples = np.exp(generator.normal(2.0, 0.7, size=(4000, 3)))
    intervals = [geometric_interval(sample.tolist()) for sample in samples]
    covered = np.mean([interval.low < np.exp(2.0) < interval.high for interval in intervals])
    assert 0.94 < covered < 0.96


def test_the_bootstrap_is_scipys():
    values = np.random.default_rng(1).exponential(size=40)
    many = {"n_resamples": 10 * RESAMPLES, "method": "percentile", "random_state": np.random.default_rng(2)}
    expected = stats.bootstrap((values,), np.mean, **many).confidence_interval
    found = bootstrap_interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == (pytest.approx(expected.low, rel=0.03), pytest.approx(expected.high, rel=0.03))
    assert found == bootstrap_interval(values)  # a table is the same whenever it is made
    assert bootstrap_interval(values, seed=1) != found


def test_the_bootstrap_covers():
    generator = np.random.default_rng(2)
    intervals = [bootstrap_interval(generator.normal(5.0, 2.0, size=64)) for _ in range(400)]
    covered = np.mean([interval.low < 5.0 < interval.high for interval in intervals])
    assert 0.91 < covered < 0.975


def test_equal_values_have_an_interval_of_no_width():
    assert vars(bootstrap_interval(np.full(9, 0.25))) == {"mean": 0.25, "low": 0.25, "high": 0.25}
