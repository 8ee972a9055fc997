"""Visibility and activity against dense Jacobians, against broken copies, and the artefacts they must not
mistake for blindness."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loopsight.observability as observability
from loopsight.derivatives import directional_derivative, forward_mode, pullback, require_adjoint, require_double_states
from loopsight.gramian import gramian_extremes
from loopsight.increments import second_order_step
from loopsight.invariance import invariance
from loopsight.observability import activity, deferred_visibility, drive, visibility
from loopsight.protocol import unroll
from loopsight.radial import degree
from loopsight.responses import relative_change
from models import LoopedLM, ModelConfig
from models.config import BetweenConfig, ReadoutConfig

D, VOCAB = 12, 17


def generator(seed: int = 100) -> torch.Generator:
    """Not the seed of the states: the isotropic directions would begin with the state itself."""
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


HEAD, MIXING, BRANCH = random(VOCAB, D) / D**0.5, random(7, 7, seed=2) / 7, random(D, D, seed=3)


def rms_normalise(h: Tensor) -> Tensor:
    return h / h.square().mean(-1, keepdim=True).sqrt()


def raw(h: Tensor) -> Tensor:
    return h @ HEAD.T


def normed(h: Tensor) -> Tensor:
    return rms_normalise(h) @ HEAD.T


def prenorm(h: Tensor) -> Tensor:
    """A residual step that mixes its seven tokens."""
    return h + MIXING @ torch.tanh(rms_normalise(h) @ BRANCH.T)


def damped(h: Tensor) -> Tensor:
    return prenorm(0.88 * h)


def normed_between(h: Tensor) -> Tensor:
    return prenorm(rms_normalise(h))


def without_gradient(h: Tensor) -> Tensor:
    """Loops run without gradient, as some models run their early ones: true derivatives, none in reverse mode."""
    with torch.no_grad():
        return prenorm(h)


def detached(h: Tensor) -> Tensor:
    return h + prenorm(h).detach()


def dense(read, h: Tensor) -> Tensor:
    """Jacobian of (loops, tokens, vocab) logits, in relative changes of all states: (loops, tokens, vocab, numel)."""
    jacobian = torch.func.jacrev(read)(h)
    return (jacobian * h.norm(dim=-1, keepdim=True)).flatten(-2)


def centring(logits: Tensor, distribution: str) -> Tensor:
    p = logits.softmax(-1) if distribution == "model" else torch.full_like(logits, 1 / logits.shape[-1])
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


# Visibility


def assert_visibility(instrument, h: Tensor) -> None:
    """Var_q(J delta), delta = |h| v, by dense matrices, for directions that are not of unit length."""
    direction = random(*h.shape, seed=5) * torch.logspace(-1, 1, len(h), dtype=torch.float64)[:, None]
    for readout in (raw, normed):
        seen = instrument(readout, h, direction)
        jacobian = torch.stack([torch.func.jacrev(readout)(state) for state in h])
        delta = h.norm(dim=-1, keepdim=True) * F.normalize(direction, dim=-1)
        change = (jacobian @ delta[..., None]).squeeze(-1)
        for name in ("uniform", "model"):
            expected = (change[:, None] @ centring(readout(h), name) @ change[..., None]).flatten()
            torch.testing.assert_close(getattr(seen, name), expected, rtol=1e-10, atol=0)


def exact(readout, h: Tensor, direction: Tensor) -> observability.Visibility:
    return visibility(readout, h, direction, generator=generator())


def with_the_direction_as_it_is(readout, h: Tensor, direction: Tensor) -> observability.Visibility:
    tangent = directional_derivative(readout, h, direction)[1]
    return _seen(tangent.var(-1, correction=0), _model_variance(readout(h), tangent))


def without_centring(readout, h: Tensor, direction: Tensor) -> observability.Visibility:
    delta = relative_change(h, direction)
    tangent = directional_derivative(readout, h, delta)[1]
    return _seen(tangent.square().mean(-1), (readout(h).softmax(-1) * tangent.square()).sum(-1))


def with_an_unbiased_variance(readout, h: Tensor, direction: Tensor) -> observability.Visibility:
    tangent = directional_derivative(readout, h, relative_change(h, direction))[1]
    return _seen(tangent.var(-1), _model_variance(readout(h), tangent))


def _model_variance(logits: Tensor, tangent: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return (p * tangent.square()).sum(-1) - (p * tangent).sum(-1).square()


def _seen(uniform: Tensor, model: Tensor) -> observability.Visibility:
    ones = torch.ones_like(uniform)
    return observability.Visibility(
        uniform=uniform, model=model, isotropic_uniform=ones, isotropic_model=ones, logit_variance=ones
    )


def test_visibility_is_the_variance_of_the_logits_change(h):
    assert_visibility(exact, h)


@pytest.mark.parametrize("mutant", [with_the_direction_as_it_is, without_centring, with_an_unbiased_variance])
def test_broken_copies_of_visibility_are_found(h, mutant):
    with pytest.raises(AssertionError):
        assert_visibility(mutant, h)


def test_a_normalised_readout_is_blind_to_the_state_and_a_raw_one_is_not(h):
    blind, sees = (visibility(readout, h, h, generator=generator()) for readout in (normed, raw))
    assert blind.chi_uniform.max() < 1e-27 and blind.chi_model.max() < 1e-27 and blind.blind.all()
    assert sees.chi_uniform.min() > 1e-1 and not sees.blind.any()
    torch.testing.assert_close(sees.uniform, sees.logit_variance)  # degree 1: V(h) = Var(z)


def test_the_isotropic_mean_is_the_trace(h):
    seen = visibility(raw, h, h, generator=generator(), probes=400)
    trace = (HEAD - HEAD.mean(0)).square().sum() / VOCAB / D
    torch.testing.assert_close(seen.isotropic_uniform, trace * h.square().sum(-1), rtol=0.1, atol=0)


def test_a_penalty_makes_the_state_visible_by_its_curvature(h):
    seen = visibility(normed, h, h, generator=generator(), penalty=lambda h: 0.01 * h.square().mean(-1))
    torch.testing.assert_close(seen.uniform, 0.02 * h.square().mean(-1), rtol=1e-10, atol=1e-20)
    assert not seen.blind[h.square().mean(-1) > 1e-2].any()


def test_directions_are_drawn_from_the_generator(h):
    first, again = (visibility(raw, h, h, generator=generator(3)).isotropic_uniform for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, visibility(raw, h, h, generator=generator(4)).isotropic_uniform)


def assert_deferred_visibility(instrument, h: Tensor) -> None:
    weights, direction = (0.2, 0.0, 0.5, 0.3), random(*h.shape, seed=6)
    seen = instrument(prenorm, normed, h, direction, weights, generator=generator())

    def read(h: Tensor) -> Tensor:
        return torch.stack([normed(state) for state in unroll(prenorm, h, 3)])

    change = dense(read, h) @ F.normalize(direction, dim=-1).flatten()
    for name in ("uniform", "model"):
        variances = (change[..., None, :] @ centring(read(h), name) @ change[..., None]).squeeze(-1).squeeze(-1)
        expected = (h.new_tensor(weights)[:, None] * variances).sum(0)
        torch.testing.assert_close(getattr(seen, name), expected, rtol=1e-10, atol=0)


def with_weights_in_reverse(step, readout, h: Tensor, direction: Tensor, weights, **options):
    return deferred_visibility(step, readout, h, direction, weights[::-1], **options)


def of_each_token_alone(step, readout, h: Tensor, direction: Tensor, weights, **options):
    """Moves the first token only."""
    held = torch.zeros_like(h)
    held[0] = 1.0
    return deferred_visibility(lambda x: step(held * x + (1 - held) * h), readout, h, direction, weights, **options)


def test_deferred_visibility_is_the_dense_one(h):
    assert_deferred_visibility(deferred_visibility, h)


@pytest.mark.parametrize("mutant", [with_weights_in_reverse, of_each_token_alone])
def test_broken_copies_of_deferred_visibility_are_found(h, mutant):
    with pytest.raises(AssertionError):
        assert_deferred_visibility(mutant, h)


def test_the_immediate_weight_alone_is_plain_visibility(h):
    deferred = deferred_visibility(prenorm, raw, h, h, (1.0,), generator=generator())
    torch.testing.assert_close(deferred.uniform, visibility(raw, h, h, generator=generator()).uniform)


# Activity and drive


def assert_activity(instrument, h: Tensor) -> None:
    matrix = random(D, D, seed=8)
    direction = 3.0 * random(*h.shape, seed=9)
    expected = (F.normalize(direction, dim=-1) @ matrix.T).norm(dim=-1)
    torch.testing.assert_close(instrument(lambda h: h @ matrix.T, h, direction), expected)
    assert (instrument(damped, h, h) - 0.88).abs().max() < 1e-13
    assert (instrument(prenorm, h, h) - 1.0).abs().max() < 1e-13
    assert instrument(normed_between, h, h).max() < 1e-13


def radial_part_only(step, h: Tensor, direction: Tensor) -> Tensor:
    moved = directional_derivative(step, h, relative_change(h, direction))[1]
    return (moved * h).sum(-1).abs() / h.square().sum(-1)


def relative_to_the_next_state(step, h: Tensor, direction: Tensor) -> Tensor:
    return directional_derivative(step, h, relative_change(h, direction))[1].norm(dim=-1) / step(h).norm(dim=-1)


def test_activity_is_the_relative_gain_of_a_step(h):
    assert_activity(activity, h)


@pytest.mark.parametrize("mutant", [radial_part_only, relative_to_the_next_state])
def test_broken_copies_of_activity_are_found(h, mutant):
    with pytest.raises(AssertionError):
        assert_activity(mutant, h)


def test_drive_is_the_relative_growth(h):
    torch.testing.assert_close(drive(lambda h: -1.5 * h, h), torch.full((7,), 0.5, dtype=torch.float64))
    with pytest.raises(ValueError, match="step must keep the shape"):
        drive(lambda h: h[:, 1:], h)


def test_trap_wrong_cut(h):
    """Behind the normalisation between loops the state is another tensor; a step cut there does not reproduce h_1."""
    h_1 = normed_between(h)
    assert activity(normed_between, h, h, next_state=h_1).max() < 1e-13
    assert activity(prenorm, h, h).min() > 0.9  # a confident answer about the wrong map
    with pytest.raises(ValueError, match="step\\(h\\) is not next_state"):
        activity(prenorm, h, h, next_state=h_1)


# Artefacts


def test_trap_loops_run_without_gradient(h):
    """Reverse mode says 0. Forward mode and values say otherwise, and reverse mode is refused."""
    pulled = pullback(without_gradient, h)[1](torch.ones_like(h))
    assert not pulled.any()
    truth = activity(prenorm, h, h)
    torch.testing.assert_close(activity(without_gradient, h, h), truth)
    weights, direction = (0.0, 0.5, 0.5), random(*h.shape, seed=6)
    seen = deferred_visibility(without_gradient, normed, h, direction, weights, generator=generator())
    expected = deferred_visibility(prenorm, normed, h, direction, weights, generator=generator())
    torch.testing.assert_close(seen.uniform, expected.uniform)
    with pytest.raises(ValueError, match="reverse-mode derivative of the logits disagrees"):
        gramian_extremes(without_gradient, normed, h, weights, generator=generator())
    with pytest.raises(ValueError, match="reverse-mode derivative of it disagrees"):
        require_adjoint(without_gradient, h, torch.ones_like(h), pulled, "it")


@pytest.mark.parametrize(
    "instrument",
    [
        lambda h: activity(detached, h, h),
        lambda h: deferred_visibility(detached, raw, h, h, (0.0, 1.0), generator=generator()),
        lambda h: gramian_extremes(detached, raw, h, (0.0, 1.0), generator=generator()),
        lambda h: visibility(lambda h: raw(h.detach()), h, h, generator=generator()),
        # Blind along h in truth and in the artefact; the isotropic directions show it.
        lambda h: visibility(lambda h: normed(h.detach()), h, h, generator=generator()),
        lambda h: visibility(normed, h, h, generator=generator(), penalty=lambda h: h.detach().square().mean(-1)),
    ],
)
def test_trap_a_detached_part_is_refused_and_not_called_blind(h, instrument):
    with pytest.raises(ValueError, match="disagrees with its finite differences"):
        instrument(h)


def fused(h: Tensor, **options) -> Tensor:
    targets = torch.arange(len(h))
    return F.linear_cross_entropy(h, HEAD, targets, **options)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyOptions"), reason="this torch has no chunked fused loss")
def test_trap_a_fused_loss_returns_a_silent_zero_in_forward_mode(h):
    chunked = {"options": nn.LinearCrossEntropyOptions()}
    silent = torch.func.jvp(lambda h: fused(h, **chunked), (h,), (h,))[1]
    assert silent == 0.0
    true = directional_derivative(fused, h, h)[1]
    assert true.abs() > 1e-2
    with pytest.raises(ValueError, match="forward-mode derivative disagrees with its finite differences"):
        directional_derivative(lambda h: fused(h, **chunked), h, h)
    assert invariance(lambda h: fused(h, **chunked), h, generator=generator()).verdict == "sees"


def attention(h: Tensor) -> Tensor:
    x = rms_normalise(h).unflatten(-1, (2, -1)).transpose(0, 1)[None]
    return h + F.scaled_dot_product_attention(x, x, x, is_causal=True)[0].transpose(0, 1).flatten(-2)


def test_trap_flash_attention_has_no_forward_mode(h):
    with pytest.raises(NotImplementedError):
        torch.func.jvp(attention, (h,), (h,))
    assert (activity(attention, h, h) - 1.0).abs().max() < 1e-13
    assert deferred_visibility(attention, normed, h, h, (0.0, 1.0), generator=generator()).uniform.max() > 0


class OnlyReverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return g


class WithoutJvp(torch.autograd.Function):
    """As torch.func wants it, but for the forward mode."""

    @staticmethod
    def forward(h):
        return h.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize(
    ("function", "error"), [(OnlyReverse, RuntimeError), (WithoutJvp, NotImplementedError)], ids=["old", "new"]
)
def test_a_custom_function_without_forward_mode_is_refused(h, function, error):
    with pytest.raises(error) as raised:
        torch.func.jvp(function.apply, (h,), (h,))
    assert raised.type is error  # torch's own: if the words change, `NO_FORWARD_MODE` must
    for instrument in (
        lambda: activity(function.apply, h, h),
        lambda: degree(function.apply, h),
        lambda: second_order_step([function.apply], h),
    ):
        with pytest.raises(ValueError, match="no forward-mode derivative"):
            instrument()


def test_an_operation_of_torchs_own_without_forward_mode_is_refused(h):
    with pytest.raises(NotImplementedError):
        torch.func.jvp(attention, (h,), (h,))
    with pytest.raises(ValueError, match="the readout uses an operation that has no forward-mode derivative"):
        with forward_mode("the readout"):
            torch.func.jvp(attention, (h,), (h,))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), NotImplementedError("my method is abstract")])
def test_an_error_of_the_callables_own_passes_as_it_is(h, error):
    def broken(h: Tensor) -> Tensor:
        raise error

    for instrument in (lambda: activity(broken, h, h), lambda: second_order_step([broken], h)):
        with pytest.raises(type(error), match=str(error)):
            instrument()


def test_trap_a_saturated_softmax_is_not_blindness(h):
    """Raw logits so large that the softmax is one-hot: nothing under the model's distribution, all under the other."""
    h = 1e6 * F.normalize(h, dim=-1)
    seen = visibility(raw, h, h, generator=generator())
    assert seen.model.max() < 1e-20 * seen.uniform.max()
    assert not seen.blind.any() and seen.chi_uniform.min() > 0.1


def test_trap_a_readout_that_answers_to_nothing_is_saturated_and_not_blind(h):
    seen = visibility(lambda h: torch.tanh(1e9 * h) @ HEAD.T, h, h, generator=generator())
    assert seen.saturated.all() and not seen.blind.any()
    constant = visibility(lambda h: 0.0 * raw(h), h, h, generator=generator())
    assert constant.saturated.all() and not constant.blind.any() and constant.chi_uniform.isnan().all()


def test_trap_dropout_is_refused(h):
    torch.manual_seed(0)
    drop = nn.Dropout(0.5)
    with pytest.raises(ValueError, match="deterministic"):
        visibility(lambda h: raw(drop(h)), h, h, generator=generator())
    with pytest.raises(ValueError, match="deterministic"):
        invariance(lambda h: raw(drop(h)).square().mean(), h, generator=generator())


def test_neither_grad_mode_nor_kernels_nor_gradients_are_left_changed(h):
    weight = HEAD.clone().requires_grad_()
    states = h.clone().requires_grad_()
    fast, flash = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with torch.no_grad():
        seen = visibility(lambda h: h @ weight.T, states, states, generator=generator())
        found = gramian_extremes(prenorm, lambda h: h @ weight.T, states, (0.0, 1.0), generator=generator())
        assert not torch.is_grad_enabled()
    assert not seen.uniform.requires_grad and not found.least.requires_grad
    assert weight.grad is None and states.grad is None
    assert (fast, flash) == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())


def test_states_made_in_inference_mode_are_accepted(h):
    with torch.inference_mode():
        states = h + 0.0
    assert visibility(normed, states, states, generator=generator()).blind.all()


# Finite motions


def test_a_motion_that_gives_no_number_decides_nothing(h):
    """NaN among random motions, where the motion itself changes nothing: the logarithm of a share of the whole."""
    positive = h.abs() + 0.1
    found = invariance(lambda h: (h / h.sum(-1, keepdim=True)).log()[..., 0].mean(), positive, generator=generator())
    assert math.isnan(found.random_change) and found.change < 1e-12
    assert found.verdict == "invalid" and "NaN" in found.reason


def cross_entropy(readout):
    targets = torch.arange(7)
    return lambda h: F.cross_entropy(readout(h), targets)


def test_finite_motions_tell_blind_from_seeing(h):
    blind, sees = (invariance(cross_entropy(readout), h, generator=generator()) for readout in (normed, raw))
    assert (blind.verdict, sees.verdict) == ("blind", "sees")
    assert blind.ratio < 1e-13 and sees.ratio > 0.1
    assert blind.canary_seen > 1e-2 and blind.canary_blind < 1e-13


def test_a_per_token_motion_finds_what_a_joint_one_does_not(h):
    """One normaliser over all tokens: invariant when all are rescaled alike, not when each is by itself."""
    outcome = invariance(cross_entropy(lambda h: (h / h.norm()) @ HEAD.T), h, generator=generator())
    assert outcome.verdict == "sees"


def test_the_ratio_of_losses_a_token_does_not_depend_on_how_many_there_are():
    """Of their mean it does: a joint rescaling moves all tokens' losses one way, random motions cancel."""

    def leaky(h: Tensor, reduction: str) -> Tensor:
        logits = h / (h.square().mean(-1, keepdim=True) + 1e-4).sqrt() @ HEAD.T
        return F.cross_entropy(logits, torch.arange(len(h)) % len(HEAD), reduction=reduction)

    ratios = {
        (reduction, tokens): invariance(
            lambda h, reduction=reduction: leaky(h, reduction), random(tokens, D), generator=generator()
        ).ratio
        for reduction in ("none", "mean")
        for tokens in (16, 4096)
    }
    assert ratios["none", 4096] == pytest.approx(ratios["none", 16], rel=0.5)
    assert ratios["mean", 4096] > 4 * ratios["none", 4096]


def test_the_shift_is_blind_behind_a_layernorm_only(h):
    layer_normed = cross_entropy(lambda h: F.layer_norm(h, (D,)) @ HEAD.T)
    assert invariance(layer_normed, h, generator=generator(), action="shift").verdict == "blind"
    assert invariance(cross_entropy(normed), h, generator=generator(), action="shift").verdict == "sees"


def with_a_gradient(loss, h: Tensor) -> str:
    gradient = torch.func.grad(loss)(h)
    return "blind" if (gradient * h).sum(-1).abs().max() < 1e-12 else "sees"


def test_trap_no_gradient_is_not_blindness(h):
    """The loop behind the state is run without gradient: reverse mode is blind, the loss is not."""
    loss = cross_entropy(lambda h: raw(without_gradient(h)))
    assert with_a_gradient(loss, h) == "blind"
    assert invariance(loss, h, generator=generator()).verdict == "sees"


@pytest.mark.parametrize(
    ("loss", "factor", "reason"),
    [
        (lambda h: h.new_ones(()), 1.0, "random motions of the same size do not change the loss"),
        (lambda h: cross_entropy(lambda h: torch.tanh(1e9 * h.abs()) @ HEAD.T)(h), 1.0, "random motions"),
        (cross_entropy(raw), 1e-14, "even a raw head does not see these states move"),
        (lambda h: h.sum() * torch.nan, 1.0, "NaN or infinite"),
    ],
)
def test_no_signal_is_invalid_and_never_blind(h, loss, factor, reason):
    outcome = invariance(loss, factor * h, generator=generator())
    assert outcome.verdict == "invalid" and reason in outcome.reason


def test_an_epsilon_is_seen_near_it(h):
    def loss(h: Tensor) -> Tensor:
        return cross_entropy(lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-2) @ HEAD.T)(h)

    assert invariance(loss, h, generator=generator()).verdict == "sees"
    assert invariance(loss, 1e6 * h, generator=generator()).verdict == "blind"


# Models that are not ours, and ours


@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_prenorm_layer(training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 24, 0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    layer = layer.train(training).requires_grad_(False)
    norm, states = nn.LayerNorm(D, eps=0.0, dtype=torch.float64), 1e3 * random(2, 5, D)

    def readout(h: Tensor) -> Tensor:
        return norm(h) @ HEAD.T

    assert visibility(readout, states, states, generator=generator()).blind.all()
    assert (activity(layer, states, states) - 1).abs().max() < 1e-3
    seen = deferred_visibility(layer, readout, states, states, (0.0, 0.5, 0.5), generator=generator())
    assert not seen.blind.all() and seen.chi_uniform.max() < 1e-3
    near = random(1, 2, D)  # far out the scale would be almost as blind as what follows
    # Two loops: one alone has the readout's whole blind space, pulled back through the step.
    found = gramian_extremes(layer, readout, near, (0.0, 0.5, 0.5), generator=generator())
    ones = F.normalize(torch.ones(D, dtype=torch.float64), dim=0)  # LayerNorms everywhere: blind for ever
    assert found.least.abs().max() < 1e-12 * found.most[0]
    along = (found.least_directions * ones).sum(-1).square().sum()
    assert along.item() == pytest.approx(1.0, abs=1e-6)


def test_a_gru_cell_and_a_linear_recurrence(h):
    torch.manual_seed(1)
    cell = nn.GRUCell(3, D, dtype=torch.float64).requires_grad_(False)
    inputs = torch.zeros(7, 3, dtype=torch.float64)
    kept = activity(lambda h: cell(inputs, h), h, h)
    assert ((kept > 0.01) & (kept < 2)).all()
    linear = nn.Linear(D, D, bias=False, dtype=torch.float64).requires_grad_(False)
    expected = linear(h).norm(dim=-1) / h.norm(dim=-1)
    torch.testing.assert_close(activity(linear, h, h), expected)
    found = gramian_extremes(linear, raw, h[:2], (0.0, 1.0), generator=generator())
    block = (HEAD - HEAD.mean(0)) @ linear.weight
    scale = h[:2].norm(dim=-1).square() / VOCAB
    assert found.most[0].item() == pytest.approx((torch.linalg.matrix_norm(block, 2) ** 2 * scale.max()).item())


READOUTS = {
    "rmsnorm": ReadoutConfig(),
    "layernorm": ReadoutConfig(kind="layernorm"),
    "group_rmsnorm": ReadoutConfig(kind="group_rmsnorm", num_groups=2),
    "group_layernorm": ReadoutConfig(kind="group_layernorm", num_groups=2),
    "raw": ReadoutConfig(kind="raw", gain=False),
}
BETWEEN = {
    "none": (BetweenConfig(), 1.0),
    "rmsnorm": (BetweenConfig(kind="rmsnorm"), 0.0),
    "damping": (BetweenConfig(kind="damping", factor=0.88), 0.88),
}


@pytest.mark.parametrize("block_norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("readout", READOUTS)
def test_our_looped_model(readout, between, block_norm):
    torch.manual_seed(0)
    operation, expected = BETWEEN[between]
    config = ModelConfig(
        d_model=8,
        num_layers=1,
        num_heads=2,
        vocab_size=11,
        context=4,
        norm_eps=0.0,
        block_norm=block_norm,
        between=operation,
        readout=READOUTS[readout],
    )
    model = LoopedLM(config).double().eval().requires_grad_(False)
    states = 1e3 * model(torch.tensor([[1, 5, 2, 7]]))[1]
    carried = activity(model.step, states, states, next_state=model.step(states))
    assert (carried - expected).abs().max() < 1e-4
    seen = visibility(model.readout, states, states, generator=generator())
    assert seen.blind.all() == (readout != "raw")
    deferred = deferred_visibility(model.step, model.readout, states, states, (0.0, 0.5, 0.5), generator=generator())
    assert deferred.chi_uniform.max() < 1e-25 if between == "rmsnorm" else deferred.chi_uniform.min() > 1e-12


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: visibility(raw, h.float(), h.float(), generator=generator()), "h must be float64"),
        (lambda h: require_double_states(h.long()), "h must be a floating-point tensor"),
        (lambda h: visibility(raw, h * torch.nan, h, generator=generator()), "h holds NaN"),
        (lambda h: visibility(raw, h, 0 * h, generator=generator()), "direction holds a zero state"),
        (lambda h: relative_change(h, h[:3]), "direction must have the shape of h"),
        (lambda h: visibility(raw, h, h, generator=generator(), probes=0), "probes must be at least 1"),
        (lambda h: visibility(lambda h: raw(h)[:3], h, h, generator=generator()), "the readout must give logits"),
        (lambda h: visibility(lambda h: raw(h).float(), h, h, generator=generator()), "must return a float64 tensor"),
        (lambda h: visibility(raw, h, h, generator=generator(), penalty=lambda h: h.mean()), "penalty must give one"),
        (lambda h: deferred_visibility(prenorm, raw, h, h, (), generator=generator()), "weights must be finite"),
        (lambda h: deferred_visibility(prenorm, raw, h, h, (1.0, -1.0), generator=generator()), "weights must be fin"),
        (lambda h: deferred_visibility(prenorm, raw, h, h, (0.0,), generator=generator()), "weights must be finite"),
        (lambda h: activity(lambda h: h[:, 1:], h, h), "step must keep the shape of the state"),
        (
            lambda h: gramian_extremes(prenorm, raw, h, (1.0,), generator=generator(), count=99),
            "count must lie in 1..42",
        ),
        (lambda h: directional_derivative(raw, h, h * torch.inf), "direction must be a finite float64 tensor"),
        (lambda h: unroll(prenorm, h, -1), "num_loops must not be negative"),
        (lambda h: invariance(raw, h, generator=generator()), "the loss must be a scalar or one a token"),
        (lambda h: invariance(lambda h: 1.0, h, generator=generator()), "must return a float64 tensor, got float"),
    ],
)
def test_bad_input_is_refused(h, call, message):
    with pytest.raises(ValueError, match=message):
        call(h)


def test_unroll_gives_the_start_and_every_later_state(h):
    states = unroll(lambda h: 2 * h, h, 3)
    assert len(states) == 4 and states[0] is h
    assert torch.equal(states[3], 8 * h)
    assert unroll(prenorm, h, 0) == (h,)
