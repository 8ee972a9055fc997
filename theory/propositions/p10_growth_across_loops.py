"""P10: across loops the direction flows in log-time; shared weights grow ballistically, fresh ones diffusively.

SymPy proves the power law in the plane, for one tilt and one sublayer, and the 1/k of several at leading order. That a
tilt obeys the same recurrence in any dimension (and so, along an eigenvector, its solution) is checked in numbers.
"""

from itertools import product

import sympy as sp
import torch
from torch import Tensor

from theory.cases import Case
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
from theory.symbols import h as state
from theory.symbols import i, total

TOLERANCE = 1e-12  # of |h|, up to 1e10 of what is added, as in P9
LOOPS = 3  # of the linearised recurrence
S, START, RATE, BETA, SMALL = sp.symbols("s s_0 a beta varepsilon", positive=True)
NU = sp.Symbol("nu", real=True)
K = sp.Symbol("k", integer=True, positive=True)


def exponent() -> sp.Expr:
    """p in |u_k - u*| ~ k^p."""
    return NU / RATE - 1


def prove() -> Proof:
    proof = Proof()
    _prove_flow(proof)
    _prove_diffusion(proof)
    _prove_power_law(proof)
    _prove_counterexamples(proof)
    return proof


def _prove_flow(proof: Proof) -> None:
    """From the polar form, at small = 1/s: in dtau = 1/s a loop moves log s by a dtau and u by beta dtau."""
    a = sp.Symbol("a", real=True)
    log_norm = sp.log((1 + a * SMALL) ** 2 + (BETA * SMALL) ** 2) / 2
    turn = sp.atan(BETA * SMALL / (1 + a * SMALL))
    proof.equal("d log s / dtau", sp.limit(log_norm / SMALL, SMALL, 0), a)
    proof.equal("|du / dtau|", sp.limit(turn / SMALL, SMALL, 0), BETA)


def _prove_diffusion(proof: Proof) -> None:
    """A writer drawn with either sign: half the sum over both signs has no mixed term. Symbolic d."""
    b = sp.IndexedBase("b", real=True)
    both = (total((state[i] + b[i]) ** 2) + total((state[i] - b[i]) ** 2)) / 2
    proof.equal("fresh signs: E|h + b|^2", both, total(state[i] ** 2) + total(b[i] ** 2))
    again = total((state[i] + K * RATE * state[i] / S) ** 2)  # b = a u = a h / s, k times
    proof.equal("the same b = a u in k loops: |h + k b|^2", again, ((S + K * RATE) / S) ** 2 * total(state[i] ** 2))


def _prove_power_law(proof: Proof) -> None:
    """Near b(u*) = a u*, in the plane: angle phi, b = A(phi) radially and T(phi) along the tangent, T(0) = 0.

    With several sublayers a loop adds c / s besides (P9), and its part across u* pushes the tilt by that over s^2.
    """
    phi = sp.Symbol("phi", real=True)
    radial, tangential = sp.Function("A")(phi), sp.Function("T")(phi)
    b = radial * sp.Matrix([sp.cos(phi), sp.sin(phi)]) + tangential * sp.Matrix([-sp.sin(phi), sp.cos(phi)])
    slope = sp.Symbol("t", real=True)  # T'(0)
    at_rest = {sp.diff(tangential, phi): slope, tangential: 0, radial: RATE}
    eigenvalue = b.diff(phi)[1].subs(at_rest).subs(phi, 0)
    proof.equal("nu, the tangential part of Db", eigenvalue, RATE + slope)
    after = phi + sp.atan(tangential / (S + radial))
    tilt = sp.simplify(after.diff(phi).subs(at_rest))
    proof.equal("a loop's effect on a small tilt", tilt.subs(slope, NU - RATE), (S + NU) / (S + RATE))

    size = START + RATE * K
    ratio = (size + NU) / (size + RATE)
    x, y = (START + NU) / RATE, (START + RATE) / RATE
    solution = sp.gamma(K + x) * sp.gamma(y) / (sp.gamma(K + y) * sp.gamma(x))
    proof.equal("the tilt after k loops", sp.gammasimp(solution.subs(K, K + 1) / solution), ratio)
    proof.equal("its logarithmic slope in k", sp.limit(K * (ratio - 1), K, sp.oo), exponent())
    proof.equal("a constant b (nu = 0) is approached as 1/k", exponent().subs(NU, 0), sp.Integer(-1))
    push, forced = sp.Symbol("c_perp", real=True), sp.Symbol("C", real=True)
    leading = sp.limit(S**2 * (forced / (S + RATE) - forced / S * (S + NU) / (S + RATE)), S, sp.oo)
    proof.equal("pushed by c_perp / s^2, the tilt -c_perp / (nu s) stays", leading.subs(forced, -push / NU), push)


def _prove_counterexamples(proof: Proof) -> None:
    norm = sp.sqrt((S + 1) ** 2 + 4)  # z -> z + (1 + 2i) z / |z|
    proof.equal("b = (1 + 2i) u: the norm gains 1 a loop", sp.limit(norm - S, S, sp.oo), sp.Integer(1))
    turned = sp.limit(sp.atan(2 / (S + 1)) / sp.log(norm / S), S, sp.oo)
    proof.equal("... while the angle turns by 2 per unit of log s, without end", turned, sp.Integer(2))
    left = sp.Symbol("m", real=True)
    against = total((state[i] - RATE * state[i] / S) ** 2).subs(S, RATE + left)
    proof.equal("b = -a u takes |h| = a + m down to |m|", against, (left / (RATE + left)) ** 2 * total(state[i] ** 2))


def flow_error(sublayers: list[StateMap], h: Tensor) -> float:
    """One loop differentiated at 1/s = 0 through the composition, against a and b_perp of the summed branches."""
    u, relative = directions(h), relative_scales(h)
    b = summed_branches(sublayers, u)
    a = (u * b).sum(-1, keepdim=True)
    w, v = cotangent(u), cotangent(a)
    log_norm = at_infinity(
        lambda small: scaled_loop(sublayers, u, small / relative).norm(dim=-1, keepdim=True).log(), v
    )
    turn = at_infinity(lambda small: directions(scaled_loop(sublayers, u, small / relative)), w)
    errors = (
        (log_norm - (v * a / relative).sum()).abs() / (v.norm() * b.norm()),
        (turn - (w * (b - a * u) / relative).sum()).abs() / (w.norm() * b.norm()),
    )
    return worst([scaling_error(sublayers, h), *(error.item() for error in errors)])


def approach_error(sublayer: StateMap, case: Case, degree: int) -> float:
    """LOOPS loops about a direction with b(u) = a u, against the linear recurrence; b of the given degree (0: claimed).

    The direction is kept by construction, b(h) = branch(h) - branch(u) + a u, so nothing depends on finding it. The
    recurrence is run backwards, on the cotangent w of the last direction.
    """
    u = directions(case.states()[None])
    at_u = sublayer(u) - u
    draw = torch.rand(2, *u.shape[:-1], 1, generator=case.generator(), dtype=u.dtype)
    a = at_u.norm(dim=-1, keepdim=True) * (1.0 + draw[0])
    start = a * 10.0 ** (2.0 * draw[1] - 0.5)

    def after_loops(direction: Tensor) -> Tensor:
        h = start * direction
        for _ in range(LOOPS):
            h = h + (sublayer(h) - h - at_u + a * u) * h.norm(dim=-1, keepdim=True) ** degree
        return h

    def tangential(x: Tensor) -> Tensor:
        return x - (u * x).sum(-1, keepdim=True) * u

    after, w = after_loops(u), cotangent(u, case.seed)
    measured = tangential(pullback(lambda direction: directions(after_loops(direction)), u, w))
    expected = tangential(w)
    for loop in reversed(range(LOOPS)):
        s = start + loop * a
        expected = expected / (s + a)
        db = pullback(sublayer, u, expected) - expected  # Db^T
        expected = tangential(s * expected + db)
    norms = start + LOOPS * a
    errors = (
        (directions(after) - u).norm(),
        ((after.norm(dim=-1, keepdim=True) - norms) / norms).abs().max(),
        (measured - expected).norm() / torch.maximum(w.norm(), expected.norm()),
    )
    return worst(error.item() for error in errors)


def diffusion_error(sublayers: list[StateMap], h: Tensor, signs: Tensor) -> float:
    """Mean of |h_n|^2 over the sign patterns (pattern, sublayer), against |h_0|^2 + mean sum |b|^2; fresh weights."""
    x = h.expand(len(signs), *h.shape[1:])
    written = h.square().sum(-1).expand(len(signs), -1)
    for sign, sublayer in zip(signs.T, sublayers, strict=True):
        b = sign[:, None, None] * (sublayer(x) - x)
        x, written = x + b, written + b.square().sum(-1)
    return ((x.square().sum(-1).mean(0) - written.mean(0)) / written.mean(0)).abs().max().item()


def all_signs(n: int) -> Tensor:
    return torch.tensor(list(product([1.0, -1.0], repeat=n)), dtype=torch.float64)


def check(case: Case) -> Residual:
    """Worst of: the flow at 1/s = 0, the linear recurrence about a kept direction, the mean square of fresh signs."""
    sublayers, h = sublayers_and_states(case)
    values = (
        flow_error(sublayers, h),
        approach_error(sublayers[case.seed % len(sublayers)], case, degree=0),
        diffusion_error(sublayers, h, all_signs(len(sublayers))),
    )
    return Residual(value=worst(values), tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """Least of the same with branches that see the scale, a displacement proportional to the state's norm (growth is
    exponential, the tilt does not slow), and shared signs."""
    sublayers, h = sublayers_and_states(case)
    values = (
        flow_error(linear_sublayers(case), 3.0 * h),
        approach_error(sublayers[case.seed % len(sublayers)], case, degree=1),
        diffusion_error(sublayers, h, all_signs(len(sublayers)).abs()),
    )
    return Residual(value=least(values), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P10",
    title="shared weights: where b(u*) = a u*, a > 0, s gains a per loop, u settles like k^p; fresh ones: like sqrt k",
    words=(
        "With shared weights, if the direction settles where a loop adds a > 0 along it and nothing across, it does so "
        "like a power of the loops and the norm grows by a in each; with fresh weights it grows like the square root "
        "of the loops."
    ),
    statement=(
        r"d\tau = dk/s:\ \tfrac{d \log s}{d\tau} = a(u),\ \tfrac{du}{d\tau} = b_\perp(u);\quad "
        r"b(u_\star) = a u_\star,\ P\,Db\,P\,v = \nu v \Rightarrow "
        r"s_{k+1} - s_k \to a,\ |u_k - u_\star| \sim k^{\nu/a - 1} \text{ (several sublayers: } "
        r"k^{\max(\nu/a, 0) - 1}\text{)};\quad "
        r"\text{fresh signs: } E|h_K|^2 = |h_0|^2 + \textstyle\sum_k E|b_k|^2"
    ),
    hypotheses=(
        "b depends on the direction only, smoothly at u, and s is much larger than |b| (flow) or the direction is kept",
        "power law: a > 0, leading eigenvalue nu real and below a; the start near u*, generic, and its scale large",
        "it is one sublayer's; several push the direction aside by O(1/s), unless c has no part across u* (P9)",
        "a direction need not converge (b = (1 + 2i) u), nor a norm grow (b = i u: sqrt k; b = -a u: it shrinks)",
        "diffusion: weights drawn independently for every loop, with writers of symmetric distribution",
    ),
    source="this project; ballistic growth: arXiv 2606.24898, section 3",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-3,
)
