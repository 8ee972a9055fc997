"""Training speed and memory at full size on a GPU: ours against the plain implementation, interleaved in one process.

python benchmarks/gpu.py --preset 44m --out results/44m/speed.json
python benchmarks/gpu.py --publish results/*/speed.json              results/benchmarks/gpu.md and the README, anywhere
python benchmarks/gpu.py --preset tiny --device cpu --rounds 3 --out /tmp/speed.json     (dry run)

Utilisation is model FLOPs (attention counted full) a second over the peak of a large matrix product in this process.
"""

import argparse
import gc
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import run_as_script  # noqa: E402

if __name__ == "__main__":
    run_as_script("benchmarks.gpu")

import torch  # noqa: E402

from benchmarks.sides import READOUTS, SIDES, batches, interleaved, make_step, spread  # noqa: E402
from benchmarks.stored import publish  # noqa: E402
from experiments.device import choose_device, make_arithmetic_repeatable  # noqa: E402
from experiments.environment import describe  # noqa: E402
from experiments.errors import require_at_least  # noqa: E402
from experiments.files import write_json  # noqa: E402
from experiments.flops import matmul_peak, training_flops  # noqa: E402
from experiments.tables import markdown  # noqa: E402
from models import PRESETS, LoopedLM, Supervision  # noqa: E402


def compare(
    preset: str, readout: str, batch_size: int, rounds: int, device: torch.device, compiled: bool
) -> dict[str, Any]:
    """Both sides step by step on the same batches: tokens a second, ratio, loss difference."""
    steps = {side: make_step(side, preset, readout, device=device, compiled=compiled) for side in SIDES}
    measured = list(interleaved(steps, preset, batch_size, rounds, device))
    tokens = batch_size * PRESETS[preset].context
    return {
        "ratio": spread([seconds["plain"] / seconds["ours"] for seconds, _ in measured]),
        "tokens_per_second": {side: tokens / statistics.median(s[side] for s, _ in measured) for side in SIDES},
        "largest_relative_loss_difference": max(abs(loss["plain"] / loss["ours"] - 1.0) for _, loss in measured),
    }


def peak_memory(side: str, preset: str, batch_size: int, device: torch.device, compiled: bool) -> int:
    """Bytes that training takes above its parameters, gradients and moments; CUDA only.

    What torch has reserved of the card counts, since the memory of a recorded graph is allocated only once.
    """
    gc.collect()  # a compiled model of before is a cycle
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    step = make_step(side, preset, "rmsnorm", device=device, compiled=compiled)
    source = batches(preset, batch_size, device)
    for _ in range(2):
        step(*next(source))
    held = 4 * torch.float32.itemsize * LoopedLM(PRESETS[preset]).num_parameters()
    return torch.cuda.max_memory_reserved(device) - before - held


def as_markdown(stored: list[dict[str, Any]]) -> str:
    """Speed, utilisation and memory, ours against plain, and what they were measured on."""
    rows, settings = [], []
    for results in stored:
        preset = results["preset"]
        for run in results["runs"]:
            ratio, speed, share = run["ratio"], run["tokens_per_second"], run["utilisation"]
            rows.append(
                [
                    f"training speed, {preset}, batch {run['batch_size']}, {run['readout']} readout",
                    f"{ratio['median']:.2f} ({ratio['low_10']:.2f} to {ratio['high_90']:.2f})",
                    f"{speed['ours']:,.0f} against {speed['plain']:,.0f} tokens/s; "
                    f"{100 * share['ours']:.0f} % against {100 * share['plain']:.0f} % of the peak",
                ]
            )
        for batch_size, memory in results.get("memory_bytes", {}).items():
            sides = f"{memory['ours'] / 1e9:.1f} against {memory['plain'] / 1e9:.1f} GB"
            what = f"memory above parameters, gradients and moments, {preset}, batch {batch_size}, rmsnorm readout"
            rows.append([what, f"{memory['ours'] / memory['plain']:.2f}", sides])
        environment, rounds = results["environment"], results["runs"][0]["ratio"]["rounds"]
        difference = max(run["largest_relative_loss_difference"] for run in results["runs"])
        settings.append(
            f"{preset}: 10 to 90 % of {rounds} pairs, {environment['date'][:10]}, {environment['device']}, torch "
            f"{environment['packages']['torch']}, peak {results['matmul_peak'] / 1e12:.0f} TFLOP/s, the two sides' "
            f"losses agree to {difference:.0e}."
        )
    setting = "Bfloat16 products on both sides; ours compiled and recorded as a graph, plain eager; random tokens."
    return "\n\n".join([markdown(["what", "ours against plain", ""], rows), " ".join([setting, *settings])])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--preset", default="44m", choices=PRESETS, help="size (default 44m)")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[64], help="sequences a step (default 64)")
    options.add_argument("--rounds", type=int, default=20, help="paired steps (default 20)")
    options.add_argument("--device", default="auto", help="auto, cuda, cpu (default auto)")
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="JSON file to write")
    what.add_argument("--publish", type=Path, nargs="+", help="files of earlier results; nothing is measured")
    arguments = options.parse_args()
    if arguments.publish:
        publish("gpu", arguments.publish, as_markdown)
        return
    require_at_least(2, rounds=arguments.rounds)
    require_at_least(1, batch_sizes=min(arguments.batch_sizes))
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
