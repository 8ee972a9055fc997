"""What the readout cannot see, with no hint: null spaces token by token, then what they have in common.

At every searched token the kernel of the readout's Jacobian is computed (`loopsight.blind`, matrix-free). A direction
field that depends on the state, such as a rotation within a plane, is in that kernel at every token as surely as a
fixed direction is. The kernels are then explained, in this order: vectors in all of them (`fixed`, 1 among them), the
state itself or its parts by groups of channels, and a rest, which turns within a plane or is a field of no known name.

Token by token, because in the observability Gramian of all tokens together (`gramian_extremes`) the blind directions
share the eigenvalue 0, and any mixture of the tokens' own is an eigenvector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loopsight.auditing.report import Kind
from loopsight.blind import blind_subspace
from loopsight.observability import BLIND
from loopsight.responses import StateMap

SINE = BLIND**0.5  # largest sine of an angle called none, as singular values go with the square root of visibility
EXACT = 1e-12  # visibility asked of a direction without a name: an epsilon leaks scales, and nothing excuses others
LEAST = 3  # directions that are not blind, listed for comparison


@dataclass(frozen=True, kw_only=True)
class BlindSpace:
    """The readout's blind space at one token's state.

    Attributes:
        state: (d,).
        basis: (dimension, d), orthonormal.
        chi: (dimension,) visibility of each, below 1e-6.
        least: chi of the least visible directions that are not blind, ascending.
        saturated: nothing moves these logits, so nothing can be called blind.
    """

    state: Tensor
    basis: Tensor
    chi: Tensor
    least: tuple[float, ...]
    saturated: bool


def blind_space(readout: StateMap, h: Tensor) -> BlindSpace:
    """chi < 1e-6 at one token: singular values below 1e-3 of their root mean square.

    Args:
        readout: (d,) to logits of any shape (..., classes), float64.
        h: (d,), float64.
    """
    found = blind_subspace(readout, h, tolerance=SINE)
    squares = (found.singular_values * found.scale).square()
    isotropic = squares.mean()
    logits = readout(h)
    spread = logits.var(-1, correction=0).mean() * logits.shape[-1] / h.square().sum()
    chi = squares / isotropic
    blind = chi[: found.dimension] < BLIND
    visible = chi[chi >= BLIND][:LEAST].tolist()
    return BlindSpace(
        state=h,
        basis=found.basis[blind],
        chi=chi[: found.dimension][blind],
        least=tuple(visible),
        saturated=bool(isotropic <= BLIND * spread) or found.scale == 0.0,
    )


def exactly_blind(space: BlindSpace) -> BlindSpace:
    """The part that is blind to rounding; an ill-conditioned readout comes near blindness, but not there."""
    exact = space.chi < EXACT
    return replace(space, basis=space.basis[exact], chi=space.chi[exact])


def unsearched(h: Tensor) -> BlindSpace:
    """A token at which nothing was found because nothing could be searched."""
    return BlindSpace(state=h, basis=h.new_zeros(0, len(h)), chi=h.new_zeros(0), least=(), saturated=False)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Blind directions that have one explanation.

    Attributes:
        vectors: (..., d) states to (dimension, ..., d) orthogonal directions; None where only `sampled` is known.
        sampled: (tokens, dimension, d) at the searched tokens, for a field without a formula.
        motions: finite motions of states (..., d) to test; None where none is known.
        tokens_with: searched tokens at which it is blind.
        span: dimension of the smallest fixed subspace that holds it.
        basis: (span, d) of that subspace where it is smaller than the state's.
    """

    name: str
    kind: Kind
    dimension: int
    vectors: StateMap | None = None
    sampled: Tensor | None = None
    motions: Callable[[Tensor], Sequence[Tensor]] | None = None
    tokens_with: int = 0
    span: int | None = None
    basis: Tensor | None = None


def contains(space: BlindSpace, vectors: Tensor) -> bool:
    """Whether all rows of (m, d) lie in the blind space, to an angle of 1e-3."""
    length = vectors.norm(dim=-1)
    return bool((_outside(vectors, space.basis).norm(dim=-1) <= SINE * length).all())


def common(spaces: Sequence[BlindSpace]) -> Tensor:
    """(m, d) orthonormal basis of the directions that are blind at every token.

    Few large subspaces meet without a reason; they are believed only if they are all one, or enough of them were
    searched for a chance meeting to be impossible.
    """
    d, smallest = spaces[0].state.numel(), min(len(space.basis) for space in spaces)
    none = spaces[0].state.new_zeros(0, d)
    if smallest == 0:
        return none
    complements = sum(d - len(space.basis) for space in spaces)
    if len(spaces) == 1 or (complements < d and rank(torch.cat([s.basis for s in spaces])) > smallest):
        return none
    mean = torch.stack([space.basis.T @ space.basis for space in spaces]).mean(0)
    values, vectors = torch.linalg.eigh(mean)
    return vectors.T[values >= 1.0 - SINE**2]


def groups_of_channels(spaces: Sequence[BlindSpace], asked: int | None) -> list[Tensor]:
    """Groups of channels whose own scales are each blind: as asked, else equal ones in a row, else any; none: [].

    If the blind space is spanned by the state's parts h_g, then its basis divided by h, channel by channel, is
    constant within a group: equal rows are a group, in whatever order the channels are.
    """
    d, most = spaces[0].state.numel(), min(len(space.basis) for space in spaces)
    counts = [g for g in range(min(most, d // 2), 1, -1) if d % g == 0] if asked is None else [asked]
    for count in counts:
        groups = list(torch.arange(d, device=spaces[0].state.device).chunk(count))
        if count <= most and all(contains(space, parts(space.state, groups)) for space in spaces):
            return groups
    if asked is None and most > 1 and not (spaces[0].state == 0).any():
        ratios = spaces[0].basis.T / spaces[0].state[:, None]
        close = torch.cdist(ratios, ratios) <= SINE * ratios.norm(dim=-1).median()
        labels = close.int().argmax(-1)
        groups = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
        if len(groups) == most and all(contains(space, parts(space.state, groups)) for space in spaces):
            return groups
    return []


def parts(h: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """(groups, ..., d): the state with all channels but one group's set to zero."""
    found = torch.zeros(len(groups), *h.shape, dtype=h.dtype, device=h.device)
    for number, group in enumerate(groups):
        found[number][..., group] = h[..., group]
    return found


def rest(space: BlindSpace, known: Tensor) -> Tensor:
    """(m, d) orthonormal basis of what the blind space holds beside the rows of `known`."""
    basis = orthonormal(known)
    _, singular, right = torch.linalg.svd(_outside(space.basis, basis), full_matrices=False)
    return right[singular > 0.5]  # of a projection of orthonormal rows: near 0 or 1 if `known` lies inside


def rank(rows: Tensor) -> int:
    return len(orthonormal(rows))


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal basis of the span of rows, which differ from dependent ones by angles above 1e-3."""
    if len(rows) == 0:
        return rows
    rows = rows / rows.norm(dim=-1, keepdim=True)
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    return right[singular > SINE * singular[0]]


def _outside(vectors: Tensor, basis: Tensor) -> Tensor:
    """What is left of rows outside the span of an orthonormal basis; projected twice, against rounding."""
    for _ in range(2):
        vectors = vectors - (vectors @ basis.T) @ basis
    return vectors
