"""Which movements of a state a readout cannot see to first order: the kernel of its Jacobian, matrix-free.

Convention: all tokens of the state passed in form one vector, so a readout that treats T tokens separately has the
sum of their T blind subspaces.

The Jacobian J = C DR(h) (C subtracts the mean over classes) is never held whole. Its Gram matrix is collected a block
of columns at a time, J^T (J e_i) by forward then reverse mode. A Gram matrix knows singular values only down to 1e-8
of the largest, so the small ones are measured again on the few directions that it proposes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.derivatives import (
    HELD_ENTRIES,
    differentiable_kernels,
    directional_derivative,
    require_adjoint,
    require_double_states,
    require_double_value,
)

PROPOSED = 1e-5  # singular values below this are measured again; far above the Gram matrix's noise


@dataclass(frozen=True, kw_only=True)
class BlindSubspace:
    """The directions in which a readout's Jacobian vanishes.

    Attributes:
        basis: (dimension, ..., d) orthonormal, of the state's shape.
        singular_values: (n,) of J over `scale`, ascending, n entries of the state; the blind are at most `tolerance`.
            Look for the gap: rounding leaves 1e-16 to 1e-13, an epsilon in the normalisation its leak.
        scale: size of a visible singular value, in logits per unit of state.
        tolerance: what was called zero.
    """

    basis: Float[Tensor, "dimension *state"]
    singular_values: Float[Tensor, " n"]
    scale: float
    tolerance: float

    @property
    def dimension(self) -> int:
        return len(self.basis)

    def distance(self, direction: Float[Tensor, "*state"]) -> float:
        """sin of the angle between a direction and the subspace: 0 blind, 1 orthogonal to all that is blind.

        A random direction gives about sqrt(1 - dimension / n); a blind one about 1e-15 times the ratio of the largest
        to the smallest visible singular value.

        Raises:
            ValueError: the direction has another shape than the state, or is zero or not finite.
        """
        shape = self.basis.shape[1:]
        if direction.shape != shape:
            raise ValueError(f"the direction must have the state's shape {tuple(shape)}, got {tuple(direction.shape)}.")
        v, basis = direction.detach().double().flatten(), self.basis.flatten(1)
        if not v.isfinite().all() or not v.any():
            raise ValueError("the direction must be finite and not zero.")
        v = v / v.norm()
        # Twice, as in Gram-Schmidt: after once, rounding of the projection remains.
        for _ in range(2):
            v = v - (basis @ v) @ basis
        return v.norm().item()


def blind_subspace(
    readout: Callable[[Tensor], Tensor],
    h: Float[Tensor, "*state"],
    *,
    centred: bool = True,
    scale: float | None = None,
    tolerance: float = 1e-10,
) -> BlindSubspace:
    """ker C DR(h): dimension, orthonormal basis and singular values.

    Dimension = m + dim(ker(C W Gamma) with range of the norm's Jacobian): m = 1 behind RMSNorm (h itself), 2 behind
    LayerNorm (h and 1), 0 raw. The dimension alone does not tell a raw from a normalised readout where there are fewer
    classes than channels: ask for the `distance` of h as well. A softmax of full support sees all that J sees.

    A singular value is called zero relative to `scale`, never to the largest one: behind a normalisation of two
    channels J is nothing but rounding, and everything is blind.

    Args:
        readout: h to logits (..., classes), float64, made of operations that torch.func can differentiate and vmap.
        h: float64 states (..., d), a few thousand entries in all. Of 2048 with 50,000 classes: 35 s
            on one core and 1 GiB beside the head; time grows with their square times classes.
        centred: apply C, since a softmax does not see a shift of all logits. False for a loss that does.
        scale: what to compare with, |W Gamma| / rms(h) where these are known. By default |C R(h)| / |h|, or the largest
            singular value where that is larger.
        tolerance: largest relative singular value called blind; not below 1e-12.

    Raises:
        ValueError: h is not a finite nonzero float64 tensor; the readout's result is not float64 logits, or is not
            what its derivatives say; an impossible scale or tolerance.

    Source: this project; theory/ P1, P3.
    """
    require_double_states(h)
    if not 1e-12 <= tolerance < 1.0:
        raise ValueError(f"tolerance must lie in [1e-12, 1), got {tolerance}.")
    if scale is not None and not scale > 0.0:
        raise ValueError(f"scale must be positive, got {scale}.")
    with torch.no_grad(), differentiable_kernels():
        return _decomposed(_Jacobian(readout, h.detach().clone(), centred), scale, tolerance)


def _decomposed(jacobian: "_Jacobian", scale: float | None, tolerance: float) -> BlindSubspace:
    shape = jacobian.h.shape
    squares, vectors = torch.linalg.eigh(_symmetric(jacobian.squared(jacobian.identity())))
    values, vectors = squares.clamp(min=0.0).sqrt(), vectors.T.contiguous()
    if scale is None:
        scale = max(values[-1].item(), jacobian.logits_per_unit)
    if scale == 0.0:  # equal logits that nothing moves
        return BlindSubspace(basis=vectors.unflatten(1, shape), singular_values=values, scale=0.0, tolerance=tolerance)

    count = int((values <= max(PROPOSED * scale, 10 * tolerance * scale)).sum())
    values[:count], vectors[:count] = _measured_again(jacobian, vectors[:count], vectors[count:], squares[count:])
    values = values / scale
    blind = vectors[:count][values[:count] <= tolerance]
    return BlindSubspace(basis=blind.unflatten(1, shape), singular_values=values, scale=scale, tolerance=tolerance)


class _Jacobian:
    """J = C DR(h) and its transpose, acting on blocks of row vectors."""

    def __init__(self, readout: Callable[[Tensor], Tensor], h: Tensor, centred: bool) -> None:
        self.h = h

        def logits(h: Tensor) -> Tensor:
            z = readout(h)
            return z - z.mean(-1, keepdim=True) if centred else z

        self.logits = logits
        z = readout(h)
        require_double_value(z)
        if z.ndim == 0:
            raise ValueError("the readout must return logits (..., classes), got a scalar.")
        self.logits_per_unit = (logits(h).norm() / h.norm()).item()
        self.block = max(1, HELD_ENTRIES // max(z.numel(), h.numel()))
        self.pull = torch.func.vjp(logits, h)[1]
        self._require_true_derivatives()

    def __call__(self, v: Float[Tensor, "rows n"]) -> Tensor:
        """Rows J v, each of the logits' shape."""
        return torch.func.vmap(self._forward, randomness="same")(v.unflatten(1, self.h.shape))

    def _forward(self, v: Tensor) -> Tensor:
        return torch.func.jvp(self.logits, (self.h,), (v,))[1]

    def transposed(self, z: Tensor) -> Float[Tensor, "rows n"]:
        """Rows J^T z."""
        return torch.func.vmap(lambda z: self.pull(z)[0], randomness="same")(z).flatten(1)

    def identity(self) -> Float[Tensor, "n n"]:
        return torch.eye(self.h.numel(), dtype=self.h.dtype, device=self.h.device)

    def squared(self, v: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Rows J^T J v."""
        return torch.cat([self.transposed(self(rows)) for rows in v.split(self.block)])

    def _require_true_derivatives(self) -> None:
        """Forward and reverse mode against finite differences on a random direction: a detach is no blindness."""
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.h.shape, generator=generator, dtype=self.h.dtype).to(self.h.device)
        v = v * (self.h.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))
        cotangent = directional_derivative(self.logits, self.h, v)[1]
        require_adjoint(self.logits, self.h, cotangent, self.pull(cotangent)[0], "the readout")


def _measured_again(
    jacobian: _Jacobian, proposed: Tensor, visible: Tensor, visible_squares: Tensor
) -> tuple[Tensor, Tensor]:
    """Singular values and directions within span(proposed), with the accuracy of J and not of its square."""
    if len(proposed) == 0:
        return proposed.new_empty(0), proposed
    # The Gram matrix's rounding tilts the proposed directions into visible ones by up to 1e-6: tilt them back.
    tilt = (jacobian.squared(proposed) @ visible.T) / visible_squares
    proposed = torch.linalg.qr((proposed - tilt @ visible).T)[0].T
    squares, vectors = torch.linalg.eigh(_symmetric(jacobian.squared(proposed) @ proposed.T))
    return squares.clamp(min=0.0).sqrt(), vectors.T @ proposed


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.T) / 2
