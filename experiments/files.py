"""Writing files so that a reader never sees half of one: write to a temporary name, then rename."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any exception it is removed."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        umask = os.umask(0)
        os.umask(umask)
        try:
            yield temporary
            os.chmod(temporary, 0o666 & ~umask)  # a temporary file is private, the finished one like any other
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def whole_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder that have a suffix, in order; not those that a process killed outright has left."""
    return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def _prefix(path: Path) -> str:
    return f".{path.name}."


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block says that it is of `path`, where it says nothing (as when a disk is full) or names the
    temporary file, which is gone.

    Raises:
        OSError: that one.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{error}: '{path}'") from error
        if error.filename is None or Path(os.fsdecode(error.filename)).name.startswith(_prefix(path)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON.

    Raises:
        ValueError: a number is NaN or infinite, which would make the file unreadable elsewhere.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written; safetensors itself has one kind of error for everything.
    """
    from safetensors import SafetensorError  # here: torch takes seconds to import, and most files are text
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Hold a lock on an existing folder; yields False, without waiting, if another process holds it.

    The lock ends with the process, however it ends. Without `fcntl` (Windows) nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    else:
        yield True
    finally:
        os.close(handle)
