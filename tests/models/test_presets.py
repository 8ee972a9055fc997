"""The named sizes are the sizes the paper names, to the parameter."""

from dataclasses import replace

import pytest
import torch

from models import PRESETS, LoopedLM, resized


def on_meta(name: str) -> LoopedLM:
    with torch.device("meta"):
        return LoopedLM(PRESETS[name])


PARAMETERS = {
    "tiny": (25_000, 26_000),
    "cpu": (0.75e6, 0.85e6),
    "44m": (43_934_208, 43_934_208),
    "129m": (128_822_016, 128_822_016),
    "1.4b": (1.3e9, 1.5e9),
}


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name):
    assert name in PARAMETERS, f"add {name} to PARAMETERS in tests/models/test_presets.py"
    fewest, most = PARAMETERS[name]
    assert fewest <= on_meta(name).num_parameters() <= most


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_two_embeddings_sixteen_squares_a_layer_and_gains(name):
    config = PRESETS[name]
    d, layers = config.d_model, config.num_layers
    formula = (config.vocab_size + config.context) * d + 16 * layers * d**2 + 2 * layers * d + d
    assert on_meta(name).num_parameters() == formula


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_tied_rmsnorm_model_with_gain_and_nothing_between_loops(name):
    config = PRESETS[name]
    assert (config.readout.kind, config.readout.gain, config.readout.tied) == ("rmsnorm", True, True)
    assert config.between.kind == "none"
    assert config.position == "learned"


def test_the_papers_sizes_are_trained_with_dropout_and_ours_without():
    rates = {name: config.dropout for name, config in PRESETS.items()}
    assert rates == {"tiny": 0.0, "cpu": 0.0, "44m": 0.1, "129m": 0.1, "1.4b": 0.1}


def test_building_on_the_meta_device_allocates_nothing():
    model = on_meta("1.4b")
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_a_resized_preset_keeps_the_width_of_its_heads_and_all_else():
    wide = resized(PRESETS["cpu"], d_model=256)
    assert (wide.d_model, wide.num_heads, wide.num_layers) == (256, 8, 2)
    deep = resized(PRESETS["cpu"], num_layers=8)
    assert deep == replace(PRESETS["cpu"], num_layers=8)
    assert resized(PRESETS["44m"]) == PRESETS["44m"]
    assert resized(deep, embedding_multiplier=0.25) == replace(deep, embedding_multiplier=0.25)
    assert resized(replace(deep, embedding_multiplier=0.25), num_layers=2).embedding_multiplier == 0.25


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of the width of a head, 32, got 100"):
        resized(PRESETS["cpu"], d_model=100)
