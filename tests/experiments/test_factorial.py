"""The designed experiment is the design it says, and its cells are the models their names say."""

import itertools

import numpy as np
import pytest

from experiments.config import TRAINING_PRESETS
from experiments.factorial import DECAYS, EMBEDDINGS, FACTORIAL, FACTORS, cell, levels_of
from experiments.variants import find, select
from models import PRESETS, LoopedLM


def coded(names):
    return np.array([[FACTORS[f].index(levels_of(name)[f]) * 2 - 1 for f in FACTORS] for name in names])


def is_clear(signs):
    """No main effect or product of two is a combination of the others."""
    pairs = [signs[:, i] * signs[:, j] for i, j in itertools.combinations(range(signs.shape[1]), 2)]
    columns = np.column_stack([np.ones(len(signs)), signs, *pairs])
    return np.array_equal(columns.T @ columns, len(signs) * np.eye(columns.shape[1]))


def test_the_fraction_confounds_no_main_effect_or_pair_with_another():
    chosen = [n for n in FACTORIAL if levels_of(n)["optimiser"] == "adamw" and levels_of(n)["readout"] != "gainless"]
    signs = coded(chosen)
    assert len(chosen) == len(np.unique(signs, axis=0)) == 16
    assert is_clear(signs)
    confounded = signs.copy()  # control: the half fraction I = ABE
    confounded[:, 4] = signs[:, 0] * signs[:, 1]
    assert not is_clear(confounded)


@pytest.mark.parametrize("name", FACTORIAL)
def test_a_cell_is_what_its_name_says(name):
    levels, variant = levels_of(name), find(name)
    model = LoopedLM(variant.model_config(PRESETS["tiny"]))
    assert model.readout_features.degree(is_last=True) == (levels["readout"] == "raw")
    assert model.config.readout.gain == (levels["readout"] == "rmsnorm")
    assert (model.head is None) == (levels["head"] == "tied")
    assert model.config.embedding_std == EMBEDDINGS[levels["embeddings"]]
    assert (model.position_embedding is None) == (levels["position"] == "rotary")
    if levels["optimiser"] == "sgd":  # the same decay a step as AdamW's, at the preset's rate
        preset = TRAINING_PRESETS["cpu"]
        step = variant.training["learning_rate"] * variant.training["weight_decay"] / (1.0 - preset.momentum)
        assert step == pytest.approx(preset.learning_rate * DECAYS[levels["decay"]])
    else:
        assert variant.training["weight_decay"] == DECAYS[levels["decay"]]
    assert variant.training.get("optimiser", "adamw") == levels["optimiser"]


def test_the_paper_s_conditions_are_cells():
    assert select("factorial") == list(FACTORIAL.values())
    central = find("scale_invariant").model_config(PRESETS["cpu"])
    assert cell("rmsnorm", "tied").model_config(PRESETS["cpu"]) == central
    assert cell("rmsnorm", "tied").name in FACTORIAL
