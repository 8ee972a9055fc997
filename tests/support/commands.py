"""A command of the project in the process of the tests, which has torch imported already."""

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.errors import exit_status


def run_inside(main: str, arguments: tuple[object, ...], fonts: Path) -> SimpleNamespace:
    """The module whose `main` it is, and its arguments, to its status and what it printed; matplotlib's cache apart."""
    out, err = io.StringIO(), io.StringIO()
    with own_arithmetic(), pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("MPLCONFIGDIR", str(fonts))
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "argv", [main, *map(str, arguments)])
        try:
            status = exit_status(importlib.import_module(main).main)
        except SystemExit as stop:
            status = stop.code
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """One thread; and what a command sets for its whole process does not outlive the block."""
    threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(deterministic)
        torch.set_flush_denormal(False)  # torch cannot say what it was
