"""P8: a norm between loops removes the state's scale, damping contracts it; both bound the state across loops.

Damped, |h_k| <= alpha |h_{k-1}| + B by the triangle inequality, B the largest that a loop adds: finite, since branches
read normalised states. A norm N bounds |N h| by its gain, and so what one loop makes of it.
"""

import sympy as sp
import torch
from torch import Tensor

from theory.cases import Case
from theory.far_out import cotangent, directions, linear_sublayers, sequence
from theory.laboratory import model_and_states, pullback
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.random_model import RandomModel, StateMap
from theory.symbols import d, eps, i, j, k, split, total
from theory.symbols import h as state

S2 = sp.Symbol("S_2", positive=True)
ALPHA = sp.Symbol("alpha", positive=True)
TOLERANCE = 1e-12


def leak() -> sp.Expr:
    """rho: the part of a relative change of scale that a normalisation lets through."""
    return eps / (S2 / d + eps)


def settled_norm() -> sp.Expr:
    """s*, where alpha s + a = s: the observed state's norm, after the block."""
    a = sp.Symbol("a", positive=True)
    return a / (1 - ALPHA)


def damped_bound(start: sp.Expr, added: sp.Expr, loops: sp.Expr) -> sp.Expr:
    """Of |h_k| after k loops that add B at most: its limit is B / (1 - alpha)."""
    return ALPHA**loops * start + (1 - ALPHA**loops) * added / (1 - ALPHA)


def prove() -> Proof:
    """For symbolic d: DN(h)[h] = rho N(h); damped, D Phi(h)[h] = alpha h, a bound, and where norms settle."""
    proof = Proof()
    gain = sp.IndexedBase("g", real=True)
    sigma = sp.sqrt(S2 / d + eps)
    normalised = gain[j] * state[j] / sigma

    # sum_k dN_j/dh_k h_k with d S_2 / d h_k = 2 h_k; the Jacobian of the loop after N is linear, and so follows.
    through_sigma = gain[j] * state[j] * sp.diff(1 / sigma, S2) * split(total(2 * state[k] ** 2, k))
    along_h = normalised + through_sigma.subs(total(state[k] ** 2, k), S2)
    proof.equal("DN(h)[h] = rho N(h), so D Phi(h)[h] = rho DF(N(h))[N(h)]", along_h, leak() * normalised)
    proof.equal("without epsilon nothing is left", along_h.subs(eps, 0), sp.Integer(0))

    # |gain * y|^2 <= max gain^2 d for sum y_i^2 = d; max^2 = g_i^2 + slack_i^2.
    largest, slack = sp.Symbol("g", positive=True), sp.IndexedBase("m", real=True)
    room = total(largest**2 * state[i] ** 2) - total((largest**2 - slack[i] ** 2) * state[i] ** 2)
    proof.equal("g_max^2 sum y^2 - sum g_i^2 y_i^2 is a sum of squares", room, total((slack[i] * state[i]) ** 2))

    s, a, beta, c = sp.symbols("s a beta c", positive=True)
    b = sp.Function("b", real=True)
    moved = ALPHA * c * s * state[j] + b(c * s * state[j] / (c * s))  # h = s u -> c h, coordinate j, u_j = h_j here
    at_one = sp.diff(moved, c).subs(c, 1)  # where d/dc is d/dlog c
    proof.equal("damped: d/dlog c of alpha c h + b(u) at c = 1 is alpha h", at_one, ALPHA * s * state[j])
    start, added, loops = sp.symbols("s_0 B k", positive=True)
    before, after = (damped_bound(start, added, n) for n in (loops, loops + 1))
    proof.equal("bound of |h_k|: from s_0 on", damped_bound(start, added, sp.Integer(0)), start)
    proof.equal("a loop takes it to alpha times it plus B", after, ALPHA * before + added)
    end = added / (1 - ALPHA)
    proof.equal("its distance from B / (1 - alpha) is alpha^k of the first", before - end, ALPHA**loops * (start - end))
    squared = (ALPHA * s + a) ** 2 + beta**2
    at_rest = squared.subs({beta: 0, s: settled_norm()})
    proof.equal("aligned (beta = 0): |Phi|^2 at s* is s*^2", at_rest, settled_norm() ** 2)
    away = s - settled_norm()
    proof.equal("its distance from there contracts by alpha", ALPHA * s + a - settled_norm(), ALPHA * away)

    # Near an aligned direction b(u) = a u, with nu the tangential eigenvalue of Db there, a tilt v goes to
    # v (alpha s + nu) / (alpha s + a).
    nu = sp.Symbol("nu", real=True)
    tilt = (ALPHA * s + nu) / (ALPHA * s + a)
    geometric = ALPHA + (1 - ALPHA) * nu / a
    proof.equal("the tilt's factor a loop at s*: it contracts if in (-1, 1)", tilt.subs(s, settled_norm()), geometric)
    return proof


def along(gradient: Tensor, h: Tensor) -> Tensor:
    """<gradient_t, h_t>: the derivative by log scale of every token."""
    return (gradient * h).sum(-1, keepdim=True)


def removal(model: RandomModel, transition: StateMap, h: Tensor, rho: Tensor) -> float:
    """<w, D Phi(h)[e_t h_t]> against rho_t <w, DF(N h)[e_t (N h)_t]> for a random w and every token t, relative to the
    factors of the latter; Phi is `transition`."""
    w = cotangent(h, model.architecture.seed)
    normed = model.between()(h)
    inner = pullback(sequence(model.sublayers()), normed, w)
    error = along(pullback(transition, h, w), h) - rho * along(inner, normed)
    size = inner.norm(dim=-1, keepdim=True) * normed.norm(dim=-1, keepdim=True)
    return (error.abs() / size).max().item()


def carrying(sublayer: StateMap, alpha: float, h: Tensor) -> float:
    """<w, D(F o alpha)(h)[e_t h_t]> against alpha <w_t, h_t> for a random w and every token t; F one residual step."""
    w = cotangent(h)
    error = along(pullback(lambda x: sublayer(alpha * x), h, w), h) - alpha * along(w, h)
    branch = (sublayer(alpha * h) - alpha * h).norm()
    return (error.abs() / (w.norm() * (alpha * h.norm(dim=-1, keepdim=True) + branch))).max().item()


def excess(model: RandomModel, damping: float, h: Tensor, loops: int = 8) -> float:
    """By how much |h_k| exceeds the bound of a loop damped so, relative to it; B is the largest sum of |b| so far,
    every branch at its direction, as it has no scale to see."""
    start, largest, between, excesses = h.norm(dim=-1), torch.zeros(()), model.between(), []
    for number in range(1, loops + 1):
        h, added = between(h), torch.zeros(())
        for sublayer in model.sublayers():
            u = directions(h)
            h, added = sublayer(h), added + (sublayer(u) - u).norm(dim=-1)
        largest = torch.maximum(largest, added)
        bound = damping**number * start + (1.0 - damping**number) / (1.0 - damping) * largest
        excesses.append((h.norm(dim=-1) / bound).max().item() - 1.0)
    return worst(excesses)


def check(case: Case) -> Residual:
    """Worst of: radial derivative after N (epsilon 0), the leak (epsilon > 0), both bounds, carrying and settling when
    damped; every token by itself."""
    model, h = model_and_states(case, between="rmsnorm")
    square = h.square().mean(-1, keepdim=True)
    epsilon = square.max().item() * 10.0 ** -(case.seed % 5)
    leaky, _ = model_and_states(case, between="rmsnorm", eps=epsilon)
    bound = model.parameters["between.gain"].abs().max() * case.d**0.5
    damped, _ = model_and_states(case, between="damping")
    sublayer, alpha = damped.sublayers()[case.seed % len(damped.sublayers())], damped.architecture.damping
    values = (
        removal(model, model.step(), h, torch.zeros_like(square)),
        removal(leaky, leaky.step(), h, epsilon / (square + epsilon)),
        (model.between()(h).norm(dim=-1).max() / bound).item() - 1.0,
        carrying(sublayer, alpha, h),
        settling(sublayer, alpha, h),
        excess(damped, alpha, h),
    )
    return Residual(value=worst(values), tolerance=TOLERANCE)


def settling(sublayer: StateMap, alpha: float, h: Tensor) -> float:
    """How far one damped step moves the state a / (1 - alpha) u, relative to it, where b(u) = a u by construction."""
    u = h / h.norm(dim=-1, keepdim=True)
    at_u = sublayer(u) - u
    a = at_u.norm(dim=-1, keepdim=True) + 1.0
    settled = a / (1.0 - alpha) * u
    x = alpha * settled
    branch = (sublayer(x) - x) - at_u + a * u
    return ((x + branch - settled).norm(dim=-1) / settled.norm(dim=-1)).max().item()


def control(case: Case) -> Residual:
    """The least of: the radial derivative of the same loop without an operation between loops; the leak of twice the
    epsilon; undamped, but with a half predicted, what it carries and the bound, from states far larger than what a loop
    adds; and settling where the step answers to the scale."""
    model, h = model_and_states(case, between="rmsnorm")
    free, _ = model_and_states(case, between="none")
    far, sublayer = 1e4 * h, free.sublayers()[0]
    square = h.square().mean(-1, keepdim=True)
    epsilon = square.max().item()
    leaky, _ = model_and_states(case, between="rmsnorm", eps=epsilon)
    failures = [
        removal(model, sequence(model.sublayers()), h, torch.zeros_like(square)),
        removal(leaky, leaky.step(), h, 2.0 * epsilon / (square + 2.0 * epsilon)),
        carrying(lambda x: sublayer(2.0 * x), 0.5, far),
        excess(free, 0.5, far),
        settling(linear_sublayers(case)[0], 0.5, h),
    ]
    return Residual(value=least(failures), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P8",
    title="a norm between loops removes the scale of the observed state, damping contracts it, and both bound it",
    words=(
        "A norm between loops removes the scale of the state that is read out; damping by alpha bounds it in the end "
        "by the most that a loop adds over 1 - alpha, and it rests at a / (1 - alpha) along a direction with b = a u."
    ),
    statement=(
        r"D(F \circ N_\epsilon)(h)[h] = \rho\, DF(N h)[N h],\ \rho = \tfrac{\epsilon}{\mathrm{ms}(h) + \epsilon};\quad "
        r"D(F \circ \alpha)(h)[h] = \alpha h,\ s_\star = \tfrac{a}{1 - \alpha},\ "
        r"\limsup_k |h_k| \le \tfrac{\sup |b|}{1 - \alpha}"
    ),
    hypotheses=(
        "the operation acts at the entrance of the loop, and the state is observed at its exit",
        "removal: of every token's scale separately; without epsilon exactly",
        "damping: one residual step with a normalised branch; several: up to O(1/s^2), all tokens scaled together",
        "settling at s*: along a direction with b(u) = a u, a > 0, from near it if |alpha + (1 - alpha) nu / a| < 1 "
        "for every tangential eigenvalue nu of Db(u)",
        "bound: b = h_k - alpha h_{k-1} is what one loop adds, sup over all states",
    ),
    source="arXiv 2606.24898, section 4 (interventions); exact form: this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-3,
)
