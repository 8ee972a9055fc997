"""Which parameters made the hidden norm grow over training steps: an account that is exact through second order.

The log norm of the last state is a function of the parameters. Along a path through parameter space its change is
the integral of <grad_theta log |h_K|, d theta>, a sum over tensors, and so over any groups of them. The trapezoid
rule between checkpoints is exact through second order in the step; its error, of third, is known as the true change is.

|h| is Euclidean. A change of log |h| by 1 is a factor of e.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.checks import require_floating_tensor, require_parameters, require_states

Parameters = Mapping[str, Tensor]
Quantity = Callable[[dict[str, Tensor]], Tensor]
"""Parameters to a scalar, the log norm itself, or to states (..., d), whose mean log |h| over tokens is then taken."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A change of log |h| shared out among groups of parameters.

    Attributes:
        contributions: by group, in units of log |h|; they sum to `predicted`.
        predicted: the trapezoid rule's total.
        actual: the true change. `predicted - actual` is the error of the path's resolution, nothing else.
    """

    contributions: dict[str, float]
    predicted: float
    actual: float

    @property
    def error(self) -> float:
        return self.predicted - self.actual


def log_norm_gradient(quantity: Quantity, parameters: Parameters) -> tuple[Tensor, dict[str, Tensor]]:
    """log |h| (mean over tokens) and its gradient, tensor by tensor.

    Args:
        quantity: parameters to the log norm, a scalar, or to states (..., d); differentiable in reverse mode.
        parameters: floating-point tensors by name.

    Raises:
        ValueError: no parameters, one that is not a finite float tensor, states that are zero or not finite, a log norm
            that is not finite, or no differentiable dependence.
    """
    if not parameters:
        raise ValueError("parameters must name at least one tensor.")
    require_parameters(parameters)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
    with torch.enable_grad():
        value = quantity(leaves)
        require_floating_tensor(value, "the log norm, or the states,")
        if value.ndim > 0:
            require_states(value, "states")
            value = value.norm(dim=-1).log().mean()
    if not torch.isfinite(value):
        raise ValueError(f"the log norm must be finite, got {value.item()}.")
    if not value.requires_grad:
        raise ValueError("the log norm does not depend on any parameter by differentiable operations.")
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(leaves, gradients, strict=True))


def norm_degrees(quantity: Quantity, parameters: Parameters) -> dict[str, float]:
    """<grad_i log |h|, theta_i> of every tensor: the degree of |h| in it.

    Euler's constraint: the writers' degrees sum to 1 exactly, however unequal each, so that scaling all writers by c
    scales |h| by c; readers' are free. It holds for epsilon 0, with an O(epsilon) leak otherwise.

    Args, Raises: as `log_norm_gradient`.

    Source: this project; theory/ P11 and P16.
    """
    _, gradients = log_norm_gradient(quantity, parameters)
    return {name: (gradients[name] * parameters[name].detach()).sum().item() for name in parameters}


def attribute_growth(
    quantity: Quantity,
    checkpoints: Sequence[Parameters],
    groups: Mapping[str, Sequence[str]] | None = None,
    segments: int = 1,
) -> Attribution:
    """sum over steps of <(grad_before + grad_after) / 2, theta_after - theta_before>, by group of tensors.

    A contribution is what the path did through those tensors; it is not what undoing them would undo. Look at `error`
    first: it must be small beside the contributions, otherwise pass more checkpoints, or subdivide.

    Args:
        quantity: parameters to the log norm, a scalar, or to states (..., d).
        checkpoints: parameters before, in between and after, at least two, same names and shapes.
        groups: names of the tensors of each group, every tensor in exactly one; each by itself when not given.
        segments: trapezoids per pair of checkpoints, along the straight line between them.

    Raises:
        ValueError: fewer than two checkpoints, differing names or shapes, groups that are no partition, segments
            below 1, and as `log_norm_gradient`.

    Source: this project; theory/ P16. Along one straight line: integrated gradients (arXiv 1703.01365).
    """
    if len(checkpoints) < 2:
        raise ValueError(f"checkpoints must hold at least two parameter dictionaries, got {len(checkpoints)}.")
    if segments < 1:
        raise ValueError(f"segments must be at least 1, got {segments}.")
    shapes = [{name: tuple(tensor.shape) for name, tensor in point.items()} for point in checkpoints]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("all checkpoints must have the same tensors, of the same shapes.")
    groups = {name: (name,) for name in checkpoints[0]} if groups is None else groups
    _require_partition(groups, checkpoints[0])

    first, before = log_norm_gradient(quantity, checkpoints[0])
    contributions, value = dict.fromkeys(groups, 0.0), first
    for start, end in itertools.pairwise(_subdivided(checkpoints, segments)):
        value, after = log_norm_gradient(quantity, end)
        for group, names in groups.items():
            contributions[group] += sum(_trapezoid(before[n], after[n], start[n], end[n]) for n in names)
        before = after
    return Attribution(
        contributions=contributions, predicted=sum(contributions.values()), actual=(value - first).item()
    )


def _trapezoid(before: Tensor, after: Tensor, start: Float[Tensor, "..."], end: Float[Tensor, "..."]) -> float:
    return ((before + after) * (end - start).detach()).sum().item() / 2


def _subdivided(checkpoints: Sequence[Parameters], segments: int) -> Iterator[Parameters]:
    """One point after the other: of a large model no more than a few are held."""
    yield checkpoints[0]
    for start, end in itertools.pairwise(checkpoints):
        for n in range(1, segments):
            yield {name: start[name].lerp(end[name], n / segments) for name in start}
        yield end


def _require_partition(groups: Mapping[str, Sequence[str]], parameters: Parameters) -> None:
    grouped = sorted(name for names in groups.values() for name in names)
    if grouped != sorted(parameters):
        missing, extra = sorted(set(parameters) - set(grouped)), sorted(set(grouped) - set(parameters))
        raise ValueError(
            f"groups must hold every tensor exactly once: missing {missing}, unknown {extra}, "
            f"{len(grouped)} names for {len(parameters)} tensors."
        )
