"""The deferred identity against plain autograd, against broken copies of itself, and on models that are not ours."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loopsight.deferred as deferred
from loopsight.deferred import deferred_identity
from models import LoopedLM, ModelConfig
from models.config import BetweenConfig, ReadoutConfig

D, VOCAB, TOKENS = 12, 17, 7


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


HEAD, MIXING = random(VOCAB, D) / D**0.5, random(TOKENS, TOKENS, seed=2) / TOKENS
FIRST, SECOND = random(D, D, seed=3), random(D, D, seed=4)


def rms_normalise(h: Tensor) -> Tensor:
    return h / h.square().mean(-1, keepdim=True).sqrt()


def mix(h: Tensor) -> Tensor:
    return h + MIXING @ torch.tanh(rms_normalise(h) @ FIRST.T)


def mlp(h: Tensor) -> Tensor:
    return h + torch.tanh(rms_normalise(h) @ SECOND.T)


def loss(h: Tensor) -> Tensor:
    return F.cross_entropy(rms_normalise(h) @ HEAD.T, torch.arange(TOKENS))


def raw_loss(h: Tensor) -> Tensor:
    return F.cross_entropy(h @ HEAD.T, torch.arange(TOKENS))


STEPS = [mix, mlp, mix, mlp]
LOSSES = [None, None, lambda h: -0.4 * loss(h), None, lambda h: 1.3 * loss(h)]
RAW_LOSSES = [raw_loss, None, raw_loss, None, raw_loss]


def by_autograd(steps, losses, h: Tensor) -> tuple[Tensor, Tensor]:
    """All states and the total gradient at each of them, from one graph."""
    states = [h.clone().requires_grad_()]
    for step in steps:
        states.append(step(states[-1]))
    total = torch.stack([loss(state) for loss, state in zip(losses, states, strict=True) if loss is not None]).sum()
    return torch.stack(states).detach(), torch.stack(torch.autograd.grad(total, states))


def assert_identity(instrument, h: Tensor, losses=LOSSES) -> None:
    found = instrument(STEPS, losses, h)
    states, gradients = by_autograd(STEPS, losses, h)
    torch.testing.assert_close(found.radial, (states * gradients).sum(-1), rtol=1e-9, atol=1e-15)
    crossing = -(gradients[1:] * states.diff(dim=0)).sum(-1)
    torch.testing.assert_close(found.crossing, crossing, rtol=1e-9, atol=1e-15)
    assert found.radial.abs().max() > 1e-3
    assert found.residual.shape == (5, TOKENS) and found.residual.max() < 1e-14
    torch.testing.assert_close(found.explained, found.radial, rtol=0, atol=1e-13)


def test_losses_that_cancel_are_no_broken_identity():
    """Far out the two readouts say the same, so that their gradients cancel and leave their rounding."""
    h = 1e7 * random(TOKENS, D)
    found = deferred_identity(STEPS, [None, None, lambda h: -loss(h), None, loss], h)
    cancelled, later = found.size[0], found.size[3]
    assert (cancelled < 1e-4 * later).all()
    assert found.residual.max() < 1e-14


def with_the_gradient_before_the_step(steps, losses, h: Tensor) -> deferred.DeferredIdentity:
    found = deferred_identity(steps, losses, h)
    states, gradients = by_autograd(steps, losses, h)
    return _replaced(found, crossing=-(gradients[:-1] * states.diff(dim=0)).sum(-1))


def with_the_last_gradient_only(steps, losses, h: Tensor) -> deferred.DeferredIdentity:
    states, gradients = by_autograd(steps, losses, h)
    return _replaced(deferred_identity(steps, losses, h), crossing=-(gradients[-1] * states.diff(dim=0)).sum(-1))


def with_the_sign_turned(steps, losses, h: Tensor) -> deferred.DeferredIdentity:
    found = deferred_identity(steps, losses, h)
    return _replaced(found, crossing=-found.crossing)


def with_tokens_mixed(steps, losses, h: Tensor) -> deferred.DeferredIdentity:
    found = deferred_identity(steps, losses, h)
    return _replaced(found, crossing=found.crossing.mean(-1, keepdim=True).expand_as(found.crossing))


def without_immediate_terms(steps, losses, h: Tensor) -> deferred.DeferredIdentity:
    found = deferred_identity(steps, losses, h)
    return _replaced(found, immediate=torch.zeros_like(found.immediate))


def _replaced(found: deferred.DeferredIdentity, **changes: Tensor) -> deferred.DeferredIdentity:
    fields = {name: getattr(found, name) for name in ("names", "radial", "immediate", "crossing", "size")}
    return deferred.DeferredIdentity(**(fields | changes))


def test_it_is_exact_for_every_token_and_state(h):
    assert_identity(deferred_identity, h)
    assert deferred_identity(STEPS, LOSSES, h).immediate.abs().max() < 1e-14


def test_raw_readouts_add_their_immediate_terms(h):
    assert_identity(deferred_identity, h, RAW_LOSSES)
    logits = h @ HEAD.T
    gap = (logits.softmax(-1) * logits).sum(-1) - logits[range(TOKENS), range(TOKENS)]
    torch.testing.assert_close(deferred_identity(STEPS, RAW_LOSSES, h).immediate[0], gap / TOKENS)


@pytest.mark.parametrize(
    "mutant",
    [with_the_gradient_before_the_step, with_the_last_gradient_only, with_the_sign_turned, with_tokens_mixed],
)
def test_broken_copies_are_found(h, mutant):
    with pytest.raises(AssertionError):
        assert_identity(mutant, h)


def test_forgotten_immediate_terms_are_found(h):
    with pytest.raises(AssertionError):
        assert_identity(without_immediate_terms, h, RAW_LOSSES)


@pytest.mark.parametrize(("gain", "between"), [(0.88, lambda h: 0.88 * h), (0.0, rms_normalise)])
def test_operations_between_loops_are_steps_with_a_gain(h, gain, between):
    steps, losses = [between, mix, mlp] * 2, [None, None, None, loss, None, None, loss]
    found = deferred_identity(steps, losses, h, gains=[gain, 1.0, 1.0] * 2)
    assert found.residual[found.size > 1e-12].max() < 1e-14
    if gain == 0.0:  # removed: nothing behind it sees the scale
        assert found.radial[0].abs().max() < 1e-14 * found.size[0].max()
    wrong = deferred_identity(steps, losses, h)
    assert wrong.residual.max() > 1e-3


@pytest.mark.parametrize(
    "steps",
    [
        [lambda h: h + torch.tanh(h @ FIRST.T), mlp],  # a branch that does not normalise
        [lambda h: rms_normalise(mix(h)), mlp],  # a norm after the add
        [lambda h: mlp(mix(h)), mlp],  # a whole loop passed as one step
        [lambda h: h + torch.tanh(h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-2) @ FIRST.T), mlp],
    ],
    ids=["unnormalised", "post-norm", "whole loop", "epsilon"],
)
def test_the_residual_says_when_a_step_is_of_another_kind(h, steps):
    assert deferred_identity(steps, [None, None, loss], h).residual.max() > 1e-4


def test_the_slope_falls_with_the_scale_and_a_raw_one_does_not(h):
    u = F.normalize(h, dim=-1)
    small, large = (deferred_identity(STEPS, LOSSES, s * u).radial[0].sum() for s in (1e3, 1e4))
    assert (small / large).item() == pytest.approx(10, rel=0.05)
    small, large = (deferred_identity(STEPS, RAW_LOSSES, s * u).radial[0].sum() for s in (1e3, 1e4))
    assert (small / large).item() == pytest.approx(0.1, rel=0.05)


def test_trap_loops_run_without_gradient_are_refused_and_named(h):
    def quiet(h: Tensor) -> Tensor:
        with torch.no_grad():
            return mlp(h)

    with pytest.raises(ValueError, match=r"reverse-mode derivative of step 1 \(second\) disagrees"):
        deferred_identity([mix, quiet], [None, None, loss], h, names=["first", "second"])
    with pytest.raises(ValueError, match=r"reverse-mode derivative of losses\[1\] disagrees"):
        deferred_identity([mix], [None, lambda h: loss(h.detach())], h)


def test_trap_a_straight_through_step_is_refused(h):
    """Gradient of the identity, values of something else."""
    with pytest.raises(ValueError, match="reverse-mode derivative of step 0"):
        deferred_identity([lambda h: h + (torch.sign(h) * h.square() - h).detach()], [None, loss], h)


def test_trap_dropout_is_refused(h):
    torch.manual_seed(0)
    drop = nn.Dropout(0.3)
    with pytest.raises(ValueError, match="deterministic"):
        deferred_identity([lambda h: h + drop(mlp(h) - h)], [None, loss], h)


def test_trap_a_fused_loss_keeps_its_reverse_mode(h):
    """Silent in forward mode only, which is not used here."""
    if not hasattr(nn, "LinearCrossEntropyOptions"):
        pytest.skip("this torch has no chunked fused loss")

    def fused(h: Tensor) -> Tensor:
        return F.linear_cross_entropy(
            rms_normalise(h), HEAD, torch.arange(TOKENS), options=nn.LinearCrossEntropyOptions()
        )

    found, plain = (deferred_identity([mix, mlp], [None, None, last], h) for last in (fused, loss))
    torch.testing.assert_close(found.radial, plain.radial)


def test_it_prints_as_a_table(h):
    found = deferred_identity(STEPS, RAW_LOSSES, h, names=["attention", "mlp"] * 2)
    lines = str(found).splitlines()
    assert lines[0].split() == ["j", "step", "<G_j,", "h_j>", "imm_j", "-<G_j+1,", "b_j>"]
    assert [line.split()[1] for line in lines[1:6]] == ["attention", "mlp", "attention", "mlp", "(end)"]
    first, total = lines[1].split(), lines[6].split()
    assert float(first[2]) == pytest.approx(found.radial[0].sum().item(), rel=1e-5)
    assert total[0] == "sum" and float(total[1]) == pytest.approx(float(first[2]), rel=1e-5)
    assert "e-1" in lines[7]
    one = found.table((3,)).splitlines()
    assert float(one[1].split()[2]) == pytest.approx(found.radial[0, 3].item(), rel=1e-5)


def test_a_single_state_and_batches_of_tokens():
    one = deferred_identity([mlp], [None, lambda h: (rms_normalise(h) @ HEAD.T)[0]], random(D, seed=6))
    assert one.radial.shape == (2,) and one.residual.max() < 1e-14 and "sum" in str(one)
    batch = deferred_identity([mlp], [None, lambda h: (rms_normalise(h) @ HEAD.T).sum()], random(2, 3, D, seed=7))
    assert batch.radial.shape == (2, 2, 3) and batch.residual.max() < 1e-14
    assert "sum" in batch.table((1, 2))


def test_neither_grad_mode_nor_weights_nor_states_are_touched(h):
    head, states = HEAD.clone().requires_grad_(), h.clone().requires_grad_()
    with torch.no_grad():
        found = deferred_identity([mlp], [None, lambda h: (rms_normalise(h) @ head.T).square().sum()], states)
        assert not torch.is_grad_enabled()
    assert not found.radial.requires_grad and head.grad is None and states.grad is None
    assert found.residual.max() < 1e-14


# Models that are not ours, and ours


def test_torchs_own_prenorm_layer_sublayer_by_sublayer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 24, 0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    layer.norm1.eps = layer.norm2.eps = 0.0
    norm, states = nn.LayerNorm(D, eps=0.0, dtype=torch.float64), random(2, 5, D)

    def attention(h: Tensor) -> Tensor:
        return h + layer._sa_block(layer.norm1(h), None, None)

    def feed_forward(h: Tensor) -> Tensor:
        return h + layer._ff_block(layer.norm2(h))

    def read(h: Tensor) -> Tensor:
        return F.cross_entropy((norm(h) @ HEAD.T).flatten(0, 1), torch.arange(10))

    torch.testing.assert_close(feed_forward(attention(states)), layer(states))
    found = deferred_identity([attention, feed_forward] * 2, [None, None, read, None, read], states)
    assert found.residual.max() < 1e-14 and found.radial[0].abs().max() > 1e-4
    whole = deferred_identity([layer, layer], [None, read, read], states)
    assert whole.residual.max() > 1e-3


def test_a_gru_and_a_linear_recurrence_are_not_of_this_kind(h):
    torch.manual_seed(1)
    cell, linear = nn.GRUCell(3, D, dtype=torch.float64), nn.Linear(D, D, dtype=torch.float64)
    inputs = torch.zeros(TOKENS, 3, dtype=torch.float64)
    for step in (lambda h: cell(inputs, h), linear):
        found = deferred_identity([step, step], [None, loss, loss], h)
        states, gradients = by_autograd([step, step], [None, loss, loss], h)
        torch.testing.assert_close(found.radial, (states * gradients).sum(-1))
        assert found.residual.max() > 1e-3


@pytest.mark.parametrize("between", [BetweenConfig(), BetweenConfig(kind="damping", factor=0.8)])
@pytest.mark.parametrize("readout", [ReadoutConfig(), ReadoutConfig(kind="raw", gain=False, tied=False)])
def test_our_looped_model(between, readout):
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=8, num_layers=2, num_heads=2, vocab_size=11, context=5, norm_eps=0.0, between=between, readout=readout
    )
    model = LoopedLM(config).double().eval()
    tokens = torch.randint(11, (2, 5))

    def read(h: Tensor) -> Tensor:
        return 0.5 * F.cross_entropy(model.readout(h).flatten(0, 1), tokens.roll(-1, 1).flatten())

    steps = [model.between, *model.sublayers] * 2
    losses = [None] * 5 + [read] + [None] * 4 + [read]
    gains = [between.factor or 1.0, 1.0, 1.0, 1.0, 1.0] * 2
    found = deferred_identity(steps, losses, model.embed(tokens), gains=gains)
    assert found.residual.max() < 1e-13
    torch.testing.assert_close(found.radial[0], _radial(model, read, tokens))


def _radial(model: LoopedLM, read, tokens: Tensor) -> Tensor:
    states = model(tokens, num_loops=2)
    (gradient,) = torch.autograd.grad(read(states[1]) + read(states[2]), states[0])
    return (gradient * states[0]).sum(-1).detach()


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: deferred_identity([mlp], [None, loss], h.float()), "h must be float64, got torch.float32"),
        (lambda h: deferred_identity([mlp], [None, loss], h * torch.nan), "h holds NaN"),
        (lambda h: deferred_identity([mlp], [None, loss], 0 * h), "h holds a zero state"),
        (lambda h: deferred_identity([mlp], [loss], h), r"1 steps, 1 losses, 1 gains and 1 names"),
        (lambda h: deferred_identity([], [loss], h), "n >= 1 steps need n \\+ 1 losses"),
        (lambda h: deferred_identity([mlp], [None, loss], h, gains=[1.0, 1.0]), "2 gains"),
        (lambda h: deferred_identity([mlp], [None, loss], h, names=[]), "0 names"),
        (lambda h: deferred_identity([mlp], [None, None], h), "at least one of the losses"),
        (lambda h: deferred_identity([lambda h: h[:, 1:]], [None, loss], h), "a step must keep the shape"),
        (lambda h: deferred_identity([mlp], [None, lambda h: h], h), r"losses\[1\] must return a scalar"),
        (lambda h: deferred_identity([mlp], [None, lambda h: 1.0], h), "must return a float64 tensor, got float"),
        (lambda h: deferred_identity([mlp], [None, lambda h: loss(h).float()], h), "must return a float64 tensor"),
    ],
)
def test_bad_input_is_refused(h, call, message):
    with pytest.raises(ValueError, match=message):
        call(h)


def test_a_hidden_part_along_the_state_alone_is_refused():
    """A random direction hardly sees what is detached; the state's own does, and it is what the instrument is for."""
    h = random(TOKENS, D, seed=5)

    def hiding(h: Tensor) -> Tensor:
        return raw_loss(rms_normalise(h)) + 1e-3 * h.norm(dim=-1).log().mean().detach()

    with pytest.raises(ValueError, match=r"derivative of losses\[1\] disagrees"):
        deferred_identity([mlp], [None, hiding], h)
