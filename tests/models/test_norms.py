"""Normalisations against torch's own, each group and each token by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.norms import Norm

EPS = st.sampled_from([0.0, 1e-6, 1e-2, 1.0])
EXPONENTS = st.floats(-3.0, 3.0)
reproducible = settings(derandomize=True, deadline=None, max_examples=20)


def with_random_weights(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for parameter in norm.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return norm.requires_grad_(False)


@given(eps=EPS, exponent=EXPONENTS)
@reproducible
def test_rmsnorm_is_torch_rmsnorm(states, eps, exponent):
    ours, theirs = with_random_weights(Norm("rmsnorm", 12, eps)), with_random_weights(nn.RMSNorm(12, eps))
    h = 10.0**exponent * states
    torch.testing.assert_close(ours(h), theirs(h), rtol=1e-12, atol=1e-12)


@given(eps=EPS, exponent=EXPONENTS)
@reproducible
def test_layernorm_is_torch_layernorm(states, eps, exponent):
    ours, theirs = with_random_weights(Norm("layernorm", 12, eps)), with_random_weights(nn.LayerNorm(12, eps))
    h = 10.0**exponent * states
    torch.testing.assert_close(ours(h), theirs(h), rtol=1e-12, atol=1e-11)


@given(eps=EPS, num_groups=st.sampled_from([2, 3, 4]))
@reproducible
def test_group_rmsnorm_is_torch_rmsnorm_of_each_group(states, eps, num_groups):
    ours = Norm("rmsnorm", 12, eps, affine=False, num_groups=num_groups)
    theirs = nn.RMSNorm(12 // num_groups, eps, elementwise_affine=False)
    expected = torch.cat([theirs(group) for group in states.chunk(num_groups, -1)], -1)
    torch.testing.assert_close(ours(states), expected, rtol=1e-12, atol=1e-12)


@given(eps=EPS, num_groups=st.sampled_from([2, 3, 4]))
@reproducible
def test_group_layernorm_is_torch_groupnorm_of_each_token(states, eps, num_groups):
    ours = with_random_weights(Norm("layernorm", 12, eps, num_groups=num_groups))
    theirs = with_random_weights(nn.GroupNorm(num_groups, 12, eps))
    expected = theirs(states.flatten(0, 1)).view_as(states)
    torch.testing.assert_close(ours(states), expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_one_group_is_the_whole_width(states, kind):
    assert torch.equal(Norm(kind, 12, 1e-2)(states), Norm(kind, 12, 1e-2, num_groups=1)(states))


def other_tokens_move(norm, h: Tensor) -> float:
    changed = h.clone()
    changed[:, 0] *= 10.0
    return (norm(changed) - norm(h))[:, 1:].abs().max().item()


def test_tokens_do_not_mix_but_torch_groupnorm_over_time_mixes_them(states):
    per_token = Norm("layernorm", 12, 0.0, affine=False, num_groups=3)
    over_time = nn.GroupNorm(3, 12, 0.0, affine=False)
    assert other_tokens_move(per_token, states) == 0.0
    assert other_tokens_move(lambda h: over_time(h.transpose(1, 2)).transpose(1, 2), states) > 1e-2


def test_groups_do_not_mix_but_the_whole_norm_mixes_them(states):
    changed = states.clone()
    changed[..., :4] *= 10.0
    for num_groups, mixes in ((3, False), (1, True)):
        norm = Norm("rmsnorm", 12, 0.0, affine=False, num_groups=num_groups)
        moved = (norm(changed) - norm(states))[..., 4:].abs().max()
        assert moved > 1e-2 if mixes else moved == 0.0


def test_epsilon_stands_inside_the_root_beside_the_mean_square():
    h, eps = torch.full((1, 12), 2.0, dtype=torch.float64), 5.0
    torch.testing.assert_close(Norm("rmsnorm", 12, eps)(h), torch.full_like(h, 2 / 9**0.5), rtol=1e-15, atol=0)
    h[:, ::2] *= -1  # mean 0, variance 4
    torch.testing.assert_close(Norm("layernorm", 12, eps)(h), h / 9**0.5, rtol=1e-15, atol=0)


def test_a_zero_state_gives_zero_and_not_nan_when_epsilon_is_positive():
    assert torch.equal(Norm("rmsnorm", 12, 1e-6)(torch.zeros(1, 12)), torch.zeros(1, 12))


def test_layernorm_sees_no_common_shift_for_any_epsilon_and_rmsnorm_does(states):
    def moves(kind):
        norm = Norm(kind, 12, 1.0)
        return (norm(states + 3.0) - norm(states)).abs().max().item()

    assert moves("layernorm") < 1e-14
    assert moves("rmsnorm") > 1e-2


@pytest.mark.parametrize(
    ("kind", "affine", "names"),
    [
        ("rmsnorm", True, ["gain"]),
        ("layernorm", True, ["gain", "bias"]),
        ("rmsnorm", False, []),
        ("layernorm", False, []),
    ],
)
def test_learnable_weights(kind, affine, names):
    norm = Norm(kind, 12, 1e-6, affine=affine)
    assert [name for name, _ in norm.named_parameters()] == names


@pytest.mark.parametrize("affine", [True, False])
def test_autocast_leaves_the_norm_in_float32(affine):
    norm = Norm("rmsnorm", 512, 1e-6, affine=affine)
    h = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(h)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, norm(h), rtol=1e-6, atol=0.0)
