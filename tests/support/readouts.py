"""Readouts of every kind there is, for tests of what holds for all of them."""

from typing import get_args

from models import ReadoutConfig
from models.config import GROUPED_READOUTS, ReadoutKind

KINDS: tuple[ReadoutKind, ...] = get_args(ReadoutKind)


def readout_of(kind: ReadoutKind, *, gain: bool = True, tied: bool = True, num_groups: int = 3) -> ReadoutConfig:
    """A readout of a kind; `gain` and `num_groups` where it has them."""
    return ReadoutConfig(
        kind=kind,
        gain=gain and kind != "raw",
        tied=tied,
        num_groups=num_groups if kind in GROUPED_READOUTS else None,
    )
