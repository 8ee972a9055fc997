"""One run from end to end: train, evaluate, judge, draw. All that it writes lies in the run's folder."""

import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.config import RunConfig
from experiments.corpus import TokenCorpus
from experiments.environment import describe
from experiments.errors import RunError, UsageError
from experiments.expectations import as_dicts, table
from experiments.files import write_json
from experiments.measure.state import measure_state
from experiments.measure.validation import held_out_windows, validate
from experiments.runs import CONFIG, SUMMARY, read_config, read_summary, write_config
from experiments.training.metrics import read_metrics
from experiments.training.trainer import Execution, train
from experiments.variants import VARIANTS
from models import LoopedLM

VALIDATION_WINDOWS = 128
STATE_WINDOWS, STATE_TOKENS = 4, 64  # measured in float64, so fewer
EVALUATION_BATCH = 16


def run(
    config: RunConfig, corpus: TokenCorpus, out: Path, execution: Execution, *, num_loops: int, resume: bool
) -> dict[str, Any]:
    """Carry out one run, or what is left of it, and return its summary (the contents of `summary.json`).

    Args:
        config: what to run.
        corpus: its tokens.
        out: parent of the run's folder.
        execution: how to run it.
        num_loops: loops to evaluate with.
        resume: go on with a folder that exists already; finished runs are returned as they are.

    Raises:
        UsageError: the folder exists and `resume` is off, or holds another configuration.
        RunError: training failed or was interrupted.
    """
    folder = out / config.name
    _claim_folder(folder, config, resume=resume)
    finished = read_summary(folder)
    if finished is not None and finished["num_loops"] == num_loops:
        return finished
    write_json(folder / "environment.json", describe(execution.device))
    write_json(folder / "corpus.json", corpus.record)
    model = train(config, corpus.train, folder, execution)
    summary = _summarise(config, corpus, model, folder, execution, num_loops)
    from experiments.figures import (
        draw_run,
    )  # matplotlib takes seconds to import; only a finished run needs it

    draw_run(folder, summary, read_metrics(folder / "metrics.jsonl"))
    write_json(folder / SUMMARY, summary)
    return summary


def _claim_folder(folder: Path, config: RunConfig, *, resume: bool) -> None:
    if not (folder / CONFIG).exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} exists and is not the folder of a run; choose another --out.")
        write_config(folder, config)
        return
    if not resume:
        raise UsageError(f"{folder} exists; add --resume to go on with it, choose another --out, or delete it.")
    if read_config(folder) != config:
        raise UsageError(
            f"{folder} holds a run of another configuration (see its {CONFIG}); choose another --out, or delete it."
        )


def _summarise(
    config: RunConfig,
    corpus: TokenCorpus,
    model: LoopedLM,
    folder: Path,
    execution: Execution,
    num_loops: int,
) -> dict[str, Any]:
    model.eval()
    windows = held_out_windows(corpus.validation, config.model.context, VALIDATION_WINDOWS)
    validation = validate(model, windows, num_loops=num_loops, batch_size=EVALUATION_BATCH)
    state = measure_state(model, windows[:STATE_WINDOWS, : STATE_TOKENS + 1], num_loops=num_loops)
    if not all(map(math.isfinite, validation.cross_entropy)):
        raise RunError(f"the trained model of {config.name} gives NaN or infinite losses; try a lower --learning-rate.")
    return {
        "run": config.name,
        "variant": config.variant,
        "seed": config.seed,
        "num_loops": num_loops,
        "parameters": model.num_parameters(),
        "config": config.to_dict(),
        "environment": describe(execution.device),
        "corpus": {key: value for key, value in corpus.record.items() if key != "files"},
        "training": _training_summary(config, read_metrics(folder / "metrics.jsonl")),
        "validation": asdict(validation),
        "state": asdict(state),
        "table": as_dicts(table(VARIANTS[config.variant], config.model, validation, state)),
    }


def _training_summary(config: RunConfig, metrics: list[dict[str, Any]]) -> dict[str, Any]:
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
