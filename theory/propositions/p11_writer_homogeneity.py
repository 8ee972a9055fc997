"""P11: scaling every writer scales every state and nothing else; what the derivative is when something breaks that."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import sympy as sp
import torch
from torch import Tensor

from theory.cases import Case
from theory.laboratory import block_writers, draw_architecture, inner, lengths, loop_weights, writers
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.random_model import Architecture, RandomModel, random_model
from theory.symbols import c, d, eps, h, i, j, split, total

TOLERANCE = 1e-12
QK_EPS = 0.1

S1, S2 = sp.Symbol("S_1", real=True), sp.Symbol("S_2", positive=True)
V = sp.Symbol("V", integer=True, positive=True)
v, y, hidden, m = sp.symbols("v y n m", integer=True, positive=True)
z = sp.IndexedBase("z", real=True)
p, M, Z = sp.Symbol("p", real=True), sp.Symbol("M", real=True), sp.Symbol("Z", positive=True)
lam = sp.Symbol("lambda", positive=True)


def prove() -> Proof:
    """For symbolic d and V: a loop's states have degree 1 in the writers, its logits degree 0; then each exception.

    Attention between the norm and its writer, and the shapes of real branches, are in the numbers, not in SymPy.
    """
    proof = Proof()
    prove_states(proof)
    prove_derivatives(proof)
    prove_budget(proof)
    return proof


def prove_states(proof: Proof) -> None:
    """Induction over residual steps: h -> c h and writer -> c writer turn h + W f(N(h)) + bias into c times itself."""
    squares = split(total((c * h[i]) ** 2)).subs(total(h[i] ** 2), S2)
    proof.equal("RMSNorm of c h, coordinate j", c * h[j] / sp.sqrt(squares / d), h[j] / sp.sqrt(S2 / d))
    mean = split(total(c * h[i])).subs(total(h[i]), S1) / d
    variance = sp.Symbol("v", positive=True)  # of h; that of c h is c^2 v
    proof.equal("variance of c h", squares / d - mean**2, c**2 * (S2 / d - (S1 / d) ** 2))
    centred = (c * h[j] - mean) / sp.sqrt(c**2 * variance)
    proof.equal("LayerNorm of c h, coordinate j", centred, (h[j] - S1 / d) / sp.sqrt(variance))
    # The branch up to its writer sees normalised input only: its features f_m are the same numbers before and after.
    weight, feature, bias = (
        sp.IndexedBase("W", real=True),
        sp.IndexedBase("f", real=True),
        sp.IndexedBase("b", real=True),
    )
    moved = c * h[j] + sp.Sum(c * weight[j, m] * feature[m], (m, 1, hidden)) + c * bias[j]
    residual = h[j] + sp.Sum(weight[j, m] * feature[m], (m, 1, hidden)) + bias[j]
    proof.equal("residual step, coordinate j, with every writer scaled by c", moved, c * residual)


def scaled_cross_entropy() -> sp.Expr:
    """CE of the logits c^p z, which is what scaling by c leaves of logits of degree p."""
    return sp.log(sp.Sum(sp.exp(c**p * z[v]), (v, 1, V))) - c**p * z[y]


def gap() -> sp.Expr:
    """E_softmax[z] - z_y, from the definition."""
    partition = sp.Sum(sp.exp(z[v]), (v, 1, V))
    return sp.Sum(z[v] * sp.exp(z[v]), (v, 1, V)) / partition - z[y]


def prove_derivatives(proof: Proof) -> None:
    """d/dlog c at c = 1 of the terms that a joint writer scale c still reaches."""
    derivative = sp.diff(scaled_cross_entropy(), c).subs(c, 1).doit(deep=False)
    # The two sums are opaque from here on: Z = sum e^z, M = sum z e^z.
    sums = {sp.Sum(sp.exp(z[v]), (v, 1, V)): Z, sp.Sum(z[v] * sp.exp(z[v]), (v, 1, V)): M}
    derivative, claimed = split(derivative).subs(sums), p * gap().subs(sums)
    proof.equal("logits of degree p (0 blind, 1 raw or tied, 2 raw and tied): p gap", derivative, claimed)
    penalty = lam * split(total((c * h[i]) ** 2)) / d
    proof.equal("norm penalty P", sp.diff(penalty, c).subs(c, 1), 2 * lam * total(h[i] ** 2) / d)
    # With epsilon: N_eps(c h) = N_{eps / c^2}(h), so a loss L(w; eps) has L(c w; eps) = L(w; eps / c^2).
    with_eps = c * h[j] / sp.sqrt(c**2 * S2 / d + eps)
    proof.equal("N_eps(c h) = N_(eps / c^2)(h)", with_eps, h[j] / sp.sqrt(S2 / d + eps / c**2))
    loss = sp.Function("L")
    derivative = sp.diff(loss(eps / c**2), c).subs(c, 1).doit()
    proof.equal("epsilon leak", derivative, -2 * eps * sp.diff(loss(eps), eps))


def prove_budget(proof: Proof) -> None:
    """The joint derivative, 0 where no logit has a degree, is that of the embeddings plus that of the block writers."""
    loss = sp.Function("L")
    emb, blk, g_emb, g_blk = sp.symbols("emb w_blk g_emb g_blk", real=True)  # a coordinate standing for each
    joint = sp.diff(loss(c * emb, c * blk), c).replace(sp.Subs, lambda derivative, *_: derivative)
    by = {key: g_emb if key.variables[0] == key.expr.args[0] else g_blk for key in joint.atoms(sp.Derivative)}
    proof.equal("d/dc L(c emb, c w_blk) = <g_emb, emb> + <g_blk, w_blk>", joint.subs(by), g_emb * emb + g_blk * blk)
    # h_0 is linear in the embeddings: coordinate i of token tau is sum_v 1[x_tau = v] E_vi, and <g_emb, emb> sums this.
    upstream, table, pick = sp.Symbol("G_i", real=True), sp.IndexedBase("E", real=True), sp.IndexedBase("x", real=True)
    gradient_times_table = sp.Sum(pick[v] * upstream * table[v, i], (v, 1, V))
    state = sp.Sum(pick[v] * table[v, i], (v, 1, V))
    proof.equal("<g_emb, emb> = <G_0, h_0>, each token and coordinate", gradient_times_table, upstream * state)


@dataclass(frozen=True, kw_only=True)
class Derivatives:
    """What one backward pass tells.

    Attributes:
        gradients: of the loss, by tensor.
        initial_gradient, initial_state: G_0 and h_0.
        gap: sum_k w_k mean_t (E_p z - z_y), head bias excluded from z but not from p.
        wrong: sum_k |w_k| mean_t (1 - p_y): how much the loss still has to learn.
    """

    gradients: Mapping[str, Tensor]
    initial_gradient: Tensor
    initial_state: Tensor
    gap: float
    wrong: float


def derivatives(model: RandomModel) -> Derivatives:
    a, weights = model.architecture, loop_weights(model.architecture)
    p = {name: tensor.clone().requires_grad_() for name, tensor in model.parameters.items()}
    states, step, read = [model.embed(p)], model.step(p), model.readout(p)
    for _ in weights:
        states.append(step(states[-1]))
    logits = [read(h) for h in states[1:]]
    loss = torch.stack([w * model.cross_entropy(z) for w, z in zip(weights, logits, strict=True)]).sum()
    *gradients, initial = torch.autograd.grad(loss, [*p.values(), states[0]], allow_unused=True, materialize_grads=True)
    bias = p["head.bias"] if a.biases else torch.zeros(a.vocab, dtype=torch.float64)
    total_gap, wrong = 0.0, 0.0
    with torch.no_grad():
        for w, z in zip(weights, logits, strict=True):
            excess = z.softmax(-1).scatter_add(-1, model.labels[..., None], -torch.ones_like(z))
            total_gap += w * (excess * (z - bias)).sum(-1).mean().item()
            wrong += abs(w) * -excess.gather(-1, model.labels[..., None]).mean().item()
    return Derivatives(
        gradients=dict(zip(p, gradients, strict=True)),
        initial_gradient=initial,
        initial_state=states[0].detach(),
        gap=total_gap,
        wrong=wrong,
    )


def leak_residual(model: RandomModel, eps: float, weight: float) -> float:
    """|<g_w, w> - p gap - 2 P + 2 eps dL/deps| / (|g_w| |w|), L = loss + P, P = weight times the states' mean square.

    Epsilon is that of all norms that read the state. QK-norm reads what has degree 0 already, and keeps its own.
    """
    a, weights, names = model.architecture, loop_weights(model.architecture), writers(model.architecture)
    p = {**model.parameters, "eps": torch.tensor(eps, dtype=torch.float64)}
    p = {name: tensor.clone().requires_grad_() for name, tensor in p.items()}
    states = model.states(p)[1:]
    logits = torch.stack([model.readout(p)(h) for h in states])
    bias = p["head.bias"] if a.biases else 0.0
    gaps = [w * gap_of(z, z - bias, model.labels) for w, z in zip(weights, logits, strict=True)]
    penalty = weight * torch.stack([h.square().mean() for h in states]).sum()
    loss = torch.stack([w * model.cross_entropy(z) for w, z in zip(weights, logits, strict=True)]).sum() + penalty
    found = torch.autograd.grad(loss, list(p.values()), allow_unused=True, materialize_grads=True)
    gradients = dict(zip(p, found, strict=True))
    claimed = along_writers(logit_degree(a) * torch.stack(gaps).sum(), penalty, eps * gradients["eps"])
    return abs(inner(gradients, p, names) - claimed.item()) / lengths(gradients, p, names)


def along_writers(gap: Tensor, penalty: Tensor, leak: Tensor) -> Tensor:
    """<g_w, w> from p gap, P and eps dL/deps."""
    return gap + 2.0 * penalty - 2.0 * leak


def gap_of(logits: Tensor, scaled: Tensor, labels: Tensor) -> Tensor:
    """mean_t (E_p z - z_y) of the logits' part that scales."""
    excess = logits.softmax(-1).scatter_add(-1, labels[..., None], -torch.ones_like(logits))
    return (excess * scaled).sum(-1).mean()


def residual(model: RandomModel, names: tuple[str, ...], degree: int) -> float:
    """|<g_w, w> - degree gap| / (|g_w| |w|); NaN where the loss has nothing left to learn and so no gradient."""
    found = derivatives(model)
    scale = lengths(found.gradients, model.parameters, names)
    if found.wrong < 1e-3 or scale < 1e-9:
        return float("nan")
    return abs(inner(found.gradients, model.parameters, names) - degree * found.gap) / scale


def logit_degree(a: Architecture) -> int:
    """Degree of the logits in the writers: one for a raw readout, one more for a tied head."""
    return (a.readout == "raw") + a.tied


def budget_residual(model: RandomModel, found: Derivatives, blocks: tuple[str, ...]) -> float:
    """|<G_0, h_0> + <g_blk, w_blk> - gap of a raw readout| / (|g_w| |w|). Without the embedding's second role as head,
    only that readout sees the scale."""
    budget = (found.initial_gradient * found.initial_state).sum().item()
    budget += inner(found.gradients, model.parameters, blocks) - (model.architecture.readout == "raw") * found.gap
    return abs(budget) / lengths(found.gradients, model.parameters, writers(model.architecture))


def _residuals(model: RandomModel) -> tuple[float, ...]:
    """Joint writer scale; block writers against h_0; and the tied gauge that a readout gain restores."""
    a, found = model.architecture, derivatives(model)
    parameters, joint = model.parameters, writers(a)
    scale = lengths(found.gradients, parameters, joint)
    if found.wrong < 1e-3 or scale < 1e-9:
        return ()
    along = inner(found.gradients, parameters, joint)
    values = (abs(along - logit_degree(a) * found.gap) / scale, budget_residual(model, found, block_writers(a)))
    if not a.gain:
        return values
    gain = inner(found.gradients, parameters, ("readout.gain",))
    return (*values, abs(along - logit_degree(a) * gain) / scale)


def check(case: Case) -> Residual:
    """Worst |claim| / (|g_w| |w|) on a random architecture, signed loop weights, epsilon 0; and its derivative with an
    epsilon and a penalty, each of the size of what it competes with, beside an epsilon of QK-norm that is left alone.
    """
    for attempt in range(20):
        a = draw_architecture(replace(case, seed=case.seed + attempt))
        if a.readout == "raw":  # logits beyond the hundreds saturate the softmax, whose gradients are then rounding
            a = replace(a, embedding_std=min(a.embedding_std, 3.0), spread=min(a.spread, 10.0))
        values = _residuals(random_model(a))
        if values:
            size = a.embedding_std**2
            eps = size * 10.0 ** random.Random(a.seed).uniform(-3.0, 1.0)
            leak = leak_residual(random_model(replace(a, eps=QK_EPS)), eps, weight=1e-2 / size)
            return Residual(value=worst([*values, leak]), tolerance=TOLERANCE)
    return Residual(value=float("nan"), tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """Least of the same over sets that are not the writers, or the block writers, and architectures that break it."""
    plain = draw_architecture(case, readout="rmsnorm", between="none", tied=False, loops=3, layers=2, qk_norm=False)
    model, names = random_model(plain), writers(plain)
    wrong_sets = (
        tuple(name for name in names if name != "position_embedding"),
        tuple(name for name in names if name != "0.mlp.down"),
        (*names, "0.attention.v"),
        block_writers(plain),
    )
    values = [residual(model, wrong, 0) for wrong in wrong_sets]
    for change in ({"readout": "tanh"}, {"readout": "raw"}, {"tied": True}, {"eps": 1e-1}):
        values.append(residual(random_model(replace(plain, **change)), names, 0))
    found, blocks = derivatives(model), block_writers(plain)
    values += [budget_residual(model, found, blocks[1:]), budget_residual(model, found, (*blocks, "0.attention.v"))]
    return Residual(value=least(values), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P11",
    title="the joint scale of all writers moves every state and no logit; exact derivatives where that breaks",
    words=(
        "Scaling everything that writes to the state scales every state and moves no logit; a raw readout, a tied "
        "head, a norm penalty or an epsilon of the norms that read the state break this by exactly known amounts."
    ),
    statement=(
        r"h_k(c\,w) = c\,h_k(w),\quad \langle \nabla_w L, w \rangle = "
        r"p \sum_k w_k\, \overline{\mathrm{gap}}_k + 2P - 2\epsilon\,\partial_\epsilon L,\quad "
        r"\langle G_0, h_0 \rangle = -\langle \nabla_{w_\mathrm{blk}} L, w_\mathrm{blk} \rangle"
    ),
    hypotheses=(
        "every branch reads a normalised state; the writers: embeddings and one factor of every branch, biases too",
        "L includes the penalty P, of degree 2 in the states; epsilon: of norms that read the state, not of QK-norm",
        "p counts a raw readout and a tied head, one each; 0 when untied and normalised",
        "a learnable readout gain restores a tied gauge: <g_w, w> = <g_gain, gain>",
        "h_k(c w) = c h_k(w): that epsilon zero",
        "the last identity: that epsilon zero, no penalty, no logit of degree 1 in the state, embeddings as input only",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-8,
)
