"""torch.nn.RNN and torch.nn.GRU: a loop over time, with an input in every step.

A loop that reads another input in every step is not one map of its state, and no choice of map makes it one. What is a
map is a step at a fixed input. So two cases, told apart by the inputs of the recorded pass:

- the same frame at every time (a recurrence in depth): h_0 = the initial state, h_{k+1} = cell(x, h_k), K = the times;
- frames that differ: the last step alone, exactly as the model took it, K = 1. More steps from there ask what the
  model would do if it read its last frame again and again, which it never did.

The state is the hidden state of all layers side by side, (batch, layers d); the outputs that the model reads from the
layers are those of its last time. A zero initial state has no direction: the loop then starts from the first one.
LSTMs carry a second state and are not handled, nor are bidirectional or projected ones. Cells (torch.nn.GRUCell) that a
model calls in a loop of its own are found by the number of calls, like any module.
"""

from typing import Any

import torch
from torch import Tensor, nn

from loopsight.adapters.exact import logits_of, run
from loopsight.adapters.family import Family
from loopsight.adapters.segments import answering, maps, of_path, record
from loopsight.capture import Call
from loopsight.protocol import LoopedMaps


def recurrent_maps(model: nn.Module, batch: Any) -> LoopedMaps:
    """The maps of one step of the recurrence at its last input; see the module for what that means.

    Logits are those of the last time: (batch, vocab).

    Raises:
        ValueError: more than one recurrence or call of it, or a form that is not handled.
    """
    (path, rnn), *others = _recurrences(model)
    calls, output = record(model, batch, path)
    if others or len(calls) != 1:
        raise ValueError(
            f"{type(model).__name__} runs {len(others) + 1} recurrences, this one {len(calls)} times: give the maps "
            "of one by hand."
        )
    if rnn.bidirectional or rnn.proj_size:
        raise ValueError(f"{path or type(model).__name__} is bidirectional or projected, which has no map of a state.")
    time = 1 if rnn.batch_first else 0
    (call,) = of_path(calls, path)
    frames = call.args[0]
    if not isinstance(frames, Tensor) or frames.ndim != 3:
        raise ValueError(f"{path or type(model).__name__} must get one tensor of frames (batch, time, features).")
    steps = frames.shape[time]
    constant = torch.equal(frames, frames.select(time, -1).unsqueeze(time).expand_as(frames))

    def start(call: Call) -> Tensor:
        given = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
        x = call.args[0]
        zeros = x.new_zeros(rnn.num_layers, x.shape[1 - time], rnn.hidden_size)
        return _flat(zeros if given is None else given)

    def advance(h: Tensor, x: Tensor) -> Tensor:
        stacked = h.unflatten(-1, (rnn.num_layers, rnn.hidden_size)).movedim(1, 0).contiguous()
        weights = {name: parameter.to(h) for name, parameter in rnn.named_parameters()}  # it wants all of one dtype
        return _flat(torch.func.functional_call(rnn, weights, (x.to(h), stacked))[1])

    def step(h: Tensor) -> Tensor:
        return advance(h, frames.narrow(time, steps - 1, 1))

    skipped = 0 if constant else steps - 1
    skipped += bool((start(call) == 0).all(-1).any()) and skipped == 0 and steps > 1

    def embed() -> Tensor:
        (again,) = of_path(record(model, batch, path)[0], path)
        h = start(again)
        return advance(h, again.args[0].narrow(time, 0, skipped)) if skipped else h

    def last(logits: Tensor) -> Tensor:
        """Of the last time, where there are logits for every time, in the layout of the frames or batch first."""
        shape, rows = tuple(logits.shape[:2]), frames.shape[1 - time]
        axis = time if shape == tuple(frames.shape[:2]) else 1 if shape == (rows, steps) else None
        return logits if logits.ndim != 3 or axis is None else logits.select(axis, -1)

    def readout(h: Tensor) -> Tensor:
        top = h[..., -rnn.hidden_size :]
        outputs = torch.cat([call.output[0].to(h).narrow(time, 0, steps - 1), top.unsqueeze(time)], dim=time)
        with answering([call], outputs):
            return last(logits_of(run(model, batch), model))

    with torch.no_grad():
        states = [advance(start(call), frames[:, :n] if time else frames[:n]) if n else start(call)
                  for n in range(skipped, steps + 1)]  # fmt: skip
    own = last(logits_of(output, model))
    kind = f"{steps - skipped} steps at one input" if constant else "its last step, at its last input"
    name = f"{type(model).__name__}, {kind}, state of {type(rnn).__name__}"
    return maps(model, batch, embed=embed, step=step, readout=readout, states=states, output=own, name=name)


def _flat(h: Tensor) -> Tensor:
    """(layers, batch, d) to (batch, layers d)."""
    return h.movedim(0, 1).flatten(1)


def _recurrences(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.RNN | nn.GRU)]


RECURRENT = Family(
    name="recurrent networks",
    looks_for="a torch.nn.RNN or torch.nn.GRU",
    recognises=lambda model: bool(_recurrences(model)),
    maps=recurrent_maps,
)
