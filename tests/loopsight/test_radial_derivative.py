"""The radial derivative against closed forms, on modules that are not ours, and where differentiation hides it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.radial import radial_derivative
from models import LoopedLM, ModelConfig, ReadoutConfig

D, VOCAB = 12, 9


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rms_normalise(h: Tensor, eps: float = 0.0) -> Tensor:
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def assert_radial_derivatives(instrument, h: Tensor) -> None:
    """A linear readout gives itself, a square twice itself, a normalised one nothing, a logarithm of the norm 1."""
    head = random(VOCAB, D)
    torch.testing.assert_close(instrument(lambda h: h @ head.T, h), h @ head.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(instrument(lambda h: h.square(), h), 2 * h.square(), rtol=1e-12, atol=1e-12)
    assert instrument(lambda h: rms_normalise(h) @ head.T, h).abs().max() < 1e-13
    ones = torch.ones(len(h), dtype=torch.float64)
    torch.testing.assert_close(instrument(lambda h: h.norm(dim=-1).log(), h), ones, rtol=1e-12, atol=0)


def along_the_direction(f, h: Tensor) -> Tensor:
    return torch.func.jvp(f, (h,), (h / h.norm(dim=-1, keepdim=True),))[1]


def along_ones(f, h: Tensor) -> Tensor:
    return torch.func.jvp(f, (h,), (torch.ones_like(h),))[1]


def difference_quotient(f, h: Tensor) -> Tensor:
    return f(1.1 * h) - f(h)


def test_closed_forms(h):
    assert_radial_derivatives(radial_derivative, h)


@pytest.mark.parametrize("mutant", [along_the_direction, along_ones, difference_quotient])
def test_broken_copies_are_detected(h, mutant):
    with pytest.raises(AssertionError):
        assert_radial_derivatives(mutant, h)


def test_a_loss_gives_the_sum_of_its_tokens_logit_gaps(h):
    head, targets = random(VOCAB, D) / 10, torch.arange(len(h))
    z = h @ head.T
    gap = (z.softmax(-1) * z).sum(-1) - z.gather(1, targets[:, None]).squeeze(1)
    measured = radial_derivative(lambda h: F.cross_entropy(h @ head.T, targets, reduction="sum"), h)
    torch.testing.assert_close(measured, gap.sum(), rtol=1e-12, atol=0)


def test_a_loop_run_without_gradient_is_seen(h):
    """Reverse mode returns 0 here; the scale matters all the same."""

    def loss(h: Tensor) -> Tensor:
        with torch.no_grad():
            middle = h.sin()
        return middle.sum()

    torch.testing.assert_close(radial_derivative(loss, h), (h.cos() * h).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda h: h.detach().square().sum(),
        lambda h: (h / h.norm(dim=-1, keepdim=True).detach()).square().sum(),
        lambda h: (h * torch.rand_like(h)).sum(),
    ],
    ids=["detached", "half detached", "random"],
)
def test_a_derivative_that_the_values_contradict_is_refused(h, loss):
    with pytest.raises(ValueError, match="disagrees with its finite differences"):
        radial_derivative(loss, h)


def reverse(loss, h: Tensor) -> Tensor:
    h = h.detach().requires_grad_()
    return (torch.autograd.grad(loss(h), h)[0] * h).sum().detach()


def foreign_steps() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    options = dict(dim_feedforward=24, dropout=0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    cell = nn.GRUCell(D, D, dtype=torch.float64)

    class Gru(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return cell(h.flatten(0, 1), h.flatten(0, 1)).view_as(h)

    return {
        "encoder layer": nn.TransformerEncoderLayer(D, 2, **options).eval(),
        "gru": Gru(),
        "linear": nn.Linear(D, D, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", ["encoder layer", "gru", "linear"])
def test_through_three_loops_of_modules_that_are_not_ours(name):
    step, head = foreign_steps()[name], random(VOCAB, D)
    h, targets = 3 * random(2, 5, D, seed=2), torch.arange(10) % VOCAB

    def loss(h: Tensor) -> Tensor:
        for _ in range(3):
            h = step(h)
        return F.cross_entropy((rms_normalise(h) @ head.T).flatten(0, 1), targets)

    torch.testing.assert_close(radial_derivative(loss, h), reverse(loss, h), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["raw", "rmsnorm"])
def test_through_our_own_model(kind):
    torch.manual_seed(0)
    readout = ReadoutConfig(kind=kind, gain=kind != "raw", tied=False)
    sizes = dict(d_model=12, num_layers=1, num_heads=2, vocab_size=9, context=5)
    model = LoopedLM(ModelConfig(**sizes, readout=readout, norm_eps=0.0)).double().eval()
    h = model(torch.arange(10).view(2, 5) % 9)[2].detach()
    seen = radial_derivative(lambda h: model.readout(h), h).abs().max()
    assert seen < 1e-13 if kind == "rmsnorm" else seen > 1e-2
    # Later loops see it through either: scale is invisible now, not for ever.
    assert radial_derivative(lambda h: model.readout(model.step(h)), h).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("f", "states", "message"),
    [
        (lambda h: h, torch.ones(3), "h must be float64"),
        (lambda h: h, torch.tensor([float("nan"), 1.0], dtype=torch.float64), "NaN"),
        (lambda h: h, torch.zeros(3, dtype=torch.float64), "zero state"),
        (lambda h: h.float(), torch.ones(3, dtype=torch.float64), "must return a float64 tensor"),
    ],
)
def test_bad_input_is_refused(f, states, message):
    with pytest.raises(ValueError, match=message):
        radial_derivative(f, states)
