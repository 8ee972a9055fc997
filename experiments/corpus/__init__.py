"""Text and synthetic tokens to train on: `prepare(CorpusConfig(data="stdlib"), default_cache())`."""

from experiments.corpus.config import CorpusConfig
from experiments.corpus.documents import Document
from experiments.corpus.prepare import TokenCorpus, default_cache, open_prepared, prepare
from experiments.corpus.synthetic import MarkovSource
from experiments.corpus.tokeniser import ByteTokeniser, TextTokeniser, WordTokeniser

__all__ = [
    "ByteTokeniser",
    "CorpusConfig",
    "Document",
    "MarkovSource",
    "TextTokeniser",
    "TokenCorpus",
    "WordTokeniser",
    "default_cache",
    "open_prepared",
    "prepare",
]
