"""Structures of odd content: served like the ordinary one that they mean, or refused in one line, by every way in."""

import re

import ase.io
import numpy as np
import pytest
from ase import Atoms
from reference import models, structures

from fastlr.errors import InputError, StructureName
from fastlr.potential import Potential


@pytest.fixture(scope="module")
def potential():
    return Potential(models.small_model("lr"))


def energies(potential, atoms) -> list[float]:
    """By all ways in."""
    calculated = atoms.copy() if isinstance(atoms, Atoms) else atoms
    if isinstance(atoms, Atoms):
        calculated.arrays = dict(atoms.arrays)
    calculated.calc = potential.calculator()
    again = structures.water()  # the calculator has seen another structure of these atoms before
    again.calc = potential.calculator()
    again.get_potential_energy()
    again.arrays = dict(calculated.arrays)
    return [
        potential.predict(atoms).energy,
        potential.predict([atoms, structures.water()])[0].energy,
        next(potential.iter_predict([atoms])).energy,
        calculated.get_potential_energy(),
        again.get_potential_energy(),
    ]


def having(**arrays):
    atoms = structures.water()
    atoms.arrays = atoms.arrays | arrays
    return atoms


NUMBERS, POSITIONS = structures.water().numbers, structures.water().positions


@pytest.mark.parametrize("kind", ["i1", "u1", "i4", "u8"])
def test_numbers_of_any_width(kind, potential):
    expected = potential.predict(structures.water()).energy
    np.testing.assert_allclose(energies(potential, having(numbers=NUMBERS.astype(kind))), expected, rtol=1e-12)


ODD_POSITIONS = {
    "float32": POSITIONS.astype("f4"),
    "whole numbers": np.round(3 * POSITIONS).astype(int),
    "by columns": np.asfortranarray(POSITIONS),
    "every other row": np.repeat(POSITIONS, 2, axis=0)[::2],
    "masked nowhere": np.ma.masked_array(POSITIONS),
}


@pytest.mark.parametrize("name", ODD_POSITIONS)
def test_positions_of_any_make(name, potential):
    plain = structures.water()
    plain.positions = np.array(ODD_POSITIONS[name], np.float64)
    expected = potential.predict(plain).energy
    np.testing.assert_allclose(energies(potential, having(positions=ODD_POSITIONS[name])), expected, rtol=1e-10)


REFUSED = {
    "number of no element": (having(numbers=np.array([8, 119, 1])), "atom 1 has the atomic number 119"),
    "negative number": (having(numbers=np.array([8, -1, 1])), "atom 1 has the atomic number -1"),
    "no element": (having(numbers=np.array([0, 1, 1])), r"element X \(atom 0\) is unknown"),
    "numbers that are floats": (having(numbers=NUMBERS.astype(float)), "must be whole numbers, got float64"),
    "complex positions": (having(positions=POSITIONS + 0j), "positions must be three numbers .* got complex128"),
    "objects": (having(positions=POSITIONS.astype(object)), "got object of shape"),
    "masked": (having(positions=np.ma.masked_array(POSITIONS, mask=POSITIONS > 0)), "positions must be three numbers"),
    "too few": (having(positions=POSITIONS[:2]), r"got float64 of shape \(2, 3\)"),
    "flat": (having(positions=POSITIONS[:, :2]), r"got float64 of shape \(3, 2\)"),
    "nan": (having(positions=np.where([[0], [1], [0]], np.nan, POSITIONS)), "position of atom 1 is not finite"),
    "far away": (having(positions=POSITIONS + np.array([[0.0], [0.0], [3e9]])), r"atom 2 is at \[.*\], over 1e\+09 Å"),
    "beyond all squares": (having(positions=POSITIONS + 1e200), r"over 1e\+09 Å"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_every_way_in(name, potential):
    atoms, message = REFUSED[name]
    calculated, stepped = having(**atoms.arrays), structures.water()
    calculated.calc = potential.calculator()
    stepped.calc = potential.calculator()
    stepped.positions += 0.01
    stepped.get_potential_energy()
    stepped.arrays = dict(atoms.arrays)
    ways = [
        lambda: potential.predict(atoms),
        lambda: potential.predict([atoms, structures.water()]),
        lambda: list(potential.iter_predict([atoms])),
        lambda: potential.graph(atoms),
        calculated.get_potential_energy,
        *([] if "floats" in name else [stepped.get_potential_energy]),  # the same elements as in the step before
    ]
    for way in ways:
        with pytest.raises(InputError, match=r"structure 0 \(.*\): .*" + message) as caught:
            way()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("vectors", [[1e300, 6, 6], [np.inf, 6, 6], [np.nan, 6, 6], [6, 6, 1e-5]])
def test_cells_that_are_none(vectors, potential):
    atoms = structures.water()
    atoms.set_cell(vectors)
    atoms.pbc = True
    with pytest.raises(InputError, match=r"the cell|cell vector 2 is zero"):
        potential.predict(atoms)


def test_a_cell_too_skewed_is_told_how_to_be_reduced(potential):
    atoms = structures.water()
    atoms.set_cell([[6, 0, 0], [60, 6, 0], [600, 0, 6]])
    atoms.pbc = True
    with pytest.raises(InputError, match=r"so skewed .* \(ase.geometry.minkowski_reduce"):
        potential.predict(atoms)


@pytest.mark.parametrize("value", ["x.xyz", None, 3, [None], ["x.xyz"], structures.water()[0], [structures.water()[0]]])
def test_what_is_no_structure(value, potential):
    for way in (potential.predict, potential.graph, lambda v: list(potential.iter_predict(v))):
        with pytest.raises(InputError, match=r"structures must be ASE Atoms, one or a list, got"):
            way(value)
    with pytest.raises(InputError, match="structures must be ASE Atoms"):
        potential.single_graph(value)


def test_any_series_of_structures(potential, tmp_path):
    atoms = [structures.water(), structures.salt()]
    expected = [p.energy for p in potential.predict(atoms)]
    with ase.io.Trajectory(tmp_path / "t.traj", "w") as writer:
        for each in atoms:
            writer.write(each)
    for series in (tuple(atoms), (a for a in atoms), ase.io.Trajectory(tmp_path / "t.traj")):
        assert [p.energy for p in potential.predict(series)] == expected
    assert potential.predict([]) == potential.predict(()) == []


@pytest.mark.parametrize("charge", ["1", b"1", {}, object(), True, 1j, np.bool_(True), "abc", iter([0]), [[0]]])
def test_charges_that_are_none(charge, potential):
    with pytest.raises(InputError, match=r"structure 0 \(H2O\): the charge must be a finite number, got"):
        potential.predict(structures.water(), charge)


def test_names_of_structures_are_short():
    assert re.fullmatch(r"structure 3 \(3 atoms\)", str(StructureName(having(numbers=np.array([8, 200, 1])), 3)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_atoms_in_a_periodic_cell(dtype):
    """Alone, and beside others."""
    served, nothing = Potential(models.small_model("lr", dtype=dtype)), Atoms(cell=[5, 5, 5], pbc=True)
    for prediction in (served.predict(nothing), served.predict([nothing, structures.salt()])[0]):
        assert prediction.energy == 0.0
        assert prediction.forces.shape == (0, 3)
