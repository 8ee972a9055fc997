"""Other people's looped models as the three maps of `loopsight.protocol`.

    discover      recognises the family of a model, or finds its loop in one forward pass
    loop_layers   any causal language model of transformers, or torch.nn.TransformerEncoder, looped K times
    load_hf       a model from the hub or a folder, checked against its files

Maps made from one batch hold for it: they close over its masks, positions and injected embeddings. They run in
evaluation mode, without cache, by the math attention kernel, with gradient where the model cuts it, and keep float64
where the model falls back to float32; before they are handed out they have reproduced the model's own states and
logits.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from loopsight.adapters.albert import ALBERT
from loopsight.adapters.generic import cycle_maps, declared_cycle, found_cycle
from loopsight.adapters.hrm_text import HRM_TEXT
from loopsight.adapters.hub import load_hf
from loopsight.adapters.layers import loop_layers
from loopsight.adapters.ouro import OURO
from loopsight.adapters.raven import HUGINN, PARCAE
from loopsight.adapters.recurrent import RECURRENT
from loopsight.adapters.three_maps import own_maps
from loopsight.protocol import LoopedMaps, LoopedModel

__all__ = ["FAMILIES", "discover", "load_hf", "loop_layers"]

FAMILIES = (HRM_TEXT, ALBERT, OURO, PARCAE, HUGINN, RECURRENT)


def discover(model: object, batch: Any, *, paths: str | Sequence[str] | None = None) -> LoopedMaps:
    """The three maps of a looped model, cut so that the state is the one that is decoded.

    Args:
        model: in evaluation mode. Tried in this order: paths, its own embed, step and readout, the known families,
            recurrent networks of torch, modules that run more than once in a forward pass or hold the same parameters.
        batch: as the model takes it: a mapping is passed as keywords, a tuple as positions.
        paths: of the modules of one loop, in their order, as in `model.named_modules()`: the state is the output of
            the last one.

    Returns:
        The maps of this batch. `num_loops` counts the steps from what `embed` returns to the state that is decoded;
        where the model's first pass is unlike the others, `embed` runs it, and `name` says so.

    Raises:
        ValueError: no loop, more than one possible cut (both listed), a path that is no loop, a model in training mode,
            or maps that do not reproduce the model's own states and logits.
    """
    if paths is None and isinstance(model, LoopedModel):
        return own_maps(model, batch)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{type(model).__name__} is no torch.nn.Module and has no embed, step and readout.")
    if paths is not None:
        return cycle_maps(model, batch, declared_cycle(model, batch, paths))
    for family in FAMILIES:
        if family.recognises(model):
            return family.maps(model, batch)
    known = "; ".join(f"{family.name}: {family.looks_for}" for family in FAMILIES)
    return cycle_maps(model, batch, found_cycle(model, batch, known), declared=False)
