"""Committed runs are judged as a run would be today: a rule that changes is applied to them, too."""

import json

import pytest

from experiments.config import RunConfig
from experiments.evidence import INDEX
from experiments.experiment import judge
from experiments.measure.state import StateMeasurement
from experiments.measure.validation import Validation
from experiments.readme import ROOT

RESULTS = ROOT / "results"
PACKED = sorted(RESULTS.glob(f"**/{INDEX}"))


def summaries(index):
    return [run["summary"] for run in json.loads(index.read_text(encoding="utf-8"))["runs"].values()]


def judged(summary):
    measured = Validation(**summary["validation"]), StateMeasurement(**summary["state"])
    return judge(RunConfig.from_dict(summary["config"]), *measured)


@pytest.mark.parametrize("index", PACKED, ids=lambda index: str(index.parent.relative_to(RESULTS)))
def test_verdicts_of_committed_runs_are_those_of_the_present_rules(index):
    for summary in summaries(index):
        assert judged(summary) == summary["table"], summary["run"]


def test_another_measurement_has_another_verdict():
    (summary,) = (s for s in summaries(RESULTS / "contrast" / INDEX) if s["run"] == "scale_invariant-0")
    grown = summary["validation"]["l2_norm"]
    tens = {"l2_norm": grown | {"mean": [norm / 100 for norm in grown["mean"]]}}
    before, after = (judged(summary | {"validation": summary["validation"] | change})[0] for change in ({}, tens))
    assert (before["verdict"], after["verdict"]) == ("supported", "not supported")
