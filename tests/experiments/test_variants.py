"""The registry: the paper's conditions, the controls, and help for the name mistyped."""

from dataclasses import replace

import pytest

from experiments.errors import UsageError
from experiments.variants import VARIANTS, select, visible_partner
from models import PRESETS, LoopedLM

NAMES = [
    "scale_visible",
    "scale_invariant",
    "norm_penalty",
    "scale_removing",
    "final_norm",
    "layernorm",
    "terminal_scale_visible",
    "terminal_scale_invariant",
    "terminal_norm_penalty",
    "untied_scale_invariant",
    "untied_scale_visible",
    "small_init_scale_invariant",
    "small_init_scale_visible",
    "untied_small_init_scale_invariant",
    "untied_small_init_scale_visible",
]


def test_every_condition_is_there():
    assert list(VARIANTS) == NAMES
    assert select("all") == list(VARIANTS.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_is_what_its_name_says(name):
    variant = VARIANTS[name]
    model = LoopedLM(variant.model_config(PRESETS["tiny"]))
    visible = "visible" in name
    assert model.readout_features.degree(is_last=True) == (1 if visible else 0)
    assert model.readout_features.degree(is_last=False) == (1 if visible or name == "final_norm" else 0)
    assert (variant.supervision.placement == "terminal") == name.startswith("terminal")
    assert variant.supervision.norm_penalty == (0.01 if name.endswith("penalty") else None)  # the paper's
    assert (model.head is not None) == name.startswith("untied")
    assert (model.token_embedding.weight.std() < 0.1) == ("small_init" in name)
    assert (model.config.between.kind == "rmsnorm") == (name == "scale_removing")


def test_a_mistyped_name_gets_the_known_ones_nearest_first():
    with pytest.raises(UsageError, match=r"unknown variant 'scale_visibel'; known, nearest first: scale_visible, "):
        select("scale_visibel")


def test_the_raw_partner_differs_in_the_readout_alone():
    assert visible_partner("untied_small_init_scale_invariant") == "untied_small_init_scale_visible"
    assert visible_partner("terminal_norm_penalty") == "terminal_scale_visible"
    assert visible_partner("scale_removing") == visible_partner("scale_visible") == "scale_visible"
    assert visible_partner("factorial_rmsnorm_tied_unit_learned_decay0.01_sgd") is None


def test_the_raw_partner_is_found_by_what_a_variant_is_and_not_by_its_name(monkeypatch):
    other = replace(VARIANTS["untied_scale_invariant"], name="scale_invariant_of_another_kind")
    rotary = replace(other, name="untied_rotary", position="rotary")
    for variant in (other, rotary):
        monkeypatch.setitem(VARIANTS, variant.name, variant)
    assert visible_partner(other.name) == "untied_scale_visible"
    assert visible_partner(rotary.name) is None
