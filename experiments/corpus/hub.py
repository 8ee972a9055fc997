"""Hugging Face datasets as text: `hf:NAME[:CONFIG]`, for example `hf:wikitext:wikitext-103-raw-v1`.

Rows are joined to documents of 10,000 rows. A row that does not end in a newline gets one: the library strips
it from local text files and WikiText has it only on rows that are not blank. So white space that spans
rows is one token, as it would be in the file the rows were made from.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.corpus.documents import Document, Source, document_from_text
from experiments.errors import UsageError, first_line

_ROWS_PER_DOCUMENT = 10_000
_PAPER_NAMES = frozenset({"wikitext", "Salesforce/wikitext"})
_PAPER_CONFIG = "wikitext-103-raw-v1"


def read_hub(data: str) -> Source:
    """Read the train split, and the validation split where there is one.

    Raises:
        UsageError: `datasets` is not installed, the dataset cannot be loaded, or it has no train split or no
            `text` column.
    """
    name, config = parse_hub(data)
    splits = _load(data, name, config)
    if "train" not in splits:
        raise UsageError(f"{data!r} has no train split (it has: {', '.join(splits)}); choose another dataset.")
    validation = _documents(data, splits, "validation") if "validation" in splits else None
    return Source(
        description=f"Hugging Face dataset {name}" + (f", configuration {config}" if config else ""),
        documents=_documents(data, splits, "train"),
        validation=validation,
    )


def parse_hub(data: str) -> tuple[str, str | None]:
    """Split `hf:NAME[:CONFIG]`. A local folder may have colons in its name: existing folders are tried first.

    Raises:
        UsageError: the name or the configuration is empty, or there are too many parts.
    """
    rest = data.removeprefix("hf:")
    if rest and Path(rest).is_dir():
        return rest, None
    name, colon, config = rest.rpartition(":")
    if not colon:
        name, config = rest, ""
    if not name or (colon and not config) or (":" in name and not Path(name).is_dir()):
        raise UsageError(f"cannot understand {data!r}; write hf:NAME or hf:NAME:CONFIG.")
    return name, config or None


def is_wikitext_103(data: str) -> bool:
    """Whether `data` names the paper's corpus on the hub, and not a local folder of that name."""
    if not data.startswith("hf:"):
        return False
    name, config = parse_hub(data)
    return name in _PAPER_NAMES and config == _PAPER_CONFIG and not Path(name).is_dir()


def _load(data: str, name: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f'{data!r} needs the datasets library; pip install -e ".[hub]".') from error
    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # the library has no common base class, and lets those of its parts through
        reason = first_line(error).rstrip(".")
        raise UsageError(
            f"cannot load {data!r} ({reason}); check the name, the configuration and the network."
        ) from error


def _documents(data: str, splits: Any, split: str) -> tuple[Document, ...]:
    rows = splits[split]
    if "text" not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise UsageError(f"{data!r} has no text column (it has: {columns}); choose another dataset.")
    return tuple(document_from_text(f"{split}/{i:06d}", text) for i, text in enumerate(_joined(rows)))


def _joined(rows: Any) -> Iterator[str]:
    for start in range(0, len(rows), _ROWS_PER_DOCUMENT):
        batch = rows[start : start + _ROWS_PER_DOCUMENT]["text"]
        yield "".join(row if row.endswith("\n") else row + "\n" for row in batch)
