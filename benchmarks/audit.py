"""What an audit costs: seconds and peak memory of a 129M model with random weights, and of a run folder's checkpoint.

python benchmarks/audit.py                                  the 129M model; prints
python benchmarks/audit.py --run runs/scale_invariant-0     that run as well
python benchmarks/audit.py --publish                        writes results/benchmarks/audit.json and .md, and the README
python benchmarks/audit.py --preset 1.4b --dtype bfloat16 --device cuda
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # the repository, not this folder

import torch  # noqa: E402

from experiments.device import choose_device  # noqa: E402
from experiments.environment import describe  # noqa: E402
from experiments.files import atomic_path, write_json  # noqa: E402
from experiments.readme import replace_section  # noqa: E402
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
        "parameters": model.num_parameters(),
        "loops": model.config.num_loops,
        "tokens": batch.numel(),
        "seconds": report.seconds,
        "peak_gib": peak / 2**30,
        "blind_and_active": [direction.name for direction in report.blind_and_active],
    }


def as_markdown(results: dict[str, dict[str, Any]], environment: dict[str, Any]) -> str:
    rows = [
        [name, str(r["tokens"]), str(r["loops"]), f"{r['seconds']:.0f} s", f"{r['peak_gib']:.1f} GiB"]
        for name, r in results.items()
    ]
    provenance = (
        f"{environment['date'][:10]}, {environment['processor']}, {environment['torch_threads']} threads, "
        f"torch {environment['packages']['torch']}, seed 0; memory of the whole process, model included."
    )
    return markdown(["audit of", "tokens", "loops", "time", "peak memory"], rows) + "\n\n" + provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="129m", choices=list(PRESETS), help="model to draw (default 129m)")
    parser.add_argument(
        "--length", type=int, default=LENGTH, help=f"tokens of each of its {SEQUENCES} sequences (default {LENGTH})"
    )
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help="of the weights (default float32)")
    parser.add_argument("--device", default="cpu", help="auto, cuda, cpu (default cpu)")
    parser.add_argument("--run", type=Path, help="a run folder to audit as well")
    parser.add_argument("--publish", action="store_true", help="write the results, and their table in the README")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish and (arguments.device, arguments.dtype, arguments.length) != ("cpu", "float32", LENGTH):
        parser.error("the published table is of float32 weights, 2 x 128 tokens and the CPU; leave these options out.")
    if arguments.child:
        device = choose_device(arguments.device)
        print(json.dumps(measure(arguments.child, arguments.length, arguments.dtype, device)))
        return
    results = {}
    for what in (arguments.preset, *filter(None, [arguments.run])):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", str(what)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        result = json.loads(done.stdout)
        kind = "random weights" if what in PRESETS else "trained"
        results[f"{result['parameters'] / 1e6:.1f}M, {kind}"] = result
        print(what, result, flush=True)
    if arguments.publish:
        folder, environment = ROOT / "results" / "benchmarks", describe(torch.device("cpu"))
        write_json(folder / "audit.json", {"audits": results, "environment": environment})
        text = as_markdown(results, environment)
        with atomic_path(folder / "audit.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        replace_section(ROOT / "README.md", "audit", text)


if __name__ == "__main__":
    main()
