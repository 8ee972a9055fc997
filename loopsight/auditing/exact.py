"""Float64 arithmetic over weights of any dtype, without a copy of the model.

An operation that meets a float64 tensor gets its other tensors in float64 as well, for as long as it runs; a cast of a
float64 tensor to less leaves it in float64. So the memory needed beside a large model is its largest single weight in
float64, which is what lets a model of billions of parameters be audited, and maps that close over float32 tensors need
no rewriting (but torch.nn.GRU and LSTM compare dtypes themselves, and want float64 weights). Of a model that is small
enough the weights in float64 are kept, since making them anew for every operation takes as long as a fifth of the
arithmetic. Weights keep the values that their dtype gave them: nothing is said about another model.

`loopsight.radial.in_float64` converts a copy instead: faster where a copy fits, and stricter.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from loopsight.derivatives import differentiable_kernels
from loopsight.radial import LOWER_PRECISION

KEPT_BYTES = 2**31  # of weights in float64; of a model with more none is kept


@contextmanager
def exact_arithmetic(module: nn.Module | None = None) -> Iterator[None]:
    """Within it, whatever starts from a float64 state stays in float64, in both modes of differentiation.

    Compiled callables run uncompiled, since torch.func does not look inside them; kernels without forward-mode
    derivatives give way to those that have them.

    Args:
        module: whose parameters may be kept in float64 meanwhile.
    """
    promotion, early = _Promotion(_KeptWeights(module)), _EarlyPromotion()
    eager = torch.compiler.set_stance("force_eager")
    with eager, differentiable_kernels(), warnings.catch_warnings(), promotion, early:
        warnings.filterwarnings("ignore", "There is a performance drop")  # of vmap over a user's in-place operation
        warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # of rms_norm, which is the point
        yield


class _KeptWeights:
    """Tensors in float64, those of a small module's parameters made once.

    What an operation meets is a view of the parameter (its transpose, say), so that parameters are known by their
    memory: only theirs, which nothing else can be given meanwhile, and only as long as nobody writes into it.
    """

    def __init__(self, module: nn.Module | None) -> None:
        parameters = () if module is None else tuple(module.parameters())
        small = sum(8 * p.numel() for p in parameters) <= KEPT_BYTES
        self._parameters = {p.untyped_storage().data_ptr(): p for p in parameters if small and _owns_memory(p)}
        self._doubles: dict[int, tuple[int, Tensor]] = {}

    def double(self, x: Tensor) -> Tensor:
        if not self._parameters or x.layout is not torch.strided:
            return x.double()
        address = x.untyped_storage().data_ptr()
        parameter = self._parameters.get(address)
        if parameter is None or x.dtype != parameter.dtype:
            return x.double()
        version, kept = self._doubles.get(address, (-1, x))
        if version != parameter._version:
            kept = parameter.detach().double().flatten()
            self._doubles[address] = parameter._version, kept
        return kept.as_strided(x.shape, x.stride(), x.storage_offset())


def _owns_memory(p: nn.Parameter) -> bool:
    """All of it, in order, under a counter of changes."""
    whole = p.untyped_storage().nbytes() == p.numel() * p.element_size()
    return p.dtype in LOWER_PRECISION and p.numel() > 0 and p.is_contiguous() and whole and not p.is_inference()


class _Promotion(TorchDispatchMode):
    """Float64 wins every meeting with a lower precision."""

    def __init__(self, weights: _KeptWeights) -> None:
        super().__init__()
        self._weights = weights

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own switch. Nothing is compiled meanwhile, and keeping the compiler away costs every operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if _mixed(args, kwargs):
            _require_no_narrow_target(func, args, kwargs)
            args, kwargs = tree_map(self._promoted, (args, kwargs))
        return func(*args, **kwargs)

    def _promoted(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._weights.double(x) if x.dtype in LOWER_PRECISION else x
        return torch.float64 if isinstance(x, torch.dtype) and x in LOWER_PRECISION else x


PARTICULAR = {
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    *(torch.prelu, F.prelu, torch.bilinear, F.bilinear, torch.tensordot, F.scaled_dot_product_attention),
}
"""Functions that compare dtypes before any operation of theirs is dispatched."""


class _EarlyPromotion(TorchFunctionMode):
    """`_Promotion` for those functions, whose tensors may be a transformation's own, without memory to know them by."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in PARTICULAR and _mixed(args, kwargs):
            args, kwargs = tree_map(_double, (args, kwargs))
        return func(*args, **kwargs)


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.dtype in LOWER_PRECISION else x


def _require_no_narrow_target(func: Any, args: tuple, kwargs: dict) -> None:
    """An in-place operation on a promoted copy would be lost without a word."""
    for n, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        target = kwargs.get(argument.name) if n >= len(args) else args[n]
        if isinstance(target, Tensor) and target.dtype in LOWER_PRECISION:
            raise ValueError(
                f"{func} writes a float64 state into a {target.dtype} tensor made by the model; make it like "
                "the state (torch.zeros_like(h), h.new_empty(...)), or pass the model in float64."
            )


def _mixed(args: tuple, kwargs: dict) -> bool:
    """Float64 together with a lower precision; run for every operation, so it must be quick."""
    double = lower = False
    for argument in (*args, *kwargs.values()):
        for x in argument if isinstance(argument, (list, tuple)) else (argument,):
            dtype = x.dtype if isinstance(x, Tensor) else x
            if dtype is torch.float64:
                double = double or x is not dtype
            elif isinstance(dtype, torch.dtype) and dtype in LOWER_PRECISION:
                lower = True
    return double and lower
