"""Every named variant, in one table: what readout, what loss, what between loops, and which control it is.

The first nine are the paper's conditions (arXiv 2606.24898, table 1) with LayerNorm beside RMSNorm; the last six are
controls for a confound: embeddings N(0, 1) that are also the head reward a large state by themselves. With the two
central variants they make a full factorial of readout, head and initialisation.
"""

import difflib
from dataclasses import replace
from typing import Any

from experiments.errors import UsageError
from experiments.factorial import FACTORIAL
from experiments.variant import PENALTY, PER_LOOP, RAW, RMSNORM, SMALL_EMBEDDING_STD, TERMINAL, Variant
from models import BetweenConfig, ReadoutConfig


def _untied(readout: ReadoutConfig) -> ReadoutConfig:
    return replace(readout, tied=False)


_ALL = (
    Variant(
        name="scale_visible",
        summary="per-loop loss, raw readout",
        readout=RAW,
        supervision=PER_LOOP,
        final_norm="tens",
    ),
    Variant(
        name="scale_invariant",
        summary="per-loop loss, RMSNorm readout",
        readout=RMSNORM,
        supervision=PER_LOOP,
        final_norm="grows",
    ),
    Variant(
        name="norm_penalty",
        summary="per-loop loss, RMSNorm readout, norm penalty",
        readout=RMSNORM,
        supervision=replace(PER_LOOP, norm_penalty=PENALTY),
        final_norm="tens",
    ),
    Variant(
        name="scale_removing",
        summary="per-loop loss, RMSNorm readout, RMSNorm between loops",
        readout=RMSNORM,
        supervision=PER_LOOP,
        between=BetweenConfig(kind="rmsnorm"),
        final_norm="settles",
    ),
    Variant(
        name="final_norm",
        summary="per-loop loss, raw readouts, RMSNorm at the last loop only",
        readout=ReadoutConfig(kind="raw_final_rmsnorm"),
        supervision=PER_LOOP,
        final_norm="tens",
    ),
    Variant(
        name="layernorm",
        summary="per-loop loss, LayerNorm readout",
        readout=ReadoutConfig(kind="layernorm"),
        supervision=PER_LOOP,
        final_norm="grows",
    ),
    Variant(
        name="terminal_scale_visible",
        summary="terminal loss, raw readout",
        readout=RAW,
        supervision=TERMINAL,
        final_norm="tens",
    ),
    Variant(
        name="terminal_scale_invariant",
        summary="terminal loss, RMSNorm readout",
        readout=RMSNORM,
        supervision=TERMINAL,
        final_norm="grows",
    ),
    Variant(
        name="terminal_norm_penalty",
        summary="terminal loss, RMSNorm readout, norm penalty",
        readout=RMSNORM,
        supervision=replace(TERMINAL, norm_penalty=PENALTY),
        final_norm="tens",
    ),
    Variant(
        name="untied_scale_invariant",
        summary="control: scale_invariant with an untied head",
        readout=_untied(RMSNORM),
        supervision=PER_LOOP,
        final_norm=None,
    ),
    Variant(
        name="untied_scale_visible",
        summary="control: scale_visible with an untied head",
        readout=_untied(RAW),
        supervision=PER_LOOP,
        final_norm=None,
    ),
    Variant(
        name="small_init_scale_invariant",
        summary="control: scale_invariant with embeddings N(0, 0.02^2)",
        readout=RMSNORM,
        supervision=PER_LOOP,
        embedding_std=SMALL_EMBEDDING_STD,
        final_norm=None,
    ),
    Variant(
        name="small_init_scale_visible",
        summary="control: scale_visible with embeddings N(0, 0.02^2)",
        readout=RAW,
        supervision=PER_LOOP,
        embedding_std=SMALL_EMBEDDING_STD,
        final_norm=None,
    ),
    Variant(
        name="untied_small_init_scale_invariant",
        summary="control: scale_invariant with an untied head and embeddings N(0, 0.02^2)",
        readout=_untied(RMSNORM),
        supervision=PER_LOOP,
        embedding_std=SMALL_EMBEDDING_STD,
        final_norm=None,
    ),
    Variant(
        name="untied_small_init_scale_visible",
        summary="control: scale_visible with an untied head and embeddings N(0, 0.02^2)",
        readout=_untied(RAW),
        supervision=PER_LOOP,
        embedding_std=SMALL_EMBEDDING_STD,
        final_norm=None,
    ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}


def find(name: str) -> Variant:
    """A variant of the table, or a cell of the factorial, by its exact name.

    Raises:
        KeyError: there is none of this name.
    """
    return (VARIANTS | FACTORIAL)[name]


def visible_partner(name: str) -> str | None:
    """The variant with raw readouts and no remedy that is otherwise the same, by its configuration; None if the table
    has none."""

    def rest(variant: Variant) -> tuple[Any, ...]:
        placement = variant.supervision.placement
        return variant.readout.tied, variant.embedding_std, variant.position, placement, dict(variant.training)

    own = find(name)
    raw = (
        other.name
        for other in VARIANTS.values()
        if other.readout.kind == "raw" and other.between.kind == "none" and other.supervision.norm_penalty is None
    )
    return next((other for other in raw if rest(find(other)) == rest(own)), None)


def select(name: str) -> list[Variant]:
    """The variants a command names: one, `all` of the table, or the cells of the `factorial`.

    Raises:
        UsageError: the name is unknown; the known ones are listed, nearest first.
    """
    if name == "all":
        return list(VARIANTS.values())
    if name == "factorial":
        return list(FACTORIAL.values())
    if name in VARIANTS | FACTORIAL:
        return [find(name)]
    known = nearest_first(name, ["all", "factorial", *VARIANTS])
    raise UsageError(f"unknown variant '{name}'; known, nearest first: {', '.join(known)}.")


def nearest_first(name: str, known: list[str]) -> list[str]:
    """The known names, those most like `name` first."""
    return sorted(known, key=lambda other: -difflib.SequenceMatcher(a=name, b=other).ratio())
