"""What a condition of the experiment is: choices of readout, loss, and what else it changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from models import BetweenConfig, ModelConfig, PositionKind, ReadoutConfig, Supervision

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
        readout, supervision, between, embedding_std, position: what it sets in the model and the loss.
        training: what it sets in the training, by the names of `TrainingConfig`.
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
    position: PositionKind = "learned"
    training: Mapping[str, Any] = field(default_factory=dict)
    final_norm: Literal["tens", "grows", "settles"] | None

    def model_config(self, size: ModelConfig) -> ModelConfig:
        """The size's architecture with this variant's choices."""
        return replace(
            size,
            readout=self.readout,
            between=self.between,
            embedding_std=self.embedding_std,
            position=self.position,
        )
