"""Whatever a structure file comes as, compressed, from a pipe or in UTF-16: as a plain file."""

import codecs
import lzma
import os
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ase.io.formats import open_with_compression

from fastlr.errors import InputError

COMPRESSIONS = (".gz", ".bz2", ".xz")
# Marks at the start of a text, longest first: one mark is the start of another.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def plain_file(path: str | Path) -> Iterator[Path]:
    """The path of a regular file with the plain content; a temporary one of the same name, less the suffix of a
    compression, where the content has to be unpacked, comes from a pipe, or is text that starts with a byte order mark.

    ASE looks up every frame of a file from its start, which takes a compressed file as many passes as it has frames,
    and goes back and forth in it, which a pipe cannot.

    Args:
        path: a file or a pipe; "-" is the standard input.

    Raises:
        InputError: it does not exist, is a folder or a device, cannot be read, or is empty.
    """
    path = Path("/dev/stdin") if str(path) == "-" and not os.path.lexists("-") else Path(path)
    try:
        with ExitStack() as stack:

            def folder() -> Path:
                return Path(stack.enter_context(TemporaryDirectory(prefix="fastlr-")))

            if _is_pipe(path) or path.suffix in COMPRESSIONS:
                path = _unpacked(path, folder())
            if encoding := _marked_encoding(path):
                path = _in_utf8(path, encoding, folder())
            if path.stat().st_size == 0:
                raise InputError("the file is empty")
            yield path
    except (OSError, EOFError, UnicodeError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _is_pipe(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise InputError("no such file" + (", but a link to one" if os.path.lexists(path) else "")) from None
    except ValueError as error:  # a null byte
        raise InputError(f"no such file ({error})") from None
    if stat.S_ISDIR(mode):
        raise InputError("is a folder")
    if stat.S_ISREG(mode):
        return False
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return True
    raise InputError("is a device, not a file of structures")


def _unpacked(path: Path, folder: Path) -> Path:
    """A copy of what comes through a pipe or out of a compressed file."""
    plain = folder / (path.stem if path.suffix in COMPRESSIONS else path.name)
    with open_with_compression(str(path), "rb") as source, plain.open("wb") as file:
        shutil.copyfileobj(source, file)
    return plain


def _marked_encoding(path: Path) -> str | None:
    """The encoding of a text with a byte order mark."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in MARKS if start.startswith(mark)), None)


def _in_utf8(path: Path, encoding: str, folder: Path) -> Path:
    """A copy of a text in UTF-8."""
    with path.open(encoding=encoding) as text, (folder / path.name).open("w", encoding="utf-8") as file:
        shutil.copyfileobj(text, file)
    return folder / path.name
