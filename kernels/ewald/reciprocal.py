"""The reciprocal sum by structure factors.

With S(k) = sum_i q_i exp(i k r_i), the sum over wave vectors of A's bilinear form is

    u' A q = sum_k w(k) Re[conj(S_u(k)) S_q(k)],      w(k) = (4 pi / V) exp(-eta^2 k^2 / 2) / k^2.

Wave vectors lie on lines of constant (n1, n2). exp(i k r) is the product of a factor for the line and one for the third
index, so that all structure factors are one product of two matrices (atoms x lines, atoms x third indices), and no sine
or cosine is computed for a pair of an atom and a wave vector.

A slab is summed over the waves of a cell of height 2 R with the interaction cut off at |z| = R, which no image along
z reaches; its transform (Rozzi et al., Phys. Rev. B 73, 205119, 2006; Sohier, Calandra & Mauri, Phys. Rev. B 96,
075448, 2017) is w(k) times 1 - exp(-k_par R) cos(k_z R), and -2 pi R^2 / V at k = 0.
"""

import math

import torch
from torch import Tensor

from .rows import Rows
from .system import System


def weights(system: System, lattice: Tensor) -> Tensor:
    """w(k) (Bp, L, 2, M), times how often k counts."""
    tables = system.tables
    eta = 1.0 / system.periodic(tables.inverse_eta)[:, None, None, None]
    reciprocal = 2.0 * math.pi * torch.linalg.inv(lattice).transpose(1, 2)
    in_plane = tables.lines.to(lattice.dtype) @ reciprocal[:, :2]  # (Bp, L, 3)
    third = torch.arange(tables.waves.shape[3], dtype=lattice.dtype, device=lattice.device)
    along = third[None, :, None] * reciprocal[:, 2:]  # (Bp, M, 3)
    cross = 2.0 * in_plane @ along.transpose(1, 2)
    square = (in_plane**2).sum(dim=2)[:, :, None] + (along**2).sum(dim=2)[:, None, :]
    k2 = torch.stack([square + cross, square - cross], dim=2)
    counts = tables.waves
    k2 = torch.where(counts > 0.0, k2, 1.0)
    volume = torch.linalg.det(lattice).abs()[:, None, None, None]
    w = counts * (4.0 * math.pi / volume) * torch.exp(-0.5 * eta**2 * k2) / k2
    if system.has_slabs:
        height = tables.height[:, None, None, None]
        parallel = torch.where((tables.lines != 0).any(dim=2), (in_plane**2).sum(dim=2), 0.0)
        parallel = torch.where(parallel > 0.0, torch.where(parallel > 0.0, parallel, 1.0).sqrt(), 0.0)
        sign = 1.0 - 2.0 * (third % 2.0)  # cos(k_z R)
        cut = 1.0 - torch.exp(-parallel[:, :, None, None] * height) * sign
        w = w * torch.where(height > 0.0, cut, 1.0)
    return w


def rows(weights: Tensor, num_atoms: int, dtype: torch.dtype) -> Rows:
    """How large the rows of the reciprocal sum's matrix are, for so many atoms at random places."""
    longest = float(weights.max()) if weights.numel() else 0.0
    return Rows(math.sqrt(0.5 * num_atoms * float((weights**2).sum())), longest, dtype)


def factors(system: System, lattice: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the lines' phases (Bp, n, 2 L), and of the third index's (Bp, n, 2 M)."""
    tables = system.tables
    positions = system.pad_periodic(system.positions)
    phases = 2.0 * math.pi * positions @ torch.linalg.inv(lattice)
    lines = phases[:, :, :2] @ tables.lines.to(phases.dtype).transpose(1, 2)
    third = phases[:, :, 2:] * torch.arange(tables.waves.shape[3], dtype=phases.dtype, device=phases.device)
    return torch.cat([lines.cos(), lines.sin()], dim=2), torch.cat([third.cos(), third.sin()], dim=2)


def form(u: Tensor, q: Tensor, system: System, lattice: Tensor) -> Tensor:
    """u' A q (Bp,) of the reciprocal sum, without the term of k = 0; differentiable in everything."""
    line, third = factors(system, lattice)

    def structure_factors(charges: Tensor) -> Tensor:
        """(Bp, 4, L, M): real and imaginary part for +m, and for -m."""
        padded = system.pad_periodic(charges)
        cc, cs, sc, ss = (
            block
            for half in ((line * padded[:, :, None]).transpose(1, 2) @ third).chunk(2, dim=1)
            for block in half.chunk(2, dim=2)
        )
        return torch.stack([cc - ss, sc + cs, cc + ss, sc - cs], dim=1)

    left = structure_factors(q)
    right = left if u is q else structure_factors(u)
    w = weights(system, lattice).permute(0, 2, 1, 3).repeat_interleave(2, dim=1)
    return (w * left * right).sum(dim=(1, 2, 3))


class ZeroWave:
    """(u, q) -> (Bp,) the term of k = 0 in cells, where the average potential of each Gaussian is zero."""

    def __init__(self, system: System, lattice: Tensor):
        self.system, factor = system, -2.0 * math.pi / torch.linalg.det(lattice).abs()
        self.factor = torch.where(system.tables.height > 0.0, 0.0, factor) if system.has_slabs else factor
        self.squared_eta = system.periodic(system.tables.inverse_eta) ** -2

    def __call__(self, u: Tensor, q: Tensor) -> Tensor:
        sum_q, spread_q = self._moments(q)
        sum_u, spread_u = (sum_q, spread_q) if u is q else self._moments(u)
        return self.factor * (self.squared_eta * sum_u * sum_q - spread_u * sum_q - sum_u * spread_q)

    def of_one(self, u: Tensor, q: Tensor) -> float:
        """The same for one structure, without derivatives and in fewer operations."""
        columns = torch.stack([torch.ones_like(q), self.system.squared_widths], dim=1)
        (sum_u, spread_u), (sum_q, spread_q) = (torch.stack([u, q]) @ columns).tolist()
        product = float(self.squared_eta) * sum_u * sum_q - spread_u * sum_q - sum_u * spread_q
        return float(self.factor) * product

    def _moments(self, charges: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the charges, and of charges times squared widths."""
        system = self.system
        return system.periodic(system.sum(charges)), system.periodic(system.sum(charges * system.squared_widths))


def matrix(system: System, lattice: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(Bp, n, n), n the size of the largest structure; the reciprocal sum without the term of k = 0.

    Args:
        dtype: of the products (default: that of the positions); phases are found before they are rounded.
    """
    if lattice.device.type == "cpu":
        from .matrix_cpu import phases

        rows = phases(system, lattice, dtype or lattice.dtype)
        return (rows.transpose(1, 2) @ rows).to(lattice.dtype)
    line, third = (factor.to(dtype or factor.dtype) for factor in factors(system, lattice))
    w = weights(system, lattice).sqrt().to(line.dtype)
    (c, s), (c3, s3) = line.chunk(2, dim=2), third.chunk(2, dim=2)
    used = torch.nonzero((system.tables.waves > 0.0).any(dim=0).any(dim=1))  # lines and third indices in use
    number, index = used.unbind(1)
    cc, ss = c[:, :, number] * c3[:, :, index], s[:, :, number] * s3[:, :, index]
    sc, cs = s[:, :, number] * c3[:, :, index], c[:, :, number] * s3[:, :, index]
    plus, minus = w[:, None, number, 0, index], w[:, None, number, 1, index]
    rows = torch.cat([(cc - ss) * plus, (sc + cs) * plus, (cc + ss) * minus, (sc - cs) * minus], dim=2)
    rows = rows * (torch.arange(system.size, device=rows.device) < system.periodic(system.sizes)[:, None])[:, :, None]
    return (rows @ rows.transpose(1, 2)).to(lattice.dtype)


class Potential:
    """q -> sum_j q_j sum_k w(k) cos(k r_ij) for one structure in a fixed cell, many times and without derivatives."""

    @torch.no_grad()
    def __init__(self, system: System, lattice: Tensor):
        self.system, self.lattice = system, lattice
        self.move(system.positions)
        w = weights(system, lattice)[0]
        # of products of cosines and sines: S(+m) = (cc - ss, sc + cs) and S(-m) = (cc + ss, sc - cs)
        self.sum, self.difference = w[:, 0] + w[:, 1], w[:, 0] - w[:, 1]
        self.rows = rows(w, len(system.positions), w.dtype)

    @torch.no_grad()
    def move(self, positions: Tensor) -> None:
        """Charges are at ``positions`` (n, 3) now."""
        line, third = factors(self.system._replace(positions=positions), self.lattice)
        self.line, self.third = line[0], third[0]

    @torch.no_grad()
    def __call__(self, q: Tensor) -> Tensor:
        product = (self.line * q[:, None]).T @ self.third
        num_lines, length = product.shape[0] // 2, product.shape[1] // 2
        cc, cs, sc, ss = (b for half in product.split(num_lines) for b in half.split(length, dim=1))
        upper = torch.cat([self.sum * cc - self.difference * ss, self.sum * cs + self.difference * sc], dim=1)
        lower = torch.cat([self.sum * sc + self.difference * cs, self.sum * ss - self.difference * cc], dim=1)
        return (self.line * (self.third @ torch.cat([upper, lower]).T)).sum(dim=1)
