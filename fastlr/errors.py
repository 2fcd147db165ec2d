"""Errors a user can act on. The command line prints each as one line and exits with code 2."""


class FastlrError(Exception):
    """Base of all errors raised on purpose; its message names the culprit and what to do."""


class InputError(FastlrError, ValueError):
    """A structure, or a value given with it, cannot be used."""


class ConfigError(FastlrError, ValueError):
    """A model or training configuration is invalid; the message names the key."""


class CheckpointError(FastlrError, ValueError):
    """A model file is missing, truncated, of another format, or holds the wrong tensors."""


class BackendError(FastlrError, RuntimeError):
    """A requested backend cannot serve on this machine; the message says which and why."""


class NonFiniteError(FastlrError, ArithmeticError):
    """An energy or force is not a finite number."""


def structure_number(atoms, index: int) -> int:
    """The number of a structure in the file that it was selected from (``reading.read_structures``), else ``index``."""
    return getattr(atoms, "number_in_file", index)


class StructureName:
    """What errors call a structure; put together only if there is one."""

    def __init__(self, atoms, index: int):
        self.atoms, self.index = atoms, structure_number(atoms, index)

    def __str__(self) -> str:
        try:
            formula = self.atoms.get_chemical_formula() or "no atoms"
        except (IndexError, TypeError, ValueError):  # of what are no atomic numbers
            formula = f"{len(self.atoms)} atoms"
        return f"structure {self.index} ({formula})"
