r"""Two tokenisers: the paper's words, and bytes.

A word token is a match of `\s+|[A-Za-z0-9_]+|[^\w\s]` as Python's `re` reads it. White space is a token,
which is why perplexities on prose are near 5. What no alternative matches is dropped without a trace: letters
outside ASCII, so that "café" becomes "caf". The vocabulary is the unknown token (id 0) and the most frequent
tokens that occur at least twice, in order of falling frequency, ties in code point order.

Matching is left to the `tokenizers` library, not because it is faster (`re` is as fast) but because its
tokenizer.json can be loaded elsewhere. Its engine understands other characters by \w and \s than Python does
(marks, connectors, superscripts: 12,907 code points with Python 3.11), so the pattern given to it spells both
classes out from the running Python's own tables. This costs nothing and makes the tokens equal to those of
`re` on all of Unicode.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import WordLevelTrainer
from tqdm import tqdm

from experiments.corpus.documents import Document
from experiments.errors import UsageError
from experiments.files import atomic_path

PATTERN = r"\s+|[A-Za-z0-9_]+|[^\w\s]"
# The pattern takes this text apart, so no text can contain the unknown token as a token.
UNKNOWN = "[UNK]"

# After the last character of a run of white space, or after a punctuation mark, a token always ends.
_TOKEN_END = re.compile(r"\s(?=\S)|[^\w\s]")
# Pieces spread a long document over the cores, and bound memory: a batch keeps every token's text and place.
_PIECE_CHARACTERS = 2**15
_PIECES_PER_BATCH = 32


@runtime_checkable
class TextTokeniser(Protocol):
    """Text to token ids."""

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int:
        """Number of ids; ids are 0 to vocab_size - 1."""

    @property
    def unknown_id(self) -> int | None:
        """The id of every token outside the vocabulary; None if there can be none."""

    def encode_documents(self, documents: Sequence[Document]) -> UInt[np.ndarray, " tokens"]:
        """The ids of all documents, one after another; a token never spans two documents."""


class ByteTokeniser:
    """The bytes of the text in UTF-8: 256 ids, nothing unknown."""

    name = "byte"
    vocab_size = 256
    unknown_id = None

    def encode_documents(self, documents: Sequence[Document]) -> UInt[np.ndarray, " tokens"]:
        raw = b"".join(document.text.encode("utf-8") for document in documents)
        return np.frombuffer(raw, dtype=np.uint8).astype(np.uint16)


class WordTokeniser:
    """The paper's tokeniser; made by `fit` or `load`. `vocabulary` maps tokens to ids."""

    name = "word"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.vocab_size: int = len(self.vocabulary)
        self.unknown_id: int = self.vocabulary[UNKNOWN]

    @classmethod
    def fit(cls, documents: Sequence[Document], vocab_size: int) -> "WordTokeniser":
        """Count the tokens of the documents.

        Args:
            vocab_size: most ids to give, the unknown token included; fewer tokens may qualify.

        Raises:
            UsageError: no token occurs twice.
        """
        counter = _word_level({UNKNOWN: 0})
        trainer = WordLevelTrainer(
            vocab_size=vocab_size, min_frequency=2, special_tokens=[UNKNOWN], show_progress=False
        )
        counter.train_from_iterator(_pieces(documents, "counting words"), trainer)
        if counter.get_vocab_size() < 2:
            raise UsageError(
                "the training text repeats no word, so it gives no vocabulary; give more with --data PATH."
            )
        # The trainer also registers the unknown token as an added token, which is searched for in the text
        # before the pattern is applied: a corpus that quotes "[UNK]" would not be tokenised as by `re`.
        return cls(_word_level(counter.get_vocab()))

    @classmethod
    def load(cls, path: Path) -> "WordTokeniser":
        """Read a tokenizer.json.

        Raises:
            UsageError: the file cannot be read, or is not a tokeniser that `save` wrote.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UsageError(f"cannot read the tokeniser {str(path)!r} ({error}).") from error
        if tokenizer.token_to_id(UNKNOWN) is None:
            raise UsageError(f"the tokeniser {str(path)!r} has no token {UNKNOWN!r}; it was not saved by this program.")
        return cls(tokenizer)

    def save(self, path: Path) -> None:
        """Write a standard tokenizer.json, which holds the pattern and the vocabulary."""
        with atomic_path(path) as temporary:
            self._tokenizer.save(str(temporary))

    def encode_documents(self, documents: Sequence[Document]) -> UInt[np.ndarray, " tokens"]:
        dtype = np.uint16 if self.vocab_size <= 2**16 else np.uint32
        pieces = _pieces(documents, "tokenising")
        parts = [np.empty(0, dtype)]
        while batch := list(islice(pieces, _PIECES_PER_BATCH)):
            encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            parts.extend(np.array(encoding.ids, dtype) for encoding in encodings)
        return np.concatenate(parts)


@cache
def explicit_pattern() -> str:
    r"""`PATTERN` with \s and \w as ranges of the running Python's characters, 13 kB."""
    space, word_or_space = _ranges(r"\s+"), _ranges(r"[\w\s]+")
    return f"[{space}]+|[A-Za-z0-9_]+|[^{word_or_space}]"


def cut(text: str, characters: int = _PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text where a token ends, at the first place after every `characters` characters.

    A text without such a place (one endless word) stays whole.
    """
    start = 0
    while end := _TOKEN_END.search(text, start + characters):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def _ranges(pattern: str) -> str:
    # Surrogates are left out: they are not characters, and UTF-8 text has none.
    characters = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF)
    runs = (match.group() for match in re.finditer(pattern, characters))
    return "".join(rf"\x{{{ord(run[0]):x}}}-\x{{{ord(run[-1]):x}}}" for run in runs)


def _word_level(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(explicit_pattern()), behavior="removed", invert=True)
    return tokenizer


def _pieces(documents: Sequence[Document], task: str) -> Iterator[str]:
    total = sum(len(document.text) for document in documents)
    with tqdm(total=total, desc=task, unit="char", unit_scale=True, leave=False, disable=None) as bar:
        for document in documents:
            for piece in cut(document.text):
                yield piece
                bar.update(len(piece))
