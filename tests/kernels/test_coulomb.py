"""The Coulomb interaction by kernels and structure factors: against the specification, and against physics."""

import math

import numpy as np
import pytest
import torch
from fastlr.kernels.charge_solver import naive as naive_solver
from fastlr.kernels.charge_solver import solvers
from fastlr.kernels.charge_solver.conjugate_gradient import ConjugateGradient
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.ewald import naive, op
from fastlr.kernels.ewald.coulomb import coulomb_energy, coulomb_form, coulomb_matrix
from fastlr.kernels.ewald.system import System, slab_constant
from fastlr.kernels.ewald.tables import coulomb_tables
from reference.coulomb_systems import CELL, KINDS, MOLECULE, SLAB, random_system
from reference.differences import relative_error
from torch import library


def place(device: str) -> str:
    return "cpu" if device == "interpreter" else device


def moved(system: System, device: str) -> System:
    return system.to(place(device))


MIXED = [(4, CELL), (3, MOLECULE), (0, MOLECULE), (5, SLAB), (1, CELL), (1, MOLECULE), (2, (0, 1, 1)), (0, CELL)]


def test_matrix(rng, device):
    system = random_system(rng, MIXED)
    expected = naive.coulomb_matrix(system)
    found = coulomb_matrix(moved(system, device)).cpu()
    inside = torch.arange(found.shape[1]) < system.sizes[:, None]
    found = found - slab_constant(system)[:, None, None] * (inside[:, :, None] & inside[:, None, :])
    for b, n in enumerate(system.sizes):
        assert not expected[b].any() or relative_error(found[b, :n, :n], expected[b, :n, :n]) < 1e-12
        assert not found[b, n:].any()
        assert not found[b, :, n:].any()


def derivatives(function, system: System, charges, probes) -> list[torch.Tensor]:
    """The form, its gradients, and the gradients of a probe of them."""
    leaves = [t.clone().requires_grad_(True) for t in (*charges, *system[:3])]
    value = function(*leaves[:2], system._replace(positions=leaves[2], squared_widths=leaves[3], cell=leaves[4]))
    first = torch.autograd.grad(value, leaves, probes[0], create_graph=True)
    scalar = sum((gradient * probe).sum() for gradient, probe in zip(first, probes[1:], strict=True))
    return [value, *first, *torch.autograd.grad(scalar, leaves)]


def naive_form(u, q, system: System) -> torch.Tensor:
    matrix = naive.coulomb_matrix(system)
    form = (system.pad(u)[:, :, None] * matrix * system.pad(q)[:, None, :]).sum(dim=(1, 2))
    return form + slab_constant(system) * system.sum(u) * system.sum(q)


def test_form_and_its_derivatives(rng, device):
    system = random_system(rng, MIXED)
    # a point charge has no derivative by its width
    system = system._replace(squared_widths=system.squared_widths.clamp_min(0.01))
    charges = [torch.randn(len(system.batch), dtype=torch.float64) for _ in range(2)]
    shapes = [(system.num_structures,), *(t.shape for t in (*charges, *system[:3]))]
    probes = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    expected = derivatives(naive_form, system, charges, probes)
    there = moved(system, device)
    found = derivatives(coulomb_form, there, *([t.to(place(device)) for t in tensors] for tensors in (charges, probes)))
    for number, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(value.detach().cpu(), reference.detach()) < 1e-11, number


@pytest.mark.parametrize("pbc", KINDS.values(), ids=KINDS.keys())
def test_energy_does_not_depend_on_eta(pbc, rng):
    forms = []
    charges = torch.from_numpy(rng.normal(size=6))
    state = rng.bit_generator.state
    for eta in (0.7, 1.1, 1.9):
        rng.bit_generator.state = state
        system = random_system(rng, [(6, pbc)], eta=eta)
        leaves = [t.requires_grad_(True) for t in system[:3]]
        form = coulomb_energy(charges, system)
        gradients = torch.autograd.grad(form.sum(), [leaves[0], leaves[2]] if any(pbc) else leaves[:1])
        forms.append([form.detach(), *gradients])
    for others in forms[1:]:
        for value, reference in zip(others, forms[0], strict=True):
            assert relative_error(value, reference) < 1e-11


def test_slab_is_the_limit_of_growing_vacuum(rng):
    """For a neutral slab of dipole m along its normal in a cell of volume V, both with the conductor around them,

    E(cell) = E(slab) - 2 pi m^2 / V + exponentially small
    (Yeh & Berkowitz, J. Chem. Phys. 111, 3155, 1999; the squared widths cancel for a neutral slab).
    """
    a, b, _ = (np.eye(3) + 0.2 * rng.uniform(-1.0, 1.0, (3, 3))) * 5.0
    normal = np.cross(a, b) / np.linalg.norm(np.cross(a, b))
    positions = rng.uniform(0.0, 1.0, (5, 3)) @ np.stack([a, b, 3.0 * normal])
    widths = rng.uniform(0.3, 1.0, 5)
    q = rng.normal(size=5)
    q -= q.mean()

    def energy(pbc, height):
        cell = np.stack([a, b, height * normal])
        tables = coulomb_tables(positions, cell, np.array(pbc, bool), widths, 1e-14)
        tensors = (torch.from_numpy(t) for t in (positions, widths**2, cell[None]))
        system = System.of(*tensors, torch.zeros(5, dtype=torch.int64), torch.tensor([0, 5]), tables)
        charges = torch.from_numpy(q)
        return float(coulomb_energy(charges, system))

    slab = energy(SLAB, 1.0)
    dipole, area = float(q @ positions @ normal), float(np.linalg.norm(np.cross(a, b)))
    differences = []
    for height in (10.0, 20.0, 40.0):
        differences.append(energy(CELL, height) + 2.0 * math.pi * dipole**2 / (area * height) - slab)
    assert abs(differences[0]) > 1e3 * abs(differences[1])
    assert abs(differences[2]) < 1e-10 * abs(slab)


def test_charged_slab(rng):
    """Two layers of charges q and p: the potential of a layer is -2 pi |z| / S times its charge."""
    cell = np.diag([3.0, 3.5, 1.0])
    energies = []
    for z in (20.0, 30.0):
        positions = np.array([[0.1, 0.2, 0.0], [1.0, 2.0, z]])
        tables = coulomb_tables(positions, cell, np.array(SLAB, bool), np.array([0.5, 0.7]), 1e-14)
        tensors = (torch.from_numpy(t) for t in (positions, np.array([0.25, 0.49]), cell[None]))
        system = System.of(*tensors, torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2]), tables)
        charges = torch.tensor([1.0, 0.5], dtype=torch.float64)
        energies.append(float(coulomb_energy(charges, system)))
    assert energies[1] - energies[0] == pytest.approx(-2.0 * math.pi * 10.0 / 10.5 * 0.5, rel=1e-10)


MADELUNG = {
    # basis (fractional, charge), lattice, nearest distance, Madelung constant referred to it and the smaller charge^2
    "NaCl": ("rocksalt", 1.747564594633182),
    "CsCl": ("cesiumchloride", 1.762674773070988),
    "ZnS, zincblende": ("zincblende", 1.638055053388789),
}


@pytest.mark.parametrize("crystal", MADELUNG)
def test_madelung_constants_of_point_charges(crystal):
    from ase.build import bulk

    name, constant = MADELUNG[crystal]
    atoms = bulk("NaCl", name, a=5.3, cubic=name != "cesiumchloride")
    q = np.where(atoms.numbers == 11, 1.0, -1.0)
    distance = atoms.get_all_distances(mic=True)[0, 1:].min()
    tables = coulomb_tables(atoms.positions, atoms.cell.array, atoms.pbc, np.zeros(len(atoms)), 1e-14)
    n = len(atoms)
    system = System.of(
        torch.from_numpy(atoms.positions), torch.zeros(n).double(), torch.from_numpy(atoms.cell.array)[None],
        torch.zeros(n, dtype=torch.int64), torch.tensor([0, n]), tables,
    )  # fmt: skip
    charges = torch.from_numpy(q)
    energy = float(coulomb_energy(charges, system))
    assert -energy * distance / (n / 2) == pytest.approx(constant, abs=1e-11)


@pytest.mark.usefixtures("many_cores")
def test_same_bits_on_any_number_of_threads(rng):
    system = random_system(rng, [(60, CELL)], edge=9.0, accuracy=1e-6)
    u, q = (torch.randn(60, dtype=torch.float64) for _ in range(2))
    arguments = (*system[:3], system.beta, list(system.tables.pairs(system.batch)))
    probes = [torch.randn_like(t) for t in system[:3]]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            [op.coulomb_pairs(q, *arguments), *op.coulomb_pairs_gradient(u, q, *arguments),
             *op.coulomb_pairs_change(*probes, u, q, *arguments)]
        )  # fmt: skip
    torch.set_num_threads(1)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_finite_differences(rng):
    system = random_system(rng, [(3, CELL)], edge=4.0, accuracy=1e-3)
    pairs, beta = list(system.tables.pairs(system.batch)), system.beta
    a = system.squared_widths.clamp_min(0.1)
    leaves = [t.requires_grad_(True) for t in (torch.randn(3).double(), system.positions, a, system.cell)]
    assert torch.autograd.gradcheck(lambda *t: op.coulomb_pairs(*t, beta, pairs), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: op.coulomb_pairs(*t, beta, pairs), leaves)


def test_opcheck(rng):
    system = random_system(rng, [(3, CELL), (2, MOLECULE)], edge=4.0, accuracy=1e-2)
    pairs, beta = list(system.tables.pairs(system.batch)), system.beta
    geometry = [t.requires_grad_(True) for t in (system.positions, system.squared_widths, system.cell)]
    u, q = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    probes = [torch.randn_like(t) for t in geometry]
    library.opcheck(op.coulomb_pairs.overload, (q, *geometry, beta, pairs))
    library.opcheck(op.coulomb_pairs_gradient.overload, (u, q, *geometry, beta, pairs))
    # the derivatives of the second derivatives are not offered
    with torch.no_grad():
        library.opcheck(op.coulomb_pairs_change.overload, (*probes, u, q, *geometry, beta, pairs))


def test_wrong_inputs(rng):
    system = random_system(rng, [(3, MOLECULE)])
    pairs, beta = list(system.tables.pairs(system.batch)), system.beta
    with pytest.raises(ValueError, match=r"charges: expected \(3,\) of float64"):
        op.coulomb_pairs(torch.zeros(4).double(), *system[:3], beta, pairs)
    with pytest.raises(ValueError, match="of float64, got"):
        op.coulomb_pairs(torch.zeros(3), *system[:3], beta, pairs)


# Charge equilibration with these


def problem(rng, structures):
    system = random_system(rng, structures)
    system = system._replace(squared_widths=system.squared_widths.clamp_min(0.04))
    n = len(system.batch)
    chi, hardness = torch.from_numpy(rng.normal(size=n)), torch.from_numpy(rng.uniform(3.0, 9.0, n))
    return system, [chi, hardness, torch.from_numpy(rng.normal(size=len(structures)))]


def equilibration_derivatives(function, system, others, probes) -> list[torch.Tensor]:
    leaves = [t.clone().requires_grad_(True) for t in (*system[:3], *others)]
    there = system._replace(positions=leaves[0], squared_widths=leaves[1], cell=leaves[2])
    q, energy, _ = function(there, *leaves[3:], 14.4)
    first = torch.autograd.grad((q * probes[0]).sum() + (energy * probes[1]).sum(), leaves, create_graph=True)
    scalar = sum((gradient * probe).sum() for gradient, probe in zip(first, probes[2:], strict=True))
    return [q, energy, *first, *torch.autograd.grad(scalar, leaves)]


def test_equilibration_and_its_derivatives(rng, device):
    system, others = problem(rng, [s for s in MIXED if s[0]])
    shapes = [system.batch.shape, (system.num_structures,), *(t.shape for t in (*system[:3], *others))]
    probes = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    expected = equilibration_derivatives(naive_solver.equilibrate, system, others, probes)
    there = [[t.to(place(device)) for t in tensors] for tensors in (others, probes)]
    found = equilibration_derivatives(equilibrate, moved(system, device), *there)
    for number, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(value.detach().cpu(), reference.detach()) < 1e-10, number


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("pbc", [MOLECULE, SLAB, CELL], ids=["molecule", "slab", "cell"])
def test_equilibration_by_finite_differences(check, pbc, rng):
    system = random_system(rng, [(2, pbc)], edge=4.0, accuracy=1e-3)
    a = system.squared_widths.clamp_min(0.1)
    others = [torch.randn(2).double(), torch.tensor([4.0, 7.0]).double(), torch.tensor([0.3]).double()]

    def function(x, a, cell, chi, hardness, total):
        q, energy, _ = equilibrate(
            system._replace(positions=x, squared_widths=a, cell=cell), chi, hardness, total, 14.4
        )
        return q, energy

    leaves = [t.requires_grad_(True) for t in (system.positions, a, system.cell, *others)]
    assert check(function, leaves, atol=1e-6)


@pytest.mark.parametrize(
    ("small", "dense"), [(0, 0), (0, 3), (2, 3), (0, 9)], ids=["iteration", "iteration and dense", "all three", "dense"]
)
def test_equilibration_by_every_solver(small, dense, rng, monkeypatch, device):
    """Small structures that are taken for medium or large, to second order."""
    monkeypatch.setattr(solvers, "LARGEST_SMALL", small)
    monkeypatch.setattr(solvers, "LARGEST_DENSE", dense)
    monkeypatch.setattr(ConjugateGradient.__init__, "__defaults__", (1e-14,))
    system, others = problem(rng, [s for s in MIXED if s[0]])
    shapes = [system.batch.shape, (system.num_structures,), *(t.shape for t in (*system[:3], *others))]
    probes = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    expected = equilibration_derivatives(naive_solver.equilibrate, system, others, probes)
    there = [[t.to(place(device)) for t in tensors] for tensors in (others, probes)]
    found = equilibration_derivatives(equilibrate, moved(system, device), *there)
    for number, (value, reference) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(value.detach().cpu(), reference.detach()) < 1e-9, number


def test_multiplier_is_the_derivative_by_the_total_charge(rng):
    system, (chi, hardness, total) = problem(rng, [(4, CELL), (3, MOLECULE)])
    total.requires_grad_(True)
    q, energy, multiplier = equilibrate(system, chi, hardness, total, 14.4)
    site = system.sum(chi * q + 0.5 * hardness * q**2)
    (slope,) = torch.autograd.grad((energy + site).sum(), total)
    assert relative_error(slope, -multiplier.detach()) < 1e-11
