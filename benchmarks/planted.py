"""Precision and recall of the auditor over planted blind spots: `python benchmarks/planted.py [--each 10]`.

Writes results/audit/planted.csv, a row a planting, and planted.md, the table by kind. A family counts as found if the
report calls it blind, of its kind, dimension and verdict, and (where it lies in a fixed subspace) within an angle of
1e-3 of the truth; anything else called blind is a false positive.
"""

import argparse
import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # run by path: this file's folder would hide nothing we need, but must not come first

from experiments.errors import run_as_script  # noqa: E402

if __name__ == "__main__":
    run_as_script("benchmarks.planted")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.plantings import FACTORS, SPOTS, VERDICTS, Planting, Truth, plant  # noqa: E402
from experiments.errors import require_at_least  # noqa: E402
from experiments.files import atomic_path  # noqa: E402
from loopsight import AuditReport, audit  # noqa: E402
from loopsight.auditing.report import Direction  # noqa: E402
from loopsight.auditing.wording import table  # noqa: E402

ANGLE = 1e-3  # radians


@dataclass(frozen=True, kw_only=True)
class Score:
    """Counts of blind families: planted and found, planted and missed, found and not planted; and the largest angle."""

    found: int
    missed: int
    invented: int
    angle: float


def score(planting: Planting, report: AuditReport) -> Score:
    """Compare a report with the truth."""
    left = list(report.blind) if report.valid else []
    found, worst = 0, 0.0
    for truth in planting.truths:
        for direction in left:
            angle = angle_between(truth, direction)
            if direction.verdict == VERDICTS[planting.fate] and angle < ANGLE:
                left.remove(direction)
                found, worst = found + 1, max(worst, angle)
                break
    return Score(found=found, missed=len(planting.truths) - found, invented=len(left), angle=worst)


def angle_between(truth: Truth, direction: Direction) -> float:
    """Largest principal angle of the fixed subspaces; 0 for a right kind that needs none, infinite for a wrong one."""
    if (truth.kind, truth.dimension) != (direction.kind, direction.dimension):
        return float("inf")
    if truth.subspace is None:
        return 0.0
    basis = torch.tensor(direction.basis, dtype=torch.float64)
    if basis.shape != truth.subspace.shape:
        return float("inf")
    outside = truth.subspace - (truth.subspace @ basis.T) @ basis
    return torch.asin(torch.linalg.matrix_norm(outside, 2).clamp(max=1.0)).item()


def run(first: int, each: int) -> list[tuple[Planting, Score]]:
    """`each` models of every spot and fate, seeds from `first` on."""
    names = [(name, fate) for name in SPOTS for fate in FACTORS]
    results: list[tuple[Planting, Score]] = []
    for seed in range(first, first + each * len(names)):
        planting = plant(*names[seed % len(names)], seed=seed)
        results.append((planting, score(planting, audit(planting.maps, planting.batch, targets=_targets(planting)))))
    return results


def _targets(planting: Planting) -> Tensor:
    return torch.arange(planting.batch[..., 0].numel()).view(planting.batch.shape[:-1])


def write(results: list[tuple[Planting, Score]], folder: Path, first: int, seconds: float) -> str:
    """The two files; returns the table."""
    with atomic_path(folder / "planted.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "planted", "fate", "found", "missed", "invented", "largest_angle"])
        for seed, (planting, s) in enumerate(results, first):
            writer.writerow([seed, planting.name, planting.fate, s.found, s.missed, s.invented, f"{s.angle:.2e}"])
    rows = [_row(name, [s for p, s in results if p.name == name]) for name in SPOTS]
    rows.append(_row("all", [s for _, s in results]))
    header = ("planted", "models", "families", "found", "missed", "invented", "precision", "recall", "largest angle")
    text = table(header, rows)
    with atomic_path(folder / "planted.md") as temporary:
        temporary.write_text(
            f"{text}\n\n{len(results)} models, seeds {first} to {first + len(results) - 1}; "
            f"each carried, contracted or removed by its recurrence; {seconds / len(results):.2f} s an audit.\n",
            encoding="utf-8",
        )
    return text


def _row(name: str, scores: list[Score]) -> tuple[str, ...]:
    found, missed, invented = (sum(getattr(s, key) for s in scores) for key in ("found", "missed", "invented"))
    precision = f"{found / (found + invented):.4f}" if found + invented else "-"
    recall = f"{found / (found + missed):.4f}" if found + missed else "-"
    counts = (str(n) for n in (len(scores), found + missed, found, missed, invented))
    return (name, *counts, precision, recall, f"{max((s.angle for s in scores), default=0.0):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=10, help="models of each spot and fate (default 10)")
    parser.add_argument("--first-seed", type=int, default=1000, help="bounds were set looking at seeds below 1000")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "audit")
    arguments = parser.parse_args()
    require_at_least(1, each=arguments.each)
    require_at_least(0, first_seed=arguments.first_seed)
    started = time.perf_counter()
    results = run(arguments.first_seed, arguments.each)
    print(write(results, arguments.out, arguments.first_seed, time.perf_counter() - started))
