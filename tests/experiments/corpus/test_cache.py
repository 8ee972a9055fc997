"""A cached folder is whole or absent: interruption, a second writer, and damage of every kind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.corpus.cache import ensure_folder, is_intact
from experiments.errors import UsageError


def fill(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"abc" * 100)
    (folder / "b.bin").write_bytes(b"d")


def refuse(folder: Path) -> None:
    raise AssertionError("an intact folder must not be made again")


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    target = tmp_path / "new" / "cache" / "key"
    ensure_folder(target, fill)
    ensure_folder(target, refuse)
    assert contents(target) == ["a.bin", "b.bin", "checksums.json"]
    assert contents(target.parent) == ["key"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a.bin").unlink(),
        lambda folder: (folder / "a.bin").write_bytes(b"abc" * 99),
        lambda folder: (folder / "a.bin").write_bytes(b"abc" * 99 + b"abd"),
        lambda folder: (folder / "extra.bin").write_bytes(b""),
        lambda folder: (folder / "checksums.json").unlink(),
        lambda folder: (folder / "checksums.json").write_text("{"),
        lambda folder: (folder / "checksums.json").write_bytes(b"\xff"),
        lambda folder: (folder / "checksums.json").write_text("[]"),
        lambda folder: (folder / "a.bin").unlink() or (folder / "a.bin").mkdir(),
    ],
)
def test_damage_is_found_and_the_folder_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    target = tmp_path / "key"
    ensure_folder(target, fill)
    assert is_intact(target)
    damage(target)
    assert not is_intact(target)
    ensure_folder(target, fill)
    assert is_intact(target) and (target / "a.bin").read_bytes() == b"abc" * 100
    assert contents(tmp_path) == ["key"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(error):
        ensure_folder(tmp_path / "key", interrupted)
    assert contents(tmp_path) == []


def test_a_reader_sees_nothing_before_the_folder_is_whole(tmp_path: Path) -> None:
    def watched(folder: Path) -> None:
        fill(folder)
        assert not (tmp_path / "key").exists()

    ensure_folder(tmp_path / "key", watched)
    assert is_intact(tmp_path / "key")


def test_the_second_of_two_writers_keeps_what_the_first_has_made(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> None:
        ensure_folder(tmp_path / "key", fill)
        (folder / "a.bin").write_bytes(b"late")

    ensure_folder(tmp_path / "key", overtaken)
    assert (tmp_path / "key" / "a.bin").read_bytes() == b"abc" * 100
    assert contents(tmp_path) == ["key"]


def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write the corpus cache .*file.*choose another folder"):
        ensure_folder(tmp_path / "file" / "key", fill)
