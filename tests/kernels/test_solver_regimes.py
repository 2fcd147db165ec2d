"""Every solver of charges is differentiated alike: finite differences, forces at finite tolerance, and training."""

import functools
import math

import numpy as np
import pytest
import torch
from fastlr.kernels.charge_solver import naive, op
from fastlr.kernels.charge_solver.op import equilibrate
from fastlr.kernels.ewald.coulomb import coulomb_form
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import coulomb_tables
from reference import structures
from reference.coulomb_systems import CELL, MOLECULE, SLAB
from reference.differences import relative_error
from reference.models import graph_of, small_model

from fastlr.backends import resolve
from fastlr.models.derivatives import evaluate

K = 14.399645478  # eV Å
METHODS = ["batched", "dense", "iterative"]
KINDS = {
    "molecule": (MOLECULE, False), "slab": (SLAB, False), "cell": (CELL, False), "cell with a mesh": (CELL, True),
}  # fmt: skip
KIND = pytest.mark.parametrize("kind", KINDS)


def problem(rng, n: int, kind: str, accuracy: float):
    """A structure and (positions, strain, squared widths, chi, J, Q)."""
    pbc, mesh = KINDS[kind]
    cell = (np.eye(3) + 0.2 * rng.uniform(-1.0, 1.0, (3, 3))) * (12.0 * n) ** (1.0 / 3.0)
    positions, widths = rng.uniform(0.0, 1.0, (n, 3)) @ cell, rng.uniform(0.4, 0.8, n)
    tables = coulomb_tables(positions, cell, np.array(pbc, bool), widths, accuracy, mesh=mesh)
    batch, ptr = torch.zeros(n, dtype=torch.int64), torch.tensor([0, n])
    x, a, cells = (torch.from_numpy(values) for values in (positions, widths**2, cell[None]))
    chi, hardness = torch.from_numpy(rng.normal(0.0, 2.0, n)), torch.from_numpy(rng.uniform(2.0, 6.0, n))
    strain, total = torch.zeros(3, 3, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    return System.of(x, a, cells, batch, ptr, tables), [x, strain, a, chi, hardness, total]


def run(system: System, leaves, **options):
    """Charges and Coulomb energy of the strained structure."""
    x, strain, a, chi, hardness, total = leaves
    deformation = torch.eye(3, dtype=x.dtype) + strain
    there = system._replace(positions=x @ deformation, squared_widths=a, cell=system.cell @ deformation)
    q, energy, _ = equilibrate(there, chi, hardness, total, K, **options)
    return q, energy


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_a_mesh_gives_the_charges_of_the_wave_vectors(method, rng):
    state, results = rng.bit_generator.state, []
    for kind in ("cell", "cell with a mesh"):
        rng.bit_generator.state = state
        system, leaves = problem(rng, 20, kind, 1e-8)
        results.append(run(system, leaves, method=method))
    for found, expected in zip(*results[::-1], strict=True):
        assert relative_error(found, expected) < 1e-6


def test_the_specification_serves_meshes(rng):
    """Or refuses to: what backend "reference" gets for large cells."""
    state, results = rng.bit_generator.state, []
    for kind in ("cell", "cell with a mesh"):
        rng.bit_generator.state = state
        system, (_, _, _, chi, hardness, total) = problem(rng, 20, kind, 1e-8)
        try:
            results.append(naive.equilibrate(system, chi, hardness, total, K)[0])
        except (ValueError, NotImplementedError):
            assert kind == "cell with a mesh"
            return
    assert relative_error(results[1], results[0]) < 1e-6


# --- finite differences ---


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("method", METHODS)
@KIND
def test_finite_differences(check, method, kind, rng):
    """By positions, strain, squared widths, electronegativities, hardness and total charge."""
    system, leaves = problem(rng, 3, kind, 1e-3)
    function = functools.partial(run, system, method=method, tolerance=1e-13)
    assert check(lambda *t: function(t), [t.requires_grad_(True) for t in leaves], atol=1e-6)


# --- forces at finite tolerance ---

TOLERANCES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9]


def variational(q, energy, chi, hardness):
    """What the charges minimise."""
    return energy.sum() + (chi * q + 0.5 * hardness * q**2).sum()


def weighted_squares(q, energy, chi, hardness):
    return (torch.linspace(-1.0, 1.0, len(q), dtype=q.dtype) * q**2).sum()


def forces(function, system, leaves, **options):
    x = leaves[0].detach().requires_grad_(True)
    q, energy = run(system, [x, *leaves[1:]], **options)
    return -torch.autograd.grad(function(q, energy, leaves[3], leaves[4]), x)[0], q.detach()


def sensitivity(system, q) -> float:
    """How much k d(u' A q)/dx grows with u at most: a spectral norm, eV/Å a unit of |u|."""
    x = system.positions.clone().requires_grad_(True)
    u = torch.zeros_like(q, requires_grad=True)
    form = K * coulomb_form(u, q, system._replace(positions=x)).sum()
    (gradient,) = torch.autograd.grad(form, x, create_graph=True)
    rows = [torch.autograd.grad(value, u, retain_graph=True)[0] for value in gradient.flatten()]
    return float(torch.linalg.matrix_norm(torch.stack(rows), 2))


@pytest.mark.parametrize("function", [variational, weighted_squares])
@KIND
def test_errors_of_forces_are_proportional_to_the_tolerance(function, kind, rng):
    """Forces are k d(p' A q)/dx with a second solution p, whose right-hand side is dL/dq.

    |dq| <= t sqrt(n). p is wrong by as much and, for the squares, by what dq makes of dL/dq: 2 |dq| / min J; what the
    charges minimise has p = -q / 2, whatever the error of q. To first order, |dF| <= S(q) |dp| + S(p) |dq|.
    """
    n = 24
    system, leaves = problem(rng, n, kind, 1e-10)
    hardness = leaves[4]
    # another solver than the one that is tested, where there is one that knows meshes
    options = {"method": "iterative" if KINDS[kind][1] else "dense", "tolerance": 1e-13}
    exact, q = forces(function, system, leaves, **options)
    p, amplified = -0.5 * q, 1.0
    if function is weighted_squares:
        own = q.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(own, None, None, None), own)
        p, _, _ = equilibrate(system, -slope, hardness, torch.zeros_like(leaves[5]), K, **options)
        amplified = 1.0 + 2.0 / float(hardness.min())
    bound = math.sqrt(n) * (amplified * sensitivity(system, q) + sensitivity(system, p))
    errors = []
    for tolerance in TOLERANCES:
        found, _ = forces(function, system, leaves, method="iterative", tolerance=tolerance)
        errors.append(float((found - exact).norm()))
        assert errors[-1] <= 1.05 * bound * tolerance, tolerance
    assert errors[-1] < 1e-6 * errors[0]


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9, 1e6])
def test_gradients_are_as_accurate_for_small_losses(scale, rng):
    """A loss in other units, or a mean over many atoms, has the gradients it has by factorisation."""
    system, leaves = problem(rng, 12, "cell", 1e-10)

    def gradient(method):
        own = [t.clone().requires_grad_(True) for t in leaves]
        q, _ = run(system, own, method=method)
        return torch.cat([g.flatten() for g in torch.autograd.grad(scale * (q**2).sum(), own)])

    assert relative_error(gradient("iterative"), gradient("dense")) < 1e-6


# --- training ---


def losses(method: str | None, monkeypatch, steps: int = 15) -> torch.Tensor:
    """(steps, 3) of a small NequIP-LR on charges, energies and forces; None is the specification's solver."""
    solver = naive.equilibrate if method is None else functools.partial(equilibrate, method=method)
    monkeypatch.setattr(op, "equilibrate", solver)
    model = small_model("lr", bessel_trainable=False)
    model.use(resolve("cpu", dtype=torch.float64))
    model.requires_grad_(True)
    graph = graph_of(model, [structures.water_cluster(), structures.salt(), structures.slab()])
    generator = torch.Generator().manual_seed(1)
    targets = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in (("charges", (graph.num_nodes,)), ("energy", (3,)), ("forces", (graph.num_nodes, 3)))
    }
    targets["energy"] += evaluate(model, graph)["energy"]  # else what atoms have by themselves outweighs all
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    curves = []
    for _ in range(steps):
        optimizer.zero_grad()
        out = evaluate(model, graph, create_graph=True)
        terms = torch.stack([((out[name] - target) ** 2).mean() for name, target in targets.items()])
        terms.sum().backward()
        optimizer.step()
        curves.append(terms.detach())
    return torch.stack(curves)


@pytest.mark.parametrize("method", METHODS)
def test_training_follows_the_same_curves(method, monkeypatch):
    expected = losses(None, monkeypatch)
    assert expected[-1].sum() < 0.95 * expected[0].sum()
    assert torch.allclose(losses(method, monkeypatch), expected, rtol=1e-6, atol=0.0)
