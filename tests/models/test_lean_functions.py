"""The functions that keep less for the backward pass are, to every order and in every mode, what they replace."""

import pytest
import torch
import torch.nn.functional as F

from models.block import _GatedDown
from models.norms import _GainedRMS

GENERATOR = torch.Generator().manual_seed(0)
EPS = 0.1


def random(*shapes):
    return tuple(torch.randn(*shape, dtype=torch.float64, generator=GENERATOR) for shape in shapes)


def gated_down(gate, up, weight):
    return F.linear(F.silu(gate) * up, weight)


def gained_rms(h, gain):
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS) * gain


# lean, plain, inputs (the first has one row an example), tangents
FUNCTIONS = {
    "gated_down": (_GatedDown.apply, gated_down, random((3, 5), (3, 5), (4, 5)), random((3, 5), (3, 5), (4, 5))),
    "gained_rms": (
        lambda h, gain: _GainedRMS.apply(h, gain, EPS),
        gained_rms,
        random((3, 5), (5,)),
        random((3, 5), (5,)),
    ),
}
each_function = pytest.mark.parametrize("lean, plain, inputs, tangents", FUNCTIONS.values(), ids=FUNCTIONS)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@each_function
def test_value_and_derivatives_of_both_modes_and_second_order(lean, plain, inputs, tangents):
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    assert torch.allclose(lean(*inputs), plain(*inputs), rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lean, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lean, inputs)


@each_function
def test_plain_gradients(lean, plain, inputs, tangents):
    """Without a graph of the backward pass, which then works in place."""
    gradients = []
    for f in (lean, plain):
        leaves = tuple(t.clone().requires_grad_() for t in inputs)
        gradients.append(torch.autograd.grad(f(*leaves).pow(3).sum(), leaves))
    for ours, expected in zip(*gradients, strict=True):
        assert torch.allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "transform",
    ["jvp", "jvp_first_only", "vmap_jvp", "grad", "vmap_grad", "vmap_grad_each", "hessian", "forward_over_reverse"],
)
@each_function
def test_every_transform_gives_what_plain_gives(lean, plain, inputs, tangents, transform):
    first, *rest = inputs

    def gradients_over_one(f, index):
        stacked = torch.stack([inputs[index], tangents[index]])
        one = torch.func.grad(lambda t: f(*inputs[:index], t, *inputs[index + 1 :]).square().sum())
        return torch.vmap(one)(stacked)

    def transformed(f):
        def loss(x):
            others = [t[: len(x)] if t.shape == first.shape else t for t in rest]
            if x.ndim == 1:
                others = [t[0] if t.shape == first.shape else t for t in rest]
            return f(x, *others).square().sum()

        match transform:
            case "jvp":
                return torch.func.jvp(f, inputs, tangents)[1]
            case "jvp_first_only":
                return torch.func.jvp(lambda x: f(x, *rest), (first,), tangents[:1])[1]
            case "vmap_jvp":
                stacked = torch.stack([first, tangents[0]])
                return torch.vmap(lambda t: torch.func.jvp(f, inputs, (t, *tangents[1:]))[1])(stacked)
            case "grad":
                return torch.func.grad(loss)(first)
            case "vmap_grad":
                return torch.vmap(torch.func.grad(loss))(first)
            case "vmap_grad_each":  # one input alone has a batch
                return torch.cat([gradients_over_one(f, index).flatten() for index in range(len(inputs))])
            case "hessian":
                return torch.func.jacrev(torch.func.grad(loss))(first)
            case "forward_over_reverse":
                return torch.func.jvp(torch.func.grad(loss), (first,), tangents[:1])[1]

    assert torch.allclose(transformed(lean), transformed(plain), rtol=0, atol=1e-12)


@each_function
def test_nothing_but_the_inputs_is_kept_for_the_backward_pass(lean, plain, inputs, tangents):
    inputs = tuple(t.clone().requires_grad_() for t in inputs)

    def kept(f):
        tensors = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t.data_ptr()) or t, lambda t: t):
            f(*inputs)
        return set(tensors)

    assert kept(lean) == {t.data_ptr() for t in inputs}
    assert len(kept(plain)) > len(inputs)
