"""Graph: a ragged batch of structures as tensors, with neighbour lists as sorted edges.

Conventions: positions and cells in Å and float64, rows of a cell are lattice vectors. Edges point from a destination
(the centre) to a source (the neighbour), ``vector = position[source] - position[destination] + shift @ cell``, and are
sorted by destination, so that ``row_ptr`` delimits the edges of each atom (CSR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import vesin
from ase import Atoms
from torch import Tensor

from .conditions import ARRAYS, INFO, Conditions, conditions_of
from .errors import InputError, StructureName
from .kernels.adjacency import Adjacency
from .kernels.charge_solver.memory import Memory
from .kernels.ewald.tables import CoulombTables, coulomb_tables
from .kernels.neighbours import without_gaps
from .standard_settings import standard_settings
from .structure_checks import as_structures, known_species, usable_cell, usable_positions
from .total_charge import each_charge, require_charge_of_labels, stated_charge, warn_of_unused_charge

MIN_DISTANCE = 0.1  # Å; closer atoms are taken for a mistake
SMALL = 64  # atoms of molecules whose distances are all computed, which is faster than a list of neighbours
FAR = 8  # cells from the cell that are far


@dataclass(frozen=True)
class CoulombSettings:
    """How to make the tables of the Coulomb sum: width of each species (Å), accuracy, splitting width (Å), and how many
    products with charges are expected for a set of positions."""

    widths: tuple[float, ...]
    accuracy: float = 1e-10
    eta: float | None = None
    products: int = 0


@dataclass(frozen=True)
class Graph:
    """A batch of B structures with N atoms and E edges in all.

    Attributes:
        positions: (N, 3) float64, Å.
        species: (N,) int64, index into the model's list of species.
        batch: (N,) int64, the structure of each atom.
        node_ptr: (B + 1,) int64, first atom of each structure.
        cell: (B, 3, 3) float64, Å; for directions that are not periodic its value has no effect.
        pbc: (B, 3) bool.
        charge: (B,) float64, total charge in e.
        edge_index: (2, E) int64, destination and source; sorted by destination.
        edge_shift: (E, 3) float64, integer lattice shift of the source.
        row_ptr: (N + 1,) int64, first edge of each destination.
        reverse_edge: (E,) int64, the edge from source to destination with the opposite shift; empty where some edges
            have none.
        coulomb: tables of the Coulomb sum, or None.
        conditions: what acts on the charges besides their sum, or None.
        memory: solutions of earlier steps, where this is one of many of the same atoms; it learns those of this one.
        listed_at: (N, 3) positions for which the edges were found, where atoms have moved since; by these they are put
            in an order, so that sums are the same to the last bit whenever that is done.
    """

    positions: Tensor
    species: Tensor
    batch: Tensor
    node_ptr: Tensor
    cell: Tensor
    pbc: Tensor
    charge: Tensor
    edge_index: Tensor
    edge_shift: Tensor
    row_ptr: Tensor
    reverse_edge: Tensor
    coulomb: CoulombTables | None = None
    conditions: Conditions | None = None
    memory: Memory | None = None
    listed_at: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        return self.positions.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def num_structures(self) -> int:
        return self.cell.shape[0]

    @property
    def adjacency(self) -> Adjacency:
        """The edges as the kernels want them. The reverses of the edges into a node are the edges out of it."""
        if self.reverse_edge.shape[0] != self.num_edges:
            return Adjacency.from_edges(self.edge_index, self.num_nodes)
        identity = torch.arange(self.num_edges, device=self.batch.device)
        return Adjacency(*self.edge_index, self.row_ptr, identity, self.row_ptr, self.reverse_edge)

    @property
    def slot(self) -> Tensor:
        """(N,) index of each atom within its structure."""
        return torch.arange(self.num_nodes, device=self.batch.device) - self.node_ptr.index_select(0, self.batch)

    @property
    def max_atoms(self) -> int:
        """Atoms in the largest structure."""
        return int((self.node_ptr[1:] - self.node_ptr[:-1]).max()) if self.num_structures else 0

    def edge_vectors(self) -> Tensor:
        """(E, 3) float64, Å, destination to source; differentiable in positions and cell."""
        destination, source = self.edge_index[0], self.edge_index[1]
        vectors = self.positions.index_select(0, source) - self.positions.index_select(0, destination)
        # looking at values on a GPU would wait for it, and the shifts of what is not periodic are zero
        if self.pbc.device.type == "cpu" and not self.pbc.any():
            return vectors
        cell = self.cell.index_select(0, self.batch.index_select(0, destination))
        return vectors + (self.edge_shift[:, None, :] @ cell).squeeze(1)

    def strained(self, strain: Tensor) -> Graph:
        """The batch deformed by symmetrised strains (B, 3, 3): r -> r (1 + e), for positions and cells."""
        symmetric = 0.5 * (strain + strain.transpose(1, 2))
        moved = (self.positions[:, None, :] @ symmetric.index_select(0, self.batch)).squeeze(1)
        return replace(self, positions=self.positions + moved, cell=self.cell + self.cell @ symmetric)

    def sum_nodes(self, values: Tensor) -> Tensor:
        """(N, ...) -> (B, ...): sum over the atoms of each structure."""
        out = values.new_zeros(self.num_structures, *values.shape[1:])
        return out.index_add(0, self.batch, values)

    def to(self, device) -> Graph:
        """All tensors on ``device``."""

        def move(value):
            return value.to(device) if hasattr(value, "to") else value

        return Graph(*(move(getattr(self, field.name)) for field in fields(self)))

    @staticmethod
    @standard_settings()
    def from_atoms(
        atoms: Atoms | Sequence[Atoms],
        species: Sequence[str],
        r_max: float,
        coulomb: CoulombSettings | None = None,
        charge: float | Sequence[float] | None = None,
    ) -> Graph:
        """Structures to one batch.

        Args:
            atoms: one ASE structure or a list.
            species: chemical symbols that the model knows; their order gives the indices in ``Graph.species``.
            r_max: cutoff of the edges, Å.
            coulomb: settings of the Coulomb sum; None for a model without one.
            charge: total charge in e, for all or for each; the default is 0. What a structure states wins, see
                ``total_charge.stated_charge``.

        Raises:
            InputError: unknown element, non-finite position or cell, zero volume, overlapping atoms, a charge that
                is not a number, or a periodicity that the Coulomb sum does not serve. The message names the
                structure and the atoms.
        """
        structures = [atoms] if isinstance(atoms, Atoms) else as_structures(atoms)
        charges = each_charge(charge, len(structures))
        return Graph.batch_of(
            [
                Graph.single(structure, species, r_max, coulomb, default, index)
                for index, (structure, default) in enumerate(zip(structures, charges, strict=True))
            ]
        )

    @staticmethod
    @standard_settings()
    def single(
        atoms: Atoms,
        species: Sequence[str],
        r_max: float,
        coulomb: CoulombSettings | None = None,
        charge: float | None = None,
        index: int = 0,
        skin: float = 0.0,
    ) -> Graph:
        """One structure as a batch of one; errors call it structure ``index``. See ``from_atoms``.

        With a ``skin`` (Å), edges and Coulomb tables reach that much farther, so that they hold until an atom has moved
        by half of it.
        """
        return _single(as_structures([atoms])[0], charge, index, species, r_max, coulomb, skin)

    @property
    def num_bytes(self) -> int:
        """Of atoms and edges."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    def within(self, r_max: float) -> Graph:
        """Without the edges that are longer than ``r_max`` (Å).

        Raises:
            InputError: two atoms of a batch of one overlap.
        """
        square = (self.edge_vectors() ** 2).sum(dim=1)
        if len(square) and float(square.min()) < MIN_DISTANCE**2:
            raise overlap(self, int(square.argmin()), float(square.min()) ** 0.5)
        near = square < r_max**2
        kept = torch.nonzero(near)[:, 0]
        before = torch.nn.functional.pad(near.cumsum(0), (1, 0))
        return replace(
            self,
            edge_index=self.edge_index.index_select(1, kept),
            edge_shift=self.edge_shift.index_select(0, kept),
            row_ptr=before.index_select(0, self.row_ptr),
            reverse_edge=before.index_select(0, self.reverse_edge.index_select(0, kept)),
        )

    @staticmethod
    def batch_of(graphs: Sequence[Graph]) -> Graph:
        """Join batches into one."""
        graphs = list(graphs)
        if len(graphs) == 1:
            return graphs[0]
        if not graphs:
            raise InputError("no structures were given")
        nodes = _offsets([g.num_nodes for g in graphs])
        edges = _offsets([g.num_edges for g in graphs])
        structures = _offsets([g.num_structures for g in graphs])

        def join(name, offsets=None, tail=False):
            parts = [getattr(g, name) for g in graphs]
            if offsets is not None:
                parts = [part + offset for part, offset in zip(parts, offsets, strict=False)]
            if tail:  # row pointers: each but the first repeats the end of the one before
                parts = [part if k == 0 else part[1:] for k, part in enumerate(parts)]
            return torch.cat(parts, dim=1 if name == "edge_index" else 0)

        return Graph(
            positions=join("positions"),
            species=join("species"),
            batch=join("batch", structures),
            node_ptr=join("node_ptr", nodes, tail=True),
            cell=join("cell"),
            pbc=join("pbc"),
            charge=join("charge"),
            edge_index=join("edge_index", nodes),
            edge_shift=join("edge_shift"),
            row_ptr=join("row_ptr", edges, tail=True),
            reverse_edge=join("reverse_edge", edges),
            coulomb=_join_coulomb([g.coulomb for g in graphs]),
            conditions=Conditions.join(
                *([getattr(g, name) for g in graphs] for name in ("conditions", "charge", "batch"))
            ),
        )


def _single(
    atoms: Atoms,
    charge: float | None,
    index: int,
    species,
    r_max: float,
    coulomb: CoulombSettings | None,
    skin: float,
) -> Graph:
    """One structure as a batch of one, its input checked."""
    name = StructureName(atoms, index)
    conditions, charge = _acting(atoms, charge, index, coulomb, name)
    kinds = known_species(atoms, species, name)
    positions = usable_positions(atoms, name)
    pbc = np.asarray(atoms.pbc, dtype=bool)
    cell = usable_cell(np.asarray(atoms.cell.array, dtype=np.float64), pbc, name)
    cells = whole_cells(positions, cell, pbc)
    if cells is not None:
        positions = positions - cells

    edge_index, edge_shift, row_ptr, reverse_edge = neighbour_edges(positions, cell, pbc, r_max + skin, name)
    n = len(positions)
    return Graph(
        positions=torch.from_numpy(positions.copy()),
        species=torch.from_numpy(kinds),
        batch=torch.zeros(n, dtype=torch.int64),
        node_ptr=torch.tensor([0, n]),
        cell=torch.from_numpy(cell)[None],
        pbc=torch.from_numpy(pbc.copy())[None],
        charge=torch.tensor([charge], dtype=torch.float64),
        edge_index=torch.from_numpy(edge_index),
        edge_shift=torch.from_numpy(edge_shift),
        row_ptr=torch.from_numpy(row_ptr),
        reverse_edge=torch.from_numpy(reverse_edge),
        coulomb=None if coulomb is None else _tables(positions, cell, pbc, kinds, coulomb, skin, name),
        conditions=conditions,
    )


def _acting(
    atoms: Atoms, charge: float | None, index: int, coulomb: CoulombSettings | None, name: StructureName
) -> tuple[Conditions | None, float]:
    """What acts on the charges of a structure, and its total charge."""
    stated = stated_charge(atoms, charge, index)
    conditions, charge = conditions_of(atoms, name, stated)
    if coulomb is None:
        warn_of_unused_charge(charge, atoms, index)
    elif stated is None and conditions is None:
        require_charge_of_labels(atoms, index)
    if conditions is not None and coulomb is None:
        key = next(key for key in (*ARRAYS, *INFO) if key in atoms.arrays or atoms.info.get(key) is not None)
        raise InputError(f"{name}: states '{key}', but this model has no charges for it to act on")
    return conditions, charge


def _tables(positions, cell, pbc, kinds, coulomb: CoulombSettings, skin: float, name: StructureName) -> CoulombTables:
    if pbc.sum() == 1:
        raise InputError(
            f"{name}: periodic in one direction; the Coulomb sum of this model serves molecules (pbc off), slabs "
            "(two periodic directions) and cells periodic in all three"
        )
    widths = np.asarray(coulomb.widths, np.float64)[kinds]
    options = {"skin": skin, "products": coulomb.products}
    try:
        return coulomb_tables(positions, cell, pbc, widths, coulomb.accuracy, coulomb.eta, **options)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def whole_cells(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray | None:
    """(n, 3) Å: whole numbers of periodic cells by which each atom lies outside the cell; None where none lies far.

    Taken off the positions, they change nothing but what float32 and small integers can hold.
    """
    if not pbc.any():
        return None
    cells = np.floor(np.linalg.solve(cell.T, positions.T).T) * pbc
    return cells @ cell if np.abs(cells).max(initial=0.0) > FAR else None


def neighbour_edges(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, r_max: float, name: str = "structure"):
    """Sorted edges of one structure within ``r_max``: (edge_index, edge_shift, row_ptr, reverse_edge)."""
    n = len(positions)
    if n == 0:
        empty = np.zeros(0, np.int64)
        return np.zeros((2, 0), np.int64), np.zeros((0, 3)), np.zeros(1, np.int64), empty
    if n <= SMALL and not pbc.any():
        return _all_pairs(positions, r_max, name)
    neighbours = vesin.NeighborList(cutoff=float(r_max), full_list=False)
    near = without_gaps(positions, cell, pbc, r_max)
    first, second, shift, distance = neighbours.compute(near, cell, pbc, quantities="ijSd")
    if len(distance) and distance.min() < MIN_DISTANCE:
        k = int(distance.argmin())
        raise _overlap(name, first[k], second[k], distance[k])
    reach = int(np.abs(shift).max(initial=0))
    base = 2 * reach + 1
    if float(n) ** 2 * float(base) ** 3 > 2.0**62:
        raise InputError(f"{name}: atoms lie up to {reach} cells apart; wrap them into the cell first (atoms.wrap())")
    # each pair is two edges, the reverses of each other; one integer orders them by destination, source and shift
    pairs = len(distance)
    edge_index = np.empty((2, 2 * pairs), np.int64)
    edge_index[0, :pairs], edge_index[0, pairs:] = first, second
    edge_index[1, :pairs], edge_index[1, pairs:] = second, first
    place = shift.astype(np.int64) @ np.array([base * base, base, 1])  # of the reverse, the negative one
    middle = (base**3 - 1) // 2
    order_of = (edge_index[0] * n + edge_index[1]) * base**3 + middle
    order_of[:pairs] += place
    order_of[pairs:] -= place
    order = np.argsort(order_of, kind="stable")  # which is quicker
    rank = np.empty_like(order)
    rank[order] = np.arange(2 * pairs)
    reverse_edge = np.concatenate([rank[pairs:], rank[:pairs]])[order]
    edge_shift = np.take(np.concatenate([shift, -shift]), order, axis=0).astype(np.float64)
    row_ptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(edge_index[0], minlength=n), out=row_ptr[1:])
    return np.stack([ends[order] for ends in edge_index]), edge_shift, row_ptr, reverse_edge


def _all_pairs(positions: np.ndarray, r_max: float, name):
    """``neighbour_edges`` of a small molecule, from all distances."""
    n = len(positions)
    square = ((positions[:, None, :] - positions[None, :, :]) ** 2).sum(axis=2)
    near = square < r_max**2
    np.fill_diagonal(near, False)
    i, j = np.nonzero(near)
    distance = np.sqrt(square[i, j])
    if len(distance) and distance.min() < MIN_DISTANCE:
        k = int(distance.argmin())
        raise _overlap(name, i[k], j[k], distance[k])
    number = np.zeros((n, n), np.int64)
    number[i, j] = np.arange(len(i))
    row_ptr = np.zeros(n + 1, np.int64)
    np.cumsum(near.sum(axis=1), out=row_ptr[1:])
    return np.stack([i, j]), np.zeros((len(i), 3)), row_ptr, number[j, i]


def overlap(graph: Graph, edge: int, distance: float) -> InputError:
    """The atoms of an edge are too near to each other."""
    i, j = graph.edge_index[:, edge].tolist()
    return _overlap("structure", i, j, distance)


def _overlap(name: str, i: int, j: int, distance: float) -> InputError:
    return InputError(
        f"{name}: atoms {min(i, j)} and {max(i, j)} overlap, {distance:.2g} Å apart (the least allowed is "
        f"{MIN_DISTANCE} Å)"
    )


def _join_coulomb(parts: list[CoulombTables | None]) -> CoulombTables | None:
    return None if any(part is None for part in parts) else CoulombTables.join(parts)


def _offsets(counts: list[int]) -> list[int]:
    return [0, *np.cumsum(counts).tolist()]
