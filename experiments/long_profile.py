"""Check propositions on ten thousand random models each, and keep the outcomes in results/theory/long_profile.csv.

python experiments/long_profile.py
python experiments/long_profile.py P3 P10      these only; the other lines of the file stay

Takes minutes a proposition. Interrupted, it keeps what is finished. The README says what the file says.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # the repository, not this folder

from experiments.errors import exit_status  # noqa: E402

SEED = 20261121
EXAMPLES = 10_000
COLUMNS = ("proposition", "examples", "outcome", "seconds", "seed", "date", "commit")
Row = dict[str, str]


def main() -> None:
    """Parse the command line and carry it out."""
    from experiments.errors import RunError, UsageError
    from experiments.readme import read_text, replace_section, section
    from theory.proposition import propositions

    known = list(propositions())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", help="propositions, for example P3 (default: all)")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "theory" / "long_profile.csv")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose section is replaced")
    arguments = parser.parse_args()
    unknown = [key for key in arguments.keys if key not in known]
    if unknown:
        raise UsageError(f"unknown propositions {', '.join(unknown)}; known: {', '.join(known)}.")
    section(read_text(arguments.readme), "long_profile")  # before the work, not after it
    rows = read(arguments.results)
    failed = []
    for key in arguments.keys or known:
        rows[key] = run(key)
        write(arguments.results, [rows[name] for name in known if name in rows])
        replace_section(arguments.readme, "long_profile", as_markdown(rows, known))
        print(", ".join(rows[key].values()), flush=True)
        if rows[key]["outcome"] != "passed":
            failed.append(key)
    if failed:
        raise RunError(f"{', '.join(failed)} did not pass; run pytest with the seed of the table to see why.")


def run(key: str) -> Row:
    """One proposition's numeric check under the long profile, by pytest in a process of its own."""
    import torch

    from experiments.environment import describe

    environment = describe(torch.device("cpu"))
    began = time.monotonic()
    # Without the options of pyproject.toml: their shape checks treble the time, and every other test has them on.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    command += [f"tests/theory/test_propositions.py::test_numeric_check[{key}]", "--hypothesis-profile=long"]
    command += [f"--hypothesis-seed={SEED}", "--hypothesis-show-statistics"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    passing = sum(map(int, re.findall(r"(\d+) passing", done.stdout)))
    if done.returncode == 0 and passing >= EXAMPLES:
        outcome = "passed"
    else:
        outcome = "failed"
        print(done.stdout[-3000:], done.stderr[-1000:], file=sys.stderr)
    return {
        "proposition": key,
        "examples": str(passing),
        "outcome": outcome,
        "seconds": str(round(time.monotonic() - began)),
        "seed": str(SEED),
        "date": environment["date"],
        "commit": (environment["commit"] or "unknown")[:10],
    }


def read(path: Path) -> dict[str, Row]:
    """The rows of an earlier call by proposition; none if there is no file.

    Raises:
        RunError: it cannot be read.
    """
    import csv

    from experiments.errors import RunError

    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, restval=""))
        return {row["proposition"]: {name: row[name] for name in COLUMNS} for row in rows}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise RunError(f"cannot read {path} ({error}); delete it, or name another with --results.") from error


def write(path: Path, rows: list[Row]) -> None:
    import csv

    from experiments.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def as_markdown(rows: dict[str, Row], known: list[str]) -> str:
    """In a paragraph: what passed, what failed, what has not been run."""
    passed = [key for key in known if key in rows and rows[key]["outcome"] == "passed"]
    failed = [key for key in known if key in rows and rows[key]["outcome"] != "passed"]
    missing = [key for key in known if key not in rows]
    parts = [f"With {EXAMPLES:,} random models each (`experiments/long_profile.py`), the numeric check passed for"]
    parts.append(f"{len(passed)} of {len(known)} propositions: {', '.join(passed) or 'none'}.")
    if failed:
        parts.append(f"It failed for {', '.join(failed)}.")
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.")
    made = sorted((row["date"][:10], row["commit"]) for row in rows.values())
    if made:
        dates = " to ".join(dict.fromkeys((made[0][0], made[-1][0])))
        commits = ", ".join(dict.fromkeys(commit for _, commit in made))
        parts.append(f"Made {dates} at {commits}; what a proposition rests on may have changed since.")
    return " ".join(parts)


if __name__ == "__main__":
    sys.exit(exit_status(main))
