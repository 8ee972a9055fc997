"""Types checked at the first calls of every function in every test, instead of at all of them.

A check takes longer than many a function that it guards, and decorating a function inside another one, at every call of
the outer one, longer still: such a one is checked once. What a loop calls again and again gets arguments of the same
types each time.
"""

import functools
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import jaxtyping

CALLS, CALLS_INSIDE = 2, 1
_calls: Counter[str] = Counter()
_jaxtyped: Any = jaxtyping.jaxtyped  # of its many forms, only that of the import hook is used


def first_calls(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """`jaxtyping.jaxtyped`, with which jaxtyping's import hook decorates, for the first calls alone."""
    if function is None:
        return functools.partial(first_calls, typechecker=typechecker)
    if not isinstance(function, types.FunctionType):
        return _jaxtyped(function, typechecker=typechecker)
    name = f"{function.__module__}.{function.__qualname__}"  # one for all that a function makes of those inside it
    most = CALLS_INSIDE if "<locals>" in name else CALLS
    checked = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if _calls[name] >= most:
            return function(*args, **kwargs)
        _calls[name] += 1
        checked = checked or _jaxtyped(function, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call


def install() -> None:
    """Before the packages are imported."""
    jaxtyping.jaxtyped = first_calls


def start_again() -> None:
    """All functions are checked again."""
    _calls.clear()
