"""Training speed and memory at full size on a GPU: ours against the plain implementation, interleaved in one process.

python benchmarks/gpu.py --preset 44m --out results/44m/speed.json
python benchmarks/gpu.py --preset tiny --device cpu --rounds 3 --out /tmp/speed.json     (dry run)

Utilisation is model FLOPs (attention counted full) a second over the peak of a large matrix product in this process.
"""

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

import torch  # noqa: E402

from benchmarks.sides import READOUTS, SIDES, batches, make_step, spread  # noqa: E402
from experiments.device import choose_device, make_arithmetic_repeatable  # noqa: E402
from experiments.environment import describe  # noqa: E402
from experiments.errors import exit_status  # noqa: E402
from experiments.files import write_json  # noqa: E402
from experiments.flops import matmul_peak, synchronise, training_flops  # noqa: E402
from models import PRESETS, Supervision  # noqa: E402

WARM_UP = 3


def compare(
    preset: str, readout: str, batch_size: int, rounds: int, device: torch.device, compiled: bool
) -> dict[str, Any]:
    """Both sides step by step on the same batches: tokens a second, ratio, loss difference."""
    steps = {side: make_step(side, preset, readout, device=device, compiled=compiled) for side in SIDES}
    source = batches(preset, batch_size, device)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    differences = []
    for index in range(WARM_UP + rounds):
        batch, losses = next(source), {}
        for side in SIDES if index % 2 else SIDES[::-1]:
            synchronise(device)
            began = time.perf_counter()
            losses[side] = steps[side](*batch)
            synchronise(device)
            if index >= WARM_UP:
                seconds[side].append(time.perf_counter() - began)
        differences.append(abs(losses["plain"] / losses["ours"] - 1.0))
    tokens = batch_size * PRESETS[preset].context
    pairs = zip(seconds["plain"], seconds["ours"], strict=True)
    return {
        "ratio": spread([plain / ours for plain, ours in pairs]),
        "tokens_per_second": {side: tokens / statistics.median(seconds[side]) for side in SIDES},
        "largest_relative_loss_difference": max(differences),
    }


def peak_memory(side: str, preset: str, batch_size: int, device: torch.device, compiled: bool) -> int:
    """Bytes a step takes above what the model, its gradients and its optimiser hold; CUDA only."""
    step = make_step(side, preset, "rmsnorm", device=device, compiled=compiled)
    source = batches(preset, batch_size, device)
    step(*next(source))
    gc.collect()  # a compiled model of before is a cycle
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(*next(source))
    return torch.cuda.max_memory_allocated(device) - held


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--preset", default="44m", choices=PRESETS, help="size (default 44m)")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[64], help="sequences a step (default 64)")
    options.add_argument("--rounds", type=int, default=20, help="paired steps (default 20)")
    options.add_argument("--device", default="auto", help="auto, cuda, cpu (default auto)")
    options.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = options.parse_args()
    device = choose_device(arguments.device)
    make_arithmetic_repeatable(device)
    compiled = device.type == "cuda"
    peak = matmul_peak(device)
    results: dict[str, Any] = {"preset": arguments.preset, "matmul_peak": peak, "runs": []}
    for batch_size in arguments.batch_sizes:
        for readout in READOUTS:
            result = compare(arguments.preset, readout, batch_size, arguments.rounds, device, compiled)
            model = PRESETS[arguments.preset]
            flops = training_flops(model, Supervision(placement="per_loop"))
            result["utilisation"] = {side: flops * rate / peak for side, rate in result["tokens_per_second"].items()}
            results["runs"].append({"batch_size": batch_size, "readout": readout} | result)
            print(results["runs"][-1], flush=True)
        if device.type == "cuda":
            memory = {side: peak_memory(side, arguments.preset, batch_size, device, compiled) for side in SIDES}
            results.setdefault("memory_bytes", {})[str(batch_size)] = memory
            print(f"memory, batch {batch_size}: {memory}", flush=True)
    write_json(arguments.out, results | {"environment": describe(device)})


if __name__ == "__main__":
    sys.exit(exit_status(main))
