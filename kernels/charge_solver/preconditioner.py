"""An approximate inverse of A + J/k that knows the long waves, which no diagonal does.

H = k A + J is taken for D + k sum_k g(k) [cos cos' + sin sin'] with g(k) = (4 pi / V) exp(-w k^2) / k^2 and

    D = J + k (1 / (s_i sqrt(pi)) - 1 / sqrt(pi w)),

what a wide Gaussian of squared width w leaves of an atom, but no less than its mean. By Woodbury's formula, with the
waves orthogonal on the atoms on average, S = sum_i 1 / D_i, and f(k) = 1 / (1 / (k g(k)) + S),

    M^-1 = 1 / D - (1 / D) sum_k f(k) [cos cos' + sin sin'] (1 / D).

Waves on atoms are not orthogonal, though, and then this need not be positive definite. A square is, whatever the atoms:

    M^-1 = D^-1/2 B^2 D^-1/2,      B = 1 - D^-1/2 sum_k h(k) [cos cos' + sin sin'] D^-1/2,      (1 - h S)^2 = 1 - f S,

which is the same where waves are orthogonal. Only waves longer than about two distances between atoms are nearly so,
and only these matter (exp(-w k^2)), so the sums are done on a coarse mesh.

Where there is vacuum, a pattern of charges that belongs to one wave belongs to others, too: as many times more as the
cell is larger than what the atoms fill (``CoulombTables.inverse_filling``). S has to be that much larger, or B would go
far beyond zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ewald.system import System
from ..ewald_mesh.convolution import filtered, transform
from ..ewald_mesh.influence import green, waves, window
from ..ewald_mesh.op import stencils
from ..ewald_mesh.parameters import smooth
from ..ewald_mesh.potential import coordinates

if TYPE_CHECKING:
    from ..ewald.wave_table import WaveTable

ORDER = 4  # of the B-splines
REACH = 0.75  # times the radius of the sphere that holds as many waves as there are atoms; the rest is the diagonal's


def diagonal(system: System, hardness: Tensor, constant: float) -> tuple[float, Tensor]:
    """w, and D (N,) in eV/e^2."""
    a = system.squared_widths
    width = float(a.max().clamp_min(0.25))
    own = torch.where(a > 0.0, (math.pi * a.clamp_min(1e-6)).rsqrt(), (math.pi * 0.25 * width) ** -0.5)
    found = hardness + constant * (own - (math.pi * width) ** -0.5).clamp_min(0.0)
    return width, found.clamp_min(float(found.mean()))


def longest_waves(num_atoms: int, lattice: Tensor) -> float:
    """k in 1/Å up to which waves are treated as such."""
    volume = float(torch.linalg.det(lattice).abs())
    return REACH * (6.0 * math.pi**2 * num_atoms / volume) ** (1.0 / 3.0)


def load(system: System, weights: Tensor) -> float:
    """S of one structure, from the weights 1 / D (N,)."""
    return float(weights.sum()) * float(system.tables.inverse_filling[0])


def explicit_filter(system: System, waves: WaveTable, width: float, constant: float, whole: float) -> Tensor:
    """h (lines, 2, thirds) times how often each wave vector counts; S is ``whole``."""
    # the weights of the Coulomb sum differ in the width alone, a slab's, too
    square = (waves.vectors**2).sum(dim=3)
    g = constant * waves.weights * torch.exp(0.5 * (waves.squared_eta - 2.0 * width) * square) / 2.0
    reach = longest_waves(len(system.positions), system.lattice()[0])
    inside = waves.used & (g > 0.0) & (square < reach**2)
    weak = 1.0 / (1.0 + torch.where(inside, g, 1.0) * whole)
    return torch.where(inside, 2.0 / whole * (1.0 - weak.sqrt()), 0.0)


class Fourier:
    """M^-1 for one structure that is periodic in two or three directions.

    Args:
        system: one structure.
        hardness: (N,) J in eV/e^2.
        constant: k, eV Å.

    Attributes:
        weights: (N,) 1 / D.
    """

    @torch.no_grad()
    def __init__(self, system: System, hardness: Tensor, constant: float):
        width, own = diagonal(system, hardness, constant)
        self.root, self.weights = own.rsqrt(), 1.0 / own
        cell, height = system.lattice()[0], float(system.tables.height[0])
        reach = longest_waves(len(own), cell)
        # half again as fine as the shortest wave asks for, which keeps its aliases small
        heights = 1.0 / torch.linalg.vector_norm(torch.linalg.inv(cell), dim=0)
        self.dims = tuple(smooth(max(ORDER, math.ceil(1.5 * reach * float(h) / math.pi))) for h in heights)
        self.cell, self.filter = cell, self._filter(cell, width, constant, load(system, self.weights), reach, height)
        self.move(system.positions)

    def move(self, positions: Tensor) -> None:
        """Atoms are at ``positions`` (N, 3) now."""
        self.stencils = stencils(coordinates(positions, self.cell, self.dims), self.dims, ORDER)

    def _filter(self, cell: Tensor, width: float, constant: float, whole: float, reach: float, height: float) -> Tensor:
        indices = [index.to(cell.dtype) for index in waves(self.dims, cell.device)]
        g = constant * green(cell, math.sqrt(2.0 * width), indices, height)
        first, second, third = (
            window(index, n, ORDER).to(cell.dtype) for index, n in zip(indices, self.dims, strict=True)
        )
        damping = (first[:, None, None] * second[:, None] * third) ** 2
        lattice = 2.0 * math.pi * torch.linalg.inv(cell).T
        n1, n2, n3 = indices
        k = n1[:, None, None, None] * lattice[0] + n2[:, None, None] * lattice[1] + n3[:, None] * lattice[2]
        inside = (g > 0.0) & ((k**2).sum(dim=-1) < reach**2)
        number = math.prod(self.dims)  # irfftn divides by it
        weak = 1.0 / (1.0 + torch.where(inside, g, 1.0) * whole)  # 1 - f S
        return torch.where(inside, number / whole * (1.0 - weak.sqrt()) / damping, 0.0)

    @torch.no_grad()
    def __call__(self, r: Tensor) -> Tensor:
        return self.root * self._without_waves(self._without_waves(self.root * r))

    def _without_waves(self, y: Tensor) -> Tensor:
        """B y."""
        mesh = filtered(transform(self.stencils.spread(self.root * y)), self.filter, self.dims)
        return y - self.root * self.stencils.gather(mesh)


class Jacobi:
    """The diagonal alone, for molecules."""

    @torch.no_grad()
    def __init__(self, system: System, hardness: Tensor, constant: float):
        self.weights = 1.0 / (hardness + constant * system.self_terms())

    def move(self, positions: Tensor) -> None:
        """Nothing depends on positions."""

    def __call__(self, r: Tensor) -> Tensor:
        return r * self.weights
