"""What a looped language model is made of, as data. A combination that makes no sense cannot be built."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

NormKind = Literal["rmsnorm", "layernorm"]
ReadoutKind = Literal["raw", "raw_final_rmsnorm", "rmsnorm", "layernorm", "group_rmsnorm", "group_layernorm"]
BetweenKind = Literal["none", "rmsnorm", "damping"]
PositionKind = Literal["learned", "rotary"]

GROUPED_READOUTS = ("group_rmsnorm", "group_layernorm")


def _require_known(what: str, value: str, kinds: Any) -> None:
    if value not in get_args(kinds):
        raise ValueError(f"unknown {what} '{value}'; known: {', '.join(get_args(kinds))}.")


@dataclass(frozen=True, kw_only=True)
class ReadoutConfig:
    """How a state becomes logits.

    Attributes:
        kind: `raw` applies the head to the state itself; `raw_final_rmsnorm` is raw at every loop but the last,
            where it normalises; the others normalise at every loop, over the whole width or over groups of it.
        gain: learnable elementwise gain (and, for LayerNorm, bias) after the normalisation.
        tied: the head is the token embedding; otherwise it has weights of its own.
        num_groups: number of equal groups of channels, for the two grouped kinds only.
    """

    kind: ReadoutKind = "rmsnorm"
    gain: bool = True
    tied: bool = True
    num_groups: int | None = None

    def __post_init__(self) -> None:
        _require_known("readout kind", self.kind, ReadoutKind)
        if self.kind == "raw" and self.gain:
            raise ValueError("a raw readout has no normalisation and so no gain: pass gain=False.")
        if self.num_groups is not None and self.num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {self.num_groups}.")
        if (self.num_groups is not None) != (self.kind in GROUPED_READOUTS):
            raise ValueError(f"num_groups belongs to {GROUPED_READOUTS} and to no other readout, got {self}.")


@dataclass(frozen=True, kw_only=True)
class BetweenConfig:
    """The operation N on the state at the entrance of every loop: h -> block stack(N(h)).

    Attributes:
        kind: `none` is the identity, `rmsnorm` removes the scale (with a learnable gain), `damping` multiplies
            by `factor`.
        factor: damping factor in (0, 1), for `damping` only.
    """

    kind: BetweenKind = "none"
    factor: float | None = None

    def __post_init__(self) -> None:
        _require_known("operation between loops", self.kind, BetweenKind)
        if (self.factor is not None) != (self.kind == "damping"):
            raise ValueError(f"factor belongs to the operation 'damping' and to no other, got {self}.")
        if self.factor is not None and not 0.0 < self.factor < 1.0:
            raise ValueError(f"the damping factor must lie strictly between 0 and 1, got {self.factor}.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A looped language model: embeddings, one shared stack of pre-norm layers, a readout after every loop.

    Attributes:
        d_model: width of the state.
        num_layers: layers (attention, then SwiGLU) of the shared stack.
        num_heads: attention heads; must divide `d_model`.
        vocab_size: number of token ids.
        context: largest sequence length, in tokens.
        num_loops: the trained loop count K; a call may ask for any other.
        block_norm: normalisation at the input of every residual branch.
        norm_eps: epsilon inside the square root of every normalisation, in units of the mean square.
        readout: how a state becomes logits.
        between: operation at the entrance of every loop.
        position: learned absolute embedding added to h_0 (the paper), or rotary.
        qk_norm: RMSNorm with gain on queries and keys, per head.
        embedding_std: standard deviation of token and position embeddings at initialisation; 1 is the paper's,
            0.02 the small-init control. Linear maps always take torch's default, U(-1/sqrt(fan_in), ...).
        embedding_multiplier: fixed factor on the sum of both that becomes h_0, and not on a head tied to them; the
            paper has none, Gemma sqrt(d_model).
        dropout: probability, on h_0 and on every branch output, in training mode.
    """

    d_model: int
    num_layers: int
    num_heads: int
    vocab_size: int
    context: int
    num_loops: int = 4
    block_norm: NormKind = "rmsnorm"
    norm_eps: float = 1e-6
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    between: BetweenConfig = field(default_factory=BetweenConfig)
    position: PositionKind = "learned"
    qk_norm: bool = False
    embedding_std: float = 1.0
    embedding_multiplier: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require_known("block_norm", self.block_norm, NormKind)
        _require_known("position", self.position, PositionKind)
        for name in ("d_model", "num_layers", "num_heads", "vocab_size", "context", "num_loops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide d_model={self.d_model}.")
        if self.position == "rotary" and (self.d_model // self.num_heads) % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.d_model // self.num_heads}.")
        if self.d_model % (self.readout.num_groups or 1):
            raise ValueError(f"num_groups={self.readout.num_groups} must divide d_model={self.d_model}.")
        if not self.norm_eps >= 0.0:
            raise ValueError(f"norm_eps must not be negative, got {self.norm_eps}.")
        if not self.embedding_std > 0.0:
            raise ValueError(f"embedding_std must be positive, got {self.embedding_std}.")
        if not 0.0 < self.embedding_multiplier < math.inf:
            raise ValueError(f"embedding_multiplier must be positive and finite, got {self.embedding_multiplier}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}.")

    @property
    def d_hidden(self) -> int:
        """Width of the SwiGLU's hidden layer: 4 d, as in the paper."""
        return 4 * self.d_model
