"""Does a loss change when the states really are rescaled or shifted? Values only, no derivative.

A zero derivative is not blindness: reverse mode gives 0 through loops that a model runs without gradient. And a loss
that does not change is not blind unless it would have shown a change: the test moves the same states under losses
whose answer is known, and the user's loss in random directions, before it says anything.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loopsight.derivatives import require_double_states, require_double_value

Loss = Callable[[Tensor], Tensor]
"""States to one loss, or to one a token."""
Action = Literal["scale", "shift"]
Verdict = Literal["blind", "sees", "invalid"]

INVARIANT = 1e-6  # change relative to that of random motions of the same size
ROUNDING = 1e3 * torch.finfo(torch.float64).eps  # of a loss, relative to its value
CANARY_CLASSES = 16
DRAWS = 4  # random motions for every motion of the action, and drawn factors per token


@dataclass(frozen=True, kw_only=True)
class Invariance:
    """What moving the states did to the loss.

    |.| of losses is the root mean square over tokens where there is one a token.

    Attributes:
        change: largest |L(g h) - L(h)| over joint and per-token motions g, in the loss's units.
        random_change: mean |L(h + e) - L(h)| over random motions e with |e_t| = |(g h)_t - h_t|.
        canary_seen: `change` of a cross-entropy behind a raw random head, which sees every motion.
        canary_blind: the same behind a parameter-free normalisation, which sees none.
        verdict: `blind`, `sees`, or `invalid` when the test could not have told.
        reason: one sentence.
    """

    change: float
    random_change: float
    canary_seen: float
    canary_blind: float
    verdict: Verdict
    reason: str

    @property
    def ratio(self) -> float:
        """change / random_change: 0 blind, about 1 seen as well as anything; below 1e-6 is called blind.

        Of a mean over T tokens it is up to sqrt(T) larger, since random motions cancel there and a joint one does not.
        """
        return self.change / self.random_change if self.random_change else float("nan")


@torch.no_grad()
def invariance(
    loss: Loss, h: Float[Tensor, "*batch d"], *, generator: torch.Generator, action: Action = "scale"
) -> Invariance:
    """|L(g h) - L(h)| for g: h -> c h, c = 1/2, 2 and drawn per token, or h -> h + t rms(h) 1, t = -1, 1 and drawn.

    Args:
        loss: deterministic, states to float64, one loss a token (...) or a scalar; gradients are not needed anywhere in
            it. One a token makes the ratio independent of how many there are.
        h: states (..., d), float64.
        generator: for the drawn factors, the random motions and the canaries' head, on the device of `h`.
        action: `scale`, blind behind a root-mean-square normalisation; `shift`, behind a LayerNorm.

    Raises:
        ValueError: h is not a finite nonzero float64 tensor, or the loss not deterministic and float64, a scalar or
            one a token.

    Source: this project; theory/ P1, P15.
    """
    require_double_states(h)
    if action not in ("scale", "shift"):
        raise ValueError(f"action must be 'scale' or 'shift', got '{action}'.")
    h = h.detach()
    here = loss(h)
    require_double_value(here)
    if here.ndim != 0 and here.numel() != h[..., 0].numel():
        raise ValueError(f"the loss must be a scalar or one a token, got shape {tuple(here.shape)}.")
    if not torch.equal(here, loss(h)) and not here.isnan().any():
        raise ValueError("the loss must be deterministic, got two values for one state: use eval mode.")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=h.dtype, device=h.device)

    exponents = [h.new_ones(h.shape[:-1]), -h.new_ones(h.shape[:-1])]
    exponents += [
        2.0 * torch.rand(h.shape[:-1], generator=generator, dtype=h.dtype, device=h.device) - 1.0 for _ in range(DRAWS)
    ]
    moved = [_act(action, h, x[..., None]) for x in exponents]
    random_change = mean_random_change(loss, h, here, moved, generator)
    change, resolution = _largest_change(loss, h, moved)
    canary = _canary(h, normal(CANARY_CLASSES, h.shape[-1]) / h.shape[-1] ** 0.5)
    seen, canary_resolution = _largest_change(canary, h, moved)
    unseen, unseen_resolution = _largest_change(lambda h: canary(_normalise(action, h)), h, moved)

    verdict: Verdict
    if not all(map(math.isfinite, (change, random_change, seen, unseen))):
        verdict, reason = "invalid", "a loss is NaN or infinite at a moved state."
    elif seen <= canary_resolution / INVARIANT:
        verdict, reason = "invalid", "even a raw head does not see these states move."
    elif unseen > max(unseen_resolution, INVARIANT * seen):
        verdict, reason = "invalid", "even a normalised head sees these states move: they are near its singularity."
    elif change > max(resolution, INVARIANT * random_change):
        verdict, reason = "sees", "the loss changes when the states move."
    elif resolution > INVARIANT * random_change:
        verdict, reason = "invalid", "random motions of the same size do not change the loss enough to tell."
    else:
        verdict, reason = "blind", "the loss answers to random motions of the same size and not to this one."
    return Invariance(
        change=change,
        random_change=random_change,
        canary_seen=seen,
        canary_blind=unseen,
        verdict=verdict,
        reason=reason,
    )


def mean_random_change(
    loss: Loss, h: Tensor, here: Tensor, moved: Sequence[Tensor], generator: torch.Generator
) -> float:
    """Mean |L(h + e) - L(h)|, `here` being L(h), over `DRAWS` random motions e for every moved state, at every token as
    long as that state's own."""
    changes = []
    for state in moved:
        size = (state - h).norm(dim=-1, keepdim=True)
        for _ in range(DRAWS):
            noise = torch.randn(h.shape, generator=generator, dtype=h.dtype, device=h.device)
            changes.append(rms_over_tokens(loss(h + size * F.normalize(noise, dim=-1)) - here))
    return torch.stack(changes).mean().item()


def _act(action: Action, h: Tensor, amount: Tensor) -> Tensor:
    """Amounts in [-1, 1]."""
    return h * 2.0**amount if action == "scale" else h + amount * h.square().mean(-1, keepdim=True).sqrt()


def _normalise(action: Action, h: Tensor) -> Tensor:
    h = h if action == "scale" else h - h.mean(-1, keepdim=True)
    return h / h.square().mean(-1, keepdim=True).sqrt()


def _canary(h: Tensor, head: Tensor) -> Loss:
    targets = torch.arange(h[..., 0].numel(), device=h.device) % len(head)
    return lambda h: F.cross_entropy((h @ head.T).reshape(-1, len(head)), targets, reduction="none")


def rms_over_tokens(change: Tensor) -> Tensor:
    """Root mean square over tokens; of a scalar its magnitude."""
    return change.square().mean().sqrt()


def _largest_change(loss: Loss, h: Tensor, moved: list[Tensor]) -> tuple[float, float]:
    """Largest |L(g h) - L(h)|, and the rounding noise it must exceed; NaN if any value is."""
    values = torch.stack([loss(h), *[loss(state) for state in moved]])
    changes = torch.stack([rms_over_tokens(value - values[0]) for value in values])
    return changes.max().item(), ROUNDING * values.abs().max().item()
