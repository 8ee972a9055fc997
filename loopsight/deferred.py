"""Through which residual steps a loss sees a state's scale, term by term and exactly.

Convention: a step is one residual add (attention or MLP), not a whole loop; G_j is the total gradient, of everything
behind state h_j and of its own readout; <., .> is taken for every token separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loopsight.checks import require_shape_kept
from loopsight.derivatives import pullback, require_adjoint, require_double_states
from loopsight.responses import StateMap


@dataclass(frozen=True, kw_only=True)
class DeferredIdentity:
    """<G_i, h_i> = sum_{j >= i} imm_j - sum_{j >= i} <G_{j+1}, b_j>, at every state i and for every token.

    Attributes:
        names: n names of steps.
        radial: (n + 1, ...) <G_i, h_i>, measured: the loss's change when the scale of a token's h_i grows by e, to
            first order, in the loss's units.
        immediate: (n + 1, ...) imm_j = <gradient of h_j's own readout, h_j>; 0 behind scale-free readouts.
        crossing: (n, ...) -<G_{j+1}, b_j>, b_j = step_j(h_j) - gain_j h_j.
        size: (n + 1, ...) |G_i| |h_i|, the rounding noise's scale in `radial`.
    """

    names: tuple[str, ...]
    radial: Float[Tensor, "states *batch"]
    immediate: Float[Tensor, "states *batch"]
    crossing: Float[Tensor, "steps *batch"]
    size: Float[Tensor, "states *batch"]

    @property
    def explained(self) -> Float[Tensor, "states *batch"]:
        """The right-hand side at every state."""
        terms = torch.cat([self.immediate[:-1] + self.crossing, self.immediate[-1:]])
        return terms.flip(0).cumsum(0).flip(0)

    @property
    def residual(self) -> Float[Tensor, "states *batch"]:
        """|radial - explained| relative to the terms and the largest `size` from there on (where losses of opposite
        weights cancel in G_i, their rounding does not): 1e-16 where the identity holds, NaN for 0 / 0.

        Much more says that a step is no gain_j h + (branch of the normalised state): an epsilon, a norm after the
        add, a gate, or a whole loop passed as one step.
        """
        zero = torch.zeros_like(self.crossing[:1])
        terms = self.immediate.abs() + torch.cat([self.crossing.abs(), zero])
        noise = terms.flip(0).cumsum(0) + self.size.flip(0).cummax(0).values
        return (self.radial - self.explained).abs() / noise.flip(0)

    def table(self, token: tuple[int, ...] | None = None) -> str:
        """One line a state; all tokens summed, or the one at this index of the batch dimensions."""

        def pick(x: Tensor) -> list[float]:
            return (x.reshape(len(x), -1).sum(1) if token is None else x.movedim(0, -1)[token]).tolist()

        width = max(len(name) for name in ("step", "(end)", *self.names))
        lines = [f"{'j':>3}  {'step':<{width}}  {'<G_j, h_j>':>13}  {'imm_j':>13}  {'-<G_j+1, b_j>':>13}"]
        rows = zip((*self.names, "(end)"), pick(self.radial), pick(self.immediate), strict=True)
        crossing = [f"{x:13.5e}" for x in pick(self.crossing)]
        for j, (name, radial, immediate) in enumerate(rows):
            last = crossing[j] if j < len(crossing) else ""
            lines.append(f"{j:>3}  {name:<{width}}  {radial:13.5e}  {immediate:13.5e}  {last}".rstrip())
        immediate, crossed = sum(pick(self.immediate)), sum(pick(self.crossing))
        lines.append(f"{'':>3}  {'sum':<{width}}  {immediate + crossed:13.5e}  {immediate:13.5e}  {crossed:13.5e}")
        residual = self.residual[0] if token is None else self.residual[0][token]
        lines.append(f"largest relative residual of <G_0, h_0> {residual.max().item():.1e}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def deferred_identity(
    steps: Sequence[StateMap],
    losses: Sequence[StateMap | None],
    h: Float[Tensor, "*batch d"],
    *,
    gains: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> DeferredIdentity:
    """Take apart <G_0, h_0>, the sight that later states give the loss of the scale of h_0, and every <G_i, h_i>.

    Exact for steps h -> gain h + branch(norm(h)) with epsilon 0: gain 1 for a pre-norm residual, alpha for damping by
    alpha, 0 for a normalisation between loops. `residual` says whether they are such steps. Behind scale-free
    readouts every <G_i, h_i> falls as 1 / |h|, wherever the loss is placed.

    Args:
        steps: all residual steps in the order they run, the loops written out one after the other.
        losses: len(steps) + 1 scalar functions of the state, losses[j] of h_j as it is weighted in the total; None
            where nothing is read.
        h: h_0 (..., d), float64, weights too.
        gains: of every step; all 1 when not given.
        names: of every step, for printing.

    Raises:
        ValueError: bad tensors or lengths, no loss at all, or reverse mode that disagrees with finite differences
            (a no-grad region, a detach, dropout), naming the step.

    Source: this project; theory/ P5. The 1 / |h| law: arXiv 2606.24898.
    """
    require_double_states(h)
    gains = (1.0,) * len(steps) if gains is None else gains
    names = tuple(str(j) for j in range(len(steps))) if names is None else tuple(names)
    if not len(steps) == len(losses) - 1 == len(gains) == len(names) or not steps:
        counts = f"{len(steps)} steps, {len(losses)} losses, {len(gains)} gains and {len(names)} names"
        raise ValueError(
            f"n >= 1 steps need n + 1 losses (None where nothing is read), n gains and n names; got {counts}."
        )
    if all(loss is None for loss in losses):
        raise ValueError("at least one of the losses must not be None.")

    states, pulls = [h.detach()], []
    for step in steps:
        state, pull = pullback(step, states[-1])
        require_shape_kept(state, h, "a step")
        states.append(state)
        pulls.append(pull)
    own = [_gradient(loss, state, f"losses[{j}]") for j, (loss, state) in enumerate(zip(losses, states, strict=True))]
    total = [own[-1]]
    for j in reversed(range(len(steps))):
        pulled = pulls[j](total[0], last=True)
        require_adjoint(steps[j], states[j], total[0], pulled, f"step {j} ({names[j]})")
        total.insert(0, own[j] + pulled)
    displacements = [after - gain * h for h, after, gain in zip(states, states[1:], gains, strict=False)]
    h_all, own_all, total_all = torch.stack(states), torch.stack(own), torch.stack(total)
    return DeferredIdentity(
        names=names,
        radial=(total_all * h_all).sum(-1),
        immediate=(own_all * h_all).sum(-1),
        crossing=-(total_all[1:] * torch.stack(displacements)).sum(-1),
        size=total_all.norm(dim=-1) * h_all.norm(dim=-1),
    )


def _gradient(loss: StateMap | None, h: Tensor, what: str) -> Tensor:
    if loss is None:
        return torch.zeros_like(h)
    value, pull = pullback(loss, h)
    if value.ndim != 0:
        raise ValueError(f"{what} must return a scalar, got shape {tuple(value.shape)}.")
    gradient = pull(torch.ones_like(value), last=True)
    require_adjoint(loss, h, torch.ones_like(value), gradient, what)
    return gradient
