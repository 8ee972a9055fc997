"""Tiny models of every family: transformers' own classes where it carries them, stand-ins of the same structure else.

The stand-ins keep what an adapter must cope with: names, call order, norms that fall back to float32, loops without
gradient, random initial states, arguments that differ from call to call. They share no code with the originals.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch.set_num_threads(1)

D, VOCAB, EPS = 16, 31, 1e-12  # an epsilon that no verdict can see: the classes are about structure
TINY = dict(vocab_size=VOCAB, hidden_size=D, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32)


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + 0.2 * torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        single = x.float()
        return self.weight * (single * torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + EPS)).type_as(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        turn = positions[: x.shape[1], None].to(x.dtype)
        attended = F.scaled_dot_product_attention(q * turn.cos(), k * turn.cos(), v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 24, bias=False), nn.SiLU(), nn.Linear(24, D, bias=False))


class OuroLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), mlp()
        self.input_layernorm, self.input_layernorm_2 = RMSNorm(), RMSNorm()
        self.post_attention_layernorm, self.post_attention_layernorm_2 = RMSNorm(), RMSNorm()

    def forward(self, hidden_states: Tensor, position_embeddings: Tensor, current_ut: int) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden_states), position_embeddings)
        hidden_states = hidden_states + self.input_layernorm_2(attended)
        return hidden_states + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(hidden_states)))


class OuroModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(VOCAB, D), RMSNorm()
        self.layers = nn.ModuleList(OuroLayer() for _ in range(2))
        self.early_exit_gate, self.total_ut_steps = nn.Linear(D, 1), 4

    def forward(self, input_ids: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        h, positions = self.embed_tokens(input_ids), torch.arange(input_ids.shape[1]).float()
        states, gates = [], []
        for current_ut in range(self.total_ut_steps):
            for layer in self.layers:
                h = layer(h, position_embeddings=positions, current_ut=current_ut)
            h = self.norm(h)
            states.append(h)
            gates.append(self.early_exit_gate(h))
        return h, states, gates


class OuroForCausalLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.lm_head = OuroModel(), nn.Linear(D, VOCAB, bias=False)
        self.config = SimpleNamespace(model_type="ouro", use_cache=True)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, use_cache: bool = True) -> SimpleNamespace:
        assert not use_cache
        last, states, _ = self.model(input_ids)
        logits = self.lm_head(last if labels is None else sum(states))  # with labels: an expectation over exits
        return SimpleNamespace(loss=None, logits=logits)


class SandwichBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (RMSNorm() for _ in range(4))
        self.attn, self.mlp = Attention(), mlp()

    def forward(self, x: Tensor, freqs: Tensor, step_idx: Tensor, mask: None = None, cache: None = None) -> Tensor:
        x = self.norm_2(self.attn(self.norm_1(x), freqs) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class HuginnForCausalLM(nn.Module):
    def __init__(self, test_time_noise: float = 0.0) -> None:
        super().__init__()
        stacks = {name: nn.ModuleList(SandwichBlock() for _ in range(2)) for name in ("prelude", "core_block", "coda")}
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(VOCAB, D), "adapter": nn.Linear(2 * D, D, bias=False), "ln_f": RMSNorm(), **stacks}
        )
        self.lm_head = nn.Linear(D, VOCAB, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        self.register_buffer("freqs_cis", torch.arange(32).float())
        self.config = SimpleNamespace(mean_recurrence=5, test_time_noise=test_time_noise)

    def forward(
        self, input_ids: Tensor, input_states: Tensor | None = None, num_steps: int | None = None
    ) -> dict[str, Tensor]:
        parts, freqs, index = self.transformer, self.freqs_cis, torch.tensor(-1)
        e = parts["wte"](input_ids) * D**0.5
        for block in parts["prelude"]:
            index += 1
            e = block(e, freqs, index, None, None)
        x = torch.randn_like(e) if input_states is None else input_states.clone()
        with torch.no_grad():  # an int of steps is looped without gradient
            for _ in range(num_steps or self.config.mean_recurrence):
                x = parts["adapter"](torch.cat([x, e], dim=-1))
                for block in parts["core_block"]:
                    index += 1
                    x = block(x, freqs, index, None, None)
        x = parts["ln_f"](x)
        for block in parts["coda"]:
            index -= 1
            x = block(x, freqs, index, None, None)
        return {"loss": torch.tensor(0.0), "logits": self.lm_head(parts["ln_f"](x)).float()}


class DiagonalInjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(D)), nn.Parameter(0.2 * torch.ones(D))
        self.B = nn.Parameter(torch.eye(D))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        dt = F.softplus(self.dt_bias)
        return x * torch.exp(-dt * self.A_log.exp()) + dt * (e @ self.B.T)


class PrenormBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.attn, self.mlp = RMSNorm(), RMSNorm(), Attention(), mlp()

    def forward(self, x: Tensor, freqs: Tensor, mask: None = None, ve: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm_1(x), freqs) + (0.0 if ve is None else 0.1 * ve)
        return x + self.mlp(self.norm_2(x))


class Parcae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stacks = {name: nn.ModuleList(PrenormBlock() for _ in range(2)) for name in ("prelude", "core_block", "coda")}
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(VOCAB, D), "adapter": DiagonalInjection(), "C": nn.Linear(D, D, bias=False)}
            | {"ln_prelude": RMSNorm(), "ln_f": RMSNorm(), **stacks}
        )
        self.value_embeds, self.lm_head = nn.Embedding(VOCAB, D), nn.Linear(D, VOCAB, bias=False)
        self.register_buffer("freqs_cis", torch.arange(32).float())

    def forward(self, input_ids: Tensor, return_logits: bool = False) -> dict[str, Tensor | None]:
        parts, e = self.transformer, self.transformer["wte"](input_ids)
        for block in parts["prelude"]:
            e = block(e, self.freqs_cis, None, ve=None)
        e = parts["ln_prelude"](e)
        x = torch.randn_like(e)
        with torch.no_grad():
            for _ in range(6):
                x = parts["adapter"](x, e)
                for block in parts["core_block"]:
                    x = block(x, self.freqs_cis, None, ve=self.value_embeds(input_ids))
        x = parts["C"](x)
        for block in parts["coda"]:
            x = block(x, self.freqs_cis, None, ve=None)
        logits = 10.0 * torch.tanh(self.lm_head(parts["ln_f"](x)).float() / 10.0)
        return {"loss": torch.tensor(0.0), "logits": logits if return_logits else None}


def hrm_text(**changes: int) -> nn.Module:
    from transformers import HrmTextConfig, HrmTextForCausalLM

    sizes = {**TINY, "num_hidden_layers": 2, "head_dim": 8, "H_cycles": 3, "L_cycles": 2, **changes}
    return HrmTextForCausalLM(HrmTextConfig(**sizes, rms_norm_eps=EPS, initializer_range=0.3, embedding_scale=3.0))


def albert(**changes: int) -> nn.Module:
    from transformers import AlbertConfig, AlbertForMaskedLM

    sizes = {**TINY, "embedding_size": 8, "num_hidden_layers": 4, "pad_token_id": 0, **changes}
    return AlbertForMaskedLM(AlbertConfig(**sizes, layer_norm_eps=EPS, initializer_range=0.3))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TINY, num_hidden_layers=3, rms_norm_eps=EPS, initializer_range=0.3))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=2, n_positions=32))


def qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**TINY, num_hidden_layers=2, num_key_value_heads=1, initializer_range=0.3))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "hrm_text": hrm_text,
    "albert": albert,
    "ouro": OuroForCausalLM,
    "huginn": HuginnForCausalLM,
    "parcae": Parcae,
    "llama": llama,
    "gpt2": gpt2,
    "qwen2": qwen2,
}


@pytest.fixture(scope="session")
def build() -> Callable[..., nn.Module]:
    """build("ouro", **changes): that model in evaluation mode and float64, weights from seed 0."""

    def build(name: str, **changes: object) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return MODELS[name](**changes).eval().double()

    return build


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    return torch.randint(1, VOCAB, (2, 5), generator=torch.Generator().manual_seed(0))
