"""Every family of directions, judged: seen or not, kept or not.

A finite motion decides what is seen, where one is known; forward mode measures it, and finite differences confirm
forward mode. Visibility, activity and deferred visibility come from one derivative of the readout and K further loops.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loopsight.auditing import actions
from loopsight.auditing.blindspots import SINE, Family
from loopsight.auditing.report import Direction, Verdict
from loopsight.derivatives import STEPS, for_each
from loopsight.invariance import Invariance, Loss, invariance
from loopsight.observability import BLIND
from loopsight.responses import StateMap

SEEN = SINE  # finite change relative to random motions; visibility is a square, BLIND = SEEN^2
ACTIVE = 0.95  # from here on more than half survives a dozen loops
REMOVED = SEEN  # of a relative change, in one loop
MEMBERS = 16  # of a family, pushed through the loops
TOGETHER = 4  # pushed at a time: the states are computed once for all of them, and their logits are held together
FIXED = ("fixed", "mean")  # kinds whose directions are the same at every state
KEPT_BASIS = 16  # largest fixed subspace whose vectors go into the report


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What directions are judged on.

    Attributes:
        step, readout: in exact arithmetic.
        h: (..., d) states, float64.
        num_loops: K further loops.
        searched: flat indices of the searched tokens.
        action_readout, action_states: the readout on a sample of tokens, or on all if it mixes them.
        tokens_alone: it does not.
        penalty: states to a value per token, as weighted in the loss; None for none.
        generator: of random motions and labels.
        forward_mode: derivatives by jvp; by central differences where forward mode cannot be trusted.
    """

    step: StateMap
    readout: StateMap
    h: Tensor
    num_loops: int
    searched: tuple[int, ...]
    action_readout: StateMap
    action_states: Tensor
    tokens_alone: bool
    penalty: StateMap | None
    generator: torch.Generator
    forward_mode: bool = True


@dataclass(frozen=True, kw_only=True)
class Push:
    """A relative change |h_t| v_t of the state, pushed through readout and loops; sums over the tokens moved.

    Attributes:
        variance: (K + 1,) of the logits' change, by loop, 0 the present readout; a penalty's curvature included.
        moved: (..., d) what one loop makes of it, relative to |h_t|; zero at tokens that stay.
    """

    variance: Tensor
    moved: Tensor


def push(bench: Bench, directions: Tensor) -> list[Push]:
    """One derivative of everything along each of (n, ..., d), zero at tokens that stay, of any length elsewhere."""
    return [pushed for part in directions.split(TOGETHER) for pushed in _push_together(bench, part)]


def _push_together(bench: Bench, directions: Tensor) -> list[Push]:
    h, size = bench.h, bench.h.norm(dim=-1, keepdim=True)
    length = directions.norm(dim=-1, keepdim=True)
    deltas = torch.where(length > 0, directions / length, 0.0) * size
    state, moved, variances = h, [deltas], []
    for k in range(bench.num_loops + 1):
        # Loop by loop, so that the logits of one loop are held at a time.
        logits = _pushed(bench, bench.readout, state, moved[-1])[1]
        variances.append(logits.var(-1, correction=0).flatten(1).sum(1))
        if k < bench.num_loops:
            state, after = _pushed(bench, bench.step, state, moved[-1])
            moved.append(after)
    variance = torch.stack(variances, dim=1)
    if bench.penalty is not None:
        variance[:, 0] += torch.stack([_curvature(bench.penalty, h, delta).sum() for delta in deltas])
    relative = torch.where(length > 0, moved[1] / size, 0.0)
    return [Push(variance=v, moved=m) for v, m in zip(variance, relative, strict=True)]


def activities(pushes: Sequence[Push], members: Tensor, within: Tensor | None = None) -> Tensor:
    """Ascending singular values of one loop on the span of a family: |D step[v]| / |v| of its extreme directions.

    The members themselves are an arbitrary basis of that span: of one direction kept and one removed, members at 45
    degrees keep 0.7 each.
    """
    moved = torch.stack([push.moved for push in pushes])
    if within is not None:  # what leaves a fixed blind subspace is not kept in it: the next readout sees it
        moved = moved @ within.T
    moved = moved.flatten(1)
    if not torch.isfinite(moved).all():
        return moved.new_full((len(moved),), torch.nan)
    tokens = (members[0].norm(dim=-1) > 0).sum()
    return torch.linalg.eigvalsh(moved @ moved.T / tokens).clamp(min=0.0).sqrt()


def _pushed(bench: Bench, function: StateMap, h: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """function(h), and its derivatives along (n, ..., d)."""
    if not bench.forward_mode:
        ends = [(function(h + STEPS[0] * delta), function(h - STEPS[0] * delta)) for delta in deltas]
        return function(h), torch.stack([(ahead - behind) / (2 * STEPS[0]) for ahead, behind in ends])

    def along(delta: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative, *_ = torch.func.jvp(function, (h,), (delta,))
        return value, derivative

    values, derivatives = for_each(along, deltas)
    return values[0], derivatives


def isotropic(bench: Bench, at: Tensor) -> Tensor:
    """Random directions at the tokens in the mask `at`, zero elsewhere: what visibilities are relative to."""
    noise = torch.randn(bench.h.shape, generator=bench.generator, dtype=bench.h.dtype, device=bench.h.device)
    return noise * at[..., None]


def judge(
    bench: Bench, families: Sequence[Family], scale: Invariance, everywhere: Tensor, sampled: Tensor | None
) -> tuple[Direction, ...]:
    """All numbers of every family, and the verdicts.

    Args:
        scale: what `scale_action` said.
        everywhere, sampled: `isotropic` directions at all tokens, and at the searched ones; None if no family needs it.
    """
    with torch.no_grad():
        displacement = bench.step(bench.h) - bench.h
    searched = len(bench.searched)
    fixed = [f.basis for f in families if f.kind in FIXED and f.tokens_with == searched and f.basis is not None]
    hidden = torch.cat([bench.h.new_zeros(0, bench.h.shape[-1]), *fixed])  # everything fixed that is blind
    members = [_at_searched(bench, f) if f.vectors is None else f.vectors(bench.h) for f in families]
    references = everywhere[None] if sampled is None else torch.stack([everywhere, sampled])
    pushes = push(bench, torch.cat([references, *(each[:MEMBERS] for each in members)]))
    bases, pushes = pushes[: len(references)], pushes[len(references) :]
    judged = []
    for family, directions in zip(families, members, strict=True):
        count = min(len(directions), MEMBERS)
        own, pushes = pushes[:count], pushes[count:]
        # Fixed vectors are kept if they stay in what is blind.
        stays = (hidden if family.tokens_with == searched else family.basis) if family.kind in FIXED else None
        assert family.vectors is not None or sampled is not None  # or there is nothing to compare with
        base = bases[0] if family.vectors is not None else bases[1]
        judged.append(_judged(bench, family, directions, own, base, stays, displacement, scale))
    return tuple(judged)


def _judged(
    bench: Bench,
    family: Family,
    members: Tensor,
    pushes: Sequence[Push],
    base: Push,
    stays: Tensor | None,
    displacement: Tensor,
    scale: Invariance,
) -> Direction:
    visibility = _relative([p.variance[0] for p in pushes], base.variance[0])
    deferred = _relative([p.variance[1:].sum() for p in pushes], base.variance[1:].sum())
    active = activities(pushes, members, within=stays)
    finite = _finite(bench, family, scale)
    return Direction(
        name=family.name,
        kind=family.kind,
        dimension=family.dimension,
        visibility=visibility,
        finite_change=finite,
        activity=active[-1].item(),
        activity_low=active[0].item(),
        drive=_drive(bench.h, displacement, members),
        deferred=None if math.isnan(deferred) else deferred,
        verdict=_verdict_of(family, len(bench.searched), verdict(visibility, finite, active[-1].item())),
        tokens_with=family.tokens_with,
        tokens_searched=len(bench.searched),
        span=family.span,
        basis=_listed(family.basis),
    )


def _relative(variances: Sequence[Tensor], isotropic: Tensor) -> float:
    """The largest; NaN where not even an isotropic direction moves the logits."""
    return (torch.stack(list(variances)) / isotropic).max().item() if isotropic > 0.0 else math.nan


def verdict(visibility: float, finite: float | None, activity: float) -> Verdict:
    """The finite motion decides what is seen, if there is one; activity decides what is kept."""
    if finite is not None and math.isnan(finite) or not (visibility < math.inf and activity < math.inf):
        return "undecided"
    if (visibility >= BLIND) if finite is None else (finite >= SEEN):
        return "visible"
    if activity < REMOVED:
        return "blind but removed"
    return "blind and active" if activity >= ACTIVE else "blind but contracted"


def _verdict_of(family: Family, searched: int, said: Verdict) -> Verdict:
    """A field that is blind at some tokens only is a readout near a singularity there, not a blind spot."""
    return "undecided" if family.sampled is not None and family.tokens_with < searched else said


def scale_action(bench: Bench) -> Invariance:
    """The calibrated test of the scale, canaries included."""
    return invariance(_loss(bench), bench.action_states, generator=bench.generator)


def _shift_action(bench: Bench) -> Invariance:
    return invariance(_loss(bench), bench.action_states, generator=bench.generator, action="shift")


def _finite(bench: Bench, family: Family, scale: Invariance) -> float | None:
    """Relative change under the family's finite motion; NaN where the test could not have told."""
    if family.kind in ("scale", "mean"):
        result = scale if family.kind == "scale" else _shift_action(bench)
        return float("nan") if result.verdict == "invalid" else result.ratio
    if family.motions is None:
        return None
    h = bench.action_states
    return actions.finite_change(_loss(bench), h, family.motions(h), bench.generator)


def seen_when_moved(bench: Bench, family: Family) -> bool:
    """Whether a finite motion along fixed vectors, all at once, changes the loss: then they are no blind subspace."""
    assert family.basis is not None
    direction, h = F.normalize(family.basis.sum(0), dim=0)[None], bench.action_states
    return actions.finite_change(_loss(bench), h, actions.translations(h, direction), bench.generator) >= SEEN


def moved_together(bench: Bench) -> dict[str, float]:
    """Finite changes where the states of all tokens move as one: by one factor, by one vector."""
    h = bench.action_states
    vector = torch.randn(h.shape[-1], generator=bench.generator, dtype=h.dtype, device=h.device)
    vector = vector * h.square().mean().sqrt()
    motions = {"scale": [2.0 * h, 0.5 * h], "shift": [h + vector, h - vector]}
    return {name: actions.finite_change(_loss(bench), h, moved, bench.generator) for name, moved in motions.items()}


def _loss(bench: Bench) -> Loss:
    seed = torch.Generator(bench.h.device).manual_seed(0)
    loss, penalty = actions.random_label_loss(bench.action_readout, bench.action_states, seed), bench.penalty
    return loss if penalty is None else lambda h: loss(h) + penalty(h).flatten()


def _at_searched(bench: Bench, family: Family) -> Tensor:
    """(dimension, ..., d): the sampled directions at their tokens, zero elsewhere."""
    assert family.sampled is not None
    members = bench.h.new_zeros(family.dimension, bench.h[..., 0].numel(), bench.h.shape[-1])
    members[:, list(bench.searched)] = family.sampled.movedim(0, 1)
    return members.view(family.dimension, *bench.h.shape)


def _drive(h: Tensor, displacement: Tensor, members: Tensor) -> float:
    """Mean over tokens of <v, step(h) - h> / |h|; for several, the length of that part of the displacement."""
    length = members.norm(dim=-1)
    parts = (members * displacement).sum(-1) / (length * h.norm(dim=-1))
    at = (length > 0).all(0)
    if len(members) == 1:
        return parts[0][at].mean().item()
    return parts.square().sum(0).sqrt()[at].mean().item()


def _curvature(penalty: StateMap, h: Tensor, delta: Tensor) -> Tensor:
    """delta^T H delta of every token."""

    def slope(x: Tensor) -> Tensor:
        return torch.func.jvp(penalty, (x,), (delta,))[1]

    return torch.func.jvp(slope, (h,), (delta,))[1]


def _listed(basis: Tensor | None) -> tuple[tuple[float, ...], ...]:
    return () if basis is None or len(basis) > KEPT_BASIS else tuple(tuple(row) for row in basis.tolist())
