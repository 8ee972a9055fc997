"""What the monitor costs: training steps of the cpu preset without it, between two samples, and with a sample.

python benchmarks/monitor.py                 all three in one process, in turns; prints the ratios
python benchmarks/monitor.py --publish       and writes results/benchmarks/monitor.json and .md, and the README
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # the repository, not this folder

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.sides import batches, make_step  # noqa: E402
from benchmarks.training import WARM_UP, spread  # noqa: E402
from experiments.config import TRAINING_PRESETS  # noqa: E402
from experiments.environment import describe  # noqa: E402
from experiments.files import atomic_path, write_json  # noqa: E402
from experiments.readme import replace_section  # noqa: E402
from experiments.tables import markdown  # noqa: E402
from loopsight.monitor import LoopMonitor  # noqa: E402
from models import LoopedLM  # noqa: E402

EVERY = 50
PRESET = TRAINING_PRESETS["cpu"]
NEVER = 10**9
SIDES = {"bare": None, "idle": NEVER, "sampled": 1}  # optimiser steps from one sample to the next


def monitored(every: int, records: list[dict[str, Any]]) -> Callable[[nn.Module, torch.optim.Optimizer], None]:
    """Attach to the last sublayer of the stack, whose output is h_k."""

    def attach(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        assert isinstance(model, LoopedLM)
        LoopMonitor(model, model.sublayers[-1], optimiser=optimiser, sinks=[records.append], every=every)

    return attach


def overhead(rounds: int) -> dict[str, Any]:
    """Seconds of a step on each side, on the same batches and in changing order, as ratios to the bare step's.

    The ratio of training is that of 49 steps between samples and one with a sample, in every round anew: a median over
    single steps would leave the samples out.
    """
    torch.set_flush_denormal(True)
    records: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    steps = {
        side: make_step("ours", "cpu", "rmsnorm", attach=None if every is None else monitored(every, records[side]))
        for side, every in SIDES.items()
    }
    ratios: dict[str, list[float]] = {"idle": [], "sampled": [], "training": []}
    bare: list[float] = []
    source, order = batches("cpu", PRESET.batch_size), list(SIDES)
    losses: dict[str, float] = {}
    for index in range(WARM_UP + rounds):
        batch = next(source)
        order = order[1:] + order[:1] if index % 2 else order[::-1]
        seconds = {}
        for side in order:
            began = time.perf_counter()
            losses[side] = steps[side](*batch)
            seconds[side] = time.perf_counter() - began
        if index >= WARM_UP:
            bare.append(seconds["bare"])
            training = ((EVERY - 1) * seconds["idle"] + seconds["sampled"]) / EVERY
            ratios["idle"].append(seconds["idle"] / seconds["bare"])
            ratios["sampled"].append(seconds["sampled"] / seconds["bare"])
            ratios["training"].append(training / seconds["bare"])
    return {
        "every": EVERY,
        "ratio": {name: spread(values) for name, values in ratios.items()},
        "samples": {side: len([r for r in kept if r["event"] == "sample"]) for side, kept in records.items()},
        "same_losses": len(set(losses.values())) == 1,
        "median_bare_milliseconds": 1e3 * statistics.median(bare),
    }


def publish(result: dict[str, Any]) -> None:
    folder = ROOT / "results" / "benchmarks"
    write_json(folder / "monitor.json", result)
    with atomic_path(folder / "monitor.md") as temporary:
        temporary.write_text(as_markdown(result) + "\n", encoding="utf-8")
    replace_section(ROOT / "README.md", "monitor", as_markdown(result))


def as_markdown(result: dict[str, Any]) -> str:
    names = {
        "training": f"training, one sample every {result['every']} steps",
        "idle": "a step between two samples",
        "sampled": "a step with a sample",
    }
    rows = []
    for key, name in names.items():
        ratio = result["ratio"][key]
        rows.append([name, f"{ratio['median']:.3f} ({ratio['low_10']:.3f} to {ratio['high_90']:.3f})"])
    environment = result["environment"]
    provenance = (
        f"cpu preset, rmsnorm readout, 10 to 90 % of {result['ratio']['training']['rounds']} rounds; "
        f"{environment['date'][:10]}, {environment['processor']}, {environment['torch_threads']} threads, "
        f"torch {environment['packages']['torch']}, random tokens, seed 0."
    )
    return markdown(["what", "time with the monitor / without"], rows) + "\n\n" + provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="rounds of three steps (default 100)")
    parser.add_argument("--publish", action="store_true", help="write the results")
    arguments = parser.parse_args()
    result = overhead(arguments.rounds)
    print(result)
    if arguments.publish:
        publish(result | {"environment": describe(torch.device("cpu"))})


if __name__ == "__main__":
    main()
