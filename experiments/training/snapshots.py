"""The weights of a run at a few steps, kept so that its growth can be attributed afterwards."""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.files import write_tensors

FOLDER = "snapshots"


def snapshot_steps(steps: int, count: int) -> set[int]:
    """Step 0 and up to `count` later ones, evenly spaced in the logarithm, the last of the run among them."""
    if count == 0:
        return set()
    return {0, *np.geomspace(steps, 1, count).round().astype(int).tolist()}


def save(model: nn.Module, folder: Path, step: int) -> None:
    """Write the weights after `step` steps, model weights only, into a run's folder."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(folder / FOLDER / f"step-{step:06d}.safetensors", weights)


def load(folder: Path) -> dict[int, dict[str, Tensor]]:
    """The weights of a run's folder by step, in order; empty where none were kept."""
    paths = sorted((folder / FOLDER).glob("step-*.safetensors"))
    return {int(path.stem.removeprefix("step-")): load_file(path) for path in paths}
