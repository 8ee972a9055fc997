"""The degree system and its numeric counterpart, on networks written here and on other people's."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.symmetry import (
    INVARIANT,
    ScalingDegree,
    added,
    conserved_quantity,
    euler_residual,
    measured_symmetries,
    rescaled,
    scaling_degree,
    scaling_symmetries,
)
from models import LoopedLM, ModelConfig, ReadoutConfig


def draws(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}


def gradients_of(loss, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return torch.func.grad(loss)(parameters)


# A linear network x W1 W2 + b, loss through a normalisation: degrees W1 + W2 = b.
LINEAR = draws(0, W1=(5, 4), W2=(4, 3), b=(3,))
DATA = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
EQUATIONS = added(scaling_degree("W1") + scaling_degree("W2"), scaling_degree("b"))


def linear_losses(p: dict[str, Tensor]) -> Tensor:
    y = F.normalize(DATA @ p["W1"] @ p["W2"] + p["b"], dim=-1)
    return -y.log_softmax(-1)[:, 0]


def test_degrees_add_scale_and_cancel():
    form = 2 * scaling_degree("x") + scaling_degree("y") - scaling_degree("x")
    assert form.coefficients == {"x": 1, "y": 1}
    assert (form - form).coefficients == {"x": 0, "y": 0}
    assert (INVARIANT + scaling_degree("x")).coefficients == {"x": 1}
    assert (Fraction(1, 2) * scaling_degree("x")).coefficients == {"x": Fraction(1, 2)}


@pytest.mark.parametrize(
    ("tensors", "equations", "dimension"),
    [
        ("ab", [], 2),
        ("ab", [scaling_degree("a")], 1),
        ("ab", [scaling_degree("a") + scaling_degree("b"), scaling_degree("a") - scaling_degree("b")], 0),
        ("ab", [scaling_degree("a") + scaling_degree("b"), 3 * scaling_degree("a") + 3 * scaling_degree("b")], 1),
        ("abc", added(scaling_degree("a"), scaling_degree("b"), scaling_degree("c")), 1),
        ("abc", [2 * scaling_degree("a") + scaling_degree("b")], 2),
        ("ab", [ScalingDegree({})], 2),
    ],
)
def test_null_spaces(tensors, equations, dimension):
    basis = scaling_symmetries(tuple(tensors), equations)
    assert len(basis) == dimension
    for symmetry in basis:
        assert set(symmetry) == set(tensors) and any(symmetry.values())
        for equation in equations:
            assert sum(value * symmetry[name] for name, value in equation.coefficients.items()) == 0


def test_a_null_vector_is_made_of_coprime_integers():
    (symmetry,) = scaling_symmetries(
        "xyz", [3 * scaling_degree("x") + 2 * scaling_degree("y"), scaling_degree("z") - scaling_degree("y")]
    )
    assert symmetry == {"x": -2, "y": 3, "z": 3}
    (symmetry,) = scaling_symmetries(
        "xy", [Fraction(2, 3) * scaling_degree("x") - Fraction(1, 2) * scaling_degree("y")]
    )
    assert symmetry == {"x": 3, "y": 4}


def assert_symmetries_of_the_linear_network(solve) -> None:
    basis = solve(list(LINEAR), EQUATIONS)
    assert len(basis) == 2
    gradients = gradients_of(lambda p: linear_losses(p).sum(), LINEAR)
    for symmetry in basis:
        torch.testing.assert_close(linear_losses(rescaled(LINEAR, symmetry, 3.0)), linear_losses(LINEAR))
        assert euler_residual(LINEAR, gradients, symmetry) < 1e-14


def with_the_sign_of_the_solution_lost(tensors, equations):
    return [{name: abs(value) for name, value in s.items()} for s in scaling_symmetries(tensors, equations)]


def with_an_equation_lost(tensors, equations):
    return scaling_symmetries(tensors, list(equations)[1:])


def test_symmetries_of_the_linear_network():
    assert_symmetries_of_the_linear_network(scaling_symmetries)


@pytest.mark.parametrize("mutant", [with_the_sign_of_the_solution_lost, with_an_equation_lost])
def test_broken_solvers_are_noticed(mutant):
    with pytest.raises(AssertionError):
        assert_symmetries_of_the_linear_network(mutant)


def test_the_conserved_quantity_is_conserved_by_small_steps_and_others_are_not():
    symmetry, p = {"W1": 1, "W2": -1}, dict(LINEAR)
    start, other = conserved_quantity(p, symmetry), conserved_quantity(p, {"W1": 1})
    for _ in range(200):
        slopes = gradients_of(lambda p: linear_losses(p).mean(), p)
        p = {name: tensor - 1e-3 * slopes[name] for name, tensor in p.items()}
    drift, moved = conserved_quantity(p, symmetry) - start, conserved_quantity(p, {"W1": 1}) - other
    assert abs(moved) > 1e-2
    assert abs(drift) < 1e-2 * abs(moved)  # of second order in the step


def assert_euler(residual) -> None:
    gradients = gradients_of(lambda p: linear_losses(p).sum(), LINEAR)
    assert residual(LINEAR, gradients, {"W1": 1, "W2": -1}) < 1e-14
    assert residual(LINEAR, gradients, {"W1": 2, "W2": -1, "b": 1}) < 1e-14
    assert residual(LINEAR, gradients, {"W1": 1, "W2": 1}) > 1e-3
    x = {"x": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    assert residual(x, x, {"x": -2}) == pytest.approx(1.0)
    tiny = {"x": 1e-200 * x["x"]}
    assert residual(tiny, tiny, {"x": 1}) == pytest.approx(1.0)


def test_euler_residual():
    assert_euler(euler_residual)


def without_degrees(parameters, gradients, symmetry):
    return euler_residual(parameters, gradients, dict.fromkeys(symmetry, 1))


def not_normalised(parameters, gradients, symmetry):
    return abs(sum(d * (parameters[n] * gradients[n]).sum().item() for n, d in symmetry.items()))


@pytest.mark.parametrize("mutant", [without_degrees, not_normalised])
def test_broken_residuals_are_noticed(mutant):
    with pytest.raises(AssertionError):
        assert_euler(mutant)


def test_no_gradient_is_nan_and_not_a_pass():
    x = {"x": torch.ones(3)}
    assert math.isnan(euler_residual(x, {"x": torch.zeros(3)}, {"x": 1}))


def assert_count(measure) -> None:
    found = measure(linear_losses, LINEAR)
    assert found.dimension == 2
    assert found.smallest_visible > 1e-2 > 1e-13 > found.largest_blind
    assert found.degrees.shape == (2, 3)
    torch.testing.assert_close(found.degrees @ found.degrees.T, torch.eye(2, dtype=torch.float64))
    for row in found.degrees:  # W1 + W2 = b
        assert abs(row[0] + row[1] - row[2]) < 1e-12
    # Tensors of very unequal size: neither count nor degrees depend on the unit of a tensor.
    uneven = {"W1": 1e-6 * LINEAR["W1"], "W2": 1e6 * LINEAR["W2"], "b": LINEAR["b"]}
    found = measure(linear_losses, uneven)
    assert found.dimension == 2 and found.tensors == ("W1", "W2", "b")
    # Without the normalisation one of them is lost: only W1 against W2, at fixed b.
    raw = lambda p: -(DATA @ p["W1"] @ p["W2"] + p["b"]).log_softmax(-1)[:, 0]  # noqa: E731
    found = measure(raw, LINEAR)
    assert found.dimension == 1
    torch.testing.assert_close(found.degrees.abs(), torch.tensor([[0.5**0.5, 0.5**0.5, 0.0]], dtype=torch.float64))


def with_one_batch_repeated(losses, parameters):
    return measured_symmetries(lambda p: losses(p)[0] * torch.ones(12, dtype=torch.float64), parameters)


def with_every_singular_value_visible(losses, parameters):
    return measured_symmetries(losses, parameters, tolerance=0.0)


def with_rounding_for_null_space(losses, parameters):
    return measured_symmetries(losses, parameters, tolerance=1.0)


def test_measured_symmetries():
    assert_count(measured_symmetries)


class LooksAtItsGradient(torch.autograd.Function):
    """The identity; its backward pass asks for a value, which vmap has not."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient if math.isfinite(gradient.sum().item()) else 0.0 * gradient


def test_a_backward_pass_that_vmap_cannot_take_is_counted_the_same():
    found = measured_symmetries(lambda p: linear_losses(p | {"W1": LooksAtItsGradient.apply(p["W1"])}), LINEAR)
    expected = measured_symmetries(linear_losses, LINEAR)
    assert found.dimension == expected.dimension
    torch.testing.assert_close(found.singular_values, expected.singular_values, rtol=1e-12, atol=1e-14)


def test_a_batch_that_moves_nothing_takes_nothing_away():
    found = measured_symmetries(lambda p: torch.cat([linear_losses(p), 0.0 * linear_losses(p)[:1]]), LINEAR)
    assert found.dimension == measured_symmetries(linear_losses, LINEAR).dimension == 2


@pytest.mark.parametrize(
    "mutant", [with_one_batch_repeated, with_every_singular_value_visible, with_rounding_for_null_space]
)
def test_broken_counts_are_noticed(mutant):
    with pytest.raises(AssertionError):
        assert_count(mutant)


def test_a_torch_prenorm_layers_norm_weights_trade_with_its_input_maps():
    """LayerNorm's gain against the MLP's first map: a symmetry only where the norm's bias moves too."""
    torch.manual_seed(0)
    options = dict(dim_feedforward=16, dropout=0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    layer = nn.TransformerEncoderLayer(8, 2, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    p = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(p: dict[str, Tensor]) -> Tensor:
        h = x
        for _ in range(2):
            h = torch.func.functional_call(layer, p, (h,))
        return F.layer_norm(h, (8,)).square().mul(torch.arange(8)).sin().sum()

    gradients = gradients_of(loss, p)
    trade = {"norm2.weight": 1, "norm2.bias": 1, "linear1.weight": -1}
    assert euler_residual(p, gradients, trade) < 1e-13
    # ReLU has degree 1, so that the hidden layer trades with the output map.
    assert euler_residual(p, gradients, {"linear1.weight": 1, "linear1.bias": 1, "linear2.weight": -1}) < 1e-13
    del trade["norm2.bias"]
    assert euler_residual(p, gradients, trade) > 1e-4


class Exits(nn.Module):
    """Logits after every loop of a model, so that `functional_call` reaches its readout too."""

    def __init__(self, model: LoopedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.stack([self.model.readout(h) for h in self.model(tokens)[1:]])


@pytest.mark.parametrize(("tied", "compensation"), [(True, {"model.readout_features.norm.gain": -1}), (False, {})])
def test_the_writers_of_the_packages_own_model(tied, compensation):
    torch.manual_seed(0)
    sizes = dict(d_model=12, num_layers=2, num_heads=3, vocab_size=17, context=10)
    exits = Exits(LoopedLM(ModelConfig(**sizes, norm_eps=0.0, readout=ReadoutConfig(tied=tied))).double())
    p = {name: parameter.detach() for name, parameter in exits.named_parameters()}
    tokens = torch.randint(17, (2, 7), generator=torch.Generator().manual_seed(1))

    def loss(p: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(exits, p, (tokens,))[:, :, :-1]
        return F.cross_entropy(logits.flatten(0, 2), tokens[:, 1:].repeat(4, 1).flatten())

    writing = ("token_embedding.weight", "position_embedding.weight", "out.weight", "down.weight")
    writers = dict.fromkeys((name for name in p if name.endswith(writing)), 1)
    assert len(writers) == 6
    gradients, gauge = gradients_of(loss, p), writers | compensation
    assert euler_residual(p, gradients, gauge) < 1e-14
    assert torch.equal(loss(rescaled(p, gauge, 2.0**5)), loss(p))  # a power of two: not one bit differs
    for broken in (gauge | {"model.sublayers.0.branch.qkv.weight": 1}, {**gauge, "model.token_embedding.weight": 0}):
        assert euler_residual(p, gradients, broken) > 1e-4
    if tied:
        assert euler_residual(p, gradients, writers) > 1e-3


def test_a_linear_recurrence_behind_a_raw_loss_has_no_scaling_symmetry():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    p = draws(1, A=(4, 4))
    found = measured_symmetries(lambda p: (x @ p["A"] @ p["A"]).square().sum(-1), p)
    assert found.dimension == 0 and found.largest_blind == 0.0


GOOD = {"x": torch.ones(2, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaling_symmetries(["a", "a"], []), "listed twice"),
        (lambda: scaling_symmetries(["a"], [scaling_degree("b")]), r"speaks of the tensors \['b'\]"),
        (lambda: rescaled(GOOD, {"y": 1}, 2.0), r"but \['y'\] is named"),
        (lambda: rescaled(GOOD, {"x": 1}, 0.0), "factor must be positive and finite, got 0.0"),
        (lambda: conserved_quantity(GOOD, {}), "but none is named"),
        (lambda: euler_residual(GOOD, {}, {"x": 1}), r"but \['x'\] is named"),
        (lambda: euler_residual(GOOD, {"x": torch.ones(3)}, {"x": 1}), r"its shape \(2,\), got \(3,\)"),
        (lambda: euler_residual(GOOD, GOOD, {"x": 0}), "all degrees are zero"),
        (lambda: measured_symmetries(lambda p: p["x"], {"x": torch.ones(2)}), "'x' must be float64, got torch.float32"),
        (lambda: measured_symmetries(lambda p: p["x"].sum(), GOOD), r"as many losses .* 1, got shape \(\)"),
        (lambda: measured_symmetries(lambda p: p["x"][:0], GOOD), r"got shape \(0,\)"),
        (lambda: measured_symmetries(lambda p: p["x"] / 0, GOOD), "a loss is NaN or infinite"),
        (lambda: measured_symmetries(lambda p: torch.ones(2) + 0 * p["x"], GOOD), "'x' is zero or has no gradient"),
        (lambda: measured_symmetries(lambda p: p["x"].detach(), GOOD), "'x' is zero or has no gradient"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("normalised", [("a", "b"), ("a",)])
def test_tensors_that_are_all_blind_in_their_scale_are_counted(normalised):
    """Then the largest singular value is rounding as well."""
    p = draws(0, a=(5, 5), b=(5, 5))
    inputs = draws(1, x=(9, 5))["x"]

    def losses(p: dict[str, Tensor]) -> Tensor:
        a, b = (p[n] / p[n].norm() if n in normalised else p[n] for n in ("a", "b"))
        return (torch.tanh(inputs @ a) @ b).square().sum(-1)

    found = measured_symmetries(losses, p)
    assert found.dimension == len(normalised)
    assert found.smallest_visible > 0.1 and math.isinf(found.smallest_visible) == (len(normalised) == 2)
    assert found.degrees.shape == (len(normalised), 2) and found.largest_blind < 1e-14


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float16, 100.0), (torch.float32, 1e25), (torch.float32, 1e-25)])
def test_a_residual_does_not_overflow_its_gradients_format(dtype, factor):
    """Negative control of the identity: a gradient along the weights, whose squares the format cannot hold."""
    w = draws(0, w=(1000, 1000))["w"]
    gradient = (factor * (w + draws(1, w=(1000, 1000))["w"])).to(dtype)
    assert euler_residual({"w": w.to(dtype)}, {"w": gradient}, {"w": 1}) == pytest.approx(2**-0.5, abs=1e-3)
