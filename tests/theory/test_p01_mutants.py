"""Wrong formulas in the place of P1's, which the machinery must reject."""

import pytest
import sympy as sp

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
    from theory.cases import Case

    assert p01.check(Case()).holds
    assert not p01.check(Case(eps=1e-3)).holds
