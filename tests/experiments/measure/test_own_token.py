"""The token that went in: drowned, taken back or kept, of steps that are known, and what the readout makes of it."""

import pytest
import torch

from experiments.measure.own_token import measure

PUSH = torch.zeros(32)
PUSH[3] = 70.0


def own_token(context):
    return measure(context)["own_token"].set_index("k")


@pytest.mark.parametrize(
    ("move", "left", "ratio"),
    [
        (torch.clone, [1.0] * 4, [1.0] * 4),
        (lambda h: h / 2, [0.5, 0.25, 0.125, 0.0625], [0.5, 0.25, 0.125, 0.0625]),
        (lambda h: -h, [-1.0, 1.0, -1.0, 1.0], [1.0] * 4),
    ],
)
def test_what_is_left_and_how_far_the_state_has_grown(make_context, planted, move, left, ratio):
    table = own_token(make_context(model=planted(move)))
    assert table["embedding_left"].tolist() == pytest.approx(left)
    assert table["norm_ratio"].tolist() == pytest.approx(ratio)


def test_what_is_drowned_is_still_left(make_context, planted):
    """A vector for all tokens makes the state large; along its own embedding a token has what it had, but for the
    vector's share of the embeddings' mean, which is small."""
    drowned = own_token(make_context(model=planted(lambda h: h + PUSH)))
    assert drowned["norm_ratio"].tolist() == pytest.approx([k * 10.0 for k in range(1, 5)], rel=0.05)
    assert drowned["embedding_left"].iloc[0] == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("variant", ["scale_invariant", "final_norm"])
def test_the_probability_is_the_readouts_of_that_loop(make_context, variant):
    context = make_context(variant)
    table = own_token(context)
    inputs = context.windows[:, :-1]
    with torch.no_grad():
        states = context.model(inputs)
        for k in (1, 4):
            logits = context.model.readout(states[k], is_last=k == 4)
            own = -torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs.flatten())
            assert table["own_log_probability"][k] == pytest.approx(own.item(), rel=1e-4)
            e = context.model.token_embedding(inputs)
            left = (states[k] * e).sum() / (states[0] * e).sum()
            assert table["embedding_left"][k] == pytest.approx(left.item(), rel=1e-4)


def test_a_tied_head_names_the_token_that_went_in_and_an_untied_one_does_not(make_context, planted):
    tied = own_token(make_context(model=planted(torch.clone)))["own_log_probability"]
    apart = own_token(make_context("untied_scale_invariant"))["own_log_probability"]
    assert (tied > -1e-3).all() and (apart < -3.0).all()
