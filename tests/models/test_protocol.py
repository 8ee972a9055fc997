"""The model fits the library's protocol by its shape alone, for `models` may not import `loopsight`."""

from torch import nn

from loopsight import LoopedModel


def test_the_model_is_a_looped_model_and_a_plain_module_is_not(build):
    assert isinstance(build(), LoopedModel)
    assert not isinstance(nn.Linear(2, 2), LoopedModel)


def test_the_three_maps_compose_to_the_forward_pass(build, tokens):
    model: LoopedModel = build()
    assert model.readout(model.step(model.embed(tokens))).shape == (2, 7, 17)
