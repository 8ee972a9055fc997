"""Text files as documents: what a corpus is made of before any tokeniser has seen it.

A document keeps the sha256 of the bytes it was read from, so that two runs can be compared file by file.
Bytes become characters by strict UTF-8 and nothing else: line endings and a byte order mark stay as they are.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from experiments.errors import UsageError

# A file whose beginning holds a NUL byte is binary: it is not read any further, however large it is.
_HEAD_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class Document:
    """A named text.

    `name` is relative to the corpus and uses `/`. `sha256` is the hexadecimal digest of the raw bytes of the
    file that the text came from; a document that was cut keeps the digest of its whole file.
    """

    name: str
    text: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything read from one place, in order.

    `validation` is None where the source has no held-out part of its own. `skipped_files` counts files that
    were found and are not UTF-8 text.
    """

    description: str
    documents: tuple[Document, ...]
    validation: tuple[Document, ...] | None = None
    skipped_files: int = 0


def document_from_text(name: str, text: str) -> Document:
    """A document that never was a file: its digest is that of the text in UTF-8."""
    return Document(name=name, text=text, sha256=hashlib.sha256(text.encode("utf-8")).hexdigest())


def read_document(path: Path, name: str) -> Document | None:
    """Read one file; None if it is not text (a NUL byte, not UTF-8, or not a regular file).

    Raises:
        UsageError: the file exists and cannot be read.
    """
    if not path.is_file():  # broken links, and pipes, which would block
        return None
    raw = _read_unless_binary(path)
    try:
        text = None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if raw is None or text is None:
        return None
    return Document(name=name, text=text, sha256=hashlib.sha256(raw).hexdigest())


def read_tree(
    folder: Path,
    *,
    keep_folder: Callable[[str], bool],
    keep_file: Callable[[str], bool],
    prefix: str = "",
) -> tuple[tuple[Document, ...], int]:
    """Read the text files below `folder`, sorted by relative path in code point order.

    Args:
        keep_folder: decides by a subfolder's own name whether to enter it.
        keep_file: decides by a file's own name whether to read it.
        prefix: put before every relative path to make the documents' names.

    Returns:
        The documents, and how many of the chosen files are not text.

    Raises:
        UsageError: a folder cannot be listed or a file cannot be read.
    """
    paths = sorted(_walk(folder, keep_folder, keep_file))
    found = [read_document(folder / relative, prefix + relative) for relative in paths]
    documents = tuple(document for document in found if document is not None)
    return documents, len(found) - len(documents)


def _walk(folder: Path, keep_folder: Callable[[str], bool], keep_file: Callable[[str], bool]) -> Iterator[str]:
    # Links to folders are not followed (they may form a cycle). By default os.walk hides errors.
    for here, folders, files in os.walk(folder, onerror=_cannot_read):
        folders[:] = [name for name in folders if keep_folder(name)]
        for name in files:
            if keep_file(name):
                yield (Path(here) / name).relative_to(folder).as_posix()


def _read_unless_binary(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            raw = None if b"\0" in head else head + file.read()
    except OSError as error:
        _cannot_read(error)
    return None if raw is None or b"\0" in raw else raw


def _cannot_read(error: OSError) -> NoReturn:
    raise UsageError(
        f"cannot read {str(error.filename)!r} ({error.strerror}); make it readable, "
        "or choose another corpus with --data."
    ) from error
