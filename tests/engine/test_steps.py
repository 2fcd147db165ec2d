"""Steps along a path: what is carried on from one to the next must change nothing but the time it takes."""

import gc
import time
from threading import Thread

import numpy as np
import pytest
from ase.build import bulk
from fastlr.kernels.charge_solver import solvers
from fastlr.kernels.charge_solver.memory import Memory
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


@pytest.fixture
def iterated(monkeypatch):
    """A potential that finds all charges by iteration, so that steps carry them on."""
    monkeypatch.setattr(solvers, "LARGEST_DENSE", 4)
    return Potential(small_model("lr"))


def require_right(steps: Steps, potential: Potential, atoms, charge: float | None = None) -> None:
    found, expected = steps.predict(atoms, charge), potential.predict(atoms, charge)
    assert found.energy == pytest.approx(expected.energy, abs=1e-8)
    np.testing.assert_allclose(found.forces, expected.forces, atol=1e-7)
    np.testing.assert_allclose(found.charges, expected.charges, atol=1e-7)
    assert (found.charge_solution is None) == (expected.charge_solution is None)


def test_no_jump_is_answered_with_what_was_before(iterated, rng):
    """Neither lists nor charges of another structure of the same size, order, cell, charge or periodicity."""
    steps, salt = Steps(iterated), structures.salt()
    for atoms in path(salt, rng, 6, 0.02):
        require_right(steps, iterated, atoms)
    others = [salt[::-1], salt[rng.permutation(len(salt))], salt.copy(), salt.copy(), salt.copy(), salt.copy()]
    others[2].set_cell(1.3 * salt.cell.array, scale_atoms=True)
    others[3].symbols[0] = "O"
    others[4].pbc = False
    others[5].rattle(0.3, seed=1)
    for other in others:
        require_right(steps, iterated, other)
        require_right(steps, iterated, salt)
        require_right(steps, iterated, other, 5.0)
        require_right(steps, iterated, salt, -5.0)


def interrupt(monkeypatch, steps, atoms):
    """A step that is interrupted between its two solves, when it has learnt from the first."""
    keep = Memory.keep

    def interrupted(self, key, *others):
        keep(self, key, *others)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Memory, "keep", interrupted)
        steps.predict(atoms)


def test_a_step_that_fails_leaves_nothing_behind(iterated, rng, monkeypatch):
    """Positions that are not numbers, a model that fails between its two solves, an interrupt: the next is the same."""
    walk = list(path(structures.salt(), rng, 8, 0.02))
    steps, other = Steps(iterated), Steps(iterated)
    for atoms in walk[:6]:
        steps.predict(atoms), other.predict(atoms)
    bad = walk[6].copy()
    bad.positions[0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        steps.predict(bad)
    interrupt(monkeypatch, steps, walk[6])
    for atoms in walk[6:]:
        one, same = steps.predict(atoms), other.predict(atoms)
        # a list that was made anew adds up in another order
        assert one.energy == pytest.approx(same.energy, abs=1e-11)
        assert one.charge_solution.iterations == same.charge_solution.iterations


def test_a_failed_step_undoes_what_it_learnt(iterated, rng, monkeypatch):
    walk = list(path(structures.salt(), rng, 4, 0.02))
    steps = Steps(iterated)
    for atoms in walk[:3]:
        steps.predict(atoms)
    before = steps.state()
    interrupt(monkeypatch, steps, walk[3])
    after = steps.state()
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


@pytest.mark.parametrize("at_potential", [False, True])
def test_the_last_step_can_be_repeated(iterated, rng, at_potential):
    """To the last bit, from what it went on from."""
    start = structures.salt()
    if at_potential:
        start.pbc = False
        start.info["chemical_potential"] = 0.1
    walk = list(path(start, rng, 9, 0.02))
    steps, other = Steps(iterated), Steps(iterated)
    for atoms in walk[:5]:
        last = steps.predict(atoms)
    other.restore(walk[4], steps.state(repeated=True))
    again = other.predict(walk[4])
    assert again.energy == last.energy and (again.forces == last.forces).all()
    for atoms in walk[5:]:
        one, same = steps.predict(atoms), other.predict(atoms)
        assert one.energy == same.energy and (one.forces == same.forces).all()


def test_the_order_of_many_atoms_is_that_of_the_list(rng, monkeypatch):
    """Wherever they are when a plan is bound to the list, as after a resumption, or after another structure's turn."""
    potential = Potential(small_model("nequip"))
    monkeypatch.setattr("fastlr.engine.edge_list.UNSORTED", 4)
    start = structures.salt().repeat(2)
    first, second = path(start, rng, 2, 0.2)
    steps, other = Steps(potential, skin=4.0), Steps(potential, skin=4.0)
    for one in (steps, other):
        one.graph(start)
    steps.predict(first)
    expected = steps.predict(second)
    found = other.predict(second)
    assert (found.forces == expected.forces).all() and found.energy == expected.energy


@pytest.mark.parametrize("make", [structures.salt, structures.slab, structures.skewed_cell, structures.one_atom_cell])
@pytest.mark.parametrize("far", [100, 10**6])
def test_atoms_may_lie_any_number_of_cells_away(potential, make, far, rng):
    """One by one, in a list, and step by step."""
    atoms = make()
    expected, steps = potential.predict(atoms), Steps(potential)
    away = atoms.copy()
    away.positions += (rng.integers(-far, far + 1, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array
    digits = 1e3 * np.spacing(np.abs(away.positions).max())
    moved, moved_away = atoms.copy(), away.copy()
    shifts = rng.normal(scale=0.05, size=(len(atoms), 3))
    moved.positions += shifts
    moved_away.positions += shifts
    for found, wanted in (
        (potential.predict(away), expected),
        (potential.predict([structures.water(), away])[1], expected),
        (steps.predict(away), expected),
        (steps.predict(moved_away), potential.predict(moved)),
    ):
        assert found.energy == pytest.approx(wanted.energy, abs=1e-9 + digits)
        np.testing.assert_allclose(found.forces, wanted.forces, atol=1e-9 + digits)
        np.testing.assert_allclose(found.charges, wanted.charges, atol=1e-9 + digits)
        for name in ("stress", "polarisation"):
            if getattr(wanted, name) is not None:
                np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-9 + digits)
    assert steps.rebuilds == 1


def test_positions_without_digits_are_refused(potential):
    for atoms in (structures.water(), structures.salt(), structures.water_cluster()):
        atoms.positions[1] += 1e13
        for given in (atoms, [atoms, structures.water()]):
            with pytest.raises(InputError, match=r"atom 1 is at .* from the origin"):
                potential.predict(given)


def test_an_atom_that_has_flown_away_costs_no_more(rng):
    """A molecule of more atoms than have all distances computed, and a slab: lists of boxes take seconds, or crash."""
    potential = Potential(small_model("nequip"))
    molecule = structures.salt().repeat(3)
    for pbc in (False, (True, True, False), (False, False, True)):
        molecule.pbc = pbc
        alone, apart = molecule[1:], molecule.copy()
        away = np.array([1.0, -1.0, 1.0]) * ~molecule.pbc
        apart.positions[0] += 1e6 * away
        far = potential.predict(molecule[:1]).energy
        assert potential.predict(apart).energy == pytest.approx(potential.predict(alone).energy + far, abs=1e-8)
    charged = structures.slab()
    charged.positions[0] += 1e8 * ~charged.pbc
    with pytest.raises(InputError, match="along its normal"):
        Potential(small_model("lr")).predict(charged)


def test_threads_take_turns(iterated, monkeypatch):
    """And each gets the answer to its own question."""
    steps, questions = Steps(iterated), [structures.salt(), structures.salt().repeat((2, 1, 1)), structures.water()]
    expected, wrong, inside = [iterated.predict(atoms).energy for atoms in questions], [], []
    evaluate = iterated.evaluate

    def evaluate_alone(*arguments, **options):
        inside.append(1)
        time.sleep(1e-3)
        wrong.extend(inside[1:])
        found = evaluate(*arguments, **options)
        inside.pop()
        return found

    monkeypatch.setattr(iterated, "evaluate", evaluate_alone)

    def ask(k):
        for _ in range(3):
            energy = steps.predict(questions[k]).energy
            if abs(energy - expected[k]) > 1e-7:
                wrong.append((k, energy))

    threads = [Thread(target=ask, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and steps.evaluations == 9


def test_reports_are_of_this_step_only(potential):
    """A cell whose charges are iterated, and then the same atoms as a molecule, whose charges are not."""
    steps, atoms = Steps(potential), structures.salt()
    assert steps.predict(atoms).charge_solution is not None
    atoms.pbc = False
    assert potential.predict(atoms).charge_solution is None
    assert steps.predict(atoms).charge_solution is None


def test_another_backend_gets_a_list_of_its_own():
    potential = Potential(small_model("lr"))
    steps, atoms = Steps(potential), structures.salt()
    steps.predict(atoms)
    potential.use("reference")
    steps.predict(atoms)
    assert steps.rebuilds == 2
