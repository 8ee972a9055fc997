"""Dropout is random, follows the seed, and belongs to training only."""

import torch
from torch import Tensor

from models import LoopedLM, Supervision, looped_loss


def trained_weights(build, tokens: Tensor, targets: Tensor, dropout_seed: int) -> Tensor:
    model: LoopedLM = build(dropout=0.2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(dropout_seed)
    for _ in range(3):
        optimiser.zero_grad()
        looped_loss(model, tokens, targets, Supervision()).total.backward()
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_is_reproducible_by_seed_and_another_seed_differs(build, tokens, targets):
    first, again, other = (trained_weights(build, tokens, targets, seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-4


def test_evaluation_drops_nothing(build, tokens):
    dropping, plain = build(dropout=0.5), build()
    assert torch.equal(dropping.eval()(tokens)[-1], plain(tokens)[-1])
    assert not torch.equal(dropping.train()(tokens)[-1], plain(tokens)[-1])


def test_every_loop_draws_its_own_masks(build, states):
    model = build(dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(model.step(states), model.step(states))


def test_dropout_acts_on_h0_and_on_branch_outputs_only(build, tokens, states):
    """On h_0 entries vanish or are scaled by 1 / (1 - p); the residual stream itself is never dropped."""
    model, kept = build(dropout=0.5), build()
    h0, full = model.embed(tokens), kept.embed(tokens)
    dropped = h0 == 0
    assert 0.3 < dropped.double().mean() < 0.7
    torch.testing.assert_close(h0[~dropped], 2 * full[~dropped], rtol=1e-14, atol=0)
    for ours, whole in zip(model.sublayers, kept.sublayers, strict=True):
        branch = ours(states) - states
        dropped = branch.abs() < 1e-14
        assert 0.3 < dropped.double().mean() < 0.7
        torch.testing.assert_close(branch[~dropped], 2 * (whole(states) - states)[~dropped], rtol=1e-9, atol=1e-12)
