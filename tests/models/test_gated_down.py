"""The function that keeps less for the backward pass is, to every order and in every mode, what it replaces."""

import pytest
import torch
import torch.nn.functional as F

from models.block import _GatedDown

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = tuple(torch.randn(*n, dtype=torch.float64, generator=GENERATOR) for n in ((3, 5), (3, 5), (4, 5)))
TANGENTS = tuple(torch.randn(*x.shape, dtype=torch.float64, generator=GENERATOR) for x in INPUTS)


def lean(gate, up, weight):
    return _GatedDown.apply(gate, up, weight)


def plain(gate, up, weight):
    return F.linear(F.silu(gate) * up, weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_value_and_derivatives_of_both_modes_and_second_order():
    inputs = tuple(t.clone().requires_grad_() for t in INPUTS)
    assert torch.allclose(lean(*inputs), plain(*inputs), rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lean, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lean, inputs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "transform", ["jvp", "jvp_first_only", "vmap_jvp", "grad", "vmap_grad", "hessian", "forward_over_reverse"]
)
def test_every_transform_gives_what_plain_gives(transform):
    gate, *rest = INPUTS

    def transformed(f):
        def loss(x):
            return f(x, rest[0][: len(x)] if x.ndim == 2 else rest[0][0], rest[1]).square().sum()

        match transform:
            case "jvp":
                return torch.func.jvp(f, INPUTS, TANGENTS)[1]
            case "jvp_first_only":
                return torch.func.jvp(lambda x: f(x, *rest), (gate,), TANGENTS[:1])[1]
            case "vmap_jvp":
                stacked = torch.stack([gate, TANGENTS[0]])
                return torch.vmap(lambda t: torch.func.jvp(f, INPUTS, (t, *TANGENTS[1:]))[1])(stacked)
            case "grad":
                return torch.func.grad(loss)(gate)
            case "vmap_grad":
                return torch.vmap(torch.func.grad(loss))(gate)
            case "hessian":
                return torch.func.jacrev(torch.func.grad(loss))(gate)
            case "forward_over_reverse":
                return torch.func.jvp(torch.func.grad(loss), (gate,), TANGENTS[:1])[1]

    assert torch.allclose(transformed(lean), transformed(plain), rtol=0, atol=1e-12)


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    inputs = tuple(t.clone().requires_grad_() for t in INPUTS)

    def kept(f):
        tensors = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t.data_ptr()) or t, lambda t: t):
            f(*inputs)
        return set(tensors)

    assert kept(lean) == {t.data_ptr() for t in inputs}
    assert len(kept(plain)) > 3
