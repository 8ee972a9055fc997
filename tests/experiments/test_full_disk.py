"""A file that cannot be written whole is not there (what is appended to: not beyond it), is named in one sentence, and
is written when there is room.

The limit on the size of a file stands for a full disk: the system refuses the rest of a file, whoever writes it.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import evidence, figures
from experiments.files import atomic_path, write_json
from experiments.training.metrics import METRICS, MetricsLog, read_metrics
from experiments.training.trainer import CHECKPOINT, train

ROOT = Path(__file__).parents[2]
ARGUMENTS = (
    "--variant",
    "scale_visible",
    "--preset",
    "tiny",
    "--data",
    "synthetic",
    "--steps",
    4,
    "--device",
    "cpu",
    "--snapshots",
    0,
)


PRINTS = "import sys; from experiments.errors import exit_status; sys.exit(exit_status(lambda: print('x' * {})))"


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_training_that_found_the_disk_full_again_and_again_ends_like_any_other(
    make_config, synthetic, execution, tmp_path
):
    folder, keeping = tmp_path / "out", replace(execution, snapshots=1)
    (tmp_path / "whole").mkdir()
    whole = train(make_config(), synthetic.train, tmp_path / "whole", keeping)
    with no_file_above(10), pytest.raises(OSError, match=f"too large.*'{folder / 'tensorboard' / 'events'}"):
        train(make_config(), synthetic.train, folder, keeping)
    for size, unwritten in ((50_000, "snapshots/step-000000.safetensors"), (200_000, CHECKPOINT)):
        with no_file_above(size), pytest.raises(OSError, match=f"too large.*'{folder / unwritten}"):
            train(make_config(), synthetic.train, folder, keeping)
        assert not (folder / unwritten).exists() and not list(folder.rglob(".*"))
    model = train(make_config(), synthetic.train, folder, keeping)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    assert [record["step"] for record in read_metrics(folder / METRICS)] == [2, 4, 6, 8, 10, 12]


def test_a_run_whose_end_was_not_written_is_gone_on_with(tmp_path, inside, monkeypatch):
    arguments = (*ARGUMENTS, "--cache", tmp_path / "cache", "--out", tmp_path / "out", "--resume")
    folder = tmp_path / "out" / "scale_visible-0"
    draw_run = figures.draw_run

    def draw_on_a_full_disk(*of):
        with no_file_above(20_000):
            draw_run(*of)

    def fill_the_disk(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, usual[1]))

    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    for draw, unwritten in ((draw_on_a_full_disk, "figures/norm_by_loop.png"), (fill_the_disk, "summary.json")):
        monkeypatch.setattr(figures, "draw_run", draw)
        with no_file_above(usual[0]):
            done = inside(*arguments)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            f"error: [Errno 27] File too large: '{folder / unwritten}'; check the path, its permissions and the free "
            "space."
        )
        assert not (folder / unwritten).exists() and not list(folder.rglob(".*"))
    monkeypatch.setattr(figures, "draw_run", draw_run)
    assert inside(*arguments).returncode == 0
    assert (folder / "figures" / "norm_by_loop.png").exists() and (folder / "summary.json").exists()


def test_a_record_that_was_written_in_part_is_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write({"step": 1, "loss": 2.0})
    with no_file_above(100), pytest.raises(OSError, match=f"too large: '{tmp_path / METRICS}'"):
        log.write({"step": 2, "l2_norm": [3.0] * 40})
    assert (tmp_path / METRICS).stat().st_size == 100
    MetricsLog(tmp_path, 2)
    assert [record["step"] for record in read_metrics(tmp_path / METRICS)] == [1]


def test_an_error_is_of_the_file_that_was_to_be_written(tmp_path):
    path = tmp_path / "a.json"
    with no_file_above(10), pytest.raises(OSError, match=f"File too large: '{path}'") as failed:
        write_json(path, list(range(100)))
    assert failed.value.errno == 27
    with pytest.raises(OSError, match=f"^odd: '{path}'"), atomic_path(path):
        raise OSError("odd")
    with pytest.raises(FileNotFoundError, match=f"'{path}'"), atomic_path(path) as temporary:
        temporary.unlink()
    with pytest.raises(FileNotFoundError, match="'other'"), atomic_path(path):
        raise FileNotFoundError(2, "No such file or directory", "other")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=f"'{tmp_path / 'file'}'"), atomic_path(tmp_path / "file" / "a.json"):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("letters", [10, 5_000, 20_000])
@pytest.mark.parametrize("closed", [False, True])
def test_what_cannot_be_printed_gets_a_sentence_unless_nobody_reads(letters, closed):
    if closed:
        reading, out = os.pipe()
        os.close(reading)
    else:
        out = os.open("/dev/full", os.O_WRONLY)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", PRINTS.format(letters)]
    done = subprocess.run(command, cwd=ROOT, env=buffered, stdout=out, stderr=subprocess.PIPE, text=True)
    os.close(out)
    said = "error: [Errno 28] No space left on device; check the path, its permissions and the free space.\n"
    assert (done.returncode, done.stderr) == (1, "" if closed else said)


RAISES = """
import sys
from experiments.errors import RunError, UsageError, exit_status
def command():
    print("x")
    raise {}
sys.exit(exit_status(command))
"""


@pytest.mark.parametrize(
    ("error", "status"), [("RunError('bad')", 1), ("UsageError('bad')", 2), ("KeyboardInterrupt", 1)]
)
def test_what_a_command_failed_of_is_said_where_nothing_can_be_printed(error, status):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as out:
        command = [sys.executable, "-c", RAISES.format(error)]
        done = subprocess.run(command, cwd=ROOT, env=buffered, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == status and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_packed_runs_are_whole_where_there_was_no_room_for_new_ones(tmp_path):
    run, packed = tmp_path / "a-0", tmp_path / "packed"
    (run / "measurements").mkdir(parents=True)
    (run / "summary.json").write_text('{"run": "a-0"}')
    table = run / "measurements" / "clamp.csv"
    table.write_text("k\n1\n")
    evidence.pack([run], packed)
    before = (packed / "tables" / "clamp.csv").read_text()
    table.write_text("k\n" + "2\n" * 100)
    with no_file_above(100), pytest.raises(OSError, match="clamp.csv"):
        evidence.pack([run], packed)
    assert (packed / "tables" / "clamp.csv").read_text() == before
    with no_file_above(10), pytest.raises(OSError, match=f"too large: '{tmp_path / 'again' / 'a-0' / 'summary.json'}'"):
        evidence.unpack(packed, tmp_path / "again")
