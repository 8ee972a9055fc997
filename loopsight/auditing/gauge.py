"""Scaling symmetries of the user's parameters, counted from gradients, and what optimisers do along them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.auditing.report import COUNTED, Gauge, OptimiserLaw, ParameterSymmetry
from loopsight.auditing.subject import Subject, tokens_of
from loopsight.derivatives import RELATIVE_ERROR, ROUNDING, STEPS
from loopsight.optimiser_laws import adam_step_bound
from loopsight.protocol import LoopedMaps, unroll
from loopsight.symmetry import MeasuredSymmetries, measured_symmetries

Losses = Callable[[dict[str, Tensor]], Tensor]

AFFORDABLE = 3e11  # multiply-adds of all backward passes: some tens of seconds on one core
SPARE = 4  # losses beyond the number of tensors
TOKENS = 64  # of one sequence of the batch, where the maps take it alone; symmetries do not depend on data
LISTED = 6  # tensors of a generator


def backward_cost(subject: Subject) -> float:
    """Multiply-adds that `gauge` would take, roughly."""
    module = subject.maps.module
    if module is None:
        return float("inf")
    named = list(module.parameters())
    tokens = _few(subject.maps, subject.batch, subject.states[0])[1]
    return 2.0 * (len(named) + SPARE) * sum(p.numel() for p in named) * tokens * subject.num_loops


def gauge(subject: Subject, generator: torch.Generator) -> Gauge:
    """The null space of <gradient, tensor>, over randomly weighted losses of all loops' tokens.

    Raises:
        ValueError: as `measured_symmetries`.
    """
    module = subject.maps.module
    assert module is not None  # backward_cost is infinite without
    batch, _ = _few(subject.maps, subject.batch, subject.states[0])
    tensors = {n: p.detach().double() for n, p in module.named_parameters() if p.detach().any()}
    running = _Running(module, subject.maps, batch)
    losses = torch.func.functional_call(running, _named(tensors), ())
    weights = torch.rand(len(tensors) + SPARE, losses.numel(), generator=generator, dtype=torch.float64)
    weights = weights.to(losses.device) / losses.numel()
    unused = _unused(running, tensors)
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    if not used:
        raise ValueError("the logits have no gradient to any parameter; the readout's weights may all be zero.")

    def weighted(parameters: dict[str, Tensor]) -> Tensor:
        return (weights @ torch.func.functional_call(running, _named(parameters), ())).cpu()

    _require_true_gradients(weighted, tensors, used)
    found = measured_symmetries(weighted, used, tolerance=COUNTED)
    return Gauge(
        dimension=found.dimension,
        tensors=len(used),
        smallest_visible=found.smallest_visible,
        largest_blind=found.largest_blind,
        generators=_generators(found),
        laws=optimiser_laws() if found.dimension else (),
    )


def optimiser_laws() -> tuple[OptimiserLaw, ...]:
    """Norms n along a symmetry, where <gradient, w> = 0 (`loopsight.optimiser_laws`)."""
    bound = adam_step_bound(0.9, 0.999)
    return (
        OptimiserLaw(optimiser="gradient flow", law="conserves sum degree |w|^2: nothing moves along the symmetry"),
        OptimiserLaw(optimiser="SGD", law="n grows by lr^2 |g|^2 at every step, exactly"),
        OptimiserLaw(
            optimiser="SGD with momentum m",
            law="n grows by lr^2 |v|^2 (1 + m) / (1 - m) a step while the velocity's size |v| is steady",
        ),
        OptimiserLaw(optimiser="SGD with decay", law="n settles at |w|^4 = lr G^2 / (wd (2 - lr wd)), G = |g| |w|"),
        OptimiserLaw(
            optimiser="Adam(W)",
            law=f"moves along it either way, at most {bound:.2f} lr a coordinate and step (betas 0.9, 0.999)",
        ),
    )


class _Running(nn.Module):
    """The whole looped computation as one module, so that its parameters can be replaced for a call."""

    def __init__(self, model: nn.Module, maps: LoopedMaps, batch: Any) -> None:
        super().__init__()
        self.model, self.maps, self.batch = model, maps, batch

    def forward(self) -> Tensor:
        """Cross-entropy to fixed labels, of all loops and tokens."""
        states = unroll(self.maps.step, self.maps.embed(self.batch), self.maps.num_loops)[1:]
        logits = torch.stack([self.maps.readout(h) for h in states]).double().flatten(0, -2)
        labels = torch.arange(len(logits), device=logits.device) * 7919 % logits.shape[-1]
        return F.cross_entropy(logits, labels, reduction="none")


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _unused(running: nn.Module, tensors: dict[str, Tensor]) -> set[str]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    with torch.enable_grad():
        total = torch.func.functional_call(running, _named(leaves), ()).square().sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is None or not gradient.any()}


def _require_true_gradients(weighted: Losses, tensors: dict[str, Tensor], used: dict[str, Tensor]) -> None:
    """One motion of all tensors, by values and by gradients: loops run without gradient leave some of it out."""
    generator = torch.Generator().manual_seed(0)
    degrees = {name: torch.randn((), generator=generator, dtype=torch.float64).item() for name in tensors}
    with torch.no_grad():
        ahead, behind = (
            weighted({name: tensor * math.exp(s * STEPS[0] * degrees[name]) for name, tensor in tensors.items()})
            for s in (1.0, -1.0)
        )
    difference = (ahead - behind) / (2 * STEPS[0])
    values, pull, *_ = torch.func.vjp(weighted, used)
    (gradients,) = pull(torch.ones_like(values))
    derivative = sum(degrees[name] * (gradients[name] * tensor).sum().item() for name, tensor in used.items())
    rounding = ROUNDING / STEPS[0] * values.abs().sum().item()
    if abs(derivative - difference.sum().item()) > RELATIVE_ERROR * difference.abs().sum().item() + rounding:
        raise ValueError("gradients of the parameters disagree with finite differences: some loops run without them.")


@torch.no_grad()
def _few(maps: LoopedMaps, batch: Any, h: Tensor) -> tuple[Any, int]:
    """Part of a batch of token ids, and how many tokens that is; the whole of a batch that cannot be parted."""
    tokens = tokens_of(batch)
    if tokens is not batch or tokens is None or tokens.ndim != 2:
        return batch, h[..., 0].numel()
    few = tokens[:1, :TOKENS]
    try:
        same = maps.step(maps.embed(few)).shape[:-1] == few.shape
    except Exception:  # maps made for one batch only may fail in any way on another
        same = False
    maps.embed(batch)  # maps that remember their last batch get it back
    return (few, few.numel()) if same else (batch, h[..., 0].numel())


def _generators(found: MeasuredSymmetries) -> tuple[ParameterSymmetry, ...]:
    """Rows of the reduced echelon form of the degrees: as few tensors a generator as elimination gives."""
    rows = found.degrees.clone()
    for n in range(len(rows)):
        row, column = divmod(int(rows[n:].abs().argmax()), rows.shape[1])
        rows[[n, n + row]] = rows[[n + row, n]]
        rows[n] = rows[n] / rows[n, column]
        others = [m for m in range(len(rows)) if m != n]
        rows[others] = rows[others] - rows[others, column, None] * rows[n]
    return tuple(_listed(found.tensors, row) for row in rows)


def _listed(names: Sequence[str], row: Tensor) -> ParameterSymmetry:
    largest = [n for n in row.abs().argsort(descending=True).tolist() if row[n].abs() > 1e-3][:LISTED]
    return ParameterSymmetry(tensors=tuple(names[n] for n in largest), degrees=tuple(row[largest].tolist()))
