"""P2: what epsilon leaks, exactly; Euler's identity with epsilon as a variable; readouts of any degree.

y stands for the normalised state before gain and bias, and q for the gradient of the loss in y.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import sympy as sp
import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.radial import EpsilonForm, epsilon_leak, radial_gradient_fraction
from theory.cases import Case, gradient_at, has_gradient, seen_case
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.symbols import c, d, eps, h, j, k, split, total

S2 = sp.Symbol("S_2", positive=True)
"""sum_k h_k^2."""
s = sp.Symbol("s", positive=True)
"""Root mean square of the state."""
rho = sp.Symbol("rho", nonnegative=True)


def prove() -> Proof:
    """Symbolic d and number of classes: Jacobian, leak, Euler identity, other forms, degree, gradient fraction."""
    proof = Proof()
    _prove_leak(proof)
    _prove_cross_entropy(proof)
    _prove_other_forms(proof)
    _prove_degree(proof)
    _prove_fraction(proof)
    return proof


def leak() -> sp.Expr:
    """rho, the epsilon inside the root."""
    return eps / (S2 / d + eps)


def _prove_leak(proof: Proof) -> None:
    sigma = sp.sqrt(S2 / d + eps)
    y_j, y_k = h[j] / sigma, h[k] / sigma
    # dy_j/dh_k = delta_jk / sigma + h_j (d (1/sigma) / d S_2) 2 h_k
    through_sigma = h[j] * sp.diff(1 / sigma, S2) * 2 * h[k]
    proof.equal("(a) Jacobian off the diagonal, -y_j y_k / (d sigma)", through_sigma, -y_j * y_k / (d * sigma))
    along_h = y_j + split(total(through_sigma * h[k], k)).subs(total(h[k] ** 2, k), S2)
    proof.equal("(a) Dy[h] = rho y, coordinate j", along_h, leak() * y_j)

    v, mean = sp.Symbol("v", positive=True), sp.Symbol("mu", real=True)
    # h -> c h: the mean becomes c mu, the variance c^2 v.
    layernorm = (c * h[j] - c * mean) / sp.sqrt(c**2 * v + eps)
    proof.equal(
        "(a) LayerNorm, the same with the variance",
        sp.diff(layernorm, c).subs(c, 1),
        eps / (v + eps) * layernorm.subs(c, 1),
    )

    proof.equal(
        "(b) Euler with epsilon: Dy[h] + 2 eps dy/deps = 0", along_h + 2 * eps * sp.diff(y_j, eps), sp.Integer(0)
    )
    tau = temperature()
    proof.equal(
        "(b) raw readout of the unit-rms direction, at temperature tau(s)", h[j] / s * tau, h[j] / sp.sqrt(s**2 + eps)
    )
    positive = sp.Symbol("epsilon", positive=True)
    proof.equal(
        "(b) halfway of tau^2 is the rms sqrt(eps)",
        (tau**2).subs(eps, positive).subs(s, sp.sqrt(positive)),
        sp.Rational(1, 2),
    )


def temperature() -> sp.Expr:
    return s / sp.sqrt(s**2 + eps)


def _prove_cross_entropy(proof: Proof) -> None:
    """For any number of classes V: <q, y> is the logit gap of the readout's linear part."""
    classes = sp.Symbol("V", integer=True, positive=True)
    v, label = sp.symbols("v y", integer=True, positive=True)
    z, offset, step = sp.IndexedBase("z", real=True), sp.IndexedBase("beta", real=True), sp.Symbol("t", real=True)
    # The curve h + t h moves y by t rho y, and so the logits z + beta (beta: bias) by t rho z.
    moved = (1 + rho * step) * z[v] + offset[v]
    loss = sp.log(sp.Sum(sp.exp(moved), (v, 1, classes))) - moved.subs(v, label)
    weights = sp.exp(z[v] + offset[v])
    expected = sp.Sum(weights * z[v], (v, 1, classes)) / sp.Sum(weights, (v, 1, classes))
    proof.equal(
        "(a) <grad_h CE, h> = rho (E_p z - z_y), z the logits without biases",
        sp.diff(loss, step).subs(step, 0),
        rho * (expected - z[label]),
    )


def _prove_other_forms(proof: Proof) -> None:
    """The leak of h / f(rms) is 1 - d log f / d log rms."""
    positive = sp.Symbol("epsilon", positive=True)

    def leak_of(divisor: sp.Expr) -> sp.Expr:
        return sp.simplify(1 - s * sp.diff(divisor, s) / divisor)

    inside, added = leak_of(sp.sqrt(s**2 + positive)), leak_of(s + positive)
    proof.equal("(c) sqrt(s^2 + eps)", inside, positive / (s**2 + positive))
    proof.equal("(c) s + eps", added, positive / (s + positive))
    proof.equal("(c) max(s, eps) above the clamp", leak_of(s), sp.Integer(0))
    proof.equal("(c) max(s, eps) below the clamp", leak_of(positive), sp.Integer(1))
    proof.equal("(c) inside the root it decays as eps / s^2", sp.limit(s**2 * inside, s, sp.oo), positive)
    proof.equal("(c) outside as eps / s", sp.limit(s * added, s, sp.oo), positive)


def _prove_degree(proof: Proof) -> None:
    z, q, p = sp.IndexedBase("z", real=True), sp.IndexedBase("q", real=True), sp.Symbol("p", real=True)
    gradient_along_h = split(total(q[j] * sp.diff(c**p * z[j], c).subs(c, 1), j))
    proof.equal("(d) R(c h) = c^p R(h): <grad_h l, h> = p <grad_z l, z>", gradient_along_h, p * total(q[j] * z[j], j))
    gate, raw, normed = sp.Symbol("g", real=True), sp.IndexedBase("z^r", real=True), sp.IndexedBase("z^n", real=True)
    blend = (1 - gate) * c * raw[j] + gate * normed[j]
    proof.equal(
        "(d) a blend of raw and normalised logits sees the raw part",
        split(total(q[j] * sp.diff(blend, c).subs(c, 1), j)),
        (1 - gate) * total(q[j] * raw[j], j),
    )


def _prove_fraction(proof: Proof) -> None:
    """In the plane of u and the gradient: J is symmetric, rho / sigma along u and 1 / sigma across."""
    radial, across, sigma = (
        sp.Symbol("q_u", real=True),
        sp.Symbol("q_t", positive=True),
        sp.Symbol("sigma", positive=True),
    )
    root_d = sp.Symbol("r", positive=True)  # sqrt(d): the Euclidean norm is root_d s
    jacobian = sp.diag(rho, 1) / sigma
    g = jacobian * sp.Matrix([radial, across])
    state = sp.Matrix([root_d * s, 0])
    fraction = sp.Abs(g.dot(state)) / (sp.sqrt(g.dot(g)) * root_d * s)
    claimed = rho * sp.Abs(radial) / sp.sqrt(rho**2 * radial**2 + across**2)
    proof.equal("(e) gradient fraction r", fraction, claimed)
    positive = sp.Symbol("epsilon", positive=True)
    decay = sp.limit(s**2 * claimed.subs(rho, positive / (s**2 + positive)), s, sp.oo)
    proof.equal("(e) r decays as eps / s^2 times |q_u| / |q_t|", decay, positive * sp.Abs(radial) / across)


Normalisation = Callable[[Tensor, Tensor], Tensor]


def _centred(h: Tensor) -> Tensor:
    return h - h.mean(-1, keepdim=True)


def _rms(h: Tensor) -> Tensor:
    return h.square().mean(-1, keepdim=True).sqrt()


NORMALISATIONS: dict[str, tuple[Normalisation, EpsilonForm, bool]] = {
    "rmsnorm": (lambda h, eps: h / (h.square().mean(-1, keepdim=True) + eps).sqrt(), "inside_root", False),
    "layernorm": (
        lambda h, eps: _centred(h) / (_centred(h).square().mean(-1, keepdim=True) + eps).sqrt(),
        "inside_root",
        True,
    ),
    "added": (lambda h, eps: h / (_rms(h) + eps), "added_to_rms", False),
    "clamp": (lambda h, eps: h / torch.maximum(_rms(h), eps), "clamp", False),
}
"""Normalisations of a state and an epsilon, with what `epsilon_leak` needs to know of them."""


DEGREE_OF_EPS: dict[EpsilonForm, int] = {"inside_root": 2, "added_to_rms": 1, "clamp": 1}
"""In units of the state: epsilon is a mean square, or a root mean square."""


def _loss_of_y(case: Case) -> Callable[[Tensor], Tensor]:
    """The loss behind the normalisation: gain, shift, head and bias, none of them normalised."""
    return case.loss_of(case.readout("raw"))


def relative_eps(case: Case) -> float:
    """Epsilon over the mean square, from far below to above 1, so that it leaks at every scale of the state."""
    return 10.0 ** random.Random(case.seed).uniform(-6.0, 1.0)


Leak = Callable[[Tensor, float, EpsilonForm, bool], Tensor]


def _leak(h: Tensor, eps: float, form: EpsilonForm, centred: bool) -> Tensor:
    return epsilon_leak(h, eps, form, centred=centred)


@dataclass(frozen=True, kw_only=True)
class Derivatives:
    """Of the loss behind a normalisation, of the tokens that have a gradient.

    Attributes:
        h, eps: where they are taken.
        along_h, along_y: <grad_h l, h> and <q, y>.
        by_eps: dl/deps, of all tokens together.
        scale: |q| |y|, which residuals are relative to; the left side is tiny and carries the rounding of its own sum.
    """

    h: Float[Tensor, "seen d"]
    eps: float
    along_h: Float[Tensor, " seen"]
    along_y: Float[Tensor, " seen"]
    by_eps: float
    scale: Float[Tensor, " seen"]


def derivatives(case: Case, name: str, eps_over_square: float) -> Derivatives:
    """At an epsilon (of the form inside the root) of this size over the first token's mean square."""
    normalise, form, _ = NORMALISATIONS[name]
    size = (eps_over_square if form == "inside_root" else eps_over_square**0.5) * case.scale ** DEGREE_OF_EPS[form]
    eps = torch.tensor(size, dtype=torch.float64, requires_grad=True)
    case = seen_case(case, lambda case: (_loss_of_y(case), normalise(case.states(), eps)))
    loss, h = _loss_of_y(case), case.states().requires_grad_()
    y = normalise(h, eps)
    grad_h, grad_eps, q = torch.autograd.grad(loss(y), (h, eps, y))
    seen = has_gradient(q)
    return Derivatives(
        h=h.detach()[seen],
        eps=size,
        along_h=(grad_h * h).sum(-1).detach()[seen],
        along_y=(q * y).sum(-1).detach()[seen],
        by_eps=grad_eps.item(),
        scale=(q.norm(dim=-1) * y.norm(dim=-1)).detach()[seen],
    )


def leak_residual(case: Case, name: str, eps_over_square: float, leak: Leak = _leak) -> float:
    """Largest |<grad_h l, h> - rho <q, y>| / (|q| |y|) over tokens; `leak` is the formula to test."""
    _, form, centred = NORMALISATIONS[name]
    found = derivatives(case, name, eps_over_square)
    rho = leak(found.h, found.eps, form, centred)
    return ((found.along_h - rho * found.along_y).abs() / found.scale).max().item()


def euler_residual(case: Case, name: str, eps_over_square: float, degree: int) -> float:
    """|sum_t <grad_h l, h>_t + degree eps dl/deps| / sum_t |q| |y|: the tokens share the epsilon."""
    found = derivatives(case, name, eps_over_square)
    return abs(found.along_h.sum().item() + degree * found.eps * found.by_eps) / found.scale.sum().item()


def fraction_residual(case: Case, eps_over_square: float, leak: Leak = _leak) -> float:
    """Largest |r - predicted| over tokens, relative to 1: r itself has the precision of float64."""
    normalise = NORMALISATIONS["rmsnorm"][0]
    eps = torch.tensor(eps_over_square * case.scale**2, dtype=torch.float64)
    case = seen_case(case, lambda case: (_loss_of_y(case), normalise(case.states(), eps)))
    loss, h = _loss_of_y(case), case.states()
    q, u = gradient_at(loss, normalise(h, eps)), h / h.norm(dim=-1, keepdim=True)
    seen = has_gradient(q)
    radial = (q * u).sum(-1)
    across = (q - radial[:, None] * u).norm(dim=-1)
    rho = leak(h, eps.item(), "inside_root", False)
    predicted = (rho * radial).abs() / torch.hypot(rho * radial, across)
    measured = radial_gradient_fraction(lambda h: loss(normalise(h, eps)), h)
    return (measured - predicted).abs()[seen].max().item()


def degree_residual(case: Case, degree: float, assumed: float) -> float:
    """Largest |<grad_h l, h> - p <grad_z l, z>| / (|grad_z l| |z|), z = (rms / scale)^p W h / rms."""

    def logits(case: Case, h: Tensor) -> Tensor:
        head, zero = case.readout("raw"), torch.zeros(case.d, dtype=torch.float64)
        return (head(h / _rms(h)) - head(zero)) * (_rms(h) / case.scale) ** degree

    def identity(z: Tensor) -> Tensor:
        return z

    case = seen_case(case, lambda case: (case.loss_of(identity), logits(case, case.states())))
    h = case.states().requires_grad_()
    z = logits(case, h)
    grad_h, q = torch.autograd.grad(case.loss_of(identity)(z), (h, z))
    seen = has_gradient(q)
    error = ((grad_h * h).sum(-1) - assumed * (q * z).sum(-1)).abs()
    return (error / (q.norm(dim=-1) * z.norm(dim=-1)))[seen].max().item()


def check(case: Case) -> Residual:
    """The leak and Euler's identity for one normalisation, the gradient fraction, and one degree, drawn by the seed."""
    draw = random.Random(case.seed)
    name = draw.choice(list(NORMALISATIONS))
    degree = draw.choice([0.0, 0.3, 1.0])
    residuals = (
        leak_residual(case, name, relative_eps(case)),
        euler_residual(case, name, relative_eps(case), DEGREE_OF_EPS[NORMALISATIONS[name][1]]),
        fraction_residual(case, relative_eps(case)),
        degree_residual(case, degree, degree),
    )
    return Residual(value=worst(residuals), tolerance=1e-12)


def control(case: Case) -> Residual:
    """The least of: every form's leak and the gradient fraction, predicted of twice the epsilon; Euler's identity where
    epsilon has another degree than is taken, as one added to the rms does; and a readout of a wrong degree."""

    def doubled(h: Tensor, eps: float, form: EpsilonForm, centred: bool) -> Tensor:
        return epsilon_leak(h, 2 * eps, form, centred=centred)

    # At 0.3 of the mean square no form is near 0 or 1, and a clamp of twice its root is above the first token's.
    failures = [leak_residual(case, name, 0.3, doubled) for name in NORMALISATIONS]
    failures += [euler_residual(case, "added", 0.3, 2), euler_residual(case, "rmsnorm", 0.3, 1)]
    failures += [fraction_residual(case, 0.3, doubled), degree_residual(case, 0.3, 1.3)]
    return Residual(value=least(failures), tolerance=1e-12)


PROPOSITION = Proposition(
    key="P2",
    title="epsilon leaks the scale by an exactly known factor; a readout of degree p shows p times its logits",
    words=(
        "RMSNorm's epsilon, added inside the root, lets through exactly eps / (mean square + eps) of the scale's "
        "gradient, LayerNorm's the same with the variance; a readout of degree p shows p times its logits."
    ),
    statement=(
        r"y = h / \sqrt{m + \epsilon},\ m = |h|^2 / d: \quad"
        r"\langle \nabla_h \ell, h \rangle = \frac{\epsilon}{m + \epsilon} \langle \nabla_y \ell, y \rangle"
        r" = -2 \epsilon\, \partial_\epsilon \ell; \qquad "
        r"R(c h) = c^p R(h) \Rightarrow \langle \nabla_h \ell, h \rangle = p \langle \nabla_z \ell, z \rangle"
    ),
    hypotheses=(
        "the loss sees the state only through the readout",
        "y is the normalised state before gain and bias; for LayerNorm, m is the variance",
        "epsilon is added to m inside the root: added to the rms it leaks eps / (rms + eps), a clamp 0 or all",
        "the second equality sums over the tokens that share the epsilon; added to the rms, it counts once, not twice",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-4,
)
