"""Batched projected solves for CPUs, in LLVM assembly: one structure a SIMD lane.

Matrices of a few atoms are too small for the vectors of a CPU, but there are many of them. Structures are sorted by
size and taken in groups of as many as a vector has lanes; then the scalar algorithm, with a vector in the place of each
number, keeps every lane busy. Rows that a structure lacks beside the largest of its group are rows of the identity. The
arithmetic of a lane is the same whatever stands in the others, so results do not depend on the batch.

Layout of the factor L of a group, in vectors: panels of ``TILE`` rows, one after the other; the panel of rows
4 I ... 4 I + 3 holds its 4 I + 4 columns one after the other, element (4 I + a, k) at 8 I (I + 1) + 4 k + a. In the
place of each diagonal element stands its reciprocal.
"""

from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from ..llvm import I32, I64, Emitter
from ..native import compiled, launch, vector_bytes
from .batched_op import Factor
from .naive import IndefiniteError

TILE = 4  # rows and columns that are worked on in registers
WORTH_A_THREAD = 8000  # of the units of ``_plan``, which take twenty microseconds to factorise and a third to solve


def empty_factor(matrix: Tensor) -> list[Tensor]:
    """The tensors that ``factorise`` returns. Memory that the sizes turn out not to need is never touched."""
    (num_structures, n), lanes = matrix.shape[:2], _lanes(matrix.dtype)
    groups, tiles = (num_structures + lanes - 1) // lanes, (n + TILE - 1) // TILE
    return [
        matrix.new_empty(groups, TILE * TILE // 2 * tiles * (tiles + 1), lanes),
        matrix.new_empty(groups, TILE * tiles, lanes),
        matrix.new_empty(num_structures),
        matrix.new_empty(num_structures, dtype=torch.int64),
        matrix.new_empty(groups + 1, dtype=torch.int64),
    ]


def factorise(matrix: Tensor, sizes: Tensor) -> list[Tensor]:
    """L; y = H^-1 1, by lanes; sum(y); the order of the structures; and the work of all groups before each."""
    atoms = sizes.numpy()
    if matrix.shape[0] and (atoms.min() < 0 or atoms.max() > matrix.shape[1]):
        raise ValueError(f"sizes: expected 0 ... {matrix.shape[1]}, got {atoms.min()} ... {atoms.max()}")
    factor = lower, response, response_sum, order, work = empty_factor(matrix)
    _plan(atoms, lower.shape[2], order.numpy(), work.numpy())
    tensors = [lower, response, response_sum, matrix, order, sizes, _lengths(matrix, lower, response)]
    launch(_compiled(_Factorise, matrix.dtype, vector_bytes()), tensors, work, WORTH_A_THREAD)
    sums = response_sum.numpy()  # positive and finite, or else a pivot was not
    wrong = ~((sums > 0.0) & (sums < np.inf)) & (atoms > 0)
    if wrong.any():
        raise IndefiniteError(np.nonzero(wrong)[0].tolist())
    return factor


def solve(factor: Factor, rhs: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """See ``batched_op.solve``."""
    lower, response, response_sum, order, work, sizes = factor
    n = rhs.shape[1]
    if -n // TILE * -TILE != response.shape[1] or (len(order) and n < int(sizes[order[0]])):
        raise ValueError(f"rhs: {n} columns, but the matrices had another number of rows")
    charges, multiplier, space = torch.zeros_like(rhs), torch.empty_like(total), torch.empty_like(response)
    tensors = [
        charges, multiplier, space, lower, response, response_sum, rhs, total, order, sizes,
        _lengths(rhs, lower, response),
    ]  # fmt: skip
    launch(_compiled(_Solve, rhs.dtype, vector_bytes()), tensors, work, 3 * WORTH_A_THREAD)
    return charges, multiplier


def _lanes(dtype: torch.dtype) -> int:
    return vector_bytes() // dtype.itemsize


def _lengths(padded: Tensor, lower: Tensor, response: Tensor) -> Tensor:
    """What kernels know of the problem: B, n, and the numbers of vectors that a group has in L and in H^-1 1."""
    return torch.tensor([*padded.shape[:2], lower.shape[1], response.shape[1]])


def _plan(atoms: np.ndarray, lanes: int, order: np.ndarray, work: np.ndarray) -> None:
    """Fill in the structures by falling size and the work of all groups before each, in turns of the innermost loop.

    By numpy, whose functions take a fraction of the time of PyTorch's where there is so little to do.
    """
    order[:] = np.argsort(-atoms, kind="stable")
    tiles = (atoms[order[::lanes]] + TILE - 1) // TILE
    work[0] = 0
    np.cumsum((tiles + 1) * (tiles + 2) * (tiles + 9), out=work[1:])


@cache
def _compiled(kernel, dtype: torch.dtype, width: int):
    bits = torch.finfo(dtype).bits
    return compiled(kernel.NAME, f"{bits} {width}", lambda: kernel(bits).source())


class _Kernel(Emitter):
    """Rows begin ... end - 1 of both kernels are groups; here is what they share."""

    def __init__(self, name: str, bits: int, num_tensors: int):
        super().__init__(name, bits, num_tensors)
        lengths = self.tensors[-1]
        self.num_structures, self.n, self.vectors, self.rows = (self.load_int(lengths, k) for k in range(4))

    @contextmanager
    def groups(self, order, sizes):
        """For each group: where its structures are, and how large."""
        b = self.builder
        with self.loop(self.begin, self.end) as group:
            first, last = self.mul(group, self.lanes), b.sub(self.num_structures, I64(1))
            # lanes that remain in the last group do its last structure again
            places = [self.minimum(self.add(first, lane), last) for lane in range(self.lanes)]
            self.structures = [self.load_int(order, place) for place in places]
            self.sizes = [self.load_int(sizes, structure) for structure in self.structures]
            self.extents = self.integers([b.trunc(size, I32) for size in self.sizes])
            self.tiles = b.sdiv(self.add(self.sizes[0], TILE - 1), I64(TILE))  # the first is the largest
            yield group

    def integers(self, values):
        """A vector of 32-bit integers."""
        vector = ir.Constant(ir.VectorType(I32, len(values)), ir.Undefined)
        for lane, value in enumerate(values):
            vector = self.builder.insert_element(vector, value, I32(lane))
        return vector

    def inside(self, i):
        """Which structures have an atom number ``i``."""
        return self.builder.icmp_signed("<", self.integers([self.builder.trunc(i, I32)] * self.lanes), self.extents)

    def below(self, count):
        """The first ``count`` of ``TILE`` elements."""
        count = self.builder.trunc(self.minimum(count, TILE), I32)
        numbers = ir.Constant(ir.VectorType(I32, TILE), [I32(k) for k in range(TILE)])
        return self.builder.icmp_signed("<", numbers, self.integers([count] * TILE))

    def masked_load(self, pointer, index, mask):
        """``TILE`` floats; where ``mask`` is false memory is not touched, and zero returned."""
        kind = self.vector(TILE)
        name = f"llvm.masked.load.v{TILE}f{8 * self.float_bytes}.p0"
        function = self._declare(name, ir.FunctionType(kind, [ir.PointerType(), I32, mask.type, kind]))
        arguments = [self.at(pointer, index), I32(self.float_bytes), mask, self.constant(0.0, TILE)]
        return self.builder.call(function, arguments)

    def masked_store(self, value, pointer, index, mask):
        name = f"llvm.masked.store.v{TILE}f{8 * self.float_bytes}.p0"
        kinds = [value.type, ir.PointerType(), I32, mask.type]
        function = self._declare(name, ir.FunctionType(ir.VoidType(), kinds))
        self.builder.call(function, [value, self.at(pointer, index), I32(self.float_bytes), mask])

    def shuffle(self, a, b, numbers):
        """Elements of two vectors joined."""
        return self.builder.shuffle_vector(
            a, b, ir.Constant(ir.VectorType(I32, len(numbers)), [I32(k) for k in numbers])
        )

    def to_lanes(self, rows):
        """From ``TILE`` elements of each structure to one vector by lanes of each element."""
        if self.lanes < TILE:
            return [self.shuffle(rows[0], rows[1], [c, TILE + c]) for c in range(TILE)]
        rows = [self.joined(rows[l::TILE]) for l in range(TILE)]
        return self.transposed(rows)

    def from_lanes(self, columns):
        """The inverse of ``to_lanes``."""
        if self.lanes < TILE:
            pairs = [self.shuffle(columns[c], columns[c + 1], range(4)) for c in (0, 2)]
            return [self.shuffle(*pairs, [l, 2 + l, 4 + l, 6 + l]) for l in range(self.lanes)]
        rows = self.transposed(columns)
        return [
            self.shuffle(rows[l % TILE], rows[l % TILE], range(l - l % TILE, l - l % TILE + TILE))
            for l in range(self.lanes)
        ]

    def joined(self, vectors):
        """One vector of all elements."""
        while len(vectors) > 1:
            numbers = range(2 * vectors[0].type.count)
            vectors = [self.shuffle(*vectors[k : k + 2], numbers) for k in range(0, len(vectors), 2)]
        return vectors[0]

    def transposed(self, rows):
        """Each block of ``TILE`` columns of four rows, transposed."""
        numbers = range(self.lanes)
        for distance in (1, 2):
            first = [k if not k & distance else self.lanes + k - distance for k in numbers]
            second = [k + distance if not k & distance else self.lanes + k for k in numbers]
            rows = list(rows)
            for l in range(TILE):
                if not l & distance:
                    pair = rows[l], rows[l + distance]
                    rows[l], rows[l + distance] = self.shuffle(*pair, first), self.shuffle(*pair, second)
        return rows

    def vector_at(self, pointer, index):
        return self.load(pointer, self.mul(index, self.lanes), self.lanes)

    def put(self, value, pointer, index):
        self.store(value, pointer, self.mul(index, self.lanes))

    def part(self, pointer, group, vectors):
        """Where the vectors of ``group`` begin, of an array with so many vectors a group."""
        return self.at(pointer, self.mul(self.mul(group, vectors), self.lanes))

    def panel(self, lower, tile):
        """Where the rows of a tile begin in L."""
        return self.at(lower, self.mul(self.mul(self.mul(tile, 2 * TILE), self.add(tile, 1)), self.lanes))

    def minus(self, c, a, b):
        """c - a * b"""
        return self.fma(self.builder.fneg(a), b, c)

    def diagonal_tile(self, panel, tile):
        """The elements [a][b], b <= a, of L at a tile on the diagonal."""
        first = self.mul(tile, TILE * TILE)
        return [[self.vector_at(panel, self.add(first, TILE * b + a)) for b in range(a + 1)] for a in range(TILE)]

    def substitute(self, lower, x):
        """x = L^-T L^-1 x in place; returns the sum of its rows."""
        b = self.builder
        with self.loop(0, self.tiles) as tile:
            panel, first = self.panel(lower, tile), self.mul(tile, TILE)
            sums = [self.variable(self.vector(self.lanes)) for _ in range(TILE)]
            for a, variable in enumerate(sums):
                b.store(self.vector_at(x, self.add(first, a)), variable)
            with self.loop(0, first) as k:
                value = self.vector_at(x, k)
                for a, variable in enumerate(sums):
                    element = self.vector_at(panel, self.add(self.mul(k, TILE), a))
                    b.store(self.minus(self.value(variable), element, value), variable)
            corner, values = self.diagonal_tile(panel, tile), []
            for a, variable in enumerate(sums):
                value = self.value(variable)
                for c in range(a):
                    value = self.minus(value, corner[a][c], values[c])
                values.append(b.fmul(value, corner[a][a]))
                self.put(values[a], x, self.add(first, a))
        total = self.variable(self.vector(self.lanes))
        b.store(self.constant(0.0, self.lanes), total)
        with self.loop(0, self.tiles) as done:
            tile = b.sub(b.sub(self.tiles, I64(1)), done)
            panel, first = self.panel(lower, tile), self.mul(tile, TILE)
            corner, values = self.diagonal_tile(panel, tile), [None] * TILE
            for a in reversed(range(TILE)):
                value = self.vector_at(x, self.add(first, a))
                for c in range(a + 1, TILE):
                    value = self.minus(value, corner[c][a], values[c])
                values[a] = b.fmul(value, corner[a][a])
                self.put(values[a], x, self.add(first, a))
                b.store(b.fadd(self.value(total), values[a]), total)
            with self.loop(0, first) as k:
                value = self.vector_at(x, k)
                for a in range(TILE):
                    value = self.minus(value, self.vector_at(panel, self.add(self.mul(k, TILE), a)), values[a])
                self.put(value, x, k)
        return self.value(total)


class _Factorise(_Kernel):
    """L, H^-1 1 and its sum for the structures of some groups."""

    NAME = "charge_factorise"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 7)
        lower, response, response_sum, matrix, order, sizes, _ = self.tensors
        # a tile of sums and a column of factors must fit in the registers: 32 with the widest vectors, else 16
        self.columns = TILE if self.lanes * self.float_bytes == 64 else TILE // 2
        self.sums = [[self.variable(self.vector(self.lanes)) for _ in range(TILE)] for _ in range(TILE)]
        with self.groups(order, sizes) as group:
            own = self.part(lower, group, self.vectors)
            self.matrices = [self.at(matrix, self.mul(self.mul(b, self.n), self.n)) for b in self.structures]
            with self.loop(0, self.tiles) as tile:
                with self.loop(0, tile) as other:
                    self.off_diagonal(own, tile, other)
                self.on_diagonal(own, tile)
            x = self.part(response, group, self.rows)
            with self.loop(0, self.mul(self.tiles, TILE)) as i:
                one = self.builder.select(
                    self.inside(i), self.constant(1.0, self.lanes), self.constant(0.0, self.lanes)
                )
                self.put(one, x, i)
            total = self.substitute(own, x)
            for lane, structure in enumerate(self.structures):
                self.builder.store(self.builder.extract_element(total, I32(lane)), self.at(response_sum, structure))

    def fetch(self, row: int, i, column, mask) -> None:
        """Elements (i, column ... column + 3) of H into the sums; zero for structures without an atom i."""
        here = self.add(self.mul(self.minimum(i, self.builder.sub(self.n, I64(1))), self.n), column)
        if mask is None:
            rows = [self.load(matrix, here, TILE) for matrix in self.matrices]
        else:
            rows = [self.masked_load(matrix, here, mask) for matrix in self.matrices]
        inside, zero = self.inside(i), self.constant(0.0, self.lanes)
        for value, variable in zip(self.to_lanes(rows), self.sums[row], strict=True):
            self.builder.store(self.builder.select(inside, value, zero), variable)

    def subtract(self, left, right, stop, lower_only: bool) -> None:
        """sums[a][b] -= sum over k < stop of left[k, a] right[k, b]"""
        for start in range(0, TILE, self.columns):
            columns = range(start, start + self.columns)
            with self.loop(0, stop) as k:
                first = self.mul(k, TILE)
                factors = {c: self.vector_at(right, self.add(first, c)) for c in columns}
                for a in range(TILE):
                    if lower_only and a < start:
                        continue
                    element = self.vector_at(left, self.add(first, a))
                    for c in columns:
                        if c <= a or not lower_only:
                            variable = self.sums[a][c]
                            self.builder.store(self.minus(self.value(variable), element, factors[c]), variable)

    def off_diagonal(self, lower, tile, other) -> None:
        """L = (H - sum of products) times the inverse of the transposed tile on the diagonal."""
        column = self.mul(other, TILE)
        for a in range(TILE):
            self.fetch(a, self.add(self.mul(tile, TILE), a), column, None)
        panel, across = self.panel(lower, tile), self.panel(lower, other)
        self.subtract(panel, across, column, lower_only=False)
        corner = self.diagonal_tile(across, other)
        for a in range(TILE):
            values = []
            for c in range(TILE):
                value = self.value(self.sums[a][c])
                for k in range(c):
                    value = self.minus(value, values[k], corner[c][k])
                values.append(self.builder.fmul(value, corner[c][c]))
                self.put(values[c], panel, self.add(self.mul(self.add(column, c), TILE), a))

    def on_diagonal(self, lower, tile) -> None:
        """The Cholesky factor of a tile.

        A pivot that is not positive leaves a NaN or an infinity in the place of the inverse of its root, which spreads
        to the sum of H^-1 1; an infinite pivot has to be made to.
        """
        b, column = self.builder, self.mul(tile, TILE)
        nothing = ir.Constant(ir.VectorType(ir.IntType(1), TILE), [ir.IntType(1)(0)] * TILE)
        for a in range(TILE):
            i = self.add(column, a)
            self.fetch(a, i, column, b.select(b.icmp_signed("<", i, self.n), self._mask(TILE, a + 1), nothing))
        panel = self.panel(lower, tile)
        self.subtract(panel, panel, column, lower_only=True)
        one, infinity, undefined = (self.constant(float(number), self.lanes) for number in ("1", "inf", "nan"))
        values = [[self.value(self.sums[a][c]) for c in range(a + 1)] for a in range(TILE)]
        for c in range(TILE):
            pivot = b.select(self.inside(self.add(column, c)), values[c][c], one)
            pivot = b.select(b.fcmp_ordered("<", pivot, infinity), pivot, undefined)
            values[c][c] = b.fdiv(one, self.intrinsic("sqrt", pivot))
            for a in range(c + 1, TILE):
                values[a][c] = b.fmul(values[a][c], values[c][c])
            for a in range(c + 1, TILE):
                for k in range(c + 1, a + 1):
                    values[a][k] = self.minus(values[a][k], values[a][c], values[k][c])
        for a, row in enumerate(values):
            for c, value in enumerate(row):
                self.put(value, panel, self.add(self.mul(self.add(column, c), TILE), a))


class _Solve(_Kernel):
    """q = x - mu y with x = H^-1 rhs and mu = (sum x - total) / sum y for the structures of some groups."""

    NAME = "charge_solve"

    def __init__(self, bits: int):
        super().__init__(self.NAME, bits, 11)
        charges, multiplier, space, lower, response, response_sum, rhs, total, order, sizes, _ = self.tensors
        b, zero = self.builder, ir.Constant(self.float, 0.0)
        with self.groups(order, sizes) as group:
            x, y = self.part(space, group, self.rows), self.part(response, group, self.rows)
            with self.loop(0, self.tiles) as tile:
                first = self.mul(tile, TILE)
                mask = self.below(b.sub(self.n, first))
                found = [
                    self.masked_load(rhs, self.add(self.mul(structure, self.n), first), mask)
                    for structure in self.structures
                ]
                for a, value in enumerate(self.to_lanes(found)):
                    i = self.add(first, a)
                    self.put(b.select(self.inside(i), value, self.constant(0.0, self.lanes)), x, i)
            sums = self.substitute(self.part(lower, group, self.vectors), x)
            shift = self.constant(0.0, self.lanes)
            for lane, structure in enumerate(self.structures):
                stiffness = self.load_float(response_sum, structure)
                excess = b.fsub(b.extract_element(sums, I32(lane)), self.load_float(total, structure))
                # there is no potential where there are no atoms
                mu = b.select(b.fcmp_ordered("==", stiffness, zero), zero, b.fdiv(excess, stiffness))
                shift = b.insert_element(shift, mu, I32(lane))
                b.store(mu, self.at(multiplier, structure))
            with self.loop(0, self.tiles) as tile:
                first = self.mul(tile, TILE)
                found = [
                    self.minus(self.vector_at(x, self.add(first, a)), shift, self.vector_at(y, self.add(first, a)))
                    for a in range(TILE)
                ]
                for structure, size, values in zip(self.structures, self.sizes, self.from_lanes(found), strict=True):
                    place = self.add(self.mul(structure, self.n), first)
                    self.masked_store(values, charges, place, self.below(b.sub(size, first)))
