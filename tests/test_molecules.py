"""Small molecules made ready together are the same batch as each by itself."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from reference.models import small_model

from fastlr.errors import InputError
from fastlr.graph import CoulombSettings, Graph
from fastlr.molecules import TOGETHER, molecules_graph, runs
from fastlr.potential import Potential

SPECIES = ["H", "C", "O"]


def some_molecules(count: int) -> list[Atoms]:
    made = [molecule(("CH3OH", "H2O", "C6H6", "H2", "O")[k % 5]) for k in range(count)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.05, seed=seed)
    return made


@pytest.mark.parametrize("coulomb", [None, CoulombSettings((0.3, 0.7, 0.6))], ids=["short range", "charges"])
@pytest.mark.parametrize("r_max", [0.5, 1.6, 4.0])
def test_the_same_batch(r_max, coulomb):
    structures = some_molecules(11)
    structures[2].info["charge"] = 1
    defaults = [None, -2.0] * 5 + [None]
    singles = [
        Graph.single(atoms, SPECIES, r_max, coulomb, charge, k)
        for k, (atoms, charge) in enumerate(zip(structures, defaults, strict=True))
    ]
    found, expected = molecules_graph(structures, SPECIES, r_max, coulomb, defaults, 0), Graph.batch_of(singles)
    for field in fields(Graph):
        value, reference = (getattr(graph, field.name) for graph in (found, expected))
        if isinstance(reference, torch.Tensor):
            assert value.dtype == reference.dtype, field.name
            assert torch.equal(value, reference), field.name
        elif field.name == "coulomb" and coulomb is not None:
            for name, a, b in zip(reference._fields, value, reference, strict=True):
                assert a.dtype == b.dtype, name
                assert torch.equal(a, b), name
        else:
            assert value is reference is None, field.name


def test_runs():
    """Cells, large molecules, those with conditions and empty ones stand alone; no run is too long."""
    small, large = some_molecules(3), Atoms("H80", positions=np.arange(240.0).reshape(80, 3))
    field = molecule("H2O")
    field.info["electric_field"] = [0.0, 0.0, 0.1]
    structures = [*small, bulk("C"), *small, large, small[0], field, Atoms(), small[1]]
    assert [list(some) for some in runs(structures)] == [[0, 1, 2], [3], [4, 5, 6], [7], [8], [9], [10], [11]]
    many = [small[0]] * (2 * TOGETHER + 1)
    assert [len(some) for some in runs(many)] == [TOGETHER, TOGETHER, 1]
    assert list(runs([])) == []


@pytest.mark.parametrize("name", ["nequip", "lr"])
def test_predictions(name):
    """Of a list with everything in it; each as if it were alone, and with a budget that lets few together."""
    potential = Potential(small_model(name), backend="cpu")
    symbols = potential.species
    structures = []
    for k in range(7):
        atoms = Atoms([symbols[k % len(symbols)], symbols[0], symbols[-1]], positions=np.eye(3) * (1.2 + 0.1 * k))
        structures.append(atoms)
    structures.insert(3, Atoms(symbols[:1] * 2, positions=[[0, 0, 0], [0, 0, 1.4]], cell=np.eye(3) * 5.0, pbc=True))
    alone = [potential.predict(atoms) for atoms in structures]
    enough = potential.memory_budget
    for budget in (enough, 9 * 2**20):
        potential.memory_budget = budget
        for found, expected in zip(potential.predict(structures), alone, strict=True):
            assert found.energy == pytest.approx(expected.energy, abs=1e-6)
            np.testing.assert_allclose(found.forces, expected.forces, atol=1e-5)
            assert (found.stress is None) == (expected.stress is None)
            assert (found.dipole is None) == (expected.dipole is None)


def test_errors_name_the_structure():
    potential, good = Potential(small_model("nequip"), backend="cpu"), None
    good = Atoms(potential.species[:1] * 2, positions=[[0, 0, 0], [0, 0, 1.0]])
    for change, message in (
        (lambda atoms: atoms.positions.__setitem__((1, 2), 1e-3), "overlap|apart|Å"),
        (lambda atoms: atoms.positions.__setitem__((1, 2), np.nan), "position of atom 1 is not finite"),
        (lambda atoms: atoms.numbers.__setitem__(1, 79), "element Au .atom 1. is unknown"),
        (lambda atoms: atoms.info.__setitem__("charge", "much"), "charge must be a finite number"),
    ):
        bad = good.copy()
        change(bad)
        with pytest.raises(InputError, match=message) as error:
            potential.predict([good, good, bad, good])
        assert "structure 2" in str(error.value)
