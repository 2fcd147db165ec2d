"""The Coulomb matrix of Gaussian charges: Madelung constants, invariances, limits, independent formulas."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from fastlr.kernels.ewald import tables as tables_module
from fastlr.kernels.ewald.naive import coulomb_matrix
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import balanced_eta, cheapest_eta, coulomb_tables, wave_indices, wave_seconds
from reference import structures
from reference.coulomb import cell_matrix, molecule_matrix
from reference.differences import relative_error

from fastlr.constants import HARTREE
from fastlr.graph import CoulombSettings, Graph


def system_of(positions, cell, widths, eta=None, accuracy=1e-15, pbc=None) -> System:
    """One structure; tensors stay differentiable. A cell of None is a molecule."""
    positions, widths = torch.as_tensor(positions), torch.as_tensor(widths)
    pbc = np.full(3, cell is not None) if pbc is None else np.array(pbc, bool)
    cell = torch.eye(3, dtype=torch.float64) if cell is None else torch.as_tensor(cell)
    arrays = (tensor.detach().numpy() for tensor in (positions, cell))
    tables = coulomb_tables(*arrays, pbc, widths.detach().numpy(), accuracy, eta)
    n = len(positions)
    batch = torch.zeros(n, dtype=torch.int64)
    return System.of(positions, widths**2, cell[None], batch, torch.tensor([0, n]), tables)


def matrix_of(*arguments, **options) -> torch.Tensor:
    """(n, n) Coulomb matrix of one structure; tensors stay differentiable."""
    return coulomb_matrix(system_of(*arguments, **options))[0]


def random_cell(rng, n: int, widest: float = 1.7):
    """A skewed cell of about 20 cubic Å an atom, left-handed half the time: positions, cell, widths."""
    cell = (np.eye(3) + 0.35 * rng.uniform(-1.0, 1.0, (3, 3))) * (20.0 * n) ** (1.0 / 3.0)
    if rng.random() < 0.5:
        cell = cell[[1, 0, 2]]
    return rng.uniform(-1.0, 2.0, (n, 3)) @ cell, cell, rng.uniform(0.3, widest, n)


# structure, nearest-neighbour distance / a, Madelung constant referred to it
MADELUNG = {
    "NaCl": ("NaCl", "rocksalt", 0.5, 1.7475645946),
    "CsCl": ("CsCl", "cesiumchloride", np.sqrt(3.0) / 2.0, 1.7626747731),
    "ZnS": ("ZnS", "zincblende", np.sqrt(3.0) / 4.0, 1.6380550534),
}
SUPERCELLS = {
    "primitive": np.eye(3, dtype=int),
    "conventional": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),
    "skewed": np.array([[1, 2, 0], [0, 1, 1], [0, 0, 2]]),
    "left-handed": np.array([[0, 1, 0], [1, 0, 0], [0, 0, 2]]),
}


@pytest.mark.parametrize("width", [0.05, 0.2])
@pytest.mark.parametrize("supercell", SUPERCELLS.values(), ids=SUPERCELLS.keys())
@pytest.mark.parametrize("crystal", MADELUNG)
def test_madelung_constants(crystal, supercell, width):
    name, structure, ratio, constant = MADELUNG[crystal]
    a = 5.3
    primitive = bulk(name, structure, a=a)
    primitive.set_initial_charges([1.0, -1.0])
    atoms = make_supercell(primitive, supercell)
    q = torch.tensor(atoms.get_initial_charges())
    matrix = matrix_of(atoms.positions, atoms.cell.array, np.full(len(atoms), width))
    # Gaussians this narrow do not overlap: take their own energy away and point charges remain
    energy = 0.5 * float(q @ matrix @ q) - float((q**2).sum()) / (2.0 * width * np.sqrt(np.pi))
    pairs = len(atoms) / 2
    assert -energy * ratio * a / pairs == pytest.approx(constant, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_cell_agrees_with_fourier_series(n, rng):
    positions, cell, widths = random_cell(rng, n)
    expected = cell_matrix(positions, cell, widths)
    assert relative_error(matrix_of(positions, cell, widths), expected) < 1e-12


def test_one_atom_cell_agrees_with_fourier_series():
    atoms = structures.one_atom_cell()
    widths = np.array([0.6])
    matrix = matrix_of(atoms.positions, atoms.cell.array, widths)
    assert relative_error(matrix, cell_matrix(atoms.positions, atoms.cell.array, widths)) < 1e-12


@pytest.mark.parametrize("n", [0, 1, 2, 6])
def test_molecule_agrees_with_formula(n, rng):
    positions, _, widths = random_cell(rng, n)
    matrix = matrix_of(positions, None, widths)
    assert matrix.shape == (n, n)
    if n:
        assert relative_error(matrix, molecule_matrix(positions, widths)) < 1e-14


@pytest.mark.parametrize("total", [0.0, 1.5], ids=["neutral", "charged"])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_energy_does_not_depend_on_eta(n, total, rng):
    positions, cell, widths = random_cell(rng, n)
    q = rng.normal(size=n)
    q += (total - q.sum()) / n
    if not np.any(q):
        q[0] = 1.0
    q = torch.from_numpy(q)
    energies = [float(q @ matrix_of(positions, cell, widths, eta) @ q) for eta in (0.4, 0.9, 1.6, 2.7)]
    assert np.ptp(energies) < 1e-11 * abs(np.mean(energies))


def test_accuracy_is_kept(rng):
    """The tables' accuracy bounds what they leave out, for any splitting."""
    positions, cell, widths = random_cell(rng, 5)
    exact = matrix_of(positions, cell, widths)
    for accuracy in (1e-4, 1e-6, 1e-8):
        for eta in (0.5, 1.2, 2.5, None):
            error = torch.linalg.matrix_norm(matrix_of(positions, cell, widths, eta, accuracy) - exact, 2)
            # relative to the matrix; ten: many terms of the size of the last are left out together
            assert error < 10.0 * accuracy * torch.linalg.matrix_norm(exact, 2)


def test_matrix_is_positive_semidefinite(rng):
    """For every width and eta, so that a hardness of any size gives a minimum."""
    hardness = 0.005 * HARTREE / 14.399645478  # 1/Å
    for trial in range(20):
        n = int(rng.integers(1, 9))
        positions, cell, widths = random_cell(rng, n, widest=2.5)
        eta = [None, 0.5, 1.0, 2.0, 4.0][trial % 5]
        matrix = matrix_of(positions, cell, widths, eta, accuracy=1e-10)
        lowest = torch.linalg.eigvalsh(matrix)[0]
        assert lowest > -1e-9
        assert torch.linalg.eigvalsh(matrix + hardness * torch.eye(n))[0] > 0.999 * hardness


def test_molecule_is_positive_definite(rng):
    for _ in range(20):
        positions, _, widths = random_cell(rng, 9)
        assert torch.linalg.eigvalsh(matrix_of(positions, None, widths))[0] > 0.0


@pytest.mark.parametrize("total", [0.0, 1.0], ids=["neutral", "charged"])
def test_growing_cell_becomes_the_molecule(total, rng):
    """In a cubic cell of edge L, with dipole m, second moment T = sum q (r^2 + 3 s^2) and alpha = 2.837297,

        E(L) = E(molecule) - alpha Q^2 / (2 L) - 2 pi (m^2 - Q T) / (3 L^3) + O(L^-5)

    (Makov & Payne, Phys. Rev. B 51, 4014, 1995, for an infinite surrounding conductor). The widths s are in T because
    each Gaussian's potential averages to zero; a charged cell holds a uniform background.
    """
    positions = rng.uniform(-1.0, 1.0, (4, 3))
    widths = rng.uniform(0.3, 0.8, 4)
    q = rng.normal(size=4)
    q += (total - q.sum()) / 4
    isolated = 0.5 * q @ molecule_matrix(positions, widths) @ q
    dipole = q @ positions
    second_moment = np.sum(q * (np.sum(positions**2, axis=1) + 3.0 * widths**2))
    rest = []
    for edge in (12.0, 24.0, 48.0):
        matrix = matrix_of(positions, edge * np.eye(3), widths, accuracy=1e-13).numpy()
        energy = 0.5 * q @ matrix @ q
        expected = isolated - 2.8372974795 * total**2 / (2.0 * edge)
        expected -= 2.0 * np.pi * (dipole @ dipole - total * second_moment) / (3.0 * edge**3)
        rest.append(energy - expected)
    # what is left falls as L^-5, by 32 a step (more if its first coefficient is small)
    assert abs(rest[0]) > 16.0 * abs(rest[1]) > 256.0 * abs(rest[2])
    assert abs(rest[2]) < 1e-7 * abs(isolated)


def test_average_of_a_row_over_a_uniform_grid_is_zero(rng):
    """The k = 0 convention itself: one Gaussian's potential, averaged over the cell, vanishes."""
    _, cell, _ = random_cell(rng, 2)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) / 4.0
    positions = np.vstack([[0.1, 0.2, 0.3], grid @ cell])
    row = matrix_of(positions, cell, np.full(len(positions), 1.2), accuracy=1e-10)[0, 1:]
    # the grid's own rounding: waves that it cannot tell from a constant are damped by exp(-s^2 k^2)
    assert abs(float(row.mean())) < 1e-6 * float(row.abs().max())


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives_of_a_cell(check):
    atoms = structures.skewed_cell()
    atoms = atoms[:2]
    atoms.set_cell(atoms.cell.array * 0.9)
    cell = atoms.cell.array.copy()
    widths = np.array([0.5, 0.7])
    leaves = [torch.from_numpy(x).requires_grad_(True) for x in (atoms.positions, cell, widths)]
    # a coarse accuracy keeps the tables small; the derivatives are those of the sum as cut
    assert check(lambda *leaves: matrix_of(*leaves, eta=0.8, accuracy=1e-2), leaves, atol=1e-6)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives_of_a_molecule(check, rng):
    positions, _, widths = random_cell(rng, 3)
    leaves = [torch.from_numpy(x).requires_grad_(True) for x in (positions, widths)]
    assert check(lambda positions, widths: matrix_of(positions, None, widths), leaves)


def test_derivatives_of_a_one_atom_cell():
    """Only images: the position has no gradient, the cell does."""
    atoms = structures.one_atom_cell()
    leaves = [torch.from_numpy(x).requires_grad_(True) for x in (atoms.positions, atoms.cell.array.copy())]

    def function(positions, cell):
        return matrix_of(positions, cell, np.array([0.6]), eta=0.9, accuracy=1e-6)

    assert torch.autograd.gradcheck(function, leaves)
    position_grad, cell_grad = torch.autograd.grad(function(*leaves).sum(), leaves)
    assert position_grad.abs().max() < 1e-12
    assert cell_grad.abs().max() > 1e-3


def test_batch_equals_singles():
    """Sizes and periodicities mixed; the padding stays zero."""
    widths = {"H": 0.4, "O": 0.7, "Na": 1.6, "Cl": 1.0}
    settings = CoulombSettings(tuple(widths[symbol] for symbol in structures.SPECIES))
    atoms = [make() for make in (structures.MOLECULES | structures.CELLS).values()]
    graph = Graph.from_atoms(atoms, structures.SPECIES, 3.0, settings)
    squared_widths = torch.tensor(settings.widths, dtype=torch.float64)[graph.species] ** 2
    batch = coulomb_matrix(
        System.of(graph.positions, squared_widths, graph.cell, graph.batch, graph.node_ptr, graph.coulomb)
    )
    for one, matrix in zip(atoms, batch, strict=True):
        n = len(one)
        own_widths = np.array([widths[symbol] for symbol in one.symbols])
        single = matrix_of(one.positions, one.cell.array if one.pbc.all() else None, own_widths, None, 1e-10)
        assert torch.allclose(matrix[:n, :n], single, rtol=0.0, atol=1e-13)
        assert not matrix[n:].any()
        assert not matrix[:, n:].any()


def test_symmetry_and_translation(rng):
    positions, cell, widths = random_cell(rng, 4)
    matrix = matrix_of(positions, cell, widths)
    assert relative_error(matrix, matrix.T) < 1e-15
    moved = positions + np.array([[3, 0, -2], [0, 0, 0], [-1, 5, 0], [0, 1, 1]]) @ cell + [0.3, -0.1, 4.0]
    assert relative_error(matrix_of(moved, cell, widths), matrix) < 1e-12


def test_wave_indices_are_half_of_all(rng):
    _, cell, _ = random_cell(rng, 3)
    k_max = 6.0
    lines, waves = wave_indices(cell, k_max)
    assert set(np.unique(waves)) == {0.0, 2.0}
    half = {(*lines[line], (1, -1)[sign] * third) for line, sign, third in np.argwhere(waves > 0.0)}
    assert len(half) == np.count_nonzero(waves)
    reciprocal = 2.0 * np.pi * np.linalg.inv(cell).T
    everything = np.array(list(np.ndindex(41, 41, 41))) - 20
    inside = everything[np.linalg.norm(everything @ reciprocal, axis=1) < k_max]
    assert np.abs(inside).max() < 20  # the box is large enough
    full = {tuple(index) for index in inside if any(index)}
    assert half | {tuple(-i for i in index) for index in half} == full
    assert len(full) == 2 * len(half)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1)])
@pytest.mark.parametrize("wide", [0, 1, 5])
def test_a_few_wide_atoms(wide, pbc, rng, monkeypatch):
    """Pairs are the same whether a list of neighbours finds them or all distances are computed; atoms lie anywhere."""
    cell = (np.eye(3) + 0.2 * rng.uniform(-1.0, 1.0, (3, 3))) * 7.0
    positions, widths = rng.uniform(-2.0, 2.0, (40, 3)) @ cell, np.full(40, 0.3)
    widths[:wide] = rng.uniform(0.8, 1.6, wide)
    arguments = positions, cell, np.array(pbc, bool), widths, 4.0, 0.9, 0.4
    found = []
    for seconds in (1e-12, 1e3):  # of a distance
        monkeypatch.setattr(tables_module, "_TRIED", seconds)
        i, j, shift, _ = tables_module.near_pairs(*arguments)
        found.append(sorted(map(tuple, np.column_stack([i, j, shift]).tolist())))
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0]) > 40


@pytest.mark.parametrize("products", [1, 12, 100])
def test_cheapest_eta(products):
    """Neither a larger nor a smaller width is cheaper; with more products, fewer waves and more pairs pay."""
    widths = np.array([0.3, 0.3, 0.7] * 60)
    arguments = 1800.0, widths, 5.0
    eta = cheapest_eta(*arguments, products)
    least = wave_seconds(*arguments, eta, products)
    for factor in (0.6, 0.8, 0.9, 1.1, 1.25, 1.6):
        assert wave_seconds(*arguments, factor * eta, products) > least
    tables = coulomb_tables(
        np.random.default_rng(0).uniform(0.0, 12.0, (180, 3)), np.eye(3) * 12.16, np.ones(3, bool), widths, 3.7e-6,
        products=products,
    )  # fmt: skip
    assert 1.0 / float(tables.inverse_eta[0]) == pytest.approx(eta, rel=0.06)


def test_balanced_eta_scales_with_the_cell():
    # a cell of twice the edge at the same density: width grows as V^(1/6)
    assert balanced_eta(8000.0, 80) == pytest.approx(balanced_eta(1000.0, 10) * 8.0 ** (1.0 / 6.0))


def test_tables_hold_each_pair_in_both_rows():
    atoms = structures.skewed_cell()
    tables = coulomb_tables(atoms.positions, atoms.cell.array, atoms.pbc, np.array([0.5, 0.9, 1.3]), 1e-6)
    rows = np.repeat(np.arange(3), np.diff(tables.ptr.numpy()))
    entries = list(zip(rows.tolist(), tables.neighbour.tolist(), *tables.shift.T.tolist(), strict=True))
    assert len(set(entries)) == len(entries)
    assert {(j, i, -a, -b, -c) for i, j, a, b, c in entries} == set(entries)


def test_empty_cell():
    atoms = Atoms(cell=[3.0, 3.0, 3.0], pbc=True)
    assert matrix_of(atoms.positions, atoms.cell.array, np.zeros(0)).shape == (0, 0)
