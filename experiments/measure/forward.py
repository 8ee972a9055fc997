"""One pass over held-out tokens, and what every readout on the way says of every token; the tables are made of this."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from experiments.device import autocast
from models import LoopedLM
from models.losses import default_chunk_rows

EVALUATION_BATCH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """What the logits z of a state say, token by token.

    Attributes:
        cross_entropy: nats.
        margin: largest logit less the second largest, in nats (0 where they tie).
        entropy: of softmax(z), nats.
    """

    cross_entropy: Float[Tensor, "*tokens"]
    margin: Float[Tensor, "*tokens"]
    entropy: Float[Tensor, "*tokens"]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Per-token results on held-out windows, on the CPU; index k - 1 of the first dimension is loop k.

    Attributes:
        cross_entropy, margin, entropy: as in `Decoded`, of loop k's own readout.
        l2_norm: |h_k|.
        state_change: |h_k - h_{k-1}| / |h_k|, in [0, inf): what a rule that watches the state alone can see.
        final_states: h_K, K the trained number of loops.
    """

    cross_entropy: Float[Tensor, "loops windows time"]
    margin: Float[Tensor, "loops windows time"]
    entropy: Float[Tensor, "loops windows time"]
    l2_norm: Float[Tensor, "loops windows time"]
    state_change: Float[Tensor, "loops windows time"]
    final_states: Float[Tensor, "windows time d"]

    def mean_cross_entropy(self) -> list[float]:
        """Nats a token after every loop."""
        means: list[float] = self.cross_entropy.double().mean((1, 2)).tolist()
        return means


@torch.no_grad()
def held_out_pass(
    model: LoopedLM,
    windows: Int[Tensor, "windows length"],
    *,
    num_loops: int,
    last_loop: int,
    batch_size: int = EVALUATION_BATCH,
) -> HeldOut:
    """Run `num_loops` loops once and decode after each.

    Args:
        model: in evaluation mode.
        windows: of context + 1 ids.
        num_loops: loops to run.
        last_loop: K; loops from here on are decoded as the last one is, which matters to the readout that
            normalises only there.
        batch_size: windows at a time.
    """
    parts: dict[str, list[Tensor]] = {}
    for batch in windows.split(batch_size):
        batch = batch.to(model.head_weight.device)
        inputs, targets = batch[:, :-1], batch[:, 1:]
        with autocast(inputs.device):
            states = model(inputs, num_loops)
            decoded = [decode(model, h, targets, is_last=k >= last_loop) for k, h in enumerate(states[1:], 1)]
        norms = [h.float().norm(dim=-1) for h in states[1:]]
        changes = [(h - before).float().norm(dim=-1) for before, h in zip(states, states[1:], strict=False)]
        found = {
            "cross_entropy": torch.stack([d.cross_entropy for d in decoded]),
            "margin": torch.stack([d.margin for d in decoded]),
            "entropy": torch.stack([d.entropy for d in decoded]),
            "l2_norm": torch.stack(norms),
            "state_change": torch.stack(changes) / torch.stack(norms),
        }
        for name, value in found.items():
            parts.setdefault(name, []).append(value.cpu())
        parts.setdefault("final_states", []).append(states[last_loop].cpu())
    final_states = torch.cat(parts.pop("final_states"))
    return HeldOut(final_states=final_states, **{name: torch.cat(values, dim=1) for name, values in parts.items()})


@torch.no_grad()
def decode(
    model: LoopedLM, h: Float[Tensor, "*tokens d"], targets: Int[Tensor, "*tokens"], *, is_last: bool
) -> Decoded:
    """Decode states a few hundred rows at a time, so that the logits of no more are ever held.

    Args:
        model: its readout is used, in its own dtype or a wider one of `h`.
        h: states (..., d).
        targets: next-token ids, (...).
        is_last: decode as after the last loop.
    """
    # Without autocast: bfloat16 logits would leave few distinct margins, and errors of the size of a clamp's effect.
    with torch.autocast(h.device.type, enabled=False):
        h = h.to(torch.promote_types(h.dtype, model.head_weight.dtype))
        features = model.readout_features(h, is_last=is_last).reshape(-1, h.shape[-1])
        rows = default_chunk_rows(features.device)
        chunks = zip(features.split(rows), targets.reshape(-1, 1).split(rows), strict=True)
        columns = zip(*(_decode_rows(F.linear(x, model.head_weight), target) for x, target in chunks), strict=True)
    cross_entropy, margin, entropy = (torch.cat(column).view(targets.shape) for column in columns)
    return Decoded(cross_entropy=cross_entropy, margin=margin, entropy=entropy)


@torch.no_grad()
def rescaled_cross_entropy(
    model: LoopedLM,
    states: Float[Tensor, "windows time d"],
    targets: Int[Tensor, "windows time"],
    factors: Sequence[float],
    *,
    batch_size: int = EVALUATION_BATCH,
) -> list[float]:
    """Nats a token of last states multiplied by each factor: all factors together, and no further loop."""
    device = model.head_weight.device
    scales = torch.tensor(factors, dtype=states.dtype, device=device)[:, None, None, None]
    totals = torch.zeros(len(factors), dtype=torch.float64)
    for h, target in zip(states.split(batch_size), targets.split(batch_size), strict=True):
        with autocast(device):
            repeated = target.to(device).expand(len(factors), -1, -1)
            decoded = decode(model, scales * h.to(device), repeated, is_last=True)
        totals += decoded.cross_entropy.flatten(1).double().sum(1).cpu()
    means: list[float] = (totals / targets.numel()).tolist()
    return means


def _decode_rows(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    true_logit = z.gather(1, target).squeeze(1)
    p = torch.softmax(z, 1)
    # The log-partition from the largest probability, which is at least 1 / vocab, so that nothing underflows.
    largest, position = z.max(1, keepdim=True)
    log_partition = (largest - p.gather(1, position).log()).squeeze(1)
    entropy = log_partition - torch.linalg.vecdot(p, z)
    second = z.scatter_(1, position, -torch.inf).amax(1)
    return log_partition - true_logit, largest.squeeze(1) - second, entropy.clamp(min=0.0)
