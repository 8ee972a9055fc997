"""How the norm and the loss of compared runs went while they were trained: a tidy table and a figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.comparison import in_order
from experiments.config import RunConfig
from experiments.curves import look
from experiments.figures import draw_training
from experiments.files import atomic_path
from experiments.training.metrics import METRICS, read_metrics


def compare_training(summaries: list[dict[str, Any]], runs: Path, out: Path) -> None:
    """Write `by_step.csv` (all logged steps) and `by_step.png` (means of a few) into `out`.

    Args:
        summaries: the contents of the runs' `summary.json`.
        runs: folder of the run folders.
        out: folder.

    Raises:
        RunError: the metrics of a run are damaged.
    """
    by_step = pd.DataFrame([row for summary in in_order(summaries) for row in _rows(summary, runs / summary["run"])])
    if by_step.empty:
        return
    with atomic_path(out / "by_step.csv") as temporary:
        by_step.to_csv(temporary, index=False, float_format="%.6g")
    looks = {summary["variant"]: look(RunConfig.from_dict(summary["config"])) for summary in summaries}
    draw_training(out / "by_step.png", _by_tenths_of_a_decade(by_step), looks)


def _by_tenths_of_a_decade(by_step: pd.DataFrame) -> pd.DataFrame:
    """Each run's means over steps between which the logarithm grows by 0.1: late in training batches differ by more
    than anything else. A mean stands at the last of its steps."""
    rows = by_step.assign(part=np.ceil(10 * np.log10(by_step["step"])))
    return rows.groupby(["variant", "seed", "part"], sort=False, as_index=False).agg(
        step=("step", "max"), cross_entropy=("cross_entropy", "mean"), l2_norm=("l2_norm", "mean")
    )


def _rows(summary: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "variant": summary["variant"],
            "seed": summary["seed"],
            "step": record["step"],
            "cross_entropy": record["cross_entropy"][-1],
            "l2_norm": record["l2_norm"][-1],
        }
        for record in read_metrics(folder / METRICS)
    ]
