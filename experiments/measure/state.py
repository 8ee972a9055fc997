"""What the loss sees of the state and where the state goes next, measured in float64 on a few held-out tokens."""

import copy
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from loopsight import asymptotic_step, radial_gradient_fraction, regime_number
from models import LoopedLM

STATE_WINDOWS, STATE_TOKENS = 4, 64  # measured in float64, so few


@dataclass(frozen=True, kw_only=True)
class StateMeasurement:
    """Means over tokens; index k - 1 of a list is loop k.

    Attributes:
        tokens: how many.
        radial_gradient_fraction: |<g, h>| / (|g| |h|) for g the gradient of loop k's own cross-entropy at h_k, over
            the tokens that have a gradient; None where none has.
        tokens_without_gradient: tokens left out of it, by loop.
        carry: radial gain of a loop far out: 1 the scale is carried, 0 removed.
        regime_number: |b(2 h_K) - b(h_K)| / |b(h_K)|; growth can be predicted where it is small.
        radial_increment: Euclidean norm gained by a loop, predicted from h_K's direction.
        l2_norm: of h_K.
        next_l2_norm_predicted: of h_{K+1}, from h_K and what the step does to large multiples of it.
        next_l2_norm: of h_{K+1}, as run.
    """

    tokens: int
    radial_gradient_fraction: list[float | None]
    tokens_without_gradient: list[int]
    carry: float
    regime_number: float
    radial_increment: float
    l2_norm: float
    next_l2_norm_predicted: float
    next_l2_norm: float


def measure_state(model: LoopedLM, windows: Int[Tensor, "windows time"], *, num_loops: int) -> StateMeasurement:
    """Measure on windows of context + 1 ids, on a float64 copy of the model, where it is."""
    exact = copy.deepcopy(model).to(torch.float64).eval()
    windows = windows.to(exact.head_weight.device)
    inputs, targets = windows[:, :-1], windows[:, 1:]
    with torch.no_grad():
        states = exact(inputs, num_loops)[1:]
        last = states[-1]
        far = asymptotic_step(exact.step, last)
        next_norm = exact.step(last).norm(dim=-1).mean().item()
        regime = regime_number(exact.step, last).mean().item()
    fractions = [
        radial_gradient_fraction(partial(_cross_entropy, exact, targets=targets, is_last=k == num_loops - 1), h)
        for k, h in enumerate(states)
    ]
    return StateMeasurement(
        tokens=inputs.numel(),
        radial_gradient_fraction=[
            None if math.isnan(mean) else mean for mean in (f.nanmean().item() for f in fractions)
        ],
        tokens_without_gradient=[int(f.isnan().sum()) for f in fractions],
        carry=far.gain.mean().item(),
        regime_number=regime,
        radial_increment=far.radial_increment(last).mean().item(),
        l2_norm=last.norm(dim=-1).mean().item(),
        next_l2_norm_predicted=far.next_state(last).norm(dim=-1).mean().item(),
        next_l2_norm=next_norm,
    )


def _cross_entropy(model: LoopedLM, h: Tensor, *, targets: Tensor, is_last: bool) -> Tensor:
    # Plain cross-entropy: fused losses are for training (they can hide a derivative).
    return F.cross_entropy(model.readout(h, is_last=is_last).flatten(0, 1), targets.flatten())
