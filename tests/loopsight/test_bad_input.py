"""Every public function refuses bad input with a ValueError that says what was expected; a new one needs an entry."""

import importlib
import inspect
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from torch import Tensor

from loopsight.attribution import attribute_growth, log_norm_gradient, norm_degrees
from loopsight.blind import blind_subspace
from loopsight.common_vector import common_derivative, common_fraction, common_vector
from loopsight.deferred import deferred_identity
from loopsight.derivatives import directional_derivative, pullback
from loopsight.gramian import gramian_extremes
from loopsight.growth import asymptotic_slope, asymptotic_step, regime_number
from loopsight.increments import increment, loop_growth, second_order_step
from loopsight.invariance import invariance
from loopsight.observability import activity, deferred_visibility, drive, visibility
from loopsight.optimiser_laws import (
    adam_step_bound,
    equilibrium_angle,
    equilibrium_norm,
    heavy_ball_square_norms,
    norm_change,
    sgd_square_norm,
)
from loopsight.precision import low_precision_run, predicted_freeze, significand_bits
from loopsight.protocol import unroll
from loopsight.radial import degree, epsilon_leak, in_float64, radial_derivative, radial_gradient_fraction
from loopsight.symmetry import (
    added,
    conserved_quantity,
    euler_residual,
    measured_symmetries,
    rescaled,
    scaling_degree,
    scaling_symmetries,
)

MODULES = (
    "attribution", "blind", "common_vector", "deferred", "derivatives", "gramian", "growth", "increments", "invariance",
    "observability", "optimiser_laws", "precision", "protocol", "radial", "symmetry",
)  # fmt: skip
NOT_FOR_INPUT = {
    "mean_random_change",
    "fraction_along",
    "rms_over_tokens",
    "widest",
}  # of tensors checked by their callers
NOT_FOR_INPUT |= {"differentiable_kernels", "forward_mode", "require_adjoint", "require_double_states"}
NOT_FOR_INPUT |= {"require_double_value", "scaling_degree"}  # checks themselves; a name, which may be any
NOT_FOR_INPUT |= {"for_each"}  # of functions and rows that its callers made

STATES = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ON = {"w": torch.ones(3, dtype=torch.float64), "v": torch.ones(2, dtype=torch.float64)}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def step(h: Tensor) -> Tensor:
    return h + torch.tanh(h / h.square().mean(-1, keepdim=True).sqrt())


def readout(h: Tensor) -> Tensor:
    return h @ HEAD.T


def loss(h: Tensor) -> Tensor:
    return readout(h).logsumexp(-1).sum()


def states_of(h: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """A function of parameters that gives these states, integers unpromoted."""
    return lambda p: h + 0.0 * p["w"].sum() if h.is_floating_point() else h


OF_STATES = {
    radial_gradient_fraction: lambda h: radial_gradient_fraction(loss, h),
    radial_derivative: lambda h: radial_derivative(readout, h),
    degree: lambda h: degree(readout, h),
    epsilon_leak: lambda h: epsilon_leak(h, 1e-3),
    common_vector: common_vector,
    common_fraction: common_fraction,
    common_derivative: lambda h: common_derivative(STATES, h),
    blind_subspace: lambda h: blind_subspace(readout, h),
    invariance: lambda h: invariance(loss, h, generator=generator()),
    visibility: lambda h: visibility(readout, h, STATES, generator=generator()),
    deferred_visibility: lambda h: deferred_visibility(step, readout, h, STATES, (0.0, 1.0), generator=generator()),
    activity: lambda h: activity(step, h, STATES),
    drive: lambda h: drive(step, h),
    gramian_extremes: lambda h: gramian_extremes(step, readout, h, (0.0, 1.0), generator=generator()),
    deferred_identity: lambda h: deferred_identity([step], [None, loss], h),
    asymptotic_step: lambda h: asymptotic_step(step, h),
    asymptotic_slope: lambda h: asymptotic_slope(step, h),
    regime_number: lambda h: regime_number(step, h),
    increment: lambda h: increment(h, STATES),
    loop_growth: lambda h: loop_growth([STATES, h]),
    second_order_step: lambda h: second_order_step([step], h),
    predicted_freeze: lambda h: predicted_freeze(h, STATES, torch.bfloat16),
    low_precision_run: lambda h: low_precision_run([step], h, torch.bfloat16, 2),
    directional_derivative: lambda h: directional_derivative(readout, h, STATES),
    pullback: lambda h: pullback(readout, h),
    log_norm_gradient: lambda h: log_norm_gradient(states_of(h), ON),
    norm_degrees: lambda h: norm_degrees(states_of(h), ON),
    attribute_growth: lambda h: attribute_growth(states_of(h), [ON, ON]),
}
BAD_STATES = {
    "integer": torch.ones(3, 4, dtype=torch.int64),
    "NaN": STATES * torch.nan,
    "infinite": STATES * torch.inf,
    "zero": STATES * torch.tensor([[1.0], [0.0], [1.0]]),
    "empty": torch.ones(0, 4, dtype=torch.float64),
    "another shape": torch.ones(2, 5, dtype=torch.float64),
}
ANY_SHAPE = {  # of these the states' shape is the caller's own
    epsilon_leak, drive, asymptotic_step, asymptotic_slope, regime_number, second_order_step, low_precision_run,
    deferred_identity, blind_subspace, radial_derivative, radial_gradient_fraction, degree, gramian_extremes, pullback,
    common_vector, common_fraction,
    log_norm_gradient, norm_degrees, attribute_growth, invariance,
}  # fmt: skip
COMPLAINTS = r"must|needs|holds|do not|does not|is no|cannot"


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Without jaxtyping, which would refuse integers and shapes first: users do not have its checks switched on."""
    jaxtyping.config.update("jaxtyping_disable", "1")
    yield
    jaxtyping.config.update("jaxtyping_disable", "0")


@pytest.mark.parametrize("kind", BAD_STATES)
@pytest.mark.parametrize("function", OF_STATES, ids=lambda function: function.__name__)
def test_bad_states_are_refused(function, kind):
    if kind == "another shape" and function in ANY_SHAPE:
        pytest.skip("any shape will do")
    with pytest.raises(ValueError, match=COMPLAINTS):
        OF_STATES[function](BAD_STATES[kind])


@pytest.mark.parametrize("function", OF_STATES, ids=lambda function: function.__name__)
def test_good_states_are_not(function):
    OF_STATES[function](STATES)


OF_CALLABLES = {
    radial_gradient_fraction: lambda f: radial_gradient_fraction(f, STATES),
    radial_derivative: lambda f: radial_derivative(f, STATES),
    degree: lambda f: degree(f, STATES),
    blind_subspace: lambda f: blind_subspace(f, STATES),
    invariance: lambda f: invariance(f, STATES, generator=generator()),
    visibility: lambda f: visibility(f, STATES, STATES, generator=generator()),
    deferred_visibility: lambda f: deferred_visibility(f, readout, STATES, STATES, (0.0, 1.0), generator=generator()),
    activity: lambda f: activity(f, STATES, STATES),
    drive: lambda f: drive(f, STATES),
    gramian_extremes: lambda f: gramian_extremes(f, readout, STATES, (0.0, 1.0), generator=generator()),
    deferred_identity: lambda f: deferred_identity([f], [None, loss], STATES),
    asymptotic_step: lambda f: asymptotic_step(f, STATES),
    asymptotic_slope: lambda f: asymptotic_slope(f, STATES),
    regime_number: lambda f: regime_number(f, STATES),
    second_order_step: lambda f: second_order_step([f], STATES),
    low_precision_run: lambda f: low_precision_run([f], STATES, torch.bfloat16, 2),
    directional_derivative: lambda f: directional_derivative(f, STATES, STATES),
    pullback: lambda f: pullback(f, STATES),
    log_norm_gradient: lambda f: log_norm_gradient(lambda p: f(p["w"]), ON),
    norm_degrees: lambda f: norm_degrees(lambda p: f(p["w"]), ON),
    attribute_growth: lambda f: attribute_growth(lambda p: f(p["w"]), [ON, ON]),
    measured_symmetries: lambda f: measured_symmetries(lambda p: f(p["w"]), ON),
}


@pytest.mark.parametrize("function", OF_CALLABLES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("wrong", [lambda h: 1.0, lambda h: h.long()], ids=["no tensor", "integers"])
def test_callables_that_return_no_floating_tensor_are_refused(function, wrong):
    with pytest.raises(ValueError, match="must"):
        OF_CALLABLES[function](wrong)


DIFFERENTIATED = [
    f for f in OF_CALLABLES
    if f not in (invariance, drive, asymptotic_step, asymptotic_slope, regime_number, low_precision_run)
]  # fmt: skip
DIFFERENTIATED.remove(pullback)  # its caller checks, by `require_adjoint`
DIFFERENTIATED.remove(degree)  # it shows the true degree beside the derivative's


@pytest.mark.parametrize("function", DIFFERENTIATED, ids=lambda function: function.__name__)
def test_callables_that_hide_their_derivative_are_refused(function):
    def hidden(h: Tensor) -> Tensor:
        return (3.0 * torch.tanh(h) + h.sum()).detach()

    scalar = function in (radial_gradient_fraction,)
    with pytest.raises(ValueError, match="not|hides|no |expected"):
        OF_CALLABLES[function]((lambda h: hidden(h).sum()) if scalar else hidden)


NAN, INT = {"w": ON["w"] * torch.nan}, {"w": torch.ones(3, dtype=torch.int64)}
OTHERS = {
    common_derivative: [
        lambda: common_derivative(STATES * torch.nan, STATES),
        lambda: common_derivative(STATES.long(), STATES),
        lambda: common_derivative(STATES[:1], STATES),
    ],
    norm_change: [lambda: norm_change(NAN, {"w": ON["w"]}), lambda: norm_change(INT, INT), lambda: norm_change({}, {})],
    sgd_square_norm: [lambda: sgd_square_norm(float("nan"), 1.0, lr=0.1), lambda: sgd_square_norm(1.0, -1.0, lr=0.1)],
    heavy_ball_square_norms: [
        lambda: heavy_ball_square_norms(1.0, [float("nan")], lr=0.1, momentum=0.9),
        lambda: heavy_ball_square_norms(-1.0, [1.0], lr=0.1, momentum=0.9),
        lambda: heavy_ball_square_norms(1.0, [1.0], lr=0.1, momentum=1.0),
    ],
    equilibrium_norm: [
        lambda: equilibrium_norm(1.0, lr=0.1, wd=0.0),
        lambda: equilibrium_norm(float("nan"), lr=0.1, wd=0.1),
    ],
    equilibrium_angle: [lambda: equilibrium_angle(lr=1.0, wd=2.0), lambda: equilibrium_angle(lr=float("nan"), wd=1.0)],
    adam_step_bound: [lambda: adam_step_bound(1.0, 0.9), lambda: adam_step_bound(0.9, 0.99, step=0)],
    significand_bits: [lambda: significand_bits(torch.int8), lambda: significand_bits("bfloat16")],
    in_float64: [lambda: in_float64(torch.ones(3)).__enter__()],
    added: [added],
    scaling_symmetries: [
        lambda: scaling_symmetries(["a", "a"], []),
        lambda: scaling_symmetries(["a"], [scaling_degree("b")]),
    ],
    rescaled: [
        lambda: rescaled(INT, {"w": 1}, 2.0),
        lambda: rescaled(NAN, {"w": 1}, 2.0),
        lambda: rescaled(ON, {"w": 1}, float("nan")),
        lambda: rescaled(ON, {"u": 1}, 2.0),
    ],
    conserved_quantity: [
        lambda: conserved_quantity(ON, {}),
        lambda: conserved_quantity(INT, {"w": 1}),
        lambda: conserved_quantity(NAN, {"w": 1}),
    ],
    euler_residual: [
        lambda: euler_residual(ON, {"w": torch.ones(2).double()}, {"w": 1}),
        lambda: euler_residual(ON, NAN, {"w": 1}),
        lambda: euler_residual(INT, INT, {"w": 1}),
        lambda: euler_residual(ON, ON, {"w": 0}),
    ],
    unroll: [lambda: unroll(step, STATES, -1), lambda: unroll(lambda h: h[:1], STATES, 1)],
    regime_number: [lambda: regime_number(step, STATES, factor=float("nan"))],
    epsilon_leak: [lambda: epsilon_leak(STATES, float("nan")), lambda: epsilon_leak(STATES, 1.0, "no such form")],
    degree: [lambda: degree(lambda h: h.sum(), STATES)],
    log_norm_gradient: [lambda: log_norm_gradient(loss, {}), lambda: log_norm_gradient(lambda p: p["w"], INT)],
    attribute_growth: [lambda: attribute_growth(lambda p: p["w"], [ON]), lambda: attribute_growth(loss, [NAN, NAN])],
    measured_symmetries: [lambda: measured_symmetries(lambda p: p["w"], NAN)],
}


@pytest.mark.parametrize(
    "call", [pytest.param(call, id=f"{f.__name__}-{n}") for f, calls in OTHERS.items() for n, call in enumerate(calls)]
)
def test_other_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"^.{15,}\.$"):  # one whole sentence
        call()


def public_functions() -> set[str]:
    found = set()
    for name in MODULES:
        module = importlib.import_module(f"loopsight.{name}")
        functions = inspect.getmembers(module, inspect.isfunction)
        found |= {n for n, f in functions if f.__module__ == module.__name__ and not n.startswith("_")}
    return found


def test_every_public_function_has_an_entry():
    covered = {function.__name__ for table in (OF_STATES, OF_CALLABLES, OTHERS) for function in table}
    assert public_functions() - NOT_FOR_INPUT == covered


def test_every_module_of_instruments_is_looked_at():
    """The package's docstring lists its modules: one that is listed and has tensors to refuse belongs to MODULES."""
    import loopsight

    listed = {line.split()[0] for line in (loopsight.__doc__ or "").splitlines() if line.startswith("    ")}
    assert set(MODULES) - {"derivatives"} <= listed
