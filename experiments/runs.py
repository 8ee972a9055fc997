"""A run's folder: what lies where, and how to read a finished run back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from experiments.config import RunConfig
from experiments.corpus import default_cache, prepare
from experiments.errors import RunError
from experiments.files import read_json, write_json
from experiments.tables import ROW_COLUMNS
from experiments.training import checkpoint as checkpoints
from experiments.training.trainer import CHECKPOINT
from experiments.variants import find
from models import LoopedLM

CONFIG = "config.json"
SUMMARY = "summary.json"
SESSIONS = "environment.json"
_NUMBER = int | float
_NORMS = dict.fromkeys(("mean", "median", "p99", "max"), [_NUMBER])
SUMMARY_KINDS: Mapping[str, Any] = {
    "run": str,
    "variant": str,
    "seed": int,
    "num_loops": int,
    "parameters": int,
    "config": dict,
    "sessions": [
        {
            "date": str,
            "python": str,
            "packages": {"torch": str},
            "commit": str | None,
            **dict.fromkeys(("uncommitted_changes", "processor", "torch_threads", "device"), object),
        }
    ],
    "corpus": {"source": object, "note": str | None, "unknown_rate?": {"validation": _NUMBER}},
    "training": {"tokens_per_second": _NUMBER},
    "validation": {"tokens": int, "cross_entropy": [_NUMBER], "l2_norm": _NORMS},
    "validation_at_num_loops?": {"cross_entropy": [_NUMBER], "l2_norm": {"mean": [_NUMBER]}},
    "counting?": {"tokens": int, "unigram": _NUMBER, "bigram": _NUMBER},
    "state": {"radial_gradient_fraction": [_NUMBER]},
    "table": [dict.fromkeys(ROW_COLUMNS, str)],
}
"""What every summary has, and within it what others than the run that wrote it read: a type, the entries of a mapping,
or what each item of a list is. With a question mark: what may be missing, or null."""
FACTORY = "experiments.runs:load_model"
BATCH = "experiments.runs:load_batch"
SEQUENCES = 16  # of the validation part, in what `load_batch` returns


class DamagedSummary(RunError):
    """A summary that is not what others read.

    Attributes:
        where: the run, and the entry of its summary.
    """

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(message)
        self.where = where


def write_config(folder: Path, config: RunConfig) -> None:
    """The resolved configuration, with the functions that make a model and validation tokens of the folder again."""
    write_json(folder / CONFIG, {"factory": FACTORY, "batch": BATCH, "config": config.to_dict()})


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        RunError: the folder is not a run folder of this version.
    """
    try:
        return RunConfig.from_dict(_read(folder / CONFIG)["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder / CONFIG} is of another version ({error}); run the variant again.") from error


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None.

    Raises:
        RunError: the summary cannot be read.
        DamagedSummary: it is of another version, or an entry of it is missing or no such thing.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    summary = _read(path)
    wrong = _wrong_entry(summary)
    if wrong is not None:
        where = wrong or "all of it"
        raise DamagedSummary(
            f"{path} is of another version or damaged ({where}); delete it, and --resume evaluates the checkpoint "
            "again.",
            where=f"{folder.name}: {where}",
        )
    return summary


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """One description of software and machine for every process that worked on the run."""
    path = folder / SESSIONS
    found = _read(path) if path.exists() else []
    if not isinstance(found, list):
        raise RunError(f"{path} is of another version; delete it.")
    return found


def finished_summaries(out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The summaries of the finished runs in a folder, and the names of the unfinished ones.

    Raises:
        RunError: a summary cannot be read.
        DamagedSummary: one is damaged or of another version, or its folder was renamed, so that nobody would find it.
    """
    folders = sorted(path.parent for path in out.glob(f"*/{CONFIG}"))
    found = {folder.name: read_summary(folder) for folder in folders}
    for name, summary in found.items():
        if summary is not None and summary["run"] != name:
            raise DamagedSummary(
                f"{out / name} holds the run {summary['run']}; give the folder that name again.", where=f"{name}: run"
            )
    finished = [summary for summary in found.values() if summary is not None]
    return finished, [name for name, summary in found.items() if summary is None]


def load_model(folder: Path) -> LoopedLM:
    """The trained model of a run folder, on CPU, in evaluation mode.

    Raises:
        RunError: the run is not finished, or its folder or checkpoint damaged or foreign.
    """
    config = read_config(folder)
    saved = checkpoints.load(require_checkpoint(folder))
    if saved.step != config.training.steps:
        raise RunError(
            f"{folder} is not finished (step {saved.step} of {config.training.steps}); run the same command with "
            "--resume."
        )
    model = LoopedLM(config.model)
    try:
        made_by = RunConfig.from_dict(saved.config)
        model.load_state_dict(saved.part("model"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"the checkpoint of {folder} is of another version; run the variant again.") from error
    if made_by != config:
        raise RunError(f"the checkpoint of {folder} was made by another configuration; run the variant again.")
    return model.eval()


def require_checkpoint(folder: Path) -> Path:
    """The run's checkpoint.

    Raises:
        RunError: there is none.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise RunError(f"{folder} has no {CHECKPOINT}: the run is not finished; run the same command with --resume.")
    return path


def load_batch(folder: Path) -> Int[Tensor, "sequences context"]:
    """The first validation tokens of a run's corpus, prepared again from the same text if the cache has it no more.

    Raises:
        RunError: the text on this machine is no longer what the run saw.
        UsageError: there is no such text.
    """
    config = read_config(folder)
    corpus = prepare(config.corpus, default_cache(), min_tokens=config.model.context + 1)
    if corpus.key != config.corpus_key:
        raise RunError(f"the corpus of {folder} has changed on this machine: its token ids would mean other words.")
    context = config.model.context
    count = min(SEQUENCES, len(corpus.validation) // context)
    tokens = np.asarray(corpus.validation[: count * context]).astype(np.int64)
    return torch.from_numpy(tokens).view(count, context)


def _wrong_entry(summary: Any) -> str | None:
    """The name of an entry that is missing or not what is read, or None."""
    if (wrong := _wrong(summary, SUMMARY_KINDS)) is not None:
        return wrong
    try:
        config = RunConfig.from_dict(summary["config"])
    except (KeyError, TypeError, ValueError):
        return "config"
    try:
        find(summary["variant"])
    except KeyError:
        return "variant"
    validation, loops = summary["validation"], config.model.num_loops
    by_loop = {f"validation.l2_norm.{name}": validation["l2_norm"][name] for name in _NORMS}
    by_loop["validation.cross_entropy"] = validation["cross_entropy"]
    by_loop["state.radial_gradient_fraction"] = summary["state"]["radial_gradient_fraction"]
    return next((name for name, values in by_loop.items() if len(values) != loops), None)


def _wrong(found: Any, wanted: Any, name: str = "") -> str | None:
    """The name of the first entry that is not as wanted (see `SUMMARY_KINDS`), below the one of this name."""
    if isinstance(wanted, Mapping):
        if not isinstance(found, dict):
            return name
        for key, inner in wanted.items():
            plain = key.removesuffix("?")
            below = f"{name}.{plain}".lstrip(".")
            if plain != key and found.get(plain) is None:
                continue
            if plain not in found:
                return below
            if (wrong := _wrong(found[plain], inner, below)) is not None:
                return wrong
        return None
    if isinstance(wanted, list):
        if not isinstance(found, list) or not found:
            return name
        wrongs = (_wrong(item, wanted[0], f"{name}.{i}") for i, item in enumerate(found))
        return next(filter(None, wrongs), None)
    right = isinstance(found, wanted) and (wanted is object or not isinstance(found, bool))
    return None if right else name


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path} ({error}); is this the folder of a run?") from error
