"""The tensor-product convolution for CPUs: LLVM assembly made from a ``Program``.

Two kernels serve the convolution and all its derivatives (see ``op.py``). Both walk the edges of a node and keep one
vector of channels in each register.

``Gather`` reads M(Y), the matrix that a path makes of Y, from a table: it does not depend on the channel, so it is
computed once an edge, for a tile of edges at a time with one edge a lane, and then broadcast. The outputs of as many
paths as fit stay in registers while the edges of the tile pass by.
"""

from collections import defaultdict
from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from ..adjacency import Adjacency
from ..llvm import I64, Emitter, chunk_plan
from ..native import compiled, launch
from .program import Contraction, Program, numbered

TILE = 16  # edges whose matrices are made together
MAX_ACCUMULATORS = 18  # rows of output held in registers


def gather(program: Program, edges: Adjacency, terms: list, transposed: bool = False) -> Tensor:
    """See ``op.gather``."""
    numbers, operands = numbered(terms)
    ptr, edge, node = edges.columns if transposed else edges.rows
    out = terms[0][2].new_empty(ptr.shape[0] - 1, (program.irreps_in if transposed else program.irreps_out).dim)
    if not program.paths:
        return out.zero_()
    launch(_compiled(Gather, program, numbers, out.dtype, transposed), [out, ptr, edge, node, *operands], ptr)
    return out


def edge_gradients(
    program: Program, edges: Adjacency, g: Tensor, terms: list, need_y: bool = True
) -> tuple[Tensor, Tensor]:
    """See ``op.edge_gradients``."""
    numbers, operands = numbered(terms)
    w, y, _ = terms[0]
    dw, dy = torch.empty_like(w), torch.empty_like(y) if need_y else y.new_empty(0)
    if not program.paths:
        return dw, dy.zero_()
    kernel = _compiled(EdgeGradients, program, numbers, g.dtype, need_y)
    launch(kernel, [dw, dy, *edges.rows, g, *operands], edges.row_ptr)
    return dw, dy


@cache
def _compiled(kernel: type["Kernel"], program: Program, terms: tuple, dtype: torch.dtype, *options):
    bits = torch.finfo(dtype).bits
    recipe = f"{program.key} {terms} {bits} {options}"
    return compiled(kernel.NAME, recipe, lambda: kernel(program, terms, bits, *options).source())


class Streamed:
    """Weights of edges from memory, for each edge of a tile a row.

    Args:
        emitter: the kernel that reads them.
        tensors: pointers to each w.
        w_dim: weights of an edge.
    """

    EXTRA_TENSORS = 0  # beside one for each w

    def __init__(self, emitter: Emitter, tensors: list, w_dim: int):
        self.emitter, self.tensors, self.w_dim = emitter, tensors, w_dim
        self.offset, self.ahead = (emitter.variable(I64, TILE) for _ in range(2))

    def fill(self, s, edge, ahead) -> None:
        """Make place ``s`` of the tile ready for an edge; ``ahead`` is one that comes later."""
        e = self.emitter
        for offsets, number in ((self.offset, edge), (self.ahead, ahead)):
            e.builder.store(e.mul(number, self.w_dim), e.at(offsets, s, I64))

    def start(self, s, channel, width: int) -> None:
        """Turn to a vector of channels of the edge at place ``s``."""
        e = self.emitter
        self.rows, self.coming = (
            [e.at(tensor, e.add(e.load_int(offsets, s), channel)) for tensor in self.tensors]
            for offsets in (self.offset, self.ahead)
        )

    def load(self, place: int, width: int, used: int) -> list:
        """A vector of each w, ``place`` floats after the channel."""
        return [self.emitter.load(row, place, width, used) for row in self.rows]

    def ask(self, place: int) -> None:
        """For what comes later: weights are what comes from far."""
        for row in self.coming:
            self.emitter.prefetch(row, place)


class Kernel(Emitter):
    """A kernel that takes its own tensors and then all w, all Y and all v that its terms number.

    Args:
        terms: (index of w, index of Y, index of v), one for each product to be summed.
    """

    NAME: str
    OWN_TENSORS: int
    WEIGHTS = Streamed

    def __init__(self, program: Program, terms: tuple[tuple[int, int, int], ...], bits: int):
        counts = [1 + max(numbers) for numbers in zip(*terms, strict=True)]
        counts[0] += self.WEIGHTS.EXTRA_TENSORS
        super().__init__(self.NAME, bits, self.OWN_TENSORS + sum(counts))
        self.program, self.terms = program, terms
        self.own, rest = self.tensors[: self.OWN_TENSORS], self.tensors[self.OWN_TENSORS :]
        w, self.y, self.v = rest[: counts[0]], rest[counts[0] : counts[0] + counts[1]], rest[-counts[2] :]
        self.w_dim, self.y_dim = program.weight_numel, program.irreps_edge.dim
        self.weights = self.WEIGHTS(self, w, self.w_dim)


class Gather(Kernel):
    """out[n] = sum over the edges e of node n and the terms (w, Y, v) of w[e] (M(Y[e]) v[node(e)])."""

    NAME, OWN_TENSORS = "gather", 4

    def __init__(self, program: Program, terms: tuple, bits: int, transposed: bool):
        super().__init__(program, terms, bits)
        out, ptr, edge, node = self.own
        dims = program.irreps_in.dim, program.irreps_out.dim
        v_dim, out_dim = dims[::-1] if transposed else dims
        paths = program.contractions(transposed)
        self.entries = {}  # the distinct entries of all matrices, and their places in a table
        for path in paths:
            for combination in path.matrix.values():
                self.entries.setdefault(combination, len(self.entries))
        self.v_offset = self.variable(I64, TILE)
        y_tiles = [self.variable(self.float, self.y_dim * TILE) for _ in self.y]
        self.tables = [self.variable(self.float, len(self.entries) * TILE) for _ in self.y]

        final = self.add(self.load_int(ptr, self.end), -1)
        with self.loop(self.begin, self.end) as n:
            row = self.at(out, self.mul(n, out_dim))
            with self.loop(0, out_dim) as column:
                self.builder.store(ir.Constant(self.float, 0.0), self.at(row, column))
            last = self.load_int(ptr, self.add(n, 1))
            with self.loop(self.load_int(ptr, n), last, TILE) as first:
                count = self.minimum(self.builder.sub(last, first), TILE)
                with self.loop(0, count) as s:
                    index = self.add(first, s)
                    edge_id = self.load_int(edge, index)
                    ahead = self.load_int(edge, self.minimum(self.add(index, TILE), final))
                    self.weights.fill(s, edge_id, ahead)
                    self.builder.store(self.mul(self.load_int(node, edge_id), v_dim), self.at(self.v_offset, s, I64))
                    for tensor, tile in zip(self.y, y_tiles, strict=True):
                        attributes = self.at(tensor, self.mul(edge_id, self.y_dim))
                        for j in range(self.y_dim):
                            self.builder.store(self.load_float(attributes, j), self.at(tile, self.add(j * TILE, s)))
                for tile, table in zip(y_tiles, self.tables, strict=True):
                    self.fill_table(tile, table)
                for group in _groups(paths):
                    for start, vectors, width, used in chunk_plan(group[0].mul, self.lanes):
                        with self.loop(0, vectors) as chunk:
                            self.group(group, row, self.add(start, self.mul(chunk, width)), width, used, count)

    def fill_table(self, tile, table) -> None:
        """The entries of M(Y) for the edges of a tile, one edge a lane."""
        for combination, place in self.entries.items():
            value = None
            for j, coefficient in combination:
                value = self.fma(self.constant(coefficient, TILE), self.load(tile, j * TILE, TILE), value)
            self.store(value, table, place * TILE)

    def group(self, paths: list[Contraction], row, channel, width: int, used: int, count) -> None:
        """All paths of a group over a tile of edges, for one vector of channels."""
        sums = {}  # place of a row of channels in ``row`` -> its accumulator
        for path in paths:
            for place in path.target.places:
                if place not in sums:
                    sums[place] = self.variable(self.vector(width))
                    self.builder.store(self.load(row, self.add(place, channel), width, used), sums[place])
        with self.loop(0, count) as s:
            self.weights.start(s, channel, width)
            v_rows = [self.at(tensor, self.add(self.load_int(self.v_offset, s), channel)) for tensor in self.v]
            tables = [self.at(table, s) for table in self.tables]
            loaded = {}  # components of v that paths share
            for path in paths:
                products = defaultdict(dict)  # w -> {component: M v, summed over the terms with this w}
                for w, y, v in self.terms:
                    for (k, i), combination in path.matrix.items():
                        place = path.source.places[i]
                        if (v, place) not in loaded:
                            loaded[v, place] = self.load(v_rows[v], place, width, used)
                        entry = self.broadcast(tables[y], self.entries[combination] * TILE, width)
                        products[w][k] = self.fma(entry, loaded[v, place], products[w].get(k))
                weights = self.weights.load(path.weight, width, used)
                self.weights.ask(path.weight)
                for w, components in products.items():
                    for k, value in components.items():
                        self.accumulate(sums[path.target.places[k]], weights[w], value)
        for place, accumulator in sums.items():
            self.store(self.value(accumulator), row, self.add(place, channel), used)


def _groups(paths) -> list[list[Contraction]]:
    """Paths with the same number of channels whose outputs fit into registers together."""
    groups, rows = [], 0
    for path in sorted(paths, key=lambda path: path.mul):
        joins = bool(groups) and groups[-1][0].mul == path.mul
        need = 0 if joins and groups[-1][-1].target == path.target else path.target.dim
        if not joins or rows + need > MAX_ACCUMULATORS:
            groups.append([])
            rows, need = 0, path.target.dim
        groups[-1].append(path)
        rows += need
    return groups


class EdgeGradients(Kernel):
    """For each edge e of node n, with S_j[u] = sum_ik c_ijk v[node(e), i, u] g[n, k, u] and over the terms (w, Y, v):

    dw[e, u] = sum of sum_j Y[e, j] S_j[u]   and   dY[e, j] = sum of sum_u w[e, u] S_j[u].
    """

    NAME, OWN_TENSORS = "edge_gradients", 6

    def __init__(self, program: Program, terms: tuple, bits: int, need_y: bool):
        super().__init__(program, terms, bits)
        self.need_y = need_y
        self.prepare()
        self.walk()

    def walk(self) -> None:
        """The nodes begin ... end - 1."""
        self.dw, self.dy, *edges_and_g = self.own
        with self.loop(self.begin, self.end) as n:
            self.of_node(n, *edges_and_g)

    def prepare(self) -> None:
        """What all nodes need."""
        self.blocks = defaultdict(list)  # the paths of each input block
        for path in self.program.contractions():
            self.blocks[path.source, path.mul].append(path)
        self.widths = sorted({width for _, mul in self.blocks for _, _, width, _ in chunk_plan(mul, self.lanes)})
        self.sums = self.sums_over_channels(self.y_dim)

    def sums_over_channels(self, count: int) -> dict:
        """A vector of each width for each of so many sums."""
        return {(width, j): self.variable(self.vector(width)) for width in self.widths for j in range(count)}

    def clear(self, sums: dict) -> None:
        """Set sums over the channels to zero."""
        for (width, _), accumulator in sums.items():
            self.builder.store(self.constant(0.0, width), accumulator)

    def total(self, sums: dict, j: int):
        """A sum over the channels."""
        total = None
        for width in self.widths:
            total = self.sum(total, self.reduce(self.value(sums[width, j])))
        return total

    def of_node(self, n, ptr, edge, node, g) -> None:
        """All edges of a node."""
        self.g_row = self.at(g, self.mul(n, self.program.irreps_out.dim))
        with self.loop(self.load_int(ptr, n), self.load_int(ptr, self.add(n, 1))) as index:
            edge_id = self.load_int(edge, index)
            y_offset = self.mul(edge_id, self.y_dim)
            v_offset = self.mul(self.load_int(node, edge_id), self.program.irreps_in.dim)
            self.y_rows = [self.at(tensor, y_offset) for tensor in self.y]
            self.v_rows = [self.at(tensor, v_offset) for tensor in self.v]
            self.weights.fill(0, edge_id, edge_id)
            self.clear(self.sums)
            self.open(edge_id)
            for (_, mul), paths in self.blocks.items():
                for start, vectors, width, used in chunk_plan(mul, self.lanes):
                    with self.loop(0, vectors) as chunk:
                        self.block(paths, self.add(start, self.mul(chunk, width)), width, used)
            for j in range(self.y_dim if self.need_y else 0):
                self.builder.store(self.total(self.sums, j), self.at(self.dy, self.add(y_offset, j)))
            self.close(edge_id)

    def block(self, paths: list[Contraction], channel, width: int, used: int) -> None:
        """All paths of one input block for one edge and one vector of channels."""

        def load(row, place):
            return self.load(row, self.add(place, channel), width, used)

        v = {number: [load(self.v_rows[number], place) for place in paths[0].source.places]
             for number in sorted({number for _, _, number in self.terms})}  # fmt: skip
        self.weights.start(0, channel, width)
        for path in paths:
            gradient = [load(self.g_row, place) for place in path.target.places]
            s = {}  # number of v -> {j: S_j}
            for number, components in v.items():
                s[number] = {}
                for (k, i), combination in path.matrix.items():
                    product = self.builder.fmul(components[i], gradient[k])
                    for j, coefficient in combination:
                        s[number][j] = self.fma(self.constant(coefficient, width), product, s[number].get(j))
            weights = self.weights.load(path.weight, width, used) if self.need_y else None
            totals = {}  # number of w -> what its weights are the factors of
            for w, y, number in self.terms:
                for j, value in s[number].items():
                    totals[w] = self.fma(self.broadcast(self.y_rows[y], j, width), value, totals.get(w))
                    if self.need_y:
                        self.accumulate(self.sums[width, j], weights[w], value)
            self.keep(totals, path.weight, channel, width, used)

    def open(self, edge_id) -> None:
        """An edge begins."""
        self.dw_row = self.at(self.dw, self.mul(edge_id, self.w_dim))

    def keep(self, totals: dict, place: int, channel, width: int, used: int) -> None:
        """Gradients by the weights of a vector of channels."""
        total = None
        for value in totals.values():
            total = self.sum(total, value)
        self.store(total, self.dw_row, self.add(place, channel), used)

    def close(self, edge_id) -> None:
        """An edge is done."""
