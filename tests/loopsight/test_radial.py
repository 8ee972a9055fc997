"""The radial gradient fraction against answers known in closed form, and against broken copies of itself."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loopsight import radial_gradient_fraction

D, VOCAB = 12, 17


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rms_normalise(h: Tensor, eps: float = 0.0) -> Tensor:
    return h / (h.square().mean(-1, keepdim=True) + eps).sqrt()


def assert_fractions_of_a_linear_loss(instrument, h: Tensor) -> None:
    """L = sum_t <w_t, h_t> has gradient w_t, so r_t = |cos(w_t, h_t)|, of either sign and any scale."""
    w = torch.logspace(-2, 2, len(h), dtype=torch.float64)[:, None] * random(*h.shape)
    cosine = F.cosine_similarity(w, h, dim=-1, eps=0.0)
    assert (cosine > 0).any() and (cosine < 0).any()
    torch.testing.assert_close(instrument(lambda h: (w * h).sum(), h), cosine.abs(), rtol=1e-12, atol=0)


def gradient_of(loss, h: Tensor) -> Tensor:
    h = h.detach().requires_grad_()
    return torch.autograd.grad(loss(h), h)[0]


def norm_over_the_whole_tensor(loss, h: Tensor) -> Tensor:
    g = gradient_of(loss, h)
    return (g * h).sum(-1).abs() / (g.norm() * h.norm())


def without_the_absolute_value(loss, h: Tensor) -> Tensor:
    g = gradient_of(loss, h)
    return (g * h).sum(-1) / (g.norm(dim=-1) * h.norm(dim=-1))


def divided_by_the_squared_norm(loss, h: Tensor) -> Tensor:
    g = gradient_of(loss, h)
    return (g * h).sum(-1).abs() / (g.norm(dim=-1) * h.square().sum(-1))


def without_the_gradient_norm(loss, h: Tensor) -> Tensor:
    g = gradient_of(loss, h)
    return (g * h).sum(-1).abs() / h.norm(dim=-1)


MUTANTS = [
    norm_over_the_whole_tensor,
    without_the_absolute_value,
    divided_by_the_squared_norm,
    without_the_gradient_norm,
]


def test_a_linear_loss_has_its_cosine(h):
    assert_fractions_of_a_linear_loss(radial_gradient_fraction, h)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_broken_copies_do_not_have_the_cosine(h, mutant):
    with pytest.raises(AssertionError):
        assert_fractions_of_a_linear_loss(mutant, h)


def test_a_linear_readout_has_the_gradient_of_the_cross_entropy_in_closed_form(h):
    """g_t = W^T (softmax(W h_t) - onehot), so <g_t, h_t> = expected minus true logit."""
    head, targets = random(VOCAB, D) / 10, torch.arange(len(h))
    logits = h @ head.T
    p = logits.softmax(-1)
    gap = (p * logits).sum(-1) - logits.gather(1, targets[:, None]).squeeze(1)
    gradient = (p - F.one_hot(targets, VOCAB)) @ head
    measured = radial_gradient_fraction(lambda h: F.cross_entropy(h @ head.T, targets), h)
    torch.testing.assert_close(measured, gap.abs() / (gradient.norm(dim=-1) * h.norm(dim=-1)), rtol=1e-12, atol=0)


def test_a_loss_of_the_norm_alone_has_fraction_one(h):
    fraction = radial_gradient_fraction(lambda h: h.norm(dim=-1).log().sum(), h)
    torch.testing.assert_close(fraction, torch.ones_like(fraction), rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_normalised_readout_is_blind_and_a_raw_one_sees(h, scale):
    head, h = random(VOCAB, D), scale * h
    targets = (h @ head.T).argmin(-1)  # never fitted, so that no gradient saturates to zero

    def loss(features: Tensor) -> Tensor:
        return F.cross_entropy(features @ head.T, targets)

    assert radial_gradient_fraction(lambda h: loss(rms_normalise(h)), h).max() < 1e-14
    assert radial_gradient_fraction(loss, h).min() > 1e-4


@pytest.mark.parametrize("eps", [1e-2, 1e-6])
def test_the_epsilon_leak_is_the_predicted_one(h, eps):
    """r = rho |q_u| / sqrt(rho^2 q_u^2 + |q_t|^2), rho = eps / (mean(h^2) + eps), q the gradient after the norm."""
    head, targets = random(VOCAB, D), torch.arange(len(h))

    def loss(features: Tensor) -> Tensor:
        return F.cross_entropy(features @ head.T, targets)

    def predicted(mean_square: Tensor) -> Tensor:
        u = F.normalize(h, dim=-1)
        q = gradient_of(loss, rms_normalise(h, eps))
        q_radial = (q * u).sum(-1)
        q_tangential = (q - q_radial[:, None] * u).norm(dim=-1)
        rho = eps / (mean_square + eps)
        return (rho * q_radial).abs() / (rho.square() * q_radial.square() + q_tangential.square()).sqrt()

    measured = radial_gradient_fraction(lambda h: loss(rms_normalise(h, eps)), h)
    mean_square = h.square().mean(-1)
    torch.testing.assert_close(measured, predicted(mean_square), rtol=1e-6, atol=1e-15)
    mistaken = predicted(mean_square + eps)  # eps / (mean(h^2) + 2 eps)
    assert ((measured - mistaken).abs() / measured).max() > 10 * 1e-6


def test_a_random_direction_has_the_fraction_of_a_random_direction():
    d = 64
    g, h = random(20_000, d, seed=2), random(20_000, d, seed=3)
    mean = radial_gradient_fraction(lambda h: (g * h).sum(), h).mean().item()
    assert mean == pytest.approx(math.sqrt(2 / (math.pi * d)), rel=0.02)


@pytest.mark.parametrize(
    ("dtype", "at_least", "at_most"),
    [(torch.float64, 0.0, 1e-14), (torch.float32, 1e-11, 1e-6), (torch.bfloat16, 1e-5, 3e-2)],
)
def test_the_floor_of_a_blind_readout_is_the_precisions(dtype, at_least, at_most):
    head, h = random(VOCAB, D).to(dtype), random(100, D, seed=4).to(dtype)
    targets = torch.arange(100) % VOCAB
    fraction = radial_gradient_fraction(lambda h: F.cross_entropy(rms_normalise(h) @ head.T, targets), h)
    assert fraction.dtype == dtype
    assert at_least <= fraction.double().mean() <= at_most


def assert_tokens_are_separate(instrument, h: Tensor) -> None:
    """A readout that normalises each token; rescaling one token changes no other's fraction (nor its own)."""
    head = random(D)
    rescaled = h * torch.logspace(-2, 2, len(h), dtype=torch.float64)[:, None]

    def loss(h: Tensor) -> Tensor:
        return (F.normalize(h, dim=-1) @ head + 0.5 * h.norm(dim=-1).log()).sum()

    torch.testing.assert_close(instrument(loss, rescaled), instrument(loss, h), rtol=1e-10, atol=0)


def test_every_token_has_its_own_radius(h):
    assert_tokens_are_separate(radial_gradient_fraction, h)


def test_a_norm_over_the_whole_tensor_mixes_the_tokens(h):
    with pytest.raises(AssertionError):
        assert_tokens_are_separate(norm_over_the_whole_tensor, h)


@pytest.mark.parametrize("shape", [(D,), (4, D), (2, 3, D), (2, 1, 3, D)])
def test_every_leading_index_is_a_token(shape):
    h = random(*shape)
    fraction = radial_gradient_fraction(lambda h: h[..., 0].sum(), h)
    torch.testing.assert_close(fraction, h[..., 0].abs() / h.norm(dim=-1), rtol=1e-12, atol=0)


def test_a_token_without_gradient_has_no_fraction_and_is_not_called_blind(h):
    fraction = radial_gradient_fraction(lambda h: h[1:].square().sum(), h)
    assert fraction[0].isnan()
    torch.testing.assert_close(fraction[1:], torch.ones(len(h) - 1, dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_state_seen_through_a_no_grad_region_has_no_fraction(h):
    """Two loops of which the first is run without gradient: nothing is said, though the loss depends on h."""

    def loss(h: Tensor) -> Tensor:
        with torch.no_grad():
            middle = h.sin()
        return (middle + 0.0 * h).square().sum()

    assert radial_gradient_fraction(loss, h).isnan().all()


@pytest.mark.parametrize("magnitude", [1e-12, 1e-25, 1e-35])
def test_a_small_float32_gradient_keeps_its_direction(magnitude):
    h, w = random(5, D).float(), random(5, D, seed=2).float()
    fraction = radial_gradient_fraction(lambda h: (h * (magnitude * w)).sum(), h)
    torch.testing.assert_close(fraction, F.cosine_similarity(w, h, dim=-1).abs(), rtol=1e-2, atol=1e-5)


def test_neither_the_state_nor_the_weights_nor_the_grad_mode_are_touched(h):
    weights = random(D).requires_grad_()
    states = h.clone().requires_grad_()
    with torch.no_grad():
        fraction = radial_gradient_fraction(lambda h: (h @ weights).sum(), states)
        assert not torch.is_grad_enabled()
    assert not fraction.requires_grad
    assert states.grad is None and weights.grad is None
    assert torch.equal(states, h)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda h: h.sum(-1), r"the loss must be a scalar, got shape \(7,\)"),
        (lambda h: h.sum().view(1), r"the loss must be a scalar, got shape \(1,\)"),
        (lambda h: h.detach().sum(), "the loss does not depend on h by differentiable operations"),
        (lambda h: torch.tensor(1.0), "the loss does not depend on h by differentiable operations"),
    ],
)
def test_a_loss_that_has_no_gradient_is_refused(h, loss, message):
    with pytest.raises(ValueError, match=message):
        radial_gradient_fraction(loss, h)


def test_a_detached_state_is_refused_though_the_head_is_trainable(h):
    head = random(D).requires_grad_()
    with pytest.raises(ValueError, match="the loss does not depend on h by differentiable operations"):
        radial_gradient_fraction(lambda h: (h.detach() @ head).sum(), h)
