"""Compressed files of structures."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ase.io.formats import open_with_compression


@contextmanager
def uncompressed(path: str | Path) -> Iterator[Path]:
    """The path of a file's plain content, for names that end in .gz, .bz2 or .xz a temporary one.

    ASE looks up every frame of a file from its start, which takes a compressed file as many passes as it has frames.
    """
    path = Path(path)
    if path.suffix not in (".gz", ".bz2", ".xz"):
        yield path
        return
    with TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with open_with_compression(str(path), "rb") as compressed, plain.open("wb") as file:
            shutil.copyfileobj(compressed, file)
        yield plain
