"""Charge equilibration by kernels: the charges and their derivatives of any order from solves with one operator.

With K the bordered matrix of the equations (see ``naive.py``), dL/dq at the charges gives one adjoint solve
K (lambda, nu) = (dL/dq, dL/dmu), and with it every gradient: dL/dchi = -lambda, dL/dQ = nu, dL/dJ = -lambda q, and by
positions, widths and cells the partial derivatives of -k lambda' A q. Both are differentiable themselves.
"""

import torch
from torch import Tensor

from ..autograd import wanted
from ..ewald.coulomb import coulomb_form
from ..ewald.forces import form_gradients
from ..ewald.system import System, slab_constant
from .constraints import Constraints, Fragments
from .solvers import TOLERANCE, Memory, choose


def equilibrate(
    system: System,
    electronegativity: Tensor,
    hardness: Tensor,
    total: Tensor,
    constant: float,
    constraints: Constraints | None = None,
    *,
    method: str = "auto",
    tolerance: float = TOLERANCE,
    memory: Memory | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same results as ``naive.equilibrate``, but for a charged slab's multiplier, which contains ``slab_constant``.

    Args:
        method: one of ``solvers.METHODS``.
        tolerance: bound on the root-mean-square error of charges that are found by iteration, e.
        memory: of the steps before, where this is one of many of the same atoms.

    Raises:
        SolverError: the energy of a structure has no minimum, or the iteration does not find it.
        ValueError: an unknown method, or one that cannot serve so many atoms.
    """
    sums, fragments = total, None
    if constraints is not None:
        fragments, sums = Fragments(system, constraints.fragment), constraints.fragment_charge
        total = torch.zeros_like(total).index_add(0, fragments.structure, sums)
    solver = choose(system, hardness.detach(), constant, method, tolerance, memory, None, fragments)
    q, multiplier = _Solve.apply(
        -electronegativity, sums, hardness, system.positions, system.squared_widths, system.cell, system, solver,
        constant,
    )  # fmt: skip
    # (k / 2) q' A q without another sum over space: the equations say k A q = -chi - J q - mu
    energy = -0.5 * system.sum(q * (electronegativity + hardness * q))
    by_sum = -0.5 * multiplier * sums
    if fragments is not None:
        by_sum = torch.zeros_like(total).index_add(0, fragments.structure, by_sum)
    energy = energy + by_sum
    if system.has_slabs:
        energy = energy - 0.5 * constant * slab_constant(system) * total**2
    return q, energy, multiplier


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rhs, total, hardness, positions, squared_widths, cell, system, solver, constant):
        q, multiplier = solver(rhs, total)
        ctx.save_for_backward(q, hardness, positions, squared_widths, cell)
        ctx.others = system, solver, constant
        return q, multiplier

    @staticmethod
    def backward(ctx, grad_q, grad_multiplier):
        q, hardness, *geometry = ctx.saved_tensors
        system, solver, constant = ctx.others
        adjoint, grad_total = _Solve.apply(grad_q, grad_multiplier, hardness, *geometry, system, solver, constant)
        grad_hardness = -adjoint * q if wanted(ctx, 2) else None
        known = [getattr(solver, name, None) for name in ("table", "waves")]
        gradients = _partial(adjoint, q, geometry, [wanted(ctx, k) for k in (3, 4, 5)], system, constant, known)
        return adjoint, grad_total, grad_hardness, *gradients, None, None, None


def _partial(
    adjoint, q, geometry, needed: list[bool], system: System, constant: float, known: list
) -> list[Tensor | None]:
    """Derivatives of -k lambda' A q by positions, squared widths and cell, with the charges held; ``known`` are the
    tables of pairs and waves that the solver has left."""
    gradients = [None] * 3
    if not any(needed):
        return gradients
    create_graph = torch.is_grad_enabled()
    if not create_graph and not needed[1] and not system.has_slabs:
        by_position, by_cell = form_gradients(adjoint, q, system, needed[2], *known)
        return [-constant * by_position, None, -constant * by_cell if needed[2] else None]
    with torch.enable_grad():
        # charges depend on the geometry, too: through other tensors than these
        if create_graph:
            own = [t.view_as(t) for t in geometry]
        else:
            own = [t.detach().requires_grad_(need) for t, need in zip(geometry, needed, strict=True)]
            adjoint, q = adjoint.detach(), q.detach()
        there = system._replace(positions=own[0], squared_widths=own[1], cell=own[2])
        value = -constant * coulomb_form(adjoint, q, there).sum()
        asked = [t for t, need in zip(own, needed, strict=True) if need]
        found = iter(torch.autograd.grad(value, asked, create_graph=create_graph, materialize_grads=True))
    return [next(found) if need else None for need in needed]
