"""No tensor ever holds the logits of all loops, nor more rows of them than a chunk."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import LoopedLM, Supervision, chunked_cross_entropy, looped_loss

VOCAB, LOOPS, ROWS, CHUNK = 301, 4, 8 * 48, 256  # of one thread


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def plain_loss(model: LoopedLM, tokens: Tensor, targets: Tensor) -> Tensor:
    logits = model.readout(torch.cat(model(tokens)[1:]))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten().repeat(LOOPS))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    both = torch.randint(VOCAB, (2, 8, 48), generator=torch.Generator().manual_seed(0))
    return both[0], both[1]


def test_training_holds_a_chunk_of_logits_and_the_plain_loss_holds_all(build, batch):
    model = build(vocab_size=VOCAB, context=48, num_loops=LOOPS)
    with LargestTensor() as chunked:
        looped_loss(model, *batch, Supervision()).total.backward()
    with LargestTensor() as plain:
        plain_loss(model, *batch).backward()
    assert chunked.elements == CHUNK * VOCAB
    assert plain.elements == LOOPS * ROWS * VOCAB


@pytest.mark.parametrize("chunk_rows", [16, 100])
def test_the_chunk_size_sets_the_largest_tensor(chunk_rows):
    features = torch.randn(500, 4, requires_grad=True)
    head = torch.randn(VOCAB, 4, requires_grad=True)
    with LargestTensor() as largest:
        total, _ = chunked_cross_entropy(
            features, head, torch.zeros(500, dtype=torch.int64), torch.ones(500), chunk_rows
        )
        total.backward()
    assert largest.elements == chunk_rows * VOCAB


class Operations(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("grad_mode", "products"), [(False, 1), (True, 3)])
def test_without_grad_mode_no_gradient_is_made_though_the_weights_are_trainable(grad_mode, products):
    features, head = torch.randn(10, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    with torch.set_grad_enabled(grad_mode), Operations() as operations:
        chunked_cross_entropy(features, head, torch.zeros(10, dtype=torch.int64), torch.ones(10))
    assert sum(name in ("mm", "addmm_", "addmm") for name in operations.names) == products
