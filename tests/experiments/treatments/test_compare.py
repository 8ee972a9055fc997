"""Arms side by side: what is planted is found, and every prediction can fail."""

import json

import matplotlib.pyplot as plt
import pytest
from summaries import summary_of

from experiments.errors import UsageError
from experiments.grids.design import Setting
from experiments.treatments.arms import AT_ENTRY, CONTROLS, DETACHED, FROM_SECOND, NONE, RESCALED
from experiments.treatments.compare import JUDGEMENTS, REMEDIES, SEEING, TIED, UNTIED, compare_arms

GROWTH = {NONE: 3.0} | dict.fromkeys(REMEDIES, 1.5) | dict.fromkeys(SEEING, 0.5)
GROWTH |= {RESCALED: 6.0, AT_ENTRY: 1.0, DETACHED: 2.0, FROM_SECOND: 0.75}
COST = dict.fromkeys((NONE, *REMEDIES), 0.0) | {
    "norm penalty": 0.05,
    "raw readout": -0.2,
    RESCALED: -0.3,
    AT_ENTRY: 0.1,
    FROM_SECOND: 0.15,
}
DETACHED_COST = {TIED: -0.4, UNTIED: 0.4}


def measured(norm, loss):
    return {"tokens": 99, "cross_entropy": [9.0, loss], "l2_norm": {"mean": [1.0, norm]}}


def world():
    """All predictions come true."""
    runs = []
    for seed in (0, 1, 2):
        for variant in (TIED, UNTIED):
            run = summary_of(variant, Setting(3e-3), seed, 1.0) | {"at": 10}
            before = 100.0 + seed
            arms = []
            for remedy in (*CONTROLS, *reversed(REMEDIES), NONE):
                cost = DETACHED_COST[variant] if remedy == DETACHED else COST[remedy]
                after = measured(before * GROWTH[remedy] * (1 + 0.01 * seed), 4.0 + cost + 0.01 * seed)
                points = [{"step": step, "cross_entropy": 5.0, "l2_norm": before + step} for step in (20, 30)]
                treated = remedy != NONE
                arms.append(
                    {"remedy": remedy, "setting": 0.9 if treated else None, "promised": "visible" if treated else None}
                    | {"before": measured(before, 6.0), "at_once": measured(before, 6.5), "validation": after}
                    | {"curve": points}
                )
            del run["validation"]
            runs.append(run | {"arms": arms})
    return runs


def claims_of(runs, out):
    compare_arms(runs, out)
    return {row["quantity"]: row for row in json.loads((out / "claims.json").read_text())}


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("experiments.treatments.compare.draw_remedies", lambda *_: None)


def test_what_is_planted_is_found(undrawn, tmp_path):
    rows = claims_of(world(), tmp_path)
    predicted = {name: row for name, row in rows.items() if row["predicted"] != "none made"}
    assert {row["verdict"] for row in predicted.values()} == {"supported"}
    assert {name.partition(" ")[0] for name in predicted} == {f"({n})" for n in range(1, 15)}
    observed = {name: row["observed"].split()[0] for name, row in rows.items()}
    assert observed[f"(1) {TIED}, no remedy: norm after / before"] == "3.03"
    assert observed[f"(2) {UNTIED}, damping: norm after / without"] == "0.5"
    assert observed[f"(3) {TIED}, raw readout: norm after / before"] == "0.505"
    assert observed[f"(4) {UNTIED}, raw readout: CE after - without, nats"] == "-0.2"
    assert observed[f"(5) {TIED}, norm penalty: CE after - without, nats"] == "0.05"
    assert observed[f"(6) {TIED}, rescaled embedding: norm after / without"] == "2"
    assert observed[f"(7) {TIED}, between-loop norm at h_0's size: norm after / without"] == "0.333"
    assert observed[f"(8) {UNTIED}, rescaled embedding: CE after - without, nats"] == "-0.3"
    assert observed[f"(9) {UNTIED}, raw readout: norm after / with the scale detached"] == "0.25"
    assert observed[f"(10) {UNTIED}, raw readout, scale detached: CE after - without, nats"] == "0.4"
    assert observed[f"(11) {UNTIED}, {FROM_SECOND}: norm after / without"] == "0.25"
    assert observed[f"(12) {TIED}, {FROM_SECOND}: norm after / with between-loop norm"] == "0.5"
    assert observed[f"(13) {TIED}, {FROM_SECOND}: CE after - without, nats"] == "0.15"
    assert observed[f"(14) {UNTIED}, {FROM_SECOND}: CE after - with between-loop norm, nats"] == "0.15"
    assert observed[f"{TIED}, damping: norm after / before"] == "1.51"
    assert observed[f"{UNTIED}, rescaled embedding: norm after / without"] == "2"
    assert observed[f"{TIED}, between-loop norm at h_0's size: CE after - without, nats"] == "0.1"


def test_the_table_has_the_arms_in_one_order(undrawn, tmp_path):
    lines = compare_arms(world(), tmp_path).split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[:2] for row in cells] == [[v, r] for v in (TIED, UNTIED) for r in (NONE, *REMEDIES, *CONTROLS)]
    untreated, penalised = cells[0], cells[1]
    assert untreated[2] == untreated[6] == untreated[10] == "" and untreated[9].startswith("4.01 [")
    assert penalised[2] == "0.9" and penalised[3].startswith("101 [") and penalised[5].startswith("153 [")
    assert penalised[6] == "0.5 [0.5, 0.5]" and penalised[7].startswith("6 [") and penalised[8].startswith("6.5 [")
    assert penalised[10] == "0.05 [0.05, 0.05]"


def _arm(run, remedy):
    return next(arm for arm in run["arms"] if arm["remedy"] == remedy)


@pytest.mark.parametrize("judgement", [j for j in JUDGEMENTS if j.side], ids=lambda j: j.quantity)
def test_a_prediction_fails_where_its_own_arm_is_otherwise(judgement, undrawn, tmp_path):
    variant, _, rest = judgement.quantity.partition(" ")[2].partition(", ")
    remedy = rest.partition(":")[0].replace("no remedy", NONE)
    runs = world()
    for run in runs:
        if run["variant"] == variant:
            after = _arm(run, remedy)["validation"]
            if "CE" in rest:
                after["cross_entropy"][-1] += -1.0 if judgement.side == "above" else 1.0
            else:
                after["l2_norm"]["mean"][-1] *= 0.1 if judgement.side == "above" else 10.0
    assert claims_of(runs, tmp_path)[judgement.quantity]["verdict"] == "not supported"


def test_runs_that_cannot_be_compared_are_refused(undrawn, tmp_path):
    runs = world()
    runs[0]["at"] = 11
    with pytest.raises(UsageError, match="begun at different steps"):
        compare_arms(runs, tmp_path)
    with pytest.raises(UsageError, match="given twice"):
        compare_arms([*world(), world()[0]], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_figure_has_a_line_an_arm(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr("experiments.figures.plt.close", figures.append)
    compare_arms(world(), tmp_path)
    monkeypatch.undo()
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == [TIED, UNTIED] * 2
    assert (tmp_path / "remedies.png").stat().st_size > 10_000
    for axes, column in zip(figure.axes, ("l2_norm", "l2_norm", "cross_entropy", "cross_entropy"), strict=True):
        drawn = {line.get_label(): line.get_data() for line in axes.get_lines()}
        assert list(drawn) == [NONE, *REMEDIES]
        x, y = drawn["damping"]
        assert x.tolist() == [20, 30]
        assert y.tolist() == pytest.approx([121.0, 131.0] if column == "l2_norm" else [5.0, 5.0], rel=1e-3)
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 6
    plt.close(figure)
