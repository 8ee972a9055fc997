"""beartype for jaxtyping's import hook, without checking, or writing a checker, twice.

The hook decorates a function inside another one at every call of the outer one, and each time beartype would write the
same checker again; and it checks arguments before the call and, with the result, once more behind it.
"""

import inspect
from collections.abc import Callable
from typing import Any

from beartype import beartype

_CHECKERS: dict[tuple[str, str, inspect.Signature], Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The checker of a signature.

    jaxtyping hands over an empty function with the signature of the one to check: first with `Any` for the result, then
    with the result as one more argument. Sizes that the arguments gave to axis names still hold in the second.
    """
    signature = inspect.signature(function)
    if signature.return_annotation not in (Any, inspect.Signature.empty):
        function.__annotations__ = {"return": signature.return_annotation}
    key = function.__module__, function.__qualname__, signature
    try:
        return _CHECKERS[key]
    except KeyError:
        return _CHECKERS.setdefault(key, beartype(function))
    except TypeError:  # an annotation or a default that cannot be hashed
        return beartype(function)
