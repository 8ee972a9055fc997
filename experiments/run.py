"""Train looped language models by variant, evaluate them, and say what was predicted and what happened.

python experiments/run.py --variant scale_visible
python experiments/run.py --variant all --seeds 0 1 2 --resume
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, not this folder

from experiments.errors import exit_status  # noqa: E402


def main() -> None:
    """Carry out the command line."""
    from experiments.command import main as command  # here, so that a missing package gets a sentence

    command()


if __name__ == "__main__":
    sys.exit(exit_status(main, again="it with --resume"))
