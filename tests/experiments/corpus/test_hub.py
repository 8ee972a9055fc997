"""Hugging Face datasets, offline: `load_dataset` reads a local folder by the same code path."""

import sys
from pathlib import Path

import pytest

from experiments.corpus import hub
from experiments.corpus.hub import is_wikitext_103, parse_hub, read_hub
from experiments.errors import UsageError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def folder(tmp_path: Path, name: str = "set", **files: str) -> Path:
    root = tmp_path / name
    root.mkdir()
    for stem, text in files.items():
        (root / stem.replace("__", ".")).write_text(text, encoding="utf-8")
    return root


def test_train_and_validation_are_the_datasets_own(tmp_path: Path) -> None:
    root = folder(tmp_path, train__txt="one\n\ntwo\u00e9\n", validation__txt="three\n", test__txt="four\n")
    source = read_hub(f"hf:{root}")
    assert [(d.name, d.text) for d in source.documents] == [("train/000000", "one\n\ntwo\u00e9\n")]
    assert source.validation is not None
    assert [(d.name, d.text) for d in source.validation] == [("validation/000000", "three\n")]


def test_without_a_validation_split_there_is_none(tmp_path: Path) -> None:
    assert read_hub(f"hf:{folder(tmp_path, train__txt='one')}").validation is None


def test_rows_are_joined_in_order_to_documents_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_ROWS_PER_DOCUMENT", 2)
    root = folder(tmp_path, train__txt="a\nb\nc")
    source = read_hub(f"hf:{root}")
    assert [(d.name, d.text) for d in source.documents] == [
        ("train/000000", "a\nb\n"),
        ("train/000001", "c\n"),
    ]


def test_a_document_has_ten_thousand_rows(tmp_path: Path) -> None:
    source = read_hub(f"hf:{folder(tmp_path, train__txt='ab' + chr(10) * 10_001)}")
    assert [len(d.text) for d in source.documents] == [10_002, 1]


def test_the_configuration_is_described_and_one_that_is_not_there_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, train__txt="one")
    assert read_hub(f"hf:{root}").description == f"Hugging Face dataset {root}"
    assert read_hub(f"hf:{root}:default").description == f"Hugging Face dataset {root}, configuration default"
    with pytest.raises(UsageError, match="cannot load .*other"):
        read_hub(f"hf:{root}:other")


def test_rows_that_end_in_a_newline_get_no_second_one(tmp_path: Path) -> None:
    root = folder(tmp_path, train__jsonl='{"text": "wiki \\n"}\n{"text": ""}\n{"text": "end"}\n')
    assert read_hub(f"hf:{root}").documents[0].text == "wiki \n\nend\n"


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    digests = {
        text: read_hub(f"hf:{folder(tmp_path, name, train__txt=text)}").documents[0].sha256
        for name, text in (("a", "one"), ("b", "two"))
    }
    assert digests["one"] != digests["two"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("hf:wikitext:wikitext-103-raw-v1", ("wikitext", "wikitext-103-raw-v1")),
        ("hf:Salesforce/wikitext:wikitext-2-raw-v1", ("Salesforce/wikitext", "wikitext-2-raw-v1")),
        ("hf:roneneldan/TinyStories", ("roneneldan/TinyStories", None)),
    ],
)
def test_names_and_configurations_are_told_apart(data: str, expected: tuple[str, str | None]) -> None:
    assert parse_hub(data) == expected


def test_a_local_folder_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    root = folder(tmp_path, name="c:data")
    assert parse_hub(f"hf:{root}") == (str(root), None)
    assert parse_hub(f"hf:{root}:default") == (str(root), "default")


@pytest.mark.parametrize("data", ["hf:", "hf::", "hf:name:", "hf::config", "hf:a:b:c"])
def test_malformed_names_are_refused(data: str) -> None:
    with pytest.raises(UsageError, match="cannot understand .*write hf:NAME or hf:NAME:CONFIG"):
        parse_hub(data)


def test_only_the_papers_corpus_is_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_wikitext_103("hf:wikitext:wikitext-103-raw-v1")
    assert is_wikitext_103("hf:Salesforce/wikitext:wikitext-103-raw-v1")
    for other in ("hf:wikitext:wikitext-2-raw-v1", "hf:wikitext", "wikitext:wikitext-103-raw-v1", "stdlib"):
        assert not is_wikitext_103(other)
    folder(tmp_path, name="wikitext")
    monkeypatch.chdir(tmp_path)
    assert not is_wikitext_103("hf:wikitext:wikitext-103-raw-v1")


def test_a_missing_library_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r'needs the datasets library; pip install -e "\.\[hub\]"'):
        read_hub("hf:wikitext")


def test_a_dataset_that_cannot_be_loaded_gives_one_sentence(tmp_path: Path) -> None:
    for data in ("hf:no/such-dataset", f"hf:{folder(tmp_path)}"):
        with pytest.raises(UsageError, match=r"cannot load 'hf:.*' \(.+\); check the name") as caught:
            read_hub(data)
        assert "\n" not in str(caught.value)


def test_of_an_error_of_many_lines_the_first_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no route.\nTraceback of another process")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UsageError, match=r"^cannot load 'hf:a' \(no route\); check the name[^\n]*network\.$"):
        read_hub("hf:a")


def test_a_dataset_without_train_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no train split \(it has: test\)"):
        read_hub(f"hf:{folder(tmp_path, test__txt='one')}")


def test_a_dataset_without_text_column_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, train__csv="a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"has no text column \(it has: a, b\)"):
        read_hub(f"hf:{root}")
