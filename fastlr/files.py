"""Where a command may write: nothing of the user's is lost."""

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import InputError


def check_writable(
    path: str | Path,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
    remedy: str = "give another name, or --overwrite to replace it",
) -> Path:
    """Check a path for writing, before any work is done, and return it.

    Args:
        path: where to write.
        inputs: files that are read for it. They are never written over, by whatever name or link ``path`` leads there.
        overwrite: replace an existing file.
        remedy: what the error says of an existing file.

    Raises:
        InputError: it is one of the inputs; it exists without ``overwrite``, if only as a link to nothing; it is a
            folder, a device or a pipe; or its folder does not exist or cannot be written to.
    """
    path = Path(path)
    try:
        exists = os.path.lexists(path)
        os.lstat(path)
    except FileNotFoundError:
        exists = False
    except (OSError, ValueError) as error:  # a name too long; a null byte
        raise InputError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"{path}: is a folder")
    if not target.parent.is_dir():
        raise InputError(f"{path}: there is no folder {target.parent if path.is_symlink() else path.parent}")
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: is a device or a pipe; give the name of a file")
    if exists:
        _check_inputs(path, target, inputs)
        if not overwrite:
            raise InputError(f"{path}: exists; {remedy}")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"{path}: no permission to write to this file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: no permission to write to the folder {target.parent}")
    return path


def _check_inputs(path: Path, target: Path, inputs: Iterable[str | Path | None]) -> None:
    for source in inputs:
        if source is not None and target.exists() and os.path.exists(source) and os.path.samefile(target, source):
            raise InputError(f"{path}: is read by this very command ({source}); give the output another name")
