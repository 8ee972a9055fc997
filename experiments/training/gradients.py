"""Gradients of one batch: what training computes, and what its benchmarks time."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from experiments.config import TrainingConfig
from experiments.device import autocast
from experiments.training.shards import in_shards
from models import LoopedLM, Loss, Supervision, looped_loss

Gradients = Callable[[Tensor, Tensor], tuple[Loss, Tensor]]
WARM_UP = 3  # passes before a graph is recorded: compilation, and libraries that allocate on first use


def gradients_of(
    model: LoopedLM, training: TrainingConfig, supervision: Supervision, *, compiled: bool = False, shards: int = 1
) -> Gradients:
    """A function of inputs and targets, (batch, time), that puts clipped gradients into the parameters' `grad`.

    It returns the batch's loss and the gradient's norm before clipping, which the next call may overwrite.

    Args:
        compiled: compile the loop body, and on a GPU the softmax; there the whole of forward and backward is recorded
            as one CUDA graph as well, unless activations are recomputed. The graph writes into the same memory every
            time: until `release` undoes it nobody may set a parameter's `grad` to None, and all batches have one shape.
        shards: equal parts of a batch that are computed at once, for eager models without dropout (`shard_count`).

    Raises:
        ValueError: of the function, if a batch has another shape than the recorded one.
    """
    on_gpu = model.head_weight.is_cuda
    fused = compiled and on_gpu
    if compiled:
        model.step = torch.compile(model.step)  # type: ignore[method-assign]

    def accumulate(replica: LoopedLM, inputs: Tensor, targets: Tensor) -> list[Loss]:
        losses = []
        for x, y in zip(inputs.chunk(training.micro_batches), targets.chunk(training.micro_batches), strict=True):
            with autocast(inputs.device):
                loss = looped_loss(replica, x, y, supervision, fused=fused)
            (loss.total / (shards * training.micro_batches)).backward()
            losses.append(loss)
        return losses

    accumulate_all = partial(accumulate, model) if shards == 1 else in_shards(accumulate, model, shards)

    def gradients(inputs: Tensor, targets: Tensor) -> tuple[Loss, Tensor]:
        model.zero_grad(set_to_none=True)
        losses = accumulate_all(inputs, targets)
        return _mean(losses), torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)

    return _recorded(model, gradients) if fused and not training.recompute else gradients


def release(model: LoopedLM) -> None:
    """Free the gradients, and take back the compiled loop body.

    It is bound to this model in this dtype: a copy made to measure in float64 must not carry it.
    """
    model.zero_grad(set_to_none=True)
    vars(model).pop("step", None)


def _recorded(model: LoopedLM, gradients: Gradients) -> Gradients:
    """The same as one CUDA graph: of a narrow model the GPU runs a kernel in less time than the host launches it."""
    graph, inputs, targets, result = torch.cuda.CUDAGraph(), None, None, None

    def replayed(x: Tensor, y: Tensor) -> tuple[Loss, Tensor]:
        nonlocal inputs, targets, result
        if inputs is None or targets is None or result is None:
            inputs, targets = x.clone(), y.clone()
            random = torch.cuda.get_rng_state(x.device)
            stream = torch.cuda.Stream(x.device)
            stream.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    gradients(inputs, targets)
            torch.cuda.current_stream(x.device).wait_stream(stream)
            model.zero_grad(set_to_none=True)  # or these would stay reserved beside the graph's own
            with torch.cuda.graph(graph):
                result = gradients(inputs, targets)
            torch.cuda.set_rng_state(random, x.device)  # dropout of the first step is that of an unrecorded one
        if x.shape != inputs.shape:
            raise ValueError(f"the recorded graph takes batches of {tuple(inputs.shape)}, got {tuple(x.shape)}.")
        inputs.copy_(x)
        targets.copy_(y)
        graph.replay()
        return result

    return replayed


def _mean(losses: list[Loss]) -> Loss:
    return Loss(
        total=torch.stack([loss.total.detach() for loss in losses]).mean(),
        cross_entropy=torch.stack([loss.cross_entropy for loss in losses]).mean(0),
        mean_l2_norm=torch.stack([loss.mean_l2_norm for loss in losses]).mean(0),
    )
