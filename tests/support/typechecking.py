"""beartype for jaxtyping's import hook, which writes the checker of a signature once.

The hook decorates a function inside another one at every call of the outer one; most of that time beartype would write
the same checker again.
"""

import inspect
from collections.abc import Callable, Hashable
from typing import Any, get_args, get_origin

from beartype import beartype
from jaxtyping import AbstractArray

CHECKERS: dict[Hashable, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The checker of a function without a body of its own, which is what jaxtyping hands over: signatures."""
    key = _of_signature(function)
    try:
        return CHECKERS[key]
    except KeyError:
        return CHECKERS.setdefault(key, beartype(function))
    except TypeError:  # an annotation that cannot be hashed
        return beartype(function)


def _of_signature(function: Callable[..., Any]) -> Hashable:
    signature = inspect.signature(function)
    # Of a default it matters that there is one; beartype checks what is passed.
    parameters = [(p.name, p.kind, p.default is p.empty, _of_hint(p.annotation)) for p in signature.parameters.values()]
    return function.__module__, function.__qualname__, *parameters, _of_hint(signature.return_annotation)


def _of_hint(hint: Any) -> Hashable:
    """`Float[Tensor, "n d"]` is another class, unequal to the last, each time that it is evaluated."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.dtype, hint.array_type, hint.dim_str
    parts = hint if isinstance(hint, list) else get_args(hint)
    return (get_origin(hint), *map(_of_hint, parts)) if parts else hint
