"""A small looped language model in plain torch: nothing of ours in it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight import LoopedMaps

WIDTH, CLASSES = 24, 40


class Looped(nn.Module):
    """Pre-norm MLP and causal attention in a residual loop, RMSNorm or raw readout, optional norm between loops."""

    def __init__(self, *, normed: bool, between: bool = False, damping: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Embedding(CLASSES, WIDTH)
        self.mix, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        self.normed, self.between, self.damping, self.num_loops = normed, between, damping, 3

    def norm(self, h: Tensor) -> Tensor:
        return F.rms_norm(h.float() if h.dtype in (torch.bfloat16, torch.float16) else h, (WIDTH,), eps=1e-6).to(h)

    def embed(self, tokens: Tensor) -> Tensor:
        return 4.0 * self.table(tokens)

    def step(self, h: Tensor) -> Tensor:
        h = self.damping * (self.norm(h) if self.between else h)
        past = self.norm(h).cumsum(-2) / torch.arange(1, h.shape[-2] + 1, device=h.device, dtype=h.dtype)[:, None]
        h = h + self.mix(past)
        return h + self.down(F.silu(self.up(self.norm(h))))

    def readout(self, h: Tensor) -> Tensor:
        return self.head(self.norm(h) if self.normed else h)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Looped]:
    def make(**options: object) -> Looped:
        torch.manual_seed(0)
        return Looped(**({"normed": True} | options))

    return make


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    return torch.randint(CLASSES, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def as_maps() -> Callable[[Looped], LoopedMaps]:
    def convert(model: Looped) -> LoopedMaps:
        return LoopedMaps(
            embed=model.embed, step=model.step, readout=model.readout, num_loops=model.num_loops, module=model
        )

    return convert
