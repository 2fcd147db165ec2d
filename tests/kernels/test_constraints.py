"""Charges of fragments: every solver against the bordered equations in full."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from fastlr.kernels.charge_solver import naive, solvers
from fastlr.kernels.charge_solver.conjugate_gradient import ConjugateGradient
from fastlr.kernels.charge_solver.constraints import Constraints, Fragments, Sums
from fastlr.kernels.charge_solver.memory import Memory
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.charge_solver.together import Together
from fastlr.kernels.ewald.pair_table import PairTable
from fastlr.kernels.ewald.system import slab_constant
from fastlr.kernels.ewald.tables import coulomb_tables
from fastlr.kernels.ewald.wave_table import WaveTable
from reference.coulomb_systems import CELL, MOLECULE, SLAB, joined, random_system
from reference.differences import relative_error

K = 14.399645478
BATCH = [(6, CELL), (3, MOLECULE), (0, MOLECULE), (5, SLAB), (1, CELL), (4, MOLECULE)]
FRAGMENTS = [0, 1, 0, 2, 2, 1, 3, 4, 3, 5, 5, 6, 6, 5, 7, 8, 8, 8, 8]
METHODS = ["batched", "dense", "iterative", "one launch"]
KINDS = {"molecule": MOLECULE, "slab": SLAB, "cell": CELL}


def problem(rng, structures, accuracy: float = 1e-12):
    """Leaves (positions, squared widths, cell, chi, J, charges of fragments) and the system they belong to."""
    system = random_system(rng, structures, accuracy=accuracy)
    system = system._replace(squared_widths=system.squared_widths.clamp_min(0.1))
    n = len(system.batch)
    chi, hardness = torch.from_numpy(rng.normal(size=n)), torch.from_numpy(rng.uniform(1.0, 8.0, n))
    charge = torch.from_numpy(rng.normal(size=max(FRAGMENTS) + 1))
    return system, [system.positions, system.squared_widths, system.cell, chi, hardness, charge]


def run(function, system, leaves, fragment, **options):
    x, a, cell, chi, hardness, charge = leaves
    there = system._replace(positions=x, squared_widths=a, cell=cell)
    nothing = charge.new_zeros(system.num_structures)
    return function(there, chi, hardness, nothing, K, Constraints(fragment, charge), **options)


@pytest.mark.parametrize("method", METHODS)
def test_charges_and_derivatives(method, rng):
    system, leaves = problem(rng, BATCH)
    results = []
    for function, options in ((naive.equilibrate, {}), (equilibrate, {"method": method, "tolerance": 1e-13})):
        own = [t.clone().requires_grad_(True) for t in leaves]
        q, energy, _ = run(function, system, own, torch.tensor(FRAGMENTS), **options)
        generator = torch.Generator().manual_seed(1)
        probes = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in own]
        value = (q * torch.randn(q.shape, generator=generator, dtype=torch.float64)).sum() + energy.square().sum()
        first = torch.autograd.grad(value, own, create_graph=True)
        second = torch.autograd.grad(sum((g * p).sum() for g, p in zip(first, probes, strict=True)), own)
        results.append([q, energy, *first, *second])
    for number, (found, expected) in enumerate(zip(results[1], results[0], strict=True)):
        assert relative_error(found.detach(), expected.detach()) < 1e-9, number


@pytest.mark.parametrize("method", METHODS)
def test_charges_keep_what_is_given(method, rng):
    system, leaves = problem(rng, BATCH)
    fragment = torch.tensor(FRAGMENTS)
    charge = leaves[-1].clone().requires_grad_(True)
    chi, hardness = leaves[3:5]
    q, energy, multiplier = run(equilibrate, system, [*leaves[:-1], charge], fragment, method=method, tolerance=1e-12)
    found = torch.zeros_like(charge).index_add(0, fragment, q)
    assert relative_error(found.detach(), charge.detach()) < 1e-11
    # the derivative of the energy by a fragment's charge is minus its multiplier
    (slope,) = torch.autograd.grad(energy.sum() + (chi * q + 0.5 * hardness * q**2).sum(), charge)
    lift = K * slab_constant(system)
    whole = torch.zeros_like(lift).index_add(0, system.batch, q.detach())
    structure = Fragments(system, fragment).structure
    assert relative_error(slope, -(multiplier + (lift * whole)[structure]).detach()) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_one_fragment_a_structure_changes_nothing(method, rng):
    system, leaves = problem(rng, BATCH)
    total = torch.where(system.sizes > 0, leaves[-1][: len(BATCH)], 0.0)
    own = torch.unique(system.batch, return_inverse=True)[1]
    options = {"method": method, "tolerance": 1e-13}
    q, energy, multiplier = run(equilibrate, system, [*leaves[:-1], total[system.sizes > 0]], own, **options)
    expected = equilibrate(system, *leaves[3:5], total, K, **options)
    for found, reference in zip((q, energy, multiplier), expected, strict=True):
        assert relative_error(found, reference[system.sizes > 0] if found is multiplier else reference) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_one_fragment_an_atom(method, rng):
    """Charges are what is given, and multipliers the potentials that they make."""
    system, leaves = problem(rng, BATCH)
    charge = torch.from_numpy(rng.normal(size=len(FRAGMENTS)))
    every = torch.arange(len(FRAGMENTS))
    q, energy, multiplier = run(equilibrate, system, [*leaves[:-1], charge], every, method=method)
    expected = run(naive.equilibrate, system, [*leaves[:-1], charge], every)
    assert relative_error(q, charge) < 1e-14
    assert relative_error(energy, expected[1]) < 1e-9
    lift = (K * slab_constant(system) * system.sum(charge)).index_select(0, system.batch)
    assert relative_error(multiplier + lift, expected[2]) < 1e-9


def liquid(rng, n: int, pbc, mesh: bool | None = False, accuracy: float = 1e-10):
    edge = (n / 0.08) ** (1.0 / 3.0)
    cell = (np.eye(3) + 0.15 * rng.uniform(-1.0, 1.0, (3, 3))) * edge
    x, widths = rng.uniform(0.0, 1.0, (n, 3)) @ cell, rng.uniform(0.4, 1.2, n)
    tables = coulomb_tables(x, cell, np.array(pbc, bool), widths, accuracy, mesh=mesh)
    system = joined([x], [widths], [cell], [tables])
    chi, hardness = torch.from_numpy(rng.normal(0.0, 3.0, n)), torch.from_numpy(rng.uniform(2.0, 8.0, n))
    return system, chi, hardness


FRAGMENTATIONS = {
    "threes": lambda rng, n: np.arange(n) // 3,
    "scattered": lambda rng, n: np.unique(rng.integers(0, 7, n), return_inverse=True)[1],
    "two": lambda rng, n: (np.arange(n) == 0).astype(int),
    "every": lambda rng, n: np.arange(n),
}


@pytest.mark.parametrize("name", FRAGMENTATIONS)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*product(KINDS, ["operations", torch.float64, torch.float32]), ("mesh", "operations")],  # no mesh in one launch
)
def test_iterations(kind, dtype, name, rng):
    """Against one dense solve, whose equations are the same; errors are within the bound, and warm starts are taken."""
    n, on_mesh = 61, kind == "mesh"
    system, chi, hardness = liquid(rng, n, KINDS.get(kind, CELL), on_mesh)
    fragment = torch.from_numpy(FRAGMENTATIONS[name](rng, n).astype(np.int64))
    own = fragment, int(fragment.max()) + 1
    charge = torch.from_numpy(rng.normal(size=own[1]))
    expected, multiplier = solvers.Dense(system, hardness, K, None, Fragments(system, fragment))(-chi, charge)
    tolerance = 1e-7 if dtype == torch.float32 else 1e-11
    if dtype == "operations":
        solver = ConjugateGradient(system, hardness, K, tolerance, None, own)
    else:
        waves = WaveTable(system, dtype) if len(system.tables.periodic) else None
        solver = Together(system, hardness, K, tolerance, PairTable(system, dtype), waves, own)
    found, levels = solver(-chi, charge)
    error = float((found - expected).norm()) / math.sqrt(n)
    assert error <= min(solver.report.error_bound, 10.0 * tolerance)
    assert float((torch.zeros_like(charge).index_add(0, fragment, found) - charge).abs().max()) < 1e-12
    assert float((levels - multiplier).abs().max()) <= (1e-3 if dtype == torch.float32 else 1e-8)
    for start in (expected, found + 1.0):  # of other charges, too
        again, _ = solver(-chi, charge, start)
        assert float((again - expected).norm()) / math.sqrt(n) <= 10.0 * tolerance
        assert solver.report.iterations <= 1 or dtype == torch.float32 or start is not expected


@pytest.mark.parametrize("threads", [1, 3])
def test_fragments_on_threads(threads, rng, monkeypatch):
    """The same bits."""
    system, chi, hardness = liquid(rng, 90, CELL)
    fragment = torch.arange(90) // 3
    solver = Together(
        system, hardness, K, 1e-11, PairTable(system, torch.float64), WaveTable(system, torch.float64), (fragment, 30)
    )
    nothing = torch.zeros(30, dtype=torch.float64)
    expected = solver(-chi, nothing)
    solver.threads = threads
    for found, reference in zip(solver(-chi, nothing), expected, strict=True):
        assert torch.equal(found, reference)


def test_iterations_are_as_many_as_for_one_sum(rng):
    system, chi, hardness = liquid(rng, 300, CELL)
    counts = []
    for fragment in (torch.zeros(300, dtype=torch.int64), torch.arange(300) // 3, torch.arange(300) // 30):
        own = fragment, int(fragment.max()) + 1
        solver = ConjugateGradient(system, hardness, K, 1e-9, None, own)
        solver(-chi, torch.zeros(own[1], dtype=torch.float64))
        counts.append(solver.report.iterations)
    assert max(counts) <= 1.2 * counts[0]


@pytest.mark.parametrize("method", ["auto", "iterative"])
def test_solves_are_not_one_a_fragment(method, rng, monkeypatch):
    """Many fragments take one solve of the equations."""
    monkeypatch.setattr(solvers, "LARGEST_DENSE", 50)
    system, chi, hardness = liquid(rng, 80, CELL)
    memory = Memory()
    fragment = torch.arange(80) // 2
    nothing = torch.zeros(40, dtype=torch.float64)
    equilibrate(system, chi, hardness, nothing[:1], K, Constraints(fragment, nothing), method=method, memory=memory)
    assert set(memory.reports) == {(0, 0)}
    assert memory.reports[0, 0].error_bound < 1e-6


def test_projections(rng):
    weights = torch.from_numpy(rng.uniform(0.1, 2.0, 12))
    fragment = torch.tensor([0, 1, 1, 2, 0, 2, 2, 1, 0, 3, 3, 0])
    for sums in (Sums(weights), Sums(weights, fragment, 4)):
        members = (
            torch.ones(12, 1).double() if sums.fragment is None else torch.nn.functional.one_hot(fragment).double()
        )
        z = torch.from_numpy(rng.normal(size=12))
        projected = z - sums.shares * sums.each(sums.of(z))
        assert float((members.T @ projected).abs().max()) < 1e-14
        level = z - sums.each(sums.level(z))
        assert float((members.T @ (weights * level)).abs().max()) < 1e-14
        mean = members @ torch.linalg.lstsq(members, z).solution
        assert sums.norm_of_rest(z, float(z.norm())) == pytest.approx(float((z - mean).norm()), rel=1e-12)
