"""P15: blind coordinates besides the scale: LayerNorm's ones, heads' scales, key biases; what optimisers do to them."""

import random
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from loopsight.protocol import unroll
from theory.cases import Case
from theory.laboratory import draw_architecture, gradients_of
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.random_model import RandomModel, random_model
from theory.symbols import c, d, eps, h, i, j, k, split, t, total

TOLERANCE = 1e-11
LR, DECAY, STEPS = 0.02, 0.1, 2


def prove() -> Proof:
    proof = Proof()
    _prove_ones_direction(proof)
    _prove_optimisers(proof)
    _prove_attention(proof)
    return proof


def _prove_ones_direction(proof: Proof) -> None:
    """For symbolic d and any epsilon: centring forgets t 1, so states carry it and logits ignore it."""
    mean = total(h[i]) / d
    mean_moved = split(total(h[i] + t)) / d
    proof.equal("mean of h + t 1", mean_moved, mean + t)
    proof.equal("centred coordinate j of h + t 1", centre(h[j] + t, mean_moved), centre(h[j], mean))
    # The centred coordinates, variance and epsilon included in what follows, are those of h: LN(h + t 1) = LN(h).
    centred = sp.IndexedBase("x", real=True)
    layer_norm = centred[j] / sp.sqrt(total(centred[i] ** 2) / d + eps)
    branch = sp.Function("B")(layer_norm)
    proof.equal("F(h + t 1) - F(h), F = h + B(LN h)", (h[j] + t + branch) - (h[j] + branch), t)
    proof.equal("DF(h)[1], every coordinate: carried", sp.diff(h[j] + t + branch, t), sp.Integer(1))


def centre(coordinate: sp.Expr, mean: sp.Expr) -> sp.Expr:
    """What LayerNorm does first."""
    return coordinate - mean


def _prove_optimisers(proof: Proof) -> None:
    """A writer W (rows: state coordinates) whose output's ones-component is blind: its gradients have 1^T g = 0."""
    upstream, x = sp.IndexedBase("q", real=True), sp.IndexedBase("x", real=True)
    blind = {total(upstream[i]): 0}
    column = split(total(upstream[i] * x[k]))  # gradient of W[i, k] is q_i x_k
    proof.equal("column sums of the gradient, sum_i q_i = 0", column.subs(blind), sp.Integer(0))
    weight, gradient = sp.IndexedBase("W", real=True), sp.IndexedBase("g", real=True)
    lr, wd = sp.symbols("eta lambda", positive=True)
    zero = {total(gradient[i]): 0}
    stepped = split(total((1 - lr * wd) * weight[i] - lr * gradient[i])).subs(zero)
    proof.equal("one SGD step with decay: column sums times 1 - eta lambda", stepped, (1 - lr * wd) * total(weight[i]))
    momentum, mu = sp.IndexedBase("v", real=True), sp.Symbol("mu", positive=True)
    kept = split(total(mu * momentum[i] + gradient[i])).subs(zero)
    proof.equal("momentum stays blind", kept, mu * total(momentum[i]))

    g = sp.Matrix([2, -1, -1])
    proof.equal("a gradient with sum 0", sum(g), sp.Integer(0))
    first = sum(first_adam_step(entry, lr) for entry in g)
    proof.true("Adam's first step moves the sum all the same", sp.Ne(first, 0))
    proof.equal("by one learning rate", first, lr)


def first_adam_step(gradient: sp.Expr, lr: sp.Expr) -> sp.Expr:
    """-eta m_hat / sqrt(v_hat) with m_hat = g, v_hat = g^2, Adam's own epsilon 0."""
    return -lr * gradient / sp.sqrt(gradient**2)


def _prove_attention(proof: Proof) -> None:
    """Scale of a normalised query, bias of the keys, kernel of the head."""
    w, x, key = (sp.IndexedBase(name, real=True) for name in ("w", "x", "y"))
    squares = sp.Symbol("Q", positive=True)  # sum of squares of the head's query, quadratic in its weights
    query = split(total(c * w[i] * x[i]))
    scaled = query / sp.sqrt(c**2 * squares / d)
    plain = total(w[i] * x[i]) / sp.sqrt(squares / d)
    proof.equal("a normalised query forgets the scale c of its head's weights", scaled, plain)
    bias = sp.IndexedBase("beta", real=True)
    score = split(total(x[i] * (key[i] + bias[i])))
    shift = total(x[i] * bias[i])
    proof.equal("a key bias adds to every score of a query the same number", score - total(x[i] * key[i]), shift)
    a, b, s = sp.symbols("a b s", real=True)
    softmax = sp.exp(a + s) / (sp.exp(a + s) + sp.exp(b + s))
    proof.equal("which the softmax forgets", softmax, sp.exp(a) / (sp.exp(a) + sp.exp(b)))
    spare = sp.Symbol("m", integer=True, nonnegative=True)
    vocab = d - spare
    proof.true("V <= d: dim ker(C W) >= d - (V - 1) >= 1", sp.Ge(d - (vocab - 1), 1))


def layer_norm_model(case: Case, **fixed: Any) -> RandomModel:
    """LayerNorm in blocks and readout, any epsilon, at least two tokens (one token's attention has no queries)."""
    drawn: dict[str, Any] = dict(
        block_norm="layernorm",
        readout="layernorm",
        between="none",
        batch=1,
        tied=False,
        tokens=max(case.tokens, 2),
        eps=random.Random(case.seed + 1).choice([0.0, 1e-6, 1e-2, 1.0]),
    )
    return random_model(draw_architecture(case, **(drawn | fixed)))


def ones_defects(model: RandomModel, from_loop: int = 0) -> tuple[float, float]:
    """Largest |<g, 1>| / |g|_1 over tokens, g the gradient of random multiples of all logits after loops from_loop..K,
    and the same for g - w, g the gradient of <w, h_1>: the ones direction's share of logits and of the next state.
    """
    h = model.embed().requires_grad_()
    states, readout = unroll(model.step(), h, model.architecture.loops), model.readout()
    logits = torch.stack([readout(state) for state in states[from_loop:]])
    generator = torch.Generator().manual_seed(model.architecture.seed)
    for_logits, for_state = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (logits, h))
    seen = torch.autograd.grad(logits, h, for_logits, retain_graph=True)[0]
    kept = torch.autograd.grad(states[1], h, for_state)[0]
    response = seen.sum(-1).abs() / seen.abs().sum(-1)
    carry = (kept - for_state).sum(-1).abs() / (kept.abs() + for_state.abs()).sum(-1)
    return response.max().item(), carry.max().item()


def gradients(model: RandomModel) -> dict[str, Tensor]:
    """Of the loss after the last loop."""
    return gradients_of(lambda p: model.cross_entropy(model.readout(p)(model.states(p)[-1])), model.parameters)


def writer_defect(model: RandomModel) -> float:
    """Largest |1^T g| / sum_i |g_i|, g the gradient of a block writer, per column."""
    found = {name: g for name, g in gradients(model).items() if name.endswith((".out", ".down", "n.bias", "p.bias"))}
    return worst((g.sum(0).abs() / g.abs().sum(0)).max().item() for g in found.values())


def wide_heads(case: Case) -> int:
    """Heads of width 2 or more: a query of width 1 is normalised to its sign, and its weights have no gradient."""
    return random.Random(case.seed).choice([n for n in (1, 2, 3, 4) if case.d % n == 0 and case.d // n >= 2])


def query_defect(model: RandomModel) -> float:
    """Largest |<g, W>| / (|g| |W|) of a head's query weights."""
    heads, found, defects = model.architecture.heads, gradients(model), []
    for layer in range(model.architecture.layers):
        name = f"{layer}.attention.q"
        g, w = (x.unflatten(0, (heads, -1)).flatten(1) for x in (found[name], model.parameters[name]))
        defects.append(((g * w).sum(-1).abs() / (g.norm(dim=-1) * w.norm(dim=-1))).max().item())
    return worst(defects)


def key_bias_defect(case: Case, rotate: bool = False) -> float:
    """Largest |softmax(q (k + b)) - softmax(q k)|; `rotate` turns queries and keys by their positions first."""
    generator = case.generator()
    width = 2 * ((case.d + 1) // 2)
    query, key = torch.randn(2, max(case.tokens, 2), width, generator=generator, dtype=torch.float64)
    bias = torch.randn(width, generator=generator, dtype=torch.float64)

    def attend(key: Tensor) -> Tensor:
        q, k = (_rotated(query), _rotated(key)) if rotate else (query, key)
        return (q @ k.T / width**0.5).softmax(-1)

    return (attend(key + bias) - attend(key)).abs().max().item()


def _rotated(x: Tensor) -> Tensor:
    """Rotary positions, one frequency for all pairs."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    angle = torch.arange(len(x), dtype=x.dtype)[:, None]
    return torch.cat([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], dim=-1)


def head_kernel_defect(case: Case, vocab: int) -> float:
    """Change of the softmax behind a raw head along the least visible direction of C W over the most visible one's."""
    generator = case.generator()
    head = torch.randn(vocab, case.d, generator=generator, dtype=torch.float64)
    directions = torch.linalg.svd(head - head.mean(0))[2]
    h = torch.randn(case.d, generator=generator, dtype=torch.float64) / case.d

    def change(direction: Tensor) -> float:
        return ((head @ (h + direction)).softmax(0) - (head @ h).softmax(0)).abs().max().item()

    return change(directions[-1]) / change(directions[0])


def ones_component(model: RandomModel, optimiser: str) -> tuple[Tensor, Tensor]:
    """Column sums of the last MLP's output map before and after a few steps, in units of its column's l1 norm."""
    name = f"{model.architecture.layers - 1}.mlp.down"
    weight = model.parameters[name].clone().requires_grad_()
    chosen: torch.optim.Optimizer = torch.optim.SGD([weight], LR, weight_decay=DECAY)
    if optimiser == "adam":
        chosen = torch.optim.Adam([weight], LR)
    size = weight.detach().abs().sum(0)
    for _ in range(STEPS):
        p = model.parameters | {name: weight}
        chosen.zero_grad()
        model.cross_entropy(model.readout(p)(model.states(p)[-1])).backward()
        chosen.step()
    return model.parameters[name].sum(0) / size, weight.detach().sum(0) / size


def check(case: Case) -> Residual:
    """Largest of: the ones direction's logits and carry, the writers' column sums and their decay under SGD, query
    scales under QK-norm, key biases, and the kernel of a head with no more classes than dimensions."""
    model = layer_norm_model(case)
    before, after = ones_component(model, "sgd")
    residuals = [
        *ones_defects(model),
        writer_defect(model),
        (after - (1.0 - LR * DECAY) ** STEPS * before).abs().max().item(),
        query_defect(layer_norm_model(case, qk_norm=True, eps=0.0, heads=wide_heads(case), loops=1)),
        key_bias_defect(case),
        head_kernel_defect(case, min(case.vocab, case.d)),
    ]
    return Residual(value=worst(residuals), tolerance=TOLERANCE)


def control(case: Case) -> Residual:
    """The least of those that must fail: one of the two norms exchanged, Adam, no QK-norm, rotated keys, V > d."""
    before, after = ones_component(layer_norm_model(case), "adam")
    failures = [
        *ones_defects(layer_norm_model(case, block_norm="rmsnorm"), from_loop=1),
        ones_defects(layer_norm_model(case, readout="rmsnorm"))[0],
        writer_defect(layer_norm_model(case, block_norm="rmsnorm", readout="rmsnorm")),
        (after - before).abs().max().item(),
        query_defect(layer_norm_model(case, qk_norm=False, heads=wide_heads(case))),
        key_bias_defect(case, rotate=True),
        head_kernel_defect(case, case.d + 2),
    ]
    return Residual(value=least(failures), tolerance=TOLERANCE)


PROPOSITION = Proposition(
    key="P15",
    title="LayerNorm's ones direction is blind at once and for ever; SGD leaves writers' ones component, Adam moves it",
    words=(
        "LayerNorm throughout hides the ones direction at once and for ever, QK-norm each head's query scale, a "
        "softmax the key bias; SGD leaves the ones component of writers alone (decay apart), Adam moves it."
    ),
    statement=(
        r"\mathrm{LN}(h + t\mathbf 1) = \mathrm{LN}(h) \;\Rightarrow\; \mathrm{D}z_k(h)[\mathbf 1] = 0\ \forall k,\ "
        r"\mathrm{D}\Phi(h)[\mathbf 1] = \mathbf 1,\ \mathbf 1^\top \nabla_W L = 0 \text{ for writers } W;\quad "
        r"\langle \nabla_{W_Q} L, W_Q\rangle = 0 \text{ per head under QK-norm}"
    ),
    hypotheses=(
        "ones direction: LayerNorm both in the blocks and in the readout, nothing between loops, any epsilon",
        "SGD and Adam: the ones component only; SGD makes a blind query scale grow (P12), a key bias has no gradient",
        "query scale: QK-norm with epsilon 0; key bias: no QK-norm and no rotary positions",
        "kernel of the head: a raw readout with no more classes than dimensions",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-5,
)
