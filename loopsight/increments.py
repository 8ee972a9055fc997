"""The Euclidean norm gained by one loop and by K of them: what is exact for any map, and what can be predicted.

Exact for any step, linear ones too (so that seeing it in a trained model tests nothing): with s = |h|, u = h / s and
b = step(h) - h split into a = <u, b> and beta = |b - a u|,

    |step(h)| = hypot(s + a, beta),    angle between h and step(h) = atan2(beta, s + a).

A prediction needs b to depend on the direction only (`loopsight.growth.regime_number`), and several residual steps
("sublayers") in a loop need the second-order term that `second_order_step` measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.checks import require_states
from loopsight.derivatives import differentiable_kernels, forward_mode, require_double_states
from loopsight.growth import LARGE
from loopsight.precision import widest
from loopsight.responses import shape_keeping

Step = Callable[[Tensor], Tensor]


FINITE = (1e-3, 1e-5)  # of what the sublayers before it have added: one for smooth branches, one for kinks
HIDDEN = 0.05  # of a branch's derivative: a kink within a step costs less
FAR = 4.0  # at least so many times the state itself; more would cost digits of the branch


@dataclass(frozen=True, kw_only=True)
class Increment:
    """One step seen from the state it started from, for every token. Euclidean units; float64 where the device has it.

    Attributes:
        l2_norm: (...,) s = |h|.
        radial_part: (...,) a = <h / s, b>.
        perpendicular_part: (...,) beta, at least 0.
    """

    l2_norm: Float[Tensor, "*batch"]
    radial_part: Float[Tensor, "*batch"]
    perpendicular_part: Float[Tensor, "*batch"]

    @property
    def carried(self) -> Float[Tensor, "*batch"]:
        """s + a; the bounds below need it positive, and are NaN where it is not (the step turns the state back)."""
        total = self.l2_norm + self.radial_part
        return torch.where(total > 0, total, torch.nan)

    @property
    def next_l2_norm(self) -> Float[Tensor, "*batch"]:
        """|step(h)|, exactly."""
        return torch.hypot(self.l2_norm + self.radial_part, self.perpendicular_part)

    @property
    def angle(self) -> Float[Tensor, "*batch"]:
        """Between h and step(h), exactly, in [0, pi]."""
        return torch.atan2(self.perpendicular_part, self.l2_norm + self.radial_part)

    @property
    def direction_change(self) -> Float[Tensor, "*batch"]:
        """|u' - u|, exactly."""
        return 2.0 * torch.sin(self.angle / 2.0)

    @property
    def excess_bounds(self) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """max(0, x^2 / 2 - x^4 / 8) q <= |step(h)| - q <= x^2 q / 2, with q = s + a and x = beta / q."""
        q = self.carried
        x2 = (self.perpendicular_part / q).square()
        return q * (x2 / 2.0 - x2.square() / 8.0).clamp(min=0.0), q * x2 / 2.0

    @property
    def direction_bound(self) -> Float[Tensor, "*batch"]:
        """beta / (s + a), at least |u' - u|."""
        return self.perpendicular_part / self.carried


def increment(h: Float[Tensor, "*batch d"], h_next: Float[Tensor, "*batch d"]) -> Increment:
    """Split b = h_next - h into its part along h and the length of the rest.

    Args:
        h: states before the step, (..., d), any floating dtype; made in float64 where the state is much larger than b.
        h_next: states after it, same shape and dtype.

    Raises:
        ValueError: a state is not finite, nonzero and floating point, or the two differ in shape or dtype.

    Source: arXiv 2606.24898, Lemma 2; exact form: this project, theory/ P9.
    """
    require_states(h)
    require_states(h_next, "h_next")
    if h_next.shape != h.shape or h_next.dtype != h.dtype:
        expected, got = ((tuple(x.shape), x.dtype) for x in (h, h_next))
        raise ValueError(f"h_next must have the shape and dtype of h, {expected}, got {got}.")
    h, h_next = widest(h), widest(h_next)  # a norm overflows float16 before the entries do
    s = h.norm(dim=-1)
    u, b = h / s[..., None], h_next - h
    a = (u * b).sum(-1)
    return Increment(l2_norm=s, radial_part=a, perpendicular_part=(b - a[..., None] * u).norm(dim=-1))


@dataclass(frozen=True, kw_only=True)
class LoopGrowth:
    """Growth of the norm from h_0 to every h_k, k = 0..K; the first axis is k.

    Attributes:
        l2_norm: (K + 1, ...) |h_k|.
        lower: (K + 1, ...) s_0 + sum a, below |h_k|; NaN from the first loop on with s + a <= 0.
        upper: (K + 1, ...) lower + sum beta^2 / (2 (s + a)), above it; NaN likewise.
        coherent: (K + 1, ...) sum 2 s a. Ballistic growth, the same direction written again and again, is all here.
        incoherent: (K + 1, ...) sum |b|^2. Diffusive growth, as with weights drawn anew for every loop, is all here.
            |h_k|^2 - |h_0|^2 = coherent + incoherent, exactly.
    """

    l2_norm: Float[Tensor, "states *batch"]
    lower: Float[Tensor, "states *batch"]
    upper: Float[Tensor, "states *batch"]
    coherent: Float[Tensor, "states *batch"]
    incoherent: Float[Tensor, "states *batch"]


def loop_growth(states: Sequence[Tensor]) -> LoopGrowth:
    """Sandwich and Pythagoras: s_0 + sum a <= |h_K| <= s_0 + sum a + sum beta^2 / (2 (s + a)), sums over the loops.

    True of any map; the gap between the bounds says how much of the growth was not along the state.

    Args:
        states: h_0, ..., h_K, each (..., d), of one shape and floating dtype.

    Raises:
        ValueError: fewer than two states, or as `increment`.

    Source: this project; theory/ P9.
    """
    if len(states) < 2:
        raise ValueError(f"states must hold at least h_0 and h_1, got {len(states)} of them.")
    steps = [increment(h, h_next) for h, h_next in zip(states[:-1], states[1:], strict=True)]
    zero = torch.zeros_like(steps[0].l2_norm)

    def cumulated(terms: list[Tensor]) -> Tensor:
        return torch.stack([zero, *terms]).cumsum(0)

    # `carried - l2_norm` is a, or NaN from where the bounds stop to hold.
    lower = steps[0].l2_norm + cumulated([step.carried - step.l2_norm for step in steps])
    return LoopGrowth(
        l2_norm=torch.stack([widest(h).norm(dim=-1) for h in states]),
        lower=lower,
        upper=lower + cumulated([step.excess_bounds[1] for step in steps]),
        coherent=cumulated([2.0 * step.l2_norm * step.radial_part for step in steps]),
        incoherent=cumulated([step.radial_part.square() + step.perpendicular_part.square() for step in steps]),
    )


@dataclass(frozen=True, kw_only=True)
class SecondOrderStep:
    """step(h) = h + displacement + correction + O(1/s^2), for every token, the scales of all tokens growing together.

    Attributes:
        displacement: (..., d) bbar, the sum of all sublayers' branches at the direction of the state.
        correction: (..., d) c, of order 1/s: what a sublayer adds because those before it have moved its input.
    """

    displacement: Float[Tensor, "*batch d"]
    correction: Float[Tensor, "*batch d"]

    def first_order_increment(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """<u, bbar>: the norm gained by a loop, with an error of order 1/s."""
        return (self.displacement * h).sum(-1) / h.norm(dim=-1)

    def radial_increment(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """<u, bbar> + beta^2 / 2s + <u, c>, with an error of order 1/s^2."""
        s = h.norm(dim=-1)
        a = self.first_order_increment(h)
        beta2 = self.displacement.square().sum(-1) - a.square()
        return a + beta2 / (2.0 * s) + (self.correction * h).sum(-1) / s


def second_order_step(sublayers: Sequence[Step], h: Float[Tensor, "*batch d"]) -> SecondOrderStep:
    """bbar = sum_l b_l and c = sum_l Db_l[sum_{j<l} b_j], each at the direction of h; one jvp per sublayer.

    Everything is evaluated at one fixed large scale, never at the state's own, so that comparing the prediction with
    the step is a test. The ratios of the tokens' scales are kept, since each token's own scale enters c through Db_l.
    (Whether b_j is first projected off the state makes no difference: Db_l vanishes along every token's state.)

    Args:
        sublayers: the residual steps x -> x + branch(norm(x)) of one loop, in order, state tensor to state tensor,
            float64 weights, differentiable in forward mode.
        h: states that enter the first of them, (..., d), float64. An operation between loops is no sublayer: apply
            it to the state first.

    Raises:
        ValueError: h is not a finite nonzero float64 tensor; a sublayer changes the shape, rescales a large state
            (so that it is not of that form), or hides its branch from forward-mode differentiation.

    Source: this project; theory/ P9.
    """
    require_double_states(h)
    if not sublayers:
        raise ValueError("sublayers must hold at least one residual step x -> x + branch(norm(x)), got none.")
    # Scales stay in their ratio: the largest where b keeps ten digits, or farther, from a state that is large itself.
    largest = h.norm(dim=-1).max()
    factor = torch.clamp(LARGE / largest, min=FAR)
    far = factor * h
    displacement, correction = torch.zeros_like(h), torch.zeros_like(h)
    for number, sublayer in enumerate(sublayers):
        moved = factor * displacement
        with differentiable_kernels(), forward_mode(f"sublayer {number}"):
            out, tangent = torch.func.jvp(shape_keeping(sublayer, f"sublayer {number}"), (far,), (moved,))[:2]
        _require_residual(number, sublayer, far, moved, out, tangent)
        displacement, correction = displacement + (out - far), correction + (tangent - moved)
    return SecondOrderStep(displacement=displacement, correction=correction)


def _require_residual(n: int, sublayer: Step, far: Tensor, moved: Tensor, out: Tensor, tangent: Tensor) -> None:
    gain = ((out * far).sum(-1) / far.square().sum(-1)).flatten()
    worst = gain[(gain - 1.0).abs().argmax()].item()
    if not abs(worst - 1.0) < 1e-2:
        raise ValueError(f"sublayer {n} multiplies a large state by {worst:.3g}; expected x + branch(norm(x)).")
    # Both sides without the state itself, beside which a branch is small.
    branch, forward = (out - far).norm(), tangent - moved
    for t in FINITE:
        difference = (sublayer(far + t * moved) - sublayer(far - t * moved)) / (2 * t) - moved
        if (difference - forward).norm() <= HIDDEN * torch.maximum(difference.norm(), forward.norm()) + 1e-4 * branch:
            return
    raise ValueError(f"sublayer {n} hides a branch from forward-mode differentiation (no-grad or a detach?).")
