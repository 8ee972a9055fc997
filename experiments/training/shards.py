"""Data parallelism over the cores of one machine: each shard of a batch has a thread, and cores of its own.

The operations of a narrow model are too short to be worth two cores: one takes its part and waits for the other a
thousand times a step. A shard's thread waits once.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from experiments.config import TrainingConfig
from models import LoopedLM, Loss, ModelConfig

Accumulate = Callable[[LoopedLM, Tensor, Tensor], list[Loss]]
LEAST_TOKENS = 512  # of a backward pass: with fewer its operations are too short for Python to keep up


def shard_count(model: ModelConfig, training: TrainingConfig, device: torch.device, *, compiled: bool = False) -> int:
    """How many shards of a batch to compute at once: the most that divide it, have a core and are large enough.

    A batch stays whole on a GPU, for a compiled model, and with dropout, whose random numbers threads would draw in an
    order of chance.
    """
    if device.type != "cpu" or compiled or model.dropout > 0.0:
        return 1
    sequences = training.batch_size // training.micro_batches
    most = min(torch.get_num_threads(), sequences * model.context // LEAST_TOKENS)
    return max((count for count in range(1, most + 1) if sequences % count == 0), default=1)


def in_shards(accumulate: Accumulate, model: LoopedLM, count: int) -> Callable[[Tensor, Tensor], list[Loss]]:
    """`accumulate` over `count` equal shards of a batch at once; their gradients are added in the shards' order.

    Args:
        accumulate: adds the gradients of some sequences to those of the model that it is given.
        model: gets the sum; shards but the first have a replica of it, with the same weights and gradients of its own.
        count: of shards.

    Raises:
        ValueError: of the function, if `count` does not divide the batch.
    """
    replicas = [model, *(_sharing_weights(model) for _ in range(count - 1))]
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(count)

    def in_thread(replica: LoopedLM, inputs: Tensor, targets: Tensor) -> list[Loss]:
        torch.set_num_threads(max(1, cores // count))
        return accumulate(replica, inputs, targets)

    def sharded(inputs: Tensor, targets: Tensor) -> list[Loss]:
        if len(inputs) % count:
            raise ValueError(f"{count} shards must divide a batch of {len(inputs)} sequences.")
        for replica in replicas[1:]:
            replica.zero_grad(set_to_none=True)
        try:
            shards = list(pool.map(in_thread, replicas, inputs.chunk(count), targets.chunk(count)))
        finally:
            torch.set_num_threads(cores)  # what a shard's thread sets is also what later threads begin with
        for replica in replicas[1:]:
            for parameter, other in zip(model.parameters(), replica.parameters(), strict=True):
                if parameter.grad is not None and other.grad is not None:
                    parameter.grad.add_(other.grad)
        return [loss for losses in shards for loss in losses]

    return sharded


def _sharing_weights(model: LoopedLM) -> LoopedLM:
    parameters = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, parameters)  # which takes these for copies already made
