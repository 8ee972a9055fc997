"""Hypothesis profiles: `ci` draws the same examples every time, `long` draws ten thousand new ones. And commands."""

import gc
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, database=None, deadline=None, max_examples=50)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=10_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("ci")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread a worker, in the processes that tests start too: threads that wait for each other spin, and two busy
    # processes of two threads each on two cores are many times slower.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch  # in workers only: the process that hands out the tests would import it for nothing, before them

    torch.set_num_threads(1)


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look through it again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same, whichever tests came before it."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    np.random.seed(0)


@contextmanager
def _own_arithmetic() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def own_arithmetic() -> Callable[[], AbstractContextManager[None]]:
    """One thread; and what a command sets for its whole process does not outlive the block."""
    return _own_arithmetic


@pytest.fixture(scope="session")
def inside(tmp_path_factory) -> Callable[..., SimpleNamespace]:
    """A command in this process, which has torch imported already: for what does not hang on a process of its own.

    Its arguments, and the module whose `main` it is, to its status and what it printed.
    """
    from experiments.errors import exit_status

    fonts = tmp_path_factory.mktemp("matplotlib")

    def run(*arguments: object, main: str = "experiments.command") -> SimpleNamespace:
        out, err = io.StringIO(), io.StringIO()
        with _own_arithmetic(), pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setenv("MPLCONFIGDIR", str(fonts))
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(sys, "argv", [main, *map(str, arguments)])
            try:
                status = exit_status(importlib.import_module(main).main)
            except SystemExit as stop:
                status = stop.code
        return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())

    return run
