"""Random cases for numeric checks: a readout, states and labels drawn from a handful of numbers, in float64.

A case is data, so that a property test can draw, print and shrink it. Nothing here uses the project's own models:
the propositions are about callables.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

ReadoutName = Literal["rmsnorm", "layernorm", "raw", "tanh"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A random situation.

    Attributes:
        seed: of everything random.
        d: width of the state, at least 3.
        vocab: number of classes.
        tokens: number of tokens, each with its own state.
        scale: root mean square of the first token's state.
        spread: ratio of the largest to the smallest token's state.
        eps: epsilon of the readout's normalisation.
        loss: which loss the logits go into.
    """

    seed: int = 0
    d: int = 16
    vocab: int = 11
    tokens: int = 4
    scale: float = 1.0
    spread: float = 1.0
    eps: float = 0.0
    loss: Literal["cross_entropy", "squared", "z_loss", "margin"] = "cross_entropy"

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def states(self) -> Float[Tensor, "tokens d"]:
        """States of unequal scale."""
        h = torch.randn(self.tokens, self.d, generator=self.generator(), dtype=torch.float64)
        exponents = torch.linspace(0.0, 1.0, self.tokens, dtype=torch.float64)
        factors = self.scale * self.spread ** exponents[:, None]
        return h / h.square().mean(-1, keepdim=True).sqrt() * factors

    def normalisation(self, name: ReadoutName) -> Callable[[Tensor], Tensor]:
        """What a readout does first; no gain, no bias."""
        return {
            "rmsnorm": lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps),
            "layernorm": lambda h: F.layer_norm(h, (self.d,), eps=self.eps),
            "raw": lambda h: h,
            "tanh": torch.tanh,
        }[name]

    def readout(self, name: ReadoutName) -> Callable[[Tensor], Tensor]:
        """A random readout with gain, bias and head: state to logits."""
        generator = self.generator()

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        gain, shift, head, bias = (
            1.0 + 0.3 * draw(self.d),
            0.3 * draw(self.d),
            draw(self.vocab, self.d),
            draw(self.vocab),
        )
        normalise = self.normalisation(name)
        return lambda h: (normalise(h) * gain + shift) @ head.T + bias

    def loss_of(self, readout: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The loss as a function of the states, summed over tokens."""
        labels = torch.randint(self.vocab, (self.tokens,), generator=self.generator())
        losses = {
            "cross_entropy": lambda z: F.cross_entropy(z, labels, reduction="sum"),
            "squared": lambda z: (z - F.one_hot(labels, self.vocab)).square().sum(),
            "z_loss": lambda z: z.logsumexp(-1).square().sum(),
            "margin": lambda z: F.multi_margin_loss(z, labels, reduction="sum"),
        }
        return lambda h: losses[self.loss](readout(h))


LossAt = tuple[Callable[[Tensor], Tensor], Tensor]


def seen_case(case: Case, loss_at: Callable[[Case], LossAt]) -> Case:
    """The case, or the next seed at which some token has a gradient: a margin already satisfied has none.

    Raises:
        ValueError: there is none among 64 seeds.
    """
    for seed in range(case.seed, case.seed + 64):
        candidate = replace(case, seed=seed)
        if has_gradient(gradient_at(*loss_at(candidate))).any():
            return candidate
    raise ValueError(f"64 seeds from {case} have no gradient anywhere.")


def has_gradient(gradient: Float[Tensor, "*batch d"]) -> Bool[Tensor, "*batch"]:
    """Token by token: large enough for its square not to underflow. A NaN counts, so that no check passes it over."""
    return ~(gradient.abs().amax(-1) < 1e-150)


def gradient_at(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]
