"""The entries of the real-space sum."""

from typing import NamedTuple

from torch import Tensor


class PairList(NamedTuple):
    """The entries of the real-space sum (CSR): each pair stands in the rows of both of its atoms.

    Attributes:
        ptr: (N + 1,) int64, the entries of atom i are ptr[i] ... ptr[i + 1] - 1.
        neighbour: (P,) int32, the other atom.
        shift: (P, 3) int8, lattice shift of the other atom.
        batch: (N,) int64, the structure of each atom.
    """

    ptr: Tensor
    neighbour: Tensor
    shift: Tensor
    batch: Tensor

    @property
    def num_nodes(self) -> int:
        return self.ptr.shape[0] - 1
