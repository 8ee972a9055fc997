"""P9 (Lemma 2 made exact): polar forms for any map, the constancy of b that is the lemma's content, and c / s."""

import sympy as sp
import torch
from torch import Tensor

from loopsight.increments import increment, loop_growth
from theory.cases import Case
from theory.far_out import (
    at_infinity,
    cotangent,
    directions,
    linear_sublayers,
    relative_scales,
    scaling_error,
    sequence,
    sublayers_and_states,
    summed_branches,
)
from theory.laboratory import pullback
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.random_model import StateMap
from theory.symbols import h as state
from theory.symbols import i, total

TOLERANCE = 1e-12  # of |h|, which is up to 1e10 of what is added: an error in b must not pass for rounding
S, BETA, Q = sp.symbols("s beta q", positive=True)
A = sp.Symbol("a", real=True)
SMALL = sp.Symbol("varepsilon", positive=True)
"""1 / s."""


def next_norm() -> sp.Expr:
    """|F| for any map, in the plane of u and b."""
    return sp.sqrt((S + A) ** 2 + BETA**2)


def second_order() -> sp.Expr:
    """The coefficient of 1/s in |F| - s, for b = bbar + c / s."""
    return BETA**2 / 2 + sp.Symbol("c_u", real=True)


def accumulated(branches: list[sp.Matrix], phi: sp.Symbol) -> sp.Matrix:
    """c = sum_l Db_l[sum_{j<l} b_j] in the plane: Db_l[x] = (x's tangential part) db_l/dphi, radial part to nothing."""
    tangent = sp.Matrix([-sp.sin(phi), sp.cos(phi)])
    result, before = sp.zeros(2, 1), sp.zeros(2, 1)
    for b in branches:
        result += b.diff(phi) * before.dot(tangent)
        before += b
    return result


def prove() -> Proof:
    proof = Proof()
    _prove_polar_form(proof)
    _prove_bounds(proof)
    _prove_expansions(proof)
    _prove_second_order(proof)
    _prove_loops(proof)
    return proof


def _prove_polar_form(proof: Proof) -> None:
    """Any map, symbolic d; a s = sum h b and |b|^2 = a^2 + beta^2 define a and beta."""
    b = sp.IndexedBase("b", real=True)
    squared = total((state[i] + b[i]) ** 2)
    norms = total(state[i] ** 2) + 2 * total(state[i] * b[i]) + total(b[i] ** 2)
    proof.equal("|h + b|^2, any map, any d", squared, norms)
    proof.equal("in polar form", S**2 + 2 * S * A + (A**2 + BETA**2), next_norm() ** 2)
    # With cos = (s + a) / |F|: |u' - u|^2 = 2 - 2 cos = 4 sin^2(theta / 2).
    theta = sp.Symbol("theta", positive=True)
    proof.equal("|u' - u| = 2 sin(theta / 2)", (2 * sp.sin(theta / 2)) ** 2, 2 - 2 * sp.cos(theta))


def _prove_bounds(proof: Proof) -> None:
    """For q = s + a > 0, with x = beta / q and |F| = q sqrt(1 + x^2): squares compare by their difference's factors."""
    y = sp.Symbol("y", positive=True)  # x^2
    upper, lower = 1 + y / 2, 1 + y / 2 - y**2 / 8
    proof.equal("upper bound: its square exceeds 1 + x^2 by x^4 / 4", upper**2 - (1 + y), y**2 / 4)
    proof.equal("lower bound: 1 + x^2 exceeds its square by", (1 + y) - lower**2, y**3 * (8 - y) / 64)
    # ... which is not negative up to y = 8; beyond, the lower bound itself is negative, and so holds.
    z = sp.Symbol("z", nonnegative=True)
    proof.true("beyond y = 8 it is negative", sp.expand(lower.subs(y, 8 + z)) < 0)
    r = sp.Symbol("r", positive=True)  # |F| / q, at least 1
    room = (r**2 - 1) - (2 - 2 / r)
    proof.equal("x^2 - |u' - u|^2 is a square times a positive number", room, (r - 1) ** 2 * (r + 2) / r)
    # Dunkl-Williams: |x/|x| - y/|y|| <= 2 |x - y| / (|x| + |y|), for lengths p, q at an angle whose cosine is C.
    p, cosine = sp.Symbol("p", positive=True), sp.Symbol("C", real=True)
    room = 4 * (p**2 + Q**2 - 2 * p * Q * cosine) - (p + Q) ** 2 * (2 - 2 * cosine)
    proof.equal("Dunkl-Williams leaves a nonnegative rest", room, 2 * (p - Q) ** 2 * (1 + cosine))


def _prove_expansions(proof: Proof) -> None:
    large = next_norm().subs(S, 1 / SMALL)
    norm = sp.series(sp.simplify(SMALL * large), SMALL, 0, 5).removeO() / SMALL
    claim = 1 / SMALL + A + BETA**2 * SMALL / 2 - A * BETA**2 * SMALL**2 / 2
    claim += (4 * A**2 * BETA**2 - BETA**4) * SMALL**3 / 8
    proof.equal("|F| far out", norm, claim)
    turn = 2 * sp.sin(sp.atan(BETA * SMALL / (1 + A * SMALL)) / 2)
    claim = BETA * SMALL - A * BETA * SMALL**2 + (A**2 * BETA - 3 * BETA**3 / 8) * SMALL**3
    proof.equal("|u' - u| far out", sp.series(turn, SMALL, 0, 4).removeO(), claim)


def _prove_second_order(proof: Proof) -> None:
    """Three degree-0 branches in the plane, as arbitrary smooth functions of the state's angle phi; SMALL = 1/s.

    More branches, dimensions or tokens are not written out: `check` measures them.
    """
    phi = sp.Symbol("phi", real=True)
    branches = [sp.Matrix([sp.Function(f"{x}_{n}")(phi) for x in "XY"]) for n in (1, 2, 3)]
    x = sp.Matrix([sp.cos(phi), sp.sin(phi)])
    written = sp.zeros(2, 1)
    for b in branches:
        moved = x + SMALL * written
        added = b.subs(phi, sp.atan2(moved[1], moved[0])) if written != sp.zeros(2, 1) else b
        written += added
    bbar = sum(branches, sp.zeros(2, 1))
    first = written.diff(SMALL).subs(SMALL, 0).applyfunc(lambda e: sp.simplify(e.doit()))
    at_zero = written.subs(SMALL, 0).applyfunc(lambda e: sp.simplify(e.doit()))
    claimed = accumulated(branches, phi)
    # On (-pi, pi) atan2(sin phi, cos phi) = phi.
    principal = sp.atan2(sp.sin(phi), sp.cos(phi))
    for axis in (0, 1):
        proof.equal(f"b_tot at 1/s = 0, axis {axis}", at_zero[axis].subs(principal, phi).doit(), bbar[axis])
        proof.equal(f"its derivative is c, axis {axis}", first[axis].subs(principal, phi).doit(), claimed[axis])

    # The norm, in an orthonormal frame of u, the direction of bbar_perp, and a third.
    c_u, c_v, c_w = sp.symbols("c_u c_v c_w", real=True)
    squared = (1 + SMALL * (A + SMALL * c_u)) ** 2 + (SMALL * (BETA + SMALL * c_v)) ** 2 + (SMALL**2 * c_w) ** 2
    norm = sp.series(sp.sqrt(sp.expand(squared)), SMALL, 0, 3).removeO() / SMALL
    proof.equal("|F| - s far out", sp.expand(norm - 1 / SMALL), A + second_order() * SMALL)


def _prove_loops(proof: Proof) -> None:
    """K loops: the squared norms telescope; the sandwich adds up steps that all obey their bounds."""
    start, so_far = sp.symbols("s_0 T", positive=True)  # T = sum of 2 s a + |b|^2 over the loops so far
    norm = sp.sqrt(start**2 + so_far)
    after = (norm + A) ** 2 + BETA**2
    proof.equal("|h_K|^2 = s_0^2 + T_K, by induction", after, start**2 + (so_far + 2 * norm * A + A**2 + BETA**2))
    excess = sp.sqrt(Q**2 + BETA**2) - Q
    proof.equal("a step's excess over q is beta^2 / (|F| + q), not negative", excess * (excess + 2 * Q), BETA**2)
    proof.equal("and less than beta^2 / 2q", BETA**2 / (2 * Q) - excess, excess**2 / (2 * Q))


def forward(h: Tensor, after: Tensor) -> Tensor:
    """`after`, or its mirror image where it is turned back: the same beta with s + a > 0, as the bounds need it."""
    u = directions(h)
    return after + (u * after).sum(-1, keepdim=True).clamp(max=0.0) * -2.0 * u


def _polar(h: Tensor, after: Tensor) -> float:
    """Exact forms of one step, as `loopsight.increments` computes them."""
    step = increment(h, after)
    size = h.norm(dim=-1) + (after - h).norm(dim=-1)
    norm = (step.next_l2_norm - after.norm(dim=-1)).abs() / size
    # Where the state is turned back to nothing, its direction is noise.
    turned = (directions(after) - directions(h)).norm(dim=-1)
    turn = (step.direction_change - turned).abs() * after.norm(dim=-1) / size
    return worst([norm.max().item(), turn.max().item()])


def _bounds(h: Tensor, after: Tensor) -> float:
    """Largest violation of the bounds of one step with s + a > 0."""
    step = increment(h, after)
    size = h.norm(dim=-1) + (after - h).norm(dim=-1)
    lower, upper = step.excess_bounds
    excess = after.norm(dim=-1) - step.carried
    turned = (directions(after) - directions(h)).norm(dim=-1)
    violations = torch.stack([(lower - excess) / size, (excess - upper) / size, turned - step.direction_bound])
    return violations.max().item()


def _constancy(sublayer: StateMap, h: Tensor) -> float:
    """|b(h) - b(u)| / (|b| + |h|): every token's b at its own scale and at scale 1, rounding of h + b allowed for."""
    here, there = sublayer(h) - h, sublayer(directions(h)) - directions(h)
    return ((here - there).norm(dim=-1) / (there.norm(dim=-1) + h.norm(dim=-1))).max().item()


def _loops(sublayers: list[StateMap], h: Tensor) -> float:
    """Pythagoras over loops of any maps, and the sandwich where no step turns back."""
    states = [h]
    for sublayer in (*sublayers, *sublayers):  # each of them a map in its own right
        states.append(forward(states[-1], sublayer(states[-1])))
    growth = loop_growth(states)
    squares = growth.l2_norm.square()
    exact = squares[0] + growth.coherent + growth.incoherent
    size = squares[0] + growth.coherent.abs() + growth.incoherent
    below, above = (growth.lower - growth.l2_norm), (growth.l2_norm - growth.upper)
    violation = torch.maximum(below, above) / size.sqrt()
    return worst([((exact - squares).abs() / size).max().item(), violation.max().item()])


def _dunkl_williams(sublayers: list[StateMap], h: Tensor) -> float:
    x, violations = h, []
    for sublayer in sublayers:
        x = sublayer(x)
        moved = (directions(x) - directions(h)).norm(dim=-1)
        violations.append((moved - 2.0 * (x - h).norm(dim=-1) / (x.norm(dim=-1) + h.norm(dim=-1))).max().item())
    return worst(violations)


def displacement(sublayers: list[StateMap], u: Tensor, small: Tensor) -> Tensor:
    """b_tot of the scaled loop."""
    b, x = torch.zeros_like(u), u
    for sublayer in sublayers:
        added = sublayer(x) - x
        b, x = b + added, x + small * added
    return b


def gained(sublayers: list[StateMap], u: Tensor, small: Tensor) -> Tensor:
    """|F(s u)| - s, in the form that has no cancellation and holds at small = 0."""
    b = displacement(sublayers, u, small)
    squared = 2.0 * (u * b).sum(-1, keepdim=True) + small * b.square().sum(-1, keepdim=True)
    return squared / ((u + small * b).norm(dim=-1, keepdim=True) + 1.0)


def correction(sublayers: list[StateMap], u: Tensor, relative: Tensor, w: Tensor) -> Tensor:
    """<w, c>, c = sum_l Db_l(U)[sum_{j<l} b_j / relative]: token t has the scale relative_t s."""
    before, total_c = torch.zeros_like(u), torch.zeros((), dtype=u.dtype)
    for sublayer in sublayers:
        total_c = total_c + ((pullback(sublayer, u, w) - w) * before / relative).sum()
        before = before + (sublayer(u) - u)
    return total_c


def _second_order(sublayers: list[StateMap], h: Tensor) -> float:
    """b_tot and the norm gained, differentiated at 1/s = 0 through the composition, against the formulas."""
    u, relative = directions(h), relative_scales(h)
    bbar = summed_branches(sublayers, u)
    radial = (u * bbar).sum(-1, keepdim=True)
    perpendicular = bbar.square().sum(-1, keepdim=True) - radial.square()
    w, v = cotangent(u), cotangent(radial)
    db = at_infinity(lambda small: displacement(sublayers, u, small / relative), w)
    da = at_infinity(lambda small: gained(sublayers, u, small / relative), v)
    second = (v * perpendicular / 2.0 / relative).sum() + correction(sublayers, u, relative, v * u)
    size = bbar.norm(dim=-1).max() ** 2
    errors = (
        (displacement(sublayers, u, torch.zeros_like(relative)) - bbar).norm() / bbar.norm(),
        (gained(sublayers, u, torch.zeros_like(relative)) - radial).norm() / bbar.norm(),
        (db - correction(sublayers, u, relative, w)).abs() / (w.norm() * size),
        (da - second).abs() / (v.norm() * size),
    )
    return worst([scaling_error(sublayers, h), *(error.item() for error in errors)])


def check(case: Case) -> Residual:
    """Worst of: polar form and bounds, K-loop identities, constancy of b, Dunkl-Williams, c and the norm's 1/s term."""
    sublayers, h = sublayers_and_states(case)
    after = sequence(sublayers)(h)
    values = (
        _polar(h, after),
        _bounds(h, forward(h, after)),
        _loops(sublayers, h),
        _dunkl_williams(sublayers, h),
        _constancy(sublayers[case.seed % len(sublayers)], h),
        _second_order(sublayers, h),
    )
    return Residual(value=worst(values), tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """The lesser of the two that need normalised branches, constancy of b and the second order, without such branches;
    at a state of three times the scale. The others hold for any map."""
    sublayers, h = linear_sublayers(case), 3.0 * case.states()[None]
    failures = [_constancy(sublayers[case.seed % len(sublayers)], h), _second_order(sublayers, h)]
    return Residual(value=least(failures), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P9",
    title="one step's norm and angle are polar identities of any map; what is special is that b ignores the scale",
    words=(
        "That the squared norm becomes (s + a)^2 + beta^2, a = <u, b> and beta across u, holds for any map; what "
        "normalised branches add is that b does not depend on the scale, and several in a loop a term c / s."
    ),
    statement=(
        r"|F|^2 = (s + a)^2 + \beta^2,\quad |u' - u| = 2 \sin\tfrac{\theta}{2};\quad "
        r"b(c u) = b(u) \text{ per sublayer} \Rightarrow s' = s + \bar a + "
        r"\tfrac{1}{s}\left(\tfrac{\bar\beta^2}{2} + \langle u, c \rangle\right) + O(s^{-2}),\ "
        r"c = \sum_l Db_l\left[\textstyle\sum_{j<l} b_j\right]"
    ),
    hypotheses=(
        "polar forms, Pythagoras: any map; bounds: s + a > 0",
        "constancy of b: one residual step with a normalised branch, epsilon zero; every token's scale by itself",
        "the 1/s term: several such steps, branches twice differentiable at u, scales of all tokens in fixed ratio",
    ),
    source="arXiv 2606.24898, Lemma 2; exact form and the 1/s term of several sublayers: this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-2,
)
