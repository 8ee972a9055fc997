"""One run from end to end: train, evaluate, judge, draw. All that it writes lies in the run's folder."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.config import RunConfig
from experiments.corpus import TokenCorpus
from experiments.environment import describe
from experiments.errors import RunError, UsageError, finite_numbers
from experiments.expectations import as_dicts, table
from experiments.files import exclusive, write_json
from experiments.measure.counting import counting
from experiments.measure.forward import EVALUATION_BATCH
from experiments.measure.state import STATE_TOKENS, STATE_WINDOWS, StateMeasurement, measure_state
from experiments.measure.validation import VALIDATION_WINDOWS, Validation, held_out_windows, validate
from experiments.runs import CONFIG, SESSIONS, SUMMARY, read_config, read_sessions, read_summary, write_config
from experiments.training.metrics import METRICS, read_metrics
from experiments.training.trainer import Execution, train, training_windows
from experiments.variants import find
from models import LoopedLM

MOST_COUNTED = 20_000_000  # training tokens that a run's loss is compared with counts of


def run(
    config: RunConfig, corpus: TokenCorpus, out: Path, execution: Execution, *, num_loops: int, resume: bool
) -> dict[str, Any]:
    """Carry out one run, or what is left of it, and return its summary (the contents of `summary.json`).

    Args:
        config: what to run.
        corpus: its tokens.
        out: parent of the run's folder.
        execution: how to run it.
        num_loops: loops to evaluate with, beside the trained number.
        resume: go on with a folder that exists already; finished runs are returned as they are.

    Raises:
        UsageError: the folder exists and `resume` is off, holds another configuration, or is in use.
        RunError: training failed or was interrupted, or the folder is damaged.
    """
    folder = out / config.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder} ({error}); choose another --out.") from error
    with exclusive(folder) as ours:
        if not ours:
            raise UsageError(f"another process is working in {folder}; wait for it, or choose another --out.")
        _claim_folder(folder, config, resume=resume)
        finished = read_summary(folder)
        if finished is not None and finished["num_loops"] == num_loops:
            return finished
        write_json(folder / SESSIONS, [*read_sessions(folder), describe(execution.device)])
        write_json(folder / "corpus.json", corpus.record)
        model = train(config, corpus.train, folder, execution)
        summary = _summarise(config, corpus, model, folder, num_loops)
        from experiments.figures import draw_run  # matplotlib takes seconds to import; only a finished run needs it

        draw_run(folder, summary, read_metrics(folder / METRICS))
        with finite_numbers(folder / SUMMARY):
            write_json(folder / SUMMARY, summary)  # last: with it a run is finished
    return summary


def _claim_folder(folder: Path, config: RunConfig, *, resume: bool) -> None:
    if not (folder / CONFIG).exists():
        # A process that is killed while it writes the configuration leaves a temporary file.
        if any(not path.name.startswith(f".{CONFIG}.") for path in folder.iterdir()):
            raise UsageError(f"{folder} exists and is not the folder of a run; choose another --out.")
        write_config(folder, config)
        return
    if not resume:
        raise UsageError(f"{folder} exists; add --resume to go on with it, choose another --out, or delete it.")
    other = read_config(folder)
    if other != config:
        differing = sorted(_flat(config.to_dict()) ^ _flat(other.to_dict()))
        names = ", ".join(dict.fromkeys(name for name, _ in differing))
        raise UsageError(f"{folder} holds a run that differs in {names}; choose another --out, or delete it.")


def _flat(values: dict[str, Any], prefix: str = "") -> set[tuple[str, str]]:
    flat: set[tuple[str, str]] = set()
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat.add((prefix + name, repr(value)))
    return flat


def _summarise(config: RunConfig, corpus: TokenCorpus, model: LoopedLM, folder: Path, num_loops: int) -> dict[str, Any]:
    model.eval()
    trained_loops = config.model.num_loops
    windows = held_out_windows(corpus.validation, config.model.context, VALIDATION_WINDOWS)
    validation = validate(model, windows, num_loops=trained_loops, batch_size=EVALUATION_BATCH)
    if not all(map(math.isfinite, validation.cross_entropy)):
        raise RunError(f"the trained model of {config.name} gives NaN or infinite losses; try a lower --learning-rate.")
    state = measure_state(model, windows[:STATE_WINDOWS, : STATE_TOKENS + 1], num_loops=trained_loops)
    other_loops = None
    if num_loops != trained_loops:
        other_loops = asdict(validate(model, windows, num_loops=num_loops, batch_size=EVALUATION_BATCH))
    return {
        "run": config.name,
        "variant": config.variant,
        "seed": config.seed,
        "num_loops": num_loops,
        "parameters": model.num_parameters(),
        "config": config.to_dict(),
        "sessions": read_sessions(folder),
        "corpus": {key: value for key, value in corpus.record.items() if key != "files"},
        "training": _training_summary(config, folder),
        "validation": asdict(validation),
        "validation_at_num_loops": other_loops,
        "counting": asdict(counting(_seen(config, corpus), windows, config.model.vocab_size)),
        "state": asdict(state),
        "table": judge(config, validation, state),
    }


def judge(config: RunConfig, validation: Validation, state: StateMeasurement) -> list[dict[str, Any]]:
    """The table predicted / observed / verdict of a run, from what was measured of it."""
    trained_as = replace(find(config.variant), supervision=config.supervision)  # with its own weights of the loops
    return as_dicts(table(trained_as, config.model, validation, state))


def _seen(config: RunConfig, corpus: TokenCorpus) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that the run was trained on, the first of them where they are very many."""
    windows = training_windows(config, corpus.train, torch.device("cpu"))
    most = math.ceil(MOST_COUNTED / (config.training.batch_size * config.model.context))
    return (windows.batch(step) for step in range(min(config.training.steps, most)))


def _training_summary(config: RunConfig, folder: Path) -> dict[str, Any]:
    metrics = read_metrics(folder / METRICS)
    if not metrics or metrics[-1]["step"] != config.training.steps:
        raise RunError(f"{folder / METRICS} lacks the end of training; delete {folder} to train it again.")
    tokens_per_step = config.training.batch_size * config.model.context
    steps = [record["step"] for record in metrics]
    rates = [record["tokens_per_second"] for record in metrics]
    intervals = zip(steps, [0, *steps], rates, strict=False)
    return {
        "tokens": config.training.steps * tokens_per_step,
        "seconds": round(sum((end - start) * tokens_per_step / rate for end, start, rate in intervals), 2),
        "tokens_per_second": statistics.median(rates),
        "final_loss": metrics[-1]["loss"],
    }
