"""An arm is the run that it is said to be: the same start for all, the remedy as `loopsight.remedies` has it."""

import json
from dataclasses import replace

import pytest
import torch

from experiments.errors import RunError
from experiments.training import shards
from experiments.training.metrics import METRICS
from experiments.training.trainer import train
from experiments.treatments import arms
from experiments.treatments.arms import (
    AT_ENTRY,
    CONTROLS,
    DETACHED,
    FROM_SECOND,
    RESCALED,
    Entrance,
    apply,
    begin,
    controls,
    treat,
)
from loopsight import LoopedMaps, remedies, unroll
from models import LoopedLM, looped_loss
from models.between import Damping

AT, STEPS = 4, 10


@pytest.fixture(scope="module")
def made():
    """What a module's tests share."""
    return {}


@pytest.fixture
def start(made, make_config, synthetic, execution):
    if not made:
        config = make_config("untied_small_init_scale_invariant", steps=STEPS)
        made["config"] = replace(config, model=replace(config.model, dropout=0.1))  # random numbers go on, too
        made["start"] = begin(made["config"], synthetic, AT, execution)
    return made["config"], made["start"]


def remedy_of(start, name):
    return next(remedy for remedy in start.report.remedies if remedy.name == name)


NAMES = ["norm penalty", "raw readout", "final-only norm", "between-loop norm", "damping"]


def test_an_audit_names_every_remedy_that_there_is_a_way_to_train_with(start):
    assert sorted(remedy.name for remedy in start[1].report.remedies) == sorted(NAMES)


def test_the_arm_without_a_remedy_is_the_run_that_was_never_stopped(start, synthetic, execution, tmp_path):
    config, begun = start
    arm = treat(config, synthetic, begun, None, execution)
    whole = train(config, synthetic.train, tmp_path, execution)
    logged = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    curve = [{"step": r["step"], "cross_entropy": r["cross_entropy"][-1], "l2_norm": r["l2_norm"][-1]} for r in logged]
    assert arm["curve"] == [point for point in curve if point["step"] > AT]
    windows = arms._held_out(config, synthetic)
    assert arm["validation"] == vars(arms._validated(config, whole.eval(), windows))
    assert arm["at_once"] == arm["before"] == vars(begun.validation)
    assert (arm["remedy"], arm["setting"], arm["at"]) == ("none", None, AT)


def test_no_arm_disturbs_the_next(start, synthetic, execution):
    config, begun = start
    first = treat(config, synthetic, begun, None, execution)
    other = treat(config, synthetic, begun, remedy_of(begun, "norm penalty"), execution)
    assert treat(config, synthetic, begun, None, execution) == first
    assert other["at_once"] == first["at_once"] and other["validation"] != first["validation"]


@pytest.mark.parametrize("name", ["between-loop norm", "damping", "raw readout"])
def test_what_a_remedy_does_at_once_is_seen_before_it_is_trained_with(name, start, synthetic, execution):
    config, begun = start
    remedy = remedy_of(begun, name)
    arm = treat(config, synthetic, begun, remedy, execution)
    model = LoopedLM(config.model)
    model.load_state_dict(begun.saved.part("model"))
    apply(model, config.supervision, remedy)
    assert arm["at_once"] == vars(arms._validated(config, model.eval(), arms._held_out(config, synthetic)))
    assert arm["at_once"] != arm["before"] == vars(begun.validation)
    assert (arm["setting"], arm["promised"]) == (remedy.setting, remedy.verdict)


def test_a_remedy_at_the_entrance_comes_before_the_models_own_operation():
    entrance = Entrance(remedies.rms_normalised, Damping(0.5))
    torch.testing.assert_close(entrance(torch.full((1, 4), 7.0)), torch.full((1, 4), 0.5))


def maps_of(model, **changes):
    maps = LoopedMaps(embed=model.embed, step=model.step, readout=lambda h: model.readout(h, is_last=True), num_loops=3)
    return replace(maps, **changes)


REMEDIED = {
    "between-loop norm": lambda maps, setting: remedies.with_between_norm(maps, setting),
    "damping": lambda maps, setting: remedies.with_damping(maps, setting),
    "raw readout": lambda maps, setting: remedies.with_raw_readout(maps, setting),
}


@pytest.mark.parametrize("name", REMEDIED)
def test_a_treated_model_is_the_remedied_maps(name, start):
    config, begun = start
    torch.manual_seed(0)
    model, treated = LoopedLM(config.model).eval(), LoopedLM(config.model).eval()
    treated.load_state_dict(model.state_dict())
    remedy = remedy_of(begun, name)
    assert apply(treated, config.supervision, remedy) == config.supervision
    tokens = torch.arange(12).view(2, 6)
    expected = REMEDIED[name](maps_of(model), remedy.setting)

    def logits(maps):
        return maps.readout(unroll(maps.step, maps.embed(tokens), 3)[-1])

    with torch.no_grad():
        torch.testing.assert_close(logits(maps_of(treated)), logits(expected))
        assert not torch.allclose(logits(maps_of(treated)), logits(maps_of(model)), rtol=1e-3)


def test_a_final_only_norm_shows_the_scale_to_all_readouts_but_the_last(start):
    config, begun = start
    model = LoopedLM(config.model)
    h = torch.randn(3, config.model.d_model)
    before = model.readout(h)
    remedy = remedy_of(begun, "final-only norm")
    apply(model, config.supervision, remedy)
    torch.testing.assert_close(model.readout(2 * h), before)
    early = model.readout(h, is_last=False)
    torch.testing.assert_close(model.readout(2 * h, is_last=False), 2 * early)
    torch.testing.assert_close(early, before * h.square().mean(-1, keepdim=True).sqrt() / remedy.setting)


def control_of(start, name):
    return next(control for control in controls(start) if control.name == name)


def test_controls_take_their_settings_from_the_remedies_whose_parts_they_are(start):
    begun = start[1]
    found = {control.name: control.setting for control in controls(begun)}
    assert tuple(found) == CONTROLS
    assert found[RESCALED] == found[FROM_SECOND] == remedy_of(begun, "between-loop norm").setting
    assert found[DETACHED] == remedy_of(begun, "raw readout").setting
    assert found[AT_ENTRY] == begun.entering_rms


def test_the_size_of_h_0_is_that_of_the_started_model(start, synthetic):
    config, begun = start
    model = LoopedLM(config.model).eval()
    model.load_state_dict(begun.saved.part("model"))
    with torch.no_grad():
        h = model.embed(arms._held_out(config, synthetic)[: arms.AUDITED_WINDOWS, :-1])
    assert begun.entering_rms == pytest.approx(h.norm(dim=-1).mean().item() / config.model.d_model**0.5, rel=1e-5)


def test_a_rescaled_embedding_is_what_a_norm_makes_of_the_first_entrance_alone(start):
    config, begun = start
    torch.manual_seed(0)
    model = LoopedLM(config.model).eval()
    tokens = torch.arange(12).view(2, 6)
    before, h = model.embed(tokens), torch.randn(2, 6, config.model.d_model)
    after = model.step(h)
    control = control_of(begun, RESCALED)
    assert apply(model, config.supervision, control) == config.supervision
    torch.testing.assert_close(model.embed(tokens), remedies.rms_normalised(before, control.setting))
    assert torch.equal(model.step(h), after)


def test_a_norm_at_the_size_of_h_0_leaves_its_size_and_takes_that_of_the_rest(start):
    config, begun = start
    model = LoopedLM(config.model).eval()
    model.load_state_dict(begun.saved.part("model"))
    h = model.embed(torch.arange(12).view(2, 6))
    apply(model, config.supervision, control_of(begun, AT_ENTRY))
    entered = model.between(h).norm(dim=-1).mean()
    torch.testing.assert_close(entered, h.norm(dim=-1).mean(), rtol=0.2, atol=0.0)
    torch.testing.assert_close(model.between(100 * h), model.between(h))


def test_a_norm_from_the_second_loop_leaves_the_first_alone(start):
    config, begun = start
    torch.manual_seed(0)
    model, tokens = LoopedLM(config.model).eval(), torch.arange(12).view(2, 6)
    control = control_of(begun, FROM_SECOND)
    with torch.no_grad():
        first = model.step(model.embed(tokens))
        later = model.step(remedies.rms_normalised(first, control.setting))
        assert apply(model, config.supervision, control) == config.supervision
        for _ in range(2):  # the first entrance of every batch, not of the first one
            states = model(tokens, 3)
            torch.testing.assert_close(states[1], first, rtol=0.0, atol=0.0)
            torch.testing.assert_close(states[2], later)
            entered = model.between(states[2]).square().mean(-1).sqrt()
            torch.testing.assert_close(entered, torch.full_like(entered, control.setting))
        equal = model.embed(tokens).clone()
        assert not torch.allclose(model.between(equal), equal)  # by what it is, not by what is in it


def test_a_norm_from_the_second_loop_knows_the_first_in_training(start):
    config, begun = start
    model, tokens = LoopedLM(config.model).train(), torch.arange(12).view(2, 6)
    apply(model, config.supervision, control_of(begun, FROM_SECOND))
    seen = []
    model.between.own.register_forward_hook(lambda module, arguments, h: seen.append(h))
    states = model(tokens)
    looped_loss(model, tokens, tokens, config.supervision).total.backward()
    assert seen[0] is states[0] and seen[1] is not states[1]


def test_a_norm_from_the_second_loop_knows_the_first_in_a_replica_too(start):
    """A batch is trained in shards, each with a copy of the model that shares its weights."""
    config, begun = start
    model, tokens = LoopedLM(config.model).eval(), torch.arange(12).view(2, 6)
    apply(model, config.supervision, control_of(begun, FROM_SECOND))
    replica = shards._sharing_weights(model)
    with torch.no_grad():
        expected = model(tokens)
        for h, other in zip(expected, replica(tokens), strict=True):
            assert torch.equal(h, other)
        # Each by its own: the model's first entrance is no first one to the replica.
        assert torch.equal(model.between(expected[0]), expected[0])
        assert not torch.allclose(replica.between(expected[0]), expected[0])


def test_a_detached_scale_is_in_the_logits_and_not_in_their_gradient(start):
    config, begun = start
    h = torch.randn(3, config.model.d_model, requires_grad=True)
    logits, radial = {}, {}
    for treatment in (remedy_of(begun, "raw readout"), control_of(begun, DETACHED)):
        torch.manual_seed(0)
        model = LoopedLM(config.model)
        apply(model, config.supervision, treatment)
        logits[treatment.name] = model.readout(h, is_last=False)
        (gradient,) = torch.autograd.grad(logits[treatment.name].square().sum(), h)
        radial[treatment.name] = (gradient * h).sum(-1).abs() / (gradient.norm(dim=-1) * h.norm(dim=-1))
    torch.testing.assert_close(logits["raw readout"], logits[DETACHED])
    assert radial[DETACHED].max() < 1e-4 < 0.05 < radial["raw readout"].min()


def test_a_penalty_is_the_audits_and_of_the_loss_alone(start):
    config, begun = start
    model = LoopedLM(config.model)
    before = model.readout(torch.ones(1, config.model.d_model))
    remedy = remedy_of(begun, "norm penalty")
    supervision = apply(model, config.supervision, remedy)
    assert supervision == replace(config.supervision, norm_penalty=remedy.setting)
    assert torch.equal(model.readout(torch.ones(1, config.model.d_model)), before)


def test_an_unknown_remedy_is_no_silent_control(start):
    config, begun = start
    for change in ({"name": "prayer"}, {"setting": None}):
        with pytest.raises(ValueError, match=r"\.$"):
            apply(LoopedLM(config.model), config.supervision, replace(remedy_of(begun, "damping"), **change))


def test_a_model_whose_scale_is_seen_has_nothing_to_be_treated_with(make_config, synthetic, execution):
    with pytest.raises(RunError, match="names no remedy at step 1: its scale is visible; choose a variant"):
        begin(make_config("scale_visible"), synthetic, 1, execution)


def test_a_loss_that_is_no_number_ends_the_arm(start, synthetic, execution):
    config, begun = start
    config = replace(config, training=replace(config.training, learning_rate=1e30))
    with pytest.raises(RunError, match="became NaN or infinite"):
        treat(config, synthetic, begun, None, execution)
