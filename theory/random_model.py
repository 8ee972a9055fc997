"""A random looped language model in pure float64 functions of its parameters: the propositions' laboratory.

It shares nothing with `models/`, so that a theorem checked here and there has been checked twice. Everything is a
function of a dictionary of tensors, as `torch.func` likes it, and the residual steps ("sublayers") are separate, as
the identities need them. A tensor `eps` in that dictionary takes the place of the architecture's epsilon in every
normalisation of a state (in QK-norm it does not), so that a loss can be differentiated by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loopsight.protocol import unroll
from loopsight.responses import StateMap

Parameters = Mapping[str, Tensor]
ReadoutName = Literal["rmsnorm", "layernorm", "group_rmsnorm", "raw", "tanh"]
BetweenName = Literal["none", "rmsnorm", "damping"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What to draw. Impossible combinations are refused by `random_model`.

    Attributes:
        seed: of parameters, tokens and labels.
        d, heads, layers, loops, vocab, tokens, batch: sizes; `heads` divides `d`.
        block_norm: normalisation at the input of every residual branch, with gain.
        readout: `raw`, a normalised one, or `tanh` (visible at every scale, homogeneous at none).
        between: operation at the entrance of every loop.
        damping: factor, for `between="damping"`.
        tied: the head is the token embedding.
        gain: learnable gain in the readout.
        biases: biases on the branches' output maps and on the head.
        qk_norm: RMS-normalised queries and keys.
        eps: epsilon of every normalisation.
        embedding_std: of token and position embeddings: sets the scale of h_0.
        spread: ratio of the largest to the smallest token's h_0.
    """

    seed: int = 0
    d: int = 12
    heads: int = 2
    layers: int = 2
    loops: int = 3
    vocab: int = 9
    tokens: int = 5
    batch: int = 2
    block_norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    readout: ReadoutName = "rmsnorm"
    between: BetweenName = "none"
    damping: float = 0.88
    tied: bool = False
    gain: bool = True
    biases: bool = False
    qk_norm: bool = False
    eps: float = 0.0
    embedding_std: float = 1.0
    spread: float = 1.0


GROUPS = 3  # of the grouped readout


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """Pure functions of `parameters`; every method takes other parameters of the same names and shapes instead."""

    architecture: Architecture
    parameters: dict[str, Tensor]
    inputs: Int[Tensor, "batch tokens"]
    labels: Int[Tensor, "batch tokens"]

    def embed(self, parameters: Parameters | None = None) -> Float[Tensor, "batch tokens d"]:
        """h_0 of the drawn tokens."""
        p = self.parameters if parameters is None else parameters
        h = p["token_embedding"][self.inputs] + p["position_embedding"]
        spread = self.architecture.spread ** torch.linspace(0.0, 1.0, self.architecture.tokens, dtype=torch.float64)
        return h * spread[:, None]

    def between(self, parameters: Parameters | None = None) -> StateMap:
        """N, the operation at the entrance of every loop."""
        p, a = self.parameters if parameters is None else parameters, self.architecture
        if a.between == "rmsnorm":
            return lambda h: rms_normalise(h, p.get("eps", a.eps)) * p["between.gain"]
        return (lambda h: a.damping * h) if a.between == "damping" else (lambda h: h)

    def sublayers(self, parameters: Parameters | None = None) -> list[StateMap]:
        """The residual steps h -> h + branch(norm(h)) of one loop, attention and MLP in turn, without N."""
        p = self.parameters if parameters is None else parameters
        steps: list[StateMap] = []
        for layer in range(self.architecture.layers):
            steps.append(self._residual(p, f"{layer}.attention", self._attention))
            steps.append(self._residual(p, f"{layer}.mlp", self._mlp))
        return steps

    def step(self, parameters: Parameters | None = None) -> StateMap:
        """Phi: one loop, from decoded state to decoded state."""
        maps = [self.between(parameters), *self.sublayers(parameters)]

        def run(h: Tensor) -> Tensor:
            for residual in maps:
                h = residual(h)
            return h

        return run

    def readout(self, parameters: Parameters | None = None) -> StateMap:
        """State to logits."""
        p, a = self.parameters if parameters is None else parameters, self.architecture
        head = p["token_embedding"] if a.tied else p["head"]

        def read(h: Tensor) -> Tensor:
            y = _readout_norm(h, a, p.get("eps", a.eps))
            y = y * p["readout.gain"] if a.gain else y
            return y @ head.T + (p["head.bias"] if a.biases else 0.0)

        return read

    def states(self, parameters: Parameters | None = None) -> tuple[Tensor, ...]:
        """h_0, ..., h_K."""
        return unroll(self.step(parameters), self.embed(parameters), self.architecture.loops)

    def cross_entropy(self, logits: Float[Tensor, "batch tokens vocab"]) -> Float[Tensor, ""]:
        """Mean over tokens, nats."""
        return F.cross_entropy(logits.flatten(0, 1), self.labels.flatten())

    def loss(self, parameters: Parameters | None = None, weights: tuple[float, ...] | None = None) -> Tensor:
        """sum_k w_k CE(readout(h_k)), k = 1..K; uniform weights when none are given."""
        loops = self.architecture.loops
        weights = (1.0 / loops,) * loops if weights is None else weights
        read, states = self.readout(parameters), self.states(parameters)[1:]
        losses = [w * self.cross_entropy(read(h)) for w, h in zip(weights, states, strict=True)]
        return torch.stack(losses).sum()

    def _residual(self, p: Parameters, name: str, branch: Callable[[Parameters, str, Tensor], Tensor]) -> StateMap:
        a = self.architecture
        normalise = rms_normalise if a.block_norm == "rmsnorm" else layer_normalise
        return lambda h: h + branch(p, name, normalise(h, p.get("eps", a.eps)) * p[f"{name}.gain"])

    def _attention(self, p: Parameters, name: str, x: Tensor) -> Tensor:
        a = self.architecture
        query, key, value = ((x @ p[f"{name}.{w}"].T).unflatten(-1, (a.heads, -1)).transpose(-3, -2) for w in "qkv")
        if a.qk_norm:
            query, key = rms_normalise(query, a.eps), rms_normalise(key, a.eps)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        mask = torch.ones(a.tokens, a.tokens, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(mask, -torch.inf).softmax(-1) @ value
        return mixed.transpose(-3, -2).flatten(-2) @ p[f"{name}.out"].T + (p[f"{name}.bias"] if a.biases else 0.0)

    def _mlp(self, p: Parameters, name: str, x: Tensor) -> Tensor:
        hidden = F.silu(x @ p[f"{name}.gate"].T) * (x @ p[f"{name}.up"].T)
        return hidden @ p[f"{name}.down"].T + (p[f"{name}.bias"] if self.architecture.biases else 0.0)


def rms_normalise(h: Float[Tensor, "*batch d"], eps: float | Float[Tensor, ""]) -> Float[Tensor, "*batch d"]:
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def layer_normalise(h: Float[Tensor, "*batch d"], eps: float | Float[Tensor, ""]) -> Float[Tensor, "*batch d"]:
    return rms_normalise(h - h.mean(-1, keepdim=True), eps)


def _readout_norm(h: Tensor, a: Architecture, eps: float | Tensor) -> Tensor:
    match a.readout:
        case "raw":
            return h
        case "tanh":
            return torch.tanh(h)
        case "rmsnorm":
            return rms_normalise(h, eps)
        case "layernorm":
            return layer_normalise(h, eps)
        case "group_rmsnorm":
            return rms_normalise(h.unflatten(-1, (GROUPS, -1)), eps).flatten(-2)


def random_model(architecture: Architecture) -> RandomModel:
    """Draw parameters, tokens and labels.

    Raises:
        ValueError: `heads` does not divide `d`, or the groups of a grouped readout do not.
    """
    a = architecture
    if a.d % a.heads or (a.readout == "group_rmsnorm" and a.d % GROUPS):
        raise ValueError(f"d={a.d} must be a multiple of heads={a.heads}, and of {GROUPS} for a grouped readout.")
    generator = torch.Generator().manual_seed(a.seed)

    def draw(*shape: int, std: float) -> Tensor:
        return std * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def gain() -> Tensor:
        return 1.0 + draw(a.d, std=0.2)

    fan_in, hidden = a.d**-0.5, 2 * a.d
    p = {
        "token_embedding": draw(a.vocab, a.d, std=a.embedding_std),
        "position_embedding": draw(a.tokens, a.d, std=a.embedding_std),
    }
    for layer in range(a.layers):
        attention, mlp = f"{layer}.attention", f"{layer}.mlp"
        p |= {f"{attention}.gain": gain(), f"{mlp}.gain": gain()}
        p |= {f"{attention}.{w}": draw(a.d, a.d, std=fan_in) for w in ("q", "k", "v", "out")}
        p |= {f"{mlp}.{w}": draw(hidden, a.d, std=fan_in) for w in ("gate", "up")}
        p[f"{mlp}.down"] = draw(a.d, hidden, std=hidden**-0.5)
        if a.biases:
            p |= {f"{attention}.bias": draw(a.d, std=0.3), f"{mlp}.bias": draw(a.d, std=0.3)}
    if a.between == "rmsnorm":
        p["between.gain"] = gain()
    if a.gain:
        p["readout.gain"] = gain()
    if not a.tied:
        p["head"] = draw(a.vocab, a.d, std=fan_in)
    if a.biases:
        p["head.bias"] = draw(a.vocab, std=0.3)
    ids = torch.randint(a.vocab, (2, a.batch, a.tokens), generator=generator)
    return RandomModel(architecture=a, parameters=p, inputs=ids[0], labels=ids[1])
