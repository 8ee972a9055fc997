"""P13's traps and mutants: what makes two runs differ, and what a wrong degree system looks like from outside."""

import math
import random
from dataclasses import replace

import pytest
import sympy as sp
import torch

from loopsight.symmetry import added, euler_residual, measured_symmetries, scaling_degree, scaling_symmetries
from theory.cases import Case
from theory.proposition import ProofError
from theory.propositions import p13_gauge_and_symmetries as p13
from theory.random_model import Architecture, RandomModel, random_model

SMALL = Architecture(layers=1, loops=2, batch=1)


def training(optimiser, steps=5, **changes) -> p13.Training:
    model = random_model(replace(SMALL, **changes))
    return p13.Training(model=model, gradients=p13.derivatives(model).gradients, optimiser=optimiser, steps=steps)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"readout": "raw"}, {"readout": "raw", "tied": True}])
def test_gauge_runs_are_bitwise_equal_for_powers_of_two_and_nearly_for_three(optimiser, changes):
    run = training(optimiser, **changes)
    gauge = p13.joint_gauge(run.model.architecture)
    assert p13.run_difference(run, gauge, 2.0**-6) == 0.0
    # With a raw readout SGD soon multiplies the loss by 1e20 a step, and rounding with it.
    assert 0.0 < p13.run_difference(replace(run, steps=2), gauge, 3.0) < 1e-9


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_learning_rates_left_alone_change_the_run(optimiser):
    run = training(optimiser)
    assert p13.run_difference(run, p13.joint_gauge(SMALL), 4.0, rescale=False) > 1e-4


def test_a_tied_models_gain_needs_its_own_learning_rate_too():
    run = training("sgd", tied=True)
    gauge = p13.joint_gauge(run.model.architecture)
    writers_only = {name: value for name, value in gauge.items() if name != "readout.gain"}
    assert p13.run_difference(run, writers_only, 4.0) > 1e-2


def test_adams_epsilon_and_a_global_clip_break_the_gauge(monkeypatch):
    run = training("adam")
    gauge, options = p13.joint_gauge(SMALL), p13.Training._options
    monkeypatch.setattr(p13.Training, "_options", lambda self, n, c: {**options(self, n, c), "eps": 1e-3})
    assert p13.run_difference(run, gauge, 4.0) > 1e-5
    monkeypatch.undo()
    assert p13.run_difference(run, gauge, 4.0) == 0.0
    step = torch.optim.SGD.step

    def clipped(self, *arguments):
        tensors = [tensor for group in self.param_groups for tensor in group["params"]]
        torch.nn.utils.clip_grad_norm_(tensors, 1e-2)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", clipped)
    assert p13.run_difference(training("sgd"), gauge, 4.0) > 1e-5


def test_trap_a_loss_of_exactly_zero_in_both_runs_is_no_difference():
    assert p13.check(Case(seed=4125, d=8, vocab=2, tokens=2, scale=10.0)).holds


def test_trap_a_run_that_diverges_compares_nothing():
    """A raw readout with a loop of negative weight; its image alone must not diverge unseen."""
    diverging = Case(seed=2, d=4, vocab=4, tokens=2, scale=10.0, spread=10.0)
    assert p13.check(diverging).holds
    gauge = {"token_embedding": 1, "position_embedding": 1, "0.attention.out": 1, "0.mlp.down": 1}
    assert not p13.run_difference(training("sgd"), gauge, math.inf) <= p13.TOLERANCE


def test_trap_a_gradient_whose_square_underflows_weighs_nothing():
    """A saturated attention leaves queries and keys gradients of 1e-190."""
    assert p13.check(Case(seed=2, d=10, vocab=2, tokens=2, scale=10.0, spread=10.0)).holds


def losses_of(model: RandomModel, batches: int):
    """One loss per batch of its own tokens and labels, at its own loop: varied, so that only symmetries are common."""
    a, generator = model.architecture, torch.Generator().manual_seed(1)
    draws = [
        replace(
            model,
            inputs=torch.randint(a.vocab, (a.batch, a.tokens), generator=generator),
            labels=torch.randint(a.vocab, (a.batch, a.tokens), generator=generator),
        )
        for _ in range(batches)
    ]
    weights = [tuple(float(k == n % a.loops) for k in range(a.loops)) for n in range(batches)]
    return lambda p: torch.stack([draw.loss(p, w) for draw, w in zip(draws, weights, strict=True)])


DIMENSIONS = {
    "rmsnorm, untied": 7,
    "rmsnorm, tied": 6,
    "raw, untied": 7,
    "raw, tied": 6,
    "raw, tied, no gain": 5,
    "rmsnorm, tied, no gain": 5,
    "norm between loops, untied": 8,
    "rmsnorm, untied, two layers": 12,
    "tanh, untied": 6,
}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_the_degree_system_is_complete(name):
    """Its null space has the dimension that gradients alone show, decades clear of rounding, and is the same space."""
    a = replace(p13.examples()[name], d=8, loops=2, batch=1)
    model = random_model(a)
    tensors = list(model.parameters)
    basis = scaling_symmetries(tensors, p13.equations(a))
    measured = measured_symmetries(losses_of(model, len(tensors) + 2), model.parameters)
    assert len(basis) == measured.dimension == DIMENSIONS[name]
    assert measured.smallest_visible > 1e-5 > 1e-13 > measured.largest_blind
    spanned = torch.tensor([[float(s[t]) for t in tensors] for s in basis], dtype=torch.float64)
    outside = spanned - spanned @ measured.degrees.T @ measured.degrees
    assert outside.norm() < 1e-9 * spanned.norm()


def writer_gauges(a: Architecture) -> int:
    """Number of independent symmetries that scale the token embedding."""
    basis = scaling_symmetries(list(random_model(a).parameters), p13.equations(a))
    return sum(symmetry["token_embedding"] != 0 for symmetry in basis)


def test_the_readouts_gain_is_what_leaves_a_tied_model_its_gauge():
    for readout in ("rmsnorm", "raw"):
        tied = Architecture(layers=1, tied=True, readout=readout)
        assert writer_gauges(tied) >= 1
        assert writer_gauges(replace(tied, gain=False)) == 0
    assert writer_gauges(Architecture(layers=1, readout="tanh")) == 0


def test_trap_a_single_token_has_symmetries_that_the_code_does_not_force():
    """Its attention is 1 whatever its query, which the degree system cannot know; the count by gradients refuses it."""
    a = replace(SMALL, tokens=1, d=8)
    model = random_model(a)
    moved = {**model.parameters, "0.attention.q": 3.0 * model.parameters["0.attention.q"]}
    assert torch.equal(model.loss(moved), model.loss())
    tensors = list(model.parameters)
    alone = p13.matrix(tensors, p13.equations(a)) * sp.Matrix([int(t == "0.attention.q") for t in tensors])
    assert any(alone)
    with pytest.raises(ValueError, match="'0.attention.q' is zero or has no gradient"):
        measured_symmetries(losses_of(model, len(tensors) + 2), model.parameters)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("name", p13.examples())
def test_every_symmetry_of_the_degree_system_is_the_same_run(optimiser, name):
    a = replace(p13.examples()[name], loops=2, batch=1)
    model = random_model(a)
    run = p13.Training(model=model, gradients=p13.derivatives(model).gradients, optimiser=optimiser)
    basis = scaling_symmetries(list(model.parameters), p13.equations(a))
    gauges = [*basis, *(p13.random_gauge(a, random.Random(seed)) for seed in range(4))]
    assert all(p13.run_difference(run, gauge, 2.0) == 0.0 for gauge in gauges)
    assert all(any(gauge.values()) for gauge in gauges)


def test_trap_a_run_that_underflows_is_not_the_same_bit_by_bit():
    run = training("adam", steps=2)
    assert p13.run_difference(run, p13.joint_gauge(SMALL), 2.0**5) == 0.0
    assert p13.run_difference(run, p13.joint_gauge(SMALL), 2.0**510) != 0.0


def test_a_forgotten_equation_and_an_invented_one_are_seen_from_outside():
    model = random_model(replace(SMALL, d=8))
    tensors, system = list(model.parameters), p13.equations(SMALL)
    measured = measured_symmetries(losses_of(model, len(tensors) + 2), model.parameters).dimension
    assert len(scaling_symmetries(tensors, system[1:])) == measured + 1
    assert len(scaling_symmetries(tensors, [*system, scaling_degree("head")])) == measured - 1


def test_a_single_token_has_more_symmetries_than_its_architecture():
    """Attention over one token is constant: the data must vary, or the measured count is too high."""
    model = random_model(replace(SMALL, d=8, tokens=1))
    tensors = [name for name in model.parameters if name not in ("0.attention.q", "0.attention.k")]
    fixed = {name: model.parameters[name] for name in ("0.attention.q", "0.attention.k")}
    losses = losses_of(model, 16)
    with pytest.raises(ValueError, match="'0.attention.q' is zero or has no gradient"):
        measured_symmetries(losses, model.parameters)
    seen = measured_symmetries(lambda p: losses({**p, **fixed}), {n: model.parameters[n] for n in tensors})
    without = [row for row in p13.equations(SMALL) if not {"0.attention.q"} & set(row.coefficients)]
    assert seen.dimension == len(scaling_symmetries(tensors, without))


def test_finer_symmetries_need_finer_unknowns():
    """V and W_O of one head, gate-free: scaled against each other head by head."""
    model = random_model(replace(SMALL, d=8))
    gradients, halves = p13.derivatives(model).gradients, {}
    for source, store in ((model.parameters, "p"), (gradients, "g")):
        halves[store] = {"v": source["0.attention.v"][:4], "out": source["0.attention.out"][:, :4]}
    assert euler_residual(halves["p"], halves["g"], {"v": 1, "out": -1}) < 1e-14
    assert euler_residual(halves["p"], halves["g"], {"v": 1, "out": 1}) > 1e-4


def test_a_system_that_sympy_solves_differently_is_rejected(monkeypatch):
    monkeypatch.setattr(p13, "scaling_symmetries", lambda t, e: scaling_symmetries(t, list(e)[1:]))
    with pytest.raises(ProofError, match="number of symmetries"):
        p13.prove()
    # As many, but others: one product read as a quotient.
    real = p13.equations
    wrong = lambda a: [real(a)[0], -1 * real(a)[0] + scaling_degree("0.mlp.up"), *real(a)[2:]]  # noqa: E731
    monkeypatch.setattr(p13, "scaling_symmetries", lambda t, e: scaling_symmetries(t, wrong(Architecture(layers=1))))
    monkeypatch.setattr(p13, "examples", lambda: {"one": Architecture(layers=1)})
    with pytest.raises(ProofError, match="one space"):
        p13.prove()


@pytest.mark.parametrize(("optimiser", "power"), [("sgd", 1), ("adam", 2), ("sgd", 0)])
def test_wrong_powers_of_the_learning_rate_are_rejected(optimiser, power):
    moved, claimed = p13.rescaled_step(optimiser, sp.Integer(power))
    assert sp.simplify(moved - claimed) != 0


def test_equations_of_a_sum_are_as_many_as_its_further_terms():
    assert len(added(scaling_degree("a"), scaling_degree("b"), scaling_degree("c"))) == 2


def test_broken_copies_do_not_survive_the_check(monkeypatch):
    cases = [Case(seed=seed) for seed in range(8)]
    real, options = p13.equations, p13.Training._options
    monkeypatch.setattr(p13, "equations", lambda a: real(a)[:-1])
    assert not all(p13.check(case).holds for case in cases)
    monkeypatch.undo()
    # A degree of the random symmetry that is wrong: only its run can tell.
    gauge = p13.random_gauge
    wrong = lambda a, rng: {**(found := gauge(a, rng)), "0.mlp.up": found["0.mlp.up"] + 1}  # noqa: E731
    monkeypatch.setattr(p13, "random_gauge", wrong)
    assert not any(p13.check(case).holds for case in cases)
    monkeypatch.undo()
    # Weight decay left where it is: off by a hair, which a bitwise comparison sees and a loose one would not.
    decay = {"weight_decay": 0.1}
    monkeypatch.setattr(p13.Training, "_options", lambda self, n, c: {**options(self, n, c), **decay})
    assert not all(p13.check(case).holds for case in cases)
