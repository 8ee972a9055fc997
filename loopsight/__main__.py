"""`python -m loopsight`: the command, where its script is not on the path."""

import sys

from loopsight.cli import main

sys.exit(main())
