"""Where numbers and tables of benchmarks lie: one JSON file a measurement, one table of them, also in the README."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.files import atomic_path, read_json
from experiments.readme import ROOT, replace_section

FOLDER = ROOT / "results" / "benchmarks"


def publish(name: str, paths: Iterable[Path], as_markdown: Callable[[list[dict[str, Any]]], str]) -> None:
    """Write the table of stored results to `results/benchmarks/NAME.md` and into the README's section NAME.

    Raises:
        UsageError: there are no results, or one is not of this benchmark.
    """
    paths = list(paths)
    try:
        if not paths:
            raise ValueError("no file")
        text = as_markdown([read_json(path) for path in paths])
    except (OSError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError) as error:
        given = ", ".join(map(str, paths)) or f"{FOLDER / name}"
        raise UsageError(f"no results of this benchmark in {given} ({error}); make them with --out.") from error
    with atomic_path(FOLDER / f"{name}.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    replace_section(ROOT / "README.md", name, text)
