"""Increments of steps whose answer is known, and of a real stack at scales where theory must hold or must not."""

import math

import pytest
import torch
from torch import nn

from experiments.measure.increments import COLUMNS, increments, measure


def states_of(model, loops=6, scale=1.0):
    h = [scale * model.embed(torch.arange(12).view(2, 6))]
    for _ in range(loops):
        h.append(model.step(h[-1]))
    return [x.detach() for x in h]


def test_a_loop_of_64_has_a_row_a_step(make_context):
    table = measure(make_context())["increments"]
    assert list(table.columns) == COLUMNS and list(table["k"]) == list(range(64))
    assert (table["pythagoras_residual"] < 1e-14).all()
    assert table["heading_cosine"].isna().tolist() == [True] + [False] * 63


def test_a_constant_radial_increment_is_found_and_does_not_depend_on_the_scale(planted):
    model = planted(lambda h: h + 3.0 * h / h.norm(dim=-1, keepdim=True)).double()
    table = increments(model, states_of(model))
    assert table["radial_increment"].tolist() == pytest.approx([3.0] * 6)
    assert (table["regime_number"] < 1e-6).all() and (table["perpendicular_part"] < 1e-12).all()


def test_a_linear_recurrence_fails_the_regime_number_and_passes_pythagoras(planted):
    matrix = 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = planted(lambda h: h + h @ matrix).double()
    table = increments(model, states_of(model))
    assert table["regime_number"].tolist() == pytest.approx([1.0] * 6, rel=1e-6)
    assert (table["pythagoras_residual"] < 1e-14).all()


def test_a_rotation_has_its_angle_and_keeps_its_heading(planted):
    angle = 0.1
    turn = torch.eye(32, dtype=torch.float64)
    for i in range(0, 32, 2):
        turn[i : i + 2, i : i + 2] = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
    model = planted(lambda h: h @ turn.T).double()
    table = increments(model, states_of(model))
    assert table["angular_step"].tolist() == pytest.approx([angle] * 6)
    assert table["angular_step_times_norm"].tolist() == pytest.approx([7.0 * angle] * 6)
    assert table["heading_cosine"].tolist()[1:] == pytest.approx([math.cos(angle)] * 5)


def test_a_heading_is_of_the_direction_and_not_of_the_growth(planted):
    """The norm grows steadily while the direction swings to and fro."""
    angles = [0.01 * (k % 2) for k in range(6)]
    first, second = torch.eye(32, dtype=torch.float64)[:2]
    states = [(7.0 + 3.0 * k) * (math.cos(a) * first + math.sin(a) * second) for k, a in enumerate(angles)]
    table = increments(planted(lambda h: h).double(), [state.view(1, 1, 32) for state in states])
    assert table["heading_cosine"].tolist()[1:] == pytest.approx([-1.0] * 4)
    assert table["angular_step"].tolist() == pytest.approx([0.01] * 5)


def test_a_wandering_direction_keeps_no_heading(planted):
    generator = torch.Generator().manual_seed(1)
    model = planted(lambda h: h).double()
    walk = states_of(model, loops=0)
    for _ in range(40):
        walk.append(walk[-1] + 1e-3 * torch.randn(walk[-1].shape, generator=generator, dtype=torch.float64))
    assert increments_heading(model, walk) == pytest.approx(0.0, abs=0.05)


def increments_heading(model, states):
    headings = []
    for k in range(1, len(states) - 1):
        # The step of `model` plays no part in a heading; NaN of a step that adds nothing stays out of it.
        headings.append(increments(model, states[k - 1 : k + 2])["heading_cosine"].iloc[-1])
    return sum(headings) / len(headings)


@pytest.mark.parametrize("variant", ["scale_invariant", "layernorm"])
def test_the_second_order_term_of_several_sublayers_is_predicted_far_out_and_only_there(make_context, variant):
    model = make_context(variant).exact
    far, near = (increments(model, states_of(model, loops=1, scale=scale)).iloc[0] for scale in (1e3, 1e-1))
    assert far["second_order_seen"] == pytest.approx(far["second_order_predicted"], rel=1e-2)
    assert near["second_order_seen"] != pytest.approx(near["second_order_predicted"], rel=0.2)
    assert far["regime_number"] < 1e-2 < near["regime_number"]


def test_pythagoras_alone_is_not_the_second_order_term(make_context):
    """beta^2 / 2s, without what sublayers do to each other, must be told from what is seen."""
    model = make_context().exact
    h, h_next = states_of(model, loops=1, scale=1e3)
    row = increments(model, [h, h_next]).iloc[0]
    b = h_next - h
    radial = (b * h).sum(-1) / h.norm(dim=-1)
    alone = ((b.square().sum(-1) - radial.square()) / (2 * h.norm(dim=-1))).mean().item()
    assert row["second_order_seen"] != pytest.approx(alone, rel=0.03)


def test_behind_a_norm_between_loops_the_second_order_is_that_of_the_state_it_lets_in(make_context):
    """As of the stack alone, started from what the norm has made of a state three times as long."""
    model = make_context("scale_removing").exact
    h = states_of(model, loops=0, scale=3.0)[0]
    with torch.no_grad():
        let_in, h_next = model.between(h), model.step(h)
    behind = increments(model, [h, h_next]).iloc[0]
    model.between = nn.Identity()
    alone = increments(model, [let_in, h_next]).iloc[0]
    for name in ("second_order_seen", "second_order_predicted"):
        assert behind[name] == pytest.approx(alone[name], rel=1e-9) and abs(alone[name]) > 1e-3
    assert h.norm(dim=-1).mean() > 1.5 * let_in.norm(dim=-1).mean()
