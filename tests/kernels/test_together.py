"""Conjugate gradients in one launch against dense solves: molecules, slabs, cells, float32 and float64, any threads."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from fastlr.kernels.charge_solver import together as module
from fastlr.kernels.charge_solver.conjugate_gradient import ConjugateGradient
from fastlr.kernels.charge_solver.naive import ConvergenceError, IndefiniteError
from fastlr.kernels.charge_solver.solvers import SINGLE, Dense, choose
from fastlr.kernels.charge_solver.together import Together
from fastlr.kernels.ewald.pair_table import PairTable
from fastlr.kernels.ewald.tables import coulomb_tables
from fastlr.kernels.ewald.wave_table import WaveTable
from reference.coulomb_systems import CELL, MOLECULE, SLAB, joined

K = 14.399645478  # eV Å
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-6}
KINDS = {"molecule": MOLECULE, "slab": SLAB, "cell": CELL}


def problem(rng, n: int, kind: str, hardness: float = 8.0):
    """Gaussians that are no points: then the energy has a minimum, however soft the atoms are."""
    edge = max(9.0, 2.6 * n ** (1.0 / 3.0))
    cell = (np.eye(3) + 0.2 * rng.uniform(-1.0, 1.0, (3, 3))) * edge
    x, widths = rng.uniform(-0.3, 1.2, (n, 3)) @ cell, rng.uniform(0.3, 1.2, n)
    system = joined([x], [widths], [cell], [coulomb_tables(x, cell, np.array(KINDS[kind], bool), widths, 1e-10)])
    chi = torch.from_numpy(rng.normal(size=n))
    return system, chi, torch.from_numpy(rng.uniform(hardness, 2.0 * hardness, n))


def solver_of(system, hardness, dtype, tolerance=None) -> Together:
    waves = WaveTable(system, dtype) if len(system.tables.periodic) else None
    return Together(system, hardness, K, tolerance or TOLERANCE[dtype], PairTable(system, dtype), waves)


def rms(values) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("total", [0.0, -2.0])
@pytest.mark.parametrize("n", [1, 2, 5, 33, 100])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_charges(kind, dtype, n, total, rng):
    """And the multiplier; once more from the solution itself, which takes no iteration but for rounding in float32."""
    system, chi, hardness = problem(rng, n, kind)
    solver, total = solver_of(system, hardness, dtype), torch.tensor([total], dtype=torch.float64)
    expected, multiplier = Dense(system, hardness, K)(-chi, total)
    found, own = solver(-chi, total)
    assert rms(found - expected) <= TOLERANCE[dtype]
    assert float(found.sum() - total) == pytest.approx(0.0, abs=1e-12 * n)
    assert float(own - multiplier) == pytest.approx(0.0, abs=1e-4 if dtype == torch.float32 else 1e-9)
    assert rms(found - expected) <= solver.report.error_bound
    assert solver.report.unfinished <= TOLERANCE[dtype]
    again, _ = solver(-chi, total, start=expected)
    assert solver.report.iterations <= 2 * (dtype == torch.float32)
    assert rms(again - expected) <= TOLERANCE[dtype]
    far, _ = solver(-chi, total, start=expected + 1.0)  # of another total charge
    assert rms(far - expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("hardness", [0.15, 1.0, 50.0])
@pytest.mark.parametrize("kind", KINDS)
def test_soft_and_hard_atoms(kind, hardness, rng):
    """0.005 to 2 atomic units."""
    system, chi, own = problem(rng, 60, kind, hardness)
    nothing = torch.zeros(1, dtype=torch.float64)
    found, _ = solver_of(system, own, torch.float64, 1e-9)(-chi, nothing)
    expected, _ = Dense(system, own, K)(-chi, nothing)
    assert rms(found - expected) <= 1e-9


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("many_cores")
def test_any_number_of_threads(kind, threads, rng, monkeypatch):
    """More than there are vectors of atoms, too; the same bits every time, and as on one thread."""
    system, chi, hardness = problem(rng, 150 if threads == 2 else 40, kind)
    before, nothing = torch.get_num_threads(), torch.zeros(1, dtype=torch.float64)
    expected, _ = Dense(system, hardness, K)(-chi, nothing)
    monkeypatch.setattr(module, "TERMS_OF_A_THREAD", 1)
    found = []
    try:
        for number in (threads, 1):
            torch.set_num_threads(number)
            solver = solver_of(system, hardness, torch.float64)
            assert solver.threads == number
            found += [solver(-chi, nothing)[0] for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert rms(found[0] - expected) <= 1e-11
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("kind", KINDS)
def test_moved_atoms(kind, rng):
    """Tables and response follow; solvers that were made there agree to the last bit."""
    system, chi, hardness = problem(rng, 21, kind)
    moved = system._replace(positions=system.positions + 0.01 * torch.from_numpy(rng.normal(size=(21, 3))))
    solver, nothing = solver_of(system, hardness, torch.float64), torch.zeros(1, dtype=torch.float64)
    solver(-chi, nothing)
    solver.pairs.move(moved.positions)
    solver.moved(moved)
    found, expected = solver(-chi, nothing), solver_of(moved, hardness, torch.float64)(-chi, nothing)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_preconditioner_saves_iterations(rng):
    """Long waves in a large soft cell; the diagonal alone needs many more."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(4)
    atoms.rattle(0.1, rng=rng)
    n, cell, widths = len(atoms), atoms.cell.array, np.where(atoms.numbers == 11, 1.66, 1.02)
    tables = coulomb_tables(atoms.positions, cell, np.ones(3, bool), widths, 1e-8, mesh=False)
    system, chi = joined([atoms.positions], [widths], [cell], [tables]), torch.from_numpy(rng.normal(size=n))
    hardness, nothing = torch.full_like(chi, 1.36), torch.zeros(1, dtype=torch.float64)
    solver = solver_of(system, hardness, torch.float64, 1e-8)
    solver(-chi, nothing)
    with_waves = solver.report.iterations
    other = ConjugateGradient(system, hardness, K, 1e-8)  # with its long waves on a mesh
    other(-chi, nothing)
    assert abs(with_waves - other.report.iterations) <= 1
    solver._numbers[module.NUMBERS.index("near_tiles")] = 0
    solver.moved(system)
    solver(-chi, nothing)
    assert with_waves < 0.5 * solver.report.iterations


@pytest.mark.parametrize("tolerance", [1e-6, 3e-5])
@pytest.mark.parametrize("hardness", [0.136, 1.36, 8.0])
def test_float32_where_it_serves(hardness, tolerance, rng):
    """The tolerance holds for soft atoms, too, whose charges the digits of float32 would not decide."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(4)
    atoms.rattle(0.1, rng=rng)
    n, cell, widths = len(atoms), atoms.cell.array, np.where(atoms.numbers == 11, 1.66, 1.02)
    tables = coulomb_tables(atoms.positions, cell, np.ones(3, bool), widths, 1e-10, mesh=False)
    system, chi = joined([atoms.positions], [widths], [cell], [tables]), torch.from_numpy(rng.normal(0.0, 3.0, n))
    own, nothing = torch.full_like(chi, hardness), torch.zeros(1, dtype=torch.float64)
    solver = choose(system, own, K, tolerance=tolerance)
    assert (solver.table.dtype == torch.float32) == (hardness * tolerance >= SINGLE)
    assert rms(solver(-chi, nothing)[0] - Dense(system, own, K)(-chi, nothing)[0]) <= tolerance


@pytest.mark.parametrize("kind", ["droplet", "layer", "slab"])
def test_vacuum_costs_no_iterations(kind, rng):
    """Atoms that fill a part of the cell are solved for as quickly as those that fill it, by either preconditioner."""
    n, counts = 300, {}
    x, widths = rng.uniform(0.0, 1.0, (n, 3)) * (n / 0.08) ** (1.0 / 3.0), np.full(n, 0.9)
    chi, hardness = torch.from_numpy(rng.normal(size=n)), torch.full((n,), 4.0, dtype=torch.float64)
    edge = (n / 0.08) ** (1.0 / 3.0)
    for name, stretch in (
        ("filled", (1.0, 1.0, 1.0)),
        (kind, (2.5, 2.5, 2.5) if kind == "droplet" else (1.0, 1.0, 4.0)),
    ):
        cell, pbc = edge * np.diag(stretch), np.array(SLAB if name == "slab" else CELL, bool)
        system = joined([x], [widths], [cell], [coulomb_tables(x, cell, pbc, widths, 1e-8, mesh=False)])
        for solver in (solver_of(system, hardness, torch.float64, 1e-8), ConjugateGradient(system, hardness, K, 1e-8)):
            solver(-chi, torch.zeros(1, dtype=torch.float64))
            counts.setdefault(name, []).append(solver.report.iterations)
    assert abs(counts[kind][0] - counts[kind][1]) <= 2
    assert max(counts[kind]) <= 1.3 * max(counts["filled"])


def test_absolute_tolerance(rng):
    system, chi, hardness = problem(rng, 40, "cell")
    solver, nothing = solver_of(system, hardness, torch.float64, 1e-6), torch.zeros(1, dtype=torch.float64)
    iterations = []
    for absolute in (False, True):
        solver(1e-3 * chi, nothing, absolute=absolute)
        iterations.append(solver.report.iterations)
    assert iterations[1] < iterations[0]


@pytest.mark.parametrize("broken", ["positions", "rhs", "hardness"])
def test_no_minimum(broken, rng):
    """Numbers that are none, and atoms that would rather be ions without end."""
    system, chi, hardness = problem(rng, 20, "cell")
    if broken == "positions":
        system.positions[3, 1] = torch.nan
    elif broken == "rhs":
        chi[2] = torch.inf
    else:
        hardness = hardness.clone()
        hardness[4] = -200.0
    with pytest.raises(IndefiniteError):
        solver = solver_of(system, hardness, torch.float64)
        if broken == "hardness":
            solver.least = 1.0  # a bound is not what is tested here
        solver(-chi, torch.zeros(1, dtype=torch.float64))


def test_no_convergence(rng, monkeypatch):
    monkeypatch.setattr(module, "MAX_ITERATIONS", 3)
    system, chi, hardness = problem(rng, 50, "cell", 0.5)
    solver = solver_of(system, hardness, torch.float64)
    with pytest.raises(ConvergenceError, match="may still be"):
        solver(-chi, torch.zeros(1, dtype=torch.float64))
