"""The real-space sum in float32 for inference on CPUs: each pair's function is computed once and serves every product.

``values`` and ``slopes`` hold f and df/d(r^2) (see ``formulas.py``) of each entry. Distances are computed in float64
and then rounded, so that boxes may be large; sums are kept in float64 where they are long.
"""

from __future__ import annotations

from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from ..llvm import I32, I64, Emitter, Lanes, NarrowOperations
from ..native import compiled, launch
from . import formulas
from .system import System

I8 = ir.IntType(8)
DOUBLE = ir.DoubleType()
PADDING = 16  # entries that may be read beyond the last


class PairTable:
    """The pair function of a system at the positions that it has now.

    Args:
        system: on the CPU.

    Attributes:
        values, slopes: (P + padding,) float32, e/Å per e and e/Å^3 per e.
        vectors: (3, P + padding) float32, Å, from the atom of a row to the other.
    """

    def __init__(self, system: System):
        self.system, self.pairs = system, system.tables.pairs(system.batch)
        count = self.pairs.neighbour.shape[0]
        columns = torch.empty(5, count + PADDING)
        columns[:, count:] = 0.0  # the rest is written
        self.values, self.slopes, *self.vectors = columns.unbind(0)
        geometry = [system.positions, system.squared_widths, system.cell, system.beta]
        tensors = [self.values, self.slopes, *self.vectors, *self.pairs, *(tensor.contiguous() for tensor in geometry)]
        launch(_kernel(_Fill), tensors, self.pairs.ptr)

    def select(self, b: int, system: System) -> PairTable:
        """Of structure ``b`` alone, which is ``system``."""
        if self.system.num_structures == 1:
            return self
        first, last = int(self.system.node_ptr[b]), int(self.system.node_ptr[b + 1])
        start, stop = int(self.pairs.ptr[first]), int(self.pairs.ptr[last])
        part = object.__new__(PairTable)
        part.system, part.pairs = system, system.tables.pairs(system.batch)
        parts = (t[start : stop + PADDING] for t in (self.values, self.slopes, *self.vectors))
        part.values, part.slopes, *part.vectors = parts
        return part

    def entries(self) -> Tensor:
        """f (P,) float64."""
        return self.values[: self.pairs.neighbour.shape[0]].double()

    def product(self, q: Tensor) -> Tensor:
        """sum_j f q_j (N,) from charges q (N,), float64."""
        out = torch.empty_like(q)
        tensors = [out, self.values, q.contiguous(), self.pairs.ptr, self.pairs.neighbour]
        launch(_kernel(_Product), tensors, self.pairs.ptr, minimum_work=4096)
        return out

    def pull(self, u: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi (N,) of the charges q, and the derivatives of u' A q by positions (N, 3) and strain (B, 3, 3)."""
        system, n = self.system, len(q)
        phi, gradient, rows = (q.new_empty(shape) for shape in ((n,), (n, 3), (n, 6)))
        tensors = [phi, gradient, rows, self.values, self.slopes, *self.vectors, self.pairs.ptr, self.pairs.neighbour]
        launch(_kernel(_Pull), [*tensors, u.contiguous(), q.contiguous()], self.pairs.ptr)
        strain = q.new_zeros(system.num_structures, 6).index_add_(0, system.batch, rows)
        return phi, gradient, strain[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].view(-1, 3, 3)


@cache
def _kernel(kind):
    return compiled(kind.NAME, "", lambda: kind().source())


class _Rows(Emitter):
    """Entries of a row in vectors of float32; the last lanes of a row may do its last entry again."""

    def double(self, pointer, index):
        return self.builder.load(self.at(pointer, index, DOUBLE), typ=DOUBLE)

    def small(self, pointer, index, kind):
        return self.builder.load(self.at(pointer, index, kind), typ=kind)

    def own(self, i, batch, x, cell) -> None:
        """What belongs to row i."""
        structure = self.load_int(batch, i)
        self.structure = structure
        self.x_i = [self.double(x, self.add(self.mul(i, 3), axis)) for axis in range(3)]
        self.h = [self.double(cell, self.add(self.mul(structure, 9), k)) for k in range(9)]

    def others(self, first, last, neighbour):
        """(places, atoms) of as many entries as there are lanes."""
        final = self.add(last, -1)
        places = [self.minimum(self.add(first, lane), final) for lane in range(self.lanes)]
        return places, [self.builder.sext(self.small(neighbour, place, I32), I64) for place in places]

    def vectors_to(self, places, atoms, shift, x) -> list[Lanes]:
        """The three components of the vectors from row i to the images of atoms."""
        b, d = self.builder, [ir.Constant(self.vector(self.lanes), ir.Undefined)] * 3
        for lane, (place, atom) in enumerate(zip(places, atoms, strict=True)):
            whole = [b.sitofp(self.small(shift, self.add(self.mul(place, 3), k), I8), DOUBLE) for k in range(3)]
            for axis in range(3):
                value = b.fsub(self.double(x, self.add(self.mul(atom, 3), axis)), self.x_i[axis])
                for k in range(3):
                    part = b.fmul(whole[k], self.h[3 * k + axis], flags=("contract",))
                    value = b.fadd(value, part, flags=("contract",))
                d[axis] = b.insert_element(d[axis], b.fptrunc(value, self.float), I32(lane))
        return [Lanes(self, value) for value in d]

    def narrow(self, scalar) -> Lanes:
        """A double in all lanes."""
        return Lanes(self, self.splat(self.builder.fptrunc(scalar, self.float), self.lanes))

    def joined(self, pointer, rows) -> Lanes:
        """One double of each row."""
        value = ir.Constant(self.vector(self.lanes), ir.Undefined)
        for lane, row in enumerate(rows):
            scalar = self.builder.fptrunc(self.double(pointer, row), self.float)
            value = self.builder.insert_element(value, scalar, I32(lane))
        return Lanes(self, value)


class _Fill(_Rows):
    NAME = "coulomb_fill_single"

    def __init__(self):
        super().__init__(self.NAME, 32, 13)
        *out, ptr, neighbour, shift, batch, x, a, cell, beta = self.tensors
        ops, b = NarrowOperations(self), self.builder
        with self.loop(self.begin, self.end) as i:
            self.own(i, batch, x, cell)
            width, split = self.narrow(self.double(a, i)), self.narrow(self.double(beta, self.structure))
            last = self.load_int(ptr, self.add(i, 1))
            with self.loop(self.load_int(ptr, i), last, self.lanes) as first:
                places, atoms = self.others(first, last, neighbour)
                d = self.vectors_to(places, atoms, shift, x)
                gamma = width + self.joined(a, atoms)
                found = [*formulas.pair(formulas.dot(d, d), gamma, split, ops, 1)[:2], *d]
                with b.if_else(b.icmp_signed("<=", self.add(first, self.lanes), last)) as (whole, part):
                    with whole:
                        for value, pointer in zip(found, out, strict=True):
                            self.store(value.value, pointer, first)
                    with part:
                        for value, pointer in zip(found, out, strict=True):
                            for lane, place in enumerate(places):
                                b.store(b.extract_element(value.value, I32(lane)), self.at(pointer, place))


class _Product(Emitter):
    """out[i] = sum over the entries of row i of values q_j, in float64."""

    NAME = "coulomb_product_single"

    def __init__(self):
        super().__init__(self.NAME, 64, 5)
        out, values, q, ptr, neighbour = self.tensors
        total, b, single = self.variable(self.vector(self.lanes)), self.builder, ir.FloatType()
        kind = ir.VectorType(single, self.lanes)
        with self.loop(self.begin, self.end) as i:
            b.store(self.constant(0.0, self.lanes), total)
            last = self.load_int(ptr, self.add(i, 1))
            with self.loop(self.load_int(ptr, i), last, self.lanes) as first:
                charges = ir.Constant(self.vector(self.lanes), ir.Undefined)
                for lane in range(self.lanes):
                    place = self.add(first, lane)
                    inside = b.icmp_signed("<", place, last)
                    other = b.load(self.at(neighbour, b.select(inside, place, first), I32), typ=I32)
                    charge = b.select(inside, self.load_float(q, b.sext(other, I64)), self.float(0.0))
                    charges = b.insert_element(charges, charge, I32(lane))
                narrow = b.load(self.at(values, first, single), typ=kind, align=4)
                self.accumulate(total, b.fpext(narrow, self.vector(self.lanes)), charges)
            b.store(self.reduce(self.value(total)), self.at(out, i))


class _Pull(_Rows):
    NAME = "coulomb_pull_single"

    def __init__(self):
        super().__init__(self.NAME, 32, 12)
        phi, gradient, rows, values, slopes, d_x, d_y, d_z, ptr, neighbour, u, q = self.tensors
        b = self.builder
        sums = [self.variable(self.vector(self.lanes)) for _ in range(10)]
        with self.loop(self.begin, self.end) as i:
            u_i, q_i = (self.narrow(self.double(pointer, i)) for pointer in (u, q))
            for variable in sums:
                b.store(self.constant(0.0, self.lanes), variable)
            last = self.load_int(ptr, self.add(i, 1))
            with self.loop(self.load_int(ptr, i), last, self.lanes) as first:
                _, atoms = self.others(first, last, neighbour)
                inside = ir.Constant(ir.VectorType(ir.IntType(1), self.lanes), ir.Undefined)
                for lane in range(self.lanes):
                    bit = b.icmp_signed("<", self.add(first, lane), last)
                    inside = b.insert_element(inside, bit, I32(lane))
                u_j, q_j = (self.joined(pointer, atoms) for pointer in (u, q))
                # beyond the row there may be entries of another, or nothing yet written
                f, f_rho, *d = (
                    Lanes(self, self.load(pointer, first, self.lanes)).where(inside, 0.0)
                    for pointer in (values, slopes, d_x, d_y, d_z)
                )
                s = (u_i * q_j + u_j * q_i) * f_rho
                pull = [s * component for component in d]
                stretch = [pull[a] * d[b] for a, b in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
                for variable, term in zip(sums, [f * q_j, *(p * -2.0 for p in pull), *stretch], strict=True):
                    b.store(b.fadd(self.value(variable), term.value), variable)
            totals = [b.fpext(self.reduce(self.value(variable)), DOUBLE) for variable in sums]
            for pointer, part in ((phi, totals[:1]), (gradient, totals[1:4]), (rows, totals[4:])):
                for k, value in enumerate(part):
                    b.store(value, self.at(pointer, self.add(self.mul(i, len(part)), k), DOUBLE))
