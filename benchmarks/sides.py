"""The two sides of every comparison: one training step of the plain implementation, and of ours."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.plain import PlainLoopedLM, plain_loss
from experiments.config import TRAINING_PRESETS
from experiments.device import autocast
from experiments.flops import synchronise
from experiments.training.gradients import Gradients, gradients_of
from models import PRESETS, LoopedLM, ReadoutConfig, Supervision

Step = Callable[[Tensor, Tensor], float]
CPU = torch.device("cpu")
READOUTS = {"rmsnorm": ReadoutConfig(kind="rmsnorm"), "raw": ReadoutConfig(kind="raw", gain=False)}
SIDES = ("plain", "ours")
WARM_UP = 3  # rounds before anything is timed


def make_step(
    side: str,
    preset: str,
    readout: str,
    *,
    micro_batches: int = 1,
    recompute: bool = False,
    device: torch.device = CPU,
    compiled: bool = False,
    shards: int = 1,
    attach: Callable[[nn.Module, torch.optim.Optimizer], object] | None = None,
) -> Step:
    """A function that trains one step on a batch and returns the loss. Both sides start from the same weights.

    On CUDA both sides' matrix products are bfloat16; `compiled` and `shards` concern our side alone.
    `attach` is given the model and its optimiser before the first step.
    """
    torch.manual_seed(0)
    ours = LoopedLM(replace(PRESETS[preset], readout=READOUTS[readout], dropout=0.0))
    ours.recompute = recompute
    model = (ours if side == "ours" else PlainLoopedLM(ours)).to(device)
    del ours
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01, fused=side == "ours" or None)
    if attach is not None:
        attach(model, optimiser)
    forward_backward: Callable[[Tensor, Tensor], Tensor]
    if isinstance(model, PlainLoopedLM):
        forward_backward = partial(_plain_forward_backward, model)
    else:
        training = replace(TRAINING_PRESETS[preset], micro_batches=micro_batches, recompute=recompute)
        supervision = Supervision(placement="per_loop")
        forward_backward = _ours(gradients_of(model, training, supervision, compiled=compiled, shards=shards))

    def step(tokens: Tensor, targets: Tensor) -> float:
        loss = forward_backward(tokens, targets)
        optimiser.step()
        if side == "plain" or not compiled:  # a recorded graph writes into the gradients that it has
            optimiser.zero_grad(set_to_none=True)
        return loss.item()  # last: a GPU that was waited for before the update would idle while the host launches it

    return step


def _plain_forward_backward(model: PlainLoopedLM, tokens: Tensor, targets: Tensor) -> Tensor:
    with autocast(tokens.device):
        loss = plain_loss(model, tokens, targets)
    model.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return loss


def _ours(gradients: Gradients) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda tokens, targets: gradients(tokens, targets)[0].total


def batches(preset: str, batch_size: int, device: torch.device = CPU) -> Iterator[tuple[Tensor, Tensor]]:
    """The same random tokens on both sides; speed and memory do not depend on what they say."""
    config = PRESETS[preset]
    generator = torch.Generator().manual_seed(0)
    while True:
        window = torch.randint(config.vocab_size, (batch_size, config.context + 1), generator=generator).to(device)
        yield window[:, :-1], window[:, 1:]


def interleaved(
    steps: Mapping[str, Step], preset: str, batch_size: int, rounds: int, device: torch.device = CPU
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Each side's seconds and loss, round by round, a round being one step of every side on the same batch.

    Who comes first, and after whom, is drawn anew for every round, so that a machine that slows down, or a cache that
    somebody filled, favours nobody. The first rounds are not reported.
    """
    source, draw = batches(preset, batch_size, device), random.Random(0)
    for index in range(WARM_UP + rounds):
        batch = next(source)
        seconds, losses = {}, {}
        for side in draw.sample(list(steps), len(steps)):
            synchronise(device)
            began = time.perf_counter()
            losses[side] = steps[side](*batch)
            synchronise(device)
            seconds[side] = time.perf_counter() - began
        if index >= WARM_UP:
            yield seconds, losses


def spread(ratios: list[float]) -> dict[str, float]:
    """Median and the range of the middle 80 %."""
    tenths = statistics.quantiles(ratios, n=10)
    return {"median": statistics.median(ratios), "low_10": tenths[0], "high_90": tenths[-1], "rounds": len(ratios)}
