"""The training curve of a run: JSON lines for programs, TensorBoard scalars for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from experiments.errors import RunError, finite_numbers
from experiments.files import atomic_path

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends one record a logged step; opening it for a resumed run drops what lies after the checkpoint.

    Args:
        folder: the run's folder; holds `metrics.jsonl` and `tensorboard/`.
        step: finished optimiser steps; records of later steps are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / METRICS
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it has the key `step`, and numbers, or lists of numbers by loop, for the rest.

        Raises:
            RunError: a number is NaN or infinite.
        """
        with finite_numbers(self.path):
            line = json.dumps(record, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        for key, value in record.items():
            for name, number in _scalars(key, value):
                self._board.add_scalar(name, number, record["step"])

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line cut short by a killed process is left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        records = [json.loads(line) for line in lines[:-1]]
        if not all(isinstance(record["step"], int) for record in records):
            raise TypeError("a step is no whole number")
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}); delete the run's folder to train it again.") from error
    return records


def _scalars(key: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, list):
        yield from ((f"{key}/loop_{k}", number) for k, number in enumerate(value, 1) if number is not None)
    elif key != "step":
        yield key, value
