"""What the kernels of the real-space sum read and write, for all targets; and how large the rows of A's sums are."""

from typing import NamedTuple

import torch


class Kind(NamedTuple):
    """A row sum of ``formulas``.

    Attributes:
        by_atom, by_structure: name -> columns of the tensors read by atom and by structure.
        columns: of the results, which have one row an atom. "values" has one number an entry instead.
    """

    by_atom: dict[str, int]
    by_structure: dict[str, int]
    columns: list[int]

    def shapes(self, num_nodes: int) -> list[tuple[int, ...]]:
        """Of the results."""
        return [(num_nodes,) if width == 1 else (num_nodes, width) for width in self.columns]


KINDS = {
    "values": Kind({"x": 3, "a": 1}, {"cell": 9, "beta": 1}, []),
    "potential": Kind({"q": 1, "x": 3, "a": 1}, {"cell": 9, "beta": 1}, [1]),
    "pull": Kind({"u": 1, "q": 1, "x": 3, "a": 1}, {"cell": 9, "beta": 1}, [1, 3, 9]),
    "point_pull": Kind({"u": 1, "q": 1, "x": 3}, {"cell": 9, "beta": 1}, [1, 3, 9]),
    "gradient": Kind({"u": 1, "q": 1, "x": 3, "a": 1}, {"cell": 9, "beta": 1}, [3, 1, 9]),
    "change": Kind(
        {"dx": 3, "da": 1, "u": 1, "q": 1, "x": 3, "a": 1}, {"dh": 9, "cell": 9, "beta": 1}, [1, 1, 3, 1, 9]
    ),
}


class Rows(NamedTuple):
    """How large the rows of one of the sums are that make A up, for what rounding does to its products.

    Attributes:
        norm: of a row, 1/Å, for charges that have little in common.
        longest: what an element has of the longest wave, 1/Å, for charges that have their sum in common.
        dtype: in which it is summed.
    """

    norm: float
    longest: float
    dtype: torch.dtype
