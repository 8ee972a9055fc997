"""Folders that are whole or absent.

A folder is filled under a temporary name beside its final one and renamed in one step, so a reader never sees
a half-written one, whoever is interrupted and however many write the same folder at once. `checksums.json`
names every file with its sha256: what has been truncated, altered or removed since is found and made again.
Only a process that is killed outright leaves something behind, a hidden folder that nothing reads.
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import UsageError
from experiments.files import read_json, write_json

_CHECKSUMS = "checksums.json"


def ensure_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` unless it is there and intact.

    Args:
        fill: writes the files into the empty folder that it is given.

    Raises:
        UsageError: the place cannot be written to.
    """
    if is_intact(folder):
        return
    try:
        with _temporary_sibling(folder) as temporary:
            fill(temporary)
            write_json(temporary / _CHECKSUMS, _digests(temporary))
            _publish(temporary, folder)
    except OSError as error:
        raise UsageError(
            f"cannot write the corpus cache {str(folder.parent)!r} ({error.strerror or error}); "
            "free space there, or choose another folder."
        ) from error


def is_intact(folder: Path) -> bool:
    """Whether the folder holds exactly the bytes that were written; damage is False, not an error."""
    try:
        return read_json(folder / _CHECKSUMS) == _digests(folder)
    except (OSError, ValueError):
        return False


@contextmanager
def _temporary_sibling(folder: Path) -> Iterator[Path]:
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    if folder.exists() and not is_intact(folder):
        with _temporary_sibling(folder) as discarded:
            folder.rename(discarded / "damaged")
    try:
        temporary.rename(folder)
    except OSError:  # a folder that is not empty is in the way
        if not is_intact(folder):  # else another process has made the same folder first
            raise


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.iterdir() if path.name != _CHECKSUMS)
    return {path.name: _digest(path) for path in sorted(files)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
