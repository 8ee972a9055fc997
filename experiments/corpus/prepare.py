"""From a corpus to two memory-mapped arrays of token ids, once; the next run finds them in the cache.

The cache key is a digest over the content (the digest of every file), the settings, and the versions of what
turns text into tokens. So the corpus is read and hashed every time, and tokenised only when something
differs.
"""

import hashlib
import json
import platform
import sys
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import UInt

from experiments.corpus.cache import ensure_folder
from experiments.corpus.config import CorpusConfig
from experiments.corpus.content import Content, Encoded, read_content
from experiments.corpus.hub import is_wikitext_103
from experiments.errors import UsageError
from experiments.files import read_json, write_json

# Raise this when the meaning of a cached file changes.
_FORMAT = 1
_PAPER_VOCAB_SIZE = 20_000
_NOTE = (
    "Perplexities on these tokens are not comparable with the paper's, which are for WikiText-103 (raw) "
    "with a word vocabulary of 20,000; compare orderings and growth, not levels."
)
_ANNOUNCE_CHARACTERS = 1_000_000  # fewer are tokenised in well under a second


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenCorpus:
    """A prepared corpus.

    `train` and `validation` are read-only maps of files in `folder`: a slice is read when it is used, and has
    to be copied before it becomes a tensor. `record` is what a run keeps of its data: everything but
    `record["files"]`, the digest of every file, is small enough to print. `key` changes with content and
    settings.
    """

    train: UInt[np.ndarray, " train_tokens"]
    validation: UInt[np.ndarray, " validation_tokens"]
    vocab_size: int
    record: dict[str, Any]
    key: str
    folder: Path


def default_cache() -> Path:
    """Where prepared corpora are kept unless the user names another folder."""
    import platformdirs  # here, so that a bare checkout that names a folder does without it

    return platformdirs.user_cache_path("loopsight") / "corpus"


def prepare(config: CorpusConfig, cache: Path, min_tokens: int = 2) -> TokenCorpus:
    """Read the corpus and return its tokens, from `cache/KEY` if they are there.

    Args:
        cache: folder of prepared corpora; made if missing.
        min_tokens: fewest tokens that each part must have: the context length plus one.

    Raises:
        UsageError: the corpus does not exist, is unreadable, empty or too short, or the cache cannot be
            written.
    """
    content = read_content(config)
    key = corpus_key(config, content)
    folder = cache / key
    ensure_folder(folder, lambda empty: _fill(empty, config, content, key))
    corpus = open_prepared(folder)
    _check_length(config, corpus.record["tokens"], min_tokens)
    return corpus


def open_prepared(folder: Path) -> TokenCorpus:
    """A corpus that `prepare` has made, from its own folder, without a look at the text."""
    record = read_json(folder / "record.json")
    return TokenCorpus(
        train=np.load(folder / "train.npy", mmap_mode="r"),
        validation=np.load(folder / "validation.npy", mmap_mode="r"),
        vocab_size=record["vocab_size"],
        record=record,
        key=record["key"],
        folder=folder,
    )


def corpus_key(config: CorpusConfig, content: Content) -> str:
    """Digest of the settings, of the files in order, and of the versions that the tokens depend on."""
    parts = [_FORMAT, asdict(config), list(content.files.items()), _versions()]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()[:24]


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
        "tokenizers": tokenizers.__version__,
    }


def _fill(folder: Path, config: CorpusConfig, content: Content, key: str) -> None:
    _announce(config, content)
    encoded = content.encode()
    np.save(folder / "train.npy", encoded.train)
    np.save(folder / "validation.npy", encoded.validation)
    if encoded.tokeniser is not None:
        encoded.tokeniser.save(folder / "tokenizer.json")
    write_json(folder / "record.json", _record(config, content, encoded, key))


def _announce(config: CorpusConfig, content: Content) -> None:
    characters = sum((content.characters or {}).values())
    if characters >= _ANNOUNCE_CHARACTERS and not sys.stderr.isatty():  # a terminal gets progress bars
        print(f"preparing the corpus {config.data} ({characters / 1e6:.1f} M characters), once", file=sys.stderr)


def _record(config: CorpusConfig, content: Content, encoded: Encoded, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "data": config.data,
        "source": content.description,
        "versions": _versions(),
        "file_count": len(content.files),
        "skipped_files": content.skipped_files,
        "validation_fraction": content.validation_fraction,
        "characters": content.characters,
        "tokens": {"train": encoded.train.size, "validation": encoded.validation.size},
        "token_sha256": {"train": _digest(encoded.train), "validation": _digest(encoded.validation)},
        "tokeniser": encoded.settings,
        "vocab_size": encoded.vocab_size,
        "unknown_rate": encoded.unknown_rate,
        "entropy_floor_nats": content.entropy_floor,
        "note": None if _is_papers(config) else _NOTE,
        "files": content.files,
    }


def _digest(ids: UInt[np.ndarray, " tokens"]) -> str:
    """Of the ids as little-endian 32-bit integers, whatever the machine and the width they are kept in."""
    return hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest()


def _is_papers(config: CorpusConfig) -> bool:
    same_tokens = config.tokeniser == "word" and config.vocab_size == _PAPER_VOCAB_SIZE
    return same_tokens and is_wikitext_103(config.data)


def _check_length(config: CorpusConfig, tokens: dict[str, int], min_tokens: int) -> None:
    for part, count in tokens.items():
        if count < min_tokens:
            raise UsageError(
                f"the {part} part of the corpus {config.data!r} has {count} tokens and needs {min_tokens} "
                "(context + 1); give more text with --data PATH, or shorten the context."
            )
