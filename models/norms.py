"""Normalisations over the last dimension, whole or in groups of channels.

Convention: epsilon is added to the mean square (variance), inside the square root.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.config import NormKind
from models.inplace import times_


def rms_normalise(h: Float[Tensor, "*batch d"], eps: float) -> Float[Tensor, "*batch d"]:
    """h / sqrt(mean(h^2) + eps): invariant under h -> c h up to the leak rho = eps / (mean(h^2) + eps)."""
    # F.rms_norm is slower than this on CPU, and its default eps depends on the dtype.
    return h * _inverse_rms(h, eps)


def _inverse_rms(h: Tensor, eps: float) -> Tensor:
    # vecdot is the faster on CPU; autocast would take it in bfloat16, and lose the norm's third digit.
    autocast = torch.is_autocast_enabled(h.device.type)
    mean_square = h.square().mean(-1) if autocast else torch.linalg.vecdot(h, h) / h.shape[-1]
    return torch.rsqrt(mean_square.unsqueeze(-1) + eps)


class _GainedRMS(torch.autograd.Function):
    """gain h / sqrt(mean(h^2) + eps), keeping h and the gain only: half the passes over h that autograd would make.

    Differentiable in both modes and to any order, and under `torch.func`, since the instruments need that.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, gain: Tensor, eps: float) -> Tensor:
        return times_(h * _inverse_rms(h, eps), gain)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        h, gain, ctx.eps = inputs
        ctx.save_for_backward(h, gain)
        ctx.save_for_forward(h, gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        h, gain = ctx.saved_tensors
        r = _inverse_rms(h, ctx.eps)
        product = (grad * h).to(gain.dtype)
        radial = (product @ gain).unsqueeze(-1) * r**3 / h.shape[-1]
        grad_gain = r.reshape(-1).to(gain.dtype) @ product.reshape(-1, h.shape[-1])
        if torch.is_grad_enabled():  # to be differentiated again
            return (grad * r * gain - h * radial).to(h.dtype), grad_gain, None
        return (grad * r).mul_(gain).sub_(h * radial).to(h.dtype), grad_gain, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, gain_tangent: Tensor | None, _: None) -> Tensor:
        h, gain = ctx.saved_tensors
        r = _inverse_rms(h, ctx.eps)
        y_tangent = (tangent * r - h * (r**3 * (h * tangent).mean(-1, keepdim=True))) * gain
        return y_tangent if gain_tangent is None else y_tangent + h * r * gain_tangent


class Norm(nn.Module):
    """A normalisation with an optional elementwise gain (and bias, for LayerNorm).

    Args:
        kind: `rmsnorm`, or `layernorm`: the same of the centred state, so also invariant under h -> h + t 1.
        d: width of the last dimension.
        eps: added to the mean square.
        affine: learnable gain of shape (d,), and bias of shape (d,) for `layernorm`.
        num_groups: the width is split into this many equal groups, each normalised by itself, every token alone
            (unlike `torch.nn.GroupNorm`, which mixes the tokens of a (batch, channel, time) tensor).
    """

    def __init__(self, kind: NormKind, d: int, eps: float, *, affine: bool = True, num_groups: int = 1) -> None:
        super().__init__()
        self.centred = kind == "layernorm"
        self.eps = eps
        self.num_groups = num_groups
        self.gain = nn.Parameter(torch.ones(d)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d)) if affine and kind == "layernorm" else None

    def forward(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        x = h if self.num_groups == 1 else h.unflatten(-1, (self.num_groups, -1))
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        if self.gain is None:
            y = rms_normalise(x, self.eps).view_as(h)
        elif self.num_groups == 1 and not torch.compiler.is_compiling():
            # A compiler fuses the plain form by itself, and would cut its graph at a function with a jvp.
            y = _GainedRMS.apply(x, self.gain, self.eps)
        else:
            y = rms_normalise(x, self.eps).view_as(h) * self.gain
        return y if self.bias is None else y + self.bias
