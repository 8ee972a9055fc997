"""Blind spaces of readouts whose spaces are known, and the families they are explained by."""

import pytest
import torch
import torch.nn.functional as F

from loopsight.auditing.blindspots import BlindSpace, blind_space, common, exactly_blind
from loopsight.auditing.families import families

D = 6


def space(basis, state=None, chi=0.0):
    """One token's blind space; the state is at right angles to nothing in particular."""
    state = torch.arange(1.0, basis.shape[1] + 1, dtype=torch.float64) if state is None else state
    return BlindSpace(state=state, basis=basis, chi=basis.new_full((len(basis),), chi), least=(1.0,), saturated=False)


def kernels(count, dimension, d=D):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(d, dimension, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [space(torch.linalg.qr(rows)[0].T) for rows in drawn]


def diagonal(*entries):
    """A readout of so many channels whose singular values behind the mean over classes are the entries."""
    weight = torch.diag(torch.tensor(entries, dtype=torch.float64))
    return lambda h: torch.cat([h @ weight, -(h @ weight)], dim=-1) / 2**0.5


def test_the_least_visible_are_squares_over_their_mean_in_ascending_order():
    found = blind_space(diagonal(1.0, 1.0, 1.0, 1e-2), torch.ones(4, dtype=torch.float64))
    mean = (3 + 1e-4) / 4
    assert found.least == pytest.approx((1e-4 / mean, 1 / mean, 1 / mean))
    assert len(found.basis) == 0 and not found.saturated


def test_a_blind_channel_is_found_and_is_not_among_the_least_visible():
    found = blind_space(diagonal(1.0, 2.0, 3.0, 0.0), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found.basis.abs(), torch.eye(4, dtype=torch.float64)[3:])
    assert found.chi.max() < 1e-20 and found.least == pytest.approx([4 * s**2 / 14 for s in (1, 2, 3)])


def test_logits_that_nothing_moves_are_saturated():
    constant = torch.arange(5.0, dtype=torch.float64)
    h = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert blind_space(lambda h: constant + 1e-9 * (h @ weight), h).saturated
    assert not blind_space(lambda h: constant + h @ weight, h).saturated


def test_a_singular_value_near_rounding_s_tolerance_is_blind_and_no_fixed_direction():
    """Of 1e-4 of the others' root mean square: below what is called blind, far above what is exactly so."""
    at = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = [blind_space(diagonal(1.0, 1.0, 1.0, 1e-4), h) for h in at]
    assert [len(found.basis) for found in near] == [1, 1, 1]
    assert [len(exactly_blind(found).basis) for found in near] == [0, 0, 0]
    assert [family.kind for family in families(near, None)] == ["scale", "mean"]
    exact = [blind_space(diagonal(1.0, 1.0, 1.0, 0.0), h) for h in at]
    assert [family.kind for family in families(exact, None)] == ["scale", "mean", "fixed"]


def test_few_large_kernels_have_nothing_in_common():
    """Three of five dimensions in six meet in three, for no reason."""
    assert common(kernels(3, 5)).shape == (0, D)


def test_what_every_one_of_enough_kernels_holds_is_common():
    first = torch.eye(D, dtype=torch.float64)[:1]
    held = []
    for found in kernels(D, 1):
        held.append(space(torch.linalg.qr(torch.cat([first, found.basis]).T)[0].T))
    torch.testing.assert_close(common(held).abs(), first)
    one = kernels(1, 5) * 3
    assert len(common(one)) == 5


@pytest.fixture
def rotation():
    """The family of a direction that turns within a plane with the state, and the plane."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(D, 2, generator=generator, dtype=torch.float64))[0].T
    spaces = []
    for h in torch.randn(5, D, generator=generator, dtype=torch.float64):
        inside = h @ plane.T
        spaces.append(space(F.normalize(torch.stack([-inside[1], inside[0]]) @ plane, dim=0)[None], state=h))
    (found,) = (family for family in families(spaces, None) if family.kind == "rotation")
    return found, plane


def test_a_rotation_turns_the_state_at_right_angles_within_its_plane(rotation):
    found, plane = rotation
    h = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (turned,) = found.vectors(h)
    assert (turned * h).sum(-1).abs().max() < 1e-12
    torch.testing.assert_close(turned @ plane.T @ plane, turned)
    torch.testing.assert_close(turned.norm(dim=-1), (h @ plane.T).norm(dim=-1))
    assert found.span == 2 and found.tokens_with == 5


@pytest.mark.parametrize("channels", [D, D - 1])
def test_a_field_that_fills_the_state_s_space_has_no_subspace_of_its_own(channels):
    generator = torch.Generator().manual_seed(0)
    spaces = []
    for _ in range(D + 2):
        vector = F.pad(torch.randn(channels, generator=generator, dtype=torch.float64), (0, D - channels))
        spaces.append(space(F.normalize(vector, dim=0)[None], torch.randn(D, generator=generator, dtype=torch.float64)))
    (field,) = (family for family in families(spaces, None) if family.kind == "field")
    assert field.span == channels and field.tokens_with == D + 2
    assert (field.basis is None) == (channels == D)
