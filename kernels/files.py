"""Files that are whole or not there."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The path of a new file, which takes the place of ``path`` at the end of the block; after an error it is removed.

    A link stays one: what it leads to is replaced. The name of the new file is drawn at random: processes with the same
    number may share a folder, in containers or on several hosts. It is no longer than need be: ``path`` may be as long
    as a name can be.

    Raises:
        OSError: the file cannot be written, or ``path`` is a device or a pipe; the error names ``path``.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(EINVAL, "is not a regular file", str(path))
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        yield partial
        if target.exists():
            shutil.copymode(target, partial)
        os.replace(partial, target)
    except OSError as error:
        named = {str(name) for name in (error.filename, error.filename2) if name is not None}
        if named and str(partial) not in named:
            raise
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
