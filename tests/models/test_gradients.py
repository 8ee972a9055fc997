"""Gradients of a tiny model against central finite differences, in float64: of every weight of the paper's model under
the training loss, along a random direction of all weights for the others."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from models import BetweenConfig, LoopedLM, ReadoutConfig, Supervision, looped_loss

TINY = dict(d_model=4, num_layers=1, num_heads=2, vocab_size=5, context=3, num_loops=2, norm_eps=1e-3)
TOKENS = torch.tensor([[0, 3, 1], [4, 4, 2]])
TARGETS = torch.tensor([[3, 1, 2], [4, 2, 0]])


class PlainLoss(nn.Module):
    def __init__(self, model: LoopedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        logits = self.model.readout(self.model(TOKENS)[-1])
        return F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten())


class TrainingLoss(PlainLoss):
    def forward(self) -> Tensor:
        return looped_loss(self.model, TOKENS, TARGETS, Supervision(norm_penalty=0.1)).total


@pytest.mark.parametrize("loss", [PlainLoss, TrainingLoss])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(readout=ReadoutConfig(kind="raw", gain=False, tied=False), position="rotary", qk_norm=True),
        dict(
            block_norm="layernorm",
            between=BetweenConfig(kind="rmsnorm"),
            readout=ReadoutConfig(kind="layernorm"),
        ),
    ],
    ids=["paper", "raw_untied_rotary_qk_norm", "layernorm_between_rmsnorm"],
)
def test_gradients_equal_finite_differences(build, loss, changes):
    module = loss(build(**TINY, **changes))
    names = [name for name, _ in module.named_parameters()]
    weights = tuple(p.detach().requires_grad_() for _, p in module.named_parameters())

    def value(*weights: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, weights, strict=True)), ())

    every_weight = loss is TrainingLoss and not changes  # slow
    assert torch.autograd.gradcheck(value, weights, eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=not every_weight)
