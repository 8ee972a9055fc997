"""The one pass against the plainest way to compute the same."""

import pytest
import torch
import torch.nn.functional as F

from experiments.measure import forward
from experiments.measure.forward import decode, held_out_pass, rescaled_cross_entropy


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(forward, "default_chunk_rows", lambda device: 7)  # does not divide 32 rows


@torch.no_grad()
def plain(model, h, targets, is_last=True):
    z = model.readout(h, is_last=is_last)
    top = z.topk(2).values
    return {
        "cross_entropy": F.cross_entropy(z.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape),
        "margin": top[..., 0] - top[..., 1],
        "entropy": torch.distributions.Categorical(logits=z).entropy(),
    }


def assert_same(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["scale_visible", "scale_invariant", "final_norm"])
@pytest.mark.parametrize("is_last", [True, False])
def test_decoding_in_chunks_equals_a_plain_computation(variant, is_last, make_context, small_chunks):
    context = make_context(variant, windows=1)
    targets = context.windows[:, 1:]
    h = torch.randn(*targets.shape, 32, generator=torch.Generator().manual_seed(0))
    assert_same(decode(context.model, h, targets, is_last=is_last), plain(context.model, h, targets, is_last))


def test_ties_and_certainty_have_no_nan(planted):
    model = planted(lambda h: h, raw=True)
    targets = torch.tensor([[3]])
    flat = decode(model, torch.zeros(1, 1, 32), targets, is_last=True)
    assert flat.margin.item() == 0.0
    assert flat.cross_entropy.item() == pytest.approx(torch.tensor(256.0).log().item())
    assert flat.entropy.item() == pytest.approx(torch.tensor(256.0).log().item())
    sure = decode(model, 1e4 * model.head_weight[3].detach()[None, None], targets, is_last=True)
    assert (sure.entropy.item(), sure.cross_entropy.item()) == (pytest.approx(0.0, abs=1e-3), 0.0)
    assert sure.margin.item() > 1e4


def test_float64_stays_float64(make_context):
    context = make_context(windows=1)
    h = torch.randn(1, 32, 32, dtype=torch.float64)
    assert decode(context.exact, h, context.windows[:, 1:], is_last=True).entropy.dtype == torch.float64


def test_the_exact_model_is_another_one_than_the_trained(make_context):
    context = make_context(windows=1)
    assert {parameter.dtype for parameter in context.exact.parameters()} == {torch.float64}
    assert {parameter.dtype for parameter in context.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("variant", ["final_norm", "scale_removing"])
def test_the_pass_holds_every_loop_of_every_window(variant, make_context):
    """Loops before K are decoded as such, K and those beyond as the last."""
    context = make_context(variant, windows=5)
    found = held_out_pass(context.model, context.windows, num_loops=5, last_loop=3, batch_size=2)
    inputs, targets = context.windows[:, :-1], context.windows[:, 1:]
    with torch.no_grad():
        states = context.model(inputs, 5)
    for k in range(1, 6):
        for name, value in plain(context.model, states[k], targets, is_last=k >= 3).items():
            torch.testing.assert_close(getattr(found, name)[k - 1], value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.l2_norm[k - 1], states[k].norm(dim=-1))
        change = (states[k] - states[k - 1]).norm(dim=-1) / states[k].norm(dim=-1)
        torch.testing.assert_close(found.state_change[k - 1], change)
    torch.testing.assert_close(found.final_states, states[3])
    expected = [plain(context.model, h, targets, k >= 3)["cross_entropy"].mean() for k, h in enumerate(states[1:], 1)]
    assert found.mean_cross_entropy() == pytest.approx([value.item() for value in expected], rel=1e-5)


@pytest.mark.parametrize("variant", ["scale_visible", "scale_invariant", "layernorm"])
def test_all_factors_at_once_equal_one_at_a_time(variant, make_context):
    context = make_context(variant, windows=5)
    targets = context.windows[:, 1:]
    h = torch.randn(*targets.shape, 32, generator=torch.Generator().manual_seed(0))
    factors = (0.1, 1.0, 7.0)
    found = rescaled_cross_entropy(context.model, h, targets, factors, batch_size=2)
    expected = [plain(context.model, factor * h, targets)["cross_entropy"].mean().item() for factor in factors]
    assert found == pytest.approx(expected, rel=1e-5)
