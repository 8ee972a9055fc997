"""The epsilon leak: predicted for the three places where an epsilon can stand, measured on torch's own functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.radial import degree, epsilon_leak, in_float64, radial_gradient_fraction

D, VOCAB = 12, 17


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rms(h: Tensor) -> Tensor:
    return h.square().mean(-1, keepdim=True).sqrt()


EPS = 0.3
NORMALISATIONS = {
    "torch rms_norm": (lambda h: F.rms_norm(h, (D,), eps=EPS), EPS, "inside_root", False),
    "torch layer_norm": (lambda h: F.layer_norm(h, (D,), eps=EPS), EPS, "inside_root", True),
    "outside the root": (lambda h: h / (rms(h) + EPS), EPS, "added_to_rms", False),
    "torch normalize": (lambda h: F.normalize(h, dim=-1, eps=EPS), EPS / D**0.5, "clamp", False),
}


def assert_leaks(instrument, h: Tensor) -> None:
    for scale in (1e-3, 1.0, 30.0):
        for normalise, eps, form, centred in NORMALISATIONS.values():
            predicted = instrument(scale * h, eps, form, centred=centred)
            measured = degree(normalise, scale * h, centred=False)
            torch.testing.assert_close(predicted, measured.by_jvp, rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(predicted, measured.by_action, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("form", ["inside_root", "added_to_rms", "clamp"])
def test_squares_do_not_leave_a_narrow_format(form):
    for scale in (1e-4, 1.0, 1e3):
        h = (scale * random(3, D)).half()
        torch.testing.assert_close(
            epsilon_leak(h, 1e-6, form), epsilon_leak(h.double(), 1e-6, form), check_dtype=False, rtol=1e-4, atol=1e-12
        )


def twice_the_epsilon(h, eps, form="inside_root", *, centred=False):
    rho = epsilon_leak(h, eps, form, centred=centred)
    return rho / (1 + rho)


def complement(h, eps, form="inside_root", *, centred=False):
    return 1 - epsilon_leak(h, eps, form, centred=centred)


def never_centred(h, eps, form="inside_root", *, centred=False):
    return epsilon_leak(h, eps, form)


def always_inside(h, eps, form="inside_root", *, centred=False):
    return epsilon_leak(h, eps, centred=centred)


def euclidean(h, eps, form="inside_root", *, centred=False):
    return epsilon_leak(h * D**0.5, eps, form, centred=centred)


def test_the_predicted_leak_is_the_measured_one(h):
    assert_leaks(epsilon_leak, h)


@pytest.mark.parametrize("mutant", [twice_the_epsilon, complement, never_centred, always_inside, euclidean])
def test_wrong_formulas_are_detected(h, mutant):
    with pytest.raises(AssertionError):
        assert_leaks(mutant, h)


def test_at_unit_rms_two_forms_coincide_so_that_it_tells_nothing():
    """A trap: eps / (m + eps) = eps / (sqrt(m) + eps) at m = 1."""
    h = random(5, D)
    h = h / rms(h)
    torch.testing.assert_close(epsilon_leak(h, EPS), epsilon_leak(h, EPS, "added_to_rms"))
    assert (epsilon_leak(2 * h, EPS) - epsilon_leak(2 * h, EPS, "added_to_rms")).abs().min() > 1e-2


@pytest.mark.parametrize(("form", "order"), [("inside_root", 2), ("added_to_rms", 1)])
def test_the_leak_decays_with_the_scale(h, form, order):
    ratio = epsilon_leak(1e4 * h, 1e-6, form) / epsilon_leak(1e5 * h, 1e-6, form)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 10.0**order), rtol=1e-4, atol=0)


class Readout(nn.Module):
    """As in libraries: the normalisation casts to float32 and back."""

    def __init__(self, cast: bool, eps: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gain, self.head = nn.Parameter(1 + 0.3 * torch.randn(D)), nn.Linear(D, VOCAB, bias=False)
        self.cast, self.eps = cast, eps

    def forward(self, h: Tensor) -> Tensor:
        x = h.to(torch.float32) if self.cast else h
        return self.head(self.gain * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)).to(h.dtype))


TARGETS = torch.arange(60) % VOCAB


def fraction(readout: nn.Module, h: Tensor) -> Tensor:
    return radial_gradient_fraction(lambda h: F.cross_entropy(readout(h), TARGETS), h)


def predicted_fraction(readout: Readout, h: Tensor) -> Tensor:
    """rho |q_u| / sqrt(rho^2 q_u^2 + |q_t|^2) of float64 parameters."""
    y = (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + readout.eps)).requires_grad_()
    weight, gain = readout.head.weight.double(), readout.gain.double()
    (q,) = torch.autograd.grad(F.cross_entropy((gain * y) @ weight.T, TARGETS), y)
    u, rho = F.normalize(h, dim=-1), epsilon_leak(h, readout.eps)
    radial = (q * u).sum(-1)
    return (rho * radial).abs() / torch.hypot(rho * radial, (q - radial[:, None] * u).norm(dim=-1)).detach()


def recomputed(readout: nn.Module, h: Tensor) -> Tensor:
    with in_float64(readout) as exact:
        return fraction(exact, h.double())


def parameters_only(readout: nn.Module, h: Tensor) -> Tensor:
    """What `module.double()` alone does."""
    copy = Readout(readout.cast, readout.eps)
    copy.load_state_dict(readout.state_dict())
    return fraction(copy.double(), h.double())


def as_it_is(readout: nn.Module, h: Tensor) -> Tensor:
    return fraction(readout, h).double()


def assert_a_leak_is_resolved(recompute) -> None:
    for scale in (1.0, 1e3):
        readout, h = Readout(cast=True, eps=1e-6), (scale * random(60, D)).float()
        predicted = predicted_fraction(readout, h.double())
        torch.testing.assert_close(recompute(readout, h), predicted, rtol=1e-3, atol=1e-15)


def test_a_leak_is_resolved_though_the_library_casts_to_float32():
    assert_a_leak_is_resolved(recomputed)


@pytest.mark.parametrize("recompute", [parameters_only, as_it_is])
def test_it_is_not_by_less_than_that(recompute):
    with pytest.raises(AssertionError):
        assert_a_leak_is_resolved(recompute)


def test_the_floor_of_every_precision():
    """float32 saturates, bfloat16 is flat: neither can certify a leak of 1e-6 / s^2."""
    measured = {}
    for scale in (1.0, 10.0, 1000.0):
        h = scale * random(60, D)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            readout = Readout(cast=False, eps=1e-6).to(dtype)
            measured[scale, dtype] = fraction(readout, h.to(dtype)).double().median().item()
    for scale in (10.0, 1000.0):
        decay = measured[1.0, torch.float64] / measured[scale, torch.float64]
        assert decay == pytest.approx(scale**2, rel=1e-2)
        assert measured[scale, torch.float32] > 1e-9
        assert measured[scale, torch.bfloat16] > 1e-5
    assert measured[1000.0, torch.float64] < 1e-12


def test_the_original_and_the_surroundings_are_untouched():
    readout = Readout(cast=True, eps=0.0)
    before = {name: value.clone() for name, value in readout.state_dict().items()}
    with in_float64(readout) as exact:
        assert exact is not readout
        assert {p.dtype for p in exact.parameters()} == {torch.float64}
        assert exact(random(60, D)).dtype == torch.float64
    for name, value in readout.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])
    assert random(2).to(torch.float32).dtype == torch.float32


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, D), nn.Linear(D, 5, bias=False)
            self.head.weight = self.table.weight

    model = Tied().eval()
    with in_float64(model) as exact:
        assert exact.head.weight is exact.table.weight and not exact.training
        assert len(list(exact.parameters())) == 1


def test_precision_lost_by_other_means_than_a_cast_is_refused():
    class Writes(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            buffer = torch.zeros(h.shape)
            buffer.copy_(h)
            return buffer

    with in_float64(Writes()) as exact, pytest.raises(ValueError, match="takes a float64 tensor and returns a lower"):
        exact(random(60, D))


def test_forward_mode_runs_in_float64_too(h):
    with in_float64(Readout(cast=True, eps=0.0)) as exact:
        assert degree(exact, h).by_jvp.abs().max() < 1e-14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), -1.0), "eps must not be negative"),
        ((torch.ones(3), float("nan")), "eps must not be negative"),
        ((torch.zeros(3), 1.0), "zero state"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        epsilon_leak(*arguments)
