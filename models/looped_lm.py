"""The looped language model. It is three maps, and the loop over k stands here and nowhere else:

embed    tokens -> h_0
step     h_k -> h_{k+1}, the block stack after the operation between loops (Phi = F o N)
readout  h_k -> logits

N acts at the entrance of every loop, the first included, so that one map Phi serves every k.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.between import build_between
from models.block import Attention, Residual, SwiGLU
from models.config import ModelConfig
from models.readouts import build_readout


class LoopedLM(nn.Module):
    """A causal decoder whose one stack of pre-norm layers is applied K times (arXiv 2606.24898, section 3).

    Args:
        config: architecture; the weights are initialised from torch's global random state.

    Attributes:
        sublayers: the residual steps of the stack in order, two a layer, each a map from state to state.
        recompute: recompute each sublayer in the backward pass instead of keeping its activations; off at first,
            for a trainer that is short of memory to turn on.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model) if config.position == "learned" else None
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.sublayers = nn.ModuleList(
            Residual(branch(config), config) for _ in range(config.num_layers) for branch in (Attention, SwiGLU)
        )
        self.recompute = False
        self.between = build_between(config)
        self.readout_features = build_readout(config)
        self.head = None if config.readout.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        for embedding in (self.token_embedding, self.position_embedding):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=config.embedding_std)

    @property
    def head_weight(self) -> Float[Tensor, "vocab d"]:
        """Weight of the head: the token embedding's own tensor when tied."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def embed(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d"]:
        """h_0 of token ids of shape (batch, time), dtype int64 or int32.

        Raises:
            ValueError: more tokens in a row than the learned positions cover.
        """
        h = self.token_embedding(tokens)
        if self.position_embedding is not None:
            time = tokens.shape[-1]
            if time > self.config.context:
                raise ValueError(f"{time} tokens in a row, but learned positions end at {self.config.context}.")
            h = h + self.position_embedding.weight[:time]
        return self.embedding_dropout(self.config.embedding_multiplier * h)

    def step(self, h: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        """One loop, Phi: h_k to h_{k+1}."""
        h = self.between(h)
        recompute = self.recompute and torch.is_grad_enabled()
        for sublayer in self.sublayers:
            h = checkpoint(sublayer, h, use_reentrant=False) if recompute else sublayer(h)
        return h

    def readout(self, h: Float[Tensor, "*batch d"], *, is_last: bool = True) -> Float[Tensor, "*batch vocab"]:
        """Logits of a state. `is_last` matters to the readout that normalises only after the last loop."""
        return F.linear(self.readout_features(h, is_last=is_last), self.head_weight)

    def forward(
        self, tokens: Int[Tensor, "batch time"], num_loops: int | None = None
    ) -> tuple[Float[Tensor, "batch time d"], ...]:
        """The states (h_0, ..., h_K), each (batch, time, d), before any normalisation by N or a readout.

        Args:
            tokens: token ids, (batch, time).
            num_loops: K, any number from 0 up; the trained count when not given.
        """
        num_loops = self.config.num_loops if num_loops is None else num_loops
        if num_loops < 0:
            raise ValueError(f"num_loops must not be negative, got {num_loops}.")
        states = [self.embed(tokens)]
        for _ in range(num_loops):
            states.append(self.step(states[-1]))
        return tuple(states)

    @torch.no_grad()
    def num_parameters(self) -> int:
        """Number of trainable scalars; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
