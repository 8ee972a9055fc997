"""P4: a direction's visibility and its activity are two numbers, and a blind direction can be carried for ever."""

import sympy as sp
import torch
from torch import Tensor

from loopsight.observability import visibility
from theory.cases import Case
from theory.laboratory import SCALE_FREE, draw_architecture
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.propositions.p01_blind_directions import S2, jacobian_times_state
from theory.random_model import RandomModel, StateMap, random_model
from theory.symbols import c, d, h, i, j, k, split, total

TOLERANCE = 1e-11
DAMPING = 0.88


def prove() -> Proof:
    proof = Proof()
    _prove_label_sampling(proof)
    _prove_activity(proof)
    _prove_penalty_and_isotropy(proof)
    _prove_deferred_decay(proof)
    return proof


def _prove_label_sampling(proof: Proof) -> None:
    """Var_p of the logits' change is the mean square of the gradients of sampled labels; V is symbolic (called d)."""
    p, x = sp.IndexedBase("p", real=True), sp.IndexedBase("x", real=True)
    mean = sp.Symbol("m", real=True)
    facts = {total(p[i]): 1, total(p[i] * x[i]): mean}
    slope = mean - x[i]  # <p - e_y, x>: the loss's change along the direction if the label is y = i
    proof.show("<grad_h l_y, delta> for x = Dz[delta], m = E_p x", slope)
    first = split(total(p[i] * slope))
    proof.equal("its mean over labels drawn from p", first, mean * total(p[i]) - total(p[i] * x[i]))
    proof.equal("is 0, whatever x (sum p = 1)", first.subs(facts), sp.Integer(0))
    second = split(total(p[i] * slope**2)).subs(facts)
    proof.equal("its mean square is the visibility Var_p(x)", second, variance(total(p[i] * x[i] ** 2), mean))


def variance(second_moment: sp.Expr, mean: sp.Expr) -> sp.Expr:
    return second_moment - mean**2


def _prove_activity(proof: Proof) -> None:
    """D Phi[h] = h, alpha h, 0 for a pre-norm sublayer alone, behind damping, behind a normalisation."""
    branch = sp.IndexedBase("B", real=True)  # B[i, j]: derivative of the branch's output i in its normalised input j
    silent = jacobian_times_state()
    proof.equal("D RMSNorm(h)[h], coordinate j (P1)", silent, sp.Integer(0))
    proof.equal("DF(h)[h] for F(h) = h + B(RMSNorm h): carried, A = 1", h[i] + total(branch[i, j] * silent, j), h[i])

    normalised = h[k] / sp.sqrt(S2 / d)
    on_ray = normalised.subs({h[k]: c * h[k], S2: c**2 * S2}, simultaneous=True)
    proof.equal("RMSNorm on the ray c h", on_ray, normalised)
    displacement = sp.IndexedBase("b", real=True)  # of the branch: free of c, by the line above
    alpha = sp.Symbol("alpha", positive=True)
    damped = alpha * c * h[k] + displacement[k]
    proof.equal("behind damping, F(alpha c h): damped, A = alpha", sp.Derivative(damped, c).doit(), alpha * h[k])
    proof.equal(
        "behind a normalisation, F(N(c h)): removed, A = 0", sp.diff(on_ray + displacement[k], c), sp.Integer(0)
    )


def _prove_penalty_and_isotropy(proof: Proof) -> None:
    v, m = sp.IndexedBase("v", real=True), sp.IndexedBase("M", real=True)
    lam, time, size = sp.Symbol("lambda", positive=True), sp.Symbol("tau", real=True), sp.Symbol("s", positive=True)
    moved = split(total((h[i] + time * size * v[i]) ** 2)) * lam / d
    curvature = sp.diff(moved, time, 2).subs(total(v[i] ** 2), 1)
    proof.equal("curvature of lambda rms^2 along |h| v, |v| = 1: 2 lambda rms^2", curvature, 2 * lam * size**2 / d)
    second_moment = m[i, i] / d  # E[v_i v_j] = delta_ij / d, whose trace is E|v|^2 = 1
    proof.equal("E|v|^2 for E[v_i v_j] = delta_ij / d", split(total(1 / d)), sp.Integer(1))
    proof.equal("isotropic mean of v^T M v: tr(M) / d", split(total(second_moment)), total(m[i, i]) / d)


def _prove_deferred_decay(proof: Proof) -> None:
    """The next loop's direction turns by O(1/s) as the scale s changes: deferred radial visibility is O(1/s^2)."""
    s, beta = sp.symbols("s beta", positive=True)
    a = sp.Symbol("a", real=True)
    turning = turning_per_e_fold(s, a, beta)
    proof.equal("d angle / d log s of s u + b, b = (a, beta) fixed", turning, -beta * s / ((s + a) ** 2 + beta**2))
    proof.equal("its limit times s", sp.limit(s * turning, s, sp.oo), -beta)


def turning_per_e_fold(s: sp.Expr, a: sp.Expr, beta: sp.Expr) -> sp.Expr:
    """d angle / d log s of the plane vector (s + a, beta)."""
    return s * sp.diff(sp.atan(beta / (s + a)), s)


def label_sampled_visibility(readout: StateMap, h: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """E_{y ~ p} <grad_h l_y, delta>^2 of every token from the gradients of all labels, and E |grad|^2 |delta|^2."""
    h = h.clone().requires_grad_()
    log_p = readout(h).log_softmax(-1)
    vocab = log_p.shape[-1]
    one_label = -torch.eye(vocab, dtype=h.dtype).view(vocab, *[1] * (h.ndim - 1), vocab).expand(vocab, *log_p.shape)
    (gradients,) = torch.autograd.grad(log_p, h, one_label, is_grads_batched=True)
    p = log_p.detach().exp().movedim(-1, 0)
    slopes = (gradients * delta).sum(-1)
    bounds = gradients.square().sum(-1) * delta.square().sum(-1)
    return (p * slopes.square()).sum(0), (p * bounds).sum(0)


def radial_defect(model: RandomModel) -> float:
    """Largest |Dz[h]| over tokens, relative to the largest logits that the head can make of a normalised state."""
    # Not relative to the change along a random direction, which may by chance be hardly visible, too.
    h = model.embed()
    head = model.parameters["head"] * model.parameters.get("readout.gain", torch.ones(()))
    changes = torch.func.jvp(model.readout(), (h,), (h,))[1].norm(dim=-1)
    return (changes / (head.norm() * h.shape[-1] ** 0.5)).max().item()


def carry_defect(step: StateMap, h: Tensor, gain: float, generator: torch.Generator) -> float:
    """Largest |<w, D step(h)[h_t] - gain h_t>| / (|D step^T w| + |w|)|h_t| over tokens t moved alone, w random."""
    h = h.clone().requires_grad_()
    w = torch.randn(h.shape, generator=generator, dtype=h.dtype)
    pulled = torch.autograd.grad(step(h), h, w)[0]
    h = h.detach()
    size = (pulled.norm(dim=-1) + w.norm(dim=-1)) * h.norm(dim=-1)
    return (((pulled - gain * w) * h).sum(-1).abs() / size).max().item()


def penalty_defect(h: Tensor, power: float = 2.0) -> float:
    """Largest |h^T H h / (2 lambda rms^2) - 1|, H the Hessian of lambda rms^power (2: claimed); lambda cancels."""
    h = h.clone().requires_grad_()
    gradient = torch.autograd.grad((h.square().mean(-1) ** (power / 2.0)).sum(), h, create_graph=True)[0]
    curvature = torch.autograd.grad((gradient * h.detach()).sum(), h)[0] * h
    return (curvature.sum(-1) / (2.0 * h.square().mean(-1)) - 1.0).abs().max().item()


def _residuals(case: Case, model: RandomModel) -> list[float]:
    generator = torch.Generator().manual_seed(case.seed)
    h, readout = model.embed(), model.readout()
    direction = torch.randn(h.shape, generator=generator, dtype=h.dtype)
    seen = visibility(readout, h, direction, generator=generator, probes=1)
    delta = direction / direction.norm(dim=-1, keepdim=True) * h.norm(dim=-1, keepdim=True)
    sampled, bound = label_sampled_visibility(readout, h, delta)

    attention, mlp = model.sublayers()[:2]
    between = random_model(draw_architecture(case, between="rmsnorm", batch=1)).between()
    return [
        ((seen.model - sampled).abs() / bound).max().item(),
        radial_defect(model),
        penalty_defect(h),
        carry_defect(attention, h, 1.0, generator),
        carry_defect(lambda h: mlp(DAMPING * h), h, DAMPING, generator),
        carry_defect(lambda h: attention(between(h)), h, 0.0, generator),
    ]


def check(case: Case) -> Residual:
    """Largest of: visibility against sampled labels, radial visibility, a penalty's curvature, the three activities."""
    # Not tied: embeddings for a head would saturate the softmax.
    model = random_model(draw_architecture(case, readouts=SCALE_FREE, between="none", tied=False, batch=1))
    return Residual(value=worst(_residuals(case, model)), tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """The least of: a raw readout's radial visibility, the visibility under the wrong distribution, a penalty of the
    root mean square itself, the activities of a residual step whose branch does not normalise its input, damped or not,
    and removal by no operation at all."""
    model = random_model(draw_architecture(case, readout="raw", between="none", tied=False, batch=1))
    generator, h = torch.Generator().manual_seed(case.seed), model.embed()
    readout = model.readout()
    seen = visibility(readout, h, h, generator=generator)
    sampled, bound = label_sampled_visibility(readout, h, h)
    matrix = model.parameters["0.mlp.gate"][: case.d]

    def unnormalised(h: Tensor) -> Tensor:
        return h + torch.tanh(h @ matrix.T)

    failures = [
        radial_defect(model),
        ((seen.uniform - sampled).abs() / bound).max().item(),
        penalty_defect(h, power=1.0),
        carry_defect(unnormalised, h, 1.0, generator),
        carry_defect(lambda h: unnormalised(DAMPING * h), h, DAMPING, generator),
        carry_defect(model.sublayers()[0], h, 0.0, generator),
    ]
    return Residual(value=least(failures), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P4",
    title="visibility and activity are two numbers: behind a scale-free readout the scale is blind, and may be carried",
    words=(
        "What logits see of a direction and what the recurrence keeps of it are two numbers: without epsilon the "
        "scale can be blind and, by one pre-norm residual step, carried (1), damped (alpha) or removed (0)."
    ),
    statement=(
        r"V_p(v) = \mathrm{Var}_p(\mathrm{D}z[|h|v]) = \mathbb{E}_{y\sim p}\langle\nabla_h \ell_y, |h|v\rangle^2;\quad "
        r"V(h/|h|) = 0,\ \mathrm{D}\Phi(h)[h] = \alpha h,\ "
        r"\alpha = 1 \text{ (carried)}, \alpha \text{ (damped)}, 0 \text{ (removed)}"
    ),
    hypotheses=(
        "h is the state that is decoded, and the step leads from it to the next decoded state",
        "the branch normalises its input, epsilon is zero, and the step is one residual add (of several, A = 1 and "
        "alpha up to O(1/s^2))",
        "the readout is scale-free, for V = 0",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-4,
)
