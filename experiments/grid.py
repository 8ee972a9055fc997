"""Compare the runs of a grid, pack them as committed evidence, and show the comparison in a README.

python experiments/grid.py rates runs/rates                  a folder of runs for every setting (`make rates`)
python experiments/grid.py multipliers runs/multipliers      likewise (`make multipliers`)
python experiments/grid.py momenta runs/momenta results/multipliers    some of the grid's runs are committed already
python experiments/grid.py placements runs/placements results/momenta results/multipliers    likewise
python experiments/grid.py sizes runs/sizes results/rates    some of the grid's runs are committed already
python experiments/grid.py rates results/rates               packed already
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
    from experiments.grids import GRIDS
    from experiments.grids.compare import compare_grid, identity, require_cells
    from experiments.grids.folders import read_folders
    from experiments.measure.suite import measure_run, questions_of, read_table
    from experiments.readme import ROOT, place_of, read_text, replace_section, section

    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=list(GRIDS), help="of the grid, and of its section in the README")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of folders of runs, packed or not, one a setting")
    parser.add_argument("--results", type=Path, help="folder for tables and figures (default: results/NAME)")
    parser.add_argument("--readme", type=Path, help="file that has the section (default: the README that has it)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of prepared tokens")
    arguments = parser.parse_args()
    name = arguments.name
    results = arguments.results or ROOT / "results" / name
    readme = arguments.readme or place_of(name)
    section(read_text(readme), name)  # before anything is written
    with TemporaryDirectory() as scratch:
        found = read_folders(GRIDS[name], arguments.runs, Path(scratch))
        for left in sorted(set(results.glob("*/")) - {results / each.folder.name for each in found}):
            raise UsageError(f"{left} is of runs that were not given; delete it, or choose other --results.")
        for each in found:
            for what, runs in (("unfinished", each.unfinished), ("not of this grid", each.others)):
                if runs:
                    print(f"left out, {what}: {', '.join(runs)} of {each.folder}", file=sys.stderr)
        summaries = [summary for each in found for summary in each.summaries]
        require_cells(summaries)
        parts: dict[str, list[pd.DataFrame]] = {table: [] for table in ("common", *GRIDS[name].tables)}
        for each in found:
            for summary in each.summaries:
                run = each.place / summary["run"]
                if not each.packed:
                    measure_run(run, arguments.cache, questions=questions_of(*parts))
                for table, of_runs in parts.items():
                    of_runs.append(read_table(run, table).assign(**identity(summary)))
    tables = {table: pd.concat(of_runs, ignore_index=True) for table, of_runs in parts.items()}
    text = compare_grid(name, GRIDS[name], summaries, tables, results)
    for each in found:
        if each.summaries and not each.packed:
            each.pack_into(results)
    replace_section(readme, name, text)
    print(text)


if __name__ == "__main__":
    sys.exit(exit_status(main))
