"""The suite on a run of a few steps: what it writes, keeps, makes again and refuses."""

import json
import pickle
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

from experiments.claims import SCHEMA
from experiments.config import TrainingConfig, resolve
from experiments.corpus import CorpusConfig, prepare
from experiments.errors import RunError
from experiments.experiment import run
from experiments.files import exclusive
from experiments.measure import context, depth, precision, suite
from experiments.measure.suite import SUITE, Measure, PartlyMeasured, measure_run, questions_of, read_table
from experiments.runs import read_summary
from experiments.training import checkpoint as checkpoints
from experiments.training.trainer import Execution

pytestmark = pytest.mark.usefixtures("undrawn")

LATER = {"halting": ("ratio_low", "ratio_high")}  # columns that no claim reads: older tables are without them
CORPUS = CorpusConfig(data="synthetic", vocab_size=256)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """A run of the tiny preset."""
    tokens = prepare(CORPUS, cache, min_tokens=33)
    training = TrainingConfig(steps=2, batch_size=2)
    config = resolve(variant="final_norm", preset="tiny", seed=0, training=training, corpus=CORPUS, tokens=tokens)
    out = tmp_path_factory.mktemp("runs")
    run(config, tokens, out, Execution(device=torch.device("cpu")), num_loops=4, resume=False)
    return out / config.name


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(precision, "MAX_LOOPS", {torch.bfloat16: 70, torch.float16: 70})
    monkeypatch.setattr(depth, "ROUNDS", 3)


@pytest.fixture(scope="module")
def passes():
    """The run's folder, for every pass over the held-out tokens."""
    return []


@pytest.fixture(scope="module")
def measured(trained, cache, passes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / trained.name
    shutil.copytree(trained, folder)
    with pytest.MonkeyPatch.context() as patch:
        real = context.held_out_pass
        patch.setattr(context, "held_out_pass", lambda *a, **k: passes.append(folder) or real(*a, **k))
        patch.setattr(precision, "MAX_LOOPS", {torch.bfloat16: 70})
        measure_run(folder, cache)
    return folder


@pytest.fixture
def copy(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / measured.name)


@pytest.fixture
def counted(monkeypatch):
    """The suite with small tables that say how often they were made."""
    made = []

    def question(name):
        def measure(context):
            made.append(name)
            return {name: pd.DataFrame({"value": [len(made)]})}

        return suite.Measure(tables=(name,), measure=measure)

    monkeypatch.setattr(suite, "SUITE", (question("first"), question("second")))
    return made


def test_every_table_is_one_that_the_report_reads():
    made = {name for question in SUITE for name in question.tables}
    unread, unmade = sorted(made - SCHEMA.keys()), sorted(SCHEMA.keys() - made)
    assert not unread, f"add {unread} and the columns that are read to SCHEMA in experiments/claims/tables.py"
    assert not unmade, f"add a question for {unmade} to SUITE in experiments/measure/suite.py"


def test_every_table_is_written_with_its_columns(measured):
    for name, columns in SCHEMA.items():
        table = read_table(measured, name)
        assert table.columns.tolist() == [*columns, *LATER.get(name, ())], f"{name}: its question and SCHEMA differ"
        assert len(table) > 0 or name in ("attribution", "pressure", "common")  # of runs that keep no snapshots
    record = json.loads((measured / "measurements" / "measurements.json").read_text())
    assert record["version"] == 1 and record["trained_loops"] == 4
    assert (record["run"], record["variant"], record["seed"], record["preset"]) == (
        "final_norm-0",
        "final_norm",
        0,
        "tiny",
    )
    assert record["seconds"].keys() >= SCHEMA.keys() and min(record["seconds"].values()) >= 0.0
    assert record["environment"]["packages"]["torch"] and record["tokens"] > 0


def test_the_table_of_loops_agrees_with_the_runs_own_summary(measured):
    summary = read_summary(measured)
    table = read_table(measured, "loops")
    assert table["cross_entropy"][:4].tolist() == pytest.approx(summary["validation"]["cross_entropy"])
    assert table["l2_norm_mean"][:4].tolist() == pytest.approx(summary["validation"]["l2_norm"]["mean"])


def test_what_is_there_is_kept(copy, cache, counted):
    measure_run(copy, cache)
    assert counted == ["first", "second"]
    measure_run(copy, cache)
    assert counted == ["first", "second"]
    (copy / "measurements" / "first.csv").unlink()
    measure_run(copy, cache)
    assert counted == ["first", "second", "first"]
    assert read_table(copy, "second")["value"].tolist() == [2]
    record = json.loads((copy / "measurements" / "measurements.json").read_text())
    assert len(record["earlier_environments"]) == 2  # of the fixture's call, and of the first one here


def test_tables_made_together_are_all_made_again_where_one_is_missing(copy, cache, monkeypatch):
    made = []

    def both(context):
        made.append("both")
        return {name: pd.DataFrame({"value": [len(made)]}) for name in ("first", "second")}

    monkeypatch.setattr(suite, "SUITE", (Measure(tables=("first", "second"), measure=both),))
    measure_run(copy, cache)
    (copy / "measurements" / "second.csv").unlink()
    measure_run(copy, cache)
    assert [read_table(copy, name)["value"].tolist() for name in ("first", "second")] == [[2], [2]]


def test_a_repeated_call_reads_no_model(measured, cache, monkeypatch):
    monkeypatch.setattr(suite, "open_run", lambda *arguments: pytest.fail("nothing was missing"))
    assert measure_run(measured, cache) == measured / "measurements"


@pytest.mark.parametrize(("key", "value"), [("version", 0), ("checkpoint", "of another training")])
def test_tables_of_another_version_or_checkpoint_are_made_again(key, value, copy, cache, counted):
    measure_run(copy, cache)
    path = copy / "measurements" / "measurements.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    measure_run(copy, cache)
    assert counted == ["first", "second"] * 2
    path.write_text("{")
    measure_run(copy, cache)
    assert counted == ["first", "second"] * 3


def test_an_interrupted_call_is_gone_on_with(copy, cache, counted, monkeypatch):
    first, second = suite.SUITE

    def interrupted(context):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "SUITE", (first, suite.Measure(tables=("second",), measure=interrupted)))
    with pytest.raises(KeyboardInterrupt):
        measure_run(copy, cache)
    monkeypatch.setattr(suite, "SUITE", (first, second))
    measure_run(copy, cache)
    assert counted == ["first", "second"]


def test_a_question_that_answers_another_one_is_found(copy, cache, monkeypatch):
    wrong = suite.Measure(tables=("promised",), measure=lambda context: {"other": pd.DataFrame()})
    monkeypatch.setattr(suite, "SUITE", (wrong,))
    with pytest.raises(ValueError, match="promised"):
        measure_run(copy, cache)


def test_the_pass_is_run_once(measured, passes):
    assert passes == [measured]


def edit_config(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values["config"])
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder), "is this the folder of a run"),
        (lambda folder: (folder / "config.json").write_text("{]"), "cannot read"),
        (lambda folder: (folder / "config.json").write_text('{"config": {}}'), "is of another version"),
        (lambda folder: (folder / "checkpoint.safetensors").unlink(), "is not finished"),
        (lambda folder: (folder / "checkpoint.safetensors").write_bytes(b"no"), "cannot read the checkpoint"),
        (lambda folder: flip_last_byte(folder / "checkpoint.safetensors"), "is damaged"),
        (lambda folder: edit_checkpoint(folder, step=1), "is not finished (step 1 of 2)"),
        (lambda folder: edit_checkpoint(folder, config={}), "the checkpoint of"),
        (lambda folder: edit_config(folder, lambda c: c.update(seed=1)), "another configuration"),
        (lambda folder: edit_config(folder, lambda c: c["model"].update(num_layers=2)), "is of another version"),
        (lambda folder: edit_run(folder, lambda c: c.update(corpus_key="0")), "was trained on other tokens"),
        (lambda folder: edit_run(folder, lambda c: c["corpus"].update(data="/no/such")), "without its corpus"),
    ],
)
def test_a_folder_that_cannot_be_measured_is_named_in_one_sentence(damage, sentence, trained, cache, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "some-run")
    damage(folder)
    with pytest.raises(RunError) as error:
        measure_run(folder, cache)
    assert sentence in str(error.value) and "some-run" in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "measurements").exists()


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(bytes(content))


def edit_run(folder, change):
    edit_config(folder, change)
    edit_checkpoint(folder, config=json.loads((folder / "config.json").read_text())["config"])


def edit_checkpoint(folder, **changes):
    path = folder / "checkpoint.safetensors"
    checkpoints.save(replace(checkpoints.load(path), **changes), path)


def test_a_model_without_finite_losses_is_named(trained, cache, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "some-run")
    path = folder / "checkpoint.safetensors"
    saved = checkpoints.load(path)
    saved.tensors["model.token_embedding.weight"].fill_(torch.nan)
    checkpoints.save(saved, path)
    with pytest.raises(RunError, match=r"some-run gives NaN or infinite losses"):
        measure_run(folder, cache)


def test_a_table_that_cannot_be_made_does_not_keep_the_others_back(trained, cache, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "some-run")

    def fails(context):
        raise ValueError("no such state\nat all")

    questions = [Measure(tables=("deferred", "coefficient_law"), measure=fails), *questions_of("depth")]
    with pytest.raises(
        PartlyMeasured, match=r"was measured but for deferred \(no such state\); coefficient_law"
    ) as error:
        measure_run(folder, cache, questions=questions)
    assert error.value.reasons == {"deferred": "no such state", "coefficient_law": "no such state"}
    assert not read_table(folder, "depth").empty
    again = pickle.loads(pickle.dumps(error.value))  # as a process of its own hands it over
    assert (str(again), again.reasons) == (str(error.value), error.value.reasons)


def test_a_folder_in_use_is_refused(trained, cache, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "some-run")
    with exclusive(folder), pytest.raises(RunError, match="another process is working in .*some-run"):
        measure_run(folder, cache)


def test_a_table_that_is_missing_is_named(trained):
    with pytest.raises(RunError, match=r"loops\.csv"):
        read_table(trained, "loops")
