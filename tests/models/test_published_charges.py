"""Charge equilibration against published models: EEQ of DFT-D4, and QEq's parameters."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.units import Bohr
from fastlr.kernels.charge_solver.naive import solve_charges
from fastlr.kernels.ewald.naive import coulomb_matrix
from fastlr.kernels.ewald.system import System
from reference import eeq
from reference.coulomb import bordered_solve, cell_matrix, molecule_matrix
from reference.differences import relative_error
from scipy.special import erf

from fastlr.backends import resolve
from fastlr.constants import COULOMB_CONSTANT, HARTREE
from fastlr.graph import CoulombSettings, Graph
from fastlr.nn.charge_equilibration import ChargeEquilibration

BOHR = COULOMB_CONSTANT / HARTREE  # Å; the length that makes the package's own units consistent

# Water, bohr, from the xtb program's tests of this model, with what they expect to 1e-10 (atomic units).
WATER = np.array([[0.0, 0.0, -0.73578586109551], [1.44183152868459, 0.0, 0.36789293054775]])
WATER = np.vstack([WATER, WATER[1] * [-1.0, 1.0, 1.0]])
WATER_CN, WATER_CHARGE, WATER_ENERGY = 1.9895544848535, -0.59582744684480, -0.64308088326667e-01

# A cell of Si2O4 from the same tests (fractional coordinates, bohr).
SILICA_CELL = 8.7413053236641 * np.eye(3)
SILICA = [
    [0.095985472469032, 0.049722204206931, 0.10160624337938],
    [0.54722204206931, 0.52863628207623, 0.38664208660311],
    [0.29843937068984, 0.39572194413818, 0.20321248675876],
    [0.23364982659922, 0.85647058758674, 0.31884968761485],
    [0.72250232459952, 0.65548544066844, 0.056207709103487],
    [0.70514214000043, 0.28321754549582, 0.36424822189074],
] @ SILICA_CELL
SILICA_CN = {1: 3.6864725130236, 4: 1.0523558225297, 5: 1.1699488478421}
SILICA_CHARGES = {0: 0.56976165345597, 2: -0.24549792737727, 3: -0.30064628677070}
SILICA_ENERGY = -0.13262207653027


def matrix_of(graph: Graph, widths) -> torch.Tensor:
    squared_widths = torch.as_tensor(widths) ** 2
    return coulomb_matrix(
        System.of(graph.positions, squared_widths, graph.cell, graph.batch, graph.node_ptr, graph.coulomb)
    )


def solve(matrix, hardness, chi, total=0.0):
    """Charges and energy by the kernels, in whatever units the arguments have."""
    hessian = matrix + torch.diag_embed(torch.as_tensor(hardness))[None]
    chi = torch.as_tensor(chi)
    mask = torch.ones(1, len(chi), dtype=torch.bool)
    q, _ = solve_charges(hessian, -chi[None], torch.tensor([total], dtype=torch.float64), mask)
    return q[0].numpy(), float(0.5 * q[0] @ hessian[0] @ q[0] + chi @ q[0])


def test_eeq_water():
    """The kernels give the published charges, in atomic units. (Hydrogen's gamma is negative, so that the layer, whose
    hardness is positive, cannot hold it; the matrix is positive definite all the same.)"""
    symbols = ["O", "H", "H"]
    numbers = eeq.coordination_numbers(symbols, WATER)
    assert numbers[0] == pytest.approx(WATER_CN, abs=1e-10)
    _, gamma, _, a, _ = eeq.parameters(symbols)
    graph = Graph.from_atoms(Atoms(symbols, WATER), ["H", "O"], 4.0, CoulombSettings((0.5, 0.5)))
    chi = eeq.electronegativities(symbols, WATER)
    q, energy = solve(matrix_of(graph, a / np.sqrt(2.0)), gamma, chi)
    assert q[0] == pytest.approx(WATER_CHARGE, abs=1e-10)
    assert energy == pytest.approx(WATER_ENERGY, abs=1e-10)
    expected, _ = bordered_solve(eeq.molecule_hessian(symbols, WATER), chi, 0.0)
    assert relative_error(q, expected) < 1e-12


def test_eeq_silica():
    """A periodic case. The k = 0 term, where conventions differ, moves no charge of a neutral cell.

    With the published coordination numbers to 1e-9 we come within 1e-4 of xtb's charges, no closer, and agree to
    rounding with a plain Fourier series. The tolerance against xtb therefore stands for that program's lattice sums.
    """
    symbols = ["Si", "Si", "O", "O", "O", "O"]
    numbers = eeq.coordination_numbers(symbols, SILICA, SILICA_CELL, cutoff=20.0)
    for atom, expected in SILICA_CN.items():
        assert numbers[atom] == pytest.approx(expected, abs=1e-9)
    _, gamma, _, a, _ = eeq.parameters(symbols)
    widths = a / np.sqrt(2.0)
    atoms = Atoms(symbols, SILICA, cell=SILICA_CELL, pbc=True)
    graph = Graph.from_atoms(atoms, ["O", "Si"], 4.0, CoulombSettings((1.0, 1.1), accuracy=1e-14))
    chi = eeq.electronegativities(symbols, SILICA, SILICA_CELL)
    q, energy = solve(matrix_of(graph, widths), gamma, chi)
    for atom, expected in SILICA_CHARGES.items():
        assert q[atom] == pytest.approx(expected, abs=2e-4)
    assert energy == pytest.approx(SILICA_ENERGY, abs=5e-5)
    expected, _ = bordered_solve(cell_matrix(SILICA, SILICA_CELL, widths) + np.diag(gamma), chi, 0.0)
    assert relative_error(q, expected) < 1e-10


def layer_charges(atoms, hardness, widths, chi, total):
    """Charges by the layer, everything in eV, Å and e."""
    species = sorted(set(atoms.symbols))
    layer = ChargeEquilibration([hardness[s] for s in species], [widths[s] for s in species], resolve("reference"))
    settings = CoulombSettings(tuple(widths[s] for s in species))
    graph = Graph.from_atoms(atoms, species, 3.0, settings, total)
    return layer(graph, torch.as_tensor(chi))["charges"].detach().numpy()


EEQ_CASES = {
    "NaCl dimer": Atoms("NaCl", [[0.0, 0.0, 0.0], [0.0, 0.0, 2.36]]),
    "CO2": molecule("CO2"),
    "NaCl trimer": Atoms("NaClNa", [[0.0, 0.1, 0.0], [0.0, 0.0, 2.5], [0.3, 0.9, 4.8]]),
}


@pytest.mark.parametrize("total", [0.0, 1.0], ids=["neutral", "cation"])
@pytest.mark.parametrize("case", EEQ_CASES)
def test_eeq_in_our_units(case, total):
    """The layer in eV and Å against the published equations in atomic units: catches Å for bohr, s for sqrt2 s, and
    J for J / 2."""
    atoms = EEQ_CASES[case]
    symbols, positions = list(atoms.symbols), atoms.positions / BOHR
    chi = eeq.electronegativities(symbols, positions)
    expected, _ = bordered_solve(eeq.molecule_hessian(symbols, positions), chi, total)
    hardness = {s: eeq.PARAMETERS[s][1] * HARTREE for s in set(symbols)}
    widths = {s: eeq.PARAMETERS[s][3] / np.sqrt(2.0) * BOHR for s in set(symbols)}
    assert relative_error(layer_charges(atoms, hardness, widths, chi * HARTREE, total), expected) < 1e-10
    assert expected[0] > 0.0  # Na and C are the positive ones


# Electronegativity and idempotential (the whole self-repulsion J_AA) of QEq in eV: Rappé & Goddard, J. Phys. Chem. 95,
# 3358 (1991), Table 1. QEq screens with Slater functions; here Gaussians of these widths (Å) stand in, our choice.
QEQ = {"H": (4.5280, 13.8904, 0.75), "O": (8.741, 13.364, 0.70), "Na": (2.843, 4.592, 2.00), "Cl": (8.564, 9.892, 0.99)}


@pytest.mark.parametrize("total", [0.0, -1.0], ids=["neutral", "anion"])
@pytest.mark.parametrize("name", ["H2O", "HCl", "NaCl", "ClO"])
def test_qeq_with_gaussian_screening(name, total):
    """The idempotential is J plus the Gaussian's own repulsion: J_AA = J + k / (s sqrt(pi))."""
    atoms = molecule(name)
    chi, idempotential, widths = np.array([QEQ[symbol] for symbol in atoms.symbols]).T
    hessian = np.diag(idempotential)
    for i, j in np.argwhere(~np.eye(len(atoms), dtype=bool)):
        r = atoms.get_distance(i, j)
        hessian[i, j] = COULOMB_CONSTANT * erf(r / np.sqrt(2.0 * (widths[i] ** 2 + widths[j] ** 2))) / r
    expected, _ = bordered_solve(hessian, chi, total)
    hardness = {s: QEQ[s][1] - COULOMB_CONSTANT / (QEQ[s][2] * np.sqrt(np.pi)) for s in set(atoms.symbols)}
    charges = layer_charges(atoms, hardness, {s: QEQ[s][2] for s in hardness}, chi, total)
    assert relative_error(charges, expected) < 1e-10


def test_energy_is_that_minimised():
    """Site and Coulomb energies together are the minimum itself, factors of one half included."""
    atoms = molecule("H2O")
    chi, hardness, width = np.array([2.0, -1.0, -0.5]), {"H": 5.0, "O": 7.0}, {"H": 0.4, "O": 0.7}
    own = np.array([width[symbol] for symbol in atoms.symbols])
    hessian = COULOMB_CONSTANT * molecule_matrix(atoms.positions, own)
    coulomb = hessian.copy()
    hessian += np.diag([hardness[symbol] for symbol in atoms.symbols])
    q, _ = bordered_solve(hessian, chi, 1.0)
    layer = ChargeEquilibration([5.0, 7.0], [0.4, 0.7], resolve("reference"))
    out = layer(Graph.from_atoms(atoms, ["H", "O"], 3.0, CoulombSettings((0.4, 0.7)), 1.0), torch.from_numpy(chi))
    assert float(out["coulomb_energy"]) == pytest.approx(0.5 * q @ coulomb @ q, rel=1e-12)
    total = float(out["site_energies"].sum() + out["coulomb_energy"])
    assert total == pytest.approx(chi @ q + 0.5 * q @ hessian @ q, rel=1e-12)


def test_units():
    assert pytest.approx(Bohr, rel=1e-8) == BOHR
