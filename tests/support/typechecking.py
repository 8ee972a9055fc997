"""beartype for jaxtyping's import hook, which writes the checker of a signature once.

The hook decorates a function inside another one at every call of the outer one; most of that time beartype would write
the same checker again. And it checks arguments before the call and, with the result, once more: here only those whose
type the call can have changed, as the items of a list. (Nor can a tensor's shape: nothing of ours changes it in place.)
"""

from collections.abc import Callable, Hashable
from typing import Any, get_args, get_origin

from beartype import beartype
from jaxtyping import AbstractArray

CHECKERS: dict[Hashable, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The checker of a function without a body of its own, which is what jaxtyping hands over: signatures.

    Sizes that the arguments gave to axis names before the call hold for the result.
    """
    hints = function.__annotations__
    if hints.get("return", Any) is not Any:  # the one that is called behind the call
        function.__annotations__ = {k: hint for k, hint in hints.items() if k == "return" or not isinstance(hint, type)}
    key = _of_signature(function)
    try:
        return CHECKERS[key]
    except KeyError:
        return CHECKERS.setdefault(key, beartype(function))
    except TypeError:  # an annotation that cannot be hashed
        return beartype(function)


def _of_signature(function: Callable[..., Any]) -> Hashable:
    """As `inspect.signature`, which takes as long as all else; of defaults, that there are some: none is checked."""
    code = function.__code__
    arguments = code.co_varnames, code.co_posonlyargcount, code.co_argcount, code.co_kwonlyargcount, code.co_flags
    defaults = len(function.__defaults__ or ()), *(function.__kwdefaults__ or ())
    hints = ((name, _of_hint(hint)) for name, hint in function.__annotations__.items())
    return function.__module__, function.__qualname__, arguments, defaults, *hints


def _of_hint(hint: Any) -> Hashable:
    """`Float[Tensor, "n d"]` is another class, unequal to the last, each time that it is evaluated."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.dtype, hint.array_type, hint.dim_str
    parts = hint if isinstance(hint, list) else get_args(hint)
    return (get_origin(hint), *map(_of_hint, parts)) if parts else hint
