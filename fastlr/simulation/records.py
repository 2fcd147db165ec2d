"""What a run leaves on disk: files that grow a record at a time, and a checkpoint from which it can go on."""

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fastlr.errors import CheckpointError
from fastlr.kernels.files import replacing


class AppendedFile:
    """A file to which whole records are appended.

    A run that dies may leave part of a record, or records later than its checkpoint: opening the file with the
    ``size`` that the checkpoint remembers cuts both off.

    Args:
        path: the file.
        size: its length in bytes to go on from; None makes a new file.

    Raises:
        CheckpointError: the file is missing or shorter than ``size``.
    """

    def __init__(self, path: Path, size: int | None = None):
        if size is not None and (not path.is_file() or path.stat().st_size < size):
            raise CheckpointError(f"{path}: is missing or shorter than its checkpoint says; start over with overwrite")
        self.path, self.file = path, path.open("xb" if size is None else "r+b")
        self.has_checkpoint = size is not None
        if size is not None:
            self.file.truncate(size)
            self.file.seek(size)

    def append(self, record: str) -> None:
        """Write a record through to the operating system.

        Raises:
            OSError: it cannot be written, as on a full disk; the error names the file.
        """
        with self._named():
            self.file.write(record.encode())
            self.file.flush()

    def sync(self) -> int:
        """Write everything through to the disk; returns the length in bytes."""
        with self._named():
            os.fsync(self.file.fileno())
            self.has_checkpoint = True
            return self.file.tell()

    @contextmanager
    def _named(self):
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        with suppress(OSError):  # what could not be written has been told of
            self.file.close()
        if error is not None and not self.has_checkpoint:  # nothing could go on from it
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class MDState:
    """Everything that the next step of a run depends on.

    Attributes:
        step: steps done.
        numbers: (n,) atomic numbers.
        positions: (n, 3) Å.
        momenta: (n, 3) ASE units.
        cell: (3, 3) Å.
        rng: state of the random number generator.
        sizes: lengths in bytes of the trajectory and the log at this step.
        settings: what the run was started with.
        carried: arrays that evaluations carry on from step to step (see ``engine.steps.Steps.state``).
    """

    step: int
    numbers: np.ndarray
    positions: np.ndarray
    momenta: np.ndarray
    cell: np.ndarray
    rng: dict
    sizes: dict[str, int]
    settings: dict
    carried: dict[str, np.ndarray]


_ARRAYS = ("numbers", "positions", "momenta", "cell")
_PLAIN = ("step", "rng", "sizes", "settings")
_CARRIED = "carried_"  # before the names of these arrays


def save_state(path: Path, state: MDState) -> None:
    """Write a checkpoint; the one before is replaced only when the new one is safely on the disk."""
    content = BytesIO()
    plain = json.dumps({name: getattr(state, name) for name in _PLAIN})
    arrays = {name: getattr(state, name) for name in _ARRAYS}
    arrays |= {_CARRIED + name: value for name, value in state.carried.items()}
    np.savez(content, plain=np.array(plain), **arrays)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content.getvalue())
        file.flush()
        os.fsync(file.fileno())


def load_state(path: Path) -> MDState:
    """Read a checkpoint.

    Raises:
        CheckpointError: it does not exist or is not a sound checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            plain = json.loads(content["plain"].item())
            arrays = {name: content[name] for name in _ARRAYS}
            names = [name for name in content.files if name.startswith(_CARRIED)]
            carried = {name.removeprefix(_CARRIED): content[name] for name in names}
            return MDState(**arrays, **{name: plain[name] for name in _PLAIN}, carried=carried)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (OSError, BadZipFile, ValueError, KeyError, TypeError, EOFError) as error:
        raise CheckpointError(f"{path}: not a sound checkpoint of a run ({error})") from None
