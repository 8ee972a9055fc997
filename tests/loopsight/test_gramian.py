"""The Gramian's ends against the dense matrix, and broken copies that must be found."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loopsight.gramian import gramian_extremes
from loopsight.protocol import unroll

D, VOCAB = 12, 17


def generator(seed: int = 100) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


HEAD, MIXING, BRANCH = random(VOCAB, D) / D**0.5, random(7, 7, seed=2) / 7, random(D, D, seed=3)


def rms_normalise(h: Tensor) -> Tensor:
    return h / h.square().mean(-1, keepdim=True).sqrt()


def normed(h: Tensor) -> Tensor:
    return rms_normalise(h) @ HEAD.T


def prenorm(h: Tensor) -> Tensor:
    """A residual step that mixes its seven tokens."""
    return h + MIXING @ torch.tanh(rms_normalise(h) @ BRANCH.T)


def dense(read, h: Tensor) -> Tensor:
    """Jacobian of (loops, tokens, vocab) logits, in relative changes of all states: (loops, tokens, vocab, numel)."""
    jacobian = torch.func.jacrev(read)(h)
    return (jacobian * h.norm(dim=-1, keepdim=True)).flatten(-2)


def centring(logits: Tensor, distribution: str) -> Tensor:
    p = logits.softmax(-1) if distribution == "model" else torch.full_like(logits, 1 / logits.shape[-1])
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def dense_gramian(step, readout, h: Tensor, weights, distribution: str) -> Tensor:
    def read(h: Tensor) -> Tensor:
        return torch.stack([readout(state) for state in unroll(step, h, len(weights) - 1)])

    jacobian, centre = dense(read, h), centring(read(h), distribution)
    return torch.einsum("k,ktvn,ktvw,ktwm->nm", h.new_tensor(weights), jacobian, centre, jacobian)


def assert_extremes(instrument, h: Tensor, distribution: str) -> None:
    weights = (0.0, 0.4, 0.6)
    matrix = dense_gramian(prenorm, normed, h, weights, distribution)
    values = torch.linalg.eigvalsh(matrix)
    found = instrument(prenorm, normed, h, weights, generator=generator(), distribution=distribution, count=2)
    floor = 1e-10 * values[-1].item()
    assert found.converged
    torch.testing.assert_close(found.least, values[:2], rtol=1e-6, atol=floor)
    torch.testing.assert_close(found.most, values[-2:].flip(0), rtol=1e-9, atol=floor)
    for value, direction in zip(
        (*found.least, *found.most), (*found.least_directions, *found.most_directions), strict=True
    ):
        direction = direction.flatten()
        assert direction.norm().item() == pytest.approx(1.0, abs=1e-10)
        torch.testing.assert_close(matrix @ direction, value * direction, rtol=0, atol=1e2 * floor)


@pytest.mark.parametrize("distribution", ["uniform", "model"])
def test_the_gramians_ends_are_those_of_the_dense_matrix(h, distribution):
    assert_extremes(gramian_extremes, h, distribution)


def of_unit_states(step, readout, h: Tensor, *rest, **options):
    return gramian_extremes(step, readout, F.normalize(h, dim=-1), *rest, **options)


def with_another_class(step, readout, h: Tensor, *rest, **options):
    """Centres about another mean."""
    return gramian_extremes(step, lambda h: F.pad(readout(h), (0, 1)), h, *rest, **options)


def with_weights_shifted_by_one(step, readout, h: Tensor, weights, **options):
    return gramian_extremes(step, readout, h, weights[1:], **options)


@pytest.mark.parametrize("mutant", [of_unit_states, with_another_class, with_weights_shifted_by_one])
def test_broken_copies_of_the_gramian_are_found(h, mutant):
    with pytest.raises(AssertionError):
        assert_extremes(mutant, h, "uniform")


def test_every_tokens_scale_is_among_the_least_visible_directions(h):
    """Immediately, behind a scale-free readout: as many blind directions as tokens, and no more."""
    found = gramian_extremes(prenorm, normed, h, (1.0,), generator=generator(), count=8)
    assert found.least[:7].abs().max() < 1e-13 * found.most[0]
    assert found.least[7] > 1e-6 * found.most[0]
    radial = F.normalize(h, dim=-1)
    inside = (found.least_directions[:7] * radial).sum(-1).square().sum(-1)  # all of every direction is radial
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-8)


def test_before_convergence_the_values_are_bounds(h):
    values = torch.linalg.eigvalsh(dense_gramian(prenorm, normed, h, (0.0, 1.0), "uniform"))
    found = gramian_extremes(prenorm, normed, h, (0.0, 1.0), generator=generator(), iterations=3)
    assert not found.converged and found.least_residuals.max() > 1e-6 * values[-1]
    assert found.least[0] > values[0] and found.most[0] <= values[-1] * (1 + 1e-12)


def test_before_convergence_every_residual_is_that_of_the_value_beside_it(h):
    matrix = dense_gramian(prenorm, normed, h, (0.0, 1.0), "uniform")
    found = gramian_extremes(prenorm, normed, h, (0.0, 1.0), generator=generator(), iterations=3, count=2)
    for end in ("least", "most"):
        values, residuals = getattr(found, end), getattr(found, f"{end}_residuals")
        vectors = getattr(found, f"{end}_directions").flatten(1)
        torch.testing.assert_close(residuals, (vectors @ matrix - values[:, None] * vectors).norm(dim=-1))
        assert abs(residuals[0] - residuals[1]) > 1e-2 * residuals[0]


@pytest.mark.parametrize("count", [0, 3, 4])
def test_more_directions_than_the_state_holds_at_both_ends_are_refused(count):
    one = random(1, 5, seed=4)
    with pytest.raises(ValueError, match=rf"count must lie in 1..2 and iterations be positive, got {count}, 64"):
        gramian_extremes(lambda h: h, lambda h: h, one, (1.0,), generator=generator(), count=count)
