"""Charge equilibration in each regime that structures need, beside the reference, before a number of it is used.

A regime is a solver, a kind of structure, whether its long waves go by a particle mesh, whether derivatives are taken
by autograd, and whether charges of fragments are given. Each is tried on a few Gaussian charges when the first
structure needs it in a process; what the reference says of them is kept on disk.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT
from fastlr.errors import BackendError
from fastlr.kernels.charge_solver import naive, op
from fastlr.kernels.charge_solver.constraints import Constraints
from fastlr.kernels.charge_solver.direct import Equilibration
from fastlr.kernels.charge_solver.solvers import selected
from fastlr.kernels.ewald.system import System
from fastlr.kernels.ewald.tables import coulomb_tables
from fastlr.numerics import relative_rms

from .stored import stored

# Largest accepted relative root-mean-square errors of charges, energy and derivatives, and the accuracy of the Coulomb
# sums that they come from; the reference's is 1e-15. A fault is larger, and what truncation leaves is smaller.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-7}
ACCURACY = {torch.float32: 1e-8, torch.float64: 1e-12}
NUM_ATOMS, FRAGMENTS = 6, (0, 1, 0, 2, 2, 1)
PERIODIC = {"molecule": (0, 0, 0), "slab": (1, 1, 0), "cell": (1, 1, 1)}


class Regime(NamedTuple):
    """See the module.

    Attributes:
        solver: a method of ``charge_solver.solvers``.
        kind: "molecule", "slab" or "cell".
        on_mesh: whether there is a particle mesh.
        by_autograd: by ``charge_solver.op``, or by ``charge_solver.direct``.
        has_fragments: whether charges of fragments are given, by autograd.
    """

    solver: str
    kind: str
    on_mesh: bool
    by_autograd: bool
    has_fragments: bool = False

    def __str__(self) -> str:
        mesh = " on a particle mesh" if self.on_mesh else ""
        fragments = ", fragments" if self.has_fragments else ""
        return f"{self.solver}, {self.kind}{mesh}{', by autograd' if self.by_autograd else ''}{fragments}"


def require_charges(system: System, dtype: torch.dtype, by_autograd: bool, has_fragments: bool = False) -> None:
    """Make sure that every regime that a batch needs is right on its device.

    Args:
        dtype: float type of the model, which decides the precision of inference.
        has_fragments: whether charges of fragments are given.

    Raises:
        BackendError: one differs from the reference.
    """
    device = system.positions.device.type
    has_table = not by_autograd and device == "cpu"
    tables, kinds = system.tables, {}
    rows = tables.periodic.tolist(), (tables.height > 0.0).tolist(), tables.mesh.any(dim=1).tolist()
    for b, is_slab, on_mesh in zip(*rows, strict=True):
        kinds[b] = "slab" if is_slab else "cell", on_mesh
    for b, solver in enumerate(selected(system, has_table=has_table, has_fragments=has_fragments)):
        kind = kinds.get(b, ("molecule", False))
        proven_error(Regime(solver, *kind, by_autograd, has_fragments), device, dtype)


@cache
def proven_error(regime: Regime, device: str, dtype: torch.dtype) -> float:
    """Worst relative RMS error of a regime, found once in a process.

    Raises:
        BackendError: it is larger than ``TOLERANCE``.
    """
    found, expected = _found(regime, device, dtype), _expected(regime)
    error = max(relative_rms(found[name].detach().cpu(), value) for name, value in expected.items())
    if not error <= TOLERANCE[dtype]:
        raise BackendError(
            f"the charge equilibration ({regime}) fails the parity check on {device}: it differs from the reference by "
            f"{error:.1e} (allowed: {TOLERANCE[dtype]:.0e}); choose backend='reference', and please report this"
        )
    return error


def _problem(regime: Regime, accuracy: float, mesh: bool) -> tuple[System, list[Tensor]]:
    """Some Gaussian charges, with chi, J, Q or the charges of fragments, and a probe of the results."""
    rng = np.random.default_rng(0)
    cell = np.eye(3) * 5.0 + rng.uniform(0.0, 1.0, (3, 3))
    positions, widths = rng.uniform(0.0, 5.0, (NUM_ATOMS, 3)), rng.uniform(0.5, 1.1, NUM_ATOMS)
    pbc = np.array(PERIODIC[regime.kind], bool)
    tables = coulomb_tables(positions, cell, pbc, widths, accuracy, mesh=mesh)
    x, a, cells = (torch.from_numpy(values) for values in (positions, widths**2, cell[None]))
    system = System.of(x, a, cells, torch.zeros(NUM_ATOMS, dtype=torch.int64), torch.tensor([0, NUM_ATOMS]), tables)
    chi, probe = (torch.from_numpy(rng.normal(size=NUM_ATOMS)) for _ in range(2))
    hardness = torch.from_numpy(rng.uniform(1.5, 3.0, NUM_ATOMS))  # soft, so that charges tell what the sums are like
    total = torch.tensor([0.7, -0.4, 0.3] if regime.has_fragments else [0.7], dtype=torch.float64)
    return system, [chi, hardness, total, probe]


def _of_fragments(equilibrate):
    """An equilibration that takes charges of fragments in the place of a total charge."""

    def run(system: System, chi: Tensor, hardness: Tensor, charges: Tensor, constant: float, **options):
        constraints = Constraints(torch.tensor(FRAGMENTS, device=chi.device), charges)
        return equilibrate(system, chi, hardness, charges.detach().sum()[None], constant, constraints, **options)

    return run


def _differentiated(equilibrate, system: System, chi, hardness, total, probe) -> dict[str, Tensor]:
    """Charges, energy, and derivatives of chi'q + q'J q / 2 + k q'A q / 2 + probe'q, by autograd."""
    strain = torch.zeros_like(system.cell)
    given = system.positions, strain, chi, total
    with torch.enable_grad():
        leaves = x, strain, chi, total = [value.detach().clone().requires_grad_() for value in given]
        deformed = system._replace(positions=x + x @ strain[0], cell=system.cell + system.cell @ strain)
        q, energy, _ = equilibrate(deformed, chi, hardness, total, COULOMB_CONSTANT)
        whole = energy.sum() + (chi * q + 0.5 * hardness * q**2 + probe * q).sum()
        gradients = torch.autograd.grad(whole, leaves)
    by_strain = 0.5 * (gradients[1] + gradients[1].transpose(1, 2))
    names = "position", "chi", "total"
    found = dict(zip(names, (gradients[0], *gradients[2:]), strict=True))
    return {"charges": q.detach(), "energy": energy.detach(), "strain": by_strain, **found}


def _expected(regime: Regime) -> dict[str, Tensor]:
    """Results of the reference."""

    def compute() -> dict[str, Tensor]:
        function = _of_fragments(naive.equilibrate) if regime.has_fragments else naive.equilibrate
        return _differentiated(function, *_flat(_problem(regime, 1e-15, False)))

    return stored("charges", regime.kind + (", fragments" if regime.has_fragments else ""), compute)


def _flat(problem: tuple[System, list[Tensor]]) -> tuple:
    system, others = problem
    return system, *others


def _found(regime: Regime, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results of the kernels."""
    system, others = _problem(regime, ACCURACY[dtype], regime.on_mesh)
    system, (chi, hardness, total, probe) = system.to(device), [value.to(device) for value in others]
    options = {"method": regime.solver, "tolerance": 0.1 * TOLERANCE[dtype]}
    if regime.by_autograd:
        function = _of_fragments(op.equilibrate) if regime.has_fragments else op.equilibrate

        def run(*arguments):
            return function(*arguments, **options)

        return _differentiated(run, system, chi, hardness, total, probe)
    solution = Equilibration(system, hardness, COULOMB_CONSTANT, single=dtype == torch.float32, **options)
    solution.solve(chi, total)
    gradients = solution.gradients(probe, True)
    by_strain = 0.5 * (gradients.strain + gradients.strain.transpose(1, 2))
    found = {"charges": solution.charges, "energy": solution.energy, "strain": by_strain}
    return found | {name: getattr(gradients, name) for name in ("position", "chi", "total")}
