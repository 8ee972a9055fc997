"""How the norm and the loss of compared runs went while they were trained: a tidy table and a figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.comparison import in_order
from experiments.config import RunConfig
from experiments.curves import geometric_mean, look
from experiments.figures import draw_training
from experiments.files import atomic_path
from experiments.training.metrics import METRICS, read_metrics


def compare_training(summaries: list[dict[str, Any]], runs: Path, out: Path) -> None:
    """Write `by_step.csv`, every logged step, and `by_step.png` into `out`; neither where a run has no metrics.

    Args:
        summaries: the contents of the runs' `summary.json`.
        runs: folder of the run folders.
        out: folder.

    Raises:
        RunError: the metrics of a run are damaged.
    """
    rows = [_rows(summary, runs / summary["run"]) for summary in in_order(summaries)]
    table, figure = out / "by_step.csv", out / "by_step.png"
    if not all(rows):
        table.unlink(missing_ok=True)
        figure.unlink(missing_ok=True)
        return
    by_step = pd.DataFrame([row for of_run in rows for row in of_run])
    with atomic_path(table) as temporary:
        by_step.to_csv(temporary, index=False, float_format="%.6g")
    looks = {summary["variant"]: look(RunConfig.from_dict(summary["config"])) for summary in summaries}
    draw_training(figure, _by_tenths_of_a_decade(by_step), looks)


def _by_tenths_of_a_decade(by_step: pd.DataFrame) -> pd.DataFrame:
    """Each run's means over steps between which the logarithm grows by 0.1: late in training batches differ by more
    than anything else."""
    step = by_step["step"].astype(float)
    rows = by_step.assign(step=step, part=np.ceil(10 * np.log10(step)))
    return rows.groupby(["variant", "seed", "part"], sort=False, as_index=False).agg(
        step=("step", geometric_mean), cross_entropy=("cross_entropy", "mean"), l2_norm=("l2_norm", "mean")
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
