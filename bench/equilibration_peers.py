"""Charge equilibration by public packages, each behind the same small interface.

Units: Å, elementary charges, eV.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT

from .peers import Peer
from .point_charges import System


@dataclass(frozen=True, eq=False)
class Equilibration:
    """Charges wanted: of each structure those that minimise sum_i (chi_i q_i + J_i q_i^2 / 2) + (k / 2) q' A q under a
    given sum, with A of Gaussian charges rho ~ exp(-r^2 / 2 s_i^2): A_ij = erf(r / (sqrt2 g)) / r, g^2 = s_i^2 + s_j^2.

    Attributes:
        positions: (N, 3) Å.
        ptr: (B + 1,) first atom of each structure.
        total: (B,) sums of charges, e.
        chi: (N,) electronegativities, eV/e.
        hardness: (N,) J, eV/e^2.
        widths: (N,) s, Å.
        cell: (3, 3) Å of the only structure; None for molecules.
    """

    name: str
    positions: Tensor
    ptr: Tensor
    total: Tensor
    chi: Tensor
    hardness: Tensor
    widths: Tensor
    cell: Tensor | None = None

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Equilibration":
        """All real numbers in another precision, and everything on a device."""
        names = ("positions", "total", "chi", "hardness", "widths", "cell")
        real = {key: value.to(device, dtype) for key in names if (value := getattr(self, key)) is not None}
        return replace(self, ptr=self.ptr.to(device), **real)


class EquilibrationPeer(Peer):
    """One way to the charges of a problem.

    Attributes:
        separable: it makes a matrix first, and then solves; ``prepare`` and ``solve`` are its two halves.
    """

    distribution = module = "torch"
    separable = True

    def __init__(self, problem: Equilibration):
        self.problem = problem

    @abstractmethod
    def __call__(self, positions: Tensor) -> Tensor:
        """(N,) charges, differentiable by ``positions`` (N, 3)."""

    def prepare(self, positions: Tensor) -> object:
        """The matrices."""
        raise NotImplementedError

    def solve(self, prepared: object) -> Tensor:
        """(N,) charges, given the matrices."""
        raise NotImplementedError


class _Separable(EquilibrationPeer):
    def __call__(self, positions):
        return self.solve(self.prepare(positions))

    @classmethod
    def obstacle(cls, problem):
        return "serves molecules only" if problem.cell is not None else None


class Loop(_Separable):
    """A Python loop: one dense matrix and one torch.linalg.solve a molecule."""

    name = "loop of dense solves"

    def prepare(self, positions):
        problem, matrices = self.problem, []
        bounds = problem.ptr.tolist()
        for first, last in pairwise(bounds):
            some = slice(first, last)
            matrix = molecular_matrix(positions[some], problem.widths[some], problem.hardness[some])
            matrices.append(bordered(matrix, torch.ones_like(problem.chi[some])))
        return matrices

    def solve(self, prepared):
        problem, charges = self.problem, []
        for structure, matrix in enumerate(prepared):
            chi = problem.chi[problem.ptr[structure] : problem.ptr[structure + 1]]
            rhs = torch.cat([-chi, problem.total[structure : structure + 1]])
            charges.append(torch.linalg.solve(matrix, rhs)[:-1])
        return torch.cat(charges)


class Padded(_Separable):
    """All molecules padded to the largest: one batched torch.linalg.solve."""

    name = "padded batched solve"

    def __init__(self, problem):
        super().__init__(problem)
        counts = problem.ptr.diff()
        self.mask = torch.arange(int(counts.max()), device=counts.device)[None, :] < counts[:, None]

    def _pad(self, values: Tensor, fill: float = 0.0) -> Tensor:
        padded = values.new_full((*self.mask.shape, *values.shape[1:]), fill)
        return padded.masked_scatter(self.mask.view(*self.mask.shape, *[1] * (values.ndim - 1)), values)

    def prepare(self, positions):
        # absent atoms: one on its own, of hardness one, far from all others
        problem, mask = self.problem, self.mask
        matrix = molecular_matrix(
            self._pad(positions), self._pad(problem.widths, 1.0), self._pad(problem.hardness, 1.0), mask
        )
        return bordered(matrix, mask.to(matrix.dtype))

    def solve(self, prepared):
        rhs = torch.cat([-self._pad(self.problem.chi), self.problem.total[:, None]], dim=1)
        return torch.linalg.solve(prepared, rhs)[:, :-1][self.mask]


def molecular_matrix(positions: Tensor, widths: Tensor, hardness: Tensor, mask: Tensor | None = None) -> Tensor:
    """(..., n, n) k A + J of isolated molecules; positions (..., n, 3); atoms outside ``mask`` (..., n) interact with
    none."""
    n = positions.shape[-2]
    itself = torch.eye(n, dtype=torch.bool, device=positions.device)
    difference = positions[..., :, None, :] - positions[..., None, :, :]
    square = (difference * difference).sum(dim=-1)
    apart = ~itself if mask is None else ~itself & mask[..., :, None] & mask[..., None, :]
    r = torch.where(apart, square, 1.0).sqrt()  # no gradient of sqrt at zero
    widest = torch.sqrt(2.0 * (widths[..., :, None] ** 2 + widths[..., None, :] ** 2))
    pairs = torch.where(apart, COULOMB_CONSTANT * torch.erf(r / widest) / r, 0.0)
    return pairs + torch.diag_embed(hardness + COULOMB_CONSTANT / (widths * math.sqrt(math.pi)))


def bordered(matrix: Tensor, ones: Tensor) -> Tensor:
    """(..., n + 1, n + 1): the matrix with the constraint on the sum in its last row and column."""
    corner = ones.new_zeros(*ones.shape[:-1], 1)
    side = torch.cat([matrix, ones[..., None, :]], dim=-2)
    return torch.cat([side, torch.cat([ones, corner], dim=-1)[..., :, None]], dim=-1)


class Mlipops(EquilibrationPeer):
    """mlipops.ChargeEquilibration in a cell, by its Ewald matrix and a dense solve (or MINRES), in float32 only.

    Its model: chi and J as here, both in units of k (it has no Coulomb constant), radius sqrt2 s. It gives charges, and
    their derivatives by autograd; no energy. In mlipops 0.6.0 the matrix is not that of the model: the real-space terms
    are multiplied by 4 pi / V, too, the sum over half of the wave vectors lacks its factor of two, and an atom does not
    meet its own images; charges then depend on the splitting, and those of NaCl are off by a third and more. With
    ``corrected`` these three are put right, at the same cost. The cell must be rectangular, and no Gaussian may reach
    beyond its nearest images.
    """

    name = "mlipops"
    distribution = module = "mlipops"
    separable = False

    def __init__(
        self,
        problem: Equilibration,
        cutoff: float | None = None,
        smearing: float | None = None,
        k_cutoff: float | None = None,
        solver: str = "direct",
        corrected: bool = True,
    ):
        super().__init__(problem)
        single = problem.to(torch.float32, problem.positions.device)
        lengths = torch.linalg.vector_norm(single.cell, dim=1)
        # the fastest with which charges of rock salt and their gradients are accurate to 1e-4: matrices of wave vectors
        # times atoms take most of the time, so few wave vectors, and a long cutoff
        cutoff = cutoff or min(14.1, 0.5 * float(lengths.min()))
        smearing = smearing or cutoff / 4.8
        k_cutoff = k_cutoff or 3.9 / smearing
        if cutoff > 0.5 * float(lengths.min()):
            raise ValueError("mlipops knows the nearest image only: the cutoff must not exceed half of the cell")
        waves = (lengths * k_cutoff / (2.0 * math.pi)).ceil().long().tolist()
        system = System("", problem.positions, problem.cell, problem.chi)
        i, j, _ = system.neighbours(cutoff, full=False)
        self.equilibration = _mlipops_equilibration(corrected)(torch.stack([i, j], dim=1), cutoff, waves, smearing)
        self.arguments = {
            "electronegativity": single.chi / COULOMB_CONSTANT,
            "hardness": single.hardness / COULOMB_CONSTANT,
            "radius": math.sqrt(2.0) * single.widths,
            "total_charge": float(single.total),
            "box_vectors": single.cell,
            "solver": solver,
        }

    def __call__(self, positions):
        return self.equilibration(positions.float(), **self.arguments)

    @classmethod
    def obstacle(cls, problem):
        return super().obstacle(problem) or ("is compared for a cell" if problem.cell is None else None)


class MlipopsMinres(Mlipops):
    """The same matrix, and charges by MINRES to a residual of 1e-7."""

    name = "mlipops MINRES"

    def __init__(self, problem, **parameters):
        super().__init__(problem, solver="minres", **parameters)


def _mlipops_equilibration(corrected: bool) -> Callable:
    """A function that makes mlipops' module with a list of pairs made beforehand, its matrix corrected or as it is."""
    import mlipops

    class Pairs(mlipops.NeighborList):
        def __init__(self, pairs: Tensor, cutoff: float):
            super().__init__(cutoff=cutoff)
            self.pairs = pairs

        def forward(self, positions, box_vectors=None, batch=None):
            return self.pairs

    class Corrected(mlipops.ChargeEquilibration):
        def _compute_interactions_ewald(self, positions, hardness, radius, box_vectors, batch, num_systems):
            alpha, pairs = self.coulomb.alpha, self.coulomb.neighbor_list(positions, box_vectors, batch)
            i, j = pairs.unbind(dim=1)
            delta = mlipops.pairwise_displacements(positions, pairs, box_vectors)
            r = torch.linalg.vector_norm(delta, dim=1)
            values = (torch.erf(r * torch.rsqrt(radius[i] ** 2 + radius[j] ** 2)) - torch.erf(alpha * r)) / r
            near = values.new_zeros(len(positions), len(positions))
            near[i, j] = values
            near[j, i] = values
            inverse = torch.linalg.inv(box_vectors)
            k = self.coulomb.wave_indices @ (2.0 * torch.pi * inverse.T)
            phase = k @ positions.T
            square = (k * k).sum(dim=1)
            weight = torch.exp(-square / (4.0 * alpha**2)) / square
            far = torch.einsum("i,ij,ik->jk", weight, phase.cos(), phase.cos())
            far = far + torch.einsum("i,ij,ik->jk", weight, phase.sin(), phase.sin())
            alone = hardness + math.sqrt(2.0 / math.pi) / radius - 2.0 * alpha / math.sqrt(math.pi)
            return near + 8.0 * torch.pi * inverse.diag().prod() * far + torch.diag(alone)

    def make(pairs: Tensor, cutoff: float, waves: list[int], smearing: float):
        coulomb = mlipops.CoulombEwald(Pairs(pairs, cutoff), None, *waves, 1.0 / (math.sqrt(2.0) * smearing), 1.0)
        return (Corrected if corrected else mlipops.ChargeEquilibration)(coulomb)

    return make


EQUILIBRATION_PEERS: tuple[type[EquilibrationPeer], ...] = (Loop, Padded, Mlipops, MlipopsMinres)
