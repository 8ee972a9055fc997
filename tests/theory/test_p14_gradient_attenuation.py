"""P14's rates, in numbers: what falls as 1/s, what does not fall, and that nothing falls backward through loops."""

from dataclasses import replace

import pytest
import torch

from theory.cases import Case
from theory.laboratory import block_writers
from theory.proposition import ProofError
from theory.propositions import p14_gradient_attenuation as p14
from theory.random_model import Architecture, random_model

BLIND = Architecture(loops=4, layers=1)


def norms(model, parameters) -> dict[str, float]:
    return {name: g.norm().item() for name, g in p14.gradients(model, parameters).items()}


def test_joint_scale_leaves_readers_gradients_and_divides_writers():
    model = random_model(BLIND)
    writers = p14.writers(BLIND)
    here, there = norms(model, model.parameters), norms(model, p14.scaled(model.parameters, writers, 10.0))
    for name in here:
        assert there[name] == pytest.approx(here[name] / (10.0 if name in writers else 1.0), rel=1e-11)


def test_large_embeddings_alone_attenuate_every_block_gradient_but_not_the_heads():
    model = random_model(BLIND)
    embeddings = ("token_embedding", "position_embedding")
    at = [norms(model, p14.scaled(model.parameters, embeddings, s)) for s in (1e4, 1e6)]
    for name in at[0]:
        expected = 1.0 if name in ("head", "readout.gain") else 1e-2
        assert at[1][name] / at[0][name] == pytest.approx(expected, rel=1e-2), name


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((0.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0)), ((0.25,) * 4, (1.0, 0.75, 0.5, 0.25))],
    ids=["terminal", "per loop"],
)
def test_gradients_add_up_over_exits_and_are_not_attenuated(monkeypatch, weights, expected):
    monkeypatch.setattr(p14, "loop_weights", lambda a: weights)
    total, _, _ = p14.total_and_immediate_gradients(random_model(replace(BLIND, embedding_std=1e6)))
    sizes = [g.norm().item() for g in total]
    assert [size / sizes[0] for size in sizes] == pytest.approx(expected, rel=1e-4)


def test_under_damping_it_is_the_gradient_times_the_states_norm_that_is_carried(monkeypatch):
    """|h_k| falls by the factor per loop and |G_k| rises by it: G_k |h_k| is the same after every loop."""
    monkeypatch.setattr(p14, "loop_weights", lambda a: (0.0, 0.0, 0.0, 1.0))
    model = random_model(replace(BLIND, between="damping", damping=0.5, embedding_std=1e6))
    total, _, states = p14.total_and_immediate_gradients(model)
    relative = [(g.norm(dim=-1) * h.norm(dim=-1)).sum().item() for g, h in zip(total, states, strict=True)]
    assert relative == pytest.approx([relative[0]] * 4, rel=1e-4)
    sizes = [g.norm().item() for g in total]
    assert [size / sizes[0] for size in sizes] == pytest.approx([1, 2, 4, 8], rel=1e-4)


def test_the_correction_falls_as_one_over_the_state():
    at = [p14.backward_attenuation_residual(random_model(replace(BLIND, embedding_std=s))) for s in (1e3, 1e4, 1e5)]
    assert at[0] / at[1] == pytest.approx(10, rel=0.05)
    assert at[1] / at[2] == pytest.approx(10, rel=0.05)
    assert p14.backward_attenuation_residual(random_model(BLIND)) > 0.1


def test_a_norm_between_loops_does_attenuate_backward():
    model = random_model(replace(BLIND, between="rmsnorm", embedding_std=1e6))
    assert p14.backward_attenuation_residual(model) > 0.1


@pytest.mark.parametrize("change", [{"readout": "raw"}, {"readout": "tanh"}, {"tied": True}, {"eps": 1e-1}])
def test_where_the_scale_is_seen_the_exact_relations_fail(change):
    model = random_model(replace(BLIND, **change))
    assert p14.joint_scaling_residual(model) > 1e-4
    if change != {"tied": True}:
        assert p14.embedding_scaling_residual(model) > 1e-4


@pytest.mark.parametrize(
    "mutant",
    [
        lambda e, b, r: p14.loss(b[0] * e[0], b[1] * e[1], *r),
        lambda e, b, r: p14.loss(e[1], b[0] / e[0], b[1] / e[0], *r),
        lambda e, b, r: p14.loss(e[1] / e[0], b[0] / e[0], b[1], *r),
        lambda e, b, r: p14.loss(e[1] / e[0], b[0] / e[0], b[1] / e[0], r[0] / e[0], r[1]),
    ],
    ids=["products", "an embedding left out", "a block writer left out", "a reader counted as a writer"],
)
def test_a_loss_of_another_degree_is_rejected(monkeypatch, mutant):
    """All but the first agree with the gauge in the first coordinates of writers."""
    monkeypatch.setattr(p14, "log_gauged", mutant)
    with pytest.raises(ProofError, match="gradient at c times the writers"):
        p14.prove()


@pytest.mark.parametrize(
    "step",
    [
        lambda x: tuple(y / 2 for y in x),
        lambda x: (p14.ALPHA * x[0] + x[1], p14.ALPHA * x[1]),
        lambda x: tuple(p14.ALPHA * y for y in reversed(x)),
        lambda x: (p14.ALPHA * x[0], x[1]),
    ],
    ids=["other alpha", "a branch as large as the state", "coordinates exchanged", "one coordinate damped"],
)
def test_a_loop_of_another_jacobian_is_rejected(monkeypatch, step):
    monkeypatch.setattr(p14, "loop", lambda state, small: step(state))
    with pytest.raises(ProofError, match="the slope at every exit from here on"):
        p14.prove()


@pytest.mark.parametrize(
    "mutant",
    [
        lambda state, branch, small: (state[0] + branch, state[1] + small * p14.b[1] * branch),
        lambda state, branch, small: (state[0] + small * branch, state[1] + small * p14.b[1] * branch),
    ],
    ids=["a coordinate that no writer weighs", "a coordinate of another writer"],
)
def test_readers_of_branches_that_b_does_not_weigh_are_rejected(monkeypatch, mutant):
    monkeypatch.setattr(p14, "residual_step", mutant)
    with pytest.raises(ProofError, match="block reader's gradient"):
        p14.prove()


@pytest.mark.parametrize("damping", [0.5, 0.88])
def test_under_damping_every_exit_counts_by_the_scale_of_its_own_state(damping):
    """sum_j imm_j without them, as is right when nothing is between loops, is not G_k however large the state."""
    model = random_model(replace(BLIND, batch=1, loops=3, between="damping", damping=damping, embedding_std=1e15))
    assert p14.backward_attenuation_residual(model) < 1e-12
    total, immediate, _ = p14.total_and_immediate_gradients(model)
    assert (total[0] - torch.stack(immediate).sum(0)).norm() / total[0].norm() > 0.05


def test_broken_copies_do_not_survive_the_check(monkeypatch):
    assert p14.check(Case()).holds
    monkeypatch.setattr(p14, "writers", lambda a: block_writers(a))
    assert not p14.check(Case()).holds
    monkeypatch.undo()
    monkeypatch.setattr(p14, "FAR", 1e3)
    assert not p14.check(Case()).holds
    monkeypatch.undo()
    monkeypatch.setattr(p14, "loop_weights", lambda a: (1.0,) * a.loops)
    states = p14.total_and_immediate_gradients
    monkeypatch.setattr(
        p14,
        "total_and_immediate_gradients",
        lambda m: (states(m)[0], [torch.zeros_like(g) for g in states(m)[1]], states(m)[2]),
    )
    assert not p14.check(Case()).holds
