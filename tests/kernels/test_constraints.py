"""Charges of fragments and given potentials: every solver against the bordered equations in full."""

import pytest
import torch
from fastlr.kernels.charge_solver import naive
from fastlr.kernels.charge_solver.constraints import Constraints
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.ewald.system import slab_constant
from reference.coulomb_systems import CELL, MOLECULE, SLAB, random_system
from reference.differences import relative_error

K = 14.399645478
BATCH = [(6, CELL), (3, MOLECULE), (0, MOLECULE), (5, SLAB), (1, CELL), (4, MOLECULE)]
FRAGMENTS = [0, 1, 0, 2, 2, 1, 3, 4, 3, 5, 5, 6, 6, 5, 7, 8, 8, 8, 8]
FREE = [(6, CELL), (3, MOLECULE), (4, SLAB), (1, MOLECULE)]


def problem(rng, structures):
    """Leaves (positions, squared widths, cell, chi, J, Q) and the system they belong to."""
    system = random_system(rng, structures, accuracy=1e-12)
    system = system._replace(squared_widths=system.squared_widths.clamp_min(0.1))
    n = len(system.batch)
    chi, hardness = torch.from_numpy(rng.normal(size=n)), torch.from_numpy(rng.uniform(1.0, 8.0, n))
    total = torch.from_numpy(rng.normal(size=system.num_structures))
    return system, [system.positions, system.squared_widths, system.cell, chi, hardness, total]


def given(rng, kind: str):
    if kind == "fragments":
        charge = torch.from_numpy(rng.normal(size=max(FRAGMENTS) + 1))
        return BATCH, Constraints(torch.tensor(FRAGMENTS), charge)
    return FREE, Constraints(potential=torch.tensor([-1.3, 0.4, torch.nan, 0.2], dtype=torch.float64))


def run(function, system, leaves, constraints, **options):
    x, a, cell, chi, hardness, total = leaves
    there = system._replace(positions=x, squared_widths=a, cell=cell)
    if constraints.fragment is not None:
        constraints = constraints._replace(fragment_charge=total)
    return function(there, chi, hardness, total[: system.num_structures], K, constraints, **options)


@pytest.mark.parametrize("method", ["batched", "dense", "iterative"])
@pytest.mark.parametrize("kind", ["fragments", "potential"])
def test_charges_and_derivatives(kind, method, rng):
    structures, constraints = given(rng, kind)
    system, leaves = problem(rng, structures)
    if kind == "fragments":
        leaves[-1] = constraints.fragment_charge
    results = []
    for function, options in ((naive.equilibrate, {}), (equilibrate, {"method": method, "tolerance": 1e-13})):
        own = [t.clone().requires_grad_(True) for t in leaves]
        q, energy, _ = run(function, system, own, constraints, **options)
        generator = torch.Generator().manual_seed(1)
        probes = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in own]
        value = (q * torch.randn(q.shape, generator=generator, dtype=torch.float64)).sum() + energy.square().sum()
        first = torch.autograd.grad(value, own, create_graph=True)
        second = torch.autograd.grad(sum((g * p).sum() for g, p in zip(first, probes, strict=True)), own)
        results.append([q, energy, *first, *second])
    for number, (found, expected) in enumerate(zip(results[1], results[0], strict=True)):
        assert relative_error(found.detach(), expected.detach()) < 1e-9, number


@pytest.mark.parametrize("method", ["batched", "iterative"])
def test_charges_keep_what_is_given(method, rng):
    structures, constraints = given(rng, "fragments")
    system, leaves = problem(rng, structures)
    leaves[-1] = constraints.fragment_charge
    q, _, multiplier = run(equilibrate, system, leaves, constraints, method=method, tolerance=1e-12)
    found = torch.zeros_like(constraints.fragment_charge).index_add(0, constraints.fragment, q)
    assert relative_error(found, constraints.fragment_charge) < 1e-11
    # the derivative of the energy by a fragment's charge is minus its multiplier
    charge = constraints.fragment_charge.clone().requires_grad_(True)
    chi, hardness = leaves[3:5]
    q, energy, multiplier = run(equilibrate, system, [*leaves[:-1], charge], constraints, tolerance=1e-12)
    (slope,) = torch.autograd.grad(energy.sum() + (chi * q + 0.5 * hardness * q**2).sum(), charge)
    lift = K * slab_constant(system)
    whole = torch.zeros_like(lift).index_add(0, system.batch, q.detach())
    structure = torch.zeros_like(charge, dtype=torch.int64).index_copy(0, constraints.fragment, system.batch)
    assert relative_error(slope, -(multiplier + (lift * whole)[structure]).detach()) < 1e-9


def test_a_given_potential_is_the_slope_of_the_energy(rng):
    """The charge taken up at a potential, given as a charge, needs that potential."""
    structures, constraints = given(rng, "potential")
    system, leaves = problem(rng, structures)
    q, _, _ = run(equilibrate, system, leaves, constraints)
    charge = system.sum(q)
    _, _, multiplier = equilibrate(system, *leaves[3:5], charge, K)
    free = ~constraints.potential.isnan()
    assert relative_error(-multiplier[free], constraints.potential[free]) < 1e-9
    assert float(charge[2]) == pytest.approx(float(leaves[-1][2]), abs=1e-12)


def test_one_fragment_a_structure_changes_nothing(rng):
    system, leaves = problem(rng, BATCH)
    total = torch.where(system.sizes > 0, leaves[-1], 0.0)
    own = torch.unique(system.batch, return_inverse=True)[1]
    q, energy, _ = equilibrate(system, *leaves[3:5], total, K, Constraints(own, total[system.sizes > 0]))
    expected = equilibrate(system, *leaves[3:5], total, K)
    assert relative_error(q, expected[0]) < 1e-13
    assert relative_error(energy, expected[1]) < 1e-12


def test_contradictions_are_refused(rng):
    system, leaves = problem(rng, [(4, SLAB)])
    potential = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="slab has no zero"):
        equilibrate(system, *leaves[3:], K, Constraints(potential=potential))
    system, leaves = problem(rng, [(4, MOLECULE)])
    two = Constraints(torch.tensor([0, 0, 1, 1]), torch.tensor([0.5, -0.5], dtype=torch.float64), potential)
    with pytest.raises(ValueError, match="several fragments"):
        equilibrate(system, *leaves[3:], K, two)
    with pytest.raises(ValueError, match="no method 'fast'"):
        equilibrate(system, *leaves[3:], K, method="fast")
