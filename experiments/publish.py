"""Compare the finished runs of a folder, pack them as committed evidence, and show the comparison in a README.

python experiments/publish.py runs/sweep results/cpu
python experiments/publish.py results/44m results/44m     (runs that are packed already)
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import exit_status  # noqa: E402


def main() -> None:
    """Parse the command line and carry it out."""
    from experiments.campaign_tables import write_campaign
    from experiments.comparison import compare
    from experiments.effects import publish_factorial
    from experiments.errors import UsageError
    from experiments.evidence import INDEX, finished_runs, is_packed, pack
    from experiments.factorial import FACTORIAL
    from experiments.files import read_json
    from experiments.readme import place_of, read_text, replace_section, section
    from experiments.training_curves import compare_training

    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of run folders, or packed runs")
    parser.add_argument("results", type=Path, help="folder for the tables and the figure, for example results/cpu")
    parser.add_argument("--readme", type=Path, help="file that has the section (default: the README that has it)")
    arguments = parser.parse_args()
    if not arguments.runs.is_dir():
        raise UsageError(f"{arguments.runs} is not a folder; name the folder that holds the run folders.")
    packed = is_packed(arguments.runs)
    with TemporaryDirectory() as scratch:
        folder, summaries, unfinished = finished_runs(arguments.runs, Path(scratch))
    campaign = packed and "plan" in read_json(arguments.runs / INDEX)  # which `finished_runs` has found to be whole
    if unfinished:
        print(f"left out, unfinished: {', '.join(unfinished)}", file=sys.stderr)
    if not summaries:
        raise UsageError(f"{arguments.runs} holds no finished run; train some with experiments/run.py first.")
    name = arguments.results.name
    needed = (name, f"{name}-growth") if campaign else (name,)
    places = {each: arguments.readme or place_of(each) for each in needed}
    for each, place in places.items():
        section(read_text(place), each)  # before anything is written
    texts = {f"{name}-growth": write_campaign(arguments.runs, arguments.results)} if campaign else {}
    designed = all(summary["variant"] in FACTORIAL for summary in summaries)
    texts[name] = (publish_factorial if designed else compare)(summaries, arguments.results)
    if not packed:
        if not designed:
            compare_training(summaries, folder, arguments.results)
        pack([folder / summary["run"] for summary in summaries], arguments.results, missing=unfinished)
    for each, text in texts.items():
        replace_section(places[each], each, text)
        print(text)


if __name__ == "__main__":
    sys.exit(exit_status(main))
