"""What a claim found, in words and as plain values."""

import math
import re
from dataclasses import replace

import pytest

from experiments.claims import CLAIMS, CaseFinding, Finding
from experiments.claims.confounds import CELLS
from experiments.measure.statistics import Interval
from experiments.reporting.numbers import as_dict, case_name, counts, number, observed
from experiments.reporting.page import unconfirmed

CASE = CaseFinding(
    case=("one", "other"),
    estimates={0: 1.0, 2: math.inf},
    interval=Interval(mean=2000.4, low=0.12345, high=math.inf),
    verdict="supported",
    left_out=("seed 1 | of one",),
)
ALONE = replace(CASE, estimates={1: 5.0}, interval=Interval(mean=5.0, low=None, high=None), verdict="inconclusive")
UNMEASURED = replace(CASE, estimates={}, interval=None, verdict="not measured", left_out=())


def finding(*cases, unit="nats", verdict="supported"):
    predicted = next(claim for claim in CLAIMS if claim.rule)
    return Finding(claim=replace(predicted, unit=unit), cases=cases, verdict=verdict)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (999.4, "999"),
        (999.5, "1,000"),
        (-123456.7, "-123,457"),
        (1e6, "1e+06"),
        (0.00012345, "0.000123"),
        (math.nan, "nan"),
    ],
)
def test_a_number_has_three_digits_or_is_whole(value, shown):
    assert number(value) == shown


def test_a_case_is_kept_with_every_seed_and_in_strict_json():
    kept, alone, unmeasured = as_dict(finding(CASE, ALONE, UNMEASURED))["cases"]
    assert kept == {
        "case": "one / other",
        "verdict": "supported",
        "estimates": {"0": 1.0, "2": None},
        "mean": 2000.4,
        "low": 0.12345,
        "high": None,
        "text": "2,000 [0.123, inf]",
        "by_seed": "0: 1, 2: inf",
        "left_out": ["seed 1 | of one"],
    }
    assert (alone["text"], alone["low"]) == ("5", None) and (unmeasured["text"], unmeasured["mean"]) == ("", None)
    assert case_name(tuple(CELLS)) == "the eight cells"


def test_one_case_is_told_with_its_interval_and_many_as_a_range():
    assert observed(finding(CASE, UNMEASURED)) == "2,000 [0.123, inf] nats, 2 seeds"
    assert observed(finding(ALONE, unit="ratio")) == "5, 1 seed"
    three = finding(CASE, ALONE, UNMEASURED, replace(ALONE, interval=replace(ALONE.interval, mean=7.0)), unit="loops")
    assert observed(three) == "5 to 2,000 loops over 3 cases (2 inconclusive, 1 supported)"
    assert observed(finding(UNMEASURED)) == "not measured"


def test_verdicts_are_counted_worst_first():
    verdicts = ("supported", "not measured", "supported", "not supported")
    found = counts([finding(verdict=verdict) for verdict in verdicts])
    assert list(found.items()) == [("not supported", 1), ("supported", 2), ("not measured", 1)]


def test_what_was_supported_is_told_apart_by_when_it_was_predicted():
    def row(verdict, basis, fixed):
        said = {"claim": f"a | {verdict}", "predicted": "b\nc", "observed": "d"}
        return said | {"verdict": verdict, "basis": basis, "fixed": fixed}

    rows = [
        row("not measured", "empirical", "no prediction"),
        row("inconclusive", "empirical", "after looking"),
        row("not supported", "by construction", "before"),
        *[row("supported", "by construction", "after")] * 4,
        *[row("supported", "empirical", "after")] * 2,
        row("supported", "empirical", "before"),
    ]
    said, table = unconfirmed(rows, "a tally.").split("\n\n")
    assert said == (
        "10 claims: a tally. Of those supported, 4 hold by construction, trained or not, and test the code; 2 were "
        "written down after an earlier sweep had shown their quantity, and repeat it; 1 were predicted before anybody "
        "had seen it. Of all 9 predictions 7 were written down after such a look. Those not confirmed:"
    )
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]
    worst_first = ("not supported", "inconclusive", "not measured")
    assert cells == [[rf"a \| {verdict}", "b c", "d", verdict] for verdict in worst_first]
