"""AdamW and its learning rate."""

import math

import torch

from experiments.config import TrainingConfig
from models import LoopedLM


def build_optimiser(model: LoopedLM, config: TrainingConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then constant or a cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
