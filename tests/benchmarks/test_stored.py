"""The committed tables of benchmarks are made of the committed numbers, and of nothing else."""

import csv
from collections import Counter

import pytest

from benchmarks import audit, gpu, monitor, stored, training
from benchmarks.plantings import FACTORS, SPOTS
from experiments.errors import UsageError
from experiments.readme import ROOT, section

RESULTS = ROOT / "results"
TABLES = {
    "training": (training, [stored.FOLDER / "training.json"]),
    "monitor": (monitor, sorted((stored.FOLDER / "monitor").glob("*.json"))),
    "audit": (audit, sorted((stored.FOLDER / "audit").glob("*.json"))),
    "gpu": (gpu, [RESULTS / "44m" / "speed.json", RESULTS / "129m" / "speed.json"]),
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A README with a section for every table, and no results."""
    monkeypatch.setattr(stored, "ROOT", tmp_path)
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    (tmp_path / "README.md").write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in TABLES))
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_was_measured(name, elsewhere):
    benchmark, paths = TABLES[name]
    stored.publish(name, paths, benchmark.as_markdown)
    written = (elsewhere / f"{name}.md").read_text()
    assert written == (RESULTS / "benchmarks" / f"{name}.md").read_text()
    readme = (elsewhere / "README.md").read_text()
    assert section(readme, name) == written.strip() and readme.count("old") == len(TABLES) - 1


def test_every_planting_was_audited_equally_often():
    with (RESULTS / "audit" / "planted.csv").open(encoding="utf-8") as lines:
        stored = Counter((row["planted"], row["fate"]) for row in csv.DictReader(lines))
    again = "run `python benchmarks/planted.py` and `python experiments/readme.py planted results/audit/planted.md`"
    assert stored.keys() == {(name, fate) for name in SPOTS for fate in FACTORS}, again
    assert len(set(stored.values())) == 1, again


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("audit", []),
        ("monitor", TABLES["audit"][1]),
        ("training", TABLES["gpu"][1]),
        ("training", [ROOT / "LICENSE"]),
        ("training", [ROOT / "none.json"]),
    ],
)
def test_what_is_no_result_of_the_benchmark_is_refused(name, paths, elsewhere):
    with pytest.raises(UsageError, match="no results of this benchmark"):
        stored.publish(name, paths, TABLES[name][0].as_markdown)
    assert not (elsewhere / f"{name}.md").exists()
    assert (elsewhere / "README.md").read_text().count("old") == len(TABLES)
