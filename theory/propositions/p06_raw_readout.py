"""P6: what a raw readout sees of the scale, and when the data pin it.

z stands for the logits of the state as it is, gap = E_p[z] - z_y for the expected minus the true logit.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loopsight.derivatives import differentiable_kernels
from theory.cases import Case
from theory.laboratory import along, draw_architecture, gradients_of, narrowed, writers
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.propositions.p03_blind_subspace import prove_variance
from theory.random_model import RandomModel, StateMap, random_model

c = sp.Symbol("c", real=True)
classes = sp.Symbol("V", integer=True, positive=True)
v, label = sp.symbols("v y", integer=True, positive=True)
z = sp.IndexedBase("z", real=True)


def prove() -> Proof:
    """Symbolic number of classes: slope and curvature along the ray, its ends, the tied argmax, the gauge."""
    proof = Proof()
    loss = sp.log(over(sp.exp(c * z[v]))) - c * z[label]
    expected = over(z[v] * sp.exp(c * z[v])) / over(sp.exp(c * z[v]))
    proof.equal("(a) l'(c) = E_p z - z_y, p the softmax of c z", sp.diff(loss, c), expected - z[label])
    second_moment = over(z[v] ** 2 * sp.exp(c * z[v])) / over(sp.exp(c * z[v]))
    proof.equal("(a) l''(c) = Var_p z", sp.diff(loss, c, 2), second_moment - expected**2)
    prove_variance(proof)  # hence l'' > 0 unless all logits are equal, and l' has at most one zero
    _prove_ends(proof, expected)
    _prove_tie(proof)
    _prove_gauge(proof)
    return proof


def over(term: sp.Expr) -> sp.Sum:
    return sp.Sum(term, (v, 1, classes))


def _prove_ends(proof: Proof, expected: sp.Expr) -> None:
    """l' runs from min z - z_y over mean z - z_y at c = 0 to max z - z_y."""
    proof.equal("(b) at c = 0 the expectation is the mean", expected.subs(c, 0).doit(), over(z[v]) / classes)
    # E_p z - max z = sum_v x_v e^(c x_v) / sum_v e^(c x_v), x = z - max z, with a denominator of at least 1.
    below = sp.Symbol("x", negative=True)
    proof.equal(
        "(b) c -> oo: every lower logit's term vanishes", sp.limit(below * sp.exp(c * below), c, sp.oo), sp.Integer(0)
    )
    above = sp.Symbol("x", positive=True)  # z - min z
    proof.equal(
        "(b) c -> -oo: every higher logit's does", sp.limit(above * sp.exp(c * above), c, -sp.oo), sp.Integer(0)
    )


def _prove_tie(proof: Proof) -> None:
    """n of V logits share the maximum, the label's among them, and the others lie g below."""
    n, lower, g, at = sp.symbols("n m g c", positive=True)
    tied = sp.log(n + lower * sp.exp(-g * at))
    slope = sp.diff(tied, at)
    proof.equal("(b) tied argmax: the loss falls to log n", sp.limit(tied, at, sp.oo), sp.log(n))
    proof.true("(b) and never stops falling: no minimiser", sp.Lt(slope, 0))


def _prove_gauge(proof: Proof) -> None:
    """Given that a raw readout's logits depend on writers w and head U by products, z(a w, b U) = a b z(w, U), which is
    P11 and is measured by `gauge_residuals`, the loss at scales a, b is L(a b); tied, b = a."""
    a, b = sp.symbols("a b", positive=True)
    loss = sp.Function("L")
    along_w = sp.diff(loss(a * b), a).doit().subs({a: 1, b: 1}).doit()
    along_u = sp.diff(loss(a * b), b).doit().subs({a: 1, b: 1}).doit()
    proof.equal("(d) <grad_w L, w> = <grad_U L, U>", along_w, along_u)
    flow = -2 * along_w + 2 * along_u  # d|w|^2/dt = -2 <grad_w L, w>
    proof.equal("(d) gradient flow conserves |w|^2 - |U|^2", flow, sp.Integer(0))
    tied = sp.diff(loss(a * a), a).doit().subs(a, 1).doit()
    proof.equal("(d) tied: twice the gap, and nothing left to trade with", tied, 2 * along_w)


def head_and_labels(case: Case) -> tuple[Float[Tensor, "vocab d"], Int[Tensor, " tokens"]]:
    """A linear head that gives logits of the size of the state's root mean square."""
    generator = case.generator()
    head = torch.randn(case.vocab, case.d, generator=generator, dtype=torch.float64) / case.d**0.5
    return head, torch.randint(case.vocab, (case.tokens,), generator=generator)


def logit_gap(logits: Float[Tensor, "*batch vocab"], labels: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """E_p[z] - z_y as sum_v p_v (z_v - z_y): every term exact to rounding, also where p is nearly one-hot."""
    differences = logits - logits.gather(-1, labels[..., None])
    return (logits.softmax(-1) * differences).sum(-1)


def identity(h: Tensor) -> Tensor:
    """A raw readout normalises nothing."""
    return h


def rms_normalised(h: Tensor) -> Tensor:
    """A readout's normalisation, where no scale is to be seen."""
    return h / h.square().mean(-1, keepdim=True).sqrt()


def gradient_residual(case: Case, normalise: StateMap = identity) -> float:
    """Largest |<grad_h CE, h> - gap| / max |z| over tokens, of the readout W normalise(h)."""
    head, labels = head_and_labels(case)
    h = case.states().requires_grad_()
    logits = normalise(h) @ head.T
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), h)
    error = (gradient * h).sum(-1) - logit_gap(logits, labels)
    return (error.abs() / logits.abs().amax(-1)).max().item()


def ray_residuals(case: Case, normalise: StateMap = identity) -> tuple[float, float]:
    """Largest |l' - gap| and |l'' - Var_p z| of l(c h) at c = 1, by forward mode, relative to powers of max |z|."""
    head, labels = head_and_labels(case)
    # At scales that leave the softmax unsaturated, so that there is a variance to compare.
    h = case.states() / (case.states() @ head.T).abs().amax(-1, keepdim=True) * 3.0

    def slope(factor: Tensor) -> Tensor:
        def loss(factor: Tensor) -> Tensor:
            return F.cross_entropy(normalise(factor * h) @ head.T, labels, reduction="none")

        return torch.func.jvp(loss, (factor,), (torch.ones_like(factor),))[1]

    one = torch.ones((), dtype=torch.float64)
    with differentiable_kernels():  # it also silences torch's warning of its own first use of torch.jit
        first, second = torch.func.jvp(slope, (one,), (one,))[:2]
    logits = normalise(h) @ head.T
    p, size = logits.softmax(-1), logits.abs().amax(-1)
    variance = (p * (logits - (p * logits).sum(-1, keepdim=True)).square()).sum(-1)
    errors = (first - logit_gap(logits, labels)) / size, (second - variance) / size.square()
    return errors[0].abs().max().item(), errors[1].abs().max().item()


FACTORS = torch.logspace(-11, 11, 133, dtype=torch.float64)


def slopes(logits: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens factors"]:
    """dCE(c z)/dc by reverse mode, over 22 decades of c: for logits of a spread of about 1."""
    factors = FACTORS.expand(len(logits), -1).clone().requires_grad_()
    scaled = factors[..., None] * logits[:, None]
    # log_softmax takes the maximum away first: a tied argmax at large factors is exact.
    losses = -scaled.log_softmax(-1).gather(-1, labels[:, None, None].expand(-1, len(FACTORS), 1))
    return torch.autograd.grad(losses.sum(), factors)[0]


def has_minimiser(slope: Float[Tensor, "*batch factors"]) -> Tensor:
    """Some positive factor is a minimum: the slope, in units of the logits' spread, is negative, then positive.

    A fitted label's slope ends in a plateau of rounding, of either sign.
    """
    return (slope < -1e-9).any(-1) & (slope > 1e-9).any(-1)


def predicted_minimiser(logits: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]) -> Tensor:
    true = logits.gather(-1, labels[:, None]).squeeze(-1)
    return (logits.mean(-1) < true) & (true < logits.amax(-1))


def predicted_common_minimiser(logits: Float[Tensor, "tokens vocab"], labels: Int[Tensor, " tokens"]) -> bool:
    true = logits.gather(-1, labels[:, None]).squeeze(-1)
    return bool((logits.mean(-1) - true).mean() < 0 and (true < logits.amax(-1)).any())


def above_the_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Half of the condition, of one token and of a pool."""
    return logits.gather(-1, labels[:, None]).squeeze(-1) > logits.mean(-1)


def below_the_maximum(logits: Tensor, labels: Tensor) -> Tensor:
    """The other half."""
    return logits.gather(-1, labels[:, None]).squeeze(-1) < logits.amax(-1)


Prediction = Callable[[Tensor, Tensor], Tensor]
CommonPrediction = Callable[[Tensor, Tensor], bool]


def disagreements(
    case: Case,
    predicted: Prediction = predicted_minimiser,
    predicted_common: CommonPrediction = predicted_common_minimiser,
) -> int:
    """Tokens, and the pool of them, whose minimiser exists against the prediction or the reverse."""
    head, labels = head_and_labels(case)
    logits = case.states() @ head.T
    # Spreads between 1/2 and 2: equal ones can balance exactly in a pool, where no sign is predicted.
    spreads = 0.5 + 1.5 * torch.rand(case.tokens, 1, generator=case.generator(), dtype=torch.float64)
    logits = logits / logits.std(-1, correction=0, keepdim=True) * spreads
    # A third of the labels is the argmax and a third the second largest: the label alone seldom lies between.
    top = logits.topk(2).indices
    labels = torch.where(torch.arange(len(labels)) % 3 == 0, top[:, 0], labels)
    labels = torch.where(torch.arange(len(labels)) % 3 == 1, top[:, 1], labels)
    slope = slopes(logits, labels)
    wrong = (has_minimiser(slope) != predicted(logits, labels)).sum().item()
    wrong += has_minimiser(slope.sum(0)).item() != predicted_common(logits, labels)
    return int(wrong)


def mean_gap(model: RandomModel) -> tuple[float, float]:
    """Mean over loops and tokens of the gap, sum_k w_k mean gap_k for uniform weights, and of the largest logit.

    Of the logits without the head's bias, which the state does not make; the softmax knows it.
    """
    bias = model.parameters["head.bias"] if model.architecture.biases else torch.zeros(())
    gaps, sizes = [], []
    for h in model.states()[1:]:
        logits = model.readout()(h)
        differences = (logits - bias) - (logits - bias).gather(-1, model.labels[..., None])
        gaps.append((logits.softmax(-1) * differences).sum(-1).mean())
        sizes.append(logits.abs().amax(-1).mean())
    return torch.stack(gaps).mean().item(), torch.stack(sizes).mean().item()


def gauge_model(case: Case, **fixed: Any) -> RandomModel:
    """The first model from the case's seed on that has a mean gap: where all tokens are fitted, everything is zero.

    Raises:
        ValueError: there is none among 64 seeds.
    """
    for seed in range(case.seed, case.seed + 64):
        drawn = narrowed(replace(case, seed=seed))
        model = random_model(draw_architecture(drawn, **{"readout": "raw", "gain": False, **fixed}))
        gap, logits = mean_gap(model)
        if abs(gap) > 3e-2 * logits:
            return model
    raise ValueError(f"64 seeds from {case} have no mean gap.")


def gauge_residuals(model: RandomModel, degree: int) -> tuple[float, float]:
    """|<grad_w L, w> - n gap| and |<grad_U L, U> - gap|, each relative to |grad| times |w| or |U|, plus max |z|.

    Args:
        degree: n, that of the logits in the writers.
    """
    gradients, (gap, logits) = gradients_of(model.loss, model.parameters), mean_gap(model)
    head = "token_embedding" if model.architecture.tied else "head"
    along_w, size_w = along(gradients, model.parameters, writers(model.architecture))
    along_u, size_u = along(gradients, model.parameters, [head])
    return abs(along_w - degree * gap) / (size_w + logits), abs(along_u - gap) / (size_u + logits)


def check(case: Case) -> Residual:
    """Gradient and ray of a linear readout, who has a minimiser, and the gauge of a random looped model."""
    model = gauge_model(case)
    # Tied, the logits scale with the writers twice, and the head is one of them: no gauge is left.
    gauge = gauge_residuals(model, 2)[:1] if model.architecture.tied else gauge_residuals(model, 1)
    values = gradient_residual(case), *ray_residuals(case), *gauge, float(disagreements(case))
    return Residual(value=worst(values), tolerance=1e-12)


def control(case: Case) -> Residual:
    """The least of: gradient, slope and curvature behind a normalisation, which sees no scale; the gauge behind one,
    whose writers move no logit, and of a tied head, where neither side is one gap; and the tokens, or pools, of which
    either half of the condition for a minimiser alone is wrong."""
    many, fitted = replace(case, tokens=48), replace(case, tokens=1)  # the first token's label is its argmax
    failures = [
        gradient_residual(case, rms_normalised),
        *ray_residuals(case, rms_normalised),
        gauge_residuals(gauge_model(case, readout="rmsnorm", tied=False), 1)[0],
        *gauge_residuals(gauge_model(case, tied=True), 1),
        float(disagreements(many, above_the_mean)),
        float(disagreements(many, below_the_maximum)),
        float(disagreements(fitted, predicted_common=lambda *pool: bool(above_the_mean(*pool).all()))),
    ]
    return Residual(value=least(failures), tolerance=1e-12)


PROPOSITION = Proposition(
    key="P6",
    title="a raw readout sees the scale as a temperature, and pins logits where they are neither fitted nor hopeless",
    words=(
        "A raw readout sees the scale as an inverse temperature: the cross-entropy's gradient along h is the "
        "expected minus the true logit, and one token alone pins a scale only if its label is above the mean "
        "logit and no argmax."
    ),
    statement=(
        r"\langle \nabla_h \ell, h \rangle = E_p[z] - z_y; \quad"
        r"\tfrac{d^2}{dc^2} \ell(c h) = \mathrm{Var}_{p_c}(z) \ge 0; \quad"
        r"z \text{ not constant: } \arg\min_{c > 0} \ell(c h) \text{ exists} \iff \overline{z} < z_y < \max z; \quad"
        r"\langle \nabla_w L, w \rangle = \langle \nabla_U L, U \rangle"
        r" = \textstyle\sum_k w_k\, \overline{\mathrm{gap}}_k"
    ),
    hypotheses=(
        "cross-entropy of logits that are linear in the state; z without the head's bias in the last equality",
        "one token's minimiser: its logits are not all equal (else every c is one)",
        "common scale of many tokens: the mean over tokens of mean(z) - z_y is negative, and some label is no argmax",
        "last equality: head U untied, writers w of a recurrence whose branches normalise their input, epsilon zero",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-6,  # a tied head may by chance add nothing to the gap; the other parts are far above
)
