"""Normalisations over the last dimension, whole or in groups of channels.

Convention: epsilon is added to the mean square (variance), inside the square root.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.config import NormKind


def rms_normalise(h: Float[Tensor, "*batch d"], eps: float) -> Float[Tensor, "*batch d"]:
    """h / sqrt(mean(h^2) + eps): invariant under h -> c h up to the leak rho = eps / (mean(h^2) + eps)."""
    # F.rms_norm is slower than this on CPU, and its default eps depends on the dtype.
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def layer_normalise(h: Float[Tensor, "*batch d"], eps: float) -> Float[Tensor, "*batch d"]:
    """RMS normalisation of the centred state: also invariant under h -> h + t 1, for any eps."""
    return rms_normalise(h - h.mean(-1, keepdim=True), eps)


class Norm(nn.Module):
    """A normalisation with an optional elementwise gain (and bias, for LayerNorm).

    Args:
        kind: `rmsnorm` or `layernorm`.
        d: width of the last dimension.
        eps: added to the mean square.
        affine: learnable gain of shape (d,), and bias of shape (d,) for `layernorm`.
        num_groups: the width is split into this many equal groups, each normalised by itself, every token alone
            (unlike `torch.nn.GroupNorm`, which mixes the tokens of a (batch, channel, time) tensor).
    """

    def __init__(self, kind: NormKind, d: int, eps: float, *, affine: bool = True, num_groups: int = 1) -> None:
        super().__init__()
        self.normalise = rms_normalise if kind == "rmsnorm" else layer_normalise
        self.eps = eps
        self.num_groups = num_groups
        self.gain = nn.Parameter(torch.ones(d)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d)) if affine and kind == "layernorm" else None

    def forward(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        if self.num_groups == 1:
            y = self.normalise(h, self.eps)
        else:
            y = self.normalise(h.unflatten(-1, (self.num_groups, -1)), self.eps).flatten(-2)
        if self.gain is not None:
            y = y * self.gain
        return y if self.bias is None else y + self.bias
