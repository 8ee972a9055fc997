"""P4's traps, each of which has made something look blind that was not, and wrong formulas in P4's place."""

import dataclasses

import pytest
import torch

from loopsight.observability import activity, deferred_visibility, visibility
from theory.cases import Case
from theory.proposition import ProofError
from theory.propositions import p04_visibility_activity as p04
from theory.random_model import Architecture, random_model
from theory.symbols import h, j

CASE = Case(seed=1, d=12, vocab=9, tokens=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def architecture(**changes) -> Architecture:
    return dataclasses.replace(Architecture(seed=3, batch=1, tokens=4, loops=3), **changes)


def test_a_jacobian_with_a_wrong_factor_is_rejected(monkeypatch):
    monkeypatch.setattr(p04, "jacobian_times_state", lambda: h[j] / (p04.S2 / p04.d) ** 0.5)
    with pytest.raises(ProofError, match="RMSNorm"):
        p04.prove()


def test_a_visibility_that_is_not_centred_is_rejected(monkeypatch):
    monkeypatch.setattr(p04, "variance", lambda second_moment, mean: second_moment)
    with pytest.raises(ProofError, match="mean square is the visibility"):
        p04.prove()


def test_a_direction_that_turns_half_as_fast_is_rejected(monkeypatch):
    exact = p04.turning_per_e_fold
    monkeypatch.setattr(p04, "turning_per_e_fold", lambda s, a, beta: exact(s, a, beta) / 2)
    with pytest.raises(ProofError, match="d angle / d log s"):
        p04.prove()


def test_the_check_detects_an_epsilon(monkeypatch):
    """An epsilon leaks scale into the logits and loses it from the carry."""
    assert p04.check(CASE).holds
    drawn = p04.draw_architecture
    monkeypatch.setattr(p04, "draw_architecture", lambda case, **fixed: drawn(case, **(fixed | {"eps": 1e-3})))
    assert p04.check(CASE).value > 1e3 * p04.TOLERANCE


def test_the_check_detects_a_damping_that_is_taken_for_another(monkeypatch):
    exact = p04.carry_defect
    monkeypatch.setattr(p04, "carry_defect", lambda step, h, gain, g: exact(step, h, gain**2, g))
    assert p04.check(CASE).value > 1e3 * p04.TOLERANCE


def test_trap_a_random_motion_may_by_chance_be_hardly_visible():
    """LayerNorm of three channels leaves one direction, which two logits hardly see: no measure for rounding."""
    assert p04.check(Case(seed=18871, d=3, vocab=2, tokens=1)).holds


def test_trap_no_mean_gradient_is_not_blindness():
    """A calibrated raw readout: labels as the model expects them, so no gradient along h at all; it sees h well."""
    model = random_model(architecture(readout="raw"))
    states, readout = model.embed().requires_grad_(), model.readout()
    logits = readout(states)
    loss = -(logits.softmax(-1).detach() * logits.log_softmax(-1)).sum()
    (gradient,) = torch.autograd.grad(loss, states)
    assert (gradient * states).sum(-1).abs().max() < 1e-14
    seen = visibility(readout, states.detach(), states.detach(), generator=generator())
    assert seen.model.min() > 1e-1 and not seen.blind.any()


def test_trap_a_saturated_softmax_sees_nothing_and_the_readout_does():
    model = random_model(architecture(readout="raw", embedding_std=1e3))
    states = model.embed()
    seen = visibility(model.readout(), states, states, generator=generator())
    assert seen.model.max() < 1e-12  # one-hot to rounding
    assert seen.chi_uniform.min() > 0.1 and not seen.blind.any() and not seen.saturated.any()


def test_trap_a_tanh_far_out_is_blind_in_every_direction_which_is_no_blindness_to_this_one():
    model = random_model(architecture(readout="tanh", embedding_std=1e6))
    states = model.embed()
    seen = visibility(model.readout(), states, states, generator=generator())
    assert seen.saturated.all() and not seen.blind.any()
    near = random_model(architecture(readout="tanh"))
    assert not visibility(near.readout(), near.embed(), near.embed(), generator=generator()).saturated.any()


def test_trap_the_cut_decides():
    """With a normalisation between loops the decoded state's scale is removed; the loop input's, behind it, is not."""
    model = random_model(architecture(between="rmsnorm"))
    decoded = model.states()[1]
    assert activity(model.step(), decoded, decoded).max() < 1e-14

    def loop_without_between(x: torch.Tensor) -> torch.Tensor:
        for sublayer in model.sublayers():
            x = sublayer(x)
        return x

    loop_input = model.between()(decoded)
    assert activity(loop_without_between, loop_input, loop_input).min() > 0.05


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_one_sublayer_carries_the_scale_exactly_and_a_stack_up_to_one_over_its_square(scale):
    model = random_model(architecture(embedding_std=scale))
    states = model.embed()
    for sublayer in model.sublayers():
        assert (activity(sublayer, states, states) - 1).abs().max() < 1e-13
    excess = (activity(model.step(), states, states) - 1).abs().max() * scale**2
    if scale > 1:
        assert 1e-2 < excess < 1e2
    assert (activity(lambda h: model.step()(0.88 * h), states, states) - 0.88).abs().max() < 1e2 / scale**2


def radial_and_random(scale: float, **changes) -> tuple[float, float]:
    model = random_model(architecture(embedding_std=scale, **changes))
    states = model.embed()
    seen = deferred_visibility(
        model.step(), model.readout(), states, states, (0.0, 0.3, 0.3, 0.4), generator=generator()
    )
    return seen.uniform.mean().item(), seen.isotropic_uniform.mean().item()


def test_deferred_radial_visibility_falls_as_the_square_of_the_scale_and_a_random_direction_does_not():
    values = [radial_and_random(scale) for scale in (1e2, 1e3, 1e4)]
    for (radial, isotropic), (next_radial, next_isotropic) in zip(values, values[1:], strict=False):
        assert radial / next_radial == pytest.approx(100, rel=0.1)
        assert next_isotropic == pytest.approx(isotropic, rel=0.2)
    raw = [radial_and_random(scale, readout="raw")[0] for scale in (1e2, 1e3)]
    assert raw[1] / raw[0] == pytest.approx(100, rel=0.2)
    assert radial_and_random(1e2, between="rmsnorm")[0] < 1e-25
