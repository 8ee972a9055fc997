"""Clamps on models whose growth is planted, in both directions."""

import pytest
import torch

from experiments.measure.clamp import freeze_at_loop_1, measure, remove_radial, remove_radial_after_loop_1
from experiments.measure.statistics import bootstrap_interval


def unit(h):
    return h / h.norm(dim=-1, keepdim=True)


def grow(h):
    """3 along the state."""
    return h + 3.0 * unit(h)


def turn(h):
    """3 across the state: rotate each pair of coordinates of its direction by a right angle."""
    even, odd = unit(h).unflatten(-1, (-1, 2)).unbind(-1)
    return h + 3.0 * torch.stack([-odd, even], dim=-1).flatten(-2)


def norms(clamp, model, windows):
    with torch.no_grad():
        return clamp(model, windows[:, :-1]).norm(dim=-1)


@pytest.mark.parametrize(
    ("clamp", "expected"), [(remove_radial, 7.0), (remove_radial_after_loop_1, 10.0), (freeze_at_loop_1, 10.0)]
)
def test_planted_radial_growth_is_removed(clamp, expected, make_context, planted):
    context = make_context(model=planted(grow))
    found = norms(clamp, context.model, context.windows)
    torch.testing.assert_close(found, torch.full_like(found, expected))
    unclamped = context.held_out.l2_norm[3]
    torch.testing.assert_close(unclamped, torch.full_like(unclamped, 19.0))


@pytest.fixture
def uneven(planted):
    """Grows by 3 a loop from norms of 2 to 9, another one at every token."""

    def make(*, raw=False):
        model = planted(grow, raw=raw)
        embed = model.embed
        model.embed = lambda tokens: embed(tokens) * ((2.0 + tokens % 8) / 7.0)[..., None]
        return model

    return make


def test_a_frozen_state_keeps_the_norm_of_its_own_token(make_context, uneven):
    context = make_context(model=uneven())
    started = 2.0 + context.windows[:, :-1] % 8
    assert started.min() == 2.0 and started.max() == 9.0
    torch.testing.assert_close(norms(freeze_at_loop_1, context.model, context.windows), started + 3.0)


def test_frozen_or_rescaled_at_decode_time_a_growth_along_the_state_costs_the_same(make_context, uneven):
    change = measure(make_context(model=uneven(raw=True)))["clamp"].set_index("mode")[["change", "low", "high"]]
    assert change.loc["freeze_loop1"].tolist() == pytest.approx(change.loc["decode_time"].tolist(), rel=1e-4)
    assert change.loc["freeze_loop1", "change"] != pytest.approx(change.loc["remove_radial", "change"], rel=1e-2)


def test_what_lies_across_the_state_is_kept(make_context, planted):
    context = make_context(model=planted(turn))
    with torch.no_grad():
        unclamped = context.model(context.windows[:, :-1])[-1]
        for clamp in (remove_radial, remove_radial_after_loop_1):
            torch.testing.assert_close(clamp(context.model, context.windows[:, :-1]), unclamped)
    frozen = norms(freeze_at_loop_1, context.model, context.windows)
    torch.testing.assert_close(frozen, torch.full_like(frozen, (7.0**2 + 3.0**2) ** 0.5))


def test_with_a_norm_between_loops_the_part_along_the_normalised_state_goes(make_context):
    model = make_context("scale_removing").model
    model.config = model.config.__class__(**(vars(model.config) | {"num_loops": 1}))
    inputs = torch.arange(8)[None]
    with torch.no_grad():
        start = model.between(model.embed(inputs))
        along = ((remove_radial(model, inputs) - start) * unit(start)).sum(-1)
        free = ((model.step(model.embed(inputs)) - start) * unit(start)).sum(-1)
    assert along.abs().max() < 1e-4 < 1e-2 < free.abs().max()


@pytest.mark.parametrize("raw", [True, False])
def test_a_clamp_of_pure_growth_costs_what_the_readout_sees(raw, make_context, planted):
    """The direction never turns, so a readout blind to scale loses nothing, and a raw one loses in every mode."""
    table = measure(make_context(model=planted(grow, raw=raw)))["clamp"].set_index("mode")
    assert list(table.index) == ["remove_radial", "remove_radial_after_loop1", "freeze_loop1", "decode_time"]
    if raw:
        # 19 -> 7 or 10: the logits shrink, and every clamp's interval excludes "no change".
        assert (table["low"] * table["high"] > 0.0).all() and (table["change"].abs() > 0.1).all()
        assert table["change"]["freeze_loop1"] == pytest.approx(table["change"]["decode_time"], rel=1e-4)
    else:
        assert (table[["change", "low", "high"]].abs() < 1e-5).all(axis=None)


def test_at_decode_time_only_a_raw_readout_notices(make_context):
    change = {
        variant: measure(make_context(variant))["clamp"].set_index("mode")["change"]["decode_time"]
        for variant in ("scale_invariant", "final_norm", "scale_visible")
    }
    assert abs(change["scale_invariant"]) < 1e-5 < 1e-2 < abs(change["scale_visible"])
    assert abs(change["final_norm"]) < 1e-5  # it is the last loop's readout that is asked


def test_the_interval_is_of_the_difference_within_windows(make_context):
    context = make_context("scale_visible")
    row = measure(context)["clamp"].set_index("mode").loc["freeze_loop1"]
    with torch.no_grad():
        h = freeze_at_loop_1(context.model, context.windows[:, :-1])
        z = context.model.readout(h).flatten(0, 1)
    after = torch.nn.functional.cross_entropy(z, context.windows[:, 1:].flatten(), reduction="none").view(12, 32)
    before = context.held_out.cross_entropy[3]
    paired = bootstrap_interval((after - before).double().mean(1).numpy())
    assert row["cross_entropy"] == pytest.approx(after.mean().item(), rel=1e-5)
    assert tuple(row[["change", "low", "high"]]) == pytest.approx((paired.mean, paired.low, paired.high), rel=1e-4)
    assert row["change"] == pytest.approx(row["cross_entropy"] - before.mean().item(), rel=1e-4)
