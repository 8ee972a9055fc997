"""Measuring runs in processes of their own: while others train on a GPU, or many of them on the cores of a CPU.

Measuring launches many small kernels and leaves a GPU mostly idle; one after the other, it would take longer than the
training of a short run. On a CPU it is made of products too small for many threads.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.corpus import TokenCorpus, open_prepared
from experiments.device import make_arithmetic_repeatable
from experiments.errors import RunError, first_line
from experiments.measure import suite
from experiments.measure.suite import Measure, measure_run

AT_LAST = frozenset({"deferred", "depth", "precision"})
"""Measured when all training has ended: what takes longest, and `depth`, which is a timing."""


@contextmanager
def measuring_beside(
    cache: Path, corpus: TokenCorpus, device: torch.device, deadline: float, processes: int = 1
) -> Iterator[Callable[[Path], None]]:
    """Processes that measure the folders of finished runs, handed over by the yielded function, which returns at once.

    What they had to leave when time was out is measured by the next call on the same folders. A run that cannot be
    measured is named, and the others go on.

    Args:
        cache: folder of prepared corpora.
        corpus: of all the runs.
        device: where to measure.
        deadline: reading of `time.monotonic` at which the processes are ended.
        processes: how many. More than one disturb each other's timings.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
    folders: SimpleQueue[Path | None] = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // (processes + 1))
    # The corpus's folder and not its tokens, which the start of a process would wait to be read.
    arguments = (folders, suite.SUITE, cache, corpus.folder, device, threads)
    workers = [context.Process(target=_measure_all, args=arguments, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield folders.put
        for _ in workers:
            folders.put(None)
        for worker in workers:
            worker.join(timeout=max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def measure_side_by_side(folders: Sequence[Path], cache: Path, processes: int) -> None:
    """Measure finished runs on the CPU, in processes of one thread each; a progress bar says how far it is.

    What cannot be measured is left as it is: `measure_run` on the folder says why.

    Args:
        folders: of the runs.
        cache: folder of prepared corpora.
        processes: how many at a time.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare_process) as pool:
        futures = [pool.submit(measure_run, folder, cache) for folder in folders]
        bar = tqdm(total=len(futures), desc="measuring", unit="run", disable=not sys.stderr.isatty())
        try:
            for _ in as_completed(futures):
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            bar.close()


def _prepare_process() -> None:
    torch.set_num_threads(1)
    make_arithmetic_repeatable(torch.device("cpu"))
    if sys.stderr.isatty():
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the bar is the parent's; this one lives as long as the process


def _measure_all(
    folders: "SimpleQueue[Path | None]",
    questions: Sequence[Measure],
    cache: Path,
    prepared: Path,
    device: torch.device,
    threads: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains decides when this one ends,
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # and it ends as any other: no half-written file stays
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    make_arithmetic_repeatable(device)
    corpus = open_prepared(prepared)
    at_last = [question for question in questions if not AT_LAST.isdisjoint(question.tables)]
    at_once = [question for question in questions if question not in at_last]
    handed = []
    while (folder := folders.get()) is not None:
        _measure(folder, at_once, cache, corpus, device)
        handed.append(folder)
    for folder in handed:
        _measure(folder, at_last, cache, corpus, device)


def _end_with_parent() -> None:
    """Nobody ends this process if the one that trains is killed outright."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _measure(
    folder: Path, questions: Sequence[Measure], cache: Path, corpus: TokenCorpus, device: torch.device
) -> None:
    try:
        measure_run(folder, cache, device=device, corpus=corpus, questions=questions)
    except RunError as error:
        print(f"{folder.name} failed: {error}", flush=True)
    except Exception as error:  # whatever it is, the other runs are measured
        print(f"{folder.name} failed: {type(error).__name__}: {first_line(error)}", flush=True)
