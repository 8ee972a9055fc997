"""Train one run: from its configuration and tokens to a checkpoint, resumable at any step."""

import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.config import RunConfig
from experiments.errors import RunError
from experiments.training import checkpoint as checkpoints
from experiments.training.batches import Windows
from experiments.training.interrupt import deferred_interrupt
from experiments.training.metrics import MetricsLog
from experiments.training.optimiser import build_optimiser, learning_rate
from models import LoopedLM, Loss, looped_loss

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is carried out; none of it changes what is computed, beyond rounding.

    Attributes:
        device: where it runs.
        compile: compile the loop body once; pays on GPUs and on CPU runs of many minutes.
        checkpoint_every: optimiser steps between checkpoints.
        log_every: optimiser steps between records of the training curve.
    """

    device: torch.device
    compile: bool = False
    checkpoint_every: int = 100
    log_every: int = 10


def build_model(config: RunConfig, device: torch.device) -> LoopedLM:
    """The run's model at initialisation; the seed decides every weight, the same on any device."""
    torch.manual_seed(config.seed)
    model = LoopedLM(config.model)
    model.recompute = config.training.recompute
    return model.to(device)


def train(config: RunConfig, tokens: np.ndarray, folder: Path, execution: Execution) -> LoopedLM:
    """Train to `config.training.steps`, from the checkpoint in `folder` if there is one.

    Raises:
        RunError: the loss became NaN or infinite (the last good checkpoint is kept), the run was interrupted (its
            state is saved), or the checkpoint is of another run.
    """
    model = build_model(config, execution.device)
    optimiser = build_optimiser(model, config.training)
    done = _resume(config, model, optimiser, folder / CHECKPOINT)
    if done >= config.training.steps:
        return model
    windows = Windows(
        tokens,
        context=config.model.context,
        stride=max(1, config.model.context // 2),
        batch_size=config.training.batch_size,
        seed=config.seed,
        device=execution.device,
    )
    if execution.compile:
        model.step = torch.compile(model.step)  # type: ignore[method-assign]
    log = MetricsLog(folder, done)
    model.train()
    try:
        _optimise(config, model, optimiser, windows, log, folder / CHECKPOINT, execution, done)
    finally:
        log.close()
    return model


def _resume(config: RunConfig, model: LoopedLM, optimiser: torch.optim.Optimizer, path: Path) -> int:
    if not path.exists():
        return 0
    saved = checkpoints.load(path)
    if saved.config != config.to_dict():
        raise RunError(f"{path} was made by another configuration; choose another --out, or delete that folder.")
    checkpoints.restore(saved, model, optimiser)
    return saved.step


def _optimise(
    config: RunConfig,
    model: LoopedLM,
    optimiser: torch.optim.Optimizer,
    windows: Windows,
    log: MetricsLog,
    path: Path,
    execution: Execution,
    done: int,
) -> None:
    last = config.training.steps
    finite = torch.ones((), dtype=torch.bool, device=execution.device)
    timer = _Timer()
    step = done
    bar = tqdm(initial=done, total=last, desc=config.name, unit="step", disable=not sys.stderr.isatty())
    with bar, deferred_interrupt() as interrupted:
        while step < last:
            inputs, targets = windows.batch(step)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, config.training)
            loss, gradient_norm = _step(config, model, optimiser, inputs, targets)
            # Accumulated on the device and looked at now and then: a GPU need not wait at every step.
            finite &= torch.isfinite(loss.total) & torch.isfinite(gradient_norm)
            step += 1
            timer.tokens += targets.numel()
            bar.update()
            at_log = step % execution.log_every == 0 or step == last
            at_save = step % execution.checkpoint_every == 0 or step == last or interrupted.is_set()
            if (at_log or at_save) and not finite:
                raise RunError(_diverged(config, step, path))
            if at_log:
                record = _record(step, loss, gradient_norm, timer.rate())
                log.write(record)
                bar.set_postfix(loss=f"{loss.total.item():.3f}", norm=f"{loss.mean_l2_norm[-1].item():.3g}")
            if at_save:
                checkpoints.save(checkpoints.capture(model, optimiser, step, config.to_dict()), path)
            if interrupted.is_set() and step < last:
                raise RunError(
                    f"interrupted at step {step} of {last} of {config.name}, which is saved; "
                    "run the same command with --resume to go on."
                )


def _diverged(config: RunConfig, step: int, path: Path) -> str:
    kept = f"the last good checkpoint is {path}" if path.exists() else "there was no checkpoint yet"
    return (
        f"the loss or its gradient became NaN or infinite at or before step {step} of {config.name}; {kept}; "
        "try a lower --learning-rate."
    )


def _step(
    config: RunConfig, model: LoopedLM, optimiser: torch.optim.Optimizer, inputs: Tensor, targets: Tensor
) -> tuple[Loss, Tensor]:
    parts = config.training.micro_batches
    losses = []
    for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        with autocast(inputs.device):
            loss = looped_loss(model, x, y, config.supervision)
        (loss.total / parts).backward()
        losses.append(loss)
    gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return _mean_loss(losses), gradient_norm


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matrix products on CUDA; nothing on CPU, where they are slower than float32."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def _mean_loss(losses: list[Loss]) -> Loss:
    return Loss(
        total=torch.stack([loss.total.detach() for loss in losses]).mean(),
        cross_entropy=torch.stack([loss.cross_entropy for loss in losses]).mean(0),
        mean_l2_norm=torch.stack([loss.mean_l2_norm for loss in losses]).mean(0),
    )


def _record(step: int, loss: Loss, gradient_norm: Tensor, tokens_per_second: float) -> dict[str, object]:
    return {
        "step": step,
        "loss": loss.total.item(),
        "cross_entropy": [None if math.isnan(value) else value for value in loss.cross_entropy.tolist()],
        "l2_norm": loss.mean_l2_norm.tolist(),
        "gradient_norm": gradient_norm.item(),
        "tokens_per_second": tokens_per_second,
    }


class _Timer:
    """Tokens a second since it was last asked."""

    def __init__(self) -> None:
        self.tokens = 0
        self._since = time.perf_counter()

    def rate(self) -> float:
        now = time.perf_counter()
        rate = self.tokens / (now - self._since)
        self.tokens, self._since = 0, now
        return rate
