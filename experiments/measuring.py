"""Measuring runs in a process of its own, while others train.

Measuring launches many small kernels and leaves a GPU mostly idle, so it costs training little; one after the other,
it would take as long as the training of a short run.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from experiments.corpus import TokenCorpus
from experiments.device import make_arithmetic_repeatable
from experiments.errors import sentence
from experiments.measure.suite import SUITE, Measure, measure_run

AT_REST = frozenset({"depth", "precision"})
"""Measured when all training has ended: the first is a timing, the second takes by far the longest."""

Hand = Callable[[Path], None]
"""Hands a finished run's folder over to be measured, and returns at once."""


@contextmanager
def measuring_beside(cache: Path, corpus: TokenCorpus, device: torch.device, deadline: float) -> Iterator[Hand]:
    """A process that measures the folders it is handed, in order; left when all are measured or time is out.

    What it had to leave is measured by the next call on the same folders. A run that cannot be measured is named, and
    the others go on.

    Args:
        cache: folder of prepared corpora.
        corpus: of all the runs.
        device: where to measure.
        deadline: reading of `time.monotonic` at which the process is ended.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
    folders: SimpleQueue[Path | None] = context.SimpleQueue()
    process = context.Process(target=_measure_all, args=(folders, cache, corpus, device), daemon=True)
    process.start()
    try:
        yield folders.put
        folders.put(None)
        process.join(timeout=max(0.0, deadline - time.monotonic()))
    finally:
        process.terminate()
        process.join()


def _measure_all(folders: "SimpleQueue[Path | None]", cache: Path, corpus: TokenCorpus, device: torch.device) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains decides when this one ends
    make_arithmetic_repeatable(device)
    first = [question for question in SUITE if AT_REST.isdisjoint(question.tables)]
    handed = []
    while (folder := folders.get()) is not None:
        _measure(folder, first, cache, corpus, device)
        handed.append(folder)
    for folder in handed:
        _measure(folder, None, cache, corpus, device)


def _measure(
    folder: Path, questions: Sequence[Measure] | None, cache: Path, corpus: TokenCorpus, device: torch.device
) -> None:
    try:
        measure_run(folder, cache, device=device, corpus=corpus, questions=questions)
    except Exception as error:  # whatever it is, the other runs are measured
        print(f"{folder.name} failed: {sentence(error)}", flush=True)
