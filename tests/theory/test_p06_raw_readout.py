"""P6's traps, and wrong formulas in the place of its own."""

import math

import pytest
import sympy as sp
import torch
import torch.nn.functional as F

from theory.cases import Case
from theory.laboratory import along, draw_architecture, gradients_of, writers
from theory.proposition import Proof, ProofError
from theory.propositions import p06_raw_readout as p06
from theory.propositions.p06_raw_readout import (
    has_minimiser,
    mean_gap,
    predicted_common_minimiser,
    predicted_minimiser,
    slopes,
)
from theory.random_model import random_model


def logits_of(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_a_wrong_curvature_is_rejected():
    """E_p[z^2] without the square of the mean."""
    loss = sp.log(p06.over(sp.exp(p06.c * p06.z[p06.v]))) - p06.c * p06.z[p06.label]
    wrong = p06.over(p06.z[p06.v] ** 2 * sp.exp(p06.c * p06.z[p06.v])) / p06.over(sp.exp(p06.c * p06.z[p06.v]))
    with pytest.raises(ProofError):
        Proof().equal("wrong", sp.diff(loss, p06.c, 2), wrong)


def test_a_sum_in_the_place_of_the_mean_is_rejected(monkeypatch):
    """The first slope is taken against E_p z: unnormalised weights are not it."""
    monkeypatch.setattr(p06, "over", lambda term: sp.Sum(term, (p06.v, 1, p06.classes)) / 2)
    with pytest.raises(ProofError, match="at c = 0"):
        p06.prove()


def test_the_gradient_is_rejected_with_the_wrong_gap(monkeypatch):
    case = Case()
    assert p06.gradient_residual(case) < 1e-14
    true = p06.logit_gap
    monkeypatch.setattr(p06, "logit_gap", lambda logits, labels: -true(logits, labels))
    assert p06.gradient_residual(case) > 1e-2


@pytest.mark.parametrize(
    ("logits", "label", "exists"),
    [
        ((3.0, 1.0, 0.0, -2.0), 1, True),  # between mean and maximum
        ((3.0, 1.0, 0.0, -2.0), 0, False),  # fitted: c runs to infinity
        ((3.0, 1.0, 0.0, -2.0), 2, False),  # below the mean: c falls to 0
        ((3.0, 1.0, 0.0, -2.0), 3, False),  # the minimum
        ((3.0, 3.0, 0.0, 0.0), 0, False),  # tied argmax
        ((3.0, 3.0, 0.0, 0.0), 2, False),
    ],
)
def test_who_has_a_positive_minimiser(logits, label, exists):
    z, labels = logits_of(*logits), torch.tensor([label])
    assert predicted_minimiser(z, labels).item() is exists
    assert has_minimiser(slopes(z, labels)).item() is exists


@pytest.mark.parametrize(("label", "exists"), [(0, False), (1, True), (2, True), (3, False)])
def test_over_both_signs_the_minimum_lies_strictly_between_the_extremes(label, exists):
    """Negative factors turn the logits over: then the label must be no minimum either."""
    z, labels = logits_of(3.0, 1.0, 0.0, -2.0), torch.tensor([label])
    negative, positive = -slopes(-z, labels), slopes(z, labels)
    assert ((negative < -1e-9).any() and (positive > 1e-9).any() or has_minimiser(positive).item()) == exists


def test_a_tied_argmax_has_no_minimiser_though_it_is_no_unique_winner():
    """z = (3, 3, 0): the loss falls for ever to log 2, which it does not reach."""
    factors = torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)
    losses = F.cross_entropy(
        factors[:, None] * logits_of(3.0, 3.0, 0.0), torch.zeros(4, dtype=torch.long), reduction="none"
    )
    assert (losses.diff() < 0).all()
    assert losses[-1].item() == pytest.approx(math.log(2), abs=1e-12)


def test_a_minimiser_lies_where_the_expected_logit_is_the_true_one():
    z, label = logits_of(3.0, 1.0, 0.0, -2.0), torch.tensor([1])
    low, high = 1e-3, 1e3
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if p06.logit_gap(middle * z, label).item() < 0 else (low, middle)
    minimum = F.cross_entropy(low * z, label)
    assert all(F.cross_entropy(factor * low * z, label) > minimum for factor in (0.99, 1.01))


def test_a_pool_is_pinned_by_one_token_that_is_not_fitted_and_by_none_that_all_are():
    z = torch.tensor([[3.0, 1.0, -4.0], [2.0, 0.5, -2.5]], dtype=torch.float64)
    fitted, one_wrong, hopeless = torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2, 1])
    for labels, pinned in ((fitted, False), (one_wrong, True), (hopeless, False)):
        assert predicted_common_minimiser(z, labels) is pinned
        assert has_minimiser(slopes(z, labels).sum(0)).item() is pinned
    # Alone the first token pins nothing: it is the second that holds it.
    assert not predicted_minimiser(z, one_wrong)[0]


def test_tokens_that_pin_nothing_alone_may_pin_a_common_scale():
    """One label is the argmax, the other the minimum: together they rest at c = 0.35."""
    z, labels = torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64), torch.tensor([0, 2])
    assert not predicted_minimiser(z, labels).any() and not has_minimiser(slopes(z, labels)).any()
    assert predicted_common_minimiser(z, labels) and has_minimiser(slopes(z, labels).sum(0))
    gaps = [p06.logit_gap(c * z, labels).sum().item() for c in (0.34, 0.36)]
    assert gaps[0] < 0 < gaps[1]


def test_equal_logits_are_minimised_by_every_scale():
    """The one case that the condition is not of."""
    z, label = logits_of(1.0, 1.0, 1.0), torch.tensor([0])
    assert slopes(z, label).abs().max() < 1e-15
    assert not predicted_minimiser(z, label)


def test_calibration_is_no_sign_of_a_raw_readout():
    """A stationary gain behind RMSNorm closes the gap as well: flat or convex along the state's scale decides."""
    case = Case(seed=1, tokens=6, vocab=5, d=4)
    head, labels = p06.head_and_labels(case)
    y = case.states() / case.states().square().mean(-1, keepdim=True).sqrt()
    log_gain = torch.zeros((), dtype=torch.float64)
    logits = y @ head.T
    labels = logits.topk(2).indices[:, 1]  # neither fitted nor hopeless
    low, high = -10.0, 10.0
    for _ in range(80):
        log_gain = torch.tensor((low + high) / 2, dtype=torch.float64)
        gap = p06.logit_gap(log_gain.exp() * logits, labels).mean()
        low, high = (log_gain.item(), high) if gap < 0 else (low, log_gain.item())
    assert gap.abs() < 1e-12

    def loss(factor: float, normalised: bool) -> float:
        h = factor * case.states()
        h = h / h.square().mean(-1, keepdim=True).sqrt() if normalised else h
        return F.cross_entropy(log_gain.exp() * h @ head.T, labels).item()

    assert abs(loss(2.0, True) - loss(1.0, True)) < 1e-14
    assert loss(2.0, False) - loss(1.0, False) > 1e-3
    assert loss(0.5, False) - loss(1.0, False) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_every_part_of_the_control_fails_where_its_claim_holds_otherwise(seed):
    case = Case(seed=seed)
    slope, curvature = p06.ray_residuals(case)
    assert max(slope, curvature) < 1e-14
    slope, curvature = p06.ray_residuals(case, p06.rms_normalised)  # flat, whatever gap and variance the logits have
    assert slope > 0.1 and curvature > 0.05
    raw, tied = (p06.gauge_model(case, tied=tied) for tied in (False, True))
    assert max(*p06.gauge_residuals(raw, 1), p06.gauge_residuals(tied, 2)[0]) < 1e-14
    assert min(*p06.gauge_residuals(tied, 1), p06.gauge_residuals(raw, 2)[0], p06.gauge_residuals(raw, 0)[0]) > 1e-4
    blind = p06.gauge_model(case, readout="rmsnorm", tied=False)
    by_writers, by_head = p06.gauge_residuals(blind, 1)
    assert by_writers > 1e-4 and max(by_head, p06.gauge_residuals(blind, 0)[0]) < 1e-14


@pytest.mark.parametrize(
    ("ray", "holds"),
    [
        (lambda h: h, True),
        (lambda h: h + 0.1 * h.mean(-1, keepdim=True), True),  # any linear map
        (lambda h: torch.tanh(h), False),
        (lambda h: h + 0.1, False),  # its logits have a part that the state does not make
        (lambda h: h * h.square().mean(-1, keepdim=True).sqrt(), False),  # degree 2: twice the gap
    ],
    ids=["raw", "linear", "tanh", "shifted", "degree 2"],
)
def test_slope_and_curvature_along_the_ray_are_those_of_linear_readouts(ray, holds):
    slope, curvature = p06.ray_residuals(Case(seed=1), ray)
    assert max(slope, curvature) < 1e-14 if holds else min(slope, curvature) > 1e-4


def test_the_check_notices_a_ray_and_a_gauge_that_are_off(monkeypatch):
    cases = [Case(seed=seed) for seed in range(6)]
    assert all(p06.check(case).holds for case in cases)
    for name in ("ray_residuals", "gauge_residuals"):
        for part in (0, 1):
            with monkeypatch.context() as patch:
                exact = getattr(p06, name)

                def off(*arguments, exact=exact, part=part):
                    values = list(exact(*arguments))
                    values[part] += 1e-3
                    return tuple(values)

                patch.setattr(p06, name, off)
                failed = {p06.gauge_model(case).architecture.tied for case in cases if not p06.check(case).holds}
                # A tied head has no second side of a gauge.
                assert failed == ({False} if (name, part) == ("gauge_residuals", 1) else {False, True})


@pytest.mark.parametrize("between", ["none", "rmsnorm", "damping"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_gauge_of_writers_and_head(tied, between):
    model = random_model(
        draw_architecture(Case(seed=2), readout="raw", gain=False, d=12, heads=2, tied=tied, between=between)
    )
    gradients, (gap, _) = gradients_of(model.loss, model.parameters), mean_gap(model)
    inner, _ = along(gradients, model.parameters, writers(model.architecture))
    assert abs(gap) > 1e-2
    assert inner == pytest.approx((2 if tied else 1) * gap, rel=1e-11)
    if not tied:
        assert along(gradients, model.parameters, ["head"])[0] == pytest.approx(gap, rel=1e-11)


def test_leaving_out_a_writer_is_detected():
    model = random_model(
        draw_architecture(Case(seed=2), readout="raw", gain=False, d=12, heads=2, tied=False, biases=True)
    )
    gradients, (gap, _) = gradients_of(model.loss, model.parameters), mean_gap(model)
    for left_out in writers(model.architecture):
        inner, size = along(
            gradients, model.parameters, [name for name in writers(model.architecture) if name != left_out]
        )
        assert abs(inner - gap) / size > 1e-6, left_out
    inner, size = along(gradients, model.parameters, [*writers(model.architecture), "0.attention.v"])
    assert abs(inner - gap) / size > 1e-6


def test_gradient_descent_conserves_the_difference_of_norms_to_first_order():
    """|w|^2 - |U|^2 moves by O(eta^2) per step while |w|^2 moves by O(eta)."""
    model = random_model(draw_architecture(Case(seed=2), readout="raw", gain=False, d=12, heads=2, tied=False))
    gradients, p, names = gradients_of(model.loss, model.parameters), model.parameters, writers(model.architecture)

    def change(rate: float, *, difference: bool) -> float:
        def squares(names):
            return sum(((p[n] - rate * gradients[n]).square().sum() - p[n].square().sum()).item() for n in names)

        return abs(squares(names) - (squares(["head"]) if difference else 0.0))

    assert change(1e-3, difference=True) / change(1e-4, difference=True) == pytest.approx(100, rel=1e-3)
    assert change(1e-3, difference=False) / change(1e-4, difference=False) == pytest.approx(10, rel=1e-1)
