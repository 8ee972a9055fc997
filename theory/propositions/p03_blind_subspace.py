"""P3: all of a readout's blind directions at a state, and how many there are.

A readout is z = W Gamma N(h) + bias; its loss sees the Jacobian C W Gamma P_h, with P_h the normalisation's and C the
subtraction of the mean logit, to which a softmax is blind.
"""

import random
from dataclasses import dataclass, replace

import sympy as sp
import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.blind import blind_subspace
from theory.cases import Case
from theory.proposition import Proof, Proposition, Residual, least, worst
from theory.symbols import d, h, i, j, k, split, total

y = sp.IndexedBase("y", real=True)
"""The normalised state: sum y^2 = d; for LayerNorm sum y = 0 too."""
sigma = sp.Symbol("sigma", positive=True)


def prove() -> Proof:
    """Symbolic d and number of classes: kernels of the norms' Jacobians, the dimension law, the softmax's kernel.

    The law is arithmetic, given rank-nullity and how subspaces in general position meet.
    """
    proof = Proof()
    for name, off_diagonal, generators in (("RMSNorm", rms_off_diagonal, 1), ("LayerNorm", layer_off_diagonal, 2)):
        # sigma P_h = 1 + M: a projection, since M^2 = -M, so that its rank is its trace.
        squared = _moments(split(total(sp.expand(off_diagonal(j, k) * off_diagonal(k, i)), k)))
        proof.equal(f"{name}: sigma P_h = 1 + M is a projection, M^2 = -M", squared, -off_diagonal(j, i))
        trace = _moments(split(total(sp.expand(1 + off_diagonal(k, k)), k)))
        proof.equal(f"{name}: its rank, the trace", trace, d - generators)
        along_y = _moments(split(total(sp.expand(off_diagonal(j, k) * y[k]), k)))
        proof.equal(f"{name}: y is in its kernel", y[j] + along_y, sp.Integer(0))
    along_1 = _moments(split(total(sp.expand(layer_off_diagonal(j, k)), k)))
    proof.equal("LayerNorm: so is 1", 1 + along_1, sp.Integer(0))

    _prove_dimension(proof)
    _prove_zero_gain(proof)
    prove_variance(proof)
    return proof


def rms_off_diagonal(row: sp.Symbol, column: sp.Symbol) -> sp.Expr:
    """M of sigma P_h = 1 + M."""
    return -y[row] * y[column] / d


def layer_off_diagonal(row: sp.Symbol, column: sp.Symbol) -> sp.Expr:
    return -1 / d - y[row] * y[column] / d


def _moments(expression: sp.Expr) -> sp.Expr:
    return sp.expand(expression).subs({total(y[k] ** 2, k): d, total(y[k], k): 0})


def _prove_dimension(proof: Proof) -> None:
    m, kernel, meet = sp.symbols("m k x", integer=True, nonnegative=True)
    rank = (d - m) - meet  # of A on range P_h, of dimension d - m, where A = C W Gamma vanishes on a part x
    proof.equal("dim ker(A P_h) = m + x, x = dim(ker A with range P_h)", d - rank, m + meet)
    generic = sp.Max(0, kernel + (d - m) - d)  # x for subspaces of dimensions k and d - m in general position
    law = sp.Max(m, kernel)
    for case, values in (("k <= m", {kernel: m - meet}), ("k >= m", {kernel: m + meet})):
        proof.equal(f"general position, {case}: m + x = max(m, k)", (m + generic).subs(values), law.subs(values))


def _prove_zero_gain(proof: Proof) -> None:
    """A gain of zero on channel i does not hide h_i, which still moves every other channel's normalised value."""
    square, gain = sp.Symbol("S_2", positive=True), sp.IndexedBase("gamma", real=True)
    moved = gain[j] * h[j] / sp.sqrt((square - h[i] ** 2 + sp.Symbol("x", real=True) ** 2) / d)
    derivative = sp.diff(moved, sp.Symbol("x", real=True)).subs(sp.Symbol("x", real=True), h[i])
    proof.equal(
        "RMSNorm: d (gamma_j y_j) / d h_i for j != i, whatever gamma_i",
        derivative,
        -gain[j] * h[j] * h[i] / (d * sp.sqrt(square / d) ** 3),
    )


def prove_variance(proof: Proof) -> None:
    """Var_p(z) as a sum over pairs: a softmax of full support is blind to a shift of all logits and to nothing else."""
    classes = sp.Symbol("V", integer=True, positive=True)
    u, v = sp.symbols("u v", integer=True, positive=True)
    p, z = sp.IndexedBase("p", positive=True), sp.IndexedBase("z", real=True)
    first, second = sp.symbols("E_1 E_2", real=True)

    def over(term: sp.Expr, index: sp.Symbol) -> sp.Expr:
        return split(sp.Sum(sp.expand(term), (index, 1, classes)))

    def moments(expression: sp.Expr, index: sp.Symbol) -> sp.Expr:
        known = {over(p[index], index): 1, over(p[index] * z[index], index): first}
        return sp.expand(expression).subs({**known, over(p[index] * z[index] ** 2, index): second})

    inner = moments(over(p[u] * p[v] * (z[u] - z[v]) ** 2 / 2, v), v)
    pairs = moments(over(inner, u), u)
    proof.equal("Var_p(z) = sum_uv p_u p_v (z_u - z_v)^2 / 2", pairs, second - first**2)
    proof.true(
        "a pair of unequal logits has a positive term", sp.Gt(p[u] * p[v] * sp.Symbol("z_uv", nonzero=True) ** 2, 0)
    )


@dataclass(frozen=True, kw_only=True)
class Readout:
    """W Gamma N(h) + bias, N the identity or a normalisation of groups of channels, each token alone.

    Attributes:
        groups: sizes of consecutive groups that are normalised; none for a raw readout.
        centred: LayerNorm or GroupNorm, otherwise RMS.
        eps: inside the root.
        weight: W Gamma.
    """

    groups: tuple[int, ...]
    centred: bool
    eps: float
    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"]

    def __call__(self, h: Tensor) -> Tensor:
        parts = h.split(self.groups, dim=-1) if self.groups else (h,)
        return torch.cat([self._normalise(part) for part in parts], -1) @ self.weight.T + self.bias

    def _normalise(self, h: Tensor) -> Tensor:
        if not self.groups:
            return h
        h = h - h.mean(-1, keepdim=True) if self.centred else h
        return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)

    def generators_per_group(self) -> list[int]:
        return [min(size, 2 if self.centred else 1) for size in self.groups]

    def generators(self, h: Float[Tensor, " d"]) -> list[Tensor]:
        """h_g, and 1_g for the centred ones."""
        starts = torch.tensor((0, *self.groups)).cumsum(0).tolist()
        found = []
        for start, size in zip(starts, self.groups, strict=False):
            for part in (h, torch.ones_like(h))[: 2 if self.centred else 1]:
                generator = torch.zeros_like(h)
                generator[start : start + size] = part[start : start + size]
                found.append(generator)
        return found


NORMS = ("raw", "rmsnorm", "layernorm", "group_rmsnorm", "groupnorm")


def random_groups(draw: random.Random, d: int, smallest: int) -> tuple[int, ...]:
    sizes = []
    while d:
        size = draw.randint(smallest, max(smallest, d))
        size = d if d - size < smallest else size
        sizes.append(size)
        d -= size
    return tuple(sizes)


def readout_of(case: Case, norm: str, *, planted: int, zero_gains: bool = False, eps: float = 0.0) -> Readout:
    """A readout whose C W Gamma has a kernel of `planted` dimensions, or more where classes are few.

    Args:
        planted: dimensions of the kernel, in general position; 1 puts the vector of ones in the range of W.
        zero_gains: the kernel is spanned by channels whose gain is zero; needs more classes than channels.
    """
    draw, generator = random.Random(case.seed), case.generator()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, bias = normal(case.vocab, case.d) * (0.3 * normal(case.d)).exp(), normal(case.vocab)
    if zero_gains:
        weight[:, draw.sample(range(case.d), planted)] = 0.0
    elif planted:
        hidden = torch.linalg.qr(normal(case.d, planted))[0]
        weight = weight - weight @ hidden @ hidden.T
        weight = weight + hidden[:, 0]  # W a = 1 for a planted a: constant logits, which C takes away
    groups = {
        "raw": (),
        "rmsnorm": (case.d,),
        "layernorm": (case.d,),
        "group_rmsnorm": random_groups(draw, case.d, 1),
        "groupnorm": random_groups(draw, case.d, 2),
    }[norm]
    return Readout(groups=groups, centred=norm in ("layernorm", "groupnorm"), eps=eps, weight=weight, bias=bias)


def predicted_dimension(readout: Readout, planted: int) -> int:
    """max(m, k), the kernel in general position."""
    vocab, d = readout.weight.shape
    return max(sum(readout.generators_per_group()), planted, d - (vocab - 1))


def predicted_dimension_of_zero_gains(readout: Readout) -> int:
    """m + sum_g max(0, k_g - m_g), not max(m, k): a group's generators constrain that group's channels only."""
    hidden = (readout.weight == 0).all(0)
    if not readout.groups:
        return int(hidden.sum())
    counts = [int(part.sum()) for part in hidden.split(readout.groups)]
    return sum(m + max(0, k - m) for m, k in zip(readout.generators_per_group(), counts, strict=True))


def residual(readout: Readout, h: Float[Tensor, "tokens d"], predicted: int) -> float:
    """|dimension - predicted|, and the largest distance of a generator from the subspace."""
    blind = blind_subspace(readout, h)
    distances = [0.0]
    for token, state in enumerate(h):
        for generator in readout.generators(state):
            direction = torch.zeros_like(h)
            direction[token] = generator
            distances.append(blind.distance(direction))
    return worst([float(abs(blind.dimension - predicted)), *distances])


def check(case: Case) -> Residual:
    """One norm and one kernel, drawn by the seed; all tokens jointly where that stays small."""
    draw = random.Random(case.seed)
    norm = draw.choice(NORMS)
    planted = draw.randint(0, min(6, case.d - 1))
    h = case.states()[: max(1, 48 // case.d)]
    if draw.random() < 0.5:
        readout = readout_of(case, norm, planted=planted)
        predicted = predicted_dimension(readout, planted)
    else:
        enough = Case(**{**vars(case), "vocab": case.d + case.vocab})
        readout = readout_of(enough, norm, planted=planted, zero_gains=True)
        predicted = predicted_dimension_of_zero_gains(readout)
    return Residual(value=residual(readout, h, len(h) * predicted), tolerance=1e-9)


def control(case: Case) -> Residual:
    """The lesser of: RMSNorm with an epsilon of the state's size, where the dimension may stay and h is no longer in
    the subspace; and the sum m + k in the place of the maximum."""
    h, leaky = case.states()[:1], readout_of(case, "rmsnorm", planted=0, eps=case.scale**2)
    planted = readout_of(case, "rmsnorm", planted=1)
    kernel = predicted_dimension(replace(planted, groups=()), 1)
    failures = [residual(leaky, h, predicted_dimension(leaky, 0)), residual(planted, h, 1 + kernel)]
    return Residual(value=least(failures), tolerance=1e-9)


PROPOSITION = Proposition(
    key="P3",
    title="a readout's blind subspace has dimension max(m, k): generators and head overlap, they do not add",
    words=(
        "How many directions of a state a readout cannot see is, for a head in general position, the larger of "
        "what its norm removes and what the head ignores, not their sum."
    ),
    statement=(
        r"\dim \ker(C W \Gamma P_h) = m + \dim(\ker(C W \Gamma) \cap \operatorname{range} P_h)"
        r" = \max(m, k)\ \text{in general position},\quad"
        r" m = \dim \ker P_h,\ k = \dim \ker(C W \Gamma)"
    ),
    hypotheses=(
        "the loss sees the state only through a softmax of the logits, of full support",
        "epsilon is zero",
        "max(m, k): the kernel of C W Gamma is in general position to the generators (zero gains under a grouped norm "
        "are not: there the law holds group by group; nor is a kernel across 1 under LayerNorm: there it is k + 1)",
    ),
    source="this project",
    prove=prove,
    check=check,
    control=control,
    control_floor=1e-3,
)
