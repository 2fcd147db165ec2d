"""What a structure must be to be used: what else it is gets one line that names the atom."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell

from .errors import InputError, StructureName

MIN_HEIGHT = 0.1  # Å; a periodic cell thinner than this is taken for a mistake
FARTHEST = 1e9  # Å from the origin, where positions still tell 1e-7 Å


def as_structures(atoms: Iterable[Atoms]) -> list[Atoms]:
    """A list of structures.

    Raises:
        InputError: it is something else.
    """
    wanted = "structures must be ASE Atoms, one or a list"
    if isinstance(atoms, (str, Path)):
        raise InputError(f"{wanted}, got the name of a file: give ase.io.read({str(atoms)!r}, ':')")
    try:
        structures = list(atoms)
    except TypeError:
        raise InputError(f"{wanted}, got {atoms!r:.100}") from None
    for index, each in enumerate(structures):
        if not isinstance(each, Atoms):
            raise InputError(f"structure {index}: {wanted}, got {each!r:.100}")
    return structures


def as_structure(atoms: Atoms) -> Atoms:
    """A single structure.

    Raises:
        InputError: it is something else.
    """
    if isinstance(atoms, Atoms):
        return atoms
    if isinstance(atoms, (str, Path)):
        raise InputError(f"a structure must be ASE Atoms, got the name of a file: give ase.io.read({str(atoms)!r})")
    raise InputError(f"a structure must be ASE Atoms, a single one, got {atoms!r:.80}")


@cache
def species_table(species: tuple[str, ...]) -> np.ndarray:
    """Atomic number -> index into ``species``, or -1."""
    table = np.full(len(chemical_symbols), -1, np.int64)
    for k, symbol in enumerate(species):
        table[chemical_symbols.index(symbol)] = k
    return table


def usable_positions(atoms: Atoms, name: str | StructureName) -> np.ndarray:
    """(n, 3) float64, Å.

    Raises:
        InputError: they are no finite numbers, three for each atom.
    """
    positions = atoms.positions
    usable = isinstance(positions, np.ndarray) and positions.dtype.kind in "fiu" and not np.ma.is_masked(positions)
    if not usable or positions.shape != (len(atoms.numbers), 3):
        what = f"{getattr(positions, 'dtype', '?')} of shape {np.shape(positions)}"
        raise InputError(f"{name}: positions must be three numbers for each of its atoms, got {what}")
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        raise InputError(f"{name}: the position of atom {bad[0]} is not finite: {positions[bad[0]].tolist()}")
    if np.abs(positions).max(initial=0.0) > FARTHEST:
        far = int(np.abs(positions).max(axis=1).argmax())
        raise InputError(
            f"{name}: atom {far} is at {positions[far].tolist()}, over {FARTHEST:g} Å from the origin; wrap it into "
            "the cell or move the structure"
        )
    return positions


def known_species(atoms: Atoms, species: Sequence[str], name: str | StructureName) -> np.ndarray:
    """(n,) int64, index of each atom's element into ``species``.

    Raises:
        InputError: an atomic number is none, or its element is not in ``species``.
    """
    numbers, table = atoms.numbers, species_table(tuple(species))
    if numbers.dtype.kind not in "iu":
        raise InputError(f"{name}: atomic numbers must be whole numbers, got {numbers.dtype}")
    odd = np.flatnonzero((numbers < 0) | (numbers >= len(table)))
    if len(odd):
        raise InputError(f"{name}: atom {odd[0]} has the atomic number {numbers[odd[0]]}, which no element has")
    kinds = table[numbers]
    if (kinds < 0).any():
        unknown = sorted({atoms.symbols[k] for k in np.flatnonzero(kinds < 0)})
        atom = next(k for k, symbol in enumerate(atoms.symbols) if symbol == unknown[0])
        raise InputError(
            f"{name}: element {unknown[0]} (atom {atom}) is unknown to this model, which knows {', '.join(species)}"
        )
    return kinds


def usable_cell(cell: np.ndarray, pbc: np.ndarray, name: str) -> np.ndarray:
    """The cell, checked, with a unit vector for each missing direction that is not periodic."""
    if not pbc.any():
        return np.eye(3)
    if not (np.abs(cell) <= FARTHEST).all():
        raise InputError(f"{name}: the cell is not finite, or larger than {FARTHEST:g} Å: {cell.tolist()}")
    for axis in np.flatnonzero(pbc):
        if np.linalg.norm(cell[axis]) < MIN_HEIGHT:
            raise InputError(
                f"{name}: periodic along axis {axis}, but cell vector {axis} is zero; set a cell or pbc=False"
            )
    # what stands in a direction that is not periodic means nothing: put an independent unit vector there
    cell = np.array(complete_cell(np.where(pbc[:, None], cell, 0.0)))
    volume = abs(np.linalg.det(cell))
    heights = volume / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1).clip(min=1e-300)
    if not (volume > 0 and (heights[pbc] > MIN_HEIGHT).all()):
        raise InputError(
            f"{name}: the cell has (almost) no volume, or is so skewed that it is thinner than {MIN_HEIGHT} Å: "
            f"{cell.tolist()} (ase.geometry.minkowski_reduce finds the same lattice's compact cell)"
        )
    return cell
