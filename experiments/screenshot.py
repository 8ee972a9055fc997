"""The top of a report as it looks in a browser, for the README. Needs an installed Chromium and playwright.

python experiments/screenshot.py results/cpu/report
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import exit_status  # noqa: E402


def main() -> None:
    """Write REPORT/screenshot.png."""
    from experiments.errors import UsageError
    from experiments.files import atomic_path
    from experiments.reporting.browser import find_chromium, screenshot

    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=Path, help="folder that experiments/report.py wrote")
    arguments = parser.parse_args()
    page = arguments.report / "index.html"
    if not page.is_file():
        raise UsageError(f"{page} does not exist; write it with experiments/report.py first.")
    executable = find_chromium()
    if executable is None:
        raise UsageError("no Chromium or Chrome was found; install one, for example the package chromium.")
    with atomic_path(arguments.report / "screenshot.png") as temporary:
        screenshot(page, temporary, executable)
    print(arguments.report / "screenshot.png")


if __name__ == "__main__":
    sys.exit(exit_status(main))
