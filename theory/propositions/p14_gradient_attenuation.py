"""P14: gradients fall as what they are of grows, and not backward in k.

Larger writers have smaller gradients and leave the readers' alone; a larger state beside the same blocks
attenuates what the blocks write and read.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from theory.cases import Case
from theory.laboratory import block_writers, draw_architecture, gradients_of, loop_weights, narrowed, writers
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.random_model import Architecture, RandomModel, random_model

TOLERANCE = 1e-10
FAR = 1e15  # scale of h_0 at which (c)'s O(1/s) is rounding
FACTOR = 7.0

# Embeddings, block writers and readers, two coordinates of each. More enter as these do: as the e_1 that all ratios are
# taken to (where it is not 0), as further ratios, or as further readers.
e = (sp.Symbol("e_1", real=True, nonzero=True), sp.Symbol("e_2", real=True))
b, r = sp.symbols("b_1:3", real=True), sp.symbols("r_1:3", real=True)
s = sp.Symbol("s", positive=True)
loss = sp.Function("L")
Coordinates = tuple[sp.Symbol, ...]


def prove() -> Proof:
    proof = Proof()
    prove_writers_and_readers(proof)
    prove_embeddings(proof)
    prove_block_readers(proof)
    prove_loops(proof)
    return proof


def log_gauged(embeddings: Coordinates, blocks: Coordinates, readers: Coordinates) -> sp.Expr:
    """Every function of (e, b, r) of degree 0 in (e, b) jointly is a function of the ratios to e_1 and of r."""
    first, *others = embeddings
    return loss(*(x / first for x in (*others, *blocks)), *readers)


def scaled_by(expression: sp.Expr, symbols: Coordinates, factor: sp.Expr) -> sp.Expr:
    return expression.subs({x: factor * x for x in symbols}, simultaneous=True).doit()


GRADIENTS = [("reader", r, 0), ("block writer", b, 1), ("embedding", e, 1)]
"""Whose gradient, and what power of the scale it falls with."""


def prove_writers_and_readers(proof: Proof) -> None:
    """(a) At c times the writers: readers' gradients unchanged, writers' divided by c."""
    factor = sp.Symbol("c", positive=True)
    for name, coordinates, power in GRADIENTS:
        for x in coordinates:
            here = sp.diff(log_gauged(e, b, r), x).doit()
            there = factor**power * scaled_by(here, (*e, *b), factor)
            proof.equal(f"{name}'s gradient at c times the writers, times c^{power}: {x}", there, here)


def prove_embeddings(proof: Proof) -> None:
    """(b) Embeddings alone times s: the gradients are 1/s times those of the model whose block writers are b / s."""
    for name, coordinates, power in GRADIENTS:
        for x in coordinates:
            gradient = sp.diff(log_gauged(e, b, r), x).doit()
            larger_state, smaller_blocks = scaled_by(gradient, e, s), scaled_by(gradient, b, 1 / s)
            proof.equal(f"{name}'s gradient at (s e, b), times s^{power}: {x}", s**power * larger_state, smaller_blocks)


def residual_step(state: tuple[sp.Expr, ...], branch: sp.Expr, small: sp.Symbol) -> tuple[sp.Expr, ...]:
    """h + (b / s) f(h, r), small = 1/s: a block reader acts only through a branch, which b / s weighs."""
    return tuple(x + small * weight * branch for x, weight in zip(state, b, strict=True))


def prove_block_readers(proof: Proof) -> None:
    """(b) Two residual steps at b / s: the gradient of a reader of both starts at first order in 1/s."""
    small, branches = sp.Symbol("delta", positive=True), sp.symbols("f g", cls=sp.Function)
    state: tuple[sp.Expr, ...] = e
    for branch in branches:
        state = residual_step(state, branch(*state, *r), small)
    gradient = sp.diff(loss(*state), r[0])
    proof.equal("block reader's gradient at b / s = 0", gradient.subs(small, 0).doit(), sp.Integer(0))
    along_b = sum(weight * sp.diff(loss(*e), x) for weight, x in zip(b, e, strict=True))
    answer = sum(sp.diff(branch(*e, *r), r[0]) for branch in branches)
    slope = sp.diff(gradient, small).subs(small, 0).doit()
    proof.equal("block reader's gradient times s, as 1/s -> 0", slope, along_b * answer)


ALPHA = sp.Symbol("alpha", positive=True)


def loop(state: tuple[sp.Expr, ...], small: sp.Symbol) -> tuple[sp.Expr, ...]:
    """In units of s, small = 1/s: alpha h + b(h) / s, every coordinate of b an arbitrary function of all of h."""
    return tuple(ALPHA * x + small * sp.Function(f"b_{n}")(*state) for n, x in enumerate(state, 1))


def total_gradient(weights: Coordinates, start: Coordinates, small: sp.Symbol) -> list[sp.Expr]:
    """Derivatives in h_k = start, in units of 1/s, of sum_j w_j l(h_j)."""
    state, through = start, sp.Integer(0)
    for weight in weights:
        through += weight * sp.Function("l")(*state)
        state = loop(state, small)
    return [sp.diff(through, x) for x in start]


def prove_loops(proof: Proof) -> None:
    """(c) In units of s a loop is h -> alpha h + b / s, alpha = 1 without damping: its Jacobian alpha + Db / s carries
    gradients back times alpha, and the state's norm is as much larger there. Two coordinates, three loops."""
    small = sp.Symbol("delta", positive=True)  # 1 / s_k
    start, at = sp.symbols("x_1:3", real=True), sp.symbols("y_1:3", cls=sp.Dummy)  # of h_k / s_k
    weights = sp.symbols("w_1:4", real=True)
    for k in range(3):
        for n, gradient in enumerate(total_gradient(weights[k:], start, small)):
            slope = sp.diff(sp.Function("l")(*at), at[n])
            scales = [ALPHA**j for j in range(3 - k)]  # s_j / s_k
            exits = sum(
                weight * size * sp.Subs(slope, at, [size * x for x in start])
                for weight, size in zip(weights[k:], scales, strict=True)
            )
            text = f"s G_{k + 1} as 1/s -> 0, coordinate {n + 1}: s_j times the slope at every exit from here on"
            proof.equal(text, gradient.subs(small, 0).doit(), exits.doit())


def gradients(model: RandomModel, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = loop_weights(model.architecture)
    return gradients_of(lambda p: model.loss(p, weights), parameters)


def scaled(parameters: Mapping[str, Tensor], names: tuple[str, ...], factor: float) -> dict[str, Tensor]:
    return {name: factor * tensor if name in names else tensor for name, tensor in parameters.items()}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: tuple[str, ...]) -> float:
    """|one - other| / |other| over the named tensors together; NaN where there is no gradient."""
    difference = sum((one[name] - other[name]).square().sum().item() for name in names)
    size = sum(other[name].square().sum().item() for name in names)
    return math.sqrt(difference / size) if size > 0.0 else math.nan


def readers(model: RandomModel) -> tuple[str, ...]:
    return tuple(name for name in model.parameters if name not in writers(model.architecture))


def joint_scaling_residual(model: RandomModel) -> float:
    """(a): readers' gradients unchanged by FACTOR on the writers, writers' divided by it."""
    joint = writers(model.architecture)
    here, there = gradients(model, model.parameters), gradients(model, scaled(model.parameters, joint, FACTOR))
    there |= {name: FACTOR * there[name] for name in joint}
    return worst([distance(there, here, joint), distance(there, here, readers(model))])


def embedding_scaling_residual(model: RandomModel) -> float:
    """(b): gradients at FACTOR times the embeddings against those at the block writers divided by FACTOR."""
    blocks = block_writers(model.architecture)
    embeddings = tuple(name for name in writers(model.architecture) if name not in blocks)
    larger = gradients(model, scaled(model.parameters, embeddings, FACTOR))
    larger |= {name: FACTOR * larger[name] for name in (*blocks, *embeddings)}
    smaller = gradients(model, scaled(model.parameters, blocks, 1.0 / FACTOR))
    return worst(distance(larger, smaller, names) for names in (blocks, embeddings, readers(model)))


def total_and_immediate_gradients(model: RandomModel) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """G_1, ..., G_K; the gradients of each loop's own weighted loss; and the states."""
    weights, read, step = loop_weights(model.architecture), model.readout(), model.step()
    states = [model.embed().requires_grad_()]
    for _ in weights:
        states.append(step(states[-1]))
    own = [w * model.cross_entropy(read(h)) for w, h in zip(weights, states[1:], strict=True)]
    total = torch.autograd.grad(torch.stack(own).sum(), states[1:], retain_graph=True)
    immediate: list[Tensor] = []
    for loss_k, h in zip(own, states[1:], strict=True):
        immediate += torch.autograd.grad(loss_k, h, retain_graph=True)
    return list(total), immediate, [h.detach() for h in states[1:]]


def backward_attenuation_residual(model: RandomModel) -> float:
    """(c): |s_k G_k - sum_{j >= k} s_j imm_j| / |s_k G_k|, worst loop; every token by its own scale."""
    total, immediate, states = total_and_immediate_gradients(model)
    sizes = [h.norm(dim=-1, keepdim=True) for h in states]
    errors = []
    for k, gradient in enumerate(total):
        predicted = torch.stack([g * size for g, size in zip(immediate[k:], sizes[k:], strict=True)]).sum(0)
        errors.append(((gradient * sizes[k] - predicted).norm() / (gradient * sizes[k]).norm()).item())
    return worst(errors)


def blind_architecture(case: Case, **changes: Any) -> Architecture:
    fixed: dict[str, Any] = {
        "readout": "rmsnorm",
        "tied": False,
        "batch": 1,
        "layers": 1,
        "between": "none",
        "loops": 2,
    }
    return draw_architecture(narrowed(case), **{**fixed, **changes})


def check(case: Case) -> Residual:
    """Worst of the three claims, damped for half of the seeds: (a) and (b) at the case's scales, (c) at 1e15."""
    for attempt in range(20):
        seed = case.seed + attempt
        a = blind_architecture(replace(case, seed=seed), between="damping" if seed % 2 else "none")
        near, far = random_model(a), random_model(replace(a, embedding_std=FAR))
        values = joint_scaling_residual(near), embedding_scaling_residual(near), backward_attenuation_residual(far)
        if not any(math.isnan(value) for value in values):
            return Residual(value=worst(values), tolerance=TOLERANCE)
    return Residual(value=math.nan, tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """Least residual of (a) and (b) where the readout sees the scale, and of (c) where states are small or normed."""
    a = blind_architecture(case)
    values = []
    for change in ({"readout": "raw"}, {"readout": "tanh"}, {"eps": 1e-1}):
        model = random_model(replace(a, **change))
        values += [joint_scaling_residual(model), embedding_scaling_residual(model)]
    values.append(backward_attenuation_residual(random_model(a)))
    values.append(backward_attenuation_residual(random_model(replace(a, between="rmsnorm", embedding_std=FAR))))
    return Residual(value=least(values), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P14",
    title="larger writers have smaller gradients, readers not, and large states attenuate nothing backward in loops",
    words=(
        "Large states, with no norm between loops, do not attenuate |h| times its gradient on the way back; scaling "
        "all writers by c divides their gradients by c, not the readers'; large embeddings alone attenuate all blocks'."
    ),
    statement=(
        r"\nabla_r L(c\,w, r) = \nabla_r L(w, r),\quad \nabla_w L(c\,w, r) = \tfrac1c \nabla_w L(w, r),\quad "
        r"\nabla_b L(s\,e, b, r) = \tfrac1s \nabla_b L(e, b/s, r),\quad "
        r"s_k G_k = \sum_{j \ge k} w_j \hat L'_j + O(1/s),\ \hat L'_j = s_j \nabla \ell(h_j)"
    ),
    hypotheses=(
        "untied, normalised readout, epsilon zero; w = (e, b) embeddings and block writers, r readers",
        "(a) joint scale of all writers c; (b) embeddings alone by s, block writers b fixed: exact, any s",
        "(b) block readers: as b / s falls, their gradients do, as 1/s; readers of the final state keep theirs",
        "(c) nothing or damping between loops, states far larger than what a loop adds; s_k, s_j of every token",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-6,
)
