"""Ouro (remote code): one stack of sandwich-norm layers in K passes, and the readout's norm between them.

    h_1 = layers(e),  h_{k+1} = layers(norm(h_k)),  logits = lm_head(norm(h_K))

The audited state is h_k, before `model.norm`: the tensor that is decoded. The loss cannot see its scale, and the norm
between the passes removes it. `cut="carried"` takes norm(h_k) instead, the tensor that enters the next pass: its scale
is seen by lm_head, and an audit of it says "visible" of a model that is blind.

The first pass starts from an embedding that no norm made. `embed` runs it for the decoded cut, so that K is one less
than the model's number of passes; for the carried cut it is the embedding, and K is that number.
"""

from typing import Any, Literal

from torch import Tensor, nn

from loopsight.adapters.family import Family, has
from loopsight.adapters.segments import in_sequence, maps, of_path, record, replay
from loopsight.protocol import LoopedMaps

Cut = Literal["decoded", "carried"]


def ouro_maps(model: nn.Module, batch: Any, *, cut: Cut = "decoded") -> LoopedMaps:
    """The maps of one pass through the stack; see the module for the cuts.

    Raises:
        ValueError: a single pass; or as `loopsight.adapters.discover`.
    """
    layers = [name for name, _ in model.named_modules() if name.removeprefix("model.layers.").isdigit()]
    calls, output = record(model, batch, "model.norm", *layers)
    passes = len(of_path(calls, "model.norm"))
    if passes < 2:
        raise ValueError("this Ouro model runs one pass: nothing is looped.")
    stack, norm = [calls[name, 0] for name in layers], calls["model.norm", 0]
    head: Any = model.lm_head
    last = layers[-1]
    common: dict[str, Any] = {"output": output}
    if cut == "decoded":
        return maps(
            model,
            batch,
            embed=lambda: _state(record(model, batch, last)[0][last, 0]),
            step=lambda h: in_sequence(stack, replay(norm, h)),
            readout=lambda h: head(replay(norm, h)),
            states=[_state(call) for call in of_path(calls, last)],
            name=f"Ouro, passes 2 to {passes}, state before model.norm",
            **common,
        )
    return maps(
        model,
        batch,
        embed=lambda: record(model, batch, layers[0])[0][layers[0], 0].args[0],
        step=lambda h: replay(norm, in_sequence(stack, h)),
        readout=head,
        states=[stack[0].args[0], *(_state(call) for call in of_path(calls, "model.norm"))],
        name=f"Ouro, {passes} passes, state after model.norm",
        **common,
    )


def _state(call: Any) -> Tensor:
    return call.state


OURO = Family(
    name="Ouro",
    looks_for="model.layers, model.norm and model.early_exit_gate, and lm_head",
    recognises=lambda model: has(model, "model.layers.0", "model.norm", "model.early_exit_gate", "lm_head"),
    maps=ouro_maps,
)
