"""The command that compares a grid: what it takes, what it leaves out, what it refuses before anything is written."""

import json
import re
import shutil

import pandas as pd
import pytest

from experiments.grids import GRIDS
from experiments.grids.design import Setting
from experiments.grids.rates import TIED_BLIND
from experiments.readme import ROOT, section

RATES = ROOT / "results" / "rates"
USED_AGAIN = {
    "sizes": {"rates": {Setting(1e-3), Setting(3e-3)}},
    "momenta": {"multipliers": {Setting(1e-3)}},
    "placements": {"momenta": {Setting(1e-3, momentum=0.0)}, "multipliers": {Setting(1e-3)}},
}
"""By grid: others, and what settings are taken from their runs."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    for name in ("draw_over", "draw_common"):
        monkeypatch.setattr(f"experiments.grids.rates.{name}", lambda *_: None)
    monkeypatch.setattr("experiments.grids.sizes.draw_sizes", lambda *_: None)
    monkeypatch.setattr("experiments.grids.multipliers.draw_over", lambda *_: None)
    for name in ("momenta", "placements"):
        monkeypatch.setattr(f"experiments.grids.{name}.draw_courses", lambda *_: None)


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in GRIDS))
    return path


@pytest.fixture
def compare(inside, readme, cache):
    def run(name, *places, results):
        arguments = [name, *places, "--results", results, "--readme", readme, "--cache", cache]
        return inside(*arguments, main="experiments.grid")

    return run


@pytest.mark.parametrize("name", GRIDS)
def test_the_readme_has_what_the_command_makes_of_the_packed_runs(name, compare, readme, tmp_path):
    places = [name, *USED_AGAIN.get(name, ())]
    done = compare(name, *(ROOT / "results" / place for place in places), results=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    committed = ROOT / "results" / name
    for file in (f"{name}.md", "runs.csv", "common.csv", "claims.json"):
        assert (tmp_path / "out" / file).read_text() == (committed / file).read_text(), file
    assert section(readme.read_text(), name) == (committed / f"{name}.md").read_text().strip()
    assert not list((tmp_path / "out").glob("*/"))  # they are packed elsewhere already


def test_what_cannot_be_compared_is_refused_before_anything_is_written(compare, readme, tmp_path):
    out = tmp_path / "out"

    def error(*places, name="rates"):
        done = compare(name, *places, results=out)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        return done.stderr

    assert "has no folders" in error(tmp_path / "none")
    shutil.copytree(RATES, tmp_path / "runs")
    assert "2 of the folders are called 1e-3" in error(tmp_path / "runs", RATES)
    (tmp_path / "empty" / "9e-9").mkdir(parents=True)
    assert "is of this grid" in error(tmp_path / "empty")
    shutil.copytree(RATES / "3e-3-warmup", tmp_path / "warm" / "3e-3-warmup")
    assert "is of this grid" in error(tmp_path / "warm", name="sizes")
    text = readme.read_text()
    readme.write_text("")
    assert "no section" in error(RATES)
    readme.write_text(text)
    assert not out.exists()
    shutil.copytree(RATES / "3e-3", out / "2e-3")
    assert "2e-3 is of runs that were not given" in error(RATES)
    assert readme.read_text() == text


def test_a_run_that_is_given_twice_is_refused(compare, tmp_path):
    shutil.copytree(RATES / "3e-3", tmp_path / "runs" / "again")
    done = compare("rates", RATES, tmp_path / "runs", results=tmp_path / "out")
    assert done.returncode == 2 and "given twice" in done.stderr


def test_unpacked_runs_are_measured_and_packed(compare, trained_run, tmp_path):
    folder, summary = trained_run
    shutil.copytree(folder, tmp_path / "runs" / "3e-3" / folder.name)
    unfinished = tmp_path / "runs" / "3e-3" / "interrupted-0"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    (tmp_path / "runs" / "nothing").mkdir()
    done = compare("rates", tmp_path / "runs", results=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "left out, unfinished: interrupted-0" in done.stderr and not (tmp_path / "out" / "nothing").exists()
    packed = json.loads((tmp_path / "out" / "3e-3" / "runs.json").read_text())
    assert packed["runs"].keys() == {folder.name} and packed["missing"] == ["interrupted-0"]
    assert [path.name for path in (tmp_path / "out" / "3e-3" / "tables").iterdir()] == ["common.csv"]
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert runs["l2_norm"].tolist() == pytest.approx([summary["validation"]["l2_norm"]["mean"][-1]], rel=1e-5)
    assert runs[["most_common", "largest_norm"]].notna().all(axis=None)


def test_runs_of_another_setting_are_named_and_not_measured(compare, trained_run, tmp_path):
    folder, summary = trained_run
    shutil.copytree(folder, tmp_path / "runs" / "3e-3" / folder.name)
    others = []
    for part, name, value in (("training", "learning_rate", 0.5), ("model", "d_model", 64)):
        others.append(shutil.copytree(folder, tmp_path / "runs" / name / folder.name))
        config = summary["config"] | {part: summary["config"][part] | {name: value}}
        (others[-1] / "summary.json").write_text(json.dumps(summary | {"config": config}))
    done = compare("rates", tmp_path / "runs", results=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for run in others:
        assert f"left out, not of this grid: {folder.name} of {run.parent}" in done.stderr
        assert not (run / "measurements").exists() and not (tmp_path / "out" / run.parent.name).exists()


@pytest.mark.parametrize("name", GRIDS)
def test_the_makefile_trains_the_cells(name):
    text = (ROOT / "Makefile").read_text()
    recipe = text.partition(f"\n{name}: $(VENV)")[2].partition("\n\n")[0]
    trained = [line for line in recipe.splitlines() if "$(call train" in line]
    found = {Setting(*(read(line) for read in OPTIONS)) for line in trained}
    assert len(found) == len(trained) and all("--steps 200 " in line for line in trained)
    used_again = set()
    for other, settings in USED_AGAIN.get(name, {}).items():
        assert settings <= GRIDS[other].settings.keys() and not settings & found
        assert set(GRIDS[name].pairs.values()) <= set(GRIDS[other].pairs.values())
        used_again |= settings
    assert found | used_again == GRIDS[name].settings.keys()
    of_target = rf"^(?:\S+ )*{name}(?: \S+)*:"  # whose values may be those of several targets
    variants = re.search(rf"{of_target} PAIRS := (.*)$", text, re.MULTILINE)[1].split()
    assert variants == [variant for pair in GRIDS[name].pairs.values() for variant in pair]
    assert re.search(rf"{of_target} SEEDS := 3 4 5$", text, re.MULTILINE)


def option(name, default):
    def read(line):
        found = re.search(rf"--{name} ([^ )]+(?: \d[^ )]*)*)", line)
        return type(default)(found[1]) if found else default

    return read


OPTIONS = [option(name.replace("_", "-"), default) for name, default in Setting(1.0)._asdict().items()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained_run(inside, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.figures.draw_run", lambda *_: None)
        options = ["--preset", "tiny", "--d-model", "128", "--num-layers", "2", "--steps", "2", "--data", "synthetic"]
        done = inside("--variant", TIED_BLIND, *options, "--learning-rate", "3e-3", "--out", out, "--cache", cache)
    assert done.returncode == 0, done.stderr
    folder = out / f"{TIED_BLIND}-0"
    return folder, json.loads((folder / "summary.json").read_text())
