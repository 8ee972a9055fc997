"""Sections that scripts write, of the README or of one in `results/`: between `<!-- NAME -->` and `<!-- /NAME -->`,
never by hand.

python experiments/readme.py claims results/cpu/report/claims.md
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the repository, not this folder

from experiments.errors import UsageError, exit_status  # noqa: E402
from experiments.files import atomic_path  # noqa: E402


def section(text: str, name: str) -> str:
    """The text between the markers of a section.

    Raises:
        UsageError: the markers are not there.
    """
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    inside, end, _ = rest.partition(f"<!-- /{name} -->")
    if not end or not rest:
        raise UsageError(f"there is no section between <!-- {name} --> and <!-- /{name} -->; add both lines.")
    return inside.strip("\n")


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UsageError: there is none, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} ({error}); name a text file that exists.") from error


def place_of(name: str) -> Path:
    """The file that shows a section: the repository's README.md, or one in a folder of `results/`.

    Raises:
        UsageError: none has it.
    """
    for place in (ROOT / "README.md", *sorted(ROOT.glob("results/*/README.md"))):
        if f"<!-- {name} -->\n" in read_text(place):
            section(read_text(place), name)
            return place
    raise UsageError(f"no README has a section between <!-- {name} --> and <!-- /{name} -->; add both lines to one.")


def replace_section(path: Path, name: str, content: str) -> None:
    """Put `content` between the markers of a section.

    Raises:
        UsageError: the file cannot be read, or has no such section.
    """
    text = read_text(path)
    section(text, name)
    before, opening, rest = text.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}{opening}{content}\n{closing}{after}", encoding="utf-8")


def main() -> None:
    """Put the text of a file into a section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", help="name of the section")
    parser.add_argument("text", type=Path, help="file to show there")
    parser.add_argument("--readme", type=Path, help="file that has the section (default: the README that has it)")
    arguments = parser.parse_args()
    text = read_text(arguments.text).rstrip("\n")
    replace_section(arguments.readme or place_of(arguments.section), arguments.section, text)


if __name__ == "__main__":
    sys.exit(exit_status(main))
