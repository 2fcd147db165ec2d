"""Fields, potentials and charges of fragments: from a structure to energies and forces."""

import numpy as np
import pytest
from reference import structures
from reference.models import small_model

from fastlr import Potential
from fastlr.errors import InputError
from fastlr.interop.ase import FastlrCalculator


@pytest.fixture(scope="module")
def potential():
    return Potential(small_model("lr-gaussian-no-site"))


def two_waters():
    """Two molecules, one fragment each, numbered as a user might."""
    atoms = structures.water_cluster()[:6]
    atoms.set_array("fragment", np.array([7, 7, 7, 3, 3, 3]))
    atoms.info = {"fragment_charge": {7: 0.5, 3: -0.2}}
    return atoms


def in_field():
    atoms = structures.water_cluster()
    atoms.info["electric_field"] = [0.3, -0.2, 0.5]
    return atoms


def slab_in_field():
    atoms = structures.slab()
    normal = np.cross(*atoms.cell.array[[0, 2]])
    atoms.info["electric_field"] = 0.4 * normal / np.linalg.norm(normal)
    return atoms


def in_potential():
    atoms = structures.salt()
    atoms.set_array("external_potential", np.linspace(-0.5, 0.4, 8))
    return atoms


STATED = [two_waters, in_field, slab_in_field, in_potential]


@pytest.mark.parametrize("make", STATED)
def test_forces_are_derivatives(make, potential, rng):
    atoms = make()
    forces = potential.predict(atoms).forces
    direction = rng.normal(size=forces.shape)
    energies = []
    for step in (1e-4, -1e-4):
        moved = atoms.copy()
        moved.positions += step * direction
        energies.append(potential.predict(moved).energy)
    assert -np.sum(forces * direction) == pytest.approx((energies[0] - energies[1]) / 2e-4, rel=1e-6)


def test_all_in_one_batch(potential):
    atoms = [structures.water(), *(make() for make in STATED), structures.salt(), structures.empty()]
    for one, prediction in zip(atoms, potential.predict(atoms), strict=True):
        alone = potential.predict(one)
        np.testing.assert_allclose(prediction.charges, alone.charges, atol=1e-12)
        np.testing.assert_allclose(prediction.forces, alone.forces, atol=1e-11)
        assert prediction.energy == pytest.approx(alone.energy, rel=1e-12)
        parts = alone.atomic_energies.sum() + alone.coulomb_energy + alone.external_energy
        assert parts == pytest.approx(alone.energy, rel=1e-12)


@pytest.mark.parametrize("make", STATED)
def test_reference_agrees(make, potential):
    atoms = make()
    expected = Potential(small_model("lr-gaussian-no-site"), backend="reference").predict(atoms)
    found = potential.predict(atoms)
    np.testing.assert_allclose(found.charges, expected.charges, atol=1e-11)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-9)


def test_charges_of_fragments(potential):
    charges = potential.predict(two_waters()).charges
    assert charges[:3].sum() == pytest.approx(0.5, abs=1e-12)
    assert charges[3:].sum() == pytest.approx(-0.2, abs=1e-12)
    as_list = two_waters()
    as_list.info["fragment_charge"] = [-0.2, 0.5]  # ascending numbers
    np.testing.assert_array_equal(potential.predict(as_list).charges, charges)


def test_energy_in_a_field(potential):
    atoms, found = in_field(), potential.predict(in_field())
    field = np.array(atoms.info["electric_field"])
    assert found.external_energy == pytest.approx(-found.dipole @ field, rel=1e-12)
    plain = structures.water_cluster()
    assert np.abs(potential.predict(plain).charges - found.charges).max() > 1e-3
    assert found.charges.sum() == pytest.approx(1.0, abs=1e-12)


def test_a_constant_potential_moves_no_charge(potential):
    atoms = structures.salt()
    before = potential.predict(atoms)
    atoms.set_array("external_potential", np.full(8, 0.8))
    atoms.info["charge"] = 0
    np.testing.assert_allclose(potential.predict(atoms).charges, before.charges, atol=1e-12)


def test_calculator_sees_changed_conditions(potential):
    atoms = in_field()
    atoms.calc = FastlrCalculator(potential)
    first = atoms.get_potential_energy()
    assert atoms.get_potential_energies().sum() == pytest.approx(first, rel=1e-12)
    atoms.info["electric_field"] = [0.0, 0.0, 0.1]
    second = atoms.get_potential_energy()
    assert second != first
    atoms.set_array("external_potential", np.linspace(0.0, 1.0, len(atoms)))
    assert atoms.get_potential_energy() != second


def fragments_at_potential():
    atoms = two_waters()
    atoms.info["chemical_potential"] = 0.1
    return atoms


def fault(key, value, make=structures.water):
    atoms = make()
    if key in ("fragment", "external_potential"):
        atoms.arrays[key] = np.asarray(value)
    else:
        atoms.info[key] = value
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (fault("electric_field", [1.0, 2.0]), "'electric_field' must be 3 numbers"),
        (fault("electric_field", "up"), "'electric_field' must be 3 numbers"),
        (fault("electric_field", [0.0, 0.0, 0.1], structures.salt), "along a periodic direction"),
        (fault("external_potential", [0.0, np.nan, 0.0]), "'external_potential' must be 3 numbers"),
        (fault("chemical_potential", np.inf), "'chemical_potential' must be a number"),
        (fault("chemical_potential", 0.1, structures.water_cluster), "choose one"),
        (fault("chemical_potential", 0.1, structures.slab), "cannot be held: its energy has no minimum there"),
        (fragments_at_potential(), "fix its total charge, which leaves none to be found at a chemical potential"),
        (fault("fragment", [0, 0, 1]), "belong together"),
        (fault("fragment_charge", [0.0]), "belong together"),
    ],
)
def test_faults_are_named(atoms, message, potential):
    with pytest.raises(InputError, match=message):
        potential.predict([structures.water(), atoms])


def test_fragments_must_fit(potential):
    atoms = two_waters()
    atoms.info["charge"] = 1
    with pytest.raises(InputError, match=r"charge is 1 e, but those of its fragments add up to 0\.3 e"):
        potential.predict(atoms)
    atoms = two_waters()
    atoms.info["fragment_charge"] = {7: 0.5}
    with pytest.raises(InputError, match="fragment 3 has either no atom or no charge"):
        potential.predict(atoms)


def test_a_model_without_charges_refuses():
    with pytest.raises(InputError, match="states 'electric_field', but this model has no charges"):
        Potential(small_model("nequip")).predict(in_field())
