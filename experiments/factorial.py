"""The designed experiment on what else moves the norm: its cells, as variants.

    fraction    readout, head, embeddings, positions, weight decay: a half fraction 2^(5-1), defining relation I = ABCDE
                (resolution V: no main effect or two-factor interaction is confounded with another)
    gainless    RMSNorm readout without gain, over head and embeddings
    optimiser   SGD and Muon, over readout and head

The full factorial of readout, head and embeddings at the paper's other settings, over seeds, is in the table of
variants.
"""

import itertools
import math
from dataclasses import replace
from typing import Any

from experiments.variant import PER_LOOP, RAW, RMSNORM, SMALL_EMBEDDING_STD, Variant
from models import PositionKind, ReadoutConfig

READOUTS = {"raw": RAW, "rmsnorm": RMSNORM, "gainless": ReadoutConfig(kind="rmsnorm", gain=False)}
EMBEDDINGS = {"unit": 1.0, "small": SMALL_EMBEDDING_STD}
POSITIONS: dict[str, PositionKind] = {"learned": "learned", "rotary": "rotary"}
DECAYS = {"decay0.01": 0.01, "decay1": 1.0}  # the paper's, and one that shrinks a weight by e^-0.3 over 100 steps
OPTIMISERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    # The rate is, of 0.1, 0.3 and 1, the one with the lowest validation loss (LOG.md). The coefficient makes the decay
    # of a step what it is with AdamW: rate x coefficient / (1 - momentum) = 3e-5.
    "sgd": {"optimiser": "sgd", "learning_rate": 0.3, "weight_decay": 1e-5},
    "muon": {"optimiser": "muon"},
}
FACTORS: dict[str, tuple[str, str]] = {
    "readout": ("raw", "rmsnorm"),
    "head": ("untied", "tied"),
    "embeddings": ("small", "unit"),
    "position": ("rotary", "learned"),
    "decay": ("decay1", "decay0.01"),
}
"""Levels coded -1 and +1; +1 is the paper's scale_invariant."""


def cell(
    readout: str,
    head: str,
    embeddings: str = "unit",
    position: str = "learned",
    decay: str = "decay0.01",
    optimiser: str = "adamw",
) -> Variant:
    """The variant of one combination of levels."""
    levels = (readout, head, embeddings, position, decay, optimiser)
    return Variant(
        name="factorial_" + "_".join(levels),
        summary=", ".join(levels),
        readout=replace(READOUTS[readout], tied=head == "tied"),
        supervision=PER_LOOP,
        embedding_std=EMBEDDINGS[embeddings],
        position=POSITIONS[position],
        training={"weight_decay": DECAYS[decay], **OPTIMISERS[optimiser]},
        final_norm=None,
    )


def levels_of(name: str) -> dict[str, str]:
    """The levels of a cell, by factor, from its name."""
    factors = (*FACTORS, "optimiser")
    return dict(zip(factors, name.removeprefix("factorial_").split("_"), strict=True))


def _fraction() -> list[Variant]:
    signs = itertools.product((1, -1), repeat=len(FACTORS))
    chosen = [combination for combination in signs if math.prod(combination) == 1]
    return [
        cell(*(levels[(sign + 1) // 2] for sign, levels in zip(combination, FACTORS.values(), strict=True)))
        for combination in chosen
    ]


_CELLS = (
    *_fraction(),
    *(cell("gainless", head, embeddings) for head in ("tied", "untied") for embeddings in EMBEDDINGS),
    *(
        cell(readout, head, optimiser=optimiser)
        for optimiser in ("sgd", "muon")
        for readout in ("raw", "rmsnorm")
        for head in ("tied", "untied")
    ),
)

FACTORIAL: dict[str, Variant] = {variant.name: variant for variant in _CELLS}
