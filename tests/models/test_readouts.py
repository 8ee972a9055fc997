"""Each readout is the normalisation its name says, from torch's own modules, then the head."""

import pytest
import torch
from readouts import KINDS, readout_of
from torch import Tensor, nn

from models import ReadoutConfig


def grouped(norm: nn.Module, h: Tensor) -> Tensor:
    return torch.cat([norm(group) for group in h.chunk(3, -1)], -1)


EPS = 0.1
WITHOUT_GAIN = {
    "rmsnorm": nn.RMSNorm(12, EPS, elementwise_affine=False),
    "layernorm": nn.LayerNorm(12, EPS, elementwise_affine=False),
    "group_rmsnorm": lambda h: grouped(nn.RMSNorm(4, EPS, elementwise_affine=False), h),
    "group_layernorm": lambda h: grouped(nn.LayerNorm(4, EPS, elementwise_affine=False), h),
}
ELSEWHERE = ("raw", "raw_final_rmsnorm")  # have tests of their own, here and in test_states.py


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ELSEWHERE])
def test_logits_are_head_times_gain_times_the_normalised_state(build, states, kind, gain, tied):
    assert kind in WITHOUT_GAIN, f"add what {kind} does to WITHOUT_GAIN in tests/models/test_readouts.py"
    model = build(readout=readout_of(kind, gain=gain, tied=tied), norm_eps=EPS)
    features = WITHOUT_GAIN[kind](states)
    weights = dict(model.readout_features.named_parameters())
    if gain:
        assert weights.keys() == ({"norm.gain", "norm.bias"} if kind.endswith("layernorm") else {"norm.gain"})
        features = features * weights["norm.gain"] + weights.get("norm.bias", 0.0)
    else:
        assert not weights
    head = model.token_embedding.weight if tied else model.head.weight
    torch.testing.assert_close(model.readout(states), features @ head.T, rtol=1e-12, atol=1e-12)


def test_a_raw_readout_is_the_head_alone(build, states):
    model = build(readout=ReadoutConfig(kind="raw", gain=False))
    assert not list(model.readout_features.parameters())
    torch.testing.assert_close(model.readout(states), states @ model.head_weight.T, rtol=1e-12, atol=1e-12)
