"""P17: rescaling a state costs nothing at the readout and O(1/s) in the recurrence; low precision freezes a stream."""

import sympy as sp
import torch
from torch import Tensor

from loopsight.precision import predicted_freeze, significand_bits
from theory.cases import Case, ReadoutName
from theory.far_out import (
    at_infinity,
    cotangent,
    directions,
    linear_sublayers,
    relative_scales,
    scaled_loop,
    scaling_error,
    sublayers_and_states,
    summed_branches,
)
from theory.laboratory import pullback
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.random_model import StateMap
from theory.symbols import c, d, j, total
from theory.symbols import h as state

TOLERANCE = 1e-12  # of |h|, up to 1e10 of what is added, as in P9
FORMATS = (torch.bfloat16, torch.float16)


def freezing_exponent(binade: sp.Expr, bits: sp.Expr) -> sp.Expr:
    """e where a state that b from (2^(binade - 1), 2^binade] has carried to 2^e stops."""
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

    _prove_freezing(proof)
    return proof


def _prove_freezing(proof: Proof) -> None:
    """A format with p bits: spacing 2^(e - p + 1) in binade e. Rounding to nearest drops b below half of it, and at
    half of it takes the even significand. Where binades meet, the spacing towards zero is that of the lower one."""
    e, p, m = sp.symbols("e p m", integer=True)
    half = 2 ** (e - p)
    reached = half.subs(e, freezing_exponent(m, p))
    proof.equal("half a spacing where it freezes is the top of b's binade", reached, 2**m)
    before = half.subs(e, freezing_exponent(m, p) - 1)
    proof.equal("and one binade earlier, or from there towards zero, the bottom, which b exceeds", before, 2 ** (m - 1))
    n = sp.Symbol("n", integer=True, nonnegative=True)
    proof.equal("b = 2^m ties there, and the significand 2^(p - 1), p = n + 2, is even", 2 ** (n + 1), 2 * 2**n)
    beyond = half.subs(e, freezing_exponent(m, p) + 1)
    proof.equal("one binade later it is twice the top; from its bottom down the top, and even", beyond, 2 * 2**m)
    ratio = 2 ** freezing_exponent(m, p) / (2**m)
    proof.equal("|h| / |b| where it freezes, for b = 2^m", ratio, 2**p)


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


def freezing_error(b: Tensor, dtype: torch.dtype, stream: torch.dtype | None = None) -> float:
    """Share of coordinates b that break the law for some number of the format: each that b, or one of the other sign,
    moves below the level; the level that b has carried a state to and leaves it at; each that b of neither sign moves
    from one binade above the level on. `stream`: the format of the addition, if it is another one.
    """
    b = b.to(dtype)[..., None]
    level = predicted_freeze(b, b, dtype).level
    binade = level == 2.0 ** (significand_bits(dtype) + b.double().abs().log2().ceil())
    bits = significand_bits(dtype)
    significands = torch.arange(2 ** (bits - 1), 2**bits, dtype=torch.float64) / 2 ** (bits - 1)
    numbers = torch.cat([significands, -significands])

    def stays(states: Tensor) -> Tensor:
        h, added = states.to(stream or dtype), b.to(stream or dtype)
        return (h + added == h) | ~torch.isfinite(states.to(dtype))

    below, arrived = stays(level / 2 * numbers), stays(torch.copysign(level, b.double()))
    beyond = torch.cat([stays(2 * level * numbers), stays(4 * level * numbers)], dim=-1)
    obeys = binade & ~below.any(-1, keepdim=True) & arrived & beyond.all(-1, keepdim=True)
    return 1.0 - obeys.double().mean().item()


def parts(case: Case, readout: StateMap, sublayers: list[StateMap], stream: torch.dtype | None = None) -> list[float]:
    """Decoding after a rescale, its cost in the recurrence, and the law of freezing in both formats."""
    _, h = sublayers_and_states(case)
    factors = 10.0 ** (3.0 * torch.randn(*h.shape[:-1], 1, generator=case.generator(), dtype=h.dtype)).clamp(-6.0, 6.0)
    factor = factors.flatten()[0].clamp(1e-2, 1e2).item()
    first = case.states()[0]
    b = torch.copysign(first.abs().clamp(2.0**-10, 7.0), first)  # neither subnormal nor overflowing
    return [
        decoding_error(readout, h, factors),
        recurrence_error(sublayers, case.readout(normalised(case)), h, factor),
        *(freezing_error(b, dtype, stream) for dtype in FORMATS),
    ]


def normalised(case: Case) -> ReadoutName:
    return "rmsnorm" if case.seed % 2 else "layernorm"


def check(case: Case) -> Residual:
    """Worst of: decoding after a rescale, cost of a rescale in the recurrence, and the law of freezing."""
    sublayers, _ = sublayers_and_states(case)
    return Residual(value=worst(parts(case, case.readout(normalised(case)), sublayers)), tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """Least of the same, with a raw readout, branches that see the scale, and a stream in float32 (autocast's)."""
    return Residual(
        value=least(parts(case, case.readout("raw"), linear_sublayers(case), torch.float32)), tolerance=TOLERANCE
    )


PROPOSITION = Proposition(
    key="P17",
    title="rescaling is free when decoding, costs O(1/s) in the recurrence; low precision freezes the residual stream",
    words=(
        "Rescaling a state is free at a readout that normalises and costs O(1/s) in the recurrence; a constant "
        "update b carries a number of p significant bits to 2^p b, or up to twice that, and no further."
    ),
    statement=(
        r"R(c h) = R(h);\quad R(F(c h)) - R(F(h)) = \tfrac{1}{s}\left(\tfrac1c - 1\right) DR(u)[\bar b_\perp] + "
        r"O(s^{-2});\quad \mathrm{fl}(h_i + b_i) = h_i \text{ at } h_i = \mathrm{sign}(b_i)\, \ell_i,\ "
        r"\ell_i = 2^{p + \lceil \log_2 |b_i| \rceil}, \text{ where a constant } b_i \text{ leads, "
        r"and for all } |h_i| \ge 2 \ell_i"
    ),
    hypotheses=(
        "a readout that normalises, epsilon zero; normalised branches, smooth at the state's direction u",
        "the recurrence: scales of all tokens growing together, one loop after the rescale",
        "rounding to nearest, ties to even, p significant bits (bfloat16 8, float16 11); no overflow, no subnormals",
        "freezing: b constant; between l and 2 l a number may still move (bfloat16: 258 + 1 is 260, 256 - 1 is 255)",
    ),
    source="this project; clamp: arXiv 2606.24898, section 4",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-3,
)
