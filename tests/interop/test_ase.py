"""The ASE calculator: what it promises, what it caches, and that it works inside ASE's own machinery."""

import copy
import pickle
from threading import Thread

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE

from fastlr import Potential
from fastlr.errors import InputError
from fastlr.interop.ase import FastlrCalculator
from fastlr.models import build_model, parse_config

CONFIG = {
    "species": ["H", "O", "Na", "Cl"],
    "dtype": "float64",
    "r_max": 3.5,
    "num_features": 4,
    "l_max": 1,
    "radial_width": 8,
    "num_layers": 1,
    "avg_num_neighbors": 4.0,
}
CHARGED = {"electronegativity_shifts": {"H": -2.0, "O": 2.0, "Na": -3.0, "Cl": 3.0}, "gaussian_widths": 0.7}


def tiny_potential(kind: str) -> Potential:
    torch.manual_seed(1)
    return Potential(build_model(parse_config({**CONFIG, **(CHARGED if kind == "nequip-lr" else {}), "kind": kind})))


@pytest.fixture(scope="module")
def potential() -> Potential:
    return tiny_potential("nequip-lr")


@pytest.fixture(scope="module")
def short_range() -> Potential:
    return tiny_potential("nequip")


@pytest.fixture
def water() -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.fixture
def salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.5)
    atoms.rattle(0.1, seed=3)
    return atoms


@pytest.fixture
def count(potential, monkeypatch) -> list:
    """Grows by one with every evaluation."""
    calls, evaluate = [], potential.evaluate
    monkeypatch.setattr(potential, "evaluate", lambda *args, **options: calls.append(1) or evaluate(*args, **options))
    return calls


def test_one_evaluation_gives_everything_and_is_cached(potential, water, count):
    water.calc = FastlrCalculator(potential)
    prediction = potential.predict(water)
    count.clear()
    assert water.get_potential_energy() == prediction.energy
    assert water.get_potential_energy(force_consistent=True) == prediction.energy
    np.testing.assert_array_equal(water.get_forces(), prediction.forces)
    np.testing.assert_array_equal(water.get_charges(), prediction.charges)
    np.testing.assert_array_equal(water.get_dipole_moment(), prediction.dipole)
    assert len(count) == 1
    water.set_initial_charges([0.1, 0.0, -0.1])  # no prediction depends on these
    water.get_forces()
    assert len(count) == 1
    water.positions[0, 0] += 0.01
    assert water.get_potential_energy() != prediction.energy
    assert len(count) == 2


def test_a_changed_charge_is_never_answered_from_the_cache(potential, water, count):
    calculator = water.calc = FastlrCalculator(potential, charge=+1)
    energies = {1: water.get_potential_energy()}
    assert water.get_charges().sum() == pytest.approx(1)
    water.info["charge"] = -1  # wins over the constructor
    energies[-1] = water.get_potential_energy()
    assert water.get_charges().sum() == pytest.approx(-1)
    water.info["charge"] = 0
    energies[0] = water.get_potential_energy()
    del water.info["charge"]
    calculator.charge = 2
    energies[2] = water.get_potential_energy()
    assert len(set(energies.values())) == 4
    assert len(count) == 4
    assert energies == {q: potential.predict(water, q).energy for q in energies}
    count.clear()
    water.info["charge"] = 2.0  # stated otherwise, but the same
    water.get_potential_energy()
    assert not count


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("electric_field", [0.1, 0.0, 0.0], [0.1004, 0.0, 0.0]),
        ("electric_field", np.array([0.1, 0.0, 0.0]), np.array([0.1 + 1e-12, 0.0, 0.0])),
        ("chemical_potential", np.float64(-1.0), np.float64(-1.0004)),
        ("fragment_charge", {0: 0.1, 1: 0.0, 2: -0.1}, {0: 0.1, 1: 1e-9, 2: -0.1}),
        ("fragment_charge", np.zeros(1100), np.eye(1, 1100, 550)[0]),
    ],
)
def test_conditions_are_compared_by_value(potential, water, key, before, after):
    """Not as they are printed, nor with an array that has become another since."""
    calculator = FastlrCalculator(potential)
    calculator.total_charge = lambda atoms: 0.0
    with np.printoptions(precision=3):
        water.info[key] = before
        calculator.atoms, calculator._evaluated = water.copy(), calculator._charges_depend_on(water)
        calculator._seen = {}
        assert calculator.check_state(water) == []
        water.info[key] = after
        assert calculator.check_state(water) == ["charge"]
        if isinstance(before, np.ndarray):
            before += 1.0
            water.info[key] = before
            assert calculator.check_state(water) == ["charge"]


def test_a_charge_that_is_no_number_is_an_error(potential, water):
    water.calc = FastlrCalculator(potential)
    water.get_potential_energy()
    water.info["charge"] = "abc"
    with pytest.raises(InputError, match="charge must be a finite number"):
        water.get_potential_energy()


def test_energies_sum_to_the_energy(potential, short_range, water, salt):
    for model in (potential, short_range):
        for atoms in (water, salt):
            atoms.calc = FastlrCalculator(model)
            energies = atoms.get_potential_energies()
            assert energies.shape == (len(atoms),)
            assert energies.sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    assert abs(potential.predict(water).coulomb_energy) > 1e-3  # or the share would not be noticed


def test_stress_only_for_cells_and_dipole_only_for_molecules(potential, short_range, water, salt):
    water.calc = FastlrCalculator(potential)
    salt.calc = FastlrCalculator(potential)
    with pytest.raises(PropertyNotImplementedError):
        water.get_stress()
    with pytest.raises(PropertyNotImplementedError):
        salt.get_dipole_moment()
    assert salt.get_stress().shape == (6,)
    slab = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.5]], cell=[4, 4, 20], pbc=[True, True, False])
    slab.calc = FastlrCalculator(short_range)
    slab.get_forces()
    with pytest.raises(PropertyNotImplementedError):
        slab.get_stress()


def test_models_without_charges_do_not_advertise_any(potential, short_range, water):
    assert {"charges", "dipole"} <= set(FastlrCalculator(potential).implemented_properties)
    calculator = water.calc = FastlrCalculator(short_range)
    assert not {"charges", "dipole"} & set(calculator.implemented_properties)
    with pytest.raises(PropertyNotImplementedError):
        water.get_charges()


def test_forces_and_stress_agree_with_finite_differences(potential, water, salt):
    for atoms in (water, salt):
        atoms.calc = FastlrCalculator(potential)
        forces = atoms.get_forces()
        numerical = calculate_numerical_forces(atoms, eps=1e-4)
        assert np.abs(forces).max() > 1e-2
        np.testing.assert_allclose(forces, numerical, atol=1e-7 * np.abs(forces).max() + 1e-8)
    stress = salt.get_stress()
    assert np.abs(stress).max() > 1e-4
    # the error of the difference falls with eps squared, down to rounding
    numerical = calculate_numerical_stress(salt, eps=3e-5)
    np.testing.assert_allclose(stress, numerical, atol=1e-6 * np.abs(stress).max())


def test_constant_energy_dynamics_conserves_energy(potential, water):
    """The error of velocity Verlet falls fourfold with half the step; a wrong force would not."""
    water.calc = FastlrCalculator(potential)
    spread = {}
    for timestep, steps in ((1.0, 12), (0.5, 24)):
        atoms = water.copy()
        atoms.calc = FastlrCalculator(potential)
        totals = []
        dynamics = VelocityVerlet(atoms, timestep * units.fs)
        dynamics.attach(lambda atoms=atoms, totals=totals: totals.append(atoms.get_total_energy()))
        dynamics.run(steps)
        spread[timestep] = np.ptp(totals)
        assert np.ptp([atoms.get_kinetic_energy(), 0.0]) > 100 * spread[timestep]
    assert spread[0.5] < 0.35 * spread[1.0]


def test_works_with_langevin_optimisers_and_cell_filter(potential, water, salt):
    water.calc = FastlrCalculator(potential)
    Langevin(
        water,
        0.5 * units.fs,
        temperature_K=300,
        friction=0.01 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(0),
    ).run(3)
    assert water.get_kinetic_energy() > 0
    for search in (FIRE(water, logfile=None), BFGS(water, logfile=None)):
        before = water.get_potential_energy()
        search.run(fmax=1e-6, steps=3)
        assert water.get_potential_energy() < before
    salt.calc = FastlrCalculator(potential)
    before, volume = salt.get_potential_energy(), salt.get_volume()
    BFGS(FrechetCellFilter(salt), logfile=None).run(fmax=1e-6, steps=3)
    assert salt.get_potential_energy() < before
    assert salt.get_volume() != volume


def test_loads_by_name_and_potential_hands_it_out(potential, water, tmp_path):
    potential.save(tmp_path / "tiny.safetensors")
    by_name = FastlrCalculator(str(tmp_path / "tiny.safetensors"), charge=1, backend="reference", device="cpu")
    handed_out = potential.calculator(charge=1)
    assert isinstance(handed_out, FastlrCalculator)
    assert by_name.get_potential_energy(water) == pytest.approx(handed_out.get_potential_energy(water), rel=1e-12)


def test_atoms_out_of_reach_of_each_other(potential):
    """A structure without any edge: only the charges' Coulomb energy depends on the distance."""
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 9.0]])
    atoms.calc = FastlrCalculator(potential)
    forces = atoms.get_forces()
    assert forces[0, 2] > 1e-3  # attraction
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), atol=1e-7)


def test_nothing_that_is_written_to_changes_an_answer(potential, water):
    calculator = water.calc = FastlrCalculator(potential)
    expected = {name: np.copy(calculator.get_property(name, water)) for name in calculator.implemented_properties[:4]}
    for answer in (calculator.results, vars(calculator.prediction)):
        for value in answer.values():
            if isinstance(value, np.ndarray):
                value[...] = 7.0
    calculator.results["energy"] = 7.0
    for _ in range(2):
        for name, value in expected.items():
            answer = calculator.get_property(name, water)
            np.testing.assert_array_equal(answer, value)
            if name == "forces":
                answer[...] = 7.0


def test_results_that_a_subclass_adds_to_are_the_answer(potential, water):
    class Shifted(FastlrCalculator):
        def calculate(self, *arguments):
            super().calculate(*arguments)
            self.results["energy"] += 1.0
            self.results["forces"] += 2.0

    water.calc = Shifted(potential)
    prediction = potential.predict(water)
    assert water.get_potential_energy() == prediction.energy + 1.0
    np.testing.assert_array_equal(water.get_forces(), prediction.forces + 2.0)


def test_answers_follow_the_potential(water):
    """Another one, another backend, other weights."""
    first, second = tiny_potential("nequip-lr"), tiny_potential("nequip")
    calculator = water.calc = FastlrCalculator(first)
    assert water.get_potential_energy() == first.predict(water).energy
    calculator.potential = second
    assert water.get_potential_energy() == second.predict(water).energy
    with pytest.raises(PropertyNotImplementedError):
        water.get_charges()
    calculator.potential = first
    water.get_forces()
    rebuilds = calculator.steps.rebuilds
    first.use("reference")
    assert water.get_potential_energy() == first.predict(water).energy
    assert calculator.steps.rebuilds == rebuilds + 1
    before = water.get_potential_energy()
    first.model.type_embedding.load_state_dict({"weight": 1.1 * first.model.type_embedding.weight})
    with pytest.raises(InputError, match=r"call potential.use\(\)"):
        water.get_potential_energy()
    first.use("reference")
    assert water.get_potential_energy() == first.predict(water).energy != before


def test_a_failure_leaves_no_answer_of_another_structure(potential, water):
    calculator = FastlrCalculator(potential)
    expected = calculator.get_potential_energy(water)
    bad = water.copy()
    bad.positions[0] = np.nan
    for _ in range(2):
        with pytest.raises(InputError, match="not finite"):
            calculator.calculate(bad, ["energy"])
        with pytest.raises(InputError, match="not finite"):
            calculator.get_potential_energy(bad)
    assert calculator.get_potential_energy(water) == expected


def test_no_atoms_and_no_such_property_are_errors(potential, water):
    calculator = FastlrCalculator(potential)
    for ask in (calculator.get_potential_energy, calculator.calculate):
        with pytest.raises(InputError, match="not been told of any atoms"):
            ask()
    for name in ("magmom", "magmoms", "stresses", "nothing"):
        with pytest.raises(PropertyNotImplementedError):
            calculator.get_property(name, water)


def test_two_structures_may_share_a_calculator(potential, water, salt):
    water.calc = salt.calc = FastlrCalculator(potential, charge=1)
    for _ in range(2):
        for atoms in (water, salt):
            expected = potential.predict(atoms, 1)
            assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-9)
            np.testing.assert_allclose(atoms.get_charges(), expected.charges, atol=1e-9)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_copies_begin_anew(potential, water, copied):
    calculator = FastlrCalculator(potential, charge=1)
    energy = calculator.get_potential_energy(water)
    other = copied(calculator)
    assert other.atoms is None and other.steps is not calculator.steps and other.charge == 1
    assert other.get_potential_energy(water) == energy
    other.charge = 0
    assert other.get_potential_energy(water) != energy == calculator.get_potential_energy(water)


def test_constraints_hide_forces_only_where_asked(potential, water):
    water.calc, raw = FastlrCalculator(potential), potential.predict(water).forces
    water.set_constraint(FixAtoms([0]))
    assert not water.get_forces()[0].any()
    np.testing.assert_array_equal(water.get_forces(apply_constraint=False), raw)
    np.testing.assert_array_equal(water.get_forces()[1:], raw[1:])


def test_threads_get_their_own_answers(potential, water, salt):
    calculator, wrong = FastlrCalculator(potential), []

    def ask(atoms, energy):
        for _ in range(5):
            if abs(calculator.get_potential_energy(atoms.copy()) - energy) > 1e-9:
                wrong.append(energy)

    asked = [(atoms, potential.predict(atoms).energy) for atoms in (water, salt, salt.repeat((2, 1, 1)))]
    threads = [Thread(target=ask, args=pair) for pair in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_parameters_are_set_as_those_of_other_calculators(potential, water):
    """By ``set``, and only the one there is."""
    calculator = water.calc = potential.calculator()
    before = water.get_potential_energy()
    assert calculator.set(charge=1) == {"charge": 1}
    assert water.get_potential_energy() == potential.predict(water, 1).energy != before
    assert calculator.set(charge=1) == {}
    with pytest.raises(InputError, match="foo: a FastlrCalculator has no parameter but 'charge'"):
        calculator.set(foo=3)


def test_options_and_potentials_that_are_none(potential, water):
    with pytest.raises(InputError, match="dtype, nonsense: options of a model to be loaded"):
        FastlrCalculator(potential, dtype="float64", nonsense=3)
    with pytest.raises(InputError, match="must be a Potential"):
        potential.calculator().potential = "aqueous-xtb"
    for wrong in ([water], "w.xyz", 3):
        with pytest.raises(InputError, match="structures must be ASE Atoms"):
            potential.calculator().get_potential_energy(wrong)
        with pytest.raises(InputError, match="structures must be ASE Atoms"):
            potential.calculator().calculate(wrong)


def test_the_calculators_own_atoms_may_be_moved(potential, water):
    water.calc = potential.calculator()
    water.get_potential_energy()
    own = water.calc.atoms
    own.positions[0] += 0.1
    own.calc = water.calc
    assert own.get_potential_energy() == pytest.approx(potential.predict(own).energy, abs=1e-9)
