"""The held-out part is the tail of the text: no shuffling and no seed decides what is never trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.corpus.documents import Document, Source


@dataclass(frozen=True, kw_only=True)
class Split:
    """Documents to train on, and documents that are only ever evaluated."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]


def split_source(source: Source, validation_fraction: float) -> Split:
    """Keep the source's own validation part if it has one, else cut off the tail."""
    if source.validation is not None:
        return Split(train=source.documents, validation=source.validation)
    return split_tail(source.documents, validation_fraction)


def split_tail(documents: Sequence[Document], fraction: float) -> Split:
    """Hold out the last round(fraction x T) of the T characters of the documents in order.

    The cut may fall inside a document, and then inside a word. Both halves keep the name and the digest.
    """
    total = sum(len(document.text) for document in documents)
    kept = total - round(fraction * total)
    train, validation = [], []
    for document in documents:
        if document.text[:kept]:
            train.append(replace(document, text=document.text[:kept]))
        if document.text[kept:]:
            validation.append(replace(document, text=document.text[kept:]))
        kept = max(0, kept - len(document.text))
    return Split(train=tuple(train), validation=tuple(validation))
