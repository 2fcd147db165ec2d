"""Many small molecules as one batch, with all distances of all of them computed at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from ase import Atoms

from fastlr.conditions import mentions_conditions
from fastlr.graph import MIN_DISTANCE, SMALL, CoulombSettings, Graph
from fastlr.kernels.ewald.tables import molecule_tables
from fastlr.structure_checks import FARTHEST, species_table
from fastlr.total_charge import require_charge_of_labels, stated_charge, warn_of_unused_charge

TOGETHER = 256  # molecules; their distances are then some MB


def runs(structures: Sequence[Atoms]) -> Iterator[range]:
    """Consecutive structures by their numbers: as many small molecules as go together, or one of another kind."""
    start = 0
    while start < len(structures):
        stop = start
        while stop < len(structures) and stop - start < TOGETHER and _is_small(structures[stop]):
            stop += 1
        stop = max(stop, start + 1)
        yield range(start, stop)
        start = stop


def _is_small(atoms: Atoms) -> bool:
    if not 0 < len(atoms) <= SMALL or atoms.pbc.any() or mentions_conditions(atoms):
        return False
    positions, numbers = atoms.arrays["positions"], atoms.arrays["numbers"]  # as ASE makes them
    usual = type(positions) is np.ndarray and positions.dtype == np.float64 and numbers.dtype.kind == "i"
    return usual and positions.shape == (len(numbers), 3)


def molecules_graph(
    molecules: Sequence[Atoms],
    species: Sequence[str],
    r_max: float,
    coulomb: CoulombSettings | None,
    charges: Sequence[float | None],
    start: int,
) -> Graph | None:
    """The batch that ``Graph.batch_of`` makes of each molecule's ``Graph.single``, or None if one cannot be used, which
    ``Graph.single`` then explains.

    Args:
        molecules: small ones that state nothing but their charge, see ``runs``.
        charges: defaults in e.
        start: number of the first molecule, for errors.
        others: see ``Graph.from_atoms``.

    Raises:
        InputError: a charge that is not a number, or none where there should be one.
    """
    sizes = np.array([len(atoms) for atoms in molecules])
    positions = np.concatenate([atoms.positions for atoms in molecules])
    numbers, table = np.concatenate([atoms.numbers for atoms in molecules]), species_table(tuple(species))
    if not (np.abs(positions) <= FARTHEST).all():
        return None
    if numbers.min() < 0 or numbers.max() >= len(table) or (table[numbers] < 0).any():
        return None
    kinds = table[numbers]
    stated = [stated_charge(*pair, start + k) for k, pair in enumerate(zip(molecules, charges, strict=True))]
    total = [charge or 0.0 for charge in stated]
    if coulomb is not None:
        for k in (k for k, charge in enumerate(stated) if charge is None):
            require_charge_of_labels(molecules[k], start + k)
    elif any(total):
        first = next(k for k, charge in enumerate(total) if charge)
        warn_of_unused_charge(total[first], molecules[first], start + first)
    n, ptr = len(positions), np.concatenate([[0], sizes.cumsum()])
    batch = np.repeat(np.arange(len(sizes)), sizes)
    # all pairs of each molecule, an atom with itself too: row i has the atoms of its molecule
    row = np.concatenate([[0], sizes[batch].cumsum()])
    i = np.repeat(np.arange(n), sizes[batch])
    j = np.arange(row[-1]) + (ptr[batch] - row[:-1])[i]
    square = ((positions[i] - positions[j]) ** 2).sum(axis=1)
    near = (square < r_max**2) & (i != j)
    edges = np.flatnonzero(near)
    if len(edges) and square[edges].min() < MIN_DISTANCE**2:
        return None
    number = np.cumsum(near) - 1
    destination, source = i[edges], j[edges]
    reverse = number[row[source] + destination - ptr[batch[source]]]
    row_ptr = np.concatenate([[0], np.bincount(destination, minlength=n).cumsum()])
    return Graph(
        positions=torch.from_numpy(positions),
        species=torch.from_numpy(kinds.astype(np.int64)),
        batch=torch.from_numpy(batch),
        node_ptr=torch.from_numpy(ptr),
        cell=torch.eye(3, dtype=torch.float64).expand(len(sizes), 3, 3).contiguous(),
        pbc=torch.zeros(len(sizes), 3, dtype=torch.bool),
        charge=torch.tensor(total, dtype=torch.float64),
        edge_index=torch.from_numpy(np.stack([destination, source])),
        edge_shift=torch.zeros(len(edges), 3, dtype=torch.float64),
        row_ptr=torch.from_numpy(row_ptr),
        reverse_edge=torch.from_numpy(reverse),
        coulomb=None if coulomb is None else molecule_tables(sizes, j[i != j]),
    )
