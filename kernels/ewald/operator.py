"""q -> A q for one structure, many times and without derivatives: what does not change is computed once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ewald_mesh.potential import MeshPotential
from . import reciprocal
from .op import largest_row, pair_product, pair_values
from .rows import Rows
from .system import System

if TYPE_CHECKING:
    from .pair_table import PairTable


class CoulombOperator:
    """A of a structure's Coulomb energy (k / 2) q' A q, as a product; (N,) to (N,), in 1/Å.

    A slab's contains ``coulomb.slab_constant``.

    Args:
        system: one structure.
        table: its pair function, if that is known, on CPUs.
    """

    @torch.no_grad()
    def __init__(self, system: System, table: PairTable | None = None):
        if system.num_structures != 1:
            raise ValueError(f"the operator is that of one structure, got {system.num_structures}")
        self.system, self.pairs, self.table = system, system.tables.pairs(system.batch), table
        self.diagonal = system.self_terms()
        self.far, self.average = None, 0.0
        if len(system.tables.periodic):
            lattice = system.lattice()
            ((_, eta, mesh),) = system.meshes()
            if mesh is None:
                self.far = reciprocal.Potential(system, lattice)
            else:
                self.far = MeshPotential(system.positions, system.cell[0], eta, *mesh)
            self.squared_widths = system.squared_widths
            self.squared_eta = float(system.tables.inverse_eta[0]) ** -2
            is_slab = bool(system.tables.height[0] > 0.0)
            self.average = 0.0 if is_slab else 2.0 * math.pi / float(torch.linalg.det(lattice[0]).abs())

        self._find_pairs(system.positions)

    @torch.no_grad()
    def move(self, positions: Tensor) -> None:
        """Atoms are at ``positions`` (N, 3) now, and the table knows."""
        self._find_pairs(positions)
        if self.far is not None:
            self.far.move(positions)

    def rows(self) -> list[Rows]:
        """How large the rows of the sums over pairs and waves are."""
        double = self.diagonal.dtype
        if self.table is None:
            near = Rows(largest_row(self.values.__getitem__, self.pairs.ptr), 0.0, double)
        else:
            near = self.table.rows()
        if self.far is None:
            return [near]
        if isinstance(self.far, reciprocal.Potential):
            return [near, self.far.rows]
        # of a mesh, whose waves are not at hand, all as if they were the longest
        length = 1.0 / float(torch.linalg.vector_norm(torch.linalg.inv(self.system.cell[0]), dim=0).min())
        longest = 2.0 * self.average * (length / (2.0 * math.pi)) ** 2
        return [near, Rows(longest * len(self.diagonal), longest, double)]

    def _find_pairs(self, positions: Tensor) -> None:
        if self.table is None:
            system = self.system
            self.values = pair_values(positions, system.squared_widths, system.cell, system.beta, self.pairs)

    @torch.no_grad()
    def __call__(self, q: Tensor) -> Tensor:
        near = pair_product(self.values, q, self.pairs) if self.table is None else self.table.product(q)
        phi = near.addcmul_(self.diagonal, q)
        if self.far is not None:
            total = q.sum()
            phi += self.far(q)
            phi += self.average * (self.squared_widths * total + (self.squared_widths @ q - self.squared_eta * total))
        return phi
