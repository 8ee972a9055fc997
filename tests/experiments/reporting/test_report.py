"""The command: what it writes, and how it ends when something is wrong."""

import json
import re
from collections import Counter

import pytest
from PIL import Image

from experiments.claims import CLAIMS
from experiments.evidence import pack
from experiments.reporting import gallery
from experiments.reporting.collect import collect
from experiments.reporting.gallery import PICTURES


def test_every_claim_stands_in_all_three_forms(written):
    page, text = (written / "index.html").read_text(), (written / "report.md").read_text()
    found = {item["key"]: item for item in json.loads((written / "claims.json").read_text())}
    assert list(found) == [claim.key for claim in CLAIMS]
    for claim in CLAIMS:
        assert f'id="{claim.key}"' in page
        assert f"### {claim.text}\n\n**{found[claim.key]['verdict']}**" in text


def test_the_short_form_hides_no_claim_that_failed(written):
    found = json.loads((written / "claims.json").read_text())
    counts = Counter(item["verdict"] for item in found)
    tally, text = (written / "claims.md").read_text().split("\n\n")
    assert tally.startswith(f"{len(found)} claims: {counts['not supported']} not supported, ")
    rows = text.strip().splitlines()[2:]
    assert len(rows) == counts["not supported"] + counts["inconclusive"] + counts["not measured"] < len(found)
    assert rows[0].startswith("| A raw readout's loss has a gradient along the state.") and "not supported" in rows[0]


def test_what_holds_and_what_fails_is_reported_so(written):
    """Two seeds of layernorm are missing, and one raw readout is blind; all else is as predicted."""
    found = {item["key"]: item["verdict"] for item in json.loads((written / "claims.json").read_text())}
    one_seed = {claim.key for claim in CLAIMS if ("layernorm",) in claim.cases and claim.rule}
    unpredicted = {claim.key for claim in CLAIMS if claim.rule is None}
    assert len(one_seed) > 5 and len(unpredicted) > 5
    for claim in CLAIMS:
        expected = (
            "not supported"
            if claim.key == "radial-visible"
            else "inconclusive"
            if claim.key in one_seed
            else "no prediction"
            if claim.key in unpredicted
            else "supported"
        )
        assert found[claim.key] == expected, claim.key


def test_it_says_which_predictions_came_after_looking(written):
    found = {item["key"]: item["fixed"] for item in json.loads((written / "claims.json").read_text())}
    assert found["final-norm-grows"].startswith("after") and found["regime-number"].startswith("after")
    assert found["clamp-harmless"].startswith("before") and found["norms-over-tokens"] == "no prediction"
    before, after = (sum(text.startswith(word) for text in found.values()) for word in ("before", "after"))
    for name in ("index.html", "report.md"):
        text = (written / name).read_text()
        assert f"{before} were written down" in text and f"{after} ask for norms" in text


def test_what_was_left_out_is_named(written):
    for name in ("index.html", "report.md"):
        assert re.search(r"layernorm-1.*unfinished", (written / name).read_text(), re.S)


def test_every_figure_lies_beside_the_page(written):
    assert {path.stem for path in (written / "figures").iterdir()} == {picture.key for picture in PICTURES}
    for path in (written / "figures").iterdir():
        with Image.open(path) as image:  # on white: text in a dark colour must be seen on any page
            assert image.format == "PNG" and image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
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
    runs = collect(sorted(world.write(tmp_path, names=["scale_visible"]).iterdir()), None).runs
    first, second = (gallery._draw(PICTURES[0], runs) for _ in range(2))
    assert first == second and first.svg


def no_figures(runs):
    return [gallery._draw(picture, ()) for picture in PICTURES]


@pytest.fixture
def command(monkeypatch, inside):
    """The command, which draws nothing."""
    monkeypatch.setattr(gallery, "draw_all", no_figures)
    return lambda *arguments: inside(*arguments, main="experiments.reporting.command")


def test_the_command_reports_and_names_what_it_left_out(world, tmp_path, command):
    runs = world.write(tmp_path / "runs", names=["scale_visible"])
    (runs / "broken").mkdir()
    (runs / "broken" / "config.json").write_text("{")
    done = command(runs, "-o", tmp_path / "out", "--no-measure", "--cache", tmp_path)
    assert done.returncode == 0 and "left out: broken: cannot read" in done.stderr
    assert "not measured" in done.stdout and (tmp_path / "out" / "index.html").exists()


def test_packed_runs_give_the_report_of_the_runs(world, tmp_path, command):
    """Without --no-measure: packed runs have no weights, so that nothing could be measured."""
    runs = world.write(tmp_path / "runs", names=["scale_visible", "scale_invariant"])
    pack(sorted(runs.iterdir()), tmp_path / "packed", missing=["layernorm-0"])
    assert command(runs, "-o", tmp_path / "out", "--no-measure", "--cache", tmp_path).returncode == 0
    done = command(tmp_path / "packed", "-o", tmp_path / "again", "--cache", tmp_path)
    assert done.returncode == 0 and "left out: layernorm-0: incomplete" in done.stderr
    assert (tmp_path / "again" / "claims.json").read_text() == (tmp_path / "out" / "claims.json").read_text()
    (tmp_path / "packed" / "runs.json").write_text("[]")
    done = command(tmp_path / "packed", "-o", tmp_path / "third")
    assert done.returncode == 1 and "of another version; pack the runs again" in done.stderr
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(("processes", "lacking", "ahead"), [(3, 2, 2), (1, 2, 0), (3, 1, 0)])
def test_runs_that_lack_tables_are_measured_side_by_side_first(
    processes, lacking, ahead, world, tmp_path, command, monkeypatch
):
    runs = world.write(tmp_path / "runs", names=["scale_visible", "scale_invariant", "layernorm"], seeds=(0,))
    waiting = sorted(runs.iterdir())[:lacking]
    measured = []
    monkeypatch.setattr("experiments.reporting.command.unmeasured", lambda f: ["loops"] if f in waiting else [])
    monkeypatch.setattr("experiments.reporting.command.measure_side_by_side", lambda *given: measured.append(given))
    monkeypatch.setattr("experiments.reporting.command.measure_run", lambda *_, **__: None)
    assert command(runs, "-o", tmp_path / "out", "--cache", tmp_path, "--processes", processes).returncode == 0
    assert measured == ([(waiting, tmp_path, processes)] if ahead else [])


def test_requests_that_are_wrong_end_with_status_2(tmp_path, command):
    (tmp_path / "file").write_text("")
    for arguments, sentence in (
        ([tmp_path], "holds no run folder"),
        ([tmp_path, "-o", tmp_path / "file"], "not a folder"),
        ([tmp_path, "--processes", 0], "--processes must be at least 1"),
    ):
        done = command(*arguments)
        assert (done.returncode, done.stdout) == (2, "") and sentence in done.stderr


def test_without_any_readable_run_the_status_is_1(world, tmp_path, command):
    runs = world.write(tmp_path / "runs", names=["scale_visible"], seeds=(0,))
    (runs / "scale_visible-0" / "summary.json").unlink()
    done = command(runs, "-o", tmp_path / "out", "--no-measure", "--cache", tmp_path)
    assert done.returncode == 1 and "none of the run folders could be read" in done.stderr
