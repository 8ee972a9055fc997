"""The blind subspace against dense linear algebra, in closed form, and against broken copies of itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import loopsight.blind as module
from loopsight.blind import BlindSubspace, blind_subspace
from models import LoopedLM, ModelConfig, ReadoutConfig

D, VOCAB = 12, 30


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


HEAD, STATE = random(VOCAB, D), random(D, seed=2)


def grouped(h: Tensor, groups: int, centred: bool) -> Tensor:
    h = h.unflatten(-1, (groups, -1))
    h = h - h.mean(-1, keepdim=True) if centred else h
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True))).flatten(-2)


NORMS = {
    "raw": (lambda h: h, 0),
    "rmsnorm": (lambda h: F.rms_norm(h, (D,), eps=0.0), 1),
    "layernorm": (lambda h: F.layer_norm(h, (D,), eps=0.0), 2),
    "layernorm with epsilon": (lambda h: F.layer_norm(h, (D,), eps=0.1), 1),
    "rmsnorm with epsilon": (lambda h: F.rms_norm(h, (D,), eps=1e-6), 0),
    "group rms": (lambda h: grouped(h, 3, False), 3),
    "group norm": (lambda h: grouped(h, 3, True), 6),
    "group norm of pairs": (lambda h: grouped(h, 6, True), 12),
}


def without(weight: Tensor, kernel: int) -> Tensor:
    """The weight with a kernel of that dimension, in general position."""
    hidden = torch.linalg.qr(random(D, max(kernel, 1), seed=5))[0][:, :kernel]
    return weight - weight @ hidden @ hidden.T


def assert_dimensions(instrument) -> None:
    for scale in (1e-3, 1.0, 1e3):
        for normalise, generators in NORMS.values():
            for kernel in (0, 1, 3):
                weight = without(HEAD, kernel) + random(D)  # every row moves alike: nothing that C lets through

                def readout(h: Tensor, normalise=normalise, weight=weight, scale=scale) -> Tensor:
                    return normalise(h / scale) @ weight.T

                assert instrument(readout, scale * STATE).dimension == max(generators, kernel)


def relative_to_the_largest(readout, h: Tensor) -> BlindSubspace:
    largest = torch.linalg.matrix_norm(torch.func.jacrev(readout)(h), 2).item()
    return blind_subspace(readout, h, scale=largest)


def uncentred(readout, h: Tensor) -> BlindSubspace:
    return blind_subspace(readout, h, centred=False)


def coarse(readout, h: Tensor) -> BlindSubspace:
    """What a Gram matrix alone can resolve: an epsilon's leak of 1e-6 at unit scale counts as blind."""
    return blind_subspace(readout, h, tolerance=1e-4)


def test_dimensions_of_norms_and_kernels_at_every_scale():
    assert_dimensions(blind_subspace)


@pytest.mark.parametrize("mutant", [relative_to_the_largest, uncentred, coarse])
def test_broken_copies_have_other_dimensions(mutant):
    with pytest.raises(AssertionError):
        assert_dimensions(mutant)


def test_singular_values_and_basis_are_those_of_the_dense_jacobian():
    weight = without(HEAD, 3)

    def readout(h: Tensor) -> Tensor:
        return F.layer_norm(h, (D,), eps=0.0) @ weight.T

    jacobian = torch.func.jacrev(readout)(STATE)
    _, values, right = torch.linalg.svd(jacobian - jacobian.mean(0))
    blind = blind_subspace(readout, STATE)
    torch.testing.assert_close(blind.scale * blind.singular_values, values.flip(0), rtol=1e-9, atol=1e-12)
    dense = right[-3:]
    torch.testing.assert_close(blind.basis.T @ blind.basis, dense.T @ dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(blind.basis @ blind.basis.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_the_distance_of_a_direction():
    blind = blind_subspace(lambda h: F.layer_norm(h, (D,), eps=0.0) @ HEAD.T, STATE)
    across = STATE - STATE.mean()
    other = random(D, seed=7)
    other = other - other.mean() - (other @ across) / (across @ across) * across
    for seen, expected in ((0.0, 0.0), (1e-6, 1e-6), (1.0, 2**-0.5), (1e9, 1.0)):
        direction = across / across.norm() + seen * other / other.norm()
        assert blind.distance(1e-5 * direction) == pytest.approx(expected, rel=1e-6, abs=1e-14)
    assert blind.distance(torch.ones(D, dtype=torch.float64)) < 1e-14


def test_a_kernel_is_found_beside_directions_that_are_barely_visible():
    """Singular values of 1e-7 of the largest are far below what a Gram matrix of everything resolves."""
    left, right = torch.linalg.qr(random(VOCAB, D))[0], torch.linalg.qr(random(D, D, seed=3))[0]
    left = torch.linalg.qr(left - left.mean(0))[0]
    values = torch.logspace(0, -7, D, dtype=torch.float64)
    values[-2:] = 0.0
    blind = blind_subspace(lambda h: h @ (left * values @ right.T).T, STATE)
    assert blind.dimension == 2
    assert blind.distance(right[:, -1]) < 1e-9 and blind.distance(right[:, -3]) > 1 - 1e-9
    assert blind.singular_values[:2].max() < 1e-12
    smallest = blind.scale * blind.singular_values[2]
    assert smallest.item() == pytest.approx(values[-3].item(), rel=1e-3)


def test_the_dimension_alone_does_not_tell_a_raw_readout_of_few_classes():
    few = HEAD[:6]
    raw = blind_subspace(lambda h: h @ few.T, STATE)
    normed = blind_subspace(lambda h: F.rms_norm(h, (D,), eps=0.0) @ few.T, STATE)
    assert raw.dimension == normed.dimension == D - 5
    assert normed.distance(STATE) < 1e-13 < 0.1 < raw.distance(STATE)


@pytest.mark.parametrize("eps", [1e-2, 1e-6])
def test_the_smallest_singular_value_of_an_epsilon_is_its_leak(eps):
    """J u = rho W u / sigma, and no other direction is as faint."""
    head = torch.linalg.qr(HEAD - HEAD.mean(0))[0]  # so that |W u| = |u| through C
    state = STATE / STATE.square().mean().sqrt()
    blind = blind_subspace(lambda h: F.rms_norm(h, (D,), eps=eps) @ head.T, state)
    assert blind.dimension == 0
    ratio = (blind.singular_values[0] / blind.singular_values[-1]).item()
    assert ratio == pytest.approx(eps / (1 + eps), rel=1e-8)


def test_a_saturated_channel_is_blind():
    state = torch.cat([torch.full((4,), 40.0, dtype=torch.float64), STATE[:8]])
    blind = blind_subspace(lambda h: torch.tanh(h) @ HEAD.T, state)
    assert blind.dimension == 4
    for channel in range(D):
        assert (blind.distance(torch.eye(D, dtype=torch.float64)[channel]) < 1e-10) == (channel < 4)


@pytest.mark.parametrize(("norm", "each"), [("raw", 0), ("rmsnorm", 1), ("layernorm", 2)])
def test_tokens_have_their_own_blind_directions(norm, each):
    states = torch.logspace(-2, 2, 5, dtype=torch.float64)[:, None] * random(5, D)
    blind = blind_subspace(lambda h: NORMS[norm][0](h) @ HEAD.T, states)
    assert blind.dimension == 5 * each and blind.basis.shape[1:] == states.shape
    for token in range(5):
        alone = torch.zeros_like(states)
        alone[token] = states[token]
        assert (blind.distance(alone) < 1e-12) == (each > 0)


def test_a_norm_over_all_tokens_is_blind_to_their_common_scale_only():
    states, head = random(4, 3), random(VOCAB, 3)

    def readout(h: Tensor) -> Tensor:
        return h / h.norm() @ head.T

    blind = blind_subspace(readout, states)
    alone = torch.cat([states[:1], torch.zeros(3, 3, dtype=torch.float64)])
    assert blind.dimension == 1 and blind.distance(states) < 1e-14 and blind.distance(alone) > 0.1


def test_a_readout_of_constant_logits_sees_nothing():
    blind = blind_subspace(lambda h: 0 * h.sum() + torch.ones(VOCAB, dtype=torch.float64), STATE)
    assert blind.dimension == D and blind.scale == 0.0


def test_modules_that_are_not_ours_and_require_gradients():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 24, 0.0, norm_first=True, batch_first=True, dtype=torch.float64)
    norm, head = nn.LayerNorm(D, eps=0.0, dtype=torch.float64), nn.Linear(D, VOCAB, dtype=torch.float64)
    h = layer(random(1, 3, D)).detach()[0]
    for readout, each in ((nn.Sequential(norm, head), 2), (head, 0)):
        blind = blind_subspace(readout, h)
        assert blind.dimension == 3 * each and not blind.basis.requires_grad
    # Through another loop as many directions are blind, no longer those of the state, and still those of the ones.
    through = blind_subspace(lambda h: head(norm(layer(h[None])[0])), h)
    assert through.dimension == 6
    assert through.distance(torch.ones_like(h)) < 1e-12 < 1e-2 < through.distance(h - h.mean(-1, keepdim=True))


def test_a_recurrent_cell_and_a_linear_map():
    torch.manual_seed(0)
    cell, head = nn.GRUCell(D, D, dtype=torch.float64), nn.Linear(D, VOCAB, dtype=torch.float64)
    x, h = random(1, D, seed=8), STATE[None]
    assert blind_subspace(lambda h: head(cell(x, h)), h).dimension == 0
    rank_3 = random(D, 3) @ random(3, D, seed=4)
    assert blind_subspace(lambda h: head(h @ rank_3), h).dimension == D - 3


@pytest.mark.parametrize(
    ("readout", "dimension"),
    [
        (ReadoutConfig(kind="raw", gain=False), 0),
        (ReadoutConfig(kind="rmsnorm"), 1),
        (ReadoutConfig(kind="rmsnorm", tied=False), 1),
        (ReadoutConfig(kind="layernorm"), 2),
        (ReadoutConfig(kind="group_rmsnorm", num_groups=3), 3),
        (ReadoutConfig(kind="group_layernorm", num_groups=3), 6),
    ],
    ids=lambda x: getattr(x, "kind", x),
)
def test_our_own_readouts(readout, dimension):
    torch.manual_seed(0)
    sizes = dict(d_model=D, num_layers=1, num_heads=2, vocab_size=VOCAB, context=5)
    model = LoopedLM(ModelConfig(**sizes, readout=readout, norm_eps=0.0)).double().eval()
    h = model(torch.arange(5)[None])[2][0, 3].detach()
    blind = blind_subspace(model.readout, h)
    assert blind.dimension == dimension
    assert (blind.distance(h) < 1e-12) == (dimension > 0)


@pytest.mark.parametrize(
    "readout",
    [
        lambda h: h.detach() @ HEAD.T,
        lambda h: h / h.norm().detach() @ HEAD.T,
        lambda h: torch.no_grad()(torch.sin)(h) @ HEAD.T,
        lambda h: (h * torch.rand_like(h)) @ HEAD.T,
    ],
    ids=["detached", "half detached", "no gradient in reverse mode", "random"],
)
def test_a_derivative_that_is_missing_is_not_called_blind(readout):
    with pytest.raises(ValueError, match="disagrees with its finite differences"):
        blind_subspace(readout, STATE)


class LargestResult(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes, views and zeros that take no memory aside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and func._schema.returns[0].alias_info is None and not result._is_zerotensor():
            self.elements = max(self.elements, result.numel())
        return result


def test_the_jacobian_is_never_held_whole(monkeypatch):
    d, vocab = 64, 600
    head, h = without_kernel(random(vocab, d)), random(d)

    def readout(h: Tensor) -> Tensor:
        return F.rms_norm(h, (d,), eps=0.0) @ head.T

    whole = blind_subspace(readout, h)
    monkeypatch.setattr(module, "HELD_ENTRIES", 10 * vocab)
    with LargestResult() as seen:
        in_blocks = blind_subspace(readout, h)
    assert 10 * vocab <= seen.elements < 12 * vocab < vocab * d
    assert in_blocks.dimension == whole.dimension == 12
    torch.testing.assert_close(in_blocks.singular_values, whole.singular_values, rtol=1e-10, atol=1e-14)
    assert max(whole.distance(direction) for direction in in_blocks.basis) < 1e-12


def without_kernel(head: Tensor) -> Tensor:
    """Twelve channels unread: more kernel than a block of ten columns holds."""
    rotation = torch.linalg.qr(random(head.shape[1], 12, seed=3))[0]
    return head - head @ rotation @ rotation.T


@pytest.mark.parametrize(
    ("readout", "h", "message"),
    [
        (lambda h: h, torch.ones(3), "h must be float64"),
        (lambda h: h, torch.zeros(3, dtype=torch.float64), "zero state"),
        (lambda h: h, torch.full((3,), torch.nan, dtype=torch.float64), "NaN"),
        (lambda h: h.sum(), torch.ones(3, dtype=torch.float64), "must return logits"),
        (lambda h: h.float(), torch.ones(3, dtype=torch.float64), "must return a float64 tensor"),
        (lambda h: h.argmax(), torch.ones(3, dtype=torch.float64), "must return a float64 tensor"),
    ],
)
def test_bad_input_is_refused(readout, h, message):
    with pytest.raises(ValueError, match=message):
        blind_subspace(readout, h)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 1e-15}, "tolerance must lie"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"scale": 0.0}, "scale must be"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        blind_subspace(lambda h: h, STATE, **options)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (torch.ones(D + 1, dtype=torch.float64), "must have the state's shape"),
        (torch.zeros(D, dtype=torch.float64), "finite and not zero"),
        (torch.full((D,), torch.inf, dtype=torch.float64), "finite and not zero"),
    ],
)
def test_impossible_directions_are_refused(direction, message):
    blind = blind_subspace(lambda h: h @ HEAD.T, STATE)
    with pytest.raises(ValueError, match=message):
        blind.distance(direction)
