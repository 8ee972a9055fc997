"""Compare runs that differ in learning rate and warm-up, pack them as committed evidence, and show them in the README.

python experiments/rates.py runs/rates results/rates       a folder of runs for every schedule (`make rates`)
python experiments/rates.py results/rates results/rates    packed already
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import exit_status  # noqa: E402


def main() -> None:
    """Parse the command line and carry it out."""
    import pandas as pd

    from experiments.corpus import default_cache
    from experiments.errors import UsageError
    from experiments.evidence import is_packed, pack, unpack
    from experiments.measure.suite import measure_run, questions_of, read_table
    from experiments.readme import ROOT, read_text, replace_section, section
    from experiments.runs import finished_summaries
    from experiments.schedules import compare_schedules, identity, require_design

    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder whose folders hold runs, packed or not, of one schedule each")
    parser.add_argument("results", type=Path, help="folder for tables and figures, for example results/rates")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose section is replaced")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of prepared tokens")
    arguments = parser.parse_args()
    folders = sorted(path for path in arguments.runs.glob("*") if path.is_dir())
    if not folders:
        raise UsageError(f"{arguments.runs} has no folders; name the one that holds a folder of runs a schedule.")
    for left in sorted(set(arguments.results.glob("*/")) - {arguments.results / folder.name for folder in folders}):
        raise UsageError(f"{left} is of runs that {arguments.runs} has not; delete it, or choose another folder.")
    readme, name = arguments.readme, arguments.results.name
    section(read_text(readme), name)  # before anything is written
    with TemporaryDirectory() as scratch:
        places = {f.name: unpack(f, Path(scratch) / f.name) if is_packed(f) else f for f in folders}
        found = {schedule: finished_summaries(place) for schedule, place in places.items()}
        for schedule, (finished, unfinished) in found.items():
            if not finished:
                raise UsageError(f"{arguments.runs / schedule} holds no finished run; train some, or leave it out.")
            if unfinished:
                print(f"left out, unfinished: {', '.join(unfinished)} of {schedule}", file=sys.stderr)
        summaries = [summary for finished, _ in found.values() for summary in finished]
        require_design(summaries)
        tables = []
        for folder in folders:
            for summary in found[folder.name][0]:
                run = places[folder.name] / summary["run"]
                if not is_packed(folder):
                    measure_run(run, arguments.cache, questions=questions_of("common"))
                tables.append(read_table(run, "common").assign(**identity(summary)))
    text = compare_schedules(summaries, pd.concat(tables, ignore_index=True), arguments.results)
    for folder in folders:
        if not is_packed(folder):
            finished, unfinished = found[folder.name]
            runs = [folder / summary["run"] for summary in finished]
            pack(runs, arguments.results / folder.name, missing=unfinished)
    replace_section(readme, name, text)
    print(text)


if __name__ == "__main__":
    sys.exit(exit_status(main))
