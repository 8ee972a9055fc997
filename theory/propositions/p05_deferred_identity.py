"""P5: supervising every loop shows no scale at once, and what later loops show of it is exact, and small far out."""

from dataclasses import replace

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from theory.cases import Case
from theory.far_out import scaling_error
from theory.laboratory import SCALE_FREE, draw_architecture, loop_weights
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.propositions.p01_blind_directions import jacobian_times_state
from theory.random_model import RandomModel, StateMap, random_model
from theory.symbols import h, i, j, k, split, total

TOLERANCE = 1e-12
LOOPS = 3  # written out in the proof of the coefficient law


def prove() -> Proof:
    proof = Proof()
    _prove_identity(proof)
    _prove_telescoping(proof)
    _prove_sign(proof)
    _prove_first_order(proof)
    _prove_coefficient_law(proof)
    return proof


def _prove_identity(proof: Proof) -> None:
    """One sublayer, symbolic d: <Df^T G, h> = <G, h'> - <G, b>, G arbitrary (radial part included)."""
    gradient, branch = sp.IndexedBase("G", real=True), sp.IndexedBase("B", real=True)
    displacement = sp.IndexedBase("b", real=True)
    silent = jacobian_times_state()
    proof.equal("D norm(h)[h], coordinate j (P1); other tokens' inputs do not move at all", silent, sp.Integer(0))
    along_h = h[i] + total(branch[i, j] * silent, j)
    proof.equal("D sublayer[h], coordinate i: the branch does not answer", along_h, h[i])
    pulled = total(gradient[i] * h[i])
    after = total(gradient[i] * (h[i] + displacement[i]))
    crossing = total(gradient[i] * displacement[i])
    proof.equal("<Df^T G, h> = <G, h + b> - <G, b>", pulled, after - crossing)


def _prove_telescoping(proof: Proof) -> None:
    """T_i = imm_i + T_{i+1} - X_i, T_n = imm_n has the solution claimed, for any number n of steps."""
    n = sp.Symbol("n", integer=True, nonnegative=True)
    imm, radial = sp.Function("imm"), sp.Function("T")
    crossing = imm(j) + radial(j + 1) - radial(j)  # X_j, from the recursion
    proof.show("X_j = <G_{j+1}, b_j> of one step", crossing)
    claim = sp.Sum(imm(j) - crossing, (j, i, n - 1)).doit() + imm(n)
    proof.equal("sum of imm_j - X_j over j >= i, and imm_n at the end", claim, radial(i) - radial(n) + imm(n))
    proof.equal("is T_i, since T_n = imm_n", claim.subs(radial(n), imm(n)), radial(i))


def _prove_sign(proof: Proof) -> None:
    """One sublayer, in the plane span{u, b}: the gradient g at F(h) is perpendicular to F(h) = s u + b."""
    s, beta, gamma = sp.symbols("s beta gamma", real=True)
    a = sp.Symbol("a", real=True)
    radial, perpendicular = -gamma * beta, gamma * (s + a)  # g, perpendicular to (s + a, beta)
    crossing = radial * a + perpendicular * beta
    proof.equal("<g, F(h)>", radial * (s + a) + perpendicular * beta, sp.Integer(0))
    proof.equal("s dL/ds = <g, s u> = -<g, b>: descent raises s iff <g, b> > 0", s * radial, -crossing)


def _prove_first_order(proof: Proof) -> None:
    """Any width, tokens, sublayers and loops, in units of s, x = 1/s: a coordinate Y(x) of the states gets x B(x), B
    the branch at the state so far. All states are U at x = 0: after k loops the derivative there is k bbar(U)."""
    x = sp.Symbol("x", real=True)
    before, branch = sp.Function("Y"), sp.Function("B")
    after = limit_slope(before(x) + x * branch(x), x)
    proof.equal("a residual step adds b(U) to dY/dx at x = 0", after, limit_slope(before(x), x) + branch(0))
    weight, gradient, bbar = sp.IndexedBase("w", real=True), sp.IndexedBase("L'", real=True), sp.IndexedBase("b")
    count = sp.Symbol("K", integer=True, positive=True)
    slope = split(sp.Sum(weight[k] * split(total(gradient[i] * k * bbar[i])), (k, 1, count)))
    expected = sp.Sum(k * weight[k], (k, 1, count)) * total(gradient[i] * bbar[i])
    proof.equal("so that sum_k w_k <L', k bbar> is (sum_k k w_k) <L', bbar>", slope, expected)


def _prove_coefficient_law(proof: Proof) -> None:
    """The plane, one token, one sublayer, three loops, composed exactly in polar coordinates: d L / d x at x = 0."""
    x = sp.Symbol("x", nonnegative=True)
    phi = sp.Symbol("phi", real=True)
    a, beta, loss = sp.Function("a"), sp.Function("beta"), sp.Function("L")
    weights = sp.symbols(f"w_1:{LOOPS + 1}", real=True)
    angle, inverse = phi, x
    total_loss = sp.Integer(0)
    for weight in weights:
        along, across = 1 + inverse * a(angle), inverse * beta(angle)
        angle, inverse = angle + sp.atan(across / along), inverse / sp.sqrt(along**2 + across**2)
        total_loss += weight * loss(angle)
    slope = limit_slope(total_loss, x)
    expected = coefficient(weights) * sp.diff(loss(phi), phi) * beta(phi)
    proof.equal("s (s dL/ds) -> -(sum_k k w_k) <L', b>, three loops exactly", -slope, -expected)

    count = sp.Symbol("K", integer=True, positive=True)
    dense = sp.summation(k / count, (k, 1, count))
    proof.equal("uniform weights 1/K, any K: the coefficient", dense, (count + 1) / 2)
    proof.equal("is (K + 1) / 2K of terminal supervision's, K", dense / count, (count + 1) / (2 * count))
    proof.true("and so the weaker from K = 2 on", (dense.subs(count, count + 1) < count + 1))


def limit_slope(function: sp.Expr, x: sp.Symbol) -> sp.Expr:
    """d function / d x at x = 0."""
    return sp.diff(function, x).subs(x, 0).doit()


def coefficient(weights: tuple[sp.Expr, ...]) -> sp.Expr:
    """sum_k k w_k, k = 1..K."""
    return sum((number * weight for number, weight in enumerate(weights, 1)), sp.Integer(0))


def residual_steps(model: RandomModel) -> list[tuple[StateMap, float]]:
    """All steps of one loop with their radial gains."""
    gain = {"none": 1.0, "rmsnorm": 0.0, "damping": model.architecture.damping}[model.architecture.between]
    between = [] if model.architecture.between == "none" else [(model.between(), gain)]
    return between + [(sublayer, 1.0) for sublayer in model.sublayers()]


def loss_of_logits(case: Case, model: RandomModel) -> StateMap:
    """Summed over tokens. A margin may be satisfied and says nothing then, and a cross-entropy of raw logits
    saturates to a zero gradient: both give way to the squared error."""
    labels = model.labels
    losses = {
        "cross_entropy": lambda z: F.cross_entropy(z.flatten(0, -2), labels.flatten(), reduction="sum"),
        "squared": lambda z: (z - F.one_hot(labels, z.shape[-1])).square().sum(),
        "z_loss": lambda z: z.logsumexp(-1).square().sum(),
    }
    vanishing = case.loss == "margin" or (case.loss == "cross_entropy" and model.architecture.readout == "raw")
    return losses["squared" if vanishing else case.loss]


def identity_terms(case: Case, model: RandomModel) -> dict[str, Tensor]:
    """States, displacements, total gradients by one backward pass, and the immediate terms that theory predicts."""
    states, gains, ends = [model.embed().requires_grad_()], [], []
    for _ in range(model.architecture.loops):
        for step, gain in residual_steps(model):
            states.append(step(states[-1]))
            gains.append(gain)
        ends.append(len(states) - 1)
    readout, loss = model.readout(), loss_of_logits(case, model)
    weights = loop_weights(model.architecture)
    logits = [readout(states[end]) for end in ends]
    losses = [weight * loss(z) for weight, z in zip(weights, logits, strict=True)]
    gradients = torch.stack(torch.autograd.grad(torch.stack(losses).sum(), states, retain_graph=True))
    immediate = gradients.new_zeros(gradients.shape[:-1])
    if model.architecture.readout == "raw":  # degree 1, no head bias: <grad_h l, h> = <grad_z l, z>
        for end, value, z in zip(ends, losses, logits, strict=True):
            immediate[end] = (torch.autograd.grad(value, z)[0] * z).sum(-1)
    stacked = torch.stack(states).detach()
    displacements = stacked[1:] - torch.tensor(gains, dtype=stacked.dtype)[:, None, None, None] * stacked[:-1]
    return {"states": stacked, "gradients": gradients, "immediate": immediate.detach(), "displacements": displacements}


def identity_residual(states: Tensor, gradients: Tensor, immediate: Tensor, displacements: Tensor) -> float:
    """Largest |left - right| over states and tokens, relative to the terms' absolute values and the largest later
    |G_j| |h_j|: where loops of opposite weights cancel in G_i, their rounding does not."""
    left = (gradients * states).sum(-1)
    crossing = (gradients[1:] * displacements).sum(-1)
    crossing = torch.cat([crossing, torch.zeros_like(crossing[:1])])
    right = _sums_from(immediate - crossing)
    lengths = gradients.norm(dim=-1) * states.norm(dim=-1)
    size = _sums_from(immediate.abs() + crossing.abs()) + lengths.flip(0).cummax(0).values.flip(0)
    # A token that no readout's gradient reaches at a state is skipped there; if that is every one, the result is NaN.
    return ((left - right).abs() / size)[size != 0].max().item() if (size != 0).any() else float("nan")


def _sums_from(terms: Tensor) -> Tensor:
    """sum_{j >= i} of the first dimension."""
    return terms.flip(0).cumsum(0).flip(0)


def coefficient_residual(case: Case, model: RandomModel, multiples: list[float] | None = None) -> float:
    """|d L / d(1/s) - (sum_k k w_k) <grad L(U), bbar(U)>| at 1/s = 0, relative to the absolute values; or the error of
    what it rests on, that in units of s the recurrence is y -> y + x b(y), x = 1/s: the limit is a derivative at 0.
    """
    readout, loss = model.readout(), loss_of_logits(case, model)
    weights = loop_weights(model.architecture)
    direction = model.embed() / case.scale

    def of_inverse_scale(x: Tensor) -> Tensor:
        y, value = direction, x.new_zeros(())
        for weight in weights:
            for sublayer in model.sublayers():
                y = y + x * (sublayer(y) - y)
            value = value + weight * loss(readout(y))
        return value

    slope = torch.func.grad(of_inverse_scale)(torch.zeros((), dtype=torch.float64))
    gradient = torch.func.grad(lambda h: loss(readout(h)))(direction)
    displacement = torch.stack([sublayer(direction) - direction for sublayer in model.sublayers()]).sum(0)
    multiples = [float(number) for number in range(1, len(weights) + 1)] if multiples is None else multiples
    factor = sum(multiple * weight for multiple, weight in zip(multiples, weights, strict=True))
    size = sum(number * abs(weight) for number, weight in enumerate(weights, 1))
    error = (slope - factor * (gradient * displacement).sum()).abs() / (size * (gradient * displacement).abs().sum())
    return worst([error.item(), scaling_error(model.sublayers(), model.embed())])


def check(case: Case) -> Residual:
    """The identity at every state and token with signed loop weights, and the coefficient law.

    The readout (scale-free ones and a raw one) and the operation between loops are drawn.
    """
    # No tied head, whose large entries would saturate the softmax and leave nothing to measure; no bias behind a raw
    # readout, which would not be of degree 1.
    a = draw_architecture(case, tied=False, batch=1)
    model = random_model(replace(a, biases=False) if a.readout == "raw" else a)
    plain = random_model(draw_architecture(case, readouts=SCALE_FREE, between="none", tied=False, batch=1))
    identity, law = identity_residual(**identity_terms(case, model)), coefficient_residual(case, plain)
    return Residual(value=worst([identity, law]), tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """The least of three that must fail: a raw readout without its immediate terms; whole loops in the place of
    residual steps, with one gradient each; and every loop weighted once in the coefficient law."""
    raw = random_model(draw_architecture(case, readout="raw", between="none", loops=3, biases=False))
    normed = random_model(draw_architecture(case, readouts=SCALE_FREE, between="none", loops=3, layers=2))
    terms = identity_terms(case, normed)
    stride = len(residual_steps(normed))
    whole_loops = {name: terms[name][::stride] for name in ("states", "gradients", "immediate")}
    whole_loops["displacements"] = whole_loops["states"].diff(dim=0)
    failures = [
        identity_residual(**identity_terms(case, raw) | {"immediate": torch.zeros(())}),
        identity_residual(**whole_loops),
        coefficient_residual(case, normed, multiples=[1.0, 1.0, 1.0]),
    ]
    return Residual(value=least(failures), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P5",
    title="dense supervision does not show the scale; what later loops show is exact per residual step and O(1/s)",
    words=(
        "Scale-free readouts of every loop show no scale at once; what later ones show is an exact sum over "
        "residual steps, falls as 1/s, and is far out (K + 1) / 2K times as much for uniform loop weights as for "
        "all of it on loop K."
    ),
    statement=(
        r"\langle G_i^t, h_i^t\rangle = \sum_{j \ge i} \mathrm{imm}_j^t"
        r" - \sum_{j \ge i} \langle G_{j+1}^t, b_j^t\rangle,\qquad "
        r"s\,\frac{\mathrm{d}L}{\mathrm{d}\log s} \to -\Big(\sum_k k\,w_k\Big)\langle \hat L'(U), \bar b(U)\rangle"
    ),
    hypotheses=(
        "a step is one residual add whose branch normalises its input; epsilon is zero",
        "damping and normalisation between loops count as steps of gain alpha and 0",
        "imm is 0 behind a scale-free readout, <grad_z l, z> behind a raw one without bias",
        "coefficient law: nothing between loops, all tokens scaled jointly, scale-free readout after loops 1..K, "
        "branches and loss differentiable at the directions U",
        "uniform against terminal weights: of the same sum, K at least 2; far out, and not at every scale",
    ),
    source="1/s law: arXiv 2606.24898; identity and coefficient law: this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-4,
)
