"""The degree of a readout: closed forms, our own models' declarations, and readouts that hide their derivative."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.radial import degree
from models import LoopedLM, ModelConfig, ReadoutConfig

D, VOCAB = 12, 17


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


HEAD = random(VOCAB, D)


def power(p: float):
    """Logits of degree p, on a shift of all logits of degree 1, which no softmax sees."""

    def readout(h: Tensor) -> Tensor:
        size = h.norm(dim=-1, keepdim=True)
        return F.normalize(h, dim=-1) @ HEAD.T * size**p + 3 * size

    return readout


def assert_degrees(instrument, h: Tensor) -> None:
    for p in (-1.0, 0.0, 0.3, 1.0):
        expected = torch.full((len(h),), p, dtype=torch.float64)
        for readout in (power(p), lambda h, p=p: 100 * power(p)(h)):
            measured = instrument(readout, h)
            for value in (measured.by_action, measured.by_jvp):
                torch.testing.assert_close(value, expected, rtol=0, atol=1e-8)
            assert measured.defect.max() < 1e-8


def uncentred(readout, h: Tensor):
    return degree(readout, h, centred=False)


def not_squared(readout, h: Tensor):
    return degree(lambda h: readout(h) * readout(h).norm(dim=-1, keepdim=True), h)


def at_another_scale(readout, h: Tensor):
    return degree(lambda h: readout(h + 0.1), h)


def test_degrees_in_closed_form(h):
    assert_degrees(degree, h)


@pytest.mark.parametrize("mutant", [uncentred, not_squared, at_another_scale])
def test_broken_copies_are_detected(h, mutant):
    with pytest.raises(AssertionError):
        assert_degrees(mutant, h)


def test_the_finite_action_decides_where_forward_mode_is_blind(h):
    """A normaliser that is detached: forward mode calls it raw, and it is blind; and the reverse."""

    def normalised(h: Tensor) -> Tensor:
        return h / h.norm(dim=-1, keepdim=True).detach() @ HEAD.T

    def raw(h: Tensor) -> Tensor:
        return h.detach() @ HEAD.T

    for readout, truth, forward in ((normalised, 0.0, 1.0), (raw, 1.0, 0.0)):
        measured = degree(readout, h)
        assert (measured.by_action - truth).abs().max() < 1e-10
        assert (measured.by_jvp - forward).abs().max() < 1e-10
        assert measured.defect.max() < 1e-10


def test_a_squashed_readout_has_a_degree_at_every_scale_but_is_not_homogeneous():
    u = random(1, 64)
    u = u / u.square().mean().sqrt()
    head = random(200, 64)
    degrees = [degree(lambda h: torch.tanh(h) @ head.T, scale * u) for scale in (1e-3, 1.0, 10.0)]
    first, middle, last = (d.by_action.item() for d in degrees)
    assert first == pytest.approx(1.0, abs=1e-4) and 0.3 < middle < 0.9 and 0.0 < last < 0.2
    for measured in degrees:
        torch.testing.assert_close(measured.by_action, measured.by_jvp, rtol=0, atol=1e-10)
    assert degrees[0].defect < 1e-4 < 1e-2 < degrees[1].defect


def test_logits_that_turn_have_degree_zero_and_a_defect(h):
    a, b = random(VOCAB), random(VOCAB, seed=2)
    a, b = F.normalize(a - a.mean(), dim=0), b - b.mean()
    b = F.normalize(b - (a @ b) * a, dim=0)

    def turning(h: Tensor) -> Tensor:
        angle = h.norm(dim=-1, keepdim=True).log()
        return angle.cos() * a + angle.sin() * b

    measured = degree(turning, h)
    assert measured.by_action.abs().max() < 1e-10
    assert measured.defect.min() > 0.1


def test_a_bias_hides_a_degree_without_hiding_the_defect(h):
    measured = degree(lambda h: h @ HEAD.T + 10 * random(VOCAB), h)
    assert measured.by_action.max() < 1 and measured.defect.max() > 1e-2


def test_equal_logits_have_no_degree(h):
    assert degree(lambda h: torch.ones(len(h), 4, dtype=torch.float64) * h[:, :1], h).by_action.isnan().all()


READOUTS = [
    ReadoutConfig(kind="raw", gain=False),
    ReadoutConfig(kind="raw_final_rmsnorm"),
    ReadoutConfig(kind="rmsnorm", gain=False, tied=False),
    ReadoutConfig(kind="layernorm", gain=False),
    ReadoutConfig(kind="group_rmsnorm", num_groups=3),
    ReadoutConfig(kind="group_layernorm", num_groups=3, gain=False),
]


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("readout", READOUTS, ids=lambda r: r.kind)
def test_our_models_declare_the_degree_that_is_measured(h, readout, is_last):
    torch.manual_seed(0)
    sizes = dict(d_model=D, num_layers=1, num_heads=2, vocab_size=9, context=5)
    model = LoopedLM(ModelConfig(**sizes, readout=readout, norm_eps=0.0)).double().eval()
    measured = degree(lambda h: model.readout(h, is_last=is_last), h)
    declared = model.readout_features.degree(is_last=is_last)
    for value in (measured.by_action, measured.by_jvp):
        assert (value - declared).abs().max() < 1e-10
    assert measured.defect.max() < 1e-10


def test_modules_that_are_not_ours(h):
    torch.manual_seed(0)
    head = nn.Linear(D, 9, bias=False, dtype=torch.float64)
    for norm, declared in ((nn.LayerNorm(D, eps=0.0, dtype=torch.float64), 0), (nn.Identity(), 1)):
        assert (degree(nn.Sequential(norm, head), h).by_action - declared).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("readout", "message"),
    [
        (lambda h: h.sum(-1), "must give each token a vector"),
        (lambda h: h.sum(), "must give each token a vector"),
        (lambda h: h.float(), "must return a float64 tensor"),
        (lambda h: h.argmax(-1), "must return a float64 tensor"),
    ],
)
def test_bad_readouts_are_refused(h, readout, message):
    with pytest.raises(ValueError, match=message):
        degree(readout, h)


def test_float32_states_are_refused(h):
    with pytest.raises(ValueError, match="h must be float64"):
        degree(lambda h: h, h.float())


def test_a_readout_without_forward_mode_is_refused(h):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return 2 * h

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    with pytest.raises(ValueError, match="no forward-mode derivative"):
        degree(Double.apply, h)
