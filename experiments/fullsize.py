"""What a campaign of packed runs cost, and how well the norms of loops it did not train for were predicted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import RunError
from experiments.evidence import INDEX, TABLES
from experiments.files import atomic_path, read_json
from experiments.tables import markdown

FIRST_LOOP = 5
METHODS = (
    "constant_increment",
    "second_order",
    "direction_flow",
    "direction_flow_second_order",
    "power_law",
)
"""Predictors shown (`experiments/measure/predictors.py`), beside the norm's staying what it was."""

COSTS = (
    "Tokens and seconds of training, training tokens a second, model operations over the peak of a large matrix "
    "product measured in the same process ({peak:.0f} TFLOP/s), mean norm of the state after the trained loops. "
    "Meanwhile other runs were measured on the same GPU."
)
GROWTH = (
    "Norms of later loops, predicted from the trained state, and run: means over held-out tokens (and seeds). An "
    "error is |predicted - seen| / seen, averaged over loops {first} to {last}, in per cent; `no growth` predicts the "
    "norm of the last trained loop for all of them. A dash: no prediction, since the direction has no limit or the "
    "recurrence is not of that kind."
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
        texts = {"costs.md": costs(index), "growth.md": growth(errors)}
    except (OSError, KeyError, TypeError, ValueError) as error:
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
    """A row for each variant and method: `seeds`, norms at the trained, the doubled and the last loop, and the errors.

    Args:
        table: `growth` of packed runs (see `experiments.measure.growth`), with the column `run`.
        variants: of the runs.

    Returns:
        Columns variant, seeds, l2_norm_trained, l2_norm_last, method, mean_error, last_error; errors relative.
    """
    table = table[table["k"] >= FIRST_LOOP].assign(variant=lambda t: t["run"].map(variants))
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


def growth(errors: pd.DataFrame) -> str:
    """The table of errors as text, a row a variant."""
    methods = ["no_growth", *METHODS]
    rows = []
    for variant, group in errors.groupby("variant", sort=False):
        by_method = group.set_index("method")["mean_error"]
        first = group.iloc[0]
        norms = [f"{first['l2_norm_trained']:,.3g}", f"{first['l2_norm_last']:,.3g}"]
        rows.append([str(variant), str(first["seeds"]), *norms, *(_percent(by_method.get(m)) for m in methods)])
    header = ["variant", "seeds", "norm, trained loops", "norm, 64 loops", *(m.replace("_", " ") for m in methods)]
    return "\n\n".join([GROWTH.format(first=FIRST_LOOP, last=64), markdown(header, rows)])


def _percent(error: float | None) -> str:
    return "-" if error is None or pd.isna(error) else f"{100 * error:.3g}"
