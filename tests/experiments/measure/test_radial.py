"""Radial gradients of models whose blindness is known by construction."""

from dataclasses import replace

import pytest
import torch

from experiments.measure import radial
from experiments.measure.total_loss import own_loss, total_loss
from loopsight import radial_gradient_fraction
from models import LoopedLM, ReadoutConfig, Supervision, looped_loss

GROUPED = ReadoutConfig(kind="group_layernorm", num_groups=4)


@pytest.fixture
def rows(make_context, make_config):
    """The table of a variant at initialisation, with another epsilon or readout where asked for."""

    def make(variant: str = "scale_invariant", **changes: object):
        torch.manual_seed(0)
        model = LoopedLM(replace(make_config(variant).model, **changes))
        return radial.measure(make_context(variant, model=model))["radial"]

    return make


def test_a_blind_readout_gives_nothing_and_the_whole_loss_does(rows):
    blind, raw = rows(norm_eps=0.0), rows("scale_visible", norm_eps=0.0)
    assert list(blind["k"]) == [1, 2, 3, 4]
    assert (blind["immediate"] < 1e-12).all()
    assert (blind["total"][:3] > 1e-4).all() and blind["total"][3] < 1e-12  # no loop behind the last
    assert (raw[["immediate", "total"]] > 1e-4).all(axis=None)
    assert (blind["random_direction"] == (2 / (torch.pi * 32)) ** 0.5).all()


def test_the_immediate_fraction_is_of_the_next_token_s_loss(make_context):
    context = make_context("scale_visible")
    targets = context.exact_windows[:, 1:].flatten()

    def loss(h):
        return torch.nn.functional.cross_entropy(context.exact.readout(h).flatten(0, 1), targets)

    expected = [radial_gradient_fraction(loss, h).nanmean().item() for h in context.exact_states[1:5]]
    assert radial.measure(context)["radial"]["immediate"].tolist() == pytest.approx(expected, rel=1e-9)


def test_the_whole_loss_is_blind_where_the_scale_is_removed(rows):
    assert (rows("scale_removing", norm_eps=0.0)["total"] < 1e-12).all()


def test_a_penalty_is_seen_by_the_whole_loss_only(rows):
    penalised = rows("norm_penalty", norm_eps=0.0)
    assert (penalised["immediate"] < 1e-12).all() and (penalised["total"] > 1e-5).all()


def test_the_final_norm_hides_the_last_loop_only(rows):
    assert list(rows("final_norm", norm_eps=0.0)["immediate"] > 1e-4) == [True, True, True, False]


@pytest.mark.parametrize(
    ("variant", "changes"), [("scale_invariant", {}), ("layernorm", {}), ("scale_invariant", {"readout": GROUPED})]
)
def test_the_epsilon_leak_is_the_one_predicted(rows, variant, changes):
    leak = rows(variant, norm_eps=1e-2, **changes)
    assert leak["epsilon_leak_seen"].tolist() == pytest.approx(leak["epsilon_leak_predicted"].tolist(), rel=1e-9)
    assert (leak["epsilon_leak_seen"] > 1e-5).all()
    none = rows(variant, norm_eps=0.0, **changes)
    assert (none["epsilon_leak_predicted"] == 0.0).all() and (none["epsilon_leak_seen"].abs() < 1e-14).all()


def test_a_raw_readout_leaks_everything(rows):
    raw = rows("scale_visible")
    assert (raw["epsilon_leak_predicted"] == 1.0).all() and raw["epsilon_leak_seen"].tolist() == pytest.approx(
        [1.0] * 4
    )


@pytest.mark.parametrize("variant", ["scale_invariant", "final_norm", "scale_removing", "scale_visible"])
@pytest.mark.parametrize(
    "supervision",
    [
        Supervision(),
        Supervision(placement="terminal"),
        Supervision(norm_penalty=0.3),
        Supervision(weights=(0.0, 2.0, 1.5, 0.5)),
    ],
)
def test_the_total_loss_is_the_training_loss(make_context, variant, supervision):
    context = make_context(variant)
    model, tokens, targets = context.exact, context.exact_windows[:, :-1], context.exact_windows[:, 1:]
    states = context.exact_states
    whole = looped_loss(model, tokens, targets, supervision).total.item()
    with torch.no_grad():
        assert total_loss(model, targets, supervision, 0, 4)(states[0]).item() == pytest.approx(whole)
        first = total_loss(model, targets, supervision, 1, 4)(states[1]).item()
        second = total_loss(model, targets, supervision, 2, 4)(states[2]).item()
        own = supervision.loop_weights(4)[0] * own_loss(model, targets, 1, 4)(states[1]).item()
        penalty = (supervision.norm_penalty or 0.0) / 4 * states[1].square().mean().item()
    assert first == pytest.approx(whole)
    assert first - second == pytest.approx(own + penalty)
