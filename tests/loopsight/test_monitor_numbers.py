"""What the monitor logs equals what the instruments say of the same states and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.increments import increment
from loopsight.monitor import LoopMonitor
from loopsight.monitoring.statistics import (
    PIECE,
    isotropic_fraction,
    mean_fraction,
    noise_floor,
    radial_fraction,
    stagnation,
    state_statistics,
    step_statistics,
)
from loopsight.observability import drive
from loopsight.precision import predicted_freeze
from loopsight.protocol import unroll
from loopsight.radial import radial_gradient_fraction

D, VOCAB, LOOPS = 16, 9, 3


class Looped(nn.Module):
    def __init__(self, readout: str = "blind") -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, norm_first=True, batch_first=True)
        self.head = nn.Linear(D, VOCAB, bias=False)
        self.readout = readout

    def rest(self, h: Tensor, loops: int) -> Tensor:
        """Logits after so many further loops."""
        h = unroll(self.block, h, loops)[-1]
        return self.head(F.rms_norm(h, (D,)) if self.readout == "blind" else h)

    def forward(self, h: Tensor) -> Tensor:
        return self.rest(h, LOOPS)


@pytest.fixture
def h_0() -> Tensor:
    return 3.0 * torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))


def sampled(model: Looped, h_0: Tensor) -> tuple[dict, list[Tensor]]:
    """A record, and the states of the same pass. In float64, so that it can be compared to many digits."""
    records: list[dict] = []
    with LoopMonitor(model, "block", sinks=[records.append]) as monitor:
        loss_of(model(h_0.requires_grad_())).backward()
        monitor.end_step()
    with torch.no_grad():
        return records[0], list(unroll(model.block, h_0.detach(), LOOPS))


def loss_of(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), torch.arange(10, device=logits.device) % VOCAB)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_logs_the_same(h_0):
    torch.manual_seed(0)
    model = Looped()
    here, there = sampled(model, h_0)[0], sampled(model.cuda(), h_0.detach().cuda())[0]
    for name in ("mean_l2_norm", "max_l2_norm", "max_abs"):
        assert there[name] == pytest.approx(here[name], rel=1e-5)
    for name in ("relative_radial_increment", "drive"):
        assert there[name][1:] == pytest.approx(here[name][1:], rel=1e-3)
    assert there["total_radial_gradient_fraction"] == pytest.approx(here["total_radial_gradient_fraction"], abs=1e-6)


@pytest.mark.parametrize("readout", ["blind", "raw"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_record_equals_the_instruments(h_0, readout, dtype):
    torch.manual_seed(1)
    model, h_0 = Looped(readout).to(dtype), h_0.to(dtype)
    record, states = sampled(model, h_0)
    digits = {"rel": 1e-12, "abs": 1e-15} if dtype == torch.float64 else {"rel": 1e-4, "abs": 1e-7}
    assert record["loops"] == (0, 1, 2, 3) and record["dtype"] == str(dtype)[6:]
    assert record["mean_l2_norm"] == pytest.approx([h.norm(dim=-1).mean().item() for h in states], **digits)
    assert record["max_l2_norm"] == pytest.approx([h.norm(dim=-1).max().item() for h in states], **digits)
    assert record["max_abs"] == pytest.approx([h.abs().max().item() for h in states], **digits)
    assert record["drive"][1:] == pytest.approx([drive(model.block, h).mean().item() for h in states[:-1]], **digits)
    steps = [increment(*pair) for pair in zip(states[:-1], states[1:], strict=True)]
    radial = [(step.radial_part / step.l2_norm).mean().item() for step in steps]
    assert record["relative_radial_increment"][1:] == pytest.approx(radial, **digits)
    # The gradient of everything that follows h_k: the total one.
    total = [
        radial_gradient_fraction(lambda h, k=k: loss_of(model.rest(h, LOOPS - k)), h).mean().item()
        for k, h in enumerate(states)
    ]
    assert record["total_radial_gradient_fraction"] == pytest.approx(total, **digits)
    for name in ("bfloat16", "float16"):
        freeze = predicted_freeze(states[-1], states[-1] - states[-2], getattr(torch, name))
        expected = freeze.loops.double().median().item()
        assert record["stagnation"][name].items() >= {"median_loops": expected}.items()


def test_blind_and_visible_readouts_are_decades_apart_at_the_last_loop_and_only_there(h_0):
    torch.manual_seed(1)
    blind, raw = (sampled(Looped(readout).double(), h_0.double())[0] for readout in ("blind", "raw"))
    fractions = [record["total_radial_gradient_fraction"] for record in (blind, raw)]
    assert fractions[0][-1] < 1e-6 < 1e-2 < fractions[1][-1]
    assert fractions[0][0] > 1e-3  # what later loops see of the scale is in the total gradient


def test_the_fraction_of_a_gradient_in_hand(h):
    gradient = torch.randn(h.shape, dtype=h.dtype, generator=torch.Generator().manual_seed(3))
    expected = radial_gradient_fraction(lambda x: (x * gradient).sum(), h)
    torch.testing.assert_close(radial_fraction(gradient, h), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(radial_fraction(1e-300 * gradient, h), expected, rtol=1e-12, atol=0)
    gradient[1], gradient[2, 0] = 0.0, torch.inf
    assert radial_fraction(gradient, h).isnan().tolist() == [False, True, True, False, False, False, False]


@pytest.mark.parametrize("d", [16, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_noise_floor_is_what_one_rounding_leaves(dtype, d):
    generator = torch.Generator().manual_seed(4)
    h, g = torch.randn(2, 2000, d, dtype=torch.float64, generator=generator)
    h = h.to(dtype).double()
    for _ in range(2):
        g = g - h * (g * h).sum(-1, keepdim=True) / h.square().sum(-1, keepdim=True)
    assert radial_fraction(g, h).mean() < 1e-12
    rounded = radial_fraction(g.to(dtype), h).mean().item()
    assert 0.5 * noise_floor(dtype, d) < rounded < noise_floor(dtype, d)


def test_a_random_gradient_has_the_isotropic_fraction():
    h, g = torch.randn(2, 20000, 40, generator=torch.Generator().manual_seed(5))
    assert radial_fraction(g, h).mean().item() == pytest.approx(isotropic_fraction(40), rel=0.02)


def test_low_precision_states_are_measured_in_float64():
    h = torch.full((3, 64), 300.0, dtype=torch.float16)  # the sum of squares passes float16's largest number
    assert state_statistics(h).mean_l2_norm == 2400.0
    after = h.clone()
    after[:, 0] += 0.25
    step = step_statistics(h, after)
    assert step is not None and step.relative_radial_increment == pytest.approx(0.25 * 300 / 2400**2)


def test_many_tokens_are_taken_in_pieces():
    h = torch.randn(2 * PIECE + 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    assert state_statistics(h).mean_l2_norm == pytest.approx(h.norm(dim=-1).mean().item())
    assert radial_fraction(h, h).shape == (2 * PIECE + 3,)
    step = step_statistics(h, 1.5 * h)
    assert step is not None and step.drive == pytest.approx(0.5)


def test_tokens_without_a_direction_are_counted_and_left_out():
    h = torch.ones(5, 4)
    h[0], h[1, 2], h[2, 0] = 0.0, torch.nan, torch.inf
    statistics = state_statistics(h)
    assert (statistics.tokens, statistics.unusable_tokens, statistics.nonfinite_tokens) == (5, 3, 2)
    assert (statistics.mean_l2_norm, statistics.max_abs) == (2.0, 1.0)
    step = step_statistics(h, 2 * h)
    assert step is not None and step.drive == pytest.approx(1.0)
    gone = torch.full((5, 4), torch.nan)
    assert state_statistics(gone).mean_l2_norm is None
    assert step_statistics(h, gone) is None and stagnation(h, gone, torch.bfloat16) is None
    assert step_statistics(h, h[1:]) is None


def test_a_token_with_a_zero_coordinate_is_usable():
    statistics = state_statistics(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))
    assert (statistics.unusable_tokens, statistics.mean_l2_norm, statistics.max_l2_norm) == (1, 5.0, 5.0)


def test_the_largest_coordinate_may_be_negative():
    assert state_statistics(torch.tensor([[-9.0, 1.0], [2.0, 3.0]])).max_abs == 9.0


def test_tokens_without_a_gradient_are_no_part_of_the_mean_fraction():
    assert mean_fraction(torch.tensor([torch.nan, 0.4, 0.2])) == pytest.approx(0.3)
    assert mean_fraction(torch.tensor([torch.nan])) is None and mean_fraction(None) is None


def test_stagnation_counts_coordinates_that_stand_still():
    before = torch.full((600, 4), 1000.0)
    after = before + torch.tensor([8.0, 8.0, 8.0, 0.01])  # the spacing of bfloat16 at 1000 is 4, at 1008 still
    state = stagnation(before, after, torch.bfloat16)
    assert state is not None and state.frozen == 0.25 and state.median_loops > 0
    assert stagnation(before, before + 0.01, torch.bfloat16).frozen == 1.0
    assert stagnation(before, 1e6 * after, torch.float16) is None
