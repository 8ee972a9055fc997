"""Train one run: from its configuration and tokens to a checkpoint, resumable at any step."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from experiments.config import RunConfig
from experiments.errors import Interrupted, OutOfTime, RunError
from experiments.training import checkpoint as checkpoints
from experiments.training import snapshots
from experiments.training.batches import Windows
from experiments.training.gradients import Gradients, gradients_of, release
from experiments.training.interrupt import deferred_interrupt
from experiments.training.metrics import MetricsLog
from experiments.training.optimiser import build_optimisers, learning_rate
from experiments.training.shards import shard_count
from models import LoopedLM, Loss

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is carried out; none of it changes what is computed, beyond rounding.

    Attributes:
        device: where it runs.
        compile: compile the loop body once, and on a GPU more than that (`gradients_of`); pays on GPUs and on CPU runs
            of many minutes.
        checkpoint_every: optimiser steps between checkpoints.
        log_every: optimiser steps between records of the training curve.
        snapshots: how many times the weights are kept, beside those at the start.
        deadline: reading of `time.monotonic` at which training stops and saves; None for no limit.
    """

    device: torch.device
    compile: bool = False
    checkpoint_every: int = 100
    log_every: int = 10
    snapshots: int = 0
    deadline: float | None = None

    def out_of_time(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def build_model(config: RunConfig, device: torch.device) -> LoopedLM:
    """The run's model at initialisation; the seed decides every weight, the same on any device."""
    torch.manual_seed(config.seed)
    model = LoopedLM(config.model)
    model.recompute = config.training.recompute
    return model.to(device)


def training_windows(config: RunConfig, tokens: np.ndarray, device: torch.device) -> Windows:
    """The run's batches: half-overlapping windows, as in the paper."""
    return Windows(
        tokens,
        context=config.model.context,
        stride=max(1, config.model.context // 2),
        batch_size=config.training.batch_size,
        seed=config.seed,
        device=device,
    )


def run_gradients(config: RunConfig, model: LoopedLM, execution: Execution) -> Gradients:
    """The gradients of the run's batches, computed as suits the machine."""
    shards = shard_count(config.model, config.training, execution.device, compiled=execution.compile)
    return gradients_of(model, config.training, config.supervision, compiled=execution.compile, shards=shards)


def train(config: RunConfig, tokens: np.ndarray, folder: Path, execution: Execution) -> LoopedLM:
    """Train to `config.training.steps`, from the checkpoint in `folder` if there is one.

    Raises:
        RunError: the loss became NaN or infinite (the last good checkpoint is kept), the run was interrupted (its
            state is saved), or the checkpoint is of another run.
    """
    model = build_model(config, execution.device)
    optimisers = build_optimisers(model, config.training)
    done = _resume(config, model, optimisers, folder / CHECKPOINT)
    if done >= config.training.steps:
        return model
    windows = training_windows(config, tokens, execution.device)
    gradients = run_gradients(config, model, execution)
    metrics = MetricsLog(folder, done)
    model.train()
    try:
        _optimise(config, model, gradients, optimisers, windows, metrics, folder, execution, done)
    finally:
        release(model)
    return model


def _resume(config: RunConfig, model: LoopedLM, optimisers: Sequence[Optimizer], path: Path) -> int:
    if not path.exists():
        return 0
    saved = checkpoints.load(path)
    if not _is_of(saved.config, config):
        raise RunError(f"{path} was made by another configuration; choose another --out, or delete that folder.")
    checkpoints.restore(saved, model, optimisers)
    return saved.step


def _is_of(stored: dict[str, Any], config: RunConfig) -> bool:
    """What an older version stored lacks the settings that came later; the run had their defaults."""
    try:
        return RunConfig.from_dict(stored) == config
    except (KeyError, TypeError, ValueError):
        return False


def _optimise(
    config: RunConfig,
    model: LoopedLM,
    gradients: Gradients,
    optimisers: Sequence[Optimizer],
    windows: Windows,
    metrics: MetricsLog,
    folder: Path,
    execution: Execution,
    done: int,
) -> None:
    last, path = config.training.steps, folder / CHECKPOINT
    keep = snapshots.snapshot_steps(last, execution.snapshots)
    finite = torch.ones((), dtype=torch.bool, device=execution.device)
    timer = _Timer()
    step = done
    terminal = sys.stderr.isatty()
    bar = tqdm(initial=done, total=last, desc=config.name, unit="step", disable=not terminal)
    with bar, deferred_interrupt() as interrupted:
        while True:
            # The gradient of step `step` is taken before what steps 1..step made is saved: a state is kept only
            # once a loss has been seen to be finite there.
            random = checkpoints.random_state()
            inputs, targets = windows.batch(step)
            loss, gradient_norm = gradients(inputs, targets)
            # Accumulated on the device and looked at now and then: a GPU need not wait at every step.
            finite &= torch.isfinite(loss.total) & torch.isfinite(gradient_norm)
            stop = step == last or interrupted.is_set() or execution.out_of_time()
            save = step > done and (stop or step % execution.checkpoint_every == 0)
            log = step < last and ((step + 1) % execution.log_every == 0 or step + 1 == last)
            if (save or log or stop or step == 0 or step in keep) and not finite:
                raise RunError(_diverged(config, step, path))
            if step in keep:
                snapshots.save(model, folder, step)
            if save:
                checkpoints.save(checkpoints.capture(model, optimisers, step, config.to_dict(), random), path)
                if not terminal:
                    print(f"{config.name}: step {step} of {last}, loss {loss.total.item():.3f}", file=sys.stderr)
            if stop:
                break
            _update(config, optimisers, step)
            step += 1
            timer.tokens += targets.numel()
            bar.update()
            if log:
                record = _record(step, loss, gradient_norm, timer.rate())
                metrics.write(record)
                rate, norm = record["tokens_per_second"], loss.mean_l2_norm[-1].item()
                bar.set_postfix_str(f"loss {loss.total.item():.3f}, norm {norm:.3g}, {rate:,.0f} tokens/s")
        if interrupted.is_set() or step < last:
            why, kind = ("interrupted", Interrupted) if interrupted.is_set() else ("out of time", OutOfTime)
            where = "is saved" if path.exists() else "had nothing to save"
            raise kind(
                f"{why} at step {step} of {last} of {config.name}, which {where}; "
                "run the same command with --resume to go on."
            )


def _diverged(config: RunConfig, step: int, path: Path) -> str:
    kept = f"the last good checkpoint is {path}" if path.exists() else "there was no checkpoint yet"
    remedy = "a lower --learning-rate" if step else "an --embedding-multiplier nearer to 1, or smaller --loop-weights"
    return (
        f"the loss or its gradient became NaN or infinite after at most {step} steps of {config.name}; {kept}; "
        f"try {remedy}."
    )


def training_step(
    config: RunConfig, gradients: Gradients, optimisers: Sequence[Optimizer], windows: Windows, step: int
) -> Loss:
    """One optimiser step and its loss, without anything that a run keeps: for measuring speed."""
    loss, _ = gradients(*windows.batch(step))
    _update(config, optimisers, step)
    return loss


def _update(config: RunConfig, optimisers: Sequence[Optimizer], step: int) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config.training)
        optimiser.step()


def _record(step: int, loss: Loss, gradient_norm: Tensor, tokens_per_second: float) -> dict[str, Any]:
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
