"""What the operation between loops does to the state's scale: carried, removed or damped."""

import pytest
import torch
import torch.nn.functional as F

from loopsight import asymptotic_step, regime_number
from models import BetweenConfig


@pytest.mark.parametrize("c", [1e-3, 0.5, 1e3])
@pytest.mark.parametrize("between", ["rmsnorm", "none"])
def test_only_rmsnorm_makes_the_step_forget_the_scale(build, states, between, c):
    model = build(between=BetweenConfig(kind=between), norm_eps=0.0).requires_grad_(False)
    change = (model.step(c * states) - model.step(states)).abs().max()
    assert change < 1e-12 if between == "rmsnorm" else change > 1e-2


@pytest.mark.parametrize(
    ("between", "gain"),
    [
        (BetweenConfig(), 1.0),
        (BetweenConfig(kind="rmsnorm"), 0.0),
        (BetweenConfig(kind="damping", factor=0.88), 0.88),
        (BetweenConfig(kind="damping", factor=0.3), 0.3),
    ],
    ids=lambda value: str(getattr(value, "kind", value)),
)
@pytest.mark.parametrize("changes", [{}, dict(block_norm="layernorm"), dict(qk_norm=True, position="rotary")])
def test_the_asymptotic_gain_is_the_declared_one(build, states, between, gain, changes):
    model = build(between=between, **changes).requires_grad_(False)
    measured = asymptotic_step(model.step, states).gain
    torch.testing.assert_close(measured, torch.full_like(measured, gain), rtol=0, atol=1e-9)


def test_between_loops_stands_an_rmsnorm_with_a_gain(build, states):
    between = build(between=BetweenConfig(kind="rmsnorm"), norm_eps=0.1).between
    assert between.gain.shape == (states.shape[-1],) and [name for name, _ in between.named_parameters()] == ["gain"]
    expected = F.rms_norm(states + 1.0, states.shape[-1:], between.gain, eps=0.1)
    torch.testing.assert_close(between(states + 1.0), expected)


def test_damping_multiplies_the_state_before_the_stack(build, states):
    damped, undamped = build(between=BetweenConfig(kind="damping", factor=0.3)), build()
    assert torch.equal(damped.step(states), undamped.step(0.3 * states))


def test_rmsnorm_between_loops_bounds_the_state_over_further_loops_and_none_does_not(build, tokens):
    bounded = build(between=BetweenConfig(kind="rmsnorm")).requires_grad_(False)
    growing = build().requires_grad_(False)
    ratios = [model(tokens, 40)[-1].norm() / model(tokens, 4)[-1].norm() for model in (bounded, growing)]
    assert ratios[0] < 1.5
    assert ratios[1] > 3.0


@pytest.mark.parametrize("between", ["none", "damping"])
def test_the_regime_number_is_small_for_large_states_only(build, states, between):
    factor = 0.88 if between == "damping" else None
    model = build(between=BetweenConfig(kind=between, factor=factor)).requires_grad_(False)
    assert regime_number(model.step, 1e5 * states).max() < 1e-3
    assert regime_number(model.step, states).max() > 0.1
