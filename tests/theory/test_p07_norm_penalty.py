"""P7's traps, and wrong formulas in the place of its own."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from theory.cases import Case
from theory.laboratory import along, draw_architecture, gradients_of, writers
from theory.proposition import ProofError
from theory.propositions import p07_norm_penalty as p07
from theory.propositions.p06_raw_readout import mean_gap
from theory.propositions.p07_norm_penalty import objective, penalty_of
from theory.random_model import RandomModel, random_model, rms_normalise

COEFFICIENT = 0.01


def model_of(**choices: object) -> RandomModel:
    return random_model(
        draw_architecture(Case(seed=2), **{"readout": "rmsnorm", "gain": False, "d": 12, "heads": 2, **choices})
    )


@pytest.mark.parametrize("degree", [1, 4])
def test_a_wrong_homogeneity_is_rejected(monkeypatch, degree):
    """P of degree 1 or 4 in the writers, and not 2."""
    true = p07.joint_derivative()
    monkeypatch.setattr(p07, "joint_derivative", lambda: true * degree / 2)
    with pytest.raises(ProofError, match="joint writer scale"):
        p07.prove()


MUTANTS = {
    "h_0 penalised too": lambda states, lam: lam * torch.stack([h.square().mean() for h in states]).mean(),
    "summed over loops": lambda states, lam: lam * torch.stack([h.square().mean() for h in states[1:]]).sum(),
    "root mean square": lambda states, lam: (
        lam * torch.stack([h.square().mean(-1).sqrt().mean() for h in states[1:]]).mean()
    ),
    "last loop only": lambda states, lam: lam * states[-1].square().mean(),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_another_penalty_is_detected_state_by_state(monkeypatch, mutant):
    """Three of the four have the joint derivative 2 P too: only single states tell them apart."""
    model = model_of(loops=3)
    assert p07.state_residual(model, COEFFICIENT) < 1e-12
    monkeypatch.setattr(p07, "penalty_of", MUTANTS[mutant])
    assert p07.joint_residual(model, COEFFICIENT, writers(model.architecture)) < 1e-12 or mutant == "root mean square"
    # h_0 has no gradient asked for: the penalty's share of the others is what changes.
    assert p07.state_residual(model, COEFFICIENT) > 1e-2


def test_without_a_penalty_nothing_pulls_and_with_one_it_is_seen():
    model = model_of(tied=False)
    names = writers(model.architecture)
    blind, size = along(gradients_of(model.loss, model.parameters), model.parameters, names)
    pulled, pulled_size = along(gradients_of(objective(model, COEFFICIENT), model.parameters), model.parameters, names)
    assert abs(blind) / size < 1e-14
    assert pulled / pulled_size > 1e-4


def test_it_is_weight_decay_with_coefficient_2p_over_the_squared_norm():
    model = model_of(tied=False)
    gradients, names = gradients_of(objective(model, COEFFICIENT), model.parameters), writers(model.architecture)
    w, g = (torch.cat([x[name].flatten() for name in names]) for x in (model.parameters, gradients))
    decay = 2 * penalty_of(model.states(), COEFFICIENT) / w.square().sum()
    torch.testing.assert_close((g @ w) / (w @ w), decay, rtol=1e-11, atol=0)
    assert (g - decay * w).norm() > 1e-3 * g.norm()  # it is not that alone: across w it pulls as well


@pytest.mark.parametrize("gain", [False, True])
def test_a_tied_head_adds_the_gap_and_a_gain_carries_the_gap_alone(gain):
    model = model_of(tied=True, gain=gain)
    gradients = gradients_of(objective(model, COEFFICIENT), model.parameters)
    (slope, _), two_p = mean_gap(model), 2 * penalty_of(model.states(), COEFFICIENT).item()
    inner, _ = along(gradients, model.parameters, writers(model.architecture))
    assert abs(slope) > 1e-3
    assert inner == pytest.approx(slope + two_p, rel=1e-10)
    if gain:
        assert along(gradients, model.parameters, ["readout.gain"])[0] == pytest.approx(slope, rel=1e-10)


def test_a_tied_head_without_gain_has_a_stationary_point_other_than_zero():
    """Four tokens that are their own labels, no branch, logits N(E) E^T: more than weight decay, the data hold it."""

    def total(embedding):
        logits = rms_normalise(embedding, 0.0) @ embedding.T
        return F.cross_entropy(logits, torch.arange(4)) + penalty_of([embedding, embedding], 0.5)

    e = 1.0306 * torch.eye(4, dtype=torch.float64) - 0.3435 * (1 - torch.eye(4, dtype=torch.float64))
    for _ in range(200):
        e = e - 0.5 * torch.func.grad(total)(e)
    assert e.diagonal().tolist() == pytest.approx([1.0306] * 4, abs=1e-4)
    assert torch.func.grad(total)(e).norm() < 1e-10 < 0.1 < torch.func.grad(total)(0.5 * e).norm()


def test_one_writer_alone_may_be_driven_outward():
    """The penalty decays their joint norm: one that opposes the others makes states smaller by growing."""
    signs = set()
    for seed in range(20):
        model = model_of(seed=seed, tied=False)
        gradients = gradients_of(lambda p, model=model: penalty_of(model.states(p), 1.0), model.parameters)
        names = writers(model.architecture)
        assert along(gradients, model.parameters, names)[0] > 0
        signs |= {along(gradients, model.parameters, [name])[0] > 0 for name in names}
    assert signs == {True, False}


def test_at_zero_there_is_no_gradient_to_vanish():
    """The blind loss keeps its value down to zero, another one on every ray: it is not even continuous there."""
    model, names = model_of(tied=False), writers(model_of(tied=False).architecture)
    other = model.parameters | {name: model_of(tied=False, seed=9).parameters[name] for name in names}
    near, nearer, elsewhere = (
        model.loss({name: (factor if name in names else 1.0) * x for name, x in parameters.items()}).item()
        for factor, parameters in ((1e-3, model.parameters), (1e-6, model.parameters), (1e-6, other))
    )
    assert near == pytest.approx(nearer, rel=1e-11) and abs(elsewhere - nearer) > 1e-2


def fitted(model: RandomModel) -> RandomModel:
    """Labels that the model itself would give, so that sharper logits are better ones."""
    return replace(model, labels=model.readout()(model.states()[-1]).argmax(-1))


def derivative(model: RandomModel, factor: float, coefficient: float) -> float:
    """d(L + P)/dlog c at c times the writers."""
    parameters = {n: (factor if n in writers(model.architecture) else 1.0) * x for n, x in model.parameters.items()}
    scaled = replace(model, parameters=parameters)
    return along(gradients_of(objective(scaled, coefficient), parameters), parameters, writers(scaled.architecture))[0]


def minimum(model: RandomModel, coefficient: float) -> float | None:
    """The factor at which the derivative turns from negative to positive; no more than one is expected."""
    factors = torch.logspace(-6, 1, 15, dtype=torch.float64).tolist()
    values = [derivative(model, factor, coefficient) for factor in factors]
    turning = [n for n in range(len(factors) - 1) if values[n] < 0 < values[n + 1]]
    if not turning:
        return None
    (n,) = turning
    low, high = factors[n], factors[n + 1]
    for _ in range(10):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if derivative(model, middle, coefficient) < 0 else (low, middle)
    return low


def test_only_epsilon_stops_the_collapse_and_at_its_fourth_root():
    """-dL/dlog c ~ eps / c^2 meets 2 P ~ c^2 at c ~ eps^(1/4), a root mean square far above sqrt(eps)."""
    found = {}
    for eps in (0.0, 1e-8, 1e-6):
        model = fitted(model_of(tied=False, eps=eps, loops=2, layers=1, between="none"))
        found[eps] = minimum(model, 1e-3)
    assert found[0.0] is None
    assert found[1e-6] / found[1e-8] == pytest.approx(100**0.25, rel=2e-2)


def test_sgd_keeps_the_norm_where_the_penalty_balances_the_steps():
    """4 P = eta |g|^2: below that rate the norm falls, above it grows."""
    model = model_of(tied=False)
    gradients, names = gradients_of(objective(model, COEFFICIENT), model.parameters), writers(model.architecture)
    w, g = (torch.cat([x[name].flatten() for name in names]) for x in (model.parameters, gradients))
    balance = (4 * penalty_of(model.states(), COEFFICIENT) / g.square().sum()).item()
    for factor, grows in ((0.9, False), (1.1, True)):
        assert ((w - factor * balance * g).norm() > w.norm()).item() is grows
    torch.testing.assert_close((w - balance * g).norm(), w.norm(), rtol=1e-12, atol=0)


def test_a_raw_readout_answers_by_its_gap():
    """The penalty is no longer alone: the claim of the untied blind readout is off by the gap."""
    model = model_of(readout="raw", tied=False)
    inner, _ = along(
        gradients_of(objective(model, COEFFICIENT), model.parameters), model.parameters, writers(model.architecture)
    )
    two_p = 2 * penalty_of(model.states(), COEFFICIENT).item()
    assert inner - two_p == pytest.approx(mean_gap(model)[0], rel=1e-10)
    assert abs(inner / two_p - 1) > 1e-2
