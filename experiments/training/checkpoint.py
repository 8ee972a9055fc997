"""A checkpoint is one safetensors file with JSON in its header: it appears whole or not at all, and runs no code."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from experiments.errors import RunError
from experiments.files import write_tensors

FORMAT = "loopsight-checkpoint-1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a run after `step` optimiser steps; `step` is also the position in the data.

    Attributes:
        step: finished optimiser steps.
        config: the run's configuration as a dictionary.
        tensors: `model.*` weights, `optimiser.*` moments, `random.*` generator states.
    """

    step: int
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix.`, without it."""
        start = prefix + "."
        return {name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)}


def random_state() -> dict[str, Tensor]:
    """State of torch's generators."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def capture(
    model: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    step: int,
    config: dict[str, Any],
    random: dict[str, Tensor],
) -> Checkpoint:
    """Everything that decides the rest of the run; `random` is the `random_state` before step `step` draws."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for optimiser in optimisers:
        for parameter, state in optimiser.state.items():
            for key, value in state.items():
                tensors[f"optimiser.{names[parameter]}.{key}"] = value
    tensors |= {f"random.{name}": state for name, state in random.items()}
    return Checkpoint(step=step, config=config, tensors={n: t.detach().cpu() for n, t in tensors.items()})


def restore(checkpoint: Checkpoint, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Put a captured state back into a model and optimisers of the same configuration."""
    model.load_state_dict(checkpoint.part("model"))
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for optimiser in optimisers:
        for parameter in (p for group in optimiser.param_groups for p in group["params"]):
            state = checkpoint.part(f"optimiser.{names[parameter]}")
            # AdamW keeps its step counter where the update runs: on the parameter's device, as it is fused.
            optimiser.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    random = checkpoint.part("random")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint atomically, with a digest of its tensors."""
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    header = {
        "format": FORMAT,
        "step": str(checkpoint.step),
        "config": json.dumps(checkpoint.config),
        "sha256": _digest(tensors),
    }
    write_tensors(path, tensors, header)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        RunError: the file is missing, is not a checkpoint of this format, or is damaged.
    """
    remedy = "delete it to start the run afresh, or restore it from a copy"
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise RunError(f"{path} is not a checkpoint of format {FORMAT}; {remedy}.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise RunError(f"cannot read the checkpoint {path} ({error}); {remedy}.") from error
    if header.get("sha256") != _digest(tensors):
        raise RunError(f"the checkpoint {path} is damaged (its digest does not match its tensors); {remedy}.")
    return Checkpoint(step=int(header["step"]), config=json.loads(header["config"]), tensors=tensors)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
