"""Does the trained model use the growth of its norm? Cross-entropy after K loops with that growth clamped away."""

from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from experiments.device import autocast
from experiments.measure.context import Context
from experiments.measure.forward import EVALUATION_BATCH, decode
from experiments.measure.statistics import bootstrap_interval
from loopsight import unroll
from models import LoopedLM

Clamp = Callable[[LoopedLM, Tensor], Tensor]
"""From a model in evaluation mode and inputs (batch, time) to the clamped h_K."""


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """`clamp`: mode, cross_entropy, change (nats/token, against the unclamped run), low, high.

    The interval is of the change, 95 %, by a bootstrap over windows, each paired with itself unclamped. Modes:
        remove_radial   every loop x -> x + b(x), x = N(h), takes only the part of b that is perpendicular to x;
        remove_radial_after_loop1
                        the same from the second loop on. The first, from the embedding, may turn the state more than
                        it lengthens it: what the mode before this one costs beyond it is no matter of growth;
        freeze_loop1    after every loop from the second, the state is scaled back to |h_1|, token by token;
        decode_time     the loops run free, and only the readout sees h_K at |h_1|. What freeze_loop1 changes beyond
                        this is due to the recurrence.
    """
    last = context.trained_loops - 1
    before = _by_window(context.held_out.cross_entropy[last])
    states = {
        "remove_radial": _clamped_states(context, remove_radial),
        "remove_radial_after_loop1": _clamped_states(context, remove_radial_after_loop_1),
        "freeze_loop1": _clamped_states(context, freeze_at_loop_1),
        "decode_time": _scaled_to(context.held_out.final_states, context.held_out.l2_norm[0]),
    }
    rows = []
    for mode, h in states.items():
        after = _by_window(_cross_entropy(context, h))
        change = bootstrap_interval((after - before).numpy())
        rows.append(
            {
                "mode": mode,
                "cross_entropy": after.mean().item(),
                "change": change.mean,
                "low": change.low,
                "high": change.high,
            }
        )
    return {"clamp": pd.DataFrame(rows)}


def remove_radial(model: LoopedLM, inputs: Tensor) -> Tensor:
    """h_K when each loop's displacement loses its part along the state it is added to."""
    return unroll(lambda h: _perpendicular_step(model, h), model.embed(inputs), model.config.num_loops)[-1]


def remove_radial_after_loop_1(model: LoopedLM, inputs: Tensor) -> Tensor:
    """h_K when each loop's displacement but the first's loses its part along the state it is added to."""
    first = model.step(model.embed(inputs))
    return unroll(lambda h: _perpendicular_step(model, h), first, model.config.num_loops - 1)[-1]


def freeze_at_loop_1(model: LoopedLM, inputs: Tensor) -> Tensor:
    """h_K when every loop from the second ends at the Euclidean norm that the first one gave."""
    first = model.step(model.embed(inputs))
    l2_norm = first.norm(dim=-1)
    return unroll(lambda h: _scaled_to(model.step(h), l2_norm), first, model.config.num_loops - 1)[-1]


def _perpendicular_step(model: LoopedLM, h: Tensor) -> Tensor:
    # Where a norm stands between loops, the stack adds to N(h): that is the state the removed part is along.
    start, after = model.between(h), model.step(h)
    direction = F.normalize(start, dim=-1)
    return after - ((after - start) * direction).sum(-1, keepdim=True) * direction


def _scaled_to(h: Float[Tensor, "*tokens d"], l2_norm: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens d"]:
    return h * (l2_norm / h.norm(dim=-1)).unsqueeze(-1)


@torch.no_grad()
def _clamped_states(context: Context, clamp: Clamp) -> Float[Tensor, "windows time d"]:
    states = []
    for batch in context.windows.split(EVALUATION_BATCH):
        with autocast(batch.device):
            states.append(clamp(context.model, batch[:, :-1]).cpu())
    return torch.cat(states)


def _cross_entropy(context: Context, states: Float[Tensor, "windows time d"]) -> Float[Tensor, "windows time"]:
    parts = []
    for h, batch in zip(states.split(EVALUATION_BATCH), context.windows.split(EVALUATION_BATCH), strict=True):
        with autocast(batch.device):
            parts.append(decode(context.model, h.to(batch.device), batch[:, 1:], is_last=True).cross_entropy.cpu())
    return torch.cat(parts)


def _by_window(cross_entropy: Float[Tensor, "windows time"]) -> Float[Tensor, " windows"]:
    return cross_entropy.double().mean(1)
