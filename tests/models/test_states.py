"""A model is three maps, and `forward` returns the states between them."""

import pytest
import torch
from readouts import KINDS, readout_of

from models import BetweenConfig, ReadoutConfig


@pytest.mark.parametrize("num_loops", [0, 1, 4, 9])
@pytest.mark.parametrize("between", ["none", "rmsnorm"])
def test_states_are_those_of_a_loop_written_by_hand(build, tokens, num_loops, between):
    model = build(between=BetweenConfig(kind=between))
    h = model.embed(tokens)
    by_hand = [h]
    for _ in range(num_loops):
        h = model.between(h)
        for sublayer in model.sublayers:
            h = sublayer(h)
        by_hand.append(h)
    states = model(tokens, num_loops)
    assert len(states) == num_loops + 1
    for state, expected in zip(states, by_hand, strict=True):
        assert torch.equal(state, expected)


def test_the_trained_count_is_the_default(build, tokens):
    model = build(num_loops=5)
    assert len(model(tokens)) == 6
    assert torch.equal(model(tokens)[-1], model(tokens, 5)[-1])


def test_a_trajectory_is_the_beginning_of_a_longer_one(build, tokens):
    model = build()
    for short, long in zip(model(tokens, 2), model(tokens, 6), strict=False):
        assert torch.equal(short, long)


def test_h0_is_token_plus_position_embedding(build, tokens):
    model = build()
    expected = model.token_embedding.weight[tokens] + model.position_embedding.weight[torch.arange(7)]
    assert torch.equal(model(tokens, 0)[0], expected)


def test_rotary_models_have_no_position_in_h0(build, tokens):
    model = build(position="rotary")
    assert model.position_embedding is None
    assert torch.equal(model.embed(tokens), model.token_embedding.weight[tokens])


def test_a_negative_loop_count_is_refused(build, tokens):
    with pytest.raises(ValueError, match="num_loops must not be negative, got -1"):
        build()(tokens, -1)


def test_learned_positions_end_at_the_context_and_rotary_ones_do_not(build):
    long = torch.zeros(1, 11, dtype=torch.int64)
    with pytest.raises(ValueError, match="11 tokens in a row, but learned positions end at 10"):
        build()(long)
    assert build(position="rotary")(long)[-1].shape == (1, 11, 12)


def test_raw_final_rmsnorm_normalises_after_the_last_loop_only(build, states):
    model = build(readout=ReadoutConfig(kind="raw_final_rmsnorm"), norm_eps=0.0)
    head, gain = model.head_weight, model.readout_features.norm.gain
    raw, last = model.readout(states, is_last=False), model.readout(states, is_last=True)
    torch.testing.assert_close(raw, states @ head.T, rtol=1e-12, atol=1e-12)
    rms = states.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(last, (gain * states / rms) @ head.T, rtol=1e-12, atol=1e-12)
    assert torch.equal(model.readout(states), last)  # a state read out by itself is the last one


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "raw_final_rmsnorm"])
def test_other_readouts_are_the_same_at_every_loop(build, states, kind):
    model = build(readout=readout_of(kind))
    assert torch.equal(model.readout(states, is_last=False), model.readout(states, is_last=True))


def test_a_tied_head_is_the_token_embedding_and_an_untied_one_its_own(build):
    tied, untied = build(), build(readout=ReadoutConfig(tied=False))
    assert tied.head_weight is tied.token_embedding.weight
    assert untied.head_weight is not untied.token_embedding.weight
    assert untied.num_parameters() - tied.num_parameters() == 17 * 12


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_embeddings_start_at_the_asked_standard_deviation(build, std):
    model = build(vocab_size=2000, context=2000, embedding_std=std)
    for embedding in (model.token_embedding, model.position_embedding):
        assert embedding.weight.std().item() == pytest.approx(std, rel=0.02)


def test_a_multiplier_is_of_the_state_that_enters_and_of_no_head(build):
    plain, louder = build(), build(embedding_multiplier=4.0)
    tokens = torch.arange(10).view(2, 5)
    assert torch.equal(louder.embed(tokens), 4.0 * plain.embed(tokens))
    h = torch.randn(2, 5, 12)
    assert torch.equal(louder.step(h), plain.step(h)) and torch.equal(louder.readout(h), plain.readout(h))
    assert torch.equal(louder(tokens, 0)[0], louder.embed(tokens))
