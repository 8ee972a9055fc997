"""What an audit costs and finds: models of a size with random weights, and a run folder's checkpoint.

python benchmarks/audit.py                                            the 129M model on the CPU; prints
python benchmarks/audit.py --runs runs/scale_visible-0 --out results/benchmarks/audit/cpu.json          that run as well
python benchmarks/audit.py --presets 1.4b --dtype bfloat16 --device cuda --out results/benchmarks/audit/1.4b-cuda.json
python benchmarks/audit.py --publish             results/benchmarks/audit.md and the README, of all that is stored there
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import run_as_script  # noqa: E402

if __name__ == "__main__":
    run_as_script("benchmarks.audit")

import torch  # noqa: E402

from benchmarks.stored import FOLDER, publish  # noqa: E402
from experiments.device import choose_device  # noqa: E402
from experiments.environment import describe  # noqa: E402
from experiments.errors import RunError, require_at_least  # noqa: E402
from experiments.files import whole_files, write_json  # noqa: E402
from experiments.runs import load_batch, load_model  # noqa: E402
from experiments.tables import markdown  # noqa: E402
from loopsight import audit  # noqa: E402
from models import PRESETS, LoopedLM  # noqa: E402

SEQUENCES, LENGTH = 2, 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def measure(what: str, length: int, dtype: str, device: torch.device) -> dict[str, Any]:
    """One audit, in a process of its own for the sake of its peak memory."""
    if what in PRESETS:
        torch.manual_seed(0)
        model = LoopedLM(PRESETS[what]).eval()
        batch = torch.randint(model.config.vocab_size, (SEQUENCES, length))
    else:
        model, batch = load_model(Path(what)), load_batch(Path(what))
    report = audit(model.to(device, DTYPES[dtype]), batch.to(device))
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 2**10 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "of": what if what in PRESETS else Path(what).name,
        "random_weights": what in PRESETS,
        "parameters": model.num_parameters(),
        "dtype": dtype,
        "loops": model.config.num_loops,
        "tokens": batch.numel(),
        "seconds": report.seconds,
        "peak_gib": peak / 2**30,
        "valid": report.valid,
        "directions": [{"name": d.name, "verdict": d.verdict, "visibility": d.visibility} for d in report.directions],
        "notes": list(report.notes),
    }


def as_markdown(stored: list[dict[str, Any]]) -> str:
    """One row an audit, the smallest model first, and what they were measured on."""
    found = [(result, run["environment"]) for run in stored for result in run["audits"]]
    rows = [
        [
            f"{r['parameters'] / 1e6:,.1f}M, {'random weights' if r['random_weights'] else r['of']}",
            r["dtype"],
            _machine(environment),
            str(r["tokens"]),
            f"{r['seconds']:.0f} s",
            f"{r['peak_gib']:.1f} GiB",
            ", ".join(f"{d['name']} {d['verdict']}" for d in r["directions"]) if r["valid"] else "invalid",
        ]
        for r, environment in sorted(found, key=lambda pair: pair[0]["parameters"])
    ]
    machines = {f"{_machine(e)}: {e['date'][:10]}, torch {e['packages']['torch']}" for _, e in found}
    loops = "/".join(sorted({str(r["loops"]) for r, _ in found}))
    setting = (
        f"{loops} loops, seed 0. Memory: of the whole process on a CPU, what torch allocated on a GPU; the model "
        f"included. {'; '.join(sorted(machines))}."
    )
    header = ["audit of", "weights", "on", "tokens", "time", "peak memory", "verdicts"]
    return markdown(header, rows) + "\n\n" + setting


def _machine(environment: dict[str, Any]) -> str:
    if environment["device"] != "cpu":
        return environment["device"]
    return f"{environment['processor']}, {environment['torch_threads']} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets", nargs="*", default=["129m"], choices=list(PRESETS), help="models to draw (default 129m)"
    )
    parser.add_argument(
        "--length", type=int, default=LENGTH, help=f"tokens of each of their {SEQUENCES} sequences (default {LENGTH})"
    )
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help="of the weights (default float32)")
    parser.add_argument("--device", default="cpu", help="auto, cuda, cpu (default cpu)")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="run folders to audit as well")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--publish", action="store_true", help="measure nothing; write the table of what is stored")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        publish("audit", whole_files(FOLDER / "audit", ".json"), as_markdown)
        return
    if not arguments.presets and not arguments.runs:
        parser.error("nothing to audit: name presets, or runs.")
    require_at_least(2, length=arguments.length)
    device = choose_device(arguments.device)
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.length, arguments.dtype, device)))
        return
    results = []
    for what in (*arguments.presets, *arguments.runs):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", what], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise RunError(f"the audit of {what} ended with exit status {done.returncode}; what it said stands above.")
        results.append(json.loads(done.stdout))
        print(results[-1], flush=True)
        if arguments.out:
            write_json(arguments.out, {"audits": results, "environment": describe(device)})
