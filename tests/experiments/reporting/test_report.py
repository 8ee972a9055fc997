"""The command: what it writes, and how it ends when something is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.claims import CLAIMS
from experiments.reporting.command import report
from experiments.reporting.gallery import PICTURES

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def written(world, tmp_path_factory):
    """A report of every variant, with a run that cannot be read."""
    runs = world.write(tmp_path_factory.mktemp("world") / "runs")
    (runs / "layernorm-1" / "summary.json").unlink()
    out = tmp_path_factory.mktemp("report")
    report(sorted(runs.iterdir()), out, None)
    return out


def test_every_claim_stands_in_all_three_forms(written):
    page, text = (written / "index.html").read_text(), (written / "report.md").read_text()
    found = {item["key"]: item for item in json.loads((written / "claims.json").read_text())}
    assert list(found) == [claim.key for claim in CLAIMS]
    for claim in CLAIMS:
        assert f'id="{claim.key}"' in page
        assert f"### {claim.text}\n\n**{found[claim.key]['verdict']}**" in text
    assert (written / "claims.md").read_text().strip() in text


def test_the_world_in_which_all_holds_is_reported_so(written):
    verdicts = {item["verdict"] for item in json.loads((written / "claims.json").read_text())}
    assert verdicts == {"supported", "no prediction"}


def test_what_was_left_out_is_named(written):
    for name in ("index.html", "report.md"):
        assert re.search(r"layernorm-1.*unfinished", (written / name).read_text(), re.S)


def test_every_figure_lies_beside_the_page(written):
    assert {path.stem for path in (written / "figures").iterdir()} == {picture.key for picture in PICTURES}
    for path in (written / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"figures/{path.name}" in (written / "report.md").read_text()


def test_ids_are_unique_and_nothing_is_loaded(written):
    page = (written / "index.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_it_says_how_it_was_made_and_no_path_of_that_machine(written):
    text = (written / "report.md").read_text()
    assert "python experiments/run.py --variant all --out RUNS" in text
    assert "commit of training" in text and "0123456789" in text and "seeds 0, 1, 2" in text
    assert "/home/me" not in text


def test_the_same_runs_give_the_same_figures(world, tmp_path):
    from experiments.reporting.collect import collect
    from experiments.reporting.gallery import _draw

    runs = collect(sorted(world.write(tmp_path, names=["scale_visible"]).iterdir()), None).runs
    first, second = (_draw(PICTURES[0], runs) for _ in range(2))
    assert first == second and first.svg


def command(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "report.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        cwd="/",
    )


def test_the_command_reports_and_names_what_it_left_out(world, tmp_path):
    runs = world.write(tmp_path / "runs", names=["scale_visible"])
    (runs / "broken").mkdir()
    (runs / "broken" / "config.json").write_text("{")
    done = command(runs, "-o", tmp_path / "out", "--no-measure", "--cache", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: broken: cannot read" in done.stderr and "Traceback" not in done.stderr
    assert "not measured" in done.stdout and (tmp_path / "out" / "index.html").exists()


def test_requests_that_are_wrong_end_with_status_2(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, sentence in (
        ([tmp_path / "nowhere"], "not a folder"),
        ([tmp_path], "holds no run folder"),
        ([tmp_path, "-o", tmp_path / "file"], "is not a folder"),
    ):
        done = command(*arguments)
        assert (done.returncode, done.stdout) == (2, "") and sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_without_any_readable_run_the_status_is_1(world, tmp_path):
    runs = world.write(tmp_path / "runs", names=["scale_visible"], seeds=(0,))
    (runs / "scale_visible-0" / "summary.json").unlink()
    done = command(runs, "-o", tmp_path / "out", "--no-measure")
    assert done.returncode == 1 and "none of the run folders could be read" in done.stderr
