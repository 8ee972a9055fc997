"""Small looped models with a blind spot planted in them, and the truth about it.

Every model sees its state through one map of invariants, `observed`: logits = g(observed(h)) and
step(h) = c h + B(observed(h)), with random networks g and B. Whatever leaves `observed` unchanged is blind, exactly and
at every state, and a loop keeps c of it: carried (1), contracted (1/2), removed (0). The invariants may sit in a random
basis, so that the blind spot is along no channel. One spot has mixed fates: a loop shows
a part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loopsight.auditing.report import Kind
from loopsight.protocol import LoopedMaps

WIDTH, CLASSES, HIDDEN, LOOPS = 16, 24, 48, 2
FACTORS = {"carried": 1.0, "contracted": 0.5, "removed": 0.0}
VERDICTS = {"carried": "blind and active", "contracted": "blind but contracted", "removed": "blind but removed"}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """One blind family: what the report must say of it. `subspace` (m, d) holds it at every state, if it is fixed."""

    kind: Kind
    dimension: int
    subspace: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Planting:
    """A model, states to audit it at, and what is blind in it."""

    name: str
    fate: str
    maps: LoopedMaps
    batch: Tensor
    truths: tuple[Truth, ...]


def plant(name: str, fate: str, seed: int) -> Planting:
    """The planting of one name (a key of `SPOTS`) and fate (a key of `FACTORS`); other seeds, other models."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    observed, truths = SPOTS[name](normal, seed)
    carried = LEAKS[name](truths) if name in LEAKS else _all_alike
    tokens = normal(2, 6, WIDTH) * 3.0
    inputs = observed(tokens).shape[-1]
    deep = seed % 2 == 1
    first, head = normal(HIDDEN, inputs) / inputs**0.5, normal(CLASSES, HIDDEN) / HIDDEN**0.5
    flat = normal(CLASSES, inputs)
    write = normal(WIDTH, inputs)

    def readout(h: Tensor) -> Tensor:
        x = observed(h)
        return torch.tanh(x @ first.T / 2) @ head.T + 0.3 * x @ flat.T if deep else x @ flat.T

    def step(h: Tensor) -> Tensor:
        return carried(h, FACTORS[fate]) + torch.tanh(observed(h) @ write.T / 2)

    maps = LoopedMaps(embed=lambda h: h, step=step, readout=readout, num_loops=LOOPS, name=f"{name}, {fate}")
    return Planting(name=name, fate=fate, maps=maps, batch=tokens, truths=truths)


Normal = Callable[..., Tensor]
Spot = tuple[Callable[[Tensor], Tensor], tuple[Truth, ...]]

ONES = torch.ones(1, WIDTH, dtype=torch.float64) / WIDTH**0.5
SCALE = Truth(kind="scale", dimension=1)
MEAN = Truth(kind="mean", dimension=1)


def _all_alike(h: Tensor, factor: float) -> Tensor:
    return factor * h


def _one_kept_others_shown(truths: tuple[Truth, ...]) -> Callable[[Tensor, float], Tensor]:
    """Of the first truth's subspace the first direction has the fate; the others move to where they are seen."""
    basis = truths[0].subspace
    assert basis is not None
    shown = torch.linalg.qr(basis.T, mode="complete").Q.T[len(basis) : 2 * len(basis) - 1]

    def carried(h: Tensor, factor: float) -> Tensor:
        hidden = h @ basis[1:].T
        return factor * (h - hidden @ basis[1:]) + hidden @ shown

    return carried


def _orthonormal(normal: Normal, count: int) -> Tensor:
    return torch.linalg.qr(normal(WIDTH, count)).Q.T


def _outside(h: Tensor, basis: Tensor) -> Tensor:
    return h - (h @ basis.T) @ basis


def _rms(h: Tensor) -> Tensor:
    return h / h.square().mean(-1, keepdim=True).sqrt()


def _visible(normal: Normal, seed: int) -> Spot:
    return lambda h: h, ()


def _squashed(normal: Normal, seed: int) -> Spot:
    """Visible, but not linear: the scale saturates slowly."""
    mix = normal(WIDTH, WIDTH) / WIDTH**0.5
    return lambda h: torch.asinh(h @ mix.T), ()


def _nearly_hidden(normal: Normal, seed: int) -> Spot:
    """A direction seen at one part in 100 is seen: visibility 1e-4, a hundred times the bound."""
    basis = _orthonormal(normal, 1)
    return lambda h: h - 0.99 * (h @ basis.T) @ basis, ()


def _nearly_scale_free(normal: Normal, seed: int) -> Spot:
    """A normalisation with an epsilon of the states' own size passes a good part of their scale."""
    return lambda h: h / (h.square().mean(-1, keepdim=True) + 3.0).sqrt(), ()


def _direction(normal: Normal, seed: int) -> Spot:
    basis = _orthonormal(normal, 1)
    return lambda h: _outside(h, basis), (Truth(kind="fixed", dimension=1, subspace=basis),)


def _subspace(normal: Normal, seed: int) -> Spot:
    basis = _orthonormal(normal, 3)
    return lambda h: _outside(h, basis), (Truth(kind="fixed", dimension=3, subspace=basis),)


def _mean(normal: Normal, seed: int) -> Spot:
    return lambda h: _outside(h, ONES), (MEAN,)


def _scale(normal: Normal, seed: int) -> Spot:
    return _rms, (SCALE,)


def _layernorm(normal: Normal, seed: int) -> Spot:
    return lambda h: _rms(_outside(h, ONES)), (SCALE, MEAN)


def _direction_and_scale(normal: Normal, seed: int) -> Spot:
    basis = _orthonormal(normal, 1)
    return lambda h: _rms(_outside(h, basis)), (SCALE, Truth(kind="fixed", dimension=1, subspace=basis))


def _groups(normal: Normal, seed: int) -> Spot:
    count = (2, 4)[seed // 2 % 2]
    order = torch.arange(WIDTH) if seed % 3 else torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))

    def observed(h: Tensor) -> Tensor:
        return _rms(h[..., order].unflatten(-1, (count, -1))).flatten(-2)

    return observed, (SCALE, Truth(kind="group scale", dimension=count))


def _rotation(normal: Normal, seed: int) -> Spot:
    plane = _orthonormal(normal, 2)

    def observed(h: Tensor) -> Tensor:
        return torch.cat([_outside(h, plane), (h @ plane.T).norm(dim=-1, keepdim=True)], dim=-1)

    return observed, (Truth(kind="rotation", dimension=1, subspace=plane),)


def _rotation_and_scale(normal: Normal, seed: int) -> Spot:
    observed, (turning,) = _rotation(normal, seed)
    return lambda h: _rms(observed(h)), (SCALE, turning)


def _squeeze(normal: Normal, seed: int) -> Spot:
    """(x, y) -> (t x, y / t) in a plane: only x y is seen. A field that no name fits."""
    plane = _orthonormal(normal, 2)

    def observed(h: Tensor) -> Tensor:
        return torch.cat([_outside(h, plane), (h @ plane.T).prod(-1, keepdim=True) / 3.0], dim=-1)

    return observed, (Truth(kind="field", dimension=1, subspace=plane),)


def _few_logits(normal: Normal, seed: int) -> Spot:
    """Fewer logits than channels, one of them not linear: all kernels turn, and meet by their dimensions alone."""
    rows, mix = normal(WIDTH, 5) / WIDTH**0.5, normal(WIDTH, WIDTH) / WIDTH**0.5

    def observed(h: Tensor) -> Tensor:
        return torch.cat([h @ rows, torch.asinh(h @ mix).sum(-1, keepdim=True) / WIDTH**0.5], dim=-1)

    return observed, (Truth(kind="field", dimension=WIDTH - 6),)


SPOTS: dict[str, Callable[[Normal, int], Spot]] = {
    "visible": _visible,
    "visible, squashed": _squashed,
    "visible, nearly hidden": _nearly_hidden,
    "visible, large epsilon": _nearly_scale_free,
    "direction": _direction,
    "subspace of 3": _subspace,
    "subspace, mixed fates": _subspace,
    "mean": _mean,
    "scale": _scale,
    "scale and mean": _layernorm,
    "direction and scale": _direction_and_scale,
    "scale by groups": _groups,
    "rotation": _rotation,
    "rotation and scale": _rotation_and_scale,
    "squeeze": _squeeze,
    "fewer logits than width": _few_logits,
}
LEAKS = {"subspace, mixed fates": _one_kept_others_shown}
