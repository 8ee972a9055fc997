"""Effects and interactions of a two-level factorial on the final norm and the cross-entropy.

With levels coded -1 and +1 and an orthogonal design, an effect is the mean at +1 minus the mean at -1; that of a
product of factors is their interaction. It is taken seed by seed, and its error is the spread over seeds, which all
cells share; where there is one run a cell, Lenth's pseudo standard error, which takes most effects to be small (Lenth,
Technometrics 31(4), 1989).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.config import RunConfig
from experiments.errors import UsageError
from experiments.factorial import EMBEDDINGS, FACTORIAL, FACTORS, READOUTS, levels_of
from experiments.files import atomic_path
from experiments.measure.statistics import Interval, t_interval, t_quantile
from experiments.provenance import provenance
from experiments.tables import markdown
from experiments.variant import PER_LOOP
from models import PRESETS

CORE = ("readout", "head", "embeddings")
RESPONSES = {"log_l2_norm": "final L2 norm, factor", "cross_entropy": "final cross-entropy, nats"}
NOTE = (
    "An effect is the change from {low} to {high}, averaged over all other settings: a factor for the norm, a "
    "difference for the cross-entropy; a product of factors is an interaction (half the change of one's effect by the "
    "other, so that squaring a norm's interaction gives the ratio of ratios). Intervals: 95 %, {error}."
)


def core_levels(config: RunConfig) -> dict[str, str] | None:
    """Levels of the three core factors by a run's configuration; None for a run that is no cell of that factorial: with
    another loss or another change to its preset's model, or one of the designed experiment, which has its own table."""
    if config.supervision != PER_LOOP or config.preset not in PRESETS or config.variant in FACTORIAL:
        return None
    size = replace(PRESETS[config.preset], vocab_size=config.model.vocab_size)
    for readout, head, embeddings in itertools.product(*(FACTORS[factor] for factor in CORE)):
        read = replace(READOUTS[readout], tied=head == "tied")
        if config.model == replace(size, readout=read, embedding_std=EMBEDDINGS[embeddings]):
            return {"readout": readout, "head": head, "embeddings": embeddings}
    return None


def core_runs(summaries: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The runs that make the full factorial of readout, head and embeddings."""
    pairs = [(core_levels(RunConfig.from_dict(summary["config"])), summary) for summary in summaries]
    return pd.DataFrame([levels | _responses(summary) for levels, summary in pairs if levels])


def factorial_runs(summaries: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """All cells of the designed experiment that were run, one row a run, with their levels."""
    chosen = [summary for summary in summaries if summary["variant"] in FACTORIAL]
    return pd.DataFrame([levels_of(summary["variant"]) | _responses(summary) for summary in chosen])


def fraction(runs: pd.DataFrame) -> pd.DataFrame:
    """The half fraction among the factorial's runs: AdamW, and a readout that is one of the two levels."""
    return runs[(runs["optimiser"] == "adamw") & runs["readout"].isin(FACTORS["readout"])]


def balanced(runs: pd.DataFrame, factors: Sequence[str], cells: int) -> pd.DataFrame:
    """The runs of those seeds that every one of the `cells` cells has: only then are the columns orthogonal."""
    if runs.empty:
        return runs
    seeds = [set(cell) for _, cell in runs.groupby(list(factors))["seed"]]
    return runs[runs["seed"].isin(set.intersection(*seeds) if len(seeds) == cells else ())]


def effects(runs: pd.DataFrame, factors: Sequence[str], response: str) -> pd.DataFrame:
    """Main effects and interactions, of every order if the design is full and of two factors if not; 95 % intervals.

    Args:
        runs: one row a run; a column of level names for each factor, and `seed`. The design must be orthogonal.
        factors: names of the factors, from `FACTORS`.
        response: the column to explain.

    Returns:
        A row an effect: `effect`, `estimate`, `low`, `high`, in units of the response, and the `error` used.

    Raises:
        ValueError: the columns are not orthogonal, so effects would be mixed.
    """
    seeds = [_of_one_seed(cells, factors, response) for _, cells in runs.groupby("seed")]
    if len({tuple(estimates) for estimates in seeds}) > 1:
        raise ValueError("the runs are not an orthogonal design; run every cell with the same seeds.")
    together = {name: [estimates[name] for estimates in seeds] for name in seeds[0]}
    if len(seeds) > 1:
        intervals = [t_interval(values) for values in together.values()]
        error = f"Student t over {len(seeds)} seeds"
    else:
        half = _lenth([value for (value,) in together.values()])
        intervals = [Interval(mean=value, low=value - half, high=value + half) for (value,) in together.values()]
        error = "Lenth's pseudo standard error, one run a cell"
    rows = [(name, i.mean, i.low, i.high, error) for name, i in zip(together, intervals, strict=True)]
    return pd.DataFrame(rows, columns=["effect", "estimate", "low", "high", "error"])


def _of_one_seed(cells: pd.DataFrame, factors: Sequence[str], response: str) -> dict[str, float]:
    y = cells[response].to_numpy(dtype=float)
    signs = {f: np.array([2 * FACTORS[f].index(level) - 1 for level in cells[f]], dtype=float) for f in factors}
    full = cells.groupby(list(factors)).ngroups == 2 ** len(factors)
    columns = {
        " x ".join(names): np.prod([signs[name] for name in names], axis=0)
        for order in range(1, 1 + (len(factors) if full else 2))
        for names in itertools.combinations(factors, order)
    }
    matrix = np.column_stack([np.ones(len(y)), *columns.values()])
    if not np.array_equal(matrix.T @ matrix, len(y) * np.eye(matrix.shape[1])):
        raise ValueError("the runs are not an orthogonal design; run every cell with the same seeds.")
    return {name: 2.0 * float(column @ y) / len(y) for name, column in columns.items()}


def _lenth(estimates: Sequence[float]) -> float:
    """Half width of the 95 % intervals: t times 1.5 times the median size of the effects, those beyond 2.5 times 1.5
    times the median left out, at a third as many degrees of freedom as there are effects."""
    size = np.abs(estimates)
    typical = 1.5 * float(np.median(size))
    pseudo = 1.5 * float(np.median(size[size < 2.5 * typical])) if typical > 0.0 else 0.0
    return t_quantile(len(size) / 3) * pseudo


def behind_each_readout(half: pd.DataFrame, response: str) -> dict[tuple[str, str], Interval]:
    """By effect and readout: of the other factors, and of head x embeddings, among the runs with that readout, seed by
    seed, and the interval over seeds.

    Among them the design is a half fraction of four factors: an effect of one is confounded with the interaction of the
    other three, and head x embeddings with position x decay.
    """
    readout, *others = FACTORS
    found = {}
    for names, level in itertools.product([*((name,) for name in others), CORE[1:]], FACTORS[readout]):
        runs = half[half[readout] == level]
        sign = np.prod([2 * (runs[name] == FACTORS[name][1]) - 1 for name in names], axis=0)
        means = runs.assign(sign=sign).groupby(["sign", "seed"])[response].mean()
        found[" x ".join(names), level] = t_interval((means[1] - means[-1]).tolist())
    return found


def tables(runs: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """The effects on every response, one under the other."""
    return pd.concat([effects(runs, factors, response).assign(response=response) for response in RESPONSES])


def as_markdown(table: pd.DataFrame) -> str:
    """Effects as a table: factors for the norm, differences for the cross-entropy."""
    columns = table[["effect", "response", "estimate", "low", "high"]].itertuples(index=False, name=None)
    cells = {
        (effect, response): _shown(Interval(mean=estimate, low=low, high=high), response)
        for effect, response, estimate, low, high in columns
    }
    names = list(dict.fromkeys(table["effect"]))
    low, high = (", ".join(levels[i] for name, levels in FACTORS.items() if name in names) for i in (0, 1))
    note = NOTE.format(low=low, high=high, error=table["error"].iloc[0])
    rows = [[name, *(cells[name, response] for response in RESPONSES)] for name in names]
    return markdown(["effect", *RESPONSES.values()], rows) + "\n\n" + note


def _shown(interval: Interval, response: str) -> str:
    values = np.array([value for value in (interval.mean, interval.low, interval.high) if value is not None])
    as_factor = response == "log_l2_norm"
    mean, *ends = (
        f"{value:.3g}" if as_factor else f"{value:+.3f}" for value in (np.exp(values) if as_factor else values)
    )
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def _behind_each_readout(half: pd.DataFrame) -> str:
    found = {response: behind_each_readout(half, response) for response in RESPONSES}
    columns = list(itertools.product(RESPONSES, FACTORS["readout"]))
    names = dict.fromkeys(name for of_response in found.values() for name, _ in of_response)
    rows = [[name, *(_shown(found[response][name, level], response) for response, level in columns)] for name in names]
    header = ["effect", *(f"{RESPONSES[response]}, {level}" for response, level in columns)]
    return (
        "The same effects behind each readout by itself (head x embeddings is position x decay, too):\n\n"
        + markdown(header, rows)
    )


def publish_factorial(summaries: Sequence[dict[str, Any]], out: Path) -> str:
    """Write the designed experiment's runs and effects into a folder; return the Markdown.

    Raises:
        UsageError: a cell of the fraction is missing.
    """
    runs = factorial_runs(summaries)
    half = runs if runs.empty else balanced(fraction(runs), tuple(FACTORS), 2 ** (len(FACTORS) - 1))
    if half.empty or len(half) < len(fraction(runs)):
        raise UsageError("the factorial is incomplete; run --variant factorial with --resume first.")
    table = tables(half, tuple(FACTORS))
    parts = [as_markdown(table), _behind_each_readout(half), _cells(runs), provenance(summaries)]
    for name, frame in (("runs", runs), ("effects", table)):
        with atomic_path(out / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
    text = "\n\n".join(parts)
    with atomic_path(out / "factorial.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return text


def _cells(runs: pd.DataFrame) -> str:
    """Every cell as run: what the fraction does not cover is read here."""
    names = [*FACTORS, "optimiser"]
    grouped = runs.groupby(names, sort=False)
    rows = [
        [*map(str, levels), str(len(cell)), f"{math.exp(cell['log_l2_norm'].mean()):.3g}", f"{ce:.3f}"]
        for levels, cell in grouped
        for ce in [cell["cross_entropy"].mean()]
    ]
    return markdown([*names, "runs", "final L2 norm", "cross-entropy"], rows)


def _responses(summary: dict[str, Any]) -> dict[str, Any]:
    validation = summary["validation"]
    return {
        "run": summary["run"],
        "seed": summary["seed"],
        "log_l2_norm": math.log(validation["l2_norm"]["mean"][-1]),
        "cross_entropy": validation["cross_entropy"][-1],
    }
