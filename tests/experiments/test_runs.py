"""What a run folder offers to whoever reads it without knowing us: its model, and validation tokens to try it on."""

import copy
import functools
import json
import operator
from dataclasses import replace

import pytest
import torch

from experiments import runs
from experiments.errors import RunError
from experiments.training.metrics import read_metrics
from experiments.training.trainer import CHECKPOINT, train


@pytest.fixture
def folder(tmp_path, make_config, monkeypatch):
    monkeypatch.setattr(runs, "default_cache", lambda: tmp_path / "cache")
    runs.write_config(tmp_path, make_config())
    return tmp_path


def test_a_run_folder_names_the_functions_that_read_it(folder):
    written = json.loads((folder / runs.CONFIG).read_text(encoding="utf-8"))
    for name in ("factory", "batch"):
        module, function = written[name].split(":")
        assert module == "experiments.runs" and callable(getattr(runs, function))


def test_the_batch_is_the_start_of_the_validation_part(folder, make_config, synthetic):
    tokens = runs.load_batch(folder)
    context = make_config().model.context
    assert tokens.shape == (runs.SEQUENCES, context) and tokens.dtype == torch.int64
    assert tokens.flatten()[:50].tolist() == synthetic.validation[:50].tolist()


def test_a_corpus_that_has_changed_is_refused(folder, make_config):
    runs.write_config(folder, replace(make_config(), corpus_key="another"))
    with pytest.raises(RunError, match="has changed on this machine"):
        runs.load_batch(folder)


def test_a_run_that_was_stopped_is_no_trained_model(make_config, synthetic, execution, tmp_path):
    config = make_config(steps=4)
    train(config, synthetic.train, tmp_path, execution)
    runs.write_config(tmp_path, replace(config, training=replace(config.training, steps=8)))
    with pytest.raises(RunError, match="is not finished .step 4 of 8."):
        runs.load_model(tmp_path)
    runs.write_config(tmp_path, replace(config, seed=1))
    with pytest.raises(RunError, match="made by another configuration"):
        runs.load_model(tmp_path)
    runs.write_config(tmp_path, config)
    assert not runs.load_model(tmp_path).training
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(RunError, match="the run is not finished"):
        runs.load_model(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\n", b"{\n", b"{}\n", b'{"step": "1"}\n', b"3\n"])
def test_a_damaged_training_curve_is_named(content, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(RunError, match="metrics.jsonl is damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_summary_nested_beyond_reading_is_named(tmp_path):
    (tmp_path / runs.SUMMARY).write_text("[" * 100_000)
    with pytest.raises(RunError, match="cannot read .* is this the folder of a run"):
        runs.read_summary(tmp_path)


def test_a_description_of_the_environment_that_is_no_list_is_named(tmp_path):
    (tmp_path / "environment.json").write_text("5")
    with pytest.raises(RunError, match="another version"):
        runs.read_sessions(tmp_path)


@pytest.fixture
def summary(make_config):
    """With nothing in it but what is asked for."""
    return copy.deepcopy({**runs.SUMMARY_KEYS, "config": make_config().to_dict()})


def places(keys, above=()):
    for key, inner in keys.items():
        yield (*above, key)
        yield from places(inner, (*above, key))


def test_a_summary_that_has_what_is_read_of_it_is_read(summary, tmp_path):
    for whole in (summary, summary | {"counting": {**runs.COUNTING_KEYS}}):
        (tmp_path / runs.SUMMARY).write_text(json.dumps(whole))
        assert runs.read_summary(tmp_path) == whole


@pytest.mark.parametrize(
    "place", [*places(runs.SUMMARY_KEYS), ("config", "seed"), ("counting", "unigram"), ("counting", "bigram")]
)
def test_a_summary_that_lacks_anything_that_is_read_of_it_is_named(place, summary, tmp_path):
    summary["counting"] = {**runs.COUNTING_KEYS}
    *above, key = place
    del functools.reduce(operator.getitem, above, summary)[key]
    (tmp_path / runs.SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(RunError, match="another version; delete it"):
        runs.read_summary(tmp_path)


@pytest.mark.parametrize("place", ["training", "config", "counting"])
def test_a_summary_with_a_number_for_a_table_is_named(place, summary, tmp_path):
    for damaged in (3, summary | {place: 3}):
        (tmp_path / runs.SUMMARY).write_text(json.dumps(damaged))
        with pytest.raises(RunError, match="another version; delete it"):
            runs.read_summary(tmp_path)
