"""What an adapter is: how a family of models is recognised by its structure, and how its maps are cut out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from loopsight.protocol import LoopedMaps


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of looped models.

    Attributes:
        name: as its authors call it.
        looks_for: the structure that is recognised, in words.
        recognises: whether a model has it.
        maps: model in evaluation mode and batch to the three maps.
    """

    name: str
    looks_for: str
    recognises: Callable[[nn.Module], bool]
    maps: Callable[[nn.Module, Any], LoopedMaps]


def has(model: nn.Module, *paths: str) -> bool:
    """Whether every dotted path names a submodule."""
    names = dict(model.named_modules(remove_duplicate=False))
    return all(path in names for path in paths)
