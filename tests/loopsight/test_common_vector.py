"""The vector common to all tokens: known fractions, and what a blind readout cannot tell from it."""

import pytest
import torch
import torch.nn.functional as F

from loopsight.common_vector import common_derivative, common_fraction, common_vector

D, TOKENS = 16, 4096


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


HEAD, TARGETS = random(11, D, seed=1), torch.arange(TOKENS) % 11


def blind_loss(h):
    return F.cross_entropy(F.rms_norm(h, (D,), eps=0.0) @ HEAD.T, TARGETS)


def raw_loss(h):
    return F.cross_entropy(h @ HEAD.T, TARGETS)


def gradient(loss, h):
    leaf = h.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


@pytest.mark.parametrize("common", [0.0, 0.5, 2.0, 10.0])
def test_the_fraction_of_a_planted_vector(common):
    planted = common * F.normalize(random(D, seed=2), dim=0)
    noise = random(TOKENS, D)
    noise -= noise.mean(0)
    h = (planted + noise).view(8, -1, D)
    torch.testing.assert_close(common_vector(h), planted)
    expected = common**2 / (common**2 + noise.square().sum(-1).mean())
    torch.testing.assert_close(common_fraction(h), expected)
    torch.testing.assert_close(common_fraction(1e3 * h), expected)


def test_independent_states_have_next_to_nothing_in_common_and_equal_ones_everything():
    assert 0.2 / TOKENS < common_fraction(random(TOKENS, D)) < 2.0 / TOKENS
    assert common_fraction(random(1, D).expand(5, D)) == pytest.approx(1.0, abs=1e-15)


def test_a_state_in_half_precision_does_not_overflow():
    h = torch.full((6, D), 6e4, dtype=torch.float16)
    assert common_fraction(h) == 1.0


@pytest.mark.parametrize("loss", [blind_loss, raw_loss])
def test_the_derivative_is_that_of_a_larger_common_vector(loss):
    h, step = random(TOKENS, D) + random(D, seed=3), 1e-5
    mean = h.mean(0)
    slope = (loss(h + step * mean) - loss(h - step * mean)) / (2 * step)
    torch.testing.assert_close(common_derivative(gradient(loss, h), h), slope, rtol=1e-6, atol=0.0)


def test_to_a_blind_readout_a_larger_common_vector_is_smaller_differences():
    h = random(TOKENS, D) + random(D, seed=3)
    differences = h - h.mean(0)

    def both(loss):
        g = gradient(loss, h)
        return common_derivative(g, h).item(), (g * differences).sum().item()

    common, own = both(blind_loss)
    assert common == pytest.approx(-own, rel=1e-12)
    common, own = both(raw_loss)  # control: a readout that sees the scale
    assert abs(common + own) > 0.1 * abs(common)
