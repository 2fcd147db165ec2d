"""The files of a run: their names, and whether those that exist are of that run."""

from dataclasses import dataclass
from pathlib import Path

from fastlr.errors import InputError
from fastlr.files import check_writable

from .records import trajectory_suffix

LOG_HEADER = "step,time_fs,potential_eV,kinetic_eV,total_eV,temperature_K\n"
SUFFIXES = (".extxyz", ".xyz")  # of trajectories


@dataclass(frozen=True)
class MDFiles:
    """The files of a run, named after its trajectory."""

    trajectory: Path

    @property
    def log(self) -> Path:
        return self.trajectory.with_suffix(".csv")

    @property
    def checkpoint(self) -> Path:
        return self.trajectory.with_suffix(".checkpoint.npz")

    @property
    def all(self) -> tuple[Path, Path, Path]:
        return self.checkpoint, self.trajectory, self.log


def require_own(files: MDFiles, resume: bool) -> None:
    """Check that a log and a checkpoint that exist are of this run, before they are changed or deleted.

    Args:
        resume: the checkpoint is to be read, which says what is wrong with it better.

    Raises:
        InputError: one cannot be written, is another file of the user's, or of the run with a trajectory of the same
            name but another suffix.
    """
    for path in files.all:
        check_writable(path, overwrite=True)
    if files.log.is_file() and not _is_log(files.log):
        raise InputError(f"{files.log}: exists, and is no log of a run; {_REMEDY}")
    beside = [path for path in (files.log, files.checkpoint) if path.is_file()]
    suffix = trajectory_suffix(files.checkpoint) if files.checkpoint.is_file() else ""
    if suffix is None and not resume:
        raise InputError(f"{files.checkpoint}: exists, and is no sound checkpoint of a run; {_REMEDY}")
    others = [files.trajectory.with_suffix(other) for other in SUFFIXES if other != files.trajectory.suffix]
    owner = files.trajectory.with_suffix(suffix) if suffix else next((path for path in others if path.exists()), None)
    if beside and owner not in (None, files.trajectory):
        raise InputError(f"{beside[-1]}: exists, and belongs to the run {owner}; {_REMEDY}")


_REMEDY = "give the trajectory another name, or remove that file"


def _is_log(path: Path) -> bool:
    """Whether it begins as logs do, if only in part: a run may have died while it wrote."""
    with path.open("rb") as file:
        return LOG_HEADER.encode().startswith(file.read(len(LOG_HEADER)))
