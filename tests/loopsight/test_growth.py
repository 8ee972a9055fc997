"""Asymptotic step and regime number against recurrences whose answers are known, and against broken copies."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loopsight import AsymptoticStep, asymptotic_step, regime_number

D = 12
MATRIX = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) / D**0.5


def branch(h: Tensor) -> Tensor:
    """A residual branch that normalises its input, so that it sees only the direction."""
    return torch.tanh(3 * F.normalize(h, dim=-1) @ MATRIX.T)


def prenorm(h: Tensor) -> Tensor:
    return h + branch(h)


def two_sublayers(h: Tensor) -> Tensor:
    return prenorm(prenorm(h))


def normed_between(h: Tensor) -> Tensor:
    return two_sublayers(F.normalize(h, dim=-1))


def damped(h: Tensor) -> Tensor:
    return prenorm(0.7 * h)


def linear(h: Tensor) -> Tensor:
    return h + h @ MATRIX.T


def rayleigh_quotient(h: Tensor) -> Tensor:
    return (h * (h @ MATRIX.T)).sum(-1) / h.square().sum(-1)


def assert_single_sublayers_are_measured_exactly(instrument, h: Tensor) -> None:
    for step, gain in ((prenorm, 1.0), (damped, 0.7), (lambda h: 0 * h + branch(h), 0.0)):
        measured = instrument(step, h)
        torch.testing.assert_close(measured.gain, h.new_full((len(h),), gain), rtol=0, atol=1e-9)
        torch.testing.assert_close(measured.displacement, branch(h), rtol=0, atol=1e-7)


def as_measured(gain: Tensor, displacement: Tensor) -> AsymptoticStep:
    return AsymptoticStep(gain=gain, displacement=displacement, drift=torch.zeros_like(gain))


def with_gain_over_the_whole_tensor(step, h: Tensor) -> AsymptoticStep:
    near, far = step(1e6 * h), step(2e6 * h)
    gain = (((far - near) * h).sum() / (1e6 * h.square().sum())).expand(len(h))
    return as_measured(gain, near - gain[..., None] * 1e6 * h)


def divided_by_the_norm_not_its_square(step, h: Tensor) -> AsymptoticStep:
    near, far = step(1e6 * h), step(2e6 * h)
    gain = ((far - near) * h).sum(-1) / (1e6 * h.norm(dim=-1))
    return as_measured(gain, near - gain[..., None] * 1e6 * h)


def with_gain_one_assumed(step, h: Tensor) -> AsymptoticStep:
    return as_measured(h.new_ones(len(h)), step(1e6 * h) - 1e6 * h)


def measured_at_the_state_itself(step, h: Tensor) -> AsymptoticStep:
    near, far = step(h), step(2 * h)
    gain = ((far - near) * h).sum(-1) / h.square().sum(-1)
    return as_measured(gain, near - gain[..., None] * h)


def test_single_sublayers_are_measured_exactly(h):
    assert_single_sublayers_are_measured_exactly(asymptotic_step, h)


@pytest.mark.parametrize("mutant", [divided_by_the_norm_not_its_square, with_gain_one_assumed])
def test_broken_copies_do_not_measure_single_sublayers(h, mutant):
    with pytest.raises(AssertionError):
        assert_single_sublayers_are_measured_exactly(mutant, h)


def assert_every_token_has_its_own_gain(instrument, h: Tensor) -> None:
    factors = torch.linspace(0.0, 1.0, len(h), dtype=torch.float64)
    gain = instrument(lambda h: factors[:, None] * h + branch(h), h).gain
    torch.testing.assert_close(gain, factors, rtol=0, atol=1e-9)


def test_every_token_has_its_own_gain(h):
    assert_every_token_has_its_own_gain(asymptotic_step, h)


def test_a_gain_over_the_whole_tensor_is_not_every_tokens_own(h):
    with pytest.raises(AssertionError):
        assert_every_token_has_its_own_gain(with_gain_over_the_whole_tensor, h)


def assert_the_answer_depends_on_the_direction_only(instrument, h: Tensor) -> None:
    """Several sublayers, at a state that is small beside what they add: only far out is the answer constant."""
    here, scaled = instrument(two_sublayers, 0.1 * h), instrument(two_sublayers, 30.0 * h)
    torch.testing.assert_close(here.gain, scaled.gain, rtol=0, atol=1e-5)
    torch.testing.assert_close(here.displacement, scaled.displacement, rtol=0, atol=1e-3)


def test_the_answer_depends_on_the_direction_only(h):
    assert_the_answer_depends_on_the_direction_only(asymptotic_step, h)


def test_measuring_at_the_state_itself_does_not_give_the_asymptotic_answer(h):
    with pytest.raises(AssertionError):
        assert_the_answer_depends_on_the_direction_only(measured_at_the_state_itself, h)


def test_several_sublayers_add_their_branches_at_the_direction(h):
    measured = asymptotic_step(two_sublayers, h)
    torch.testing.assert_close(measured.gain, torch.ones(len(h), dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(measured.displacement, 2 * branch(h), rtol=0, atol=1e-3)


def test_a_norm_between_loops_removes_the_scale(h):
    measured = asymptotic_step(normed_between, h)
    assert measured.gain.abs().max() < 1e-9
    torch.testing.assert_close(measured.displacement, normed_between(h), rtol=0, atol=1e-9)


@pytest.mark.parametrize("step", [prenorm, damped, normed_between, two_sublayers])
def test_a_displacement_with_a_limit_does_not_drift(step, h):
    assert asymptotic_step(step, h).drift.max() < 1e-4


def test_a_linear_part_that_is_no_multiple_of_the_identity_drifts(h):
    """Negative control, calm at the state's own scale: there the linear part is small beside the branch."""
    decay = 0.9 + 1e-4 * torch.linspace(-1.0, 1.0, h.shape[-1], dtype=torch.float64)

    def step(h):
        return decay * h + branch(h)

    far = asymptotic_step(step, h)
    assert far.drift.min() > 0.8
    calm = (step(2 * h) - step(h) - far.gain[..., None] * h).norm(dim=-1) / branch(h).norm(dim=-1)
    assert calm.max() < 0.1
    assert torch.equal(regime_number(step, h, far=far), far.drift)


def test_increment_and_next_state_are_read_off_gain_and_displacement():
    u = torch.tensor([[3.0, 4.0]])
    step = as_measured(torch.tensor([0.5]), torch.tensor([[1.0, 2.0]]))
    assert step.radial_increment(u).item() == pytest.approx((3 + 8) / 5)
    assert step.next_state(u).tolist() == [[2.5, 4.0]]


def test_the_next_state_of_a_large_one_is_predicted_and_the_error_falls_with_its_scale(h):
    u = F.normalize(h, dim=-1)
    errors, increments = [], []
    for scale in (1e2, 1e4):
        state = scale * u
        predicted = asymptotic_step(two_sublayers, state)
        errors.append((predicted.next_state(state) - two_sublayers(state)).norm(dim=-1).max().item())
        grown = two_sublayers(state).norm(dim=-1) - state.norm(dim=-1)
        increments.append((predicted.radial_increment(state) - grown).abs().max().item())
    for at_100, at_10_000 in (errors, increments):
        assert at_100 < 0.5
        assert at_10_000 == pytest.approx(at_100 / 100, rel=0.1)


def test_a_linear_map_is_not_predicted_although_its_norm_increment_is_a_projection(h):
    """|step(h)|^2 = (s + a)^2 + beta^2 holds for linear maps too: the tautology these instruments avoid."""
    measured = asymptotic_step(linear, h)
    torch.testing.assert_close(measured.gain, 1 + rayleigh_quotient(h), rtol=1e-9, atol=0)
    error = (measured.next_state(h) - linear(h)).norm(dim=-1) / linear(h).norm(dim=-1)
    assert error.min() > 1e3


def assert_regime(number, h: Tensor) -> None:
    u = F.normalize(h, dim=-1)
    assert number(prenorm, 1e-2 * u).max() < 1e-6  # one sublayer: exact at any scale
    assert number(damped, 1e-2 * u).max() < 1e-6
    assert number(normed_between, 1e-2 * u).max() < 1e-6
    assert number(two_sublayers, 1e3 * u).max() < 1e-2
    assert number(two_sublayers, u).max() > 0.5
    torch.testing.assert_close(number(linear, h), h.new_ones(len(h)), rtol=1e-6, atol=0)


def test_the_regime_number_tells_large_norms_from_small_ones_and_from_linear_maps(h):
    assert_regime(regime_number, h)


def with_b_left_as_the_increment(step, h: Tensor) -> Tensor:
    """b = step(h) - h whatever the gain: damping and removal look like failures of the regime."""
    here, there = step(h) - h, step(2 * h) - 2 * h
    return (there - here).norm(dim=-1) / here.norm(dim=-1)


def relative_to_the_state(step, h: Tensor) -> Tensor:
    """|b(2h) - b(h)| / |h| is small for any large state and says nothing about b."""
    here, there = step(h) - h, step(2 * h) - 2 * h
    return (there - here).norm(dim=-1) / h.norm(dim=-1)


def with_norms_over_the_whole_tensor(step, h: Tensor) -> Tensor:
    gain = asymptotic_step(step, h).gain[..., None]
    here, there = step(h) - gain * h, step(2 * h) - gain * 2 * h
    return ((there - here).norm() / here.norm()).expand(len(h))


@pytest.mark.parametrize("mutant", [with_b_left_as_the_increment, relative_to_the_state])
def test_broken_copies_do_not_tell_the_regime(h, mutant):
    with pytest.raises(AssertionError):
        assert_regime(mutant, h)


def assert_regime_per_token(number, h: Tensor) -> None:
    scales = h.new_tensor([1.0, 1e4, 1.0, 1e4, 1.0, 1e4, 1.0])
    values = number(two_sublayers, scales[:, None] * F.normalize(h, dim=-1))
    assert values[scales == 1].min() > 5e-2
    assert values[scales > 1].max() < 1e-3


def test_every_token_has_its_own_regime_number(h):
    assert_regime_per_token(regime_number, h)


def test_one_regime_number_for_all_tokens_hides_the_large_ones(h):
    with pytest.raises(AssertionError):
        assert_regime_per_token(with_norms_over_the_whole_tensor, h)


@pytest.mark.parametrize("factor", [1.5, 2.0, 10.0])
def test_a_linear_map_has_regime_number_factor_minus_one_or_one(h, factor):
    number = regime_number(linear, h, factor)
    torch.testing.assert_close(number, torch.full_like(number, max(factor - 1, 1.0)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("instrument", [asymptotic_step, regime_number])
def test_a_step_that_changes_the_shape_is_refused(h, instrument):
    with pytest.raises(ValueError, match=r"step must keep the shape of the state, \(7, 12\), got \(7, 11\)"):
        instrument(lambda h: h[:, 1:], h)


def test_states_of_any_rank(h):
    batched = h[:6].view(2, 3, D)
    assert asymptotic_step(prenorm, batched).gain.shape == (2, 3)
    torch.testing.assert_close(regime_number(two_sublayers, batched).view(6), regime_number(two_sublayers, h[:6]))
    assert regime_number(two_sublayers, h[0]).shape == ()
