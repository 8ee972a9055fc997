"""The model fits the library's protocol by its shape alone: `models` never imports `loopsight`."""

import subprocess
import sys
from pathlib import Path

from torch import nn

from loopsight import LoopedModel


def test_the_model_is_a_looped_model_and_a_plain_module_is_not(build):
    assert isinstance(build(), LoopedModel)
    assert not isinstance(nn.Linear(2, 2), LoopedModel)


def test_importing_models_does_not_import_loopsight():
    code = "import models, sys; sys.exit('loopsight' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_three_maps_compose_to_the_forward_pass(build, tokens):
    model: LoopedModel = build()
    assert model.readout(model.step(model.embed(tokens))).shape == (2, 7, 17)
