"""What a run folder offers to whoever reads it without knowing us: its model, and validation tokens to try it on."""

import dataclasses
import json

import pytest
import torch

from experiments import runs
from experiments.errors import RunError


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
    runs.write_config(folder, dataclasses.replace(make_config(), corpus_key="another"))
    with pytest.raises(RunError, match="has changed on this machine"):
        runs.load_batch(folder)
