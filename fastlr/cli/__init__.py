"""The ``fastlr`` command: each file parses, calls and prints, and computes nothing itself."""

import sys

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, see ``fastlr.cli.app.main``."""
    try:
        from .app import main as run  # takes a while, in which Ctrl-C may come

        return run(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
