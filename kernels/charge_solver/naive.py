"""The specification of charge equilibration: a batched dense solve with exact gradients of any order.

For each structure, the charges that minimise chi' q + q' H q / 2 with sum q = Q satisfy

    | H   1 | | q  |   | -chi |
    | 1'  0 | | mu | = |   Q  |

The matrix K on the left is symmetric, so one more solve with the same factorisation gives every gradient: with
K (lambda, nu) = (dL/dq, dL/dmu), dL/d(-chi) = lambda, dL/dQ = nu and dL/dH = -(lambda q' + q lambda') / 2. That solve
is again an instance of this function, which makes it differentiable any number of times.
"""

import torch
from fastlr.kernels.autograd import wanted
from fastlr.kernels.ewald.naive import coulomb_matrix
from fastlr.kernels.ewald.system import System, slab_constant
from torch import Tensor

from .constraints import Constraints
from .definite import positive_definite


class SolverError(ValueError):
    """There are no charges for some ``structures`` (their numbers), for a ``reason``."""

    reason = "the equations cannot be solved"

    def __init__(self, structures: list[int], reason: str | None = None):
        self.structures, self.reason = structures, reason or self.reason
        super().__init__(f"{self.reason} in structures {structures}")


class IndefiniteError(SolverError):
    """H is not positive definite (or not finite)."""

    reason = "the charge matrix is not positive definite"


class ConvergenceError(SolverError):
    """An iteration did not come to its end."""

    reason = "the iteration for the charges did not converge"


def solve_charges(matrix: Tensor, rhs: Tensor, total: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Solve K (q, mu) = (rhs, total) for every structure.

    Args:
        matrix: (B, n, n) symmetric H; rows and columns outside ``mask`` are ignored.
        rhs: (B, n), zero outside ``mask``.
        total: (B,) sum of the charges.
        mask: (B, n) bool, which entries are atoms.

    Returns:
        q (B, n), zero outside ``mask``, and the Lagrange multiplier mu (B,), minus the chemical potential.

    Raises:
        IndefiniteError: some H is not positive definite (or not finite).
    """
    with torch.no_grad():
        padding = torch.diag_embed((~mask).to(matrix.dtype))
        inside = mask[:, :, None] & mask[:, None, :]
        factor, info = torch.linalg.cholesky_ex(torch.where(inside, matrix, 0.0) + padding)
        definite = positive_definite(factor, info)
        if not definite.all():
            raise IndefiniteError(torch.nonzero(~definite).flatten().tolist())
        ones = mask.to(matrix.dtype)
        response = torch.cholesky_solve(ones[:, :, None], factor).squeeze(2)  # H^-1 1
    return _Solve.apply(matrix, rhs, total, factor, response, ones)


def solve_constrained(matrix: Tensor, rhs: Tensor, members: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Solve H q + C m = rhs, C' q = sums for every structure.

    Args:
        matrix: (B, n, n) H, with ones on the diagonal where there is no atom.
        rhs: (B, n).
        members: (B, n, F) C; a column without atoms is no constraint.
        sums: (B, F).

    Returns:
        q (B, n) and m (B, F), zero for constraints that are none.
    """
    absent = torch.diag_embed((members.sum(dim=1) == 0.0).to(matrix.dtype))
    bordered = torch.cat(
        [torch.cat([matrix, members], dim=2), torch.cat([members.transpose(1, 2), absent], dim=2)], dim=1
    )
    solution = torch.linalg.solve(bordered, torch.cat([rhs, sums], dim=1))
    return solution[:, : rhs.shape[1]], solution[:, rhs.shape[1] :]


def equilibrate(
    system: System,
    electronegativity: Tensor,
    hardness: Tensor,
    total: Tensor,
    constant: float,
    constraints: Constraints | None = None,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Charges that minimise  sum_i (chi_i q_i + J_i q_i^2 / 2) + (k / 2) q' A q  with sum q = Q in each structure.

    Args:
        system: where the charges sit.
        electronegativity, hardness: (N,) chi in eV/e and J in eV/e^2.
        total: (B,) Q in e.
        constant: k, the Coulomb constant in eV Å.
        constraints: charges of fragments in place of ``total``.
        options: of faster ways to the same, without meaning here.

    Returns:
        q (N,) e; the Coulomb energy (k / 2) q' A q (B,) eV; and the Lagrange multiplier (B,), or (G,) of the fragments,
        minus the chemical potential. All are differentiable.

    Raises:
        SolverError: the energy of a structure has no minimum.
    """
    matrix = constant * coulomb_matrix(system)
    mask = system.pad(torch.ones_like(hardness)) > 0.0
    # a constant that all elements share has no influence on charges of a given sum, and keeps slabs positive definite
    lift = constant * slab_constant(system)
    hessian = matrix + torch.diag_embed(system.pad(hardness)) + lift[:, None, None]
    if constraints is None:
        charges, multiplier = solve_charges(hessian, -system.pad(electronegativity), total, mask)
        multiplier = multiplier + lift * total
    else:
        charges, multiplier = _equilibrate_fragments(system, hessian, electronegativity, lift, mask, constraints)
    energy = 0.5 * (charges * (matrix @ charges[:, :, None]).squeeze(2)).sum(dim=1)
    return system.unpad(charges), energy, multiplier


def _equilibrate_fragments(system: System, hessian, electronegativity, lift, mask, constraints: Constraints):
    """Padded charges (B, n) and multipliers (G,)."""
    inside = mask[:, :, None] & mask[:, None, :]
    hessian = torch.where(inside, hessian, 0.0) + torch.diag_embed((~mask).to(hessian.dtype))
    definite = positive_definite(*torch.linalg.cholesky_ex(hessian.detach()))
    if not definite.all():
        raise IndefiniteError(torch.nonzero(~definite).flatten().tolist())
    fragment, sums = constraints
    members = system.pad(torch.nn.functional.one_hot(fragment, len(sums)).to(hessian.dtype))  # (B, n, G)
    belongs = members.sum(dim=1) > 0.0  # (B, G)
    own = torch.where(belongs, sums, 0.0)
    charges, multipliers = solve_constrained(hessian, -system.pad(electronegativity), members, own)
    whole = own.sum(dim=1)
    return charges, torch.where(belongs, multipliers + (lift * whole)[:, None], 0.0).sum(dim=0)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, rhs, total, factor, response, ones):
        free = torch.cholesky_solve(rhs[:, :, None], factor).squeeze(2)
        multiplier = (free.sum(dim=1) - total) / response.sum(dim=1).clamp_min(1e-300)
        charges = (free - multiplier[:, None] * response) * ones
        ctx.save_for_backward(matrix, charges, factor, response, ones)
        return charges, multiplier

    @staticmethod
    def backward(ctx, grad_charges, grad_multiplier):
        matrix, charges, factor, response, ones = ctx.saved_tensors
        adjoint, grad_total = _Solve.apply(matrix, grad_charges * ones, grad_multiplier, factor, response, ones)
        grad_matrix = None
        if wanted(ctx, 0):
            grad_matrix = -0.5 * (adjoint[:, :, None] * charges[:, None, :] + charges[:, :, None] * adjoint[:, None, :])
        return grad_matrix, adjoint, grad_total, None, None, None
