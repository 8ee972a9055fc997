"""Every named variant, in one table: what readout, what loss, what between loops, and which control it is.

The first nine are the paper's conditions (arXiv 2606.24898, table 1) with LayerNorm beside RMSNorm; the last four are
controls for a confound: embeddings N(0, 1) that are also the head reward a large state by themselves.
"""

import difflib
from dataclasses import dataclass, field, replace
from typing import Literal

from experiments.errors import UsageError
from models import BetweenConfig, ModelConfig, ReadoutConfig, Supervision

SMALL_EMBEDDING_STD = 0.02

RAW = ReadoutConfig(kind="raw", gain=False)
RMSNORM = ReadoutConfig(kind="rmsnorm")
PER_LOOP = Supervision(placement="per_loop")
TERMINAL = Supervision(placement="terminal")
PENALTY = 0.01  # the paper's coefficient


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A condition of the experiment.

    Attributes:
        name: on the command line.
        summary: one line for people.
        readout, supervision, between, embedding_std: what it sets in the model and the loss.
        final_norm: what is predicted of the last loop's mean Euclidean norm: `tens` (the paper: the scale is pinned),
            `grows` (the paper: nothing pins it), `settles` (theory P8: the norm between loops bounds it across loops,
            not its size), or None where nobody has made a prediction.
    """

    name: str
    summary: str
    readout: ReadoutConfig
    supervision: Supervision
    between: BetweenConfig = field(default_factory=BetweenConfig)
    embedding_std: float = 1.0
    final_norm: Literal["tens", "grows", "settles"] | None

    def model_config(self, size: ModelConfig) -> ModelConfig:
        """The size's architecture with this variant's choices."""
        return replace(size, readout=self.readout, between=self.between, embedding_std=self.embedding_std)


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
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}


def visible_partner(name: str) -> str:
    """The variant with a raw readout and the same head, initialisation and loss placement."""
    prefixes = [prefix for prefix in ("terminal_", "untied_", "small_init_") if name.startswith(prefix)]
    return "".join(prefixes) + "scale_visible"


def select(name: str) -> list[Variant]:
    """The variants a command names: one, or `all`.

    Raises:
        UsageError: the name is unknown; the known ones are listed, nearest first.
    """
    if name == "all":
        return list(VARIANTS.values())
    if name in VARIANTS:
        return [VARIANTS[name]]
    known = nearest_first(name, ["all", *VARIANTS])
    raise UsageError(f"unknown variant '{name}'; known, nearest first: {', '.join(known)}.")


def nearest_first(name: str, known: list[str]) -> list[str]:
    """The known names, those most like `name` first."""
    return sorted(known, key=lambda other: -difflib.SequenceMatcher(a=name, b=other).ratio())
