"""Effects of a factorial: recovered where they were planted, absent where not, refused where they would be mixed."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.effects import (
    CORE,
    balanced,
    behind_each_readout,
    core_levels,
    effects,
    factorial_runs,
    fraction,
    publish_factorial,
)
from experiments.errors import UsageError
from experiments.factorial import FACTORS
from experiments.files import read_json
from experiments.readme import ROOT


def design(factors, *, seeds, noise, planted):
    """A full factorial with responses made of planted half-effects and noise."""
    generator = np.random.default_rng(0)
    rows = []
    for signs in itertools.product((-1, 1), repeat=len(factors)):
        coded = dict(zip(factors, signs, strict=True))
        mean = sum(half * np.prod([coded[f] for f in key]) for key, half in planted.items())
        for seed in range(seeds):
            levels = {f: FACTORS[f][(coded[f] + 1) // 2] for f in factors}
            rows.append(levels | {"seed": seed, "y": 3.0 + mean + noise * generator.standard_normal()})
    return pd.DataFrame(rows)


PLANTED = {("readout",): 1.0, ("readout", "head"): -0.5}


@pytest.mark.parametrize("seeds, factors, noise", [(3, CORE, 0.05), (1, tuple(FACTORS), 0.02)])
def test_planted_effects_are_found_and_no_others(seeds, factors, noise):
    table = effects(design(factors, seeds=seeds, noise=noise, planted=PLANTED), factors, "y").set_index("effect")
    assert table.loc["readout", "estimate"] == pytest.approx(2.0, abs=0.1)
    assert table.loc["readout x head", "estimate"] == pytest.approx(-1.0, abs=0.1)
    found = table.index[(table["low"] > 0) | (table["high"] < 0)]
    assert {"readout", "readout x head"} <= set(found)
    assert len(table) == 2 ** len(factors) - 1
    assert len(found) <= 2 + 0.15 * len(table)  # of 95 % intervals some err
    assert ("Lenth" in table["error"].iloc[0]) == (seeds == 1)


def test_the_interval_is_students_over_seeds():
    """Seeds are drawn once for all cells: what they share, here 100 a seed, is no error of an effect."""
    cells = design(CORE, seeds=1, noise=0.0, planted=PLANTED).drop(columns="seed")
    effect = {0: 1.9, 1: 2.0, 2: 2.4}  # of the readout, by seed
    sign = cells["readout"].map({"raw": -1, "rmsnorm": 1})
    runs = pd.concat([cells.assign(seed=s, y=100.0 * s + sign * value / 2) for s, value in effect.items()])
    row = effects(runs, CORE, "y").set_index("effect").loc["readout"]
    half = 4.302653 * np.std(list(effect.values()), ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
    assert row["estimate"] == pytest.approx(2.1)
    assert (row["low"], row["high"]) == (pytest.approx(2.1 - half, rel=1e-6), pytest.approx(2.1 + half, rel=1e-6))
    assert row["error"] == "Student t over 3 seeds"


def test_lenths_interval_by_hand():
    """Effects 8, 1, 0.3, -0.2, 0.1, -0.4, 0.05: the median is 0.3, so 8 lies beyond 2.5 x 0.45, and 1 does not."""
    planted = dict(zip(
        [("readout",), ("head",), ("embeddings",), ("readout", "head"), ("readout", "embeddings"),
         ("head", "embeddings"), CORE],
        [4.0, 0.5, 0.15, -0.1, 0.05, -0.2, 0.025], strict=True,
    ))  # fmt: skip
    table = effects(design(CORE, seeds=1, noise=0.0, planted=planted), CORE, "y").set_index("effect")
    pseudo = 1.5 * 0.25  # the median of 0.05, 0.1, 0.2, 0.3, 0.4, 1
    half = stats.t.ppf(0.975, 7 / 3) * pseudo
    assert table.loc["readout", "estimate"] == pytest.approx(8.0)
    assert (table["high"] - table["low"]).to_numpy() / 2 == pytest.approx(half, rel=1e-5)


def test_noise_widens_the_interval():
    narrow, wide = (effects(design(CORE, seeds=3, noise=n, planted=PLANTED), CORE, "y") for n in (0.1, 1.0))
    widths = [(table["high"] - table["low"]).iloc[0] for table in (narrow, wide)]
    assert widths[1] == pytest.approx(10 * widths[0], rel=1e-6)


def test_a_half_fraction_has_no_interactions_of_three_factors():
    whole = design(tuple(FACTORS), seeds=1, noise=0.02, planted=PLANTED)
    signs = np.prod([[2 * FACTORS[f].index(level) - 1 for level in whole[f]] for f in FACTORS], axis=0)
    assert len(effects(whole[signs == 1], tuple(FACTORS), "y")) == 5 + 10


def test_a_design_is_narrowed_to_the_seeds_that_every_cell_has():
    runs = design(CORE, seeds=2, noise=0.1, planted=PLANTED)
    assert balanced(runs, CORE, 8).equals(runs)
    rest = balanced(runs.iloc[1:], CORE, 8)  # the first cell has lost its seed 0
    assert set(rest["seed"]) == {1} and len(rest) == 8
    assert balanced(runs.iloc[2:], CORE, 8).empty and balanced(runs[:0], CORE, 8).empty
    with pytest.raises(ValueError, match="not an orthogonal design"):
        effects(runs.iloc[1:], CORE, "y")


@pytest.fixture
def committed():
    """The designed experiment as it was run."""
    packed = read_json(ROOT / "results" / "factorial" / "runs.json")
    return [run["summary"] for run in packed["runs"].values()]


def test_the_committed_effects_are_of_the_committed_runs(committed, tmp_path):
    stored = ROOT / "results" / "factorial"
    text = publish_factorial(committed, tmp_path)
    assert (stored / "factorial.md").read_text().strip() == text
    for name in ("effects.csv", "runs.csv"):
        pd.testing.assert_frame_equal(*(pd.read_csv(folder / name) for folder in (tmp_path, stored)), rtol=1e-9)


def test_behind_each_readout_an_effect_is_its_own():
    """The head's effect is -1 + 4 behind an RMSNorm and -1 - 4 behind a raw readout, a seed's own level is no error."""
    planted = {("head",): -0.5, ("readout", "head"): 2.0, ("readout",): 9.0}
    planted[("head", "embeddings")] = 0.25
    runs = design(tuple(FACTORS), seeds=3, noise=0.0, planted=planted)
    found = behind_each_readout(runs.assign(y=runs["y"] + 50.0 * runs["seed"]), "y")
    names = ("head", "embeddings", "position", "decay", "head x embeddings")
    assert set(found) == set(itertools.product(names, ("raw", "rmsnorm")))
    for (factor, readout), interval in found.items():
        effect = {"raw": -5.0, "rmsnorm": 3.0}[readout] if factor == "head" else 0.5 if "x" in factor else 0.0
        assert (interval.mean, interval.low, interval.high) == pytest.approx((effect,) * 3, abs=1e-9)


def test_behind_each_readout_the_error_is_that_over_seeds():
    runs = design(tuple(FACTORS), seeds=3, noise=0.0, planted={})
    sign = runs["decay"].map({"decay1": -1, "decay0.01": 1})
    runs["y"] += sign * runs["seed"].map({0: 1.9, 1: 2.0, 2: 2.4}) / 2
    half = 4.302653 * np.std([1.9, 2.0, 2.4], ddof=1) / np.sqrt(3)
    interval = behind_each_readout(runs, "y")["decay", "raw"]
    assert (interval.low, interval.high) == pytest.approx((2.1 - half, 2.1 + half), rel=1e-6)
    alone = behind_each_readout(runs[runs["seed"] == 1], "y")["decay", "raw"]
    assert (alone.mean, alone.low) == (pytest.approx(2.0), None)


def test_the_half_fraction_is_adamw_s_and_of_the_two_levels(committed):
    runs = factorial_runs(committed)
    half = fraction(runs)
    assert (len(runs), len(half)) == (3 * 28, 3 * 16)
    assert set(half["optimiser"]) == {"adamw"} and set(half["readout"]) == {"raw", "rmsnorm"}


def test_an_incomplete_half_fraction_is_refused(committed, tmp_path):
    cell = "factorial_rmsnorm_tied_unit_learned_decay0.01_adamw"
    one = next(summary for summary in committed if summary["variant"] == cell)
    without = [summary for summary in committed if summary is not one]
    beside = [summary for summary in committed if not summary["variant"].endswith("adamw")]
    for summaries in (without, [*committed, one | {"seed": 9}], beside):  # of seed 9 there is one cell only
        with pytest.raises(UsageError, match="the factorial is incomplete"):
            publish_factorial(summaries, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_table_of_variants_holds_the_full_core_factorial(make_config):
    names = [
        f"{prefix}scale_{kind}"
        for prefix in ("", "untied_", "small_init_", "untied_small_init_")
        for kind in ("visible", "invariant")
    ]
    levels = [core_levels(make_config(name)) for name in names]
    assert len({tuple(level.values()) for level in levels if level}) == 8
    for other in ("layernorm", "scale_removing", "final_norm", "norm_penalty", "terminal_scale_visible"):
        assert core_levels(make_config(other)) is None
    assert core_levels(make_config("factorial_raw_tied_unit_learned_decay0.01_sgd")) is None
