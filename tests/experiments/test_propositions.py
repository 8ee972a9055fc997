"""The table of propositions: what it holds, when it fails, and what it says without its place in the README."""

import csv
import math
from dataclasses import replace

import pytest

import experiments.propositions as command
import theory.proposition
from experiments.readme import ROOT
from theory.proposition import Residual

PROPOSITIONS = theory.proposition.propositions()
P1 = PROPOSITIONS["P1"]


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- propositions -->\nold\n<!-- /propositions -->\nafter\n", encoding="utf-8")
    return path


@pytest.fixture
def run(monkeypatch, readme, inside):
    """The command, of some propositions."""

    def propositions(*chosen):
        monkeypatch.setattr(theory.proposition, "propositions", lambda: {p.key: p for p in chosen})
        arguments = ["--results", readme.parent / "results", "--readme", readme, "--cases", 2]
        return inside(*arguments, main="experiments.propositions")

    return propositions


def test_table_and_section_say_what_was_proven_checked_and_refuted(run, readme):
    assert run(P1).returncode == 0
    with (readme.parent / "results" / "propositions.csv").open(encoding="utf-8") as lines:
        (row,) = csv.DictReader(lines)
    assert row["proposition"] == "P1" and row["words"] == P1.words and row["cases"] == "2"
    assert int(row["steps"]) == len(P1.prove().steps)
    assert 0 < float(row["residual"]) <= float(row["tolerance"]) < float(row["floor"]) < float(row["control"])
    text = (readme.parent / "results" / "propositions.md").read_text(encoding="utf-8")
    assert text.strip() in readme.read_text(encoding="utf-8") and "| P1 " in text
    assert readme.read_text(encoding="utf-8").startswith("before\n<!-- propositions -->\n| ")
    assert "old" not in readme.read_text(encoding="utf-8")
    assert (readme.parent / "results" / "propositions.environment.json").exists()


@pytest.mark.parametrize(
    "broken",
    [
        replace(P1, check=lambda case: Residual(value=1e-3, tolerance=1e-13)),
        replace(P1, check=lambda case: Residual(value=math.nan, tolerance=1e-13)),
        replace(P1, control=lambda case: Residual(value=1e-16, tolerance=1e-13)),
        replace(P1, control=lambda case: Residual(value=math.nan, tolerance=1e-13)),
    ],
    ids=["does not hold", "measured nothing", "control holds", "control measured nothing"],
)
def test_what_does_not_hold_fails_the_command_and_is_named(run, broken):
    done = run(replace(PROPOSITIONS["P2"], check=P1.check, control=P1.control), broken)
    assert done.returncode == 1 and "error: P1 did not hold" in done.stderr


def test_without_its_place_in_the_readme_nothing_is_computed(run, readme):
    readme.write_text("no markers\n", encoding="utf-8")
    done = run(P1)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "<!-- propositions -->" in done.stderr
    assert not (readme.parent / "results").exists()


def test_a_readme_that_is_no_text_is_named(run, readme):
    readme.write_bytes(b"\xff")
    done = run(P1)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot read ") and done.stderr.count("\n") == 1


def test_the_stored_table_has_every_proposition_and_no_other():
    with (ROOT / "results" / "theory" / "propositions.csv").open(encoding="utf-8") as lines:
        stored = [(row["proposition"], row["words"]) for row in csv.DictReader(lines)]
    assert stored == [(key, proposition.words) for key, proposition in PROPOSITIONS.items()], "run `make theory`"


def test_cases_are_the_same_every_time_and_differ():
    assert command.cases(5) == command.cases(5) == command.cases(20)[:5]
    assert len({case.d for case in command.cases(20)}) > 5
