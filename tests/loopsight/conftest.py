import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def h() -> Tensor:
    """Seven tokens' states of width 12, of very different scales."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-1, 1, 7, dtype=torch.float64)[:, None]
    return scales * torch.randn(7, 12, dtype=torch.float64, generator=generator)
