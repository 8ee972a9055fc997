"""Read the measured runs of a folder; what cannot be read is named with the reason, and the rest goes on."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.claims import SCHEMA, RunTables
from experiments.claims.confounds import cell_of
from experiments.config import RunConfig
from experiments.errors import RunError, UsageError, first_line
from experiments.files import read_json
from experiments.measure.suite import FOLDER, RECORD, VERSION, PartlyMeasured
from experiments.runs import CONFIG, SUMMARY, read_config, read_summary
from experiments.training.trainer import CHECKPOINT

Measure = Callable[[Path], Any]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A run, or a table of one, that the report goes without."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A finished run with its tables.

    Attributes:
        folder: of the run.
        config: resolved configuration.
        summary: its `summary.json`.
        record: its `measurements.json`.
        measured: its tables, under the labels claims ask for.
    """

    folder: Path
    config: RunConfig
    summary: dict[str, Any]
    record: dict[str, Any]
    measured: RunTables


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The runs of a report, all of one kind, and what was left out."""

    runs: tuple[MeasuredRun, ...]
    skipped: tuple[Skipped, ...]


def run_folders(places: Sequence[Path]) -> list[Path]:
    """The run folders among the places and directly inside them, each once, by name.

    Raises:
        UsageError: a place is not a folder.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise UsageError(f"{place} is not a folder; name the folder that holds the run folders.")
        inside = [path for path in sorted(place.iterdir()) if path.is_dir() and _looks_like_a_run(path)]
        found += [place] if _looks_like_a_run(place) else inside
    return list(dict.fromkeys(path.resolve() for path in found))


def collect(folders: Iterable[Path], measure: Measure | None) -> Collection:
    """Read run folders, measuring them first where a function for that is given.

    Of runs that differ in more than variant and seed, the largest group is kept; of two runs of the same variant
    and seed, the first.
    """
    runs, skipped, lacking = [], [], {}
    for folder in folders:
        try:
            run, lacking[folder] = _read(folder, measure)
            runs.append(run)
        except (RunError, UsageError, OSError, ValueError, RuntimeError) as error:
            skipped.append(Skipped(name=folder.name, reason=first_line(error)))
    kept, others = _of_one_kind(runs)
    of_kept = {run.folder: lacking[run.folder] for run in kept}
    return Collection(runs=tuple(kept), skipped=(*_missing_tables(of_kept), *skipped, *others))


def _missing_tables(lacking: dict[Path, dict[str, str]]) -> list[Skipped]:
    """From each run's missing tables with the reason; what all runs lack alike is said once."""
    count = Counter(item for missing in lacking.values() for item in missing.items())
    everywhere = [item for item, runs in count.items() if runs == len(lacking) > 1]
    return [Skipped(name=f"table {table} of all runs", reason=reason) for table, reason in everywhere] + [
        Skipped(name=f"{folder.name}, table {table}", reason=reason)
        for folder, missing in lacking.items()
        for table, reason in missing.items()
        if (table, reason) not in everywhere
    ]


def _looks_like_a_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CONFIG, SUMMARY, CHECKPOINT, FOLDER))


def _read(folder: Path, measure: Measure | None) -> tuple[MeasuredRun, dict[str, str]]:
    """A run, and why by name of each table that it lacks."""
    if not (folder / CONFIG).exists():
        raise RunError(f"incomplete: it has no {CONFIG}")
    config = read_config(folder)
    summary = read_summary(folder)
    if summary is None:
        raise RunError("unfinished: go on with experiments/run.py --resume")
    missing: dict[str, str] = {}
    if measure is not None:
        try:
            measure(folder)
        except PartlyMeasured as error:
            missing |= error.reasons
    record = _read_record(folder / FOLDER / RECORD)
    tables = {}
    for name in SCHEMA:
        if name in missing:
            continue
        try:
            tables[name] = _read_table(folder / FOLDER / f"{name}.csv", SCHEMA[name])
        except (RunError, OSError, ValueError) as error:
            missing[name] = first_line(error)
    labels = (config.variant, *filter(None, [cell_of(config)]))
    measured = RunTables(
        name=folder.name, labels=labels, seed=config.seed, trained_loops=config.model.num_loops, tables=tables
    )
    run = MeasuredRun(folder=folder, config=config, summary=summary, record=record, measured=measured)
    return run, missing


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise RunError("not measured: call the report without --no-measure")
    record = read_json(path)
    version = record.get("version") if isinstance(record, dict) else None
    if version != VERSION:
        raise RunError(f"its measurements are of version {version}, not {VERSION}: delete {FOLDER}/ to make them again")
    return dict(record)


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.exists():
        raise RunError("missing")
    table = pd.read_csv(path)
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise RunError(f"has no column {', '.join(absent)}: damaged or of another version")
    return table


def _of_one_kind(runs: list[MeasuredRun]) -> tuple[list[MeasuredRun], list[Skipped]]:
    if not runs:
        return [], []
    kind = Counter(run.config.kind() for run in runs).most_common(1)[0][0]
    kept: dict[tuple[str, int], MeasuredRun] = {}
    skipped = []
    for run in runs:
        identity = run.config.variant, run.config.seed
        if run.config.kind() != kind:
            reason = "differs from most runs in size, training, data or loops: report it apart"
            skipped.append(Skipped(name=run.folder.name, reason=reason))
        elif identity in kept:
            skipped.append(Skipped(name=run.folder.name, reason=f"is {run.config.name} a second time"))
        else:
            kept[identity] = run
    return list(kept.values()), skipped
