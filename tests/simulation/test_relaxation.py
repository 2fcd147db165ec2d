"""Relaxation: every argument and structure is used or refused in a line."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase import constraints as C
from reference import structures
from reference.models import small_model

from fastlr import Potential
from fastlr.errors import InputError
from fastlr.simulation.relaxation import relax


@pytest.fixture(scope="module")
def potential():
    return Potential(small_model("lr"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fmax", [0, -1, np.nan, np.inf, "x", None, True]),
        ("steps", [-1, 1.5, None, "3", True, np.nan]),
        ("optimizer", ["magic", None, ["fire"], 3]),
    ],
)
def test_arguments_that_are_refused(potential, name, values):
    for value in values:
        with pytest.raises(InputError, match=f"^{name} must be"):
            relax(structures.water(), potential, **{name: value})


def test_numbers_of_any_kind(potential):
    report = relax(structures.water(), potential, steps=np.int64(1), fmax=np.float32(1e-9), charge=torch.tensor(1.0))
    assert report.steps == 1


@pytest.mark.parametrize("cell", [False, True])
def test_nothing_cannot_be_relaxed(potential, cell):
    with pytest.raises(InputError, match="nothing to move"):
        relax(Atoms(cell=[4, 4, 4], pbc=True), potential, cell=cell)


@pytest.mark.parametrize("optimizer", ["fire", "bfgs", "lbfgs"])
def test_what_cannot_move_is_relaxed(potential, optimizer):
    fixed = structures.water()
    fixed.set_constraint(C.FixAtoms([0, 1, 2]))
    for atoms in (Atoms("O"), fixed, structures.one_atom_cell()):
        start = atoms.positions.copy()
        report = relax(atoms, potential, optimizer=optimizer)
        assert report.converged and report.steps == 0 and (atoms.positions == start).all()


@pytest.mark.parametrize(
    "constraint", [C.Hookean(0, 1, rt=1.0, k=1.0), C.FixBondLengths([[0, 1]]), C.ExternalForce(0, 1, 0.1)]
)
def test_constraints_without_a_stress_hold_no_cell(potential, constraint):
    atoms = structures.salt()
    atoms.set_constraint(constraint)
    with pytest.raises(InputError, match=f"the constraint {type(constraint).__name__} has no part in the stress"):
        relax(atoms, potential, cell=True)
    relax(atoms, potential, steps=1)


def test_fixed_atoms_go_with_the_cell(potential):
    atoms = structures.salt()
    atoms.set_constraint(C.FixAtoms([0]))
    scaled = atoms.get_scaled_positions(wrap=False)[0]
    relax(atoms, potential, cell=True, steps=3, fmax=1e-9)
    assert abs(atoms.get_volume() / structures.salt().get_volume() - 1.0) > 1e-6
    np.testing.assert_allclose(atoms.get_scaled_positions(wrap=False)[0], scaled, atol=1e-12)


def test_at_a_chemical_potential_the_grand_energy_falls(potential):
    atoms = structures.water_cluster()
    atoms.info = {"chemical_potential": 0.1}
    before = potential.predict(atoms).grand_energy
    assert relax(atoms, potential, steps=5).energy < before
    assert atoms.get_potential_energy() == pytest.approx(potential.predict(atoms).grand_energy, abs=1e-6)
