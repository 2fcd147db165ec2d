"""The error that is reported of charges is not exceeded where it can just be reached."""

import math

import numpy as np
import pytest
import torch
from fastlr.kernels.charge_solver.conjugate_gradient import ConjugateGradient
from fastlr.kernels.charge_solver.error_bound import ErrorBound
from fastlr.kernels.charge_solver.solvers import Dense, hessian
from fastlr.kernels.charge_solver.together import Together
from fastlr.kernels.ewald.pair_table import PairTable
from fastlr.kernels.ewald.tables import coulomb_tables
from fastlr.kernels.ewald.wave_table import WaveTable
from reference.coulomb_systems import CELL, MOLECULE, SLAB, joined

K = 14.399645478  # eV Å


def problem(rng, pbc, n: int = 20):
    """One soft atom among hard ones."""
    cell = np.eye(3) * 9.0
    x, widths = rng.uniform(0.0, 1.0, (n, 3)) @ cell, rng.uniform(0.4, 1.0, n)
    system = joined([x], [widths], [cell], [coulomb_tables(x, cell, np.array(pbc, bool), widths, 1e-12)])
    hardness = torch.full((n,), 400.0, dtype=torch.float64)
    hardness[[3, 11]] = 0.5
    return system, torch.from_numpy(rng.normal(size=n)), hardness


def solvers_of(system, hardness, tolerance):
    yield ConjugateGradient(system, hardness, K, tolerance)
    for dtype in (torch.float64, torch.float32):
        waves = WaveTable(system, dtype) if len(system.tables.periodic) else None
        yield Together(system, hardness, K, tolerance, PairTable(system, dtype), waves)


@pytest.mark.parametrize("pbc", [MOLECULE, SLAB, CELL], ids=["molecule", "slab", "cell"])
def test_residual_along_the_softest_direction(pbc, rng):
    """An error that raises the energy as little as one can is the largest that its residual may stand for."""
    system, rhs, hardness = problem(rng, pbc)
    n, total = len(rhs), torch.tensor([0.7], dtype=torch.float64)
    exact, _ = Dense(system, hardness, K)(rhs, total)
    project = torch.eye(n, dtype=torch.float64) - 1.0 / n
    matrix = project @ hessian(system, hardness, K)[0] @ project + 1e6 * torch.ones(n, n, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(matrix)
    off = 1e-3 * vectors[:, 0]
    for solver in solvers_of(system, hardness, 1.0):
        found, _ = solver(rhs, total, exact + off)
        report = solver.report
        assert report.iterations == 0
        error = float((found - exact).norm()) / math.sqrt(n)
        assert error <= report.error_bound <= 1.05 * float(values[0]) / 0.5 * error
        assert report.unfinished <= report.error_bound


def test_point_charges_have_no_bound(rng):
    """Their matrix may have negative eigenvalues, whatever the hardness."""
    system, _, hardness = problem(rng, CELL)
    q = torch.ones_like(hardness)
    assert math.isfinite(ErrorBound(system, hardness, K, [])(1e-9, q, 0.0))
    system.squared_widths[4] = 0.0
    assert math.isinf(ErrorBound(system, hardness, K, [])(1e-9, q, 0.0))
