"""The ``fastlr`` command: each file parses, calls and prints, and computes nothing itself."""

from .app import main

__all__ = ["main"]
