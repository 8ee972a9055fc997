"""The user's model, batch and targets as one checked value; what is wrong with them is said in one sentence."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from loopsight.checks import is_whole
from loopsight.protocol import LoopedMaps, LoopedModel, unroll
from loopsight.responses import StateMap

IGNORED = -100  # target of a token that no loss is taken of, as in torch's cross_entropy
LEAK = 1e-6  # of the later tokens' change, in earlier ones: of a causal loop they keep every bit


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model on a batch, as it runs: own weights, own dtype, evaluation mode.

    Attributes:
        maps: embed, step, readout.
        batch: as the user has it.
        states: (h_0, ..., h_2K) in the model's own precision.
        targets: (...) class of every token, -100 where there is none; None if no cross-entropy can be taken.
    """

    maps: LoopedMaps
    batch: Any
    states: tuple[Tensor, ...]
    targets: Tensor | None

    @property
    def num_loops(self) -> int:
        return self.maps.num_loops

    @property
    def audited(self) -> Tensor:
        """h_K in float64: the state that is decoded."""
        return self.states[self.num_loops].double()


def as_maps(model: Any, batch: Any, num_loops: int | None, paths: str | Sequence[str] | None = None) -> LoopedMaps:
    """The three maps of a model: given, by their names, or found by an adapter, at `paths` if it is told where.

    Raises:
        ValueError: they cannot be found, or nobody says how many loops there are.
    """
    if paths is not None and not isinstance(model, nn.Module):
        raise ValueError(f"paths are those of a torch module's parts, and {type(model).__name__} is none.")
    if isinstance(model, nn.Module):  # before anything runs: a search for the loop would blame the loop
        _require_one_device(model, batch)
        _require_weights(model)
    if isinstance(model, LoopedMaps):
        maps = model
    elif isinstance(model, LoopedModel) and paths is None:
        from loopsight.adapters.three_maps import own_maps

        maps = own_maps(model, batch, num_loops)
    elif isinstance(model, nn.Module):
        from loopsight.adapters import discover

        maps = discover(model, batch, paths=paths)
    else:
        raise ValueError(
            f"the model must be a torch module or loopsight.protocol.LoopedMaps, got {type(model).__name__}."
        )
    maps = maps if num_loops is None else dataclasses.replace(maps, num_loops=num_loops)
    if not is_whole(maps.num_loops) or maps.num_loops < 1:
        raise ValueError(f"num_loops must be a whole number, at least 1, got {maps.num_loops}.")
    return maps


@contextmanager
def at_rest(model: object) -> Iterator[None]:
    """Evaluation mode, if it is a module, for as long as the audit takes; every submodule's own mode comes back."""
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    try:
        if isinstance(model, nn.Module):
            model.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


@torch.no_grad()
def prepare(maps: LoopedMaps, batch: Any, targets: Tensor | None) -> Subject:
    """Run 2 K loops and check everything that can be wrong before anything is measured.

    Raises:
        ValueError: one sentence saying which: weights, device, embedding, a loop, the readout or the targets.
    """
    _require_one_device(maps.module, batch)
    _require_weights(maps.module)
    buffers = _buffers(maps.module)
    h = maps.embed(batch)
    _require_state(h, "embed(batch)")
    states = unroll(maps.step, h, 2 * maps.num_loops)
    for k, state in enumerate(states):
        _require_state(state, f"the state after loop {k} (trained: {maps.num_loops})")
    one_call_ago = _buffers(maps.module)
    again = _undisturbed(maps.step, states[1], "step")
    logits = _undisturbed(maps.readout, states[maps.num_loops], "readout")
    _require_buffers_kept(maps.module, one_call_ago, buffers)
    if not torch.equal(again, states[2]):
        raise ValueError("step gives two values for one state; fix its random numbers (dropout, noise, initial state).")
    _require_floats(logits, "readout(h)", what="logits (..., classes)")
    _require_unmasked(logits)
    _require_finite(logits, "readout(h)")
    if logits.shape[:-1] != h.shape[:-1] or logits.shape[-1] < 2:
        got = f"{tuple(h.shape)} to {tuple(logits.shape)}"
        raise ValueError(f"readout must give every token at least 2 logits, (..., d) to (..., classes), got {got}.")
    if targets is None:
        targets = _own_targets(maps, batch, states)
    elif not isinstance(targets, Tensor) or targets.shape != h.shape[:-1] or targets.is_floating_point():
        got = f"{tuple(targets.shape)} of {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        shape = tuple(h.shape[:-1])
        raise ValueError(f"targets must be integers of shape {shape}, one class a token (-100: none), got {got}.")
    if targets is not None:
        targets = targets.to(h.device).long()
        named = targets[targets != IGNORED]
        if len(named) == 0 or named.min() < 0 or named.max() >= logits.shape[-1]:
            raise ValueError(f"targets must name classes 0 to {logits.shape[-1] - 1} (-100: none), and at least one.")
    return Subject(maps=maps, batch=batch, states=states, targets=targets)


def tokens_of(batch: Any) -> Tensor | None:
    """The token ids in a batch: the batch itself, or its `input_ids`."""
    if isinstance(batch, Mapping):
        batch = batch.get("input_ids")
    integer = isinstance(batch, Tensor) and not batch.is_floating_point() and batch.dtype != torch.bool
    return batch if integer else None


def _own_targets(maps: LoopedMaps, batch: Any, states: Sequence[Tensor]) -> Tensor | None:
    """The batch's labels, or else its next tokens, without padding; None where the next token is in plain sight, or
    where nothing is left.

    Labels are where `transformers` has them: at the token itself, so that a causal model's are those of the next place.
    """
    tokens, shape = tokens_of(batch), states[0].shape[:-1]
    if tokens is None or tokens.shape != shape or tokens.ndim == 0 or tokens.shape[-1] < 2:
        return None
    labels, mask = (batch.get(key) if isinstance(batch, Mapping) else None for key in ("labels", "attention_mask"))
    real = mask != 0 if isinstance(mask, Tensor) and mask.shape == shape else torch.ones_like(tokens, dtype=torch.bool)
    targets = labels if _are_classes(labels) and labels.shape == shape else tokens
    if _looks_ahead(maps.step, states[1], states[2], real):
        targets = targets.masked_fill(~real, IGNORED) if targets is labels else torch.full_like(tokens, IGNORED)
    else:
        targets = targets[..., 1:].masked_fill(~(real[..., 1:] & real[..., :-1]), IGNORED)
        targets = torch.cat([targets, tokens.new_full((*shape[:-1], 1), IGNORED)], dim=-1)
    return targets if (targets != IGNORED).any() else None


def _are_classes(labels: Any) -> TypeGuard[Tensor]:
    return isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool


def _looks_ahead(step: StateMap, h: Tensor, after: Tensor, real: Tensor) -> bool:
    """Whether one loop, h to `after`, carries something of the later half of the tokens into the earlier one, padding
    left out."""
    place, count = real.cumsum(-1), real.sum(-1, keepdim=True)
    early, late = real & (2 * place <= count), real & (2 * place > count)
    generator = torch.Generator(h.device).manual_seed(0)
    noise = torch.randn(h.shape, generator=generator, device=h.device).to(h) * h.square().mean(-1, keepdim=True).sqrt()
    change = (step(torch.where(late[..., None], h + noise, h)) - after).abs()
    return bool(early.any()) and bool(change[early].max() > LEAK * change[late].max())


def _require_weights(module: nn.Module | None) -> None:
    if module is None:
        return
    if next(module.parameters(), None) is None:
        raise ValueError(f"the model ({type(module).__name__}) has no parameters; pass the module that holds them.")
    for name, tensor in module.named_parameters():
        if tensor.is_inference():
            raise ValueError("the model was made in inference mode, where nothing has a derivative; make it outside.")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the parameter '{name}' holds NaN or infinite values; load a checkpoint that has none.")


def _require_one_device(module: nn.Module | None, batch: Any) -> None:
    given = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    devices = {x.device for x in given if isinstance(x, Tensor)}
    first = None if module is None else next(module.parameters(), None)
    if first is None or not devices:
        return
    home = first.device
    if devices != {home}:
        raise ValueError(f"the model is on {home} and the batch on {', '.join(map(str, devices))}; move one of them.")


def _undisturbed(function: StateMap, h: Tensor, name: str) -> Tensor:
    """function(h). States and derivatives are of the tensor given, which an operation in place would overwrite."""
    given = h.clone()
    value = function(given)
    if not torch.equal(given, h):
        raise ValueError(f"{name} writes into the state that it is given; write h = h + ..., not h += ... .")
    return value


def _buffers(module: nn.Module | None) -> dict[str, Tensor]:
    return {} if module is None else {name: buffer.clone() for name, buffer in module.named_buffers()}


def _require_buffers_kept(module: nn.Module | None, one_call_ago: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """What a first call makes, as a cache, may stay; what every call changes has no derivative, and is put back."""
    now = {} if module is None else dict(module.named_buffers())
    changed = [name for name in now.keys() & one_call_ago.keys() if not _same(now[name], one_call_ago[name])]
    for name in changed:
        if name in before and now[name].shape == before[name].shape:
            now[name].copy_(before[name])
    if changed:
        raise ValueError(f"the model changes its buffer '{min(changed)}' in every call, even in evaluation mode.")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _require_unmasked(logits: Tensor) -> None:
    """Padded vocabularies are often masked with -inf, which no derivative survives."""
    masked = (logits == -torch.inf).flatten(0, -2).all(0)
    if 0 < masked.sum() < len(masked):
        first = masked.nonzero()[0, 0]
        raise ValueError(
            f"readout gives {masked.sum()} of {len(masked)} classes -inf at every token, {first} first; audit one "
            "without them, h -> readout(h)[..., kept], and give it targets that are places in kept."
        )


def _require_state(h: object, name: str) -> None:
    _require_finite(_require_floats(h, name, what="states (..., d)"), name)


def _require_floats(h: object, name: str, what: str) -> Tensor:
    if not isinstance(h, Tensor) or not h.is_floating_point() or h.ndim < 2 or not h.numel():
        got = f"{tuple(h.shape)} of {h.dtype}" if isinstance(h, Tensor) else type(h).__name__
        raise ValueError(f"{name} must be a floating-point tensor of {what}, got {got}.")
    return h


def _require_finite(h: Tensor, name: str) -> None:
    if not torch.isfinite(h).all():
        raise ValueError(f"{name} holds NaN or infinite values; audit a checkpoint, batch and dtype that give none.")
