"""Interpolation from tables for CPUs, in LLVM assembly.

Edges are visited interval by interval, so that the six rows of the table stay in the nearest cache.
"""

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from ..llvm import Emitter, chunk_plan
from ..native import compiled, launch
from .intervals import Intervals
from .naive import ROWS

VECTORS = 3  # of columns that ``_Rows`` sums at a time, six rows of each in registers


def values(coefficients: Tensor, table: Tensor, intervals: Intervals) -> Tensor:
    """See ``op.values``."""
    out = table.new_empty(coefficients.shape[0], table.shape[1])
    _by_edge(_Values, intervals, [out, coefficients, table])
    return out


def coefficients_gradient(gradient: Tensor, table: Tensor, intervals: Intervals) -> Tensor:
    """See ``op.coefficients_gradient``."""
    out = gradient.new_empty(gradient.shape[0], ROWS)
    _by_edge(_Coefficients, intervals, [out, gradient, table])
    return out


def rows_gradient(coefficients: Tensor, gradient: Tensor, intervals: Intervals) -> Tensor:
    """See ``op.rows_gradient``."""
    num_edges, width = gradient.shape
    num_intervals = intervals.ptr.shape[0] - 1
    out = gradient.new_empty(num_intervals + ROWS - 1, width)
    kernel = _compiled(_Rows, width, gradient.dtype)
    lengths = torch.tensor([num_intervals])
    tensors = [out, coefficients, gradient, intervals.order, intervals.ptr, lengths]
    launch(kernel, tensors, _Rows.chunks(width, gradient.dtype), minimum_work=1 if num_edges > 512 else 1 << 30)
    return out


def _by_edge(kernel, intervals: Intervals, tensors: list[Tensor]) -> None:
    width = tensors[2].shape[1]
    tensors = [*tensors, intervals.order, intervals.interval]
    launch(_compiled(kernel, width, tensors[0].dtype), tensors, intervals.order.shape[0])


@cache
def _compiled(kernel, width: int, dtype: torch.dtype):
    bits = torch.finfo(dtype).bits
    return compiled(kernel.NAME, f"{width} {bits} {VECTORS}", lambda: kernel(width, bits).source())


class _Values(Emitter):
    """out[e] = sum_j C[e, j] T[interval(e) + j] for edges begin ... end - 1 in the order of the intervals."""

    NAME = "radial_table_values"

    def __init__(self, width: int, bits: int):
        super().__init__(self.NAME, bits, 5)
        out, coefficients, table, order, interval = self.tensors
        with self.loop(self.begin, self.end) as index:
            edge = self.load_int(order, index)
            row = self.mul(self.load_int(interval, edge), width)
            factors = [self.load_float(coefficients, self.add(self.mul(edge, ROWS), j)) for j in range(ROWS)]
            for start, vectors, lanes, used in chunk_plan(width, self.lanes):
                with self.loop(0, vectors) as chunk:
                    column = self.add(start, self.mul(chunk, lanes))
                    total = None
                    for j, factor in enumerate(factors):
                        values = self.load(table, self.add(self.add(row, column), j * width), lanes, used)
                        total = self.fma(self.splat(factor, lanes), values, total)
                    self.store(total, out, self.add(self.mul(edge, width), column), used)


class _Coefficients(Emitter):
    """out[e, j] = <T[interval(e) + j], g[e]> for edges begin ... end - 1 in the order of the intervals."""

    NAME = "radial_table_coefficients"

    def __init__(self, width: int, bits: int):
        super().__init__(self.NAME, bits, 5)
        out, gradient, table, order, interval = self.tensors
        plan = chunk_plan(width, self.lanes)
        widths = sorted({lanes for _, _, lanes, _ in plan})
        sums = {(lanes, j): self.variable(self.vector(lanes)) for lanes in widths for j in range(ROWS)}
        with self.loop(self.begin, self.end) as index:
            edge = self.load_int(order, index)
            row = self.mul(self.load_int(interval, edge), width)
            for (lanes, _), variable in sums.items():
                self.builder.store(self.constant(0.0, lanes), variable)
            for start, vectors, lanes, used in plan:
                with self.loop(0, vectors) as chunk:
                    column = self.add(start, self.mul(chunk, lanes))
                    g = self.load(gradient, self.add(self.mul(edge, width), column), lanes, used)
                    for j in range(ROWS):
                        values = self.load(table, self.add(self.add(row, column), j * width), lanes, used)
                        self.accumulate(sums[lanes, j], values, g)
            for j in range(ROWS):
                total = None
                for lanes in widths:
                    total = self.sum(total, self.reduce(self.value(sums[lanes, j])))
                self.builder.store(total, self.at(out, self.add(self.mul(edge, ROWS), j)))


class _Rows(Emitter):
    """out[k] = sum over the edges e and j with interval(e) + j = k of C[e, j] g[e], for some of the columns.

    Rows begin ... end - 1 of this kernel are chunks of columns. The six rows that an interval adds to are held in
    registers; from interval to interval the first is done and stored, and a new one begins.
    """

    NAME = "radial_table_rows"

    def __init__(self, width: int, bits: int):
        super().__init__(self.NAME, bits, 6)
        self.width = width
        whole = VECTORS * self.lanes
        with self.loop(self.begin, self.end) as chunk:
            if width >= whole:  # the last chunk may do some columns again
                column = self.minimum(self.mul(chunk, whole), width - whole)
                self.columns(column, [(v * self.lanes, self.lanes, self.lanes) for v in range(VECTORS)])
            else:
                plan = chunk_plan(width, self.lanes)
                self.columns(0, [(start + v * lanes, lanes, used) for start, n, lanes, used in plan for v in range(n)])

    @staticmethod
    def chunks(width: int, dtype: torch.dtype) -> int:
        """Number of chunks of columns."""
        from ..native import vector_bytes

        return -(-width // (VECTORS * vector_bytes() // dtype.itemsize)) if width else 0

    def columns(self, column, vectors: list[tuple[int, int, int]]) -> None:
        out, coefficients, gradient, order, ptr, lengths = self.tensors
        num_intervals = self.load_int(lengths, 0)
        sums = [[self.variable(self.vector(lanes)) for _, lanes, _ in vectors] for _ in range(ROWS)]

        def clear(row):
            for variable, (_, lanes, _) in zip(row, vectors, strict=True):
                self.builder.store(self.constant(0.0, lanes), variable)

        def finish(row, k):
            for variable, (offset, _, used) in zip(row, vectors, strict=True):
                place = self.add(self.add(self.mul(k, self.width), column), offset)
                self.store(self.value(variable), out, place, used)

        for row in sums:
            clear(row)
        with self.loop(0, num_intervals) as interval:
            last = self.load_int(ptr, self.add(interval, 1))
            with self.loop(self.load_int(ptr, interval), last) as index:
                edge = self.load_int(order, index)
                base = self.add(self.mul(edge, self.width), column)
                values = [self.load(gradient, self.add(base, offset), lanes, used) for offset, lanes, used in vectors]
                for j, row in enumerate(sums):
                    factor = self.load_float(coefficients, self.add(self.mul(edge, ROWS), j))
                    for variable, value in zip(row, values, strict=True):
                        self.accumulate(variable, self.splat(factor, value.type.count), value)
            finish(sums[0], interval)
            for row, following in pairwise(sums):
                for variable, other in zip(row, following, strict=True):
                    self.builder.store(self.value(other), variable)
            clear(sums[-1])
        for j, row in enumerate(sums[:-1]):
            finish(row, self.add(num_intervals, j))
