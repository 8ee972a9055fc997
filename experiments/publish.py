"""Compare the finished runs of a folder, pack them as committed evidence, and show the comparison in the README.

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
    from experiments.evidence import INDEX, is_packed, pack, unpack
    from experiments.factorial import FACTORIAL
    from experiments.files import read_json
    from experiments.readme import ROOT, read_text, replace_section, section
    from experiments.runs import finished_summaries
    from experiments.training_curves import compare_training

    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of run folders, or packed runs")
    parser.add_argument("results", type=Path, help="folder for the tables and the figure, for example results/cpu")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file whose section is replaced")
    arguments = parser.parse_args()
    if not arguments.runs.is_dir():
        raise UsageError(f"{arguments.runs} is not a folder; name the folder that holds the run folders.")
    packed = is_packed(arguments.runs)
    campaign = packed and "plan" in read_json(arguments.runs / INDEX)
    with TemporaryDirectory() as scratch:
        folder = unpack(arguments.runs, Path(scratch)) if packed else arguments.runs
        summaries, unfinished = finished_summaries(folder)
    if unfinished:
        print(f"left out, unfinished: {', '.join(unfinished)}", file=sys.stderr)
    if not summaries:
        raise UsageError(f"{arguments.runs} holds no finished run; train some with experiments/run.py first.")
    readme, name = arguments.readme, arguments.results.name
    for needed in (name, f"{name}-growth") if campaign else (name,):
        section(read_text(readme), needed)  # before anything is written
    texts = {f"{name}-growth": write_campaign(arguments.runs, arguments.results)} if campaign else {}
    designed = all(summary["variant"] in FACTORIAL for summary in summaries)
    texts[name] = (publish_factorial if designed else compare)(summaries, arguments.results)
    if not packed:
        if not designed:
            compare_training(summaries, folder, arguments.results)
        pack([folder / summary["run"] for summary in summaries], arguments.results, missing=unfinished)
    for needed, text in texts.items():
        replace_section(readme, needed, text)
        print(text)


if __name__ == "__main__":
    sys.exit(exit_status(main))
