"""P17: rescaling a state costs nothing at the readout and O(1/s) in the recurrence; low precision freezes a stream."""

import sympy as sp
import torch
from torch import Tensor

from loopsight.precision import predicted_freeze, significand_bits
from theory.cases import Case
from theory.far_out import (
    at_infinity,
    cotangent,
    directions,
    relative_scales,
    scaled_loop,
    scaling_error,
    sublayers_and_states,
    summed_branches,
)
from theory.laboratory import pullback
from theory.proposition import Proof, Proposition, Residual, worst
from theory.random_model import StateMap
from theory.symbols import c, d, j, total
from theory.symbols import h as state

TOLERANCE = 1e-10
FORMATS = (torch.bfloat16, torch.float16)


def freezing_exponent(binade: sp.Expr, bits: sp.Expr) -> sp.Expr:
    """e of the first binade [2^e, 2^(e+1)) in which adding any b from (2^(binade - 1), 2^binade] does nothing."""
    return binade + bits


def cost() -> sp.Expr:
    """What rescaling by c changes in the next direction, per unit of b_perp / s."""
    return 1 / c - 1


def prove() -> Proof:
    proof = Proof()
    s2 = sp.Symbol("S_2", positive=True)
    proof.equal("sum of squares of c h", total((c * state[j]) ** 2, j), c**2 * total(state[j] ** 2, j))
    rescaled = c * state[j] / sp.sqrt(c**2 * s2 / d)
    proof.equal("decoding c h: nothing changes", rescaled, state[j] / sp.sqrt(s2 / d))

    # In the recurrence: F(c s u) = c s u + b against s u + b, b = a u + beta v; coordinates (u, v), x = 1/s.
    a, beta, x = sp.Symbol("a", real=True), sp.Symbol("beta", positive=True), sp.Symbol("x", positive=True)
    angle = sp.atan(beta * x / (1 + a * x))
    rescaled_angle = sp.atan(beta * x / (c + a * x))
    change = sp.series(rescaled_angle - angle, x, 0, 2).removeO()
    proof.equal("rescaled before a loop: its next direction turns by", change, cost() * beta * x)

    # A format with p bits: spacing 2^(e - p + 1) in binade e. Rounding to nearest drops b below half of it.
    e, p, m = sp.symbols("e p m", integer=True)
    half = 2 ** (e - p)
    reached = half.subs(e, freezing_exponent(m, p))
    proof.equal("half a spacing where it freezes is the top of b's binade", reached, 2**m)
    before = half.subs(e, freezing_exponent(m, p) - 1)
    proof.equal("and one binade earlier it is the bottom, which b exceeds", before, 2 ** (m - 1))
    ratio = 2 ** freezing_exponent(m, p) / (2**m)
    proof.equal("|h| / |b| there, for b = 2^m", ratio, 2**p)
    return proof


def decoding_error(readout: StateMap, h: Tensor, factors: Tensor) -> float:
    """Largest change of a logit when every token's state is multiplied by a factor of its own, in units of the largest
    logit."""
    logits = readout(h)
    return ((readout(factors * h) - logits).abs().max() / logits.abs().max()).item()


def recurrence_error(sublayers: list[StateMap], readout: StateMap, h: Tensor, factor: float) -> float:
    """s (z(F(c h)) - z(F(h))) as s grows, by differentiating both at 1/s = 0, against (1/c - 1) DR(u)[b_perp]."""
    u, relative = directions(h), relative_scales(h)
    b = summed_branches(sublayers, u)
    b_perp = b - (u * b).sum(-1, keepdim=True) * u

    def difference(small: Tensor) -> Tensor:
        rescaled, kept = (scaled_loop(sublayers, u, small / relative / x) for x in (factor, 1.0))
        return readout(rescaled) - readout(kept)

    w = cotangent(readout(u))
    change = pullback(readout, u, w)
    expected = (1.0 / factor - 1.0) * (change * b_perp / relative).sum()
    size = (1.0 / factor + 1.0) * change.norm() * b.norm()
    error = (at_infinity(difference, w) - expected).abs() / size
    return worst([error.item(), scaling_error(sublayers, h)])


def freezing_error(b: Tensor, dtype: torch.dtype) -> float:
    """Share of coordinates that do not freeze in the predicted binade: at 2^e b does nothing, at 2^(e-1) something."""
    b = b.to(dtype)
    level = torch.copysign(predicted_freeze(b, b, dtype).level.to(dtype), b)
    frozen = level + b == level
    moving = level / 2 + b != level / 2
    binade = level.double().abs() == 2.0 ** (significand_bits(dtype) + b.double().abs().log2().ceil())
    return 1.0 - (frozen & moving & binade).double().mean().item()


def check(case: Case) -> Residual:
    """Worst of: decoding after a rescale, cost of a rescale in the recurrence, and the binade of freezing."""
    sublayers, h = sublayers_and_states(case)
    factors = 10.0 ** (3.0 * torch.randn(*h.shape[:-1], 1, generator=case.generator(), dtype=h.dtype)).clamp(-6.0, 6.0)
    readout = case.readout("rmsnorm" if case.seed % 2 else "layernorm")
    factor = factors.flatten()[0].clamp(1e-2, 1e2).item()
    b = torch.copysign(case.states().abs().clamp(2.0**-10, 15.0), case.states())  # neither subnormal nor overflowing
    values = (
        decoding_error(readout, h, factors),
        recurrence_error(sublayers, readout, h, factor),
        *(freezing_error(b, dtype) for dtype in FORMATS),
    )
    return Residual(value=worst(values), tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """The same rescaling before a raw readout, which sees it."""
    _, h = sublayers_and_states(case)
    return Residual(value=decoding_error(case.readout("raw"), h, h.new_tensor(2.0)), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P17",
    title="rescaling is free when decoding, costs O(1/s) in the recurrence; low precision freezes the residual stream",
    words=(
        "Rescaling a state is free at the readout and costs O(1/s) in the recurrence; a stream held in p "
        "significant bits stops moving at about 2^p times the update."
    ),
    statement=(
        r"R(c h) = R(h);\quad R(F(c h)) - R(F(h)) = \tfrac{1}{s}\left(\tfrac1c - 1\right) DR(u)[\bar b_\perp] + "
        r"O(s^{-2});\quad \mathrm{fl}(h_i + b_i) = h_i \text{ for } |h_i| \ge 2^{p + \lceil \log_2 |b_i| \rceil}"
    ),
    hypotheses=(
        "a readout that normalises, epsilon zero; normalised branches",
        "the recurrence: scales of all tokens growing together, one loop after the rescale",
        "rounding to nearest, ties to even, p significant bits (bfloat16 8, float16 11); no overflow, no subnormals",
    ),
    source="this project; clamp: arXiv 2606.24898, section 4",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-3,
)
