"""What the monitor costs: training steps without it, between two samples, and with a sample.

python benchmarks/monitor.py --out results/benchmarks/monitor/cpu.json         all three in one process, in turns
python benchmarks/monitor.py --preset 44m --device cuda --rounds 60 --out results/benchmarks/monitor/44m-cuda.json
python benchmarks/monitor.py --publish        results/benchmarks/monitor.md and the README, of all that is stored there
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import run_as_script  # noqa: E402

if __name__ == "__main__":
    run_as_script("benchmarks.monitor")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.sides import interleaved, make_step, spread  # noqa: E402
from benchmarks.stored import FOLDER, publish  # noqa: E402
from experiments.config import TRAINING_PRESETS  # noqa: E402
from experiments.device import choose_device, make_arithmetic_repeatable  # noqa: E402
from experiments.environment import describe  # noqa: E402
from experiments.errors import require_at_least  # noqa: E402
from experiments.files import whole_files, write_json  # noqa: E402
from experiments.tables import markdown  # noqa: E402
from loopsight.monitor import LoopMonitor  # noqa: E402
from models import PRESETS, LoopedLM  # noqa: E402

EVERY = 50
NEVER = 10**9
SIDES = {"bare": None, "idle": NEVER, "sampled": 1}  # optimiser steps from one sample to the next


def monitored(every: int, records: list[dict[str, Any]]) -> Callable[[nn.Module, torch.optim.Optimizer], None]:
    """Attach to the last sublayer of the stack, whose output is h_k."""

    def attach(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        assert isinstance(model, LoopedLM)
        LoopMonitor(model, model.sublayers[-1], optimiser=optimiser, sinks=[records.append], every=every)

    return attach


def overhead(preset: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of a step on each side, on the same batches and in changing order, as ratios to the bare step's.

    The ratio of training is that of 49 steps between samples and one with a sample, in every round anew: a median over
    single steps would leave the samples out.
    """
    make_arithmetic_repeatable(device)
    records: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    steps = {
        side: make_step(
            "ours", preset, "rmsnorm", device=device, attach=None if every is None else monitored(every, records[side])
        )
        for side, every in SIDES.items()
    }
    ratios: dict[str, list[float]] = {"idle": [], "sampled": [], "training": []}
    bare: list[float] = []
    same_losses = True
    for seconds, losses in interleaved(steps, preset, TRAINING_PRESETS[preset].batch_size, rounds, device):
        same_losses = same_losses and len(set(losses.values())) == 1
        bare.append(seconds["bare"])
        training = ((EVERY - 1) * seconds["idle"] + seconds["sampled"]) / EVERY
        ratios["idle"].append(seconds["idle"] / seconds["bare"])
        ratios["sampled"].append(seconds["sampled"] / seconds["bare"])
        ratios["training"].append(training / seconds["bare"])
    return {
        "preset": preset,
        "every": EVERY,
        "ratio": {name: spread(values) for name, values in ratios.items()},
        "samples": {side: len([r for r in kept if r["event"] == "sample"]) for side, kept in records.items()},
        "same_losses": same_losses,
        "median_bare_milliseconds": 1e3 * statistics.median(bare),
    }


def as_markdown(stored: list[dict[str, Any]]) -> str:
    """One row a size and device."""
    rows = []
    for result in stored:
        cells = [
            f"{ratio['median']:.3f} ({ratio['low_10']:.3f} to {ratio['high_90']:.3f})"
            for ratio in (result["ratio"][key] for key in ("training", "idle", "sampled"))
        ]
        environment, rounds = result["environment"], result["ratio"]["training"]["rounds"]
        machine = environment["processor"] if environment["device"] == "cpu" else environment["device"]
        where = f"{result['preset']}, {machine}, {environment['date'][:10]}, torch {environment['packages']['torch']}"
        rows.append([where, *cells, str(rounds), f"{result['median_bare_milliseconds']:,.0f} ms"])
    every = stored[0]["every"]
    header = ["training of", f"one sample every {every} steps", "between samples", "with a sample", "rounds", "a step"]
    setting = (
        "Time with the monitor over time without, 10 to 90 % of the rounds; rmsnorm readout, random tokens, seed 0"
    )
    return markdown(header, rows) + f"\n\n{setting}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu", choices=list(PRESETS), help="size (default cpu)")
    parser.add_argument("--device", default="cpu", help="auto, cuda, cpu (default cpu)")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of three steps (default 100)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--publish", action="store_true", help="measure nothing; write the table of what is stored")
    arguments = parser.parse_args()
    if arguments.publish:
        publish("monitor", whole_files(FOLDER / "monitor", ".json"), as_markdown)
        return
    require_at_least(2, rounds=arguments.rounds)
    device = choose_device(arguments.device)
    result = overhead(arguments.preset, arguments.rounds, device)
    print(result)
    if arguments.out:
        write_json(arguments.out, result | {"environment": describe(device)})
