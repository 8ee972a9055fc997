"""Packed runs say what the run folders said, digit by digit, and a report can be made of them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments import evidence
from experiments.errors import RunError

ROOT = Path(__file__).parents[2]
TABLE = pd.DataFrame({"k": [1, 2], "change": [1 / 3, float("inf")], "mode": ["a, b", "c"]})
SPARSE = pd.DataFrame({"k": [1, 2], "change": [float("nan"), -1e-300], "mode": ["", "d"]})


@pytest.fixture
def folders(tmp_path):
    """Two runs; the second has one table less and no record of measurements."""
    made = []
    for name, tables in (("first-0", {"clamp": TABLE, "loops": TABLE}), ("second-1", {"clamp": SPARSE})):
        folder = tmp_path / "runs" / name
        (folder / "measurements").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"config": name}))
        (folder / "summary.json").write_text(json.dumps({"run": name, "norm": 0.1 + 0.2}))
        for table, frame in tables.items():
            frame.to_csv(folder / "measurements" / f"{table}.csv", index=False)
        made.append(folder)
    (made[0] / "measurements" / "measurements.json").write_text('{"version": 1}')
    return made


def test_unpacked_runs_are_the_runs(folders, tmp_path):
    evidence.pack(folders, tmp_path / "packed")
    assert evidence.is_packed(tmp_path / "packed") and not evidence.is_packed(tmp_path / "runs")
    out = evidence.unpack(tmp_path / "packed", tmp_path / "again")
    for folder in folders:
        documents = {path.relative_to(folder) for path in folder.rglob("*.*")}
        assert {path.relative_to(out / folder.name) for path in (out / folder.name).rglob("*.*")} == documents
        for name in documents:
            before, after = folder / name, out / folder.name / name
            if name.suffix == ".csv":
                exact = [pd.read_csv(path) for path in (before, after)]
                pd.testing.assert_frame_equal(*exact, rtol=1e-15, atol=0.0)
            else:
                assert json.loads(before.read_text()) == json.loads(after.read_text())


def test_what_is_missing_and_what_else_was_said_is_kept(folders, tmp_path):
    packed = tmp_path / "packed"
    evidence.pack(folders, packed, missing=["third-2"], plan={"steps": 3})
    index = json.loads((packed / "runs.json").read_text())
    assert index["missing"] == ["third-2"] and index["plan"] == {"steps": 3}
    evidence.unpack(packed, tmp_path / "again")
    assert not (tmp_path / "again" / "third-2" / "config.json").exists()
    assert (tmp_path / "again" / "third-2" / "measurements").is_dir()


def test_a_second_packing_leaves_nothing_of_the_first(folders, tmp_path):
    evidence.pack(folders, tmp_path / "packed")
    evidence.pack(folders[1:], tmp_path / "packed")
    assert [path.name for path in (tmp_path / "packed" / "tables").iterdir()] == ["clamp.csv"]
    assert set(pd.read_csv(tmp_path / "packed" / "tables" / "clamp.csv")["run"]) == {"second-1"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 99}',
        '{"version": 1, "runs": {}}',
        '{"version": 1, "runs": 3}',
        '{"version": 1, "missing": [], "runs": {"a-0": {"summary": {"loss": NaN}}}}',
    ],
)
def test_damaged_packed_runs_get_a_sentence(text, tmp_path):
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(RunError, match="pack "):
        evidence.unpack(tmp_path, tmp_path / "again")


def test_runs_packed_by_another_version_are_refused_though_nothing_is_missing(folders, tmp_path):
    evidence.pack(folders, tmp_path / "packed")
    path = tmp_path / "packed" / "runs.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(RunError, match="is of another version; pack the runs again"):
        evidence.unpack(tmp_path / "packed", tmp_path / "again")


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", ""])
def test_packed_runs_write_nowhere_else(name, folders, tmp_path):
    packed = tmp_path / "packed"
    evidence.pack(folders, packed)
    table = packed / "tables" / "loops.csv"
    text = table.read_text()
    table.write_text(text.replace("first-0", name or "another"))
    with pytest.raises(RunError, match="pack the runs again"):
        evidence.unpack(packed, tmp_path / "again")
    table.write_text(text)
    index = json.loads((packed / "runs.json").read_text())
    (packed / "runs.json").write_text(json.dumps(index | {"runs": {name: index["runs"]["first-0"]}}))
    with pytest.raises(RunError, match="no plain folder name"):
        evidence.unpack(packed, tmp_path / "third")
    assert not (tmp_path / "outside").exists() and not (tmp_path / "third").exists()


def test_a_damaged_table_is_refused_before_anything_is_packed(folders, tmp_path):
    (folders[1] / "measurements" / "clamp.csv").write_text("")
    with pytest.raises(RunError, match="cannot read .*clamp.csv"):
        evidence.pack(folders, tmp_path / "packed")
    assert not evidence.is_packed(tmp_path / "packed")


@pytest.mark.parametrize(
    ("name", "advice"),
    list(zip(evidence.DOCUMENTS.values(), ("train the run again", "delete it", "delete it"), strict=True)),
)
def test_a_damaged_document_is_refused_before_anything_is_packed(name, advice, folders, tmp_path):
    (folders[1] / name).write_text("{")
    with pytest.raises(RunError, match=f"cannot read .*{Path(name).name} .*; {advice}"):
        evidence.pack(folders, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_what_a_killed_process_left_is_not_read(folders, tmp_path):
    evidence.pack(folders, tmp_path / "packed")
    (tmp_path / "packed" / "tables" / ".clamp.csv.x1y2.csv").write_text("ru")
    evidence.unpack(tmp_path / "packed", tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").rglob("*.csv")} == {"clamp.csv", "loops.csv"}
