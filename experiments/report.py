"""Measure trained runs and write what they support, what they do not, and how that was decided.

python experiments/report.py runs/sweep -o report/
python experiments/report.py runs/sweep -o report/ --no-measure
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import exit_status  # noqa: E402


def main() -> None:
    """Carry out the command line."""
    from experiments.reporting.command import main as command  # here, so that a missing package gets a sentence

    command()


if __name__ == "__main__":
    sys.exit(exit_status(main))
