"""Derivatives of user callables, checked against finite differences before they are believed.

A derivative that comes out zero may be an artefact: reverse mode returns 0 through loops run without gradient,
forward mode returns 0 through a detach and through some fused losses, and neither raises. Only the function's own
values cannot lie, so every derivative here is compared with them once, in float64.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from loopsight.checks import require_states

STEPS = (6e-6, 6e-8)  # relative to the direction: the cube root of float64's epsilon, and one for kinks and sharp maps
RELATIVE_ERROR = 1e-2  # a unit of a ReLU layer that changes side within a step costs less; an artefact costs far more
HELD_ENTRIES = 2**23  # 64 MiB of float64: of what is computed for several directions or losses at a time
ROUNDING = 100 * torch.finfo(torch.float64).eps  # of a function's value, relative to its size


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Only kernels that have forward-mode derivatives: torch's flash attention on CPU has none, nor has its fast path
    for encoder layers in evaluation mode. Torch warns of its own use of torch.jit at the first one."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


NO_FORWARD_MODE = (
    "Trying to use forward AD with",  # an operation of torch's own
    "to use it with forward mode AD",  # a custom autograd.Function without `jvp`
    "to use an autograd.Function with functorch transforms",  # one without `setup_context`
)
"""How torch says that an operation has no forward-mode derivative: the first two as NotImplementedError, the last as a
plain RuntimeError."""


@contextmanager
def forward_mode(what: str) -> Iterator[None]:
    """Turn torch's error about a missing forward-mode derivative into a ValueError; any other error is the callable's
    own and passes.

    Raises:
        ValueError: naming `what`.
    """
    try:
        yield
    except RuntimeError as cause:
        if not any(part in str(cause) for part in NO_FORWARD_MODE):
            raise
        raise ValueError(f"{what} uses an operation that has no forward-mode derivative in torch.") from cause


def require_double_states(h: Tensor, name: str = "h") -> None:
    """`require_states`, and float64: in float32 a finite difference has too few digits to confirm anything.

    Raises:
        ValueError: saying what is wrong.
    """
    require_states(h, name)
    if h.dtype != torch.float64:
        raise ValueError(f"{name} must be float64, got {h.dtype}: convert states and weights.")


def directional_derivative(
    function: Callable[[Tensor], Tensor], h: Float[Tensor, "*batch d"], direction: Float[Tensor, "*batch d"]
) -> tuple[Float[Tensor, "*out"], Float[Tensor, "*out"]]:
    """(f(h), Df(h)[direction]) by one jvp, confirmed by central differences, row by row of f's last dimension.

    Args:
        function: deterministic, state tensor to a float64 tensor of any shape.
        h: states (..., d), float64.
        direction: (..., d), float64, of about the size of `h`: the steps taken are 6e-6 and 6e-8 of it.

    Raises:
        ValueError: h or direction is no such tensor, the function has no forward-mode derivative, or the derivative
            disagrees with the function's own values (detach, fused loss without forward mode, dropout).
    """
    require_double_states(h)
    if direction.shape != h.shape or direction.dtype != h.dtype or not torch.isfinite(direction).all():
        raise ValueError(f"direction must be a finite float64 tensor of the shape of h, {tuple(h.shape)}.")
    h, direction = h.detach().clone(), direction.detach().clone()  # states made in inference mode have no derivatives

    def checked(h: Tensor) -> Tensor:
        value = function(h)
        require_double_value(value)
        return value

    with differentiable_kernels():
        with forward_mode("the callable"):
            value, derivative = torch.func.jvp(checked, (h,), (direction,))[:2]
        wrong = _rows(derivative).new_ones(_rows(derivative).shape[:-1], dtype=torch.bool)
        for step in STEPS:
            difference = _central_difference(function, h, direction, step)
            error = _rows(difference - derivative).norm(dim=-1)
            size = torch.maximum(_rows(difference).norm(dim=-1), _rows(derivative).norm(dim=-1))
            wrong &= ~(error <= RELATIVE_ERROR * size + ROUNDING / step * _rows(value).norm(dim=-1))
            if not wrong.any():
                return value.detach(), derivative.detach()
    raise ValueError(
        "the callable's forward-mode derivative disagrees with its finite differences: it must be deterministic "
        "(eval mode) and free of detached parts and of fused losses that have no forward mode."
    )


def pullback(
    function: Callable[[Tensor], Tensor], h: Float[Tensor, "*batch d"]
) -> tuple[Tensor, Callable[..., Float[Tensor, "*batch d"]]]:
    """(f(h), cotangent -> Df(h)^T cotangent), reverse mode; not checked: use `require_adjoint` on what comes out.

    By plain autograd, since many fused losses are functions that torch.func refuses. The second takes `last=True` with
    the last cotangent, to free the graph.

    Raises:
        ValueError: h is not a float64 state tensor, or f(h) not a float64 tensor.
    """
    require_double_states(h)
    h = h.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = function(h)
    require_double_value(value)

    def apply(cotangent: Tensor, last: bool = False) -> Tensor:
        if not value.requires_grad:
            return torch.zeros_like(h)
        pulled = torch.autograd.grad(value, h, cotangent, retain_graph=not last, allow_unused=True)[0]
        return torch.zeros_like(h) if pulled is None else pulled

    return value.detach(), apply


def require_adjoint(
    function: Callable[[Tensor], Tensor], h: Tensor, cotangent: Tensor, pulled: Tensor, what: str
) -> None:
    """Check <pulled, v> = <cotangent, Df(h)[v]>, Df by finite differences, along h, where blindness is looked for, and
    along a fixed random v: a hidden part may answer to the one and hardly to the other.

    Raises:
        ValueError: naming `what`, if reverse mode disagrees with the function's own values.
    """
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(h.shape, generator=generator, dtype=h.dtype).to(h.device)
    with differentiable_kernels():
        size = (cotangent * function(h)).abs().sum()
        for direction in (random * h.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True), h):
            reverse = (pulled * direction).sum()
            for step in STEPS:
                difference = (cotangent * _central_difference(function, h, direction, step)).sum()
                bound = RELATIVE_ERROR * torch.maximum(reverse.abs(), difference.abs())
                if (reverse - difference).abs() <= bound + ROUNDING / step * size:
                    break
            else:
                raise ValueError(
                    f"the reverse-mode derivative of {what} disagrees with its finite differences "
                    f"({reverse.item():.3g} against {difference.item():.3g}): it must be deterministic and hold no "
                    "no-grad region and no detach."
                )


def for_each(function: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, *, held: int = 1) -> tuple[Tensor, ...]:
    """A function's results for every row, stacked: by vmap, or one after the other where vmap cannot take it.

    Args:
        function: of a row, (...), to tensors of the same shapes for every row.
        rows: (n, ...), n at least 1.
        held: entries that are held meanwhile for a row; as many rows are computed at a time as `HELD_ENTRIES` allow.
    """
    together = max(1, HELD_ENTRIES // held)
    chunk_size = together if together < len(rows) else None  # one chunk would be copied
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # it is not worse than one by one
            results: tuple[Tensor, ...] = torch.func.vmap(function, chunk_size=chunk_size, randomness="same")(rows)
            return results
    except Exception:  # a callable that vmap cannot take may fail in any way
        return tuple(torch.stack(result) for result in zip(*map(function, rows), strict=True))


def require_double_value(value: object) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.float64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the callable must return a float64 tensor, got {got}: convert its weights.")


@torch.no_grad()
def _central_difference(function: Callable[[Tensor], Tensor], h: Tensor, direction: Tensor, step: float) -> Tensor:
    return (function(h + step * direction) - function(h - step * direction)) / (2 * step)


def _rows(x: Tensor) -> Tensor:
    return x[None] if x.ndim == 0 else x
