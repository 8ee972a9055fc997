"""The word tokeniser is Python's `re` and a sorted count; the byte tokeniser is UTF-8."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

from experiments.corpus.documents import Document, document_from_text
from experiments.corpus.tokeniser import (
    PATTERN,
    UNKNOWN,
    ByteTokeniser,
    TextTokeniser,
    WordTokeniser,
    cut,
    explicit_pattern,
)
from experiments.errors import UsageError

PROSE = "the cat and the dog;\n\tthe cat, the end.\n\n    return the_cat[0] + cat2  # caf\u00e9 \u4e2d\u6587\n"
# Characters that Oniguruma and Python put into different classes, and ones that Python drops or keeps.
AWKWARD = "aZ_09 \t\n\r\x1c\x85\u00a0\u3000.,;\u00b2\u00bd\u0301\u203f\u00e9\u4e2d\U0001f600[UNK]"


def documents(*texts: str) -> list[Document]:
    return [document_from_text(f"{i}.txt", text) for i, text in enumerate(texts)]


def expected_vocabulary(texts: list[str], vocab_size: int) -> dict[str, int]:
    counts = Counter(token for text in texts for token in re.findall(PATTERN, text))
    repeated = sorted((-n, token) for token, n in counts.items() if n >= 2)
    return {UNKNOWN: 0} | {token: i + 1 for i, (_, token) in enumerate(repeated[: vocab_size - 1])}


def expected_ids(vocabulary: dict[str, int], text: str) -> list[int]:
    return [vocabulary.get(token, 0) for token in re.findall(PATTERN, text)]


def matches(pattern: str, text: str) -> list[str]:
    split = Split(Regex(pattern), behavior="removed", invert=True)
    return [token for token, _ in split.pre_tokenize_str(text)]


def test_explicit_pattern_is_pythons_on_every_code_point_and_the_short_one_is_not() -> None:
    characters = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF)
    expected = re.findall(PATTERN, characters)
    assert matches(explicit_pattern(), characters) == expected
    assert matches(PATTERN, characters[:0x3000]) != re.findall(PATTERN, characters[:0x3000])


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_text_is_split_as_by_re(text: str) -> None:
    assert matches(explicit_pattern(), text) == re.findall(PATTERN, text)


@given(st.text(st.one_of(st.sampled_from(AWKWARD), st.characters(exclude_categories=["Cs"]))))
def test_unicode_text_is_split_as_by_re(text: str) -> None:
    assert matches(explicit_pattern(), text) == re.findall(PATTERN, text)


@given(st.lists(st.text(st.sampled_from(AWKWARD)), min_size=1), st.integers(2, 12))
def test_vocabulary_and_ids_are_those_of_a_sorted_count(texts: list[str], vocab_size: int) -> None:
    corpus = documents("a a", *texts)
    expected = expected_vocabulary(["a a", *texts], vocab_size)
    words = WordTokeniser.fit(corpus, vocab_size)
    assert words.vocabulary == expected
    assert words.encode_documents(corpus).tolist() == [
        i for document in corpus for i in expected_ids(expected, document.text)
    ]


def test_a_text_that_quotes_the_unknown_token_is_split_like_any_other() -> None:
    words = WordTokeniser.fit(documents("[UNK] [UNK]"), 10)
    assert words.vocabulary == {UNKNOWN: 0, "UNK": 1, "[": 2, "]": 3}
    assert words.encode_documents(documents("[UNK]")).tolist() == [2, 1, 3]


def test_vocabulary_holds_the_most_frequent_tokens_and_none_that_occurs_once() -> None:
    assert set(WordTokeniser.fit(documents("b b b a a c"), 100).vocabulary) == {UNKNOWN, " ", "b", "a"}
    assert set(WordTokeniser.fit(documents("b b b a a c"), 3).vocabulary) == {UNKNOWN, " ", "b"}


def test_letters_outside_ascii_are_dropped() -> None:
    words = WordTokeniser.fit(documents("caf caf"), 10)
    assert words.encode_documents(documents("caf\u00e9")).tolist() == [words.vocabulary["caf"]]


@given(st.text(st.sampled_from(AWKWARD)), st.integers(0, 10))
def test_cutting_a_text_never_cuts_a_token(text: str, characters: int) -> None:
    pieces = list(cut(text, characters))
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in re.findall(PATTERN, piece)] == re.findall(PATTERN, text)


def test_cutting_does_cut() -> None:
    assert list(cut("aa bb cc", 2)) == ["aa ", "bb ", "cc"]
    assert max(map(len, cut(PROSE * 100, 50))) < 70


def test_long_documents_are_encoded_as_in_one_piece() -> None:
    text = PROSE * 3000
    words = WordTokeniser.fit(documents(text), 50)
    assert words.encode_documents(documents(text)).tolist() == expected_ids(words.vocabulary, text)


def test_a_saved_tokeniser_is_a_standard_file_and_loads_to_the_same_ids(tmp_path: Path) -> None:
    words = WordTokeniser.fit(documents(PROSE), 20)
    words.save(tmp_path / "tokenizer.json")
    loaded = WordTokeniser.load(tmp_path / "tokenizer.json")
    ids = words.encode_documents(documents(PROSE, "unseen words"))
    assert np.array_equal(loaded.encode_documents(documents(PROSE, "unseen words")), ids)
    assert (loaded.vocab_size, loaded.unknown_id) == (words.vocab_size, 0)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert plain.encode(PROSE).ids == expected_ids(words.vocabulary, PROSE)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "WordLevel"


def test_a_file_that_is_no_tokeniser_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read the tokeniser .*tokenizer.json"):
        WordTokeniser.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text(Tokenizer.from_str(_other_tokeniser()).to_str())
    with pytest.raises(UsageError, match=r"has no token '\[UNK\]'"):
        WordTokeniser.load(tmp_path / "tokenizer.json")


def _other_tokeniser() -> str:
    return json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})


def test_text_that_repeats_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="repeats no word.*--data PATH"):
        WordTokeniser.fit(documents("alpha beta", "gamma"), 10)


def test_large_vocabularies_need_more_than_16_bits() -> None:
    text = " ".join(f"w{i} w{i}" for i in range(2**16))
    words = WordTokeniser.fit(documents(text), 2**17)
    ids = words.encode_documents(documents(text))
    assert words.vocab_size == 2**16 + 2
    assert (ids.dtype, int(ids.max())) == (np.dtype(np.uint32), 2**16 + 1)
    assert WordTokeniser.fit(documents(text), 2**16).encode_documents(documents(text)).dtype == np.uint16


def test_no_documents_are_no_tokens() -> None:
    for tokeniser in (WordTokeniser.fit(documents("a a"), 3), ByteTokeniser()):
        assert tokeniser.encode_documents([]).shape == (0,)


def test_bytes_are_those_of_utf8() -> None:
    ids = ByteTokeniser().encode_documents(documents("a\u00e9", "\U0001f600"))
    assert ids.dtype == np.uint16
    assert bytes(ids.tolist()) == "a\u00e9\U0001f600".encode()


def test_both_tokenisers_have_the_protocol() -> None:
    words = WordTokeniser.fit(documents("a a"), 3)
    assert isinstance(words, TextTokeniser) and isinstance(ByteTokeniser(), TextTokeniser)
    assert (words.name, ByteTokeniser().name) == ("word", "byte")
    assert (ByteTokeniser().vocab_size, ByteTokeniser().unknown_id) == (256, None)
