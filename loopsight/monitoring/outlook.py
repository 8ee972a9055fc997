"""One sample of training as data, what the last few samples say of the next ones, and the record made of both."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from loopsight.monitoring.statistics import Stagnation, dtype_name
from loopsight.monitoring.trend import MAXIMUM_POINTS, Reach, Trend, fit_trend

LARGEST = 1e150  # of a float64 state: beyond, squares are no numbers, and there is no trend to speak of
FORMATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one forward and backward pass said. Lists have one entry for every observed state h_k, in order.

    Attributes:
        step: optimiser steps that were finished when the pass ran.
        loops: k of every observed state.
        width: d.
        dtype: of the state.
        compute_dtype: the coarser of it and autocast's, from which `radial_noise_floor` follows.
        tokens, unusable_tokens, nonfinite_tokens, mean_l2_norm, max_l2_norm, max_abs: see `StateStatistics`.
        relative_radial_increment, drive: of the loop that ended here, see `StepStatistics`; None for the first.
        total_radial_gradient_fraction: mean over tokens of |<G, h_k>| / (|G| |h_k|), G the total gradient of training
            at h_k: what the loss sees at once and through later loops. At the last state the two are the same, since
            no loop follows. None where no (total) gradient arrived.
        tokens_without_gradient: left out of that mean.
        isotropic_fraction: what a random gradient would give.
        radial_noise_floor: what one rounding to `compute_dtype` would give.
        stagnation: by format, of the last loop's update; see `Stagnation`.
    """

    step: int
    loops: tuple[int, ...]
    width: int
    dtype: str
    compute_dtype: str
    tokens: tuple[int, ...]
    unusable_tokens: tuple[int, ...]
    nonfinite_tokens: tuple[int, ...]
    mean_l2_norm: tuple[float | None, ...]
    max_l2_norm: tuple[float | None, ...]
    max_abs: tuple[float | None, ...]
    relative_radial_increment: tuple[float | None, ...]
    drive: tuple[float | None, ...]
    total_radial_gradient_fraction: tuple[float | None, ...]
    tokens_without_gradient: tuple[int | None, ...]
    isotropic_fraction: float
    radial_noise_floor: float
    stagnation: dict[str, Stagnation | None]

    def l2_norm_after(self, k: int | None) -> float | None:
        """Mean norm of h_k; None where it was not observed."""
        return self.mean_l2_norm[self.loops.index(k)] if k in self.loops else None

    def max_abs_after(self, k: int | None) -> float | None:
        """Largest coordinate of h_k; None where it was not observed."""
        return self.max_abs[self.loops.index(k)] if k in self.loops else None


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the recent growth leads to if it goes on; None where nothing grows, or too little has been seen.

    Attributes:
        compared: the last loop that all of the last samples have (the number of loops may vary), whose state they are
            compared at.
        growth_by_step: trend of the mean Euclidean norm of that state over the last samples, by optimiser step.
        growth_by_loop: trend of the same norm over the states h_k, k >= 1, of the last sample, by loop.
        steps_to_overflow: by format, when that state's largest coordinate passes the format's largest number.
        loops_to_overflow: the same for further loops at these weights, from the last state.
    """

    compared: int | None
    growth_by_step: Trend | None
    growth_by_loop: Trend | None
    steps_to_overflow: dict[str, Reach | None]
    loops_to_overflow: dict[str, Reach | None]


def outlook(history: Sequence[Sample]) -> Outlook:
    """Trends through the samples at hand, the newest last."""
    steps = [sample.step for sample in history]
    newest = history[-1]
    recurrent = [n for n, k in enumerate(newest.loops) if k >= 1][-MAXIMUM_POINTS:]  # h_0 is no loop's result
    loops = [newest.loops[n] for n in recurrent]
    shared = set(newest.loops).intersection(*(sample.loops for sample in history))
    compared = max((k for k in shared if k >= 1), default=None)
    return Outlook(
        compared=compared,
        growth_by_step=_trend(steps, [sample.l2_norm_after(compared) for sample in history]),
        growth_by_loop=_trend(loops, [newest.mean_l2_norm[n] for n in recurrent]),
        steps_to_overflow=_overflow(_trend(steps, [sample.max_abs_after(compared) for sample in history])),
        loops_to_overflow=_overflow(_trend(loops, [newest.max_abs[n] for n in recurrent])),
    )


def _trend(x: Sequence[int], y: Sequence[float | None]) -> Trend | None:
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b is not None and 0.0 < b < LARGEST]
    return fit_trend([float(a) for a, _ in kept], [b for _, b in kept])


def _overflow(trend: Trend | None) -> dict[str, Reach | None]:
    return {dtype_name(dtype): None if trend is None else trend.until(torch.finfo(dtype).max) for dtype in FORMATS}


def to_record(sample: Sample, ahead: Outlook) -> dict[str, Any]:
    """A flat JSON-able dictionary, `event` first."""
    return {"event": "sample"} | asdict(sample) | asdict(ahead)
