"""The sum over wave vectors on CPUs: cosines and sines of one structure's atoms are computed once and serve every sum.

See ``wave_parts.py`` for the tables, and ``reciprocal.py`` for the equations.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..cores import count
from ..llvm import I64
from ..native import Call, machine_code, shares, vector_bytes
from . import reciprocal
from .rows import Rows
from .system import System
from .wave_parts import LINES, THIRDS, WaveParts, row_length


class WaveTable:
    """The wave vectors of one structure, and their phases at the positions that it has now.

    Args:
        system: one structure with wave vectors, on the CPU.
        dtype: of tables and sums over waves; phases are found in float64.

    Attributes:
        line (2 L, stride), third (2 M, stride): cosines and sines; L and M are padded to whole tiles.
        both, apart (L, M): sum and difference of the weights of +m and -m.
        lines (lines, 2), vectors (lines, 2, thirds, 3), weights (lines, 2, thirds): of the wave vectors, float64, and
            used (lines, 2, thirds), whether they count; not padded.
        extent: (tiles,) int64, blocks of third indices that the lines of each tile have.
        sizes: (stride, tiles of lines, M).
    """

    def __init__(self, system: System, dtype: torch.dtype):
        lattice = system.lattice()
        self.num_atoms, self.dtype = len(system.positions), dtype
        self.inverse = 2.0 * math.pi * torch.linalg.inv(lattice[0])  # positions @ inverse are phases
        lines, counts = system.tables.lines[0], system.tables.waves[0]
        w = reciprocal.weights(system, lattice)[0]  # (lines, 2, thirds)
        in_plane = lines.to(lattice.dtype) @ self.inverse.T[:2]
        order = (in_plane**2).sum(dim=1).argsort(stable=True)  # long waves are the first lines and thirds
        lines, counts, w, in_plane = lines[order], counts[order], w[order], in_plane[order]
        self.num_lines, self.num_thirds = lines.shape[0], counts.shape[2]
        along = torch.arange(self.num_thirds, dtype=w.dtype)[:, None] * self.inverse.T[2]
        self.vectors = torch.stack([in_plane[:, None] + along, in_plane[:, None] - along], dim=1)
        self.lines, self.used, self.weights = lines, counts > 0.0, w
        self.squared_eta = float(system.tables.inverse_eta[0]) ** -2
        tiles, blocks = -(-self.num_lines // LINES), -(-self.num_thirds // THIRDS)
        stride = row_length(self.num_atoms)
        self.sizes = stride, tiles, blocks * THIRDS
        self.extent = self.extent_of(counts)
        self.both, self.apart = self.padded(w[:, 0] + w[:, 1]), self.padded(w[:, 0] - w[:, 1])
        self.line = torch.zeros(2 * LINES * tiles, stride, dtype=dtype)
        self.third = torch.zeros(2 * THIRDS * blocks, stride, dtype=dtype)
        self._base = torch.zeros(2, 3, stride, dtype=torch.float64)
        index = lines.abs().contiguous()
        most = int(index.max()) + 1 if len(index) else 1
        powers = torch.empty(2, most, 2, stride, dtype=torch.float64)
        sign = torch.where(lines[:, 1] < 0, -1.0, 1.0).double()
        numbers = torch.tensor([stride, most, self.num_lines, self.num_thirds])
        tensors = [self.line, self.third, self._base, powers, index, sign, numbers]
        self._fill = Call(machine_code(_Fill, dtype), tensors)
        self._pull, self._lanes = None, vector_bytes() // self.line.element_size()

    def rows(self) -> Rows:
        """See ``reciprocal.rows``."""
        return reciprocal.rows(self.weights, self.num_atoms, self.dtype)

    def padded(self, values: Tensor) -> Tensor:
        """(lines, thirds) -> (L, M) of the tables' type."""
        _, tiles, thirds = self.sizes
        out = torch.zeros(tiles * LINES, thirds, dtype=self.dtype)
        out[: values.shape[0], : values.shape[1]] = values
        return out

    def extent_of(self, weights: Tensor) -> Tensor:
        """``extent`` of weights (lines, 2, thirds)."""
        places = torch.arange(1, weights.shape[2] + 1) * (weights != 0.0).any(dim=1)
        longest = torch.zeros(self.sizes[1] * LINES, dtype=torch.int64)
        if weights.shape[2]:
            longest[: len(places)] = places.amax(dim=1)
        return (longest.view(-1, LINES).amax(dim=1) + THIRDS - 1) // THIRDS

    def move(self, positions: Tensor) -> None:
        """Find the phases of atoms at positions (n, 3), Å."""
        phases, own = (positions @ self.inverse).T, slice(self.num_atoms)
        self._base[0, :, own], self._base[1, :, own] = phases.cos(), phases.sin()
        self._fill(shares(self.sizes[0] // self._lanes, 256 // self._lanes))

    @property
    def threads(self) -> int:
        """Worth their while."""
        work = self.num_atoms * self.num_lines * self.num_thirds
        return max(1, min(count(), work // 10_000))

    def pull(self, u: Tensor, q: Tensor, gradient: Tensor, strain: Tensor | None) -> float:
        """u' A q of charges (n,); its derivatives by positions are added to (n, 3), and by strain to (3, 3)."""
        if self._pull is None:
            self._pull = _Puller(self)
        return self._pull(u, q, gradient, strain)


class _Puller:
    """``WaveTable.pull`` in buffers of its own."""

    def __init__(self, table: WaveTable):
        self.table, self.num_atoms = table, table.num_atoms
        stride, tiles, thirds = table.sizes
        num_lines, dtype = tiles * LINES, table.dtype
        self.out = torch.empty(3, stride, dtype=torch.float64)
        self.charges = torch.zeros(2, stride, dtype=dtype)
        self.factors = torch.zeros(2, num_lines, 4, thirds, dtype=dtype)
        coefficients = torch.zeros(2, num_lines, 4, 2 * thirds, dtype=dtype)
        index = torch.zeros(num_lines, 2, dtype=dtype)
        index[: table.num_lines] = table.lines
        numbers = torch.tensor([stride, tiles, thirds])
        tensors = [self.out, *self.charges, *self.factors, *coefficients, table.line, table.third]
        tensors += [table.both, table.apart, index, table.inverse.contiguous(), table.extent, numbers]
        self.call = Call(machine_code(_Pull, dtype), tensors)
        # the same memory for numpy, whose functions take a fraction of PyTorch's time where there is little to do
        self.charges_of = self.charges[:, : self.num_atoms].numpy()
        self.parts = [factor.numpy().swapaxes(0, 1) for factor in self.factors]
        self.by_all = self._by_all().numpy()

    def _by_all(self) -> Tensor:
        """(10, 2 L M): what the sum and the difference of Re[conj(S_u) S_q] of +m and -m count in u' A q and its
        derivatives by strain (see ``forces.py``)."""
        table, (_, tiles, thirds) = self.table, self.table.sizes
        square = (table.vectors**2).sum(dim=3, keepdim=True)
        outer = table.vectors[..., :, None] * table.vectors[..., None, :]
        scale = torch.where(square > 0.0, table.squared_eta + 2.0 / square.clamp_min(1e-300), 0.0)
        by_strain = scale[..., None] * outer - torch.eye(3, dtype=outer.dtype)
        factors = torch.cat([torch.ones_like(square), by_strain.flatten(-2)], dim=-1) * table.weights[..., None]
        factors = torch.where(table.used[..., None], factors, 0.0)
        out = factors.new_zeros(2, tiles * LINES, thirds, 10)
        part = out[:, : table.num_lines, : table.num_thirds]
        part[0], part[1] = factors[:, 0] + factors[:, 1], factors[:, 0] - factors[:, 1]
        return out.view(-1, 10).T.contiguous()

    def __call__(self, u: Tensor, q: Tensor, gradient: Tensor, strain: Tensor | None) -> float:
        self.charges_of[0], self.charges_of[1] = q.numpy(), u.numpy()
        self.call.together(self.table.threads)
        gradient += self.out[:, : self.num_atoms].T
        (cc, cs, sc, ss), (other_cc, other_cs, other_sc, other_ss) = self.parts
        # with S of +m and -m as in ``wave_parts.py``, half of the sum and of the difference
        even = cc * other_cc + cs * other_cs + sc * other_sc + ss * other_ss
        odd = cs * other_sc + sc * other_cs - cc * other_ss - ss * other_cc
        found = self.by_all @ np.concatenate([even.ravel(), odd.ravel()])
        if strain is not None:
            strain += torch.from_numpy(found[1:].reshape(3, 3))
        return float(found[0])


class _Fill(WaveParts):
    """The tables, of atoms vector begin ... end - 1; powers of exp(i phase) by multiplication."""

    NAME = "coulomb_waves_fill"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 7)
        line, third, base, powers, index, sign, numbers = self.tensors
        stride, most, num_lines, num_thirds = (self.load_int(numbers, k) for k in range(4))
        with self.loop(self.begin, self.end) as vector:
            atom = self.mul(vector, self.lanes)

            def row(number, *, atom=atom):
                return self.add(self.mul(number, stride), atom)

            for axis in range(3):
                cosine, sine = (self.wide(base, row(self.integer(3 * k + axis))) for k in range(2))

                def keep(number, c, s, *, axis=axis, row=row):
                    for k, value in enumerate((c, s)):
                        at = row(self.add(self.mul(number, 2), k))
                        if axis == 2:
                            self.store(self.narrow(value), third, at)
                        else:
                            self.store_wide(value, powers, self.add(at, self.mul(self.mul(most, 2 * axis), stride)))

                self.powers(cosine, sine, most if axis < 2 else num_thirds, keep)
            with self.loop(0, num_lines) as number:
                parts = []
                for axis in range(2):
                    power = self.mul(self.load_int(index, self.add(self.mul(number, 2), axis)), 2)
                    offset = self.mul(self.mul(most, 2 * axis), stride)
                    parts += [self.wide(powers, self.add(row(self.add(power, k)), offset)) for k in range(2)]
                parts[3] = self.builder.fmul(parts[3], self.all_lanes(self.scalar(sign, number)))
                for k, value in enumerate(self.turned(*parts)):
                    self.store(self.narrow(value), line, row(self.add(self.mul(number, 2), k)))


class _Pull(WaveParts):
    """Slopes u dphi_q + q dphi_u of all atoms, by a team."""

    NAME = "coulomb_waves_pull"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 15)
        out, q, u, *rest = self.tensors
        factors, coefficients = rest[:2], rest[2:4]
        line, third, both, apart, index, inverse, extent, numbers = rest[4:]
        stride, tiles, thirds = (self.load_int(numbers, k) for k in range(3))
        b, width = self.builder, self.mul(thirds, 2)
        for x, factor, out_c in zip((q, u), factors, coefficients, strict=True):

            def keep(number, m, *found, factor=factor, out_c=out_c):
                row = self.mul(number, 4)
                for k, value in enumerate(found):
                    b.store(value, self.at(factor, self.add(self.mul(self.add(row, k), thirds), m)))
                place = [self.add(self.mul(self.add(row, k), width), self.mul(m, 2)) for k in range(4)]
                order = b.sitofp(m, self.float)
                for k, pair in enumerate(self.pairs(both, apart, number, m, *found, thirds)):
                    # of the potential, and of its derivative by the third phase
                    bent = b.fmul(order, pair[1]), b.fneg(b.fmul(order, pair[0]))
                    for at, values in ((place[k], pair), (place[k + 2], bent)):
                        for side, value in enumerate(values):
                            b.store(value, self.at(out_c, self.add(at, side)))

            self.structure_factors(x, line, third, stride, tiles, extent, keep)
        self.barrier()
        begin, end = self.share(b.sdiv(stride, I64(self.lanes)))
        with self.loop(begin, end) as vector:
            atom = self.mul(vector, self.lanes)
            charges = self.load(u, atom, self.lanes), self.load(q, atom, self.lanes)
            slopes = self.zeros(3)
            with self.loop(0, self.mul(tiles, LINES)) as number:
                fields = self.zeros(8)
                blocks = self.load_int(extent, b.sdiv(number, I64(LINES)))
                with self.loop(0, self.mul(blocks, 2 * THIRDS)) as column:
                    known = self._of(third, column, stride, atom)
                    for side in range(2):
                        value = b.fmul(charges[side], known)
                        for k in range(4):
                            place = self.add(self.mul(self.add(self.mul(number, 4), k), width), column)
                            factor = self.broadcast(coefficients[side], place, self.lanes)
                            self.accumulate(fields[4 * side + k], factor, value)
                upper, lower, *bent = (
                    b.fadd(self.value(first), self.value(second))
                    for first, second in zip(fields[:4], fields[4:], strict=True)
                )
                cosine, sine = (self._of(line, self.add(self.mul(number, 2), k), stride, atom) for k in range(2))
                turned = b.fsub(b.fmul(cosine, lower), b.fmul(sine, upper), flags=("contract",))
                for axis in range(2):
                    whole = self.broadcast(index, self.add(self.mul(number, 2), axis), self.lanes)
                    self.accumulate(slopes[axis], whole, turned)
                self.accumulate(slopes[2], cosine, bent[0])
                self.accumulate(slopes[2], sine, bent[1])
            along = [self.widen(self.value(variable)) for variable in slopes]
            for axis in range(3):
                terms = [
                    b.fmul(self.all_lanes(self.scalar(inverse, 3 * axis + k)), slope) for k, slope in enumerate(along)
                ]
                total = b.fadd(b.fadd(terms[0], terms[1]), terms[2])
                self.store_wide(total, out, self.add(self.mul(stride, axis), atom))
