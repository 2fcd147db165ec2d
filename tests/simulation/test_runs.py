"""What a run starts from, what its temperature means, and how it ends where a step tears it apart."""

import csv
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase import constraints as ase_constraints
from ase.build import molecule
from ase.io import read
from reference import structures
from reference.models import small_model

from fastlr import Potential, available_models
from fastlr.errors import FastlrError, InputError
from fastlr.simulation.dynamics import MDSettings, run_md
from fastlr.simulation.relaxation import relax
from fastlr.simulation.start import HONOURED, degrees_of_freedom, draw_velocities

C = ase_constraints


@pytest.fixture(scope="module")
def potential():
    return Potential(small_model("lr"))


@pytest.fixture
def run(potential, tmp_path):
    """Runs dynamics of a structure into tmp_path/run.extxyz; notes are collected."""

    def run(atoms, steps=4, **options):
        run.notes = []
        settings = MDSettings(**{"steps": steps, "interval": 1, "seed": 3} | options)
        return run_md(atoms, potential, settings, tmp_path / "run.extxyz", overwrite=True, on_note=run.notes.append)

    run.trajectory = tmp_path / "run.extxyz"
    return run


def with_velocity(value, atom=1) -> Atoms:
    atoms = structures.water()
    velocities = np.zeros((3, 3))
    velocities[atom, 2] = value
    atoms.set_velocities(velocities)
    return atoms


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_velocity_that_is_not_finite_is_named(run, value):
    with pytest.raises(InputError, match="the velocity of atom 1 \\(H\\) is not finite"):
        run(with_velocity(value))
    assert not run.trajectory.exists()


@pytest.mark.parametrize("key", ["velo", "vel", "Velocities"])
def test_velocities_in_unknown_units_are_not_passed_over(run, key):
    atoms = structures.water()
    atoms.set_array(key, np.ones((3, 3)))
    with pytest.raises(InputError, match=f"the velocities in its column '{key}' are not read.* momenta"):
        run(atoms)
    atoms.set_velocities(np.full((3, 3), 1e-3))
    run(atoms)


@pytest.mark.parametrize("mass", [0.0, -1.0, np.inf])
def test_a_mass_must_be_positive(run, mass):
    atoms = structures.water()
    atoms.arrays["masses"] = np.array([16.0, mass, 1.0])
    with pytest.raises(InputError, match=r"the mass of atom 1 \(H\) is .* it must be positive"):
        run(atoms)


@pytest.mark.parametrize("atoms", [Atoms(), Atoms(cell=[4, 4, 4], pbc=True)])
def test_nothing_cannot_move(run, atoms):
    with pytest.raises(InputError, match="no atoms\\): there is nothing to move"):
        run(atoms)


def test_an_earlier_run_survives_a_structure_that_cannot_be_used(run):
    run(structures.water())
    before = run.trajectory.read_bytes()
    for atoms in (with_velocity(np.nan), Atoms()):
        with pytest.raises(InputError):
            run(atoms)
    assert run.trajectory.read_bytes() == before


CONSTRAINTS = {
    "FixAtoms": (C.FixAtoms([0]), 15),
    "FixCartesian": (C.FixCartesian([0, 3], [True, False, True]), 14),
    "FixedPlane": (C.FixedPlane([0, 3], [1, 1, 0]), 16),
    "FixedLine": (C.FixedLine([0, 3], [1, 1, 0]), 14),
    "FixCom": (C.FixCom(), 15),
    "FixBondLengths": (C.FixBondLengths([[0, 1], [0, 2], [3, 4]]), 12),
    "FixLinearTriatomic": (C.FixLinearTriatomic([(1, 0, 2)]), 11),
    "Hookean": (C.Hookean(0, 3, rt=2.0, k=5.0), 18),
}


def pair() -> Atoms:
    first, second = structures.water(), structures.water()
    second.translate([2.9, 0.3, 0.0])
    return first + second


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_energy_is_conserved_under_constraints(run, name):
    """The error of velocity Verlet falls fourfold with half the step; the temperature is of what may move."""
    constraint, freedom = CONSTRAINTS[name]
    spread = {}
    for timestep in (0.5, 0.25):
        atoms = pair()
        if name == "FixLinearTriatomic":
            atoms.positions[:3] = [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.1]]
        atoms.set_constraint(constraint)
        run(atoms, round(10 / timestep), timestep=timestep, temperature=1500)
        with open(run.trajectory.with_suffix(".csv")) as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        spread[timestep] = np.ptp([row["total_eV"] for row in rows])
        for row in rows:
            assert row["temperature_K"] == pytest.approx(2 * row["kinetic_eV"] / freedom / units.kB, rel=1e-4)
    assert spread[0.5] > 1e-6  # eV, of a log with 1e-8
    assert spread[0.25] < 0.35 * spread[0.5]


@pytest.mark.parametrize(
    "constraint", [C.FixLinearTriatomic([(1, 0, 2)]), C.FixBondLengths([[0, 1]], bondlengths=[1.2])]
)
def test_a_structure_has_to_satisfy_its_constraints(run, constraint):
    """Or the first step would fling atoms to where they should be."""
    atoms = structures.water()
    atoms.set_constraint(constraint)
    with pytest.raises(
        InputError, match=f"does not satisfy the constraint {type(constraint).__name__}: atom . is .* Å"
    ):
        run(atoms)


@pytest.mark.parametrize(
    ("constraint", "match"),
    [
        (C.FixAtoms([17]), "atom 17, which does not exist"),
        (C.FixAtoms([0, -7]), "atom -7, which does not exist"),
        (C.FixCartesian([9]), "atom 9,"),
        (C.FixedLine([0, 6], [1, 0, 0]), "atom 6,"),
        (C.Hookean(0, 17, 5.0, rt=2.0), "atom 17,"),
        (C.Hookean(17, (0.0, 0.0, 1.0), 5.0, rt=2.0), "atom 17,"),
        (C.Hookean(1, 1, 5.0, rt=2.0), "an atom to itself"),
        (C.FixBondLengths([[0, 9]]), "atom 9,"),
        (C.FixBondLengths([[0, 1], [0, 0]]), "an atom to itself"),
        (C.FixBondLengths([[0, -6]]), "an atom to itself"),
        (C.FixBondLengths([0, 1]), "takes pairs"),
        (C.FixBondLengths([[0.0, 1.0]]), "no whole numbers"),
        (C.FixBondLengths([[0, 1]], bondlengths=[np.nan]), "at nan Å"),
        (C.FixBondLengths([[0, 1]], bondlengths=[0.0]), "at 0 Å"),
        (C.FixBondLengths([[0, 1], [0, 2]], bondlengths=[1.0]), "each of its 2 pairs"),
        (C.FixLinearTriatomic([(1, 0, 22)]), "atom 22,"),
        (C.FixLinearTriatomic([(1, 0, 1)]), "an atom to itself"),
        (C.FixInternals(bonds=[[1.0, [0, 17]]]), "atom 17,"),
        (C.FixInternals(bondcombos=[[1.0, [[0, 1, 1.0], [0, 17, 1.0]]]]), "atom 17,"),
        (C.ExternalForce(0, 17, 0.1), "atom 17,"),
        (C.FixScaled([17]), "atom 17,"),
        (C.FixedMode(np.ones((5, 3))), "5 atoms, not of 6"),
    ],
)
def test_constraints_are_of_atoms_that_there_are(run, potential, constraint, match):
    """In dynamics and relaxations."""
    atoms = pair()
    atoms.set_constraint(constraint)
    with pytest.raises(InputError, match=f"the constraint {type(constraint).__name__} .*{match}"):
        relax(atoms, potential, steps=1)
    if type(constraint) in HONOURED:
        with pytest.raises(InputError, match=f"the constraint {type(constraint).__name__} .*{match}"):
            run(atoms)


def test_atoms_may_be_counted_from_the_end(run, potential):
    for constraint in (
        C.FixAtoms([-1]),
        C.FixBondLengths([[-2, -3]]),
        C.FixBondLengths([]),
        C.Hookean(0, -1, 5.0, 2.0),
    ):
        atoms = pair()
        atoms.set_constraint(constraint)
        run(atoms, 1)
        relax(atoms, potential, steps=1)


def test_every_honoured_constraint_is_tried():
    assert {kind.__name__ for kind in HONOURED} == CONSTRAINTS.keys()


@pytest.mark.parametrize(
    "constraint",
    [
        C.FixScaled(0, [True, False, False]),
        C.FixSubsetCom([0, 1]),
        C.ExternalForce(0, 3, 0.1),
        C.FixInternals(bonds=[[None, [0, 1]]]),
        C.MirrorForce(0, 3, 2.0, 4.0),
        C.FixedMode(np.ones((6, 3))),
    ],
)
def test_other_constraints_are_refused(run, constraint):
    atoms = pair()
    atoms.set_constraint(constraint)
    with pytest.raises(InputError, match=f"the constraint {type(constraint).__name__} is none that dynamics honours"):
        run(atoms)


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_fixed_atoms_stay(run, ensemble):
    atoms = pair()
    atoms.set_constraint([C.FixAtoms([0]), C.FixAtoms([0, 1])])  # atom 0 twice
    start = atoms.positions.copy()
    report = run(atoms, ensemble=ensemble)
    assert (atoms.positions[:2] == start[:2]).all() and (atoms.positions[2:] != start[2:]).all()
    assert not atoms.get_momenta()[:2].any()
    assert report.start.temperature == pytest.approx(2 * report.start.kinetic / 12 / units.kB)


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_nothing_moves_where_all_is_fixed(run, ensemble):
    atoms = structures.water()
    atoms.set_constraint(C.FixAtoms([0, 1, 2]))
    report = run(atoms, ensemble=ensemble)
    assert report.start.temperature == report.end.temperature == 0.0
    assert report.start.total == report.end.total


def test_velocities_against_constraints_are_dropped_and_that_is_told(run):
    atoms = pair()
    atoms.set_momenta(np.ones((6, 3)))
    atoms.set_constraint(C.FixAtoms([0]))
    report = run(atoms, 0)
    assert len(run.notes) == 1 and "constraints do not allow" in run.notes[0]
    assert report.start.kinetic == pytest.approx(0.5 * 3 * (1 / pair().get_masses()[1:]).sum())
    atoms = pair()
    atoms.set_momenta(np.ones((6, 3)))
    run(atoms, 0)
    assert not run.notes and (atoms.get_momenta() == 1.0).all()


@pytest.mark.parametrize(("ensemble", "freedom"), [("nve", 6), ("nvt", 9)])
def test_the_temperature_is_of_the_degrees_of_freedom(run, ensemble, freedom):
    """Those of the centre of mass are none where it is at rest for ever."""
    report = run(structures.water(), 0, ensemble=ensemble)
    assert report.start.temperature == pytest.approx(2 * report.start.kinetic / freedom / units.kB)


def test_a_centre_that_moves_counts(run):
    assert run(with_velocity(0.1), 0).start.temperature == pytest.approx(
        2 * with_velocity(0.1).get_kinetic_energy() / 9 / units.kB
    )
    one = run(Atoms("O"), 2)
    assert one.start.temperature == pytest.approx(2 * one.start.kinetic / 3 / units.kB) == one.end.temperature > 0
    charged = structures.water_cluster()
    charged.info["electric_field"] = [0.0, 0.0, 0.01]  # pulls at all of it
    report = run(charged, 0)
    assert report.start.temperature == pytest.approx(2 * report.start.kinetic / 3 / len(charged) / units.kB)


@pytest.mark.parametrize("at_rest", [False, True])
def test_drawn_velocities_have_the_temperature(rng, at_rest):
    """On average over 3,000 molecules, with an error of 1 %; those at rest would have 450 K if they were rescaled."""
    atoms, kinetic = molecule("H2O"), []
    for _ in range(3000):
        draw_velocities(atoms, 300.0, rng, at_rest)
        kinetic.append(atoms.get_kinetic_energy())
        assert not at_rest or np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-12
    freedom = degrees_of_freedom(atoms, at_rest)
    assert 2 * np.mean(kinetic) / freedom / units.kB == pytest.approx(300.0, rel=0.04)


@pytest.mark.parametrize(("ensemble", "timestep"), [("nve", 20.0), ("nvt", 20.0), ("nvt", 1000.0), ("nve", 1000.0)])
def test_a_step_that_blows_up_says_so(run, ensemble, timestep):
    atoms = pair()
    with pytest.raises(InputError) as caught:
        run(atoms, 400, ensemble=ensemble, timestep=timestep, interval=7, temperature=2000)
    message = str(caught.value)
    assert message.startswith("step ") and "\n" not in message and "wrap" not in message
    assert " moved " in message and f"choose a smaller time step than {timestep:g} fs" in message
    frames = read(run.trajectory, ":")
    assert f"of step {frames[-1].info['step']}, is the last" in message
    for frame in frames:
        assert all(np.isfinite(values).all() for values in (frame.positions, frame.get_momenta(), frame.get_forces()))


def test_atoms_may_be_flung_away_by_no_step(run):
    """Before they are evaluated where they are."""
    with pytest.raises(InputError, match=r"flung atoms away; in this step atom 1 \(H\) moved .* smaller time step"):
        run(with_velocity(1e6))
    assert len(read(run.trajectory, ":")) == 1


def test_energy_that_is_not_conserved_is_no_dynamics(run, potential, monkeypatch):
    evaluate, shifts = potential.evaluate, []

    def drifting(*arguments, **options):
        shifts.append(0.7)
        return [replace(found, energy=found.energy + sum(shifts)) for found in evaluate(*arguments, **options)]

    monkeypatch.setattr(potential, "evaluate", drifting)
    with pytest.raises(InputError, match="the total energy has changed by"):
        run(structures.water(), 20)
    assert len(shifts) == 6  # more than 1 eV an atom


BAD = {
    "steps": [-1, 1.5, "3", True, None, np.nan, np.inf, [3], np.array([3])],
    "timestep": [0, -1, np.nan, np.inf, "x", True, None, [0.5], 1j],
    "temperature": [-1, np.nan, None, "300", np.bool_(True)],
    "friction": [-1, np.nan, None],
    "interval": [0, -1, 2.5, None],
    "seed": [-1, None, 1.5],
    "ensemble": ["NPT", None, 3, np.array(["nve", "nvt"])],
    "charge": ["a", np.nan, True, [1]],
}
GOOD = {
    "steps": [np.int64(3), np.float32(3), np.array(3)],
    "timestep": [np.float32(0.5), np.array(0.5), torch.tensor(0.5)],
    "temperature": [0, np.int32(300)],
    "friction": [0, np.float64(0.1)],
    "interval": [np.int8(2)],
    "seed": [np.uint64(2**63)],
    "ensemble": ["nvt"],
    "charge": [None, np.array(1), np.float32(0), torch.tensor(1.0)],
}


@pytest.mark.parametrize("name", BAD)
def test_settings_are_numbers_of_any_kind(name):
    for value in BAD[name]:
        with pytest.raises(InputError, match=f"^{name} must be"):
            MDSettings(**{"steps": 3} | {name: value})
    for value in GOOD[name]:
        found = getattr(MDSettings(**{"steps": 3} | {name: value}), name)
        assert found == value and type(found) in (int, float, str, type(None))


def test_other_arguments_of_runs(potential, tmp_path):
    for options, match in (
        ({"checkpoint_seconds": np.nan}, "checkpoint_seconds must be"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds must be"),
        ({"checkpoint_seconds": np.array([1, 2])}, "checkpoint_seconds must be"),
        ({"checkpoint_seconds": [1]}, "checkpoint_seconds must be"),
        ({"overwrite": "no"}, "overwrite must be True or False"),
        ({"resume": np.array([1, 2])}, "resume must be True or False"),
        ({"on_step": None}, "on_step must be a function"),
        ({"should_stop": True}, "should_stop must be a function"),
        ({"on_note": "print"}, "on_note must be a function"),
        ({"resume": True, "overwrite": True}, "exclude"),
    ):
        with pytest.raises(InputError, match=match):
            run_md(structures.water(), potential, MDSettings(1), tmp_path / "run.extxyz", **options)
    run_md(structures.water(), potential, MDSettings(0), tmp_path / "run.extxyz", checkpoint_seconds=np.inf)


@pytest.mark.parametrize(
    ("atoms", "match"),
    [
        ([structures.water()], r"must be ASE Atoms, a single one, got \[Atoms"),
        (None, "must be ASE Atoms, a single one, got None"),
        ("w.xyz", r"got the name of a file: give ase\.io\.read\('w\.xyz'\)"),
        (np.zeros((3, 3)), "must be ASE Atoms"),
    ],
)
def test_what_is_no_structure(run, potential, atoms, match):
    for call in (lambda: run(atoms), lambda: relax(atoms, potential)):
        with pytest.raises(InputError, match=match):
            call()


def test_a_potential_may_be_named(tmp_path):
    name, run = available_models()[0], tmp_path / "run.extxyz"
    report = run_md(structures.water(), name, MDSettings(0), run)
    assert relax(structures.water(), name, steps=0).energy == report.start.potential
    for other in (None, 3, "no-such-model"):
        with pytest.raises(FastlrError, match="model is named"):
            run_md(structures.water(), other, MDSettings(0), run, overwrite=True)
        with pytest.raises(FastlrError, match="model is named"):
            relax(structures.water(), other)


def test_settings_and_outputs_that_are_none(potential, tmp_path):
    with pytest.raises(InputError, match=r"settings must be MDSettings, as in MDSettings\(steps=100\), got \{"):
        run_md(structures.water(), potential, {"steps": 2}, tmp_path / "run.extxyz")
    for output in (None, 3, b"run.xyz", ["run.xyz"]):
        with pytest.raises(InputError, match="the output must be the name of a file"):
            run_md(structures.water(), potential, MDSettings(1), output)


def test_no_warning_where_warnings_are_errors(potential, tmp_path):
    atoms = structures.salt()
    atoms.arrays["external_potential"] = np.linspace(0.0, 0.1, len(atoms))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_md(atoms, potential, MDSettings(1), tmp_path / "run.extxyz")


def test_what_frames_cannot_hold_is_told_once(run):
    atoms = structures.water()
    atoms.set_constraint(C.FixBondLengths([(0, 1)]))
    run(atoms)
    assert run.notes == ["extended XYZ cannot hold a FixBondLengths: left out of what is written"]
