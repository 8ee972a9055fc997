"""Outcomes of the long profile: kept line by line, told as they are, and ten thousand means ten thousand."""

import pytest

from experiments import long_profile
from experiments.errors import RunError
from theory.proposition import propositions


def row(key, outcome="passed"):
    return dict(zip(long_profile.COLUMNS, [key, "10000", outcome, "9", "1", "2026-11-22", "abc"], strict=True))


def test_rows_survive_the_file(tmp_path):
    path = tmp_path / "results" / "long.csv"
    assert long_profile.read(path) == {}
    long_profile.write(path, [row("P1"), row("P3", "failed")])
    assert long_profile.read(path) == {"P1": row("P1"), "P3": row("P3", "failed")}


@pytest.mark.parametrize("content", [b"\xff\n", b"a,b\n1,2\n"])
def test_a_file_of_something_else_is_named(content, tmp_path):
    (tmp_path / "long.csv").write_bytes(content)
    with pytest.raises(RunError, match="cannot read .*; delete it"):
        long_profile.read(tmp_path / "long.csv")


def test_without_its_place_in_the_readme_nothing_is_run(tmp_path, inside, monkeypatch):
    monkeypatch.setattr(long_profile, "run", lambda key: pytest.fail("it was run"))
    (tmp_path / "README.md").write_text("no markers\n", encoding="utf-8")
    arguments = ["P1", "--results", tmp_path / "long.csv", "--readme", tmp_path / "README.md"]
    done = inside(*arguments, main="experiments.long_profile")
    assert done.returncode == 2 and "<!-- long_profile -->" in done.stderr


def test_the_paragraph_hides_no_failure_and_no_gap():
    text = long_profile.as_markdown({"P1": row("P1"), "P3": row("P3", "failed")}, ["P1", "P2", "P3"])
    assert "passed for 1 of 3 propositions: P1." in text
    assert "It failed for P3." in text and "Not run yet: P2." in text


@pytest.mark.parametrize(
    "stdout, returncode, outcome",
    [("10000 passing, 0 failing", 0, "passed"), ("9999 passing", 0, "failed"), ("10000 passing", 1, "failed")],
)
def test_passed_means_ten_thousand_examples_and_no_failure(monkeypatch, stdout, returncode, outcome):
    class Done:
        stderr = ""

    Done.stdout, Done.returncode = stdout, returncode
    real = long_profile.subprocess.run

    def fake(command, **options):
        return Done if "pytest" in command else real(command, **options)

    monkeypatch.setattr(long_profile.subprocess, "run", fake)
    assert long_profile.run("P1")["outcome"] == outcome


def test_the_committed_outcomes_are_of_the_propositions_there_are():
    rows = long_profile.read(long_profile.ROOT / "results" / "theory" / "long_profile.csv")
    assert set(rows) <= set(propositions())
    assert all(int(found["examples"]) >= 10_000 for found in rows.values() if found["outcome"] == "passed")
