"""The pair function in float32 against float64: entries, products, forces and cell derivatives."""

import numpy as np
import pytest
import torch
from fastlr.kernels.charge_solver import solvers
from fastlr.kernels.charge_solver.direct import Equilibration
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.ewald.coulomb import coulomb_matrix
from fastlr.kernels.ewald.op import pair_pull, pair_values
from fastlr.kernels.ewald.pair_table import PairTable
from reference.coulomb_systems import CELL, MOLECULE, SLAB, random_system

K = 14.399645478  # eV Å


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


@pytest.mark.parametrize(
    "structures",
    [[(1, MOLECULE)], [(2, MOLECULE), (17, MOLECULE)], [(1, CELL)], [(7, CELL), (16, MOLECULE), (5, SLAB), (33, CELL)]],
    ids=["one", "molecules", "one in a cell", "mixed"],
)
def test_entries_and_sums(structures, rng):
    """Charges of zero mean, some of them points; odd rows; every structure alone, too."""
    system = random_system(rng, structures)
    table, pairs = PairTable(system, torch.float32), system.tables.pairs(system.batch)
    exact = pair_values(system.positions, system.squared_widths, system.cell, system.beta, pairs)
    assert table.entries().shape == exact.shape
    # differences of error functions, each good to a digit of float32
    assert float((table.entries() - exact).abs().max() if len(exact) else 0.0) < 1e-6
    u, q = (torch.from_numpy(rng.normal(size=len(system.batch))) for _ in range(2))
    phi, gradient, by_cell = pair_pull(u, q, system.positions, system.squared_widths, system.cell, system.beta, pairs)
    outer = system.positions[:, :, None] * gradient[:, None, :]
    strain = torch.zeros_like(by_cell).index_add_(0, system.batch, outer) + system.cell.transpose(1, 2) @ by_cell
    expected = phi, gradient, strain
    rows = torch.repeat_interleave(pairs.ptr.diff())
    product = torch.zeros_like(q).index_add_(0, rows, exact * q[pairs.neighbour.long()])
    assert relative(table.product(q), product) < 1e-6
    for found, reference in zip(table.pull(u, q), expected, strict=True):
        assert found.dtype == torch.float64
        # an atom among its own images feels no force
        assert float((found - reference).norm()) < 2e-6 * max(float(reference.norm()), 1e-3)
    for b in range(system.num_structures):
        alone = system.select(b)
        part, own = table.select(b, alone), slice(int(system.node_ptr[b]), int(system.node_ptr[b + 1]))
        assert torch.equal(part.product(q[own]), table.product(q)[own])
        assert torch.equal(part.pull(u[own], q[own])[1], table.pull(u, q)[1][own])
    assert relative(coulomb_matrix(system, table), coulomb_matrix(system)) < 1e-6


def test_far_from_the_origin(rng):
    """Distances have all the digits that they can have."""
    system = random_system(rng, [(9, MOLECULE)])
    far = system._replace(positions=system.positions + 1e4)
    assert relative(PairTable(far, torch.float32).entries(), PairTable(system, torch.float32).entries()) < 1e-7


@pytest.mark.parametrize("method", ["batched", "dense", "iterative"])
@pytest.mark.parametrize("site_energy", [True, False])
@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
def test_direct_equilibration(single, site_energy, method, rng, monkeypatch):
    """Charges, energy and all gradients are those of the differentiable operation."""
    system = random_system(rng, [(6, CELL), (4, MOLECULE), (9, CELL)])
    n = len(system.batch)
    chi, by_charge = (torch.from_numpy(rng.normal(size=n)) for _ in range(2))
    hardness, total = torch.from_numpy(rng.uniform(8.0, 20.0, n)), torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
    options = {"method": method, "tolerance": 1e-12}
    solution = Equilibration(system, hardness, K, single=single, **options)
    solution.solve(chi, total)
    found = solution.charges, solution.energy, *solution.gradients(by_charge, site_energy)

    strain, potential = torch.zeros_like(system.cell), torch.zeros_like(chi)
    leaves = [tensor.clone().requires_grad_() for tensor in (system.positions, strain, chi, potential, total)]
    symmetric = 0.5 * (leaves[1] + leaves[1].transpose(1, 2))
    moved = leaves[0] + (leaves[0][:, None, :] @ symmetric[system.batch]).squeeze(1)
    deformed = system._replace(positions=moved, cell=system.cell + system.cell @ symmetric)
    q, energy, _ = equilibrate(deformed, leaves[2] + leaves[3], hardness, leaves[4], K, **options)
    whole = energy.sum() + (q * by_charge).sum() + (q * leaves[3]).sum()
    if site_energy:
        whole = whole + (leaves[2] * q + 0.5 * hardness * q**2).sum()
    expected = q.detach(), energy.detach(), *torch.autograd.grad(whole, leaves)
    for value, reference in zip(found, expected, strict=True):
        if value.ndim == 3:  # a symmetric strain asks for no more
            value = 0.5 * (value + value.transpose(1, 2))
        assert relative(value, reference) < (3e-6 if single else 1e-9)


def test_slabs_are_refused(rng):
    system = random_system(rng, [(4, SLAB)])
    ones = torch.ones(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="slabs need the derivatives of their constant"):
        Equilibration(system, ones, K)


def test_absolute_tolerance_saves_iterations(rng, monkeypatch):
    """A small right-hand side is solved to the tolerance itself, not to a part of it."""
    system = random_system(rng, [(40, CELL)], edge=9.0)
    hardness = torch.full((40,), 25.0, dtype=torch.float64)
    solver = solvers.choose(system, hardness, K, "iterative", 1e-6)
    rhs, nothing = 1e-3 * torch.from_numpy(rng.normal(size=40)), torch.zeros(1, dtype=torch.float64)
    exact, _ = solvers.choose(system, hardness, K, "dense")(rhs, nothing)
    iterations = []
    for absolute in (False, True):
        found, _ = solver(rhs, nothing, absolute=absolute)
        assert float((found - exact).square().mean().sqrt()) <= 1e-6
        iterations.append(solver.solvers[0].report.iterations)
    assert iterations[1] < iterations[0]
    assert np.isfinite(float(found.sum()))
