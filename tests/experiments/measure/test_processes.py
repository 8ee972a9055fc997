"""The processes beside training measure what they are handed, name what they cannot, and end with their time."""

import multiprocessing
import time

import pytest
import torch

from experiments.corpus import CorpusConfig, prepare
from experiments.errors import RunError
from experiments.measure import processes as measuring
from experiments.measure.processes import AT_LAST, measure_side_by_side, measuring_beside
from experiments.measure.suite import SUITE, measure_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepare(CorpusConfig(data="synthetic", vocab_size=256), tmp_path_factory.mktemp("cache"))


def test_every_run_is_handled_by_one_process_and_one_that_cannot_be_measured_is_named(corpus, tmp_path, capfd):
    with measuring_beside(tmp_path, corpus, CPU, time.monotonic() + 600.0, processes=2) as measure:
        for name in ("first", "second"):
            measure(tmp_path / name)
    printed = capfd.readouterr().out
    assert printed.count("first failed: ") == printed.count("second failed: ") == 2  # at once, and at last
    assert not multiprocessing.active_children()


def test_they_end_at_the_deadline(corpus, tmp_path, capfd):
    with measuring_beside(tmp_path, corpus, CPU, time.monotonic()) as measure:
        measure(tmp_path / "nothing")
    assert not multiprocessing.active_children()
    assert "nothing" not in capfd.readouterr().out  # it had not even started


def test_they_end_with_training_that_fails(corpus, tmp_path):
    with pytest.raises(KeyboardInterrupt), measuring_beside(tmp_path, corpus, CPU, time.monotonic() + 600.0):
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()


def test_what_takes_longest_is_measured_when_all_training_has_ended(corpus, tmp_path, monkeypatch):
    """In this process, to see the order."""
    asked = []

    def record(folder, questions, *_):
        asked.append((folder.name, {name for question in questions for name in question.tables}))

    folders = multiprocessing.get_context("spawn").SimpleQueue()
    for item in (tmp_path / "a-0", tmp_path / "b-0", None):
        folders.put(item)
    monkeypatch.setattr(measuring, "_measure", record)
    monkeypatch.setattr(measuring.signal, "signal", lambda *_: None)
    monkeypatch.setattr(measuring, "_end_with_parent", lambda: None)
    measuring._measure_all(folders, SUITE, tmp_path, corpus.folder, CPU, torch.get_num_threads())
    assert [name for name, _ in asked] == ["a-0", "b-0", "a-0", "b-0"]
    first, last = asked[0][1], asked[2][1]
    assert AT_LAST <= last and not AT_LAST & first
    assert first | last == {name for question in SUITE for name in question.tables}


def test_side_by_side_leaves_what_cannot_be_measured(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    measure_side_by_side(folders, tmp_path, processes=1)
    assert not multiprocessing.active_children()
    for folder in folders:  # and says why when it is asked
        with pytest.raises(RunError, match="config.json"):
            measure_run(folder, tmp_path)
