"""The table of propositions: what it holds, when it fails, and what it says without its place in the README."""

import csv
import math
from dataclasses import replace

import pytest
import torch

import experiments.propositions as command
import theory.proposition
from experiments.errors import exit_status
from theory.proposition import Residual

PROPOSITIONS = theory.proposition.propositions()
P1 = PROPOSITIONS["P1"]


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- propositions -->\nold\n<!-- /propositions -->\nafter\n", encoding="utf-8")
    return path


def run(monkeypatch, readme, propositions) -> int:
    monkeypatch.setattr(theory.proposition, "propositions", lambda: {p.key: p for p in propositions})
    arguments = [
        "propositions.py",
        "--results",
        str(readme.parent / "results"),
        "--readme",
        str(readme),
        "--cases",
        "2",
    ]
    monkeypatch.setattr("sys.argv", arguments)
    threads = torch.get_num_threads()
    try:
        return exit_status(command.main)
    finally:
        torch.set_num_threads(threads)


def test_table_and_section_say_what_was_proven_checked_and_refuted(monkeypatch, readme, capsys):
    assert run(monkeypatch, readme, [P1]) == 0
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
def test_what_does_not_hold_fails_the_command_and_is_named(monkeypatch, readme, capsys, broken):
    assert run(monkeypatch, readme, [replace(PROPOSITIONS["P2"], check=P1.check, control=P1.control), broken]) == 1
    assert "error: P1 did not hold" in capsys.readouterr().err


def test_without_its_place_in_the_readme_nothing_is_computed(monkeypatch, readme, capsys):
    readme.write_text("no markers\n", encoding="utf-8")
    assert run(monkeypatch, readme, [P1]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "<!-- propositions -->" in message and message.count("\n") == 1
    assert not (readme.parent / "results").exists()


def test_cases_are_the_same_every_time_and_differ():
    assert command.cases(5) == command.cases(5) == command.cases(20)[:5]
    assert len({case.d for case in command.cases(20)}) > 5
