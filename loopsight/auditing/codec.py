"""Frozen dataclasses as JSON and back, by their annotations; strict JSON, so non-finite numbers become strings."""

import dataclasses
import json
import math
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any) -> str:
    """Strict JSON of a dataclass of numbers, strings, booleans, None, tuples and dataclasses."""
    return json.dumps(_plain(value), indent=1, allow_nan=False) + "\n"


def from_json(kind: type[T], text: str) -> T:
    """The dataclass that `to_json` wrote.

    Raises:
        ValueError: the text is no JSON, or not that of a `kind` of this version.
    """
    try:
        return _typed(kind, json.loads(text))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"this is not the JSON of a {kind.__name__} of this version ({error}).") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _typed(kind: Any, value: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (option for option in get_args(kind) if option is not type(None))
        return _typed(inner, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, got {value!r}")
        return tuple(_typed(get_args(kind)[0], item) for item in value)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{value!r} is none of {get_args(kind)}")
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if set(value) != set(hints):
            raise ValueError(f"{kind.__name__} has the fields {sorted(hints)}, got {sorted(value)}")
        return kind(**{name: _typed(hint, value[name]) for name, hint in hints.items()})
    if kind is float and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value
