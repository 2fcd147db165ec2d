"""How wrong charges are: no more than the tolerance by iteration, nothing to speak of by factorisation."""

import math

import numpy as np
import pytest
import torch
from fastlr.kernels.charge_solver import naive, solvers
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import coulomb_tables
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.coulomb_systems import CELL, MOLECULE, SLAB, joined

HARTREE = 27.211386  # eV
K = 14.399645478  # eV Å
DENSITY = 0.1  # atoms / Å^3, that of a liquid
SOFTEST, HARDEST = 0.005 * HARTREE, 2.0 * HARTREE  # eV/e^2
# the sums' accuracy is not what is tested: iteration and specification sum slabs in different ways
ACCURACY = {MOLECULE: 1e-12, SLAB: 1e-14, CELL: 1e-12}


def liquid(rng, structures: list[tuple], skew: float = 0.2) -> System:
    """Structures of (atoms, pbc) at the density of a liquid, in skewed cells; no charge is a point."""
    positions, widths, cells, parts = [], [], [], []
    for n, pbc in structures:
        cell = (np.eye(3) + skew * rng.uniform(-1.0, 1.0, (3, 3))) * (n / DENSITY) ** (1.0 / 3.0)
        positions.append(rng.uniform(-0.1, 1.1, (n, 3)) @ cell)
        widths.append(rng.uniform(0.3, 1.2, n))
        cells.append(cell)
        tables = coulomb_tables(positions[-1], cell, np.array(pbc, bool), widths[-1], ACCURACY[pbc], mesh=False)
        parts.append(tables)
    return joined(positions, widths, cells, parts)


def parameters(rng, system: System, softest: float = SOFTEST):
    """chi in eV/e, J in eV/e^2 from ``softest`` on, and Q in e."""
    n = len(system.batch)
    hardness = np.minimum(softest * np.exp(rng.uniform(0.0, 2.0, n)), HARDEST)
    hardness[rng.integers(n)] = softest
    chi, total = rng.normal(0.0, 3.0, n), rng.uniform(-2.0, 2.0, system.num_structures)
    return tuple(torch.from_numpy(values) for values in (chi, hardness, total))


def rms_errors(q, expected, system: System) -> torch.Tensor:
    """(B,) e."""
    return torch.sqrt(system.sum((q - expected) ** 2) / system.sizes)


# --- the tolerance of the iteration, a thousand times ---

KINDS = st.sampled_from([MOLECULE, SLAB, CELL])
SEEDS, EXPONENTS = st.integers(0, 2**32 - 1), st.floats(-9.0, -3.0)
SOFTNESS = st.floats(math.log(SOFTEST), math.log(HARDEST))


@settings(max_examples=850, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(1, 40), pbc=KINDS, seed=SEEDS, exponent=EXPONENTS, softest=SOFTNESS,
    total=st.floats(-2.0, 2.0), skew=st.floats(0.0, 0.3),
)  # fmt: skip
def test_tolerance_bounds_the_error(n, pbc, seed, exponent, softest, total, skew):
    rng, tolerance = np.random.default_rng(seed), 10.0**exponent
    system = liquid(rng, [(n, pbc)], skew)
    chi, hardness, _ = parameters(rng, system, math.exp(softest))
    charge = torch.tensor([total], dtype=torch.float64)
    expected, _, _ = naive.equilibrate(system, chi, hardness, charge, K)
    q, _, _ = equilibrate(system, chi, hardness, charge, K, method="iterative", tolerance=tolerance)
    assert float(rms_errors(q, expected, system)) <= tolerance
    assert abs(float(q.sum()) - total) < 1e-11 * (1.0 + float(q.abs().sum()))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    structures=st.lists(st.tuples(st.integers(1, 15), KINDS), min_size=2, max_size=5),
    seed=SEEDS, exponent=EXPONENTS, softest=SOFTNESS,
)  # fmt: skip
def test_tolerance_holds_for_each_structure_of_a_batch(structures, seed, exponent, softest):
    rng, tolerance = np.random.default_rng(seed), 10.0**exponent
    system = liquid(rng, structures)
    chi, hardness, total = parameters(rng, system, math.exp(softest))
    expected, _, _ = naive.equilibrate(system, chi, hardness, total, K)
    solver = solvers.choose(system, hardness, K, "iterative", tolerance)
    q, _ = solver(-chi, total)
    errors = rms_errors(q, expected, system)
    reports = [own.report for own in solver.solvers]
    assert bool((errors <= torch.tensor([report.error_bound for report in reports])).all())
    assert max(report.unfinished for report in reports) <= tolerance


def test_tolerance_is_not_wasted(rng):
    """What is asked for less is done in fewer iterations."""
    system = liquid(rng, [(40, CELL)])
    chi, hardness, total = parameters(rng, system)
    iterations = []
    for tolerance in (1e-1, 1e-3, 1e-6, 1e-9):
        solver = solvers.choose(system, hardness, K, "iterative", tolerance)
        solver(-chi, total)
        iterations.append(solver.solvers[0].report.iterations)
    assert iterations == sorted(set(iterations))


# --- every regime against the dense oracle ---

SIZES = [1, 2, 3, 17, 128, 129, 400, 401]  # on both sides of where regimes end


def methods(largest: int) -> list[str]:
    return ["auto", "dense", "iterative"] + ["batched"] * (largest <= solvers.LARGEST_SMALL)


def check_every_method(system, chi, hardness, total, kinds):
    expected, energy, _ = naive.equilibrate(system, chi, hardness, total, K)
    for method in kinds:
        q, found, _ = equilibrate(system, chi, hardness, total, K, method=method)
        assert float((q - expected).abs().max()) < 1e-8, method
        # the iteration's energy is as wrong as its charges times the electronegativities and the multiplier
        assert torch.allclose(found, energy, rtol=1e-7, atol=1e-6), method


@pytest.mark.parametrize("pbc", [MOLECULE, CELL], ids=["molecule", "cell"])
@pytest.mark.parametrize("n", SIZES)
def test_sizes(n, pbc, rng):
    system = liquid(rng, [(n, pbc)])
    check_every_method(system, *parameters(rng, system, 2.0), methods(n))


@pytest.mark.parametrize("n", [1, 2, 3, 17, 128, 129])
def test_slabs(n, rng):
    system = liquid(rng, [(n, SLAB)])
    check_every_method(system, *parameters(rng, system, 2.0), methods(n))


MIXED = {
    "small": [(17, CELL), (1, SLAB), (40, MOLECULE), (128, CELL), (2, MOLECULE), (3, SLAB), (1, CELL)],
    "medium": [(3, MOLECULE), (129, CELL), (1, MOLECULE), (17, SLAB), (200, MOLECULE), (2, CELL)],
    "one large": [(2, SLAB), (401, MOLECULE), (1, CELL), (129, MOLECULE), (17, CELL), (30, SLAB)],
}


@pytest.mark.parametrize("structures", MIXED.values(), ids=MIXED.keys())
def test_mixed_batches(structures, rng):
    system = liquid(rng, structures)
    check_every_method(system, *parameters(rng, system, 2.0), methods(system.size))


@pytest.mark.slow
@pytest.mark.parametrize("pbc", [MOLECULE, CELL], ids=["molecule", "cell"])
def test_two_thousand_atoms(pbc, rng):
    system = liquid(rng, [(2000, pbc)])
    check_every_method(system, *parameters(rng, system, 2.0), ["auto", "iterative"])
