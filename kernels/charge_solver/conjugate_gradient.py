"""Projected, preconditioned conjugate gradients for one large structure, without a matrix.

Minimises q' H q / 2 - rhs' q with given sums C'q = Q, of the whole structure or of its fragments. Directions have no
sums, and residuals no level (Gould, Hribar & Nocedal, SIAM J. Sci. Comput. 23, 1376, 2001), so that one solve suffices,
however many fragments there are. With the diagonal D that a preconditioner M begins with, the weights w = 1 / D and the
projections S of ``constraints.py``, directions come from S M^-1 S' r; were M no more than D, that would be the nearest
in its norm. As A is positive semidefinite, every eigenvalue of H = k A + J is at least the smallest hardness, and the
error of the charges is bounded by the residual: |q - q*| <= |S' r| / min J in the 2-norm. Tolerances are about this
part of it (see ``error_bound.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ewald.operator import CoulombOperator
from ..ewald.system import System
from .constraints import Sums
from .error_bound import ErrorBound
from .naive import ConvergenceError, IndefiniteError
from .preconditioner import Fourier, Jacobi

if TYPE_CHECKING:
    from ..ewald.pair_table import PairTable

TOLERANCE = 1e-9  # e
MAX_ITERATIONS = 500
ROUNDING = 8.0 * torch.finfo(torch.float64).eps  # of a residual, relative to the right-hand side
SLACK = 16.0  # above which multiple of what rounding leaves it is no excuse any more


@dataclass(frozen=True)
class Report:
    """How the solve for one structure went.

    Attributes:
        iterations: how many it took.
        error_bound: on the root-mean-square error of the charges, e: what the iteration has left, what the Coulomb sums
            leave out, and rounding, see ``error_bound.py``.
        unfinished: the part of it that the iteration has left, which is what a tolerance limits.
    """

    iterations: int
    error_bound: float
    unfinished: float


def target_of(
    spread: float, largest: float, num_atoms: int, charge: float, least: float, tolerance: float, absolute: bool
) -> tuple[float, float]:
    """The norm of the residual to stop at, and what of it rounding alone may leave.

    Unless ``absolute``, the tolerance is relative to how large the solution may be where that is below one: an adjoint
    is proportional to a loss, which may be small. What drives charges apart in a perfect crystal of one element is
    the rounding of the right-hand side, and no aim.

    Args:
        spread: norm of the right-hand side without its level, eV/e.
        largest: of its absolute values.
        charge: sum of the charges that are given, e, of whatever sign.
        least: the smallest hardness, eV/e^2.
        tolerance: see ``ConjugateGradient``.
    """
    root, scale = math.sqrt(num_atoms), 1.0
    if not absolute:
        scale = min(1.0, spread / root / least + abs(charge) / num_atoms)
    floor = ROUNDING * root * largest
    return max(tolerance * scale * root * least, floor), floor


def has_converged(norm: float, floor: float) -> bool:
    """Whether an iteration that can go no further has come down to what rounding leaves, and is no failure."""
    return norm <= SLACK * floor


def exhausted(bound: float, tolerance: float) -> ConvergenceError:
    """No convergence, with a bound on the root-mean-square error of the charges."""
    return ConvergenceError(
        [0],
        f"after {MAX_ITERATIONS} iterations the root-mean-square error of the charges may still be {bound:.1e} e, "
        f"more than the tolerance of {tolerance:.1e} e",
    )


class ConjugateGradient:
    """Solves H q + C m = rhs, C'q = total for one structure.

    Args:
        system: one structure.
        hardness: (N,) J in eV/e^2.
        constant: k, eV Å.
        tolerance: bound on the root-mean-square error of the charges, e; relative to what drives them apart where that
            is little.
        table: the pair function, if that is known in float32 and is to be good enough.
        fragments: those of the atoms (n,) and their number, if their sums are given.

    Attributes:
        report: of the last solve.

    Raises:
        IndefiniteError: the energy has no minimum.
        ConvergenceError: the residual does not fall to the tolerance.
    """

    @torch.no_grad()
    def __init__(
        self,
        system: System,
        hardness: Tensor,
        constant: float,
        tolerance: float = TOLERANCE,
        table: PairTable | None = None,
        fragments: tuple[Tensor, int] | None = None,
    ):
        self.operator, self.hardness, self.constant = CoulombOperator(system, table), hardness, constant
        kind = Fourier if len(system.tables.periodic) else Jacobi
        self.preconditioner = kind(system, hardness, constant)
        self.sums = Sums(self.preconditioner.weights, *(fragments or ()))
        self.tolerance, self.report = tolerance, None
        self.bound = ErrorBound(system, hardness, constant, self.operator.rows())

    @torch.no_grad()
    def moved(self, system: System) -> None:
        """Atoms have moved, and the table knows."""
        self.operator.move(system.positions)
        self.preconditioner.move(system.positions)

    def hessian(self, q: Tensor) -> Tensor:
        """H q."""
        return self.constant * self.operator(q) + self.hardness * q

    @torch.no_grad()
    def __call__(
        self, rhs: Tensor, total: Tensor, start: Tensor | None = None, absolute: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Charges (n,) and multipliers (F,) from rhs (n,) and sums (F,), of one fragment if none are told apart.

        Args:
            start: charges that are nearly right.
            absolute: take the tolerance as it is, however small the solution may be.
        """
        sums, n, least = self.sums, len(rhs), float(self.hardness.min())
        q = torch.zeros_like(rhs) if start is None else start.clone()
        sums.complete(q, total)
        spread = torch.linalg.vector_norm(rhs - sums.each(sums.level(rhs)))
        sizes = float(spread), float(rhs.abs().max()), n, float(total.abs().sum())
        target, floor = target_of(*sizes, least, self.tolerance, absolute)
        residual = rhs - self.hessian(q) if bool(q.any()) else rhs
        multiplier = sums.level(residual)
        residual = residual - sums.each(multiplier)
        direction, slope = None, 1.0
        for iteration in range(MAX_ITERATIONS + 1):
            norm = float(torch.linalg.vector_norm(residual))
            if norm <= target:
                break
            if not math.isfinite(norm):
                raise IndefiniteError([0])
            if iteration == MAX_ITERATIONS:
                raise exhausted(norm / least / math.sqrt(n), self.tolerance)
            z = self.preconditioner(residual)
            z = z - sums.shares * sums.each(sums.of(z))
            previous, slope = slope, float(residual @ z)
            direction = z if direction is None else z + (slope / previous) * direction
            image = self.hessian(direction)
            curvature = float(direction @ image)
            if not curvature > 0.0:
                if has_converged(norm, floor):
                    break
                raise IndefiniteError([0])
            step, level = slope / curvature, sums.level(image)
            q += step * direction
            residual -= step * (image - sums.each(level))
            multiplier = multiplier - step * level
        norm = sums.norm_of_rest(residual, norm)
        bound = self.bound(norm + floor, q, float(q.sum()), start)
        self.report = Report(iteration, bound, norm / least / math.sqrt(n))
        return q, multiplier
