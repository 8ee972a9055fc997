"""P3's traps, and wrong formulas in the place of its own."""

from dataclasses import replace

import pytest
import torch

from loopsight.blind import blind_subspace
from theory.cases import Case
from theory.proposition import ProofError
from theory.propositions import p03_blind_subspace as p03
from theory.propositions.p03_blind_subspace import (
    NORMS,
    Readout,
    predicted_dimension,
    predicted_dimension_of_zero_gains,
    readout_of,
    residual,
    y,
)

CASE = Case(d=16, vocab=40, tokens=1)
STATE = CASE.states()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rms_off_diagonal", lambda row, column: -2 * y[row] * y[column] / p03.d),
        ("rms_off_diagonal", lambda row, column: -y[row] * y[column] / (p03.d - 1)),
        ("layer_off_diagonal", lambda row, column: -y[row] * y[column] / p03.d),
        ("layer_off_diagonal", lambda row, column: -(1 + y[row] + y[column]) / p03.d),
    ],
)
def test_a_wrong_jacobian_is_rejected(monkeypatch, name, wrong):
    monkeypatch.setattr(p03, name, wrong)
    with pytest.raises(ProofError):
        p03.prove()


@pytest.mark.parametrize("planted", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("norm", NORMS)
def test_kernels_and_generators_overlap_and_do_not_add(norm, planted):
    readout = readout_of(CASE, norm, planted=planted)
    generators = sum(readout.generators_per_group())
    assert residual(readout, STATE, max(generators, planted)) < 1e-12
    if generators and planted:
        assert residual(readout, STATE, generators + planted) >= 1


def test_with_fewer_classes_than_channels_dimension_does_not_tell_a_raw_readout():
    few = replace(CASE, vocab=10)
    distances = {}
    for norm in ("raw", "rmsnorm"):
        readout = readout_of(few, norm, planted=0)
        blind = blind_subspace(readout, STATE)
        assert blind.dimension == predicted_dimension(readout, 0) == 7
        distances[norm] = blind.distance(STATE)
    assert distances["rmsnorm"] < 1e-13 and distances["raw"] > 0.1


def test_a_zero_gain_adds_nothing_behind_a_normalisation():
    raw, normed = (readout_of(CASE, norm, planted=1, zero_gains=True) for norm in ("raw", "rmsnorm"))
    assert blind_subspace(raw, STATE).dimension == 1
    blind = blind_subspace(normed, STATE)
    assert blind.dimension == 1 and blind.distance(STATE) < 1e-13
    hidden = torch.zeros_like(STATE)
    hidden[0, (normed.weight == 0).all(0)] = 1.0
    assert blind_subspace(raw, STATE).distance(hidden) < 1e-13 < 1e-2 < blind.distance(hidden)


def test_two_zero_gains_add_one():
    readout = readout_of(CASE, "rmsnorm", planted=2, zero_gains=True)
    assert blind_subspace(readout, STATE).dimension == 2


def test_ones_in_the_range_of_the_head_are_blind_to_a_raw_readout_only():
    """Some state makes constant logits: the softmax does not see it, behind RMSNorm it is not reached from h."""
    weight = readout_of(CASE, "raw", planted=0).weight
    a = torch.randn(16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weight = weight + (1.0 - weight @ a)[:, None] * a / (a @ a)  # W a = 1
    assert torch.linalg.matrix_rank(weight) == 16
    for groups, dimension in (((), 1), ((16,), 1)):
        readout = Readout(groups=groups, centred=False, eps=0.0, weight=weight, bias=torch.zeros(40).double())
        blind = blind_subspace(readout, STATE)
        assert blind.dimension == dimension
        assert (blind.distance(a[None]) < 1e-12) == (not groups)
        assert blind_subspace(readout, STATE, centred=False).dimension == (1 if groups else 0)


def test_zero_gains_within_a_group_break_the_generic_law():
    """Four pairs of generators, three zero gains in one group: 9 dimensions and not max(8, 3)."""
    weight = readout_of(CASE, "raw", planted=0).weight.clone()
    weight[:, :3] = 0.0
    readout = Readout(groups=(4, 4, 4, 4), centred=True, eps=0.0, weight=weight, bias=torch.zeros(40).double())
    assert predicted_dimension(readout, 3) == 8
    assert predicted_dimension_of_zero_gains(readout) == blind_subspace(readout, STATE).dimension == 9


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_a_kernel_across_the_ones_breaks_the_generic_law_behind_a_layernorm(kernel):
    """1 is not in general position to it: only h takes a dimension from the kernel, so that k + 1 and not max(2, k)."""
    weight = readout_of(CASE, "raw", planted=0).weight
    hidden = torch.randn(16, kernel, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    hidden = torch.linalg.qr(hidden - hidden.mean(0))[0]
    weight = weight - weight @ hidden @ hidden.T
    readout = Readout(groups=(16,), centred=True, eps=0.0, weight=weight, bias=torch.zeros(40).double())
    assert residual(readout, STATE, kernel + 1) < 1e-12
    assert (predicted_dimension(readout, kernel) == kernel + 1) == (kernel == 1)


def test_pairs_have_no_jacobian_and_are_judged_by_the_logits_scale():
    """Behind a GroupNorm of pairs J is rounding: relative to its own largest singular value it looks visible."""
    weight = readout_of(CASE, "raw", planted=0).weight
    readout = Readout(groups=(2,) * 8, centred=True, eps=0.0, weight=weight, bias=torch.zeros(40).double())
    assert blind_subspace(readout, STATE).dimension == 16
    largest = torch.linalg.matrix_norm(torch.func.jacrev(readout)(STATE[0]), 2).item()
    assert 0 < largest < 1e-13
    assert blind_subspace(readout, STATE, scale=largest).dimension < 16
    known = (torch.linalg.matrix_norm(weight, 2) / STATE.square().mean().sqrt()).item()
    assert blind_subspace(readout, STATE, scale=known).dimension == 16


def test_tokens_are_blind_separately():
    states = Case(d=8, tokens=5, spread=100.0).states()
    readout = readout_of(Case(d=8, vocab=20), "rmsnorm", planted=0)
    assert residual(readout, states, 5) < 1e-12


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
def test_the_softmax_sees_all_that_the_logits_do_whatever_it_is_sure_of(temperature):
    """ker of the Fisher information = ker of C W Gamma P_h for every p; its conditioning is another matter."""
    readout = readout_of(CASE, "layernorm", planted=3)

    def logits(h):
        return temperature * readout(h)

    p = logits(STATE[0]).softmax(-1)
    jacobian = torch.func.jacrev(logits)(STATE[0])
    fisher = jacobian.T @ (torch.diag(p) - p[:, None] * p) @ jacobian
    values, vectors = torch.linalg.eigh(fisher)
    assert values[2] < 1e-10 * values[-1] and values[3] > 1e-6 * values[-1]
    blind = blind_subspace(readout, STATE[0])
    assert max(blind.distance(vectors[:, n]) for n in range(3)) < 1e-6


def test_group_sizes_are_those_asked_for():
    import random

    for seed in range(50):
        for smallest in (1, 2):
            sizes = p03.random_groups(random.Random(seed), 3 + seed, smallest)
            assert sum(sizes) == 3 + seed and min(sizes) >= smallest
