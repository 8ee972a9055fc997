"""The chunked cross-entropy is the cross-entropy: value, rows, gradients; and it refuses what it cannot do."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from models import chunked_cross_entropy, losses


def problem(rows: int = 10, vocab: int = 13, d: int = 6, scale: float = 1.0, seed: int = 0, dtype=torch.float64):
    """features, head (both leaves), targets, row weights of either sign, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    features = (scale * torch.randn(rows, d, generator=generator, dtype=torch.float64)).to(dtype)
    head = torch.randn(vocab, d, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocab, (rows,), generator=generator)
    weights = torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype)
    weights[0] = 0.0
    return features.requires_grad_(), head.requires_grad_(), targets, weights


def plain(features: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    rows = F.cross_entropy(features @ head.T, targets, reduction="none")
    return rows @ weights, rows


def answers(loss, features: Tensor, head: Tensor, targets: Tensor, weights: Tensor, **options) -> dict[str, Tensor]:
    total, rows = loss(features, head, targets, weights, **options)
    # A factor on the loss, so that the incoming gradient is not 1.
    of_features, of_head = torch.autograd.grad(3.0 * total, (features, head))
    return {"total": total, "rows": rows, "features": of_features, "head": of_head}


@given(
    rows=st.integers(1, 12),
    vocab=st.integers(2, 15),
    chunk_rows=st.one_of(st.none(), st.integers(1, 14)),
    seed=st.integers(0, 100),
)
@settings(derandomize=True, deadline=None, max_examples=50)
def test_it_is_the_cross_entropy_for_any_chunk_size(rows, vocab, chunk_rows, seed):
    inputs = problem(rows, vocab, seed=seed)
    ours, theirs = answers(chunked_cross_entropy, *inputs, chunk_rows=chunk_rows), answers(plain, *inputs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("rows", [512, 700, 1024])
def test_the_default_chunk_may_or_may_not_divide_the_rows(rows):
    inputs = problem(rows)
    ours, theirs = answers(chunked_cross_entropy, *inputs), answers(plain, *inputs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_huge_and_tiny_logits(scale, dtype):
    inputs = problem(scale=scale, dtype=dtype)
    exact = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    ours, theirs = answers(chunked_cross_entropy, *inputs, chunk_rows=4), answers(plain, *exact)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    for name in theirs:
        error = (ours[name].double() - theirs[name]).abs().max() / theirs[name].abs().max()
        assert error < tolerance, name


def test_a_head_that_also_makes_the_features_gets_both_gradients():
    _, embedding, targets, weights = problem()
    tokens = torch.arange(10)

    def gradient(loss) -> Tensor:
        return torch.autograd.grad(loss(embedding[tokens].sin(), embedding, targets, weights)[0], embedding)[0]

    both = gradient(chunked_cross_entropy)
    torch.testing.assert_close(both, gradient(plain), rtol=1e-12, atol=1e-12)
    head_only = torch.autograd.grad(
        chunked_cross_entropy(embedding[tokens].sin().detach(), embedding, targets, weights)[0], embedding
    )[0]
    assert (both - head_only).abs().max() > 1e-2


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_of_features_and_head_may_be_frozen(frozen):
    inputs = problem()
    free = inputs[1 - frozen]
    inputs[frozen].requires_grad_(False)
    (ours,) = torch.autograd.grad(chunked_cross_entropy(*inputs, chunk_rows=3)[0], free)
    (theirs,) = torch.autograd.grad(plain(*inputs)[0], free)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_without_gradients_the_value_is_the_same():
    inputs = problem()
    with torch.no_grad():
        ours = chunked_cross_entropy(*inputs, chunk_rows=3)
    assert not ours[0].requires_grad
    for mine, theirs in zip(ours, plain(*inputs), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_the_rows_own_losses_carry_no_gradient():
    assert not chunked_cross_entropy(*problem())[1].requires_grad


def test_bfloat16_autocast_is_close_and_reports_float32():
    inputs = problem(rows=300, dtype=torch.float32)
    exact = answers(plain, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = answers(chunked_cross_entropy, *inputs)
    assert all(rounded[name].dtype == torch.float32 for name in rounded)
    for name in exact:
        error = (rounded[name] - exact[name]).norm() / exact[name].norm()
        assert 1e-5 < error < 3e-2, name  # products were rounded, and no worse than bfloat16 rounds


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_a_gpu_compiles_is_the_same(monkeypatch, scale, dtype):
    monkeypatch.setattr(losses, "_compiled_cross_entropy", lambda: losses._cross_entropy_to_compile)
    inputs = problem(scale=scale, dtype=dtype)
    fused, ours = (answers(chunked_cross_entropy, *inputs, chunk_rows=4, fused=fused) for fused in (True, False))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for name in ours:
        error = (fused[name] - ours[name]).abs().max() / ours[name].abs().max()
        assert error < tolerance, name


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on first use
def test_forward_mode_is_refused_and_never_a_silent_zero():
    features, head, targets, weights = (x.detach() for x in problem())

    def loss(features: Tensor) -> Tensor:
        return chunked_cross_entropy(features, head, targets, weights)[0]

    with pytest.raises(RuntimeError):
        torch.func.jvp(loss, (features,), (torch.ones_like(features),))
    with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError), match="forward"):
        loss(forward_ad.make_dual(features, torch.ones_like(features)))


@pytest.mark.parametrize("features_of", [lambda x: x, torch.sin], ids=["identity", "sin"])
def test_differentiating_twice_is_refused(features_of):
    """With features sin(x), the curvature of sin alone must not pass for the loss's second derivative."""
    x, *others = problem()
    total, _ = chunked_cross_entropy(features_of(x), *others)
    with pytest.raises(RuntimeError):
        (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), x)


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("target", [-100, 13])
def test_a_target_outside_the_vocabulary_is_refused(target, differentiate):
    features, head, targets, weights = problem()
    targets[4] = target
    with torch.set_grad_enabled(differentiate), pytest.raises(RuntimeError, match="out of bounds"):
        chunked_cross_entropy(features, head, targets, weights)


@pytest.mark.parametrize("chunk_rows", [0, -1])
def test_a_chunk_of_no_rows_is_refused(chunk_rows):
    with pytest.raises(ValueError):
        chunked_cross_entropy(*problem(), chunk_rows=chunk_rows)
