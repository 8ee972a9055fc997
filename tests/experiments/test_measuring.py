"""The process beside training measures what it is handed, names what it cannot measure, and ends with its time."""

import time

import pytest
import torch

from experiments.corpus import CorpusConfig, prepare
from experiments.measuring import measuring_beside

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(cache):
    return prepare(CorpusConfig(data="synthetic", vocab_size=256), cache)


def test_a_run_that_cannot_be_measured_is_named(cache, corpus, tmp_path, capfd):
    with measuring_beside(cache, corpus, CPU, time.monotonic() + 600.0) as measure:
        measure(tmp_path / "nothing")
    assert "nothing failed: " in capfd.readouterr().out


def test_it_ends_at_its_deadline(cache, corpus, tmp_path, capfd):
    with measuring_beside(cache, corpus, CPU, time.monotonic()) as measure:
        measure(tmp_path / "nothing")
    assert "nothing" not in capfd.readouterr().out  # it had not even started


def test_it_ends_with_the_training_that_fails(cache, corpus, tmp_path):
    with pytest.raises(KeyboardInterrupt), measuring_beside(cache, corpus, CPU, time.monotonic() + 600.0):
        raise KeyboardInterrupt
