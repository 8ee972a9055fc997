"""What an optimiser does to the joint Euclidean norm of parameters along which the loss is blind.

Where <gradient, w> = 0 at every step (theory/ P11 says for which tensors, `symmetry.euler_residual` measures it), the
squared norm n = |w|^2 obeys exact laws under SGD. Under Adam it does not: coordinatewise preconditioning breaks the
orthogonality, and only the decomposition of a step and a bound per coordinate remain.

Every n is the squared norm of all tensors together; every lr is the learning rate, wd the decoupled weight decay, each
the same for all of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loopsight.checks import require_parameters

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class NormChange:
    """A step w -> shrink w + D taken apart: n+ = decayed + cross + square, exactly, for any optimiser.

    Attributes:
        before, after: n at both ends.
        decayed: shrink^2 n.
        cross: 2 shrink <w, D>; 0 for SGD on a blind norm, of either sign for Adam.
        square: |D|^2, the growth that no orthogonality removes.
        cosine: <w, D> / (|w| |D|); NaN for a step that does not move.
    """

    before: float
    after: float
    decayed: float
    cross: float
    square: float
    cosine: float


def norm_change(before: Parameters, after: Parameters, *, lr: float = 0.0, wd: float = 0.0) -> NormChange:
    """Take one step of the joint norm apart; shrink = 1 - lr wd, D = after - shrink before.

    Args:
        before, after: the tensors of one joint norm around a step, same names and shapes. float64 copies give the
            law's residual; in float32 it is rounding at 1e-7 n.
        lr, wd: of decoupled weight decay; leave them out to see the whole step as D.

    Raises:
        ValueError: names or shapes that differ, none at all, or tensors that are not finite and floating-point.

    Source: this project; theory/ P12.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (before, after)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError("before and after must hold the same tensors, of the same shapes, and at least one.")
    require_parameters(before)
    require_parameters(after)
    shrink = 1.0 - lr * wd
    w, moved = (torch.cat([tensors[name].detach().flatten() for name in before]) for tensors in (before, after))
    step = moved - shrink * w
    n, cross, square = (w @ w).item(), (w @ step).item(), (step @ step).item()
    return NormChange(
        before=n,
        after=(moved @ moved).item(),
        decayed=shrink**2 * n,
        cross=2.0 * shrink * cross,
        square=square,
        cosine=cross / math.sqrt(n * square) if n * square > 0.0 else math.nan,
    )


def sgd_square_norm(n: float, square_gradient: float, *, lr: float, wd: float = 0.0) -> float:
    """n+ = (1 - lr wd)^2 n + lr^2 |g|^2, exact for SGD without momentum where <g, w> = 0.

    Clipping keeps it, with the clipped gradient. Coupled decay (torch's `SGD(weight_decay=)`) is the same without
    momentum.

    Raises:
        ValueError: a squared norm that is negative or not finite.

    Source: this project; theory/ P12.
    """
    _require_squares(n, square_gradient)
    return (1.0 - lr * wd) ** 2 * n + lr**2 * square_gradient


def heavy_ball_square_norms(
    n: float, square_velocities: Sequence[float], *, lr: float | Sequence[float], momentum: float
) -> list[float]:
    """n after every step of v <- momentum v + g, w <- w - lr_t v, from |v_t|^2 alone; exact where <g, w> = 0.

    n+ = n + lr_t^2 |v_t|^2 + 2 lr_t sum_{j >= 1} momentum^j lr_{t-j} |v_{t-j}|^2; not for Nesterov's variant, nor with
    decay.

    Args:
        lr: of all steps, or one for each.

    Raises:
        ValueError: a squared norm that is negative or not finite, a momentum outside [0, 1), or not one learning rate
            for each step.

    Source: this project; theory/ P12.
    """
    _require_squares(n, *square_velocities)
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}.")
    rates = lr if isinstance(lr, Sequence) else [lr] * len(square_velocities)
    if len(rates) != len(square_velocities):
        raise ValueError(
            f"expected one learning rate or {len(square_velocities)}, one for each step, got {len(rates)}."
        )
    norms, memory = [], 0.0
    for rate, square in zip(rates, square_velocities, strict=True):
        n += rate**2 * square + 2.0 * rate * memory
        memory = momentum * (memory + rate * square)
        norms.append(n)
    return norms


def equilibrium_norm(scale_free_gradient: float, *, lr: float, wd: float) -> float:
    """|w|* = (lr G^2 / (wd (2 - lr wd)))^(1/4): where growth by SGD's steps and decay balance.

    A fixed point for constant G = |g| |w|, which does not depend on |w|; approached at rate 4 lr wd per step. It says
    nothing of data or likelihood, and needs G stationary: when the loss still falls, G falls with it.

    Raises:
        ValueError: decay that is not in 0 < lr wd < 2, without which nothing balances, or G not positive.

    Source: this project; theory/ P12.
    """
    _require_decay(lr, wd)
    if not scale_free_gradient > 0.0:
        raise ValueError(f"the scale-free gradient |g| |w| must be positive, got {scale_free_gradient}.")
    return (lr * scale_free_gradient**2 / (wd * (2.0 - lr * wd))) ** 0.25


def equilibrium_angle(*, lr: float, wd: float) -> float:
    """arccos(1 - lr wd): the angle by which w turns per SGD step at the equilibrium norm.

    Radians. About sqrt(2 lr wd); independent of the gradient.

    Raises:
        ValueError: decay that is not in 0 < lr wd < 2.

    Source: this project; theory/ P12.
    """
    _require_decay(lr, wd)
    x = lr * wd
    return math.atan2(math.sqrt(x * (2.0 - x)), 1.0 - x)  # arccos loses half the digits of a small angle


def adam_step_bound(beta1: float, beta2: float, step: int | None = None) -> float:
    """C with |update of a coordinate| <= C lr at Adam's step T, whatever the gradients.

    C_T = (1 - beta1) / sqrt(1 - beta2) sqrt((1 - r^T) / (1 - r)) sqrt(1 - beta2^T) / (1 - beta1^T) with
    r = beta1^2 / beta2, attained by g_i = (beta1 / beta2)^(T - i).
    7.27 for (0.9, 0.999) as T grows, exactly 1 at the first step; "one lr per step" is false. Decoupled decay comes on
    top, Adam's epsilon only shortens steps.

    Args:
        step: T, from 1; the limit of many steps when not given.

    Raises:
        ValueError: a beta outside [0, 1), beta2 zero, a step below 1, or no limit because beta1^2 >= beta2.

    Source: Cauchy-Schwarz; this project, theory/ P12.
    """
    if not (0.0 <= beta1 < 1.0 and 0.0 < beta2 < 1.0):
        raise ValueError(f"beta1 must lie in [0, 1) and beta2 in (0, 1), got {beta1} and {beta2}.")
    if step is not None and step < 1:
        raise ValueError(f"Adam's steps are counted from 1, got {step}.")
    ratio = beta1**2 / beta2
    if step is None:
        if ratio >= 1.0:
            raise ValueError(f"with beta1^2 >= beta2 ({beta1}, {beta2}) no bound holds for all steps; pass a step.")
        return (1.0 - beta1) / math.sqrt((1.0 - beta2) * (1.0 - ratio))
    geometric = math.fsum(ratio**j for j in range(step))
    corrections = math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)
    return (1.0 - beta1) / math.sqrt(1.0 - beta2) * math.sqrt(geometric) * corrections


def _require_squares(*squares: float) -> None:
    wrong = [square for square in squares if not 0.0 <= square < math.inf]
    if wrong:
        raise ValueError(f"squared norms must be finite and not negative, got {wrong[0]}.")


def _require_decay(lr: float, wd: float) -> None:
    if not 0.0 < lr * wd < 2.0:
        raise ValueError(f"an equilibrium needs 0 < lr wd < 2, got lr {lr} and wd {wd}.")
