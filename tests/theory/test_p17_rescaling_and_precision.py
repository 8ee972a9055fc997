"""P17's traps, and wrong formulas that must be rejected."""

from dataclasses import replace

import pytest
import torch

from theory.cases import Case
from theory.far_out import directions, linear_sublayers, sublayers_and_states
from theory.proposition import ProofError
from theory.propositions import p17_rescaling_and_precision as p17
from theory.symbols import c


@pytest.mark.parametrize(
    ("name", "mutant", "step"),
    [
        ("cost", lambda: 1 - c, "its next direction turns by"),
        ("cost", lambda: 1 / c, "its next direction turns by"),
        ("freezing_exponent", lambda binade, bits: binade + bits - 1, "half a spacing where it freezes"),
        ("freezing_exponent", lambda binade, bits: binade + bits + 1, "half a spacing where it freezes"),
    ],
)
def test_wrong_formulas_are_rejected(monkeypatch, name, mutant, step):
    monkeypatch.setattr(p17, name, mutant)
    with pytest.raises(ProofError, match=step):
        p17.prove()


@pytest.mark.parametrize(
    ("h", "b", "after"),
    [(258, 1, 260), (266, 1, 268), (256, -1, 255), (256, -0.75, 255), (256, 1, 256), (512, -1, 512)],
)
def test_trap_between_the_level_and_twice_it_a_number_may_still_move(h, b, after):
    """256 is where 1 leads in bfloat16; half of the numbers from there to 512 move all the same."""
    assert torch.tensor(h, dtype=torch.bfloat16) + torch.tensor(b, dtype=torch.bfloat16) == after


def test_the_check_looks_at_every_number_and_both_signs(monkeypatch):
    """A law that claims rest from the level on (the binade above taken for two) is noticed, for b a power of two."""
    ones = torch.ones(3, dtype=torch.float64)
    assert p17.freezing_error(ones, torch.bfloat16) == p17.freezing_error(0.7 * ones, torch.bfloat16) == 0.0
    predict = p17.predicted_freeze
    monkeypatch.setattr(
        p17, "predicted_freeze", lambda h, b, dtype: replace(f := predict(h, b, dtype), level=f.level / 2)
    )
    assert p17.freezing_error(ones, torch.bfloat16) == 1.0
    assert p17.freezing_error(ones, torch.bfloat16, torch.float32) == 1.0


def test_every_part_of_the_control_fails():
    case = Case(seed=0)
    sublayers, _ = sublayers_and_states(case)
    assert max(p17.parts(case, case.readout("rmsnorm"), sublayers)) < p17.TOLERANCE
    failing = p17.parts(case, case.readout("raw"), linear_sublayers(case), torch.float32)
    assert min(failing) > 1e-2 and p17.control(case).value == min(failing)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_check_notices_a_prediction_that_is_a_binade_off(monkeypatch, factor):
    predict = p17.predicted_freeze

    def off(h, b, dtype):
        freeze = predict(h, b, dtype)
        return replace(freeze, level=factor * freeze.level)

    assert p17.check(Case()).holds
    monkeypatch.setattr(p17, "predicted_freeze", off)
    assert not p17.check(Case()).holds


def test_a_rescaled_recurrence_is_not_free_and_costs_as_much_as_predicted():
    """Largest change of a logit times s is constant in s: cheap, never zero."""
    sublayers, h = sublayers_and_states(Case(seed=0))
    readout, u = Case(seed=0).readout("rmsnorm"), directions(h)

    def after_a_loop(x):
        for sublayer in sublayers:
            x = sublayer(x)
        return readout(x)

    costs = []
    for s in (1e3, 1e4, 1e5):
        change = after_a_loop(0.5 * s * u) - after_a_loop(s * u)
        costs.append(s * change.abs().max().item())
        assert (readout(0.5 * s * u) - readout(s * u)).abs().max() < 1e-13 * readout(s * u).abs().max()  # decoding
    assert costs[0] > 0.1
    assert costs[1] == pytest.approx(costs[0], rel=0.05) and costs[2] == pytest.approx(costs[1], rel=0.005)


def test_the_cost_needs_normalised_branches():
    case = Case(seed=0)
    sublayers, h = sublayers_and_states(case)
    readout = case.readout("rmsnorm")
    assert p17.recurrence_error(sublayers, readout, h, 0.5) < 1e-13
    assert p17.recurrence_error(linear_sublayers(case), readout, 3.0 * h, 0.5) > 1e-2
