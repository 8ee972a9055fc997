"""One loop is an ordinary pre-norm transformer, assembled here from torch's own modules; K loops apply it K times."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import LoopedLM, ReadoutConfig

NORMS = {"rmsnorm": nn.RMSNorm, "layernorm": nn.LayerNorm}


class TorchTransformer(nn.Module):
    """Pre-norm decoder with SwiGLU, learned positions, tied head; `copied` pairs its weights with the model's."""

    def __init__(self, model: LoopedLM) -> None:
        super().__init__()
        config = model.config
        d, eps, norm = config.d_model, config.norm_eps, NORMS[config.block_norm]
        self.tokens, self.positions = nn.Embedding(config.vocab_size, d), nn.Embedding(config.context, d)
        self.final_norm = NORMS[config.readout.kind](d, eps)
        self.copied = [
            (self.tokens.weight, model.token_embedding.weight),
            (self.positions.weight, model.position_embedding.weight),
            *pair_norm(self.final_norm, model.readout_features.norm),
        ]
        self.layers = nn.ModuleList()
        for ours_attention, ours_mlp in zip(model.sublayers[::2], model.sublayers[1::2], strict=True):
            layer = nn.ModuleDict(
                {
                    "norm1": norm(d, eps),
                    "attention": nn.MultiheadAttention(d, config.num_heads, bias=False, batch_first=True),
                    "norm2": norm(d, eps),
                    "gate": nn.Linear(d, 4 * d, bias=False),
                    "up": nn.Linear(d, 4 * d, bias=False),
                    "down": nn.Linear(4 * d, d, bias=False),
                }
            )
            self.layers.append(layer)
            self.copied += pair_norm(layer["norm1"], ours_attention.norm)
            self.copied += pair_norm(layer["norm2"], ours_mlp.norm)
            self.copied += [
                (layer["attention"].in_proj_weight, ours_attention.branch.qkv.weight),
                (layer["attention"].out_proj.weight, ours_attention.branch.out.weight),
                *((layer[name].weight, getattr(ours_mlp.branch, name).weight) for name in ("gate", "up", "down")),
            ]
        for theirs, ours in self.copied:
            theirs.data = ours.detach().clone()

    def forward(self, tokens: Tensor, num_loops: int) -> Tensor:
        time = tokens.shape[1]
        mask = torch.ones(time, time, dtype=torch.bool).triu(1)  # True: may not attend
        h = self.tokens(tokens) + self.positions(torch.arange(time))
        for layer in [*self.layers] * num_loops:
            x = layer["norm1"](h)
            h = h + layer["attention"](x, x, x, attn_mask=mask, need_weights=False)[0]
            x = layer["norm2"](h)
            h = h + layer["down"](F.silu(layer["gate"](x)) * layer["up"](x))
        return self.final_norm(h) @ self.tokens.weight.T


def pair_norm(theirs: nn.Module, ours: nn.Module) -> list[tuple[Tensor, Tensor]]:
    pairs = [(theirs.weight, ours.gain)]
    return pairs if ours.bias is None else [*pairs, (theirs.bias, ours.bias)]


@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_logits_and_gradients_equal_those_of_torch_modules(build, tokens, targets, norm, num_loops):
    ours = build(block_norm=norm, readout=ReadoutConfig(kind=norm), norm_eps=1e-3)
    theirs = TorchTransformer(ours)
    assert len(theirs.copied) == len(list(ours.parameters()))  # every weight of ours has its partner

    our_logits = ours.readout(ours(tokens, num_loops)[-1])
    their_logits = theirs(tokens, num_loops)
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-12, atol=1e-12)

    for logits in (our_logits, their_logits):
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    for theirs_weight, our_weight in theirs.copied:
        assert our_weight.grad.norm() > 0
        torch.testing.assert_close(our_weight.grad, theirs_weight.grad, rtol=1e-11, atol=1e-12)


def test_another_number_of_loops_gives_other_logits(build, tokens):
    ours = build()
    theirs = TorchTransformer(ours)
    assert (ours.readout(ours(tokens, 1)[-1]) - theirs(tokens, 2)).abs().max() > 1e-2
