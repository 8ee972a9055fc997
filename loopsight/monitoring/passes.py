"""One sampled forward pass: copies of its states while it runs, gradients as they arrive, statistics in the end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from loopsight.monitoring.outlook import Sample
from loopsight.monitoring.statistics import (
    STAGNATING,
    dtype_name,
    isotropic_fraction,
    mean_fraction,
    noise_floor,
    radial_fraction,
    stagnation,
    state_statistics,
    step_statistics,
)

Inputs = dict[int | str, tuple[Tensor, int]]  # by position or keyword: a tensor and its version when it was passed


def first_tensor(output: Any) -> Tensor:
    """The tensor itself, or the first of a tuple or list.

    Raises:
        ValueError: it is neither.
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        raise ValueError(
            f"the loop returned {type(output).__name__}; pass state=... to pick its state tensor out of it."
        )
    return first


@dataclass
class Pass:
    """States seen so far, and what their gradients said.

    Attributes:
        step: optimiser steps finished when it began.
        open: calls still count; afterwards they are recomputation or another micro-batch.
        states: copies by k, since the next loop may work in place.
        fractions: by k, the radial fraction of every token.
        compute_dtype: the coarsest of the states' dtype and autocast's.
    """

    step: int
    open: bool = True
    states: dict[int, Tensor] = field(default_factory=dict)
    fractions: dict[int, Tensor | None] = field(default_factory=dict)
    compute_dtype: torch.dtype = torch.float64
    calls: int = 0
    _first: tuple[Tensor, Inputs] | None = None
    _node: tuple[int, Any] = (-1, None)

    def add(self, k: int, h: Tensor) -> None:
        """Take a copy of h_k, and wait for its gradient.

        Raises:
            ValueError: h is no floating-point tensor (..., d).
        """
        if h.ndim < 1 or not h.is_floating_point():
            raise ValueError(f"state {k} must be a floating-point tensor (..., d), got {h.dtype}, {tuple(h.shape)}.")
        with torch.no_grad():
            self.states[k] = copy = h.detach().clone()
        self.compute_dtype = max((self.compute_dtype, _compute_dtype(h)), key=lambda dtype: torch.finfo(dtype).eps)
        if not h.requires_grad:
            return
        before, node = self._node
        if node is not None and h.grad_fn is node:
            # One graph node made both states: the path from one to the next is inside it, and so is part of the
            # gradient of the first.
            self.fractions[before] = None
        self._node = (k, h.grad_fn)
        h.register_hook(lambda gradient: self._arrived(k, copy, gradient))

    def call(self, output: Tensor, inputs: Inputs) -> None:
        """The next call of the loop's module returned `output`."""
        self.calls += 1
        if self.calls == 1:
            self._first = (output, inputs)
        elif self.calls == 2 and self._first is not None:
            start = _carried_input(*self._first, inputs)
            self._first = None
            if start is not None and 0 not in self.states:
                self.add(0, start)
        self.add(self.calls, output)

    def _arrived(self, k: int, h: Tensor, gradient: Tensor) -> None:
        if k in self.fractions:  # one part of the gradient is hidden, or came in an earlier backward pass
            self.fractions[k] = None
        elif gradient.shape == h.shape:
            with torch.no_grad():
                self.fractions[k] = radial_fraction(gradient, h)


def tensors_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """The tensors among a call's arguments."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return {key: (value, value._version) for key, value in given if isinstance(value, Tensor)}


def _carried_input(first_output: Tensor, first_inputs: Inputs, second_inputs: Inputs) -> Tensor | None:
    """The first call's input that stands where the second call takes the first one's output; None if altered since."""
    for key, (tensor, _) in second_inputs.items():
        if tensor is first_output and key in first_inputs:
            start, version = first_inputs[key]
            intact = start._version == version and start.shape == first_output.shape and start.is_floating_point()
            return start if intact else None
    return None


def _compute_dtype(h: Tensor) -> torch.dtype:
    kind = h.device.type
    lowered = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype
    return max((h.dtype, lowered), key=lambda dtype: torch.finfo(dtype).eps)


@torch.no_grad()
def to_sample(taken: Pass) -> Sample:
    """The statistics of a pass whose backward has run. It holds at least one state."""
    order = sorted(taken.states)
    states = [taken.states[k] for k in order]
    fractions = [taken.fractions.get(k) for k in order]
    norms = [state_statistics(h) for h in states]
    steps = [None, *(step_statistics(*pair) if b == a + 1 else None for pair, (a, b) in _pairs(states, order))]
    last = states[-1]
    consecutive = len(order) > 1 and order[-1] == order[-2] + 1
    return Sample(
        step=taken.step,
        loops=tuple(order),
        width=last.shape[-1],
        dtype=dtype_name(last.dtype),
        compute_dtype=dtype_name(taken.compute_dtype),
        tokens=tuple(n.tokens for n in norms),
        unusable_tokens=tuple(n.unusable_tokens for n in norms),
        nonfinite_tokens=tuple(n.nonfinite_tokens for n in norms),
        mean_l2_norm=tuple(n.mean_l2_norm for n in norms),
        max_l2_norm=tuple(n.max_l2_norm for n in norms),
        max_abs=tuple(n.max_abs for n in norms),
        relative_radial_increment=tuple(None if s is None else s.relative_radial_increment for s in steps),
        drive=tuple(None if s is None else s.drive for s in steps),
        total_radial_gradient_fraction=tuple(mean_fraction(f) for f in fractions),
        tokens_without_gradient=tuple(None if f is None else int(f.isnan().sum()) for f in fractions),
        isotropic_fraction=isotropic_fraction(last.shape[-1]),
        radial_noise_floor=noise_floor(taken.compute_dtype, last.shape[-1]),
        stagnation={
            dtype_name(dtype): stagnation(states[-2], last, dtype) if consecutive else None for dtype in STAGNATING
        },
    )


def _pairs(states: list[Tensor], order: list[int]) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[int, int]]]:
    return zip(pairwise(states), pairwise(order), strict=True)
