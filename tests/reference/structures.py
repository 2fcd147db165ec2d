"""Small structures of H, O, Na and Cl, all off symmetric positions."""

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

SPECIES = ["H", "O", "Na", "Cl"]


def _rattled(atoms: Atoms, seed: int = 1, size: float = 0.1) -> Atoms:
    atoms.positions += np.random.default_rng(seed).normal(0.0, size, atoms.positions.shape)
    return atoms


def water() -> Atoms:
    return _rattled(molecule("H2O"), size=0.03)


def water_cluster() -> Atoms:
    """H5O2+ with its charge, distorted."""
    first, second = water(), water()
    second.rotate(70.0, (1.0, 2.0, 0.5))
    second.positions += [2.6, 0.3, -0.2]
    atoms = first + second + Atoms("H", [[1.3, 0.5, 0.4]])
    atoms.info["charge"] = 1
    return atoms


def salt() -> Atoms:
    """Conventional cell of NaCl, 8 atoms."""
    return _rattled(bulk("NaCl", "rocksalt", a=5.64, cubic=True))


def skewed_cell() -> Atoms:
    """A thin triclinic cell, smaller than the cutoff, its atoms partly outside."""
    cell = [[3.4, 0.1, 0.2], [2.1, 3.9, 0.0], [-1.7, 1.2, 4.3]]
    return Atoms("NaClO", [[0.1, 0.2, 0.3], [2.4, 1.7, 2.3], [-2.0, 8.6, 0.4]], cell=cell, pbc=True)


def left_handed_cell() -> Atoms:
    atoms = skewed_cell()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    return atoms


def one_atom_cell() -> Atoms:
    return Atoms("Na", [[0.3, -7.0, 0.2]], cell=[[2.9, 0.0, 0.3], [1.2, 3.1, 0.0], [0.0, 0.4, 3.3]], pbc=True)


def slab() -> Atoms:
    """A rattled NaCl layer, periodic along the first and third axis; the second cell vector means nothing."""
    atoms = salt()[:5]
    atoms.set_cell([[5.64, 0.0, 0.3], [0.0, 0.0, 0.0], [1.0, 0.0, 6.0]])
    atoms.pbc = (True, False, True)
    return atoms


def wire() -> Atoms:
    return Atoms(
        "NaCl", [[0.0, 0.0, 0.0], [0.3, 0.4, 2.5]], cell=[[0, 0, 0], [0, 0, 0], [0.2, 0.1, 4.9]], pbc=(0, 0, 1)
    )


def isolated_atom() -> Atoms:
    return Atoms("O", [[0.3, 0.1, -20.0]])


def far_apart() -> Atoms:
    return Atoms("HO", [[0.0, 0.0, 0.0], [0.0, 0.0, 50.0]])


def empty() -> Atoms:
    return Atoms()


MOLECULES = {f.__name__: f for f in (water, water_cluster, isolated_atom, far_apart, empty)}
CELLS = {f.__name__: f for f in (salt, skewed_cell, left_handed_cell, one_atom_cell)}
PARTLY_PERIODIC = {f.__name__: f for f in (slab, wire)}
STRUCTURES = MOLECULES | CELLS | PARTLY_PERIODIC
