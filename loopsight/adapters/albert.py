"""ALBERT (native in transformers): one layer group, called num_hidden_layers times, each ending in a LayerNorm.

The state is what a layer group returns and takes again; h_0 is the embedding, mapped to the hidden width. The readout
(dense, GELU, LayerNorm, decoder) has no norm at its entrance, so it sees the scale and the mean of the state, weakly;
the LayerNorms inside the group remove both. ALBERT is the natural negative: visible and not carried.

With more than one group there is one loop a group, one after the other: name one in paths.
"""

from typing import Any

from torch import nn

from loopsight.adapters.family import Family, has
from loopsight.adapters.generic import cycle_maps, declared_cycle
from loopsight.protocol import LoopedMaps

GROUPS = "encoder.albert_layer_groups"


def albert_maps(model: nn.Module, batch: Any) -> LoopedMaps:
    """The maps of one call of the layer group.

    Raises:
        ValueError: more than one group, or a group that runs once; or as `loopsight.adapters.discover`.
    """
    ends = tuple(name for name, _ in model.named_modules() if GROUPS in name and name.rpartition(".")[2].isdigit())
    groups = [name for name in ends if name.rpartition(".")[0].endswith(GROUPS)]
    if len(groups) > 1:
        raise ValueError(
            f"this ALBERT model has {len(groups)} loops, one after the other: pass one of {groups} as paths."
        )
    name = "ALBERT, state at the output of the layer group"
    return cycle_maps(model, batch, declared_cycle(model, batch, groups), name=name)


ALBERT = Family(
    name="ALBERT",
    looks_for="encoder.albert_layer_groups and encoder.embedding_hidden_mapping_in",
    recognises=lambda model: any(
        has(model, f"{prefix}{GROUPS}.0", f"{prefix}encoder.embedding_hidden_mapping_in") for prefix in ("albert.", "")
    ),
    maps=albert_maps,
)
