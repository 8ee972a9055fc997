"""The instruments on modules that are not ours: nothing needs to be inherited, wrapped or registered."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight import LoopedModel, asymptotic_step, radial_gradient_fraction, regime_number

D = 16


@pytest.fixture(scope="module")
def states() -> Tensor:
    return F.normalize(torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture(scope="module")
def layer() -> nn.Module:
    """Torch's own pre-norm layer, with biases, GELU-free defaults and attention over all tokens."""
    torch.manual_seed(0)
    options = dict(dim_feedforward=32, dropout=0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    return nn.TransformerEncoderLayer(D, 2, **options).requires_grad_(False)


def test_a_looped_torch_prenorm_layer_carries_its_scale(layer, states):
    gain = asymptotic_step(layer, states).gain
    torch.testing.assert_close(gain, torch.ones_like(gain), rtol=0, atol=1e-8)


def test_its_growth_is_predicted_when_its_states_are_large_and_refused_when_small(layer, states):
    assert regime_number(layer, 1e4 * states).max() < 1e-3
    assert regime_number(layer, 1e-1 * states).max() > 1e-1
    h = 1e4 * states
    expected = h.norm(dim=-1)
    for _ in range(8):
        expected = expected + asymptotic_step(layer, h).radial_increment(h)
        h = layer(h)
    grown = h.norm(dim=-1) - 1e4
    assert grown.abs().max() > 1.0
    torch.testing.assert_close(expected - 1e4, grown, rtol=0, atol=1e-2)


def test_a_postnorm_layer_removes_the_scale(states):
    torch.manual_seed(0)
    options = dict(dim_feedforward=32, dropout=0.0, norm_first=False, batch_first=True, dtype=torch.float64)
    layer = nn.TransformerEncoderLayer(D, 2, **options).requires_grad_(False)
    assert asymptotic_step(layer, states).gain.abs().max() < 1e-6


def test_its_loss_is_blind_to_the_scale_through_a_layernorm_and_sees_it_without(layer, states):
    torch.manual_seed(1)
    norm, head = nn.LayerNorm(D, eps=0.0, dtype=torch.float64), nn.Linear(D, 9, dtype=torch.float64)
    h = layer(layer(10 * states))
    targets = torch.arange(10) % 9

    def loss(features: Tensor) -> Tensor:
        return F.cross_entropy(head(features).flatten(0, 1), targets)

    assert radial_gradient_fraction(lambda h: loss(norm(h)), h).max() < 1e-14
    assert radial_gradient_fraction(loss, h).min() > 1e-4


def test_the_gates_of_a_gru_keep_part_of_the_scale(states):
    """Far out the update gate is 0 or 1: the channels it holds are carried, h' = z h + (1 - z) n."""
    torch.manual_seed(2)
    cell = nn.GRUCell(3, D, dtype=torch.float64).requires_grad_(False)
    h = states.flatten(0, 1)
    x = torch.zeros(len(h), 3, dtype=torch.float64)
    held = h @ cell.weight_hh[D : 2 * D].T > 0
    expected = (held * h.square()).sum(-1) / h.square().sum(-1)
    assert 0 < expected.min() and expected.max() < 1
    torch.testing.assert_close(asymptotic_step(lambda h: cell(x, h), h).gain, expected, rtol=0, atol=1e-6)
    assert regime_number(lambda h: cell(x, h), 1e4 * h).min() > 0.5  # nothing of it is a growth by a constant


def test_a_linear_recurrence_has_its_rayleigh_quotient_and_no_regime(states):
    torch.manual_seed(3)
    linear = nn.Linear(D, D, bias=False, dtype=torch.float64).requires_grad_(False)
    quotient = (states * linear(states)).sum(-1)
    torch.testing.assert_close(asymptotic_step(linear, states).gain, quotient, rtol=0, atol=1e-9)
    for scale in (1e-3, 1.0, 1e3):
        number = regime_number(linear, scale * states)
        torch.testing.assert_close(number, torch.ones_like(number), rtol=1e-6, atol=0)


class Looped(nn.Module):
    """Three maps and nothing of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(9, D), nn.TransformerEncoderLayer(D, 2, batch_first=True)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)

    def step(self, h: Tensor) -> Tensor:
        return self.cell(h)

    def readout(self, h: Tensor) -> Tensor:
        return h @ self.table.weight.T


def test_three_maps_make_a_looped_model_and_two_do_not():
    assert isinstance(Looped(), LoopedModel)
    assert not isinstance(nn.TransformerEncoderLayer(D, 2), LoopedModel)
