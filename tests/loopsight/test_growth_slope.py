"""The asymptotic slope: known answers, the recurrences that have none, and broken copies."""

import math
from dataclasses import replace
from inspect import unwrap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.growth import asymptotic_slope, asymptotic_step
from loopsight.protocol import unroll
from models.config import ModelConfig
from models.looped_lm import LoopedLM

D = 6
AXES = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))[0]
SLOPE, SECOND = 2.0, 1.0


def with_spectrum(*eigenvalues: float):
    """h + A h / |h|, A symmetric: the slope is the largest eigenvalue, approached as k^(second / largest - 1)."""
    matrix = AXES * torch.tensor([*eigenvalues, *[0.0] * (D - len(eigenvalues))]).double() @ AXES.T
    return lambda h: h + F.normalize(h, dim=-1) @ matrix


def rotating(h: Tensor) -> Tensor:
    """z + (1 + 2i) z / |z| in each of three complex coordinates' common norm: |z_k| / k -> 1, the angle never rests."""
    z = torch.view_as_complex(h.unflatten(-1, (-1, 2)).contiguous())
    moved = z + (1 + 2j) * z / h.norm(dim=-1, keepdim=True)
    return torch.view_as_real(moved).flatten(-2)


@pytest.fixture(scope="module")
def start() -> Tensor:
    return torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def assert_slope_is_known(measure, start: Tensor) -> None:
    for gain in (1.0, 0.6):
        step = with_spectrum(SLOPE, SECOND)
        result = measure(lambda h, gain=gain, step=step: step(h) + (gain - 1.0) * h, start)
        assert result.converged.all()
        torch.testing.assert_close(result.slope, torch.full((4,), SLOPE).double(), rtol=1e-6, atol=0)
        torch.testing.assert_close((result.direction @ AXES[:, 0]).abs(), torch.ones(4).double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(result.exponent, torch.full((4,), SECOND / SLOPE - 1).double(), rtol=1e-2, atol=0)


def test_the_slope_of_a_known_spectrum(start):
    assert_slope_is_known(asymptotic_slope, start)


def after_one_iteration(step, h):
    return asymptotic_slope(step, h, max_iterations=1)


def at_the_first_direction(step, h):
    slope = asymptotic_step(step, h).radial_increment(h)
    return replace(asymptotic_slope(step, h), slope=slope)


def with_the_length_of_b_as_exponent(step, h):
    result = asymptotic_slope(step, h)
    return replace(result, exponent=result.exponent / 3.0)


@pytest.mark.parametrize("mutant", [after_one_iteration, at_the_first_direction, with_the_length_of_b_as_exponent])
def test_broken_copies_do_not_find_it(start, mutant):
    with pytest.raises(AssertionError):
        assert_slope_is_known(mutant, start)


def test_the_recurrence_approaches_slope_and_direction_as_predicted(start):
    """|u_k - u*| falls by the predicted power between loops 500 and 2000, from a start where the second axis leads."""
    step = with_spectrum(SLOPE, SECOND)
    start = AXES[:, 0] + 0.3 * AXES[:, 1] + 1e-3 * start
    result = asymptotic_slope(step, start)
    states = unroll(step, start, 2000)
    gained = states[-1].norm(dim=-1) - states[-2].norm(dim=-1)
    torch.testing.assert_close(gained, result.slope, rtol=1e-2, atol=0)
    early, late = ((F.normalize(states[k], dim=-1) - result.direction).norm(dim=-1) for k in (500, 2000))
    measured = (late / early).log() / torch.tensor(4.0).log()
    torch.testing.assert_close(measured, result.exponent, rtol=3e-2, atol=0)


def test_a_token_that_converges_before_the_others_keeps_its_exponent(start):
    start = torch.cat([(AXES[:, 0] + 1e-4 * AXES[:, 1])[None], start])
    result = asymptotic_slope(with_spectrum(SLOPE, SECOND), start)
    torch.testing.assert_close(result.exponent, torch.full((5,), SECOND / SLOPE - 1).double(), rtol=1e-2, atol=0)


def test_a_rotating_displacement_has_a_slope_but_no_direction_and_says_so(start):
    result = asymptotic_slope(rotating, start, max_iterations=300)
    assert result.iterations == 300 and not result.converged.any() and result.exponent.isnan().all()
    torch.testing.assert_close(result.misalignment, torch.full((4,), 2 / 5**0.5).double())
    torch.testing.assert_close(result.slope, torch.ones(4).double())
    states = unroll(rotating, start, 3000)
    assert (states[-1].norm(dim=-1) / 3000).sub(1.0).abs().max() < 1e-2
    turned = (F.normalize(states[-1], dim=-1) * F.normalize(states[1000], dim=-1)).sum(-1)
    assert (turned - math.cos(2 * math.log(3.0))).abs().max() < 2e-2  # arg = 2 log k


def test_plain_power_iteration_seeks_the_largest_slope_of_either_sign_and_the_recurrence_does_not(start):
    step = with_spectrum(1.0, -2.0)
    plain = asymptotic_slope(step, start, inertia=0.0)
    torch.testing.assert_close(plain.slope, torch.full((4,), -2.0).double(), rtol=1e-6, atol=0)
    assert plain.converged.all() and plain.exponent.isnan().all()  # nothing is approached where the norm shrinks
    result = asymptotic_slope(step, start)
    assert result.converged.all()
    torch.testing.assert_close(result.slope, torch.ones(4).double(), rtol=1e-6, atol=0)
    gained = unroll(step, start, 401)
    torch.testing.assert_close(gained[-1].norm(dim=-1) - gained[-2].norm(dim=-1), result.slope, rtol=1e-2, atol=0)


def test_a_displacement_against_every_state_has_a_negative_slope(start):
    result = asymptotic_slope(lambda h: h - 3.0 * F.normalize(h, dim=-1), start)
    assert result.converged.all() and result.iterations == 0 and result.exponent.isnan().all()
    torch.testing.assert_close(result.slope, torch.full((4,), -3.0).double(), rtol=1e-9, atol=0)


def test_a_constant_displacement_is_approached_like_one_over_k(start):
    result = asymptotic_slope(lambda h: h + AXES[0], start)
    torch.testing.assert_close(result.exponent, torch.full((4,), -1.0).double(), rtol=1e-3, atol=0)


def test_a_step_that_adds_nothing_has_no_direction_to_converge_to(start):
    result = asymptotic_slope(lambda h: h, start, max_iterations=3)
    assert not result.converged.any() and result.slope.abs().max() < 1e-9


def test_a_linear_recurrence_shows_no_slope_worth_the_name(start):
    """Its displacement is proportional to the state: there is a kept direction, but what is called slope is nothing."""
    matrix = AXES * torch.tensor([1.0, *[0.5] * (D - 1)]).double() @ AXES.T
    result = asymptotic_slope(lambda h: h + h @ matrix, start)
    assert not (result.converged & (result.slope.abs() > 1e-3)).any()


def encoder(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    options = dict(dim_feedforward=16, dropout=0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    return nn.TransformerEncoderLayer(8, 2, **options).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def sequence() -> Tensor:
    return torch.randn(1, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_torchs_prenorm_layer_and_the_packages_own_model_keep_the_direction_that_was_found(sequence):
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, num_layers=1, num_heads=2, vocab_size=5, context=3)
    own = LoopedLM(config).double().eval().requires_grad_(False)
    for step in (encoder(3), own.step):
        result = asymptotic_slope(step, sequence)
        assert result.converged.all() and (result.slope > 0).all()
        late = 1e5 * result.direction
        torch.testing.assert_close(step(late).norm(dim=-1) - 1e5, result.slope, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(F.normalize(step(late), dim=-1), result.direction, rtol=0, atol=1e-9)


def test_a_layer_whose_direction_goes_round_for_ever_is_reported_as_such(sequence):
    layer = encoder(1)
    result = asymptotic_slope(layer, sequence, max_iterations=200)
    assert not result.converged.any() and result.misalignment.min() > 0.1
    directions = [F.normalize(states, dim=-1) for states in unroll(layer, sequence, 1000)[100::300]]
    still = [(a * b).sum(-1).min().item() for a, b in zip(directions[:-1], directions[1:], strict=True)]
    assert min(still) < 0.9  # the recurrence itself does not settle either


@pytest.mark.parametrize("options", [dict(inertia=-1.0), dict(tolerance=0.0), dict(max_iterations=0)])
def test_impossible_options_are_refused(start, options):
    with pytest.raises(ValueError, match="expected inertia >= 0, tolerance > 0 and max_iterations >= 1"):
        asymptotic_slope(rotating, start, **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda h: h.float(), "h must be float64"),
        (lambda h: h.long(), "h must be a floating-point tensor"),
        (lambda h: 0 * h, "h holds a zero state"),
        (lambda h: h / 0, "NaN or infinite"),
    ],
)
def test_bad_states_are_refused(start, bad, message):
    with pytest.raises(ValueError, match=message):
        unwrap(asymptotic_slope)(rotating, bad(start))
