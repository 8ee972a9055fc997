"""HRM-Text (native in transformers): two stacks, H and L, each normalised at its end, and two states.

    z_L <- N(L(z_L + z_H))  L_cycles times, then  z_H <- N(H(z_H + z_L));  logits = lm_head(z_H)

The loop is one H cycle. Neither state alone has a map of its own, so the audited state is both, side by side:
h = [h_H, h_L], (..., 2 d), cut before the normalisation N that ends a stack and is also the readout's norm. The readout
sees h_H alone, and h_L a loop later: judge h_L by deferred visibility. `cut="carried"` takes the states behind N
instead: scale can be seen there, because nothing normalises it again.

The first cycle starts from an embedding that no normalisation made: `embed` runs it, so K is H_cycles - 1. The model
runs early L cycles without gradient, in evaluation mode too; these maps do not.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from loopsight.adapters.family import Family, has
from loopsight.adapters.segments import in_sequence, maps, of_path, record
from loopsight.protocol import LoopedMaps

STACKS = ("model.H_module", "model.L_module")
Cut = Literal["decoded", "carried"]


def hrm_text_maps(model: nn.Module, batch: Any, *, cut: Cut = "decoded") -> LoopedMaps:
    """The maps of one H cycle; see the module for the state and its cuts.

    Raises:
        ValueError: a single H cycle, which leaves no loop behind `embed`; or as `loopsight.adapters.discover`.
    """
    norms = [f"{stack}.final_norm" for stack in STACKS]
    layers = [
        [name for name, _ in model.named_modules() if name.removeprefix(f"{stack}.layers.").isdigit()]
        for stack in STACKS
    ]
    calls, output = record(model, batch, *norms, *layers[0], *layers[1])
    cycles = len(of_path(calls, norms[0]))
    if cycles < 2:
        raise ValueError("this HRM-Text model runs one H cycle: nothing is looped.")
    inner = len(of_path(calls, norms[1])) // cycles
    high, low = ([calls[name, 0] for name in names] for names in layers)
    norm_high, norm_low = (calls[name, 0].module for name in norms)

    def normalised(h: Tensor) -> tuple[Tensor, Tensor]:
        high_state, low_state = h.chunk(2, dim=-1)
        return (norm_high(high_state), norm_low(low_state)) if cut == "decoded" else (high_state, low_state)

    def step(h: Tensor) -> Tensor:
        z_high, z_low = normalised(h)
        for _ in range(inner):
            last_low = in_sequence(low, z_low + z_high)
            z_low = norm_low(last_low)
        last_high = in_sequence(high, z_high + z_low)
        return torch.cat([last_high, last_low] if cut == "decoded" else [norm_high(last_high), z_low], dim=-1)

    def states(calls: Any) -> list[Tensor]:
        ends = [[_end(call, cut) for call in of_path(calls, name)] for name in norms]
        return [torch.cat(pair, dim=-1) for pair in zip(ends[0], ends[1][inner - 1 :: inner], strict=True)]

    head: Any = model.lm_head
    return maps(
        model,
        batch,
        embed=lambda: states(record(model, batch, *norms)[0])[0],
        step=step,
        readout=lambda h: head(normalised(h)[0]),
        states=states(calls),
        output=output,
        name=f"HRM-Text, H cycles 2 to {cycles}, state [h_H, h_L] {'before' if cut == 'decoded' else 'after'} "
        "its stack's final_norm",
    )


def _end(norm_call: Any, cut: Cut) -> Tensor:
    return norm_call.args[0] if cut == "decoded" else norm_call.state


HRM_TEXT = Family(
    name="HRM-Text",
    looks_for="model.H_module and model.L_module with layers and final_norm, and lm_head",
    recognises=lambda model: has(model, *STACKS, *(f"{stack}.final_norm" for stack in STACKS), "lm_head"),
    maps=hrm_text_maps,
)
