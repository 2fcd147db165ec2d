"""Crystals of one element, perfect or displaced a little, from structures to energies and forces."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from reference.models import small_model

from fastlr import Potential

CELLS = {
    "bcc": (bulk("Na", "bcc", a=3.6), 3),
    "fcc": (bulk("Na", "fcc", a=4.4), 3),
    "diamond": (bulk("Na", "diamond", a=6.5), 2),
    "hcp": (bulk("Na", "hcp", a=3.2, c=5.2), 2),
    "hydrogen": (Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], cell=[3.0, 3.1, 3.2], pbc=True), (2, 3, 2)),
}
SHEET = Atoms("O2", [[0, 0, 0], [0, 1.42, 0]], cell=[[2.46, 0, 0], [-1.23, 2.13, 0], [0, 0, 1]], pbc=(1, 1, 0))
RING = Atoms("Na12", [[6.0 * np.cos(t), 6.0 * np.sin(t), 0.0] for t in np.arange(12) * np.pi / 6.0])
LAYER = fcc111("Na", (2, 2, 2), a=4.4, periodic=True)
LAYER.pbc = True, True, False
DISPLACED = {"bcc": CELLS["bcc"][0].repeat(3), "sheet": SHEET.repeat((3, 3, 1)), "ring": RING, "layer": LAYER}
SMALL = 1e-4  # Å
# forces that differ beside the largest of their changes: Coulomb sums are good to 1e-10, or 3e-6, of charges of 1e-5
ERROR = {"float64": 1e-6, "float32": 0.05}


@pytest.fixture(scope="module", params=["float64", "float32"])
def potential(request):
    return Potential(small_model("lr", dtype=request.param))


@pytest.fixture(scope="module")
def reference():
    return Potential(small_model("lr"), backend="reference")


@pytest.mark.parametrize("name", CELLS)
def test_cells_repeated_are_as_many(name, potential):
    primitive, repeats = CELLS[name]
    atoms = primitive.repeat(repeats)
    found, expected = potential.predict(atoms), potential.predict(primitive)
    assert np.abs(found.charges).max() < 1e-6
    double = potential.config.dtype == "float64"
    assert found.energy / len(atoms) == pytest.approx(expected.energy / len(primitive), abs=1e-9 if double else 1e-6)
    assert np.abs(found.forces).max() == pytest.approx(np.abs(expected.forces).max(), abs=1e-8 if double else 1e-4)


def displaced(atoms: Atoms, size: float) -> Atoms:
    copy = atoms.copy()
    copy.positions[0] += size * np.array([1.0, 0.3, -0.2])
    return copy


@pytest.mark.parametrize("name", DISPLACED)
def test_phonons(name, potential, reference):
    both = [displaced(DISPLACED[name], size) for size in (SMALL, -SMALL)]
    found, expected = ([p.forces for p in each.predict(both)] for each in (potential, reference))
    change, wanted = found[0] - found[1], expected[0] - expected[1]
    assert np.abs(change - wanted).max() <= ERROR[potential.config.dtype] * np.abs(wanted).max()


@pytest.mark.parametrize("atoms", [Atoms("Na"), Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), RING, Atoms()], ids=str)
@pytest.mark.parametrize("charge", [0, 1])
def test_molecules(atoms, charge, potential):
    charges = potential.predict(atoms, charge=charge).charges
    np.testing.assert_allclose(charges, charge / max(len(atoms), 1), atol=1e-6)
