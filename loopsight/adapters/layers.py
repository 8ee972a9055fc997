"""Any stack of layers as the body of a loop: K times through all layers of a model that was trained to go once.

    h_0 = what enters the first layer,  h_{k+1} = layers(h_k),  logits = the rest of the model on h_K

The state is cut before the final norm, which acts once, behind the last loop; nothing acts between the loops.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from loopsight.adapters.segments import Slot, maps, record, replay, slots, tail
from loopsight.capture import Call, plain_path
from loopsight.protocol import LoopedMaps


def loop_layers(model: nn.Module, batch: Any, num_loops: int) -> LoopedMaps:
    """The maps of a model whose stack of layers is looped `num_loops` times.

    Fits every causal language model of transformers whose layers hand one state on, and torch.nn.TransformerEncoder
    (its readout is its final norm, if it has one, since it has no head).

    Args:
        model: in evaluation mode.
        batch: as the model takes it.
        num_loops: K, at least 1. With 1 the maps are the model itself, which is checked.

    Raises:
        ValueError: no stack of layers, an impossible K, or a model in training mode.
    """
    if num_loops < 1:
        raise ValueError(f"num_loops must be at least 1, got {num_loops}.")
    stack, slot, output = _stack(model, batch)
    first = (stack[0].path, stack[0].index)

    def layer(call: Call, place: Slot) -> Callable[[Tensor], Tensor]:
        return lambda h: replay(call, h, place)

    sublayers = [layer(call, place) for call, place in zip(stack, slot, strict=True)]

    def through(h: Tensor) -> Tensor:
        for sublayer in sublayers:
            h = sublayer(h)
        return h

    once = maps(
        model,
        batch,
        embed=lambda: dict(slots(record(model, batch, first[0])[0][first]))[slot[0]],
        step=through,
        readout=lambda h: tail(model, batch, stack, h),
        states=[dict(slots(stack[0]))[slot[0]], *([stack[-1].state] if stack[-1].state is not None else [])],
        output=output,
        name=f"{type(model).__name__}, its {len(stack)} layers looped",
        sublayers=sublayers,
    )
    return dataclasses.replace(once, num_loops=num_loops)


def _stack(model: nn.Module, batch: Any) -> tuple[list[Call], list[Slot], Any]:
    """The longest list of layers of one class that hand one state on, each running once, outermost first."""
    lists = [
        [plain_path(f"{name}.{place}".lstrip(".")) for place in range(len(module))]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1
    ]
    for paths in sorted(lists, key=lambda paths: (paths[0].count("."), -len(paths))):
        calls, output = record(model, batch, *paths)
        stack = list(calls.values())
        if [call.path for call in stack] == paths:
            taken = [_entry(call, before) for before, call in zip([None, *stack], stack, strict=False)]
            if all(slot is not None for slot in taken):
                return stack, [slot for slot in taken if slot is not None], output
    raise ValueError(
        f"{type(model).__name__} has no torch.nn.ModuleList of layers of one class that run once each and hand one "
        "state on: give the maps by hand."
    )


def _entry(call: Call, before: Call | None) -> Slot | None:
    """The argument of a layer that is the state: the output of the layer before, or one of the output's shape."""
    for slot, value in slots(call):
        state = call.state if before is None else before.state
        if state is not None and value.shape == state.shape and value.is_floating_point():
            if before is None or torch.equal(value, state):
                return slot
    return None
