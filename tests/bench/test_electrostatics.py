"""Peers of the electrostatics benchmarks compute what they are said to compute, to the accuracy they are tuned to."""

import json
import math
import time
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from ase.build import bulk
from fastlr.bench import coulomb, coulomb_tuning, electrostatics_fastlr, equilibration, peers, report
from fastlr.bench.coulomb import TOLERANCE
from fastlr.bench.coulomb_peers import PEERS, CoulombPeer, TorchPMEP3M
from fastlr.bench.electrostatics_fastlr import COULOMB, Fastlr, FastlrEwald, FastlrMesh, FastlrMeshTuned
from fastlr.bench.equilibration import equilibration_cell, exact_charges, molecules, periodic_matrix
from fastlr.bench.equilibration_peers import Loop, Mlipops, molecular_matrix
from fastlr.bench.point_charges import System, exact, rock_salt
from fastlr.bench.timing import alternate, over_each

from fastlr.cli import main
from fastlr.constants import COULOMB_CONSTANT
from fastlr.numerics import relative_rms

# generous ones: with a smearing of 1.8 Å and a cutoff of 9 Å, pairs beyond it make an error of 2e-5
RESOLUTIONS = {
    "torch-pme Ewald": {"k_cutoff": 2.5},
    "torch-pme PME": {"spacing": 11.28 / 32, "interpolation_nodes": 7},
    "torch-pme P3M": {"spacing": 11.28 / 32, "interpolation_nodes": 5},
    "nvalchemi Ewald": {"k_cutoff": 2.5},
    "nvalchemi PME": {"spacing": 11.28 / 48, "spline_order": 4},  # of higher order, splines lose digits in float32
}


@pytest.fixture(scope="module")
def salt():
    system = rock_salt(2)
    return system, *exact(system)


def available(peer, *arguments):
    if reason := peer.obstacle(*arguments):
        pytest.skip(f"{peer.name}: {reason}")
    return peer


@pytest.mark.parametrize(
    ("structure", "numbers", "distance", "madelung"),
    [
        (bulk("NaCl", "rocksalt", a=5.64, cubic=True), {11: 1.0, 17: -1.0}, 2.82, 1.7475645946),
        (bulk("CsCl", "cesiumchloride", a=4.12), {55: 1.0, 17: -1.0}, 4.12 * math.sqrt(0.75), 1.7626747731),
        (bulk("ZnS", "zincblende", a=5.41), {30: 1.0, 16: -1.0}, 5.41 * math.sqrt(3.0) / 4.0, 1.6380550534),
    ],
)
def test_the_reference_gives_madelung_constants(structure, numbers, distance, madelung):
    charges = torch.tensor([numbers[number] for number in structure.numbers]).double()
    system = System("", torch.tensor(structure.positions), torch.tensor(structure.cell.array), charges)
    energy, forces = exact(system)
    assert float(energy) / (len(structure) / 2) * distance / COULOMB_CONSTANT == pytest.approx(-madelung, rel=1e-8)
    assert float(forces.abs().max()) < 1e-6


def test_the_reference_does_not_depend_on_its_splitting(salt):
    system, energy, forces = salt
    other = exact(system, 1e-11, 9.0)
    assert float(other[0]) == pytest.approx(float(energy), rel=1e-9)
    assert relative_rms(other[1], forces) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_energy_and_forces(salt, peer, dtype):
    system, energy, forces = salt
    found = available(peer)(system.to(dtype), cutoff=9.0, smearing=1.8, **RESOLUTIONS[peer.name])()
    assert found[1].dtype == dtype
    assert float(found[0]) == pytest.approx(float(energy), rel=1e-4)
    assert relative_rms(found[1], forces) < TOLERANCE


@pytest.mark.parametrize("peer", [*PEERS, Mlipops], ids=lambda peer: peer.name)
def test_missing_packages_are_named(peer, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    arguments = (equilibration_cell(1),) if peer is Mlipops else ()
    assert peer.obstacle(*arguments) == f"{peer.distribution} is not installed"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_resolutions_are_understood(peer):
    system = rock_salt(1)
    for resolution in available(peer).resolutions(rock_salt(2))[:2]:
        assert torch.isfinite(peer(system, cutoff=4.0, smearing=1.0, **resolution)()[1]).all()


def test_tuning_keeps_the_tolerance(monkeypatch):
    available(TorchPMEP3M)
    system = rock_salt(2)
    monkeypatch.setattr(TorchPMEP3M, "resolutions", classmethod(lambda cls, system: RESOLUTIONS_OF_P3M))
    monkeypatch.setattr(TorchPMEP3M, "suggestions", CoulombPeer.suggestions)
    monkeypatch.setattr(coulomb_tuning, "SMEARINGS", coulomb_tuning.SMEARINGS[10:40:3])
    beyond = coulomb_tuning.truncation(system)
    (_, parameters), *_ = coulomb_tuning.tune(TorchPMEP3M, system, system, beyond, TOLERANCE)
    assert 4.0 < parameters["cutoff"] < 9.0
    assert 0.1 * TOLERANCE < relative_rms(TorchPMEP3M(system, **parameters)()[1], exact(system)[1]) <= TOLERANCE


RESOLUTIONS_OF_P3M = [
    {"spacing": 11.28 / 32, "interpolation_nodes": 5},
    {"spacing": 11.28 / 4, "interpolation_nodes": 3},  # too coarse for any cutoff
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("peer", "options"),
    [(FastlrEwald, {}), (FastlrEwald, {"split": 0.8}), (FastlrMesh, {}), (FastlrMesh, {"split": 6.0})],
)
def test_energy_and_forces_of_fastlr(salt, peer, options, dtype):
    system, energy, forces = salt
    found = peer(system.to(dtype), accuracy=1e-6, **options)()
    assert found[1].dtype == dtype
    assert float(found[0]) == pytest.approx(float(energy), rel=1e-5)
    assert relative_rms(found[1], forces) < 3e-5


def test_splits_are_those_asked_for():
    system = rock_salt(2)
    own, wider = (FastlrEwald(system, 1e-5, split).forces.system.tables.inverse_eta for split in (None, 1.25))
    torch.testing.assert_close(own, 1.25 * wider)
    tables = FastlrMesh(system, 1e-5, 6.0).forces.system.tables
    assert len(tables.neighbour) == len(system.neighbours(6.0, full=True)[0])


@pytest.mark.parametrize("peer", COULOMB, ids=lambda peer: peer.name)
def test_accuracies_of_fastlr_are_a_ladder(peer, salt):
    system, _, forces = salt
    rms = float((forces**2).sum(dim=1).mean().sqrt())
    suggestions = list(peer.suggestions(system, TOLERANCE * rms))
    for split in (None, *peer.splits):
        accuracies = [given["accuracy"] for given in suggestions if given.get("split") == split]
        assert accuracies == sorted(accuracies)
        # the ends of the ladder: one is accurate enough, the other is not
        options = {} if split is None else {"split": split}
        assert coulomb_tuning.error(peer, system, forces, {"accuracy": accuracies[0], **options}) < TOLERANCE
        assert coulomb_tuning.error(peer, system, forces, {"accuracy": accuracies[-1], **options}) > TOLERANCE
    assert peer.safer(suggestions[0])["accuracy"] < suggestions[0]["accuracy"]


class Plain(CoulombPeer):
    """A contestant without parameters to search, as one from elsewhere may be."""

    name, distribution, module = "plain", "torch", "torch"
    factor = 1.0

    def __init__(self, system, cutoff, smearing):
        self.system = system

    def __call__(self):
        energy, forces = exact(self.system)
        return energy, self.factor * forces

    @classmethod
    def resolutions(cls, system):
        return []

    @classmethod
    def suggestions(cls, system, accuracy):
        yield {"cutoff": 14.0, "smearing": 2.0}


class Wrong(Plain):
    name, factor = "wrong", 1.0 + 2.0 * TOLERANCE


class WrongEnergy(Plain):
    name = "wrong energy"

    def __call__(self):
        energy, forces = super().__call__()
        return (1.0 + 2.0 * TOLERANCE) * energy, forces


class Nothing(Plain):
    """Right with the smaller system that is used for tuning."""

    name = "not a number"

    def __call__(self):
        energy, forces = super().__call__()
        return energy, forces if len(forces) < 512 else math.nan * forces


class WrongVariant(Plain):
    """Right, but for one of its forms."""

    name = "right"
    variants = {"faster": {"factor": 1.0 + 2.0 * TOLERANCE}}  # noqa: RUF012

    def __init__(self, system, cutoff, smearing, factor=1.0):
        self.system, self.factor = system, factor


class Absent(Plain):
    name, distribution, module = "absent", "no-such-package", "no_such_package"


def test_contestants_from_elsewhere(monkeypatch):
    monkeypatch.setattr(coulomb_tuning, "SMEARINGS", coulomb_tuning.SMEARINGS[:1])  # which these do not have
    lines, contestants = [], (Plain, Wrong, WrongEnergy, WrongVariant, Absent)
    result = coulomb.run_coulomb(2, contestants=contestants, seconds=0.0, say=lines.append)
    assert set(result["times"]["energy and forces"]) == {"plain", "right"}
    assert result["relative_errors"]["plain"]["forces"] < 1e-12
    assert result["left_out"]["absent"] == "no-such-package is not installed"
    for name in ("wrong", "wrong energy", "right, faster"):
        assert any(f"{name}: NOT TIMED" in line for line in lines)
    assert "| NaCl, 64 ions | energy and forces |" in report.table([result])


def test_a_contestant_that_fails_with_the_system_itself_is_not_timed(monkeypatch):
    monkeypatch.setattr(coulomb_tuning, "SMEARINGS", coulomb_tuning.SMEARINGS[:1])
    monkeypatch.setattr(coulomb, "MOST_STEPS", 2)
    reference, lines = exact(rock_salt(4)), []
    options = {"sample": 2, "reference": reference, "seconds": 0.0, "say": lines.append}
    result = coulomb.run_coulomb(4, contestants=(Nothing,), **options)
    assert result["times"] == {}
    assert any("not a number: NOT TIMED" in line for line in lines)


def test_ratios_to_each_of_the_others():
    runs = {"a": lambda: time.sleep(1e-3), "b": lambda: time.sleep(4e-3), "ours": lambda: time.sleep(2e-3)}
    result = alternate(runs, seconds=0.0, over_each=["ours"])
    assert set(result["ours"]["speedup_over"]) == {"a", "b"}
    assert result["ours"]["speedup"] == {"over": "a", **result["ours"]["speedup_over"]["a"]}
    assert result["ours"]["speedup_over"]["b"]["median"] > result["ours"]["speedup_over"]["a"]["median"]
    assert "speedup_over" not in result["b"]
    assert "over a, " in over_each(result["ours"])
    assert over_each(result["b"]) == ""


class WrongCharges(Loop):
    """Right charges, and a gradient that is not theirs."""

    name = "wrong gradient"

    def __call__(self, positions):
        charges = super().__call__(positions)
        return charges.detach() + (1.0 + 2.0 * TOLERANCE) * (charges - charges.detach())


def test_wrong_charges_are_not_timed():
    lines = []
    options = {"contestants": (Loop, WrongCharges, Fastlr), "seconds": 0.0, "say": lines.append}
    result = equilibration.run_equilibration(molecules(8), **options)
    assert set(result["times"]["charges"]) == {"loop of dense solves", "fastlr"}
    assert result["relative_errors"]["wrong gradient"]["charges"] < TOLERANCE
    assert any("wrong gradient: NOT TIMED" in line for line in lines)


@pytest.fixture
def quick(monkeypatch):
    """No search, and a machine whose limits are known."""
    monkeypatch.setattr(
        "fastlr.bench.machine.limits", lambda device: {"copy_GB_per_s": 20.0, "float32_GFLOP_per_s": 100.0}
    )
    monkeypatch.setattr(coulomb_tuning, "SMEARINGS", coulomb_tuning.SMEARINGS[:1])
    monkeypatch.setattr(electrostatics_fastlr, "LADDER", electrostatics_fastlr.LADDER[:12:3])
    monkeypatch.setattr(FastlrMeshTuned, "splits", (6.0,))
    monkeypatch.setattr(coulomb, "CONTESTANTS", (Plain, *COULOMB))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_coulomb_sums_from_the_shell(quick, tmp_path, capsys, dtype):
    output = tmp_path / "new" / "electrostatics.json"
    command = ["bench", "electrostatics", "--repeat", "2", "--dtype", dtype, "--seconds", "0"]
    names = "plain,fastlr mesh (tuned),fastlr mesh"
    assert main([*command, "--against", names, "-o", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["benchmark"] == "electrostatics"
    assert record["machine"]["versions"]["torch"] == version("torch")
    (result,) = record["results"]
    assert result["dtype"] == dtype
    rows = result["times"]["energy and forces"]
    assert list(rows) == names.split(",")
    assert rows["fastlr mesh"]["speedup"]["over"] == "plain"
    assert set(rows["fastlr mesh"]["speedup_over"]) == {"plain", "fastlr mesh (tuned)"}
    assert max(row["forces"] for row in result["relative_errors"].values()) <= TOLERANCE
    assert set(result["versions"]) == {"torch", "fastlr"}
    assert "| NaCl, 64 ions | energy and forces |" in capsys.readouterr().out
    assert main([*command, "--against", "plain,nothing"]) == 2
    assert "there is no contestant 'nothing'; there are plain, fastlr Ewald (tuned)," in capsys.readouterr().err


def test_equilibration_from_the_shell(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(equilibration.PROBLEMS, "molecules", lambda: molecules(8))
    monkeypatch.setitem(equilibration.PROBLEMS, "cell", lambda: equilibration_cell(2))
    output = tmp_path / "equilibration.json"
    command = ["bench", "equilibration", "--seconds", "0", "--against", "loop of dense solves,fastlr"]
    assert main([*command, "-o", str(output)]) == 0
    first, second = json.loads(output.read_text())["results"]
    assert first["times"]["charges and gradient"]["fastlr"]["speedup"]["over"] == "loop of dense solves"
    assert set(second["times"]["charges"]) == {"fastlr"}
    assert "8 molecules of 3 to 20 atoms | charges |" in capsys.readouterr().out
    assert main([*command, "--problem", "slab"]) == 2
    assert "there is no 'slab'; there are molecules, cell" in capsys.readouterr().err


def test_molecules():
    problem = molecules(64)
    sizes = problem.ptr.diff()
    assert int(sizes.min()) == 3
    assert int(sizes.max()) == 20
    result = equilibration.run_equilibration(problem, seconds=0.0, say=lambda line: None)
    assert set(result["times"]) == {"charges", "charges and gradient", "solve"}
    assert set(result["times"]["solve"]) == {"loop of dense solves", "padded batched solve", "fastlr"}
    assert set(result["times"]["solve"]["fastlr"]["speedup_over"]) == {"loop of dense solves", "padded batched solve"}
    assert max(max(row.values()) for row in result["relative_errors"].values()) < 1e-9
    charges = exact_charges(problem, problem.positions)
    structure = torch.repeat_interleave(torch.arange(64), sizes)
    totals = torch.zeros(64).double().index_add(0, structure, charges)
    torch.testing.assert_close(totals, problem.total, rtol=0.0, atol=1e-10)


def test_equilibration_of_a_cell():
    """mlipops' charges and their gradient are those of the same model."""
    problem = equilibration_cell(4)
    available(Mlipops, problem)
    result = equilibration.run_equilibration(problem, seconds=0.0, say=lambda line: None)
    assert set(result["left_out"]) == {"loop of dense solves", "padded batched solve"}
    assert max(result["relative_errors"]["mlipops"].values()) < TOLERANCE
    assert max(result["relative_errors"]["fastlr"].values()) < TOLERANCE
    assert max(result["relative_errors"]["fastlr (default accuracy)"].values()) < 1e-7
    assert next(iter(result["times"]["charges"])) == "mlipops"
    assert list(result["times"]["charges"])[-1] == "fastlr"
    assert "solve" not in result["times"]


def test_the_matrix_of_a_large_cell_is_that_of_a_molecule():
    """For a neutral set of charges, up to what dipoles do to their images over 60 Å."""
    few = equilibration_cell(1)
    large = replace(few, cell=60.0 * torch.eye(3, dtype=torch.float64))
    charges = torch.where(few.hardness < 6.0, 1.0, -1.0).double()  # sodium is the softer
    alone = molecular_matrix(few.positions, few.widths, few.hardness)
    periodic = periodic_matrix(large, few.positions)
    assert float(charges @ periodic @ charges) == pytest.approx(float(charges @ alone @ charges), rel=1e-4)
