"""The optimisers of a run, and their learning rate."""

import math

from torch import nn
from torch.optim import SGD, AdamW, Muon, Optimizer

from experiments.config import TrainingConfig
from models import LoopedLM

BETA2 = 0.999


def build_optimisers(model: LoopedLM, config: TrainingConfig) -> tuple[Optimizer, ...]:
    """One optimiser, or two that share the parameters: Muon is made for the matrices of the stack alone."""
    rate, decay = config.learning_rate, config.weight_decay
    betas = (config.momentum, BETA2)
    match config.optimiser:
        case "adamw":
            return (AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=decay, fused=True),)
        case "sgd":
            return (SGD(model.parameters(), lr=rate, weight_decay=decay, momentum=config.momentum),)
        case "muon":
            matrices = [p for p in model.sublayers.parameters() if p.ndim == 2]
            others = _without(list(model.parameters()), matrices)
            # Scaled so that AdamW's rate fits both (Liu et al., arXiv 2502.16982).
            muon = Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            return muon, AdamW(others, lr=rate, betas=betas, weight_decay=decay, fused=True)


def _without(parameters: list[nn.Parameter], removed: list[nn.Parameter]) -> list[nn.Parameter]:
    gone = {id(parameter) for parameter in removed}
    return [parameter for parameter in parameters if id(parameter) not in gone]


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then constant or a cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
