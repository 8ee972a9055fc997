"""The training loss as a function of the state after any loop, to be differentiated with respect to that state."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loopsight.protocol import unroll
from models import LoopedLM, Supervision

Loss = Callable[[Tensor], Tensor]


def own_loss(model: LoopedLM, targets: Int[Tensor, "windows time"], loop: int, num_loops: int) -> Loss:
    """h_k to the mean cross-entropy of its own readout, k = `loop`, in nats a token, whatever its weight in training.

    Plain cross-entropy: fused losses are for training (they can hide a derivative).
    """

    def loss(h: Float[Tensor, "windows time d"]) -> Float[Tensor, ""]:
        logits = model.readout(h, is_last=loop == num_loops)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return loss


def total_loss(
    model: LoopedLM, targets: Int[Tensor, "windows time"], supervision: Supervision, loop: int, num_loops: int
) -> Loss:
    """h_k to what the training loss still has to come: its own term, k = `loop`, and all later loops' terms.

    The loss of `looped_loss` less the terms of loops before k, which h_k cannot change; from k = 0 it is the whole.

    Args:
        model: float64 for instruments that ask for it.
        targets: next tokens, (windows, time).
        supervision: loop weights and penalty, as in training.
        loop: k, from 0 (the embedding, which has no term of its own) to `num_loops`.
        num_loops: K.
    """
    weights = supervision.loop_weights(num_loops)

    def loss(h: Float[Tensor, "windows time d"]) -> Float[Tensor, ""]:
        total = h.new_zeros(())
        for later, state in enumerate(unroll(model.step, h, num_loops - loop), loop):
            if later == 0:
                continue
            if weights[later - 1] != 0.0:
                total = total + weights[later - 1] * own_loss(model, targets, later, num_loops)(state)
            if supervision.norm_penalty is not None:
                total = total + supervision.norm_penalty / num_loops * state.square().mean()
        return total

    return loss
