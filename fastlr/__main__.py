"""``python -m fastlr``: the same as the command ``fastlr``."""

import sys

from fastlr.cli import main

sys.exit(main())
