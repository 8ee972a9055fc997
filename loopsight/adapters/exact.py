"""Run somebody's model so that its values and derivatives are those of the function it computes.

Four habits of real models change what an instrument sees, and are undone here for the time of a call: norms and
softmaxes that fall back to float32 inside a float64 model, loops run without gradient, kernels that have no
forward-mode derivative, and initial states drawn anew in every call.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loopsight.capture import first_tensor, uncompiled
from loopsight.derivatives import differentiable_kernels

LOGITS = ("logits", "prediction_logits")
WITHOUT_FORWARD_MODE = ("flash", "flex")


class _Faithful(TorchFunctionMode):
    """A float64 tensor stays one when float32 is asked of it, and gradient mode is not switched off."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled and not args[0]:
            return None
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(_not_single(value) for value in args)
            kwargs = {name: _not_single(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _not_single(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Inside, calls of parts of `model` are deterministic, differentiable in both modes, and keep float64.

    Random numbers are drawn from seed 0, and the global generators are left as they were.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with (
        torch.random.fork_rng(devices=sorted(devices, key=str)),
        torch.set_grad_enabled(torch.is_grad_enabled()),  # so that whatever happens inside ends with the block
        torch.backends.cudnn.flags(enabled=False),  # its recurrences have no forward-mode derivative
        differentiable_kernels(),
        uncompiled(model),
        _Faithful(),
    ):
        torch.random.default_generator.manual_seed(0)
        for device in devices:
            torch.cuda.default_generators[device.index].manual_seed(0)
        yield


def run(model: nn.Module, batch: Any) -> Any:
    """model(batch), a mapping unpacked as keywords and a tuple as positions, without cache and without labels.

    Raises:
        ValueError: the model is in training mode, or its attention has no forward-mode derivative.
    """
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode: call model.eval() first.")
    config = getattr(model, "config", None)
    attention = getattr(config, "_attn_implementation", None) or ""
    if attention.startswith(WITHOUT_FORWARD_MODE):
        raise ValueError(
            f"attention '{attention}' has no forward-mode derivative: call model.set_attn_implementation('eager')."
        )
    args, kwargs = arguments(batch)
    if hasattr(config, "use_cache"):
        kwargs = {"use_cache": False, **kwargs}
    kwargs.pop("labels", None)  # with labels, some models return other logits
    return model(*args, **kwargs)


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a batch is passed to a model: a mapping as keywords, a tuple or list as positions, a tensor alone."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


def logits_of(output: Any, model: nn.Module) -> Tensor:
    """The logits in what a model returned: the entry of that name, or its first tensor.

    Raises:
        ValueError: there is no tensor in it.
    """
    for name in LOGITS:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    found = first_tensor(output)
    if found is None:
        raise ValueError(f"{type(model).__name__} returned {type(output).__name__}, in which there are no logits.")
    return found


def same_batch(one: Any, other: Any) -> bool:
    """Whether two batches hold the same values."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and bool((one == other).all()))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_batch(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(same_batch(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
