"""P13: runs that differ by a gauge are the same run, bit by bit; the code's scaling symmetries solve a linear system.

SymPy proves that a symmetry of the loss makes the runs equal, and Euler's identity; that the degree systems of the
examples are solved right, by its own null space. That solutions are symmetries of the code is in the numbers: a random
one is applied to a whole run, bit by bit. That there are no others is not proven and not true of all data (a single
token's queries); tests count the symmetries of the examples by their gradients.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import sympy as sp
import torch
from torch import Tensor

from loopsight.symmetry import ScalingDegree, Symmetry, added, euler_residual, scaling_degree, scaling_symmetries
from theory.cases import Case, has_gradient
from theory.laboratory import draw_architecture, loop_weights, narrowed, writers
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.propositions.p11_writer_homogeneity import derivatives
from theory.random_model import Architecture, RandomModel, random_model
from theory.symbols import c

TOLERANCE = 1e-12
STEPS = 2

Optimiser = Literal["sgd", "adam"]
OPTIMISERS: tuple[Optimiser, ...] = ("sgd", "adam")


def equations(a: Architecture) -> list[ScalingDegree]:
    """The degree system of a random model, read off its code: what must be equal, what must be 0."""
    found = added(scaling_degree("token_embedding"), scaling_degree("position_embedding"))
    # A norm between loops hides h_0 from everything; the stream then starts at its gain.
    stream = scaling_degree("between.gain" if a.between == "rmsnorm" else "token_embedding")
    for layer in range(a.layers):
        attention, mlp = f"{layer}.attention", f"{layer}.mlp"
        x = scaling_degree(f"{attention}.gain")
        if not a.qk_norm:
            found.append(
                2 * x + scaling_degree(f"{attention}.q") + scaling_degree(f"{attention}.k")
            )  # enters the softmax
        found += added(stream, x + scaling_degree(f"{attention}.v") + scaling_degree(f"{attention}.out"))
        x = scaling_degree(f"{mlp}.gain")
        found.append(x + scaling_degree(f"{mlp}.gate"))  # enters the SiLU
        found += added(stream, x + scaling_degree(f"{mlp}.up") + scaling_degree(f"{mlp}.down"))
        if a.biases:
            found += added(stream, scaling_degree(f"{attention}.bias"), scaling_degree(f"{mlp}.bias"))
    logits = scaling_degree("token_embedding" if a.tied else "head")
    if a.gain:
        logits += scaling_degree("readout.gain")
    if a.readout == "raw":
        logits += stream
    if a.readout == "tanh":
        found.append(stream)
    found.append(logits)
    return [*found, *added(logits, scaling_degree("head.bias"))] if a.biases else found


def prove() -> Proof:
    proof = Proof()
    prove_gauge(proof)
    prove_conservation(proof)
    prove_null_spaces(proof)
    return proof


def rescaled_step(optimiser: Optimiser, power: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """A step of c w with lr c^power and wd / c^power, and c times the step of w; gradients at c w are g / c."""
    w, g, eta, lam, first, second, adam_eps = sp.symbols("w g eta lambda m v epsilon_A", positive=True)
    lr, wd = eta * c**power, lam / c**power
    if optimiser == "sgd":
        return c * w * (1 - lr * wd) - lr * g / c, c * (w * (1 - eta * lam) - eta * g)
    # Adam's averages of g / c and (g / c)^2 are m / c and v / c^2; its epsilon is rescaled too.
    moved = c * w * (1 - lr * wd) - lr * (first / c) / (sp.sqrt(second / c**2) + adam_eps / c)
    return moved, c * (w * (1 - eta * lam) - eta * first / (sp.sqrt(second) + adam_eps))


def prove_gauge(proof: Proof) -> None:
    """If c w_t is the other run's point, so is c w_{t+1}: induction over steps."""
    loss = sp.Function("L")
    w, moved_gradient, g = sp.symbols("w g_c g", real=True)
    # Differentiate L(c w) = L(w), coordinate by coordinate.
    left = sp.diff(loss(c * w), w).doit().replace(sp.Subs, lambda *_: moved_gradient)
    proof.equal("d/dw L(c w) = c g_c", left, c * moved_gradient)
    (solution,) = sp.solve(left - g, moved_gradient)
    proof.equal("so the gradient at c w is g / c", solution, g / c)
    steps: tuple[tuple[Optimiser, int], ...] = (("sgd", 2), ("adam", 1))
    for optimiser, power in steps:
        moved, claimed = rescaled_step(optimiser, sp.Integer(power))
        proof.equal(f"{optimiser}: lr c^{power}, wd c^-{power}", moved, claimed)


def prove_conservation(proof: Proof) -> None:
    """L(c^delta_1 x_1, c^delta_2 x_2) = L(x_1, x_2) gives Euler's identity: d/dt sum delta x^2 = 0 under flow."""
    x1, x2, d1, d2, g1, g2 = sp.symbols("theta_1 theta_2 delta_1 delta_2 g_1 g_2", real=True)
    loss, u1, u2 = sp.Function("L"), sp.Symbol("u_1"), sp.Symbol("u_2")
    moved = loss(u1, u2).diff(u1) * sp.diff(c**d1 * x1, c) + loss(u1, u2).diff(u2) * sp.diff(c**d2 * x2, c)
    euler = moved.subs({loss(u1, u2).diff(u1): g1, loss(u1, u2).diff(u2): g2}).subs(c, 1)
    proof.equal("d/dc L at c = 1, two tensors standing for any number", euler, d1 * g1 * x1 + d2 * g2 * x2)
    time = sp.Symbol("t")
    paths = [sp.Function(f"theta_{n}")(time) for n in (1, 2)]
    quantity = d1 * paths[0] ** 2 + d2 * paths[1] ** 2
    flow = {sp.diff(paths[0], time): -g1, sp.diff(paths[1], time): -g2}
    change = sp.diff(quantity, time).subs(flow).subs(dict(zip(paths, (x1, x2), strict=True)))
    proof.equal("gradient flow, d/dt sum delta theta^2 = -2 Euler = 0", change, -2 * euler)


def examples() -> dict[str, Architecture]:
    """Architectures whose number of symmetries is known by hand."""
    return {
        "rmsnorm, untied": Architecture(layers=1),
        "rmsnorm, tied": Architecture(layers=1, tied=True),
        "raw, untied": Architecture(layers=1, readout="raw"),
        "raw, tied": Architecture(layers=1, readout="raw", tied=True),
        "raw, tied, no gain": Architecture(layers=1, readout="raw", tied=True, gain=False),
        "rmsnorm, tied, no gain": Architecture(layers=1, tied=True, gain=False),
        "norm between loops, untied": Architecture(layers=1, between="rmsnorm"),
        "rmsnorm, untied, two layers": Architecture(),
        "tanh, untied": Architecture(layers=1, readout="tanh"),
    }


def matrix(tensors: list[str], system: list[ScalingDegree]) -> sp.Matrix:
    return sp.Matrix([[sp.Rational(row.coefficients.get(name, 0)) for name in tensors] for row in system])


def prove_null_spaces(proof: Proof) -> None:
    """SymPy's null space of each degree system equals loopsight's: one matrix, two routines."""
    for name, a in examples().items():
        tensors = list(random_model(a).parameters)
        system = matrix(tensors, equations(a))
        basis = system.nullspace()
        ours = sp.Matrix([[s[t] for t in tensors] for s in scaling_symmetries(tensors, equations(a))]).T
        proof.equal(f"{name}: number of symmetries", sp.Integer(len(basis)), sp.Integer(ours.shape[1]))
        both = ours.row_join(sp.Matrix.hstack(*basis))
        proof.equal(f"{name}: the two bases span one space", sp.Integer(both.rank()), sp.Integer(len(basis)))


def random_gauge(a: Architecture, rng: random.Random) -> Symmetry:
    """A sum of symmetries of the degree system, about half of them, each with either sign; never none at all."""
    tensors = list(random_model(a).parameters)
    basis = scaling_symmetries(tensors, equations(a))
    chosen = [s for s in basis if rng.random() < 0.5] or basis[:1]
    signs = [rng.choice([-1, 1]) for _ in chosen]
    return {name: sum(sign * s[name] for sign, s in zip(signs, chosen, strict=True)) for name in tensors}


def joint_gauge(a: Architecture) -> dict[str, int]:
    """Writers up by one degree, and what compensates: nothing, the readout's gain (tied), or the head (raw)."""
    found = dict.fromkeys(writers(a), 1)
    if a.readout == "raw" or a.tied:
        found["readout.gain" if a.gain else "head"] = -((a.readout == "raw") + a.tied)
    return found


@dataclass(frozen=True, kw_only=True)
class Training:
    """A short run with learning rates of its own for every tensor: relative steps of a few per cent at any scale."""

    model: RandomModel
    gradients: Mapping[str, Tensor]  # at the start; they only set the learning rates
    optimiser: Optimiser
    steps: int = STEPS

    def run(self, gauge: Symmetry, factor: float, rescale: bool = True) -> tuple[list[Tensor], Tensor]:
        """Losses of the run from the model moved along a gauge, and its last state; `rescale`: learning rates too."""
        weights, p, groups = loop_weights(self.model.architecture), {}, []
        for name, tensor in self.model.parameters.items():
            moved = factor ** gauge.get(name, 0)
            p[name] = (moved * tensor).requires_grad_()
            groups.append({"params": [p[name]], **self._options(name, moved if rescale else 1.0)})
        solver = torch.optim.SGD(groups) if self.optimiser == "sgd" else torch.optim.AdamW(groups)
        losses = []
        for _ in range(self.steps):
            gradients = torch.autograd.grad(
                loss := self.model.loss(p, weights), list(p.values()), materialize_grads=True
            )
            for tensor, gradient in zip(p.values(), gradients, strict=True):
                tensor.grad = gradient
            solver.step()
            losses.append(loss.detach())
        with torch.no_grad():
            return [*losses, self.model.loss(p, weights)], self.model.states(p)[-1]

    def _options(self, name: str, scale: float) -> dict[str, float]:
        size, slope = (x[name].square().mean().sqrt().item() for x in (self.model.parameters, self.gradients))
        if self.optimiser == "adam":
            return {"lr": 0.05 * size * scale, "weight_decay": 0.1 / scale, "eps": 1e-8 / scale}
        lr = 0.05 * size / slope if slope > 0.0 else 0.0
        return {"lr": lr * scale**2, "weight_decay": 0.1 / scale**2}


def run_difference(training: Training, gauge: Symmetry, factor: float, rescale: bool = True) -> float:
    """Largest relative difference of losses between a run and its image under a gauge, and of |h| / c."""
    losses, state = training.run({}, 1.0)
    others, other = training.run(gauge, factor, rescale)
    # A raw readout's loss may reach 0 exactly, in both runs.
    pairs = zip(losses, others, strict=True)
    by_loss = worst(0.0 if torch.equal(x, y) else ((x - y).abs() / x.abs()).item() for x, y in pairs)
    if not rescale:
        return by_loss
    stream = "between.gain" if training.model.architecture.between == "rmsnorm" else "token_embedding"
    return worst([by_loss, ((other / factor ** gauge[stream] - state).norm() / state.norm()).item()])


def underflows(gradient: Tensor) -> bool:
    """Would a square of it, of either run, have too few digits? A saturated attention leaves 1e-190 of a gradient."""
    sizes = gradient.abs()
    return bool(((sizes > 0.0) & (sizes < 1e-120)).any())


def euler_residuals(a: Architecture, model: RandomModel, gradients: Mapping[str, Tensor]) -> list[float]:
    """Of every symmetry in the null space of the degree system that moves a tensor with a gradient: a single token's
    queries and keys have none."""
    basis = scaling_symmetries(list(model.parameters), equations(a))
    weighed = {name for name, gradient in gradients.items() if has_gradient(gradient.flatten())}
    seen = [s for s in basis if any(degree != 0 and name in weighed for name, degree in s.items())]
    return [euler_residual(model.parameters, gradients, symmetry) for symmetry in seen]


def check(case: Case) -> Residual:
    """Worst Euler residual over the null space of a random architecture; infinity if the run of a random symmetry of
    it, or of the joint gauge, is not the same bit by bit."""
    rng = random.Random(case.seed)
    for attempt in range(20):
        a = draw_architecture(narrowed(replace(case, seed=case.seed + attempt)), batch=1, layers=1)
        if a.readout == "raw":
            a = replace(a, embedding_std=min(a.embedding_std, 3.0), spread=min(a.spread, 10.0))
        model = random_model(a)
        found = derivatives(model)
        if found.wrong < 1e-3:  # nothing left to learn, and so no gradient to weigh
            continue
        value = worst(euler_residuals(a, model, found.gradients))
        training = Training(model=model, gradients=found.gradients, optimiser=rng.choice(OPTIMISERS))
        if not torch.stack(training.run({}, 1.0)[0]).isfinite().all():  # a loss without a lower bound, say
            continue
        if any(underflows(gradient) for gradient in found.gradients.values()):
            continue
        runs = [(random_gauge(a, rng), rng.choice([-2, -1, 1, 2])), (joint_gauge(a), rng.choice([-7, -3, 2, 5]))]
        for gauge, power in runs:
            if set(gauge) <= set(model.parameters):  # tied without gain has no joint gauge
                value = value if run_difference(training, gauge, 2.0**power) == 0.0 else math.inf
        return Residual(value=value, tolerance=TOLERANCE)
    return Residual(value=math.nan, tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """Least of: gauge runs whose learning rates stay, a gauge that is none, a symmetry with a wrong degree added."""
    a = draw_architecture(case, readout="rmsnorm", between="none", tied=False, gain=True, layers=1, qk_norm=False)
    model, gauge = random_model(a), joint_gauge(a)
    gradients = derivatives(model).gradients
    sgd, adam = (Training(model=model, gradients=gradients, optimiser=optimiser) for optimiser in OPTIMISERS)
    embeddings_only = {"token_embedding": 1, "position_embedding": 1}
    values = [
        run_difference(sgd, gauge, 4.0, rescale=False),
        run_difference(adam, gauge, 4.0, rescale=False),
        run_difference(sgd, embeddings_only, 4.0),
        euler_residual(model.parameters, gradients, {**gauge, "0.attention.v": 1}),
    ]
    return Residual(value=least(values), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P13",
    title="a gauge gives the same training run bit by bit, and one linear system finds those that the code forces",
    words=(
        "Runs whose weights and learning rates differ by a scaling symmetry have the same losses at every "
        "step, bit by bit for powers of two; one linear system finds the symmetries that the code's structure forces."
    ),
    statement=(
        r"A\,\delta = 0 \;\Rightarrow\; L(c^{\delta}\theta) = L(\theta),\quad "
        r"\sum_i \delta_i \langle \nabla_i L, \theta_i \rangle = 0,\quad "
        r"\tfrac{d}{dt} \sum_i \delta_i |\theta_i|^2 = 0;\qquad "
        r"\eta_i \to c^{2\delta_i}\eta_i\ (\mathrm{SGD}),\ c^{\delta_i}\eta_i\ (\mathrm{Adam})"
        r"\;\Rightarrow\; \text{the same losses at every step}"
    ),
    hypotheses=(
        "epsilon is zero in every normalisation",
        "decoupled decay divided by the factor of its learning rate; Adam's epsilon by c^delta",
        "no clipping by a global norm",
        "bitwise for c a power of two, without overflow or underflow; to rounding otherwise",
        "symmetries between whole tensors; finer ones (per head, neuron, channel) need slices as unknowns",
        "data may add symmetries: a single token's queries and keys move nothing",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-6,
)
