"""What all contestants have in common: a name, and whether and in which version they are here."""

from abc import ABC
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from fastlr.errors import InputError


class Peer(ABC):
    """A way to compute something, of a public package, of PyTorch alone, or of fastlr.

    Attributes:
        name: as in tables.
        distribution: the name on PyPI.
        module: what is imported.
    """

    name: str
    distribution: str
    module: str

    @classmethod
    def obstacle(cls, *_) -> str | None:
        """Why it cannot run here."""
        return None if find_spec(cls.module) else f"{cls.distribution} is not installed"

    @classmethod
    def version(cls) -> str | None:
        """Of its distribution."""
        try:
            return version(cls.distribution)
        except PackageNotFoundError:
            return None


def named(contestants: Sequence[type[Peer]], names: str) -> tuple[type[Peer], ...]:
    """Those whose names are given, separated by commas, in the order of the names; all if none is given.

    Raises:
        InputError: nobody has one of the names.
    """
    known = {peer.name: peer for peer in contestants}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(f"there is no contestant '{unknown[0]}'; there are {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(wanted)) or tuple(contestants)


def ours(running: Iterable[str]) -> list[str]:
    """The names of fastlr's contestants, which are compared with each of the others."""
    return [name for name in running if name.startswith("fastlr")]
