"""Derivatives by the total charge and by a field, and total charges that are found at a given potential."""

import warnings

import numpy as np
import pytest
import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from reference import structures
from reference.models import LR_MODELS, small_model

from fastlr import Potential
from fastlr.engine import fixed_potential
from fastlr.engine.parts import evaluate_in_parts
from fastlr.engine.steps import Steps
from fastlr.errors import InputError
from fastlr.interop.ase import FastlrCalculator
from fastlr.models.pieces import Pieces
from fastlr.simulation.prediction import predict_structures

MU = -0.3  # eV/e


@pytest.fixture(scope="module", params=LR_MODELS)
def potential(request):
    return Potential(small_model(request.param))


@pytest.fixture(scope="module")
def lr():
    return Potential(small_model("lr"))


def at_potential(make=structures.salt, mu: float = MU):
    atoms = make()
    atoms.info.pop("charge", None)
    atoms.info["chemical_potential"] = mu
    return atoms


def slope(function, step: float = 1e-3) -> float:
    """By central differences of fourth order."""
    values = [function(k * step) for k in (-2, -1, 1, 2)]
    return (values[0] - 8.0 * values[1] + 8.0 * values[2] - values[3]) / (12.0 * step)


def normal_of(atoms) -> np.ndarray:
    normal = np.cross(*atoms.cell.array[atoms.pbc])
    return normal / np.linalg.norm(normal)


@pytest.mark.parametrize("make", [structures.water_cluster, structures.salt, structures.slab, structures.isolated_atom])
def test_potential_is_the_derivative_by_charge(make, potential):
    atoms = make()
    atoms.info.pop("charge", None)
    expected = slope(lambda q: potential.predict(atoms, charge=0.4 + q).energy)
    found = potential.predict(atoms, charge=0.4)
    assert found.potential == pytest.approx(expected, abs=1e-8)
    assert found.total_charge == pytest.approx(0.4)
    assert found.grand_energy is None


@pytest.mark.parametrize("make", [structures.water_cluster, structures.slab])
def test_polarisation_is_the_derivative_by_field(make, potential):
    atoms = make()
    directions = np.eye(3) if not atoms.pbc.any() else normal_of(atoms)[None]
    found = potential.predict(atoms).polarisation
    for direction in directions:

        def energy(field, direction=direction):
            there = make()
            there.info["electric_field"] = field * direction
            return potential.predict(there).energy

        assert found @ direction == pytest.approx(-slope(energy), abs=1e-8)
    if atoms.pbc.any():
        np.testing.assert_allclose(np.cross(found, directions[0]), 0.0, atol=1e-12)


def test_polarisation_is_no_dipole(lr):
    """Charges enter the short-range energy, whose change with the field the dipole does not know."""
    found = lr.predict(structures.water_cluster())
    assert np.abs(found.polarisation - found.dipole).max() > 1e-3


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_all_backends_and_batches_agree(backend):
    """Also part by part, and beside structures with fragments, whose charge is not one number."""
    expected = Potential(small_model("lr"), backend="reference")
    potential = Potential(small_model("lr"), backend=backend)
    pair = structures.water_cluster()[:6]
    pair.set_array("fragment", np.array([0, 0, 0, 1, 1, 1]))
    pair.info = {"fragment_charge": [0.5, -0.2]}
    several = [structures.water(), pair, structures.slab(), structures.salt(), at_potential(), structures.empty()]
    for one, found in zip(several, potential.predict(several), strict=True):
        alone = expected.predict(one)
        for name in ("potential", "total_charge", "grand_energy"):
            value, wanted = getattr(found, name), getattr(alone, name)
            assert (value is None) == (wanted is None)
            assert value is None or value == pytest.approx(wanted, abs=1e-6)
        assert (found.polarisation is None) == (alone.polarisation is None)
        if found.polarisation is not None:
            np.testing.assert_allclose(found.polarisation, alone.polarisation, atol=1e-9)
    assert potential.predict(pair).potential is None
    assert potential.predict(structures.salt()).polarisation is None
    graph, fits = potential.graph(structures.salt()), iter([False])
    pieces = potential.plan or Pieces(potential.model)
    found = evaluate_in_parts(pieces, graph, lambda part: next(fits, True), forces=True)
    assert float(found["potential"]) == pytest.approx(potential.predict(structures.salt()).potential, abs=1e-9)
    assert bool(found["polarisation"].isnan().all())


def test_without_forces_and_without_charges(lr):
    found = lr.predict(structures.water(), forces=False)
    assert found.potential is None
    assert found.polarisation is None
    short = Potential(small_model("nequip")).predict(structures.water())
    assert short.potential is None
    assert short.total_charge is None


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("make", [structures.water, structures.salt, structures.water_cluster])
def test_the_potential_is_that_of_the_energy(make, dtype):
    potential = Potential(small_model("lr", dtype=dtype))
    found = potential.predict(at_potential(make))
    assert found.potential == pytest.approx(MU, abs=1e-6)
    assert found.charges.sum() == pytest.approx(found.total_charge, abs=1e-6)
    assert found.grand_energy == pytest.approx(found.energy - MU * found.total_charge)
    plain = make()
    plain.info.pop("charge", None)
    again = potential.predict(plain, charge=found.total_charge)
    assert again.energy == pytest.approx(found.energy, abs=1e-5)
    np.testing.assert_allclose(again.forces, found.forces, atol=1e-5)
    without = potential.predict(at_potential(make), forces=False)
    assert without.forces is None
    assert without.energy == pytest.approx(found.energy, abs=1e-5)


def test_it_is_a_minimum(lr):
    found = lr.predict(at_potential())
    for change in (-0.05, 0.05):
        other = lr.predict(structures.salt(), charge=found.total_charge + change)
        assert other.energy - MU * other.total_charge > found.grand_energy


@pytest.mark.parametrize("make", [structures.water_cluster, structures.skewed_cell])
def test_forces_are_those_of_the_grand_energy(make, lr, rng):
    atoms = at_potential(make)
    found = lr.predict(atoms)
    direction = rng.normal(size=found.forces.shape)

    def grand(step):
        moved = atoms.copy()
        moved.positions += step * direction
        return lr.predict(moved).grand_energy

    assert -np.sum(found.forces * direction) == pytest.approx(slope(grand), rel=1e-6, abs=1e-6)
    if found.stress is None:
        return

    def strained(step):
        deformed = atoms.copy()
        deformed.set_cell(atoms.cell.array @ np.diag([1.0 + step, 1.0, 1.0]), scale_atoms=True)
        return lr.predict(deformed).grand_energy

    assert found.stress[0, 0] * atoms.get_volume() == pytest.approx(slope(strained), rel=1e-5, abs=1e-6)


def test_ase_means_the_grand_energy(lr):
    atoms = at_potential()
    atoms.calc = FastlrCalculator(lr)
    energy = atoms.get_potential_energy()
    assert energy == pytest.approx(atoms.calc.prediction.grand_energy)
    assert energy != pytest.approx(atoms.calc.prediction.energy, abs=1e-3)
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, rel=1e-12)
    atoms.info["chemical_potential"] = MU + 0.1
    assert atoms.get_potential_energy() != energy


def test_dynamics_conserve_the_grand_energy(lr, monkeypatch):
    """And take few evaluations a step, since each starts from the last charge and slope."""
    count, original = [], fixed_potential._Search.is_done
    monkeypatch.setattr(fixed_potential._Search, "is_done", lambda self, p: count.append(1) or original(self, p))
    atoms = at_potential(structures.water_cluster)
    atoms.calc = FastlrCalculator(lr)
    energies, evaluations = [], []
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
    for _ in range(25):
        count.clear()
        dynamics.run(1)
        energies.append(atoms.get_potential_energy() + atoms.get_kinetic_energy())
        evaluations.append(len(count))
    assert atoms.get_kinetic_energy() > 5e-4
    assert np.ptp(energies) < 0.02 * atoms.get_kinetic_energy()
    assert np.mean(evaluations[3:]) <= 3.0


def test_steps_go_on_from_their_state(lr):
    atoms, steps = at_potential(), Steps(lr)
    steps.predict(atoms)
    state = steps.state()
    moved = atoms.copy()
    moved.positions[0] += 0.02
    expected = steps.predict(moved)
    again = Steps(lr)
    again.restore(moved, state)
    found = again.predict(moved)
    assert found.total_charge == expected.total_charge
    np.testing.assert_array_equal(found.forces, expected.forces)


def test_no_charge_is_an_error(lr):
    with pytest.raises(InputError, match="chemical potential of 900 eV/e cannot be held: no total charge within 2 e"):
        lr.predict(at_potential(structures.salt, 900.0))
    with pytest.raises(InputError, match=r"no minimum there, for d\^2E/dQ\^2 is -.*nothing compensates the"):
        lr.predict(at_potential(structures.slab))


def test_large_charges_are_told(lr):
    with pytest.warns(UserWarning, match=r"structure 0 \(Cl4Na4\): its chemical potential leads to a total charge of"):
        found = lr.predict(at_potential(structures.salt, 2.2))
    assert found.total_charge > 4.0
    many = structures.salt() * (4, 4, 2)
    many.info["chemical_potential"] = lr.predict(many).potential + 0.3
    with pytest.warns(UserWarning, match=r"a total charge of \+\S* e on 256 atoms; models .* on more than 12.8 e"):
        found = lr.predict(many)
    assert 12.8 < found.total_charge < 0.5 * len(many)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lr.predict(at_potential())


def test_files_say_what_was_found(lr):
    (frame,) = predict_structures(lr, [at_potential()])
    expected = lr.predict(at_potential())
    assert frame.info["found_charge"] == pytest.approx(expected.total_charge)
    assert "charge" not in frame.info
    assert lr.predict(frame).energy == pytest.approx(expected.energy)  # it can be read again


def test_models_alone_refuse(lr):
    with pytest.raises(InputError, match="a chemical potential is given where a total charge is needed"):
        lr.model(lr.graph(at_potential()))


def test_an_empty_structure_has_no_charge(lr):
    assert lr.predict(at_potential(structures.empty)).total_charge == 0.0
    assert torch.isfinite(torch.tensor(lr.predict(at_potential(structures.isolated_atom)).total_charge))
