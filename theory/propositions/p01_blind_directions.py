"""P1 (Lemma 1, general): the generators of a readout's invariances are blind directions of every loss behind it."""

import sympy as sp
import torch

from loopsight.radial import radial_gradient_fraction
from theory.cases import Case, LossAt, ReadoutName, gradient_at, has_gradient, seen_case
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.symbols import c, d, h, i, j, k, split, t, total

S1, S2 = sp.Symbol("S_1", real=True), sp.Symbol("S_2", positive=True)


def prove() -> Proof:
    """For symbolic d: normalised coordinates are unchanged by h -> c h (+ t 1), and J h = 0 kills every gradient."""
    proof = Proof()
    moved = c * h[i] + t
    expanded = c**2 * total(h[i] ** 2) + 2 * c * t * total(h[i]) + d * t**2
    proof.equal("sum of the moved state", total(moved), c * total(h[i]) + d * t)
    proof.equal("sum of its squares", total(moved**2), expanded)

    # The sums are opaque from here on: S_1 = sum h, S_2 = sum h^2.
    sums = {total(h[i]): S1, total(h[i] ** 2): S2}
    squares = expanded.subs(sums)
    rms = h[j] / sp.sqrt(S2 / d)
    proof.equal("RMSNorm, coordinate j, h -> c h", (c * h[j]) / sp.sqrt(squares.subs(t, 0) / d), rms)

    variance = S2 / d - (S1 / d) ** 2
    mean_moved = (c * S1 + d * t) / d
    proof.equal("variance, h -> c h + t 1", squares / d - mean_moved**2, c**2 * variance)
    spread = sp.Symbol("v", positive=True)  # the variance, positive where LayerNorm is differentiable
    centred = (h[j] - S1 / d) / sp.sqrt(spread)
    centred_moved = (c * h[j] + t - mean_moved) / sp.sqrt(c**2 * spread)
    proof.equal("LayerNorm, coordinate j, h -> c h + t 1", centred_moved, centred)

    # Chain rule, for RMSNorm and any upstream gradient q: <grad_h, h> = sum_j q_j sum_k J_jk h_k.
    q = sp.IndexedBase("q", real=True)
    gradient_along_h = total(q[j] * jacobian_times_state(), j)
    proof.equal("<grad_h, h> behind RMSNorm, for any upstream gradient q", gradient_along_h, sp.Integer(0))
    # For LayerNorm the same sum has a factor of zero.
    for text, response in (("h", layernorm_response(h[j], S1, S2)), ("1", layernorm_response(sp.Integer(1), d, S1))):
        proof.equal(f"LayerNorm, J {text} = 0, coordinate j: <grad_h, {text}> = 0 for any q", response, sp.Integer(0))
    return proof


def jacobian_times_state() -> sp.Expr:
    """sum_k (d y_j / d h_k) h_k for y = h / sqrt(S_2 / d), by the product rule with d S_2 / d h_k = 2 h_k."""
    sigma = sp.sqrt(S2 / d)
    direct = h[j] / sigma  # sum_k delta_jk h_k / sigma
    through_sigma = h[j] * sp.diff(1 / sigma, S2) * split(total(2 * h[k] * h[k], k)).subs(total(h[k] ** 2, k), S2)
    return sp.Add(direct, through_sigma, evaluate=False)


def layernorm_response(v_j: sp.Expr, sum_v: sp.Expr, sum_hv: sp.Expr) -> sp.Expr:
    """(J v)_j of LayerNorm for a v of these sums, by d S_1 / d h_k = 1 and d S_2 / d h_k = 2 h_k."""
    state = sp.Symbol("x", real=True)  # h_j where it stands alone
    y = (state - S1 / d) / sp.sqrt(S2 / d - (S1 / d) ** 2)
    response = sp.diff(y, state) * v_j + sp.diff(y, S1) * sum_v + sp.diff(y, S2) * 2 * sum_hv
    return response.subs(state, h[j])


def largest_fraction(case: Case, readout: ReadoutName, *, ones: bool = False) -> float:
    """Largest |<g, v>| / max(|g| |v|, |q| |y| |v| / |h|) over the tokens that have a gradient, y the normalised state.

    q = grad_y l is what the normalisation takes the blind part from: where little else is left of it, as behind a
    LayerNorm of three channels, the rounding in g is that of q. From the case's seed on, the first seed is taken at
    which some token has a gradient.

    Args:
        ones: v is the vector of ones, and not h.
    """

    def loss_at(case: Case) -> LossAt:
        return case.loss_of(case.readout(readout)), case.states()

    case = seen_case(case, loss_at)
    loss, h = loss_at(case)
    g, y = gradient_at(loss, h), case.normalisation(readout)(h)
    q = gradient_at(case.loss_of(case.readout("raw")), y)
    measured, before = g.norm(dim=-1) * h.norm(dim=-1), q.norm(dim=-1) * y.norm(dim=-1)
    if ones:
        fraction = g.sum(-1).abs() / (g.norm(dim=-1) * case.d**0.5)
    else:
        fraction = radial_gradient_fraction(loss, h)
    residual = fraction * measured / torch.maximum(measured, before)
    return residual[has_gradient(g)].max().item()


def check(case: Case) -> Residual:
    """RMSNorm and LayerNorm readouts along h, LayerNorm along 1 too, epsilon 0."""
    along_h = [largest_fraction(case, "rmsnorm"), largest_fraction(case, "layernorm")]
    return Residual(value=worst([*along_h, largest_fraction(case, "layernorm", ones=True)]), tolerance=1e-13)


def control(case: Case) -> Residual:
    """The lesser of: a raw readout along h, and RMSNorm along 1, both of which are seen."""
    failures = [largest_fraction(case, "raw"), largest_fraction(case, "rmsnorm", ones=True)]
    return Residual(value=least(failures), tolerance=1e-13)


PROPOSITION = Proposition(
    key="P1",
    title="a loss behind a scale-invariant readout has no gradient along the state",
    words=(
        "A loss that reads the state only through a normalisation without epsilon has no gradient along what "
        "that takes away: h behind RMSNorm, h and the ones direction behind LayerNorm; whatever the head, the "
        "loss or the label."
    ),
    statement=(
        r"R \circ \gamma_t = R,\ \gamma_0 = \mathrm{id} \;\Rightarrow\; "
        r"\langle \nabla_h (\ell \circ R), \dot\gamma_0(h) \rangle = 0"
    ),
    hypotheses=(
        "the loss sees the state only through the readout",
        "epsilon is zero",
        "the readout is differentiable at the state (nonzero root mean square or variance)",
    ),
    source="arXiv 2606.24898, Lemma 1; general form: this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-6,
)
