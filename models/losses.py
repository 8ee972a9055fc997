"""Training losses of a looped language model, without ever holding the logits of all loops.

`chunked_cross_entropy` makes logits for a few hundred rows at a time and keeps only their gradients, the idea of
fused linear cross-entropy (Wijmans et al., arXiv 2411.09009; `torch.nn.functional.linear_cross_entropy`). It is our
own because torch's version begins with 2.13 and returns a silent zero under forward-mode differentiation, where this
one raises. Use it to train; measure with plain cross-entropy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.looped_lm import LoopedLM


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Where the loss is placed.

    Attributes:
        placement: `terminal` supervises the last loop only; `per_loop` every loop.
        weights: of the loops, for `per_loop` only; averaged alike when not given.
        norm_penalty: coefficient of the mean over loops 1..K and tokens of mean(h_k^2); None for no penalty.
    """

    placement: Literal["terminal", "per_loop"] = "per_loop"
    weights: tuple[float, ...] | None = None
    norm_penalty: float | None = None

    def __post_init__(self) -> None:
        if self.placement not in ("terminal", "per_loop"):
            raise ValueError(f"unknown placement '{self.placement}'; known: terminal, per_loop.")
        if self.weights is not None and self.placement != "per_loop":
            raise ValueError(f"weights belong to the placement 'per_loop', and this one is '{self.placement}'.")
        if self.weights is not None and not (
            any(self.weights) and all(0.0 <= weight < math.inf for weight in self.weights)
        ):
            raise ValueError(f"weights must be finite, not negative and not all zero, got {self.weights}.")
        if self.norm_penalty is not None and not self.norm_penalty > 0.0:
            raise ValueError(f"norm_penalty must be positive, or None for no penalty; got {self.norm_penalty}.")

    def loop_weights(self, num_loops: int) -> tuple[float, ...]:
        """Weights w_1, ..., w_K of the loops' cross-entropies; they sum to 1 unless given otherwise."""
        if num_loops < 1:
            raise ValueError(f"a loss needs at least one loop, got num_loops={num_loops}.")
        if self.weights is not None:
            if len(self.weights) != num_loops:
                raise ValueError(f"{len(self.weights)} weights were given for {num_loops} loops.")
            return self.weights
        if self.placement == "terminal":
            return (0.0,) * (num_loops - 1) + (1.0,)
        return (1.0 / num_loops,) * num_loops


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one evaluation of the loss tells.

    Attributes:
        total: scalar to differentiate: weighted cross-entropy, in nats a token, plus the penalty.
        cross_entropy: (K,) detached, nats a token; NaN at loops that carry no weight.
        mean_l2_norm: (K,) detached, mean over tokens of the Euclidean norm of h_1, ..., h_K.
    """

    total: Float[Tensor, ""]
    cross_entropy: Float[Tensor, " loops"]
    mean_l2_norm: Float[Tensor, " loops"]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """sum_i weight_i CE_i, gradients made in the forward pass so that no chunk's logits outlive it."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        head: Tensor,
        targets: Tensor,
        row_weights: Tensor,
        chunk_rows: int,
        differentiate: bool,
        fused: bool,
    ) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled(features.device.type):
            matmul_dtype = torch.get_autocast_dtype(features.device.type)
        else:
            matmul_dtype = features.dtype
        compute_dtype = torch.promote_types(matmul_dtype, torch.float32)
        row_losses = features.new_empty(len(features), dtype=compute_dtype)
        weights = row_weights.to(compute_dtype)
        head_cast = head.to(matmul_dtype)
        grad_features = torch.empty_like(features) if differentiate else None
        grad_head = torch.zeros_like(head, dtype=compute_dtype) if differentiate else None
        of_logits = _compiled_cross_entropy() if fused else _cross_entropy
        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, len(features), chunk_rows):
                rows = slice(start, start + chunk_rows)
                x, weight = features[rows].to(matmul_dtype), weights[rows, None]
                row_losses[rows], grad_logits = of_logits(x @ head_cast.T, targets[rows, None])
                if grad_features is not None and grad_head is not None:
                    # The row weights multiply the narrow matrices, not the wide one.
                    grad_features[rows] = (grad_logits @ head_cast) * weight
                    x_weighted = (x * weight).to(matmul_dtype)
                    if compute_dtype == matmul_dtype:
                        grad_head.addmm_(grad_logits.T, x_weighted)
                    else:
                        grad_head.add_(grad_logits.T @ x_weighted)
            total = row_losses @ weights
        ctx.save_for_backward(grad_features, grad_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(row_losses)
        return total, row_losses

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "chunked_cross_entropy is differentiable once: no create_graph=True; use F.cross_entropy."
            )
        grad_features, grad_head = ctx.saved_tensors
        scale = grad_total.to(grad_features.dtype)
        return grad_features * scale, (grad_head * grad_total).to(ctx.head_dtype), None, None, None, None, None


def _cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's cross-entropy, and its gradient softmax - onehot in the logits' dtype. Logits of float32 or wider are
    overwritten."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    true_logit = z.gather(1, target)
    largest = z.amax(1, keepdim=True)
    # The softmax kernel: on CPU a separate exp_ falls into a subnormal path many times slower. The log-partition then
    # comes from the largest probability, which is at least 1 / vocab.
    p = torch.softmax(z, 1, out=z)
    losses = largest - p.amax(1, keepdim=True).log() - true_logit
    p.scatter_add_(1, target, p.new_full((), -1.0).expand_as(target))
    return losses.squeeze(1), p.to(logits.dtype)


def _cross_entropy_to_compile(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same, written so that a compiler makes one kernel of it, which reads the logits in their own dtype."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_partition = torch.logsumexp(z, 1, keepdim=True)
    onehot = (torch.arange(z.shape[1], device=z.device) == target).to(z.dtype)
    losses = log_partition - z.gather(1, target)
    return losses.squeeze(1), (torch.exp(z - log_partition) - onehot).to(logits.dtype)


@cache
def _compiled_cross_entropy() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For the whole process; anew for every shape of a chunk, of which torch compiles eight and leaves the rest."""
    return torch.compile(_cross_entropy_to_compile, dynamic=False)


def default_chunk_rows(device: torch.device) -> int:
    """Rows of logits at a time: a core's part of a chunk fits its cache, and a chunk fills a GPU."""
    return 256 * torch.get_num_threads() if device.type == "cpu" else 8192


def chunked_cross_entropy(
    features: Float[Tensor, "rows d"],
    head: Float[Tensor, "vocab d"],
    targets: Int[Tensor, " rows"],
    row_weights: Float[Tensor, " rows"],
    chunk_rows: int | None = None,
    fused: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, " rows"]]:
    """sum_i row_weights_i * CE(head @ features_i, targets_i), and each row's own CE (detached), in nats.

    Differentiable once, in reverse mode, in `features` and `head`. Under autocast the matrix products run in its
    dtype and the softmax in float32.

    Args:
        features: readout features, float.
        head: head weight, float.
        targets: ids in [0, vocab), int64.
        row_weights: weight of each row's cross-entropy.
        chunk_rows: rows of logits in memory at a time.
        fused: one compiled kernel for softmax, loss and its gradient, the same up to rounding; for GPUs.
    """
    chunk = default_chunk_rows(features.device) if chunk_rows is None else chunk_rows
    if chunk < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}.")
    # Inside `forward` grad mode is always off, and needs_input_grad ignores it.
    differentiate = torch.is_grad_enabled() and (features.requires_grad or head.requires_grad)
    return _ChunkedCrossEntropy.apply(features, head, targets, row_weights, chunk, differentiate, fused)


def looped_loss(
    model: LoopedLM,
    tokens: Int[Tensor, "batch time"],
    targets: Int[Tensor, "batch time"],
    supervision: Supervision,
    num_loops: int | None = None,
    *,
    fused: bool = False,
) -> Loss:
    """Loss of one batch: sum_k w_k CE_k + lambda mean_k mean(h_k^2), k = 1..K (arXiv 2606.24898, section 4).

    Args:
        model: any readout.
        tokens: inputs, (batch, time).
        targets: the next tokens, (batch, time), int64.
        supervision: where the loss is placed.
        num_loops: K, at least 1; the trained count when not given.
        fused: as in `chunked_cross_entropy`.
    """
    states = model(tokens, num_loops)[1:]
    num_loops = len(states)
    weights = supervision.loop_weights(num_loops)
    supervised = [k for k, weight in enumerate(weights) if weight != 0.0]
    features = torch.cat([model.readout_features(states[k], is_last=k == num_loops - 1) for k in supervised])
    rows = targets.numel()
    dtype = torch.promote_types(features.dtype, torch.float32)
    # Filled on the device, and below copied row by row: a list copied to a GPU, or used as an index, waits for it.
    row_weights = torch.cat([features.new_full((rows,), weights[k] / rows, dtype=dtype) for k in supervised])
    total, row_losses = chunked_cross_entropy(
        features.flatten(0, 1),
        model.head_weight,
        targets.flatten().repeat(len(supervised)),
        row_weights,
        fused=fused,
    )
    cross_entropy = torch.full((num_loops,), torch.nan, device=tokens.device, dtype=row_losses.dtype)
    for k, mean in zip(supervised, row_losses.view(len(supervised), rows).mean(1), strict=True):
        cross_entropy[k] = mean
    if supervision.norm_penalty is not None:
        mean_square = torch.stack([h.square().mean() for h in states]).mean()
        total = total + supervision.norm_penalty * mean_square
    with torch.no_grad():
        mean_l2_norm = torch.stack([h.norm(dim=-1).mean() for h in states])
    return Loss(total=total, cross_entropy=cross_entropy, mean_l2_norm=mean_l2_norm)
