"""Which solver serves a batch of structures, and the one for structures of medium size."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..ewald.coulomb import coulomb_matrix
from ..ewald.system import System
from .naive import IndefiniteError

Solver = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # rhs (N,), total (B,) -> charges (N,), multiplier (B,)


def choose(system: System, hardness: Tensor, constant: float) -> Solver:
    """A solver of K (q, mu) = (rhs, total) for every structure of the batch."""
    return Dense(system, hardness, constant)


class Dense:
    """Factorised matrices, padded to the largest structure of the batch.

    Raises:
        IndefiniteError: the energy of a structure has no minimum.
    """

    @torch.no_grad()
    def __init__(self, system: System, hardness: Tensor, constant: float):
        self.system = system
        matrix = coulomb_matrix(system).mul_(constant)
        ones = system.pad(torch.ones_like(hardness))
        matrix.diagonal(dim1=1, dim2=2).add_(system.pad(hardness) + (1.0 - ones))
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
