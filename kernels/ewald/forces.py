"""The Coulomb form u' A q with its derivatives by positions and strain, without autograd: for dynamics.

What depends on the cell alone is made once. The sums are those of ``coulomb.coulomb_form``; see there and
``reciprocal.py`` for the equations. Under a strain e, r -> r (1 + e), phases k r stay as they are, and the weight of a
wave vector in a cell, w(k) ~ exp(-eta^2 k^2 / 2) / (V k^2), changes by

    dw / de_ab = w [(eta^2 + 2 / k^2) k_a k_b - delta_ab].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ewald_mesh.convolution import filtered, transform
from ..ewald_mesh.influence import fixed_influence, squares, waves
from ..ewald_mesh.op import bins_of, gather, spread
from ..ewald_mesh.potential import coordinates
from . import reciprocal
from .op import pair_pull
from .system import System, slab_constant

if TYPE_CHECKING:
    from .pair_table import PairTable
    from .wave_table import WaveTable

CHUNK = 2**16  # numbers of a block of phases, which should stay in the cache


class CoulombForces:
    """(positions, q, u) -> u' A q of each structure, and its derivatives.

    Args:
        system: the structures; their positions may move as long as its tables hold.
        table: the pair function, if that is known, on CPUs; it must know of positions that have moved.
        waves: tables of the structures whose waves have been summed before, if all have.
    """

    @torch.no_grad()
    def __init__(self, system: System, table: PairTable | None = None, waves: dict[int, WaveTable] | None = None):
        self.system, self.diagonal, self.lattice = system, system.self_terms(), system.lattice()
        self.table = table
        self.widths = system.squared_widths if bool(system.squared_widths.any()) else None
        self.zero, self.identity = reciprocal.ZeroWave(system, self.lattice), torch.eye(3).to(self.lattice)
        self.meshes = [_Mesh(system, b, eta, *mesh) for b, eta, mesh in system.meshes() if mesh is not None]
        self.tables, self.ptr = waves or {}, system.node_ptr.tolist()
        self.is_one = table is not None and system.num_structures == 1
        self.waves = _Waves(system, self.lattice) if system.tables.lines.shape[1] and not self.tables else None

    @torch.no_grad()
    def __call__(
        self, positions: Tensor, q: Tensor, u: Tensor | None = None, virial: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Evaluate.

        Args:
            positions: (N, 3) Å.
            q, u: (N,) e; u is q where it is not given.
            virial: whether to compute the derivative by the strain; slabs have none.

        Returns:
            u' A q (B,) e^2/Å without a slab's constant, its derivative by positions (N, 3) e^2/Å^2, and by the strain
            (B, 3, 3) e^2/Å or None.

        Raises:
            ValueError: the virial of a slab.
        """
        system, u = self.system, q if u is None else u
        if virial and system.has_slabs:
            raise ValueError("CoulombForces has no virial of slabs; differentiate coulomb_form")
        if self.table is None:
            pairs = system.tables.pairs(system.batch)
            phi, gradient, by_cell = pair_pull(u, q, positions, self.widths, system.cell, system.beta, pairs)
        else:
            phi, gradient, near_strain = self.table.pull(u, q)
        form = system.sum(u * (phi + self.diagonal * q))
        strain = None
        if virial and self.table is not None:
            strain = near_strain
        elif virial:
            outer = positions[:, :, None] * gradient[:, None, :]
            strain = torch.zeros_like(system.cell).index_add_(0, system.batch, outer)
            strain += system.cell.transpose(1, 2) @ by_cell
        if len(system.tables.periodic) and self.is_one:
            zero = self.zero.of_one(u, q)
            form += zero
            if strain is not None:
                strain[0].diagonal().sub_(zero)
        elif len(system.tables.periodic):
            zero = self.zero(u, q)
            self._add(zero, None if strain is None else -zero[:, None, None] * self.identity, form, strain)
        if system.has_slabs:
            form -= slab_constant(system) * system.sum(q) * system.sum(u)
        if self.waves is not None:
            self._add(*self.waves(positions, q, u, gradient, virial), form, strain)
        for b, table in self.tables.items():
            own = slice(*self.ptr[b : b + 2])
            form[b] += table.pull(u[own], q[own], gradient[own], None if strain is None else strain[b])
        for mesh in self.meshes:
            mesh(positions, q, u, form, gradient, strain)
        return form, gradient, strain

    def _add(self, far: Tensor, far_strain: Tensor | None, form: Tensor, strain: Tensor | None) -> None:
        form.index_add_(0, self.system.tables.periodic, far)
        if strain is not None:
            strain.index_add_(0, self.system.tables.periodic, far_strain)


@torch.no_grad()
def form_gradients(
    u: Tensor,
    q: Tensor,
    system: System,
    by_cell: bool = True,
    table: PairTable | None = None,
    waves: dict[int, WaveTable] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Derivatives of ``coulomb_form`` by positions (N, 3) and, if asked for, by cells at fixed positions (B, 3, 3); not
    for slabs. ``table`` and ``waves`` as of ``CoulombForces``."""
    _, gradient, strain = CoulombForces(system, table, waves)(system.positions, q, u, virial=by_cell)
    if not by_cell:
        return gradient, None
    rest = strain.index_add(0, system.batch, system.positions[:, :, None] * gradient[:, None, :], alpha=-1.0)
    cell, periodic = system.periodic(system.cell), system.tables.periodic
    # molecules know of no cell
    found = torch.linalg.solve(cell.transpose(1, 2), system.periodic(rest))
    return gradient, torch.zeros_like(system.cell).index_copy(0, periodic, found)


@torch.no_grad()
def energy_and_forces(system: System, charges: Tensor, constant: float) -> tuple[Tensor, Tensor]:
    """Energy (k / 2) q' A q (B,) in eV and forces (N, 3) in eV/Å of given charges (N,) in e."""
    form, gradient, _ = CoulombForces(system)(system.positions, charges)
    return 0.5 * constant * form, -0.5 * constant * gradient


class _Waves:
    """The sum over wave vectors, in blocks of atoms."""

    def __init__(self, system: System, lattice: Tensor):
        self.system, self.lattice = system, lattice
        self.inverse = 2.0 * math.pi * torch.linalg.inv(lattice)
        self.weights = reciprocal.weights(system, lattice)  # (Bp, L, 2, M)
        lines = system.tables.lines
        self.lines = lines.to(lattice.dtype)
        self.indices = [lines[:, :, axis].abs() for axis in range(2)]
        self.sign = torch.where(lines[:, :, 1] < 0, -1.0, 1.0).to(lattice.dtype)[:, :, None]
        self.counts = [int(index.max()) + 1 for index in self.indices] + [self.weights.shape[3]]

    def __call__(self, positions: Tensor, q: Tensor, u: Tensor, gradient: Tensor, virial: bool):
        """Forms (Bp,) and their strain derivatives; adds to ``gradient``."""
        system = self.system
        phases = (system.pad_periodic(positions) @ self.inverse).transpose(1, 2)  # (Bp, 3, n)
        charges = [system.pad_periodic(q)] if u is q else [system.pad_periodic(q), system.pad_periodic(u)]
        size = max(16, CHUNK // max(1, self.lines.shape[1] * len(phases)))
        blocks, starts = phases.split(size, dim=2), range(0, max(1, phases.shape[2]), size)  # of no atoms, an empty one
        factors = [0.0] * len(charges)
        for start, block in zip(starts, blocks, strict=True):
            line, third = self._line(block), self._third(block)[0]
            for number, charge in enumerate(charges):
                some = charge[:, None, start : start + size]
                factors[number] = factors[number] + (line * some) @ third.transpose(1, 2)
        amplitudes = [_Amplitudes(factor) for factor in factors]
        products = self.weights * amplitudes[0].product(amplitudes[-1])
        sides = [a.coefficients(self.weights) for a in amplitudes]
        # what charge stands before the potential of which: 2 q_i phi_q, or u_i phi_q + q_i phi_u
        before = [2.0 * charges[0]] if u is q else [charges[1], charges[0]]
        slopes = torch.zeros_like(phases)
        for start, block in zip(starts, blocks, strict=True):
            some = slice(start, start + block.shape[2])
            line, (third, bent) = self._line(block), self._third(block)
            for side, charge in zip(sides, before, strict=True):
                slopes[:, :, some] += charge[:, None, some] * self._slopes(line, third, bent, side)
        by_place = (self.inverse @ slopes).transpose(1, 2)  # (Bp, n, 3)
        self._scatter(by_place, gradient)
        return products.sum(dim=(1, 2, 3)), self._strain(products) if virial else None

    def _scatter(self, padded: Tensor, gradient: Tensor) -> None:
        """Add (Bp, n, 3) to the atoms' rows."""
        system = self.system
        if len(padded) < system.num_structures:
            full = padded.new_zeros(system.num_structures, *padded.shape[1:])
            padded = full.index_copy(0, system.tables.periodic, padded)
        gradient += padded.reshape(-1, 3).index_select(0, system.places)

    def _table(self, phase: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (Bp, count, n) of the multiples of a phase (Bp, n)."""
        multiples = torch.arange(count, dtype=phase.dtype, device=phase.device)[:, None] * phase[:, None, :]
        return multiples.cos(), multiples.sin()

    def _line(self, phases: Tensor) -> Tensor:
        """(Bp, 2 L, n): cosines, then sines, of the lines' phases."""
        (c1, s1), (c2, s2) = (
            [part.gather(1, index[:, :, None].expand(-1, -1, part.shape[2])) for part in self._table(phase, count)]
            for phase, count, index in zip(phases.unbind(1)[:2], self.counts[:2], self.indices, strict=True)
        )
        s2 *= self.sign
        cosine = (c1 * c2).addcmul_(s1, s2, value=-1.0)
        return torch.cat([cosine, s1.mul_(c2).addcmul_(c1, s2)], dim=1)

    def _third(self, phases: Tensor) -> tuple[Tensor, Tensor]:
        """(Bp, 2 M, n) of the third index, and its derivative by the phase."""
        cosine, sine = self._table(phases[:, 2], self.counts[2])
        m = torch.arange(self.counts[2], dtype=phases.dtype, device=phases.device)[:, None]
        return torch.cat([cosine, sine], dim=1), torch.cat([sine * -m, cosine * m], dim=1)

    def _slopes(self, line: Tensor, third: Tensor, bent: Tensor, side: Tensor) -> Tensor:
        """(Bp, 3, n) derivatives of the potential by the three phases."""
        num_lines = line.shape[1] // 2
        cosine, sine = line[:, :num_lines], line[:, num_lines:]
        upper, lower = (side @ third).split(num_lines, dim=1)
        turned = (cosine * lower).addcmul_(sine, upper, value=-1.0)
        along = (line * (side @ bent)).sum(dim=1, keepdim=True)
        return torch.cat([self.lines.transpose(1, 2) @ turned, along], dim=1)

    def _strain(self, products: Tensor) -> Tensor:
        """(Bp, 3, 3)"""
        third = torch.arange(products.shape[3], dtype=products.dtype, device=products.device)
        signed = torch.stack([third, -third])  # (2, M)
        whole = self.lines[:, :, None, None, :].expand(*products.shape, 2)
        index = torch.cat([whole, signed[None, None, :, :, None].expand(*products.shape, 1)], dim=-1)
        k = index.flatten(1, 3) @ self.inverse.transpose(1, 2)  # (Bp, K, 3)
        eta = 1.0 / self.system.periodic(self.system.tables.inverse_eta)
        return _strain(products.flatten(1), k, eta[:, None])


class _Amplitudes:
    """Structure factors, as sums of products of cosines and sines of the line and of the third index."""

    def __init__(self, factor: Tensor):
        """From (Bp, 2 L, 2 M)."""
        (self.cc, self.cs), (self.sc, self.ss) = (half.chunk(2, dim=2) for half in factor.chunk(2, dim=1))

    def product(self, other: _Amplitudes) -> Tensor:
        """(Bp, L, 2, M) Re[conj(S) S'] of +m and -m."""
        plus = (self.cc - self.ss) * (other.cc - other.ss) + (self.sc + self.cs) * (other.sc + other.cs)
        minus = (self.cc + self.ss) * (other.cc + other.ss) + (self.sc - self.cs) * (other.sc - other.cs)
        return torch.stack([plus, minus], dim=2)

    def coefficients(self, weights: Tensor) -> Tensor:
        """(Bp, 2 L, 2 M) C such that the potential is the sum over the lines of [cos, sin] C [cos_3, sin_3]."""
        both, apart = weights[:, :, 0] + weights[:, :, 1], weights[:, :, 0] - weights[:, :, 1]
        upper = torch.cat([both * self.cc - apart * self.ss, both * self.cs + apart * self.sc], dim=2)
        lower = torch.cat([both * self.sc + apart * self.cs, both * self.ss - apart * self.cc], dim=2)
        return torch.cat([upper, lower], dim=1)


class _Mesh:
    """The particle mesh of one structure."""

    def __init__(self, system: System, b: int, eta: float, dims: tuple[int, int, int], p: int):
        self.b, self.eta, self.dims, self.p = b, eta, dims, p
        self.own = slice(int(system.node_ptr[b]), int(system.node_ptr[b + 1]))
        self.cell = system.cell[b]
        self.influence = fixed_influence(self.cell, eta, dims, p)
        self.scale = torch.linalg.inv(self.cell) * self.cell.new_tensor(dims)  # from positions to mesh coordinates

    def __call__(self, positions, q, u, form, gradient, strain) -> None:
        """Adds to form (B,), gradient (N, 3) and strain (B, 3, 3) or None."""
        x = coordinates(positions[self.own], self.cell, self.dims)
        bins = bins_of(x, self.dims, self.p)
        charges = [q[self.own]] if u is q else [q[self.own], u[self.own]]
        transforms = [transform(spread(charge[:, None], x, self.dims, 0, self.p, bins)) for charge in charges]
        if strain is not None:
            strain[self.b] += self._strain(transforms[0], transforms[-1])
        jets = [
            gather(filtered(transformed, self.influence, self.dims), x, 1, self.p, bins) for transformed in transforms
        ]
        before = [2.0 * charges[0]] if u is q else [charges[1], charges[0]]
        form[self.b] += charges[-1] @ jets[0][:, 0]
        slopes = sum(charge[:, None] * jet[:, 1:] for charge, jet in zip(before, jets, strict=True))
        gradient[self.own] += slopes @ self.scale.T

    def _strain(self, first: Tensor, second: Tensor) -> Tensor:
        n3, number = self.dims[2], math.prod(self.dims)
        products = (torch.view_as_real(first) * torch.view_as_real(second)).sum(dim=-1) * self.influence
        twice = products.new_full((n3 // 2 + 1,), 2.0)  # for k and -k
        twice[0] = 1.0
        if n3 % 2 == 0:
            twice[-1] = 1.0
        products *= twice / number
        reciprocal = 2.0 * math.pi * torch.linalg.inv(self.cell).T  # rows
        first, second, third = indices = [index.to(products.dtype) for index in waves(self.dims, products.device)]
        square = squares(reciprocal @ reciprocal.T, indices)
        square[0, 0, 0] = 1.0  # k = 0 has no products
        total = products.sum()
        products *= square.reciprocal_().mul_(2.0).add_(self.eta**2)
        # sums of n_a n_b over the indices n of the wave vectors, from sums over the third of them
        plane, along = products.sum(dim=2), products @ third
        moments = products.new_zeros(3, 3)
        moments[0, 1], moments[0, 2], moments[1, 2] = (
            first @ plane @ second,
            first @ along.sum(1),
            along.sum(0) @ second,
        )
        moments = moments + moments.T
        moments[0, 0], moments[1, 1] = first**2 @ plane.sum(1), plane.sum(0) @ second**2
        moments[2, 2] = (products @ third**2).sum()
        return reciprocal.T @ moments @ reciprocal - total * torch.eye(3).to(products)


def _strain(products: Tensor, k: Tensor, eta: Tensor) -> Tensor:
    """(B, 3, 3) from w(k) Re[conj(S_u) S_q] (B, K), wave vectors (B, K, 3) and eta (B, 1); k = 0 does not count."""
    square = (k**2).sum(dim=2)
    slope = torch.where(square > 0.0, products * (eta**2 + 2.0 / torch.where(square > 0.0, square, 1.0)), 0.0)
    total = torch.where(square > 0.0, products, 0.0).sum(dim=1)
    return (k * slope[:, :, None]).transpose(1, 2) @ k - total[:, None, None] * torch.eye(3).to(k)
