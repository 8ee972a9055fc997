"""Finite movements of the states: values only, so that no hidden derivative can be taken for blindness."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from loopsight.invariance import Loss, mean_random_change, rms_over_tokens

AMOUNTS = (1.0, -1.0)


def random_label_loss(readout: Callable[[Tensor], Tensor], h: Tensor, generator: torch.Generator) -> Loss:
    """Cross-entropy of every token to drawn labels: blindness must hold for every label, and these never saturate the
    softmax."""
    classes = readout(h).shape[-1]
    labels = torch.randint(classes, (h[..., 0].numel(),), generator=generator, device=h.device)
    return lambda x: F.cross_entropy(readout(x).flatten(0, -2), labels, reduction="none")


@torch.no_grad()
def finite_change(loss: Loss, h: Tensor, moved: Sequence[Tensor], generator: torch.Generator) -> float:
    """Largest |L(g h) - L(h)| over the motions, relative to random motions of the same size at every token; root mean
    squares over the tokens' losses.

    0: the loss does not answer; about 1: as to anything. NaN where random motions change nothing.
    """
    here = loss(h)
    change = torch.stack([rms_over_tokens(loss(state) - here) for state in moved]).max()
    return (change / mean_random_change(loss, h, here, moved, generator)).item()


def translations(h: Tensor, vectors: Tensor) -> list[Tensor]:
    """h + t rms(h) v for every fixed unit vector v, (m, d), in both directions and in units of the state's size."""
    size = h.norm(dim=-1, keepdim=True)
    return [h + amount * size * v for v in vectors for amount in AMOUNTS]


def group_rescalings(h: Tensor, groups: Sequence[Tensor]) -> list[Tensor]:
    """Every group of channels doubled and halved by itself."""
    moved = []
    for group in groups:
        for amount in AMOUNTS:
            factor = torch.ones_like(h)
            factor[..., group] = 2.0**amount
            moved.append(h * factor)
    return moved


def rotations(h: Tensor, plane: Tensor) -> list[Tensor]:
    """The part of h in a plane, (2, d) orthonormal, turned by 1 radian either way, and by a half turn."""
    inside = h @ plane.T
    moved = []
    for angle in (1.0, -1.0, math.pi):
        cos, sin = math.cos(angle), math.sin(angle)
        turn = h.new_tensor([[cos, -sin], [sin, cos]])
        moved.append(h + (inside @ turn.T - inside) @ plane)
    return moved
