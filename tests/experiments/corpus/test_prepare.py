"""From `--data` to token arrays: what is held out, what is cached, what is recorded, what is refused."""

import hashlib
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from experiments.corpus import content
from experiments.corpus import prepare as public_prepare
from experiments.corpus.config import CorpusConfig
from experiments.corpus.documents import Source, document_from_text
from experiments.corpus.prepare import TokenCorpus, default_cache, prepare
from experiments.corpus.synthetic import MarkovSource
from experiments.corpus.tokeniser import PATTERN, WordTokeniser
from experiments.errors import UsageError


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i} of {i % 7} apples.\n" for i in range(300)), encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def rewritten(path: Path, **changes: str) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def ids(vocabulary: dict[str, int], text: str) -> list[int]:
    return [vocabulary.get(token, 0) for token in re.findall(PATTERN, text)]


def test_validation_is_exactly_the_tail_of_the_text_and_train_the_rest(text_file: Path, cache: Path) -> None:
    corpus = prepare(CorpusConfig(data=str(text_file), validation_fraction=0.2), cache)
    text = text_file.read_text(encoding="utf-8")
    kept = len(text) - round(0.2 * len(text))
    vocabulary = WordTokeniser.load(corpus.folder / "tokenizer.json").vocabulary
    assert corpus.train.tolist() == ids(vocabulary, text[:kept])
    assert corpus.validation.tolist() == ids(vocabulary, text[kept:])
    assert corpus.record["characters"] == {"train": kept, "validation": len(text) - kept}


def test_bytes_of_train_and_validation_are_the_file(text_file: Path, cache: Path) -> None:
    corpus = prepare(CorpusConfig(data=str(text_file), tokeniser="byte"), cache)
    assert bytes(corpus.train.tolist() + corpus.validation.tolist()) == text_file.read_bytes()
    assert (corpus.vocab_size, corpus.record["unknown_rate"]) == (256, None)
    assert not (corpus.folder / "tokenizer.json").exists()


def test_vocabulary_is_fitted_on_the_training_part_alone(text_file: Path, cache: Path) -> None:
    with text_file.open("a", encoding="utf-8") as file:
        file.write("zebra zebra zebra apples")
    corpus = prepare(CorpusConfig(data=str(text_file)), cache)
    vocabulary = WordTokeniser.load(corpus.folder / "tokenizer.json").vocabulary
    assert "zebra" not in vocabulary and "apples" in vocabulary
    assert corpus.validation[-7:].tolist() == [0, vocabulary[" "]] * 3 + [vocabulary["apples"]]
    unknown = float((corpus.validation == 0).mean())
    assert corpus.record["unknown_rate"]["validation"] == unknown > 0


def test_arrays_are_read_only_maps_of_files(text_file: Path, cache: Path) -> None:
    corpus = prepare(CorpusConfig(data=str(text_file)), cache)
    for array in (corpus.train, corpus.validation):
        assert isinstance(array, np.memmap) and array.dtype == np.uint16 and not array.flags.writeable


def test_a_cached_corpus_is_not_tokenised_again(text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CorpusConfig(data=str(text_file))
    first = prepare(config, cache)

    def forbidden(*_: Any) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(content, "_encode_text", forbidden)
    second = prepare(config, cache)
    assert np.array_equal(first.train, second.train) and first.record == second.record
    with pytest.raises(AssertionError, match="tokenised again"):
        prepare(CorpusConfig(data=str(text_file), vocab_size=20), cache)


def test_every_setting_and_every_change_of_the_content_has_its_own_key(text_file: Path, cache: Path) -> None:
    data = str(text_file)
    configs = [
        CorpusConfig(data=data),
        CorpusConfig(data=data, vocab_size=20),
        CorpusConfig(data=data, validation_fraction=0.1),
        CorpusConfig(data=data, tokeniser="byte"),
    ]
    keys = [prepare(config, cache).key for config in configs]
    rewritten(text_file, apples="plums!")
    changed = prepare(configs[0], cache)
    assert len({*keys, changed.key}) == 5
    assert "plums" in WordTokeniser.load(changed.folder / "tokenizer.json").vocabulary
    rewritten(text_file, **{"plums!": "apples"})
    assert prepare(configs[0], cache).key == keys[0]


def test_renaming_a_file_of_a_folder_changes_the_key(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "folder"
    root.mkdir()
    (root / "a.txt").write_text("one two one two " * 20)
    (root / "b.txt").write_text("three three " * 20)
    before = prepare(CorpusConfig(data=str(root)), cache)
    (root / "b.txt").rename(root / "c.txt")
    renamed = prepare(CorpusConfig(data=str(root)), cache)
    (root / "c.txt").rename(root / "0.txt")
    reordered = prepare(CorpusConfig(data=str(root)), cache)
    assert len({before.key, renamed.key, reordered.key}) == 3
    assert before.train.tolist() == renamed.train.tolist() != reordered.train.tolist()


def test_another_version_of_the_tokeniser_library_changes_the_key(
    text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CorpusConfig(data=str(text_file))
    before = prepare(config, cache).key
    monkeypatch.setattr(tokenizers, "__version__", "0.0.0")
    after = prepare(config, cache)
    assert after.key != before and after.record["versions"]["tokenizers"] == "0.0.0"


@pytest.mark.parametrize("name", ["train.npy", "validation.npy", "record.json", "tokenizer.json"])
@pytest.mark.parametrize("keep_bytes", [None, 0, 200])
def test_a_damaged_cache_is_made_again(text_file: Path, cache: Path, name: str, keep_bytes: int | None) -> None:
    config = CorpusConfig(data=str(text_file))
    first = prepare(config, cache)
    train, path = first.train.tolist(), first.folder / name
    whole = path.read_bytes()
    path.unlink()
    if keep_bytes is not None:
        path.write_bytes(whole[:keep_bytes])
    second = prepare(config, cache)
    assert second.train.tolist() == train and path.read_bytes() == whole


def test_the_record_says_what_the_tokens_are(text_file: Path, cache: Path) -> None:
    corpus = prepare(CorpusConfig(data=str(text_file)), cache)
    record = corpus.record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["files"] == {"book.txt": hashlib.sha256(text_file.read_bytes()).hexdigest()}
    assert record["tokens"] == {"train": corpus.train.size, "validation": corpus.validation.size}
    assert (record["key"], record["vocab_size"]) == (corpus.key, corpus.vocab_size)
    assert record["versions"]["python"] == platform.python_version()
    assert (record["data"], record["source"]) == (str(text_file), "file book.txt")
    assert (record["file_count"], record["skipped_files"], record["validation_fraction"]) == (1, 0, 0.05)
    assert record["tokeniser"]["pattern"] == PATTERN and record["tokeniser"]["unknown_id"] == 0
    assert record["entropy_floor_nats"] is None
    digest = hashlib.sha256(np.asarray(corpus.train).astype("<u4").tobytes()).hexdigest()
    assert record["token_sha256"]["train"] == digest


def test_the_note_is_left_out_only_for_the_papers_tokens(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = document_from_text("train/000000", "a b a b " * 50)
    source = Source(description="stub", documents=(text,))
    monkeypatch.setattr(content, "read_source", lambda data: source)
    wikitext = "hf:wikitext:wikitext-103-raw-v1"
    assert prepare(CorpusConfig(data=wikitext, vocab_size=20_000), cache).record["note"] is None
    for config in (
        CorpusConfig(data=wikitext),
        CorpusConfig(data=wikitext, vocab_size=20_000, tokeniser="byte"),
        CorpusConfig(data="stdlib", vocab_size=20_000),
    ):
        assert "not comparable with the paper's" in prepare(config, cache).record["note"]


def test_a_dataset_with_its_own_validation_split_keeps_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    root = tmp_path / "set"
    root.mkdir()
    (root / "train.txt").write_text("one two\n" * 50)
    (root / "validation.txt").write_text("two new\n" * 5)
    corpus = prepare(CorpusConfig(data=f"hf:{root}"), cache)
    vocabulary = WordTokeniser.load(corpus.folder / "tokenizer.json").vocabulary
    assert corpus.train.tolist() == ids(vocabulary, "one two\n" * 50)
    assert corpus.validation.tolist() == ids(vocabulary, "two new\n" * 5)
    assert corpus.record["validation_fraction"] is None
    assert list(corpus.record["files"]) == ["train/000000", "validation/000000"]
    (root / "validation.txt").write_text("two newer\n" * 5)
    assert prepare(CorpusConfig(data=f"hf:{root}"), cache).key != corpus.key


def test_synthetic_tokens_are_the_chains_and_the_record_holds_their_floor(cache: Path) -> None:
    corpus = prepare(CorpusConfig(data="synthetic:7"), cache)
    chain = MarkovSource(seed=7)
    tokens = np.concatenate([corpus.train, corpus.validation])
    assert np.array_equal(tokens, chain.tokens(tokens.size))
    assert corpus.validation.size == round(0.05 * tokens.size)
    assert corpus.record["entropy_floor_nats"] == chain.entropy_floor
    assert (corpus.record["characters"], corpus.record["unknown_rate"], corpus.vocab_size) == (
        None,
        None,
        256,
    )
    assert prepare(CorpusConfig(data="synthetic", vocab_size=16), cache).vocab_size == 16


def test_seeds_of_synthetic_have_their_own_keys(cache: Path) -> None:
    keys = [prepare(CorpusConfig(data=data), cache).key for data in ("synthetic", "synthetic:1")]
    assert len(set(keys)) == 2


@pytest.mark.parametrize(
    ("data", "vocab_size"),
    [("synthetic:x", 256), ("synthetic:-1", 256), ("synthetic:4294967296", 256), ("synthetic", 7)],
)
def test_synthetic_corpora_that_cannot_be_made_are_refused(cache: Path, data: str, vocab_size: int) -> None:
    with pytest.raises(UsageError, match="cannot make 'synthetic.*SEED a whole number.*of 8 or more"):
        prepare(CorpusConfig(data=data, vocab_size=vocab_size), cache)


@pytest.mark.parametrize("tokeniser", ["word", "byte"])
def test_an_empty_file_is_refused(tmp_path: Path, cache: Path, tokeniser: Any) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UsageError, match="empty.txt' is empty; choose another one with --data PATH"):
        prepare(CorpusConfig(data=str(tmp_path / "empty.txt"), tokeniser=tokeniser), cache)


def test_a_short_part_is_refused_with_its_size_fresh_and_cached(text_file: Path, cache: Path) -> None:
    config = CorpusConfig(data=str(text_file))
    count = prepare(config, cache).validation.size
    assert prepare(config, cache, min_tokens=count).validation.size == count
    message = rf"the validation part of the corpus .* has {count} tokens and needs {count + 1} \(context \+ 1\)"
    for place in (cache, cache.with_name("other")):
        with pytest.raises(UsageError, match=message):
            prepare(config, place, min_tokens=count + 1)


def test_a_part_without_any_token_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "tiny.txt").write_text("a a a")
    with pytest.raises(UsageError, match="the validation part of the corpus .* has 0 tokens"):
        prepare(CorpusConfig(data=str(tmp_path / "tiny.txt")), cache)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_outside_0_to_1_are_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="the validation fraction is .*between 0 and 1"):
        CorpusConfig(validation_fraction=fraction)


def test_a_vocabulary_of_one_is_refused() -> None:
    with pytest.raises(UsageError, match="the vocabulary size is 1; it must be 2 or more"):
        CorpusConfig(vocab_size=1)


def test_long_work_is_announced_once_and_short_work_is_not(
    text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(CorpusConfig(data=str(text_file)), cache)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.modules[prepare.__module__], "_ANNOUNCE_CHARACTERS", 100)
    for _ in range(2):
        prepare(CorpusConfig(data=str(text_file), vocab_size=30), cache)
    assert re.fullmatch(r"preparing the corpus .*book.txt \(0.0 M characters\), once\n", capsys.readouterr().err)


def test_the_public_names_and_the_default_place() -> None:
    assert public_prepare is prepare
    assert "loopsight" in str(default_cache())
    assert TokenCorpus.__doc__
