"""Train blind models on with every remedy that their audits name, and show what became of norm and loss.

python experiments/remedies.py                                      train and compare (`make remedies`)
python experiments/remedies.py --arms results/remedies/arms.json    compare what is stored
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import exit_status, require_at_least  # noqa: E402

NAME = "remedies"


def main() -> None:
    """Parse the command line and carry it out."""
    from experiments.corpus import default_cache
    from experiments.files import write_json
    from experiments.readme import ROOT, place_of, read_text, replace_section, section
    from experiments.treatments.compare import TIED, UNTIED, compare_arms

    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=[TIED, UNTIED], help="blind ones (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at", type=int, default=10, help="step at which remedies are begun (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="at which training ends (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, help="the preset's when not given")
    parser.add_argument("--preset", default="cpu", help="size and training defaults, as in run.py")
    parser.add_argument("--data", default="stdlib", help="as in run.py")
    parser.add_argument("--device", default="auto", help="as in run.py")
    parser.add_argument("--out", type=Path, default=Path("runs/remedies"), help="folder of one file a run")
    parser.add_argument("--arms", type=Path, help="file of runs to compare instead of training any")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / NAME, help="folder for tables and figure")
    parser.add_argument("--readme", type=Path, help="file that has the section (default: the README that has it)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of prepared tokens")
    arguments = parser.parse_args()
    readme = arguments.readme or place_of(NAME)
    section(read_text(readme), NAME)  # before anything is trained
    runs = _trained(arguments) if arguments.arms is None else _complete(arguments.arms)
    text = compare_arms(runs, arguments.results)
    write_json(arguments.results / "arms.json", runs)
    replace_section(readme, NAME, text)
    print(text)


def _complete(path: Path) -> list[dict[str, Any]]:
    from experiments.errors import UsageError
    from experiments.treatments.store import stored

    runs = stored(path)
    if unfinished := [run["run"] for run in runs if not run["complete"]]:
        raise UsageError(f"{path} lacks arms of {', '.join(unfinished)}; train them before comparing any.")
    return runs


def _trained(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from experiments.command import require_seeds, training_of
    from experiments.config import resolve
    from experiments.corpus import CorpusConfig, prepare
    from experiments.device import choose_device, make_arithmetic_repeatable
    from experiments.training.trainer import Execution
    from experiments.treatments.store import run_arms
    from experiments.variants import select
    from models import PRESETS

    require_at_least(1, at=arguments.at)
    require_at_least(arguments.at + 1, steps=arguments.steps)
    require_seeds(arguments.seeds)
    variants = [variant for name in arguments.variants for variant in select(name)]
    training = training_of(arguments.preset, variants, steps=arguments.steps, learning_rate=arguments.learning_rate)
    execution = Execution(device=choose_device(arguments.device))
    size = PRESETS[arguments.preset]
    corpus_config = CorpusConfig(data=arguments.data, vocab_size=size.vocab_size)
    corpus = prepare(corpus_config, arguments.cache, min_tokens=size.context + 1)
    make_arithmetic_repeatable(execution.device)
    runs = []
    for seed in arguments.seeds:
        for variant in variants:
            config = resolve(
                variant=variant.name,
                preset=arguments.preset,
                seed=seed,
                training=training,
                corpus=corpus_config,
                tokens=corpus,
            )
            runs.append(run_arms(config, corpus, arguments.at, execution, arguments.out / f"{config.name}.json"))
    return runs


if __name__ == "__main__":
    sys.exit(exit_status(main))
