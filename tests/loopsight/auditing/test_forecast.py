"""Forecasts of the norm: exact where the model of a step is, silent outside its regime."""

import math

import pytest
import torch
import torch.nn.functional as F

from loopsight import asymptotic_step, regime_number, unroll
from loopsight.auditing.forecast import growth

D = 12


def observed(step, h, loops):
    states = unroll(step, h, loops)
    return {k: state.norm(dim=-1).mean().item() for k, state in enumerate(states)}, states


def grown(step, first, last, num_loops, seen):
    return growth(step, first, last, asymptotic_step(step, last), num_loops, seen)


def start(scale=10.0):
    return scale * torch.randn(5, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("gain", [1.0, 0.5, 0.0])
def test_a_constant_displacement_is_forecast_exactly(gain):
    added = torch.ones(D, dtype=torch.float64)

    def step(h):
        return gain * h + added

    seen, states = observed(step, start(), 32)
    found = grown(step, states[1], states[4], 4, seen)
    assert found.gain == pytest.approx(gain, abs=1e-9)
    for forecast in found.forecasts:
        assert forecast.predicted == pytest.approx(forecast.observed, rel=1e-6)
        assert forecast.low - 1e-6 <= forecast.observed <= forecast.high + 1e-6


def test_a_displacement_that_turns_with_the_state_stays_within_its_bounds():
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / D**0.5

    def step(h):
        u = F.normalize(h, dim=-1)
        return h + torch.tanh(3.0 * u @ mix) + 0.5 * u

    seen, states = observed(step, start(), 64)
    for forecast in grown(step, states[1], states[8], 8, seen).forecasts:
        assert forecast.low <= forecast.observed <= forecast.high
        assert forecast.predicted == pytest.approx(forecast.observed, rel=0.05)


def turning(h):
    """A gain and a displacement that depend on the direction."""
    u = F.normalize(h, dim=-1)
    return (1.0 - 0.2 * u[..., :1].square()) * h + 3.0 * u.roll(1, -1) + torch.linspace(0.0, 1.0, D, dtype=h.dtype)


def test_the_last_loop_is_forecast_from_the_first_and_further_ones_from_the_last():
    first, last = start(), start().roll(3, -1)
    forecasts = grown(turning, first, last, 2, {2: 1.0}).forecasts
    ahead = [asymptotic_step(turning, h).next_state(h).norm(dim=-1).mean().item() for h in (first, last)]
    assert ahead[0] != pytest.approx(ahead[1], rel=1e-3)
    assert (forecasts[0].loops, forecasts[0].predicted) == (2, pytest.approx(ahead[0], rel=1e-9))
    assert grown(turning, first, last, 1, {1: 1.0}).forecasts[1].predicted == pytest.approx(ahead[1], rel=1e-9)


def test_regime_gain_and_increment_are_those_of_the_last_state():
    first, last = start(), start(1.0).roll(3, -1)

    def step(h):
        return turning(h) + 0.1 / h.norm(dim=-1, keepdim=True)

    found, far = grown(step, first, last, 2, {2: 1.0}), asymptotic_step(step, last)
    assert found.gain == far.gain.median().item() != asymptotic_step(step, first).gain.median().item()
    assert found.regime_number == pytest.approx(regime_number(step, last).median().item())
    assert found.regime_number != pytest.approx(regime_number(step, first).median().item(), rel=0.1)
    assert found.radial_increment == pytest.approx(far.radial_increment(last).median().item())
    assert found.displacement == pytest.approx(far.displacement.norm(dim=-1).median().item())


@pytest.mark.parametrize("gain", [1.0, 0.9])
def test_a_forecast_s_norm_and_bounds_are_those_of_the_step_far_out(gain):
    """b is 1 far out, towards which the state turns: the least radial part is the first, and |b| never changes."""

    def step(h):
        return gain * h + 1.0 + 5.0 * F.normalize(h, dim=-1).roll(1, -1) / h.norm(dim=-1, keepdim=True)

    h, ones = start(), torch.ones(D, dtype=torch.float64)
    found = grown(step, h, h, 4, {4: 1.0}).forecasts
    s, a, size = h.norm(dim=-1), h.sum(-1) / h.norm(dim=-1), D**0.5
    slack = 2.0 * regime_number(step, h) * size
    assert slack.min() > 0.01
    clamped = 0
    for forecast, n in zip(found, (3, 4, 12, 28), strict=True):
        total = sum(gain**k for k in range(n))
        low = gain**n * s + total * (a - slack)
        clamped += int((low < 0.0).sum())
        assert forecast.predicted == pytest.approx((gain**n * h + total * ones).norm(dim=-1).mean().item(), rel=1e-5)
        assert forecast.low == pytest.approx(low.clamp(min=0.0).mean().item(), rel=1e-5)
        assert forecast.high == pytest.approx((gain**n * s + total * (size + slack)).mean().item(), rel=1e-5)
    assert clamped > 0


def low_precision(gain, size):
    first = torch.ones(2, D).double()
    found = grown(lambda h: gain * h + size, first, first, 1, {1: 1.0}).low_precision
    return {p.dtype: p for p in found}


def held_in(dtype, gain, size):
    """Where a stream y <- y + ((gain - 1) y + size), the sum rounded to the format, ends, and in how many loops."""
    loops, y, before = 0, torch.ones((), dtype=dtype), None
    while before is None or (y != before and y.isfinite()):
        loops, before = loops + 1, y
        y = (y.double() * gain + size).to(dtype)
    return y.item(), loops


@pytest.mark.parametrize("gain", [0.5, 0.949, 0.97, 0.999])
@pytest.mark.parametrize("size", [2.0, 40.0, 1500.0, 4000.0])
def test_a_damped_stream_overflows_only_if_it_settles_beyond_the_format(gain, size):
    found = low_precision(gain, size)
    end, loops = held_in(torch.float16, gain, size)
    assert math.isinf(found["float16"].loops_until_overflow) == (not math.isinf(end))
    if math.isinf(end):
        assert found["float16"].loops_until_overflow == pytest.approx(loops, rel=0.05, abs=2.0)


@pytest.mark.parametrize("gain", [0.5, 0.949, 0.97, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_damped_stream_stops_about_where_it_settles_or_it_is_not_said_when(gain, dtype):
    name = str(dtype).removeprefix("torch.")
    found, limit = low_precision(gain, 1.0)[name], 1.0 / (1.0 - gain)
    end, _ = held_in(dtype, gain, 1.0)
    if math.isinf(found.loops_until_stagnation):
        assert end == pytest.approx(limit, rel=0.12)
    else:
        assert math.isnan(found.loops_until_stagnation) and end < 0.93 * limit


def test_a_state_that_is_turned_round_is_not_forecast():
    def step(h):
        return -(h + 1.0)

    found = grown(step, start(), start(), 1, {1: 1.0})
    assert found.gain == pytest.approx(-1.0) and [forecast.predicted for forecast in found.forecasts] == [None] * 4
    assert all(math.isnan(p.loops_until_stagnation) and math.isnan(p.loops_until_overflow) for p in found.low_precision)


def test_a_factor_alone_is_forecast():
    """What the step adds far out is rounding, whose regime number means nothing."""
    seen, states = observed(lambda h: 1.5 * h, start(), 16)
    found = grown(lambda h: 1.5 * h, states[1], states[2], 2, seen)
    assert found.regime_number == 0.0
    for forecast in found.forecasts:
        assert forecast.predicted == pytest.approx(forecast.observed, rel=1e-6)


def test_a_linear_map_is_not_forecast():
    """Negative control: it grows by a factor, and its displacement depends on the scale."""
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def step(h):
        return h + h @ mix

    seen, states = observed(step, start(), 4)
    found = grown(step, states[1], states[2], 2, seen)
    assert found.regime_number > 0.5
    assert [forecast.predicted for forecast in found.forecasts] == [None] * 4


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 0.2])
@pytest.mark.parametrize("gain", [1.0, 0.9])
def test_a_decay_for_every_channel_is_not_forecast(spread, gain):
    """Negative control: calm at the states themselves and at twice them; far out its linear part is all there is."""
    decay = gain * (1.0 + spread * torch.linspace(-1.0, 1.0, D, dtype=torch.float64))

    def step(h):
        return decay * h + 5.0 * torch.tanh(F.normalize(h, dim=-1))

    seen, states = observed(step, start(), 4)
    found = grown(step, states[1], states[2], 2, seen)
    assert found.regime_number > 0.5 and math.isnan(found.radial_increment) and math.isnan(found.displacement)
    assert [forecast.predicted for forecast in found.forecasts] == [None] * 4
    assert all(math.isnan(p.loops_until_stagnation) and math.isnan(p.loops_until_overflow) for p in found.low_precision)
    uniform = grown(lambda h: step(h) - (decay - gain) * h, states[1], states[2], 2, seen)
    assert uniform.regime_number < 1e-6 and uniform.forecasts[-1].predicted is not None


SIZES = (1e-3, 0.1, 1.1)  # no powers of two, which end in ties
GROWING = [(gain, size) for gain in (1.00001, 1.0001, 1.0008, 1.0015, 1.003, 1.01) for size in SIZES]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("gain", "size"), GROWING)
def test_a_stream_that_grows_by_a_factor_stops_where_it_is_said_to(gain, size, dtype):
    found = low_precision(gain, size)[str(dtype).removeprefix("torch.")]
    end, loops = held_in(dtype, gain, size)
    if math.isinf(found.loops_until_stagnation):
        assert math.isinf(end) and found.loops_until_overflow == pytest.approx(loops, rel=0.35)
    elif not math.isnan(found.loops_until_stagnation):
        assert math.isfinite(end) and found.loops_until_stagnation == pytest.approx(loops, rel=0.2, abs=2)
        assert math.isinf(found.loops_until_overflow)


def test_most_of_these_streams_are_judged():
    judged = [low_precision(gain, size) for gain, size in GROWING]
    stagnations = [p.loops_until_stagnation for formats in judged for p in formats.values()]
    assert sum(math.isinf(n) for n in stagnations) >= 10 and sum(math.isfinite(n) for n in stagnations) >= 9


def test_a_low_precision_stream_stops_after_two_to_the_significand():
    found = grown(lambda h: h + 1.0, torch.ones(2, D).double(), torch.ones(2, D).double(), 1, {1: 1.0})
    by_name = {p.dtype: p for p in found.low_precision}
    assert 2**8 - 1 <= by_name["bfloat16"].loops_until_stagnation <= 1.5 * 2**8
    assert 2**11 - 1 <= by_name["float16"].loops_until_stagnation <= 1.5 * 2**11
    assert math.isinf(by_name["float16"].loops_until_overflow)
    fast = grown(lambda h: h + 100.0, torch.ones(2, D).double(), torch.ones(2, D).double(), 1, {1: 1.0})
    assert {p.dtype: p for p in fast.low_precision}["float16"].loops_until_overflow == pytest.approx(655, abs=1)


def test_growth_by_a_factor_overflows_by_its_logarithm():
    found = grown(lambda h: 1.3 * h, torch.ones(2, D).double(), torch.ones(2, D).double(), 1, {1: 1.0})
    by_name = {p.dtype: p for p in found.low_precision}
    assert by_name["float16"].loops_until_overflow == pytest.approx(math.log(65504) / math.log(1.3), rel=1e-3)
    assert math.isinf(by_name["bfloat16"].loops_until_stagnation)


def test_negative_coordinates_overflow_as_soon_as_positive_ones():
    h = -torch.ones(2, D).double()
    found = {p.dtype: p for p in grown(lambda h: 1.3 * h, h, h, 1, {1: 1.0}).low_precision}
    assert found["float16"].loops_until_overflow == pytest.approx(math.log(65504) / math.log(1.3), rel=1e-3)


def test_one_coordinate_beyond_the_format_has_overflowed():
    h = torch.ones(2, D).double()
    h[1, 3] = 1e5
    found = {p.dtype: p for p in grown(lambda h: h + 1.0, h, h, 1, {1: 1.0}).low_precision}
    assert (found["float16"].loops_until_stagnation, found["float16"].loops_until_overflow) == (0.0, 0.0)
    assert found["bfloat16"].loops_until_stagnation > 0.0


def test_a_step_that_is_no_number_far_out_is_not_forecast():
    """Negative control: it has no large-norm regime, however calm it is at the states themselves."""
    found = grown(lambda h: h + h.sinh(), torch.ones(2, D).double(), torch.ones(2, D).double(), 1, {1: 1.0})
    assert [forecast.predicted for forecast in found.forecasts] == [None] * 4
    assert all(math.isnan(p.loops_until_overflow) for p in found.low_precision)
