"""Watch a loop while it trains: norms, radial gradients, drive, time to overflow; and a warning that names the remedy.

    with LoopMonitor(model, "block", optimiser=optimiser, sinks=[JsonLines("loop.jsonl")]):
        train(model, optimiser)

Hooks only: the model is not edited, gradients stay bit-identical, and everything is removed at the end. One forward
pass is looked at every 50 optimiser steps, and after 1, 2, 4, 8, ... of the first ones, in which a blind norm may grow
all that it will; in between a hook costs a few comparisons.

What is measured is the gradient of training itself, so at h_k it is the total one, through the loops after k too. A
small fraction in bfloat16 or float32 is bounded by rounding (`radial_noise_floor` is logged beside it), and blindness
to first order is no proof: the audit decides.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from loopsight.checks import is_whole
from loopsight.monitoring.outlook import Sample, outlook, to_record
from loopsight.monitoring.passes import Pass, first_tensor, tensors_of, to_sample
from loopsight.monitoring.rules import Kind, LoopMonitorWarning, alarms
from loopsight.monitoring.sinks import JsonLines, Record, Sink, TensorBoard

__all__ = ["JsonLines", "LoopMonitor", "LoopMonitorWarning", "TensorBoard"]

WINDOW = 8  # samples that trends and rules look at

NOTHING_SEEN = (
    "the loop monitor saw no loop in optimiser step {step}: it samples forward passes of `model` in training mode and "
    "with gradients, in which the module given as `loop` is called, or `observe` is; calls inside a compiled graph are "
    "not seen, so compile the loop's body alone and give the compiled module as `loop`."
)

NO_STEP_ENDED = (
    "the loop monitor saw a loop and no optimiser step that ended: give it the optimiser that is stepped, or call "
    "`end_step` after each step."
)


class LoopMonitor:
    """Samples the states of a loop during training.

    The loop's states reach it in one of two ways: `loop` names the module that is called once a loop, whose n-th call
    in one forward pass of `model` returns h_n; or the training code calls `observe(k, h)`. In the first way h_0, the
    first call's input, is looked at too if the second call's input is the very tensor that the first returned; with an
    operation between loops there is no telling which of the two tensors is meant, and states begin with h_1.

    Works with (tested) gradient accumulation: the first forward pass of a sampled step is looked at; activation
    checkpointing (`use_reentrant=False`): recomputed calls are not counted; evaluation in between: passes without
    gradients or in evaluation mode are not sampled; autocast; loops that run partly without gradients (no fraction
    there); in-place steps; forward passes that raise. Of `torch.compile`: a compiled loop body works
    (`model.block = torch.compile(model.block)`, and the monitor on that); calls inside a larger compiled graph are
    skipped without a graph break, and a warning says that nothing was seen. Under DistributedDataParallel (not tested)
    give the module inside the wrapper, and attach on one rank: each sees its own shard. Replicas made by DataParallel
    are not seen.

    A sampled step holds a copy of each state until the step ends.

    Args:
        model: its forward is one pass. May be left out with `observe`; a forward that raised and is tried again is then
            taken for one that succeeded.
        loop: the module called once a loop (of a stack of layers, the last one), or its dotted name in `model`.
        optimiser: each of its steps ends a step here; without it, call `end_step` after each.
        sinks: callables that take records; one that raises is dropped with a warning.
        every: optimiser steps from one sample to the next; before the first of these, also after 1, 2, 4, ... steps.
        state: picks the state tensor (..., d) from what `loop` returns: by default the tensor, or the first of a tuple.
        steps_done: optimiser steps of a resumed run.

    Raises:
        ValueError: a name that is not in the model, or without a model to look for it in, or an impossible `every`.

    Source: this project; rules and thresholds: `loopsight.monitoring.rules`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        loop: nn.Module | str | None = None,
        *,
        optimiser: torch.optim.Optimizer | None = None,
        sinks: Iterable[Sink] = (),
        every: int = 50,
        state: Callable[[Any], Tensor] = first_tensor,
        steps_done: int = 0,
    ) -> None:
        if not is_whole(every) or every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1, got {every}.")
        self.every = every
        self.steps_done = steps_done
        self.history: deque[Sample] = deque(maxlen=WINDOW)
        self._sinks = list(sinks)
        self._state = state
        self._model = model
        self._loop = find_module(model, loop) if isinstance(loop, str) else loop
        self._next: int | None = steps_done  # None: closed
        self._steps_ended = False
        self._pass: Pass | None = None
        self._said: set[Kind] = set()
        self._handles: list[Any] = []
        if model is not None:
            self._handles.append(model.register_forward_pre_hook(self._before_model))
            self._handles.append(model.register_forward_hook(self._after_model))
        if self._loop is not None:
            self._handles.append(self._loop.register_forward_hook(self._after_loop, with_kwargs=True))
        if optimiser is not None:
            self._handles.append(optimiser.register_step_post_hook(self._after_update))

    def __enter__(self) -> "LoopMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._pass = None  # that no step has ended is no news then
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LoopMonitor":
        """Itself: a copy of the model takes the hooks along, and they ignore modules that are not the original."""
        return self

    def __reduce__(self) -> tuple[type["LoopMonitor"], tuple[()]]:
        """In a pickle of the model, which takes its hooks along: a monitor of nothing."""
        return LoopMonitor, ()

    def close(self) -> None:
        """Remove every hook; a sample in the making is dropped. Sinks stay the caller's."""
        if self._pass is not None and self._pass.states and not self._steps_ended:
            self._warn("nothing seen", NO_STEP_ENDED, self.steps_done)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pass = None
        self._next = None

    def begin_pass(self) -> None:
        """A forward pass begins; called by the hook on `model`, or by a trainer that has no such module."""
        if self._pass is not None and self._pass.open:
            self._pass = None  # the forward pass before this one raised
        training = self._model is None or self._model.training
        if self._due and self._pass is None and training and torch.is_grad_enabled():
            self._pass = Pass(step=self.steps_done)

    def end_pass(self) -> None:
        """The forward pass has ended: calls from now on are recomputation, or another micro-batch."""
        if self._pass is not None:
            self._pass.open = False

    def observe(self, k: int, h: Tensor) -> None:
        """State k of the running forward pass, for a loop that is no module.

        Call it with the tensor that the next loop takes, as the gradient at a copy or a view is not the state's. A k
        that is not above the last one is a recomputation or another micro-batch, and ignored.

        Args:
            k: loop index, 0 for the state before the first loop.
            h: (..., d), floating point.

        Raises:
            ValueError: h is no floating-point tensor with at least one dimension.
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if self._model is None and self._pass is None:
            self.begin_pass()
        if self._pass is None or not self._pass.open:
            return
        if self._pass.states and k <= max(self._pass.states):
            self.end_pass()
        else:
            self._pass.add(k, h)

    def observe_states(self, states: Sequence[Tensor], first: int = 0) -> None:
        """`observe` for all states of a model that returns them, (h_first, h_{first + 1}, ...); without `model`."""
        for k, h in enumerate(states, first):
            self.observe(k, h)

    def end_step(self, steps_done: int | None = None) -> None:
        """An optimiser step has ended: a sample that was taken in it goes to the sinks, and the rules look at it.

        Args:
            steps_done: optimiser steps finished by now; one more than before if not given.
        """
        taken, due, step = self._pass, self._due, self.steps_done
        self._pass = None
        self._steps_ended = True
        self.steps_done = step + 1 if steps_done is None else steps_done
        if taken is None or not taken.states:
            if due:
                self._warn("nothing seen", NOTHING_SEEN.format(step=step), step)
        elif not (taken.open and self._model is not None):  # else its forward pass raised
            self._next = self._after(taken.step)
            self._publish(to_sample(taken))

    def _after(self, step: int) -> int:
        """When to sample next: at the next multiple of `every`, before the first of them at twice the steps."""
        return min(max(1, 2 * step), (step // self.every + 1) * self.every)

    @property
    def _due(self) -> bool:
        return self._next is not None and self.steps_done >= self._next

    def _before_model(self, module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and module is self._model:
            self.begin_pass()

    def _after_model(self, module: nn.Module, *_: Any) -> None:
        if not torch.compiler.is_compiling() and module is self._model:
            self.end_pass()

    def _after_loop(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling() or self._pass is None or not self._pass.open or module is not self._loop:
            return
        self._pass.call(self._state(output), tensors_of(args, kwargs))

    def _after_update(self, *_: Any) -> None:
        self.end_step()

    def _publish(self, sample: Sample) -> None:
        self.history.append(sample)
        history = list(self.history)
        ahead = outlook(history)
        self._send(to_record(sample, ahead))
        for alarm in alarms(history, ahead):
            self._warn(alarm.kind, alarm.message, sample.step)

    def _warn(self, kind: Kind, message: str, step: int) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._send({"event": "warning", "step": step, "kind": kind, "message": message})
            warnings.warn(message, LoopMonitorWarning, stacklevel=2)

    def _send(self, record: Record) -> None:
        for sink in list(self._sinks):
            try:
                sink(record)
            except Exception as error:  # telemetry must not end a training run
                self._sinks.remove(sink)
                message = f"a sink of the loop monitor raised {error!r} and gets no more records: {sink!r}."
                warnings.warn(message, LoopMonitorWarning, stacklevel=2)


def find_module(model: nn.Module | None, name: str) -> nn.Module:
    """The module of that dotted name.

    Raises:
        ValueError: there is none; the message names some that are there.
    """
    if model is None:
        raise ValueError(f"the loop is named {name!r}: give the model that holds it, or the module itself.")
    modules = dict(model.named_modules())
    if name not in modules:
        last = name.rpartition(".")[2]
        alike = [known for known in modules if known and known.rpartition(".")[2] == last] or list(modules)[1:6]
        raise ValueError(f"the model has no module {name!r}; it has, for example, {', '.join(alike) or 'none at all'}.")
    return modules[name]
