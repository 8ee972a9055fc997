"""Deferred visibility and the coefficient law, where theory must hold, and where it must not."""

import math

import pandas as pd
import pytest

from experiments.measure.deferred import DEFERRED, coefficient_law, deferred, measure
from models import Supervision


@pytest.fixture
def found(make_context):
    def make(variant: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        tables = measure(make_context(variant))
        return tables["deferred"], tables["coefficient_law"].set_index("placement")

    return make


def by_loop(table: pd.DataFrame, column: str) -> list[float]:
    return table.drop_duplicates("k")[column].tolist()


@pytest.mark.parametrize("variant", ["scale_invariant", "layernorm", "terminal_scale_invariant"])
def test_blind_readouts_see_the_scale_later_and_as_an_inverse_square(found, variant):
    table, law = found(variant)
    assert list(table.columns) == DEFERRED
    assert by_loop(table, "k") == [0, 1, 2, 3]
    assert by_loop(table, "theory_exponent") == [-2.0] * 4
    assert by_loop(table, "fitted_exponent") == pytest.approx([-2.0] * 4, abs=0.1)
    own = table[table["factor"] == 1.0]
    assert (own["immediate_visibility"] < 1e-12).all() and (own["visibility"] > 1e-6).all()
    assert law["coefficient_predicted"].tolist() == [4.0, 2.5]
    assert law["coefficient_seen"].tolist() == pytest.approx([4.0, 2.5], rel=1e-3)


def test_raw_readouts_see_it_at_every_scale(found):
    table, law = found("scale_visible")
    assert by_loop(table, "theory_exponent") == [0.0] * 4
    assert by_loop(table, "fitted_exponent") == pytest.approx([0.0] * 4, abs=0.1)
    assert (table[["visibility", "immediate_visibility"]] > 1e-2).all(axis=None)
    assert law["coefficient_predicted"].isna().all() and (law["coefficient_seen"].abs() > 1e3).all()


def test_where_the_scale_is_removed_only_the_squared_leak_is_left(found):
    table, law = found("scale_removing")
    assert by_loop(table, "theory_exponent") == [-4.0] * 4
    assert by_loop(table, "fitted_exponent") == pytest.approx([-4.0] * 4, abs=0.1)
    assert (table["visibility"] < 1e-12).all()
    assert law["coefficient_predicted"].isna().all() and (law["coefficient_seen"].abs() < 1e-3).all()


def test_the_final_norm_is_the_one_that_counts_behind_the_last_loop(found):
    table, law = found("final_norm")
    assert by_loop(table, "theory_exponent") == [0.0, 0.0, 0.0, -2.0]
    assert by_loop(table, "fitted_exponent") == pytest.approx([0.0, 0.0, 0.0, -2.0], abs=0.1)
    assert law["coefficient_predicted"].isna().tolist() == [False, True]
    assert law.loc["terminal", "coefficient_seen"] == pytest.approx(4.0, rel=1e-3)


def test_a_final_norm_hides_nothing_from_the_readouts_before_it(found):
    table, _ = found("final_norm")
    assert (table["immediate_visibility"] > 1e-2).all()


def test_loops_without_a_weight_see_nothing(make_context):
    context = make_context()
    states = [h[:1] for h in context.exact_states[:4]]
    table = deferred(context.exact, states, Supervision(weights=(1.0, 1.0, 0.0, 0.0)))
    visible = [not math.isnan(value) for value in by_loop(table, "visibility")]
    assert visible == [True, True, False, False]
    assert [not math.isnan(value) for value in by_loop(table, "theory_exponent")] == visible


def test_the_coefficient_counts_loops(make_context):
    """Two loops instead of four halve the terminal coefficient: the number seen is not a constant."""
    context = make_context()
    law = coefficient_law(context.exact, context.exact_states[0], context.exact_windows[:, 1:], 2)
    assert law["coefficient_seen"].tolist() == pytest.approx([2.0, 1.5], rel=1e-3)
