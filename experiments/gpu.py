"""Train and measure a list of variants at full size within a budget of minutes, and pack the results into small files.

python experiments/gpu.py --minutes 25 --out runs/44m --results runs/packed
python experiments/gpu.py --minutes 10 --out runs/44m --results runs/packed     (goes on where the budget ended)
python experiments/report.py runs/packed -o report                            (anywhere: packed runs need no weights)
python experiments/gpu.py --preset tiny --device cpu --tokens 4096 --data synthetic --minutes 5 --out runs/dry

Needs no network and no installation: it runs from a bare checkout. Runs are of equal tokens; the plan is made at the
first call, from the speed measured on this machine, and kept in OUT/plan.json.
"""

import argparse
import math
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import exit_status  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The options."""
    from experiments.variants import VARIANTS
    from models import PRESETS

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, required=True, help="budget of this call")
    options.add_argument("--out", type=Path, required=True, help="folder of the runs; the same again to go on")
    options.add_argument("--results", type=Path, help="folder for the packed tables (default: OUT/packed)")
    options.add_argument("--preset", default="44m", help=f"size: {', '.join(PRESETS)} (default 44m)")
    options.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="NAME", help="default: all of them")
    options.add_argument(
        "--central-seeds",
        type=int,
        default=3,
        help="seeds of the variants that show the contrast (default 3)",
    )
    options.add_argument("--tokens", type=int, help="training tokens a run (default: what the budget allows)")
    options.add_argument("--batch-size", type=int, help="sequences a step (default: the preset's)")
    options.add_argument("--learning-rate", type=float, help="default: the preset's")
    options.add_argument("--data", default="python", help="as for run.py (default python: installed packages)")
    options.add_argument("--vocab-size", type=int, help="default: the preset's")
    options.add_argument("--cache", type=Path, help="folder for prepared tokens (default: OUT/cache)")
    options.add_argument("--measurers", type=int, default=1, help="processes that measure beside training (default 1)")
    options.add_argument("--device", default="auto", help="auto, cuda, cpu (default auto)")
    options.add_argument("--no-compile", action="store_true", help="neither compile nor record a CUDA graph")
    options.add_argument("--snapshots", type=int, default=4, help="times the weights are kept a run (default 4)")
    return options


def main() -> None:
    """Carry out the command line."""
    began = time.monotonic()
    arguments = parser().parse_args()
    from experiments.campaign import (
        MEASURING_SHARE,
        carry_out,
        make_plan,
        pack,
        queue,
        read_plan,
        require_same_plan,
        steps_of,
        unfinished,
        write_plan,
    )
    from experiments.config import require_preset
    from experiments.corpus import CorpusConfig, prepare
    from experiments.device import choose_device, make_arithmetic_repeatable
    from experiments.errors import RunError, UsageError, require_at_least
    from experiments.measure.processes import measuring_beside
    from experiments.training.trainer import Execution
    from experiments.variants import select
    from models import PRESETS

    if not 0.0 < arguments.minutes < math.inf:
        raise UsageError(f"--minutes must be positive and finite, got {arguments.minutes:g}.")
    require_at_least(
        1,
        tokens=arguments.tokens,
        batch_size=arguments.batch_size,
        central_seeds=arguments.central_seeds,
        measurers=arguments.measurers,
    )
    require_at_least(2, vocab_size=arguments.vocab_size)
    require_at_least(0, snapshots=arguments.snapshots)
    require_preset(arguments.preset)
    variants = list(dict.fromkeys(variant.name for name in arguments.variants for variant in select(name)))
    deadline = began + 60.0 * arguments.minutes
    device = choose_device(arguments.device)
    make_arithmetic_repeatable(device)
    execution = Execution(
        device=device,
        compile=not arguments.no_compile and device.type == "cuda",
        checkpoint_every=500,
        log_every=50,
        snapshots=arguments.snapshots,
        deadline=deadline - MEASURING_SHARE * 60.0 * arguments.minutes,
    )
    size = PRESETS[arguments.preset]
    vocab_size = size.vocab_size if arguments.vocab_size is None else arguments.vocab_size
    corpus_config = CorpusConfig(data=arguments.data, tokeniser="word", vocab_size=vocab_size)
    cache = arguments.cache or arguments.out / "cache"
    corpus = prepare(corpus_config, cache, min_tokens=size.context + 1)
    plan = read_plan(arguments.out)
    if plan is None:
        plan = make_plan(
            corpus,
            corpus_config,
            execution,
            preset=arguments.preset,
            runs=queue(variants, arguments.central_seeds),
            minutes=arguments.minutes,
            tokens=arguments.tokens,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
        )
        write_plan(arguments.out, plan)
    else:
        require_same_plan(
            plan,
            preset=arguments.preset,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            steps=steps_of(arguments.tokens, plan.batch_size, size.context) if arguments.tokens else None,
            corpus_key=corpus.key,
            runs=queue(variants, arguments.central_seeds),
        )
    with measuring_beside(cache, corpus, device, deadline, arguments.measurers) as measure:
        failed = carry_out(plan, corpus, corpus_config, arguments.out, execution, measure)
    results = arguments.results or arguments.out / "packed"
    pack(plan, arguments.out, results)
    lacking = unfinished(plan, arguments.out)
    for name, what in lacking.items():
        print(f"{name}: {what}")
    state = "the same command goes on" if lacking else "complete"
    print(f"{results}: {len(plan.runs) - len(lacking)} of {len(plan.runs)} runs, {state}.")
    if failed:
        raise RunError(f"{', '.join(failed)} failed, see above; the rest is packed, and the same command tries again.")


if __name__ == "__main__":
    sys.exit(exit_status(main))
