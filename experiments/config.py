"""The resolved configuration of one run: everything about it that can be chosen, and nothing else.

What cannot be chosen (AdamW's beta2, the stride of training windows) stands in `experiments.training`.
"""

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from experiments.corpus import CorpusConfig, TokenCorpus
from experiments.errors import UsageError
from experiments.variants import find, nearest_first
from models import PRESETS, BetweenConfig, ModelConfig, ReadoutConfig, Supervision

Optimiser = Literal["adamw", "sgd", "muon"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a run is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences a step.
        micro_batches: parts a batch is cut into, gradients accumulated; less memory, the same result up to rounding.
        optimiser: `adamw` (the paper), `sgd` with momentum, or `muon` for the matrices of the stack with AdamW for
            the rest.
        momentum: of SGD, and AdamW's beta1; Muon's own is torch's.
        learning_rate: after warm-up.
        schedule: `constant` (the paper) or `cosine` to zero, which it would reach one step after the last.
        warmup_steps: steps of linear warm-up.
        weight_decay: decoupled for AdamW and Muon, on every parameter (the paper).
        clip_norm: global gradient-norm clip.
        recompute: recompute activations in the backward pass; less memory, slower.
    """

    steps: int
    batch_size: int
    micro_batches: int = 1
    optimiser: Optimiser = "adamw"
    momentum: float = 0.9
    learning_rate: float = 3e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"micro_batches={self.micro_batches} must divide batch_size={self.batch_size}.")
        if self.optimiser not in get_args(Optimiser):
            raise ValueError(f"unknown optimiser '{self.optimiser}'; known: {', '.join(get_args(Optimiser))}.")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}.")
        for name in ("learning_rate", "clip_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}.")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps must not be negative and must be fewer than steps, got {self.warmup_steps}."
            )


TRAINING_PRESETS: dict[str, TrainingConfig] = {
    "tiny": TrainingConfig(steps=30, batch_size=8),
    "cpu": TrainingConfig(steps=150, batch_size=16, learning_rate=3e-3),
    "44m": TrainingConfig(steps=2_000, batch_size=64),
    "129m": TrainingConfig(steps=2_000, batch_size=32),
    "1.4b": TrainingConfig(steps=2_000, batch_size=8, learning_rate=2e-4, recompute=True),
}
"""Batch and learning rate of 44m, 129m and 1.4b are the paper's; their steps are not (4 epochs of WikiText-103). The
rate of cpu is the one of 3e-4, 1e-3, 3e-3 with the lowest validation loss of scale_visible and scale_invariant at 200
steps; its steps are what two slow cores train in a minute and a half."""


def require_preset(preset: str) -> TrainingConfig:
    """The training of a preset.

    Raises:
        UsageError: the preset is unknown; the known ones are listed, nearest first.
    """
    if preset not in TRAINING_PRESETS:
        known = ", ".join(nearest_first(preset, list(TRAINING_PRESETS)))
        raise UsageError(f"unknown preset '{preset}'; known, nearest first: {known}.")
    return TRAINING_PRESETS[preset]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. Two runs of the same configuration on the same machine's CPU have bit-identical weights.

    `corpus_key` is the digest of the corpus's content and settings.
    """

    variant: str
    preset: str
    seed: int
    model: ModelConfig
    supervision: Supervision
    training: TrainingConfig
    corpus: CorpusConfig
    corpus_key: str

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.variant}-{self.seed}"

    def kind(self, free: Collection[str] = ()) -> tuple[Any, ...]:
        """What runs must share to be compared: all but variant, seed and the settings named in `free`."""
        names = ("d_model", "num_layers", "num_loops", "embedding_multiplier")
        size = {name: getattr(self.model, name) for name in names}
        settings = {"preset": self.preset, "corpus_key": self.corpus_key} | size | asdict(self.training)
        # Where the loss is by itself belongs to the variant.
        settings["loop_weights"] = "equal" if self.supervision.weights is None else loop_weights_of(self)
        return tuple(value for name, value in settings.items() if name not in free)

    def to_dict(self) -> dict[str, Any]:
        """As JSON would give it back: what was read from a file compares equal."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunConfig":
        """The inverse of `to_dict`.

        Raises:
            TypeError, KeyError, ValueError: the values are not those of a configuration of this version.
        """
        model = dict(values["model"])
        model["readout"] = ReadoutConfig(**model["readout"])
        model["between"] = BetweenConfig(**model["between"])
        supervision = dict(values["supervision"])
        if supervision["weights"] is not None:
            supervision["weights"] = tuple(supervision["weights"])  # JSON knows lists only
        try:
            corpus = CorpusConfig(**values["corpus"])
        except UsageError as error:  # here it is a file that is wrong, no request
            raise ValueError(str(error)) from error
        nested = {
            "model": ModelConfig(**model),
            "supervision": Supervision(**supervision),
            "training": TrainingConfig(**values["training"]),
            "corpus": corpus,
        }
        return cls(**(values | nested))


def loop_weights_of(config: RunConfig) -> str:
    """The weights of the loops' losses, as on the command line; `equal` where they are alike and add up to 1."""
    weights = config.supervision.loop_weights(config.model.num_loops)
    alike = (1.0 / len(weights),) * len(weights)
    return "equal" if weights == alike else " ".join(f"{weight:g}" for weight in weights)


def weighted(supervision: Supervision, loop_weights: tuple[float, ...] | None) -> Supervision:
    """With these weights of the loops' losses; as it is when None.

    Raises:
        ValueError: what `Supervision` refuses.
    """
    return supervision if loop_weights is None else replace(supervision, weights=loop_weights)


def resolve(
    *,
    variant: str,
    preset: str,
    seed: int,
    training: TrainingConfig,
    corpus: CorpusConfig,
    tokens: TokenCorpus,
    size: ModelConfig | None = None,
    loop_weights: tuple[float, ...] | None = None,
) -> RunConfig:
    """Put a variant on a size, the preset's when None, with its own weights of the loops' losses when None; the
    vocabulary is the tokeniser's, which may be smaller than asked for.

    Raises:
        KeyError: the variant is unknown.
        UsageError: a batch has more sequences than the corpus has training tokens.
        ValueError: the weights do not go with the variant.
    """
    chosen = find(variant)
    training = replace(training, **chosen.training)
    if training.batch_size > len(tokens.train):  # which would fill the memory with repetitions
        raise UsageError(
            f"a batch of {training.batch_size:,} sequences has more of them than the corpus has training tokens, "
            f"{len(tokens.train):,}; choose a smaller --batch-size, or more text with --data."
        )
    return RunConfig(
        variant=variant,
        preset=preset,
        seed=seed,
        model=chosen.model_config(replace(size or PRESETS[preset], vocab_size=tokens.vocab_size)),
        supervision=weighted(chosen.supervision, loop_weights),
        training=training,
        corpus=corpus,
        corpus_key=tokens.key,
    )
