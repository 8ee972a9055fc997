"""What a corpus is before tokenising, with its digests, and what it is after.

Reading and hashing is cheap and always done; `Content.encode` is the expensive part, called on a cache miss.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt

from experiments.corpus.config import CorpusConfig
from experiments.corpus.documents import Document
from experiments.corpus.sources import read_source
from experiments.corpus.split import Split, split_source
from experiments.corpus.synthetic import MarkovSource
from experiments.corpus.tokeniser import PATTERN, ByteTokeniser, TextTokeniser, WordTokeniser
from experiments.errors import UsageError

_SYNTHETIC_TOKENS = 2**20
_SYNTHETIC_VOCAB_SIZE = 256
_SYNTHETIC_BRANCHING = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """Token ids of both parts, and what is known about them.

    `unknown_rate` is the share of tokens outside the vocabulary by part, None if there can be none;
    `tokeniser` is the tokeniser whose file is kept with the tokens, None if there is nothing to keep.
    """

    train: UInt[np.ndarray, " train_tokens"]
    validation: UInt[np.ndarray, " validation_tokens"]
    vocab_size: int
    settings: dict[str, Any]
    unknown_rate: dict[str, float] | None = None
    tokeniser: WordTokeniser | None = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """A corpus that has been read.

    `files` maps names to the sha256 of their bytes, in corpus order. `characters` is None where there is no
    text; `entropy_floor` is in nats per token, None where it is not known. `validation_fraction` is None
    where the source came with its own validation part.
    """

    description: str
    files: dict[str, str]
    encode: Callable[[], Encoded]
    skipped_files: int = 0
    characters: dict[str, int] | None = None
    validation_fraction: float | None
    entropy_floor: float | None = None


def read_content(config: CorpusConfig) -> Content:
    """Read the corpus that the configuration names.

    Raises:
        UsageError: there is no such corpus, or it holds no readable text.
    """
    name, _, seed = config.data.partition(":")
    return _synthetic_content(config, seed) if name == "synthetic" else _text_content(config)


def _text_content(config: CorpusConfig) -> Content:
    source = read_source(config.data)
    split = split_source(source, config.validation_fraction)
    if not split.train:
        raise UsageError(f"the corpus {config.data!r} is empty; choose another one with --data PATH.")
    return Content(
        description=source.description,
        files={document.name: document.sha256 for document in source.documents + (source.validation or ())},
        encode=partial(_encode_text, config, split),
        skipped_files=source.skipped_files,
        characters={"train": _characters(split.train), "validation": _characters(split.validation)},
        validation_fraction=None if source.validation is not None else config.validation_fraction,
    )


def _characters(documents: Sequence[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _encode_text(config: CorpusConfig, split: Split) -> Encoded:
    if config.tokeniser == "byte":
        return _encode_with(ByteTokeniser(), split, {"name": "byte"})
    words = WordTokeniser.fit(split.train, config.vocab_size)
    settings = {
        "name": "word",
        "pattern": PATTERN,
        "requested_vocab_size": config.vocab_size,
        "min_frequency": 2,
        "unknown_id": words.unknown_id,
    }
    return _encode_with(words, split, settings)


def _encode_with(tokeniser: TextTokeniser, split: Split, settings: dict[str, Any]) -> Encoded:
    train = tokeniser.encode_documents(split.train)
    validation = tokeniser.encode_documents(split.validation)
    unknown = tokeniser.unknown_id
    return Encoded(
        train=train,
        validation=validation,
        vocab_size=tokeniser.vocab_size,
        settings=settings,
        unknown_rate=None
        if unknown is None
        else {"train": _rate(train, unknown), "validation": _rate(validation, unknown)},
        tokeniser=tokeniser if isinstance(tokeniser, WordTokeniser) else None,
    )


def _rate(ids: UInt[np.ndarray, " tokens"], unknown: int) -> float:
    return float(np.count_nonzero(ids == unknown) / max(1, ids.size))


def _synthetic_content(config: CorpusConfig, seed: str) -> Content:
    chain = _chain(config, seed)
    tokens = chain.tokens(_SYNTHETIC_TOKENS)
    return Content(
        description=f"Markov chain, seed {chain.seed}, {chain.branching} successors to each token",
        files={f"synthetic:{chain.seed}": hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest()},
        encode=partial(_encode_synthetic, chain, tokens, config.validation_fraction),
        validation_fraction=config.validation_fraction,
        entropy_floor=chain.entropy_floor,
    )


def _chain(config: CorpusConfig, seed: str) -> MarkovSource:
    vocab_size = min(config.vocab_size, _SYNTHETIC_VOCAB_SIZE)
    try:
        return MarkovSource(vocab_size=vocab_size, branching=_SYNTHETIC_BRANCHING, seed=int(seed or 0))
    except ValueError as error:
        raise UsageError(
            f"cannot make {config.data!r} with a vocabulary of {vocab_size}; write synthetic or "
            f"synthetic:SEED, SEED a whole number from 0 to 4294967295, with a vocabulary of "
            f"{_SYNTHETIC_BRANCHING} or more."
        ) from error


def _encode_synthetic(chain: MarkovSource, tokens: UInt[np.ndarray, " tokens"], validation_fraction: float) -> Encoded:
    kept = tokens.size - round(validation_fraction * tokens.size)
    settings = {"name": "none", "branching": chain.branching, "seed": chain.seed}
    return Encoded(train=tokens[:kept], validation=tokens[kept:], vocab_size=chain.vocab_size, settings=settings)
