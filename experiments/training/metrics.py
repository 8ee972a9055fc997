"""The training curve of a run: JSON lines for programs, TensorBoard scalars for people."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from experiments.errors import RunError, finite_numbers
from experiments.files import atomic_path, naming

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends one record a logged step; opening it for a resumed run drops what lies after the checkpoint.

    TensorBoard's events are written here and now: torch's writer has a thread, whose errors print a traceback.

    Args:
        folder: the run's folder; holds `metrics.jsonl` and `tensorboard/`.
        step: finished optimiser steps; records of later steps are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / METRICS
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self.events = folder / "tensorboard" / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self.events.parent.mkdir(exist_ok=True)
        # To TensorBoard, what earlier files say of later steps does not hold.
        start = SessionLog(status=SessionLog.START)
        self._append(Event(step=step + 1, file_version="brain.Event:2"), Event(step=step + 1, session_log=start))

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it has the key `step`, and numbers, or lists of numbers by loop, for the rest.

        Raises:
            RunError: a number is NaN or infinite.
            OSError: the disk is full.
        """
        with finite_numbers(self.path):
            line = json.dumps(record, allow_nan=False)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        scalars = (scalar for key, value in record.items() for scalar in _scalars(key, value))
        values = [Summary.Value(tag=name, simple_value=number) for name, number in scalars]
        self._append(Event(step=record["step"], summary=Summary(value=values)))

    def _append(self, *events: Event) -> None:
        with naming(self.events), self.events.open("ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())


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
