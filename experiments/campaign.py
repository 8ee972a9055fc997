"""Many runs of one size on one machine within a budget of time: planned once, gone on with where a budget ended.

The plan (variants, seeds, tokens of every run) is made at the first call and kept, so that runs of equal tokens can be
compared.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.config import TRAINING_PRESETS, RunConfig, TrainingConfig, resolve
from experiments.corpus import CorpusConfig, TokenCorpus
from experiments.errors import OutOfTime, RunError, UsageError
from experiments.experiment import run
from experiments.files import atomic_path, read_json, write_json
from experiments.flops import matmul_peak, synchronise, training_flops
from experiments.measure.suite import FOLDER as MEASUREMENTS
from experiments.measure.suite import SUITE, measure_run, read_table
from experiments.runs import finished_summaries
from experiments.training.optimiser import build_optimisers
from experiments.training.trainer import Execution, build_model, training_step, training_windows
from experiments.variants import VARIANTS
from models import PRESETS

PLAN = "plan.json"
CENTRAL = ("scale_invariant", "scale_visible")
TRAINING_SHARE = 0.7  # of the budget; the rest is compilation, evaluation and reading the corpus
WARM_UP, TIMED = 5, 20  # steps


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a campaign trains.

    Attributes:
        preset: size.
        runs: (variant, seed), in order.
        steps: of every run.
        batch_size: sequences a step.
        learning_rate: of every run.
        tokens_per_second: as measured when the plan was made.
        matmul_peak: operations a second, measured in the same process.
    """

    preset: str
    runs: tuple[tuple[str, int], ...]
    steps: int
    batch_size: int
    learning_rate: float
    tokens_per_second: float
    matmul_peak: float


def queue(variants: Sequence[str], central_seeds: int) -> tuple[tuple[str, int], ...]:
    """Every variant with seed 0, the central ones first; then the central ones with further seeds."""
    first = sorted(variants, key=lambda name: name not in CENTRAL)
    further = [(name, seed) for seed in range(1, central_seeds) for name in CENTRAL if name in variants]
    return (*((name, 0) for name in first), *further)


def make_plan(
    corpus: TokenCorpus,
    corpus_config: CorpusConfig,
    execution: Execution,
    *,
    preset: str,
    runs: tuple[tuple[str, int], ...],
    minutes: float,
    tokens: int | None,
    batch_size: int | None,
    learning_rate: float | None,
) -> Plan:
    """Measure this machine's speed and share the budget out evenly; `tokens`, where given, decides instead."""
    training = TRAINING_PRESETS[preset]
    training = replace(
        training,
        batch_size=batch_size or training.batch_size,
        learning_rate=learning_rate or training.learning_rate,
    )
    config = resolve(variant=runs[0][0], preset=preset, seed=0, training=training, corpus=corpus_config, tokens=corpus)
    rate = measured_rate(config, corpus, execution)
    each = tokens if tokens is not None else TRAINING_SHARE * 60.0 * minutes * rate / len(runs)
    return Plan(
        preset=preset,
        runs=runs,
        steps=max(1, round(each / (training.batch_size * config.model.context))),
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        tokens_per_second=rate,
        matmul_peak=matmul_peak(execution.device),
    )


def measured_rate(config: RunConfig, corpus: TokenCorpus, execution: Execution) -> float:
    """Training tokens a second of one run's configuration on this machine, after warming up."""
    model = build_model(config, execution.device).train()
    if execution.compile:
        model.step = torch.compile(model.step)  # type: ignore[method-assign]
    optimisers = build_optimisers(model, config.training)
    windows = training_windows(config, corpus.train, execution.device)
    for step in range(WARM_UP + TIMED):
        if step == WARM_UP:
            synchronise(execution.device)
            start = time.perf_counter()
        training_step(config, model, optimisers, windows, step)
    synchronise(execution.device)
    return TIMED * config.training.batch_size * config.model.context / (time.perf_counter() - start)


def read_plan(out: Path) -> Plan | None:
    """The plan of an earlier call, or None.

    Raises:
        RunError: it is damaged or of another version.
    """
    path = out / PLAN
    if not path.exists():
        return None
    try:
        values = read_json(path)
        return Plan(**(values | {"runs": tuple((name, seed) for name, seed in values["runs"])}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"cannot read {path} ({error}); choose another --out, or delete it.") from error


def write_plan(out: Path, plan: Plan) -> None:
    write_json(out / PLAN, asdict(plan))


def carry_out(
    plan: Plan, corpus: TokenCorpus, corpus_config: CorpusConfig, out: Path, cache: Path, execution: Execution
) -> list[str]:
    """Train and measure in the plan's order until the execution's deadline; return the runs that are still missing."""
    training = replace(
        TRAINING_PRESETS[plan.preset],
        steps=plan.steps,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
    )
    missing = []
    for variant, seed in plan.runs:
        config = resolve(
            variant=variant, preset=plan.preset, seed=seed, training=training, corpus=corpus_config, tokens=corpus
        )
        if not _one(config, corpus, out, cache, execution):
            missing.append(config.name)
    return missing


def _one(config: RunConfig, corpus: TokenCorpus, out: Path, cache: Path, execution: Execution) -> bool:
    """One run, trained and measured; False where time or the run itself did not allow it."""
    if execution.out_of_time():
        return False
    print(f"{config.name} ...", flush=True)
    try:
        run(config, corpus, out, execution, num_loops=config.model.num_loops, resume=True)
        if execution.out_of_time():
            return False
        measure_run(out / config.name, cache, device=execution.device)
    except OutOfTime as error:
        print(error, flush=True)
        return False
    except RunError as error:  # a run that fails is named, and the others go on
        print(f"{config.name} failed: {error}", flush=True)
        return False
    return True


def pack(plan: Plan, out: Path, results: Path) -> None:
    """The finished runs' tables as few small files: one CSV a table for all runs, one JSON of runs."""
    summaries, _ = finished_summaries(out)
    planned = {f"{variant}-{seed}" for variant, seed in plan.runs}
    summaries = [summary for summary in summaries if summary["run"] in planned]
    for name in (name for question in SUITE for name in question.tables):
        frames = [
            read_table(out / summary["run"], name).assign(
                run=summary["run"], variant=summary["variant"], seed=summary["seed"]
            )
            for summary in summaries
            if (out / summary["run"] / MEASUREMENTS / f"{name}.csv").exists()
        ]
        if frames:
            with atomic_path(results / f"{name}.csv") as temporary:
                pd.concat(frames).to_csv(temporary, index=False)
    done = {summary["run"] for summary in summaries}
    write_json(
        results / "runs.json",
        {
            "plan": asdict(plan),
            "missing": sorted(planned - done),
            "runs": [_record(summary, plan) for summary in summaries],
        },
    )


def _record(summary: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A run's summary without what all runs share, with its model-FLOPs utilisation."""
    variant = VARIANTS[summary["variant"]]
    model = variant.model_config(replace(PRESETS[plan.preset], vocab_size=summary["config"]["model"]["vocab_size"]))
    per_token = training_flops(model, variant.supervision)
    training = summary["training"]
    kept = ("run", "variant", "seed", "parameters", "training", "validation", "state", "table", "sessions")
    return {key: summary[key] for key in kept} | {
        "flops_per_token": per_token,
        "model_flops_utilisation": per_token * training["tokens_per_second"] / plan.matmul_peak,
    }


def require_preset(preset: str) -> TrainingConfig:
    """The training of a preset.

    Raises:
        UsageError: the preset is unknown.
    """
    if preset not in TRAINING_PRESETS:
        raise UsageError(f"unknown preset '{preset}'; known: {', '.join(TRAINING_PRESETS)}.")
    return TRAINING_PRESETS[preset]
