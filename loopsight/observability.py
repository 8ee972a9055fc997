"""What the logits see of a direction of the state (visibility), and what the recurrence keeps of it (activity).

A direction can be blind and carried, which is what lets a state grow unseen: neither number alone shows it. Both are
relative: a unit direction v moves a token's state by |h| v times a small number, h being the state that is decoded.
Visibility is a variance of logit changes, not a gradient: a calibrated raw readout has no mean gradient along h and
sees it well. Structure is judged under the uniform distribution over the vocabulary, since a saturated softmax makes
everything look blind; the model's own distribution tells what the loss feels at this state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loopsight.checks import require_states
from loopsight.derivatives import (
    differentiable_kernels,
    directional_derivative,
    pullback,
    require_adjoint,
    require_double_states,
)
from loopsight.protocol import unroll

StateMap = Callable[[Tensor], Tensor]
Distribution = Literal["uniform", "model"]

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
    return _visibility(lambda h: readout(h)[None], (1.0,), h, direction, generator, probes, penalty)


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
    _require_weights(weights)
    read = _logits_of_loops(step, readout, weights)
    return _visibility(read, _positive(weights), h, direction, generator, probes, None)


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
    moved, derivative = directional_derivative(_shape_keeping(step), h, _relative(h, direction))
    if next_state is not None and not _close(moved, next_state):
        raise ValueError("step(h) is not next_state: it must lead from one decoded state to the next, not from a cut "
                         "on the other side of the operation between loops.")  # fmt: skip
    return derivative.norm(dim=-1) / h.norm(dim=-1)


def drive(step: StateMap, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """(|step(h)| - |h|) / |h|, the relative growth of the Euclidean norm in one loop.

    Raises:
        ValueError: h is not a finite nonzero float tensor, or step changes its shape.
    """
    require_states(h)
    before, after = unroll(step, h, 1)
    return after.norm(dim=-1) / before.norm(dim=-1) - 1.0


@dataclass(frozen=True, kw_only=True)
class GramianExtremes:
    """Ends of the spectrum of W = sum_k w_k S Dz_k^T C_q Dz_k S, S = |h_t| on token t, over all tokens' states jointly.

    Every value is the visibility, summed over tokens, of a direction in hand: `least` values are upper bounds of the
    smallest eigenvalues and `most` values lower bounds of the largest, whether converged or not.

    Attributes:
        least, most: (count,) ascending from the least, descending from the most visible.
        least_directions, most_directions: (count, ..., d) relative changes of the state, of joint unit norm.
        least_residuals, most_residuals: (count,) |W v - value v|: an eigenvalue lies within so much of the value.
        converged: the residuals met the tolerance.
    """

    least: Float[Tensor, " count"]
    most: Float[Tensor, " count"]
    least_directions: Float[Tensor, "count *batch d"]
    most_directions: Float[Tensor, "count *batch d"]
    least_residuals: Float[Tensor, " count"]
    most_residuals: Float[Tensor, " count"]
    converged: bool


def gramian_extremes(
    step: StateMap,
    readout: StateMap,
    h: Float[Tensor, "*batch d"],
    weights: Sequence[float],
    *,
    generator: torch.Generator,
    distribution: Distribution = "uniform",
    count: int = 1,
    iterations: int = 64,
    tolerance: float = 1e-9,
) -> GramianExtremes:
    """The least and the most visible directions of a state, by block Lanczos on jvp followed by vjp.

    Below 1e-14 of the largest value nothing is told from 0. The blind directions of different tokens share the
    value 0: `count` of them are found, spanning no particular token's.

    Args:
        step, readout, h, weights: as in `deferred_visibility`; weights (1,) ask for the immediate readout alone.
        generator: for the starting block, on the device of `h`.
        distribution: `uniform` for structure, `model` for what the loss feels.
        count: directions wanted at either end.
        iterations: at most so many blocks of count + 2 directions, all of them kept for reorthogonalisation.
        tolerance: of the residuals, relative to the largest value.

    Raises:
        ValueError: as `deferred_visibility`; reverse mode that disagrees with the callables' own values, as it does
            through loops run without gradient; or a count that the state's dimension cannot hold.

    Source: this project; theory/ P4. Block Lanczos with full reorthogonalisation: Golub and Van Loan, section 10.3.
    """
    _require_weights(weights)
    require_double_states(h)
    if not 1 <= 2 * count <= h.numel() or iterations < 1:
        raise ValueError(
            f"count must lie in 1..{h.numel() // 2} and iterations be positive, got {count}, {iterations}."
        )
    read, size, kept = _logits_of_loops(step, readout, weights), h.norm(dim=-1, keepdim=True), _positive(weights)
    start = torch.randn(count + 2, h.numel(), generator=generator, dtype=h.dtype, device=h.device)
    start = start[: h.numel()]
    logits, pull = pullback(read, h)
    _require_logits(logits, h)
    probe = torch.randn(logits.shape, generator=generator, dtype=h.dtype, device=h.device)
    require_adjoint(read, h, probe, pull(probe), "the logits")
    directional_derivative(read, h, _relative(h, start[0].view_as(h)))
    loop_weights = logits.new_tensor(kept).view(-1, *[1] * (logits.ndim - 1))
    p = logits.softmax(-1) if distribution == "model" else torch.full_like(logits, 1 / logits.shape[-1])

    def apply(x: Tensor) -> Tensor:
        tangent = _tangent(read, h, size * x.view_as(h))
        centred = tangent - (p * tangent).sum(-1, keepdim=True)
        return (size * pull(loop_weights * p * centred)).detach().flatten()

    values, vectors, residuals, converged = _block_lanczos(apply, start, count, iterations, tolerance)
    directions = vectors.view(-1, *h.shape)
    return GramianExtremes(
        least=values[:count],
        most=values[-count:].flip(0),
        least_directions=directions[:count],
        most_directions=directions[-count:].flip(0),
        least_residuals=residuals[:count],
        most_residuals=residuals[-count:].flip(0),
        converged=converged,
    )


def _block_lanczos(
    apply: Callable[[Tensor], Tensor], start: Tensor, count: int, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Ritz values, vectors and residuals of the `count` smallest and `count` largest eigenvalues, ascending."""
    block = torch.linalg.qr(start.T)[0].T
    basis, images = start[:0], start[:0]
    while True:
        basis, images = torch.cat([basis, block]), torch.cat([images, torch.stack([apply(x) for x in block])])
        projected = basis @ images.T
        values, mixing = torch.linalg.eigh((projected + projected.T) / 2)
        ends = torch.cat([torch.arange(count), torch.arange(len(values) - count, len(values))])
        values, mixing = values[ends], mixing[:, ends].T
        vectors = mixing @ basis
        residuals = (mixing @ images - values[:, None] * vectors).norm(dim=-1)
        converged = bool((residuals <= tolerance * values[-1]).all()) and len(basis) >= 2 * count
        iterations -= 1
        block = images[-len(block) :]
        for _ in range(2):  # once is not enough in floating point
            block = block - (block @ basis.T) @ basis
        block = _orthonormal(block, floor=1e-13 * images.norm(dim=-1).max())[: basis.shape[1] - len(basis)]
        if converged or iterations == 0 or len(block) == 0:
            return values, vectors, residuals, converged


def _orthonormal(rows: Tensor, floor: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, without what is only rounding."""
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    return right[singular > floor]


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
    delta = _relative(h, direction)
    logits, tangent = directional_derivative(read, h, delta)
    _require_logits(logits, h)
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
        random = _relative(h, torch.randn(h.shape, generator=generator, dtype=h.dtype, device=h.device))
        # The first is confirmed too: along a blind direction a silent zero and the truth agree.
        moved = directional_derivative(read, h, random)[1] if n == 0 else _tangent(read, h, random)
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
        return _tangent(slope, h, delta)
    value, _ = directional_derivative(penalty, h, delta)
    if value.shape != h.shape[:-1]:
        raise ValueError(f"penalty must give one value for every token, shape {tuple(h.shape[:-1])}.")
    return directional_derivative(slope, h, delta)[1]


def _tangent(read: StateMap, h: Tensor, delta: Tensor) -> Tensor:
    """A jvp without its check, for a callable that another direction has confirmed."""
    with differentiable_kernels():
        return torch.func.jvp(read, (h.detach().clone(),), (delta,))[1].detach()


def _logits_of_loops(step: StateMap, readout: StateMap, weights: Sequence[float]) -> StateMap:
    """States to the logits of all loops that have a weight, (loops, ..., vocab)."""

    def read(h: Tensor) -> Tensor:
        states = unroll(step, h, len(weights) - 1)
        return torch.stack([readout(state) for state, weight in zip(states, weights, strict=True) if weight > 0.0])

    return read


def _relative(h: Tensor, direction: Tensor) -> Tensor:
    """|h| v, v the unit vector along `direction`."""
    require_double_states(h)
    require_double_states(direction, "direction")
    if direction.shape != h.shape:
        raise ValueError(f"direction must have the shape of h, {tuple(h.shape)}, got {tuple(direction.shape)}.")
    unit = direction / direction.norm(dim=-1, keepdim=True)
    return (h.norm(dim=-1, keepdim=True) * unit).detach()


def _shape_keeping(step: StateMap) -> StateMap:
    return lambda h: unroll(step, h, 1)[1]


def _positive(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(weight for weight in weights if weight > 0.0)


def _require_weights(weights: Sequence[float]) -> None:
    if not _positive(weights) or not all(0.0 <= weight < float("inf") for weight in weights):
        raise ValueError(f"weights must be finite, not negative and not all zero, got {tuple(weights)}.")


def _require_logits(logits: Tensor, h: Tensor) -> None:
    if logits.shape[1:-1] != h.shape[:-1] or logits.shape[-1] < 2:
        expected, got = (*h.shape[:-1], "vocab >= 2"), tuple(logits.shape[1:])
        raise ValueError(f"the readout must give logits of shape {expected}, got {got}.")


def _close(moved: Tensor, other: Tensor) -> bool:
    return moved.shape == other.shape and bool((moved - other).norm() <= CONFIRMED * other.norm())


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0.0, part / whole, torch.nan)
