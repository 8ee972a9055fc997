"""Every measurement of one run, as tables in RUN/measurements; what is there already and still holds is kept."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from experiments.corpus import TokenCorpus
from experiments.environment import describe
from experiments.errors import RunError, first_line
from experiments.files import atomic_path, exclusive, read_json, write_json
from experiments.measure import (
    attribution,
    clamp,
    common_vector,
    deferred,
    depth,
    growth,
    halting,
    increments,
    loops,
    own_token,
    precision,
    radial,
    scale_sensitivity,
)
from experiments.measure.context import Context, checkpoint_digest, open_run
from experiments.runs import read_config

VERSION = 1  # raise it when the meaning of a table changes
FOLDER = "measurements"
RECORD = "measurements.json"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One question: the tables it makes, by name, and the function that makes them together."""

    tables: tuple[str, ...]
    measure: Callable[[Context], dict[str, pd.DataFrame]]


SUITE = (
    Measure(tables=("loops",), measure=loops.measure),
    Measure(tables=("clamp",), measure=clamp.measure),
    Measure(tables=("depth",), measure=depth.measure),
    Measure(tables=("halting",), measure=halting.measure),
    Measure(tables=("scale_sensitivity",), measure=scale_sensitivity.measure),
    Measure(tables=("precision",), measure=precision.measure),
    Measure(tables=("radial",), measure=radial.measure),
    Measure(tables=("increments",), measure=increments.measure),
    Measure(tables=("growth", "growth_exponent"), measure=growth.measure),
    Measure(tables=("attribution", "pressure"), measure=attribution.measure),
    Measure(tables=("common",), measure=common_vector.measure),
    Measure(tables=("own_token",), measure=own_token.measure),
    Measure(tables=("deferred", "coefficient_law"), measure=deferred.measure),
)


def questions_of(*tables: str) -> tuple[Measure, ...]:
    """The questions of the suite that make these tables.

    Raises:
        KeyError: nothing makes a table of this name.
    """
    by_table = {table: question for question in SUITE for table in question.tables}
    return tuple(dict.fromkeys(by_table[table] for table in tables))


class PartlyMeasured(RunError):
    """Some tables of a run could not be made; the others are stored.

    Attributes:
        reasons: name of each table that is missing, to why.
    """

    def __init__(self, run: str, reasons: dict[str, str]) -> None:
        super().__init__(run, reasons)  # as they are, so that it can be sent from one process to another
        self.run, self.reasons = run, reasons

    def __str__(self) -> str:
        return f"{self.run} was measured but for {'; '.join(f'{name} ({why})' for name, why in self.reasons.items())}"


def measure_run(
    folder: Path,
    cache: Path,
    *,
    device: torch.device | None = None,
    corpus: TokenCorpus | None = None,
    questions: Sequence[Measure] | None = None,
) -> Path:
    """Measure a finished run and return the folder of its tables, NAME.csv and `measurements.json`.

    Tables of this version and this checkpoint that are there are kept, so that an interrupted call is gone on with
    and a repeated one costs nothing.

    Args:
        folder: of the run.
        cache: folder of prepared corpora.
        device: where to measure; the CPU when not given.
        corpus: the run's own, where the caller has it at hand; made again from the cache when not given.
        questions: what to measure, everything when not given.

    Raises:
        RunError: the folder is unfinished, damaged, of another version, in use, or of a corpus that this machine has
            not.
        PartlyMeasured: some tables could not be made; the others are there.
    """
    config = read_config(folder)
    digest = checkpoint_digest(folder)
    out = folder / FOLDER
    with exclusive(folder) as ours:
        if not ours:
            raise RunError(f"another process is working in {folder}; wait for it.")
        record = _kept(out, digest)
        asked = SUITE if questions is None else questions
        missing = [question for question in asked if not _finished(out, record, question)]
        if missing:
            context = open_run(folder, cache, device or torch.device("cpu"), corpus)
            identity = {
                "version": VERSION,
                "trained_loops": context.trained_loops,
                "run": config.name,
                "variant": config.variant,
                "seed": config.seed,
                "preset": config.preset,
                "checkpoint": digest,
                "tokens": context.windows[:, 1:].numel(),
                "environment": describe(context.windows.device),
                # Of kept tables that another call made.
                "earlier_environments": record["environments"],
            }
            _measure(context, missing, out, {"seconds": record["seconds"]} | identity)
    return out


def unmeasured(folder: Path) -> list[str]:
    """The tables that a finished run lacks, by name; tables of another version or checkpoint do not count.

    Raises:
        RunError: there is no readable checkpoint.
    """
    record = _kept(folder / FOLDER, checkpoint_digest(folder))
    lacking = (question for question in SUITE if not _finished(folder / FOLDER, record, question))
    return [name for question in lacking for name in question.tables]


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table of a measured run.

    Raises:
        RunError: it is missing or unreadable.
    """
    path = folder / FOLDER / f"{name}.csv"
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path} ({error}); measure the run again.") from error


def _kept(out: Path, digest: str) -> dict[str, Any]:
    """The record of earlier measurements as far as they still hold."""
    try:
        record = read_json(out / RECORD)
        if record["version"] == VERSION and record["checkpoint"] == digest:
            environments = [*record["earlier_environments"], record["environment"]]
            return {"seconds": dict(record["seconds"]), "environments": environments}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or not ours: everything is measured afresh
    return {"seconds": {}, "environments": []}


def _finished(out: Path, record: dict[str, Any], question: Measure) -> bool:
    return all(name in record["seconds"] and (out / f"{name}.csv").exists() for name in question.tables)


def _measure(context: Context, questions: Sequence[Measure], out: Path, record: dict[str, Any]) -> None:
    started = time.perf_counter()
    # The pass that most tables share has a time of its own, whichever table would have asked first.
    context.held_out  # noqa: B018
    record["seconds"]["held_out_pass"] = round(time.perf_counter() - started, 3)
    reasons: dict[str, str] = {}
    terminal = sys.stderr.isatty()
    with tqdm(questions, desc=f"measuring {context.config.name}", unit="table", disable=not terminal) as bar:
        for question in bar:
            bar.set_postfix_str(question.tables[0])
            start = time.perf_counter()
            try:
                tables = question.measure(context)
            except (ValueError, ArithmeticError, RuntimeError) as error:
                reasons |= dict.fromkeys(question.tables, first_line(error))
                continue
            if set(tables) != set(question.tables):
                raise ValueError(f"expected the tables {question.tables}, got {tuple(tables)}.")
            # Tables made together share their time alike.
            seconds = round((time.perf_counter() - start) / len(tables), 3)
            for name, table in tables.items():
                with atomic_path(out / f"{name}.csv") as temporary:
                    table.to_csv(temporary, index=False)
                record["seconds"][name] = seconds
            write_json(out / RECORD, record)
    if reasons:
        raise PartlyMeasured(context.config.name, reasons)
    if not terminal:
        count = sum(len(question.tables) for question in questions)
        print(
            f"{context.config.name}: {count} tables measured in {time.perf_counter() - started:.1f} s", file=sys.stderr
        )
