"""Energies, forces and virials without autograd against the derivatives of the form itself."""

import pytest
import torch
from ase.build import bulk
from fastlr.kernels.ewald import forces as forces_module
from fastlr.kernels.ewald.coulomb import coulomb_form
from fastlr.kernels.ewald.forces import CoulombForces, energy_and_forces, form_gradients
from fastlr.kernels.ewald.system import System, slab_constant
from fastlr.kernels.ewald.tables import CoulombTables, coulomb_tables
from reference.coulomb_systems import CELL, MOLECULE, SLAB, random_system
from reference.differences import relative_error

MIXED = [(4, CELL), (3, MOLECULE), (0, MOLECULE), (5, SLAB), (1, CELL), (1, MOLECULE), (2, (0, 1, 1)), (0, CELL)]


def by_autograd(system: System, u, q):
    positions = system.positions.clone().requires_grad_(True)
    strain = torch.zeros_like(system.cell).requires_grad_(True)
    moved = positions + (positions[:, None, :] @ strain[system.batch]).squeeze(1)
    there = system._replace(positions=moved, cell=system.cell + system.cell @ strain)
    form = coulomb_form(u, q, there) - slab_constant(there) * system.sum(u) * system.sum(q)
    return form.detach(), *torch.autograd.grad(form.sum(), (positions, strain))


def with_mesh(rng, structures) -> System:
    """Cells of rattled salt, skewed, with a particle mesh each, and a molecule between them."""
    parts, positions, cells, sizes = [], [], [], []
    for repeat, mesh in structures:
        atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(repeat)
        atoms.rattle(0.2, rng=rng)
        atoms.pbc = mesh
        widths = rng.uniform(0.3, 0.7, len(atoms))
        parts.append(coulomb_tables(atoms.positions, atoms.cell.array, atoms.pbc, widths, 1e-6, None, mesh))
        positions.append(torch.from_numpy(atoms.positions))
        cells.append(torch.from_numpy(atoms.cell.array))
        sizes.append(len(atoms))
    sizes = torch.tensor(sizes)
    widths = torch.from_numpy(rng.uniform(0.3, 0.7, int(sizes.sum())))
    return System.of(
        torch.cat(positions),
        widths**2,
        torch.stack(cells),
        torch.arange(len(sizes)).repeat_interleave(sizes),
        torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        CoulombTables.join(parts),
    )


def points(system: System) -> System:
    return system._replace(squared_widths=torch.zeros_like(system.squared_widths))


@pytest.mark.parametrize("same", [True, False], ids=["energy", "form"])
@pytest.mark.parametrize("kind", ["mixed", "points", "cells", "mesh", "one mesh"])
@pytest.mark.parametrize("chunk", [2**16, 1], ids=["whole", "in blocks"])
def test_form_and_derivatives(kind, same, chunk, rng, monkeypatch):
    monkeypatch.setattr(forces_module, "CHUNK", chunk)
    system = {
        "mixed": lambda: random_system(rng, MIXED),
        "points": lambda: points(random_system(rng, [(3, CELL), (21, CELL), (4, MOLECULE)])),
        "cells": lambda: random_system(rng, [(3, CELL), (21, CELL), (4, MOLECULE)]),
        "mesh": lambda: with_mesh(rng, [(3, True), (2, False), (2, True)]),
        "one mesh": lambda: with_mesh(rng, [(3, True)]),
    }[kind]()
    u, q = torch.from_numpy(rng.normal(size=(2, len(system.batch))))
    u = q if same else u
    expected = by_autograd(system, u, q)
    virial = kind != "mixed"
    found = CoulombForces(system)(system.positions, q, None if same else u, virial)
    for value, reference in zip(found[: 2 + virial], expected, strict=False):
        assert relative_error(value, reference) < 1e-12
    if same:
        energy, forces = energy_and_forces(system, q, 14.4)
        assert relative_error(energy, 7.2 * expected[0]) < 1e-12
        assert relative_error(forces, -7.2 * expected[1]) < 1e-12


@pytest.mark.parametrize("is_point", [True, False])
def test_every_target_agrees(is_point, rng, device):
    system = random_system(rng, MIXED)
    system = points(system) if is_point else system
    u, q = torch.from_numpy(rng.normal(size=(2, len(system.batch))))
    expected = by_autograd(system, u, q)
    place = "cpu" if device == "interpreter" else device
    found = CoulombForces(system.to(place))(*(t.to(place) for t in (system.positions, q, u)))
    for value, reference in zip(found[:2], expected, strict=False):
        assert relative_error(value.cpu(), reference) < 1e-12


def test_gradients_by_cells(rng):
    """At fixed positions; a molecule's cell may be anything, zeros too."""
    system = random_system(rng, [(4, CELL), (3, MOLECULE), (1, CELL)])
    system.cell[1] = 0.0
    u, q = torch.from_numpy(rng.normal(size=(2, 8)))
    leaves = [system.positions.clone().requires_grad_(True), system.cell.clone().requires_grad_(True)]
    form = coulomb_form(u, q, system._replace(positions=leaves[0], cell=leaves[1])).sum()
    for found, expected in zip(form_gradients(u, q, system), torch.autograd.grad(form, leaves), strict=True):
        assert relative_error(found, expected) < 1e-12
    assert form_gradients(u, q, system, by_cell=False)[1] is None


def test_one_object_serves_many_steps(rng):
    system = random_system(rng, [(6, CELL), (4, MOLECULE)])
    q = torch.from_numpy(rng.normal(size=10))
    forces = CoulombForces(system)
    forces(system.positions, q)
    moved = system.positions + 1e-3 * torch.from_numpy(rng.normal(size=(10, 3)))
    expected = by_autograd(system._replace(positions=moved), q, q)
    found = forces(moved, q, virial=True)
    for value, reference in zip(found, expected, strict=True):
        assert relative_error(value, reference) < 1e-11


def test_virial_of_a_slab_is_refused(rng):
    system = random_system(rng, [(3, SLAB)])
    with pytest.raises(ValueError, match="no virial of slabs"):
        CoulombForces(system)(system.positions, torch.ones(3).double(), virial=True)
