"""What holds for every test: examples, seeds, threads; and a command inside the process.

Of the hypothesis profiles, `ci` draws the same examples every time, `long` draws ten thousand new ones.
"""

import gc
import os
import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import typechecking
from hypothesis import HealthCheck, settings

settings.register_profile("ci", derandomize=True, database=None, deadline=None, max_examples=50)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=10_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("ci")
typechecking.install()

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread a worker, in the processes that tests start too: threads that wait for each other spin, and two busy
    # processes of two threads each on two cores are many times slower.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch  # in workers only: the process that hands out the tests would import it for nothing, before them

    torch.set_num_threads(1)


def pytest_collection() -> None:
    """What is imported now stays: the garbage collector need not look through it again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    typechecking.start_again()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Outside wider fixtures, which seed themselves, a test draws the same, whichever tests came before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.random.default_generator.manual_seed(0)  # manual_seed keeps a formatted stack for a GPU that is not there


@pytest.fixture(scope="session")
def inside(tmp_path_factory) -> Callable[..., SimpleNamespace]:
    """A command in this process: for what does not hang on a process of its own."""
    from commands import run_inside

    fonts = tmp_path_factory.mktemp("matplotlib")
    return lambda *arguments, main="experiments.command": run_inside(main, arguments, fonts)
