"""The table of a campaign's growth errors says what the runs' own tables say, and the committed one is made of them."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from experiments.campaign_tables import costs, growth, growth_errors, write_campaign
from experiments.errors import RunError

COMMITTED = Path(__file__).parents[2] / "results" / "44m"


def rows(run, method, predicted, seen=(20.0, 40.0), trained=10.0):
    """Loops 5 and 6."""
    columns = ("run", "k", "method", "l2_norm_trained", "l2_norm_seen", "l2_norm_predicted")
    values = zip((5, 6), seen, predicted, strict=True)
    return [dict(zip(columns, (run, k, method, trained, s, p), strict=True)) for k, s, p in values]


def test_errors_are_relative_to_what_was_seen_and_averaged_over_loops_and_seeds():
    table = pd.DataFrame(
        [
            *rows("a-0", "constant_increment", (20.0, 30.0)),
            *rows("a-1", "constant_increment", (30.0, 40.0)),
            *rows("a-0", "power_law", (20.0, math.nan)),
            *rows("a-1", "power_law", (20.0, 40.0)),
            *rows("a-0", "not_shown", (20.0, 40.0)),
        ]
    )
    found = growth_errors(table, {"a-0": "a", "a-1": "a"}).set_index("method")
    assert set(found.index) == {"no_growth", "constant_increment", "power_law"}
    assert found.loc["constant_increment", "mean_error"] == pytest.approx((0.0 + 0.25 + 0.5 + 0.0) / 4)
    assert found.loc["constant_increment", "last_error"] == pytest.approx((0.25 + 0.0) / 2)
    assert found.loc["no_growth", "mean_error"] == pytest.approx((0.5 + 0.75) / 2)  # 10 for 20, and for 40
    assert math.isnan(found.loc["power_law", "mean_error"])  # it predicts nothing at one loop of one seed
    assert list(found["seeds"]) == [2, 2, 2]
    line = growth(growth_errors(table, {"a-0": "a", "a-1": "a"}), 4).splitlines()[-1].split("|")
    assert [cell.strip() for cell in line[1:6]] == ["a", "2", "10", "40", "62.5"]
    assert line[-2].strip() == "-"


def test_every_run_has_its_cost_and_the_missing_are_named():
    index = json.loads((COMMITTED / "runs.json").read_text())
    text = costs(index)
    for name in index["runs"]:
        assert f"| {name} " in text
    assert text.endswith(f"Planned and missing: {', '.join(index['missing'])}.")


def test_the_committed_tables_are_made_of_the_committed_runs(tmp_path):
    write_campaign(COMMITTED, tmp_path)
    for name in ("costs.md", "growth.md"):
        assert (tmp_path / name).read_text() == (COMMITTED / name).read_text()


def test_runs_that_are_no_campaign_get_a_sentence(tmp_path):
    with pytest.raises(RunError, match="is no packed campaign"):
        write_campaign(tmp_path, tmp_path)
    (tmp_path / "runs.json").write_text('{"version": 1, "runs": {}, "missing": []}')
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "growth.csv").write_text("run,k\n")
    with pytest.raises(RunError, match="is no packed campaign"):
        write_campaign(tmp_path, tmp_path)
