"""A resumed run is the uninterrupted one to the last bit, or another one, which is refused."""

import io

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLengths
from fastlr.kernels import cores
from reference import structures
from reference.models import small_model

from fastlr import Potential
from fastlr.errors import CheckpointError, FastlrError, InputError
from fastlr.simulation.dynamics import MDSettings, run_md
from fastlr.simulation.files import LOG_HEADER, MDFiles
from fastlr.simulation.records import load_state

STEPS = 14


@pytest.fixture(scope="module")
def potential():
    return Potential(small_model("lr"))


def settings(steps: int = STEPS, **others) -> MDSettings:
    return MDSettings(**{"steps": steps, "ensemble": "nvt", "temperature": 900.0, "interval": 3, "seed": 4} | others)


def far_and_fixed() -> Atoms:
    atoms = structures.salt()
    atoms.positions[1] += 40.0 * atoms.cell.array[0] - 90.0 * atoms.cell.array[2]
    atoms.set_constraint(FixAtoms([0]))
    return atoms


def held() -> Atoms:
    atoms = molecule("H2O")
    atoms.set_constraint(FixBondLengths([[0, 1], [0, 2]]))
    return atoms


def at_potential() -> Atoms:
    atoms = structures.water_cluster()
    atoms.info = {"chemical_potential": 0.1}
    return atoms


def in_fragments() -> Atoms:
    atoms = structures.salt()
    atoms.arrays["fragment"] = np.arange(len(atoms)) % 2
    atoms.info["fragment_charge"] = [0.3, -0.3]
    return atoms


MAKERS = {"cell": structures.salt, "slab": structures.slab, "molecule": structures.water_cluster, "far": far_and_fixed,
          "held": held, "potential": at_potential, "fragments": in_fragments}  # fmt: skip


class Stop(Exception):
    """As sudden as a power cut."""


def stopping_at(step: int):
    def on_step(status):
        if status.step == step:
            raise Stop

    return on_step


def require_same_files(a: MDFiles, b: MDFiles) -> None:
    for one, other in zip(a.all, b.all, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffixes


def exactly(note: str) -> None:
    """Takes no note but that of what frames cannot hold."""
    assert note.startswith("extended XYZ cannot hold")


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_to_the_last_bit(potential, tmp_path, ensemble, make):
    """Stopped at any step, several times, and after a crash with an old checkpoint; with a list that is made anew."""
    whole, parts, torn = (MDFiles(tmp_path / f"{name}.extxyz") for name in ("whole", "parts", "torn"))
    report = run_md(make(), potential, settings(ensemble=ensemble), whole.trajectory)
    going_on = {"resume": True, "on_note": exactly}
    for steps in (1, 5, 6, STEPS):
        run_md(make(), potential, settings(steps, ensemble=ensemble), parts.trajectory, **going_on)
    require_same_files(parts, whole)
    run_md(make(), potential, settings(4, ensemble=ensemble), torn.trajectory)
    with pytest.raises(Stop):
        run_md(make(), potential, settings(ensemble=ensemble), torn.trajectory, resume=True, on_step=stopping_at(11))
    assert load_state(torn.checkpoint).step == 4
    run_md(make(), potential, settings(ensemble=ensemble), torn.trajectory, **going_on)
    require_same_files(torn, whole)
    assert report.last_step == STEPS


def test_to_the_last_bit_where_lists_are_made_anew(potential, tmp_path, monkeypatch):
    """On two threads, in the order in which many atoms are put, and with other structures evaluated in between."""
    monkeypatch.setattr("fastlr.engine.edge_list.UNSORTED", 4)
    monkeypatch.setattr("fastlr.engine.edge_list.EDGES_A_THREAD", 10)
    monkeypatch.setattr(cores, "_cores", lambda: 2)
    torch.set_num_threads(2)
    whole, parts = (MDFiles(tmp_path / f"{name}.extxyz") for name in ("whole", "parts"))
    atoms, hot = structures.salt().repeat((2, 2, 1)), {"temperature": 2e4, "friction": 0.1}
    try:
        report = run_md(atoms.copy(), potential, settings(30, **hot), whole.trajectory)
        for steps in (7, 16, 30):
            other, options = potential, {"resume": True, "on_note": exactly}
            if steps == 16:
                other = Potential(small_model("lr"))
            if steps == 30:
                options["on_step"] = lambda status: potential.predict(structures.water())
            run_md(atoms.copy(), other, settings(steps, **hot), parts.trajectory, **options)
    finally:
        torch.set_num_threads(1)
    assert report.rebuilds > 1
    require_same_files(parts, whole)


def changed(change) -> Atoms:
    atoms = given()
    change(atoms)
    return atoms


def given() -> Atoms:
    atoms = in_fragments()
    atoms.arrays["external_potential"] = np.linspace(0.0, 0.1, len(atoms))
    atoms.set_constraint(FixAtoms([0]))
    return atoms


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("masses", lambda atoms: atoms.set_masses([23.0] * len(atoms))),
        ("constraints", lambda atoms: atoms.set_constraint()),
        ("constraints", lambda atoms: atoms.set_constraint(FixAtoms([1]))),
        ("external_potential", lambda atoms: atoms.arrays["external_potential"].put(3, 0.1 + 1e-12)),
        ("external_potential", lambda atoms: atoms.arrays.pop("external_potential")),
        ("fragment_charge", lambda atoms: atoms.info.update(fragment_charge=[0.3 + 1e-9, -0.3 - 1e-9])),
        ("fragment", lambda atoms: atoms.arrays["fragment"].put([0, 1], [1, 0])),
        ("cell", lambda atoms: atoms.set_cell(1.0000001 * atoms.cell)),
        ("pbc", lambda atoms: atoms.set_pbc(False)),
        ("positions", lambda atoms: atoms.positions.__setitem__((1, 2), 0.1)),
        ("momenta", lambda atoms: atoms.set_momenta(np.full((len(atoms), 3), 0.1))),
        ("other atoms", lambda atoms: atoms.symbols.__setitem__(1, "H")),
    ],
)
def test_another_structure_is_refused(potential, tmp_path, name, change):
    run_md(given(), potential, settings(2), tmp_path / "run.extxyz")
    before = [path.read_bytes() for path in MDFiles(tmp_path / "run.extxyz").all]
    with pytest.raises(InputError, match=f"run.checkpoint.npz: that run had (other )?{name}.*resume it as it was"):
        run_md(changed(change), potential, settings(4), tmp_path / "run.extxyz", resume=True)
    assert before == [path.read_bytes() for path in MDFiles(tmp_path / "run.extxyz").all]


@pytest.mark.parametrize(
    ("name", "value"),
    [("timestep", 0.25), ("ensemble", "nve"), ("temperature", 901), ("friction", 0.02), ("interval", 2), ("seed", 5)],
)
def test_other_settings_are_refused(potential, tmp_path, name, value):
    run_md(structures.salt(), potential, settings(2), tmp_path / "run.extxyz")
    with pytest.raises(InputError, match=f"that run had {name} .*, not {value}"):
        run_md(structures.salt(), potential, settings(4, **{name: value}), tmp_path / "run.extxyz", resume=True)


def test_other_charges_fields_and_models_are_refused(potential, tmp_path):
    def resume(potential=potential, charge=None, **info):
        atoms = structures.water()
        atoms.info |= info
        run_md(atoms, potential, settings(4, charge=charge), tmp_path / "run.extxyz", resume=True)

    run_md(structures.water(), potential, settings(2), tmp_path / "run.extxyz")
    for name, options in (
        ("total_charge 0.0, not 1.0", {"charge": 1}),
        ("total_charge", {"total_charge": 1}),
        ("chemical_potential", {"chemical_potential": 0.1}),
        ("electric_field", {"electric_field": [0, 0, 0.1]}),
        ("dtype float64, not float32", {"potential": Potential(small_model("lr", dtype="float32"))}),
        ("model", {"potential": Potential(small_model("nequip"))}),
    ):
        with pytest.raises(InputError, match=name):
            resume(**options)
    resume(charge=0.0)  # which is the same, stated otherwise
    assert load_state(tmp_path / "run.checkpoint.npz").step == 4


def test_the_same_atoms_object_goes_on(potential, tmp_path):
    """It has been moved to where the run stands."""
    atoms = structures.salt()
    run_md(atoms, potential, settings(3), tmp_path / "parts.extxyz")
    run_md(atoms, potential, settings(7), tmp_path / "parts.extxyz", resume=True)
    run_md(structures.salt(), potential, settings(7), tmp_path / "whole.extxyz")
    require_same_files(MDFiles(tmp_path / "parts.extxyz"), MDFiles(tmp_path / "whole.extxyz"))


def test_what_changes_the_last_bits_is_told(potential, tmp_path):
    run_md(structures.salt(), potential, settings(3), tmp_path / "run.extxyz")
    notes = []
    other = Potential(small_model("lr"), backend="reference")
    run_md(structures.salt(), other, settings(5), tmp_path / "run.extxyz", resume=True, on_note=notes.append)
    assert len(notes) == 1 and "backend cpu, not reference" in notes[0] and "not to the last bit" in notes[0]


def test_forces_of_another_kind_are_refused(potential, tmp_path, monkeypatch):
    run_md(structures.salt(), potential, settings(3), tmp_path / "run.extxyz")
    evaluate = potential.evaluate

    def scaled(*arguments, **options):
        found = evaluate(*arguments, **options)
        found[0].forces[...] *= 1.1
        return found

    monkeypatch.setattr(potential, "evaluate", scaled)
    with pytest.raises(CheckpointError, match="forces of step 3 differ by"):
        run_md(structures.salt(), potential, settings(5), tmp_path / "run.extxyz", resume=True)


def test_checkpoints_of_other_versions_are_refused(potential, tmp_path):
    run_md(structures.salt(), potential, settings(1), tmp_path / "run.extxyz")
    path = tmp_path / "run.checkpoint.npz"
    with np.load(path) as content:
        arrays = dict(content)
    arrays["plain"] = np.array(str(arrays["plain"]).replace('"format": ', '"format": 1'))
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match="another version"):
        run_md(structures.salt(), potential, settings(2), tmp_path / "run.extxyz", resume=True)


def kept(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_of_the_user_stay(potential, tmp_path):
    """In the place of a log or a checkpoint, with every option; what a run that died began is replaced."""
    other = io.BytesIO()
    np.savez(other, step=np.array(3))
    run = tmp_path / "run.extxyz"
    for name, content in (
        ("run.csv", b"a,b\n1,2\n"),
        ("run.csv", b"step,time_fs\n1,2\n"),
        ("run.checkpoint.npz", other.getvalue()),
        ("run.checkpoint.npz", b"text"),
    ):
        (tmp_path / name).write_bytes(content)
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(FastlrError, match=f"{name}: (exists, and is no|not a sound)"):
                run_md(structures.water(), potential, settings(1), run, **options)
        assert kept(tmp_path) == {name: content}
        (tmp_path / name).unlink()
    (tmp_path / "run.csv").write_text(LOG_HEADER[:9])
    run_md(structures.water(), potential, settings(1), run, overwrite=True)
    run_md(structures.water(), potential, settings(1), run, overwrite=True)


def test_runs_that_differ_by_their_suffix_keep_their_files(potential, tmp_path):
    run_md(structures.water(), potential, settings(1), tmp_path / "a.xyz")
    with_checkpoint = kept(tmp_path)
    for without in (False, True):
        if without:
            (tmp_path / "a.checkpoint.npz").unlink()
        before = kept(tmp_path)
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError, match=r"exists, and belongs to the run .*a\.xyz; give"):
                run_md(structures.water(), potential, settings(1), tmp_path / "a.extxyz", **options)
        assert kept(tmp_path) == before
    run_md(structures.water(), potential, settings(1), tmp_path / "a.xyz", overwrite=True)
    assert kept(tmp_path) == with_checkpoint
    (tmp_path / "a.extxyz").write_text("the structure that it started from")
    run_md(structures.water(), potential, settings(1), tmp_path / "a.xyz", overwrite=True)
    run_md(structures.water(), potential, settings(2), tmp_path / "a.xyz", resume=True)


@pytest.mark.parametrize("name", ["run.csv", "run.checkpoint.npz", "run.extxyz"])
def test_folders_and_links_in_the_place_of_a_file(potential, tmp_path, name):
    (tmp_path / name).mkdir()
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match=f"{name}: is a folder"):
            run_md(structures.water(), potential, settings(1), tmp_path / "run.extxyz", **options)
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{name} exists"):
        run_md(structures.water(), potential, settings(1), tmp_path / "run.extxyz")
    run_md(structures.water(), potential, settings(1), tmp_path / "run.extxyz", overwrite=True)
    assert (tmp_path / name).is_file() and not (tmp_path / name).is_symlink()
