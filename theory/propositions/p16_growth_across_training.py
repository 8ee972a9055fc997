"""P16: which parameters made log |h_K| grow over training steps: an account that is exact through second order."""

from dataclasses import replace
from typing import Any

import sympy as sp
import torch

from loopsight.attribution import attribute_growth, norm_degrees
from theory.cases import Case
from theory.laboratory import draw_architecture, narrowed, writers
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.random_model import Architecture, Parameters, RandomModel, random_model
from theory.symbols import c, h, i, split, total

TOLERANCE = 1e-7
STEP = 1e-6  # relative length of the step that is attributed: third order and rounding balance


def prove() -> Proof:
    proof = Proof()
    prove_log_norm(proof)
    prove_trapezoid(proof)
    prove_step_bound(proof)
    return proof


def prove_log_norm(proof: Proof) -> None:
    """For symbolic d: the derivative of log |h| along dh, and Euler's constraint, given P11's h_K(c w) = c h_K(w)."""
    direction, step = sp.IndexedBase("v", real=True), sp.Symbol("tau", real=True)
    squares, cross, moved = (
        sp.Symbol("S_2", positive=True),
        sp.Symbol("S_hv", real=True),
        sp.Symbol("S_vv", positive=True),
    )
    square = split(sp.expand(total(sp.expand((h[i] + step * direction[i]) ** 2))))
    square = square.subs(
        {total(h[i] ** 2): squares, total(direction[i] ** 2): moved, total(h[i] * direction[i]): cross}
    )
    derivative = sp.diff(sp.log(square) / 2, step).subs(step, 0)
    proof.equal("d log |h + tau v| / d tau = <h, v> / |h|^2", derivative, cross / squares)
    log_norm = sp.Function("f")  # log |h_K| of two tensors, which stand for any number
    w1, w2, v1, v2, g1, g2 = sp.symbols("w_1 w_2 v_1 v_2 g_1 g_2", real=True)

    def along(moved: sp.Expr, variable: sp.Symbol) -> sp.Expr:
        """Its derivative, g_1 and g_2 the gradient where it is taken."""
        slope = sp.diff(moved, variable).replace(sp.Subs, lambda derivative, *_: derivative)
        first = {x: x.variables[0] == x.expr.args[0] for x in slope.atoms(sp.Derivative)}
        return slope.subs({x: g1 if is_first else g2 for x, is_first in first.items()})

    path = along(log_norm(w1 + step * v1, w2 + step * v2), step)
    proof.equal("contributions of tensors add up", path, g1 * v1 + g2 * v2)
    joint = along(log_norm(c * w1, c * w2), c)
    proof.equal("along the joint scale, at c = 1: <g, w>", joint, g1 * w1 + g2 * w2)
    scaled = sp.log(total((c * h[i]) ** 2)) / 2
    derivative = split(sp.diff(scaled, c)).subs(total(h[i] ** 2), squares)
    proof.equal("which is 1, by P11: d log |c h_K| / dc at c = 1", derivative.subs(c, 1), sp.Integer(1))


def quadrature_error(rule: str) -> sp.Expr:
    """Rule minus truth for f(tau) = a1 tau + a2 tau^2 + a3 tau^3 over a step of length delta."""
    tau, delta = sp.symbols("tau delta", positive=True)
    a1, a2, a3 = sp.symbols("a_1 a_2 a_3", real=True)
    f = a1 * tau + a2 * tau**2 + a3 * tau**3
    slope = sp.diff(f, tau)
    left, right = slope.subs(tau, 0), slope.subs(tau, delta)
    estimate = {"trapezoid": (left + right) / 2, "left": left}[rule] * delta
    return sp.expand(estimate - f.subs(tau, delta))


def prove_trapezoid(proof: Proof) -> None:
    delta = sp.Symbol("delta", positive=True)
    a2, a3 = sp.symbols("a_2 a_3", real=True)
    proof.equal("trapezoid rule: exact through second order", quadrature_error("trapezoid"), a3 * delta**3 / 2)
    proof.equal("left rule: only through first", quadrature_error("left"), -a2 * delta**2 - a3 * delta**3)


def prove_step_bound(proof: Proof) -> None:
    """|dW_ij| <= C lr for all i, j gives |(dW act)_i| <= C lr |act|_1, attained by dW_ij = C lr sign(act_j)."""
    act, bound = sp.IndexedBase("x", real=True), sp.Symbol("C_lr", positive=True)
    n, m = sp.symbols("n m", integer=True, positive=True)
    attained = sp.Sum(bound * sp.sign(act[m]) * act[m], (m, 1, n))
    one_norm = sp.Sum(sp.Abs(act[m]), (m, 1, n))
    signed = split(attained).replace(sp.sign(act[m]) * act[m], sp.Abs(act[m]))  # sign(x) x = |x|
    proof.equal("the largest change of a branch's coordinate", signed, bound * one_norm)
    x, step = sp.symbols("x_m dW", real=True)
    slack = sp.Symbol("slack", nonnegative=True)
    excess = sp.expand(sp.Abs(x) * (sp.Abs(step) + slack)) - sp.Abs(step) * sp.Abs(x)
    proof.true("no term exceeds it, where C lr = |dW| + slack", sp.Ge(excess, 0))


def last_states(model: RandomModel, parameters: Parameters) -> torch.Tensor:
    return model.states(parameters)[model.architecture.loops]


def neighbour(model: RandomModel, relative: float) -> dict[str, torch.Tensor]:
    """Parameters after a random step of this length relative to each tensor."""
    generator = torch.Generator().manual_seed(model.architecture.seed + 1)
    moved = {}
    for name, tensor in model.parameters.items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        moved[name] = tensor + relative * tensor.norm() / noise.norm() * noise
    return moved


def euler_error(model: RandomModel, names: tuple[str, ...]) -> float:
    """|sum of the writers' degrees - 1|."""
    degrees = norm_degrees(lambda p: last_states(model, p), model.parameters)
    return abs(sum(degrees[name] for name in names) - 1.0)


def attribution_error(model: RandomModel, relative: float) -> float:
    """(predicted - actual) / sum of |contributions|: of second order in the step, as both are of first."""
    steps = [model.parameters, neighbour(model, relative)]
    size = last_states(model, model.parameters).norm(dim=-1)  # logs near 0, whose rounding is that of the step
    found = attribute_growth(lambda p: (last_states(model, p).norm(dim=-1) / size).log().mean(), steps)
    return found.error / sum(abs(value) for value in found.contributions.values())


def order_defect(model: RandomModel) -> float:
    """|e(s) - e(2 s) / 4| of the relative error e: what is not of second order in the step s.

    The size of e itself says nothing, since near a state that a normalisation cannot take the curvature has no bound.
    """
    return abs(attribution_error(model, STEP) - attribution_error(model, 2.0 * STEP) / 4.0)


def architecture(case: Case, **fixed: Any) -> Architecture:
    return draw_architecture(narrowed(case), **{"batch": 1, "layers": 1, **fixed})


def check(case: Case) -> Residual:
    """Worst of Euler's constraint and of the trapezoid rule's order, over a small step (relative, both)."""
    model = random_model(architecture(case))
    value = worst([euler_error(model, writers(model.architecture)), order_defect(model)])
    return Residual(value=value, tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """Least of Euler's error for sets that are not the writers, or with epsilon, and of one long trapezoid."""
    a = architecture(case, between="none", readout="rmsnorm", qk_norm=False)
    model, names = random_model(a), writers(a)
    values = [
        euler_error(model, names[1:]),
        euler_error(model, (*names, "0.attention.v")),
        euler_error(random_model(replace(a, eps=1e-1)), names),
        abs(attribution_error(model, 0.3)),
    ]
    return Residual(value=least(values), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P16",
    title="growth of the hidden norm over training steps is a sum over parameters; the writers' degrees sum to 1",
    words=(
        "The growth of log |h| over training is a sum over parameters, exact through second order in the step "
        "with an error of third order, and the degrees of all writers sum to one."
    ),
    statement=(
        r"\Delta \log|h_K| = \sum_\theta \left\langle \tfrac12(\nabla_\theta \log|h_K|_{\mathrm{before}} + "
        r"\nabla_\theta \log|h_K|_{\mathrm{after}}), \Delta\theta \right\rangle + O(|\Delta\theta|^3),\quad "
        r"\langle \nabla_w \log|h_K|, w \rangle = 1"
    ),
    hypotheses=(
        "log |h_K| is smooth along the path: no state passes through zero",
        "the constraint: w all writers, epsilon zero; any readout, tied or not",
        "a contribution describes the path, not what a tensor would do alone",
    ),
    source="this project; arXiv 1703.01365 for path attribution",
    prove=prove,
    check=check,
    control=control,
    control_floor=3e-4,
)
