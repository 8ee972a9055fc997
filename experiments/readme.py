"""Sections of the README that scripts write: between `<!-- NAME -->` and `<!-- /NAME -->`, never by hand."""

from pathlib import Path

from experiments.errors import UsageError
from experiments.files import atomic_path


def section(text: str, name: str) -> str:
    """The text between the markers of a section.

    Raises:
        UsageError: the markers are not there.
    """
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    inside, end, _ = rest.partition(f"<!-- /{name} -->")
    if not end or not rest:
        raise UsageError(f"the README has no section between <!-- {name} --> and <!-- /{name} -->; add both lines.")
    return inside.strip("\n")


def replace_section(path: Path, name: str, content: str) -> None:
    """Put `content` between the markers of a section."""
    text = path.read_text(encoding="utf-8")
    section(text, name)
    before, opening, rest = text.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}{opening}{content}\n{closing}{after}", encoding="utf-8")
