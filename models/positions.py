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
        self.head_width = head_width
        self.base = base

    def forward(self, x: Float[Tensor, "batch heads time width"]) -> Float[Tensor, "batch heads time width"]:
        # Angles in float64, and no buffer that a change of the model's dtype would round.
        channel = torch.arange(0, self.head_width, 2, device=x.device, dtype=torch.float64)
        time = torch.arange(x.shape[-2], device=x.device, dtype=torch.float64)
        angle = torch.outer(time, self.base ** (-channel / self.head_width))
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
