"""Parts of the Coulomb matrix for CPUs, in LLVM assembly: pairs at their places, and phases of wave vectors.

Rows of phases are such that their products with each other, summed over the rows, are the reciprocal sum. Cosines and
sines of multiples of a phase come by multiplication, and those of atoms that do not exist are zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..llvm import I32, I64, Emitter
from ..native import launch, machine_code, vector_bytes
from . import reciprocal
from .pair_list import PairList
from .system import System
from .wave_parts import DOUBLE, Team


def add_pairs(matrix: Tensor, values: Tensor, pairs: PairList, places: Tensor, size: int) -> None:
    """Add the entries of the pair list, values (P,), to a matrix (B size size,) of atoms at ``places`` (N,)."""
    kernel = machine_code(_Pairs, values.dtype)
    tensors = [matrix, values, pairs.ptr, pairs.neighbour, places, torch.tensor([size])]
    launch(kernel, tensors, pairs.ptr, minimum_work=4096)


def phases(system: System, lattice: Tensor, dtype: torch.dtype) -> Tensor:
    """(Bp, rows, n) of cosines and sines times the roots of their waves' weights, zero beyond a structure's atoms."""
    tables, n = system.tables, system.size
    used = torch.nonzero((tables.waves > 0.0).any(dim=0).any(dim=1))  # lines and third indices, in order
    if not len(used):
        return torch.zeros(len(lattice), 0, n, dtype=dtype)
    roots = reciprocal.weights(system, lattice).sqrt()
    angles = 2.0 * math.pi * (system.pad_periodic(system.positions) @ torch.linalg.inv(lattice))
    there = torch.arange(n) < system.periodic(system.sizes)[:, None]
    lanes = 8 * vector_bytes() // torch.finfo(dtype).bits
    stride = -(-n // lanes) * lanes
    base = torch.zeros(len(angles), 2, 3, stride, dtype=torch.float64)
    base[:, 0, :, :n] = (angles.cos() * there[:, :, None]).transpose(1, 2)
    base[:, 1, :, :n] = (angles.sin() * there[:, :, None]).transpose(1, 2)
    most = max(int(tables.lines.abs().max()), tables.waves.shape[3] - 1) + 1
    out = torch.empty(len(angles), 4 * len(used), stride, dtype=dtype)
    powers = torch.empty(len(angles), 3, most, 2, stride, dtype=torch.float64)
    vectors = stride // lanes
    numbers = torch.tensor([vectors, stride, most, len(used), tables.lines.shape[1], tables.waves.shape[3]])
    tensors = [out, base, powers, used.contiguous(), tables.lines.contiguous(), roots.contiguous(), numbers]
    launch(machine_code(_Phases, dtype), tensors, len(angles) * vectors, minimum_work=1)
    return out[:, :, :n]


class _Pairs(Emitter):
    """Rows begin ... end - 1; a row is one thread's alone."""

    NAME = "coulomb_matrix_pairs"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 6)
        matrix, values, ptr, neighbour, places, size = self.tensors
        b, width = self.builder, self.load_int(size, 0)
        with self.loop(self.begin, self.end) as i:
            own = self.load_int(places, i)
            first = self.mul(b.sdiv(own, width), width)  # place of the structure's first atom
            row = b.sub(self.mul(own, width), first)
            with self.loop(self.load_int(ptr, i), self.load_int(ptr, self.add(i, 1))) as entry:
                other = b.sext(b.load(self.at(neighbour, entry, I32), typ=I32), I64)
                place = self.at(matrix, self.add(row, self.load_int(places, other)), DOUBLE)
                value = self.load_float(values, entry)
                value = value if bits == 64 else b.fpext(value, DOUBLE)
                b.store(b.fadd(b.load(place, typ=DOUBLE), value), place)


class _Phases(Team):
    """Vectors of atoms begin ... end - 1 of all structures, one structure after the other."""

    NAME = "coulomb_matrix_phases"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 7)
        out, base, powers, used, lines, roots, numbers = self.tensors
        vectors, stride, most, count, num_lines, thirds = (self.load_int(numbers, k) for k in range(6))
        b = self.builder
        with self.loop(self.begin, self.end) as unit:
            structure, vector = b.sdiv(unit, vectors), b.srem(unit, vectors)
            atom = self.mul(vector, self.lanes)

            def power_at(axis, number, part, *, structure=structure, atom=atom):
                row = self.add(self.mul(self.add(self.mul(structure, 3), axis), most), number)
                return self.add(self.mul(self.add(self.mul(row, 2), part), stride), atom)

            for axis in range(3):
                rows = [self.add(self.mul(structure, 6), 3 * part + axis) for part in range(2)]
                cosine, sine = (self.wide(base, self.add(self.mul(row, stride), atom)) for row in rows)

                def keep(number, c, s, *, axis=axis, power_at=power_at):
                    for part, value in enumerate((c, s)):
                        self.store_wide(value, powers, power_at(axis, number, part))

                self.powers(cosine, sine, most, keep)
            with self.loop(0, count) as wave:
                line, third = (self.load_int(used, self.add(self.mul(wave, 2), k)) for k in range(2))
                place = self.mul(self.add(self.mul(structure, num_lines), line), 2)
                first, second = (self.load_int(lines, self.add(place, k)) for k in range(2))
                is_negative = b.icmp_signed("<", second, I64(0))
                second = b.select(is_negative, b.neg(second), second)
                sign = self.all_lanes(b.select(is_negative, DOUBLE(-1.0), DOUBLE(1.0)))
                (c1, s1), (c2, s2), (c3, s3) = (
                    [self.wide(powers, power_at(axis, number, part)) for part in range(2)]
                    for axis, number in enumerate((first, second, third))
                )
                c, s = self.turned(c1, s1, c2, b.fmul(s2, sign))
                for side in range(2):
                    turned = s3 if side == 0 else b.fneg(s3)
                    weight = self.add(self.mul(self.add(place, side), thirds), third)
                    factor = self.all_lanes(self.scalar(roots, weight))
                    for part, value in enumerate(self.turned(c, s, c3, turned)):
                        row = self.add(self.mul(self.add(self.mul(structure, count), wave), 4), 2 * side + part)
                        at = self.add(self.mul(row, stride), atom)
                        self.store(self.narrow(b.fmul(value, factor)), out, at)
