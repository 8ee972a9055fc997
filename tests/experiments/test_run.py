"""`python experiments/run.py`: what it writes, what it refuses, and in which words."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import command, figures
from experiments.config import TRAINING_PRESETS, TrainingConfig
from experiments.errors import exit_status

ROOT = Path(__file__).parents[2]
DRAWN = ("scale_visible-0", "terminal_scale_invariant-0", "scale_removing-0")
TINY = ["--preset", "tiny", "--data", "synthetic", "--steps", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, cache, inside):
    """Every variant, once; with the figures of DRAWN, since drawing takes as long as all else together."""
    out = tmp_path_factory.mktemp("runs")
    draw_run = figures.draw_run

    def draw_some(folder, *of):
        if folder.name in DRAWN:
            draw_run(folder, *of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_run", draw_some)
        done = inside("--variant", "all", *TINY, "--out", out, "--cache", cache)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_run_writes_one_folder_with_everything(sweep):
    out, printed = sweep
    folder = out / "scale_visible-0"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    drawn = {"norm_by_loop", "norm_by_step", "cross_entropy_by_loop", "radial_gradient_fraction_by_loop"}
    expected = {"config.json", "environment.json", "corpus.json", "metrics.jsonl", "checkpoint.safetensors"}
    expected |= {"summary.json"} | {f"figures/{name}.png" for name in drawn}
    snapshots = {name for name in found if name.startswith("snapshots/step-")}
    assert {name for name in found if not name.startswith("tensorboard/")} - snapshots == expected
    assert "snapshots/step-000000.safetensors" in snapshots and len(snapshots) > 2
    assert any(name.startswith("tensorboard/events") for name in found)
    summary = json.loads((folder / "summary.json").read_text())
    assert {row["verdict"] for row in summary["table"]} <= {
        "supported",
        "not supported",
        "inconclusive",
        "no prediction",
    }
    assert all(row["quantity"] in printed for row in summary["table"])
    record = json.loads((folder / "corpus.json").read_text())
    assert all(len(digest) == 64 for digest in record["files"].values())
    for name in DRAWN:
        for figure in drawn:
            assert (out / name / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_all_runs_the_registry_and_compares(sweep):
    from experiments.variants import VARIANTS

    out, printed = sweep
    assert {path.name for path in out.iterdir()} == {f"{name}-0" for name in VARIANTS} | {"comparison"}
    assert {path.name for path in (out / "comparison").iterdir()} == {
        "by_loop.csv",
        "by_step.csv",
        "by_step.png",
        "claims.json",
        "comparison.md",
        "comparison.png",
    }
    assert (out / "comparison" / "comparison.md").read_text().strip() in printed


def test_a_second_run_is_refused_and_resume_keeps_it(sweep, cache, inside):
    out, _ = sweep
    before = (out / "scale_visible-0" / "summary.json").stat().st_mtime_ns
    refused = inside("--variant", "scale_visible", *TINY, "--out", out, "--cache", cache)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "--resume" in refused.stderr
    resumed = inside("--variant", "scale_visible", *TINY, "--out", out, "--cache", cache, "--resume")
    assert resumed.returncode == 0
    assert "# scale_visible-0" in resumed.stdout
    assert (out / "scale_visible-0" / "summary.json").stat().st_mtime_ns == before


def test_more_loops_than_trained_are_evaluated_from_the_same_checkpoint(sweep, cache, tmp_path, inside):
    out = tmp_path / "runs"
    shutil.copytree(sweep[0] / "layernorm-0", out / "layernorm-0")
    weights = (out / "layernorm-0" / "checkpoint.safetensors").read_bytes()
    done = inside("--variant", "layernorm", *TINY, "--out", out, "--cache", cache, "--resume", "--loops", 7)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "layernorm-0" / "summary.json").read_text())
    assert len(summary["validation_at_num_loops"]["cross_entropy"]) == summary["num_loops"] == 7
    assert len(summary["validation"]["cross_entropy"]) == 4  # judged where it was trained
    assert "Not judged, 7 loops" in done.stdout
    assert len(summary["sessions"]) == 2
    assert (out / "layernorm-0" / "checkpoint.safetensors").read_bytes() == weights


def test_a_model_of_another_size_is_trained_and_told_from_the_preset_s(cache, tmp_path, inside):
    arguments = ["--variant", "layernorm", *TINY, "--out", tmp_path, "--cache", cache, "--num-layers", 2]
    done = inside(*arguments, "--d-model", 64, "--embedding-multiplier", 0.5, "--loop-weights", 0, 0.5, 0, 0.5)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "layernorm-0" / "summary.json").read_text())
    model = summary["config"]["model"]
    assert summary["config"]["supervision"]["weights"] == [0.0, 0.5, 0.0, 0.5]
    assert {row["predicted"] for row in summary["table"] if "leaving after loop 1" in row["quantity"]} == {"none made"}
    assert (model["d_model"], model["num_layers"], model["num_heads"]) == (64, 2, 4)
    assert model["embedding_multiplier"] == 0.5
    assert summary["parameters"] > 16 * 2 * 64**2
    other = inside(*arguments, "--resume")
    assert other.returncode == 2 and "model" in other.stderr


def test_a_run_reads_back_as_the_model_that_was_trained(sweep, cache):
    from experiments.corpus import prepare
    from experiments.measure.validation import held_out_windows, validate
    from experiments.runs import load_model, read_config, read_summary

    out, _ = sweep
    folder = out / "untied_scale_visible-0"
    config = read_config(folder)
    summary = read_summary(folder)
    corpus = prepare(config.corpus, cache)
    windows = held_out_windows(corpus.validation, config.model.context, 128)
    found = validate(load_model(folder), windows, num_loops=4, batch_size=16)
    assert found.cross_entropy == pytest.approx(summary["validation"]["cross_entropy"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--variant", "scale_visble"], "unknown variant 'scale_visble'; known, nearest first: scale_visible"),
        (["--variant", "scale_visible", "--preset", "44M"], "unknown preset '44M'; known, nearest first: 44m"),
        (["--variant", "scale_visible", "--steps", "0"], "steps must be at least 1"),
        (["--variant", "scale_visible", "--loops", "0"], "--loops must be at least 1"),
        (["--variant", "scale_visible", "--device", "gpu"], "cannot use --device gpu"),
        (["--variant", "scale_visible", "--data", "/no/such/file"], "/no/such/file"),
        (["--variant", "scale_visible", "--checkpoint-every", "0"], "--checkpoint-every must be at least 1"),
        (["--variant", "scale_visible", "--seeds", "-1"], "--seeds must be different whole numbers from 0"),
        (["--variant", "scale_visible", "--seeds", "1", "1"], "--seeds must be different"),
        (["--variant", "scale_visible", "--seeds", "99999999999999999999"], "--seeds must be different"),
        (["--variant", "scale_visible", "--learning-rate", "nan"], "learning_rate must be positive and finite"),
        (
            ["--variant", "scale_visible", "--batch-size", "1000000000"],
            "more of them than the corpus has training tokens",
        ),
        (["--variant", "scale_visible", "--d-model", "100"], "d_model must be a multiple of the width of a head"),
        (["--variant", "scale_visible", "--embedding-multiplier", "0"], "embedding_multiplier must be positive"),
        (["--variant", "scale_visible", "--num-layers", "0"], "num_layers must be at least 1"),
        (["--variant", "scale_visible", "--momentum", "1"], "momentum must lie in [0, 1)"),
        (["--variant", "scale_visible", "--loop-weights", "0", "1"], "scale_visible: 2 weights were given for 4 loops"),
        (
            ["--variant", "all", "--loop-weights", "0", "0", "0", "1"],
            "does not go with terminal_scale_visible: weights",
        ),
        (
            ["--variant", "scale_visible", "--loop-weights", "0", "0", "0", "0"],
            "weights must be finite, not negative and not all zero",
        ),
        (["--variant", "scale_visible", "--out", __file__ + "/below"], "cannot make the folder"),
        (["--variant", "scale_visible", "--out", __file__], "is not a folder"),
    ],
)
def test_a_wrong_argument_gets_one_sentence_and_status_2(arguments, sentence, tmp_path, inside):
    out = [] if "--out" in arguments else ["--out", tmp_path / "runs"]
    done = inside(*TINY, *arguments, *out, "--cache", tmp_path / "cache")
    assert done.returncode == 2
    error = done.stderr
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sentence in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--no-such-option"], []])
def test_a_line_that_does_not_parse_has_status_2_and_no_traceback(arguments, inside):
    done = inside(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_loss_too_large_for_a_perplexity_is_shown_and_judges_no_exit(tmp_path, cache, inside):
    arguments = ["--variant", "scale_visible", *TINY, "--learning-rate", "1", "--out", tmp_path, "--cache", cache]
    done = inside(*arguments)
    assert done.returncode == 0, done.stderr
    assert "validation perplexity exp(" in done.stdout
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("| cross-entropy lost by leaving"))
    assert "worse than guessing" in row and "inconclusive" in row
    assert inside(*arguments, "--resume").returncode == 0


def test_a_run_whose_figures_could_not_be_drawn_is_not_finished(tmp_path, cache, inside):
    arguments = ["--variant", "scale_visible", *TINY, "--out", tmp_path, "--cache", cache]
    folder = tmp_path / "scale_visible-0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_run", lambda *_: (_ for _ in ()).throw(OSError("no ink")))
        assert inside(*arguments).returncode == 1
    assert not (folder / "summary.json").exists()
    assert inside(*arguments, "--resume").returncode == 0
    assert (folder / "figures" / "norm_by_loop.png").exists()


def test_a_diverging_run_has_status_1_and_one_sentence(tmp_path, cache, inside):
    arguments = ["--variant", "scale_visible", *TINY, "--learning-rate", "1e30", "--out", tmp_path, "--cache", cache]
    done = inside(*arguments)
    assert done.returncode == 1
    assert (
        done.stderr.startswith("error: the loss or its gradient became NaN or infinite")
        and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize(
    ("multiplier", "sentence"),
    [("1e19", "metrics.jsonl is NaN or infinite: states"), ("1e30", "try an --embedding-multiplier nearer to 1, or")],
)
def test_states_that_overflow_have_status_1_and_one_sentence(multiplier, sentence, tmp_path, cache, inside):
    arguments = ["--variant", "scale_visible", *TINY, "--snapshots", 0, "--embedding-multiplier", multiplier]
    done = inside(*arguments, "--out", tmp_path, "--cache", cache)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and sentence in done.stderr and done.stderr.count("\n") == 1


class OutOfMemoryError(RuntimeError):
    """As torch calls that of a GPU."""


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (MemoryError(), 1, "out of memory (MemoryError); try smaller"),
        (RuntimeError("alloc_cpu: can't allocate memory: 9 bytes"), 1, "out of memory (alloc_cpu"),
        (OutOfMemoryError("CUDA"), 1, "out of memory (CUDA)"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 2, "choose a path that is UTF-8"),
    ],
)
def test_what_the_machine_cannot_give_gets_one_sentence(error, status, sentence, capsys):
    def command():
        raise error

    assert exit_status(command) == status
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback():
    def command():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        exit_status(command)


def test_a_run_killed_while_it_wrote_its_configuration_is_begun_again(tmp_path, cache, inside, monkeypatch):
    monkeypatch.setattr(figures, "draw_run", lambda *_: None)
    (tmp_path / "scale_visible-0").mkdir()
    (tmp_path / "scale_visible-0" / ".config.json.abc.json").write_text("{")
    done = inside("--variant", "scale_visible", *TINY, "--out", tmp_path, "--cache", cache, "--resume")
    assert done.returncode == 0, done.stderr


def damage_summary(folder):
    (folder / "summary.json").write_text("{}")


def damage_metrics(folder):
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").write_text("{]\n")


def lose_metrics(folder):
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").unlink()


def damage_config(folder):
    (folder / "config.json").write_text('{"config": {"variant": 1}}')


def damage_checkpoint(folder):
    (folder / "summary.json").unlink()
    (folder / "checkpoint.safetensors").write_bytes(b"no")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_summary, "summary.json is of another version"),
        (damage_metrics, "metrics.jsonl is damaged"),
        (lose_metrics, "metrics.jsonl lacks the end of training"),
        (damage_config, "config.json is of another version"),
        (damage_checkpoint, "cannot read the checkpoint"),
    ],
)
def test_a_damaged_run_folder_has_status_1_and_one_sentence(damage, sentence, sweep, cache, tmp_path, inside):
    shutil.copytree(sweep[0] / "scale_visible-0", tmp_path / "scale_visible-0")
    damage(tmp_path / "scale_visible-0")
    done = inside("--variant", "scale_visible", *TINY, "--out", tmp_path, "--cache", cache, "--resume")
    assert done.returncode == 1
    error = done.stderr
    assert sentence in error and error.startswith("error: ") and error.count("\n") == 1


def test_another_configuration_names_what_differs(sweep, cache, inside):
    done = inside(
        "--variant", "scale_visible", *TINY, "--out", sweep[0], "--cache", cache, "--resume", "--weight-decay", "0.5"
    )
    assert done.returncode == 2
    assert "holds a run that differs in training.weight_decay;" in done.stderr


def test_what_is_not_given_is_the_presets_and_what_is_given_is_not(monkeypatch):
    preset = TrainingConfig(
        steps=9,
        batch_size=3,
        optimiser="sgd",
        momentum=0.5,
        schedule="cosine",
        warmup_steps=2,
        weight_decay=0.1,
        recompute=True,
    )
    monkeypatch.setitem(TRAINING_PRESETS, "tiny", preset)
    assert command._training(command.Arguments(variant="all", preset="tiny"), ()) == preset
    given = {"optimiser": "muon", "momentum": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0}
    arguments = command.Arguments(variant="all", preset="tiny", **given)
    assert command._training(arguments, ()) == replace(preset, **given)


def test_an_option_that_the_variant_sets_otherwise_is_refused(tmp_path, cache, inside):
    arguments = ["--variant", "factorial_raw_tied_unit_learned_decay0.01_sgd", *TINY, "--out", tmp_path / "out"]
    done = inside(*arguments, "--optimiser", "muon", "--cache", cache)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--optimiser muon does not go with factorial_raw_tied_unit_learned_decay0.01_sgd, which sets" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(sweep, cache, inside):
    out, _ = sweep
    holding = "import sys; from experiments.files import exclusive\n"
    holding += "with exclusive(sys.argv[1]) as ours: print(ours, flush=True); sys.stdin.read()"
    other = [sys.executable, "-c", holding, out / "scale_visible-0"]
    with subprocess.Popen(other, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        done = inside("--variant", "scale_visible", *TINY, "--out", out, "--cache", cache, "--resume")
        process.stdin.close()
    assert done.returncode == 2 and "another process is working in" in done.stderr


def test_nothing_is_touched_but_out_and_cache(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL"))}
    arguments = ["--variant", "scale_visible", *TINY, "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    done = subprocess.run(
        [sys.executable, ROOT / "experiments" / "run.py", *arguments],
        capture_output=True,
        env=environment | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
        cwd="/",
    )
    assert done.returncode == 0
    assert list(home.rglob("*")) == []


def test_help_names_every_variant_and_every_option(inside):
    from dataclasses import fields

    from experiments.command import Arguments
    from experiments.variants import VARIANTS

    done = inside("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in VARIANTS)
    assert all("--" + field.name.replace("_", "-") in done.stdout for field in fields(Arguments))


def test_publish_compares_finished_runs_and_fills_the_readme(sweep, tmp_path, inside):
    out, _ = sweep
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- cpu -->\nold\n<!-- /cpu -->\nafter\n")
    out = shutil.copytree(out, tmp_path / "runs")
    (out / "interrupted-0").mkdir(exist_ok=True)
    (out / "interrupted-0" / "config.json").write_text("{}")
    done = inside(out, tmp_path / "cpu", "--readme", readme, main="experiments.publish")
    assert done.returncode == 0, done.stderr
    assert "left out, unfinished: interrupted-0" in done.stderr
    packed = json.loads((tmp_path / "cpu" / "runs.json").read_text())
    assert (tmp_path / "cpu" / "by_step.csv").read_text() == (out / "comparison" / "by_step.csv").read_text()
    assert packed["missing"] == ["interrupted-0"] and "layernorm-0" in packed["runs"]
    table = (tmp_path / "cpu" / "comparison.md").read_text()
    assert readme.read_text() == f"before\n<!-- cpu -->\n{table}<!-- /cpu -->\nafter\n"
    other = json.loads((out / "layernorm-0" / "summary.json").read_text())
    other["config"]["training"]["steps"] += 1
    (out / "layernorm-0" / "summary.json").write_text(json.dumps(other))
    refused = inside(out, tmp_path / "cpu", "--readme", readme, main="experiments.publish")
    assert refused.returncode == 2 and "cannot be compared" in refused.stderr


def test_what_cannot_be_published_is_refused_before_anything_is_written(sweep, tmp_path, inside):
    (tmp_path / "empty").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("")
    renamed = shutil.copytree(sweep[0] / "layernorm-0", tmp_path / "renamed" / "mine").parent
    for runs, status, sentence in (
        (tmp_path / "none", 2, "is not a folder"),
        (tmp_path / "empty", 2, "holds no finished run"),
        (sweep[0], 2, "there is no section"),
        (renamed, 1, "mine holds the run layernorm-0; give the folder that name"),
    ):
        done = inside(runs, tmp_path / "cpu", "--readme", readme, main="experiments.publish")
        assert done.returncode == status and sentence in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "cpu").exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("contrast", {"contrast": "comparison.md"}),
        ("44m", {"44m": "comparison.md", "44m-growth": "growth.md"}),
    ],
)
def test_packed_runs_are_published_again(name, shown, tmp_path, inside, monkeypatch):
    monkeypatch.setattr("experiments.comparison.draw_comparison", lambda *_: None)
    readme = tmp_path / "README.md"
    readme.write_text("".join(f"<!-- {each} -->\nold\n<!-- /{each} -->\n" for each in shown))
    packed = ROOT / "results" / name
    done = inside(packed, tmp_path / name, "--readme", readme, main="experiments.publish")
    assert done.returncode == 0, done.stderr
    for each, file in shown.items():
        text = (packed / file).read_text()
        assert (tmp_path / name / file).read_text() == text
        assert f"<!-- {each} -->\n{text}<!-- /{each} -->\n" in readme.read_text() and text in done.stdout
    assert not (tmp_path / name / "runs.json").exists()  # the evidence stays where it is
    assert {path.name for path in (tmp_path / name).iterdir()} <= {path.name for path in packed.iterdir()}


@pytest.mark.parametrize("of_all", [True, False])
def test_effects_are_published_where_all_runs_are_of_the_designed_experiment(
    of_all, sweep, tmp_path, inside, monkeypatch
):
    monkeypatch.setattr("experiments.effects.publish_factorial", lambda summaries, out: f"effects of {len(summaries)}")
    monkeypatch.setattr("experiments.comparison.compare", lambda summaries, out: f"comparison of {len(summaries)}")
    designed = {"scale_visible-0", *(["layernorm-0"] if of_all else [])}
    for name in ("scale_visible-0", "layernorm-0"):
        folder = shutil.copytree(sweep[0] / name, tmp_path / "runs" / name)
        summary = json.loads((folder / "summary.json").read_text())
        if name in designed:
            summary["variant"] = "factorial_raw_tied_unit_learned_decay0.01_sgd"
        (folder / "summary.json").write_text(json.dumps(summary))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- out -->\n<!-- /out -->\n")
    done = inside(tmp_path / "runs", tmp_path / "out", "--readme", readme, main="experiments.publish")
    assert done.returncode == 0, done.stderr
    text = "effects of 2" if of_all else "comparison of 2"
    assert text in readme.read_text() and (tmp_path / "out" / "by_step.csv").exists() != of_all
    assert json.loads((tmp_path / "out" / "runs.json").read_text())["runs"].keys() == {"scale_visible-0", "layernorm-0"}


@pytest.mark.parametrize("index", ["", "null", "3", '{"a": ', "[]"])
def test_packed_runs_that_are_damaged_are_not_published(index, tmp_path, inside):
    (tmp_path / "runs.json").write_text(index)
    done = inside(tmp_path, tmp_path / "out", "--readme", tmp_path / "none", main="experiments.publish")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "runs" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("entry", "value", "where"),
    [
        ("validation", {"cross_entropy": "text"}, "norm_penalty-0: validation.tokens"),
        ("sessions", ["text"], "norm_penalty-0: sessions.0"),
        ("run", "other-0", "norm_penalty-0: run"),
    ],
)
def test_packed_runs_with_a_wrong_entry_are_named_with_it(entry, value, where, tmp_path, inside):
    index = json.loads((ROOT / "results" / "contrast" / "runs.json").read_text())
    index["runs"]["norm_penalty-0"]["summary"][entry] = value
    packed = tmp_path / "packed" / "runs.json"
    packed.parent.mkdir()
    packed.write_text(json.dumps(index))
    done = inside(packed.parent, tmp_path / "out", main="experiments.publish")
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr == f"error: {packed} is of another version or damaged ({where}); pack the runs again.\n"
    done = inside("rates", tmp_path, main="experiments.grid")
    assert done.returncode == 1 and f"error: {packed} is of another" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_package_gets_one_sentence(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['tyro'] = None")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    script = str(ROOT / "experiments" / "run.py")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == 'error: the package tyro is missing; install it with: pip install -e ".[dev]"\n'
