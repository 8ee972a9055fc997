"""The settings of a corpus."""

from dataclasses import dataclass
from typing import Literal

from experiments.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which text, and how it becomes tokens.

    Raises:
        UsageError: a value is out of its range.
    """

    data: str = "stdlib"
    """stdlib, python, synthetic[:SEED], hf:NAME[:CONFIG], or the path of a text file or a folder of them."""
    tokeniser: Literal["word", "byte"] = "word"
    """word: the paper's regular expression; byte: UTF-8 bytes. `synthetic` needs neither."""
    vocab_size: int = 2000
    """Most token ids, the unknown one included (paper: 20000). Bytes have 256, `synthetic` at most 256."""
    validation_fraction: float = 0.05
    """Part of the characters held out at the end, unless the source has a validation split of its own."""

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise UsageError(f"the vocabulary size is {self.vocab_size}; it must be 2 or more.")
        if not 0 < self.validation_fraction < 1:
            raise UsageError(
                f"the validation fraction is {self.validation_fraction}; it must be between 0 and 1, for example 0.05."
            )
