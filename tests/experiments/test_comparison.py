"""Ratio claims on synthetic norms in both directions."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from experiments.comparison import _claims, compare, over_seeds, require_comparable
from experiments.config import RunConfig, TrainingConfig
from experiments.corpus import CorpusConfig
from experiments.errors import UsageError
from experiments.files import read_json
from experiments.measure.statistics import Interval
from experiments.provenance import provenance
from experiments.readme import ROOT
from experiments.variants import find
from models import PRESETS


def verdict(blind, visible):
    norms = {"scale_invariant": dict(enumerate(blind)), "scale_visible": dict(enumerate(visible))}
    (claim,) = _claims(norms)
    return claim.verdict


@pytest.mark.parametrize(
    ("blind", "visible", "expected"),
    [
        ([600.0, 650.0, 620.0], [5.0, 5.5, 4.9], "supported"),
        ([9.0, 9.5, 9.2], [5.0, 5.5, 4.9], "not supported"),
        ([600.0, 20.0, 620.0], [5.0, 5.0, 5.0], "inconclusive"),  # one seed on the other side
        ([26.0, 60.0, 300.0], [5.0, 5.0, 5.0], "inconclusive"),  # all on one side, the interval is not
        ([600.0], [5.0], "inconclusive"),  # one seed has no interval
    ],
)
def test_the_ratio_claim(blind, visible, expected):
    assert verdict(blind, visible) == expected


def test_one_seed_on_the_other_side_leaves_it_open_though_the_interval_does_not_reach_there():
    interval = Interval(mean=1.9, low=1.8, high=2.0)
    assert over_seeds([2.0] * 31, interval, 1.0, 1.0, "above") == "supported"
    assert over_seeds([2.0] * 30 + [0.9], interval, 1.0, 1.0, "above") == "inconclusive"


def test_the_interval_of_a_ratio_is_students_of_its_logarithm():
    (claim,) = _claims({"scale_invariant": {0: 10.0, 1: 20.0, 2: 40.0}, "scale_visible": dict.fromkeys(range(3), 1.0)})
    half = math.exp(4.302653 * math.log(2) / math.sqrt(3))
    assert claim.observed == f"20 [{20 / half:.3g}, {20 * half:.3g}] over 3 seeds"


def test_a_cell_of_the_designed_experiment_is_compared_with_itself(tmp_path):
    name = "factorial_raw_tied_unit_learned_decay0.01_sgd"
    assert name in compare([summary(name, 0, 4.0), summary(name, 1, 1.0)], tmp_path)


def test_seeds_are_paired_and_unpaired_ones_left_out():
    (claim,) = _claims({"scale_invariant": {0: 600.0, 1: 1.0}, "scale_visible": {0: 5.0, 2: 1000.0}})
    assert claim.observed == "120 over 1 seed"


def test_a_missing_variant_makes_no_claim():
    assert _claims({"scale_invariant": {0: 600.0}}) == []


def summary(variant, seed, norm):
    """Every loop has values of its own, so that one taken for another is seen."""
    config = RunConfig(
        variant=variant,
        preset="tiny",
        seed=seed,
        model=find(variant).model_config(replace(PRESETS["tiny"], num_loops=2)),
        supervision=find(variant).supervision,
        training=TrainingConfig(steps=3, batch_size=4, learning_rate=0.1),
        corpus=CorpusConfig(data="synthetic"),
        corpus_key="k",
    )
    return {
        "run": f"{variant}-{seed}",
        "variant": variant,
        "seed": seed,
        "num_loops": 2,
        "parameters": 1000,
        "config": config.to_dict(),
        "sessions": [
            {
                "date": "2026-01-02T03:04:05",
                "processor": "P",
                "torch_threads": 1,
                "device": "cpu",
                "python": "3.11",
                "packages": {"torch": "2.13"},
                "commit": "0123456789abcdef",
                "uncommitted_changes": False,
            }
        ],
        "corpus": {"note": None},
        "validation": {
            "tokens": 99,
            "cross_entropy": [5.0 + seed, 4.0],
            "l2_norm": {name: [1.0, norm] for name in ("mean", "median", "p99", "max")},
        },
        "state": {"radial_gradient_fraction": [0.5, 0.25]},
    }


def test_the_table_shows_the_right_loops(tmp_path):
    runs = [summary("scale_invariant", 0, 80.0), summary("scale_invariant", 1, 20.0)]
    runs += [summary("scale_visible", 0, 4.0), summary("scale_visible", 1, 1.0)]
    runs += [summary("norm_penalty", 0, 8.0), summary("norm_penalty", 1, 2.0)]
    text = compare(runs, tmp_path)
    cells = {
        row[0]: row[1:]
        for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line)
    }
    assert cells["scale_invariant"][0] == "2"
    assert cells["scale_invariant"][1].startswith("40 [")  # geometric mean at the last loop
    assert cells["scale_invariant"][2] == "20 [20, 20]"  # over the raw partner, seed by seed
    assert cells["scale_visible"][2] == ""
    assert cells["scale_invariant"][3].startswith("5.5 [")
    assert cells["scale_invariant"][4] == "4 [4, 4]"
    assert cells["scale_invariant"][5] == "0.2 [0.2, 0.2]"
    assert cells["final norm: scale_invariant / scale_visible"][-1] == "supported"
    assert cells["final norm: norm_penalty / scale_invariant"][1:] == [
        "below 1",
        "0.1 [0.1, 0.1] over 2 seeds",
        "supported",
    ]
    assert "None" not in text and "commit 0123456789" in text
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "by_loop.csv",
        "claims.json",
        "comparison.md",
        "comparison.png",
    ]


def test_controls_are_compared_with_their_own_partners():
    norms = {
        "scale_invariant": {0: 1000.0, 1: 1100.0},
        "scale_visible": {0: 4.0, 1: 4.4},
        "untied_scale_invariant": {0: 200.0, 1: 220.0},
        "untied_scale_visible": {0: 25.0, 1: 27.5},
    }
    observed = {claim.quantity: claim for claim in _claims(norms)}
    assert observed["final norm: untied_scale_invariant / untied_scale_visible"].observed.startswith("8 ")
    confound = observed["final norm: the first ratio, tied over untied head"]
    assert confound.observed.startswith("31.") and confound.verdict == "no prediction"


def test_a_run_given_twice_is_refused(tmp_path):
    with pytest.raises(UsageError, match="given twice"):
        compare([summary("scale_visible", 0, 4.0)] * 2, tmp_path)


def test_runs_of_different_kinds_are_refused(tmp_path):
    other = summary("scale_invariant", 0, 4.0)
    other["config"]["training"]["steps"] = 4
    with pytest.raises(UsageError, match="cannot be compared"):
        compare([summary("scale_visible", 0, 4.0), other], tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("d_model", 64), ("num_layers", 2), ("num_loops", 3), ("embedding_multiplier", 0.5)]
)
def test_models_of_different_sizes_are_refused_unless_their_size_is_free(name, value):
    one, other = summary("scale_visible", 0, 4.0), summary("scale_visible", 0, 4.0)
    other["config"]["model"][name] = value
    with pytest.raises(UsageError, match="differ in size"):
        require_comparable([one, other])
    require_comparable([one, other], free=[name])
    with pytest.raises(UsageError, match="given twice"):
        require_comparable([one, one], free=[name])


def test_a_size_that_is_not_the_preset_s_is_named():
    runs = [summary("scale_visible", seed, 1.0) for seed in range(3)]
    assert "Preset tiny (" in provenance(runs)
    for run, width in zip(runs, (64, 128, 32), strict=True):
        run["config"]["model"]["d_model"] = width
    runs[1]["parameters"] += 5
    least = runs[0]["parameters"]
    assert f"Preset tiny with d_model 32, 64, 128 ({least:,} to {least + 5:,} parameters)" in provenance(runs)
    for run in runs:
        run["config"]["model"] |= {"d_model": 32, "num_layers": 3}
    assert "Preset tiny with num_layers 3 (" in provenance(runs)
    for run, factor in zip(runs, (0.25, 1.0, 4.0), strict=True):
        run["config"]["model"] |= {"num_layers": 1, "embedding_multiplier": factor}
    assert f"Preset tiny with embedding_multiplier 0.25, 1, 4 ({least:,} parameters in" in provenance(runs)


def test_a_momentum_that_is_not_the_preset_s_is_named():
    runs = [summary("scale_visible", seed, 1.0) for seed in range(2)]
    assert "learning rate 0.1, seeds 0, 1" in provenance(runs)
    runs[1]["config"]["training"]["momentum"] = 0.5
    assert "learning rate 0.1, momentum 0.5, 0.9, seeds 0, 1" in provenance(runs)
    runs[0]["config"]["training"] |= {"momentum": 0.5, "learning_rate": 0.2}
    assert "learning rates 0.1, 0.2, momentum 0.5, seeds 0, 1" in provenance(runs)


def test_weights_of_the_loops_losses_are_named_and_are_no_detail():
    one, other = summary("scale_visible", 0, 1.0), summary("scale_visible", 1, 1.0)
    other["config"]["supervision"]["weights"] = [0.0, 1.0]
    with pytest.raises(UsageError, match="differ in size, training"):
        require_comparable([one, other])
    require_comparable([one, other], free=["loop_weights"])
    same = summary("terminal_scale_visible", 0, 1.0), summary("scale_visible", 2, 1.0)
    same[1]["config"]["supervision"]["weights"] = [0.5, 0.5]  # what it is without being said
    require_comparable([one, *same])
    assert "learning rate 0.1, loop weights 0 1, equal, seeds 0, 1" in provenance([one, other])


def test_what_ran_on_a_gpu_names_the_gpu_and_not_its_host():
    gpu = summary("scale_visible", 0, 1.0)
    gpu["sessions"][0] |= {"device": "NVIDIA H200", "date": "2026-01-03T00:00:00"}
    assert "Made 2026-01-03 on NVIDIA H200, 1 thread(s)" in provenance([gpu])
    both = provenance([gpu, summary("scale_visible", 1, 1.0)])
    assert "Made 2026-01-02 to 2026-01-03 on NVIDIA H200, P, " in both


@pytest.mark.parametrize("name", ["cpu", "contrast", "long", "44m", "129m"])
def test_a_committed_comparison_says_what_its_committed_runs_do(name, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.comparison.draw_comparison", lambda *_: None)
    results = ROOT / "results" / name
    summaries = [run["summary"] for run in read_json(results / "runs.json")["runs"].values()]
    compare(summaries, tmp_path)
    for file in ("comparison.md", "by_loop.csv", "claims.json"):
        assert (tmp_path / file).read_text() == (results / file).read_text(), file


def test_committed_training_curves_are_of_the_committed_runs():
    results = ROOT / "results" / "long"
    runs = [run["summary"] for run in read_json(results / "runs.json")["runs"].values()]
    last = pd.read_csv(results / "by_step.csv").groupby(["variant", "seed"])["step"].max().to_dict()
    assert last == {(run["variant"], run["seed"]): run["config"]["training"]["steps"] for run in runs}
