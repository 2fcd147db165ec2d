"""What the Coulomb sums leave out of the matrix is within the bounds that the tables state."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from fastlr.kernels.ewald import truncation
from fastlr.kernels.ewald.coulomb import coulomb_matrix, slab_constant
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import (
    CoulombTables,
    coulomb_tables,
    inverse_filling,
    molecule_tables,
    near_pairs,
)
from fastlr.kernels.ewald_mesh.errors import potential_error
from reference.coulomb_systems import joined

LATTICES = {
    "sc": bulk("Na", "sc", a=3.1).repeat(4),
    "bcc": bulk("Na", "bcc", a=3.9, cubic=True).repeat((3, 3, 2)),
    "fcc": bulk("Na", "fcc", a=4.9).repeat(3),
    "rocksalt": bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat(2),
    "fluorite": bulk("CaF2", "fluorite", a=5.5).repeat(2),
    "two": bulk("NaCl", "cesiumchloride", a=3.4),
}


def random_cell(rng, n: int, skew: float, filled: float = 1.0) -> Atoms:
    cell = (np.eye(3) + skew * rng.uniform(-1.0, 1.0, (3, 3))) * (n / 0.06) ** (1.0 / 3.0)
    return Atoms("H" * n, filled * rng.uniform(0.0, 1.0, (n, 3)) @ cell, cell=cell, pbc=True)


def structures(rng) -> list[Atoms]:
    slab = LATTICES["rocksalt"].copy()
    slab.pbc = (True, False, True)
    disordered = [random_cell(rng, n, skew) for n, skew in ((2, 0.0), (9, 0.3), (40, 0.0), (70, 0.3))]
    return [*LATTICES.values(), slab, *disordered, random_cell(rng, 30, 0.1, 0.5)]


def parts(
    atoms: Atoms, widths, accuracy: float, eta: float | None, mesh: bool
) -> tuple[torch.Tensor, torch.Tensor, System]:
    """What pairs and waves or a mesh make of the matrix."""
    cell = atoms.cell.complete().array
    tables = coulomb_tables(atoms.positions, cell, atoms.pbc, widths, accuracy, eta, mesh)
    system = joined([atoms.positions], [widths], [cell], [tables])
    alone = tables._replace(lines=tables.lines[:, :0], waves=tables.waves[:, :0], mesh=torch.zeros_like(tables.mesh))
    near = coulomb_matrix(joined([atoms.positions], [widths], [cell], [alone]))[0]
    return near, coulomb_matrix(system)[0] - slab_constant(system) - near, system


def norms(atoms: Atoms, widths, accuracy: float, mesh: bool, scale: float = 1.0) -> tuple[list[float], System]:
    """Spectral norms, on charges without a sum, of what pairs and waves leave out, and of both."""
    eta = None
    if not mesh:
        eta = scale / float(parts(atoms, widths, accuracy, None, mesh)[2].tables.inverse_eta[0])
    *found, system = parts(atoms, widths, accuracy, eta, mesh)
    *exact, _ = parts(atoms, widths, 1e-15, 1.0 / float(system.tables.inverse_eta[0]), False)
    near, far = (a - b for a, b in zip(found, exact, strict=True))
    project = torch.eye(len(atoms), dtype=torch.float64) - 1.0 / len(atoms)
    return [float(torch.linalg.matrix_norm(project @ e @ project, 2)) for e in (near, far, near + far)], system


@pytest.mark.parametrize("accuracy", [1e-4, 3e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("mesh", [False, True], ids=["waves", "mesh"])
def test_bound_holds(mesh, accuracy, rng):
    """And is no more than some ten times too large."""
    ratios = []
    for atoms in structures(rng):
        if mesh and not atoms.pbc.all():
            continue
        widths = np.full(len(atoms), 0.5) if rng.random() < 0.5 else rng.uniform(0.3, 1.6, len(atoms))
        (_, _, whole), system = norms(atoms, widths, accuracy, mesh)
        bound = float(system.tables.truncation[0])
        assert whole <= 0.9 * bound, atoms
        ratios.append(bound / whole)
    assert np.median(ratios) < 60.0


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.5])
def test_bounds_of_pairs_and_of_waves_hold(scale, rng):
    """Each by itself, wherever the sum is split; neither is many times too large for all crystals."""
    shares = []
    for atoms in structures(rng):
        for accuracy in (1e-4, 1e-8):
            widths, reach = np.full(len(atoms), 0.5), math.sqrt(-2.0 * math.log(accuracy))
            (near, far, _), system = norms(atoms, widths, accuracy, False, scale)
            eta = 1.0 / float(system.tables.inverse_eta[0])
            cell = atoms.cell.complete().array
            crowding = near_pairs(atoms.positions, cell, atoms.pbc, widths, reach, eta, 0.0)[3]
            bounds = truncation.pairs(crowding, reach, eta, 0.0), truncation.waves(crowding, reach, eta)
            shares.append([near / bounds[0], far / bounds[1]])
    assert np.max(shares) <= 0.8
    assert np.max(shares, axis=0).min() >= 0.05


def test_bound_of_meshes_holds():
    """Of atoms on the points of a mesh, too, whose errors are all alike."""
    shares = []
    for accuracy in (1e-4, 1e-6):
        for name in ("sc", "bcc", "fcc"):
            for shift in (0.0, 0.21):
                atoms = LATTICES[name].copy()
                atoms.positions += shift
                (near, far, _), system = norms(atoms, np.full(len(atoms), 0.5), accuracy, True)
                assert near + far <= float(system.tables.truncation[0])
                eta, (*dims, p) = 1.0 / float(system.tables.inverse_eta[0]), system.tables.mesh[0].tolist()
                typical = math.sqrt(len(atoms) / atoms.cell.volume + 0.25 / eta**3)
                shares.append(far / (typical * potential_error(torch.tensor(atoms.cell.array), eta, dims, p)))
    assert 0.1 * truncation.MESH <= max(shares) <= 0.7 * truncation.MESH


def test_filling(rng):
    """Crystals and atoms at random places fill their cell, whatever its shape; vacuum is seen."""
    for atoms in [*LATTICES.values(), *(random_cell(rng, n, 0.3) for n in (2, 20, 150, 700))]:
        for repeat in ((1, 1, 1), (2, 1, 1), (3, 2, 1)):
            larger = atoms.repeat(repeat)
            assert inverse_filling(larger.positions, larger.cell.array) == 1.0
    atoms = random_cell(rng, 600, 0.2)
    for stretch in ((2.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.0, 3.0, 2.0)):
        moved = atoms.positions + rng.uniform(-50.0, 50.0, 3)
        cell = atoms.cell.array * np.array(stretch)[:, None]
        assert inverse_filling(moved, cell) == pytest.approx(0.8 * np.prod(stretch), rel=0.4)


def test_molecules_leave_nothing_out():
    molecule, cell = LATTICES["sc"].copy(), LATTICES["two"]
    molecule.pbc = False
    tables = [
        coulomb_tables(atoms.positions, atoms.cell.array, atoms.pbc, np.full(len(atoms), 0.5), 1e-6)
        for atoms in (molecule, cell, molecule)
    ]
    together, own = CoulombTables.join(tables), float(tables[1].truncation[0])
    assert own > 0.0
    assert together.truncation.tolist() == [0.0, own, 0.0]
    first = len(molecule)
    assert together.select(1, first, first + len(cell)).truncation.tolist() == [own]
    molecules = molecule_tables(np.array([2, 1]), np.array([1, 0]))
    assert molecules.truncation.tolist() == [0.0, 0.0]
    assert molecules.inverse_filling.tolist() == [1.0, 1.0]
