"""The held-out tail: complete, in order, and never part of what is trained on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.corpus.documents import Source, document_from_text
from experiments.corpus.split import split_source, split_tail

TEXTS = st.lists(st.text(max_size=20), max_size=8)


@given(TEXTS, st.floats(0.001, 0.999))
def test_train_then_validation_is_the_whole_text_and_the_tail_has_its_share(texts: list[str], fraction: float) -> None:
    split = split_tail([document_from_text(str(i), text) for i, text in enumerate(texts)], fraction)
    train = "".join(document.text for document in split.train)
    validation = "".join(document.text for document in split.validation)
    assert train + validation == "".join(texts)
    assert len(validation) == round(fraction * len("".join(texts)))


@given(TEXTS, st.floats(0.001, 0.999))
def test_at_most_one_document_is_cut_and_the_rest_is_whole(texts: list[str], fraction: float) -> None:
    split = split_tail([document_from_text(str(i), text) for i, text in enumerate(texts)], fraction)
    cut = {d.name for d in split.train} & {d.name for d in split.validation}
    assert len(cut) <= 1
    for document in split.train + split.validation:
        assert document.name in cut or document.text == texts[int(document.name)]


def test_a_cut_document_keeps_its_name_and_digest() -> None:
    whole = document_from_text("a", "0123456789")
    split = split_tail([whole], 0.3)
    assert [(d.name, d.text, d.sha256) for d in split.train] == [("a", "0123456", whole.sha256)]
    assert [(d.name, d.text, d.sha256) for d in split.validation] == [("a", "789", whole.sha256)]


def test_the_tail_is_that_of_the_last_document() -> None:
    documents = tuple(document_from_text(name, name * 10) for name in "abc")
    split = split_source(Source(description="x", documents=documents), 0.1)
    assert [(d.name, d.text) for d in split.validation] == [("c", "ccc")]
    assert [d.name for d in split.train] == ["a", "b", "c"]


@pytest.mark.parametrize("fraction", [0.05, 0.9])
def test_a_validation_part_of_the_sources_own_is_used_whatever_the_fraction(fraction: float) -> None:
    train, held_out = (document_from_text("train", "a" * 100),), (document_from_text("validation", "b"),)
    split = split_source(Source(description="x", documents=train, validation=held_out), fraction)
    assert (split.train, split.validation) == (train, held_out)
