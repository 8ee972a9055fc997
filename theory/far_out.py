"""A loop of normalised branches as its states grow: in units of the scale it is smooth in 1/s, down to 1/s = 0.

So limits of large states are derivatives at 1/s = 0, without truncation. Every token keeps its own scale, in a fixed
ratio to the others'.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from theory.cases import Case
from theory.laboratory import model_and_states, pullback
from theory.random_model import StateMap


def sublayers_and_states(case: Case) -> tuple[list[StateMap], Tensor]:
    """The residual steps of a random model, nothing between its loops, and states of the case's scales."""
    model, h = model_and_states(case, between="none")
    return model.sublayers(), h


def linear_sublayers(case: Case) -> list[StateMap]:
    """Residual steps h -> h + M h, which see the scale: what must fail."""
    draw = torch.randn(2, case.d, case.d, generator=case.generator(), dtype=torch.float64) / case.d**0.5
    return [lambda h, m=matrix: h + h @ m.T for matrix in draw]  # type: ignore[misc]


def sequence(maps: list[StateMap]) -> StateMap:
    """One after the other."""

    def run(h: Tensor) -> Tensor:
        for step in maps:
            h = step(h)
        return h

    return run


def directions(h: Tensor) -> Tensor:
    return h / h.norm(dim=-1, keepdim=True)


def scaled_loop(sublayers: list[StateMap], u: Tensor, small: Tensor) -> Tensor:
    """F(s u) / s with small = 1/s, per token: for branches of degree 0 it is defined, and smooth, down to small = 0.

    For others it is another map: a check that uses it must hold `scaling_error` against the model as well.
    """
    for sublayer in sublayers:
        u = u + small * (sublayer(u) - u)
    return u


def scaling_error(sublayers: list[StateMap], h: Tensor) -> float:
    """|F(h) - s scaled_loop(u, 1/s)| / (s + |F(h) - h|): are the branches of degree 0, each token's scale its own?"""
    s, after = h.norm(dim=-1, keepdim=True), h
    for sublayer in sublayers:
        after = sublayer(after)
    error = after - s * scaled_loop(sublayers, h / s, 1.0 / s)
    return (error.norm(dim=-1) / (s[..., 0] + (after - h).norm(dim=-1))).max().item()


def at_infinity(function: Callable[[Tensor], Tensor], cotangent: Tensor) -> Tensor:
    """<cotangent, d function / d small> at small = 0."""
    return pullback(function, torch.zeros((), dtype=cotangent.dtype), cotangent)


def cotangent(like: Tensor, seed: int = 0) -> Tensor:
    """Random. Drawn from the very seed of a case's states it would be parallel to them, and test nothing."""
    generator = torch.Generator().manual_seed(seed ^ 0x9E3779B9)  # torch takes 32 bits: a larger offset would be lost
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def summed_branches(sublayers: list[StateMap], u: Tensor) -> Tensor:
    """bbar."""
    return torch.stack([sublayer(u) - u for sublayer in sublayers]).sum(0)


def relative_scales(h: Tensor) -> Tensor:
    """Every token's scale in units of the smallest: the ratios that are kept while small = 1/s goes to 0."""
    s = h.norm(dim=-1, keepdim=True)
    return s / s.min()
