"""Small models in float64, the same on every run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models import LoopedLM, ModelConfig

torch.set_num_threads(1)

Build = Callable[..., LoopedLM]

SMALL = dict(d_model=12, num_layers=2, num_heads=3, vocab_size=17, context=10, num_loops=3)


@pytest.fixture(scope="session")
def build() -> Build:
    """build(seed=0, **changes to SMALL): a model whose gains and biases are not the trivial ones and zeros."""

    def build(seed: int = 0, **changes: object) -> LoopedLM:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LoopedLM(ModelConfig(**{**SMALL, **changes})).double()  # type: ignore[arg-type]
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter += 0.3 * torch.randn_like(parameter)
        return model

    return build


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    return torch.randint(17, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def targets() -> Tensor:
    return torch.randint(17, (2, 7), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def states() -> Tensor:
    return torch.randn(2, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
