"""The two residual branches of the shared stack: causal attention and SwiGLU. No biases, as in the paper."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.config import ModelConfig
from models.inplace import times_
from models.norms import Norm
from models.positions import Rotary


class Attention(nn.Module):
    """Causal multi-head self-attention; one projection makes queries, keys and values, in this order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, head_width = config.d_model, config.d_model // config.num_heads
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.query_norm = Norm("rmsnorm", head_width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = Norm("rmsnorm", head_width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.rotate = Rotary(head_width) if config.position == "rotary" else nn.Identity()

    def forward(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        # Unbound before the transposition: the backward pass then stacks the three gradients in one copy, not in two.
        query, key, value = (t.transpose(1, 2) for t in self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2))
        query, key = self.rotate(self.query_norm(query)), self.rotate(self.key_norm(key))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class _GatedDown(torch.autograd.Function):
    """weight (silu(gate) up), keeping gate and up only: autograd alone would keep silu(gate) and the product as well.

    The backward pass needs silu(gate) anyway, so it costs one product more. Differentiable in both modes and to any
    order, and under `torch.func`, since the instruments need that.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        return F.linear(times_(F.silu(gate), up), weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, weight = ctx.saved_tensors
        # One exponential for silu and its derivative; silu_backward would make another, the dearest pass of all (and in
        # bfloat16 round once less).
        sigmoid = torch.sigmoid(gate)
        activated = gate * sigmoid
        grad_product = grad @ weight.to(grad.dtype)
        grad_up = grad_product * activated
        if torch.is_grad_enabled():  # to be differentiated again
            grad_gate, product = grad_product * up * _silu_derivative(gate), activated * up
        else:
            derivative = sigmoid.lerp_(sigmoid.new_ones(()), activated)  # sigmoid + silu (1 - sigmoid)
            grad_gate, product = grad_product.mul_(up).mul_(derivative), times_(activated, up)
        rows = grad.reshape(-1, grad.shape[-1])
        return grad_gate, grad_up, (rows.T @ product.reshape(-1, up.shape[-1])).to(weight.dtype)

    @staticmethod
    def jvp(ctx: Any, gate_tangent: Tensor, up_tangent: Tensor, weight_tangent: Tensor | None) -> Tensor:
        gate, up, weight = ctx.saved_tensors
        activated = F.silu(gate)
        product_tangent = gate_tangent * up * _silu_derivative(gate) + activated * up_tangent
        tangent = F.linear(product_tangent, weight)
        return tangent if weight_tangent is None else tangent + F.linear(activated * up, weight_tangent)


def _silu_derivative(x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_hidden, bias=False)
        self.up = nn.Linear(config.d_model, config.d_hidden, bias=False)
        self.down = nn.Linear(config.d_hidden, config.d_model, bias=False)

    def forward(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        # Gate and up stay two projections: splitting one would concatenate their gradients again.
        gate, up = self.gate(x), self.up(x)
        if torch.compiler.is_compiling():  # see Norm
            return self.down(F.silu(gate) * up)
        return _GatedDown.apply(gate, up, self.down.weight)


class Residual(nn.Module):
    """One residual step ("sublayer") h -> h + branch(norm(h)): the unit in which the theory's identities telescope."""

    def __init__(self, branch: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.norm = Norm(config.block_norm, config.d_model, config.norm_eps)
        self.branch = branch
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        return h + self.dropout(self.branch(self.norm(h)))
