"""Steps along a path: what is carried on from one to the next must change nothing but the time it takes."""

import gc

import numpy as np
import pytest
from ase.build import bulk
from fastlr.kernels.charge_solver import solvers
from reference import structures
from reference.models import small_model

from fastlr import Potential
from fastlr.engine.steps import Steps
from fastlr.errors import InputError

MAKERS = {"molecule": structures.water_cluster, "cell": structures.salt, "slab": structures.slab,
          "skewed cell": structures.skewed_cell}  # fmt: skip


@pytest.fixture(scope="module")
def potential():
    return Potential(small_model("lr"))


def path(atoms, rng, count: int, size: float = 0.05):
    """Configurations of a random walk."""
    for _ in range(count):
        atoms = atoms.copy()
        atoms.positions += rng.normal(scale=size, size=atoms.positions.shape)
        yield atoms


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("name", ["lr", "nequip"])
def test_predictions_are_those_of_each_structure_alone(make, name, rng):
    potential = Potential(small_model(name))
    steps = Steps(potential, skin=0.5)
    for atoms in path(make(), rng, 12):
        found, expected = steps.predict(atoms), potential.predict(atoms)
        assert found.energy == pytest.approx(expected.energy, abs=1e-9)
        np.testing.assert_allclose(found.forces, expected.forces, atol=1e-8)
        if found.stress is not None:
            np.testing.assert_allclose(found.stress, expected.stress, atol=1e-9)
    assert 1 < steps.rebuilds < steps.evaluations == 12


def test_edges_are_those_of_a_new_list(rng):
    """Pairs come within the cutoff without a new list. A plan leaves longer edges out itself."""
    potential = Potential(small_model("lr"), backend="reference")
    steps, counts = Steps(potential, skin=2.0), set()
    for atoms in path(structures.salt(), rng, 8, 0.1):
        graph, expected = steps.graph(atoms), potential.graph(atoms)
        for key in ("edge_index", "edge_shift", "row_ptr", "reverse_edge"):
            assert (getattr(graph, key) == getattr(expected, key)).all()
        counts.add(graph.num_edges)
    assert steps.rebuilds == 1
    assert len(counts) > 1


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_step_leaves_nothing_behind(make, potential, rng):
    """Neither objects that are kept, nor any that only the garbage collector frees, which would pause for them."""
    steps, atoms = Steps(potential, skin=2.0), make()

    def walk() -> None:
        for moved in path(atoms, rng, 20, 0.0):
            steps.predict(moved)

    walk()
    gc.collect()
    before = len(gc.get_objects())
    gc.disable()
    try:
        walk()
        collected = gc.collect()
    finally:
        gc.enable()
    assert collected == 0 or make is structures.slab  # whose charges take autograd
    assert len(gc.get_objects()) < before + 10


def test_whatever_else_changes_is_seen(potential):
    steps, atoms = Steps(potential), structures.salt()
    atoms.info["charge"] = 1

    def agree():
        np.testing.assert_allclose(steps.predict(atoms).charges, potential.predict(atoms).charges, atol=1e-10)
        return steps.rebuilds

    assert agree() == 1
    atoms.info["charge"] = 0
    assert agree() == 1
    atoms.set_array("external_potential", np.linspace(0.0, 1.0, 8))
    assert agree() == 2
    atoms.arrays["external_potential"][3] = 2.0
    assert agree() == 2
    atoms.set_cell(atoms.cell.array * 1.01)
    assert agree() == 3
    atoms.pbc = (True, True, False)
    assert agree() == 4
    atoms.numbers[0] = 8
    assert agree() == 5
    atoms = structures.water()
    assert agree() == 6


def test_bad_positions_are_refused_between_rebuilds(potential):
    steps, atoms = Steps(potential, skin=8.0), structures.salt()
    steps.predict(atoms)
    atoms.positions[3] = atoms.positions[2] + [0.0, 0.0, 0.05]
    with pytest.raises(InputError, match=r"atoms 2 and 3 overlap, 0\.05 Å apart"):
        steps.predict(atoms)
    atoms.positions[3] = np.nan
    with pytest.raises(InputError, match="position of atom 3 is not finite"):
        steps.predict(atoms)


def test_iterations_start_from_earlier_charges(monkeypatch, rng):
    """On a smooth path, each solve needs fewer iterations than from nothing, charges and adjoint alike."""
    potential = Potential(small_model("lr"))
    monkeypatch.setattr(solvers, "LARGEST_DENSE", 10)
    steps, start = Steps(potential), bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((2, 1, 1))
    (velocity, phase), warm, adjoint, alone = rng.normal(size=(2, 16, 3)), [], [], []
    for step in range(8):
        atoms = start.copy()
        atoms.positions += 0.2 * np.sin(0.02 * step * velocity + phase)
        found, cold = steps.predict(atoms), potential.predict(atoms)
        np.testing.assert_allclose(found.forces, cold.forces, atol=1e-7)
        assert found.charge_solution.unfinished <= 1e-9
        alone.append(cold.charge_solution.iterations)
        warm.append(found.charge_solution.iterations)
        adjoint.append(steps.memory.reports[0, 1].iterations)
    assert warm[0] == alone[0]
    assert max(warm[5:]) < min(alone) / 2
    assert max(adjoint[5:]) < adjoint[0] / 2


def test_state_brings_back_the_same_bits(monkeypatch, rng):
    potential = Potential(small_model("lr"))
    monkeypatch.setattr(solvers, "LARGEST_DENSE", 4)
    walk = list(path(structures.salt(), rng, 9, 0.03))
    steps = Steps(potential)
    for atoms in walk[:5]:
        steps.predict(atoms)
    state = steps.state()
    other = Steps(potential)
    other.restore(walk[5], state)
    for atoms in walk[5:]:
        one, same = steps.predict(atoms), other.predict(atoms)
        assert one.energy == same.energy
        assert (one.forces == same.forces).all()


def test_state_of_nothing(potential):
    steps = Steps(potential)
    steps.restore(structures.water(), steps.state())
    assert steps.predict(structures.water()).energy == potential.predict(structures.water()).energy
