"""P15's traps, and wrong formulas in P15's place."""

import pytest
import sympy as sp
import torch

from loopsight.derivatives import directional_derivative
from theory.cases import Case
from theory.proposition import ProofError
from theory.propositions import p15_other_blind_coordinates as p15
from theory.random_model import Architecture, random_model

CASE = Case(seed=1, d=12, vocab=9, tokens=4)


def test_a_norm_that_does_not_centre_is_rejected(monkeypatch):
    monkeypatch.setattr(p15, "centre", lambda coordinate, mean: coordinate)
    with pytest.raises(ProofError, match="centred coordinate"):
        p15.prove()


def test_a_preconditioner_that_is_the_same_for_all_coordinates_is_not_adam(monkeypatch):
    monkeypatch.setattr(p15, "first_adam_step", lambda gradient, lr: -lr * gradient / sp.sqrt(6))
    with pytest.raises(ProofError, match="moves the sum"):
        p15.prove()


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-2, 1.0])
def test_the_ones_direction_is_blind_whatever_the_epsilon(eps):
    response, carry = p15.ones_defects(p15.layer_norm_model(CASE, eps=eps, loops=3))
    assert response < 1e-14 and carry < 1e-14


def test_trap_mixed_norms_are_blind_at_most_at_once():
    """LayerNorm readout over RMSNorm blocks: immediately blind, seen one loop later. The other way round: seen."""
    mixed = p15.layer_norm_model(CASE, block_norm="rmsnorm", loops=2)
    readout, h = mixed.readout(), mixed.embed()
    assert directional_derivative(readout, h, torch.ones_like(h))[1].abs().max() < 1e-14
    assert p15.ones_defects(mixed, from_loop=1)[0] > 0.1
    other = p15.layer_norm_model(CASE, readout="rmsnorm", loops=2)
    response, carry = p15.ones_defects(other)
    assert response > 0.1 and carry < 1e-14


def test_sgd_keeps_or_decays_the_blind_component_and_adam_moves_it():
    model = p15.layer_norm_model(CASE)
    before, after = p15.ones_component(model, "sgd")
    decayed = (1 - p15.LR * p15.DECAY) ** p15.STEPS
    torch.testing.assert_close(after, decayed * before, rtol=0, atol=1e-15)
    before, after = p15.ones_component(model, "adam")
    assert (after - before).abs().min() > 1e-6 and (after - before).abs().max() > 1e-2


def test_trap_sgd_does_not_leave_every_blind_coordinate_alone():
    """A head's query scale is blind too, and grows by lr^2 |g|^2 at every step (P12)."""
    model = random_model(Architecture(seed=0, d=12, heads=2, layers=1, qk_norm=True, batch=2))
    query, lr = model.parameters["0.attention.q"].clone().requires_grad_(), 5.0
    solver = torch.optim.SGD([query], lr)
    start = heads = query.detach().unflatten(0, (2, -1)).flatten(1).square().sum(-1)
    for _ in range(20):
        solver.zero_grad()
        model.loss({**model.parameters, "0.attention.q": query}).backward()
        heads = heads + lr**2 * query.grad.unflatten(0, (2, -1)).flatten(1).square().sum(-1)
        solver.step()
    after = query.detach().unflatten(0, (2, -1)).flatten(1).square().sum(-1)
    torch.testing.assert_close(after, heads, rtol=1e-12, atol=0)
    assert (after > 2.0 * start).all()


def test_trap_an_exact_adam_leaves_the_key_bias_where_it_is():
    """No gradient in exact arithmetic: what moves it in float32 is rounding, divided by its own size."""
    query, key, value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def moved(dtype: torch.dtype, eps: float) -> float:
        bias = torch.zeros(4, dtype=dtype, requires_grad=True)
        q, k, v = (x.to(dtype) for x in (query, key, value))
        solver = torch.optim.Adam([bias], lr=1e-2, eps=eps)
        for _ in range(10):
            solver.zero_grad()
            ((q @ (k + bias).T).softmax(-1) @ v).square().sum().backward()
            solver.step()
        return bias.abs().max().item()

    assert moved(torch.float64, 1e-8) < 1e-7 < 1e-2 < moved(torch.float32, 1e-12)


def test_only_block_writers_are_blind_in_their_columns():
    """Readers of the same model have gradients with column sums."""
    model = p15.layer_norm_model(CASE)
    assert p15.writer_defect(model) < 1e-13
    found = p15.gradients(model)
    for name in ("0.mlp.gate", "0.attention.v"):
        assert (found[name].sum(0).abs() / found[name].abs().sum(0)).max() > 1e-2


def test_trap_a_query_of_width_one_has_no_gradient_to_be_orthogonal():
    model = p15.layer_norm_model(Case(seed=1, d=3), qk_norm=True, eps=0.0, heads=3)
    gradient = p15.gradients(model)["0.attention.q"]
    assert gradient.norm() < 1e-14
    assert all(case.d // p15.wide_heads(case) >= 2 for case in (Case(seed=seed, d=3) for seed in range(20)))


def test_trap_a_key_bias_is_seen_behind_rotary_positions():
    assert p15.key_bias_defect(CASE) < 1e-14
    assert p15.key_bias_defect(CASE, rotate=True) > 1e-2


@pytest.mark.parametrize("vocab", [2, 11, 12])
def test_a_raw_head_with_no_more_classes_than_dimensions_has_a_kernel_and_a_larger_one_has_none(vocab):
    assert p15.head_kernel_defect(CASE, vocab) < 1e-13
    assert p15.head_kernel_defect(CASE, CASE.d + 1) > 1e-3


def test_the_check_detects_rms_blocks(monkeypatch):
    assert p15.check(CASE).holds
    drawn = p15.layer_norm_model
    monkeypatch.setattr(p15, "layer_norm_model", lambda case, **f: drawn(case, **(f | {"block_norm": "rmsnorm"})))
    assert p15.check(CASE).value > 1e3 * p15.TOLERANCE
