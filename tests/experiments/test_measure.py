"""Evaluation against the plainest way to compute the same."""

import pytest
import torch
import torch.nn.functional as F

from experiments.measure.state import measure_state
from experiments.measure.validation import held_out_windows, validate
from experiments.training.trainer import build_model
from models import LoopedLM, ModelConfig

CPU = torch.device("cpu")


@pytest.fixture
def windows(synthetic):
    return held_out_windows(synthetic.validation, 32, 6)


@pytest.mark.parametrize("variant", ["scale_visible", "scale_invariant", "final_norm", "scale_removing"])
def test_validation_equals_a_plain_computation(variant, make_config, windows):
    model = build_model(make_config(variant), CPU).eval()
    found = validate(model, windows, num_loops=5, batch_size=4)
    states = model(windows[:, :-1], 5)[1:]
    targets = windows[:, 1:].flatten()

    def plain(h, *, is_last):
        return F.cross_entropy(model.readout(h, is_last=is_last).flatten(0, 1), targets).item()

    assert found.tokens == 6 * 32
    assert found.cross_entropy == pytest.approx([plain(h, is_last=k == 4) for k, h in enumerate(states)], rel=1e-5)
    assert found.l2_norm["mean"] == pytest.approx([h.norm(dim=-1).mean().item() for h in states], rel=1e-5)
    for name, quantile in (("median", 0.5), ("p99", 0.99)):
        expected = [torch.quantile(h.norm(dim=-1), quantile).item() for h in states]
        assert found.l2_norm[name] == pytest.approx(expected, rel=1e-5)
    assert found.l2_norm["max"] == pytest.approx([h.norm(dim=-1).max().item() for h in states], rel=1e-5)
    for factor in (0.5, 2.0):
        expected = plain(factor * states[-1], is_last=True)
        assert found.rescaled_cross_entropy[str(factor)] == pytest.approx(expected, rel=1e-5)


def test_held_out_windows_are_disjoint_spread_and_in_range(synthetic):
    import numpy as np

    tokens = np.arange(1000, dtype=np.uint16)
    windows = held_out_windows(tokens, 32, 10)
    assert windows.shape == (10, 33)
    starts = windows[:, 0]
    assert (starts.diff() >= 32).all() and starts[0] == 0 and windows.max() == 30 * 32 + 32
    assert held_out_windows(tokens, 32, 500).shape == (31, 33)
    assert held_out_windows(tokens[:128], 32, 99).shape == (3, 33)  # the last window would lack its last target


@pytest.mark.parametrize(
    ("variant", "carry", "blind"),
    [("scale_invariant", 1.0, True), ("scale_visible", 1.0, False), ("scale_removing", 0.0, True)],
)
def test_state_measurement_separates_the_variants(variant, carry, blind, make_config, windows):
    model = build_model(make_config(variant), CPU)
    state = measure_state(model, windows[:2], num_loops=3)
    assert state.carry == pytest.approx(carry, abs=1e-3)
    assert all(fraction < 1e-6 for fraction in state.radial_gradient_fraction) == blind
    assert all(fraction > 1e-4 for fraction in state.radial_gradient_fraction) != blind
    with torch.no_grad():
        further = model.double()(windows[:2, :-1], 4)[-1]
    assert state.next_l2_norm == pytest.approx(further.norm(dim=-1).mean().item(), rel=1e-9)


def test_the_fraction_is_of_the_next_token_s_loss(make_config, windows):
    from loopsight import radial_gradient_fraction

    model = build_model(make_config("scale_visible"), CPU).double()
    with torch.no_grad():
        states = model(windows[:2, :-1], 3)[1:]

    def loss(h):
        return F.cross_entropy(model.readout(h).flatten(0, 1), windows[:2, 1:].flatten())

    expected = [radial_gradient_fraction(loss, h).nanmean().item() for h in states]
    found = measure_state(model, windows[:2], num_loops=3).radial_gradient_fraction
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_next_norm_is_predicted_where_the_scale_is_removed(make_config, windows):
    """RMSNorm between loops: far out the step is the same everywhere, so the prediction is exact up to epsilon."""
    state = measure_state(build_model(make_config("scale_removing"), CPU), windows[:2], num_loops=3)
    assert state.next_l2_norm_predicted == pytest.approx(state.next_l2_norm, rel=1e-4)


class AffineStep(LoopedLM):
    """A model whose step is known: h + 3 h / |h|, from states of norm 7."""

    def __init__(self):
        super().__init__(ModelConfig(d_model=4, num_layers=1, num_heads=1, vocab_size=5, context=8))

    def embed(self, tokens):
        h = self.token_embedding(tokens)
        return 7.0 * h / h.norm(dim=-1, keepdim=True)

    def step(self, h):
        return h + 3.0 * h / h.norm(dim=-1, keepdim=True)

    def readout(self, h, *, is_last=True):
        return (h / h.norm(dim=-1, keepdim=True) if is_last else h) @ self.head_weight.T


def test_known_gain_increment_and_readouts_are_measured():
    state = measure_state(AffineStep(), torch.tensor([[0, 1, 2, 3]]), num_loops=3)
    assert state.tokens == 3
    assert state.carry == pytest.approx(1.0)
    assert state.radial_increment == pytest.approx(3.0)
    assert state.regime_number == pytest.approx(0.0, abs=1e-6)
    assert (state.l2_norm, state.next_l2_norm) == (pytest.approx(16.0), pytest.approx(19.0))
    assert state.next_l2_norm_predicted == pytest.approx(19.0)
    assert min(state.radial_gradient_fraction[:2]) > 1e-4
    assert state.radial_gradient_fraction[2] < 1e-14
    assert state.tokens_without_gradient == [0, 0, 0]


def test_what_a_loop_adds_across_the_state_is_no_radial_increment():
    class Turning(AffineStep):
        def step(self, h):
            even, odd = (4.0 * h / h.norm(dim=-1, keepdim=True)).unflatten(-1, (-1, 2)).unbind(-1)
            return super().step(h) + torch.stack([-odd, even], dim=-1).flatten(-2)

    assert measure_state(Turning(), torch.tensor([[0, 1, 2, 3]]), num_loops=3).radial_increment == pytest.approx(3.0)


def test_the_regime_number_is_that_of_the_last_state(make_config, windows):
    from loopsight import regime_number

    model = build_model(make_config("scale_invariant"), CPU).double()
    with torch.no_grad():
        states = model(windows[:2, :-1], 4)
        expected = [regime_number(model.step, h).mean().item() for h in states]
    assert measure_state(model, windows[:2], num_loops=4).regime_number == pytest.approx(expected[4], rel=1e-6)
    assert abs(expected[4] / expected[0] - 1) > 1e-3


def test_tokens_without_a_gradient_are_counted_and_left_out(monkeypatch, make_config, windows):
    from experiments.measure import state as module

    real = module.radial_gradient_fraction

    def partly_nan(loss, h):
        fraction = real(loss, h)
        fraction[0, :3] = torch.nan
        return fraction

    monkeypatch.setattr(module, "radial_gradient_fraction", partly_nan)
    found = measure_state(build_model(make_config(), CPU), windows[:2], num_loops=2)
    assert found.tokens_without_gradient == [3, 3]
    assert all(fraction is not None for fraction in found.radial_gradient_fraction)
    monkeypatch.setattr(module, "radial_gradient_fraction", lambda loss, h: torch.full(h.shape[:-1], torch.nan))
    assert measure_state(build_model(make_config(), CPU), windows[:2], num_loops=1).radial_gradient_fraction == [None]
