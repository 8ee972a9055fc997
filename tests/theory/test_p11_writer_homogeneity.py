"""P11's traps and mutants: which sets are the writers, and what each exception's derivative is."""

import copy
import math
from dataclasses import replace

import pytest
import sympy as sp
import torch

from theory.cases import Case
from theory.proposition import ProofError
from theory.propositions import p11_writer_homogeneity as p11
from theory.random_model import Architecture, random_model, rms_normalise

UNTIED = Architecture(layers=2, loops=3, biases=True)


def along_writers(a: Architecture) -> tuple[float, float, float]:
    """<g_w, w>, the gap sum, and |g_w| |w|."""
    model, names = random_model(a), p11.writers(a)
    found = p11.derivatives(model)
    size = p11.lengths(found.gradients, model.parameters, names)
    return p11.inner(found.gradients, model.parameters, names), found.gap, size


@pytest.mark.parametrize("readout", ["rmsnorm", "layernorm", "group_rmsnorm"])
@pytest.mark.parametrize("between", ["none", "rmsnorm", "damping"])
@pytest.mark.parametrize("block_norm", ["rmsnorm", "layernorm"])
def test_writers_scale_every_state_and_no_logit(readout, between, block_norm):
    a = replace(UNTIED, readout=readout, between=between, block_norm=block_norm, qk_norm=True)
    model = random_model(a)
    moved = {n: (3.0 if n in p11.writers(a) else 1.0) * x for n, x in model.parameters.items()}
    for before, after in zip(model.states(), model.states(moved), strict=True):
        torch.testing.assert_close(after, 3.0 * before, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(model.readout(moved)(after), model.readout()(before), rtol=1e-11, atol=1e-11)
    along, _, size = along_writers(a)
    assert abs(along) < 1e-14 * size


@pytest.mark.parametrize("missing", ["position_embedding", "0.mlp.down", "1.attention.bias", "0.mlp.bias"])
def test_no_writer_can_be_left_out(missing):
    names = tuple(name for name in p11.writers(UNTIED) if name != missing)
    assert p11.residual(random_model(UNTIED), names, 0) > 1e-5


def test_a_branch_has_one_writer_not_two():
    names = (*p11.writers(UNTIED), "0.attention.v")
    assert p11.residual(random_model(UNTIED), names, 0) > 1e-5
    instead = tuple(name if name != "0.attention.out" else "0.attention.v" for name in p11.writers(UNTIED))
    no_biases = replace(UNTIED, biases=False)
    instead = tuple(name for name in instead if not name.endswith("bias"))
    assert p11.residual(random_model(no_biases), instead, 0) < 1e-14  # W_V in the place of W_O writes as well


@pytest.mark.parametrize(
    ("readout", "tied", "times"), [("rmsnorm", True, 1), ("raw", False, 1), ("raw", True, 2), ("rmsnorm", False, 0)]
)
@pytest.mark.parametrize("gain", [True, False])
def test_the_derivative_counts_the_gap_once_per_role(readout, tied, times, gain):
    along, gap, size = along_writers(replace(UNTIED, readout=readout, tied=tied, gain=gain))
    assert abs(along - times * gap) < 1e-13 * size
    assert abs(gap) > 1e-3 * size  # nothing passes because the gap is 0
    for wrong in {0, 1, 2} - {times}:
        assert abs(along - wrong * gap) > 1e-3 * size


def test_a_readout_gain_restores_the_tied_gauge():
    a = replace(UNTIED, tied=True)
    model, names = random_model(a), p11.writers(a)
    moved = {n: (2.5 if n in names else 1.0) * x for n, x in model.parameters.items()}
    moved["readout.gain"] = model.parameters["readout.gain"] / 2.5
    torch.testing.assert_close(model.loss(moved), model.loss(), rtol=1e-12, atol=0)
    found = p11.derivatives(model)
    gain = p11.inner(found.gradients, model.parameters, ("readout.gain",))
    along, _, size = along_writers(a)
    assert abs(along - gain) < 1e-14 * size < 1e-3 * abs(gain)


def test_a_norm_penalty_adds_twice_itself():
    a = replace(UNTIED, eps=0.0)
    model, names = random_model(a), p11.writers(a)
    p = {name: tensor.clone().requires_grad_() for name, tensor in model.parameters.items()}
    penalty = 0.01 * torch.stack([h.square().mean() for h in model.states(p)[1:]]).mean()
    gradients = torch.autograd.grad(model.loss(p) + penalty, [p[name] for name in names])
    along = sum((g * p[name]).sum().item() for g, name in zip(gradients, names, strict=True))
    assert along == pytest.approx(2 * penalty.item(), rel=1e-10)


def test_epsilon_has_degree_two():
    """L(c w; c^2 eps) = L(w; eps), whose derivative is <g_w, w> = -2 eps dL/deps."""
    a = replace(UNTIED, eps=1e-2)
    model, names = random_model(a), p11.writers(a)
    moved = {n: (3.0 if n in names else 1.0) * x for n, x in model.parameters.items()}
    weights = p11.loop_weights(a)

    def loss_at(eps: float, parameters=None) -> float:
        return replace(model, architecture=replace(a, eps=eps)).loss(parameters, weights).item()

    assert loss_at(9e-2, moved) == pytest.approx(loss_at(1e-2), rel=1e-12)
    slope = (loss_at(1.001e-2) - loss_at(0.999e-2)) / 2e-5
    along, _, size = along_writers(a)
    assert along == pytest.approx(-2e-2 * slope, rel=1e-4)
    assert abs(along) > 1e-5 * size


@pytest.mark.parametrize("changes", [{}, {"readout": "raw"}, {"tied": True}, {"between": "rmsnorm"}], ids=str)
def test_the_derivative_with_an_epsilon_and_a_penalty_at_once(changes):
    model = random_model(replace(UNTIED, eps=p11.QK_EPS, qk_norm=True, **changes))
    assert p11.leak_residual(model, 0.3, 0.01) < 1e-14


def test_trap_the_epsilon_of_qk_norm_does_not_scale():
    """Queries have degree 0 already: with one epsilon for all norms, -2 eps dL/deps is not the derivative."""

    def along_and_slope(qk_norm: bool) -> tuple[float, float]:
        a = Architecture(seed=1, eps=0.1, qk_norm=qk_norm)
        model, weights = random_model(a), p11.loop_weights(a)
        ends = [replace(model, architecture=replace(a, eps=0.1 + x)).loss(None, weights).item() for x in (1e-5, -1e-5)]
        return along_writers(a)[0], -0.2 * (ends[0] - ends[1]) / 2e-5

    along, claimed = along_and_slope(False)
    assert along == pytest.approx(claimed, rel=1e-6)
    along, claimed = along_and_slope(True)
    assert abs(along - claimed) > abs(claimed) / 2
    assert p11.leak_residual(random_model(Architecture(seed=1, eps=0.1, qk_norm=True)), 0.1, 0.0) < 1e-14


@pytest.mark.parametrize(
    "mutant",
    [
        lambda gap, penalty, leak: gap + penalty - 2.0 * leak,
        lambda gap, penalty, leak: gap + 2.0 * penalty - leak,
        lambda gap, penalty, leak: gap + 2.0 * penalty,
        lambda gap, penalty, leak: gap - 2.0 * leak,
    ],
)
def test_the_check_detects_a_wrong_share_of_penalty_and_epsilon(monkeypatch, mutant):
    monkeypatch.setattr(p11, "along_writers", mutant)
    assert not any(p11.check(Case(seed=seed)).holds for seed in range(4))


def test_the_check_detects_an_epsilon_that_reaches_qk_norm(monkeypatch):
    attention = p11.RandomModel._attention

    def with_the_same_epsilon(self, p, name, x):
        shared = copy.copy(self.architecture)
        object.__setattr__(shared, "eps", p.get("eps", shared.eps))
        return attention(replace(self, architecture=shared), p, name, x)

    cases = [Case(seed=seed) for seed in range(6)]
    assert all(p11.check(case).holds for case in cases)
    monkeypatch.setattr(p11.RandomModel, "_attention", with_the_same_epsilon)
    assert not all(p11.check(case).holds for case in cases)


def test_block_writers_alone_are_seen_at_neither_end():
    """d L / dlog c is O(c) as c -> 0 and O(1/c) as c -> infinity."""
    a = replace(UNTIED, tied=True, biases=False)
    model, blocks = random_model(a), p11.block_writers(a)

    def along(c: float) -> float:
        moved = {n: (c if n in blocks else 1.0) * x for n, x in model.parameters.items()}
        found = p11.derivatives(replace(model, parameters=moved))
        return p11.inner(found.gradients, moved, blocks)

    assert along(1e-5) / 1e-5 == pytest.approx(along(1e-6) / 1e-6, rel=1e-3)
    # Joint scale by 1/c: large block writers are small embeddings, in a model whose h_0 hardly matters.
    assert along(1e6) * 1e6 == pytest.approx(along(1e7) * 1e7, rel=1e-2)
    assert abs(along(1.0)) > 1e3 * max(abs(along(1e-6)), abs(along(1e7)))


def test_with_a_norm_after_the_branch_its_gain_writes_and_the_output_map_is_blind_alone():
    """Sandwich norms: h + gain_post N(W_O f(N(h))). A LayerScale in W_O's place behaves the same way."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p = {"embedding": draw(4, 8), "up": draw(8, 8), "out": draw(8, 8), "post": 1 + 0.3 * draw(8), "head": draw(5, 8)}
    p = {name: tensor.requires_grad_() for name, tensor in p.items()}

    def gradients(sandwich: bool) -> dict[str, float]:
        h = p["embedding"]
        for _ in range(3):
            branch = torch.tanh(rms_normalise(h, 0.0) @ p["up"].T) @ p["out"].T
            h = h + p["post"] * (rms_normalise(branch, 0.0) if sandwich else branch)
        logits = rms_normalise(h, 0.0) @ p["head"].T
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 4, 1]))
        found = torch.autograd.grad(loss, list(p.values()))
        return {name: (g * t).sum().item() for (name, t), g in zip(p.items(), found, strict=True)}

    sandwich, scaled = gradients(True), gradients(False)
    assert abs(sandwich["embedding"] + sandwich["post"]) < 1e-14 < 1e-4 < abs(sandwich["post"])
    assert abs(sandwich["out"]) < 1e-14
    assert abs(scaled["embedding"] + scaled["out"]) < 1e-14 < 1e-4 < abs(scaled["out"])
    assert abs(scaled["embedding"] + scaled["post"]) < 1e-14
    assert abs(scaled["embedding"] + scaled["post"] + scaled["out"]) > 1e-4


def test_nothing_to_measure_is_nan_and_not_a_pass():
    model = random_model(replace(UNTIED, biases=False))
    silent = replace(model, parameters={**model.parameters, "head": torch.zeros(9, 12, dtype=torch.float64)})
    assert math.isnan(p11.residual(silent, p11.writers(model.architecture), 0))


@pytest.mark.parametrize("mutant", [lambda: p11.gap() + p11.z[p11.y], lambda: -p11.gap(), lambda: 2 * p11.gap()])
def test_wrong_gaps_are_rejected(monkeypatch, mutant):
    wrong = mutant()
    monkeypatch.setattr(p11, "gap", lambda: wrong)
    with pytest.raises(ProofError, match="logits of degree p"):
        p11.prove()


def test_logits_that_are_shifted_instead_of_scaled_are_rejected(monkeypatch):
    shifted = sp.log(sp.Sum(sp.exp(p11.z[p11.v] + p11.c), (p11.v, 1, p11.V))) - p11.z[p11.y] - p11.c
    monkeypatch.setattr(p11, "scaled_cross_entropy", lambda: shifted)
    with pytest.raises(ProofError, match="logits of degree p"):
        p11.prove()


def test_the_numeric_check_detects_an_epsilon_and_a_forgotten_writer(monkeypatch):
    assert p11.check(Case()).holds
    assert not p11.check(Case(eps=1e-3)).holds
    monkeypatch.setattr(p11, "writers", lambda a, writers=p11.writers: writers(a)[1:])
    assert not p11.check(Case()).holds
