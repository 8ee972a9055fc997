"""The command `loopsight`: `loopsight audit RUN | --factory package.module:build | --hf NAME`.

Exit status: 0 whatever the audit finds (3 where --fail-on asks for it), 1 for a model that cannot be audited, 2 for a
request that cannot be carried out. A failure is one sentence; above it, for options that cannot be read, what tyro says
of them.
"""

import sys
from collections.abc import Sequence

USAGE = """usage: loopsight audit [RUN] [--factory package.module:build] [--hf NAME] ...
What can the loss of a looped model not see, does the recurrence keep it, and what would help?
All options: loopsight audit -h"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if given[:1] != ["audit"]:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        # Here, since it imports torch, which takes seconds in which one may interrupt.
        from loopsight.auditing.command import main as command

        return command(given[1:])
    except KeyboardInterrupt:
        print("error: interrupted; of the files, those named above are written, and whole.", file=sys.stderr)
        return 1
