"""From the string given as `--data` to documents.

| `--data` | text |
|---|---|
| `stdlib` | source of the running Python's standard library, about 12 MB, no download |
| `python` | the same, then the source of every installed package: 100 to 200 MB, read whole into memory |
| `hf:NAME[:CONFIG]` | the `text` column of a Hugging Face dataset; NAME may be a local folder |
| anything else | a text file, or a folder of text files |

A folder that is really called `stdlib` is reached as `./stdlib`. `synthetic[:SEED]` is not text and lives in
`synthetic.py`. Test folders are left out of the Python sources: they hold generated tables and files with
deliberately broken encodings. So are the files into which an installation writes its own paths, because they
differ between machines with the same Python.
"""

import os.path
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

from experiments.corpus.documents import Document, Source, read_document, read_tree
from experiments.corpus.hub import read_hub
from experiments.errors import UsageError

_NOT_SOURCE = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})
_HOLDS_MACHINE_PATHS = ("_sysconfigdata", "__editable__")  # file names begin so
_BUILD_FOLDER = "config-"  # config-3.11-x86_64-linux-gnu/python-config.py names the installation's prefix


def read_source(data: str) -> Source:
    """Read a text corpus.

    Args:
        data: `stdlib`, `python`, `hf:NAME[:CONFIG]`, or the path of a file or folder.

    Raises:
        UsageError: there is no such corpus, or it holds no readable text.
    """
    if data == "stdlib":
        return _stdlib()
    if data == "python":
        return _python()
    if data.startswith("hf:"):
        return read_hub(data)
    return _path(data)


def _stdlib() -> Source:
    folder = stdlib_folder()
    documents, skipped = _read_python(folder, "") if folder.is_dir() else ((), 0)
    if not documents:
        raise UsageError(
            f"this Python has no .py source in {str(folder)!r} (a zipped or stripped installation); "
            "give text of your own with --data PATH."
        )
    return Source(description=_stdlib_description(), documents=documents, skipped_files=skipped)


def _python() -> Source:
    stdlib = _stdlib()
    documents = {f"stdlib/{document.name}": document for document in stdlib.documents}
    skipped = stdlib.skipped_files
    for folder in package_folders():
        found, not_text = _read_python(folder, "packages/")
        skipped += not_text
        for document in found:  # the first folder on the path wins, as it does for import
            documents.setdefault(document.name, document)
    renamed = tuple(replace(document, name=name) for name, document in documents.items())
    description = f"{stdlib.description}, then the source of the installed packages"
    return Source(description=description, documents=renamed, skipped_files=skipped)


def _path(data: str) -> Source:
    path = Path(data).expanduser()
    if not data or not os.path.exists(path):  # Path.exists raises on names that no file system allows
        raise UsageError(
            f"there is no corpus {data!r}; --data takes stdlib, python, synthetic[:SEED], hf:NAME[:CONFIG], "
            "or the path of a text file or a folder of text files."
        )
    return _folder(path, data) if path.is_dir() else _file(path, data)


def _file(path: Path, data: str) -> Source:
    document = read_document(path, path.name)
    if document is None:
        raise UsageError(f"{data!r} is not a regular file of UTF-8 text; save or convert it as UTF-8 text first.")
    return Source(description=f"file {path.name}", documents=(document,))


def _folder(path: Path, data: str) -> Source:
    documents, skipped = read_tree(path, keep_folder=_is_visible, keep_file=_is_visible)
    if not documents:
        raise UsageError(
            f"the folder {data!r} holds no UTF-8 text file ({skipped} other files were skipped); "
            "point --data at a text file or a folder of text files."
        )
    return Source(description=f"folder {path.name}", documents=documents, skipped_files=skipped)


def stdlib_folder() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def package_folders() -> tuple[Path, ...]:
    """The distinct folders from which the running Python imports installed packages, in path order."""
    on_path = (Path(entry) for entry in sys.path)
    installed = [path for path in on_path if path.name in ("site-packages", "dist-packages")]
    standard = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    return tuple(dict.fromkeys(path.resolve() for path in installed + standard if path.is_dir()))


def _read_python(folder: Path, prefix: str) -> tuple[tuple[Document, ...], int]:
    return read_tree(folder, keep_folder=_is_source_folder, keep_file=_is_source_file, prefix=prefix)


def _is_source_folder(name: str) -> bool:
    return name not in _NOT_SOURCE and not name.startswith(_BUILD_FOLDER) and _is_visible(name)


def _is_source_file(name: str) -> bool:
    return name.endswith(".py") and not name.startswith(_HOLDS_MACHINE_PATHS) and _is_visible(name)


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _stdlib_description() -> str:
    major, minor, micro = sys.version_info[:3]
    return f"source of the Python {major}.{minor}.{micro} standard library, without tests"
