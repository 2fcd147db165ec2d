"""The Coulomb interaction of Gaussian charges: its bilinear form, differentiable, and its matrix.

See ``naive.py`` for what is summed; here by kernels and structure factors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ewald_mesh.potential import MeshPotential, mesh_form
from . import reciprocal
from .op import coulomb_pairs, pair_values
from .system import System, slab_constant

if TYPE_CHECKING:
    from .pair_table import PairTable


def coulomb_energy(q: Tensor, system: System) -> Tensor:
    """q' A q / 2 of each structure (B,) in e^2/Å, differentiable to second order like ``coulomb_form``."""
    return 0.5 * (coulomb_form(q, q, system) - slab_constant(system) * system.sum(q) ** 2)


def coulomb_form(u: Tensor, q: Tensor, system: System) -> Tensor:
    """u' A q of each structure, differentiable to second order in charges, positions, widths and cells.

    A slab's A contains ``slab_constant``.

    Args:
        u, q: (N,) float64, charges in e.

    Returns:
        (B,) e^2/Å.
    """
    tables = system.tables
    pairs = list(tables.pairs(system.batch))
    near = coulomb_pairs(q, system.positions, system.squared_widths, system.cell, system.beta, pairs)
    total = system.sum(u * (near + system.self_terms() * q))
    if not len(tables.periodic):
        return total
    lattice = system.lattice()
    far = reciprocal.ZeroWave(system, lattice)(u, q)
    if tables.lines.shape[1]:
        far = far + reciprocal.form(u, q, system, lattice)
    if system.has_meshes:
        far = far + _mesh_forms(u, q, system)
    return total + far if len(far) == len(total) else total.index_add(0, tables.periodic, far)


def _mesh_forms(u: Tensor, q: Tensor, system: System) -> Tensor:
    """(Bp,) u' A q of the particle meshes, zero where there is none."""
    forms = []
    for b, eta, mesh in system.meshes():
        if mesh is None:
            forms.append(u.new_zeros(()))
            continue
        own = slice(int(system.node_ptr[b]), int(system.node_ptr[b + 1]))
        charges = q[own]
        left = charges if u is q else u[own]
        forms.append(mesh_form(left, charges, system.positions[own], system.cell[b], eta, *mesh))
    return torch.stack(forms)


@torch.no_grad()
def coulomb_matrix(system: System, table: PairTable | None = None) -> Tensor:
    """A (B, n, n) in 1/Å, n the size of the largest structure; without derivatives.

    A slab's contains ``slab_constant``.

    Args:
        table: the pair function, if that is known, on CPUs; its precision is the matrix'.
    """
    tables, size, places = system.tables, system.size, system.places
    pairs = tables.pairs(system.batch)
    if table is None:
        values = pair_values(system.positions, system.squared_widths, system.cell, system.beta, pairs)
    else:
        values = table.values
    matrix = system.positions.new_zeros(system.num_structures * size * size)
    if matrix.device.type == "cpu":
        from .matrix_cpu import add_pairs

        add_pairs(matrix, values, pairs, places, size)
    else:
        rows = torch.repeat_interleave(places, pairs.ptr[1:] - pairs.ptr[:-1], output_size=len(values))
        columns = places.index_select(0, pairs.neighbour) - system.batch.index_select(0, pairs.neighbour) * size
        matrix.index_add_(0, rows * size + columns, values)
    matrix.index_add_(0, places * size + places % max(size, 1), system.self_terms())
    matrix = matrix.view(system.num_structures, size, size)
    if not len(tables.periodic):
        return matrix
    lattice = system.lattice()
    spread = system.pad_periodic(system.squared_widths)
    inside = system.pad_periodic(torch.ones_like(system.squared_widths))
    squared_eta = system.periodic(tables.inverse_eta)[:, None, None] ** -2
    average = 2.0 * math.pi / torch.linalg.det(lattice).abs()[:, None, None]
    average = average * (squared_eta - spread[:, :, None] - spread[:, None, :])
    average = torch.where((tables.height > 0.0)[:, None, None], 0.0, average)
    average = average * inside[:, :, None] * inside[:, None, :]
    far = reciprocal.matrix(system, lattice, None if table is None else table.dtype)
    matrix.index_add_(0, tables.periodic, far - average)
    if system.has_meshes:
        _add_meshes(matrix, system)
    return matrix


def _add_meshes(matrix: Tensor, system: System) -> None:
    """Column by column, as the mesh has it: derivatives are those of the mesh, too."""
    for b, eta, mesh in system.meshes():
        if mesh is None:
            continue
        own = slice(int(system.node_ptr[b]), int(system.node_ptr[b + 1]))
        potential, n = MeshPotential(system.positions[own], system.cell[b], eta, *mesh), own.stop - own.start
        for j, unit in enumerate(torch.eye(n, dtype=matrix.dtype, device=matrix.device)):
            matrix[b, :n, j] += potential(unit)
