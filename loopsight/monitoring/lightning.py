"""The monitor as a Lightning `Callback`.

Trainer(..., callbacks=[LoopMonitorCallback("model.block", sinks=[JsonLines("loop.jsonl")])])
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from loopsight.monitor import LoopMonitor, find_module
from loopsight.monitoring.passes import first_tensor
from loopsight.monitoring.sinks import Sink

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    message = f'the Lightning callback needs lightning ({error}); install it with: pip install "loopsight[lightning]"'
    raise ImportError(message) from error


class LoopMonitorCallback(Callback):
    """Attaches when training starts and detaches when it ends, also by an exception.

    Everything that `training_step` runs before its backward pass is one forward pass, unless `model` names the module
    whose forward is one (needed where a training step runs the model more than once). Steps are the trainer's
    `global_step`, with gradient accumulation too. Only the process of rank zero is monitored.

    Args:
        loop: the module called once a loop, or its dotted name in the LightningModule.
        model: dotted name, in the LightningModule, of the module whose forward is one pass.
        sinks, every, state: as of `LoopMonitor`.

    Attributes:
        monitor: of the last training; None before.
    """

    def __init__(
        self,
        loop: str | nn.Module,
        *,
        model: str | None = None,
        sinks: Iterable[Sink] = (),
        every: int = 50,
        state: Callable[[Any], Tensor] = first_tensor,
    ) -> None:
        self.monitor: LoopMonitor | None = None
        self._loop = loop
        self._model = model
        self._options: dict[str, Any] = {"sinks": list(sinks), "every": every, "state": state}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        if trainer.is_global_zero:
            loop = find_module(pl_module, self._loop) if isinstance(self._loop, str) else self._loop
            model = None if self._model is None else find_module(pl_module, self._model)
            self.monitor = LoopMonitor(model, loop, steps_done=trainer.global_step, **self._options)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.monitor is not None and self._model is None:
            self.monitor.begin_pass()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.monitor is not None:
            self.monitor.end_pass()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.monitor is not None and trainer.global_step > self.monitor.steps_done:
            self.monitor.end_step(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
