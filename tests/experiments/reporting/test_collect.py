"""What can be read is reported; what cannot is named, with the reason."""

import json
import shutil

import pandas as pd
import pytest

from experiments.claims import SCHEMA
from experiments.errors import UsageError
from experiments.measure.suite import PartlyMeasured
from experiments.reporting.collect import collect, run_folders
from experiments.variants import VARIANTS


@pytest.fixture
def runs(world, tmp_path):
    return world.write(tmp_path / "runs", names=["scale_visible", "scale_invariant"], seeds=(0, 1))


def test_the_world_of_these_tests_has_every_variant(world):
    lacking = sorted(VARIANTS.keys() ^ set(world.names))
    assert not lacking, f"{lacking}: add to FINAL_NORMS of tests/experiments/reporting/conftest.py"


def test_the_world_of_these_tests_has_every_table(world):
    found = {name: set(table.columns) for name, table in world.tables("scale_visible").items()}
    expected = {name: set(columns) for name, columns in SCHEMA.items()}
    assert found == expected, "add to tables() in tests/experiments/reporting/conftest.py what SCHEMA has"


def skipped(out):
    found = collect(run_folders([out]), None)
    return {item.name: item.reason for item in found.skipped}, [run.folder.name for run in found.runs]


def test_finished_runs_are_read(runs):
    found = collect(run_folders([runs]), None)
    assert [run.folder.name for run in found.runs] == [
        "scale_invariant-0",
        "scale_invariant-1",
        "scale_visible-0",
        "scale_visible-1",
    ]
    assert not found.skipped
    run = found.runs[0].measured
    assert run.labels == ("scale_invariant", "rmsnorm tied N(0,1)")
    assert (run.seed, run.trained_loops, len(run.tables)) == (0, 4, len(SCHEMA))


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def other_version(folder):
    path = folder / "measurements" / "measurements.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("config.json"), "no config.json"),
        (write("config.json", "{"), "cannot read"),
        (write("config.json", '{"config": {}}'), "another version"),
        (remove("summary.json"), "unfinished"),
        (write("summary.json", "{}"), "another version"),
        (write("summary.json", "\x00"), "cannot read"),
        (remove("measurements/measurements.json"), "not measured"),
        (other_version, "version 99"),
        (write("measurements/measurements.json", "[]"), "version None"),
    ],
)
def test_a_bad_folder_is_named_and_the_rest_is_read(damage, reason, runs):
    damage(runs / "scale_visible-0")
    found, read = skipped(runs)
    assert list(found) == ["scale_visible-0"] and reason in found["scale_visible-0"]
    assert read == ["scale_invariant-0", "scale_invariant-1", "scale_visible-1"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("measurements/clamp.csv"), "missing"),
        (write("measurements/clamp.csv", "mode,change\na,1\n"), "no column cross_entropy"),
        (write("measurements/clamp.csv", ""), "No columns"),
    ],
)
def test_a_bad_table_is_named_and_the_run_is_read(damage, reason, runs):
    damage(runs / "scale_visible-0")
    found, read = skipped(runs)
    assert list(found) == ["scale_visible-0, table clamp"] and reason in found["scale_visible-0, table clamp"]
    assert len(read) == 4


def test_what_all_runs_lack_is_said_once(world, runs):
    tables = sorted(runs.glob("*/measurements/clamp.csv"))
    for path in tables[1:]:
        path.unlink()
    assert list(skipped(runs)[0]) == [f"{path.parents[1].name}, table clamp" for path in tables[1:]]
    tables[0].unlink()
    assert skipped(runs)[0] == {"table clamp of all runs": "missing"}
    world.write(runs, names=["scale_visible"], seeds=(2,), steps=20)  # has it, and is of another kind
    assert list(skipped(runs)[0]) == ["table clamp of all runs", "scale_visible-2"]
    assert list(skipped(runs / "scale_visible-0")[0]) == ["scale_visible-0, table clamp"]


def test_an_empty_table_is_read_as_one(runs):
    path = runs / "scale_visible-0" / "measurements" / "pressure.csv"
    path.write_text(pd.read_csv(path).iloc[:0].to_csv(index=False))
    assert skipped(runs)[0] == {}


def test_runs_of_another_kind_and_second_copies_are_left_out(world, runs):
    world.write(runs.parent / "longer", names=["scale_visible"], seeds=(2,), steps=20)
    (runs.parent / "longer" / "scale_visible-2").rename(runs / "longer")
    shutil.copytree(runs / "scale_visible-0", runs / "zz-copy")
    found, read = skipped(runs)
    assert "differs from most runs" in found["longer"] and "a second time" in found["zz-copy"]
    assert len(read) == 4


def test_what_is_no_run_folder_is_not_mentioned(runs):
    (runs / "comparison").mkdir()
    (runs / "notes.txt").write_text("")
    assert skipped(runs)[0] == {}


def test_a_run_folder_itself_can_be_given(runs):
    assert [path.name for path in run_folders([runs / "scale_visible-0", runs])][0] == "scale_visible-0"
    assert len(run_folders([runs / "scale_visible-0", runs, runs / ".." / runs.name])) == 4


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a folder"):
        run_folders([tmp_path / "nowhere"])


def test_a_run_of_which_some_tables_could_not_be_made_is_reported_with_the_others(runs):
    def measure(folder):
        if folder.name == "scale_visible-1":
            raise PartlyMeasured(folder.name, {"attribution": "no snapshots", "pressure": "no snapshots"})

    found = collect(run_folders([runs]), measure)
    assert [run.folder.name for run in found.runs if "attribution" not in run.measured.tables] == ["scale_visible-1"]
    assert [(item.name, item.reason) for item in found.skipped] == [
        ("scale_visible-1, table attribution", "no snapshots"),
        ("scale_visible-1, table pressure", "no snapshots"),
    ]


def test_runs_are_measured_first_and_a_failure_is_named(runs):
    called = []

    def measure(folder):
        called.append(folder.name)
        if folder.name == "scale_visible-1":
            raise RuntimeError("the checkpoint\nis broken")

    found = collect(run_folders([runs]), measure)
    assert len(called) == 4
    assert [(item.name, item.reason) for item in found.skipped] == [("scale_visible-1", "the checkpoint")]
