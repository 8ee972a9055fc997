"""Scaling symmetries of a model's parameters: which tensors can be rescaled together with no logit moving.

One unknown per tensor, its degree: tensor i is scaled by c^degree_i. What the network does then becomes linear
equations between degrees. A product adds degrees, a sum needs equal ones, a normalisation returns degree 0, and
whatever enters a softmax, an activation function or the loss must have degree 0. Their solutions are the scaling
symmetries; each makes sum_i degree_i <grad_i L, theta_i> vanish for every batch (Euler) and is conserved by gradient
flow. The equations are the user's reading of the code, so `measured_symmetries` counts the symmetries anew from
gradients alone: equal counts mean that no symmetry between whole tensors was overlooked or invented.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.checks import require_floating_tensor, require_parameters
from loopsight.derivatives import for_each
from loopsight.precision import widest

Parameters = Mapping[str, Tensor]
Symmetry = Mapping[str, int]
"""ScalingDegree of every tensor; a tensor that is not named has degree 0."""


@dataclass(frozen=True)
class ScalingDegree:
    """Degree of a quantity: a linear form in the tensors' unknown degrees.

    A product of quantities has the sum of their degrees, a power a multiple: x^2 y is
    `2 * scaling_degree("x") + scaling_degree("y")`.

    Attributes:
        coefficients: by tensor name; tensors not named have coefficient 0.
    """

    coefficients: Mapping[str, Fraction]

    def __add__(self, other: "ScalingDegree") -> "ScalingDegree":
        names = {**self.coefficients, **other.coefficients}
        return ScalingDegree({n: self.coefficients.get(n, Fraction(0)) + other.coefficients.get(n, 0) for n in names})

    def __sub__(self, other: "ScalingDegree") -> "ScalingDegree":
        return self + -1 * other

    def __rmul__(self, power: int | Fraction) -> "ScalingDegree":
        return ScalingDegree({name: power * value for name, value in self.coefficients.items()})


INVARIANT = ScalingDegree({})
"""ScalingDegree 0: the output of a normalisation, of a softmax, or a constant."""


def scaling_degree(tensor: str) -> ScalingDegree:
    """The unknown degree of one parameter tensor."""
    return ScalingDegree({tensor: Fraction(1)})


def added(*terms: ScalingDegree) -> list[ScalingDegree]:
    """Equations of a sum: every term has the first one's degree.

    Raises:
        ValueError: no term at all.
    """
    if not terms:
        raise ValueError("a sum needs at least one term.")
    return [term - terms[0] for term in terms[1:]]


def scaling_symmetries(tensors: Sequence[str], equations: Iterable[ScalingDegree]) -> list[dict[str, int]]:
    """A basis of all degrees that meet every equation `form = 0`, in exact rational arithmetic.

    Args:
        tensors: names of the parameter tensors, all different, each an unknown.
        equations: linear forms that must vanish: a quantity that must be invariant, or those of `added`.

    Returns:
        One dictionary per symmetry, a degree for every tensor, coprime integers; no entry if there is none.

    Raises:
        ValueError: a name occurs twice, or an equation speaks of a tensor that is not listed.

    Source: this project; theory/ P13.
    """
    if len(set(tensors)) != len(tensors):
        raise ValueError("a tensor is listed twice; every name is one unknown degree.")
    rows = []
    for equation in equations:
        unknown = sorted(set(equation.coefficients) - set(tensors))
        if unknown:
            raise ValueError(f"an equation speaks of the tensors {unknown}, which are not among those listed.")
        rows.append([Fraction(equation.coefficients.get(name, 0)) for name in tensors])
    rows, pivots = _reduced(rows, len(tensors))
    basis = []
    for free in (column for column in range(len(tensors)) if column not in pivots):
        solution = [Fraction(0)] * len(tensors)
        solution[free] = Fraction(1)
        for row, pivot in zip(rows, pivots, strict=True):
            solution[pivot] = -row[free]
        common = math.lcm(*(value.denominator for value in solution))
        basis.append({name: int(common * value) for name, value in zip(tensors, solution, strict=True)})
    return basis


def _reduced(rows: list[list[Fraction]], width: int) -> tuple[list[list[Fraction]], list[int]]:
    """Reduced row echelon form: the nonzero rows and their pivot columns."""
    rows = [*rows]
    pivots: list[int] = []
    for column in range(width):
        rank = len(pivots)
        found = next((n for n in range(rank, len(rows)) if rows[n][column] != 0), None)
        if found is None:
            continue
        rows[rank], rows[found] = rows[found], rows[rank]
        rows[rank] = [value / rows[rank][column] for value in rows[rank]]
        for n in range(len(rows)):
            if n != rank and rows[n][column] != 0:
                factor = rows[n][column]
                rows[n] = [value - factor * top for value, top in zip(rows[n], rows[rank], strict=True)]
        pivots.append(column)
    return rows[: len(pivots)], pivots


def rescaled(parameters: Parameters, symmetry: Symmetry, factor: float) -> dict[str, Tensor]:
    """theta_i -> factor^degree_i theta_i: the finite transformation, which must leave every logit where it is.

    With a power of two as `factor` it is exact in binary floating point.

    Raises:
        ValueError: the symmetry names a tensor that there is not or that is not finite and floating-point, or the
            factor is not positive and finite.
    """
    _require_named(parameters, symmetry)
    if not 0.0 < factor < math.inf:
        raise ValueError(f"factor must be positive and finite, got {factor}.")
    return {name: factor ** symmetry.get(name, 0) * tensor for name, tensor in parameters.items()}


def conserved_quantity(parameters: Parameters, symmetry: Symmetry) -> Float[Tensor, ""]:
    """sum_i degree_i |theta_i|^2, constant under gradient flow of any loss with this symmetry.

    Raises:
        ValueError: the symmetry names no tensor at all, one that there is not, or one that is not finite and
            floating-point.
    """
    _require_named(parameters, symmetry)
    return torch.stack([degree * parameters[name].square().sum() for name, degree in symmetry.items()]).sum()


def euler_residual(parameters: Parameters, gradients: Parameters, symmetry: Symmetry) -> float:
    """|sum_i degree_i <g_i, theta_i>| / (|g| |degree theta|) over the tensors of nonzero degree.

    0 for a symmetry of the loss, with a floor near 1e-16 in float64 and 1e-8 in float32; 1 where the gradient points
    along the transformation; about sqrt(2 / (pi n)) for a random direction among n parameters. NaN, never 0, where
    these tensors have no gradient at all.

    Args:
        parameters: tensors by name.
        gradients: of the loss, same names and shapes.
        symmetry: candidate degrees by name, not all zero.

    Raises:
        ValueError: a name without tensor or gradient, shapes that differ, NaN or integer tensors, or all degrees zero.

    Source: Euler's theorem; this project, theory/ P11 and P13.
    """
    _require_named(parameters, symmetry)
    _require_named(gradients, symmetry)
    names = [name for name, value in symmetry.items() if value != 0]
    for name in names:
        if parameters[name].shape != gradients[name].shape:
            shapes = tuple(parameters[name].shape), tuple(gradients[name].shape)
            raise ValueError(f"the gradient of '{name}' must have its shape {shapes[0]}, got {shapes[1]}.")
    if not names:
        raise ValueError("all degrees are zero: the identity has nothing to test.")
    # Squares of what a lower precision holds overflow there, and products of small numbers underflow.
    moved = torch.cat([(symmetry[name] * widest(parameters[name])).flatten() for name in names])
    gradient = torch.cat([widest(gradients[name]).flatten() for name in names])
    cosine = (moved / moved.norm()) @ (gradient / gradient.norm())
    return cosine.abs().clamp(max=1.0).item()


@dataclass(frozen=True, kw_only=True)
class MeasuredSymmetries:
    """The scaling symmetries between whole tensors, counted from gradients alone.

    Attributes:
        tensors: names, the order of the columns.
        singular_values: of <grad_i L_b, theta_i> / max_b |grad_i L_b| |theta_i|, largest first.
        dimension: how many of them are zero to rounding: the number of independent symmetries.
        smallest_visible: smallest singular value that is not counted, relative to the largest, or to 1 if that is
            less; infinite when all are counted.
        largest_blind: largest one that is, relative to the same; 0 when there is none. The count can be trusted where
            decades lie between these two.
        degrees: (dimension, tensors) orthonormal rows that span the symmetries' degrees.
    """

    tensors: tuple[str, ...]
    singular_values: Float[Tensor, " tensors"]
    dimension: int
    smallest_visible: float
    largest_blind: float
    degrees: Float[Tensor, "dimension tensors"]


def measured_symmetries(
    losses: Callable[[dict[str, Tensor]], Tensor], parameters: Parameters, tolerance: float = 1e-10
) -> MeasuredSymmetries:
    """Null space of X[b, i] = <grad_i L_b, theta_i>, b = batch, i = tensor: the completeness test of a degree system.

    Every scaling symmetry lies in this null space, whatever the batches. The converse needs batches that differ: a
    symmetry of the data at hand (one token has no attention to share out) is counted too, so use varied batches, more
    of them than tensors.

    Args:
        losses: parameters to one loss per batch, (batches,), differentiable in reverse mode.
        parameters: float64 tensors by name. Pass slices under names of their own to look inside a tensor.
        tolerance: singular values below `tolerance` times the largest, or 1 if that is less, count as zero.

    Raises:
        ValueError: a tensor is not float64, has no gradient or is zero, fewer losses than tensors, or NaN among them.

    Source: this project; theory/ P13.
    """
    for name, tensor in parameters.items():
        if tensor.dtype != torch.float64:
            raise ValueError(f"'{name}' must be float64, got {tensor.dtype}: rounding would hide the null space.")

    def checked(parameters: dict[str, Tensor]) -> Tensor:
        values = losses(parameters)
        require_floating_tensor(values, "what losses returns")
        return values

    values, pullback, *_ = torch.func.vjp(checked, {name: tensor.detach() for name, tensor in parameters.items()})
    if values.ndim != 1 or len(values) < len(parameters):
        raise ValueError(
            f"losses must return at least as many losses (batches,) as there are tensors, {len(parameters)}, "
            f"got shape {tuple(values.shape)}."
        )
    if not torch.isfinite(values).all():
        raise ValueError("a loss is NaN or infinite; pass parameters of a model that has not diverged.")

    def of_batch(cotangent: Tensor) -> tuple[Tensor, Tensor]:
        (gradients,) = pullback(cotangent)
        products = torch.stack([(gradients[n] * t).sum() for n, t in parameters.items()])
        return products, torch.stack([gradients[n].norm() * t.norm() for n, t in parameters.items()])

    entries = sum(tensor.numel() for tensor in parameters.values())
    rows, scales = for_each(of_batch, torch.eye(len(values), dtype=values.dtype), held=entries)
    # In units of |grad| |theta| rounding is the same for every tensor, however unequal they are.
    scale = scales.amax(0)
    for name, largest in zip(parameters, scale.tolist(), strict=True):
        if largest == 0.0:
            raise ValueError(f"'{name}' is zero or has no gradient in any batch: unused, or behind a no-grad region.")
    decomposition = torch.linalg.svd(rows.double() / scale, full_matrices=True)
    singular, right = decomposition.S, decomposition.Vh
    # Where every tensor's scale is blind the largest is rounding too; rows are cosines, so that 1 is the most there is.
    relative = singular / singular[0].clamp(min=1.0)
    dimension = int((relative <= tolerance).sum())
    visible = len(parameters) - dimension
    return MeasuredSymmetries(
        tensors=tuple(parameters),
        singular_values=singular,
        dimension=dimension,
        smallest_visible=relative[visible - 1].item() if visible else math.inf,
        largest_blind=relative[visible].item() if dimension else 0.0,
        degrees=torch.linalg.qr((right[visible:] / scale).T).Q.T,
    )


def _require_named(tensors: Parameters, symmetry: Symmetry) -> None:
    missing = sorted(set(symmetry) - set(tensors))
    if missing or not symmetry:
        raise ValueError(f"the symmetry must name tensors that there are, but {missing or 'none'} is named.")
    require_parameters({name: tensors[name] for name in symmetry})
