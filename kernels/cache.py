"""Files that kernels keep between runs: machine code, and what tuning has found."""

import hashlib
import os
from pathlib import Path

from .files import replacing


def directory() -> Path:
    """Where they are: $FASTLR_CACHE, or fastlr/ in the user's cache directory."""
    if root := os.environ.get("FASTLR_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "fastlr"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # a user without an entry in the list of users, as in containers
        raise FileNotFoundError(str(error)) from None


def read(name: str) -> bytes | None:
    """The content of a file, if it is there and whole."""
    try:
        content = (directory() / name).read_bytes()
    except OSError:
        return None
    digest, content = content[:32], content[32:]
    return content if hashlib.sha256(content).digest() == digest else None


def write(name: str, content: bytes) -> None:
    """Keep a file. Where none can be written, the work is done again next time."""
    try:
        directory().mkdir(parents=True, exist_ok=True)
        with replacing(directory() / name) as partial:
            partial.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError:
        return
