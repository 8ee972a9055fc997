"""What numeric checks share: an architecture drawn for a case, its writers, gradients along tensors."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from theory.cases import Case
from theory.random_model import (
    GROUPS,
    Architecture,
    BetweenName,
    Parameters,
    RandomModel,
    ReadoutName,
    StateMap,
    random_model,
)

SCALE_FREE: tuple[ReadoutName, ...] = ("rmsnorm", "layernorm", "group_rmsnorm")
BETWEEN: tuple[BetweenName, ...] = ("none", "rmsnorm", "damping")


def draw_architecture(
    case: Case,
    *,
    readouts: Sequence[ReadoutName] = (*SCALE_FREE, "raw"),
    betweens: Sequence[BetweenName] = BETWEEN,
    **fixed: Any,
) -> Architecture:
    """An architecture of the case's width, vocabulary, tokens, scales and epsilon; the rest from its seed.

    Args:
        readouts, betweens: to draw from. A grouped readout is left out where its groups would have fewer than three
            channels: in groups of one nothing has a gradient.
        fixed: attributes that are not drawn.
    """
    rng = random.Random(case.seed)
    fits = case.d % GROUPS == 0 and case.d >= 3 * GROUPS
    drawn = Architecture(
        seed=case.seed,
        d=case.d,
        # Heads of width 2 or more: a query of width 1 is normalised to its sign.
        heads=rng.choice([n for n in (1, 2, 3, 4) if case.d % n == 0 and case.d // n >= 2]),
        layers=rng.choice([1, 2]),
        loops=rng.choice([1, 2, 3]),
        vocab=case.vocab,
        tokens=case.tokens,
        batch=rng.choice([1, 2]),
        block_norm=rng.choice(["rmsnorm", "layernorm"]),
        readout=rng.choice([name for name in readouts if fits or name != "group_rmsnorm"]),
        between=rng.choice(betweens),
        damping=rng.uniform(0.1, 0.99),
        tied=rng.random() < 0.5,
        gain=rng.random() < 0.5,
        biases=rng.random() < 0.5,
        qk_norm=rng.random() < 0.5,
        eps=case.eps,
        embedding_std=case.scale,
        spread=case.spread,
    )
    return replace(drawn, **fixed)


def narrowed(case: Case, d: int = 18) -> Case:
    """The case at no more than this width, for checks that differentiate whole models."""
    return replace(case, d=min(case.d, d))


def model_and_states(case: Case, **fixed: Any) -> tuple[RandomModel, Tensor]:
    """A random model, and states of the case's own scales in the place of its embeddings."""
    return random_model(draw_architecture(case, **{"batch": 1, **fixed})), case.states()[None]


def writers(a: Architecture) -> tuple[str, ...]:
    """The tensors that add to the residual stream: embeddings and exactly one factor of every branch."""
    names = ["token_embedding", "position_embedding"]
    for layer in range(a.layers):
        names += [f"{layer}.attention.out", f"{layer}.mlp.down"]
        names += [f"{layer}.attention.bias", f"{layer}.mlp.bias"] if a.biases else []
    return (*names, "between.gain") if a.between == "rmsnorm" else tuple(names)


def block_writers(a: Architecture) -> tuple[str, ...]:
    return tuple(name for name in writers(a) if not name.endswith("embedding"))


def loop_weights(a: Architecture) -> tuple[float, ...]:
    """Weights of either sign: the identities hold for every weighting."""
    rng = random.Random(a.seed + 1)
    return tuple(rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.5) for _ in range(a.loops))


def gradients_of(loss: Callable[[dict[str, Tensor]], Tensor], parameters: Parameters) -> dict[str, Tensor]:
    """By tensor, zero for one that the loss does not depend on."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def inner(gradients: Mapping[str, Tensor], parameters: Parameters, names: Iterable[str]) -> float:
    """<g, w> over the named tensors together."""
    return sum((gradients[name] * parameters[name]).sum().item() for name in names)


def lengths(gradients: Mapping[str, Tensor], parameters: Parameters, names: Iterable[str]) -> float:
    """|g| |w| over the named tensors together."""
    names = list(names)
    g, w = (sum(x[name].square().sum().item() for name in names) ** 0.5 for x in (gradients, parameters))
    return g * w


def along(gradients: Mapping[str, Tensor], parameters: Parameters, names: Iterable[str]) -> tuple[float, float]:
    """<g, w> and |g| |w|."""
    names = list(names)
    return inner(gradients, parameters, names), lengths(gradients, parameters, names)


def pullback(function: StateMap, x: Tensor, cotangent: Tensor) -> Tensor:
    """D function(x)^T cotangent. The checks test identities of vectors through random cotangents: one reverse pass,
    much faster here than forward mode."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad((function(x) * cotangent).sum(), x)[0]
