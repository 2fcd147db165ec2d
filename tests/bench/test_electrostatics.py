"""Peers of the electrostatics benchmarks compute what they are said to compute, to the accuracy they are tuned to."""

import math
from dataclasses import replace

import pytest
import torch
from ase.build import bulk
from fastlr.bench import electrostatics, electrostatics_peers, report
from fastlr.bench.electrostatics import TOLERANCE, equilibration_cell, exact, molecules, rock_salt
from fastlr.bench.electrostatics_peers import EQUILIBRATION_PEERS, PEERS, CoulombPeer, Mlipops, System, TorchPMEP3M

from fastlr.constants import COULOMB_CONSTANT
from fastlr.parity import relative_rms

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
    monkeypatch.setattr(electrostatics_peers, "find_spec", lambda name: None)
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
    monkeypatch.setattr(electrostatics, "SMEARINGS", electrostatics.SMEARINGS[10:40:3])
    beyond = electrostatics.truncation(system)
    (_, parameters), *_ = electrostatics.tune(TorchPMEP3M, system, system, beyond, TOLERANCE)
    assert 4.0 < parameters["cutoff"] < 9.0
    assert 0.1 * TOLERANCE < relative_rms(TorchPMEP3M(system, **parameters)()[1], exact(system)[1]) <= TOLERANCE


RESOLUTIONS_OF_P3M = [
    {"spacing": 11.28 / 32, "interpolation_nodes": 5},
    {"spacing": 11.28 / 4, "interpolation_nodes": 3},  # too coarse for any cutoff
]


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


class Absent(Plain):
    name, distribution, module = "absent", "no-such-package", "no_such_package"


def test_contestants_from_elsewhere(monkeypatch):
    monkeypatch.setattr(electrostatics, "SMEARINGS", electrostatics.SMEARINGS[:1])  # which these do not have
    lines = []
    result = electrostatics.run_coulomb(2, contestants=(Plain, Wrong, Absent), seconds=0.0, say=lines.append)
    assert set(result["times"]["energy and forces"]) == {"plain"}
    assert result["relative_errors"]["plain"]["forces"] < 1e-12
    assert result["left_out"]["absent"] == "no-such-package is not installed"
    assert any("wrong: NOT TIMED" in line for line in lines)
    assert "| NaCl, 64 ions | energy and forces |" in report.table([result])


def test_molecules():
    problem = molecules(64)
    sizes = problem.ptr.diff()
    assert int(sizes.min()) == 3
    assert int(sizes.max()) == 20
    result = electrostatics.run_equilibration(problem, seconds=0.0, say=lambda line: None)
    assert set(result["times"]) == {"charges", "charges and gradient", "solve"}
    assert set(result["times"]["solve"]) == {"loop of dense solves", "padded batched solve"}
    assert max(max(row.values()) for row in result["relative_errors"].values()) < 1e-9
    charges = electrostatics.exact_charges(problem, problem.positions)
    structure = torch.repeat_interleave(torch.arange(64), sizes)
    totals = torch.zeros(64).double().index_add(0, structure, charges)
    torch.testing.assert_close(totals, problem.total, rtol=0.0, atol=1e-10)


def test_equilibration_of_a_cell():
    """mlipops' charges and their gradient are those of the same model."""
    problem = equilibration_cell(4)
    available(Mlipops, problem)
    result = electrostatics.run_equilibration(
        problem, contestants=EQUILIBRATION_PEERS, seconds=0.0, say=lambda line: None
    )
    assert set(result["left_out"]) == {"loop of dense solves", "padded batched solve"}
    assert max(result["relative_errors"]["mlipops"].values()) < TOLERANCE
    assert "mlipops" in result["times"]["charges"]


def test_the_matrix_of_a_large_cell_is_that_of_a_molecule():
    """For a neutral set of charges, up to what dipoles do to their images over 60 Å."""
    few = equilibration_cell(1)
    large = replace(few, cell=60.0 * torch.eye(3, dtype=torch.float64))
    charges = torch.where(few.hardness < 6.0, 1.0, -1.0).double()  # sodium is the softer
    alone = electrostatics_peers.molecular_matrix(few.positions, few.widths, few.hardness)
    periodic = electrostatics.periodic_matrix(large, few.positions)
    assert float(charges @ periodic @ charges) == pytest.approx(float(charges @ alone @ charges), rel=1e-4)
