"""One file a run: its start, its audit's remedies, and every arm, kept as soon as it is done."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.config import RunConfig
from experiments.corpus import TokenCorpus
from experiments.environment import describe
from experiments.errors import RunError, UsageError
from experiments.files import read_json, write_json
from experiments.training.trainer import Execution
from experiments.treatments.arms import CONTROLS, NONE, begin, controls, treat

KEYS = frozenset({"run", "variant", "seed", "at", "config", "parameters", "sessions", "corpus", "arms", "complete"})


def run_arms(config: RunConfig, corpus: TokenCorpus, at: int, execution: Execution, path: Path) -> dict[str, Any]:
    """All arms of one run, its controls among them; those that its file has already are not trained again.

    Args:
        at: step at which the remedies are begun.
        path: of the file.

    Raises:
        UsageError: the file is of another configuration.
        RunError: it cannot be read, its arms began elsewhere, the audit names no remedy, or a loss became NaN or
            infinite.
    """
    run: dict[str, Any] = {
        "run": config.name,
        "variant": config.variant,
        "seed": config.seed,
        "at": at,
        "config": config.to_dict(),
        "sessions": [],
        "corpus": {key: value for key, value in corpus.record.items() if key != "files"},
        "arms": [],
        "complete": False,
    }
    if path.exists():
        found = stored(path)[0]
        if (RunConfig.from_dict(found["config"]), found["at"]) != (config, at):
            raise UsageError(f"{path} is of another configuration; choose another --out, or delete it.")
        run = found
    done = {arm["remedy"] for arm in run["arms"]}
    if run["complete"] and done.issuperset(CONTROLS):
        return run
    start = begin(config, corpus, at, execution)
    if any(arm["before"] != asdict(start.validation) for arm in run["arms"]):
        raise RunError(
            f"{path} has arms from other weights (another machine or another number of threads); delete it to train "
            "them again."
        )
    run["parameters"] = start.parameters
    run["sessions"].append(describe(execution.device))
    for remedy in tqdm([None, *start.report.remedies, *controls(start)], desc=config.name, unit="arm"):
        name = NONE if remedy is None else remedy.name
        if name not in done:
            run["arms"].append(treat(config, corpus, start, remedy, execution))
            write_json(path, [run])
    run["remedies"] = [asdict(remedy) for remedy in start.report.remedies]
    run["complete"] = True
    write_json(path, [run])
    return run


def stored(path: Path) -> list[dict[str, Any]]:
    """The runs in a file.

    Raises:
        RunError: it cannot be read, or is no such file, or of another version.
    """
    try:
        runs = read_json(path)
        whole = isinstance(runs, list) and bool(runs) and all(run.keys() >= KEYS for run in runs)
        for run in runs if whole else ():
            RunConfig.from_dict(run["config"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise RunError(f"cannot read {path} ({error}); delete it to train these arms again.") from error
    if not whole:
        raise RunError(f"{path} holds no runs with remedies, or those of another version; delete it.")
    return list(runs)
