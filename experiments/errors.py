"""The two ways a command can end badly, and the one place where they become an exit status.

A message is one sentence: what was wrong, where, and what to do about it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NoReturn

OURS = ("experiments", "models", "theory", "loopsight", "benchmarks")
INSTALL = 'pip install -e ".[dev]"'


class UsageError(Exception):
    """The request itself was wrong (unknown variant, unreadable path): exit status 2."""


class RunError(Exception):
    """The request was fine and the run failed (NaN loss, corrupt checkpoint, interruption): exit status 1."""


class Interrupted(RunError):
    """The user, or the system, asked a run to stop; its state is saved."""


class OutOfTime(RunError):
    """The time a run was given is over; its state is saved."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_at_least(least: int, **options: int | None) -> None:
    """Check options of the command line, named with underscores; None is one that was not given.

    Raises:
        UsageError: naming the one that is less.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")


@contextmanager
def finite_numbers(path: Path) -> Iterator[None]:
    """What is written of a run must be strict JSON.

    Raises:
        RunError: a number is NaN or infinite.
    """
    try:
        yield
    except ValueError as error:
        raise RunError(
            f"a number for {path} is NaN or infinite: states of the model overflowed or vanished; try a lower "
            "--learning-rate, or an --embedding-multiplier nearer to 1."
        ) from error


def _out_of_memory(error: Exception) -> bool:
    """Also torch's errors, which cannot be named here: torch takes seconds to import."""
    of_gpu = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or of_gpu or "can't allocate memory" in str(error)


def exit_status(command: Callable[[], None], *, again: str = "the same command") -> int:
    """Run a command and return its exit status; expected failures print one sentence and no traceback.

    Args:
        again: what to run after an interrupt.
    """
    try:
        return _status_of(command, again)
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # said already, or less than what the command failed of
            _let_go_of_output()


def _status_of(command: Callable[[], None], again: str) -> int:
    try:
        _carry_out(command)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:
            raise
        print(f"error: the package {error.name} is missing; install it with: {INSTALL}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1  # nobody reads any more (`| head`): stop quietly
    except KeyboardInterrupt:
        print(f"error: interrupted; what was written is whole; run {again} again.", file=sys.stderr)
        return 1
    except UnicodeEncodeError as error:
        print(f"error: {error}; choose a path that is UTF-8, or set PYTHONUTF8=1.", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print(f"error: out of memory ({first_line(error)}); try smaller batches or a smaller model.", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}; check the path, its permissions and the free space.", file=sys.stderr)
        return 1
    return 0


def run_as_script(module: str) -> NoReturn:
    """Carry out a module's `main` and end with its exit status.

    Called at the top of a file that is run by its path and whose functions need torch all over, as a benchmark's do, it
    imports the file again, by name: of an import of torch, too, which takes seconds, an interrupt gets one sentence. A
    command whose `main` alone needs it imports it there.
    """
    sys.exit(exit_status(lambda: import_module(module).main()))


def _carry_out(command: Callable[[], None]) -> None:
    """And print the rest of what was printed, while an error of that still gets a sentence."""
    try:
        command()
    except SystemExit:  # after --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _let_go_of_output() -> None:
    """Keep the interpreter from printing at its end what cannot be printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
