"""The real-space sum for CPUs: LLVM assembly that does the formulas for several entries of a row at once, one a lane.

The last lanes of a row may do its last entry again, with charges of zero.
"""

from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from ..llvm import I32, I64, Emitter, Lanes, Operations
from ..native import compiled, launch
from . import formulas
from .formulas import Entry
from .pair_list import PairList
from .rows import KINDS

I8 = ir.IntType(8)


def values(x: Tensor, a: Tensor, cell: Tensor, beta: Tensor, pairs: PairList) -> Tensor:
    """See ``op.pair_values``."""
    out = x.new_empty(pairs.neighbour.shape[0])
    _run("values", [x, a], [cell, beta], pairs, [out])
    return out


def product(values: Tensor, q: Tensor, pairs: PairList) -> Tensor:
    """See ``op.pair_product``."""
    out = torch.empty_like(q)
    launch(_product_kernel(), [out, values, q, pairs.ptr, pairs.neighbour], pairs.ptr, minimum_work=4096)
    return out


def potential(q, x, a, cell, beta, pairs: PairList) -> Tensor:
    """See ``op.coulomb_pairs``."""
    return _run("potential", [q, x, a], [cell, beta], pairs)[0]


def gradient(u, q, x, a, cell, beta, pairs: PairList) -> list[Tensor]:
    """See ``op.coulomb_pairs_gradient``; the last result is (N, 9)."""
    return _run("gradient", [u, q, x, a], [cell, beta], pairs)


def pull(u, q, x, a, cell, beta, pairs: PairList) -> list[Tensor]:
    """See ``op.pair_pull``; the last result is (N, 9)."""
    if a is None:
        return _run("point_pull", [u, q, x], [cell, beta], pairs)
    return _run("pull", [u, q, x, a], [cell, beta], pairs)


def change(dx, da, dcell, u, q, x, a, cell, beta, pairs: PairList) -> list[Tensor]:
    """See ``op.coulomb_pairs_change``; the last result is (N, 9)."""
    return _run("change", [dx, da, u, q, x, a], [dcell, cell, beta], pairs)


def _run(name: str, atoms: list[Tensor], structures: list[Tensor], pairs: PairList, out=None) -> list[Tensor]:
    if out is None:
        out = [atoms[0].new_empty(shape) for shape in KINDS[name].shapes(pairs.num_nodes)]
    launch(_kernel(name), [*out, *pairs, *atoms, *structures], pairs.ptr)
    return out


@cache
def _kernel(name: str):
    return compiled(f"coulomb_{name}", "", lambda: _Kernel(name).source())


@cache
def _product_kernel():
    return compiled("coulomb_product", "", lambda: _Product().source())


class _Product(Emitter):
    """out[i] = sum over the entries of row i of values q_j."""

    def __init__(self):
        super().__init__("coulomb_product", 64, 5)
        out, values, q, ptr, neighbour = self.tensors
        total, single = (self.variable(self.vector(width)) for width in (self.lanes, 1))
        with self.loop(self.begin, self.end) as i:
            self.builder.store(self.constant(0.0, self.lanes), total)
            self.builder.store(self.constant(0.0, 1), single)
            first, last = self.load_int(ptr, i), self.load_int(ptr, self.add(i, 1))
            whole = self.add(
                first, self.mul(self.builder.sdiv(self.builder.sub(last, first), I64(self.lanes)), self.lanes)
            )
            for start, stop, width, variable in ((first, whole, self.lanes, total), (whole, last, 1, single)):
                with self.loop(start, stop, width) as p:
                    charges = ir.Constant(self.vector(width), ir.Undefined)
                    for lane in range(width):
                        other = self.builder.load(self.at(neighbour, self.add(p, lane), I32), typ=I32)
                        charge = self.load_float(q, self.builder.sext(other, I64))
                        charges = self.builder.insert_element(charges, charge, I32(lane))
                    self.accumulate(variable, self.load(values, p, width), charges)
            both = self.builder.fadd(
                self.reduce(self.value(total)), self.builder.extract_element(self.value(single), I32(0))
            )
            self.builder.store(both, self.at(out, i))


class _Kernel(Emitter):
    def __init__(self, name: str):
        by_atom, by_structure, columns = KINDS[name]
        super().__init__(f"coulomb_{name}", 64, max(1, len(columns)) + 4 + len(by_atom) + len(by_structure))
        tensors = iter(self.tensors)
        out = [next(tensors) for _ in columns or [1]]
        ptr, neighbour, shift, batch = (next(tensors) for _ in range(4))
        atoms = {key: (next(tensors), width) for key, width in by_atom.items()}
        structures = {key: (next(tensors), width) for key, width in by_structure.items()}
        ops = Operations(self)
        sums = [self.variable(self.vector(self.lanes)) for _ in range(sum(columns))]

        with self.loop(self.begin, self.end) as i:
            structure = self.load_int(batch, i)
            own = {key: self.uniform(*place, i) for key, place in atoms.items()}
            shared = {key: self.uniform(*place, structure) for key, place in structures.items()}
            for variable in sums:
                self.builder.store(self.constant(0.0, self.lanes), variable)
            last = self.load_int(ptr, self.add(i, 1))
            with self.loop(self.load_int(ptr, i), last, self.lanes) as first:
                final = self.add(last, -1)
                places = [self.minimum(self.add(first, lane), final) for lane in range(self.lanes)]
                others = [self.small(neighbour, place, I32) for place in places]
                theirs = {key: self.gathered(*place, others) for key, place in atoms.items()}
                n = [
                    self.join([self.builder.sitofp(self.small(shift, self.add(self.mul(p, 3), k), I8), self.float)
                               for p in places])
                    for k in range(3)
                ]  # fmt: skip
                inside = self.builder.icmp_signed("<", self.counted(first), self.spread(last))
                charges = {key: theirs[key][0].where(inside, 0.0) for key in ("u", "q") if key in atoms}
                entry = Entry.of_row(own, theirs, shared, n, charges)
                terms = getattr(formulas, name)(entry, shared["beta"][0], ops)
                if name == "values":
                    for lane, place in enumerate(places):
                        f = self.builder.extract_element(terms[0].value, I32(lane))
                        self.builder.store(f, self.at(out[0], place))
                    terms = []
                for variable, term in zip(sums, terms, strict=True):
                    self.builder.store(self.builder.fadd(self.value(variable), term.value), variable)
            totals = iter(sums)
            for pointer, width in zip(out, columns, strict=False):
                for k in range(width):
                    total = self.reduce(self.value(next(totals)))
                    self.builder.store(total, self.at(pointer, self.add(self.mul(i, width), k)))

    def small(self, pointer, index, kind):
        """A whole number of fewer bits."""
        return self.builder.sext(self.builder.load(self.at(pointer, index, kind), typ=kind), I64)

    def join(self, scalars: list) -> Lanes:
        value = ir.Constant(self.vector(self.lanes), ir.Undefined)
        for lane, scalar in enumerate(scalars):
            value = self.builder.insert_element(value, scalar, I32(lane))
        return Lanes(self, value)

    def uniform(self, pointer, width: int, row) -> list[Lanes]:
        """The columns of one row, each in all lanes."""
        return [
            Lanes(self, self.broadcast(pointer, self.add(self.mul(row, width), k), self.lanes)) for k in range(width)
        ]

    def gathered(self, pointer, width: int, rows: list) -> list[Lanes]:
        """The columns of several rows, one row a lane."""
        return [
            self.join([self.load_float(pointer, self.add(self.mul(row, width), k)) for row in rows])
            for k in range(width)
        ]

    def spread(self, number):
        """A whole number in all lanes."""
        kind = ir.VectorType(I64, self.lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, number, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [I32(0)] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def counted(self, first):
        """first, first + 1, ..."""
        kind = ir.VectorType(I64, self.lanes)
        return self.builder.add(self.spread(first), ir.Constant(kind, [I64(lane) for lane in range(self.lanes)]))
