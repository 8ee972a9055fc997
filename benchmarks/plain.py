"""A plain implementation of the same maths, to compare speed and memory with: what one writes first.

Separate projections, hand-written masked attention, normalisation by `pow` and `sqrt`, the logits of all loops kept
until the loss is summed, one synchronisation a loop for the logged norm, and AdamW with its default implementation.
Weights are copied from a `LoopedLM`, so that both sides start from, and must stay at, the same loss.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import LoopedLM, ModelConfig


class PlainNorm(nn.Module):
    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.gain


class PlainLayer(nn.Module):
    mask: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.num_heads = config.num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(d, config.d_hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(config.d_hidden, d, bias=False)
        self.norm1, self.norm2 = (PlainNorm(d, config.norm_eps) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        mask = torch.ones(config.context, config.context, dtype=torch.bool).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def attend(self, x: Tensor) -> Tensor:
        batch, time, d = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, time, self.num_heads, d // self.num_heads).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(self.mask[:time, :time], float("-inf"))
        mixed = scores.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, time, d))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.dropout(self.attend(self.norm1(h)))
        x = self.norm2(h)
        return h + self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


class PlainLoopedLM(nn.Module):
    """RMSNorm or raw readout, tied head, learned positions, nothing between loops."""

    def __init__(self, model: LoopedLM) -> None:
        super().__init__()
        config = model.config
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.num_layers))
        self.norm = PlainNorm(config.d_model, config.norm_eps) if config.readout.gain else nn.Identity()
        self.load_state_dict(plain_state(model))

    def forward(self, tokens: Tensor) -> tuple[list[Tensor], list[float]]:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        h = self.embedding_dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        all_logits, norms = [], []
        for _ in range(self.config.num_loops):
            for layer in self.layers:
                h = layer(h)
            all_logits.append(self.norm(h) @ self.token_embedding.weight.T)
            norms.append(h.norm(dim=-1).mean().item())
        return all_logits, norms


def plain_state(model: LoopedLM) -> dict[str, Tensor]:
    """The weights of a `LoopedLM` under the names of `PlainLoopedLM`."""
    source = model.state_dict()
    state = {
        "token_embedding.weight": source["token_embedding.weight"],
        "position_embedding.weight": source["position_embedding.weight"],
    }
    if "readout_features.norm.gain" in source:
        state["norm.gain"] = source["readout_features.norm.gain"]
    for layer in range(model.config.num_layers):
        attention, swiglu = f"sublayers.{2 * layer}", f"sublayers.{2 * layer + 1}"
        query, key, value = source[f"{attention}.branch.qkv.weight"].chunk(3)
        weights = {
            "query.weight": query,
            "key.weight": key,
            "value.weight": value,
            "out.weight": source[f"{attention}.branch.out.weight"],
            "gate.weight": source[f"{swiglu}.branch.gate.weight"],
            "up.weight": source[f"{swiglu}.branch.up.weight"],
            "down.weight": source[f"{swiglu}.branch.down.weight"],
            "norm1.gain": source[f"{attention}.norm.gain"],
            "norm2.gain": source[f"{swiglu}.norm.gain"],
        }
        state |= {f"layers.{layer}.{name}": weight for name, weight in weights.items()}
    return state


def plain_loss(model: PlainLoopedLM, tokens: Tensor, targets: Tensor) -> Tensor:
    """Per-loop cross-entropy, averaged."""
    all_logits, _ = model(tokens)
    losses = [F.cross_entropy(logits.flatten(0, 1), targets.flatten()) for logits in all_logits]
    return torch.stack(losses).mean()
