"""Float64 arithmetic over low-precision weights, without touching them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loopsight.auditing import exact
from loopsight.auditing.exact import exact_arithmetic
from loopsight.derivatives import differentiable_kernels


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_what_a_float64_copy_computes_in_both_modes(make_model, tokens, dtype, kept):
    model = make_model().to(dtype)
    copied = copy.deepcopy(model).double()
    h = model.embed(tokens).detach().double()

    def run(which):
        def both(x):
            return which.readout(which.step(x))

        tangent = torch.func.jvp(both, (h,), (h.sin(),))[1]
        value, pull = torch.func.vjp(both, h)
        return value.detach(), tangent.detach(), pull(value.cos())[0].detach()

    # The copy's own norm casts nothing of a float64 state; the low-precision model's casts are what is undone.
    with differentiable_kernels():
        expected = run(copied)
    with exact_arithmetic(model if kept else None):
        run(model)
        found = run(model)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_weights_are_kept_and_nothing_else_is(monkeypatch):
    layer, other = torch.nn.Linear(3, 2), torch.randn(2, 3)
    kept = exact._KeptWeights(layer)
    for view in (layer.weight, layer.weight.T, layer.weight[1:], layer.bias):
        first, second = kept.double(view), kept.double(view)
        assert torch.equal(first, view.double()) and first.stride() == view.stride()
        assert first.data_ptr() == second.data_ptr()
    assert kept.double(other).data_ptr() != kept.double(other).data_ptr()
    monkeypatch.setattr(exact, "KEPT_BYTES", 8 * 8 - 1)  # eight parameters need 64
    large = exact._KeptWeights(layer)
    assert large.double(layer.weight).data_ptr() != large.double(layer.weight).data_ptr()


def test_a_weight_that_is_written_to_is_made_anew():
    layer, h = torch.nn.Linear(3, 2), torch.ones(1, 3, dtype=torch.float64)
    with torch.no_grad(), exact_arithmetic(layer):
        before = layer(h)
        layer.weight.mul_(2.0)
        layer.bias.mul_(2.0)
        torch.testing.assert_close(layer(h), 2.0 * before, rtol=1e-12, atol=0.0)


def test_outside_of_it_dtypes_do_not_mix(make_model, tokens):
    """Negative control."""
    model = make_model()
    h = model.embed(tokens).detach().double()
    with pytest.raises(RuntimeError, match="dtype"):
        model.step(h)
    with exact_arithmetic():
        model.step(h)
    with pytest.raises(RuntimeError, match="dtype"):
        model.step(h)


def test_what_starts_in_low_precision_stays_there(make_model, tokens):
    model = make_model()
    with exact_arithmetic():
        assert model.step(model.embed(tokens)).dtype == torch.float32


def test_a_write_that_would_be_lost_is_refused(make_model, tokens):
    h = make_model().embed(tokens).detach().double()

    def buffered(x):
        buffer = torch.zeros(x.shape)
        buffer.copy_(x)
        buffer.mul_(x)
        return buffer

    with exact_arithmetic(), pytest.raises(ValueError, match="writes a float64 state into a torch.float32 tensor"):
        buffered(h)
    with exact_arithmetic():
        assert torch.equal(torch.zeros_like(h).add_(torch.ones(h.shape)), torch.ones_like(h))


PARTICULAR = {
    "conv1d": (lambda: nn.Conv1d(6, 6, 3, padding=1), lambda m, x: m(x)),
    "conv2d": (lambda: nn.Conv2d(5, 2, 3, padding=1), lambda m, x: m(x[None])),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(6, 6, 3, padding=1), lambda m, x: m(x)),
    "prelu": (nn.PReLU, lambda m, x: m(x)),
    "bilinear": (lambda: nn.Bilinear(8, 8, 3), lambda m, x: m(x, x)),
    "tensordot": (lambda: nn.Linear(8, 3), lambda m, x: torch.tensordot(x, m.weight, dims=([-1], [1]))),
    "attention": (lambda: nn.Linear(8, 6), lambda m, x: F.scaled_dot_product_attention(x, m.weight.expand(5, 6, 8), x)),
    "mask": (lambda: nn.Linear(6, 6), lambda m, x: F.scaled_dot_product_attention(x, x, x, attn_mask=m.weight)),
}


@pytest.mark.parametrize("name", PARTICULAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_functions_that_refuse_mixed_dtypes_are_taken_too(name, dtype):
    make, call = PARTICULAR[name]
    torch.manual_seed(0)
    layer, h = make().to(dtype), torch.randn(5, 6, 8, dtype=torch.float64)
    wide = copy.deepcopy(layer).double()
    with exact_arithmetic(layer):
        found = torch.func.jvp(lambda x: call(layer, x), (h,), (h.sin(),))
    for a, b in zip(found, torch.func.jvp(lambda x: call(wide, x), (h,), (h.sin(),)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    if (name, dtype) != ("mask", torch.float32):  # the one that torch takes, too
        with pytest.raises(RuntimeError):
            call(layer, h)
