"""Where records go. A sink is any callable that takes a record, a JSON-able dictionary; two are given here.

    {"event": "sample", "step": 50, "loops": [1, 2, 3, 4], "mean_l2_norm": [11.9, ...], ...}    see `outlook.Sample`
    {"event": "warning", "step": 200, "kind": "blind growth", "message": "..."}

`list.append` is a sink, and so is `wandb.log` behind a function that picks what to send.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Record = dict[str, Any]
Sink = Callable[[Record], object]


class JsonLines:
    """Appends each record as one line of strict JSON, and closes the file again: a killed run loses nothing written.

    Args:
        path: made with its folder if missing; never truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __call__(self, record: Record) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: None."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@runtime_checkable
class ScalarWriter(Protocol):
    """What is used of `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> object: ...

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> object: ...

    def flush(self) -> object: ...


class TensorBoard:
    """Scalars named `loop_monitor/mean_l2_norm/loop_3`, and warnings as text.

    Args:
        writer: a `SummaryWriter`, which stays the caller's to close.
        prefix: of every name.
    """

    def __init__(self, writer: ScalarWriter, prefix: str = "loop_monitor") -> None:
        self.writer = writer
        self.prefix = prefix

    def __call__(self, record: Record) -> None:
        step = record["step"]
        if record["event"] == "warning":
            self.writer.add_text(f"{self.prefix}/warning", record["message"], step)
        else:
            for name, value in scalars(record):
                self.writer.add_scalar(f"{self.prefix}/{name}", value, step)
        self.writer.flush()


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """Names and numbers of a sample: lists by loop, nested values by path; what is None or no number is left out."""
    loops = record["loops"]
    for key, value in record.items():
        if key not in ("step", "loops"):
            yield from _scalars(key, value, loops)


def _scalars(name: str, value: Any, loops: Sequence[int]) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _scalars(f"{name}/{key}", inner, loops)
    elif isinstance(value, (list, tuple)):
        for k, inner in zip(loops, value, strict=True):
            yield from _scalars(f"{name}/loop_{k}", inner, loops)
    elif isinstance(value, (int, float)):
        yield name, float(value)
