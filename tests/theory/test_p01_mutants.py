"""Wrong formulas in the place of P1's, which the machinery must reject."""

import pytest
import sympy as sp

from theory.cases import Case, gradient_at, seen_case
from theory.proposition import ProofError
from theory.propositions import p01_blind_directions as p01
from theory.symbols import h, j


def test_a_jacobian_with_a_wrong_factor_is_rejected(monkeypatch):
    """Forgetting that the normaliser depends on the state leaves y_j, not 0."""
    sigma = sp.sqrt(p01.S2 / p01.d)
    monkeypatch.setattr(p01, "jacobian_times_state", lambda: h[j] / sigma)
    with pytest.raises(ProofError, match="upstream gradient"):
        p01.prove()


def test_rmsnorm_is_not_invariant_under_a_shift(monkeypatch):
    """LayerNorm's second blind direction is not RMSNorm's: moving along 1 must be rejected."""
    moved = (p01.c * h[j] + p01.t) / sp.sqrt((p01.S2 + 2 * p01.t * p01.S1 + p01.d * p01.t**2) / p01.d)
    assert sp.simplify(moved.subs(p01.c, 1) - h[j] / sp.sqrt(p01.S2 / p01.d)) != 0


def test_the_numeric_check_detects_a_leaking_readout(monkeypatch):
    assert p01.check(Case()).holds
    assert not p01.check(Case(eps=1e-3)).holds


def test_satisfied_margins_are_drawn_anew_and_not_taken_for_blindness():
    """One token whose margin is satisfied has no gradient: its fraction is nothing, not 0."""
    redrawn = 0
    for seed in range(20):
        case = Case(seed=seed, vocab=2, tokens=1, loss="margin")
        readout = case.readout("rmsnorm")
        satisfied = not gradient_at(case.loss_of(readout), case.states()).any()
        found = seen_case(case, lambda case: (case.loss_of(case.readout("rmsnorm")), case.states()))
        assert (found.seed != seed) == satisfied
        assert p01.check(case).holds and p01.control(case).value > 1e-6
        redrawn += satisfied
    assert redrawn > 3


def test_a_loss_without_any_gradient_is_refused_and_not_passed():
    with pytest.raises(ValueError, match="no gradient anywhere"):
        seen_case(Case(), lambda case: (lambda h: 0.0 * h.sum(), case.states()))


def test_a_gradient_that_is_nan_does_not_pass(monkeypatch):
    monkeypatch.setattr(Case, "readout", lambda case, name: lambda h: h.log() @ h.new_ones(case.d, case.vocab))
    assert not p01.check(Case()).holds
