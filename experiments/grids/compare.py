"""The runs of a grid side by side: a table of its cells, the predictions with their verdicts, the figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.comparison import require_comparable
from experiments.config import RunConfig
from experiments.curves import look
from experiments.errors import UsageError
from experiments.expectations import as_dicts
from experiments.files import atomic_path, write_json
from experiments.grids.design import Grid, Setting, column_of, setting_of
from experiments.measure.statistics import geometric_interval, t_interval
from experiments.provenance import provenance
from experiments.tables import markdown, rows_as_markdown

NOTE = (
    "Blind: RMSNorm readouts; raw: the partner with raw ones. Norms and cross-entropies (CE) of loop 4, where no other "
    "is named. Largest: over the steps whose weights were kept, on 2,048 held-out tokens. Common fraction: the part of "
    "the state's mean square that one vector for all tokens makes; of blind runs, means over seeds. Intervals: 95 % "
    "each, Student t over seeds, of the logarithm for norms and their ratios. "
)


def compare_grid(
    name: str, grid: Grid, summaries: Sequence[dict[str, Any]], tables: Mapping[str, pd.DataFrame], out: Path
) -> str:
    """Write runs, verdicts, figures and Markdown into `out`; return the Markdown.

    Args:
        name: of the Markdown file.
        grid: what is compared.
        summaries: the contents of its runs' `summary.json`; equal in all but variant, seed and setting.
        tables: `common` and those of `grid.tables`, each of all runs, with the columns of `identity`.
        out: folder.

    Raises:
        UsageError: as `require_cells`, or a run has no table.
    """
    require_cells(summaries)
    common = tables["common"]
    _require_kept_weights(summaries, common)
    runs = _runs(grid, summaries, tables)
    rows = [judgement.judge(runs) for judgement in grid.judgements]
    rows.sort(key=lambda row: not row.quantity.startswith("("))  # predictions first
    text = "\n\n".join([_cell_table(grid, runs), rows_as_markdown(as_dicts(rows)), NOTE + provenance(summaries)])
    for file, frame in (("runs", runs), ("common", common)):
        with atomic_path(out / f"{file}.csv") as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    write_json(out / "claims.json", as_dicts(rows))
    grid.draw(out, runs, common, {s["variant"]: look(RunConfig.from_dict(s["config"])) for s in summaries})
    with atomic_path(out / f"{name}.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return text


def require_cells(summaries: Sequence[dict[str, Any]]) -> None:
    """Check that runs can be of one grid.

    Raises:
        UsageError: they differ in more than variant, seed and setting, or one was given twice.
    """
    require_comparable(summaries, free=Setting._fields)


def identity(summary: dict[str, Any]) -> dict[str, Any]:
    """What tells one run of a grid from the others."""
    return setting_of(summary)._asdict() | {"variant": summary["variant"], "seed": summary["seed"]}


def _require_kept_weights(summaries: Sequence[dict[str, Any]], common: pd.DataFrame) -> None:
    with_rows = set(zip(*(common[key] for key in identity(summaries[0])), strict=True))
    for summary in summaries:
        if tuple(identity(summary).values()) not in with_rows:
            raise UsageError(f"{summary['run']} kept no weights along training; train it again with --snapshots 10.")


def _runs(grid: Grid, summaries: Sequence[dict[str, Any]], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a run, in the order of settings and variants."""
    keys = list(identity(summaries[0]))
    by_run = {name: dict(list(table.groupby(keys))) for name, table in tables.items()}
    rows = []
    for summary in summaries:
        which = identity(summary)
        of_run = {name: runs.get(tuple(which.values()), pd.DataFrame()) for name, runs in by_run.items()}
        of_run["common"] = common = of_run["common"].sort_values("step")
        rows.append(
            which
            | {
                "l2_norm": summary["validation"]["l2_norm"]["mean"][-1],
                "cross_entropy": summary["validation"]["cross_entropy"][-1],
                "largest_norm": common["l2_norm"].max(),
                "most_common": common["common_fraction"].max(),
                "last_common": common["common_fraction"].iloc[-1],
            }
            | {name: column(summary, of_run) for name, column in grid.columns.items()}
        )
    return pd.DataFrame(rows).sort_values(keys, ignore_index=True)


def _cell_table(grid: Grid, runs: pd.DataFrame) -> str:
    """Every pair under every setting."""
    header = ["head, embeddings", grid.heading, "norm, blind", "norm, raw", "ratio", "CE, blind", "CE, raw"]
    header += ["largest norm, blind", "largest norm, raw", "common fraction, largest", "common fraction, last"]
    rows = []
    for pair, variants in grid.pairs.items():
        for setting, name in grid.settings.items():
            blind, raw = cells = [(variant, setting) for variant in variants]
            norms = [column_of(runs, cell) for cell in cells]
            ratio = (norms[0] / norms[1]).dropna()
            if ratio.empty:
                rows.append([pair, name, *["not run"] * (len(header) - 2)])
                continue
            losses = [column_of(runs, cell, "cross_entropy") for cell in cells]
            largest = [column_of(runs, cell, "largest_norm") for cell in cells]
            fractions = [column_of(runs, blind, column) for column in ("most_common", "last_common")]
            rows.append(
                [
                    pair,
                    name,
                    *(geometric_interval(of.tolist()).text(3) for of in (*norms, ratio)),
                    *(t_interval(of.tolist()).text(4) for of in losses),
                    *(geometric_interval(of.tolist()).text(3) for of in largest),
                    *(f"{of.mean():.3g}" for of in fractions),
                ]
            )
    return markdown(header, rows)
