"""Reading a corpus from the machine: which files, in which order, and what is said when there are none."""

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import pytest

from experiments.corpus import sources
from experiments.corpus.documents import Source
from experiments.corpus.sources import package_folders, read_source
from experiments.errors import UsageError


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def names(source: Source) -> list[str]:
    return [document.name for document in source.documents]


@pytest.fixture
def stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = write(
        tmp_path / "stdlib",
        {
            "b.py": "b\r\n",
            "a.py": "a = '\u00e9'\n",
            "B.py": "",
            "json/decoder.py": "j\n",
            "json-like.py": "k\n",
            "latin.py": "# \u00e9".encode("latin-1"),
            "notes.txt": "x",
            "test/a.py": "x",
            "json/tests/a.py": "x",
            "idlelib/idle_test/a.py": "x",
            "site-packages/p/a.py": "x",
            "dist-packages/p/a.py": "x",
            "__pycache__/a.py": "x",
            "config-3.11-x86_64-linux-gnu/python-config.py": "x",
            "_sysconfigdata__linux_x86_64-linux-gnu.py": "x",
        },
    )
    monkeypatch.setattr(sources, "stdlib_folder", lambda: root)
    return root


def test_stdlib_is_its_python_source_sorted_without_tests_and_machine_paths(stdlib: Path) -> None:
    source = read_source("stdlib")
    assert names(source) == ["B.py", "a.py", "b.py", "json-like.py", "json/decoder.py"]
    assert [document.text for document in source.documents] == ["", "a = '\u00e9'\n", "b\r\n", "k\n", "j\n"]
    assert source.skipped_files == 1  # latin.py
    assert source.validation is None


def test_digests_are_those_of_the_raw_bytes(stdlib: Path) -> None:
    for document in read_source("stdlib").documents:
        raw = (stdlib / document.name).read_bytes()
        assert document.sha256 == hashlib.sha256(raw).hexdigest()


def test_a_python_without_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "stdlib_folder", lambda: tmp_path / "python311.zip")
    with pytest.raises(UsageError, match="no .py source .*give text of your own with --data PATH"):
        read_source("stdlib")
    write(tmp_path / "python311.zip", {"os.pyc": b"\0"})
    with pytest.raises(UsageError, match="no .py source .*zipped or stripped"):
        read_source("python")


def test_the_real_standard_library_is_large_enough_and_names_no_folder_of_this_machine() -> None:
    source = read_source("stdlib")
    assert sum(len(document.text) for document in source.documents) > 1_000_000
    prefix = str(Path(sysconfig.get_path("stdlib")).parent)
    assert not [document.name for document in source.documents if prefix in document.text]


def test_python_is_the_standard_library_and_then_each_package_once(
    stdlib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "first", {"p/a.py": "first", "p/tests/b.py": "x", "__editable___q_finder.py": "x"})
    second = write(tmp_path / "second", {"p/a.py": "second", "c.py": "c", "bad.py": b"\xff", "lib.so": b"\0"})
    monkeypatch.setattr(sources, "package_folders", lambda: (first, second))
    source = read_source("python")
    assert names(source)[:5] == [f"stdlib/{name}" for name in names(read_source("stdlib"))]
    texts = {document.name: document.text for document in source.documents[5:]}
    assert texts == {"packages/p/a.py": "first", "packages/c.py": "c"}
    assert source.skipped_files == 2  # latin.py, bad.py


def test_package_folders_are_distinct_and_hold_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = tmp_path / "extra" / "site-packages"
    extra.mkdir(parents=True)
    (tmp_path / "link").symlink_to(extra.parent)
    added = [str(extra), str(tmp_path / "link" / "site-packages"), str(tmp_path / "gone" / "site-packages")]
    monkeypatch.setattr(sys, "path", [*sys.path, *added])
    folders = package_folders()
    assert [folder.samefile(extra) for folder in folders].count(True) == 1  # and every folder exists
    assert any((folder / "hypothesis" / "__init__.py").exists() for folder in folders)


def test_a_folder_gives_its_text_files_whatever_their_suffix(tmp_path: Path) -> None:
    write(
        tmp_path / "folder",
        {
            "z.txt": "z",
            "a/b.md": "b",
            "a/noext": "n",
            "image.png": b"\x89PNG\0",
            "late.bin": b"x" * 10_000 + b"\0",
            "latin.txt": b"\xe9",
            ".git/config": "hidden",
            ".hidden": "hidden",
        },
    )
    os.mkfifo(tmp_path / "folder" / "pipe")  # reading it would block for ever
    (tmp_path / "folder" / "broken").symlink_to(tmp_path / "nowhere")
    source = read_source(str(tmp_path / "folder"))
    assert names(source) == ["a/b.md", "a/noext", "z.txt"]
    assert source.skipped_files == 5
    assert source.description == "folder folder"


def test_a_huge_binary_file_is_skipped_without_reading_it_whole(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "text", "disk.img": b"\0"})
    os.truncate(tmp_path / "disk.img", 2**40)  # sparse: takes no space, and cannot be read into memory
    assert (names(read_source(str(tmp_path))), read_source(str(tmp_path)).skipped_files) == (["a.txt"], 1)


def test_a_file_is_one_document(tmp_path: Path) -> None:
    write(tmp_path, {"book.txt": "text"})
    source = read_source(str(tmp_path / "book.txt"))
    assert (names(source), source.documents[0].text) == (["book.txt"], "text")


@pytest.mark.parametrize("data", ["nowhere.txt", "", "stdlibs", "x" * 5000, "a\0b"])
def test_what_does_not_exist_is_refused_with_the_choices(data: str) -> None:
    with pytest.raises(UsageError, match=r"there is no corpus .*--data takes stdlib, python, synthetic\[:SEED\]"):
        read_source(data)


@pytest.mark.parametrize("content", [b"a\0b", b"caf\xe9", "text".encode("utf-16")])
def test_a_binary_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"file": content})
    with pytest.raises(UsageError, match="file' is not a regular file of UTF-8 text; save or convert"):
        read_source(str(tmp_path / "file"))


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.bin": b"\0", "b.bin": b"\0"})
    with pytest.raises(UsageError, match=r"holds no UTF-8 text file \(2 other files were skipped\)"):
        read_source(str(tmp_path))


def test_a_file_that_cannot_be_read_is_refused_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"secret.txt": "x"})

    def denied(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UsageError, match=r"cannot read '.*secret.txt' \(Permission denied\); make it readable"):
        read_source(str(tmp_path))


def test_a_folder_that_cannot_be_listed_is_refused_and_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.txt": "x", "inner/b.txt": "x"})
    scandir = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UsageError, match=r"cannot read '.*inner' \(Permission denied\)"):
        read_source(str(tmp_path))
