"""The two residual branches of the shared stack: causal attention and SwiGLU. No biases, as in the paper."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.config import ModelConfig
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
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        query, key = self.rotate(self.query_norm(query)), self.rotate(self.key_norm(key))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_hidden, bias=False)
        self.up = nn.Linear(config.d_model, config.d_hidden, bias=False)
        self.down = nn.Linear(config.d_hidden, config.d_model, bias=False)

    def forward(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        # Gate and up stay two projections: splitting one would concatenate their gradients again.
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """One residual step ("sublayer") h -> h + branch(norm(h)): the unit in which the theory's identities telescope."""

    def __init__(self, branch: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.norm = Norm(config.block_norm, config.d_model, config.norm_eps)
        self.branch = branch
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        return h + self.dropout(self.branch(self.norm(h)))
