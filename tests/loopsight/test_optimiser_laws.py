"""Laws of a blind norm on the smallest blind loss there is: one that depends on a direction only."""

import math

import pytest
import torch
from torch import Tensor

from loopsight.optimiser_laws import (
    adam_step_bound,
    equilibrium_angle,
    equilibrium_norm,
    heavy_ball_square_norms,
    norm_change,
    sgd_square_norm,
)

TARGET = torch.tensor([0.3, -1.0, 0.5, 0.2], dtype=torch.float64)


def blind_gradient(w: Tensor, t: int) -> Tensor:
    """Of a loss of the direction only, that changes from step to step."""
    (gradient,) = torch.autograd.grad(((w / w.norm()) @ TARGET.roll(t)).sin(), w)
    return gradient


def start() -> Tensor:
    return torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64, requires_grad=True)


def assert_sgd_law(law, wd: float) -> None:
    w, lr = start(), 0.7
    n = (w @ w).item()
    optimiser = torch.optim.SGD([w], lr=lr, weight_decay=wd)
    for t in range(20):
        w.grad = blind_gradient(w, t)
        n = law(n, w.grad.square().sum().item(), lr=lr, wd=wd)
        optimiser.step()
    assert (w @ w).item() == pytest.approx(n, rel=1e-12)


@pytest.mark.parametrize("wd", [0.0, 0.1])
def test_sgds_norm_is_predicted_over_many_steps(wd):
    assert_sgd_law(sgd_square_norm, wd)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda n, g, *, lr, wd: n,
        lambda n, g, *, lr, wd: (1 - 2 * lr * wd) * n + lr**2 * g,
        lambda n, g, *, lr, wd: (1 - lr * wd) ** 2 * n + lr * g,
    ],
)
def test_wrong_sgd_laws_are_noticed(mutant):
    with pytest.raises(AssertionError):
        assert_sgd_law(mutant, 0.1)


def assert_heavy_ball_law(law) -> None:
    w, lr, momentum = start(), 0.3, 0.8
    n, velocities, seen = (w @ w).item(), [], []
    optimiser = torch.optim.SGD([w], lr=lr, momentum=momentum)
    for t in range(20):
        w.grad = blind_gradient(w, t)
        optimiser.step()
        velocities.append(optimiser.state[w]["momentum_buffer"].square().sum().item())
        seen.append((w @ w).item())
    assert law(n, velocities, lr=lr, momentum=momentum) == pytest.approx(seen, rel=1e-12)


def test_the_heavy_balls_norm_is_predicted_from_its_velocities():
    assert_heavy_ball_law(heavy_ball_square_norms)


def test_a_heavy_ball_law_without_memory_is_noticed():
    with pytest.raises(AssertionError):
        assert_heavy_ball_law(lambda n, v, *, lr, momentum: heavy_ball_square_norms(n, v, lr=lr, momentum=0.0))


def test_a_small_angle_has_all_its_digits():
    assert equilibrium_angle(lr=1e-6, wd=1e-6) == pytest.approx(math.sqrt(2e-12), rel=1e-9)


def test_a_decay_beyond_one_turns_w_past_a_right_angle():
    lr, wd = 1.5, 1.0
    w, angle = torch.tensor([equilibrium_norm(1.0, lr=lr, wd=wd), 0.0], dtype=torch.float64), math.nan
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    for _ in range(5):
        moved = (1 - lr * wd) * w - lr * (turn @ w) / w.norm() ** 2
        angle, w = torch.arccos((w @ moved) / (w.norm() * moved.norm())).item(), moved
    assert angle == pytest.approx(2 * math.pi / 3) and equilibrium_angle(lr=lr, wd=wd) == pytest.approx(angle)


def test_at_equilibrium_norm_and_angle_stay_and_deviations_decay_at_four_lr_wd():
    lr, wd, scale_free = 0.5, 0.02, 3.0
    rest = equilibrium_norm(scale_free, lr=lr, wd=wd)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)  # the gradient is across w, |g| = G / |w|

    def walk(size: float, steps: int) -> tuple[float, float]:
        w, angle = torch.tensor([size, 0.0], dtype=torch.float64), math.nan
        for _ in range(steps):
            gradient = scale_free * (turn @ w) / w.norm() ** 2
            moved = (1 - lr * wd) * w - lr * gradient
            angle = torch.arccos((w @ moved) / (w.norm() * moved.norm())).item()
            w = moved
        return w.norm().item(), angle

    size, angle = walk(rest, 100)
    assert size == pytest.approx(rest, rel=1e-12)
    assert angle == pytest.approx(equilibrium_angle(lr=lr, wd=wd), rel=1e-9)
    assert angle == pytest.approx(math.sqrt(2 * lr * wd), rel=2e-2)
    assert walk(5 * rest, 600)[0] == pytest.approx(rest, rel=1e-6)
    ratio = (walk(1.001 * rest, 11)[0] - rest) / (walk(1.001 * rest, 10)[0] - rest)
    assert ratio == pytest.approx(1 - 4 * lr * wd, rel=1e-3)
    assert abs(ratio - (1 - 2 * lr * wd)) > 1e-2  # AdamW's reference rate is not SGD's


def test_without_decay_the_norm_grows_as_the_fourth_root_of_time():
    n, lr, scale_free, steps = 1.0, 0.1, 2.0, 20_000
    for _ in range(steps):
        n = sgd_square_norm(n, scale_free**2 / n, lr=lr)
    assert math.sqrt(n) == pytest.approx((2 * lr**2 * scale_free**2 * steps) ** 0.25, rel=1e-2)


def test_adams_bound():
    assert adam_step_bound(0.9, 0.999) == pytest.approx(7.2703, rel=1e-5)
    for betas in ((0.9, 0.999), (0.9, 0.95), (0.0, 0.9), (0.9, 0.5)):
        assert adam_step_bound(*betas, step=1) == pytest.approx(1.0)
    bounds = [adam_step_bound(0.9, 0.99, step=n) for n in (1, 10, 100, 1000, 5000)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(adam_step_bound(0.9, 0.99))
    assert adam_step_bound(0.9, 0.5, step=50) > 10  # beta1^2 > beta2: grows without end


def test_a_step_taken_apart():
    before = {"a": torch.tensor([3.0, 0.0], dtype=torch.float64), "b": torch.tensor([4.0], dtype=torch.float64)}
    after = {"a": torch.tensor([3.0, 1.0], dtype=torch.float64), "b": torch.tensor([2.0], dtype=torch.float64)}
    change = norm_change(before, after)
    assert (change.before, change.after, change.decayed, change.cross, change.square) == (25, 14, 25, -16, 5)
    assert change.cosine == pytest.approx(-8 / (5 * 5**0.5))
    decayed = norm_change(before, after, lr=0.5, wd=0.2)
    assert decayed.decayed == pytest.approx(0.81 * 25)
    assert decayed.decayed + decayed.cross + decayed.square == pytest.approx(14)
    assert math.isnan(norm_change(before, before).cosine)


def test_orthogonality_shows_as_a_cosine_of_zero_for_sgd_and_not_for_adam():
    cosines = {}
    for name, make in {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}.items():
        w = start()
        optimiser, largest = make([w], lr=0.1), 0.0
        for t in range(5):
            w.grad = blind_gradient(w, t)
            before = w.detach().clone()
            optimiser.step()
            largest = max(largest, abs(norm_change({"w": before}, {"w": w}).cosine))
        cosines[name] = largest
    assert cosines["sgd"] < 1e-13 < 1e-2 < cosines["adam"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norm_change({"a": torch.ones(2)}, {"b": torch.ones(2)}), "the same tensors"),
        (lambda: norm_change({"a": torch.ones(2)}, {"a": torch.ones(3)}), "of the same shapes"),
        (lambda: norm_change({}, {}), "at least one"),
        (lambda: norm_change({"a": torch.ones(2, dtype=int)}, {"a": torch.ones(2)}), "floating-point"),
        (lambda: equilibrium_norm(1.0, lr=0.1, wd=0.0), "needs 0 < lr wd < 2"),
        (lambda: equilibrium_norm(0.0, lr=0.1, wd=0.1), "must be positive, got 0.0"),
        (lambda: equilibrium_angle(lr=3.0, wd=1.0), "needs 0 < lr wd < 2, got lr 3.0 and wd 1.0"),
        (lambda: adam_step_bound(1.0, 0.9), r"beta1 must lie in \[0, 1\)"),
        (lambda: adam_step_bound(0.9, 0.0), r"beta2 in \(0, 1\)"),
        (lambda: adam_step_bound(0.9, 0.999, step=0), "counted from 1, got 0"),
        (lambda: adam_step_bound(0.99, 0.95), "no bound holds for all steps"),
        (lambda: adam_step_bound(0.5, 0.25), "no bound holds for all steps"),
        (lambda: heavy_ball_square_norms(1.0, [1.0], lr=0.1, momentum=1.0), r"in \[0, 1\), got 1.0"),
        (
            lambda: heavy_ball_square_norms(1.0, [1.0], lr=[0.1, 0.1], momentum=0.5),
            "one learning rate or 1, one for each",
        ),
        (lambda: sgd_square_norm(math.inf, 1.0, lr=0.1), "must be finite and not negative, got inf"),
        (lambda: sgd_square_norm(1.0, -1.0, lr=0.1), "must be finite and not negative, got -1.0"),
        (lambda: equilibrium_norm(1.0, lr=math.inf, wd=0.1), "needs 0 < lr wd < 2, got lr inf"),
        (lambda: equilibrium_angle(lr=0.1, wd=math.inf), "needs 0 < lr wd < 2, got lr 0.1 and wd inf"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
