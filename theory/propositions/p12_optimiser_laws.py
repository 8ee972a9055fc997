"""P12: what an optimiser does to the squared norm n = |w|^2 of tensors along which the loss is blind, <g, w> = 0.

SGD, momentum and decay obey exact laws; Adam obeys a bound per coordinate, and only that.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from loopsight.optimiser_laws import adam_step_bound, heavy_ball_square_norms, norm_change, sgd_square_norm
from theory.cases import Case
from theory.laboratory import draw_architecture, loop_weights, narrowed, writers
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.random_model import RandomModel, random_model
from theory.symbols import i, split, total

TOLERANCE = 1e-12
STEPS = 3

w, g, u = (sp.IndexedBase(name, real=True) for name in "wgu")
N, GG, UU = sp.symbols("n |g|^2 |u|^2", positive=True)
eta, lam, mu = sp.symbols("eta lambda mu", positive=True)
T, lag = sp.Symbol("T", integer=True, positive=True), sp.Symbol("l", integer=True, nonnegative=True)
beta1, beta2 = sp.symbols("beta_1 beta_2", positive=True)


def squared(vector: sp.Expr, blind: bool = True) -> sp.Expr:
    """|vector|^2 in terms of n and |g|^2, <g, w> = 0 where blind."""
    products = {total(w[i] ** 2): N, total(g[i] ** 2): GG, total(g[i] * w[i]): 0 if blind else sp.Symbol("<g,w>")}
    return split(sp.expand(total(sp.expand(vector**2)))).subs(products)


def prove() -> Proof:
    proof = Proof()
    prove_sgd(proof)
    prove_momentum(proof)
    prove_equilibrium(proof)
    prove_adam(proof)
    return proof


def prove_sgd(proof: Proof) -> None:
    """Vectors of symbolic dimension."""
    flow = split(total(2 * w[i] * -g[i])).subs(total(g[i] * w[i]), 0)
    proof.equal("gradient flow, dn/dt", flow, sp.Integer(0))
    proof.equal("SGD, n+", squared(w[i] - eta * g[i]), N + eta**2 * GG)
    proof.equal(
        "SGD with decay, n+", squared((1 - eta * lam) * w[i] - eta * g[i]), (1 - eta * lam) ** 2 * N + eta**2 * GG
    )
    scale_free = sp.Symbol("G", positive=True)  # |g| |w|, which the joint scale does not move
    growth = sp.expand((N + eta**2 * GG) ** 2 - N**2).subs(N * GG, scale_free**2)
    proof.equal("SGD, growth of n^2", growth, 2 * eta**2 * scale_free**2 + eta**4 * GG**2)


def prove_momentum(proof: Proof) -> None:
    """a_t = <w_t, v_t> obeys a linear recursion whose solution is a sum over past velocities, each with its eta."""
    v0, v1, v2 = (sp.Symbol(f"|v_{n}|^2", positive=True) for n in range(3))
    eta0, eta1, eta2 = sp.symbols("eta_0:3", positive=True)
    overlaps = [sp.Integer(0)]  # <w_0, v_0> = <w_0, g_0> = 0
    for rate, square in ((eta0, v0), (eta1, v1)):
        # <w', v'> = mu <w', v> + <w', g'> = mu (<w, v> - eta |v|^2)
        overlaps.append(mu * (overlaps[-1] - rate * square))
    closed = mu * eta1 * v1 + mu**2 * eta0 * v0
    proof.equal("<w_2, v_2> = -sum_j mu^j eta_{2-j} |v_{2-j}|^2", overlaps[2], -closed)
    proof.equal("heavy ball, n_3 - n_2", -2 * eta2 * overlaps[2] + eta2**2 * v2, eta2**2 * v2 + 2 * eta2 * closed)
    # From any t to the next: if a_t = -m_t then a_{t+1} = -mu (m_t + eta_t |v_t|^2), which is -m_{t+1}.
    memory, square = sp.symbols("m_t |v_t|^2", positive=True)
    proof.equal("induction step", mu * (-memory - eta * square), -(mu * (memory + eta * square)))
    # Constant eta and |v|: the memory settles at m = mu (m + |v|^2), in units of eta.
    settled = mu * square / (1 - mu)
    proof.equal("the memory at rest", mu * (settled + square), settled)
    proof.equal("growth per step, constant |v|", eta**2 * (square + 2 * settled), eta**2 * square * (1 + mu) / (1 - mu))


def equilibrium_square_norm(scale_free: sp.Expr) -> sp.Expr:
    """n* with n*^2 = eta G^2 / (lambda (2 - eta lambda))."""
    return sp.sqrt(eta * scale_free**2 / (lam * (2 - eta * lam)))


def prove_equilibrium(proof: Proof) -> None:
    """Fixed point of n -> q n + eta^2 G^2 / n, its relaxation rate, and the angle of a step there."""
    scale_free, q = sp.Symbol("G", positive=True), sp.Symbol("q", positive=True)
    fixed = equilibrium_square_norm(scale_free)
    decay = (1 - eta * lam) ** 2
    proof.equal("n* is a fixed point (times n*)", decay * fixed**2 + eta**2 * scale_free**2, fixed**2)
    step = q * N + eta**2 * scale_free**2 / N
    slope = sp.diff(step, N).subs(eta, sp.sqrt((1 - q) * N**2) / scale_free)
    proof.equal("d n+ / d n at n*", slope, 2 * q - 1)
    proof.equal("relaxation per step, to first order", sp.diff((2 * q - 1).subs(q, decay), eta).subs(eta, 0), -4 * lam)
    tangent_squared = (1 - q) * N / (q * N)  # eta^2 |g|^2 = (1 - q) n at n*
    proof.equal("squared tangent of the angle", tangent_squared, (1 - q) / q)
    proof.equal("square of n+ for fluctuating gradients", (q * N + eta**2 * GG) ** 2 - q**2 * N**2,
                2 * q * eta**2 * (N * GG) + eta**4 * GG**2)  # fmt: skip


def geometric_sum(r: sp.Expr) -> sp.Expr:
    """sum_{l < T} r^l, r not 1."""
    return (1 - r**T) / (1 - r)


def bound_of_step() -> sp.Expr:
    """C_T."""
    corrections = sp.sqrt(1 - beta2**T) / (1 - beta1**T)
    return (1 - beta1) / sp.sqrt(1 - beta2) * sp.sqrt(geometric_sum(beta1**2 / beta2)) * corrections


def prove_adam(proof: Proof) -> None:
    """Cauchy-Schwarz for symbolic T, and gradients that attain it."""
    x, A, B, D = sp.symbols("x A B D", positive=True)
    # sum_l (sqrt(beta1^2l / beta2^l) - x sqrt(beta2^l) g_l)^2 = A - 2 x B + x^2 D for every x, sums over l = 0..T-1.
    square = sp.expand((sp.sqrt(beta1 ** (2 * lag) / beta2**lag) - x * sp.sqrt(beta2**lag) * g[lag]) ** 2)
    terms = {
        "A = sum r^l": (beta1**2 / beta2) ** lag,
        "B = sum beta1^l g_l": beta1**lag * g[lag],
        "D = sum beta2^l g_l^2": beta2**lag * g[lag] ** 2,
    }
    claimed = terms["A = sum r^l"] - 2 * x * terms["B = sum beta1^l g_l"] + x**2 * terms["D = sum beta2^l g_l^2"]
    proof.equal(
        "each term of the square", sp.powsimp(sp.powdenest(square, force=True), force=True), sp.powdenest(claimed)
    )
    at_least = (A - 2 * x * B + x**2 * D).subs(x, B / D)
    proof.equal("the sum of squares at x = B / D", at_least, A - B**2 / D)
    squares = sp.Symbol("squares", nonnegative=True)
    excess = sp.expand((A * D - B**2).subs(A, squares + B**2 / D))
    proof.true("it is not negative, and so B^2 <= A D", sp.Ge(excess, 0))
    r = sp.Symbol("r", positive=True)
    proof.equal("A = sum r^l at T = 1", geometric_sum(r).subs(T, 1), sp.Integer(1))
    proof.equal("and each T adds r^T", geometric_sum(r).subs(T, T + 1) - geometric_sum(r), r**T)
    first, second = (1 - beta1) * B / (1 - beta1**T), (1 - beta2) * D / (1 - beta2**T)  # m and v, bias corrected
    largest = (first**2 / second).subs(D, B**2 / geometric_sum(beta1**2 / beta2))  # D is at least B^2 / A
    proof.equal("m^2 / v is at most C_T^2, bias corrections in it", largest, bound_of_step() ** 2)
    best = (beta1 / beta2) ** lag
    proof.equal("gradients (beta1 / beta2)^l make B = A", beta1**lag * best, terms["A = sum r^l"])
    proof.equal("and D = A, so that B^2 = A D", beta2**lag * best**2, terms["A = sum r^l"])
    usual = {beta1: sp.Rational(9, 10), beta2: sp.Rational(999, 1000)}
    limit = sp.limit(bound_of_step().subs(usual), T, sp.oo)
    proof.show("the limit of many steps at (0.9, 0.999)", limit.evalf(6))
    proof.true("it is more than seven learning rates", limit > 7)


def blind_model(case: Case, **changes: Any) -> RandomModel:
    """A small model whose writers' joint norm is blind, unless `changes` break that."""
    fixed: dict[str, Any] = {"readout": "rmsnorm", "tied": False, "layers": 1, "loops": 2, "batch": 1}
    return random_model(draw_architecture(narrowed(case), **{**fixed, **changes}))


LAWS = ("sgd", "decay", "momentum")
DECAY, MOMENTUM = 0.3, 0.7  # decay is in units of 1 / lr
SCHEDULE = (1.0, 0.4, 1.5)  # learning rates of the steps of a law, in units of the first, over and over


def optimiser_for(law: str, tensors: list[Tensor], lr: float) -> torch.optim.Optimizer:
    match law:
        case "momentum":
            return torch.optim.SGD(tensors, lr=lr, momentum=MOMENTUM)
        case "decay":
            return torch.optim.SGD(tensors, lr=lr, weight_decay=DECAY / lr)
        case "adam":
            return torch.optim.Adam(tensors, lr=lr)
        case _:
            return torch.optim.SGD(tensors, lr=lr)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Squared norms n_0, ..., n_T of the writers, of each step's gradient, and of its velocity; each step's rate."""

    lr: float
    rates: list[float]
    norms: list[float]
    gradients: list[float]
    velocities: list[float]
    crosses: list[float]


def run(model: RandomModel, law: str, steps: int = STEPS, schedule: Sequence[float] = (1.0,)) -> Run | None:
    """Train the writers with torch's own optimiser; None where the loss has no gradient to speak of.

    The learning rate makes the first step a fifth of |w|, so that neither term of the laws is rounding; Adam's is a
    twentieth of the root mean square. `schedule`: each step's rate in units of that, over and over.
    """
    weights = loop_weights(model.architecture)
    w = {name: model.parameters[name].clone().requires_grad_() for name in writers(model.architecture)}
    p = {**model.parameters, **w}

    def differentiate() -> float:
        gradients = torch.autograd.grad(model.loss(p, weights), list(w.values()))
        for tensor, gradient in zip(w.values(), gradients, strict=True):
            tensor.grad = gradient
        return _square(gradients)

    n, first = _square(w.values()), differentiate()
    if not n * first > 1e-18:
        return None
    size = sum(tensor.numel() for tensor in w.values())
    lr = 0.05 * (n / size) ** 0.5 if law == "adam" else 0.2 * (n / first) ** 0.5
    optimiser = optimiser_for(law, list(w.values()), lr)
    rates = [lr * schedule[t % len(schedule)] for t in range(steps)]
    out = Run(lr=lr, rates=rates, norms=[n], gradients=[first], velocities=[], crosses=[])
    for t in range(steps):
        if t > 0:
            out.gradients.append(differentiate())
        before = {name: tensor.detach().clone() for name, tensor in w.items()}
        for group in optimiser.param_groups:
            group["lr"] = rates[t]
        optimiser.step()
        state = optimiser.state
        out.velocities.append(_square([state[x].get("momentum_buffer", x.grad) for x in w.values()]))
        out.norms.append(_square(w.values()))
        out.crosses.append(norm_change(before, w).cross)
    return out


def _square(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.detach().square().sum().item() for tensor in tensors)


def law_residual(model: RandomModel, law: str, steps: int = STEPS) -> float:
    """Largest |n observed - n predicted| / n; the predictions start from the first n alone. NaN without gradient."""
    found = run(model, law, steps, SCHEDULE)
    if found is None:
        return math.nan
    n = found.norms[0]
    if law == "momentum":
        predicted = heavy_ball_square_norms(n, found.velocities, lr=found.rates, momentum=MOMENTUM)
    else:
        predicted = []
        for gradient, lr in zip(found.gradients, found.rates, strict=True):
            n = sgd_square_norm(n, gradient, lr=lr, wd=DECAY / found.lr if law == "decay" else 0.0)
            predicted.append(n)
    return worst(abs(seen - claimed) / seen for seen, claimed in zip(found.norms[1:], predicted, strict=True))


def adam_excess(case: Case) -> float:
    """How far torch's Adam exceeds its bound, relative to it: on random gradients, and 0 where they attain it."""
    rng = random.Random(case.seed)
    betas = rng.choice([(0.9, 0.999), (0.9, 0.95), (0.0, 0.9), (0.8, 0.99)])
    steps = rng.randint(1, 12)
    attaining = torch.tensor([(betas[0] / betas[1]) ** (steps - n) for n in range(1, steps + 1)], dtype=torch.float64)
    attaining = attaining.clamp(min=1e-150)  # without epsilon, Adam of gradients that are all 0 is 0 / 0
    gradients = torch.randn(steps, case.d, generator=case.generator(), dtype=torch.float64)
    gradients[:, 0] = attaining
    x = torch.zeros(case.d, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.Adam([x], lr=1.0, betas=betas, eps=0.0)
    for gradient in gradients:
        before = x.detach().clone()
        x.grad = gradient.clone()
        solver.step()
    ratio = (x.detach() - before).abs() / adam_step_bound(*betas, step=steps)
    return worst([ratio.max().item() - 1.0, abs(ratio[0].item() - 1.0), 0.0])


def decomposition_residual(case: Case) -> float:
    """n+ = decayed + cross + square for a random step, relative to their sizes."""
    before = {"w": case.states()}
    after = {"w": 0.9 * before["w"] + 0.1 * before["w"].flip(0, 1).tanh() * case.scale}
    change = norm_change(before, after, lr=0.1, wd=1.0)
    parts = change.decayed + change.cross + change.square
    return abs(change.after - parts) / (change.decayed + abs(change.cross) + change.square)


def check(case: Case) -> Residual:
    """Worst of: one law over three steps of a random model, Adam's bound and its attainment, the decomposition."""
    law = random.Random(case.seed).choice(LAWS)
    for attempt in range(20):
        found = law_residual(blind_model(replace(case, seed=case.seed + attempt)), law)
        if not math.isnan(found):
            return Residual(value=worst([found, adam_excess(case), decomposition_residual(case)]), tolerance=TOLERANCE)
    return Residual(value=math.nan, tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """Least of each law's residual where <g, w> is not 0 (raw, tied, tanh, large epsilon), and of Adam's cross term."""
    changes = ({"readout": "raw"}, {"readout": "tanh"}, {"tied": True}, {"eps": 1e-1})
    seeing = [blind_model(case, between="none", **change) for change in changes]
    values = [law_residual(model, law) for model in seeing for law in LAWS]
    adam = run(blind_model(case, between="none"), "adam")
    values.append(worst(map(abs, adam.crosses)) / adam.norms[0] if adam else math.nan)
    return Residual(value=least(values), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P12",
    title="exact laws of SGD for a norm the loss cannot see; for Adam a decomposition and a sharp bound, no law",
    words=(
        "Where the loss cannot see a norm, SGD's steps obey exact laws for it (growth, momentum, decay; an "
        "equilibrium while the product of gradient and norm is constant); Adam's only a decomposition and a sharp "
        "bound per coordinate."
    ),
    statement=(
        r"n_{t+1} = (1-\eta_t\lambda)^2 n_t + \eta_t^2 |g_t|^2,\quad "
        r"n_{t+1} = n_t + \eta_t^2 |v_t|^2 + 2 \eta_t \sum_{j \ge 1} \mu^j \eta_{t-j} |v_{t-j}|^2,\quad "
        r"|\Delta_i| \le \eta \tfrac{1-\beta_1}{\sqrt{1-\beta_2}} \sqrt{\tfrac{1-r^T}{1-r}}"
        r"\tfrac{\sqrt{1-\beta_2^T}}{1-\beta_1^T},\; r = \tfrac{\beta_1^2}{\beta_2}"
    ),
    hypotheses=(
        "n = |w|^2 of tensors with <g, w> = 0 at every step (P11: untied, normalised readout, epsilon 0)",
        "SGD with decoupled decay, or the heavy ball without decay; not Nesterov's",
        "at each step one learning rate, and one decay, for all of these tensors",
        "the equilibrium: learning rate, decay and G = |g| |w| constant",
        "clipping by the global norm is allowed under SGD, as a smaller step",
        "Adam: T-th step, any gradients; its epsilon only shortens steps, decoupled decay comes on top",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-6,
)
