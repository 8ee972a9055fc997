"""Looped language models: what they are made of, and the losses that train them."""

from models.config import BetweenConfig, ModelConfig, PositionKind, ReadoutConfig
from models.looped_lm import LoopedLM
from models.losses import Loss, Supervision, chunked_cross_entropy, looped_loss
from models.presets import PRESETS, resized

__all__ = [
    "PRESETS",
    "BetweenConfig",
    "Loss",
    "LoopedLM",
    "ModelConfig",
    "PositionKind",
    "ReadoutConfig",
    "Supervision",
    "chunked_cross_entropy",
    "looped_loss",
    "resized",
]
