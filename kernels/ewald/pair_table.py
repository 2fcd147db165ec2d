"""The real-space sum for inference on CPUs: each pair's function is computed once and serves every product.

``values`` and ``slopes`` hold f and df/d(r^2) (see ``formulas.py``) of each entry, in float32 or float64. Distances are
computed in float64 and then rounded, so that boxes may be large; sums are kept in float64 where they are long.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from llvmlite import ir
from torch import Tensor

from ..llvm import I32, I64, Emitter, Lanes, NarrowOperations, Operations
from ..native import Call, launch, machine_code, shares
from . import formulas
from .op import largest_row
from .rows import Rows
from .system import System

DOUBLE = ir.DoubleType()
PADDING = 16  # entries that may be read beyond the last
WORK = 256  # entries that are worth a thread when they are computed; WORTH when they are multiplied
WORTH = 4096


class PairTable:
    """The pair function of a system at the positions that it has now.

    Args:
        system: on the CPU.
        dtype: of entries.

    Attributes:
        values, slopes: (P + padding,), e/Å per e and e/Å^3 per e.
        vectors: (3, P + padding), Å, from the atom of a row to the other.
    """

    def __init__(self, system: System, dtype: torch.dtype):
        self.system, self.pairs, self.dtype = system, system.tables.pairs(system.batch), dtype
        count = self.pairs.neighbour.shape[0]
        columns = torch.empty(5, count + PADDING, dtype=dtype)
        columns[:, count:] = 0.0  # the rest is written
        self.values, self.slopes, *self.vectors = columns.unbind(0)
        image, images = _images(self.pairs.shift, system.cell)
        self._places = torch.cat([system.positions, system.squared_widths[:, None]], dim=1)
        tensors = [self.values, self.slopes, *self.vectors, self.pairs.ptr, self.pairs.neighbour, image]
        tensors += [self.pairs.batch, images, torch.tensor([images.shape[1]]), self._places, system.beta]
        self._fill = Call(machine_code(_Fill, dtype), tensors)
        self._rows = shares(self.pairs.ptr, WORK), shares(self.pairs.ptr, WORTH)
        self._fill(self._rows[0])

    def move(self, positions: Tensor) -> None:
        """Compute the entries of atoms at positions (N, 3), Å."""
        self._places[:, :3] = positions
        self._fill(self._rows[0])

    def select(self, b: int, system: System) -> PairTable:
        """Of structure ``b`` alone, which is ``system``; its entries are these."""
        if self.system.num_structures == 1:
            return self
        first, last = int(self.system.node_ptr[b]), int(self.system.node_ptr[b + 1])
        start, stop = int(self.pairs.ptr[first]), int(self.pairs.ptr[last])
        part = object.__new__(PairTable)
        part.system, part.pairs, part.dtype = system, system.tables.pairs(system.batch), self.dtype
        parts = (t[start : stop + PADDING] for t in (self.values, self.slopes, *self.vectors))
        part.values, part.slopes, *part.vectors = parts
        part._rows = shares(part.pairs.ptr, WORK), shares(part.pairs.ptr, WORTH)
        return part

    def entries(self) -> Tensor:
        """f (P,) float64."""
        return self.values[: self.pairs.neighbour.shape[0]].double()

    def rows(self) -> Rows:
        """Sums over rows of what f is made of: the difference of two functions that may be alike."""
        split = self.system.beta.max()  # of one structure

        def parts(entries: slice) -> Tensor:
            r = torch.stack([part[entries] for part in self.vectors]).square_().sum(dim=0).sqrt_()
            return torch.erfc(split * r) / r + self.values[entries].abs()

        return Rows(largest_row(parts, self.pairs.ptr), 0.0, self.dtype)

    def product(self, q: Tensor) -> Tensor:
        """sum_j f q_j (N,) from charges q (N,), float64."""
        out = torch.empty_like(q)
        tensors = [out, self.values, q.contiguous(), self.pairs.ptr, self.pairs.neighbour]
        Call(machine_code(_Product, self.dtype), tensors)(self._rows[1])
        return out

    def pull(self, u: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi (N,) of the charges q, and the derivatives of u' A q by positions (N, 3) and strain (B, 3, 3)."""
        system, n = self.system, len(q)
        phi, gradient, rows = (q.new_empty(shape) for shape in ((n,), (n, 3), (n, 6)))
        charges = torch.stack([u, q], dim=1).to(self.dtype)
        tensors = [phi, gradient, rows, self.values, self.slopes, *self.vectors, charges]
        tensors += [self.pairs.ptr, self.pairs.neighbour]
        Call(machine_code(_Pull, self.dtype), tensors)(self._rows[0])
        strain = q.new_zeros(system.num_structures, 6).index_add_(0, system.batch, rows)
        return phi, gradient, strain[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].view(-1, 3, 3)


def _images(shift: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Lattice vectors (B, S, 4), the last of four zero, and for each entry which of them is its own (P,) int32."""
    most = int(shift.abs().max()) if len(shift) else 0
    width, image = 2 * most + 1, torch.empty(len(shift), dtype=torch.int32)
    tensors = [image, shift, torch.tensor([most, width])]
    launch(machine_code(_Images, torch.float32), tensors, len(shift), minimum_work=65536)
    whole = torch.arange(-most, most + 1, dtype=cell.dtype)
    return image, torch.nn.functional.pad(torch.cartesian_prod(whole, whole, whole) @ cell, (0, 1))


class _Rows(Emitter):
    """Entries of a row in vectors; the last vector of a row does its last entry again in lanes that are left."""

    def four(self, pointer, index):
        """Four doubles of row ``index``."""
        return self.builder.load(self.at(pointer, self.mul(index, 4), DOUBLE), typ=ir.VectorType(DOUBLE, 4), align=8)

    def small(self, pointer, place):
        """A 32-bit integer, widened."""
        return self.builder.sext(self.builder.load(self.at(pointer, place, I32), typ=I32), I64)

    def vectors_of(self, first, last, body: Callable) -> None:
        """``body(first place, places, inside)`` for all; ``inside`` (lanes) is None where every lane has an entry."""
        b = self.builder
        whole = b.sub(last, b.srem(b.sub(last, first), I64(self.lanes)))
        with self.loop(first, whole, self.lanes) as place:
            body(place, [self.add(place, lane) for lane in range(self.lanes)], None)
        with b.if_then(b.icmp_signed("<", whole, last)):
            final, inside = self.add(last, -1), ir.Constant(ir.VectorType(ir.IntType(1), self.lanes), ir.Undefined)
            for lane in range(self.lanes):
                bit = b.icmp_signed("<", self.add(whole, lane), last)
                inside = b.insert_element(inside, bit, I32(lane))
            body(whole, [self.minimum(self.add(whole, lane), final) for lane in range(self.lanes)], inside)

    def columns(self, rows: list, count: int) -> list[Lanes]:
        """The first ``count`` numbers of short vectors, one for each lane, as vectors over the lanes."""
        b = self.builder

        def pick(first, second, indices):
            mask = ir.Constant(ir.VectorType(I32, len(indices)), [I32(i) for i in indices])
            return b.shuffle_vector(first, second, mask)

        width = rows[0].type.count
        while len(rows) > 1 and rows[0].type.count < self.lanes:
            rows = [pick(x, y, range(2 * x.type.count)) for x, y in zip(rows[::2], rows[1::2], strict=True)]
        found = []
        for column in range(count):
            parts, filled = rows, rows[0].type.count // width
            parts = [pick(x, x, ([*range(column, x.type.count, width)] * self.lanes)[: self.lanes]) for x in rows]
            while len(parts) > 1:
                joined = [*range(filled), *range(self.lanes, self.lanes + filled)]
                joined = (joined * self.lanes)[: self.lanes]
                parts = [pick(x, y, joined) for x, y in zip(parts[::2], parts[1::2], strict=True)]
                filled *= 2
            found.append(Lanes(self, parts[0]))
        return found

    def narrow(self, scalar) -> Lanes:
        """A double in all lanes."""
        value = scalar if self.float_bytes == 8 else self.builder.fptrunc(scalar, self.float)
        return Lanes(self, self.splat(value, self.lanes))


class _Images(Emitter):
    """Numbers of the shifts (n1, n2, n3) of entries among all whose numbers are not larger than ``most``."""

    NAME = "coulomb_images"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 3)
        out, shift, numbers = self.tensors
        most, width = (self.load_int(numbers, k) for k in range(2))
        b, byte = self.builder, ir.IntType(8)
        with self.loop(self.begin, self.end) as place:
            number = I64(0)
            for axis in range(3):
                n = b.load(self.at(shift, self.add(self.mul(place, 3), axis), byte), typ=byte)
                number = self.add(self.mul(number, width), self.add(b.sext(n, I64), most))
            b.store(b.trunc(number, I32), self.at(out, place, I32))


class _Fill(_Rows):
    NAME = "coulomb_pairs_fill"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 13)
        *out, ptr, neighbour, image, batch, images, number, x, beta = self.tensors
        ops, b = (NarrowOperations if bits == 32 else Operations)(self), self.builder
        with self.loop(self.begin, self.end) as i:
            structure = self.load_int(batch, i)
            first_image = self.mul(structure, self.load_int(number, 0))
            split = self.narrow(b.load(self.at(beta, structure, DOUBLE), typ=DOUBLE))
            # the fourth number of an atom is its squared width, which is to be added
            own = self.four(x, i)
            own = b.insert_element(own, b.fneg(b.extract_element(own, I32(3))), I32(3))

            def compute(first, places, inside, *, own=own, split=split, first_image=first_image):
                rows = []
                for place in places:
                    d = b.fsub(self.four(x, self.small(neighbour, place)), own)
                    d = b.fadd(d, self.four(images, self.add(first_image, self.small(image, place))))
                    rows.append(d if bits == 64 else b.fptrunc(d, ir.VectorType(self.float, 4)))
                *d, gamma = self.columns(rows, 4)
                found = [*formulas.pair(formulas.dot(d, d), gamma, split, ops, 1)[:2], *d]
                for value, pointer in zip(found, out, strict=True):
                    if inside is None:
                        self.store(value.value, pointer, first)
                    else:
                        for lane, place in enumerate(places):
                            b.store(b.extract_element(value.value, I32(lane)), self.at(pointer, place))

            self.vectors_of(self.load_int(ptr, i), self.load_int(ptr, self.add(i, 1)), compute)


class _Product(_Rows):
    """out[i] = sum over the entries of row i of values q_j, in float64."""

    NAME = "coulomb_pairs_product"

    def __init__(self, bits: int):
        super().__init__(self.NAME, 64, 5)
        out, values, q, ptr, neighbour = self.tensors
        total, b = self.variable(self.vector(self.lanes)), self.builder
        single = {32: ir.FloatType(), 64: DOUBLE}[bits]
        kind = ir.VectorType(single, self.lanes)

        def add(first, places, inside):
            charges = ir.Constant(self.vector(self.lanes), ir.Undefined)
            for lane, place in enumerate(places):
                charge = self.load_float(q, self.small(neighbour, place))
                charges = b.insert_element(charges, charge, I32(lane))
            entries = b.load(self.at(values, first, single), typ=kind, align=bits // 8)
            entries = entries if bits == 64 else b.fpext(entries, self.vector(self.lanes))
            if inside is not None:  # beyond the row there may be entries of another, or nothing yet written
                entries = b.select(inside, entries, self.constant(0.0, self.lanes))
            self.accumulate(total, entries, charges)

        with self.loop(self.begin, self.end) as i:
            b.store(self.constant(0.0, self.lanes), total)
            self.vectors_of(self.load_int(ptr, i), self.load_int(ptr, self.add(i, 1)), add)
            b.store(self.reduce(self.value(total)), self.at(out, i))


class _Pull(_Rows):
    NAME = "coulomb_pairs_pull"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 11)
        phi, gradient, rows, values, slopes, *vectors, charges, ptr, neighbour = self.tensors
        b, two = self.builder, ir.VectorType(self.float, 2)
        sums = [self.variable(self.vector(self.lanes)) for _ in range(10)]
        with self.loop(self.begin, self.end) as i:
            own = [Lanes(self, self.broadcast(charges, self.add(self.mul(i, 2), k), self.lanes)) for k in range(2)]
            for variable in sums:
                b.store(self.constant(0.0, self.lanes), variable)

            def add(first, places, inside, *, own=own):
                atoms = [self.mul(self.small(neighbour, place), 2) for place in places]
                theirs = [b.load(self.at(charges, j), typ=two, align=self.float_bytes) for j in atoms]
                (u_i, q_i), (u_j, q_j) = own, self.columns(theirs, 2)
                f, f_rho, *d = (Lanes(self, self.load(t, first, self.lanes)) for t in (values, slopes, *vectors))
                if inside is not None:  # beyond the row there may be entries of another, or nothing yet written
                    f, f_rho, *d = (value.where(inside, 0.0) for value in (f, f_rho, *d))
                s = (u_i * q_j + u_j * q_i) * f_rho
                pull = [s * component for component in d]
                stretch = [pull[k] * d[m] for k, m in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
                for variable, term in zip(sums, [f * q_j, *(p * -2.0 for p in pull), *stretch], strict=True):
                    b.store(b.fadd(self.value(variable), term.value, flags=("contract",)), variable)

            self.vectors_of(self.load_int(ptr, i), self.load_int(ptr, self.add(i, 1)), add)
            totals = [self.reduce(self.value(variable)) for variable in sums]
            totals = totals if bits == 64 else [b.fpext(total, DOUBLE) for total in totals]
            for pointer, part in ((phi, totals[:1]), (gradient, totals[1:4]), (rows, totals[4:])):
                for k, value in enumerate(part):
                    b.store(value, self.at(pointer, self.add(self.mul(i, len(part)), k), DOUBLE))
