"""P7: what a penalty on the states' norm does to a scale that the cross-entropy does not see.

P = lambda mean over loops 1..K and tokens of rms(h)^2, and w for all writers together.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from theory.cases import Case
from theory.laboratory import SCALE_FREE, along, draw_architecture, gradients_of, narrowed, writers
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.propositions.p06_raw_readout import mean_gap
from theory.random_model import RandomModel, random_model
from theory.symbols import c, i, split

lam, n, eta = (
    sp.Symbol("lambda", positive=True),
    sp.Symbol("n", integer=True, positive=True),
    sp.Symbol("eta", positive=True),
)
penalty = sp.Symbol("P", positive=True)
rms = sp.IndexedBase("r", positive=True)
"""Root mean square of the n = K B T penalised states."""


def prove() -> Proof:
    """Symbolic numbers of states and parameters: derivatives, the flow, an SGD step, ties and gains.

    Given that states have degree 1 and blind logits degree 0 in the writers w (P11): L(c w) = L(w), P(c w) = c^2 P(w).
    """
    proof = Proof()
    one = sp.Symbol("x", real=True)  # log-scale of a single state
    own = lam / n * (sp.exp(one) * rms[i]) ** 2
    proof.equal("one state's log-scale", sp.diff(own, one).subs(one, 0), 2 * lam * rms[i] ** 2 / n)

    total_penalty = lam / n * over(rms[i] ** 2)
    proof.equal("joint writer scale: dP/dlog c = 2 P", joint_derivative(), 2 * total_penalty)

    loss = sp.Function("L")
    along_w = sp.diff(loss(sp.Integer(1)) + c**2 * penalty, c).subs(c, 1)
    proof.equal("(a) untied: L(c w) = L(w), so <grad_w (L + P), w> = 2 P", along_w, 2 * penalty)
    proof.true("(a) which is never zero: no stationary point", sp.Gt(along_w, 0))
    proof.equal("(a) gradient flow: d|w|^2/dt = -2 <grad, w>", -2 * along_w, -4 * penalty)
    _prove_collapse(proof)
    _prove_step(proof)
    _prove_ties(proof)
    return proof


def over(term: sp.Expr) -> sp.Sum:
    return sp.Sum(term, (i, 1, n))


def joint_derivative() -> sp.Expr:
    return split(sp.diff(lam / n * over((c * rms[i]) ** 2), c).subs(c, 1).doit())


def _prove_collapse(proof: Proof) -> None:
    """Far above sqrt(eps) a blind readout leaks eps / m of a slope kappa (P2), m = c^2 r^2; against it stands 2 P.
    Taken as constant and positive: where the labels are not fitted, kappa may have either sign."""
    leak, slope, r = sp.symbols("epsilon kappa r", positive=True)
    balance = -slope * leak / (c * r) ** 2 + 2 * lam * (c * r) ** 2
    rest = sp.solve(balance, c)
    proof.equal(
        "(a) with epsilon and a slope kappa > 0 that stays, the scale comes to rest once",
        sp.Integer(len(rest)),
        sp.Integer(1),
    )
    proof.equal("(a) at a mean square of sqrt(kappa eps / 2 lambda)", (rest[0] * r) ** 4, slope * leak / (2 * lam))


def _prove_step(proof: Proof) -> None:
    w, g = sp.IndexedBase("w", real=True), sp.IndexedBase("g", real=True)
    inner = over(w[i] * g[i])
    after = split(over((w[i] - eta * g[i]) ** 2))
    proof.equal(
        "(a) an SGD step, with <g, w> = 2 P",
        after.subs(split(inner), 2 * penalty),
        over(w[i] ** 2) - 4 * eta * penalty + eta**2 * over(g[i] ** 2),
    )
    square = sp.Symbol("G", positive=True)  # |g|^2
    balance = sp.solve(sp.Eq(-4 * eta * penalty + eta**2 * square, 0), penalty)
    proof.equal("(a) |w| rests where 4 P = eta |g|^2", 4 * balance[0], eta * square)
    # The gradient's component k w along w, which is what weight decay with coefficient k adds: <k w, w> = 2 P.
    square_w, k = sp.Symbol("N", positive=True), sp.Symbol("k", real=True)  # N = |w|^2
    decay = sp.solve(sp.Eq(k * square_w, 2 * penalty), k)[0]
    proof.equal("(a) along w it is weight decay with coefficient 2 P / |w|^2", decay, 2 * penalty / square_w)


def _prove_ties(proof: Proof) -> None:
    """A tied head is a writer too: logits scale with it, and with the readout's gain."""
    gain, start = sp.Symbol("gamma", positive=True), sp.Symbol("L_1", real=True)
    slope = sp.Symbol("S", real=True)  # sum_k w_k mean gap_k
    # Logits c gamma z, and a loss to first order in the log of their scale, of which its slope is all that counts.
    tied = start + slope * sp.log(c * gain) + c**2 * penalty
    along_w, along_gain = (sp.diff(tied, x).subs({c: 1, gain: 1}) for x in (c, gain))
    proof.equal("(b) tied: <grad_w, w> = S + 2 P", along_w, slope + 2 * penalty)
    proof.equal(
        "(b) stationary where 2 P = -S, the mean true minus expected logit", sp.solve(along_w, slope)[0], -2 * penalty
    )
    proof.equal("(c) and the gain's: S", along_gain, slope)
    proof.true("(c) they never vanish together", sp.Gt(along_w - along_gain, 0))
    flow = -2 * along_w + 2 * along_gain
    proof.equal("(c) gradient flow: d(|w|^2 - |gain|^2)/dt = -4 P", flow, -4 * penalty)


def penalty_of(states: Sequence[Tensor], coefficient: float) -> Tensor:
    """P of h_0, ..., h_K: the first is not penalised."""
    return coefficient * torch.stack([h.square().mean() for h in states[1:]]).mean()


def moderate_coefficient(model: RandomModel) -> float:
    """lambda such that P is 1e-3 to 10 times the logits, whatever the scale of states and of a tied head."""
    wanted = 10.0 ** random.Random(model.architecture.seed).uniform(-3.0, 1.0)
    return wanted * mean_gap(model)[1] / penalty_of(model.states(), 1.0).item()


def objective(model: RandomModel, coefficient: float) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda parameters: model.loss(parameters) + penalty_of(model.states(parameters), coefficient)


def state_residual(model: RandomModel, coefficient: float, penalised: slice = slice(None)) -> float:
    """Largest |dP/dlog s - 2 lambda rms^2 / (K B T)| over states, relative to it, by reverse mode.

    Args:
        penalised: which of h_0, ..., h_K are given to the penalty; all of them.
    """
    states = [h.detach().requires_grad_() for h in model.states()]
    gradients = torch.autograd.grad(
        penalty_of(states[penalised], coefficient), states[1:], allow_unused=True, materialize_grads=True
    )
    tokens = states[0].shape[:-1].numel() * (len(states) - 1)
    expected = [2 * coefficient * h.square().mean(-1) / tokens for h in states[1:]]
    errors = [((g * h).sum(-1) / e - 1).abs().max() for g, h, e in zip(gradients, states[1:], expected, strict=True)]
    return torch.stack(errors).max().item()


def writer_residual(model: RandomModel, coefficient: float, gaps: int) -> float:
    """<grad_w (L + P), w> against gaps S + 2 P, gaps = 1 when tied and 0 when not; and the gain's against S.

    Relative to |grad_w| |w| + max |z|. The logits belong to it: where a tied head of large weights fits its labels,
    gradients are zero.
    """
    a, names = model.architecture, writers(model.architecture)
    gradients = gradients_of(objective(model, coefficient), model.parameters)
    p, (slope, logits) = penalty_of(model.states(), coefficient).item(), mean_gap(model)
    inner, size = along(gradients, model.parameters, names)
    value = abs(inner - 2 * p - gaps * slope) / (size + logits)
    if a.gain:
        inner, size = along(gradients, model.parameters, ["readout.gain"])
        value = worst([value, abs(inner - slope) / (size + logits)])
    return value


def step_residual(model: RandomModel, coefficient: float) -> float:
    """| |w+|^2 - (|w|^2 - 4 eta P + eta^2 |g|^2) | / |w|^2 after a step of a tenth of |w|, for an untied model."""
    gradients = gradients_of(objective(model, coefficient), model.parameters)
    p = penalty_of(model.states(), coefficient).item()
    w, g = (
        torch.cat([x[name].flatten() for name in writers(model.architecture)]) for x in (model.parameters, gradients)
    )
    rate = 0.1 * (w.norm() / g.norm()).item()
    expected = w.square().sum() - 4 * rate * p + rate**2 * g.square().sum()
    return (((w - rate * g).square().sum() - expected).abs() / w.square().sum()).item()


def joint_residual(model: RandomModel, coefficient: float, names: Sequence[str]) -> float:
    """|dP/dlog c - 2 P| / 2 P for the joint scale of these tensors: all writers."""
    gradients = gradients_of(lambda p: penalty_of(model.states(p), coefficient), model.parameters)
    inner, _ = along(gradients, model.parameters, names)
    return abs(inner / (2 * penalty_of(model.states(), coefficient).item()) - 1)


def check(case: Case) -> Residual:
    """All derivatives, and an SGD step, of a random model with a normalised readout."""
    model = random_model(draw_architecture(narrowed(case), readouts=SCALE_FREE))
    coefficient = moderate_coefficient(model)
    a = model.architecture
    residuals = [
        state_residual(model, coefficient),
        writer_residual(model, coefficient, gaps=int(a.tied)),
        joint_residual(model, coefficient, writers(a)),
        *([] if a.tied else [step_residual(model, coefficient)]),
    ]
    return Residual(value=worst(residuals), tolerance=1e-12)


def control(case: Case) -> Residual:
    """The least of: the untied claims, slope and SGD step, for a raw readout and for a tied head, whose cross-entropy
    sees the scale; dP/dlog c without one of the writers, the position embedding; and states of which only the last is
    penalised."""

    def model_of(**changes: Any) -> RandomModel:
        return random_model(draw_architecture(narrowed(case), gain=False, between="none", **changes))

    failures = []
    for model in (model_of(readout="raw", tied=False), model_of(readout="rmsnorm", tied=True)):
        coefficient = moderate_coefficient(model)
        failures += [writer_residual(model, coefficient, gaps=0), step_residual(model, coefficient)]
    blind = model_of(readout="rmsnorm", tied=False, loops=3)
    incomplete = [name for name in writers(blind.architecture) if name != "position_embedding"]
    coefficient = moderate_coefficient(blind)
    failures += [joint_residual(blind, coefficient, incomplete), state_residual(blind, coefficient, slice(-2, None))]
    return Residual(value=least(failures), tolerance=1e-12)


PROPOSITION = Proposition(
    key="P7",
    title="behind a blind, untied readout a norm penalty is weight decay on the writers' joint norm: nothing rests",
    words=(
        "Behind a scale-free, untied readout a norm penalty acts as weight decay on the joint norm of everything "
        "written to the state: without epsilon, no point is stationary."
    ),
    statement=(
        r"P = \lambda\, \overline{\mathrm{rms}^2}: \quad \frac{dP}{d \log c} = 2 P; \quad"
        r"\text{untied: } \langle \nabla_w (L + P), w \rangle = 2 P > 0; \quad"
        r"\text{tied: } \langle \nabla_w (L + P), w \rangle = S + 2 P,\ \langle \nabla_\gamma L, \gamma \rangle = S,\ "
        r"S = \textstyle\sum_k w_k\, \overline{\mathrm{gap}}_k"
    ),
    hypotheses=(
        "the readout and every branch normalise their input, epsilon zero",
        "w is all writers together (one alone may be driven outward): embeddings, the branches' output maps and "
        "biases, a between-loop norm's gain; states are not zero, where nothing is differentiable",
        "the penalty averages over loops 1..K and tokens",
        "tied: the readout has no bias between its normalisation and its gain; without a gain it rests where 2 P = -S",
    ),
    source="arXiv 2606.24898 (norm penalty); its consequences: this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-8,
)
