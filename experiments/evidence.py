"""Runs as a few small files: what is committed, and what comes back from a machine on which the runs themselves stay.

FOLDER/runs.json          configuration, summary and measurement record of every run, and what else the packer says
FOLDER/tables/NAME.csv    one table of all runs, the run's name in the first column

Packed runs lack their weights and nothing else that `experiments/report.py` reads.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import RunError
from experiments.files import atomic_path, read_json, whole_files, write_json
from experiments.measure.suite import FOLDER as MEASUREMENTS
from experiments.measure.suite import RECORD, SUITE, read_table
from experiments.runs import CONFIG, SUMMARY, DamagedSummary, finished_summaries

INDEX = "runs.json"
TABLES = "tables"
VERSION = 1
DOCUMENTS = {"config": CONFIG, "summary": SUMMARY, "measurements": f"{MEASUREMENTS}/{RECORD}"}


def pack(folders: Sequence[Path], out: Path, *, missing: Sequence[str] = (), **said: Any) -> None:
    """Write finished runs, measured or not, into `out`; tables of an earlier packing are replaced.

    Args:
        folders: of the runs.
        out: folder.
        missing: names of runs that were asked for and are not among `folders`.
        said: more to keep in `runs.json`, by name.

    Raises:
        RunError: a document or a table of a run is damaged.
    """
    runs = {
        folder.name: {kind: _document(folder / name) for kind, name in DOCUMENTS.items() if (folder / name).exists()}
        for folder in folders
    }
    names = [name for question in SUITE for name in question.tables]
    # All is read before anything of an earlier packing is replaced.
    frames = {
        name: [read_table(f, name).assign(run=f.name) for f in folders if _csv(f, name).exists()] for name in names
    }
    for name in names:
        packed = out / TABLES / f"{name}.csv"
        if not frames[name]:
            packed.unlink(missing_ok=True)
            continue
        with atomic_path(packed) as temporary:
            pd.concat(frames[name]).set_index("run").to_csv(temporary)
    write_json(out / INDEX, {"version": VERSION, **said, "missing": list(missing), "runs": runs})


_AGAIN = {
    CONFIG: "train the run again in another folder",
    SUMMARY: "delete it, and --resume evaluates the checkpoint again",
    RECORD: "delete it, and experiments/report.py measures the run again",
}


def _document(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise RunError(f"cannot read {path} ({error}); {_AGAIN[path.name]}.") from error


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed runs."""
    return (folder / INDEX).is_file()


def unpack(packed: Path, out: Path) -> Path:
    """Write packed runs as run folders into `out`, which is returned; a missing run becomes an incomplete folder.

    Raises:
        RunError: the packed runs are damaged or of another version.
        OSError: a file of theirs cannot be read, or one of a run not written.
    """
    try:
        index = read_json(packed / INDEX)
        if not isinstance(index, dict) or index.get("version") != VERSION:
            raise RunError(f"{packed / INDEX} is of another version; pack the runs again.")
        runs = index["runs"]
        if any(name in ("", "..") or Path(name).name != name for name in (*runs, *index["missing"])):
            raise RunError(f"{packed / INDEX} names a run that is no plain folder name; pack the runs again.")
        for run, documents in runs.items():
            for kind, document in documents.items():
                write_json(out / run / DOCUMENTS[kind], document)
        for run in index["missing"]:
            (out / run / MEASUREMENTS).mkdir(parents=True)
        for path in whole_files(packed / TABLES, ".csv"):
            for name, table in pd.read_csv(path).groupby("run", sort=False):
                run = str(name)
                if run not in runs:
                    raise RunError(f"{path} has a run {run} that {INDEX} has not; pack the runs again.")
                with atomic_path(_csv(out / run, path.stem)) as temporary:
                    table.drop(columns="run").to_csv(temporary, index=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"cannot read the packed runs of {packed} ({error}); pack them again.") from error
    return out


def finished_runs(folder: Path, scratch: Path) -> tuple[Path, list[dict[str, Any]], list[str]]:
    """Where the run folders are, unpacked into `scratch` where a folder holds packed runs, and their
    `finished_summaries`.

    Raises:
        RunError: as `unpack` and `finished_summaries`.
    """
    if not is_packed(folder):
        return folder, *finished_summaries(folder)
    try:
        return unpack(folder, scratch), *finished_summaries(scratch)
    except DamagedSummary as error:
        raise RunError(
            f"{folder / INDEX} is of another version or damaged ({error.where}); pack the runs again."
        ) from error


def _csv(folder: Path, table: str) -> Path:
    return folder / MEASUREMENTS / f"{table}.csv"
