"""Lemma 2's exact forms, second-order term and K-loop sandwich: known answers, foreign models, broken copies."""

from dataclasses import replace
from inspect import unwrap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopsight.derivatives import differentiable_kernels
from loopsight.growth import regime_number
from loopsight.increments import Increment, SecondOrderStep, increment, loop_growth, second_order_step
from loopsight.observability import drive
from loopsight.protocol import unroll
from models.config import ModelConfig
from models.looped_lm import LoopedLM

D = 12
MATRICES = torch.randn(3, D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) / D**0.5


def prenorm(matrix: Tensor):
    return lambda h: h + torch.tanh(3 * F.normalize(h, dim=-1) @ matrix.T)


SUBLAYERS = [prenorm(matrix) for matrix in MATRICES]


def looped(sublayers, h: Tensor) -> Tensor:
    for sublayer in sublayers:
        h = sublayer(h)
    return h


def linear(h: Tensor) -> Tensor:
    return h + h @ MATRICES[0].T


# Lemma 2, exact for any map.


def test_a_right_angled_step_by_hand():
    step = increment(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    assert (step.l2_norm.item(), step.radial_part.item(), step.perpendicular_part.item()) == (3.0, 0.0, 4.0)
    assert step.next_l2_norm.item() == pytest.approx(5.0)
    assert step.angle.cos().item() == pytest.approx(0.6)
    assert step.direction_change.item() == pytest.approx((0.4**2 + 0.8**2) ** 0.5)
    low, high = step.excess_bounds
    assert 3.0 * (16 / 18 - (16 / 9) ** 2 / 8) == pytest.approx(low.item()) and high.item() == pytest.approx(16 / 6)
    assert step.direction_bound.item() == pytest.approx(4 / 3)


def assert_increments_are_exact(measure, h: Tensor) -> None:
    """On a recurrence with attention to nothing, one that is linear, and a GRU cell: no hypothesis is needed."""
    torch.manual_seed(0)
    cell = nn.GRUCell(D, D, dtype=torch.float64).requires_grad_(False)
    for step in (SUBLAYERS[0], linear, lambda h: cell(torch.ones_like(h), h), lambda h: -0.5 * h + 1.0):
        after = step(h)
        measured = measure(h, after)
        torch.testing.assert_close(measured.next_l2_norm, after.norm(dim=-1), rtol=1e-12, atol=0)
        turned = (F.normalize(after, dim=-1) - F.normalize(h, dim=-1)).norm(dim=-1)
        torch.testing.assert_close(measured.direction_change, turned, rtol=1e-12, atol=1e-14)
        low, high = measured.excess_bounds
        assert not (after.norm(dim=-1) - measured.carried < low - 1e-12).any()
        assert not (after.norm(dim=-1) - measured.carried > high + 1e-12).any()
        assert not (turned > measured.direction_bound + 1e-12).any()


def test_increments_are_exact_for_any_map(h):
    assert_increments_are_exact(increment, h)


def in_root_mean_square_units(h: Tensor, after: Tensor) -> Increment:
    """s and u by root mean square, a by a plain sum: a published script's mistake, off by sqrt d."""
    rms = h.square().mean(-1).sqrt()
    u, b = h / rms[..., None], after - h
    a = (u * b).sum(-1)
    return Increment(l2_norm=rms, radial_part=a, perpendicular_part=(b - a[..., None] * u / D).norm(dim=-1))


def with_the_whole_displacement_as_perpendicular(h: Tensor, after: Tensor) -> Increment:
    return replace(increment(h, after), perpendicular_part=(after - h).norm(dim=-1))


def projected_on_the_next_direction(h: Tensor, after: Tensor) -> Increment:
    u = F.normalize(after, dim=-1)
    a = (u * (after - h)).sum(-1)
    rest = (after - h - a[..., None] * u).norm(dim=-1)
    return Increment(l2_norm=h.norm(dim=-1), radial_part=a, perpendicular_part=rest)


@pytest.mark.parametrize(
    "mutant",
    [in_root_mean_square_units, with_the_whole_displacement_as_perpendicular, projected_on_the_next_direction],
)
def test_broken_increments_are_not(h, mutant):
    with pytest.raises(AssertionError):
        assert_increments_are_exact(mutant, h)


def test_a_state_that_is_turned_back_has_no_bounds(h):
    step = increment(h, -0.5 * h)
    torch.testing.assert_close(step.next_l2_norm, 0.5 * h.norm(dim=-1))
    assert step.direction_bound.isnan().all() and step.excess_bounds[0].isnan().all()


def test_a_state_that_is_moved_to_zero_has_no_bounds():
    step = increment(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
    assert step.carried.isnan().item() and step.direction_bound.isnan().item()
    assert all(bound.isnan().item() for bound in step.excess_bounds)
    assert step.next_l2_norm.item() == 3.0


def test_a_step_far_across_the_state_is_bounded_below_by_what_is_carried():
    low, high = increment(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 3.0]])).excess_bounds
    assert (low.item(), high.item()) == (0.0, 4.5)


# K loops.


def assert_growth_is_bounded_and_split(measure, states: list[Tensor]) -> None:
    growth = measure(states)
    norms = torch.stack([h.norm(dim=-1) for h in states])
    torch.testing.assert_close(growth.l2_norm, norms)
    assert (growth.lower <= norms + 1e-12).all() and (norms <= growth.upper + 1e-12).all()
    squares = norms[0].square() + growth.coherent + growth.incoherent
    torch.testing.assert_close(squares, norms.square(), rtol=1e-12, atol=0)


@pytest.fixture(scope="module")
def states() -> list[Tensor]:
    h = 5.0 * F.normalize(torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), dim=-1)
    return list(unroll(lambda h: looped(SUBLAYERS, h), h, 6))


def test_growth_over_loops_is_bounded_and_split(states):
    assert_growth_is_bounded_and_split(loop_growth, states)
    growth = loop_growth(states)
    assert growth.l2_norm.shape == (7, 4)
    assert (growth.upper - growth.lower)[0].abs().max() == 0.0


def with_lengths_of_the_displacement(states):
    """The whole of b counted as growth, not its part along the state."""
    lengths = [torch.zeros(4).double(), *((b - a).norm(dim=-1) for a, b in zip(states[:-1], states[1:], strict=True))]
    return replace(loop_growth(states), lower=states[0].norm(dim=-1) + torch.stack(lengths).cumsum(0))


def without_perpendicular_parts(states):
    growth = loop_growth(states)
    return replace(growth, upper=growth.lower)


def without_squares_of_the_displacement(states):
    growth = loop_growth(states)
    return replace(growth, incoherent=0.0 * growth.incoherent)


@pytest.mark.parametrize(
    "mutant", [with_lengths_of_the_displacement, without_perpendicular_parts, without_squares_of_the_displacement]
)
def test_broken_growth_is_not(states, mutant):
    with pytest.raises(AssertionError):
        assert_growth_is_bounded_and_split(mutant, states)


def test_one_direction_grows_coherently_and_fresh_signs_do_not(h):
    u = F.normalize(h, dim=-1)
    ballistic = loop_growth([k * u for k in range(1, 12)])
    torch.testing.assert_close(ballistic.coherent[-1] / ballistic.incoherent[-1], torch.full((7,), 11.0).double())
    sideways = torch.eye(D, dtype=torch.float64)  # one new axis a loop: nothing along the state so far
    diffusive = loop_growth(list(sideways.cumsum(0)[:, None]))
    assert diffusive.coherent.abs().max() < 1e-14
    assert diffusive.incoherent[-1].item() == pytest.approx(D - 1)


def test_the_bounds_end_where_a_state_is_turned_back(h):
    growth = loop_growth([h, 2 * h, -h, -2 * h])
    assert growth.lower[:2].isfinite().all() and growth.lower[2:].isnan().all()
    torch.testing.assert_close(
        growth.l2_norm[3].square(), h.norm(dim=-1).square() + (growth.coherent + growth.incoherent)[3]
    )


# The second-order term.


def errors_of_the_predicted_increment(measure, sublayers, u: Tensor, scales: tuple[float, ...]) -> Tensor:
    errors = []
    for scale in scales:
        h = scale * u
        gained = looped(sublayers, h).norm(dim=-1) - h.norm(dim=-1)
        errors.append((measure(sublayers, h).radial_increment(h) - gained).abs().max())
    return torch.stack(errors)


def assert_second_order(measure, sublayers, u: Tensor) -> None:
    """A hundred times the scale, a ten-thousandth of the error; without c or weighted wrongly it is a hundredth."""
    near, far = errors_of_the_predicted_increment(measure, sublayers, u, (1e2, 1e4))
    assert near < 0.2
    assert far < 2e-4 * near


@pytest.fixture(scope="module")
def unequal() -> Tensor:
    """Tokens whose scales differ fivefold."""
    u = F.normalize(torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-1)
    return u * torch.linspace(1.0, 5.0, 5, dtype=torch.float64)[:, None]


def attending(h: Tensor) -> Tensor:
    """Tokens see each other: causal attention without projections."""
    x = F.normalize(h, dim=-1)
    return h + F.scaled_dot_product_attention(3 * x, 3 * x, x @ MATRICES[2].T, is_causal=True)


def test_increments_are_predicted_to_second_order(unequal):
    assert_second_order(second_order_step, SUBLAYERS, unequal)
    assert_second_order(second_order_step, [SUBLAYERS[0], attending, SUBLAYERS[1]], unequal)


def without_the_correction(sublayers, h: Tensor) -> SecondOrderStep:
    """Lemma 2's beta^2 / 2s alone, right for one sublayer only."""
    step = second_order_step(sublayers, h)
    return replace(step, correction=torch.zeros_like(h))


def from_the_last_branch_only(sublayers, h: Tensor) -> SecondOrderStep:
    """Each branch is moved by its predecessor, not by all before it."""
    c, before = torch.zeros_like(h), torch.zeros_like(h)
    for sublayer in sublayers:
        with differentiable_kernels():
            out, tangent = torch.func.jvp(sublayer, (1e6 * h,), (1e6 * before,))
        c, before = c + tangent - 1e6 * before, out - 1e6 * h
    return replace(second_order_step(sublayers, h), correction=c)


@pytest.mark.parametrize("mutant", [without_the_correction, from_the_last_branch_only])
def test_without_the_right_correction_they_are_not(unequal, mutant):
    with pytest.raises(AssertionError):
        assert_second_order(mutant, SUBLAYERS, unequal)


def with_one_scale_for_all_tokens(sublayers, h: Tensor) -> SecondOrderStep:
    """Db taken at directions and divided by the token's own scale afterwards: wrong where tokens see each other."""
    s = h.norm(dim=-1, keepdim=True)
    step = second_order_step(sublayers, h / s)
    return replace(step, correction=step.correction / s)


def test_tokens_of_unequal_scale_need_their_own_weights(unequal):
    sublayers = [SUBLAYERS[0], attending]
    with pytest.raises(AssertionError):
        assert_second_order(with_one_scale_for_all_tokens, sublayers, unequal)
    # With equal scales it is the same thing.
    assert_second_order(with_one_scale_for_all_tokens, sublayers, F.normalize(unequal, dim=-1))


def test_the_first_order_alone_is_a_hundred_times_better_at_a_hundred_times_the_scale(unequal):
    def first_order(sublayers, h):
        step = second_order_step(sublayers, h)
        a = step.first_order_increment(h)
        return SecondOrderStep(
            displacement=(a / h.square().sum(-1))[..., None] * 0 + a[..., None] * F.normalize(h, dim=-1),
            correction=torch.zeros_like(h),
        )

    near, far = errors_of_the_predicted_increment(first_order, SUBLAYERS, unequal, (1e2, 1e4))
    assert far.item() == pytest.approx(near.item() / 100, rel=0.1)


def test_a_single_sublayer_has_no_correction(h):
    step = second_order_step(SUBLAYERS[:1], h)
    assert step.correction.abs().max() < 1e-8
    torch.testing.assert_close(step.displacement, SUBLAYERS[0](h) - h, rtol=0, atol=1e-7)


# Models that are not made for this.


@pytest.fixture(scope="module")
def encoder() -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    options = dict(dim_feedforward=24, dropout=0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    return nn.TransformerEncoderLayer(D, 2, **options, activation="gelu").requires_grad_(False).eval()


def encoder_sublayers(layer: nn.TransformerEncoderLayer) -> list:
    def attention(h):
        x = layer.norm1(h)
        return h + layer.self_attn(x, x, x, need_weights=False)[0]

    return [attention, lambda h: h + layer.linear2(F.gelu(layer.linear1(layer.norm2(h))))]


def test_torchs_prenorm_layer_is_predicted_to_second_order(encoder, unequal):
    assert_second_order(second_order_step, encoder_sublayers(encoder), unequal)


def test_its_growth_over_loops_is_bounded(encoder, unequal):
    assert_growth_is_bounded_and_split(loop_growth, list(unroll(encoder, 5.0 * unequal, 5)))


@pytest.fixture(scope="module")
def looped_lm() -> LoopedLM:
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, num_layers=2, num_heads=2, vocab_size=11, context=6, norm_eps=1e-6)
    return LoopedLM(config).double().eval().requires_grad_(False)


def test_the_packages_own_model_is_predicted_from_loop_to_loop(looped_lm):
    states = looped_lm(torch.arange(6)[None], num_loops=6)
    assert_growth_is_bounded_and_split(loop_growth, list(states))
    h = 1e3 * states[2]
    gained = looped_lm.step(h).norm(dim=-1) - h.norm(dim=-1)
    assert regime_number(looped_lm.step, h).max() < 1e-2
    step = second_order_step(list(looped_lm.sublayers), h)
    first, second = ((x - gained).abs().max() for x in (step.first_order_increment(h), step.radial_increment(h)))
    assert second < 1e-2 * first


# Refusals.


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda h: h.long(), "floating-point"),
        (lambda h: 0 * h, "zero state"),
        (lambda h: h / 0, "NaN or infinite"),
        (lambda h: h[:, 1:], r"h_next must have the shape and dtype of h"),
        (lambda h: h.float(), r"h_next must have the shape and dtype of h"),
    ],
)
def test_bad_next_states_are_refused(h, bad, message):
    with pytest.raises(ValueError, match=message):
        unwrap(increment)(h, bad(h))  # without the type checker of the tests, as a user calls it


def test_a_single_state_has_no_growth(h):
    with pytest.raises(ValueError, match="at least h_0 and h_1, got 1"):
        loop_growth([h])


@pytest.mark.parametrize(
    ("sublayers", "message"),
    [
        ([], "at least one residual step"),
        ([SUBLAYERS[0], lambda h: h[:, 1:]], r"sublayer 1 must keep the shape"),
        ([linear], "sublayer 0 multiplies a large state by"),
        ([lambda h: F.normalize(h, dim=-1), SUBLAYERS[0]], "sublayer 0 multiplies a large state by .*e-"),
        ([lambda h: 0.88 * h], "sublayer 0 multiplies a large state by 0.88"),
        ([SUBLAYERS[0], lambda h: h + (SUBLAYERS[1](h) - h).detach()], "sublayer 1 hides a branch"),
    ],
)
def test_maps_that_are_no_residual_steps_are_refused(h, sublayers, message):
    with pytest.raises(ValueError, match=message):
        second_order_step(sublayers, h)


def test_a_recurrent_cell_is_no_residual_step(h):
    torch.manual_seed(0)
    cell = nn.GRUCell(D, D, dtype=torch.float64).requires_grad_(False)
    with pytest.raises(ValueError, match="multiplies a large state"):
        second_order_step([lambda h: cell(torch.ones_like(h), h)], h)


def test_second_order_needs_float64(h):
    with pytest.raises(ValueError, match="must be float64, got torch.float32"):
        second_order_step(SUBLAYERS, h.float())


@pytest.mark.parametrize("scale", [1.0, 3e5, 3e6])
def test_the_second_order_of_a_large_state_is_taken_far_from_it(scale):
    """At norms that trained models reach, a fixed large scale would be the state's own, and seem to rescale it."""
    generator = torch.Generator().manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(4, 16, generator=generator, dtype=torch.float64), dim=-1)
    weights = [torch.randn(16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]

    def branch(h, weight):
        return 6e3 * torch.tanh(torch.nn.functional.normalize(h, dim=-1) @ weight)

    step = second_order_step([lambda h, w=w: h + branch(h, w) for w in weights], scale * u)
    expected = branch(u, weights[0]) + branch(u, weights[1])
    worst = (step.displacement - expected).norm() / expected.norm()
    assert worst < (2e-2 if scale == 1.0 else 1e-2)


@pytest.mark.parametrize("hidden", [0, 1])
def test_a_sublayer_that_hides_one_of_two_terms_is_refused(h, hidden):
    terms = [lambda x: SUBLAYERS[0](x) - x, lambda x: SUBLAYERS[1](x) - x]

    def half(x: Tensor) -> Tensor:
        return x + sum(term(x).detach() if n == hidden else term(x) for n, term in enumerate(terms))

    with pytest.raises(ValueError, match="sublayer 1 hides a branch"):
        second_order_step([SUBLAYERS[0], half], h)


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_a_sublayer_that_hides_a_share_of_its_branch_is_refused_from_a_twentieth_on(h, share):
    def partly(x: Tensor) -> Tensor:
        branch = SUBLAYERS[1](x) - x
        return x + (1.0 - share) * branch + share * branch.detach()

    if share < 0.05:
        second_order_step([SUBLAYERS[0], partly], h)
    else:
        with pytest.raises(ValueError, match="sublayer 1 hides a branch"):
            second_order_step([SUBLAYERS[0], partly], h)


def test_a_state_as_large_as_the_fixed_scale_is_looked_at_from_farther():
    """A branch of 2e4 is 2 % of the fixed scale, and would be taken for a gain."""
    u = F.normalize(torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)

    def sublayer(x: Tensor) -> Tensor:
        return x + 2e4 * F.normalize(x, dim=-1)

    step = second_order_step([sublayer], 3e6 * u)
    torch.testing.assert_close(step.displacement, 2e4 * u, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_increment_of_states_whose_norm_overflows_their_format(dtype):
    largest = torch.finfo(dtype).max
    h = torch.full((2, 64), largest / 4, dtype=dtype)
    grown = increment(h, 2 * h)
    assert h.norm(dim=-1).isinf().all()
    torch.testing.assert_close(grown.radial_part, h.double().norm(dim=-1))
    torch.testing.assert_close(grown.next_l2_norm, 2 * grown.l2_norm)
    assert grown.perpendicular_part.max() < 1e-6 * grown.l2_norm.max()
    torch.testing.assert_close(drive(lambda h: 2 * h, h), torch.ones(2, dtype=torch.float64))
