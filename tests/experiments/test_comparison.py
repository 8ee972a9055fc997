"""Intervals against known answers, and ratio claims on synthetic norms in both directions."""

import numpy as np
import pytest
from scipy import stats

from experiments.comparison import _claims, geometric_interval, t_interval


def test_t_interval_is_scipys():
    values = [1.0, 2.0, 4.0]
    interval = t_interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval():
    assert (t_interval([3.0]).low, geometric_interval([3.0]).high) == (None, None)
    assert geometric_interval([3.0]).mean == pytest.approx(3.0)


def test_coverage_is_95_percent():
    generator = np.random.default_rng(0)
    samples = np.exp(generator.normal(2.0, 0.7, size=(4000, 3)))
    intervals = [geometric_interval(sample.tolist()) for sample in samples]
    covered = np.mean([interval.low < np.exp(2.0) < interval.high for interval in intervals])
    assert 0.94 < covered < 0.96


def verdict(blind, visible):
    norms = {"scale_invariant": dict(enumerate(blind)), "scale_visible": dict(enumerate(visible))}
    (claim,) = _claims(norms)
    return claim.verdict


@pytest.mark.parametrize(
    ("blind", "visible", "expected"),
    [
        ([600.0, 650.0, 620.0], [5.0, 5.5, 4.9], "supported"),
        ([9.0, 9.5, 9.2], [5.0, 5.5, 4.9], "not supported"),
        ([600.0, 20.0, 620.0], [5.0, 5.0, 5.0], "inconclusive"),  # one seed on the other side
        ([26.0, 60.0, 300.0], [5.0, 5.0, 5.0], "inconclusive"),  # all on one side, the interval is not
        ([600.0], [5.0], "supported"),
    ],
)
def test_the_ratio_claim(blind, visible, expected):
    assert verdict(blind, visible) == expected


def test_seeds_are_paired_and_unpaired_ones_left_out():
    (claim,) = _claims({"scale_invariant": {0: 600.0, 1: 1.0}, "scale_visible": {0: 5.0, 2: 1000.0}})
    assert claim.observed == "120 over 1 seed"


def test_a_missing_variant_makes_no_claim():
    assert _claims({"scale_invariant": {0: 600.0}}) == []
