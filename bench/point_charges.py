"""Point charges in a cell, and their exact energy and forces."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import vesin
from ase.build import bulk
from torch import Tensor

from fastlr.constants import COULOMB_CONSTANT


@dataclass(frozen=True, eq=False)
class System:
    """Point charges in a cell that is periodic in three directions.

    Attributes:
        positions: (N, 3) Å.
        cell: (3, 3) Å, rows are lattice vectors.
        charges: (N,) e.
    """

    name: str
    positions: Tensor
    cell: Tensor
    charges: Tensor

    def to(self, *args) -> "System":
        """On another device or in another precision."""
        return replace(self, **{key: getattr(self, key).to(*args) for key in ("positions", "cell", "charges")})

    @lru_cache(maxsize=1)  # noqa: B019  tuning asks for the same list many times in a row
    def neighbours(self, cutoff: float, full: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Atoms i and j (P,) int64 and cell shifts of j (P, 3) int32, sorted by i; every pair once, or both ways."""
        positions, cell = (tensor.detach().double().cpu().numpy() for tensor in (self.positions, self.cell))
        i, j, shifts = vesin.NeighborList(cutoff=cutoff, full_list=full, sorted=True).compute(
            positions, cell, True, quantities="ijS"
        )
        columns = (i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int32))
        return tuple(torch.from_numpy(column).to(self.positions.device) for column in columns)

    def waves(self, k_cutoff: float) -> Tensor:
        """(K, 3) wave vectors 0 < |k| < ``k_cutoff`` (1/Å), of k and -k the one."""
        reach = (torch.linalg.vector_norm(self.cell, dim=1) * (k_cutoff / (2.0 * math.pi))).ceil().long().tolist()
        index = torch.cartesian_prod(*(torch.arange(-n, n + 1) for n in reach)).to(self.cell)
        index = index[len(index) // 2 + 1 :]  # in lexicographic order, the second half are the negatives of the first
        waves = 2.0 * math.pi * index @ torch.linalg.inv(self.cell).T
        return waves[torch.linalg.vector_norm(waves, dim=1) < k_cutoff].contiguous()


def rock_salt(repeat: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> System:
    """8 repeat^3 ions of NaCl, a = 5.64 Å, charges +1 and -1, displaced by 0.1 Å (standard deviation, each axis)."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=0)
    charges = torch.where(torch.tensor(atoms.numbers) == 11, 1.0, -1.0)
    tensors = (torch.tensor(atoms.positions), torch.tensor(atoms.cell.array), charges)
    return System(f"NaCl, {len(atoms):,} ions", *(tensor.to(device, dtype) for tensor in tensors))


def exact(system: System, accuracy: float = 1e-9, cutoff: float = 14.0) -> tuple[Tensor, Tensor]:
    """Energy in eV and forces (N, 3) in eV/Å of a neutral system, by a plain Ewald sum in float64.

    Both sums stop where a Gaussian has fallen to ``accuracy``; forces of NaCl are then accurate to ten times that.
    Phases of wave vectors are products, exp(i k r) = prod_a exp(2 pi i m_a s_a) with fractional coordinates s, so that
    the reciprocal sum is a sequence of matrix products.
    """
    system = system.to("cpu", torch.float64)
    positions, cell, charges = system.positions, system.cell, system.charges
    reach = math.sqrt(-2.0 * math.log(accuracy))
    eta = cutoff / reach
    beta = 1.0 / (math.sqrt(2.0) * eta)
    energy, forces = -(charges**2).sum() * beta / math.sqrt(math.pi), torch.zeros_like(positions)

    for i, j, shifts in zip(*(part.split(2**21) for part in system.neighbours(cutoff, full=False)), strict=True):
        d = positions[j] - positions[i] + shifts.double() @ cell
        r = torch.linalg.vector_norm(d, dim=1)
        product, screened = charges[i] * charges[j], torch.erfc(beta * r) / r
        energy = energy + (product * screened).sum()
        slope = product * (screened + 2.0 * beta / math.sqrt(math.pi) * torch.exp(-((beta * r) ** 2))) / r**2
        forces.index_add_(0, i, -slope[:, None] * d).index_add_(0, j, slope[:, None] * d)

    inverse, volume = torch.linalg.inv(cell), torch.linalg.det(cell).abs()
    k_cutoff = reach / eta
    limits = (torch.linalg.vector_norm(cell, dim=1) * (k_cutoff / (2.0 * math.pi))).ceil().long().tolist()
    index = [torch.arange(-limit, limit + 1, dtype=torch.float64) for limit in limits]
    fractional = 2.0 * math.pi * positions @ inverse
    phases = [torch.polar(torch.tensor(1.0).double(), fractional[:, a, None] * index[a]) for a in range(3)]
    gradient = torch.zeros_like(positions)  # by the fractional coordinates times 2 pi
    for first in range(limits[0] + 1):  # of m and -m the one, counted twice
        m = torch.cartesian_prod(torch.tensor([float(first)]).double(), index[1], index[2])
        square = ((2.0 * math.pi * m @ inverse.T) ** 2).sum(dim=1)
        counted = (square > 0) & (square < k_cutoff**2)
        weight = torch.where(counted, torch.exp(-0.5 * eta**2 * square) / square.clamp_min(1e-9), 0.0)
        weight = (4.0 * math.pi / volume * (2.0 if first else 1.0) * weight).view(len(index[1]), len(index[2]))
        rows, columns = weight.any(dim=1), weight.any(dim=0)
        if not rows.any():
            continue
        weight = weight[rows][:, columns].to(torch.complex128)
        line = (phases[0][:, limits[0] + first] * charges)[:, None] * phases[1][:, rows]
        last = phases[2][:, columns]
        amplitude = line.T @ last  # sum_i q_i exp(i k r_i)
        energy = energy + 0.5 * (weight.real * amplitude.abs() ** 2).sum()
        weighted = weight * amplitude.conj()
        along = line * (last @ weighted.T)
        across = line * (last @ (weighted * index[2][columns]).T)
        gradient[:, 0] -= first * along.sum(dim=1).imag
        gradient[:, 1] -= (along @ index[1][rows].to(along.dtype)).imag
        gradient[:, 2] -= across.sum(dim=1).imag
    return COULOMB_CONSTANT * energy, COULOMB_CONSTANT * (forces - 2.0 * math.pi * gradient @ inverse.T)
