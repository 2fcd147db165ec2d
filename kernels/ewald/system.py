"""A batch of Gaussian charge distributions, and the terms of their Coulomb matrix that need no sum over space."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .tables import CoulombTables


class System(NamedTuple):
    """Where Gaussian charges sit. Of B structures with N atoms in all; Å and float64.

    Attributes:
        positions: (N, 3).
        squared_widths: (N,) s_i^2; zero for point charges, whose infinite energy of their own is left out.
        cell: (B, 3, 3), rows are lattice vectors.
        batch: (N,) int64, the structure of each atom, ascending.
        node_ptr: (B + 1,) int64, first atom of each structure.
        tables: what the sums visit.
        size: atoms of the largest structure.
        places: (N,) int64, place of each atom in an array (B, size).
        has_slabs: whether a structure is a slab.
        has_meshes: whether a structure has a particle mesh.
    """

    positions: Tensor
    squared_widths: Tensor
    cell: Tensor
    batch: Tensor
    node_ptr: Tensor
    tables: CoulombTables
    size: int
    places: Tensor
    has_slabs: bool
    has_meshes: bool

    @staticmethod
    def of(
        positions: Tensor, squared_widths: Tensor, cell: Tensor, batch: Tensor, node_ptr: Tensor, tables: CoulombTables
    ) -> "System":
        """The system, with what follows from its tensors."""
        sizes = node_ptr[1:] - node_ptr[:-1]
        size = int(sizes.max()) if len(sizes) else 0
        slot = torch.arange(len(batch), device=batch.device) - node_ptr.index_select(0, batch)
        has_slabs, has_meshes = bool((tables.height > 0.0).any()), bool((tables.mesh > 0).any())
        return System(
            positions, squared_widths, cell, batch, node_ptr, tables, size, batch * size + slot, has_slabs, has_meshes
        )

    @property
    def num_structures(self) -> int:
        return self.cell.shape[0]

    @property
    def sizes(self) -> Tensor:
        """(B,) atoms of each structure."""
        return self.node_ptr[1:] - self.node_ptr[:-1]

    @property
    def beta(self) -> Tensor:
        """(B,) 1 / (sqrt2 eta)."""
        return self.tables.inverse_eta * math.sqrt(0.5)

    def sum(self, values: Tensor) -> Tensor:
        """(N,) -> (B,)."""
        if self._is_full:
            return values.view(self.num_structures, self.size).sum(dim=1)
        return values.new_zeros(self.num_structures).index_add(0, self.batch, values)

    def pad(self, values: Tensor) -> Tensor:
        """(N, ...) -> (B, size, ...), zero beyond each structure's own atoms."""
        shape = (self.num_structures, self.size, *values.shape[1:])
        if self._is_full:
            return values.view(shape)
        out = values.new_zeros(self.num_structures * self.size, *values.shape[1:])
        return out.index_add(0, self.places, values).view(shape)

    def pad_periodic(self, values: Tensor) -> Tensor:
        """(N, ...) -> (Bp, size, ...), of the structures with wave vectors."""
        return self.periodic(self.pad(values))

    def periodic(self, values: Tensor) -> Tensor:
        """(B, ...) -> (Bp, ...), those of the structures with wave vectors."""
        if len(self.tables.periodic) == self.num_structures:
            return values
        return values.index_select(0, self.tables.periodic)

    def unpad(self, values: Tensor) -> Tensor:
        """The inverse of ``pad``, for (B, size)."""
        return values.reshape(-1) if self._is_full else values.reshape(-1).index_select(0, self.places)

    @property
    def _is_full(self) -> bool:
        """Whether all structures are of the same size, so that nothing is padded."""
        return len(self.batch) == self.num_structures * self.size

    def meshes(self):
        """(structure, eta, (dims, order of the B-splines) or None) of the structures with wave vectors or meshes."""
        for b, row in zip(self.tables.periodic.tolist(), self.tables.mesh.tolist(), strict=True):
            yield b, 1.0 / float(self.tables.inverse_eta[b]), (tuple(row[:3]), row[3]) if row[3] else None

    def self_terms(self) -> Tensor:
        """(N,) what stands on the diagonal besides images: 1 / (s_i sqrt(pi)) - sqrt(2 / pi) / eta."""
        a = self.squared_widths
        own = torch.where(a > 0.0, torch.where(a > 0.0, a * math.pi, 1.0).rsqrt(), 0.0)
        return own - math.sqrt(2.0 / math.pi) * self.tables.inverse_eta.index_select(0, self.batch)

    def lattice(self) -> Tensor:
        """(Bp, 3, 3) lattice vectors in the order of the waves' indices; a slab's third is 2 R times its normal."""
        tables, cell = self.tables, self.periodic(self.cell)
        if not self.has_slabs:
            return cell
        cell = cell.gather(1, tables.axes[:, :, None].expand(-1, -1, 3))
        normal = torch.linalg.cross(cell[:, 0], cell[:, 1])
        normal = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True)
        upright = torch.stack([cell[:, 0], cell[:, 1], 2.0 * tables.height[:, None] * normal], dim=1)
        return torch.where((tables.height > 0.0)[:, None, None], upright, cell)

    def select(self, b: int) -> "System":
        """One structure."""
        if self.num_structures == 1:
            return self
        first, last = int(self.node_ptr[b]), int(self.node_ptr[b + 1])
        return System.of(
            self.positions[first:last],
            self.squared_widths[first:last],
            self.cell[b : b + 1],
            self.batch[first:last] - b,
            self.node_ptr[b : b + 2] - first,
            self.tables.select(b, first, last),
        )

    def to(self, device) -> "System":
        """All tensors on ``device``."""
        moved = (value.to(device) if hasattr(value, "to") else value for value in self)
        return System(*moved)


def slab_constant(system: System) -> Tensor:
    """(B,) 1/Å, what ``coulomb_form`` and ``coulomb_matrix`` add to all elements of a slab's A: 2 pi R^2 / V.

    It makes the matrix positive semidefinite and has no influence on charges of a given sum.
    """
    constant = system.cell.new_zeros(system.num_structures)
    if not system.has_slabs:
        return constant
    volume = torch.linalg.det(system.lattice()).abs()
    return constant.index_add(0, system.tables.periodic, 2.0 * math.pi * system.tables.height**2 / volume)
