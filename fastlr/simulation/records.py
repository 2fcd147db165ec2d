"""What a run leaves on disk: files that grow a record at a time, and a checkpoint from which it can go on."""

import json
import os
import zlib
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
    """Everything for the next step of a run, and for recognising the run.

    Attributes:
        step: steps done.
        positions: (n, 3) Å.
        momenta: (n, 3) ASE units.
        energy: eV. forces: (n, 3) eV/Å. Those that the model gave at this step.
        rng: state of the random number generator.
        sizes: lengths in bytes of the trajectory and the log at this step.
        freedom: degrees of freedom of the velocities.
        first_total: eV, total energy of the start.
        inputs: what the run was started with (see ``inputs.inputs_of``).
        circumstances: what it ran on (see ``inputs.circumstances_of``).
        carried: arrays that evaluations carry on from step to step (see ``engine.steps.Steps.state``).
        trajectory: suffix of the trajectory's name, by which runs named alike are told apart; "" if it is not known.
    """

    step: int
    positions: np.ndarray
    momenta: np.ndarray
    energy: float
    forces: np.ndarray
    rng: dict
    sizes: dict[str, int]
    freedom: int
    first_total: float
    inputs: dict[str, np.ndarray]
    circumstances: dict[str, str]
    carried: dict[str, np.ndarray]
    trajectory: str = ""


_FORMAT = 2  # of checkpoints; the first did not record what a run was started with
_ARRAYS = ("positions", "momenta", "forces")
_PLAIN = ("step", "energy", "rng", "sizes", "freedom", "first_total", "circumstances")
_NAMED = ("inputs", "carried")  # dictionaries of arrays, whose names follow these
# what reading a file that is no checkpoint ends in
_UNSOUND = (OSError, BadZipFile, ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error)


def save_state(path: Path, state: MDState) -> None:
    """Write a checkpoint; the one before is replaced only when the new one is safely on the disk."""
    content = BytesIO()
    plain = {"format": _FORMAT, "trajectory": state.trajectory, **{name: getattr(state, name) for name in _PLAIN}}
    arrays = {name: getattr(state, name) for name in _ARRAYS}
    for kind in _NAMED:
        arrays |= {f"{kind}_{name}": value for name, value in getattr(state, kind).items()}
    np.savez(content, plain=np.array(json.dumps(plain)), **arrays)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content.getvalue())
        file.flush()
        os.fsync(file.fileno())


def load_state(path: Path) -> MDState:
    """Read a checkpoint.

    Raises:
        CheckpointError: it does not exist, is not a sound checkpoint, or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            plain = json.loads(content["plain"].item())
            if plain.get("format") != _FORMAT:
                raise CheckpointError(f"{path}: was written by another version of fastlr; start over with overwrite")
            arrays = {name: content[name] for name in _ARRAYS}
            for kind in _NAMED:
                names = [name for name in content.files if name.startswith(f"{kind}_")]
                arrays[kind] = {name.removeprefix(f"{kind}_"): content[name] for name in names}
            known = {name: plain[name] for name in _PLAIN}
            return MDState(**arrays, **known, trajectory=plain.get("trajectory", ""))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; start over with overwrite") from None
    except CheckpointError:
        raise
    except _UNSOUND as error:
        raise CheckpointError(f"{path}: not a sound checkpoint of a run ({error})") from None


def trajectory_suffix(path: Path) -> str | None:
    """The suffix of the trajectory that a checkpoint of any version belongs to, "" if it does not say, and None for
    what is no checkpoint."""
    try:
        with np.load(path, allow_pickle=False) as content:
            plain = json.loads(content["plain"].item())
            return str(plain.get("trajectory", "")) if "step" in plain else None
    except _UNSOUND:
        return None
