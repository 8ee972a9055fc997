"""Prove, check and refute every proposition of `theory/`, store the table, and show it in the README. No trained run.

python experiments/propositions.py
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import exit_status  # noqa: E402

if TYPE_CHECKING:
    from theory.cases import Case
    from theory.proposition import Proposition

NUM_CASES = 20
COLUMNS = ("proposition", "words", "steps", "residual", "tolerance", "control", "floor", "cases")


def main() -> None:
    """Parse the command line and carry it out."""
    import torch

    from experiments.environment import describe
    from experiments.errors import RunError
    from experiments.files import write_json
    from experiments.readme import read_text, replace_section, section
    from theory.proposition import propositions

    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=root / "results" / "theory", help="folder for the tables")
    parser.add_argument("--readme", type=Path, default=root / "README.md", help="file whose section is replaced")
    parser.add_argument("--cases", type=int, default=NUM_CASES, help="random cases per proposition")
    arguments = parser.parse_args()
    if arguments.cases < 1:
        parser.error("--cases must be at least 1.")
    section(read_text(arguments.readme), "propositions")  # before the work, not after it

    torch.set_num_threads(1)
    rows = [evaluate(proposition, cases(arguments.cases)) for proposition in propositions().values()]
    text = as_markdown(rows)
    write_csv(arguments.results / "propositions.csv", rows)
    write_text(arguments.results / "propositions.md", text + "\n")
    environment = describe(torch.device("cpu"))
    environment["packages"]["sympy"] = version("sympy")
    write_json(arguments.results / "propositions.environment.json", environment)
    replace_section(arguments.readme, "propositions", text)
    print(text)
    failed = [row["proposition"] for row in rows if not holds(row)]
    if failed:
        raise RunError(f"{', '.join(failed)} did not hold, or had a control that held; see the table above.")


def cases(count: int) -> "list[Case]":
    """The same every time: case n is drawn by seed n."""
    import random

    from theory.cases import Case

    def draw(seed: int) -> Case:
        rng = random.Random(seed)
        return Case(
            seed=seed,
            d=rng.randint(3, 48),
            vocab=rng.randint(2, 40),
            tokens=rng.randint(1, 6),
            scale=10.0 ** rng.uniform(-3.0, 6.0),
            spread=10.0 ** rng.uniform(0.0, 3.0),
            loss=rng.choice(["cross_entropy", "squared", "z_loss", "margin"]),
        )

    return [draw(seed) for seed in range(count)]


def evaluate(proposition: "Proposition", cases: "Iterable[Case]") -> dict[str, Any]:
    """Steps proven; the largest residual over the cases; the smallest control over plain cases of the same seeds.

    Controls run at a state of unit scale: elsewhere what must be seen may drown, as any gradient of a saturated
    softmax does.
    """
    from theory.cases import Case
    from theory.proposition import least, worst

    cases = list(cases)
    residuals = [proposition.check(case) for case in cases]
    controls = [proposition.control(Case(seed=case.seed)).value for case in cases]
    return {
        "proposition": proposition.key,
        "words": proposition.words,
        "steps": len(proposition.prove().steps),
        "residual": worst(residual.value for residual in residuals),
        "tolerance": min(residual.tolerance for residual in residuals),
        "control": least(controls),
        "floor": proposition.control_floor,
        "cases": len(cases),
    }


def holds(row: Mapping[str, Any]) -> bool:
    """False for NaN as well."""
    return row["residual"] <= row["tolerance"] and row["control"] > row["floor"]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    from experiments.tables import markdown

    header = ["", "Statement", "Proof, steps", "Largest residual (tolerance)", "Smallest control (floor)"]
    lines = [
        [
            row["proposition"],
            row["words"].replace("|", r"\|"),
            str(row["steps"]),
            f"{row['residual']:.1e} ({row['tolerance']:.0e})",
            f"{row['control']:.1e} ({row['floor']:.0e})",
        ]
        for row in rows
    ]
    note = (
        f"SymPy carried out every step of every proof. Residuals: the largest of {rows[0]['cases']} random cases in "
        "float64. Controls: the smallest residual where the claim must fail. `python experiments/propositions.py` "
        "makes this table."
    )
    return f"{markdown(header, lines)}\n\n{note}"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    from experiments.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
