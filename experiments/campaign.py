"""Many runs of one size on one machine within a budget of time: planned once, gone on with where a budget ended.

The plan (variants, seeds, tokens of every run) is made at the first call and kept, so that runs of equal tokens can be
compared.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments import evidence
from experiments.config import TRAINING_PRESETS, RunConfig, resolve
from experiments.corpus import CorpusConfig, TokenCorpus
from experiments.errors import Interrupted, OutOfTime, RunError, UsageError, first_line
from experiments.experiment import run
from experiments.files import read_json, write_json
from experiments.flops import matmul_peak, synchronise, training_flops
from experiments.measure.suite import unmeasured
from experiments.runs import read_summary
from experiments.training.gradients import release
from experiments.training.optimiser import build_optimisers
from experiments.training.trainer import Execution, build_model, run_gradients, training_step, training_windows

PLAN = "plan.json"
CENTRAL = ("scale_invariant", "scale_visible", "untied_scale_invariant", "untied_scale_visible")
TRAINING_SHARE = 0.6  # of the budget; the rest is compilation, evaluation, and measuring what training left
MEASURING_SHARE = 0.1  # of it, at its end, kept for what could not be measured beside training
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
        corpus_key: of the tokens that all runs train on.
    """

    preset: str
    runs: tuple[tuple[str, int], ...]
    steps: int
    batch_size: int
    learning_rate: float
    tokens_per_second: float
    matmul_peak: float
    corpus_key: str


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
    """Measure this machine's speed and share out evenly what is left of the budget; `tokens`, if given, decides.

    Raises:
        UsageError: a batch size or a learning rate that no training can have.
    """
    given: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate}
    try:
        training = replace(TRAINING_PRESETS[preset], **{name: v for name, v in given.items() if v is not None})
    except ValueError as error:
        raise UsageError(str(error)) from error
    config = resolve(variant=runs[0][0], preset=preset, seed=0, training=training, corpus=corpus_config, tokens=corpus)
    rate = measured_rate(config, corpus, execution)
    peak = matmul_peak(execution.device)
    left = 60.0 * minutes if execution.deadline is None else execution.deadline - time.monotonic()
    each = tokens if tokens is not None else int(TRAINING_SHARE * max(0.0, left) * rate / len(runs))
    return Plan(
        preset=preset,
        runs=runs,
        steps=steps_of(each, training.batch_size, config.model.context),
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        tokens_per_second=rate,
        matmul_peak=peak,
        corpus_key=corpus.key,
    )


def steps_of(tokens: int, batch_size: int, context: int) -> int:
    """Steps of a run of so many tokens, at least one."""
    return max(1, round(tokens / (batch_size * context)))


def measured_rate(config: RunConfig, corpus: TokenCorpus, execution: Execution) -> float:
    """Training tokens a second of one run's configuration on this machine, after warming up."""
    model = build_model(config, execution.device).train()
    gradients = run_gradients(config, model, execution)
    optimisers = build_optimisers(model, config.training)
    windows = training_windows(config, corpus.train, execution.device)
    for step in range(WARM_UP + TIMED):
        if step == WARM_UP:
            synchronise(execution.device)
            start = time.perf_counter()
        training_step(config, gradients, optimisers, windows, step)
    synchronise(execution.device)
    seconds = time.perf_counter() - start
    release(model)
    return TIMED * config.training.batch_size * config.model.context / seconds


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


def require_same_plan(plan: Plan, **asked: Any) -> None:
    """What a later call asks for, where it asks for anything, must be what was planned.

    Raises:
        UsageError: it is not.
    """
    for name, value in asked.items():
        planned = getattr(plan, name)
        if value is None or value == planned:
            continue
        if name == "runs":
            planned, value = (", ".join(_named(runs)) for runs in (planned, value))
        raise UsageError(f"the plan has {name} {planned}, and this call asks for {value}; choose another --out.")


def write_plan(out: Path, plan: Plan) -> None:
    write_json(out / PLAN, asdict(plan))


def carry_out(
    plan: Plan,
    corpus: TokenCorpus,
    corpus_config: CorpusConfig,
    out: Path,
    execution: Execution,
    measure: Callable[[Path], object],
) -> list[str]:
    """Train in the plan's order until the execution's deadline; `measure` is given the folder of every trained run.

    Returns:
        The names of the runs that failed, the others having gone on.
    """
    failed: list[str] = []
    training = replace(
        TRAINING_PRESETS[plan.preset],
        steps=plan.steps,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
    )
    for variant, seed in plan.runs:
        config = resolve(
            variant=variant, preset=plan.preset, seed=seed, training=training, corpus=corpus_config, tokens=corpus
        )
        if execution.out_of_time():
            break
        print(f"{config.name} ...", flush=True)
        try:
            run(config, corpus, out, execution, num_loops=config.model.num_loops, resume=True)
            measure(out / config.name)
        except Interrupted as error:
            raise Interrupted(
                f"interrupted in {config.name}; what is finished is kept, the same command goes on."
            ) from error
        except OutOfTime:
            print(f"{config.name}: out of time, the same command goes on", flush=True)
        except RunError as error:
            print(f"{config.name} failed: {error}", flush=True)
            failed.append(config.name)
        except Exception as error:  # whatever it is, the others go on
            print(f"{config.name} failed: {type(error).__name__}: {first_line(error)}", flush=True)
            failed.append(config.name)
    return failed


def unfinished(plan: Plan, out: Path) -> dict[str, str]:
    """The plan's runs that lack something, by name, and what it is."""
    lacking = {}
    for name in names(plan):
        try:
            if read_summary(out / name) is None:
                lacking[name] = "not trained"
            elif tables := unmeasured(out / name):
                lacking[name] = f"without {', '.join(tables)}"
        except RunError as error:
            lacking[name] = str(error)
    return lacking


def names(plan: Plan) -> list[str]:
    """The names of the plan's runs, in order."""
    return _named(plan.runs)


def _named(runs: Sequence[tuple[str, int]]) -> list[str]:
    return [f"{variant}-{seed}" for variant, seed in runs]


def pack(plan: Plan, out: Path, results: Path) -> None:
    """The finished runs as a few small files, with the plan, the missing runs and each run's share of the peak."""
    summaries = {name: summary for name in names(plan) if (summary := _summary(out / name)) is not None}
    evidence.pack(
        [out / name for name in summaries],
        results,
        missing=[name for name in names(plan) if name not in summaries],
        plan=asdict(plan),
        model_flops_utilisation={name: _utilisation(summary, plan) for name, summary in summaries.items()},
    )


def _summary(folder: Path) -> dict[str, Any] | None:
    try:
        return read_summary(folder)
    except RunError as error:
        print(f"left out: {error}", flush=True)
        return None


def _utilisation(summary: dict[str, Any], plan: Plan) -> float:
    config = RunConfig.from_dict(summary["config"])
    per_token = training_flops(config.model, config.supervision)
    return per_token * float(summary["training"]["tokens_per_second"]) / plan.matmul_peak
