"""Speed and memory of training against the plain implementation of the same maths, as ratios.

python benchmarks/training.py speed     all sides in one process, interleaved, subnormals flushed on both
python benchmarks/training.py start     the first steps from N(0, 1), ours against plain without flushing
python benchmarks/training.py memory    peak memory above parameters and optimiser, a process a side
python benchmarks/training.py all       all three; writes results/benchmarks/training.json and .md, and the README
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import run_as_script  # noqa: E402

if __name__ == "__main__":
    run_as_script("benchmarks.training")

import torch  # noqa: E402

from benchmarks.sides import CPU, READOUTS, SIDES, Step, batches, interleaved, make_step, spread  # noqa: E402
from benchmarks.stored import FOLDER, publish  # noqa: E402
from experiments.config import TRAINING_PRESETS  # noqa: E402
from experiments.environment import describe  # noqa: E402
from experiments.errors import RunError, require_at_least  # noqa: E402
from experiments.files import write_json  # noqa: E402
from experiments.tables import markdown  # noqa: E402
from experiments.training.shards import shard_count  # noqa: E402
from models import PRESETS  # noqa: E402

PRESET = TRAINING_PRESETS["cpu"]
SPEED_MICRO_BATCHES = (1, 2)
PROCESS_ROUNDS = 3  # of what takes a process a side


def step_of(side: str, preset: str, readout: str, micro_batches: int = 1, *, recompute: bool = False) -> Step:
    """One side's step; ours in as many shards as training would take of this preset."""
    if side == "plain":
        return make_step(side, preset, readout)
    training = replace(TRAINING_PRESETS[preset], micro_batches=micro_batches)
    shards = shard_count(PRESETS[preset], training, CPU)
    return make_step(side, preset, readout, micro_batches=micro_batches, recompute=recompute, shards=shards)


def speed(rounds: int) -> dict[str, Any]:
    """Seconds of plain / seconds of ours, step by step on the same batches; and how far the losses are apart."""
    torch.set_flush_denormal(True)
    results = {}
    for readout in READOUTS:
        ours = {_in_words(n): step_of("ours", "cpu", readout, n) for n in SPEED_MICRO_BATCHES}
        steps = {"plain": step_of("plain", "cpu", readout)} | ours
        measured = list(interleaved(steps, "cpu", PRESET.batch_size, rounds))
        for side in ours:
            ratios = [seconds["plain"] / seconds[side] for seconds, _ in measured]
            differences = [abs(losses["plain"] / losses[side] - 1.0) for _, losses in measured]
            case = f"{readout} readout, {side}"
            results[case] = {"ratio": spread(ratios), "largest_relative_loss_difference": max(differences)}
            print(f"speed, {case}: {results[case]}", flush=True)
    return results


def _in_words(number: int) -> str:
    return "1 micro-batch" if number == 1 else f"{number} micro-batches"


def start(rounds: int, steps: int = 40) -> dict[str, Any]:
    """The same ratio over the first steps of training; a process a side, since flushing is set once for threads."""
    results = {}
    for readout in READOUTS:
        ratios = []
        for _ in range(rounds):
            seconds = {
                side: _child("first-steps", side, readout, str(steps), "flush" if side == "ours" else "no-flush")[
                    "seconds"
                ]
                for side in SIDES
            }
            ratios.append(seconds["plain"] / seconds["ours"])
        results[readout] = {"ratios": ratios, "steps": steps}
        print(f"first {steps} steps, {readout} readout: {results[readout]}", flush=True)
    return results


MEMORY_CASES = {
    "cpu preset": ("cpu", str(PRESET.batch_size), [("1", ""), ("2", ""), ("4", "")]),
    "44m, batch 4": ("44m", "4", [("1", ""), ("1", "recompute"), ("4", "recompute")]),
}


def memory(rounds: int) -> dict[str, Any]:
    """Peak resident memory of two steps above that of a model whose optimiser has its moments; MB."""
    results: dict[str, Any] = {}
    for name, (preset, batch, cases) in MEMORY_CASES.items():
        for _ in range(rounds):
            plain = _child("memory", "plain", preset, batch, "1", "")["bytes"]
            for micro, recompute in cases:
                ours = _child("memory", "ours", preset, batch, micro, recompute)["bytes"]
                label = f"{name}, {_in_words(int(micro))}{', recompute' if recompute else ''}"
                sizes = results.setdefault(label, {"plain_mb": [], "ours_mb": []})
                sizes["plain_mb"].append(plain / 1e6)
                sizes["ours_mb"].append(ours / 1e6)
                print(f"memory, {label}: {sizes}", flush=True)
    return results


def _child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RunError(
            f"measuring {' '.join(arguments)} ended with exit status {done.returncode}; what it said stands above."
        )
    return json.loads(done.stdout)


def _first_steps(side: str, readout: str, steps: str, flush: str) -> dict[str, float]:
    torch.set_flush_denormal(flush == "flush")
    step = step_of(side, "cpu", readout, PRESET.micro_batches)
    source = batches("cpu", PRESET.batch_size)
    began = time.perf_counter()
    for _ in range(int(steps)):
        step(*next(source))
    return {"seconds": time.perf_counter() - began}


def _memory(side: str, preset: str, batch: str, micro: str, recompute: str) -> dict[str, float]:
    torch.set_flush_denormal(True)
    step = step_of(side, preset, "rmsnorm", int(micro), recompute=bool(recompute))
    source = batches(preset, int(batch))
    step(*(t[:, :2] for t in next(source)))  # fills gradients and moments; what is counted comes on top of them
    before = _resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in range(2):
        step(*next(source))
    return {"bytes": _peak_bytes() - before}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(_first_steps(*sys.argv[3:]) if sys.argv[2] == "first-steps" else _memory(*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "start", "memory", "all"], nargs="?", default="all")
    # After a hundred steps from N(0, 1) training has amplified rounding, and the two sides' losses drift apart.
    parser.add_argument("--rounds", type=int, default=60, help="paired steps for speed (default 60)")
    arguments = parser.parse_args()
    require_at_least(2, rounds=arguments.rounds)
    measures = {
        "speed": lambda: speed(arguments.rounds),
        "start": lambda: start(PROCESS_ROUNDS),
        "memory": lambda: memory(PROCESS_ROUNDS),
    }
    chosen = measures if arguments.what == "all" else {arguments.what: measures[arguments.what]}
    results = {name: measure() for name, measure in chosen.items()}
    if arguments.what == "all":
        path = FOLDER / "training.json"
        write_json(path, results | {"environment": describe(torch.device("cpu"))})
        publish("training", [path], as_markdown)


def _with_range(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def as_markdown(stored: list[dict[str, Any]]) -> str:
    """The table of all three measures."""
    (results,) = stored
    rows = []
    for case, result in results["speed"].items():
        ratio = result["ratio"]
        observed = f"{ratio['median']:.2f} ({ratio['low_10']:.2f} to {ratio['high_90']:.2f})"
        rows.append([f"training speed, cpu preset, {case} (10 to 90 % of {ratio['rounds']} pairs)", observed])
    for readout, result in results["start"].items():
        what = f"first {result['steps']} steps, {readout} readout, plain without flushing subnormals"
        rows.append([f"{what} (range of {len(result['ratios'])} pairs)", _with_range(result["ratios"])])
    for case, result in results["memory"].items():
        ours, plain = result["ours_mb"], result["plain_mb"]
        ratios = [a / b for a, b in zip(ours, plain, strict=True)]
        what = f"memory above parameters and optimiser, {case} (range of {len(ratios)} pairs)"
        sizes = f"{statistics.median(ours):.0f} against {statistics.median(plain):.0f} MB"
        rows.append([what, f"{_with_range(ratios)}; {sizes}"])
    environment = results["environment"]
    provenance = (
        f"{environment['date'][:10]}, {environment['processor']}, {environment['torch_threads']} threads, "
        f"torch {environment['packages']['torch']}, random tokens, seed 0; the two sides' losses agree to "
        f"{max(r['largest_relative_loss_difference'] for r in results['speed'].values()):.0e}."
    )
    return markdown(["what", "ours against plain"], rows) + "\n\n" + provenance
