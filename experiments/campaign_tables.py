"""What a campaign of packed runs cost, and how well the norms of loops it did not train for were predicted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import RunError
from experiments.evidence import INDEX, TABLES
from experiments.files import atomic_path, read_json
from experiments.measure.context import FAR_LOOPS
from experiments.measure.growth import WINDOWS
from experiments.measure.state import STATE_TOKENS
from experiments.tables import markdown

METHODS = (
    "constant_increment",
    "second_order",
    "direction_flow",
    "direction_flow_second_order",
    "power_law",
)
"""Predictors shown (`experiments/measure/predictors.py`), beside the norm's staying what it was."""

COSTS = (
    "Tokens of training; its seconds, compilation included; the median of its tokens a second; their model operations "
    "over the peak of a large matrix product, measured when the campaign was planned ({peak:.0f} TFLOP/s); mean norm "
    "of the state after the trained loops. A campaign measures its finished runs on the same GPU while it trains "
    "others: speeds alone are those of the benchmark."
)
GROWTH = (
    "Norms of loops {first} to {last}, predicted from the state after loop {trained} and run, in float64 on {tokens} "
    "held-out tokens (other and fewer than those of the norms elsewhere), averaged over seeds. An error is |predicted "
    "- seen| / seen, averaged over these loops, in per cent; `no growth` predicts the norm of loop {trained} for all "
    "of them. The direction flow looks at the step far out once a loop, so it costs what running costs and asks "
    "whether the recurrence depends on the direction alone; the constant increment looks once. A dash: no prediction, "
    "since no limiting direction was found at every token, or the recurrence is not of that kind."
)


def write_campaign(packed: Path, out: Path) -> str:
    """Write `costs.md`, `growth.md` and `growth_errors.csv` of a campaign's packed runs into `out`; return `growth.md`.

    Raises:
        RunError: the packed runs are no campaign's, or hold no table of growth.
    """
    try:
        index = read_json(packed / INDEX)
        variants = {name: documents["summary"]["variant"] for name, documents in index["runs"].items()}
        errors = growth_errors(pd.read_csv(packed / TABLES / "growth.csv"), variants)
        config = next(iter(index["runs"].values()))["config"]["config"]
        texts = {"costs.md": costs(index), "growth.md": growth(errors, config["model"]["num_loops"])}
    except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise RunError(f"{packed} is no packed campaign ({error}); pack one with experiments/gpu.py.") from error
    with atomic_path(out / "growth_errors.csv") as temporary:
        errors.to_csv(temporary, index=False)
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return texts["growth.md"]


def costs(index: Mapping[str, Any]) -> str:
    """One row a run, and the names of the runs that are missing."""
    rows = []
    for name, documents in index["runs"].items():
        training, norms = documents["summary"]["training"], documents["summary"]["validation"]["l2_norm"]["mean"]
        rows.append(
            [
                name,
                f"{training['tokens']:,}",
                f"{training['seconds']:.0f}",
                f"{training['tokens_per_second']:,.0f}",
                f"{100 * index['model_flops_utilisation'][name]:.0f} %",
                f"{norms[-1]:,.3g}" if norms[-1] < 1000 else f"{norms[-1]:,.0f}",
            ]
        )
    missing = ", ".join(index["missing"]) or "none"
    table = markdown(["run", "tokens", "seconds", "tokens/s", "utilisation", "L2 norm"], rows)
    return "\n\n".join(
        [COSTS.format(peak=index["plan"]["matmul_peak"] / 1e12), table, f"Planned and missing: {missing}."]
    )


def growth_errors(table: pd.DataFrame, variants: Mapping[str, str]) -> pd.DataFrame:
    """A row for each variant and method: number of seeds, norms at the trained and the last loop, and the errors.

    Args:
        table: `growth` of packed runs (see `experiments.measure.growth`), with the column `run`.
        variants: of the runs.

    Returns:
        Columns variant, seeds, l2_norm_trained, l2_norm_last, method, mean_error, last_error; errors relative.
    """
    table = table.assign(variant=lambda t: t["run"].map(variants))
    still = table[table["method"] == "constant_increment"].assign(
        method="no_growth", l2_norm_predicted=lambda t: t["l2_norm_trained"]
    )
    table = pd.concat([still, table[table["method"].isin(METHODS)]])
    table["error"] = (table["l2_norm_predicted"] - table["l2_norm_seen"]).abs() / table["l2_norm_seen"]
    last = table[table["k"] == table["k"].max()]
    keys = ["variant", "method"]
    found = last.groupby(keys, sort=False).agg(
        seeds=("run", "nunique"), l2_norm_trained=("l2_norm_trained", "mean"), l2_norm_last=("l2_norm_seen", "mean")
    )
    # A method that predicts nothing at some loop or seed has no mean error.
    found["mean_error"] = table.groupby(keys)["error"].agg(lambda errors: errors.mean(skipna=False))
    found["last_error"] = last.groupby(keys)["error"].agg(lambda errors: errors.mean(skipna=False))
    return found.reset_index()


def growth(errors: pd.DataFrame, num_loops: int) -> str:
    """The table of errors as text, a row a variant, for models trained with `num_loops` loops."""
    methods = ["no_growth", *METHODS]
    rows = []
    for variant, group in errors.groupby("variant", sort=False):
        by_method = group.set_index("method")["mean_error"]
        first = group.iloc[0]
        norms = [f"{first['l2_norm_trained']:,.3g}", f"{first['l2_norm_last']:,.3g}"]
        rows.append([str(variant), str(first["seeds"]), *norms, *(_percent(by_method.get(m)) for m in methods)])
    header = ["variant", "seeds", f"norm, loop {num_loops}", f"norm, loop {FAR_LOOPS}"]
    header += [method.replace("_", " ") for method in methods]
    tokens = WINDOWS * STATE_TOKENS
    setting = GROWTH.format(first=num_loops + 1, last=FAR_LOOPS, trained=num_loops, tokens=tokens)
    return "\n\n".join([setting, markdown(header, rows)])


def _percent(error: float | None) -> str:
    return "-" if error is None or pd.isna(error) else f"{100 * error:.3g}"
