"""Which solver serves a batch of structures.

Small and medium structures are factorised together, padded to the largest: n^3 / 3 operations, and the reciprocal part
of the matrix takes n^2 times the number of wave vectors, which grows with n, too. Large ones are solved one by one by
conjugate gradients, which take a dozen products of O(n) to O(n log n) operations each.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..ewald.coulomb import coulomb_matrix
from ..ewald.system import System
from .batched_op import factorise, solve
from .conjugate_gradient import ConjugateGradient
from .naive import IndefiniteError

Solver = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # rhs (N,), total (B,) -> charges (N,), multiplier (B,)

LARGEST_SMALL = 128  # atoms; what the batched kernels are for
LARGEST_DENSE = 400  # atoms; where factorisation and iteration take the same time on two CPU cores


def choose(system: System, hardness: Tensor, constant: float) -> Solver:
    """A solver of K (q, mu) = (rhs, total) for every structure of the batch.

    Raises:
        IndefiniteError: the energy of a structure has no minimum; here, or when the solver is called.
    """
    if system.size > LARGEST_DENSE:
        return OneByOne(system, hardness, constant)
    return (Small if system.size <= LARGEST_SMALL else Dense)(system, hardness, constant)


def hessian(system: System, hardness: Tensor, constant: float) -> Tensor:
    """H (B, n, n), padded with zeros."""
    matrix = coulomb_matrix(system).mul_(constant)
    matrix.diagonal(dim1=1, dim2=2).add_(system.pad(hardness))
    return matrix


class Small:
    """All structures in one launch, by the batched kernels."""

    @torch.no_grad()
    def __init__(self, system: System, hardness: Tensor, constant: float):
        self.system = system
        self.factor = factorise(hessian(system, hardness, constant), system.sizes)

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        charges, multiplier = solve(self.factor, self.system.pad(rhs), total)
        return self.system.unpad(charges), multiplier


class Dense:
    """Matrices factorised by LAPACK."""

    @torch.no_grad()
    def __init__(self, system: System, hardness: Tensor, constant: float):
        self.system = system
        ones = system.pad(torch.ones_like(hardness))
        matrix = hessian(system, hardness, constant)
        matrix.diagonal(dim1=1, dim2=2).add_(1.0 - ones)
        self.factor, info = torch.linalg.cholesky_ex(matrix)
        if bool((info != 0).any()):
            raise IndefiniteError(torch.nonzero(info).flatten().tolist())
        self.response = torch.cholesky_solve(ones[:, :, None], self.factor).squeeze(2)  # H^-1 1
        self.stiffness = 1.0 / self.response.sum(dim=1).clamp_min(1e-300)

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        free = torch.cholesky_solve(self.system.pad(rhs)[:, :, None], self.factor).squeeze(2)
        multiplier = (free.sum(dim=1) - total) * self.stiffness
        return self.system.unpad(free - multiplier[:, None] * self.response), multiplier


class OneByOne:
    """Each structure by itself: conjugate gradients for large ones."""

    @torch.no_grad()
    def __init__(self, system: System, hardness: Tensor, constant: float):
        self.ptr, self.solvers = system.node_ptr.tolist(), []
        for b in range(system.num_structures):
            own, kind = slice(self.ptr[b], self.ptr[b + 1]), ConjugateGradient
            if self.ptr[b + 1] - self.ptr[b] <= LARGEST_DENSE:
                kind = Small if self.ptr[b + 1] - self.ptr[b] <= LARGEST_SMALL else Dense
            self.solvers.append(self._named(b, kind, system.select(b), hardness[own], constant))

    @torch.no_grad()
    def __call__(self, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        charges, multipliers = [], []
        for b, solver in enumerate(self.solvers):
            own = slice(self.ptr[b], self.ptr[b + 1])
            q, multiplier = self._named(b, solver, rhs[own], total[b : b + 1])
            charges.append(q)
            multipliers.append(multiplier)
        return torch.cat(charges), torch.cat(multipliers)

    @staticmethod
    def _named(b: int, function: Callable, *arguments):
        try:
            return function(*arguments)
        except IndefiniteError:
            raise IndefiniteError([b]) from None
