"""The monitor as a `transformers.TrainerCallback`.

Trainer(model=model, ..., callbacks=[LoopMonitorCallback("block", sinks=[JsonLines("loop.jsonl")])])
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from loopsight.monitor import LoopMonitor
from loopsight.monitoring.passes import first_tensor
from loopsight.monitoring.sinks import Sink

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    message = f'the Trainer callback needs transformers ({error}); install it with: pip install "loopsight[hf]"'
    raise ImportError(message) from error


class LoopMonitorCallback(TrainerCallback):
    """Attaches when training begins, to the trainer's own (unwrapped) model, and detaches when it ends.

    Steps are the trainer's optimiser steps, also of a resumed run and with gradient accumulation. Only the process of
    rank zero is monitored. A training that raises leaves the hooks on the model; the next one, or
    `callback.monitor.close()`, removes them.

    Args:
        loop, sinks, every, state: as of `LoopMonitor`.

    Attributes:
        monitor: of the last training; None before.
    """

    def __init__(
        self,
        loop: str | nn.Module,
        *,
        sinks: Iterable[Sink] = (),
        every: int = 50,
        state: Callable[[Any], Tensor] = first_tensor,
    ) -> None:
        self.monitor: LoopMonitor | None = None
        self._loop = loop
        self._options: dict[str, Any] = {"sinks": list(sinks), "every": every, "state": state}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._close()
        if state.is_world_process_zero:
            done = state.global_step
            self.monitor = LoopMonitor(kwargs["model"], self._loop, steps_done=done, **self._options)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.monitor is not None:
            self.monitor.end_step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
