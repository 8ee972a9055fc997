"""The token that went in: drowned, taken back or kept, of steps that are known, and what the readout makes of it."""

from dataclasses import replace

import pytest
import torch

from experiments.measure.own_token import OWN_TOKEN, WINDOWS, measure
from experiments.training import snapshots
from experiments.training.trainer import train


def own_token(context):
    (row,) = measure(context)["own_token"].to_dict("records")
    return row


@pytest.mark.parametrize(
    ("move", "left", "ratio"), [(torch.clone, 1.0, 1.0), (lambda h: h / 2, 0.0625, 0.0625), (lambda h: -h, 1.0, 1.0)]
)
def test_what_is_left_and_how_far_the_state_has_grown(make_context, planted, move, left, ratio):
    row = own_token(make_context(model=planted(move)))
    assert (row["embedding_left"], row["norm_ratio"]) == pytest.approx((left, ratio))
    assert row["centred_left"] == pytest.approx(left, rel=1e-5)


def test_a_vector_for_all_tokens_is_not_part_of_a_token(make_context, planted):
    """It makes the state large and drowns the token, of which the centred measure alone says that it is still there."""
    context = make_context(model=planted(torch.clone))
    with torch.no_grad():
        mean = context.model.embed(context.windows[:, :-1]).flatten(0, 1).mean(0)
    plain, drowned = own_token(context), own_token(make_context(model=planted(lambda h: h + 70.0 * mean / mean.norm())))
    assert drowned["norm_ratio"] == pytest.approx(40.0, rel=0.05)
    assert drowned["centred_left"] == pytest.approx(1.0, rel=1e-4)
    assert drowned["embedding_left"] > 2.0
    assert drowned["own_logit"] < 0.2 * plain["own_logit"]


def test_what_is_taken_back_is_gone_by_both_measures(make_context, planted):
    model = planted(torch.clone)
    model.step = lambda h: h * 1e-3
    row = own_token(make_context(model=model))
    assert max(abs(row["embedding_left"]), abs(row["centred_left"])) < 1e-6


@pytest.mark.parametrize("variant", ["scale_invariant", "final_norm", "untied_scale_visible"])
def test_the_logit_is_that_of_the_last_readout(make_context, variant):
    context = make_context(variant)
    inputs = context.windows[:WINDOWS, :-1]
    with torch.no_grad():
        logits = context.model.readout(context.model(inputs)[-1], is_last=True)
    # A logit that all tokens have alike is no token's own.
    logits = logits - logits.flatten(0, 1).mean(0)
    own = logits.gather(-1, inputs.long().unsqueeze(-1)).mean()
    assert own_token(context)["own_logit"] == pytest.approx(own.item(), rel=1e-4, abs=1e-5)


def test_a_tied_head_gives_the_token_that_went_in_its_width_and_an_untied_one_nothing(make_context):
    names = ("scale_invariant", "untied_scale_invariant")
    tied, untied = (own_token(make_context(variant))["own_logit"] for variant in names)
    assert tied == pytest.approx(32 / 2**0.5, rel=0.25) and abs(untied) < 0.1 * tied


def test_every_kept_step_of_a_training_is_looked_at(make_context, make_config, synthetic, execution, tmp_path):
    config = make_config("scale_invariant", steps=12, batch_size=4, learning_rate=1e-2)
    model = train(config, synthetic.train, tmp_path, replace(execution, snapshots=4))
    table = measure(make_context("scale_invariant", model=model, windows=WINDOWS + 2))["own_token"]
    assert table.columns.tolist() == OWN_TOKEN and table["step"].tolist() == sorted(snapshots.load(tmp_path))
    assert table["centred_left"].nunique() == len(table) > 2
    last = table.iloc[-1].drop("step")
    for path in (tmp_path / snapshots.FOLDER).iterdir():
        path.unlink()
    (row,) = measure(make_context("scale_invariant", model=model, windows=WINDOWS + 2))["own_token"].to_dict("records")
    assert row.pop("step") == make_config("scale_invariant").training.steps
    assert row == pytest.approx(last.to_dict(), rel=1e-5)
