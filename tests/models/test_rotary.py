"""Rotary attention depends on differences of positions only."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.positions import Rotary


def scores(rotate: Rotary, query: Tensor, key: Tensor) -> Tensor:
    return rotate(query) @ rotate(key).transpose(-1, -2)


def test_scores_of_the_same_query_and_key_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 1, 6, dtype=torch.float64, generator=generator).expand(-1, -1, 9, -1) for _ in "qk")
    rotated = scores(Rotary(6), query, key)
    torch.testing.assert_close(rotated[..., :-1, :-1], rotated[..., 1:, 1:], rtol=1e-12, atol=1e-12)
    assert (rotated[..., 0, :-1] - rotated[..., 0, 1:]).abs().min() > 1e-3  # and they do depend on it


def test_position_zero_is_not_rotated_and_the_others_are():
    x = torch.randn(1, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    rotated = Rotary(8)(x)
    assert torch.equal(rotated[..., 0, :], x[..., 0, :])
    assert (rotated[..., 1:, :] - x[..., 1:, :]).abs().amax(-1).min() > 1e-2


def test_pairs_turn_by_the_published_angles():
    x = torch.zeros(1, 1, 6, 4, dtype=torch.float64)
    x[..., 0] = x[..., 1] = 1.0  # the first channel of both pairs
    position = torch.arange(6, dtype=torch.float64)
    turned = Rotary(4)(x)[0, 0]
    for pair, frequency in enumerate([1.0, 10_000.0**-0.5]):
        torch.testing.assert_close(turned[:, pair], (position * frequency).cos(), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(turned[:, pair + 2], (position * frequency).sin(), rtol=1e-14, atol=1e-14)


def test_a_rotation_keeps_lengths():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Rotary(8)(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("position", "invariant"), [("rotary", True), ("learned", False)])
def test_attention_to_a_repeated_token_is_shift_invariant_with_rotary_positions_only(
    build, monkeypatch, position, invariant, qk_norm
):
    received = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *qkv, **options: (received.append(qkv), attend(*qkv, **options))[1],
    )
    build(position=position, num_layers=1, qk_norm=qk_norm)(torch.tensor([[5] * 8]), 1)
    query, key, _ = received[0]
    by_position = query @ key.transpose(-1, -2)
    moved = (by_position[..., :-1, :-1] - by_position[..., 1:, 1:]).abs().max()
    assert moved < 1e-12 if invariant else moved > 1e-2
    assert (by_position[..., 0, :-1] - by_position[..., 0, 1:]).abs().max() > 1e-3


def test_rotary_attention_knows_the_order_of_earlier_tokens(build):
    """Without it a single layer sees a set: the last token's state does not depend on the order before it."""
    model = build(position="rotary", num_layers=1).requires_grad_(False)
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3, 1, 2, 4]])

    def moved() -> float:
        return (model(one, 1)[-1] - model(other, 1)[-1])[:, -1].abs().max().item()

    assert moved() > 1e-3
    model.sublayers[0].branch.rotate = torch.nn.Identity()
    assert moved() < 1e-12
