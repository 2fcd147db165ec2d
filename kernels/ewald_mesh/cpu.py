"""Particle-mesh kernels for CPUs, in LLVM assembly.

A row of the stencil, the points along the last axis, is a vector or two. With D_a, D_b, D_c the derivatives of the
splines along the three axes and U the components of a jet, a row (j1, j2) of what an atom spreads is

    sum_b D_b(j2) V_b(j1),     V_b(j1) = sum_a D_a(j1) sum_c U_abc D_c,

so that an entry of the stencil costs order + 1 multiplications, and gathering is the same backwards. Splines are
evaluated anew as polynomials with one point a lane, which is faster than reading them from a table.

Spreading shares out planes of the mesh along the first axis. A thread visits every atom that touches its planes, plane
after plane in ascending order, so that each point sums its atoms in the same order for any number of threads.
"""

import torch
from llvmlite import ir
from torch import Tensor

from ..llvm import I32, I64, Emitter, chunk_plan
from ..native import Call, launch, machine_code, shares
from .bins import Bins, segments
from .naive import components, polynomials


def sort(x: Tensor, dims: tuple[int, int, int], p: int) -> Bins:
    """See ``op.mesh_bins``: a counting sort."""
    num_atoms, num_bins = x.shape[0], dims[0] * dims[1] * segments(dims[2])
    start, place, key = x.new_empty(num_atoms, 3, dtype=torch.int64), torch.empty_like(x), _integers(num_atoms)
    sizes = torch.tensor([*dims, segments(dims[2])])
    launch(machine_code(_Locate, x.dtype, p), [start, place, key, x, sizes], num_atoms)
    ptr = torch.zeros(num_bins + 1, dtype=torch.int64)
    bins = Bins(_integers(num_atoms), ptr, torch.empty_like(start), torch.empty_like(place))
    count = torch.tensor([num_atoms, num_bins])
    launch(machine_code(_Sort, x.dtype), [*bins, start, place, key, count], 1)
    return bins


def gather(mesh: Tensor, bins: Bins, order: int, p: int) -> Tensor:
    """See ``op.mesh_gather``."""
    num_atoms = bins.order.shape[0]
    out = mesh.new_empty(num_atoms, len(components(order)))
    sizes = torch.tensor([*mesh.shape, segments(mesh.shape[2])])
    launch(machine_code(_Gather, mesh.dtype, p, order), [out, mesh, *bins, sizes], num_atoms, minimum_work=64)
    return out


def spread(c: Tensor, bins: Bins, dims: tuple[int, int, int], order: int, p: int) -> Tensor:
    """See ``op.mesh_spread``."""
    out = c.new_empty(dims)
    sizes = torch.tensor([*dims, segments(dims[2])])
    planes = _work(bins, dims, p)
    launch(machine_code(_Spread, c.dtype, p, order), [out, c, *bins, sizes], planes, minimum_work=8192)
    return out


class Stencils:
    """See ``op.Stencils``; everything that charges and meshes do not change is made once."""

    def __init__(self, x: Tensor, dims: tuple[int, int, int], p: int):
        bins, num_atoms = sort(x, dims, p), x.shape[0]
        sizes = torch.tensor([*dims, segments(dims[2])])
        self.mesh, self.values = x.new_empty(dims), x.new_empty(num_atoms)
        self._spread = Call(machine_code(_Spread, x.dtype, p, 0), [self.mesh, self.values, *bins, sizes])
        self._gather = Call(machine_code(_Gather, x.dtype, p, 0), [self.values, self.mesh, *bins, sizes])
        self._planes = shares(_work(bins, dims, p), minimum_work=8192)
        self._atoms = shares(num_atoms, minimum_work=64)

    def spread(self, charges: Tensor) -> Tensor:
        self._spread.set(1, charges)
        self._spread(self._planes)
        return self.mesh

    def gather(self, mesh: Tensor) -> Tensor:
        self._gather.set(1, mesh)
        self._gather(self._atoms)
        return self.values


def _integers(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64)


def _work(bins: Bins, dims: tuple[int, int, int], p: int) -> Tensor:
    """(n1 + 1,) int64: the work of each plane, added up: atoms that touch it, and the points to be cleared."""
    first = bins.ptr[:: dims[1] * segments(dims[2])].diff()  # atoms whose first point lies in each plane
    touching = sum(first.roll(j) for j in range(p))
    work = torch.zeros(dims[0] + 1, dtype=torch.int64)
    torch.cumsum(touching + dims[1] * dims[2] // 64, 0, out=work[1:])
    return work


class _Locate(Emitter):
    """Where atoms begin ... end - 1 lie in the mesh, and the number of their bin."""

    NAME = "mesh_locate"

    def __init__(self, bits: int, p: int):
        super().__init__(self.NAME, bits, 5)
        start, place, key, x, sizes = self.tensors
        n = [self.load_int(sizes, axis) for axis in range(3)]
        count, b = self.load_int(sizes, 3), self.builder

        def scalar(vector):
            return b.extract_element(vector, I32(0))

        with self.loop(self.begin, self.end) as i:
            first = []
            for axis in range(3):
                entry = self.add(self.mul(i, 3), axis)
                y = b.fadd(self.load(x, entry, 1), self.constant(0.5 * p, 1))
                floor = self.intrinsic("floor", y)
                b.store(scalar(b.fsub(b.fsub(y, floor), self.constant(0.5, 1))), self.at(place, entry))
                k = b.fsub(floor, self.constant(p - 1, 1))
                width = self.splat(b.sitofp(n[axis], self.float), 1)
                k = b.fsub(k, b.fmul(width, self.intrinsic("floor", b.fdiv(k, width))))
                kind = ir.FunctionType(ir.VectorType(I64, 1), [self.vector(1)])
                convert = self._declare(f"llvm.fptosi.sat.v1i64.v1f{bits}", kind)
                k = scalar(b.call(convert, [k]))
                # rounding may have put a very far atom one period aside; one that is nowhere (NaN) must not harm
                k = b.select(b.icmp_signed("<", k, I64(0)), b.add(k, n[axis]), k)
                k = b.select(b.icmp_signed(">=", k, n[axis]), b.sub(k, n[axis]), k)
                inside = b.and_(b.icmp_signed(">=", k, I64(0)), b.icmp_signed("<", k, n[axis]))
                k = b.select(inside, k, I64(0))
                b.store(k, self.at(start, entry, I64))
                first.append(k)
            segment = b.sdiv(self.mul(first[2], count), n[2])
            row = self.add(self.mul(first[0], n[1]), first[1])
            b.store(self.add(self.mul(row, count), segment), self.at(key, i, I64))


class _Sort(Emitter):
    """Atoms in the order of their bins; a bin's atoms in their own. Runs on one thread; ``ptr`` is zero beforehand."""

    NAME = "mesh_sort"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 8)
        order, ptr, start, place, start_of, place_of, key, count = self.tensors
        num_atoms, num_bins, b = self.load_int(count, 0), self.load_int(count, 1), self.builder
        with self.loop(0, num_atoms) as i:
            bin = self.load_int(key, i)
            b.store(self.add(self.load_int(ptr, bin), 1), self.at(ptr, bin, I64))
        total = self.variable(I64)
        b.store(I64(0), total)
        with self.loop(0, self.add(num_bins, 1)) as bin:  # the sum of what is before
            before, own = b.load(total, typ=I64), self.load_int(ptr, bin)
            b.store(before, self.at(ptr, bin, I64))
            b.store(self.add(before, own), total)
        with self.loop(0, num_atoms) as i:
            bin = self.load_int(key, i)
            slot = self.load_int(ptr, bin)
            b.store(self.add(slot, 1), self.at(ptr, bin, I64))
            b.store(i, self.at(order, slot, I64))
            for axis in range(3):
                to, fro = (self.add(self.mul(row, 3), axis) for row in (slot, i))
                b.store(self.load_int(start_of, fro), self.at(start, to, I64))
                b.store(self.load_float(place_of, fro), self.at(place, to))
        # now ptr[bin] is where the bin ends
        b.store(I64(0), total)
        with self.loop(0, self.add(num_bins, 1)) as bin:
            before, own = b.load(total, typ=I64), self.load_int(ptr, bin)
            b.store(before, self.at(ptr, bin, I64))
            b.store(own, total)
        b.store(num_atoms, self.at(ptr, num_bins, I64))


class _Stencil(Emitter):
    """What both kernels share: splines of an atom, and rows of its stencil with and without the periodic seam."""

    def __init__(self, bits: int, p: int, order: int, num_tensors: int):
        super().__init__(self.NAME, bits, num_tensors)
        self.p, self.order = p, order
        # Vectors that cover a row; the last may reach beyond it, where splines are zero. Rows begin anywhere, and the
        # widest vectors would nearly always lie in two cache lines.
        plan = chunk_plan(p, min(self.lanes, 256 // bits))
        self.parts = [(first + v * lanes, lanes) for first, count, lanes, _ in plan for v in range(count)]
        self.reach = max(first + lanes for first, lanes in self.parts)
        # derivatives of the splines along the first two axes, in memory, where single values are broadcast from
        self.tables = [[self.variable(self.float, self.reach) for _ in range(order + 1)] for _ in range(2)]

    def splines(self, place, index):
        """Fill ``tables`` for the first two axes, and return vectors [derivative][part] for the third."""
        for axis in range(3):
            s = self.load_float(place, self.add(self.mul(index, 3), axis))
            vectors = [[self._polynomial(s, derivative, *part) for part in self.parts]
                       for derivative in range(self.order + 1)]  # fmt: skip
            if axis == 2:
                return vectors
            for table, parts in zip(self.tables[axis], vectors, strict=True):
                for (first, _), vector in zip(self.parts, parts, strict=True):
                    self.store(vector, table, first)
        return None

    def _polynomial(self, s, derivative: int, first: int, lanes: int):
        """Splines first ... first + lanes - 1 by Horner's rule, zero beyond the last."""
        rows = polynomials(self.p, derivative).tolist()
        s, total, kind = self.splat(s, lanes), None, self.vector(lanes)
        for row in rows[self.p - 1 - derivative :: -1] if derivative < self.p else []:
            values = [row[j] if j < self.p else 0.0 for j in range(first, first + lanes)]
            constant = ir.Constant(kind, [ir.Constant(self.float, value) for value in values])
            total = constant if total is None else self.fma(total, s, constant)
        return self.constant(0.0, lanes) if total is None else total

    def wrapped(self, k, n):
        """k modulo n for 0 <= k < 2 n."""
        return self.builder.select(self.builder.icmp_signed("<", k, n), k, self.builder.sub(k, n))

    def rows(self, start_2, start_3, n):
        """Place of the rows j2 within a plane (the first column of the mesh), and of the columns of the stencil."""
        offsets = [self.mul(self.wrapped(self.add(start_2, j), n[1]), n[2]) for j in range(self.p)]
        columns = [self.wrapped(self.add(start_3, j), n[2]) for j in range(self.p)]
        return offsets, columns

    def whole(self, start_3, n):
        """Whether no row of the stencil crosses the seam."""
        return self.builder.icmp_signed("<=", self.add(start_3, self.reach), n[2])


class _Spread(_Stencil):
    """Planes begin ... end - 1 of a mesh."""

    NAME = "mesh_spread"

    def __init__(self, bits: int, p: int, order: int):
        super().__init__(bits, p, order, 7)
        out, c, order_of, ptr, start, place, sizes = self.tensors
        n, b = [self.load_int(sizes, axis) for axis in range(3)], self.builder
        plane = self.mul(n[1], n[2])
        bins = self.mul(n[1], self.load_int(sizes, 3))  # of a plane
        with self.loop(self.add(self.begin, 1 - p), self.end) as first:
            # the last plane that these atoms touch is touched for the first time
            last = self.add(first, p - 1)
            with self.loop(last, self.minimum(self.add(last, 1), self.end)) as new:
                self.clear(out, self.mul(new, plane), plane)
            source = b.select(b.icmp_signed("<", first, I64(0)), b.add(first, n[0]), first)
            j_first = b.sub(self.begin, first)
            j_first = b.select(b.icmp_signed("<", j_first, I64(0)), I64(0), j_first)
            j_last = self.minimum(b.sub(self.end, first), p)
            stop = self.load_int(ptr, self.mul(self.add(source, 1), bins))
            with self.loop(self.load_int(ptr, self.mul(source, bins)), stop) as index:
                atom = self.load_int(order_of, index)
                start_2, start_3 = (self.load_int(start, self.add(self.mul(index, 3), axis)) for axis in (1, 2))
                factors = self.factors(c, atom, self.splines(place, index))
                offsets, columns = self.rows(start_2, start_3, n)
                with b.if_else(self.whole(start_3, n)) as (whole, cut):
                    with whole, self.loop(j_first, j_last) as j:
                        base = self.add(self.mul(self.add(first, j), plane), start_3)
                        values = self.values(factors, j)
                        for k, offset in enumerate(offsets):
                            row = self.add(base, offset)
                            for part, (column, lanes) in enumerate(self.parts):
                                at = self.add(row, column)
                                old = self.load(out, at, lanes)
                                self.store(self.row(values, part, k, lanes, old), out, at)
                    with cut, self.loop(j_first, j_last) as j:
                        base = self.mul(self.add(first, j), plane)
                        values = self.values(factors, j)
                        for k, offset in enumerate(offsets):
                            row = self.add(base, offset)
                            for part, (column, lanes) in enumerate(self.parts):
                                new = self.row(values, part, k, lanes, None)
                                for lane in range(min(lanes, p - column)):
                                    at = self.add(row, columns[column + lane])
                                    value = b.extract_element(new, I32(lane))
                                    b.store(b.fadd(self.load_float(out, at), value), self.at(out, at))

    def clear(self, out, begin, count):
        """out[begin : begin + count] = 0"""
        whole = self.builder.and_(count, I64(-self.lanes))
        with self.loop(0, whole, self.lanes) as k:
            self.store(self.constant(0.0, self.lanes), out, self.add(begin, k))
        with self.loop(whole, count) as k:
            self.store(self.constant(0.0, 1), out, self.add(begin, k))

    def factors(self, c, atom, third) -> dict:
        """(a, b) -> vectors sum_c U_abc D_c of each part."""
        factors, width = {}, len(components(self.order))
        for number, (i, j, k) in enumerate(components(self.order)):
            value = self.load_float(c, self.add(self.mul(atom, width), number))
            sums = factors.setdefault((i, j), [None] * len(self.parts))
            for part, (_, lanes) in enumerate(self.parts):
                sums[part] = self.fma(self.splat(value, lanes), third[k][part], sums[part])
        return factors

    def values(self, factors: dict, j) -> list:
        """V_b(j) of each b and part."""
        values = [[None] * len(self.parts) for _ in range(self.order + 1)]
        for (i, k), vectors in factors.items():
            for part, (_, lanes) in enumerate(self.parts):
                spline = self.broadcast(self.tables[0][i], j, lanes)
                values[k][part] = self.fma(spline, vectors[part], values[k][part])
        return values

    def row(self, values: list, part: int, k: int, lanes: int, total):
        """sum_b D_b(k) V_b, on top of what is there."""
        for derivative, vectors in enumerate(values):
            total = self.fma(self.broadcast(self.tables[1][derivative], k, lanes), vectors[part], total)
        return total


class _Gather(_Stencil):
    """Jets of the atoms at places begin ... end - 1 of the order."""

    NAME = "mesh_gather"

    def __init__(self, bits: int, p: int, order: int):
        super().__init__(bits, p, order, 7)
        out, mesh, order_of, _, start, place, sizes = self.tensors
        n, b = [self.load_int(sizes, axis) for axis in range(3)], self.builder
        plane = self.mul(n[1], n[2])
        pairs = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
        sums = {pair: [self.variable(self.vector(lanes)) for _, lanes in self.parts] for pair in pairs}
        width = len(components(order))
        with self.loop(self.begin, self.end) as index:
            atom = self.load_int(order_of, index)
            first, start_2, start_3 = (self.load_int(start, self.add(self.mul(index, 3), axis)) for axis in range(3))
            third = self.splines(place, index)
            for variables in sums.values():
                for variable, (_, lanes) in zip(variables, self.parts, strict=True):
                    b.store(self.constant(0.0, lanes), variable)
            offsets, columns = self.rows(start_2, start_3, n)
            with b.if_else(self.whole(start_3, n)) as (whole, cut):
                with whole, self.loop(0, p) as j:
                    base = self.mul(self.wrapped(self.add(first, j), n[0]), plane)
                    places = [self.add(self.add(base, offset), start_3) for offset in offsets]
                    for part, (column, lanes) in enumerate(self.parts):
                        values = [self.load(mesh, self.add(at, column), lanes) for at in places]
                        self.collect(sums, values, j, part, lanes)
                with cut, self.loop(0, p) as j:
                    base = self.mul(self.wrapped(self.add(first, j), n[0]), plane)
                    places = [self.add(base, offset) for offset in offsets]
                    for part, (column, lanes) in enumerate(self.parts):
                        values = [self.collected(mesh, at, columns[column : column + lanes], lanes) for at in places]
                        self.collect(sums, values, j, part, lanes)
            for number, (i, j, k) in enumerate(components(order)):
                total = None
                for variable, vector in zip(sums[i, j], third[k], strict=True):
                    part = self.reduce(b.fmul(self.value(variable), vector))
                    total = part if total is None else b.fadd(total, part)
                b.store(total, self.at(out, self.add(self.mul(atom, width), number)))

    def collected(self, mesh, row, columns: list, lanes: int):
        """A row that crosses the seam."""
        value = self.constant(0.0, lanes)
        for lane, column in enumerate(columns):
            value = self.builder.insert_element(value, self.load_float(mesh, self.add(row, column)), I32(lane))
        return value

    def collect(self, sums: dict, values: list, j, part: int, lanes: int) -> None:
        """sums[a, b] += D_a(j) sum_k D_b(k) values[k]"""
        for derivative in range(self.order + 1):
            total = None
            for k, value in enumerate(values):
                total = self.fma(self.broadcast(self.tables[1][derivative], k, lanes), value, total)
            for i in range(self.order + 1 - derivative):
                self.accumulate(sums[i, derivative][part], self.broadcast(self.tables[0][i], j, lanes), total)
