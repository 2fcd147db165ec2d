"""Irreducible representations of O(3) and direct sums of them, written as e3nn and NequIP write them.

``1o`` is the irrep of degree l = 1 and odd parity, ``32x0e+16x1o`` are 32 channels of ``0e`` and 16 of ``1o``.
"""

from collections.abc import Iterator
from itertools import accumulate
from operator import index
from typing import NamedTuple


class Irrep(NamedTuple):
    """An irrep of degree ``l`` and parity ``p``, 1 or -1. Irreps are ordered by degree, odd before even."""

    l: int
    p: int

    @staticmethod
    def parse(text: str) -> "Irrep":
        """From text such as ``1o``; the parity ``y`` is that of the spherical harmonics, (-1)^l.

        Raises:
            ValueError: the text is no irrep.
        """
        try:
            l = int(text.strip()[:-1])
            return _checked(l, {"e": 1, "o": -1, "y": (-1) ** l}[text.strip()[-1]])
        except (IndexError, KeyError, ValueError):
            raise ValueError(f"{text!r} is no irrep; they are written like '1o'") from None

    @property
    def dim(self) -> int:
        """Number of components, 2 l + 1."""
        return 2 * self.l + 1

    def __mul__(self, other: "Irrep") -> Iterator["Irrep"]:
        """The irreps in the product of two, by degree."""
        return (Irrep(l, self.p * other.p) for l in range(abs(self.l - other.l), self.l + other.l + 1))

    def __str__(self) -> str:
        return f"{self.l}{'e' if self.p == 1 else 'o'}"

    __repr__ = __str__


class MulIrrep(NamedTuple):
    """``mul`` channels of an irrep."""

    mul: int
    ir: Irrep

    @property
    def dim(self) -> int:
        """Number of components of all channels."""
        return self.mul * self.ir.dim

    def __str__(self) -> str:
        return f"{self.mul}x{self.ir}"

    __repr__ = __str__


class Irreps(tuple):
    """A direct sum of irreps: a tuple of ``MulIrrep``.

    Args:
        irreps: text such as ``"32x0e+16x1o"``, an object that prints as such text (e3nn's, for example), or a list of
            (mul, irrep), whose irreps may be text or (l, p) as well.

    Raises:
        ValueError: what is given is none of these.
    """

    __slots__ = ()

    def __new__(cls, irreps="") -> "Irreps":
        if isinstance(irreps, cls):
            return irreps
        try:
            entries = irreps if type(irreps) in (list, tuple) else _terms(str(irreps))
            return super().__new__(cls, [_entry(*entry) for entry in entries])
        except (TypeError, ValueError) as error:
            message = f"cannot read {irreps!r} as irreps, which are written like '32x0e+16x1o': {error}"
            raise ValueError(message) from None

    @staticmethod
    def spherical_harmonics(l_max: int) -> "Irreps":
        """One channel of each degree up to ``l_max``, with parity (-1)^l."""
        return Irreps([(1, (l, (-1) ** l)) for l in range(l_max + 1)])

    @property
    def dim(self) -> int:
        """Number of components."""
        return sum(entry.dim for entry in self)

    def slices(self) -> list[slice]:
        """The components of each entry."""
        ends = accumulate(entry.dim for entry in self)
        return [slice(end - entry.dim, end) for entry, end in zip(self, ends, strict=True)]

    def sort(self) -> "Irreps":
        """Entries by degree, odd parity before even; those of one irrep in the order they had."""
        return Irreps(sorted(self, key=lambda entry: entry.ir))

    def simplify(self) -> "Irreps":
        """Neighbours of the same irrep as one entry, without empty ones."""
        entries = []
        for mul, ir in self:
            if entries and entries[-1][1] == ir:
                entries[-1] = entries[-1][0] + mul, ir
            elif mul:
                entries.append((mul, ir))
        return Irreps(entries)

    def __add__(self, other: "Irreps") -> "Irreps":
        return Irreps([*self, *Irreps(other)])

    def __str__(self) -> str:
        return "+".join(map(str, self))

    __repr__ = __str__


def _terms(text: str) -> list[tuple[int, str]]:
    """The parts between plus signs; without a number, it is one."""
    terms = (term.rpartition("x") for term in text.split("+")) if text.strip() else ()
    return [(int(mul) if x else 1, ir) for mul, x, ir in terms]


def _entry(mul: int, ir: Irrep | tuple[int, int] | str) -> MulIrrep:
    if index(mul) < 0:
        raise ValueError(f"{mul} channels")
    return MulIrrep(index(mul), _checked(*ir) if isinstance(ir, tuple) else Irrep.parse(str(ir)))


def _checked(l: int, p: int) -> Irrep:
    if index(l) < 0 or p not in (1, -1):
        raise ValueError(f"degree {l} and parity {p} are no irrep")
    return Irrep(index(l), index(p))
