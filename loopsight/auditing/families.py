"""Families of directions to judge: those asked about by name, and what the search found beside them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loopsight.auditing import actions
from loopsight.auditing.blindspots import (
    SINE,
    BlindSpace,
    Family,
    common,
    contains,
    exactly_blind,
    groups_of_channels,
    orthonormal,
    parts,
    rest,
)

COLLAPSED = 10 * SINE  # sine of the angle of all states to their mean: then what is common to them may be the state


def families(
    spaces: Sequence[BlindSpace], groups: int | None, seen: Callable[[Family], bool] = lambda _: False
) -> list[Family]:
    """Scale and mean always, blind or not; groups if asked or found; then everything else that is blind.

    Args:
        spaces: at the searched tokens.
        groups: number of equal groups of channels to ask about; None to detect.
    """
    ones = torch.ones_like(spaces[0].state)[None] / spaces[0].state.numel() ** 0.5
    with_scale = [space for space in spaces if contains(space, space.state[None])]
    with_mean = [space for space in spaces if contains(space, ones)]
    exact = [exactly_blind(space) for space in spaces]
    fixed = _without_collapsed_state(common(exact), spaces)
    found = groups_of_channels(spaces, groups)
    asked = list(torch.arange(ones.shape[-1], device=ones.device).chunk(groups)) if groups else []
    result = [_scale(len(with_scale)), _mean(len(with_mean), ones)]
    if asked or found:
        result.append(_group_scale(found or asked, len(spaces) if found else 0))
    fixed = _without(fixed, ones) if len(with_mean) == len(spaces) else fixed
    if len(fixed) and seen(_fixed(fixed, len(spaces))):
        fixed = fixed[:0]  # kernels that turn with the state within one large subspace meet by their dimensions alone
    if len(fixed):
        result.append(_fixed(fixed, len(spaces)))
    remaining = []
    for space, unnamed in zip(spaces, exact, strict=True):
        named = [vectors for vectors in (ones, space.state[None]) if contains(space, vectors)]
        named += [parts(space.state, found)] if found else []
        remaining.append(rest(unnamed, torch.cat([fixed, *named])))
    return result + _fields(spaces, remaining)


def _scale(tokens_with: int) -> Family:
    return Family(name="scale", kind="scale", dimension=1, vectors=lambda h: h[None], tokens_with=tokens_with)


def _mean(tokens_with: int, ones: Tensor) -> Family:
    return Family(
        name="mean direction",
        kind="mean",
        dimension=1,
        vectors=lambda h: ones[0].expand_as(h)[None],
        tokens_with=tokens_with,
        span=1,
        basis=ones,
    )


def _group_scale(groups: list[Tensor], tokens_with: int) -> Family:
    in_a_row = all(bool((group.diff() == 1).all()) for group in groups)
    order = "in a row" if in_a_row else "of scattered channels"
    return Family(
        name=f"scale of each of {len(groups)} groups {order}",
        kind="group scale",
        dimension=len(groups),
        vectors=lambda h: parts(h, groups),
        motions=lambda h: actions.group_rescalings(h, groups),
        tokens_with=tokens_with,
    )


def _fixed(vectors: Tensor, tokens_with: int) -> Family:
    count = len(vectors)
    return Family(
        name="a fixed direction" if count == 1 else f"a fixed subspace of dimension {count}",
        kind="fixed",
        dimension=count,
        vectors=lambda h: torch.stack([v.expand_as(h) for v in vectors]),
        motions=lambda h: actions.translations(h, vectors),
        tokens_with=tokens_with,
        span=count,
        basis=vectors,
    )


def _fields(spaces: Sequence[BlindSpace], remaining: list[Tensor]) -> list[Family]:
    """What depends on the state: a rotation where all of it turns within one plane, else a field without a name."""
    count = min((len(rows) for rows in remaining if len(rows)), default=0)
    if count == 0:
        return []
    at = [n for n, rows in enumerate(remaining) if len(rows)]
    span = orthonormal(torch.cat([remaining[n] for n in at]))
    # Any two directions lie in a plane.
    if count == 1 and len(span) == 2 and len(at) > 2 and all(_turns(spaces[n].state, remaining[n], span) for n in at):
        return [_rotation(span, len(at))]
    d = spaces[0].state.numel()
    small = len(span) < min(d, sum(len(remaining[n]) for n in at))
    return [
        Family(
            name=f"a direction field of dimension {count} that depends on the state"
            + (f", at {len(at)} of {len(spaces)} tokens" if len(at) < len(spaces) else ""),
            kind="field",
            dimension=count,
            sampled=torch.stack([rows[:count] if len(rows) else rows.new_zeros(count, d) for rows in remaining]),
            tokens_with=len(at),
            span=len(span),
            basis=span if small else None,
        )
    ]


def _rotation(plane: Tensor, tokens_with: int) -> Family:
    def turned(h: Tensor) -> Tensor:
        inside = h @ plane.T
        return (torch.stack([-inside[..., 1], inside[..., 0]], dim=-1) @ plane)[None]

    return Family(
        name="rotation within a plane",
        kind="rotation",
        dimension=1,
        vectors=turned,
        motions=lambda h: actions.rotations(h, plane),
        tokens_with=tokens_with,
        span=2,
        basis=plane,
    )


def _turns(state: Tensor, rows: Tensor, plane: Tensor) -> bool:
    """Whether the one blind direction is at right angles to the state's part in the plane."""
    inside = (state @ plane.T) @ plane
    return bool((rows[0] @ inside).abs() <= SINE * inside.norm())


def _without_collapsed_state(fixed: Tensor, spaces: Sequence[BlindSpace]) -> Tensor:
    """Where all tokens' states point the same way, their common direction is the scale and no fixed direction."""
    units = torch.stack([space.state / space.state.norm() for space in spaces])
    mean = units.mean(0, keepdim=True)
    mean = mean / mean.norm()
    collapsed = len(spaces) > 1 and (units - units @ mean.T * mean).norm(dim=-1).max() <= COLLAPSED
    return _without(fixed, mean) if collapsed and len(fixed) else fixed


def _without(vectors: Tensor, removed: Tensor) -> Tensor:
    """The part of span(vectors) at right angles to `removed`, which lies in it."""
    left = vectors - (vectors @ removed.T) @ removed
    _, singular, right = torch.linalg.svd(left, full_matrices=False)
    return right[singular > 0.5]
