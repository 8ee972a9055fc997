"""The least and the most visible directions of all tokens' states together, without forming a matrix.

Visibility (`loopsight.observability`) is a quadratic form of the direction, and its matrix a Gramian, of observability
as control theory calls it. Its ends are found from products with it alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.derivatives import directional_derivative, pullback, require_adjoint, require_double_states
from loopsight.responses import (
    StateMap,
    logits_of_loops,
    positive,
    relative_change,
    require_logits,
    require_weights,
    tangent_of,
)

Distribution = Literal["uniform", "model"]


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
    require_weights(weights)
    require_double_states(h)
    if distribution not in get_args(Distribution):
        raise ValueError(f"unknown distribution {distribution!r}; known: {', '.join(get_args(Distribution))}.")
    if not 1 <= 2 * count <= h.numel() or iterations < 1:
        raise ValueError(
            f"count must lie in 1..{h.numel() // 2} and iterations be positive, got {count}, {iterations}."
        )
    read, size, kept = logits_of_loops(step, readout, weights), h.norm(dim=-1, keepdim=True), positive(weights)
    start = torch.randn(count + 2, h.numel(), generator=generator, dtype=h.dtype, device=h.device)
    start = start[: h.numel()]
    logits, pull = pullback(read, h)
    require_logits(logits, h)
    probe = torch.randn(logits.shape, generator=generator, dtype=h.dtype, device=h.device)
    require_adjoint(read, h, probe, pull(probe), "the logits")
    directional_derivative(read, h, relative_change(h, start[0].view_as(h)))
    loop_weights = logits.new_tensor(kept).view(-1, *[1] * (logits.ndim - 1))
    p = logits.softmax(-1) if distribution == "model" else torch.full_like(logits, 1 / logits.shape[-1])

    def apply(x: Tensor) -> Tensor:
        tangent = tangent_of(read, h, size * x.view_as(h))
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
