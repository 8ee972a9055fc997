"""`python experiments/remedies.py`: what it writes, keeps and refuses."""

import json

import pytest

from experiments.readme import ROOT, section

STORED = ROOT / "results" / "remedies"
TINY = ["--preset", "tiny", "--data", "synthetic", "--device", "cpu", "--at", "2", "--steps", "4"]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("experiments.treatments.compare.draw_remedies", lambda *_: None)


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("<!-- remedies -->\nold\n<!-- /remedies -->\n")
    return path


@pytest.fixture
def command(inside, readme, tmp_path):
    def run(*arguments):
        places = ["--results", tmp_path / "results", "--readme", readme, "--cache", tmp_path / "cache"]
        return inside(*arguments, *places, "--out", tmp_path / "out", main="experiments.remedies")

    return run


def test_the_readme_has_what_the_command_makes_of_the_stored_arms(command, readme, tmp_path):
    done = command("--arms", STORED / "arms.json")
    assert done.returncode == 0, done.stderr
    for name in ("remedies.md", "arms.csv", "by_step.csv", "claims.json", "arms.json"):
        assert (tmp_path / "results" / name).read_text() == (STORED / name).read_text(), name
    text = (STORED / "remedies.md").read_text().strip()
    assert section(readme.read_text(), "remedies") == section((STORED / "README.md").read_text(), "remedies") == text


def test_every_arm_is_trained_once_and_shown(command, readme, tmp_path):
    arguments = ["--variants", "scale_invariant", *TINY, "--seeds", "0", "1", "--learning-rate", "0.002"]
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "scale_invariant-0.json",
        "scale_invariant-1.json",
    ]
    runs = json.loads((tmp_path / "results" / "arms.json").read_text())
    assert [(run["run"], len(run["arms"])) for run in runs] == [("scale_invariant-0", 10), ("scale_invariant-1", 10)]
    assert {run["config"]["training"]["learning_rate"] for run in runs} == {0.002}
    assert section(readme.read_text(), "remedies") in done.stdout and "begun at step 2." in done.stdout
    again = command(*arguments)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert json.loads((tmp_path / "results" / "arms.json").read_text()) == runs


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (
            ["--variants", "scale_invarant"],
            2,
            "unknown variant 'scale_invarant'; known, nearest first: scale_invariant",
        ),
        (["--steps", "10"], 2, "--steps must be at least 11, got 10"),
        (["--at", "0"], 2, "--at must be at least 1, got 0"),
        (["--seeds", "1", "1"], 2, "--seeds must be different"),
        (["--preset", "huge"], 2, "unknown preset 'huge'"),
        (["--learning-rate", "0", *TINY], 2, "learning_rate"),
        (["--variants", "scale_visible", *TINY, "--seeds", "0"], 1, "names no remedy at step 2"),
        (["--arms", "none.json"], 1, "cannot read none.json"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(arguments, status, sentence, command, readme, tmp_path):
    before = readme.read_text()
    done = command(*arguments)
    assert done.returncode == status and sentence in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [done.stderr.splitlines()[-1]]
    assert readme.read_text() == before and not (tmp_path / "results").exists()


def test_runs_without_all_of_their_arms_are_not_compared(command, tmp_path):
    runs = json.loads((STORED / "arms.json").read_text())
    runs[1]["complete"] = False
    (tmp_path / "arms.json").write_text(json.dumps(runs))
    done = command("--arms", tmp_path / "arms.json")
    assert done.returncode == 2 and f"lacks arms of {runs[1]['run']};" in done.stderr
    assert not (tmp_path / "results").exists()
