"""What the logits see of a direction of the state (visibility), and what the recurrence keeps of it (activity).

A direction can be blind and carried, which is what lets a state grow unseen: neither number alone shows it. Both are
relative: a unit direction v moves a token's state by |h| v times a small number, h being the state that is decoded.
Visibility is a variance of logit changes, not a gradient: a calibrated raw readout has no mean gradient along h and
sees it well. Structure is judged under the uniform distribution over the vocabulary, since a saturated softmax makes
everything look blind; the model's own distribution tells what the loss feels at this state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loopsight.checks import require_states
from loopsight.derivatives import directional_derivative
from loopsight.precision import widest
from loopsight.responses import (
    StateMap,
    logits_of_loops,
    positive,
    relative_change,
    require_logits,
    require_weights,
    shape_keeping,
    tangent_of,
)

BLIND = 1e-6  # relative: float64 noise lies below 1e-20 in a variance, an epsilon of 1e-6 at unit scale at 1e-12
CONFIRMED = 1e-6  # relative agreement asked of a step with the model's own next state


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """V_q(v) = sum_k w_k Var_q(D z_k[|h| v]) of every token, and the same for isotropic directions.

    Attributes:
        uniform: (...,) under the uniform distribution over the vocabulary, logits squared: structure.
        model: (...,) under the model's own softmax, nats per squared relative change: function.
        isotropic_uniform, isotropic_model: (...,) means over random directions.
        logit_variance: (...,) sum_k w_k Var_uniform(z_k), the scale to compare `isotropic_uniform` with.
    """

    uniform: Float[Tensor, "*batch"]
    model: Float[Tensor, "*batch"]
    isotropic_uniform: Float[Tensor, "*batch"]
    isotropic_model: Float[Tensor, "*batch"]
    logit_variance: Float[Tensor, "*batch"]

    @property
    def chi_uniform(self) -> Float[Tensor, "*batch"]:
        """`uniform` relative to an isotropic direction: 0 blind, 1 as visible as any; NaN where nothing is visible."""
        return _ratio(self.uniform, self.isotropic_uniform)

    @property
    def chi_model(self) -> Float[Tensor, "*batch"]:
        """The same under the model's softmax; small at a saturated softmax, blind or not. NaN where it underflows."""
        return _ratio(self.model, self.isotropic_model)

    @property
    def saturated(self) -> Bool[Tensor, "*batch"]:
        """The readout answers to no direction at all (a tanh far out), so that nothing can be called blind."""
        return ~(self.isotropic_uniform > BLIND * self.logit_variance)

    @property
    def blind(self) -> Bool[Tensor, "*batch"]:
        """The readout answers to other directions and not to this one: chi_uniform < 1e-6.

        An exact symmetry gives below 1e-20; a deferred 1 / |h|^2 crosses 1e-6 only because the state is large.
        """
        return ~self.saturated & (self.chi_uniform < BLIND)


def visibility(
    readout: StateMap,
    h: Float[Tensor, "*batch d"],
    direction: Float[Tensor, "*batch d"],
    *,
    generator: torch.Generator,
    probes: int = 8,
    penalty: StateMap | None = None,
) -> Visibility:
    """V_q(v) = Var_q(Dz[|h| v]) + (|h| v)^T H (|h| v), H the Hessian of a penalty on the state.

    The direction h itself has V = 0 behind a scale-free readout and V = Var_q(z) behind a raw one. Floor: 1e-28 of
    an isotropic direction's; the mean over `probes` directions is good to sqrt(2 / (probes rank)) or so.

    Args:
        readout: states (..., d) to logits (..., vocab), every token alone, float64 weights.
        h: states (..., d), float64: the tensor that is decoded, before any normalisation between loops or readout.
        direction: v (..., d), nonzero, of any length.
        generator: for the isotropic directions, on the device of `h`; not the seed that drew `h` itself.
        probes: number of isotropic directions.
        penalty: states (..., d) to its value for every token (...), as weighted in the loss.

    Raises:
        ValueError: bad tensors or shapes, or a derivative that finite differences do not confirm.

    Source: this project; theory/ P4.
    """
    return _visibility(logits_of_loops(_identity, readout, (1.0,)), (1.0,), h, direction, generator, probes, penalty)


def deferred_visibility(
    step: StateMap,
    readout: StateMap,
    h: Float[Tensor, "*batch d"],
    direction: Float[Tensor, "*batch d"],
    weights: Sequence[float],
    *,
    generator: torch.Generator,
    probes: int = 8,
) -> Visibility:
    """O_K(v) = sum_k w_k Var_q(D z_k[|h| v]), z_k the logits after k further loops, by one jvp through all of them.

    All tokens move together, each along its own direction. Behind scale-free readouts, the radial O_K of a pre-norm
    recurrence falls as 1 / |h|^2 and that of a random direction does not fall; with a normalisation between loops it
    is 0 (1e-31 seen).

    Args:
        step: one loop, from decoded state to decoded state, operation between loops included.
        readout: states (..., d) to logits (..., vocab).
        h: states (..., d), float64.
        direction: v (..., d), nonzero, of any length.
        weights: w_0, ..., w_K, not negative; w_0 is of the logits of `h` itself, (0, 1) asks for the next loop's only.
        generator, probes: as in `visibility`.

    Raises:
        ValueError: as `visibility`, or impossible weights.

    Source: this project; theory/ P4.
    """
    require_weights(weights)
    read = logits_of_loops(step, readout, weights)
    return _visibility(read, positive(weights), h, direction, generator, probes, None)


def activity(
    step: StateMap,
    h: Float[Tensor, "*batch d"],
    direction: Float[Tensor, "*batch d"],
    *,
    next_state: Float[Tensor, "*batch d"] | None = None,
) -> Float[Tensor, "*batch"]:
    """A(v) = |D step(h)[|h| v]| / |h|: what one loop makes of a relative change along v.

    Along h: 1 the scale is carried (exactly for one pre-norm sublayer, up to O(1 / |h|^2) for more), alpha damped by
    alpha, 0 removed (1e-15 seen). All tokens move together, each along its own direction.

    Args:
        step: one loop from decoded state to decoded state. Cut elsewhere, after a normalisation between loops, the
            answer is about another tensor and usually not 0.
        h: states (..., d), float64.
        direction: v (..., d), nonzero, of any length.
        next_state: the model's own next decoded state; if given, `step` must reproduce it, or it was cut elsewhere.

    Raises:
        ValueError: as `visibility`, or step(h) is not `next_state`.

    Source: this project; theory/ P4.
    """
    moved, derivative = directional_derivative(shape_keeping(step), h, relative_change(h, direction))
    if next_state is not None and not _close(moved, next_state):
        raise ValueError("step(h) is not next_state: it must lead from one decoded state to the next, not from a cut "
                         "on the other side of the operation between loops.")  # fmt: skip
    return derivative.norm(dim=-1) / h.norm(dim=-1)


def drive(step: StateMap, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """(|step(h)| - |h|) / |h|, the relative growth of the Euclidean norm in one loop; float64 where the device has it.

    Raises:
        ValueError: h is not a finite nonzero float tensor, or step changes its shape.
    """
    require_states(h)
    return widest(shape_keeping(step)(h)).norm(dim=-1) / widest(h).norm(dim=-1) - 1.0


def _identity(h: Tensor) -> Tensor:
    return h


def _visibility(
    read: StateMap,
    weights: Sequence[float],
    h: Tensor,
    direction: Tensor,
    generator: torch.Generator,
    probes: int,
    penalty: StateMap | None,
) -> Visibility:
    """`read` returns the logits of all loops that have a weight, (loops, ..., vocab)."""
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}.")
    delta = relative_change(h, direction)
    logits, tangent = directional_derivative(read, h, delta)
    require_logits(logits, h)
    loop_weights = logits.new_tensor(weights).view(-1, *[1] * (h.ndim - 1))
    p = logits.softmax(-1)

    def curvature(delta: Tensor, confirm: bool) -> Tensor | float:
        return 0.0 if penalty is None else _curvature(penalty, h, delta, confirm)

    def variances(tangent: Tensor, extra: Tensor | float) -> tuple[Tensor, Tensor]:
        mean = (p * tangent).sum(-1, keepdim=True)
        model = (loop_weights * (p * (tangent - mean).square()).sum(-1)).sum(0)
        uniform = (loop_weights * tangent.var(-1, correction=0)).sum(0)
        return uniform + extra, model + extra

    uniform, model = variances(tangent, curvature(delta, confirm=True))
    isotropic = []
    for n in range(probes):
        random = relative_change(h, torch.randn(h.shape, generator=generator, dtype=h.dtype, device=h.device))
        # The first is confirmed too: along a blind direction a silent zero and the truth agree.
        moved = directional_derivative(read, h, random)[1] if n == 0 else tangent_of(read, h, random)
        isotropic.append(torch.stack(variances(moved, curvature(random, confirm=False))))
    mean = torch.stack(isotropic).mean(0)
    return Visibility(
        uniform=uniform,
        model=model,
        isotropic_uniform=mean[0],
        isotropic_model=mean[1],
        logit_variance=(loop_weights * logits.var(-1, correction=0)).sum(0),
    )


def _curvature(penalty: StateMap, h: Tensor, delta: Tensor, confirm: bool) -> Tensor:
    """delta^T H delta of every token."""

    def slope(h: Tensor) -> Tensor:
        return torch.func.jvp(penalty, (h,), (delta,))[1]

    if not confirm:
        return tangent_of(slope, h, delta)
    value, _ = directional_derivative(penalty, h, delta)
    if value.shape != h.shape[:-1]:
        raise ValueError(f"penalty must give one value for every token, shape {tuple(h.shape[:-1])}.")
    return directional_derivative(slope, h, delta)[1]


def _close(moved: Tensor, other: Tensor) -> bool:
    return moved.shape == other.shape and bool((moved - other).norm() <= CONFIRMED * other.norm())


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0.0, part / whole, torch.nan)
