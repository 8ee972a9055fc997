"""Recomputing activations saves memory and changes nothing else."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models import BetweenConfig, LoopedLM, Supervision, looped_loss


def gradients(model: LoopedLM, tokens: Tensor, targets: Tensor, recompute: bool) -> list[Tensor]:
    model.recompute = recompute
    torch.manual_seed(11)  # the dropout masks
    total = looped_loss(model, tokens, targets, Supervision(), 3).total
    return list(torch.autograd.grad(total, list(model.parameters())))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("between", ["none", "rmsnorm"])
def test_gradients_are_the_same_to_the_bit(build, tokens, targets, dropout, between):
    model = build(dropout=dropout, between=BetweenConfig(kind=between))
    for kept, recomputed in zip(*(gradients(model, tokens, targets, r) for r in (False, True)), strict=True):
        assert torch.equal(kept, recomputed)


class CountProducts(TorchDispatchMode):
    """Counts matrix products, the work that recomputing repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def test_the_stack_is_really_computed_again(build, tokens, targets):
    model = build()
    counts = []
    for recompute in (False, True):
        with CountProducts() as products:
            gradients(model, tokens, targets, recompute)
        counts.append(products.count)
    linear_maps = 3 * 2 * (2 + 3)  # loops x layers x (attention's two, SwiGLU's three)
    # A sublayer's last product is not needed to differentiate it, so torch may stop before it.
    assert linear_maps - 3 * 2 * 2 <= counts[1] - counts[0] <= linear_maps


def test_nothing_is_recomputed_where_no_gradient_is_taken(build, tokens):
    model = build()
    model.recompute = True
    with torch.no_grad():
        assert not model(tokens)[-1].requires_grad
