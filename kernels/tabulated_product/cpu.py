"""The tabulated convolution for CPUs: the loops of ``tensor_product/cpu.py`` with weights from a table.

A row of the table is some kilobytes and the whole of it fits into a core's own cache, where the weights of all edges
would come from memory.
"""

from functools import cache

import torch
from torch import Tensor

from ..adjacency import Adjacency
from ..llvm import I64
from ..native import compiled, launch
from ..radial_table.naive import ROWS
from ..tensor_product.cpu import TILE, EdgeGradients, Gather
from ..tensor_product.program import Program, numbered

PARTS = 16  # at most, of the edges
EDGES_OF_PART = 512  # that are worth a table of their own


def gather(
    program: Program, edges: Adjacency, interval: Tensor, table: Tensor, terms: list, transposed: bool = False
) -> Tensor:
    """See ``op.gather``."""
    numbers, operands = numbered(terms)
    ptr, edge, node = edges.columns if transposed else edges.rows
    out = table.new_empty(ptr.shape[0] - 1, (program.irreps_in if transposed else program.irreps_out).dim)
    if not program.paths:
        return out.zero_()
    kernel = _compiled(TabulatedGather, program, numbers, out.dtype, transposed)
    launch(kernel, [out, ptr, edge, node, table, interval, *operands], ptr)
    return out


def edge_gradients(
    program: Program, edges: Adjacency, interval: Tensor, table: Tensor, g: Tensor, term: tuple
) -> tuple[Tensor, Tensor]:
    """See ``op.edge_gradients``."""
    numbers, (coefficients, y, v) = numbered([term])
    by_coefficients, dy = torch.empty_like(coefficients), torch.empty_like(y)
    if not program.paths:
        return by_coefficients.zero_(), dy.zero_()
    kernel = _compiled(CoefficientGradients, program, numbers, g.dtype)
    tensors = [by_coefficients, dy, *edges.rows, g, table, interval, coefficients, y, v]
    launch(kernel, tensors, edges.row_ptr)
    return by_coefficients, dy


def table_gradient(
    program: Program, edges: Adjacency, interval: Tensor, num_rows: int, g: Tensor, terms: list
) -> Tensor:
    """See ``op.table_gradient``."""
    numbers, operands = numbered(terms)
    num_nodes, num_edges = edges.row_ptr.shape[0] - 1, edges.source.shape[0]
    # parts that do not depend on the number of threads give sums that are the same to the last bit; any power of two
    # is shared out evenly
    count = PARTS
    while count > 1 and num_edges < count * EDGES_OF_PART:
        count //= 2
    bounds = torch.searchsorted(edges.row_ptr, torch.arange(count + 1) * num_edges // count)
    bounds[0], bounds[-1] = 0, num_nodes  # nodes without edges, too
    parts = g.new_zeros(count, num_rows, program.weight_numel)
    if program.paths:
        kernel = _compiled(TableGradient, program, numbers, g.dtype)
        size = torch.tensor([parts[0].numel()])
        tensors = [parts, bounds, *edges.rows, g, size, parts, interval, *operands]  # the table is each part's own
        launch(kernel, tensors, count, minimum_work=1)
    return parts.sum(0)


@cache
def _compiled(kernel, program: Program, terms: tuple, dtype: torch.dtype, *options):
    bits = torch.finfo(dtype).bits
    recipe = f"{program.key} {terms} {bits} {options}"
    return compiled(kernel.NAME, recipe, lambda: kernel(program, terms, bits, *options).source())


class Interpolated:
    """Weights of edges from rows of a table, for each vector of coefficients; in the place of ``Streamed``."""

    EXTRA_TENSORS = 2  # the table, and the intervals

    def __init__(self, emitter, tensors: list, w_dim: int):
        self.emitter, self.w_dim = emitter, w_dim
        self.table, self.interval, *self.tensors = tensors
        self.offset = emitter.variable(I64, TILE)
        self.splines = emitter.variable(emitter.float, len(self.tensors) * ROWS * TILE)

    def fill(self, s, edge, ahead) -> None:
        """See ``Streamed.fill``."""
        e = self.emitter
        e.builder.store(e.mul(e.load_int(self.interval, edge), self.w_dim), e.at(self.offset, s, I64))
        for number, tensor in enumerate(self.tensors):
            row = e.at(tensor, e.mul(edge, ROWS))
            for j in range(ROWS):
                place = e.add((number * ROWS + j) * TILE, s)
                e.builder.store(e.load_float(row, j), e.at(self.splines, place))

    def start(self, s, channel, width: int) -> None:
        """See ``Streamed.start``."""
        e = self.emitter
        self.row = e.at(self.table, e.add(e.load_int(self.offset, s), channel))
        splines = e.at(self.splines, s)
        self.factors = [
            [e.broadcast(splines, (number * ROWS + j) * TILE, width) for j in range(ROWS)]
            for number in range(len(self.tensors))
        ]

    def load(self, place: int, width: int, used: int) -> list:
        """See ``Streamed.load``."""
        totals = [None] * len(self.tensors)
        for j, values in enumerate(self.rows(place, width, used)):
            totals = [self.emitter.fma(f[j], values, total) for f, total in zip(self.factors, totals, strict=True)]
        return totals

    def rows(self, place: int, width: int, used: int) -> list:
        """A vector of each row of the table that the edge reads."""
        return [self.emitter.load(self.row, place + j * self.w_dim, width, used) for j in range(ROWS)]

    def ask(self, place: int) -> None:
        """Nothing comes from far."""


class TabulatedGather(Gather):
    """out[n] = sum over the edges e of node n and the terms (C, Y, v) of (C[e] T) (M(Y[e]) v[node(e)])."""

    NAME, WEIGHTS = "tabulated_gather", Interpolated


class CoefficientGradients(EdgeGradients):
    """For each edge dY, and dC[e, j] = <T[interval(e) + j], dw[e]>."""

    NAME, WEIGHTS = "tabulated_edge_gradients", Interpolated

    def __init__(self, program: Program, terms: tuple, bits: int):
        super().__init__(program, terms, bits, need_y=True)

    def prepare(self) -> None:
        super().prepare()
        self.by_row = self.sums_over_channels(ROWS)

    def open(self, edge_id) -> None:
        self.clear(self.by_row)

    def keep(self, totals: dict, place: int, channel, width: int, used: int) -> None:
        for j, values in enumerate(self.weights.rows(place, width, used)):
            self.accumulate(self.by_row[width, j], values, totals[0])

    def close(self, edge_id) -> None:
        for j in range(ROWS):
            place = self.add(self.mul(edge_id, ROWS), j)
            self.builder.store(self.total(self.by_row, j), self.at(self.dw, place))


class TableGradient(EdgeGradients):
    """dT[interval(e) + j] += C[e, j] dw[e] over the edges of parts begin ... end - 1 and the terms (C, Y, v)."""

    NAME, OWN_TENSORS, WEIGHTS = "tabulated_table_gradient", 7, Interpolated

    def __init__(self, program: Program, terms: tuple, bits: int):
        super().__init__(program, terms, bits, need_y=False)

    def walk(self) -> None:
        parts, bounds, *edges_and_g, size = self.own
        with self.loop(self.begin, self.end) as part:
            self.weights.table = self.at(parts, self.mul(part, self.load_int(size, 0)))
            with self.loop(self.load_int(bounds, part), self.load_int(bounds, self.add(part, 1))) as n:
                self.of_node(n, *edges_and_g)

    def open(self, edge_id) -> None:
        """All is kept at once."""

    def keep(self, totals: dict, place: int, channel, width: int, used: int) -> None:
        for j, values in enumerate(self.weights.rows(place, width, used)):
            for number, total in totals.items():
                values = self.fma(self.weights.factors[number][j], total, values)
            self.store(values, self.weights.row, place + j * self.w_dim, used)
