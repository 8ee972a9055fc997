"""Wrong formulas in the place of P1's, which the machinery must reject."""

import pytest
import sympy as sp
import torch
import torch.nn.functional as F

from loopsight.radial import radial_gradient_fraction
from theory.cases import Case, gradient_at, seen_case
from theory.proposition import Proof, ProofError
from theory.propositions import p01_blind_directions as p01
from theory.symbols import h, j


def test_a_jacobian_with_a_wrong_factor_is_rejected(monkeypatch):
    """Forgetting that the normaliser depends on the state leaves y_j, not 0."""
    sigma = sp.sqrt(p01.S2 / p01.d)
    monkeypatch.setattr(p01, "jacobian_times_state", lambda: h[j] / sigma)
    with pytest.raises(ProofError, match="upstream gradient"):
        p01.prove()


def test_rmsnorm_is_not_invariant_under_a_shift():
    """LayerNorm's second blind direction is not RMSNorm's: moving along 1 must be rejected."""
    moved = (p01.c * h[j] + p01.t) / sp.sqrt((p01.S2 + 2 * p01.t * p01.S1 + p01.d * p01.t**2) / p01.d)
    with pytest.raises(ProofError, match="shifted"):
        Proof().equal("shifted", moved.subs(p01.c, 1), h[j] / sp.sqrt(p01.S2 / p01.d))


@pytest.mark.parametrize("factor", [0, 1])
def test_a_layernorm_whose_variance_answers_otherwise_is_rejected(monkeypatch, factor):
    """d S_2 / d h_k is 2 h_k: neither forgotten nor halved."""
    right = p01.layernorm_response
    monkeypatch.setattr(p01, "layernorm_response", lambda v, sum_v, sum_hv: right(v, sum_v, factor * sum_hv / 2))
    with pytest.raises(ProofError, match="LayerNorm, J h"):
        p01.prove()


def test_the_numeric_check_tells_a_layernorm_from_an_rmsnorm(monkeypatch):
    """Along h both are blind: it is along 1 that they differ."""
    right = Case.normalisation
    monkeypatch.setattr(Case, "normalisation", lambda case, name: right(case, "rmsnorm"))
    assert p01.largest_fraction(Case(), "layernorm") < 1e-13
    assert p01.check(Case()).value > 1e-3


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


def test_the_rounding_of_a_gradient_that_is_nearly_all_radial_is_measured_against_it():
    """Found by ten thousand examples: LayerNorm of three channels leaves one direction, and here little of q in it."""
    case = Case(seed=1466, d=3, vocab=34, tokens=2, loss="squared")
    loss = case.loss_of(case.readout("layernorm"))
    assert radial_gradient_fraction(loss, case.states()).max() > 1e-13
    assert p01.largest_fraction(case, "layernorm") < 1e-15


def test_a_loss_without_any_gradient_is_refused_and_not_passed():
    with pytest.raises(ValueError, match="no gradient anywhere"):
        seen_case(Case(), lambda case: (lambda h: 0.0 * h.sum(), case.states()))


def test_a_gradient_that_is_nan_does_not_pass(monkeypatch):
    monkeypatch.setattr(Case, "readout", lambda case, name: lambda h: h.log() @ h.new_ones(case.d, case.vocab))
    assert not p01.check(Case()).holds


CASE = Case(seed=1, d=12, tokens=5)


def fraction(normalise) -> torch.Tensor:
    """Of the loss behind a normalisation, token by token."""
    return radial_gradient_fraction(lambda h: CASE.loss_of(CASE.readout("raw"))(normalise(h)), CASE.states())


def test_trap_groups_of_two_have_no_gradient_and_pass_vacuously():
    """Their outputs are -1 and 1 whatever the state: nothing is left to be orthogonal to h."""

    def pairs(h):
        return F.group_norm(h, 6, eps=0.0)

    gradient = gradient_at(CASE.loss_of(lambda h: CASE.readout("raw")(pairs(h))), CASE.states())
    triples = gradient_at(CASE.loss_of(lambda h: CASE.readout("raw")(F.group_norm(h, 4, eps=0.0))), CASE.states())
    assert gradient.norm() < 1e-12 * triples.norm()
    assert fraction(lambda h: F.group_norm(h, 4, eps=0.0)).max() < 1e-13


def test_trap_torchs_groupnorm_over_a_sequence_mixes_tokens():
    """On (batch, channels, time) a group spans all tokens: each token's own scale is seen, their joint scale is not."""

    def over_time(h):
        return F.group_norm(h.T[None], 4, eps=0.0)[0].T

    loss, h = CASE.loss_of(lambda h: CASE.readout("raw")(over_time(h))), CASE.states()
    along = (gradient_at(loss, h) * h).sum(-1)
    assert along.abs().max() > 1e-3
    assert along.sum().abs() < 1e-12 * along.abs().max()


def test_trap_a_batchnorm_is_blind_in_training_and_not_in_evaluation():
    """In training the scale of the whole batch is blind; in evaluation the statistics are constants."""
    norm = torch.nn.BatchNorm1d(12, eps=1e-30, dtype=torch.float64)
    h = CASE.states()

    def along(training: bool) -> float:
        norm.train(training)
        loss = CASE.loss_of(lambda h: CASE.readout("raw")(norm(h)))
        gradient = gradient_at(loss, h)
        return ((gradient * h).sum().abs() / (gradient.norm() * h.norm())).item()

    assert along(training=True) < 1e-13 < 1e-3 < along(training=False)


def test_trap_torchs_default_epsilon_is_that_of_the_dtype_and_not_zero():
    """F.rms_norm(eps=None): 2e-16 in float64 leaks at states of its own root, 1.5e-8, and nowhere else to be seen."""
    small = 1e-8 * CASE.states()
    loss = CASE.loss_of(lambda h: CASE.readout("raw")(F.rms_norm(h, (12,))))
    assert radial_gradient_fraction(loss, CASE.states()).max() < 1e-13
    assert radial_gradient_fraction(loss, small).max() > 1e-3


def test_trap_a_second_consumer_of_the_raw_state_voids_the_lemma():
    """A gate that reads h itself beside the readout, as an exit gate does."""
    loss, gate = CASE.loss_of(CASE.readout("rmsnorm")), torch.ones(12, dtype=torch.float64)
    h = CASE.states()
    assert radial_gradient_fraction(loss, h).max() < 1e-13
    assert radial_gradient_fraction(lambda h: loss(h) * torch.sigmoid(h @ gate).mean(), h).min() > 1e-6
