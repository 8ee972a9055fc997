"""What a loss or a readout sees of a state's own scale: gradient fraction, derivative, epsilon leak, degree.

Convention: every leading index of a state tensor is a token, and each token's state has its own radius.

A derivative of zero is not blindness: a detach or a fused kernel can hide a derivative that is there. So what is
differentiated here is also moved, h -> c h, and the finite movement decides.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from loopsight.checks import require_floating_tensor, require_states
from loopsight.derivatives import (
    differentiable_kernels,
    directional_derivative,
    forward_mode,
    require_double_states,
    require_double_value,
)

EpsilonForm = Literal["inside_root", "added_to_rms", "clamp"]

LOWER_PRECISION = (torch.float32, torch.bfloat16, torch.float16)


def radial_gradient_fraction(loss: Callable[[Tensor], Tensor], h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """r = |<g, h>| / (|g| |h|) of every token's state, g = gradient of `loss` at `h`.

    0 means that the loss does not see the state's scale to first order; 1 that it sees nothing else; a random
    direction gives about sqrt(2 / (pi d)). The floor is about 1e-16 in float64, 1e-8 in float32 and 5e-4 in
    bfloat16, so only float64 (parameters included) can tell an epsilon leak from rounding. A token whose gradient
    is exactly zero, or NaN, has no fraction: NaN, never 0. `in_float64` recomputes a low-precision model.

    Args:
        loss: state tensor to scalar, differentiable in reverse mode.
        h: states, (..., d), any floating dtype; computed in that dtype.

    Returns:
        Fractions in [0, 1], shape (...).

    Raises:
        ValueError: h is not a finite nonzero float tensor, or the loss is not a differentiable scalar of h.

    Source: arXiv 2606.24898, section 5 (radial gradient fraction).
    """
    require_states(h)
    h = h.detach().clone().requires_grad_()  # a clone, since states made in inference mode cannot require gradients
    with torch.enable_grad():
        value = loss(h)
    require_floating_tensor(value, "the loss")
    if value.ndim != 0:
        raise ValueError(f"the loss must be a scalar, got shape {tuple(value.shape)}.")
    gradient = torch.autograd.grad(value, h, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise ValueError("the loss does not depend on h by differentiable operations (a no-grad region or a detach?).")
    return fraction_along(gradient, h.detach())


def fraction_along(gradient: Float[Tensor, "*batch d"], h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """|<g, h>| / (|g| |h|) of every token, from a gradient in hand, in the dtype given; NaN where it is zero or NaN."""
    gradient, h = (x / x.abs().amax(-1, keepdim=True) for x in (gradient, h))  # squares of a small one underflow
    fraction = (gradient * h).sum(-1).abs() / (gradient.norm(dim=-1) * h.norm(dim=-1))
    return fraction.clamp(max=1.0)  # rounding can carry a radial gradient just above 1


def radial_derivative(f: Callable[[Tensor], Tensor], h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*out"]:
    """Df(h)[h] = d f(c h) / d log c at c = 1, all tokens rescaled together, by forward mode.

    In the units of f per e-fold of scale. Of a blind f rounding is left, about 1e-16 |f|; a readout linear in the state
    gives f itself, a loss behind it the sum of its tokens' logit gaps (see theory/ P6). Confirmed by finite rescaling.

    Args:
        f: float64 states (..., d) to a float64 tensor, a readout (per-token logits) or a loss (scalar).
        h: states (..., d), float64; `in_float64` converts a model.

    Returns:
        Shape of f(h).

    Raises:
        ValueError: h is not a finite nonzero float64 tensor; f has no forward-mode derivative, or one that its own
            values contradict (a detach, a fused loss, dropout).

    Source: this project; theory/ P2 (d).
    """
    return directional_derivative(f, h, h)[1]


@dataclass(frozen=True, kw_only=True)
class Degree:
    """Homogeneity of a readout at every token: p such that R(c h) = c^p R(h) to first order in log c.

    Attributes:
        by_action: p from readouts of rescaled states: the one to believe.
        by_jvp: p from forward mode; equal up to rounding, or the readout hides its derivative.
        defect: |R(2 h) - 2^p R(h)| / |R(2 h)|: 0 for a homogeneous readout (raw, normalised), not for one with a bias
            or a tanh, whose p depends on the scale.
    """

    by_action: Float[Tensor, "*batch"]
    by_jvp: Float[Tensor, "*batch"]
    defect: Float[Tensor, "*batch"]


def degree(readout: Callable[[Tensor], Tensor], h: Float[Tensor, "*batch d"], *, centred: bool = True) -> Degree:
    """p_eff = <C Dz[h], C z> / |C z|^2 of the logits z, C subtracting their mean over classes.

    1: the readout sees the scale as a linear map does; 0: logits keep their size (for logits that only turn, `defect`
    is then large). The floor of `by_action` is about 1e-12, of `by_jvp` 1e-16. NaN where all logits are equal.

    Args:
        readout: float64 states (..., d) to logits (..., classes); all tokens are rescaled together.
        h: states (..., d), float64; `in_float64` converts a model.
        centred: apply C, since a softmax does not see the mean logit. Without it, any map of states to vectors has a
            degree: a normalisation's, before gain and bias, is its `epsilon_leak`.

    Raises:
        ValueError: h is not a finite nonzero float64 tensor; the readout returns no float64 vector for each token, or
            has no forward-mode derivative.

    Source: this project; theory/ P2 (d), P4.
    """
    require_double_states(h)
    h = h.detach().clone()
    z = readout(h)
    require_double_value(z)
    z = z.detach()
    if z.ndim == 0 or z.shape[:-1] != h.shape[:-1]:
        shapes = f"{tuple(h.shape)} to {tuple(z.shape)}"
        raise ValueError(f"the readout must give each token a vector, (..., d) to (..., classes), got {shapes}.")

    def centre(z: Tensor) -> Tensor:
        return z - z.mean(-1, keepdim=True) if centred else z

    z = centre(z)

    def component(derivative: Tensor) -> Tensor:
        return (centre(derivative) * z).sum(-1) / z.square().sum(-1)

    by_action = component(_rescaled(readout, h))
    by_jvp = component(_forward(readout, h))
    with torch.no_grad():
        doubled = centre(readout(2 * h))
    defect = (doubled - 2 ** by_action[..., None] * z).norm(dim=-1) / doubled.norm(dim=-1)
    return Degree(by_action=by_action, by_jvp=by_jvp, defect=defect)


@torch.no_grad()
def _rescaled(readout: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """Dz[h] from readouts of (1 - 2 t) h, ..., (1 + 2 t) h, to order t^4: t balances truncation and rounding."""
    t = torch.finfo(h.dtype).eps ** 0.2
    far, near = (readout((1 + n * t) * h) - readout((1 - n * t) * h) for n in (2, 1))
    return (8 * near - far) / (12 * t)


def _forward(readout: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """Dz[h] as forward mode says it: not confirmed, since `Degree` shows both."""
    with differentiable_kernels(), forward_mode("the readout"):
        return torch.func.jvp(readout, (h,), (h,))[1].detach()


def epsilon_leak(
    h: Float[Tensor, "*batch d"], eps: float, form: EpsilonForm = "inside_root", *, centred: bool = False
) -> Float[Tensor, "*batch"]:
    """rho predicted: Dy(h)[h] = rho y for a normalisation y with epsilon, so that <grad_h l, h> = rho <grad_y l, y>.

    0: blind; 1: the normalisation passes the scale as a linear map does. Decays with the state's mean square m as

        inside_root   h / sqrt(m + eps)         eps / (m + eps)
        added_to_rms  h / (sqrt(m) + eps)       eps / (sqrt(m) + eps)
        clamp         h / max(sqrt(m), eps)     0 above the clamp, 1 below it

    `torch.nn.functional.normalize` is the clamp with eps / sqrt(d), as its norm is Euclidean.

    Args:
        h: states (..., d), any floating dtype; the result is at least float32.
        eps: not negative, in the units of m, of sqrt(m), of sqrt(m).
        form: where the epsilon stands.
        centred: LayerNorm, m = variance.

    Raises:
        ValueError: h is not a finite nonzero float tensor, eps is negative, or the form is unknown.

    Source: this project; theory/ P2 (a), (c). To measure it: `degree(normalise, h, centred=False)`.
    """
    require_states(h)
    if not eps >= 0.0:
        raise ValueError(f"eps must not be negative, got {eps}.")
    wide = h.to(torch.promote_types(h.dtype, torch.float32))  # a float16 square underflows, or overflows
    mean_square = (wide - wide.mean(-1, keepdim=True) if centred else wide).square().mean(-1)
    match form:
        case "inside_root":
            return eps / (mean_square + eps)
        case "added_to_rms":
            return eps / (mean_square.sqrt() + eps)
        case "clamp":
            return (mean_square.sqrt() < eps).to(mean_square.dtype)
    raise ValueError(f"unknown form {form!r}; known: inside_root, added_to_rms, clamp.")


@contextmanager
def in_float64(module: nn.Module) -> Iterator[nn.Module]:
    """A float64 copy of a module, in a context that keeps its computation in float64.

    Converting parameters is not enough: many normalisations cast their input to float32 and back, and a leak of 1e-12
    stays lost. Inside the context such a cast of a float64 tensor leaves it in float64, in forward and reverse mode,
    and any other operation that lowers a float64 tensor's precision raises. The original module, its modes and tied
    weights are untouched. Needs the memory of a float64 copy.

        with in_float64(model) as exact:
            r = radial_gradient_fraction(lambda h: loss(exact.readout(h)), h.double())

    Args:
        module: parameters in any dtype. Tensors it keeps outside parameters and buffers stay as they are.

    Raises:
        ValueError: it is no module; or, in the context, an operation with a float64 input has an output of a lower
            floating dtype.

    Source: this project (architecture of instruments: r in float32 cannot certify a leak).
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"expected a torch.nn.Module, got {type(module).__name__}.")
    with _Float64():
        yield copy.deepcopy(module).double()


class _Float64(TorchDispatchMode):
    """Casts below float64 do nothing; everything else that loses precision raises."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        from_float64 = any(x.dtype == torch.float64 for x in inputs)
        if from_float64 and func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in LOWER_PRECISION:
            kwargs["dtype"] = torch.float64
        result = func(*args, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        if from_float64 and any(isinstance(x, Tensor) and x.dtype in LOWER_PRECISION for x in outputs):
            raise ValueError(f"{func} takes a float64 tensor and returns a lower precision; let it compute in float64.")
        return result
