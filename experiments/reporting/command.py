"""The command behind `experiments/report.py`: measure what is not measured yet, judge, draw, write."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm

from experiments.claims import CLAIMS, evaluate, index
from experiments.corpus import default_cache
from experiments.device import make_arithmetic_repeatable
from experiments.environment import describe
from experiments.errors import RunError, UsageError
from experiments.evidence import is_packed, unpack
from experiments.measure.processes import measure_side_by_side
from experiments.measure.suite import measure_run, unmeasured
from experiments.reporting.collect import Collection, collect, run_folders
from experiments.reporting.numbers import counts

DESCRIPTION = """Report on trained runs: every claim with what was predicted, what was observed, and the verdict.

Runs that lack measurements are measured first; interrupted, the same command goes on. Writes one self-contained
OUT/index.html, the same as OUT/report.md, OUT/claims.json, and the figures as PNG."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of run folders (the --out of experiments/run.py), run folders, or packed runs (results/...)."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report")
    """Folder for the report."""
    measure: bool = True
    """Measure runs that lack tables; with --no-measure only stored tables are read."""
    processes: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    """Runs measured at a time, each with one thread; more disturb each other's timings (table `depth`)."""
    cache: Path = field(default_factory=default_cache)
    """Folder for prepared tokens, as in experiments/run.py."""


def main() -> None:
    """Parse the command line and carry it out."""
    arguments = tyro.cli(Arguments, description=DESCRIPTION, prog="python experiments/report.py")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UsageError(f"--out {arguments.out} is not a folder; name one, existing or new.")
    if arguments.processes < 1:
        raise UsageError(f"--processes must be at least 1, got {arguments.processes}.")
    # matplotlib keeps a cache of fonts; it belongs with ours, unless the user has said where.
    os.environ.setdefault("MPLCONFIGDIR", str(arguments.cache / "matplotlib"))
    make_arithmetic_repeatable(torch.device("cpu"))
    with TemporaryDirectory() as scratch:
        packed = Path(scratch).resolve()
        places = [unpack(p, packed / str(i)) if is_packed(p) else p for i, p in enumerate(arguments.runs)]
        folders = run_folders(places)
        if not folders:
            named = ", ".join(map(str, arguments.runs)) or "nothing"
            raise UsageError(f"{named} holds no run folder; train some with experiments/run.py first.")

        def measure(folder: Path) -> None:
            if not folder.is_relative_to(packed):  # packed runs have no weights
                measure_run(folder, cache=arguments.cache)

        try:
            if arguments.measure and arguments.processes > 1:
                waiting = [folder for folder in folders if _waits_to_be_measured(folder)]
                if len(waiting) > 1:
                    measure_side_by_side(waiting, arguments.cache, arguments.processes)
            report(folders, arguments.out, measure if arguments.measure else None)
        except KeyboardInterrupt as error:
            raise RunError("interrupted; the same command goes on from the measurements that are stored.") from error


def _waits_to_be_measured(folder: Path) -> bool:
    try:
        return bool(unmeasured(folder))
    except RunError:  # unfinished, or packed: said when it is read
        return False


def report(folders: list[Path], out: Path, measure: Callable[[Path], Any] | None) -> None:
    """Collect run folders, measuring them if a function for it is given, and write the report of what could be read.

    Raises:
        RunError: no folder could be read.
    """
    shown = tqdm(folders, desc="measuring" if measure else "reading", unit="run", disable=not sys.stderr.isatty())
    collection = collect(shown, measure)
    for skipped in collection.skipped:
        print(f"left out: {skipped.name}: {skipped.reason}", file=sys.stderr)
    if not collection.runs:
        raise RunError("none of the run folders could be read; the reasons are above.")
    _write(collection, out)


def _write(collection: Collection, out: Path) -> None:
    from experiments.reporting.gallery import draw_all  # matplotlib takes seconds to import
    from experiments.reporting.page import write

    runs = index([run.measured for run in collection.runs])
    findings = [evaluate(claim, runs) for claim in CLAIMS]
    print("drawing", file=sys.stderr, flush=True)
    write(out, findings, draw_all(collection.runs), collection, describe(torch.device("cpu")))
    for finding in findings:
        print(f"{finding.verdict:14} {finding.claim.text}")
    tally = ", ".join(f"{number} {verdict}" for verdict, number in counts(findings).items())
    print(f"\n{len(collection.runs)} runs; {tally}; all of it in {out / 'index.html'}")
