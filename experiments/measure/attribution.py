"""Which parameters made the state's norm grow during training, and what pressed on the scale of the embedding.

From the weights kept along training. Between two snapshots the account goes along the straight line that joins them,
which training did not follow; the sum over groups is the change itself all the same, up to the integration error that
`sum` against `truth` shows.
"""

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from experiments.errors import RunError
from experiments.measure.context import Context
from experiments.measure.total_loss import total_loss
from experiments.training import snapshots
from loopsight.attribution import Attribution, Parameters, attribute_growth
from loopsight.radial import radial_derivative
from models import LoopedLM, Supervision

WINDOWS = 2  # of the exact windows
SEGMENTS = (4, 16)  # trapezoids a pair of snapshots: the second number where the first leaves too large an error
ERROR = 0.01  # of the sum, relative to the largest contribution, or absolute in log norm where that is below 1

GROUPS = {
    "token embedding": r"token_embedding\.weight",
    "position embedding": r"position_embedding\.weight",
    "attention writers": r"sublayers\.\d+\.branch\.out\.weight",
    "attention readers": r"sublayers\.\d+\.branch\.(qkv\.weight|(query|key)_norm\.gain)",
    "MLP writers": r"sublayers\.\d+\.branch\.down\.weight",
    "MLP readers": r"sublayers\.\d+\.branch\.(gate|up)\.weight",
    "block norms": r"sublayers\.\d+\.norm\.(gain|bias)",
    "norm between loops": r"between\.(gain|bias)",
    "readout gain": r"readout_features\.norm\.(gain|bias)",
    "head": r"head\.weight",
}
"""Groups of parameters by the names of their tensors. A tied head is the token embedding."""

ATTRIBUTION = ["step_from", "step_to", "group", "contribution"]
PRESSURE = ["step", "k0_pressure", "norm"]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Tables `attribution` and `pressure`; both empty for a run that kept no weights along training.

    Raises:
        RunError: a snapshot is damaged or of another configuration.
    """
    kept = read_snapshots(context.folder, context.exact)
    windows = context.exact_windows[:WINDOWS]
    return {
        "attribution": attribution(context.exact, kept, windows[:, :-1]),
        "pressure": pressure(context.exact, kept, windows, context.config.supervision),
    }


def read_snapshots(folder: Path, model: LoopedLM) -> dict[int, Parameters]:
    """A run's kept weights by training step, ascending, in the dtype and on the device of `model`, its own model.

    Raises:
        RunError: a file cannot be read or is of another model.
    """
    remedy = f"delete {folder / snapshots.FOLDER}"
    try:
        found = snapshots.load(folder)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"cannot read the weights kept in {folder} ({error}); {remedy}.") from error
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    reference = next(model.parameters())
    for step, tensors in found.items():
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise RunError(f"the weights that {folder} kept at step {step} are not of its configuration; {remedy}.")
    return {step: {n: tensor.to(reference) for n, tensor in found[step].items()} for step in sorted(found)}


def attribution(model: LoopedLM, kept: Mapping[int, Parameters], tokens: Int[Tensor, "windows time"]) -> pd.DataFrame:
    """Change of mean log |h_K| over tokens between neighbouring snapshots, by group; rows `sum` and `truth` last.

    Args:
        model: float64.
        kept: weights by step, ascending.
        tokens: inputs.

    Raises:
        ValueError: a parameter belongs to no group or to several.
    """
    groups = grouped(list(dict(model.named_parameters())))
    rows = []
    for (start, before), (end, after) in itertools.pairwise(kept.items()):
        found = _attribute(model, tokens, [before, after], groups)
        shares = found.contributions | {"sum": found.predicted, "truth": found.actual}
        rows += [[start, end, group, value] for group, value in shares.items()]
    return pd.DataFrame(rows, columns=ATTRIBUTION)


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Parameters' names by group, in the order of `GROUPS`, groups without any left out.

    Raises:
        ValueError: a name matches no group, or more than one.
    """
    groups: dict[str, list[str]] = {}
    for group, pattern in GROUPS.items():
        if members := [name for name in names if re.fullmatch(pattern, name)]:
            groups[group] = members
    unplaced = set(names).symmetric_difference(itertools.chain.from_iterable(groups.values()))
    if unplaced or sum(map(len, groups.values())) != len(names):
        raise ValueError(f"every parameter must be in one group of GROUPS; not so: {sorted(unplaced) or names}.")
    return groups


def pressure(
    model: LoopedLM,
    kept: Mapping[int, Parameters],
    windows: Int[Tensor, "windows length"],
    supervision: Supervision,
) -> pd.DataFrame:
    """At each snapshot <G_0, h_0>, what the training loss gains (nats) when all of h_0 grows e-fold, and mean |h_K|.

    Positive: descent wants the embedding smaller beside what the blocks write. Where readouts are scale-free and the
    head is untied only this ratio is felt at all (theory/ P11).

    Args:
        model: float64.
        kept: weights by step.
        windows: of inputs and one target more.
        supervision: of the training.
    """
    model, num_loops, rows = copy.deepcopy(model), model.config.num_loops, []
    loss = total_loss(model, windows[:, 1:], supervision, 0, num_loops)
    for step, weights in kept.items():
        model.load_state_dict(weights)
        with torch.no_grad():
            states = model(windows[:, :-1], num_loops)
        felt = radial_derivative(loss, states[0]).item()
        rows.append([step, felt, states[-1].norm(dim=-1).mean().item()])
    return pd.DataFrame(rows, columns=PRESSURE)


def _attribute(
    model: LoopedLM, tokens: Tensor, path: Sequence[Parameters], groups: Mapping[str, Sequence[str]]
) -> Attribution:
    def last_states(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (tokens,))[-1]

    for segments in SEGMENTS:
        found = attribute_growth(last_states, path, groups, segments)
        if abs(found.error) <= ERROR * max(1.0, *map(abs, found.contributions.values())):
            break
    return found
