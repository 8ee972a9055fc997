"""Every adapter's maps are the model itself: its states, its logits, and derivatives that its own values confirm."""

import pytest
import torch

from loopsight import audit
from loopsight.adapters import discover, loop_layers
from loopsight.adapters.exact import exact, same_batch
from loopsight.adapters.hrm_text import hrm_text_maps
from loopsight.adapters.ouro import ouro_maps
from loopsight.capture import capture
from loopsight.derivatives import directional_derivative, pullback, require_adjoint
from loopsight.protocol import unroll

FOUND = {
    "hrm_text": (discover, "hrm_text", 2),
    "hrm_text, carried": (lambda m, x: hrm_text_maps(m, x, cut="carried"), "hrm_text", 2),
    "albert": (discover, "albert", 4),
    "ouro": (discover, "ouro", 3),
    "ouro, carried": (lambda m, x: ouro_maps(m, x, cut="carried"), "ouro", 4),
    "huginn": (discover, "huginn", 5),
    "parcae": (discover, "parcae", 6),
    "llama": (lambda m, x: loop_layers(m, x, 1), "llama", 1),
    "gpt2": (lambda m, x: loop_layers(m, x, 1), "gpt2", 1),
    "qwen2": (lambda m, x: loop_layers(m, x, 1), "qwen2", 1),
}


@pytest.fixture(scope="module", params=FOUND)
def case(request, build, tokens):
    find, name, num_loops = FOUND[request.param]
    model = build(name)
    return model, tokens, find(model, tokens), num_loops


def own_logits(model, tokens, **inputs):
    if type(model).__name__ == "Parcae":
        inputs["return_logits"] = True
    if hasattr(getattr(model, "config", None), "use_cache"):
        inputs["use_cache"] = False
    torch.manual_seed(0)  # the initial states of Huginn and Parcae
    output = model(tokens, **inputs)
    return output["logits"] if isinstance(output, dict) else output.logits


def test_the_unrolled_maps_give_the_models_own_logits(case):
    model, tokens, maps, num_loops = case
    assert maps.num_loops == num_loops and maps.module is model
    with torch.no_grad():
        logits = maps.readout(unroll(maps.step, maps.embed(tokens), num_loops)[-1])
        assert logits.dtype == torch.float64
        # 1e-5: the model itself computes its norms in float32, the maps do not
        torch.testing.assert_close(logits, own_logits(model, tokens).double(), rtol=1e-5, atol=1e-5)


def test_values_confirm_the_derivatives_in_both_modes(case):
    """Through loops that the model runs without gradient, too."""
    model, tokens, maps, _ = case
    h = maps.embed(tokens).detach()
    generator = torch.Generator().manual_seed(1)
    for function in (maps.step, maps.readout):
        direction = torch.randn(h.shape, generator=generator, dtype=h.dtype)
        value, derivative = directional_derivative(function, h, direction)
        assert derivative.norm() > 1e-3 * value.norm()
        cotangent = torch.randn(value.shape, generator=generator, dtype=h.dtype)
        pulled = pullback(function, h)[1](cotangent)
        torch.testing.assert_close((pulled * direction).sum(), (cotangent * derivative).sum())
        require_adjoint(function, h, cotangent, pulled, "a map")


def test_gradients_reach_the_weights(case):
    model, tokens, maps, _ = case
    maps.readout(maps.step(maps.embed(tokens).detach())).square().sum().backward()
    reached = sum(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    model.zero_grad(set_to_none=True)
    assert reached > 5


SITES = {
    "ouro": ("model.layers.1", 0, 4),
    "albert": ("albert.encoder.albert_layer_groups.0", 1, 4),
    "huginn": ("transformer.core_block.1", 1, 5),
    "parcae": ("transformer.core_block.1", 1, 6),
}


@pytest.mark.parametrize("name", SITES)
def test_the_states_are_those_that_hooks_see(build, tokens, name):
    path, skip, calls = SITES[name]
    model = build(name)
    maps = discover(model, tokens)
    with torch.no_grad(), capture(model, path) as seen:
        own_logits(model, tokens)
        states = unroll(maps.step, maps.embed(tokens), maps.num_loops)[skip:]
    assert len(seen) >= calls and len(states) == calls
    for k, state in enumerate(states):
        torch.testing.assert_close(state, seen[path, k].state, rtol=1e-5, atol=1e-5)
    assert (states[0] - states[-1]).norm() > 1e-2 * states[0].norm()


def test_hrm_texts_states_are_those_that_hooks_see(build, tokens):
    model = build("hrm_text")
    maps = discover(model, tokens)
    norms = [f"model.{stack}_module.final_norm" for stack in "HL"]
    with torch.no_grad(), capture(model, *norms) as seen:
        own_logits(model, tokens)
    for k, state in enumerate(unroll(maps.step, maps.embed(tokens), 2)):
        both = [seen[norms[0], k].args[0], seen[norms[1], 2 * k + 1].args[0]]
        torch.testing.assert_close(state, torch.cat(both, dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["hrm_text", "huginn", "parcae"])
def test_reverse_mode_through_the_model_itself_sees_no_early_state(build, tokens, name):
    """Negative control: what the adapters are for. The state does move the logits."""
    model = build("hrm_text", L_cycles=3) if name == "hrm_text" else build(name)
    path = "model.L_module" if name == "hrm_text" else "transformer.core_block.1"
    early = []

    def keep(h):
        early.append(h.detach().requires_grad_())
        return early[0]

    with capture(model, replace={(path, 0): keep}):
        logits = own_logits(model, tokens)
    gradient = torch.autograd.grad(logits.sum(), early[0], allow_unused=True)[0] if logits.requires_grad else None
    assert gradient is None or not gradient.any()
    with capture(model, replace={(path, 0): lambda h: h + 0.1 * torch.ones_like(h)}):
        assert (own_logits(model, tokens) - logits).abs().max() > 1e-4


def test_looped_layers_run_k_times(build, tokens):
    model = build("llama")
    maps = loop_layers(model, tokens, 3)
    h = unroll(maps.step, maps.embed(tokens), 3)[-1]
    assert len(maps.sublayers) == 3
    by_hand = maps.embed(tokens)
    for sublayer in 3 * list(maps.sublayers):
        by_hand = sublayer(by_hand)
    torch.testing.assert_close(h, by_hand, rtol=0, atol=0)
    torch.testing.assert_close(maps.readout(h), model.lm_head(model.model.norm(h)), rtol=1e-5, atol=1e-6)


def test_maps_refuse_another_batch_and_ignore_labels(build, tokens):
    model = build("ouro")
    plain = discover(model, tokens)
    with pytest.raises(ValueError, match="hold for one batch only"):
        plain.embed(tokens.flip(0))
    labelled = discover(model, {"input_ids": tokens, "labels": tokens})
    h = plain.embed(tokens)
    torch.testing.assert_close(plain.readout(h), labelled.readout(h), rtol=0, atol=0)


def test_a_model_in_training_mode_or_with_noise_is_refused(build, tokens):
    with pytest.raises(ValueError, match=r"training mode: call model.eval\(\)"):
        discover(build("ouro").train(), tokens)
    with pytest.raises(ValueError, match="adds noise in every loop"):
        discover(build("huginn", test_time_noise=0.1), tokens)


def test_an_ouro_of_one_pass_has_no_loop(build, tokens):
    model = build("ouro")
    model.model.total_ut_steps = 1
    with pytest.raises(ValueError, match="this Ouro model runs one pass: nothing is looped"):
        discover(model, tokens)


def test_random_numbers_go_on_as_if_nothing_had_been_run_exactly():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model, drawn = torch.nn.Linear(2, 2), []
    torch.manual_seed(3)
    for _ in range(2):
        with exact(model):
            drawn.append(torch.rand(4))
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(*drawn) and not torch.equal(drawn[0], expected)


ONE = torch.arange(6).view(2, 3)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (ONE.clone(), True),
        (ONE + (ONE == 5), False),
        (ONE.flatten(), False),
        (ONE[:1], False),
        (ONE[:, :1].expand(2, 3), False),
    ],
)
def test_batches_are_the_same_if_all_of_their_values_are(other, same):
    assert same_batch(ONE, other) is same
    assert same_batch((ONE, 1), (other, 1)) is same_batch({"x": [ONE]}, {"x": [other]}) is same


@pytest.mark.parametrize(
    "other", [(ONE,), (ONE, ONE, ONE), (ONE, "a"), {"x": ONE, "y": ONE}, {"y": ONE}, (ONE, torch.ones(1, 2, 3))]
)
def test_batches_of_unequal_lengths_names_or_kinds_are_not_the_same(other):
    for one in ((ONE, ONE), {"x": ONE}):
        assert same_batch(one, other) is same_batch(other, one) is False


def test_batches_of_unequal_shapes_are_not_the_same_though_each_value_is():
    assert not same_batch(torch.ones(2, 3), torch.ones(1, 3)) and not same_batch(torch.ones(3), torch.ones(1, 3))


def test_huginns_steps_and_initial_state_can_be_given(build, tokens):
    model = build("huginn")
    start = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": tokens, "input_states": start, "num_steps": 2}
    maps = discover(model, batch)
    assert maps.num_loops == 2
    torch.testing.assert_close(maps.embed(batch), start, rtol=0, atol=0)


def test_maps_follow_a_model_that_is_converted_later(build, tokens):
    model = build("hrm_text").float()
    maps = discover(model, tokens)
    assert maps.step(maps.embed(tokens)).dtype == torch.float32
    model.double()
    h = maps.embed(tokens).detach()
    assert h.dtype == torch.float64
    directional_derivative(maps.step, h, torch.ones_like(h))


def test_an_albert_of_two_groups_asks_for_one(build, tokens):
    model = build("albert", num_hidden_groups=2)
    with pytest.raises(ValueError, match="2 loops, one after the other: pass one of"):
        discover(model, tokens)
    maps = discover(model, tokens, paths="albert.encoder.albert_layer_groups.1")
    assert maps.num_loops == 2


@pytest.mark.parametrize("name", ["huginn", "parcae"])
def test_a_model_found_by_itself_is_audited(name, build, tokens):
    """Huginn and Parcae draw a random state in the very pass that derivatives are taken through."""
    report = audit(build(name), tokens[:1], symmetries=False)
    assert report.valid, str(report)
    assert not [note for note in report.notes if "finite differences" in note]
