"""Evaluation against the plainest way to compute the same."""

import pytest
import torch
import torch.nn.functional as F

from experiments.measure.state import measure_state
from experiments.measure.validation import held_out_windows, validate
from experiments.training.trainer import build_model

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


def test_the_next_norm_is_predicted_where_the_scale_is_removed(make_config, windows):
    """RMSNorm between loops: far out the step is the same everywhere, so the prediction is exact up to epsilon."""
    state = measure_state(build_model(make_config("scale_removing"), CPU), windows[:2], num_loops=3)
    assert state.next_l2_norm_predicted == pytest.approx(state.next_l2_norm, rel=1e-4)
