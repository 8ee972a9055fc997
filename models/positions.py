"""Rotary position encoding (Su et al., arXiv 2104.09864): pairs of channels turn with position."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Rotary(nn.Module):
    """Rotates queries or keys; the pairs are channels (i, i + head_width / 2).

    Args:
        head_width: even width of one attention head.
        base: the slowest pair turns by one radian every `base` positions (about).
    """

    def __init__(self, head_width: int, base: float = 10_000.0) -> None:
        super().__init__()
        exponent = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
        self.register_buffer("frequencies", base**-exponent, persistent=False)

    def forward(self, x: Float[Tensor, "batch heads time width"]) -> Float[Tensor, "batch heads time width"]:
        assert isinstance(self.frequencies, Tensor)
        time = torch.arange(x.shape[-2], device=x.device, dtype=self.frequencies.dtype)
        angle = torch.outer(time, self.frequencies)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
