"""Low-precision residual streams whose end is known."""

import math

import pytest
import torch
from torch import nn

from experiments.measure import precision
from experiments.measure.precision import measure
from models import LoopedLM, ModelConfig, ReadoutConfig


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, h):
        return h + self.branch(h)


def model_with(*branches):
    """The tiny model from h_0 = 1 in every coordinate, with branches of its own."""
    torch.manual_seed(0)
    raw = ReadoutConfig(kind="raw", gain=False)
    model = LoopedLM(ModelConfig(d_model=32, num_layers=1, num_heads=2, vocab_size=256, context=32, readout=raw))
    model.sublayers = nn.ModuleList(Residual(branch) for branch in branches)
    model.embed = lambda tokens: torch.ones(*tokens.shape, 32)
    return model


def rows(context):
    return measure(context)["precision"].set_index("dtype").to_dict("index")


def test_a_constant_step_stops_when_predicted(make_context):
    """From 5 on, 1 a loop: at 256 bfloat16 does not take it any more, at 2048 float16."""
    found = rows(make_context(model=model_with(torch.ones_like)))
    assert found["bfloat16"]["loops_seen"] == pytest.approx(251, abs=1)
    assert found["float16"]["loops_seen"] == pytest.approx(2043, abs=1)
    for row in found.values():
        assert row["loops_predicted"] == pytest.approx(row["loops_seen"], abs=1)
        assert row["moving_fraction_at_64"] == 1.0 and math.isnan(row["overflow_loop"])


def test_a_token_stops_with_its_last_coordinate(make_context, monkeypatch):
    """One coordinate takes 1 a loop, the others stand still."""
    monkeypatch.setattr(precision, "MAX_LOOPS", {torch.bfloat16: 300})
    row = rows(make_context(model=model_with(lambda h: torch.eye(32)[0].expand_as(h))))["bfloat16"]
    assert row["loops_seen"] == pytest.approx(251, abs=1)
    assert row["loops_predicted"] == pytest.approx(row["loops_seen"], abs=1)


def test_loops_are_medians_over_tokens(make_context, monkeypatch):
    """The first token of a window has stopped before it began."""
    monkeypatch.setattr(precision, "MAX_LOOPS", {torch.bfloat16: 300})
    first = torch.arange(16)[:, None] == 0
    row = rows(make_context(model=model_with(lambda h: torch.where(first, 0.0, torch.ones_like(h)))))["bfloat16"]
    assert row["loops_seen"] == pytest.approx(251, abs=1)
    assert row["loops_predicted"] == pytest.approx(row["loops_seen"], abs=1)
    assert row["moving_fraction_at_64"] == pytest.approx(15 / 16)


def test_the_loops_run_in_two_parts_are_those_of_one_run(make_context, monkeypatch):
    """16 a loop in bfloat16, cut at 10 loops or at 64: the same count."""
    model = model_with(lambda h: torch.full_like(h, 16.0))
    seen = []
    for first in (10, 64):
        monkeypatch.setattr(precision, "FAR_LOOPS", first)
        seen.append(rows(make_context(model=model))["bfloat16"]["loops_seen"])
    assert seen[0] == seen[1] > 200


def test_a_step_that_is_nothing_has_stopped_before_it_began(make_context):
    for row in rows(make_context(model=model_with(torch.zeros_like))).values():
        assert (row["loops_predicted"], row["loops_seen"], row["moving_fraction_at_64"]) == (0.0, 0.0, 0.0)


def test_a_state_that_turns_for_ever_never_stops(make_context, monkeypatch):
    monkeypatch.setattr(precision, "MAX_LOOPS", {torch.bfloat16: 200, torch.float16: 200})
    for row in rows(make_context(model=model_with(lambda h: -2.0 * h))).values():  # h -> -h
        assert math.isnan(row["loops_seen"]) and math.isnan(row["overflow_loop"])
        assert row["moving_fraction_at_64"] == 1.0


def test_float16_overflows_where_bfloat16_does_not(make_context):
    """1024 a loop: beyond 65504 after 64 loops from K = 4, within the first 64 or after them."""
    for step, loop in ((1024.0, 60), (512.0, 124)):
        found = rows(make_context(model=model_with(lambda h, step=step: torch.full_like(h, step))))
        assert found["float16"]["overflow_loop"] == pytest.approx(loop, abs=1)
        assert math.isnan(found["float16"]["loops_seen"])
        assert math.isnan(found["bfloat16"]["overflow_loop"]) and found["bfloat16"]["loops_seen"] > 100


def test_a_norm_between_loops_takes_part(make_context, monkeypatch):
    """It removes the growth: the state is at rest after few loops, where the stack alone would grow for hundreds."""
    monkeypatch.setattr(precision, "MAX_LOOPS", {torch.bfloat16: 400})
    model = model_with(torch.ones_like)
    model.between = make_context("scale_removing").model.between
    assert rows(make_context(model=model))["bfloat16"]["loops_seen"] < 5
