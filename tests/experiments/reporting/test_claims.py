"""Every claim on synthetic measurements whose answer is known: supported, refuted, and undecided."""

import importlib
import math
import pkgutil
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pytest

import experiments.claims
from experiments.claims import CLAIMS, SCHEMA, Claim, Rule, RunTables, evaluate, index
from experiments.claims.claim import _interval
from experiments.claims.dynamics import band_coverage, growth_beyond, growth_error
from experiments.claims.estimates import rescaling_curvature
from experiments.reporting.gallery import PICTURES

BY_KEY = {claim.key: claim for claim in CLAIMS}
PREDICTED = [claim.key for claim in CLAIMS if claim.rule is not None]


@dataclass(frozen=True)
class Edit:
    """Sets a column of a table, in the rows that match, of the first run of every case."""

    table: str
    column: str
    refuting: float
    between: float
    where: tuple[tuple[str, Any], ...] = ()
    position: int = 0

    def apply(self, frame: pd.DataFrame, value: float) -> pd.DataFrame:
        chosen = pd.Series(True, index=frame.index)
        for name, wanted in self.where:
            chosen &= frame[name] == wanted
        assert chosen.any()
        return frame.assign(**{self.column: frame[self.column].astype(float).mask(chosen, value)})


def at_k(column, refuting, between, k=4):
    return Edit("loops", column, refuting, between, (("k", k),))


NORM, LOSS = "l2_norm_mean", "cross_entropy"
EDITS = {
    "final-norm-grows": at_k(NORM, 50.0, 150.0),
    "final-norm-pinned": at_k(NORM, 500.0, 150.0),
    "norm-scale_invariant-over-scale_visible": at_k(NORM, 8.0, None),
    "norm-terminal_scale_invariant-over-terminal_scale_visible": at_k(NORM, 8.0, None),
    "norm-untied_scale_invariant-over-untied_scale_visible": at_k(NORM, 8.0, None),
    "norm-small_init_scale_invariant-over-small_init_scale_visible": at_k(NORM, 8.0, None),
    "norm-norm_penalty-over-scale_invariant": at_k(NORM, 5000.0, None),
    "norm-scale_removing-over-scale_invariant": at_k(NORM, 5000.0, None),
    "norm-scale_removing": at_k(NORM, 300.0, None),
    "radial-blind": Edit("radial", "immediate", 1e-2, 1e-5),
    "radial-blind-last": Edit("radial", "immediate", 1e-2, 1e-5),
    "radial-visible": Edit("radial", "immediate", 1e-9, 1e-5),
    "clamp-harmless": Edit("clamp", "change", -0.2, 0.05, (("mode", "freeze_loop1"),)),
    "clamp-after-loop-1": Edit("clamp", "change", -0.2, 0.05, (("mode", "freeze_loop1"),)),
    "clamp-decode-time": Edit("clamp", "change", 0.2, 1e-3, (("mode", "decode_time"),)),
    "terminal-beats-per-loop": at_k(LOSS, 4.0, 3.42),
    "terminal-exits-unusable": at_k(LOSS, 3.4, 4.05, k=1),
    "per-loop-exits-usable": at_k(LOSS, 8.0, 4.25, k=1),
    "loops-gain-nothing-when-blind": at_k(LOSS, 3.7, 3.5, k=1),
    "loops-gain-more-when-visible": at_k(LOSS, 3.3, 3.465, k=1),
    "halting-at-once-when-blind": Edit("halting", "average_loops", 3.0, 1.5, (("policy", "margin"),)),
    "halting-later-when-visible": Edit("halting", "average_loops", 1.0, 1.2, (("policy", "margin"),)),
    "halting-calibration-transfers": Edit("halting", "perplexity_ratio", 1.1, 1.015, (("policy", "margin"),)),
    "penalty-costs-little": at_k(LOSS, 4.0, 3.375),
    "growth-harmless-at-trained-depth": at_k(LOSS, 4.5, 3.67),
    "epsilon-leak": Edit("radial", "epsilon_leak_seen", 1e-6, 0.8e-9, (("k", 4),)),
    "scale-carried": Edit("growth_exponent", "estimate", 0.3, 0.8, (("quantity", "carry"),)),
    "scale-removed": Edit("growth_exponent", "estimate", 0.9, 0.05, (("quantity", "carry"),)),
    "deferred-gradient": Edit("radial", "total", 1e-9, 1e-5),
    "deferred-gradient-removed": Edit("radial", "total", 1e-2, 1e-5),
    "penalty-gradient": Edit("radial", "total", 1e-9, 1e-5),
    "deferred-visibility": Edit("deferred", "visibility", 1e-18, 1e-16),
    "deferred-law": Edit("deferred", "fitted_exponent", 0.5, -2.3),
    "coefficient-law": Edit("coefficient_law", "coefficient_seen", 1.0, 3.5, (("placement", "terminal"),)),
    "dense-is-weaker": Edit("coefficient_law", "coefficient_seen", 4.0, 2.8, (("placement", "per_loop"),)),
    "rescaling-blind": Edit("scale_sensitivity", "change", 0.5, 1e-3, (("factor", 10.0),)),
    "rescaling-visible": Edit("scale_sensitivity", "change", 1e-6, 1e-3),
    "raw-scale-is-a-temperature": Edit("scale_sensitivity", "cross_entropy", 90.0, None, (("factor", 5.0),)),
    "raw-scale-is-pinned": Edit("scale_sensitivity", "cross_entropy", 1.0, None, (("factor", 10.0),)),
    "scale-settles": at_k(NORM, 130.0, 102.0),
    "scale-settles-to-64": Edit("growth", "l2_norm_seen", 1000.0, 200.0, (("k", 64),)),
    "regime-number": Edit("increments", "regime_number", 1.0, 0.2),
    "regime-number-raw": Edit("increments", "regime_number", 0.01, 0.2),
    "pythagoras": Edit("increments", "pythagoras_residual", 0.1, 1e-5),
    "steady-increments": Edit("increments", "radial_increment", 2500.0, 500.0, (("k", 63),)),
    "heading-kept": Edit("increments", "heading_cosine", 0.1, 0.7),
    "second-order": Edit("increments", "second_order_predicted", 0.0, None),
    "ballistic-growth": Edit("growth_exponent", "estimate", 0.5, 0.75, (("quantity", "exponent"),)),
    **{
        f"growth-{name.replace('_', '-')}-{k}": Edit("growth", "l2_norm_predicted", 0.0, None, (("method", name),))
        for name in ("constant_increment", "second_order", "direction_flow", "power_law")
        for k in (8, 64)
    },
    "growth-band-covers": Edit("growth", "low", 1e9, None, (("method", "direction_flow"),)),
    "coherent-growth": Edit("growth_exponent", "estimate", 0.2, 0.7, (("quantity", "coherent_share"),)),
    "attribution-adds-up": Edit("attribution", "contribution", 0.0, None, (("group", "sum"),)),
    "not-the-embeddings": Edit("attribution", "contribution", 5.0, 0.65, (("group", "token embedding"),)),
    "initial-pressure": Edit("pressure", "k0_pressure", -4.0, None, (("step", 0),)),
    "pressure-from-the-tie": Edit("pressure", "k0_pressure", 4.0, 1.0, (("step", 0),)),
    "stops-moving-bfloat16": Edit("precision", "loops_seen", 1000.0, 500.0, (("dtype", "bfloat16"),)),
    "stops-moving-float16": Edit("precision", "loops_seen", 100.0, 4000.0, (("dtype", "float16"),)),
    "fewer-bits-stop-earlier": Edit("precision", "moving_fraction_at_64", 0.1, 0.52, (("dtype", "float16"),)),
    "contrast-without-confound": at_k(NORM, 5.0, None),
    "contrast-is-mostly-the-confound": at_k(NORM, 40.0, None),
    "untied-raw-is-not-pinned": at_k(NORM, 1.0, None),
    "untied-loss-lower": at_k(LOSS, 6.0, 3.43),
    "factorial-readout": Edit("loops", NORM, 1e9, None, (("k", 4),)),
}
# The law says -2 of some variants and -4 of others; equal distance to both sides is refuted anyway.
SPECIAL_BETWEEN = {"deferred-law"}


def other_side(key, refuting, between=None, **changes):
    return key, replace(EDITS[key], refuting=refuting, between=between, **changes)


# What can be wrong on two sides, wrong on the one that EDITS leaves out; what can be wrong at one loop, wrong there.
OTHER_SIDE = [
    *(other_side(key, 1e-2, 1e-5, where=(("k", 2),)) for key in ("radial-blind", "deferred-gradient-removed")),
    other_side("radial-visible", 1e-9, 1e-5, where=(("k", 2),)),
    other_side("clamp-harmless", 0.2, -0.05),
    other_side("clamp-after-loop-1", 0.2, -0.05),
    other_side("clamp-decode-time", -0.2, -1e-3),
    other_side("penalty-costs-little", 2.5),
    other_side("not-the-embeddings", -5.0, -0.75),
    other_side("epsilon-leak", 4e-10, 1.3e-9),
    other_side("scale-carried", 1.7, 1.2),
    other_side("scale-removed", -0.9, -0.05),
    other_side("deferred-law", -6.0),
    other_side("coefficient-law", 100.0, 5.0),
    other_side("dense-is-weaker", 1.0, 2.2),
    other_side("rescaling-blind", -0.5, -1e-3),
    other_side("raw-scale-is-pinned", 1.0, where=(("factor", 0.1),)),
    other_side("scale-settles", 49.0, 77.5),
    other_side("scale-settles-to-64", 9.0, 40.0, where=(("k", 5),)),
    other_side("steady-increments", 25.0, 140.0),
    other_side("steady-increments", -250.0),
    other_side("second-order", 1000.0),
    *(other_side(key, 1e9) for key in EDITS if EDITS[key].column == "l2_norm_predicted"),
    other_side("growth-band-covers", 0.0, column="high"),
    other_side("attribution-adds-up", 10.0, 2.3),
    other_side("attribution-adds-up", -2.0, where=(("group", "truth"),)),
    other_side("pressure-from-the-tie", -4.0, -1.0),
    other_side("pressure-from-the-tie", -1e-3, -4e-3, position=1),
    other_side("stops-moving-bfloat16", 20.0, 80.0),
    other_side("stops-moving-float16", 100.0, 500.0, column="loops_predicted"),
]
REFUTED = [*EDITS.items(), *OTHER_SIDE]
UNDECIDED = [(key, edit) for key, edit in REFUTED if edit.between is not None and key not in SPECIAL_BETWEEN]


def keyed(edits):
    return {"argnames": ("key", "edit"), "argvalues": edits, "ids": [key for key, _ in edits]}


@pytest.fixture(scope="module")
def runs(world):
    return world.runs()


def edited(runs, claim, edit, value):
    """The first run of every case, edited; the seeds' small differences stay."""
    firsts = {case[edit.position] for case in claim.cases}
    changed = []
    for run in runs:
        if firsts & set(run.labels):
            tables = dict(run.tables)
            jitter = 1.0 + 1e-4 * run.seed
            tables[edit.table] = edit.apply(tables[edit.table], value * jitter)
            run = replace(run, tables=tables)
        changed.append(run)
    return index(changed)


def test_every_prediction_has_a_refuting_measurement():
    elsewhere = {"growth-diffusive-64", "angular-law"}  # have tests of their own
    unrefuted, unknown = set(PREDICTED) - elsewhere - set(EDITS), set(EDITS) - set(PREDICTED)
    assert not unrefuted, f"add to EDITS in tests/experiments/reporting/test_claims.py what refutes {sorted(unrefuted)}"
    assert not unknown, f"no claim with a rule is called {sorted(unknown)}: take them out of EDITS, or fix the key"


def test_a_distance_is_refuted_on_both_sides():
    """Bars in the method are absolute values; those of the regime number are norms."""
    distances = {c.key for c in CLAIMS if c.rule is not None and c.rule.expect == "below" and "|" in c.method}
    assert distances - {"regime-number"} <= {key for key, _ in OTHER_SIDE} | {"angular-law"}


@pytest.mark.parametrize("key", PREDICTED)
def test_a_world_in_which_it_holds_supports_it(key, runs):
    finding = evaluate(BY_KEY[key], index(runs))
    assert {case.verdict for case in finding.cases} == {"supported"}, finding.cases
    assert finding.verdict == "supported"
    assert not [case.left_out for case in finding.cases if case.left_out]


@pytest.mark.parametrize(**keyed(REFUTED))
def test_a_world_in_which_it_fails_refutes_it(key, edit, runs):
    finding = evaluate(BY_KEY[key], edited(runs, BY_KEY[key], edit, edit.refuting))
    assert finding.verdict == "not supported", finding.cases
    assert {case.verdict for case in finding.cases} == {"not supported"}, finding.cases


@pytest.mark.parametrize(**keyed(UNDECIDED))
def test_between_the_thresholds_nothing_is_decided(key, edit, runs):
    finding = evaluate(BY_KEY[key], edited(runs, BY_KEY[key], edit, edit.between))
    assert {case.verdict for case in finding.cases} == {"inconclusive"}, finding.cases


def test_a_random_walk_that_predicts_the_growth_refutes_its_control(runs):
    claim = BY_KEY["growth-diffusive-64"]
    found = []
    for run in runs:
        growth = run.tables["growth"]
        predicted = growth["l2_norm_predicted"].where(growth["method"] != "diffusive", growth["l2_norm_seen"])
        found.append(replace(run, tables={**run.tables, "growth": growth.assign(l2_norm_predicted=predicted)}))
    assert evaluate(claim, index(found)).verdict == "not supported"


@pytest.mark.parametrize("key", [key for key in EDITS if EDITS[key].column == "l2_norm_predicted"])
def test_to_predict_no_growth_is_to_be_off_by_all_of_it(key, runs):
    found = []
    for run in runs:
        growth = run.tables["growth"]
        found.append(replace(run, tables={"growth": growth.assign(l2_norm_predicted=growth["l2_norm_trained"])}))
    finding = evaluate(BY_KEY[key], index(found))
    assert {case.verdict for case in finding.cases} == {"not supported"}
    for case in finding.cases:
        assert list(case.estimates.values()) == pytest.approx([1.0] * 3)


def one_run(**tables):
    frames = {name: pd.DataFrame(columns) for name, columns in tables.items()}
    return RunTables(name="run", labels=("run",), seed=0, trained_loops=4, tables=frames)


@pytest.mark.parametrize(("seen", "trained"), [(16.0, 10.0), (4.0, 10.0)])
@pytest.mark.parametrize(("share", "error"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.5, 0.5)])
def test_a_growth_error_is_a_share_of_what_was_gained_or_lost(share, error, seen, trained):
    predicted = trained + share * (seen - trained)
    columns = {"l2_norm_trained": [trained], "l2_norm_seen": [seen], "l2_norm_predicted": [predicted]}
    run = one_run(growth={"k": [8], "method": ["power_law"], **columns})
    assert growth_error("power_law", 8)(run) == pytest.approx(error)


def test_growth_to_64_loops_is_counted_from_the_first_loop_beyond_the_trained_ones():
    run = one_run(growth={"k": [64, 5, 6, 63], "l2_norm_seen": [90.0, 30.0, 45.0, 100.0], "l2_norm_trained": 20.0})
    assert growth_beyond(run) == 3.0


@pytest.mark.parametrize(("cross_entropy", "expected"), [([3.0, 1.0, 0.0], 0.75), ([3.0, 2.5, 0.0], -0.6)])
def test_a_curvature_is_measured_against_the_steepest_slope_though_all_of_them_fall(cross_entropy, expected):
    run = one_run(scale_sensitivity={"factor": [1.0, 2.0, 4.0], "cross_entropy": cross_entropy})
    assert rescaling_curvature(run) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("power", "verdict"),
    [(-1.0, "supported"), (-0.6, "inconclusive"), (-0.3, "not supported"), (-2.0, "not supported")],
)
def test_the_angular_law_is_a_power_of_the_norm(power, verdict, runs):
    found = []
    for run in runs:
        s = 250.0 * run.tables["increments"]["k"] + 10.0 * (1 + run.seed)
        angle = s**power
        increments = run.tables["increments"].assign(angular_step=angle, angular_step_times_norm=angle * s)
        found.append(replace(run, tables={"increments": increments}))
    assert evaluate(BY_KEY["angular-law"], index(found)).verdict == verdict


@pytest.mark.parametrize("key", PREDICTED)
def test_one_seed_decides_nothing(key, runs):
    finding = evaluate(BY_KEY[key], index([run for run in runs if run.seed == 1]))
    assert {case.verdict for case in finding.cases} == {"inconclusive"}


@pytest.mark.parametrize("key", EDITS)
def test_seeds_that_disagree_decide_nothing(key, runs):
    claim, edit = BY_KEY[key], EDITS[key]
    wrong = edited(runs, claim, edit, edit.refuting)
    mixed = {label: {**of, 1: wrong[label][1]} for label, of in index(runs).items()}
    assert {case.verdict for case in evaluate(claim, mixed).cases} == {"inconclusive"}


@pytest.mark.parametrize("key", BY_KEY)
def test_without_runs_or_tables_nothing_is_measured(key, runs):
    claim = BY_KEY[key]
    assert evaluate(claim, {}).verdict == "not measured"
    bare = [replace(run, tables={}) for run in runs]
    finding = evaluate(claim, index(bare))
    assert finding.verdict == "not measured"
    assert all(case.left_out for case in finding.cases)


@pytest.mark.parametrize("key", BY_KEY)
def test_a_claim_reads_the_tables_it_names_and_no_other(key, runs):
    claim = BY_KEY[key]
    named = [replace(run, tables={name: run.tables[name] for name in claim.tables}) for run in runs]
    assert evaluate(claim, index(named)).verdict in ("supported", "no prediction")
    for name in claim.tables:
        without = [replace(run, tables={k: v for k, v in run.tables.items() if k != name}) for run in runs]
        assert evaluate(claim, index(without)).verdict == "not measured"


def test_the_claims_of_every_module_are_judged():
    for module in pkgutil.iter_modules(experiments.claims.__path__):
        for name, value in vars(importlib.import_module(f"experiments.claims.{module.name}")).items():
            claims = [item for item in value if isinstance(item, Claim)] if isinstance(value, tuple) else []
            unused = [claim.key for claim in claims if claim not in CLAIMS]
            assert not unused, f"add *{name} of {module.name}.py to CLAIMS in experiments/claims/__init__.py: {unused}"


def test_claims_are_complete_and_distinct():
    assert len(BY_KEY) == len(CLAIMS)
    assert {table for claim in CLAIMS for table in claim.tables} <= set(SCHEMA)
    assert {claim.figure for claim in CLAIMS} <= {picture.key for picture in PICTURES}
    for claim in CLAIMS:
        assert claim.text and claim.source and claim.prediction and claim.method and claim.cases
        assert len({len(case) for case in claim.cases}) == 1


@pytest.mark.parametrize("refuted", [0, 1, 2])
def test_one_refuted_case_refutes_the_claim(refuted, runs):
    claim = BY_KEY["final-norm-grows"]
    one = replace(claim, cases=(claim.cases[refuted],))
    finding = evaluate(claim, edited(runs, one, EDITS[claim.key], 50.0))
    expected = ["not supported" if position == refuted else "supported" for position in range(3)]
    assert [case.verdict for case in finding.cases] == expected
    assert finding.verdict == "not supported"


def test_runs_are_compared_where_both_have_the_seed(runs):
    claim = BY_KEY["norm-scale_invariant-over-scale_visible"]
    found = index([run for run in runs if (run.name, run.seed) != ("scale_visible-1", 1)])
    (case,) = evaluate(claim, found).cases
    assert set(case.estimates) == {0, 2} and not case.left_out


def test_a_whole_gradient_that_only_the_last_loop_sees_is_not_deferred(runs):
    found = []
    for run in runs:
        radial = run.tables["radial"].assign(total=lambda table: (table["k"] == 4).map({True: 0.1, False: 1e-9}))
        found.append(replace(run, tables={"radial": radial}))
    assert evaluate(BY_KEY["deferred-gradient"], index(found)).verdict == "not supported"


def test_a_band_covers_the_share_of_loops_that_lie_in_it():
    seen = {"l2_norm_seen": [1.0, 2.0, 3.0, 9.0], "low": 0.0, "high": 2.5}
    run = one_run(growth={"k": [5, 6, 7, 8], "method": "power_law", **seen})
    assert band_coverage("power_law")(run) == 0.5


def test_a_missing_variant_is_named_and_the_others_are_judged(world):
    finding = evaluate(BY_KEY["final-norm-grows"], index(world.runs(names=["scale_invariant"])))
    assert finding.verdict == "supported"
    assert [case.verdict for case in finding.cases] == ["supported", "not measured", "not measured"]
    assert finding.cases[1].left_out == ("no run of layernorm",)


def test_a_diverged_seed_decides_nothing_and_is_not_dropped(runs):
    claim = BY_KEY["final-norm-grows"]
    finding = evaluate(claim, edited(runs, claim, EDITS[claim.key], math.inf))
    assert {case.verdict for case in finding.cases} == {"inconclusive"}
    assert finding.cases[0].estimates[0] == math.inf


def test_a_quantity_without_a_logarithm_has_no_interval():
    assert math.isnan(_interval([1.0, 0.0], "log").mean)
    assert _interval([1.0, 0.0], "linear").mean == 0.5


def test_the_mean_is_of_the_logarithm_where_the_claim_is_of_a_ratio():
    assert _interval([1.0, 100.0], "log").mean == pytest.approx(10.0)
    assert _interval([1.0, 100.0], "linear").mean == pytest.approx(50.5)


def test_a_stream_that_never_stops_refutes_a_prediction_that_it_does(runs):
    claim = BY_KEY["stops-moving-bfloat16"]
    assert evaluate(claim, edited(runs, claim, EDITS[claim.key], math.nan)).verdict == "not supported"
    predicted = Edit("precision", "loops_predicted", 5000.0, 0.0, (("dtype", "bfloat16"),))
    never = edited(runs, claim, EDITS[claim.key], math.nan)
    unstopped = list({id(r): r for of in never.values() for r in of.values()}.values())
    for loops in (600.0, 5000.0):  # it may stop soon after the last loop run, or ten times later
        finding = evaluate(claim, edited(unstopped, claim, predicted, loops))
        assert finding.verdict == "not measured" and "still moved after 1024" in finding.cases[0].left_out[0]


def test_a_rule_with_crossed_thresholds_is_refused():
    with pytest.raises(ValueError, match="low must not exceed high"):
        Rule(expect="below", low=2.0, high=1.0)


def test_a_rule_says_both_thresholds():
    assert Rule(expect="below", low=1.0, high=2.0).text() == "supported below 1, not supported above 2"
    assert Rule(expect="above", low=1.0, high=2.0).text() == "supported above 2, not supported below 1"


def test_a_quantity_without_prediction_is_reported_as_such(runs):
    found = {claim.key: evaluate(claim, index(runs)).verdict for claim in CLAIMS if claim.rule is None}
    assert set(found.values()) == {"no prediction"} and len(found) >= 8


def test_factorial_effects_of_a_known_world(runs):
    """Norms 2^(a readout + b head + c interaction) give back their effects."""
    from experiments.claims.confounds import CELLS

    found = []
    for run in runs:
        cell = next((label for label in run.labels if label in CELLS), None)
        if cell:
            readout, head, embedding = CELLS[cell]
            norm = 2.0 ** (3 * readout + head + 0.5 * readout * head)
            found.append(replace(run, tables={"loops": run.tables["loops"].assign(l2_norm_mean=norm)}))
    expected = {"readout": 64.0, "head": 4.0, "embedding": 1.0, "readout-head": 2.0, "readout-head-embedding": 1.0}
    for name, ratio in expected.items():
        (case,) = evaluate(BY_KEY[f"factorial-{name}"], index(found)).cases
        assert case.estimates[0] == pytest.approx(ratio)


def test_the_share_of_the_confound_is_zero_and_one_where_it_is(runs):
    def world(plain_ratio):
        found = []
        for run in runs:
            for label in run.labels:
                norms = {"rmsnorm tied N(0,1)": 100.0, "raw tied N(0,1)": 1.0}
                norms |= {"rmsnorm untied small": plain_ratio, "raw untied small": 1.0}
                if label in norms:
                    table = run.tables["loops"].assign(l2_norm_mean=norms[label])
                    found.append(replace(run, tables={"loops": table}))
        return evaluate(BY_KEY["contrast-is-mostly-the-confound"], index(found)).cases[0].estimates[0]

    assert world(100.0) == pytest.approx(0.0)
    assert world(1.0) == pytest.approx(1.0)
    assert world(10.0) == pytest.approx(0.5)


def test_a_claim_is_frozen():
    with pytest.raises(AttributeError):
        CLAIMS[0].rule = None
    assert isinstance(CLAIMS[0], Claim)


def test_an_infinite_error_in_every_seed_refutes(runs):
    claim = replace(BY_KEY["growth-direction-flow-64"], estimate=lambda run: math.inf)
    assert claim.rule is not None and claim.rule.expect == "below"
    assert evaluate(claim, index(runs)).verdict == "not supported"
    one = {label: {0: seeds[0]} for label, seeds in index(runs).items()}
    assert evaluate(claim, one).verdict == "inconclusive"
