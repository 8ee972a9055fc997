"""Training curves of compared runs are those of their last loops, seed by seed."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from experiments.errors import RunError
from experiments.training_curves import compare_training

NAMES = ("scale_visible", "untied_scale_visible")
STEPS = (10, 20, 810, 990, 1010)


@pytest.fixture
def trained(make_config, tmp_path):
    """Two variants, two seeds; loop, step and seed have values of their own."""
    summaries = []
    for place, variant in enumerate(NAMES):
        for seed in (0, 1):
            config = make_config(variant, seed)
            folder = tmp_path / config.name
            folder.mkdir()
            records = [
                {"step": step, "cross_entropy": [None, 4.0**seed * step], "l2_norm": [1e9, 16.0**seed * (step + place)]}
                for step in STEPS
            ]
            lines = [json.dumps(record) + "\n" for record in records]
            (folder / "metrics.jsonl").write_text("".join(lines))
            summaries.append({"run": config.name, "variant": variant, "seed": seed, "config": config.to_dict()})
    return summaries, tmp_path


def test_the_table_has_every_run_and_step(trained):
    summaries, folder = trained
    compare_training(summaries, folder, folder / "out")
    rows = pd.read_csv(folder / "out" / "by_step.csv").set_index(["variant", "seed", "step"])
    assert len(rows) == len(NAMES) * 2 * len(STEPS)
    assert rows.loc[("untied_scale_visible", 1, 20)].tolist() == [80.0, 16.0 * 21]


def test_the_figure_draws_geometric_means_over_seeds_of_means_over_neighbouring_steps(trained, monkeypatch):
    kept = []
    monkeypatch.setattr("experiments.figures.plt.close", kept.append)
    summaries, folder = trained
    compare_training(summaries, folder, folder / "out")
    (figure,) = kept
    found = {line.get_label(): [] for axes in figure.axes for line in axes.get_lines()}
    for axes in figure.axes:
        for line in axes.get_lines():
            np.testing.assert_allclose(line.get_xdata(), [10, 20, (810 * 990) ** 0.5, 1010])
            found[line.get_label()].append(np.asarray(line.get_ydata()))
    assert set(found) == set(NAMES)
    for place, variant in enumerate(NAMES):
        norms, losses = found[variant]
        np.testing.assert_allclose(norms, [4.0 * (step + place) for step in (10, 20, 900, 1010)])
        np.testing.assert_allclose(losses, [2.0 * step for step in (10, 20, 900, 1010)])
    monkeypatch.undo()
    plt.close(figure)


def test_damaged_metrics_are_refused_before_anything_is_written(trained):
    summaries, folder = trained
    (folder / "scale_visible-1" / "metrics.jsonl").write_text("{\n")
    with pytest.raises(RunError, match="damaged"):
        compare_training(summaries, folder, folder / "out")
    assert not (folder / "out").exists()


def test_there_are_no_curves_where_a_run_has_none_nor_those_of_earlier_runs(trained):
    summaries, folder = trained
    compare_training(summaries, folder, folder / "out")
    assert {path.name for path in (folder / "out").iterdir()} == {"by_step.csv", "by_step.png"}
    (folder / summaries[-1]["run"] / "metrics.jsonl").unlink()
    compare_training(summaries, folder, folder / "out")
    assert not list((folder / "out").iterdir())
