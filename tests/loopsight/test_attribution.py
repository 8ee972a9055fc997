"""Attribution of growth, where the answer is known, and on modules that are not ours."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from loopsight.attribution import Attribution, attribute_growth, log_norm_gradient, norm_degrees
from models import LoopedLM, ModelConfig


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


BEFORE = {"a": tensor(1.0, 2.0), "b": tensor(2.0), "unused": tensor(5.0)}
AFTER = {"a": tensor(2.0, 4.0), "b": tensor(6.0), "unused": tensor(1.0)}


def product(p: dict[str, Tensor]) -> Tensor:
    """States a b^2, two tokens alike: log |h| = log |a| + 2 log b."""
    return (p["a"] * p["b"] ** 2).expand(2, 2)


def assert_products_are_shared_out(attribute) -> None:
    found = attribute(product, [BEFORE, AFTER], segments=400)
    assert found.actual == pytest.approx(math.log(2) + 2 * math.log(3))
    assert found.contributions == pytest.approx({"a": math.log(2), "b": 2 * math.log(3), "unused": 0.0}, rel=1e-4)
    assert found.predicted == pytest.approx(sum(found.contributions.values()))
    assert found.error == pytest.approx(found.predicted - found.actual)
    assert 0 < abs(found.error) < 1e-4


def left_rule(quantity, checkpoints, groups=None, segments=1):
    start, end = checkpoints[0], checkpoints[-1]
    _, gradient = log_norm_gradient(quantity, start)
    shares = {n: (gradient[n] * (end[n] - start[n])).sum().item() for n in start}
    actual = attribute_growth(quantity, checkpoints).actual
    return Attribution(contributions=shares, predicted=sum(shares.values()), actual=actual)


def with_segments_ignored(quantity, checkpoints, groups=None, segments=1):
    return attribute_growth(quantity, checkpoints, groups)


def made_to_sum_up(quantity, checkpoints, groups=None, segments=1):
    """Hiding the error by rescaling: the account then looks exact at any resolution."""
    found = attribute_growth(quantity, checkpoints, groups, segments)
    factor = found.actual / found.predicted
    return replace(found, contributions={n: factor * v for n, v in found.contributions.items()}, predicted=found.actual)


def test_products_are_shared_out():
    assert_products_are_shared_out(attribute_growth)


@pytest.mark.parametrize("mutant", [left_rule, with_segments_ignored, made_to_sum_up])
def test_broken_copies_are_noticed(mutant):
    with pytest.raises(AssertionError):
        assert_products_are_shared_out(mutant)


def test_a_path_is_the_sum_of_its_steps_and_matters():
    """Two ways to the same end share the same change out differently: an account is of the path."""

    def log_sum(p: dict[str, Tensor]) -> Tensor:
        return (p["x"] * p["y"] + p["x"]).sum().log()

    start, end = {"x": tensor(1.0), "y": tensor(1.0)}, {"x": tensor(3.0), "y": tensor(4.0)}
    x_first, y_first = {"x": end["x"], "y": start["y"]}, {"x": start["x"], "y": end["y"]}
    one = attribute_growth(log_sum, [start, x_first, end], segments=50)
    other = attribute_growth(log_sum, [start, y_first, end], segments=50)
    assert one.actual == pytest.approx(other.actual) == pytest.approx(math.log(15 / 2))
    halves = [attribute_growth(log_sum, pair, segments=50) for pair in ([start, x_first], [x_first, end])]
    for name in start:
        assert one.contributions[name] == pytest.approx(sum(half.contributions[name] for half in halves))

    def joint(p: dict[str, Tensor]) -> Tensor:
        return (p["x"] * p["y"] + 1).sum().log()

    assert attribute_growth(joint, [start, x_first, end], segments=50).contributions != pytest.approx(
        attribute_growth(joint, [start, y_first, end], segments=50).contributions, rel=1e-2
    )


def test_groups_add_their_tensors_contributions():
    each = attribute_growth(product, [BEFORE, AFTER])
    grouped = attribute_growth(product, [BEFORE, AFTER], {"both": ["a", "b"], "rest": ["unused"]})
    assert grouped.contributions["both"] == pytest.approx(each.contributions["a"] + each.contributions["b"])
    assert grouped.actual == each.actual


def test_states_are_averaged_over_tokens_and_a_scalar_is_taken_as_it_is():
    def states(p: dict[str, Tensor]) -> Tensor:
        return torch.stack([p["a"], 10 * p["a"] * p["b"]])

    as_scalar = lambda p: states(p).norm(dim=-1).log().mean()  # noqa: E731
    one, other = attribute_growth(states, [BEFORE, AFTER]), attribute_growth(as_scalar, [BEFORE, AFTER])
    assert one == other
    value, gradient = log_norm_gradient(states, BEFORE)
    assert value.item() == pytest.approx((math.log(5**0.5) + math.log(20 * 5**0.5)) / 2)
    assert gradient["b"].item() == pytest.approx(0.25)
    assert not value.requires_grad


def test_degrees_are_the_exponents():
    assert norm_degrees(product, BEFORE) == pytest.approx({"a": 1.0, "b": 2.0, "unused": 0.0})


def test_a_gru_and_a_linear_recurrence():
    """A linear map looped K times has degree K in its weight; a GRU's state is bounded and has no such thing."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 6, bias=False, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)

    def looped(p: dict[str, Tensor]) -> Tensor:
        h = x
        for _ in range(4):
            h = torch.func.functional_call(linear, p, (h,))
        return h

    weight = {"weight": linear.weight.detach()}
    assert norm_degrees(looped, weight)["weight"] == pytest.approx(4.0)
    found = attribute_growth(looped, [weight, {"weight": 2 * weight["weight"]}], segments=64)
    assert found.contributions["weight"] == pytest.approx(4 * math.log(2), rel=1e-4)

    cell = nn.GRUCell(3, 6, dtype=torch.float64)
    p = {name: parameter.detach() for name, parameter in cell.named_parameters()}
    state = lambda p: torch.func.functional_call(cell, p, (torch.ones(3, 3, dtype=torch.float64), x))  # noqa: E731
    moved = {name: 1.01 * value for name, value in p.items()}
    found = attribute_growth(state, [p, moved])
    assert abs(found.error) < 1e-6 < abs(found.actual)
    assert sum(norm_degrees(state, p).values()) != pytest.approx(1.0, rel=1e-2)


def test_a_torch_prenorm_layer_and_the_packages_own_model():
    """Euler's constraint: writers' degrees sum to 1."""
    torch.manual_seed(0)
    options = dict(dim_feedforward=16, dropout=0.0, norm_first=True, batch_first=True, layer_norm_eps=0.0)
    layer = nn.TransformerEncoderLayer(8, 2, **options, dtype=torch.float64)
    p = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    p["h_0"] = torch.randn(2, 3, 8, dtype=torch.float64)

    def looped(p: dict[str, Tensor]) -> Tensor:
        h, own = p["h_0"], {name: value for name, value in p.items() if name != "h_0"}
        for _ in range(3):
            h = torch.func.functional_call(layer, own, (h,))
        return h

    degrees = norm_degrees(looped, p)
    writers = ["h_0", "self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"]
    assert sum(degrees[name] for name in writers) == pytest.approx(1.0, rel=1e-12)
    assert sum(degrees[name] for name in writers[:-2]) != pytest.approx(1.0, rel=1e-3)

    config = ModelConfig(d_model=12, num_layers=2, num_heads=3, vocab_size=17, context=10, norm_eps=0.0)
    model, tokens = LoopedLM(config).double(), torch.randint(17, (2, 7))
    q = {name: parameter.detach() for name, parameter in model.named_parameters()}
    degrees = norm_degrees(lambda p: torch.func.functional_call(model, p, (tokens,))[-1], q)
    writers = [n for n in q if n.endswith(("out.weight", "down.weight")) or n.startswith(("token_", "position_"))]
    assert sum(degrees[name] for name in writers) == pytest.approx(1.0, rel=1e-12)
    assert sum(degrees[name] for name in writers[1:]) != pytest.approx(1.0, rel=1e-3)


def test_parameters_are_left_as_they_were():
    p = {name: value.clone().requires_grad_() for name, value in BEFORE.items()}
    with torch.no_grad():
        attribute_growth(product, [p, AFTER])
    assert all(value.grad is None and value.requires_grad for value in p.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attribute_growth(product, [BEFORE]), "at least two parameter dictionaries, got 1"),
        (lambda: attribute_growth(product, [BEFORE, AFTER], segments=0), "segments must be at least 1, got 0"),
        (lambda: attribute_growth(product, [BEFORE, {"a": AFTER["a"]}]), "the same tensors, of the same shapes"),
        (lambda: attribute_growth(product, [BEFORE, {**AFTER, "a": tensor(1.0)}]), "of the same shapes"),
        (lambda: attribute_growth(product, [BEFORE, AFTER], {"one": ["a"]}), r"missing \['b', 'unused'\]"),
        (lambda: attribute_growth(product, [BEFORE, AFTER], {"x": ["a", "b", "unused", "c"]}), r"unknown \['c'\]"),
        (lambda: attribute_growth(product, [BEFORE, AFTER], {"x": [*BEFORE], "y": ["a"]}), "4 names for 3 tensors"),
        (lambda: log_norm_gradient(product, {}), "at least one tensor"),
        (lambda: log_norm_gradient(product, {"a": torch.ones(2, dtype=torch.int64)}), "'a' must be a floating-point"),
        (lambda: log_norm_gradient(lambda p: 0 * product(p), BEFORE), "states holds a zero state"),
        (lambda: log_norm_gradient(lambda p: p["b"].sum() * torch.nan, BEFORE), "must be finite, got nan"),
        (lambda: log_norm_gradient(lambda p: p["b"].sum() / 0.0, BEFORE), "the log norm must be finite, got -?inf"),
        (lambda: log_norm_gradient(lambda p: product(p).detach(), BEFORE), "does not depend on any parameter"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
