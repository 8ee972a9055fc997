"""The training loss equals one that keeps all logits, in value and in every gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from readouts import KINDS, readout_of
from torch import Tensor

from models import LoopedLM, Supervision, looped_loss

PLACEMENTS = ["terminal", "per_loop"]


def plain_cross_entropies(model: LoopedLM, tokens: Tensor, targets: Tensor, num_loops: int) -> Tensor:
    logits = [
        model.readout(h, is_last=k == num_loops).flatten(0, 1) for k, h in enumerate(model(tokens, num_loops)) if k >= 1
    ]
    return torch.stack([F.cross_entropy(z, targets.flatten()) for z in logits])


def plain_loss(model: LoopedLM, tokens: Tensor, targets: Tensor, supervision: Supervision, num_loops: int) -> Tensor:
    losses = plain_cross_entropies(model, tokens, targets, num_loops)
    total = losses[-1] if supervision.placement == "terminal" else losses.mean()
    if supervision.norm_penalty is not None:
        states = torch.stack(model(tokens, num_loops)[1:])
        total = total + supervision.norm_penalty * states.square().mean()
    return total


@pytest.mark.parametrize("placement", PLACEMENTS)
@given(
    num_loops=st.integers(1, 5),
    norm_penalty=st.sampled_from([None, 0.3]),
    tied=st.booleans(),
    kind=st.sampled_from(KINDS),
)
@settings(derandomize=True, deadline=None, max_examples=20)
def test_it_equals_the_loss_that_keeps_all_logits(
    build, tokens, targets, placement, num_loops, norm_penalty, tied, kind
):
    model = build(readout=readout_of(kind, tied=tied))
    supervision = Supervision(placement=placement, norm_penalty=norm_penalty)
    weights = list(model.parameters())
    ours = looped_loss(model, tokens, targets, supervision, num_loops).total
    theirs = plain_loss(model, tokens, targets, supervision, num_loops)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = zip(
        torch.autograd.grad(ours, weights, materialize_grads=True),
        torch.autograd.grad(theirs, weights, materialize_grads=True),
        strict=True,
    )
    for our_gradient, their_gradient in gradients:
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-11, atol=1e-12)


def test_each_loop_is_weighted_by_its_own_weight(build, tokens, targets, monkeypatch):
    weights = (0.1, 0.0, -0.7, 0.4)
    monkeypatch.setattr(Supervision, "loop_weights", lambda self, num_loops: weights)
    model = build()
    loss = looped_loss(model, tokens, targets, Supervision(), 4)
    exact = plain_cross_entropies(model, tokens, targets, 4)
    torch.testing.assert_close(loss.total, exact @ exact.new_tensor(weights), rtol=1e-12, atol=1e-12)
    assert loss.cross_entropy.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_it_reports_each_supervised_loop_and_nan_for_the_others(build, tokens, targets, placement):
    model = build()
    reported = looped_loss(model, tokens, targets, Supervision(placement=placement), 4).cross_entropy
    exact = plain_cross_entropies(model, tokens, targets, 4).detach()
    supervised = slice(3, 4) if placement == "terminal" else slice(0, 4)
    torch.testing.assert_close(reported[supervised], exact[supervised], rtol=1e-12, atol=1e-12)
    assert reported.isnan().sum() == (3 if placement == "terminal" else 0)
    assert not reported.requires_grad


def test_it_reports_the_euclidean_norm_of_the_states_after_each_loop(build, tokens, targets):
    model = build()
    reported = looped_loss(model, tokens, targets, Supervision(), 4).mean_l2_norm
    expected = [h.square().sum(-1).sqrt().mean().item() for h in model(tokens, 4)[1:]]
    assert reported.tolist() == pytest.approx(expected, rel=1e-12)
    assert not reported.requires_grad


def test_the_trained_count_is_the_default(build, tokens, targets):
    model = build(num_loops=2)
    assert looped_loss(model, tokens, targets, Supervision()).cross_entropy.shape == (2,)


@pytest.mark.parametrize("num_loops", [1, 2, 7])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_loop_weights_sum_to_one(placement, num_loops):
    weights = Supervision(placement=placement).loop_weights(num_loops)
    assert len(weights) == num_loops
    assert sum(weights) == pytest.approx(1.0, rel=1e-15)


def test_the_penalty_is_the_mean_square_and_does_not_grow_with_the_number_of_loops(build, tokens, targets):
    model = build()
    for num_loops in (1, 5):
        without, with_penalty = (
            looped_loss(model, tokens, targets, Supervision(norm_penalty=penalty), num_loops).total
            for penalty in (None, 0.5)
        )
        states = torch.stack(model(tokens, num_loops)[1:])
        expected = 0.5 * states.square().sum() / states.numel()
        torch.testing.assert_close(with_penalty - without, expected, rtol=1e-12, atol=1e-12)


def test_given_weights_are_used_and_their_number_is_checked():
    supervision = Supervision(weights=(0.5, 0.0, 2.0))
    assert supervision.loop_weights(3) == (0.5, 0.0, 2.0)
    with pytest.raises(ValueError, match="3 weights were given for 4 loops"):
        supervision.loop_weights(4)
    with pytest.raises(ValueError, match="belong to the placement 'per_loop'"):
        Supervision(placement="terminal", weights=(1.0,))
    with pytest.raises(ValueError, match="must be finite"):
        Supervision(weights=(1.0, float("nan")))
