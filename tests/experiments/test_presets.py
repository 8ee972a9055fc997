"""A preset is a size and a training of one name."""

from experiments.config import TRAINING_PRESETS
from models import PRESETS


def test_every_size_has_a_training_and_every_training_a_size():
    lacking = sorted(PRESETS.keys() ^ TRAINING_PRESETS.keys())
    assert not lacking, f"{lacking}: add to PRESETS (models/presets.py) and TRAINING_PRESETS (experiments/config.py)"
