"""Effects of a factorial: recovered where they were planted, absent where not, refused where they would be mixed."""

import itertools

import numpy as np
import pandas as pd
import pytest

from experiments.effects import CORE, balanced, core_levels, effects
from experiments.factorial import FACTORS


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
    for change in ({"weight_decay": 1.0}, {"optimiser": "sgd"}):
        assert core_levels(make_config("scale_visible", **change)) is None
