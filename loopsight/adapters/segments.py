"""Parts of a forward pass as functions of the state: a recorded call again, and what is left of the pass behind it.

Nothing of a model is written down a second time: masks, positions and injected embeddings are those of the recorded
pass, and the readout is the model's own code with the looped modules answering the state instead of computing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loopsight.adapters.exact import exact, logits_of, run, same_batch
from loopsight.capture import Call, Key, capture, first_tensor, with_first_tensor
from loopsight.protocol import LoopedMaps, unroll

# Relative agreement of the unrolled maps with the model's own pass: an order of sums may differ, nothing else.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.02, torch.float16: 0.002}
Slot = int | str


def record(model: nn.Module, batch: Any, *paths: str) -> tuple[dict[Key, Call], Any]:
    """Calls of the named modules in one pass over the batch, and what the pass returned."""
    with torch.no_grad(), exact(model), capture(model, *paths) as calls:
        output = run(model, batch)
    return calls, output


def of_path(calls: dict[Key, Call], path: str) -> list[Call]:
    return [call for (name, _), call in calls.items() if name == path]


def state_slot(call: Call) -> Slot:
    """Where the state enters: the first argument of the shape of the state that the call returned.

    Raises:
        ValueError: no argument has that shape.
    """
    for slot, value in slots(call):
        if call.state is not None and value.is_floating_point() and value.shape == call.state.shape:
            return slot
    raise ValueError(f"{call.path} takes no tensor of the shape that it returns: it is no map of a state.")


def slots(call: Call) -> list[tuple[Slot, Tensor]]:
    """The tensors among a call's arguments, by position or keyword."""
    named: list[tuple[Slot, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    return [(slot, value) for slot, value in named if isinstance(value, Tensor)]


def replay(call: Call, h: Tensor, slot: Slot | None = None) -> Tensor:
    """The module of a recorded call on another state, all other arguments as recorded, in the dtype of `h`."""
    slot = state_slot(call) if slot is None else slot
    args = [h if slot == place else _as(value, h) for place, value in enumerate(call.args)]
    kwargs = {name: h if slot == name else _as(value, h) for name, value in call.kwargs.items()}
    output = first_tensor(call.module(*args, **kwargs))
    if output is None:
        raise ValueError(f"{call.path} returned no tensor.")
    return output


def in_sequence(calls: Sequence[Call], h: Tensor) -> Tensor:
    """Recorded calls one after the other, each on the output of the one before."""
    for call in calls:
        h = replay(call, h)
    return h


def _as(value: Any, h: Tensor) -> Any:
    """Floating-point tensors in the dtype and on the device of `h`."""
    if isinstance(value, Tensor):
        return value.to(h) if value.is_floating_point() else value.to(h.device)
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_as(part, h) for part in value)
    return {key: _as(part, h) for key, part in value.items()} if type(value) is dict else value


@contextmanager
def answering(calls: Sequence[Call], h: Tensor) -> Iterator[None]:
    """Inside, the modules of the calls return `h`, in the form that the call returned, and compute nothing."""

    def answer(output: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: with_first_tensor(output, h)

    with ExitStack() as stack:
        for module, output in {call.module: call.output for call in calls}.items():
            own = module.__dict__.get("forward")
            module.forward = answer(output)
            stack.callback(_restore, module, own)
        yield


def _restore(module: nn.Module, own: Any) -> None:
    if own is None:
        del module.forward
    else:
        module.forward = own


def tail(model: nn.Module, batch: Any, calls: Sequence[Call], h: Tensor) -> Tensor:
    """Logits of the model's own pass in which every call of the modules of `calls` returns `h`."""
    with answering(calls, h):
        return logits_of(run(model, batch), model)


def maps(
    model: nn.Module,
    batch: Any,
    *,
    embed: Callable[[], Tensor],
    step: Callable[[Tensor], Tensor],
    readout: Callable[[Tensor], Tensor],
    states: Sequence[Tensor],
    output: Any,
    name: str,
    sublayers: Sequence[Callable[[Tensor], Tensor]] = (),
) -> LoopedMaps:
    """The three maps, each run by `exact`, and checked against the pass that they are meant to be.

    Args:
        states: the model's own h_0, ..., h_K of that pass.
        output: what the model returned.

    Raises:
        ValueError: the maps do not give the model's own states or logits; or later, a batch that is not this one.
    """

    def exactly(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(h: Tensor) -> Tensor:
            with exact(model):
                return function(h)

        return call

    def embed_batch(other: Any) -> Tensor:
        if not same_batch(other, batch):
            raise ValueError(f"these maps of {name} hold for one batch only: call discover again for another.")
        with exact(model):
            return embed()

    found = LoopedMaps(
        embed=embed_batch,
        step=exactly(step),
        readout=exactly(readout),
        num_loops=len(states) - 1,
        module=model,
        sublayers=tuple(exactly(sublayer) for sublayer in sublayers),
        name=name,
    )
    _require_own(found, batch, states, logits_of(output, model))
    return found


@torch.no_grad()
def _require_own(found: LoopedMaps, batch: Any, states: Sequence[Tensor], logits: Tensor) -> None:
    unrolled = unroll(found.step, found.embed(batch), found.num_loops)
    for k, (ours, own) in enumerate(zip(unrolled, states, strict=True)):
        if _differ(ours, own):
            raise ValueError(
                f"loop {k} of {found.name} does not give the model's own state: the loop is not one map of this "
                "state, or was cut elsewhere; name another cut in paths, or give the maps by hand."
            )
    if _differ(found.readout(unrolled[-1]), logits):
        raise ValueError(
            f"the last state of {found.name} does not give the model's own logits: something else reaches them; "
            "name another cut in paths, or give the maps by hand."
        )


def _differ(ours: Tensor, own: Tensor) -> bool:
    limit = max(ROUNDING.get(ours.dtype, 0.0), ROUNDING.get(own.dtype, 0.0))
    return ours.shape != own.shape or not bool((ours - own).norm() <= limit * own.norm())
