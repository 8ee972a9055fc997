"""What a run folder offers to whoever reads it without knowing us: its model, and validation tokens to try it on."""

import json
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


def test_a_description_of_the_environment_that_is_no_list_is_named(tmp_path):
    (tmp_path / "environment.json").write_text("5")
    with pytest.raises(RunError, match="another version"):
        runs.read_sessions(tmp_path)
